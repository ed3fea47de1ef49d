/* SPDX-License-Identifier: MIT */
/*
 * Every block of the format: round trips at the limits, the bytes of man/wptrack-snapshot.5, and what happens to blocks that
 * are cut, flipped, or forged with a good checksum.
 */
#include "format.h"
#include "page.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static uint64_t rng_state = 88172645463325252ull;

static uint64_t rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
}

/* Exactly `len` bytes behind which nothing may be read (a sanitizer sees to that). */
static uint8_t *exact(const uint8_t *bytes, size_t len)
{
	uint8_t *p = malloc(len ? len : 1);

	assert_non_null(p);
	memcpy(p, bytes, len);
	return p;
}

static void sign(uint8_t *block, size_t len)
{
	uint64_t sum = wpt_fmt_checksum(block, len - 8);

	for (unsigned int i = 0; i < 8; i++)
		block[len - 8 + i] = (uint8_t)(sum >> (8 * i));
}

/* Where bytes go that are only read to see that they may be. */
static volatile uint8_t touched;

/* ---- samples of every block ---- */

struct sample {
	const char *name;
	int (*decode)(const uint8_t *bytes, size_t len);
	size_t len;
	uint8_t bytes[4096];
};

static int head_all(const uint8_t *bytes, size_t len)
{
	struct wpt_fmt_head h;

	return wpt_fmt_head_decode(bytes, len, &h);
}

static int leaf_all(const uint8_t *bytes, size_t len)
{
	struct wpt_fmt_leaf leaf;
	struct wpt_fmt_run run;
	struct wpt_fmt_frame_info frame;
	uint8_t sum = 0;
	uint64_t page = 0;
	int ret;

	ret = wpt_fmt_leaf_decode(bytes, len, &leaf);
	while (ret >= 0 && (ret = wpt_fmt_leaf_next(&leaf, &run)) > 0) {
		assert_true(run.nr_pages > 0 && run.page >= page && run.page < WPT_FMT_PAGES_END);
		page = run.page + run.nr_pages;
		assert_true(page <= leaf.end_page && page <= WPT_FMT_PAGES_END);
		if (!wpt_fmt_has_data(run.kind))
			continue;
		assert_int_equal(wpt_fmt_leaf_frame(&leaf, run.frame, &frame), 0);
		assert_true(run.slot + run.nr_pages <= frame.nr_pages && frame.length <= WPT_FMT_FRAME_MAX);
		for (uint64_t i = 0; i < run.nr_pages * 16; i++)
			sum ^= run.hashes[i];
	}
	touched = sum;
	return ret;
}

static int children_all(struct wpt_fmt_children *c)
{
	struct wpt_fmt_child child;
	uint64_t offset = 0;
	int ret;

	while ((ret = wpt_fmt_children_next(c, &child)) > 0) {
		assert_true(child.offset >= offset && child.length <= WPT_FMT_BLOCK_MAX);
		assert_true(child.first_page < child.end_page && child.end_page <= WPT_FMT_PAGES_END);
		offset = child.offset + child.length;
	}
	return ret;
}

static int node_all(const uint8_t *bytes, size_t len)
{
	struct wpt_fmt_children c;
	int ret = wpt_fmt_node_decode(bytes, len, &c);

	return ret < 0 ? ret : children_all(&c);
}

static int root_all(const uint8_t *bytes, size_t len)
{
	struct wpt_fmt_root r;
	struct wpt_fmt_section s;
	int ret;

	ret = wpt_fmt_root_decode(bytes, len, &r);
	while (ret >= 0 && (ret = wpt_fmt_root_section(&r, &s)) > 0)
		assert_true(s.length <= WPT_FMT_SECTION_MAX);
	return ret < 0 ? ret : children_all(&r.children);
}

static int part_all(const uint8_t *bytes, size_t len)
{
	struct wpt_fmt_part p;
	uint8_t sum = 0;
	int ret = wpt_fmt_part_decode(bytes, len, &p);

	for (uint32_t i = 0; ret == 0 && i < p.len; i++)
		sum ^= p.data[i];
	touched = sum;
	return ret;
}

static int trailer_all(const uint8_t *bytes, size_t len)
{
	struct wpt_fmt_trailer t;
	int ret = wpt_fmt_trailer_decode(bytes, len, &t);

	if (ret == 0)
		assert_true(t.root_offset + t.root_length <= t.offset && t.root_length <= WPT_FMT_BLOCK_MAX);
	return ret;
}

static void fill(void *p, size_t len, uint8_t from)
{
	for (size_t i = 0; i < len; i++)
		((uint8_t *)p)[i] = (uint8_t)(from + i);
}

static struct wpt_fmt_head head_sample(uint32_t flags)
{
	struct wpt_fmt_head h = { .flags = flags, .compat = 0x80000001, .page_shift = 12, .mode = 1 };

	fill(h.identity.chain_id, 16, 0x10);
	fill(h.identity.link_id, 16, 0x20);
	h.identity.sequence = 0x0102030405060708;
	fill(h.identity.parent_id, 16, 0x30);
	fill(h.identity.parent_digest, 16, 0x40);
	fill(h.key, 32, 0x50);
	if (flags & WPT_FMT_ORIGIN) {
		h.origin.pid = -2;
		h.origin.start_time = UINT64_MAX - 1;
		memset(h.origin.boot_id, 'b', 36);
		memset(h.origin.comm, 'c', 63);
	}
	return h;
}

static const struct wpt_fmt_frame_info frame_samples[] = {
	{ 140, 5000, 3, 0x1122334455667788 },
	{ UINT64_MAX - WPT_FMT_FRAME_MAX, WPT_FMT_FRAME_MAX, WPT_FMT_FRAME_PAGES, UINT64_MAX },
};

static uint8_t hash_bytes[WPT_FMT_FRAME_PAGES * 16];

static const struct wpt_fmt_run run_samples[] = {
	{ 0, 2, WPT_FMT_DATA, 0, 0, hash_bytes },
	{ 2, 1, WPT_FMT_TORN, 0, 2, hash_bytes + 16 },
	{ 100, 1, WPT_FMT_ZERO, 0, 0, NULL },
	{ 101, 16, WPT_FMT_DUPLICATE, 1, 200, hash_bytes + 5 },
	{ 0x7f0000000, 1, WPT_FMT_UNREADABLE, 0, 0, NULL },
	{ 0x7f0000001, WPT_FMT_PAGES_END - 0x7f0000001 - 1, WPT_FMT_ZERO, 0, 0, NULL },
	{ WPT_FMT_PAGES_END - 1, 1, WPT_FMT_GUARD, 0, 0, NULL },
};

static uint8_t leaf_buf[WPT_FMT_BLOCK_MAX], leaf_frames[WPT_FMT_LEAF_FRAMES_MAX * WPT_FMT_FRAME_INFO_SIZE];
static uint8_t node_buf[WPT_FMT_BLOCK_MAX], root_buf[WPT_FMT_BLOCK_MAX];

static size_t leaf_sample(void)
{
	struct wpt_fmt_leaf_builder b = { .buf = leaf_buf, .frames = leaf_frames };

	fill(hash_bytes, sizeof(hash_bytes), 3);
	wpt_fmt_leaf_begin(&b);
	for (size_t i = 0; i < WPT_ARRAY_SIZE(frame_samples); i++)
		assert_int_equal(wpt_fmt_leaf_add_frame(&b, &frame_samples[i]), (int)i);
	for (size_t i = 0; i < WPT_ARRAY_SIZE(run_samples); i++)
		assert_int_equal(wpt_fmt_leaf_add_run(&b, &run_samples[i]), 0);
	return wpt_fmt_leaf_end(&b);
}

static const struct wpt_fmt_child child_samples[] = {
	{ 140, WPT_FMT_BLOCK_OVERHEAD, 7, 0, 1, 1 },
	{ 140 + WPT_FMT_BLOCK_OVERHEAD, WPT_FMT_BLOCK_MAX, UINT64_MAX, 0, WPT_FMT_PAGES_END, UINT64_MAX },
	{ UINT64_MAX - 100, 100, 0x8000000000000000, WPT_FMT_PAGES_END - 1, WPT_FMT_PAGES_END, 0 },
};

static struct wpt_fmt_node_builder node_sample(void)
{
	struct wpt_fmt_node_builder b = { .buf = node_buf };

	wpt_fmt_node_begin(&b);
	for (size_t i = 0; i < WPT_ARRAY_SIZE(child_samples); i++)
		assert_int_equal(wpt_fmt_node_add(&b, &child_samples[i]), 0);
	return b;
}

static const struct wpt_fmt_section section_samples[] = {
	{ WPT_FMT_SECTION_RANGES, 140, 20, 0, { 1, 2, 3 } },
	{ UINT32_MAX, 160, UINT64_MAX - 160, WPT_FMT_SECTION_MAX, { 0xff } },
};

static const struct wpt_fmt_root root_values = {
	.time_ns = 0xfedcba9876543210, .pause_ns = UINT64_MAX,
	.counts = { 1, 127, 128, 16383, 16384, UINT64_MAX, 0 },
	.nr_sections = 2,
};

static size_t root_sample(void)
{
	struct wpt_fmt_node_builder b = node_sample();

	return wpt_fmt_root_encode(&root_values, section_samples, &b, 3, root_buf);
}

static struct wpt_fmt_trailer trailer_sample(void)
{
	struct wpt_fmt_trailer t = { .sequence = UINT64_MAX, .offset = UINT64_MAX - WPT_FMT_TRAILER_SIZE };

	fill(t.chain_id, 16, 0x60);
	fill(t.link_id, 16, 0x70);
	t.root_offset = 0x1234;
	t.root_length = WPT_FMT_BLOCK_MAX;
	t.root_checksum = 0x0807060504030201;
	fill(t.digest, 16, 0x80);
	fill(t.file_digest, 16, 0x90);
	return t;
}

enum { SAMPLES = 8 };

static const struct sample *samples(void)
{
	static struct sample s[SAMPLES];
	struct wpt_fmt_head with = head_sample(WPT_FMT_FULL | WPT_FMT_MERGED | WPT_FMT_ORIGIN), without = head_sample(0);
	struct wpt_fmt_part part = { 77, 5, WPT_FMT_PART_LAST, 300, hash_bytes, 300 };
	struct wpt_fmt_part zstd = { 78, 0, WPT_FMT_PART_ZSTD, WPT_FMT_PART_MAX, hash_bytes, 17 };
	struct wpt_fmt_trailer trailer = trailer_sample();
	struct wpt_fmt_node_builder node;

	s[0] = (struct sample){ .name = "head with origin", .decode = head_all, .len = wpt_fmt_head_encode(&with, s[0].bytes) };
	wpt_fmt_head_encode(&with, s[0].bytes);
	s[1] = (struct sample){ .name = "head", .decode = head_all, .len = wpt_fmt_head_encode(&without, s[1].bytes) };
	wpt_fmt_head_encode(&without, s[1].bytes);
	s[2] = (struct sample){ .name = "leaf", .decode = leaf_all, .len = leaf_sample() };
	memcpy(s[2].bytes, leaf_buf, s[2].len);
	s[4] = (struct sample){ .name = "root", .decode = root_all, .len = root_sample() };
	memcpy(s[4].bytes, root_buf, s[4].len);
	node = node_sample();
	s[3] = (struct sample){ .name = "node", .decode = node_all, .len = wpt_fmt_node_end(&node, WPT_FMT_LEVEL_MAX) };
	memcpy(s[3].bytes, node_buf, s[3].len);
	s[5] = (struct sample){ .name = "part", .decode = part_all, .len = wpt_fmt_part_encode(&part, root_buf) };
	memcpy(s[5].bytes, root_buf, s[5].len);
	s[6] = (struct sample){ .name = "compressed part", .decode = part_all, .len = wpt_fmt_part_encode(&zstd, root_buf) };
	memcpy(s[6].bytes, root_buf, s[6].len);
	s[7] = (struct sample){ .name = "trailer", .decode = trailer_all, .len = WPT_FMT_TRAILER_SIZE };
	wpt_fmt_trailer_encode(&trailer, s[7].bytes);
	return s;
}

/* ---- round trips ---- */

static void head_comes_back(void **state)
{
	static const uint32_t flags[] = { 0, WPT_FMT_FULL, WPT_FMT_ORIGIN, WPT_FMT_FULL | WPT_FMT_MERGED | WPT_FMT_ORIGIN };

	(void)state;
	for (size_t i = 0; i < WPT_ARRAY_SIZE(flags); i++) {
		struct wpt_fmt_head h = head_sample(flags[i]), got;
		uint8_t bytes[WPT_FMT_HEAD_MAX];
		size_t len = wpt_fmt_head_encode(&h, bytes);

		memset(&got, 0xee, sizeof(got));
		assert_int_equal(wpt_fmt_head_decode(bytes, len, &got), 0);
		assert_int_equal(got.flags, h.flags);
		assert_int_equal(got.incompat, 0);
		assert_int_equal(got.compat, h.compat);
		assert_int_equal(got.page_shift, 12);
		assert_int_equal(got.mode, 1);
		assert_memory_equal(got.identity.chain_id, h.identity.chain_id, 16);
		assert_memory_equal(got.identity.link_id, h.identity.link_id, 16);
		assert_true(got.identity.sequence == h.identity.sequence);
		assert_memory_equal(got.identity.parent_id, h.identity.parent_id, 16);
		assert_memory_equal(got.identity.parent_digest, h.identity.parent_digest, 16);
		assert_memory_equal(got.key, h.key, 32);
		assert_true(got.origin.pid == h.origin.pid && got.origin.start_time == h.origin.start_time);
		assert_string_equal(got.origin.boot_id, h.origin.boot_id);
		assert_string_equal(got.origin.comm, h.origin.comm);
	}
}

static void leaf_comes_back(void **state)
{
	size_t len = leaf_sample();
	uint8_t *bytes = exact(leaf_buf, len);
	struct wpt_fmt_leaf leaf;
	struct wpt_fmt_run run;
	struct wpt_fmt_frame_info f;

	(void)state;
	assert_int_equal(wpt_fmt_leaf_decode(bytes, len, &leaf), 0);
	assert_int_equal(leaf.nr_frames, WPT_ARRAY_SIZE(frame_samples));
	assert_int_equal(leaf.nr_runs, WPT_ARRAY_SIZE(run_samples));
	assert_true(leaf.first_page == 0 && leaf.end_page == WPT_FMT_PAGES_END);
	for (uint32_t i = 0; i < WPT_ARRAY_SIZE(frame_samples); i++) {
		assert_int_equal(wpt_fmt_leaf_frame(&leaf, i, &f), 0);
		assert_true(f.offset == frame_samples[i].offset && f.length == frame_samples[i].length);
		assert_true(f.nr_pages == frame_samples[i].nr_pages && f.checksum == frame_samples[i].checksum);
	}
	assert_int_equal(wpt_fmt_leaf_frame(&leaf, WPT_ARRAY_SIZE(frame_samples), &f), -WPT_E_DAMAGED);
	for (size_t i = 0; i < WPT_ARRAY_SIZE(run_samples); i++) {
		const struct wpt_fmt_run *want = &run_samples[i];

		assert_int_equal(wpt_fmt_leaf_next(&leaf, &run), 1);
		assert_true(run.page == want->page && run.nr_pages == want->nr_pages && run.kind == want->kind);
		assert_true(run.frame == want->frame && run.slot == want->slot);
		if (want->hashes)
			assert_memory_equal(run.hashes, want->hashes, want->nr_pages * 16);
	}
	assert_int_equal(wpt_fmt_leaf_next(&leaf, &run), 0);
	assert_int_equal(wpt_fmt_leaf_next(&leaf, &run), 0);
	free(bytes);
}

static void child_is(const struct wpt_fmt_child *got, const struct wpt_fmt_child *want)
{
	assert_true(got->offset == want->offset && got->length == want->length && got->checksum == want->checksum);
	assert_true(got->first_page == want->first_page && got->end_page == want->end_page && got->nr_pages == want->nr_pages);
}

static void node_and_root_come_back(void **state)
{
	struct wpt_fmt_node_builder b = node_sample();
	struct wpt_fmt_children c;
	struct wpt_fmt_child child;
	struct wpt_fmt_section s;
	struct wpt_fmt_root r;
	size_t len;

	(void)state;
	assert_true(b.sum.first_page == 0 && b.sum.end_page == WPT_FMT_PAGES_END);
	len = wpt_fmt_node_end(&b, 2);
	assert_int_equal(wpt_fmt_node_decode(node_buf, len, &c), 0);
	assert_int_equal(c.level, 2);
	for (size_t i = 0; i < WPT_ARRAY_SIZE(child_samples); i++) {
		assert_int_equal(wpt_fmt_children_next(&c, &child), 1);
		child_is(&child, &child_samples[i]);
	}
	assert_int_equal(wpt_fmt_children_next(&c, &child), 0);
	len = root_sample();
	assert_int_equal(wpt_fmt_root_decode(root_buf, len, &r), 0);
	assert_true(r.time_ns == root_values.time_ns && r.pause_ns == root_values.pause_ns);
	assert_memory_equal(&r.counts, &root_values.counts, sizeof(r.counts));
	for (size_t i = 0; i < WPT_ARRAY_SIZE(section_samples); i++) {
		const struct wpt_fmt_section *want = &section_samples[i];

		assert_int_equal(wpt_fmt_root_section(&r, &s), 1);
		assert_true(s.type == want->type && s.offset == want->offset && s.stored == want->stored);
		assert_true(s.length == want->length);
		assert_memory_equal(s.digest, want->digest, 16);
	}
	assert_int_equal(wpt_fmt_root_section(&r, &s), 0);
	assert_int_equal(r.children.level, 3);
	for (size_t i = 0; i < WPT_ARRAY_SIZE(child_samples); i++) {
		assert_int_equal(wpt_fmt_children_next(&r.children, &child), 1);
		child_is(&child, &child_samples[i]);
	}
	assert_int_equal(wpt_fmt_children_next(&r.children, &child), 0);
}

static void part_comes_back(void **state)
{
	static uint8_t data[WPT_FMT_PART_MAX];
	static const uint32_t lengths[] = { 0, 1, 100, WPT_FMT_PART_MAX };
	struct wpt_fmt_part got;

	(void)state;
	fill(data, sizeof(data), 9);
	for (size_t i = 0; i < WPT_ARRAY_SIZE(lengths); i++) {
		struct wpt_fmt_part p = { 0xabcdef01, UINT32_MAX, WPT_FMT_PART_LAST, lengths[i], data, lengths[i] };
		size_t len = wpt_fmt_part_encode(&p, root_buf);

		assert_true(len <= WPT_FMT_BLOCK_MAX);
		assert_int_equal(wpt_fmt_part_decode(root_buf, len, &got), 0);
		assert_true(got.type == p.type && got.index == p.index && got.flags == p.flags);
		assert_true(got.raw_len == p.raw_len && got.len == p.len);
		assert_memory_equal(got.data, data, lengths[i]);
	}
}

static void trailer_comes_back(void **state)
{
	struct wpt_fmt_trailer t = trailer_sample(), got;
	uint8_t bytes[WPT_FMT_TRAILER_SIZE];

	(void)state;
	memset(&got, 0xee, sizeof(got));
	wpt_fmt_trailer_encode(&t, bytes);
	assert_int_equal(wpt_fmt_trailer_decode(bytes, sizeof(bytes), &got), 0);
	assert_memory_equal(got.chain_id, t.chain_id, 16);
	assert_memory_equal(got.link_id, t.link_id, 16);
	assert_true(got.sequence == t.sequence && got.offset == t.offset && got.root_offset == t.root_offset);
	assert_true(got.root_length == t.root_length && got.root_checksum == t.root_checksum);
	assert_memory_equal(got.digest, t.digest, 16);
	assert_memory_equal(got.file_digest, t.file_digest, 16);
}

static void ranges_come_back(void **state)
{
	static char name[WPT_FMT_NAME_MAX + 100];
	const struct wpt_fmt_range want[] = {
		{ 0, 4096, 1, 2, NULL, 0 },
		{ 4096, 8192, UINT32_MAX, 0, "[heap]", 6 },
		{ 0x7f0000000000, 0xfffffffffffff000, 7, 8, name, WPT_FMT_NAME_MAX },
	};
	static uint8_t bytes[3 * WPT_FMT_RANGE_MAX];
	struct wpt_fmt_ranges c;
	struct wpt_fmt_range r = { .name = NULL };
	size_t len = 0, before = 0;
	int ret;

	(void)state;
	memset(name, 'n', sizeof(name));
	for (int i = 0; i < 3; i++) {
		r = want[i];
		if (i == 2)
			r.name_len = sizeof(name); /* is cut */
		before = len;
		len += wpt_fmt_range_encode(&r, bytes + len);
	}
	wpt_fmt_ranges_begin(&c, bytes, len);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(wpt_fmt_ranges_next(&c, &r), 1);
		assert_true(r.start == want[i].start && r.end == want[i].end && r.kind == want[i].kind);
		assert_true(r.reason == want[i].reason && r.name_len == want[i].name_len);
		if (r.name_len)
			assert_memory_equal(r.name, want[i].name, r.name_len);
	}
	assert_int_equal(wpt_fmt_ranges_next(&c, &r), 0);
	for (size_t cut = 0; cut < len; cut++) {
		uint8_t *copy = exact(bytes, cut);

		wpt_fmt_ranges_begin(&c, copy, cut);
		while ((ret = wpt_fmt_ranges_next(&c, &r)) > 0)
			continue;
		assert_int_equal(ret, cut == 0 || cut == 28 || cut == before ? 0 : -WPT_E_DAMAGED);
		free(copy);
	}
	bytes[8 + 1] = 0x20; /* the first ends behind the start of the second */
	wpt_fmt_ranges_begin(&c, bytes, len);
	assert_int_equal(wpt_fmt_ranges_next(&c, &r), 1);
	assert_int_equal(wpt_fmt_ranges_next(&c, &r), -WPT_E_DAMAGED);
	bytes[0] = 1; /* not a page */
	wpt_fmt_ranges_begin(&c, bytes, len);
	assert_int_equal(wpt_fmt_ranges_next(&c, &r), -WPT_E_DAMAGED);
}

/* ---- the bytes, as the man page has them ---- */

static void blocks_have_the_bytes_of_the_specification(void **state)
{
	static const uint8_t head_start[] = {
		0x57, 0x2a, 0x4d, 0x18, 0x84, 0, 0, 0, 'W', 'P', 'T', 'H', 1, 0, 12, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x80,
	};
	static const uint8_t leaf[] = {
		0x57, 0x2a, 0x4d, 0x18, 0x54, 0, 0, 0, 'W', 'P', 'T', 'L', 2, 0, 0, 0, 1, 0, 0, 0,
		0x05, 0, 0, 0, 0, 0, 0, 0, 0xcd, 0, 0, 0, 0, 0, 0, 0,
		1, 0, 1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18,
		4, 99, 0x64,
		0x8c, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x13, 0, 0, 3, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
	};
	static const uint8_t child[] = { 2, 0, 0, 0, 1, 0, 0, 0, 0x8c, 1, 0x14, 0, 1, 1, 7, 0, 0, 0, 0, 0, 0, 0 };
	struct wpt_fmt_leaf_builder b = { .buf = leaf_buf, .frames = leaf_frames };
	struct wpt_fmt_node_builder n = { .buf = node_buf };
	struct wpt_fmt_run run = { 5, 1, WPT_FMT_DATA, 0, 2, hash_bytes };
	struct wpt_fmt_run zero = { 105, 100, WPT_FMT_ZERO, 0, 0, NULL };
	struct wpt_fmt_head h = head_sample(0);
	struct wpt_fmt_trailer t = trailer_sample();
	uint8_t bytes[WPT_FMT_HEAD_MAX], want[16];
	size_t len;

	(void)state;
	assert_int_equal(wpt_fmt_head_encode(&h, bytes), 140);
	assert_memory_equal(bytes, head_start, sizeof(head_start));
	fill(want, 16, 0x10);
	assert_memory_equal(bytes + 28, want, 16);
	fill(want, 16, 0x20);
	assert_memory_equal(bytes + 44, want, 16);
	for (unsigned int i = 0; i < 8; i++)
		assert_int_equal(bytes[60 + i], 8 - i);
	assert_int_equal(bytes[68], 0x30);
	assert_int_equal(bytes[84], 0x40);
	assert_int_equal(bytes[100], 0x50);
	fill(hash_bytes, sizeof(hash_bytes), 3);
	wpt_fmt_leaf_begin(&b);
	wpt_fmt_leaf_add_frame(&b, &frame_samples[0]);
	wpt_fmt_leaf_add_run(&b, &run);
	wpt_fmt_leaf_add_run(&b, &zero);
	len = wpt_fmt_leaf_end(&b);
	assert_int_equal(len, sizeof(leaf) + 8);
	assert_memory_equal(leaf_buf, leaf, sizeof(leaf));
	wpt_fmt_node_begin(&n);
	wpt_fmt_node_add(&n, &child_samples[0]);
	assert_int_equal(wpt_fmt_node_end(&n, 2), 12 + sizeof(child) + 8);
	assert_memory_equal(node_buf + 12, child, sizeof(child));
	wpt_fmt_trailer_encode(&t, bytes);
	assert_int_equal(bytes[4], 120);
	assert_memory_equal(bytes + 8, "WPTT\1\0\0\0", 8);
	assert_int_equal(bytes[16], 0x60);
	assert_int_equal(bytes[32], 0x70);
	assert_int_equal(bytes[64], 0x34);
	assert_int_equal(bytes[72], 8);
	assert_int_equal(bytes[76], 1);
	assert_int_equal(bytes[84], 0x80);
	assert_int_equal(bytes[100], 0x90);
}

/* Values that the xxHash library and its Python binding gave: the same on every machine. */
static void hashes_are_the_same_everywhere(void **state)
{
	static const uint8_t empty[16] = { 0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8,
					   0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f };
	static const uint8_t secret_end[16] = { 0x21, 0x48, 0x69, 0xfe, 0x2e, 0xf4, 0xa1, 0xe6, 0x1e, 0x02, 0x79, 0xd4, 0x06, 0x0a, 0xee, 0xbd };
	static const uint8_t page_hash[16] = { 0x28, 0x47, 0x0f, 0xd3, 0x27, 0x2a, 0xe3, 0x6b, 0x68, 0xe5, 0xc9, 0xc8, 0x2c, 0xf9, 0x4c, 0xbf };
	uint64_t page[512];
	struct wpt_page_key key;
	struct wpt_fmt_hash h;
	uint8_t bytes[4096], out[16], whole[16];

	(void)state;
	wpt_fmt_digest("", 0, out);
	assert_memory_equal(out, empty, 16);
	assert_true(wpt_fmt_checksum("", 0) == 0x2d06800538d394c2);
	fill(bytes, sizeof(bytes), 0);
	memcpy(page, bytes, sizeof(bytes));
	wpt_page_key_init(&key, bytes);
	assert_memory_equal(key.secret + 176, secret_end, 16);
	wpt_page_hash(&key, page, out);
	assert_memory_equal(out, page_hash, 16);
	wpt_fmt_digest(bytes, sizeof(bytes), whole);
	wpt_fmt_hash_init(&h);
	for (size_t at = 0, n = 1; at < sizeof(bytes); at += n, n = n * 3 % 257) {
		n = WPT_MIN(n, sizeof(bytes) - at);
		wpt_fmt_hash_update(&h, bytes + at, n);
	}
	wpt_fmt_hash_final(&h, out);
	assert_memory_equal(out, whole, 16);
	wpt_fmt_hash_init(&h);
	wpt_fmt_hash_u64(&h, 0x0706050403020100);
	wpt_fmt_hash_final(&h, out);
	wpt_fmt_digest(bytes, 8, whole);
	assert_memory_equal(out, whole, 16);
}

/* ---- damage ---- */

static void truncated_blocks_are_refused(void **state)
{
	const struct sample *s = samples();

	(void)state;
	for (int i = 0; i < SAMPLES; i++) {
		assert_int_equal(s[i].decode(s[i].bytes, s[i].len), 0);
		for (size_t len = 0; len < s[i].len; len++) {
			uint8_t *bytes = exact(s[i].bytes, len);

			assert_int_equal(s[i].decode(bytes, len), -WPT_E_TRUNCATED);
			free(bytes);
		}
		assert_int_equal(s[i].decode(s[i].bytes, s[i].len + 1), -WPT_E_DAMAGED);
	}
}

static void flipped_bits_are_found(void **state)
{
	const struct sample *s = samples();

	(void)state;
	for (int i = 0; i < SAMPLES; i++) {
		uint8_t *bytes = exact(s[i].bytes, s[i].len);

		for (size_t bit = 0; bit < s[i].len * 8; bit++) {
			int ret;

			bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
			ret = s[i].decode(bytes, s[i].len);
			if (ret >= 0)
				fail_msg("%s: bit %zu", s[i].name, bit);
			assert_true(ret == -WPT_E_DAMAGED || ret == -WPT_E_NOT_SNAPSHOT || ret == -WPT_E_TRUNCATED);
			if (bit >= 12 * 8)
				assert_int_equal(ret, -WPT_E_DAMAGED);
			bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
		free(bytes);
	}
}

static void blocks_of_another_tag_are_not_taken(void **state)
{
	const struct sample *s = samples();

	(void)state;
	for (int i = 0; i < SAMPLES; i++)
		for (int j = 0; j < SAMPLES; j++)
			if (s[i].decode != s[j].decode)
				assert_int_equal(s[i].decode(s[j].bytes, s[j].len), -WPT_E_NOT_SNAPSHOT);
}

/* With a good checksum only what the fields say stands between a forger and the reader: an error or a sound answer. */
static void forged_blocks_give_errors_or_sound_values(void **state)
{
	const struct sample *s = samples();
	int accepted = 0, refused = 0;

	(void)state;
	for (int round = 0; round < 60000; round++) {
		const struct sample *from = &s[rng() % SAMPLES];
		uint8_t *bytes = exact(from->bytes, from->len);
		int ret;

		for (uint64_t n = 1 + rng() % 4; n > 0; n--) {
			uint8_t *at = bytes + 12 + rng() % (from->len - 12);

			*at = rng() % 2 ? (uint8_t)rng() : rng() % 2 ? 0xff : 0;
		}
		sign(bytes, from->len);
		ret = from->decode(bytes, from->len);
		assert_true(ret == 0 || ret == -WPT_E_DAMAGED || ret == -WPT_E_FEATURE);
		accepted += ret == 0;
		refused += ret < 0;
		free(bytes);
	}
	assert_true(accepted > 1000 && refused > 1000);
}

static void head_of_the_future_is_refused_as_such(void **state)
{
	static const struct {
		unsigned int at;
		uint8_t value;
		int ret;
	} cases[] = {
		{ 12, 2, -WPT_E_FEATURE }, { 13, 1, -WPT_E_FEATURE }, { 14, 14, -WPT_E_FEATURE }, { 16, 8, -WPT_E_FEATURE },
		{ 20, 1, -WPT_E_FEATURE }, { 23, 0x80, -WPT_E_FEATURE }, { 24, 0xff, 0 }, { 27, 0xff, 0 },
	};
	struct wpt_fmt_head h = head_sample(0), got;
	uint8_t bytes[WPT_FMT_HEAD_MAX];
	size_t len;

	(void)state;
	for (size_t i = 0; i < WPT_ARRAY_SIZE(cases); i++) {
		len = wpt_fmt_head_encode(&h, bytes);
		bytes[cases[i].at] = cases[i].value;
		sign(bytes, len);
		assert_int_equal(wpt_fmt_head_decode(bytes, len, &got), cases[i].ret);
	}
	/* More fields than this version knows are skipped. */
	len = wpt_fmt_head_encode(&h, bytes);
	bytes[4] += 20;
	sign(bytes, len + 20);
	assert_int_equal(wpt_fmt_head_decode(bytes, len + 20, &got), 0);
	/* Without a parent nothing can be inherited. */
	memset(h.identity.parent_id, 0, 16);
	len = wpt_fmt_head_encode(&h, bytes);
	assert_int_equal(wpt_fmt_head_decode(bytes, len, &got), -WPT_E_DAMAGED);
	h.flags = WPT_FMT_FULL;
	len = wpt_fmt_head_encode(&h, bytes);
	assert_int_equal(wpt_fmt_head_decode(bytes, len, &got), 0);
}

static void a_merged_link_that_is_not_full_is_refused(void **state)
{
	struct wpt_fmt_head h = head_sample(WPT_FMT_MERGED), got;
	uint8_t bytes[WPT_FMT_HEAD_MAX];
	size_t len = wpt_fmt_head_encode(&h, bytes);

	(void)state;
	assert_int_equal(wpt_fmt_head_decode(bytes, len, &got), -WPT_E_DAMAGED);
	h = head_sample(WPT_FMT_MERGED | WPT_FMT_ORIGIN);
	len = wpt_fmt_head_encode(&h, bytes);
	assert_int_equal(wpt_fmt_head_decode(bytes, len, &got), -WPT_E_DAMAGED);
}

static void unknown_part_flags_and_root_flags_are_refused(void **state)
{
	const struct sample *s = samples();
	uint8_t *part = exact(s[5].bytes, s[5].len), *root = exact(s[4].bytes, s[4].len);

	(void)state;
	part[20] |= 4;
	sign(part, s[5].len);
	assert_int_equal(part_all(part, s[5].len), -WPT_E_FEATURE);
	root[16] = 1;
	sign(root, s[4].len);
	assert_int_equal(root_all(root, s[4].len), -WPT_E_FEATURE);
	free(part);
	free(root);
}

/* A leaf of one run, from bytes. */
static int leaf_of(const uint8_t *run, size_t len, uint64_t first, uint64_t end)
{
	uint8_t *bytes;
	size_t total = 36 + len + 24 + 8;
	int ret;

	memset(leaf_buf, 0, 256);
	memcpy(leaf_buf, "\x57\x2a\x4d\x18", 4);
	leaf_buf[4] = (uint8_t)(total - 8);
	memcpy(leaf_buf + 8, "WPTL\1\0\0\0\1\0\0\0", 12);
	for (unsigned int i = 0; i < 8; i++) {
		leaf_buf[20 + i] = (uint8_t)(first >> (8 * i));
		leaf_buf[28 + i] = (uint8_t)(end >> (8 * i));
	}
	memcpy(leaf_buf + 36, run, len);
	leaf_buf[36 + len + 8] = 1; /* frame: offset 0, length 1, 3 pages */
	leaf_buf[36 + len + 12] = 3;
	sign(leaf_buf, total);
	bytes = exact(leaf_buf, total);
	ret = leaf_all(bytes, total);
	free(bytes);
	return ret;
}

static void impossible_runs_are_refused(void **state)
{
	uint8_t data[5 + 48] = { 1, 0, 3, 0, 0 };
	uint8_t slot[5 + 48] = { 1, 0, 3, 0, 1 };
	uint8_t frame[5 + 48] = { 1, 0, 3, 1, 0 };
	const uint64_t end = (uint64_t)1 << 52;

	(void)state;
	assert_int_equal(leaf_of(data, sizeof(data), 7, 10), 0);
	assert_int_equal(leaf_of(data, sizeof(data), 7, 9), -WPT_E_DAMAGED);          /* beyond the leaf */
	assert_int_equal(leaf_of(data, sizeof(data) - 1, 7, 10), -WPT_E_DAMAGED);     /* a hash too short */
	assert_int_equal(leaf_of(data, sizeof(data) - 48, 7, 10), -WPT_E_DAMAGED);
	assert_int_equal(leaf_of(slot, sizeof(slot), 7, 10), -WPT_E_DAMAGED);         /* beyond the frame */
	assert_int_equal(leaf_of(frame, sizeof(frame), 7, 10), -WPT_E_DAMAGED);       /* no such frame */
	assert_int_equal(leaf_of((uint8_t *)"\4\0\1", 3, 7, 8), 0);
	assert_int_equal(leaf_of((uint8_t *)"\4\0\1\0", 4, 7, 8), -WPT_E_DAMAGED);    /* bytes left over */
	assert_int_equal(leaf_of((uint8_t *)"\4\0\0", 3, 7, 8), -WPT_E_DAMAGED);      /* no pages */
	assert_int_equal(leaf_of((uint8_t *)"\0\0\1", 3, 7, 8), -WPT_E_DAMAGED);      /* no such kind */
	assert_int_equal(leaf_of((uint8_t *)"\7\0\1", 3, 7, 8), -WPT_E_DAMAGED);
	assert_int_equal(leaf_of((uint8_t *)"\4\1\1", 3, 7, 8), -WPT_E_DAMAGED);
	assert_int_equal(leaf_of((uint8_t *)"\4\0\1", 3, 8, 8), -WPT_E_DAMAGED);      /* an empty leaf */
	assert_int_equal(leaf_of((uint8_t *)"\4\0\1", 3, end - 1, end), 0);
	assert_int_equal(leaf_of((uint8_t *)"\4\0\1", 3, end - 1, end + 1), -WPT_E_DAMAGED);
	assert_int_equal(leaf_of((uint8_t *)"", 0, 7, 8), -WPT_E_DAMAGED);
	leaf_buf[12] = 0; /* no runs, and none announced */
	sign(leaf_buf, 36 + 24 + 8);
	assert_int_equal(leaf_all(leaf_buf, 36 + 24 + 8), -WPT_E_DAMAGED);
	/* varints: longer than necessary, cut, 64 bits, 65 bits */
	assert_int_equal(leaf_of((uint8_t *)"\4\0\x81\0", 4, 7, 8), -WPT_E_DAMAGED);
	assert_int_equal(leaf_of((uint8_t *)"\4\0\x81", 3, 7, 8), -WPT_E_DAMAGED);
	assert_int_equal(leaf_of((uint8_t *)"\4\xff\xff\xff\xff\xff\xff\xff\xff\xff\1\1", 12, 7, 8), -WPT_E_DAMAGED);
	assert_int_equal(leaf_of((uint8_t *)"\4\x80\x80\x80\x80\x80\x80\x80\x80\x80\2\1", 12, 7, 8), -WPT_E_DAMAGED);
	assert_int_equal(leaf_of((uint8_t *)"\4\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\1", 12, 7, 8), -WPT_E_DAMAGED);
}

/* ---- frames ---- */

static void frames_are_told_by_their_first_bytes(void **state)
{
	static const uint8_t zstd[12] = { 0x28, 0xb5, 0x2f, 0xfd }, other[12] = { 0x50, 0x2a, 0x4d, 0x18 };
	const struct sample *s = samples();
	size_t len = 99;
	uint32_t tag;

	(void)state;
	assert_int_equal(wpt_fmt_frame(zstd, 12, &len, &tag), WPT_FMT_FRAME_DATA);
	assert_int_equal(len, 0);
	assert_int_equal(wpt_fmt_frame(zstd, 4, &len, NULL), WPT_FMT_FRAME_DATA);
	assert_int_equal(wpt_fmt_frame(other, 12, &len, &tag), -WPT_E_NOT_SNAPSHOT);
	assert_int_equal(wpt_fmt_frame(other, 1, &len, &tag), -WPT_E_NOT_SNAPSHOT);
	for (size_t n = 0; n < 4; n++)
		assert_int_equal(wpt_fmt_frame(zstd, n, &len, &tag), -WPT_E_TRUNCATED);
	for (int i = 0; i < SAMPLES; i++) {
		uint8_t head[12];

		assert_int_equal(wpt_fmt_frame(s[i].bytes, 12, &len, &tag), WPT_FMT_FRAME_BLOCK);
		assert_int_equal(len, s[i].len);
		memcpy(head, s[i].bytes, 12);
		memcpy(head + 4, "\x0b\0\0\0", 4);
		assert_int_equal(wpt_fmt_frame(head, 12, &len, &tag), -WPT_E_DAMAGED);
		memcpy(head + 4, "\1\0\x10\0", 4);
		assert_int_equal(wpt_fmt_frame(head, 12, &len, &tag), -WPT_E_DAMAGED);
		memcpy(head + 4, "\0\0\x10\0", 4);
		assert_int_equal(wpt_fmt_frame(head, 12, &len, &tag), WPT_FMT_FRAME_BLOCK);
		assert_int_equal(len, WPT_FMT_BLOCK_MAX);
		assert_int_equal(wpt_fmt_frame(head, 11, &len, &tag), -WPT_E_TRUNCATED);
	}
}

/* ---- builders at their limits ---- */

static void full_leaf_fits_a_block(void **state)
{
	struct wpt_fmt_leaf_builder b = { .buf = leaf_buf, .frames = leaf_frames };
	struct wpt_fmt_run run = { 0, 256, WPT_FMT_DATA, 0, 0, hash_bytes };
	uint64_t runs;
	size_t len;

	(void)state;
	for (uint64_t pages = 1; pages <= 256; pages *= 4) {
		wpt_fmt_leaf_begin(&b);
		run.page = 0;
		run.nr_pages = pages;
		for (runs = 0;; runs++) {
			int ret = 0;

			if (runs % 3 == 0)
				ret = wpt_fmt_leaf_add_frame(&b, &frame_samples[1]);
			if (ret >= 0) {
				run.frame = b.nr_frames - 1;
				ret = wpt_fmt_leaf_add_run(&b, &run);
			}
			if (ret == -ENOSPC)
				break;
			assert_true(ret >= 0);
			run.page += pages + (rng() >> 20) % 0x100000;
		}
		len = wpt_fmt_leaf_end(&b);
		assert_true(len <= WPT_FMT_BLOCK_MAX && (len > WPT_FMT_BLOCK_MAX - 5000 || b.nr_frames == WPT_FMT_LEAF_FRAMES_MAX));
		assert_int_equal(b.nr_runs, runs);
		assert_int_equal(b.nr_pages, runs * pages);
		assert_int_equal(leaf_all(leaf_buf, len), 0);
	}
	/* Whatever the lengths of the last runs are, the block's end is not passed. */
	for (int round = 0; round < 60; round++) {
		int ret = 0;

		wpt_fmt_leaf_begin(&b);
		wpt_fmt_leaf_add_frame(&b, &frame_samples[1]);
		run.frame = 0;
		for (run.page = 0; ret == 0; run.page += run.nr_pages + (rng() >> 20) % 0x100000) {
			run.kind = b.used < WPT_FMT_BLOCK_MAX - 5000 ? WPT_FMT_DATA : WPT_FMT_ZERO;
			run.nr_pages = run.kind == WPT_FMT_DATA ? 1 + rng() % 256 : 1 + rng() % 0x10000000;
			ret = wpt_fmt_leaf_add_run(&b, &run);
		}
		assert_int_equal(ret, -ENOSPC);
		len = wpt_fmt_leaf_end(&b);
		assert_true(len <= WPT_FMT_BLOCK_MAX && len > WPT_FMT_BLOCK_MAX - 100);
		assert_int_equal(leaf_all(leaf_buf, len), 0);
	}
	run.kind = WPT_FMT_DATA;
	wpt_fmt_leaf_begin(&b);
	for (uint32_t i = 0; i < WPT_FMT_LEAF_FRAMES_MAX; i++)
		assert_int_equal(wpt_fmt_leaf_add_frame(&b, &frame_samples[0]), (int)i);
	assert_int_equal(wpt_fmt_leaf_add_frame(&b, &frame_samples[0]), -ENOSPC);
	run.page = 1000;
	run.frame = 0;
	run.nr_pages = 3;
	assert_int_equal(wpt_fmt_leaf_add_run(&b, &run), 0);
	run.page = 1002; /* overlaps */
	assert_int_equal(wpt_fmt_leaf_add_run(&b, &run), -ENOSPC);
	run.page = 1003;
	assert_int_equal(wpt_fmt_leaf_add_run(&b, &run), 0);
	assert_int_equal(leaf_all(leaf_buf, wpt_fmt_leaf_end(&b)), 0);
}

static void full_node_fits_a_block_and_may_not_fit_a_root(void **state)
{
	struct wpt_fmt_node_builder b = { .buf = node_buf };
	struct wpt_fmt_child child = { 0, WPT_FMT_BLOCK_MAX, UINT64_MAX, 0, WPT_FMT_PAGES_END, UINT64_MAX };
	struct wpt_fmt_root root = root_values;
	uint32_t n = 0;

	(void)state;
	wpt_fmt_node_begin(&b);
	while (wpt_fmt_node_add(&b, &child) == 0) {
		child.offset += (uint64_t)1 << 40;
		n++;
	}
	assert_true(n > 20000);
	assert_int_equal(wpt_fmt_root_encode(&root, section_samples, &b, 1, root_buf), 0);
	assert_int_equal(node_all(node_buf, wpt_fmt_node_end(&b, 1)), 0);
	wpt_fmt_node_begin(&b);
	root.nr_sections = 0;
	assert_int_equal(root_all(root_buf, wpt_fmt_root_encode(&root, NULL, &b, 1, root_buf)), 0);
}

/* ---- digests ---- */

static void records_digest_does_not_see_how_runs_are_split(void **state)
{
	enum { PAGES = 600 };
	uint8_t first[16], out[16], first_kinds[PAGES], *hashes = malloc(PAGES * 16);

	(void)state;
	for (size_t i = 0; i < PAGES * 16; i++)
		hashes[i] = (uint8_t)rng();
	for (size_t i = 0; i < PAGES; i++)
		first_kinds[i] = (uint8_t)(i / 20 % 6 + 1);
	for (int round = 0; round < 60; round++) {
		struct wpt_fmt_records r;
		uint8_t kinds[PAGES];

		memcpy(kinds, first_kinds, sizeof(kinds));
		if (round == 50)
			kinds[300] = kinds[300] % 6 + 1;
		if (round == 51)
			hashes[5 * 16 + 3] ^= 0x40;
		wpt_fmt_records_init(&r);
		for (uint64_t i = 0; i < PAGES;) {
			uint64_t n = 1, most = 1 + rng() % 30;
			struct wpt_fmt_run run = { .page = i + 1000 + (round == 53), .kind = kinds[i], .hashes = hashes + i * 16 };

			while (n < most && i + n < PAGES && kinds[i + n] == kinds[i])
				n++;
			run.nr_pages = n;
			/* A duplicate is data that is stored elsewhere. */
			if (run.kind == WPT_FMT_DUPLICATE && rng() % 2)
				run.kind = WPT_FMT_DATA;
			wpt_fmt_records_run(&r, &run);
			i += n;
		}
		wpt_fmt_records_final(&r, out);
		if (round == 0)
			memcpy(first, out, 16);
		if (round == 50 || round == 51 || round == 53)
			assert_memory_not_equal(first, out, 16);
		else
			assert_memory_equal(first, out, 16);
		if (round == 51)
			hashes[5 * 16 + 3] ^= 0x40;
	}
	free(hashes);
}

/* Runs without data are joined only where they touch and are of one kind. */
static void records_digest_is_of_where_zero_pages_are(void **state)
{
	static const struct wpt_fmt_run cases[][2] = {
		{ { .page = 10, .nr_pages = 5, .kind = WPT_FMT_ZERO }, { .page = 15, .nr_pages = 5, .kind = WPT_FMT_ZERO } },
		{ { .page = 10, .nr_pages = 5, .kind = WPT_FMT_ZERO }, { .page = 16, .nr_pages = 5, .kind = WPT_FMT_ZERO } },
		{ { .page = 10, .nr_pages = 5, .kind = WPT_FMT_ZERO }, { .page = 15, .nr_pages = 5, .kind = WPT_FMT_GUARD } },
		{ { .page = 10, .nr_pages = 6, .kind = WPT_FMT_ZERO }, { .page = 15, .nr_pages = 5, .kind = WPT_FMT_ZERO } },
		{ { .page = 10, .nr_pages = 9, .kind = WPT_FMT_ZERO }, { .page = 19, .nr_pages = 1, .kind = WPT_FMT_ZERO } },
	};
	uint8_t out[WPT_ARRAY_SIZE(cases)][16];

	(void)state;
	for (size_t i = 0; i < WPT_ARRAY_SIZE(cases); i++) {
		struct wpt_fmt_records r;

		wpt_fmt_records_init(&r);
		wpt_fmt_records_run(&r, &cases[i][0]);
		wpt_fmt_records_run(&r, &cases[i][1]);
		wpt_fmt_records_final(&r, out[i]);
		for (size_t j = 0; j < i; j++)
			assert_int_equal(memcmp(out[i], out[j], 16) == 0, i == 4 && j == 0);
	}
}

static void identity_is_of_every_part_of_it(void **state)
{
	uint8_t records[16] = { 1 }, ranges[16] = { 2 }, first[16], out[16];

	(void)state;
	for (int i = 0; i < 11; i++) {
		struct wpt_fmt_head h = head_sample(WPT_FMT_FULL);
		uint8_t *const fields[] = { h.identity.chain_id, h.identity.link_id, (uint8_t *)&h.identity.sequence,
					    h.identity.parent_id, h.identity.parent_digest, records, ranges };
		bool same = i == 0 || i >= 9;

		if (i >= 1 && i <= 7)
			fields[i - 1][7] ^= 1;
		if (i == 8)
			h.flags = 0;
		if (i == 9)
			h.key[0] ^= 1;
		if (i == 10)
			h.flags |= WPT_FMT_MERGED | WPT_FMT_ORIGIN;
		wpt_fmt_identity(&h, records, ranges, out);
		if (i == 0)
			memcpy(first, out, 16);
		assert_int_equal(memcmp(first, out, 16) == 0, same);
		if (i == 6 || i == 7)
			fields[i - 1][7] ^= 1;
	}
	memset(ranges, 0, 16);
	struct wpt_fmt_head h = head_sample(0);
	wpt_fmt_identity(&h, records, ranges, first);
	wpt_fmt_identity(&h, records, NULL, out);
	assert_memory_equal(first, out, 16);
}

/* ---- pages ---- */

static void zero_pages_are_told_from_all_others(void **state)
{
	uint64_t words[512] = { 0 };
	uint8_t *page = (uint8_t *)words;

	(void)state;
	assert_true(wpt_page_is_zero(page));
	for (size_t i = 0; i < 4096; i++) {
		page[i] = (uint8_t)(1 << i % 8);
		assert_false(wpt_page_is_zero(page));
		page[i] = 0;
	}
}

static void page_hash_depends_on_key_and_every_byte(void **state)
{
	uint8_t key[32] = { 0 }, first[16], out[16];
	uint64_t words[512];
	struct wpt_page_key k;
	uint8_t *page = (uint8_t *)words;

	(void)state;
	fill(page, 4096, 1);
	wpt_page_key_init(&k, key);
	wpt_page_hash(&k, page, first);
	for (size_t i = 0; i < 4096; i++) {
		page[i] ^= 0x10;
		wpt_page_hash(&k, page, out);
		assert_memory_not_equal(first, out, 16);
		page[i] ^= 0x10;
	}
	for (size_t i = 0; i < 32; i++) {
		key[i] ^= 1;
		wpt_page_key_init(&k, key);
		wpt_page_hash(&k, page, out);
		assert_memory_not_equal(first, out, 16);
		key[i] ^= 1;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(head_comes_back),
		cmocka_unit_test(leaf_comes_back),
		cmocka_unit_test(node_and_root_come_back),
		cmocka_unit_test(part_comes_back),
		cmocka_unit_test(trailer_comes_back),
		cmocka_unit_test(ranges_come_back),
		cmocka_unit_test(blocks_have_the_bytes_of_the_specification),
		cmocka_unit_test(hashes_are_the_same_everywhere),
		cmocka_unit_test(truncated_blocks_are_refused),
		cmocka_unit_test(flipped_bits_are_found),
		cmocka_unit_test(blocks_of_another_tag_are_not_taken),
		cmocka_unit_test(forged_blocks_give_errors_or_sound_values),
		cmocka_unit_test(head_of_the_future_is_refused_as_such),
		cmocka_unit_test(a_merged_link_that_is_not_full_is_refused),
		cmocka_unit_test(unknown_part_flags_and_root_flags_are_refused),
		cmocka_unit_test(impossible_runs_are_refused),
		cmocka_unit_test(frames_are_told_by_their_first_bytes),
		cmocka_unit_test(full_leaf_fits_a_block),
		cmocka_unit_test(full_node_fits_a_block_and_may_not_fit_a_root),
		cmocka_unit_test(records_digest_does_not_see_how_runs_are_split),
		cmocka_unit_test(records_digest_is_of_where_zero_pages_are),
		cmocka_unit_test(identity_is_of_every_part_of_it),
		cmocka_unit_test(zero_pages_are_told_from_all_others),
		cmocka_unit_test(page_hash_depends_on_key_and_every_byte),
	};

	return cmocka_run_group_tests_name("format", tests, NULL, NULL);
}
