/* SPDX-License-Identifier: MIT */
/*
 * The process whose memory it is: the own one or another pid. Attaching, stopping, mappings, reading, liveness, and who else may
 * change the memory. Nothing here knows about dirty pages.
 *
 * Threads: stop and resume by the same thread; read and alive by any. Between stop and resume of the own process (which the caller
 * does through callbacks, not here) nothing in this file calls malloc or stdio: maps, read, alive, open_file, writers, pinned included.
 */
#ifndef WPT_TARGET_H
#define WPT_TARGET_H

#include "base.h"

struct wpt_target;

/* What the target's userfaultfd is asked for. */
enum wpt_uffd {
	WPT_UFFD_NONE = 0,    /* there is none: the target is only read */
	WPT_UFFD_ASYNC = 1,   /* WP_ASYNC, WP_UNPOPULATED and what they need */
	WPT_UFFD_WRITTEN = 2, /* WP_WRITTEN too */
	WPT_UFFD_SYNC = 3,    /* faults are reported, those of system calls too: -EPERM where the target's user may not have that */
	/*
	 * Faults on what is missing are reported, those of system calls too, and what madvise(2) takes away. Another process keeps a copy of the
	 * descriptor until it ends: if this process dies, whoever touches what is missing waits, and does not see zeros.
	 */
	WPT_UFFD_MISSING = 4
};

/* The own process. Opens pagemap, mem, a userfaultfd (user mode only suffices but for SYNC; one that can't be had is no error here). */
int wpt_target_self(struct wpt_target **out, enum wpt_uffd uffd, const struct wpt_log *log);

/* Another process: DESIGN rules of attach. Without a userfaultfd nothing is injected. */
int wpt_target_attach(struct wpt_target **out, pid_t pid, uint32_t stop_timeout_ms, enum wpt_uffd uffd, const struct wpt_log *log);
void wpt_target_close(struct wpt_target *t);

/* -WPT_E_FORKED in a child of the process that opened the target, else 0. No system call. */
int wpt_target_check(const struct wpt_target *t);
pid_t wpt_target_pid(const struct wpt_target *t);
bool wpt_target_is_self(const struct wpt_target *t);
uint64_t wpt_target_start_time(const struct wpt_target *t);
int wpt_target_uffd(const struct wpt_target *t);     /* descriptor or -1 */
int wpt_target_pagemap(const struct wpt_target *t);  /* descriptor */
void wpt_target_comm(const struct wpt_target *t, char comm[64]);

/*
 * 0, or -WPT_E_GONE: the process that was attached exited, is a zombie, or executed another program. Cheap (a uffd ioctl, and a look at the
 * pidfd); call it after the last copy. -WPT_E_FORKED in a child of the process that opened the target.
 */
int wpt_target_alive(struct wpt_target *t);

/*
 * Stop every thread of the target and of processes that share its memory (CLONE_VM), or nobody: -WPT_E_STOP_TIMEOUT after stop_timeout_ms,
 * -WPT_E_SHARED_VM, -WPT_E_TRACED, -WPT_E_GONE. Threads that were stopped by a signal stay stopped afterwards. *stopped_at: wpt_now_ns()
 * when the first thread was asked to stop. If this process dies in between, the kernel lets the target run.
 */
int wpt_target_stop(struct wpt_target *t, uint64_t *stopped_at);
void wpt_target_resume(struct wpt_target *t);

/* While stopped: registers of all threads, in the form of man wptrack-snapshot.5 section REGISTERS, appended to `v` (elements: bytes). */
int wpt_target_registers(struct wpt_target *t, struct wpt_vec *v);

/* One line of /proc/PID/maps. `name` is an offset into the list's text. */
struct wpt_map {
	uint64_t start, end;
	uint64_t vm_start;    /* as the kernel has it, for which it may be asked */
	uint64_t offset;      /* in the file, bytes */
	uint64_t inode;
	uint32_t dev_major, dev_minor;
	bool read, write, exec, shared;
	bool hugetlb;         /* see wpt_target_maps() */
	uint32_t page_size;   /* bytes, the mapping's own */
	size_t name;          /* NUL-terminated path or [name]; " (deleted)" kept */
};

struct wpt_maps {
	struct wpt_vec maps;  /* struct wpt_map */
	struct wpt_vec text;  /* char: all names; and the raw file */
	size_t raw, raw_len;  /* the raw text of /proc/PID/maps within `text` */
};

/*
 * Lists the mappings, ascending and apart: while the target runs, the kernel may list a mapping and then, when it was merged with the next, all of
 * that; what was listed before is left out then. hugetlb is told by the file system of the mapping's file ("/anon_hugepage", hugetlbfs), page size
 * by it.
 */
int wpt_target_maps(struct wpt_target *t, struct wpt_maps *m);
void wpt_maps_free(struct wpt_maps *m);
#define wpt_map_at(m, i) wpt_vec_at(&(m)->maps, struct wpt_map, i)
#define wpt_map_name(m, map) ((const char *)(m)->text.data + (map)->name)

/*
 * Copies memory; returns bytes copied, short at the first unreadable page, -EFAULT if that is the first, -WPT_E_GONE. Uses process_vm_readv and
 * /proc/PID/mem (which reads PROT_NONE) for what it can't. The caller confirms wpt_target_alive() afterwards.
 */
ssize_t wpt_target_read(struct wpt_target *t, uint64_t addr, void *buf, size_t len);

/*
 * Sends memory that was in swap before it was read back there. Where that is not allowed (another process, without CAP_SYS_NICE) it stays
 * in memory until the kernel needs the room.
 */
void wpt_target_pageout(struct wpt_target *t, uint64_t start, uint64_t end);

/*
 * Has the kernel put huge pages in the place of [start, end), which is a number of them as a whole; of another process this needs CAP_SYS_NICE
 * (-EPERM). An empty range: whether that is allowed. -EINVAL: not this memory, or not this kernel; -ENOMEM, -EBUSY: no memory for it; -EAGAIN: not
 * now. After an error some may have been done.
 */
int wpt_target_collapse(struct wpt_target *t, uint64_t start, uint64_t end);

/* Several pieces of memory one after the other into buf: as wpt_target_read() in one system call; the count is of bytes in total. */
struct wpt_piece {
	uint64_t addr;
	uint64_t len;
};
ssize_t wpt_target_readv(struct wpt_target *t, const struct wpt_piece *pieces, size_t nr, void *buf);

/*
 * A read-only descriptor of the mapping's file (O_CLOEXEC), confirmed by device and inode: through map_files, or an own descriptor of the
 * target with the same dev:inode, or the path. -ENOENT if none can be had. The caller closes.
 */
int wpt_target_open_file(struct wpt_target *t, const struct wpt_map *map, const struct wpt_maps *m);

/* ---- who else may change the memory ---- */

/* A file that tracked mappings are of. */
struct wpt_file_use {
	uint64_t dev, inode;      /* as st_dev, st_ino */
	uint64_t map_dev;         /* the device that mappings of it show; 0: as st_dev. Other files may have this and the inode, too */
	bool other_writer;        /* out: another process has it mapped shared and writable, or open for writing */
	bool own_writable_fd;     /* out: the target has it open for writing */
	bool uninspectable;       /* out: some process could not be looked at, and the file could be open there */
};

/*
 * Looks through /proc/PID/fd and maps of every process. Processes that share the target's memory don't count as others.
 * A process that may not be inspected makes a file uninspectable only if it could reach the file (a memfd of the target with no other
 * user than this uid can be reached by a process of the same uid or root only).
 */
int wpt_target_writers(struct wpt_target *t, struct wpt_file_use *files, size_t nr);

/*
 * Memory that the kernel may write without a fault: io_uring fixed buffers. Appends struct wpt_piece. *loud: VFIO or RDMA is in use. 1: a ring was
 * busy for so long that its buffers may be missing.
 */
int wpt_target_pinned(struct wpt_target *t, struct wpt_vec *pieces, bool *loud);

/*
 * Whether the target has something open for direct I/O (O_DIRECT), which devices then read into its memory without a fault, after one; and whether
 * it has an io_uring. What is true already is not looked for again. What a thread that can't be looked at has open counts as both.
 */
int wpt_target_direct(struct wpt_target *t, bool *direct, bool *ring);

/*
 * Content changes by system call, from any process: an inotify watch on mapped files (for memfd truncation only). Closing one that
 * was open for writing counts as a change.
 * watch: adds the file (idempotent), returns a positive watch number or -errno; poll: reads all events and calls `changed` per
 * watch number, with -1 when the queue overflowed.
 */
int wpt_target_watch(struct wpt_target *t, int fd);
void wpt_target_unwatch(struct wpt_target *t, int watch);
int wpt_target_poll(struct wpt_target *t, void (*changed)(void *arg, int watch), void *arg);

#endif
