/* SPDX-License-Identifier: MIT */
/*
 * The random-operation oracle: what an area is, how it is read, scanned and armed. Raw system calls only.
 *
 * An area is memory of one kind, tracked by asynchronous write protection, with a shadow: what a chain of snapshots would hold.
 * A unit is a page of the area, 4 KiB or (hugetlb) 2 MiB. Per unit:
 *   prot     0 as mapped, 1 read-only, 2 no access: until the end of the round
 *   unknown  tracking was given up or the mapping bypassed: the next look takes its content whatever the scan says
 *   must     was written or resolved since it was last reported: the next scan has to report it, whatever its content
 *   pend     reported by a scan that armed since the last look
 */
#ifndef ORACLE_H
#define ORACLE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../libwptrack/uapi.h"

#ifndef UFFD_FEATURE_WP_WRITTEN
#define UFFD_FEATURE_WP_WRITTEN (1 << 30)
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1)
#endif

struct move_arg {
	__u64 dst, src, len, mode;
	__s64 move;
};
#define ORACLE_UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct move_arg)
#define MOVE_ALLOW_SRC_HOLES 2

#define PAGE ((size_t)4096)
#define HUGE ((size_t)2 << 20)
#define HIST 14

enum kind {
	K_ANON,
	K_THP,
	K_MEMFD,
	K_MEMFD_PRIVATE,
	K_SHMEM_HUGE,
	K_SHMEM_HUGE_PRIVATE,
	K_FILE,
	K_FILE_PRIVATE,
	K_HUGETLB_PRIVATE,
	K_HUGETLB_SHARED,
	K_HUGETLB_FILE_PRIVATE,
	NR_KINDS
};

struct kind_desc {
	const char *name;
	size_t bytes, unit;
	bool file, shared, thp;
};

static const struct kind_desc kinds[NR_KINDS] = {
	[K_ANON] = { "anon", 4 << 20, PAGE, false, false, false },
	[K_THP] = { "thp", 12 << 20, PAGE, false, false, true },
	[K_MEMFD] = { "memfd", 4 << 20, PAGE, true, true, false },
	[K_MEMFD_PRIVATE] = { "memfd-private", 4 << 20, PAGE, true, false, false },
	[K_SHMEM_HUGE] = { "shmem-huge", 12 << 20, PAGE, true, true, true },
	[K_SHMEM_HUGE_PRIVATE] = { "shmem-huge-private", 12 << 20, PAGE, true, false, true },
	[K_FILE] = { "file", 4 << 20, PAGE, true, true, false },
	[K_FILE_PRIVATE] = { "file-private", 4 << 20, PAGE, true, false, false },
	[K_HUGETLB_PRIVATE] = { "hugetlb-private", 16 << 20, HUGE, false, false, false },
	[K_HUGETLB_SHARED] = { "hugetlb-shared", 16 << 20, HUGE, true, true, false },
	[K_HUGETLB_FILE_PRIVATE] = { "hugetlb-file-private", 16 << 20, HUGE, true, false, false },
};

struct hist {
	uint32_t round;
	uint16_t seq;
	uint8_t op;
	int16_t result;
};

struct unit {
	uint8_t prot, unknown, must, pend;
	uint8_t nr; /* in hist, the next to be overwritten is nr % HIST */
	struct hist hist[HIST];
};

struct area {
	const struct kind_desc *desc;
	enum kind kind;
	char *base, *scratch; /* the scratch is address space of the same size and alignment */
	char *reserve[2];
	size_t reserve_bytes;
	size_t bytes, unit, nr;
	size_t file_off;
	int fd, uffd;
	bool freed; /* MADV_FREE was used: pages may change by themselves */
	char *shadow, *tmp;
	struct unit *u;
	uint64_t *pm;
	uint8_t *seen;
	uint32_t round, seq;
};

struct config {
	uint64_t seed, rounds, ops, seconds, size;
	unsigned threads;
	uint64_t kinds, skip; /* bits of kinds; of operations that are not performed */
	bool written, machine, bypass, expect_loss, verbose, quiet, strict_must;
	const char *dir;
};

struct totals {
	uint64_t rounds, ops, failed, reported, over, lost, forgotten, late;
	uint64_t over_by[256];
	uint64_t done_by[64], refused_by[64]; /* of one kind */
};

static struct config cfg;
static struct totals *tot;
static uint64_t features;
static bool has_written;
static int pagemap_fd, mem_fd;

static void fatal(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static void fatal(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "oracle: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
	_exit(2);
}

/* ---- random numbers */

struct rng {
	uint64_t s;
};

static uint64_t rnd(struct rng *r)
{
	uint64_t z = (r->s += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static uint64_t below(struct rng *r, uint64_t n)
{
	return n ? rnd(r) % n : 0;
}

static bool chance(struct rng *r, unsigned percent)
{
	return below(r, 100) < percent;
}

static struct rng derive(uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	struct rng r = { a };

	r.s = rnd(&r) ^ b;
	r.s = rnd(&r) ^ c;
	r.s = rnd(&r) ^ d;
	rnd(&r);
	return r;
}

/* ---- accesses that may fault for good: by SIGBUS or SIGSEGV they fail */

static __thread sigjmp_buf fault_env;
static __thread volatile sig_atomic_t fault_expected;

static void on_fault(int sig, siginfo_t *si, void *ctx)
{
	(void)ctx;
	if (fault_expected)
		siglongjmp(fault_env, 1);
	fprintf(stderr, "oracle: signal %d at %p, unexpected\n", sig, si->si_addr);
	_exit(2);
}

static void catch_faults(void)
{
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
}

__attribute__((noinline)) static int try_copy(void *to, const void *from, size_t n)
{
	if (sigsetjmp(fault_env, 0)) {
		fault_expected = 0;
		return -EFAULT;
	}
	fault_expected = 1;
	memcpy(to, from, n);
	atomic_signal_fence(memory_order_seq_cst);
	fault_expected = 0;
	return 0;
}

__attribute__((noinline)) static int try_set(void *to, int c, size_t n)
{
	if (sigsetjmp(fault_env, 0)) {
		fault_expected = 0;
		return -EFAULT;
	}
	fault_expected = 1;
	memset(to, c, n);
	atomic_signal_fence(memory_order_seq_cst);
	fault_expected = 0;
	return 0;
}

__attribute__((noinline)) static int try_add(void *to, uint64_t x)
{
	if (sigsetjmp(fault_env, 0)) {
		fault_expected = 0;
		return -EFAULT;
	}
	fault_expected = 1;
	atomic_fetch_add((_Atomic uint64_t *)to, x);
	fault_expected = 0;
	return 0;
}

static int touch(const void *p)
{
	char c;

	return try_copy(&c, p, 1);
}

/* ---- small helpers */

static char *unit_at(const struct area *a, size_t u)
{
	return a->base + u * a->unit;
}

static int sys(long r)
{
	return r < 0 ? -errno : 0;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = write(fd, text, strlen(text));
	n = n < 0 ? -errno : 0;
	close(fd);
	return (int)n;
}

static void *own_memory(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		fatal("no memory: %zu bytes", bytes);
	madvise(p, bytes, MADV_DONTFORK);
	return p;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- userfaultfd and PAGEMAP_SCAN */

static int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		fatal("userfaultfd: %s", strerror(errno));
	if (!features) {
		if (ioctl(fd, UFFDIO_API, &api))
			fatal("UFFDIO_API: %s", strerror(errno));
		features = api.features;
		close(fd);
		return open_uffd();
	}
	if (!(features & UFFD_FEATURE_WP_ASYNC))
		fatal("this kernel has no UFFD_FEATURE_WP_ASYNC");
	has_written = cfg.written && (features & UFFD_FEATURE_WP_WRITTEN);
	api.features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
		       (features & UFFD_FEATURE_MOVE) | (has_written ? (uint64_t)UFFD_FEATURE_WP_WRITTEN : 0);
	if (ioctl(fd, UFFDIO_API, &api))
		fatal("UFFDIO_API with features %#" PRIx64 ": %s", (uint64_t)api.features, strerror(errno));
	return fd;
}

static int uffd_register(const struct area *a, void *p, size_t n)
{
	struct uffdio_register reg = { .range = { (uintptr_t)p, n }, .mode = UFFDIO_REGISTER_MODE_WP };

	return sys(ioctl(a->uffd, UFFDIO_REGISTER, &reg));
}

static int uffd_unregister(const struct area *a, void *p, size_t n)
{
	struct uffdio_range range = { (uintptr_t)p, n };

	return sys(ioctl(a->uffd, UFFDIO_UNREGISTER, &range));
}

static int uffd_protect(const struct area *a, void *p, size_t n, bool wp)
{
	struct uffdio_writeprotect w = { .range = { (uintptr_t)p, n }, .mode = wp ? UFFDIO_WRITEPROTECT_MODE_WP : 0 };
	int err, tries = 0;

	do
		err = sys(ioctl(a->uffd, UFFDIO_WRITEPROTECT, &w));
	while (err == -EAGAIN && ++tries < 1000);
	return err;
}

struct look {
	uint64_t flags, mask, anyof, ret, max_pages;
	unsigned vec_len;
};

/* What a scan of the units reports is ORed into out. */
static int scan_units(const struct area *a, size_t first, size_t n, const struct look *l, uint8_t *out)
{
	static struct wpt_page_region vec[512];
	struct wpt_pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = l->flags | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)unit_at(a, first),
		.end = (uintptr_t)unit_at(a, first + n),
		.vec = (uintptr_t)vec,
		.vec_len = l->vec_len && l->vec_len < 512 ? l->vec_len : 512,
		.max_pages = a->unit == PAGE ? l->max_pages : 0,
		.category_mask = l->mask,
		.category_anyof_mask = l->anyof,
		.return_mask = l->ret,
	};

	while (arg.start < arg.end) {
		long nr = ioctl(pagemap_fd, WPT_PAGEMAP_SCAN, &arg);

		if (nr < 0)
			return -errno;
		for (long i = 0; i < nr; i++) {
			uint64_t from = vec[i].start - (uintptr_t)a->base, to = vec[i].end - (uintptr_t)a->base;

			if (!(vec[i].categories & PAGE_IS_WRITTEN) && (l->ret & PAGE_IS_WRITTEN))
				fatal("a region that is not written was returned for a mask of written");
			if (vec[i].end > (uintptr_t)unit_at(a, first + n) || vec[i].start < (uintptr_t)unit_at(a, first))
				fatal("a region outside the range that was asked for");
			for (uint64_t u = from / a->unit; u * a->unit < to; u++)
				out[u] = 1;
		}
		if (arg.walk_end <= arg.start)
			fatal("the scan of %s stands still at unit %zu", a->desc->name, (size_t)(arg.start - (uintptr_t)a->base) / a->unit);
		arg.start = arg.walk_end;
	}
	return 0;
}

static void read_pagemap(const struct area *a)
{
	size_t pages = a->unit / PAGE;

	for (size_t u = 0; u < a->nr; u++) {
		if (u && pages == 1)
			break;
		size_t n = pages == 1 ? a->nr : 1;

		if (pread(pagemap_fd, a->pm + u, n * 8, (off_t)((uintptr_t)unit_at(a, u) / PAGE * 8)) != (ssize_t)(n * 8))
			fatal("pagemap: %s", strerror(errno));
	}
}

#define PM_PRESENT (1ull << 63)
#define PM_SWAP (1ull << 62)
#define PM_WP (1ull << 57)

/* The types of swap entries that are no swap come last, and a pte marker's offset is a few bits. */
static bool pm_is_marker(uint64_t e)
{
	return !(e & PM_PRESENT) && (e & PM_SWAP) && (e & 31) >= 20 && ((e >> 5) & ((1ull << 50) - 1)) < 16;
}

/* ---- reading a unit */

enum how { BY_MAPPING, BY_VM_READ, BY_MEM, BY_FILE, BY_PAGEMAP, BY_LAZY, NR_HOW };

static int file_read(const struct area *a, size_t u, char *to)
{
	size_t done = 0;

	while (done < a->unit) {
		ssize_t n = pread(a->fd, to + done, a->unit - done, (off_t)(a->file_off + u * a->unit + done));

		if (n < 0)
			return -errno;
		if (!n)
			return -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int vm_read(const struct area *a, size_t u, char *to)
{
	struct iovec l = { to, a->unit }, r = { unit_at(a, u), a->unit };

	return process_vm_readv(getpid(), &l, 1, &r, 1, 0) == (ssize_t)a->unit ? 0 : -EFAULT;
}

static int fetch(const struct area *a, size_t u, enum how how, char *to)
{
	uint64_t e = a->pm[u];

	if (how == BY_FILE && !a->desc->shared)
		how = BY_PAGEMAP;
	if (how >= BY_PAGEMAP) {
		if (a->desc->shared)
			how = BY_FILE;
		else if ((e & PM_PRESENT) || ((e & PM_SWAP) && !pm_is_marker(e)))
			how = BY_MAPPING;
		else if (a->desc->file)
			how = BY_FILE;
		else
			return memset(to, 0, a->unit), 0;
	}
	switch (how) {
	case BY_FILE:
		return file_read(a, u, to);
	case BY_VM_READ:
		return vm_read(a, u, to);
	case BY_MEM:
		return pread(mem_fd, to, a->unit, (off_t)(uintptr_t)unit_at(a, u)) == (ssize_t)a->unit ? 0 : -EFAULT;
	default:
		return try_copy(to, unit_at(a, u), a->unit);
	}
}

#endif
