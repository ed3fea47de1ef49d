/* SPDX-License-Identifier: MIT */
/*
 * Memory that the library uses: the peak RSS of a process that attaches, writes a base and three links to /dev/null, over that of the
 * same process before. Every page of the target holds different data, so that all of it has a hash on record.
 */
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define STAGING (64 * BENCH_MIB)
#define OWN_UNIQUE BENCH_OWN

static uint64_t make_unique(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b)
{
	(void)command;
	(void)b;
	for (uint64_t i = 0; i < t->bytes / BENCH_PAGE; i++) {
		uint64_t *word = (uint64_t *)(t->memory + i * BENCH_PAGE), state = a + i;

		for (unsigned int j = 0; j < 512; j += 32)
			word[j] = bench_random(&state);
	}
	return 0;
}

/* In a process of its own: {peak RSS over the RSS before, of the tracker itself} in MiB to `fd`. */
static void attach_and_take(struct bench_target *t, int fd)
{
	struct wpt_writer_options options = {
		.size = sizeof(options), .dest = WPT_DEST_FD, .flags = WPT_WRITER_NO_SYNC, .staging_bytes = STAGING, .nr_threads = 2,
	};
	struct wpt_range range = {
		.size = sizeof(range), .start = (uintptr_t)t->memory, .end = (uintptr_t)t->memory + t->bytes,
	};
	struct wpt_tracker_info info = { .size = sizeof(info) };
	struct wpt_tracker *tracker;
	struct wpt_writer *writer;
	double result[2], before = (double)bench_status_kib(0, "VmRSS:");

	options.fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	bench_attach(&tracker, t->pid);
	bench_check(wpt_range_add(tracker, &range), "wpt_range_add");
	bench_check(wpt_writer_open(&writer, tracker, NULL, &options), "wpt_writer_open");
	for (unsigned int i = 0; i < 4; i++) {
		bench_check(wpt_writer_take(writer, NULL, NULL), "wpt_writer_take");
		bench_target_do(t, BENCH_TOUCH, t->bytes / BENCH_PAGE / 10, i + 1);
	}
	bench_check(wpt_tracker_info(tracker, &info), "wpt_tracker_info");
	result[0] = ((double)bench_status_kib(0, "VmHWM:") - before) / 1024;
	result[1] = (double)info.memory_bytes / (double)BENCH_MIB;
	bench_check_errno(write(fd, result, sizeof(result)) != (ssize_t)sizeof(result), "write");
	wpt_writer_close(writer);
	wpt_tracker_close(tracker);
}

static void measure(uint64_t bytes, unsigned int repeats)
{
	double limit = 64 + 0.006 * (double)bytes / (double)BENCH_MIB + (double)STAGING / (double)BENCH_MIB;
	struct bench_aim aim = { BENCH_MAX, false, limit };
	struct bench_series peak, own;
	struct bench_target t;

	bench_target_start(&t, bytes, make_unique);
	bench_target_do(&t, OWN_UNIQUE, 1, 0);
	bench_series_init(&peak, "MiB", "tracking %s: peak RSS", bench_bytes(bytes));
	bench_series_init(&own, "MiB", "  wpt_tracker_info, memory_bytes");
	for (unsigned int i = 0; i < repeats; i++) {
		double result[2];
		int fds[2], status;
		pid_t pid;

		bench_check_errno(pipe(fds), "pipe");
		fflush(stdout);
		pid = fork();
		bench_check_errno(pid < 0, "fork");
		if (!pid) {
			attach_and_take(&t, fds[1]);
			_exit(0);
		}
		close(fds[1]);
		if (read(fds[0], result, sizeof(result)) != (ssize_t)sizeof(result) || waitpid(pid, &status, 0) != pid || status)
			exit(1);
		close(fds[0]);
		bench_series_add(&peak, result[0]);
		bench_series_add(&own, result[1]);
	}
	bench_row(&peak, NULL, &aim);
	bench_row(&own, NULL, NULL);
	bench_target_stop(&t);
}

int main(void)
{
	uint64_t bytes = bench_size(BENCH_GIB);
	unsigned int repeats = bench_repeats(3);

	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	repeats = repeats > 5 ? 5 : repeats;
	bench_table("memory used by the library, staging %s; aim: 64 MiB + 0.6%% + staging", bench_bytes(STAGING));
	measure(bytes, repeats);
	measure(bytes * 4, repeats > 1 ? repeats - 1 : 1);
	return 0;
}
