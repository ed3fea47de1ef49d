/* SPDX-License-Identifier: MIT */
/* What the targets of attach_test.c do, and how they tell whether they were disturbed. */
#ifndef ATTACH_MODES_H
#define ATTACH_MODES_H

#include "target_fixture.h"

#include <poll.h>
#include <sched.h>
#include <stdalign.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#define NR_THREADS 6

/* ---- modes: a call that blocks ---- */

static volatile sig_atomic_t handled;

static void on_signal(int sig)
{
	(void)sig;
	handled++;
}

static void block_poll(void)
{
	struct pollfd p = { PIPE_READ, POLLIN, 0 };

	TARGET_CHECK(poll(&p, 1, -1) == 1);
}

static void block_poll_timeout(void)
{
	struct pollfd p = { PIPE_READ, POLLIN, 0 };

	TARGET_CHECK(poll(&p, 1, 300000) == 1);
}

static void block_ppoll(void)
{
	struct pollfd p = { PIPE_READ, POLLIN, 0 };
	sigset_t set;

	sigfillset(&set);
	TARGET_CHECK(ppoll(&p, 1, NULL, &set) == 1);
}

static void block_select(void)
{
	fd_set set;

	FD_ZERO(&set);
	FD_SET(PIPE_READ, &set);
	TARGET_CHECK(select(PIPE_READ + 1, &set, NULL, NULL, NULL) == 1);
}

static void block_read(void)
{
	char c;

	TARGET_CHECK(read(PIPE_READ, &c, 1) == 1 && c == 'x');
}

static void block_epoll(void)
{
	struct epoll_event e = { .events = EPOLLIN };
	int fd = epoll_create1(EPOLL_CLOEXEC);

	TARGET_CHECK(epoll_ctl(fd, EPOLL_CTL_ADD, PIPE_READ, &e) == 0);
	TARGET_CHECK(epoll_wait(fd, &e, 1, -1) == 1);
}

static void block_epoll_pwait(void)
{
	struct epoll_event e = { .events = EPOLLIN };
	int fd = epoll_create1(EPOLL_CLOEXEC);
	sigset_t set;

	sigemptyset(&set);
	TARGET_CHECK(epoll_ctl(fd, EPOLL_CTL_ADD, PIPE_READ, &e) == 0);
	TARGET_CHECK(epoll_pwait(fd, &e, 1, -1, &set) == 1);
}

/* If the word changes while the call is being restarted it says EAGAIN, as it does to whoever comes late. */
static void wait_futex(const struct timespec *timeout)
{
	TARGET_CHECK(syscall(SYS_futex, &sh->word, FUTEX_WAIT, 0, timeout, NULL, 0) == 0 || errno == EAGAIN);
	TARGET_CHECK(atomic_load(&sh->word) == 1);
}

static void block_futex(void)
{
	wait_futex(NULL);
}

static void block_futex_timeout(void)
{
	struct timespec ts = { 300, 0 };

	wait_futex(&ts);
}

/* Long naps, so that most attaches hit one; none may end early or with EINTR. */
static void block_nanosleep(void)
{
	struct timespec ts = { 0, 50000000 }, rest;
	uint64_t start;

	while (!atomic_load(&sh->word)) {
		start = wpt_now_ns();
		TARGET_CHECK(syscall(SYS_nanosleep, &ts, &rest) == 0);
		TARGET_CHECK(wpt_now_ns() - start >= 50000000);
	}
}

static void block_sigsuspend(void)
{
	sigset_t set;

	sigemptyset(&set);
	TARGET_CHECK(sigsuspend(&set) == -1 && errno == EINTR && handled == 1);
}

static void block_sigwait(void)
{
	siginfo_t info;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	TARGET_CHECK(sigwaitinfo(&set, &info) == SIGUSR1);
}

static void block_semop(void)
{
	struct sembuf op = { 0, -1, 0 };
	int id = semget(IPC_PRIVATE, 1, 0600);

	sh->addr[0] = (uint64_t)id;
	TARGET_CHECK(semop(id, &op, 1) == 0);
	semctl(id, 0, IPC_RMID);
}

static void block_msgrcv(void)
{
	struct { long type; char text[8]; } m;
	int id = msgget(IPC_PRIVATE, 0600);

	sh->addr[0] = (uint64_t)id;
	TARGET_CHECK(msgrcv(id, &m, sizeof(m.text), 0, 0) == 1);
	msgctl(id, IPC_RMID, NULL);
}

static void block_wait(void)
{
	pid_t child = fork();
	char c;

	if (!child)
		_exit(read(PIPE_READ, &c, 1) == 1 ? 7 : 8);
	int status;
	TARGET_CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
}

static void wake_pipe(struct fixture *f)
{
	fixture_wake(f);
}

static void wake_futex(struct fixture *f)
{
	atomic_store(&f->sh->word, 1);
	syscall(SYS_futex, &f->sh->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void wake_signal(struct fixture *f)
{
	kill(f->pid, SIGUSR1);
}

static void wake_semop(struct fixture *f)
{
	struct sembuf op = { 0, 1, 0 };

	assert_int_equal(semop((int)f->sh->addr[0], &op, 1), 0);
}

static void wake_msgrcv(struct fixture *f)
{
	struct { long type; char text[8]; } m = { 1, "x" };

	assert_int_equal(msgsnd((int)f->sh->addr[0], &m, 1, 0), 0);
}

static const struct {
	const char *name;
	void (*block)(void);
	void (*wake)(struct fixture *f);
} blocking[] = {
	{ "poll", block_poll, wake_pipe },
	{ "poll_timeout", block_poll_timeout, wake_pipe },
	{ "ppoll", block_ppoll, wake_pipe },
	{ "select", block_select, wake_pipe },
	{ "read", block_read, wake_pipe },
	{ "epoll", block_epoll, wake_pipe },
	{ "epoll_pwait", block_epoll_pwait, wake_pipe },
	{ "futex", block_futex, wake_futex },
	{ "futex_timeout", block_futex_timeout, wake_futex },
	{ "nanosleep", block_nanosleep, wake_futex },
	{ "sigsuspend", block_sigsuspend, wake_signal },
	{ "sigwait", block_sigwait, wake_signal },
	{ "semop", block_semop, wake_semop },
	{ "msgrcv", block_msgrcv, wake_msgrcv },
	{ "wait", block_wait, wake_pipe },
};

/* The mask has one signal of each kind: blocked with a handler, and blocked without. It must be the same afterwards. */
static void mode_blocking(size_t i)
{
	struct sigaction act = { .sa_handler = on_signal };
	sigset_t set, after;
	int sig;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGWINCH);
	sigprocmask(SIG_SETMASK, &set, NULL);
	sigaction(SIGUSR1, &act, NULL);
	atomic_store(&sh->ready, 1);
	blocking[i].block();
	sigprocmask(SIG_SETMASK, NULL, &after);
	for (sig = 1; sig < 32; sig++)
		TARGET_CHECK(sigismember(&set, sig) == sigismember(&after, sig));
}

/* ---- modes: computing ---- */

static uint64_t chain(uint64_t x, unsigned steps)
{
	double d = 1.0;

	while (steps--) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		d = d * 1.0000001 + (double)(x & 1);
	}
	return x ^ (uint64_t)d;
}

static void *compute(void *arg)
{
	unsigned i = (unsigned)(uintptr_t)arg;
	uint64_t want = chain(i + 1, 20000);

	while (!atomic_load(&sh->stop)) {
		TARGET_CHECK(chain(i + 1, 20000) == want);
		atomic_fetch_add(&sh->count[i], 1);
	}
	return NULL;
}

static void mode_compute(void)
{
	pthread_t th[NR_THREADS];
	uintptr_t i;

	for (i = 0; i < NR_THREADS; i++)
		pthread_create(&th[i], NULL, compute, (void *)i);
	atomic_store(&sh->ready, 1);
	for (i = 0; i < NR_THREADS; i++)
		pthread_join(th[i], NULL);
}

/* The leader leaves before the threads. */
static void mode_leaderless(void)
{
	pthread_t th;

	pthread_create(&th, NULL, compute, (void *)0);
	atomic_store(&sh->ready, 1);
	pthread_exit(NULL);
}

static void *first_heir(void *arg)
{
	sh->count[1] = (unsigned long)syscall(SYS_gettid);
	pthread_join(*(pthread_t *)arg, NULL);
	atomic_store(&sh->ready, 1);
	wait_byte();
	return NULL;
}

/* The first thread ends, and when told so the second; one is left. */
static void mode_heirs(void)
{
	static pthread_t first;
	pthread_t th;

	first = pthread_self();
	pthread_create(&th, NULL, first_heir, &first);
	pthread_create(&th, NULL, compute, (void *)0);
	pthread_exit(NULL);
}

static void *short_lived(void *arg)
{
	int i;

	for (i = 0; i < 20000; i++)
		atomic_fetch_add(&sh->count[16], 1);
	return arg;
}

/* Threads are made and end all the time, beside some that compute. */
static void *breed(void *arg)
{
	pthread_t th[4];
	int i, n;

	while (!atomic_load(&sh->stop)) {
		for (n = 0; n < 4; n++)
			if (pthread_create(&th[n], NULL, short_lived, NULL))
				break;
		for (i = 0; i < n; i++)
			pthread_join(th[i], NULL);
		atomic_fetch_add(&sh->count[8 + (uintptr_t)arg], 1);
	}
	return NULL;
}

static void mode_breed(void)
{
	pthread_t th[4];
	uintptr_t i;

	pthread_create(&th[0], NULL, compute, (void *)0);
	pthread_create(&th[1], NULL, compute, (void *)1);
	pthread_create(&th[2], NULL, breed, (void *)0);
	pthread_create(&th[3], NULL, breed, (void *)1);
	atomic_store(&sh->ready, 1);
	for (i = 0; i < 4; i++)
		pthread_join(th[i], NULL);
}

/* ---- modes: signals ---- */

static void on_queued(int sig, siginfo_t *info, void *context)
{
	static int next;

	(void)sig;
	(void)context;
	TARGET_CHECK(info->si_code == SI_QUEUE && info->si_value.sival_int == next);
	next = info->si_value.sival_int + 1;
	atomic_fetch_add(&sh->count[1], 1);
}

static void on_alarm(int sig)
{
	(void)sig;
	atomic_fetch_add(&sh->count[2], 1);
}

static void mode_storm(void)
{
	struct sigaction queued = { .sa_sigaction = on_queued, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct sigaction alarm = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	struct itimerval it = { { 0, 100 }, { 0, 100 } };

	sigaction(SIGRTMIN, &queued, NULL);
	sigaction(SIGALRM, &alarm, NULL);
	setitimer(ITIMER_REAL, &it, NULL);
	atomic_store(&sh->ready, 1);
	compute((void *)0);
}

/* ---- modes: filters ---- */

static void on_sigsys(int sig)
{
	(void)sig;
	atomic_fetch_add(&sh->count[3], 1);
}

static void filter(uint32_t action)
{
	static const int allowed[] = { SYS_read, SYS_write, SYS_poll, SYS_nanosleep, SYS_clock_nanosleep, SYS_rt_sigreturn,
				       SYS_restart_syscall, SYS_exit_group, SYS_futex };
	struct sock_filter code[32];
	struct sock_fprog prog = { 0, code };
	size_t i;

	code[prog.len++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (i = 0; i < WPT_ARRAY_SIZE(allowed); i++) {
		code[prog.len++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)allowed[i], 0, 1);
		code[prog.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	code[prog.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
		_exit(96);
}

/* Works under the filter, and at the end does what the filter forbids: it must still bite. */
static void mode_filter(uint32_t action)
{
	struct sigaction act = { .sa_handler = on_sigsys };
	struct pollfd p = { PIPE_READ, POLLIN, 0 };

	sigaction(SIGSYS, &act, NULL);
	filter(action);
	atomic_store(&sh->ready, 1);
	TARGET_CHECK(poll(&p, 1, -1) == 1);
	TARGET_CHECK(atomic_load(&sh->count[3]) == 0);
	if ((action & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_ERRNO)
		TARGET_CHECK(syscall(SYS_userfaultfd, O_CLOEXEC) == -1 && errno == 77);
	else
		syscall(SYS_userfaultfd, O_CLOEXEC);
	if (action == SECCOMP_RET_TRAP)
		TARGET_CHECK(atomic_load(&sh->count[3]) == 1);
	_exit(0);
}

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

/* What Wine does: every system call outside of its own code becomes SIGSYS. Here all do, so the wait is a loop. */
static void mode_dispatch(void)
{
	static volatile char selector = 1; /* block */

	signal(SIGSYS, on_sigsys);
	if (prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &selector)) {
		atomic_store(&sh->word, errno);
		atomic_store(&sh->ready, 1);
		return;
	}
	atomic_store(&sh->ready, 1);
	while (!atomic_load(&sh->stop))
		;
	TARGET_CHECK(atomic_load(&sh->count[3]) == 0);
	selector = 0;
}

/* ---- modes: vfork, exec ---- */

static int vfork_child(void)
{
	pid_t pid = vfork();
	char c;

	if (!pid) {
		/* Shares everything with the parent, which stands still. */
		while (read(PIPE_READ, &c, 1) != 1)
			;
		_exit(3);
	}
	int status = 0;
	TARGET_CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 3);
	return 0;
}

static void mode_vfork(void)
{
	atomic_store(&sh->ready, 1);
	vfork_child();
}

static void mode_vfork_threads(void)
{
	pthread_t th;

	pthread_create(&th, NULL, compute, (void *)0);
	atomic_store(&sh->ready, 1);
	vfork_child();
	pthread_join(th, NULL);
}

/* Executes itself again and again, as the same process. */
static void mode_exec(void)
{
	atomic_store(&sh->ready, 1);
	atomic_fetch_add(&sh->count[0], 1);
	compute_once:
	TARGET_CHECK(chain(5, 2000) == chain(5, 2000));
	if (atomic_load(&sh->stop))
		return;
	execl("/proc/self/exe", "target", "exec", NULL);
	goto compute_once;
}

#define NR_VFORKED 9

static void *wait_for_child(void *arg)
{
	uintptr_t i = (uintptr_t)arg;
	char c;

	sh->count[i] = (unsigned long)syscall(SYS_gettid);
	if (!vfork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (i < NR_VFORKED - 1)
			pause();
		while (read(PIPE_READ, &c, 1) != 1)
			;
		_exit(0);
	}
	execl("/proc/self/exe", "target", "executed", NULL);
	_exit(94);
	return NULL;
}

/* All threads wait for a child. The last one's ends when told so, and then it executes a program. */
static void mode_vforked_exec(void)
{
	pthread_t th;
	uintptr_t i;

	for (i = 1; i < NR_VFORKED; i++) {
		pthread_create(&th, NULL, wait_for_child, (void *)i);
		while (!sh->count[i])
			sched_yield();
	}
	sh->ready = 1;
	wait_for_child((void *)0);
}

static void *note_and_pause(void *arg)
{
	sh->count[1] = (unsigned long)syscall(SYS_gettid);
	sh->ready = 1;
	for (;;)
		pause();
	return arg;
}

/* Executes a program when told so, beside another thread. */
static void mode_exec_beside(void)
{
	pthread_t th;

	pthread_create(&th, NULL, note_and_pause, NULL);
	wait_byte();
	execl("/proc/self/exe", "target", "executed", NULL);
}

static void mode_executed(void)
{
	atomic_store(&sh->ready, 2);
	wait_byte();
}

/* ---- modes: descriptors ---- */

#define SURE_NS 5000

/*
 * Takes a descriptor that somebody else opened for a file of its own. If that was done at most SURE_NS after it was opened, far less than it takes to
 * stop a thread once, nobody had the time to look at it, and who looks later sees whose it is.
 */
static void *steal(void *arg)
{
	int own = open("/dev/zero", O_RDONLY | O_CLOEXEC), fd = dup(own);
	uint64_t free_at = 0, now;
	struct stat st;

	close(fd);
	atomic_store(&sh->ready, 1);
	while (!atomic_load(&sh->stop)) {
		now = wpt_now_ns();
		if (fcntl(fd, F_GETFD) < 0) {
			free_at = now;
			continue;
		}
		dup2(own, fd);
		now = wpt_now_ns();
		if (now - free_at < SURE_NS) {
			atomic_fetch_add(&sh->count[5], 1);
			while (wpt_now_ns() - now < 3000000)
				TARGET_CHECK(!fstat(fd, &st) && S_ISCHR(st.st_mode));
		}
		close(fd);
	}
	return arg;
}

static void mode_thief(void)
{
	pthread_t th;

	pthread_create(&th, NULL, steal, NULL);
	pthread_join(th, NULL);
}

/* ---- modes: restartable sequences ---- */

#define PER_CPU_SLOTS 1024
struct slot { uint64_t value; char pad[56]; };
static struct slot *slots;
struct rseq_cs_abi { uint32_t version, flags; uint64_t start, length, abort; };

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

/*
 * Adds one to the counter of this CPU: load, dawdle, store. Without the kernel's abort on preemption two threads of one CPU would lose
 * additions. Returns after one addition.
 */
static void rseq_add(char *area)
{
#ifdef __x86_64__
	uint32_t cpu;

	__asm__ volatile(
		".pushsection __rseq_cs_test, \"aw\"\n\t"
		".balign 32\n\t"
		"77: .long 0, 0\n\t"
		".quad 1f, (2f - 1f), 4f\n\t"
		".popsection\n\t"
		"3:\n\t"
		"leaq 77b(%%rip), %%rax\n\t"
		"movq %%rax, 8(%[area])\n\t"
		"1:\n\t"
		"movl 4(%[area]), %%ecx\n\t"
		"shlq $6, %%rcx\n\t"
		"movq (%[slots], %%rcx), %%rdx\n\t"
		"movl $3000, %%eax\n\t"
		"5: subl $1, %%eax\n\t"
		"jnz 5b\n\t"
		"addq $1, %%rdx\n\t"
		"movq %%rdx, (%[slots], %%rcx)\n\t"
		"2:\n\t"
		".pushsection .text.rseq_abort_test, \"ax\"\n\t"
		".byte 0x0f, 0xb9, 0x3d\n\t"
		".long 0x53053053\n\t"
		"4: jmp 3b\n\t"
		".popsection\n\t"
		: "=&c"(cpu)
		: [area] "r"(area), [slots] "r"(slots)
		: "rax", "rdx", "memory", "cc");
	(void)cpu;
#else
	(void)area;
#endif
}

static void *rseq_thread(void *arg)
{
	char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
	uint64_t n = 0;

	while (!atomic_load(&sh->stop)) {
		rseq_add(area);
		n++;
	}
	atomic_fetch_add(&sh->count[4], n);
	return arg;
}

static void mode_rseq(void)
{
	pthread_t th[4];
	uint64_t sum = 0;
	int i;

	slots = calloc(PER_CPU_SLOTS, sizeof(*slots));
	atomic_store(&sh->word, &__rseq_size && __rseq_size);
	atomic_store(&sh->ready, 1);
	if (!atomic_load(&sh->word))
		return;
	for (i = 0; i < 4; i++)
		pthread_create(&th[i], NULL, rseq_thread, NULL);
	for (i = 0; i < 4; i++)
		pthread_join(th[i], NULL);
	for (i = 0; i < PER_CPU_SLOTS; i++)
		sum += slots[i].value;
	TARGET_CHECK(sum == atomic_load(&sh->count[4]));
}

/* ---- modes: memory ---- */

static void mode_memory(void)
{
	char *p = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char c;

	memset(p, 1, 64 * 4096);
	sh->addr[0] = (uint64_t)(uintptr_t)p;
	atomic_store(&sh->ready, 1);
	while (read(PIPE_READ, &c, 1) == 1 && !atomic_load(&sh->stop)) {
		p[5 * 4096] = 2;
		atomic_fetch_add(&sh->count[0], 1);
	}
}

static int target_main(const char *mode)
{
	size_t i;

	target_open();
	for (i = 0; i < WPT_ARRAY_SIZE(blocking); i++)
		if (!strcmp(mode, blocking[i].name))
			mode_blocking(i);
	if (!strcmp(mode, "compute"))
		mode_compute();
	else if (!strcmp(mode, "leaderless"))
		mode_leaderless();
	else if (!strcmp(mode, "heirs"))
		mode_heirs();
	else if (!strcmp(mode, "breed"))
		mode_breed();
	else if (!strcmp(mode, "storm"))
		mode_storm();
	else if (!strcmp(mode, "filter_errno"))
		mode_filter(SECCOMP_RET_ERRNO | 77);
	else if (!strcmp(mode, "filter_trap"))
		mode_filter(SECCOMP_RET_TRAP);
	else if (!strcmp(mode, "filter_kill"))
		mode_filter(SECCOMP_RET_KILL_PROCESS);
	else if (!strcmp(mode, "dispatch"))
		mode_dispatch();
	else if (!strcmp(mode, "vfork"))
		mode_vfork();
	else if (!strcmp(mode, "vfork_threads"))
		mode_vfork_threads();
	else if (!strcmp(mode, "exec"))
		mode_exec();
	else if (!strcmp(mode, "vforked_exec"))
		mode_vforked_exec();
	else if (!strcmp(mode, "exec_beside"))
		mode_exec_beside();
	else if (!strcmp(mode, "executed"))
		mode_executed();
	else if (!strcmp(mode, "thief"))
		mode_thief();
	else if (!strcmp(mode, "rseq"))
		mode_rseq();
	else if (!strcmp(mode, "memory"))
		mode_memory();
	return 0;
}

#endif
