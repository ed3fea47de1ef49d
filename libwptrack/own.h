/* SPDX-License-Identifier: MIT */
/*
 * Which threads are the library's, or run in it and others wait for them: where the own process is tracked, their faults must never wait for
 * memory that only they could free.
 */
#ifndef WPT_OWN_H
#define WPT_OWN_H

#include "base.h"

/* From and until when the calling thread is one of them. A thread that enters twice must leave twice. */
void wpt_own_enter(void);
void wpt_own_leave(void);
bool wpt_own_is(pid_t tid);

#endif
