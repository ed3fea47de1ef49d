/* SPDX-License-Identifier: MIT */
/*
 * Threads that never stop writing, but while they are held. The struct lies in memory that is shared with the target, at the beginning of what its
 * test needs; a forked target has all of it at the same addresses.
 */
#ifndef HAMMER_H
#define HAMMER_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#define HAMMER_THREADS 2u

struct hammer {
	_Atomic int stop, hold, held, ready;
	_Atomic uint64_t writes;
	_Atomic unsigned nr_threads; /* 0: nobody writes */
	uint64_t seed;
	void (*step)(struct hammer *h, uint64_t *rng);
	pthread_t threads[HAMMER_THREADS];
};

static inline void *hammer_main(void *arg)
{
	struct hammer *h = arg;
	uint64_t r = h->seed * 7919 + atomic_fetch_add(&h->nr_threads, 1);

	while (!atomic_load(&h->stop)) {
		if (atomic_load(&h->hold)) {
			atomic_fetch_add(&h->held, 1);
			while (atomic_load(&h->hold))
				sched_yield();
			atomic_fetch_sub(&h->held, 1);
		}
		h->step(h, &r);
	}
	return NULL;
}

static inline void hammer_start(struct hammer *h)
{
	for (unsigned i = 0; i < HAMMER_THREADS; i++)
		if (pthread_create(&h->threads[i], NULL, hammer_main, h))
			_exit(4);
	while (atomic_load(&h->nr_threads) < HAMMER_THREADS)
		sched_yield();
}

/* In the process that started it. */
static inline void hammer_end(struct hammer *h)
{
	atomic_store(&h->stop, 1);
	for (unsigned i = 0; i < HAMMER_THREADS; i++)
		pthread_join(h->threads[i], NULL);
}

static inline void hammer_hold(struct hammer *h)
{
	atomic_store(&h->hold, 1);
	while (atomic_load(&h->held) < (int)h->nr_threads)
		sched_yield();
}

static inline void hammer_let_go(struct hammer *h)
{
	atomic_store(&h->hold, 0);
	while (atomic_load(&h->held))
		sched_yield();
}

#endif
