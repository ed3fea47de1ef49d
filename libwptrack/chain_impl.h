/* SPDX-License-Identifier: MIT */
/* The inside of a chain, shared by chain.c, walker.c, view.c and merge.c only. */
#ifndef WPT_CHAIN_IMPL_H
#define WPT_CHAIN_IMPL_H

#include "cache.h"
#include "chain.h"
#include "pool.h"
#include "reader.h"

#include <pthread.h>

#define WPT_IDLE_WALKERS 4u

struct wpt_listed_range {
	uint64_t start, end;
	uint32_t kind, reason;
	char *name;
};

/* Ascending, disjoint. */
struct wpt_range_list {
	uint32_t nr;
	struct wpt_listed_range ranges[];
};

/* What a link covers, as far as its children need to know: ranges that touch are one. */
struct wpt_span {
	uint64_t start, end;
};
struct wpt_spans {
	uint32_t nr;
	struct wpt_span spans[];
};

struct wpt_chain_link {
	struct wpt_reader *reader;
	struct wpt_spans *spans;        /* its own, or an older link's */
	bool owns_spans;
	const char *name;               /* the pool's */
};

struct wpt_chain {
	struct wpt_pool *pool;
	struct wpt_cache *cache;
	struct wpt_chain_link *links;   /* 0 the oldest */
	uint32_t nr_links;
	struct wpt_range_list *ranges;  /* at the last link */
	uint64_t end_offset;            /* of the last good link in a file */
	uint64_t torn_bytes;            /* behind it */
	uint32_t nr_threads;            /* 0: not set */
	/* Walkers of reads that are over: the next read often begins where one ended. */
	pthread_mutex_t idle_lock;
	struct wpt_walker *idle[WPT_IDLE_WALKERS];
	int file_error;                 /* something in the file is no good that the chain does not need */
};

/* As open and close, but what one walker knows of the links is used by the next. Any thread. */
int wpt_walker_take(struct wpt_walker **out, struct wpt_chain *c, uint64_t start, uint64_t end);
void wpt_walker_give(struct wpt_walker *w);

/* All of a section into memory from malloc(), with room for one byte more. */
int wpt_section_load(struct wpt_reader *r, const struct wpt_fmt_section *s, size_t max, void **data, size_t *len);

/* It belongs to the memory of its own link: with what a later link shows it would be of another moment. */
static inline bool wpt_section_is_of_instant(uint32_t type)
{
	return type == WPT_SECTION_REGISTERS || type == WPT_SECTION_DEVICE;
}

#endif
