/* SPDX-License-Identifier: MIT */
/*
 * Memory images out of a chain: to a file, to a descriptor, to the caller's memory, to a folder of images.
 *
 * A file that has a name is written under a temporary one and appears whole or not at all. What the chain does not know is zero.
 */
#include "chain.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE ((size_t)1 << 20)

/* Where the bytes go. `data` NULL: zeros. If in_order, offsets ascend without gaps; else many threads call, in any order. */
typedef int emit_fn(void *arg, uint64_t offset, const uint8_t *data, uint64_t len);

struct job {
	struct wpt_chain *chain;
	uint64_t start, end;
	bool in_order;
	emit_fn *emit;
	void *emit_arg;
	uint64_t nr_unreadable;
	/* Progress over several jobs. */
	wpt_progress *progress;
	void *progress_arg;
	uint64_t done, total;
};

/* Of data whole pages are counted, also where the range begins or ends within one. */
static int report(struct job *j, uint64_t bytes)
{
	j->done = WPT_MIN(j->done + bytes, j->total);
	if (j->progress && j->progress(j->progress_arg, j->done, j->total))
		return -ECANCELED;
	return 0;
}

static int emit_piece(struct job *j, const uint8_t *data, uint64_t from, uint64_t to)
{
	int rc = j->emit(j->emit_arg, from - j->start, data, to - from);

	return rc ? rc : report(j, to - from);
}

/* The last page of the address space has no end address of its own; nothing is ever tracked there. */
static const uint64_t limit = WPT_ALIGN_DOWN(UINT64_MAX, WPT_PAGE);

static int rest_emit(void *arg, const struct wpt_view_run *run)
{
	struct job *j = arg;

	if (run->view == WPT_VIEW_UNREADABLE)
		j->nr_unreadable += (run->end - run->start) / WPT_PAGE;
	return emit_piece(j, NULL, WPT_MAX(run->start, j->start), WPT_MIN(run->end, j->end));
}

/* On any thread. */
static int data_emit(void *arg, uint64_t addr, const uint8_t *data, uint64_t len)
{
	struct job *j = arg;
	uint64_t from = WPT_MAX(addr, j->start), to = WPT_MIN(addr + len, j->end);

	return j->emit(j->emit_arg, from - j->start, data + (size_t)(from - addr), to - from);
}

static int data_report(void *arg, uint64_t bytes)
{
	return report(arg, bytes);
}

static int run_scatter(struct job *j, uint64_t start, uint64_t end)
{
	const struct wpt_scatter to = { .data = data_emit, .rest = rest_emit, .progress = data_report, .arg = j };

	return wpt_chain_scatter(j->chain, start, end, wpt_chain_nr_threads(j->chain), &to);
}

static int run_gather(struct job *j, uint64_t start, uint64_t end)
{
	struct wpt_gather *g = NULL;
	struct wpt_view_run run;
	const uint8_t *data;
	uint64_t from;
	int rc;

	rc = wpt_gather_open(&g, j->chain, start, end, wpt_chain_nr_threads(j->chain));
	while (!rc && (rc = wpt_gather_next(g, &run, &data)) > 0) {
		from = WPT_MAX(run.start, j->start);
		if (data)
			rc = emit_piece(j, data + (size_t)(from - run.start), from, WPT_MIN(run.end, j->end));
		else
			rc = rest_emit(j, &run);
	}
	wpt_gather_close(g);
	return rc;
}

static int job_run(struct job *j)
{
	uint64_t start = WPT_ALIGN_DOWN(j->start, WPT_PAGE), end;
	int rc;

	if (j->start == j->end)
		return 0;
	end = j->end > limit ? limit : WPT_ALIGN_UP(j->end, WPT_PAGE);
	rc = j->in_order ? run_gather(j, start, end) : run_scatter(j, start, end);
	if (!rc && j->end > limit)
		rc = emit_piece(j, NULL, WPT_MAX(limit, j->start), j->end);
	return rc;
}

/* ---- files ---- */

struct output {
	int fd;
	bool sparse;
	const uint8_t *zeros; /* PIECE bytes, if not sparse */
	uint64_t base;        /* if sparse: where the image begins in the file */
};

static int write_all(int fd, const uint8_t *data, size_t len)
{
	ssize_t n;

	while (len) {
		n = write(fd, data, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

static int pwrite_all(int fd, const uint8_t *data, size_t len, uint64_t offset)
{
	ssize_t n;

	while (len) {
		n = pwrite(fd, data, len, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		data += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

/*
 * What is not zero of data, in units of the file's own pages: a page that was torn when it was copied is stored as data also if it is zero.
 * At `at` the file reads as zeros.
 */
static int pwrite_nonzero(int fd, const uint8_t *data, size_t len, uint64_t at)
{
	static const uint8_t zeros[WPT_PAGE];
	size_t from, to, n;
	int rc;

	/* [from, to) is to be written. */
	for (from = to = 0; to < len; to += n) {
		n = WPT_MIN(len - to, WPT_PAGE - (size_t)((at + to) & (WPT_PAGE - 1)));
		if (memcmp(data + to, zeros, n))
			continue;
		rc = pwrite_all(fd, data + from, to - from, at + from);
		if (rc)
			return rc;
		from = to + n;
	}
	return pwrite_all(fd, data + from, to - from, at + from);
}

static int output_emit(void *arg, uint64_t offset, const uint8_t *data, uint64_t len)
{
	struct output *o = arg;
	size_t n;
	int rc;

	if (o->sparse)
		return data ? pwrite_nonzero(o->fd, data, (size_t)len, o->base + offset) : 0;
	for (; len; len -= n) {
		n = (size_t)WPT_MIN(len, (uint64_t)PIECE);
		rc = write_all(o->fd, data ? data : o->zeros, n);
		if (rc)
			return rc;
		if (data)
			data += n;
	}
	return 0;
}

static int restore_stdout(struct job *j)
{
	struct output o = { .fd = STDOUT_FILENO };
	uint8_t *zeros = calloc(1, PIECE);
	int rc;

	if (!zeros)
		return -ENOMEM;
	o.zeros = zeros;
	j->in_order = true;
	j->emit = output_emit;
	j->emit_arg = &o;
	rc = job_run(j);
	free(zeros);
	return rc;
}

/* The image of the job's range from `base` on, where the file reads as zeros. */
static int restore_sparse(struct job *j, int fd, uint64_t base)
{
	struct output o = { .fd = fd, .sparse = true, .base = base };

	j->emit = output_emit;
	j->emit_arg = &o;
	return job_run(j);
}

/* The image of the job's range into an empty regular file. */
static int restore_new(struct job *j, int fd)
{
	int rc;

	if (j->end - j->start > (uint64_t)INT64_MAX)
		return -EFBIG;
	if (ftruncate(fd, (off_t)(j->end - j->start)))
		return -errno;
	rc = restore_sparse(j, fd, 0);
	if (rc)
		return rc;
	return fsync(fd) ? -errno : 0;
}

/* Splits a path that ends in a name; `dir` is PATH_MAX bytes. Trailing slashes are not part of the name. */
static int split_path(const char *path, char dir[PATH_MAX], char name[NAME_MAX + 1])
{
	size_t len = strlen(path), base;

	while (len > 1 && path[len - 1] == '/')
		len--;
	for (base = len; base && path[base - 1] != '/';)
		base--;
	if (!len || len - base > NAME_MAX || base >= PATH_MAX)
		return len ? -ENAMETOOLONG : -ENOENT;
	memcpy(name, path + base, len - base);
	name[len - base] = 0;
	if (!name[0] || !strcmp(name, ".") || !strcmp(name, ".."))
		return -EEXIST;
	memcpy(dir, base ? path : ".", base ? base : 1);
	dir[base ? base : 1] = 0;
	return 0;
}

static void temp_name(char name[32])
{
	uint64_t r = 0;

	if (getrandom(&r, sizeof(r), GRND_NONBLOCK) != sizeof(r))
		r ^= wpt_now_ns() ^ ((uint64_t)getpid() << 40);
	snprintf(name, 32, ".wpt-%016" PRIx64, r);
}

/* A new name for what is complete. -EEXIST if it is taken, which replaces nothing. */
static int publish(int dir_fd, const char *temp, const char *name, bool folder)
{
	struct stat st;

	if (!renameat2(dir_fd, temp, dir_fd, name, RENAME_NOREPLACE))
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -errno;
	/* A file system without RENAME_NOREPLACE. */
	if (!folder) {
		if (linkat(dir_fd, temp, dir_fd, name, 0))
			return -errno;
		unlinkat(dir_fd, temp, 0);
		return 0;
	}
	/* An empty folder is all that rename(2) of a folder replaces. */
	if (!fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW))
		return -EEXIST;
	return renameat(dir_fd, temp, dir_fd, name) ? -errno : 0;
}

/* Opens the folder that `path` is to lie in. */
static int open_parent(const char *path, char name[NAME_MAX + 1])
{
	char dir[PATH_MAX];
	struct stat st;
	int fd, rc;

	rc = split_path(path, dir, name);
	if (rc)
		return rc;
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (!fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW)) {
		close(fd);
		return -EEXIST;
	}
	return fd;
}

static int restore_path(struct job *j, const char *path)
{
	char name[NAME_MAX + 1], temp[32];
	int dir_fd, fd, rc;

	dir_fd = open_parent(path, name);
	if (dir_fd < 0)
		return dir_fd;
	temp_name(temp);
	fd = openat(dir_fd, temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0) {
		rc = -errno;
		close(dir_fd);
		return rc;
	}
	rc = restore_new(j, fd);
	if (close(fd) && !rc)
		rc = -errno;
	if (!rc)
		rc = publish(dir_fd, temp, name, false);
	if (rc)
		unlinkat(dir_fd, temp, 0);
	else
		fsync(dir_fd);
	close(dir_fd);
	return rc;
}

int wpt_chain_restore_file(struct wpt_chain *c, uint64_t start, uint64_t end, const char *path,
			   uint64_t *nr_unreadable, wpt_progress *progress, void *arg)
{
	struct job j = { .chain = c, .start = start, .end = end, .progress = progress, .progress_arg = arg };
	int rc;

	if (!path || end < start)
		return -EINVAL;
	j.total = end - start;
	rc = strcmp(path, "-") ? restore_path(&j, path) : restore_stdout(&j);
	if (nr_unreadable)
		*nr_unreadable = j.nr_unreadable;
	return rc;
}

int wpt_chain_restore_fd(struct wpt_chain *c, uint64_t start, uint64_t end, int fd, uint64_t offset,
			 uint64_t *nr_unreadable, wpt_progress *progress, void *arg)
{
	struct job j = { .chain = c, .start = start, .end = end, .progress = progress, .progress_arg = arg };
	int flags, rc;

	if (end < start)
		return -EINVAL;
	j.total = end - start;
	if (offset > (uint64_t)INT64_MAX || j.total > (uint64_t)INT64_MAX - offset)
		return -EFBIG;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0)
		return -errno;
	/* Also where there is nothing to write, so that the mistake shows at once. */
	if ((flags & O_ACCMODE) == O_RDONLY)
		return -EBADF;
	/* There pwrite(2) writes to the end, wherever it is told to. */
	if (flags & O_APPEND)
		return -EINVAL;
	rc = restore_sparse(&j, fd, offset);
	if (nr_unreadable)
		*nr_unreadable = j.nr_unreadable;
	return rc;
}

/* ---- memory ---- */

/* Reading a page that was never touched costs no memory, so equal pages are not written. */
static int memory_emit(void *arg, uint64_t offset, const uint8_t *data, uint64_t len)
{
	static const uint8_t zeros[WPT_PAGE];
	uint8_t *to = (uint8_t *)arg + (size_t)offset;
	const uint8_t *from;
	size_t n;

	for (; len; len -= n, to += n) {
		/* In units of the caller's own pages, however the range is aligned. */
		n = (size_t)WPT_MIN(len, (uint64_t)(WPT_PAGE - ((uintptr_t)to & (WPT_PAGE - 1))));
		from = data ? data : zeros;
		if (memcmp(to, from, n))
			memcpy(to, from, n);
		if (data)
			data += n;
	}
	return 0;
}

int wpt_chain_restore_memory(struct wpt_chain *c, uint64_t start, uint64_t end, void *buf, uint64_t *nr_unreadable)
{
	struct job j = { .chain = c, .start = start, .end = end, .emit = memory_emit, .emit_arg = buf };
	int rc;

	if (end < start || end - start > SIZE_MAX / 2 || (!buf && end > start))
		return -EINVAL;
	rc = job_run(&j);
	if (nr_unreadable)
		*nr_unreadable = j.nr_unreadable;
	return rc;
}

/* ---- folders ---- */

/* A mapping's name as a part of a file's name: its last component, of [A-Za-z0-9._-] only, at most 64 characters. */
static void sanitize(const char *name, char out[65])
{
	static const char deleted[] = " (deleted)";
	size_t len = strlen(name), i, n = 0;
	const char *slash;

	if (len >= sizeof(deleted) - 1 && !strcmp(name + len - (sizeof(deleted) - 1), deleted))
		len -= sizeof(deleted) - 1;
	slash = memrchr(name, '/', len);
	for (i = slash ? (size_t)(slash - name) + 1 : 0; i < len && n < 64; i++) {
		unsigned char ch = (unsigned char)name[i];

		if ((ch >= '0' && ch <= '9') || (ch >= 'A' && ch <= 'Z') || (ch >= 'a' && ch <= 'z') || ch == '.' || ch == '-')
			out[n++] = (char)ch;
		else if (n && out[n - 1] != '_')
			out[n++] = '_';
	}
	while (n && out[n - 1] == '_')
		n--;
	out[n] = 0;
}

static const char *kind_name(uint32_t kind)
{
	static const char *const names[] = { "unknown", "anon", "shmem", "file-shared", "file-private", "hugetlb-private",
					     "hugetlb-shared", "reported" };

	return kind < WPT_ARRAY_SIZE(names) ? names[kind] : names[0];
}

/* A line of ranges.txt. Names come from the snapshot: what could end the line or field is written as \ooo, as in /proc/PID/maps. */
static void index_line(FILE *f, const struct wpt_range_info *r, const char *file)
{
	const unsigned char *p;

	fprintf(f, "%08" PRIx64 "-%08" PRIx64 "\t%s\t%s\t", r->start, r->end, file, kind_name(r->kind));
	for (p = (const unsigned char *)r->name; *p; p++) {
		if (*p < 0x20 || *p == 0x7f || *p == '\\')
			fprintf(f, "\\%03o", *p);
		else
			fputc(*p, f);
	}
	fputc('\n', f);
}

static void image_name(const struct wpt_range_info *r, char file[128])
{
	char name[65];

	sanitize(r->name, name);
	snprintf(file, 128, "%08" PRIx64 "-%08" PRIx64 "%s%s.raw", r->start, r->end, name[0] ? "-" : "", name);
}

/* Range number *index at the last link, joined with those after it that touch it and have its name; *index moves behind them. */
static int joined_range(struct wpt_chain *c, uint32_t *index, struct wpt_range_info *r)
{
	struct wpt_range_info next;
	int rc;

	r->size = sizeof(*r);
	rc = wpt_chain_range(c, (*index)++, r);
	if (rc || !r->name[0])
		return rc;
	for (;;) {
		next.size = sizeof(next);
		if (wpt_chain_range(c, *index, &next) || next.start != r->end || strcmp(next.name, r->name))
			return 0;
		r->end = next.end;
		(*index)++;
	}
}

static int restore_image(struct job *j, int dir_fd, const struct wpt_range_info *r, FILE *index)
{
	char file[128];
	int fd, rc;

	image_name(r, file);
	fd = openat(dir_fd, file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	j->start = r->start;
	j->end = r->end;
	rc = restore_new(j, fd);
	if (close(fd) && !rc)
		rc = -errno;
	index_line(index, r, file);
	return rc;
}

static int restore_images(struct job *j, int dir_fd)
{
	struct wpt_range_info r;
	uint32_t i = 0;
	FILE *index;
	int fd, rc;

	fd = openat(dir_fd, "ranges.txt", O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	index = fdopen(fd, "w");
	if (!index) {
		close(fd);
		return -ENOMEM;
	}
	fputs("# start-end\tfile\tkind\tname\n", index);
	while (!(rc = joined_range(j->chain, &i, &r))) {
		rc = restore_image(j, dir_fd, &r, index);
		if (rc)
			break;
	}
	if (rc == -ERANGE)
		rc = 0;
	if (fflush(index) || fsync(fileno(index)))
		rc = rc ? rc : -errno;
	/* Of a write that failed on the way the text is gone, whatever became of the later ones. */
	if (ferror(index) && !rc)
		rc = -EIO;
	if (fclose(index) && !rc)
		rc = -errno;
	if (!rc && fsync(dir_fd))
		rc = -errno;
	return rc;
}

/* What a failed restore wrote: the folder is new, so every file in it is ours. */
static void remove_images(struct wpt_chain *c, int parent_fd, int dir_fd, const char *temp)
{
	struct wpt_range_info r;
	char file[128];
	uint32_t i = 0;

	while (!joined_range(c, &i, &r)) {
		image_name(&r, file);
		if (unlinkat(dir_fd, file, 0) && errno == ENOENT)
			break;
	}
	unlinkat(dir_fd, "ranges.txt", 0);
	unlinkat(parent_fd, temp, AT_REMOVEDIR);
}

static uint64_t total_bytes(struct wpt_chain *c)
{
	struct wpt_chain_info info = { .size = sizeof(info) };

	return wpt_chain_info(c, &info) ? 0 : info.bytes_tracked;
}

int wpt_chain_restore_folder(struct wpt_chain *c, const char *path, uint64_t *nr_unreadable, wpt_progress *progress,
			     void *arg)
{
	struct job j = { .chain = c, .progress = progress, .progress_arg = arg };
	char name[NAME_MAX + 1], temp[32];
	int parent_fd, dir_fd, rc;

	if (!path)
		return -EINVAL;
	parent_fd = open_parent(path, name);
	if (parent_fd < 0)
		return parent_fd;
	j.total = total_bytes(c);
	temp_name(temp);
	if (mkdirat(parent_fd, temp, 0700)) {
		rc = -errno;
		close(parent_fd);
		return rc;
	}
	dir_fd = openat(parent_fd, temp, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	rc = dir_fd < 0 ? -errno : restore_images(&j, dir_fd);
	if (!rc)
		rc = publish(parent_fd, temp, name, true);
	if (rc && dir_fd >= 0)
		remove_images(c, parent_fd, dir_fd, temp);
	else if (!rc)
		fsync(parent_fd);
	if (dir_fd >= 0)
		close(dir_fd);
	close(parent_fd);
	if (nr_unreadable)
		*nr_unreadable = j.nr_unreadable;
	return rc;
}
