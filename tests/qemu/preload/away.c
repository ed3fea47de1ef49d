/* SPDX-License-Identifier: MIT */
/*
 * For LD_PRELOAD: a store that can't be read for as long as the file $WPT_AWAY exists. Only reads of snapshots are concerned, and of those only what
 * wpsnap's threads read: not the first one, which reads what a machine is before it starts it. $WPT_AWAY_AFTER of theirs succeed in any case.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

ssize_t pread64(int fd, void *buf, size_t len, off64_t offset);

static int is_away(int fd)
{
	static _Atomic long nr;
	const char *flag = getenv("WPT_AWAY"), *after = getenv("WPT_AWAY_AFTER");
	char path[64], name[4096];
	ssize_t n;

	if (!flag || syscall(SYS_gettid) == getpid() || access(flag, F_OK) != 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, name, sizeof(name));
	return n > 4 && memcmp(name + n - 4, ".wps", 4) == 0 && nr++ >= (after ? atol(after) : 0);
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t offset)
{
	if (is_away(fd)) {
		errno = EIO;
		return -1;
	}
	return syscall(SYS_pread64, fd, buf, len, offset);
}
