/* SPDX-License-Identifier: MIT */
/* The writer of a link, against a shadow copy of what was handed to it. */
#include "link.h"

#include <signal.h>

static void full_link_holds_what_was_handed_over(void **state)
{
	(void)state;
	for (uint32_t threads = 1; threads <= 4; threads++) {
		struct wpt_layer_params p = params(true, threads, NULL);
		struct image *want = random_image(), *got = image_new();
		struct wpt_layer_writer *w;
		struct opened o;
		struct sink s;
		uint64_t zero = 0;

		sink_open(&s);
		p.level = threads == 4 ? -5 : (int)threads;
		w = writer_open(&s, &p);
		pages_write(w, want, 0, IMAGE_PAGES);
		assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		struct wpt_layer_result r = finish(w, &s);
		link_read(&s, got, &o);
		same_memory(want, got);
		for (uint64_t i = 0; i < IMAGE_PAGES; i++)
			zero += want->state[i] <= DATA && all_zero(want->data + i * WPT_PAGE);
		assert_int_equal(r.pages_zero, zero);
		assert_int_equal(o.counts.zero, 0);
		assert_int_equal(r.pages_stored + r.pages_duplicate + r.pages_zero + r.pages_unreadable, IMAGE_PAGES);
		assert_true(r.pages_duplicate > 100);
		assert_memory_equal(r.digest, o.trailer.digest, 16);
		assert_int_equal(o.root.time_ns, 1111);
		assert_int_equal(o.root.pause_ns, 2222);
		assert_int_equal(o.head.flags, WPT_FMT_FULL | WPT_FMT_ORIGIN);
		assert_string_equal(o.head.origin.comm, "test");
		sink_close(&s);
		image_free(want);
		image_free(got);
	}
}

/* What `zstd -t` and `zstd -dc` do: the whole stream, and the pages come out in order. */
static void link_is_a_zstd_stream_of_the_pages_in_order(void **state)
{
	enum { PAGES = 1000 };
	struct wpt_layer_params p = params(true, 3, NULL);
	struct image *m = image_new();
	ZSTD_DStream *z = ZSTD_createDStream();
	uint8_t *out = malloc((PAGES + 1) * WPT_PAGE);
	ZSTD_outBuffer to = { out, (PAGES + 1) * WPT_PAGE, 0 };
	struct wpt_layer_writer *w;
	struct sink s;
	size_t ret = 1;

	(void)state;
	for (uint64_t i = 0; i < PAGES; i++) {
		m->state[i] = DATA;
		memset(m->data + i * WPT_PAGE, (int)(i % 250) + 1, WPT_PAGE);
		memcpy(m->data + i * WPT_PAGE, &i, sizeof(i));
	}
	sink_open(&s);
	w = writer_open(&s, &p);
	assert_int_equal(wpt_layer_section(w, WPT_SECTION_NOTES, "early\n", 6), 0);
	pages_write(w, m, 0, PAGES);
	assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
	assert_int_equal(finish(w, &s).pages_stored, PAGES);
	ZSTD_inBuffer from = { s.data, s.len, 0 };
	while (from.pos < from.size) {
		ret = ZSTD_decompressStream(z, &to, &from);
		assert_false(ZSTD_isError(ret));
	}
	assert_int_equal(ret, 0);
	assert_int_equal(to.pos, PAGES * WPT_PAGE);
	assert_memory_equal(out, m->data, PAGES * WPT_PAGE);
	ZSTD_freeDStream(z);
	free(out);
	sink_close(&s);
	image_free(m);
}

static void one_page_increment_costs_at_most_512_bytes(void **state)
{
	struct wpt_layer_params p = params(false, 2, NULL);
	uint8_t page[WPT_PAGE];
	struct wpt_layer_writer *w;
	struct wpt_batch *b;
	struct opened o;
	struct sink s;

	(void)state;
	for (size_t i = 0; i < WPT_PAGE; i++)
		page[i] = (uint8_t)rng();
	p.identity.sequence = UINT64_MAX;
	sink_open(&s);
	w = writer_open(&s, &p);
	b = batch_get(w);
	memcpy(b->data, page, WPT_PAGE);
	b->nr_pages = 1;
	item_add(b, 0xffffffffff000, 1, WPT_ITEM_DATA);
	submit(w, b);
	struct wpt_layer_result r;
	assert_int_equal(wpt_layer_finish(w, UINT64_MAX, UINT64_MAX, &r), 0);
	wpt_layer_writer_close(w);
	link_read(&s, NULL, &o);
	assert_int_equal(o.counts.data, 1);
	assert_int_equal(s.writes, 1);
	/* A page of noise is stored as it is; the frame around it counts as overhead here. */
	print_message("# overhead of one page: %zu bytes\n", s.len - WPT_PAGE);
	assert_true(s.len - WPT_PAGE <= 512);
	sink_close(&s);
}

/*
 * Two pages with one XXH3-128 under a secret. Where the low half of a word equals the secret's, the word's product is 0 whatever its
 * high half is; what it adds to the neighbouring sum is taken from another such word of the same block.
 */
static void collide(const uint8_t *secret, uint8_t *a, uint8_t *b)
{
	uint32_t high[2] = { 0x01020304, 0x05060708 };

	for (size_t i = 0; i < WPT_PAGE; i++)
		a[i] = (uint8_t)rng();
	for (unsigned int stripe = 0; stripe < 2; stripe++) {
		memcpy(a + stripe * 64, secret + stripe * 8, 4);
		for (unsigned int i = 0; i < 4; i++)
			a[stripe * 64 + 4 + i] = (uint8_t)(high[stripe] >> (8 * i));
	}
	memcpy(b, a, WPT_PAGE);
	b[4] += 1;
	b[64 + 4] -= 1;
}

static void pages_with_equal_hashes_are_both_kept(void **state)
{
	struct wpt_layer_params p = params(true, 2, NULL);
	struct image *want = image_new(), *got = image_new();
	struct wpt_page_key key;
	uint8_t a[WPT_PAGE], b[WPT_PAGE], ha[16], hb[16];
	struct wpt_layer_writer *w;
	struct opened o;
	struct sink s;

	(void)state;
	wpt_page_key_init(&key, p.key);
	collide(key.secret, a, b);
	wpt_page_hash(&key, a, ha);
	wpt_page_hash(&key, b, hb);
	assert_memory_equal(ha, hb, 16);
	assert_true(memcmp(a, b, WPT_PAGE) != 0);
	sink_open(&s);
	w = writer_open(&s, &p);
	for (uint64_t i = 0; i < 64; i++) {
		const uint8_t *page = i % 8 == 5 ? b : a;
		struct wpt_batch *batch = batch_get(w);

		want->state[i] = DATA;
		memcpy(want->data + i * WPT_PAGE, page, WPT_PAGE);
		page_add(batch, i, page, WPT_ITEM_DATA);
		submit(w, batch);
	}
	assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
	assert_true(finish(w, &s).pages_duplicate > 20);
	link_read(&s, got, &o);
	same_memory(want, got);
	sink_close(&s);
	image_free(want);
	image_free(got);
}

/* Someone who does not know the key can collide the public secret only; a page replaced so is seen as changed. */
static void forged_page_is_not_taken_for_the_old_one(void **state)
{
	static const uint8_t public_secret[16] = { 0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe,
						   0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c };
	struct wpt_ledger *ledger;
	struct image *got = image_new();
	uint8_t page[2][WPT_PAGE], digest[2][16];

	(void)state;
	assert_int_equal(wpt_ledger_open(&ledger), 0);
	collide(public_secret, page[0], page[1]);
	wpt_fmt_digest(page[0], WPT_PAGE, digest[0]);
	wpt_fmt_digest(page[1], WPT_PAGE, digest[1]);
	assert_memory_equal(digest[0], digest[1], 16);
	for (int i = 0; i < 2; i++) {
		struct wpt_layer_params p = params(i == 0, 1, ledger);
		struct wpt_layer_writer *w;
		struct wpt_batch *b;
		struct opened o;
		struct sink s;

		sink_open(&s);
		w = writer_open(&s, &p);
		b = batch_get(w);
		page_add(b, 3, page[i], WPT_ITEM_DATA);
		submit(w, b);
		assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		assert_int_equal(finish(w, &s).pages_stored, 1);
		wpt_ledger_commit(ledger);
		link_read(&s, got, &o);
		assert_memory_equal(got->data + 3 * WPT_PAGE, page[i], WPT_PAGE);
		sink_close(&s);
	}
	wpt_ledger_close(ledger);
	image_free(got);
}

static void image_change(struct image *m)
{
	for (int n = 0; n < 600; n++) {
		uint64_t i = rng() % IMAGE_PAGES, sort = rng() % 16;

		memset(m->data + i * WPT_PAGE, 0, WPT_PAGE);
		m->state[i] = sort == 0 ? ZERO : sort == 1 ? UNREADABLE : sort == 2 ? GUARD : DATA;
		if (m->state[i] == DATA)
			page_fill(m->data + i * WPT_PAGE);
	}
}

static void increments_say_what_changed_and_nothing_else(void **state)
{
	struct wpt_ledger *ledger;
	struct image *want = random_image(), *got = image_new(), *before = image_new();

	(void)state;
	assert_int_equal(wpt_ledger_open(&ledger), 0);
	for (int link = 0; link < scaled(12); link++) {
		struct wpt_layer_params p = params(link == 0, 2, ledger);
		struct wpt_layer_writer *w;
		struct wpt_layer_result r;
		struct opened o;
		struct sink s;
		uint64_t differ = 0, said;

		sink_open(&s);
		w = writer_open(&s, &p);
		pages_write(w, want, 0, IMAGE_PAGES);
		assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		r = finish(w, &s);
		wpt_ledger_commit(ledger);
		for (uint64_t i = 0; i < IMAGE_PAGES; i++)
			differ += (want->state[i] <= DATA ? DATA : want->state[i]) !=
					  (before->state[i] <= DATA ? DATA : before->state[i]) ||
				  memcmp(want->data + i * WPT_PAGE, before->data + i * WPT_PAGE, WPT_PAGE) != 0;
		link_read(&s, got, &o);
		same_memory(want, got);
		said = o.counts.data + o.counts.duplicate + o.counts.zero + o.counts.unreadable + o.counts.guard;
		assert_int_equal(said, differ);
		if (link)
			assert_int_equal(said + r.pages_unchanged, IMAGE_PAGES);
		memcpy(before->state, want->state, sizeof(want->state));
		memcpy(before->data, want->data, IMAGE_PAGES * WPT_PAGE);
		image_change(want);
		sink_close(&s);
	}
	wpt_ledger_close(ledger);
	image_free(want);
	image_free(got);
	image_free(before);
}

/* What the chain says already does not count in a link that has to stand alone. */
static void full_link_late_in_a_chain_is_complete(void **state)
{
	struct wpt_ledger *ledger;
	struct image *want = random_image(), *got = image_new();

	(void)state;
	assert_int_equal(wpt_ledger_open(&ledger), 0);
	for (int link = 0; link < 3; link++) {
		struct wpt_layer_params p = params(true, 2, ledger);
		struct wpt_layer_writer *w;
		struct opened o;
		struct sink s;

		if (link == 2)
			image_change(want);
		sink_open(&s);
		w = writer_open(&s, &p);
		pages_write(w, want, 0, IMAGE_PAGES);
		assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		assert_int_equal(finish(w, &s).pages_unchanged, 0);
		wpt_ledger_commit(ledger);
		link_read(&s, got, &o);
		same_memory(want, got);
		sink_close(&s);
	}
	wpt_ledger_close(ledger);
	image_free(want);
	image_free(got);
}

/* A page copied again supersedes its first copy, whichever of the two is what the chain had before. */
static void page_written_twice_in_a_link_ends_as_the_later_copy(void **state)
{
	struct wpt_ledger *ledger;
	struct image *want = random_image(), *got = image_new();

	(void)state;
	assert_int_equal(wpt_ledger_open(&ledger), 0);
	for (int link = 0; link < 8; link++) {
		struct wpt_layer_params p = params(link == 0 || link == 7, 4, link == 7 ? NULL : ledger);
		struct image *old = image_new();
		struct wpt_layer_writer *w;
		struct opened o;
		struct sink s;

		memcpy(old->data, want->data, IMAGE_PAGES * WPT_PAGE);
		memcpy(old->state, want->state, sizeof(want->state));
		sink_open(&s);
		w = writer_open(&s, &p);
		for (int pass = 0; pass < 6; pass++) {
			if (pass % 3 == 2) {
				memcpy(want->data, old->data, IMAGE_PAGES * WPT_PAGE);
				memcpy(want->state, old->state, sizeof(want->state));
			} else if (pass || link) {
				image_change(want);
			}
			pages_write(w, want, 0, IMAGE_PAGES);
		}
		image_change(want);
		pages_write(w, want, 100, IMAGE_PAGES);
		pages_write(w, want, 0, 120);
		assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		finish(w, &s);
		wpt_ledger_commit(ledger);
		link_read(&s, got, &o);
		same_memory(want, got);
		sink_close(&s);
		image_free(old);
	}
	wpt_ledger_close(ledger);
	image_free(want);
	image_free(got);
}

/* The first copy is the last page of a long batch, the second all of a short one: side by side they would be told in the wrong order. */
static void ledger_hears_of_copies_in_the_order_of_the_file(void **state)
{
	enum { LAST = WPT_BATCH_PAGES - 1 };
	struct wpt_layer_params p = params(false, 3, NULL);
	uint8_t *noise = malloc(WPT_BATCH_PAGES * WPT_PAGE), page[WPT_PAGE];
	struct wpt_page_key key;
	struct wpt_hash hash;

	(void)state;
	for (size_t i = 0; i < WPT_BATCH_PAGES * WPT_PAGE; i++)
		noise[i] = (uint8_t)(rng() >> 40);
	memset(page, 3, sizeof(page));
	wpt_page_key_init(&key, p.key);
	wpt_page_hash(&key, page, hash.b);
	for (int round = 0; round < scaled(40); round++) {
		struct wpt_layer_writer *w;
		struct wpt_batch *b[2];
		struct sink s;

		assert_int_equal(wpt_ledger_open(&p.ledger), 0);
		sink_open(&s);
		w = writer_open(&s, &p);
		b[0] = batch_get(w);
		b[1] = batch_get(w);
		memcpy(b[0]->data, noise, WPT_BATCH_PAGES * WPT_PAGE);
		b[0]->nr_pages = WPT_BATCH_PAGES;
		item_add(b[0], BASE_ADDR, WPT_BATCH_PAGES, WPT_ITEM_DATA);
		page_add(b[1], LAST, page, WPT_ITEM_DATA);
		submit(w, b[0]);
		submit(w, b[1]);
		finish(w, &s);
		assert_int_equal(wpt_ledger_classify(p.ledger, BASE_ADDR + LAST * WPT_PAGE, WPT_KNOWN_DATA, &hash), 1);
		wpt_ledger_close(p.ledger);
		sink_close(&s);
	}
	free(noise);
}

/* What a batch that goes back within itself says is told when it is written: the batch that follows it, and goes on, waits for that. */
static void ledger_hears_of_a_batch_that_goes_back_before_the_next(void **state)
{
	enum { FIRST = 1, LAST = WPT_BATCH_PAGES - 1 };
	struct wpt_layer_params p = params(false, 3, NULL);
	uint8_t *noise = malloc(WPT_BATCH_PAGES * WPT_PAGE), page[WPT_PAGE];
	struct wpt_page_key key;
	struct wpt_hash hash;

	(void)state;
	for (size_t i = 0; i < WPT_BATCH_PAGES * WPT_PAGE; i++)
		noise[i] = (uint8_t)(rng() >> 40);
	memset(page, 3, sizeof(page));
	wpt_page_key_init(&key, p.key);
	wpt_page_hash(&key, page, hash.b);
	for (int round = 0; round < scaled(40); round++) {
		struct wpt_layer_writer *w;
		struct wpt_batch *b[2];
		struct sink s;

		assert_int_equal(wpt_ledger_open(&p.ledger), 0);
		sink_open(&s);
		w = writer_open(&s, &p);
		b[0] = batch_get(w);
		b[1] = batch_get(w);
		memcpy(b[0]->data, noise, WPT_BATCH_PAGES * WPT_PAGE);
		b[0]->nr_pages = WPT_BATCH_PAGES;
		item_add(b[0], BASE_ADDR + FIRST * WPT_PAGE, LAST, WPT_ITEM_DATA);
		item_add(b[0], BASE_ADDR, 1, WPT_ITEM_DATA);
		page_add(b[1], LAST, page, WPT_ITEM_DATA);
		submit(w, b[0]);
		submit(w, b[1]);
		finish(w, &s);
		assert_int_equal(wpt_ledger_classify(p.ledger, BASE_ADDR + LAST * WPT_PAGE, WPT_KNOWN_DATA, &hash), 1);
		wpt_ledger_close(p.ledger);
		sink_close(&s);
	}
	free(noise);
}

static void batch_may_hold_a_page_twice(void **state)
{
	static const uint32_t kinds[] = { WPT_ITEM_DATA, WPT_ITEM_ZERO, WPT_ITEM_UNREADABLE, WPT_ITEM_GUARD, WPT_ITEM_TORN };
	struct wpt_ledger *ledger;
	struct image *got = image_new();
	uint8_t page[3][WPT_PAGE];

	(void)state;
	assert_int_equal(wpt_ledger_open(&ledger), 0);
	memset(page[0], 0, WPT_PAGE);
	memset(page[1], 1, WPT_PAGE);
	memset(page[2], 2, WPT_PAGE);
	for (int link = 0; link < scaled(300); link++) {
		struct wpt_layer_params p = params(false, 2, ledger);
		struct wpt_layer_writer *w;
		struct wpt_batch *b;
		struct opened o;
		struct sink s;
		uint32_t last[4] = { 0 };
		int which[4] = { 0 };

		sink_open(&s);
		w = writer_open(&s, &p);
		for (int batch = 0; batch < 2; batch++) {
			b = batch_get(w);
			for (int n = 0; n < 12; n++) {
				uint64_t i = rng() % 4;

				last[i] = kinds[rng() % 5];
				which[i] = (int)(rng() % 3);
				if (last[i] == WPT_ITEM_DATA || last[i] == WPT_ITEM_TORN)
					page_add(b, i, page[which[i]], last[i]);
				else
					item_add(b, BASE_ADDR + i * WPT_PAGE, 1, last[i]);
			}
			submit(w, b);
		}
		finish(w, &s);
		wpt_ledger_commit(ledger);
		link_read(&s, got, &o);
		for (int i = 0; i < 4; i++) {
			enum wpt_known known = wpt_ledger_known(ledger, BASE_ADDR + (uint64_t)i * WPT_PAGE);
			bool data = last[i] == WPT_ITEM_DATA || last[i] == WPT_ITEM_TORN;

			if (!last[i])
				continue;
			assert_memory_equal(got->data + i * WPT_PAGE, page[data ? which[i] : 0], WPT_PAGE);
			if (last[i] == WPT_ITEM_TORN)
				assert_int_equal(got->kind[i], WPT_FMT_TORN);
			assert_int_equal(known, last[i] == WPT_ITEM_TORN	 ? WPT_KNOWN_FORCE
						: last[i] == WPT_ITEM_UNREADABLE ? WPT_KNOWN_UNREADABLE
						: last[i] == WPT_ITEM_GUARD	 ? WPT_KNOWN_GUARD
						: data && which[i]		 ? WPT_KNOWN_DATA
										 : WPT_KNOWN_ZERO);
		}
		sink_close(&s);
	}
	wpt_ledger_close(ledger);
	image_free(got);
}

/* A page that is staged counts as data until the end of the link, also when its copy turned out to be zero: it is no end of a run of zeros. */
static void zeros_around_a_staged_page_of_zeros_are_all_said(void **state)
{
	struct image *got = image_new();
	struct wpt_ledger *ledger;
	uint8_t page[WPT_PAGE];

	(void)state;
	assert_int_equal(wpt_ledger_open(&ledger), 0);
	for (int link = 0; link < 2; link++) {
		struct wpt_layer_params p = params(false, 2, ledger);
		struct wpt_layer_writer *w;
		struct wpt_batch *b;
		struct opened o;
		struct sink s;

		sink_open(&s);
		w = writer_open(&s, &p);
		b = batch_get(w);
		memset(page, link ? 0 : 5, sizeof(page));
		for (uint64_t i = 0; i < 5; i++)
			if (!link || i == 2)
				page_add(b, i, page, WPT_ITEM_DATA);
		submit(w, b);
		if (link) {
			assert_int_equal(wpt_ledger_stage(ledger, BASE_ADDR + 2 * WPT_PAGE, 1, 0), 0);
			b = batch_get(w);
			item_add(b, BASE_ADDR, 5, WPT_ITEM_ZERO);
			submit(w, b);
		}
		finish(w, &s);
		wpt_ledger_commit(ledger);
		link_read(&s, got, &o);
		for (uint64_t i = 0; i < 5; i++) {
			memset(page, link ? 0 : 5, sizeof(page));
			assert_memory_equal(got->data + i * WPT_PAGE, page, WPT_PAGE);
			assert_int_equal(wpt_ledger_known(ledger, BASE_ADDR + i * WPT_PAGE), link ? WPT_KNOWN_ZERO : WPT_KNOWN_DATA);
		}
		sink_close(&s);
	}
	wpt_ledger_close(ledger);
	image_free(got);
}

static void terabytes_of_nothing_are_quick_and_small(void **state)
{
	const uint64_t tib_pages = (uint64_t)1 << 28;
	struct wpt_ledger *ledger;
	struct wpt_layer_params p;
	struct wpt_layer_writer *w;
	struct wpt_layer_result r;
	struct wpt_batch *b;
	uint8_t page[WPT_PAGE];
	struct opened o;
	struct sink s;

	(void)state;
	memset(page, 9, sizeof(page));
	assert_int_equal(wpt_ledger_open(&ledger), 0);
	for (int link = 0; link < 3; link++) {
		p = params(link == 0, 2, ledger);
		sink_open(&s);
		w = writer_open(&s, &p);
		b = batch_get(w);
		if (link == 0) {
			item_add(b, BASE_ADDR - 64 * 4096, 64, WPT_ITEM_ZERO);
			page_add(b, 0, page, WPT_ITEM_DATA);
			page_add(b, 1, page, WPT_ITEM_DATA);
			item_add(b, BASE_ADDR + 2 * 4096, tib_pages, WPT_ITEM_ZERO);
		} else {
			item_add(b, BASE_ADDR - 64 * 4096, tib_pages, WPT_ITEM_ZERO);
		}
		submit(w, b);
		assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		r = finish(w, &s);
		wpt_ledger_commit(ledger);
		link_read(&s, NULL, &o);
		assert_int_equal(o.counts.zero, link == 1 ? 2 : 0);
		assert_int_equal(o.nr_runs, link == 2 ? 0 : link == 1 ? 1 : o.nr_runs);
		assert_int_equal(r.pages_zero, link == 0 ? tib_pages + 64 : link == 1 ? 2 : 0);
		assert_int_equal(r.pages_unchanged, link == 0 ? 0 : link == 1 ? tib_pages - 2 : tib_pages);
		assert_true(s.len < 1000);
		sink_close(&s);
	}
	wpt_ledger_close(ledger);
	/* Without a ledger an increment says it, in one run. */
	p = params(false, 2, NULL);
	sink_open(&s);
	w = writer_open(&s, &p);
	b = batch_get(w);
	item_add(b, 0, ((uint64_t)1 << 52) - 1, WPT_ITEM_ZERO);
	submit(w, b);
	finish(w, &s);
	link_read(&s, NULL, &o);
	assert_int_equal(o.nr_runs, 1);
	sink_close(&s);
}

static void torn_pages_are_flagged_and_said_again(void **state)
{
	struct wpt_ledger *ledger;
	struct image *got = image_new();
	uint8_t page[2][WPT_PAGE];

	(void)state;
	memset(page[0], 0, WPT_PAGE);
	memset(page[1], 7, WPT_PAGE);
	assert_int_equal(wpt_ledger_open(&ledger), 0);
	for (int link = 0; link < 3; link++) {
		struct wpt_layer_params p = params(link == 0, 2, ledger);
		uint32_t kind = link == 0 ? WPT_ITEM_TORN : WPT_ITEM_DATA;
		struct wpt_layer_writer *w;
		struct wpt_layer_result r;
		struct wpt_batch *b;
		struct opened o;
		struct sink s;

		sink_open(&s);
		w = writer_open(&s, &p);
		b = batch_get(w);
		page_add(b, 5, page[1], kind);
		page_add(b, 6, page[0], kind);
		submit(w, b);
		assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		r = finish(w, &s);
		wpt_ledger_commit(ledger);
		link_read(&s, got, &o);
		assert_int_equal(r.pages_torn, link == 0 ? 2 : 0);
		assert_int_equal(got->kind[5], link == 0 ? WPT_FMT_TORN : WPT_FMT_DATA);
		assert_int_equal(got->kind[6], link == 0 ? WPT_FMT_TORN : WPT_FMT_ZERO);
		assert_int_equal(r.pages_unchanged, link == 2 ? 2 : 0);
		assert_memory_equal(got->data + 5 * WPT_PAGE, page[1], WPT_PAGE);
		assert_memory_equal(got->data + 6 * WPT_PAGE, page[0], WPT_PAGE);
		sink_close(&s);
	}
	wpt_ledger_close(ledger);
	image_free(got);
}

/* The same memory has one identity, however it is compressed, batched and spread over threads. */
static void identity_does_not_depend_on_how_the_link_was_made(void **state)
{
	struct image *m = random_image();
	uint8_t first[16];

	(void)state;
	for (uint32_t i = 0; i < 6; i++) {
		struct wpt_layer_params p = params(true, 1 + i % 3, NULL);
		struct wpt_layer_writer *w;
		struct wpt_layer_result r;
		struct opened o;
		struct sink s;

		p.level = (int)i * 2 - 3;
		if (i == 4)
			m->data[17 * WPT_PAGE] ^= 1;
		if (i == 5) {
			p.carry_digest = true;
			memcpy(p.digest, first, 16);
		}
		m->state[17] = DATA;
		m->data[17 * WPT_PAGE + 1] = 1;
		sink_open(&s);
		w = writer_open(&s, &p);
		pages_write(w, m, 0, IMAGE_PAGES);
		assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		r = finish(w, &s);
		link_read(&s, NULL, &o);
		if (i == 0)
			memcpy(first, r.digest, 16);
		if (i == 4)
			assert_memory_not_equal(r.digest, first, 16);
		else
			assert_memory_equal(r.digest, first, 16);
		assert_int_equal(!!(o.head.flags & WPT_FMT_MERGED), i == 5);
		sink_close(&s);
	}
	image_free(m);
}

static void section_read(const struct sink *s, const struct opened *o, uint32_t type, uint8_t *out, size_t room, size_t *len)
{
	struct wpt_fmt_root r = o->root;
	struct wpt_fmt_section sec;
	struct wpt_fmt_part part;
	uint8_t digest[16];
	uint64_t at = 0, end;
	uint32_t index = 0;

	sec.type = ~type;
	while (sec.type != type)
		assert_int_equal(wpt_fmt_root_section(&r, &sec), 1);
	end = sec.offset + sec.stored;
	for (uint64_t p = sec.offset; p < end; index++) {
		size_t frame_len;

		assert_int_equal(wpt_fmt_frame(s->data + p, end - p, &frame_len, NULL), WPT_FMT_FRAME_BLOCK);
		assert_int_equal(wpt_fmt_part_decode(s->data + p, frame_len, &part), 0);
		assert_int_equal(part.type, type);
		assert_int_equal(part.index, index);
		p += frame_len;
		assert_int_equal(!!(part.flags & WPT_FMT_PART_LAST), p == end);
		assert_true(at + part.raw_len <= room);
		if (part.flags & WPT_FMT_PART_ZSTD)
			assert_int_equal(ZSTD_decompress(out + at, part.raw_len, part.data, part.len), part.raw_len);
		else
			memcpy(out + at, part.data, part.len);
		at += part.raw_len;
	}
	assert_int_equal(at, sec.length);
	wpt_fmt_digest(out, at, digest);
	assert_memory_equal(digest, sec.digest, 16);
	*len = at;
}

static void sections_come_back(void **state)
{
	static const size_t lengths[] = { 0, 1, 2, 5000, WPT_FMT_PART_MAX, WPT_FMT_PART_MAX + 1, 3 * WPT_FMT_PART_MAX, 5000000 };
	enum { N = sizeof(lengths) / sizeof(lengths[0]), ROOM = 6000000 };
	struct wpt_layer_params p = params(true, 2, NULL);
	uint8_t *noise = malloc(ROOM), *text = malloc(ROOM), *got = malloc(ROOM);
	struct image *m = random_image(), *read = image_new();
	struct wpt_layer_writer *w;
	struct opened o;
	struct sink s;
	size_t len;

	(void)state;
	for (size_t i = 0; i < ROOM; i++) {
		noise[i] = (uint8_t)(rng() >> 32);
		text[i] = (uint8_t)('a' + i % 23);
	}
	sink_open(&s);
	w = writer_open(&s, &p);
	for (uint32_t i = 0; i < N; i++) {
		assert_int_equal(wpt_layer_section(w, WPT_SECTION_USER + 2 * i, noise, lengths[i]), 0);
		pages_write(w, m, i * 100, i == N - 1 ? IMAGE_PAGES : i * 100 + 100);
		assert_int_equal(wpt_layer_section(w, WPT_SECTION_USER + 2 * i + 1, text, lengths[i]), 0);
	}
	assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
	assert_int_equal(wpt_layer_ranges(w, all_memory, 2), -EINVAL);
	assert_int_equal(wpt_layer_section(w, WPT_SECTION_USER, "x", 1), -EINVAL);
	assert_int_equal(wpt_layer_section(w, WPT_FMT_SECTION_RANGES, "x", 1), -EINVAL);
	finish(w, &s);
	link_read(&s, read, &o);
	same_memory(m, read);
	for (uint32_t i = 0; i < N; i++) {
		section_read(&s, &o, WPT_SECTION_USER + 2 * i, got, ROOM, &len);
		assert_int_equal(len, lengths[i]);
		assert_memory_equal(got, noise, len);
		section_read(&s, &o, WPT_SECTION_USER + 2 * i + 1, got, ROOM, &len);
		assert_int_equal(len, lengths[i]);
		assert_memory_equal(got, text, len);
	}
	free(noise);
	free(text);
	free(got);
	image_free(m);
	image_free(read);
	sink_close(&s);
}

static void ranges_come_back(void **state)
{
	enum { N = 30000, ROOM = 4 << 20 };
	struct wpt_layer_range *ranges = calloc(N, sizeof(*ranges));
	struct wpt_layer_params p = params(true, 1, NULL);
	uint8_t *got = malloc(ROOM);
	struct wpt_layer_writer *w;
	struct wpt_fmt_ranges cursor;
	struct wpt_fmt_range r;
	struct opened o;
	struct sink s;
	size_t len;

	(void)state;
	for (uint64_t i = 0; i < N; i++)
		ranges[i] = (struct wpt_layer_range){ (i * 3 + 1) << 12, (i * 3 + 2) << 12, (uint32_t)i, (uint32_t)i + 1,
						      i % 3 ? "/usr/lib/x86_64-linux-gnu/libexample.so.0" : NULL };
	sink_open(&s);
	w = writer_open(&s, &p);
	ranges[7].end = ranges[8].start + 4096;
	assert_int_equal(wpt_layer_ranges(w, ranges, N), -EINVAL);
	ranges[7].end = ranges[7].start;
	assert_int_equal(wpt_layer_ranges(w, ranges, N), -EINVAL);
	ranges[7].end = ranges[7].start + 4095;
	assert_int_equal(wpt_layer_ranges(w, ranges, N), -EINVAL);
	ranges[7].end = ranges[8].start;
	assert_int_equal(wpt_layer_ranges(w, ranges, N), 0);
	finish(w, &s);
	link_read(&s, NULL, &o);
	section_read(&s, &o, WPT_FMT_SECTION_RANGES, got, ROOM, &len);
	wpt_fmt_ranges_begin(&cursor, got, len);
	for (uint64_t i = 0; i < N; i++) {
		assert_int_equal(wpt_fmt_ranges_next(&cursor, &r), 1);
		assert_true(r.start == ranges[i].start && r.end == ranges[i].end);
		assert_true(r.kind == ranges[i].kind && r.reason == ranges[i].reason);
		assert_int_equal(r.name_len, ranges[i].name ? strlen(ranges[i].name) : 0);
		if (r.name_len)
			assert_memory_equal(r.name, ranges[i].name, r.name_len);
	}
	assert_int_equal(wpt_fmt_ranges_next(&cursor, &r), 0);
	free(ranges);
	free(got);
	sink_close(&s);
}

static void full_link_without_ranges_is_refused(void **state)
{
	struct wpt_layer_params p = params(true, 1, NULL);
	struct wpt_layer_result r;
	struct wpt_layer_writer *w;
	struct sink s;

	(void)state;
	sink_open(&s);
	w = writer_open(&s, &p);
	assert_int_equal(wpt_layer_finish(w, 0, 0, &r), -EINVAL);
	wpt_layer_writer_close(w);
	sink_close(&s);
}

static void bad_batches_are_refused_for_good(void **state)
{
	static const struct wpt_item bad[] = {
		{ 1, 1, WPT_ITEM_DATA },	     { 0, 0, WPT_ITEM_DATA },  { 0, 2, WPT_ITEM_DATA },
		{ 0, 1, 0 },			     { 0, 1, 6 },	       { 0, (uint64_t)1 << 52, WPT_ITEM_ZERO },
		{ UINT64_MAX - 4095, 2, WPT_ITEM_ZERO }, { 0, UINT64_MAX, WPT_ITEM_DATA }, { 0, 1, WPT_ITEM_ZERO },
	};

	(void)state;
	for (size_t i = 0; i < WPT_ARRAY_SIZE(bad); i++) {
		struct wpt_layer_params p = params(false, 1, NULL);
		struct wpt_layer_result r;
		struct wpt_layer_writer *w;
		struct wpt_batch *b;
		struct sink s;

		sink_open(&s);
		w = writer_open(&s, &p);
		b = batch_get(w);
		b->nr_pages = 1;
		b->items[b->nr_items++] = bad[i];
		assert_int_equal(wpt_layer_batch_submit(w, b), -EINVAL);
		assert_int_equal(wpt_layer_batch_get(w, &b, true), -EINVAL);
		assert_null(b);
		assert_int_equal(wpt_layer_finish(w, 0, 0, &r), -EINVAL);
		wpt_layer_writer_close(w);
		sink_close(&s);
	}
}

/* One link of a few of everything; the first error, or 0. */
static int whole_link(struct sink *s, const struct image *m, struct wpt_layer_result *r)
{
	struct wpt_layer_params p = params(true, 2, NULL);
	struct wpt_layer_writer *w;
	int ret, again;

	ret = wpt_layer_writer_open(&w, &s->base, &p);
	if (ret < 0)
		return ret;
	for (uint64_t i = 0; i < 8 && ret == 0; i++) {
		struct wpt_batch *b;

		ret = wpt_layer_batch_get(w, &b, true);
		if (ret < 0)
			break;
		memcpy(b->data, m->data + i * WPT_BATCH_PAGES * WPT_PAGE, WPT_BATCH_PAGES * WPT_PAGE);
		b->nr_pages = WPT_BATCH_PAGES;
		item_add(b, BASE_ADDR + i * WPT_BATCH_PAGES * WPT_PAGE, WPT_BATCH_PAGES, WPT_ITEM_DATA);
		ret = wpt_layer_batch_submit(w, b);
		if (ret == 0 && i == 3)
			ret = wpt_layer_section(w, WPT_SECTION_MAPPINGS, m->data, 3000000);
	}
	if (ret == 0)
		ret = wpt_layer_ranges(w, all_memory, 2);
	if (ret == 0)
		ret = wpt_layer_finish(w, 1, 2, r);
	if (ret < 0) {
		struct wpt_batch *b;

		again = wpt_layer_batch_get(w, &b, true);
		assert_int_equal(again, ret);
		assert_null(b);
		assert_int_equal(wpt_layer_section(w, WPT_SECTION_TAGS, "", 0), ret);
		assert_int_equal(wpt_layer_finish(w, 1, 2, r), ret);
	}
	wpt_layer_writer_close(w);
	return ret;
}

static void error_of_the_sink_at_any_write_is_kept_and_returned(void **state)
{
	struct image *m = image_new();
	struct wpt_layer_result r;
	struct sink s;
	int writes;

	(void)state;
	for (size_t i = 0; i < IMAGE_PAGES * WPT_PAGE; i++)
		m->data[i] = (uint8_t)(rng() >> 40);
	sink_open(&s);
	assert_int_equal(whole_link(&s, m, &r), 0);
	writes = s.writes;
	sink_close(&s);
	assert_true(writes > 10);
	for (int i = 0; i < writes; i++) {
		sink_open(&s);
		s.fail_at = i;
		s.error = i % 2 ? -EIO : -ENOSPC;
		assert_int_equal(whole_link(&s, m, &r), s.error);
		sink_close(&s);
	}
	image_free(m);
}

static void staging_memory_is_bounded(void **state)
{
	struct wpt_layer_params p = params(false, 2, NULL);
	struct wpt_layer_writer *w;
	struct wpt_batch *b;
	struct sink s;
	unsigned int n = 0;

	(void)state;
	sink_open(&s);
	p.staging_bytes = 6 << 20;
	w = writer_open(&s, &p);
	pthread_mutex_lock(&s.gate);
	for (;; n++) {
		assert_int_equal(wpt_layer_batch_get(w, &b, false), 0);
		if (!b)
			break;
		for (size_t i = 0; i < WPT_BATCH_PAGES * WPT_PAGE; i++)
			b->data[i] = (uint8_t)(rng() >> 40);
		b->nr_pages = WPT_BATCH_PAGES;
		item_add(b, n * WPT_BATCH_PAGES * WPT_PAGE, WPT_BATCH_PAGES, WPT_ITEM_DATA);
		submit(w, b);
		assert_true(n < 100);
	}
	assert_int_equal(n, 6);
	pthread_mutex_unlock(&s.gate);
	assert_int_equal(wpt_layer_batch_get(w, &b, true), 0);
	assert_non_null(b);
	submit(w, b);
	assert_int_equal(finish(w, &s).pages_stored, 6 * WPT_BATCH_PAGES);
	sink_close(&s);
}

static void unfinished_writer_can_be_closed(void **state)
{
	struct image *m = random_image();

	(void)state;
	wpt_layer_writer_close(NULL);
	for (int i = 0; i < scaled(20); i++) {
		struct wpt_layer_params p = params(true, 1 + (uint32_t)i % 4, NULL);
		struct wpt_layer_writer *w;
		struct sink s;

		sink_open(&s);
		w = writer_open(&s, &p);
		pages_write(w, m, 0, (uint64_t)i * 64);
		if (i % 2)
			batch_get(w);
		wpt_layer_writer_close(w);
		sink_close(&s);
	}
	image_free(m);
}

/* The sink is called by the writer's threads: what it sees of them. */
static pthread_t main_thread;
static int calls, calls_open_to_signals;

static int mask_write(struct wpt_sink *sink, const void *data, size_t len)
{
	sigset_t blocked;

	(void)sink;
	(void)data;
	(void)len;
	if (pthread_equal(pthread_self(), main_thread))
		return 0;
	pthread_sigmask(SIG_BLOCK, NULL, &blocked);
	for (int sig = 1; sig < 32; sig++) {
		if (sig != SIGKILL && sig != SIGSTOP && !sigismember(&blocked, sig)) {
			calls_open_to_signals++;
			break;
		}
	}
	calls++;
	return 0;
}

static void threads_of_the_writer_take_no_signals(void **state)
{
	struct wpt_layer_params p = params(true, 3, NULL);
	struct wpt_sink sink = { .write = mask_write };
	struct image *m = random_image();
	struct wpt_layer_result r;
	struct wpt_layer_writer *w;
	sigset_t before, after;

	(void)state;
	main_thread = pthread_self();
	pthread_sigmask(SIG_BLOCK, NULL, &before);
	assert_int_equal(wpt_layer_writer_open(&w, &sink, &p), 0);
	pages_write(w, m, 0, IMAGE_PAGES);
	assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
	assert_int_equal(wpt_layer_finish(w, 1, 2, &r), 0);
	wpt_layer_writer_close(w);
	assert_true(calls > 0);
	assert_int_equal(calls_open_to_signals, 0);
	pthread_sigmask(SIG_BLOCK, NULL, &after);
	for (int sig = 1; sig < 32; sig++)
		assert_int_equal(sigismember(&before, sig), sigismember(&after, sig));
	image_free(m);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(__GLIBC__)
/* A thread stopped by quiesce may hold malloc's lock. */
static volatile int mallocs, counting;
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

void *malloc(size_t n)
{
	if (counting)
		__atomic_add_fetch(&mallocs, 1, __ATOMIC_RELAXED);
	return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	if (counting)
		__atomic_add_fetch(&mallocs, 1, __ATOMIC_RELAXED);
	return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
	if (counting)
		__atomic_add_fetch(&mallocs, 1, __ATOMIC_RELAXED);
	return __libc_realloc(p, n);
}

static void batches_are_written_without_malloc(void **state)
{
	struct wpt_ledger *ledger;
	struct image *m = random_image();

	(void)state;
	free(malloc(1));
	assert_int_equal(wpt_ledger_open(&ledger), 0);
	for (int level = -3; level <= 9; level += 4) {
		struct wpt_layer_params p = params(true, 2, ledger);
		struct wpt_layer_writer *w;
		struct wpt_batch *b;
		struct sink s;

		p.level = level;
		sink_open(&s);
		s.discard = true;
		w = writer_open(&s, &p);
		mallocs = 0;
		counting = 1;
		pages_write(w, m, 0, IMAGE_PAGES);
		/* Compressors give memory back when many small inputs in a row do not need it, unless they can't. */
		for (int i = 0; i < 1000; i++) {
			b = batch_get(w);
			page_add(b, (uint64_t)i, m->data + (rng() % IMAGE_PAGES) * WPT_PAGE, WPT_ITEM_DATA);
			submit(w, b);
		}
		assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		finish(w, &s);
		counting = 0;
		assert_int_equal(mallocs, 0);
		wpt_ledger_rollback(ledger);
		sink_close(&s);
	}
	wpt_ledger_close(ledger);
	image_free(m);
}
#else
static void batches_are_written_without_malloc(void **state)
{
	(void)state;
	print_message("# skipped: needs glibc's malloc, which the sanitizer replaces\n");
	skip();
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(full_link_holds_what_was_handed_over),
		cmocka_unit_test(link_is_a_zstd_stream_of_the_pages_in_order),
		cmocka_unit_test(one_page_increment_costs_at_most_512_bytes),
		cmocka_unit_test(pages_with_equal_hashes_are_both_kept),
		cmocka_unit_test(forged_page_is_not_taken_for_the_old_one),
		cmocka_unit_test(increments_say_what_changed_and_nothing_else),
		cmocka_unit_test(full_link_late_in_a_chain_is_complete),
		cmocka_unit_test(page_written_twice_in_a_link_ends_as_the_later_copy),
		cmocka_unit_test(ledger_hears_of_copies_in_the_order_of_the_file),
		cmocka_unit_test(ledger_hears_of_a_batch_that_goes_back_before_the_next),
		cmocka_unit_test(batch_may_hold_a_page_twice),
		cmocka_unit_test(zeros_around_a_staged_page_of_zeros_are_all_said),
		cmocka_unit_test(terabytes_of_nothing_are_quick_and_small),
		cmocka_unit_test(torn_pages_are_flagged_and_said_again),
		cmocka_unit_test(identity_does_not_depend_on_how_the_link_was_made),
		cmocka_unit_test(sections_come_back),
		cmocka_unit_test(ranges_come_back),
		cmocka_unit_test(full_link_without_ranges_is_refused),
		cmocka_unit_test(bad_batches_are_refused_for_good),
		cmocka_unit_test(error_of_the_sink_at_any_write_is_kept_and_returned),
		cmocka_unit_test(staging_memory_is_bounded),
		cmocka_unit_test(unfinished_writer_can_be_closed),
		cmocka_unit_test(threads_of_the_writer_take_no_signals),
		cmocka_unit_test(batches_are_written_without_malloc),
	};

	return cmocka_run_group_tests_name("layer", tests, NULL, NULL);
}
