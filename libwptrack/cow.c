/* SPDX-License-Identifier: MIT */
#include "cow.h"


/* Few enough that a write to one of them does not wait for long. */
#define CLAIM_PAGES 16u
#define SLOTS_MIN 256u
#define SLOTS_MAX 4096u

int wpt_cow_open(struct wpt_cow *k, struct wpt_tracker *t, struct wpt_layer_writer *w, uint64_t staging_bytes)
{
	uint32_t slots = (uint32_t)WPT_MAX(SLOTS_MIN, WPT_MIN(SLOTS_MAX, staging_bytes / WPT_PAGE / 16));
	int err;

	memset(k, 0, sizeof(*k));
	k->t = t;
	k->w = w;
	k->areas.elem_size = sizeof(struct wpt_fault_area);
	err = wpt_scan_open(&k->scan, &t->how);
	return err ? err : wpt_faults_reserve(t->faults, slots);
}

void wpt_cow_close(struct wpt_cow *k)
{
	if (!k->t)
		return;
	if (k->begun)
		wpt_faults_end(k->t->faults, &k->counts);
	else
		wpt_ledger_unpend(k->t->ledger, 0, UINT64_MAX);
	k->begun = false;
	wpt_scan_close(&k->scan);
	wpt_vec_free(&k->areas);
	k->t = NULL;
}

void wpt_cow_settle(struct wpt_cow *k)
{
	wpt_faults_settle(k->t->faults);
}

/*
 * Memory of which every change is seen as long as it is protected. Not what a file is behind: holes that were punched in it while it was copied
 * were missed (tried), and writes may bypass the mapping.
 */
static bool may_wait(const struct wpt_area *a)
{
	return a->kind == WPT_KIND_ANON && a->armed && !a->skipped && !a->exact && a->reason == WPT_REASON_NONE;
}

static struct wpt_fault_area *fault_area(struct wpt_cow *k, uint64_t addr)
{
	struct wpt_fault_area *f;
	size_t low = 0, high = k->areas.count, mid;

	while (low < high) {
		mid = low + (high - low) / 2;
		f = wpt_vec_at(&k->areas, struct wpt_fault_area, mid);
		if (f->end <= addr)
			low = mid + 1;
		else
			high = mid;
	}
	f = wpt_vec_at(&k->areas, struct wpt_fault_area, low);
	return low < k->areas.count && f->start <= addr ? f : NULL;
}

/* Protected, and there is content. */
static const struct wpt_scan_match match_intact = {
	.inverted = PAGE_IS_WRITTEN,
	.mask = PAGE_IS_WRITTEN,
	.anyof = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	.report = PAGE_IS_PRESENT,
};

/*
 * The run of protected pages at or behind `at`, in k->run. Candidates come in order of address, so that one scan serves all of an area; it is begun
 * anew where they don't.
 */
static int find_run(struct wpt_cow *k, const struct wpt_fault_area *f, uint64_t at)
{
	int got = 1;

	if (k->scanned != f || at < k->scanned_to) {
		wpt_scan_start(&k->scan, at, f->end, &match_intact, false);
		k->run = (struct wpt_page_region){ at, at, 0 };
		k->scanned = f;
	}
	k->scanned_to = at;
	while (k->run.end <= at && got > 0) {
		got = wpt_scan_next(&k->scan, &k->run);
		if (got <= 0)
			k->run = (struct wpt_page_region){ UINT64_MAX, UINT64_MAX, 0 };
	}
	return got < 0 ? got : 0;
}

static int later(struct wpt_copy *c, uint64_t start, uint64_t end, uint64_t *from, uint64_t *to)
{
	struct wpt_cow *k = c->later_arg;
	struct wpt_fault_area *f = fault_area(k, start);
	int err;

	*from = *to = end;
	if (!f)
		return 0;
	err = find_run(k, f, start);
	if (err || k->run.start >= end)
		return err;
	*to = WPT_MIN(k->run.end, end);
	*from = WPT_MAX(k->run.start, start);
	if (wpt_tracker_is_pinned(c->t, *from, *to)) {
		*from = *to;
		return 0;
	}
	k->pages_later += (*to - *from) / WPT_PAGE;
	return wpt_ledger_pend(c->t->ledger, *from, *to);
}

int wpt_cow_plan(struct wpt_cow *k, struct wpt_copy *c)
{
	const struct wpt_plan *plan = k->t->plan;
	struct wpt_fault_area *f;
	const struct wpt_area *a;
	size_t i;

	c->later = later;
	c->later_arg = k;
	for (i = 0; i < plan->areas.count; i++) {
		a = wpt_area_at(plan, i);
		if (!may_wait(a))
			continue;
		f = wpt_vec_push(&k->areas);
		if (!f)
			return -ENOMEM;
		*f = (struct wpt_fault_area){ a->start, a->end };
	}
	return 0;
}

void wpt_cow_begin(struct wpt_cow *k, struct wpt_copy *c)
{
	c->later = NULL;
	k->begun = true;
	wpt_faults_begin(k->t->faults, k->t->ledger, k->areas.data, k->areas.count);
}

/* ---- saving ---- */

static int batch_submit(struct wpt_cow *k)
{
	struct wpt_batch *b = k->batch;

	k->batch = NULL;
	return b ? wpt_layer_batch_submit(k->w, b) : 0;
}

/* A batch with room for `pages` that lie together. Nothing is claimed while this waits. */
static int batch_room(struct wpt_cow *k, uint32_t pages)
{
	int err = 0;

	if (k->batch && (k->batch->nr_items == WPT_BATCH_ITEMS || k->batch->nr_pages + pages > WPT_BATCH_PAGES))
		err = batch_submit(k);
	if (!err && !k->batch)
		err = wpt_layer_batch_get(k->w, &k->batch, false);
	if (!err && !k->batch) {
		k->staging_waits++;
		err = wpt_layer_batch_get(k->w, &k->batch, true);
	}
	return err;
}

static uint8_t *batch_end(struct wpt_cow *k)
{
	return k->batch->data + (size_t)k->batch->nr_pages * WPT_PAGE;
}

static void batch_add(struct wpt_cow *k, uint64_t addr, uint32_t pages)
{
	struct wpt_batch *b = k->batch;
	struct wpt_item *last = b->nr_items ? &b->items[b->nr_items - 1] : NULL;

	b->nr_pages += pages;
	if (last && last->addr + last->nr_pages * WPT_PAGE == addr)
		last->nr_pages += pages;
	else
		b->items[b->nr_items++] = (struct wpt_item){ addr, pages, WPT_ITEM_DATA };
}

/* All of the run is as it was when the target was let go. Asked after it was read. */
static bool is_intact(struct wpt_cow *k, uint64_t start, uint64_t end)
{
	struct wpt_page_region run;
	uint64_t at = start;

	wpt_scan_start(&k->scan, start, end, &match_intact, false);
	while (at < end && wpt_scan_next(&k->scan, &run) == 1 && run.start == at)
		at = run.end;
	return at >= end;
}

/* The first pending pages of [from, end); *next: where to go on. */
static int save_some(struct wpt_cow *k, uint64_t from, uint64_t end, uint64_t *next)
{
	uint64_t start, stop;
	uint32_t pages;
	bool good;
	int err = batch_room(k, CLAIM_PAGES);

	*next = end;
	if (err || !wpt_faults_claim(k->t->faults, from, end, (uint64_t)CLAIM_PAGES * WPT_PAGE, &start, &stop))
		return err;
	pages = (uint32_t)((stop - start) / WPT_PAGE);
	good = wpt_target_read(k->t->target, start, batch_end(k), stop - start) == (ssize_t)(stop - start) && is_intact(k, start, stop);
	if (!good)
		wpt_faults_lose(k->t->faults);
	batch_add(k, start, pages);
	k->pages_copied += pages;
	wpt_faults_release(k->t->faults);
	*next = stop;
	return 0;
}

/* Ascending, as far as that goes: a batch that begins behind the end of the one before it needs not wait for that. */
static struct wpt_saved *saved_sort(struct wpt_saved *list)
{
	struct wpt_saved *halves[2] = { NULL, NULL }, *s, *sorted, **end = &sorted;
	unsigned int which = 0;

	if (!list || !list->next)
		return list;
	while ((s = list)) {
		list = s->next;
		s->next = halves[which];
		halves[which] = s;
		which ^= 1;
	}
	halves[0] = saved_sort(halves[0]);
	halves[1] = saved_sort(halves[1]);
	while (halves[0] && halves[1]) {
		which = halves[1]->addr < halves[0]->addr;
		*end = halves[which];
		end = &halves[which]->next;
		halves[which] = *end;
	}
	*end = halves[0] ? halves[0] : halves[1];
	return sorted;
}

/* What faults saved goes to batches of its own, so that those of the background copy stay in order. */
static int take_saved(struct wpt_cow *k)
{
	struct wpt_batch *background = k->batch;
	struct wpt_saved *list, *s;
	int err = 0;

	k->batch = NULL;
	while (!err && (list = wpt_faults_saved(k->t->faults, WPT_BATCH_PAGES))) {
		list = saved_sort(list);
		for (s = list; s && !err; s = s->next) {
			err = batch_room(k, 1);
			if (err)
				break;
			memcpy(batch_end(k), s->data, WPT_PAGE);
			batch_add(k, s->addr, 1);
		}
		wpt_faults_give_back(k->t->faults, list);
	}
	if (!err)
		err = batch_submit(k);
	k->batch = background;
	return err;
}

/* Faults first: those that wait for memory, then room for those to come. */
static int serve(struct wpt_cow *k)
{
	uint64_t addr, at;
	uint32_t nr;
	int err = 0;

	nr = wpt_faults_waiting(k->t->faults, &addr);
	if (nr >= SLOTS_MIN / 2 || (nr && addr))
		err = take_saved(k);
	while (!err && addr && !wpt_faults_lost(k->t->faults)) {
		at = WPT_ALIGN_DOWN(addr, WPT_PAGE);
		err = save_some(k, at, at + WPT_PAGE, &at);
		wpt_faults_finish(k->t->faults);
		wpt_faults_release(k->t->faults);
		wpt_faults_waiting(k->t->faults, &addr);
	}
	return err;
}

int wpt_cow_run(struct wpt_cow *k, bool *lost)
{
	struct wpt_faults *faults = k->t->faults;
	struct wpt_fault_area *f;
	uint64_t at;
	size_t i;
	int err = 0;

	for (i = 0; i < k->areas.count && !err; i++) {
		f = wpt_vec_at(&k->areas, struct wpt_fault_area, i);
		for (at = f->start; at < f->end && !err && !wpt_faults_lost(faults);) {
			err = serve(k);
			if (!err)
				err = save_some(k, at, f->end, &at);
		}
	}
	/* Nothing is pending: what is in hand is the last. */
	wpt_faults_finish(faults);
	if (!err)
		err = take_saved(k);
	if (!err)
		err = batch_submit(k);
	if (!err)
		err = wpt_target_alive(k->t->target);
	*lost = !err && wpt_faults_lost(faults);
	return err;
}
