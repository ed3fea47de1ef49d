/* SPDX-License-Identifier: MIT */
/*
 * The torture oracle: a target does everything to its memory that a program can do, links are taken meanwhile, and every link is
 * restored and compared, byte for byte, with a shadow copy that was taken while all stood still.
 *
 * WPT_SEED: of the random numbers (printed). WPT_STEPS: operations per kind of memory. WPT_ONLY: run tests whose name contains it.
 * WPT_TORTURE_COMPENSATION: see way.h; without compensation this fails on a stock kernel, with writes that were lost.
 */
#include "torture_live.h"

#include <setjmp.h>

#include <cmocka.h>

static bool kinds_need_huge(const struct run *run)
{
	for (unsigned i = 0; i < run->nr_kinds; i++)
		if (area_descs[run->kinds[i]].unit == HUGE)
			return true;
	return false;
}

/* Of a run with its own backend, that one. On a kernel that has only backend sync, the others are tested by those that ask for it. */
static void need_async(void)
{
	struct wpt_probe p = { .size = sizeof(p) };
	bool sync = way_backend || getenv("WPT_TORTURE_BACKEND");

	assert_int_equal(wpt_probe(&p), 0);
	if (!(p.features & (sync && way_is_sync() ? WPT_F_SYNC : WPT_F_ASYNC))) {
		print_message("# skip: this kernel or this user has no asynchronous userfaultfd write protection with PAGEMAP_SCAN\n");
		skip();
	}
}

static void torture_case(void **state)
{
	const struct run *run = *state;

	way_backend = run->backend;
	need_async();
	if (kinds_need_huge(run) && !have_hugepages(18)) {
		print_message("# skip: needs 18 free huge pages of 2 MiB: echo 64 > /proc/sys/vm/nr_hugepages\n");
		skip();
	}
	assert_int_equal(torture(run), 0);
}

static void fuzzy_case(void **state)
{
	(void)state;
	way_backend = NULL;
	need_async();
	assert_int_equal(fuzzy(), 0);
}

static void scan_case(void **state)
{
	const uint32_t *kind = *state;

	way_backend = NULL;
	need_async();
	if (area_descs[*kind].unit == HUGE && !way_is_exact()) {
		print_message("# skip: a huge page that was given back and read again is seen with wp_written, the marker patch\n");
		skip();
	}
	if (area_descs[*kind].unit == HUGE && !have_hugepages(18)) {
		print_message("# skip: needs 18 free huge pages of 2 MiB: echo 64 > /proc/sys/vm/nr_hugepages\n");
		skip();
	}
	assert_int_equal(scan_oracle(*state), 0);
}

/*
 * The target is the only writer, which is said: where some process can't be inspected (no privilege, a container) everything shared
 * would else be compared by content, and nothing be tested. The last two runs don't say it.
 */
#define FLAGS(verify_) ((verify_) ? WPT_TRACK_VERIFY_CONTENT : WPT_TRACK_ASSUME_SOLE_WRITER)
#define ONE(kind_, name_, verify_, ...)                                                                      \
	{ .name = name_, .nr_kinds = 1, .kinds = { kind_ }, .track_flags = FLAGS(verify_), __VA_ARGS__ }, \
	{                                                                                               \
		.name = name_ "-attached", .attached = true, .nr_kinds = 1, .kinds = { kind_ },         \
		.track_flags = FLAGS(verify_), __VA_ARGS__                                              \
	}

/* The own process or another, since each of these takes its time. */
#define OTHER(kind_, name_, attached_, ...)                                                             \
	{                                                                                               \
		.name = name_, .attached = attached_, .nr_kinds = 1, .kinds = { kind_ },                \
		.track_flags = WPT_TRACK_ASSUME_SOLE_WRITER, __VA_ARGS__                                \
	}

static struct run runs[] = {
	ONE(AREA_ANON, "anon", 0),
	ONE(AREA_THP, "thp", 0),
	ONE(AREA_SHARED_ANON, "shared-anon", 0),
	ONE(AREA_MEMFD, "memfd", 0),
	ONE(AREA_MEMFD_PRIVATE, "memfd-private", 0),
	ONE(AREA_TMPFS, "tmpfs", 0),
	ONE(AREA_TMPFS_PRIVATE, "tmpfs-private", 0),
	ONE(AREA_FILE, "file", 0),
	ONE(AREA_FILE_PRIVATE, "file-private", 0),
	ONE(AREA_HUGE_PRIVATE, "hugetlb-private", 0),
	ONE(AREA_HUGE_SHARED, "hugetlb-shared", 0),
	ONE(AREA_HUGE_FILE_PRIVATE, "hugetlb-file-private", 0),
	ONE(AREA_BRK, "brk", 0),
	ONE(AREA_MEMFD, "memfd-verify", 1),
	ONE(AREA_MEMFD_PRIVATE, "memfd-private-verify", 1),
	ONE(AREA_HUGE_SHARED, "hugetlb-shared-verify", 1),
	{ .name = "mixed", .nr_kinds = 7, .steps_factor = 2, .kinds = { AREA_ANON, AREA_THP, AREA_MEMFD, AREA_MEMFD_PRIVATE, AREA_TMPFS,
	  AREA_FILE, AREA_FILE_PRIVATE } },
	{ .name = "everything-attached", .attached = true, .all = true, .nr_kinds = 9, .steps_factor = 3,
	  .kinds = { AREA_ANON, AREA_THP, AREA_MEMFD, AREA_MEMFD_PRIVATE, AREA_TMPFS, AREA_FILE, AREA_FILE_PRIVATE, AREA_SHARED_ANON,
		     AREA_BRK } },
	ONE(AREA_ANON, "sync-anon", 0, .backend = "sync"),
	OTHER(AREA_MEMFD, "sync-memfd", true, .backend = "entries"),
	OTHER(AREA_MEMFD_PRIVATE, "sync-memfd-private", false, .backend = "sync"),
	OTHER(AREA_HUGE_PRIVATE, "sync-hugetlb-private", true, .backend = "entries"),
	OTHER(AREA_HUGE_SHARED, "sync-hugetlb-shared", false, .backend = "sync"),
	{ .name = "sync-mixed", .nr_kinds = 7, .steps_factor = 2, .backend = "entries", .kinds = { AREA_ANON, AREA_THP, AREA_MEMFD,
	  AREA_MEMFD_PRIVATE, AREA_TMPFS, AREA_FILE, AREA_FILE_PRIVATE } },
	ONE(AREA_ANON, "cow-anon", 0, .backend = "sync", .mode = WPT_MODE_COW),
	ONE(AREA_MEMFD, "cow-memfd", 0, .backend = "sync", .mode = WPT_MODE_COW),
	OTHER(AREA_THP, "cow-thp", true, .backend = "entries", .mode = WPT_MODE_COW),
	OTHER(AREA_MEMFD_PRIVATE, "cow-memfd-private", true, .backend = "entries", .mode = WPT_MODE_COW),
	OTHER(AREA_TMPFS, "cow-tmpfs", false, .backend = "sync", .mode = WPT_MODE_COW),
	OTHER(AREA_FILE_PRIVATE, "cow-file-private", true, .backend = "sync", .mode = WPT_MODE_COW),
	OTHER(AREA_HUGE_PRIVATE, "cow-hugetlb-private", false, .backend = "sync", .mode = WPT_MODE_COW),
	OTHER(AREA_HUGE_SHARED, "cow-hugetlb-shared", true, .backend = "sync", .mode = WPT_MODE_COW),
	OTHER(AREA_BRK, "cow-brk", true, .backend = "entries", .mode = WPT_MODE_COW),
	{ .name = "cow-mixed", .nr_kinds = 7, .steps_factor = 2, .backend = "sync", .mode = WPT_MODE_COW, .kinds = { AREA_ANON, AREA_THP,
	  AREA_MEMFD, AREA_MEMFD_PRIVATE, AREA_TMPFS, AREA_FILE, AREA_FILE_PRIVATE } },
	{ .name = "cow-everything-attached", .attached = true, .all = true, .nr_kinds = 9, .steps_factor = 3, .backend = "sync",
	  .mode = WPT_MODE_COW, .kinds = { AREA_ANON, AREA_THP, AREA_MEMFD, AREA_MEMFD_PRIVATE, AREA_TMPFS, AREA_FILE, AREA_FILE_PRIVATE,
		     AREA_SHARED_ANON, AREA_BRK } },
	{ .name = "sync-everything-attached", .attached = true, .all = true, .nr_kinds = 9, .steps_factor = 3, .backend = "sync",
	  .kinds = { AREA_ANON, AREA_THP, AREA_MEMFD, AREA_MEMFD_PRIVATE, AREA_TMPFS, AREA_FILE, AREA_FILE_PRIVATE, AREA_SHARED_ANON,
		     AREA_BRK } },
};

static uint32_t scan_kinds[] = { AREA_ANON, AREA_THP, AREA_SHARED_ANON, AREA_MEMFD, AREA_MEMFD_PRIVATE, AREA_TMPFS, AREA_FILE,
				 AREA_FILE_PRIVATE, AREA_HUGE_PRIVATE, AREA_HUGE_SHARED };

static unsigned add_test(struct CMUnitTest *tests, unsigned n, const char *name, CMUnitTestFunction fn, void *state)
{
	const char *only = getenv("WPT_ONLY");

	if (!only || strstr(name, only))
		tests[n++] = (struct CMUnitTest){ .name = name, .test_func = fn, .initial_state = state };
	return n;
}

static void make_setup(const char *self)
{
	const char *tmp = getenv("TMPDIR");
	static char path[4096];

	setup.seed = env_seed();
	setup.steps = env_number("WPT_STEPS", 2000);
	setup.links = 22;
	setup.self = realpath(self, path) ? path : "/proc/self/exe";
	snprintf(setup.dir, sizeof(setup.dir), "%s/wptrack-torture-XXXXXX", tmp && *tmp ? tmp : "/var/tmp");
	if (!mkdtemp(setup.dir)) {
		perror(setup.dir);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	static struct CMUnitTest tests[100];
	static char scan_names[16][40];
	unsigned n = 0, i;
	int r;

	if (argc == 3 && strcmp(argv[1], "--target") == 0)
		return target_main(atoi(argv[2]));
	make_setup("/proc/self/exe");
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("# WPT_SEED=%" PRIu64 " WPT_STEPS=%" PRIu64 ", %s\n", setup.seed, setup.steps,
	       way_is_exact() ? "without compensation" : "with compensation");
	if (meminfo("SwapFree:") < 100000)
		printf("# no swap (a zram device of 512 MiB will do): MADV_PAGEOUT moves only file pages out\n");
	for (i = 0; i < sizeof(runs) / sizeof(runs[0]); i++)
		n = add_test(tests, n, runs[i].name, torture_case, &runs[i]);
	n = add_test(tests, n, "fuzzy", fuzzy_case, NULL);
	for (i = 0; i < sizeof(scan_kinds) / sizeof(scan_kinds[0]); i++) {
		snprintf(scan_names[i], sizeof(scan_names[i]), "live-scan-%s", area_descs[scan_kinds[i]].name);
		n = add_test(tests, n, scan_names[i], scan_case, &scan_kinds[i]);
	}
	r = _cmocka_run_group_tests("torture", tests, n, NULL, NULL);
	rmdir(setup.dir);
	return r;
}
