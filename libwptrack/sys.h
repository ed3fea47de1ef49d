/* SPDX-License-Identifier: MIT */
/*
 * System calls that return -errno and touch no variable of the C library. A helper process that shares our memory (stop.c) also shares the
 * calling thread's errno, and code that runs while a target stands still must not depend on what an interposed library does.
 */
#ifndef WPT_SYS_H
#define WPT_SYS_H

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "uapi.h"

#if defined(__x86_64__) && defined(__LP64__)

static inline long wpt_sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

#elif defined(__aarch64__)

static inline long wpt_sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
}

#else

static inline long wpt_sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret = syscall(nr, a, b, c, d, e, f);

	return ret == -1 ? -errno : ret;
}

#endif

#define WPT_SYS_(nr, a, b, c, d, e, f, ...) \
	wpt_sys6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define wpt_sys(...) WPT_SYS_(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

static inline void wpt_fd_close(int *fd)
{
	if (*fd >= 0)
		wpt_sys(SYS_close, *fd);
	*fd = -1;
}

#endif
