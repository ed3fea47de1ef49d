/* SPDX-License-Identifier: MIT */
/*
 * The inside of a lazy restore, shared by lazy.c (the object) and lazy_serve.c (its threads) only.
 *
 * Memory comes in units of 64 KiB, or of a huge page. A unit is MISSING until one thread claims it; that one reads it from the chain, puts its pages
 * in place and wakes who waits for it, so no page is put twice. Pages that are zero are not put: when all else is there the memory is given
 * back to its own, where what is missing is zero. Faults on them meanwhile, and on what the target gave back, get a page of zeros.
 *
 * What the target gives back by madvise(2) it says in an event, and goes on when that was read. So events are read while no page is being put, and
 * what was given back is never put afterwards.
 *
 * Locking: one lock, held for a few words at a time and never while the chain is read or a page is put.
 */
#ifndef WPT_LAZY_H
#define WPT_LAZY_H

#include <pthread.h>

#include "chain.h"
#include "target.h"

#define WPT_LAZY_THREADS_MAX 64u
#define WPT_LAZY_UNIT ((uint64_t)64 << 10)
#define WPT_LAZY_EXTENT ((uint64_t)2 << 20)

enum wpt_unit_state {
	WPT_UNIT_DONE = 0,     /* it is there, or zero */
	WPT_UNIT_MISSING = 1,
	WPT_UNIT_CLAIMED = 2,
	WPT_UNIT_WANTED = 3    /* claimed, and somebody waits for it */
};

/* Of one mapping. */
struct wpt_lazy_piece {
	uint64_t start;        /* in the chain */
	uint64_t addr, len;
	uint64_t unit;
	uint32_t page_size;
	uint64_t nr_units;
	uint8_t *state;        /* enum wpt_unit_state, a unit each; under the lock */
	uint64_t *gone;        /* a bit a page of 4 KiB: given back. Changes under the lock while nr_copying is 0, is read by who copies */
	uint64_t fill_next;    /* first unit that nobody claimed to fill; under the lock */
	bool shared, hugetlb;
	int fd;                /* of shared memory; -1: none */
	uint64_t offset;
};

/* That is registered. */
struct wpt_lazy_span {
	uint64_t start, end;
};

struct wpt_lazy {
	struct wpt_chain *chain;
	struct wpt_target *target;
	struct wpt_lazy_options o;
	struct wpt_log log;
	int uffd;
	int end, ready;        /* eventfds: the threads are to end; wait would not wait */
	struct wpt_vec pieces; /* struct wpt_lazy_piece, disjoint; none is added when it runs */
	struct wpt_vec spans;  /* struct wpt_lazy_span; under the lock when it runs */
	uint64_t buf_bytes;    /* a thread's buffer: the largest unit, and what is filled at a time */
	uint8_t *zeros;        /* a huge page, where there are any */
	uint64_t zeros_bytes;

	pthread_mutex_t lock;
	pthread_cond_t work;   /* queue, over */
	pthread_cond_t no_copies, copies_allowed;
	pthread_cond_t finished;
	bool started, filling, over, done;
	bool reading;          /* events are about to be read: nobody begins to copy */
	uint32_t nr_copying;
	int err;
	struct wpt_vec queue;  /* uint64_t: addresses of faults, taken from `queue_next` on */
	size_t queue_next;
	uint64_t left;         /* bytes */
	uint64_t failing_since, failing_said, recovered;
	uint64_t busy[2 * WPT_LAZY_THREADS_MAX]; /* since when threads have been reading what they put, 0: not */
	uint32_t nr_busy;      /* slots of it that are given out */
	bool slow_said;
	struct wpt_lazy_stats stats;
	pthread_t threads[2 * WPT_LAZY_THREADS_MAX + 1];
	uint32_t nr_threads;
};

/* Threads of the object, with all signals blocked. */
void *wpt_lazy_run_reader(void *arg);
void *wpt_lazy_run_server(void *arg);
void *wpt_lazy_run_filler(void *arg);

/* Nothing is missing any more: ends the registration. Without the lock. */
void wpt_lazy_finish(struct wpt_lazy *l);

/* Of what is registered there, whatever has come in its place since. */
int wpt_lazy_unregister(struct wpt_lazy *l, uint64_t start, uint64_t end);

#endif
