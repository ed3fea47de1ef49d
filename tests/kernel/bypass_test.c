/* SPDX-License-Identifier: MIT */
/*
 * Memory that changes without a page fault of the target: other processes, system calls, other mappings. Never a wrong snapshot,
 * unless the caller vouched for being the only writer.
 */
#include "torture_util.h"

#include <linux/btrfs.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#define PAGES 256u
#define BYTES (PAGES * TP)

/* ---- another process, told what to do over a pipe ---- */

enum { OTHER_STORE, OTHER_PWRITE, OTHER_PUNCH };

struct order {
	int what, fd;
	size_t page;
	unsigned value;
	char path[100]; /* opened for the order, if not empty */
};

struct other {
	pid_t pid;
	int to, from;
};

static void other_do(const struct order *o, char *map)
{
	char page[TP];
	int fd = o->path[0] ? open(o->path, O_RDWR | O_CLOEXEC) : o->fd;

	memset(page, (int)o->value, sizeof(page));
	if (o->path[0] && o->what == OTHER_STORE)
		map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (o->what == OTHER_STORE)
		memset(map + o->page * TP, (int)o->value, TP);
	else if (o->what == OTHER_PWRITE && pwrite(fd, page, TP, (off_t)(o->page * TP)) != (ssize_t)TP)
		_exit(3);
	else if (o->what == OTHER_PUNCH && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(o->page * TP), (off_t)TP))
		_exit(4);
	if (o->path[0] && o->what == OTHER_STORE)
		munmap(map, BYTES);
	if (o->path[0])
		close(fd);
}

/* `fd` >= 0: it keeps the descriptor; `map`: it keeps the (inherited or own) mapping. What is neither is given up. */
static struct other other_start(int fd, int keep_fd, char *inherited, bool map)
{
	struct other o;
	int to[2], from[2];

	assert_int_equal(pipe(to), 0);
	assert_int_equal(pipe(from), 0);
	o.pid = fork();
	assert_true(o.pid >= 0);
	if (o.pid == 0) {
		struct order order;
		char *m = inherited;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to[1]);
		close(from[0]);
		if (!map && inherited)
			munmap(inherited, BYTES);
		if (map && fd >= 0) {
			munmap(inherited, BYTES);
			m = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		}
		if (fd >= 0 && !keep_fd)
			close(fd);
		if (write(from[1], "r", 1) != 1)
			_exit(1);
		while (read(to[0], &order, sizeof(order)) == sizeof(order)) {
			other_do(&order, m);
			if (write(from[1], "d", 1) != 1)
				_exit(2);
		}
		_exit(0);
	}
	close(to[0]);
	close(from[1]);
	o.to = to[1];
	o.from = from[0];
	char c;
	assert_int_equal(read(o.from, &c, 1), 1);
	return o;
}

static void other_order(struct other *o, struct order order)
{
	char c;

	assert_int_equal(write(o->to, &order, sizeof(order)), sizeof(order));
	assert_int_equal(read(o->from, &c, 1), 1);
}

static void other_end(struct other *o)
{
	int status;

	close(o->to);
	assert_int_equal(waitpid(o->pid, &status, 0), o->pid);
	assert_int_equal(status, 0);
	close(o->from);
}

/* ---- files ---- */

static int new_memfd(void)
{
	int fd = memfd_create("bypass", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)BYTES), 0);
	return fd;
}

static int new_file(const char *dir, char path[100])
{
	int fd;

	snprintf(path, 100, "%s/wptrack-bypass-XXXXXX", dir);
	fd = mkostemp(path, O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)BYTES), 0);
	return fd;
}

static void start(struct fix *f, char *m, uint32_t flags)
{
	fix_fill(m, BYTES, 1);
	fix_tracker(f, 0, WPT_BACKEND_ASYNC, flags);
	fix_add(f, m, BYTES);
	fix_writer(f);
	fix_take_and_check(f);
	fix_take_and_check(f);
}

static void second_process_maps_it(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	int fd = new_memfd();
	char *m = fix_map(BYTES, MAP_SHARED, fd);
	struct other o = other_start(fd, 0, m, true);
	struct fix f;

	start(&f, m, 0);
	assert_int_equal(fix_look(&f, m).reason, WPT_REASON_OTHER_WRITER);
	for (unsigned i = 0; i < 6; i++) {
		for (unsigned k = 0; k < 5; k++)
			other_order(&o, (struct order){ .what = OTHER_STORE, .page = (i * 37 + k * 11) % PAGES, .value = i + 1 });
		memset(m + (i * 13 % PAGES) * TP, 0x40 + (int)i, 100);
		fix_take_and_check(&f);
		assert_int_equal(f.stats.pages_compared, PAGES);
	}
	other_end(&o);
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(m, BYTES);
	close(fd);
}

static int say_no(void *arg)
{
	(void)arg;
	return -ECANCELED;
}

/* The link that knew of the other writer fails, and by the next one the writer is gone. */
static void writer_that_only_a_failed_link_saw(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	int fd = new_memfd();
	char *m = fix_map(BYTES, MAP_SHARED, fd), *again;
	struct wpt_take_options no = { .size = sizeof(no), .paused = say_no };
	struct other o;
	struct fix f;

	start(&f, m, 0);
	for (unsigned i = 0; i < 3; i++) {
		o = other_start(fd, 0, m, true);
		fix_take_and_check(&f);
		other_order(&o, (struct order){ .what = OTHER_STORE, .page = i * 7, .value = i + 90 });
		other_end(&o);
		assert_true(fix_try(&f, &no) < 0);
		assert_true(fix_try(&f, &no) < 0);
		fix_take_and_check(&f);
		again = fix_map(BYTES, MAP_SHARED, fd);
		fix_take_and_check(&f);
		memset(again + (i * 7 + 50) * TP, 0x61 + (int)i, TP);
		munmap(again, BYTES);
		assert_true(fix_try(&f, &no) < 0);
		assert_true(fix_try(&f, &no) < 0);
		fix_take_and_check(&f);
	}
	fix_close(&f);
	munmap(m, BYTES);
	close(fd);
}

static void sole_writer_is_believed(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	int fd = new_memfd();
	char *m = fix_map(BYTES, MAP_SHARED, fd);
	struct other o = other_start(fd, 0, m, true);
	struct fix f;

	start(&f, m, WPT_TRACK_ASSUME_SOLE_WRITER);
	assert_int_equal(fix_look(&f, m).reason, WPT_REASON_NONE);
	other_order(&o, (struct order){ .what = OTHER_STORE, .page = 7, .value = 9 });
	fix_take(&f);
	/* The proof that the other tests test something: this write is invisible to the kernel's tracking. */
	assert_int_equal(fix_wrong(&f), 1);
	other_end(&o);
	fix_close(&f);
	munmap(m, BYTES);
	close(fd);
}

static void second_process_with_descriptor(void **state)
{
	static const char *const dirs[] = { NULL, "/dev/shm", "/var/tmp" };
	(void)state;
	if (!fix_supported())
		skip();
	/* Of backend sync a file on a disk is compared for another reason. */
	for (unsigned d = 0; d < (way_is_sync() ? 2 : 3); d++) {
		char path[100] = "";
		int fd = d ? new_file(dirs[d], path) : new_memfd();
		char *m = fix_map(BYTES, MAP_SHARED, fd);
		struct other o = other_start(fd, 1, m, false);
		struct fix f;

		start(&f, m, 0);
		assert_int_equal(fix_look(&f, m).reason, WPT_REASON_OTHER_WRITER);
		for (unsigned i = 0; i < 4; i++) {
			other_order(&o, (struct order){ .what = OTHER_PWRITE, .fd = fd, .page = i * 31, .value = i + 1 });
			other_order(&o, (struct order){ .what = OTHER_PUNCH, .fd = fd, .page = i * 31 + 5 });
			if (i & 1)
				assert_int_equal(*(volatile char *)(m + (i * 31 + 5) * TP), 0); /* the hole is filled by a read */
			fix_take_and_check(&f);
		}
		other_end(&o);
		fix_close(&f);
		munmap(m, BYTES);
		close(fd);
		if (path[0])
			unlink(path);
	}
}

static void come_and_gone_between_links(void **state)
{
	static const char *const dirs[] = { "/dev/shm", "/var/tmp" };
	static const int kinds_of_change[] = { OTHER_PWRITE, OTHER_PUNCH, OTHER_STORE };
	(void)state;
	if (!fix_supported())
		skip();
	for (unsigned d = 0; d < 2; d++) {
		char path[100];
		int fd = new_file(dirs[d], path);
		char *m = fix_map(BYTES, MAP_SHARED, fd);
		struct fix f;

		close(fd);
		start(&f, m, 0);
		for (unsigned i = 0; i < 6; i++) {
			/* Forked now: nothing of the target's is left in it but what it opens itself. */
			struct other o = other_start(-1, 0, m, false);
			struct order order = { .what = kinds_of_change[i % 3], .page = i * 17 + 3, .value = 0x21 + i };

			snprintf(order.path, sizeof(order.path), "%s", path);
			other_order(&o, order);
			other_end(&o);
			fix_take_and_check(&f);
		}
		fix_close(&f);
		munmap(m, BYTES);
		unlink(path);
	}
}

static void private_mapping_of_a_file_that_changes(void **state)
{
	/* The last is a memfd, of which inotify tells nothing; its holes are filled again by reading them. */
	static const char *const dirs[] = { "/dev/shm", "/var/tmp", NULL };
	(void)state;
	if (!fix_supported())
		skip();
	for (unsigned d = 0; d < 3; d++) {
		char path[100] = "";
		int fd = dirs[d] ? new_file(dirs[d], path) : new_memfd();
		char *all = malloc(BYTES), *m;
		struct fix f;

		fix_fill(all, BYTES, 3);
		assert_int_equal(pwrite(fd, all, BYTES, 0), BYTES);
		m = fix_map(BYTES, MAP_PRIVATE, fd);
		memset(m, 1, 3 * TP); /* three own copies */
		fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
		fix_add(&f, m, BYTES);
		fix_writer(&f);
		fix_take_and_check(&f);
		for (unsigned i = 0; i < 5; i++) {
			assert_int_equal(pwrite(fd, all + i * TP, TP, (off_t)((i * 2 + 1) * TP)), TP); /* own copies don't change, others do */
			m[(20 + i) * TP] = 7;
			if (!dirs[d] && i % 2 == 0) {
				assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)((30 + i) * TP), TP), 0);
				assert_int_equal(*(volatile char *)&m[(30 + i) * TP], 0);
			}
			if (i == 3)
				assert_int_equal(madvise(m, 3 * TP, MADV_DONTNEED), 0); /* back to the file's */
			fix_take_and_check(&f);
		}
		fix_close(&f);
		munmap(m, BYTES);
		free(all);
		close(fd);
		if (dirs[d])
			unlink(path);
	}
}

/* ---- the target goes on while it is copied ---- */

struct churn {
	char *m;
	int fd;
	size_t bytes;
	atomic_bool stop, park, parked;
	uint64_t rng;
};

static int churn_park(void *arg)
{
	struct churn *c = arg;

	atomic_store(&c->park, true);
	while (!atomic_load(&c->parked))
		usleep(10);
	return 0;
}

static void churn_go_on(struct churn *c)
{
	atomic_store(&c->park, false);
	while (atomic_load(&c->parked))
		usleep(10);
}

static void churn_rest(struct churn *c)
{
	if (!atomic_load(&c->park))
		return;
	atomic_store(&c->parked, true);
	while (atomic_load(&c->park))
		usleep(10);
	atomic_store(&c->parked, false);
}

static void *churn_read(void *arg)
{
	static char buf[256 * TP];
	struct churn *c = arg;

	while (!atomic_load(&c->stop))
		for (size_t at = 0; at < c->bytes; at += sizeof(buf))
			if (pread(c->fd, buf, sizeof(buf), (off_t)at) < 0)
				return c;
	return NULL;
}

/*
 * What is punched out of a large page while somebody reads it is not a hole but zeroed in its place, and only the time of change and that it is
 * mapped no more tell. Seldom otherwise, and of most pages here.
 */
static void large_page_that_is_punched_while_it_is_read(void **state)
{
	const size_t huge = 2 << 20;
	struct churn c = { .fd = new_memfd(), .bytes = 2 * huge };
	time_t end = time(NULL) + 60; /* an emulated machine takes seconds for each */
	unsigned holes = 0, punched = 0;
	pthread_t reader;
	struct fix f;
	char *room;

	(void)state;
	if (!fix_supported())
		skip();
	assert_int_equal(ftruncate(c.fd, (off_t)c.bytes), 0);
	room = fix_map(c.bytes + huge, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	c.m = room + (huge - (uintptr_t)room % huge) % huge;
	assert_true(mmap(c.m, c.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, c.fd, 0) == c.m);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&f, c.m, c.bytes);
	fix_writer(&f);
	assert_int_equal(pthread_create(&reader, NULL, churn_read, &c), 0);
	for (unsigned i = 0; i < 100 && punched - holes < 10 && time(NULL) < end; i++) {
		fix_fill(c.m, c.bytes, i);
		madvise(c.m, c.bytes, MADV_COLLAPSE);
		fix_take_and_check(&f);
		for (size_t page = i * 37 % 512; page < c.bytes / TP; page += 512, punched++) {
			off_t at = (off_t)(page * TP);

			assert_int_equal(fallocate(c.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, TP), 0);
			holes += lseek(c.fd, at, SEEK_HOLE) == at;
		}
		fix_take_and_check(&f);
	}
	print_message("# of %u pages that were punched %u are holes\n", punched, holes);
	atomic_store(&c.stop, true);
	pthread_join(reader, NULL);
	fix_close(&f);
	munmap(room, c.bytes + huge);
	close(c.fd);
}

/* After the first part of a look that takes long, and long before its end: or else, and then there is nothing to see. */
static void *change_in_the_midst(void *arg)
{
	struct timespec nap = { .tv_nsec = 8000000 };
	struct churn *c = arg;

	nanosleep(&nap, NULL);
	assert_int_equal(pwrite(c->fd, "changed", 7, 3 * (off_t)TP), 7);
	assert_int_equal(madvise(c->m + 3 * TP, TP, MADV_DONTNEED), 0);
	return NULL;
}

/* The time of change tells of a page that is mapped no more, if the look that sees the one sees the other too. */
static void memfd_that_changes_in_the_midst_of_a_look(void **state)
{
	const size_t bytes = 64 * TP, large = (size_t)8 << 30;
	struct churn c = { .fd = new_memfd(), .bytes = bytes };
	struct wpt_range range = { .size = sizeof(range) };
	struct timespec now;
	char *room, *slow;
	pthread_t thread;
	struct stat st;
	struct fix f;
	int fd = new_memfd();

	(void)state;
	/* With WP_WRITTEN the kernel tells of holes, and nothing is asked for of the file: nothing tells of a write by a descriptor. */
	if (!fix_supported())
		skip();
	if (way_is_exact()) {
		print_message("# skip: a tracker that counts on WP_WRITTEN asks nothing of the file\n");
		skip();
	}
	room = mmap(NULL, bytes + large, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(room != MAP_FAILED);
	c.m = room;
	slow = room + bytes;
	assert_int_equal(ftruncate(c.fd, (off_t)bytes), 0);
	assert_int_equal(ftruncate(fd, (off_t)large), 0);
	assert_ptr_equal(mmap(c.m, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, c.fd, 0), c.m);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&f, c.m, bytes);
	fix_writer(&f);
	fix_fill(c.m, bytes, 1);
	fix_take_and_check(&f);
	/* So long ago that the next link's look does not take the time for too fresh. */
	do {
		assert_int_equal(fstat(c.fd, &st), 0);
		clock_gettime(CLOCK_REALTIME, &now);
	} while ((now.tv_sec - st.st_ctim.tv_sec) * 1000 + (now.tv_nsec - st.st_ctim.tv_nsec) / 1000000 < 100);
	fix_take_and_check(&f);
	/* Page tables of all of it are made by the next look. */
	assert_ptr_equal(mmap(slow, large, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0), slow);
	range.start = (uint64_t)slow;
	range.end = range.start + large;
	assert_true(wpt_range_add(f.t, &range) > 0);
	assert_int_equal(pthread_create(&thread, NULL, change_in_the_midst, &c), 0);
	assert_int_equal(wpt_tracker_look(f.t, 0), 0);
	pthread_join(thread, NULL);
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(room, bytes + large);
	close(c.fd);
	close(fd);
}

static void *churn_give_back(void *arg)
{
	struct churn *c = arg;

	while (!atomic_load(&c->stop)) {
		uint64_t r = c->rng = c->rng * 6364136223846793005u + 1442695040888963407u;
		size_t page = (r >> 33) % (c->bytes / TP - 8), nr = 1 + (r >> 20) % 8;

		churn_rest(c);
		if (r >> 60 & 1)
			memset(c->m + page * TP, (int)(r >> 25), nr * TP);
		else
			madvise(c->m + page * TP, nr * TP, MADV_DONTNEED);
	}
	return NULL;
}

/* Bases of memory that is written and given back all the time: what a round copied may be gone, and the file's again, before the next look. */
static void private_pages_that_are_given_back_while_they_are_copied(void **state)
{
	static const uint32_t backends[] = { WPT_BACKEND_ASYNC, WPT_BACKEND_SYNC };

	(void)state;
	if (!fix_supported())
		skip();
	for (unsigned b = 0; b < 2; b++) {
		struct churn c = { .fd = new_memfd(), .bytes = 4 << 20, .rng = 1 };
		struct wpt_take_options o = { .size = sizeof(o), .quiesce = churn_park, .arg = &c, .max_rounds = 3, .target_pause_us = 1 };
		pthread_t churning;
		struct fix f;

		assert_int_equal(ftruncate(c.fd, (off_t)c.bytes), 0);
		c.m = fix_map(c.bytes, MAP_SHARED, c.fd);
		fix_fill(c.m, c.bytes, 6);
		munmap(c.m, c.bytes);
		c.m = fix_map(c.bytes, MAP_PRIVATE, c.fd);
		fix_tracker(&f, 0, backends[b], WPT_TRACK_ASSUME_SOLE_WRITER);
		fix_add(&f, c.m, c.bytes);
		assert_int_equal(pthread_create(&churning, NULL, churn_give_back, &c), 0);
		for (unsigned i = 0; i < 15; i++) {
			fix_writer(&f);
			for (unsigned link = 0; link < 2; link++) {
				assert_int_equal(fix_try(&f, &o), 0);
				assert_int_equal(fix_wrong(&f), 0);
				churn_go_on(&c);
			}
			wpt_writer_close(f.w);
			remove_folder(f.chain);
		}
		atomic_store(&c.stop, true);
		pthread_join(churning, NULL);
		f.w = NULL;
		fix_close(&f);
		munmap(c.m, c.bytes);
		close(c.fd);
	}
}

static void child_that_inherited_shared_memory(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char *m = fix_map(BYTES, MAP_SHARED | MAP_ANONYMOUS, -1);
	struct fix f;

	start(&f, m, 0);
	struct other o = other_start(-1, 0, m, true);

	for (unsigned i = 0; i < 4; i++) {
		other_order(&o, (struct order){ .what = OTHER_STORE, .page = i * 3, .value = i + 9 });
		fix_take_and_check(&f);
	}
	other_end(&o);
	fix_close(&f);
	munmap(m, BYTES);
}

static void second_mapping_of_the_same_process(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	for (unsigned d = 0; d < 2; d++) {
		char path[100] = "";
		int fd = d ? new_file("/dev/shm", path) : new_memfd();
		char *m = fix_map(BYTES, MAP_SHARED, fd), *again = fix_map(BYTES, MAP_SHARED, fd);
		struct fix f;

		start(&f, m, 0);
		for (unsigned i = 0; i < 4; i++) {
			memset(again + (i * 21 + 2) * TP, 0x31 + (int)i, TP);
			fix_take_and_check(&f);
		}
		memset(again + 200 * TP, 0x55, TP); /* and gone before anybody looks */
		munmap(again, BYTES);
		fix_take_and_check(&f);
		fix_close(&f);
		munmap(m, BYTES);
		close(fd);
		if (path[0])
			unlink(path);
	}
}

static void reader_process_costs_nothing(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	char path[100];
	int fd = new_file("/dev/shm", path), ro = open(path, O_RDONLY | O_CLOEXEC);
	char *m = fix_map(BYTES, MAP_SHARED, fd);
	struct fix f;

	close(fd);
	struct other o = other_start(ro, 1, m, false); /* holds it open for reading */

	start(&f, m, 0);
	m[9 * TP] = 1;
	fix_take_and_check(&f);
	if (fix_look(&f, m).reason == WPT_REASON_UNINSPECTABLE) {
		print_message("# this user may not inspect every process: shared files are compared by content, which is right\n");
	} else {
		assert_int_equal(fix_look(&f, m).reason, WPT_REASON_NONE);
		assert_int_equal(f.stats.pages_compared, 0);
		assert_int_equal(f.stats.pages_dirty, 1);
	}
	other_end(&o);
	fix_close(&f);
	munmap(m, BYTES);
	close(ro);
	unlink(path);
}

static void verify_content_sees_own_pwrite(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	int fd = new_memfd();
	char *m = fix_map(BYTES, MAP_SHARED, fd), page[TP];
	struct fix f;

	start(&f, m, WPT_TRACK_VERIFY_CONTENT);
	memset(page, 0x77, TP);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(pwrite(fd, page, TP, (off_t)((i * 9 + 1) * TP)), TP);
		assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)((i * 9 + 4) * TP), (off_t)TP), 0);
		assert_int_equal(*(volatile char *)(m + (i * 9 + 4) * TP), 0);
		fix_take_and_check(&f);
	}
	assert_int_equal(fix_look(&f, m).reason, WPT_REASON_VERIFY);
	fix_close(&f);
	munmap(m, BYTES);
	close(fd);
}

/* ---- io_uring fixed buffers, by system calls only ---- */

struct ring {
	int fd;
	char *sq, *cq, *sqes;
	uint32_t params[30];
};

#define RING_SQ_OFF 10 /* struct io_uring_params in words: 10 of head, then struct io_sqring_offsets and io_cqring_offsets */
#define RING_CQ_OFF 20

static bool ring_open(struct ring *r)
{
	memset(r, 0, sizeof(*r));
	r->fd = (int)syscall(425 /* io_uring_setup */, 4, r->params);
	if (r->fd < 0) {
		print_message("# skip: io_uring_setup: %s\n", strerror(errno));
		return false;
	}
	r->sq = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, 0);
	r->cq = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, 0x8000000);
	r->sqes = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, 0x10000000);
	return r->sq != MAP_FAILED && r->cq != MAP_FAILED && r->sqes != MAP_FAILED;
}

static void ring_read_fixed(struct ring *r, int fd, void *buf, unsigned len)
{
	uint32_t *tail = (uint32_t *)(r->sq + r->params[RING_SQ_OFF + 1]), *array = (uint32_t *)(r->sq + r->params[RING_SQ_OFF + 6]);
	uint32_t mask = *(uint32_t *)(r->sq + r->params[RING_SQ_OFF + 2]), *head = (uint32_t *)(r->cq + r->params[RING_CQ_OFF]);
	struct {
		uint8_t opcode, flags;
		uint16_t ioprio;
		int32_t fd;
		uint64_t off, addr;
		uint32_t len, rw_flags;
		uint64_t user_data;
		uint16_t buf_index;
		uint16_t rest[11];
	} *sqe = (void *)r->sqes;

	memset(sqe, 0, 64);
	sqe->opcode = 4; /* IORING_OP_READ_FIXED */
	sqe->fd = fd;
	sqe->addr = (uint64_t)buf;
	sqe->len = len;
	array[*tail & mask] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	assert_int_equal(syscall(426 /* io_uring_enter */, r->fd, 1, 1, 1 /* GETEVENTS */, NULL, 0), 1);
	int32_t res = *(int32_t *)(r->cq + r->params[RING_CQ_OFF + 5] + (*head & *(uint32_t *)(r->cq + r->params[RING_CQ_OFF + 2])) * 16 + 8);
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	assert_int_equal(res, len);
}

static void io_uring_fixed_buffers(void **state)
{
	(void)state;
	if (!fix_supported())
		skip();
	struct ring r;
	if (!ring_open(&r))
		skip();
	char *m = fix_anon(BYTES), path[100];
	int fd = new_file("/var/tmp", path), direct;
	struct { void *base; size_t len; } iov = { m + 16 * TP, 32 * TP };
	unsigned failed = 0;
	struct rlimit limit;
	struct fix f;

	fix_fill(m, BYTES, 1);
	assert_int_equal(pwrite(fd, m, 40 * TP, 0), 40 * TP);
	assert_int_equal(syscall(427 /* io_uring_register */, r.fd, 0 /* REGISTER_BUFFERS */, &iov, 1), 0);
	start(&f, m, 0);
	for (unsigned i = 0; i < 5; i++) {
		fix_fill(m + 200 * TP, TP, 50 + i);
		assert_int_equal(pwrite(fd, m + 200 * TP, TP, 0), TP);
		ring_read_fixed(&r, fd, m + (16 + i * 5) * TP, TP);
		fix_take_and_check(&f);
	}
	/* Once direct I/O was seen it is not looked for any more, which would be the first to lack a descriptor below. */
	direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	fix_take_and_check(&f);
	if (direct >= 0)
		close(direct);
	/* Buffers that are given up before a link that fails, wherever it does: the one after that has what was read into them. */
	for (rlim_t i = 3; failed < 3 || i < 64; i++) {
		int r2;

		assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
		fix_fill(m + 200 * TP, TP, 100 + (unsigned)i);
		assert_int_equal(pwrite(fd, m + 200 * TP, TP, 0), TP);
		ring_read_fixed(&r, fd, m + (16 + i % 32) * TP, TP);
		assert_int_equal(syscall(427, r.fd, 1 /* UNREGISTER_BUFFERS */, NULL, 0), 0);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ i, limit.rlim_max }), 0);
		r2 = fix_try(&f, NULL);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
		failed += r2 == -EMFILE;
		assert_true(r2 == 0 || r2 == -EMFILE);
		fix_take_and_check(&f);
		assert_int_equal(syscall(427, r.fd, 0, &iov, 1), 0);
		fix_take_and_check(&f);
	}
	close(r.fd);
	munmap(r.sq, 8192);
	munmap(r.cq, 8192);
	munmap(r.sqes, 4096);
	fix_close(&f);
	munmap(m, BYTES);
	close(fd);
	unlink(path);
}

/* What the owner wrote in between it could not report. */
static void reported_ranges_that_are_removed_and_added_again(void **state)
{
	char *m = fix_anon(BYTES);
	struct fix f;

	(void)state;
	fix_fill(m, BYTES, 1);
	fix_tracker(&f, 0, WPT_BACKEND_REPORTED, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	assert_int_equal(wpt_range_remove(f.t, f.id[0]), 0);
	m[3 * TP] ^= 1;
	f.nr = 0;
	fix_add(&f, m, BYTES);
	fix_take_and_check(&f);
	fix_close(&f);
	munmap(m, BYTES);
}

/* ---- overlayfs and btrfs, whose devices are not those of stat(2) ---- */

/* Mounts one on DIR/m in a namespace of its own: of the layers k and l below, and u. `apart`: each is a file system of its own. */
static bool mount_overlay(const char *dir, bool apart)
{
	char path[128], options[300];

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("none", dir, "tmpfs", 0, NULL)) {
		printf("# skip: mounting a tmpfs: %s\n", strerror(errno));
		return false;
	}
	for (const char *c = "klum"; *c; c++) {
		snprintf(path, sizeof(path), "%s/%c", dir, *c);
		assert_int_equal(mkdir(path, 0700), 0);
		if (apart && *c != 'm')
			assert_int_equal(mount("none", path, "tmpfs", 0, NULL), 0);
	}
	snprintf(options, sizeof(options), "lowerdir=%s/k:%s/l,upperdir=%s/u/u,workdir=%s/u/w", dir, dir, dir, dir);
	for (const char *c = "uw"; *c; c++) {
		snprintf(path, sizeof(path), "%s/u/%c", dir, *c);
		assert_int_equal(mkdir(path, 0700), 0);
	}
	snprintf(path, sizeof(path), "%s/m", dir);
	if (mount("overlay", path, "overlay", 0, options)) {
		printf("# skip: needs overlayfs: %s\n", strerror(errno));
		return false;
	}
	return true;
}

/* Runs a body in a process of its own, with a folder to mount things on; it ends with 0, or with 77 to be skipped. */
static void in_namespace(int (*body)(const char *dir))
{
	char dir[64] = "/var/tmp/wptrack-overlay-XXXXXX";
	int status;
	pid_t pid;

	if (!fix_supported())
		skip();
	assert_non_null(mkdtemp(dir));
	fflush(stdout);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		setenv("CMOCKA_TEST_ABORT", "1", 1); /* it runs no other test */
		status = body(dir);
		fflush(stdout);
		_exit(status);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	rmdir(dir);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(status, 0);
}

/* A file in a layer, with what fix_fill() makes of `salt`. */
static void put_file(const char *dir, const char *name, unsigned salt)
{
	char path[128], *m = malloc(BYTES);
	int fd;

	assert_non_null(m);
	fix_fill(m, BYTES, salt);
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, m, BYTES, 0), BYTES);
	close(fd);
	free(m);
}

static int copied_up_body(const char *dir)
{
	char path[128], *m;
	struct fix f;
	int fd;

	if (!mount_overlay(dir, false))
		return 77;
	put_file(dir, "l/file", 1);
	snprintf(path, sizeof(path), "%s/m/file", dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	m = fix_map(BYTES, MAP_PRIVATE, fd);
	m[TP] = 7;
	close(fd);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	/* Copied up, and another file from now on; but not to the mapping. */
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_int_equal(ftruncate(fd, (off_t)(BYTES / 2)), 0);
	assert_int_equal(pwrite(fd, path, sizeof(path), 5 * TP), sizeof(path));
	fix_take_and_check(&f);
	assert_int_equal(pwrite(fd, path, sizeof(path), 9 * TP), sizeof(path));
	m[20 * TP] = 8;
	fix_take_and_check(&f);
	fix_close(&f);
	return 0;
}

static void private_mapping_of_a_file_that_is_copied_up(void **state)
{
	(void)state;
	in_namespace(copied_up_body);
}

static char *map_file(const char *dir, const char *name, int *fd)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	*fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(*fd >= 0);
	return fix_map(BYTES, MAP_SHARED, *fd);
}

/* Another process writes to a file that it has mapped, and no descriptor of it. */
static void check_other_writer(const char *dir, const char *name)
{
	struct other o;
	struct fix f;
	char *m;
	int fd;

	m = map_file(dir, name, &fd);
	o = other_start(fd, 0, m, true);
	close(fd);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	fix_take_and_check(&f);
	fix_take_and_check(&f);
	for (unsigned i = 0; i < 3; i++) {
		other_order(&o, (struct order){ .what = OTHER_STORE, .page = i * 7, .value = i + 90 });
		fix_take_and_check(&f);
	}
	other_end(&o);
	fix_close(&f);
	munmap(m, BYTES);
}

static int layers_body(const char *dir)
{
	if (!mount_overlay(dir, true))
		return 77;
	put_file(dir, "m/file", 1);
	check_other_writer(dir, "m/file");
	return 0;
}

static void other_writer_on_layers_that_are_file_systems_of_their_own(void **state)
{
	(void)state;
	in_namespace(layers_body);
}

static int subvolumes_body(const char *dir)
{
	char command[300], *m[2];
	struct btrfs_ioctl_vol_args args = { .fd = 0 };
	struct fix f;
	int fd, i;

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("none", dir, "tmpfs", 0, NULL)) {
		printf("# skip: mounting a tmpfs: %s\n", strerror(errno));
		return 77;
	}
	snprintf(command, sizeof(command), "exec >/dev/null 2>&1; cd %s && mkdir m && truncate -s 128M i && mkfs.btrfs -q i && mount -o loop i m",
		 dir);
	if (system(command)) {
		printf("# skip: needs mkfs.btrfs\n");
		return 77;
	}
	for (i = 0; i < 2; i++) {
		snprintf(command, sizeof(command), "%s/m", dir);
		fd = open(command, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		snprintf(args.name, sizeof(args.name), "%d", i);
		assert_int_equal(ioctl(fd, BTRFS_IOC_SUBVOL_CREATE, &args), 0);
		close(fd);
		snprintf(command, sizeof(command), "m/%d/file", i);
		put_file(dir, command, 5 + (unsigned)i);
		m[i] = map_file(dir, command, &fd);
		close(fd);
	}
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m[0], BYTES);
	fix_add(&f, m[1], BYTES);
	fix_writer(&f);
	for (i = 0; i < 6; i++) {
		fix_take_and_check(&f);
		m[i % 2][i * TP] = (char)('a' + i);
		munmap(map_file(dir, "m/1/file", &fd), BYTES);
		assert_int_equal(pwrite(fd, command, 10, (off_t)((20 + i) * TP)), 10);
		close(fd);
	}
	fix_take_and_check(&f);
	fix_close(&f);
	check_other_writer(dir, "m/1/file");
	return 0;
}

/* To the list of mappings the same inode of the same device. */
static void files_of_two_subvolumes(void **state)
{
	(void)state;
	in_namespace(subvolumes_body);
}

/* ---- tmpfs ---- */

/*
 * Of a file on a tmpfs that is mounted inotify tells of holes, so that nothing is compared of what is in memory and the target has not mapped, as
 * after a restore into the file, though each write to the mapping moves the file's time of change.
 */
static int unmapped_pages_body(const char *dir)
{
	const size_t huge = 2 << 20;
	struct churn c = { .bytes = 2 * huge };
	unsigned zeroed = 0;
	pthread_t reader;
	char path[128], *room;
	struct fix f;
	off_t at;

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("none", dir, "tmpfs", 0, "huge=always")) {
		printf("# skip: mounting a tmpfs: %s\n", strerror(errno));
		return 77;
	}
	snprintf(path, sizeof(path), "%s/file", dir);
	c.fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(c.fd >= 0);
	assert_int_equal(ftruncate(c.fd, (off_t)c.bytes), 0);
	room = fix_map(c.bytes + huge, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	c.m = room + (huge - (uintptr_t)room % huge) % huge;
	assert_true(mmap(c.m, c.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, c.fd, 0) == c.m);
	fix_fill(c.m, c.bytes, 1);
	/* Back in again, with nothing mapped. */
	assert_int_equal(madvise(c.m, c.bytes, MADV_DONTNEED), 0);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&f, c.m, c.bytes);
	fix_writer(&f);
	fix_take(&f);
	for (unsigned i = 0; i < 3; i++) {
		c.m[i * 7 * TP]++;
		fix_take(&f);
		assert_int_equal(f.stats.pages_compared, 0);
		assert_in_range(f.stats.pages_dirty, 1, 2);
	}
	fix_take_and_check(&f);
	assert_int_equal(pthread_create(&reader, NULL, churn_read, &c), 0);
	for (unsigned i = 0; i < 60 && zeroed < 3; i++) {
		at = (off_t)((1 + i * 37 % 1000) * TP);
		if (i % 10 == 0) {
			fix_fill(c.m, c.bytes, i);
			madvise(c.m, c.bytes, MADV_COLLAPSE);
			fix_take_and_check(&f);
		}
		assert_int_equal(fallocate(c.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, TP), 0);
		zeroed += lseek(c.fd, at, SEEK_HOLE) != at;
		if (i % 2)
			assert_int_equal(madvise(c.m + (size_t)at + 3 * TP, TP, MADV_REMOVE), 0);
		fix_take_and_check(&f);
	}
	print_message("# %u pages that were punched are no holes\n", zeroed);
	atomic_store(&c.stop, true);
	pthread_join(reader, NULL);
	fix_close(&f);
	return 0;
}

static void unmapped_pages_of_a_file_on_tmpfs(void **state)
{
	(void)state;
	in_namespace(unmapped_pages_body);
}

/*
 * Where this user may not inspect every process, shared files are compared whatever happens, and most of what is here would test nothing: so, if
 * it can be, in a namespace that has no other processes.
 */
static void see_all(void)
{
	char path[8];
	int status;
	pid_t pid;

	if (readlink("/proc/1/exe", path, sizeof(path)) > 0)
		return;
	if (unshare(CLONE_NEWPID | CLONE_NEWNS) != 0)
		return;
	pid = fork();
	if (pid > 0) {
		if (waitpid(pid, &status, 0) != pid)
			status = 1;
		exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (pid < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || mount("proc", "/proc", "proc", 0, NULL) != 0)
		exit(1);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(second_process_maps_it),
		cmocka_unit_test(writer_that_only_a_failed_link_saw),
		cmocka_unit_test(sole_writer_is_believed),
		cmocka_unit_test(second_process_with_descriptor),
		cmocka_unit_test(come_and_gone_between_links),
		cmocka_unit_test(private_mapping_of_a_file_that_changes),
		cmocka_unit_test(large_page_that_is_punched_while_it_is_read),
		cmocka_unit_test(memfd_that_changes_in_the_midst_of_a_look),
		cmocka_unit_test(private_pages_that_are_given_back_while_they_are_copied),
		cmocka_unit_test(child_that_inherited_shared_memory),
		cmocka_unit_test(second_mapping_of_the_same_process),
		cmocka_unit_test(reader_process_costs_nothing),
		cmocka_unit_test(verify_content_sees_own_pwrite),
		cmocka_unit_test(io_uring_fixed_buffers),
		cmocka_unit_test(reported_ranges_that_are_removed_and_added_again),
		cmocka_unit_test(private_mapping_of_a_file_that_is_copied_up),
		cmocka_unit_test(other_writer_on_layers_that_are_file_systems_of_their_own),
		cmocka_unit_test(files_of_two_subvolumes),
		cmocka_unit_test(unmapped_pages_of_a_file_on_tmpfs),
	};

	if (getenv("WPT_ONLY") && *getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	see_all();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
