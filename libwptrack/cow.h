/* SPDX-License-Identifier: MIT */
/*
 * Copy before write: what is dirty at an instant is saved after the target runs again, each page before its first write. See fault.h for
 * who saves what; here is the taker's part. Between open and close nothing calls malloc.
 */
#ifndef WPT_COW_H
#define WPT_COW_H

#include "copy.h"
#include "layer.h"
#include "tracker.h"

struct wpt_cow {
	struct wpt_tracker *t;
	struct wpt_layer_writer *w;
	struct wpt_scan scan;
	struct wpt_vec areas;          /* struct wpt_fault_area: of which pages may be saved later */
	struct wpt_batch *batch;
	struct wpt_fault_area *area;   /* the one that is being copied */
	const struct wpt_fault_area *scanned; /* by later: see find_run() */
	uint64_t scanned_to;
	struct wpt_page_region run;
	bool begun;
	struct wpt_cow_counts counts;
	uint64_t pages_later;          /* left to be saved after the pause */
	uint64_t pages_copied;         /* of these: by the taker */
	uint64_t staging_waits;
};

/* Before the target is stopped. Errors: -ENOMEM. */
int wpt_cow_open(struct wpt_cow *k, struct wpt_tracker *t, struct wpt_layer_writer *w, uint64_t staging_bytes);

/* While the target stands still, before the look: nothing that was in hand ends a protection later. */
void wpt_cow_settle(struct wpt_cow *k);
/* After the look, before the copy, which then leaves pages to be saved later: in which areas. -ENOMEM. */
int wpt_cow_plan(struct wpt_cow *k, struct wpt_copy *c);
/* After the copy, before the target runs again. */
void wpt_cow_begin(struct wpt_cow *k, struct wpt_copy *c);

/*
 * Saves what is pending, while the target runs. *lost: something of the instant could not be saved, and the link is not whole until everything was
 * copied again. Errors: the writer's, -WPT_E_GONE.
 */
int wpt_cow_run(struct wpt_cow *k, bool *lost);

/* Lets go of whoever waits, in whatever state all of it is. Accepts what open left. */
void wpt_cow_close(struct wpt_cow *k);

#endif
