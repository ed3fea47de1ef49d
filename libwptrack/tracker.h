/* SPDX-License-Identifier: MIT */
/*
 * A tracker inside the library: the areas that its ranges resolve to, and one look at them. An area is the part of one mapping that is
 * tracked: one kind, one file. The list of areas (the plan) is made anew by each look and replaced as a whole; scans of other
 * threads read the old one under RCU.
 *
 * Locking: `lock` covers the plan, the file table and every look; it is held from before the target is stopped until after it runs
 * again, so that no stopped thread of the own process holds it. Lock order: lock, then those inside ranges.c.
 */
#ifndef WPT_TRACKER_H
#define WPT_TRACKER_H

#include <pthread.h>

#include "base.h"
#include "fault.h"
#include "ledger.h"
#include "ranges.h"
#include "scan.h"
#include "target.h"

struct wpt_area {
	uint64_t start, end;
	uint64_t offset;       /* in the file */
	uint32_t kind;         /* enum wpt_kind */
	uint32_t reason;       /* enum wpt_range_reason */
	uint32_t page_size;    /* the mapping's own, bytes */
	int range_id;
	int file;              /* index in the file table, -1: none or not to be had */
	size_t name;           /* offset in the plan's text */
	bool skipped;
	bool armed;            /* registered, and protected where its kind needs it */
	bool backed;           /* by a file or shared memory; what is not populated is not zero */
	bool private_file;     /* content of pages that are not COWed is the file's */
	bool exact;            /* what is written is what is dirty: see wpt_tracker_start() */
	bool untracked;        /* can't be protected: compared by content at every link */
	bool sparse;           /* private file memory without markers (backend sync): what is nowhere is not protected */
	bool dense;            /* anonymous, and nearly all of it is populated: markers in the rest cost no page tables */
	bool told;             /* the look told, beside what is written, what is gone; nothing else need be looked at */
	bool swapped;          /* some of what is written was in swap */
};

struct wpt_plan {
	struct wpt_vec areas;  /* struct wpt_area, ascending, disjoint */
	struct wpt_vec text;   /* char */
};

#define wpt_area_at(p, i) wpt_vec_at(&(p)->areas, struct wpt_area, i)
#define wpt_area_name(p, a) ((const char *)(p)->text.data + (a)->name)

/* A file that areas are of; kept open, so that its inode number stays its own. */
struct wpt_file {
	uint64_t dev, inode;   /* as in the list of mappings; `use` has those of stat(2) */
	int fd;                /* -1: the entry is free */
	int watch;             /* of inotify, or -errno */
	uint32_t nr_areas;
	bool regular;
	bool tmpfs;
	bool silent;           /* a memfd or its like: inotify tells nothing of pwrite(2) and punched holes */
	bool stacked;          /* overlayfs: what was mapped before the file was copied up is not what is read by its name */
	bool inspected;        /* `use` is of this look or nothing happened since */
	bool writer_seen, writer_before; /* another process may write to it: seen since the last look, or by that */
	bool untracked_now, untracked_before; /* the target has a shared writable mapping of it that is not tracked */
	bool changed;          /* by a system call since the last look */
	bool times_changed;    /* of a silent one: so says its time of change, or that is too fresh to say; since the last look that was whole */
	bool fresh;
	struct timespec ctime; /* at the last look */
	struct wpt_file_use use;
};

/* [start, end) must be compared by the next durable link. */
struct wpt_span {
	uint64_t start, end;
};

/* How it is known what is dirty. */
enum wpt_way {
	WPT_WAY_PROBED,        /* EXACT where the kernel has WP_WRITTEN, else COMPENSATED */
	WPT_WAY_COMPENSATED,   /* what a stock kernel does not report is found by looking at more than what is written */
	WPT_WAY_EXACT,         /* no compensation, whatever the kernel; only with WP_WRITTEN is nothing lost */
	WPT_WAY_ENTRIES        /* as COMPENSATED, and PAGEMAP_SCAN is not used; backend sync only */
};

struct wpt_tracker {
	pthread_mutex_t lock;
	struct wpt_target *target;
	struct wpt_ranges *ranges;
	struct wpt_ledger *ledger;
	struct wpt_plan *plan;     /* RCU */
	struct wpt_plan *retired;  /* the plan before, until readers are waited for; see wpt_tracker_reap() */
	struct wpt_vec files;      /* struct wpt_file */
	struct wpt_vec unknown;    /* struct wpt_span, ascending, apart: kept until a link that compared them is durable */
	struct wpt_vec uncovered;  /* struct wpt_span: left the plan since this was cleared */
	struct wpt_vec unmapped;   /* struct wpt_span: of shared memory, what had no page but a marker at the last look */
	struct wpt_vec pinned;     /* struct wpt_piece: always dirty */
	struct wpt_maps maps;
	struct wpt_scan_how how;
	struct wpt_scan scan;
	struct wpt_faults *faults; /* backend sync */
	struct wpt_huge *huge;     /* huge.h; NULL: huge pages are not given back */
	struct wpt_share *share;   /* NULL: one thread looks at everything */
	uint64_t share_bytes;      /* a stretch of memory that several look at; 0: as wpt_tracker_share() has it */
	uint32_t nr_scan_threads;  /* 0: one a processor */
	struct wpt_log log;
	uint32_t backend;
	uint32_t flags;
	bool guard_known;          /* the kernel reports guard pages */
	bool zap_reported;         /* a place where nothing is any more is reported as written, whatever took it */
	bool exact;                /* of huge pages it is tried when the first are seen */
	bool huge_tried, huge_exact;
	bool writer_open;
	bool looked;               /* the plan is of a look, not of a mere listing */
	bool lost;                 /* what was protected could not be noted: nothing is known until a look succeeds */
	bool untold;               /* the same of a scan: those that follow call all unknown, until one with REARM did so of everything; atomic */
	bool pinned_loud;
	bool direct, ring;         /* the target was seen to have something open for direct I/O, an io_uring */
	/*
	 * Direct I/O may be under way to these: struct wpt_span, ascending, apart. What was dirty or compared in a link, by its time; links
	 * compare it until one that began long after. The first is done with before the second, which new ones are added to. See rounds.c.
	 */
	struct wpt_vec in_flight[2];
	uint64_t in_flight_ns[2];
};

/*
 * wpt_tracker_open() and wpt_tracker_attach() (pid 0: the own process), which take the probed way; tests take the others too: each way on
 * each kernel. An area is `exact` if its kernel keeps a trace of everything that happens to it, even where no page is left (WP_WRITTEN):
 * then a page is dirty if it is reported as written, and what is nowhere is clean. Else see collect.c for what is looked at besides.
 * Changes that bypass the mapping are found the same way in both.
 */
int wpt_tracker_start(struct wpt_tracker **out, pid_t pid, const struct wpt_tracker_options *options, enum wpt_way way);

enum wpt_look_flags {
	WPT_LOOK_STOPPED = 1u << 0, /* nothing of the target runs, calls need not be sliced */
	WPT_LOOK_SOON = 1u << 1,    /* the last look was moments ago: what went since is not told apart, but read */
	WPT_LOOK_RUNS = 1u << 2     /* with STOPPED: nothing in the ranges is written or mapped anew, but another process goes on with other things */
};

/*
 * One look: list the mappings, resolve the ranges to areas, register and arm new ones, then collect what is dirty into the ledger (as taken
 * pages) and what can't be told into `unknown`; protects again what it reports. No malloc. -WPT_E_GONE, -ENOMEM.
 */
int wpt_tracker_look(struct wpt_tracker *t, uint32_t flags);

/*
 * Before the target is stopped: starts the threads that share the next look, if there is enough to look at. Without memory or threads a look takes
 * longer. unshare ends them.
 */
void wpt_tracker_share(struct wpt_tracker *t);
void wpt_tracker_unshare(struct wpt_tracker *t);

/* [start, end), or everything of the plan, must be compared by the next durable link. */
int wpt_tracker_unknown(struct wpt_tracker *t, uint64_t start, uint64_t end);
int wpt_tracker_all_unknown(struct wpt_tracker *t);

/* Both lists of spans are ascending and apart: `to` has those of `with`, too. -ENOMEM. */
int wpt_spans_merge(struct wpt_vec *to, const struct wpt_vec *with);

/*
 * What left the plan is forgotten by the look that finds so. What was staged of it before is said by the link all the same, and would then be
 * taken for known: so it is forgotten once more when the link is written. `all`: and whatever else the plan does not cover, as of a chain that is
 * continued: a link that does not cover it ends what earlier ones said.
 */
void wpt_tracker_forget_uncovered(struct wpt_tracker *t, bool all);

/* Makes a plan without arming anything, for those who ask what would be tracked. */
int wpt_tracker_list(struct wpt_tracker *t);

/*
 * Finds out who else may write to the files, all of them. A look does so for shared mappings itself; for the files of private ones, whose
 * writers are rare, it is done before the target is stopped, since it takes time.
 */
int wpt_tracker_inspect(struct wpt_tracker *t);

/* At the last look some of [start, end) was memory that the kernel writes to without a fault. */
bool wpt_tracker_is_pinned(const struct wpt_tracker *t, uint64_t start, uint64_t end);

/* Ends write protection of what is armed in [start, end), in slices. */
void wpt_tracker_disarm(struct wpt_tracker *t, uint64_t start, uint64_t end);

/* Ends the protection of the pages that the ledger has as loose, after a look reported them and while the target runs. */
void wpt_tracker_loosen(struct wpt_tracker *t);

int wpt_plan_open(struct wpt_plan **out);
void wpt_plan_close(struct wpt_plan *plan);

/* Frees what a look replaced; not between quiesce and resume. */
void wpt_tracker_reap(struct wpt_tracker *t);

/*
 * Private mappings of files: what is written, and as what; a scan that protects with it must give every run to note_cowed, because
 * afterwards a swapped COWed page looks like a marker.
 */
extern const struct wpt_scan_match wpt_match_private_file;
int wpt_tracker_note_cowed(struct wpt_tracker *t, const struct wpt_page_region *run);

/*
 * Of pages that are known to be COWed those that show the file's content again become dirty. `forget`: and are not COWed any more; with the
 * lock only, because without it a look may know better by now.
 */
int wpt_tracker_uncowed(struct wpt_tracker *t, struct wpt_scan *scan, uint64_t start, uint64_t end, bool forget);

/*
 * Backend sync, where protecting is not of the same instant as looking: which populated pages of a private file mapping are COWed, after some of
 * [start, end) was protected. What can't be told from a marker is taken for COWed, if it is dirty.
 */
int wpt_tracker_learn_cowed(struct wpt_tracker *t, struct wpt_scan *scan, uint64_t start, uint64_t end);

/* What was written of an area whose other pages are not asked for. */
const struct wpt_scan_match *wpt_area_written(const struct wpt_area *a);

/* The first part of [from, end) that must be compared: its start (end if there is none) and its end in *run_end. */
uint64_t wpt_tracker_next_unknown(const struct wpt_tracker *t, uint64_t from, uint64_t end, uint64_t *run_end);

/* Checked first by everything that is public: -WPT_E_FORKED in a child. */
int wpt_tracker_check(struct wpt_tracker *t);

#endif
