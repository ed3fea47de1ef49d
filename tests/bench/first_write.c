/* SPDX-License-Identifier: MIT */
/*
 * What the first write to a protected page costs the writer, and what protecting costs: the library's asynchronous tracking against
 * the other ways to notice or to survive a write (copy on write after fork, mprotect and SIGSEGV, synchronous userfaultfd),
 * on the same memory in the same run, one page after the other in a random order. The same walk over unprotected memory is the
 * floor and is included in all figures.
 */
#include "bench.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static uint8_t *memory;
static uint64_t bytes;
static uint32_t *order;
static atomic_uint_fast64_t handled;

struct way {
	const char *what;
	void (*protect)(void);
	void (*release)(void);
	struct bench_series write, arm;
};

/* Writes to every page once; nanoseconds per page. */
static double write_all(uint8_t value)
{
	uint64_t n = bytes / BENCH_PAGE, t0 = bench_now_ns();

	for (uint64_t i = 0; i < n; i++)
		((volatile uint8_t *)memory)[order[i] * BENCH_PAGE] = value;
	return (double)(bench_now_ns() - t0) / (double)n;
}

static void nothing(void)
{
}

/* ---- asynchronous, by the library ---- */

static struct wpt_tracker *tracker;

static void async_protect(void)
{
	struct wpt_range range = { .size = sizeof(range), .start = (uintptr_t)memory, .end = (uintptr_t)memory + bytes };

	bench_check(wpt_tracker_open(&tracker, NULL), "wpt_tracker_open");
	bench_check(wpt_range_add(tracker, &range), "wpt_range_add");
	bench_check(wpt_tracker_arm(tracker), "wpt_tracker_arm");
}

static int count_run(void *arg, const struct wpt_run *run)
{
	if (run->state == WPT_PAGES_DIRTY)
		*(uint64_t *)arg += (run->end - run->start) / BENCH_PAGE;
	return 0;
}

static void async_release(void)
{
	uint64_t dirty = 0;

	bench_check(wpt_tracker_scan(tracker, 0, UINT64_MAX, 0, count_run, &dirty), "wpt_tracker_scan");
	if (dirty != bytes / BENCH_PAGE) {
		fprintf(stderr, "async noticed %llu writes of %llu\n", (unsigned long long)dirty,
			(unsigned long long)(bytes / BENCH_PAGE));
		exit(1);
	}
	wpt_tracker_close(tracker);
}

/* ---- copy on write after fork ---- */

static pid_t child;

static void fork_protect(void)
{
	child = fork();
	bench_check_errno(child < 0, "fork");
	if (!child) {
		for (;;)
			pause();
	}
}

static void fork_release(void)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

/* ---- mprotect and SIGSEGV ---- */

static void on_fault(int signal, siginfo_t *info, void *context)
{
	uintptr_t page = (uintptr_t)info->si_addr & ~(uintptr_t)(BENCH_PAGE - 1);

	(void)signal;
	(void)context;
	if (page - (uintptr_t)memory >= bytes || mprotect((void *)page, BENCH_PAGE, PROT_READ | PROT_WRITE))
		_exit(99);
	atomic_fetch_add_explicit(&handled, 1, memory_order_relaxed);
}

static void mprotect_protect(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	sigaction(SIGSEGV, &action, NULL);
	handled = 0;
	bench_check_errno(mprotect(memory, bytes, PROT_READ), "mprotect");
}

static void expect_all(const char *who)
{
	if (handled != bytes / BENCH_PAGE) {
		fprintf(stderr, "%s noticed %llu writes of %llu\n", who, (unsigned long long)handled,
			(unsigned long long)(bytes / BENCH_PAGE));
		exit(1);
	}
}

static void mprotect_release(void)
{
	expect_all("mprotect");
	signal(SIGSEGV, SIG_DFL);
	bench_check_errno(mprotect(memory, bytes, PROT_READ | PROT_WRITE), "mprotect");
}

/* ---- synchronous userfaultfd ---- */

static int uffd, stop[2];
static bool spin;
static pthread_t reader;

static void *read_faults(void *arg)
{
	struct pollfd fds[2] = { { .fd = uffd, .events = POLLIN }, { .fd = stop[0], .events = POLLIN } };
	struct uffd_msg message;

	(void)arg;
	for (;;) {
		poll(fds, 2, spin ? 0 : -1);
		if (fds[1].revents)
			return NULL;
		bench_check_errno(fds[0].revents & (POLLERR | POLLNVAL), "poll of userfaultfd");
		if (read(uffd, &message, sizeof(message)) != (ssize_t)sizeof(message))
			continue;
		bench_uffd_protect(uffd, (void *)(uintptr_t)(message.arg.pagefault.address & ~(BENCH_PAGE - 1)), BENCH_PAGE, false);
		atomic_fetch_add_explicit(&handled, 1, memory_order_relaxed);
	}
}

static void sync_protect(void)
{
	handled = 0;
	uffd = bench_uffd(memory, bytes, false);
	bench_check_errno(pipe(stop), "pipe");
	bench_check_errno(pthread_create(&reader, NULL, read_faults, NULL), "pthread_create");
	bench_uffd_protect(uffd, memory, bytes, true);
}

static void spin_protect(void)
{
	spin = true;
	sync_protect();
}

static void sync_release(void)
{
	bench_check_errno(write(stop[1], "", 1) != 1, "write");
	pthread_join(reader, NULL);
	expect_all("synchronous userfaultfd");
	close(stop[0]);
	close(stop[1]);
	close(uffd);
	spin = false;
}

int main(void)
{
	static struct way ways[] = {
		{ .what = "not protected", .protect = nothing, .release = nothing },
		{ .what = "async (libwptrack)", .protect = async_protect, .release = async_release },
		{ .what = "fork, copy on write", .protect = fork_protect, .release = fork_release },
		{ .what = "mprotect and SIGSEGV", .protect = mprotect_protect, .release = mprotect_release },
		{ .what = "userfaultfd, synchronous, reader sleeps", .protect = sync_protect, .release = sync_release },
		{ .what = "userfaultfd, synchronous, reader spins", .protect = spin_protect, .release = sync_release },
	};
	const unsigned int nr_ways = sizeof(ways) / sizeof(*ways);
	static const struct bench_aim aim = { BENCH_RATIO, false, 1 };
	unsigned int repeats = bench_repeats(9);
	double gib;

	bench_need(WPT_F_ASYNC);
	/* Of 65530 mappings that a process may have mprotect page by page needs half as many as there are pages. */
	bytes = bench_size(256 * BENCH_MIB);
	if (bytes > 256 * BENCH_MIB)
		bytes = 256 * BENCH_MIB;
	gib = (double)bytes / (double)BENCH_GIB;
	memory = bench_map(bytes);
	order = bench_shuffled(bytes / BENCH_PAGE, 1);
	write_all(1);
	for (unsigned int w = 0; w < nr_ways; w++) {
		bench_series_init(&ways[w].write, "ns/page", "%s", ways[w].what);
		bench_series_init(&ways[w].arm, "ms/GiB", "%s", ways[w].what);
	}
	for (unsigned int i = 0; i < repeats; i++) {
		for (unsigned int w = 0; w < nr_ways; w++) {
			uint64_t t0;

			write_all((uint8_t)i);
			t0 = bench_now_ns();
			ways[w].protect();
			bench_series_add(&ways[w].arm, (double)(bench_now_ns() - t0) / 1e6 / gib);
			bench_series_add(&ways[w].write, write_all((uint8_t)(i + w)));
			ways[w].release();
		}
	}
	bench_table("first write to a page, %s in random order, %u repeats; ratio: to async, its own to the cheapest peer",
		    bench_bytes(bytes), repeats);
	for (unsigned int w = 0; w < nr_ways; w++)
		bench_row(&ways[w].write, w == 1 ? &ways[2].write : &ways[1].write, w == 1 ? &aim : NULL);
	bench_table("protecting all of it (async: open, add and arm)");
	for (unsigned int w = 1; w < nr_ways; w++)
		bench_row(&ways[w].arm, w == 1 ? NULL : &ways[1].arm, NULL);
	return 0;
}
