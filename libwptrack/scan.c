/* SPDX-License-Identifier: MIT */
#include "scan.h"

#include <unistd.h>

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

void wpt_scan_init(struct wpt_scan *s, const struct wpt_scan_how *how, struct wpt_scan_memory *memory)
{
	memset(s, 0, sizeof(*s));
	s->how = *how;
	s->regions = memory ? memory->regions : NULL;
	s->entries = memory ? memory->entries : NULL;
}

int wpt_scan_open(struct wpt_scan *s, const struct wpt_scan_how *how)
{
	wpt_scan_init(s, how, wpt_vm_alloc(sizeof(struct wpt_scan_memory)));
	return s->regions ? 0 : -ENOMEM;
}

void wpt_scan_close(struct wpt_scan *s)
{
	wpt_vm_free(s->regions, sizeof(struct wpt_scan_memory));
	s->regions = NULL;
	s->entries = NULL;
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
	s->protect = false;
	s->nr = s->next = 0;
}

int wpt_scan_check(const struct wpt_scan *s, uint64_t start)
{
	return s->how.uffd < 0 || wpt_kern_is_registered(s->how.uffd, start) ? 0 : -EPERM;
}

void wpt_scan_start(struct wpt_scan *s, uint64_t start, uint64_t end, const struct wpt_scan_match *match, bool protect)
{
	wpt_scan_start_any(s, start, end, match);
	if (s->how.uffd < 0)
		s->arg.flags = PM_SCAN_CHECK_WPASYNC | (protect ? PM_SCAN_WP_MATCHING : 0);
	else
		s->protect = protect;
}

static int fill_from_kernel(struct wpt_scan *s)
{
	s->arg.start = s->arg.walk_end;
	s->arg.end = s->end;
	/* Cut where no huge page is: the kernel would split one that it is to protect in part. */
	if (s->slice)
		s->arg.end = WPT_MIN(s->end, WPT_ALIGN_DOWN(s->arg.start, s->slice) + s->slice);
	s->nr = wpt_kern_scan(s->how.pagemap, &s->arg);
	if (s->nr < 0)
		return s->nr;
	if (s->nr && s->regions[s->nr - 1].end > s->arg.walk_end)
		s->arg.walk_end = s->regions[s->nr - 1].end;
	/* A walk that stands still would be repeated for ever. */
	return s->arg.walk_end <= s->arg.start ? -EIO : 0;
}

/* ---- without PAGEMAP_SCAN ---- */

static uint64_t categories_of(uint64_t entry)
{
	/* Of a marker in place of a huge page it says nothing but the protection. */
	bool marker = (entry & (WPT_ENTRY_UFFD_WP | WPT_ENTRY_PRESENT)) == WPT_ENTRY_UFFD_WP;

	return (entry & WPT_ENTRY_UFFD_WP ? 0 : PAGE_IS_WRITTEN) | (entry & WPT_ENTRY_PRESENT ? PAGE_IS_PRESENT : 0) |
	       (marker || entry & WPT_ENTRY_SWAPPED ? PAGE_IS_SWAPPED : 0) | (entry & WPT_ENTRY_FILE ? PAGE_IS_FILE : 0);
}

static bool is_match(const struct wpt_scan *s, uint64_t categories)
{
	categories ^= s->arg.category_inverted;
	return (categories & s->arg.category_mask) == s->arg.category_mask &&
	       (!s->arg.category_anyof_mask || categories & s->arg.category_anyof_mask);
}

/* Appends `bytes` at `at`; false if there is no room for a run more. */
static bool append(struct wpt_scan *s, uint64_t at, uint64_t bytes, uint64_t categories)
{
	struct wpt_page_region *last = s->nr ? &s->regions[s->nr - 1] : NULL;

	if (last && last->end == at && last->categories == categories) {
		last->end = at + bytes;
		return true;
	}
	if (s->nr == WPT_SCAN_REGIONS)
		return false;
	s->regions[s->nr++] = (struct wpt_page_region){ at, at + bytes, categories };
	return true;
}

/* Entries of one read; a huge page's first says it of all, and where it is one page, none but that may be asked, since reads are cut anywhere. */
static int fill_some(struct wpt_scan *s, uint64_t page)
{
	bool huge = s->unit > page;
	uint64_t at = s->arg.walk_end, step = huge ? s->unit : page, bytes, categories, last = UINT64_MAX;
	ssize_t got, i;
	bool match = false;

	got = wpt_kern_entries(s->how.pagemap, at, s->entries, huge ? 1 : (size_t)WPT_MIN((s->end - at + page - 1) / page, WPT_SCAN_ENTRIES));
	if (got < 0)
		return (int)got;
	if (got == 0) /* the process is gone, or this is behind all memory */
		return -ESRCH;
	for (i = 0; i < got; i++, at += bytes) {
		bytes = huge ? WPT_MIN(WPT_ALIGN_DOWN(at, step) + step, s->end) - at : step;
		categories = categories_of(s->entries[i]);
		/* Runs of pages that are the same are what there is most of. */
		if (categories != last)
			match = is_match(s, categories);
		last = categories;
		if (match && !append(s, at, bytes, categories & s->arg.return_mask))
			return s->arg.walk_end = at, 1;
	}
	s->arg.walk_end = at;
	return 0;
}

static int fill_from_entries(struct wpt_scan *s)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	int full = 0;

	s->nr = 0;
	while (!full && s->arg.walk_end < s->end) {
		full = fill_some(s, page);
		if (full < 0)
			return full;
	}
	return 0;
}

/* ---- synchronous protection ---- */

static int protect_runs(struct wpt_scan *s)
{
	uint64_t unit = s->unit ? s->unit : 1, start, end;
	int i, err = 0;

	for (i = 0; i < s->nr && !err;) {
		start = WPT_ALIGN_DOWN(s->regions[i].start, unit);
		end = s->regions[i].end;
		for (i++; i < s->nr && s->regions[i].start - end <= s->bridge; i++)
			end = s->regions[i].end;
		err = wpt_kern_protect(s->how.uffd, start, WPT_ALIGN_UP(end, unit));
	}
	return err;
}

int wpt_scan_fill(struct wpt_scan *s)
{
	int err;

	do {
		s->next = s->nr = 0;
		if (s->arg.walk_end >= s->end)
			return 0;
		err = s->how.entries ? fill_from_entries(s) : fill_from_kernel(s);
		if (!err && s->protect)
			err = protect_runs(s);
		if (err) {
			s->nr = 0;
			return err;
		}
	} while (!s->nr);
	return 1;
}
