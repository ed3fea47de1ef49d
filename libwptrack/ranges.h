/* SPDX-License-Identifier: MIT */
/*
 * The registry of what is to be tracked: ranges by id, or "every writable mapping".
 *
 * Synchronization:
 *
 *                  | add, remove, add_all | read section
 *   add, remove    | mutex inside         | none needed
 *   read section   | none needed          | none needed
 *
 * Ordering: what add returned before a read section began is seen in it. When remove returns, no read section that sees the range is
 * still running; so remove must not be called inside one. A read section holds a consistent set for as long as it lasts.
 */
#ifndef WPT_RANGES_H
#define WPT_RANGES_H

#include "base.h"

struct wpt_range_entry {
	uint64_t start, end;
	int id;
	char name[200];
};

struct wpt_range_set {
	size_t nr;
	bool all;                          /* every writable mapping of the target */
	struct wpt_range_entry entries[];  /* ascending, disjoint */
};

struct wpt_ranges;

int wpt_ranges_open(struct wpt_ranges **out);
void wpt_ranges_close(struct wpt_ranges *r);

/* The id, or -EEXIST, -ENOMEM. `name` is cut to what fits. */
int wpt_ranges_add(struct wpt_ranges *r, uint64_t start, uint64_t end, const char *name);
int wpt_ranges_add_all(struct wpt_ranges *r);
/* 0 and what was removed in *gone; -WPT_E_NOT_TRACKED. */
int wpt_ranges_remove(struct wpt_ranges *r, int id, struct wpt_range_entry *gone);

/* Read section: the set is valid until end. Sections nest; they take no lock. */
const struct wpt_range_set *wpt_ranges_begin(struct wpt_ranges *r);
void wpt_ranges_end(struct wpt_ranges *r);

#endif
