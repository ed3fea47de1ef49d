/* SPDX-License-Identifier: MIT */
/*
 * The hot set. Pages that are written between nearly all links are left unprotected: what is not protected counts as written, so a look finds them
 * without a fault of the target. A look protects them as it does all that is written, in the same instant as it reports them, and they are
 * unprotected again when they are reported: nothing can be missed by that, whatever happens to the memory meanwhile.
 */
#include "tracker.h"

#include "kern.h"

#define LOOSEN_SLICE ((uint64_t)16 << 20)

/* Kinds of which a page that is there tells by itself whether it was written, and where unprotecting what is not there leaves it dirty. */
static bool can_be_loose(const struct wpt_area *a)
{
	return a->armed && !a->skipped && !a->untracked && (a->kind == WPT_KIND_ANON || a->kind == WPT_KIND_SHMEM) && a->page_size == WPT_PAGE;
}

void wpt_tracker_loosen(struct wpt_tracker *t)
{
	uint64_t at, run_end, end;
	const struct wpt_area *a;
	size_t i;

	for (i = 0; i < t->plan->areas.count; i++) {
		a = wpt_area_at(t->plan, i);
		if (!can_be_loose(a))
			continue;
		for (at = a->start; (at = wpt_ledger_next_loose(t->ledger, at, a->end, &run_end)) < a->end; at = end) {
			end = WPT_MIN(run_end, at + LOOSEN_SLICE);
			/* What is not there any more, or is not registered, is not dirty next time, and cools down. */
			wpt_kern_unprotect(wpt_target_uffd(t->target), at, end);
		}
	}
}
