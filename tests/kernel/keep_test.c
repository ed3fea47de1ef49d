/* SPDX-License-Identifier: MIT */
/* wpt_writer_prune(): a chain that is written loses its oldest links, wherever its folder is by then, and goes on. */
#include "torture_util.h"

#include <inttypes.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PAGES 64u
#define BYTES (PAGES * TP)

static unsigned syncs;

/* In the place of libc's. */
int fsync(int fd)
{
	syncs++;
	return (int)syscall(SYS_fsync, fd);
}

static int prune(struct fix *f, uint32_t keep, uint32_t flags, struct wpt_prune_stats *st)
{
	struct wpt_prune_options o = { .size = sizeof(o), .keep = keep, .flags = flags, .nr_threads = 1 };

	*st = (struct wpt_prune_stats){ .size = sizeof(*st) };
	return wpt_writer_prune(f->w, &o, st);
}

static char *begin(struct fix *f, uint32_t dest, uint32_t flags)
{
	struct wpt_writer_options o = { .size = sizeof(o), .dest = dest, .flags = flags, .nr_threads = 1, .level = -5 };
	char *m;

	if (!fix_supported())
		skip();
	m = fix_anon(BYTES);
	fix_fill(m, BYTES, 1);
	fix_tracker(f, 0, WPT_BACKEND_ASYNC, 0);
	fix_add(f, m, BYTES);
	assert_int_equal(wpt_writer_open(&f->w, f->t, f->chain, &o), 0);
	return m;
}

static void take(struct fix *f, char *m, unsigned nr)
{
	while (nr--) {
		fix_fill(m + (f->stats.sequence % PAGES) * TP, TP, (unsigned)f->stats.sequence + 7);
		fix_take(f);
	}
}

static void end(struct fix *f, char *m)
{
	fix_close(f);
	munmap(m, BYTES);
}

/* All links from `first` to the last, and none else. */
static void assert_kept(const struct fix *f, uint64_t first)
{
	struct wpt_chain *c;
	char name[200];
	uint64_t i;

	for (i = 0; i <= f->stats.sequence; i++) {
		snprintf(name, sizeof(name), "%s@%" PRIu64, f->chain, i);
		c = NULL;
		assert_int_equal(wpt_chain_open(&c, name), i < first ? -WPT_E_PRUNED : 0);
		if (c)
			assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
		wpt_chain_close(c);
	}
}

static void a_chain_goes_on_after_it(void **state)
{
	struct wpt_prune_stats st;
	struct fix f;
	char *m;

	(void)state;
	m = begin(&f, WPT_DEST_FOLDER, WPT_WRITER_NO_SYNC);
	for (unsigned i = 0; i < 4; i++) {
		take(&f, m, 5);
		assert_int_equal(prune(&f, 3, 0, &st), 0);
		assert_int_equal(st.nr_kept, 3);
		assert_int_equal(st.sequence, f.stats.sequence - 2);
		assert_kept(&f, f.stats.sequence - 2);
		fix_take_and_check(&f);
	}
	end(&f, m);
}

static void what_can_not_be_pruned_says_so(void **state)
{
	struct wpt_prune_stats st;
	struct fix f;
	int status;
	pid_t pid;
	char *m;

	(void)state;
	m = begin(&f, WPT_DEST_APPEND, WPT_WRITER_NO_SYNC);
	take(&f, m, 3);
	assert_int_equal(prune(&f, 1, 0, &st), -EINVAL);
	end(&f, m);
	m = begin(&f, WPT_DEST_FOLDER, WPT_WRITER_NO_SYNC);
	assert_int_equal(prune(&f, 1, 0, &st), -ENOENT);
	take(&f, m, 3);
	assert_int_equal(prune(&f, 0, 0, &st), -EINVAL);
	assert_int_equal(prune(&f, 1, 1u << 9, &st), -EINVAL);
	pid = fork();
	if (!pid)
		_exit(prune(&f, 1, 0, &st) != -WPT_E_FORKED);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	assert_kept(&f, 0);
	end(&f, m);
}

/* What is removed was durable: what is written in its place must be, whatever becomes of the rest. */
static void it_is_durable_whatever_the_writer_does(void **state)
{
	struct wpt_prune_stats st;
	struct fix f;
	char *m;

	(void)state;
	m = begin(&f, WPT_DEST_FOLDER, WPT_WRITER_NO_SYNC);
	take(&f, m, 4);
	syncs = 0;
	assert_int_equal(prune(&f, 2, 0, &st), 0);
	assert_int_equal(st.nr_removed, 2);
	/* The full link, its name, and each that went. */
	assert_int_equal(syncs, 4);
	end(&f, m);
}

static void a_folder_that_was_moved_is_pruned_where_it_is(void **state)
{
	struct wpt_prune_stats st;
	char moved[sizeof(((struct fix *)0)->chain)];
	char was[200];
	struct fix f;
	char *m;

	(void)state;
	m = begin(&f, WPT_DEST_FOLDER, WPT_WRITER_NO_SYNC);
	take(&f, m, 4);
	snprintf(moved, sizeof(moved), "%s/moved", f.dir);
	strcpy(was, f.chain);
	assert_int_equal(rename(was, moved), 0);
	strcpy(f.chain, moved);
	assert_int_equal(prune(&f, 2, 0, &st), 0);
	assert_int_equal(st.nr_removed, 2);
	assert_kept(&f, 2);
	fix_take_and_check(&f);
	/* Another folder with the old name is none of its business. */
	assert_int_equal(mkdir(was, 0700), 0);
	assert_int_equal(prune(&f, 2, 0, &st), 0);
	assert_kept(&f, 3);
	assert_int_equal(rmdir(was), 0);
	end(&f, m);
}

static void a_relative_path_is_of_the_folder_that_was_opened(void **state)
{
	struct wpt_prune_stats st;
	char was[4096], whole[160];
	struct fix f;
	char *m;

	(void)state;
	m = begin(&f, WPT_DEST_FOLDER, WPT_WRITER_NO_SYNC);
	wpt_writer_close(f.w);
	f.w = NULL;
	assert_non_null(getcwd(was, sizeof(was)));
	strcpy(whole, f.chain);
	assert_int_equal(chdir(f.dir), 0);
	strcpy(f.chain, "chain");
	fix_writer(&f);
	strcpy(f.chain, whole);
	take(&f, m, 4);
	assert_int_equal(chdir("/"), 0);
	assert_int_equal(prune(&f, 2, 0, &st), 0);
	assert_int_equal(st.nr_removed, 2);
	assert_kept(&f, 2);
	assert_int_equal(chdir(was), 0);
	end(&f, m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_chain_goes_on_after_it),
		cmocka_unit_test(what_can_not_be_pruned_says_so),
		cmocka_unit_test(it_is_durable_whatever_the_writer_does),
		cmocka_unit_test(a_folder_that_was_moved_is_pruned_where_it_is),
		cmocka_unit_test(a_relative_path_is_of_the_folder_that_was_opened),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
