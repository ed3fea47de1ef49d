/* SPDX-License-Identifier: MIT */
/*
 * `seen` is read and written without a lock: a lost entry costs a duplicate that is not found, nothing else. Kept pages are in
 * sets of a few, one lock for many sets.
 */
#include "layer_dedup.h"

#include <pthread.h>

#define PAGE_BYTES 4096u
#define SEEN (1u << 18)   /* entries of 4 bytes */
#define WAYS 4u
#define SETS 1024u        /* WAYS * SETS pages: 16 MiB */
#define LOCKS 32u

struct entry {
	uint8_t hash[16];
	uint64_t frame;
	uint32_t slot;
	bool used;
};

struct wpt_layer_dedup {
	uint32_t seen[SEEN];
	pthread_mutex_t locks[LOCKS];
	uint32_t victim[SETS];
	struct entry entries[SETS][WAYS];
	uint8_t pages[SETS][WAYS][PAGE_BYTES];
};

int wpt_layer_dedup_open(struct wpt_layer_dedup **out)
{
	struct wpt_layer_dedup *d = wpt_vm_alloc(sizeof(*d));

	if (!d)
		return -ENOMEM;
	for (unsigned int i = 0; i < LOCKS; i++)
		pthread_mutex_init(&d->locks[i], NULL);
	*out = d;
	return 0;
}

void wpt_layer_dedup_close(struct wpt_layer_dedup *d)
{
	wpt_vm_free(d, sizeof(*d));
}

static bool seen_before(struct wpt_layer_dedup *d, const uint8_t hash[16])
{
	uint32_t tag, index;

	memcpy(&tag, hash + 4, 4);
	memcpy(&index, hash + 8, 4);
	index %= SEEN;
	if (__atomic_load_n(&d->seen[index], __ATOMIC_RELAXED) == tag)
		return true;
	__atomic_store_n(&d->seen[index], tag, __ATOMIC_RELAXED);
	return false;
}

/* Under the set's lock. */
static bool set_find(struct wpt_layer_dedup *d, uint32_t set, const void *page, const uint8_t hash[16], uint64_t oldest,
		     struct wpt_layer_place *place)
{
	struct entry *e;
	uint32_t way = WAYS;

	for (uint32_t i = 0; i < WAYS; i++) {
		e = &d->entries[set][i];
		if (!e->used || memcmp(e->hash, hash, 16) != 0)
			continue;
		/* A frame that follows ours in the file may never be referred to: it is not written when our record is. */
		if (e->frame <= place->frame && e->frame >= oldest && memcmp(d->pages[set][i], page, PAGE_BYTES) == 0) {
			place->frame = e->frame;
			place->slot = e->slot;
			return true;
		}
		way = i;
	}
	if (way == WAYS)
		way = d->victim[set]++ % WAYS;
	e = &d->entries[set][way];
	memcpy(e->hash, hash, 16);
	memcpy(d->pages[set][way], page, PAGE_BYTES);
	e->frame = place->frame;
	e->slot = place->slot;
	e->used = true;
	return false;
}

bool wpt_layer_dedup_find(struct wpt_layer_dedup *d, const void *page, const uint8_t hash[16], uint64_t oldest,
			  struct wpt_layer_place *place)
{
	uint32_t set;
	bool found;

	if (!seen_before(d, hash))
		return false;
	set = (hash[0] | (uint32_t)hash[1] << 8) % SETS;
	pthread_mutex_lock(&d->locks[set % LOCKS]);
	found = set_find(d, set, page, hash, oldest, place);
	pthread_mutex_unlock(&d->locks[set % LOCKS]);
	return found;
}
