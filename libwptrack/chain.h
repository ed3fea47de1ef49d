/* SPDX-License-Identifier: MIT */
/*
 * A chain as the writer of its next link and the other readers inside the library see it. The rest of its interface is in wptrack.h.
 */
#ifndef WPT_CHAIN_H
#define WPT_CHAIN_H

#include "base.h"
#include "layer.h"

/* The last link's identity, its digest, origin and the chain's key: what the next link is made from. */
void wpt_chain_tip(const struct wpt_chain *c, struct wpt_identity *identity, uint8_t digest[16], struct wpt_origin *origin,
		   uint8_t key[32]);

/* End of the last good link of a concatenation, where the next is appended. */
uint64_t wpt_chain_end_offset(const struct wpt_chain *c);

/*
 * Every page of [start, end) at the last link, in order of address, as runs of one state; pages outside the ranges are left out. `hashes`
 * has nr_pages entries if known is DATA, else it is NULL. For 1 TiB of zeros it is one call.
 */
int wpt_chain_walk(struct wpt_chain *c, uint64_t start, uint64_t end,
		   int (*each)(void *arg, uint64_t addr, uint64_t nr_pages, enum wpt_known known, const struct wpt_hash *hashes),
		   void *arg);

#endif
