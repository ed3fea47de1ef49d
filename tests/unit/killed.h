/* SPDX-License-Identifier: MIT */
/* A child that is killed, or held, at its n-th stop at a system call. */
#ifndef WPT_TESTS_KILLED_H
#define WPT_TESTS_KILLED_H

#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { CHILD_OK = 0, CHILD_FAILED = 1, CHILD_CANT = 77 };

static inline pid_t traced_child(void (*fn)(int), int arg)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(CHILD_CANT);
		raise(SIGSTOP);
		fn(arg);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status)) {
		print_message("missing: ptrace of an own child\n");
		skip();
	}
	assert_int_equal(ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL)), 0);
	return pid;
}

/* True: the child was killed at its n-th stop at a system call; false: it ended by itself before, and well. */
static inline bool kill_at(void (*fn)(int), int arg, int n)
{
	pid_t pid = traced_child(fn, arg);
	int status = 0;

	for (int i = 0; i <= n; i++) {
		assert_int_equal(ptrace(PTRACE_SYSCALL, pid, NULL, NULL), 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (!WIFSTOPPED(status))
			break;
		assert_int_equal(WSTOPSIG(status), SIGTRAP | 0x80);
	}
	if (WIFSTOPPED(status)) {
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		return true;
	}
	if (WEXITSTATUS(status) == CHILD_CANT) {
		print_message("missing: seccomp filters\n");
		skip();
	}
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), CHILD_OK);
	return false;
}

#endif
