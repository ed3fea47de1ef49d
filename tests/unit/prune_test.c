/* SPDX-License-Identifier: MIT */
/*
 * Pruning: what is kept shows what the copy that was made with each link says, whenever a prune ends, and whoever reads meanwhile. A child is
 * killed at every one of its system calls; held at every one while its folder is read; and a reader is overtaken by a prune at every one of its own.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cmocka.h>

#include "history.h"
#include "killed.h"
#include "prune.h"

/* Newer machines have only the one. */
#ifndef SYS_renameat
#define SYS_renameat SYS_renameat2
#endif

/* Under the sanitizers, too, each of a thousand children takes its time. */
static bool is_slow(void)
{
#ifdef __SANITIZE_ADDRESS__
	return true;
#else
	return getenv("WPT_QUICK");
#endif
}

static struct wpt_prune_stats stats;

static int prune_flags(const char *chain, uint32_t keep, uint32_t flags)
{
	struct wpt_prune_options o = { .size = sizeof(o), .keep = keep, .flags = flags, .nr_threads = 1 };

	memset(&stats, 0, sizeof(stats));
	stats.size = sizeof(stats);
	return wpt_chain_prune(chain, &o, &stats);
}

/* Without fsync, for what is repeated often. */
static int prune_fast(uint32_t keep)
{
	struct wpt_prune_options o = { .size = sizeof(o), .keep = keep, .nr_threads = 1 };
	const struct wpt_prune_params p = { .chain = dir, .dir_fd = -1 };

	return wpt_prune(&p, &o, NULL);
}

static int prune(uint32_t keep)
{
	return prune_flags(dir, keep, 0);
}

static void clear_dir(void)
{
	teardown(NULL);
	assert_int_equal(mkdir(dir, 0700), 0);
}

static bool is_there(const struct made *m)
{
	return access(in_dir(name_of(m)), F_OK) == 0;
}

/* Files in the folder; *hidden: temporary ones. */
static uint32_t count_files(uint32_t *hidden)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	uint32_t n = 0;

	*hidden = 0;
	while ((e = readdir(d))) {
		n += e->d_name[0] != '.';
		*hidden += strstr(e->d_name, ".tmp") != NULL;
	}
	closedir(d);
	return n;
}

static void assert_files(uint32_t want)
{
	uint32_t hidden;

	assert_int_equal(count_files(&hidden), want);
	assert_int_equal(hidden, 0);
}

/* Links [first, h->nr) can be opened by every name that they have. */
static void assert_points(const struct history *h, uint32_t first)
{
	char id[33];
	uint32_t i;

	assert_opens(dir, &h->links[h->nr - 1]);
	for (i = first; i < h->nr; i++) {
		assert_opens(suffixed("@%u", i), &h->links[i]);
		assert_opens(suffixed("@-%u", h->nr - i), &h->links[i]);
		hex_of(&h->links[i], id);
		assert_opens(suffixed("@id:%s", id), &h->links[i]);
		assert_opens(in_dir(name_of(&h->links[i])), &h->links[i]);
	}
}

static void assert_pruned(const struct history *h, uint32_t first)
{
	char id[33];
	uint32_t i;

	for (i = 0; i < first; i++) {
		assert_false(is_there(&h->links[i]));
		assert_error(suffixed("@%u", i), -WPT_E_PRUNED);
		assert_error(suffixed("@-%u", h->nr - i), -WPT_E_PRUNED);
		hex_of(&h->links[i], id);
		assert_error(suffixed("@id:%s", id), -ENOENT);
	}
}

static void assert_oldest(const struct history *h, uint32_t first)
{
	struct wpt_link_info info = { .size = sizeof(info) };
	struct wpt_chain *c;
	uint8_t *device;
	char id[33];
	size_t len, i;

	assert_int_equal(wpt_chain_open(&c, dir), 0);
	assert_int_equal(wpt_chain_link(c, 0, &info), 0);
	assert_int_equal(info.sequence, first);
	assert_int_equal(info.full, 1);
	hex_of(&h->links[first], id);
	assert_string_equal(info.id, id);
	assert_int_equal(info.time_ns, 1700000000000000000ull + first);
	assert_int_equal(info.pause_ns, 1000 + first);
	wpt_chain_close(c);
	/* The state of devices is that of its own instant. */
	assert_int_equal(wpt_chain_open(&c, suffixed("@%u", first)), 0);
	assert_int_equal(wpt_chain_section(c, WPT_SECTION_DEVICE, (void **)&device, &len), 0);
	assert_int_equal(len, SAMPLE_DEVICE_BYTES);
	for (i = 0; i < len; i++)
		assert_int_equal(device[i], (uint8_t)(first + 1));
	free(device);
	wpt_chain_close(c);
}

static void what_is_kept_shows_what_it_showed(void **state)
{
	static const uint32_t sizes[] = { 1, 2, 3, 7, 12 };
	uint32_t s, keep, first;

	(void)state;
	for (s = 0; s < WPT_ARRAY_SIZE(sizes); s++) {
		for (keep = 1; keep <= sizes[s] + 1; keep++) {
			struct history *h = history(100 + s, sizes[s]);

			clear_dir();
			put_all(h);
			first = sizes[s] > keep ? sizes[s] - keep : 0;
			assert_int_equal(prune(keep), 0);
			assert_int_equal(stats.sequence, first);
			assert_int_equal(stats.nr_kept, sizes[s] - first);
			assert_int_equal(stats.nr_removed, first);
			assert_int_equal(stats.nr_merged, first ? first + 1 : 0);
			assert_int_equal(stats.nr_needed, 0);
			assert_true(!first == !stats.bytes_written && !first == !stats.bytes_removed);
			assert_files(sizes[s] - first);
			assert_points(h, first);
			assert_pruned(h, first);
			assert_oldest(h, first);
			/* Again: nothing is left to do. And the next link continues it. */
			assert_int_equal(prune(keep), 0);
			assert_int_equal(stats.nr_removed + stats.nr_merged, 0);
			history_add(h, false);
			put_link(NULL, &h->links[h->nr - 1]);
			assert_points(h, first);
			assert_int_equal(prune(keep), 0);
			first = h->nr > keep ? h->nr - keep : 0;
			assert_files(h->nr - first);
			assert_points(h, first);
			assert_pruned(h, first);
			history_close(h);
		}
	}
}

static void up_to_a_link_in_the_midst(void **state)
{
	struct history *h = history(20, 9);

	(void)state;
	put_all(h);
	assert_int_equal(prune_flags(suffixed("@5"), 2, 0), 0);
	assert_int_equal(stats.sequence, 4);
	assert_files(5);
	assert_points(h, 4);
	history_close(h);
}

static void a_dry_run_only_says_it(void **state)
{
	struct history *h = history(21, 6);

	(void)state;
	put_all(h);
	assert_int_equal(prune_flags(dir, 2, WPT_PRUNE_DRY_RUN), 0);
	assert_int_equal(stats.nr_removed, 4);
	assert_int_equal(stats.nr_merged, 5);
	assert_int_equal(stats.sequence, 4);
	assert_files(6);
	assert_int_equal(access(in_dir(".lock"), F_OK), -1);
	assert_points(h, 0);
	history_close(h);
}

struct told {
	uint32_t nr, stop_at;
	uint64_t sequences[32];
	uint32_t actions[32];
};

static int on_link(void *arg, const struct wpt_prune_link *link)
{
	struct told *t = arg;

	t->sequences[t->nr] = link->sequence;
	t->actions[t->nr++] = link->action;
	assert_int_equal(strlen(link->id), 32);
	assert_true(link->length > 0 && link->file[0]);
	return t->nr == t->stop_at ? -ECANCELED : 0;
}

static void every_link_is_told_before_anything_is_done(void **state)
{
	static const uint32_t want[] = { WPT_PRUNE_REMOVE, WPT_PRUNE_REMOVE, WPT_PRUNE_REMOVE, WPT_PRUNE_MERGE, WPT_PRUNE_KEEP, WPT_PRUNE_KEEP };
	struct history *h = history(22, 6);
	struct told t = { .stop_at = 6 };
	struct wpt_prune_options o = { .size = sizeof(o), .keep = 3, .each = on_link, .arg = &t };
	uint32_t i;

	(void)state;
	put_all(h);
	assert_int_equal(wpt_chain_prune(dir, &o, NULL), -ECANCELED);
	assert_int_equal(t.nr, 6);
	for (i = 0; i < 6; i++) {
		assert_int_equal(t.sequences[i], i);
		assert_int_equal(t.actions[i], want[i]);
	}
	assert_files(6);
	assert_points(h, 0);
	history_close(h);
}

static int stop_after(void *arg, uint64_t done, uint64_t total)
{
	int *left = arg;

	assert_true(done <= total);
	return (*left)-- <= 0;
}

static void a_cancelled_prune_changes_nothing(void **state)
{
	struct history *h = history(23, 6);
	struct wpt_prune_options o = { .size = sizeof(o), .keep = 2, .progress = stop_after };
	int n, left, rc = -ECANCELED;

	(void)state;
	put_all(h);
	for (n = 0; rc; n++) {
		left = n;
		o.arg = &left;
		assert_files(6);
		rc = wpt_chain_prune(dir, &o, NULL);
		assert_true(rc == 0 || rc == -ECANCELED);
		assert_points(h, rc ? 0 : 4);
	}
	assert_true(n > 4);
	assert_files(2);
	history_close(h);
}

/* ---- others in the folder ---- */

static struct history *fork_of(uint64_t seed, uint32_t at)
{
	struct history *h = history(seed, at);

	h->s.random ^= 0x1234567;
	h->s.params.identity.link_id[0] ^= 0x55;
	return h;
}

static void what_a_branch_needs_stays(void **state)
{
	static const uint32_t want[] = { WPT_PRUNE_NEEDED, WPT_PRUNE_NEEDED, WPT_PRUNE_NEEDED, WPT_PRUNE_NEEDED, WPT_PRUNE_REMOVE,
					 WPT_PRUNE_REMOVE, WPT_PRUNE_REMOVE, WPT_PRUNE_MERGE,  WPT_PRUNE_KEEP };
	struct history *h = history(30, 9), *fork = fork_of(30, 4);
	struct told t = { 0 };
	struct wpt_prune_options o = { .size = sizeof(o), .keep = 2, .each = on_link, .arg = &t };
	uint32_t i, named;

	(void)state;
	history_add(fork, false);
	history_add(fork, false);
	for (named = 0; named < 2; named++) {
		clear_dir();
		put_all(h);
		/* By the name of a link, and in one file as somebody called it. */
		put_link(named ? "mine.wps" : NULL, &fork->links[4]);
		put_link(named ? "mine.wps" : NULL, &fork->links[5]);
		memset(&t, 0, sizeof(t));
		memset(&stats, 0, sizeof(stats));
		stats.size = sizeof(stats);
		assert_int_equal(wpt_chain_prune(dir, &o, &stats), 0);
		assert_int_equal(stats.nr_removed, 3);
		assert_int_equal(stats.nr_needed, 4);
		assert_int_equal(stats.sequence, 7);
		for (i = 0; i < 9; i++) {
			assert_int_equal(t.actions[i], want[i]);
			assert_int_equal(is_there(&h->links[i]), i < 4 || i >= 7);
		}
		assert_points(h, 7);
		for (i = 0; i < 4; i++)
			assert_opens(suffixed("@%u", i), &h->links[i]);
		if (named) {
			assert_opens(in_dir("mine.wps"), &fork->links[5]);
			assert_opens(suffixed("/mine.wps@4"), &fork->links[4]);
		} else {
			assert_opens(in_dir(name_of(&fork->links[5])), &fork->links[5]);
		}
		assert_int_equal(prune(2), 0);
		assert_int_equal(stats.nr_removed + stats.nr_merged, 0);
	}
	history_close(h);
	history_close(fork);
}

static void another_chain_stays(void **state)
{
	struct history *h = history(31, 8), *other = history(32, 3);
	char id[33];
	uint32_t i;

	(void)state;
	put_all(h);
	put_all(other);
	assert_int_equal(prune(2), 0);
	assert_int_equal(stats.sequence, 6);
	assert_files(5);
	assert_points(h, 6);
	for (i = 0; i < 3; i++)
		assert_opens(in_dir(name_of(&other->links[i])), &other->links[i]);
	/* It is pruned if it is named. */
	hex_of(&other->links[2], id);
	assert_int_equal(prune_flags(suffixed("@id:%s", id), 1, 0), 0);
	assert_files(3);
	assert_opens(in_dir(name_of(&other->links[2])), &other->links[2]);
	assert_points(h, 6);
	history_close(h);
	history_close(other);
}

static void files_by_other_names_are_never_removed(void **state)
{
	struct history *h = history(33, 6);
	uint32_t i;

	(void)state;
	put_link("base.wps", &h->links[0]);
	put_link("base.wps", &h->links[1]);
	for (i = 2; i < 6; i++)
		put_link(NULL, &h->links[i]);
	put("text.wps", "what this is no snapshot", 24);
	assert_int_equal(prune(2), 0);
	assert_int_equal(stats.nr_removed, 2);
	assert_int_equal(stats.nr_needed, 2);
	assert_files(4);
	assert_points(h, 4);
	assert_opens(in_dir("base.wps"), &h->links[1]);
	history_close(h);
}

/* A copy of the oldest that is kept, under a name of somebody's own, needs its parents as ever. */
static void a_copy_of_a_link_keeps_its_parents(void **state)
{
	struct history *h = history(34, 6);
	uint32_t i;

	(void)state;
	put_all(h);
	put_link("copy.wps", &h->links[4]);
	assert_int_equal(prune(2), 0);
	assert_int_equal(stats.nr_removed, 0);
	assert_int_equal(stats.nr_needed, 4);
	assert_files(7);
	for (i = 0; i < 6; i++)
		assert_opens(suffixed("@%u", i), &h->links[i]);
	assert_int_equal(unlink(in_dir("copy.wps")), 0);
	assert_int_equal(prune(2), 0);
	assert_files(2);
	assert_points(h, 4);
	history_close(h);
}

static void merge_to(const char *chain, const char *name)
{
	struct wpt_merge_options o = { .size = sizeof(o), .nr_threads = 1 };
	struct wpt_chain *c;

	assert_int_equal(wpt_chain_open(&c, chain), 0);
	assert_int_equal(wpt_chain_merge(c, in_dir(name), &o), 0);
	wpt_chain_close(c);
}

static void flip(const char *name, off_t at)
{
	int fd = open(in_dir(name), O_RDWR);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

/* Somebody's full file of a link stands in for it as long as it is there and good, and nobody is to be told to remove it. */
static void a_merged_file_of_somebody_replaces_no_link(void **state)
{
	struct history *h = history(37, 9), *fork = fork_of(37, 6);
	struct told t = { 0 };
	struct wpt_prune_options o = { .size = sizeof(o), .keep = 2, .each = on_link, .arg = &t };
	uint32_t named, i;

	(void)state;
	history_add(fork, false);
	for (named = 0; named < 2; named++) {
		clear_dir();
		put_all(h);
		put_link(named ? "mine.wps" : NULL, &fork->links[6]);
		merge_to(suffixed("@5"), "m.wps");
		flip("m.wps", 5000);
		t.nr = 0;
		assert_int_equal(wpt_chain_prune(dir, &o, NULL), 0);
		/* Both files of link 5 are told. */
		assert_int_equal(t.nr, 10);
		for (i = 0; i < t.nr; i++)
			assert_int_equal(t.actions[i], t.sequences[i] < 6 ? WPT_PRUNE_NEEDED : t.sequences[i] == 6 ? WPT_PRUNE_REMOVE :
						       t.sequences[i] == 7 ? WPT_PRUNE_MERGE : WPT_PRUNE_KEEP);
		for (i = 0; i < 6; i++)
			assert_true(is_there(&h->links[i]));
		assert_false(is_there(&h->links[6]));
		assert_points(h, 7);
		assert_int_equal(unlink(in_dir("m.wps")), 0);
		assert_opens(in_dir(named ? "mine.wps" : name_of(&fork->links[6])), &fork->links[6]);
		/* And if it is all that there is of the link. */
		clear_dir();
		for (i = 0; i < 5; i++)
			put_link(NULL, &h->links[i]);
		put_link("old.wps", &h->links[5]);
		merge_to(in_dir("old.wps"), "m.wps");
		assert_int_equal(unlink(in_dir("old.wps")), 0);
		for (i = 6; i < 9; i++)
			put_link(NULL, &h->links[i]);
		put_link(named ? "mine.wps" : NULL, &fork->links[6]);
		t.nr = 0;
		assert_int_equal(wpt_chain_prune(dir, &o, NULL), 0);
		assert_int_equal(t.sequences[t.nr - 4], 5);
		assert_int_equal(t.actions[t.nr - 4], WPT_PRUNE_NEEDED);
		assert_points(h, 7);
		assert_opens(in_dir(named ? "mine.wps" : name_of(&fork->links[6])), &fork->links[6]);
	}
	history_close(h);
	history_close(fork);
}

/* The file that takes a link's name can be read by whom the link could be read. */
static void a_merged_link_keeps_its_owner_and_mode(void **state)
{
	static const mode_t modes[] = { 0600, 0640, 0444, 0664 };
	struct history *h = history(38, 6);
	uid_t owner = getuid() ? getuid() : 65534;
	gid_t group = getuid() ? getgid() : 65533;
	struct stat st;
	uint32_t i;

	(void)state;
	for (i = 0; i < WPT_ARRAY_SIZE(modes); i++) {
		clear_dir();
		put_all(h);
		assert_int_equal(chown(dir, owner, group), 0);
		assert_int_equal(chown(in_dir(name_of(&h->links[4])), owner, group), 0);
		assert_int_equal(chmod(in_dir(name_of(&h->links[4])), modes[i]), 0);
		assert_int_equal(prune(2), 0);
		assert_int_equal(stats.nr_merged, 5);
		assert_int_equal(stat(in_dir(name_of(&h->links[4])), &st), 0);
		assert_int_equal(st.st_uid, owner);
		assert_int_equal(st.st_gid, group);
		assert_int_equal(st.st_mode & 07777, modes[i]);
		/* The folder's owner can lock it after us. */
		assert_int_equal(stat(in_dir(".lock"), &st), 0);
		assert_int_equal(st.st_uid, owner);
		assert_int_equal(st.st_gid, group);
		assert_int_equal(st.st_mode & 07777, 0600);
	}
	history_close(h);
}

static void what_can_not_be_read_may_need_it(void **state)
{
	struct history *h = history(35, 6), *fork = fork_of(35, 3);
	struct made *m;
	int fd;

	(void)state;
	history_add(fork, false);
	m = &fork->links[3];
	put_all(h);
	put("broken.wps", m->bytes, m->len - 20);
	assert_int_equal(prune(2), -WPT_E_TRUNCATED);
	assert_files(7);
	assert_int_equal(unlink(in_dir("broken.wps")), 0);
	put_link(NULL, m);
	fd = open(in_dir(name_of(m)), O_WRONLY);
	assert_int_equal(pwrite(fd, "x", 1, (off_t)m->len - 20), 1);
	close(fd);
	assert_int_equal(prune(2), -WPT_E_TRUNCATED);
	assert_files(7);
	assert_int_equal(unlink(in_dir(name_of(m))), 0);
	assert_int_equal(prune(2), 0);
	assert_points(h, 4);
	history_close(h);
	history_close(fork);
}

/* A page of a link that is merged is not what was written. */
static void damage_is_not_merged(void **state)
{
	struct history *h = history(36, 6);
	struct made *m = &h->links[2];
	size_t at, refused = 0;
	int rc;

	(void)state;
	for (at = 0; at < m->len; at += 7) {
		clear_dir();
		put_all(h);
		int fd = open(in_dir(name_of(m)), O_WRONLY);
		uint8_t byte = m->bytes[at] ^ 0x10;

		assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
		close(fd);
		rc = prune(2);
		refused += rc != 0;
		assert_files(rc ? 6 : 2);
		if (!rc)
			assert_points(h, 4);
	}
	assert_true(refused > 10);
	history_close(h);
}

/* ---- what is left of earlier ones ---- */

static void what_a_prune_left_is_removed_by_the_next(void **state)
{
	struct history *h = history(40, 10);
	uint32_t left, i, hidden;
	uint8_t *full = malloc(1 << 20);
	size_t len;
	FILE *f;

	(void)state;
	put_all(h);
	assert_int_equal(prune(3), 0);
	f = fopen(in_dir(name_of(&h->links[7])), "r");
	len = fread(full, 1, 1 << 20, f);
	fclose(f);
	for (left = 0; left <= 7; left++) {
		clear_dir();
		/* The oldest ones are gone already. */
		for (i = 7 - left; i < 10; i++)
			if (i != 7)
				put_link(NULL, &h->links[i]);
		put(name_of(&h->links[7]), full, len);
		put(".wpt-1-0123456789abcdef.tmp", full, len / 2);
		assert_points(h, 7);
		/* Also with another number: what has lost its parents can't be kept. */
		assert_int_equal(prune(left % 2 ? 3 : 8), 0);
		count_files(&hidden);
		assert_int_equal(hidden, 0);
		if (left < 7) {
			assert_int_equal(stats.nr_removed, left);
			assert_int_equal(stats.bytes_written, 0);
			assert_files(3);
		}
		assert_points(h, 7);
	}
	free(full);
	history_close(h);
}

/* Without a full link that was merged, somebody took the base away: it is not for us to take the rest. */
static void links_without_a_base_stay_if_nothing_was_pruned(void **state)
{
	struct history *h = history(41, 4);
	uint32_t i;

	(void)state;
	history_add(h, true);
	history_add(h, false);
	for (i = 1; i < h->nr; i++)
		put_link(NULL, &h->links[i]);
	assert_int_equal(prune(10), 0);
	assert_files(5);
	assert_points(h, 4);
	history_close(h);
}

/* ---- amortised ---- */

static void lazy_waits_until_it_pays(void **state)
{
	struct history *h = history(50, 1);
	uint32_t keep, n, most, prunes;

	(void)state;
	for (keep = 1; keep <= 12; keep += 11) {
		clear_dir();
		history_close(h);
		h = history(50 + keep, 1);
		put_all(h);
		most = prunes = 0;
		while (h->nr < 60) {
			history_add(h, false);
			put_link(NULL, &h->links[h->nr - 1]);
			assert_int_equal(prune_flags(dir, keep, WPT_PRUNE_LAZY), 0);
			prunes += stats.nr_merged > 0;
			n = (uint32_t)stats.nr_kept;
			assert_true(n >= WPT_MIN(keep, h->nr) && n < keep + WPT_MAX(keep, 8u));
			assert_files(n);
			assert_int_equal(stats.sequence, h->nr - n);
			if (stats.nr_merged)
				assert_int_equal(n, keep);
			most = WPT_MAX(most, n);
		}
		assert_points(h, h->nr - keep);
		assert_true(most > keep);
		assert_true(prunes > 2 && prunes < 40);
	}
	history_close(h);
}

/* ---- refused ---- */

static void one_writer_at_a_time(void **state)
{
	struct history *h = history(60, 5);
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), lock;

	(void)state;
	put_all(h);
	lock = wpt_store_lock(fd);
	assert_true(lock > 0);
	assert_int_equal(prune(2), -WPT_E_LOCKED);
	assert_files(5);
	assert_int_equal(prune_flags(dir, 2, WPT_PRUNE_DRY_RUN), 0);
	close(lock);
	assert_int_equal(prune(2), 0);
	lock = wpt_store_lock(fd);
	assert_true(lock > 0);
	close(lock);
	close(fd);
	history_close(h);
}

static void what_does_not_fit_is_refused(void **state)
{
	struct history *h = history(61, 3);
	uint32_t i;

	(void)state;
	assert_int_equal(prune(1), -ENOENT);
	for (i = 0; i < 3; i++)
		put_link("all.wps", &h->links[i]);
	assert_int_equal(prune_flags(in_dir("all.wps"), 1, 0), -ENOTDIR);
	assert_int_equal(prune_flags(suffixed("/all.wps@1"), 1, 0), -ENOTDIR);
	assert_int_equal(prune_flags(in_dir("missing"), 1, 0), -ENOENT);
	assert_int_equal(prune(0), -EINVAL);
	assert_int_equal(prune_flags(dir, 1, 1u << 9), -EINVAL);
	assert_opens(in_dir("all.wps"), &h->links[2]);
	history_close(h);
}

/* ---- the end at any moment ---- */

#define KEPT 3u
#define LISTED 1000u

static struct history *killed; /* what the children below prune */

static void prune_in_child(int keep)
{
	_exit(prune((uint32_t)keep) ? CHILD_FAILED : CHILD_OK);
}

/* Of what lies in the folder under which name. */
static uint64_t listing(void)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	uint64_t sum = 0, one;
	const char *p;

	while ((e = readdir(d))) {
		for (one = e->d_ino, p = e->d_name; *p; p++)
			one = (one ^ (uint8_t)*p) * 0x100000001B3u;
		sum += one;
	}
	closedir(d);
	return sum;
}

static void killed_at_every_system_call_all_that_is_kept_can_be_opened(void **state)
{
	uint32_t step = is_slow() ? 37 : 1, points = 0, before = 0, between = 0, hidden, n, i, with_temp = 0;
	bool was_killed, changed;
	uint64_t was;

	(void)state;
	killed = history(70, 8);
	do {
		clear_dir();
		put_all(killed);
		assert_int_equal(close(open(in_dir(".lock"), O_CREAT | O_WRONLY, 0600)), 0);
		was = listing();
		was_killed = kill_at(prune_in_child, KEPT, (int)points);
		changed = listing() != was;
		points += step;
		n = count_files(&hidden);
		assert_true(n >= KEPT && n <= 8);
		before += n == 8;
		between += n < 8 && n > KEPT;
		with_temp += hidden;
		/* Where nothing is another than it was, now and then. */
		if (!changed && points % 16)
			continue;
		for (i = 8 - KEPT; i < 8; i++)
			assert_opens(suffixed("@%u", i), &killed->links[i]);
		assert_opens(dir, &killed->links[7]);
		assert_int_equal(prune_fast(KEPT), 0);
		assert_files(KEPT);
		assert_points(killed, 8 - KEPT);
	} while (was_killed);
	if (step == 1)
		assert_true(before > 50 && between > 4 && with_temp > 10);
	history_close(killed);
}

static void whoever_reads_meanwhile_finds_all_that_is_kept(void **state)
{
	uint32_t i, stops = 0, changes = 0;
	uint64_t was = 0, now;
	int status;
	pid_t pid;

	(void)state;
	killed = history(71, 8);
	put_all(killed);
	pid = traced_child(prune_in_child, KEPT);
	for (;;) {
		assert_int_equal(ptrace(PTRACE_SYSCALL, pid, NULL, NULL), 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (!WIFSTOPPED(status))
			break;
		now = listing();
		changes += now != was;
		if (now == was && ++stops % 32)
			continue;
		was = now;
		for (i = 8 - KEPT; i < 8; i++)
			assert_opens(suffixed("@%u", i), &killed->links[i]);
		assert_opens(dir, &killed->links[7]);
	}
	/* The temporary file, its renaming, five links that go. */
	assert_true(changes > 7);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_OK);
	assert_files(KEPT);
	history_close(killed);
}

static char wanted[PATH_MAX + 8]; /* what the child below reads */
static const struct made *shown;

static void read_in_child(int unused)
{
	struct wpt_chain *c = NULL;
	char what[128];

	(void)unused;
	if (wpt_chain_open(&c, wanted))
		_exit(CHILD_FAILED);
	_exit(sample_check(c, shown->shows, what) ? CHILD_FAILED + 1 : CHILD_OK);
}

/* The reader is held at its n-th stop, and the folder pruned from the first to the last step, once or twice. */
static bool overtaken_at(uint32_t n, uint32_t keep)
{
	pid_t pid = traced_child(read_in_child, 0);
	int status = 0;
	uint32_t i;

	for (i = 0; i <= n; i++) {
		assert_int_equal(ptrace(PTRACE_SYSCALL, pid, NULL, NULL), 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (!WIFSTOPPED(status))
			break;
	}
	if (WIFSTOPPED(status)) {
		assert_int_equal(prune_fast(keep), 0);
		assert_int_equal(ptrace(PTRACE_DETACH, pid, NULL, NULL), 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
	} else {
		n = UINT32_MAX;
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status) != CHILD_OK)
		fail_msg("%s, overtaken at %u: %s", wanted, n, WEXITSTATUS(status) == CHILD_FAILED ? "not opened" : "shows something else");
	return n != UINT32_MAX;
}

static void a_reader_that_is_overtaken_reads_what_it_asked_for(void **state)
{
	uint32_t step = is_slow() ? 29 : 1, way, n;

	(void)state;
	killed = history(72, 6);
	for (way = 0; way < 4; way++) {
		/* The whole chain; the oldest that is kept, by number, and by its file; all but the last link go. */
		shown = &killed->links[way == 1 || way == 2 ? 4 : 5];
		snprintf(wanted, sizeof(wanted), "%s", way == 1 ? suffixed("@4") : way == 2 ? in_dir(name_of(shown)) : dir);
		n = 0;
		do {
			clear_dir();
			put_all(killed);
			n += step;
		} while (overtaken_at(n, way == 3 ? 1 : 2));
		assert_true(n > 20);
	}
	history_close(killed);
}

/*
 * Where a name that is given to another file counts as a new one, as on a tmpfs and on btrfs, a list that was begun before does not have it. There
 * are more files than one call lists, and the last link is listed late, the others early: they are not to be taken for all.
 */
static void a_link_that_becomes_full_while_it_is_listed_is_found(void **state)
{
	struct __ptrace_syscall_info info;
	struct history *h;
	int status, lists = 0, done = 0;
	char name[80];
	uint32_t i;
	pid_t pid;

	(void)state;
	if (access("/dev/shm", W_OK) == 0) {
		teardown(NULL);
		strcpy(dir, "/dev/shm/wptrack-prune-XXXXXX");
		assert_non_null(mkdtemp(dir));
	}
	h = history(74, 9);
	shown = &h->links[8];
	put_link(NULL, shown);
	for (i = 0; i < LISTED; i++) {
		snprintf(name, sizeof(name), "something-else-that-has-a-long-name-and-is-in-the-folder-%u", i);
		put(name, "", 0);
	}
	for (i = 0; i < 8; i++)
		put_link(NULL, &h->links[i]);
	snprintf(wanted, sizeof(wanted), "%s", dir);
	pid = traced_child(read_in_child, 0);
	while (!ptrace(PTRACE_SYSCALL, pid, NULL, NULL) && waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
		if (done)
			continue;
		if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, (void *)sizeof(info), &info) < 0) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			history_close(h);
			print_message("missing: PTRACE_GET_SYSCALL_INFO\n");
			skip();
		}
		/* At the second of them: between the first part of the list and the rest. */
		if (info.op == PTRACE_SYSCALL_INFO_ENTRY && info.entry.nr == SYS_getdents64 && ++lists == 2)
			done = prune_fast(1) ? -1 : 1;
	}
	assert_int_equal(done, 1);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), CHILD_OK);
	assert_files(1 + LISTED);
	history_close(h);
}

/* Pages of the last link that can be read; those that can't are those of links that are gone, and no page is another. */
static uint32_t readable(struct wpt_chain *c, const struct sample_page *shows)
{
	uint8_t got[WPT_PAGE];
	uint32_t i, n = 0;
	int rc;

	for (i = 0; i < SAMPLE_PAGES; i++) {
		rc = wpt_chain_read(c, sample_addr(i), got, sizeof(got));
		if (rc == -WPT_E_CHAIN)
			continue;
		n++;
		if (rc == -WPT_E_UNREADABLE && shows[i].state == SAMPLE_UNREADABLE)
			continue;
		if (rc)
			fail_msg("page %u: %d", i, rc);
		assert_memory_equal(got, shows[i].data, WPT_PAGE);
	}
	return n;
}

/* One that had to close files can't go on with those that are gone, nor takes the full link for the one that had its name. */
static void an_open_chain_shows_what_it_showed_or_says_so(void **state)
{
	struct history *h = history(73, 60);
	uint32_t keep, n, some = 0;
	struct rlimit limit, few;
	struct wpt_chain *c, *all;
	char what[128];
	int rc;

	(void)state;
	for (keep = 2; keep < 58; keep++) {
		clear_dir();
		put_all(h);
		assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
		few = limit;
		few.rlim_cur = 40;
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
		rc = wpt_chain_open(&c, dir);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
		assert_int_equal(rc, 0);
		assert_int_equal(wpt_chain_open(&all, dir), 0);
		assert_int_equal(prune_fast(keep), 0);
		n = readable(c, h->links[59].shows);
		some += n > 0 && n < SAMPLE_PAGES;
		assert_int_equal(sample_check(all, h->links[59].shows, what), 0);
		wpt_chain_close(c);
		wpt_chain_close(all);
		assert_opens(dir, &h->links[59]);
	}
	assert_true(some > 10);
	history_close(h);
}

/* ---- what fails ---- */

static int deny(long nr, int err)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { WPT_ARRAY_SIZE(filter), filter };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) ? -errno : 0;
}

static void a_system_call_that_fails_costs_nothing(void **state)
{
	static const struct {
		long nr;
		int err;
	} calls[] = { { SYS_fsync, EIO }, { SYS_fchmod, EPERM }, { SYS_renameat, EIO }, { SYS_unlinkat, EPERM }, { SYS_write, ENOSPC } };
	struct history *h = history(80, 7);
	uint32_t i, hidden;
	int status;
	pid_t pid;

	(void)state;
	for (i = 0; i < WPT_ARRAY_SIZE(calls); i++) {
		clear_dir();
		put_all(h);
		pid = fork();
		if (!pid)
			_exit(deny(calls[i].nr, calls[i].err) ? CHILD_CANT : prune(2) == -calls[i].err ? CHILD_OK : CHILD_FAILED);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_CANT) {
			history_close(h);
			print_message("missing: seccomp filters\n");
			skip();
		}
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), CHILD_OK);
		assert_int_equal(count_files(&hidden), 7);
		assert_int_equal(hidden, 0);
		assert_points(h, 0 + (calls[i].nr == SYS_unlinkat ? 5 : 0));
		assert_int_equal(prune(2), 0);
		assert_files(2);
		assert_points(h, 5);
	}
	history_close(h);
}

static int pruned_in_child;

static void prune_and_say(int keep)
{
	_exit(prune((uint32_t)keep) == -EIO ? CHILD_OK : CHILD_FAILED);
}

/* Flips a byte of the temporary file. */
static void spoil(size_t at)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	uint8_t byte;
	int fd;

	while ((e = readdir(d))) {
		if (!strstr(e->d_name, ".tmp"))
			continue;
		fd = open(in_dir(e->d_name), O_RDWR);
		assert_true(fd >= 0);
		at %= (size_t)lseek(fd, 0, SEEK_END);
		assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
		byte ^= 4;
		assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
		close(fd);
		pruned_in_child++;
	}
	closedir(d);
}

/* The disk does not give back what was written. */
static void a_full_link_that_is_not_what_was_written_replaces_nothing(void **state)
{
	struct history *h = history(81, 7);
	struct __ptrace_syscall_info info;
	bool entered = false, spoiled;
	int status, n;
	pid_t pid;

	(void)state;
	for (n = 0; n < 40; n++) {
		clear_dir();
		put_all(h);
		spoiled = false;
		pid = traced_child(prune_and_say, 2);
		while (!ptrace(PTRACE_SYSCALL, pid, NULL, NULL) && waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
			if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, (void *)sizeof(info), &info) < 0) {
				kill(pid, SIGKILL);
				waitpid(pid, &status, 0);
				history_close(h);
				print_message("missing: PTRACE_GET_SYSCALL_INFO\n");
				skip();
			}
			if (info.op == PTRACE_SYSCALL_INFO_EXIT && entered && !spoiled) {
				spoil((size_t)n * 977);
				spoiled = true;
			}
			entered = info.op == PTRACE_SYSCALL_INFO_ENTRY && info.entry.nr == SYS_fsync;
		}
		assert_true(spoiled);
		if (!WIFEXITED(status) || WEXITSTATUS(status) != CHILD_OK)
			fail_msg("byte %d: not noticed", n * 977);
		assert_files(7);
		assert_points(h, 0);
	}
	assert_int_equal(pruned_in_child, 40);
	history_close(h);
}

/* It is said before all that lies in the folder is listed. */
static void a_locked_folder_is_not_listed(void **state)
{
	struct history *h = history(83, 5);
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), lock = wpt_store_lock(fd), status;
	pid_t pid;

	(void)state;
	put_all(h);
	assert_true(lock > 0);
	pid = fork();
	if (!pid)
		_exit(deny(SYS_getdents64, EIO) ? CHILD_CANT : prune(2) == -WPT_E_LOCKED ? CHILD_OK : CHILD_FAILED);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(lock);
	close(fd);
	history_close(h);
	if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_CANT) {
		print_message("missing: seccomp filters\n");
		skip();
	}
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), CHILD_OK);
}

static void prune_and_miss(int keep)
{
	_exit(prune((uint32_t)keep) == -ENOENT ? CHILD_OK : CHILD_FAILED);
}

/* The folder is moved when it was locked, and another has its name, which is not locked. */
static void only_the_folder_that_is_locked_is_pruned(void **state)
{
	struct history *h = history(84, 5);
	struct __ptrace_syscall_info info;
	const struct wpt_prune_params p = { .chain = dir, .sync = true };
	struct wpt_prune_params by_fd;
	struct wpt_prune_options o = { .size = sizeof(o), .keep = 2, .nr_threads = 1 };
	char moved[sizeof(dir) + 8], command[2 * sizeof(moved)];
	int status, locks = 0, fd;
	bool done = false;
	pid_t pid;

	(void)state;
	put_all(h);
	snprintf(moved, sizeof(moved), "%s-moved", dir);
	pid = traced_child(prune_and_miss, 2);
	while (!ptrace(PTRACE_SYSCALL, pid, NULL, NULL) && waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
		if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, (void *)sizeof(info), &info) < 0) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			history_close(h);
			print_message("missing: PTRACE_GET_SYSCALL_INFO\n");
			skip();
		}
		if (info.op == PTRACE_SYSCALL_INFO_ENTRY && info.entry.nr == SYS_flock)
			locks++;
		if (info.op != PTRACE_SYSCALL_INFO_EXIT || !locks || done)
			continue;
		done = true;
		assert_int_equal(rename(dir, moved), 0);
		assert_int_equal(mkdir(dir, 0700), 0);
		put_all(h);
	}
	assert_true(done && WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), CHILD_OK);
	assert_files(5);
	assert_points(h, 0);
	/* And with a descriptor of the caller's. */
	by_fd = p;
	by_fd.dir_fd = fd = open(moved, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(wpt_prune(&by_fd, &o, NULL), -ENOENT);
	assert_files(5);
	close(fd);
	by_fd.dir_fd = fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(wpt_prune(&by_fd, &o, NULL), 0);
	assert_files(2);
	close(fd);
	snprintf(command, sizeof(command), "rm -rf %s", moved);
	assert_int_equal(system(command), 0);
	history_close(h);
}

static uint32_t syncs, failing_sync;

/* In the place of libc's. */
int fsync(int fd)
{
	if (++syncs != failing_sync)
		return (int)syscall(SYS_fsync, fd);
	errno = EIO;
	return -1;
}

/* It fails once: before the full link has its name nothing is changed, after it all that is kept is there; and it is said each time. */
static void every_fsync_counts(void **state)
{
	struct history *h = history(85, 7);
	uint32_t i, n, hidden, again;
	int rc;

	(void)state;
	/* One of the file, one for its name, and one for each link that goes; a full link that is there already is made durable again. */
	for (again = 0; again < 2; again++) {
		for (n = 1; n <= 8; n++) {
			clear_dir();
			put_all(h);
			if (again) {
				assert_int_equal(prune_fast(2), 0);
				for (i = 0; i < 5; i++)
					put_link(NULL, &h->links[i]);
			}
			syncs = 0;
			failing_sync = n;
			rc = prune(2);
			failing_sync = 0;
			if (n == 8) {
				assert_int_equal(rc, 0);
				assert_int_equal(syncs, 7);
				continue;
			}
			assert_int_equal(rc, -EIO);
			assert_int_equal(syncs, n);
			assert_int_equal(count_files(&hidden), n <= 2 ? 7 : 7 - (n - 2));
			assert_int_equal(hidden, 0);
			assert_points(h, n > 1 || again ? 5 : 0);
			assert_int_equal(prune(2), 0);
			assert_files(2);
			assert_points(h, 5);
		}
	}
	history_close(h);
}

/* fsync of the full link, its name, fsync of the folder; and only then the first link goes, each followed by an fsync. */
static void nothing_goes_before_the_full_link_is_durable(void **state)
{
	struct history *h = history(82, 6);
	struct __ptrace_syscall_info info;
	char order[64] = "";
	size_t n = 0;
	int status;
	pid_t pid;

	(void)state;
	put_all(h);
	pid = traced_child(prune_in_child, 2);
	while (!ptrace(PTRACE_SYSCALL, pid, NULL, NULL) && waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
		if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, (void *)sizeof(info), &info) < 0) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			history_close(h);
			print_message("missing: PTRACE_GET_SYSCALL_INFO\n");
			skip();
		}
		if (info.op != PTRACE_SYSCALL_INFO_ENTRY || n >= sizeof(order) - 1)
			continue;
		if (info.entry.nr == SYS_fsync)
			order[n++] = 's';
		else if (info.entry.nr == SYS_renameat || info.entry.nr == SYS_renameat2)
			order[n++] = 'r';
		else if (info.entry.nr == SYS_unlinkat)
			order[n++] = 'u';
	}
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	assert_string_equal(order, "srsusususus");
	history_close(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_is_kept_shows_what_it_showed, setup, teardown),
		cmocka_unit_test_setup_teardown(up_to_a_link_in_the_midst, setup, teardown),
		cmocka_unit_test_setup_teardown(a_dry_run_only_says_it, setup, teardown),
		cmocka_unit_test_setup_teardown(every_link_is_told_before_anything_is_done, setup, teardown),
		cmocka_unit_test_setup_teardown(a_cancelled_prune_changes_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(what_a_branch_needs_stays, setup, teardown),
		cmocka_unit_test_setup_teardown(another_chain_stays, setup, teardown),
		cmocka_unit_test_setup_teardown(files_by_other_names_are_never_removed, setup, teardown),
		cmocka_unit_test_setup_teardown(a_copy_of_a_link_keeps_its_parents, setup, teardown),
		cmocka_unit_test_setup_teardown(a_merged_file_of_somebody_replaces_no_link, setup, teardown),
		cmocka_unit_test_setup_teardown(a_merged_link_keeps_its_owner_and_mode, setup, teardown),
		cmocka_unit_test_setup_teardown(what_can_not_be_read_may_need_it, setup, teardown),
		cmocka_unit_test_setup_teardown(damage_is_not_merged, setup, teardown),
		cmocka_unit_test_setup_teardown(what_a_prune_left_is_removed_by_the_next, setup, teardown),
		cmocka_unit_test_setup_teardown(links_without_a_base_stay_if_nothing_was_pruned, setup, teardown),
		cmocka_unit_test_setup_teardown(lazy_waits_until_it_pays, setup, teardown),
		cmocka_unit_test_setup_teardown(one_writer_at_a_time, setup, teardown),
		cmocka_unit_test_setup_teardown(what_does_not_fit_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(killed_at_every_system_call_all_that_is_kept_can_be_opened, setup, teardown),
		cmocka_unit_test_setup_teardown(whoever_reads_meanwhile_finds_all_that_is_kept, setup, teardown),
		cmocka_unit_test_setup_teardown(a_reader_that_is_overtaken_reads_what_it_asked_for, setup, teardown),
		cmocka_unit_test_setup_teardown(a_link_that_becomes_full_while_it_is_listed_is_found, setup, teardown),
		cmocka_unit_test_setup_teardown(an_open_chain_shows_what_it_showed_or_says_so, setup, teardown),
		cmocka_unit_test_setup_teardown(a_system_call_that_fails_costs_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(a_full_link_that_is_not_what_was_written_replaces_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(a_locked_folder_is_not_listed, setup, teardown),
		cmocka_unit_test_setup_teardown(only_the_folder_that_is_locked_is_pruned, setup, teardown),
		cmocka_unit_test_setup_teardown(every_fsync_counts, setup, teardown),
		cmocka_unit_test_setup_teardown(nothing_goes_before_the_full_link_is_durable, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
