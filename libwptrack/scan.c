/* SPDX-License-Identifier: MIT */
#include "scan.h"

const struct wpt_scan_match wpt_match_written = { .mask = PAGE_IS_WRITTEN, .report = PAGE_IS_WRITTEN };
const struct wpt_scan_match wpt_match_dirty = {
	.mask = PAGE_IS_WRITTEN,
	.anyof = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	.report = PAGE_IS_WRITTEN,
};
const struct wpt_scan_match wpt_match_populated = {
	.anyof = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
};
const struct wpt_scan_match wpt_match_none = {
	.inverted = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	.mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
};

void wpt_scan_init(struct wpt_scan *s, int pagemap, struct wpt_page_region *regions)
{
	memset(s, 0, sizeof(*s));
	s->pagemap = pagemap;
	s->regions = regions;
}

int wpt_scan_open(struct wpt_scan *s, int pagemap)
{
	wpt_scan_init(s, pagemap, wpt_vm_alloc(WPT_SCAN_REGIONS * sizeof(*s->regions)));
	return s->regions ? 0 : -ENOMEM;
}

void wpt_scan_close(struct wpt_scan *s)
{
	wpt_vm_free(s->regions, WPT_SCAN_REGIONS * sizeof(*s->regions));
	s->regions = NULL;
}

void wpt_scan_start_any(struct wpt_scan *s, uint64_t start, uint64_t end, const struct wpt_scan_match *match)
{
	s->arg = (struct wpt_pm_scan_arg){
		.start = start,
		.walk_end = start,
		.vec = (uintptr_t)s->regions,
		.vec_len = WPT_SCAN_REGIONS,
		.category_inverted = match->inverted,
		.category_mask = match->mask,
		.category_anyof_mask = match->anyof,
		.return_mask = match->report ? match->report : match->mask | match->anyof,
	};
	s->end = end;
	s->nr = s->next = 0;
}

void wpt_scan_start(struct wpt_scan *s, uint64_t start, uint64_t end, const struct wpt_scan_match *match, bool protect)
{
	wpt_scan_start_any(s, start, end, match);
	s->arg.flags = PM_SCAN_CHECK_WPASYNC | (protect ? PM_SCAN_WP_MATCHING : 0);
}

int wpt_scan_fill(struct wpt_scan *s)
{
	do {
		s->arg.start = s->arg.walk_end;
		if (s->arg.start >= s->end)
			return 0;
		s->arg.end = s->slice && s->end - s->arg.start > s->slice ? s->arg.start + s->slice : s->end;
		s->nr = wpt_kern_scan(s->pagemap, &s->arg);
		s->next = 0;
		if (s->nr < 0) {
			int err = s->nr;

			s->nr = 0;
			return err;
		}
		if (s->nr && s->regions[s->nr - 1].end > s->arg.walk_end)
			s->arg.walk_end = s->regions[s->nr - 1].end;
		/* A walk that stands still would be repeated for ever. */
		if (s->arg.walk_end <= s->arg.start)
			return -EIO;
	} while (!s->nr);
	return 1;
}
