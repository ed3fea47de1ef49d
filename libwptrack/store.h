/* SPDX-License-Identifier: MIT */
/*
 * Where bytes go (sink) and come from (source). A sink is written front to back; what was written becomes visible by commit,
 * whole or not at all. Files are 0600, folders 0700, opened O_NOFOLLOW | O_CLOEXEC.
 */
#ifndef WPT_STORE_H
#define WPT_STORE_H

#include "base.h"

struct wpt_sink {
	/* Writes all of it or fails: -ENOSPC, -EIO, -EPIPE, ... A sink that failed once keeps failing. */
	int (*write)(struct wpt_sink *s, const void *data, size_t len);
	/* Makes it durable, then visible. After an error the file is never continued. */
	int (*commit)(struct wpt_sink *s);
	/* Frees; what was not committed disappears. */
	void (*close)(struct wpt_sink *s);
	bool begun;               /* files: write() was called, whatever came of it */
};

/* A link in a folder: a temporary name in the folder, fsync, RENAME_NOREPLACE to `name`, fsync of the folder. */
int wpt_sink_folder(struct wpt_sink **out, int dir_fd, const char *name, bool sync);
/*
 * As wpt_sink_folder(), but a file of that name is replaced, whose owner, group and mode the new one gets. When all is written and durable, `check`
 * is called with the temporary name: an error of it is the commit's, and nothing is replaced.
 */
int wpt_sink_replace(struct wpt_sink **out, int dir_fd, const char *name, bool sync,
		     int (*check)(void *arg, int dir_fd, const char *temp), void *arg);
/* A new file by path; "-" is standard output. -EEXIST if it exists, now or at commit. */
int wpt_sink_file(struct wpt_sink **out, const char *path, bool sync);
/* To an open descriptor, from its current position; close does not close it. */
int wpt_sink_fd(struct wpt_sink **out, int fd, bool sync);
/*
 * Appends at `offset` (the end of the last good link: what is behind is cut off first) under the file's lock (-WPT_E_LOCKED if another
 * has it; fd keeps it); on failure truncates back to it. With `sync` the end, which has the trailer, is written by commit, after all before
 * it is durable. Whoever created the file makes its name durable.
 */
int wpt_sink_append(struct wpt_sink **out, int fd, uint64_t offset, bool sync);
/* A growing buffer outside malloc, for tests and small links. *data and *len are set by commit and valid until close. */
int wpt_sink_memory(struct wpt_sink **out, const void **data, size_t *len);

struct wpt_source {
	/* Reads exactly len bytes at offset: 0, -errno, -WPT_E_TRUNCATED behind the end. Any thread. */
	int (*read)(struct wpt_source *s, uint64_t offset, void *buf, size_t len);
	uint64_t size;
	uint64_t dev, ino;        /* of a file */
	void (*close)(struct wpt_source *s);
};

int wpt_source_file(struct wpt_source **out, int dir_fd, const char *path);
int wpt_source_memory(struct wpt_source **out, const void *data, size_t len);

/*
 * One writer per chain, or -WPT_E_LOCKED. A folder: flock on its `.lock` (created 0600, the folder's owner's); returns a descriptor > 0, close it to
 * release; temporary files of dead writers are removed. A file: flock on `fd` itself, which lasts until it is closed; returns 0.
 */
int wpt_store_lock(int fd);

/* Makes a folder, or a file in it that others wrote, durable as it is. */
int wpt_store_sync(int dir_fd, const char *name);

/* Makes durable that the folder above has the file or folder `path`. One that may not be read is left alone, which is no error. */
int wpt_store_sync_name(const char *path);

#endif
