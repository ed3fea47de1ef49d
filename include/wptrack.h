/* SPDX-License-Identifier: MIT */
/*
 * libwptrack: which pages of memory were written, and snapshots of them.
 *
 * Life cycle, in ten lines:
 *
 *	struct wpt_tracker *t;
 *	struct wpt_writer *w;
 *
 *	wpt_tracker_attach(&t, pid, NULL);           or wpt_tracker_open(&t, NULL) for the own process
 *	wpt_range_add_all(t);                        or wpt_range_add(t, &range) one by one
 *	wpt_writer_open(&w, t, "dir", NULL);         a chain of links in a folder
 *	wpt_writer_take(w, NULL, NULL);              the base: everything
 *	wpt_writer_take(w, NULL, NULL);              an increment: what changed since
 *	wpt_writer_close(w);
 *	wpt_tracker_close(t);                        tracking ends, the target runs on
 *
 * Caveats, all of which hold whatever you call:
 *
 * - fork: tracking belongs to the process that opened it. In a forked child every call on an inherited object
 *   returns WPT_E_FORKED and touches nothing; close is a no-op there that frees the child's copy of the memory.
 * - mremap: memory that was moved is no longer tracked by the kernel. A writer notices at its next link and compares
 *   that memory by content; wpt_tracker_scan() reports it as WPT_PAGES_UNKNOWN.
 * - A page may be changed without a page fault: pwrite(2) to a mapped file, another process that maps the file,
 *   io_uring fixed buffers, RDMA, VFIO. DESIGN NOTES in libwptrack(7) says which of these are noticed and how.
 * - Two trackers: a mapping has at most one userfaultfd. A range that somebody else registered answers -EBUSY.
 * - Content hashes guard against accidents. They do not authenticate a snapshot against someone who can edit the file.
 *
 * Conventions: a function that can fail returns 0 or a positive count, or a negative error: -errno or -(enum wpt_error).
 * wpt_strerror() names both. Constructors leave *out untouched on failure. Close functions accept NULL.
 * Addresses are bytes in the target, as uint64_t; ranges are half-open, [start, end). Option structs begin with their
 * own size, so that they can grow: set .size = sizeof(the struct) and leave the rest zero for the defaults.
 * Unless an entry says otherwise, an object may be used by one thread at a time, and different objects at the same time.
 */
#ifndef WPTRACK_H
#define WPTRACK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WPT_VERSION_MAJOR 0
#define WPT_VERSION_MINOR 1
#define WPT_VERSION_PATCH 0

#if defined(__GNUC__)
#define WPT_API __attribute__((visibility("default")))
#else
#define WPT_API
#endif

/* Errors that errno has no name for. Functions return them negated. */
enum wpt_error {
	WPT_E_UNSUPPORTED = 5001,  /* this kernel (or this user) lacks what is asked for; wpt_probe() says what */
	WPT_E_FORKED = 5002,       /* the object was opened by a parent process */
	WPT_E_SECCOMP = 5003,      /* the target's seccomp filter forbids to attach, and it can't be suspended */
	WPT_E_GONE = 5004,         /* the target exited or executed another program */
	WPT_E_STOP_TIMEOUT = 5005, /* not every thread of the target stopped in time; nothing is lost, try again */
	WPT_E_SHARED_VM = 5006,    /* another process shares the target's memory and can't be stopped */
	WPT_E_ARCH = 5007,         /* the target runs code of another word size */
	WPT_E_TRACED = 5008,       /* a debugger is attached to the target */
	WPT_E_NOT_TRACKED = 5009,  /* no such range, or memory outside the tracked ranges */
	WPT_E_DAMAGED = 5010,      /* the snapshot's bytes are not what was written */
	WPT_E_TRUNCATED = 5011,    /* the snapshot ends too early: it was cut, or its writer was killed */
	WPT_E_NOT_SNAPSHOT = 5012, /* this is not a snapshot file */
	WPT_E_FEATURE = 5013,      /* the snapshot needs a feature that this version does not know */
	WPT_E_CHAIN = 5014,        /* a link of the chain is missing, or is not the one its child was made from */
	WPT_E_MISMATCH = 5015,     /* the chain is of another target (boot, pid or start time differ) */
	WPT_E_LOCKED = 5016,       /* another writer has the chain open */
	WPT_E_STAGING = 5017,      /* the staging memory does not hold the dirty pages and the caller chose to refuse */
	WPT_E_AMBIGUOUS = 5018,    /* a name or an id prefix fits several */
	WPT_E_STORE = 5019,        /* the store is unavailable for now; try again */
	WPT_E_UNREADABLE = 5020,   /* the page was not readable when the snapshot was taken */
	WPT_E_PRUNED = 5021        /* the link is older than the chain's oldest: it was pruned or merged away */
};

/* The version of the library that is running, "MAJOR.MINOR.PATCH". Never fails. Threads: any. */
WPT_API const char *wpt_version(void);

/*
 * A text for a negative return value (or its positive form), one line, no full stop, in English; it says what to do
 * next where there is something to do. Never NULL. Threads: any. The text is static.
 */
WPT_API const char *wpt_strerror(int err);

enum wpt_log_level { WPT_LOG_ERROR = 0, WPT_LOG_WARNING = 1, WPT_LOG_INFO = 2, WPT_LOG_DEBUG = 3 };

/* ---- probe ---------------------------------------------------------------------------------------------------- */

/* What was found to work, by trying it on scratch memory; never derived from a version number. */
enum wpt_feature {
	WPT_F_UFFD = 1u << 0,              /* this user may create a userfaultfd */
	WPT_F_UFFD_KERNEL = 1u << 1,       /* one that also handles faults of system calls (needs privilege) */
	WPT_F_WP_ASYNC = 1u << 2,          /* write protection resolved by the kernel */
	WPT_F_WP_UNPOPULATED = 1u << 3,
	WPT_F_PAGEMAP_SCAN = 1u << 4,
	WPT_F_WP_SHMEM = 1u << 5,          /* memfd, tmpfs */
	WPT_F_WP_HUGETLB = 1u << 6,        /* tried only where a huge page is free, else reported as absent */
	WPT_F_WP_FILE = 1u << 7,           /* ordinary files, private and shared */
	WPT_F_WP_THP = 1u << 8,
	WPT_F_GUARD = 1u << 9,             /* guard pages are reported as such */
	WPT_F_WP_WRITTEN = 1u << 10,       /* the marker patch of kernel/ is in this kernel, and does what it promises; trackers use it */
	WPT_F_ZAP_REPORTED = 1u << 11,     /* a range zapped as a whole is reported as written */
	WPT_F_PTRACE = 1u << 12,           /* own children can be attached to (no policy forbids it) */
	WPT_F_SUSPEND_SECCOMP = 1u << 13,  /* targets with a seccomp filter can be attached to */
	WPT_F_MAP_FILES = 1u << 14,        /* files of mappings can be opened through /proc/PID/map_files */
	WPT_F_ASYNC = 1u << 15,            /* all that backend `async` needs */
	WPT_F_SYNC = 1u << 16              /* all that backend `sync` needs, for memory of this user's own processes */
};

struct wpt_probe {
	size_t size;
	uint32_t features;        /* out: enum wpt_feature */
	uint32_t page_size;       /* out: bytes */
	uint64_t hugepage_size;   /* out: default hugetlb page, bytes, 0 if none */
	char kernel[64];          /* out: for display only */
};

/*
 * What this kernel and this user can track. p->size is set by the caller. Cost: about a millisecond.
 * Errors: -EINVAL (size), -ENOMEM, -EMFILE. A missing feature is not an error. Threads: any. Since 0.1.
 */
WPT_API int wpt_probe(struct wpt_probe *p);

/* The name of one feature bit, "wp_async"; NULL if the bit is unknown. */
WPT_API const char *wpt_feature_name(uint32_t bit);

/* ---- tracker -------------------------------------------------------------------------------------------------- */

struct wpt_tracker;

enum wpt_backend {
	WPT_BACKEND_AUTO = 0,     /* the best that the probe finds: ASYNC, else SYNC */
	WPT_BACKEND_ASYNC = 1,    /* asynchronous userfaultfd write protection and PAGEMAP_SCAN */
	WPT_BACKEND_REPORTED = 2, /* the owner of the memory calls wpt_range_mark() for what it writes; no faults */
	/*
	 * Synchronous write protection: threads of this process resolve each first write to a page. For kernels without WPT_F_ASYNC (Linux 5.13 to
	 * 6.6) and for WPT_MODE_COW. Needs a userfaultfd that handles faults of system calls too (WPT_F_UFFD_KERNEL; attached: for the
	 * target's user). Mappings of ordinary files are compared by content. While this process is stopped by a signal, the target's writes wait.
	 */
	WPT_BACKEND_SYNC = 3
};

enum wpt_track_flags {
	WPT_TRACK_ASSUME_SOLE_WRITER = 1u << 0, /* trust that no other process writes to shared files that are tracked */
	WPT_TRACK_VERIFY_CONTENT = 1u << 1      /* compare every file mapping by content at every link */
};

struct wpt_tracker_options {
	size_t size;
	uint32_t backend;          /* enum wpt_backend */
	uint32_t flags;            /* enum wpt_track_flags */
	uint32_t stop_timeout_ms;  /* for stopping the target's threads, 0: 100 */
	uint32_t nr_fault_threads; /* backend SYNC: threads that resolve faults, at most 64; 0: 2 */
	/* Called on the thread that called the library, never while the target is stopped. May be NULL. */
	void (*log)(void *arg, enum wpt_log_level level, const char *message);
	void *log_arg;
	/*
	 * Threads that look at the memory of another process while it is stopped, where a mapping has 256 MiB and more: at most 64; 0: one for each
	 * processor, at most 8; 1: only the caller's.
	 */
	uint32_t nr_scan_threads;
	uint32_t reserved;         /* 0 */
};

/*
 * A tracker over the own process. `o` may be NULL. Errors: -EINVAL, -ENOMEM, -EPERM (no userfaultfd for this user),
 * WPT_E_UNSUPPORTED. Threads: any; the tracker's own functions that say "any thread" may then be called by all. Since 0.1.
 */
WPT_API int wpt_tracker_open(struct wpt_tracker **out, const struct wpt_tracker_options *o);

/*
 * A tracker over another process, which need not be prepared. Its threads are stopped for about 0.1 ms, one of them
 * makes one system call (userfaultfd) on our behalf. The caller needs the right to ptrace it (same user and dumpable, or
 * CAP_SYS_PTRACE). When the tracker is closed, or its process dies, the kernel drops the tracking; the target runs on.
 * Errors: -ESRCH (no such process), -EPERM, WPT_E_UNSUPPORTED, WPT_E_SECCOMP, WPT_E_STOP_TIMEOUT, WPT_E_ARCH,
 * WPT_E_TRACED, WPT_E_GONE. Since 0.1.
 */
WPT_API int wpt_tracker_attach(struct wpt_tracker **out, pid_t pid, const struct wpt_tracker_options *o);

/* Ends tracking and frees. Accepts NULL. Close writers first. Never fails. */
WPT_API void wpt_tracker_close(struct wpt_tracker *t);

struct wpt_tracker_info {
	size_t size;
	pid_t pid;
	uint32_t backend;           /* the one in use */
	uint64_t start_time;        /* of the process, clock ticks after boot, as in /proc/PID/stat */
	uint64_t nr_ranges;         /* being tracked now */
	uint64_t nr_skipped;        /* mappings that can't be tracked */
	uint64_t bytes_tracked;
	uint64_t memory_bytes;      /* this object's own bookkeeping */
};

/* Errors: -EINVAL. Threads: any. Since 0.1. */
WPT_API int wpt_tracker_info(struct wpt_tracker *t, struct wpt_tracker_info *info);

/* ---- ranges --------------------------------------------------------------------------------------------------- */

enum wpt_kind {
	WPT_KIND_ANON = 1,
	WPT_KIND_SHMEM = 2,           /* shared memfd, tmpfs, shared anonymous */
	WPT_KIND_FILE_SHARED = 3,
	WPT_KIND_FILE_PRIVATE = 4,    /* private mapping of any file, memfd included */
	WPT_KIND_HUGETLB_PRIVATE = 5,
	WPT_KIND_HUGETLB_SHARED = 6,
	WPT_KIND_REPORTED = 7
};

/* Why a mapping is not tracked, or how its changes are found. */
enum wpt_range_reason {
	WPT_REASON_NONE = 0,
	WPT_REASON_BUSY = 1,          /* skipped: another userfaultfd has it */
	WPT_REASON_DEVICE = 2,        /* skipped: memory of a device (VM_IO, VM_PFNMAP) */
	WPT_REASON_SPECIAL = 3,       /* skipped: [vvar], [vsyscall] and the like */
	WPT_REASON_UNSUPPORTED = 4,   /* skipped: the kernel can't write-protect this kind */
	WPT_REASON_OTHER_WRITER = 5,  /* compared by content: another process may write to the file */
	WPT_REASON_UNINSPECTABLE = 6, /* compared by content: who else maps the file can't be found out */
	WPT_REASON_PINNED = 7,        /* compared by content: io_uring fixed buffers, RDMA, VFIO */
	WPT_REASON_VERIFY = 8,        /* compared by content: WPT_TRACK_VERIFY_CONTENT */
	WPT_REASON_UNTRACKED = 9      /* compared by content: backend SYNC does not track it (mappings of ordinary files, hugetlb) */
};

/* A range to track. */
struct wpt_range {
	size_t size;
	uint64_t start;    /* page-aligned */
	uint64_t end;      /* page-aligned, exclusive */
	const char *name;  /* kept in snapshots so that a restore can name it; NULL: the mapping's own name */
};

/*
 * Track [start, end). The range may cover several mappings and holes between them; mappings that appear in it later
 * are found at the next link. Nothing is protected until wpt_tracker_arm() or the first link.
 * Returns a range id > 0. Errors: -EINVAL (alignment, size, empty), -EEXIST (overlaps another range), -ENOMEM,
 * WPT_E_FORKED. Threads: any, also while another thread scans. Since 0.1.
 */
WPT_API int wpt_range_add(struct wpt_tracker *t, const struct wpt_range *r);

/*
 * Track every writable private or shared mapping of the target: those of now, and at each link those that are new.
 * Only for attached trackers (-EINVAL otherwise: a process can't snapshot the stack it is standing on). Once added, a
 * mapping stays tracked when it becomes read-only. Errors: -EINVAL, -EEXIST (ranges were added), WPT_E_GONE. Since 0.1.
 */
WPT_API int wpt_range_add_all(struct wpt_tracker *t);

/* Stop tracking a range by id. Errors: WPT_E_NOT_TRACKED, WPT_E_FORKED. Threads: any, also while another scans. */
WPT_API int wpt_range_remove(struct wpt_tracker *t, int id);

/* One piece of a tracked range, as it is mapped now: one kind, one reason. */
struct wpt_range_info {
	size_t size;
	uint64_t start, end;
	uint32_t kind;         /* enum wpt_kind */
	uint32_t reason;       /* enum wpt_range_reason */
	uint32_t skipped;      /* 1: not in the snapshot at all */
	int32_t id;            /* of the range it belongs to; 0 for wpt_range_add_all() */
	const char *name;      /* valid until the callback returns; "" if it has none */
};

/*
 * Call `each` for every piece, in order of address, skipped ones included, as of the last look (the last link or arm, else
 * now). A non-zero return of `each` ends the walk and is returned; it must not call functions of the tracker. Threads: any. Since 0.1.
 */
WPT_API int wpt_range_list(struct wpt_tracker *t, int (*each)(void *arg, const struct wpt_range_info *info), void *arg);

/*
 * Backend REPORTED: say that [start, end) was written, after the write and before the next link. Errors: WPT_E_NOT_TRACKED,
 * -EINVAL (other backend), WPT_E_FORKED. Threads: any. Cost: tens of nanoseconds a page. Since 0.1.
 */
WPT_API int wpt_range_mark(struct wpt_tracker *t, uint64_t start, uint64_t end);

/*
 * Write-protect everything in the ranges, so that wpt_tracker_scan() reports what is written from here on. Arming again is
 * not needed: a scan with WPT_SCAN_REARM does both at once, which is the only way that loses nothing. Cost: 17 ms per GiB of memory that is
 * there; for shared memory and files also page tables for all of the range (1/512), with WPT_F_WP_WRITTEN only for data of a memfd or of
 * shared anonymous memory that the target has not mapped.
 * Errors: WPT_E_GONE, WPT_E_UNSUPPORTED, WPT_E_FORKED, -ENOMEM. Since 0.1.
 */
WPT_API int wpt_tracker_arm(struct wpt_tracker *t);

enum wpt_scan_flags {
	WPT_SCAN_REARM = 1u << 0   /* atomically protect again each page that is reported as dirty */
};

enum wpt_pages {
	WPT_PAGES_CLEAN = 0,       /* not written since it was protected */
	WPT_PAGES_DIRTY = 1,       /* written */
	/*
	 * Private memory where nothing is: the page reads as zeros. A state, reported at every scan; with WPT_F_WP_WRITTEN not reported at
	 * all, since there a page that was given back is DIRTY, once, and one that was never touched is CLEAN.
	 */
	WPT_PAGES_ZERO = 2,
	WPT_PAGES_UNKNOWN = 3      /* not protected, or its protection was lost: treat as dirty */
};

struct wpt_run {
	uint64_t start, end;       /* bytes, page-aligned, half-open */
	uint32_t state;            /* enum wpt_pages */
	uint32_t kind;             /* enum wpt_kind */
};

/*
 * Report the state of all pages of [start, end) that are tracked, as runs in order of address; runs of the same state are
 * merged within a mapping; clean pages are left out. A non-zero return of `each` ends the scan and is returned; with
 * WPT_SCAN_REARM pages that were re-protected but not yet reported are then reported by the next scan. `each` must not remove ranges.
 * start = 0, end = UINT64_MAX: everything. Errors: WPT_E_GONE, WPT_E_FORKED, -ENOMEM.
 * Threads: any number of read-only scans at once, ranges may be added and removed meanwhile; REARM one at a time, and not
 * while a writer is open on the tracker (-EBUSY). Cost: 0.5 ms per GiB of clean memory. Since 0.1.
 */
WPT_API int wpt_tracker_scan(struct wpt_tracker *t, uint64_t start, uint64_t end, uint32_t flags,
			     int (*each)(void *arg, const struct wpt_run *run), void *arg);

/*
 * Copy `len` bytes at `addr` of the target into `buf`. Returns the number of bytes, short at the first unreadable page.
 * Errors: WPT_E_GONE, -EFAULT (the first byte is unreadable), WPT_E_FORKED. Threads: any. Since 0.1.
 */
WPT_API ssize_t wpt_tracker_read(struct wpt_tracker *t, uint64_t addr, void *buf, size_t len);

/* ---- writer: links of a chain ----------------------------------------------------------------------------------- */

struct wpt_writer;

enum wpt_writer_flags {
	WPT_WRITER_NEW = 1u << 0,       /* start a new chain in a folder that holds another target's chain (which stays) */
	WPT_WRITER_NO_SYNC = 1u << 1,   /* do not fsync links; for tests and for stores that are thrown away */
	WPT_WRITER_CMDLINE = 1u << 2,   /* store the target's command line */
	/*
	 * Give the target its huge pages back. A write of 4 KiB to a transparent huge page that is protected splits it, and the kernel does
	 * not collapse protected memory by itself. With this flag private anonymous memory that was mapped by huge pages while it was
	 * tracked, and is not any more, is collapsed again after a link, while the target runs: only where every page is there, in memory,
	 * and the target's alone, so that it takes no more memory; at most half of staging_bytes (and 1 GiB, 0.2 s) a link, the rest after
	 * the next ones. All of what was collapsed is looked at by the next link, which stores of it what changed. Shared memory can't be
	 * collapsed while it is tracked. For another process CAP_SYS_NICE is needed; without that, or where the kernel can't, the log says
	 * so once, and links are taken without.
	 */
	WPT_WRITER_COLLAPSE = 1u << 3
};

enum wpt_dest {
	WPT_DEST_FOLDER = 0,  /* one file a link, named %010u-ID.wps; created 0700 if missing */
	WPT_DEST_FILE = 1,    /* exactly one link, in a new file; -EEXIST if it exists */
	WPT_DEST_APPEND = 2,  /* one file of concatenated links; created if missing, a torn tail is cut off */
	WPT_DEST_FD = 3       /* links are written to .fd one after the other, a pipe will do; `path` is NULL */
};

/*
 * A level that follows the sink: it begins at 1, goes up to at most 9 while compressed data waits for the sink, and down again while
 * the sink waits for it. It is kept from link to link, and needs one thread more. What the page cache takes at once is no slow sink.
 */
#define WPT_LEVEL_ADAPTIVE 1000

/*
 * Pages that are written between nearly all links. AUTO leaves those that were dirty in two links of three and more unprotected: the target's
 * writes to them cost nothing, and each link copies them, written or not. One in 64 of them is protected in turn, to see whether it is still hot.
 */
enum wpt_hot_set {
	WPT_HOT_SET_OFF = 0,
	WPT_HOT_SET_AUTO = 1
};

struct wpt_writer_options {
	size_t size;
	uint32_t dest;             /* enum wpt_dest */
	uint32_t flags;            /* enum wpt_writer_flags */
	int fd;                    /* for WPT_DEST_FD; stays the caller's */
	int level;                 /* zstd level, -100 to 19, or WPT_LEVEL_ADAPTIVE; 0: 1 */
	uint32_t nr_threads;       /* that compress, 0: one per CPU, at most 8 */
	uint32_t hot_set;          /* enum wpt_hot_set; without effect on backend REPORTED */
	/*
	 * Bound on copied pages not yet written, 0: 256 MiB; at least 4 MiB. While what is written between two links fits in here, the pause
	 * does not depend on how fast links can be written; beyond it the target stands still for longer, or see WPT_TAKE_REFUSE.
	 */
	uint64_t staging_bytes;
	const char *parent;        /* CHAIN to continue, for WPT_DEST_FILE: what differs from it is stored; NULL: none */
};

/*
 * A writer of links about what `t` tracks. One writer per tracker and per chain (WPT_E_LOCKED). A chain that exists is
 * continued if it is of the same target (same boot, pid and start time): its next link compares contents by hash;
 * otherwise WPT_E_MISMATCH. `o` may be NULL. Errors: -EINVAL, -ENOMEM, -errno of the file system, WPT_E_LOCKED, WPT_E_MISMATCH,
 * WPT_E_DAMAGED, WPT_E_CHAIN, WPT_E_FORKED. Since 0.1.
 */
WPT_API int wpt_writer_open(struct wpt_writer **out, struct wpt_tracker *t, const char *path,
			    const struct wpt_writer_options *o);

/* Releases the chain's lock and frees. What was not durable is gone. Accepts NULL. */
WPT_API void wpt_writer_close(struct wpt_writer *w);

enum wpt_mode {
	WPT_MODE_PAUSE = 0, /* the target is stopped while its dirty pages are found and copied: one instant of all memory */
	WPT_MODE_FUZZY = 1, /* no pause: each page is one instant, pages differ in theirs */
	/*
	 * Copy before write: the target is stopped while its dirty pages are found, and each is copied after that, before its first write
	 * goes through. One instant of all memory, that of the pause. Only with a tracker of backend SYNC (-EINVAL). What can't be
	 * protected (mappings of ordinary files, files that are mapped twice or may be written to by others) is copied during the pause.
	 * Where the target gives memory back before it was copied, the link is completed by a pause as in mode PAUSE, and shows that
	 * later instant.
	 */
	WPT_MODE_COW = 2
};

enum wpt_take_flags {
	WPT_TAKE_REFUSE = 1u << 0,   /* beyond the staging memory: WPT_E_STAGING instead of a longer pause */
	WPT_TAKE_REGISTERS = 1u << 1 /* store the registers of the target's threads (attached, mode pause) */
};

/*
 * A section of the caller's own to go into the link. `data` and `len` are read when the target runs again, so that they may be set by the
 * callbacks of wpt_take_options; what they point to must stay until wpt_writer_take() returns.
 */
struct wpt_section {
	uint32_t type;     /* enum wpt_section_type, or from WPT_SECTION_USER up */
	uint32_t reserved;
	const void *data;
	size_t len;        /* at most 1 GiB */
};

enum wpt_section_type {
	WPT_SECTION_MAPPINGS = 1,   /* text, as /proc/PID/maps */
	WPT_SECTION_REGISTERS = 2,
	WPT_SECTION_DEVICE = 3,     /* device state of a VM */
	WPT_SECTION_CMDLINE = 4,    /* as /proc/PID/cmdline */
	WPT_SECTION_TAGS = 5,       /* KEY=VALUE, each ended by a NUL */
	WPT_SECTION_NOTES = 6,      /* what was skipped and why, what was compared: text lines */
	WPT_SECTION_USER = 0x10000
};

struct wpt_take_options {
	size_t size;
	uint32_t mode;      /* enum wpt_mode */
	uint32_t flags;     /* enum wpt_take_flags */
	uint32_t retries;   /* fuzzy: copies of a page that keeps changing before it is flagged, 0: 3 */
	uint32_t nr_sections;
	const struct wpt_section *sections;
	/*
	 * Modes PAUSE and COW, own process: stop and resume every thread that writes to the ranges; required. Between the two the library
	 * calls no allocator, no stdio and no other callback but `paused`. quiesce returns 0 or a negative error, which ends the take.
	 *
	 * Mode PAUSE, another process: NULL, and its threads are stopped; or, where there is a better way to keep it from writing to the
	 * ranges, that: what is mapped there must neither change nor be written to between the two, whatever else the process does
	 * meanwhile (a virtual machine is paused while its monitor goes on to answer), also by I/O that was begun before. Both or neither,
	 * and not with WPT_TAKE_REGISTERS (-EINVAL).
	 */
	int (*quiesce)(void *arg);
	void (*resume)(void *arg);
	/*
	 * Called while the target is stopped and everything is copied (mode COW: is protected, or copied; a second time where a pause
	 * completes the link): a non-zero return fails the link. For an attached target it may do anything but touch the target's
	 * threads, if those were stopped; for the own process, only what is safe with all others stopped.
	 */
	int (*paused)(void *arg);
	void *arg;
	/*
	 * Mode PAUSE: before the target is stopped, what was written is copied while it runs, in rounds, each of what was written during the one
	 * before, until copying the rest would take half of target_pause_us, or a round would not help, or these were max_rounds.
	 */
	uint32_t max_rounds;        /* 0: 16; WPT_NO_ROUNDS: none, stop at once */
	uint32_t target_pause_us;   /* 0: 1000 */
};

#define WPT_NO_ROUNDS UINT32_MAX

/* Why no further round was made before the target was stopped. */
enum wpt_rounds_end {
	WPT_ROUNDS_NONE = 0,     /* there were none */
	WPT_ROUNDS_SMALL = 1,    /* what was left is small enough */
	WPT_ROUNDS_STALLED = 2,  /* rounds found about as much as one before them: pages are written as fast as they are copied */
	WPT_ROUNDS_LIMIT = 3,    /* max_rounds */
	WPT_ROUNDS_STAGING = 4,  /* what was written is more than the staging memory holds, and as much is written while that is compressed */
	WPT_ROUNDS_DIRECT = 5    /* the target does direct I/O, which what is copied while it runs can't be relied on with: see libwptrack(7) */
};

struct wpt_take_stats {
	size_t size;
	uint64_t sequence;          /* of the link */
	char id[33];                /* of the link, 32 hex digits */
	char file[223];             /* its name in the folder, "" if there is none */
	uint64_t pages_tracked;
	uint64_t pages_dirty;       /* reported as written since the last link, or unknown */
	uint64_t pages_compared;    /* by content, because tracking could not be relied on */
	uint64_t pages_stored;      /* as data */
	uint64_t pages_zero;        /* became zero */
	uint64_t pages_unchanged;   /* were dirty and hold what they held */
	uint64_t pages_duplicate;   /* stored as a reference to another page of the link */
	uint64_t pages_unreadable;
	uint64_t pages_torn;        /* fuzzy: changed during every attempt to copy them */
	uint64_t bytes_stored;      /* the link's size */
	uint64_t pause_ns;          /* the target stood still for so long */
	uint64_t total_ns;
	uint64_t nr_skipped;        /* mappings skipped */
	uint64_t staging_waits;     /* times that the copy waited for staging memory */
	uint64_t swapped_in;        /* pages read back from swap */
	uint64_t pages_paused;      /* copied or compared while the target stood still */
	uint32_t nr_rounds;         /* before that */
	uint32_t rounds_end;        /* enum wpt_rounds_end */
	int64_t level;              /* zstd level of the last page data that was compressed */
	uint64_t pages_cow_faults;  /* cow: copied because they were about to be written */
	uint64_t pages_cow_copied;  /* cow: copied in the background */
	uint64_t cow_waits;         /* cow: writes that waited for staging memory */
	uint64_t cow_fallback;      /* cow: 1: completed by a pause, because the target gave memory back before it was copied */
	uint64_t pages_hot;         /* left unprotected after this link, see wpt_writer_options.hot_set */
	uint64_t pages_collapsed;   /* with WPT_WRITER_COLLAPSE: pages of 4 KiB that became huge pages again after they were copied */
};

/*
 * Write one link: the base if the chain is empty, else what changed since the last durable link. When it returns 0 the link
 * is complete and durable. When it fails nothing is lost: the file is removed, all that was dirty stays dirty, the next link is complete.
 * Only a stream (WPT_DEST_FD) that failed when something of the link was written, and a file (WPT_DEST_APPEND) whose fsync or last write
 * failed, are not continued: every later take returns the same error, and a writer to another place begins with a base.
 * `o` and `stats` may be NULL. Errors: -errno of the store (-ENOSPC, -EIO, -EDQUOT, ...), WPT_E_GONE, WPT_E_STOP_TIMEOUT, WPT_E_STAGING,
 * WPT_E_SHARED_VM, WPT_E_TRACED, WPT_E_FORKED, -ENOMEM, -EINVAL, -ENODATA (there is nothing to track). Threads: one per writer. Since 0.1.
 */
WPT_API int wpt_writer_take(struct wpt_writer *w, const struct wpt_take_options *o, struct wpt_take_stats *stats);

/* ---- chain: reading --------------------------------------------------------------------------------------------- */

struct wpt_chain;

/*
 * Open a chain for reading. `chain` is a .wps file, a file of concatenated links or a folder, and optionally a suffix that says which
 * link is its end: @N (sequence number), @-1 (the last), @-2 ..., @id:PREFIX. A literal path that exists wins over a suffix. The
 * parents of a link in a folder, or of a .wps file in its folder, are found by their ids. A torn tail of a concatenation is ignored.
 * A folder may be written to and pruned meanwhile. Once open, a chain reads what it read, also when its files are gone from the folder, but
 * for those that it had to close, of more links than a quarter of the descriptors (at most 256): those are WPT_E_CHAIN then.
 * Errors: -ENOENT, -errno, WPT_E_NOT_SNAPSHOT, WPT_E_DAMAGED, WPT_E_TRUNCATED, WPT_E_FEATURE, WPT_E_CHAIN, WPT_E_AMBIGUOUS, WPT_E_PRUNED.
 * Threads: wpt_chain_read() may be called by many threads at once on one chain; the rest by one. Since 0.1.
 */
WPT_API int wpt_chain_open(struct wpt_chain **out, const char *chain);

/* As wpt_chain_open(), of one file of concatenated links that lies in memory; `data` must stay until the chain is closed. */
WPT_API int wpt_chain_open_memory(struct wpt_chain **out, const void *data, size_t len);

WPT_API void wpt_chain_close(struct wpt_chain *c);

/*
 * Threads that restores of this chain may use, and merges that do not say; 0: one per CPU, at most 8, which holds until this is called. They
 * live for one call, with all signals blocked, and are only started for more than 8 MiB of data. wpt_chain_read() never starts any.
 * Errors: -EINVAL (more than 256). Since 0.1.
 */
WPT_API int wpt_chain_set_threads(struct wpt_chain *c, uint32_t nr_threads);

struct wpt_chain_info {
	size_t size;
	char chain_id[33];
	uint32_t page_size;
	uint32_t nr_links;
	uint32_t nr_ranges;         /* at the last link */
	uint32_t reserved;
	uint64_t bytes_tracked;     /* at the last link */
	uint64_t bytes_stored;      /* all links */
	int64_t pid;
	uint64_t start_time;
	char boot_id[37];
	char comm[64];              /* the target's name */
};

WPT_API int wpt_chain_info(struct wpt_chain *c, struct wpt_chain_info *info);

struct wpt_link_info {
	size_t size;
	uint64_t sequence;
	char id[33];
	char file[223];             /* base name, "" in memory */
	uint32_t full;              /* 1: does not need a parent */
	uint32_t mode;              /* enum wpt_mode */
	uint64_t offset, length;    /* bytes in the file */
	uint64_t time_ns;           /* CLOCK_REALTIME of the instant it shows */
	uint64_t pause_ns;
	uint64_t pages_data, pages_zero, pages_duplicate, pages_unreadable, pages_torn;
};

/* Link number `index` of the chain, 0 the oldest. Errors: -ERANGE. */
WPT_API int wpt_chain_link(struct wpt_chain *c, uint32_t index, struct wpt_link_info *info);

/* Range number `index` at the last link, in order of address. info->name stays until the chain is closed. Errors: -ERANGE. */
WPT_API int wpt_chain_range(struct wpt_chain *c, uint32_t index, struct wpt_range_info *info);

/*
 * A range by SPEC: "START-END" in hex as in /proc/PID/maps, or a mapping's name, or its base name. Pieces of one name that touch
 * are one range. Errors: WPT_E_NOT_TRACKED, WPT_E_AMBIGUOUS, -EINVAL.
 */
WPT_API int wpt_chain_find(struct wpt_chain *c, const char *spec, struct wpt_range_info *info);

/*
 * Read memory as it was at the last link. Every page is checked against its hash. Bytes outside the ranges read as zeros. Returns 0, or
 * WPT_E_DAMAGED, WPT_E_UNREADABLE (a page that could not be read when the link was taken; the rest of buf is filled),
 * -errno. Threads: many. Since 0.1.
 */
WPT_API int wpt_chain_read(struct wpt_chain *c, uint64_t addr, void *buf, size_t len);

/*
 * Contents of section `type` of the last link that has it into *data (free() it); of REGISTERS and DEVICE, which belong to the memory of one
 * instant, of the last link only. Errors: -ENOENT, WPT_E_DAMAGED, -ENOMEM.
 */
WPT_API int wpt_chain_section(struct wpt_chain *c, uint32_t type, void **data, size_t *len);

/* Progress of a long operation: bytes done of all. A non-zero return cancels with -ECANCELED. */
typedef int wpt_progress(void *arg, uint64_t done, uint64_t total);

/* Check every byte of every link: structure, checksums, page hashes, parents. Errors: as open, WPT_E_DAMAGED. `progress` may be NULL. */
WPT_API int wpt_chain_verify(struct wpt_chain *c, wpt_progress *progress, void *arg);

struct wpt_merge_options {
	size_t size;
	int level;              /* as in wpt_writer_options */
	uint32_t nr_threads;
	wpt_progress *progress;
	void *arg;
};

/*
 * Write the chain as one full link to a new file `path` ("-": standard output). It has the identity of the chain's last link, so that
 * links made after that one continue it. Errors: -EEXIST, -errno, WPT_E_DAMAGED. Since 0.1.
 */
WPT_API int wpt_chain_merge(struct wpt_chain *c, const char *path, const struct wpt_merge_options *o);

enum wpt_prune_flags {
	WPT_PRUNE_DRY_RUN = 1u << 0, /* only say what would be done; the chain is not locked */
	/*
	 * Only when it pays: when there are `keep` links too many, or 8 if that is more, or when the increments that would be merged are half as
	 * large as what they would be merged into. Until then nothing is done, which is no error.
	 */
	WPT_PRUNE_LAZY = 1u << 1
};

/* What becomes of a link. */
enum wpt_prune_action {
	WPT_PRUNE_KEEP = 1,    /* it stays as it is */
	WPT_PRUNE_MERGE = 2,   /* the oldest that is kept: it becomes full */
	WPT_PRUNE_REMOVE = 3,
	WPT_PRUNE_NEEDED = 4,  /* it is too old and stays, because a link of another branch builds on it */
	WPT_PRUNE_FOREIGN = 5  /* it is too old and stays, because its file has another name than that of a link in a folder */
};

struct wpt_prune_link {
	size_t size;
	uint64_t sequence;
	char id[33];
	char file[223];
	uint32_t action;       /* enum wpt_prune_action */
	uint64_t length;       /* bytes */
};

struct wpt_prune_options {
	size_t size;
	uint32_t keep;         /* links, at least 1 */
	uint32_t flags;        /* enum wpt_prune_flags */
	int level;             /* of the full link, as in wpt_writer_options */
	uint32_t nr_threads;   /* that merge; 0: one per CPU, at most 8 */
	wpt_progress *progress;
	/*
	 * Called once for every link of the chain before anything is done, the oldest first; of those that are too old for each file that has it.
	 * Non-zero ends it, and is returned.
	 */
	int (*each)(void *arg, const struct wpt_prune_link *link);
	void *arg;             /* of both */
};

struct wpt_prune_stats {
	size_t size;
	uint64_t sequence;      /* of the oldest link that is kept */
	uint64_t nr_kept;       /* links that can be restored after it, those that branches need left out */
	uint64_t nr_removed;    /* files; with WPT_PRUNE_DRY_RUN those that would be */
	uint64_t nr_needed;     /* NEEDED and FOREIGN */
	uint64_t nr_merged;     /* links that became the full one; 0: it was full already, or nothing was done */
	uint64_t bytes_removed; /* files that were removed, and the one that was replaced */
	uint64_t bytes_written; /* the full link */
	uint64_t total_ns;
};

/*
 * Keep the last `keep` links of a chain in a folder, up to the end that `chain` names, and what was made after it: the oldest of them becomes
 * a full link (see wpt_chain_merge()) in the place of its file, and those before it are removed. Sequence numbers and ids stay what they are. What
 * another link in the folder needs is not removed, nor are links of other chains and branches. The full link is checked against the chain
 * before anything is replaced; whenever this process or the machine dies, all links that are kept can be restored as they could before, and the next
 * call removes what is left over. The full link gets the owner, the group and the mode of the file that it replaces; if that can't be, nothing is
 * done (-EPERM). It needs room for the full link beside all others. A file of links can't be pruned: merge it to another.
 * Returns 0, also if there was nothing to do. Errors: -ENOTDIR (not a folder), -EINVAL, WPT_E_LOCKED (a writer has it open, see
 * wpt_writer_prune()), -ENOSPC and other -errno, WPT_E_DAMAGED and what else wpt_chain_open() gives, -ECANCELED; before the first link was removed
 * nothing is changed then. `stats` may be NULL. Cost: reads the links up to the oldest that is kept, writes that as a full one and reads it
 * once more. Threads: any; not in a process that is quiesced. Since 0.1.
 */
WPT_API int wpt_chain_prune(const char *chain, const struct wpt_prune_options *o, struct wpt_prune_stats *stats);

/*
 * As wpt_chain_prune(), of the chain in a folder that `w` writes, between two links. Errors: as there, but WPT_E_LOCKED; -EINVAL: `w` does not
 * write to a folder; -ENOENT: there is no link yet; WPT_E_FORKED. What it writes is durable before anything is
 * removed, with WPT_WRITER_NO_SYNC, too. The folder may have been moved since it was opened. Threads: one per writer. Since 0.1.
 */
WPT_API int wpt_writer_prune(struct wpt_writer *w, const struct wpt_prune_options *o, struct wpt_prune_stats *stats);

/*
 * Restore [start, end) into a new file `path` ("-": standard output) of exactly end - start bytes, sparse where zero. Unreadable
 * pages become zeros and are counted in *nr_unreadable (may be NULL). Errors: -EEXIST, -errno, WPT_E_DAMAGED; the file is removed then.
 */
WPT_API int wpt_chain_restore_file(struct wpt_chain *c, uint64_t start, uint64_t end, const char *path,
				   uint64_t *nr_unreadable, wpt_progress *progress, void *arg);

/*
 * Restore [start, end) into `fd` from `offset` on, where all must read as zeros before: only pages that are not zero are written, by pwrite(2),
 * so that what is sparse stays so. `fd` is open for writing: a regular file, a memfd, or a /proc/PID/mem (`offset` is an address there, and all
 * that is not zero must be mapped). Its position stays; it is neither truncated, nor extended where the end is zero, nor synced. Unreadable
 * pages stay zeros and are counted in *nr_unreadable (may be NULL). After an error or a cancel some of the pages are written.
 * Errors: -EINVAL (end before start; fd has O_APPEND), -EBADF (also of a fd that is not open for writing), -EFBIG (it would end behind INT64_MAX),
 * -errno of pwrite (of a file of hugetlbfs -EINVAL: it has to be mapped and written as memory), WPT_E_DAMAGED, -ECANCELED, -ENOMEM.
 * Threads: writes to fd from several at once, see wpt_chain_set_threads(), and from none after it returned. Since 0.1.
 */
WPT_API int wpt_chain_restore_fd(struct wpt_chain *c, uint64_t start, uint64_t end, int fd, uint64_t offset,
				 uint64_t *nr_unreadable, wpt_progress *progress, void *arg);

/* Restore [start, end) to `buf` in the caller's memory. Pages that hold the right bytes already are not written to. */
WPT_API int wpt_chain_restore_memory(struct wpt_chain *c, uint64_t start, uint64_t end, void *buf, uint64_t *nr_unreadable);

/* Restore every range to a raw image in the new folder `path`, named START-END[-NAME].raw, with an index `ranges.txt`. */
WPT_API int wpt_chain_restore_folder(struct wpt_chain *c, const char *path, uint64_t *nr_unreadable,
				     wpt_progress *progress, void *arg);

/*
 * Compare two chains' last links page by page: `each` is called for runs that differ or are tracked in one only. Returns 1 if there was a
 * difference, 0 if none, a non-zero return of `each`, or an error.
 */
WPT_API int wpt_chain_diff(struct wpt_chain *a, struct wpt_chain *b,
			   int (*each)(void *arg, uint64_t start, uint64_t end, uint32_t tracked_in), void *arg);

/* ---- chain: lazy restore ---------------------------------------------------------------------------------------- */

struct wpt_lazy;

enum wpt_lazy_flags {
	WPT_LAZY_COLLAPSE = 1u << 0 /* put transparent huge pages where 2 MiB are complete; where that is not to be had nothing is said */
};

struct wpt_lazy_options {
	size_t size;
	pid_t pid;                 /* whose memory it is, 0: the own */
	uint32_t flags;            /* enum wpt_lazy_flags */
	uint32_t nr_threads;       /* that serve what is touched, at most 64; 0: 2 */
	uint32_t nr_fill_threads;  /* for the rest, at most 64; 0: one for each processor, at most 8 */
	uint32_t stop_timeout_ms;  /* as in struct wpt_tracker_options */
	/* Called on threads of the library, also while the target waits for memory. May be NULL. */
	void (*log)(void *arg, enum wpt_log_level level, const char *message);
	void *log_arg;
};

/*
 * Restore memory while it is in use: what is touched comes from the chain at that moment, and the thread that touched it waits until it is there;
 * the rest comes in the background. By userfaultfd, faults on missing pages. The order is: open, add the ranges, empty them where something was
 * there, start, let the target run, fill, wait, close.
 *
 * Another process gets a userfaultfd as by wpt_tracker_attach(), of which it keeps a copy: if this process ends before all is there, whoever touches
 * what is missing waits for ever and never sees zeros; it is best killed. Faults of system calls are served too, for which the target's user
 * needs WPT_F_UFFD_KERNEL.
 *
 * Until all is there: the target may give memory back by madvise(2), and then finds zeros. A hole that is punched by a descriptor's fallocate(2)
 * where the memory has not come yet does not count: it comes all the same. Nobody may write to the file of a shared range or use it through another
 * mapping, in this or another process, and no child be forked that uses a range: they would see zeros, and leave them there. Ranges must not be
 * moved (mremap(2)). A tracker finds the ranges busy.
 *
 * The chain must stay open until after wpt_lazy_close(), and is only read by wpt_chain_read() meanwhile. Errors: -EINVAL, -ENOMEM, -EPERM,
 * -EMFILE, WPT_E_UNSUPPORTED (no userfaultfd; it needs Linux 5.13), and those of wpt_tracker_attach(). Since 0.1.
 */
WPT_API int wpt_lazy_open(struct wpt_lazy **out, struct wpt_chain *c, const struct wpt_lazy_options *o);

/*
 * [start, end) of the chain is to be at `addr` of the target, all of them multiples of the page size of what is mapped there: anonymous
 * memory, a memfd, a file on tmpfs or hugetlbfs. From here on what is missing there makes whoever touches it wait. What is there stays, and must
 * be gone when wpt_lazy_start() is called: by a hole punched in the file, or, before this call, by madvise(2). *nr_unreadable (may be NULL):
 * pages that could not be read when the snapshot was taken, and which will be zeros. Errors: -EINVAL (alignment, empty, overlaps another), -EBUSY
 * (another userfaultfd has it, or it was started), -EFAULT (not all is mapped), -EACCES (shared memory whose file can't be opened, so that nobody
 * could tell whether it is empty), WPT_E_UNSUPPORTED (this kind of memory), WPT_E_DAMAGED, -errno of the chain, -ENOMEM.
 */
WPT_API int wpt_lazy_add(struct wpt_lazy *l, uint64_t start, uint64_t end, uint64_t addr, uint64_t *nr_unreadable);

/*
 * Serve what is touched. Errors: -EEXIST (something is there; of a file of hugetlbfs: anywhere in it), -EAGAIN (threads), -ENOMEM, -EBUSY (it was
 * started). Pages that fallocate(2) made and nobody wrote to are only seen since Linux 6.5.
 */
WPT_API int wpt_lazy_start(struct wpt_lazy *l);

/* And bring the rest, too. Errors: -EINVAL (not started), -EAGAIN (threads), -EBUSY (it was called before). */
WPT_API int wpt_lazy_fill(struct wpt_lazy *l);

/*
 * Until all is there and the ranges are ordinary memory again, or timeout_ms (-1: no limit, 0: ask) are over. Where reading the chain fails for
 * now (-EIO, -ESTALE, -ENOENT, WPT_E_STORE and their like), or there is no memory (-ENOMEM, -ENOSPC), nothing fails: it is tried again, ten times a
 * second, and the log says so; whoever touched the memory waits. Returns 0 or -ETIMEDOUT, or what ended it for good, after which whoever waits does
 * so until it is killed: WPT_E_DAMAGED, WPT_E_GONE, -EEXIST (somebody else put something there), -errno. Threads: any.
 */
WPT_API int wpt_lazy_wait(struct wpt_lazy *l, int timeout_ms);

/* Becomes readable when wpt_lazy_wait() would not wait any more. Not to be read from or closed. */
WPT_API int wpt_lazy_fd(struct wpt_lazy *l);

struct wpt_lazy_stats {
	size_t size;
	uint64_t bytes_data;       /* to come, when it was started: what is zero does not */
	uint64_t bytes_left;
	uint64_t nr_faults;        /* accesses that waited */
	uint64_t bytes_faulted;    /* came because of one */
	uint64_t nr_retries;       /* reads of the chain that failed for now */
	uint64_t pages_collapsed;  /* pages of 4 KiB that are part of a huge one now */
	uint64_t failing_ns;       /* for how long reading has been failing, or there has been no memory; 0: all is well */
	uint64_t recovered_ns;     /* since when it has not been so any more; 0: it never was */
	uint64_t reading_ns;       /* for how long the longest read of the chain has been under way, tries included; 0: there is none */
};

/* Errors: -EINVAL, WPT_E_FORKED. Threads: any. */
WPT_API int wpt_lazy_stats(struct wpt_lazy *l, struct wpt_lazy_stats *stats);

/*
 * Ends it and frees; accepts NULL. If it was started and not all is there: in the own process what is missing can't be accessed any more (PROT_NONE;
 * where there may not be so many mappings, whole ranges), in another one whoever touches it, or gives some of it back, waits for ever. Waits for a
 * read of the chain that is under way.
 */
WPT_API void wpt_lazy_close(struct wpt_lazy *l);

#ifdef __cplusplus
}
#endif
#endif
