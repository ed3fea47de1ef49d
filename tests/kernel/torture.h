/* SPDX-License-Identifier: MIT */
/*
 * The torture oracle's areas: what is mapped where, and what the target and the checker share.
 *
 * Each area has a slot of address space far from where the kernel places mappings by itself, so that holes in it stay holes.
 * All bookkeeping is in one shared mapping, so that a checker in another process can print the log of a target.
 * Locking: area->lock orders the operations that change the mappings of one slot; plain accesses take no lock and may fault.
 */
#ifndef TORTURE_H
#define TORTURE_H

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
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "random.h"

#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#define TP ((uint64_t)4096)
#define HUGE ((uint64_t)2 << 20)
#define SLOT_BASE ((uint64_t)0x200000000000)
#define SLOT_STRIDE ((uint64_t)1 << 30)
#define MAX_AREAS 16
#define LOG_RING 8192u
#define MAX_WORKERS 8

enum area_kind {
	AREA_ANON,
	AREA_THP,
	AREA_SHARED_ANON,
	AREA_MEMFD,
	AREA_MEMFD_PRIVATE,
	AREA_TMPFS,
	AREA_TMPFS_PRIVATE,
	AREA_FILE,
	AREA_FILE_PRIVATE,
	AREA_HUGE_PRIVATE,
	AREA_HUGE_SHARED,
	AREA_HUGE_FILE_PRIVATE,
	AREA_BRK,
	NR_AREA_KINDS
};

struct area_desc {
	const char *name;
	uint64_t bytes;
	uint64_t unit;     /* page size */
	bool file, shared;
	bool silent;       /* pwrite to the file and punched holes that a read fills again can't be noticed by a stock kernel */
};

static const struct area_desc area_descs[NR_AREA_KINDS] = {
	[AREA_ANON] = { "anon", 4 << 20, TP, false, false, false },
	[AREA_THP] = { "thp", 8 << 20, TP, false, false, false },
	[AREA_SHARED_ANON] = { "shared-anon", 4 << 20, TP, false, true, true },
	[AREA_MEMFD] = { "memfd", 4 << 20, TP, true, true, true },
	[AREA_MEMFD_PRIVATE] = { "memfd-private", 4 << 20, TP, true, false, true },
	[AREA_TMPFS] = { "tmpfs", 4 << 20, TP, true, true, false },
	[AREA_TMPFS_PRIVATE] = { "tmpfs-private", 4 << 20, TP, true, false, false },
	[AREA_FILE] = { "file", 4 << 20, TP, true, true, false },
	[AREA_FILE_PRIVATE] = { "file-private", 4 << 20, TP, true, false, false },
	[AREA_HUGE_PRIVATE] = { "hugetlb-private", 12 << 20, HUGE, false, false, false },
	[AREA_HUGE_SHARED] = { "hugetlb-shared", 12 << 20, HUGE, true, true, false },
	[AREA_HUGE_FILE_PRIVATE] = { "hugetlb-file-private", 12 << 20, HUGE, true, false, false },
	[AREA_BRK] = { "brk", 4 << 20, TP, false, false, false },
};

struct log_entry {
	uint64_t seq;
	uint32_t op, page, nr, epoch;
	int32_t result;
	uint32_t worker;
};

struct area {
	uint32_t kind;
	uint32_t bypass;     /* 1: operations that a stock kernel can't see are allowed too */
	uint64_t start, end; /* the slot */
	uint64_t unit;
	int fd;              /* of the target, -1: none */
	uint64_t dev, ino;
	pthread_mutex_t lock;
	_Atomic uint32_t log_next;
	struct log_entry log[LOG_RING];
	/* Units punched or zapped since the last link, whose refilling by a read is not to be provoked: the epoch in which. */
	_Atomic uint32_t punched[16 << 8];
};

/* Shared by the target and the checker. */
struct ctl {
	_Atomic uint32_t ready, stop, epoch, park, parked;
	_Atomic uint64_t steps, seq, step_limit;
	uint64_t seed;
	uint32_t nr_areas, nr_workers, nr_writers;
	uint64_t forbidden;  /* operations, by bit */
	uint32_t exact;      /* the tracker counts on the kernel's reports alone, which then must include punched holes */
	_Atomic uint64_t done[64]; /* operations that took effect, by number */
	char dir[256];       /* for files on a disk */
	struct area areas[MAX_AREAS];
};

static inline uint64_t area_units(const struct area *a)
{
	return (a->end - a->start) / a->unit;
}

static inline const struct area_desc *area_desc(const struct area *a)
{
	return &area_descs[a->kind];
}

static inline uint64_t file_bytes(const struct area *a)
{
	return a->end - a->start;
}

/* ---- mappings, read without malloc nor stdio ---------------------------------------------------------------- */

struct vma {
	uint64_t start, end, offset, ino, dev;
	bool read, write, shared;
};

struct vma_list {
	struct vma *v;
	unsigned nr, max;
	char *text;
	size_t text_size;
};

static int vma_list_init(struct vma_list *l)
{
	l->max = 20000;
	l->text_size = 8 << 20;
	l->v = mmap(NULL, l->max * sizeof(*l->v), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	l->text = mmap(NULL, l->text_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return l->v == MAP_FAILED || l->text == MAP_FAILED ? -1 : 0;
}

static uint64_t parse_number(const char **p, unsigned base)
{
	uint64_t x = 0;

	for (;; (*p)++) {
		unsigned c = (unsigned char)**p, d;

		if (c >= '0' && c <= '9')
			d = c - '0';
		else if (c >= 'a' && c <= 'f')
			d = c - 'a' + 10;
		else
			return x;
		if (d >= base)
			return x;
		x = x * base + d;
	}
}

static void parse_vma(const char *p, struct vma *v)
{
	unsigned major, minor;

	v->start = parse_number(&p, 16);
	p++;
	v->end = parse_number(&p, 16);
	p++;
	v->read = p[0] == 'r';
	v->write = p[1] == 'w';
	v->shared = p[3] == 's';
	p += 5;
	v->offset = parse_number(&p, 16);
	p++;
	major = (unsigned)parse_number(&p, 16);
	p++;
	minor = (unsigned)parse_number(&p, 16);
	p++;
	v->dev = makedev(major, minor);
	v->ino = parse_number(&p, 10);
}

/* `path` is /proc/PID/maps. Keeps mappings that touch [from, to). */
static int vma_list_read(struct vma_list *l, const char *path, uint64_t from, uint64_t to)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n;
	char *p, *nl;

	if (fd < 0)
		return -1;
	while (len < l->text_size - 1 && (n = read(fd, l->text + len, l->text_size - 1 - len)) > 0)
		len += (size_t)n;
	close(fd);
	l->text[len] = 0;
	l->nr = 0;
	for (p = l->text; *p && (nl = strchr(p, '\n')); p = nl + 1) {
		struct vma v;

		parse_vma(p, &v);
		if (v.end <= from || v.start >= to)
			continue;
		if (l->nr == l->max)
			return -1;
		l->v[l->nr++] = v;
	}
	return 0;
}

/* ---- setting areas up, in the target ------------------------------------------------------------------------- */

static int area_make_fd(struct area *a, const char *dir)
{
	static _Atomic unsigned serial;
	char path[400];
	int fd;

	switch (a->kind) {
	case AREA_MEMFD:
	case AREA_MEMFD_PRIVATE:
		return memfd_create("torture", MFD_CLOEXEC);
	case AREA_HUGE_SHARED:
	case AREA_HUGE_FILE_PRIVATE:
		return memfd_create("torture-huge", MFD_CLOEXEC | MFD_HUGETLB);
	case AREA_TMPFS:
	case AREA_TMPFS_PRIVATE:
		dir = "/dev/shm";
		break;
	}
	snprintf(path, sizeof(path), "%s/wptrack-torture-%d-%u", dir, (int)getpid(), atomic_fetch_add(&serial, 1));
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd >= 0)
		unlink(path);
	return fd;
}

static int area_map(struct area *a, uint64_t addr, uint64_t len, uint64_t offset, int extra)
{
	int flags = extra | (area_desc(a)->shared ? MAP_SHARED : MAP_PRIVATE);

	if (a->fd < 0)
		flags |= MAP_ANONYMOUS;
	/* Reserved huge pages leak in Linux 6.18 with what is done here (fork and mremap of private ones), also without userfaultfd. */
	if (a->unit == HUGE)
		flags |= MAP_NORESERVE | (a->fd < 0 ? MAP_HUGETLB : 0);
	if (mmap((void *)addr, len, PROT_READ | PROT_WRITE, flags, a->fd, a->fd < 0 ? 0 : (off_t)offset) == MAP_FAILED)
		return -errno;
	if (a->kind == AREA_THP)
		madvise((void *)addr, len, MADV_HUGEPAGE);
	return 0;
}

/* File pages that are there before anything is mapped, so that private mappings have something to fall back to. */
static int area_prefill_file(struct area *a, uint64_t seed)
{
	static _Thread_local uint64_t page[512];
	uint64_t off;

	if (ftruncate(a->fd, (off_t)file_bytes(a)))
		return -errno;
	if (a->unit == HUGE) {
		uint64_t *p = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, a->fd, 0);

		if (p == MAP_FAILED)
			return -errno;
		for (off = 0; off < HUGE / 8; off += 3)
			p[off] = rng(&seed);
		munmap(p, HUGE);
		return 0;
	}
	for (off = 0; off < file_bytes(a); off += TP) {
		if (rng_below(&seed, 3) == 0)
			continue;
		for (unsigned i = 0; i < 512; i++)
			page[i] = rng(&seed);
		if (pwrite(a->fd, page, TP, (off_t)off) != (ssize_t)TP)
			return -errno;
	}
	return 0;
}

static int area_setup_brk(struct area *a)
{
	uint64_t now = (uint64_t)sbrk(0), up = (now + TP - 1) / TP * TP;

	if (sbrk((intptr_t)(up - now)) == (void *)-1)
		return -errno;
	a->start = (uint64_t)sbrk((intptr_t)area_descs[AREA_BRK].bytes);
	if (a->start != up)
		return -ENOMEM;
	a->end = a->start + area_descs[AREA_BRK].bytes;
	return 0;
}

static int area_setup(struct ctl *ctl, unsigned i)
{
	struct area *a = &ctl->areas[i];
	struct stat st;
	int r;

	a->unit = area_desc(a)->unit;
	a->fd = -1;
	a->ino = 0;
	pthread_mutex_init(&a->lock, NULL);
	if (a->kind == AREA_BRK)
		return area_setup_brk(a);
	a->start = SLOT_BASE + i * SLOT_STRIDE;
	a->end = a->start + area_desc(a)->bytes;
	if (area_desc(a)->file) {
		a->fd = area_make_fd(a, ctl->dir);
		if (a->fd < 0)
			return -errno;
		r = area_prefill_file(a, ctl->seed + i);
		if (r)
			return r;
		if (fstat(a->fd, &st))
			return -errno;
		a->dev = st.st_dev;
		a->ino = st.st_ino;
	}
	return area_map(a, a->start, a->end - a->start, 0, MAP_FIXED_NOREPLACE);
}

static void area_teardown(struct area *a)
{
	if (a->kind == AREA_BRK)
		return; /* malloc may have grown the heap behind it */
	munmap((void *)a->start, a->end - a->start);
	if (a->fd >= 0)
		close(a->fd);
	a->fd = -1;
}

#endif
