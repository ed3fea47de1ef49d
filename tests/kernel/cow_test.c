/* SPDX-License-Identifier: MIT */
/*
 * Mode cow under writers that never stop. Each writer goes round a ring of pages that lie far apart and writes the number of the round to
 * each, so that at every instant the ring holds n ... n, n-1 ... n-1: two pages of different instants show at once. Every link is read back and
 * checked.
 *
 * WPT_COW_ROUNDS (else WPT_TEST_ROUNDS): snapshots of each kind of memory. WPT_SEED: of where the rings lie.
 */
#include "target_fixture.h"

#include <inttypes.h>
#include <limits.h>
#include <malloc.h>
#include <sys/resource.h>

#include "tracker.h"
#include "wptrack.h"

#define MIB ((size_t)1 << 20)
#define RINGS 3u
#define RING_PAGES 512u
#define PLACE 0x530000000000ul

enum memory { ANON, THP, MEMFD, MEMFD_PRIVATE, HUGE, NR_MEMORIES };
static const char *const memory_names[] = { "anon", "thp", "memfd", "private memfd", "hugetlb" };

static uint64_t seed;
static int program; /* its process, also in its children: what is left behind by those that are killed has its number */

static int snapshots(int n)
{
	const char *s = getenv("WPT_COW_ROUNDS");

	return s ? atoi(s) : rounds(n);
}

struct ring {
	uint64_t *page[RING_PAGES];
	uint64_t round;
	_Atomic uint64_t *park, *parked, *stop;
};

static uint64_t mix(uint64_t *s)
{
	uint64_t z = (*s += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static size_t memory_bytes(enum memory m)
{
	return m == HUGE ? 8 * 2 * MIB : 16 * MIB;
}

/* Always at the same place, filled so that it is all there. */
static uint8_t *memory_map(enum memory m)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, fd = -1;
	uint8_t *p;

	if (m == HUGE)
		flags |= MAP_HUGETLB | (21 << MAP_HUGE_SHIFT);
	if (m == MEMFD || m == MEMFD_PRIVATE) {
		flags = m == MEMFD ? MAP_SHARED : MAP_PRIVATE;
		fd = memfd_create("rings", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, (off_t)memory_bytes(m)))
			return NULL;
	}
	p = mmap((void *)PLACE, memory_bytes(m), PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, fd, 0);
	if (fd >= 0)
		close(fd);
	if (p == MAP_FAILED)
		return NULL;
	if (m == THP)
		madvise(p, memory_bytes(m), MADV_HUGEPAGE);
	memset(p, 0x5a, memory_bytes(m));
	return p;
}

/* The last rings are of neighbours, the first of pages from anywhere. No page is of two. */
static void rings_place(struct ring *rings, uint64_t s, size_t bytes)
{
	size_t pages = bytes / PAGE, i, k, at;
	bool *taken = calloc(pages, 1);

	for (i = 0; i < RINGS; i++)
		for (k = 0; k < RING_PAGES; k++) {
			do
				at = i + 1 == RINGS && k ? ((uint64_t)rings[i].page[k - 1] - PLACE) / PAGE + 1 : mix(&s);
			while (taken[at %= pages] && (i + 1 < RINGS || !k));
			while (taken[at])
				at = (at + 1) % pages;
			taken[at] = true;
			rings[i].page[k] = (uint64_t *)(PLACE + at * PAGE);
		}
	free(taken);
}

static void rings_clear(struct ring *rings)
{
	for (size_t i = 0; i < RINGS; i++)
		for (size_t k = 0; k < RING_PAGES; k++)
			rings[i].page[k][7] = rings[i].page[k][500] = 0;
}

static void *writing(void *arg)
{
	struct ring *r = arg;

	while (!atomic_load(r->stop)) {
		r->round++;
		for (size_t k = 0; k < RING_PAGES && !atomic_load(r->stop); k++) {
			if (atomic_load_explicit(r->park, memory_order_relaxed)) {
				atomic_fetch_add(r->parked, 1);
				while (atomic_load(r->park))
					sched_yield();
				atomic_fetch_sub(r->parked, 1);
			}
			((volatile uint64_t *)r->page[k])[7] = r->round;
			((volatile uint64_t *)r->page[k])[500] = r->round;
		}
	}
	return NULL;
}

/* One instant of the ring; returns its round, or fails. */
static uint64_t ring_check(struct wpt_chain *chain, const struct ring *r, const char *what)
{
	uint64_t page[PAGE / 8], first = 0, last = 0, at = 0;
	size_t k;

	for (k = 0; k < RING_PAGES; k++) {
		assert_int_equal(wpt_chain_read(chain, (uintptr_t)r->page[k], page, PAGE), 0);
		/* Between two words of one page the writer may stand too. */
		for (int w = 0; w < 2; w++) {
			at = page[w ? 500 : 7];
			if (!k && !w)
				first = last = at;
			if (at > last || at + 1 < first)
				fail_msg("%s: VIOLATED: page %zu of a ring says %" PRIu64 " after %" PRIu64 ", its first %" PRIu64
					 "; WPT_SEED=%" PRIu64, what, k, at, last, first, seed);
			last = at;
		}
	}
	return first;
}

/* ---- taking ---- */

struct session {
	struct ring rings[RINGS];
	_Atomic uint64_t park, parked, stop;
	struct wpt_tracker *t;
	struct wpt_writer *w;
	char dir[64];
	uint64_t staging;
	int level;
	struct wpt_take_stats stats;
	uint64_t faults, copied, waits, fallbacks, pause_max;
};

static int quiesce(void *arg)
{
	struct session *s = arg;

	atomic_store(&s->park, 1);
	while (atomic_load(&s->parked) < RINGS)
		sched_yield();
	return 0;
}

static void resume(void *arg)
{
	struct session *s = arg;

	atomic_store(&s->park, 0);
}

static void session_writer(struct session *s)
{
	struct wpt_writer_options o = { .size = sizeof(o), .flags = WPT_WRITER_NO_SYNC, .level = s->level ? s->level : -5, .nr_threads = 1,
					.staging_bytes = s->staging, .hot_set = seed % 2 ? WPT_HOT_SET_AUTO : WPT_HOT_SET_OFF };
	char command[100];

	wpt_writer_close(s->w);
	s->w = NULL;
	if (s->dir[0]) {
		snprintf(command, sizeof(command), "rm -rf %s", s->dir);
		assert_int_equal(system(command), 0);
	}
	snprintf(s->dir, sizeof(s->dir), "/tmp/wptrack-cow-%d-XXXXXX", program);
	assert_non_null(mkdtemp(s->dir));
	assert_int_equal(wpt_writer_open(&s->w, s->t, s->dir, &o), 0);
}

static void session_open(struct session *s, pid_t pid, uint64_t start, size_t bytes, uint64_t staging, int way)
{
	struct wpt_tracker_options o = { .size = sizeof(o), .backend = WPT_BACKEND_SYNC, .flags = WPT_TRACK_ASSUME_SOLE_WRITER,
					 .stop_timeout_ms = 5000 };
	struct wpt_range range = { .size = sizeof(range), .start = start, .end = start + bytes };
	uint64_t until = wpt_now_ns() + 120000000000u;
	int err;

	s->staging = staging;
	/* Who stopped the target for a process that was killed is its tracer until it is dead, too. */
	while ((err = wpt_tracker_start(&s->t, pid, &o, (enum wpt_way)way)) == -WPT_E_TRACED && wpt_now_ns() < until)
		sleep_us(500);
	assert_int_equal(err, 0);
	assert_true(wpt_range_add(s->t, &range) > 0);
	session_writer(s);
}

static void session_close(struct session *s)
{
	char command[100];

	wpt_writer_close(s->w);
	wpt_tracker_close(s->t);
	snprintf(command, sizeof(command), "rm -rf %s", s->dir);
	assert_int_equal(system(command), 0);
}

static int take(struct session *s, bool self)
{
	struct wpt_take_options o = { .size = sizeof(o), .mode = WPT_MODE_COW, .arg = s };
	int err;

	if (self) {
		o.quiesce = quiesce;
		o.resume = resume;
	}
	s->stats.size = sizeof(s->stats);
	err = wpt_writer_take(s->w, &o, &s->stats);
	if (err)
		return err;
	s->faults += s->stats.pages_cow_faults;
	s->copied += s->stats.pages_cow_copied;
	s->waits += s->stats.cow_waits;
	s->fallbacks += s->stats.cow_fallback;
	s->pause_max = WPT_MAX(s->pause_max, s->stats.pause_ns);
	return 0;
}

static struct wpt_chain *open_last(struct session *s)
{
	struct wpt_chain *chain = NULL;

	assert_int_equal(wpt_chain_open(&chain, s->dir), 0);
	return chain;
}

static void check_last(struct session *s, const char *what, uint64_t *before)
{
	struct wpt_chain *chain = open_last(s);
	uint64_t round;
	size_t i;

	for (i = 0; i < RINGS; i++) {
		round = ring_check(chain, &s->rings[i], what);
		assert_true(round >= before[i]);
		before[i] = round;
	}
	wpt_chain_close(chain);
}

static void take_many(struct session *s, bool self, int nr, const char *what)
{
	uint64_t before[RINGS] = { 0 };
	int i, err;

	for (i = 0; i < nr; i++) {
		if (i && i % 40 == 0)
			session_writer(s);
		err = take(s, self);
		if (err)
			fail_msg("%s: take: %s", what, wpt_strerror(err));
		check_last(s, what, before);
	}
	print_message("# %s: %d snapshots; saved by faults %" PRIu64 ", in the background %" PRIu64 ", waited for memory %" PRIu64
		      ", completed by a pause %" PRIu64 "; longest pause %" PRIu64 " us\n",
		      what, nr, s->faults, s->copied, s->waits, s->fallbacks, s->pause_max / 1000);
}

/* ---- the own process ---- */

static void own_case(enum memory m, uint64_t staging, int level, int nr, int way)
{
	struct session *s = calloc(1, sizeof(*s));
	pthread_t th[RINGS];
	char what[64];
	uint8_t *p = memory_map(m);
	size_t i;

	if (!p) {
		print_message("# %s: no free huge pages\n", memory_names[m]);
		free(s);
		return;
	}
	rings_place(s->rings, seed, memory_bytes(m));
	rings_clear(s->rings);
	for (i = 0; i < RINGS; i++) {
		s->rings[i].park = &s->park;
		s->rings[i].parked = &s->parked;
		s->rings[i].stop = &s->stop;
		pthread_create(&th[i], NULL, writing, &s->rings[i]);
	}
	s->level = level;
	session_open(s, 0, PLACE, memory_bytes(m), staging, way);
	snprintf(what, sizeof(what), "own %s", memory_names[m]);
	take_many(s, true, nr, what);
	if (m == ANON || m == THP)
		assert_true(s->copied > 0);
	atomic_store(&s->stop, 1);
	for (i = 0; i < RINGS; i++)
		pthread_join(th[i], NULL);
	session_close(s);
	munmap(p, memory_bytes(m));
	free(s);
}

static void writers_of_the_own_process_see_one_instant(void **state)
{
	(void)state;
	for (int m = 0; m < NR_MEMORIES; m++)
		own_case((enum memory)m, 64 << 20, -5, snapshots(40), m & 1 ? WPT_WAY_ENTRIES : WPT_WAY_PROBED);
}

/* And compression that takes its time: no batch is free for most of it. */
static void little_staging_memory_is_enough(void **state)
{
	(void)state;
	own_case(ANON, 4 << 20, 19, snapshots(20), WPT_WAY_PROBED);
	own_case(MEMFD, 4 << 20, 15, snapshots(10), WPT_WAY_PROBED);
}

/* ---- attached ---- */

static _Atomic uint64_t never;

/* Gives memory back in many ways, pairs of neighbours at once, so that they count from zero again together. */
static void *giving_back(void *arg)
{
	const size_t len = 64 * PAGE;
	uint64_t s = 77, n = 0;
	uint8_t *pair, *other = (uint8_t *)PLACE + 32 * MIB;
	volatile uint64_t *said = mmap((void *)(PLACE + 24 * MIB), PAGE, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	(void)arg;
	pair = mmap((void *)(PLACE + 20 * MIB), len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	while (!sh->stop) {
		*said = n;
		for (size_t at = 0; at < len; at += PAGE)
			*(volatile uint64_t *)(pair + at) = n;
		n++;
		/* Somewhere from here on it changes otherwise than by writes. */
		*said = UINT64_MAX;
		switch (mix(&s) % 16) {
		case 0:
			madvise(pair, len, MADV_DONTNEED);
			n = 0;
			break;
		case 1:
			munmap(pair, len);
			mmap(pair, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
			n = 0;
			break;
		case 2:
			mremap(pair, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, other);
			mremap(other, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, pair);
			break;
		case 3:
			mmap(pair, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			n = 0;
			break;
		}
	}
	return NULL;
}

static void *forking(void *arg)
{
	(void)arg;
	while (!sh->stop) {
		pid_t pid = fork();

		if (pid == 0) {
			for (size_t at = 0; at < 16 * MIB; at += 64 * PAGE)
				*(volatile uint64_t *)(PLACE + at + 56) = UINT64_MAX;
			_exit(0);
		}
		if (pid > 0)
			waitpid(pid, NULL, 0);
		sleep_us(3000);
	}
	return NULL;
}

static void mode_rings(enum memory m, bool more)
{
	static struct ring rings[RINGS];
	static _Atomic uint64_t stop;
	pthread_t th[RINGS + 2];
	size_t i;

	if (!memory_map(m)) {
		sh->addr[0] = 1;
		sh->ready = 1;
		return;
	}
	rings_place(rings, sh->addr[1], memory_bytes(m));
	rings_clear(rings);
	for (i = 0; i < RINGS; i++) {
		rings[i].park = rings[i].parked = &never;
		rings[i].stop = &stop;
		pthread_create(&th[i], NULL, writing, &rings[i]);
	}
	if (more) {
		pthread_create(&th[i++], NULL, giving_back, NULL);
		pthread_create(&th[i++], NULL, forking, NULL);
	}
	sh->ready = 1;
	while (!sh->stop) {
		sleep_us(1000);
		atomic_fetch_add(&sh->count[0], rings[0].round > sh->count[1]);
		sh->count[1] = rings[0].round;
	}
	atomic_store(&stop, 1);
	while (i > 0)
		pthread_join(th[--i], NULL);
}

static bool rings_start(struct fixture *f, struct session *s, enum memory m, const char *mode)
{
	rings_place(s->rings, 0, memory_bytes(m));
	fixture_start(f, mode, 0);
	if (!f->sh->addr[0])
		return true;
	print_message("# %s: no free huge pages\n", memory_names[m]);
	fixture_finish(f, 0);
	return false;
}

static void writers_of_another_process_see_one_instant(void **state)
{
	static const char *const modes[] = { "rings-anon", "rings-thp", "rings-memfd", "rings-memfd-private", "rings-huge" };
	struct session *s;
	struct fixture f;
	char what[64];
	int m;

	(void)state;
	for (m = 0; m < NR_MEMORIES; m++) {
		s = calloc(1, sizeof(*s));
		if (rings_start(&f, s, (enum memory)m, modes[m])) {
			session_open(s, f.pid, PLACE, memory_bytes((enum memory)m), 64 << 20, m & 1 ? WPT_WAY_PROBED : WPT_WAY_ENTRIES);
			snprintf(what, sizeof(what), "attached %s", memory_names[m]);
			take_many(s, false, snapshots(40), what);
			session_close(s);
			fixture_finish(&f, 0);
		}
		free(s);
	}
}

static void check_pairs(struct session *s)
{
	struct wpt_chain *chain = open_last(s);
	uint64_t page[PAGE / 8], first = 0, last = 0, said;
	int err;

	assert_int_equal(wpt_chain_read(chain, PLACE + 24 * MIB, page, PAGE), 0);
	said = page[0];
	for (size_t at = 0; at < 64 * PAGE; at += PAGE) {
		err = wpt_chain_read(chain, PLACE + 20 * MIB + at, page, PAGE);
		assert_int_equal(err, 0);
		if (!at)
			first = last = page[0];
		if (page[0] > last || page[0] + 1 < first)
			fail_msg("VIOLATED: page %zu of what is given back says %" PRIu64 " after %" PRIu64 ", the first %" PRIu64,
				 at / PAGE, page[0], last, first);
		last = page[0];
	}
	if (said != UINT64_MAX && first != said && first + 1 != said)
		fail_msg("VIOLATED: what is given back says %" PRIu64 ", and was to say %" PRIu64, first, said);
	wpt_chain_close(chain);
}

static void memory_that_is_given_back_while_it_is_copied(void **state)
{
	struct session *s = calloc(1, sizeof(*s));
	uint64_t before[RINGS] = { 0 };
	struct fixture f;
	int i;

	(void)state;
	assert_true(rings_start(&f, s, ANON, "rings-more"));
	session_open(s, f.pid, PLACE, 64 * MIB, 64 << 20, WPT_WAY_PROBED);
	for (i = 0; i < snapshots(150); i++) {
		if (i && i % 40 == 0)
			session_writer(s);
		assert_int_equal(take(s, false), 0);
		check_last(s, "given back", before);
		check_pairs(s);
	}
	print_message("# given back: %d snapshots, %" PRIu64 " completed by a pause\n", i, s->fallbacks);
	session_close(s);
	fixture_finish(&f, 0);
	free(s);
}

static void the_snapshotter_is_killed(void **state)
{
	struct session *s = calloc(1, sizeof(*s));
	uint64_t before, r = seed;
	struct fixture f;
	int i, status, ready[2];
	char c, command[100];
	pid_t pid;

	(void)state;
	assert_true(rings_start(&f, s, ANON, "rings-anon"));
	for (i = 0; i < snapshots(20); i++) {
		assert_int_equal(pipe(ready), 0);
		pid = fork();
		if (pid == 0) {
			setenv("CMOCKA_TEST_ABORT", "1", 1); /* it runs no other test */
			session_open(s, f.pid, PLACE, 16 * MIB, 4 << 20, WPT_WAY_PROBED);
			take(s, false);
			if (write(ready[1], "x", 1) != 1)
				_exit(1);
			for (;;)
				take(s, false);
		}
		close(ready[1]);
		assert_int_equal(read(ready[0], &c, 1), 1);
		sleep_us((unsigned)(mix(&r) % 5000));
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		close(ready[0]);
		before = atomic_load(&f.sh->count[0]);
		WAIT_FOR(atomic_load(&f.sh->count[0]) > before + 3);
	}
	fixture_finish(&f, 0);
	snprintf(command, sizeof(command), "rm -rf /tmp/wptrack-cow-%d-*", program);
	assert_int_equal(system(command), 0);
	free(s);
}

static void *killing(void *arg)
{
	pid_t *pid = arg;
	uint64_t r = (uint64_t)*pid;

	sleep_us((unsigned)(mix(&r) % 8000));
	kill(*pid, SIGKILL);
	return NULL;
}

static void the_target_dies(void **state)
{
	struct session *s;
	struct fixture f;
	pthread_t th;
	int i, err;

	(void)state;
	for (i = 0; i < snapshots(15); i++) {
		s = calloc(1, sizeof(*s));
		assert_true(rings_start(&f, s, ANON, "rings-anon"));
		session_open(s, f.pid, PLACE, 16 * MIB, 64 << 20, WPT_WAY_PROBED);
		assert_int_equal(take(s, false), 0);
		pthread_create(&th, NULL, killing, &f.pid);
		while ((err = take(s, false)) == 0)
			;
		assert_int_equal(err, -WPT_E_GONE);
		pthread_join(th, NULL);
		session_close(s);
		fixture_kill(&f);
		free(s);
	}
}

/* ---- failing links ---- */

static void a_link_that_fails_midway_is_made_up_for(void **state)
{
	struct rlimit old, small;
	struct session *s = calloc(1, sizeof(*s));
	uint64_t before[RINGS] = { 0 }, r = seed;
	struct fixture f;
	int i, err, failed = 0;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	assert_true(rings_start(&f, s, ANON, "rings-anon"));
	session_open(s, f.pid, PLACE, 16 * MIB, 4 << 20, WPT_WAY_PROBED);
	assert_int_equal(take(s, false), 0);
	getrlimit(RLIMIT_FSIZE, &old);
	for (i = 0; i < snapshots(30); i++) {
		small = old;
		small.rlim_cur = 100 + mix(&r) % 3000;
		setrlimit(RLIMIT_FSIZE, &small);
		err = take(s, false);
		setrlimit(RLIMIT_FSIZE, &old);
		assert_true(err == 0 || err == -EFBIG);
		failed += err != 0;
		assert_int_equal(take(s, false), 0);
		check_last(s, "after a failed link", before);
	}
	assert_true(failed > 0);
	session_close(s);
	fixture_finish(&f, 0);
	free(s);
}

/* ---- the whole heap ---- */

#define MALLOCERS 3

static struct {
	_Atomic int park, parked, stop;
	pthread_t th[MALLOCERS];
	uint8_t *shadow;
	uint64_t start;
	size_t bytes;
} heap;

/* Wherever the thread is, which is mostly inside malloc. */
static void park_here(int sig)
{
	(void)sig;
	atomic_fetch_add(&heap.parked, 1);
	while (atomic_load(&heap.park))
		sched_yield();
	atomic_fetch_sub(&heap.parked, 1);
}

static void *mallocing(void *arg)
{
	void *p[64] = { NULL };
	uint64_t s = (uintptr_t)arg;
	size_t i, len;

	while (!atomic_load(&heap.stop)) {
		i = mix(&s) % 64;
		free(p[i]);
		len = 16 + mix(&s) % 3000;
		p[i] = malloc(len);
		memset(p[i], (int)s, len);
	}
	for (i = 0; i < 64; i++)
		free(p[i]);
	return NULL;
}

static int heap_quiesce(void *arg)
{
	(void)arg;
	atomic_store(&heap.park, 1);
	for (int i = 0; i < MALLOCERS; i++)
		pthread_kill(heap.th[i], SIGUSR2);
	while (atomic_load(&heap.parked) < MALLOCERS)
		sched_yield();
	return 0;
}

static void heap_resume(void *arg)
{
	(void)arg;
	atomic_store(&heap.park, 0);
	while (atomic_load(&heap.parked) > 0)
		sched_yield();
}

static int heap_paused(void *arg)
{
	(void)arg;
	memcpy(heap.shadow, (void *)heap.start, heap.bytes);
	return 0;
}

static void heap_take(struct session *s, uint8_t *buf)
{
	struct wpt_take_options o = { .size = sizeof(o), .mode = WPT_MODE_COW, .quiesce = heap_quiesce, .resume = heap_resume,
				      .paused = heap_paused };
	struct wpt_chain *chain;
	size_t at;

	s->stats.size = sizeof(s->stats);
	assert_int_equal(wpt_writer_take(s->w, &o, &s->stats), 0);
	s->faults += s->stats.pages_cow_faults;
	s->fallbacks += s->stats.cow_fallback;
	chain = open_last(s);
	assert_int_equal(wpt_chain_read(chain, heap.start, buf, heap.bytes), 0);
	for (at = 0; at < heap.bytes; at += PAGE)
		if (memcmp(buf + at, heap.shadow + at, PAGE))
			fail_msg("VIOLATED: page %zu of the heap is not of the instant", at / PAGE);
	wpt_chain_close(chain);
}

static void the_whole_heap_with_threads_stopped_in_malloc(void **state)
{
	struct session *s = calloc(1, sizeof(*s));
	char *grow[200];
	uint8_t *buf;
	uint64_t brk_end;
	int i;

	(void)state;
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_TRIM_THRESHOLD, INT_MAX);
	signal(SIGUSR2, park_here);
	for (i = 0; i < 200; i++)
		memset(grow[i] = malloc(60000), i, 60000);
	brk_end = (uintptr_t)sbrk(0) & ~(PAGE - 1);
	/* What is given back first is what is taken next. */
	heap.start = WPT_ALIGN_UP((uintptr_t)grow[0], PAGE);
	heap.bytes = brk_end - heap.start;
	heap.shadow = wpt_vm_alloc(heap.bytes);
	buf = wpt_vm_alloc(heap.bytes);
	for (i = 0; i < 200; i++)
		free(grow[i]);
	for (i = 0; i < MALLOCERS; i++)
		pthread_create(&heap.th[i], NULL, mallocing, (void *)(uintptr_t)(i + 1));
	session_open(s, 0, heap.start, heap.bytes, 4 << 20, WPT_WAY_PROBED);
	for (i = 0; i < snapshots(60); i++) {
		if (i && i % 20 == 0)
			session_writer(s);
		heap_take(s, buf);
	}
	print_message("# heap: %d snapshots, saved by faults %" PRIu64 ", completed by a pause %" PRIu64 "\n", i, s->faults, s->fallbacks);
	assert_true(i < 20 || s->faults > 0);
	session_close(s);
	atomic_store(&heap.stop, 1);
	for (i = 0; i < MALLOCERS; i++)
		pthread_join(heap.th[i], NULL);
	wpt_vm_free(heap.shadow, heap.bytes);
	wpt_vm_free(buf, heap.bytes);
	free(s);
}

static void cow_needs_the_backend_sync(void **state)
{
	struct wpt_tracker_options to = { .size = sizeof(to), .backend = WPT_BACKEND_REPORTED };
	struct session *s = calloc(1, sizeof(*s));
	uint8_t *p = memory_map(ANON);
	struct wpt_range range = { .size = sizeof(range), .start = PLACE, .end = PLACE + PAGE };

	(void)state;
	assert_non_null(p);
	assert_int_equal(wpt_tracker_open(&s->t, &to), 0);
	assert_true(wpt_range_add(s->t, &range) > 0);
	session_writer(s);
	assert_int_equal(take(s, true), -EINVAL);
	session_close(s);
	munmap(p, memory_bytes(ANON));
	free(s);
}

static int target_main(const char *mode)
{
	target_open();
	if (!strcmp(mode, "rings-anon"))
		mode_rings(ANON, false);
	else if (!strcmp(mode, "rings-thp"))
		mode_rings(THP, false);
	else if (!strcmp(mode, "rings-memfd"))
		mode_rings(MEMFD, false);
	else if (!strcmp(mode, "rings-memfd-private"))
		mode_rings(MEMFD_PRIVATE, false);
	else if (!strcmp(mode, "rings-huge"))
		mode_rings(HUGE, false);
	else if (!strcmp(mode, "rings-more"))
		mode_rings(ANON, true);
	else
		_exit(94);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(writers_of_the_own_process_see_one_instant),
		cmocka_unit_test(little_staging_memory_is_enough),
		cmocka_unit_test(writers_of_another_process_see_one_instant),
		cmocka_unit_test(memory_that_is_given_back_while_it_is_copied),
		cmocka_unit_test(the_snapshotter_is_killed),
		cmocka_unit_test(the_target_dies),
		cmocka_unit_test(a_link_that_fails_midway_is_made_up_for),
		cmocka_unit_test(the_whole_heap_with_threads_stopped_in_malloc),
		cmocka_unit_test(cow_needs_the_backend_sync),
	};
	struct wpt_probe p = { .size = sizeof(p) };
	const char *s = getenv("WPT_SEED");

	if (argc == 2 && !strcmp(argv[0], "target"))
		return target_main(argv[1]);
	program = (int)getpid();
	seed = s ? strtoull(s, NULL, 0) : wpt_now_ns() % 1000000;
	printf("# WPT_SEED=%" PRIu64 "\n", seed);
	if (wpt_probe(&p) || !(p.features & WPT_F_SYNC)) {
		printf("1..0 # SKIP needs root, or a userfaultfd for this user that handles faults of system calls\n");
		return 0;
	}
	if (getenv("WPT_ONLY") && *getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
