/* SPDX-License-Identifier: MIT */
/*
 * Protecting 1 TiB of which 1000 pages were touched, private and memfd: how long it takes and what page tables it allocates, by hand without
 * and with WP_WRITTEN, and by the library. What a stock kernel does here takes half a minute where it is emulated, and 2 GiB.
 * A line that begins with "figure" is for a program to read.
 */
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define TOUCHED 1000u

static uint64_t bytes;
static int pagemap;

struct memory {
	uint8_t *p;
	int fd;
};

static struct memory map_sparse(bool memfd)
{
	struct memory m = { .fd = -1 };
	uint64_t state = 7;

	if (memfd) {
		m.fd = memfd_create("bench-sparse", MFD_CLOEXEC);
		bench_check_errno(m.fd < 0 || ftruncate(m.fd, (off_t)bytes) != 0, "memfd_create");
		m.p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m.fd, 0);
		bench_check_errno(m.p == MAP_FAILED, "mmap");
	} else {
		m.p = bench_map(bytes);
	}
	for (uint64_t i = 0; i < TOUCHED; i++)
		m.p[bench_scattered(bytes / BENCH_PAGE, i, TOUCHED, &state) * BENCH_PAGE] = 1;
	return m;
}

static void unmap(struct memory *m)
{
	munmap(m->p, bytes);
	if (m->fd >= 0)
		close(m->fd);
}

static void by_writeprotect(struct memory *m, uint64_t features, int *uffd)
{
	*uffd = bench_uffd_with(m->p, bytes, features);
	bench_uffd_protect(*uffd, m->p, bytes, true);
}

static void stock_writeprotect(struct memory *m, int *uffd)
{
	by_writeprotect(m, BENCH_UFFD_ALL_ASYNC, uffd);
}

static void written_writeprotect(struct memory *m, int *uffd)
{
	by_writeprotect(m, BENCH_UFFD_ALL_ASYNC | BENCH_UFFD_WP_WRITTEN, uffd);
}

static void written_scan(struct memory *m, int *uffd)
{
	static struct bench_region regions[512];
	struct bench_scan_arg arg = {
		.size = sizeof(arg), .flags = BENCH_PM_CHECK_WPASYNC | BENCH_PM_WP_MATCHING,
		.start = (uintptr_t)m->p, .end = (uintptr_t)m->p + bytes,
		.vec = (uintptr_t)regions, .vec_len = sizeof(regions) / sizeof(*regions),
		.category_mask = BENCH_IS_WRITTEN, .return_mask = BENCH_IS_WRITTEN,
	};

	*uffd = bench_uffd_with(m->p, bytes, BENCH_UFFD_ALL_ASYNC | BENCH_UFFD_WP_WRITTEN);
	while (arg.start < arg.end) {
		bench_check_errno(ioctl(pagemap, BENCH_PAGEMAP_SCAN, &arg) < 0, "PAGEMAP_SCAN");
		arg.start = arg.walk_end;
	}
}

static struct wpt_tracker *tracker;

static void library(struct memory *m, int *uffd)
{
	struct wpt_tracker_options o = { .size = sizeof(o), .flags = WPT_TRACK_ASSUME_SOLE_WRITER };
	struct wpt_range range = { .size = sizeof(range), .start = (uintptr_t)m->p, .end = (uintptr_t)m->p + bytes };

	*uffd = -1;
	bench_check(wpt_tracker_open(&tracker, &o), "wpt_tracker_open");
	bench_check(wpt_range_add(tracker, &range), "wpt_range_add");
	bench_check(wpt_tracker_arm(tracker), "wpt_tracker_arm");
}

static const struct way {
	const char *what, *name;
	bool written;
	void (*protect)(struct memory *m, int *uffd);
} ways[] = {
	{ "UFFDIO_WRITEPROTECT, WP_UNPOPULATED", "writeprotect-stock", false, stock_writeprotect },
	{ "UFFDIO_WRITEPROTECT, WP_WRITTEN", "writeprotect-written", true, written_writeprotect },
	{ "PAGEMAP_SCAN, WP_WRITTEN", "scan-written", true, written_scan },
	{ "wpt_tracker_open, add and arm", "library", false, library },
};

#define NR_WAYS (sizeof(ways) / sizeof(*ways))

static void measure(const struct way *w, bool memfd, struct bench_series *ms, struct bench_series *kib)
{
	struct memory m = map_sparse(memfd);
	uint64_t before = bench_status_kib(0, "VmPTE:"), t0 = bench_now_ns();
	int uffd;

	w->protect(&m, &uffd);
	bench_series_add(ms, (double)(bench_now_ns() - t0) / 1e6);
	bench_series_add(kib, (double)bench_status_kib(0, "VmPTE:") - (double)before);
	if (uffd >= 0)
		close(uffd);
	wpt_tracker_close(tracker);
	tracker = NULL;
	unmap(&m);
}

int main(void)
{
	static struct bench_series ms[NR_WAYS], kib[NR_WAYS];
	bool written = bench_uffd_offered() & BENCH_UFFD_WP_WRITTEN;
	unsigned int repeats = bench_repeats(3);

	bench_need(WPT_F_ASYNC);
	bytes = bench_size(1ull << 40);
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bench_check_errno(pagemap < 0, "/proc/self/pagemap");
	for (unsigned int memfd = 0; memfd < 2; memfd++) {
		bench_table("protecting %s of sparse %s, %u pages touched", bench_bytes(bytes), memfd ? "memfd" : "private memory", TOUCHED);
		for (unsigned int i = 0; i < NR_WAYS; i++) {
			if (ways[i].written && !written)
				continue;
			bench_series_init(&ms[i], "ms", "%s", ways[i].what);
			bench_series_init(&kib[i], "KiB", "  page tables");
			for (unsigned int k = 0; k < repeats; k++)
				measure(&ways[i], memfd, &ms[i], &kib[i]);
			bench_row(&ms[i], NULL, NULL);
			bench_row(&kib[i], NULL, NULL);
		}
		for (unsigned int i = 0; i < NR_WAYS; i++)
			if (!ways[i].written || written)
				printf("figure sparse %s %s %.3f %.0f\n", memfd ? "memfd" : "anon", ways[i].name,
				       bench_series_median(&ms[i]), bench_series_median(&kib[i]));
	}
	return 0;
}
