/* SPDX-License-Identifier: MIT */
/*
 * The ledger: per page of the target, what the last durable link says of it, and whether it is dirty since.
 *
 * Sparse over the whole address space, by chunks of 512 pages; a chunk that does not exist says "zero, clean". Works in
 * units of WPT_PAGE (4096) bytes whatever the mapping's page size.
 *
 * Threads: wpt_ledger_classify() may be called by many threads at once for different pages, wpt_ledger_dirty() by any for any;
 * the rest by the thread that takes the link. Chunks are created without a lock, because a thread of the own process may be
 * stopped anywhere, and published with release semantics. Nothing here calls malloc.
 */
#ifndef WPT_LEDGER_H
#define WPT_LEDGER_H

#include "base.h"

#define WPT_PAGE_SHIFT 12
#define WPT_PAGE 4096u
#define WPT_CHUNK_PAGES 512u
#define WPT_CHUNK_BYTES ((uint64_t)WPT_CHUNK_PAGES * WPT_PAGE)

struct wpt_hash {
	uint8_t b[16];  /* XXH3-128 under the chain's secret, canonical form */
};

/* What a reader of the chain would see in a page if the link being written did not mention it. */
enum wpt_known {
	WPT_KNOWN_ZERO = 0,
	WPT_KNOWN_DATA = 1,
	WPT_KNOWN_FORCE = 2,       /* can't be told: the next link must mention the page, whatever it holds */
	WPT_KNOWN_UNREADABLE = 3,
	WPT_KNOWN_GUARD = 4
};

struct wpt_ledger;

int wpt_ledger_open(struct wpt_ledger **out);
void wpt_ledger_close(struct wpt_ledger *l);
uint64_t wpt_ledger_memory(const struct wpt_ledger *l);

/*
 * The link says `now` (with `hash` if DATA) of the page at `addr`. Returns 1 if the chain says so already, so that the page can be
 * left out; 0 if it must be mentioned, and records it as said by the link in hand; -ENOMEM.
 */
int wpt_ledger_classify(struct wpt_ledger *l, uint64_t addr, enum wpt_known now, const struct wpt_hash *hash);

/* What is known of a page, without changing it. */
enum wpt_known wpt_ledger_known(const struct wpt_ledger *l, uint64_t addr);

/* Set without a link: when a chain is continued. reset forgets all that is known, as of an empty chain. */
void wpt_ledger_reset(struct wpt_ledger *l);
int wpt_ledger_load(struct wpt_ledger *l, uint64_t addr, enum wpt_known known, const struct wpt_hash *hash);

/* The link in hand is durable: what it said is known. The number of pages that were taken for it. */
uint64_t wpt_ledger_commit(struct wpt_ledger *l);
/* The link in hand is lost: what it said of a page is forgotten (FORCE), and the page is dirty. */
void wpt_ledger_rollback(struct wpt_ledger *l);

/* Pages of [start, end) leave the tracked set: whatever comes there later must be mentioned. */
void wpt_ledger_forget(struct wpt_ledger *l, uint64_t start, uint64_t end);

/*
 * The first page in [from, end) with a known state other than ZERO, and in *known which; end if there is none. Skips absent
 * chunks, so that walking 1 TiB of nothing is quick.
 */
uint64_t wpt_ledger_next_nonzero(const struct wpt_ledger *l, uint64_t from, uint64_t end, enum wpt_known *known);

/*
 * Dirty set: pages that the next link must look at. A link takes the dirty pages of what it looks at; they come back by
 * rollback and are done with by commit. Pages that become dirty in between stay for the link after.
 */
int wpt_ledger_dirty(struct wpt_ledger *l, uint64_t start, uint64_t end);
void wpt_ledger_undirty(struct wpt_ledger *l, uint64_t start, uint64_t end);
void wpt_ledger_take(struct wpt_ledger *l, uint64_t start, uint64_t end);
/* The number of pages that are taken. */
uint64_t wpt_ledger_count_taken(const struct wpt_ledger *l);
/* What was taken of [start, end) is copied and need not be looked at again, unless the link is lost. */
void wpt_ledger_copied(struct wpt_ledger *l, uint64_t start, uint64_t end);
/* The first run of taken pages in [from, end): its start (end if none) and its end in *run_end. */
uint64_t wpt_ledger_next_taken(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end);
/* As next_taken, of dirty pages that were not taken. */
uint64_t wpt_ledger_next_dirty(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end);

/*
 * Gone: of [start, end) nothing is there any more and it reads as zeros, until it is said to be present again. Pages of which the chain, or what
 * is staged, shows something else become dirty, and a copy need not read them.
 */
int wpt_ledger_gone(struct wpt_ledger *l, uint64_t start, uint64_t end);
void wpt_ledger_present(struct wpt_ledger *l, uint64_t start, uint64_t end);
uint64_t wpt_ledger_next_gone(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end);

/*
 * Staged: the link in hand has a copy of the page that nobody works on yet, in this slot of the staging memory; a later copy takes its
 * place. Counts as known data, also when others work on it at last, until unstage or the end of the link. By the thread that takes the link, while
 * no other uses the ledger but to mark pages as dirty.
 */
int wpt_ledger_stage(struct wpt_ledger *l, uint64_t addr, uint64_t nr_pages, uint32_t slot);
/* The first staged page in [from, end), and its slot; end if there is none. */
uint64_t wpt_ledger_next_staged(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint32_t *slot);
void wpt_ledger_unstage(struct wpt_ledger *l, uint64_t addr);
void wpt_ledger_unstage_all(struct wpt_ledger *l);

/* The COWed set of private file mappings: pages that were not the file's at the last look. */
bool wpt_ledger_cowed(const struct wpt_ledger *l, uint64_t addr);
uint64_t wpt_ledger_next_cowed(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end);
int wpt_ledger_cow(struct wpt_ledger *l, uint64_t start, uint64_t end);
void wpt_ledger_uncow(struct wpt_ledger *l, uint64_t start, uint64_t end);

/*
 * The hot set: pages that are dirty in two links of three and more. What is `loose` of it is left unprotected after a link, and so it is dirty
 * in the next one whether it was written or not; one page of it in WPT_HOT_TURNS, another each time (`turn` counts up), is protected as others are,
 * to see whether it is still written. wpt_ledger_heat() takes the pages of the link in hand into account, before commit or rollback, and
 * makes the loose set anew; returns how many pages are in it.
 */
#define WPT_HOT_TURNS 64u
uint64_t wpt_ledger_heat(struct wpt_ledger *l, uint64_t turn);
uint64_t wpt_ledger_next_loose(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end);

/* Pages of a link of mode cow that are still to be saved; under the lock of fault.c while anything runs that could fault on them. */
int wpt_ledger_pend(struct wpt_ledger *l, uint64_t start, uint64_t end);
void wpt_ledger_unpend(struct wpt_ledger *l, uint64_t start, uint64_t end);
uint64_t wpt_ledger_next_pending(const struct wpt_ledger *l, uint64_t from, uint64_t end, uint64_t *run_end);

#endif
