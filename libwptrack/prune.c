/* SPDX-License-Identifier: MIT */
/*
 * A chain in a folder loses its oldest links. In this order, so that whenever it ends those that are kept can be opened and show what they showed:
 *
 * 1. The oldest link that is kept is written as a full one under a temporary name, is durable, and was read back and compared with the chain.
 * 2. It takes the name of its file, at once: whoever opens that name finds the one or the other. That is durable before
 * 3. the links before it go, the oldest first, each durably. So what is left of them, if it ends in between, still is the line of the full
 *    link's parents without a gap: that is how the next prune tells it from links of somebody else, which it must not remove.
 *
 * The caller has the folder's lock, so that no link comes or goes meanwhile but those of other programs (wpsnap save).
 */
#include "prune.h"

#include "chain.h"
#include "layer.h"
#include "locate.h"
#include "store.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CACHE_BYTES ((size_t)4 << 20)
#define LAZY_LINKS 8u
#define NAME_BYTES 64

struct prune {
	const struct wpt_prune_params *p;
	int dir_fd;                     /* of the folder that is locked; -1: none is, nothing is to be done */
	struct wpt_prune_options o;
	struct wpt_merge_options mo;
	struct wpt_prune_stats stats;
	struct wpt_locator l;
	struct wpt_cache *cache;
	const struct wpt_place **line;  /* the chain from its end to the oldest of its parents that is there */
	uint32_t nr_line, nr_points;    /* of these, that can be restored */
	uint32_t cut;                   /* the oldest that is kept: index in the line */
	bool merge;                     /* it is to become full */
	char cut_name[NAME_BYTES];
	uint8_t *actions;               /* of places; 0: none of our business */
	struct wpt_chain *chain;        /* up to the cut */
	uint64_t done, total;           /* of the progress: bytes of earlier steps, and in all */
};

static const struct wpt_identity *identity(const struct wpt_place *p)
{
	return &p->link.head.identity;
}

static bool is_full(const struct wpt_place *p)
{
	return p->link.head.flags & WPT_FMT_FULL;
}

static uint64_t length(const struct wpt_place *p)
{
	return p->link.end - p->link.start;
}

static void hex(char out[33], const uint8_t id[16])
{
	int i;

	for (i = 0; i < 16; i++)
		snprintf(out + 2 * i, 3, "%02x", id[i]);
}

/* The name that a link has in a folder. */
static void link_name(char name[NAME_BYTES], const struct wpt_place *p)
{
	char id[33];

	hex(id, identity(p)->link_id);
	snprintf(name, NAME_BYTES, "%010llu-%s.wps", (unsigned long long)identity(p)->sequence, id);
}

static bool has_own_name(const struct wpt_place *p)
{
	char name[NAME_BYTES];

	link_name(name, p);
	return strcmp(p->name, name) == 0;
}

static uint8_t *action_of(const struct prune *k, const struct wpt_place *p)
{
	return &k->actions[p - k->l.places];
}

/* ---- what is there ---- */

/* The same link as `p`, number `i` of several; NULL behind the last. */
static const struct wpt_place *same_link(const struct prune *k, const struct wpt_place *p, uint32_t *i)
{
	const struct wpt_place *q;

	for (; *i < k->l.nr_sorted; ++*i) {
		q = &k->l.places[k->l.by_id[*i]];
		if (memcmp(identity(q)->link_id, identity(p)->link_id, 16))
			return NULL;
		if (!memcmp(identity(q), identity(p), sizeof(*identity(p))) && !memcmp(q->link.trailer.digest, p->link.trailer.digest, 16)) {
			++*i;
			return q;
		}
	}
	return NULL;
}

/* Of a link that is there several times the one that a folder's writer wrote. */
static const struct wpt_place *own_of(const struct prune *k, const struct wpt_place *p)
{
	uint32_t i = wpt_locate_id(&k->l, identity(p)->link_id);
	const struct wpt_place *q;

	while ((q = same_link(k, p, &i)))
		if (has_own_name(q))
			return q;
	return p;
}

static int find_line(struct prune *k, const struct wpt_place *tip)
{
	const struct wpt_place *p;
	uint32_t n = 0, i;

	for (p = tip; p; p = wpt_locate_parent(&k->l, p))
		n++;
	k->line = calloc(n, sizeof(*k->line));
	k->actions = calloc(k->l.nr, 1);
	if (!k->line || !k->actions)
		return -ENOMEM;
	for (p = tip; p; p = wpt_locate_parent(&k->l, p))
		k->line[k->nr_line++] = p;
	/* Those that have all their parents down to a full link come first. */
	for (i = 0; i < k->nr_line; i++)
		if (is_full(k->line[i]))
			k->nr_points = i + 1;
	return 0;
}

/*
 * A file that can't be read may be a link that needs what would be removed: nothing is, then. Links of other programs are looked at, whatever
 * their files are called.
 */
static int look(struct prune *k)
{
	const struct wpt_place **order = NULL;
	struct stat a, b;
	uint32_t nr = 0;
	int rc = wpt_locate(&k->l, k->p->chain);

	if (!rc && !k->l.folder)
		rc = -ENOTDIR;
	if (!rc && k->dir_fd >= 0 && (fstat(k->dir_fd, &a) || fstat(wpt_pool_dir(k->l.pool), &b)))
		rc = -errno;
	/* The lock is of another folder, if one was moved. */
	if (!rc && k->dir_fd >= 0 && (a.st_dev != b.st_dev || a.st_ino != b.st_ino))
		rc = -ENOENT;
	if (!rc)
		rc = wpt_locate_others(&k->l);
	if (!rc)
		rc = wpt_cache_open(&k->cache, CACHE_BYTES);
	if (!rc)
		rc = wpt_locate_chain(&k->l, k->cache, &order, &nr);
	if (!rc)
		rc = k->l.error ? k->l.error : k->l.other_error;
	if (!rc)
		rc = find_line(k, order[nr - 1]);
	free(order);
	return rc;
}

/* ---- what is to be done ---- */

/*
 * `p` is a parent of a link that stays. Its own copy stays beside a file of somebody's that is full: that one was not read, and may go at any time.
 * Returns the copy whose parents are needed next, NULL if nothing was changed.
 */
static const struct wpt_place *keep_copies(struct prune *k, const struct wpt_place *p)
{
	const struct wpt_place *next = NULL, *q;
	uint32_t i = wpt_locate_id(&k->l, identity(p)->link_id);

	if (*action_of(k, p) == WPT_PRUNE_FOREIGN) {
		*action_of(k, p) = WPT_PRUNE_NEEDED;
		next = p;
	}
	while ((q = same_link(k, p, &i))) {
		if (*action_of(k, q) != WPT_PRUNE_REMOVE)
			continue;
		*action_of(k, q) = WPT_PRUNE_NEEDED;
		if (!next || is_full(next))
			next = q;
	}
	return next;
}

/* What the links that stay need, down to full ones, stays. */
static void keep_needed(struct prune *k)
{
	const struct wpt_place *p;
	uint32_t i;

	for (i = 0; i < k->l.nr; i++) {
		p = &k->l.places[i];
		if (k->actions[i] == WPT_PRUNE_REMOVE || strcmp(p->name, k->cut_name) == 0)
			continue;
		while (p && !is_full(p)) {
			p = wpt_locate_parent(&k->l, p);
			if (p)
				p = keep_copies(k, p);
		}
	}
}

static void plan(struct prune *k)
{
	const struct wpt_place *p, *cut;
	uint32_t i, at;

	k->cut = WPT_MIN(k->nr_points, k->o.keep) - 1;
	cut = own_of(k, k->line[k->cut]);
	k->line[k->cut] = cut;
	/* In a file of somebody's own it stays what it is, and keeps its parents. */
	k->merge = has_own_name(cut) && !is_full(cut);
	if (k->merge)
		link_name(k->cut_name, cut);
	for (i = 0; i <= k->cut; i++)
		*action_of(k, k->line[i]) = WPT_PRUNE_KEEP;
	/* All that is there can be kept; what has lost its parents is what a prune that did not end has left, or somebody took them away. */
	if (k->nr_points <= k->o.keep && !(is_full(cut) && cut->link.head.flags & WPT_FMT_MERGED))
		return;
	for (; i < k->nr_line; i++) {
		at = wpt_locate_id(&k->l, identity(k->line[i])->link_id);
		while ((p = same_link(k, k->line[i], &at)))
			*action_of(k, p) = has_own_name(p) ? WPT_PRUNE_REMOVE : WPT_PRUNE_FOREIGN;
	}
	keep_needed(k);
}

static bool pays(const struct prune *k)
{
	uint64_t bytes = 0;
	uint32_t i;

	if (!(k->o.flags & WPT_PRUNE_LAZY) || !k->merge || k->nr_points - k->o.keep >= WPT_MAX(k->o.keep, LAZY_LINKS))
		return true;
	for (i = k->cut; i < k->nr_line && !is_full(k->line[i]); i++)
		bytes += length(k->line[i]);
	return i == k->nr_line || bytes >= length(k->line[i]) / 2;
}

static void count(struct prune *k)
{
	uint32_t i;

	for (i = 0; i < k->l.nr; i++) {
		k->stats.nr_removed += k->actions[i] == WPT_PRUNE_REMOVE;
		k->stats.nr_needed += k->actions[i] == WPT_PRUNE_NEEDED || k->actions[i] == WPT_PRUNE_FOREIGN;
		if (k->actions[i] == WPT_PRUNE_REMOVE)
			k->stats.bytes_removed += length(&k->l.places[i]);
	}
	k->stats.sequence = identity(k->line[k->cut])->sequence;
	k->stats.nr_kept = k->cut + 1;
	if (!k->stats.nr_removed || !pays(k)) {
		/* Nothing is done. */
		for (i = 0; i < k->l.nr; i++)
			if (k->actions[i] == WPT_PRUNE_REMOVE)
				k->actions[i] = WPT_PRUNE_KEEP;
		k->stats.sequence = identity(k->line[k->nr_points - 1])->sequence;
		k->stats.nr_kept = k->nr_points;
		k->stats.nr_removed = k->stats.bytes_removed = 0;
		return;
	}
	if (!k->merge)
		return;
	*action_of(k, k->line[k->cut]) = WPT_PRUNE_MERGE;
	k->stats.bytes_removed += length(k->line[k->cut]);
	for (i = k->cut; i + 1 < k->nr_line && !is_full(k->line[i]); i++)
		;
	k->stats.nr_merged = i - k->cut + 1;
}

static int tell_one(struct prune *k, const struct wpt_place *p)
{
	struct wpt_prune_link info = { .size = sizeof(info), .sequence = identity(p)->sequence, .action = *action_of(k, p), .length = length(p) };

	hex(info.id, identity(p)->link_id);
	snprintf(info.file, sizeof(info.file), "%s", p->name);
	return k->o.each(k->o.arg, &info);
}

/* Of links that are too old all copies, of the others the one. */
static int tell(struct prune *k)
{
	const struct wpt_place *p;
	uint32_t i, at;
	int rc = 0;

	for (i = k->nr_line; i-- && k->o.each && !rc;) {
		at = wpt_locate_id(&k->l, identity(k->line[i])->link_id);
		while (!rc && (p = same_link(k, k->line[i], &at)))
			if (*action_of(k, p))
				rc = tell_one(k, p);
	}
	return rc;
}

/* ---- the full link ---- */

/* Bytes that are merged, and those that are read back, are two halves of it. */
static int progress(void *arg, uint64_t done, uint64_t total)
{
	struct prune *k = arg;
	double part = total ? (double)WPT_MIN(done, total) / (double)total : 0;

	return k->o.progress ? k->o.progress(k->o.arg, k->done + (uint64_t)(part * (double)k->total), 2 * k->total) : 0;
}

static bool same_tip(const struct wpt_chain *a, const struct wpt_chain *b)
{
	struct wpt_identity ia, ib;
	struct wpt_origin oa, ob;
	uint8_t da[16], db[16], ka[32], kb[32];

	wpt_chain_tip(a, &ia, da, &oa, ka);
	wpt_chain_tip(b, &ib, db, &ob, kb);
	return !memcmp(&ia, &ib, sizeof(ia)) && !memcmp(da, db, 16) && !memcmp(ka, kb, 32);
}

/* What was written is read again, every byte, and says of every page what the chain says, before anything is given up for it. */
static int check(void *arg, int dir_fd, const char *temp)
{
	struct prune *k = arg;
	struct wpt_chain *full = NULL;
	int rc = wpt_chain_open_at(&full, dir_fd, temp);

	k->done = k->total;
	if (!rc)
		rc = wpt_chain_verify(full, progress, k);
	if (!rc && (wpt_chain_nr_links(full) != 1 || !same_tip(full, k->chain)))
		rc = -EIO;
	if (!rc)
		rc = wpt_chain_diff(k->chain, full, NULL, NULL);
	wpt_chain_close(full);
	return rc > 0 || rc == -WPT_E_DAMAGED || rc == -WPT_E_TRUNCATED || rc == -WPT_E_NOT_SNAPSHOT ? -EIO : rc;
}

static int open_cut(struct prune *k)
{
	const struct wpt_place *cut = k->line[k->cut];
	struct wpt_identity tip;
	struct wpt_origin origin;
	uint8_t digest[16], key[32];
	char *path, id[33];
	int rc;

	hex(id, identity(cut)->link_id);
	if (asprintf(&path, "%s@id:%s", k->l.path, id) < 0)
		return -ENOMEM;
	rc = wpt_chain_open(&k->chain, path);
	free(path);
	if (rc)
		return rc;
	wpt_chain_tip(k->chain, &tip, digest, &origin, key);
	return memcmp(&tip, identity(cut), sizeof(tip)) || memcmp(digest, cut->link.trailer.digest, 16) ? -WPT_E_CHAIN : 0;
}

static int merge_cut(struct prune *k)
{
	struct wpt_sink *sink = NULL;
	int rc = wpt_sink_replace(&sink, wpt_pool_dir(k->l.pool), k->cut_name, k->p->sync, check, k);

	if (!rc)
		rc = wpt_chain_merge_to(k->chain, sink, &k->mo, &k->stats.bytes_written);
	if (!rc)
		rc = sink->commit(sink);
	if (sink)
		sink->close(sink);
	return rc;
}

/* A full link that somebody else made, or an earlier prune: it is to be trusted with all, and is on the disk. */
static int trust_cut(struct prune *k)
{
	int rc;

	k->done = k->total;
	rc = wpt_chain_verify(k->chain, progress, k);
	if (!rc && k->p->sync)
		rc = wpt_store_sync(wpt_pool_dir(k->l.pool), k->line[k->cut]->name);
	if (!rc && k->p->sync)
		rc = wpt_store_sync(wpt_pool_dir(k->l.pool), ".");
	return rc;
}

/* ---- removal ---- */

static int compare_sequences(const void *a, const void *b)
{
	uint64_t x = identity(*(const struct wpt_place *const *)a)->sequence, y = identity(*(const struct wpt_place *const *)b)->sequence;

	return (x > y) - (x < y);
}

static int remove_old(struct prune *k)
{
	const struct wpt_place **old = calloc(k->l.nr, sizeof(*old));
	int dir = wpt_pool_dir(k->l.pool), rc = 0;
	uint32_t i, nr = 0;

	if (!old)
		return -ENOMEM;
	for (i = 0; i < k->l.nr; i++)
		if (k->actions[i] == WPT_PRUNE_REMOVE)
			old[nr++] = &k->l.places[i];
	qsort(old, nr, sizeof(*old), compare_sequences);
	for (i = 0; i < nr && !rc; i++) {
		if (unlinkat(dir, old[i]->name, 0) && errno != ENOENT)
			rc = -errno;
		if (!rc && k->p->sync)
			rc = wpt_store_sync(dir, ".");
	}
	free(old);
	return rc;
}

static int carry_out(struct prune *k)
{
	struct wpt_chain_info info = { .size = sizeof(info) };
	int rc;

	if (!k->stats.nr_removed || k->o.flags & WPT_PRUNE_DRY_RUN)
		return 0;
	rc = open_cut(k);
	if (!rc)
		rc = wpt_chain_info(k->chain, &info);
	k->total = info.bytes_tracked;
	if (!rc)
		rc = k->merge ? merge_cut(k) : trust_cut(k);
	return rc ? rc : remove_old(k);
}

static int prune_locked(struct prune *k)
{
	uint64_t started = wpt_now_ns();
	int rc = look(k);

	if (!rc) {
		plan(k);
		count(k);
		rc = tell(k);
	}
	if (!rc)
		rc = carry_out(k);
	k->stats.total_ns = wpt_now_ns() - started;
	wpt_chain_close(k->chain);
	free(k->line);
	free(k->actions);
	wpt_cache_close(k->cache);
	wpt_locate_close(&k->l);
	return rc;
}

/* Locks the folder, which is open for as long as that; temporary files that a prune left which was killed go by that. */
static int lock_folder(struct prune *k, int *lock)
{
	k->dir_fd = wpt_locate_folder(k->p->chain);
	if (k->dir_fd < 0)
		return k->dir_fd;
	*lock = wpt_store_lock(k->dir_fd);
	return WPT_MIN(*lock, 0);
}

int wpt_prune(const struct wpt_prune_params *p, const struct wpt_prune_options *options, struct wpt_prune_stats *stats)
{
	struct prune k = { .p = p, .dir_fd = p->dir_fd, .stats.size = sizeof(k.stats) };
	int lock = -1, rc = wpt_options_copy(&k.o, sizeof(k.o), options, sizeof(k.o));

	if (!rc && stats && stats->size < sizeof(*stats))
		rc = -EINVAL;
	if (!rc && (!k.o.keep || k.o.flags & ~(uint32_t)(WPT_PRUNE_DRY_RUN | WPT_PRUNE_LAZY)))
		rc = -EINVAL;
	k.mo = (struct wpt_merge_options){ .size = sizeof(k.mo), .level = k.o.level ? k.o.level : p->level, .nr_threads = k.o.nr_threads,
					   .progress = progress, .arg = &k };
	if (!rc)
		rc = wpt_merge_options_copy(&k.mo, &(struct wpt_merge_options){ k.mo.size, k.mo.level, k.mo.nr_threads, k.mo.progress, k.mo.arg });
	if (!rc && p->dir_fd < 0 && !(k.o.flags & WPT_PRUNE_DRY_RUN))
		rc = lock_folder(&k, &lock);
	if (!rc)
		rc = prune_locked(&k);
	if (lock >= 0)
		close(lock);
	if (k.dir_fd >= 0 && k.dir_fd != p->dir_fd)
		close(k.dir_fd);
	if (!rc && stats)
		rc = wpt_info_copy(stats, &k.stats, sizeof(k.stats), sizeof(k.stats));
	return rc;
}

int wpt_chain_prune(const char *chain, const struct wpt_prune_options *o, struct wpt_prune_stats *stats)
{
	const struct wpt_prune_params p = { .chain = chain, .dir_fd = -1, .sync = true };

	return wpt_prune(&p, o, stats);
}
