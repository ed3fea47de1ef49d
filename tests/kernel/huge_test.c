/* SPDX-License-Identifier: MIT */
/*
 * Huge pages that are given back (WPT_WRITER_COLLAPSE): they come back, what should be left alone is, and every link still shows the memory of the
 * instant at which everything stood still, of which the test takes a copy of its own, while writers write all through the collapse.
 *
 * WPT_SEED: of the random numbers (printed). WPT_LINKS: how many a case takes. WPT_ONLY: run tests whose name fits, with * and ?.
 */
#include "torture_util.h"

#include "hammer.h"
#include "random.h"

#define HUGE ((size_t)2 << 20)
#define NR_BLOCKS ((size_t)12)
#define BYTES (NR_BLOCKS * HUGE)
#define PAGES (BYTES / TP)
#define BASE 0x510000000000ull

/* Shared with the target; the memory has the same address in both. */
struct shared {
	struct hammer hammer;
	char *memory;
	bool unused;             /* nobody writes */
};

struct huge {
	struct fix f;
	struct shared *h;
	int mem, pagemap;        /* of the target */
	pid_t pid;               /* itself, also where it is the own process */
};

static struct {
	uint64_t seed, links;
} setup;

static unsigned said;            /* warnings of the log */

/* ---- the target ---- */

static char *map_huge(uint64_t at, size_t bytes, int advice)
{
	char *m = mmap((void *)(uintptr_t)at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	if (m == MAP_FAILED || madvise(m, bytes, advice))
		_exit(3);
	return m;
}

/*
 * Mostly single writes, with so much time between two to the same page that one that is missed stays so until the next link. Now and then something
 * that makes a huge page whole, holed or new.
 */
static void one_step(struct hammer *hammer, uint64_t *r)
{
	struct shared *h = (struct shared *)hammer;
	uint64_t what = rng_below(r, 3000), page = rng_below(r, PAGES);
	char *block = h->memory + page * TP / HUGE * HUGE;

	if (what == 0)
		madvise(block, HUGE, MADV_DONTNEED);
	if (what == 1)
		madvise(h->memory + page * TP, TP, MADV_DONTNEED);
	for (size_t i = 0; what < 20 && i < HUGE; i += TP)
		*(volatile uint64_t *)(block + i) = rng(r);
	*(volatile uint64_t *)(h->memory + page * TP + rng_below(r, TP / 8) * 8) = rng(r);
	atomic_fetch_add_explicit(&hammer->writes, 1, memory_order_relaxed);
	for (unsigned i = 0; i < 8; i++)
		sched_yield();
}

static void memory_map(struct shared *h)
{
	h->memory = map_huge(BASE, BYTES, MADV_HUGEPAGE);
	fix_fill(h->memory, BYTES, 1);
}

static void writers_start(struct shared *h)
{
	h->hammer.step = one_step;
	if (!h->unused)
		hammer_start(&h->hammer);
}

static pid_t target_start(struct shared *h)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 1);
	memory_map(h);
	writers_start(h);
	atomic_store(&h->hammer.ready, 1);
	for (;;)
		pause();
}

/* ---- the test's side ---- */

/* As the kernel counts them: of mappings that begin in [from, to). */
static uint64_t smaps_bytes(pid_t pid, const char *key, uint64_t from, uint64_t to)
{
	char path[64], line[300];
	uint64_t start = 0, bytes = 0, first, second;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	f = fopen(path, "re");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &first, &second) == 2)
			start = first;
		else if (strncmp(line, key, strlen(key)) == 0 && start >= from && start < to)
			bytes += strtoull(line + strlen(key), NULL, 10) << 10;
	}
	fclose(f);
	return bytes;
}

static uint64_t huge_bytes(struct huge *u)
{
	return smaps_bytes(u->pid, "AnonHugePages:", BASE, BASE + BYTES);
}

/* The zero page is none: reading the memory, as the shadow does, puts it there. */
static bool has_page(struct huge *u, const char *at)
{
	uint64_t e = 0;

	assert_int_equal(pread(u->pagemap, &e, sizeof(e), (off_t)((uintptr_t)at / TP * sizeof(e))), sizeof(e));
	return e >> 63 && e >> 56 & 1;
}

static void count_warnings(void *arg, enum wpt_log_level level, const char *message)
{
	(void)arg;
	said += level == WPT_LOG_WARNING && strstr(message, "huge pages of the target are not given back");
}

static void writer_open(struct huge *u, uint32_t flags, uint64_t staging)
{
	struct wpt_writer_options o = { .size = sizeof(o), .flags = WPT_WRITER_NO_SYNC | flags, .nr_threads = 2, .level = -5,
					.staging_bytes = staging };

	u->f.t->log.fn = count_warnings;
	said = 0;
	assert_int_equal(wpt_writer_open(&u->f.w, u->f.t, u->f.chain, &o), 0);
}

/* A target, or the own process as one, with a tracker. */
static void start(struct huge *u, bool attached, bool writers)
{
	char path[64];
	pid_t pid = 0;

	memset(u, 0, sizeof(*u));
	if (!fix_async())
		skip();
	u->h = fix_map(sizeof(*u->h), MAP_SHARED | MAP_ANONYMOUS, -1);
	u->h->hammer.seed = setup.seed;
	u->h->unused = !writers;
	if (attached) {
		pid = target_start(u->h);
		while (!atomic_load(&u->h->hammer.ready))
			sched_yield();
	} else {
		memory_map(u->h);
		writers_start(u->h);
	}
	u->pid = pid ? pid : getpid();
	snprintf(path, sizeof(path), "/proc/%d/mem", u->pid);
	u->mem = open(path, O_RDWR | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", u->pid);
	u->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(u->mem >= 0 && u->pagemap >= 0);
	if (writers ? !huge_bytes(u) : huge_bytes(u) != BYTES) {
		print_message("# skip: needs transparent huge pages\n");
		skip();
	}
	fix_tracker(&u->f, pid, WPT_BACKEND_AUTO, 0);
	fix_add_as(&u->f, u->h->memory, fix_anon(BYTES), BYTES);
}

static void end(struct huge *u)
{
	if (!u->f.pid && !u->h->unused)
		hammer_end(&u->h->hammer);
	fix_close(&u->f);
	munmap(u->f.range[0].mine, BYTES);
	if (u->f.pid) {
		kill(u->f.pid, SIGKILL);
		waitpid(u->f.pid, NULL, 0);
	} else {
		munmap(u->h->memory, BYTES);
	}
	close(u->mem);
	close(u->pagemap);
	munmap(u->h, sizeof(*u->h));
}

static int shadow(void *arg)
{
	struct huge *u = arg;

	return pread(u->mem, u->f.range[0].mine, BYTES, (off_t)BASE) == (ssize_t)BYTES ? 0 : -EIO;
}

static int refuse(void *arg)
{
	(void)arg;
	return -ECANCELED;
}

static int quiesce(void *arg)
{
	struct huge *u = arg;

	hammer_hold(&u->h->hammer);
	return 0;
}

static void resume(void *arg)
{
	struct huge *u = arg;

	hammer_let_go(&u->h->hammer);
}

static int take_with(struct huge *u, struct wpt_take_options *o)
{
	int r, tries = 0;

	o->size = sizeof(*o);
	o->arg = u;
	if (!u->f.pid && o->mode != WPT_MODE_FUZZY) {
		o->quiesce = quiesce;
		o->resume = resume;
	}
	do
		r = fix_try(&u->f, o);
	while (r == -WPT_E_STOP_TIMEOUT && ++tries < 100);
	return r;
}

/* The link shows what was there in the pause; and so says the number of pages that were given back: returned. */
static uint64_t take(struct huge *u)
{
	struct wpt_take_options o = { .paused = shadow };

	assert_int_equal(take_with(u, &o), 0);
	assert_int_equal(fix_wrong(&u->f), 0);
	return u->f.stats.pages_collapsed;
}

/* A write of the target, as far as write protection goes. */
static void poke(struct huge *u, uint64_t page, uint64_t value)
{
	if (!u->f.pid) {
		*(volatile uint64_t *)(u->h->memory + page * TP + value % 512 * 8) = value;
		return;
	}
	assert_int_equal(pwrite(u->mem, &value, sizeof(value), (off_t)(BASE + page * TP + value % 512 * 8)), sizeof(value));
}

static void split_all(struct huge *u, uint64_t value)
{
	for (uint64_t i = 0; i < NR_BLOCKS; i++)
		poke(u, i * (HUGE / TP) + (i * 37 + value) % (HUGE / TP), value);
}

/* ---- cases ---- */

static void without_the_flag(bool attached)
{
	struct huge u;

	start(&u, attached, false);
	writer_open(&u, 0, 0);
	take(&u);
	assert_int_equal(huge_bytes(&u), BYTES);
	split_all(&u, 1);
	assert_int_equal(huge_bytes(&u), 0);
	for (uint64_t i = 2; i < 5; i++) {
		assert_int_equal(take(&u), 0);
		split_all(&u, i);
		assert_int_equal(huge_bytes(&u), 0);
	}
	end(&u);
}

static void lost_without_the_flag(void **state)
{
	(void)state;
	without_the_flag(false);
	without_the_flag(true);
}

/* After several links at most; what the last of them gave back is returned. */
static uint64_t take_until(struct huge *u, uint64_t pages)
{
	uint64_t last = 0, sum = 0;

	while (sum < pages && u->f.stats.sequence < 200) {
		last = take(u);
		sum += last;
	}
	assert_int_equal(sum, pages);
	return last;
}

static void with_the_flag(bool attached)
{
	uint64_t last;
	struct huge u;

	start(&u, attached, false);
	writer_open(&u, WPT_WRITER_COLLAPSE, 0);
	assert_int_equal(take(&u), 0);
	assert_int_equal(said, 0);
	for (uint64_t i = 1; i < 5; i++) {
		split_all(&u, 10 * i);
		assert_int_equal(huge_bytes(&u), 0);
		last = take_until(&u, PAGES);
		assert_int_equal(huge_bytes(&u), BYTES);
		/* What the last link gave back is not protected, and is not split by a write. */
		split_all(&u, 10 * i + 1);
		assert_int_equal(huge_bytes(&u), last * TP);
		take(&u);
		assert_int_equal(u.f.stats.pages_stored, NR_BLOCKS);
		take_until(&u, PAGES - huge_bytes(&u) / TP);
		assert_int_equal(huge_bytes(&u), BYTES);
		assert_int_equal(take(&u), 0);
		/* What was not given back is not looked at. */
		assert_int_equal(take(&u), 0);
		assert_int_equal(u.f.stats.pages_dirty, 0);
		assert_int_equal(huge_bytes(&u), BYTES);
	}
	end(&u);
}

static void back_with_the_flag(void **state)
{
	(void)state;
	with_the_flag(false);
	with_the_flag(true);
}

/* All writers at work, before, in between and after. */
static void writers_case(bool attached, uint32_t mode, const char *backend)
{
	static const uint32_t max[] = { 0, 1, 3, WPT_NO_ROUNDS };
	uint64_t rng = setup.seed, collapsed = 0;
	struct huge u;

	way_backend = backend;
	start(&u, attached, true);
	writer_open(&u, WPT_WRITER_COLLAPSE, rng_below(&rng, 2) ? 64 << 20 : 16 << 20);
	for (uint64_t i = 0; i < setup.links || (!collapsed && i < 200); i++) {
		struct wpt_take_options fuzzy = { .mode = WPT_MODE_FUZZY }, o = { .mode = mode, .max_rounds = max[rng_below(&rng, 4)] }, failed = o;

		failed.paused = refuse;
		if (rng_below(&rng, 8) == 0)
			assert_int_equal(take_with(&u, &failed), -ECANCELED);
		if (rng_below(&rng, 8) == 0)
			assert_int_equal(take_with(&u, &fuzzy), 0);
		o.paused = shadow;
		assert_int_equal(take_with(&u, &o), 0);
		collapsed += u.f.stats.pages_collapsed;
		if (fix_wrong(&u.f))
			fail_msg("WRONG PAGES: %" PRIu64 " of link %" PRIu64 ", WPT_SEED=%" PRIu64, fix_wrong(&u.f), i, setup.seed);
	}
	print_message("# %" PRIu64 " links, %" PRIu64 " huge pages given back, %" PRIu64 " writes; seed %" PRIu64 "\n", setup.links,
		      collapsed * TP / HUGE, (uint64_t)atomic_load(&u.h->hammer.writes), setup.seed);
	assert_true(collapsed > 0);
	end(&u);
	way_backend = NULL;
}

static void writers_own_process(void **state)
{
	(void)state;
	writers_case(false, WPT_MODE_PAUSE, NULL);
}

static void writers_attached(void **state)
{
	(void)state;
	writers_case(true, WPT_MODE_PAUSE, NULL);
}

static bool sync_supported(void)
{
	if (way_features() & WPT_F_SYNC && way_features() & WPT_F_PAGEMAP_SCAN)
		return true;
	print_message("# skip: needs a userfaultfd for this user that handles faults of system calls, and PAGEMAP_SCAN\n");
	return false;
}

static void writers_sync(void **state)
{
	(void)state;
	if (!sync_supported())
		skip();
	writers_case(false, WPT_MODE_PAUSE, "sync");
	writers_case(true, WPT_MODE_PAUSE, "sync");
}

static void writers_cow(void **state)
{
	(void)state;
	if (!sync_supported())
		skip();
	writers_case(false, WPT_MODE_COW, "sync");
	writers_case(true, WPT_MODE_COW, "sync");
}

/* A place that was given back stays empty, and the others of its huge page small. */
static void holes_stay_holes(void **state)
{
	struct huge u;
	char *hole;

	(void)state;
	start(&u, false, false);
	writer_open(&u, WPT_WRITER_COLLAPSE, 0);
	take(&u);
	hole = u.h->memory + 5 * TP;
	madvise(hole, TP, MADV_DONTNEED);
	for (uint64_t i = 1; i < 4; i++) {
		poke(&u, 9, i);
		assert_int_equal(take(&u), 0);
		assert_false(has_page(&u, hole));
	}
	/* The zero page is not the target's own. */
	assert_int_equal(*(volatile char *)hole, 0);
	poke(&u, 9, 5);
	assert_int_equal(take(&u), 0);
	assert_int_equal(huge_bytes(&u), BYTES - HUGE);
	*hole = 1;
	take_until(&u, HUGE / TP);
	assert_int_equal(huge_bytes(&u), BYTES);
	end(&u);
}

/* Memory that never was huge pages, though it may be. */
static void small_pages_stay_small(void **state)
{
	const uint64_t at = BASE + 4 * BYTES;
	struct huge u;
	char *m;

	(void)state;
	start(&u, false, false);
	m = map_huge(at, 2 * HUGE, MADV_NOHUGEPAGE);
	fix_fill(m, 2 * HUGE, 2);
	fix_add(&u.f, m, 2 * HUGE);
	writer_open(&u, WPT_WRITER_COLLAPSE, 0);
	take(&u);
	assert_int_equal(madvise(m, 2 * HUGE, MADV_HUGEPAGE), 0);
	for (uint64_t i = 1; i < 4; i++) {
		fix_fill(m, 2 * HUGE, 2 + (unsigned)i);
		assert_int_equal(take(&u), 0);
	}
	assert_int_equal(smaps_bytes(u.pid, "AnonHugePages:", at, at + 2 * HUGE), 0);
	end(&u);
	munmap(m, 2 * HUGE);
}

/* Other memory is where huge pages were. */
static void memory_mapped_anew_is_left_alone(void **state)
{
	struct huge u;

	(void)state;
	start(&u, false, false);
	writer_open(&u, WPT_WRITER_COLLAPSE, 0);
	take(&u);
	split_all(&u, 1);
	map_huge(BASE, BYTES / 2, MADV_NOHUGEPAGE);
	madvise(u.h->memory, BYTES / 2, MADV_HUGEPAGE);
	*(volatile char *)(u.h->memory + HUGE - TP) = 1;
	madvise(u.h->memory, HUGE, MADV_DONTNEED);
	madvise(u.h->memory, BYTES / 2, MADV_NOHUGEPAGE);
	fix_fill(u.h->memory, HUGE, 5);
	*(volatile char *)(u.h->memory + 2 * HUGE) = 1;
	take_until(&u, PAGES / 2);
	assert_int_equal(take(&u), 0);
	assert_int_equal(huge_bytes(&u), BYTES / 2);
	assert_false(has_page(&u, u.h->memory + 2 * HUGE + TP));
	end(&u);
}

/* A collapse would copy what a child shares. */
static void shared_with_a_child(void **state)
{
	uint64_t rss;
	struct huge u;
	int fd[2];
	pid_t pid;
	char c;

	(void)state;
	start(&u, false, false);
	writer_open(&u, WPT_WRITER_COLLAPSE, 0);
	take(&u);
	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		close(fd[1]);
		_exit((int)read(fd[0], &c, 1));
	}
	split_all(&u, 1);
	rss = smaps_bytes(u.pid, "Private_Dirty:", BASE, BASE + BYTES);
	assert_int_equal(take(&u), 0);
	assert_int_equal(take(&u), 0);
	assert_int_equal(huge_bytes(&u), 0);
	assert_int_equal(smaps_bytes(u.pid, "Private_Dirty:", BASE, BASE + BYTES), rss);
	close(fd[1]);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	close(fd[0]);
	take_until(&u, PAGES);
	assert_int_equal(huge_bytes(&u), BYTES);
	end(&u);
}

/* Half of the staging memory at a time. */
static void no_more_than_fits(void **state)
{
	uint64_t sum = 0, got;
	struct huge u;

	(void)state;
	start(&u, false, false);
	writer_open(&u, WPT_WRITER_COLLAPSE, 10 << 20);
	take(&u);
	split_all(&u, 1);
	while (sum < PAGES && u.f.stats.sequence < 200) {
		got = take(&u);
		assert_true(got <= 2 * (HUGE / TP));
		sum += got;
	}
	assert_int_equal(sum, PAGES);
	assert_int_equal(huge_bytes(&u), BYTES);
	end(&u);
}

/* Arming, scanning and unregistering of much memory go by slices: those of a range that begins anywhere end where a huge page ends. */
static void slices_split_nothing(void **state)
{
	const uint64_t at = BASE + 4 * BYTES, bytes = (uint64_t)1 << 30;
	struct wpt_range r = { .size = sizeof(r), .start = at + TP, .end = at + bytes + 2 * HUGE };
	struct fix f;
	char *m;

	(void)state;
	if (!fix_async())
		skip();
	m = map_huge(at, bytes + 2 * HUGE, MADV_HUGEPAGE);
	m[bytes] = 1;
	if (smaps_bytes(getpid(), "AnonHugePages:", at, at + 1) != HUGE) {
		print_message("# skip: needs transparent huge pages\n");
		skip();
	}
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, 0);
	assert_true(wpt_range_add(f.t, &r) > 0);
	assert_int_equal(wpt_tracker_arm(f.t), 0);
	assert_int_equal(smaps_bytes(getpid(), "AnonHugePages:", at, at + bytes), HUGE);
	fix_close(&f);
	assert_int_equal(smaps_bytes(getpid(), "AnonHugePages:", at, at + bytes), HUGE);
	munmap(m, bytes + 2 * HUGE);
}

static void nothing_given_back(bool attached)
{
	struct huge u;

	start(&u, attached, false);
	writer_open(&u, WPT_WRITER_COLLAPSE, 0);
	assert_int_equal(said, 1);
	take(&u);
	for (uint64_t i = 1; i < 3; i++) {
		split_all(&u, i);
		assert_int_equal(take(&u), 0);
		assert_true(u.f.stats.pages_dirty <= NR_BLOCKS);
	}
	assert_int_equal(said, 1);
	end(&u);
}

static void by_nobody(void **state)
{
	(void)state;
	nothing_given_back(true);
}

/* Without the right to, links are taken all the same. */
static void not_permitted(void **state)
{
	(void)state;
	if (!fix_async())
		skip();
	run_as_nobody(by_nobody);
}

static void without_pagemap_scan(void **state)
{
	(void)state;
	if (!sync_supported())
		skip();
	way_backend = "entries";
	nothing_given_back(false);
	way_backend = NULL;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lost_without_the_flag),
		cmocka_unit_test(back_with_the_flag),
		cmocka_unit_test(holes_stay_holes),
		cmocka_unit_test(small_pages_stay_small),
		cmocka_unit_test(memory_mapped_anew_is_left_alone),
		cmocka_unit_test(shared_with_a_child),
		cmocka_unit_test(no_more_than_fits),
		cmocka_unit_test(slices_split_nothing),
		cmocka_unit_test(not_permitted),
		cmocka_unit_test(without_pagemap_scan),
		cmocka_unit_test(writers_own_process),
		cmocka_unit_test(writers_attached),
		cmocka_unit_test(writers_sync),
		cmocka_unit_test(writers_cow),
	};

	setup.seed = env_seed();
	setup.links = env_number("WPT_LINKS", 12);
	print_message("# WPT_SEED=%" PRIu64 "\n", setup.seed);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (getenv("WPT_ONLY") && *getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
