/* SPDX-License-Identifier: MIT */
/*
 * What a scan costs: PAGEMAP_SCAN called by hand against wpt_tracker_scan(), over the same memory that the library's tracker has
 * registered, in alternation. The raw loop asks for the same categories (written, present, swapped) in the same slices and calls
 * a function per run, since without those a page that was written can't be told from one that was never there.
 */
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

static uint8_t *memory;
static uint64_t bytes;
static int pagemap;
static struct bench_region *regions;
/* The kernel's own buffer. With a larger one walk_end lies behind what was reported, and pages come twice. */
#define NR_REGIONS 512u

static int count_run(void *arg, const struct wpt_run *run)
{
	if (run->state == WPT_PAGES_DIRTY)
		*(uint64_t *)arg += (run->end - run->start) / BENCH_PAGE;
	return 0;
}

static __attribute__((noinline)) void count_region(uint64_t *arg, const struct bench_region *r)
{
	if (r->categories & (BENCH_IS_PRESENT | BENCH_IS_SWAPPED))
		*arg += (r->end - r->start) / BENCH_PAGE;
}

static uint64_t raw_scan(bool rearm, uint64_t categories)
{
	uint64_t dirty = 0, end = (uintptr_t)memory + bytes;
	struct bench_scan_arg arg = {
		.size = sizeof(arg),
		.flags = BENCH_PM_CHECK_WPASYNC | (rearm ? BENCH_PM_WP_MATCHING : 0),
		.start = (uintptr_t)memory,
		.vec = (uintptr_t)regions,
		.vec_len = NR_REGIONS,
		.category_mask = BENCH_IS_WRITTEN,
		.return_mask = categories,
	};

	if (rearm && categories != BENCH_IS_WRITTEN)
		arg.category_anyof_mask = BENCH_IS_PRESENT | BENCH_IS_SWAPPED;
	while (arg.start < end) {
		long n;

		arg.end = end - arg.start < BENCH_GIB ? end : arg.start + BENCH_GIB;
		n = ioctl(pagemap, BENCH_PAGEMAP_SCAN, &arg);
		bench_check_errno(n < 0, "PAGEMAP_SCAN");
		for (long i = 0; i < n; i++)
			count_region(&dirty, &regions[i]);
		arg.start = arg.walk_end;
	}
	return dirty;
}

static uint64_t lib_scan(struct wpt_tracker *t, bool rearm)
{
	uint64_t dirty = 0;

	bench_check(wpt_tracker_scan(t, 0, UINT64_MAX, rearm ? WPT_SCAN_REARM : 0, count_run, &dirty), "wpt_tracker_scan");
	return dirty;
}

static void dirty_pages(uint64_t count, uint64_t seed)
{
	uint64_t n = bytes / BENCH_PAGE;

	for (uint64_t i = 0; i < count; i++)
		((volatile uint64_t *)(memory + bench_scattered(n, i, count, &seed) * BENCH_PAGE))[7] = seed;
}

static void expect(uint64_t found, uint64_t count, const char *who)
{
	if (found != count) {
		fprintf(stderr, "%s found %llu dirty pages, %llu were written\n", who, (unsigned long long)found,
			(unsigned long long)count);
		exit(1);
	}
}

/* One share of dirty pages; in every repeat both sides see the same number of freshly dirtied pages, the one that begins alternates. */
static void measure(struct wpt_tracker *t, double share, bool rearm, unsigned int repeats)
{
	static const struct bench_aim aim = { BENCH_RATIO, false, 1.05 };
	uint64_t count = (uint64_t)((double)(bytes / BENCH_PAGE) * share), t0, found;
	struct bench_series naive, raw, lib;
	const char *name = rearm ? "scan + protect" : "scan";

	bench_series_init(&naive, "us", "raw %s, %g%% dirty, 'written' only", name, share * 100);
	bench_series_init(&raw, "us", "raw %s, %g%% dirty", name, share * 100);
	bench_series_init(&lib, "us", "wpt_tracker_scan, %g%% dirty%s", share * 100, rearm ? ", REARM" : "");
	for (unsigned int i = 0; i < repeats * 2 + 2; i++) {
		lib_scan(t, true);
		dirty_pages(count, i);
		raw_scan(false, BENCH_IS_WRITTEN);
		t0 = bench_now_ns();
		if (i % 2)
			found = lib_scan(t, rearm);
		else
			found = raw_scan(rearm, BENCH_IS_WRITTEN | BENCH_IS_PRESENT | BENCH_IS_SWAPPED);
		t0 = bench_now_ns() - t0;
		expect(found, count, i % 2 ? "wpt_tracker_scan" : "the raw scan");
		if (i >= 2)
			bench_series_add(i % 2 ? &lib : &raw, (double)t0 / 1000);
		if (rearm || i < 2 || i % 2)
			continue;
		t0 = bench_now_ns();
		raw_scan(false, BENCH_IS_WRITTEN);
		bench_series_add(&naive, (double)(bench_now_ns() - t0) / 1000);
	}
	if (!rearm)
		bench_row(&naive, &raw, NULL);
	bench_row(&raw, NULL, NULL);
	bench_row(&lib, &raw, &aim);
}

int main(void)
{
	static const double shares[] = { 0, 0.001, 0.01, 0.1, 1 };
	unsigned int repeats = bench_repeats(31);
	struct wpt_range range = { .size = sizeof(range) };
	struct wpt_tracker *t;

	bench_need(WPT_F_ASYNC);
	bytes = bench_size(BENCH_GIB);
	memory = bench_map(bytes);
	regions = calloc(NR_REGIONS, sizeof(*regions));
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bench_check_errno(!regions || pagemap < 0, "/proc/self/pagemap");
	bench_pin(memory, bytes);
	for (uint64_t i = 0; i < bytes; i += BENCH_PAGE)
		memory[i] = 1;
	bench_check(wpt_tracker_open(&t, NULL), "wpt_tracker_open");
	range.start = (uintptr_t)memory;
	range.end = range.start + bytes;
	bench_check(wpt_range_add(t, &range), "wpt_range_add");
	bench_check(wpt_tracker_arm(t), "wpt_tracker_arm");

	bench_table("scan: PAGEMAP_SCAN by hand and wpt_tracker_scan, %s of private memory, %u repeats", bench_bytes(bytes), repeats);
	for (unsigned int s = 0; s < sizeof(shares) / sizeof(*shares); s++)
		measure(t, shares[s], false, repeats);
	for (unsigned int s = 0; s < sizeof(shares) / sizeof(*shares); s++)
		measure(t, shares[s], true, repeats);
	wpt_tracker_close(t);
	return 0;
}
