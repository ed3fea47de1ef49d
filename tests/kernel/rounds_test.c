/* SPDX-License-Identifier: MIT */
/*
 * Rounds before the pause, with writers that never stop: what a link shows must be the memory of the instant at which everything stood still,
 * of which the test takes a copy of its own in the pause.
 *
 * WPT_SEED: of the random numbers (printed). WPT_LINKS: how many a case takes. WPT_ONLY: run tests whose name fits, with * and ?.
 */
#include "torture_util.h"

#include "hammer.h"
#include "random.h"

#define AREA_BYTES ((size_t)4 << 20)
#define AREA_PAGES (AREA_BYTES / TP)
#define BASE 0x510000000000ull

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

enum { DENSE, SPARSE, HUGE_PAGES, MEMFD, PRIVATE_FILE, NR_AREAS };

/* Shared with the target. Its addresses are the same in both. */
struct shared {
	struct hammer hammer;
	bool goes_on;             /* also while it is held: other threads of the target */
	_Atomic uint64_t beats;
	char *area[NR_AREAS];
	int fd[NR_AREAS];
};

static struct {
	uint64_t seed, links;
} setup;

/* ---- the target ---- */

static bool has_file(unsigned a)
{
	return a == MEMFD || a == PRIVATE_FILE;
}

static void areas_map(struct shared *h)
{
	for (unsigned i = 0; i < NR_AREAS; i++) {
		int flags = MAP_FIXED | (i == MEMFD ? MAP_SHARED : i == PRIVATE_FILE ? MAP_PRIVATE : MAP_PRIVATE | MAP_ANONYMOUS);

		h->area[i] = mmap((char *)(uintptr_t)(BASE + i * 0x10000000ull), AREA_BYTES, PROT_READ | PROT_WRITE, flags, h->fd[i], 0);
		if (h->area[i] == MAP_FAILED)
			_exit(3);
		if (i == HUGE_PAGES)
			madvise(h->area[i], AREA_BYTES, MADV_HUGEPAGE);
		if (i == DENSE || has_file(i))
			fix_fill(h->area[i], AREA_BYTES, i);
	}
}

static void give_back(struct shared *h, unsigned a, uint64_t page, uint64_t nr)
{
	char *at = h->area[a] + page * TP;

	if (a == MEMFD)
		fallocate(h->fd[a], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * TP), (off_t)(nr * TP));
	else
		madvise(at, nr * TP, MADV_DONTNEED);
}

/*
 * A stock kernel does not tell of a page of a file that was given back and is filled again by a write fault while the stop finds that half
 * done, nor of a punched hole that is filled by a read: so the second half of those areas is only given back, and a memfd's not read.
 */
static void one_step(struct hammer *hammer, uint64_t *r)
{
	struct shared *h = (struct shared *)hammer;
	unsigned a = (unsigned)rng_below(r, NR_AREAS);
	uint64_t pages = has_file(a) ? AREA_PAGES / 2 : AREA_PAGES, what = rng_below(r, 100), nr = 1 + rng_below(r, 4), back;
	uint64_t page = rng_below(r, rng_below(r, 2) ? 64 : pages);
	volatile char *at = h->area[a] + page * TP;

	nr = nr < pages - page ? nr : pages - page;
	back = has_file(a) ? pages + page : page;
	if (what < (a == DENSE ? 3 : 10))
		give_back(h, a, back, nr);
	/* And stays away until something else comes by. */
	if (what % 2 && what < (a == DENSE ? 3 : 10) && !has_file(a))
		return;
	if (what < 5 && a != MEMFD)
		(void)*(volatile char *)(h->area[a] + back * TP);
	for (uint64_t i = what < 20 ? nr : 1; i-- > 0;)
		*(volatile uint64_t *)(at + i * TP + rng_below(r, TP / 8) * 8) = rng(r);
	atomic_fetch_add_explicit(&hammer->writes, 1, memory_order_relaxed);
}

/* What no pause of the writers keeps from running, nor from mapping and unmapping memory of its own. */
static void *goes_on_main(void *arg)
{
	struct shared *h = arg;

	for (;;) {
		char *m = mmap(NULL, 3 * TP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (m == MAP_FAILED)
			_exit(5);
		*m = 1;
		munmap(m + TP, TP);
		munmap(m, 3 * TP);
		atomic_fetch_add(&h->beats, 1);
	}
	return NULL;
}

static pid_t target_start(struct shared *h)
{
	pthread_t other;
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	areas_map(h);
	hammer_start(&h->hammer);
	if (h->goes_on && pthread_create(&other, NULL, goes_on_main, h))
		_exit(4);
	atomic_store(&h->hammer.ready, 1);
	for (;;)
		pause();
}

/* ---- the test ---- */

struct rounds {
	struct fix f;
	struct shared *h;
	int mem;                /* of the target */
};

/* What it holds now, without changing it: holes of the memfd stay holes. */
static int shadow(void *arg)
{
	struct rounds *r = arg;

	for (unsigned i = 0; i < NR_AREAS; i++) {
		int fd = i == MEMFD ? r->h->fd[i] : r->mem;
		off_t at = i == MEMFD ? 0 : (off_t)(uintptr_t)r->h->area[i];

		if (pread(fd, r->f.range[i].mine, AREA_BYTES, at) != (ssize_t)AREA_BYTES)
			return -EIO;
	}
	return 0;
}

/* The target is held, not stopped: else this does not end. */
static int shadow_while_it_goes_on(void *arg)
{
	struct rounds *r = arg;
	uint64_t beats = atomic_load(&r->h->beats);

	while (atomic_load(&r->h->beats) < beats + 10)
		sched_yield();
	return shadow(arg);
}

static int refuse(void *arg)
{
	(void)arg;
	return -ECANCELED;
}

static int quiesce(void *arg)
{
	struct rounds *r = arg;

	hammer_hold(&r->h->hammer);
	return 0;
}

static void resume(void *arg)
{
	struct rounds *r = arg;

	hammer_let_go(&r->h->hammer);
}

static struct shared *shared_new(void)
{
	struct shared *h = fix_map(sizeof(*h), MAP_SHARED | MAP_ANONYMOUS, -1);

	h->hammer.seed = setup.seed;
	h->hammer.step = one_step;
	for (unsigned i = 0; i < NR_AREAS; i++)
		h->fd[i] = -1;
	for (unsigned i = MEMFD; i <= PRIVATE_FILE; i++) {
		h->fd[i] = memfd_create("rounds", 0);
		assert_true(h->fd[i] >= 0);
		assert_int_equal(ftruncate(h->fd[i], (off_t)AREA_BYTES), 0);
		for (size_t at = 0; at < AREA_BYTES / 2; at += TP)
			assert_int_equal(pwrite(h->fd[i], "file", 4, (off_t)at), 4);
	}
	return h;
}

static void say_wrong(struct rounds *r)
{
	static const char *const names[] = { "dense", "sparse", "huge", "memfd", "private file" };
	uint8_t *page = fix_anon(TP);
	struct wpt_chain *c;
	char name[200];

	snprintf(name, sizeof(name), "%s@%" PRIu64, r->f.chain, r->f.stats.sequence);
	assert_int_equal(wpt_chain_open(&c, name), 0);
	for (unsigned a = 0; a < NR_AREAS; a++)
		for (size_t p = 0; p < AREA_PAGES; p++) {
			const uint8_t *right = (uint8_t *)r->f.range[a].mine + p * TP;
			size_t at = 0, nr = 0;

			assert_int_equal(wpt_chain_read(c, (uint64_t)(uintptr_t)r->h->area[a] + p * TP, page, TP), 0);
			for (size_t i = TP; i-- > 0;)
				if (page[i] != right[i]) {
					at = i;
					nr++;
				}
			if (nr)
				print_message("# %s: WRONG PAGE %zu: %zu bytes differ, the first at %zu: %02x, was %02x\n", names[a], p, nr, at,
					      page[at], right[at]);
		}
	wpt_chain_close(c);
	munmap(page, TP);
}

static void take_links(struct rounds *r, bool attached)
{
	static const uint32_t max[] = { 0, 3, 20, WPT_NO_ROUNDS };
	uint64_t rng = setup.seed, rounds = 0, paused = 0;
	struct wpt_take_options o, failed;

	for (uint64_t i = 0; i < setup.links; i++) {
		o = (struct wpt_take_options){ .size = sizeof(o), .paused = shadow, .arg = r };
		o.max_rounds = max[rng_below(&rng, 8) ? rng_below(&rng, 3) : 3];
		o.target_pause_us = rng_below(&rng, 3) ? 1 : 0;
		if (r->h->goes_on)
			o.paused = shadow_while_it_goes_on;
		if (!attached || r->h->goes_on) {
			o.quiesce = quiesce;
			o.resume = resume;
		}
		failed = o;
		failed.paused = refuse;
		if (rng_below(&rng, 8) == 0)
			assert_int_equal(fix_try(&r->f, &failed), -ECANCELED);
		assert_int_equal(fix_try(&r->f, &o), 0);
		rounds += r->f.stats.nr_rounds;
		paused += r->f.stats.pages_paused;
		assert_true((o.max_rounds == WPT_NO_ROUNDS) == (r->f.stats.rounds_end == WPT_ROUNDS_NONE));
		assert_true(r->f.stats.nr_rounds <= (o.max_rounds == WPT_NO_ROUNDS ? 0 : o.max_rounds ? o.max_rounds : 16));
		if (fix_wrong(&r->f)) {
			say_wrong(r);
			fail_msg("link %" PRIu64 ", WPT_SEED=%" PRIu64, i, setup.seed);
		}
	}
	print_message("# %" PRIu64 " links, %" PRIu64 " rounds, %" PRIu64 " pages in a pause, %" PRIu64 " writes; seed %" PRIu64 "\n", setup.links,
		      rounds, paused / setup.links, (uint64_t)atomic_load(&r->h->hammer.writes), setup.seed);
}

static void rounds_case(bool attached, bool goes_on, uint64_t staging)
{
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = WPT_WRITER_NO_SYNC, .nr_threads = 2, .level = -5, .staging_bytes = staging,
					 .hot_set = setup.seed % 2 ? WPT_HOT_SET_AUTO : WPT_HOT_SET_OFF };
	struct rounds r = { .mem = -1 };
	char path[64];
	pid_t pid = 0;

	if (!fix_supported())
		skip();
	r.h = shared_new();
	r.h->goes_on = goes_on;
	if (attached) {
		pid = target_start(r.h);
		while (!atomic_load(&r.h->hammer.ready))
			sched_yield();
	} else {
		areas_map(r.h);
		hammer_start(&r.h->hammer);
	}
	snprintf(path, sizeof(path), "/proc/%d/mem", pid ? pid : getpid());
	r.mem = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(r.mem >= 0);
	fix_tracker(&r.f, pid, WPT_BACKEND_AUTO, WPT_TRACK_ASSUME_SOLE_WRITER);
	if (setup.seed >> 1 & 1) {
		r.f.t->share_bytes = AREA_BYTES / 2;
		r.f.t->nr_scan_threads = 3;
	}
	for (unsigned i = 0; i < NR_AREAS; i++)
		fix_add_as(&r.f, r.h->area[i], fix_anon(AREA_BYTES), AREA_BYTES);
	assert_int_equal(wpt_writer_open(&r.f.w, r.f.t, r.f.chain, &wo), 0);
	take_links(&r, attached);
	if (!attached)
		hammer_end(&r.h->hammer);
	fix_close(&r.f);
	if (pid) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	for (unsigned i = 0; i < NR_AREAS; i++) {
		munmap(r.f.range[i].mine, AREA_BYTES);
		if (!attached)
			munmap(r.h->area[i], AREA_BYTES);
		if (r.h->fd[i] >= 0)
			close(r.h->fd[i]);
	}
	close(r.mem);
	munmap(r.h, sizeof(*r.h));
}

static void own_process(void **state)
{
	(void)state;
	rounds_case(false, false, 64 << 20);
}

static void attached(void **state)
{
	(void)state;
	rounds_case(true, false, 64 << 20);
}

/* By the caller's means, not by stopping its threads. */
static void attached_and_held(void **state)
{
	(void)state;
	rounds_case(true, true, 64 << 20);
}

static void held_is_for_mode_pause(void **state)
{
	struct wpt_take_options o = { .size = sizeof(o), .resume = fix_void };
	char *m = fix_anon(TP);
	struct fix f;
	pid_t pid;

	(void)state;
	if (!fix_supported())
		skip();
	*m = 1;
	pid = fork();
	if (!pid)
		for (;;)
			pause();
	fix_tracker(&f, pid, WPT_BACKEND_AUTO, 0);
	fix_add(&f, m, TP);
	fix_writer(&f);
	assert_int_equal(fix_try(&f, &o), -EINVAL);
	o = (struct wpt_take_options){ .size = sizeof(o), .quiesce = fix_nothing };
	assert_int_equal(fix_try(&f, &o), -EINVAL);
	o.resume = fix_void;
	o.flags = WPT_TAKE_REGISTERS;
	assert_int_equal(fix_try(&f, &o), -EINVAL);
	o.flags = 0;
	assert_int_equal(fix_try(&f, &o), 0);
	assert_int_equal(fix_wrong(&f), 0);
	fix_close(&f);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	munmap(m, TP);
}

/* What is staged has to be given away now and then. */
static void own_process_little_memory(void **state)
{
	(void)state;
	rounds_case(false, false, 4 << 20);
}

static void attached_little_memory(void **state)
{
	(void)state;
	rounds_case(true, false, 4 << 20);
}

static void why_rounds_end(void **state)
{
	struct wpt_take_options o = { .size = sizeof(o) };
	const size_t bytes = 16 << 20;
	struct fix f;
	char *m;

	(void)state;
	if (!fix_supported())
		skip();
	m = fix_anon(bytes);
	fix_fill(m, bytes, 1);
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, 0);
	fix_add(&f, m, bytes);
	fix_writer(&f);
	fix_take_and_check(&f);
	assert_int_equal(f.stats.rounds_end, WPT_ROUNDS_SMALL);
	assert_int_equal(f.stats.nr_rounds, 2); /* everything, and then nothing */
	assert_int_equal(f.stats.pages_paused, 0);
	m[5 * TP] ^= 1;
	fix_take_and_check(&f);
	assert_int_equal(f.stats.rounds_end, WPT_ROUNDS_SMALL);
	assert_int_equal(f.stats.nr_rounds, 1);
	assert_int_equal(f.stats.pages_dirty, 1);
	fix_fill(m, bytes, 2);
	o.max_rounds = 1;
	assert_int_equal(fix_try(&f, &o), 0);
	assert_int_equal(fix_wrong(&f), 0);
	assert_int_equal(f.stats.rounds_end, WPT_ROUNDS_LIMIT);
	assert_int_equal(f.stats.pages_dirty, bytes / TP);
	assert_int_equal(f.stats.pages_stored, bytes / TP);
	fix_fill(m, bytes, 3);
	o.max_rounds = WPT_NO_ROUNDS;
	assert_int_equal(fix_try(&f, &o), 0);
	assert_int_equal(fix_wrong(&f), 0);
	assert_int_equal(f.stats.rounds_end, WPT_ROUNDS_NONE);
	assert_int_equal(f.stats.pages_paused, bytes / TP);
	fix_close(&f);
	munmap(m, bytes);
}

/* ---- pages that a round staged and that can't be read in the pause ---- */

#define UNREADABLE_PAGES 4096u
#define STAGED_PAGES 700u
#define GUARDS 3u

struct unreadable {
	char *m, *shadow;
	bool spill;
};

/* The last change before the instant: the first of the staged pages become guards, and so much is written that nothing stays staged. */
static int guard_some(void *arg)
{
	struct unreadable *u = arg;

	if (madvise(u->m, GUARDS * TP, MADV_GUARD_INSTALL))
		return -errno;
	memset(u->shadow, 0, GUARDS * TP);
	for (size_t p = STAGED_PAGES; u->spill && p < UNREADABLE_PAGES; p++) {
		fix_fill(u->m + p * TP, TP, (unsigned)p);
		memcpy(u->shadow + p * TP, u->m + p * TP, TP);
	}
	return 0;
}

/* What their first copy held must not be what the link shows, whether the staging memory was given to the writer in between or not. */
static void guard_after_a_round(bool spill)
{
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = WPT_WRITER_NO_SYNC, .nr_threads = 2, .level = -5, .staging_bytes = 4 << 20 };
	struct wpt_take_options o = { .size = sizeof(o), .max_rounds = 1, .target_pause_us = 1, .resume = fix_void };
	struct unreadable u = { .spill = spill };
	struct fix f;

	u.m = fix_anon(UNREADABLE_PAGES * TP);
	u.shadow = fix_anon(UNREADABLE_PAGES * TP);
	fix_fill(u.m, UNREADABLE_PAGES * TP, 1);
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, 0);
	fix_add_as(&f, u.m, u.shadow, UNREADABLE_PAGES * TP);
	assert_int_equal(wpt_writer_open(&f.w, f.t, f.chain, &wo), 0);
	fix_take(&f);
	fix_fill(u.m, STAGED_PAGES * TP, 2);
	memcpy(u.shadow, u.m, UNREADABLE_PAGES * TP);
	o.quiesce = guard_some;
	o.arg = &u;
	assert_int_equal(fix_try(&f, &o), 0);
	assert_int_equal(f.stats.nr_rounds, 1);
	assert_int_equal(f.stats.staging_waits > 0, spill);
	assert_int_equal(fix_wrong(&f), 0);
	assert_int_equal(f.stats.pages_unreadable, GUARDS);
	fix_close(&f);
	munmap(u.m, UNREADABLE_PAGES * TP);
	munmap(u.shadow, UNREADABLE_PAGES * TP);
}

static void unreadable_after_a_round(void **state)
{
	char *page = fix_anon(TP);
	bool guards = !madvise(page, TP, MADV_GUARD_INSTALL);

	(void)state;
	munmap(page, TP);
	if (!fix_supported())
		skip();
	if (!guards) {
		print_message("# skip: this kernel has no guard pages (MADV_GUARD_INSTALL, Linux 6.13)\n");
		skip();
	}
	guard_after_a_round(false);
	guard_after_a_round(true);
}

/* ---- pages that a round staged and that are gone in the pause ---- */

#define GONE_PAGES 4096u
#define GONE_STAGED 700u
#define GONE 20u

struct gone {
	char *m, *shadow;
	size_t spill;
};

/* The last change before the instant: the last of the staged pages go, and before them so much is written that nothing stays staged. */
static int give_back_some(void *arg)
{
	const size_t gone = (GONE_PAGES - GONE) * TP;
	struct gone *g = arg;

	fix_fill(g->m, g->spill * TP, 3);
	memcpy(g->shadow, g->m, g->spill * TP);
	memset(g->shadow + gone, 0, GONE * TP);
	return madvise(g->m + gone, GONE * TP, MADV_DONTNEED) ? -errno : 0;
}

/*
 * The chain knows the pages as zeros, and the link has a copy of them that the writer's threads did not come to yet: that they are zeros again must
 * be said. One thread that compresses as slowly as it can does not come to them before the copy does.
 */
static void gone_after_a_round(bool spill, bool populated)
{
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = WPT_WRITER_NO_SYNC, .nr_threads = 1, .level = 19, .staging_bytes = 4 << 20 };
	struct wpt_take_options o = { .size = sizeof(o), .max_rounds = 1, .target_pause_us = 1, .resume = fix_void };
	const size_t zeros = (GONE_PAGES - GONE_STAGED) * TP;
	struct gone g = { .spill = spill ? 300 : 10 };
	struct fix f;

	g.m = fix_anon(GONE_PAGES * TP);
	g.shadow = fix_anon(GONE_PAGES * TP);
	madvise(g.m, GONE_PAGES * TP, MADV_NOHUGEPAGE);
	if (populated)
		memset(g.m, 0, GONE_PAGES * TP);
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, 0);
	fix_add_as(&f, g.m, g.shadow, GONE_PAGES * TP);
	assert_int_equal(wpt_writer_open(&f.w, f.t, f.chain, &wo), 0);
	fix_take_and_check(&f);
	fix_fill(g.m + zeros, GONE_STAGED * TP, 2);
	memcpy(g.shadow + zeros, g.m + zeros, GONE_STAGED * TP);
	o.quiesce = give_back_some;
	o.arg = &g;
	assert_int_equal(fix_try(&f, &o), 0);
	assert_int_equal(f.stats.nr_rounds, 1);
	assert_int_equal(f.stats.staging_waits > 0, spill);
	assert_int_equal(fix_wrong(&f), 0);
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(g.m, GONE_PAGES * TP);
	munmap(g.shadow, GONE_PAGES * TP);
}

static void zero_again_after_a_round(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	for (unsigned i = 0; i < 4; i++)
		gone_after_a_round(i & 1, i & 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(why_rounds_end),
		cmocka_unit_test(unreadable_after_a_round),
		cmocka_unit_test(zero_again_after_a_round),
		cmocka_unit_test(own_process),
		cmocka_unit_test(attached),
		cmocka_unit_test(attached_and_held),
		cmocka_unit_test(held_is_for_mode_pause),
		cmocka_unit_test(own_process_little_memory),
		cmocka_unit_test(attached_little_memory),
	};

	setup.seed = env_seed();
	setup.links = env_number("WPT_LINKS", 12);
	print_message("# WPT_SEED=%" PRIu64 "\n", setup.seed);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (getenv("WPT_ONLY") && *getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
