/* SPDX-License-Identifier: MIT */
/*
 * The guard: a process that does nothing while wpsnap lives. If wpsnap dies, however, it takes back what wpsnap changed in QEMU and lets the guest
 * go on; nobody else would. It shares the monitor's connection, because a monitor serves one client at a time.
 */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#define ATTEMPT_US 20000
#define REFUSED_MS 60000u
#define GUARD_FD 16            /* and the one after it */

struct guard {
	struct guard_state *state; /* shared with the process */
	pid_t pid;
};

/* ---- taking back ---- */

/* A migration that wpsnap began does not go on without it. 0: there is none; -EAGAIN: it is ending. */
static int end_migration(struct qmp *q)
{
	static const char *const over[] = { "none", "completed", "failed", "cancelled" };
	json_t *ret = NULL;
	const char *status;
	size_t i;
	int err;

	err = qmp_call(q, "query-migrate", NULL, &ret, -1, QMP_TIMEOUT_MS);
	if (err)
		return err;
	status = json_string_value(json_object_get(ret, "status"));
	for (i = 0; status && i < ARRAY_SIZE(over); i++)
		if (strcmp(status, over[i]) == 0)
			status = NULL;
	json_decref(ret);
	if (!status)
		return 0;
	err = qmp_call(q, "migrate_cancel", NULL, NULL, -1, QMP_TIMEOUT_MS);
	return err && err != -EREMOTEIO ? err : -EAGAIN;
}

static int put_limits_back(struct qmp *q, const struct guard_state *s)
{
	json_t *caps = json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "x-ignore-shared", "state", s->ignore_shared);
	int err;

	err = qmp_call(q, "migrate-set-capabilities", caps, NULL, -1, QMP_TIMEOUT_MS);
	if (!err)
		err = qmp_call(q, "migrate-set-parameters", json_pack("{s:I}", "max-bandwidth", (json_int_t)s->bandwidth), NULL, -1, QMP_TIMEOUT_MS);
	return err;
}

static int undo_once(struct qmp *q, struct guard_state *s)
{
	int err;

	err = end_migration(q);
	if (err)
		return err;
	if (s->stopped) {
		err = qmp_call(q, "cont", NULL, NULL, -1, QMP_TIMEOUT_MS);
		if (err)
			return err;
		s->stopped = 0;
	}
	if (s->tuned) {
		err = put_limits_back(q, s);
		if (err)
			return err;
		s->tuned = 0;
	}
	return 0;
}

int guard_undo(struct qmp *q, const char *path, struct guard_state *s, uint64_t ms)
{
	uint64_t begin = now_ns();
	uint64_t refused_ms = ms < REFUSED_MS ? ms : REFUSED_MS;
	int err;

	while (s->stopped || s->tuned) {
		err = q->fd < 0 ? qmp_open(q, path) : 0;
		if (!err)
			err = undo_once(q, s);
		/* Nobody listens any more: QEMU has ended. Or it says no, and will again. */
		if (err == -ECONNREFUSED || err == -ENOENT || (err && (now_ns() - begin) / 1000000 >= (err == -EREMOTEIO ? refused_ms : ms)))
			return err;
		if (err)
			usleep(ATTEMPT_US);
	}
	return 0;
}

/* ---- the process ---- */

/* Only what the guard needs stays open: a pipe's reader waits for its last writer, and locks of chains are held by descriptors. */
static void keep_two(int *first, int *second)
{
	int null = open("/dev/null", O_RDWR), kept[2] = { *first, *second }, i;

	for (i = STDIN_FILENO; i <= STDERR_FILENO; i++)
		dup2(null, i);
	for (i = 0; i < 2; i++)
		kept[i] = fcntl(kept[i], F_DUPFD, GUARD_FD + 2);
	*first = dup2(kept[0], GUARD_FD);
	*second = dup2(kept[1], GUARD_FD + 1);
	for (i = STDERR_FILENO + 1; i < GUARD_FD; i++)
		close(i);
	syscall(SYS_close_range, (unsigned)GUARD_FD + 2, ~0u, 0);
}

static void __attribute__((noreturn)) guard_main(int parent, const char *path, int qmp_fd, struct guard_state *s)
{
	struct qmp q = { .fd = -1, .partial = true };
	struct pollfd end = { .events = POLLIN };
	sigset_t all;

	/* What is sent to the terminal's whole group is not meant for the guard, and must not end it before its time. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	setsid();
	prctl(PR_SET_NAME, "wpsnap-guard");
	keep_two(&parent, &qmp_fd);
	end.fd = parent;
	while (poll(&end, 1, -1) < 0 && errno == EINTR)
		;
	q.fd = qmp_fd;
	guard_undo(&q, path, s, UINT64_MAX);
	_exit(0);
}

int guard_start(struct guard **out, const char *path, int qmp_fd)
{
	struct guard *g = calloc(1, sizeof(*g));
	int self, err;

	if (!g)
		return -ENOMEM;
	self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	g->state = mmap(NULL, sizeof(*g->state), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (self >= 0 && g->state != MAP_FAILED) {
		g->pid = fork();
		if (g->pid == 0)
			guard_main(self, path, qmp_fd, g->state);
	} else {
		g->pid = -1;
	}
	err = -errno;
	if (self >= 0)
		close(self);
	if (g->pid > 0) {
		*out = g;
		return 0;
	}
	if (g->state != MAP_FAILED)
		munmap(g->state, sizeof(*g->state));
	free(g);
	return err;
}

struct guard_state *guard_state(struct guard *g)
{
	return g->state;
}

void guard_end(struct guard *g)
{
	if (!g)
		return;
	if (!g->state->stopped && !g->state->tuned) {
		kill(g->pid, SIGKILL);
		while (waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	munmap(g->state, sizeof(*g->state));
	free(g);
}
