/* SPDX-License-Identifier: MIT */
/*
 * Memory of a virtual machine that comes out of the chain while the guest runs already. Without us it would not come any more, and what the guest
 * knows would be in part nowhere: a process that outlives wpsnap ends QEMU then.
 */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#define LAZY_NAME "wpsnap-lazy"
#define ASK_US 20000
#define SLOW_NS UINT64_C(1000000000)
#define RECOVERY_NS UINT64_C(10000000000)

struct vm_lazy {
	const struct opts *o;
	struct wpt_lazy *l;
	uint64_t begin_ns;
	pid_t keeper;
	int hold;                  /* the keeper ends when it is told so by it, or QEMU when it is closed without */
};

/* ---- the keeper ---- */

static void __attribute__((noreturn)) keeper_main(int told, int qemu)
{
	struct pollfd wait = { .events = POLLIN };
	sigset_t all;
	char word = 'r';

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	setsid();
	prctl(PR_SET_NAME, "wpsnap-keeper");
	/* The two, and no other: locks of chains and ends of pipes are held by descriptors. */
	told = fcntl(told, F_DUPFD, 5);
	qemu = fcntl(qemu, F_DUPFD, 5);
	if (told < 0 || qemu < 0 || dup2(told, 3) != 3 || dup2(qemu, 4) != 4 || write(3, &word, 1) != 1)
		_exit(1);
	syscall(SYS_close_range, 5u, ~0u, 0);
	wait.fd = 3;
	while (poll(&wait, 1, -1) < 0 && errno == EINTR)
		;
	if (read(3, &word, 1) != 1)
		syscall(SYS_pidfd_send_signal, 4, SIGKILL, NULL, 0);
	_exit(0);
}

static int keeper_start(struct vm_lazy *v, int pidfd)
{
	char word;
	int fds[2], err = 0;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds))
		return -errno;
	v->keeper = fork();
	if (v->keeper == 0) {
		close(fds[1]);
		keeper_main(fds[0], pidfd);
	}
	if (v->keeper < 0)
		err = -errno;
	close(fds[0]);
	if (!err && read(fds[1], &word, 1) != 1) {
		waitpid(v->keeper, NULL, 0);
		err = -EMFILE;
	}
	if (err) {
		close(fds[1]);
		v->keeper = 0;
		return err;
	}
	v->hold = fds[1];
	return 0;
}

static void keeper_end(struct vm_lazy *v)
{
	if (!v->keeper)
		return;
	while (send(v->hold, "e", 1, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
	close(v->hold);
	while (waitpid(v->keeper, NULL, 0) < 0 && errno == EINTR)
		;
	v->keeper = 0;
}

/* ---- the memory ---- */

static void say(void *arg, enum wpt_log_level level, const char *message)
{
	const struct vm_lazy *v = arg;

	if (level <= WPT_LOG_WARNING)
		complain("%s: %s", v->o->cmd->name, message);
}

static const char *next_lazy(int err)
{
	if (err == -WPT_E_UNSUPPORTED || err == -EINVAL)
		return "lazy restores need memory of a memfd, a tmpfs or hugetlbfs, whole huge pages, and Linux 5.13; without --lazy it works";
	return err == -EEXIST ? "somebody else writes to its file" : next_attach(err);
}

int vm_lazy_open(struct vm_lazy **out, const struct opts *o, struct wpt_chain *c, pid_t pid, int pidfd)
{
	struct wpt_lazy_options lo = {
		.size = sizeof(lo), .pid = pid, .flags = o->collapse ? WPT_LAZY_COLLAPSE : 0, .nr_fill_threads = o->nr_threads, .log = say,
		.stop_timeout_ms = 2000,
	};
	struct vm_lazy *v = calloc(1, sizeof(*v));
	int err;

	if (!v)
		return report(-ENOMEM, NULL, "%s", o->cmd->name);
	v->o = o;
	v->begin_ns = now_ns();
	lo.log_arg = v;
	err = keeper_start(v, pidfd);
	if (!err)
		err = wpt_lazy_open(&v->l, c, &lo);
	if (err) {
		vm_lazy_close(v);
		return report(err, next_lazy(err), "%s: QEMU's memory can't be restored lazily", o->cmd->name);
	}
	*out = v;
	return EXIT_OK;
}

int vm_lazy_add(struct vm_lazy *v, const struct vm_block *from, const struct vm_block *to)
{
	uint64_t unreadable = 0;
	int err;

	err = wpt_lazy_add(v->l, from->start, from->start + from->size, to->start, &unreadable);
	if (err)
		return report(err, next_lazy(err), "%s: the memory '%s' can't be restored lazily", v->o->cmd->name, from->id);
	if (!unreadable)
		return EXIT_OK;
	complain("%s: %" PRIu64 " pages of the memory '%s' could not be read when the snapshot was taken", v->o->cmd->name, unreadable, from->id);
	return EXIT_FAILED;
}

int vm_lazy_start(struct vm_lazy *v)
{
	int err = wpt_lazy_start(v->l);

	if (!err)
		prctl(PR_SET_NAME, LAZY_NAME);
	return err ? report(err, next_lazy(err), "%s: QEMU's memory can't be restored lazily", v->o->cmd->name) : EXIT_OK;
}

int vm_lazy_fill(struct vm_lazy *v)
{
	int err = wpt_lazy_fill(v->l);

	return err ? report(err, NULL, "%s: the rest of the memory can't be restored", v->o->cmd->name) : EXIT_OK;
}

int vm_lazy_fd(const struct vm_lazy *v)
{
	return wpt_lazy_fd(v->l);
}

uint64_t vm_lazy_left(const struct vm_lazy *v)
{
	struct wpt_lazy_stats s = { .size = sizeof(s) };

	return wpt_lazy_stats(v->l, &s) ? 0 : s.bytes_left;
}

bool vm_lazy_fails(const struct vm_lazy *v)
{
	struct wpt_lazy_stats s = { .size = sizeof(s) };

	/* A store that is away may also just not answer; and when all is well again it takes QEMU a while to get on. */
	return !wpt_lazy_stats(v->l, &s) && (s.failing_ns || s.reading_ns > SLOW_NS || (s.recovered_ns && s.recovered_ns < RECOVERY_NS));
}

int vm_lazy_result(struct vm_lazy *v)
{
	struct wpt_lazy_stats s = { .size = sizeof(s) };
	char size[UNITS_TEXT], took[UNITS_TEXT];
	int err = wpt_lazy_wait(v->l, 0);

	if (err)
		return report(err, next_read(err), "%s: the rest of the memory can't be restored", v->o->cmd->name);
	wpt_lazy_stats(v->l, &s);
	if (!v->o->quiet)
		complain("all memory of %s is there: %s after %s; the guest waited for %" PRIu64 " pages", v->o->args[0],
			 format_size(size, s.bytes_data), format_duration(took, now_ns() - v->begin_ns), s.nr_faults);
	return EXIT_OK;
}

void vm_lazy_close(struct vm_lazy *v)
{
	if (!v)
		return;
	wpt_lazy_close(v->l);
	keeper_end(v);
	prctl(PR_SET_NAME, "wpsnap");
	free(v);
}

/* ---- from outside ---- */

/* The process that restores it; 0: none does. */
static pid_t restorer_of(pid_t pid)
{
	char path[64], text[512], *p;
	pid_t parent = 0;
	size_t len;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	len = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
	if (f)
		fclose(f);
	text[len] = 0;
	p = strrchr(text, ')');
	if (!p || sscanf(p + 1, " %*c %d", &parent) != 1)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)parent);
	f = fopen(path, "re");
	if (!f || !fgets(text, sizeof(text), f) || strcmp(text, LAZY_NAME "\n") != 0)
		parent = 0;
	if (f)
		fclose(f);
	return parent;
}

/* Signals may be blocked, for somebody who reads them later. */
static bool is_asked_to_end(void)
{
	sigset_t pending;

	sigpending(&pending);
	return interrupt_asked() || sigismember(&pending, SIGINT) || sigismember(&pending, SIGTERM);
}

int vm_lazy_await(const struct opts *o, pid_t pid)
{
	pid_t restorer = pid > 0 ? restorer_of(pid) : 0;

	if (!restorer)
		return 0;
	if (!o->quiet)
		complain("%s: process %d still restores the machine's memory; a snapshot can be taken when all is there, and is then", o->cmd->name,
			 (int)restorer);
	while (restorer_of(pid) == restorer) {
		if (is_asked_to_end())
			return -ECANCELED;
		usleep(ASK_US);
	}
	return 1;
}
