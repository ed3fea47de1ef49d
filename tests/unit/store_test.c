/* SPDX-License-Identifier: MIT */
/*
 * Sinks, sources and the lock. Crash safety is tested by killing a child at every one of its system calls, failures of the
 * kernel by a seccomp filter in a child, a full disk by a small tmpfs in a mount namespace of the child's own.
 */
#include "store.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "killed.h"

#define NAME "0000000000-abc.wps"
#define LINK_BYTES 70000u

static char folder[64];
static int folder_fd;
static uint8_t link_data[LINK_BYTES];

static int setup(void **state)
{
	uint64_t x = 88172645463325252ull;

	(void)state;
	for (size_t i = 0; i < sizeof(link_data); i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		link_data[i] = (uint8_t)x;
	}
	strcpy(folder, "/tmp/wpt-store-XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return folder_fd < 0 ? -1 : 0;
}

static void empty_folder(int fd)
{
	DIR *d = fdopendir(openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	struct dirent *e;

	assert_non_null(d);
	while ((e = readdir(d))) {
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			unlinkat(fd, e->d_name, 0);
	}
	closedir(d);
}

static int teardown(void **state)
{
	(void)state;
	empty_folder(folder_fd);
	close(folder_fd);
	return rmdir(folder);
}

/* How many visible files, and files that begin with a dot (.lock left out), the folder shows. */
static void count_files(int fd, int *visible, int *hidden)
{
	DIR *d = fdopendir(openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	struct dirent *e;

	*visible = *hidden = 0;
	assert_non_null(d);
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || !strcmp(e->d_name, ".lock"))
			continue;
		if (e->d_name[0] == '.')
			++*hidden;
		else
			++*visible;
	}
	closedir(d);
}

static void assert_files(int fd, int visible, int hidden)
{
	int v, h;

	count_files(fd, &v, &h);
	assert_int_equal(v, visible);
	assert_int_equal(h, hidden);
}

static size_t read_all(int dir_fd, const char *name, uint8_t *buf, size_t size)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n;

	assert_true(fd >= 0);
	while ((n = read(fd, buf + len, size - len)) > 0)
		len += (size_t)n;
	assert_int_equal(n, 0);
	close(fd);
	return len;
}

static void assert_content(int dir_fd, const char *name, const void *want, size_t len)
{
	static uint8_t buf[4 * LINK_BYTES];

	assert_int_equal(read_all(dir_fd, name, buf, sizeof(buf)), len);
	assert_memory_equal(buf, want, len);
}

static int write_link(struct wpt_sink *s, size_t chunk)
{
	int rc = 0;

	for (size_t at = 0; !rc && at < LINK_BYTES; at += chunk)
		rc = s->write(s, link_data + at, WPT_MIN(chunk, LINK_BYTES - at));
	return rc;
}

static void make_file(int dir_fd, const char *name, const void *data, size_t len)
{
	int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, len), len);
	close(fd);
}

/* ---- a new file ---- */

static void folder_shows_a_file_at_commit_and_not_before(void **state)
{
	struct wpt_sink *s;
	struct stat st;

	(void)state;
	assert_int_equal(wpt_sink_folder(&s, folder_fd, NAME, true), 0);
	assert_files(folder_fd, 0, 1);
	assert_int_equal(write_link(s, 4096), 0);
	assert_files(folder_fd, 0, 1);
	assert_int_equal(s->commit(s), 0);
	assert_files(folder_fd, 1, 0);
	assert_int_equal(s->write(s, "x", 1), -EINVAL);
	assert_int_equal(s->commit(s), -EINVAL);
	s->close(s);
	assert_files(folder_fd, 1, 0);
	assert_content(folder_fd, NAME, link_data, LINK_BYTES);
	assert_int_equal(fstatat(folder_fd, NAME, &st, AT_SYMLINK_NOFOLLOW), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(st.st_nlink, 1);
}

static void close_without_commit_leaves_nothing(void **state)
{
	struct wpt_sink *s;

	(void)state;
	assert_int_equal(wpt_sink_folder(&s, folder_fd, NAME, false), 0);
	assert_int_equal(write_link(s, 1000), 0);
	s->close(s);
	assert_files(folder_fd, 0, 0);
}

static void an_existing_name_is_not_replaced(void **state)
{
	struct wpt_sink *s, *untouched = (struct wpt_sink *)0x1;

	(void)state;
	assert_int_equal(wpt_sink_folder(&s, folder_fd, NAME, true), 0);
	assert_int_equal(write_link(s, 4096), 0);
	make_file(folder_fd, NAME, "mine", 4);
	assert_int_equal(s->commit(s), -EEXIST);
	assert_int_equal(s->commit(s), -EEXIST);
	s->close(s);
	assert_content(folder_fd, NAME, "mine", 4);
	assert_files(folder_fd, 1, 0);

	s = untouched;
	assert_int_equal(wpt_sink_folder(&s, folder_fd, NAME, true), -EEXIST);
	assert_ptr_equal(s, untouched);
	assert_files(folder_fd, 1, 0);
}

static void a_symlink_is_not_followed(void **state)
{
	struct wpt_source *src;
	struct wpt_sink *s;

	(void)state;
	assert_int_equal(symlinkat("elsewhere", folder_fd, NAME), 0);
	assert_int_equal(wpt_sink_folder(&s, folder_fd, NAME, true), -EEXIST);
	assert_int_equal(wpt_source_file(&src, folder_fd, NAME), -ELOOP);
	assert_files(folder_fd, 1, 0);
	assert_int_equal(unlinkat(folder_fd, NAME, 0), 0);

	assert_int_equal(wpt_sink_folder(&s, folder_fd, NAME, true), 0);
	assert_int_equal(write_link(s, 4096), 0);
	assert_int_equal(symlinkat("elsewhere", folder_fd, NAME), 0);
	assert_int_equal(s->commit(s), -EEXIST);
	s->close(s);
	assert_files(folder_fd, 1, 0);

	assert_int_equal(symlinkat("elsewhere", folder_fd, ".lock"), 0);
	assert_int_equal(wpt_store_lock(folder_fd), -ELOOP);
	assert_int_equal(faccessat(folder_fd, "elsewhere", F_OK, 0), -1);
}

static void odd_names_are_refused(void **state)
{
	struct wpt_sink *s;
	char name[300];

	(void)state;
	assert_int_equal(wpt_sink_folder(&s, folder_fd, "", false), -EINVAL);
	assert_int_equal(wpt_sink_folder(&s, folder_fd, ".hidden", false), -EINVAL);
	assert_int_equal(wpt_sink_folder(&s, folder_fd, "../up", false), -EINVAL);
	memset(name, 'a', sizeof(name));
	name[sizeof(name) - 1] = '\0';
	assert_int_equal(wpt_sink_folder(&s, folder_fd, name, false), -ENAMETOOLONG);
	assert_int_equal(wpt_sink_folder(&s, -1, NAME, false), -EBADF);
	assert_files(folder_fd, 0, 0);
}

static void a_path_names_a_new_file(void **state)
{
	struct wpt_sink *s;
	char path[128];

	(void)state;
	snprintf(path, sizeof(path), "%s/%s", folder, NAME);
	assert_int_equal(wpt_sink_file(&s, path, true), 0);
	assert_int_equal(write_link(s, 30000), 0);
	assert_int_equal(s->commit(s), 0);
	s->close(s);
	assert_content(folder_fd, NAME, link_data, LINK_BYTES);
	assert_int_equal(wpt_sink_file(&s, path, true), -EEXIST);
	snprintf(path, sizeof(path), "%s/none/%s", folder, NAME);
	assert_int_equal(wpt_sink_file(&s, path, true), -ENOENT);
	snprintf(path, sizeof(path), "%s/", folder);
	assert_int_equal(wpt_sink_file(&s, path, true), -EISDIR);
	assert_int_equal(wpt_sink_file(&s, "", true), -ENOENT);
	assert_files(folder_fd, 1, 0);
}

static void a_forked_child_does_not_touch_its_parents_file(void **state)
{
	struct wpt_sink *s;
	int status;
	pid_t pid;

	(void)state;
	assert_int_equal(wpt_sink_folder(&s, folder_fd, NAME, true), 0);
	assert_int_equal(write_link(s, 4096), 0);
	pid = fork();
	if (!pid) {
		int bad = s->write(s, "x", 1) != -WPT_E_FORKED || s->commit(s) != -WPT_E_FORKED;

		s->close(s);
		_exit(bad);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_files(folder_fd, 0, 1);
	assert_int_equal(s->commit(s), 0);
	s->close(s);
	assert_content(folder_fd, NAME, link_data, LINK_BYTES);
}

/* ---- children ---- */

/* System call `nr` (if `fd` >= 0: on that descriptor) fails with `err` from now on. */
static int deny(long nr, int fd, int err)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0]) +
			 (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)fd, 0, fd >= 0 ? 1 : 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { WPT_ARRAY_SIZE(filter), filter };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) ? -errno : 0;
}

static void put_link(int err_rename)
{
	struct wpt_sink *s;

	if (err_rename && deny(SYS_renameat2, -1, err_rename))
		_exit(CHILD_CANT);
	if (wpt_sink_folder(&s, folder_fd, NAME, true) || write_link(s, 40000) || s->commit(s))
		_exit(CHILD_FAILED);
	s->close(s);
	_exit(CHILD_OK);
}

static void append_link(int unused)
{
	int fd = openat(folder_fd, NAME, O_RDWR | O_CLOEXEC);
	struct wpt_sink *s;

	(void)unused;
	if (fd < 0 || wpt_sink_append(&s, fd, 5000, true) || write_link(s, 40000) || s->commit(s))
		_exit(CHILD_FAILED);
	s->close(s);
	_exit(CHILD_OK);
}

static void killed_at_every_system_call(int err_rename)
{
	int visible, hidden, lock, points = 0, seen_visible = 0, seen_hidden = 0;
	bool killed;

	do {
		killed = kill_at(put_link, err_rename, points++);
		count_files(folder_fd, &visible, &hidden);
		if (visible)
			assert_content(folder_fd, NAME, link_data, LINK_BYTES);
		seen_visible += killed && visible;
		seen_hidden += killed && hidden;
		assert_true(killed || !hidden);
		lock = wpt_store_lock(folder_fd);
		assert_true(lock > 0);
		assert_files(folder_fd, visible, 0);
		close(lock);
		if (visible)
			assert_int_equal(unlinkat(folder_fd, NAME, 0), 0);
	} while (killed);
	assert_int_equal(visible, 1);
	assert_true(points > 20);
	assert_true(seen_visible > 0);
	assert_true(seen_hidden > 10);
}

static void a_writer_killed_anywhere_leaves_a_whole_file_or_none(void **state)
{
	(void)state;
	killed_at_every_system_call(0);
}

static void also_where_rename_noreplace_is_missing(void **state)
{
	(void)state;
	killed_at_every_system_call(EINVAL);
}

static void an_append_killed_anywhere_keeps_what_was_there(void **state)
{
	static uint8_t want[5000 + LINK_BYTES], got[3 * LINK_BYTES];
	int points = 0, torn = 0;
	bool killed;
	size_t len;

	(void)state;
	memset(want, 'g', 5000);
	memcpy(want + 5000, link_data, LINK_BYTES);
	do {
		make_file(folder_fd, NAME, want, 6000);
		killed = kill_at(append_link, 0, points++);
		len = read_all(folder_fd, NAME, got, sizeof(got));
		assert_true(len >= 5000);
		assert_memory_equal(got, want, 5000);
		torn += killed && len > 5000 && len < sizeof(want);
		if (killed)
			assert_false(kill_at(append_link, 0, 100000));
		assert_content(folder_fd, NAME, want, sizeof(want));
	} while (killed);
	assert_true(torn > 0);
}

/* The child's writes, renames and fsyncs: w, r, and s of the file, d of the folder. *wrote: bytes written before each fsync of the file. */
static void order_of(void (*fn)(int), char order[64], uint64_t wrote[8])
{
	struct __ptrace_syscall_info info;
	uint64_t file = UINT64_MAX, dir = UINT64_MAX, bytes = 0;
	size_t n = 0, syncs = 0;
	int status;
	pid_t pid;

	memset(order, 0, 64);
	pid = traced_child(fn, 0);
	while (!ptrace(PTRACE_SYSCALL, pid, NULL, NULL) && waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
		if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, (void *)sizeof(info), &info) < 0) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			print_message("missing: PTRACE_GET_SYSCALL_INFO\n");
			skip();
		}
		if (info.op != PTRACE_SYSCALL_INFO_ENTRY || n >= 63)
			continue;
		if (info.entry.nr == SYS_write || info.entry.nr == SYS_pwrite64) {
			file = info.entry.args[0];
			bytes += info.entry.args[2];
			order[n++] = 'w';
		} else if (info.entry.nr == SYS_renameat2) {
			dir = info.entry.args[0];
			order[n++] = 'r';
		} else if (info.entry.nr == SYS_fsync || info.entry.nr == SYS_fdatasync) {
			order[n++] = info.entry.args[0] == file ? 's' : info.entry.args[0] == dir ? 'd' : '?';
			if (order[n - 1] == 's' && syncs < 8)
				wrote[syncs++] = bytes;
		}
	}
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void fsync_comes_before_rename_and_the_folder_last(void **state)
{
	uint64_t wrote[8];
	char order[64];

	(void)state;
	order_of(put_link, order, wrote);
	assert_string_equal(order, "wwsrd");
}

/* A crash of the machine may lose what was written and not synced, in any order: the trailer is not written before the rest is safe. */
static void an_appended_trailer_comes_after_an_fsync_of_the_rest(void **state)
{
	uint64_t wrote[8] = { 0 };
	char order[64];
	size_t n;

	(void)state;
	make_file(folder_fd, NAME, link_data, 5000);
	order_of(append_link, order, wrote);
	n = strlen(order);
	assert_true(n > 3);
	assert_string_equal(order + n - 3, "sws");
	assert_null(strchr(order, '?'));
	assert_true(strchr(order, 's') == order + n - 3);
	assert_true(wrote[0] == LINK_BYTES - 128 && wrote[1] == LINK_BYTES);
}

static void append_in_pieces(size_t chunk, size_t len)
{
	static uint8_t want[100 + LINK_BYTES];
	int fd = openat(folder_fd, NAME, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	struct wpt_sink *s;

	assert_true(fd >= 0);
	memcpy(want, link_data, 100);
	memcpy(want + 100, link_data, len);
	assert_int_equal(pwrite(fd, want, 100, 0), 100);
	assert_int_equal(wpt_sink_append(&s, fd, 100, true), 0);
	for (size_t at = 0; at < len; at += chunk)
		assert_int_equal(s->write(s, link_data + at, WPT_MIN(chunk, len - at)), 0);
	assert_int_equal(s->commit(s), 0);
	s->close(s);
	close(fd);
	assert_content(folder_fd, NAME, want, 100 + len);
}

static void an_append_is_whole_in_pieces_of_any_size(void **state)
{
	static const size_t chunks[] = { 1, 7, 100, 127, 128, 129, 200, 255, 256, 257, 1000 }, lens[] = { 0, 1, 127, 128, 129, 300, 1000, 3001 };

	(void)state;
	for (size_t i = 0; i < WPT_ARRAY_SIZE(chunks); i++)
		for (size_t k = 0; k < WPT_ARRAY_SIZE(lens); k++)
			append_in_pieces(chunks[i], lens[k]);
}

static void run_child(void (*fn)(void))
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		/* A failed assert must end the child, not go on with the next test in it. */
		setenv("CMOCKA_TEST_ABORT", "1", 1);
		fn();
		_exit(CHILD_OK);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_CANT)
		skip();
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), CHILD_OK);
}

/* In a child: says where, and ends it. */
#define MUST(what)                                                                           \
	do {                                                                                 \
		if (!(what)) {                                                               \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #what); \
			_exit(CHILD_FAILED);                                                 \
		}                                                                            \
	} while (0)

static void need(int rc, const char *what)
{
	if (rc) {
		print_message("missing: %s\n", what);
		fflush(stdout);
		_exit(CHILD_CANT);
	}
}

static void child_fsync_eio(void)
{
	struct wpt_sink *s;

	MUST(!wpt_sink_folder(&s, folder_fd, NAME, true));
	MUST(!write_link(s, 4096));
	need(deny(SYS_fsync, -1, EIO), "seccomp filters");
	MUST(s->commit(s) == -EIO);
	MUST(s->write(s, "x", 1) == -EIO);
	MUST(s->commit(s) == -EIO);
	s->close(s);
}

static void a_failed_fsync_is_final_and_shows_nothing(void **state)
{
	(void)state;
	run_child(child_fsync_eio);
	assert_files(folder_fd, 0, 0);
}

static void child_folder_fsync_eio(void)
{
	struct wpt_sink *s;
	int next = dup(folder_fd);

	/* The sink's own descriptor of the folder is its first, its file's the second. */
	close(next);
	MUST(!wpt_sink_folder(&s, folder_fd, NAME, true));
	MUST(!write_link(s, 4096));
	need(deny(SYS_fsync, next, EIO), "seccomp filters");
	MUST(s->commit(s) == -EIO);
	s->close(s);
}

static void a_failed_fsync_of_the_folder_takes_the_file_back(void **state)
{
	(void)state;
	run_child(child_folder_fsync_eio);
	assert_files(folder_fd, 0, 0);
}

static void child_append_eio(void)
{
	int fd = openat(folder_fd, NAME, O_RDWR | O_CLOEXEC);
	struct wpt_sink *s;

	MUST(fd >= 0);
	MUST(!wpt_sink_append(&s, fd, 100, true));
	MUST(!write_link(s, 4096));
	need(deny(SYS_fsync, fd, EIO), "seccomp filters");
	MUST(s->commit(s) == -EIO);
	MUST(s->write(s, "x", 1) == -EIO);
	s->close(s);
}

static void a_failed_append_is_cut_off(void **state)
{
	(void)state;
	make_file(folder_fd, NAME, link_data, 150);
	run_child(child_append_eio);
	assert_content(folder_fd, NAME, link_data, 100);
}

static void child_write_eio(void)
{
	struct wpt_sink *s;
	int next = dup(folder_fd);

	close(next);
	MUST(!wpt_sink_folder(&s, folder_fd, NAME, true));
	need(deny(SYS_write, next + 1, EIO), "seccomp filters");
	MUST(s->write(s, link_data, 10) == -EIO);
	MUST(s->write(s, link_data, 10) == -EIO);
	MUST(s->commit(s) == -EIO);
	s->close(s);
}

static void a_failed_write_is_final(void **state)
{
	(void)state;
	run_child(child_write_eio);
	assert_files(folder_fd, 0, 0);
}

/* ---- a full disk ---- */

#define DISK_PAGES 24u

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		fprintf(stderr, "# %s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static int mount_small_disk(void)
{
	uid_t uid = getuid();
	gid_t gid = getgid();
	char map[64];

	if (unshare(CLONE_NEWNS)) {
		if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
			return -errno;
		/* Files of a user or a group that the namespace does not know can't be created. */
		write_text("/proc/self/setgroups", "deny");
		snprintf(map, sizeof(map), "0 %u 1", uid);
		write_text("/proc/self/uid_map", map);
		snprintf(map, sizeof(map), "0 %u 1", gid);
		write_text("/proc/self/gid_map", map);
	}
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return -errno;
	snprintf(map, sizeof(map), "size=%uk,nr_inodes=100", DISK_PAGES * 4);
	return mount("tmpfs", folder, "tmpfs", 0, map) ? -errno : 0;
}

static void child_disk_full(void)
{
	static const size_t chunks[] = { 1, 511, 4096, 5001, LINK_BYTES };
	static uint8_t ballast[DISK_PAGES * 4096];
	uint32_t pages = (LINK_BYTES + 4095) / 4096;
	struct wpt_sink *s;
	int fd, rc, fails;

	need(mount_small_disk(), "a tmpfs in a mount namespace of an own process");
	fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	MUST(fd >= 0);
	for (size_t c = 0; c < WPT_ARRAY_SIZE(chunks); c++) {
		fails = 0;
		for (uint32_t left = 0; left < DISK_PAGES; left++) {
			make_file(fd, "ballast", ballast, (DISK_PAGES - left) * (size_t)4096);
			rc = wpt_sink_folder(&s, fd, NAME, true);
			MUST(!rc);
			rc = write_link(s, chunks[c]);
			MUST(rc == (left < pages ? -ENOSPC : 0));
			fails += rc != 0;
			unlinkat(fd, "ballast", 0);
			/* There is room now, and still the file that failed is not continued. */
			MUST(s->write(s, "x", 0) == rc);
			MUST(s->commit(s) == rc);
			s->close(s);
			assert_files(fd, !rc, 0);
			if (rc) {
				MUST(!wpt_sink_folder(&s, fd, NAME, true));
				MUST(!write_link(s, chunks[c]) && !s->commit(s));
				s->close(s);
			}
			assert_content(fd, NAME, link_data, LINK_BYTES);
			unlinkat(fd, NAME, 0);
		}
		MUST(fails == (int)pages);
	}
}

static void a_disk_full_at_any_write_leaves_nothing_and_the_next_is_whole(void **state)
{
	(void)state;
	run_child(child_disk_full);
}

static void child_disk_full_append(void)
{
	static uint8_t ballast[DISK_PAGES * 4096];
	uint32_t need_pages = (5000 + LINK_BYTES + 4095) / 4096 - 2;
	struct wpt_sink *s;
	int dir, fd, rc;

	need(mount_small_disk(), "a tmpfs in a mount namespace of an own process");
	dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	MUST(dir >= 0);
	make_file(dir, NAME, link_data, 5000);
	fd = openat(dir, NAME, O_RDWR | O_CLOEXEC);
	for (uint32_t left = 0; left < DISK_PAGES - 2; left++) {
		make_file(dir, "ballast", ballast, (DISK_PAGES - 2 - left) * (size_t)4096);
		MUST(!wpt_sink_append(&s, fd, 5000, true));
		rc = write_link(s, 5001);
		MUST(rc == (left < need_pages ? -ENOSPC : 0));
		MUST(s->commit(s) == rc);
		s->close(s);
		if (rc)
			assert_content(dir, NAME, link_data, 5000);
		unlinkat(dir, "ballast", 0);
	}
}

static void a_disk_full_during_append_keeps_what_was_there(void **state)
{
	(void)state;
	run_child(child_disk_full_append);
}

/* ---- descriptors ---- */

static void child_pipe_gone(void)
{
	struct wpt_sink *s;
	sigset_t set;
	int p[2];

	signal(SIGPIPE, SIG_DFL);
	MUST(!pipe2(p, O_CLOEXEC));
	MUST(!wpt_sink_fd(&s, p[1], true));
	MUST(!s->write(s, "x", 1));
	close(p[0]);
	MUST(s->write(s, "x", 1) == -EPIPE);
	MUST(s->write(s, "x", 1) == -EPIPE);
	MUST(s->commit(s) == -EPIPE);
	s->close(s);
	MUST(!sigpending(&set) && !sigismember(&set, SIGPIPE));
	MUST(!sigprocmask(SIG_SETMASK, NULL, &set) && !sigismember(&set, SIGPIPE));

	/* One that somebody else sent and has blocked stays theirs. */
	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	sigprocmask(SIG_BLOCK, &set, NULL);
	raise(SIGPIPE);
	MUST(!wpt_sink_fd(&s, p[1], true));
	MUST(s->write(s, "x", 1) == -EPIPE);
	s->close(s);
	MUST(!sigpending(&set) && sigismember(&set, SIGPIPE));
	MUST(fcntl(p[1], F_GETFD) >= 0);
}

static void a_reader_that_went_away_is_an_error_and_no_signal(void **state)
{
	(void)state;
	run_child(child_pipe_gone);
}

static void child_file_limit(void)
{
	struct rlimit limit = { 50000, 50000 };
	struct wpt_sink *s;
	sigset_t set;

	signal(SIGXFSZ, SIG_DFL);
	MUST(!setrlimit(RLIMIT_FSIZE, &limit));
	MUST(!wpt_sink_folder(&s, folder_fd, NAME, false));
	MUST(write_link(s, LINK_BYTES) == -EFBIG);
	s->close(s);
	MUST(!sigpending(&set) && !sigismember(&set, SIGXFSZ));
}

static void the_file_size_limit_is_an_error_and_no_signal(void **state)
{
	(void)state;
	run_child(child_file_limit);
	assert_files(folder_fd, 0, 0);
}

#define ALARMS 20

static int *alarms; /* shared with the reader */

static void on_alarm(int sig)
{
	(void)sig;
	__atomic_add_fetch(alarms, 1, __ATOMIC_RELAXED);
}

static void child_interrupted(void)
{
	struct itimerval timer = { { 0, 500 }, { 0, 500 } };
	struct sigaction sa = { .sa_handler = on_alarm };
	struct wpt_sink *s;
	uint8_t got[777];
	size_t at = 0;
	int p[2], status;
	ssize_t n;
	pid_t pid;

	alarms = mmap(NULL, sizeof(*alarms), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(alarms != MAP_FAILED);
	MUST(!pipe2(p, O_CLOEXEC | O_NONBLOCK));
	pid = fork();
	if (!pid) {
		close(p[1]);
		fcntl(p[0], F_SETFL, 0);
		/* The pipe stays full while the writer is interrupted. */
		while (__atomic_load_n(alarms, __ATOMIC_RELAXED) < ALARMS)
			usleep(100);
		while ((n = read(p[0], got, sizeof(got))) > 0) {
			MUST(at + (size_t)n <= 20 * (size_t)LINK_BYTES);
			for (ssize_t i = 0; i < n; i++, at++)
				MUST(got[i] == link_data[at % LINK_BYTES]);
		}
		_exit(at == 20 * (size_t)LINK_BYTES ? CHILD_OK : CHILD_FAILED);
	}
	close(p[0]);
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (int i = 0; i < 20; i++) {
		/* Every other link without O_NONBLOCK, so that the write itself is interrupted and comes back short. */
		fcntl(p[1], F_SETFL, i & 1 ? O_NONBLOCK : 0);
		MUST(!wpt_sink_fd(&s, p[1], true));
		MUST(!write_link(s, LINK_BYTES));
		MUST(!s->commit(s));
		s->close(s);
	}
	memset(&timer, 0, sizeof(timer));
	setitimer(ITIMER_REAL, &timer, NULL);
	close(p[1]);
	MUST(waitpid(pid, &status, 0) == pid);
	MUST(status == 0);
}

static void short_and_interrupted_writes_lose_nothing(void **state)
{
	(void)state;
	run_child(child_interrupted);
}

static void a_link_given_up_at_the_end_of_a_descriptors_file_is_cut_off(void **state)
{
	struct wpt_sink *s;
	int fd;

	(void)state;
	make_file(folder_fd, NAME, link_data, 100);
	for (int i = 0; i < 2; i++) {
		fd = openat(folder_fd, NAME, O_RDWR | O_CLOEXEC | (i ? O_APPEND : 0));
		assert_true(fd >= 0);
		assert_int_equal(lseek(fd, 0, i ? SEEK_SET : SEEK_END), i ? 0 : 100);
		assert_int_equal(wpt_sink_fd(&s, fd, true), 0);
		assert_int_equal(write_link(s, 4096), 0);
		s->close(s);
		assert_content(folder_fd, NAME, link_data, 100);
		assert_int_equal(wpt_sink_fd(&s, fd, true), 0);
		assert_int_equal(s->write(s, link_data + 100, 50), 0);
		assert_int_equal(s->commit(s), 0);
		s->close(s);
		assert_content(folder_fd, NAME, link_data, 150);
		assert_int_equal(ftruncate(fd, 100), 0);
		close(fd);
	}
	/* In the middle of a file nothing may be cut off. */
	fd = openat(folder_fd, NAME, O_RDWR | O_CLOEXEC);
	assert_int_equal(wpt_sink_fd(&s, fd, true), 0);
	assert_int_equal(s->write(s, link_data, 10), 0);
	s->close(s);
	assert_content(folder_fd, NAME, link_data, 100);
	close(fd);
	fd = openat(folder_fd, NAME, O_RDONLY | O_CLOEXEC);
	assert_int_equal(wpt_sink_fd(&s, fd, true), -EBADF);
	close(fd);
}

static void append_cuts_a_torn_tail_first(void **state)
{
	static uint8_t want[100 + LINK_BYTES];
	struct wpt_sink *s;
	int fd, other;

	(void)state;
	memcpy(want, link_data, 100);
	memcpy(want + 100, link_data, LINK_BYTES);
	make_file(folder_fd, NAME, link_data, LINK_BYTES);
	fd = openat(folder_fd, NAME, O_RDWR | O_CLOEXEC);
	assert_int_equal(wpt_sink_append(&s, fd, LINK_BYTES + 1, true), -EINVAL);
	assert_int_equal(wpt_sink_append(&s, fd, 100, true), 0);
	assert_content(folder_fd, NAME, link_data, 100);

	other = openat(folder_fd, NAME, O_RDWR | O_CLOEXEC);
	assert_int_equal(wpt_store_lock(other), -WPT_E_LOCKED);
	assert_int_equal(wpt_sink_append(&s, other, 0, true), -WPT_E_LOCKED);
	close(other);

	assert_int_equal(write_link(s, 4096), 0);
	assert_int_equal(s->commit(s), 0);
	s->close(s);
	assert_content(folder_fd, NAME, want, sizeof(want));

	assert_int_equal(wpt_sink_append(&s, fd, sizeof(want), true), 0);
	assert_int_equal(write_link(s, 4096), 0);
	s->close(s);
	assert_content(folder_fd, NAME, want, sizeof(want));
	close(fd);
}

/* ---- memory ---- */

static void memory_holds_what_was_written(void **state)
{
	const void *data = (const void *)0x1;
	size_t len = 1;
	struct wpt_sink *s;
	struct wpt_source *src;
	uint8_t got[100];

	(void)state;
	assert_int_equal(wpt_sink_memory(&s, &data, &len), 0);
	assert_null(data);
	for (int i = 0; i < 30; i++)
		assert_int_equal(write_link(s, i ? 33333 : LINK_BYTES), 0);
	assert_null(data);
	assert_int_equal(s->commit(s), 0);
	assert_int_equal(len, 30 * (size_t)LINK_BYTES);
	for (int i = 0; i < 30; i++)
		assert_memory_equal((const uint8_t *)data + i * (size_t)LINK_BYTES, link_data, LINK_BYTES);
	assert_int_equal(s->write(s, "x", 1), -EINVAL);
	assert_int_equal(s->commit(s), -EINVAL);

	assert_int_equal(wpt_source_memory(&src, data, len), 0);
	assert_int_equal(src->size, len);
	assert_int_equal(src->read(src, len - 100, got, 100), 0);
	assert_memory_equal(got, link_data + LINK_BYTES - 100, 100);
	assert_int_equal(src->read(src, len - 99, got, 100), -WPT_E_TRUNCATED);
	assert_int_equal(src->read(src, UINT64_MAX - 10, got, 100), -WPT_E_TRUNCATED);
	assert_int_equal(src->read(src, len, got, 0), 0);
	src->close(src);
	s->close(s);
}

static void a_source_reads_exactly_or_says_truncated(void **state)
{
	struct wpt_source *src;
	uint8_t got[100];

	(void)state;
	make_file(folder_fd, NAME, link_data, 1000);
	assert_int_equal(wpt_source_file(&src, folder_fd, NAME), 0);
	assert_int_equal(src->size, 1000);
	assert_int_equal(src->read(src, 900, got, 100), 0);
	assert_memory_equal(got, link_data + 900, 100);
	assert_int_equal(src->read(src, 901, got, 100), -WPT_E_TRUNCATED);
	assert_int_equal(src->read(src, 1001, got, 0), -WPT_E_TRUNCATED);
	assert_int_equal(src->read(src, UINT64_MAX, got, 1), -WPT_E_TRUNCATED);
	assert_int_equal(src->read(src, UINT64_MAX - 3, got, 100), -WPT_E_TRUNCATED);
	assert_int_equal(src->read(src, 1000, got, 0), 0);
	make_file(folder_fd, NAME, link_data, 950);
	assert_int_equal(src->read(src, 900, got, 100), -WPT_E_TRUNCATED);
	src->close(src);

	assert_int_equal(mkfifoat(folder_fd, "fifo", 0600), 0);
	assert_int_equal(wpt_source_file(&src, folder_fd, "fifo"), -WPT_E_NOT_SNAPSHOT);
	assert_int_equal(wpt_source_file(&src, folder_fd, "."), -EISDIR);
	assert_int_equal(wpt_source_file(&src, folder_fd, "none"), -ENOENT);
}

/* ---- lock ---- */

static void one_writer_per_folder(void **state)
{
	struct stat st;
	int lock, again;

	(void)state;
	lock = wpt_store_lock(folder_fd);
	assert_true(lock > 2);
	assert_true(fcntl(lock, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(wpt_store_lock(folder_fd), -WPT_E_LOCKED);
	assert_int_equal(fstatat(folder_fd, ".lock", &st, AT_SYMLINK_NOFOLLOW), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	close(lock);
	again = wpt_store_lock(folder_fd);
	assert_true(again > 2);
	close(again);
}

static void one_writer_per_file(void **state)
{
	int a, b;

	(void)state;
	make_file(folder_fd, NAME, "x", 1);
	a = openat(folder_fd, NAME, O_RDWR | O_CLOEXEC);
	b = openat(folder_fd, NAME, O_RDWR | O_CLOEXEC);
	assert_int_equal(wpt_store_lock(a), 0);
	assert_int_equal(wpt_store_lock(a), 0);
	assert_int_equal(wpt_store_lock(b), -WPT_E_LOCKED);
	close(a);
	assert_int_equal(wpt_store_lock(b), 0);
	close(b);
}

static void a_file_just_committed_is_not_locked(void **state)
{
	struct wpt_sink *s;
	int fd;

	(void)state;
	assert_int_equal(wpt_sink_folder(&s, folder_fd, NAME, true), 0);
	assert_int_equal(s->commit(s), 0);
	fd = openat(folder_fd, NAME, O_RDWR | O_CLOEXEC);
	assert_int_equal(wpt_store_lock(fd), 0);
	s->close(s);
	close(fd);
}

static void only_dead_writers_files_are_removed(void **state)
{
	struct wpt_sink *s;
	int lock;

	(void)state;
	assert_int_equal(wpt_sink_folder(&s, folder_fd, NAME, true), 0);
	assert_int_equal(write_link(s, 4096), 0);
	make_file(folder_fd, ".wpt-1-0011223344556677.tmp", "dead", 4);
	make_file(folder_fd, ".wpt-.tmp", "not ours", 8);
	make_file(folder_fd, ".hidden.tmp", "not ours", 8);
	make_file(folder_fd, "seen.tmp", "not ours", 8);
	lock = wpt_store_lock(folder_fd);
	assert_true(lock > 0);
	assert_files(folder_fd, 1, 3);
	assert_int_equal(faccessat(folder_fd, ".wpt-1-0011223344556677.tmp", F_OK, 0), -1);
	assert_int_equal(s->commit(s), 0);
	s->close(s);
	assert_content(folder_fd, NAME, link_data, LINK_BYTES);
	close(lock);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(folder_shows_a_file_at_commit_and_not_before),
		T(close_without_commit_leaves_nothing),
		T(an_existing_name_is_not_replaced),
		T(a_symlink_is_not_followed),
		T(odd_names_are_refused),
		T(a_path_names_a_new_file),
		T(a_forked_child_does_not_touch_its_parents_file),
		T(a_writer_killed_anywhere_leaves_a_whole_file_or_none),
		T(also_where_rename_noreplace_is_missing),
		T(an_append_killed_anywhere_keeps_what_was_there),
		T(fsync_comes_before_rename_and_the_folder_last),
		T(an_appended_trailer_comes_after_an_fsync_of_the_rest),
		T(an_append_is_whole_in_pieces_of_any_size),
		T(a_failed_fsync_is_final_and_shows_nothing),
		T(a_failed_fsync_of_the_folder_takes_the_file_back),
		T(a_failed_append_is_cut_off),
		T(a_failed_write_is_final),
		T(a_disk_full_at_any_write_leaves_nothing_and_the_next_is_whole),
		T(a_disk_full_during_append_keeps_what_was_there),
		T(a_reader_that_went_away_is_an_error_and_no_signal),
		T(the_file_size_limit_is_an_error_and_no_signal),
		T(short_and_interrupted_writes_lose_nothing),
		T(a_link_given_up_at_the_end_of_a_descriptors_file_is_cut_off),
		T(append_cuts_a_torn_tail_first),
		T(memory_holds_what_was_written),
		T(a_source_reads_exactly_or_says_truncated),
		T(one_writer_per_folder),
		T(one_writer_per_file),
		T(a_file_just_committed_is_not_locked),
		T(only_dead_writers_files_are_removed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
