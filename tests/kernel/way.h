/* SPDX-License-Identifier: MIT */
/*
 * Trackers for tests: WPT_TORTURE_COMPENSATION=on opens them without WP_WRITTEN on a kernel that has it, =off without compensation on any
 * kernel, so that each way is tested on each kernel. Without it the library chooses. WPT_TORTURE_BACKEND=sync: with backend sync; =entries: so, and
 * without PAGEMAP_SCAN, as on a kernel that has none. A kernel that has nothing else has these too.
 */
#ifndef WAY_H
#define WAY_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tracker.h"
#include "wptrack.h"

static inline uint32_t way_features(void)
{
	struct wpt_probe p = { .size = sizeof(p) };

	return wpt_probe(&p) == 0 ? p.features : 0;
}

/* Of this run alone, instead of the variable's value. */
static const char *way_backend;

static inline bool way_is_sync(void)
{
	const char *s = way_backend ? way_backend : getenv("WPT_TORTURE_BACKEND");

	return s && *s ? strcmp(s, "async") != 0 : !(way_features() & WPT_F_ASYNC) && way_features() & WPT_F_SYNC;
}

static inline enum wpt_way way_asked_for(void)
{
	const char *s = way_backend ? way_backend : getenv("WPT_TORTURE_BACKEND");

	if (s && strcmp(s, "entries") == 0)
		return WPT_WAY_ENTRIES;
	s = getenv("WPT_TORTURE_COMPENSATION");
	if (s && strcmp(s, "on") == 0)
		return WPT_WAY_COMPENSATED;
	return s && strcmp(s, "off") == 0 ? WPT_WAY_EXACT : WPT_WAY_PROBED;
}

/* Whether trackers of this program count on the kernel alone. */
static inline bool way_is_exact(void)
{
	enum wpt_way way = way_asked_for();

	if (way_is_sync())
		return false;
	if (way != WPT_WAY_PROBED)
		return way == WPT_WAY_EXACT;
	return way_features() & WPT_F_WP_WRITTEN;
}

/* pid 0: the own process. */
static inline int way_tracker(struct wpt_tracker **out, int pid, const struct wpt_tracker_options *o)
{
	struct wpt_tracker_options sync = { .size = sizeof(sync) };

	if (o)
		sync = *o;
	if (sync.backend != WPT_BACKEND_REPORTED && way_is_sync())
		sync.backend = WPT_BACKEND_SYNC;
	return wpt_tracker_start(out, pid, &sync, way_asked_for());
}

#endif
