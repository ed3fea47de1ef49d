/* SPDX-License-Identifier: MIT */
/*
 * Chains that grow in one file (WPT_DEST_APPEND): continued after their writer was closed, after a tail that was torn anywhere, and left alone
 * when what they hold can't be continued.
 */
#include "torture_util.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>

#define PAGES 64u
#define BYTES (PAGES * TP)

static int append_open(struct fix *f)
{
	struct wpt_writer_options o = { .size = sizeof(o), .dest = WPT_DEST_APPEND, .nr_threads = 2 };

	return wpt_writer_open(&f->w, f->t, f->chain, &o);
}

static void append_close(struct fix *f)
{
	wpt_writer_close(f->w);
	f->w = NULL;
}

static size_t slurp(const char *path, char **out)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	*out = malloc((size_t)st.st_size + 1);
	assert_non_null(*out);
	assert_int_equal(read(fd, *out, (size_t)st.st_size), st.st_size);
	close(fd);
	return (size_t)st.st_size;
}

static void spill(const char *path, const char *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, len), len);
	close(fd);
}

static void a_file_is_continued(void **state)
{
	struct fix f;
	char *m;

	(void)state;
	if (!fix_supported())
		skip();
	m = fix_anon(BYTES);
	fix_fill(m, BYTES / 2, 1);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(&f, m, BYTES);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(append_open(&f), 0);
		fix_take_and_check(&f);
		assert_int_equal(f.stats.sequence, 2 * i);
		fix_fill(m + i * TP, TP, 10 + i);
		memset(m + (PAGES / 2 - 1 - i) * TP, 0, TP);
		fix_take_and_check(&f);
		/* While no writer looks. */
		append_close(&f);
		fix_fill(m + (PAGES / 2 + i) * TP, TP, 20 + i);
	}
	fix_close(&f);
	munmap(m, BYTES);
}

/* Memory with something in it, tracked. */
static char *begin(struct fix *f)
{
	char *m;

	if (!fix_supported())
		skip();
	m = fix_anon(BYTES);
	fix_fill(m, BYTES, 1);
	fix_tracker(f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(f, m, BYTES);
	return m;
}

/* And a base and an increment of it in one file, whose writer is closed; *first is where the increment begins. */
static char *begin_with_two_links(struct fix *f, size_t *first)
{
	char *m = begin(f), *bytes;

	assert_int_equal(append_open(f), 0);
	fix_take_and_check(f);
	*first = slurp(f->chain, &bytes);
	free(bytes);
	fix_fill(m, 3 * TP, 2);
	fix_take_and_check(f);
	append_close(f);
	return m;
}

static void end(struct fix *f, char *m)
{
	fix_close(f);
	munmap(m, BYTES);
}

/* The last link is cut at many places: what was there before is continued. */
static void a_torn_tail_is_cut_off(void **state)
{
	size_t first, len, at;
	char *m, *bytes;
	struct fix f;

	(void)state;
	m = begin_with_two_links(&f, &first);
	len = slurp(f.chain, &bytes);
	for (at = 1; at < len; at += 1 + len / 23) {
		spill(f.chain, bytes, at);
		m[5 * TP + at % TP]++;
		assert_int_equal(append_open(&f), 0);
		fix_take_and_check(&f);
		/* Of the base nothing is left before its end. */
		assert_int_equal(f.stats.sequence, at < first ? 0 : 1);
		append_close(&f);
	}
	free(bytes);
	end(&f, m);
}

/* A file that can't be continued stays as it is. */
static void assert_refused(struct fix *f, char *bytes, size_t len)
{
	char *after;

	spill(f->chain, bytes, len);
	assert_int_equal(append_open(f), -WPT_E_DAMAGED);
	assert_int_equal(slurp(f->chain, &after), len);
	assert_memory_equal(after, bytes, len);
	free(after);
}

/* One bit in the head of the last link, which makes its length that of more than there is. */
static void a_damaged_head_is_no_torn_base(void **state)
{
	size_t last, len;
	char *m, *bytes;
	struct fix f;

	(void)state;
	m = begin_with_two_links(&f, &last);
	len = slurp(f.chain, &bytes);
	bytes[last + 5] ^= (char)0x80;
	assert_refused(&f, bytes, len);
	free(bytes);
	end(&f, m);
}

/* The same bit of either link, where the end of a third is missing: neither is part of the torn tail. */
static void damage_before_a_torn_tail_is_not_cut_off(void **state)
{
	size_t last, len, at[2] = { 0 };
	char *m, *bytes;
	struct fix f;
	int i;

	(void)state;
	m = begin_with_two_links(&f, &last);
	assert_int_equal(append_open(&f), 0);
	fix_fill(m, TP, 3);
	fix_take_and_check(&f);
	append_close(&f);
	len = slurp(f.chain, &bytes) - 1000;
	at[1] = last;
	for (i = 0; i < 2; i++) {
		bytes[at[i] + 6] ^= 0x20;
		assert_refused(&f, bytes, len);
		bytes[at[i] + 6] ^= 0x20;
	}
	/* Undamaged it is continued. */
	spill(f.chain, bytes, len);
	assert_int_equal(append_open(&f), 0);
	fix_take_and_check(&f);
	assert_int_equal(f.stats.sequence, 2);
	append_close(&f);
	free(bytes);
	end(&f, m);
}

/* A file of increments whose base lies beside it. That the base is cut off is no reason to begin the file anew. */
static void what_is_whole_is_not_thrown_away(void **state)
{
	struct wpt_writer_options o = { .size = sizeof(o), .dest = WPT_DEST_FILE };
	char *m, *base, *want, *got, folder[160], base_path[600], more[200];
	size_t base_len, len;
	struct fix f;
	int rc;

	(void)state;
	m = begin(&f);
	fix_writer(&f);
	fix_take_and_check(&f);
	append_close(&f);
	strcpy(folder, f.chain);
	snprintf(base_path, sizeof(base_path), "%s/%s", folder, f.stats.file);
	base_len = slurp(base_path, &base);
	fix_fill(m, 3 * TP, 2);
	o.parent = folder;
	snprintf(more, sizeof(more), "%s/more.wps", folder);
	assert_int_equal(wpt_writer_open(&f.w, f.t, more, &o), 0);
	assert_int_equal(fix_try(&f, NULL), 0);
	append_close(&f);
	len = slurp(more, &want);

	/* With its base it is continued. */
	strcat(f.chain, "/more.wps");
	assert_int_equal(append_open(&f), 0);
	fix_take_and_check(&f);
	assert_int_equal(f.stats.sequence, 2);
	append_close(&f);
	spill(more, want, len);

	/* As a copy that was interrupted leaves it. */
	spill(base_path, base, base_len - 1000);
	rc = append_open(&f);
	if (!rc)
		fix_try(&f, NULL);
	append_close(&f);
	assert_int_equal(slurp(more, &got), len);
	assert_memory_equal(got, want, len);
	assert_int_equal(rc, -WPT_E_TRUNCATED);
	free(got);
	free(want);
	free(base);
	strcpy(f.chain, folder);
	end(&f, m);
}

static size_t notes_len(const char *chain)
{
	struct wpt_chain *c;
	void *notes = NULL;
	size_t len = 0;
	int rc;

	assert_int_equal(wpt_chain_open(&c, chain), 0);
	rc = wpt_chain_section(c, WPT_SECTION_NOTES, &notes, &len);
	assert_true(rc == 0 || rc == -ENOENT);
	free(notes);
	wpt_chain_close(c);
	return len;
}

static int say_no(void *arg)
{
	(void)arg;
	return -ECANCELED;
}

/* What an earlier writer noted, and is so no more, is not what the next writer's links say. */
static void notes_are_those_of_the_last_link(void **state)
{
	struct wpt_take_options no = { .size = sizeof(no), .paused = say_no };
	struct fix f;
	char *m, *untracked;
	int fd;

	(void)state;
	if (!fix_supported())
		skip();
	fd = memfd_create("noted", MFD_CLOEXEC);
	assert_int_equal(ftruncate(fd, BYTES), 0);
	m = fix_map(BYTES, MAP_SHARED, fd);
	untracked = fix_map(BYTES, MAP_SHARED, fd);
	close(fd);
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, WPT_TRACK_ASSUME_SOLE_WRITER);
	fix_add(&f, m, BYTES);
	assert_int_equal(append_open(&f), 0);
	fix_take_and_check(&f);
	assert_true(notes_len(f.chain) > 0);
	munmap(untracked, BYTES);
	/* Looks that leave no link. */
	assert_int_equal(fix_try(&f, &no), -ECANCELED);
	assert_int_equal(fix_try(&f, &no), -ECANCELED);
	append_close(&f);
	assert_int_equal(append_open(&f), 0);
	fix_take_and_check(&f);
	assert_int_equal(notes_len(f.chain), 0);
	append_close(&f);
	end(&f, m);
}

static bool fsync_fails(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fsync, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EIO),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { sizeof(filter) / sizeof(filter[0]), filter };

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog);
}

/* In a child in which every fsync fails: what opening a writer with `o` on `path` gives. */
static int open_where_fsync_fails(const char *path, struct wpt_writer_options o)
{
	struct wpt_tracker_options to = { .size = sizeof(to), .backend = WPT_BACKEND_ASYNC };
	struct wpt_tracker *t;
	struct wpt_writer *w;
	int status, rc;
	pid_t pid;

	pid = fork();
	if (!pid) {
		if (way_tracker(&t, 0, &to) || !fsync_fails())
			_exit(99);
		rc = wpt_writer_open(&w, t, path, &o);
		_exit(rc == -EIO ? 1 : rc ? 2 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 99) {
		print_message("missing: seccomp filters\n");
		skip();
	}
	return WEXITSTATUS(status) == 1 ? -EIO : WEXITSTATUS(status);
}

/* What is durable in a file whose name is not is gone with it. */
static void the_name_of_a_new_chain_is_durable(void **state)
{
	struct wpt_writer_options append = { .size = sizeof(append), .dest = WPT_DEST_APPEND }, folder = { .size = sizeof(folder) };
	char path[200];
	struct fix f;

	(void)state;
	if (!fix_supported())
		skip();
	fix_tracker(&f, 0, WPT_BACKEND_ASYNC, 0);
	assert_int_equal(open_where_fsync_fails(f.chain, append), -EIO);
	unlink(f.chain);
	snprintf(path, sizeof(path), "%s//", f.chain);
	assert_int_equal(open_where_fsync_fails(path, folder), -EIO);
	append.flags = folder.flags = WPT_WRITER_NO_SYNC;
	assert_int_equal(open_where_fsync_fails(path, folder), 0);
	remove_folder(f.chain);
	assert_int_equal(open_where_fsync_fails(f.chain, append), 0);
	fix_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_is_continued),
		cmocka_unit_test(a_torn_tail_is_cut_off),
		cmocka_unit_test(a_damaged_head_is_no_torn_base),
		cmocka_unit_test(damage_before_a_torn_tail_is_not_cut_off),
		cmocka_unit_test(what_is_whole_is_not_thrown_away),
		cmocka_unit_test(notes_are_those_of_the_last_link),
		cmocka_unit_test(the_name_of_a_new_chain_is_durable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
