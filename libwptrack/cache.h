/* SPDX-License-Identifier: MIT */
/*
 * What was read of a chain lately: checked blocks and decompressed frames, up to a bound in bytes.
 *
 * An entry is loaded once, however many threads ask for it, outside the lock. It stays while somebody holds it, beyond the bound if need be;
 * each thread holds at most a few.
 * Threads: any.
 */
#ifndef WPT_CACHE_H
#define WPT_CACHE_H

#include "base.h"

struct wpt_cache;

/* `owner` and `offset` tell entries apart. */
struct wpt_cached {
	void *data;              /* the loader's: from malloc() */
	size_t bytes;            /* the loader's: counted against the bound */
	/* the cache's own */
	uint64_t owner, offset;
	struct wpt_cached *next; /* in the bucket */
	struct wpt_cached *newer, *older;
	unsigned int nr_users;
	bool loading;
	int error;
};

/* Sets e->data and e->bytes, or returns an error and sets neither. */
typedef int wpt_cache_load(void *arg, struct wpt_cached *e);

int wpt_cache_open(struct wpt_cache **out, size_t max_bytes);
/* Nothing is held any more. NULL is accepted. */
void wpt_cache_close(struct wpt_cache *c);

/*
 * A held entry, or the loader's error: to all that waited for it; the next one tries again. Without a loader -ENOENT if it is not there.
 */
int wpt_cache_get(struct wpt_cache *c, uint64_t owner, uint64_t offset, wpt_cache_load *load, void *arg, struct wpt_cached **out);
void wpt_cache_put(struct wpt_cache *c, struct wpt_cached *e);

/* A decompressor to use for a moment; it is kept for the next one. NULL: no memory. */
void *wpt_cache_dctx_get(struct wpt_cache *c);
void wpt_cache_dctx_put(struct wpt_cache *c, void *dctx);

/* The most bytes that were ever held at once. */
size_t wpt_cache_peak(struct wpt_cache *c);

#endif
