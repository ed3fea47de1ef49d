/* SPDX-License-Identifier: MIT */
/*
 * Which links a CHAIN names, and where they are: the files of a folder, the links of a file, the suffix that says which is the last.
 */
#ifndef WPT_LOCATE_H
#define WPT_LOCATE_H

#include "base.h"
#include "cache.h"
#include "pool.h"
#include "reader.h"

/* A link that was found, whether or not it becomes part of the chain. */
struct wpt_place {
	struct wpt_link_place link;
	const char *name;          /* of its file, the pool's; "" in memory */
};

struct wpt_locator {
	struct wpt_pool *pool;
	struct wpt_place *places;
	uint32_t nr, room;
	uint32_t nr_own;           /* links to choose from; those behind them may only be parents */
	uint32_t *by_id;           /* the first nr_sorted places by link id */
	uint32_t nr_sorted;
	bool folder;
	bool others;               /* folder: files by other names were looked at, too */
	int other_error;           /* of one of those that may be a snapshot */
	uint64_t stamp;            /* of the folder's files, as they were listed */
	const char *suffix;        /* NULL: the last link */
	char *path;
	int error;                 /* of a file in the folder, or of a link in the file, that is no good */
	uint64_t error_sequence;   /* folder: the highest that such a file's name has */
	int file_error;            /* file: that of a link in it, whether or not the chain needs that link */
	bool tail_damaged;         /* file: what is behind the last good link is a link, not the torn tail of one */
	uint64_t end_offset, size; /* file: end of the last good link, and of the file */
};

int wpt_locate(struct wpt_locator *l, const char *chain);
int wpt_locate_memory(struct wpt_locator *l, const void *data, size_t len);
/* Opens the folder that `chain` names, which is not looked into: a descriptor. */
int wpt_locate_folder(const char *chain);
/* The file `name` of a folder by itself. */
int wpt_locate_at(struct wpt_locator *l, int dir_fd, const char *name);
/* Folder: also what nothing needs so far, of all files by other names. */
int wpt_locate_others(struct wpt_locator *l);
/* Frees all but the pool if the caller took it and set it to NULL. Zeroed is closed. */
void wpt_locate_close(struct wpt_locator *l);

/* The links of the chain that the suffix names, the oldest first; *out is the caller's to free(). */
int wpt_locate_chain(struct wpt_locator *l, struct wpt_cache *cache, const struct wpt_place ***out, uint32_t *nr);

/* The link that `child` was made from, whether or not it needs one, as wpt_locate_chain() finds it; after that. */
const struct wpt_place *wpt_locate_parent(const struct wpt_locator *l, const struct wpt_place *child);
/* Where in `by_id` links of this id begin, if there are any; after that. */
uint32_t wpt_locate_id(const struct wpt_locator *l, const uint8_t id[16]);

#endif
