/* SPDX-License-Identifier: MIT */
#include "own.h"

#include <stdatomic.h>
#include <unistd.h>

/* Far more than there are pipelines of WPT_PIPE_THREADS_MAX threads at a time; one that finds no room counts as a stranger. */
#define SLOTS 4096

static _Atomic pid_t tids[SLOTS];
static _Atomic unsigned int used;

void wpt_own_enter(void)
{
	unsigned int i, top;
	pid_t none;

	for (i = 0; i < SLOTS; i++) {
		none = 0;
		if (!atomic_compare_exchange_strong(&tids[i], &none, gettid()))
			continue;
		top = atomic_load(&used);
		while (top <= i && !atomic_compare_exchange_weak(&used, &top, i + 1))
			;
		return;
	}
}

void wpt_own_leave(void)
{
	pid_t self = gettid();
	unsigned int i;

	for (i = 0; i < atomic_load(&used); i++)
		if (atomic_load(&tids[i]) == self) {
			atomic_store(&tids[i], 0);
			return;
		}
}

bool wpt_own_is(pid_t tid)
{
	unsigned int i;

	for (i = 0; i < atomic_load(&used); i++)
		if (atomic_load(&tids[i]) == tid)
			return true;
	return false;
}
