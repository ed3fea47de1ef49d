/* SPDX-License-Identifier: MIT */
/* A target process for the tests: this program executed anew with the name of a mode, and a page shared with it. */
#ifndef TARGET_FIXTURE_H
#define TARGET_FIXTURE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common.h"
#include "target.h"
#include "uapi.h"

#define SHARED_FD 200
#define PIPE_READ 201
#define PIPE_WRITE 202
#define MAX_COUNT 64

struct shared {
	atomic_int ready, stop, word;
	atomic_ulong errors;
	atomic_ulong count[MAX_COUNT];
	uint64_t addr[8]; /* of the target's memory, for the test */
	char message[256];
};

struct fixture {
	pid_t pid;
	struct shared *sh;
	int memfd, pipe[2];
};

static inline void sleep_us(unsigned us)
{
	struct timespec ts = { us / 1000000, (long)(us % 1000000) * 1000 };

	while (nanosleep(&ts, &ts))
		;
}

/* Something that must come to pass, and does so soon on a machine that is not dead. */
#define WAIT_FOR(condition)                                                                      \
	do {                                                                                     \
		uint64_t wait_end_ = wpt_now_ns() + 120000000000u;                                \
		while (!(condition)) {                                                           \
			if (wpt_now_ns() > wait_end_)                                            \
				fail_msg("%s:%d: waited in vain for %s", __FILE__, __LINE__, #condition); \
			sleep_us(200);                                                           \
		}                                                                                \
	} while (0)

/* ---- the target's side ---- */

static struct shared *sh;

#define TARGET_CHECK(condition)                                                                  \
	do {                                                                                     \
		if (!(condition)) {                                                              \
			if (!atomic_fetch_add(&sh->errors, 1))                                   \
				snprintf(sh->message, sizeof(sh->message), "line %d: %s (errno %d)", __LINE__, #condition, errno); \
		}                                                                                \
	} while (0)

static inline void target_open(void)
{
	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED, SHARED_FD, 0);
	if (sh == MAP_FAILED)
		_exit(99);
}

/* ---- targets of several tests ---- */

#define PAGE 4096ul
#define ADDR 0x520000000000ul /* where targets have their pages */
#define NR_PAGES 512ul
#define MAGIC_A 0x1111u

static inline uint64_t word(uint64_t magic, uint64_t addr)
{
	uint64_t x = addr * 0x9e3779b97f4a7c15u + magic;

	return x ^ x >> 29;
}

static inline void fill(uint64_t magic, uint64_t *p, uint64_t addr, size_t len)
{
	size_t i;

	for (i = 0; i < len / 8; i++)
		p[i] = word(magic, addr + i * 8);
}

/* Bytes of the pattern from any address. */
static inline bool is_pattern(uint64_t magic, const void *buf, uint64_t addr, size_t len)
{
	const unsigned char *b = buf;
	size_t i;

	for (i = 0; i < len; i++) {
		uint64_t w = word(magic, (addr + i) & ~7ul);

		if (b[i] != (unsigned char)(w >> ((addr + i) & 7) * 8))
			return false;
	}
	return true;
}

static inline uint64_t *map_pages(uint64_t magic)
{
	uint64_t *p = mmap((void *)ADDR, NR_PAGES * PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p == MAP_FAILED)
		_exit(95);
	fill(magic, p, ADDR, NR_PAGES * PAGE);
	return p;
}

static inline char wait_byte(void)
{
	char c = 0;

	while (read(PIPE_READ, &c, 1) < 0 && errno == EINTR)
		;
	return c;
}

static inline void *counting(void *arg)
{
	while (!sh->stop)
		atomic_fetch_add(&sh->count[(uintptr_t)arg], 1);
	return NULL;
}

static inline int sharer(void *arg)
{
	static char stack[16384];
	uintptr_t n = (uintptr_t)arg;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (n < 3)
		clone(sharer, stack + sizeof(stack), CLONE_VM | SIGCHLD, (void *)(n + 1));
	counting(arg);
	syscall(SYS_exit, 0);
	return 0;
}

/* Two threads, a process that shares the memory, and a child of that one that does too. */
static inline void mode_sharers(void)
{
	static char stack[65536];
	pthread_t th;
	pid_t pid;

	pthread_create(&th, NULL, counting, (void *)1);
	pid = clone(sharer, stack + sizeof(stack), CLONE_VM | SIGCHLD, (void *)2);
	sh->addr[0] = (uint64_t)pid;
	while (!sh->count[1] || !sh->count[2] || !sh->count[3])
		sched_yield();
	sh->ready = 1;
	counting((void *)0);
	pthread_join(th, NULL);
	waitpid(pid, NULL, 0);
}

/* ---- the test's side ---- */

static inline int rounds(int n)
{
	const char *s = getenv("WPT_TEST_ROUNDS");

	return s ? atoi(s) : n;
}


static inline char task_state(pid_t pid, pid_t tid)
{
	char path[64], buf[512], *p;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	buf[n] = 0;
	p = strrchr(buf, ')');
	return p ? p[2] : 0;
}

/* A number of /proc/PID/status, by its name with the colon. */
static inline long task_status(pid_t pid, const char *name, int base)
{
	char path[64], line[512];
	long value = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, strlen(name)))
			value = (long)strtoul(line + strlen(name), NULL, base);
	if (f)
		fclose(f);
	return value;
}

static inline int count_fds(pid_t pid)
{
	char path[64];
	int n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	d = opendir(path);
	if (!d)
		return -1;
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* Asked once, by the first fixture: probing attaches to a child of its own, of which the parent may hear. */
static inline enum wpt_uffd uffd_of_kernel(void)
{
	static int known = -1;
	struct wpt_probe p = { .size = sizeof(p) };

	if (known < 0 && wpt_probe(&p) == 0)
		known = p.features & WPT_F_ASYNC ? WPT_UFFD_ASYNC : p.features & WPT_F_SYNC ? WPT_UFFD_SYNC : WPT_UFFD_NONE;
	return known < 0 ? WPT_UFFD_NONE : (enum wpt_uffd)known;
}

static inline void fixture_start(struct fixture *f, const char *mode, uid_t uid)
{
	uffd_of_kernel();
	memset(f, 0, sizeof(*f));
	f->memfd = memfd_create("shared", MFD_CLOEXEC);
	assert_true(f->memfd >= 0);
	assert_int_equal(ftruncate(f->memfd, sizeof(*f->sh)), 0);
	f->sh = mmap(NULL, sizeof(*f->sh), PROT_READ | PROT_WRITE, MAP_SHARED, f->memfd, 0);
	assert_true(f->sh != MAP_FAILED);
	assert_int_equal(pipe2(f->pipe, O_CLOEXEC), 0);
	f->pid = fork();
	assert_true(f->pid >= 0);
	if (!f->pid) {
		dup2(f->memfd, SHARED_FD);
		dup2(f->pipe[0], PIPE_READ);
		dup2(f->pipe[1], PIPE_WRITE);
		if (uid && (setgid(uid) || setuid(uid)))
			_exit(98);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl("/proc/self/exe", "target", mode, NULL);
		_exit(97);
	}
	WAIT_FOR(atomic_load(&f->sh->ready) || waitpid(f->pid, NULL, WNOHANG) == f->pid);
	assert_true(atomic_load(&f->sh->ready));
}

static inline void fixture_wake(struct fixture *f)
{
	assert_int_equal(write(f->pipe[1], "x", 1), 1);
}

/* The target ends by itself, with the status that it ends with when nobody watches it, and found nothing wrong. */
static inline void fixture_finish(struct fixture *f, int want)
{
	pid_t got = 0;
	int status = -1;

	atomic_store(&f->sh->stop, 1);
	WAIT_FOR((got = waitpid(f->pid, &status, WNOHANG)) != 0);
	assert_int_equal(got, f->pid);
	if (atomic_load(&f->sh->errors))
		fail_msg("the target says: %s", f->sh->message);
	if (status != want)
		fail_msg("the target's status is 0x%x, not 0x%x", status, want);
	munmap(f->sh, sizeof(*f->sh));
	close(f->memfd);
	close(f->pipe[0]);
	close(f->pipe[1]);
}

static inline void fixture_kill(struct fixture *f)
{
	kill(f->pid, SIGKILL);
	while (waitpid(f->pid, NULL, 0) < 0 && errno == EINTR)
		;
	munmap(f->sh, sizeof(*f->sh));
	close(f->memfd);
	close(f->pipe[0]);
	close(f->pipe[1]);
}


static inline void needs_tracking(void)
{
	/* The other one is for root's processes. */
	if (uffd_of_kernel() == WPT_UFFD_ASYNC || (uffd_of_kernel() == WPT_UFFD_SYNC && geteuid() == 0))
		return;
	print_message("no asynchronous write protection (wpsnap probe)\n");
	skip();
}

/* A thread that happens to be in an uninterruptible wait for a while is no failure, nor is a machine that is busy, or emulated. */
static inline int attach_in_time(struct wpt_target **t, pid_t pid, enum wpt_uffd uffd)
{
	int rc = -WPT_E_STOP_TIMEOUT, i;

	for (i = 0; i < 5 && rc == -WPT_E_STOP_TIMEOUT; i++)
		rc = wpt_target_attach(t, pid, 2000, uffd, NULL);
	return rc;
}

static inline struct wpt_target *must_attach(pid_t pid)
{
	struct wpt_target *t = NULL;
	int rc;

	needs_tracking();
	rc = attach_in_time(&t, pid, uffd_of_kernel());
	if (rc == -EPERM && uffd_of_kernel() == WPT_UFFD_SYNC) {
		print_message("no asynchronous write protection (wpsnap probe), and this is a user's process\n");
		skip();
	}
	if (rc)
		fail_msg("attach: %s", wpt_strerror(rc));
	return t;
}

static inline void must_stop(struct wpt_target *t)
{
	uint64_t at;
	int rc, i;

	/* As above. */
	for (i = 0; i < 5; i++) {
		rc = wpt_target_stop(t, &at);
		if (rc != -WPT_E_STOP_TIMEOUT)
			break;
	}
	if (rc)
		fail_msg("stop: %s", wpt_strerror(rc));
}

static inline void as_nobody(void (*fn)(void **state))
{
	needs_tracking();
	run_as_nobody(fn);
}

#endif
