/* SPDX-License-Identifier: MIT */
#include "huge.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define SIZE_FILE "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
#define SCAN_SLICE ((uint64_t)1 << 30)
#define MAX_BYTES ((uint64_t)1 << 30) /* a link gives back */
#define MAX_LOOKS 4096u               /* at blocks, whether they may be */
#define MAX_NS 200000000u             /* and no more is begun after so long: an allocation may have to make room first */
/* By one call: each has the kernel wait for all processors first, with the target's mappings locked. */
#define RUN_BYTES ((uint64_t)32 << 20)

struct wpt_huge {
	uint64_t block;         /* bytes of a huge page */
	uint64_t *entries;      /* of a block */
	size_t nr_entries;
	struct wpt_scan scan;
	/* All spans are of whole blocks. */
	struct wpt_vec known;   /* struct wpt_span, ascending, apart: were huge pages while they were tracked */
	struct wpt_vec now;     /* are huge pages */
	struct wpt_vec due;     /* known, and no huge pages now */
	struct wpt_vec areas, hopeless, spare;
	struct wpt_vec failed, failed_before; /* struct wpt_span, a block each: after this link, after the last */
	uint64_t cursor;        /* where the last link ended */
	bool scarce;            /* there was no memory for the last one */
};

/* What a link may still spend. */
struct budget {
	uint64_t blocks, looks, deadline;
	uint64_t collapsed; /* bytes */
	bool over;
};

/* ---- sets of blocks ---- */

enum { ONLY_A = 1, ONLY_B = 2, BOTH = 4 };

/* Behind all others. */
static int append(struct wpt_vec *v, uint64_t start, uint64_t end)
{
	struct wpt_span *last = v->count ? wpt_vec_at(v, struct wpt_span, v->count - 1) : NULL;

	if (start >= end)
		return 0;
	if (last && last->end == start) {
		last->end = end;
		return 0;
	}
	last = wpt_vec_push(v);
	if (!last)
		return -ENOMEM;
	*last = (struct wpt_span){ start, end };
	return 0;
}

/* a becomes what is in the sets that `keep` names; if there is no memory it stays as it is. */
static int combine(struct wpt_huge *h, struct wpt_vec *a, const struct wpt_vec *b, unsigned int keep)
{
	const struct wpt_span none = { UINT64_MAX, UINT64_MAX }, *x, *y;
	struct wpt_vec old = *a;
	uint64_t at = 0, next;
	size_t i = 0, k = 0;
	unsigned int where;
	int err = 0;

	wpt_vec_clear(&h->spare);
	while (!err && (i < a->count || k < b->count)) {
		x = i < a->count ? wpt_vec_at(a, struct wpt_span, i) : &none;
		y = k < b->count ? wpt_vec_at(b, struct wpt_span, k) : &none;
		where = x->start <= at ? y->start <= at ? BOTH : ONLY_A : y->start <= at ? ONLY_B : 0;
		next = WPT_MIN(x->start <= at ? x->end : x->start, y->start <= at ? y->end : y->start);
		if (where & keep)
			err = append(&h->spare, at, next);
		at = next;
		i += at == x->end;
		k += at == y->end;
	}
	if (err)
		return err;
	*a = h->spare;
	h->spare = old;
	return 0;
}

/* ---- learning ---- */

/* Appends what of [start, end) is mapped by huge pages. The huge zero page is none: a write to it takes a page of 4 KiB. */
static int append_huge(struct wpt_tracker *t, struct wpt_vec *v, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match huge = {
		.inverted = PAGE_IS_PFNZERO | PAGE_IS_FILE,
		.mask = PAGE_IS_HUGE | PAGE_IS_PRESENT | PAGE_IS_PFNZERO | PAGE_IS_FILE,
		.report = PAGE_IS_HUGE,
	};
	struct wpt_huge *h = t->huge;
	struct wpt_page_region run;
	int got = 0, err = 0;

	start = WPT_ALIGN_UP(start, h->block);
	end = WPT_ALIGN_DOWN(end, h->block);
	if (start >= end)
		return 0;
	/* Of any mapping: before it is registered too. */
	wpt_scan_start_any(&h->scan, start, end, &huge);
	while (!err && (got = wpt_scan_next(&h->scan, &run)) > 0)
		err = append(v, WPT_ALIGN_UP(run.start, h->block), WPT_ALIGN_DOWN(run.end, h->block));
	return err ? err : got;
}

/* What is huge pages now was seen as such. */
static int learn(struct wpt_huge *h)
{
	const struct wpt_span *last = h->known.count ? wpt_vec_at(&h->known, struct wpt_span, h->known.count - 1) : NULL, *span;
	size_t i;
	int err = 0;

	if (!h->now.count)
		return 0;
	if (last && last->end > wpt_vec_at(&h->now, struct wpt_span, 0)->start)
		return combine(h, &h->known, &h->now, ONLY_A | ONLY_B | BOTH);
	for (i = 0; i < h->now.count && !err; i++) {
		span = wpt_vec_at(&h->now, struct wpt_span, i);
		err = append(&h->known, span->start, span->end);
	}
	return err;
}

void wpt_huge_learn(struct wpt_tracker *t, uint64_t start, uint64_t end)
{
	struct wpt_huge *h = t->huge;

	if (!h)
		return;
	wpt_vec_clear(&h->now);
	if (append_huge(t, &h->now, start, end) == 0)
		learn(h);
}

/* Protected by a look, and no other look is due: what is written there is found by the next. */
static bool is_ours(const struct wpt_area *a)
{
	return a->kind == WPT_KIND_ANON && a->armed && !a->skipped && !a->untracked;
}

/* Which blocks are tracked, and which of them are huge pages. */
static int list_areas(struct wpt_tracker *t)
{
	struct wpt_huge *h = t->huge;
	const struct wpt_area *a;
	size_t i;
	int err = 0;

	wpt_vec_clear(&h->areas);
	wpt_vec_clear(&h->now);
	for (i = 0; i < t->plan->areas.count && !err; i++) {
		a = wpt_area_at(t->plan, i);
		if (!is_ours(a))
			continue;
		err = append(&h->areas, WPT_ALIGN_UP(a->start, h->block), WPT_ALIGN_DOWN(a->end, h->block));
		if (!err)
			err = append_huge(t, &h->now, a->start, a->end);
	}
	return err;
}

void wpt_huge_learn_all(struct wpt_tracker *t)
{
	if (t->huge && list_areas(t) == 0)
		learn(t->huge);
}

/* ---- giving back ---- */

/*
 * Every page is there, in memory, and the target's alone. A collapse would make the others so: what was never touched would take memory, what is in
 * swap come back, what is shared with a forked child (or is the zero page) be copied.
 */
static bool is_whole(struct wpt_tracker *t, uint64_t block)
{
	const uint64_t whole = WPT_ENTRY_PRESENT | WPT_ENTRY_EXCLUSIVE;
	struct wpt_huge *h = t->huge;
	size_t i;

	if (wpt_kern_entries(t->how.pagemap, block, h->entries, h->nr_entries) != (ssize_t)h->nr_entries)
		return false;
	for (i = 0; i < h->nr_entries; i++)
		if ((h->entries[i] & (whole | WPT_ENTRY_SWAPPED | WPT_ENTRY_FILE)) != whole)
			return false;
	return true;
}

static bool has_block(const struct wpt_vec *v, uint64_t block)
{
	const struct wpt_span *span;
	size_t i;

	for (i = 0; i < v->count; i++) {
		span = wpt_vec_at(v, struct wpt_span, i);
		if (span->start <= block && block < span->end)
			return true;
	}
	return false;
}

/* The end of a run of blocks at `at` that may be given back by one call; `at` if that one may not. What failed the last time is a run by itself. */
static uint64_t gather(struct wpt_tracker *t, struct budget *b, uint64_t at, uint64_t end)
{
	struct wpt_huge *h = t->huge;
	uint64_t to = at, most = h->scarce ? h->block : RUN_BYTES;
	bool alone = false;

	for (; to < end && to - at < most && b->blocks && b->looks && !alone; to += h->block) {
		alone = has_block(&h->failed_before, to);
		if (alone && to > at)
			break;
		b->looks--;
		/* With the kernel's own references it can't be collapsed. */
		if (wpt_tracker_is_pinned(t, to, to + h->block) || !is_whole(t, to))
			break;
		b->blocks--;
	}
	return to;
}

/* What is no huge page after an attempt is tried once more after the next link, and then forgotten until it is one. */
static void note_failed(struct wpt_huge *h, uint64_t start, uint64_t end)
{
	struct wpt_span *span;
	uint64_t at;

	for (at = start; at < end; at += h->block) {
		if (has_block(&h->now, at))
			continue;
		if (has_block(&h->failed_before, at)) {
			append(&h->hopeless, at, at + h->block);
			continue;
		}
		span = wpt_vec_push(&h->failed);
		if (span)
			*span = (struct wpt_span){ at, at + h->block };
	}
}

/*
 * Unprotected first, since the kernel refuses what is protected; that fails where the memory is not the tracked one any more. Nothing protects it
 * again but the next look.
 */
static void give_back(struct wpt_tracker *t, struct budget *b, uint64_t start, uint64_t end)
{
	struct wpt_huge *h = t->huge;
	int err = wpt_kern_unprotect(wpt_target_uffd(t->target), start, end);
	size_t i;

	if (!err)
		err = wpt_target_collapse(t->target, start, end);
	wpt_vec_clear(&h->now);
	append_huge(t, &h->now, start, end);
	for (i = 0; i < h->now.count; i++)
		b->collapsed += wpt_vec_at(&h->now, struct wpt_span, i)->end - wpt_vec_at(&h->now, struct wpt_span, i)->start;
	/* No memory for it, here or within the limits of the target's group, will be none for the next one either. */
	h->scarce = err == -ENOMEM || err == -EBUSY;
	b->over = h->scarce || err == -ESRCH;
	if (!b->over)
		note_failed(h, start, end);
	b->over |= wpt_now_ns() > b->deadline;
}

/* The blocks of [from, to) that are due, as far as the budget reaches. */
static void give_back_some(struct wpt_tracker *t, struct budget *b, uint64_t from, uint64_t to)
{
	struct wpt_huge *h = t->huge;
	const struct wpt_span *span;
	uint64_t at, stop, end;
	size_t i;

	wpt_vec_clear(&h->hopeless);
	for (i = 0; i < h->due.count; i++) {
		span = wpt_vec_at(&h->due, struct wpt_span, i);
		end = WPT_MIN(span->end, to);
		for (at = WPT_MAX(span->start, from); at < end && !b->over; at = WPT_MAX(stop, at + h->block)) {
			h->cursor = at;
			stop = gather(t, b, at, end);
			if (stop > at)
				give_back(t, b, at, stop);
			b->over |= !b->blocks || !b->looks;
			if (stop > at)
				h->cursor = stop;
		}
	}
	combine(h, &h->known, &h->hopeless, ONLY_A);
}

uint64_t wpt_tracker_collapse(struct wpt_tracker *t, uint64_t bytes)
{
	struct wpt_huge *h = t->huge;
	uint64_t cursor;
	struct wpt_vec swap;
	struct budget b = { .looks = MAX_LOOKS };

	/* What left the plan is not tracked any more. */
	if (!h || list_areas(t) || combine(h, &h->known, &h->areas, BOTH))
		return 0;
	wpt_vec_clear(&h->due);
	if (combine(h, &h->due, &h->known, ONLY_B) || combine(h, &h->due, &h->now, ONLY_A) ||
	    learn(h) || wpt_target_alive(t->target))
		return 0;
	b.blocks = WPT_MIN(bytes, MAX_BYTES) / h->block;
	b.over = !b.blocks;
	b.deadline = wpt_now_ns() + MAX_NS;
	swap = h->failed_before;
	h->failed_before = h->failed;
	h->failed = swap;
	wpt_vec_clear(&h->failed);
	/* In turn: those that were not reached come first the next time. */
	cursor = h->cursor;
	give_back_some(t, &b, cursor, UINT64_MAX);
	give_back_some(t, &b, 0, cursor);
	return b.collapsed / WPT_PAGE;
}

/* ---- opening ---- */

static uint64_t block_bytes(void)
{
	int fd = open(SIZE_FILE, O_RDONLY | O_CLOEXEC);
	char text[32] = "";
	uint64_t bytes;

	if (fd < 0)
		return 0;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	close(fd);
	bytes = strtoull(text, NULL, 10);
	return bytes & (bytes - 1) ? 0 : bytes;
}

int wpt_huge_open(struct wpt_tracker *t)
{
	uint64_t block = block_bytes(), page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct wpt_huge *h;
	int err;

	/* Nothing is protected, nor split. */
	if (t->backend == WPT_BACKEND_REPORTED)
		return 0;
	/* Of nothing: whether it is allowed. */
	err = t->how.entries || block <= page ? -EINVAL : wpt_target_collapse(t->target, 0, 0);
	if (err) {
		wpt_logf(&t->log, WPT_LOG_WARNING, "huge pages of the target are not given back: %s",
			 err == -EPERM ? "for another process that needs CAP_SYS_NICE" :
					 "the kernel lacks what it takes (MADV_COLLAPSE, PAGEMAP_SCAN)");
		return 0;
	}
	h = wpt_vm_alloc(sizeof(*h));
	if (!h)
		return -ENOMEM;
	t->huge = h;
	h->block = block;
	h->nr_entries = (size_t)(block / page);
	h->known.elem_size = h->now.elem_size = h->due.elem_size = h->areas.elem_size = h->spare.elem_size = sizeof(struct wpt_span);
	h->failed.elem_size = h->failed_before.elem_size = h->hopeless.elem_size = sizeof(struct wpt_span);
	h->entries = wpt_vm_alloc(h->nr_entries * sizeof(*h->entries));
	err = h->entries ? wpt_scan_open(&h->scan, &t->how) : -ENOMEM;
	h->scan.slice = SCAN_SLICE;
	if (err)
		wpt_huge_close(t);
	return err;
}

uint64_t wpt_huge_memory(const struct wpt_tracker *t)
{
	const struct wpt_huge *h = t->huge;

	return h ? sizeof(*h) + h->nr_entries * sizeof(*h->entries) + sizeof(struct wpt_scan_memory) + h->known.bytes + h->now.bytes + h->due.bytes +
			   h->areas.bytes + h->hopeless.bytes + h->spare.bytes + h->failed.bytes + h->failed_before.bytes :
		   0;
}

void wpt_huge_close(struct wpt_tracker *t)
{
	struct wpt_huge *h = t->huge;

	if (!h)
		return;
	t->huge = NULL;
	wpt_scan_close(&h->scan);
	wpt_vm_free(h->entries, h->nr_entries * sizeof(*h->entries));
	wpt_vec_free(&h->known);
	wpt_vec_free(&h->now);
	wpt_vec_free(&h->due);
	wpt_vec_free(&h->hopeless);
	wpt_vec_free(&h->areas);
	wpt_vec_free(&h->spare);
	wpt_vec_free(&h->failed);
	wpt_vec_free(&h->failed_before);
	wpt_vm_free(h, sizeof(*h));
}
