/* SPDX-License-Identifier: MIT */
/*
 * What a watch waits for: signals (blocked, so none is lost while a link is taken), the period's timer, and the end of its targets. What came
 * during a link is found at the next wait and answered by one link.
 */
#include "wpsnap.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif

static int block_signals(sigset_t *old)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGUSR1);
	if (sigprocmask(SIG_BLOCK, &set, old))
		return -errno;
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int events_open(struct events *e, const struct command *cmd, sigset_t *mask)
{
	int err;

	memset(e, 0, sizeof(*e));
	e->timer = e->pass_on = -1;
	e->signals = block_signals(mask);
	if (e->signals < 0)
		return report(e->signals, NULL, "%s: cannot receive signals", cmd->name);
	e->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (e->timer < 0) {
		err = -errno;
		return report(err, NULL, "%s: cannot make a timer", cmd->name);
	}
	return EXIT_OK;
}

void events_close(struct events *e)
{
	if (e->signals >= 0)
		close(e->signals);
	if (e->timer >= 0)
		close(e->timer);
}

void events_start_timer(struct events *e, uint64_t every_ns)
{
	struct itimerspec its = { 0 };

	its.it_interval.tv_sec = (time_t)(every_ns / 1000000000);
	its.it_interval.tv_nsec = (long)(every_ns % 1000000000);
	its.it_value = its.it_interval;
	timerfd_settime(e->timer, 0, &its, NULL);
}

static void read_signals(struct events *e)
{
	struct signalfd_siginfo si;

	while (read(e->signals, &si, sizeof(si)) == (ssize_t)sizeof(si)) {
		if (si.ssi_signo == SIGUSR1)
			e->signal = true;
		else if (e->pass_on < 0)
			e->end = true;
		else if (si.ssi_code != SI_KERNEL) /* the terminal sent it to the command, too */
			syscall(SYS_pidfd_send_signal, e->pass_on, (int)si.ssi_signo, NULL, 0);
	}
}

int events_wait(struct events *e, const int *pidfds, bool *gone, size_t nr)
{
	struct pollfd *fds = calloc(nr + 2, sizeof(*fds));
	uint64_t expirations;
	size_t i;
	int err = 0;

	if (!fds)
		return -ENOMEM;
	e->signal = e->period = e->end = false;
	fds[0].fd = e->signals;
	fds[1].fd = e->timer;
	for (i = 0; i < nr + 2; i++) {
		if (i >= 2)
			fds[i].fd = pidfds[i - 2];
		fds[i].events = POLLIN;
	}
	if (poll(fds, (nfds_t)nr + 2, e->timeout_ms > 0 ? e->timeout_ms : -1) < 0) {
		err = errno == EINTR ? 0 : -errno;
		for (i = 0; i < nr + 2; i++)
			fds[i].revents = 0;
	}
	read_signals(e);
	if (fds[1].revents & POLLIN && read(e->timer, &expirations, sizeof(expirations)) == (ssize_t)sizeof(expirations))
		e->period = true;
	for (i = 0; i < nr; i++)
		gone[i] = fds[i + 2].revents != 0;
	free(fds);
	return err;
}
