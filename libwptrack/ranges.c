/* SPDX-License-Identifier: MIT */
/*
 * Readers see one immutable set through RCU (liburcu, bp flavour: readers register themselves, so an application's threads need to do nothing).
 * Writers copy it under `lock`, publish the copy, wait for readers and free the old one. Lock order: `lock` is innermost; no callback
 * runs under it.
 */
#include "ranges.h"

#include <pthread.h>
#include <stdlib.h>
#include <urcu-bp.h>

struct wpt_ranges {
	pthread_mutex_t lock;
	struct wpt_range_set *set;
	int last_id;
};

int wpt_ranges_open(struct wpt_ranges **out)
{
	struct wpt_ranges *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->set = calloc(1, sizeof(*r->set));
	if (!r->set) {
		free(r);
		return -ENOMEM;
	}
	pthread_mutex_init(&r->lock, NULL);
	*out = r;
	return 0;
}

void wpt_ranges_close(struct wpt_ranges *r)
{
	if (!r)
		return;
	pthread_mutex_destroy(&r->lock);
	free(r->set);
	free(r);
}

static struct wpt_range_set *set_alloc(size_t nr)
{
	return calloc(1, sizeof(struct wpt_range_set) + nr * sizeof(struct wpt_range_entry));
}

/* Publishes `set`; called with the lock, which it releases before it waits. */
static void publish(struct wpt_ranges *r, struct wpt_range_set *set)
{
	struct wpt_range_set *old = r->set;

	rcu_assign_pointer(r->set, set);
	pthread_mutex_unlock(&r->lock);
	synchronize_rcu();
	free(old);
}

int wpt_ranges_add(struct wpt_ranges *r, uint64_t start, uint64_t end, const char *name)
{
	struct wpt_range_set *old, *set = NULL;
	struct wpt_range_entry *entry;
	size_t at;
	int err = -EEXIST, id;

	pthread_mutex_lock(&r->lock);
	old = r->set;
	if (old->all)
		goto fail;
	for (at = 0; at < old->nr && old->entries[at].end <= start; at++)
		;
	if (at < old->nr && old->entries[at].start < end)
		goto fail;
	err = -ENOMEM;
	set = set_alloc(old->nr + 1);
	if (!set)
		goto fail;
	set->nr = old->nr + 1;
	memcpy(set->entries, old->entries, at * sizeof(*entry));
	memcpy(set->entries + at + 1, old->entries + at, (old->nr - at) * sizeof(*entry));
	entry = &set->entries[at];
	entry->start = start;
	entry->end = end;
	entry->id = id = ++r->last_id;
	if (name)
		memcpy(entry->name, name, strnlen(name, sizeof(entry->name) - 1));
	publish(r, set);
	return id;
fail:
	pthread_mutex_unlock(&r->lock);
	return err;
}

int wpt_ranges_add_all(struct wpt_ranges *r)
{
	struct wpt_range_set *set = set_alloc(0);

	if (!set)
		return -ENOMEM;
	set->all = true;
	pthread_mutex_lock(&r->lock);
	if (r->set->nr || r->set->all) {
		pthread_mutex_unlock(&r->lock);
		free(set);
		return -EEXIST;
	}
	publish(r, set);
	return 0;
}

int wpt_ranges_remove(struct wpt_ranges *r, int id, struct wpt_range_entry *gone)
{
	struct wpt_range_set *old, *set;
	size_t at;

	pthread_mutex_lock(&r->lock);
	old = r->set;
	for (at = 0; at < old->nr && old->entries[at].id != id; at++)
		;
	if (at == old->nr) {
		pthread_mutex_unlock(&r->lock);
		return -WPT_E_NOT_TRACKED;
	}
	set = set_alloc(old->nr - 1);
	if (!set) {
		pthread_mutex_unlock(&r->lock);
		return -ENOMEM;
	}
	*gone = old->entries[at];
	set->nr = old->nr - 1;
	memcpy(set->entries, old->entries, at * sizeof(*gone));
	memcpy(set->entries + at, old->entries + at + 1, (set->nr - at) * sizeof(*gone));
	publish(r, set);
	return 0;
}

const struct wpt_range_set *wpt_ranges_begin(struct wpt_ranges *r)
{
	rcu_read_lock();
	return rcu_dereference(r->set);
}

void wpt_ranges_end(struct wpt_ranges *r)
{
	(void)r;
	rcu_read_unlock();
}
