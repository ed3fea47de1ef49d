/* SPDX-License-Identifier: MIT */
/*
 * One link: the reader. Nothing of it is kept but its head, its trailer and a few numbers of its root; blocks and frames come
 * from the cache, checked against the checksum that whoever points to them has.
 *
 * Threads: after open, any number, but for a cursor, which is one thread's.
 */
#ifndef WPT_READER_H
#define WPT_READER_H

#include "base.h"
#include "cache.h"
#include "format.h"
#include "page.h"
#include "store.h"

/* A link within a source, by its first and last frame only. */
struct wpt_link_place {
	struct wpt_source *source;
	uint64_t start, end;
	struct wpt_fmt_head head;
	struct wpt_fmt_trailer trailer;
};

/*
 * The link that ends at `end` of the source: by its trailer and then its head. -WPT_E_NOT_SNAPSHOT: there is no trailer right before `end`;
 * -WPT_E_DAMAGED and others: there is, but its link is not good.
 */
int wpt_link_probe(struct wpt_source *s, uint64_t end, struct wpt_link_place *place);
/* The head of a link at `start`. */
int wpt_link_head(struct wpt_source *s, uint64_t start, struct wpt_fmt_head *head);

struct wpt_reader;

/* The source and the cache stay the caller's. `owner` tells this link's entries in the cache apart. */
int wpt_reader_open(struct wpt_reader **out, const struct wpt_link_place *place, struct wpt_cache *cache, uint64_t owner);
void wpt_reader_close(struct wpt_reader *r);

struct wpt_reader_info {
	uint64_t start, length;         /* in the source */
	struct wpt_fmt_head head;
	struct wpt_fmt_trailer trailer;
	uint64_t time_ns, pause_ns;
	struct wpt_fmt_counts counts;
};
const struct wpt_reader_info *wpt_reader_info(const struct wpt_reader *r);
struct wpt_source *wpt_reader_source(const struct wpt_reader *r);

/* ---- page records ---- */

/* A run of pages and, if it has data, where that is. */
struct wpt_reader_run {
	uint64_t page, nr_pages;
	uint32_t kind;                   /* enum wpt_fmt_kind */
	uint32_t slot;                   /* of the first page in the frame */
	struct wpt_fmt_frame_info frame;
	uint64_t leaf_offset, leaf_checksum;
	uint32_t leaf_length;
	uint32_t hashes;                 /* offset in the leaf of the first page's hash */
};

/* Cuts a run to [page, end), which lies in it. */
void wpt_reader_run_cut(struct wpt_reader_run *run, uint64_t page, uint64_t end);

#define WPT_CURSOR_RUNS 8u

/* Where a walk over a link is. It holds nothing, so that thousands may exist. Zero it to begin. */
struct wpt_cursor {
	uint64_t from, until;            /* the runs below are all that the link has in [from, until) */
	uint32_t nr, next;
	struct wpt_reader_run *runs;     /* WPT_CURSOR_RUNS, or NULL as long as none was needed */
};
void wpt_cursor_free(struct wpt_cursor *c);

/*
 * The first run of the link that ends behind `page`, as the latest records have it; *run stays until the next call. NULL in *run: there is
 * none. It may begin before `page`.
 */
int wpt_cursor_seek(struct wpt_reader *r, struct wpt_cursor *c, uint64_t page, const struct wpt_reader_run **run);

/* The pages' bytes of a run with data, checked against their hashes. `nr` pages from run->page + `first` on. */
int wpt_reader_pages(struct wpt_reader *r, const struct wpt_reader_run *run, uint64_t first, uint64_t nr, uint8_t *buf);
/* `len` bytes at `offset` of one page of it. */
int wpt_reader_page_part(struct wpt_reader *r, const struct wpt_reader_run *run, uint64_t index, size_t offset, uint8_t *buf, size_t len);
int wpt_reader_hashes(struct wpt_reader *r, const struct wpt_reader_run *run, uint64_t first, uint64_t nr, uint8_t *hashes);

/* What a thread unpacks frames with. */
struct wpt_unpacker {
	void *dctx;
	uint8_t *packed, *pages;         /* of the frame in hand */
};
int wpt_unpacker_open(struct wpt_unpacker *u);
void wpt_unpacker_close(struct wpt_unpacker *u);

/* The first nr_pages pages at least of a frame, past the cache, to u->pages. The pages are not checked. */
int wpt_reader_unpack(struct wpt_reader *r, const struct wpt_fmt_frame_info *frame, uint32_t nr_pages, struct wpt_unpacker *u);
/* Checks the pages of a run, which were unpacked to `pages`, against their hashes. */
int wpt_reader_check(struct wpt_reader *r, const struct wpt_reader_run *run, const uint8_t *pages);

/* ---- sections ---- */

/* The directory's entry of a type; -ENOENT if the link has no such section. */
int wpt_reader_find_section(struct wpt_reader *r, uint32_t type, struct wpt_fmt_section *s);
/* Entry number `index`, -ENOENT behind the last. */
int wpt_reader_section_at(struct wpt_reader *r, uint32_t index, struct wpt_fmt_section *s);
/*
 * A section's bytes, part by part, never whole in memory: each part's are given to `take`, whose error ends it. The section's digest is
 * checked at the end, so what was taken is to be believed only after 0.
 */
int wpt_reader_section(struct wpt_reader *r, const struct wpt_fmt_section *s, int (*take)(void *arg, const uint8_t *data, size_t len),
		       void *arg);

/* ---- verification ---- */

/* Every byte, every checksum, every page's hash, the index against what it indexes. `done` is told bytes as they are read. */
int wpt_reader_verify(struct wpt_reader *r, int (*done)(void *arg, uint64_t bytes), void *arg);

/* ---- frames one after the other ---- */

struct wpt_frames {
	struct wpt_source *source;
	uint64_t pos, end;        /* the next frame; where the source is taken to end */
	uint8_t *buf;             /* what is read ahead */
	uint64_t buf_pos;
	size_t buf_len, buf_size;
};

struct wpt_frame {
	uint64_t offset;          /* in the source */
	size_t len;
	int kind;                 /* enum wpt_fmt_frame_kind */
	uint32_t tag;             /* of a block */
	uint64_t checksum;        /* stored (block) or computed (data) */
	const uint8_t *bytes;     /* until the next call */
	bool bad;                 /* a block whose checksum is wrong; its length may be */
};

int wpt_frames_open(struct wpt_frames *f, struct wpt_source *s, uint64_t start, uint64_t end);
/* 1 and a frame; 0 at the end; -WPT_E_TRUNCATED: a frame ends behind the end; -WPT_E_DAMAGED: no frame; -errno. */
int wpt_frames_next(struct wpt_frames *f, struct wpt_frame *frame);
void wpt_frames_close(struct wpt_frames *f);

#endif
