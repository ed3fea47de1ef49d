/* SPDX-License-Identifier: MIT */
/*
 * dirty [PID [SECONDS]]: which pages are written.
 *
 * With a PID: all writable memory of that process, for some seconds. Without: memory of its own, so that the answer is known.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "wptrack.h"

struct count {
	uint64_t base;    /* runs are printed relative to it */
	uint64_t dirty;   /* bytes */
	uint64_t runs;
};

static int print_run(void *arg, const struct wpt_run *run)
{
	struct count *c = arg;
	long page = sysconf(_SC_PAGESIZE);

	/* ZERO says that nothing is there, which is a state and not a change */
	if (run->state != WPT_PAGES_DIRTY && run->state != WPT_PAGES_UNKNOWN)
		return 0;
	c->dirty += run->end - run->start;
	c->runs++;
	if (c->base)
		printf("pages %" PRIu64 " to %" PRIu64 "\n", (run->start - c->base) / page, (run->end - c->base) / page - 1);
	else
		printf("%" PRIx64 "-%" PRIx64 "%s\n", run->start, run->end, run->state == WPT_PAGES_UNKNOWN ? " (new)" : "");
	return 0;
}

/* Everything of another process that is written in `seconds`. */
static int of_process(pid_t pid, double seconds)
{
	struct timespec ts = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };
	struct wpt_tracker *t = NULL;
	struct count c = { 0 };
	int err;

	err = wpt_tracker_attach(&t, pid, NULL);
	if (err < 0)
		return err;
	err = wpt_range_add_all(t);
	if (err >= 0)
		err = wpt_tracker_arm(t);
	if (err >= 0) {
		nanosleep(&ts, NULL);
		err = wpt_tracker_scan(t, 0, UINT64_MAX, 0, print_run, &c);
	}
	wpt_tracker_close(t);
	if (err >= 0)
		printf("%" PRIu64 " KiB in %" PRIu64 " runs\n", c.dirty / 1024, c.runs);
	return err;
}

/* Memory of its own: two rounds of writes, each with another answer. */
static int of_own(void)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), size = 64 * page;
	struct wpt_range range = { sizeof(range), 0, 0, "arena" };
	struct wpt_tracker *t = NULL;
	struct count c = { 0 };
	char *arena;
	int err;

	arena = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (arena == MAP_FAILED)
		return -1;
	memset(arena, 1, size);
	range.start = c.base = (uint64_t)(uintptr_t)arena;
	range.end = range.start + size;

	err = wpt_tracker_open(&t, NULL);
	if (err >= 0)
		err = wpt_range_add(t, &range);
	if (err >= 0)
		err = wpt_tracker_arm(t);
	if (err < 0)
		goto fail;

	arena[3 * page] = 2;
	arena[10 * page + 17] = 2;
	arena[11 * page] = 2;
	puts("after the first writes:");
	err = wpt_tracker_scan(t, range.start, range.end, WPT_SCAN_REARM, print_run, &c);
	if (err < 0)
		goto fail;

	arena[60 * page] = 3;
	puts("after the second:");
	err = wpt_tracker_scan(t, range.start, range.end, WPT_SCAN_REARM, print_run, &c);
fail:
	wpt_tracker_close(t);
	munmap(arena, size);
	return err;
}

int main(int argc, char **argv)
{
	int err = argc > 1 ? of_process((pid_t)atoi(argv[1]), argc > 2 ? atof(argv[2]) : 1.0) : of_own();

	if (err < 0) {
		fprintf(stderr, "dirty: %s\n", wpt_strerror(err));
		return 1;
	}
	return 0;
}
