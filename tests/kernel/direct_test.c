/* SPDX-License-Identifier: MIT */
/*
 * Direct I/O into tracked memory: a page counts as written when it is pinned, and the device writes to it later. Links are taken while files are read
 * so, and when that is over one more, which must show what memory holds.
 */
#include "torture_util.h"

#include <linux/aio_abi.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#define BYTES ((size_t)16 << 20)
#define PIECE ((size_t)1 << 20)
#define NR_PIECES (BYTES / PIECE)
#define NR_FILES 3

struct shared {
	atomic_uint wanted, done; /* passes */
	atomic_bool failed;
	bool aio;
	pthread_mutex_t lock;     /* held while a call reads: of the own process */
	int fd[NR_FILES];
	char *m;
};

/* ---- the reader ---- */

static bool read_aio(struct shared *s, aio_context_t ctx, int fd)
{
	struct iocb cb[NR_PIECES], *list[NR_PIECES];
	struct io_event events[NR_PIECES];

	memset(cb, 0, sizeof(cb));
	for (size_t i = 0; i < NR_PIECES; i++) {
		cb[i].aio_lio_opcode = IOCB_CMD_PREAD;
		cb[i].aio_fildes = (uint32_t)fd;
		cb[i].aio_buf = (uint64_t)(s->m + i * PIECE);
		cb[i].aio_nbytes = PIECE;
		cb[i].aio_offset = (int64_t)(i * PIECE);
		list[i] = &cb[i];
	}
	if (syscall(SYS_io_submit, ctx, NR_PIECES, list) != (long)NR_PIECES)
		return false;
	for (size_t got = 0, n; got < NR_PIECES; got += n) {
		long r;

		do
			r = syscall(SYS_io_getevents, ctx, 1, NR_PIECES, events, NULL);
		while (r < 0 && errno == EINTR);
		n = r < 0 ? NR_PIECES : (size_t)r;
		for (size_t i = 0; i < n; i++)
			if (r < 0 || events[i].res != (int64_t)PIECE)
				return false;
	}
	return true;
}

static bool read_sync(struct shared *s, int fd)
{
	ssize_t n = 1;

	for (size_t at = 0; at < BYTES && n > 0; at += n > 0 ? (size_t)n : 0) {
		pthread_mutex_lock(&s->lock);
		n = pread(fd, s->m + at, PIECE * 4, (off_t)at);
		pthread_mutex_unlock(&s->lock);
	}
	return n > 0;
}

static void *reader(void *arg)
{
	struct shared *s = arg;
	aio_context_t ctx = 0;
	bool good = !s->aio || syscall(SYS_io_setup, 64, &ctx) == 0;

	for (unsigned pass = 0; good; pass++) {
		while (atomic_load(&s->wanted) == pass)
			usleep(20);
		if (atomic_load(&s->wanted) == UINT32_MAX)
			break;
		good = s->aio ? read_aio(s, ctx, s->fd[pass % NR_FILES]) : read_sync(s, s->fd[pass % NR_FILES]);
		atomic_store(&s->done, pass + 1);
	}
	if (!good)
		atomic_store(&s->failed, true);
	if (ctx)
		syscall(SYS_io_destroy, ctx);
	return NULL;
}

/* ---- the test ---- */

static int hold(void *arg)
{
	pthread_mutex_lock(&((struct shared *)arg)->lock);
	return 0;
}

static void let_go(void *arg)
{
	pthread_mutex_unlock(&((struct shared *)arg)->lock);
}

/* Files of one byte each, and no two of the same; where direct I/O is there at all. */
static bool open_files(struct shared *s)
{
	char path[64], *data = fix_anon(BYTES);
	int fd, i;

	for (i = 0; i < NR_FILES; i++) {
		strcpy(path, "/var/tmp/wptrack-direct-XXXXXX");
		fd = mkostemp(path, O_CLOEXEC);
		assert_true(fd >= 0);
		memset(data, 'A' + i, BYTES);
		assert_int_equal(write(fd, data, BYTES), BYTES);
		assert_int_equal(fsync(fd), 0);
		close(fd);
		s->fd[i] = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
		unlink(path);
		if (s->fd[i] < 0)
			break;
	}
	munmap(data, BYTES);
	if (i < NR_FILES)
		print_message("# skip: needs a file system with direct I/O in /var/tmp\n");
	return i == NR_FILES;
}

static pid_t target_start(struct shared *s)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	reader(s);
	_exit(0);
}

static void links(struct shared *s, struct fix *f, struct wpt_take_options *o)
{
	uint64_t wrong, all = 0, nr = 0, rounds = 0;
	bool over;

	for (unsigned pass = 1; pass <= 12; pass++) {
		atomic_store(&s->wanted, pass);
		do {
			over = atomic_load(&s->done) == pass;
			assert_int_equal(fix_try(f, o), 0);
			rounds += f->stats.nr_rounds;
			nr++;
			assert_false(atomic_load(&s->failed));
		} while (!over);
		wrong = fix_wrong(f);
		all += wrong;
		if (wrong)
			print_message("# WRONG PAGE: %" PRIu64 " after pass %u\n", wrong, pass);
	}
	print_message("# %" PRIu64 " links, %" PRIu64 " rounds\n", nr, rounds);
	assert_int_equal(all, 0);
}

static void direct_case(bool own, bool aio, bool shmem, uint32_t mode)
{
	struct wpt_take_options o = { .size = sizeof(o), .mode = mode, .target_pause_us = 1 };
	struct shared *s = fix_map(sizeof(*s), MAP_SHARED | MAP_ANONYMOUS, -1);
	pthread_t thread;
	struct fix f;
	pid_t pid = 0;

	if (!fix_supported() || !open_files(s))
		skip();
	s->aio = aio;
	pthread_mutex_init(&s->lock, NULL);
	s->m = fix_map(BYTES, MAP_ANONYMOUS | (shmem ? MAP_SHARED : MAP_PRIVATE), -1);
	memset(s->m, 1, BYTES);
	if (own) {
		o.quiesce = hold;
		o.resume = let_go;
		o.arg = s;
		assert_int_equal(pthread_create(&thread, NULL, reader, s), 0);
	} else {
		pid = target_start(s);
	}
	fix_tracker(&f, pid, WPT_BACKEND_AUTO, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&f, s->m, BYTES);
	fix_writer(&f);
	links(s, &f, &o);
	atomic_store(&s->wanted, UINT32_MAX);
	if (own)
		pthread_join(thread, NULL);
	fix_close(&f);
	if (pid)
		waitpid(pid, NULL, 0);
	for (int i = 0; i < NR_FILES; i++)
		close(s->fd[i]);
	munmap(s->m, BYTES);
	munmap(s, sizeof(*s));
}

static void rounds_while_the_own_process_reads(void **state)
{
	(void)state;
	direct_case(true, false, false, WPT_MODE_PAUSE);
}

static void rounds_while_a_target_reads(void **state)
{
	(void)state;
	direct_case(false, false, true, WPT_MODE_PAUSE);
}

static void fuzzy_links_while_a_target_reads(void **state)
{
	(void)state;
	direct_case(false, false, true, WPT_MODE_FUZZY);
}

static void fuzzy_links_of_private_memory(void **state)
{
	(void)state;
	direct_case(true, false, false, WPT_MODE_FUZZY);
}

static void pauses_in_the_midst_of_asynchronous_reads(void **state)
{
	(void)state;
	direct_case(false, true, true, WPT_MODE_PAUSE);
}

static void pauses_of_the_own_process_and_asynchronous_reads(void **state)
{
	(void)state;
	direct_case(true, true, false, WPT_MODE_PAUSE);
}

static void fuzzy_links_and_asynchronous_reads(void **state)
{
	(void)state;
	direct_case(false, true, true, WPT_MODE_FUZZY);
}

static void cow_case(bool aio)
{
	if (!(way_features() & WPT_F_SYNC)) {
		print_message("# skip: needs a userfaultfd that handles faults of system calls\n");
		skip();
	}
	way_backend = "sync";
	direct_case(true, aio, false, WPT_MODE_COW);
	way_backend = NULL;
}

static void copy_before_write_while_the_own_process_reads(void **state)
{
	(void)state;
	cow_case(false);
}

static void copy_before_write_and_asynchronous_reads(void **state)
{
	(void)state;
	cow_case(true);
}

/* A ring with room for files: which they are is not told. */
static void files_registered_with_a_ring(void **state)
{
	struct wpt_take_options o = { .size = sizeof(o) };
	uint32_t params[30] = { 0 };
	int ring = (int)syscall(425 /* io_uring_setup */, 4, params), none[4] = { -1, -1, -1, -1 };
	char *m = fix_anon(BYTES);
	uint64_t dirty = 0;
	struct fix f;

	(void)state;
	if (ring < 0)
		print_message("# skip: io_uring_setup: %s\n", strerror(errno));
	if (ring < 0 || !fix_supported())
		skip();
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	for (unsigned i = 0; i < 3; i++) {
		fix_fill(m, BYTES / 2, i);
		if (i == 1)
			assert_int_equal(syscall(427 /* io_uring_register */, ring, 2 /* REGISTER_FILES */, none, 4), 0);
		assert_int_equal(fix_try(&f, &o), 0);
		assert_int_equal(f.stats.nr_rounds > 0, i < 1);
		assert_int_equal(f.stats.rounds_end == WPT_ROUNDS_DIRECT, i >= 1);
		/* What was under way in the link before is compared. */
		if (i)
			assert_int_equal(f.stats.pages_compared, i == 1 ? 0 : dirty);
		dirty = f.stats.pages_dirty;
		assert_int_equal(fix_wrong(&f), 0);
	}
	fix_close(&f);
	munmap(m, BYTES);
	close(ring);
}

/* What has the flag, and is not for direct I/O. */
static void rounds_with_pipes_of_packets(void **state)
{
	struct wpt_take_options o = { .size = sizeof(o) };
	char *m = fix_anon(BYTES);
	struct fix f;
	int fd[2];

	(void)state;
	if (!fix_supported())
		skip();
	assert_int_equal(pipe2(fd, O_DIRECT | O_CLOEXEC), 0);
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	assert_int_equal(fix_try(&f, &o), 0);
	assert_int_equal(f.stats.nr_rounds, 1);
	assert_int_equal(f.stats.rounds_end, WPT_ROUNDS_SMALL);
	fix_close(&f);
	munmap(m, BYTES);
	close(fd[0]);
	close(fd[1]);
}

struct late {
	int fd, direct;
	bool apart, opened; /* apart: by a thread that has descriptors of its own */
	sem_t open, close;
	pthread_t thread;
};

static void *late_main(void *arg)
{
	struct late *l = arg;
	char path[64];

	assert_int_equal(unshare(CLONE_FILES), 0);
	sem_wait(&l->open);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", l->fd);
	l->opened = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC) >= 0;
	sem_post(&l->close);
	sem_wait(&l->open);
	return NULL;
}

static int late_open(void *arg)
{
	struct late *l = arg;
	char path[64];

	if (l->opened)
		return 0;
	if (l->apart) {
		sem_post(&l->open);
		sem_wait(&l->close);
		return l->opened ? 0 : -EIO;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", l->fd);
	l->direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	l->opened = l->direct >= 0;
	return l->opened ? 0 : -EIO;
}

static void late_done(void *arg)
{
	(void)arg;
}

/* What rounds copied is compared in the pause. */
static void late_case(bool apart)
{
	struct late l = { .apart = apart };
	struct shared *s = fix_map(sizeof(*s), MAP_SHARED | MAP_ANONYMOUS, -1);
	struct wpt_take_options o = { .size = sizeof(o), .quiesce = fix_nothing, .resume = late_done, .arg = &l };
	char path[64] = "/var/tmp/wptrack-direct-XXXXXX", *m = fix_anon(BYTES);
	struct fix f;

	if (!fix_supported() || !open_files(s))
		skip();
	for (int i = 0; i < NR_FILES; i++)
		close(s->fd[i]);
	l.fd = mkostemp(path, O_CLOEXEC);
	assert_true(l.fd >= 0);
	sem_init(&l.open, 0, 0);
	sem_init(&l.close, 0, 0);
	if (apart)
		assert_int_equal(pthread_create(&l.thread, NULL, late_main, &l), 0);
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, 0);
	fix_add(&f, m, BYTES);
	fix_writer(&f);
	for (unsigned i = 0; i < 4; i++) {
		fix_fill(m, BYTES / 2, i);
		o.quiesce = i == 2 ? late_open : fix_nothing;
		assert_int_equal(fix_try(&f, &o), 0);
		assert_int_equal(f.stats.nr_rounds > 0, i < 3);
		assert_int_equal(f.stats.rounds_end == WPT_ROUNDS_DIRECT, i >= 2);
		if (i)
			assert_int_equal(f.stats.pages_compared, i == 2 ? BYTES / TP : 0);
		assert_int_equal(fix_wrong(&f), 0);
	}
	fix_close(&f);
	if (apart) {
		sem_post(&l.open);
		pthread_join(l.thread, NULL);
	} else {
		close(l.direct);
	}
	close(l.fd);
	unlink(path);
	munmap(m, BYTES);
	munmap(s, sizeof(*s));
}

static void opened_while_there_are_rounds(void **state)
{
	(void)state;
	late_case(false);
}

static void opened_by_a_thread_with_descriptors_of_its_own(void **state)
{
	(void)state;
	late_case(true);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(rounds_with_pipes_of_packets),
		cmocka_unit_test(opened_while_there_are_rounds),
		cmocka_unit_test(opened_by_a_thread_with_descriptors_of_its_own),
		cmocka_unit_test(rounds_while_the_own_process_reads),
		cmocka_unit_test(rounds_while_a_target_reads),
		cmocka_unit_test(fuzzy_links_while_a_target_reads),
		cmocka_unit_test(fuzzy_links_of_private_memory),
		cmocka_unit_test(pauses_in_the_midst_of_asynchronous_reads),
		cmocka_unit_test(pauses_of_the_own_process_and_asynchronous_reads),
		cmocka_unit_test(fuzzy_links_and_asynchronous_reads),
		cmocka_unit_test(copy_before_write_while_the_own_process_reads),
		cmocka_unit_test(copy_before_write_and_asynchronous_reads),
		cmocka_unit_test(files_registered_with_a_ring),
	};

	cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
