/* SPDX-License-Identifier: MIT */
/*
 * A radix tree of four levels over 57 bits of address, by 2 MiB chunks. Nodes and chunks are never freed before the ledger is, so
 * readers need no lock. A page's state byte and hash are written by one thread at a time (see ledger.h); the bit sets are atomic.
 */
#include "ledger.h"

#include <stdatomic.h>

#define CHUNK_SHIFT 21
#define LEVEL_BITS 9
#define LEVEL_SIZE (1u << LEVEL_BITS)
#define LEVELS 4
#define TOP_INDEX (1ull << (LEVEL_BITS * LEVELS))
#define SLAB_BYTES ((size_t)4 << 20)
#define WORDS (WPT_CHUNK_PAGES / 64)

#define HEAT_BITS 3

#define STATE_MASK 0x0fu
#define STATE_SAID 0x80u /* by the link in hand */

enum bit_set { SET_DIRTY, SET_TAKEN, SET_COPIED, SET_GONE, SET_STAGED, SET_COWED, SET_PENDING, SET_LOOSE, NR_SETS };

struct node {
	_Atomic(void *) slot[LEVEL_SIZE];
};

struct chunk {
	struct chunk *next;     /* in the list of all */
	uint64_t index;
	atomic_bool said;       /* some page has STATE_SAID */
	atomic_bool taken;      /* some bit of SET_TAKEN, SET_COPIED or SET_GONE is set */
	bool staged;            /* some bit of SET_STAGED is set */
	bool warm;              /* some page has heat */
	_Atomic uint64_t bits[NR_SETS][WORDS];
	uint64_t heat[HEAT_BITS][WORDS]; /* a number per page, by its bits */
	uint8_t state[WPT_CHUNK_PAGES];
	uint32_t slot[WPT_CHUNK_PAGES]; /* of staged pages */
	struct wpt_hash hash[WPT_CHUNK_PAGES];
};

struct slab {
	struct slab *next;
	_Atomic size_t used;
};

struct wpt_ledger {
	struct node root;
	_Atomic(struct slab *) slabs;
	_Atomic(struct chunk *) all;
	_Atomic uint64_t memory;
};

/* Zeroed memory that lives as long as the ledger. Lock-free: whoever loses a race for a new slab gives its own back. */
static void *slab_alloc(struct wpt_ledger *l, size_t size)
{
	struct slab *slab, *fresh;
	size_t at;

	size = WPT_ALIGN_UP(size, 64);
	for (;;) {
		slab = atomic_load_explicit(&l->slabs, memory_order_acquire);
		if (slab) {
			at = atomic_fetch_add_explicit(&slab->used, size, memory_order_relaxed);
			if (at + size <= SLAB_BYTES)
				return (char *)slab + at;
		}
		fresh = wpt_vm_alloc(SLAB_BYTES);
		if (!fresh)
			return NULL;
		fresh->next = slab;
		atomic_init(&fresh->used, WPT_ALIGN_UP(sizeof(*fresh), 64));
		if (atomic_compare_exchange_strong(&l->slabs, &slab, fresh))
			atomic_fetch_add(&l->memory, SLAB_BYTES);
		else
			wpt_vm_free(fresh, SLAB_BYTES);
	}
}

int wpt_ledger_open(struct wpt_ledger **out)
{
	struct wpt_ledger *l = wpt_vm_alloc(sizeof(*l));

	if (!l)
		return -ENOMEM;
	atomic_store(&l->memory, sizeof(*l));
	*out = l;
	return 0;
}

void wpt_ledger_close(struct wpt_ledger *l)
{
	struct slab *slab, *next;

	if (!l)
		return;
	for (slab = atomic_load(&l->slabs); slab; slab = next) {
		next = slab->next;
		wpt_vm_free(slab, SLAB_BYTES);
	}
	wpt_vm_free(l, sizeof(*l));
}

uint64_t wpt_ledger_memory(const struct wpt_ledger *l)
{
	return atomic_load(&l->memory);
}

static unsigned int level_index(uint64_t index, int level)
{
	return (index >> (LEVEL_BITS * (LEVELS - 1 - level))) & (LEVEL_SIZE - 1);
}

/* The first chunk with an index in [*index, end), and its index; NULL if there is none. */
static struct chunk *chunk_from(const struct wpt_ledger *l, uint64_t *index, uint64_t end)
{
	const struct node *node;
	uint64_t span;
	void *p;
	int level;

	end = WPT_MIN(end, TOP_INDEX);
	while (*index < end) {
		node = &l->root;
		for (level = 0;; level++) {
			p = atomic_load_explicit(&node->slot[level_index(*index, level)], memory_order_acquire);
			if (!p || level == LEVELS - 1)
				break;
			node = p;
		}
		if (p)
			return p;
		span = 1ull << (LEVEL_BITS * (LEVELS - 1 - level));
		*index = WPT_ALIGN_DOWN(*index, span) + span;
	}
	return NULL;
}

static struct chunk *chunk_find(const struct wpt_ledger *l, uint64_t addr)
{
	uint64_t index = addr >> CHUNK_SHIFT;

	return chunk_from(l, &index, index + 1);
}

/* A new chunk is in the list of all before it can be found: whatever is in a chunk is seen by commit and rollback. */
static struct chunk *chunk_alloc(struct wpt_ledger *l, uint64_t index)
{
	struct chunk *chunk = slab_alloc(l, sizeof(*chunk));

	if (!chunk)
		return NULL;
	chunk->index = index;
	chunk->next = atomic_load(&l->all);
	while (!atomic_compare_exchange_weak(&l->all, &chunk->next, chunk))
		;
	return chunk;
}

static struct chunk *chunk_get(struct wpt_ledger *l, uint64_t addr)
{
	uint64_t index = addr >> CHUNK_SHIFT;
	struct node *node = &l->root;
	_Atomic(void *) *slot;
	void *p, *fresh;
	int level;

	if (index >= TOP_INDEX)
		return NULL;
	for (level = 0;; level++) {
		slot = &node->slot[level_index(index, level)];
		p = atomic_load_explicit(slot, memory_order_acquire);
		if (!p) {
			fresh = level == LEVELS - 1 ? (void *)chunk_alloc(l, index) : slab_alloc(l, sizeof(struct node));
			if (!fresh)
				return NULL;
			/* Who loses leaves a few unused bytes in the slab. */
			if (atomic_compare_exchange_strong(slot, &p, fresh))
				p = fresh;
		}
		if (level == LEVELS - 1)
			return p;
		node = p;
	}
}

static unsigned int page_in_chunk(uint64_t addr)
{
	return (addr >> WPT_PAGE_SHIFT) & (WPT_CHUNK_PAGES - 1);
}

int wpt_ledger_classify(struct wpt_ledger *l, uint64_t addr, enum wpt_known now, const struct wpt_hash *hash)
{
	unsigned int i = page_in_chunk(addr);
	struct chunk *c;

	c = now == WPT_KNOWN_ZERO ? chunk_find(l, addr) : chunk_get(l, addr);
	if (!c)
		return now == WPT_KNOWN_ZERO ? 1 : -ENOMEM;
	if ((c->state[i] & STATE_MASK) == now && now != WPT_KNOWN_FORCE &&
	    (now != WPT_KNOWN_DATA || memcmp(&c->hash[i], hash, sizeof(*hash)) == 0))
		return 1;
	if (now == WPT_KNOWN_DATA)
		c->hash[i] = *hash;
	c->state[i] = (uint8_t)now | STATE_SAID;
	atomic_store_explicit(&c->said, true, memory_order_relaxed);
	return 0;
}

static bool bit_test(const struct chunk *c, enum bit_set set, unsigned int i)
{
	return atomic_load_explicit(&c->bits[set][i / 64], memory_order_relaxed) >> (i % 64) & 1;
}

static enum wpt_known known_of(const struct chunk *c, unsigned int i)
{
	return c->staged && bit_test(c, SET_STAGED, i) ? WPT_KNOWN_DATA : (enum wpt_known)(c->state[i] & STATE_MASK);
}

enum wpt_known wpt_ledger_known(const struct wpt_ledger *l, uint64_t addr)
{
	const struct chunk *c = chunk_find(l, addr);

	return c ? known_of(c, page_in_chunk(addr)) : WPT_KNOWN_ZERO;
}

int wpt_ledger_load(struct wpt_ledger *l, uint64_t addr, enum wpt_known known, const struct wpt_hash *hash)
{
	unsigned int i = page_in_chunk(addr);
	struct chunk *c = chunk_get(l, addr);

	if (!c)
		return -ENOMEM;
	c->state[i] = (uint8_t)known;
	if (known == WPT_KNOWN_DATA)
		c->hash[i] = *hash;
	return 0;
}

static void clear_set(struct chunk *c, enum bit_set set)
{
	unsigned int i;

	for (i = 0; i < WORDS; i++)
		atomic_store_explicit(&c->bits[set][i], 0, memory_order_relaxed);
}

void wpt_ledger_reset(struct wpt_ledger *l)
{
	struct chunk *c;

	for (c = atomic_load(&l->all); c; c = c->next) {
		memset(c->state, 0, sizeof(c->state));
		atomic_store(&c->said, false);
		memset(c->heat, 0, sizeof(c->heat));
		c->warm = false;
		clear_set(c, SET_LOOSE);
	}
}

uint64_t wpt_ledger_count_taken(const struct wpt_ledger *l)
{
	const struct chunk *c;
	uint64_t nr = 0;
	unsigned int i;

	for (c = atomic_load(&l->all); c; c = c->next)
		for (i = 0; i < WORDS && atomic_load_explicit(&c->taken, memory_order_relaxed); i++)
			nr += (uint64_t)__builtin_popcountll(atomic_load_explicit(&c->bits[SET_TAKEN][i], memory_order_relaxed));
	return nr;
}

uint64_t wpt_ledger_commit(struct wpt_ledger *l)
{
	uint64_t nr = 0;
	struct chunk *c;
	unsigned int i;

	for (c = atomic_load(&l->all); c; c = c->next) {
		if (atomic_exchange(&c->taken, false)) {
			for (i = 0; i < WORDS; i++)
				nr += (uint64_t)__builtin_popcountll(atomic_load(&c->bits[SET_TAKEN][i]) | atomic_load(&c->bits[SET_COPIED][i]));
			clear_set(c, SET_TAKEN);
			clear_set(c, SET_COPIED);
			clear_set(c, SET_GONE);
		}
		if (atomic_exchange(&c->said, false))
			for (i = 0; i < WPT_CHUNK_PAGES; i++)
				c->state[i] &= (uint8_t)~STATE_SAID;
	}
	wpt_ledger_unstage_all(l);
	return nr;
}

void wpt_ledger_rollback(struct wpt_ledger *l)
{
	struct chunk *c;
	unsigned int i;

	for (c = atomic_load(&l->all); c; c = c->next) {
		if (atomic_exchange(&c->said, false))
			for (i = 0; i < WPT_CHUNK_PAGES; i++)
				if (c->state[i] & STATE_SAID) {
					c->state[i] = WPT_KNOWN_FORCE;
					atomic_fetch_or(&c->bits[SET_DIRTY][i / 64], 1ull << (i % 64));
				}
		if (atomic_exchange(&c->taken, false)) {
			for (i = 0; i < WORDS; i++)
				atomic_fetch_or(&c->bits[SET_DIRTY][i], atomic_load(&c->bits[SET_TAKEN][i]) | atomic_load(&c->bits[SET_COPIED][i]));
			clear_set(c, SET_TAKEN);
			clear_set(c, SET_COPIED);
			clear_set(c, SET_GONE);
		}
	}
	wpt_ledger_unstage_all(l);
}

void wpt_ledger_forget(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	enum wpt_known known;
	uint64_t at;

	for (at = start; (at = wpt_ledger_next_nonzero(l, at, end, &known)) < end; at += WPT_PAGE) {
		struct chunk *c = chunk_find(l, at);
		unsigned int i = page_in_chunk(at);

		c->state[i] = (uint8_t)((c->state[i] & STATE_SAID) | WPT_KNOWN_FORCE);
		atomic_fetch_and(&c->bits[SET_COWED][i / 64], ~(1ull << (i % 64)));
	}
}

uint64_t wpt_ledger_next_nonzero(const struct wpt_ledger *l, uint64_t from, uint64_t end, enum wpt_known *known)
{
	uint64_t index, at = from;
	const struct chunk *c;
	unsigned int i;

	while (at < end) {
		index = at >> CHUNK_SHIFT;
		c = chunk_from(l, &index, ((end - 1) >> CHUNK_SHIFT) + 1);
		if (!c)
			return end;
		at = WPT_MAX(at, index << CHUNK_SHIFT);
		for (i = page_in_chunk(at); i < WPT_CHUNK_PAGES && at < end; i++, at += WPT_PAGE)
			if (known_of(c, i) != WPT_KNOWN_ZERO) {
				*known = known_of(c, i);
				return at;
			}
	}
	return end;
}

/* Calls fn for each word of the set that [start, end) touches, with the mask of the bits meant. */
static int for_words(struct wpt_ledger *l, uint64_t start, uint64_t end, bool create,
		     void (*fn)(struct chunk *c, unsigned int word, uint64_t mask))
{
	uint64_t at = start, index, mask;
	unsigned int bit, nr;
	struct chunk *c;

	while (at < end) {
		index = at >> CHUNK_SHIFT;
		c = create ? chunk_get(l, at) : chunk_from(l, &index, ((end - 1) >> CHUNK_SHIFT) + 1);
		if (!c)
			return create ? -ENOMEM : 0;
		at = WPT_MAX(at, index << CHUNK_SHIFT);
		while (at < end && at >> CHUNK_SHIFT == index) {
			bit = page_in_chunk(at) % 64;
			nr = (unsigned int)WPT_MIN(((end - at - 1) >> WPT_PAGE_SHIFT) + 1, 64 - bit);
			mask = (nr == 64 ? ~0ull : (1ull << nr) - 1) << bit;
			fn(c, page_in_chunk(at) / 64, mask);
			at += (uint64_t)nr << WPT_PAGE_SHIFT;
		}
	}
	return 0;
}

static void word_dirty(struct chunk *c, unsigned int word, uint64_t mask)
{
	atomic_fetch_or(&c->bits[SET_DIRTY][word], mask);
}

int wpt_ledger_dirty(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	return for_words(l, start, end, true, word_dirty);
}

static void word_undirty(struct chunk *c, unsigned int word, uint64_t mask)
{
	atomic_fetch_and(&c->bits[SET_DIRTY][word], ~mask);
}

void wpt_ledger_undirty(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	for_words(l, start, end, false, word_undirty);
}

static void word_take(struct chunk *c, unsigned int word, uint64_t mask)
{
	uint64_t bits;

	if (!(atomic_load_explicit(&c->bits[SET_DIRTY][word], memory_order_relaxed) & mask))
		return;
	bits = atomic_fetch_and(&c->bits[SET_DIRTY][word], ~mask) & mask;
	atomic_fetch_or(&c->bits[SET_TAKEN][word], bits);
	atomic_store(&c->taken, true);
}

void wpt_ledger_take(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	for_words(l, start, end, false, word_take);
}

static void word_copied(struct chunk *c, unsigned int word, uint64_t mask)
{
	atomic_fetch_or(&c->bits[SET_COPIED][word], atomic_fetch_and(&c->bits[SET_TAKEN][word], ~mask) & mask);
}

void wpt_ledger_copied(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	for_words(l, start, end, false, word_copied);
}

/* The first page in [from, end) whose bit in the set is `value`, or end. */
static uint64_t next_bit(const struct wpt_ledger *l, enum bit_set set, uint64_t from, uint64_t end, bool value)
{
	uint64_t at = from, index, word;
	const struct chunk *c;
	unsigned int i;

	while (at < end) {
		index = at >> CHUNK_SHIFT;
		c = chunk_from(l, &index, ((end - 1) >> CHUNK_SHIFT) + 1);
		if (!value && (!c || at < index << CHUNK_SHIFT))
			return at;
		if (!c)
			return end;
		at = WPT_MAX(at, index << CHUNK_SHIFT);
		for (i = page_in_chunk(at); i < WPT_CHUNK_PAGES; i = (i / 64 + 1) * 64) {
			word = atomic_load_explicit(&c->bits[set][i / 64], memory_order_relaxed);
			word = (value ? word : ~word) >> (i % 64);
			if (word) {
				at = (index << CHUNK_SHIFT) + ((uint64_t)(i + (unsigned int)__builtin_ctzll(word)) << WPT_PAGE_SHIFT);
				return WPT_MIN(at, end);
			}
		}
		at = (index + 1) << CHUNK_SHIFT;
	}
	return end;
}

static uint64_t next_run(const struct wpt_ledger *l, enum bit_set set, uint64_t from, uint64_t end, uint64_t *run_end)
{
	uint64_t start = next_bit(l, set, from, end, true);

	*run_end = start < end ? next_bit(l, set, start, end, false) : end;
	return start;
}

uint64_t wpt_ledger_next_taken(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end)
{
	return next_run(l, SET_TAKEN, from, end, run_end);
}

uint64_t wpt_ledger_next_dirty(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end)
{
	return next_run(l, SET_DIRTY, from, end, run_end);
}

uint64_t wpt_ledger_next_cowed(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end)
{
	return next_run(l, SET_COWED, from, end, run_end);
}

/* ---- gone ---- */

int wpt_ledger_gone(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	enum wpt_known known;
	struct chunk *c;
	unsigned int i;
	uint64_t at;

	for (at = start; (at = wpt_ledger_next_nonzero(l, at, end, &known)) < end; at += WPT_PAGE) {
		c = chunk_find(l, at);
		i = page_in_chunk(at);
		atomic_fetch_or(&c->bits[SET_GONE][i / 64], 1ull << (i % 64));
		atomic_fetch_or(&c->bits[SET_DIRTY][i / 64], 1ull << (i % 64));
		atomic_store(&c->taken, true);
	}
	return 0;
}

static void word_present(struct chunk *c, unsigned int word, uint64_t mask)
{
	atomic_fetch_and(&c->bits[SET_GONE][word], ~mask);
}

void wpt_ledger_present(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	for_words(l, start, end, false, word_present);
}

uint64_t wpt_ledger_next_gone(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end)
{
	return next_run(l, SET_GONE, from, end, run_end);
}

/* ---- hot ---- */

/* One more for pages that were dirty, two less for those that were not, between 0 and 7; those left alone are as hot as they were. The hottest. */
static uint64_t heat_word(struct chunk *c, unsigned int w, uint64_t dirty, uint64_t loose)
{
	uint64_t a = c->heat[0][w], b = c->heat[1][w], d = c->heat[2][w];
	uint64_t up = dirty & ~loose & ~(a & b & d), down = ~dirty, carry, low;

	carry = up & a;
	a ^= up;
	d ^= carry & b;
	b ^= carry;
	/* Less than two becomes nothing. */
	low = down & ~b & ~d;
	a &= ~low;
	down &= ~low;
	d ^= down & ~b;
	b ^= down;
	c->heat[0][w] = a;
	c->heat[1][w] = b;
	c->heat[2][w] = d;
	c->warm |= (a | b | d) != 0;
	return a & b & d;
}

uint64_t wpt_ledger_heat(struct wpt_ledger *l, uint64_t turn)
{
	uint64_t dirty, loose, nr = 0;
	struct chunk *c;
	unsigned int w;
	bool taken;

	for (c = atomic_load(&l->all); c; c = c->next) {
		taken = atomic_load(&c->taken);
		if (!taken && !c->warm)
			continue;
		c->warm = false;
		for (w = 0; w < WORDS; w++) {
			dirty = taken ? atomic_load(&c->bits[SET_TAKEN][w]) | atomic_load(&c->bits[SET_COPIED][w]) : 0;
			loose = heat_word(c, w, dirty, atomic_load(&c->bits[SET_LOOSE][w]));
			if ((w + c->index * WORDS + turn) % WPT_HOT_TURNS == 0)
				loose = 0;
			atomic_store(&c->bits[SET_LOOSE][w], loose);
			nr += (uint64_t)__builtin_popcountll(loose);
		}
	}
	return nr;
}

uint64_t wpt_ledger_next_loose(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end)
{
	return next_run(l, SET_LOOSE, from, end, run_end);
}

/* ---- staged ---- */

int wpt_ledger_stage(struct wpt_ledger *l, uint64_t addr, uint64_t nr_pages, uint32_t slot)
{
	struct chunk *c;
	unsigned int i;
	uint64_t n;

	for (n = 0; n < nr_pages; n++) {
		c = chunk_get(l, addr + n * WPT_PAGE);
		if (!c)
			return -ENOMEM;
		i = page_in_chunk(addr + n * WPT_PAGE);
		c->staged = true;
		c->slot[i] = slot + (uint32_t)n;
		atomic_fetch_or_explicit(&c->bits[SET_STAGED][i / 64], 1ull << (i % 64), memory_order_relaxed);
	}
	return 0;
}

uint64_t wpt_ledger_next_staged(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint32_t *slot)
{
	uint64_t at = next_bit(l, SET_STAGED, from, end, true);

	if (at < end)
		*slot = chunk_find(l, at)->slot[page_in_chunk(at)];
	return at;
}

void wpt_ledger_unstage(struct wpt_ledger *l, uint64_t addr)
{
	struct chunk *c = chunk_find(l, addr);
	unsigned int i = page_in_chunk(addr);

	if (c)
		atomic_fetch_and(&c->bits[SET_STAGED][i / 64], ~(1ull << (i % 64)));
}

void wpt_ledger_unstage_all(struct wpt_ledger *l)
{
	struct chunk *c;

	for (c = atomic_load(&l->all); c; c = c->next)
		if (c->staged) {
			clear_set(c, SET_STAGED);
			c->staged = false;
		}
}

bool wpt_ledger_cowed(const struct wpt_ledger *l, uint64_t addr)
{
	const struct chunk *c = chunk_find(l, addr);
	unsigned int i = page_in_chunk(addr);

	return c && bit_test(c, SET_COWED, i);
}

static void word_cow(struct chunk *c, unsigned int word, uint64_t mask)
{
	atomic_fetch_or(&c->bits[SET_COWED][word], mask);
}

int wpt_ledger_cow(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	return for_words(l, start, end, true, word_cow);
}

static void word_uncow(struct chunk *c, unsigned int word, uint64_t mask)
{
	atomic_fetch_and(&c->bits[SET_COWED][word], ~mask);
}

void wpt_ledger_uncow(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	for_words(l, start, end, false, word_uncow);
}

static void word_pend(struct chunk *c, unsigned int word, uint64_t mask)
{
	atomic_fetch_or(&c->bits[SET_PENDING][word], mask);
}

int wpt_ledger_pend(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	return for_words(l, start, end, true, word_pend);
}

static void word_unpend(struct chunk *c, unsigned int word, uint64_t mask)
{
	atomic_fetch_and(&c->bits[SET_PENDING][word], ~mask);
}

void wpt_ledger_unpend(struct wpt_ledger *l, uint64_t start, uint64_t end)
{
	for_words(l, start, end, false, word_unpend);
}

uint64_t wpt_ledger_next_pending(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end)
{
	return next_run(l, SET_PENDING, from, end, run_end);
}
