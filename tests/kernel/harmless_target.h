/* SPDX-License-Identifier: MIT */
/*
 * A process to be watched, for tests of what watching does to it. It writes to its pages all the time and checks each page before it
 * does. A page holds its magic, its number, a counter (one word, so that no instant of it is torn) and filling that follows from the
 * number, so that any copy of it can be told from another program's memory at the same address.
 */
#ifndef HARMLESS_TARGET_H
#define HARMLESS_TARGET_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <pthread.h>
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
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common.h"
#include "wptrack.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

#define PAGE 4096ul
#define MAGIC 0x7765206172652061ull     /* of the target's pages */
#define FOREIGN 0x6e6f74206d696e65ull   /* of another program's at the same address */
#define WORDS (PAGE / 8)
#define NR_PAGES 256ul
#define BYTES (NR_PAGES * PAGE)
#define ADDR 0x510000000000ul           /* where target and impostor have their pages */
#define MIB (1ul << 20)

/* What both sides see. */
struct shared {
	atomic_uint_fast64_t steps, errors;
	atomic_uint run;       /* the workers work */
	atomic_uint resting;   /* workers that rest */
	atomic_uint answer, command;
};

enum { NOTHING, EXIT_7, EXEC, FORBIDDEN_CALL };
#define WORKERS 2u
#define DONE 100u

struct target {
	pid_t pid;
	struct shared *shared;
	int alive[2];          /* a pipe; whoever has the target's pid at last writes to it */
};

enum filter { NO_FILTER, FILTER_TRAP, FILTER_KILL, FILTER_ERRNO };

static uint64_t seed;

static uint64_t random64(void)
{
	uint64_t x = (seed += 0x9e3779b97f4a7c15ull);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void sleep_us(uint64_t us)
{
	struct timespec ts = { (time_t)(us / 1000000), (long)(us % 1000000 * 1000) };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

/* ---- pages ---- */

static uint64_t filling(uint64_t number, uint64_t word)
{
	return word % 8 ? 0 : (number + 1) * 0x9e3779b97f4a7c15ull + word;
}

static void page_make(uint64_t *page, uint64_t magic, uint64_t number)
{
	page[0] = magic;
	page[1] = number;
	page[2] = 0;
	for (uint64_t i = 3; i < WORDS; i++)
		page[i] = filling(number, i);
}

/* Whole, and of the target. The counter may be anything. */
static bool page_good(const volatile uint64_t *page, uint64_t number)
{
	if (page[0] != MAGIC || page[1] != number)
		return false;
	for (uint64_t i = 3; i < WORDS; i++) {
		if (page[i] != filling(number, i))
			return false;
	}
	return true;
}

static uint64_t *pages_map(uint64_t magic)
{
	uint64_t *p = mmap((void *)ADDR, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p != (uint64_t *)ADDR)
		return NULL;
	for (uint64_t i = 0; i < NR_PAGES; i++)
		page_make(p + i * WORDS, magic, i);
	return p;
}

/* ---- the target ---- */

struct worker {
	struct shared *shared;
	uint64_t first, last;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	uint64_t counters[NR_PAGES] = { 0 }, state = w->first + 1, n;
	volatile uint64_t *page;

	for (;;) {
		if (!atomic_load(&w->shared->run)) {
			atomic_fetch_add(&w->shared->resting, 1);
			while (!atomic_load(&w->shared->run))
				sleep_us(200);
			atomic_fetch_sub(&w->shared->resting, 1);
		}
		state = state * 6364136223846793005ull + 1442695040888963407ull;
		n = w->first + (state >> 33) % (w->last - w->first);
		page = (volatile uint64_t *)ADDR + n * WORDS;
		if (!page_good(page, n) || page[2] != counters[n])
			atomic_fetch_add(&w->shared->errors, 1);
		page[2] = ++counters[n];
		atomic_fetch_add(&w->shared->steps, 1);
		if (state >> 60 == 0)
			sleep_us(100);
	}
	return NULL;
}

static atomic_uint nr_sigsys;

static void on_sigsys(int signal)
{
	(void)signal;
	atomic_fetch_add(&nr_sigsys, 1);
}

static int filter_load(enum filter filter)
{
	uint32_t action = filter == FILTER_TRAP ? SECCOMP_RET_TRAP : filter == FILTER_KILL ? SECCOMP_RET_KILL_PROCESS :
										      SECCOMP_RET_ERRNO | ENOLINK;
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(*code), code };

	if (filter == NO_FILTER)
		return 0;
	signal(SIGSYS, on_sigsys);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	/* For all threads, as the sandboxes of programs do it. */
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
}

static __attribute__((noreturn)) void target_main(struct target *t, enum filter filter)
{
	static struct worker workers[WORKERS];
	pthread_t thread;
	char number[16];
	long r;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!pages_map(MAGIC))
		_exit(90);
	for (unsigned int i = 0; i < WORKERS; i++) {
		workers[i] = (struct worker){ t->shared, NR_PAGES * i / WORKERS, NR_PAGES * (i + 1) / WORKERS };
		if (pthread_create(&thread, NULL, work, &workers[i]))
			_exit(91);
	}
	if (filter_load(filter))
		_exit(92);
	atomic_store(&t->shared->answer, DONE);
	for (;; sleep_us(500)) {
		switch (atomic_exchange(&t->shared->command, NOTHING)) {
		case EXIT_7:
			exit(7);
		case EXEC:
			snprintf(number, sizeof(number), "%d", t->alive[1]);
			execl("/proc/self/exe", "harmless_test", "--impostor", number, (char *)NULL);
			_exit(93);
		case FORBIDDEN_CALL:
			r = syscall(SYS_userfaultfd, O_CLOEXEC | 1);
			/* 1: nothing stopped it */
			atomic_store(&t->shared->answer, atomic_load(&nr_sigsys) ? 3 : r < 0 && errno == ENOLINK ? 2 : 1);
			break;
		default:
			break;
		}
	}
}

/* Another program in the place of the target: other contents at the same address, and it must not be disturbed either. */
static int impostor_main(int fd)
{
	volatile uint64_t *p = pages_map(FOREIGN);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!p || write(fd, "i", 1) != 1)
		return 95;
	for (uint64_t n = 0;; n++) {
		volatile uint64_t *page = p + n % NR_PAGES * WORDS;

		if (page[0] != FOREIGN || page[1] != n % NR_PAGES || page[2] != n / NR_PAGES)
			return 96;
		page[2]++;
		if (n % NR_PAGES == 0 && write(fd, "i", 1) != 1)
			return 97;
		sleep_us(20);
	}
}

static bool wait_for(atomic_uint *word, unsigned int value)
{
	for (uint64_t until = now_ms() + 20000; atomic_load(word) != value;) {
		if (now_ms() > until)
			return false;
		sleep_us(200);
	}
	return true;
}

static void target_start(struct target *t, enum filter filter)
{
	memset(t, 0, sizeof(*t));
	t->shared = mmap(NULL, sizeof(*t->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(t->shared != MAP_FAILED);
	atomic_store(&t->shared->run, 1);
	assert_int_equal(pipe(t->alive), 0);
	fflush(stdout);
	t->pid = fork();
	assert_true(t->pid >= 0);
	if (!t->pid)
		target_main(t, filter);
	assert_true(wait_for(&t->shared->answer, DONE));
}

/* No thread of it is left with a tracer. */
static bool target_is_traced(const struct target *t)
{
	char path[64], line[256];
	struct dirent *e;
	bool traced = false;
	DIR *d;
	FILE *f;
	int n;

	snprintf(path, sizeof(path), "/proc/%d/task", t->pid);
	d = opendir(path);
	while (d && (e = readdir(d))) {
		snprintf(path, sizeof(path), "/proc/%d/task/%.16s/status", t->pid, e->d_name);
		f = fopen(path, "re");
		while (f && fgets(line, sizeof(line), f)) {
			if (sscanf(line, "TracerPid: %d", &n) == 1 && n)
				traced = true;
		}
		if (f)
			fclose(f);
	}
	if (d)
		closedir(d);
	return traced;
}

/* Nobody traces it any more, its workers go on, and none of them saw a page that was not as it left it. */
static void target_assert_well(struct target *t)
{
	uint64_t steps = atomic_load(&t->shared->steps), until = now_ms() + 20000;
	int status;

	while (atomic_load(&t->shared->steps) < steps + 50 || target_is_traced(t)) {
		pid_t r = waitpid(t->pid, &status, WNOHANG);

		if (r)
			fail_msg("the target ended, status %x", status);
		if (now_ms() > until)
			fail_msg("the target stands still");
		sleep_us(200);
	}
	assert_int_equal(atomic_load(&t->shared->errors), 0);
}

static void target_rest(struct target *t)
{
	atomic_store(&t->shared->run, 0);
	assert_true(wait_for(&t->shared->resting, WORKERS));
}

static void target_command(struct target *t, unsigned int command)
{
	atomic_store(&t->shared->answer, 0);
	atomic_store(&t->shared->command, command);
}

static void target_end(struct target *t)
{
	if (t->pid > 0) {
		kill(t->pid, SIGKILL);
		waitpid(t->pid, NULL, 0);
	}
	munmap(t->shared, sizeof(*t->shared));
	close(t->alive[0]);
	close(t->alive[1]);
}

/* ---- chains ---- */

static void folder_make(char path[64])
{
	const char *tmp = getenv("TMPDIR");

	snprintf(path, 64, "%.30s/wptrack-harmless-XXXXXX", tmp && *tmp ? tmp : "/var/tmp");
	assert_non_null(mkdtemp(path));
}

static int attach_pages(struct wpt_tracker **out, pid_t pid)
{
	struct wpt_tracker_options o = { .size = sizeof(o), .stop_timeout_ms = 10000 };
	struct wpt_range range = { .size = sizeof(range), .start = ADDR, .end = ADDR + BYTES };
	uint64_t until = now_ms() + 20000;
	struct wpt_tracker *t;
	int r;

	/* The helper of a watcher that was killed while it attached finishes what it began, and is the target's tracer for so long. */
	while ((r = wpt_tracker_attach(&t, pid, &o)) == -WPT_E_TRACED && now_ms() < until)
		sleep_us(500);
	if (r)
		return r;
	r = wpt_range_add(t, &range);
	if (r < 0) {
		wpt_tracker_close(t);
		return r;
	}
	*out = t;
	return 0;
}

/* Verifies the chain in a folder and that its last link holds the target's pages. Returns the number of links, 0 if there is none yet. */
static uint32_t chain_check(const char *folder, uint64_t *copy)
{
	struct wpt_chain_info info = { .size = sizeof(info) };
	struct wpt_chain *c;
	int r = wpt_chain_open(&c, folder);

	if (r == -ENOENT)
		return 0;
	if (r)
		fail_msg("wpt_chain_open: %s", wpt_strerror(r));
	r = wpt_chain_verify(c, NULL, NULL);
	if (r)
		fail_msg("wpt_chain_verify: %s", wpt_strerror(r));
	assert_int_equal(wpt_chain_info(c, &info), 0);
	assert_int_equal(wpt_chain_read(c, ADDR, copy, BYTES), 0);
	for (uint64_t i = 0; i < NR_PAGES; i++) {
		if (!page_good(copy + i * WORDS, i))
			fail_msg("page %" PRIu64 " of the last link is not the target's", i);
	}
	wpt_chain_close(c);
	return info.nr_links;
}

static bool supported(void)
{
	struct wpt_probe p = { .size = sizeof(p) };

	assert_int_equal(wpt_probe(&p), 0);
	if ((p.features & (WPT_F_ASYNC | WPT_F_PTRACE)) == (WPT_F_ASYNC | WPT_F_PTRACE))
		return true;
	print_message("# skip: asynchronous write protection or attaching by ptrace is not to be had here\n");
	return false;
}

#define NEED_SUPPORT()                                                                                                                     \
	do {                                                                                                                               \
		if (!supported())                                                                                                          \
			skip();                                                                                                            \
	} while (0)

#endif
