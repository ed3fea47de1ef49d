/* SPDX-License-Identifier: MIT */
/*
 * Which links a path names: folders with several chains, forks, parents under other names, files of links with more than one base, and
 * more links than descriptors.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "history.h"

static void every_link_can_be_named(void **state)
{
	struct history *h = history(1, 9);
	char id[33];
	uint32_t i;

	(void)state;
	put_all(h);
	assert_opens(dir, &h->links[8]);
	for (i = 0; i < 9; i++) {
		assert_opens(suffixed("@%u", i), &h->links[i]);
		assert_opens(suffixed("@-%u", 9 - i), &h->links[i]);
		hex_of(&h->links[i], id);
		assert_opens(suffixed("@id:%s", id), &h->links[i]);
		assert_opens(in_dir(name_of(&h->links[i])), &h->links[i]);
		assert_opens(suffixed("/%s@%u", name_of(&h->links[8]), i), &h->links[i]);
	}
	assert_error(suffixed("@9"), -ENOENT);
	assert_error(suffixed("@-10"), -ENOENT);
	assert_error(suffixed("@-0"), -EINVAL);
	assert_error(suffixed("@"), -EINVAL);
	assert_error(suffixed("@1x"), -EINVAL);
	assert_error(suffixed("@id:"), -EINVAL);
	assert_error(suffixed("@id:123456789012345678901234567890123"), -EINVAL);
	assert_error(suffixed("@99999999999999999999999"), -EINVAL);
	history_close(h);
}

static void of_several_chains_the_newest_is_opened(void **state)
{
	struct history *old = history(2, 8), *new = history(3, 3);
	struct made *m = &new->links[2];
	char id[33];
	uint32_t i;

	(void)state;
	/* A link's time is its sequence number here, so the chain that goes further is the newer one. */
	put_all(old);
	for (i = 0; i < 3; i++)
		put_link(NULL, &new->links[i]);
	assert_opens(dir, &old->links[7]);
	assert_opens(suffixed("@2"), &old->links[2]);
	hex_of(m, id);
	assert_opens(suffixed("@id:%s", id), m);
	assert_opens(in_dir(name_of(m)), m);
	while (new->nr < 10)
		history_add(new, false);
	for (i = 3; i < 10; i++)
		put_link(NULL, &new->links[i]);
	assert_opens(dir, &new->links[9]);
	assert_opens(suffixed("@2"), m);
	hex_of(&old->links[7], id);
	assert_opens(suffixed("@id:%s", id), &old->links[7]);
	history_close(old);
	history_close(new);
}

static void forks_are_ambiguous_until_an_id_is_given(void **state)
{
	struct history *h = history(4, 4), *fork = history(4, 4);
	char id[33];

	(void)state;
	/* The same links up to here, and different ones from here on. */
	fork->s.random ^= 0x1234567;
	fork->s.params.identity.link_id[0] ^= 0x55;
	history_add(h, false);
	history_add(fork, false);
	put_all(h);
	put_link(NULL, &fork->links[4]);
	assert_error(dir, -WPT_E_AMBIGUOUS);
	assert_error(suffixed("@4"), -WPT_E_AMBIGUOUS);
	assert_opens(suffixed("@3"), &h->links[3]);
	hex_of(&fork->links[4], id);
	assert_opens(suffixed("@id:%s", id), &fork->links[4]);
	assert_opens(in_dir(name_of(&fork->links[4])), &fork->links[4]);
	/* One goes on: it is the highest. */
	history_add(fork, false);
	put_link(NULL, &fork->links[5]);
	assert_opens(dir, &fork->links[5]);
	history_close(h);
	history_close(fork);
}

static void of_two_of_one_number_the_complete_one_is_opened(void **state)
{
	struct history *h = history(5, 3), *fork = history(5, 1);

	(void)state;
	fork->s.random ^= 0x1234567;
	fork->s.params.identity.link_id[0] ^= 0x55;
	history_add(fork, false);
	history_add(fork, false);
	put_all(h);
	put_link(NULL, &fork->links[2]);
	assert_opens(dir, &h->links[2]);
	history_close(h);
	history_close(fork);
}

static void parents_may_have_any_name(void **state)
{
	struct history *h = history(6, 7);

	(void)state;
	put_link("base.wps", &h->links[0]);
	put_link("some.wps", &h->links[1]);
	put_link("some.wps", &h->links[2]);
	put_link("middle.wps", &h->links[3]);
	put_link(NULL, &h->links[4]);
	put_link("five.wps", &h->links[5]);
	put_link("last.wps", &h->links[6]);
	put("text.wps", "what this is no snapshot", 24);
	put("empty.wps", "", 0);
	assert_opens(in_dir("last.wps"), &h->links[6]);
	assert_opens(suffixed("/last.wps@1"), &h->links[1]);
	assert_opens(in_dir("middle.wps"), &h->links[3]);
	assert_opens(dir, &h->links[4]);
	assert_int_equal(unlink(in_dir("some.wps")), 0);
	assert_error(in_dir("last.wps"), -WPT_E_CHAIN);
	assert_opens(in_dir("base.wps"), &h->links[0]);
	assert_error(in_dir("text.wps"), -WPT_E_NOT_SNAPSHOT);
	assert_error(in_dir("empty.wps"), -WPT_E_TRUNCATED);
	history_close(h);
}

static void a_new_base_in_a_file_needs_nothing_before_it(void **state)
{
	struct history *h = history(7, 4);
	size_t before = 0;
	uint32_t i;
	int fd;

	(void)state;
	history_add(h, true);
	history_add(h, false);
	history_add(h, false);
	for (i = 0; i < h->nr; i++)
		put_link("all.wps", &h->links[i]);
	for (i = 0; i < h->nr; i++)
		assert_opens(suffixed("/all.wps@%u", i), &h->links[i]);
	for (i = 4; i < h->nr; i++)
		put_link("cut.wps", &h->links[i]);
	assert_opens(in_dir("cut.wps"), &h->links[6]);
	/* A trailer before the base is spoiled: the file is damaged, but the last links are not. */
	for (i = 0; i < 3; i++)
		before += h->links[i].len;
	fd = open(in_dir("all.wps"), O_WRONLY);
	assert_int_equal(pwrite(fd, "x", 1, (off_t)before - 20), 1);
	close(fd);
	for (i = 0; i < h->nr; i++) {
		struct wpt_chain *c = NULL;
		char what[128];
		int rc = wpt_chain_open(&c, suffixed("/all.wps@%u", i));

		if (i == 2 || i == 3) {
			assert_int_equal(rc, -WPT_E_DAMAGED);
			continue;
		}
		assert_int_equal(rc, 0);
		assert_int_equal(sample_check(c, h->links[i].shows, what), 0);
		assert_int_equal(wpt_chain_verify(c, NULL, NULL), -WPT_E_DAMAGED);
		wpt_chain_close(c);
	}
	history_close(h);
}

static void a_spoiled_last_link_is_not_a_torn_one(void **state)
{
	struct history *h = history(8, 3);
	size_t len = h->links[0].len + h->links[1].len + h->links[2].len, at;
	uint8_t *all = malloc(len);
	struct wpt_chain *c;
	uint32_t i, bit;
	int rc;

	(void)state;
	for (i = 0, at = 0; i < 3; at += h->links[i++].len)
		memcpy(all + at, h->links[i].bytes, h->links[i].len);
	for (at = len - WPT_FMT_TRAILER_SIZE; at < len; at++) {
		for (bit = 0; bit < 8; bit++) {
			all[at] ^= (uint8_t)(1 << bit);
			c = NULL;
			rc = wpt_chain_open_memory(&c, all, len);
			if (!rc)
				fail_msg("bit %u of byte %zu of the trailer: an older link was opened", bit, at - (len - WPT_FMT_TRAILER_SIZE));
			all[at] ^= (uint8_t)(1 << bit);
		}
	}
	/* Torn at any length it is the link before, and where the next is appended is known. */
	for (at = len - h->links[2].len; at < len; at++) {
		char what[128];

		assert_int_equal(wpt_chain_open_memory(&c, all, at), 0);
		assert_int_equal(wpt_chain_end_offset(c), len - h->links[2].len);
		assert_int_equal(sample_check(c, h->links[1].shows, what), 0);
		wpt_chain_close(c);
	}
	free(all);
	history_close(h);
}

/* The end of the last link is missing, and one bit of those before it is wrong: they were whole, so none of them is part of a torn tail. */
static void damage_before_a_torn_tail_is_not_part_of_it(void **state)
{
	uint32_t nr, i;

	(void)state;
	for (nr = 2; nr <= 4; nr++) {
		struct history *h = history(12, nr);
		uint8_t *all = NULL;
		size_t whole = 0, len, at, hidden = 0;

		for (i = 0; i < nr; whole += h->links[i++].len) {
			all = realloc(all, whole + h->links[i].len);
			assert_non_null(all);
			memcpy(all + whole, h->links[i].bytes, h->links[i].len);
		}
		whole -= h->links[nr - 1].len;
		len = whole + (nr == 3 ? 20 : h->links[nr - 1].len / 2);
		for (at = 0; at < whole * 8; at += at < 16 * 8 ? 1 : 9) {
			struct wpt_chain *c = NULL;
			int rc;

			all[at / 8] ^= (uint8_t)(1 << at % 8);
			rc = wpt_chain_open_memory(&c, all, len);
			/* Of a chain that is called truncated the writer begins a new one. */
			if (rc == -WPT_E_TRUNCATED || (!rc && wpt_chain_nr_links(c) != nr - 1))
				hidden++;
			wpt_chain_close(c);
			all[at / 8] ^= (uint8_t)(1 << at % 8);
		}
		if (hidden)
			fail_msg("%u links: %zu flipped bits hid links that were whole", nr, hidden);
		free(all);
		history_close(h);
	}
}

static void more_links_than_descriptors(void **state)
{
	uint32_t nr = getenv("WPT_QUICK") ? 80 : MAX_LINKS;
	struct history *h = history(9, nr);
	struct rlimit limit, few;

	(void)state;
	put_all(h);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	few = limit;
	few.rlim_cur = 40;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	assert_opens(dir, &h->links[nr - 1]);
	assert_opens(suffixed("@%u", nr / 2), &h->links[nr / 2]);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	history_close(h);
}

/* Removed while the chain is open, and closed meanwhile for want of descriptors. */
static void a_link_that_goes_away_is_not_a_chain_that_never_was(void **state)
{
	struct history *h = history(12, 60);
	struct rlimit limit, few;
	struct wpt_chain *c;
	char what[128];
	uint32_t i;

	(void)state;
	put_all(h);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	few = limit;
	few.rlim_cur = 40;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	assert_int_equal(wpt_chain_open(&c, dir), 0);
	for (i = 0; i < h->nr; i++)
		assert_int_equal(unlink(in_dir(name_of(&h->links[i]))), 0);
	assert_int_equal(sample_check(c, h->links[h->nr - 1].shows, what), -WPT_E_CHAIN);
	wpt_chain_close(c);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	history_close(h);
}

/* Files to which a writer appends, and that were closed meanwhile for want of descriptors. */
static void a_file_that_grows_is_still_the_same(void **state)
{
	struct history *h = history(13, 60);
	struct rlimit limit, few;
	struct wpt_chain *c;
	char what[128], name[32];
	uint32_t i;

	(void)state;
	for (i = 0; i < h->nr; i++) {
		snprintf(name, sizeof(name), "mine-%u.wps", i / 2);
		put_link(name, &h->links[i]);
	}
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	few = limit;
	few.rlim_cur = 40;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	assert_int_equal(wpt_chain_open(&c, in_dir("mine-29.wps")), 0);
	for (i = 0; i < h->nr; i += 2) {
		snprintf(name, sizeof(name), "mine-%u.wps", i / 2);
		put(name, h->links[i].bytes, h->links[i].len / 2);
	}
	assert_int_equal(sample_check(c, h->links[h->nr - 1].shows, what), 0);
	wpt_chain_close(c);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	history_close(h);
}

static void names_find_ranges(void **state)
{
	struct history *h = history(10, 1);
	struct wpt_range_info r = { .size = sizeof(r) };
	struct wpt_chain *c;

	(void)state;
	assert_int_equal(wpt_chain_open_memory(&c, h->links[0].bytes, h->links[0].len), 0);
	assert_int_equal(wpt_chain_find(c, "[heap]", &r), 0);
	assert_true(r.start == 0x10000 && r.end == 0x20000 && r.kind == WPT_KIND_ANON);
	assert_int_equal(wpt_chain_find(c, "guest.ram", &r), 0);
	assert_true(r.start == sample_ranges[1].start && r.end == sample_ranges[2].end);
	assert_int_equal(wpt_chain_find(c, "/dev/shm/guest.ram", &r), 0);
	assert_true(r.start == sample_ranges[1].start && r.end == sample_ranges[2].end);
	assert_int_equal(wpt_chain_find(c, "11000-12fff", &r), 0);
	assert_true(r.start == 0x11000 && r.end == 0x12fff && !strcmp(r.name, "[heap]"));
	assert_int_equal(wpt_chain_find(c, "20000-30000", &r), -WPT_E_NOT_TRACKED);
	assert_int_equal(wpt_chain_find(c, "12000-11000", &r), -EINVAL);
	assert_int_equal(wpt_chain_find(c, "ram", &r), -WPT_E_NOT_TRACKED);
	assert_int_equal(wpt_chain_find(c, "", &r), -EINVAL);
	wpt_chain_close(c);
	history_close(h);
}

/* Ends a child: 0 if a folder that can't be listed is an error of its own, 77 if the child can't have such a folder. */
static void open_unlisted(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getdents64, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EIO),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { WPT_ARRAY_SIZE(filter), filter };
	struct wpt_chain *c;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog))
		_exit(77);
	_exit(wpt_chain_open(&c, dir) == -EIO ? 0 : 1);
}

/* A writer takes -ENOENT for a folder in which it may begin a chain. */
static void a_folder_that_can_not_be_listed_is_not_empty(void **state)
{
	struct history *h = history(11, 2);
	int status;
	pid_t pid;

	(void)state;
	put_all(h);
	pid = fork();
	if (!pid)
		open_unlisted();
	assert_int_equal(waitpid(pid, &status, 0), pid);
	history_close(h);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77) {
		print_message("missing: seccomp filters\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_link_can_be_named, setup, teardown),
		cmocka_unit_test_setup_teardown(of_several_chains_the_newest_is_opened, setup, teardown),
		cmocka_unit_test_setup_teardown(forks_are_ambiguous_until_an_id_is_given, setup, teardown),
		cmocka_unit_test_setup_teardown(of_two_of_one_number_the_complete_one_is_opened, setup, teardown),
		cmocka_unit_test_setup_teardown(parents_may_have_any_name, setup, teardown),
		cmocka_unit_test_setup_teardown(a_new_base_in_a_file_needs_nothing_before_it, setup, teardown),
		cmocka_unit_test_setup_teardown(a_spoiled_last_link_is_not_a_torn_one, setup, teardown),
		cmocka_unit_test_setup_teardown(damage_before_a_torn_tail_is_not_part_of_it, setup, teardown),
		cmocka_unit_test_setup_teardown(more_links_than_descriptors, setup, teardown),
		cmocka_unit_test_setup_teardown(a_link_that_goes_away_is_not_a_chain_that_never_was, setup, teardown),
		cmocka_unit_test_setup_teardown(a_file_that_grows_is_still_the_same, setup, teardown),
		cmocka_unit_test_setup_teardown(names_find_ranges, setup, teardown),
		cmocka_unit_test_setup_teardown(a_folder_that_can_not_be_listed_is_not_empty, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
