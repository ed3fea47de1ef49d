/* SPDX-License-Identifier: MIT */
/*
 * Damaged bytes: every truncation, flipped bits at every byte. An error or the right data, never other data. (Metadata that lies with
 * every checksum in order is in forged_test.c.)
 */
#include "chain.h"
#include "fuzz/exercise.h"
#include "fuzz/reseal.h"
#include "page.h"
#include "sample.h"

#include <setjmp.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define LINKS 2u

static uint8_t *whole;
static size_t whole_len, ends[LINKS];
static struct sample_page tips[LINKS][SAMPLE_PAGES];
static uint8_t devices[LINKS][SAMPLE_DEVICE_BYTES];

static bool seen(struct sample *s, uint64_t kinds[6])
{
	const struct wpt_layer_result *r = &s->result;
	const uint64_t now[6] = { r->pages_stored, r->pages_zero, r->pages_unchanged, r->pages_duplicate, r->pages_unreadable, r->pages_torn };
	bool all = true;

	for (int i = 0; i < 6; i++) {
		kinds[i] += now[i];
		all = all && kinds[i];
	}
	return all;
}

/* A reader of a few kilobytes must not need more than this. */
static void limit_memory(void)
{
#if !defined(__SANITIZE_ADDRESS__)
	struct rlimit limit;
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%lu", &pages), 1);
	fclose(f);
	limit.rlim_cur = limit.rlim_max = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + (192 << 20);
	assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
#endif
}

static int setup(void **state)
{
	uint64_t kinds[6] = { 0 };
	struct sample s;
	bool all = false;

	(void)state;
	limit_memory();
	if (sample_open(&s, 5, 0))
		return -1;
	for (uint32_t i = 0; i < LINKS; i++) {
		sample_write(&s, i ? 12 : 70);
		/* Some that were looked at and had not changed. */
		s.dirty[i] = s.dirty[30] = true;
		if (sample_append(&s, &whole, &whole_len))
			return -1;
		all = seen(&s, kinds);
		ends[i] = whole_len;
		memcpy(tips[i], s.tip, sizeof(tips[i]));
		memcpy(devices[i], s.device, sizeof(devices[i]));
	}
	sample_close(&s);
	if (!all)
		print_error("the sample lacks a kind of record\n");
	return all ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	free(whole);
	return 0;
}

static void check_section(struct wpt_chain *c, uint32_t type, const void *want, size_t want_len, const char *what, size_t at)
{
	void *data = NULL;
	size_t len;
	int rc = wpt_chain_section(c, type, &data, &len);

	if (!rc) {
		if (len != want_len || memcmp(data, want, len))
			fail_msg("%s at %zu: section %u has other bytes", what, at, type);
		free(data);
	} else if (!exercise_listed(rc)) {
		fail_msg("%s at %zu: section %u gives %d", what, at, type, rc);
	}
}

static void check_ranges(struct wpt_chain *c, const char *what, size_t at)
{
	struct wpt_range_info r = { .size = sizeof(r) };

	for (uint32_t i = 0; i < SAMPLE_RANGES; i++) {
		int rc = wpt_chain_range(c, i, &r);

		if (rc && !exercise_listed(rc))
			fail_msg("%s at %zu: range gives %d", what, at, rc);
		if (!rc && (r.start != sample_ranges[i].start || r.end != sample_ranges[i].end || r.kind != sample_ranges[i].kind ||
			    r.reason != sample_ranges[i].reason || strcmp(r.name, sample_ranges[i].name)))
			fail_msg("%s at %zu: range %u is another", what, at, i);
	}
}

/*
 * The links that the chain has say what they should; returns how many, 0 if it can't be opened. `what` and `at` are for the message.
 */
static uint32_t check(const uint8_t *bytes, size_t len, int *verify, const char *what, size_t at)
{
	struct wpt_chain_info info = { .size = sizeof(info) };
	char wrong[128];
	struct wpt_chain *c;
	uint32_t n;
	int rc = wpt_chain_open_memory(&c, bytes, len);

	if (rc) {
		if (!exercise_listed(rc))
			fail_msg("%s at %zu: open gives %d", what, at, rc);
		return 0;
	}
	assert_int_equal(wpt_chain_info(c, &info), 0);
	n = info.nr_links;
	assert_in_range(n, 1, LINKS);
	rc = sample_check(c, tips[n - 1], wrong);
	if (rc > 0)
		fail_msg("%s at %zu, %u links: %s", what, at, n, wrong);
	if (rc && !exercise_listed(rc))
		fail_msg("%s at %zu: read gives %d", what, at, rc);
	check_section(c, WPT_SECTION_TAGS, SAMPLE_TAGS, sizeof(SAMPLE_TAGS) - 1, what, at);
	check_section(c, WPT_SECTION_MAPPINGS, SAMPLE_MAPPINGS, strlen(SAMPLE_MAPPINGS), what, at);
	check_section(c, WPT_SECTION_DEVICE, devices[n - 1], SAMPLE_DEVICE_BYTES, what, at);
	check_ranges(c, what, at);
	*verify = wpt_chain_verify(c, NULL, NULL);
	if (*verify && !exercise_listed(*verify))
		fail_msg("%s at %zu: verify gives %d", what, at, *verify);
	wpt_chain_close(c);
	return n;
}

/* In a block of its own, so that a read beyond its end is found. */
static uint8_t *copy_of(const uint8_t *bytes, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1);

	assert_non_null(copy);
	memcpy(copy, bytes, len);
	return copy;
}

static void the_sample_itself_is_good(void **state)
{
	int verify = -1;

	(void)state;
	assert_int_equal(check(whole, whole_len, &verify, "nothing", 0), LINKS);
	assert_int_equal(verify, 0);
	assert_int_equal(check(whole, ends[0], &verify, "nothing", 0), 1);
	assert_int_equal(verify, 0);
}

static void every_truncation_is_an_error_or_the_links_before(void **state)
{
	int verify = 0;

	(void)state;
	for (size_t len = 0; len < whole_len; len++) {
		uint8_t *copy = copy_of(whole, len);
		uint32_t n = check(copy, len, &verify, "cut", len);

		/* A torn tail of a concatenation is ignored, but not by verify; the link before it is whole. */
		assert_int_equal(n, len >= ends[0] ? 1 : 0);
		if (n)
			assert_int_equal(verify, len > ends[0] ? -WPT_E_TRUNCATED : 0);
		free(copy);
	}
}

static void a_cut_link_is_called_truncated(void **state)
{
	struct wpt_chain *c;

	(void)state;
	assert_int_equal(wpt_chain_open_memory(&c, "#!/bin/sh\necho not a snapshot, whatever it is\n", 45), -WPT_E_NOT_SNAPSHOT);
	for (size_t len = 200; len < ends[0]; len++)
		assert_int_equal(wpt_chain_open_memory(&c, whole, len), -WPT_E_TRUNCATED);
}

static void flip(const uint8_t *bytes, size_t len, size_t at, int bit)
{
	uint8_t *copy = copy_of(bytes, len);
	uint32_t n, links = len == whole_len ? LINKS : 1;
	int verify = 0;

	copy[at] ^= (uint8_t)(1 << bit);
	n = check(copy, len, &verify, "flipped bit", at);
	if (n && !verify)
		fail_msg("bit %d of byte %zu of %zu flipped, and nobody noticed", bit, at, len);
	/* Only without its trailer is a link a torn tail. */
	if (n && n < links && at < len - WPT_FMT_TRAILER_SIZE)
		fail_msg("bit %d of byte %zu of %zu flipped, and a link is left out", bit, at, len);
	free(copy);
}

/* All bits of what frames begin with, heads, roots and trailers; one of each byte of the rest. */
static void flip_all(const uint8_t *bytes, size_t len)
{
	size_t at = 0, frame, i;
	bool block;

	while ((frame = reseal_frame(bytes + at, len - at, &block))) {
		uint32_t tag = block ? (uint32_t)reseal_get(bytes + at + 8, 4) : 0;
		bool all = tag == WPT_FMT_HEAD || tag == WPT_FMT_ROOT || tag == WPT_FMT_TRAILER;

		if (getenv("WPT_QUICK"))
			all = false;
		for (i = 0; i < frame; i++) {
			for (int bit = 0; bit < 8; bit++) {
				if (all || i < 12 || bit == (int)(i % 8))
					flip(bytes, len, at + i, bit);
			}
		}
		at += frame;
	}
	assert_int_equal(at, len);
}

static void a_flipped_bit_anywhere_in_a_link_is_noticed(void **state)
{
	(void)state;
	flip_all(whole, ends[0]);
}

static void a_flipped_bit_anywhere_in_a_chain_is_noticed(void **state)
{
	(void)state;
	flip_all(whole, whole_len);
}

static void a_byte_anywhere_may_be_anything(void **state)
{
	static const uint8_t values[] = { 0x00, 0xff, 0x80, 0x7f };
	int verify = 0;

	(void)state;
	for (size_t at = 0; at < whole_len; at++) {
		for (size_t v = 0; v < WPT_ARRAY_SIZE(values); v++) {
			uint8_t *copy = copy_of(whole, whole_len);

			copy[at] = values[v];
			check(copy, whole_len, &verify, "changed byte", at);
			free(copy);
		}
		if (getenv("WPT_QUICK"))
			at += 6;
	}
}

static void frames_lost_or_doubled_are_noticed(void **state)
{
	size_t at = 0, frame;
	bool block;
	int verify = 0;

	(void)state;
	while ((frame = reseal_frame(whole + at, whole_len - at, &block))) {
		uint8_t *copy = malloc(whole_len + frame);
		uint32_t n;

		assert_non_null(copy);
		memcpy(copy, whole, at);
		memcpy(copy + at, whole + at + frame, whole_len - at - frame);
		n = check(copy, whole_len - frame, &verify, "lost frame", at);
		assert_true(!n || verify);
		memcpy(copy, whole, at + frame);
		memcpy(copy + at + frame, whole + at, whole_len - at);
		n = check(copy, whole_len + frame, &verify, "doubled frame", at);
		assert_true(!n || verify);
		free(copy);
		at += frame;
	}
}

static void rubbish_behind_the_last_link_is_a_torn_tail(void **state)
{
	int verify = 0;

	(void)state;
	for (size_t more = 1; more < 300; more += 13) {
		uint8_t *copy = malloc(whole_len + more);

		assert_non_null(copy);
		memcpy(copy, whole, whole_len);
		for (size_t i = 0; i < more; i++)
			copy[whole_len + i] = (uint8_t)(i * 7 + more);
		assert_int_equal(check(copy, whole_len + more, &verify, "rubbish", more), LINKS);
		assert_int_equal(verify, -WPT_E_TRUNCATED);
		free(copy);
	}
}

/* ---- what a guest may put into its own memory ---- */

static uint8_t *find_bytes(uint8_t *in, size_t len, const uint8_t *what, size_t what_len)
{
	return memmem(in, len, what, what_len);
}

/*
 * A link whose page data holds `planted`, so that it lies in the file as it is: between it and the frame's end is what can't be compressed.
 */
static void plant(struct sample *s, const uint8_t *planted, size_t len)
{
	for (uint32_t i = 0; i < SAMPLE_PAGES; i++) {
		s->dirty[i] = true;
		s->now[i].state = SAMPLE_DATA;
		for (uint32_t at = 0; at < WPT_PAGE; at++)
			s->now[i].data[at] = (uint8_t)(sample_random(s) >> 32);
	}
	assert_true(len <= WPT_PAGE);
	memcpy(s->now[20].data + 100, planted, len);
	/* So fast that it finds next to nothing to compress. */
	s->params.level = -100;
}

/* Whatever the file is cut to, what is planted in page data is never taken for the chain. */
static void cut_behind_what_is_planted(struct sample *s, uint8_t *bytes, size_t len, const uint8_t *planted, size_t planted_len,
				       const struct sample_page *before, size_t before_len)
{
	uint8_t *at = bytes;
	uint32_t found = 0;
	struct wpt_chain *c;
	char wrong[128];
	int rc;

	(void)s;
	while ((at = find_bytes(at, len - (size_t)(at - bytes), planted, planted_len))) {
		size_t cut = (size_t)(at - bytes) + planted_len;
		uint8_t *copy = copy_of(bytes, cut);

		found++;
		rc = wpt_chain_open_memory(&c, copy, cut);
		if (!rc) {
			if (!before)
				fail_msg("a link that is page data was opened");
			rc = sample_check(c, before, wrong);
			if (rc)
				fail_msg("%d: %s", rc, wrong);
			assert_int_equal(wpt_chain_end_offset(c), before_len);
			wpt_chain_close(c);
		} else {
			assert_true(exercise_listed(rc));
			assert_false(before != NULL);
		}
		free(copy);
		at++;
	}
	/* Else this tests nothing. */
	assert_true(found >= 1);
}

static void a_whole_link_in_page_data_is_not_taken_for_one(void **state)
{
	struct sample s;
	struct sample_page *before = malloc(sizeof(s.tip));
	uint8_t *bytes = NULL;
	size_t len = 0, first;

	(void)state;
	assert_non_null(before);
	assert_int_equal(sample_open(&s, 99, 0), 0);
	plant(&s, whole, ends[0]);
	assert_int_equal(sample_append(&s, &bytes, &len), 0);
	cut_behind_what_is_planted(&s, bytes, len, whole, ends[0], NULL, 0);
	first = len;
	memcpy(before, s.tip, sizeof(s.tip));
	plant(&s, whole, ends[0]);
	assert_int_equal(sample_append(&s, &bytes, &len), 0);
	/* Beginning behind the first link, whose own page data has it too. */
	{
		uint8_t *at = find_bytes(bytes + first, len - first, whole, ends[0]);
		size_t cut;
		struct wpt_chain *c;
		char wrong[128] = "";

		assert_non_null(at);
		cut = (size_t)(at - bytes) + ends[0];
		assert_int_equal(wpt_chain_open_memory(&c, bytes, cut), 0);
		if (sample_check(c, before, wrong))
			fail_msg("%s", wrong);
		assert_int_equal(wpt_chain_end_offset(c), first);
		wpt_chain_close(c);
	}
	free(bytes);
	free(before);
	sample_close(&s);
}

/* A copy of the base's, and one that says that it is the next link's, but not where that is. */
static void a_trailer_of_this_chain_in_page_data_is_not_taken_for_one(void **state)
{
	(void)state;
	for (uint64_t later = 0; later < 3; later++) {
		uint8_t *bytes = NULL, trailer[WPT_FMT_TRAILER_SIZE];
		struct sample_page *before;
		struct wpt_fmt_trailer t;
		size_t len = 0, first;
		struct sample s;

		assert_int_equal(sample_open(&s, 98, 0), 0);
		before = malloc(sizeof(s.tip));
		assert_non_null(before);
		sample_write(&s, 60);
		assert_int_equal(sample_append(&s, &bytes, &len), 0);
		first = len;
		memcpy(before, s.tip, sizeof(s.tip));
		assert_int_equal(wpt_fmt_trailer_decode(bytes + len - sizeof(trailer), sizeof(trailer), &t), 0);
		t.sequence += later;
		wpt_fmt_trailer_encode(&t, trailer);
		plant(&s, trailer, sizeof(trailer));
		assert_int_equal(sample_append(&s, &bytes, &len), 0);
		cut_behind_what_is_planted(&s, bytes, len, trailer, sizeof(trailer), before, first);
		free(bytes);
		free(before);
		sample_close(&s);
	}
}

/* ---- pages with one hash ---- */

static uint64_t get64(const uint8_t *p)
{
	return reseal_get(p, 8);
}

/*
 * Two pages with the same XXH3 under a secret that is known. A lane's words enter multiplied, low half by high half, with the secret
 * XORed in, and plain: where the low half cancels the secret the product is zero whatever the high half, and what one stripe adds to the
 * high half another may take away.
 */
static void collide(const uint8_t *secret, uint8_t *a, uint8_t *b)
{
	for (uint32_t i = 0; i < WPT_PAGE; i++)
		a[i] = (uint8_t)(i * 31 + 7);
	for (uint32_t stripe = 0; stripe < 2; stripe++)
		reseal_put(a + stripe * 64, (get64(secret + stripe * 8) & 0xffffffff) | 0x1234567800000000ull, 8);
	memcpy(b, a, WPT_PAGE);
	reseal_put(b, get64(b) + (1ull << 32), 8);
	reseal_put(b + 64, get64(b + 64) - (1ull << 32), 8);
}

static uint8_t colliding[2][WPT_PAGE] __attribute__((aligned(64)));

static void put_page(struct sample *s, uint32_t i, const uint8_t *data)
{
	s->now[i].state = SAMPLE_DATA;
	memcpy(s->now[i].data, data, WPT_PAGE);
	s->dirty[i] = true;
}

static void check_chain(const uint8_t *bytes, size_t len, const struct sample_page *want)
{
	struct wpt_chain *c;
	char wrong[128] = "";

	assert_int_equal(wpt_chain_open_memory(&c, bytes, len), 0);
	if (sample_check(c, want, wrong))
		fail_msg("%s", wrong);
	assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
	wpt_chain_close(c);
}

static void pages_that_collide_under_the_chains_key_are_not_duplicates(void **state)
{
	struct wpt_page_key key;
	uint8_t hash[2][16], *bytes = NULL;
	struct sample s;
	size_t len = 0;

	(void)state;
	assert_int_equal(sample_open(&s, 97, 0), 0);
	wpt_page_key_init(&key, s.params.key);
	collide(key.secret, colliding[0], colliding[1]);
	wpt_page_hash(&key, colliding[0], hash[0]);
	wpt_page_hash(&key, colliding[1], hash[1]);
	assert_memory_equal(hash[0], hash[1], 16);
	assert_memory_not_equal(colliding[0], colliding[1], WPT_PAGE);

	for (uint32_t i = 0; i < 6; i++)
		put_page(&s, 2 + i, colliding[(0x2c >> i) & 1]);
	assert_int_equal(sample_append(&s, &bytes, &len), 0);
	/* Those that are the same are found, or this tests nothing. */
	assert_true(s.result.pages_duplicate >= 1);
	assert_true(s.result.pages_stored >= 2);
	check_chain(bytes, len, s.tip);
	free(bytes);
	sample_close(&s);
}

static void pages_that_collide_without_a_key_are_not_unchanged(void **state)
{
	uint8_t *bytes = NULL;
	struct sample s;
	size_t len = 0;

	(void)state;
	assert_int_equal(sample_open(&s, 96, 0), 0);
	collide(XXH3_kSecret, colliding[0], colliding[1]);
	assert_true(XXH128_isEqual(XXH3_128bits(colliding[0], WPT_PAGE), XXH3_128bits(colliding[1], WPT_PAGE)));
	assert_memory_not_equal(colliding[0], colliding[1], WPT_PAGE);
	put_page(&s, 3, colliding[0]);
	assert_int_equal(sample_append(&s, &bytes, &len), 0);
	put_page(&s, 3, colliding[1]);
	assert_int_equal(sample_append(&s, &bytes, &len), 0);
	assert_int_equal(s.result.pages_unchanged, 0);
	check_chain(bytes, len, s.tip);
	put_page(&s, 3, colliding[1]);
	assert_int_equal(sample_append(&s, &bytes, &len), 0);
	assert_int_equal(s.result.pages_unchanged, 1);
	check_chain(bytes, len, s.tip);
	free(bytes);
	sample_close(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_sample_itself_is_good),
		cmocka_unit_test(pages_that_collide_under_the_chains_key_are_not_duplicates),
		cmocka_unit_test(pages_that_collide_without_a_key_are_not_unchanged),
		cmocka_unit_test(a_whole_link_in_page_data_is_not_taken_for_one),
		cmocka_unit_test(a_trailer_of_this_chain_in_page_data_is_not_taken_for_one),
		cmocka_unit_test(every_truncation_is_an_error_or_the_links_before),
		cmocka_unit_test(a_cut_link_is_called_truncated),
		cmocka_unit_test(a_flipped_bit_anywhere_in_a_link_is_noticed),
		cmocka_unit_test(a_flipped_bit_anywhere_in_a_chain_is_noticed),
		cmocka_unit_test(a_byte_anywhere_may_be_anything),
		cmocka_unit_test(frames_lost_or_doubled_are_noticed),
		cmocka_unit_test(rubbish_behind_the_last_link_is_a_torn_tail),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
