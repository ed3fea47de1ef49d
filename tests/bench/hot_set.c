/* SPDX-License-Identifier: MIT */
/*
 * What a skewed writer pays for being tracked: nine writes in ten go to a tenth of the pages, which is in one piece or scattered. The same
 * writes to memory that is not tracked, to memory of which a link is taken between each two runs, and to such memory with the hot set on. Nothing
 * else runs meanwhile, so that a run's time is the writes' and their faults'. The tax is what a write takes longer than in untracked memory.
 */
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define WARM_UP 80u

enum way { UNTRACKED, OFF, AUTO, NR_WAYS };

static struct {
	uint8_t *memory;
	struct wpt_tracker *t;
	struct wpt_writer *w;
	struct wpt_take_stats stats;
} ways[NR_WAYS];

static uint64_t nr_pages, nr_hot;
static uint32_t *hot, *cold;

static int nothing(void *arg)
{
	(void)arg;
	return 0;
}

static void no_more(void *arg)
{
	(void)arg;
}

static void choose(bool scattered)
{
	uint64_t state = 7, n = 0, c = 0;

	nr_hot = nr_pages / 10;
	for (uint64_t p = 0; p < nr_pages; p++)
		if (scattered ? n < nr_hot && bench_random(&state) % (nr_pages - p) < nr_hot - n : p >= nr_pages / 2 && n < nr_hot)
			hot[n++] = (uint32_t)p;
		else
			cold[c++] = (uint32_t)p;
}

/* Nanoseconds a write. */
static double run(enum way way, uint64_t seed)
{
	uint64_t state = seed, nr = nr_hot + nr_hot / 2, t0 = bench_now_ns();

	for (uint64_t i = 0; i < nr; i++) {
		uint64_t r = bench_random(&state), page = r % 10 ? hot[(r >> 8) % nr_hot] : cold[(r >> 8) % (nr_pages - nr_hot)];

		*(volatile uint64_t *)(ways[way].memory + page * BENCH_PAGE + (r >> 50) % 512 * 8) = r;
	}
	return (double)(bench_now_ns() - t0) / (double)nr;
}

static void take(enum way way)
{
	struct wpt_take_options o = { .size = sizeof(o), .quiesce = nothing, .resume = no_more };

	ways[way].stats.size = sizeof(ways[way].stats);
	if (way != UNTRACKED)
		bench_check(wpt_writer_take(ways[way].w, &o, &ways[way].stats), "wpt_writer_take");
}

static void open_way(enum way way, uint64_t bytes)
{
	struct wpt_writer_options o = { .size = sizeof(o), .dest = WPT_DEST_FD, .flags = WPT_WRITER_NO_SYNC, .nr_threads = 1, .level = -5,
					.hot_set = way == AUTO ? WPT_HOT_SET_AUTO : WPT_HOT_SET_OFF };
	struct wpt_range range = { .size = sizeof(range) };

	ways[way].memory = bench_map(bytes);
	for (uint64_t i = 0; i < nr_pages; i++)
		ways[way].memory[i * BENCH_PAGE] = 1;
	bench_pin(ways[way].memory, bytes);
	if (way == UNTRACKED)
		return;
	bench_check(wpt_tracker_open(&ways[way].t, NULL), "wpt_tracker_open");
	range.start = (uintptr_t)ways[way].memory;
	range.end = range.start + bytes;
	bench_check(wpt_range_add(ways[way].t, &range), "wpt_range_add");
	o.fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	bench_check_errno(o.fd < 0, "/dev/null");
	bench_check(wpt_writer_open(&ways[way].w, ways[way].t, NULL, &o), "wpt_writer_open");
	take(way);
}

static void measure(bool scattered, unsigned int repeats)
{
	static const struct bench_aim aim = { BENCH_RATIO, false, 0.2 };
	struct bench_series plain, tax, hot_tax, dirty, hot_dirty, hot_pages;
	static uint64_t seed = 100;
	double ns[NR_WAYS];

	choose(scattered);
	bench_series_init(&plain, "ns", "%s: a write to untracked memory", scattered ? "scattered" : "in one piece");
	bench_series_init(&tax, "ns", "  tax of a write, hot set off");
	bench_series_init(&hot_tax, "ns", "  tax of a write, hot set auto");
	bench_series_init(&dirty, "pages", "  a link copies, hot set off");
	bench_series_init(&hot_dirty, "pages", "  a link copies, hot set auto");
	bench_series_init(&hot_pages, "pages", "  of which unprotected");
	for (unsigned int i = 0; i < WARM_UP + repeats; i++, seed++) {
		for (enum way way = 0; way < NR_WAYS; way++) {
			take(way);
			ns[way] = run(way, seed);
		}
		if (i < WARM_UP)
			continue;
		bench_series_add(&plain, ns[UNTRACKED]);
		bench_series_add(&tax, ns[OFF] - ns[UNTRACKED]);
		bench_series_add(&hot_tax, ns[AUTO] - ns[UNTRACKED]);
		bench_series_add(&dirty, (double)ways[OFF].stats.pages_dirty);
		bench_series_add(&hot_dirty, (double)ways[AUTO].stats.pages_dirty);
		bench_series_add(&hot_pages, (double)ways[AUTO].stats.pages_hot);
	}
	bench_row(&plain, NULL, NULL);
	bench_row(&tax, &plain, NULL);
	bench_row(&hot_tax, &tax, &aim);
	bench_row(&dirty, NULL, NULL);
	bench_row(&hot_dirty, &dirty, NULL);
	bench_row(&hot_pages, NULL, NULL);
}

int main(void)
{
	uint64_t bytes = bench_size(256 * BENCH_MIB);
	unsigned int repeats = bench_repeats(30);

	bench_need(WPT_F_ASYNC);
	nr_pages = bytes / BENCH_PAGE;
	hot = malloc(nr_pages * sizeof(*hot));
	cold = malloc(nr_pages * sizeof(*cold));
	bench_check_errno(!hot || !cold, "malloc");
	for (enum way way = 0; way < NR_WAYS; way++)
		open_way(way, bytes);
	bench_table("hot set: %s, nine writes in ten to a tenth of the pages, between two links 1.5 for each page of that tenth, %u repeats",
		    bench_bytes(bytes), repeats);
	measure(false, repeats);
	measure(true, repeats);
	for (enum way way = OFF; way < NR_WAYS; way++) {
		wpt_writer_close(ways[way].w);
		wpt_tracker_close(ways[way].t);
	}
	return 0;
}
