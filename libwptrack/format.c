/* SPDX-License-Identifier: MIT */
/*
 * Integers are put together byte by byte, so that neither the machine's byte order, its word size nor the alignment of the
 * caller's buffer shows in a file. xxhash is compiled in: its streaming state is then ours to place, and nothing is allocated.
 */
#include "format.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define LEAF_RUNS 36u
#define NODE_CHILDREN 20u
#define ROOT_COUNTS 28u
#define PART_FLAGS_KNOWN (WPT_FMT_PART_ZSTD | WPT_FMT_PART_LAST)
#define HEAD_FLAGS_KNOWN (WPT_FMT_FULL | WPT_FMT_MERGED | WPT_FMT_ORIGIN)
#define CHECKSUM 8u

_Static_assert(sizeof(XXH3_state_t) <= sizeof(((struct wpt_fmt_hash *)0)->state), "the hash state fits");

static const uint8_t zero_id[16];

/* ---- integers ---- */

static uint8_t *put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
	return p + 2;
}

static uint8_t *put32(uint8_t *p, uint32_t v)
{
	return put16(put16(p, (uint16_t)v), (uint16_t)(v >> 16));
}

static uint8_t *put64(uint8_t *p, uint64_t v)
{
	return put32(put32(p, (uint32_t)v), (uint32_t)(v >> 32));
}

static uint8_t *put_bytes(uint8_t *p, const void *from, size_t len)
{
	memcpy(p, from, len);
	return p + len;
}

static uint8_t *put_varint(uint8_t *p, uint64_t v)
{
	while (v >= 0x80) {
		*p++ = (uint8_t)(v | 0x80);
		v >>= 7;
	}
	*p++ = (uint8_t)v;
	return p;
}

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const uint8_t *p)
{
	return get16(p) | (uint32_t)get16(p + 2) << 16;
}

static uint64_t get64(const uint8_t *p)
{
	return get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* False: the bytes end, more than 64 bits, or longer than necessary. */
static bool get_varint(const uint8_t **p, const uint8_t *end, uint64_t *v)
{
	const uint8_t *at = *p;
	uint64_t sum = 0;
	unsigned int shift = 0;

	while (at < end) {
		uint8_t byte = *at++;

		if (shift == 63 && byte > 1)
			return false;
		sum |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80)) {
			if (byte == 0 && shift > 0)
				return false;
			*v = sum;
			*p = at;
			return true;
		}
		shift += 7;
		if (shift > 63)
			return false;
	}
	return false;
}

static bool get_varint32(const uint8_t **p, const uint8_t *end, uint32_t *v)
{
	uint64_t wide;

	if (!get_varint(p, end, &wide) || wide > UINT32_MAX)
		return false;
	*v = (uint32_t)wide;
	return true;
}

/* ---- hashes ---- */

uint64_t wpt_fmt_checksum(const void *data, size_t len)
{
	return XXH3_64bits(data, len);
}

static void digest_out(XXH128_hash_t hash, uint8_t out[16])
{
	XXH128_canonical_t canonical;

	XXH128_canonicalFromHash(&canonical, hash);
	memcpy(out, canonical.digest, 16);
}

void wpt_fmt_digest(const void *data, size_t len, uint8_t out[16])
{
	digest_out(XXH3_128bits(data, len), out);
}

void wpt_fmt_hash_init(struct wpt_fmt_hash *h)
{
	XXH3_INITSTATE((XXH3_state_t *)h->state);
	XXH3_128bits_reset((XXH3_state_t *)h->state);
}

void wpt_fmt_hash_update(struct wpt_fmt_hash *h, const void *data, size_t len)
{
	XXH3_128bits_update((XXH3_state_t *)h->state, data, len);
}

void wpt_fmt_hash_u64(struct wpt_fmt_hash *h, uint64_t v)
{
	uint8_t bytes[8];

	put64(bytes, v);
	wpt_fmt_hash_update(h, bytes, sizeof(bytes));
}

void wpt_fmt_hash_final(struct wpt_fmt_hash *h, uint8_t out[16])
{
	digest_out(XXH3_128bits_digest((XXH3_state_t *)h->state), out);
}

/* ---- blocks ---- */

int wpt_fmt_frame(const uint8_t *bytes, size_t len, size_t *frame_len, uint32_t *tag)
{
	uint8_t block[4], zstd[4];
	size_t part = WPT_MIN(len, (size_t)4);
	uint32_t n;

	put32(block, WPT_FMT_MAGIC);
	put32(zstd, WPT_FMT_ZSTD_MAGIC);
	if (memcmp(bytes, zstd, part) == 0 && part == 4) {
		*frame_len = 0;
		return WPT_FMT_FRAME_DATA;
	}
	if (memcmp(bytes, block, part) != 0 && memcmp(bytes, zstd, part) != 0)
		return -WPT_E_NOT_SNAPSHOT;
	if (len < 12)
		return -WPT_E_TRUNCATED;
	n = get32(bytes + 4);
	if (n < WPT_FMT_BLOCK_OVERHEAD - 8 || n > WPT_FMT_PAYLOAD_MAX)
		return -WPT_E_DAMAGED;
	*frame_len = (size_t)n + 8;
	if (tag)
		*tag = get32(bytes + 8);
	return WPT_FMT_FRAME_BLOCK;
}

int wpt_fmt_block(const uint8_t *bytes, size_t len, uint32_t *tag, uint64_t *checksum)
{
	size_t frame_len;
	uint64_t stored;
	int ret;

	ret = wpt_fmt_frame(bytes, len, &frame_len, tag);
	if (ret < 0)
		return ret;
	if (ret != WPT_FMT_FRAME_BLOCK)
		return -WPT_E_NOT_SNAPSHOT;
	if (len < frame_len)
		return -WPT_E_TRUNCATED;
	if (len > frame_len)
		return -WPT_E_DAMAGED;
	stored = get64(bytes + len - CHECKSUM);
	if (stored != wpt_fmt_checksum(bytes, len - CHECKSUM))
		return -WPT_E_DAMAGED;
	if (checksum)
		*checksum = stored;
	return 0;
}

/* A block of one tag with at least `min` bytes in all. *end: behind the body. */
static int block_open(const uint8_t *bytes, size_t len, uint32_t want, size_t min, const uint8_t **end)
{
	size_t frame_len;
	uint32_t tag;
	int ret;

	ret = wpt_fmt_frame(bytes, len, &frame_len, &tag);
	if (ret < 0)
		return ret;
	if (ret != WPT_FMT_FRAME_BLOCK || tag != want)
		return -WPT_E_NOT_SNAPSHOT;
	ret = wpt_fmt_block(bytes, len, NULL, NULL);
	if (ret < 0)
		return ret;
	if (len < min + CHECKSUM)
		return -WPT_E_DAMAGED;
	*end = bytes + len - CHECKSUM;
	return 0;
}

static void block_begin(uint8_t *buf, uint32_t tag)
{
	put32(buf, WPT_FMT_MAGIC);
	put32(buf + 8, tag);
}

/* `end` is behind the body. */
static size_t block_end(uint8_t *buf, const uint8_t *end)
{
	size_t len = (size_t)(end - buf);

	put32(buf + 4, (uint32_t)(len - 8 + CHECKSUM));
	put64(buf + len, wpt_fmt_checksum(buf, len));
	return len + CHECKSUM;
}

/* ---- head ---- */

static uint8_t *put_string(uint8_t *p, const char *s, size_t size)
{
	size_t len = strnlen(s, size - 1);

	*p++ = (uint8_t)len;
	return put_bytes(p, s, len);
}

static bool get_string(const uint8_t **p, const uint8_t *end, char *s, size_t size)
{
	size_t len;

	if (*p == end)
		return false;
	len = *(*p)++;
	if (len >= size || len > (size_t)(end - *p) || memchr(*p, 0, len))
		return false;
	memcpy(s, *p, len);
	s[len] = 0;
	*p += len;
	return true;
}

size_t wpt_fmt_head_encode(const struct wpt_fmt_head *h, uint8_t buf[WPT_FMT_HEAD_MAX])
{
	uint8_t *p = buf + 12;

	block_begin(buf, WPT_FMT_HEAD);
	p = put16(p, WPT_FMT_VERSION);
	*p++ = (uint8_t)h->page_shift;
	*p++ = (uint8_t)h->mode;
	p = put32(p, h->flags);
	p = put32(p, h->incompat);
	p = put32(p, h->compat);
	p = put_bytes(p, h->identity.chain_id, 16);
	p = put_bytes(p, h->identity.link_id, 16);
	p = put64(p, h->identity.sequence);
	p = put_bytes(p, h->identity.parent_id, 16);
	p = put_bytes(p, h->identity.parent_digest, 16);
	p = put_bytes(p, h->key, 32);
	if (h->flags & WPT_FMT_ORIGIN) {
		p = put64(p, (uint64_t)h->origin.pid);
		p = put64(p, h->origin.start_time);
		p = put_string(p, h->origin.boot_id, sizeof(h->origin.boot_id));
		p = put_string(p, h->origin.comm, sizeof(h->origin.comm));
	}
	return block_end(buf, p);
}

static bool origin_decode(const uint8_t *p, const uint8_t *end, struct wpt_origin *o)
{
	if (end - p < 16)
		return false;
	o->pid = (int64_t)get64(p);
	o->start_time = get64(p + 8);
	p += 16;
	return get_string(&p, end, o->boot_id, sizeof(o->boot_id)) && get_string(&p, end, o->comm, sizeof(o->comm));
}

int wpt_fmt_head_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_head *h)
{
	const uint8_t *end;
	int ret;

	ret = block_open(bytes, len, WPT_FMT_HEAD, 16, &end);
	if (ret < 0)
		return ret;
	if (get16(bytes + 12) != WPT_FMT_VERSION)
		return -WPT_E_FEATURE;
	if (end - bytes < 132)
		return -WPT_E_DAMAGED;
	memset(h, 0, sizeof(*h));
	h->page_shift = bytes[14];
	h->mode = bytes[15];
	h->flags = get32(bytes + 16);
	h->incompat = get32(bytes + 20);
	h->compat = get32(bytes + 24);
	memcpy(h->identity.chain_id, bytes + 28, 16);
	memcpy(h->identity.link_id, bytes + 44, 16);
	h->identity.sequence = get64(bytes + 60);
	memcpy(h->identity.parent_id, bytes + 68, 16);
	memcpy(h->identity.parent_digest, bytes + 84, 16);
	memcpy(h->key, bytes + 100, 32);
	if (h->incompat & ~WPT_FMT_INCOMPAT_KNOWN || h->flags & ~HEAD_FLAGS_KNOWN || h->page_shift != WPT_FMT_PAGE_SHIFT)
		return -WPT_E_FEATURE;
	if (!(h->flags & WPT_FMT_FULL) && memcmp(h->identity.parent_id, zero_id, 16) == 0)
		return -WPT_E_DAMAGED;
	if (h->flags & WPT_FMT_MERGED && !(h->flags & WPT_FMT_FULL))
		return -WPT_E_DAMAGED;
	if (h->flags & WPT_FMT_ORIGIN && !origin_decode(bytes + 132, end, &h->origin))
		return -WPT_E_DAMAGED;
	return 0;
}

/* ---- leaf ---- */

int wpt_fmt_leaf_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_leaf *leaf)
{
	const uint8_t *end;
	int ret;

	ret = block_open(bytes, len, WPT_FMT_LEAF, LEAF_RUNS, &end);
	if (ret < 0)
		return ret;
	leaf->nr_runs = get32(bytes + 12);
	leaf->nr_frames = get32(bytes + 16);
	leaf->first_page = get64(bytes + 20);
	leaf->end_page = get64(bytes + 28);
	if (leaf->nr_runs == 0 || leaf->nr_frames > (size_t)(end - bytes - LEAF_RUNS) / WPT_FMT_FRAME_INFO_SIZE)
		return -WPT_E_DAMAGED;
	if (leaf->first_page >= leaf->end_page || leaf->end_page > WPT_FMT_PAGES_END)
		return -WPT_E_DAMAGED;
	leaf->frames = end - (size_t)leaf->nr_frames * WPT_FMT_FRAME_INFO_SIZE;
	leaf->next = bytes + LEAF_RUNS;
	leaf->runs_end = leaf->frames;
	leaf->page = leaf->first_page;
	leaf->runs_left = leaf->nr_runs;
	return 0;
}

int wpt_fmt_leaf_frame(const struct wpt_fmt_leaf *leaf, uint32_t i, struct wpt_fmt_frame_info *frame)
{
	const uint8_t *p;
	uint64_t end;

	if (i >= leaf->nr_frames)
		return -WPT_E_DAMAGED;
	p = leaf->frames + (size_t)i * WPT_FMT_FRAME_INFO_SIZE;
	frame->offset = get64(p);
	frame->length = get32(p + 8);
	frame->nr_pages = get32(p + 12);
	frame->checksum = get64(p + 16);
	if (frame->nr_pages == 0 || frame->nr_pages > WPT_FMT_FRAME_PAGES || frame->length == 0 ||
	    frame->length > WPT_FMT_FRAME_MAX || wpt_add_overflows(frame->offset, frame->length, &end))
		return -WPT_E_DAMAGED;
	return 0;
}

/* The part of a run that only data has. */
static bool run_data_decode(const struct wpt_fmt_leaf *leaf, const uint8_t **p, struct wpt_fmt_run *run)
{
	struct wpt_fmt_frame_info frame;

	if (!get_varint32(p, leaf->runs_end, &run->frame) || !get_varint32(p, leaf->runs_end, &run->slot))
		return false;
	if (wpt_fmt_leaf_frame(leaf, run->frame, &frame) < 0)
		return false;
	if (run->slot >= frame.nr_pages || run->nr_pages > frame.nr_pages - run->slot)
		return false;
	if (run->nr_pages * 16 > (size_t)(leaf->runs_end - *p))
		return false;
	run->hashes = *p;
	*p += run->nr_pages * 16;
	return true;
}

int wpt_fmt_leaf_next(struct wpt_fmt_leaf *leaf, struct wpt_fmt_run *run)
{
	const uint8_t *p = leaf->next;
	uint64_t gap;

	if (leaf->runs_left == 0)
		return p == leaf->runs_end ? 0 : -WPT_E_DAMAGED;
	if (p == leaf->runs_end)
		return -WPT_E_DAMAGED;
	memset(run, 0, sizeof(*run));
	run->kind = *p++;
	if (run->kind < WPT_FMT_DATA || run->kind > WPT_FMT_GUARD)
		return -WPT_E_DAMAGED;
	if (!get_varint(&p, leaf->runs_end, &gap) || !get_varint(&p, leaf->runs_end, &run->nr_pages))
		return -WPT_E_DAMAGED;
	if (gap >= leaf->end_page - leaf->page)
		return -WPT_E_DAMAGED;
	run->page = leaf->page + gap;
	if (run->nr_pages == 0 || run->nr_pages > leaf->end_page - run->page)
		return -WPT_E_DAMAGED;
	if (wpt_fmt_has_data(run->kind) && !run_data_decode(leaf, &p, run))
		return -WPT_E_DAMAGED;
	leaf->page = run->page + run->nr_pages;
	leaf->next = p;
	leaf->runs_left--;
	return 1;
}

void wpt_fmt_leaf_begin(struct wpt_fmt_leaf_builder *b)
{
	b->used = LEAF_RUNS;
	b->nr_frames = 0;
	b->nr_runs = 0;
	b->first_page = 0;
	b->end_page = 0;
	b->nr_pages = 0;
}

static size_t leaf_room(const struct wpt_fmt_leaf_builder *b)
{
	return WPT_FMT_BLOCK_MAX - CHECKSUM - b->used - (size_t)b->nr_frames * WPT_FMT_FRAME_INFO_SIZE;
}

int wpt_fmt_leaf_add_frame(struct wpt_fmt_leaf_builder *b, const struct wpt_fmt_frame_info *frame)
{
	uint8_t *p = b->frames + (size_t)b->nr_frames * WPT_FMT_FRAME_INFO_SIZE;

	if (b->nr_frames == WPT_FMT_LEAF_FRAMES_MAX || leaf_room(b) < WPT_FMT_FRAME_INFO_SIZE)
		return -ENOSPC;
	p = put64(p, frame->offset);
	p = put32(p, frame->length);
	p = put32(p, frame->nr_pages);
	put64(p, frame->checksum);
	return (int)b->nr_frames++;
}

int wpt_fmt_leaf_add_run(struct wpt_fmt_leaf_builder *b, const struct wpt_fmt_run *run)
{
	bool data = wpt_fmt_has_data(run->kind);
	size_t need = 1 + 4 * 10 + (data ? run->nr_pages * 16 : 0);
	uint8_t *p = b->buf + b->used;

	if (leaf_room(b) < need || (b->nr_runs && run->page < b->end_page))
		return -ENOSPC;
	if (b->nr_runs == 0) {
		b->first_page = run->page;
		b->end_page = run->page;
	}
	*p++ = (uint8_t)run->kind;
	p = put_varint(p, run->page - b->end_page);
	p = put_varint(p, run->nr_pages);
	if (data) {
		p = put_varint(p, run->frame);
		p = put_varint(p, run->slot);
		p = put_bytes(p, run->hashes, run->nr_pages * 16);
	}
	b->used = (size_t)(p - b->buf);
	b->end_page = run->page + run->nr_pages;
	b->nr_pages += run->nr_pages;
	b->nr_runs++;
	return 0;
}

size_t wpt_fmt_leaf_end(struct wpt_fmt_leaf_builder *b)
{
	uint8_t *p = b->buf + b->used;

	block_begin(b->buf, WPT_FMT_LEAF);
	put32(b->buf + 12, b->nr_runs);
	put32(b->buf + 16, b->nr_frames);
	put64(b->buf + 20, b->first_page);
	put64(b->buf + 28, b->end_page);
	p = put_bytes(p, b->frames, (size_t)b->nr_frames * WPT_FMT_FRAME_INFO_SIZE);
	return block_end(b->buf, p);
}

/* ---- node ---- */

static bool level_ok(uint32_t level)
{
	return level >= 1 && level <= WPT_FMT_LEVEL_MAX;
}

int wpt_fmt_node_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_children *c)
{
	const uint8_t *end;
	int ret;

	ret = block_open(bytes, len, WPT_FMT_NODE, NODE_CHILDREN, &end);
	if (ret < 0)
		return ret;
	c->level = get32(bytes + 12);
	c->nr = get32(bytes + 16);
	c->next = bytes + NODE_CHILDREN;
	c->end = end;
	c->offset = 0;
	c->left = c->nr;
	return level_ok(c->level) && c->nr > 0 ? 0 : -WPT_E_DAMAGED;
}

int wpt_fmt_children_next(struct wpt_fmt_children *c, struct wpt_fmt_child *child)
{
	const uint8_t *p = c->next;
	uint64_t skip, span, end;

	if (c->left == 0)
		return 0;
	if (!get_varint(&p, c->end, &skip) || !get_varint32(&p, c->end, &child->length) ||
	    !get_varint(&p, c->end, &child->first_page) || !get_varint(&p, c->end, &span) ||
	    !get_varint(&p, c->end, &child->nr_pages) || c->end - p < 8)
		return -WPT_E_DAMAGED;
	child->checksum = get64(p);
	p += 8;
	if (wpt_add_overflows(c->offset, skip, &child->offset) || wpt_add_overflows(child->offset, child->length, &end))
		return -WPT_E_DAMAGED;
	if (child->length < WPT_FMT_BLOCK_OVERHEAD || child->length > WPT_FMT_BLOCK_MAX)
		return -WPT_E_DAMAGED;
	if (span == 0 || child->first_page >= WPT_FMT_PAGES_END || span > WPT_FMT_PAGES_END - child->first_page)
		return -WPT_E_DAMAGED;
	child->end_page = child->first_page + span;
	c->offset = end;
	c->next = p;
	c->left--;
	return 1;
}

void wpt_fmt_node_begin(struct wpt_fmt_node_builder *b)
{
	b->used = NODE_CHILDREN;
	b->nr = 0;
	b->offset = 0;
	memset(&b->sum, 0, sizeof(b->sum));
}

int wpt_fmt_node_add(struct wpt_fmt_node_builder *b, const struct wpt_fmt_child *child)
{
	uint8_t *p = b->buf + b->used;

	if (WPT_FMT_BLOCK_MAX - CHECKSUM - b->used < WPT_FMT_CHILD_MAX || child->offset < b->offset)
		return -ENOSPC;
	p = put_varint(p, child->offset - b->offset);
	p = put_varint(p, child->length);
	p = put_varint(p, child->first_page);
	p = put_varint(p, child->end_page - child->first_page);
	p = put_varint(p, child->nr_pages);
	p = put64(p, child->checksum);
	b->used = (size_t)(p - b->buf);
	b->offset = child->offset + child->length;
	if (b->nr == 0 || child->first_page < b->sum.first_page)
		b->sum.first_page = child->first_page;
	if (child->end_page > b->sum.end_page)
		b->sum.end_page = child->end_page;
	b->sum.nr_pages += child->nr_pages;
	b->nr++;
	return 0;
}

size_t wpt_fmt_node_end(struct wpt_fmt_node_builder *b, uint32_t level)
{
	block_begin(b->buf, WPT_FMT_NODE);
	put32(b->buf + 12, level);
	put32(b->buf + 16, b->nr);
	return block_end(b->buf, b->buf + b->used);
}

/* ---- root ---- */

int wpt_fmt_root_section(struct wpt_fmt_root *r, struct wpt_fmt_section *s)
{
	const uint8_t *p = r->next_section;
	uint64_t skip, end;

	if (r->sections_left == 0)
		return 0;
	if (!get_varint32(&p, r->sections_end, &s->type) || !get_varint(&p, r->sections_end, &skip) ||
	    !get_varint(&p, r->sections_end, &s->stored) || !get_varint(&p, r->sections_end, &s->length) ||
	    r->sections_end - p < 16)
		return -WPT_E_DAMAGED;
	memcpy(s->digest, p, 16);
	p += 16;
	if (wpt_add_overflows(r->section_offset, skip, &s->offset) || wpt_add_overflows(s->offset, s->stored, &end))
		return -WPT_E_DAMAGED;
	if (s->length > WPT_FMT_SECTION_MAX || s->stored < WPT_FMT_BLOCK_OVERHEAD)
		return -WPT_E_DAMAGED;
	r->section_offset = end;
	r->next_section = p;
	r->sections_left--;
	return 1;
}

static bool counts_decode(const uint8_t **p, const uint8_t *end, struct wpt_fmt_counts *c)
{
	return get_varint(p, end, &c->data) && get_varint(p, end, &c->torn) && get_varint(p, end, &c->duplicate) &&
	       get_varint(p, end, &c->zero) && get_varint(p, end, &c->unreadable) && get_varint(p, end, &c->guard) &&
	       get_varint(p, end, &c->unchanged);
}

int wpt_fmt_root_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_root *r)
{
	struct wpt_fmt_section s;
	struct wpt_fmt_root scan;
	const uint8_t *p, *end;
	int ret;

	ret = block_open(bytes, len, WPT_FMT_ROOT, ROOT_COUNTS, &end);
	if (ret < 0)
		return ret;
	memset(r, 0, sizeof(*r));
	r->children.level = get32(bytes + 12);
	if (!level_ok(r->children.level))
		return -WPT_E_DAMAGED;
	if (get32(bytes + 16) != 0)
		return -WPT_E_FEATURE;
	r->time_ns = get64(bytes + 20);
	p = bytes + ROOT_COUNTS;
	if (!get_varint(&p, end, &r->pause_ns) || !counts_decode(&p, end, &r->counts) ||
	    !get_varint32(&p, end, &r->nr_sections) || !get_varint32(&p, end, &r->children.nr) ||
	    r->nr_sections > WPT_FMT_SECTIONS_MAX)
		return -WPT_E_DAMAGED;
	r->next_section = p;
	r->sections_end = end;
	r->sections_left = r->nr_sections;
	scan = *r;
	while ((ret = wpt_fmt_root_section(&scan, &s)) > 0)
		continue;
	if (ret < 0)
		return ret;
	r->children.next = scan.next_section;
	r->children.end = end;
	r->children.left = r->children.nr;
	return 0;
}

static uint8_t *section_encode(uint8_t *p, const struct wpt_fmt_section *s, uint64_t from)
{
	p = put_varint(p, s->type);
	p = put_varint(p, s->offset - from);
	p = put_varint(p, s->stored);
	p = put_varint(p, s->length);
	return put_bytes(p, s->digest, 16);
}

size_t wpt_fmt_root_encode(const struct wpt_fmt_root *r, const struct wpt_fmt_section *sections,
			   const struct wpt_fmt_node_builder *children, uint32_t level, uint8_t *buf)
{
	const struct wpt_fmt_counts *c = &r->counts;
	size_t body = children->used - NODE_CHILDREN;
	uint64_t from = 0;
	uint8_t *p = buf + 12;

	if (ROOT_COUNTS + 10 * 10 + (size_t)r->nr_sections * 64 + body + CHECKSUM > WPT_FMT_BLOCK_MAX)
		return 0;
	block_begin(buf, WPT_FMT_ROOT);
	p = put32(p, level);
	p = put32(p, 0);
	p = put64(p, r->time_ns);
	p = put_varint(p, r->pause_ns);
	p = put_varint(p, c->data);
	p = put_varint(p, c->torn);
	p = put_varint(p, c->duplicate);
	p = put_varint(p, c->zero);
	p = put_varint(p, c->unreadable);
	p = put_varint(p, c->guard);
	p = put_varint(p, c->unchanged);
	p = put_varint(p, r->nr_sections);
	p = put_varint(p, children->nr);
	for (uint32_t i = 0; i < r->nr_sections; i++) {
		p = section_encode(p, &sections[i], from);
		from = sections[i].offset + sections[i].stored;
	}
	p = put_bytes(p, children->buf + NODE_CHILDREN, body);
	return block_end(buf, p);
}

/* ---- sections ---- */

int wpt_fmt_part_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_part *part)
{
	const uint8_t *end;
	int ret;

	ret = block_open(bytes, len, WPT_FMT_PART, WPT_FMT_PART_DATA, &end);
	if (ret < 0)
		return ret;
	part->type = get32(bytes + 12);
	part->index = get32(bytes + 16);
	part->flags = get32(bytes + 20);
	part->raw_len = get32(bytes + 24);
	part->data = bytes + WPT_FMT_PART_DATA;
	part->len = (uint32_t)(end - part->data);
	if (part->flags & ~PART_FLAGS_KNOWN)
		return -WPT_E_FEATURE;
	if (part->raw_len > WPT_FMT_PART_MAX || part->len > WPT_FMT_PART_MAX)
		return -WPT_E_DAMAGED;
	if (part->flags & WPT_FMT_PART_ZSTD ? part->len == 0 : part->len != part->raw_len)
		return -WPT_E_DAMAGED;
	return 0;
}

size_t wpt_fmt_part_encode(const struct wpt_fmt_part *part, uint8_t *buf)
{
	block_begin(buf, WPT_FMT_PART);
	put32(buf + 12, part->type);
	put32(buf + 16, part->index);
	put32(buf + 20, part->flags);
	put32(buf + 24, part->raw_len);
	if (part->len && part->data != buf + WPT_FMT_PART_DATA)
		memcpy(buf + WPT_FMT_PART_DATA, part->data, part->len);
	return block_end(buf, buf + WPT_FMT_PART_DATA + part->len);
}

size_t wpt_fmt_range_encode(const struct wpt_fmt_range *r, uint8_t *buf)
{
	uint32_t len = WPT_MIN(r->name_len, WPT_FMT_NAME_MAX);
	uint8_t *p = buf;

	p = put64(p, r->start);
	p = put64(p, r->end);
	p = put32(p, r->kind);
	p = put32(p, r->reason);
	p = put32(p, len);
	if (len)
		p = put_bytes(p, r->name, len);
	return (size_t)(p - buf);
}

int wpt_fmt_ranges_next(struct wpt_fmt_ranges *c, struct wpt_fmt_range *r)
{
	const uint8_t *p = c->next;
	const uint64_t unaligned = WPT_FMT_PAGE - 1;

	if (p == c->end)
		return 0;
	if (c->end - p < 28)
		return -WPT_E_DAMAGED;
	r->start = get64(p);
	r->end = get64(p + 8);
	r->kind = get32(p + 16);
	r->reason = get32(p + 20);
	r->name_len = get32(p + 24);
	p += 28;
	r->name = (const char *)p;
	if (r->name_len > WPT_FMT_NAME_MAX || r->name_len > (size_t)(c->end - p) || memchr(p, 0, r->name_len))
		return -WPT_E_DAMAGED;
	if ((r->start | r->end) & unaligned || r->start >= r->end || r->start < c->prev_end)
		return -WPT_E_DAMAGED;
	c->prev_end = r->end;
	c->next = p + r->name_len;
	return 1;
}

/* ---- trailer ---- */

void wpt_fmt_trailer_encode(const struct wpt_fmt_trailer *t, uint8_t buf[WPT_FMT_TRAILER_SIZE])
{
	uint8_t *p = buf + 12;

	block_begin(buf, WPT_FMT_TRAILER);
	p = put16(p, WPT_FMT_VERSION);
	p = put16(p, 0);
	p = put_bytes(p, t->chain_id, 16);
	p = put_bytes(p, t->link_id, 16);
	p = put64(p, t->sequence);
	p = put64(p, t->offset);
	p = put64(p, t->root_offset);
	p = put32(p, t->root_length);
	p = put64(p, t->root_checksum);
	p = put_bytes(p, t->digest, 16);
	p = put_bytes(p, t->file_digest, 16);
	p = put32(p, 0);
	block_end(buf, p);
}

int wpt_fmt_trailer_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_trailer *t)
{
	const uint8_t *end;
	uint64_t root_end, link_end;
	int ret;

	ret = block_open(bytes, len, WPT_FMT_TRAILER, WPT_FMT_TRAILER_SIZE - CHECKSUM, &end);
	if (ret < 0)
		return ret;
	if (len != WPT_FMT_TRAILER_SIZE)
		return -WPT_E_DAMAGED;
	if (get16(bytes + 12) != WPT_FMT_VERSION)
		return -WPT_E_FEATURE;
	memcpy(t->chain_id, bytes + 16, 16);
	memcpy(t->link_id, bytes + 32, 16);
	t->sequence = get64(bytes + 48);
	t->offset = get64(bytes + 56);
	t->root_offset = get64(bytes + 64);
	t->root_length = get32(bytes + 72);
	t->root_checksum = get64(bytes + 76);
	memcpy(t->digest, bytes + 84, 16);
	memcpy(t->file_digest, bytes + 100, 16);
	if (t->root_length < WPT_FMT_BLOCK_OVERHEAD || t->root_length > WPT_FMT_BLOCK_MAX ||
	    wpt_add_overflows(t->root_offset, t->root_length, &root_end) || root_end > t->offset ||
	    wpt_add_overflows(t->offset, WPT_FMT_TRAILER_SIZE, &link_end))
		return -WPT_E_DAMAGED;
	return 0;
}

/* ---- identity ---- */

void wpt_fmt_records_init(struct wpt_fmt_records *r)
{
	wpt_fmt_hash_init(&r->hash);
	r->nr_pages = 0;
	r->kind = 0;
}

/* Runs without data are hashed when it is known where they end: how they were split does not show. */
static void records_flush(struct wpt_fmt_records *r)
{
	uint8_t record[32];

	if (r->nr_pages == 0)
		return;
	put64(put64(put64(put64(record, r->page), r->kind), r->nr_pages), 0);
	wpt_fmt_hash_update(&r->hash, record, sizeof(record));
	r->nr_pages = 0;
}

void wpt_fmt_records_run(struct wpt_fmt_records *r, const struct wpt_fmt_run *run)
{
	uint32_t kind = run->kind == WPT_FMT_DUPLICATE ? WPT_FMT_DATA : run->kind;
	uint8_t records[16][32];

	if (!wpt_fmt_has_data(kind)) {
		if (r->nr_pages == 0 || r->kind != kind || r->page + r->nr_pages != run->page) {
			records_flush(r);
			r->page = run->page;
			r->kind = kind;
		}
		r->nr_pages += run->nr_pages;
		return;
	}
	records_flush(r);
	for (uint64_t i = 0; i < run->nr_pages;) {
		size_t n = 0;

		for (; n < WPT_ARRAY_SIZE(records) && i < run->nr_pages; n++, i++)
			put_bytes(put64(put64(records[n], run->page + i), kind), run->hashes + i * 16, 16);
		wpt_fmt_hash_update(&r->hash, records, n * sizeof(records[0]));
	}
}

void wpt_fmt_records_final(struct wpt_fmt_records *r, uint8_t out[16])
{
	records_flush(r);
	wpt_fmt_hash_final(&r->hash, out);
}

void wpt_fmt_identity(const struct wpt_fmt_head *h, const uint8_t records_digest[16], const uint8_t *ranges_digest,
		      uint8_t out[16])
{
	const struct wpt_identity *id = &h->identity;
	uint8_t bytes[8 + 16 + 16 + 8 + 16 + 16 + 8 + 16 + 16];
	uint8_t *p = bytes;

	p = put_bytes(p, "WPTIDENT", 8);
	p = put_bytes(p, id->chain_id, 16);
	p = put_bytes(p, id->link_id, 16);
	p = put64(p, id->sequence);
	p = put_bytes(p, id->parent_id, 16);
	p = put_bytes(p, id->parent_digest, 16);
	p = put64(p, h->flags & WPT_FMT_FULL);
	p = put_bytes(p, records_digest, 16);
	p = put_bytes(p, ranges_digest ? ranges_digest : zero_id, 16);
	wpt_fmt_digest(bytes, (size_t)(p - bytes), out);
}
