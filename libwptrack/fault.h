/* SPDX-License-Identifier: MIT */
/*
 * Faults of backend `sync`: threads that let each first write to a protected page through.
 *
 * They live as long as the tracker, block all signals, and touch only memory from wpt_vm_alloc() and their own stacks, which are that too: a
 * fault thread that faulted itself would be the last. No malloc, no stdio, no callback, no variable of the C library.
 */
#ifndef WPT_FAULT_H
#define WPT_FAULT_H

#include "ledger.h"
#include "target.h"

#define WPT_FAULT_THREADS_MAX 64u

struct wpt_faults;

/* The target's userfaultfd is a synchronous one. Errors: -ENOMEM, -EMFILE, -EAGAIN (threads). */
int wpt_faults_open(struct wpt_faults **out, struct wpt_target *target, uint32_t nr_threads);

/*
 * Ends the threads. Before, what is protected must have been unregistered, and afterwards the descriptor be closed: that wakes whoever waits.
 * In a forked child, which has no such threads, it only frees. NULL is accepted.
 */
void wpt_faults_close(struct wpt_faults *f);

/* Waits until every fault that was reported before is done with: no thread is about to end the protection of a page any more. */
void wpt_faults_settle(struct wpt_faults *f);

uint64_t wpt_faults_memory(const struct wpt_faults *f);

/*
 * ---- mode cow ----
 *
 * From begin to end, a fault on a page that is pending in the ledger first saves the page, then lets the write through. All below is called by
 * the one thread that takes the link (the taker). A page is saved by whoever claims it: a fault thread, into one of a bounded number of slots,
 * which the taker empties; or the taker itself. A fault that finds no slot, or is on a page that the taker is copying, is deferred: the
 * thread that waits for it is woken when the taker has saved the page. So no fault thread ever waits.
 *
 * Faults of the library's own threads (own.h) are not deferred for want of a slot but get one more, since the taker may wait for them.
 */

/* Memory whose pending pages wait to be saved. */
struct wpt_fault_area {
	uint64_t start, end;
};

/* A page that a fault thread saved. */
struct wpt_saved {
	struct wpt_saved *next;
	uint64_t addr;
	uint8_t *data;
	bool extra;
};

struct wpt_cow_counts {
	uint64_t faults;      /* pages saved by fault threads */
	uint64_t waits;       /* faults that were deferred for want of memory */
};

/* Memory for `nr_slots`, before the target is stopped. -ENOMEM. */
int wpt_faults_reserve(struct wpt_faults *f, uint32_t nr_slots);

/* While the target stands still, with all of `areas` in ascending order; they and the ledger live until end. */
void wpt_faults_begin(struct wpt_faults *f, struct wpt_ledger *ledger, const struct wpt_fault_area *areas, size_t nr);

/* Nothing is pending any more, whoever waited goes on, and what was saved and not taken is dropped. */
void wpt_faults_end(struct wpt_faults *f, struct wpt_cow_counts *counts);

/* Something of the instant is gone, or can't be told to be there: everything must be copied again. lost: whether that was said. */
void wpt_faults_lose(struct wpt_faults *f);
bool wpt_faults_lost(struct wpt_faults *f);

/* The first pending run of [from, end), at most `max` bytes of it, is the taker's to save now; false if there is none. */
bool wpt_faults_claim(struct wpt_faults *f, uint64_t from, uint64_t end, uint64_t max, uint64_t *start, uint64_t *stop);
/* It is saved. */
void wpt_faults_release(struct wpt_faults *f);

/* Pages that faults saved, at most `max`, to be given back; NULL if there are none. */
struct wpt_saved *wpt_faults_saved(struct wpt_faults *f, uint32_t max);
void wpt_faults_give_back(struct wpt_faults *f, struct wpt_saved *list);
/* Pages that wait to be taken; *deferred: an address that a thread waits at until its page is saved, or 0. */
uint32_t wpt_faults_waiting(struct wpt_faults *f, uint64_t *deferred);

/* Waits until faults in hand are done with. */
void wpt_faults_finish(struct wpt_faults *f);

#endif
