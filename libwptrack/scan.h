/* SPDX-License-Identifier: MIT */
/*
 * A cursor over the state of pages: half-open runs of pages whose categories match, of any length of memory, with a bounded buffer. It asks
 * PAGEMAP_SCAN, or reads /proc/PID/pagemap where the kernel has no such call.
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
/* Of pagemap, by one read: what the kernel looks up at a time. */
#define WPT_SCAN_ENTRIES 512

/* How it is asked. */
struct wpt_scan_how {
	int pagemap;
	/*
	 * -1: write protection is asynchronous, and what matches is protected in the instant in which it is seen. Else the userfaultfd by which
	 * runs are protected after they were seen and before they are delivered: what is delivered was written and must be copied afterwards.
	 */
	int uffd;
	bool entries;       /* there is no PAGEMAP_SCAN: the categories are W, present, swapped and file only */
};

struct wpt_scan_memory {
	struct wpt_page_region regions[WPT_SCAN_REGIONS];
	uint64_t entries[WPT_SCAN_ENTRIES];
};

struct wpt_scan {
	struct wpt_scan_how how;
	struct wpt_page_region *regions;
	uint64_t *entries;
	struct wpt_pm_scan_arg arg;
	uint64_t end;
	uint64_t slice;     /* bytes a call looks at (a power of two), so that the target's mmap waits no longer than one; 0: no limit */
	uint32_t unit;      /* the mapping's page size: huge pages are protected as a whole; 0: small */
	/*
	 * Synchronous: runs with no more than this between them are protected by one call. Only while nothing runs that could write there, and
	 * where nothing is that a protection would leave a marker at.
	 */
	uint64_t bridge;
	bool protect;
	int nr, next;
};

int wpt_scan_open(struct wpt_scan *s, const struct wpt_scan_how *how);
void wpt_scan_close(struct wpt_scan *s);
/* Instead of open and close, with the caller's memory. */
void wpt_scan_init(struct wpt_scan *s, const struct wpt_scan_how *how, struct wpt_scan_memory *memory);

/*
 * Starts over [start, end). With `protect` the matching pages are write-protected as they are reported, if that is asynchronous atomically for
 * each page. Asynchronous scans check WP_ASYNC: -EPERM if any mapping in the range is not registered so; then, and after every other
 * error with `protect`, pages may have been protected and not reported.
 */
void wpt_scan_start(struct wpt_scan *s, uint64_t start, uint64_t end, const struct wpt_scan_match *match, bool protect);
/*
 * Synchronous scans check nothing: memory that is not registered any more may look as if it were protected, see drop_marks() in look.c. So
 * whoever counts on what is clean asks first: -EPERM as above, by the first page of [start, end).
 */
int wpt_scan_check(const struct wpt_scan *s, uint64_t start);
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
