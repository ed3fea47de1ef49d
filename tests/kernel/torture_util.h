/* SPDX-License-Identifier: MIT */
/*
 * A tracker, a chain and the comparison of its last link with live memory, for tests in which nothing runs between the two.
 */
#ifndef TORTURE_UTIL_H
#define TORTURE_UTIL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common.h"
#include "way.h"
#include "wptrack.h"

#define TP ((size_t)4096)
#define FIX_RANGES 8

struct fix {
	struct wpt_tracker *t;
	struct wpt_writer *w;
	char dir[128], chain[160];
	pid_t pid;               /* of an attached target, 0: the own process */
	struct {
		char *addr;      /* in the target */
		char *mine;      /* the same memory, seen from here */
		size_t len;
	} range[FIX_RANGES];
	int id[FIX_RANGES];
	unsigned nr;
	struct wpt_take_stats stats;
};

static int fix_nothing(void *arg)
{
	(void)arg;
	return 0;
}

static void fix_void(void *arg)
{
	(void)arg;
}

static void fix_say(void *arg, enum wpt_log_level level, const char *message)
{
	(void)arg;
	if (level <= WPT_LOG_ERROR)
		print_message("# library: %s\n", message);
}

static inline bool fix_async(void)
{
	if (way_features() & WPT_F_ASYNC)
		return true;
	print_message("# skip: this kernel or this user has no asynchronous userfaultfd write protection with PAGEMAP_SCAN\n");
	return false;
}

/* Where a kernel has nothing else, trackers are of backend sync: see way.h. */
static inline bool fix_supported(void)
{
	return way_is_sync() || fix_async();
}

static void fix_tracker(struct fix *f, pid_t pid, uint32_t backend, uint32_t flags)
{
	struct wpt_tracker_options o = { .size = sizeof(o), .backend = backend, .flags = flags, .log = fix_say, .stop_timeout_ms = 2000 };
	const char *tmp = getenv("TMPDIR");
	int r, tries = 0;

	memset(f, 0, sizeof(*f));
	f->pid = pid;
	snprintf(f->dir, sizeof(f->dir), "%s/wptrack-test-XXXXXX", tmp && *tmp ? tmp : "/var/tmp");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->chain, sizeof(f->chain), "%s/chain", f->dir);
	do
		r = way_tracker(&f->t, pid, &o);
	while (r == -WPT_E_STOP_TIMEOUT && ++tries < 100);
	if (r)
		print_message("# tracker: %s\n", wpt_strerror(r));
	assert_int_equal(r, 0);
}

static void fix_add_as(struct fix *f, void *addr, void *mine, size_t len)
{
	struct wpt_range r = { .size = sizeof(r), .start = (uint64_t)addr, .end = (uint64_t)addr + len };
	int id = wpt_range_add(f->t, &r);

	assert_true(id > 0);
	f->range[f->nr].addr = addr;
	f->range[f->nr].mine = mine;
	f->range[f->nr].len = len;
	f->id[f->nr++] = id;
}

static void fix_add(struct fix *f, void *addr, size_t len)
{
	fix_add_as(f, addr, addr, len);
}

static inline void fix_writer(struct fix *f)
{
	struct wpt_writer_options o = { .size = sizeof(o), .flags = WPT_WRITER_NO_SYNC, .nr_threads = 2, .level = -5 };
	int r = wpt_writer_open(&f->w, f->t, f->chain, &o);

	if (r)
		print_message("# writer: %s\n", wpt_strerror(r));
	assert_int_equal(r, 0);
}

static int fix_try(struct fix *f, struct wpt_take_options *given)
{
	struct wpt_take_options o = { .size = sizeof(o) };
	int r, tries = 0;

	if (!given)
		given = &o;
	if (!f->pid) {
		given->quiesce = given->quiesce ? given->quiesce : fix_nothing;
		given->resume = given->resume ? given->resume : fix_void;
	}
	do {
		f->stats = (struct wpt_take_stats){ .size = sizeof(f->stats) };
		r = wpt_writer_take(f->w, given, &f->stats);
	} while (r == -WPT_E_STOP_TIMEOUT && ++tries < 100);
	return r;
}

/* The number of pages of the last link that differ from memory as it is now. */
static uint64_t fix_wrong(struct fix *f)
{
	struct wpt_chain *c;
	char name[200];
	uint64_t wrong = 0;
	int r;

	snprintf(name, sizeof(name), "%s@%" PRIu64, f->chain, f->stats.sequence);
	r = wpt_chain_open(&c, name);
	if (r)
		print_message("# chain: %s\n", wpt_strerror(r));
	assert_int_equal(r, 0);
	for (unsigned i = 0; i < f->nr; i++) {
		char *buf = mmap(NULL, f->range[i].len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		assert_true(buf != MAP_FAILED);
		memset(buf, 0xa5, f->range[i].len);
		r = wpt_chain_restore_memory(c, (uint64_t)f->range[i].addr, (uint64_t)f->range[i].addr + f->range[i].len, buf, NULL);
		if (r)
			print_message("# restore: %s\n", wpt_strerror(r));
		assert_int_equal(r, 0);
		for (size_t at = 0; at < f->range[i].len; at += TP)
			wrong += memcmp(buf + at, f->range[i].mine + at, TP) != 0;
		munmap(buf, f->range[i].len);
	}
	assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
	wpt_chain_close(c);
	return wrong;
}

static inline void fix_take(struct fix *f)
{
	int r = fix_try(f, NULL);

	if (r)
		print_message("# take: %s\n", wpt_strerror(r));
	assert_int_equal(r, 0);
}

static inline void fix_take_and_check(struct fix *f)
{
	fix_take(f);
	assert_int_equal(fix_wrong(f), 0);
}

static void fix_close(struct fix *f)
{
	wpt_writer_close(f->w);
	wpt_tracker_close(f->t);
	remove_folder(f->chain);
	remove_folder(f->dir);
}

/* A number of /proc/PID/status, by its name with the colon. */
static inline uint64_t status_kib(pid_t pid, const char *key)
{
	char path[64], line[200];
	uint64_t x = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (strncmp(line, key, strlen(key)) == 0)
			x = strtoull(line + strlen(key), NULL, 10);
	fclose(f);
	return x;
}

static void *fix_map(size_t len, int flags, int fd)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	assert_true(p != MAP_FAILED);
	return p;
}

static inline void *fix_anon(size_t len)
{
	return fix_map(len, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/* Different in every page. */
static inline void fix_fill(void *at, size_t len, unsigned salt)
{
	uint32_t *p = at;

	for (size_t i = 0; i < len / 4; i++)
		p[i] = (uint32_t)((i + 1) * 2654435761u) ^ (salt * 40503u + (uint32_t)(i >> 7));
}

struct fix_look {
	uint64_t addr;
	uint32_t reason, kind, skipped;
	unsigned found;
};

static int fix_look_each(void *arg, const struct wpt_range_info *info)
{
	struct fix_look *l = arg;

	if (l->addr >= info->start && l->addr < info->end) {
		l->reason = info->reason;
		l->kind = info->kind;
		l->skipped = info->skipped;
		l->found++;
	}
	return 0;
}

static inline struct fix_look fix_look(struct fix *f, const void *addr)
{
	struct fix_look l = { .addr = (uint64_t)addr };

	assert_int_equal(wpt_range_list(f->t, fix_look_each, &l), 0);
	return l;
}

#endif
