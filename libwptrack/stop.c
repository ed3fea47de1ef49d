/* SPDX-License-Identifier: MIT */
/*
 * Stopping a target by ptrace.
 *
 * The tracer is a process of its own, the keeper: it shares our memory and descriptors and lives from stop to resume. So the caller's
 * wait() and SIGCHLD handler see nothing of it; a thread that can't be stopped in time is let go by the keeper's exit; and when we die
 * the kernel kills the keeper, which lets the target run. The keeper shares the calling thread's errno, hence sys.h.
 *
 * A thread is stopped when the keeper has seen its stop. All are when every thread on the list is, and the kernel counts as many
 * threads as the list: none of them can have made another one then.
 *
 * While we are stopped by a signal nobody would let the target go: the keeper then does, and the stop is lost (wpt_stop_lost). It has a process group
 * of its own, lest a SIGSTOP for all of ours stops it too.
 *
 * A thread that executes another program first waits for all others of its process to be dead and reaped, by their tracer if they have one, and
 * meanwhile holds a lock that PTRACE_SEIZE needs. So the dead are reaped while the keeper waits: for a stop, and, by a signal handler, for the lock.
 *
 * Synchronization: `state` is a futex word. The keeper owns the rest of struct wpt_stop while it is ASKED, the caller otherwise.
 */
#include "target_impl.h"

#include <elf.h>
#include <linux/futex.h>
#include <linux/stat.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "proc.h"
#include "stop_restart.h"
#include "stop_wait.h"
#include "sys.h"

enum { IDLE, ASKED, ANSWERED };
enum command { STOP, REGISTERS, RELEASE };

#if defined(__x86_64__)
#define MACHINE EM_X86_64
#elif defined(__i386__)
#define MACHINE EM_386
#elif defined(__aarch64__)
#define MACHINE EM_AARCH64
#elif defined(__s390__)
#define MACHINE EM_S390
#elif defined(__powerpc64__)
#define MACHINE EM_PPC64
#elif defined(__riscv)
#define MACHINE EM_RISCV
#elif defined(__arm__)
#define MACHINE EM_ARM
#else
#define MACHINE EM_NONE
#endif

#ifndef NT_FPREGSET
#define NT_FPREGSET NT_PRFPREG
#endif

#define STACK_BYTES 131072
#define POLL_NS 5000000
#define LOOK_NS 20000000 /* longer than most pauses */

struct thread {
	pid_t pid, tid;
	int signal;   /* taken from the thread by our stop, to be given back */
	bool stopped;
	bool zombie;  /* a leader that exited before its threads */
	bool gone;
};

struct process {
	pid_t pid;
	int task;
};

struct wpt_stop {
	_Atomic uint32_t state;
	enum command command;
	int result;
	_Atomic pid_t keeper; /* 0: none */
	atomic_bool let_go;   /* by the keeper, unasked. Set before the first thread runs */
	pid_t self, caller;   /* process and thread */
	struct wpt_target *target;
	uint64_t deadline, started;
	struct wpt_vec processes;
	struct wpt_vec threads;
	struct wpt_vec others; /* pid_t, ascending as in /proc: processes known not to share the memory */
	struct wpt_vec *registers;
	size_t hint, other;
	int proc;             /* /proc */
	pid_t known;          /* a thread of the target, with which others are compared */
	bool found;
	volatile sig_atomic_t seizing;
	char *stack;
};

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
	return wpt_sys(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout);
}

static struct process *process_at(struct wpt_stop *s, size_t i)
{
	return wpt_vec_at(&s->processes, struct process, i);
}

static struct thread *thread_at(struct wpt_stop *s, size_t i)
{
	return wpt_vec_at(&s->threads, struct thread, i);
}

/* ---- keeper: from here on no errno, no malloc ---- */

static int process_add(struct wpt_stop *s, pid_t pid)
{
	struct process *p;
	char path[64];
	int fd;

	fd = (int)wpt_sys(SYS_openat, AT_FDCWD, wpt_proc_path(path, "/proc/", (uint64_t)pid, "/task"),
			  O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return fd == -ENOENT || fd == -ESRCH ? 0 : fd;
	p = wpt_vec_push(&s->processes);
	if (!p) {
		wpt_sys(SYS_close, fd);
		return -ENOMEM;
	}
	p->pid = pid;
	p->task = fd;
	return 0;
}

static bool is_zombie(char state)
{
	return state == 'Z' || state == 'X';
}

/* Why a thread can't be seized. 0: it is gone, or is a zombie that counts. */
static int seize_failed(struct wpt_stop *s, const struct process *p, struct thread *th, long rc)
{
	struct wpt_proc_status st;
	char path[64];

	th->gone = true;
	if (rc == -ESRCH)
		return 0;
	if (wpt_proc_status(p->task, wpt_proc_path(path, "", (uint64_t)th->tid, "/status"), &st))
		return 0;
	if (is_zombie(st.state)) {
		th->zombie = th->tid == p->pid;
		th->gone = !th->zombie;
		return 0;
	}
	if (p->pid != s->target->pid)
		return -WPT_E_SHARED_VM;
	th->gone = st.tracer != (pid_t)wpt_sys(SYS_getpid);
	return !th->gone ? 0 : st.tracer ? -WPT_E_TRACED : (int)rc;
}

/*
 * What has become of a thread since it was seized. A signal that it was about to take is handed back at the release. The other stops, by
 * our interrupt or by a stop signal, carry none.
 */
static void note_status(struct thread *th)
{
	int status;
	long rc = wpt_stop_wait(th->tid, &status);

	if (rc == th->tid && WIFSTOPPED(status)) {
		th->stopped = true;
		th->signal = status >> 16 ? 0 : WSTOPSIG(status);
	} else if (rc && rc != -EINTR) {
		th->stopped = false;
		th->gone = true;
	}
}

/* As many as `n` of the list, which are seized. A wait for whoever ended would take the stops of the others too. */
static void look_around(struct wpt_stop *s, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++)
		if (!thread_at(s, i)->gone && !thread_at(s, i)->zombie)
			note_status(thread_at(s, i));
}

/* What is not stopped is let go by our exit. */
static void release_all(struct wpt_stop *s)
{
	struct thread *th;
	size_t i;

	for (i = 0; i < s->threads.count; i++) {
		th = thread_at(s, i);
		if (!th->stopped)
			continue;
		/* Also if there is a signal, which the program may ignore: it was only delivered because somebody traces. */
		wpt_restart_thread(th->tid);
		wpt_sys(SYS_ptrace, PTRACE_DETACH, th->tid, 0, (long)th->signal);
	}
}

/* The keeper runs with the thread-local memory of the thread that started it. */
static _Thread_local struct wpt_stop *stopping;

/*
 * Every POLL_NS while threads are stopped. A PTRACE_SEIZE that waits is begun anew, or is the keeper's end if it is too late. The last thread is
 * not seized yet.
 */
static void on_tick(int sig)
{
	struct wpt_stop *s = stopping;

	(void)sig;
	if (!s->seizing)
		return;
	look_around(s, s->threads.count - 1);
	if (wpt_now_ns() < s->deadline)
		return;
	s->result = -WPT_E_STOP_TIMEOUT;
	release_all(s);
	wpt_sys(SYS_exit, 1);
}

/* Not a timer of timer_create(2): that counts among the user's pending signals, and a target may have used those up. */
static void ticks(bool on)
{
	struct itimerval every = { { 0, on ? POLL_NS / 1000 : 0 }, { 0, on ? POLL_NS / 1000 : 0 } };
	struct sigaction act = { .sa_handler = on_tick };
	uint64_t sigalrm = UINT64_C(1) << (SIGALRM - 1);

	sigaction(SIGALRM, &act, NULL);
	wpt_sys(SYS_rt_sigprocmask, SIG_UNBLOCK, &sigalrm, NULL, sizeof(sigalrm));
	wpt_sys(SYS_setitimer, ITIMER_REAL, &every, NULL);
}

static long seize_thread(struct wpt_stop *s, pid_t tid)
{
	long rc;

	s->seizing = 1;
	rc = wpt_sys(SYS_ptrace, PTRACE_SEIZE, tid, 0, 0);
	s->seizing = 0;
	return rc;
}

struct pass {
	struct wpt_stop *s;
	struct process p;
	size_t added;
};

static int seize(void *arg, uint64_t number)
{
	struct pass *pass = arg;
	struct wpt_stop *s = pass->s;
	pid_t tid = (pid_t)number;
	struct thread *th;
	size_t i, n = s->threads.count;
	int tries;
	long rc;

	for (i = 0; i < n; i++, s->hint++) {
		if (s->hint >= n)
			s->hint = 0;
		th = thread_at(s, s->hint);
		if (th->tid == tid && !th->gone)
			return 0;
	}
	th = wpt_vec_push(&s->threads);
	if (!th)
		return -ENOMEM;
	th->pid = pass->p.pid;
	th->tid = tid;
	pass->added++;
	/* A leader that can't be seized because it ended may be another thread by the time it is looked at. */
	for (tries = 0; tries < 3; tries++) {
		th->gone = false;
		rc = seize_thread(s, tid);
		/* One that is dead by now is left to be reaped. */
		if (!rc)
			wpt_sys(SYS_ptrace, PTRACE_INTERRUPT, tid, 0, 0);
		else
			rc = seize_failed(s, &pass->p, th, rc);
		if (rc != -EPERM)
			break;
	}
	return (int)rc;
}

static int wait_thread(struct wpt_stop *s, const struct process *p, struct thread *th)
{
	uint64_t sigchld = UINT64_C(1) << (SIGCHLD - 1), now;
	struct timespec ts = { 0, 0 };
	struct wpt_proc_stat st;
	char path[64];

	for (;;) {
		note_status(th);
		if (th->stopped || th->gone)
			return 0;
		now = wpt_now_ns();
		if (now >= s->deadline)
			return -WPT_E_STOP_TIMEOUT;
		ts.tv_nsec = (long)WPT_MIN(s->deadline - now, (uint64_t)POLL_NS);
		if (wpt_sys(SYS_rt_sigtimedwait, &sigchld, NULL, &ts, sizeof(sigchld)) == SIGCHLD)
			continue;
		if (!wpt_proc_stat(p->task, wpt_proc_path(path, "", (uint64_t)th->tid, "/stat"), &st) && is_zombie(st.state) &&
		    th->tid == p->pid) {
			th->zombie = true;
			return 0;
		}
		/*
		 * Once more: a thread in the middle of execve() may forget an interrupt (tried), and one that took the leader's id there while its
		 * seizing waited was interrupted by an id that was nobody's any more. One too many is forgotten when the thread is let go.
		 */
		wpt_sys(SYS_ptrace, PTRACE_INTERRUPT, th->tid, 0, 0);
		look_around(s, s->threads.count);
	}
}

/* As many links as folders: "." and ".." and one for each thread. */
static size_t count_threads(const struct process *p)
{
	struct statx stx;

	if (wpt_sys(SYS_statx, p->task, "", AT_EMPTY_PATH, STATX_NLINK, &stx) || stx.stx_nlink < 2)
		return 0;
	return stx.stx_nlink - 2;
}

static int stop_process(struct wpt_stop *s, size_t index)
{
	struct pass pass = { s, *process_at(s, index), 0 };
	struct thread *th;
	size_t i, stopped, passes;
	int rc;

	for (passes = 0;; passes++) {
		pass.added = 0;
		rc = wpt_proc_numbers(pass.p.task, seize, &pass);
		if (rc && rc != -ENOENT && rc != -ESRCH)
			return rc;
		for (i = stopped = 0; i < s->threads.count; i++) {
			th = thread_at(s, i);
			if (th->pid != pass.p.pid || th->gone)
				continue;
			/* It may have been killed since. */
			if (passes > 1 && th->stopped)
				note_status(th);
			rc = th->stopped || th->gone || th->zombie ? 0 : wait_thread(s, &pass.p, th);
			if (rc)
				return rc;
			stopped += !th->gone;
		}
		if (!pass.added && stopped == count_threads(&pass.p))
			return 0;
		if (wpt_now_ns() >= s->deadline)
			return -WPT_E_STOP_TIMEOUT;
	}
}

static pid_t stopped_thread(struct wpt_stop *s)
{
	size_t i;

	for (i = 0; i < s->threads.count; i++)
		if (thread_at(s, i)->stopped && thread_at(s, i)->pid == s->target->pid)
			return thread_at(s, i)->tid;
	return 0;
}

static long compare_memory(pid_t a, pid_t b)
{
	return wpt_sys(SYS_kcmp, a, b, WPT_KCMP_VM, 0, 0);
}

/* Its first thread has ended and has no memory any more, others may. Asked after it was compared. */
static bool is_leaderless(struct wpt_stop *s, pid_t pid)
{
	struct statx stx;
	char path[64];

	if (wpt_sys(SYS_statx, s->proc, wpt_proc_path(path, "", (uint64_t)pid, "/task"), 0, STATX_NLINK, &stx) || stx.stx_nlink <= 3)
		return false;
	return wpt_proc_is_exiting(s->proc, (uint64_t)pid);
}

/*
 * One that may not be inspected is taken for another. It could only share the memory of a target that we may trace by having other ids or
 * capabilities than that, and nothing tells such a one from the many processes of other users.
 */
static int note_other(void *arg, uint64_t number)
{
	struct wpt_stop *s = arg;
	pid_t *other;
	long rc = compare_memory(s->known, (pid_t)number);

	if ((rc <= 0 && rc != -EPERM) || (rc > 0 && is_leaderless(s, (pid_t)number)))
		return 0;
	other = wpt_vec_push(&s->others);
	if (!other)
		return -ENOMEM;
	*other = (pid_t)number;
	return 0;
}

/*
 * Before anything is stopped. Only a new process, with a new pid, can come to share the memory later. Returns 1 if they are noted. A thread that
 * ended meanwhile had no memory to be compared, and differs from all.
 */
static int note_others(void *arg, uint64_t tid)
{
	struct wpt_stop *s = arg;
	int task = process_at(s, 0)->task, rc;

	if (wpt_proc_is_exiting(task, tid))
		return 0;
	s->known = (pid_t)tid;
	rc = wpt_proc_numbers(s->proc, note_other, s);
	if (rc)
		return rc;
	if (!wpt_proc_is_exiting(task, tid))
		return 1;
	wpt_vec_clear(&s->others);
	return 0;
}

static bool is_other(struct wpt_stop *s, pid_t pid)
{
	while (s->other < s->others.count && *wpt_vec_at(&s->others, pid_t, s->other) < pid)
		s->other++;
	return s->other < s->others.count && *wpt_vec_at(&s->others, pid_t, s->other) == pid;
}

static int compare_thread(void *arg, uint64_t number)
{
	struct wpt_stop *s = arg;

	return compare_memory(s->known, (pid_t)number) == 0;
}

static bool shares_memory(struct wpt_stop *s, pid_t pid)
{
	long rc = compare_memory(s->known, pid);
	char path[64];
	int task;

	if (rc <= 0 || !is_leaderless(s, pid))
		return rc == 0;
	task = (int)wpt_sys(SYS_openat, s->proc, wpt_proc_path(path, "", (uint64_t)pid, "/task"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (task < 0)
		return false;
	rc = wpt_proc_numbers(task, compare_thread, s);
	wpt_sys(SYS_close, task);
	return rc > 0;
}

static int check_sharer(void *arg, uint64_t number)
{
	struct wpt_stop *s = arg;
	pid_t pid = (pid_t)number;
	size_t i;

	if (is_other(s, pid))
		return 0;
	s->known = stopped_thread(s);
	if (!s->known)
		return -WPT_E_GONE;
	for (i = 0; i < s->processes.count; i++)
		if (process_at(s, i)->pid == pid)
			return 0;
	if (!shares_memory(s, pid))
		return 0;
	if (pid == s->self)
		return -WPT_E_SHARED_VM;
	s->found = true;
	return process_add(s, pid);
}

static int stop_all(struct wpt_stop *s)
{
	size_t done = 0;
	int rc;

	rc = process_add(s, s->target->pid);
	if (rc || !s->processes.count)
		return rc ? rc : -WPT_E_GONE;
	s->proc = (int)wpt_sys(SYS_openat, AT_FDCWD, "/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->proc < 0)
		return s->proc;
	rc = wpt_proc_numbers(process_at(s, 0)->task, note_others, s);
	rc = rc > 0 || rc == -ENOENT || rc == -ESRCH ? 0 : rc;
	s->started = wpt_now_ns();
	do {
		for (; !rc && done < s->processes.count; done++)
			rc = stop_process(s, done);
		s->found = false;
		s->other = 0;
		if (!rc)
			rc = wpt_proc_numbers(s->proc, check_sharer, s);
	} while (!rc && s->found);
	wpt_sys(SYS_close, s->proc);
	return rc;
}

static bool put(struct wpt_vec *v, const void *data, size_t len)
{
	char *p = wpt_vec_reserve(v, len);

	if (!p)
		return false;
	memcpy(p, data, len);
	v->count += len;
	return true;
}

static bool put_u32(struct wpt_vec *v, uint32_t x)
{
	uint8_t b[4] = { (uint8_t)x, (uint8_t)(x >> 8), (uint8_t)(x >> 16), (uint8_t)(x >> 24) };

	return put(v, b, sizeof(b));
}

static void set_u32(struct wpt_vec *v, size_t pos, uint32_t x)
{
	size_t end = v->count;

	v->count = pos;
	put_u32(v, x);
	v->count = end;
}

/* The sets of one thread that the machine has. Returns 0, or 1 if the thread is not there any more. */
static int read_thread(struct wpt_vec *v, pid_t tid)
{
	static const uint32_t sets[] = { NT_PRSTATUS, NT_FPREGSET, NT_X86_XSTATE };
	size_t count_at, i, room = 65536;
	uint32_t nr = 0;
	struct iovec iov;
	char *p;

	if (!put_u32(v, (uint32_t)tid) || !put_u32(v, 0))
		return -ENOMEM;
	count_at = v->count - 4;
	for (i = 0; i < WPT_ARRAY_SIZE(sets); i++) {
		p = wpt_vec_reserve(v, room + 8);
		if (!p)
			return -ENOMEM;
		iov.iov_base = p + 8;
		iov.iov_len = room;
		if (wpt_sys(SYS_ptrace, PTRACE_GETREGSET, tid, sets[i], &iov))
			continue;
		put_u32(v, sets[i]);
		put_u32(v, (uint32_t)iov.iov_len);
		v->count += iov.iov_len;
		nr++;
	}
	set_u32(v, count_at, nr);
	return nr ? 0 : 1;
}

/*
 * u32 e_machine as in ELF, u32 number of threads; per thread u32 tid, u32 number of sets; per set u32 type (NT_* of elf.h), u32 length
 * and the bytes that PTRACE_GETREGSET gives.
 */
static int read_registers(struct wpt_stop *s)
{
	struct wpt_vec *v = s->registers;
	size_t start = v->count, before, i;
	uint32_t nr = 0;
	int rc = 0;

	if (!put_u32(v, MACHINE) || !put_u32(v, 0))
		return -ENOMEM;
	for (i = 0; i < s->threads.count && rc >= 0; i++) {
		if (!thread_at(s, i)->stopped || thread_at(s, i)->pid != s->target->pid)
			continue;
		before = v->count;
		rc = read_thread(v, thread_at(s, i)->tid);
		if (rc)
			v->count = before;
		else
			nr++;
	}
	if (rc < 0) {
		v->count = start;
		return rc;
	}
	set_u32(v, start + 4, nr);
	return 0;
}

static void answer(struct wpt_stop *s, int result)
{
	s->result = result;
	atomic_store(&s->state, ANSWERED);
	futex(&s->state, FUTEX_WAKE, 1, NULL);
}

/* As a job of a shell is, or by SIGSTOP. */
static bool is_caller_stopped(struct wpt_stop *s)
{
	struct wpt_proc_stat st;
	char path[64];

	return !wpt_proc_stat(AT_FDCWD, wpt_proc_path(path, "/proc/", (uint64_t)s->caller, "/stat"), &st) && st.state == 'T';
}

/* The next command. RELEASE too if there won't be one soon. */
static enum command next_command(struct wpt_stop *s)
{
	const struct timespec ts = { 0, LOOK_NS };

	while (atomic_load(&s->state) != ASKED) {
		if (futex(&s->state, FUTEX_WAIT, ANSWERED, &ts) != -ETIMEDOUT || !is_caller_stopped(s))
			continue;
		atomic_store(&s->let_go, true);
		return RELEASE;
	}
	return s->command;
}

static int keeper(void *arg)
{
	struct sigaction act = { .sa_handler = SIG_DFL };
	struct wpt_stop *s = arg;
	int rc;

	/* The parent's SIGCHLD may be ignored, and then nobody would wake us; this process has handlers of its own. */
	sigaction(SIGCHLD, &act, NULL);
	wpt_sys(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	wpt_sys(SYS_setpgid, 0, 0);
	ticks(true);
	rc = wpt_sys(SYS_getppid) == s->self ? stop_all(s) : -ECANCELED;
	ticks(false);
	if (rc) {
		release_all(s);
		s->result = rc;
		return 1;
	}
	answer(s, 0);
	while (next_command(s) != RELEASE)
		answer(s, read_registers(s));
	release_all(s);
	return 0;
}

/* ---- caller ---- */

/* Blocked signals are inherited by the keeper, so that a Ctrl-C meant for all of us does not end it before its work. */
static pid_t start_keeper(struct wpt_stop *s)
{
	uint64_t all = UINT64_MAX, old;
	pid_t pid;

	wpt_sys(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, sizeof(all));
	pid = clone(keeper, s->stack + STACK_BYTES, CLONE_VM | CLONE_FILES | CLONE_FS, s);
	if (pid < 0)
		pid = -errno;
	wpt_sys(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, sizeof(old));
	return pid;
}

static void reap(struct wpt_stop *s)
{
	pid_t pid = atomic_exchange(&s->keeper, 0);

	while (pid && wpt_sys(SYS_wait4, pid, NULL, __WALL, NULL) == -EINTR)
		;
}

/* The keeper's answer. A keeper that ended without one failed (s->result says how) or was killed. */
static int await(struct wpt_stop *s)
{
	struct timespec ts = { 0, POLL_NS };
	siginfo_t info;
	long rc;

	while (atomic_load(&s->state) != ANSWERED) {
		futex(&s->state, FUTEX_WAIT, ASKED, &ts);
		info.si_pid = 0;
		rc = wpt_sys(SYS_waitid, P_PID, (long)s->keeper, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, NULL);
		if ((rc == 0 && info.si_pid) || rc == -ECHILD)
			return s->result ? s->result : -WPT_E_STOP_TIMEOUT;
	}
	return s->result;
}

static void forget(struct wpt_stop *s)
{
	size_t i;

	for (i = 0; i < s->processes.count; i++)
		wpt_sys(SYS_close, process_at(s, i)->task);
	wpt_vec_clear(&s->processes);
	wpt_vec_clear(&s->threads);
	wpt_vec_clear(&s->others);
	atomic_store(&s->state, IDLE);
}

static int stop_new(struct wpt_target *t)
{
	struct wpt_stop *s = wpt_vm_alloc(sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->stack = wpt_vm_alloc(STACK_BYTES);
	if (!s->stack) {
		wpt_vm_free(s, sizeof(*s));
		return -ENOMEM;
	}
	s->processes.elem_size = sizeof(struct process);
	s->threads.elem_size = sizeof(struct thread);
	s->others.elem_size = sizeof(pid_t);
	s->target = t;
	t->stop = s;
	return 0;
}

void wpt_stop_free(struct wpt_stop *s)
{
	if (!s)
		return;
	wpt_vec_free(&s->processes);
	wpt_vec_free(&s->threads);
	wpt_vec_free(&s->others);
	wpt_vm_free(s->stack, STACK_BYTES);
	wpt_vm_free(s, sizeof(*s));
}

bool wpt_stop_lost(struct wpt_stop *s)
{
	siginfo_t info = { .si_pid = 0 };
	pid_t keeper = s ? atomic_load(&s->keeper) : 0;

	if (!keeper || atomic_load(&s->let_go))
		return keeper;
	return !wpt_sys(SYS_waitid, P_PID, (long)keeper, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, NULL) && info.si_pid;
}

int wpt_target_stop(struct wpt_target *t, uint64_t *stopped_at)
{
	struct wpt_stop *s;
	pid_t pid;
	int rc;

	rc = wpt_target_alive(t);
	if (rc)
		return rc;
	if (t->self)
		return -EINVAL;
	rc = t->stop ? 0 : stop_new(t);
	if (rc)
		return rc;
	s = t->stop;
	if (s->keeper)
		return -EALREADY;
	s->deadline = wpt_now_ns() + t->stop_timeout_ms * UINT64_C(1000000);
	s->self = getpid();
	s->caller = gettid();
	s->let_go = false;
	s->result = 0;
	s->command = STOP;
	atomic_store(&s->state, ASKED);
	stopping = s;
	pid = start_keeper(s);
	if (pid < 0) {
		forget(s);
		return pid;
	}
	s->keeper = pid;
	rc = await(s);
	if (!rc)
		rc = wpt_target_alive(t);
	if (rc) {
		wpt_target_resume(t);
		return rc == -ESRCH ? -WPT_E_GONE : rc;
	}
	*stopped_at = s->started;
	return 0;
}

void wpt_target_resume(struct wpt_target *t)
{
	struct wpt_stop *s = t->stop;

	if (wpt_target_check(t) || !s || !s->keeper)
		return;
	s->command = RELEASE;
	atomic_store(&s->state, ASKED);
	futex(&s->state, FUTEX_WAKE, 1, NULL);
	reap(s);
	forget(s);
}

int wpt_target_registers(struct wpt_target *t, struct wpt_vec *v)
{
	struct wpt_stop *s = t->stop;
	int rc;

	rc = wpt_target_check(t);
	if (rc)
		return rc;
	if (!s || !s->keeper)
		return -EINVAL;
	s->registers = v;
	s->command = REGISTERS;
	atomic_store(&s->state, ASKED);
	futex(&s->state, FUTEX_WAKE, 1, NULL);
	return await(s);
}
