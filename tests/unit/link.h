/* SPDX-License-Identifier: MIT */
/*
 * What tests of the link writer share: a sink, a shadow copy of memory, and a reader of their own: a walk over all frames with zstd, and
 * the records of every leaf; it has only the decoders in common with the library.
 */
#ifndef WPT_TESTS_LINK_H
#define WPT_TESTS_LINK_H

#include "layer.h"
#include "page.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <zstd.h>

#include <cmocka.h>

/* A machine that is emulated does less of the same. */
static inline int scaled(int n)
{
	return getenv("WPT_QUICK") ? 1 + n / 8 : n;
}

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

static inline int sink_write(struct wpt_sink *base, const void *data, size_t len)
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

static inline void sink_open(struct sink *s)
{
	memset(s, 0, sizeof(*s));
	s->base.write = sink_write;
	s->fail_at = -1;
	s->error = -ENOSPC;
	pthread_mutex_init(&s->gate, NULL);
}

static inline void sink_close(struct sink *s)
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

static inline uint64_t rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
}

static inline struct image *image_new(void)
{
	struct image *m = calloc(1, sizeof(*m));

	assert_non_null(m);
	m->data = calloc(IMAGE_PAGES, WPT_PAGE);
	assert_non_null(m->data);
	return m;
}

static inline void image_free(struct image *m)
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

static inline const uint8_t *unpack(const struct sink *s, const struct wpt_fmt_frame_info *f)
{
	unsigned int i = f->offset * 2654435761u / 65536 % UNPACKED;

	if (!unpacked[i].used || unpacked[i].offset != f->offset)
		assert_int_equal(ZSTD_decompress(unpacked[i].raw, sizeof(unpacked[i].raw), s->data + f->offset, f->length),
				 f->nr_pages * WPT_PAGE);
	unpacked[i].used = true;
	unpacked[i].offset = f->offset;
	return unpacked[i].raw;
}

static inline void run_apply(const struct sink *s, struct wpt_fmt_leaf *leaf, const struct wpt_fmt_run *run,
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

static inline void count_run(struct wpt_fmt_counts *c, const struct wpt_fmt_run *run)
{
	uint64_t *by_kind[] = { NULL, &c->data, &c->torn, &c->duplicate, &c->zero, &c->unreadable, &c->guard };

	*by_kind[run->kind] += run->nr_pages;
}

static inline void children_read(const struct sink *s, struct wpt_fmt_children *c, const struct wpt_page_key *key, struct image *m,
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
static inline void walk(const struct sink *s, struct opened *o)
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

static inline const uint8_t *section_digest(const struct opened *o, uint32_t type, uint8_t out[16])
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
static inline void link_read(const struct sink *s, struct image *m, struct opened *o)
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

static inline struct wpt_layer_params params(bool full, uint32_t nr_threads, struct wpt_ledger *ledger)
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

static inline struct wpt_layer_writer *writer_open(struct sink *s, const struct wpt_layer_params *p)
{
	struct wpt_layer_writer *w = NULL;

	assert_int_equal(wpt_layer_writer_open(&w, &s->base, p), 0);
	return w;
}

static inline struct wpt_batch *batch_get(struct wpt_layer_writer *w)
{
	struct wpt_batch *b = NULL;

	assert_int_equal(wpt_layer_batch_get(w, &b, true), 0);
	assert_non_null(b);
	return b;
}

static inline void item_add(struct wpt_batch *b, uint64_t addr, uint64_t nr, uint32_t kind)
{
	b->items[b->nr_items++] = (struct wpt_item){ addr, nr, kind };
}

static inline void page_add(struct wpt_batch *b, uint64_t page, const void *data, uint32_t kind)
{
	memcpy(b->data + (size_t)b->nr_pages++ * WPT_PAGE, data, WPT_PAGE);
	item_add(b, BASE_ADDR + page * WPT_PAGE, 1, kind);
}

static inline void submit(struct wpt_layer_writer *w, struct wpt_batch *b)
{
	assert_int_equal(wpt_layer_batch_submit(w, b), 0);
}

static inline struct wpt_layer_result finish(struct wpt_layer_writer *w, const struct sink *s)
{
	struct wpt_layer_result r;

	assert_int_equal(wpt_layer_finish(w, 1111, 2222, &r), 0);
	assert_int_equal(r.bytes, s->len);
	wpt_layer_writer_close(w);
	return r;
}

/* A page of one of a few sorts: noise, text, one of eight that repeat, zero. */
static inline void page_fill(uint8_t *page)
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

static inline bool all_zero(const uint8_t *page)
{
	for (size_t i = 0; i < WPT_PAGE; i++)
		if (page[i])
			return false;
	return true;
}

/* Hands pages [first, end) of `m` over, in batches and items of random size. */
static inline void pages_write(struct wpt_layer_writer *w, const struct image *m, uint64_t first, uint64_t end)
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

static inline struct image *random_image(void)
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

static inline void same_memory(const struct image *want, const struct image *got)
{
	for (uint64_t i = 0; i < IMAGE_PAGES; i++) {
		bool unread = want->state[i] == UNREADABLE || want->state[i] == GUARD;

		if (unread != (got->state[i] == UNREADABLE || got->state[i] == GUARD) || (unread && got->state[i] != want->state[i]))
			fail_msg("page %u: state %u, not %u", (unsigned int)i, got->state[i], want->state[i]);
		if (memcmp(want->data + i * WPT_PAGE, got->data + i * WPT_PAGE, WPT_PAGE) != 0)
			fail_msg("page %u differs", (unsigned int)i);
	}
}

#endif
