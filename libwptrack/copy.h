/* SPDX-License-Identifier: MIT */
/*
 * Copies what a look found into batches for the layer writer: per area the candidates (taken or unknown pages), and the pages that are zero by
 * being nowhere. Reads each page in the way that does not inflate the target. No malloc.
 */
#ifndef WPT_COPY_H
#define WPT_COPY_H

#include "layer.h"
#include "tracker.h"

#define WPT_COPY_AGAIN 64u

struct wpt_copy {
	struct wpt_tracker *t;
	struct wpt_layer_writer *w;
	bool check_torn;        /* the target runs and there is no later pass: look again at what was copied */
	bool refuse;            /* -WPT_E_STAGING instead of waiting for staging memory */
	bool round;             /* the target runs and there is a later pass: what will be compared then is left out */
	bool staging;           /* the writer's threads are held: a page that comes again takes the place of its first copy */
	unsigned int retries;
	/*
	 * Mode cow: the first run [*from, *to) of the candidates [start, end) that is saved by other means after the pause; end where there is none.
	 * What lies before it is copied now. NULL: all is copied now.
	 */
	int (*later)(struct wpt_copy *c, uint64_t start, uint64_t end, uint64_t *from, uint64_t *to);
	void *later_arg;
	struct wpt_scan outer, inner, check;

	struct wpt_batch *batch;
	struct wpt_area *area;
	uint64_t populated;     /* bytes of the area, as far as it was looked at whole */
	int err;
	struct wpt_piece pieces[WPT_BATCH_PAGES]; /* to be read through the mapping */
	size_t nr_pieces;
	uint32_t piece_pages;
	uint8_t torn[WPT_BATCH_PAGES];
	struct wpt_piece again_pieces[WPT_COPY_AGAIN]; /* staged pages to be read again */
	uint32_t again_slots[WPT_COPY_AGAIN];
	size_t nr_again;
	uint8_t *again;

	/* Of the last pass; of all. */
	uint64_t pages_tracked, pages_dirty, pages_compared, pages_unreadable;
	uint64_t swapped_in, staging_waits;
	uint32_t moments;       /* that this pass may still wait for pages to be migrated */
	bool spilled;           /* the last pass had to wait for memory: what was staged is the writer's threads' */
};

int wpt_copy_open(struct wpt_copy *c, struct wpt_tracker *t);
void wpt_copy_close(struct wpt_copy *c);

/* Nothing is staged any more. While the writer's threads are held, and before they get at the batches: what is in them stays as it is. */
void wpt_copy_unstage(struct wpt_copy *c);

static inline uint8_t *wpt_batch_slot(const struct wpt_batch *b, uint32_t page)
{
	return b->data + (size_t)page * WPT_PAGE;
}

/* Of the batch in hand: what was written while it was copied is copied again, or flagged. */
void wpt_copy_check_torn(struct wpt_copy *c);

/* One pass over the plan. All that it found is submitted, or there was an error. */
int wpt_copy_run(struct wpt_copy *c);

#endif
