/* SPDX-License-Identifier: MIT */
/* What tests need whatever they test: numbers from the environment, folders, another user. */
#ifndef COMMON_H
#define COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define NOBODY 65534

static inline uint64_t env_number(const char *name, uint64_t otherwise)
{
	const char *s = getenv(name);

	return s && *s ? strtoull(s, NULL, 0) : otherwise;
}

/* WPT_SEED, else another one each time. */
static inline uint64_t env_seed(void)
{
	uint64_t random = 0;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		random = (uint64_t)time(NULL);
	return env_number("WPT_SEED", random % 1000000);
}

/* The folder and the files in it. */
static inline void remove_folder(const char *path)
{
	char name[600];
	struct dirent *e;
	DIR *d = opendir(path);

	while (d && (e = readdir(d))) {
		snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
		unlink(name);
	}
	if (d)
		closedir(d);
	rmdir(path);
}

/* Runs a test as an unprivileged user, in a process of its own. */
static inline void run_as_nobody(void (*fn)(void **state))
{
	const struct CMUnitTest tests[] = { { "as nobody", fn, NULL, NULL, NULL } };
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		if (getuid() == 0 && (setgid(NOBODY) || setuid(NOBODY)))
			_exit(98);
		prctl(PR_SET_DUMPABLE, 1);
		dup2(open("/dev/null", O_WRONLY), 1);
		cmocka_set_test_filter(NULL);
		_exit(cmocka_run_group_tests(tests, NULL, NULL));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

#endif
