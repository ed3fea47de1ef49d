/* SPDX-License-Identifier: MIT */
/*
 * A chain as the writer of its next link and the other readers inside the library see it. The rest of its interface is in wptrack.h.
 */
#ifndef WPT_CHAIN_H
#define WPT_CHAIN_H

#include "base.h"
#include "layer.h"
#include "reader.h"

/* The last link's identity, its digest, origin and the chain's key: what the next link is made from. */
void wpt_chain_tip(const struct wpt_chain *c, struct wpt_identity *identity, uint8_t digest[16], struct wpt_origin *origin,
		   uint8_t key[32]);

/* As wpt_chain_open(), of the file `name` in a folder by itself. */
int wpt_chain_open_at(struct wpt_chain **out, int dir_fd, const char *name);

/* Writes the chain as one full link to `sink`, without committing it. The options were checked. */
int wpt_chain_merge_to(struct wpt_chain *c, struct wpt_sink *sink, const struct wpt_merge_options *o, uint64_t *bytes);
/* Whether the options are good. */
int wpt_merge_options_copy(struct wpt_merge_options *to, const struct wpt_merge_options *from);

/* End of the last good link of a concatenation, where the next is appended. */
uint64_t wpt_chain_end_offset(const struct wpt_chain *c);

/*
 * Every page of [start, end) at the last link, in order of address, as runs of one state; pages outside the ranges are left out. `hashes`
 * has nr_pages entries if known is DATA, else it is NULL. For 1 TiB of zeros it is one call.
 */
int wpt_chain_walk(struct wpt_chain *c, uint64_t start, uint64_t end,
		   int (*each)(void *arg, uint64_t addr, uint64_t nr_pages, enum wpt_known known, const struct wpt_hash *hashes),
		   void *arg);

/* ---- the walker: what a page is at the last link, without its bytes ---- */

enum wpt_view {
	WPT_VIEW_UNTRACKED = 0,  /* in no range of the last link */
	WPT_VIEW_ZERO = 1,
	WPT_VIEW_DATA = 2,
	WPT_VIEW_UNREADABLE = 3,
	WPT_VIEW_GUARD = 4
};

/* Pages that one record of one link decides, or that none does. */
struct wpt_view_run {
	uint64_t start, end;     /* page-aligned */
	enum wpt_view view;
	uint32_t link;           /* if DATA: index in the chain */
	struct wpt_reader_run r; /* if DATA: the record, cut to [start, end) */
};

struct wpt_walker;

/* start and end are page-aligned. A walker is used by one thread; many walkers of one chain may be used at once. */
int wpt_walker_open(struct wpt_walker **out, struct wpt_chain *c, uint64_t start, uint64_t end);
/* 1 and the next run, in order of address, without gaps; 0 at the end; an error. Adjacent runs of one view but DATA are joined. */
int wpt_walker_next(struct wpt_walker *w, struct wpt_view_run *run);
void wpt_walker_close(struct wpt_walker *w);

/* Bytes of a DATA run: [addr, addr + len) lies in it, at any alignment. Checked against the pages' hashes. Any thread. */
int wpt_chain_run_read(struct wpt_chain *c, const struct wpt_view_run *run, uint64_t addr, void *buf, size_t len);
/* Hashes of the pages of a DATA run, from `first` (an address in it) on. Any thread. */
int wpt_chain_run_hashes(struct wpt_chain *c, const struct wpt_view_run *run, uint64_t first, uint64_t nr_pages, struct wpt_hash *hashes);

/* ---- the bytes of a long stretch ---- */

/* The threads that the chain's owner allows. */
uint32_t wpt_chain_nr_threads(const struct wpt_chain *c);

struct wpt_scatter {
	/* Bytes, checked, of a run with data: on any thread, several at once, in any order. */
	int (*data)(void *arg, uint64_t addr, const uint8_t *data, uint64_t len);
	/* Every other run, in order of address, on the caller's thread. */
	int (*rest)(void *arg, const struct wpt_view_run *run);
	/* So many bytes of data more were taken: on the caller's thread. May be NULL. */
	int (*progress)(void *arg, uint64_t bytes);
	void *arg;
	uint32_t window;    /* runs that are sorted at a time, 0: as many as pays */
};

/*
 * All of [start, end), page-aligned, each byte once. An error of a callback ends it; none is called after it returned. With one thread all is
 * done by the caller's.
 */
int wpt_chain_scatter(struct wpt_chain *c, uint64_t start, uint64_t end, uint32_t nr_threads, const struct wpt_scatter *to);

struct wpt_gather;

/* start and end are page-aligned. For one thread, which is helped by nr_threads if that is more than one. */
int wpt_gather_open(struct wpt_gather **out, struct wpt_chain *c, uint64_t start, uint64_t end, uint32_t nr_threads);
/* As wpt_walker_next(), and if it is DATA its bytes, checked, which stay until the next call. */
int wpt_gather_next(struct wpt_gather *g, struct wpt_view_run *run, const uint8_t **data);
void wpt_gather_close(struct wpt_gather *g);

/* The link that is number `index`, 0 the oldest. */
struct wpt_reader *wpt_chain_reader(struct wpt_chain *c, uint32_t index);
uint32_t wpt_chain_nr_links(const struct wpt_chain *c);

#endif
