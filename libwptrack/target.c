/* SPDX-License-Identifier: MIT */
/*
 * Opening a target, and reading its memory.
 *
 * What is read must be memory of the process that was attached to, never of whoever has its pid now or of the program that it executed
 * since. /proc/PID/mem, pagemap and maps are opened once and belong to the memory itself; they read nothing once it is gone.
 * process_vm_readv() is several times faster but follows the pid; see token in target_impl.h.
 */
#include "target_impl.h"

#include <elf.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include "kern.h"
#include "proc.h"
#include "sys.h"

#define STAMP 0x7770747261636b21u
#define BATCH 256      /* pieces of one process_vm_readv() */
#define ATTACH_RETRIES 5
#define MEM_STEP 65536 /* bytes read through `mem` before process_vm_readv() is tried again */

int wpt_target_check(const struct wpt_target *t)
{
	return *(volatile uint64_t *)t->stamp == STAMP ? 0 : -WPT_E_FORKED;
}

static int target_new(struct wpt_target **out, const struct wpt_log *log)
{
	struct wpt_target *t;

	t = wpt_vm_alloc(sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->pidfd = t->proc = t->task = t->mem = t->pagemap = t->maps = t->inotify = -1;
	t->uffd = -WPT_E_UNSUPPORTED;
	if (log)
		t->log = *log;
	t->stamp = wpt_vm_alloc(sizeof(*t->stamp));
	if (!t->stamp || madvise(t->stamp, sizeof(*t->stamp), MADV_WIPEONFORK)) {
		wpt_target_close(t);
		return -ENOMEM;
	}
	*t->stamp = STAMP;
	*out = t;
	return 0;
}

void wpt_target_close(struct wpt_target *t)
{
	if (!t)
		return;
	if (t->stop)
		wpt_target_resume(t);
	wpt_stop_free(t->stop);
	wpt_fd_close(&t->inotify);
	wpt_fd_close(&t->uffd);
	wpt_fd_close(&t->maps);
	wpt_fd_close(&t->pagemap);
	wpt_fd_close(&t->mem);
	wpt_fd_close(&t->task);
	wpt_fd_close(&t->proc);
	wpt_fd_close(&t->pidfd);
	wpt_vm_free(t->stamp, sizeof(*t->stamp));
	wpt_vm_free(t, sizeof(*t));
}

/* WP_ASYNC implies what it needs; the two others are asked for where the kernel has them, for shared memory and unprotected holes. */
static int uffd_handshake(int fd, enum wpt_uffd uffd)
{
	static const uint64_t wishes[] = {
		UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP,
		UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	static const uint64_t sync_wishes[] = {
		WPT_KERN_SYNC_FEATURES | UFFD_FEATURE_THREAD_ID,
		UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_THREAD_ID,
	};
	struct uffdio_api api = { .api = UFFD_API, .features = WPT_KERN_MISSING_FEATURES };
	size_t i;

	if (uffd == WPT_UFFD_MISSING)
		return wpt_sys(SYS_ioctl, fd, UFFDIO_API, &api) ? -WPT_E_UNSUPPORTED : 0;
	for (i = 0; i < WPT_ARRAY_SIZE(wishes); i++) {
		memset(&api, 0, sizeof(api));
		api.api = UFFD_API;
		api.features = uffd == WPT_UFFD_SYNC ? sync_wishes[i] : wishes[i] | (uffd == WPT_UFFD_WRITTEN ? UFFD_FEATURE_WP_WRITTEN : 0);
		if (!wpt_sys(SYS_ioctl, fd, UFFDIO_API, &api))
			return 0;
	}
	return -WPT_E_UNSUPPORTED;
}

/* Whoever may open the device needs no other right. */
static int uffd_of_device(void)
{
	int device = (int)wpt_sys(SYS_openat, AT_FDCWD, "/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd;

	if (device < 0)
		return -EPERM;
	fd = (int)wpt_sys(SYS_ioctl, device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	wpt_fd_close(&device);
	return fd < 0 ? -EPERM : fd;
}

/* Those of system calls too. */
static bool needs_all_faults(enum wpt_uffd uffd)
{
	return uffd == WPT_UFFD_SYNC || uffd == WPT_UFFD_MISSING;
}

static int uffd_self(enum wpt_uffd uffd)
{
	int fd, rc;

	if (uffd == WPT_UFFD_NONE)
		return -WPT_E_UNSUPPORTED;
	fd = needs_all_faults(uffd) ? -EINVAL : (int)wpt_sys(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd == -EINVAL)
		fd = (int)wpt_sys(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd == -EPERM)
		fd = uffd_of_device();
	if (fd < 0)
		return fd == -ENOSYS ? -WPT_E_UNSUPPORTED : fd;
	rc = uffd_handshake(fd, uffd);
	if (rc)
		wpt_fd_close(&fd);
	return rc ? rc : fd;
}

ssize_t wpt_mem_pread(int mem, void *buf, size_t len, uint64_t addr)
{
	ssize_t n;

	do {
#ifdef __LP64__
		n = wpt_sys(SYS_pread64, mem, buf, len, addr);
#else
		n = pread64(mem, buf, len, (off64_t)addr);
		n = n < 0 ? -errno : n;
#endif
	} while (n == -EINTR);
	return n;
}

static int open_at(int dir, const char *prefix, pid_t tid, const char *name)
{
	char path[64];
	int fd;

	fd = (int)wpt_sys(SYS_openat, dir, wpt_proc_path(path, prefix, (uint64_t)tid, name), O_RDONLY | O_CLOEXEC);
	if (fd == -ENOENT)
		return -ESRCH;
	return fd == -EACCES ? -EPERM : fd;
}

/*
 * Where the kernel put the program's random bytes; 0 if that can't be told (a target of another word size), -ESRCH while a program is
 * being executed: it has no list yet.
 */
static int find_token(int task, pid_t tid, uint64_t *addr)
{
	unsigned long words[128];
	char path[64];
	ssize_t n;
	size_t i;

	n = wpt_proc_read(task, wpt_proc_path(path, "", (uint64_t)tid, "/auxv"), (char *)words, sizeof(words));
	*addr = 0;
	if (n < (ssize_t)sizeof(words[0]) || !words[0])
		return n < 0 && n != -ENOENT ? (int)n : -ESRCH;
	for (i = 0; i + 1 < (size_t)n / sizeof(words[0]); i += 2)
		if (words[i] == AT_RANDOM)
			*addr = words[i + 1];
	return 0;
}

struct open_memory {
	struct wpt_target *t;
	int rc;
};

/* Memory of one thread: a leader that exited before the others has none. */
static int open_thread(void *arg, uint64_t tid)
{
	struct open_memory *o = arg;
	struct wpt_target *t = o->t;
	ssize_t n = -EIO;

	wpt_fd_close(&t->mem);
	wpt_fd_close(&t->pagemap);
	wpt_fd_close(&t->maps);
	t->mem = open_at(t->task, "", (pid_t)tid, "/mem");
	t->pagemap = open_at(t->task, "", (pid_t)tid, "/pagemap");
	t->maps = open_at(t->task, "", (pid_t)tid, "/maps");
	o->rc = WPT_MIN(WPT_MIN(t->mem, t->pagemap), t->maps);
	if (o->rc >= 0)
		o->rc = find_token(t->task, (pid_t)tid, &t->token_addr);
	if (o->rc < 0) {
		if (wpt_proc_is_exiting(t->task, tid))
			o->rc = -ESRCH;
		return o->rc == -ESRCH ? 0 : o->rc;
	}
	if (t->token_addr)
		n = wpt_mem_pread(t->mem, t->token, WPT_TOKEN_BYTES, t->token_addr);
	if (n != 0 && n != WPT_TOKEN_BYTES)
		n = wpt_mem_pread(t->mem, t->token, 1, 0) == 0 ? 0 : -EIO;
	if (n == 0) {
		o->rc = -WPT_E_GONE;
		return 0;
	}
	t->token_valid = n == WPT_TOKEN_BYTES;
	t->vm_tid = (pid_t)tid;
	return 1;
}

static int open_memory(struct wpt_target *t)
{
	struct open_memory o = { t, -ESRCH };
	int rc;

	rc = wpt_proc_numbers(t->task, open_thread, &o);
	if (rc > 0)
		return 0;
	if (rc == -ENOENT || rc == -ESRCH || o.rc == -ESRCH)
		return -WPT_E_GONE;
	return rc ? rc : o.rc;
}

int wpt_target_self(struct wpt_target **out, enum wpt_uffd uffd, const struct wpt_log *log)
{
	struct wpt_proc_stat st;
	struct wpt_target *t;
	int rc;

	rc = target_new(&t, log);
	if (rc)
		return rc;
	t->self = true;
	t->pid = t->vm_tid = getpid();
	rc = t->proc = wpt_proc_open(t->pid);
	if (rc < 0)
		goto fail;
	rc = wpt_proc_stat(t->proc, "stat", &st);
	if (rc)
		goto fail;
	t->start_time = st.start_time;
	memcpy(t->comm, st.comm, sizeof(t->comm));
	t->mem = open_at(AT_FDCWD, "/proc/self/task/", gettid(), "/mem");
	t->pagemap = open_at(AT_FDCWD, "/proc/self/task/", gettid(), "/pagemap");
	t->maps = open_at(AT_FDCWD, "/proc/self/task/", gettid(), "/maps");
	rc = WPT_MIN(WPT_MIN(t->mem, t->pagemap), t->maps);
	if (rc < 0)
		goto fail;
	t->uffd = uffd_self(uffd);
	*out = t;
	return 0;
fail:
	wpt_target_close(t);
	return rc;
}

static int attach_uffd(struct wpt_target *t, enum wpt_uffd uffd, uint64_t deadline)
{
	int rc;

	t->uffd = wpt_target_inject(t, needs_all_faults(uffd), uffd == WPT_UFFD_MISSING, deadline);
	if (t->uffd < 0)
		return t->uffd;
	rc = uffd_handshake(t->uffd, uffd);
	return rc ? rc : wpt_target_alive(t);
}

/* The pid's folder is opened before the descriptor of the process is asked whether it still lives: then both are the same process. */
static int attach_open(struct wpt_target *t, pid_t pid)
{
	struct wpt_proc_stat before, after;
	int rc;

	t->pid = pid;
	if (pid <= 0 || pid == getpid())
		return -EINVAL;
	rc = t->pidfd = (int)wpt_sys(SYS_pidfd_open, pid, 0);
	if (rc < 0)
		return rc == -EINVAL || rc == -ENOENT ? -ESRCH : rc; /* the id of a thread is not a process */
	rc = t->proc = wpt_proc_open(pid);
	if (rc < 0)
		return rc;
	rc = wpt_proc_stat(t->proc, "stat", &before);
	if (rc)
		return rc;
	if (before.flags & PF_KTHREAD) /* no memory of its own */
		return -EPERM;
	rc = t->task = (int)wpt_sys(SYS_openat, t->proc, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (rc < 0)
		return rc == -ENOENT ? -ESRCH : rc;
	rc = open_memory(t);
	if (rc)
		return rc;
	rc = wpt_proc_stat(t->proc, "stat", &after);
	if (rc)
		return rc;
	if (before.start_time != after.start_time)
		return -WPT_E_GONE;
	t->start_time = after.start_time;
	memcpy(t->comm, after.comm, sizeof(t->comm));
	return wpt_target_alive(t);
}

static int attach_once(struct wpt_target **out, pid_t pid, uint32_t stop_timeout_ms, enum wpt_uffd uffd, const struct wpt_log *log)
{
	struct wpt_target *t;
	int rc;

	rc = target_new(&t, log);
	if (rc)
		return rc;
	t->stop_timeout_ms = stop_timeout_ms ? stop_timeout_ms : 100;
	rc = attach_open(t, pid);
	if (!rc && uffd != WPT_UFFD_NONE)
		rc = attach_uffd(t, uffd, wpt_now_ns() + t->stop_timeout_ms * UINT64_C(1000000));
	if (rc) {
		wpt_target_close(t);
		return rc;
	}
	*out = t;
	return 0;
}

/* A process that executes a program just now is tried again: it is there, and the new program is what to attach to. */
int wpt_target_attach(struct wpt_target **out, pid_t pid, uint32_t stop_timeout_ms, enum wpt_uffd uffd, const struct wpt_log *log)
{
	const struct timespec pause = { 0, 500000 };
	struct wpt_proc_stat st;
	int rc, proc, i;
	bool exists;

	for (i = 0;; i++) {
		rc = attach_once(out, pid, stop_timeout_ms, uffd, log);
		if ((rc != -WPT_E_GONE && rc != -EAGAIN) || i == ATTACH_RETRIES)
			return rc;
		proc = wpt_proc_open(pid);
		exists = proc >= 0 && !wpt_proc_stat(proc, "stat", &st) && st.state != 'X';
		wpt_fd_close(&proc);
		if (!exists || (st.state == 'Z' && i > 0))
			return rc;
		nanosleep(&pause, NULL);
	}
}

pid_t wpt_target_pid(const struct wpt_target *t)
{
	return t->pid;
}

bool wpt_target_is_self(const struct wpt_target *t)
{
	return t->self;
}

uint64_t wpt_target_start_time(const struct wpt_target *t)
{
	return t->start_time;
}

int wpt_target_uffd(const struct wpt_target *t)
{
	return t->uffd;
}

int wpt_target_pagemap(const struct wpt_target *t)
{
	return t->pagemap;
}

void wpt_target_comm(const struct wpt_target *t, char comm[64])
{
	memcpy(comm, t->comm, sizeof(t->comm));
}

static ssize_t vm_readv(pid_t tid, const struct iovec *local, size_t nr_local, const struct iovec *remote, size_t nr_remote)
{
	return wpt_sys(SYS_process_vm_readv, tid, local, nr_local, remote, nr_remote, 0);
}

/*
 * The thread's memory shows other random bytes than the attached program had, or none at that address. Either it executed another
 * program, or it wrote over them, which the descriptor that belongs to the memory tells.
 */
static int token_changed(struct wpt_target *t)
{
	uint8_t now[WPT_TOKEN_BYTES];
	ssize_t n = wpt_mem_pread(t->mem, now, sizeof(now), t->token_addr);

	if (n == 0 || (n == sizeof(now) && !memcmp(now, t->token, sizeof(now))))
		return -WPT_E_GONE;
	t->token_valid = false;
	return 0;
}

int wpt_target_alive(struct wpt_target *t)
{
	uint8_t now[WPT_TOKEN_BYTES];
	struct iovec local = { now, sizeof(now) }, remote;
	struct pollfd pfd = { t->pidfd, POLLIN, 0 };
	ssize_t n;
	int rc;

	rc = wpt_target_check(t);
	if (rc || t->self)
		return rc;
	if (poll(&pfd, 1, 0) > 0)
		return -WPT_E_GONE;
	if (wpt_stop_lost(t->stop))
		return -WPT_E_STOP_TIMEOUT;
	if (wpt_mem_pread(t->mem, now, 1, t->token_addr) == 0)
		return -WPT_E_GONE;
	if (!t->token_valid)
		return 0;
	remote.iov_base = (void *)(uintptr_t)t->token_addr;
	remote.iov_len = sizeof(now);
	n = vm_readv(t->vm_tid, &local, 1, &remote, 1);
	if (n == -ESRCH) /* that thread ended; after exec by another one only the process's own id is left */
		n = vm_readv(t->pid, &local, 1, &remote, 1);
	if (n == -EFAULT || (n == sizeof(now) && memcmp(now, t->token, sizeof(now))))
		return token_changed(t);
	return 0;
}

/* Where a readv stands. */
struct cursor {
	const struct wpt_piece *pieces;
	size_t nr, i;
	uint64_t off; /* in piece i */
	char *buf;
};

static void cursor_advance(struct cursor *c, size_t n)
{
	c->buf += n;
	c->off += n;
	while (c->i < c->nr && c->off >= c->pieces[c->i].len)
		c->off -= c->pieces[c->i++].len;
}

/* One system call. Returns bytes, *all says whether it was all that was asked for. Errors count as nothing read: `mem` tells why. */
static size_t read_batch(struct wpt_target *t, const struct cursor *c, bool *all)
{
	uint8_t token[WPT_TOKEN_BYTES];
	struct iovec local[2], remote[BATCH + 1];
	size_t nr = 0, i, len = 0, check = t->self ? 0 : sizeof(token);
	uint64_t off = c->off;
	ssize_t n;

	*all = false;
	if (check) {
		if (!t->token_valid)
			return 0;
		remote[nr].iov_base = (void *)(uintptr_t)t->token_addr;
		remote[nr++].iov_len = check;
	}
	for (i = c->i; i < c->nr && nr <= BATCH && len < (1u << 30); i++, off = 0) {
		remote[nr].iov_base = (void *)(uintptr_t)(c->pieces[i].addr + off);
		remote[nr].iov_len = (size_t)WPT_MIN(c->pieces[i].len - off, (uint64_t)((1u << 30) - len));
		len += remote[nr++].iov_len;
	}
	local[0].iov_base = token;
	local[0].iov_len = check;
	local[1].iov_base = c->buf;
	local[1].iov_len = len;
	n = vm_readv(t->vm_tid, local, 2, remote, nr);
	if (n < (ssize_t)check)
		return 0;
	if (check && memcmp(token, t->token, check)) {
		token_changed(t); /* whatever the reason, `mem` has the right bytes and wpt_target_alive() the verdict */
		return 0;
	}
	*all = (size_t)n - check == len;
	return (size_t)n - check;
}

ssize_t wpt_target_readv(struct wpt_target *t, const struct wpt_piece *pieces, size_t nr, void *buf)
{
	struct cursor c = { pieces, nr, 0, 0, buf };
	const struct wpt_piece *p;
	bool all;
	ssize_t n;
	int rc;

	rc = wpt_target_check(t);
	if (rc)
		return rc;
	cursor_advance(&c, 0);
	while (c.i < c.nr) {
		cursor_advance(&c, read_batch(t, &c, &all));
		if (all || c.i == c.nr)
			continue;
		p = &pieces[c.i];
		n = wpt_mem_pread(t->mem, c.buf, (size_t)WPT_MIN(p->len - c.off, (uint64_t)MEM_STEP), p->addr + c.off);
		if (n == 0)
			return -WPT_E_GONE;
		if (n < 0 && n != -EIO && n != -EFAULT)
			return n;
		if (n < 0)
			return c.buf != buf ? c.buf - (char *)buf : -EFAULT;
		cursor_advance(&c, (size_t)n);
	}
	return c.buf - (char *)buf;
}

ssize_t wpt_target_read(struct wpt_target *t, uint64_t addr, void *buf, size_t len)
{
	struct wpt_piece piece = { addr, len };

	return wpt_target_readv(t, &piece, 1, buf);
}
