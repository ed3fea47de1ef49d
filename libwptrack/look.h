/* SPDX-License-Identifier: MIT */
/* The inside of a look, shared by look.c, collect.c and bypass.c only. */
#ifndef WPT_LOOK_H
#define WPT_LOOK_H

#include "tracker.h"

struct wpt_look {
	struct wpt_tracker *t;
	struct wpt_plan *old, *plan;
	struct wpt_scan *scan;
	struct wpt_vec *unmapped;
	bool stopped, soon; /* enum wpt_look_flags */
	bool runs;        /* mappings may change under the look */
	bool unsettled;   /* a mapping changed under the look */
};

/* The mapping's file in the table, opened at its first appearance; -1 if it can't be had. */
int wpt_look_file(struct wpt_tracker *t, const struct wpt_map *map);

/* Closes files that no area is of any more. */
void wpt_look_prune_files(struct wpt_look *l);

/* Kinds of which each place has a page or a marker, from the first arm on: without WP_WRITTEN that is needed to see a zap. */
static inline bool wpt_look_has_markers(const struct wpt_area *a)
{
	return a->kind == WPT_KIND_SHMEM || a->kind == WPT_KIND_FILE_SHARED || (a->kind == WPT_KIND_FILE_PRIVATE && !a->sparse);
}

/* Without markers: what is nowhere shows the file's content, and so does what was written there and then zapped. */
extern const struct wpt_scan_match wpt_match_private_sparse;

/* What is dirty of [start, end), which the old plan tracked as well. -WPT_E_GONE, -ENOMEM; another error: it is not the memory that was tracked. */
int wpt_look_collect(struct wpt_look *l, struct wpt_area *a, uint64_t start, uint64_t end);

/* Before the areas are looked at: memory that the kernel writes to without a fault. */
int wpt_look_pinned(struct wpt_look *l);

/* Before that too: whether files of a kind of which nothing else tells changed. */
void wpt_look_times(struct wpt_look *l);

/* After the areas were looked at: everything else that write protection does not see. */
int wpt_look_bypasses(struct wpt_look *l);

#endif
