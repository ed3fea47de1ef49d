/* SPDX-License-Identifier: MIT */
/*
 * What a write waits for while a snapshot of mode cow is saved, against one plain fault of synchronous write protection, in turn in the same
 * run: a thread of the own process writes to the pages that are to be saved, and afterwards to as many that are protected and not. Each write
 * is timed by itself. Both by the library's own fault threads, on the same memory.
 */
#include "bench.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define WRITES_MAX 2000000u

static uint8_t *memory;
static uint64_t bytes, nr_dirty;
static uint32_t *order;
static _Atomic int state;          /* of the writer: what it is to do */
static _Atomic uint64_t done;      /* rounds that the writer ended */
static uint64_t gap_ns;

enum { REST, IN_COW, PLAIN, END };

struct stalls {
	uint32_t *ns;
	uint64_t n;
};

static struct stalls in_cow, plain;

static void write_one(struct stalls *s, uint64_t page)
{
	uint64_t t0 = bench_now_ns(), until;

	++*(volatile uint64_t *)(memory + page * BENCH_PAGE);
	until = bench_now_ns();
	if (s->n < WRITES_MAX)
		s->ns[s->n++] = (uint32_t)(until - t0);
	for (until += gap_ns; gap_ns && bench_now_ns() < until;)
		;
}

/* The first nr_dirty pages of the order are those that are to be saved, the next ones are clean. */
static void *writer(void *arg)
{
	uint64_t i;
	int now;

	(void)arg;
	while ((now = atomic_load(&state)) != END) {
		if (now == REST) {
			usleep(50);
			continue;
		}
		/* From the back: the copy comes in order of address, the order is random. */
		for (i = 0; i < nr_dirty / 2 && atomic_load(&state) == now; i++)
			write_one(now == IN_COW ? &in_cow : &plain, order[now == IN_COW ? i : nr_dirty + i]);
		atomic_fetch_add(&done, 1);
		while (atomic_load(&state) == now)
			usleep(50);
	}
	return NULL;
}

static int quiesce(void *arg)
{
	(void)arg;
	return 0; /* it rests */
}

static void resume(void *arg)
{
	(void)arg;
	atomic_store(&state, IN_COW);
}

static int by_value(const void *a, const void *b)
{
	return (*(const uint32_t *)a > *(const uint32_t *)b) - (*(const uint32_t *)a < *(const uint32_t *)b);
}

static double quantile(struct stalls *s, double q)
{
	qsort(s->ns, s->n, sizeof(*s->ns), by_value);
	return s->n ? (double)s->ns[(uint64_t)((double)(s->n - 1) * q)] / 1000 : 0;
}

static void rest(void)
{
	atomic_store(&state, REST);
	usleep(1000);
}

/* One link, and as many plain faults right after it. */
static void round_trip(struct wpt_writer *w, unsigned int number, struct bench_series *pause, struct bench_series *faults)
{
	struct wpt_take_options o = { .size = sizeof(o), .mode = WPT_MODE_COW, .quiesce = quiesce, .resume = resume };
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	uint64_t before = atomic_load(&done), i, t0;

	for (i = 0; i < nr_dirty; i++)
		*(volatile uint64_t *)(memory + order[i] * BENCH_PAGE + 8) = number;
	bench_check(wpt_writer_take(w, &o, &stats), "wpt_writer_take");
	rest();
	while (atomic_load(&done) == before)
		usleep(100);
	bench_series_add(pause, (double)stats.pause_ns / 1e6);
	bench_series_add(faults, (double)stats.pages_cow_faults);
	before = atomic_load(&done);
	atomic_store(&state, PLAIN);
	for (t0 = bench_now_ns(); atomic_load(&done) == before && bench_now_ns() - t0 < 20000000000u;)
		usleep(1000);
	rest();
}

static void measure(struct wpt_writer *w, uint64_t gap, unsigned int repeats)
{
	static const double quantiles[] = { 0.5, 0.99, 0.999 };
	static const char *const names[] = { "p50", "p99", "p99.9" };
	const struct bench_aim aim = { BENCH_RATIO, false, 3 };
	struct bench_series pause, faults, a, b;

	gap_ns = gap;
	in_cow.n = plain.n = 0;
	bench_series_init(&pause, "ms", "pause");
	bench_series_init(&faults, "pages", "pages saved by faults, of %llu dirty", (unsigned long long)nr_dirty);
	for (unsigned int i = 0; i < repeats; i++)
		round_trip(w, i + 1, &pause, &faults);
	bench_note("a write every %s%llu us; %llu writes while pages were saved, %llu plain ones", gap ? "" : "fault + ",
		   (unsigned long long)gap / 1000, (unsigned long long)in_cow.n, (unsigned long long)plain.n);
	bench_row(&pause, NULL, NULL);
	bench_row(&faults, NULL, NULL);
	for (unsigned int i = 0; i < 3; i++) {
		bench_series_init(&b, "us", "write, one plain fault: %s", names[i]);
		bench_series_add(&b, quantile(&plain, quantiles[i]));
		bench_row(&b, NULL, NULL);
		bench_series_init(&a, "us", "write, while pages are saved: %s", names[i]);
		bench_series_add(&a, quantile(&in_cow, quantiles[i]));
		bench_row(&a, &b, i == 2 ? &aim : NULL);
	}
}

int main(void)
{
	struct wpt_writer_options options = { .size = sizeof(options), .flags = WPT_WRITER_NO_SYNC, .nr_threads = 1 };
	struct wpt_tracker_options to = { .size = sizeof(to), .backend = WPT_BACKEND_SYNC };
	struct wpt_range range = { .size = sizeof(range) };
	unsigned int repeats = bench_repeats(15);
	char folder[64], chain[96];
	struct wpt_tracker *tracker;
	struct wpt_writer *w;
	pthread_t thread;
	struct wpt_take_options base = { .size = sizeof(base), .mode = WPT_MODE_FUZZY };

	bench_need(WPT_F_SYNC);
	bytes = bench_size(512 * BENCH_MIB);
	memory = bench_map(bytes);
	bench_fill(memory, bytes, 1);
	order = bench_shuffled(bytes / BENCH_PAGE, 3);
	nr_dirty = bytes / BENCH_PAGE / 10;
	in_cow.ns = calloc(WRITES_MAX, sizeof(*in_cow.ns));
	plain.ns = calloc(WRITES_MAX, sizeof(*plain.ns));
	bench_check_errno(!in_cow.ns || !plain.ns, "calloc");
	bench_folder_make(folder);
	snprintf(chain, sizeof(chain), "%s/chain", folder);
	range.start = (uintptr_t)memory;
	range.end = range.start + bytes;
	bench_check(wpt_tracker_open(&tracker, &to), "wpt_tracker_open");
	bench_check(wpt_range_add(tracker, &range), "wpt_range_add");
	bench_check(wpt_writer_open(&w, tracker, chain, &options), "wpt_writer_open");
	bench_check(wpt_writer_take(w, &base, NULL), "wpt_writer_take");
	bench_check_errno(pthread_create(&thread, NULL, writer, NULL) != 0, "pthread_create");
	bench_table("stall of a write, mode cow, %s, a tenth of it dirty, %u links", bench_bytes(bytes), repeats);
	measure(w, 0, repeats);
	measure(w, 100000, repeats);
	atomic_store(&state, END);
	pthread_join(thread, NULL);
	wpt_writer_close(w);
	wpt_tracker_close(tracker);
	bench_folder_remove(folder);
	return 0;
}
