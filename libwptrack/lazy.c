/* SPDX-License-Identifier: MIT */
/* Lazy restore: the object. What its threads do is in lazy_serve.c. */
#include "lazy.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kern.h"
#include "sys.h"

#define DEFAULT_THREADS 2u
#define FILL_BYTES_MIN ((uint64_t)1 << 20)
#define SPANS_MAX 1024u
#define ENTRIES 4096u

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

/* What is missing would be zero as soon as the userfaultfd is closed. */
static void forbid_missing(struct wpt_lazy *l)
{
	struct wpt_lazy_piece *p;
	uint64_t u, first;
	size_t i;

	for (i = 0; i < l->pieces.count; i++) {
		p = wpt_vec_at(&l->pieces, struct wpt_lazy_piece, i);
		for (u = 0; u < p->nr_units; u++) {
			for (first = u; u < p->nr_units && p->state[u] != WPT_UNIT_DONE; u++)
				;
			if (first < u)
				mprotect((void *)(uintptr_t)(p->addr + first * p->unit), WPT_MIN(u * p->unit, p->len) - first * p->unit, PROT_NONE);
		}
	}
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
	size_t i;

	if (!l)
		return;
	if (l->target && !wpt_target_check(l->target)) {
		end_threads(l);
		if (wpt_target_is_self(l->target) && !l->done)
			forbid_missing(l);
		pthread_cond_destroy(&l->work);
		pthread_cond_destroy(&l->no_copies);
		pthread_cond_destroy(&l->copies_allowed);
		pthread_cond_destroy(&l->finished);
		pthread_mutex_destroy(&l->lock);
	}
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

/* Of what is zero for long nothing needs to be told. Every span is a mapping of its own to the kernel, so there must not be too many. */
static uint64_t choose_gap(const struct wpt_lazy_piece *p)
{
	uint64_t gap = WPT_MAX(WPT_LAZY_EXTENT / p->unit, UINT64_C(1)), unit, first;
	uint32_t nr = SPANS_MAX + 1;

	for (; nr > SPANS_MAX; gap *= 2)
		for (unit = 0, nr = 0; nr <= SPANS_MAX && next_span(p, gap, &unit, &first);)
			nr++;
	return gap / 2;
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
	l->buf_bytes = WPT_MAX(l->buf_bytes, p->unit);
	err = mark_missing(l, p, nr_unreadable);
	if (!err)
		err = register_piece(l, p);
	if (!err && map->shared && map->inode && !map->hugetlb) {
		p->fd = wpt_target_open_file(l->target, map, maps);
		p->offset = map->offset + (from - map->start);
	}
	return err;
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

/* Whether a page is there in a span, mapped or swapped out. */
static int check_mapped(struct wpt_lazy *l, const struct wpt_lazy_span *s, uint64_t *entries)
{
	uint64_t at = s->start, page = (uint64_t)sysconf(_SC_PAGESIZE);
	ssize_t got, i;

	while (at < s->end) {
		got = wpt_kern_entries(wpt_target_pagemap(l->target), at, entries, WPT_MIN((s->end - at) / page, (uint64_t)ENTRIES));
		if (got <= 0)
			return got ? (int)got : -WPT_E_GONE;
		for (i = 0; i < got; i++)
			if (entries[i] & (WPT_ENTRY_PRESENT | WPT_ENTRY_SWAPPED))
				return -EEXIST;
		at += (uint64_t)got * page;
	}
	return 0;
}

/* A page of shared memory may be there and not be mapped. */
static int check_file(struct wpt_lazy_piece *p)
{
	off_t data = p->fd >= 0 ? lseek(p->fd, (off_t)p->offset, SEEK_DATA) : -1;
	bool empty = data < 0 || (uint64_t)data >= p->offset + p->len;

	wpt_fd_close(&p->fd);
	return empty ? 0 : -EEXIST;
}

static int check_empty(struct wpt_lazy *l)
{
	uint64_t *entries = wpt_vm_alloc(ENTRIES * sizeof(*entries));
	int err = entries ? 0 : -ENOMEM;
	size_t i;

	for (i = 0; i < l->spans.count && !err; i++)
		err = check_mapped(l, wpt_vec_at(&l->spans, struct wpt_lazy_span, i), entries);
	for (i = 0; i < l->pieces.count && !err; i++)
		err = check_file(wpt_vec_at(&l->pieces, struct wpt_lazy_piece, i));
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

void wpt_lazy_finish(struct wpt_lazy *l)
{
	const struct wpt_lazy_span *s;
	uint64_t one = 1;
	size_t i;

	for (i = 0; i < l->spans.count; i++) {
		s = wpt_vec_at(&l->spans, struct wpt_lazy_span, i);
		wpt_kern_unregister(l->uffd, s->start, s->end);
	}
	pthread_mutex_lock(&l->lock);
	l->done = l->over = true;
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

int wpt_lazy_stats(struct wpt_lazy *l, struct wpt_lazy_stats *stats)
{
	struct wpt_lazy_stats found;

	pthread_mutex_lock(&l->lock);
	found = l->stats;
	found.size = sizeof(found);
	found.bytes_left = l->left;
	found.failing_ns = l->failing_since ? wpt_now_ns() - l->failing_since : 0;
	pthread_mutex_unlock(&l->lock);
	return wpt_info_copy(stats, &found, sizeof(found), sizeof(found));
}
