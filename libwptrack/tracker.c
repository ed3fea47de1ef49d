/* SPDX-License-Identifier: MIT */
/*
 * The public tracker: open, attach, ranges, arm, scan. What a look does is in look.c.
 *
 * Locking: see tracker.h. wpt_tracker_scan() reads the plan under RCU and takes no lock unless it re-arms.
 */
#include "tracker.h"
#include "crew.h"
#include "huge.h"

#include <stdlib.h>
#include <unistd.h>
#include <urcu-bp.h>

static int tracker_alloc(struct wpt_tracker **out, const struct wpt_tracker_options *o)
{
	struct wpt_tracker *t = calloc(1, sizeof(*t));
	int err;

	if (!t)
		return -ENOMEM;
	pthread_mutex_init(&t->lock, NULL);
	t->log = (struct wpt_log){ o->log, o->log_arg };
	t->flags = o->flags;
	t->backend = o->backend;
	t->nr_scan_threads = o->nr_scan_threads;
	t->files.elem_size = sizeof(struct wpt_file);
	t->in_flight[0].elem_size = t->in_flight[1].elem_size = sizeof(struct wpt_span);
	t->unknown.elem_size = t->uncovered.elem_size = t->unmapped.elem_size = sizeof(struct wpt_span);
	t->pinned.elem_size = sizeof(struct wpt_piece);
	t->how = (struct wpt_scan_how){ .pagemap = -1, .uffd = -1 };
	err = wpt_ledger_open(&t->ledger);
	if (!err)
		err = wpt_ranges_open(&t->ranges);
	if (!err)
		err = wpt_plan_open(&t->plan);
	if (err) {
		wpt_tracker_close(t);
		return err;
	}
	*out = t;
	return 0;
}

static int options_check(struct wpt_tracker_options *o, const struct wpt_tracker_options *from)
{
	int err = wpt_options_copy(o, sizeof(*o), from, sizeof(*o));

	if (err)
		return err;
	if (o->backend > WPT_BACKEND_SYNC || o->nr_fault_threads > WPT_FAULT_THREADS_MAX ||
	    o->nr_scan_threads > WPT_CREW_MAX || o->reserved ||
	    (o->flags & ~(uint32_t)(WPT_TRACK_ASSUME_SOLE_WRITER | WPT_TRACK_VERIFY_CONTENT)))
		return -EINVAL;
	return 0;
}

static void say_missing(struct wpt_tracker *t, uint32_t features)
{
	bool async = features & WPT_F_WP_ASYNC, scan = features & WPT_F_PAGEMAP_SCAN;

	if (!(features & WPT_F_UFFD))
		wpt_logf(&t->log, WPT_LOG_ERROR, "this user may not create a userfaultfd: a sandbox forbids it, or the kernel is built without");
	else if (async && scan)
		wpt_logf(&t->log, WPT_LOG_ERROR, "this kernel offers asynchronous write protection (UFFD_FEATURE_WP_ASYNC) and it does not work");
	else
		wpt_logf(&t->log, WPT_LOG_ERROR,
			 "this kernel lacks %s, which tracking rests on; Linux has it since 6.7",
			 async ? "PAGEMAP_SCAN" :
			 scan  ? "asynchronous write protection (UFFD_FEATURE_WP_ASYNC)" :
				 "asynchronous write protection (UFFD_FEATURE_WP_ASYNC) and PAGEMAP_SCAN");
}

static void say_missing_sync(struct wpt_tracker *t, uint32_t features)
{
	if (!(features & WPT_F_UFFD))
		say_missing(t, features);
	else if (!(features & WPT_F_UFFD_KERNEL))
		wpt_logf(&t->log, WPT_LOG_ERROR,
			 "backend sync needs a userfaultfd that handles faults of system calls: be root (CAP_SYS_PTRACE), "
			 "set vm.unprivileged_userfaultfd=1, or get the right to open /dev/userfaultfd");
	else
		wpt_logf(&t->log, WPT_LOG_ERROR,
			 "this kernel lacks write protection by userfaultfd that /proc/PID/pagemap shows; Linux has it since 5.13");
}

static void say_fallback(struct wpt_tracker *t, uint32_t features)
{
	wpt_logf(&t->log, WPT_LOG_INFO, "backend sync is used: this kernel lacks %s; threads of this process resolve the target's write faults",
		 features & WPT_F_WP_ASYNC ? "PAGEMAP_SCAN" : "asynchronous write protection");
}

/* AUTO becomes what it is; the others are as they were asked for. */
static void backend_choose(struct wpt_tracker *t, uint32_t features)
{
	if (t->backend != WPT_BACKEND_AUTO)
		return;
	t->backend = WPT_BACKEND_ASYNC;
	if (features & WPT_F_ASYNC || !(features & WPT_F_SYNC))
		return;
	t->backend = WPT_BACKEND_SYNC;
	say_fallback(t, features);
}

/* What the backend needs is there, or -WPT_E_UNSUPPORTED. *uffd: what to ask the kernel for. */
static int backend_check(struct wpt_tracker *t, enum wpt_way way, enum wpt_uffd *uffd)
{
	const char *differs;
	uint32_t features, missing;
	bool root_may;
	int err = wpt_probe_kernel(&features, 0, &differs);

	if (err)
		return err;
	root_may = t->backend == WPT_BACKEND_AUTO && !(features & WPT_F_UFFD_KERNEL);
	backend_choose(t, features);
	t->guard_known = features & WPT_F_GUARD;
	t->zap_reported = features & WPT_F_ZAP_REPORTED;
	t->how.entries = t->backend == WPT_BACKEND_SYNC && (way == WPT_WAY_ENTRIES || !(features & WPT_F_PAGEMAP_SCAN));
	*uffd = t->backend == WPT_BACKEND_ASYNC ? WPT_UFFD_ASYNC : t->backend == WPT_BACKEND_SYNC ? WPT_UFFD_SYNC : WPT_UFFD_NONE;
	if (*uffd == WPT_UFFD_ASYNC && way != WPT_WAY_COMPENSATED) {
		t->exact = way == WPT_WAY_EXACT || features & WPT_F_WP_WRITTEN;
		if (features & WPT_F_WP_WRITTEN || (t->exact && differs))
			*uffd = WPT_UFFD_WRITTEN;
		else
			t->huge_tried = t->huge_exact = t->exact;
	}
	if (differs)
		wpt_logf(&t->log, WPT_LOG_WARNING, "this kernel's WP_WRITTEN is not used: %s", differs);
	missing = (t->backend == WPT_BACKEND_ASYNC ? WPT_F_ASYNC : t->backend == WPT_BACKEND_SYNC ? WPT_F_SYNC : 0) & ~features;
	if (!missing)
		return 0;
	if (missing & WPT_F_ASYNC)
		say_missing(t, features);
	else
		say_missing_sync(t, features);
	if (missing & WPT_F_ASYNC && root_may)
		wpt_logf(&t->log, WPT_LOG_ERROR, "root (CAP_SYS_PTRACE) may be served by backend sync all the same");
	root_may |= missing & WPT_F_SYNC && !(features & WPT_F_UFFD_KERNEL);
	return !(features & WPT_F_UFFD) || root_may ? -EPERM : -WPT_E_UNSUPPORTED;
}

/* Descriptors and threads, when the target is there. */
static int tracker_prepare(struct wpt_tracker *t, const struct wpt_tracker_options *o)
{
	int uffd = wpt_target_uffd(t->target), err = 0;

	if (t->backend != WPT_BACKEND_REPORTED && uffd < 0)
		return uffd == -EPERM || uffd == -EMFILE || uffd == -ENFILE || uffd == -ENOMEM ? uffd : -WPT_E_UNSUPPORTED;
	t->how.pagemap = wpt_target_pagemap(t->target);
	if (t->backend == WPT_BACKEND_SYNC) {
		t->how.uffd = uffd;
		err = wpt_faults_open(&t->faults, t->target, o->nr_fault_threads ? o->nr_fault_threads : 2);
	}
	return err ? err : wpt_scan_open(&t->scan, &t->how);
}

int wpt_tracker_start(struct wpt_tracker **out, pid_t pid, const struct wpt_tracker_options *options, enum wpt_way way)
{
	struct wpt_tracker_options o;
	struct wpt_tracker *t = NULL;
	enum wpt_uffd uffd;
	int err;

	err = options_check(&o, options);
	if (!err)
		err = tracker_alloc(&t, &o);
	if (err)
		return err;
	err = backend_check(t, way, &uffd);
	if (!err && pid == 0)
		err = wpt_target_self(&t->target, uffd, &t->log);
	else if (!err)
		err = wpt_target_attach(&t->target, pid, o.stop_timeout_ms ? o.stop_timeout_ms : 100, uffd, &t->log);
	if (!err)
		err = tracker_prepare(t, &o);
	if (err) {
		wpt_tracker_close(t);
		return err;
	}
	*out = t;
	return 0;
}

int wpt_tracker_open(struct wpt_tracker **out, const struct wpt_tracker_options *o)
{
	return wpt_tracker_start(out, 0, o, WPT_WAY_PROBED);
}

int wpt_tracker_attach(struct wpt_tracker **out, pid_t pid, const struct wpt_tracker_options *o)
{
	if (pid <= 0)
		return -ESRCH;
	if (pid == getpid())
		return -EINVAL;
	return wpt_tracker_start(out, pid, o, WPT_WAY_PROBED);
}

void wpt_tracker_close(struct wpt_tracker *t)
{
	size_t i;

	if (!t)
		return;
	if (t->target && wpt_tracker_check(t) == 0)
		wpt_tracker_disarm(t, 0, UINT64_MAX);
	/* Faults are resolved until nothing is protected; what a lost plan left is released with the descriptor, right after. */
	wpt_faults_close(t->faults);
	wpt_huge_close(t);
	wpt_tracker_unshare(t);
	wpt_scan_close(&t->scan);
	for (i = 0; i < t->files.count; i++)
		if (wpt_vec_at(&t->files, struct wpt_file, i)->fd >= 0)
			close(wpt_vec_at(&t->files, struct wpt_file, i)->fd);
	wpt_maps_free(&t->maps);
	wpt_target_close(t->target);
	wpt_tracker_reap(t);
	wpt_plan_close(t->plan);
	wpt_ranges_close(t->ranges);
	wpt_ledger_close(t->ledger);
	wpt_vec_free(&t->files);
	wpt_vec_free(&t->unknown);
	wpt_vec_free(&t->in_flight[0]);
	wpt_vec_free(&t->in_flight[1]);
	wpt_vec_free(&t->uncovered);
	wpt_vec_free(&t->unmapped);
	wpt_vec_free(&t->pinned);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

int wpt_tracker_check(struct wpt_tracker *t)
{
	return wpt_target_check(t->target);
}

int wpt_tracker_info(struct wpt_tracker *t, struct wpt_tracker_info *info)
{
	struct wpt_tracker_info found = { .size = sizeof(found) };
	const struct wpt_area *a;
	size_t i;

	found.pid = wpt_target_pid(t->target);
	found.backend = t->backend;
	found.start_time = wpt_target_start_time(t->target);
	pthread_mutex_lock(&t->lock);
	for (i = 0; i < t->plan->areas.count; i++) {
		a = wpt_area_at(t->plan, i);
		if (a->skipped) {
			found.nr_skipped++;
		} else {
			found.nr_ranges++;
			found.bytes_tracked += a->end - a->start;
		}
	}
	found.memory_bytes = sizeof(*t) + wpt_ledger_memory(t->ledger) + wpt_faults_memory(t->faults) + wpt_huge_memory(t) + t->plan->areas.bytes +
			     t->plan->text.bytes + t->files.bytes + t->maps.maps.bytes + t->maps.text.bytes;
	pthread_mutex_unlock(&t->lock);
	return wpt_info_copy(info, &found, sizeof(found), sizeof(found));
}

int wpt_range_add(struct wpt_tracker *t, const struct wpt_range *r)
{
	struct wpt_range range;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	int err = wpt_options_copy(&range, sizeof(range), r, sizeof(range));

	if (err || !r || range.start >= range.end || ((range.start | range.end) & (page - 1)))
		return -EINVAL;
	err = wpt_tracker_check(t);
	return err ? err : wpt_ranges_add(t->ranges, range.start, range.end, range.name);
}

int wpt_range_add_all(struct wpt_tracker *t)
{
	int err = wpt_tracker_check(t);

	if (err)
		return err;
	if (wpt_target_is_self(t->target))
		return -EINVAL;
	err = wpt_target_alive(t->target);
	return err ? err : wpt_ranges_add_all(t->ranges);
}

int wpt_range_remove(struct wpt_tracker *t, int id)
{
	struct wpt_range_entry gone;
	int err = wpt_tracker_check(t);

	if (!err)
		err = wpt_ranges_remove(t->ranges, id, &gone);
	if (err)
		return err;
	pthread_mutex_lock(&t->lock);
	wpt_tracker_disarm(t, gone.start, gone.end);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

/* The plan, made by a look without arming if there was none. Called with the lock. */
static int plan_need(struct wpt_tracker *t)
{
	return t->looked ? 0 : wpt_tracker_list(t);
}

int wpt_range_list(struct wpt_tracker *t, int (*each)(void *arg, const struct wpt_range_info *info), void *arg)
{
	struct wpt_range_info info = { .size = sizeof(info) };
	const struct wpt_area *a;
	size_t i;
	int err = wpt_tracker_check(t);

	if (err)
		return err;
	pthread_mutex_lock(&t->lock);
	err = plan_need(t);
	for (i = 0; i < t->plan->areas.count && !err; i++) {
		a = wpt_area_at(t->plan, i);
		info.start = a->start;
		info.end = a->end;
		info.kind = a->kind;
		info.reason = a->reason;
		info.skipped = a->skipped;
		info.id = a->range_id;
		info.name = wpt_area_name(t->plan, a);
		err = each(arg, &info);
	}
	pthread_mutex_unlock(&t->lock);
	return err;
}

int wpt_range_mark(struct wpt_tracker *t, uint64_t start, uint64_t end)
{
	const struct wpt_range_set *set;
	uint64_t at = start;
	size_t i;
	int err = wpt_tracker_check(t);

	if (err)
		return err;
	if (t->backend != WPT_BACKEND_REPORTED || start >= end)
		return -EINVAL;
	set = wpt_ranges_begin(t->ranges);
	for (i = 0; i < set->nr && at < end; i++) {
		if (set->entries[i].end <= at)
			continue;
		if (set->entries[i].start > at)
			break;
		at = set->entries[i].end;
	}
	wpt_ranges_end(t->ranges);
	if (at < end)
		return -WPT_E_NOT_TRACKED;
	return wpt_ledger_dirty(t->ledger, WPT_ALIGN_DOWN(start, WPT_PAGE), WPT_ALIGN_UP(end, WPT_PAGE));
}

int wpt_tracker_arm(struct wpt_tracker *t)
{
	int err = wpt_tracker_check(t);

	if (err)
		return err;
	pthread_mutex_lock(&t->lock);
	if (t->writer_open)
		err = -EBUSY;
	if (!err)
		err = wpt_tracker_look(t, 0);
	/* What was dirty in memory that was armed before stays so; memory that is armed now begins clean. */
	wpt_ledger_rollback(t->ledger);
	if (!err) {
		wpt_vec_clear(&t->unknown);
		__atomic_store_n(&t->untold, false, __ATOMIC_RELAXED);
	}
	wpt_tracker_reap(t);
	pthread_mutex_unlock(&t->lock);
	return err;
}

/* ---- scan ---- */

struct scan_call {
	struct wpt_tracker *t;
	struct wpt_scan scan, nowhere;
	bool rearm, untold;       /* untold: nothing but that all is unknown is reported */
	int (*each)(void *arg, const struct wpt_run *run);
	void *arg;
	struct wpt_run pending;   /* merged with what follows, then reported */
	struct wpt_page_region gone; /* the run at which `nowhere` is, in the area */
	bool gone_begun;          /* it was asked in this area */
	uint64_t area_end;        /* of what is scanned of the area */
	int result;               /* non-zero: the callback wants no more */
};

static void report_flush(struct scan_call *c)
{
	if (c->pending.start < c->pending.end && !c->result)
		c->result = c->each(c->arg, &c->pending);
	else if (c->result && c->rearm && c->pending.state != WPT_PAGES_ZERO &&
		 wpt_ledger_dirty(c->t->ledger, c->pending.start, c->pending.end) != 0) {
		c->t->lost = true;
		__atomic_store_n(&c->t->untold, true, __ATOMIC_RELAXED);
	}
	c->pending.start = c->pending.end = 0;
}

static void report(struct scan_call *c, uint64_t start, uint64_t end, uint32_t state, uint32_t kind)
{
	if (start >= end || (c->untold && state != WPT_PAGES_UNKNOWN))
		return;
	if (c->pending.end == start && c->pending.state == state && c->pending.kind == kind && c->pending.start < c->pending.end) {
		c->pending.end = end;
		return;
	}
	report_flush(c);
	c->pending = (struct wpt_run){ start, end, state, kind };
}

static bool is_huge(const struct wpt_area *a)
{
	return a->kind == WPT_KIND_HUGETLB_PRIVATE || a->kind == WPT_KIND_HUGETLB_SHARED;
}

/*
 * Between pages that are written: what is nowhere, and is not reported as written or would get a marker if it were protected. A shared huge page that
 * is not mapped may hold anything.
 */
static int scan_nowhere(struct scan_call *c, const struct wpt_area *a, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match not_present = { .inverted = PAGE_IS_PRESENT, .mask = PAGE_IS_PRESENT };
	int got = 1;

	if (start >= end || a->exact || (!is_huge(a) && !(a->kind == WPT_KIND_ANON && c->rearm)))
		return 0;
	/* One scan for all gaps of the area: what is nowhere is a state, so that it may be as of a moment ago. */
	if (!c->gone_begun) {
		wpt_scan_start(&c->nowhere, start, c->area_end, is_huge(a) ? &not_present : &wpt_match_none, false);
		c->gone = (struct wpt_page_region){ start, start, 0 };
		c->gone_begun = true;
	}
	while (!c->result && got > 0 && c->gone.start < end) {
		report(c, WPT_MAX(start, c->gone.start), WPT_MIN(end, c->gone.end),
		       a->kind == WPT_KIND_HUGETLB_SHARED ? WPT_PAGES_DIRTY : WPT_PAGES_ZERO, a->kind);
		if (c->gone.end > end)
			break;
		got = wpt_scan_next(&c->nowhere, &c->gone);
		if (got <= 0)
			c->gone = (struct wpt_page_region){ UINT64_MAX, UINT64_MAX, 0 };
	}
	return got < 0 ? got : 0;
}

/* Between pages that are written: pages of the dirty set (reported ones, and what an earlier scan took and could not report), and the above. */
static int scan_unwritten(struct scan_call *c, const struct wpt_area *a, uint64_t start, uint64_t end)
{
	uint64_t at = start, dirty, run_end;
	int err = 0;

	while (at < end && !c->result && !err) {
		dirty = wpt_ledger_next_dirty(c->t->ledger, at, end, &run_end);
		err = a->kind == WPT_KIND_REPORTED ? 0 : scan_nowhere(c, a, at, dirty);
		at = dirty;
		if (at >= end || c->result || err)
			break;
		/* Cleared before it is reported: what is marked from now on is news. */
		if (c->rearm)
			wpt_ledger_undirty(c->t->ledger, at, run_end);
		report(c, at, run_end, WPT_PAGES_DIRTY, a->kind);
		at = run_end;
	}
	return err;
}

static const struct wpt_scan_match *match_of(const struct scan_call *c, const struct wpt_area *a)
{
	/* What is nowhere counts as written: told apart by a second category, and by a scan that protects left out. */
	static const struct wpt_scan_match written = {
		.mask = PAGE_IS_WRITTEN,
		.report = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	};
	static const struct wpt_scan_match hugetlb = { .mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT };

	if (a->exact)
		return &wpt_match_written;
	if (a->kind == WPT_KIND_ANON)
		return c->rearm ? &wpt_match_dirty : &written;
	if (a->sparse)
		return wpt_area_written(a);
	if (a->kind == WPT_KIND_FILE_PRIVATE && c->rearm)
		return &wpt_match_private_file;
	return is_huge(a) ? &hugetlb : &wpt_match_written;
}

static int scan_written(struct scan_call *c, const struct wpt_area *a, uint64_t start, uint64_t end)
{
	bool zero = a->kind == WPT_KIND_ANON && !a->exact && !c->rearm, cowed = a->kind == WPT_KIND_FILE_PRIVATE && !a->exact;
	struct wpt_page_region run;
	uint64_t at = start;
	int got = 0, err = 0;

	c->scan.unit = is_huge(a) ? a->page_size : 0;
	err = wpt_scan_check(&c->scan, start);
	if (cowed && !err)
		err = wpt_tracker_uncowed(c->t, &c->nowhere, start, end, c->rearm);
	wpt_scan_start(&c->scan, start, end, match_of(c, a), c->rearm);
	while (!err && (got = wpt_scan_next(&c->scan, &run)) > 0) {
		err = scan_unwritten(c, a, at, run.start);
		if (cowed && c->rearm && !err)
			err = wpt_tracker_note_cowed(c->t, &run);
		if (c->rearm)
			wpt_ledger_undirty(c->t->ledger, run.start, run.end);
		report(c, run.start, run.end, zero && !(run.categories & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED)) ? WPT_PAGES_ZERO :
												      WPT_PAGES_DIRTY, a->kind);
		at = run.end;
		if (c->result && !c->rearm)
			return 0;
	}
	/* Before the pages between: what it finds to have changed meanwhile is among those. */
	if (!err && got == 0 && a->sparse && c->rearm)
		err = wpt_tracker_learn_cowed(c->t, &c->nowhere, start, end);
	if (!err && got == 0)
		err = scan_unwritten(c, a, at, end);
	return err ? err : got;
}

static int scan_area(struct scan_call *c, const struct wpt_area *a, uint64_t start, uint64_t end)
{
	int err;

	c->gone_begun = false;
	c->area_end = end;
	err = a->kind == WPT_KIND_REPORTED ? scan_unwritten(c, a, start, end) : scan_written(c, a, start, end);

	if (err == -ESRCH)
		return -WPT_E_GONE;
	if (!err && !c->untold)
		return 0;
	/* Pages may have been protected and not told of. */
	if (err && c->rearm)
		c->t->lost = true;
	report(c, start, end, WPT_PAGES_UNKNOWN, a->kind);
	return 0;
}

/* Memory of a range between its areas: nothing is mapped there, or something that no look has seen. */
static int scan_gap(struct scan_call *c, uint64_t start, uint64_t end)
{
	struct wpt_page_region run;
	int got;

	if (start >= end || c->t->backend == WPT_BACKEND_REPORTED)
		return 0;
	wpt_scan_start(&c->scan, start, end, &wpt_match_populated, false);
	got = wpt_scan_next(&c->scan, &run);
	if (got == -ESRCH)
		return -WPT_E_GONE;
	if (got != 0)
		report(c, start, end, WPT_PAGES_UNKNOWN, WPT_KIND_ANON);
	return 0;
}

static int scan_interval(struct scan_call *c, const struct wpt_plan *plan, uint64_t start, uint64_t end, bool gaps)
{
	const struct wpt_area *a;
	uint64_t at = start;
	size_t i;
	int err = 0;

	for (i = 0; i < plan->areas.count && !err && !c->result; i++) {
		a = wpt_area_at(plan, i);
		if (a->end <= at || a->skipped)
			continue;
		if (a->start >= end)
			break;
		if (gaps)
			err = scan_gap(c, at, a->start);
		at = WPT_MAX(at, a->start);
		if (!err && !a->armed)
			report(c, at, WPT_MIN(a->end, end), WPT_PAGES_UNKNOWN, a->kind);
		else if (!err)
			err = scan_area(c, a, at, WPT_MIN(a->end, end));
		at = WPT_MIN(a->end, end);
	}
	if (gaps && !err && !c->result)
		err = scan_gap(c, at, end);
	return err;
}

static bool is_whole(const struct wpt_plan *plan, uint64_t start, uint64_t end)
{
	size_t i;

	for (i = 0; i < plan->areas.count; i++)
		if (!wpt_area_at(plan, i)->skipped && (wpt_area_at(plan, i)->start < start || wpt_area_at(plan, i)->end > end))
			return false;
	return true;
}

int wpt_tracker_scan(struct wpt_tracker *t, uint64_t start, uint64_t end, uint32_t flags,
		     int (*each)(void *arg, const struct wpt_run *run), void *arg)
{
	/* Not from the heap: for a small range that would cost more than the scan. */
	struct wpt_scan_memory scan, nowhere;
	struct scan_call c = { .t = t, .rearm = flags & WPT_SCAN_REARM, .each = each, .arg = arg };
	const struct wpt_range_set *set;
	const struct wpt_plan *plan;
	bool whole;
	size_t i;
	int err = wpt_tracker_check(t);

	if (!err && (flags & ~(uint32_t)WPT_SCAN_REARM))
		err = -EINVAL;
	if (err)
		return err;
	wpt_scan_init(&c.scan, &t->how, &scan);
	wpt_scan_init(&c.nowhere, &t->how, &nowhere);
	c.scan.slice = c.nowhere.slice = (uint64_t)1 << 30;
	if (c.rearm)
		pthread_mutex_lock(&t->lock);
	if (c.rearm && t->writer_open)
		err = -EBUSY;
	c.untold = __atomic_load_n(&t->untold, __ATOMIC_RELAXED);
	set = wpt_ranges_begin(t->ranges);
	plan = rcu_dereference(t->plan);
	whole = is_whole(plan, start, end);
	if (set->all && !err)
		err = scan_interval(&c, plan, start, end, false);
	for (i = 0; i < set->nr && !err && !c.result; i++)
		if (set->entries[i].start < end && start < set->entries[i].end)
			err = scan_interval(&c, plan, WPT_MAX(start, set->entries[i].start), WPT_MIN(end, set->entries[i].end), true);
	wpt_ranges_end(t->ranges);
	report_flush(&c);
	if (c.untold && c.rearm && whole && !err && !c.result)
		__atomic_store_n(&t->untold, false, __ATOMIC_RELAXED);
	if (c.rearm)
		pthread_mutex_unlock(&t->lock);
	if (!err)
		err = wpt_target_alive(t->target);
	return err ? err : c.result;
}

ssize_t wpt_tracker_read(struct wpt_tracker *t, uint64_t addr, void *buf, size_t len)
{
	ssize_t got;
	int err = wpt_tracker_check(t);

	if (err)
		return err;
	got = wpt_target_read(t->target, addr, buf, len);
	err = wpt_target_alive(t->target);
	return err ? err : got;
}
