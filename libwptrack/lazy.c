/* SPDX-License-Identifier: MIT */
/* Lazy restore: the object. What its threads do is in lazy_serve.c. */
#include "lazy.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kern.h"
#include "sys.h"

#define DEFAULT_THREADS 2u
#define FILL_BYTES_MIN ((uint64_t)1 << 20)
#define SPANS_MAX 1024u
#define ENTRIES 4096u
#define BIG_PAGE ((uint64_t)64 << 20)

/* ---- opening and closing ---- */

static int options_check(struct wpt_lazy_options *o, const struct wpt_lazy_options *from)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	int err = wpt_options_copy(o, sizeof(*o), from, sizeof(*o));

	if (err)
		return err;
	if (o->nr_threads > WPT_LAZY_THREADS_MAX || o->nr_fill_threads > WPT_LAZY_THREADS_MAX || o->pid < 0 || o->pid == getpid() ||
	    (o->flags & ~(uint32_t)WPT_LAZY_COLLAPSE))
		return -EINVAL;
	if (!o->nr_threads)
		o->nr_threads = DEFAULT_THREADS;
	if (!o->nr_fill_threads)
		o->nr_fill_threads = cpus < 1 ? 1 : (uint32_t)WPT_MIN(cpus, 8L);
	return 0;
}

static void conds_init(struct wpt_lazy *l)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->work, NULL);
	pthread_cond_init(&l->no_copies, NULL);
	pthread_cond_init(&l->copies_allowed, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&l->finished, &attr);
	pthread_condattr_destroy(&attr);
}

int wpt_lazy_open(struct wpt_lazy **out, struct wpt_chain *c, const struct wpt_lazy_options *options)
{
	struct wpt_lazy_options o;
	struct wpt_lazy *l;
	int err;

	err = options_check(&o, options);
	if (err)
		return err;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	conds_init(l);
	l->chain = c;
	l->o = o;
	l->log = (struct wpt_log){ o.log, o.log_arg };
	l->pieces.elem_size = sizeof(struct wpt_lazy_piece);
	l->spans.elem_size = sizeof(struct wpt_lazy_span);
	l->queue.elem_size = sizeof(uint64_t);
	l->buf_bytes = FILL_BYTES_MIN;
	l->end = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->ready = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->end < 0 || l->ready < 0)
		err = -errno;
	else if (o.pid)
		err = wpt_target_attach(&l->target, o.pid, o.stop_timeout_ms, WPT_UFFD_MISSING, &l->log);
	else
		err = wpt_target_self(&l->target, WPT_UFFD_MISSING, &l->log);
	if (!err) {
		l->uffd = wpt_target_uffd(l->target);
		err = l->uffd < 0 ? l->uffd : 0;
	}
	if (err) {
		wpt_lazy_close(l);
		return err;
	}
	*out = l;
	return 0;
}

/* Of [start, end) what is still registered: the target may have put something else in its place. */
static int forbid(struct wpt_lazy *l, uint64_t start, uint64_t end)
{
	uint64_t at, first;

	for (at = start; at < end; at += WPT_PAGE) {
		for (first = at; at < end && wpt_kern_is_registered(l->uffd, at); at += WPT_PAGE)
			;
		if (first < at && mprotect((void *)(uintptr_t)first, at - first, PROT_NONE))
			return -errno;
	}
	return 0;
}

/*
 * What is missing would be zero as soon as the userfaultfd is closed. Where that takes more mappings than there may be, all of a piece goes. false:
 * it can't be helped, and the userfaultfd must stay open.
 */
static bool forbid_missing(struct wpt_lazy *l)
{
	struct wpt_lazy_piece *p;
	uint64_t u, first;
	bool good = true;
	size_t i;
	int err;

	for (i = 0; i < l->pieces.count; i++) {
		p = wpt_vec_at(&l->pieces, struct wpt_lazy_piece, i);
		for (u = 0, err = 0; u < p->nr_units && !err; u++) {
			for (first = u; u < p->nr_units && p->state[u] != WPT_UNIT_DONE; u++)
				;
			if (first < u)
				err = forbid(l, p->addr + first * p->unit, p->addr + WPT_MIN(u * p->unit, p->len));
		}
		if (err)
			good &= !mprotect((void *)(uintptr_t)p->addr, p->len, PROT_NONE);
	}
	return good;
}

static void end_threads(struct wpt_lazy *l)
{
	uint64_t one = 1;
	uint32_t i;

	pthread_mutex_lock(&l->lock);
	l->over = true;
	pthread_cond_broadcast(&l->work);
	pthread_mutex_unlock(&l->lock);
	wpt_sys(SYS_write, l->end, &one, sizeof(one));
	for (i = 0; i < l->nr_threads; i++)
		pthread_join(l->threads[i], NULL);
}

static void piece_free(struct wpt_lazy_piece *p)
{
	free(p->state);
	free(p->gone);
	wpt_fd_close(&p->fd);
}

void wpt_lazy_close(struct wpt_lazy *l)
{
	bool good = true;
	size_t i;

	if (!l)
		return;
	if (l->target && !wpt_target_check(l->target)) {
		end_threads(l);
		if (l->started && !l->done && wpt_target_is_self(l->target))
			good = forbid_missing(l);
		pthread_cond_destroy(&l->work);
		pthread_cond_destroy(&l->no_copies);
		pthread_cond_destroy(&l->copies_allowed);
		pthread_cond_destroy(&l->finished);
		pthread_mutex_destroy(&l->lock);
	}
	if (good)
		wpt_target_close(l->target);
	wpt_fd_close(&l->end);
	wpt_fd_close(&l->ready);
	for (i = 0; i < l->pieces.count; i++)
		piece_free(wpt_vec_at(&l->pieces, struct wpt_lazy_piece, i));
	wpt_vec_free(&l->pieces);
	wpt_vec_free(&l->spans);
	wpt_vec_free(&l->queue);
	wpt_vm_free(l->zeros, l->zeros_bytes);
	free(l);
}

/* ---- ranges ---- */

/* Units with data are missing; the others are zero, and there already. */
static int mark_missing(struct wpt_lazy *l, struct wpt_lazy_piece *p, uint64_t *nr_unreadable)
{
	struct wpt_walker *w = NULL;
	struct wpt_view_run run;
	uint64_t u;
	int rc;

	rc = wpt_walker_open(&w, l->chain, p->start, p->start + p->len);
	while (!rc && (rc = wpt_walker_next(w, &run)) > 0) {
		rc = 0;
		if (run.view == WPT_VIEW_UNREADABLE)
			*nr_unreadable += (run.end - run.start) / WPT_PAGE;
		if (run.view == WPT_VIEW_DATA)
			for (u = (run.start - p->start) / p->unit; u <= (run.end - 1 - p->start) / p->unit; u++)
				p->state[u] = WPT_UNIT_MISSING;
	}
	wpt_walker_close(w);
	return rc;
}

/* The first span of units that are missing from *unit on, with gaps of less than `gap` units in it. false: there is none. */
static bool next_span(const struct wpt_lazy_piece *p, uint64_t gap, uint64_t *unit, uint64_t *first)
{
	uint64_t u = *unit, empty = 0;

	while (u < p->nr_units && p->state[u] == WPT_UNIT_DONE)
		u++;
	*first = u;
	for (; u < p->nr_units && empty < gap; u++)
		empty = p->state[u] == WPT_UNIT_DONE ? empty + 1 : 0;
	*unit = u - empty;
	return *first < p->nr_units;
}

/*
 * Of what is zero for long nothing needs to be told. Every span is a mapping of its own to the kernel, so there must not be too many. Those of shared
 * memory begin and end where a huge page of its file does: one that the kernel put into a gap must not reach into them.
 */
static uint64_t choose_gap(const struct wpt_lazy_piece *p)
{
	uint64_t gap = WPT_MAX(2 * WPT_LAZY_EXTENT / p->unit, UINT64_C(1)), unit, first;
	uint32_t nr = SPANS_MAX + 1;

	for (; nr > SPANS_MAX; gap *= 2)
		for (unit = 0, nr = 0; nr <= SPANS_MAX && next_span(p, gap, &unit, &first);)
			nr++;
	return gap / 2;
}

static void widen(const struct wpt_lazy_piece *p, struct wpt_lazy_span *s)
{
	uint64_t before = (p->offset + (s->start - p->addr)) & (WPT_LAZY_EXTENT - 1);
	uint64_t behind = (p->offset + (s->end - p->addr)) & (WPT_LAZY_EXTENT - 1);

	s->start -= WPT_MIN(before, s->start - p->addr);
	if (behind)
		s->end += WPT_MIN(WPT_LAZY_EXTENT - behind, p->addr + p->len - s->end);
}

static int register_piece(struct wpt_lazy *l, const struct wpt_lazy_piece *p)
{
	uint64_t gap = choose_gap(p), unit = 0, first;
	struct wpt_lazy_span *s;
	int err = 0;

	while (!err && next_span(p, gap, &unit, &first)) {
		s = wpt_vec_push(&l->spans);
		if (!s)
			return -ENOMEM;
		*s = (struct wpt_lazy_span){ p->addr + first * p->unit, p->addr + WPT_MIN(unit * p->unit, p->len) };
		if (p->shared && !p->hugetlb)
			widen(p, s);
		err = wpt_kern_register_missing(l->uffd, s->start, s->end);
		if (err)
			l->spans.count--;
	}
	return err == -EINVAL || err == -EPERM ? -WPT_E_UNSUPPORTED : err;
}

static void unregister_from(struct wpt_lazy *l, size_t nr)
{
	const struct wpt_lazy_span *s;

	for (; l->spans.count > nr; l->spans.count--) {
		s = wpt_vec_at(&l->spans, struct wpt_lazy_span, l->spans.count - 1);
		wpt_kern_unregister(l->uffd, s->start, s->end);
	}
}

/* Anonymous memory and shared memory: of what is private to a file the file's pages are there already. */
static bool is_fit(const struct wpt_map *map, const char *name)
{
	return map->shared || !map->inode || (map->hugetlb && strncmp(name, "/anon_hugepage", 14) == 0);
}

static int zeros_need(struct wpt_lazy *l, uint64_t bytes)
{
	if (bytes == WPT_PAGE || bytes <= l->zeros_bytes)
		return 0;
	wpt_vm_free(l->zeros, l->zeros_bytes);
	l->zeros = wpt_vm_alloc(bytes);
	l->zeros_bytes = l->zeros ? bytes : 0;
	return l->zeros ? 0 : -ENOMEM;
}

/* [from, end) of the target, which is of one mapping. */
static int add_piece(struct wpt_lazy *l, const struct wpt_maps *maps, const struct wpt_map *map, uint64_t start, uint64_t from, uint64_t end,
		     uint64_t *nr_unreadable)
{
	struct wpt_lazy_piece *p;
	int err = zeros_need(l, map->page_size);

	if (err || !is_fit(map, wpt_map_name(maps, map)))
		return err ? err : -WPT_E_UNSUPPORTED;
	if ((from | end | start) & (map->page_size - 1))
		return -EINVAL;
	p = wpt_vec_push(&l->pieces);
	if (!p)
		return -ENOMEM;
	p->fd = -1;
	p->start = start;
	p->addr = from;
	p->len = end - from;
	p->page_size = map->page_size;
	p->unit = WPT_MAX(WPT_LAZY_UNIT, (uint64_t)map->page_size);
	p->nr_units = (p->len + p->unit - 1) / p->unit;
	p->state = calloc(p->nr_units, 1);
	p->gone = calloc(p->len / WPT_PAGE / 64 + 1, sizeof(*p->gone));
	if (!p->state || !p->gone)
		return -ENOMEM;
	p->shared = map->shared;
	p->hugetlb = map->hugetlb;
	p->offset = map->offset + (from - map->start);
	l->buf_bytes = WPT_MAX(l->buf_bytes, p->unit);
	/* Before it is registered, which makes other mappings of it. */
	if (p->shared) {
		p->fd = wpt_target_open_file(l->target, map, maps);
		err = p->fd < 0 ? -EACCES : 0;
	}
	if (!err)
		err = mark_missing(l, p, nr_unreadable);
	return err ? err : register_piece(l, p);
}

static bool overlaps(const struct wpt_lazy *l, uint64_t addr, uint64_t end)
{
	const struct wpt_lazy_piece *p;
	size_t i;

	for (i = 0; i < l->pieces.count; i++) {
		p = wpt_vec_at(&l->pieces, struct wpt_lazy_piece, i);
		if (p->addr < end && addr < p->addr + p->len)
			return true;
	}
	return false;
}

static int add_maps(struct wpt_lazy *l, const struct wpt_maps *maps, uint64_t start, uint64_t end, uint64_t addr, uint64_t *nr_unreadable)
{
	uint64_t at = addr, last = addr + (end - start), to;
	const struct wpt_map *map;
	size_t i;
	int err = 0;

	for (i = 0; i < maps->maps.count && at < last && !err; i++) {
		map = wpt_map_at(maps, i);
		if (map->end <= at)
			continue;
		if (map->start > at)
			break;
		to = WPT_MIN(map->end, last);
		err = add_piece(l, maps, map, start + (at - addr), at, to, nr_unreadable);
		at = to;
	}
	return err || at == last ? err : -EFAULT;
}

int wpt_lazy_add(struct wpt_lazy *l, uint64_t start, uint64_t end, uint64_t addr, uint64_t *nr_unreadable)
{
	struct wpt_maps maps = { .raw = 0 };
	size_t nr_pieces = l->pieces.count, nr_spans = l->spans.count;
	uint64_t unreadable = 0, last;
	int err = wpt_target_check(l->target);

	if (err)
		return err;
	if (l->started)
		return -EBUSY;
	if (start >= end || wpt_add_overflows(addr, end - start, &last) || ((start | end | addr) & (WPT_PAGE - 1)) || overlaps(l, addr, last))
		return -EINVAL;
	err = wpt_target_maps(l->target, &maps);
	if (!err)
		err = add_maps(l, &maps, start, end, addr, &unreadable);
	wpt_maps_free(&maps);
	if (err) {
		unregister_from(l, nr_spans);
		for (; l->pieces.count > nr_pieces; l->pieces.count--)
			piece_free(wpt_vec_at(&l->pieces, struct wpt_lazy_piece, l->pieces.count - 1));
	} else if (nr_unreadable) {
		*nr_unreadable = unreadable;
	}
	return err;
}

/* ---- running ---- */

/* Whether a page is there, mapped or swapped out; also where the chain has zeros. */
static int check_mapped(struct wpt_lazy *l, const struct wpt_lazy_piece *p, uint64_t *entries)
{
	uint64_t at = p->addr, end = p->addr + p->len;
	ssize_t got, i;

	while (at < end) {
		got = wpt_kern_entries(wpt_target_pagemap(l->target), at, entries, (size_t)WPT_MIN((end - at) / WPT_PAGE, (uint64_t)ENTRIES));
		if (got <= 0)
			return got ? (int)got : -WPT_E_GONE;
		for (i = 0; i < got; i++)
			if (entries[i] & (WPT_ENTRY_PRESENT | WPT_ENTRY_SWAPPED))
				return -EEXIST;
		at += (uint64_t)got * WPT_PAGE;
	}
	return 0;
}

/*
 * A page of shared memory may be there and not be mapped. SEEK_DATA does not tell of pages that fallocate() made and nobody wrote to, which
 * cachestat() of Linux 6.5 does; and of huge pages only the file says how many there are.
 */
static int check_file(const struct wpt_lazy_piece *p)
{
	struct wpt_cachestat_range range = { p->offset, p->len };
	struct wpt_cachestat cached;
	struct stat st;
	off_t data;

	if (p->fd < 0)
		return 0;
	if (fstat(p->fd, &st))
		return -errno;
	if (!st.st_blocks)
		return 0;
	if (p->hugetlb)
		return -EEXIST;
	data = lseek(p->fd, (off_t)p->offset, SEEK_DATA);
	if (data >= 0 && (uint64_t)data < p->offset + p->len)
		return -EEXIST;
	if (!wpt_sys(SYS_cachestat, p->fd, &range, &cached, 0) && (cached.cache || cached.evicted))
		return -EEXIST;
	return 0;
}

static int check_empty(struct wpt_lazy *l)
{
	uint64_t *entries = wpt_vm_alloc(ENTRIES * sizeof(*entries));
	const struct wpt_lazy_piece *p;
	int err = entries ? 0 : -ENOMEM;
	size_t i;

	for (i = 0; i < l->pieces.count && !err; i++) {
		p = wpt_vec_at(&l->pieces, struct wpt_lazy_piece, i);
		err = check_mapped(l, p, entries);
		if (!err)
			err = check_file(p);
	}
	wpt_vm_free(entries, ENTRIES * sizeof(*entries));
	return err;
}

static int start_threads(struct wpt_lazy *l, void *(*run)(void *arg), uint32_t nr)
{
	sigset_t all, before;
	int err = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (; nr && !err; nr--) {
		err = -pthread_create(&l->threads[l->nr_threads], NULL, run, l);
		l->nr_threads += !err;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return err;
}

static void count_missing(struct wpt_lazy *l)
{
	const struct wpt_lazy_piece *p;
	uint64_t u;
	size_t i;

	for (i = 0; i < l->pieces.count; i++) {
		p = wpt_vec_at(&l->pieces, struct wpt_lazy_piece, i);
		for (u = 0; u < p->nr_units; u++)
			if (p->state[u] == WPT_UNIT_MISSING)
				l->left += WPT_MIN((u + 1) * p->unit, p->len) - u * p->unit;
	}
	l->stats.bytes_data = l->left;
}

int wpt_lazy_start(struct wpt_lazy *l)
{
	int err = wpt_target_check(l->target);

	if (err || l->started)
		return err ? err : -EBUSY;
	err = check_empty(l);
	if (err)
		return err;
	count_missing(l);
	l->started = true;
	/* Each has a buffer of that size. */
	if (l->buf_bytes > BIG_PAGE)
		l->o.nr_threads = l->o.nr_fill_threads = 1;
	if (!l->left) {
		wpt_lazy_finish(l);
		return 0;
	}
	err = start_threads(l, wpt_lazy_run_reader, 1);
	return err ? err : start_threads(l, wpt_lazy_run_server, l->o.nr_threads);
}

int wpt_lazy_fill(struct wpt_lazy *l)
{
	int err = wpt_target_check(l->target);

	if (err || !l->started || l->filling)
		return err ? err : l->started ? -EBUSY : -EINVAL;
	l->filling = true;
	return start_threads(l, wpt_lazy_run_filler, l->o.nr_fill_threads);
}

static int unregister_pieces(struct wpt_lazy *l, uint64_t start, uint64_t end)
{
	struct wpt_maps maps = { .raw = 0 };
	const struct wpt_map *map;
	int err, one;
	size_t i;

	err = wpt_target_maps(l->target, &maps);
	for (i = 0; i < maps.maps.count && !err; i++) {
		map = wpt_map_at(&maps, i);
		if (map->start >= end || map->end <= start)
			continue;
		one = wpt_kern_unregister(l->uffd, WPT_MAX(start, map->start), WPT_MIN(end, map->end));
		if (one && one != -EINVAL)
			err = one;
	}
	wpt_maps_free(&maps);
	return err;
}

int wpt_lazy_unregister(struct wpt_lazy *l, uint64_t start, uint64_t end)
{
	int err = wpt_kern_unregister(l->uffd, start, end);

	/* In a part of it is something by now that can't be registered: that is left alone. */
	if (err)
		err = unregister_pieces(l, start, end);
	/* The kernel wakes who waits before nobody can begin to wait any more: somebody may have begun in between (seen on Linux 6.18). */
	wpt_kern_wake(l->uffd, start, end);
	return err;
}

void wpt_lazy_finish(struct wpt_lazy *l)
{
	const struct wpt_lazy_span *s;
	uint64_t one = 1;
	int err = 0, got;
	size_t i;

	for (i = 0; i < l->spans.count; i++) {
		s = wpt_vec_at(&l->spans, struct wpt_lazy_span, i);
		got = wpt_lazy_unregister(l, s->start, s->end);
		err = err ? err : got;
	}
	pthread_mutex_lock(&l->lock);
	l->done = !err;
	l->over = true;
	l->err = l->err ? l->err : err;
	l->failing_since = 0;
	wpt_sys(SYS_write, l->ready, &one, sizeof(one));
	wpt_sys(SYS_write, l->end, &one, sizeof(one));
	pthread_cond_broadcast(&l->work);
	pthread_cond_broadcast(&l->finished);
	pthread_mutex_unlock(&l->lock);
}

/* ---- asking ---- */

int wpt_lazy_wait(struct wpt_lazy *l, int timeout_ms)
{
	struct timespec until;
	int err = wpt_target_check(l->target), timed_out = 0;

	if (err || !l->started)
		return err ? err : -EINVAL;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += timeout_ms % 1000 * 1000000L;
	if (until.tv_nsec >= 1000000000L) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000L;
	}
	pthread_mutex_lock(&l->lock);
	while (!l->done && !l->err && !timed_out) {
		if (timeout_ms < 0)
			pthread_cond_wait(&l->finished, &l->lock);
		else
			timed_out = pthread_cond_timedwait(&l->finished, &l->lock, &until);
	}
	err = l->done ? 0 : l->err ? l->err : -ETIMEDOUT;
	pthread_mutex_unlock(&l->lock);
	return err;
}

int wpt_lazy_fd(struct wpt_lazy *l)
{
	return l->ready;
}

/* 0 only for what never was. */
static uint64_t age(uint64_t now, uint64_t since)
{
	return since ? now - since + 1 : 0;
}

int wpt_lazy_stats(struct wpt_lazy *l, struct wpt_lazy_stats *stats)
{
	struct wpt_lazy_stats found;
	int err = wpt_target_check(l->target);
	uint64_t now;
	uint32_t i;

	if (err)
		return err;
	pthread_mutex_lock(&l->lock);
	now = wpt_now_ns();
	found = l->stats;
	found.size = sizeof(found);
	found.bytes_left = l->left;
	found.failing_ns = age(now, l->failing_since);
	found.recovered_ns = age(now, l->recovered);
	for (i = 0; i < l->nr_busy; i++)
		found.reading_ns = WPT_MAX(found.reading_ns, age(now, l->busy[i]));
	pthread_mutex_unlock(&l->lock);
	return wpt_info_copy(stats, &found, sizeof(found), sizeof(found));
}
