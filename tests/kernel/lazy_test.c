/* SPDX-License-Identifier: MIT */
/*
 * Lazy restores: memory that is used while it comes, against copies that were made when the links were taken.
 *
 * WPT_SEED: of the random numbers (printed). WPT_ROUNDS: how often what is random is done. WPT_ONLY: run tests whose name fits, with * and ?.
 */
#include "torture_util.h"

#include "random.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define HUGE ((size_t)2 << 20)
#define PAGES 3072u
#define BYTES (PAGES * TP)
#define LINKS 3u
#define PATIENCE_MS ((int)env_number("WPT_PATIENCE", 60) * 1000)

enum memory { ANON, THP, MEMFD, HUGETLB, HUGETLB_FD, NR_MEMORIES };

static const char *const names[] = { "anonymous", "anonymous, huge pages", "memfd", "hugetlb", "hugetlb memfd" };

static uint64_t seed;
static _Atomic bool away, slow;
static _Atomic uint64_t nr_denied, nr_held;

/* Instead of the C library's: snapshots can't be read while they are away, or not be read to the end while they are slow. */
ssize_t pread64(int fd, void *buf, size_t len, off64_t offset)
{
	char path[64], name[256] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (away && readlink(path, name, sizeof(name) - 1) > 0 && strstr(name, ".wps")) {
		nr_denied++;
		errno = EIO;
		return -1;
	}
	if (slow && readlink(path, name, sizeof(name) - 1) > 0 && strstr(name, ".wps"))
		for (nr_held++; slow;)
			usleep(1000);
	return syscall(SYS_pread64, fd, buf, len, offset);
}

/* ---- what is restored ---- */

struct source {
	struct fix f;
	char *m;                    /* where it was */
	char *shadow[LINKS];
	struct wpt_chain *c;
	struct wpt_lazy *l;
	uint64_t rng;
	_Atomic unsigned nr_said;
};

/* `shift` bytes behind where a huge page may begin */
static char *aligned(size_t len, int flags, int fd, size_t shift)
{
	char *room = fix_map(len + 2 * HUGE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1), *m;
	char *at = (char *)(((uintptr_t)room + HUGE - 1) & ~(HUGE - 1)) + shift;

	m = mmap(at, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	assert_true(m == at);
	/* A gap on both sides: a huge page of what is beside it would reach into it. */
	munmap(room, (size_t)(at - room) - TP * (at > room));
	munmap(at + len + TP, (size_t)(room + 2 * HUGE - at) - TP);
	if (at > room)
		mprotect(at - TP, TP, PROT_NONE);
	mprotect(at + len, TP, PROT_NONE);
	return m;
}

/* Long runs of data and of zeros, and both page by page. */
static void change(struct source *s, unsigned link)
{
	uint64_t at, n, what;

	for (at = 0; at < PAGES; at += n) {
		what = rng_below(&s->rng, link ? 8 : 5);
		n = 1 + rng_below(&s->rng, what & 1 ? 4 : 200);
		n = at + n > PAGES ? PAGES - at : n;
		if (what < 3)
			fix_fill(s->m + at * TP, n * TP, (unsigned)(rng(&s->rng) & 0xffff));
		else if (what < 5)
			memset(s->m + at * TP, 0, n * TP);
	}
	/* All of a stretch that is longer than a huge page is zero for good. */
	memset(s->m + BYTES / 2, 0, 2 * HUGE);
}

static void source_open(struct source *s, uint64_t salt)
{
	memset(s, 0, sizeof(*s));
	s->rng = seed + salt;
	s->m = aligned(BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fix_tracker(&s->f, 0, WPT_BACKEND_REPORTED, 0);
	fix_add(&s->f, s->m, BYTES);
	fix_writer(&s->f);
	for (unsigned i = 0; i < LINKS; i++) {
		change(s, i);
		s->shadow[i] = fix_anon(BYTES);
		memcpy(s->shadow[i], s->m, BYTES);
		assert_int_equal(wpt_range_mark(s->f.t, (uint64_t)s->m, (uint64_t)s->m + BYTES), 0);
		fix_take(&s->f);
	}
}

static void chain_open(struct source *s, unsigned link)
{
	char name[200];

	snprintf(name, sizeof(name), "%s@%u", s->f.chain, link);
	assert_int_equal(wpt_chain_open(&s->c, name), 0);
}

static void chain_close(struct source *s)
{
	wpt_lazy_close(s->l);
	wpt_chain_close(s->c);
	s->l = NULL;
	s->c = NULL;
}

static void source_close(struct source *s)
{
	chain_close(s);
	fix_close(&s->f);
	munmap(s->m, BYTES);
	for (unsigned i = 0; i < LINKS; i++)
		munmap(s->shadow[i], BYTES);
}

static char *map_for(enum memory memory, int *fd)
{
	int flags = memory == MEMFD || memory == HUGETLB_FD ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
	char *m;

	*fd = -1;
	if (flags == MAP_SHARED) {
		*fd = memfd_create("lazy", MFD_CLOEXEC | (memory == HUGETLB_FD ? MFD_HUGETLB : 0));
		assert_true(*fd >= 0);
		assert_int_equal(ftruncate(*fd, (off_t)BYTES), 0);
	}
	/* Where it may begin anywhere it does, as QEMU's does. */
	m = aligned(BYTES, flags | (memory == HUGETLB ? MAP_HUGETLB : 0), *fd, memory == HUGETLB || memory == HUGETLB_FD ? 0 : 5 * TP);
	if (memory == THP)
		madvise(m, BYTES, MADV_HUGEPAGE);
	return m;
}

static bool have(enum memory memory)
{
	char line[200];
	uint64_t nr = 0, x;
	FILE *f;

	if (memory != HUGETLB && memory != HUGETLB_FD)
		return true;
	f = fopen("/proc/meminfo", "re");
	while (f && fgets(line, sizeof(line), f)) {
		x = strtoull(line + strcspn(line, "0123456789"), NULL, 10);
		nr += strncmp(line, "HugePages_Free:", 15) == 0 ? x : 0;
		nr -= strncmp(line, "HugePages_Rsvd:", 15) == 0 ? x : 0;
	}
	if (f)
		fclose(f);
	if (nr < BYTES / HUGE)
		print_message("# skip: needs %zu free huge pages\n", BYTES / HUGE);
	return nr >= BYTES / HUGE;
}

static void say(void *arg, enum wpt_log_level level, const char *message)
{
	struct source *s = arg;

	s->nr_said += level <= WPT_LOG_WARNING;
	print_message("# library: %s\n", message);
}

static void lazy_open(struct source *s, pid_t pid, uint32_t flags)
{
	struct wpt_lazy_options o = {
		.size = sizeof(o), .pid = pid, .flags = flags, .stop_timeout_ms = 2000, .log = say, .log_arg = s, .nr_fill_threads = 2,
	};
	int err;

	do
		err = wpt_lazy_open(&s->l, s->c, &o);
	while (err == -WPT_E_STOP_TIMEOUT);
	if (err)
		print_message("# open: %s\n", wpt_strerror(err));
	assert_int_equal(err, 0);
}

static void lazy_start(struct source *s, pid_t pid, uint32_t flags, char *m)
{
	lazy_open(s, pid, flags);
	assert_int_equal(wpt_lazy_add(s->l, (uint64_t)s->m, (uint64_t)s->m + BYTES, (uint64_t)m, NULL), 0);
	assert_int_equal(wpt_lazy_start(s->l), 0);
}

static bool supported(void)
{
	struct wpt_probe p = { .size = sizeof(p) };

	if (wpt_probe(&p) == 0 && p.features & WPT_F_UFFD_KERNEL)
		return true;
	print_message("# skip: needs a userfaultfd that handles faults of system calls\n");
	return false;
}

static void finish(struct source *s)
{
	struct wpt_lazy_stats stats = { .size = sizeof(stats) };

	assert_int_equal(wpt_lazy_fill(s->l), 0);
	assert_int_equal(wpt_lazy_fill(s->l), -EBUSY);
	assert_int_equal(wpt_lazy_wait(s->l, PATIENCE_MS), 0);
	assert_int_equal(wpt_lazy_stats(s->l, &stats), 0);
	assert_int_equal(stats.bytes_left, 0);
	assert_true(stats.bytes_data > 0 && stats.bytes_faulted <= stats.bytes_data);
}

static uint64_t nr_wrong(const char *a, const char *b)
{
	uint64_t wrong = 0;

	for (size_t i = 0; i < PAGES; i++)
		wrong += memcmp(a + i * TP, b + i * TP, TP) != 0;
	return wrong;
}

/* ---- it comes when it is touched, and by itself ---- */

struct toucher {
	const char *m, *shadow;
	uint64_t rng, wrong;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;
	size_t page;

	for (unsigned i = 0; i < 300; i++) {
		page = rng_below(&t->rng, PAGES);
		t->wrong += memcmp(t->m + page * TP, t->shadow + page * TP, TP) != 0;
	}
	return NULL;
}

static void touch_and_compare(struct source *s, const char *m, const char *shadow)
{
	struct toucher t[4];
	pthread_t threads[4];

	for (unsigned i = 0; i < 4; i++) {
		t[i] = (struct toucher){ .m = m, .shadow = shadow, .rng = rng(&s->rng) };
		assert_int_equal(pthread_create(&threads[i], NULL, touch, &t[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(t[i].wrong, 0);
	}
}

static void restore_and_compare(struct source *s, enum memory memory, unsigned link)
{
	struct wpt_lazy_stats stats = { .size = sizeof(stats) };
	char *m;
	int fd;

	m = map_for(memory, &fd);
	chain_open(s, link);
	lazy_start(s, 0, 0, m);
	touch_and_compare(s, m, s->shadow[link]);
	assert_int_equal(wpt_lazy_stats(s->l, &stats), 0);
	assert_true(stats.nr_faults > 0 && stats.bytes_faulted > 0);
	finish(s);
	assert_int_equal(nr_wrong(m, s->shadow[link]), 0);
	chain_close(s);
	assert_int_equal(nr_wrong(m, s->shadow[link]), 0);
	munmap(m, BYTES);
	if (fd >= 0)
		close(fd);
}

static void all_comes(enum memory memory)
{
	struct source s;

	if (!supported() || !have(memory))
		skip();
	print_message("# %s\n", names[memory]);
	for (uint64_t round = 0; round < env_number("WPT_ROUNDS", 2); round++) {
		source_open(&s, 100 * memory + round);
		for (unsigned link = 0; link < LINKS; link++)
			restore_and_compare(&s, memory, link);
		source_close(&s);
	}
}

static void anonymous(void **state)
{
	(void)state;
	all_comes(ANON);
}

static void anonymous_huge(void **state)
{
	(void)state;
	all_comes(THP);
}

static void memfd(void **state)
{
	(void)state;
	all_comes(MEMFD);
}

static void hugetlb(void **state)
{
	(void)state;
	all_comes(HUGETLB);
}

static void hugetlb_memfd(void **state)
{
	(void)state;
	all_comes(HUGETLB_FD);
}

/* Two mappings side by side, of two pieces of the chain in another order, one of them read-only. */
static void pieces_in_another_order(void **state)
{
	const size_t part = 1000 * TP;
	struct source s;
	char *m;

	(void)state;
	if (!supported())
		skip();
	source_open(&s, 1);
	chain_open(&s, 2);
	m = fix_anon(BYTES);
	assert_int_equal(mprotect(m + BYTES - part / 2, part / 2, PROT_READ), 0);
	lazy_open(&s, 0, 0);
	assert_int_equal(wpt_lazy_add(s.l, (uint64_t)s.m, (uint64_t)s.m + part, (uint64_t)m + BYTES - part, NULL), 0);
	assert_int_equal(wpt_lazy_add(s.l, (uint64_t)s.m + part, (uint64_t)s.m + BYTES, (uint64_t)m, NULL), 0);
	assert_int_equal(wpt_lazy_add(s.l, (uint64_t)s.m, (uint64_t)s.m + TP, (uint64_t)m + BYTES - part, NULL), -EINVAL);
	assert_int_equal(wpt_lazy_start(s.l), 0);
	finish(&s);
	assert_memory_equal(m + BYTES - part, s.shadow[2], part);
	assert_memory_equal(m, s.shadow[2] + part, BYTES - part);
	munmap(m, BYTES);
	source_close(&s);
}

/* ---- memory that is in use ---- */

struct user {
	struct source *s;
	char *m, *want;
	enum memory memory;
	uint64_t rng, wrong;
	int pipe[2];
};

static void give_back(struct user *u, size_t page)
{
	size_t unit = u->memory == HUGETLB || u->memory == HUGETLB_FD ? HUGE : TP, n = unit == TP ? 1 + rng_below(&u->rng, 40) : 1, at;
	int advice = u->memory == MEMFD || u->memory == HUGETLB_FD ? MADV_REMOVE : MADV_DONTNEED;

	at = page * TP & ~(unit - 1);
	n = at + n * unit > BYTES ? BYTES - at : n * unit;
	assert_int_equal(madvise(u->m + at, n, advice), 0);
	memset(u->want + at, 0, n);
}

static void use(struct user *u)
{
	size_t at = rng_below(&u->rng, PAGES) * TP;
	uint64_t x = rng(&u->rng);
	char *m = u->m + at, *want = u->want + at;

	switch (x >> 60) {
	case 0:
	case 1:
		give_back(u, at / TP);
		break;
	case 2:
	case 3:
	case 4:
		memcpy(m + (x & 1016), &x, sizeof(x));
		memcpy(want + (x & 1016), &x, sizeof(x));
		break;
	case 5: /* faults of system calls */
		u->wrong += write(u->pipe[1], m, 64) != 64;
		m = u->m + rng_below(&u->rng, PAGES) * TP;
		u->wrong += read(u->pipe[0], m, 64) != 64;
		memcpy(u->want + (m - u->m), want, 64);
		break;
	default:
		u->wrong += memcmp(m, want, TP) != 0;
	}
}

static void *use_all(void *arg)
{
	struct user *u = arg;

	for (unsigned i = 0; i < 1500; i++)
		use(u);
	return NULL;
}

/* One thread uses the memory while two bring it. */
static void used_while_it_comes(void **state)
{
	struct source s;
	pthread_t thread;
	int fd;

	(void)state;
	if (!supported())
		skip();
	for (uint64_t round = 0; round < env_number("WPT_ROUNDS", 2) * NR_MEMORIES; round++) {
		struct user u = { .s = &s, .memory = (enum memory)(round % NR_MEMORIES), .rng = seed + round };

		if (!have(u.memory))
			continue;
		source_open(&s, 1000 + round);
		chain_open(&s, 2);
		u.m = map_for(u.memory, &fd);
		u.want = fix_anon(BYTES);
		memcpy(u.want, s.shadow[2], BYTES);
		assert_int_equal(pipe(u.pipe), 0);
		lazy_start(&s, 0, round / NR_MEMORIES & 1 ? WPT_LAZY_COLLAPSE : 0, u.m);
		assert_int_equal(pthread_create(&thread, NULL, use_all, &u), 0);
		finish(&s);
		pthread_join(thread, NULL);
		if (u.wrong || nr_wrong(u.m, u.want))
			fail_msg("%s: %" PRIu64 " reads and %" PRIu64 " pages are wrong, WPT_SEED=%" PRIu64, names[u.memory], u.wrong,
				 nr_wrong(u.m, u.want), seed);
		close(u.pipe[0]);
		close(u.pipe[1]);
		munmap(u.m, BYTES);
		munmap(u.want, BYTES);
		if (fd >= 0)
			close(fd);
		source_close(&s);
	}
}

/* ---- another process ---- */

struct child {
	pid_t pid;
	int go, said;
};

/* Waits for a word, and then uses the memory; 'k' if all was right. */
static void child_run(struct user *u, int go, int said)
{
	char word = 'x';

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (read(go, &word, 1) == 1) {
		if (word == 'u')
			use_all(u);
		u->wrong += word == 'u' ? 0 : nr_wrong(u->m, u->want);
		if (word == 'u' && read(go, &word, 1) == 1)
			u->wrong += nr_wrong(u->m, u->want);
		word = u->wrong ? 'w' : 'k';
		(void)!write(said, &word, 1);
	}
	_exit(0);
}

static void child_start(struct child *c, struct user *u)
{
	int go[2], said[2];

	assert_int_equal(pipe2(go, O_CLOEXEC), 0);
	assert_int_equal(pipe2(said, O_CLOEXEC), 0);
	assert_int_equal(pipe(u->pipe), 0);
	c->pid = fork();
	assert_true(c->pid >= 0);
	if (c->pid == 0)
		child_run(u, go[0], said[1]);
	close(go[0]);
	close(said[1]);
	close(u->pipe[0]);
	close(u->pipe[1]);
	c->go = go[1];
	c->said = said[0];
}

static void child_tell(struct child *c, char word)
{
	assert_int_equal(write(c->go, &word, 1), 1);
}

/* What it said; 0 if it does not say anything in that time. */
static char child_answer(struct child *c, int timeout_ms)
{
	struct pollfd fd = { c->said, POLLIN, 0 };
	char word = 0;

	if (poll(&fd, 1, timeout_ms) == 1)
		(void)!read(c->said, &word, 1);
	return word;
}

static void child_end(struct child *c)
{
	kill(c->pid, SIGKILL);
	assert_int_equal(waitpid(c->pid, NULL, 0), c->pid);
	close(c->go);
	close(c->said);
}

static void another_process(void **state)
{
	static const enum memory kinds[] = { ANON, MEMFD };
	struct source s;
	struct child c;
	int fd;

	(void)state;
	if (!supported())
		skip();
	for (uint64_t round = 0; round < env_number("WPT_ROUNDS", 2) * 2; round++) {
		struct user u = { .s = &s, .memory = kinds[round & 1], .rng = seed + round };

		source_open(&s, 2000 + round);
		chain_open(&s, 2);
		u.m = map_for(u.memory, &fd);
		u.want = s.shadow[2];
		child_start(&c, &u);
		/* Nobody else has it mapped then. */
		munmap(u.m, BYTES);
		lazy_start(&s, c.pid, 0, u.m);
		child_tell(&c, 'u');
		finish(&s);
		child_tell(&c, 'c');
		assert_int_equal(child_answer(&c, PATIENCE_MS), 'k');
		child_end(&c);
		if (fd >= 0)
			close(fd);
		source_close(&s);
	}
}

/* It keeps the userfaultfd: who touches what is missing waits. */
static void another_process_waits_if_it_is_closed_too_early(void **state)
{
	struct source s;
	struct user u = { .s = &s, .memory = MEMFD };
	struct child c;
	int fd;

	(void)state;
	if (!supported())
		skip();
	source_open(&s, 3);
	chain_open(&s, 2);
	u.m = map_for(MEMFD, &fd);
	u.want = s.shadow[2];
	child_start(&c, &u);
	munmap(u.m, BYTES);
	lazy_start(&s, c.pid, 0, u.m);
	chain_close(&s);
	child_tell(&c, 'c');
	/* Would it see zeros, it would say so at once. */
	assert_int_equal(child_answer(&c, 500), 0);
	child_end(&c);
	close(fd);
	source_close(&s);
}

static void its_end_is_noticed(void **state)
{
	struct source s;
	struct user u = { .s = &s, .memory = MEMFD };
	struct child c;
	int fd;

	(void)state;
	if (!supported())
		skip();
	source_open(&s, 4);
	chain_open(&s, 2);
	u.m = map_for(MEMFD, &fd);
	u.want = s.shadow[2];
	child_start(&c, &u);
	lazy_start(&s, c.pid, 0, u.m);
	child_end(&c);
	assert_int_equal(wpt_lazy_wait(s.l, PATIENCE_MS), -WPT_E_GONE);
	munmap(u.m, BYTES);
	close(fd);
	source_close(&s);
}

/* ---- what goes wrong ---- */

/* Not to be read for a while: nobody sees anything wrong, and it goes on. */
static void store_goes_away(void **state)
{
	struct wpt_lazy_stats stats = { .size = sizeof(stats) };
	struct source s;
	struct user u = { .s = &s, .memory = MEMFD };
	struct child c;
	int fd;

	(void)state;
	if (!supported())
		skip();
	source_open(&s, 5);
	chain_open(&s, 2);
	u.m = map_for(MEMFD, &fd);
	u.want = s.shadow[2];
	child_start(&c, &u);
	munmap(u.m, BYTES);
	lazy_start(&s, c.pid, 0, u.m);
	away = true;
	child_tell(&c, 'c');
	assert_int_equal(wpt_lazy_fill(s.l), 0);
	do
		assert_int_equal(wpt_lazy_stats(s.l, &stats), 0);
	while (!stats.nr_retries);
	assert_true(stats.failing_ns > 0);
	assert_int_equal(wpt_lazy_wait(s.l, 300), -ETIMEDOUT);
	assert_int_equal(child_answer(&c, 0), 0);
	away = false;
	assert_int_equal(wpt_lazy_wait(s.l, PATIENCE_MS), 0);
	assert_int_equal(child_answer(&c, PATIENCE_MS), 'k');
	assert_true(nr_denied > 0 && s.nr_said >= 2);
	child_end(&c);
	close(fd);
	source_close(&s);
}

static void flip_a_byte(const struct source *s)
{
	char path[500];
	struct dirent *e;
	struct stat st;
	DIR *d = opendir(s->f.chain);
	int fd;
	char x;

	/* In the middle of the base, which is page data. */
	while ((e = readdir(d)))
		if (strncmp(e->d_name, "0000000000-", 11) == 0) {
			snprintf(path, sizeof(path), "%s/%s", s->f.chain, e->d_name);
			fd = open(path, O_RDWR | O_CLOEXEC);
			assert_int_equal(fstat(fd, &st), 0);
			assert_int_equal(pread(fd, &x, 1, st.st_size / 2), 1);
			x ^= 4;
			assert_int_equal(pwrite(fd, &x, 1, st.st_size / 2), 1);
			close(fd);
		}
	closedir(d);
}

static void damage_is_not_shown(void **state)
{
	struct source s;
	struct user u = { .s = &s, .memory = MEMFD };
	struct child c;
	int fd, err;

	(void)state;
	if (!supported())
		skip();
	source_open(&s, 6);
	flip_a_byte(&s);
	chain_open(&s, 0);
	u.m = map_for(MEMFD, &fd);
	u.want = s.shadow[0];
	child_start(&c, &u);
	munmap(u.m, BYTES);
	lazy_start(&s, c.pid, 0, u.m);
	child_tell(&c, 'c');
	assert_int_equal(wpt_lazy_fill(s.l), 0);
	err = wpt_lazy_wait(s.l, PATIENCE_MS);
	assert_int_equal(err, -WPT_E_DAMAGED);
	assert_int_equal(child_answer(&c, 300), 0);
	child_end(&c);
	close(fd);
	source_close(&s);
}

/* What can be read of it without a fault is right. */
static void check_what_can_be_read(const char *m, const char *shadow)
{
	unsigned come = 0, fail = 0;
	char buf[TP];
	int fds[2];

	assert_int_equal(pipe(fds), 0);
	for (size_t i = 0; i < PAGES; i++) {
		if (write(fds[1], m + i * TP, TP) != (ssize_t)TP) {
			assert_int_equal(errno, EFAULT);
			fail++;
			continue;
		}
		assert_int_equal(read(fds[0], buf, TP), TP);
		assert_memory_equal(buf, shadow + i * TP, TP);
		come++;
	}
	print_message("# %u pages can be read, %u can't\n", come, fail);
	close(fds[0]);
	close(fds[1]);
}

/* In the own process what has not come can't be touched any more. */
static void closed_too_early(void **state)
{
	struct source s;
	char *m;
	int fd;

	(void)state;
	if (!supported())
		skip();
	source_open(&s, 7);
	chain_open(&s, 2);
	m = map_for(ANON, &fd);
	lazy_start(&s, 0, 0, m);
	for (size_t i = 0; i < PAGES; i += PAGES / 20)
		assert_memory_equal(m + i * TP, s.shadow[2] + i * TP, TP);
	wpt_lazy_close(s.l);
	s.l = NULL;
	check_what_can_be_read(m, s.shadow[2]);
	munmap(m, BYTES);
	source_close(&s);
}

static void refusals(void **state)
{
	struct wpt_lazy_options bad = { .size = sizeof(bad), .flags = 64 };
	const char *path = "/var/tmp";
	struct wpt_lazy *other;
	struct source s;
	char *m, *n;
	int fd, file;

	(void)state;
	if (!supported())
		skip();
	source_open(&s, 8);
	chain_open(&s, 2);
	assert_int_equal(wpt_lazy_open(&s.l, s.c, &bad), -EINVAL);
	bad = (struct wpt_lazy_options){ .size = sizeof(bad), .pid = getpid() };
	assert_int_equal(wpt_lazy_open(&s.l, s.c, &bad), -EINVAL);
	m = map_for(MEMFD, &fd);
	lazy_open(&s, 0, 0);
	assert_int_equal(wpt_lazy_add(s.l, (uint64_t)s.m, (uint64_t)s.m + BYTES, (uint64_t)m + 1, NULL), -EINVAL);
	assert_int_equal(wpt_lazy_add(s.l, (uint64_t)s.m, (uint64_t)s.m, (uint64_t)m, NULL), -EINVAL);
	/* Nothing is mapped behind it. */
	n = fix_map(BYTES + HUGE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	munmap(n + TP * 8, BYTES + HUGE - TP * 8);
	assert_int_equal(wpt_lazy_add(s.l, (uint64_t)s.m, (uint64_t)s.m + BYTES, (uint64_t)n, NULL), -EFAULT);
	munmap(n, TP * 8);
	/* A private mapping shows the file's pages. */
	n = fix_map(BYTES, MAP_PRIVATE, fd);
	assert_int_equal(wpt_lazy_add(s.l, (uint64_t)s.m, (uint64_t)s.m + BYTES, (uint64_t)n, NULL), -WPT_E_UNSUPPORTED);
	munmap(n, BYTES);
	file = open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (file >= 0 && ftruncate(file, (off_t)BYTES) == 0) {
		n = fix_map(BYTES, MAP_SHARED, file);
		assert_int_equal(wpt_lazy_add(s.l, (uint64_t)s.m, (uint64_t)s.m + BYTES, (uint64_t)n, NULL), -WPT_E_UNSUPPORTED);
		munmap(n, BYTES);
		close(file);
	}
	/* Something is there: mapped, and then only in the file. */
	assert_int_equal(wpt_lazy_fill(s.l), -EINVAL);
	assert_int_equal(wpt_lazy_wait(s.l, 0), -EINVAL);
	m[BYTES - 1] = 1;
	assert_int_equal(wpt_lazy_add(s.l, (uint64_t)s.m, (uint64_t)s.m + BYTES, (uint64_t)m, NULL), 0);
	assert_int_equal(wpt_lazy_start(s.l), -EEXIST);
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)BYTES), 0);
	assert_int_equal(pwrite(fd, "x", 1, 5 * TP), 1);
	assert_int_equal(wpt_lazy_start(s.l), -EEXIST);
	assert_int_equal(wpt_lazy_start(s.l), -EEXIST);
	/* Two at a time. */
	assert_int_equal(wpt_lazy_open(&other, s.c, NULL), 0);
	assert_int_equal(wpt_lazy_add(other, (uint64_t)s.m, (uint64_t)s.m + BYTES, (uint64_t)m, NULL), -EBUSY);
	wpt_lazy_close(other);
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)BYTES), 0);
	assert_int_equal(wpt_lazy_start(s.l), 0);
	assert_int_equal(wpt_lazy_start(s.l), -EBUSY);
	finish(&s);
	assert_int_equal(nr_wrong(m, s.shadow[2]), 0);
	source_close(&s);
	munmap(m, BYTES);
	close(fd);
}

/* What is there is found whatever it is, and what was there before is not harmed when it is closed. */
static void memory_that_is_not_empty(void **state)
{
	struct wpt_probe p = { .size = sizeof(p) };
	char *m, *n, *mine = fix_anon(BYTES);
	struct source s;
	int fd;

	(void)state;
	if (!supported())
		skip();
	assert_int_equal(wpt_probe(&p), 0);
	for (unsigned how = 0; how < 4; how++) {
		if (how == 2 && !have(HUGETLB_FD))
			continue;
		source_open(&s, 20 + how);
		chain_open(&s, 2);
		m = map_for(how == 0 ? ANON : how == 2 ? HUGETLB_FD : MEMFD, &fd);
		if (how == 0) /* where the chain has zeros, and nothing needs to come */
			memset(m + BYTES / 2 + HUGE, 0x55, 16 * TP);
		if (how == 1 && strverscmp(p.kernel, "6.5") >= 0) /* nobody wrote to them */
			assert_int_equal(fallocate(fd, 0, 0, BYTES), 0);
		else if (how == 1)
			assert_int_equal(pwrite(fd, "x", 1, 77), 1);
		if (how == 2) { /* of huge pages in the file that are not mapped */
			n = fix_map(BYTES, MAP_SHARED, fd);
			memset(n, 0x77, HUGE);
			munmap(n, BYTES);
		}
		if (how == 3) { /* nobody has the file any more */
			assert_int_equal(pwrite(fd, "x", 1, 5 * TP), 1);
			close(fd);
			fd = -1;
		}
		memcpy(mine, m, how == 0 ? BYTES : 0);
		lazy_open(&s, 0, 0);
		assert_int_equal(wpt_lazy_add(s.l, (uint64_t)s.m, (uint64_t)s.m + BYTES, (uint64_t)m, NULL), 0);
		assert_int_equal(wpt_lazy_start(s.l), -EEXIST);
		chain_close(&s);
		if (how == 0)
			assert_memory_equal(m, mine, BYTES);
		munmap(m, BYTES);
		if (fd >= 0)
			close(fd);
		source_close(&s);
	}
	munmap(mine, BYTES);
}

/* ---- a target that does other things with its memory meanwhile ---- */

/* Other protection, other mappings in the place of some, and holes. */
static void mappings_that_change(void **state)
{
	char *m, *n, want[TP];
	struct source s;
	int fd, file;

	(void)state;
	if (!supported())
		skip();
	file = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_true(file >= 0 && ftruncate(file, TP) == 0);
	memset(want, 'f', sizeof(want));
	assert_int_equal(pwrite(file, want, TP, 0), TP);
	for (unsigned memory = 0; memory < 2; memory++) {
		source_open(&s, 30 + memory);
		chain_open(&s, 2);
		m = map_for(memory ? MEMFD : ANON, &fd);
		lazy_start(&s, 0, memory ? WPT_LAZY_COLLAPSE : 0, m);
		for (size_t i = 100; i < PAGES; i += 97) {
			n = m + i * TP;
			if (i % 3 == 0)
				assert_int_equal(mprotect(n, TP, PROT_READ), 0);
			else if (i % 3 == 1)
				assert_true(mmap(n, TP, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == n);
			else
				assert_int_equal(munmap(n, TP), 0);
		}
		finish(&s);
		for (size_t i = 0; i < PAGES; i++)
			if (i < 100 || i % 97 != 3 || i % 3 == 0)
				assert_memory_equal(m + i * TP, s.shadow[2] + i * TP, TP);
			else if (i % 3 == 1)
				assert_memory_equal(m + i * TP, want, TP);
		munmap(m, BYTES);
		if (fd >= 0)
			close(fd);
		source_close(&s);
	}
	close(file);
}

/* The kernel tells of a piece of a huge page. */
static void a_piece_of_a_huge_page_is_given_back(void **state)
{
	struct source s;
	char *m;
	int fd;

	(void)state;
	if (!supported() || !have(HUGETLB_FD))
		skip();
	source_open(&s, 40);
	chain_open(&s, 2);
	m = map_for(HUGETLB_FD, &fd);
	lazy_start(&s, 0, 0, m);
	assert_int_equal(madvise(m + 5 * TP, TP, MADV_REMOVE), 0);
	finish(&s);
	memset(s.shadow[2] + 5 * TP, 0, TP);
	assert_int_equal(nr_wrong(m, s.shadow[2]), 0);
	munmap(m, BYTES);
	close(fd);
	source_close(&s);
}

static void *give_one_back(void *arg)
{
	madvise(arg, TP, MADV_DONTNEED);
	return NULL;
}

static void *close_it(void *arg)
{
	struct source *s = arg;

	wpt_lazy_close(s->l);
	s->l = NULL;
	return NULL;
}

/* Nobody reads events any more then, and without that nothing can be put in place. */
static void memory_is_given_back_while_it_is_closed(void **state)
{
	pthread_t closer, giver;
	struct source s;
	char *m;
	int fd;

	(void)state;
	if (!supported())
		skip();
	source_open(&s, 41);
	chain_open(&s, 2);
	m = map_for(ANON, &fd);
	lazy_start(&s, 0, 0, m);
	nr_held = 0;
	slow = true;
	assert_int_equal(wpt_lazy_fill(s.l), 0);
	while (!nr_held)
		usleep(1000);
	assert_int_equal(pthread_create(&closer, NULL, close_it, &s), 0);
	/* So that it is likely to be closing: what is tested does not depend on it. */
	usleep(100000);
	assert_int_equal(pthread_create(&giver, NULL, give_one_back, m + 5 * TP), 0);
	usleep(100000);
	slow = false;
	pthread_join(closer, NULL);
	pthread_join(giver, NULL);
	munmap(m, BYTES);
	source_close(&s);
}

/* There can't be as many mappings as it takes to forbid just what is missing. */
static void closed_too_early_with_many_mappings(void **state)
{
	FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
	struct source s;
	char *m, *many;
	long limit, n;
	int fd;

	(void)state;
	if (!supported())
		skip();
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%ld", &limit), 1);
	fclose(f);
	source_open(&s, 42);
	chain_open(&s, 2);
	m = map_for(ANON, &fd);
	lazy_start(&s, 0, 0, m);
	for (size_t i = 0; i < PAGES; i += 32)
		assert_memory_equal(m + i * TP, s.shadow[2] + i * TP, TP);
	many = fix_map((size_t)limit * TP, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	for (n = 0; n < limit && mprotect(many + n * TP, TP, PROT_NONE) == 0; n += 2)
		;
	wpt_lazy_close(s.l);
	s.l = NULL;
	munmap(many, (size_t)limit * TP);
	check_what_can_be_read(m, s.shadow[2]);
	munmap(m, BYTES);
	source_close(&s);
}

/* Something else is there by then. */
static void closed_too_early_over_other_memory(void **state)
{
	struct source s;
	char *m;
	int fd;

	(void)state;
	if (!supported())
		skip();
	source_open(&s, 43);
	chain_open(&s, 2);
	m = map_for(ANON, &fd);
	lazy_start(&s, 0, 0, m);
	assert_true(mmap(m, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == m);
	memset(m, 1, BYTES);
	wpt_lazy_close(s.l);
	s.l = NULL;
	for (size_t i = 0; i < BYTES; i += TP)
		assert_int_equal(m[i], 1);
	munmap(m, BYTES);
	source_close(&s);
}

static void huge_pages_are_put_together(void **state)
{
	struct wpt_lazy_stats stats = { .size = sizeof(stats) };
	struct source s;
	char *m;
	int fd;

	(void)state;
	if (!supported())
		skip();
	m = map_for(THP, &fd);
	memset(m, 1, 2 * HUGE);
	if (madvise(m, 2 * HUGE, MADV_COLLAPSE) != 0) {
		print_message("# skip: needs transparent huge pages\n");
		skip();
	}
	assert_int_equal(madvise(m, BYTES, MADV_DONTNEED), 0);
	source_open(&s, 9);
	chain_open(&s, 2);
	lazy_start(&s, 0, WPT_LAZY_COLLAPSE, m);
	/* One after the other, so that the last page of what becomes a huge one comes last. */
	assert_int_equal(nr_wrong(m, s.shadow[2]), 0);
	finish(&s);
	assert_int_equal(wpt_lazy_stats(s.l, &stats), 0);
	print_message("# %" PRIu64 " of %u pages are in huge ones\n", stats.pages_collapsed, PAGES);
	assert_true(stats.pages_collapsed >= HUGE / TP);
	assert_int_equal(nr_wrong(m, s.shadow[2]), 0);
	munmap(m, BYTES);
	source_close(&s);
}

/* Afterwards it is ordinary memory, which can be tracked; before that it is busy. */
static void tracked_afterwards(void **state)
{
	struct fix_look look = { .found = 0 };
	struct source s;
	struct fix f;
	char *m;
	int fd;

	(void)state;
	if (!supported() || !fix_supported())
		skip();
	source_open(&s, 10);
	chain_open(&s, 2);
	m = map_for(MEMFD, &fd);
	lazy_start(&s, 0, 0, m);
	fix_tracker(&f, 0, WPT_BACKEND_AUTO, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&f, m, BYTES);
	/* Registered all the same where all is zero. */
	look.addr = (uint64_t)m;
	while (look.addr < (uint64_t)m + BYTES && memcmp(s.shadow[2] + (look.addr - (uint64_t)m), s.shadow[2] + BYTES / 2, TP) == 0)
		look.addr += TP;
	(void)wpt_tracker_arm(f.t);
	assert_int_equal(wpt_range_list(f.t, fix_look_each, &look), 0);
	assert_int_equal(look.skipped, 1);
	assert_int_equal(look.reason, WPT_REASON_BUSY);
	finish(&s);
	fix_writer(&f);
	fix_take_and_check(&f);
	memset(m + 77 * TP, 7, TP);
	fix_take_and_check(&f);
	assert_int_equal(f.stats.pages_dirty >= 1 && f.stats.pages_stored == 1, 1);
	fix_close(&f);
	munmap(m, BYTES);
	close(fd);
	source_close(&s);
}

static void forked(void **state)
{
	struct source s;
	int fd, status;
	pid_t pid;
	char *m;

	(void)state;
	if (!supported())
		skip();
	source_open(&s, 11);
	chain_open(&s, 2);
	m = map_for(ANON, &fd);
	lazy_start(&s, 0, 0, m);
	pid = fork();
	if (pid == 0) {
		status = wpt_lazy_wait(s.l, 0) == -WPT_E_FORKED && wpt_lazy_fill(s.l) == -WPT_E_FORKED;
		wpt_lazy_close(s.l);
		_exit(!status);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	finish(&s);
	assert_int_equal(nr_wrong(m, s.shadow[2]), 0);
	munmap(m, BYTES);
	source_close(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(anonymous),
		cmocka_unit_test(anonymous_huge),
		cmocka_unit_test(memfd),
		cmocka_unit_test(hugetlb),
		cmocka_unit_test(hugetlb_memfd),
		cmocka_unit_test(pieces_in_another_order),
		cmocka_unit_test(used_while_it_comes),
		cmocka_unit_test(another_process),
		cmocka_unit_test(another_process_waits_if_it_is_closed_too_early),
		cmocka_unit_test(its_end_is_noticed),
		cmocka_unit_test(store_goes_away),
		cmocka_unit_test(damage_is_not_shown),
		cmocka_unit_test(closed_too_early),
		cmocka_unit_test(refusals),
		cmocka_unit_test(memory_that_is_not_empty),
		cmocka_unit_test(mappings_that_change),
		cmocka_unit_test(a_piece_of_a_huge_page_is_given_back),
		cmocka_unit_test(memory_is_given_back_while_it_is_closed),
		cmocka_unit_test(closed_too_early_with_many_mappings),
		cmocka_unit_test(closed_too_early_over_other_memory),
		cmocka_unit_test(huge_pages_are_put_together),
		cmocka_unit_test(tracked_afterwards),
		cmocka_unit_test(forked),
	};

	seed = env_seed();
	print_message("# WPT_SEED=%" PRIu64 "\n", seed);
	if (getenv("WPT_ONLY") && *getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
