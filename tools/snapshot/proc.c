/* SPDX-License-Identifier: MIT */
/* What a pid is, before it is attached to: the errors that can be explained better than by the failure of the attach. */
#include "wpsnap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define KERNEL_THREAD 0x00200000ul /* PF_KTHREAD, as /proc/PID/stat shows it */

struct proc_state {
	char state;
	unsigned long flags;
	long tgid;
};

static int read_stat(pid_t pid, struct proc_state *s)
{
	char path[64], line[1024];
	const char *p;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return errno == ENOENT ? -ESRCH : -errno;
	p = fgets(line, sizeof(line), f);
	fclose(f);
	/* the name may hold anything, a bracket too: fields begin behind the last one */
	p = p ? strrchr(line, ')') : NULL;
	if (!p || sscanf(p + 1, " %c %*d %*d %*d %*d %*d %lu", &s->state, &s->flags) != 2)
		return -ESRCH;
	return 0;
}

static int read_tgid(pid_t pid, long *tgid)
{
	char path[64], line[256];
	FILE *f;

	*tgid = -1;
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return errno == ENOENT ? -ESRCH : -errno;
	while (*tgid < 0 && fgets(line, sizeof(line), f))
		if (sscanf(line, "Tgid: %ld", tgid) != 1)
			*tgid = -1;
	fclose(f);
	return *tgid < 0 ? -ESRCH : 0;
}

static int check(const struct command *cmd, pid_t pid)
{
	struct proc_state s;
	int err;

	err = read_stat(pid, &s);
	if (!err)
		err = read_tgid(pid, &s.tgid);
	if (err)
		return report(err, next_attach(err), "%s: cannot attach to process %d", cmd->name, (int)pid);
	if (s.tgid != pid)
		return usage_error(cmd, "%d is a thread of process %ld; give that", (int)pid, s.tgid);
	if (s.flags & KERNEL_THREAD) {
		complain("%s: cannot attach to process %d: it is a kernel thread and has no memory of its own; give the pid of a program",
			 cmd->name, (int)pid);
		return EXIT_FAILED;
	}
	if (s.state == 'Z' || s.state == 'X') {
		report(-WPT_E_GONE, "it is a zombie that its parent did not wait for", "%s: cannot attach to process %d", cmd->name,
		       (int)pid);
		return EXIT_GONE;
	}
	return EXIT_OK;
}

int proc_open_pid(const struct command *cmd, pid_t pid, int *pidfd)
{
	int fd, code, err;

	if (pid == getpid())
		return usage_error(cmd, "%d is wpsnap itself; a program snapshots itself with libwptrack(7)", (int)pid);
	code = check(cmd, pid);
	if (code)
		return code;
	fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (fd < 0) {
		err = -errno;
		return report(err, next_attach(err), "%s: cannot attach to process %d", cmd->name, (int)pid);
	}
	*pidfd = fd;
	return EXIT_OK;
}

int proc_open(const struct command *cmd, const char *arg, pid_t *pid, int *pidfd)
{
	if (parse_pid(arg, pid))
		return usage_error(cmd, "'%s' is not the pid of a process", arg);
	return proc_open_pid(cmd, *pid, pidfd);
}
