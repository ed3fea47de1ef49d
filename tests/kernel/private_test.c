/* SPDX-License-Identifier: MIT */
/*
 * Private mappings of files whose pages became the target's own and went to swap, where a marker looks the same; and what is in swap and clean stays
 * there.
 */
#include "torture_util.h"
#include "hammer.h"
#include "random.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

#define PAGES 512u
#define BYTES (PAGES * TP)

static bool have_swap(void)
{
	const size_t bytes = 4u << 20;
	char *m = fix_anon(bytes);
	bool went;

	fix_fill(m, bytes, 1);
	madvise(m, bytes, MADV_PAGEOUT);
	went = status_kib(getpid(), "VmSwap:") >= bytes / 2 / 1024;
	munmap(m, bytes);
	if (!went)
		print_message("# skip: needs swap (a zram device of 512 MiB will do)\n");
	return went;
}

static int ignore_run(void *arg, const struct wpt_run *run)
{
	(void)arg;
	(void)run;
	return 0;
}

/* Pages that became the target's own, and that a scan took from the kernel; then they are in swap, where a marker looks the same. */
static void private_pages_of_a_file_that_were_scanned_before_they_were_swapped(void **state)
{
	(void)state;
	if (!fix_supported() || !have_swap())
		skip();
	const size_t bytes = 4u << 20;
	int fd = memfd_create("private", MFD_CLOEXEC);
	char *data = malloc(bytes), *m;
	struct fix f;

	fix_fill(data, bytes, 1);
	assert_int_equal(pwrite(fd, data, bytes, 0), bytes);
	m = fix_map(bytes, MAP_PRIVATE, fd);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&f, m, bytes);
	assert_int_equal(wpt_tracker_arm(f.t), 0);
	fix_fill(m, bytes, 2);
	assert_int_equal(wpt_tracker_scan(f.t, 0, UINT64_MAX, WPT_SCAN_REARM, ignore_run, NULL), 0);
	madvise(m, bytes, MADV_PAGEOUT);
	fix_writer(&f);
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(m, bytes);
	close(fd);
	free(data);
}

/* Another mapping in the place of the second half ends a scan in its middle: what it protected before that, it can't tell. */
static void scans_that_fail_before_private_pages_are_swapped(const char *backend)
{
	const size_t bytes = 4u << 20;
	int fd = memfd_create("private", MFD_CLOEXEC);
	char *data = malloc(bytes), *m;
	struct fix f;

	fix_fill(data, bytes, 1);
	assert_int_equal(pwrite(fd, data, bytes, 0), bytes);
	m = fix_map(bytes, MAP_PRIVATE, fd);
	way_backend = backend;
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&f, m, bytes);
	assert_int_equal(wpt_tracker_arm(f.t), 0);
	fix_fill(m, bytes / 2, 2);
	madvise(m, bytes, MADV_PAGEOUT);
	assert_true(mmap(m + bytes / 2, bytes / 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, (off_t)bytes / 2) == m + bytes / 2);
	fix_fill(m + bytes / 2, bytes / 2, 3);
	assert_int_equal(wpt_tracker_scan(f.t, 0, UINT64_MAX, WPT_SCAN_REARM, ignore_run, NULL), 0);
	fix_fill(data, bytes, 4);
	assert_int_equal(pwrite(fd, data, bytes, 0), bytes);
	fix_writer(&f);
	fix_take_and_check(&f);
	fix_close(&f);
	way_backend = NULL;
	munmap(m, bytes);
	close(fd);
	free(data);
}

static void private_pages_of_a_file_and_scans_that_fail(void **state)
{
	(void)state;
	if (!fix_supported() || !have_swap())
		skip();
	scans_that_fail_before_private_pages_are_swapped(NULL);
	scans_that_fail_before_private_pages_are_swapped("sync");
}

struct remapped {
	struct hammer h;
	char *m;
	size_t pages;
	_Atomic size_t next;
	int fd;
};

/* Each page is written once, and now and then another mapping comes in the place of one. */
static void write_and_remap(struct hammer *h, uint64_t *seed)
{
	struct remapped *r = (struct remapped *)h;
	size_t n = atomic_load(&r->next) < r->pages ? atomic_fetch_add(&r->next, 1) : r->pages, page = n * 1021 % r->pages;

	if (n >= r->pages)
		sched_yield();
	else if (rng_below(seed, 128) == 0 &&
		 mmap(r->m + page * TP, TP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, r->fd, (off_t)(page * TP)) == MAP_FAILED)
		_exit(5);
	else
		*(volatile uint64_t *)(r->m + page * TP) = rng(seed);
}

/*
 * A fuzzy link protects anew what was written while it copied. Where the target replaces mappings meanwhile the kernel gives up at one of them, and
 * tells nothing of what it did until then: pages that became the target's own, and that are soon in swap.
 */
static void private_pages_of_a_file_in_fuzzy_links_while_mappings_change(void **state)
{
	(void)state;
	if (!fix_supported() || !have_swap())
		skip();
	struct wpt_take_options fuzzy = { .size = sizeof(fuzzy), .mode = WPT_MODE_FUZZY };
	const size_t bytes = 16u << 20;
	uint64_t seed = env_seed();
	char *data = malloc(bytes);
	struct remapped r = { .h = { .seed = seed, .step = write_and_remap }, .pages = bytes / TP, .next = bytes / TP };
	struct fix f;

	print_message("# WPT_SEED=%" PRIu64 "\n", seed);
	fix_fill(data, bytes, 1);
	r.fd = memfd_create("private", MFD_CLOEXEC);
	assert_int_equal(pwrite(r.fd, data, bytes, 0), bytes);
	r.m = fix_map(bytes, MAP_PRIVATE, r.fd);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_VERIFY_CONTENT);
	fix_add(&f, r.m, bytes);
	fix_writer(&f);
	hammer_start(&r.h);
	for (unsigned i = 0; i < 10; i++) {
		atomic_store(&r.next, 0);
		assert_int_equal(fix_try(&f, &fuzzy), 0);
		hammer_hold(&r.h);
		madvise(r.m, bytes, MADV_PAGEOUT);
		fix_fill(data, bytes, 2 + i);
		assert_int_equal(pwrite(r.fd, data, bytes, 0), bytes);
		fix_take_and_check(&f);
		/* One mapping again. */
		assert_true(mmap(r.m, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, r.fd, 0) == r.m);
		fix_take(&f);
		hammer_let_go(&r.h);
	}
	hammer_end(&r.h);
	fix_close(&f);
	munmap(r.m, bytes);
	close(r.fd);
	free(data);
}

static char *half_written;
static _Atomic int half_stop;
static sigjmp_buf half_jump;

static void on_half_written(int sig)
{
	(void)sig;
	siglongjmp(half_jump, 1);
}

static void *write_half(void *arg)
{
	for (volatile size_t i = 0; i < PAGES; i++)
		if (!sigsetjmp(half_jump, 1))
			*(volatile char *)(half_written + i * TP) = 1;
	half_stop = 1;
	return arg;
}

/*
 * A write fault where a marker is makes the page the target's own, and protected; the write itself comes after another fault. If the mapping may not
 * be written to by then, that is all that happens. And then the file changes.
 */
static void write_faults_that_are_not_repeated(void **state)
{
	(void)state;
	if (!fix_supported() || !have_swap())
		skip();
	int fd = memfd_create("private", MFD_CLOEXEC), old;
	struct sigaction sa = { .sa_handler = on_half_written }, before;
	char *data = malloc(BYTES);
	pthread_t thread;
	struct fix f;

	fix_fill(data, BYTES, 1);
	assert_int_equal(pwrite(fd, data, BYTES, 0), BYTES);
	half_written = fix_map(BYTES, MAP_PRIVATE, fd);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&f, half_written, BYTES);
	fix_writer(&f);
	fix_take(&f);
	sigaction(SIGSEGV, &sa, &before);
	half_stop = 0;
	assert_int_equal(pthread_create(&thread, NULL, write_half, NULL), 0);
	for (old = 0; !half_stop; old = !old)
		mprotect(half_written, BYTES, old ? PROT_READ | PROT_WRITE : PROT_READ);
	pthread_join(thread, NULL);
	sigaction(SIGSEGV, &before, NULL);
	mprotect(half_written, BYTES, PROT_READ | PROT_WRITE);
	fix_take_and_check(&f);
	madvise(half_written, BYTES, MADV_PAGEOUT);
	fix_fill(data, BYTES, 2);
	assert_int_equal(pwrite(fd, data, BYTES, 0), BYTES);
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(half_written, BYTES);
	close(fd);
	free(data);
}

static void clean_swapped_pages_stay_in_swap(void **state)
{
	(void)state;
	if (!fix_supported() || !have_swap())
		skip();
	const size_t bytes = 16u << 20;
	char *m = fix_anon(bytes);
	struct fix f;
	uint64_t swapped;

	fix_fill(m, bytes, 1);
	madvise(m, bytes, MADV_PAGEOUT);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, bytes);
	fix_writer(&f);
	fix_take(&f);
	assert_true(f.stats.swapped_in > 0);
	assert_int_equal(madvise(m, bytes, MADV_PAGEOUT), 0);
	swapped = status_kib(getpid(), "VmSwap:");
	m[7 * TP] = 3;
	m[900 * TP] = 4;
	fix_take(&f);
	assert_int_equal(f.stats.pages_dirty, 2);
	assert_in_range(f.stats.swapped_in, 0, 2);
	assert_in_range(status_kib(getpid(), "VmSwap:"), swapped - 512, UINT64_MAX);
	assert_int_equal(fix_wrong(&f), 0);
	fix_close(&f);
	munmap(m, bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(private_pages_of_a_file_that_were_scanned_before_they_were_swapped),
		cmocka_unit_test(private_pages_of_a_file_and_scans_that_fail),
		cmocka_unit_test(private_pages_of_a_file_in_fuzzy_links_while_mappings_change),
		cmocka_unit_test(write_faults_that_are_not_repeated),
		cmocka_unit_test(clean_swapped_pages_stay_in_swap),
	};

	if (getenv("WPT_ONLY") && *getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
