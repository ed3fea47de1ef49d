/* SPDX-License-Identifier: MIT */
/* Copies of a target that runs, with no later pass: which pages may be mixed of several instants. */
#include "copy.h"

static bool is_torn_scan(struct wpt_copy *c, uint64_t start, uint64_t end, uint64_t *at, uint64_t *run_end)
{
	struct wpt_page_region run;
	int got;

	if (c->area->kind == WPT_KIND_REPORTED) {
		*at = wpt_ledger_next_dirty(c->t->ledger, start, end, run_end);
		return *at < end;
	}
	wpt_scan_start(&c->check, start, end, wpt_area_written(c->area), false);
	got = wpt_scan_next(&c->check, &run);
	if (got == 0)
		return false;
	*at = got < 0 ? start : run.start;
	*run_end = got < 0 ? end : run.end;
	return true;
}

/* What the kernel forgets here stays in the taken or unknown pages of this link. */
static void protect_again(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	bool private = c->area->kind == WPT_KIND_FILE_PRIVATE && !c->area->exact;
	struct wpt_page_region run;
	int got = 0, err = 0;

	c->check.unit = c->area->page_size > WPT_PAGE ? c->area->page_size : 0;
	wpt_scan_start(&c->check, start, end, private && !c->area->sparse ? &wpt_match_private_file : wpt_area_written(c->area), true);
	while (!err && (got = wpt_scan_next(&c->check, &run)) > 0)
		if (private)
			err = wpt_tracker_note_cowed(c->t, &run);
	/*
	 * Where the target unmapped something meanwhile pages before that were protected, and nothing said of them; and without PAGEMAP_SCAN's
	 * protection what is protected may be another page than was seen.
	 */
	if (!err && (got < 0 || c->area->sparse) && private)
		err = wpt_ledger_cow(c->t->ledger, start, end);
	if (err) {
		c->err = err;
		c->t->lost = true;
	}
}

/* Memory that can't be protected: what reads the same twice is taken for one instant. */
static bool is_torn_read(struct wpt_copy *c, uint64_t start, uint64_t end, uint32_t slot)
{
	uint64_t page[WPT_PAGE / 8];
	bool torn = false;

	for (; start < end; start += WPT_PAGE, slot++) {
		if (wpt_target_read(c->t->target, start, page, WPT_PAGE) != WPT_PAGE || memcmp(page, wpt_batch_slot(c->batch, slot), WPT_PAGE) == 0)
			continue;
		memcpy(wpt_batch_slot(c->batch, slot), page, WPT_PAGE);
		torn = true;
	}
	return torn;
}

/* Copies a run of the batch again, after protecting it again, until it stays clean or `retries` are used up. */
static void copy_again(struct wpt_copy *c, uint64_t start, uint64_t end, uint32_t slot)
{
	uint64_t at, run_end, page;
	unsigned int attempt;

	for (attempt = 0; attempt < c->retries && c->area->untracked; attempt++)
		if (!is_torn_read(c, start, end, slot))
			return;
	for (attempt = 0; attempt < c->retries && !c->area->untracked && c->area->kind != WPT_KIND_REPORTED; attempt++) {
		protect_again(c, start, end);
		if (wpt_target_read(c->t->target, start, wpt_batch_slot(c->batch, slot), end - start) != (ssize_t)(end - start))
			break;
		if (!is_torn_scan(c, start, end, &at, &run_end))
			return;
	}
	/* Protected again and perhaps not copied since: the next link looks again, whatever the kernel says of them then. */
	if (wpt_ledger_dirty(c->t->ledger, start, end) != 0)
		c->err = -ENOMEM;
	for (page = start; page < end; page += WPT_PAGE)
		c->torn[slot + ((page - start) >> WPT_PAGE_SHIFT)] = 1;
}

/* Splits data items by the torn pages in them. A batch without room for more items flags all of the item. */
static void split_torn(struct wpt_copy *c)
{
	struct wpt_batch *b = c->batch;
	struct wpt_item item, *out;
	uint32_t i, slot = 0, n;
	uint64_t k, run;

	for (i = 0; i < b->nr_items; i++) {
		if (b->items[i].kind != WPT_ITEM_DATA)
			continue;
		item = b->items[i];
		for (run = 1; run < item.nr_pages && c->torn[slot + run] == c->torn[slot]; run++)
			;
		if (run < item.nr_pages && b->nr_items == WPT_BATCH_ITEMS) {
			for (k = 0; k < item.nr_pages; k++)
				c->torn[slot + k] = 1;
			run = item.nr_pages;
		}
		out = &b->items[i];
		out->kind = c->torn[slot] ? WPT_ITEM_TORN : WPT_ITEM_DATA;
		out->nr_pages = run;
		slot += (uint32_t)run;
		if (run == item.nr_pages)
			continue;
		n = b->nr_items - i - 1;
		memmove(out + 2, out + 1, n * sizeof(*out));
		out[1] = (struct wpt_item){ item.addr + run * WPT_PAGE, item.nr_pages - run, WPT_ITEM_DATA };
		b->nr_items++;
	}
}

void wpt_copy_check_torn(struct wpt_copy *c)
{
	const struct wpt_item *item;
	uint64_t at, run_end, end;
	uint32_t i, slot = 0;
	bool any = false;

	memset(c->torn, 0, sizeof(c->torn));
	for (i = 0; i < c->batch->nr_items; i++) {
		item = &c->batch->items[i];
		if (item->kind != WPT_ITEM_DATA)
			continue;
		end = item->addr + item->nr_pages * WPT_PAGE;
		for (at = item->addr; at < end && is_torn_scan(c, at, end, &at, &run_end); at = run_end) {
			copy_again(c, at, run_end, slot + (uint32_t)((at - item->addr) >> WPT_PAGE_SHIFT));
			any = true;
		}
		slot += (uint32_t)item->nr_pages;
	}
	if (any)
		split_torn(c);
}
