/* SPDX-License-Identifier: MIT */
/*
 * The writer of a link, against a shadow copy of what was handed to it. The links are read back by a reader of this file's own: a walk
 * over all frames with zstd, and the records of every leaf; it shares only the decoders with the library.
 */
#include "layer.h"
#include "layer_dedup.h"
#include "layer_index.h"
#include "page.h"
#include "pipe.h"

#include <dirent.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <zstd.h>

#include <cmocka.h>

/* ---- a sink that keeps everything, fails at a chosen write, or holds writes up ---- */

struct sink {
	struct wpt_sink base;
	uint8_t *data;
	size_t len, room;
	int writes, fail_at;   /* fail_at: number of the write that fails, -1: none */
	int error;
	bool discard;
	pthread_mutex_t gate;
};

static int sink_write(struct wpt_sink *base, const void *data, size_t len)
{
	struct sink *s = (struct sink *)base;

	pthread_mutex_lock(&s->gate);
	pthread_mutex_unlock(&s->gate);
	if (s->writes++ == s->fail_at)
		return s->error;
	if (s->discard) {
		s->len += len;
		return 0;
	}
	if (s->len + len > s->room) {
		s->room = (s->len + len) * 2;
		s->data = realloc(s->data, s->room);
		assert_non_null(s->data);
	}
	memcpy(s->data + s->len, data, len);
	s->len += len;
	return 0;
}

static void sink_open(struct sink *s)
{
	memset(s, 0, sizeof(*s));
	s->base.write = sink_write;
	s->fail_at = -1;
	s->error = -ENOSPC;
	pthread_mutex_init(&s->gate, NULL);
}

static void sink_close(struct sink *s)
{
	free(s->data);
	s->data = NULL;
}

/* ---- the reader of this test ---- */

enum { UNSAID, ZERO, DATA, UNREADABLE, GUARD };

#define IMAGE_PAGES 4096u
#define BASE_ADDR 0x7f0000000000ull

/* What links say of a window of memory. */
struct image {
	uint8_t state[IMAGE_PAGES];
	uint8_t kind[IMAGE_PAGES];
	uint8_t *data;
};

struct opened {
	struct wpt_fmt_head head;
	struct wpt_fmt_root root;
	struct wpt_fmt_trailer trailer;
	uint64_t nr_leaves, nr_nodes, nr_runs, nr_frames;
	struct wpt_fmt_counts counts;
};

static uint64_t rng_state = 88172645463325252ull;

static uint64_t rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
}

static struct image *image_new(void)
{
	struct image *m = calloc(1, sizeof(*m));

	assert_non_null(m);
	m->data = calloc(IMAGE_PAGES, WPT_PAGE);
	assert_non_null(m->data);
	return m;
}

static void image_free(struct image *m)
{
	free(m->data);
	free(m);
}

/* Frames of the link in hand that were unpacked already; `unpacked` is forgotten with each link. */
enum { UNPACKED = 64 };
static struct {
	bool used;
	uint64_t offset;
	uint8_t raw[WPT_FMT_FRAME_PAGES * WPT_PAGE];
} unpacked[UNPACKED];

static const uint8_t *unpack(const struct sink *s, const struct wpt_fmt_frame_info *f)
{
	unsigned int i = f->offset * 2654435761u / 65536 % UNPACKED;

	if (!unpacked[i].used || unpacked[i].offset != f->offset)
		assert_int_equal(ZSTD_decompress(unpacked[i].raw, sizeof(unpacked[i].raw), s->data + f->offset, f->length),
				 f->nr_pages * WPT_PAGE);
	unpacked[i].used = true;
	unpacked[i].offset = f->offset;
	return unpacked[i].raw;
}

static void run_apply(const struct sink *s, struct wpt_fmt_leaf *leaf, const struct wpt_fmt_run *run,
		      const struct wpt_page_key *key, struct image *m)
{
	const uint8_t *raw = NULL;
	struct wpt_fmt_frame_info frame;
	uint64_t first = BASE_ADDR >> WPT_PAGE_SHIFT;

	if (wpt_fmt_has_data(run->kind)) {
		assert_int_equal(wpt_fmt_leaf_frame(leaf, run->frame, &frame), 0);
		assert_true(frame.offset + frame.length <= s->len);
		assert_true(wpt_fmt_checksum(s->data + frame.offset, frame.length) == frame.checksum);
		raw = unpack(s, &frame);
	}
	for (uint64_t i = 0; i < run->nr_pages; i++) {
		uint64_t page = run->page + i - first;
		uint8_t hash[16];

		if (page >= IMAGE_PAGES)
			break;
		m->kind[page] = (uint8_t)run->kind;
		m->state[page] = run->kind == WPT_FMT_ZERO	 ? ZERO
				 : run->kind == WPT_FMT_UNREADABLE ? UNREADABLE
				 : run->kind == WPT_FMT_GUARD	 ? GUARD
								 : DATA;
		memset(m->data + page * WPT_PAGE, 0, WPT_PAGE);
		if (m->state[page] != DATA)
			continue;
		memcpy(m->data + page * WPT_PAGE, raw + (run->slot + i) * WPT_PAGE, WPT_PAGE);
		wpt_page_hash(key, m->data + page * WPT_PAGE, hash);
		assert_memory_equal(hash, run->hashes + i * 16, 16);
	}
}

static void count_run(struct wpt_fmt_counts *c, const struct wpt_fmt_run *run)
{
	uint64_t *by_kind[] = { NULL, &c->data, &c->torn, &c->duplicate, &c->zero, &c->unreadable, &c->guard };

	*by_kind[run->kind] += run->nr_pages;
}

static void children_read(const struct sink *s, struct wpt_fmt_children *c, const struct wpt_page_key *key, struct image *m,
			  struct opened *o, struct wpt_fmt_records *records)
{
	struct wpt_fmt_child child;
	struct wpt_fmt_children below;
	struct wpt_fmt_leaf leaf;
	struct wpt_fmt_run run;
	uint64_t checksum;
	int ret;

	while ((ret = wpt_fmt_children_next(c, &child)) > 0) {
		const uint8_t *block = s->data + child.offset;
		uint64_t pages = 0;

		assert_true(child.offset + child.length <= s->len);
		assert_int_equal(wpt_fmt_block(block, child.length, NULL, &checksum), 0);
		assert_true(checksum == child.checksum);
		if (c->level > 1) {
			assert_int_equal(wpt_fmt_node_decode(block, child.length, &below), 0);
			assert_true(below.level < c->level);
			o->nr_nodes++;
			children_read(s, &below, key, m, o, records);
			continue;
		}
		assert_int_equal(wpt_fmt_leaf_decode(block, child.length, &leaf), 0);
		assert_true(leaf.first_page == child.first_page && leaf.end_page == child.end_page);
		o->nr_leaves++;
		while ((ret = wpt_fmt_leaf_next(&leaf, &run)) > 0) {
			o->nr_runs++;
			pages += run.nr_pages;
			count_run(&o->counts, &run);
			wpt_fmt_records_run(records, &run);
			if (m)
				run_apply(s, &leaf, &run, key, m);
		}
		assert_int_equal(ret, 0);
		assert_true(pages == child.nr_pages);
	}
	assert_int_equal(ret, 0);
}

/* Every frame from the front: each is whole and checksummed, the trailer is the last, and its digest is of them all. */
static void walk(const struct sink *s, struct opened *o)
{
	struct wpt_fmt_hash hash;
	uint8_t digest[16];
	size_t at = 0;

	wpt_fmt_hash_init(&hash);
	while (at < s->len - WPT_FMT_TRAILER_SIZE) {
		uint64_t checksum = 0;
		size_t len = 0;
		int kind = wpt_fmt_frame(s->data + at, s->len - at, &len, NULL);

		assert_true(kind > 0);
		if (kind == WPT_FMT_FRAME_BLOCK) {
			assert_int_equal(wpt_fmt_block(s->data + at, len, NULL, &checksum), 0);
		} else {
			len = ZSTD_findFrameCompressedSize(s->data + at, s->len - at);
			assert_false(ZSTD_isError(len));
			assert_true(len <= WPT_FMT_FRAME_MAX);
			checksum = wpt_fmt_checksum(s->data + at, len);
			o->nr_frames++;
		}
		wpt_fmt_hash_u64(&hash, checksum);
		at += len;
	}
	assert_int_equal(at, o->trailer.offset);
	wpt_fmt_hash_final(&hash, digest);
	assert_memory_equal(digest, o->trailer.file_digest, 16);
}

static const uint8_t *section_digest(const struct opened *o, uint32_t type, uint8_t out[16])
{
	struct wpt_fmt_root r = o->root;
	struct wpt_fmt_section s;

	while (wpt_fmt_root_section(&r, &s) > 0) {
		if (s.type == type) {
			memcpy(out, s.digest, 16);
			return out;
		}
	}
	return NULL;
}

/* Opens and checks the link in the sink and applies what it says to `m` (may be NULL). */
static void link_read(const struct sink *s, struct image *m, struct opened *o)
{
	struct wpt_page_key key;
	struct wpt_fmt_records records;
	uint8_t digest[16], ranges[16];
	size_t len;

	memset(o, 0, sizeof(*o));
	for (int i = 0; i < UNPACKED; i++)
		unpacked[i].used = false;
	assert_true(s->len > WPT_FMT_TRAILER_SIZE);
	assert_int_equal(wpt_fmt_trailer_decode(s->data + s->len - WPT_FMT_TRAILER_SIZE, WPT_FMT_TRAILER_SIZE, &o->trailer), 0);
	assert_int_equal(o->trailer.offset, s->len - WPT_FMT_TRAILER_SIZE);
	assert_int_equal(wpt_fmt_frame(s->data, s->len, &len, NULL), WPT_FMT_FRAME_BLOCK);
	assert_int_equal(wpt_fmt_head_decode(s->data, len, &o->head), 0);
	assert_int_equal(wpt_fmt_root_decode(s->data + o->trailer.root_offset, o->trailer.root_length, &o->root), 0);
	walk(s, o);
	if (m && o->head.flags & WPT_FMT_FULL) {
		memset(m->state, 0, sizeof(m->state));
		memset(m->data, 0, IMAGE_PAGES * WPT_PAGE);
	}
	wpt_page_key_init(&key, o->head.key);
	wpt_fmt_records_init(&records);
	struct wpt_fmt_children children = o->root.children;
	children_read(s, &children, &key, m, o, &records);
	wpt_fmt_records_final(&records, digest);
	wpt_fmt_identity(&o->head, digest, section_digest(o, WPT_FMT_SECTION_RANGES, ranges), digest);
	if (!(o->head.flags & WPT_FMT_MERGED))
		assert_memory_equal(digest, o->trailer.digest, 16);
	assert_true(o->counts.data == o->root.counts.data && o->counts.torn == o->root.counts.torn);
	assert_true(o->counts.duplicate == o->root.counts.duplicate && o->counts.guard == o->root.counts.guard);
	assert_true(o->counts.unreadable == o->root.counts.unreadable);
	if (!(o->head.flags & WPT_FMT_FULL))
		assert_true(o->counts.zero == o->root.counts.zero);
}

/* ---- making links ---- */

static const struct wpt_layer_range all_memory[] = {
	{ 0x10000, 0x20000, WPT_KIND_ANON, 0, "[heap]" },
	{ BASE_ADDR, BASE_ADDR + (uint64_t)IMAGE_PAGES * WPT_PAGE, WPT_KIND_SHMEM, WPT_REASON_VERIFY, NULL },
};

static struct wpt_layer_params params(bool full, uint32_t nr_threads, struct wpt_ledger *ledger)
{
	struct wpt_layer_params p = { .full = full, .level = 1, .nr_threads = nr_threads, .staging_bytes = 8 << 20 };

	memset(p.key, 0x5a, sizeof(p.key));
	memset(p.identity.chain_id, 0xc1, 16);
	memset(p.identity.link_id, 0x11, 16);
	if (!full) {
		p.identity.sequence = 7;
		memset(p.identity.parent_id, 0x22, 16);
		memset(p.identity.parent_digest, 0x33, 16);
	}
	strcpy(p.origin.boot_id, "01234567-89ab-cdef-0123-456789abcdef");
	strcpy(p.origin.comm, "test");
	p.origin.pid = 4711;
	p.origin.start_time = 123456;
	p.ledger = ledger;
	return p;
}

static struct wpt_layer_writer *writer_open(struct sink *s, const struct wpt_layer_params *p)
{
	struct wpt_layer_writer *w = NULL;

	assert_int_equal(wpt_layer_writer_open(&w, &s->base, p), 0);
	return w;
}

static struct wpt_batch *batch_get(struct wpt_layer_writer *w)
{
	struct wpt_batch *b = NULL;

	assert_int_equal(wpt_layer_batch_get(w, &b, true), 0);
	assert_non_null(b);
	return b;
}

static void item_add(struct wpt_batch *b, uint64_t addr, uint64_t nr, uint32_t kind)
{
	b->items[b->nr_items++] = (struct wpt_item){ addr, nr, kind };
}

static void page_add(struct wpt_batch *b, uint64_t page, const void *data, uint32_t kind)
{
	memcpy(b->data + (size_t)b->nr_pages++ * WPT_PAGE, data, WPT_PAGE);
	item_add(b, BASE_ADDR + page * WPT_PAGE, 1, kind);
}

static void submit(struct wpt_layer_writer *w, struct wpt_batch *b)
{
	assert_int_equal(wpt_layer_batch_submit(w, b), 0);
}

static struct wpt_layer_result finish(struct wpt_layer_writer *w, const struct sink *s)
{
	struct wpt_layer_result r;

	assert_int_equal(wpt_layer_finish(w, 1111, 2222, &r), 0);
	assert_int_equal(r.bytes, s->len);
	wpt_layer_writer_close(w);
	return r;
}

/* A page of one of a few sorts: noise, text, one of eight that repeat, zero. */
static void page_fill(uint8_t *page)
{
	uint64_t sort = rng() % 8;

	memset(page, 0, WPT_PAGE);
	if (sort < 2)
		return;
	if (sort < 4) {
		memset(page, 'a' + (int)(rng() % 8), WPT_PAGE);
		page[100] = 1;
		return;
	}
	for (size_t i = 0; i < WPT_PAGE; i += 8) {
		uint64_t v = sort < 6 ? rng() : rng() & 0x0303030303030303;

		memcpy(page + i, &v, 8);
	}
}

static bool all_zero(const uint8_t *page)
{
	for (size_t i = 0; i < WPT_PAGE; i++)
		if (page[i])
			return false;
	return true;
}

/* Hands pages [first, end) of `m` over, in batches and items of random size. */
static void pages_write(struct wpt_layer_writer *w, const struct image *m, uint64_t first, uint64_t end)
{
	while (first < end) {
		struct wpt_batch *b = batch_get(w);
		uint64_t limit = 1 + rng() % WPT_BATCH_PAGES;

		while (first < end && b->nr_pages < limit && b->nr_items < WPT_BATCH_ITEMS) {
			uint64_t n = 1 + rng() % 40;

			n = WPT_MIN(n, WPT_MIN(end - first, WPT_BATCH_PAGES - b->nr_pages));
			if (m->state[first] != DATA) {
				uint32_t kind = m->state[first] == ZERO ? WPT_ITEM_ZERO
						: m->state[first] == GUARD ? WPT_ITEM_GUARD
									   : WPT_ITEM_UNREADABLE;

				n = 1;
				item_add(b, BASE_ADDR + first * WPT_PAGE, n, kind);
			} else {
				for (uint64_t i = 1; i < n; i++)
					if (m->state[first + i] != DATA)
						n = i;
				memcpy(b->data + (size_t)b->nr_pages * WPT_PAGE, m->data + first * WPT_PAGE, n * WPT_PAGE);
				item_add(b, BASE_ADDR + first * WPT_PAGE, n, WPT_ITEM_DATA);
				b->nr_pages += (uint32_t)n;
			}
			first += n;
		}
		submit(w, b);
	}
}

static struct image *random_image(void)
{
	struct image *m = image_new();

	for (uint64_t i = 0; i < IMAGE_PAGES; i++) {
		uint64_t sort = rng() % 64;

		m->state[i] = sort == 0 ? ZERO : sort == 1 ? UNREADABLE : sort == 2 ? GUARD : DATA;
		if (m->state[i] == DATA)
			page_fill(m->data + i * WPT_PAGE);
	}
	return m;
}

static void same_memory(const struct image *want, const struct image *got)
{
	for (uint64_t i = 0; i < IMAGE_PAGES; i++) {
		bool unread = want->state[i] == UNREADABLE || want->state[i] == GUARD;

		if (unread != (got->state[i] == UNREADABLE || got->state[i] == GUARD) || (unread && got->state[i] != want->state[i]))
			fail_msg("page %u: state %u, not %u", (unsigned int)i, got->state[i], want->state[i]);
		if (memcmp(want->data + i * WPT_PAGE, got->data + i * WPT_PAGE, WPT_PAGE) != 0)
			fail_msg("page %u differs", (unsigned int)i);
	}
}

/* ---- tests ---- */

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
	for (int link = 0; link < 12; link++) {
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
	for (int round = 0; round < 40; round++) {
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
	for (int link = 0; link < 300; link++) {
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
	for (int i = 0; i < 20; i++) {
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

/* A sanitizer has a thread of its own. */
static int threads_without_signals(void)
{
	DIR *d = opendir("/proc/self/task");
	struct dirent *e;
	int count = 0;

	assert_non_null(d);
	while ((e = readdir(d))) {
		char path[300], line[200];
		unsigned long long blocked = 0;
		FILE *f;

		if (e->d_name[0] == '.' || atoi(e->d_name) == getpid())
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%s/status", e->d_name);
		f = fopen(path, "r");
		assert_non_null(f);
		while (fgets(line, sizeof(line), f))
			sscanf(line, "SigBlk: %llx", &blocked);
		fclose(f);
		for (int sig = 1; sig < 32; sig++)
			if (sig != SIGKILL && sig != SIGSTOP && !(blocked >> (sig - 1) & 1))
				blocked = 0;
		count += blocked != 0;
	}
	closedir(d);
	return count;
}

static void threads_of_the_writer_take_no_signals(void **state)
{
	struct wpt_layer_params p = params(true, 3, NULL);
	struct wpt_layer_writer *w;
	struct sink s;
	int before = threads_without_signals();

	(void)state;
	sink_open(&s);
	w = writer_open(&s, &p);
	assert_int_equal(threads_without_signals() - before, 3);
	wpt_layer_writer_close(w);
	sink_close(&s);
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

/* ---- the tree of leaves ---- */

static void tree_of_many_leaves_is_found_again(void **state)
{
	/* Each page lies before the one before it, so each makes a leaf of its own. */
	enum { LEAVES = 200000 };
	static const uint8_t digest[16];
	struct wpt_layer_index x;
	struct wpt_fmt_root root = { .time_ns = 1 };
	struct wpt_fmt_trailer trailer = { .sequence = 1 };
	struct wpt_fmt_head head = { .flags = WPT_FMT_FULL, .page_shift = 12 };
	struct wpt_fmt_children c;
	struct wpt_fmt_records records;
	struct opened o = { 0 };
	struct sink s;
	uint8_t bytes[WPT_FMT_HEAD_MAX];

	(void)state;
	sink_open(&s);
	assert_int_equal(wpt_layer_index_init(&x, &s.base), 0);
	assert_int_equal(wpt_layer_index_block(&x, bytes, wpt_fmt_head_encode(&head, bytes)), 0);
	for (uint64_t i = 0; i < LEAVES; i++) {
		struct wpt_fmt_run run = { .page = (LEAVES - i) * 4 + 1000, .nr_pages = 1 + i % 9, .kind = WPT_FMT_ZERO };

		assert_int_equal(wpt_layer_index_run(&x, &run, 0), 0);
		root.counts.zero += run.nr_pages;
	}
	memcpy(trailer.digest, digest, 16);
	assert_int_equal(wpt_layer_index_finish(&x, &root, NULL, &trailer), 0);
	assert_int_equal(x.offset, s.len);
	wpt_layer_index_free(&x);
	assert_int_equal(wpt_fmt_trailer_decode(s.data + s.len - WPT_FMT_TRAILER_SIZE, WPT_FMT_TRAILER_SIZE, &o.trailer), 0);
	assert_int_equal(wpt_fmt_root_decode(s.data + o.trailer.root_offset, o.trailer.root_length, &o.root), 0);
	walk(&s, &o);
	wpt_fmt_records_init(&records);
	c = o.root.children;
	assert_true(c.level > 1);
	children_read(&s, &c, NULL, NULL, &o, &records);
	assert_int_equal(o.nr_leaves, LEAVES);
	assert_true(o.nr_nodes >= 3);
	assert_true(o.counts.zero == root.counts.zero);
	sink_close(&s);
}

static void leaves_fill_up_and_their_frames_are_found(void **state)
{
	/* More pages than a leaf holds, each a duplicate in a frame of its own: runs and frame tables overflow. */
	enum { FRAMES = 3000, RUNS = 120000 };
	static uint8_t hashes[256 * 16];
	struct wpt_layer_index x;
	struct wpt_fmt_root root = { .time_ns = 1 };
	struct wpt_fmt_trailer trailer = { .sequence = 1 };
	struct wpt_fmt_children c;
	struct wpt_fmt_child child;
	struct wpt_fmt_leaf leaf;
	struct wpt_fmt_run run;
	struct wpt_fmt_frame_info info;
	struct sink s;
	uint64_t n = 0;
	int ret;

	(void)state;
	sink_open(&s);
	assert_int_equal(wpt_layer_index_init(&x, &s.base), 0);
	for (uint64_t i = 0; i < FRAMES; i++)
		assert_int_equal(wpt_layer_index_data(&x, i, (const uint8_t *)"0123456789", 10, 256, i), 0);
	for (uint64_t i = 0; i < RUNS; i++) {
		run = (struct wpt_fmt_run){ i * 300, 1 + i % 3, WPT_FMT_DUPLICATE, 99, (uint32_t)(i % 250), hashes };
		memcpy(hashes, &i, sizeof(i));
		assert_int_equal(wpt_layer_index_run(&x, &run, i * 7919 % FRAMES), 0);
	}
	assert_int_equal(wpt_layer_index_finish(&x, &root, NULL, &trailer), 0);
	wpt_layer_index_free(&x);
	assert_int_equal(wpt_fmt_root_decode(s.data + trailer.root_offset, trailer.root_length, &root), 0);
	c = root.children;
	while ((ret = wpt_fmt_children_next(&c, &child)) > 0) {
		assert_int_equal(wpt_fmt_leaf_decode(s.data + child.offset, child.length, &leaf), 0);
		while ((ret = wpt_fmt_leaf_next(&leaf, &run)) > 0) {
			assert_int_equal(run.page, n * 300);
			assert_int_equal(run.nr_pages, 1 + n % 3);
			assert_int_equal(run.slot, n % 250);
			assert_memory_equal(run.hashes, &n, sizeof(n));
			assert_int_equal(wpt_fmt_leaf_frame(&leaf, run.frame, &info), 0);
			assert_int_equal(info.checksum, n * 7919 % FRAMES);
			assert_int_equal(info.offset, n * 7919 % FRAMES * 10);
			n++;
		}
		assert_int_equal(ret, 0);
	}
	assert_int_equal(ret, 0);
	assert_int_equal(n, RUNS);
	assert_true(root.children.nr > 2);
	sink_close(&s);
}

/* ---- duplicates ---- */

static void duplicates_point_backwards_only(void **state)
{
	struct wpt_layer_dedup *d;
	struct wpt_layer_place place;
	uint8_t page[WPT_PAGE] = { 1 }, hash[16] = { 2 };

	(void)state;
	assert_int_equal(wpt_layer_dedup_open(&d), 0);
#define FIND(f, s, oldest) (place = (struct wpt_layer_place){ f, s }, wpt_layer_dedup_find(d, page, hash, oldest, &place))
	assert_false(FIND(10, 1, 0));
	assert_false(FIND(10, 2, 0));
	assert_true(FIND(12, 3, 0));
	assert_true(place.frame == 10 && place.slot == 2);
	assert_false(FIND(9, 4, 0)); /* 10 comes later in the file; 9 is kept instead */
	assert_true(FIND(10, 5, 0));
	assert_true(place.frame == 9 && place.slot == 4);
	assert_false(FIND(50, 6, 20)); /* 9 is forgotten */
	assert_true(FIND(50, 7, 20));
	assert_true(place.frame == 50 && place.slot == 6);
	page[5] = 1; /* other bytes, the same hash */
	assert_false(FIND(51, 0, 0));
#undef FIND
	wpt_layer_dedup_close(d);
}

/* ---- the pipe ---- */

struct number {
	struct wpt_pipe_job job;
	uint64_t n, square;
};

struct pipe_test {
	uint64_t emitted;
	uint64_t fail_work, fail_emit; /* job that fails, UINT64_MAX: none */
	uint64_t working, barrier_seen;
	uint8_t out_ok;
};

static int number_work(void *arg, uint32_t thread, struct wpt_pipe_job *job)
{
	struct pipe_test *t = arg;
	struct number *x = (struct number *)job;
	uint64_t *out = job->out;

	(void)thread;
	if (job->barrier && __atomic_load_n(&t->emitted, __ATOMIC_SEQ_CST) != x->n)
		__atomic_store_n(&t->barrier_seen, 1, __ATOMIC_SEQ_CST);
	x->square = x->n;
	for (uint64_t i = 0; i < x->n * 2654435761u % 997; i++)
		x->square = x->square * 6364136223846793005u + 1;
	*out = x->square;
	return x->n == t->fail_work ? -EIO : 0;
}

static int number_emit(void *arg, struct wpt_pipe_job *job)
{
	struct pipe_test *t = arg;
	struct number *x = (struct number *)job;

	if (__atomic_load_n(&t->emitted, __ATOMIC_SEQ_CST) != x->n || job->order != x->n ||
	    *(uint64_t *)job->out != x->square)
		return -EDOM;
	if (x->n == t->fail_emit)
		return -ENOSPC;
	__atomic_store_n(&t->emitted, x->n + 1, __ATOMIC_SEQ_CST);
	return 0;
}

static int pipe_run(struct pipe_test *t, uint32_t threads, uint32_t nr_jobs, uint64_t count)
{
	struct wpt_pipe_params p = { threads, 64, number_work, number_emit, t };
	struct number *jobs = calloc(nr_jobs, sizeof(*jobs));
	struct wpt_pipe *pipe;
	struct wpt_pipe_job *job;
	int ret = 0;

	assert_int_equal(wpt_pipe_open(&pipe, &p), 0);
	for (uint32_t i = 0; i < nr_jobs; i++)
		wpt_pipe_add(pipe, &jobs[i].job);
	for (uint64_t n = 0; n < count && ret == 0; n++) {
		ret = wpt_pipe_get(pipe, &job, true);
		if (ret < 0)
			break;
		((struct number *)job)->n = n;
		ret = wpt_pipe_submit(pipe, job, n % 37 == 36);
		if (ret == 0 && n % 101 == 100)
			ret = wpt_pipe_drain(pipe);
		if (ret == 0 && n % 101 == 100)
			assert_int_equal(t->emitted, n + 1);
	}
	if (wpt_pipe_drain(pipe) != ret && ret)
		ret = -EDOM;
	ret = wpt_pipe_drain(pipe);
	wpt_pipe_close(pipe);
	free(jobs);
	return ret;
}

static void results_come_in_order_whatever_the_threads_do(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 300; i++) {
		struct pipe_test t = { .fail_work = UINT64_MAX, .fail_emit = UINT64_MAX };

		assert_int_equal(pipe_run(&t, 1 + i % 9, 1 + i % 13, 500), 0);
		assert_int_equal(t.emitted, 500);
		assert_int_equal(t.barrier_seen, 0);
	}
}

static void first_error_of_the_pipe_ends_it(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 200; i++) {
		struct pipe_test t = { .fail_work = UINT64_MAX, .fail_emit = UINT64_MAX };

		if (i % 2)
			t.fail_work = i;
		else
			t.fail_emit = i;
		assert_int_equal(pipe_run(&t, 1 + i % 5, 2 + i % 11, 300), i % 2 ? -EIO : -ENOSPC);
		assert_true(t.emitted <= i);
	}
}

/* An emission that is under way while another thread meets an error does not undo it. */
struct gates {
	sem_t entered, leave;
};

static int no_work(void *arg, uint32_t thread, struct wpt_pipe_job *job)
{
	(void)arg;
	(void)thread;
	(void)job;
	return 0;
}

static int gated_emit(void *arg, struct wpt_pipe_job *job)
{
	struct gates *g = arg;

	(void)job;
	sem_post(&g->entered);
	sem_wait(&g->leave);
	return 0;
}

static void error_during_an_emission_is_kept(void **state)
{
	struct gates g;
	struct wpt_pipe_params p = { 2, 64, no_work, gated_emit, &g };
	struct wpt_pipe_job jobs[2], *job;
	struct wpt_pipe *pipe;

	(void)state;
	sem_init(&g.entered, 0, 0);
	sem_init(&g.leave, 0, 0);
	assert_int_equal(wpt_pipe_open(&pipe, &p), 0);
	for (int i = 0; i < 2; i++)
		wpt_pipe_add(pipe, &jobs[i]);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(wpt_pipe_get(pipe, &job, false), 0);
		assert_int_equal(wpt_pipe_submit(pipe, job, false), 0);
	}
	assert_int_equal(wpt_pipe_get(pipe, &job, false), 0);
	assert_null(job);
	sem_wait(&g.entered);
	assert_int_equal(wpt_pipe_fail(pipe, -EIO), -EIO);
	assert_int_equal(wpt_pipe_fail(pipe, -EPIPE), -EIO);
	sem_post(&g.leave);
	assert_int_equal(wpt_pipe_drain(pipe), -EIO);
	assert_int_equal(sem_trywait(&g.entered), -1);
	wpt_pipe_close(pipe);
}

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
		cmocka_unit_test(batch_may_hold_a_page_twice),
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
		cmocka_unit_test(tree_of_many_leaves_is_found_again),
		cmocka_unit_test(leaves_fill_up_and_their_frames_are_found),
		cmocka_unit_test(duplicates_point_backwards_only),
		cmocka_unit_test(results_come_in_order_whatever_the_threads_do),
		cmocka_unit_test(first_error_of_the_pipe_ends_it),
		cmocka_unit_test(error_during_an_emission_is_kept),
	};

	return cmocka_run_group_tests_name("layer", tests, NULL, NULL);
}
