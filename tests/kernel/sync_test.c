/* SPDX-License-Identifier: MIT */
/* Backend sync: what its two ways of looking see, that no write waits for ever, and that it leaves targets alone. */
#include "target_fixture.h"

#include <inttypes.h>
#include <sys/ioctl.h>

#include "kern.h"
#include "scan.h"
#include "tracker.h"
#include "wptrack.h"

#define MIB ((size_t)1 << 20)

static uint64_t seed;

static uint64_t rng(void)
{
	uint64_t z = (seed += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/* ---- both ways of looking ---- */

struct scratch {
	const char *name;
	uint8_t *p;
	size_t bytes, unit;
	int fd;
};

static bool scratch_open(struct scratch *m, const char *name)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	bool thp = strcmp(name, "thp") == 0;

	*m = (struct scratch){ .name = name, .bytes = 16 * MIB, .unit = PAGE, .fd = -1 };
	if (strcmp(name, "hugetlb") == 0) {
		flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT);
		m->unit = 2 * MIB;
	} else if (strstr(name, "memfd")) {
		m->fd = memfd_create("test", MFD_CLOEXEC);
		assert_int_equal(ftruncate(m->fd, (off_t)m->bytes), 0);
		flags = strstr(name, "private") ? MAP_PRIVATE : MAP_SHARED;
	}
	m->p = mmap(NULL, m->bytes + (thp ? 2 * MIB : 0), PROT_READ | PROT_WRITE, flags, m->fd, 0);
	if (m->p == MAP_FAILED)
		return false;
	if (thp) {
		m->p = (uint8_t *)WPT_ALIGN_UP((uintptr_t)m->p, 2 * MIB);
		madvise(m->p, m->bytes, MADV_HUGEPAGE);
	}
	return true;
}

/* Reads, writes and gives back at random; a write to a protected page is let through first, since nobody else would. */
static void scratch_play(struct scratch *m, int uffd, unsigned steps)
{
	size_t units = m->bytes / m->unit, at, n;

	while (steps--) {
		at = rng() % units;
		n = 1 + rng() % 40;
		n = WPT_MIN(n, units - at);
		switch (rng() % 6) {
		case 0:
		case 1:
		case 2:
			wpt_kern_unprotect(uffd, (uintptr_t)m->p + at * m->unit, (uintptr_t)m->p + (at + n) * m->unit);
			memset(m->p + at * m->unit, (int)rng(), n * m->unit);
			break;
		case 3:
			*(volatile uint8_t *)(m->p + at * m->unit);
			break;
		case 4:
			madvise(m->p + at * m->unit, n * m->unit, MADV_DONTNEED);
			break;
		case 5:
			wpt_kern_protect(uffd, (uintptr_t)m->p + at * m->unit, (uintptr_t)m->p + (at + n) * m->unit);
			break;
		}
	}
}

/* FILE is asked for of mappings of files only: of the huge zero page the two say it differently. */
static void spread(struct wpt_scan *s, const struct scratch *m, const struct wpt_scan_match *match, bool protect, uint8_t *out)
{
	struct wpt_page_region run;
	uint64_t at, last = 0;
	int got;

	memset(out, 0, m->bytes / PAGE);
	s->unit = m->unit > PAGE ? (uint32_t)m->unit : 0;
	wpt_scan_start(s, (uintptr_t)m->p, (uintptr_t)m->p + m->bytes, match, protect);
	while ((got = wpt_scan_next(s, &run)) > 0) {
		assert_true(run.start >= last && run.end > run.start && run.end <= (uintptr_t)m->p + m->bytes);
		last = run.end;
		for (at = run.start; at < run.end; at += PAGE)
			out[(at - (uintptr_t)m->p) / PAGE] = (uint8_t)(0x80 | (run.categories & (m->fd < 0 ? ~PAGE_IS_FILE : ~0)));
	}
	assert_int_equal(got, 0);
}

static void fail_differ(const struct scratch *m, size_t match, uint8_t *const seen[2])
{
	size_t i;

	for (i = 0; seen[0][i] == seen[1][i]; i++)
		;
	fail_msg("%s, match %zu, page %zu: PAGEMAP_SCAN says 0x%x, pagemap 0x%x", m->name, match, i, seen[0][i], seen[1][i]);
}

static int open_sync_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = WPT_KERN_SYNC_FEATURES };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	assert_true(fd >= 0);
	assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
	return fd;
}

/* What PAGEMAP_SCAN calls nowhere-and-written differs by kernel and is asked of no kind in that form. */
static void both_ways_of_looking_see_the_same(void **state)
{
	static const char *const names[] = { "anon", "thp", "memfd", "private memfd", "hugetlb" };
	static const uint64_t all = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_FILE;
	const struct wpt_scan_match matches[] = {
		{ .mask = PAGE_IS_WRITTEN, .anyof = PAGE_IS_PRESENT | PAGE_IS_SWAPPED, .report = all },
		{ .anyof = PAGE_IS_PRESENT | PAGE_IS_SWAPPED, .report = all },
		{ .inverted = PAGE_IS_PRESENT | PAGE_IS_SWAPPED, .mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED, .report = PAGE_IS_PRESENT },
		{ .mask = PAGE_IS_PRESENT | PAGE_IS_FILE, .report = PAGE_IS_PRESENT },
		{ .mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT, .report = PAGE_IS_WRITTEN },
	};
	struct wpt_probe probe = { .size = sizeof(probe) };
	struct wpt_scan_how how = { .pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC) };
	struct wpt_scan call, read;
	uint8_t *seen[2] = { malloc(16 * MIB / PAGE), malloc(16 * MIB / PAGE) };
	struct scratch m;
	size_t k, i, round;

	(void)state;
	assert_int_equal(wpt_probe(&probe), 0);
	if (!(probe.features & WPT_F_PAGEMAP_SCAN)) {
		print_message("# skip: PAGEMAP_SCAN is not there to be compared with\n");
		skip();
	}
	for (k = 0; k < WPT_ARRAY_SIZE(names); k++) {
		how.uffd = open_sync_uffd();
		how.entries = false;
		assert_int_equal(wpt_scan_open(&call, &how), 0);
		how.entries = true;
		assert_int_equal(wpt_scan_open(&read, &how), 0);
		if (!scratch_open(&m, names[k])) {
			print_message("# %s: no free huge pages\n", names[k]);
			continue;
		}
		assert_int_equal(wpt_kern_register(how.uffd, (uintptr_t)m.p, (uintptr_t)m.p + m.bytes), 0);
		for (round = 0; round < 30; round++) {
			scratch_play(&m, how.uffd, 60);
			for (i = 0; i < WPT_ARRAY_SIZE(matches); i++) {
				if (m.fd < 0 && matches[i].mask & PAGE_IS_FILE)
					continue;
				spread(&call, &m, &matches[i], false, seen[0]);
				spread(&read, &m, &matches[i], false, seen[1]);
				if (memcmp(seen[0], seen[1], m.bytes / PAGE))
					fail_differ(&m, i, seen);
			}
			/* What one of them reports and protects is no longer there for the other. */
			spread(round & 1 ? &call : &read, &m, &matches[0], true, seen[0]);
			spread(round & 1 ? &read : &call, &m, &matches[0], false, seen[1]);
			for (i = 0; i < m.bytes / PAGE; i++)
				assert_int_equal(seen[1][i], 0);
		}
		close(how.uffd);
		wpt_scan_close(&call);
		wpt_scan_close(&read);
		munmap(m.p, m.bytes);
		if (m.fd >= 0)
			close(m.fd);
	}
	close(how.pagemap);
	free(seen[0]);
	free(seen[1]);
}

/* ---- the own process ---- */

static struct wpt_tracker *open_tracker(pid_t pid, const void *p, size_t bytes, enum wpt_way way)
{
	struct wpt_tracker_options o = { .size = sizeof(o), .backend = WPT_BACKEND_SYNC, .stop_timeout_ms = 2000 };
	struct wpt_range range = { .size = sizeof(range), .start = (uintptr_t)p, .end = (uintptr_t)p + bytes };
	struct wpt_tracker *t = NULL;

	assert_int_equal(wpt_tracker_start(&t, pid, &o, way), 0);
	assert_true(wpt_range_add(t, &range) > 0);
	return t;
}

struct count {
	uint64_t dirty, unknown;
};

static int count_run(void *arg, const struct wpt_run *run)
{
	struct count *c = arg;

	if (run->state == WPT_PAGES_DIRTY)
		c->dirty += (run->end - run->start) / PAGE;
	if (run->state == WPT_PAGES_UNKNOWN)
		c->unknown += (run->end - run->start) / PAGE;
	return 0;
}

static struct count scan(struct wpt_tracker *t, uint32_t flags)
{
	struct count c = { 0, 0 };

	assert_int_equal(wpt_tracker_scan(t, 0, UINT64_MAX, flags, count_run, &c), 0);
	return c;
}

static void each_write_is_reported_once(void **state)
{
	static const char *const names[] = { "anon", "thp", "memfd", "private memfd" };
	struct wpt_tracker *t;
	struct scratch m;
	size_t k, i, units, per_unit;
	int way;

	(void)state;
	for (way = WPT_WAY_PROBED; way <= WPT_WAY_ENTRIES; way += WPT_WAY_ENTRIES)
		for (k = 0; k < WPT_ARRAY_SIZE(names); k++) {
			if (!scratch_open(&m, names[k])) {
				print_message("# %s: no free huge pages\n", names[k]);
				continue;
			}
			units = m.bytes / m.unit;
			per_unit = m.unit / PAGE;
			memset(m.p, 1, m.bytes);
			t = open_tracker(0, m.p, m.bytes, (enum wpt_way)way);
			assert_int_equal(wpt_tracker_arm(t), 0);
			assert_int_equal(scan(t, 0).dirty, 0);
			for (i = 0; i < units; i += 3)
				m.p[i * m.unit + m.unit - 1] = 2;
			assert_int_equal(scan(t, 0).dirty, (units + 2) / 3 * per_unit);
			assert_int_equal(scan(t, WPT_SCAN_REARM).dirty, (units + 2) / 3 * per_unit);
			assert_int_equal(scan(t, WPT_SCAN_REARM).dirty, 0);
			m.p[0] = 3;
			assert_int_equal(scan(t, WPT_SCAN_REARM).dirty, per_unit);
			wpt_tracker_close(t);
			assert_int_equal(m.p[0] + m.p[m.bytes - 1], 3 + (units % 3 == 1 ? 2 : 1));
			memset(m.p, 4, m.bytes);
			munmap(m.p, m.bytes);
			if (m.fd >= 0)
				close(m.fd);
		}
}

static void system_calls_that_write_to_protected_pages_work(void **state)
{
	struct wpt_tracker *t;
	struct scratch m;
	int fds[2];
	size_t i;

	(void)state;
	assert_true(scratch_open(&m, "anon"));
	memset(m.p, 1, m.bytes);
	t = open_tracker(0, m.p, m.bytes, WPT_WAY_PROBED);
	assert_int_equal(wpt_tracker_arm(t), 0);
	assert_int_equal(pipe(fds), 0);
	for (i = 0; i < 100; i++) {
		assert_int_equal(write(fds[1], "wxyz", 4), 4);
		assert_int_equal(read(fds[0], m.p + i * PAGE + PAGE - 2, 4), 4); /* two pages at once */
	}
	assert_int_equal(memcmp(m.p + PAGE - 2, "wxyz", 4), 0);
	assert_int_equal(scan(t, 0).dirty, 101);
	wpt_tracker_close(t);
	close(fds[0]);
	close(fds[1]);
	munmap(m.p, m.bytes);
}

struct writer {
	uint8_t *p;
	size_t pages;
	_Atomic bool stop;
	_Atomic uint64_t writes;
	uint64_t seed;
};

static void *writing(void *arg)
{
	struct writer *w = arg;
	uint64_t z = w->seed;

	while (!atomic_load(&w->stop)) {
		z = z * 6364136223846793005u + 1442695040888963407u;
		++*(volatile uint64_t *)(w->p + (z >> 33) % w->pages * PAGE + 8 * w->seed);
		atomic_fetch_add(&w->writes, 1);
	}
	return NULL;
}

/* Many times: trackers come and go under threads that never stop writing, and children are forked meanwhile. */
static void writers_go_on_whatever_the_tracker_does(void **state)
{
	struct writer w[3];
	pthread_t th[3];
	struct wpt_tracker *t;
	struct scratch m;
	uint64_t before;
	int i, k, status;
	pid_t pid;

	(void)state;
	assert_true(scratch_open(&m, "anon"));
	for (i = 0; i < 3; i++) {
		w[i] = (struct writer){ .p = m.p, .pages = 2 * MIB / PAGE, .seed = (uint64_t)i };
		pthread_create(&th[i], NULL, writing, &w[i]);
	}
	for (i = 0; i < rounds(40); i++) {
		t = open_tracker(0, m.p, m.bytes, i & 1 ? WPT_WAY_ENTRIES : WPT_WAY_PROBED);
		assert_int_equal(wpt_tracker_arm(t), 0);
		for (k = 0; k < 5; k++)
			scan(t, WPT_SCAN_REARM);
		pid = fork();
		if (pid == 0) {
			m.p[0] = 1; /* nobody resolves the child's faults: it has none */
			_exit(wpt_tracker_scan(t, 0, 1, 0, count_run, NULL) == -WPT_E_FORKED ? 0 : 1);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		before = atomic_load(&w[1].writes);
		WAIT_FOR(atomic_load(&w[1].writes) > before + 10);
		wpt_tracker_close(t);
		before = atomic_load(&w[2].writes);
		WAIT_FOR(atomic_load(&w[2].writes) > before + 10);
	}
	for (i = 0; i < 3; i++)
		atomic_store(&w[i].stop, true);
	for (i = 0; i < 3; i++)
		pthread_join(th[i], NULL);
	munmap(m.p, m.bytes);
}

/* ---- attached ---- */

static void mode_writing(void)
{
	uint64_t *p = map_pages(MAGIC_A), i = 0;

	sh->ready = 1;
	while (!sh->stop) {
		p[i++ % NR_PAGES * PAGE / 8]++;
		atomic_fetch_add(&sh->count[0], 1);
	}
}

static struct wpt_tracker *attach(struct fixture *f)
{
	struct wpt_tracker *t = open_tracker(f->pid, (void *)ADDR, NR_PAGES * PAGE, WPT_WAY_PROBED);

	assert_int_equal(wpt_tracker_arm(t), 0);
	return t;
}

static void a_target_outlives_the_process_that_tracked_it(void **state)
{
	struct fixture f;
	uint64_t before;
	int i, status;
	pid_t pid;

	(void)state;
	fixture_start(&f, "writing", 0);
	for (i = 0; i < rounds(20); i++) {
		int ready[2];
		char c;

		assert_int_equal(pipe(ready), 0);
		pid = fork();
		if (pid == 0) {
			struct wpt_tracker *t;

			setenv("CMOCKA_TEST_ABORT", "1", 1); /* it runs no other test */
			t = attach(&f);
			for (;;) {
				scan(t, WPT_SCAN_REARM);
				if (write(ready[1], "x", 1) != 1)
				_exit(1);
			}
		}
		close(ready[1]);
		assert_int_equal(read(ready[0], &c, 1), 1);
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		close(ready[0]);
		before = atomic_load(&f.sh->count[0]);
		WAIT_FOR(atomic_load(&f.sh->count[0]) > before + NR_PAGES);
	}
	fixture_finish(&f, 0);
}

static void a_target_that_dies_is_gone(void **state)
{
	struct fixture f;
	struct wpt_tracker *t;
	struct count c;

	(void)state;
	fixture_start(&f, "writing", 0);
	t = attach(&f);
	kill(f.pid, SIGKILL);
	WAIT_FOR(wpt_tracker_scan(t, 0, UINT64_MAX, WPT_SCAN_REARM, count_run, &c) == -WPT_E_GONE);
	wpt_tracker_close(t);
	fixture_kill(&f);
}

static char said[4096];

static void note_said(void *arg, enum wpt_log_level level, const char *message)
{
	(void)arg;
	if (level == WPT_LOG_ERROR)
		snprintf(said, sizeof(said), "%s", message);
}

static bool probe_has(uint32_t feature)
{
	struct wpt_probe p = { .size = sizeof(p) };

	return wpt_probe(&p) == 0 && p.features & feature;
}

static bool sysctl_allows(void)
{
	int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);
	char c = '0';

	if (fd >= 0 && read(fd, &c, 1) != 1)
		c = '0';
	close(fd);
	return c == '1';
}

/* The system call of the target would fail on a protected page: refused, with what to do. */
static void a_target_that_may_not_have_kernel_faults_is_refused(void **state)
{
	struct wpt_tracker_options o = { .size = sizeof(o), .backend = WPT_BACKEND_SYNC, .log = note_said, .stop_timeout_ms = 10000 };
	struct wpt_tracker *t = NULL;
	struct fixture f;

	(void)state;
	if (geteuid() != 0) {
		print_message("# skip: needs root to become another user\n");
		skip();
	}
	fixture_start(&f, "writing", NOBODY);
	if (probe_has(WPT_F_SYNC) && sysctl_allows()) {
		assert_int_equal(wpt_tracker_attach(&t, f.pid, &o), 0);
		wpt_tracker_close(t);
	} else {
		assert_int_equal(wpt_tracker_attach(&t, f.pid, &o), -EPERM);
		assert_non_null(strstr(said, "unprivileged_userfaultfd"));
	}
	o.backend = WPT_BACKEND_ASYNC;
	if (probe_has(WPT_F_ASYNC)) {
		assert_int_equal(wpt_tracker_attach(&t, f.pid, &o), 0);
		wpt_tracker_close(t);
	}
	fixture_finish(&f, 0);
}

/* What can't be protected is compared, not skipped. */
static int expect_untracked(void *arg, const struct wpt_range_info *info)
{
	(void)arg;
	assert_int_equal(info->skipped, 0);
	assert_int_equal(info->reason, WPT_REASON_UNTRACKED);
	return 0;
}

static void mappings_of_ordinary_files_are_compared_by_content(void **state)
{
	struct wpt_take_options take = { .size = sizeof(take), .mode = WPT_MODE_FUZZY };
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = WPT_WRITER_NO_SYNC, .staging_bytes = 8 << 20 };
	char path[] = "/tmp/wptrack-sync-XXXXXX", dir[64], buf[16], command[100];
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	struct wpt_writer *w = NULL;
	struct wpt_chain *chain = NULL;
	struct wpt_tracker *t;
	int fd = mkostemp(path, O_CLOEXEC), shared;
	uint8_t *p;

	(void)state;
	snprintf(dir, sizeof(dir), "%s.d", path);
	for (shared = 0; shared < 2; shared++) {
		assert_int_equal(ftruncate(fd, (off_t)MIB), 0);
		assert_int_equal(pwrite(fd, "file", 4, 100 * PAGE), 4);
		p = mmap(NULL, MIB, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE, fd, 0);
		p[0] = 1;
		t = open_tracker(0, p, MIB, WPT_WAY_PROBED);
		assert_int_equal(wpt_writer_open(&w, t, dir, &wo), 0);
		assert_int_equal(wpt_writer_take(w, &take, &stats), 0);
		assert_int_equal(wpt_range_list(t, expect_untracked, NULL), 0);
		memcpy(p + 3 * PAGE, "hidden write", 12);
		assert_int_equal(wpt_writer_take(w, &take, &stats), 0);
		assert_int_equal(stats.pages_stored, 1);
		assert_true(stats.pages_compared > 0);
		assert_int_equal(stats.pages_torn, 0);
		wpt_writer_close(w);
		wpt_tracker_close(t);
		assert_int_equal(wpt_chain_open(&chain, dir), 0);
		assert_int_equal(wpt_chain_read(chain, (uintptr_t)p + 3 * PAGE, buf, 12), 0);
		assert_memory_equal(buf, "hidden write", 12);
		assert_int_equal(wpt_chain_read(chain, (uintptr_t)p + 100 * PAGE, buf, 4), 0);
		assert_memory_equal(buf, "file", 4);
		wpt_chain_close(chain);
		munmap(p, MIB);
		snprintf(command, sizeof(command), "rm -rf %s", dir);
		assert_int_equal(system(command), 0);
	}
	close(fd);
	unlink(path);
}

static void options_are_checked(void **state)
{
	struct wpt_tracker_options o = { .size = sizeof(o), .backend = 4 };
	struct wpt_tracker_info info = { .size = sizeof(info) };
	struct wpt_tracker *t = NULL;

	(void)state;
	assert_int_equal(wpt_tracker_open(&t, &o), -EINVAL);
	o.backend = WPT_BACKEND_SYNC;
	o.nr_fault_threads = 65;
	assert_int_equal(wpt_tracker_open(&t, &o), -EINVAL);
	o.nr_fault_threads = 64;
	assert_int_equal(wpt_tracker_open(&t, &o), 0);
	assert_int_equal(wpt_tracker_info(t, &info), 0);
	assert_int_equal(info.backend, WPT_BACKEND_SYNC);
	wpt_tracker_close(t);
}

static int target_main(const char *mode)
{
	target_open();
	if (!strcmp(mode, "writing"))
		mode_writing();
	else
		_exit(94);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(both_ways_of_looking_see_the_same),
		cmocka_unit_test(each_write_is_reported_once),
		cmocka_unit_test(system_calls_that_write_to_protected_pages_work),
		cmocka_unit_test(writers_go_on_whatever_the_tracker_does),
		cmocka_unit_test(a_target_outlives_the_process_that_tracked_it),
		cmocka_unit_test(a_target_that_dies_is_gone),
		cmocka_unit_test(a_target_that_may_not_have_kernel_faults_is_refused),
		cmocka_unit_test(mappings_of_ordinary_files_are_compared_by_content),
		cmocka_unit_test(options_are_checked),
	};
	const char *s = getenv("WPT_SEED");

	if (argc == 2 && !strcmp(argv[0], "target"))
		return target_main(argv[1]);
	seed = s ? strtoull(s, NULL, 0) : wpt_now_ns() % 1000000;
	printf("# WPT_SEED=%" PRIu64 "\n", seed);
	if (!probe_has(WPT_F_SYNC)) {
		printf("1..0 # SKIP needs root, or a userfaultfd for this user that handles faults of system calls\n");
		return 0;
	}
	if (getenv("WPT_ONLY") && *getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
