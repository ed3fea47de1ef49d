/* SPDX-License-Identifier: MIT */
/*
 * What it takes off the pause that several threads look at the memory of a stopped process, against one that does: links without rounds of two
 * processes in turn, of which few pages are dirty, so that the pause is little else but the look.
 */
#include "bench.h"

#include <stdio.h>
#include <unistd.h>

struct side {
	struct bench_target t;
	struct wpt_tracker *tracker;
	struct wpt_writer *w;
	char folder[64];
	struct bench_series pause;
};

static void side_open(struct side *s, uint64_t bytes, uint32_t nr_threads)
{
	struct wpt_tracker_options to = { .size = sizeof(to), .stop_timeout_ms = 5000, .nr_scan_threads = nr_threads };
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = WPT_WRITER_NO_SYNC, .nr_threads = 2 };
	struct wpt_range range = { .size = sizeof(range) };
	char chain[96];

	bench_target_start(&s->t, bytes, NULL);
	bench_target_do(&s->t, BENCH_FILL, 1, 0);
	bench_folder_make(s->folder);
	snprintf(chain, sizeof(chain), "%s/chain", s->folder);
	range.start = (uintptr_t)s->t.memory;
	range.end = range.start + bytes;
	bench_check(wpt_tracker_attach(&s->tracker, s->t.pid, &to), "wpt_tracker_attach");
	bench_check(wpt_range_add(s->tracker, &range), "wpt_range_add");
	bench_check(wpt_writer_open(&s->w, s->tracker, chain, &wo), "wpt_writer_open");
	bench_check(wpt_writer_take(s->w, NULL, NULL), "wpt_writer_take");
}

static void side_close(struct side *s)
{
	wpt_writer_close(s->w);
	wpt_tracker_close(s->tracker);
	bench_target_stop(&s->t);
	bench_folder_remove(s->folder);
}

static void side_take(struct side *s, uint64_t pages, uint64_t seed)
{
	struct wpt_take_options o = { .size = sizeof(o), .max_rounds = WPT_NO_ROUNDS };
	struct wpt_take_stats stats = { .size = sizeof(stats) };

	bench_target_do(&s->t, BENCH_TOUCH, pages, seed);
	bench_check(wpt_writer_take(s->w, &o, &stats), "wpt_writer_take");
	bench_series_add(&s->pause, (double)stats.pause_ns / 1e6);
}

int main(void)
{
	static const double shares[] = { 0, 0.0001, 0.001 };
	const struct bench_aim aim = { BENCH_RATIO, false, 0.75 };
	uint64_t bytes = bench_size(2 * BENCH_GIB), seed = 0;
	unsigned int repeats = bench_repeats(30);
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct side one, all;

	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	side_open(&one, bytes, 1);
	side_open(&all, bytes, 0);
	bench_table("pause of another process, %s, no rounds, %ld processors, %u repeats", bench_bytes(bytes), cpus, repeats);
	for (unsigned int k = 0; k < sizeof(shares) / sizeof(shares[0]); k++) {
		uint64_t pages = (uint64_t)((double)(bytes / BENCH_PAGE) * shares[k]);

		bench_series_init(&one.pause, "ms", "one thread looks, %g%% dirty", shares[k] * 100);
		bench_series_init(&all.pause, "ms", "  one thread a processor");
		for (unsigned int i = 0; i < repeats; i++) {
			side_take(&one, pages, ++seed);
			side_take(&all, pages, seed);
		}
		bench_row(&one.pause, NULL, NULL);
		bench_row(&all.pause, &one.pause, cpus > 1 ? &aim : NULL);
	}
	side_close(&one);
	side_close(&all);
	return 0;
}
