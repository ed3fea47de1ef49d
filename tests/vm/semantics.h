/* SPDX-License-Identifier: MIT */
/*
 * The semantics table: what a kernel reports of a protected page after an event, against what happened to the page's content. One cell
 * is one kind of memory, one event, one state that the page was in; it runs in a process of its own. Raw system calls only: the library
 * is not the oracle of the kernel it runs on.
 */
#ifndef WPT_VM_SEMANTICS_H
#define WPT_VM_SEMANTICS_H

#include "uapi.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef UFFD_FEATURE_WP_WRITTEN
#define UFFD_FEATURE_WP_WRITTEN (1 << 30)
#endif
#ifndef UFFDIO_COPY_MODE_WP
#define UFFDIO_COPY_MODE_WP (1 << 1)
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP (1 << 1)
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif
#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

struct sem_uffdio_move {
	__u64 dst, src, len, mode;
	__s64 move;
};
struct sem_uffdio_poison {
	__u64 start, len, mode;
	__s64 updated;
};
#define SEM_UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct sem_uffdio_move)
#define SEM_UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct sem_uffdio_poison)

#define PG 4096UL
#define HPG (2UL << 20)
#define PER_HUGE (HPG / PG)
#define MAX_PAGES 4096

enum kind_flag {
	K_FILE = 1,   /* what was not written through the mapping is in a file */
	K_SHARED = 2, /* and what was written as well */
	K_HUGETLB = 4,
	K_THP = 8,
	K_PMD = 16,   /* the subject is a whole huge page, not one page of it */
	K_DISK = 32,  /* the file is not in memory */
	K_SMALL = 64, /* aligned and large enough for a huge page, but of small pages: for what makes huge ones */
};

struct kind {
	const char *name;
	unsigned flags;
};

enum state { ST_NONE, ST_HOLE, ST_READ, ST_CLEAN, ST_WRITTEN, ST_OUT_CLEAN, ST_OUT_WRITTEN, ST_ZAP_CLEAN, ST_ZAP_WRITTEN, NR_STATES };
#define S(x) (1U << ST_##x)
#define S_ALL (S(NONE) | S(HOLE) | S(READ) | S(CLEAN) | S(WRITTEN) | S(OUT_CLEAN) | S(OUT_WRITTEN) | S(ZAP_CLEAN) | S(ZAP_WRITTEN))

enum event_flag {
	E_MISSING = 1, /* registered for missing pages as well */
	E_MINOR = 2,   /* registered for minor faults as well */
	E_MOVE = 4,
	E_REMAP = 8,   /* with UFFD_FEATURE_EVENT_REMAP: the new place stays registered */
	E_TWIN = 16,   /* the page after the subject has the subject's content */
	E_SYNC = 128, /* not WP_ASYNC: a write waits for a thread of the cell to resolve it */
	E_ALONE = 64,  /* nothing else is mapped: no page table but what protecting makes */
	E_SYSTEM = 32, /* changes settings or pages of the machine: only with --system */
};

struct cell;
struct event {
	const char *name;
	unsigned states;
	unsigned flags;
	bool (*fits)(const struct kind *k);
	void (*run)(struct cell *c);
};

enum way { BY_PROTECT, BY_SCAN, NR_WAYS };

struct cell {
	const struct kind *kind;
	const struct event *event;
	enum state state;
	enum way way;
	char *map;
	size_t size;   /* bytes */
	size_t unit;   /* the smallest piece an event can be about, bytes */
	size_t s0, s1; /* the subject, pages */
	size_t step;   /* of hugetlb only every step-th page has content that is looked at */
	int fd, uffd, pagemap;
	uint64_t features;
	unsigned char *before; /* what the mapping showed when it was protected */
	unsigned char *now;    /* what it has to show */
	unsigned char *file;   /* what the file holds */
	unsigned char *seen;
	bool cow[MAX_PAGES]; /* private file: the page is the mapping's own */
	bool unreadable;     /* the event makes it so */
	size_t messages;     /* E_SYNC: write faults that were resolved */
	char faults[160];    /* what did not agree, in the order found */
	int result;	     /* pipe to the parent */
};

struct options {
	bool written; /* the kernel has the feature, and it is asked for */
	bool has_written;
	bool system;
	bool verbose;
	int disk; /* directory on a disk file system, or -1 */
	int huge; /* root of a tmpfs with huge=advise, or -1 */
};
extern struct options opt;

extern const struct kind kinds[];
extern const size_t nr_kinds;
extern const char *const state_name[NR_STATES];
extern const struct event events[];
extern const size_t nr_events;

/* semantics_cell.c */
bool cell_exists(const struct kind *k, const struct event *e, enum state s);
_Noreturn void cell_run(struct cell *c);
_Noreturn void cell_na(struct cell *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void cell_error(struct cell *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void cell_refused(struct cell *c);
void cell_fault(struct cell *c, const char *what);

static inline char *sub(struct cell *c)
{
	return c->map + c->s0 * PG;
}
static inline size_t sub_len(struct cell *c)
{
	return (c->s1 - c->s0) * PG;
}

/* What the events are made of: each does it and keeps the account of what the mapping has to show. Pages, half-open. */
void fill(unsigned char *dst, size_t page, unsigned gen);
void put(struct cell *c, size_t p0, size_t p1, unsigned gen);	   /* write through the mapping */
void wrote(struct cell *c, size_t p0, size_t p1, unsigned gen);	   /* the same, done by somebody else */
void file_put(struct cell *c, size_t p0, size_t p1, unsigned gen); /* the file changed: gen 0 is zeros */
void touch(struct cell *c, size_t p0, size_t p1);		   /* read through the mapping */
void zapped(struct cell *c, size_t p0, size_t p1);		   /* account only: private pages are gone */
void snap(struct cell *c, size_t p0, size_t p1);		   /* account only: from here on changes count */
void advise(struct cell *c, void *at, size_t len, int advice);
bool pageout(struct cell *c, char *at, size_t len);
void protect(struct cell *c, char *at, size_t len);
void resolve(struct cell *c, char *at, size_t len);
void uffd_register(struct cell *c, char *at, size_t len);
uint64_t pagemap_entry(struct cell *c, const char *at);
int scan(struct cell *c, char *at, size_t len, uint64_t flags, uint64_t mask, uint64_t ret, uint8_t *out);
char *map_aligned(struct cell *c, size_t len, int flags, int fd);

#endif
