/* SPDX-License-Identifier: MIT */
/*
 * A store that fails at the n-th write or at commit, for every n: the layer writer says so, nothing becomes visible, and the next link
 * has all that the lost one had.
 */
#include "chain.h"
#include "sample.h"

#include <setjmp.h>
#include <cmocka.h>

/* Writes to memory until it fails. */
struct faulty {
	struct wpt_sink sink;
	struct wpt_sink *inner;
	uint32_t writes;       /* so far */
	uint32_t fail_at;      /* write number; UINT32_MAX: commit */
	int error;
	bool failed;
	bool touched_after;    /* by a write or a commit that went through to the file */
};

static int faulty_write(struct wpt_sink *s, const void *data, size_t len)
{
	struct faulty *f = (struct faulty *)s;

	if (f->writes++ == f->fail_at)
		f->failed = true;
	if (f->failed)
		return f->error;
	return f->inner->write(f->inner, data, len);
}

static int faulty_commit(struct wpt_sink *s)
{
	struct faulty *f = (struct faulty *)s;

	if (f->failed || f->fail_at == UINT32_MAX) {
		f->touched_after = f->failed;
		f->failed = true;
		return f->error;
	}
	return f->inner->commit(f->inner);
}

static void faulty_open(struct faulty *f, uint32_t fail_at, int error, const void **data, size_t *len)
{
	memset(f, 0, sizeof(*f));
	f->sink.write = faulty_write;
	f->sink.commit = faulty_commit;
	f->fail_at = fail_at;
	f->error = error;
	assert_int_equal(wpt_sink_memory(&f->inner, data, len), 0);
}

static void assert_shows(const uint8_t *bytes, size_t len, const struct sample_page *want, uint32_t nr_links)
{
	struct wpt_chain_info info = { .size = sizeof(info) };
	char what[128] = "";
	struct wpt_chain *c;

	assert_int_equal(wpt_chain_open_memory(&c, bytes, len), 0);
	assert_int_equal(wpt_chain_info(c, &info), 0);
	assert_int_equal(info.nr_links, nr_links);
	assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
	if (sample_check(c, want, what))
		fail_msg("%s", what);
	wpt_chain_close(c);
}

/* One link is lost at write number n of a chain that has `before` links; true if n was beyond the last write. */
static bool lose_one(uint32_t n, uint32_t before, int error)
{
	struct sample s;
	struct faulty f;
	const void *data;
	uint8_t *bytes = NULL;
	size_t len = 0, lost_len;
	int rc;

	assert_int_equal(sample_open(&s, 7 + before, 4), 0);
	for (uint32_t i = 0; i < before; i++) {
		sample_write(&s, i ? 8 : 60);
		assert_int_equal(sample_append(&s, &bytes, &len), 0);
	}
	sample_write(&s, before ? 10 : 60);
	faulty_open(&f, n, error, &data, &lost_len);
	rc = sample_link(&s, &f.sink);
	if (!f.failed) {
		assert_int_equal(rc, 0);
	} else {
		assert_int_equal(rc, error);
		assert_false(f.touched_after);
		assert_null(data);
		/* More happens before the next attempt, to pages of the lost link and to others. */
		sample_write(&s, 5);
		assert_int_equal(sample_append(&s, &bytes, &len), 0);
		assert_shows(bytes, len, s.tip, before + 1);
	}
	f.inner->close(f.inner);
	free(bytes);
	sample_close(&s);
	return !f.failed;
}

static void a_write_that_fails_loses_the_link_and_nothing_else(void **state)
{
	uint32_t n;

	(void)state;
	for (uint32_t before = 0; before < 4; before++) {
		for (n = 0; !lose_one(n, before, n & 1 ? -ENOSPC : -EIO); n++)
			;
		assert_true(n >= 1);
	}
}

static void a_commit_that_fails_loses_the_link_and_nothing_else(void **state)
{
	(void)state;
	for (uint32_t before = 0; before < 4; before++)
		assert_false(lose_one(UINT32_MAX, before, -EIO));
}

/* ---- many batches, several threads ---- */

#define MANY_BATCHES 24u
#define MANY_PAGES (MANY_BATCHES * WPT_BATCH_PAGES)
#define MANY_START 0x200000000ull

static void many_fill(uint8_t *page, uint32_t i, uint32_t version)
{
	uint64_t x = ((uint64_t)version << 32 | i) * 0x9E3779B97F4A7C15ull + 1;

	for (uint32_t at = 0; at < WPT_PAGE; at += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(page + at, &x, 8);
	}
}

static int many_batch(struct wpt_layer_writer *w, uint32_t first, uint32_t version)
{
	struct wpt_batch *b;
	int rc = wpt_layer_batch_get(w, &b, true);

	if (rc)
		return rc;
	for (uint32_t i = 0; i < WPT_BATCH_PAGES; i++)
		many_fill(b->data + (size_t)i * WPT_PAGE, first + i, version);
	b->nr_pages = WPT_BATCH_PAGES;
	b->nr_items = 1;
	b->items[0] = (struct wpt_item){ MANY_START + (uint64_t)first * WPT_PAGE, WPT_BATCH_PAGES, WPT_ITEM_DATA };
	return wpt_layer_batch_submit(w, b);
}

static int many_link(struct sample *s, struct wpt_sink *sink, uint32_t version)
{
	const struct wpt_layer_range range = { MANY_START, MANY_START + (uint64_t)MANY_PAGES * WPT_PAGE, WPT_KIND_ANON, 0, "many" };
	struct wpt_layer_writer *w = NULL;
	int rc;

	s->params.ledger = s->ledger;
	s->params.nr_threads = 3;
	s->params.staging_bytes = 6 << 20;
	rc = wpt_layer_writer_open(&w, sink, &s->params);
	for (uint32_t i = 0; !rc && i < MANY_BATCHES; i++)
		rc = many_batch(w, i * WPT_BATCH_PAGES, version);
	if (!rc)
		rc = wpt_layer_ranges(w, &range, 1);
	if (!rc)
		rc = wpt_layer_finish(w, 1, 2, &s->result);
	wpt_layer_writer_close(w);
	if (!rc)
		rc = sink->commit(sink);
	if (rc)
		wpt_ledger_rollback(s->ledger);
	else
		wpt_ledger_commit(s->ledger);
	return rc;
}

static void assert_many(const void *data, size_t len, uint32_t version)
{
	static uint8_t got[WPT_BATCH_PAGES * WPT_PAGE], want[WPT_PAGE];
	struct wpt_chain *c;

	assert_int_equal(wpt_chain_open_memory(&c, data, len), 0);
	for (uint32_t i = 0; i < MANY_PAGES; i++) {
		if (i % WPT_BATCH_PAGES == 0)
			assert_int_equal(wpt_chain_read(c, MANY_START + (uint64_t)i * WPT_PAGE, got, sizeof(got)), 0);
		many_fill(want, i, version);
		assert_memory_equal(got + (size_t)(i % WPT_BATCH_PAGES) * WPT_PAGE, want, WPT_PAGE);
	}
	wpt_chain_close(c);
}

static void a_failure_in_the_midst_of_many_batches_ends_the_link(void **state)
{
	struct sample s;
	struct faulty f;
	const void *data;
	size_t len;
	uint32_t n = 0;
	int rc;

	(void)state;
	do {
		assert_int_equal(sample_open(&s, 1, 0), 0);
		faulty_open(&f, n, -EIO, &data, &len);
		rc = many_link(&s, &f.sink, 1);
		assert_int_equal(rc, f.failed ? -EIO : 0);
		if (!f.failed)
			assert_many(data, len, 1);
		else
			assert_null(data);
		f.inner->close(f.inner);
		/* The same pages to another file: the ledger must not say that the chain has them. */
		if (f.failed && n % 8 == 0) {
			faulty_open(&f, UINT32_MAX - 1, 0, &data, &len);
			assert_int_equal(many_link(&s, &f.sink, 1), 0);
			assert_many(data, len, 1);
			f.inner->close(f.inner);
		}
		sample_close(&s);
		n++;
	} while (rc);
	assert_true(n > MANY_BATCHES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_write_that_fails_loses_the_link_and_nothing_else),
		cmocka_unit_test(a_commit_that_fails_loses_the_link_and_nothing_else),
		cmocka_unit_test(a_failure_in_the_midst_of_many_batches_ends_the_link),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
