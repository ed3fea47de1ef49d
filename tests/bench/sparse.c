/* SPDX-License-Identifier: MIT */
/*
 * Arming 1 TiB of private memory of which 1000 pages were touched: time and page tables. The peers are PAGEMAP_SCAN by hand over the
 * same memory, and UFFDIO_WRITEPROTECT, which allocates page tables, over a sixteenth of it.
 */
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define SPARSE (1ull << 40)
#define TOUCHED 1000u

static int pagemap;

static uint8_t *map_sparse(uint64_t bytes)
{
	uint8_t *p = bench_map(bytes);
	uint64_t state = 7;

	for (uint64_t i = 0; i < TOUCHED; i++)
		p[bench_scattered(bytes / BENCH_PAGE, i, TOUCHED, &state) * BENCH_PAGE] = 1;
	return p;
}

static int count_run(void *arg, const struct wpt_run *run)
{
	if (run->state == WPT_PAGES_DIRTY)
		*(uint64_t *)arg += (run->end - run->start) / BENCH_PAGE;
	return 0;
}

struct result {
	double arm_ms, pte_kib, scan_ms;
};

static struct result by_library(void)
{
	struct wpt_range range = { .size = sizeof(range) };
	struct result r;
	struct wpt_tracker *t;
	uint8_t *p = map_sparse(SPARSE);
	uint64_t t0, kib, dirty = 0;

	range.start = (uintptr_t)p;
	range.end = range.start + SPARSE;
	bench_check(wpt_tracker_open(&t, NULL), "wpt_tracker_open");
	bench_check(wpt_range_add(t, &range), "wpt_range_add");
	kib = bench_status_kib(0, "VmPTE:");
	t0 = bench_now_ns();
	bench_check(wpt_tracker_arm(t), "wpt_tracker_arm");
	r.arm_ms = (double)(bench_now_ns() - t0) / 1e6;
	r.pte_kib = (double)bench_status_kib(0, "VmPTE:") - (double)kib;
	for (uint64_t i = 0, state = 7; i < 10; i++)
		p[bench_scattered(SPARSE / BENCH_PAGE, i, TOUCHED, &state) * BENCH_PAGE] = 2;
	for (uint64_t i = 0; i < 10; i++)
		p[SPARSE / 2 + i * BENCH_GIB] = 1;
	t0 = bench_now_ns();
	bench_check(wpt_tracker_scan(t, 0, UINT64_MAX, WPT_SCAN_REARM, count_run, &dirty), "wpt_tracker_scan");
	r.scan_ms = (double)(bench_now_ns() - t0) / 1e6;
	if (dirty != 20) {
		fprintf(stderr, "20 pages were written, the scan found %llu\n", (unsigned long long)dirty);
		exit(1);
	}
	wpt_tracker_close(t);
	munmap(p, SPARSE);
	return r;
}

static struct result by_hand(void)
{
	static struct bench_region regions[512];
	uint8_t *p = map_sparse(SPARSE);
	int uffd = bench_uffd(p, SPARSE, true);
	struct bench_scan_arg arg = {
		.size = sizeof(arg), .flags = BENCH_PM_CHECK_WPASYNC | BENCH_PM_WP_MATCHING,
		.start = (uintptr_t)p, .end = (uintptr_t)p + SPARSE,
		.vec = (uintptr_t)regions, .vec_len = sizeof(regions) / sizeof(*regions),
		.category_mask = BENCH_IS_WRITTEN, .category_anyof_mask = BENCH_IS_PRESENT | BENCH_IS_SWAPPED,
		.return_mask = BENCH_IS_WRITTEN,
	};
	uint64_t kib = bench_status_kib(0, "VmPTE:"), t0 = bench_now_ns();
	struct result r = { 0 };

	while (arg.start < arg.end) {
		bench_check_errno(ioctl(pagemap, BENCH_PAGEMAP_SCAN, &arg) < 0, "PAGEMAP_SCAN");
		arg.start = arg.walk_end;
	}
	r.arm_ms = (double)(bench_now_ns() - t0) / 1e6;
	r.pte_kib = (double)bench_status_kib(0, "VmPTE:") - (double)kib;
	close(uffd);
	munmap(p, SPARSE);
	return r;
}

static struct result by_writeprotect(void)
{
	const uint64_t bytes = SPARSE / 16;
	uint8_t *p = map_sparse(bytes);
	int uffd = bench_uffd(p, bytes, true);
	uint64_t kib = bench_status_kib(0, "VmPTE:"), t0 = bench_now_ns();
	struct result r = { 0 };

	bench_uffd_protect(uffd, p, bytes, true);
	r.arm_ms = (double)(bench_now_ns() - t0) / 1e6;
	r.pte_kib = (double)bench_status_kib(0, "VmPTE:") - (double)kib;
	close(uffd);
	munmap(p, bytes);
	return r;
}

int main(void)
{
	static const struct bench_aim time_aim = { BENCH_MEDIAN, false, 20 }, pte_aim = { BENCH_MAX, false, 1024 };
	static struct bench_series arm[3], pte[3], scan;
	unsigned int repeats = bench_repeats(15);

	bench_need(WPT_F_ASYNC);
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bench_check_errno(pagemap < 0, "/proc/self/pagemap");
	bench_series_init(&arm[0], "ms", "PAGEMAP_SCAN by hand: arm");
	bench_series_init(&pte[0], "KiB", "  page tables");
	bench_series_init(&arm[1], "ms", "wpt_tracker_arm");
	bench_series_init(&pte[1], "KiB", "  page tables");
	bench_series_init(&arm[2], "ms", "UFFDIO_WRITEPROTECT, %s only: arm", bench_bytes(SPARSE / 16));
	bench_series_init(&pte[2], "KiB", "  page tables");
	bench_series_init(&scan, "ms", "wpt_tracker_scan REARM, 20 pages dirty, 10 new");
	for (unsigned int i = 0; i < repeats; i++) {
		struct result r[3] = { by_hand(), by_library() };

		bench_series_add(&scan, r[1].scan_ms);
		for (unsigned int j = 0; j < 3; j++) {
			if (j == 2 && i > 2)
				continue;
			if (j == 2)
				r[2] = by_writeprotect();
			bench_series_add(&arm[j], r[j].arm_ms);
			bench_series_add(&pte[j], r[j].pte_kib);
		}
	}
	bench_table("arming %s of sparse private memory, %u pages touched, %u repeats", bench_bytes(SPARSE), TOUCHED, repeats);
	bench_row(&arm[0], NULL, NULL);
	bench_row(&pte[0], NULL, NULL);
	bench_row(&arm[1], &arm[0], &time_aim);
	bench_row(&pte[1], NULL, &pte_aim);
	bench_row(&arm[2], &arm[0], NULL);
	bench_row(&pte[2], NULL, NULL);
	bench_row(&scan, NULL, NULL);
	return 0;
}
