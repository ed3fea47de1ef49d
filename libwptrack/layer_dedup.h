/* SPDX-License-Identifier: MIT */
/*
 * Pages of the link in hand that were stored and seen again. A hash only says where to look: a duplicate is one by memcmp.
 *
 * A page of which there is no second costs one look at a table of hashes; the bytes are kept from the second sighting on, and the
 * third is the first to be found. Memory: 18 MiB at most, used as needed. Threads: many.
 */
#ifndef WPT_LAYER_DEDUP_H
#define WPT_LAYER_DEDUP_H

#include "base.h"

struct wpt_layer_dedup;

/* Where a page is stored. */
struct wpt_layer_place {
	uint64_t frame;
	uint32_t slot;
};

int wpt_layer_dedup_open(struct wpt_layer_dedup **out);
void wpt_layer_dedup_close(struct wpt_layer_dedup *d);

/*
 * `page` with `hash` is about to be stored at *place. True: the same bytes are stored already, in a frame of [oldest, place->frame],
 * and *place is changed to there. False: store it.
 */
bool wpt_layer_dedup_find(struct wpt_layer_dedup *d, const void *page, const uint8_t hash[16], uint64_t oldest,
			  struct wpt_layer_place *place);

#endif
