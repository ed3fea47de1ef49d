/* SPDX-License-Identifier: MIT */
/* A writer and one take of it, shared by snapshot.c and rounds.c only. */
#ifndef WPT_TAKE_H
#define WPT_TAKE_H

#include "chain.h"
#include "copy.h"
#include "cow.h"
#include "layer.h"
#include "store.h"
#include "tracker.h"

#define MAX_LINK_NAME 64

struct wpt_writer {
	struct wpt_tracker *t;
	struct wpt_writer_options o;
	char *path;
	int dir;                       /* folder, or -1 */
	int lock;                      /* of the folder, or -1 */
	int fd;                        /* file that is appended to, or the caller's, or -1 */
	uint64_t append_at;
	bool has_tip;
	int broken;                    /* a stream that failed midway can't be continued */
	bool all;                      /* nothing is known of the memory: compare everything */
	struct wpt_identity tip;
	uint8_t tip_digest[16];
	uint8_t key[32];
	/* Of the layer writers, kept from link to link: its memory is filled while the target stands still, when page faults are the larger part. */
	struct wpt_layer_kit *kit;
	struct wpt_origin origin;
	uint64_t turn;                 /* links tried, for the hot set */
	struct wpt_vec ranges_text;    /* the last durable link's ranges, to see whether they changed */
	struct wpt_vec maps_text;      /* its mappings */
	struct wpt_vec notes_text;     /* its notes, if */
	bool notes_known;
};

/* State of one take. */
struct wpt_take {
	struct wpt_writer *w;
	struct wpt_take_options o;
	struct wpt_take_stats stats;
	struct wpt_sink *sink;
	struct wpt_layer_writer *layer;
	struct wpt_copy copy;
	struct wpt_cow cow;
	struct wpt_identity identity;
	struct wpt_layer_result result;
	struct wpt_vec registers;
	struct wpt_vec new_ranges, new_notes;
	bool notes_changed;
	char name[MAX_LINK_NAME];
	uint64_t started, time_ns;
	struct wpt_vec compared;       /* struct wpt_span: unknown ones that rounds compared */
	uint64_t pages_compared;       /* by the first pass that did */
	uint64_t page_ns;              /* what copying a page takes */
	bool soon;                     /* the last round was short */
	uint64_t least;                /* pages that a round found */
	uint32_t nr_useless;           /* rounds in a row that found no fewer */
	uint64_t useless_ns;
	uint64_t looked_ns;            /* before the last look */
	struct wpt_vec fresh;          /* struct wpt_span: what that left to compare, but for I/O that may be under way */
	bool in_flight;                /* direct I/O may have been under way to what was protected */
};

/* Copies are staged from here on. */
void wpt_take_stage(struct wpt_take *k);

/* Rounds until what is left is small, or more of them would not help; k->stats says which. */
int wpt_take_rounds(struct wpt_take *k);

/*
 * Direct I/O of the target. ask: whether there is any; before the first look, and in a pause after rounds. copy_again: after the look that the link
 * rests on, what direct I/O may have changed since it was copied is to be compared. ask_again: when all is copied and the target runs, whether some
 * may be under way still. copied: the link is durable, before the ledger is told.
 */
int wpt_take_ask_direct(struct wpt_take *k);
int wpt_take_copy_again(struct wpt_take *k);
void wpt_take_ask_again(struct wpt_take *k);
void wpt_take_copied(struct wpt_take *k);

/* The link is lost: what rounds compared must be compared by the next. */
void wpt_take_give_back(struct wpt_take *k);

#endif
