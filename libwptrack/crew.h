/* SPDX-License-Identifier: MIT */
/*
 * Threads that share pieces of work with the thread that has it, where there is no time to start any: they are started before, and wait.
 *
 * Threads: one caller at a time. They block all signals, and call neither malloc nor anything that could.
 */
#ifndef WPT_CREW_H
#define WPT_CREW_H

#include "base.h"

#define WPT_CREW_MAX 64u

struct wpt_crew;

/* `nr` threads, the caller's own not counted. -ENOMEM, -EAGAIN (threads). */
int wpt_crew_open(struct wpt_crew **out, uint32_t nr);
/* NULL is accepted. In a forked child it only frees. */
void wpt_crew_close(struct wpt_crew *c);

/* Calls fn(arg, i) once for each i below `nr`, in order of beginning, on the crew's threads and the caller's; returns when all calls did. */
void wpt_crew_run(struct wpt_crew *c, uint32_t nr, void (*fn)(void *arg, uint32_t i), void *arg);

#endif
