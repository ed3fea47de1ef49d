/* SPDX-License-Identifier: MIT */
/*
 * Files, descriptors and memory as sinks and sources.
 *
 * A new file is written under a temporary name in its own folder (readers skip names that begin with a dot) and renamed when it
 * is whole and durable. The writer of a temporary file holds a flock on it, so that whoever holds the folder's lock can tell
 * those of dead writers from those of living ones in any pid namespace, and remove them.
 *
 * A failed write or fsync is final: the kernel may have dropped the data and marked it clean, so that a later fsync of
 * the same file would report success for bytes that are not there.
 *
 * write() runs on threads of the library while the rest of the own process may be stopped: no malloc, no stdio.
 */
#include "store.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TEMP_PREFIX ".wpt-"
#define TEMP_SUFFIX ".tmp"
#define TEMP_TRIES 16
#define HELD_BYTES 128u /* a link's trailer */

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE (1 << 0)
#endif

struct file_sink {
	struct wpt_sink sink;
	pid_t owner;         /* a forked child must not remove its parent's file */
	int error;           /* sticky */
	bool sync;
	bool committed;
	int fd;
	bool positioned;     /* write at `pos`, else where the descriptor stands */
	uint64_t pos;
	bool cut;            /* give up: truncate to `start` */
	uint64_t start;
	bool hold;           /* the last HELD_BYTES wait for commit: */
	uint8_t held[HELD_BYTES];
	size_t nr_held;
	int dir_fd;          /* a new file in a folder, else -1 */
	char temp[48];       /* its name while there is one */
	bool replace;        /* what has the name already */
	int (*check)(void *arg, int dir_fd, const char *temp);
	void *arg;
	char name[NAME_MAX + 1];
};

/*
 * A write to a pipe without a reader and one beyond RLIMIT_FSIZE raise a signal that ends a process which does not expect
 * it. Both are sent to the writing thread: blocked around the write and consumed, unless one was pending already.
 */
struct quiet {
	sigset_t before;
	sigset_t consume;
};

static void quiet_begin(struct quiet *q)
{
	static const int signals[] = { SIGPIPE, SIGXFSZ };
	sigset_t pending;

	sigemptyset(&q->consume);
	sigemptyset(&pending);
	sigpending(&pending);
	for (size_t i = 0; i < WPT_ARRAY_SIZE(signals); i++) {
		if (!sigismember(&pending, signals[i]))
			sigaddset(&q->consume, signals[i]);
	}
	pthread_sigmask(SIG_BLOCK, &q->consume, &q->before);
}

static void quiet_end(struct quiet *q, int err)
{
	const struct timespec now = { 0, 0 };

	if (err == -EPIPE || err == -EFBIG) {
		while (sigtimedwait(&q->consume, NULL, &now) < 0 && errno == EINTR)
			;
	}
	pthread_sigmask(SIG_SETMASK, &q->before, NULL);
}

static int write_some(struct file_sink *f, const void *data, size_t len)
{
	struct pollfd p = { .fd = f->fd, .events = POLLOUT };
	ssize_t n;

	if (f->positioned)
		n = pwrite(f->fd, data, len, (off_t)f->pos);
	else
		n = write(f->fd, data, len);
	if (n > 0)
		return (int)WPT_MIN(n, INT_MAX);
	if (n == 0)
		return -EIO;
	if (errno == EINTR)
		return 0;
	if (errno != EAGAIN)
		return -errno;
	return poll(&p, 1, -1) < 0 && errno != EINTR ? -errno : 0;
}

static int write_all(struct file_sink *f, const void *data, size_t len)
{
	const char *p = data;
	struct quiet q;
	int n = 0;

	f->sink.begun = true;
	quiet_begin(&q);
	while (len) {
		n = write_some(f, p, WPT_MIN(len, (size_t)1 << 30));
		if (n < 0)
			break;
		p += n;
		len -= (size_t)n;
		f->pos += (uint64_t)n;
	}
	quiet_end(&q, n);
	return WPT_MIN(n, 0);
}

static int file_check(struct file_sink *f)
{
	if (getpid() != f->owner)
		return -WPT_E_FORKED;
	if (f->error)
		return f->error;
	return f->committed ? -EINVAL : 0;
}

/* Writes all but the last HELD_BYTES of what there is so far. */
static int hold_back(struct file_sink *f, const uint8_t *data, size_t len)
{
	size_t out = f->nr_held + len > HELD_BYTES ? f->nr_held + len - HELD_BYTES : 0, first = WPT_MIN(out, f->nr_held);
	int rc = first ? write_all(f, f->held, first) : 0;

	if (!rc && out > first)
		rc = write_all(f, data, out - first);
	f->nr_held -= first;
	memmove(f->held, f->held + first, f->nr_held);
	memcpy(f->held + f->nr_held, data + (out - first), len - (out - first));
	f->nr_held += len - (out - first);
	return rc;
}

static int file_write(struct wpt_sink *s, const void *data, size_t len)
{
	struct file_sink *f = (struct file_sink *)s;
	int rc = file_check(f);

	if (rc)
		return rc;
	f->error = f->hold ? hold_back(f, data, len) : write_all(f, data, len);
	return f->error;
}

/* Pipes, sockets and some file systems' folders have no fsync, and lose nothing by it. */
static int sync_fd(int fd)
{
	int rc;

	do {
		rc = fsync(fd);
	} while (rc < 0 && errno == EINTR);
	return rc < 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS ? -errno : 0;
}

static int rename_new(struct file_sink *f)
{
	if (!syscall(SYS_renameat2, f->dir_fd, f->temp, f->dir_fd, f->name, RENAME_NOREPLACE))
		return 0;
	if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP)
		return -errno;
	/* If this process dies in between, the second name goes with the other stale temporary files. */
	if (linkat(f->dir_fd, f->temp, f->dir_fd, f->name, 0))
		return -errno;
	unlinkat(f->dir_fd, f->temp, 0);
	return 0;
}

static bool is_same_file(int fd, int dir_fd, const char *name)
{
	struct stat a, b;

	return !fstat(fd, &a) && !fstatat(dir_fd, name, &b, AT_SYMLINK_NOFOLLOW) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Which of the two files the disk has after a failed fsync is not known: either will do, so neither is removed. */
static int publish_over(struct file_sink *f)
{
	int rc = f->check ? f->check(f->arg, f->dir_fd, f->temp) : 0;

	if (rc)
		return rc;
	if (renameat(f->dir_fd, f->temp, f->dir_fd, f->name))
		return -errno;
	f->temp[0] = '\0';
	flock(f->fd, LOCK_UN);
	return f->sync ? sync_fd(f->dir_fd) : 0;
}

static int publish(struct file_sink *f)
{
	int rc;

	if (f->replace)
		return publish_over(f);
	rc = rename_new(f);
	if (rc)
		return rc;
	f->temp[0] = '\0';
	rc = f->sync ? sync_fd(f->dir_fd) : 0;
	/* Reported as failed, so the same pages will be in the next link too: it must not compete with this one. */
	if (rc && is_same_file(f->fd, f->dir_fd, f->name))
		unlinkat(f->dir_fd, f->name, 0);
	else
		flock(f->fd, LOCK_UN);
	return rc;
}

/* Who may read the file that is replaced may read this one. */
static int inherit(struct file_sink *f)
{
	struct stat old, st;

	if (fstatat(f->dir_fd, f->name, &old, AT_SYMLINK_NOFOLLOW))
		return errno == ENOENT ? 0 : -errno;
	if (fstat(f->fd, &st))
		return -errno;
	if ((st.st_uid != old.st_uid || st.st_gid != old.st_gid) && fchown(f->fd, old.st_uid, old.st_gid))
		return -errno;
	return fchmod(f->fd, old.st_mode & 0777) ? -errno : 0;
}

static int file_commit(struct wpt_sink *s)
{
	struct file_sink *f = (struct file_sink *)s;
	int rc = file_check(f);

	if (!rc && f->replace)
		rc = inherit(f);
	if (rc)
		return rc;
	if (f->sync)
		rc = sync_fd(f->fd);
	if (!rc && f->nr_held) {
		rc = write_all(f, f->held, f->nr_held);
		if (!rc)
			rc = sync_fd(f->fd);
	}
	if (!rc && f->dir_fd >= 0)
		rc = publish(f);
	f->error = rc;
	f->committed = !rc;
	return rc;
}

static void give_up(struct file_sink *f)
{
	if (f->temp[0])
		unlinkat(f->dir_fd, f->temp, 0);
	if (!f->cut)
		return;
	/* Nothing to do about an error here: what is left is a torn tail, which readers ignore and the next append cuts off. */
	if (!ftruncate(f->fd, (off_t)f->start) && f->sync)
		sync_fd(f->fd);
	if (!f->positioned)
		lseek(f->fd, (off_t)f->start, SEEK_SET);
}

static void file_close(struct wpt_sink *s)
{
	struct file_sink *f = (struct file_sink *)s;

	if (!f)
		return;
	if (!f->committed && f->owner == getpid())
		give_up(f);
	if (f->dir_fd >= 0) {
		if (f->fd >= 0)
			close(f->fd);
		close(f->dir_fd);
	}
	free(f);
}

static struct file_sink *file_alloc(int fd, bool sync)
{
	struct file_sink *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->sink.write = file_write;
	f->sink.commit = file_commit;
	f->sink.close = file_close;
	f->owner = getpid();
	f->sync = sync;
	f->fd = fd;
	f->dir_fd = -1;
	return f;
}

/*
 * 1: a cleaner (see remove_stale()) came between creation and flock, and has removed the file or will: take another name. A file system
 * without flock has no cleaner either.
 */
static int temp_claim(int fd)
{
	struct stat st;

	if (flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
		return 1;
	if (fstat(fd, &st))
		return -errno;
	return st.st_nlink == 0;
}

static int temp_open(struct file_sink *f)
{
	uint64_t random;
	int fd, rc;

	for (int i = 0; i < TEMP_TRIES; i++) {
		if (getrandom(&random, sizeof(random), 0) != (ssize_t)sizeof(random))
			return -EIO;
		snprintf(f->temp, sizeof(f->temp), TEMP_PREFIX "%ld-%016llx" TEMP_SUFFIX, (long)f->owner,
			 (unsigned long long)random);
		fd = openat(f->dir_fd, f->temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (fd < 0) {
			rc = -errno;
			f->temp[0] = '\0';
			if (rc != -EEXIST)
				return rc;
			continue;
		}
		rc = temp_claim(fd);
		if (rc <= 0) {
			f->fd = fd;
			return rc;
		}
		close(fd);
	}
	f->temp[0] = '\0';
	return -EEXIST;
}

static int sink_in_folder(struct file_sink **out, int dir_fd, const char *name, bool sync, bool replace)
{
	struct file_sink *f;
	struct stat st;
	int rc;

	if (!name[0] || name[0] == '.' || strchr(name, '/'))
		return -EINVAL;
	if (strlen(name) > NAME_MAX)
		return -ENAMETOOLONG;
	f = file_alloc(-1, sync);
	if (!f)
		return -ENOMEM;
	strcpy(f->name, name);
	f->dir_fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f->dir_fd < 0) {
		rc = -errno;
		goto fail;
	}
	f->replace = replace;
	if (!replace && !fstatat(f->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW)) {
		rc = -EEXIST;
		goto fail;
	}
	rc = temp_open(f);
	if (rc)
		goto fail;
	*out = f;
	return 0;
fail:
	file_close(&f->sink);
	return rc;
}

int wpt_sink_folder(struct wpt_sink **out, int dir_fd, const char *name, bool sync)
{
	struct file_sink *f;
	int rc = sink_in_folder(&f, dir_fd, name, sync, false);

	if (!rc)
		*out = &f->sink;
	return rc;
}

int wpt_sink_replace(struct wpt_sink **out, int dir_fd, const char *name, bool sync,
		     int (*check)(void *arg, int dir_fd, const char *temp), void *arg)
{
	struct file_sink *f;
	int rc = sink_in_folder(&f, dir_fd, name, sync, true);

	if (rc)
		return rc;
	f->check = check;
	f->arg = arg;
	*out = &f->sink;
	return 0;
}

int wpt_sink_file(struct wpt_sink **out, const char *path, bool sync)
{
	const char *base = strrchr(path, '/');
	char dir[PATH_MAX];
	size_t len;
	int dir_fd, rc;

	if (!strcmp(path, "-"))
		return wpt_sink_fd(out, STDOUT_FILENO, sync);
	base = base ? base + 1 : path;
	len = (size_t)(base - path);
	if (len >= sizeof(dir))
		return -ENAMETOOLONG;
	if (!base[0])
		return path[0] ? -EISDIR : -ENOENT;
	memcpy(dir, path, len);
	dir[len] = '\0';
	dir_fd = open(len ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return -errno;
	rc = wpt_sink_folder(out, dir_fd, base, sync);
	close(dir_fd);
	return rc;
}

int wpt_sink_fd(struct wpt_sink **out, int fd, bool sync)
{
	struct file_sink *f;
	struct stat st;
	int flags = fcntl(fd, F_GETFL);
	off_t at;

	if (flags < 0 || fstat(fd, &st))
		return -errno;
	if ((flags & O_ACCMODE) == O_RDONLY)
		return -EBADF;
	f = file_alloc(fd, sync);
	if (!f)
		return -ENOMEM;
	/* A link that failed must not stand between two good ones: where it was added at the end of a file, it can be cut off. */
	at = flags & O_APPEND ? st.st_size : lseek(fd, 0, SEEK_CUR);
	if (S_ISREG(st.st_mode) && at >= st.st_size) {
		f->cut = true;
		f->start = (uint64_t)at;
	}
	*out = &f->sink;
	return 0;
}

int wpt_sink_append(struct wpt_sink **out, int fd, uint64_t offset, bool sync)
{
	struct file_sink *f;
	struct stat st;
	int rc;

	if (fstat(fd, &st))
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_size < 0 || (uint64_t)st.st_size < offset)
		return -EINVAL;
	rc = wpt_store_lock(fd);
	if (rc)
		return rc;
	f = file_alloc(fd, sync);
	if (!f)
		return -ENOMEM;
	if ((uint64_t)st.st_size > offset && ftruncate(fd, (off_t)offset)) {
		rc = -errno;
		free(f);
		return rc;
	}
	f->positioned = true;
	f->pos = offset;
	f->cut = true;
	f->start = offset;
	/* A machine that crashes may keep the end of what was written and lose what lies before: a trailer must find its link on the disk. */
	f->hold = sync;
	*out = &f->sink;
	return 0;
}

/* ---- memory ---- */

struct memory_sink {
	struct wpt_sink sink;
	int error;
	bool committed;
	char *data;
	size_t len, mapped;
	const void **data_out;
	size_t *len_out;
};

static int memory_grow(struct memory_sink *m, size_t len)
{
	size_t want = WPT_MAX(m->mapped * 2, (size_t)64 << 10);
	void *p;

	while (want < len) {
		if (want > SIZE_MAX / 2)
			return -ENOMEM;
		want *= 2;
	}
	if (m->data)
		p = mremap(m->data, m->mapped, want, MREMAP_MAYMOVE);
	else
		p = mmap(NULL, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return -ENOMEM;
	m->data = p;
	m->mapped = want;
	return 0;
}

static int memory_write(struct wpt_sink *s, const void *data, size_t len)
{
	struct memory_sink *m = (struct memory_sink *)s;
	size_t total;

	if (m->error || m->committed)
		return m->error ? m->error : -EINVAL;
	if (__builtin_add_overflow(m->len, len, &total))
		m->error = -ENOMEM;
	else if (total > m->mapped)
		m->error = memory_grow(m, total);
	if (m->error)
		return m->error;
	if (len)
		memcpy(m->data + m->len, data, len);
	m->len = total;
	return 0;
}

static int memory_commit(struct wpt_sink *s)
{
	struct memory_sink *m = (struct memory_sink *)s;

	if (m->error || m->committed)
		return m->error ? m->error : -EINVAL;
	m->committed = true;
	*m->data_out = m->data;
	*m->len_out = m->len;
	return 0;
}

static void memory_close(struct wpt_sink *s)
{
	struct memory_sink *m = (struct memory_sink *)s;

	if (!m)
		return;
	if (m->data)
		munmap(m->data, m->mapped);
	free(m);
}

int wpt_sink_memory(struct wpt_sink **out, const void **data, size_t *len)
{
	struct memory_sink *m = calloc(1, sizeof(*m));

	if (!m)
		return -ENOMEM;
	m->sink.write = memory_write;
	m->sink.commit = memory_commit;
	m->sink.close = memory_close;
	m->data_out = data;
	m->len_out = len;
	*data = NULL;
	*len = 0;
	*out = &m->sink;
	return 0;
}

/* ---- sources ---- */

struct file_source {
	struct wpt_source source;
	int fd;
};

static bool beyond(const struct wpt_source *s, uint64_t offset, size_t len)
{
	return offset > s->size || len > s->size - offset;
}

static int file_read(struct wpt_source *s, uint64_t offset, void *buf, size_t len)
{
	struct file_source *f = (struct file_source *)s;
	char *p = buf;
	ssize_t n;

	if (beyond(s, offset, len))
		return -WPT_E_TRUNCATED;
	while (len) {
		n = pread(f->fd, p, WPT_MIN(len, (size_t)1 << 30), (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -WPT_E_TRUNCATED;
		p += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static void file_source_close(struct wpt_source *s)
{
	struct file_source *f = (struct file_source *)s;

	if (!f)
		return;
	close(f->fd);
	free(f);
}

int wpt_source_file(struct wpt_source **out, int dir_fd, const char *path)
{
	struct file_source *f;
	struct stat st;
	int fd, rc;

	/* O_NONBLOCK: a pipe by that name is refused, not waited for. */
	fd = openat(dir_fd, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st)) {
		rc = -errno;
		goto fail;
	}
	if (!S_ISREG(st.st_mode)) {
		rc = S_ISDIR(st.st_mode) ? -EISDIR : -WPT_E_NOT_SNAPSHOT;
		goto fail;
	}
	f = calloc(1, sizeof(*f));
	if (!f) {
		rc = -ENOMEM;
		goto fail;
	}
	f->source.read = file_read;
	f->source.size = (uint64_t)st.st_size;
	f->source.dev = st.st_dev;
	f->source.ino = st.st_ino;
	f->source.close = file_source_close;
	f->fd = fd;
	*out = &f->source;
	return 0;
fail:
	close(fd);
	return rc;
}

struct memory_source {
	struct wpt_source source;
	const char *data;
};

static int memory_read(struct wpt_source *s, uint64_t offset, void *buf, size_t len)
{
	struct memory_source *m = (struct memory_source *)s;

	if (beyond(s, offset, len))
		return -WPT_E_TRUNCATED;
	if (len)
		memcpy(buf, m->data + offset, len);
	return 0;
}

static void memory_source_close(struct wpt_source *s)
{
	free((struct memory_source *)s);
}

int wpt_source_memory(struct wpt_source **out, const void *data, size_t len)
{
	struct memory_source *m = calloc(1, sizeof(*m));

	if (!m)
		return -ENOMEM;
	m->source.read = memory_read;
	m->source.size = len;
	m->source.close = memory_source_close;
	m->data = data;
	*out = &m->source;
	return 0;
}

/* ---- lock ---- */

static bool is_temp_name(const char *name)
{
	size_t len = strlen(name);

	return !strncmp(name, TEMP_PREFIX, strlen(TEMP_PREFIX)) && len > strlen(TEMP_PREFIX TEMP_SUFFIX) &&
	       !strcmp(name + len - strlen(TEMP_SUFFIX), TEMP_SUFFIX);
}

/* Temporary files that nobody holds locked have lost their writer. Not being able to remove one is no error. */
static void remove_stale(int dir_fd)
{
	int scan_fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = scan_fd < 0 ? NULL : fdopendir(scan_fd);
	struct dirent *entry;
	struct stat st;
	int fd;

	if (!dir) {
		if (scan_fd >= 0)
			close(scan_fd);
		return;
	}
	while ((entry = readdir(dir))) {
		if (!is_temp_name(entry->d_name))
			continue;
		fd = openat(dir_fd, entry->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		if (fd < 0)
			continue;
		if (!fstat(fd, &st) && S_ISREG(st.st_mode) && !flock(fd, LOCK_EX | LOCK_NB))
			unlinkat(dir_fd, entry->d_name, 0);
		close(fd);
	}
	closedir(dir);
}

static int lock_fd(int fd)
{
	int rc;

	do {
		rc = flock(fd, LOCK_EX | LOCK_NB);
	} while (rc < 0 && errno == EINTR);
	if (rc < 0)
		return errno == EWOULDBLOCK ? -WPT_E_LOCKED : -errno;
	return 0;
}

/* Whoever owns the folder is to be able to lock it, too: not that being so is no error, as in a folder of a group. */
static int open_lock(int dir_fd, const struct stat *dir)
{
	const int flags = O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
	int fd = openat(dir_fd, ".lock", flags | O_CREAT | O_EXCL, 0600);

	if (fd < 0)
		return errno == EEXIST ? openat(dir_fd, ".lock", flags | O_CREAT, 0600) : -1;
	if (dir->st_uid != geteuid() && fchown(fd, dir->st_uid, dir->st_gid))
		errno = 0;
	return fd;
}

int wpt_store_lock(int fd)
{
	struct stat st;
	int lock, rc;

	if (fstat(fd, &st))
		return -errno;
	if (!S_ISDIR(st.st_mode))
		return lock_fd(fd);
	rc = open_lock(fd, &st);
	if (rc < 0)
		return -errno;
	/* Never one of the standard descriptors, and never 0, which says that the lock is on `fd` itself. */
	lock = fcntl(rc, F_DUPFD_CLOEXEC, 3);
	if (lock < 0) {
		lock = -errno;
		close(rc);
		return lock;
	}
	close(rc);
	rc = lock_fd(lock);
	if (rc) {
		close(lock);
		return rc;
	}
	remove_stale(fd);
	return lock;
}

int wpt_store_sync(int dir_fd, const char *name)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC), rc;

	if (fd < 0)
		return -errno;
	rc = sync_fd(fd);
	close(fd);
	return rc;
}

int wpt_store_sync_name(const char *path)
{
	size_t len = strlen(path);
	char dir[PATH_MAX];
	int fd, rc;

	while (len > 1 && path[len - 1] == '/')
		len--;
	while (len && path[len - 1] != '/')
		len--;
	if (len >= sizeof(dir))
		return -ENAMETOOLONG;
	memcpy(dir, len ? path : ".", len ? len : 1);
	dir[len ? len : 1] = '\0';
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == EACCES ? 0 : -errno;
	rc = sync_fd(fd);
	close(fd);
	return rc;
}
