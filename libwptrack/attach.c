/* SPDX-License-Identifier: MIT */
/*
 * Getting a userfaultfd of another process, which nobody prepared for it.
 *
 * One thread of the target is stopped and has an existing system call instruction (of the vDSO or of a library) execute userfaultfd();
 * the descriptor is taken by pidfd_getfd() and the same thread closes its own, unless it is to keep it. Rules, each for a way to harm the target:
 *
 * - All of it is done by a short-lived process of its own, with all signals blocked and in its own session: a tracer that dies between
 *   setting the registers and restoring them leaves the thread with wrong ones.
 * - Such a process seizes one thread only, and lets it go by its end. A thread that executes another program holds a lock that PTRACE_SEIZE
 *   needs, and waits for all others to be dead and reaped by their tracer: who waited for the lock with another thread in hand would hold up both.
 * - Registers are set and restored only in a PTRACE_EVENT_STOP, which is inside the kernel's signal delivery: a system call that the stop
 *   interrupted (its result register says -ERESTART...) is restarted by the kernel after the release. At the end of a system call nobody
 *   would do that, and the program would see the number.
 * - Signals are blocked in the thread meanwhile, so that no handler runs on our registers; they stay pending and are delivered later.
 *   SIGSTOP, which can't be blocked, is let through: the group stops, our thread goes on, and stops with the others when it is released.
 * - A call that the stop ended with EINTR, which no signal explains, is restarted where that is the same (stop_restart.h).
 * - A thread inside a restartable sequence (rseq) is moved to the sequence's abort address: the kernel can't see that it was interrupted.
 * - A seccomp filter is suspended, or nothing is touched.
 *
 * Once registers were set there is no deadline: leaving the thread then would be the harm.
 */
#include "target_impl.h"

#include <elf.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "proc.h"
#include "stop_restart.h"
#include "stop_wait.h"
#include "sys.h"

#if defined(__x86_64__) && defined(__LP64__)

#ifndef PTRACE_GETSIGMASK
#define PTRACE_GETSIGMASK 0x420a
#define PTRACE_SETSIGMASK 0x420b
#endif
#define GET_RSEQ_CONFIGURATION 0x420f
#define GET_SYSCALL_USER_DISPATCH 0x4211
#define USER_CODE_64 0x33
#define SYSCALL_STOP (SIGTRAP | 0x80)
#define EFLAGS_TRAP 0x100
#define KCMP_FILE 0
#define PIDFD_THREAD O_EXCL
#define RETRIES 4
#define SLICE_NS UINT64_C(5000000)

typedef struct user_regs_struct regs_t;

struct inject {
	struct wpt_target *t;
	bool all_faults, keep;
	uint64_t deadline;
	uint64_t insn;     /* of the target's memory: a system call instruction */
	int round;
	size_t tried;      /* threads of this round, by this helper and others */
	size_t listed;
	int died;          /* what it means if the helper is killed now */
	bool more;         /* for another helper */
	/* out */
	int result;
	int uffd;
	bool refused; /* the target's user may not have such a userfaultfd */
};

/* ---- helper process ---- */

static long trace(long request, pid_t tid, uintptr_t addr, uintptr_t data)
{
	return wpt_sys(SYS_ptrace, request, tid, addr, data);
}

static long move_regs(long request, pid_t tid, regs_t *regs)
{
	struct iovec iov = { regs, sizeof(*regs) };
	long rc = trace(request, tid, NT_PRSTATUS, (uintptr_t)&iov);

	/* A program of 32 bits has fewer registers. */
	return rc ? rc : iov.iov_len == sizeof(*regs) ? 0 : -WPT_E_ARCH;
}

/* The next stop: its wait status, or 0 at the deadline (0: none), or -WPT_E_GONE. */
static int next_stop(pid_t tid, uint64_t deadline)
{
	uint64_t sigchld = UINT64_C(1) << (SIGCHLD - 1), now;
	struct timespec ts = { 0, 5000000 };
	int status;
	long rc;

	for (;;) {
		rc = wpt_stop_wait(tid, &status);
		if (rc == tid && WIFSTOPPED(status))
			return status;
		if (rc && rc != -EINTR)
			return -WPT_E_GONE;
		now = wpt_now_ns();
		if (deadline && now >= deadline)
			return 0;
		if (deadline)
			ts.tv_nsec = (long)WPT_MIN(deadline - now, UINT64_C(5000000));
		wpt_sys(SYS_rt_sigtimedwait, &sigchld, NULL, &ts, sizeof(sigchld));
	}
}

static bool is_event_stop(int status)
{
	return status >> 16 == WPT_PTRACE_EVENT_STOP;
}

static bool is_waiting(struct inject *in, pid_t tid)
{
	struct wpt_proc_stat st;
	char path[64];

	return wpt_proc_stat(in->t->task, wpt_proc_path(path, "", (uint64_t)tid, "/stat"), &st) || st.state == 'D';
}

/*
 * Until the thread is where its registers may be set; `until` is for one that no interrupt reaches where it is. Others are not left before the
 * deadline: a thread that was interrupted, and has not got the processor yet, would find its call ended without a reason. Signals on the way are
 * delivered as if nobody watched, and those that the program ignores would not have ended a call then. Any stop cancels a pending interrupt, so
 * each one is followed by another.
 */
static int settle(struct inject *in, pid_t tid, uint64_t until)
{
	int status;

	for (;;) {
		status = next_stop(tid, until);
		if (!status && until < in->deadline && !is_waiting(in, tid)) {
			until = WPT_MIN(in->deadline, until + SLICE_NS);
			continue;
		}
		if (status <= 0)
			return status ? status : -WPT_E_STOP_TIMEOUT;
		if (is_event_stop(status))
			return 0;
		wpt_restart_thread(tid);
		if (trace(PTRACE_INTERRUPT, tid, 0, 0) || trace(PTRACE_CONT, tid, 0, (uintptr_t)WSTOPSIG(status)))
			return -WPT_E_GONE;
	}
}

/*
 * Goes on with `request` until a stop at a system call's entry or exit, or with `event` until the next event stop. The only signal that can
 * come is SIGSTOP; any other one is our own doing and must not reach the program.
 */
static int go(pid_t tid, long request, bool event)
{
	uintptr_t signal = 0;
	int status;

	for (;;) {
		if ((event && trace(PTRACE_INTERRUPT, tid, 0, 0)) || trace(request, tid, 0, signal))
			return -WPT_E_GONE;
		status = next_stop(tid, 0);
		if (status < 0)
			return status;
		signal = 0;
		if (is_event_stop(status)) {
			if (event)
				return 0;
		} else if (WSTOPSIG(status) == SYSCALL_STOP) {
			if (!event)
				return 0;
		} else if (WSTOPSIG(status) == SIGSTOP) {
			signal = SIGSTOP;
		} else {
			/* Only since Linux 6.4 is there a way to know before (dispatches_syscalls). */
			return WSTOPSIG(status) == SIGSYS ? -WPT_E_SECCOMP : -EFAULT;
		}
	}
}

/* One system call by the thread. Starts and ends in an event stop. */
static long call(pid_t tid, const regs_t *saved, uint64_t insn, long nr, long a)
{
	regs_t regs = *saved;
	int rc;

	regs.rip = insn;
	regs.rax = (unsigned long)nr;
	regs.orig_rax = (unsigned long)-1; /* not in a system call: nothing to restart */
	regs.rdi = (unsigned long)a;
	regs.eflags &= ~(unsigned long)EFLAGS_TRAP;
	if (move_regs(PTRACE_SETREGSET, tid, &regs))
		return -WPT_E_GONE;
	rc = go(tid, PTRACE_SYSCALL, false);
	if (!rc)
		rc = go(tid, PTRACE_SYSCALL, false);
	if (!rc && move_regs(PTRACE_GETREGSET, tid, &regs))
		rc = -WPT_E_GONE;
	if (!rc)
		rc = go(tid, PTRACE_CONT, true);
	return rc ? rc : (long)regs.rax;
}

static bool read_target(struct inject *in, uint64_t addr, void *buf, size_t len)
{
	return wpt_mem_pread(in->t->mem, buf, len, addr) == (ssize_t)len;
}

struct rseq_area {
	uint32_t cpu_id_start, cpu_id;
	uint64_t cs;
};

struct rseq_section {
	uint32_t version, flags;
	uint64_t start, length, abort;
};

static void leave_rseq(struct inject *in, pid_t tid, regs_t *regs)
{
	struct { uint64_t area; uint32_t size, signature, flags, pad; } config;
	struct rseq_section section;
	struct rseq_area area;

	if (trace(GET_RSEQ_CONFIGURATION, tid, sizeof(config), (uintptr_t)&config) < 0 || !config.area)
		return;
	if (!read_target(in, config.area, &area, sizeof(area)) || !area.cs)
		return;
	if (read_target(in, area.cs, &section, sizeof(section)) && regs->rip - section.start < section.length)
		regs->rip = section.abort;
}

/* A program that handles its own system calls (Wine) would get SIGSYS for ours. */
static bool dispatches_syscalls(pid_t tid)
{
	struct { uint64_t mode, selector, offset, len; } config = { 0, 0, 0, 0 };

	return trace(GET_SYSCALL_USER_DISPATCH, tid, sizeof(config), (uintptr_t)&config) >= 0 && config.mode;
}

/* The thread still runs the program whose memory was opened, in 64-bit mode, and the instruction is there. */
static int verify(struct inject *in, pid_t tid, const regs_t *regs)
{
	struct wpt_target *t = in->t;
	uint8_t token[WPT_TOKEN_BYTES], insn[2];
	struct iovec local = { token, sizeof(token) };
	struct iovec remote = { (void *)(uintptr_t)t->token_addr, sizeof(token) };

	if (regs->cs != USER_CODE_64)
		return -WPT_E_ARCH;
	if (wpt_sys(SYS_process_vm_readv, tid, &local, 1, &remote, 1, 0) != sizeof(token) || memcmp(token, t->token, sizeof(token)))
		return -WPT_E_GONE;
	if (!read_target(in, in->insn, insn, sizeof(insn)) || insn[0] != 0x0f || insn[1] != 0x05)
		return -WPT_E_GONE;
	return dispatches_syscalls(tid) ? -WPT_E_SECCOMP : 0;
}

static bool is_userfaultfd(int dir, const char *path)
{
	static const char want[] = "anon_inode:[userfaultfd]";
	char link[sizeof(want)];

	return wpt_sys(SYS_readlinkat, dir, path, link, sizeof(link)) == sizeof(want) - 1 && !memcmp(link, want, sizeof(want) - 1);
}

static bool is_ours_userfaultfd(int fd)
{
	char path[64];

	return is_userfaultfd(AT_FDCWD, wpt_proc_path(path, "/proc/self/fd/", (uint64_t)fd, ""));
}

static bool is_theirs_userfaultfd(struct inject *in, pid_t tid, int fd)
{
	char prefix[64], path[64];

	wpt_proc_path(prefix, "", (uint64_t)tid, "/fd/");
	return is_userfaultfd(in->t->task, wpt_proc_path(path, prefix, (uint64_t)fd, ""));
}

/* The descriptor `fd` of the thread, if it is the one it has just made: other threads may have closed or replaced it. */
static int take(struct inject *in, pid_t tid, int fd)
{
	int pidfd, ours;
	long rc;

	/* The thread's own table, which need not be the leader's; older kernels know only the leader's. */
	pidfd = (int)wpt_sys(SYS_pidfd_open, tid, PIDFD_THREAD);
	ours = (int)wpt_sys(SYS_pidfd_getfd, pidfd >= 0 ? pidfd : in->t->pidfd, fd, 0);
	if (pidfd >= 0)
		wpt_sys(SYS_close, pidfd);
	if (pidfd < 0 && (ours == -EBADF || ours == -ESRCH) && wpt_proc_is_exiting(in->t->task, (uint64_t)in->t->pid))
		return -WPT_E_UNSUPPORTED;
	if (ours < 0)
		return ours == -EBADF || ours == -ESRCH ? -EAGAIN : ours;
	rc = wpt_sys(SYS_kcmp, tid, wpt_sys(SYS_getpid), KCMP_FILE, fd, ours);
	if (rc > 0 || !is_ours_userfaultfd(ours)) {
		wpt_sys(SYS_close, ours);
		return -EAGAIN;
	}
	return ours;
}

static int make_uffd(struct inject *in, pid_t tid, const regs_t *saved)
{
	long fd, rc;

	fd = call(tid, saved, in->insn, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if ((fd == -EPERM || fd == -EACCES) && !in->all_faults)
		fd = call(tid, saved, in->insn, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	in->refused = fd == -EPERM || fd == -EACCES;
	if (fd < 0)
		return fd == -ENOSYS || fd == -EINVAL ? -WPT_E_UNSUPPORTED : (int)fd;
	in->uffd = take(in, tid, (int)fd);
	/* What could not be taken may be another thread's file by now, which is not to be closed. */
	if (in->uffd < 0 && !is_theirs_userfaultfd(in, tid, (int)fd))
		return in->uffd;
	if (in->uffd >= 0 && in->keep)
		return 0;
	rc = call(tid, saved, in->insn, SYS_close, fd);
	if (rc == -WPT_E_GONE || in->uffd < 0)
		return in->uffd < 0 ? in->uffd : -WPT_E_GONE;
	return 0;
}

/* The thread is in an event stop and leaves it as it came. */
static int with_stopped(struct inject *in, pid_t tid)
{
	uint64_t all = UINT64_MAX, mask;
	regs_t saved;
	int rc;

	rc = (int)move_regs(PTRACE_GETREGSET, tid, &saved);
	if (!rc)
		rc = verify(in, tid, &saved);
	if (!rc && (trace(PTRACE_GETSIGMASK, tid, sizeof(mask), (uintptr_t)&mask) ||
		    trace(PTRACE_SETSIGMASK, tid, sizeof(all), (uintptr_t)&all)))
		rc = -WPT_E_GONE;
	if (rc)
		return rc;
	leave_rseq(in, tid, &saved);
	wpt_restart_fix(&saved);
	rc = make_uffd(in, tid, &saved);
	if (rc == -WPT_E_GONE)
		return rc;
	if (move_regs(PTRACE_SETREGSET, tid, &saved) || trace(PTRACE_SETSIGMASK, tid, sizeof(mask), (uintptr_t)&mask))
		return -WPT_E_GONE;
	return rc;
}

/* Waits as long as another thread of the target executes a program, but not longer than the attempt may take: SIGALRM ends the helper. */
static long seize(struct inject *in, pid_t tid, long options)
{
	uint64_t sigalrm = UINT64_C(1) << (SIGALRM - 1);
	long rc;

	in->died = -WPT_E_STOP_TIMEOUT;
	wpt_sys(SYS_rt_sigprocmask, SIG_UNBLOCK, &sigalrm, NULL, sizeof(sigalrm));
	rc = trace(PTRACE_SEIZE, tid, 0, (uintptr_t)options);
	wpt_sys(SYS_rt_sigprocmask, SIG_BLOCK, &sigalrm, NULL, sizeof(sigalrm));
	in->died = -EIO;
	return rc;
}

/*
 * With the options that the thread's seccomp mode asks for. A filter that it installs between our look and its stop is found by a second
 * look.
 */
static int with_thread(struct inject *in, pid_t tid, uint64_t until)
{
	long options = WPT_PTRACE_O_TRACESYSGOOD, rc;
	struct wpt_proc_status st;
	char path[64];

	wpt_proc_path(path, "", (uint64_t)tid, "/status");
	rc = wpt_proc_status(in->t->task, path, &st);
	if (rc)
		return (int)rc;
	if (st.seccomp)
		options |= WPT_PTRACE_O_SUSPEND_SECCOMP;
	if (st.tracer)
		return -WPT_E_TRACED;
	rc = seize(in, tid, options);
	if (rc && wpt_proc_is_exiting(in->t->task, (uint64_t)tid))
		return -ESRCH;
	/* Somebody else was quicker. */
	if (rc && !wpt_proc_status(in->t->task, path, &st) && st.tracer)
		return -WPT_E_TRACED;
	if (rc)
		return !st.seccomp ? (int)rc : -WPT_E_SECCOMP;
	if (trace(PTRACE_INTERRUPT, tid, 0, 0))
		return -ESRCH;
	rc = settle(in, tid, until);
	if (rc)
		return rc == -WPT_E_GONE ? -ESRCH : (int)rc;
	rc = wpt_proc_status(in->t->task, path, &st);
	if (!rc && st.seccomp && trace(PTRACE_SETOPTIONS, tid, 0, WPT_PTRACE_O_TRACESYSGOOD | WPT_PTRACE_O_SUSPEND_SECCOMP))
		rc = -WPT_E_SECCOMP;
	if (!rc)
		rc = with_stopped(in, tid);
	trace(PTRACE_DETACH, tid, 0, 0);
	return (int)rc;
}

/*
 * A slice for each thread that does not stop, longer in each round. Those that look as if they can't stop (vfork, disk) or are stopped already come
 * in the second round.
 */
static int try_thread(void *arg, uint64_t tid)
{
	struct inject *in = arg;
	struct wpt_proc_stat st;
	uint64_t now = wpt_now_ns();
	char path[64];
	int rc;

	if (in->listed++ < in->tried)
		return 0;
	in->tried++;
	if (now >= in->deadline)
		return -WPT_E_STOP_TIMEOUT;
	if (wpt_proc_stat(in->t->task, wpt_proc_path(path, "", tid, "/stat"), &st) || wpt_proc_is_exiting(in->t->task, tid))
		return 0;
	if (in->round == 0 && (st.state == 'D' || st.state == 't' || st.state == 'T'))
		return 0;
	rc = with_thread(in, (pid_t)tid, WPT_MIN(in->deadline, now + (SLICE_NS << WPT_MIN(in->round, 6))));
	in->more = rc == -ESRCH || rc == -WPT_E_STOP_TIMEOUT;
	if (rc != -ESRCH)
		in->result = rc;
	return 1;
}

static void helper(struct inject *in)
{
	uint64_t now = wpt_now_ns(), left = (in->deadline > now ? in->deadline - now : 0) / 1000 + 1;
	struct itimerval timer = { { 0, 0 }, { (time_t)(left / 1000000), (suseconds_t)(left % 1000000) } };
	struct sigaction act = { .sa_handler = SIG_DFL };
	int rc;

	/* The parent may ignore SIGCHLD; this process has handlers of its own. */
	sigaction(SIGCHLD, &act, NULL);
	sigaction(SIGALRM, &act, NULL);
	wpt_sys(SYS_setitimer, ITIMER_REAL, &timer, NULL);
	wpt_sys(SYS_setsid);
	in->listed = 0;
	rc = wpt_proc_numbers(in->t->task, try_thread, in);
	if (rc == 0) {
		in->tried = 0;
		in->round++;
		in->more = in->round < 2 || in->result == -WPT_E_STOP_TIMEOUT;
	} else if (rc < 0) {
		in->result = rc == -ENOENT || rc == -ESRCH ? -WPT_E_GONE : rc;
	}
	in->died = 0;
}

/* ---- caller ---- */

/*
 * The helper has a copy of our memory, so that nothing that befalls us befalls it, but shares our descriptors: what it opens is ours. It
 * sends no signal when it ends, and inherits that all signals are blocked.
 */
static int run_helper(struct inject *in)
{
	uint64_t all = UINT64_MAX, old;
	long pid;

	in->more = false;
	in->died = -EIO;
	wpt_sys(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, sizeof(all));
	pid = wpt_sys(SYS_clone, CLONE_FILES, 0, 0, 0, 0);
	if (pid == 0) {
		helper(in);
		for (;;)
			wpt_sys(SYS_exit_group, 0);
	}
	wpt_sys(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, sizeof(old));
	if (pid < 0)
		return (int)pid;
	while (wpt_sys(SYS_wait4, pid, NULL, __WALL, NULL) == -EINTR)
		;
	return in->died;
}

static int run_helpers(struct inject *in)
{
	int rc;

	in->uffd = -1;
	in->result = -WPT_E_GONE;
	in->round = 0;
	in->tried = 0;
	do
		rc = run_helper(in);
	while (!rc && in->more);
	rc = rc ? rc : in->result;
	if (rc && in->uffd >= 0)
		wpt_fd_close(&in->uffd);
	return rc;
}

static uint64_t search(struct wpt_target *t, const struct wpt_map *map, uint8_t *buf, size_t size)
{
	uint64_t addr;
	ssize_t n, i;

	for (addr = map->start; addr < map->end; addr += (uint64_t)(n - 1)) {
		n = wpt_mem_pread(t->mem, buf, (size_t)WPT_MIN((uint64_t)size, map->end - addr), addr);
		if (n < 2)
			return 0;
		for (i = 0; i + 1 < n; i++)
			if (buf[i] == 0x0f && buf[i + 1] == 0x05)
				return addr + (uint64_t)i;
	}
	return 0;
}

/* The vDSO comes last in the list, is there as good as always, and is never unmapped. */
static int find_insn(struct wpt_target *t, uint64_t *insn)
{
	struct wpt_maps maps = { .raw = 0 };
	uint8_t *buf;
	size_t i;
	int rc;

	buf = wpt_vm_alloc(65536);
	rc = buf ? wpt_target_maps(t, &maps) : -ENOMEM;
	*insn = 0;
	for (i = maps.maps.count; !rc && i-- > 0 && !*insn;)
		if (wpt_map_at(&maps, i)->exec && strcmp(wpt_map_name(&maps, wpt_map_at(&maps, i)), "[vsyscall]"))
			*insn = search(t, wpt_map_at(&maps, i), buf, 65536);
	wpt_maps_free(&maps);
	wpt_vm_free(buf, 65536);
	if (!rc && !*insn) {
		rc = wpt_target_alive(t);
		rc = rc ? rc : -EAGAIN; /* none yet: a program is being loaded */
	}
	return rc;
}

int wpt_target_inject(struct wpt_target *t, bool all_faults, bool keep, uint64_t deadline)
{
	struct inject *in;
	int rc, i;

	if (!t->token_valid)
		return -WPT_E_ARCH; /* the program's auxiliary vector is not in words of 64 bits */
	in = mmap(NULL, sizeof(*in), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (in == MAP_FAILED)
		return -ENOMEM;
	in->t = t;
	in->all_faults = all_faults;
	in->keep = keep;
	in->deadline = deadline;
	rc = find_insn(t, &in->insn);
	for (i = 0; !rc && i < RETRIES; i++) {
		rc = run_helpers(in);
		if (rc != -EAGAIN)
			break;
		rc = i + 1 < RETRIES ? 0 : rc;
	}
	if (rc && in->refused)
		wpt_logf(&t->log, WPT_LOG_ERROR, "the target's user may not have a userfaultfd%s: root has it, or set vm.unprivileged_userfaultfd=1",
			 all_faults ? " that handles faults of system calls, which is needed here" : "");
	rc = rc ? rc : in->uffd;
	munmap(in, sizeof(*in));
	return rc;
}

#else

int wpt_target_inject(struct wpt_target *t, bool all_faults, bool keep, uint64_t deadline)
{
	(void)t;
	(void)all_faults;
	(void)keep;
	(void)deadline;
	return -WPT_E_UNSUPPORTED;
}

#endif
