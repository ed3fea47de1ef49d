/* SPDX-License-Identifier: MIT */
/*
 * What has become of a traced thread. A stop is left to be seen again, so that its signal stays with the thread: if we are killed before the
 * thread is let go, the kernel gives it that signal. Who was told of the stop by wait4() has taken the signal away.
 */
#ifndef WPT_STOP_WAIT_H
#define WPT_STOP_WAIT_H

#include <signal.h>
#include <sys/wait.h>

#include "sys.h"

/* As wait4(tid, status, WNOHANG | __WALL, NULL): whoever ended is reaped. */
static inline long wpt_stop_wait(pid_t tid, int *status)
{
	siginfo_t info;
	long rc;

	info.si_pid = 0;
	rc = wpt_sys(SYS_waitid, P_PID, tid, &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT | __WALL, NULL);
	if (rc || !info.si_pid)
		return rc;
	if (info.si_code != CLD_TRAPPED)
		return wpt_sys(SYS_wait4, tid, status, WNOHANG | __WALL, NULL);
	*status = info.si_status << 8 | 0x7f;
	return tid;
}

#endif
