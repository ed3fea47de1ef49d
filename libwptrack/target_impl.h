/* SPDX-License-Identifier: MIT */
/* The inside of struct wpt_target, shared by target.c, attach.c, stop.c, maps.c and writers.c only. */
#ifndef WPT_TARGET_IMPL_H
#define WPT_TARGET_IMPL_H

#include "target.h"

#include <stdatomic.h>

#define WPT_TOKEN_BYTES 16
#define WPT_MAX_DEVS 128

/* The page size of a file system, by device number. */
struct wpt_dev {
	uint32_t major, minor;
	uint32_t page_size; /* 0: not hugetlbfs */
};

struct wpt_stop;

struct wpt_target {
	pid_t pid;
	bool self;
	uint32_t stop_timeout_ms;
	uint64_t start_time;
	char comm[64];
	struct wpt_log log;
	uint64_t *stamp; /* a page of its own, zeroed by the kernel in a forked child */

	int pidfd; /* -1 for the own process */
	int proc;  /* /proc/PID */
	int task;  /* /proc/PID/task */
	/* These three belong to the memory that was attached to, whoever has the pid and whatever it executes later. */
	int mem;
	int pagemap;
	int maps;
	int uffd; /* or -errno, -WPT_E_* */

	/*
	 * process_vm_readv() follows the thread, not the memory. Every call also reads the 16 random bytes that the kernel gave the
	 * program when it was executed (AT_RANDOM), so that another program's memory is never taken for the target's.
	 */
	pid_t vm_tid;
	uint64_t token_addr;
	uint8_t token[WPT_TOKEN_BYTES];
	atomic_bool token_valid; /* false: read through `mem` only */

	struct wpt_dev devs[WPT_MAX_DEVS];
	size_t nr_devs;

	struct wpt_stop *stop;
	int inotify;
};

/* -WPT_E_FORKED in a child of the process that opened the target. */
int wpt_target_check(const struct wpt_target *t);

/* pread() of the target's memory: 0 when that memory is gone. */
ssize_t wpt_mem_pread(int mem, void *buf, size_t len, uint64_t addr);

/* Room for `bytes` more at the end of a vector of bytes: where they go, or NULL. The count stays. */
char *wpt_vec_reserve(struct wpt_vec *v, size_t bytes);

void wpt_stop_free(struct wpt_stop *s);
/* The stop ended early: whoever held the threads was killed. Any thread. */
bool wpt_stop_lost(struct wpt_stop *s);

/*
 * Has a thread of the target call userfaultfd() and takes the descriptor over. The target's `mem` and token must be open; they are
 * confirmed to be those of the thread. `all_faults`: one for faults of user mode only will not do. `keep`: the thread leaves its own open. Returns
 * the descriptor or a negative error.
 */
int wpt_target_inject(struct wpt_target *t, bool all_faults, bool keep, uint64_t deadline);

#endif
