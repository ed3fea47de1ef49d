/* SPDX-License-Identifier: MIT */
/*
 * The mappings of a target, their files, and whoever else can change them: other processes, system calls, io_uring, devices. The oracles
 * are the kernel's own lists, parsed by other code, and other processes made for the purpose.
 */
#include "target_fixture.h"

#include <linux/io_uring.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

/* ---- modes ---- */

/* Has a memfd, a file and huge pages mapped, and keeps a descriptor of the first. */
static void mode_files(void)
{
	int fd = memfd_create("guest.ram", MFD_CLOEXEC), file = open(getenv("WPT_TEST_FILE"), O_RDWR | O_CLOEXEC), huge;
	char *p, *q;

	if (ftruncate(fd, 8 * PAGE) || file < 0)
		_exit(92);
	p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	q = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, PAGE);
	fill(MAGIC_A, (uint64_t *)p, 0, 8 * PAGE);
	close(file);
	sh->addr[0] = (uint64_t)(uintptr_t)p;
	sh->addr[1] = (uint64_t)(uintptr_t)q;
	sh->addr[2] = (uint64_t)fd;
	p = mmap(NULL, 2ul << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0);
	sh->addr[3] = p == MAP_FAILED ? 0 : (uint64_t)(uintptr_t)p;
	huge = memfd_create("huge", MFD_CLOEXEC | 0x0004U);
	p = huge < 0 ? MAP_FAILED : mmap(NULL, 2ul << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, huge, 0);
	sh->addr[4] = p == MAP_FAILED ? 0 : (uint64_t)(uintptr_t)p;
	sh->ready = 1;
	while (wait_byte() != 'x' || !sh->stop)
		;
}

/* An io_uring with fixed buffers, one of them in the middle of pages. */
static void mode_uring(void)
{
	struct io_uring_params params;
	struct iovec iov[2];
	char *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd;

	madvise(p, 16 * PAGE, MADV_NOHUGEPAGE);
	memset(&params, 0, sizeof(params));
	fd = (int)syscall(SYS_io_uring_setup, 4, &params);
	sh->word = fd < 0 ? errno : 0;
	sh->addr[0] = (uint64_t)(uintptr_t)p;
	iov[0].iov_base = p + PAGE;
	iov[0].iov_len = 2 * PAGE;
	iov[1].iov_base = p + 8 * PAGE + 100;
	iov[1].iov_len = PAGE;
	sh->ready = 1;
	if (wait_byte() == 'r')
		TARGET_CHECK(!syscall(SYS_io_uring_register, fd, 0 /* REGISTER_BUFFERS */, iov, 2));
	sh->ready = 2;
	if (wait_byte() == 'u')
		TARGET_CHECK(!syscall(SYS_io_uring_register, fd, 1 /* UNREGISTER_BUFFERS */, NULL, 0));
	sh->ready = 3;
	wait_byte();
}

static void *uring_thread(void *first)
{
	pthread_join(*(pthread_t *)first, NULL);
	mode_uring();
	return NULL;
}

/* The same of a process whose first thread has ended. */
static void mode_uring_heir(void)
{
	static pthread_t first;
	pthread_t th;

	first = pthread_self();
	pthread_create(&th, NULL, uring_thread, &first);
	pthread_exit(NULL);
}

/* A device that writes to memory by itself, as far as a name can tell. */
static void mode_device(void)
{
	int fd = -1;

	if (!unshare(CLONE_NEWNS) && !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
	    !mount("none", "/dev", "tmpfs", 0, NULL) && !mkdir("/dev/vfio", 0700))
		fd = open("/dev/vfio/7", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	sh->word = fd < 0 ? errno : 0;
	sh->ready = 1;
	wait_byte();
}

static void *pause_for_ever(void *arg)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
	return arg;
}

/* The first thread ends when told so. */
static void mode_heir(void)
{
	pthread_t th;

	pthread_create(&th, NULL, pause_for_ever, NULL);
	sh->ready = 1;
	wait_byte();
	pthread_exit(NULL);
}

static int target_main(const char *mode)
{
	target_open();
	if (!strcmp(mode, "files"))
		mode_files();
	else if (!strcmp(mode, "sharers"))
		mode_sharers();
	else if (!strcmp(mode, "heir"))
		mode_heir();
	else if (!strcmp(mode, "uring"))
		mode_uring();
	else if (!strcmp(mode, "uring-heir"))
		mode_uring_heir();
	else if (!strcmp(mode, "device"))
		mode_device();
	return 0;
}

/* ---- files ---- */

struct files {
	struct fixture f;
	struct wpt_target *t;
	struct wpt_maps maps;
	char path[64];
	int file;
};

static void files_open(struct files *x)
{
	static char page[PAGE];
	int i;

	memset(x, 0, sizeof(*x));
	snprintf(x->path, sizeof(x->path), "/tmp/wpt-target-test.XXXXXX");
	x->file = mkostemp(x->path, O_CLOEXEC);
	assert_true(x->file >= 0);
	for (i = 0; i < 8; i++) {
		memset(page, 'a' + i, PAGE);
		assert_int_equal(write(x->file, page, PAGE), PAGE);
	}
	setenv("WPT_TEST_FILE", x->path, 1);
	fixture_start(&x->f, "files", 0);
	x->t = must_attach(x->f.pid);
	assert_int_equal(wpt_target_maps(x->t, &x->maps), 0);
}

static void files_close(struct files *x)
{
	wpt_maps_free(&x->maps);
	wpt_target_close(x->t);
	x->f.sh->stop = 1;
	fixture_wake(&x->f);
	fixture_finish(&x->f, 0);
	close(x->file);
	unlink(x->path);
}

static struct wpt_map *map_of(struct files *x, uint64_t addr)
{
	size_t i;

	for (i = 0; i < x->maps.maps.count; i++)
		if (wpt_map_at(&x->maps, i)->start <= addr && addr < wpt_map_at(&x->maps, i)->end)
			return wpt_map_at(&x->maps, i);
	fail_msg("no mapping at %lx", (unsigned long)addr);
	return NULL;
}

/* Against the same list, parsed by the C library. */
static void test_maps(void **state)
{
	unsigned long start, end, offset, inode;
	unsigned dev_major, dev_minor;
	char path[64], line[4400], perms[5];
	struct wpt_map *m;
	struct files x;
	size_t i = 0, pos = 0;
	FILE *f;
	int n;

	(void)state;
	files_open(&x);
	snprintf(path, sizeof(path), "/proc/%d/maps", x.f.pid);
	f = fopen(path, "re");
	for (; fgets(line, sizeof(line), f); i++, pos += strlen(line)) {
		assert_true(pos + strlen(line) <= x.maps.raw_len);
		assert_memory_equal((char *)x.maps.text.data + x.maps.raw + pos, line, strlen(line));
		assert_true(i < x.maps.maps.count);
		m = wpt_map_at(&x.maps, i);
		assert_true(sscanf(line, "%lx-%lx %4s %lx %x:%x %lu %n", &start, &end, perms, &offset, &dev_major, &dev_minor, &inode, &n) >= 7);
		assert_int_equal(m->start, start);
		assert_int_equal(m->end, end);
		assert_int_equal(m->offset, offset);
		assert_int_equal(m->inode, inode);
		assert_int_equal(m->dev_major, dev_major);
		assert_int_equal(m->dev_minor, dev_minor);
		assert_int_equal(m->read, perms[0] == 'r');
		assert_int_equal(m->write, perms[1] == 'w');
		assert_int_equal(m->exec, perms[2] == 'x');
		assert_int_equal(m->shared, perms[3] == 's');
		line[strcspn(line, "\n")] = 0;
		assert_string_equal(wpt_map_name(&x.maps, m), line + n);
		line[strlen(line)] = '\n';
	}
	fclose(f);
	assert_int_equal(i, x.maps.maps.count);
	assert_int_equal(pos, x.maps.raw_len);
	assert_string_equal(wpt_map_name(&x.maps, map_of(&x, x.f.sh->addr[0])), "/memfd:guest.ram (deleted)");
	assert_false(map_of(&x, x.f.sh->addr[0])->hugetlb);
	assert_int_equal(map_of(&x, x.f.sh->addr[0])->page_size, sysconf(_SC_PAGESIZE));
	for (i = 3; i < 5; i++) {
		if (!x.f.sh->addr[i])
			continue; /* no huge pages of this size here */
		assert_true(map_of(&x, x.f.sh->addr[i])->hugetlb);
		assert_int_equal(map_of(&x, x.f.sh->addr[i])->page_size, 2u << 20);
	}
	files_close(&x);
}

static void test_open_file(void **state)
{
	struct wpt_map *memfd, *file, anon = { .start = ADDR, .end = ADDR + PAGE }, wrong;
	struct files x;
	uint64_t buf[PAGE / 8];
	int fd, i;

	(void)state;
	files_open(&x);
	memfd = map_of(&x, x.f.sh->addr[0]);
	file = map_of(&x, x.f.sh->addr[1]);
	for (i = 0; i < 2; i++) {
		fd = wpt_target_open_file(x.t, memfd, &x.maps);
		assert_true(fd >= 0);
		assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
		assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
		assert_int_equal(pread(fd, buf, PAGE, 3 * PAGE), PAGE);
		assert_true(is_pattern(MAGIC_A, buf, 3 * PAGE, PAGE));
		close(fd);
		if (i && geteuid())
			break;
		fd = wpt_target_open_file(x.t, file, &x.maps);
		assert_true(fd >= 0);
		assert_int_equal(pread(fd, buf, PAGE, file->offset), PAGE);
		assert_int_equal(((char *)buf)[0], 'b');
		close(fd);
		if (geteuid())
			break;
		unlink(x.path); /* the second time by map_files alone */
	}
	assert_int_equal(wpt_target_open_file(x.t, &anon, &x.maps), -ENOENT);
	wrong = *memfd;
	wrong.inode += 12345;
	assert_int_equal(wpt_target_open_file(x.t, &wrong, &x.maps), -ENOENT);
	files_close(&x);
}

static void test_open_file_unprivileged(void **state)
{
	(void)state;
	as_nobody(test_open_file);
}

enum holder { NONE, MAP_RW, MAP_RO, MAP_RO_OF_RW, FD_RW, FD_WO, FD_RO, THREAD_FD, HEIR_RW, NR_HOLDERS };

static void *hold_in_thread(void *arg)
{
	/* Its own table of descriptors; the others close theirs. */
	if (unshare(CLONE_FILES))
		_exit(1);
	atomic_store((atomic_bool *)arg, true);
	for (;;)
		pause();
}

/* The thread that is left when the first one has ended. */
static void *hold_as_heir(void *arg)
{
	if (write(*(int *)arg, "y", 1) == 1)
		pause();
	_exit(1);
}

/* Another process with the target's memfd. Says when it is ready, and ends with us. */
static pid_t hold(int memfd_ro, int memfd_rw, enum holder how)
{
	static atomic_bool apart;
	int sync[2];
	pthread_t th;
	void *p = NULL;
	pid_t pid;
	char c;

	assert_int_equal(pipe(sync), 0);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (how == MAP_RW || how == MAP_RO_OF_RW || how == HEIR_RW)
			p = mmap(NULL, PAGE, how == MAP_RO_OF_RW ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED, memfd_rw, 0);
		if (how == MAP_RO)
			p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, memfd_ro, 0);
		if (how == FD_WO) {
			char path[64];

			snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd_rw);
			p = open(path, O_WRONLY) < 0 ? MAP_FAILED : NULL;
		}
		if (p == MAP_FAILED)
			_exit(1);
		if (how == THREAD_FD) {
			pthread_create(&th, NULL, hold_in_thread, &apart);
			while (!apart)
				sched_yield();
		}
		if (how != FD_RW)
			close(memfd_rw);
		if (how != FD_RO)
			close(memfd_ro);
		if (how == HEIR_RW && !pthread_create(&th, NULL, hold_as_heir, &sync[1]))
			syscall(SYS_exit, 0);
		if (write(sync[1], "y", 1) == 1)
			pause();
		_exit(1);
	}
	close(sync[1]);
	assert_int_equal(read(sync[0], &c, 1), 1);
	close(sync[0]);
	if (how == HEIR_RW)
		WAIT_FOR(task_state(pid, pid) == 'Z');
	return pid;
}

/* Somebody's mappings can't be seen: of another user, or of a process with a capability that we lack. */
static bool somebody_hides(void)
{
	DIR *d = opendir("/proc");
	struct dirent *e;
	char path[300];
	bool hides = false;
	int fd;

	while ((e = readdir(d))) {
		if (*e->d_name < '0' || *e->d_name > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/maps", e->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		hides |= fd < 0 && (errno == EACCES || errno == EPERM);
		if (fd >= 0)
			close(fd);
	}
	closedir(d);
	return hides;
}

static void test_writers(void **state)
{
	static const bool writes[NR_HOLDERS] = { [MAP_RW] = true, [MAP_RO_OF_RW] = true, [FD_RW] = true, [FD_WO] = true, [THREAD_FD] = true,
					      [HEIR_RW] = true };
	struct wpt_file_use use[3];
	int rw, ro, how, i;
	struct wpt_map *m;
	struct files x;
	char path[64];
	pid_t pid;

	(void)state;
	files_open(&x);
	m = map_of(&x, x.f.sh->addr[0]);
	memset(use, 0, sizeof(use));
	use[1].dev = makedev(m->dev_major, m->dev_minor);
	use[1].inode = m->inode;
	use[0].dev = use[2].dev = use[1].dev;
	use[0].inode = 1;
	m = map_of(&x, x.f.sh->addr[1]);
	use[2].dev = makedev(m->dev_major, m->dev_minor);
	use[2].inode = m->inode;
	close(x.file); /* we are another process too */
	for (how = NONE; how < NR_HOLDERS; how++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", x.f.pid, (int)x.f.sh->addr[2]);
		rw = open(path, O_RDWR | O_CLOEXEC);
		ro = open(path, O_RDONLY | O_CLOEXEC);
		assert_true(rw >= 0 && ro >= 0);
		pid = hold(ro, rw, (enum holder)how);
		close(rw);
		close(ro);
		for (i = 0; i < 3; i++)
			use[i].other_writer = use[i].own_writable_fd = use[i].uninspectable = true;
		assert_int_equal(wpt_target_writers(x.t, use, 3), 0);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		assert_false(use[0].other_writer || use[0].own_writable_fd);
		if (use[1].other_writer != writes[how])
			fail_msg("holder %d: other_writer is %d", how, use[1].other_writer);
		assert_true(use[1].own_writable_fd);
		assert_false(use[2].other_writer || use[2].own_writable_fd);
		for (i = 0; i < 3; i++)
			assert_int_equal(use[i].uninspectable, somebody_hides());
	}
	x.file = open("/dev/null", O_RDONLY);
	files_close(&x);
}

/* Where descriptors are short a process that was not looked at is not one that does not write. */
static void test_writers_without_descriptors(void **state)
{
	struct rlimit before, few;
	int fds[256], nr, left, rw, ro, rc;
	struct wpt_file_use use = { .dev = 0 };
	struct wpt_map *m;
	struct files x;
	char path[64];
	pid_t pid;

	(void)state;
	files_open(&x);
	m = map_of(&x, x.f.sh->addr[0]);
	close(x.file);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", x.f.pid, (int)x.f.sh->addr[2]);
	rw = open(path, O_RDWR | O_CLOEXEC);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	pid = hold(ro, rw, MAP_RW);
	close(rw);
	close(ro);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	few = before;
	few.rlim_cur = 256;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	for (left = 0; left < 8; left++) {
		for (nr = 0; (fds[nr] = dup(0)) >= 0; nr++)
			;
		for (rc = 0; rc < left; rc++)
			close(fds[--nr]);
		use = (struct wpt_file_use){ .dev = makedev(m->dev_major, m->dev_minor), .inode = m->inode };
		rc = wpt_target_writers(x.t, &use, 1);
		while (nr)
			close(fds[--nr]);
		if (!rc && !use.other_writer && !use.uninspectable)
			fail_msg("with %d descriptors nobody writes", left);
	}
	assert_true(use.other_writer);
	setrlimit(RLIMIT_NOFILE, &before);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	x.file = open("/dev/null", O_RDONLY);
	files_close(&x);
}

/* As another user not everybody can be looked at, and that is said. */
static void test_writers_unprivileged(void **state)
{
	(void)state;
	as_nobody(test_writers);
}

/* Processes that share the target's memory are not others. */
static void test_writers_sharer(void **state)
{
	struct wpt_file_use use = { .dev = 0 };
	struct wpt_maps maps = { .raw = 0 };
	struct wpt_target *t;
	struct fixture f;
	struct stat st;
	size_t i;

	(void)state;
	fixture_start(&f, "sharers", 0);
	t = must_attach(f.pid);
	assert_int_equal(fstat(f.memfd, &st), 0);
	use.dev = st.st_dev;
	use.inode = st.st_ino;
	assert_int_equal(wpt_target_writers(t, &use, 1), 0);
	assert_true(use.other_writer); /* this test has it mapped */
	assert_true(use.own_writable_fd);
	assert_int_equal(wpt_target_maps(t, &maps), 0);
	for (i = 0; i < maps.maps.count; i++)
		if (wpt_map_at(&maps, i)->inode == st.st_ino)
			break;
	assert_true(i < maps.maps.count);
	wpt_maps_free(&maps);
	/* With the test's own mapping gone nobody is left. */
	munmap(f.sh, sizeof(*f.sh));
	close(f.memfd);
	assert_int_equal(wpt_target_writers(t, &use, 1), 0);
	assert_false(use.other_writer);
	wpt_target_close(t);
	kill(f.pid, SIGKILL);
	waitpid(f.pid, NULL, 0);
	close(f.pipe[0]);
	close(f.pipe[1]);
}

/* Another process, of which and of the target the first thread has ended, and has no memory any more: that is nothing they share. */
static void test_writers_without_leaders(void **state)
{
	struct wpt_file_use use = { .dev = 0 };
	struct wpt_target *t;
	struct fixture f;
	struct stat st;
	pthread_t th;
	pid_t pid;

	(void)state;
	fixture_start(&f, "heir", 0);
	t = must_attach(f.pid);
	fixture_wake(&f);
	WAIT_FOR(task_state(f.pid, f.pid) == 'Z');
	assert_int_equal(fstat(f.memfd, &st), 0);
	use.dev = st.st_dev;
	use.inode = st.st_ino;
	/* It has the test's mapping. */
	pid = fork();
	if (!pid) {
		close(f.memfd);
		if (pthread_create(&th, NULL, pause_for_ever, NULL))
			_exit(1);
		syscall(SYS_exit, 0);
	}
	WAIT_FOR(task_state(pid, pid) == 'Z');
	munmap(f.sh, sizeof(*f.sh));
	close(f.memfd);
	assert_int_equal(wpt_target_writers(t, &use, 1), 0);
	assert_true(use.other_writer);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(wpt_target_writers(t, &use, 1), 0);
	assert_false(use.other_writer);
	wpt_target_close(t);
	kill(f.pid, SIGKILL);
	waitpid(f.pid, NULL, 0);
	close(f.pipe[0]);
	close(f.pipe[1]);
}

static void send_byte(struct fixture *f, char c)
{
	assert_int_equal(write(f->pipe[1], &c, 1), 1);
}

static void fixed_buffers(const char *mode)
{
	struct wpt_vec v = WPT_VEC(struct wpt_piece);
	struct wpt_target *t;
	struct fixture f;
	bool loud = true;
	int fault, i;
	uint64_t p;

	fixture_start(&f, mode, 0);
	assert_int_equal(wpt_target_attach(&t, f.pid, 2000, WPT_UFFD_NONE, NULL), 0);
	fault = f.sh->word;
	p = f.sh->addr[0];
	assert_int_equal(wpt_target_pinned(t, &v, &loud), 0);
	assert_int_equal(v.count, 0);
	assert_false(loud);
	send_byte(&f, fault ? 'n' : 'r');
	WAIT_FOR(f.sh->ready == 2);
	for (i = 0; i < rounds(50) && !fault; i++) {
		wpt_vec_clear(&v);
		assert_int_equal(wpt_target_pinned(t, &v, &loud), 0);
		assert_int_equal(v.count, 2);
		assert_int_equal(wpt_vec_at(&v, struct wpt_piece, 0)->addr, p + PAGE);
		assert_int_equal(wpt_vec_at(&v, struct wpt_piece, 0)->len, 2 * PAGE);
		assert_int_equal(wpt_vec_at(&v, struct wpt_piece, 1)->addr, p + 8 * PAGE);
		assert_int_equal(wpt_vec_at(&v, struct wpt_piece, 1)->len, 2 * PAGE);
		assert_false(loud);
	}
	send_byte(&f, fault ? 'n' : 'u');
	WAIT_FOR(f.sh->ready == 3);
	if (!fault) {
		/* The kernel lets go of them a little later. */
		do {
			wpt_vec_clear(&v);
			assert_int_equal(wpt_target_pinned(t, &v, &loud), 0);
		} while (v.count || loud);
	}
	wpt_vec_free(&v);
	wpt_target_close(t);
	fixture_wake(&f);
	fixture_finish(&f, 0);
	if (fault) {
		print_message("skipping: no io_uring here: %s\n", strerror(fault));
		skip();
	}
}

static void test_fixed_buffers(void **state)
{
	(void)state;
	fixed_buffers("uring");
}

static void test_fixed_buffers_of_an_heir(void **state)
{
	(void)state;
	fixed_buffers("uring-heir");
}

static void test_device(void **state)
{
	struct wpt_vec v = WPT_VEC(struct wpt_piece);
	struct wpt_target *t;
	struct fixture f;
	bool loud = false;
	int fault;

	(void)state;
	fixture_start(&f, "device", 0);
	t = must_attach(f.pid);
	fault = f.sh->word;
	assert_int_equal(wpt_target_pinned(t, &v, &loud), 0);
	assert_int_equal(loud, !fault);
	wpt_vec_free(&v);
	wpt_target_close(t);
	fixture_wake(&f);
	fixture_finish(&f, 0);
	if (fault) {
		print_message("skipping: no private /dev can be mounted: %s\n", strerror(fault));
		skip();
	}
}

struct seen {
	int watch[8], nr;
};

static void note(void *arg, int watch)
{
	struct seen *s = arg;

	if (s->nr < 8)
		s->watch[s->nr++] = watch;
}

static void test_watch(void **state)
{
	int memfd, file, other, w_memfd, w_file, i;
	struct seen seen;
	struct files x;
	char *p;

	(void)state;
	files_open(&x);
	seen.nr = 0;
	assert_int_equal(wpt_target_poll(x.t, note, &seen), 0);
	memfd = wpt_target_open_file(x.t, map_of(&x, x.f.sh->addr[0]), &x.maps);
	file = wpt_target_open_file(x.t, map_of(&x, x.f.sh->addr[1]), &x.maps);
	assert_true(memfd >= 0 && file >= 0);
	w_memfd = wpt_target_watch(x.t, memfd);
	w_file = wpt_target_watch(x.t, file);
	assert_true(w_memfd > 0 && w_file > 0 && w_memfd != w_file);
	assert_int_equal(wpt_target_watch(x.t, file), w_file);
	close(memfd);
	close(file);
	for (i = 0; i < rounds(50); i++) {
		assert_int_equal(wpt_target_poll(x.t, note, &seen), 0);
		assert_int_equal(seen.nr, 0);
		other = open(x.path, O_RDWR | O_CLOEXEC);
		p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
		p[1]++; /* silent */
		munmap(p, PAGE);
		assert_int_equal(wpt_target_poll(x.t, note, &seen), 0);
		assert_int_equal(seen.nr, 0);
		assert_int_equal(pwrite(other, "x", 1, 5000), 1);
		assert_int_equal(wpt_target_poll(x.t, note, &seen), 0);
		assert_int_equal(seen.nr, 1);
		assert_int_equal(seen.watch[0], w_file);
		close(other); /* now it tells of the silent one */
		assert_int_equal(wpt_target_poll(x.t, note, &seen), 0);
		assert_int_equal(seen.nr, 2);
		assert_int_equal(seen.watch[1], w_file);
		seen.nr = 0;
		/* Reading is no change. */
		close(open(x.path, O_RDONLY | O_CLOEXEC));
	}
	files_close(&x);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_maps),
		cmocka_unit_test(test_open_file),
		cmocka_unit_test(test_open_file_unprivileged),
		cmocka_unit_test(test_writers),
		cmocka_unit_test(test_writers_without_descriptors),
		cmocka_unit_test(test_writers_unprivileged),
		cmocka_unit_test(test_writers_sharer),
		cmocka_unit_test(test_writers_without_leaders),
		cmocka_unit_test(test_fixed_buffers),
		cmocka_unit_test(test_fixed_buffers_of_an_heir),
		cmocka_unit_test(test_device),
		cmocka_unit_test(test_watch),
	};

	if (argc == 2 && !strcmp(argv[0], "target"))
		return target_main(argv[1]);
	if (getenv("WPT_ONLY"))
		cmocka_set_test_filter(getenv("WPT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
