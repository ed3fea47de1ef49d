/* SPDX-License-Identifier: MIT */
/*
 * Attaching harms no target: whatever its threads are blocked in goes on as if nothing had happened, no signal is lost, no register or
 * descriptor is left behind, and filters hold. The oracle is the target's own check of what its system calls return and compute.
 */
#include "attach_modes.h"

static void check_untouched(const struct fixture *f, int fds)
{
	assert_int_equal(count_fds(f->pid), fds);
	assert_int_equal(task_status(f->pid, "TracerPid:", 10), 0);
}

static void attach_blocked(const char *name, void (*wake)(struct fixture *f), uid_t uid, int n)
{
	struct wpt_target *t;
	struct fixture f;
	int i, fds, own = count_fds(getpid());

	fixture_start(&f, name, uid);
	WAIT_FOR(task_state(f.pid, f.pid) == 'S');
	fds = count_fds(f.pid);
	for (i = 0; i < n; i++) {
		t = must_attach(f.pid);
		assert_true(wpt_target_uffd(t) >= 0);
		must_stop(t);
		assert_int_equal(count_fds(f.pid), fds);
		wpt_target_resume(t);
		must_stop(t);
		wpt_target_close(t); /* which resumes */
		check_untouched(&f, fds);
	}
	wake(&f);
	fixture_finish(&f, 0);
	assert_int_equal(count_fds(getpid()), own);
}

static void test_blocked(void **state)
{
	size_t i;

	(void)state;
	for (i = 0; i < WPT_ARRAY_SIZE(blocking); i++)
		attach_blocked(blocking[i].name, blocking[i].wake, 0, rounds(40));
}

static void blocked_as_nobody(void **state)
{
	size_t i;

	(void)state;
	for (i = 0; i < WPT_ARRAY_SIZE(blocking); i++)
		attach_blocked(blocking[i].name, blocking[i].wake, 0, rounds(10));
}

static void test_unprivileged(void **state)
{
	(void)state;
	as_nobody(blocked_as_nobody);
}

static void test_compute(void **state)
{
	unsigned long before[NR_THREADS];
	struct wpt_target *t;
	struct fixture f;
	int i, k, fds;

	(void)state;
	fixture_start(&f, "compute", 0);
	fds = count_fds(f.pid);
	for (i = 0; i < rounds(300); i++) {
		t = must_attach(f.pid);
		if (i % 4 == 0) {
			must_stop(t);
			for (k = 0; k < NR_THREADS; k++)
				before[k] = atomic_load(&f.sh->count[k]);
			sleep_us(300);
			for (k = 0; k < NR_THREADS; k++)
				assert_int_equal(before[k], atomic_load(&f.sh->count[k]));
		}
		wpt_target_close(t);
	}
	check_untouched(&f, fds);
	for (k = 0; k < NR_THREADS; k++) {
		before[k] = atomic_load(&f.sh->count[k]);
		WAIT_FOR(atomic_load(&f.sh->count[k]) > before[k]);
	}
	fixture_finish(&f, 0);
}

static void test_leaderless(void **state)
{
	struct wpt_maps maps = { .raw = 0 };
	struct wpt_target *t = NULL;
	struct fixture f;
	unsigned long before;
	char buf[64];
	int i;

	(void)state;
	fixture_start(&f, "leaderless", 0);
	WAIT_FOR(task_state(f.pid, f.pid) == 'Z');
	needs_tracking();
	if (wpt_target_attach(&t, f.pid, 2000, uffd_of_kernel(), NULL) == -WPT_E_UNSUPPORTED) {
		print_message("a descriptor of a process without its first thread needs PIDFD_THREAD (Linux 6.9)\n");
		fixture_finish(&f, 0);
		skip();
	}
	wpt_target_close(t);
	for (i = 0; i < rounds(50); i++) {
		t = must_attach(f.pid);
		must_stop(t);
		before = atomic_load(&f.sh->count[0]);
		sleep_us(300);
		assert_int_equal(before, atomic_load(&f.sh->count[0]));
		assert_int_equal(wpt_target_maps(t, &maps), 0);
		assert_true(maps.maps.count > 5);
		assert_int_equal(wpt_target_read(t, wpt_map_at(&maps, 0)->start, buf, 4), 4);
		assert_memory_equal(buf, "\177ELF", 4);
		assert_int_equal(wpt_target_alive(t), 0);
		wpt_target_close(t);
	}
	wpt_maps_free(&maps);
	fixture_finish(&f, 0);
}

/* Attached by a thread that ends, where the first one has ended before. */
static void test_threads_end(void **state)
{
	struct wpt_maps maps = { .raw = 0 };
	struct wpt_target *t;
	struct fixture f;
	char buf[64];
	int rc;

	(void)state;
	fixture_start(&f, "heirs", 0);
	WAIT_FOR(task_state(f.pid, f.pid) == 'Z');
	rc = wpt_target_attach(&t, f.pid, 2000, WPT_UFFD_NONE, NULL);
	assert_int_equal(rc, 0);
	fixture_wake(&f);
	WAIT_FOR(!task_state(f.pid, (pid_t)f.sh->count[1]));
	assert_int_equal(wpt_target_alive(t), 0);
	assert_int_equal(wpt_target_maps(t, &maps), 0);
	assert_true(maps.maps.count > 5);
	assert_int_equal(wpt_target_read(t, wpt_map_at(&maps, 0)->start, buf, 4), 4);
	assert_memory_equal(buf, "\177ELF", 4);
	must_stop(t);
	assert_int_equal(wpt_target_maps(t, &maps), 0);
	wpt_target_resume(t);
	kill(f.pid, SIGKILL);
	WAIT_FOR(wpt_target_alive(t) == -WPT_E_GONE);
	assert_int_equal(wpt_target_maps(t, &maps), -WPT_E_GONE);
	wpt_target_close(t);
	wpt_maps_free(&maps);
	fixture_finish(&f, SIGKILL);
}

static void test_breed(void **state)
{
	unsigned long before[MAX_COUNT];
	struct wpt_target *t;
	struct fixture f;
	int i, k;

	(void)state;
	fixture_start(&f, "breed", 0);
	for (i = 0; i < rounds(150); i++) {
		t = must_attach(f.pid);
		must_stop(t);
		for (k = 0; k < MAX_COUNT; k++)
			before[k] = atomic_load(&f.sh->count[k]);
		sleep_us(200);
		for (k = 0; k < MAX_COUNT; k++)
			assert_int_equal(before[k], atomic_load(&f.sh->count[k]));
		wpt_target_close(t);
	}
	fixture_finish(&f, 0);
}

struct sender {
	pid_t pid;
	int n;
	atomic_bool done;
	pthread_t th;
};

static void *send_signals(void *arg)
{
	struct sender *s = arg;
	union sigval v;

	for (v.sival_int = 0; !s->done; v.sival_int++)
		while (sigqueue(s->pid, SIGRTMIN, v) && errno == EAGAIN)
			sleep_us(20);
	s->n = v.sival_int;
	return NULL;
}

/* Queued signals come once each and in order; a timer's come on beside them. */
static void test_storm(void **state)
{
	struct sender s = { .n = 0 };
	struct wpt_target *t;
	struct fixture f;
	unsigned long alarms;
	int i, k;

	(void)state;
	fixture_start(&f, "storm", 0);
	s.pid = f.pid;
	assert_int_equal(pthread_create(&s.th, NULL, send_signals, &s), 0);
	for (i = 0; i < rounds(300); i++) {
		t = must_attach(f.pid);
		for (k = 0; k < 4; k++) {
			must_stop(t);
			wpt_target_resume(t);
		}
		wpt_target_close(t);
	}
	s.done = true;
	pthread_join(s.th, NULL);
	WAIT_FOR(atomic_load(&f.sh->count[1]) == (unsigned long)s.n);
	alarms = atomic_load(&f.sh->count[2]);
	WAIT_FOR(atomic_load(&f.sh->count[2]) > alarms);
	fixture_finish(&f, 0);
}

static void *send_ignored(void *arg)
{
	struct sender *s = arg;

	for (; !s->done; s->n++) {
		kill(s->pid, SIGURG);
		if (s->n % 4 == 0)
			sleep_us(1);
	}
	return NULL;
}

/* A call that waits is not ended by a signal that the program ignores. */
static void test_ignored_signals(void **state)
{
	struct sender s = { .n = 0 };
	struct wpt_target *t;
	struct fixture f;
	int i, k;

	(void)state;
	fixture_start(&f, "epoll", 0);
	WAIT_FOR(task_state(f.pid, f.pid) == 'S');
	s.pid = f.pid;
	assert_int_equal(pthread_create(&s.th, NULL, send_ignored, &s), 0);
	for (i = 0; i < rounds(1000); i++) {
		t = must_attach(f.pid);
		for (k = 0; k < 4 && i % 4 == 0; k++) {
			must_stop(t);
			wpt_target_resume(t);
		}
		wpt_target_close(t);
	}
	s.done = true;
	pthread_join(s.th, NULL);
	fixture_wake(&f);
	fixture_finish(&f, 0);
}

static void test_stopped(void **state)
{
	struct wpt_target *t;
	struct fixture f;
	int i, status, k;
	unsigned long before;

	(void)state;
	fixture_start(&f, "compute", 0);
	for (i = 0; i < rounds(100); i++) {
		kill(f.pid, SIGSTOP);
		assert_int_equal(waitpid(f.pid, &status, WUNTRACED), f.pid);
		assert_true(WIFSTOPPED(status));
		t = must_attach(f.pid);
		WAIT_FOR(task_state(f.pid, f.pid) == 'T');
		must_stop(t);
		wpt_target_close(t);
		WAIT_FOR(task_state(f.pid, f.pid) == 'T');
		before = atomic_load(&f.sh->count[0]);
		sleep_us(300);
		assert_int_equal(before, atomic_load(&f.sh->count[0]));
		assert_int_equal(waitpid(f.pid, &status, WUNTRACED | WNOHANG), 0);
		kill(f.pid, SIGCONT);
		for (k = 0; k < NR_THREADS; k++) {
			before = atomic_load(&f.sh->count[k]);
			WAIT_FOR(atomic_load(&f.sh->count[k]) > before);
		}
	}
	fixture_finish(&f, 0);
}

static void *stop_and_go(void *arg)
{
	struct sender *s = arg;
	int i;

	for (i = 0; i < s->n; i++) {
		kill(s->pid, SIGSTOP);
		sleep_us(100 + (unsigned)(i * 37 % 900));
		kill(s->pid, SIGCONT);
		sleep_us(100 + (unsigned)(i * 53 % 700));
	}
	return NULL;
}

/* SIGSTOP and SIGCONT at any moment of an attach: the target ends up running, as the last one says. */
static void test_stop_storm(void **state)
{
	struct sender s = { .n = 4 * rounds(200) };
	struct wpt_target *t;
	unsigned long before;
	struct fixture f;
	int i, k;

	(void)state;
	fixture_start(&f, "compute", 0);
	s.pid = f.pid;
	assert_int_equal(pthread_create(&s.th, NULL, stop_and_go, &s), 0);
	for (i = 0; i < rounds(200); i++) {
		t = must_attach(f.pid);
		must_stop(t);
		wpt_target_close(t);
	}
	pthread_join(s.th, NULL);
	for (k = 0; k < NR_THREADS; k++) {
		before = atomic_load(&f.sh->count[k]);
		WAIT_FOR(atomic_load(&f.sh->count[k]) > before);
	}
	fixture_finish(&f, 0);
}

static void *attach_once(void *arg)
{
	struct fixture *f = arg;

	wpt_target_close(must_attach(f->pid));
	return NULL;
}

/* A SIGSTOP at any moment of an attach stops the target, and its parent is told once. */
static void test_stop_during(void **state)
{
	unsigned long before;
	struct fixture f;
	int i, k, status;
	pthread_t th;

	(void)state;
	needs_tracking();
	fixture_start(&f, "compute", 0);
	for (i = 0; i < rounds(300); i++) {
		assert_int_equal(pthread_create(&th, NULL, attach_once, &f), 0);
		sleep_us((unsigned)(i * 17 % 1500));
		kill(f.pid, SIGSTOP);
		assert_int_equal(waitpid(f.pid, &status, WUNTRACED), f.pid);
		assert_true(WIFSTOPPED(status));
		pthread_join(th, NULL);
		WAIT_FOR(task_state(f.pid, f.pid) == 'T');
		before = 0;
		for (k = 0; k < NR_THREADS; k++)
			before += atomic_load(&f.sh->count[k]);
		sleep_us(200);
		for (k = 0; k < NR_THREADS; k++)
			before -= atomic_load(&f.sh->count[k]);
		assert_int_equal(before, 0);
		assert_int_equal(waitpid(f.pid, &status, WUNTRACED | WNOHANG), 0);
		kill(f.pid, SIGCONT);
	}
	fixture_finish(&f, 0);
}

static void filtered(const char *mode, int end)
{
	struct wpt_target *t;
	struct fixture f;
	int i;

	fixture_start(&f, mode, 0);
	WAIT_FOR(task_state(f.pid, f.pid) == 'S');
	for (i = 0; i < rounds(30); i++) {
		t = must_attach(f.pid);
		must_stop(t);
		wpt_target_close(t);
	}
	fixture_wake(&f);
	fixture_finish(&f, end);
}

static void test_seccomp(void **state)
{
	(void)state;
	if (geteuid()) {
		print_message("skipping: needs root to suspend a seccomp filter\n");
		skip();
	}
	filtered("filter_errno", 0);
	filtered("filter_trap", 0);
	filtered("filter_kill", SIGSYS);
}

static void seccomp_as_nobody(void **state)
{
	static const char *const modes[] = { "filter_errno", "filter_trap", "filter_kill" };
	struct wpt_target *t;
	struct fixture f;
	size_t i;
	int k;

	(void)state;
	for (i = 0; i < WPT_ARRAY_SIZE(modes); i++) {
		fixture_start(&f, modes[i], 0);
		WAIT_FOR(task_state(f.pid, f.pid) == 'S');
		for (k = 0; k < rounds(20); k++)
			assert_int_equal(attach_in_time(&t, f.pid, uffd_of_kernel()), -WPT_E_SECCOMP);
		/* To read it needs no system call of the target. */
		assert_int_equal(wpt_target_attach(&t, f.pid, 1000, WPT_UFFD_NONE, NULL), 0);
		wpt_target_close(t);
		fixture_wake(&f);
		fixture_finish(&f, i == 2 ? SIGSYS : 0);
	}
}

static void test_seccomp_refused(void **state)
{
	(void)state;
	as_nobody(seccomp_as_nobody);
}

static void test_dispatch(void **state)
{
	struct wpt_target *t;
	struct fixture f;
	int i, fault;

	(void)state;
	fixture_start(&f, "dispatch", 0);
	fault = atomic_load(&f.sh->word);
	for (i = 0; i < rounds(30) && !fault; i++)
		assert_int_equal(attach_in_time(&t, f.pid, uffd_of_kernel()), -WPT_E_SECCOMP);
	fixture_finish(&f, 0);
	if (fault) {
		print_message("skipping: no syscall user dispatch in this kernel\n");
		skip();
	}
}

static void test_vfork(void **state)
{
	struct wpt_target *t;
	struct fixture f;
	int i;

	(void)state;
	for (i = 0; i < rounds(30); i++) {
		fixture_start(&f, "vfork", 0);
		WAIT_FOR(task_state(f.pid, f.pid) == 'D');
		assert_int_equal(wpt_target_attach(&t, f.pid, 30, uffd_of_kernel(), NULL), -WPT_E_STOP_TIMEOUT);
		assert_int_equal(task_status(f.pid, "TracerPid:", 10), 0);
		fixture_wake(&f);
		fixture_finish(&f, 0);
	}
}

static void test_vfork_threads(void **state)
{
	struct wpt_target *t;
	unsigned long before;
	struct fixture f;
	uint64_t at;
	int i;

	(void)state;
	for (i = 0; i < rounds(30); i++) {
		fixture_start(&f, "vfork_threads", 0);
		WAIT_FOR(task_state(f.pid, f.pid) == 'D');
		/* The thread that is not in vfork does it. */
		assert_int_equal(attach_in_time(&t, f.pid, uffd_of_kernel()), 0);
		wpt_target_close(t);
		assert_int_equal(wpt_target_attach(&t, f.pid, 30, WPT_UFFD_NONE, NULL), 0);
		assert_int_equal(wpt_target_stop(t, &at), -WPT_E_STOP_TIMEOUT);
		before = atomic_load(&f.sh->count[0]);
		WAIT_FOR(atomic_load(&f.sh->count[0]) > before);
		fixture_wake(&f);
		/* Once the child is done all can be stopped. */
		WAIT_FOR(wpt_target_stop(t, &at) == 0);
		wpt_target_close(t);
		fixture_finish(&f, 0);
	}
}

static void test_exec(void **state)
{
	struct wpt_target *t;
	unsigned long before;
	struct fixture f;
	int i, rc, done = 0;

	(void)state;
	needs_tracking();
	fixture_start(&f, "exec", 0);
	for (i = 0; i < rounds(300); i++) {
		rc = wpt_target_attach(&t, f.pid, 1000, uffd_of_kernel(), NULL);
		if (!rc) {
			wpt_target_close(t);
			done++;
		} else if (rc != -WPT_E_GONE && rc != -EAGAIN && rc != -WPT_E_STOP_TIMEOUT) {
			fail_msg("attach while executing: %s", wpt_strerror(rc));
		}
		if (i % 50 == 0) {
			before = atomic_load(&f.sh->count[0]);
			WAIT_FOR(atomic_load(&f.sh->count[0]) > before);
		}
	}
	fixture_finish(&f, 0);
	print_message("%d of %d attaches to a process that executes all the time\n", done, i);
}

struct attacher {
	struct fixture *f;
	atomic_bool done;
};

static void *attach_somehow(void *arg)
{
	struct attacher *a = arg;
	struct wpt_target *t;

	if (!wpt_target_attach(&t, a->f->pid, 2000, uffd_of_kernel(), NULL))
		wpt_target_close(t);
	a->done = true;
	return NULL;
}

/* A program is executed after some of the other threads did not stop. Who holds one of them must not wait for another, for that would hang all. */
static void test_exec_after_others_did_not_stop(void **state)
{
	struct attacher a;
	struct fixture f;
	pthread_t th;
	int i, k;

	(void)state;
	needs_tracking();
	for (i = 0; i < rounds(20); i++) {
		fixture_start(&f, "vforked_exec", 0);
		for (k = 0; k < NR_VFORKED; k++)
			WAIT_FOR(task_state(f.pid, (pid_t)f.sh->count[k]) == 'D');
		a.f = &f;
		a.done = false;
		assert_int_equal(pthread_create(&th, NULL, attach_somehow, &a), 0);
		WAIT_FOR(task_status((pid_t)f.sh->count[3], "TracerPid:", 10) > 0 || a.done);
		fixture_wake(&f);
		WAIT_FOR(f.sh->ready == 2);
		pthread_join(th, NULL);
		fixture_wake(&f);
		fixture_finish(&f, 0);
	}
}

/* A program that is being executed waits for somebody else. We don't wait longer than we were told to. */
static void test_exec_that_hangs(void **state)
{
	struct wpt_target *t, *u;
	struct fixture f;
	uint64_t at;
	pid_t tracer;
	int sync[2];
	char c;

	(void)state;
	needs_tracking();
	fixture_start(&f, "exec_beside", 0);
	assert_int_equal(pipe(sync), 0);
	tracer = fork();
	if (!tracer) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		c = ptrace(PTRACE_SEIZE, (pid_t)f.sh->count[1], 0, 0) ? 'n' : 'y';
		if (write(sync[1], &c, 1) == 1)
			pause();
		_exit(1);
	}
	assert_int_equal(read(sync[0], &c, 1), 1);
	assert_int_equal(c, 'y');
	assert_int_equal(wpt_target_attach(&t, f.pid, 100, WPT_UFFD_NONE, NULL), 0);
	fixture_wake(&f);
	WAIT_FOR(task_state(f.pid, (pid_t)f.sh->count[1]) == 'Z');
	assert_int_equal(wpt_target_attach(&u, f.pid, 100, uffd_of_kernel(), NULL), -WPT_E_STOP_TIMEOUT);
	assert_int_equal(wpt_target_stop(t, &at), -WPT_E_STOP_TIMEOUT);
	wpt_target_close(t);
	kill(tracer, SIGKILL);
	waitpid(tracer, NULL, 0);
	close(sync[0]);
	close(sync[1]);
	WAIT_FOR(f.sh->ready == 2);
	fixture_wake(&f);
	fixture_finish(&f, 0);
}

/* The target's own thread closes the descriptor that is to be taken, and opens a file that gets its number: which is not to be closed. */
static void test_stolen_descriptor(void **state)
{
	struct wpt_target *t;
	struct fixture f;
	int i, rc;

	(void)state;
	needs_tracking();
	fixture_start(&f, "thief", 0);
	for (i = 0; i < rounds(200); i++) {
		rc = attach_in_time(&t, f.pid, uffd_of_kernel());
		if (!rc)
			wpt_target_close(t);
		else
			assert_int_equal(rc, -EAGAIN);
	}
	print_message("%lu descriptors stolen at once in %d attaches\n", atomic_load(&f.sh->count[5]), i);
	fixture_finish(&f, 0);
}

static void test_exit(void **state)
{
	struct wpt_target *t;
	int i, rc, status;
	pid_t pid;

	(void)state;
	needs_tracking();
	for (i = 0; i < rounds(300); i++) {
		pid = fork();
		if (!pid) {
			sleep_us((unsigned)(i * 13 % 1500));
			_exit(11);
		}
		sleep_us(50);
		rc = wpt_target_attach(&t, pid, 1000, uffd_of_kernel(), NULL);
		if (!rc)
			wpt_target_close(t);
		else if (rc != -WPT_E_GONE && rc != -ESRCH && rc != -EAGAIN && rc != -WPT_E_STOP_TIMEOUT)
			fail_msg("attach to what exits: %s", wpt_strerror(rc));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 11 << 8);
	}
	/* A zombie. */
	pid = fork();
	if (!pid)
		_exit(0);
	WAIT_FOR(task_state(pid, pid) == 'Z');
	assert_int_equal(wpt_target_attach(&t, pid, 100, uffd_of_kernel(), NULL), -WPT_E_GONE);
	waitpid(pid, NULL, 0);
	assert_int_equal(wpt_target_attach(&t, pid, 100, uffd_of_kernel(), NULL), -ESRCH);
}

static void test_refusals(void **state)
{
	struct wpt_target *t = (void *)1;
	struct fixture f;
	pid_t tracer;
	int sync[2];
	char c;

	(void)state;
	assert_int_equal(wpt_target_attach(&t, 0, 0, uffd_of_kernel(), NULL), -EINVAL);
	assert_int_equal(wpt_target_attach(&t, -5, 0, uffd_of_kernel(), NULL), -EINVAL);
	assert_int_equal(wpt_target_attach(&t, getpid(), 0, uffd_of_kernel(), NULL), -EINVAL);
	if (getuid() == 0 && !access("/proc/2/stat", R_OK))
		assert_int_equal(wpt_target_attach(&t, 2, 0, uffd_of_kernel(), NULL), -EPERM); /* kthreadd */
	fixture_start(&f, "poll", 0);
	assert_int_equal(pipe(sync), 0);
	tracer = fork();
	if (!tracer) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		c = ptrace(PTRACE_SEIZE, f.pid, 0, 0) ? 'n' : 'y';
		if (write(sync[1], &c, 1) == 1)
			pause();
		_exit(1);
	}
	assert_int_equal(read(sync[0], &c, 1), 1);
	assert_int_equal(c, 'y');
	assert_int_equal(attach_in_time(&t, f.pid, uffd_of_kernel()), -WPT_E_TRACED);
	assert_int_equal(wpt_target_attach(&t, f.pid, 100, WPT_UFFD_NONE, NULL), 0);
	uint64_t at;
	assert_int_equal(wpt_target_stop(t, &at), -WPT_E_TRACED);
	wpt_target_close(t);
	kill(tracer, SIGKILL);
	waitpid(tracer, NULL, 0);
	close(sync[0]);
	close(sync[1]);
	t = must_attach(f.pid);
	wpt_target_close(t);
	fixture_wake(&f);
	fixture_finish(&f, 0);
}

static void others_process(void **state)
{
	struct wpt_target *t;

	(void)state;
	assert_int_equal(wpt_target_attach(&t, 1, 100, uffd_of_kernel(), NULL), -EPERM);
}

static void test_not_allowed(void **state)
{
	(void)state;
	if (geteuid()) {
		print_message("skipping: needs root to become another user\n");
		skip();
	}
	as_nobody(others_process);
}

#ifdef __x86_64__
/* A program of 32 bits: pause() for ever. */
static const unsigned char elf32[] = {
	0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 1, 0, 0, 0, 0x54, 0x80, 0x04, 0x08, 0x34, 0, 0, 0,
	0, 0, 0, 0, 0, 0, 0, 0, 0x34, 0, 0x20, 0, 1, 0, 0, 0, 0, 0, 0, 0,
	1, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x04, 0x08, 0, 0x80, 0x04, 0x08, 0x5d, 0, 0, 0, 0x5d, 0, 0, 0, 5, 0, 0, 0, 0, 0x10, 0, 0,
	0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7,
};

static void test_other_word_size(void **state)
{
	int fd = memfd_create("elf32", 0), i, status;
	struct wpt_target *t;
	char path[64];
	pid_t pid;

	(void)state;
	assert_int_equal(write(fd, elf32, sizeof(elf32)), sizeof(elf32));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(path, "elf32", NULL);
		_exit(errno == ENOEXEC ? 44 : 45);
	}
	WAIT_FOR(task_state(pid, pid) == 'S' || task_state(pid, pid) == 'Z');
	if (task_state(pid, pid) == 'Z') {
		waitpid(pid, &status, 0);
		close(fd);
		assert_int_equal(WEXITSTATUS(status), 44);
		print_message("skipping: this kernel runs no 32-bit programs\n");
		skip();
	}
	for (i = 0; i < rounds(20); i++) {
		assert_int_equal(attach_in_time(&t, pid, uffd_of_kernel()), -WPT_E_ARCH);
		assert_int_equal(wpt_target_attach(&t, pid, 2000, WPT_UFFD_NONE, NULL), 0);
		must_stop(t);
		wpt_target_close(t);
		WAIT_FOR(task_state(pid, pid) == 'S');
	}
	kill(pid, SIGTERM);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, SIGTERM);
	close(fd);
}
#endif

static void test_rseq(void **state)
{
	struct wpt_target *t;
	struct fixture f;
	int i, have;

	(void)state;
	fixture_start(&f, "rseq", 0);
	have = atomic_load(&f.sh->word);
	for (i = 0; i < rounds(300) && have; i++) {
		t = must_attach(f.pid);
		wpt_target_close(t);
	}
	fixture_finish(&f, 0);
	if (!have) {
		print_message("skipping: the C library registers no restartable sequences\n");
		skip();
	}
}

/* Whatever the attacher does at the moment of its death, the target goes on, untraced and whole. */
static void kill_attacher(struct fixture *f, int i)
{
	pid_t pid = fork();
	uint64_t at;

	if (!pid) {
		struct wpt_target *t;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;) {
			if (wpt_target_attach(&t, f->pid, 1000, uffd_of_kernel(), NULL))
				continue;
			if (!wpt_target_stop(t, &at))
				wpt_target_resume(t);
			wpt_target_close(t);
		}
	}
	sleep_us(500 + (unsigned)(rand_r(&(unsigned){ (unsigned)i }) % 6000));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void test_killed(void **state)
{
	unsigned long before;
	struct fixture f, g;
	int i, k, fds;

	(void)state;
	fixture_start(&f, "compute", 0);
	fixture_start(&g, "poll", 0);
	fds = count_fds(f.pid);
	for (i = 0; i < rounds(200); i++) {
		kill_attacher(i & 1 ? &g : &f, i);
		WAIT_FOR(task_status(f.pid, "TracerPid:", 10) == 0);
		WAIT_FOR(task_status(g.pid, "TracerPid:", 10) == 0);
		for (k = 0; k < NR_THREADS && i % 20 == 0; k++) {
			before = atomic_load(&f.sh->count[k]);
			WAIT_FOR(atomic_load(&f.sh->count[k]) > before);
		}
	}
	WAIT_FOR(count_fds(f.pid) == fds);
	fixture_finish(&f, 0);
	fixture_wake(&g);
	fixture_finish(&g, 0);
}

/* The descriptor is one of the target's memory, and the tracking ends with it. */
static void test_descriptor(void **state)
{
	struct wpt_page_region region;
	struct wpt_pm_scan_arg scan;
	struct uffdio_register reg;
	struct wpt_target *t;
	struct fixture f;
	int i;

	(void)state;
	if (uffd_of_kernel() != WPT_UFFD_ASYNC) {
		print_message("PAGEMAP_SCAN is not there\n");
		skip();
	}
	fixture_start(&f, "memory", 0);
	for (i = 0; i < rounds(50); i++) {
		t = must_attach(f.pid);
		memset(&reg, 0, sizeof(reg));
		reg.range.start = f.sh->addr[0];
		reg.range.len = 64 * 4096;
		reg.mode = UFFDIO_REGISTER_MODE_WP;
		assert_int_equal(ioctl(wpt_target_uffd(t), UFFDIO_REGISTER, &reg), 0);
		memset(&scan, 0, sizeof(scan));
		scan.size = sizeof(scan);
		scan.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;
		scan.start = f.sh->addr[0];
		scan.end = f.sh->addr[0] + 64 * 4096;
		scan.vec = (uintptr_t)&region;
		scan.vec_len = 1;
		scan.category_mask = scan.return_mask = PAGE_IS_WRITTEN;
		assert_int_equal(ioctl(wpt_target_pagemap(t), WPT_PAGEMAP_SCAN, &scan), 1);
		assert_int_equal(ioctl(wpt_target_pagemap(t), WPT_PAGEMAP_SCAN, &scan), 0);
		fixture_wake(&f);
		WAIT_FOR(atomic_load(&f.sh->count[0]) == (unsigned long)i + 1);
		assert_int_equal(ioctl(wpt_target_pagemap(t), WPT_PAGEMAP_SCAN, &scan), 1);
		assert_int_equal(region.start, f.sh->addr[0] + 5 * 4096);
		assert_int_equal(region.end, f.sh->addr[0] + 6 * 4096);
		wpt_target_close(t);
	}
	atomic_store(&f.sh->stop, 1);
	fixture_wake(&f);
	fixture_finish(&f, 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_blocked),
		cmocka_unit_test(test_unprivileged),
		cmocka_unit_test(test_compute),
		cmocka_unit_test(test_leaderless),
		cmocka_unit_test(test_threads_end),
		cmocka_unit_test(test_breed),
		cmocka_unit_test(test_storm),
		cmocka_unit_test(test_ignored_signals),
		cmocka_unit_test(test_stopped),
		cmocka_unit_test(test_stop_storm),
		cmocka_unit_test(test_stop_during),
		cmocka_unit_test(test_seccomp),
		cmocka_unit_test(test_seccomp_refused),
		cmocka_unit_test(test_dispatch),
		cmocka_unit_test(test_vfork),
		cmocka_unit_test(test_vfork_threads),
		cmocka_unit_test(test_exec),
		cmocka_unit_test(test_exec_after_others_did_not_stop),
		cmocka_unit_test(test_exec_that_hangs),
		cmocka_unit_test(test_stolen_descriptor),
		cmocka_unit_test(test_exit),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_not_allowed),
#ifdef __x86_64__
		cmocka_unit_test(test_other_word_size),
#endif
		cmocka_unit_test(test_rseq),
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_descriptor),
	};

	if (argc == 2 && !strcmp(argv[0], "target"))
		return target_main(argv[1]);
	if (getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
