/* SPDX-License-Identifier: MIT */
/*
 * How long the target stands still for a link in mode pause, with and without a thread of it that keeps writing, against the fork() that a
 * checkpoint without tracking needs. The library reports its pause; the target's own view is the longest gap between two looks at the
 * clock of a thread that does nothing else, which includes what the scheduler of a busy machine does to it.
 */
#include "bench.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define OWN_FORK (BENCH_OWN + 0)
#define OWN_WRITE (BENCH_OWN + 1)   /* a: pages per millisecond, 0: rest */
#define OWN_THREADS (BENCH_OWN + 2)

/* Words of the shared page. */
enum { LONGEST_NS, PAGES_PER_MS };

static void *look_at_clock(void *arg)
{
	volatile uint64_t *shared = ((struct bench_target *)arg)->shared;
	uint64_t last = bench_now_ns(), now;

	for (;; last = now) {
		now = bench_now_ns();
		if (now - last > shared[LONGEST_NS])
			shared[LONGEST_NS] = now - last;
	}
	return NULL;
}

static void *keep_writing(void *arg)
{
	struct bench_target *t = arg;
	uint64_t state = 5, n = t->bytes / BENCH_PAGE;

	for (;;) {
		for (uint64_t i = t->shared[PAGES_PER_MS]; i; i--)
			*(volatile uint64_t *)(t->memory + bench_random(&state) % n * BENCH_PAGE) = state;
		usleep(1000);
	}
	return NULL;
}

static uint64_t serve(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b)
{
	pthread_t thread;
	uint64_t t0;
	pid_t pid;

	(void)b;
	switch (command) {
	case OWN_FORK:
		t0 = bench_now_ns();
		pid = fork();
		if (!pid)
			_exit(0);
		t0 = bench_now_ns() - t0;
		bench_check_errno(pid < 0 || waitpid(pid, NULL, 0) != pid, "fork");
		return t0;
	case OWN_WRITE:
		t->shared[PAGES_PER_MS] = a;
		return 0;
	default:
		bench_check_errno(pthread_create(&thread, NULL, look_at_clock, t) != 0, "pthread_create");
		bench_check_errno(pthread_create(&thread, NULL, keep_writing, t) != 0, "pthread_create");
		return 0;
	}
}

static void measure(struct bench_target *t, struct wpt_writer *w, double share, uint64_t rate, unsigned int repeats)
{
	uint64_t n = (uint64_t)((double)(t->bytes / BENCH_PAGE) * share);
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	struct bench_series forked, reported, seen, dirty;
	static uint64_t seed;

	bench_series_init(&forked, "ms", "fork(), %g%% dirty%s", share * 100, rate ? ", writer at 100 MiB/s" : "");
	bench_series_init(&reported, "ms", "  link: pause");
	bench_series_init(&seen, "ms", "  link: longest gap that the target saw");
	bench_series_init(&dirty, "MiB", "  link: dirty");
	for (unsigned int i = 0; i < repeats; i++) {
		/* The writer rests during fork(): copy on write is another benchmark's matter. */
		bench_series_add(&forked, (double)bench_target_do(t, OWN_FORK, 0, 0) / 1e6);
		bench_target_do(t, BENCH_TOUCH, n, ++seed);
		bench_target_do(t, OWN_WRITE, rate, 0);
		t->shared[LONGEST_NS] = 0;
		bench_check(wpt_writer_take(w, NULL, &stats), "wpt_writer_take");
		bench_series_add(&seen, (double)t->shared[LONGEST_NS] / 1e6);
		bench_target_do(t, OWN_WRITE, 0, 0);
		bench_series_add(&reported, (double)stats.pause_ns / 1e6);
		bench_series_add(&dirty, (double)(stats.pages_dirty * BENCH_PAGE) / (double)BENCH_MIB);
	}
	bench_row(&forked, NULL, NULL);
	bench_row(&reported, &forked, NULL);
	bench_row(&seen, &forked, NULL);
	bench_row(&dirty, NULL, NULL);
}

int main(void)
{
	struct wpt_writer_options options = { .size = sizeof(options), .flags = WPT_WRITER_NO_SYNC, .nr_threads = 2 };
	unsigned int repeats = bench_repeats(15);
	struct wpt_range range = { .size = sizeof(range) };
	char folder[64], chain[96];
	struct bench_target t;
	struct wpt_tracker *tracker;
	struct wpt_writer *w;

	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	bench_target_start(&t, bench_size(BENCH_GIB), serve);
	bench_target_do(&t, BENCH_FILL, 1, 0);
	bench_target_do(&t, OWN_THREADS, 0, 0);
	bench_folder_make(folder);
	snprintf(chain, sizeof(chain), "%s/chain", folder);
	range.start = (uintptr_t)t.memory;
	range.end = range.start + t.bytes;
	bench_attach(&tracker, t.pid);
	bench_check(wpt_range_add(tracker, &range), "wpt_range_add");
	bench_check(wpt_writer_open(&w, tracker, chain, &options), "wpt_writer_open");
	bench_check(wpt_writer_take(w, NULL, NULL), "wpt_writer_take");
	bench_table("pause of the target, %s, mode pause, %u repeats", bench_bytes(t.bytes), repeats);
	measure(&t, w, 0.001, 0, repeats);
	measure(&t, w, 0.01, 0, repeats);
	measure(&t, w, 0.1, 0, repeats);
	measure(&t, w, 0.001, 25, repeats);
	measure(&t, w, 0.01, 25, repeats);
	wpt_writer_close(w);
	wpt_tracker_close(tracker);
	bench_target_stop(&t);
	bench_folder_remove(folder);
	return 0;
}
