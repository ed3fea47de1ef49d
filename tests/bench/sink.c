/* SPDX-License-Identifier: MIT */
/*
 * What the adaptive level makes of sinks of different speed: the time and the bytes of a full link into a pipe, whose other end takes
 * so many MiB a second, at level 1, at level 9 and at the adaptive level. The own memory, whose owner reports its writes.
 */
#include "bench.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define STEP (256u << 10)

struct drain {
	int fd;
	uint64_t rate;     /* bytes a second, 0: as they come */
	uint64_t bytes;
};

static uint8_t *memory;
static uint64_t bytes;

/* Takes what comes, no faster than the rate since the first byte. */
static void *drain(void *arg)
{
	static uint8_t buffer[STEP];
	struct drain *d = arg;
	uint64_t t0 = 0;
	ssize_t got;

	while ((got = read(d->fd, buffer, sizeof(buffer))) > 0) {
		uint64_t now = bench_now_ns(), due;

		t0 = t0 ? t0 : now;
		d->bytes += (uint64_t)got;
		due = d->rate ? t0 + (uint64_t)((double)d->bytes * 1e9 / (double)d->rate) : 0;
		if (due > now)
			nanosleep(&(struct timespec){ (time_t)((due - now) / 1000000000), (long)((due - now) % 1000000000) }, NULL);
	}
	return NULL;
}

static int quiesce(void *arg)
{
	(void)arg;
	return 0;
}

static void resume(void *arg)
{
	(void)arg;
}

struct rows {
	struct bench_series seconds, percent, level;
};

static void link_once(int level, uint64_t rate, struct rows *rows)
{
	struct wpt_tracker_options to = { .size = sizeof(to), .backend = WPT_BACKEND_REPORTED };
	struct wpt_writer_options wo = { .size = sizeof(wo), .dest = WPT_DEST_FD, .level = level, .nr_threads = 2 };
	struct wpt_take_options take = { .size = sizeof(take), .quiesce = quiesce, .resume = resume };
	struct wpt_range range = { .size = sizeof(range), .start = (uintptr_t)memory, .end = (uintptr_t)memory + bytes };
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	struct drain d = { .rate = rate };
	struct wpt_tracker *t;
	struct wpt_writer *w;
	pthread_t thread;
	uint64_t t0;
	int fds[2];

	bench_check_errno(pipe(fds) != 0, "pipe");
	d.fd = fds[0];
	wo.fd = fds[1];
	bench_check(wpt_tracker_open(&t, &to), "wpt_tracker_open");
	bench_check(wpt_range_add(t, &range), "wpt_range_add");
	bench_check(wpt_writer_open(&w, t, NULL, &wo), "wpt_writer_open");
	t0 = bench_now_ns();
	bench_check_errno(pthread_create(&thread, NULL, drain, &d) != 0, "pthread_create");
	bench_check(wpt_writer_take(w, &take, &stats), "wpt_writer_take");
	close(fds[1]);
	pthread_join(thread, NULL);
	bench_series_add(&rows->seconds, (double)(bench_now_ns() - t0) / 1e9);
	bench_series_add(&rows->percent, 100 * (double)d.bytes / (double)bytes);
	bench_series_add(&rows->level, (double)stats.level);
	close(fds[0]);
	wpt_writer_close(w);
	wpt_tracker_close(t);
}

static void measure(uint64_t rate, unsigned int repeats)
{
	static const int levels[] = { 1, 9, WPT_LEVEL_ADAPTIVE };
	static const char *const names[] = { "level 1", "level 9", "adaptive" };
	/* A sink that is fast costs next to nothing, one that is slow next to no time more than the bytes that it is spared. */
	static const struct bench_aim aim = { BENCH_RATIO, false, 1.1 };
	struct rows rows[3];
	char sink[32];

	snprintf(sink, sizeof(sink), rate ? "%s/s" : "no limit", bench_bytes(rate));
	for (unsigned int i = 0; i < 3; i++) {
		bench_series_init(&rows[i].seconds, "s", "sink: %s, %s", sink, names[i]);
		bench_series_init(&rows[i].percent, "% size", "  what the link takes");
		bench_series_init(&rows[i].level, "", "  level at its end");
	}
	for (unsigned int k = 0; k < repeats; k++)
		for (unsigned int i = 0; i < 3; i++)
			link_once(levels[i], rate, &rows[i]);
	for (unsigned int i = 0; i < 3; i++) {
		bench_row(&rows[i].seconds, i ? &rows[0].seconds : NULL, i == 2 ? &aim : NULL);
		bench_row(&rows[i].percent, i ? &rows[0].percent : NULL, NULL);
		if (i == 2)
			bench_row(&rows[i].level, NULL, NULL);
	}
}

int main(void)
{
	unsigned int repeats = bench_repeats(3);

	bytes = bench_size(256 * BENCH_MIB);
	memory = bench_map(bytes);
	bench_fill(memory, bytes, 1);
	bench_table("full link of %s into a pipe, two threads, %u repeats", bench_bytes(bytes), repeats);
	measure(0, repeats);
	measure(100 * BENCH_MIB, repeats);
	measure(20 * BENCH_MIB, repeats);
	return 0;
}
