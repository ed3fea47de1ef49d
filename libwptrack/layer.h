/* SPDX-License-Identifier: MIT */
/*
 * One link: the writer. Batches of pages go in by address order, a bounded number of threads classify and compress them, the
 * output goes to a sink in the order of submission. The reader is in reader.h.
 */
#ifndef WPT_LAYER_H
#define WPT_LAYER_H

#include "base.h"
#include "format.h"
#include "ledger.h"
#include "store.h"

#define WPT_BATCH_PAGES 256u  /* pages of data in a batch at most: 1 MiB */
#define WPT_BATCH_ITEMS 256u

enum wpt_item_kind {
	WPT_ITEM_DATA = 1,        /* nr_pages of the batch's data, in the order of the items */
	WPT_ITEM_ZERO = 2,        /* read as zeros, no data */
	WPT_ITEM_UNREADABLE = 3,
	WPT_ITEM_GUARD = 4,
	WPT_ITEM_TORN = 5         /* as DATA, flagged: it changed while it was copied */
};

struct wpt_item {
	uint64_t addr;
	uint64_t nr_pages;
	uint32_t kind;
};

struct wpt_batch {
	struct wpt_batch *next;       /* the writer's */
	uint64_t order;               /* the writer's */
	uint8_t *data;                /* WPT_BATCH_PAGES pages, page-aligned */
	uint32_t nr_pages;            /* of data in use */
	uint32_t nr_items;
	struct wpt_item items[WPT_BATCH_ITEMS];
	void *priv;                   /* the writer's */
};

/*
 * What outlives a link: threads, compressors, and the memory of batches, where the next link finds memory instead of page faults.
 */
struct wpt_layer_kit;

/* What the public option structs accept; 0 is the default, 1. */
static inline bool wpt_layer_level_valid(int level)
{
	return level == WPT_LEVEL_ADAPTIVE || (level >= -100 && level <= 19);
}

/* `level` of zstd, 0: 1, or WPT_LEVEL_ADAPTIVE, which goes on from link to link and takes a thread more. Errors: -ENOMEM, -EAGAIN (threads). */
int wpt_layer_kit_open(struct wpt_layer_kit **out, uint64_t staging_bytes, uint32_t nr_threads, int level);
/* For tests: what tells the adaptive level the time in nanoseconds. Any thread calls it. */
void wpt_layer_kit_clock(struct wpt_layer_kit *kit, uint64_t (*clock)(void));
/* No writer uses it any more. NULL is accepted. In a forked child it only frees. */
void wpt_layer_kit_close(struct wpt_layer_kit *kit);

struct wpt_layer_params {
	struct wpt_identity identity;
	struct wpt_origin origin;
	uint8_t key[32];              /* the chain's hash key */
	bool full;                    /* pages that it does not mention are zero; else they are the parent's */
	bool carry_digest;            /* a merge: `digest` is the identity digest of the link that it stands in for */
	uint8_t digest[16];
	uint32_t mode;                /* enum wpt_mode */
	struct wpt_layer_kit *kit;    /* for one writer at a time. NULL: one of its own, of the following */
	int level;
	uint32_t nr_threads;
	uint64_t staging_bytes;
	struct wpt_ledger *ledger;    /* NULL: every page is stored (merge) */
};

/* A tracked range as a link lists it. */
struct wpt_layer_range {
	uint64_t start, end;
	uint32_t kind, reason;
	const char *name;
};

struct wpt_layer_writer;

/* Where the memory of all batches begins. */
uint8_t *wpt_layer_staging(const struct wpt_layer_writer *w);

/*
 * Without a kit: starts threads (all signals blocked), warms the compressors up so that they do not allocate later. Writes the head.
 * `sink` stays the caller's; writes to it are gathered, so that its errors may come with a later call. A link without a parent is full.
 * Errors: -ENOMEM, -EAGAIN, the sink's.
 */
int wpt_layer_writer_open(struct wpt_layer_writer **out, struct wpt_sink *sink, const struct wpt_layer_params *p);

/*
 * An empty batch, or NULL in *out when all staging memory is in use and `wait` is false. With `wait` blocks until one was
 * written. Returns the first error of the writer's threads, sticky. No malloc here nor in submit.
 */
int wpt_layer_batch_get(struct wpt_layer_writer *w, struct wpt_batch **out, bool wait);
/*
 * Hands the batch over; also an empty one. The order of submission is the order in the file: of a page that comes twice the later copy
 * counts. Addresses ascend within a pass; where they go back, the batch waits for those before it. -EINVAL, sticky: items that
 * overflow, or whose pages of data are not nr_pages in all.
 */
int wpt_layer_batch_submit(struct wpt_layer_writer *w, struct wpt_batch *b);
/* Waits until all that was submitted is written and the ledger knows it: before a second pass asks the ledger what the link says. */
int wpt_layer_drain(struct wpt_layer_writer *w);

/* Held, batches that are submitted wait, and the processors are the caller's; until it lets go, or waits for an empty batch. */
void wpt_layer_hold(struct wpt_layer_writer *w, bool hold);

/* A section, at most one of a type, written at once. Those that are the same as the parent's are left out by the caller. */
int wpt_layer_section(struct wpt_layer_writer *w, uint32_t type, const void *data, size_t len);

/*
 * The ranges, ascending, page-aligned, not overlapping (-EINVAL). Once, before finish; the caller leaves it out where the parent's are the
 * same. A full link needs them: finish gives -EINVAL without.
 */
int wpt_layer_ranges(struct wpt_layer_writer *w, const struct wpt_layer_range *ranges, uint64_t nr);

struct wpt_layer_result {
	uint64_t bytes;               /* of the link */
	uint8_t digest[16];           /* identity digest, for the next link's parent_digest */
	int level;                    /* of the last frames */
	uint64_t pages_stored, pages_zero, pages_unchanged, pages_duplicate, pages_unreadable, pages_torn;
};

/*
 * Waits for all batches, writes index and trailer. `time_ns` CLOCK_REALTIME of the instant shown, `pause_ns` for information. Does not
 * commit the sink. After an error, only close.
 */
int wpt_layer_finish(struct wpt_layer_writer *w, uint64_t time_ns, uint64_t pause_ns, struct wpt_layer_result *result);

/* Waits for what its threads have in hand, ends them if they are its own, and frees; without finish the link is incomplete. NULL is accepted. */
void wpt_layer_writer_close(struct wpt_layer_writer *w);

#endif
