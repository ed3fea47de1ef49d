/* SPDX-License-Identifier: MIT */
/* The inside of a look, shared by look.c and bypass.c only. */
#ifndef WPT_LOOK_H
#define WPT_LOOK_H

#include "tracker.h"

struct wpt_look {
	struct wpt_tracker *t;
	struct wpt_plan *old, *plan;
	bool stopped, soon; /* enum wpt_look_flags */
	bool unsettled;   /* a mapping changed under the look */
};

/* The mapping's file in the table, opened at its first appearance; -1 if it can't be had. */
int wpt_look_file(struct wpt_tracker *t, const struct wpt_map *map);

/* Closes files that no area is of any more. */
void wpt_look_prune_files(struct wpt_look *l);

/* Before the areas are looked at: memory that the kernel writes to without a fault. */
int wpt_look_pinned(struct wpt_look *l);

/* After the areas were looked at: everything else that write protection does not see. */
int wpt_look_bypasses(struct wpt_look *l);

#endif
