/* SPDX-License-Identifier: MIT */
/* Reading /proc without malloc, stdio or errno. Folders are descriptors, so that a reused pid can't be mistaken for the old one. */
#ifndef WPT_PROC_H
#define WPT_PROC_H

#include "base.h"

/* /proc/PID, as an O_PATH descriptor, or -errno (-ESRCH if there is none). */
int wpt_proc_open(pid_t pid);

/* The whole of a small file, NUL-terminated; returns its length, cut at size - 1, or -errno. */
ssize_t wpt_proc_read(int dir, const char *path, char *buf, size_t size);

#ifndef PF_EXITING
#define PF_EXITING 0x00000004
#define PF_KTHREAD 0x00200000
#endif

struct wpt_proc_stat {
	char comm[64];
	char state;
	uint32_t flags; /* PF_* */
	uint64_t start_time;
};

int wpt_proc_stat(int dir, const char *path, struct wpt_proc_stat *st);

/* The thread of a process's folder of threads is gone or on its way: it has no memory any more, and its files belong to root. */
bool wpt_proc_is_exiting(int task, uint64_t tid);

/* What decides whether a thread can be attached to, of its `status` file. */
struct wpt_proc_status {
	char state;
	pid_t tracer;
	int seccomp;
};

int wpt_proc_status(int dir, const char *path, struct wpt_proc_status *st);

/* Decimal and hexadecimal numbers; advance *p; 0 if there is no digit. */
uint64_t wpt_parse_dec(const char **p);
uint64_t wpt_parse_hex(const char **p);

/* "PREFIX NUMBER SUFFIX" into buf of 64 bytes. */
const char *wpt_proc_path(char buf[64], const char *prefix, uint64_t number, const char *suffix);

/*
 * Calls `each` for every entry of the folder whose name is a number, until it returns non-zero (which is returned). The descriptor is read
 * from its start; it is the caller's.
 */
int wpt_proc_numbers(int dir, int (*each)(void *arg, uint64_t number), void *arg);

#endif
