/* SPDX-License-Identifier: MIT */
/*
 * WP_WRITTEN, the kernel patch: used where it is offered, untouched memory costs no page tables, and what a stock kernel can't report is in
 * the next link. Both ways of tracking give the same links.
 */
#include "torture_util.h"

#include <sys/ioctl.h>

#include "kern.h"

#define PAGES 256u
#define BYTES (PAGES * TP)
#define HUGE ((size_t)2 << 20)

static uint64_t features_offered(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

	if (fd < 0)
		return 0;
	if (ioctl(fd, UFFDIO_API, &api) != 0)
		api.features = 0;
	close(fd);
	return api.features;
}

static void need_exact(void)
{
	if (!fix_async())
		skip();
	if (way_is_exact() && features_offered() & UFFD_FEATURE_WP_WRITTEN)
		return;
	print_message("# skip: needs wp_written, the marker patch in this kernel\n");
	skip();
}

static uint64_t page_table_kib(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	char line[200];
	uint64_t kib = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (strncmp(line, "VmPTE:", 6) == 0)
			kib = strtoull(line + 6, NULL, 10);
	fclose(f);
	return kib;
}

static void used_where_it_is_offered(void **state)
{
	struct wpt_probe p = { .size = sizeof(p) };
	const char *differs = NULL;
	uint32_t features = 0;
	bool offered = features_offered() & UFFD_FEATURE_WP_WRITTEN;

	(void)state;
	assert_int_equal(wpt_probe_kernel(&features, HUGE, &differs), 0);
	if (differs)
		print_message("# offered, and not used: %s\n", differs);
	assert_null(differs);
	assert_int_equal(!!(features & WPT_F_WP_WRITTEN), offered);
	assert_int_equal(wpt_probe(&p), 0);
	assert_int_equal(!!(p.features & WPT_F_WP_WRITTEN), offered);
}

static int count_dirty(void *arg, const struct wpt_run *run)
{
	if (run->state == WPT_PAGES_DIRTY)
		*(uint64_t *)arg += (run->end - run->start) / TP;
	return run->state == WPT_PAGES_DIRTY ? 0 : -EIO;
}

static uint64_t dirty_now(struct fix *f)
{
	uint64_t dirty = 0;

	assert_int_equal(wpt_tracker_scan(f->t, 0, UINT64_MAX, WPT_SCAN_REARM, count_dirty, &dirty), 0);
	return dirty;
}

/* 64 GiB of each, a thousand pages of it touched. */
static void untouched_memory_costs_no_page_tables(void **state)
{
	const size_t bytes = (size_t)64 << 30;
	(void)state;
	need_exact();
	for (unsigned shared = 0; shared < 2; shared++) {
		int fd = shared ? memfd_create("sparse", MFD_CLOEXEC) : -1;
		uint64_t before, n = 1000;
		struct fix f;
		char *m;

		if (shared)
			assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
		m = fix_map(bytes, MAP_NORESERVE | (shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS), fd);
		madvise(m, bytes, MADV_NOHUGEPAGE);
		for (uint64_t i = 0; i < n; i++)
			m[i * (bytes / n / TP) * TP] = 1;
		fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
		fix_add(&f, m, bytes);
		before = page_table_kib();
		assert_int_equal(wpt_tracker_arm(f.t), 0);
		/* The library's own memory has page tables too. */
		assert_in_range(page_table_kib() - before, 0, 512);
		assert_int_equal(dirty_now(&f), 0);
		m[TP] = m[bytes / 2 + TP] = m[bytes - 1] = 1;
		assert_int_equal(dirty_now(&f), 3);
		assert_int_equal(dirty_now(&f), 0);
		fix_close(&f);
		munmap(m, bytes);
		if (fd >= 0)
			close(fd);
	}
}

static void take_one(struct fix *f, uint64_t dirty)
{
	fix_take_and_check(f);
	assert_int_equal(f->stats.pages_dirty, dirty);
	assert_int_equal(f->stats.pages_compared, 0);
}

static void begin(struct fix *f, char *m, size_t len)
{
	fix_tracker(f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(f, m, len);
	fix_writer(f);
	fix_take_and_check(f);
	take_one(f, 0);
}

/* Data that was in the file before anything was mapped, a hole punched in it, and the hole filled by a read: nothing is left but a marker. */
static void a_hole_that_a_read_fills_is_seen(void **state)
{
	(void)state;
	need_exact();
	for (unsigned mapped = 0; mapped < 2; mapped++) {
		int fd = memfd_create("punched", MFD_CLOEXEC);
		char *data = malloc(BYTES), *m;
		struct fix f;

		fix_fill(data, BYTES, 5);
		assert_int_equal(pwrite(fd, data, BYTES, 0), BYTES);
		m = fix_map(BYTES, MAP_SHARED, fd);
		if (mapped)
			assert_int_equal(madvise(m, BYTES, MADV_POPULATE_READ), 0);
		/* A scan asks the kernel alone. A link also hears of the hole from inotify, on kernels that watch a memfd. */
		fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
		fix_add(&f, m, BYTES);
		assert_int_equal(wpt_tracker_arm(f.t), 0);
		assert_int_equal(dirty_now(&f), 0);
		assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(7 * TP), (off_t)(3 * TP)), 0);
		assert_int_equal(*(volatile char *)(m + 8 * TP), 0);
		assert_int_equal(dirty_now(&f), 3);
		fix_writer(&f);
		fix_take_and_check(&f);
		assert_int_equal(madvise(m + 20 * TP, TP, MADV_REMOVE), 0);
		assert_int_equal(*(volatile char *)(m + 20 * TP), 0);
		m[30 * TP] = 1;
		assert_int_equal(madvise(m, BYTES, MADV_DONTNEED), 0);
		fix_take_and_check(&f);
		assert_true(f.stats.pages_dirty >= 2);
		take_one(&f, 0);
		fix_close(&f);
		munmap(m, BYTES);
		close(fd);
		free(data);
	}
}

static void a_private_page_that_fell_back_is_seen(void **state)
{
	char *data = malloc(BYTES), *m;
	struct fix f;
	int fd;

	(void)state;
	need_exact();
	fd = memfd_create("private", MFD_CLOEXEC);
	fix_fill(data, BYTES, 6);
	assert_int_equal(pwrite(fd, data, BYTES / 2, 0), BYTES / 2);
	assert_int_equal(ftruncate(fd, (off_t)BYTES), 0);
	usleep(50000); /* a time of change this fresh would have the mapping compared */
	m = fix_map(BYTES, MAP_PRIVATE, fd);
	memset(m + 3 * TP, 1, 4 * TP);
	memset(m + (PAGES - 4) * TP, 2, 2 * TP); /* over a hole */
	begin(&f, m, BYTES);
	assert_int_equal(madvise(m + 4 * TP, TP, MADV_DONTNEED), 0);
	take_one(&f, 1);
	memset(m + 5 * TP, 3, TP);
	assert_int_equal(madvise(m, BYTES, MADV_DONTNEED), 0);
	take_one(&f, 5);
	fix_close(&f);
	munmap(m, BYTES);
	close(fd);
	free(data);
}

static void huge_pages_are_exact(void **state)
{
	(void)state;
	need_exact();
	for (unsigned shared = 0; shared < 2; shared++) {
		int fd = shared ? memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB) : -1;
		char *m = MAP_FAILED;
		struct fix f;

		if (!shared || (fd >= 0 && ftruncate(fd, (off_t)(8 * HUGE)) == 0))
			m = mmap(NULL, 8 * HUGE, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, fd, 0);
		if (m == MAP_FAILED) {
			print_message("# skip: needs 18 free huge pages of 2 MiB\n");
			skip();
		}
		fix_fill(m, 6 * HUGE, 7);
		begin(&f, m, 8 * HUGE);
		m[HUGE] = 1; /* written, then gone, then read */
		assert_int_equal(madvise(m + HUGE, HUGE, MADV_DONTNEED), 0);
		assert_int_equal(*(volatile char *)(m + HUGE), shared);
		take_one(&f, 512);
		assert_int_equal(madvise(m + 2 * HUGE, HUGE, MADV_DONTNEED), 0); /* clean, then gone */
		take_one(&f, shared ? 0 : 512);
		m[6 * HUGE + 5] = 1; /* new; and a private one that is gone, and might have been on its way elsewhere, is looked at once more */
		take_one(&f, shared ? 512 : 1024);
		if (shared) {
			assert_int_equal(madvise(m + 3 * HUGE, HUGE, MADV_REMOVE), 0);
			assert_int_equal(*(volatile char *)(m + 3 * HUGE), 0);
			fix_take_and_check(&f);
			assert_true(f.stats.pages_dirty >= 512);
		}
		take_one(&f, 0);
		fix_close(&f);
		munmap(m, 8 * HUGE);
		if (fd >= 0)
			close(fd);
	}
}

/* The tail of a mapping goes and comes back between two links, in the same mapping. */
static void a_mapping_that_shrinks_and_grows(void **state)
{
	(void)state;
	if (!fix_async())
		skip();
	for (unsigned shared = 0; shared < 2; shared++) {
		int fd = shared ? memfd_create("resized", MFD_CLOEXEC) : -1;
		struct fix f;
		char *m;

		if (shared)
			assert_int_equal(ftruncate(fd, (off_t)BYTES), 0);
		m = fix_map(BYTES, shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd);
		fix_fill(m, BYTES, 8);
		fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
		fix_add(&f, m, BYTES);
		fix_writer(&f);
		fix_take_and_check(&f);
		memset(m + 200 * TP, 9, TP);
		assert_ptr_equal(mremap(m, BYTES, BYTES / 2, 0), m);
		if (mremap(m, BYTES / 2, BYTES, 0) != m) {
			print_message("# this kernel, or a neighbour, keeps the mapping from growing in place\n");
			assert_ptr_equal(mmap(m + BYTES / 2, BYTES / 2, PROT_READ | PROT_WRITE,
					      MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS), fd, (off_t)(shared ? BYTES / 2 : 0)),
					 m + BYTES / 2);
		}
		fix_take_and_check(&f);
		m[201 * TP] = 1;
		fix_take_and_check(&f);
		fix_close(&f);
		munmap(m, BYTES);
		if (fd >= 0)
			close(fd);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(used_where_it_is_offered),
		cmocka_unit_test(untouched_memory_costs_no_page_tables),
		cmocka_unit_test(a_hole_that_a_read_fills_is_seen),
		cmocka_unit_test(a_private_page_that_fell_back_is_seen),
		cmocka_unit_test(huge_pages_are_exact),
		cmocka_unit_test(a_mapping_that_shrinks_and_grows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
