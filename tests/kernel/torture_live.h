/* SPDX-License-Identifier: MIT */
/*
 * Oracles for what is looked at while writers never stop: fuzzy links, and a replica kept by wpt_tracker_scan() alone.
 */
#ifndef TORTURE_LIVE_H
#define TORTURE_LIVE_H

#include "torture_run.h"

/* ---- fuzzy links ------------------------------------------------------------------------------------------------- */

#define STAMP_PAGES 256u
#define STAMP_HOT 2u
#define STAMP_AREAS 4u
#define STAMP_THREADS 2u

/*
 * Page p holds one number in all its words; it goes up by one with each writing of the page. A writing goes through the words in an order
 * of its own: so what a page holds at one instant can be told from a mixture that a copy made of two.
 */
struct stamps {
	_Atomic uint64_t started[STAMP_AREAS][STAMP_PAGES], finished[STAMP_AREAS][STAMP_PAGES];
	uint64_t *mem[STAMP_AREAS];
	_Atomic int stop, round;
	uint64_t seed;
};

struct stamper {
	struct stamps *st;
	unsigned id;
	pthread_t thread;
};

static unsigned stamp_word(unsigned i)
{
	return i * 181 % 512;
}

/* Whether the page is one instant's, between the writings of `low` and `high`: some number, and the one before where it is not written yet. */
static bool is_instant(const uint64_t *m, uint64_t low, uint64_t high)
{
	uint64_t v = m[stamp_word(0)], before = v;

	for (unsigned i = 1; i < 512; i++) {
		uint64_t x = m[stamp_word(i)];

		if (x != before && (x != v - 1 || before != v))
			return false;
		before = x;
	}
	return before >= low && v <= high;
}

static void stamp(struct stamps *st, unsigned a, unsigned p)
{
	uint64_t v = atomic_load(&st->started[a][p]) + 1;
	volatile uint64_t *m = st->mem[a] + (size_t)p * 512;

	atomic_store(&st->started[a][p], v);
	for (unsigned i = 0; i < 512; i++)
		m[stamp_word(i)] = v;
	atomic_store(&st->finished[a][p], v);
}

/* Hot pages always, others now and then; a page belongs to one thread. Half of all pages rest between two links. */
static void *stamper_main(void *arg)
{
	struct stamper *s = arg;
	struct stamps *st = s->st;
	uint64_t r = st->seed + s->id;

	while (!atomic_load(&st->stop)) {
		unsigned a = (unsigned)rng_below(&r, STAMP_AREAS), quarter = (unsigned)atomic_load(&st->round) % 4 * STAMP_PAGES / 4;
		uint64_t p = rng_below(&r, 10) ? rng_below(&r, STAMP_HOT) : quarter + rng_below(&r, STAMP_PAGES / 4);

		stamp(st, a, (unsigned)p / STAMP_THREADS * STAMP_THREADS + s->id);
	}
	return NULL;
}

static int stamps_map(struct stamps *st, int *fds)
{
	const size_t bytes = STAMP_PAGES * TP;

	fds[0] = -1;
	fds[1] = memfd_create("torture-stamps", MFD_CLOEXEC);
	fds[2] = -1;
	fds[3] = memfd_create("torture-stamps-private", MFD_CLOEXEC);
	for (unsigned a = 0; a < STAMP_AREAS; a++) {
		void *at = (void *)(SLOT_BASE + (20 + a) * SLOT_STRIDE);
		int flags = MAP_FIXED_NOREPLACE | (a == 1 ? MAP_SHARED : MAP_PRIVATE) | (fds[a] < 0 ? MAP_ANONYMOUS : 0);

		if (fds[a] >= 0 && ftruncate(fds[a], (off_t)bytes))
			return -errno;
		if (mmap(at, bytes, PROT_READ | PROT_WRITE, flags, fds[a], 0) == MAP_FAILED)
			return -errno;
		if (a == 2)
			madvise(at, bytes, MADV_HUGEPAGE);
		st->mem[a] = at;
	}
	return 0;
}

/* The image of an area against what the pages may have held between `before` and now. */
static int stamps_check(struct stamps *st, unsigned a, const uint64_t *image, const uint64_t *before, unsigned link, uint64_t *mixed)
{
	for (unsigned p = 0; p < STAMP_PAGES; p++) {
		const uint64_t *m = image + (size_t)p * 512;
		uint64_t low = before[p], high = atomic_load(&st->started[a][p]);
		bool in_bounds = true;

		if (is_instant(m, low, high))
			continue;
		for (unsigned i = 0; i < 512; i++)
			in_bounds = in_bounds && m[i] >= low && m[i] <= high;
		if (in_bounds) { /* a mixture: there must be a flag for it */
			(*mixed)++;
			continue;
		}
		printf("# fuzzy: WRONG PAGE: area %u link %u page %u: holds %" PRIu64 ", in the target it was %" PRIu64 " to %" PRIu64
		       " during the link; WPT_SEED=%" PRIu64 "\n",
		       a, link, p, m[0], low, high, setup.seed);
		return -1;
	}
	return 0;
}

static int fuzzy_link(struct stamps *st, struct wpt_writer *w, const char *path, unsigned link, uint64_t *image,
		      uint64_t (*before)[STAMP_PAGES], uint64_t *torn, uint64_t *mixed_total)
{
	struct wpt_take_options o = { .size = sizeof(o), .mode = WPT_MODE_FUZZY, .retries = 1 + link % 3 };
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	struct wpt_link_info info = { .size = sizeof(info) };
	struct wpt_chain_info ci = { .size = sizeof(ci) };
	struct wpt_chain *c;
	uint64_t mixed = 0;
	char name[400];
	int r;

	for (unsigned a = 0; a < STAMP_AREAS; a++)
		for (unsigned p = 0; p < STAMP_PAGES; p++)
			before[a][p] = atomic_load(&st->finished[a][p]);
	r = wpt_writer_take(w, &o, &stats);
	snprintf(name, sizeof(name), "%s@%" PRIu64, path, stats.sequence);
	if (!r)
		r = wpt_chain_open(&c, name);
	if (r) {
		printf("# fuzzy: link %u: %s\n", link, wpt_strerror(r));
		return r;
	}
	r = wpt_chain_info(c, &ci);
	if (!r)
		r = wpt_chain_link(c, ci.nr_links - 1, &info);
	for (unsigned a = 0; a < STAMP_AREAS && !r; a++) {
		memset(image, 0x5a, STAMP_PAGES * TP);
		r = wpt_chain_restore_memory(c, (uint64_t)st->mem[a], (uint64_t)st->mem[a] + STAMP_PAGES * TP, image, NULL);
		if (!r)
			r = stamps_check(st, a, image, before[a], link, &mixed);
	}
	wpt_chain_close(c);
	if (!r && (mixed > stats.pages_torn || info.pages_torn != stats.pages_torn)) {
		printf("# fuzzy: link %u: %" PRIu64 " pages are mixed, %" PRIu64 " reported as torn, %" PRIu64
		       " flagged in the link; WPT_SEED=%" PRIu64 "\n",
		       link, mixed, stats.pages_torn, info.pages_torn, setup.seed);
		r = -1;
	}
	*torn = stats.pages_torn;
	*mixed_total += mixed;
	return r;
}

static int fuzzy_links(struct stamps *st, struct stamper *threads, struct wpt_writer *w, const char *path)
{
	uint64_t *image = shadow_alloc(STAMP_PAGES * TP), torn = 0, all_torn = 0, mixed = 0;
	uint64_t (*before)[STAMP_PAGES] = shadow_alloc(STAMP_AREAS * sizeof(*before));
	unsigned i, links = 60 + (unsigned)(setup.steps / 50);
	int r = 0;

	for (i = 0; i < links && !r; i++) {
		usleep(500);
		r = fuzzy_link(st, w, path, i, image, before, &torn, &mixed);
		all_torn += torn;
		atomic_fetch_add(&st->round, 1);
	}
	atomic_store(&st->stop, 1);
	for (unsigned t = 0; t < STAMP_THREADS; t++)
		pthread_join(threads[t].thread, NULL);
	/* With nobody writing the link is exact, the pages that were torn included. */
	if (!r)
		r = fuzzy_link(st, w, path, i, image, before, &torn, &mixed);
	if (!r && torn) {
		printf("# fuzzy: %" PRIu64 " pages torn although nobody wrote\n", torn);
		r = -1;
	}
	if (!r)
		printf("# fuzzy: %u links while two threads wrote: %" PRIu64 " pages flagged as torn, %" PRIu64 " of them mixed\n", links + 1,
		       all_torn, mixed);
	munmap(image, STAMP_PAGES * TP);
	munmap(before, STAMP_AREAS * sizeof(*before));
	return r;
}

static int fuzzy(void)
{
	struct wpt_tracker_options to = { .size = sizeof(to), .log = say_library };
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = WPT_WRITER_NO_SYNC, .level = -5, .nr_threads = 1 };
	struct stamps *st = shadow_alloc(sizeof(*st));
	struct stamper threads[STAMP_THREADS];
	struct wpt_tracker *t = NULL;
	struct wpt_writer *w = NULL;
	char path[300];
	int fds[STAMP_AREAS], r;

	st->seed = setup.seed;
	snprintf(path, sizeof(path), "%s/chain-fuzzy", setup.dir);
	r = stamps_map(st, fds);
	if (!r)
		r = way_tracker(&t, 0, &to);
	for (unsigned a = 0; a < STAMP_AREAS && !r; a++) {
		struct wpt_range range = { .size = sizeof(range), .start = (uint64_t)st->mem[a] };

		range.end = range.start + STAMP_PAGES * TP;

		r = wpt_range_add(t, &range);
		r = r > 0 ? 0 : r;
	}
	if (!r)
		r = wpt_writer_open(&w, t, path, &wo);
	if (r)
		printf("# fuzzy: %s\n", wpt_strerror(r));
	for (unsigned i = 0; i < STAMP_THREADS && !r; i++) {
		threads[i] = (struct stamper){ .st = st, .id = i };
		r = pthread_create(&threads[i].thread, NULL, stamper_main, &threads[i]);
	}
	if (!r)
		r = fuzzy_links(st, threads, w, path);
	wpt_writer_close(w);
	wpt_tracker_close(t);
	for (unsigned a = 0; a < STAMP_AREAS; a++) {
		munmap(st->mem[a], STAMP_PAGES * TP);
		if (fds[a] >= 0)
			close(fds[a]);
	}
	munmap(st, sizeof(*st));
	remove_folder(path);
	return r;
}

/* ---- a replica kept by scanning ------------------------------------------------------------------------------------ */

struct replica {
	struct area *area;
	struct wpt_tracker *t;
	uint8_t *copy, *todo;
	uint64_t reported;
};

static int note_run(void *arg, const struct wpt_run *run)
{
	struct replica *rep = arg;

	for (uint64_t a = run->start; a < run->end; a += TP)
		if (a >= rep->area->start && a < rep->area->end)
			rep->todo[(a - rep->area->start) / TP] = run->state == WPT_PAGES_ZERO ? 2 : 1;
	rep->reported += (run->end - run->start) / TP;
	return 0;
}

/* Scan with re-arming, then copy what it reported: the order that loses nothing. */
static int replica_update(struct replica *rep)
{
	uint64_t pages = area_pages(rep->area);
	int r;

	memset(rep->todo, 0, pages);
	r = wpt_tracker_scan(rep->t, rep->area->start, rep->area->end, WPT_SCAN_REARM, note_run, rep);
	for (uint64_t p = 0; p < pages && !r; p++) {
		uint8_t *to = rep->copy + p * TP;

		if (rep->todo[p] == 2)
			memset(to, 0, TP);
		if (rep->todo[p] == 1 && wpt_tracker_read(rep->t, rep->area->start + p * TP, to, TP) != (ssize_t)TP)
			memset(to, 0, TP);
	}
	return r;
}

static int each_reader(void *arg, const struct wpt_run *run)
{
	(void)run;
	return atomic_load((_Atomic uint32_t *)arg) ? 1 : 0;
}

struct scanner {
	struct ctl *ctl;
	struct wpt_tracker *t;
};

/* Another thread that only looks, and adds and removes ranges elsewhere. */
static void *scanner_main(void *arg)
{
	struct scanner *s = arg;
	uint64_t other = SLOT_BASE + 40 * SLOT_STRIDE;
	void *m = mmap((void *)other, 64 * TP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	while (m != MAP_FAILED && !atomic_load(&s->ctl->stop)) {
		struct wpt_range range = { .size = sizeof(range), .start = other, .end = other + 64 * TP };
		int id = wpt_range_add(s->t, &range);

		wpt_tracker_scan(s->t, 0, UINT64_MAX, 0, each_reader, &s->ctl->stop);
		if (id > 0)
			wpt_range_remove(s->t, id);
		usleep(300);
	}
	munmap((void *)other, 64 * TP);
	return NULL;
}

static int replica_compare(struct session *s, struct replica *rep)
{
	struct shadow_area *sa = &s->shadow.areas[0];
	unsigned wrong = 0;
	int r = shadow_take(&s->shadow, s->ctl);

	for (uint64_t p = 0; p < area_pages(rep->area) && !r; p++) {
		if (sa->class[p] == SHADOW_UNMAPPED || memcmp(rep->copy + p * TP, sa->data + p * TP, TP) == 0)
			continue;
		if (wrong++ < 3)
			report(&s->check, 0, p, rep->copy + p * TP, atomic_load(&s->ctl->epoch));
	}
	return wrong ? -1 : r;
}

/* A mapping that comes or goes makes everything unknown, and what is copied whole tells nothing: so not before half time. */
static const uint64_t mapping_ops = 1ull << OP_MOVE | 1ull << OP_RESIZE | 1ull << OP_UNMAP | 1ull << OP_REMAP | 1ull << OP_ALIEN |
				    1ull << OP_HEAL;

static int scan_rounds(struct session *s, struct replica *rep)
{
	int r = replica_update(rep);

	for (unsigned i = 0; i < setup.links * 4 && !r; i++) {
		atomic_fetch_add(&s->ctl->epoch, 1);
		r = let_work(s, setup.steps / (setup.links * 4) + 1);
		if (!r)
			r = replica_update(rep); /* writers go on */
		if (r || i % 8 != 7)
			continue;
		quiesce(s);
		r = replica_update(rep);
		if (!r)
			r = replica_compare(s, rep);
		if (i > setup.links * 2)
			s->ctl->forbidden &= ~mapping_ops;
		resume(s);
	}
	if (r)
		printf("# live scan: %s; WPT_SEED=%" PRIu64 "\n", r == -1 ? "wrong" : wpt_strerror(r), setup.seed);
	return r;
}

static int scan_oracle(const uint32_t *kind)
{
	static struct run run;
	struct session *s = shadow_alloc(sizeof(*s));
	struct replica rep = { 0 };
	struct scanner sc;
	pthread_t thread;
	int r;

	run = (struct run){ .name = "live-scan", .nr_kinds = 1, .kinds = { *kind } };
	catch_faults();
	r = session_open(s, &run);
	wpt_writer_close(s->writer);
	s->writer = NULL;
	s->ctl->forbidden = 1ull << OP_GUARD | 1ull << OP_UNGUARD | 1ull << OP_TRUNCATE | 1ull << OP_PWRITE | mapping_ops;
	/* A scan hears of holes from the kernel's tracking alone, and of those in files on a disk only where the target had mapped what was there. */
	if (!s->ctl->exact || !area_descs[*kind].shared || *kind == AREA_FILE)
		s->ctl->forbidden |= 1ull << OP_PUNCH | 1ull << OP_REMOVE;
	if (!r) {
		uint64_t pages = area_pages(&s->ctl->areas[0]);

		rep = (struct replica){ .area = &s->ctl->areas[0], .t = s->tracker };
		rep.copy = shadow_alloc(pages * TP);
		rep.todo = shadow_alloc(pages);
		sc = (struct scanner){ .ctl = s->ctl, .t = s->tracker };
		r = wpt_tracker_arm(s->tracker);
		memset(rep.todo, 0, pages);
		for (uint64_t p = 0; p < pages && !r; p++) /* the first copy, after everything was protected */
			if (wpt_tracker_read(s->tracker, rep.area->start + p * TP, rep.copy + p * TP, TP) < 0)
				memset(rep.copy + p * TP, 0, TP);
		r = r ? r : -pthread_create(&thread, NULL, scanner_main, &sc);
		if (!r) {
			r = scan_rounds(s, &rep);
			atomic_store(&s->ctl->stop, 1);
			pthread_join(thread, NULL);
		}
		munmap(rep.copy, pages * TP);
		munmap(rep.todo, pages);
	}
	if (session_close(s) && !r)
		r = -1;
	munmap(s, sizeof(*s));
	return r;
}

#endif
