/* SPDX-License-Identifier: MIT */
/* The cache of blocks and frames: a bound that holds, one load however many ask, and errors that are not kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <pthread.h>

#include "cache.h"

#define BOUND 10000u

struct load {
	unsigned int nr;
	uint64_t value;
	size_t bytes;
	int error;
	pthread_mutex_t lock;
};

static int load(void *arg, struct wpt_cached *e)
{
	struct load *l = arg;

	pthread_mutex_lock(&l->lock);
	l->nr++;
	pthread_mutex_unlock(&l->lock);
	if (l->error)
		return l->error;
	e->data = malloc(sizeof(l->value));
	memcpy(e->data, &l->value, sizeof(l->value));
	e->bytes = l->bytes;
	return 0;
}

static uint64_t get(struct wpt_cache *c, uint64_t owner, uint64_t offset, struct load *l, struct wpt_cached **held)
{
	struct wpt_cached *e;
	uint64_t value;

	l->value = owner * 1000003 + offset;
	assert_int_equal(wpt_cache_get(c, owner, offset, load, l, &e), 0);
	memcpy(&value, e->data, sizeof(value));
	if (held)
		*held = e;
	else
		wpt_cache_put(c, e);
	return value;
}

static void the_bound_holds_and_the_latest_stay(void **state)
{
	struct load l = { .bytes = 100, .lock = PTHREAD_MUTEX_INITIALIZER };
	struct wpt_cache *c;
	uint64_t i;

	(void)state;
	assert_int_equal(wpt_cache_open(&c, BOUND), 0);
	for (i = 0; i < 5000; i++) {
		assert_true(get(c, i % 7, i, &l, NULL) == i % 7 * 1000003 + i);
		/* One that is used all the time stays. */
		l.nr = 0;
		get(c, 99, 99, &l, NULL);
		assert_true(i == 0 || l.nr == 0);
	}
	assert_true(wpt_cache_peak(c) <= BOUND + 100);
	l.nr = 0;
	for (i = 4950; i < 5000; i++)
		get(c, i % 7, i, &l, NULL);
	assert_int_equal(l.nr, 0);
	get(c, 0, 0, &l, NULL);
	assert_int_equal(l.nr, 1);
	wpt_cache_close(c);
}

static void what_is_held_stays(void **state)
{
	struct load l = { .bytes = BOUND / 2, .lock = PTHREAD_MUTEX_INITIALIZER };
	struct wpt_cached *held[8];
	struct wpt_cache *c;
	uint64_t i, value;

	(void)state;
	assert_int_equal(wpt_cache_open(&c, BOUND), 0);
	for (i = 0; i < 8; i++)
		get(c, 1, i, &l, &held[i]);
	for (i = 0; i < 8; i++) {
		memcpy(&value, held[i]->data, sizeof(value));
		assert_true(value == 1000003 + i);
	}
	for (i = 0; i < 8; i++)
		wpt_cache_put(c, held[i]);
	l.nr = 0;
	for (i = 0; i < 8; i++)
		get(c, 1, i, &l, NULL);
	assert_true(l.nr >= 6);
	wpt_cache_close(c);
}

/* Many owners with entries at the same offsets share buckets. */
static void owners_are_told_apart(void **state)
{
	struct load l = { .bytes = 1, .lock = PTHREAD_MUTEX_INITIALIZER };
	struct wpt_cache *c;
	uint64_t owner;
	int round;

	(void)state;
	assert_int_equal(wpt_cache_open(&c, BOUND * 10), 0);
	for (round = 0; round < 2; round++)
		for (owner = 0; owner < 20000; owner++)
			assert_true(get(c, owner, 4096, &l, NULL) == owner * 1000003 + 4096);
	assert_int_equal(l.nr, 20000);
	wpt_cache_close(c);
}

static void an_error_is_not_kept(void **state)
{
	struct load l = { .bytes = 1, .error = -EIO, .lock = PTHREAD_MUTEX_INITIALIZER };
	struct wpt_cached *e = NULL;
	struct wpt_cache *c;

	(void)state;
	assert_int_equal(wpt_cache_open(&c, BOUND), 0);
	assert_int_equal(wpt_cache_get(c, 1, 2, load, &l, &e), -EIO);
	assert_int_equal(wpt_cache_get(c, 1, 2, load, &l, &e), -EIO);
	assert_null(e);
	assert_int_equal(l.nr, 2);
	l.error = 0;
	assert_true(get(c, 1, 2, &l, NULL) == 1000005);
	wpt_cache_close(c);
}

struct threads {
	struct wpt_cache *c;
	struct load l;
};

static void *many_gets(void *arg)
{
	struct threads *t = arg;
	struct wpt_cached *e;
	uint64_t i, value;

	for (i = 0; i < 4000; i++) {
		if (wpt_cache_get(t->c, 5, i / 4 % 500, load, &t->l, &e))
			return "error";
		memcpy(&value, e->data, sizeof(value));
		wpt_cache_put(t->c, e);
		if (value != 42)
			return "value";
	}
	return NULL;
}

static void many_threads_load_each_entry_once(void **state)
{
	struct threads t = { .l = { .value = 42, .bytes = 1, .lock = PTHREAD_MUTEX_INITIALIZER } };
	pthread_t threads[8];
	void *said;
	int i, pressed;

	(void)state;
	for (pressed = 0; pressed < 2; pressed++) {
		t.l.nr = 0;
		t.l.bytes = pressed ? BOUND / 20 : 1;
		assert_int_equal(wpt_cache_open(&t.c, BOUND), 0);
		for (i = 0; i < 8; i++)
			assert_int_equal(pthread_create(&threads[i], NULL, many_gets, &t), 0);
		for (i = 0; i < 8; i++) {
			pthread_join(threads[i], &said);
			assert_null(said);
		}
		if (!pressed)
			assert_int_equal(t.l.nr, 500);
		assert_true(wpt_cache_peak(t.c) <= BOUND + 9 * t.l.bytes);
		wpt_cache_close(t.c);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_bound_holds_and_the_latest_stay),
		cmocka_unit_test(what_is_held_stays),
		cmocka_unit_test(owners_are_told_apart),
		cmocka_unit_test(an_error_is_not_kept),
		cmocka_unit_test(many_threads_load_each_entry_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
