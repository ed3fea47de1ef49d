/* SPDX-License-Identifier: MIT */
/*
 * Bytes <-> structs of the snapshot format, version 1. man/wptrack-snapshot.5 is the specification; this file and format.c
 * implement it. No I/O, no allocation, no zstd: frames are found by their first bytes, page data stays compressed here.
 *
 * Everything but page data is a "block": one zstd skippable frame with its own checksum. Decoders take exactly one frame and
 * trust nothing in it: 0, or -WPT_E_NOT_SNAPSHOT (no block of this type), -WPT_E_TRUNCATED (the bytes end before the frame does),
 * -WPT_E_DAMAGED, -WPT_E_FEATURE. Decoded structs point into the caller's buffer. Cursors return 1 (an element), 0 (the
 * end), or -WPT_E_DAMAGED; elements before a damaged one are good.
 *
 * Page numbers are virtual address >> 12. Offsets are bytes from the start of the link. Threads: any, no state is shared.
 */
#ifndef WPT_FORMAT_H
#define WPT_FORMAT_H

#include "base.h"

#define WPT_FMT_VERSION 1u
#define WPT_FMT_PAGE_SHIFT 12u
#define WPT_FMT_PAGE 4096u
#define WPT_FMT_PAGES_END ((uint64_t)1 << (64 - WPT_FMT_PAGE_SHIFT)) /* page numbers are below */
#define WPT_FMT_MAGIC 0x184D2A57u      /* the skippable magic of all blocks */
#define WPT_FMT_ZSTD_MAGIC 0xFD2FB528u /* a frame of page data */
#define WPT_FMT_PAYLOAD_MAX (1u << 20) /* what a skippable header may announce */
#define WPT_FMT_BLOCK_MAX (WPT_FMT_PAYLOAD_MAX + 8)
#define WPT_FMT_BLOCK_OVERHEAD 20u     /* skippable header, tag, checksum */
#define WPT_FMT_FRAME_PAGES 256u       /* pages in a data frame at most */
#define WPT_FMT_FRAME_MAX ((1u << 20) + (1u << 12)) /* compressed bytes of a data frame at most */
#define WPT_FMT_HEAD_MAX 512u
#define WPT_FMT_TRAILER_SIZE 128u
#define WPT_FMT_LEVEL_MAX 8u           /* of the index tree */
#define WPT_FMT_SECTION_MAX (1u << 30) /* bytes of a section */
#define WPT_FMT_SECTIONS_MAX 256u      /* sections of a link */
#define WPT_FMT_PART_MAX ((1u << 20) - (1u << 12)) /* bytes of a section in one block at most, before compression */
#define WPT_FMT_NAME_MAX 4096u         /* a range's name */

#define WPT_FMT_SECTION_RANGES 0x100u  /* the list of ranges; other types are enum wpt_section_type */

/* Incompatible features: an unknown bit makes a reader refuse. Version 1 has none; page data is plaintext. */
#define WPT_FMT_INCOMPAT_SEALED (1u << 0) /* reserved: frames are encrypted */
#define WPT_FMT_INCOMPAT_KNOWN 0u

enum wpt_fmt_head_flags {
	WPT_FMT_FULL = 1u << 0,   /* pages that are not mentioned are zero, not the parent's */
	WPT_FMT_MERGED = 1u << 1, /* stands in for the link whose identity it carries; its digest can't be recomputed */
	WPT_FMT_ORIGIN = 1u << 2  /* the head has an origin; else it is the parent's */
};

enum wpt_fmt_tag {
	WPT_FMT_HEAD = 0x48545057,    /* "WPTH" */
	WPT_FMT_LEAF = 0x4c545057,    /* "WPTL" */
	WPT_FMT_NODE = 0x4e545057,    /* "WPTN" */
	WPT_FMT_ROOT = 0x52545057,    /* "WPTR" */
	WPT_FMT_PART = 0x53545057,    /* "WPTS" */
	WPT_FMT_TRAILER = 0x54545057  /* "WPTT" */
};

/* Who a link is. Ids are random. */
struct wpt_identity {
	uint8_t chain_id[16];
	uint8_t link_id[16];
	uint64_t sequence;
	uint8_t parent_id[16];        /* all zero: none */
	uint8_t parent_digest[16];    /* the parent's identity digest */
};

/* What process a link is of. */
struct wpt_origin {
	char boot_id[37];
	char comm[64];
	int64_t pid;
	uint64_t start_time;
};

/* ---- frames ---- */

enum wpt_fmt_frame_kind {
	WPT_FMT_FRAME_BLOCK = 1,
	WPT_FMT_FRAME_DATA = 2
};

/*
 * What the frame that starts with these bytes is (12 are enough): an enum wpt_fmt_frame_kind. For a block *frame_len is its length with the
 * header and *tag (may be NULL) its tag, which may be one that this version does not know; for data *frame_len is 0: ask
 * ZSTD_findFrameCompressedSize() with at most WPT_FMT_FRAME_MAX bytes. -WPT_E_NOT_SNAPSHOT: neither; -WPT_E_TRUNCATED:
 * fewer than 12 bytes that agree with either so far; -WPT_E_DAMAGED: a block with an impossible length.
 */
int wpt_fmt_frame(const uint8_t *bytes, size_t len, size_t *frame_len, uint32_t *tag);

/* Checks that bytes are one whole block with a good checksum, whatever its tag. *checksum (may be NULL) is the stored one. */
int wpt_fmt_block(const uint8_t *bytes, size_t len, uint32_t *tag, uint64_t *checksum);

/* XXH3-64 of anything: of a data frame's compressed bytes, for frame tables and the file digest. */
uint64_t wpt_fmt_checksum(const void *data, size_t len);

/* XXH3-128 in canonical form, whole or streamed. */
void wpt_fmt_digest(const void *data, size_t len, uint8_t out[16]);
struct wpt_fmt_hash {
	uint64_t state[80] __attribute__((aligned(64)));
};
void wpt_fmt_hash_init(struct wpt_fmt_hash *h);
void wpt_fmt_hash_update(struct wpt_fmt_hash *h, const void *data, size_t len);
void wpt_fmt_hash_u64(struct wpt_fmt_hash *h, uint64_t v); /* the file digest is one over each frame's checksum in order */
void wpt_fmt_hash_final(struct wpt_fmt_hash *h, uint8_t out[16]);

/* ---- head: the first frame of a link ---- */

struct wpt_fmt_head {
	uint32_t flags;               /* enum wpt_fmt_head_flags */
	uint32_t incompat, compat;
	uint32_t page_shift;
	uint32_t mode;                /* enum wpt_mode */
	struct wpt_identity identity;
	uint8_t key[32];              /* the chain's hash key */
	struct wpt_origin origin;     /* if flags has WPT_FMT_ORIGIN */
};

size_t wpt_fmt_head_encode(const struct wpt_fmt_head *h, uint8_t buf[WPT_FMT_HEAD_MAX]);
int wpt_fmt_head_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_head *h);

/* ---- leaf: page records ---- */

enum wpt_fmt_kind {
	WPT_FMT_DATA = 1,       /* stored */
	WPT_FMT_TORN = 2,       /* stored, but changed while it was copied */
	WPT_FMT_DUPLICATE = 3,  /* data that is stored for another page of the same link */
	WPT_FMT_ZERO = 4,
	WPT_FMT_UNREADABLE = 5,
	WPT_FMT_GUARD = 6
};
#define wpt_fmt_has_data(kind) ((kind) <= WPT_FMT_DUPLICATE)

/* A data frame, as a leaf lists those that its runs point to. */
struct wpt_fmt_frame_info {
	uint64_t offset;
	uint32_t length;        /* compressed */
	uint32_t nr_pages;      /* 1 to WPT_FMT_FRAME_PAGES */
	uint64_t checksum;      /* wpt_fmt_checksum() of the compressed bytes */
};

struct wpt_fmt_run {
	uint64_t page;
	uint64_t nr_pages;      /* at least 1 */
	uint32_t kind;          /* enum wpt_fmt_kind */
	uint32_t frame;         /* data: index into the leaf's frames */
	uint32_t slot;          /* data: of the first page within the frame, in pages */
	const uint8_t *hashes;  /* data: nr_pages times 16 bytes */
};

struct wpt_fmt_leaf {
	uint64_t first_page, end_page; /* what its runs cover lies within */
	uint32_t nr_frames;
	uint32_t nr_runs;
	const uint8_t *frames;
	/* the cursor */
	const uint8_t *next, *runs_end;
	uint64_t page;
	uint32_t runs_left;
};

/* Checks the whole block and starts the cursor at the first run. Runs ascend and do not overlap within a leaf. */
int wpt_fmt_leaf_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_leaf *leaf);
/* The next run, with its frame and slot checked against the frame table. */
int wpt_fmt_leaf_next(struct wpt_fmt_leaf *leaf, struct wpt_fmt_run *run);
/* Frame number i < nr_frames: 0 or -WPT_E_DAMAGED. */
int wpt_fmt_leaf_frame(const struct wpt_fmt_leaf *leaf, uint32_t i, struct wpt_fmt_frame_info *frame);

#define WPT_FMT_LEAF_FRAMES_MAX 8192u
#define WPT_FMT_FRAME_INFO_SIZE 24u

struct wpt_fmt_leaf_builder {
	uint8_t *buf;           /* WPT_FMT_BLOCK_MAX bytes, the caller's */
	uint8_t *frames;        /* WPT_FMT_LEAF_FRAMES_MAX * WPT_FMT_FRAME_INFO_SIZE bytes, the caller's */
	size_t used;
	uint32_t nr_frames, nr_runs;
	uint64_t first_page, end_page, nr_pages;
};

void wpt_fmt_leaf_begin(struct wpt_fmt_leaf_builder *b);
/* The frame's index, or -ENOSPC: end this leaf and begin another. */
int wpt_fmt_leaf_add_frame(struct wpt_fmt_leaf_builder *b, const struct wpt_fmt_frame_info *frame);
/* 0; or -ENOSPC: no room, or it does not lie behind the run before; end this leaf and begin another. */
int wpt_fmt_leaf_add_run(struct wpt_fmt_leaf_builder *b, const struct wpt_fmt_run *run);
/* Completes the block; its length. */
size_t wpt_fmt_leaf_end(struct wpt_fmt_leaf_builder *b);

/* ---- node and root: the tree of leaves ---- */

struct wpt_fmt_child {
	uint64_t offset;
	uint32_t length;        /* of the whole frame */
	uint64_t checksum;      /* the one that ends the block */
	uint64_t first_page, end_page;
	uint64_t nr_pages;      /* in the records below it */
};

/* A cursor over children: leaves if level is 1, else nodes of a smaller level. Offsets ascend: what comes later wins. */
struct wpt_fmt_children {
	uint32_t level;         /* 1 to WPT_FMT_LEVEL_MAX */
	uint32_t nr;
	const uint8_t *next, *end;
	uint64_t offset;
	uint32_t left;
};

int wpt_fmt_node_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_children *c);
int wpt_fmt_children_next(struct wpt_fmt_children *c, struct wpt_fmt_child *child);

#define WPT_FMT_CHILD_MAX 64u /* bytes of an encoded child at most */

struct wpt_fmt_node_builder {
	uint8_t *buf;           /* WPT_FMT_BLOCK_MAX bytes, the caller's */
	size_t used;
	uint32_t nr;
	uint64_t offset;        /* end of the last child */
	struct wpt_fmt_child sum; /* first_page, end_page, nr_pages of all children */
};

void wpt_fmt_node_begin(struct wpt_fmt_node_builder *b);
int wpt_fmt_node_add(struct wpt_fmt_node_builder *b, const struct wpt_fmt_child *child); /* 0 or -ENOSPC */
size_t wpt_fmt_node_end(struct wpt_fmt_node_builder *b, uint32_t level);

struct wpt_fmt_section {
	uint32_t type;
	uint64_t offset;        /* of its first part */
	uint64_t stored;        /* bytes of all its parts, which follow one another */
	uint64_t length;        /* bytes of the section */
	uint8_t digest[16];     /* wpt_fmt_digest() of the section */
};

/* How many pages the link's records name, by kind; `zero` and `unchanged` also count pages that it leaves out. */
struct wpt_fmt_counts {
	uint64_t data, torn, duplicate, zero, unreadable, guard, unchanged;
};

struct wpt_fmt_root {
	uint64_t time_ns, pause_ns;
	struct wpt_fmt_counts counts;
	uint32_t nr_sections;
	/* cursor over the section directory */
	const uint8_t *next_section, *sections_end;
	uint64_t section_offset;
	uint32_t sections_left;
	struct wpt_fmt_children children;
};

int wpt_fmt_root_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_root *r);
int wpt_fmt_root_section(struct wpt_fmt_root *r, struct wpt_fmt_section *s);

/*
 * Ends a node builder as the root instead: its children become the root's; `sections` is the directory in order of offset. `buf` has
 * WPT_FMT_BLOCK_MAX bytes. The length, or 0 if it does not fit: end the builder as a node and make that the only child.
 */
size_t wpt_fmt_root_encode(const struct wpt_fmt_root *r, const struct wpt_fmt_section *sections,
			   const struct wpt_fmt_node_builder *children, uint32_t level, uint8_t *buf);

/* ---- sections ---- */

enum wpt_fmt_part_flags {
	WPT_FMT_PART_ZSTD = 1u << 0, /* data is one zstd frame of raw_len bytes */
	WPT_FMT_PART_LAST = 1u << 1
};

struct wpt_fmt_part {
	uint32_t type;          /* of the section */
	uint32_t index;         /* 0, 1, ... */
	uint32_t flags;
	uint32_t raw_len;       /* at most WPT_FMT_PART_MAX */
	const uint8_t *data;
	uint32_t len;           /* as stored, at most WPT_FMT_PART_MAX */
};

int wpt_fmt_part_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_part *p);
/* `buf` has WPT_FMT_BLOCK_MAX bytes; p->data may lie at buf + WPT_FMT_PART_DATA already. */
#define WPT_FMT_PART_DATA 28u
size_t wpt_fmt_part_encode(const struct wpt_fmt_part *p, uint8_t *buf);

/* One entry of the section WPT_FMT_SECTION_RANGES. Entries ascend and do not overlap. */
struct wpt_fmt_range {
	uint64_t start, end;    /* bytes, page-aligned, not empty; end is at most 2^64 - 4096 */
	uint32_t kind, reason;
	const char *name;       /* not terminated; no NUL inside */
	uint32_t name_len;
};

struct wpt_fmt_ranges {
	const uint8_t *next, *end;
	uint64_t prev_end;
};

#define WPT_FMT_RANGE_MAX (28u + WPT_FMT_NAME_MAX)
/* Bytes written to buf, which has WPT_FMT_RANGE_MAX. A longer name is cut. */
size_t wpt_fmt_range_encode(const struct wpt_fmt_range *r, uint8_t *buf);
static inline void wpt_fmt_ranges_begin(struct wpt_fmt_ranges *c, const void *section, size_t len)
{
	c->next = section;
	c->end = c->next + len;
	c->prev_end = 0;
}
int wpt_fmt_ranges_next(struct wpt_fmt_ranges *c, struct wpt_fmt_range *r);

/* ---- trailer: the last frame of a link ---- */

struct wpt_fmt_trailer {
	uint8_t chain_id[16];
	uint8_t link_id[16];
	uint64_t sequence;
	uint64_t offset;          /* its own: the link's length is offset + WPT_FMT_TRAILER_SIZE */
	uint64_t root_offset;
	uint32_t root_length;
	uint64_t root_checksum;
	uint8_t digest[16];       /* identity digest */
	uint8_t file_digest[16];  /* wpt_fmt_hash over the checksums of all frames before the trailer, in order */
};

void wpt_fmt_trailer_encode(const struct wpt_fmt_trailer *t, uint8_t buf[WPT_FMT_TRAILER_SIZE]);
int wpt_fmt_trailer_decode(const uint8_t *bytes, size_t len, struct wpt_fmt_trailer *t);

/* ---- identity ---- */

/* The digest of the page records, which does not depend on how pages are grouped in runs, frames and leaves. */
struct wpt_fmt_records {
	struct wpt_fmt_hash hash;
	uint64_t page, nr_pages;
	uint32_t kind;
};
void wpt_fmt_records_init(struct wpt_fmt_records *r);
/* Each run of the link, in the order of the file. */
void wpt_fmt_records_run(struct wpt_fmt_records *r, const struct wpt_fmt_run *run);
void wpt_fmt_records_final(struct wpt_fmt_records *r, uint8_t out[16]);

/* The identity digest. ranges_digest is the RANGES section's, NULL if the link has none. */
void wpt_fmt_identity(const struct wpt_fmt_head *h, const uint8_t records_digest[16], const uint8_t *ranges_digest,
		      uint8_t out[16]);

#endif
