/* SPDX-License-Identifier: MIT */
/*
 * The output of one link, in order: frames to the sink, their checksums into the file digest, page records into leaves, leaves into
 * a tree. Memory is bounded: a leaf and a node of each level are in hand, full ones are written at once.
 *
 * Threads: one at a time.
 */
#ifndef WPT_LAYER_INDEX_H
#define WPT_LAYER_INDEX_H

#include "base.h"
#include "format.h"
#include "store.h"

#define WPT_INDEX_RING 32768u  /* data frames whose place is remembered */
#define WPT_INDEX_KNOWN 1024u  /* power of two */

struct wpt_layer_index {
	struct wpt_sink *sink;
	uint64_t offset;                 /* bytes of the link so far */
	struct wpt_fmt_hash file_hash;
	struct wpt_fmt_records records;
	struct wpt_fmt_leaf_builder leaf;
	struct wpt_fmt_node_builder nodes[WPT_FMT_LEVEL_MAX];
	struct wpt_fmt_frame_info *ring; /* by frame number */
	struct {                         /* numbers of frames that the leaf in hand lists already */
		uint64_t number;
		uint64_t leaf;
		uint32_t ordinal;
	} known[WPT_INDEX_KNOWN];
	uint64_t nr_leaves;
	uint8_t *memory;                 /* all buffers in one piece */
	uint8_t *block;                  /* WPT_FMT_BLOCK_MAX, for the caller and the root */
	uint8_t *small;                  /* short writes are gathered here */
	size_t small_len;
};

/* Errors: -ENOMEM. */
int wpt_layer_index_init(struct wpt_layer_index *x, struct wpt_sink *sink);
void wpt_layer_index_free(struct wpt_layer_index *x);

/* Writes one frame; `checksum` of a data frame, or the one that ends a block. */
int wpt_layer_index_frame(struct wpt_layer_index *x, const uint8_t *frame, size_t len, uint64_t checksum);
int wpt_layer_index_block(struct wpt_layer_index *x, const uint8_t *block, size_t len);

/* A data frame, which runs may then point to by `number` until WPT_INDEX_RING - 1 greater numbers were written. Numbers ascend. */
int wpt_layer_index_data(struct wpt_layer_index *x, uint64_t number, const uint8_t *frame, size_t len, uint32_t nr_pages,
			 uint64_t checksum);

/* A page record; run->frame is ignored, data is in the frame of that number. */
int wpt_layer_index_run(struct wpt_layer_index *x, struct wpt_fmt_run *run, uint64_t number);

/* Writes the rest of the tree, then root and trailer; the caller has set all of *trailer but what is found here. */
int wpt_layer_index_finish(struct wpt_layer_index *x, struct wpt_fmt_root *root, const struct wpt_fmt_section *sections,
			   struct wpt_fmt_trailer *trailer);

#endif
