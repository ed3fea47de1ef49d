/* SPDX-License-Identifier: MIT */
/*
 * Changes that bypass a mapping, and so write protection: by system call, through another mapping of the same file, by another process, by
 * a device. What can be seen of them makes pages dirty or spans unknown; what can't be seen makes an area compared by content.
 */
#include "look.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "sys.h"

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
#define PIECE (UINT64_C(2) << 20)
#define FRESH_NS 30000000ll /* a few ticks of the slowest clock */

/* ---- files ---- */

/*
 * The file of a mapping. On some file systems (btrfs, overlayfs over several others) all files show one device in the list of mappings and have
 * others for stat(2), within which only their inode numbers are unique. There `st`, of the mapping's file itself, decides; without it, nothing
 * is found.
 */
static int file_find(const struct wpt_tracker *t, uint64_t dev, uint64_t inode, const struct stat *st)
{
	size_t i;

	for (i = 0; i < t->files.count; i++) {
		const struct wpt_file *file = wpt_vec_at(&t->files, struct wpt_file, i);

		if (file->fd >= 0 && file->dev == dev && file->inode == inode && file->use.dev == (st ? st->st_dev : dev))
			return (int)i;
	}
	return -1;
}

/* A zeroed entry: one whose file was closed, or a new one. */
static struct wpt_file *file_entry(struct wpt_tracker *t)
{
	struct wpt_file *file;
	size_t i;

	for (i = 0; i < t->files.count; i++) {
		file = wpt_vec_at(&t->files, struct wpt_file, i);
		if (file->fd < 0) {
			memset(file, 0, sizeof(*file));
			return file;
		}
	}
	return wpt_vec_push(&t->files);
}

/*
 * Of a memfd, shared anonymous memory and System V segments inotify tells nothing but truncation; of files of a tmpfs that is mounted it tells
 * all. The former are those of the kernel's own mount, the one a new memfd is on.
 */
static bool is_silent(const struct stat *st)
{
	struct stat own;
	int fd = (int)wpt_sys(SYS_memfd_create, "", MFD_CLOEXEC);
	bool silent = fd < 0 || fstat(fd, &own) != 0 || own.st_dev == st->st_dev;

	if (fd >= 0)
		close(fd);
	return silent;
}

/* The mapping's file in the table, opened at its first appearance; -1 if it can't be had. */
int wpt_look_file(struct wpt_tracker *t, const struct wpt_map *map)
{
	uint64_t dev = makedev(map->dev_major, map->dev_minor);
	struct wpt_file *file;
	struct statfs fs;
	struct stat st;
	int index, fd;

	if (!map->inode)
		return -1;
	index = file_find(t, dev, map->inode, NULL);
	if (index >= 0)
		return index;
	fd = wpt_target_open_file(t->target, map, &t->maps);
	if (fd < 0)
		return -1;
	file = NULL;
	if (fstat(fd, &st) == 0) {
		index = file_find(t, dev, map->inode, &st);
		file = index < 0 ? file_entry(t) : NULL;
	}
	if (!file) {
		close(fd);
		return index;
	}
	file->dev = dev;
	file->inode = map->inode;
	file->fd = fd;
	file->regular = S_ISREG(st.st_mode);
	if (fstatfs(fd, &fs) == 0) {
		file->tmpfs = (unsigned long)fs.f_type == TMPFS_MAGIC;
		file->silent = file->tmpfs && is_silent(&st);
		file->stacked = (unsigned long)fs.f_type == OVERLAYFS_SUPER_MAGIC;
	}
	file->use.dev = st.st_dev;
	file->use.inode = st.st_ino;
	if (file->regular)
		file->watch = wpt_target_watch(t->target, fd);
	return (int)(file - wpt_vec_at(&t->files, struct wpt_file, 0));
}

void wpt_look_prune_files(struct wpt_look *l)
{
	struct wpt_tracker *t = l->t;
	struct wpt_file *file;
	size_t i;

	for (i = 0; i < t->files.count; i++) {
		file = wpt_vec_at(&t->files, struct wpt_file, i);
		if (file->fd < 0 || file->nr_areas)
			continue;
		if (file->watch > 0)
			wpt_target_unwatch(t->target, file->watch);
		close(file->fd);
		file->fd = -1;
	}
}

static void file_changed(void *arg, int watch)
{
	struct wpt_tracker *t = arg;
	size_t i;

	for (i = 0; i < t->files.count; i++)
		if (watch == -1 || wpt_vec_at(&t->files, struct wpt_file, i)->watch == watch)
			wpt_vec_at(&t->files, struct wpt_file, i)->changed = true;
}

/*
 * A memfd tells nobody of pwrite(2) and of punched holes, but its time of change does, and private writes leave that alone. (Of a file on a tmpfs
 * that is mounted write faults move it, too, and everything would seem changed at every look; but there inotify tells.) A time as fresh as the
 * look may hide another change in the same tick of the clock. And it is asked before the areas are looked at: what changes afterwards changes it
 * once more, and the next look sees that.
 */
void wpt_look_times(struct wpt_look *l)
{
	struct wpt_tracker *t = l->t;
	struct timespec now;
	struct wpt_file *file;
	struct stat st;
	size_t i;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	for (i = 0; i < t->files.count; i++) {
		file = wpt_vec_at(&t->files, struct wpt_file, i);
		if (file->fd < 0 || !file->silent || fstat(file->fd, &st) != 0)
			continue;
		file->times_changed = file->times_changed || file->fresh ||
				      st.st_ctim.tv_sec != file->ctime.tv_sec || st.st_ctim.tv_nsec != file->ctime.tv_nsec;
		file->ctime = st.st_ctim;
		file->fresh = (now.tv_sec - st.st_ctim.tv_sec) * 1000000000ll + (now.tv_nsec - st.st_ctim.tv_nsec) < FRESH_NS;
	}
}

/* Whether the file has pages in memory there; also if that can't be found out. */
static bool is_cached(int fd, uint64_t offset, uint64_t len)
{
	struct {
		uint64_t off, len;
	} range = { offset, len };
	struct {
		uint64_t nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted;
	} stat;

	return wpt_sys(SYS_cachestat, fd, &range, &stat, 0) != 0 || stat.nr_cache;
}

/*
 * A hole punched in part of a large page that somebody reads or has pinned at that moment is none: the kernel zeroes the part in its place
 * (tried; our own copying is such a reader), and all that is left to see is that the target has it mapped no more. So of a file that changed,
 * what is in memory and not mapped is compared. What is in swap was not zeroed so, or had to be swapped out since.
 */
static int compare_unmapped(struct wpt_tracker *t, const struct wpt_area *a, int fd, size_t *i)
{
	const struct wpt_span *span;
	uint64_t at, stop;
	enum wpt_known known;
	int err = 0;

	for (; *i < t->unmapped.count && !err; ++*i) {
		span = wpt_vec_at(&t->unmapped, struct wpt_span, *i);
		if (span->start >= a->end)
			break;
		for (at = span->start; span->start >= a->start && !err; at = stop) {
			at = wpt_ledger_next_nonzero(t->ledger, at, span->end, &known);
			if (at == span->end)
				break;
			stop = WPT_MIN(span->end, WPT_ALIGN_DOWN(at, PIECE) + PIECE);
			if (is_cached(fd, a->offset + (at - a->start), stop - at))
				err = wpt_tracker_unknown(t, at, stop);
		}
	}
	return err;
}

static void count_areas(struct wpt_look *l)
{
	const struct wpt_area *a;
	size_t i;

	for (i = 0; i < l->t->files.count; i++)
		wpt_vec_at(&l->t->files, struct wpt_file, i)->nr_areas = 0;
	for (i = 0; i < l->plan->areas.count; i++) {
		a = wpt_area_at(l->plan, i);
		if (a->file >= 0)
			wpt_vec_at(&l->t->files, struct wpt_file, a->file)->nr_areas++;
	}
}

/* ---- other mappings of the target itself ---- */

/* Pages of y that show the same part of the file as dirty or unknown pages of x. */
static int spread_to(struct wpt_look *l, const struct wpt_area *x, const struct wpt_area *y)
{
	uint64_t from = WPT_MAX(x->offset, y->offset), at, run_end, end;
	uint64_t to = WPT_MIN(x->offset + (x->end - x->start), y->offset + (y->end - y->start));
	uint64_t shift = y->start - y->offset - (x->start - x->offset); /* modulo 2^64 */
	int err = 0;

	if (from >= to)
		return 0;
	end = x->start + (to - x->offset);
	for (at = x->start + (from - x->offset); !err; at = run_end) {
		at = wpt_ledger_next_taken(l->t->ledger, at, end, &run_end);
		if (at >= end)
			break;
		err = wpt_ledger_dirty(l->t->ledger, at + shift, run_end + shift);
		wpt_ledger_take(l->t->ledger, at + shift, run_end + shift);
	}
	for (at = x->start + (from - x->offset); !err; at = run_end) {
		at = wpt_tracker_next_unknown(l->t, at, end, &run_end);
		if (at >= end)
			break;
		err = wpt_tracker_unknown(l->t, at + shift, run_end + shift);
	}
	return err;
}

/* A write through one shared mapping of a file is seen there only: what others show of the same part of the file changed too. */
static int spread_all(struct wpt_look *l)
{
	const struct wpt_area *x, *y;
	size_t i, k;
	int err = 0;

	for (i = 0; i < l->plan->areas.count && !err; i++) {
		x = wpt_area_at(l->plan, i);
		if (x->skipped || x->file < 0 || x->private_file || wpt_vec_at(&l->t->files, struct wpt_file, x->file)->nr_areas < 2)
			continue;
		for (k = 0; k < l->plan->areas.count && !err; k++) {
			y = wpt_area_at(l->plan, k);
			if (k != i && !y->skipped && y->file == x->file)
				err = spread_to(l, x, y);
		}
	}
	return err;
}

static bool is_covered(const struct wpt_plan *plan, uint64_t start, uint64_t end)
{
	const struct wpt_area *a;
	size_t i;

	for (i = 0; i < plan->areas.count && start < end; i++) {
		a = wpt_area_at(plan, i);
		if (!a->skipped && a->start <= start && start < a->end)
			start = a->end;
	}
	return start >= end;
}

/*
 * Shared writable mappings that are not tracked: what is written through them is not seen at all. Where they may be of either of two files, they
 * count for both.
 */
static void note_untracked(struct wpt_look *l)
{
	struct wpt_tracker *t = l->t;
	const struct wpt_map *map;
	struct wpt_file *file;
	size_t i, k;

	for (i = 0; i < t->files.count; i++) {
		file = wpt_vec_at(&t->files, struct wpt_file, i);
		file->untracked_now = false;
	}
	for (i = 0; i < t->maps.maps.count; i++) {
		map = wpt_map_at(&t->maps, i);
		if (!map->shared || !map->write || !map->inode)
			continue;
		for (k = 0; k < t->files.count; k++) {
			file = wpt_vec_at(&t->files, struct wpt_file, k);
			if (file->fd >= 0 && file->dev == makedev(map->dev_major, map->dev_minor) && file->inode == map->inode)
				file->untracked_now |= !is_covered(l->plan, map->start, map->end);
		}
	}
}

/* ---- other processes ---- */

static bool is_shared_kind(uint32_t kind)
{
	return kind == WPT_KIND_SHMEM || kind == WPT_KIND_FILE_SHARED || kind == WPT_KIND_HUGETLB_SHARED;
}

/* Who else may write to the files. Shared ones anew at each look; private ones when the file was first seen or changed. */
static int inspect_files(struct wpt_look *l)
{
	struct wpt_vec uses = WPT_VEC(struct wpt_file_use);
	struct wpt_tracker *t = l->t;
	struct wpt_file_use *use;
	const struct wpt_area *a;
	struct wpt_file *file;
	size_t i, n;
	int err = 0;

	for (i = 0; i < t->files.count; i++)
		wpt_vec_at(&t->files, struct wpt_file, i)->inspected &= !wpt_vec_at(&t->files, struct wpt_file, i)->changed;
	for (i = 0; i < l->plan->areas.count; i++) {
		a = wpt_area_at(l->plan, i);
		if (!a->skipped && a->file >= 0 && is_shared_kind(a->kind))
			wpt_vec_at(&t->files, struct wpt_file, a->file)->inspected = false;
	}
	for (i = 0; i < t->files.count && !err; i++) {
		file = wpt_vec_at(&t->files, struct wpt_file, i);
		if (file->inspected || !file->regular || file->fd < 0)
			continue;
		use = wpt_vec_push(&uses);
		err = use ? 0 : -ENOMEM;
		if (use)
			*use = (struct wpt_file_use){ .dev = file->use.dev, .inode = file->use.inode, .map_dev = file->dev };
	}
	if (!err && uses.count)
		err = wpt_target_writers(t->target, uses.data, uses.count);
	for (i = n = 0; i < t->files.count && !err; i++) {
		file = wpt_vec_at(&t->files, struct wpt_file, i);
		if (file->inspected || !file->regular || file->fd < 0)
			continue;
		use = wpt_vec_at(&uses, struct wpt_file_use, n++);
		file->writer_seen |= use->other_writer;
		file->use = *use;
		file->inspected = true;
	}
	wpt_vec_free(&uses);
	return err;
}

/* What was seen of the files is in the unknown spans now. A writer that is gone by the next look may have written before it went. */
static void files_looked_at(struct wpt_tracker *t)
{
	struct wpt_file *file;
	size_t i;

	for (i = 0; i < t->files.count; i++) {
		file = wpt_vec_at(&t->files, struct wpt_file, i);
		file->changed = file->times_changed = false;
		file->writer_before = file->writer_seen;
		file->writer_seen = false;
		file->untracked_before = file->untracked_now;
	}
}

int wpt_look_bypasses(struct wpt_look *l)
{
	struct wpt_tracker *t = l->t;
	const struct wpt_file *file;
	struct wpt_area *a;
	size_t i, unmapped = 0;
	int err = 0;

	count_areas(l);
	note_untracked(l);
	err = wpt_target_poll(t->target, file_changed, t);
	if (!err && !(t->flags & WPT_TRACK_ASSUME_SOLE_WRITER))
		err = inspect_files(l);
	for (i = 0; i < l->plan->areas.count && !err; i++) {
		a = wpt_area_at(l->plan, i);
		if (a->skipped || a->kind == WPT_KIND_ANON || a->kind == WPT_KIND_REPORTED ||
		    (a->kind == WPT_KIND_HUGETLB_PRIVATE && !a->private_file))
			continue;
		file = a->file >= 0 ? wpt_vec_at(&t->files, struct wpt_file, a->file) : NULL;
		if (a->untracked)
			continue; /* is compared already, for a reason that holds always */
		if (t->flags & WPT_TRACK_VERIFY_CONTENT)
			a->reason = WPT_REASON_VERIFY;
		else if (!file || (file->regular && file->watch < 0) || (a->private_file && a->kind == WPT_KIND_HUGETLB_PRIVATE))
			a->reason = WPT_REASON_UNINSPECTABLE;
		else if (file->untracked_now || file->untracked_before)
			a->reason = WPT_REASON_OTHER_WRITER;
		else if (!(t->flags & WPT_TRACK_ASSUME_SOLE_WRITER) && (file->writer_seen || file->writer_before))
			a->reason = WPT_REASON_OTHER_WRITER;
		else if (!(t->flags & WPT_TRACK_ASSUME_SOLE_WRITER) && file->use.uninspectable)
			a->reason = WPT_REASON_UNINSPECTABLE;
		if (a->reason != WPT_REASON_NONE || (file && (file->changed || (a->private_file && file->times_changed))))
			err = wpt_tracker_unknown(t, a->start, a->end);
		else if (a->kind == WPT_KIND_SHMEM && !a->exact && file->times_changed)
			err = compare_unmapped(t, a, file->fd, &unmapped);
	}
	if (!err)
		err = spread_all(l);
	if (!err)
		files_looked_at(t);
	return err;
}

int wpt_tracker_inspect(struct wpt_tracker *t)
{
	struct wpt_look l = { .t = t, .old = t->plan, .plan = t->plan };
	size_t i;

	if (t->flags & WPT_TRACK_ASSUME_SOLE_WRITER)
		return 0;
	for (i = 0; i < t->files.count; i++)
		wpt_vec_at(&t->files, struct wpt_file, i)->inspected = false;
	return inspect_files(&l);
}

bool wpt_tracker_is_pinned(const struct wpt_tracker *t, uint64_t start, uint64_t end)
{
	const struct wpt_piece *p;
	size_t i;

	for (i = 0; i < t->pinned.count; i++) {
		p = wpt_vec_at(&t->pinned, struct wpt_piece, i);
		if (p->addr < end && start < p->addr + p->len)
			return true;
	}
	return false;
}

/* Where a ring was busy at this look, its buffers are those of the last one. */
static int keep_pinned(const struct wpt_vec *before, struct wpt_vec *pieces)
{
	const struct wpt_piece *p;
	struct wpt_piece *kept;
	size_t i, k;

	for (i = 0; i < before->count; i++) {
		p = wpt_vec_at(before, struct wpt_piece, i);
		for (k = 0; k < pieces->count; k++)
			if (!memcmp(p, wpt_vec_at(pieces, struct wpt_piece, k), sizeof(*p)))
				break;
		if (k < pieces->count)
			continue;
		kept = wpt_vec_push(pieces);
		if (!kept)
			return -ENOMEM;
		*kept = *wpt_vec_at(before, struct wpt_piece, i);
	}
	return 0;
}

/* Memory that the kernel writes to without a fault, as of this look and of the last one. */
int wpt_look_pinned(struct wpt_look *l)
{
	struct wpt_vec pieces = WPT_VEC(struct wpt_piece);
	struct wpt_tracker *t = l->t;
	const struct wpt_area *a;
	const struct wpt_piece *p;
	uint64_t start, end;
	size_t i, k;
	int busy, err, set;

	busy = wpt_target_pinned(t->target, &pieces, &t->pinned_loud);
	err = busy > 0 ? keep_pinned(&t->pinned, &pieces) : busy;
	for (set = 0; set < 2 && !err; set++) {
		const struct wpt_vec *v = set ? &t->pinned : &pieces;

		for (i = 0; i < v->count; i++) {
			p = wpt_vec_at(v, struct wpt_piece, i);
			for (k = 0; k < l->plan->areas.count && !err; k++) {
				a = wpt_area_at(l->plan, k);
				start = WPT_MAX(a->start, WPT_ALIGN_DOWN(p->addr, WPT_PAGE));
				end = WPT_MIN(a->end, WPT_ALIGN_UP(p->addr + p->len, WPT_PAGE));
				if (a->skipped || start >= end)
					continue;
				/* It is copied, whatever an earlier look of the same link said of it. */
				wpt_ledger_present(t->ledger, start, end);
				err = wpt_ledger_dirty(t->ledger, start, end);
			}
		}
	}
	/* A look that failed is no look: what was pinned before it may have been written to until now. */
	for (i = 0; err && i < pieces.count; i++) {
		struct wpt_piece *kept = wpt_vec_push(&t->pinned);

		if (kept)
			*kept = *wpt_vec_at(&pieces, struct wpt_piece, i);
	}
	wpt_vec_free(err ? &pieces : &t->pinned);
	if (!err)
		t->pinned = pieces;
	return err;
}

