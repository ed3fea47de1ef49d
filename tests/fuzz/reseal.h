/* SPDX-License-Identifier: MIT */
/*
 * Makes every checksum and digest of links in memory right again after their bytes were changed, so that what is wrong with them has
 * to be found by the checks behind. It goes front to back, as a link is written: what a block points to comes before it.
 * What it can't make sense of it leaves.
 */
#ifndef WPT_TESTS_RESEAL_H
#define WPT_TESTS_RESEAL_H

#include <stdlib.h>

#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

#include "format.h"

struct reseal {
	uint8_t *bytes;
	size_t len;
	size_t start;                 /* of the link */
	size_t pos;
	struct wpt_fmt_hash file;
	struct wpt_fmt_records records;
	uint8_t ranges[16];
	bool has_head, has_ranges;
	struct wpt_fmt_head head;
	uint8_t parent_digest[16];    /* of the link before */
	bool has_parent;
	bool identity;                /* see reseal() */
};

static inline uint64_t reseal_get(const uint8_t *p, int bytes)
{
	uint64_t v = 0;

	while (bytes--)
		v = v << 8 | p[bytes];
	return v;
}

static inline void reseal_put(uint8_t *p, uint64_t v, int bytes)
{
	for (int i = 0; i < bytes; i++, v >>= 8)
		p[i] = (uint8_t)v;
}

static inline bool reseal_varint(uint8_t **p, const uint8_t *end, uint64_t *v)
{
	*v = 0;
	for (int shift = 0; *p < end && shift < 70; shift += 7) {
		uint8_t byte = *(*p)++;

		*v |= shift < 64 ? (uint64_t)(byte & 0x7f) << shift : 0;
		if (!(byte & 0x80))
			return true;
	}
	return false;
}

/* A block that lies before the one in hand: its bytes and length, or NULL. */
static inline uint8_t *reseal_at(struct reseal *r, uint64_t offset, uint64_t length)
{
	uint64_t end;

	if (wpt_add_overflows(offset, length, &end) || end > r->pos - r->start || length < 8)
		return NULL;
	return r->bytes + r->start + offset;
}

static inline void reseal_children(struct reseal *r, uint8_t *p, const uint8_t *end, uint64_t nr)
{
	uint64_t v[5], offset = 0;
	uint8_t *child;

	while (nr--) {
		for (int i = 0; i < 5; i++) {
			if (!reseal_varint(&p, end, &v[i]))
				return;
		}
		if (end - p < 8 || wpt_add_overflows(offset, v[0], &offset))
			return;
		child = reseal_at(r, offset, v[1]);
		if (child)
			memcpy(p, child + v[1] - 8, 8);
		p += 8;
		if (wpt_add_overflows(offset, v[1], &offset))
			return;
	}
}

static inline void reseal_section(struct reseal *r, uint64_t offset, uint64_t stored, uint8_t digest[16])
{
	uint8_t *raw = malloc(WPT_FMT_PART_MAX), *at = reseal_at(r, offset, stored), *end = at ? at + stored : NULL;
	struct wpt_fmt_hash h;
	struct wpt_fmt_part part;
	size_t frame_len;
	uint32_t tag;

	wpt_fmt_hash_init(&h);
	while (raw && at && at < end && wpt_fmt_frame(at, (size_t)(end - at), &frame_len, &tag) == WPT_FMT_FRAME_BLOCK &&
	       frame_len <= (size_t)(end - at) && !wpt_fmt_part_decode(at, frame_len, &part)) {
		if (part.flags & WPT_FMT_PART_ZSTD) {
			size_t n = ZSTD_decompress(raw, WPT_FMT_PART_MAX, part.data, part.len);

			if (ZSTD_isError(n))
				break;
			wpt_fmt_hash_update(&h, raw, n);
		} else {
			wpt_fmt_hash_update(&h, part.data, part.len);
		}
		at += frame_len;
	}
	if (end && at == end)
		wpt_fmt_hash_final(&h, digest);
	free(raw);
}

static inline void reseal_root(struct reseal *r, uint8_t *block, const uint8_t *end)
{
	uint64_t v[10], s[4], offset = 0;
	uint8_t *p = block + 28;

	if (p > end)
		return;
	for (int i = 0; i < 10; i++) {
		if (!reseal_varint(&p, end, &v[i]))
			return;
	}
	while (v[8]--) {
		for (int i = 0; i < 4; i++) {
			if (!reseal_varint(&p, end, &s[i]))
				return;
		}
		if (end - p < 16 || wpt_add_overflows(offset, s[1], &offset))
			return;
		if (r->identity)
			reseal_section(r, offset, s[2], p);
		if (s[0] == WPT_FMT_SECTION_RANGES) {
			r->has_ranges = true;
			memcpy(r->ranges, p, 16);
		}
		p += 16;
		if (wpt_add_overflows(offset, s[2], &offset))
			return;
	}
	reseal_children(r, p, end, v[9]);
}

static inline void reseal_leaf(struct reseal *r, uint8_t *block, uint8_t *end)
{
	uint64_t nr = reseal_get(block + 16, 4), length;
	uint8_t *p, *frame;

	if (end - block < 36 || nr > (size_t)(end - block - 36) / 24)
		return;
	for (p = end - nr * 24; p < end; p += 24) {
		length = reseal_get(p + 8, 4);
		frame = reseal_at(r, reseal_get(p, 8), length);
		if (frame)
			reseal_put(p + 16, wpt_fmt_checksum(frame, (size_t)length), 8);
	}
}

/* After the leaf's checksum is right: what the identity digest needs of it. */
static inline void reseal_records(struct reseal *r, const uint8_t *block, size_t len)
{
	struct wpt_fmt_leaf leaf;
	struct wpt_fmt_run run;

	if (wpt_fmt_leaf_decode(block, len, &leaf))
		return;
	while (wpt_fmt_leaf_next(&leaf, &run) > 0)
		wpt_fmt_records_run(&r->records, &run);
}

static inline void reseal_head(struct reseal *r, uint8_t *block, size_t len)
{
	if (r->identity && r->has_parent && len >= 140)
		memcpy(block + 84, r->parent_digest, 16);
	reseal_put(block + len - 8, wpt_fmt_checksum(block, len - 8), 8);
	r->start = r->pos;
	wpt_fmt_hash_init(&r->file);
	wpt_fmt_records_init(&r->records);
	r->has_ranges = false;
	r->has_head = !wpt_fmt_head_decode(block, len, &r->head);
}

static inline void reseal_trailer(struct reseal *r, uint8_t *block)
{
	uint64_t length = reseal_get(block + 72, 4);
	uint8_t *root = reseal_at(r, reseal_get(block + 64, 8), length), records[16];

	if (root)
		memcpy(block + 76, root + length - 8, 8);
	if (r->identity && r->has_head && !(r->head.flags & WPT_FMT_MERGED)) {
		wpt_fmt_records_final(&r->records, records);
		wpt_fmt_identity(&r->head, records, r->has_ranges ? r->ranges : NULL, block + 84);
	}
	memcpy(r->parent_digest, block + 84, 16);
	r->has_parent = true;
	wpt_fmt_hash_final(&r->file, block + 100);
}

static inline void reseal_block(struct reseal *r, uint8_t *block, size_t len)
{
	uint32_t tag = (uint32_t)reseal_get(block + 8, 4);
	uint8_t *end = block + len - 8;

	if (tag == WPT_FMT_HEAD)
		reseal_head(r, block, len);
	else if (tag == WPT_FMT_LEAF)
		reseal_leaf(r, block, end);
	else if (tag == WPT_FMT_NODE && len > 28)
		reseal_children(r, block + 20, end, reseal_get(block + 16, 4));
	else if (tag == WPT_FMT_ROOT)
		reseal_root(r, block, end);
	else if (tag == WPT_FMT_TRAILER && len == WPT_FMT_TRAILER_SIZE)
		reseal_trailer(r, block);
	reseal_put(end, wpt_fmt_checksum(block, len - 8), 8);
	if (tag == WPT_FMT_LEAF)
		reseal_records(r, block, len);
	wpt_fmt_hash_u64(&r->file, reseal_get(end, 8));
}

/* The length of the frame at p, 0 if there is none. */
static inline size_t reseal_frame(const uint8_t *p, size_t len, bool *block)
{
	size_t n;

	if (len < 12)
		return 0;
	*block = reseal_get(p, 4) == WPT_FMT_MAGIC;
	n = *block ? (size_t)reseal_get(p + 4, 4) + 8 : ZSTD_findFrameCompressedSize(p, len);
	if (ZSTD_isError(n) || n > len || n < (*block ? WPT_FMT_BLOCK_OVERHEAD : 1u))
		return 0;
	return n;
}

/* `identity`: also digests of sections, identity digests and what links say of their parents. */
static inline void reseal(uint8_t *bytes, size_t len, bool identity)
{
	struct reseal r;
	bool block;
	size_t n;

	memset(&r, 0, sizeof(r));
	r.bytes = bytes;
	r.len = len;
	r.identity = identity;
	wpt_fmt_hash_init(&r.file);
	wpt_fmt_records_init(&r.records);
	for (; (n = reseal_frame(bytes + r.pos, len - r.pos, &block)); r.pos += n) {
		if (block)
			reseal_block(&r, bytes + r.pos, n);
		else
			wpt_fmt_hash_u64(&r.file, wpt_fmt_checksum(bytes + r.pos, n));
	}
}

#endif
