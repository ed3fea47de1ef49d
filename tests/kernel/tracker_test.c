/* SPDX-License-Identifier: MIT */
/* wpt_tracker_scan() over the own process: what is reported against what the test wrote. */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uapi.h"
#include "way.h"
#include "wptrack.h"

#define PAGE ((size_t)4096)
#define NR_PAGES 256u
#define BYTES (NR_PAGES * PAGE)

struct memory {
	const char *name;
	uint32_t kind;
	uint8_t *p;
	int fd;
	size_t unit;   /* the smallest piece that is reported: a page, or a huge page */
	size_t bytes;
};

/* What a scan reported, a state a page; 0xff: nothing. */
struct reported {
	const struct memory *m;
	uint8_t state[NR_PAGES * 64];
	uint64_t last_end;
	int stop_after;
};

static int collect(void *arg, const struct wpt_run *run)
{
	struct reported *r = arg;
	uint64_t at, base = (uintptr_t)r->m->p;

	assert_true(run->start < run->end);
	assert_true(run->start >= r->last_end);
	r->last_end = run->end;
	assert_true(run->start >= base && run->end <= base + r->m->bytes);
	for (at = run->start; at < run->end; at += PAGE)
		r->state[(at - base) / PAGE] = (uint8_t)run->state;
	return r->stop_after && --r->stop_after == 0 ? 77 : 0;
}

static void scan(struct wpt_tracker *t, const struct memory *m, uint32_t flags, struct reported *r)
{
	memset(r, 0, sizeof(*r));
	memset(r->state, 0xff, sizeof(r->state));
	r->m = m;
	assert_int_equal(wpt_tracker_scan(t, 0, UINT64_MAX, flags, collect, r), 0);
}

static bool memory_open(struct memory *m, const char *name)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char path[] = "/tmp/wptrack-test-XXXXXX";

	*m = (struct memory){ .name = name, .kind = WPT_KIND_ANON, .fd = -1, .unit = PAGE, .bytes = BYTES };
	if (strcmp(name, "memfd") == 0) {
		m->fd = memfd_create("test", MFD_CLOEXEC);
		m->kind = WPT_KIND_SHMEM;
		flags = MAP_SHARED;
	} else if (strcmp(name, "private memfd") == 0) {
		m->fd = memfd_create("test", MFD_CLOEXEC);
		m->kind = WPT_KIND_FILE_PRIVATE;
		flags = MAP_PRIVATE;
	} else if (strcmp(name, "shared file") == 0 || strcmp(name, "private file") == 0) {
		m->fd = mkostemp(path, O_CLOEXEC);
		assert_true(m->fd >= 0);
		unlink(path);
		flags = *name == 's' ? MAP_SHARED : MAP_PRIVATE;
		m->kind = *name == 's' ? WPT_KIND_FILE_SHARED : WPT_KIND_FILE_PRIVATE;
	} else if (strcmp(name, "hugetlb") == 0) {
		flags |= MAP_HUGETLB | (21 << MAP_HUGE_SHIFT);
		m->kind = WPT_KIND_HUGETLB_PRIVATE;
		m->unit = (size_t)2 << 20;
		m->bytes = 4 * m->unit;
	}
	if (m->fd >= 0)
		assert_int_equal(ftruncate(m->fd, (off_t)m->bytes), 0);
	m->p = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, flags, m->fd, 0);
	return m->p != MAP_FAILED;
}

static void memory_close(struct memory *m)
{
	munmap(m->p, m->bytes);
	if (m->fd >= 0)
		close(m->fd);
}

static struct wpt_tracker *tracker_of(const struct memory *m, uint32_t backend)
{
	struct wpt_tracker_options o = { .size = sizeof(o), .backend = backend };
	struct wpt_range range = { .size = sizeof(range), .start = (uintptr_t)m->p, .end = (uintptr_t)m->p + m->bytes };
	struct wpt_tracker *t = NULL;

	assert_int_equal(way_tracker(&t, 0, &o), 0);
	assert_true(wpt_range_add(t, &range) > 0);
	return t;
}

static const char *const kinds[] = { "anonymous", "memfd", "private memfd", "shared file", "private file", "hugetlb" };

static void each_write_is_reported_once(void **state)
{
	struct reported *r = malloc(sizeof(*r));
	struct memory m;
	size_t k, i, nr;

	(void)state;
	for (k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
		struct wpt_tracker *t;

		if (!memory_open(&m, kinds[k])) {
			print_message("# SKIP %s: no free huge pages\n", kinds[k]);
			continue;
		}
		nr = m.bytes / m.unit;
		for (i = 0; i < nr; i++)
			m.p[i * m.unit] = 1;
		t = tracker_of(&m, WPT_BACKEND_ASYNC);
		assert_int_equal(wpt_tracker_arm(t), 0);
		scan(t, &m, 0, r);
		for (i = 0; i < m.bytes / PAGE; i++)
			assert_int_equal(r->state[i], 0xff);
		for (i = 0; i < nr; i += 3)
			m.p[i * m.unit + m.unit - 1] = 2;
		scan(t, &m, 0, r);
		scan(t, &m, WPT_SCAN_REARM, r);
		for (i = 0; i < m.bytes / PAGE; i++)
			assert_int_equal(r->state[i], i * PAGE / m.unit % 3 == 0 ? WPT_PAGES_DIRTY : 0xff);
		scan(t, &m, WPT_SCAN_REARM, r);
		for (i = 0; i < m.bytes / PAGE; i++)
			assert_int_equal(r->state[i], 0xff);
		wpt_tracker_close(t);
		/* Tracking is over: memory is as it was, and may be registered by others. */
		assert_int_equal(m.p[0], 1);
		memory_close(&m);
	}
	free(r);
}

static void memory_that_is_nowhere_is_zero(void **state)
{
	struct reported *r = malloc(sizeof(*r));
	struct wpt_tracker *t;
	struct memory m;

	(void)state;
	assert_true(memory_open(&m, "anonymous"));
	m.p[0] = m.p[PAGE] = 1;
	t = tracker_of(&m, WPT_BACKEND_ASYNC);
	assert_int_equal(wpt_tracker_arm(t), 0);
	assert_int_equal(madvise(m.p, PAGE, MADV_DONTNEED), 0);
	scan(t, &m, 0, r);
	/* With WP_WRITTEN what was given back was written, once, and what was never there is as clean as everything else. */
	assert_int_equal(r->state[0], way_is_exact() ? WPT_PAGES_DIRTY : WPT_PAGES_ZERO);
	assert_int_equal(r->state[1], 0xff);
	assert_int_equal(r->state[2], way_is_exact() ? 0xff : WPT_PAGES_ZERO);
	/* So does a scan that protects again, which reports a page that was written and one that was given back. */
	m.p[PAGE] = 2;
	scan(t, &m, WPT_SCAN_REARM, r);
	assert_int_equal(r->state[0], way_is_exact() ? WPT_PAGES_DIRTY : WPT_PAGES_ZERO);
	assert_int_equal(r->state[1], WPT_PAGES_DIRTY);
	assert_int_equal(r->state[2], way_is_exact() ? 0xff : WPT_PAGES_ZERO);
	scan(t, &m, WPT_SCAN_REARM, r);
	assert_int_equal(r->state[0], way_is_exact() ? 0xff : WPT_PAGES_ZERO);
	assert_int_equal(r->state[1], 0xff);
	wpt_tracker_close(t);
	memory_close(&m);
	free(r);
}

/* What a scan that protects again takes from the kernel must not be missing to the next. */
static void a_private_page_that_falls_back_to_its_file_is_reported(void **state)
{
	struct reported *r = malloc(sizeof(*r));
	struct wpt_tracker *t;
	struct memory m;

	(void)state;
	assert_true(memory_open(&m, "private file"));
	m.p[0] = 1;
	t = tracker_of(&m, WPT_BACKEND_ASYNC);
	assert_int_equal(wpt_tracker_arm(t), 0);
	m.p[PAGE] = 1;
	scan(t, &m, WPT_SCAN_REARM, r);
	assert_int_equal(r->state[1], WPT_PAGES_DIRTY);
	assert_int_equal(madvise(m.p, 2 * PAGE, MADV_DONTNEED), 0);
	scan(t, &m, 0, r);
	assert_int_equal(r->state[0], WPT_PAGES_DIRTY);
	assert_int_equal(r->state[1], WPT_PAGES_DIRTY);
	assert_int_equal(r->state[2], 0xff);
	assert_int_equal(m.p[0] + m.p[1], 0);
	scan(t, &m, WPT_SCAN_REARM, r);
	assert_int_equal(r->state[0], WPT_PAGES_DIRTY);
	assert_int_equal(r->state[1], WPT_PAGES_DIRTY);
	wpt_tracker_close(t);
	memory_close(&m);
	free(r);
}

static void a_new_mapping_at_the_same_place_is_unknown(void **state)
{
	struct reported *r = malloc(sizeof(*r));
	struct wpt_tracker *t;
	struct memory m;

	(void)state;
	assert_true(memory_open(&m, "anonymous"));
	memset(m.p, 1, m.bytes);
	t = tracker_of(&m, WPT_BACKEND_ASYNC);
	assert_int_equal(wpt_tracker_arm(t), 0);
	assert_true(mmap(m.p + 8 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	scan(t, &m, 0, r);
	assert_int_equal(r->state[8], WPT_PAGES_UNKNOWN);
	assert_int_equal(r->state[11], WPT_PAGES_UNKNOWN);
	assert_int_equal(wpt_tracker_arm(t), 0);
	m.p[9 * PAGE] = 1;
	scan(t, &m, 0, r);
	assert_int_equal(r->state[9], WPT_PAGES_DIRTY);
	assert_int_equal(r->state[12], 0xff);
	wpt_tracker_close(t);
	memory_close(&m);
	free(r);
}

/* From the first run on no memory is to be had, and the scan is ended. */
static int end_without_memory(void *arg, const struct wpt_run *run)
{
	const struct rlimit none = { 0, RLIM_INFINITY };

	(void)arg;
	(void)run;
	setrlimit(RLIMIT_AS, &none);
	return 77;
}

static void a_scan_that_can_not_note_what_it_took_is_followed_by_unknown_pages(void **state)
{
	struct reported *r = malloc(sizeof(*r));
	struct rlimit before;
	struct wpt_tracker *t;
	struct memory m;
	size_t i;
	int rc;

	(void)state;
	assert_true(memory_open(&m, "anonymous"));
	memset(m.p, 1, m.bytes);
	t = tracker_of(&m, WPT_BACKEND_ASYNC);
	assert_int_equal(wpt_tracker_arm(t), 0);
	for (i = 0; i < NR_PAGES; i += 2)
		m.p[i * PAGE] = 2;
	assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
	rc = wpt_tracker_scan(t, 0, UINT64_MAX, WPT_SCAN_REARM, end_without_memory, NULL);
	setrlimit(RLIMIT_AS, &before);
	assert_int_equal(rc, 77);
	scan(t, &m, 0, r);
	for (i = 0; i < NR_PAGES; i++)
		assert_int_equal(r->state[i], WPT_PAGES_UNKNOWN);
	scan(t, &m, WPT_SCAN_REARM, r);
	for (i = 0; i < NR_PAGES; i++)
		assert_int_equal(r->state[i], WPT_PAGES_UNKNOWN);
	/* Now all was told. */
	m.p[7 * PAGE] = 3;
	scan(t, &m, WPT_SCAN_REARM, r);
	for (i = 0; i < NR_PAGES; i++)
		assert_int_equal(r->state[i], i == 7 ? WPT_PAGES_DIRTY : 0xff);
	wpt_tracker_close(t);
	memory_close(&m);
	free(r);
}

static void a_scan_that_is_ended_early_loses_nothing(void **state)
{
	struct reported *r = malloc(sizeof(*r)), *rest = malloc(sizeof(*rest));
	struct wpt_tracker *t;
	struct memory m;
	size_t i;

	(void)state;
	assert_true(memory_open(&m, "anonymous"));
	memset(m.p, 1, m.bytes);
	t = tracker_of(&m, WPT_BACKEND_ASYNC);
	assert_int_equal(wpt_tracker_arm(t), 0);
	for (i = 0; i < NR_PAGES; i += 2)
		m.p[i * PAGE] = 2;
	memset(r, 0, sizeof(*r));
	memset(r->state, 0xff, sizeof(r->state));
	r->m = &m;
	r->stop_after = 5;
	assert_int_equal(wpt_tracker_scan(t, 0, UINT64_MAX, WPT_SCAN_REARM, collect, r), 77);
	scan(t, &m, WPT_SCAN_REARM, rest);
	for (i = 0; i < NR_PAGES; i++)
		assert_int_equal(r->state[i] == WPT_PAGES_DIRTY || rest->state[i] == WPT_PAGES_DIRTY, i % 2 == 0);
	scan(t, &m, 0, r);
	for (i = 0; i < NR_PAGES; i++)
		assert_int_equal(r->state[i], 0xff);
	wpt_tracker_close(t);
	memory_close(&m);
	free(r);
	free(rest);
}

/* ---- writers that never stop ---- */

struct writers {
	const struct memory *m;
	atomic_bool stop;
	uint64_t seed;
};

static void *write_randomly(void *arg)
{
	struct writers *w = arg;
	uint64_t x = w->seed;

	while (!atomic_load(&w->stop)) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		((volatile uint8_t *)w->m->p)[x % w->m->bytes] = (uint8_t)(x >> 40);
	}
	return NULL;
}

struct shadow {
	const struct memory *m;
	uint8_t *copy;
	int countdown;
};

static int to_shadow(void *arg, const struct wpt_run *run)
{
	struct shadow *s = arg;
	size_t offset = run->start - (uintptr_t)s->m->p;

	memcpy(s->copy + offset, s->m->p + offset, run->end - run->start);
	return s->countdown && --s->countdown == 0 ? 1 : 0;
}

/* Each scan's dirty pages are copied to a shadow; when the writers are done and their last pages copied, nothing may differ. */
static void no_write_is_lost_to_a_running_writer(void **state)
{
	const char *seed = getenv("WPT_SEED");
	size_t k;

	(void)state;
	for (k = 0; k < 5; k++) {
		struct writers w[2];
		struct shadow s = { 0 };
		struct wpt_tracker *t;
		pthread_t threads[2];
		struct memory m;
		int i, ret;

		assert_true(memory_open(&m, kinds[k]));
		memset(m.p, 1, m.bytes);
		s.m = &m;
		s.copy = malloc(m.bytes);
		t = tracker_of(&m, WPT_BACKEND_ASYNC);
		assert_int_equal(wpt_tracker_arm(t), 0);
		memcpy(s.copy, m.p, m.bytes);
		for (i = 0; i < 2; i++) {
			w[i].m = &m;
			w[i].seed = (seed ? strtoull(seed, NULL, 0) : 0x5eed1234) + (uint64_t)i + k;
			print_message("# %s: seed %#llx\n", m.name, (unsigned long long)w[i].seed);
			atomic_init(&w[i].stop, false);
			assert_int_equal(pthread_create(&threads[i], NULL, write_randomly, &w[i]), 0);
		}
		for (i = 0; i < 300; i++) {
			s.countdown = i % 7 == 3 ? 5 : 0;
			ret = wpt_tracker_scan(t, 0, UINT64_MAX, WPT_SCAN_REARM, to_shadow, &s);
			assert_true(ret == 0 || (s.countdown == 0 && ret == 1));
		}
		for (i = 0; i < 2; i++) {
			atomic_store(&w[i].stop, true);
			pthread_join(threads[i], NULL);
		}
		s.countdown = 0;
		assert_int_equal(wpt_tracker_scan(t, 0, UINT64_MAX, WPT_SCAN_REARM, to_shadow, &s), 0);
		assert_memory_equal(s.copy, m.p, m.bytes);
		wpt_tracker_close(t);
		free(s.copy);
		memory_close(&m);
	}
}

/* ---- registry ---- */

struct scanner {
	struct wpt_tracker *t;
	atomic_bool stop;
	atomic_int failed;
};

static int ignore(void *arg, const struct wpt_run *run)
{
	(void)arg;
	(void)run;
	return 0;
}

static void *scan_for_ever(void *arg)
{
	struct scanner *s = arg;

	while (!atomic_load(&s->stop))
		if (wpt_tracker_scan(s->t, 0, UINT64_MAX, 0, ignore, NULL) != 0)
			atomic_store(&s->failed, 1);
	return NULL;
}

static void ranges_come_and_go_while_others_scan(void **state)
{
	struct wpt_range range = { .size = sizeof(range) };
	struct scanner s;
	pthread_t threads[2];
	struct memory m;
	int i, id;

	(void)state;
	assert_true(memory_open(&m, "anonymous"));
	memset(m.p, 1, m.bytes);
	assert_int_equal(wpt_tracker_open(&s.t, NULL), 0);
	atomic_init(&s.stop, false);
	atomic_init(&s.failed, 0);
	for (i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, scan_for_ever, &s), 0);
	for (i = 0; i < 500; i++) {
		range.start = (uintptr_t)m.p + (size_t)(i % 8) * PAGE;
		range.end = range.start + 16 * PAGE;
		id = wpt_range_add(s.t, &range);
		assert_true(id > 0);
		assert_int_equal(wpt_range_add(s.t, &range), -EEXIST);
		if (i % 4 == 0)
			assert_int_equal(wpt_tracker_arm(s.t), 0);
		assert_int_equal(wpt_range_remove(s.t, id), 0);
		assert_int_equal(wpt_range_remove(s.t, id), -WPT_E_NOT_TRACKED);
	}
	atomic_store(&s.stop, true);
	for (i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(atomic_load(&s.failed), 0);
	wpt_tracker_close(s.t);
	memory_close(&m);
}

static void reported_pages_are_what_was_marked(void **state)
{
	struct reported *r = malloc(sizeof(*r));
	struct wpt_tracker *t;
	struct memory m;
	uint64_t base;
	size_t i;

	(void)state;
	assert_true(memory_open(&m, "anonymous"));
	base = (uintptr_t)m.p;
	t = tracker_of(&m, WPT_BACKEND_REPORTED);
	assert_int_equal(wpt_tracker_arm(t), 0);
	memset(m.p, 1, m.bytes);
	assert_int_equal(wpt_range_mark(t, base + 5 * PAGE + 1, base + 5 * PAGE + 2), 0);
	assert_int_equal(wpt_range_mark(t, base + 9 * PAGE - 1, base + 9 * PAGE + 1), 0);
	assert_int_equal(wpt_range_mark(t, base + m.bytes - 1, base + m.bytes + 1), -WPT_E_NOT_TRACKED);
	assert_int_equal(wpt_range_mark(t, base, base), -EINVAL);
	scan(t, &m, WPT_SCAN_REARM, r);
	for (i = 0; i < NR_PAGES; i++)
		assert_int_equal(r->state[i], i == 5 || i == 8 || i == 9 ? WPT_PAGES_DIRTY : 0xff);
	scan(t, &m, 0, r);
	assert_int_equal(r->state[5], 0xff);
	wpt_tracker_close(t);
	t = tracker_of(&m, WPT_BACKEND_ASYNC);
	assert_int_equal(wpt_range_mark(t, base, base + 1), -EINVAL);
	wpt_tracker_close(t);
	memory_close(&m);
	free(r);
}

/* ---- errors ---- */

static void a_forked_child_is_told_so(void **state)
{
	struct wpt_range range = { .size = sizeof(range), .start = 4096, .end = 8192 };
	struct wpt_tracker *t;
	struct memory m;
	int status;
	pid_t pid;

	(void)state;
	assert_true(memory_open(&m, "anonymous"));
	m.p[0] = 1;
	t = tracker_of(&m, WPT_BACKEND_ASYNC);
	assert_int_equal(wpt_tracker_arm(t), 0);
	m.p[0] = 2;
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		bool ok = wpt_tracker_arm(t) == -WPT_E_FORKED && wpt_range_add(t, &range) == -WPT_E_FORKED &&
			  wpt_tracker_scan(t, 0, UINT64_MAX, WPT_SCAN_REARM, ignore, NULL) == -WPT_E_FORKED &&
			  wpt_range_remove(t, 1) == -WPT_E_FORKED && wpt_range_list(t, NULL, NULL) == -WPT_E_FORKED &&
			  wpt_tracker_read(t, (uintptr_t)m.p, &status, 1) == -WPT_E_FORKED;

		wpt_tracker_close(t);
		_exit(ok ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	/* The child's close took nothing from the parent. */
	{
		struct reported *r = malloc(sizeof(*r));

		scan(t, &m, 0, r);
		assert_int_equal(r->state[0], WPT_PAGES_DIRTY);
		free(r);
	}
	wpt_tracker_close(t);
	memory_close(&m);
}

static int find_reason(void *arg, const struct wpt_range_info *info)
{
	struct wpt_range_info *found = arg;

	if (info->reason)
		*found = *info;
	return 0;
}

static void memory_of_another_userfaultfd_is_skipped(void **state)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct wpt_range_info found = { 0 };
	struct wpt_tracker *t;
	struct memory m;
	int fd;

	(void)state;
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	assert_true(fd >= 0);
	assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
	assert_true(memory_open(&m, "anonymous"));
	reg.range.start = (uintptr_t)m.p;
	reg.range.len = m.bytes;
	assert_int_equal(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	t = tracker_of(&m, WPT_BACKEND_ASYNC);
	assert_int_equal(wpt_tracker_arm(t), 0);
	assert_int_equal(wpt_range_list(t, find_reason, &found), 0);
	assert_int_equal(found.reason, WPT_REASON_BUSY);
	assert_int_equal(found.skipped, 1);
	wpt_tracker_close(t);
	close(fd);
	memory_close(&m);
}

static void bad_arguments_are_refused(void **state)
{
	struct wpt_tracker_options o = { .size = sizeof(o) };
	struct { struct wpt_tracker_options o; char tail[8]; } larger = { .o = { .size = sizeof(larger) } };
	struct wpt_range range = { .size = sizeof(range), .start = 4096, .end = 8192 };
	struct wpt_tracker *t = (struct wpt_tracker *)1;

	(void)state;
	o.backend = 99;
	assert_int_equal(wpt_tracker_open(&t, &o), -EINVAL);
	o.backend = 0;
	o.flags = 1u << 31;
	assert_int_equal(wpt_tracker_open(&t, &o), -EINVAL);
	larger.tail[0] = 1;
	assert_int_equal(wpt_tracker_open(&t, &larger.o), -EINVAL);
	assert_ptr_equal(t, (struct wpt_tracker *)1);
	larger.tail[0] = 0;
	assert_int_equal(wpt_tracker_open(&t, &larger.o), 0);
	assert_int_equal(wpt_range_add_all(t), -EINVAL);
	range.end = 4096;
	assert_int_equal(wpt_range_add(t, &range), -EINVAL);
	range.end = 8193;
	assert_int_equal(wpt_range_add(t, &range), -EINVAL);
	assert_int_equal(wpt_range_add(t, NULL), -EINVAL);
	assert_int_equal(wpt_tracker_scan(t, 0, UINT64_MAX, 2, ignore, NULL), -EINVAL);
	wpt_tracker_close(t);
	wpt_tracker_close(NULL);
	assert_int_equal(wpt_tracker_attach(&t, 0, NULL), -ESRCH);
	assert_int_equal(wpt_tracker_attach(&t, 0x3ffffff, NULL), -ESRCH);
}

static bool has_async(void)
{
	struct wpt_probe p = { .size = sizeof(p) };

	return wpt_probe(&p) == 0 && p.features & WPT_F_ASYNC;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_write_is_reported_once),
		cmocka_unit_test(memory_that_is_nowhere_is_zero),
		cmocka_unit_test(a_private_page_that_falls_back_to_its_file_is_reported),
		cmocka_unit_test(a_new_mapping_at_the_same_place_is_unknown),
		cmocka_unit_test(a_scan_that_can_not_note_what_it_took_is_followed_by_unknown_pages),
		cmocka_unit_test(a_scan_that_is_ended_early_loses_nothing),
		cmocka_unit_test(no_write_is_lost_to_a_running_writer),
		cmocka_unit_test(ranges_come_and_go_while_others_scan),
		cmocka_unit_test(reported_pages_are_what_was_marked),
		cmocka_unit_test(a_forked_child_is_told_so),
		cmocka_unit_test(memory_of_another_userfaultfd_is_skipped),
		cmocka_unit_test(bad_arguments_are_refused),
	};

	if (!has_async()) {
		printf("1..0 # SKIP no asynchronous write protection (wpsnap probe)\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
