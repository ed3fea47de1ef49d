/* SPDX-License-Identifier: MIT */
/*
 * A compression level that follows the sink: up while the pipeline waits for the sink, down while it waits for compression.
 *
 * Told of each data frame how long the sink took for it and how long its compression did, which several threads share. A level more takes
 * at most twice the time, so it goes up where the sink takes more than twice what compression takes, and down where it takes less; in between
 * it stays. Few frames decide, of the level of the moment only: what was compressed before a step says nothing of it.
 *
 * Threads: one at a time, but for wpt_level_get().
 */
#ifndef WPT_LAYER_LEVEL_H
#define WPT_LAYER_LEVEL_H

#include "base.h"

#define WPT_LEVEL_LEAST 1
#define WPT_LEVEL_MOST 9
#define WPT_LEVEL_FRAMES 4u      /* that decide */

struct wpt_level {
	int level;
	uint32_t nr;             /* frames counted, */
	uint64_t sink_ns, work_ns; /* and their times */
};

static inline void wpt_level_init(struct wpt_level *l)
{
	memset(l, 0, sizeof(*l));
	l->level = WPT_LEVEL_LEAST;
}

static inline int wpt_level_get(const struct wpt_level *l)
{
	return __atomic_load_n(&l->level, __ATOMIC_RELAXED);
}

/* A frame of `level` was written in sink_ns; one of nr_threads had compressed it in work_ns. */
static inline void wpt_level_note(struct wpt_level *l, int level, uint32_t nr_threads, uint64_t sink_ns, uint64_t work_ns)
{
	if (level != l->level)
		return;
	l->sink_ns += sink_ns;
	l->work_ns += work_ns;
	if (++l->nr < WPT_LEVEL_FRAMES)
		return;
	if (l->sink_ns * nr_threads > 2 * l->work_ns)
		level = WPT_MIN(level + 1, WPT_LEVEL_MOST);
	else if (l->sink_ns * nr_threads < l->work_ns)
		level = WPT_MAX(level - 1, WPT_LEVEL_LEAST);
	l->nr = 0;
	l->sink_ns = l->work_ns = 0;
	__atomic_store_n(&l->level, level, __ATOMIC_RELAXED);
}

#endif
