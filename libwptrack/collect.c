/* SPDX-License-Identifier: MIT */
/* What is dirty of an area, by what its kind needs to be looked at: into the ledger, and what can't be told into `unknown`. */
#include "crew.h"
#include "look.h"
#include "page.h"

#include <unistd.h>

/* Pages that are not the file's and were not known to be COWed. */
static int note_present(struct wpt_ledger *ledger, uint64_t start, uint64_t end)
{
	uint64_t at = start, cowed, cowed_end;
	int err = 0;

	for (; at < end && !err; at = cowed_end) {
		cowed = wpt_ledger_next_cowed(ledger, at, end, &cowed_end);
		if (at == cowed)
			continue;
		err = wpt_ledger_dirty(ledger, at, cowed);
		if (!err)
			err = wpt_ledger_cow(ledger, at, cowed);
	}
	return err;
}

/*
 * Pages that were COWed at the last look and are not any more show the file's content again. And most of those that are COWed and were not are found
 * written next, but not one whose marker had a write fault that then was not repeated: it is protected from the beginning.
 */
int wpt_tracker_uncowed(struct wpt_tracker *t, struct wpt_scan *scan, uint64_t start, uint64_t end, bool forget)
{
	/* Two passes: pages that are present, and pages that are not. */
	const struct wpt_scan_match passes[] = {
		{ .mask = PAGE_IS_PRESENT, .report = PAGE_IS_PRESENT | PAGE_IS_FILE },
		{ .inverted = PAGE_IS_PRESENT, .mask = PAGE_IS_PRESENT, .report = PAGE_IS_PRESENT | PAGE_IS_SWAPPED },
	};
	struct wpt_ledger *ledger = t->ledger;
	struct wpt_page_region run;
	uint64_t at, run_end;
	int got = 0, err = 0;
	unsigned int pass;

	for (pass = 0; pass < WPT_ARRAY_SIZE(passes) && !err; pass++) {
		wpt_scan_start(scan, start, end, &passes[pass], false);
		while (!err && (got = wpt_scan_next(scan, &run)) > 0) {
			if ((run.categories & (PAGE_IS_PRESENT | PAGE_IS_FILE)) == PAGE_IS_PRESENT) {
				err = forget ? note_present(ledger, run.start, run.end) : 0;
				continue;
			}
			for (at = run.start; !err && (at = wpt_ledger_next_cowed(ledger, at, run.end, &run_end)) < run.end; at = run_end) {
				err = wpt_ledger_dirty(ledger, at, run_end);
				/* A swap entry and the marker that a zap left look the same: dirty, and still taken for COWed. */
				if (!err && forget && !(run.categories & PAGE_IS_SWAPPED))
					wpt_ledger_uncow(ledger, at, run_end);
			}
		}
		if (got < 0)
			return got;
	}
	return err;
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

static int collect(struct wpt_look *l, struct wpt_area *a, uint64_t start, uint64_t end)
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
	err = wpt_scan_check(l->scan, start);
	if (err)
		return err;
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

/* ---- by several threads ---- */

#define PARTS 64u
#define SHARE_BYTES ((uint64_t)256 << 20)

/* A stretch of an area, with all that collecting it writes to but the ledger. */
struct part {
	struct wpt_scan scan;
	struct wpt_vec unmapped;
	bool swapped;
	int err;
};

struct wpt_share {
	struct wpt_crew *crew;
	struct wpt_look *look;
	const struct wpt_area *area;
	uint64_t start, end, base, bytes; /* the parts are `bytes` each, from `base` on */
	struct part parts[PARTS];
};

/* On any thread of the crew. */
static void collect_part(void *arg, uint32_t i)
{
	struct wpt_share *s = arg;
	struct part *p = &s->parts[i];
	uint64_t at = s->base + i * s->bytes;
	struct wpt_area area = *s->area;
	struct wpt_look l = *s->look;

	l.scan = &p->scan;
	l.unmapped = &p->unmapped;
	wpt_vec_clear(&p->unmapped);
	p->scan.slice = s->look->scan->slice;
	p->scan.unit = s->look->scan->unit;
	p->scan.bridge = s->look->scan->bridge;
	p->err = collect(&l, &area, WPT_MAX(at, s->start), WPT_MIN(at + s->bytes, s->end));
	p->swapped = area.swapped;
}

static int take_part(struct wpt_look *l, struct wpt_area *a, const struct part *p)
{
	struct wpt_span *span;
	size_t i;

	a->swapped |= p->swapped;
	for (i = 0; i < p->unmapped.count; i++) {
		span = wpt_vec_push(l->unmapped);
		if (!span)
			return -ENOMEM;
		*span = *wpt_vec_at(&p->unmapped, struct wpt_span, i);
	}
	return p->err;
}

/* Cut where no huge page is, and no two parts have a chunk of the ledger in common. */
static int collect_shared(struct wpt_look *l, struct wpt_area *a, uint64_t start, uint64_t end)
{
	struct wpt_share *s = l->t->share;
	uint32_t nr, i;
	int err = 0, got;

	s->look = l;
	s->area = a;
	s->start = start;
	s->end = end;
	s->base = WPT_ALIGN_DOWN(start, WPT_CHUNK_BYTES);
	s->bytes = WPT_ALIGN_UP(WPT_MAX(l->t->share_bytes / 4, (end - s->base) / (PARTS - 1)), WPT_CHUNK_BYTES);
	nr = (uint32_t)((end - s->base + s->bytes - 1) / s->bytes);
	wpt_crew_run(s->crew, nr, collect_part, s);
	for (i = 0; i < nr; i++) {
		got = take_part(l, a, &s->parts[i]);
		/* Of memory that is not the tracked one any more all must be looked at, whatever else went wrong. */
		if (got && (!err || err == -ENOMEM))
			err = got;
	}
	return err;
}

/*
 * In the pause, when nothing else is to be done; and of another process: threads that protect pages of their own have to interrupt each other's
 * processors for it, which takes longer than one of them alone does (tried).
 */
int wpt_look_collect(struct wpt_look *l, struct wpt_area *a, uint64_t start, uint64_t end)
{
	if (l->stopped && l->t->share && end - start >= l->t->share_bytes && a->page_size == WPT_PAGE && a->kind != WPT_KIND_REPORTED)
		return collect_shared(l, a, start, end);
	return collect(l, a, start, end);
}

static bool is_worth_it(const struct wpt_tracker *t)
{
	const struct wpt_area *a;
	size_t i;

	for (i = 0; i < t->plan->areas.count; i++) {
		a = wpt_area_at(t->plan, i);
		if (a->armed && a->end - a->start >= t->share_bytes)
			return true;
	}
	return false;
}

void wpt_tracker_share(struct wpt_tracker *t)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint32_t nr = t->nr_scan_threads ? t->nr_scan_threads : cpus < 1 ? 1 : (uint32_t)WPT_MIN(cpus, 8), i;
	struct wpt_share *s;
	int err = 0;

	if (!t->share_bytes)
		t->share_bytes = SHARE_BYTES;
	if (t->share || nr < 2 || t->backend == WPT_BACKEND_REPORTED || wpt_target_is_self(t->target) || !is_worth_it(t))
		return;
	s = wpt_vm_alloc(sizeof(*s));
	if (!s)
		return;
	t->share = s;
	for (i = 0; i < PARTS && !err; i++) {
		s->parts[i].unmapped.elem_size = sizeof(struct wpt_span);
		err = wpt_scan_open(&s->parts[i].scan, &t->how);
	}
	if (!err)
		err = wpt_crew_open(&s->crew, nr - 1);
	if (err)
		wpt_tracker_unshare(t);
}

void wpt_tracker_unshare(struct wpt_tracker *t)
{
	struct wpt_share *s = t->share;
	uint32_t i;

	if (!s)
		return;
	t->share = NULL;
	wpt_crew_close(s->crew);
	for (i = 0; i < PARTS; i++) {
		wpt_scan_close(&s->parts[i].scan);
		wpt_vec_free(&s->parts[i].unmapped);
	}
	wpt_vm_free(s, sizeof(*s));
}
