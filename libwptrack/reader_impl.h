/* SPDX-License-Identifier: MIT */
/* What the files of the reader share. */
#ifndef WPT_READER_IMPL_H
#define WPT_READER_IMPL_H

#include "reader.h"

struct wpt_reader {
	struct wpt_source *source;
	struct wpt_cache *cache;
	uint64_t owner;                 /* of entries in the cache */
	struct wpt_reader_info info;
	struct wpt_fmt_child root;      /* as if somebody above had it as a child; nr_pages is not known */
	uint64_t first_page, end_page;  /* of all records */
	uint32_t nr_sections;
	struct wpt_page_key key;
};

/* Cache entries of one link, told apart also by what they were taken for: a hostile file may offer one block as two things. */
enum wpt_entry { WPT_ENTRY_LEAF = 0, WPT_ENTRY_NODE = 1, WPT_ENTRY_ROOT = 2, WPT_ENTRY_FRAME = 3, WPT_ENTRY_PART = 4, WPT_ENTRY_KINDS = 5 };

/* What an entry is expected to be; a cached one is compared with it. */
struct wpt_entry_head {
	uint64_t checksum;
	uint32_t length;
	uint32_t nr_pages;              /* of a frame */
};

/* A leaf, checked to its last run. `marks` are cursors at every WPT_LEAF_STRIDE-th run. */
#define WPT_LEAF_STRIDE 32u
struct wpt_leaf_mark {
	uint64_t page;                  /* where the run before ends */
	uint32_t next;                  /* offset of the run */
	uint32_t runs_left;
};
struct wpt_leaf {
	struct wpt_entry_head head;
	struct wpt_fmt_leaf leaf;       /* at the first run; points into bytes */
	uint8_t *bytes;
	uint32_t nr_marks;
	struct wpt_leaf_mark marks[];
};

/* A node or the root. A pass is children in order of address that do not overlap; later passes win over earlier ones. */
struct wpt_node {
	struct wpt_entry_head head;
	uint32_t level;
	uint32_t nr, nr_passes;
	uint32_t *passes;               /* nr_passes + 1: index of the first child; the last is nr */
	struct wpt_fmt_child *children;
};

/* A frame from its beginning, as far as it was asked for: in steps of a block of zstd. */
#define WPT_PART_STEP 32u
struct wpt_frame_data {
	struct wpt_entry_head head;
	uint32_t nr_pages;              /* unpacked */
	uint8_t pages[] __attribute__((aligned(16)));
};

/* Reads `len` bytes at `offset` of the link. -WPT_E_DAMAGED if they are not all before its trailer. */
int wpt_reader_bytes(struct wpt_reader *r, uint64_t offset, void *buf, size_t len);

/* Held entries; wpt_cache_put() them. `level` is what the parent's level requires the node's to be below. */
int wpt_reader_leaf(struct wpt_reader *r, uint64_t offset, uint32_t length, uint64_t checksum, struct wpt_cached **out);
int wpt_reader_node(struct wpt_reader *r, const struct wpt_fmt_child *child, uint32_t below, struct wpt_cached **out);
/* Its first nr_pages pages at least. */
int wpt_reader_frame(struct wpt_reader *r, const struct wpt_fmt_frame_info *frame, uint32_t nr_pages, struct wpt_cached **out);
/* -ENOENT if it is not there and `load` is NULL. */
int wpt_reader_entry(struct wpt_reader *r, enum wpt_entry kind, uint64_t offset, const struct wpt_entry_head *want, wpt_cache_load *load,
		     void *arg, struct wpt_cached **out);

#endif
