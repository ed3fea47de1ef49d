/* SPDX-License-Identifier: MIT */
/* wpsnap watch and run: a base and increments, by time and by signal. */
#include "wpsnap.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define EXEC_ATTEMPTS 10

struct watch {
	struct session s;
	const struct opts *o;
	struct events e;
	int pidfd;
	pid_t pid;
	bool child;               /* the target is run's own child */
	bool tracking;            /* the session is open */
	uint64_t attempts;        /* links tried, complete or not */
};

static int wait_events(struct watch *w, bool *gone)
{
	return events_wait(&w->e, &w->pidfd, gone, 1);
}

static bool count_reached(const struct watch *w)
{
	return w->o->count && w->attempts >= w->o->count;
}

static int try_link(struct watch *w, const char *trigger)
{
	w->attempts++;
	return session_take(&w->s, trigger);
}

static void stop_tracking(struct watch *w)
{
	if (w->tracking)
		session_close(&w->s);
	w->tracking = false;
}

static bool target_exited(const struct watch *w)
{
	struct pollfd fd = { .fd = w->pidfd, .events = POLLIN };

	return poll(&fd, 1, 0) > 0;
}

static int open_session(struct watch *w, bool new_chain)
{
	int code;

	code = session_open(&w->s, w->o, w->pid, WPT_DEST_FOLDER, new_chain);
	w->tracking = code == EXIT_OK;
	return code;
}

/* ---- watch ---- */

/* Returns the exit code. */
static int watch_loop(struct watch *w)
{
	bool gone;
	int err;

	err = try_link(w, "base");
	if (err) {
		session_end(&w->s, "failed");
		return exit_code_of(err);
	}
	session_prune(&w->s);
	events_start_timer(&w->e, w->o->every_ns);
	for (;;) {
		if (w->s.out_failed) {
			complain("watch: cannot write to standard output: its reader has gone; the links so far are complete");
			return EXIT_FAILED;
		}
		if (count_reached(w)) {
			session_end(&w->s, "count");
			break;
		}
		err = wait_events(w, &gone);
		if (err)
			return report(err, NULL, "watch: cannot wait for process %d", (int)w->pid);
		if (!gone && (w->e.signal || w->e.period))
			gone = try_link(w, w->e.signal ? "SIGUSR1" : "timer") == -WPT_E_GONE;
		if (!gone && (w->e.signal || w->e.period))
			session_prune(&w->s);
		if (gone) {
			complain("watch: process %d exited or executed another program; %llu links of it are complete in %s", (int)w->pid,
				 (unsigned long long)w->s.nr_links, w->o->output);
			session_end(&w->s, "gone");
			return EXIT_GONE;
		}
		if (w->e.end && !w->s.out_failed) {
			session_end(&w->s, "signal");
			break;
		}
	}
	if (w->s.last)
		return EXIT_FAILED;
	return w->s.skipped ? EXIT_SKIPPED : EXIT_OK;
}

/* `mask` (may be NULL) gets the signal mask as it was. */
static int watch_open(struct watch *w, const struct opts *o, FILE *out, sigset_t *mask)
{
	memset(w, 0, sizeof(*w));
	w->o = o;
	w->s.o = o;
	w->s.out = out;
	w->pidfd = -1;
	return events_open(&w->e, o->cmd, mask);
}

static void watch_close(struct watch *w)
{
	stop_tracking(w);
	events_close(&w->e);
	if (w->pidfd >= 0)
		close(w->pidfd);
}

int cmd_watch(const struct opts *o)
{
	struct watch w;
	int code;

	code = watch_open(&w, o, stdout, NULL);
	w.s.lines = true;
	if (!code)
		code = proc_open(o->cmd, o->args[0], &w.pid, &w.pidfd);
	if (!code)
		code = open_session(&w, false);
	if (!code)
		code = watch_loop(&w);
	watch_close(&w);
	return code;
}

/* ---- run ---- */

/* In the child: never returns. */
static void exec_command(char **args, int report_to, const sigset_t *mask)
{
	int err;

	/* Where Yama lets only ancestors attach: the library attaches by a child of ours. Without Yama it fails, which is as good. */
	prctl(PR_SET_PTRACER, (unsigned long)getppid(), 0, 0, 0);
	signal(SIGPIPE, SIG_DFL);
	sigprocmask(SIG_SETMASK, mask, NULL);
	execvp(args[0], args);
	err = errno;
	if (write(report_to, &err, sizeof(err)) != (ssize_t)sizeof(err))
		_exit(EXIT_FAILED);
	_exit(err == ENOENT ? 127 : 126);
}

static int exit_code_of_child(const struct watch *w)
{
	int status;
	pid_t got;

	do
		got = waitpid(w->pid, &status, 0);
	while (got < 0 && errno == EINTR);
	if (got != w->pid)
		return report(-errno, NULL, "run: the command's exit code is not known");
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/*
 * The pipe is closed by the exec: end of file says that the new program is in place. Anything but EXIT_OK is what to exit with: there
 * is no command to watch.
 */
static int start_command(struct watch *w, const sigset_t *mask)
{
	char **args = w->o->args;
	int fds[2], err = 0;
	ssize_t got;

	if (pipe2(fds, O_CLOEXEC))
		return report(-errno, NULL, "run: cannot start '%s'", args[0]);
	w->pid = fork();
	if (w->pid == 0)
		exec_command(args, fds[1], mask);
	close(fds[1]);
	if (w->pid < 0) {
		err = -errno;
		close(fds[0]);
		return report(err, NULL, "run: cannot start '%s'", args[0]);
	}
	do
		got = read(fds[0], &err, sizeof(err));
	while (got < 0 && errno == EINTR);
	close(fds[0]);
	if (got == (ssize_t)sizeof(err)) {
		waitpid(w->pid, NULL, 0);
		report(-err, "give the name of a program, and its arguments after it", "run: cannot execute '%s'", args[0]);
		return err == ENOENT ? 127 : 126;
	}
	w->pidfd = (int)syscall(SYS_pidfd_open, w->pid, 0);
	w->e.pass_on = w->pidfd;
	if (w->pidfd >= 0)
		return EXIT_OK;
	report(-errno, "the command runs on without snapshots", "run: cannot watch process %d", (int)w->pid);
	return exit_code_of_child(w);
}

static void without(struct watch *w)
{
	stop_tracking(w);
	if (target_exited(w))
		complain("run: the command ended; %llu links of it are complete in %s", (unsigned long long)w->s.nr_links, w->o->output);
	else
		complain("run: the command runs on without snapshots; %llu links of it are complete in %s",
			 (unsigned long long)w->s.nr_links, w->o->output);
}

/*
 * Takes a link; if the command has executed another program since, of that one. A shell that ends in exec does so at any moment,
 * so the new program may be gone as well.
 */
static void run_link(struct watch *w, const char *trigger)
{
	int i, err;

	err = try_link(w, trigger);
	for (i = 0; err == -WPT_E_GONE && !target_exited(w) && i < EXEC_ATTEMPTS; i++) {
		complain("run: the command executed another program; that one is tracked from here on");
		stop_tracking(w);
		if (open_session(w, true))
			break;
		err = session_take(&w->s, "exec");
	}
	if (!w->tracking || !w->s.nr_links || err == -WPT_E_GONE)
		without(w);
	else
		session_prune(&w->s);
	if (count_reached(w))
		stop_tracking(w);
}

static int run_loop(struct watch *w)
{
	bool gone;
	int err;

	if (open_session(w, false))
		without(w);
	else
		run_link(w, "base");
	events_start_timer(&w->e, w->o->every_ns);
	for (;;) {
		err = wait_events(w, &gone);
		if (err)
			return report(err, NULL, "run: cannot wait for process %d", (int)w->pid);
		if (gone)
			break;
		if (w->tracking && (w->e.signal || w->e.period))
			run_link(w, w->e.signal ? "SIGUSR1" : "timer");
	}
	session_end(&w->s, "gone");
	stop_tracking(w);
	return exit_code_of_child(w);
}

/* Whatever would certainly stop the tracking is said before the command runs. */
static int check_before(const struct opts *o)
{
	struct wpt_probe p = { .size = sizeof(p) };
	uint32_t ways = o->backend == WPT_BACKEND_ASYNC ? WPT_F_ASYNC : o->backend == WPT_BACKEND_SYNC ? WPT_F_SYNC : WPT_F_ASYNC | WPT_F_SYNC;
	struct wpt_chain *c = NULL;
	int err;

	err = wpt_probe(&p);
	if (!err && !(p.features & ways))
		err = -WPT_E_UNSUPPORTED;
	if (err)
		return report(err, next_attach(err), "run: processes can't be tracked here");
	if (o->new_chain)
		return EXIT_OK;
	err = wpt_chain_open(&c, o->output);
	wpt_chain_close(c);
	if (err == 0 || err == -WPT_E_AMBIGUOUS)
		err = -WPT_E_MISMATCH;
	if (err == -ENOENT)
		return EXIT_OK;
	return report(err, next_write(err), "run: cannot write to %s", o->output);
}

int cmd_run(const struct opts *o)
{
	struct watch w;
	sigset_t mask;
	int code;

	code = check_before(o);
	if (code)
		return code;
	code = watch_open(&w, o, stderr, &mask);
	w.child = true;
	w.s.lines = !o->quiet;
	if (!code)
		code = start_command(&w, &mask);
	if (!code)
		code = run_loop(&w);
	watch_close(&w);
	return code;
}
