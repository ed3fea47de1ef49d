/* SPDX-License-Identifier: MIT */
/*
 * A cursor over PAGEMAP_SCAN: half-open runs of pages whose categories match, of any length of memory, with a bounded buffer.
 */
#ifndef WPT_SCAN_H
#define WPT_SCAN_H

#include "base.h"
#include "kern.h"

struct wpt_scan_match {
	uint64_t inverted;   /* these categories are taken as their opposite in mask and anyof */
	uint64_t mask;       /* all of these */
	uint64_t anyof;      /* and one of these, unless 0 */
	uint64_t report;     /* what a run's categories tell, as the kernel sees them (inverted ones inverted) */
};

extern const struct wpt_scan_match wpt_match_written;     /* W */
extern const struct wpt_scan_match wpt_match_dirty;       /* W and there is a page, in memory or swap */
extern const struct wpt_scan_match wpt_match_populated;   /* there is a page, or a marker */
extern const struct wpt_scan_match wpt_match_none;        /* neither page nor swap entry nor marker */

/*
 * The size of the kernel's own buffer. With a larger one a walk goes on after that was full, but walk_end stays at where it was first
 * full: the regions behind it would be reported again, out of order.
 */
#define WPT_SCAN_REGIONS 512

struct wpt_scan {
	int pagemap;
	struct wpt_page_region *regions;
	struct wpt_pm_scan_arg arg;
	uint64_t end;
	uint64_t slice;     /* bytes a call looks at, so that the target's mmap waits no longer than one; 0: no limit */
	int nr, next;
};

int wpt_scan_open(struct wpt_scan *s, int pagemap);
void wpt_scan_close(struct wpt_scan *s);
/* Instead of open and close, with the caller's memory for WPT_SCAN_REGIONS. */
void wpt_scan_init(struct wpt_scan *s, int pagemap, struct wpt_page_region *regions);

/*
 * Starts over [start, end). With `protect` the matching pages are write-protected as they are reported, atomically for each page. The scan
 * always checks WP_ASYNC: -EPERM if any mapping in the range is not registered so; then, and after every other error with
 * `protect`, pages may have been protected and not reported.
 */
void wpt_scan_start(struct wpt_scan *s, uint64_t start, uint64_t end, const struct wpt_scan_match *match, bool protect);
/* As start, without the check: of any mapping. */
void wpt_scan_start_any(struct wpt_scan *s, uint64_t start, uint64_t end, const struct wpt_scan_match *match);

/* Asks the kernel for more: 1 if there are regions; 0 at the end; -errno. */
int wpt_scan_fill(struct wpt_scan *s);

/* 1 and the next run, in order of address; 0 at the end; -errno. */
static inline int wpt_scan_next(struct wpt_scan *s, struct wpt_page_region *run)
{
	int got = s->next == s->nr ? wpt_scan_fill(s) : 1;

	if (got > 0)
		*run = s->regions[s->next++];
	return got;
}

#endif
