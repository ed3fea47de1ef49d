/* SPDX-License-Identifier: MIT */
/*
 * Trackers for tests: WPT_TORTURE_COMPENSATION=on opens them without WP_WRITTEN on a kernel that has it, =off without compensation on any
 * kernel, so that each way is tested on each kernel. Without it the library chooses.
 */
#ifndef WAY_H
#define WAY_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tracker.h"
#include "wptrack.h"

static inline enum wpt_way way_asked_for(void)
{
	const char *s = getenv("WPT_TORTURE_COMPENSATION");

	if (s && strcmp(s, "on") == 0)
		return WPT_WAY_COMPENSATED;
	return s && strcmp(s, "off") == 0 ? WPT_WAY_EXACT : WPT_WAY_PROBED;
}

/* Whether trackers of this program count on the kernel alone. */
static inline bool way_is_exact(void)
{
	struct wpt_probe p = { .size = sizeof(p) };
	enum wpt_way way = way_asked_for();

	if (way != WPT_WAY_PROBED)
		return way == WPT_WAY_EXACT;
	return wpt_probe(&p) == 0 && (p.features & WPT_F_WP_WRITTEN);
}

/* pid 0: the own process. */
static inline int way_tracker(struct wpt_tracker **out, int pid, const struct wpt_tracker_options *o)
{
	return wpt_tracker_start(out, pid, o, way_asked_for());
}

#endif
