/* SPDX-License-Identifier: MIT */
/* The ledger against a plain model: an array of states and bits for a few chunks that lie far apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <pthread.h>

#include "ledger.h"

#define NR_ISLANDS 4
#define ISLAND_PAGES (3 * WPT_CHUNK_PAGES)

static const uint64_t islands[NR_ISLANDS] = { 0, 0x7f1234600000, 0x7f1234600000 + ISLAND_PAGES * 4096ull, 0x1fffffffc00000 };

struct model_page {
	uint8_t known;
	struct wpt_hash hash;
	bool said, dirty, taken, cowed;
};

struct model {
	struct wpt_ledger *l;
	struct model_page pages[NR_ISLANDS][ISLAND_PAGES];
	uint64_t seed;
};

static uint64_t next_random(struct model *m)
{
	m->seed ^= m->seed << 13;
	m->seed ^= m->seed >> 7;
	m->seed ^= m->seed << 17;
	return m->seed;
}

static uint64_t addr_of(unsigned int island, unsigned int page)
{
	return islands[island] + (uint64_t)page * WPT_PAGE;
}

static void random_run(struct model *m, unsigned int *island, unsigned int *from, unsigned int *to)
{
	*island = (unsigned int)(next_random(m) % NR_ISLANDS);
	*from = (unsigned int)(next_random(m) % ISLAND_PAGES);
	*to = *from + 1 + (unsigned int)(next_random(m) % (next_random(m) % 4 ? 4 : 700));
	if (*to > ISLAND_PAGES)
		*to = ISLAND_PAGES;
}

static void step_classify(struct model *m, unsigned int island, unsigned int i)
{
	struct model_page *p = &m->pages[island][i];
	enum wpt_known now = (enum wpt_known)(next_random(m) % 5);
	struct wpt_hash hash = { { (uint8_t)(next_random(m) % 3) } };
	bool same = p->known == now && now != WPT_KNOWN_FORCE &&
		    (now != WPT_KNOWN_DATA || memcmp(&p->hash, &hash, sizeof(hash)) == 0);

	assert_int_equal(wpt_ledger_classify(m->l, addr_of(island, i), now, &hash), same);
	if (same)
		return;
	p->known = (uint8_t)now;
	if (now == WPT_KNOWN_DATA)
		p->hash = hash;
	p->said = true;
}

static void end_link(struct model *m, bool durable)
{
	unsigned int k, i;

	for (k = 0; k < NR_ISLANDS; k++)
		for (i = 0; i < ISLAND_PAGES; i++) {
			struct model_page *p = &m->pages[k][i];

			if (!durable && p->said) {
				p->known = WPT_KNOWN_FORCE;
				p->dirty = true;
			}
			p->dirty |= !durable && p->taken;
			p->said = p->taken = false;
		}
	if (durable)
		wpt_ledger_commit(m->l);
	else
		wpt_ledger_rollback(m->l);
}

static void step(struct model *m)
{
	unsigned int island, from, to, i;
	uint64_t start, end;
	bool cowed;

	random_run(m, &island, &from, &to);
	start = addr_of(island, from);
	end = addr_of(island, to);
	switch (next_random(m) % 10) {
	case 0:
		assert_int_equal(wpt_ledger_dirty(m->l, start, end), 0);
		for (i = from; i < to; i++)
			m->pages[island][i].dirty = true;
		break;
	case 1:
		wpt_ledger_take(m->l, start, end);
		for (i = from; i < to; i++) {
			m->pages[island][i].taken |= m->pages[island][i].dirty;
			m->pages[island][i].dirty = false;
		}
		break;
	case 2:
		wpt_ledger_undirty(m->l, start, end);
		for (i = from; i < to; i++)
			m->pages[island][i].dirty = false;
		break;
	case 3:
		cowed = next_random(m) & 1;
		if (cowed)
			assert_int_equal(wpt_ledger_cow(m->l, start, end), 0);
		else
			wpt_ledger_uncow(m->l, start, end);
		for (i = from; i < to; i++)
			m->pages[island][i].cowed = cowed;
		break;
	case 4:
		wpt_ledger_forget(m->l, start, end);
		for (i = from; i < to; i++)
			if (m->pages[island][i].known != WPT_KNOWN_ZERO) {
				m->pages[island][i].known = WPT_KNOWN_FORCE;
				m->pages[island][i].cowed = false;
			}
		break;
	case 5:
		if (next_random(m) % 8 == 0)
			end_link(m, next_random(m) & 1);
		break;
	default:
		for (i = from; i < to; i++)
			step_classify(m, island, i);
	}
}

/* Runs that the ledger reports between two addresses, against the model's bits. */
static void check_runs(struct model *m, uint64_t (*next)(const struct wpt_ledger *, uint64_t, uint64_t, uint64_t *), size_t bit)
{
	uint64_t at, run_end = 0, end;
	unsigned int k, i;

	for (k = 0; k < NR_ISLANDS; k++) {
		end = addr_of(k, ISLAND_PAGES);
		at = next(m->l, islands[k], end, &run_end);
		for (i = 0; i < ISLAND_PAGES; i++) {
			uint64_t addr = addr_of(k, i);

			if (addr >= run_end)
				at = next(m->l, addr, end, &run_end);
			assert_int_equal(addr >= at && addr < run_end, *((const bool *)&m->pages[k][i] + bit));
		}
	}
}

#define BIT(field) offsetof(struct model_page, field)

static void check(struct model *m)
{
	enum wpt_known known;
	unsigned int k, i;

	for (k = 0; k < NR_ISLANDS; k++)
		for (i = 0; i < ISLAND_PAGES; i++) {
			assert_int_equal(wpt_ledger_known(m->l, addr_of(k, i)), m->pages[k][i].known);
			assert_int_equal(wpt_ledger_cowed(m->l, addr_of(k, i)), m->pages[k][i].cowed);
			if (wpt_ledger_next_nonzero(m->l, addr_of(k, i), addr_of(k, i + 1), &known) == addr_of(k, i))
				assert_int_equal(known, m->pages[k][i].known);
			else
				assert_int_equal(m->pages[k][i].known, WPT_KNOWN_ZERO);
		}
	check_runs(m, wpt_ledger_next_dirty, BIT(dirty));
	check_runs(m, wpt_ledger_next_taken, BIT(taken));
	check_runs(m, wpt_ledger_next_cowed, BIT(cowed));
}

static void agrees_with_a_model(void **state)
{
	const char *seed = getenv("WPT_SEED");
	struct model *m = calloc(1, sizeof(*m));
	int i;

	(void)state;
	assert_non_null(m);
	m->seed = seed ? strtoull(seed, NULL, 0) : 0x9e3779b97f4a7c15;
	print_message("# WPT_SEED=%#llx\n", (unsigned long long)m->seed);
	assert_int_equal(wpt_ledger_open(&m->l), 0);
	for (i = 0; i < 20000; i++) {
		step(m);
		if (i % 500 == 0)
			check(m);
	}
	check(m);
	wpt_ledger_close(m->l);
	free(m);
}

static void walking_a_sparse_tebibyte_is_quick_and_takes_no_memory(void **state)
{
	uint64_t tib = 1ull << 40, run_end, before;
	enum wpt_known known;
	struct wpt_ledger *l;
	int i;

	(void)state;
	assert_int_equal(wpt_ledger_open(&l), 0);
	assert_int_equal(wpt_ledger_dirty(l, tib - WPT_PAGE, tib), 0);
	before = wpt_ledger_memory(l);
	for (i = 0; i < 1000; i++) {
		assert_true(wpt_ledger_next_nonzero(l, 0, tib, &known) == tib);
		assert_true(wpt_ledger_next_dirty(l, 0, tib, &run_end) == tib - WPT_PAGE);
		assert_true(run_end == tib);
		wpt_ledger_forget(l, 0, tib);
		wpt_ledger_undirty(l, 0, tib / 2);
	}
	assert_int_equal(wpt_ledger_memory(l), before);
	wpt_ledger_close(l);
}

struct marker {
	struct wpt_ledger *l;
	uint64_t first;
};

#define NR_MARKERS 4
#define NR_MARKS 20000u

static void *mark(void *arg)
{
	struct marker *m = arg;
	uint64_t i;

	for (i = 0; i < NR_MARKS; i++)
		if (wpt_ledger_dirty(m->l, (m->first + i * NR_MARKERS) * WPT_PAGE, (m->first + i * NR_MARKERS + 1) * WPT_PAGE) != 0)
			return (void *)1;
	return NULL;
}

/* While links take and commit, no mark may be lost: each page is either still dirty or was seen taken. */
static void no_mark_of_another_thread_is_lost(void **state)
{
	uint64_t end = (uint64_t)NR_MARKS * NR_MARKERS * WPT_PAGE, at, run_end, seen = 0;
	struct marker markers[NR_MARKERS];
	pthread_t threads[NR_MARKERS];
	struct wpt_ledger *l;
	int i, round;
	void *failed;

	(void)state;
	assert_int_equal(wpt_ledger_open(&l), 0);
	for (i = 0; i < NR_MARKERS; i++) {
		markers[i] = (struct marker){ l, (uint64_t)i };
		assert_int_equal(pthread_create(&threads[i], NULL, mark, &markers[i]), 0);
	}
	for (round = 0; round < 201; round++) {
		if (round == 200)
			for (i = 0; i < NR_MARKERS; i++) {
				pthread_join(threads[i], &failed);
				assert_null(failed);
			}
		wpt_ledger_take(l, 0, end);
		for (at = 0; (at = wpt_ledger_next_taken(l, at, end, &run_end)) < end; at = run_end)
			seen += (run_end - at) / WPT_PAGE;
		wpt_ledger_commit(l);
	}
	assert_int_equal(seen, NR_MARKS * NR_MARKERS);
	wpt_ledger_close(l);
}

static void pending_pages_are_claimed_run_by_run(void **state)
{
	struct wpt_ledger *l = NULL;
	uint64_t run_end;

	(void)state;
	assert_int_equal(wpt_ledger_open(&l), 0);
	assert_int_equal(wpt_ledger_next_pending(l, 0, UINT64_MAX, &run_end), UINT64_MAX);
	/* Over the end of a chunk. */
	assert_int_equal(wpt_ledger_pend(l, 500 * WPT_PAGE, 530 * WPT_PAGE), 0);
	assert_int_equal(wpt_ledger_next_pending(l, 0, UINT64_MAX, &run_end), 500 * WPT_PAGE);
	assert_int_equal(run_end, 530 * WPT_PAGE);
	wpt_ledger_unpend(l, 510 * WPT_PAGE, 511 * WPT_PAGE);
	assert_int_equal(wpt_ledger_next_pending(l, 505 * WPT_PAGE, 600 * WPT_PAGE, &run_end), 505 * WPT_PAGE);
	assert_int_equal(run_end, 510 * WPT_PAGE);
	assert_int_equal(wpt_ledger_next_pending(l, run_end, 600 * WPT_PAGE, &run_end), 511 * WPT_PAGE);
	/* They are neither dirty nor taken, and no rollback brings them back. */
	wpt_ledger_rollback(l);
	assert_int_equal(wpt_ledger_next_dirty(l, 0, UINT64_MAX, &run_end), UINT64_MAX);
	wpt_ledger_unpend(l, 0, UINT64_MAX);
	assert_int_equal(wpt_ledger_next_pending(l, 0, UINT64_MAX, &run_end), UINT64_MAX);
	wpt_ledger_close(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(agrees_with_a_model),
		cmocka_unit_test(walking_a_sparse_tebibyte_is_quick_and_takes_no_memory),
		cmocka_unit_test(no_mark_of_another_thread_is_lost),
		cmocka_unit_test(pending_pages_are_claimed_run_by_run),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
