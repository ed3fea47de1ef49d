/* SPDX-License-Identifier: MIT */
/*
 * One look at the target: mappings -> areas -> what is dirty. All rules of scanning are here and in collect.c: which kind is armed how, what
 * counts as dirty for it, and what makes an area unknown. A look never forgets: what it takes from the kernel goes to the ledger or to the
 * unknown spans, where it stays until a link that holds it is durable.
 */
#include "look.h"
#include "huge.h"

#include <unistd.h>
#include <urcu-bp.h>

#define ARM_SLICE ((uint64_t)16 << 20)
#define SCAN_SLICE ((uint64_t)1 << 30)
#define PROTECT_BRIDGE ((uint64_t)32 * WPT_PAGE) /* protecting so much in vain takes less than another call */
#define DISARM_SLICE ((uint64_t)64 << 20)

/* ---- plan ---- */

int wpt_plan_open(struct wpt_plan **out)
{
	struct wpt_plan *plan = wpt_vm_alloc(sizeof(*plan));

	if (!plan)
		return -ENOMEM;
	plan->areas.elem_size = sizeof(struct wpt_area);
	plan->text.elem_size = 1;
	*out = plan;
	return 0;
}

void wpt_plan_close(struct wpt_plan *plan)
{
	if (!plan)
		return;
	wpt_vec_free(&plan->areas);
	wpt_vec_free(&plan->text);
	wpt_vm_free(plan, sizeof(*plan));
}

void wpt_tracker_reap(struct wpt_tracker *t)
{
	if (!t->retired)
		return;
	synchronize_rcu();
	wpt_plan_close(t->retired);
	t->retired = NULL;
}

static int text_add(struct wpt_vec *text, const char *s, size_t *offset)
{
	size_t len = strlen(s) + 1, i;
	char *c;

	*offset = text->count;
	for (i = 0; i < len; i++) {
		c = wpt_vec_push(text);
		if (!c)
			return -ENOMEM;
		*c = s[i];
	}
	return 0;
}

/* ---- mappings to areas ---- */

static bool is_special(const char *name)
{
	static const char *const names[] = { "[vvar", "[vdso]", "[vsyscall]", "[uprobes]", "[sigpage]" };
	size_t i;

	for (i = 0; i < WPT_ARRAY_SIZE(names); i++)
		if (strncmp(name, names[i], strlen(names[i])) == 0)
			return true;
	return false;
}

static void area_skip(struct wpt_area *a, enum wpt_range_reason reason)
{
	a->skipped = true;
	a->armed = false;
	a->reason = reason;
}

/* Whether what is written is all that is dirty. A kernel may have WP_WRITTEN for some kinds of memory only. */
static bool area_is_exact(struct wpt_tracker *t, const struct wpt_area *a)
{
	const char *differs;

	if (!t->exact || a->skipped || a->kind == WPT_KIND_REPORTED)
		return false;
	if (a->kind != WPT_KIND_HUGETLB_PRIVATE && a->kind != WPT_KIND_HUGETLB_SHARED)
		return true;
	if (!t->huge_tried) {
		differs = wpt_probe_written_hugetlb(a->page_size);
		t->huge_tried = true;
		t->huge_exact = !differs;
	}
	return t->huge_exact;
}

static void area_classify(struct wpt_look *l, struct wpt_area *a, const struct wpt_map *map, const char *name)
{
	const struct wpt_file *file;

	a->file = -1;
	if (is_special(name)) {
		a->kind = WPT_KIND_ANON;
		area_skip(a, WPT_REASON_SPECIAL);
		return;
	}
	if (map->hugetlb && !map->shared && strncmp(name, "/anon_hugepage", 14) == 0) {
		a->kind = WPT_KIND_HUGETLB_PRIVATE;
	} else if (!map->inode || (!map->shared && strcmp(name, "/dev/zero") == 0)) {
		a->kind = WPT_KIND_ANON;
	} else {
		a->file = wpt_look_file(l->t, map);
		file = a->file >= 0 ? wpt_vec_at(&l->t->files, struct wpt_file, a->file) : NULL;
		if (map->hugetlb)
			a->kind = map->shared ? WPT_KIND_HUGETLB_SHARED : WPT_KIND_HUGETLB_PRIVATE;
		else if (map->shared)
			a->kind = file && !file->tmpfs ? WPT_KIND_FILE_SHARED : WPT_KIND_SHMEM;
		else
			a->kind = WPT_KIND_FILE_PRIVATE;
		a->private_file = !map->shared;
		a->backed = true;
		if ((file && !file->regular) || strncmp(name, "anon_inode:", 11) == 0 || strncmp(name, "/[aio]", 6) == 0)
			area_skip(a, WPT_REASON_DEVICE);
		else if (!file && strncmp(name, "/dev/", 5) == 0 && strncmp(name, "/dev/shm/", 9) != 0 && strncmp(name, "/dev/zero", 9) != 0)
			area_skip(a, WPT_REASON_DEVICE);
	}
	if (map->hugetlb && !a->skipped && ((a->start | a->end) & (map->page_size - 1)))
		area_skip(a, WPT_REASON_UNSUPPORTED);
	if (l->t->backend == WPT_BACKEND_REPORTED && !a->skipped)
		a->kind = WPT_KIND_REPORTED;
	a->exact = area_is_exact(l->t, a);
	a->sparse = l->t->backend == WPT_BACKEND_SYNC && a->kind == WPT_KIND_FILE_PRIVATE;
}

static int area_add(struct wpt_look *l, const struct wpt_map *map, uint64_t start, uint64_t end, const struct wpt_range_entry *entry)
{
	const char *name = wpt_map_name(&l->t->maps, map);
	struct wpt_area *a;

	start = WPT_MAX(start, map->start);
	end = WPT_MIN(end, map->end);
	if (start >= end)
		return 0;
	a = wpt_vec_push(&l->plan->areas);
	if (!a)
		return -ENOMEM;
	a->start = start;
	a->end = end;
	a->offset = map->offset + (start - map->start);
	a->page_size = map->page_size;
	a->range_id = entry ? entry->id : 0;
	area_classify(l, a, map, name);
	return text_add(&l->plan->text, entry && entry->name[0] ? entry->name : name, &a->name);
}

/* All of a writable mapping; of another the parts that were tracked before. */
static int area_add_default(struct wpt_look *l, const struct wpt_map *map, size_t *old_at)
{
	const struct wpt_area *o;
	size_t i;
	int err;

	if (map->write)
		return area_add(l, map, map->start, map->end, NULL);
	while (*old_at < l->old->areas.count && wpt_area_at(l->old, *old_at)->end <= map->start)
		++*old_at;
	for (i = *old_at; i < l->old->areas.count; i++) {
		o = wpt_area_at(l->old, i);
		if (o->start >= map->end)
			break;
		if (o->skipped)
			continue;
		err = area_add(l, map, o->start, o->end, NULL);
		if (err)
			return err;
	}
	return 0;
}

static int plan_build(struct wpt_look *l)
{
	const struct wpt_range_set *set;
	const struct wpt_map *map;
	size_t m, r = 0, i, old_at = 0;
	int err = 0;

	set = wpt_ranges_begin(l->t->ranges);
	for (m = 0; m < l->t->maps.maps.count && !err; m++) {
		map = wpt_map_at(&l->t->maps, m);
		if (set->all) {
			err = area_add_default(l, map, &old_at);
			continue;
		}
		while (r < set->nr && set->entries[r].end <= map->start)
			r++;
		for (i = r; i < set->nr && set->entries[i].start < map->end && !err; i++)
			err = area_add(l, map, set->entries[i].start, set->entries[i].end, &set->entries[i]);
	}
	wpt_ranges_end(l->t->ranges);
	return err;
}

/* ---- arming ---- */

static bool is_sync(const struct wpt_look *l)
{
	return l->t->backend == WPT_BACKEND_SYNC;
}

/* Protects what is there; what a scan reports is not needed, since the whole span is unknown. */
static int protect_present(struct wpt_look *l, uint64_t start, uint64_t end)
{
	struct wpt_page_region run;
	int got;

	wpt_scan_start(&l->t->scan, start, end, &wpt_match_dirty, true);
	while ((got = wpt_scan_next(&l->t->scan, &run)) > 0)
		;
	return got;
}

const struct wpt_scan_match wpt_match_private_file = {
	.mask = PAGE_IS_WRITTEN,
	.report = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_FILE,
};

const struct wpt_scan_match wpt_match_private_sparse = {
	.mask = PAGE_IS_WRITTEN,
	.anyof = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	.report = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_FILE,
};

const struct wpt_scan_match *wpt_area_written(const struct wpt_area *a)
{
	if (a->exact)
		return &wpt_match_written;
	if (a->sparse)
		return &wpt_match_private_sparse;
	return a->kind == WPT_KIND_ANON ? &wpt_match_dirty : &wpt_match_written;
}

/* Every page that is there or has a marker, and what it is. */
static const struct wpt_scan_match match_private_all = {
	.anyof = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	.report = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_FILE,
};

static int set_cowed(struct wpt_tracker *t, uint64_t start, uint64_t end, bool cowed)
{
	if (cowed)
		return wpt_ledger_cow(t->ledger, start, end);
	wpt_ledger_uncow(t->ledger, start, end);
	return 0;
}

/* A run of written pages of a private file mapping, as it was before it was protected: a swap entry here is not a marker. */
int wpt_tracker_note_cowed(struct wpt_tracker *t, const struct wpt_page_region *run)
{
	if (!(run->categories & PAGE_IS_SWAPPED) && (run->categories & (PAGE_IS_PRESENT | PAGE_IS_FILE)) != PAGE_IS_PRESENT)
		return 0;
	return set_cowed(t, run->start, run->end, true);
}

/*
 * Private file mappings are protected by a scan, which also leaves markers and, unlike UFFDIO_WRITEPROTECT, tells of each page what it was in
 * the instant before: afterwards a swapped COWed page and a marker look the same.
 */
static int protect_private_file(struct wpt_look *l, uint64_t start, uint64_t end)
{
	struct wpt_page_region run;
	uint64_t at = start;
	int got, err = 0;

	wpt_scan_start(&l->t->scan, start, end, &match_private_all, true);
	while (!err && (got = wpt_scan_next(&l->t->scan, &run)) > 0) {
		err = set_cowed(l->t, at, run.start, false);
		at = run.end;
		if (err)
			break;
		if (run.categories & PAGE_IS_PRESENT)
			err = set_cowed(l->t, run.start, run.end, !(run.categories & PAGE_IS_FILE));
		else if (!(run.categories & PAGE_IS_SWAPPED))
			err = set_cowed(l->t, run.start, run.end, false);
		else if (run.categories & PAGE_IS_WRITTEN)
			err = set_cowed(l->t, run.start, run.end, true);
		/* Else it was protected before, and is swapped out or a marker: what was known of it holds. */
	}
	if (err || got < 0)
		return err ? err : got;
	return set_cowed(l->t, at, end, false);
}

int wpt_tracker_learn_cowed(struct wpt_tracker *t, struct wpt_scan *scan, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match populated = {
		.anyof = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.report = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_FILE,
	};
	struct wpt_page_region run;
	uint64_t at, run_end;
	int got, err = 0;

	wpt_scan_start(scan, start, end, &populated, false);
	while (!err && (got = wpt_scan_next(scan, &run)) > 0) {
		if ((run.categories & (PAGE_IS_PRESENT | PAGE_IS_FILE)) == PAGE_IS_PRESENT) {
			err = set_cowed(t, run.start, run.end, true);
		} else if (run.categories & PAGE_IS_PRESENT) {
			/* A page that was COWed a moment ago and is the file's now changed in between. */
			for (at = run.start; !err && (at = wpt_ledger_next_cowed(t->ledger, at, run.end, &run_end)) < run.end; at = run_end) {
				err = wpt_ledger_dirty(t->ledger, at, run_end);
				if (!err)
					err = set_cowed(t, at, run_end, false);
			}
		} else if (run.categories & PAGE_IS_WRITTEN) {
			err = set_cowed(t, run.start, run.end, true);
		} else {
			for (at = run.start; !err && (at = wpt_ledger_next_dirty(t->ledger, at, run.end, &run_end)) < run.end; at = run_end)
				err = set_cowed(t, at, run_end, true);
		}
	}
	return err ? err : got;
}

/*
 * A scan failed that may have protected pages and not told of them. What is there and not the file's is COWed; what is in swap may be, and is
 * read through the mapping, which is right for a marker too.
 */
static int doubt_cowed(struct wpt_look *l, const struct wpt_area *a, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match populated = {
		.anyof = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.report = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_FILE,
	};
	struct wpt_page_region run;
	int got = 0, err = 0;

	if (a->kind != WPT_KIND_FILE_PRIVATE || a->exact)
		return 0;
	wpt_scan_start_any(&l->t->scan, start, end, &populated);
	while (!err && (got = wpt_scan_next(&l->t->scan, &run)) > 0)
		if ((run.categories & (PAGE_IS_PRESENT | PAGE_IS_FILE)) != (PAGE_IS_PRESENT | PAGE_IS_FILE))
			err = set_cowed(l->t, run.start, run.end, true);
	return err ? err : got;
}

/* The first arm: what was protected may have been anything. */
static int protect_private_sparse(struct wpt_look *l, uint64_t start, uint64_t end)
{
	struct wpt_page_region run;
	int got, err = 0;

	wpt_scan_start(&l->t->scan, start, end, &wpt_match_private_sparse, true);
	while (!err && (got = wpt_scan_next(&l->t->scan, &run)) > 0)
		if (run.categories & PAGE_IS_SWAPPED)
			err = set_cowed(l->t, run.start, run.end, true);
	if (err || got < 0)
		return err ? err : got;
	return wpt_tracker_learn_cowed(l->t, &l->t->scan, start, end);
}

static int protect_markers(struct wpt_look *l, uint64_t start, uint64_t end)
{
	uint64_t at, slice = l->stopped ? end - start : ARM_SLICE;
	int err = 0;

	for (at = start; at < end && !err; at += slice)
		err = wpt_kern_protect(wpt_target_uffd(l->t->target), at, WPT_MIN(end, at + slice));
	return err;
}

/*
 * A hole that is punched where the target has neither page nor marker leaves no trace. Of files whose changes nobody reports (memfd, shared
 * anonymous memory, hugetlb) whatever holds data gets markers, which then are protected as if they were pages: page tables for the data,
 * not for the range. What is added to the file later is mapped by who writes it, or bypasses the mapping.
 */
static int lay_markers(struct wpt_look *l, const struct wpt_area *a, uint64_t start, uint64_t end)
{
	int fd = a->file < 0 ? -1 : wpt_vec_at(&l->t->files, struct wpt_file, a->file)->fd, err = 0;
	uint64_t at = start, to, stop;
	off_t data, hole;

	while (at < end && !err && fd >= 0) {
		data = lseek(fd, (off_t)(a->offset + (at - a->start)), SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			return 0;
		hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
		if (data >= 0)
			at = WPT_MAX(at, a->start + WPT_ALIGN_DOWN((uint64_t)data - a->offset, a->page_size));
		to = hole < 0 ? end : WPT_MIN(end, a->start + WPT_ALIGN_UP((uint64_t)hole - a->offset, a->page_size));
		for (; at < to && !err; at = stop) {
			stop = l->stopped ? to : WPT_MIN(to, at + WPT_MAX(ARM_SLICE, a->page_size));
			err = wpt_kern_unprotect(wpt_target_uffd(l->t->target), at, stop);
		}
	}
	return err;
}

/* Nothing is populated, wherever that is not asked for here. */
static int protect_exact(struct wpt_look *l, const struct wpt_area *a, uint64_t start, uint64_t end)
{
	struct wpt_page_region run;
	int got, err = 0;

	if (a->kind == WPT_KIND_SHMEM || a->kind == WPT_KIND_HUGETLB_SHARED)
		err = lay_markers(l, a, start, end);
	if (err)
		return err;
	wpt_scan_start(&l->t->scan, start, end, &wpt_match_written, true);
	while ((got = wpt_scan_next(&l->t->scan, &run)) > 0)
		;
	return got;
}

/*
 * Memory that mremap(2) puts next to registered memory may be merged with it, and then the kernel drops the registration of all of it, but leaves
 * the marks of protection in the pages that were there before. A write goes through, and the mark stays: registered once more, such a page would
 * never be found written. So what is marked when it is registered is unprotected first.
 */
static int drop_marks(struct wpt_look *l, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match marked = {
		.inverted = PAGE_IS_WRITTEN,
		.mask = PAGE_IS_WRITTEN,
		.anyof = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	};
	struct wpt_page_region run;
	int got, err = 0;

	wpt_scan_start(&l->t->scan, start, end, &marked, false);
	while (!err && (got = wpt_scan_next(&l->t->scan, &run)) > 0)
		err = wpt_kern_unprotect(wpt_target_uffd(l->t->target), run.start, run.end);
	return err ? err : got;
}

static int leave_untracked(struct wpt_area *a)
{
	a->untracked = true;
	a->armed = false;
	a->reason = WPT_REASON_UNTRACKED;
	return 0;
}

/* Registers and protects [start, end) of the area, which becomes unknown; or the area is skipped. */
static int arm_new(struct wpt_look *l, struct wpt_area *a, uint64_t start, uint64_t end)
{
	int err;

	err = wpt_tracker_unknown(l->t, start, end);
	if (err)
		return err;
	if (a->kind == WPT_KIND_REPORTED)
		return 0;
	/* Writes to huge pages that come and go meanwhile were missed (tried): those are never counted on. */
	if (is_sync(l) && a->page_size > WPT_PAGE)
		return leave_untracked(a);
	if (a->kind == WPT_KIND_ANON && !l->stopped)
		wpt_huge_learn(l->t, start, end);
	err = wpt_kern_register(wpt_target_uffd(l->t->target), start, end);
	if (err == -ESRCH || err == -WPT_E_GONE)
		return -WPT_E_GONE;
	if (err == 0)
		err = drop_marks(l, start, end);
	if (err == 0) {
		if (a->exact)
			err = protect_exact(l, a, start, end);
		else if (a->sparse)
			err = protect_private_sparse(l, start, end);
		else if (a->kind == WPT_KIND_FILE_PRIVATE)
			err = protect_private_file(l, start, end);
		else
			err = wpt_look_has_markers(a) ? protect_markers(l, start, end) : protect_present(l, start, end);
	}
	if (err == 0 || err == -ENOMEM)
		return err;
	if (err == -ESRCH)
		return -WPT_E_GONE;
	/* Mappings of ordinary files: the memory is there to be read, whatever the kernel can do about its writes. */
	if (is_sync(l) && err == -EINVAL)
		return leave_untracked(a);
	if (l->runs && err != -EBUSY)
		l->unsettled = true;
	area_skip(a, err == -EBUSY ? WPT_REASON_BUSY : WPT_REASON_UNSUPPORTED);
	return 0;
}

/* Whether the old plan's area already tracks the new one's memory, as far as mappings tell; the kernel's check decides. */
static bool same_memory(const struct wpt_area *o, const struct wpt_area *a)
{
	/* What was written while nobody tracked it could not be reported: the same range added again is another. */
	if (a->kind == WPT_KIND_REPORTED && o->range_id != a->range_id)
		return false;
	return o->armed && !o->skipped && o->kind == a->kind && o->exact == a->exact && o->file == a->file &&
	       (a->file < 0 || o->offset - o->start == a->offset - a->start);
}

/* While the target runs, nothing may be protected that was not seen as written; a protection leaves markers where nothing is, but not in anon. */
static void scan_fit(struct wpt_look *l, const struct wpt_area *a)
{
	l->t->scan.unit = a->page_size > WPT_PAGE ? a->page_size : 0;
	l->t->scan.bridge = l->stopped && (a->kind == WPT_KIND_ANON || a->kind == WPT_KIND_SHMEM) ? PROTECT_BRIDGE : 0;
}

/* As dense as it was, if it did not grow by much. */
static bool area_is_dense(const struct wpt_look *l, const struct wpt_area *a, size_t old_at)
{
	const struct wpt_area *o;
	uint64_t dense = 0;

	for (; old_at < l->old->areas.count; old_at++) {
		o = wpt_area_at(l->old, old_at);
		if (o->start >= a->end)
			break;
		if (o->dense && o->end > a->start && same_memory(o, a))
			dense += WPT_MIN(o->end, a->end) - WPT_MAX(o->start, a->start);
	}
	return dense >= (a->end - a->start) / 8 * 7;
}

static int area_look(struct wpt_look *l, struct wpt_area *a, size_t *old_at)
{
	const struct wpt_area *o;
	uint64_t at = a->start, stop;
	size_t i;
	int err = 0;

	while (*old_at < l->old->areas.count && wpt_area_at(l->old, *old_at)->end <= a->start)
		++*old_at;
	a->armed = true;
	scan_fit(l, a);
	a->dense = a->kind == WPT_KIND_ANON && !a->exact && area_is_dense(l, a, *old_at);
	a->told = a->dense && l->t->zap_reported && l->t->backend == WPT_BACKEND_ASYNC;
	for (i = *old_at; at < a->end && !err && !a->skipped; at = stop) {
		while (i < l->old->areas.count && wpt_area_at(l->old, i)->end <= at)
			i++;
		o = i < l->old->areas.count && wpt_area_at(l->old, i)->start < a->end ? wpt_area_at(l->old, i) : NULL;
		if (!o || !same_memory(o, a)) {
			stop = o ? WPT_MIN(o->end, a->end) : a->end;
			err = arm_new(l, a, at, stop);
		} else if (o->start > at) {
			stop = o->start;
			err = arm_new(l, a, at, stop);
		} else {
			stop = WPT_MIN(o->end, a->end);
			err = wpt_look_collect(l, a, at, stop);
			if (err == -ESRCH)
				return -WPT_E_GONE;
			if (err && err != -ENOMEM && err != -WPT_E_GONE)
				err = arm_new(l, a, at, stop);
		}
	}
	if (!err && !a->skipped)
		wpt_ledger_take(l->t->ledger, a->start, a->end);
	return err;
}

/* What of [start, end) the plan does not cover is forgotten, and listed if there is a list. */
static int forget_outside(struct wpt_tracker *t, const struct wpt_plan *plan, uint64_t start, uint64_t end, struct wpt_vec *list)
{
	const struct wpt_area *a;
	struct wpt_span *span;
	uint64_t at = start, stop;
	size_t low = 0, high = plan->areas.count, mid;

	while (low < high) {
		mid = low + (high - low) / 2;
		if (wpt_area_at(plan, mid)->end <= start)
			low = mid + 1;
		else
			high = mid;
	}
	for (; at < end; low++) {
		a = low < plan->areas.count ? wpt_area_at(plan, low) : NULL;
		if (a && a->skipped && a->start < end)
			continue;
		stop = a ? WPT_MIN(a->start, end) : end;
		if (at < stop) {
			wpt_ledger_forget(t->ledger, at, stop);
			span = list ? wpt_vec_push(list) : NULL;
			if (list && !span)
				return -ENOMEM;
			if (span)
				*span = (struct wpt_span){ at, stop };
		}
		at = a ? WPT_MAX(at, a->end) : end;
	}
	return 0;
}

/* What was covered at the last look and is not now. */
static int forget_uncovered(struct wpt_look *l)
{
	const struct wpt_area *o;
	size_t i;
	int err = 0;

	for (i = 0; i < l->old->areas.count && !err; i++) {
		o = wpt_area_at(l->old, i);
		if (!o->skipped)
			err = forget_outside(l->t, l->plan, o->start, o->end, &l->t->uncovered);
	}
	return err;
}

void wpt_tracker_forget_uncovered(struct wpt_tracker *t, bool all)
{
	const struct wpt_span *span;
	size_t i;

	if (all)
		forget_outside(t, t->plan, 0, UINT64_MAX, NULL);
	for (i = 0; i < t->uncovered.count; i++) {
		span = wpt_vec_at(&t->uncovered, struct wpt_span, i);
		forget_outside(t, t->plan, span->start, span->end, NULL);
	}
	wpt_vec_clear(&t->uncovered);
}

/* ---- the look ---- */

static void look_publish(struct wpt_look *l)
{
	struct wpt_tracker *t = l->t;

	/* At most one plan waits to be freed: whoever looks reaps before, and after the target runs again. */
	t->retired = t->plan;
	rcu_assign_pointer(t->plan, l->plan);
}

/* What an earlier look took from the kernel and could not note. */
static int look_again(struct wpt_look *l)
{
	const struct wpt_area *a;
	int err = wpt_tracker_all_unknown(l->t);
	size_t i;

	for (i = 0; i < l->plan->areas.count && !err; i++) {
		a = wpt_area_at(l->plan, i);
		if (!a->skipped)
			err = doubt_cowed(l, a, a->start, a->end);
	}
	l->t->lost = err != 0;
	return err;
}

static int look_once(struct wpt_look *l)
{
	struct wpt_tracker *t = l->t;
	size_t i, old_at = 0;
	int err;

	l->unsettled = false;
	l->old = t->plan;
	err = wpt_plan_open(&l->plan);
	if (err)
		return err;
	t->scan.slice = l->stopped ? 0 : SCAN_SLICE;
	wpt_vec_clear(&t->unmapped);
	l->scan = &t->scan;
	l->unmapped = &t->unmapped;
	err = wpt_target_maps(t->target, &t->maps);
	if (!err)
		err = plan_build(l);
	if (!err)
		err = wpt_look_pinned(l);
	wpt_look_times(l);
	for (i = 0; i < l->plan->areas.count && !err; i++)
		if (!wpt_area_at(l->plan, i)->skipped) {
			err = area_look(l, wpt_area_at(l->plan, i), &old_at);
			t->lost |= err != 0;
		}
	/* After the scans: what is reported until now belongs to this look. */
	if (!err)
		err = wpt_look_bypasses(l);
	if (!err)
		err = wpt_target_alive(t->target);
	if (!err)
		err = forget_uncovered(l);
	if (err) {
		/* Areas of the failed plan may be registered; the next look's scan finds that out by itself. */
		wpt_plan_close(l->plan);
		return err;
	}
	wpt_look_prune_files(l);
	look_publish(l);
	t->looked = true;
	if (t->lost)
		err = look_again(l);
	return err;
}

int wpt_tracker_list(struct wpt_tracker *t)
{
	struct wpt_look l = { .t = t, .old = t->plan };
	int err;

	wpt_tracker_reap(t);
	err = wpt_plan_open(&l.plan);
	if (err)
		return err;
	err = wpt_target_maps(t->target, &t->maps);
	if (!err)
		err = plan_build(&l);
	wpt_look_times(&l);
	if (!err)
		err = wpt_look_bypasses(&l);
	if (err)
		wpt_plan_close(l.plan);
	else
		look_publish(&l);
	return err;
}

void wpt_tracker_disarm(struct wpt_tracker *t, uint64_t start, uint64_t end)
{
	const struct wpt_area *a;
	uint64_t at, stop, end_of_slice;
	size_t i;

	for (i = 0; i < t->plan->areas.count; i++) {
		a = wpt_area_at(t->plan, i);
		if (!a->armed || a->kind == WPT_KIND_REPORTED)
			continue;
		stop = WPT_MIN(end, a->end);
		for (at = WPT_MAX(start, a->start); at < stop; at = end_of_slice) {
			/* Cut where no huge page is, which the kernel would split. */
			end_of_slice = WPT_MIN(stop, WPT_ALIGN_DOWN(at, DISARM_SLICE) + DISARM_SLICE);
			wpt_kern_unregister(wpt_target_uffd(t->target), at, end_of_slice);
		}
	}
}

int wpt_tracker_look(struct wpt_tracker *t, uint32_t flags)
{
	bool stopped = flags & WPT_LOOK_STOPPED;
	struct wpt_look l = { .t = t, .stopped = stopped, .runs = !stopped || flags & WPT_LOOK_RUNS, .soon = flags & WPT_LOOK_SOON };
	int attempt, err;

	for (attempt = 0; attempt < 3; attempt++) {
		if (l.runs)
			wpt_tracker_reap(t);
		err = look_once(&l);
		if (err || !l.unsettled)
			return err;
	}
	return 0;
}
