/* SPDX-License-Identifier: MIT */
/*
 * A chain of the own process through the public API, kind by kind and failure by failure. What a link shows is compared with live
 * memory, which rests meanwhile.
 */
#include "torture_util.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/resource.h>

#define PAGES 512u
#define BYTES (PAGES * TP)
#define HUGE ((size_t)2 << 20)

enum kind { ANON, THP, SHARED_ANON, MEMFD, MEMFD_PRIVATE, TMPFS, FILE_SHARED, FILE_PRIVATE,
				       HUGE_PRIVATE, HUGE_SHARED };

static int new_fd(enum kind kind)
{
	char path[64];
	int fd;

	switch (kind) {
	case MEMFD:
	case MEMFD_PRIVATE:
		fd = memfd_create("snapshot", MFD_CLOEXEC);
		break;
	case HUGE_SHARED:
		fd = memfd_create("snapshot", MFD_CLOEXEC | MFD_HUGETLB);
		break;
	case TMPFS:
	case FILE_SHARED:
	case FILE_PRIVATE:
		snprintf(path, sizeof(path), "%s/wptrack-snapshot-XXXXXX", kind == TMPFS ? "/dev/shm" : "/var/tmp");
		fd = mkostemp(path, O_CLOEXEC);
		unlink(path);
		break;
	default:
		return -1;
	}
	assert_true(fd >= 0);
	return fd;
}

/* NULL: no huge pages. Private mappings of files have content in the file. */
static char *map_kind(enum kind kind, int *fd)
{
	bool huge = kind == HUGE_PRIVATE || kind == HUGE_SHARED;
	bool shared = kind == SHARED_ANON || kind == MEMFD || kind == TMPFS || kind == FILE_SHARED || kind == HUGE_SHARED;
	int flags = shared ? MAP_SHARED : MAP_PRIVATE;
	char *m;

	*fd = new_fd(kind);
	if (*fd >= 0)
		assert_int_equal(ftruncate(*fd, (off_t)BYTES), 0);
	if (kind == MEMFD_PRIVATE || kind == FILE_PRIVATE) {
		m = malloc(BYTES);
		fix_fill(m, BYTES, 99);
		assert_int_equal(pwrite(*fd, m, BYTES, 0), BYTES);
		free(m);
	}
	if (kind == THP) { /* aligned to a huge page */
		char *raw = fix_anon(BYTES + HUGE);

		m = (char *)(((uintptr_t)raw + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
		madvise(m, BYTES, MADV_HUGEPAGE);
		return m;
	}
	m = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, flags | (*fd < 0 ? MAP_ANONYMOUS : 0) | (huge && *fd < 0 ? MAP_HUGETLB : 0), *fd, 0);
	if (m == MAP_FAILED) {
		assert_true(huge);
		close(*fd);
		return NULL;
	}
	return m;
}

/* ---- the basics ---- */

static int look_each(void *arg, const struct wpt_run *run)
{
	(void)arg;
	return run->start < run->end ? 0 : -EINVAL;
}

static const uint32_t public_kinds[] = { WPT_KIND_ANON, WPT_KIND_ANON, WPT_KIND_SHMEM, WPT_KIND_SHMEM, WPT_KIND_FILE_PRIVATE, WPT_KIND_SHMEM,
					 WPT_KIND_FILE_SHARED, WPT_KIND_FILE_PRIVATE, WPT_KIND_HUGETLB_PRIVATE, WPT_KIND_HUGETLB_SHARED };

/* A memfd that changed just now is compared by the next link, since the clock may not tell of a change right after. */
static void wait_until_settled(int fd)
{
	struct timespec now, nap = { .tv_nsec = 10000000 };
	struct stat st;

	do {
		nanosleep(&nap, NULL);
		assert_int_equal(fstat(fd, &st), 0);
		clock_gettime(CLOCK_REALTIME, &now);
	} while ((now.tv_sec - st.st_ctim.tv_sec) * 1000 + (now.tv_nsec - st.st_ctim.tv_nsec) / 1000000 < 100);
}

static bool has_map_files(void)
{
	struct wpt_probe p = { .size = sizeof(p) };

	return wpt_probe(&p) == 0 && p.features & WPT_F_MAP_FILES;
}

static void kind_base_and_increments(void **state)
{
	enum kind kind = (enum kind)*(uintptr_t *)*state;
	bool huge = kind == HUGE_PRIVATE || kind == HUGE_SHARED, private_file = kind == MEMFD_PRIVATE || kind == FILE_PRIVATE;
	struct fix f;
	int fd;

	/* Of backend sync these are compared by content, which sync_test has. */
	if (kind == FILE_SHARED || kind == FILE_PRIVATE || huge ? !fix_async() || way_is_sync() : !fix_supported())
		skip();
	char *m = map_kind(kind, &fd);
	if (!m) {
		print_message("# skip: needs a free huge page of 2 MiB: /proc/sys/vm/nr_hugepages\n");
		skip();
	}
	if (kind == SHARED_ANON && !has_map_files()) {
		print_message("# skip: needs CAP_CHECKPOINT_RESTORE: the file of shared anonymous memory is reached through map_files only\n");
		munmap(m, BYTES);
		skip();
	}
	fix_fill(m, BYTES / 2, 1);
	if (kind == MEMFD_PRIVATE)
		wait_until_settled(fd);
	/* Where some process can't be inspected, shared files would be compared by content. */
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	assert_int_equal(f.stats.sequence, 0);
	assert_int_equal(f.stats.pages_tracked, PAGES);
	assert_int_equal(fix_look(&f, m).kind, public_kinds[kind]);
	assert_int_equal(fix_look(&f, m).reason, WPT_REASON_NONE);
	fix_take(&f); /* comparing has read all pages: those that were not there are now, as the zero page */
	fix_take_and_check(&f); /* nothing happened */
	assert_int_equal(f.stats.sequence, 2);
	assert_int_equal(f.stats.pages_dirty, 0);
	assert_int_equal(f.stats.pages_stored, 0);
	for (unsigned i = 0; i < 4; i++) {
		fix_take(&f);
		m[(3 + i) * TP + 77]++;
		m[(400 + i) * TP] = 1;
		memset(m + (100 + i) * TP, 0, TP);
		fix_take_and_check(&f);
		assert_true(f.stats.pages_dirty >= 3);
		if (!huge && kind != THP)
			assert_int_equal(f.stats.pages_dirty, 3);
		assert_in_range(f.stats.pages_stored + f.stats.pages_duplicate, 1, 2);
		if (!huge && !private_file)
			assert_int_equal(madvise(m + (200 + i * 8) * TP, 8 * TP, MADV_DONTNEED), 0);
		fix_take_and_check(&f);
	}
	fix_close(&f);
	munmap(m, BYTES);
	if (fd >= 0)
		close(fd);
}

static void reported_backend(void **state)
{
	(void)state;
	char *m = fix_anon(BYTES);
	struct fix f;

	fix_fill(m, BYTES, 1);
	fix_tracker(&f, 0, WPT_BACKEND_REPORTED, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	fix_take_and_check(&f);
	assert_int_equal(f.stats.pages_dirty, 0);
	for (unsigned i = 0; i < 5; i++) {
		m[i * 50 * TP] ^= 0x55;
		memset(m + (i * 50 + 7) * TP, 0, 2 * TP);
		assert_int_equal(wpt_range_mark(f.t, (uint64_t)m + i * 50 * TP, (uint64_t)m + i * 50 * TP + 1), 0);
		assert_int_equal(wpt_range_mark(f.t, (uint64_t)m + (i * 50 + 7) * TP + 5, (uint64_t)m + (i * 50 + 8) * TP + 9), 0);
		fix_take_and_check(&f);
		assert_int_equal(f.stats.pages_dirty, 3);
	}
	m[9 * TP] ^= 1; /* not said: the owner's word is all there is */
	fix_take(&f);
	assert_int_equal(fix_wrong(&f), 1);
	assert_int_equal(wpt_range_mark(f.t, (uint64_t)m + 9 * TP, (uint64_t)m + 10 * TP), 0);
	fix_take_and_check(&f);
	assert_int_equal(wpt_range_mark(f.t, (uint64_t)m + BYTES, (uint64_t)m + BYTES + TP), -WPT_E_NOT_TRACKED);
	fix_close(&f);
	munmap(m, BYTES);
}

static void mark_is_for_reported_only(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *m = fix_anon(BYTES);
	struct fix f;

	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	assert_int_equal(wpt_range_mark(f.t, (uint64_t)m, (uint64_t)m + TP), -EINVAL);
	fix_close(&f);
	munmap(m, BYTES);
}

static void nothing_to_track(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	struct fix f;

	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_writer(&f);
	assert_int_equal(fix_try(&f, NULL), -ENODATA);
	fix_close(&f);
}

static void one_writer_at_a_time(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *m = fix_anon(BYTES);
	struct wpt_writer *other = NULL;
	struct fix f;

	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	assert_int_equal(wpt_writer_open(&other, f.t, f.chain, NULL), -WPT_E_LOCKED);
	assert_null(other);
	assert_int_equal(wpt_tracker_scan(f.t, 0, UINT64_MAX, WPT_SCAN_REARM, look_each, NULL), -EBUSY);
	m[0] = 1;
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(m, BYTES);
}

/* ---- ranges ---- */

static void ranges_come_and_go_between_links(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *a = fix_anon(BYTES), *b = fix_anon(BYTES);
	struct wpt_range overlap = { .size = sizeof(overlap) };
	struct fix f;

	fix_fill(a, BYTES, 1);
	fix_fill(b, BYTES, 2);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, a, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	for (unsigned i = 0; i < 4; i++) {
		b[i * TP] = 5;
		fix_add(&f, b, BYTES);
		overlap.start = (uint64_t)b + TP;
		overlap.end = overlap.start + TP;
		assert_int_equal(wpt_range_add(f.t, &overlap), -EEXIST);
		a[i * 7 * TP] = (char)(i + 1);
		fix_take_and_check(&f);
		b[(i + 100) * TP] = 6;
		fix_take_and_check(&f);
		assert_int_equal(wpt_range_remove(f.t, f.id[1]), 0);
		assert_int_equal(wpt_range_remove(f.t, f.id[1]), -WPT_E_NOT_TRACKED);
		f.nr = 1;
		b[(i + 200) * TP] = 7; /* unseen by anybody */
		fix_take_and_check(&f);
		assert_int_equal(f.stats.pages_tracked, PAGES);
	}
	fix_close(&f);
	munmap(a, BYTES);
	munmap(b, BYTES);
}

/* A chain goes on with another tracker that has only some of the memory: what the chain had of the rest is not there when that comes back. */
static void ranges_that_a_continued_chain_lost(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *a = fix_anon(BYTES), *b = fix_anon(BYTES);
	struct wpt_tracker_options o = { .size = sizeof(o), .log = fix_say };
	struct fix f;

	fix_fill(a, BYTES, 1);
	fix_fill(b, BYTES, 2);
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, 0);
	fix_add(&f, a, BYTES);
	fix_add(&f, b, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	wpt_writer_close(f.w);
	wpt_tracker_close(f.t);
	assert_int_equal(way_tracker(&f.t, 0, &o), 0);
	f.nr = 0;
	fix_add(&f, a, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	assert_int_equal(f.stats.sequence, 1);
	assert_int_equal(f.stats.pages_tracked, PAGES);
	fix_add(&f, b, BYTES);
	fix_take_and_check(&f);
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(a, BYTES);
	munmap(b, BYTES);
}

/* A link of nothing says so, also where the writer does not know what the one before it covered. */
static void nothing_is_left_of_a_continued_chain(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	struct wpt_tracker_options o = { .size = sizeof(o), .log = fix_say };
	struct wpt_range_info info = { .size = sizeof(info) };
	char *m = mmap((void *)(uintptr_t)0x10000000000, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct wpt_chain *c;
	struct fix f;

	/* Where the kernel puts nothing by itself. */
	assert_ptr_equal(m, (void *)(uintptr_t)0x10000000000);
	fix_fill(m, BYTES, 1);
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	wpt_writer_close(f.w);
	wpt_tracker_close(f.t);
	munmap(m, BYTES);
	assert_int_equal(way_tracker(&f.t, 0, &o), 0);
	f.nr = 0;
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	fix_take(&f);
	assert_int_equal(f.stats.pages_tracked, 0);
	assert_int_equal(wpt_chain_open(&c, f.chain), 0);
	assert_int_equal(wpt_chain_range(c, 0, &info), -ERANGE);
	wpt_chain_close(c);
	fix_close(&f);
}

struct lookers {
	struct wpt_tracker *t;
	_Atomic int stop, failed;
	_Atomic unsigned scans;
};

static void *looker(void *arg)
{
	struct lookers *l = arg;

	while (!atomic_load(&l->stop)) {
		int r = wpt_tracker_scan(l->t, 0, UINT64_MAX, 0, look_each, NULL);

		if (r)
			atomic_store(&l->failed, r);
		atomic_fetch_add(&l->scans, 1);
	}
	return NULL;
}

static void ranges_come_and_go_while_others_scan(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *a = fix_anon(BYTES), *b = fix_anon(64 * TP);
	struct lookers l = { 0 };
	pthread_t threads[2];
	struct fix f;

	fix_fill(a, BYTES, 1);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, a, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	l.t = f.t;
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, looker, &l), 0);
	for (unsigned i = 0; i < 200 || l.scans < 50; i++) {
		struct wpt_range r = { .size = sizeof(r), .start = (uint64_t)b, .end = (uint64_t)b + 64 * TP };
		int id = wpt_range_add(f.t, &r);

		assert_true(id > 0);
		b[i % 64 * TP] = 1;
		if (i % 40 == 0) {
			a[i % PAGES * TP] ^= 1;
			fix_take_and_check(&f);
		}
		assert_int_equal(wpt_range_remove(f.t, id), 0);
	}
	atomic_store(&l.stop, 1);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(l.failed, 0);
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(a, BYTES);
	munmap(b, 64 * TP);
}

static void memory_that_moves_by_mremap(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *m = fix_anon(2 * BYTES), *away = fix_anon(BYTES);
	struct fix f;

	fix_fill(m, BYTES, 1);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, 2 * BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	/* Within the range, over other tracked memory; the place it left is mapped anew. */
	assert_ptr_equal(mremap(m, 32 * TP, 32 * TP, MREMAP_MAYMOVE | MREMAP_FIXED, m + BYTES), m + BYTES);
	assert_ptr_equal(mmap(m, 32 * TP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), m);
	m[BYTES + 3 * TP] = 9;
	fix_take_and_check(&f);
	fix_take(&f); /* of what comparing has read */
	m[BYTES + 4 * TP] = 9; /* tracked again in its new place */
	m[5 * TP] = 9;
	fix_take_and_check(&f);
	assert_int_equal(f.stats.pages_dirty, 2);
	/* In from outside and out. */
	fix_fill(away, BYTES, 3);
	assert_ptr_equal(mremap(away, 16 * TP, 16 * TP, MREMAP_MAYMOVE | MREMAP_FIXED, m + 64 * TP), m + 64 * TP);
	/* The place it left is kept, or the library's own memory might come to lie there. */
	assert_ptr_equal(mmap(away, 16 * TP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), away);
	fix_take_and_check(&f);
	assert_ptr_equal(mremap(m + 64 * TP, 16 * TP, 16 * TP, MREMAP_MAYMOVE | MREMAP_FIXED, away), away);
	assert_ptr_equal(mmap(m + 64 * TP, 16 * TP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), m + 64 * TP);
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(m, 2 * BYTES);
	munmap(away, BYTES);
}

/*
 * Tracked memory that is moved next to tracked memory is merged with it, and the kernel drops the registration of both, but leaves the marks of
 * protection in what was there: a write afterwards ends none.
 */
static void moves_next_to(enum kind kind, const char *backend)
{
	int fd = new_fd(kind), flags = (kind == MEMFD || kind == FILE_SHARED ? MAP_SHARED : MAP_PRIVATE) | (fd < 0 ? MAP_ANONYMOUS : 0);
	char *area = mmap(NULL, 6 * BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), *a = area + BYTES, *b = area + 4 * BYTES;
	struct wpt_range half = { .size = sizeof(half), .start = (uint64_t)a + BYTES, .end = (uint64_t)a + 2 * BYTES };
	struct fix f;
	int i;

	assert_true(area != MAP_FAILED);
	if (fd >= 0)
		assert_int_equal(ftruncate(fd, 2 * (off_t)BYTES), 0);
	assert_ptr_equal(mmap(a, BYTES, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0), a);
	assert_ptr_equal(mmap(b, BYTES, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, (off_t)BYTES), b);
	fix_fill(a, BYTES, 1);
	way_backend = backend;
	fix_tracker(&f, 0, strcmp(backend, "async") == 0 ? WPT_BACKEND_ASYNC : WPT_BACKEND_SYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
	way_backend = NULL;
	fix_add(&f, a, BYTES);
	assert_true(wpt_range_add(f.t, &half) > 0);
	half.start = (uint64_t)b;
	half.end = (uint64_t)b + BYTES;
	assert_true(wpt_range_add(f.t, &half) > 0);
	fix_writer(&f);
	fix_take_and_check(&f);
	assert_ptr_equal(mremap(b, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, a + BYTES), a + BYTES);
	/* The place it left is kept, or the library's own memory might come to lie there. */
	assert_ptr_equal(mmap(b, BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), b);
	for (i = 0; i < 5; i++) {
		a[7 * TP] = (char)(0x40 + i);
		a[(9 + (size_t)i) * TP] = (char)(0x50 + i);
		fix_take_and_check(&f);
	}
	/* And it is tracked. */
	assert_int_equal(f.stats.pages_compared, 0);
	fix_close(&f);
	munmap(area, 6 * BYTES);
	if (fd >= 0)
		close(fd);
}

static void memory_that_moves_next_to_other_memory(void **state)
{
	static const enum kind kinds[] = { ANON, MEMFD, FILE_SHARED, FILE_PRIVATE };
	static const char *const backends[] = { "sync", "entries" };
	size_t i, k;

	(void)state;
	for (k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
		if (way_features() & WPT_F_ASYNC)
			moves_next_to(kinds[k], "async");
		/* Ordinary files are always compared there. */
		for (i = 0; i < 2 && kinds[k] <= MEMFD && way_features() & WPT_F_SYNC; i++)
			moves_next_to(kinds[k], backends[i]);
	}
}

static void *open_tracker(void *arg)
{
	fix_tracker(arg, 0, WPT_BACKEND_ASYNC, 0);
	return NULL;
}

/* What the kernel lists of a process it lists of one of its threads. */
static void the_thread_that_opened_the_tracker_ends(void **state)
{
	char *m = fix_anon(BYTES);
	pthread_t opener;
	struct fix f;

	(void)state;
	if (!fix_supported())
		skip();
	fix_fill(m, BYTES, 1);
	assert_int_equal(pthread_create(&opener, NULL, open_tracker, &f), 0);
	pthread_join(opener, NULL);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	m[5 * TP]++;
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(m, BYTES);
}

/* ---- failures lose nothing ---- */

static unsigned files_in(const char *path)
{
	struct dirent *e;
	unsigned n = 0;
	DIR *d = opendir(path);

	assert_non_null(d);
	while ((e = readdir(d)))
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

static void change_something(char *m, unsigned i)
{
	m[(i * 31 + 1) % PAGES * TP + i % TP]++;
	memset(m + (i * 17 + 2) % PAGES * TP, 0, TP);
	fix_fill(m + (i * 13 + 3) % PAGES * TP, TP, i + 1000);
	madvise(m + (i * 11 + 4) % PAGES * TP, TP, MADV_DONTNEED);
}

static void file_too_large_at_every_write(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *m = fix_anon(BYTES);
	struct rlimit limit, old;
	unsigned failed = 0, i;
	struct fix f;

	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	fix_fill(m, BYTES, 1);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	for (i = 0; i < 400; i++) {
		unsigned before = files_in(f.chain);
		int r;

		limit = (struct rlimit){ i < 100 ? i * 64 : i * 997, old.rlim_max };
		change_something(m, i);
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
		r = fix_try(&f, NULL);
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
		if (r == 0) {
			assert_int_equal(fix_wrong(&f), 0);
			continue;
		}
		assert_int_equal(r, -EFBIG);
		assert_int_equal(files_in(f.chain), before);
		failed++;
		if (i % 8 == 7)
			fix_take_and_check(&f);
	}
	fix_take_and_check(&f);
	assert_true(failed > 50);
	signal(SIGXFSZ, SIG_DFL);
	fix_close(&f);
	munmap(m, BYTES);
}

/* In a child with a mount namespace of its own: returns the line that went wrong, 0 if none, 255 if there is no such namespace. */
static int set_free_space(const char *dir, unsigned kib)
{
	char options[64];

	snprintf(options, sizeof(options), "size=%uk", kib);
	return mount("none", dir, "tmpfs", MS_REMOUNT, options);
}

#define CHECK(what)                                                                                                                       \
	do {                                                                                                                              \
		if (!(what)) {                                                                                                            \
			printf("# line %d: %s\n", __LINE__, #what);                                                                       \
			fflush(stdout);                                                                                                   \
			return 1;                                                                                                         \
		}                                                                                                                         \
	} while (0)

static int full_disk_body(const char *dir)
{
	struct wpt_take_options to = { .size = sizeof(to), .quiesce = fix_nothing, .resume = fix_void };
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	char chain[200], name[300], *m = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *buf = malloc(BYTES);
	struct wpt_range range = { .size = sizeof(range), .start = (uint64_t)m, .end = (uint64_t)m + BYTES };
	struct wpt_tracker *t;
	struct wpt_writer *w;
	struct wpt_chain *c;
	unsigned failed = 0;

	snprintf(chain, sizeof(chain), "%s/chain", dir);
	fix_fill(m, BYTES, 1);
	CHECK(wpt_tracker_open(&t, NULL) == 0);
	CHECK(wpt_range_add(t, &range) > 0);
	CHECK(wpt_writer_open(&w, t, chain, NULL) == 0); /* with fsync */
	for (unsigned kib = 8; kib < 40000; kib += kib < 400 ? 4 : kib / 3) {
		int r;

		change_something(m, kib);
		if (set_free_space(dir, kib))
			continue; /* less than what is stored already */
		r = wpt_writer_take(w, &to, &stats);
		failed += r != 0;
		CHECK(r == 0 || r == -ENOSPC);
		if (r)
			continue;
		snprintf(name, sizeof(name), "%s@%" PRIu64, chain, stats.sequence);
		CHECK(wpt_chain_open(&c, name) == 0);
		CHECK(wpt_chain_verify(c, NULL, NULL) == 0);
		CHECK(wpt_chain_restore_memory(c, range.start, range.end, buf, NULL) == 0);
		CHECK(memcmp(buf, m, BYTES) == 0);
		wpt_chain_close(c);
	}
	CHECK(failed > 10);
	CHECK(stats.sequence > 3);
	wpt_writer_close(w);
	wpt_tracker_close(t);
	return 0;
}

/* Runs `body` in a child; a skip is exit code 77. */
static void in_child(int (*body)(const char *dir), const char *dir)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(body(dir));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(status, 0);
}

static int full_disk_child(const char *dir)
{
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("none", dir, "tmpfs", 0, "size=8k")) {
		printf("# skip: mounting a small tmpfs: %s\n", strerror(errno));
		return 77;
	}
	return full_disk_body(dir);
}

static void disk_full_at_every_write(void **state)
{
	char dir[64] = "/var/tmp/wptrack-full-XXXXXX";

	(void)state;
	if (!fix_supported())
		skip();
	assert_non_null(mkdtemp(dir));
	in_child(full_disk_child, dir);
	rmdir(dir);
}

static struct wpt_writer *writer_to_fd(struct fix *f, int fd)
{
	struct wpt_writer_options o = { .size = sizeof(o), .dest = WPT_DEST_FD, .fd = fd, .nr_threads = 1 };
	struct wpt_writer *w = NULL;

	assert_int_equal(wpt_writer_open(&w, f->t, NULL, &o), 0);
	return w;
}

static int say_no(void *arg)
{
	(void)arg;
	return -ECANCELED;
}

static void descriptor_that_takes_nothing(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *m = fix_anon(BYTES), *data;
	int full = open("/dev/full", O_WRONLY | O_CLOEXEC), p[2], out = memfd_create("out", MFD_CLOEXEC);
	struct wpt_take_options no = { .size = sizeof(no), .quiesce = say_no, .max_rounds = WPT_NO_ROUNDS };
	struct wpt_chain *c;
	struct stat st;
	struct fix f;

	assert_int_equal(pipe(p), 0);
	close(p[0]);
	signal(SIGPIPE, SIG_IGN);
	fix_fill(m, BYTES, 1);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	f.w = writer_to_fd(&f, full);
	assert_int_equal(fix_try(&f, NULL), -ENOSPC);
	assert_int_equal(fix_try(&f, NULL), -ENOSPC);
	wpt_writer_close(f.w);
	f.w = writer_to_fd(&f, p[1]);
	assert_int_equal(fix_try(&f, NULL), -EPIPE);
	wpt_writer_close(f.w);
	f.w = writer_to_fd(&f, out);
	/* Nothing of it reached the descriptor. */
	assert_int_equal(fix_try(&f, &no), -ECANCELED);
	assert_int_equal(lseek(out, 0, SEEK_CUR), 0);
	for (unsigned i = 0; i < 3; i++) {
		change_something(m, i);
		assert_int_equal(fix_try(&f, NULL), 0);
	}
	assert_int_equal(fstat(out, &st), 0);
	data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, out, 0);
	assert_true(data != MAP_FAILED);
	assert_int_equal(wpt_chain_open_memory(&c, data, (size_t)st.st_size), 0);
	char *buf = malloc(BYTES);
	assert_int_equal(wpt_chain_restore_memory(c, (uint64_t)m, (uint64_t)m + BYTES, buf, NULL), 0);
	assert_memory_equal(buf, m, BYTES);
	free(buf);
	wpt_chain_close(c);
	munmap(data, (size_t)st.st_size);
	signal(SIGPIPE, SIG_DFL);
	fix_close(&f);
	close(full);
	close(p[1]);
	close(out);
	munmap(m, BYTES);
}

/* ---- no memory ---- */

#define SPARSE_PAGES 1000u
#define SPARSE_STEP ((size_t)2 << 20) /* so that what is known of each page takes memory of its own */

static size_t own_address_space(void)
{
	unsigned long pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");

	assert_non_null(file);
	assert_int_equal(fscanf(file, "%lu", &pages), 1);
	fclose(file);
	return pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* Takes with ever more memory, until one succeeds. How many failed. */
static unsigned take_with_little_memory(struct fix *f)
{
	struct rlimit before, limit;
	unsigned failed = 0;
	int r;

	assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
	for (size_t more = 0;; more += (size_t)1 << 20, failed++) {
		limit = before;
		limit.rlim_cur = WPT_MIN(before.rlim_cur, own_address_space() + more);
		assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
		r = fix_try(f, NULL);
		assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
		if (!r)
			return failed;
		assert_int_equal(r, -ENOMEM);
		assert_true(more < (size_t)1 << 30);
	}
}

/* Wherever in a link memory runs out: what was written is in the one that succeeds. */
static void memory_that_runs_out(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	const size_t len = SPARSE_PAGES * SPARSE_STEP;
	char *m = fix_map(len, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1), page[TP];
	unsigned failed, wrong = 0;
	struct wpt_chain *c;
	struct fix f;

	madvise(m, len, MADV_NOHUGEPAGE);
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, 0);
	fix_add(&f, m, len);
	fix_writer(&f);
	fix_take(&f);
	for (unsigned i = 0; i < SPARSE_PAGES; i++)
		fix_fill(m + i * SPARSE_STEP, TP, i);
	failed = take_with_little_memory(&f);
	print_message("# %u links failed\n", failed);
	assert_true(failed > 0);
	assert_int_equal(wpt_chain_open(&c, f.chain), 0);
	for (unsigned i = 0; i < SPARSE_PAGES; i++) {
		assert_int_equal(wpt_chain_read(c, (uint64_t)(m + i * SPARSE_STEP), page, TP), 0);
		wrong += memcmp(page, m + i * SPARSE_STEP, TP) != 0;
	}
	wpt_chain_close(c);
	assert_int_equal(wrong, 0);
	fix_close(&f);
	munmap(m, len);
}

static void callbacks_that_refuse(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *m = fix_anon(BYTES);
	struct fix f;

	fix_fill(m, BYTES, 1);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	for (unsigned i = 0; i < 6; i++) {
		struct wpt_take_options no_pause = { .size = sizeof(no_pause), .paused = say_no };
		struct wpt_take_options no_quiesce = { .size = sizeof(no_quiesce), .quiesce = say_no };

		change_something(m, i * 3);
		assert_true(fix_try(&f, &no_pause) < 0);
		change_something(m, i * 3 + 1);
		assert_int_equal(fix_try(&f, &no_quiesce), -ECANCELED);
		change_something(m, i * 3 + 2);
		fix_take_and_check(&f);
		assert_int_equal(f.stats.sequence, i);
	}
	fix_close(&f);
	munmap(m, BYTES);
}

static void too_much_for_the_staging_memory(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	const size_t bytes = 24u << 20;
	struct wpt_writer_options o = { .size = sizeof(o), .flags = WPT_WRITER_NO_SYNC, .staging_bytes = 4 << 20, .nr_threads = 1, .level = -5 };
	struct wpt_take_options refuse = { .size = sizeof(refuse), .flags = WPT_TAKE_REFUSE, .max_rounds = WPT_NO_ROUNDS };
	char *m = fix_anon(bytes);
	struct fix f;

	fix_fill(m, bytes, 1);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, bytes);
	assert_int_equal(wpt_writer_open(&f.w, f.t, f.chain, &o), 0);
	fix_take_and_check(&f);
	fix_fill(m, bytes, 2);
	assert_int_equal(fix_try(&f, &refuse), -WPT_E_STAGING);
	m[7] = 9;
	fix_take_and_check(&f); /* the dirty set survived the refusal */
	assert_true(f.stats.pages_dirty >= bytes / TP);
	m[9 * TP] = 1;
	assert_int_equal(fix_try(&f, &refuse), 0); /* little is no problem */
	fix_fill(m, bytes, 3);
	refuse.max_rounds = 0;
	assert_int_equal(fix_try(&f, &refuse), 0); /* nor is much, copied while the target runs */
	assert_true(f.stats.pages_paused < 1024 && f.stats.nr_rounds > 1);
	assert_int_equal(fix_wrong(&f), 0);
	fix_close(&f);
	munmap(m, bytes);
}

/* ---- fork ---- */

static struct fix *forked_fix;

static int forked_body(const char *unused)
{
	struct wpt_range r = { .size = sizeof(r), .start = 0x10000000, .end = 0x10001000 };
	struct wpt_take_options o = { .size = sizeof(o), .quiesce = fix_nothing, .resume = fix_void };
	struct fix *f = forked_fix;
	char c;

	(void)unused;
	CHECK(wpt_range_add(f->t, &r) == -WPT_E_FORKED);
	CHECK(wpt_range_remove(f->t, f->id[0]) == -WPT_E_FORKED);
	CHECK(wpt_tracker_arm(f->t) == -WPT_E_FORKED);
	CHECK(wpt_tracker_scan(f->t, 0, UINT64_MAX, 0, look_each, NULL) == -WPT_E_FORKED);
	CHECK(wpt_tracker_scan(f->t, 0, UINT64_MAX, WPT_SCAN_REARM, look_each, NULL) < 0);
	CHECK(wpt_tracker_read(f->t, (uint64_t)f->range[0].addr, &c, 1) == -WPT_E_FORKED);
	CHECK(wpt_writer_take(f->w, &o, NULL) == -WPT_E_FORKED);
	wpt_writer_close(f->w);
	wpt_tracker_close(f->t);
	return 0;
}

static void forked_child_may_not(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *m = fix_anon(BYTES);
	struct fix f;

	fix_fill(m, BYTES, 1);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	for (unsigned i = 0; i < 3; i++) {
		change_something(m, i); /* dirty before the fork: the child must not clear it */
		forked_fix = &f;
		in_child(forked_body, NULL);
		fix_take_and_check(&f);
		assert_true(f.stats.pages_dirty >= 3);
	}
	fix_close(&f);
	munmap(m, BYTES);
}

/* ---- what else a link holds ---- */

/* In the pause: as the state of a machine, which is not known before. */
static int section_in_the_pause(void *arg)
{
	struct wpt_section *s = arg;

	s->data = "e=f";
	s->len = 4;
	return 0;
}

static void sections(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *m = fix_anon(BYTES), *big = malloc(3 << 20), name[200];
	struct wpt_section s[2] = { { .type = WPT_SECTION_TAGS, .data = "a=b\0c=d", .len = 8 },
				    { .type = WPT_SECTION_USER + 5, .data = big, .len = 3 << 20 } };
	struct wpt_take_options o = { .size = sizeof(o), .nr_sections = 2, .sections = s };
	struct wpt_chain *c;
	struct fix f;
	void *data;
	size_t len;

	for (size_t i = 0; i < 3 << 20; i++)
		big[i] = (char)(i * 2654435761u >> 13);
	m[0] = 1;
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	assert_int_equal(fix_try(&f, &o), 0);
	fix_take_and_check(&f); /* without: the last link that has it counts */
	o.nr_sections = 1;
	s[0].data = NULL;
	s[0].len = 0;
	o.paused = section_in_the_pause;
	o.arg = s;
	assert_int_equal(fix_try(&f, &o), 0);
	snprintf(name, sizeof(name), "%s@%" PRIu64, f.chain, f.stats.sequence);
	assert_int_equal(wpt_chain_open(&c, name), 0);
	assert_int_equal(wpt_chain_section(c, WPT_SECTION_TAGS, &data, &len), 0);
	assert_int_equal(len, 4);
	assert_memory_equal(data, "e=f", 4);
	free(data);
	assert_int_equal(wpt_chain_section(c, WPT_SECTION_USER + 5, &data, &len), 0);
	assert_int_equal(len, 3 << 20);
	assert_memory_equal(data, big, len);
	free(data);
	assert_int_equal(wpt_chain_section(c, WPT_SECTION_DEVICE, &data, &len), -ENOENT);
	wpt_chain_close(c);
	fix_close(&f);
	free(big);
	munmap(m, BYTES);
}

/* ---- another process ---- */

/* A child with `m` (inherited, private) that touches `touch` pages of it, then sleeps. */
static pid_t sleeping_child(char *m, unsigned touch)
{
	int p[2];
	pid_t pid;
	char c;

	assert_int_equal(pipe(p), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (unsigned i = 0; i < touch; i++)
			m[i * TP] = (char)(i + 1);
		if (write(p[1], "r", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(p[0], &c, 1), 1);
	close(p[0]);
	close(p[1]);
	return pid;
}

static void registers(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	struct wpt_take_options o = { .size = sizeof(o), .flags = WPT_TAKE_REGISTERS };
	char *m = fix_anon(BYTES), name[200];
	pid_t pid = sleeping_child(m, 4);
	struct wpt_chain *c;
	struct fix f;
	void *data;
	size_t len;

	fix_tracker(&f, pid, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	assert_int_equal(fix_try(&f, &o), 0);
	snprintf(name, sizeof(name), "%s@0", f.chain);
	assert_int_equal(wpt_chain_open(&c, name), 0);
	assert_int_equal(wpt_chain_section(c, WPT_SECTION_REGISTERS, &data, &len), 0);
	assert_true(len >= 27 * 8); /* struct user_regs_struct of one thread at least */
	free(data);
	assert_int_equal(wpt_chain_section(c, WPT_SECTION_MAPPINGS, &data, &len), 0);
	assert_true(len > 100 && ((char *)data)[len - 1] == '\n');
	free(data);
	wpt_chain_close(c);
	fix_close(&f);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	munmap(m, BYTES);
}

static void reading_does_not_inflate_the_target(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	const size_t bytes = 256u << 20;
	int fd = memfd_create("sparse", MFD_CLOEXEC);
	struct stat before, after;
	struct fix f;
	pid_t pid;
	uint64_t rss;

	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	char *sparse = fix_map(bytes, MAP_SHARED, fd), *private = fix_map(bytes, MAP_PRIVATE, fd), *anon = fix_anon(bytes);

	sparse[1000 * TP] = 1;
	pid = sleeping_child(anon, 300);
	assert_int_equal(fstat(fd, &before), 0);
	rss = status_kib(pid, "VmRSS:");
	fix_tracker(&f, pid, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, sparse, bytes);
	fix_add(&f, private, bytes);
	fix_add(&f, anon, bytes);
	fix_writer(&f);
	for (unsigned i = 0; i < 3; i++) {
		fix_take(&f);
		assert_int_equal(fstat(fd, &after), 0);
		assert_int_equal(after.st_blocks, before.st_blocks);
		assert_in_range(status_kib(pid, "VmRSS:"), 0, rss + 512);
	}
	fix_close(&f);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	munmap(sparse, bytes);
	munmap(private, bytes);
	munmap(anon, bytes);
	close(fd);
}

/* Whether memory goes to swap when it is told to. */
/* ---- a user without privilege ---- */

static int unprivileged_chain(struct wpt_tracker *t, char *m, const char *chain, pid_t pid)
{
	struct wpt_take_options to = { .size = sizeof(to), .quiesce = pid ? NULL : fix_nothing, .resume = pid ? NULL : fix_void };
	struct wpt_range range = { .size = sizeof(range), .start = (uint64_t)m, .end = (uint64_t)m + BYTES };
	struct wpt_writer *w;
	struct wpt_chain *c;
	char *buf = malloc(BYTES);

	CHECK(wpt_range_add(t, &range) > 0);
	CHECK(wpt_writer_open(&w, t, chain, NULL) == 0);
	for (unsigned i = 0; i < 4; i++) {
		if (!pid)
			change_something(m, i);
		CHECK(wpt_writer_take(w, &to, NULL) == 0);
		CHECK(wpt_chain_open(&c, chain) == 0);
		CHECK(wpt_chain_restore_memory(c, range.start, range.end, buf, NULL) == 0);
		CHECK(pid || memcmp(buf, m, BYTES) == 0);
		for (unsigned k = 0; pid && k < 4; k++)
			CHECK(buf[k * TP] == (char)(k + 1));
		wpt_chain_close(c);
	}
	wpt_writer_close(w);
	free(buf);
	return 0;
}

static int unprivileged_body(const char *dir)
{
	struct wpt_tracker_options patient = { .size = sizeof(patient), .stop_timeout_ms = 10000 };
	char chain[200];
	struct wpt_tracker *t;
	int fd, status;
	pid_t pid;
	char *m;

	CHECK(getuid() != 0 || (setgid(65534) == 0 && setuid(65534) == 0));
	CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
	m = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fix_fill(m, BYTES, 1);
	CHECK(wpt_tracker_open(&t, NULL) == 0);
	snprintf(chain, sizeof(chain), "%s/anon", dir);
	CHECK(unprivileged_chain(t, m, chain, 0) == 0);
	wpt_tracker_close(t);
	remove_folder(chain);

	fd = memfd_create("unprivileged", MFD_CLOEXEC);
	CHECK(ftruncate(fd, (off_t)BYTES) == 0);
	m = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	fix_fill(m, BYTES, 2);
	CHECK(wpt_tracker_open(&t, NULL) == 0);
	snprintf(chain, sizeof(chain), "%s/memfd", dir);
	CHECK(unprivileged_chain(t, m, chain, 0) == 0);
	wpt_tracker_close(t);
	remove_folder(chain);

	m = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid = sleeping_child(m, 4);
	status = wpt_tracker_attach(&t, pid, &patient);
	if (status == -EPERM) {
		printf("# this system's policy (Yama) forbids users to trace: attaching was not tried\n");
	} else {
		CHECK(status == 0);
		snprintf(chain, sizeof(chain), "%s/attached", dir);
		CHECK(unprivileged_chain(t, m, chain, pid) == 0);
		wpt_tracker_close(t);
		remove_folder(chain);
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return 0;
}

/* Backend sync is not for everybody. */
static void unprivileged_user(void **state)
{
	char dir[64] = "/var/tmp/wptrack-nobody-XXXXXX";

	(void)state;
	if (!fix_async())
		skip();
	assert_non_null(mkdtemp(dir));
	assert_int_equal(chmod(dir, 0777), 0);
	in_child(unprivileged_body, dir);
	rmdir(dir);
}

#define KIND(name_, kind_) { .name = name_, .test_func = kind_base_and_increments, .initial_state = &kinds[kind_] }

int main(void)
{
	static uintptr_t kinds[10] = { ANON, THP, SHARED_ANON, MEMFD, MEMFD_PRIVATE, TMPFS, FILE_SHARED, FILE_PRIVATE,
				       HUGE_PRIVATE, HUGE_SHARED };
	static const struct CMUnitTest tests[] = {
		KIND("anon_base_and_increments", ANON),
		KIND("thp_base_and_increments", THP),
		KIND("shared_anon_base_and_increments", SHARED_ANON),
		KIND("memfd_base_and_increments", MEMFD),
		KIND("memfd_private_base_and_increments", MEMFD_PRIVATE),
		KIND("tmpfs_base_and_increments", TMPFS),
		KIND("file_shared_base_and_increments", FILE_SHARED),
		KIND("file_private_base_and_increments", FILE_PRIVATE),
		KIND("hugetlb_private_base_and_increments", HUGE_PRIVATE),
		KIND("hugetlb_shared_base_and_increments", HUGE_SHARED),
		cmocka_unit_test(reported_backend),
		cmocka_unit_test(mark_is_for_reported_only),
		cmocka_unit_test(nothing_to_track),
		cmocka_unit_test(one_writer_at_a_time),
		cmocka_unit_test(ranges_come_and_go_between_links),
		cmocka_unit_test(ranges_that_a_continued_chain_lost),
		cmocka_unit_test(nothing_is_left_of_a_continued_chain),
		cmocka_unit_test(ranges_come_and_go_while_others_scan),
		cmocka_unit_test(memory_that_moves_by_mremap),
		cmocka_unit_test(memory_that_moves_next_to_other_memory),
		cmocka_unit_test(the_thread_that_opened_the_tracker_ends),
		cmocka_unit_test(file_too_large_at_every_write),
		cmocka_unit_test(disk_full_at_every_write),
		cmocka_unit_test(descriptor_that_takes_nothing),
		cmocka_unit_test(memory_that_runs_out),
		cmocka_unit_test(callbacks_that_refuse),
		cmocka_unit_test(too_much_for_the_staging_memory),
		cmocka_unit_test(forked_child_may_not),
		cmocka_unit_test(sections),
		cmocka_unit_test(registers),
		cmocka_unit_test(reading_does_not_inflate_the_target),
		cmocka_unit_test(unprivileged_user),
	};

	if (getenv("WPT_ONLY") && *getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
