/* SPDX-License-Identifier: MIT */
/*
 * What the target notices of being tracked: the longest mmap + munmap of one of its threads while its memory is armed, scanned and let
 * go. The peer does the same by one kernel call each, from within the target: how long these keep mmap waiting is why the library
 * works in slices.
 */
#include "bench.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define OWN_POPULATE (BENCH_OWN + 0)
#define OWN_ARM (BENCH_OWN + 1)
#define OWN_SCAN (BENCH_OWN + 2)
#define OWN_CLOSE (BENCH_OWN + 3)

/* Words of the shared page. */
enum { LONGEST_NS, NR_CALLS };

static int uffd, pagemap = -1;

static void *map_and_unmap(void *arg)
{
	volatile uint64_t *shared = arg;

	for (;;) {
		uint64_t t0 = bench_now_ns(), ns;
		void *p = mmap(NULL, 64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		bench_check_errno(p == MAP_FAILED, "mmap");
		munmap(p, 64 << 10);
		ns = bench_now_ns() - t0;
		if (ns > shared[LONGEST_NS])
			shared[LONGEST_NS] = ns;
		shared[NR_CALLS]++;
	}
	return NULL;
}

static uint64_t raw_scan(struct bench_target *t)
{
	static struct bench_region regions[512];
	struct bench_scan_arg arg = {
		.size = sizeof(arg), .flags = BENCH_PM_CHECK_WPASYNC | BENCH_PM_WP_MATCHING,
		.start = (uintptr_t)t->memory, .end = (uintptr_t)t->memory + t->bytes,
		.vec = (uintptr_t)regions, .vec_len = sizeof(regions) / sizeof(*regions),
		.category_mask = BENCH_IS_WRITTEN, .return_mask = BENCH_IS_WRITTEN,
	};

	while (arg.start < arg.end) {
		bench_check_errno(ioctl(pagemap, BENCH_PAGEMAP_SCAN, &arg) < 0, "PAGEMAP_SCAN");
		arg.start = arg.walk_end;
	}
	return 0;
}

static uint64_t serve(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b)
{
	pthread_t thread;

	(void)a;
	(void)b;
	switch (command) {
	case OWN_POPULATE:
		for (uint64_t i = 0; i < t->bytes; i += BENCH_PAGE)
			t->memory[i] = 1;
		pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		bench_check_errno(pagemap < 0, "/proc/self/pagemap");
		bench_check_errno(pthread_create(&thread, NULL, map_and_unmap, (void *)t->shared) != 0, "pthread_create");
		return 0;
	case OWN_ARM:
		uffd = bench_uffd(t->memory, t->bytes, true);
		bench_uffd_protect(uffd, t->memory, t->bytes, true);
		return 0;
	case OWN_SCAN:
		return raw_scan(t);
	default:
		close(uffd);
		return 0;
	}
}

enum { IDLE, ATTACH, ARM, SCAN, CLOSE, RAW_ARM, RAW_SCAN, RAW_CLOSE, NR_PHASES };

static struct bench_series longest[NR_PHASES];

static void begin(struct bench_target *t)
{
	t->shared[LONGEST_NS] = 0;
}

/* A call that waits is recorded when it returns: let one more end. */
static void end(struct bench_target *t, unsigned int phase)
{
	uint64_t calls = t->shared[NR_CALLS];

	while (t->shared[NR_CALLS] < calls + 2)
		usleep(50);
	bench_series_add(&longest[phase], (double)t->shared[LONGEST_NS] / 1e6);
}

static int count_run(void *arg, const struct wpt_run *run)
{
	(void)run;
	++*(uint64_t *)arg;
	return 0;
}

static void once(struct bench_target *t)
{
	struct wpt_range range = {
		.size = sizeof(range), .start = (uintptr_t)t->memory, .end = (uintptr_t)t->memory + t->bytes,
	};
	struct wpt_tracker *tracker;
	uint64_t runs = 0;

	begin(t);
	usleep(50000);
	end(t, IDLE);
	begin(t);
	bench_attach(&tracker, t->pid);
	end(t, ATTACH);
	bench_check(wpt_range_add(tracker, &range), "wpt_range_add");
	begin(t);
	bench_check(wpt_tracker_arm(tracker), "wpt_tracker_arm");
	end(t, ARM);
	bench_target_do(t, BENCH_TOUCH, t->bytes / BENCH_PAGE / 100, 1);
	begin(t);
	for (unsigned int i = 0; i < 3; i++)
		bench_check(wpt_tracker_scan(tracker, 0, UINT64_MAX, WPT_SCAN_REARM, count_run, &runs), "wpt_tracker_scan");
	end(t, SCAN);
	begin(t);
	wpt_tracker_close(tracker);
	end(t, CLOSE);

	begin(t);
	bench_target_do(t, OWN_ARM, 0, 0);
	end(t, RAW_ARM);
	bench_target_do(t, BENCH_TOUCH, t->bytes / BENCH_PAGE / 100, 1);
	begin(t);
	for (unsigned int i = 0; i < 3; i++)
		bench_target_do(t, OWN_SCAN, 0, 0);
	end(t, RAW_SCAN);
	begin(t);
	bench_target_do(t, OWN_CLOSE, 0, 0);
	end(t, RAW_CLOSE);
}

int main(void)
{
	static const char *const names[NR_PHASES] = {
		"nothing happens (50 ms)", "attach", "arm", "three scans with REARM, 1% dirty", "close", "arm by one call",
		"three scans by hand, 1% dirty", "close by one call",
	};
	static const int peers[NR_PHASES] = { -1, -1, RAW_ARM, RAW_SCAN, RAW_CLOSE, -1, -1, -1 };
	unsigned int repeats = bench_repeats(15);
	struct bench_target t;

	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	bench_target_start(&t, bench_size(BENCH_GIB) * 4, serve);
	bench_target_do(&t, OWN_POPULATE, 0, 0);
	for (unsigned int i = 0; i < NR_PHASES; i++)
		bench_series_init(&longest[i], "ms", "%s", names[i]);
	for (unsigned int i = 0; i < repeats; i++)
		once(&t);
	bench_table("longest mmap + munmap of the target in each of %u repeats, %s tracked", repeats, bench_bytes(t.bytes));
	for (unsigned int i = 0; i < NR_PHASES; i++)
		bench_row(&longest[i], peers[i] < 0 ? NULL : &longest[peers[i]], NULL);
	bench_target_stop(&t);
	return 0;
}
