/* SPDX-License-Identifier: MIT */
/*
 * A dump of a running process from outside: `wpsnap save` beside gcore (gdb) and, where one that works is on PATH, `criu dump
 * --leave-running`; all to tmpfs. How long the target stood still is what a thread of it saw that looks at the clock every 50 us.
 */
#include "peer.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS 50000

/* Of the shared page: the longest time between two looks, and their number. */
enum { LONGEST_NS, LOOKS };

static struct bench_target target;

static void *look_at_clock(void *arg)
{
	volatile uint64_t *shared = ((struct bench_target *)arg)->shared;
	const struct timespec nap = { 0, LOOK_NS };
	uint64_t last, now;

	prctl(PR_SET_TIMERSLACK, 1);
	for (last = bench_now_ns();; last = now) {
		nanosleep(&nap, NULL);
		now = bench_now_ns();
		if (now - last > shared[LONGEST_NS])
			shared[LONGEST_NS] = now - last;
		shared[LOOKS]++;
	}
	return NULL;
}

/* After the dump: the thread must have run again to have noticed. */
static double longest_ms(void)
{
	uint64_t looks = target.shared[LOOKS];

	while (target.shared[LOOKS] < looks + 2)
		usleep(100);
	return (double)target.shared[LONGEST_NS] / 1e6;
}

/* The last command: from here on there is nothing but memory and two threads, since half of a connection is more than CRIU can dump. */
static __attribute__((noreturn)) uint64_t serve(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	uint64_t answer = 0;
	pthread_t thread;

	(void)command;
	(void)a;
	(void)b;
	bench_check_errno(pthread_create(&thread, NULL, look_at_clock, t) != 0, "pthread_create");
	bench_check_errno(write(t->fd, &answer, sizeof(answer)) != (ssize_t)sizeof(answer), "write");
	bench_check_errno(dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0 || close_range(3, ~0u, 0), "/dev/null");
	for (;;)
		pause();
}

struct figures {
	struct bench_series still, said, time, size;
};

static void figures_init(struct figures *f, const char *who)
{
	bench_series_init(&f->still, "ms", "%s: target stood still", who);
	bench_series_init(&f->said, "ms", "  by its own account");
	bench_series_init(&f->time, "ms", "%s: time", who);
	bench_series_init(&f->size, "MiB", "%s: stored", who);
}

static void figures_add(struct figures *f, double time_ms, double size_mib)
{
	bench_series_add(&f->still, longest_ms());
	bench_series_add(&f->time, time_ms);
	bench_series_add(&f->size, size_mib);
}

static void by_wpsnap(struct figures *f)
{
	struct peer_link link;

	target.shared[LONGEST_NS] = 0;
	link = peer_save(target.pid, NULL, NULL);
	figures_add(f, link.wall_ms, link.stored_mib);
	bench_series_add(&f->said, link.pause_ms);
}

static void by_gcore(struct figures *f)
{
	const char *file;
	char pid[16], prefix[96];
	uint64_t ns;

	snprintf(pid, sizeof(pid), "%d", (int)target.pid);
	snprintf(prefix, sizeof(prefix), "%s/core", peer_folder());
	target.shared[LONGEST_NS] = 0;
	ns = peer_run("gcore", (const char *[]){ "gcore", "-o", prefix, pid, NULL }, NULL);
	file = peer_path("core.%s", pid);
	figures_add(f, (double)ns / 1e6, (double)peer_file_size(file) / (double)BENCH_MIB);
	unlink(file);
}

static bool criu_works(void)
{
	char said[128];
	const char *text;

	if (!peer_found("criu")) {
		bench_note("criu: not on PATH, not measured");
		return false;
	}
	if (!peer_wait(peer_start("criu-check", (const char *[]){ "criu", "check", NULL }), NULL))
		return true;
	text = peer_text(peer_path("criu-check.err"));
	snprintf(said, sizeof(said), "%.*s", (int)strcspn(text, "\n"), text);
	bench_note("criu: the one on PATH does not work here (criu check: %s), not measured", said);
	return false;
}

static void by_criu(struct figures *f)
{
	const char *images = peer_path("images");
	uint64_t ns, bytes;
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", (int)target.pid);
	bench_check_errno(mkdir(images, 0700), images);
	target.shared[LONGEST_NS] = 0;
	ns = peer_run("criu", (const char *[]){ "criu", "dump", "--leave-running", "--shell-job", "-t", pid, "-D", images, NULL }, NULL);
	peer_run("criu-size", (const char *[]){ "du", "-sb", images, NULL }, NULL);
	bytes = strtoull(peer_text(peer_path("criu-size")), NULL, 10);
	figures_add(f, (double)ns / 1e6, (double)bytes / (double)BENCH_MIB);
	bench_folder_remove(images);
}

/* The two of them; aims are about ours. */
static void compare(struct figures *ours, struct figures *theirs)
{
	const struct bench_aim shorter = { BENCH_RATIO, false, 0.1 };

	bench_row(&theirs->still, NULL, NULL);
	bench_row(&ours->still, &theirs->still, &shorter);
	bench_row(&ours->said, &theirs->still, NULL);
	bench_row(&theirs->time, NULL, NULL);
	bench_row(&ours->time, &theirs->time, NULL);
	bench_row(&theirs->size, NULL, NULL);
	bench_row(&ours->size, &theirs->size, NULL);
}

int main(void)
{
	unsigned int repeats = bench_repeats(10);
	struct figures ours, gcore, criu;
	bool with_criu;

	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	peer_need("gcore", "gdb");
	peer_folder();
	bench_target_start(&target, bench_size(BENCH_GIB), serve);
	bench_target_do(&target, BENCH_FILL, 1, 0);
	bench_target_do(&target, BENCH_OWN, 0, 0);
	bench_table("dump of a process of %s from outside, %u repeats", bench_bytes(target.bytes), repeats);
	with_criu = criu_works();
	figures_init(&ours, "wpsnap save");
	figures_init(&gcore, "gcore");
	figures_init(&criu, "criu dump");
	for (unsigned int i = 0; i < repeats; i++) {
		by_gcore(&gcore);
		by_wpsnap(&ours);
		if (with_criu)
			by_criu(&criu);
	}
	compare(&ours, &gcore);
	if (with_criu)
		compare(&ours, &criu);
	bench_target_stop(&target);
	return 0;
}
