/* SPDX-License-Identifier: MIT */
/*
 * System calls that a stop by ptrace ends with EINTR although no signal came, which few programs expect (signal(7) lists them). Where the
 * call would wait for ever, so that waiting anew is the same, its result is changed to "restart unless a handler runs".
 * Calls with a timeout keep their EINTR: to start them anew would prolong them at every stop.
 */
#ifndef WPT_STOP_RESTART_H
#define WPT_STOP_RESTART_H

#include <elf.h>
#include <stdbool.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

#include "sys.h"

#if defined(__x86_64__) && defined(__LP64__)

#define WPT_ERESTARTNOHAND 514
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

static inline bool wpt_restart_fix(struct user_regs_struct *r)
{
	bool endless;

	if ((long)r->rax != -EINTR)
		return false;
	switch ((long)r->orig_rax) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
		endless = (int)r->r10 < 0;
		break;
	case SYS_epoll_pwait2:
	case SYS_semtimedop:
		endless = !r->r10;
		break;
	case SYS_semop:
		endless = true;
		break;
	case SYS_rt_sigtimedwait:
		endless = !r->rdx;
		break;
	case SYS_io_getevents:
		endless = !r->r8;
		break;
	case SYS_io_uring_enter:
		endless = !(r->r10 & 8); /* IORING_ENTER_EXT_ARG, where the timeout is */
		break;
	default:
		endless = false;
	}
	if (endless)
		r->rax = (unsigned long)-WPT_ERESTARTNOHAND;
	return endless;
}

/* For a thread in an event stop, by its tracer. */
static inline void wpt_restart_thread(pid_t tid)
{
	struct user_regs_struct regs;
	struct iovec iov = { &regs, sizeof(regs) };

	if (!wpt_sys(SYS_ptrace, PTRACE_GETREGSET, tid, NT_PRSTATUS, &iov) && iov.iov_len == sizeof(regs) && regs.cs == 0x33 &&
	    wpt_restart_fix(&regs))
		wpt_sys(SYS_ptrace, PTRACE_SETREGSET, tid, NT_PRSTATUS, &iov);
}

#else

static inline void wpt_restart_thread(pid_t tid)
{
	(void)tid;
}

#endif
#endif
