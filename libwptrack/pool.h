/* SPDX-License-Identifier: MIT */
/*
 * Sources of a folder's files, opened when they are read: a chain may have more links than a process may have descriptors.
 *
 * Threads: reads by many at once; adding by one.
 */
#ifndef WPT_POOL_H
#define WPT_POOL_H

#include "base.h"
#include "store.h"

struct wpt_pool;

/* dir_fd becomes the pool's, also on failure; -1: none. */
int wpt_pool_open(struct wpt_pool **out, int dir_fd);
void wpt_pool_close(struct wpt_pool *p);
int wpt_pool_dir(const struct wpt_pool *p);

/* The source of a file in the folder, or of memory; it is the pool's. Opening now tells whether the file is there. */
int wpt_pool_file(struct wpt_pool *p, const char *name, struct wpt_source **out);
int wpt_pool_memory(struct wpt_pool *p, const void *data, size_t len, struct wpt_source **out);

/* The name that a source of a pool was added under, "" for memory. */
const char *wpt_pool_name(const struct wpt_source *s);

#endif
