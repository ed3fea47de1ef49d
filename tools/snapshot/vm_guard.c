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
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
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
#define ANSWER_MS 3000u         /* for each command */
#define SELDOM_US 1000000     /* after */
#define PATIENT_MS 60000u
#define GUARD_FD 16            /* and those after it */
#define KEPT 3

struct guard {
	struct guard_state *state; /* shared with the process */
	pid_t pid;
	int wake;                  /* an eventfd */
};

bool guard_is_idle(const struct guard_state *s)
{
	return !s->stopped && !s->migrating && !s->tuned;
}

/* ---- taking back ---- */

/* Our migration does not go on without us. 0: it is over; -EAGAIN: it is ending. */
static int end_migration(struct qmp *q, struct guard_state *s)
{
	static const char *const over[] = { "none", "completed", "failed", "cancelled" };
	json_t *ret = NULL;
	const char *status;
	size_t i;
	int err;

	err = qmp_call(q, "migrate_cancel", NULL, NULL, -1, ANSWER_MS);
	if (!err || err == -EREMOTEIO)
		err = qmp_call(q, "query-migrate", NULL, &ret, -1, ANSWER_MS);
	if (err)
		return err;
	status = json_string_value(json_object_get(ret, "status"));
	for (i = 0; status && i < ARRAY_SIZE(over); i++)
		if (strcmp(status, over[i]) == 0)
			status = NULL;
	json_decref(ret);
	if (status)
		return -EAGAIN;
	s->migrating = 0;
	return 0;
}

static int put_limits_back(struct qmp *q, const struct guard_state *s)
{
	json_t *caps = json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "x-ignore-shared", "state", s->ignore_shared);
	int err;

	err = qmp_call(q, "migrate-set-capabilities", caps, NULL, -1, ANSWER_MS);
	if (!err)
		err = qmp_call(q, "migrate-set-parameters", json_pack("{s:I}", "max-bandwidth", (json_int_t)s->bandwidth), NULL, -1, ANSWER_MS);
	return err;
}

/* A QEMU that does not answer reads its commands later: it is told to let the guest go on in any case. */
static int undo_once(struct qmp *q, struct guard_state *s)
{
	int err = 0;

	if (s->migrating) {
		err = end_migration(q, s);
		if (err && err != -ETIMEDOUT)
			return err;
	}
	if (s->stopped) {
		err = qmp_call(q, "cont", NULL, NULL, -1, ANSWER_MS);
		if (err)
			return err;
		if (!s->migrating)
			s->stopped = 0;
	}
	if (s->migrating)
		return err ? err : -EAGAIN;
	if (s->tuned) {
		err = put_limits_back(q, s);
		if (err)
			return err;
		s->tuned = 0;
	}
	return 0;
}

/* By the path another QEMU may be found than the one that was stopped. */
static int reconnect(struct qmp *q, const char *path, const struct guard_state *s)
{
	struct ucred peer = { 0 };
	socklen_t len = sizeof(peer);
	int err;

	err = qmp_open(q, path);
	if (err || !s->sure)
		return err;
	if (getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && peer.pid == s->qemu)
		return 0;
	qmp_close(q);
	return -ESRCH;
}

static bool is_gone(const struct guard_state *s)
{
	return s->qemu > 0 && kill(s->qemu, 0) && errno == ESRCH;
}

int guard_undo(struct qmp *q, const char *path, struct guard_state *s, uint64_t ms)
{
	uint64_t begin = now_ns(), took;
	int err;

	while (!guard_is_idle(s)) {
		err = q->fd < 0 ? reconnect(q, path, s) : 0;
		if (!err)
			err = undo_once(q, s);
		took = (now_ns() - begin) / 1000000;
		if (is_gone(s))
			s->stopped = s->migrating = s->tuned = 0;
		else if (err && took >= ms)
			return err;
		else if (err)
			usleep(took < PATIENT_MS ? ATTEMPT_US : SELDOM_US);
	}
	return 0;
}

/* ---- the process ---- */

/* Only what the guard needs stays open: a pipe's reader waits for its last writer, and locks of chains are held by descriptors. */
static void keep(int fds[KEPT])
{
	int null = open("/dev/null", O_RDWR), i;

	for (i = STDIN_FILENO; i <= STDERR_FILENO; i++)
		dup2(null, i);
	for (i = 0; i < KEPT; i++)
		fds[i] = fcntl(fds[i], F_DUPFD, GUARD_FD + KEPT);
	for (i = 0; i < KEPT; i++)
		fds[i] = dup2(fds[i], GUARD_FD + i);
	for (i = STDERR_FILENO + 1; i < GUARD_FD; i++)
		close(i);
	syscall(SYS_close_range, (unsigned)(GUARD_FD + KEPT), ~0u, 0);
}

static void __attribute__((noreturn)) guard_main(int parent, int wake, const char *path, int qmp_fd, struct guard_state *s)
{
	int fds[KEPT] = { parent, wake, qmp_fd };
	struct pollfd wait[] = { { .events = POLLIN }, { .events = POLLIN } };
	struct qmp q = { .fd = -1, .partial = true };
	uint64_t count;
	sigset_t all;

	/* What is sent to the terminal's whole group is not meant for the guard, and must not end it before its time. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	setsid();
	prctl(PR_SET_NAME, "wpsnap-guard");
	keep(fds);
	wait[0].fd = fds[0];
	wait[1].fd = fds[1];
	q.fd = fds[2];
	for (;;) {
		if (poll(wait, ARRAY_SIZE(wait), -1) < 0)
			continue;
		guard_undo(&q, path, s, UINT64_MAX);
		if (wait[0].revents || s->last)
			_exit(0);
		/* The monitor serves one client, and that is wpsnap again. */
		qmp_close(&q);
		while (read(wait[1].fd, &count, sizeof(count)) < 0 && errno == EINTR)
			;
	}
}

int guard_start(struct guard **out, const char *path, int qmp_fd)
{
	struct guard *g = calloc(1, sizeof(*g));
	int self, err;

	if (!g)
		return -ENOMEM;
	self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	g->wake = eventfd(0, EFD_CLOEXEC);
	g->state = mmap(NULL, sizeof(*g->state), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (self >= 0 && g->wake >= 0 && g->state != MAP_FAILED) {
		g->pid = fork();
		if (g->pid == 0)
			guard_main(self, g->wake, path, qmp_fd, g->state);
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
	if (g->wake >= 0)
		close(g->wake);
	if (g->state != MAP_FAILED)
		munmap(g->state, sizeof(*g->state));
	free(g);
	return err;
}

struct guard_state *guard_state(struct guard *g)
{
	return g->state;
}

void guard_wake(struct guard *g)
{
	eventfd_write(g->wake, 1);
}

void guard_end(struct guard *g)
{
	if (!g)
		return;
	if (guard_is_idle(g->state)) {
		kill(g->pid, SIGKILL);
		while (waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
			;
	} else {
		g->state->last = 1;
		guard_wake(g);
	}
	close(g->wake);
	munmap(g->state, sizeof(*g->state));
	free(g);
}
