/* SPDX-License-Identifier: MIT */
#include "layer_index.h"

#define SMALL 65536u
#define FRAMES_BYTES (WPT_FMT_LEAF_FRAMES_MAX * WPT_FMT_FRAME_INFO_SIZE)
#define RING_BYTES (WPT_INDEX_RING * sizeof(struct wpt_fmt_frame_info))
#define BUFFERS (WPT_FMT_LEVEL_MAX + 2) /* blocks: nodes, leaf, one to share */
#define BLOCK_STRIDE (WPT_FMT_BLOCK_MAX + 4088u)
#define MEMORY_BYTES (BUFFERS * (size_t)BLOCK_STRIDE + SMALL + FRAMES_BYTES + RING_BYTES)

_Static_assert(BLOCK_STRIDE % 4096 == 0, "what lies behind the blocks is aligned");

static uint64_t checksum_of(const uint8_t *block, size_t len)
{
	uint64_t v = 0;

	for (unsigned int i = 0; i < 8; i++)
		v |= (uint64_t)block[len - 8 + i] << (8 * i);
	return v;
}

int wpt_layer_index_init(struct wpt_layer_index *x, struct wpt_sink *sink)
{
	uint8_t *p;

	memset(x, 0, sizeof(*x));
	x->sink = sink;
	x->memory = p = wpt_vm_alloc(MEMORY_BYTES);
	if (!p)
		return -ENOMEM;
	for (unsigned int i = 0; i < WPT_FMT_LEVEL_MAX; i++, p += BLOCK_STRIDE) {
		x->nodes[i].buf = p;
		wpt_fmt_node_begin(&x->nodes[i]);
	}
	x->leaf.buf = p;
	x->block = p + BLOCK_STRIDE;
	x->ring = (struct wpt_fmt_frame_info *)(p + 2 * (size_t)BLOCK_STRIDE);
	x->leaf.frames = p + 2 * (size_t)BLOCK_STRIDE + RING_BYTES;
	x->small = x->leaf.frames + FRAMES_BYTES;
	x->nr_leaves = 1;
	wpt_fmt_leaf_begin(&x->leaf);
	wpt_fmt_hash_init(&x->file_hash);
	wpt_fmt_records_init(&x->records);
	return 0;
}

void wpt_layer_index_free(struct wpt_layer_index *x)
{
	wpt_vm_free(x->memory, MEMORY_BYTES);
	x->memory = NULL;
}

/* ---- bytes ---- */

static int small_flush(struct wpt_layer_index *x)
{
	size_t len = x->small_len;

	x->small_len = 0;
	return len ? x->sink->write(x->sink, x->small, len) : 0;
}

/* An increment of a few pages reaches the sink in one write. */
static int put(struct wpt_layer_index *x, const uint8_t *bytes, size_t len)
{
	int ret;

	x->offset += len;
	if (len > SMALL - x->small_len) {
		ret = small_flush(x);
		if (ret < 0)
			return ret;
	}
	if (len > SMALL)
		return x->sink->write(x->sink, bytes, len);
	memcpy(x->small + x->small_len, bytes, len);
	x->small_len += len;
	return 0;
}

int wpt_layer_index_frame(struct wpt_layer_index *x, const uint8_t *frame, size_t len, uint64_t checksum)
{
	wpt_fmt_hash_u64(&x->file_hash, checksum);
	return put(x, frame, len);
}

int wpt_layer_index_block(struct wpt_layer_index *x, const uint8_t *block, size_t len)
{
	return wpt_layer_index_frame(x, block, len, checksum_of(block, len));
}

/* ---- the tree ---- */

static int child_add(struct wpt_layer_index *x, unsigned int i, const struct wpt_fmt_child *child);

/* Writes node i and puts it into the one above. */
static int node_flush(struct wpt_layer_index *x, unsigned int i)
{
	struct wpt_fmt_node_builder *b = &x->nodes[i];
	struct wpt_fmt_child child = b->sum;
	size_t len = wpt_fmt_node_end(b, i + 1);
	int ret;

	child.offset = x->offset;
	child.length = (uint32_t)len;
	child.checksum = checksum_of(b->buf, len);
	ret = wpt_layer_index_block(x, b->buf, len);
	wpt_fmt_node_begin(b);
	return ret < 0 ? ret : child_add(x, i + 1, &child);
}

static int child_add(struct wpt_layer_index *x, unsigned int i, const struct wpt_fmt_child *child)
{
	int ret;

	if (i == WPT_FMT_LEVEL_MAX)
		return -EFBIG;
	ret = wpt_fmt_node_add(&x->nodes[i], child);
	if (ret != -ENOSPC)
		return ret;
	ret = node_flush(x, i);
	return ret < 0 ? ret : wpt_fmt_node_add(&x->nodes[i], child);
}

static int leaf_flush(struct wpt_layer_index *x)
{
	struct wpt_fmt_leaf_builder *b = &x->leaf;
	struct wpt_fmt_child child = { .first_page = b->first_page, .end_page = b->end_page, .nr_pages = b->nr_pages };
	int ret = 0;

	if (b->nr_runs) {
		child.length = (uint32_t)wpt_fmt_leaf_end(b);
		child.offset = x->offset;
		child.checksum = checksum_of(b->buf, child.length);
		ret = wpt_layer_index_block(x, b->buf, child.length);
		if (ret == 0)
			ret = child_add(x, 0, &child);
	}
	wpt_fmt_leaf_begin(b);
	x->nr_leaves++;
	return ret;
}

int wpt_layer_index_data(struct wpt_layer_index *x, uint64_t number, const uint8_t *frame, size_t len, uint32_t nr_pages,
			 uint64_t checksum)
{
	struct wpt_fmt_frame_info *info = &x->ring[number % WPT_INDEX_RING];

	info->offset = x->offset;
	info->length = (uint32_t)len;
	info->nr_pages = nr_pages;
	info->checksum = checksum;
	return wpt_layer_index_frame(x, frame, len, checksum);
}

/* The frame's place in the leaf's table. A frame may be there twice when its slot in `known` was taken by another. */
static int frame_ordinal(struct wpt_layer_index *x, uint64_t number)
{
	unsigned int i = number % WPT_INDEX_KNOWN;
	int ret;

	if (x->known[i].leaf == x->nr_leaves && x->known[i].number == number)
		return (int)x->known[i].ordinal;
	ret = wpt_fmt_leaf_add_frame(&x->leaf, &x->ring[number % WPT_INDEX_RING]);
	if (ret < 0)
		return ret;
	x->known[i].leaf = x->nr_leaves;
	x->known[i].number = number;
	x->known[i].ordinal = (uint32_t)ret;
	return ret;
}

static int run_add(struct wpt_layer_index *x, struct wpt_fmt_run *run, uint64_t number)
{
	if (wpt_fmt_has_data(run->kind)) {
		int ret = frame_ordinal(x, number);

		if (ret < 0)
			return ret;
		run->frame = (uint32_t)ret;
	}
	return wpt_fmt_leaf_add_run(&x->leaf, run);
}

int wpt_layer_index_run(struct wpt_layer_index *x, struct wpt_fmt_run *run, uint64_t number)
{
	int ret;

	ret = run_add(x, run, number);
	if (ret == -ENOSPC) {
		ret = leaf_flush(x);
		if (ret == 0)
			ret = run_add(x, run, number);
	}
	if (ret == 0)
		wpt_fmt_records_run(&x->records, run);
	return ret;
}

/* ---- the end ---- */

/* Gathers the tree in its topmost node in use; *top is its index. */
static int nodes_flush(struct wpt_layer_index *x, unsigned int *top)
{
	unsigned int i, highest = 0;
	int ret = 0;

	for (i = 1; i < WPT_FMT_LEVEL_MAX; i++)
		if (x->nodes[i].nr)
			highest = i;
	for (i = 0; i < highest && ret == 0; i++) {
		if (x->nodes[i].nr)
			ret = node_flush(x, i);
		if (highest + 1 < WPT_FMT_LEVEL_MAX && x->nodes[highest + 1].nr)
			highest++;
	}
	*top = highest;
	return ret;
}

int wpt_layer_index_finish(struct wpt_layer_index *x, struct wpt_fmt_root *root, const struct wpt_fmt_section *sections,
			   struct wpt_fmt_trailer *trailer)
{
	uint8_t bytes[WPT_FMT_TRAILER_SIZE];
	unsigned int top = 0;
	size_t len;
	int ret;

	ret = leaf_flush(x);
	if (ret == 0)
		ret = nodes_flush(x, &top);
	if (ret < 0)
		return ret;
	len = wpt_fmt_root_encode(root, sections, &x->nodes[top], top + 1, x->block);
	if (len == 0) {
		ret = node_flush(x, top);
		if (ret < 0)
			return ret;
		top++;
		len = wpt_fmt_root_encode(root, sections, &x->nodes[top], top + 1, x->block);
	}
	trailer->root_offset = x->offset;
	trailer->root_length = (uint32_t)len;
	trailer->root_checksum = checksum_of(x->block, len);
	ret = wpt_layer_index_block(x, x->block, len);
	if (ret < 0)
		return ret;
	trailer->offset = x->offset;
	wpt_fmt_hash_final(&x->file_hash, trailer->file_digest);
	wpt_fmt_trailer_encode(trailer, bytes);
	ret = put(x, bytes, sizeof(bytes));
	return ret < 0 ? ret : small_flush(x);
}
