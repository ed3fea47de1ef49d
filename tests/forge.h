/* SPDX-License-Identifier: MIT */
/*
 * Writes links by hand, with metadata that no writer would write: its own layout out of the encoders of format.c, then bytes may be
 * changed, then forge_seal() makes every checksum right.
 */
#ifndef WPT_TESTS_FORGE_H
#define WPT_TESTS_FORGE_H

#include "fuzz/reseal.h"
#include "page.h"

#define FORGE_SECTIONS 300u

struct forge {
	uint8_t *bytes;
	size_t len, room;
	size_t start;                    /* of the link in hand */
	struct wpt_fmt_head head;        /* of the next link */
	struct wpt_page_key key;
	struct wpt_fmt_leaf_builder leaf;
	struct wpt_fmt_node_builder node;
	struct wpt_fmt_root root;        /* counts; what is in it when the link ends is written */
	struct wpt_fmt_section sections[FORGE_SECTIONS];
	uint32_t level;
	uint8_t *block;
};

static inline void forge_put(struct forge *f, const void *data, size_t len)
{
	if (f->room - f->len < len) {
		f->room = (f->len + len) * 2;
		f->bytes = realloc(f->bytes, f->room);
		if (!f->bytes)
			abort();
	}
	memcpy(f->bytes + f->len, data, len);
	f->len += len;
}

static inline void forge_open(struct forge *f)
{
	memset(f, 0, sizeof(*f));
	f->leaf.buf = malloc(WPT_FMT_BLOCK_MAX);
	f->leaf.frames = malloc(WPT_FMT_LEAF_FRAMES_MAX * WPT_FMT_FRAME_INFO_SIZE);
	f->node.buf = malloc(WPT_FMT_BLOCK_MAX);
	f->block = malloc(WPT_FMT_BLOCK_MAX);
	if (!f->leaf.buf || !f->leaf.frames || !f->node.buf || !f->block)
		abort();
	memset(f->head.identity.chain_id, 0xc0, 16);
	memset(f->head.identity.link_id, 0x10, 16);
	memset(f->head.key, 0x6b, 32);
	f->head.page_shift = WPT_FMT_PAGE_SHIFT;
	f->head.flags = WPT_FMT_FULL | WPT_FMT_ORIGIN;
	strcpy(f->head.origin.boot_id, "boot");
	strcpy(f->head.origin.comm, "forged");
	wpt_page_key_init(&f->key, f->head.key);
}

static inline void forge_close(struct forge *f)
{
	free(f->bytes);
	free(f->leaf.buf);
	free(f->leaf.frames);
	free(f->node.buf);
	free(f->block);
}

static inline void forge_link(struct forge *f)
{
	uint8_t buf[WPT_FMT_HEAD_MAX];

	f->start = f->len;
	f->level = 1;
	memset(&f->root, 0, sizeof(f->root));
	forge_put(f, buf, wpt_fmt_head_encode(&f->head, buf));
	wpt_fmt_leaf_begin(&f->leaf);
	wpt_fmt_node_begin(&f->node);
}

/* A frame of any bytes; `f` in the leaf says that it has nr_pages. Its index in the leaf. */
static inline uint32_t forge_frame(struct forge *f, const void *data, size_t len, uint32_t nr_pages)
{
	struct wpt_fmt_frame_info info = { f->len - f->start, 0, nr_pages, 0 };
	ZSTD_CCtx *c = ZSTD_createCCtx();
	size_t room = ZSTD_compressBound(len), n;
	uint8_t *out = malloc(room);

	if (!c || !out)
		abort();
	ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
	n = ZSTD_compress2(c, out, room, data, len);
	if (ZSTD_isError(n))
		abort();
	forge_put(f, out, n);
	info.length = (uint32_t)n;
	free(out);
	ZSTD_freeCCtx(c);
	return (uint32_t)wpt_fmt_leaf_add_frame(&f->leaf, &info);
}

static inline void forge_run(struct forge *f, uint32_t kind, uint64_t page, uint64_t nr, uint32_t frame, uint32_t slot, const void *data)
{
	struct wpt_fmt_run run = { page, nr, kind, frame, slot, NULL };
	uint8_t hashes[64 * 16];

	for (uint64_t i = 0; data && i < nr && i < 64; i++)
		wpt_page_hash(&f->key, (const uint8_t *)data + i * WPT_FMT_PAGE, hashes + i * 16);
	if (wpt_fmt_has_data(kind))
		run.hashes = hashes;
	if (wpt_fmt_leaf_add_run(&f->leaf, &run))
		abort();
}

/* A page of data in a frame of its own. */
static inline void forge_page(struct forge *f, uint64_t page, const void *data)
{
	uint32_t frame = forge_frame(f, data, WPT_FMT_PAGE, 1);

	forge_run(f, WPT_FMT_DATA, page, 1, frame, 0, data);
	f->root.counts.data++;
}

static inline void forge_leaf(struct forge *f)
{
	struct wpt_fmt_child child = { f->len - f->start, 0, 0, f->leaf.first_page, f->leaf.end_page, f->leaf.nr_pages };

	child.length = (uint32_t)wpt_fmt_leaf_end(&f->leaf);
	forge_put(f, f->leaf.buf, child.length);
	if (wpt_fmt_node_add(&f->node, &child))
		abort();
	wpt_fmt_leaf_begin(&f->leaf);
}

/* What is in the node becomes a node, the only child of the one above. */
static inline void forge_node(struct forge *f)
{
	struct wpt_fmt_child child = f->node.sum;

	child.offset = f->len - f->start;
	child.length = (uint32_t)wpt_fmt_node_end(&f->node, f->level);
	forge_put(f, f->node.buf, child.length);
	f->level++;
	wpt_fmt_node_begin(&f->node);
	if (wpt_fmt_node_add(&f->node, &child))
		abort();
}

static inline struct wpt_fmt_section *forge_section(struct forge *f, uint32_t type, const void *data, size_t len)
{
	struct wpt_fmt_section *s = &f->sections[f->root.nr_sections++];
	struct wpt_fmt_part part = { .type = type };
	size_t at = 0;

	memset(s, 0, sizeof(*s));
	s->type = type;
	s->offset = f->len - f->start;
	s->length = len;
	do {
		part.data = (const uint8_t *)data + at;
		part.len = part.raw_len = (uint32_t)WPT_MIN(len - at, (size_t)WPT_FMT_PART_MAX);
		at += part.len;
		part.flags = at == len ? WPT_FMT_PART_LAST : 0;
		forge_put(f, f->block, wpt_fmt_part_encode(&part, f->block));
		part.index++;
	} while (at < len);
	s->stored = f->len - f->start - s->offset;
	return s;
}

static inline size_t forge_range(uint8_t *buf, uint64_t start, uint64_t end, const char *name)
{
	struct wpt_fmt_range r = { start, end, WPT_KIND_ANON, 0, name, (uint32_t)strlen(name) };

	return wpt_fmt_range_encode(&r, buf);
}

static inline void forge_end(struct forge *f)
{
	struct wpt_fmt_trailer t = { .sequence = f->head.identity.sequence };
	uint8_t buf[WPT_FMT_TRAILER_SIZE];
	size_t n;

	if (f->leaf.nr_runs)
		forge_leaf(f);
	n = wpt_fmt_root_encode(&f->root, f->sections, &f->node, f->level, f->block);
	memcpy(t.chain_id, f->head.identity.chain_id, 16);
	memcpy(t.link_id, f->head.identity.link_id, 16);
	t.root_offset = f->len - f->start;
	t.root_length = (uint32_t)n;
	t.offset = t.root_offset + n;
	forge_put(f, f->block, n);
	wpt_fmt_trailer_encode(&t, buf);
	forge_put(f, buf, sizeof(buf));
}

/* The head of the next link says that it continues the one in hand. */
static inline void forge_next(struct forge *f)
{
	struct wpt_identity *id = &f->head.identity;

	memcpy(id->parent_id, id->link_id, 16);
	id->link_id[0]++;
	id->sequence++;
	f->head.flags = 0;
}

static inline void forge_seal(struct forge *f)
{
	reseal(f->bytes, f->len, true);
}

/* Block number n of a tag, from the first link on. */
static inline uint8_t *forge_find(struct forge *f, uint32_t tag, uint32_t n, size_t *len)
{
	size_t at = 0, frame;
	bool block;

	while ((frame = reseal_frame(f->bytes + at, f->len - at, &block))) {
		if (block && reseal_get(f->bytes + at + 8, 4) == tag && n-- == 0) {
			*len = frame;
			return f->bytes + at;
		}
		at += frame;
	}
	abort();
}

#endif
