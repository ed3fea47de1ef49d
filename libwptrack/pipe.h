/* SPDX-License-Identifier: MIT */
/*
 * Bounded work in parallel, results in order. One thread gets a free job, fills it and submits it; threads of the pipe work on
 * jobs side by side; then each job is emitted, one at a time, in the order of submission, by whichever thread is at hand.
 *
 * Threads: get, submit, drain, fail and close by one thread; the pipe's threads block all signals. No function but open and
 * close allocates. The first error of work or emit is kept, and no job is worked on or emitted after it.
 */
#ifndef WPT_PIPE_H
#define WPT_PIPE_H

#include "base.h"

#define WPT_PIPE_THREADS_MAX 64u

struct wpt_pipe;

/* Lies at the start of the caller's job. */
struct wpt_pipe_job {
	struct wpt_pipe_job *next;
	uint64_t order;        /* number of jobs submitted before it */
	void *out;             /* from work to emit: out_bytes of memory */
	bool barrier;          /* is worked on after all before it were emitted */
	bool worked;
};

struct wpt_pipe_params {
	uint32_t nr_threads;   /* 1 to WPT_PIPE_THREADS_MAX */
	size_t out_bytes;      /* memory for the result of a job */
	int (*work)(void *arg, uint32_t thread, struct wpt_pipe_job *job);
	int (*emit)(void *arg, struct wpt_pipe_job *job);
	void *arg;
};

/* Errors: -ENOMEM, -EAGAIN (threads). */
int wpt_pipe_open(struct wpt_pipe **out, const struct wpt_pipe_params *p);

/* One more free job. It stays the caller's memory, which lives until the pipe is closed. */
void wpt_pipe_add(struct wpt_pipe *p, struct wpt_pipe_job *job);

/* A free job, or NULL in *out if there is none and `wait` is false. Returns the pipe's error. */
int wpt_pipe_get(struct wpt_pipe *p, struct wpt_pipe_job **out, bool wait);
int wpt_pipe_submit(struct wpt_pipe *p, struct wpt_pipe_job *job, bool barrier);

/*
 * Held, the threads begin no job, so that the caller has the processors to itself; until it lets go, or waits in get or drain.
 */
void wpt_pipe_hold(struct wpt_pipe *p, bool hold);

/* Waits until every job was emitted; until the next submit the caller may then do what emit does. Returns the pipe's error. */
int wpt_pipe_drain(struct wpt_pipe *p);

/*
 * Makes the pipe as it was when it was opened, but for `arg` and for the threads, which live on: waits until none works on anything, drops
 * what was not emitted, forgets the error and all jobs; add them again. Does nothing in a forked child.
 */
void wpt_pipe_reset(struct wpt_pipe *p, void *arg);

/* An error of the caller's own: as one of emit. Returns the pipe's error. */
int wpt_pipe_fail(struct wpt_pipe *p, int err);

/* Jobs not emitted yet are dropped. NULL is accepted. In a forked child it only frees. */
void wpt_pipe_close(struct wpt_pipe *p);

#endif
