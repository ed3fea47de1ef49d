/* SPDX-License-Identifier: MIT */
/*
 * The hot set: pages that are written between nearly all links are left unprotected, are in every link as they were at its instant, and
 * are protected again when they are not written any more.
 *
 * WPT_SEED: of the random numbers (printed). WPT_ONLY: run tests whose name fits, with * and ?.
 */
#include "torture_util.h"

#include "random.h"

#define PAGES 1024u
#define BYTES (PAGES * TP)
#define UFFD_WP (UINT64_C(1) << 57)
#define TURNS 64u

enum memory { DENSE, HUGE_PAGES, MEMFD, NR_MEMORIES };

struct hot {
	struct fix f;
	char *m, *shadow;
	int fd, pagemap;
	bool hot[PAGES];
	unsigned nr_hot;
	uint64_t rng;
	bool writes;            /* also between the instant and the end of a link */
};

static uint64_t seed;

static char *memory_map(enum memory memory, int *fd)
{
	char *m;

	*fd = memory == MEMFD ? memfd_create("hot", MFD_CLOEXEC) : -1;
	if (memory == MEMFD)
		assert_int_equal(ftruncate(*fd, (off_t)BYTES), 0);
	m = fix_map(BYTES + (2 << 20), PROT_NONE | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	m = (char *)(((uintptr_t)m + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
	m = mmap(m, BYTES, PROT_READ | PROT_WRITE, MAP_FIXED | (memory == MEMFD ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS), *fd, 0);
	assert_true(m != MAP_FAILED);
	if (memory == HUGE_PAGES)
		madvise(m, BYTES, MADV_HUGEPAGE);
	fix_fill(m, BYTES, memory);
	return m;
}

static void put(struct hot *h, unsigned page)
{
	*(volatile uint64_t *)(h->m + page * TP + rng_below(&h->rng, TP / 8) * 8) = rng(&h->rng);
}

static void put_hot(struct hot *h)
{
	for (unsigned i = 0; i < PAGES; i++)
		if (h->hot[i])
			put(h, i);
}

static int instant(void *arg)
{
	struct hot *h = arg;

	memcpy(h->shadow, h->m, BYTES);
	return 0;
}

/* At once when the target may run again: before anything that the writer does then. */
static void resume(void *arg)
{
	struct hot *h = arg;

	if (h->writes)
		put_hot(h);
}

static int refuse(void *arg)
{
	(void)arg;
	return -ECANCELED;
}

static uint64_t nr_unprotected(struct hot *h, bool hot)
{
	uint64_t entries[PAGES], nr = 0;

	assert_int_equal(pread(h->pagemap, entries, sizeof(entries), (off_t)((uintptr_t)h->m / TP * 8)), sizeof(entries));
	for (unsigned i = 0; i < PAGES; i++)
		nr += h->hot[i] == hot && !(entries[i] & UFFD_WP);
	return nr;
}

static void take_unseen(struct hot *h)
{
	struct wpt_take_options o = { .size = sizeof(o), .paused = instant, .resume = resume, .quiesce = fix_nothing, .arg = h };

	if (rng_below(&h->rng, 3) == 0)
		o.max_rounds = WPT_NO_ROUNDS;
	if (rng_below(&h->rng, 10) == 0) {
		o.paused = refuse;
		assert_int_equal(fix_try(&h->f, &o), -ECANCELED);
		o.paused = instant;
	}
	assert_int_equal(fix_try(&h->f, &o), 0);
}

static void take(struct hot *h)
{
	take_unseen(h);
	h->f.range[0].mine = h->shadow;
	if (fix_wrong(&h->f))
		fail_msg("link %" PRIu64 " is wrong, WPT_SEED=%" PRIu64, h->f.stats.sequence, seed);
}

static void hot_open(struct hot *h, enum memory memory, uint32_t backend, uint32_t policy)
{
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = WPT_WRITER_NO_SYNC, .level = -5, .nr_threads = 2, .hot_set = policy };

	memset(h, 0, sizeof(*h));
	h->rng = seed + memory;
	h->m = memory_map(memory, &h->fd);
	h->shadow = fix_anon(BYTES);
	h->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	assert_true(h->pagemap >= 0);
	for (unsigned i = 0; i < PAGES; i++) {
		/* Some in runs, some alone. */
		h->hot[i] = (i > 300 && i < 500) || rng_below(&h->rng, 20) == 0;
		h->nr_hot += h->hot[i];
	}
	fix_tracker(&h->f, 0, backend, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&h->f, h->m, BYTES);
	assert_int_equal(wpt_writer_open(&h->f.w, h->f.t, h->f.chain, &wo), 0);
}

static void hot_close(struct hot *h)
{
	fix_close(&h->f);
	munmap(h->m, BYTES);
	munmap(h->shadow, BYTES);
	close(h->pagemap);
	if (h->fd >= 0)
		close(h->fd);
}

static void links(struct hot *h, unsigned nr, bool hot)
{
	for (unsigned i = 0; i < nr; i++) {
		if (hot)
			put_hot(h);
		for (unsigned n = 0; n < 20; n++)
			put(h, (unsigned)rng_below(&h->rng, PAGES));
		take(h);
	}
}

static void hot_case(enum memory memory, uint32_t backend)
{
	struct hot h;
	unsigned i;

	hot_open(&h, memory, backend, WPT_HOT_SET_AUTO);
	h.writes = true;
	take(&h);
	assert_int_equal(h.f.stats.pages_hot, 0);
	links(&h, 5, true);
	assert_int_equal(h.f.stats.pages_hot, 0);
	links(&h, 20, true);
	/* Written at that moment and at no other. */
	for (i = 0; i < 5; i++)
		take(&h);
	/* All but those whose turn it is, and a few others by chance. */
	assert_true(h.f.stats.pages_hot + 64 >= h.nr_hot && h.f.stats.pages_hot <= h.nr_hot + 5);
	/* At rest, so that what is not protected is what was left so. */
	h.writes = false;
	put_hot(&h);
	take(&h);
	assert_true(nr_unprotected(&h, true) + 64 >= h.nr_hot);
	assert_true(nr_unprotected(&h, false) <= 5);
	assert_int_equal(nr_unprotected(&h, true) + nr_unprotected(&h, false), h.f.stats.pages_hot);
	for (i = 0; i < TURNS; i++)
		take_unseen(&h);
	assert_int_equal(h.f.stats.pages_hot, 0);
	take(&h);
	assert_int_equal(h.f.stats.pages_dirty, 0);
	assert_int_equal(nr_unprotected(&h, true) + nr_unprotected(&h, false), 0);
	links(&h, 3, true);
	hot_close(&h);
}

static void all_kinds(uint32_t backend)
{
	for (enum memory m = DENSE; m < NR_MEMORIES; m++)
		hot_case(m, backend);
}

static void asynchronous(void **state)
{
	(void)state;
	if (!fix_async())
		skip();
	all_kinds(WPT_BACKEND_ASYNC);
}

static void synchronous(void **state)
{
	(void)state;
	if (!(way_features() & WPT_F_SYNC)) {
		print_message("# skip: needs a userfaultfd for this user that handles faults of system calls\n");
		skip();
	}
	all_kinds(WPT_BACKEND_SYNC);
}

/* Memory that goes away, comes back and moves while it is hot. */
static void memory_that_comes_and_goes(void **state)
{
	struct hot h;

	(void)state;
	for (enum memory m = DENSE; m < NR_MEMORIES; m++) {
		hot_open(&h, m, WPT_BACKEND_AUTO, WPT_HOT_SET_AUTO);
		h.writes = true;
		for (unsigned i = 0; i < 40; i++) {
			uint64_t from = rng_below(&h.rng, PAGES), nr = 1 + rng_below(&h.rng, 300);

			put_hot(&h);
			if (nr > PAGES - from)
				nr = PAGES - from;
			if (i > 10 && i % 3 == 0)
				assert_int_equal(madvise(h.m + from * TP, nr * TP, m == MEMFD ? MADV_REMOVE : MADV_DONTNEED), 0);
			if (i > 10 && i % 7 == 0 && m != MEMFD)
				assert_true(mmap(h.m + from * TP, nr * TP, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
					    MAP_FAILED);
			take(&h);
		}
		assert_true(h.f.stats.pages_hot > 0);
		hot_close(&h);
	}
}

static void off_by_default(void **state)
{
	struct hot h;

	(void)state;
	hot_open(&h, DENSE, WPT_BACKEND_AUTO, WPT_HOT_SET_OFF);
	links(&h, 12, true);
	assert_int_equal(h.f.stats.pages_hot, 0);
	assert_int_equal(nr_unprotected(&h, true) + nr_unprotected(&h, false), 0);
	hot_close(&h);
}

static void another_policy_is_refused(void **state)
{
	struct wpt_writer_options o = { .size = sizeof(o), .hot_set = 2 };
	struct wpt_writer *w;
	struct fix f;

	(void)state;
	fix_tracker(&f, 0, WPT_BACKEND_REPORTED, 0);
	assert_int_equal(wpt_writer_open(&w, f.t, f.chain, &o), -EINVAL);
	fix_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(asynchronous),
		cmocka_unit_test(synchronous),
		cmocka_unit_test(memory_that_comes_and_goes),
		cmocka_unit_test(off_by_default),
		cmocka_unit_test(another_policy_is_refused),
	};

	seed = env_seed();
	print_message("# WPT_SEED=%" PRIu64 "\n", seed);
	if (getenv("WPT_ONLY") && *getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
