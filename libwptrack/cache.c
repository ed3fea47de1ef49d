/* SPDX-License-Identifier: MIT */
#include "cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <zstd.h>

#define NR_BUCKETS 1024u
#define NR_DCTX 8u

struct wpt_cache {
	pthread_mutex_t lock;          /* everything below, and the cache's own part of entries */
	pthread_cond_t loaded;
	struct wpt_cached *buckets[NR_BUCKETS];
	struct wpt_cached *newest, *oldest;
	size_t bytes, peak, max_bytes;
	ZSTD_DCtx *dctx[NR_DCTX];      /* idle ones */
	unsigned int nr_dctx;
};

int wpt_cache_open(struct wpt_cache **out, size_t max_bytes)
{
	struct wpt_cache *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->loaded, NULL);
	c->max_bytes = max_bytes;
	*out = c;
	return 0;
}

static void entry_free(struct wpt_cached *e)
{
	free(e->data);
	free(e);
}

void wpt_cache_close(struct wpt_cache *c)
{
	struct wpt_cached *e;

	if (!c)
		return;
	while ((e = c->newest)) {
		c->newest = e->older;
		entry_free(e);
	}
	while (c->nr_dctx)
		ZSTD_freeDCtx(c->dctx[--c->nr_dctx]);
	pthread_cond_destroy(&c->loaded);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

static struct wpt_cached **bucket(struct wpt_cache *c, uint64_t owner, uint64_t offset)
{
	uint64_t h = (owner * 0x9e3779b97f4a7c15u) ^ (offset * 0xc2b2ae3d27d4eb4fu);

	return &c->buckets[(h >> 32) % NR_BUCKETS];
}

static void list_remove(struct wpt_cache *c, struct wpt_cached *e)
{
	*(e->newer ? &e->newer->older : &c->newest) = e->older;
	*(e->older ? &e->older->newer : &c->oldest) = e->newer;
}

static void list_add(struct wpt_cache *c, struct wpt_cached *e)
{
	e->newer = NULL;
	e->older = c->newest;
	*(c->newest ? &c->newest->newer : &c->oldest) = e;
	c->newest = e;
}

static void entry_remove(struct wpt_cache *c, struct wpt_cached *e)
{
	struct wpt_cached **p = bucket(c, e->owner, e->offset);

	while (*p != e)
		p = &(*p)->next;
	*p = e->next;
	list_remove(c, e);
	c->bytes -= e->bytes;
	entry_free(e);
}

static void make_room(struct wpt_cache *c)
{
	struct wpt_cached *e, *newer;

	for (e = c->oldest; e && c->bytes > c->max_bytes; e = newer) {
		newer = e->newer;
		if (!e->nr_users)
			entry_remove(c, e);
	}
}

/* Drops one hold; a failed entry goes with its last one. */
static void put_locked(struct wpt_cache *c, struct wpt_cached *e)
{
	if (--e->nr_users == 0 && e->error)
		entry_remove(c, e);
	else
		make_room(c);
}

void wpt_cache_put(struct wpt_cache *c, struct wpt_cached *e)
{
	if (!e)
		return;
	pthread_mutex_lock(&c->lock);
	put_locked(c, e);
	pthread_mutex_unlock(&c->lock);
}

static struct wpt_cached *entry_new(struct wpt_cache *c, uint64_t owner, uint64_t offset)
{
	struct wpt_cached **p = bucket(c, owner, offset), *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->owner = owner;
	e->offset = offset;
	e->loading = true;
	e->next = *p;
	*p = e;
	list_add(c, e);
	return e;
}

/* Loads without the lock, which is held before and after. */
static void entry_load(struct wpt_cache *c, struct wpt_cached *e, wpt_cache_load *load, void *arg)
{
	struct wpt_cached result = { .data = NULL, .bytes = 0 };
	int rc;

	pthread_mutex_unlock(&c->lock);
	rc = load(arg, &result);
	pthread_mutex_lock(&c->lock);
	e->loading = false;
	e->error = rc;
	if (!rc) {
		e->data = result.data;
		e->bytes = result.bytes;
		c->bytes += e->bytes;
		make_room(c);
		c->peak = WPT_MAX(c->peak, c->bytes);
	}
	pthread_cond_broadcast(&c->loaded);
}

int wpt_cache_get(struct wpt_cache *c, uint64_t owner, uint64_t offset, wpt_cache_load *load, void *arg, struct wpt_cached **out)
{
	struct wpt_cached *e;
	int rc;

	pthread_mutex_lock(&c->lock);
	/* One that failed serves those that waited; a newcomer tries again. */
	for (e = *bucket(c, owner, offset); e; e = e->next)
		if (e->owner == owner && e->offset == offset && !e->error)
			break;
	if (e) {
		e->nr_users++;
		list_remove(c, e);
		list_add(c, e);
		while (e->loading)
			pthread_cond_wait(&c->loaded, &c->lock);
	} else {
		e = load ? entry_new(c, owner, offset) : NULL;
		if (!e) {
			pthread_mutex_unlock(&c->lock);
			return load ? -ENOMEM : -ENOENT;
		}
		e->nr_users = 1;
		entry_load(c, e, load, arg);
	}
	rc = e->error;
	if (rc)
		put_locked(c, e);
	else
		*out = e;
	pthread_mutex_unlock(&c->lock);
	return rc;
}

void *wpt_cache_dctx_get(struct wpt_cache *c)
{
	ZSTD_DCtx *d = NULL;

	pthread_mutex_lock(&c->lock);
	if (c->nr_dctx)
		d = c->dctx[--c->nr_dctx];
	pthread_mutex_unlock(&c->lock);
	return d ? d : ZSTD_createDCtx();
}

void wpt_cache_dctx_put(struct wpt_cache *c, void *dctx)
{
	pthread_mutex_lock(&c->lock);
	if (c->nr_dctx < NR_DCTX) {
		c->dctx[c->nr_dctx++] = dctx;
		dctx = NULL;
	}
	pthread_mutex_unlock(&c->lock);
	ZSTD_freeDCtx(dctx);
}

size_t wpt_cache_peak(struct wpt_cache *c)
{
	size_t peak;

	pthread_mutex_lock(&c->lock);
	peak = c->peak;
	pthread_mutex_unlock(&c->lock);
	return peak;
}
