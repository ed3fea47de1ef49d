/* SPDX-License-Identifier: MIT */
/* What is dirty of an area, by what its kind needs to be looked at: into the ledger, and what can't be told into `unknown`. */
#include "look.h"
#include "page.h"

/* Pages that were COWed at the last look and are not any more show the file's content again. */
int wpt_tracker_uncowed(struct wpt_tracker *t, struct wpt_scan *scan, uint64_t start, uint64_t end, bool forget)
{
	/* Two passes: pages that are the file's, and pages that are not present. */
	const struct wpt_scan_match passes[] = {
		{ .mask = PAGE_IS_PRESENT | PAGE_IS_FILE, .report = PAGE_IS_PRESENT | PAGE_IS_FILE },
		{ .inverted = PAGE_IS_PRESENT, .mask = PAGE_IS_PRESENT, .report = PAGE_IS_PRESENT | PAGE_IS_SWAPPED },
	};
	struct wpt_ledger *ledger = t->ledger;
	struct wpt_page_region run;
	uint64_t at, run_end;
	unsigned int pass;
	int got = 0, err;

	for (pass = 0; pass < WPT_ARRAY_SIZE(passes); pass++) {
		wpt_scan_start(scan, start, end, &passes[pass], false);
		while ((got = wpt_scan_next(scan, &run)) > 0) {
			at = run.start;
			while ((at = wpt_ledger_next_cowed(ledger, at, run.end, &run_end)) < run.end) {
				err = wpt_ledger_dirty(ledger, at, run_end);
				if (err)
					return err;
				/* A swap entry and the marker that a zap left look the same: dirty, and still taken for COWed. */
				for (; at < run_end; at += WPT_PAGE)
					if (forget && !(run.categories & PAGE_IS_SWAPPED))
						wpt_ledger_set_cowed(ledger, at, false);
			}
		}
		if (got < 0)
			return got;
	}
	return 0;
}

/*
 * A huge page that was zapped or punched and then filled again by a read is present, not written, and zero all over. Where the chain shows
 * something else in it, one look at that tells.
 */
static int collect_refilled(struct wpt_look *l, const struct wpt_area *a, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match present = { .mask = PAGE_IS_PRESENT };
	struct wpt_page_region run;
	enum wpt_known known;
	uint64_t buf[WPT_PAGE / 8], at, stop, page;
	int got = 0, err = 0;

	wpt_scan_start(l->scan, start, end, &present, false);
	while (!err && (got = wpt_scan_next(l->scan, &run)) > 0)
		for (at = run.start; at < run.end && !err; at = stop) {
			stop = WPT_MIN(run.end, WPT_ALIGN_DOWN(at, a->page_size) + a->page_size);
			page = wpt_ledger_next_nonzero(l->t->ledger, at, stop, &known);
			if (page == stop || (known == WPT_KNOWN_DATA && wpt_target_read(l->t->target, page, buf, WPT_PAGE) == WPT_PAGE &&
					     !wpt_page_is_zero(buf)))
				continue;
			err = wpt_ledger_dirty(l->t->ledger, at, stop);
		}
	return err ? err : got;
}

/* Adds the runs that match to the dirty set. */
static int collect_matching(struct wpt_look *l, uint64_t start, uint64_t end, const struct wpt_scan_match *match)
{
	struct wpt_page_region run;
	int got, err = 0;

	wpt_scan_start(l->scan, start, end, match, false);
	while (!err && (got = wpt_scan_next(l->scan, &run)) > 0)
		err = wpt_ledger_dirty(l->t->ledger, run.start, run.end);
	return err ? err : got;
}

/* What is written, and protected again in the same instant. */
static int collect_written(struct wpt_look *l, uint64_t start, uint64_t end)
{
	struct wpt_page_region run;
	int got, err = 0;

	wpt_scan_start(l->scan, start, end, &wpt_match_written, true);
	while (!err && (got = wpt_scan_next(l->scan, &run)) > 0)
		err = wpt_ledger_dirty(l->t->ledger, run.start, run.end);
	return err ? err : got;
}

/* Of a dense area all that there is to know, in one scan. Asked for nothing but what is written, the kernel is twice as fast. */
static int collect_told(struct wpt_look *l, struct wpt_area *a, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match match = {
		.mask = PAGE_IS_WRITTEN,
		.report = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	};
	struct wpt_page_region run;
	int got, err = 0;

	wpt_scan_start(l->scan, start, end, l->soon ? &wpt_match_written : &match, true);
	while (!err && (got = wpt_scan_next(l->scan, &run)) > 0) {
		if (!l->soon && !(run.categories & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED))) {
			wpt_ledger_gone(l->t->ledger, run.start, run.end);
			continue;
		}
		a->swapped |= run.categories & PAGE_IS_SWAPPED;
		wpt_ledger_present(l->t->ledger, run.start, run.end);
		err = wpt_ledger_dirty(l->t->ledger, run.start, run.end);
	}
	return err ? err : got;
}

/*
 * Every place had a marker or a page: where neither is, a zap took it, and perhaps a write before that. Where a page of a memfd only has its
 * marker, see wpt_look_bypasses().
 */
static int collect_unmapped(struct wpt_look *l, const struct wpt_area *a, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match match = { .inverted = PAGE_IS_PRESENT, .mask = PAGE_IS_PRESENT, .report = PAGE_IS_SWAPPED };
	struct wpt_page_region run;
	struct wpt_span *span;
	enum wpt_known known;
	int got, err = 0;

	if (a->kind != WPT_KIND_SHMEM)
		return collect_matching(l, start, end, &wpt_match_none);
	wpt_scan_start(l->scan, start, end, &match, false);
	while (!err && (got = wpt_scan_next(l->scan, &run)) > 0) {
		if (!(run.categories & PAGE_IS_SWAPPED)) {
			err = wpt_ledger_dirty(l->t->ledger, run.start, run.end);
		} else if (wpt_ledger_next_nonzero(l->t->ledger, run.start, run.end, &known) < run.end) {
			span = wpt_vec_push(l->unmapped);
			if (!span)
				return -ENOMEM;
			*span = (struct wpt_span){ run.start, run.end };
		}
	}
	return err ? err : got;
}

int wpt_look_collect(struct wpt_look *l, struct wpt_area *a, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match hugetlb = { .mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT };
	static const struct wpt_scan_match not_present = { .inverted = PAGE_IS_PRESENT, .mask = PAGE_IS_PRESENT };
	const struct wpt_scan_match *match = &wpt_match_written;
	struct wpt_page_region run;
	int got, err = 0;

	if (a->kind == WPT_KIND_REPORTED)
		return 0;
	if (a->exact)
		return collect_written(l, start, end);
	if (a->told)
		return collect_told(l, a, start, end);
	/* Before W is consumed: a page that fell back to the file and was then written is W and is judged by that. */
	if (a->kind == WPT_KIND_FILE_PRIVATE) {
		err = wpt_tracker_uncowed(l->t, l->scan, start, end, true);
		match = a->sparse ? &wpt_match_private_sparse : &wpt_match_private_file;
	} else if (a->kind == WPT_KIND_ANON) {
		match = &wpt_match_dirty;
	} else if (a->kind == WPT_KIND_HUGETLB_PRIVATE || a->kind == WPT_KIND_HUGETLB_SHARED) {
		match = &hugetlb;
	}
	if (err)
		return err;
	wpt_scan_start(l->scan, start, end, match, true);
	while (!err && (got = wpt_scan_next(l->scan, &run)) > 0) {
		err = wpt_ledger_dirty(l->t->ledger, run.start, run.end);
		if (!err && a->kind == WPT_KIND_FILE_PRIVATE)
			err = wpt_tracker_note_cowed(l->t, &run);
	}
	if (err || got < 0)
		return err ? err : got;
	if (a->sparse)
		return wpt_tracker_learn_cowed(l->t, l->scan, start, end);
	if (wpt_look_has_markers(a))
		return collect_unmapped(l, a, start, end);
	/* A huge page that is not mapped may hold anything: hugetlb has no markers for what a zap took. */
	if (a->kind == WPT_KIND_HUGETLB_SHARED)
		err = collect_matching(l, start, end, &not_present);
	return err || match != &hugetlb ? err : collect_refilled(l, a, start, end);
}
