/* SPDX-License-Identifier: MIT */
/*
 * The writer of a chain: one link after the other about what a tracker tracks.
 *
 * A link's life: sink and layer writer are opened while the target runs; [stop, look, copy, resume]; then compression ends, the index is
 * written, the sink committed. Only after that does the ledger learn what the chain says now. Every failure before it gives everything back: dirty
 * pages stay dirty, spans that had to be compared stay unknown, and pages that the lost link mentioned must be mentioned by the next.
 *
 * Between quiesce and resume of the own process nothing here calls malloc, stdio or the log: messages wait until the target runs again.
 */
#include "chain.h"
#include "copy.h"
#include "cow.h"
#include "huge.h"
#include "layer.h"
#include "locate.h"
#include "notes.h"
#include "own.h"
#include "prune.h"
#include "store.h"
#include "take.h"
#include "tracker.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_STAGING ((uint64_t)256 << 20)
#define MIN_STAGING ((uint64_t)4 << 20)
#define DEFAULT_ROUNDS 16u
#define DEFAULT_PAUSE_US 1000u
#define DEFAULT_PAGE_NS 800u

static void hex(char *out, const uint8_t *bytes, size_t n)
{
	static const char digits[] = "0123456789abcdef";
	size_t i;

	for (i = 0; i < n; i++) {
		out[2 * i] = digits[bytes[i] >> 4];
		out[2 * i + 1] = digits[bytes[i] & 15];
	}
	out[2 * n] = '\0';
}

static int random_bytes(void *buf, size_t len)
{
	ssize_t got;

	do
		got = getrandom(buf, len, 0);
	while (got < 0 && errno == EINTR);
	return got == (ssize_t)len ? 0 : -EIO;
}

static int origin_of(struct wpt_tracker *t, struct wpt_origin *origin)
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t got = -1;

	memset(origin, 0, sizeof(*origin));
	if (fd >= 0) {
		got = read(fd, origin->boot_id, 36);
		close(fd);
	}
	if (got != 36)
		memset(origin->boot_id, 0, sizeof(origin->boot_id));
	origin->pid = wpt_target_pid(t->target);
	origin->start_time = wpt_target_start_time(t->target);
	wpt_target_comm(t->target, origin->comm);
	return 0;
}

static bool same_origin(const struct wpt_origin *a, const struct wpt_origin *b)
{
	return a->pid == b->pid && a->start_time == b->start_time && strcmp(a->boot_id, b->boot_id) == 0;
}

/* ---- opening ---- */

static int load_known(void *arg, uint64_t addr, uint64_t nr_pages, enum wpt_known known, const struct wpt_hash *hashes)
{
	struct wpt_writer *w = arg;
	uint64_t i;
	int err = 0;

	for (i = 0; i < nr_pages && known != WPT_KNOWN_ZERO && !err; i++)
		err = wpt_ledger_load(w->t->ledger, addr + i * WPT_PAGE, known, hashes ? &hashes[i] : NULL);
	return err;
}

/* Continues the chain at `path`: its tip is the parent of the next link, and what it says of each page is known. */
static int adopt(struct wpt_writer *w, const char *path)
{
	struct wpt_identity tip;
	struct wpt_origin origin;
	struct wpt_chain *c = NULL;
	uint8_t digest[16], key[32];
	int err = wpt_chain_open(&c, path);

	if (err)
		return err;
	wpt_chain_tip(c, &tip, digest, &origin, key);
	if (!same_origin(&origin, &w->origin))
		err = -WPT_E_MISMATCH;
	else
		err = wpt_chain_walk(c, 0, UINT64_MAX, load_known, w);
	if (!err) {
		w->tip = tip;
		memcpy(w->tip_digest, digest, sizeof(digest));
		memcpy(w->key, key, sizeof(key));
		w->append_at = wpt_chain_end_offset(c);
		w->has_tip = true;
	} else {
		wpt_ledger_reset(w->t->ledger);
	}
	wpt_chain_close(c);
	return err;
}

/* A chain begins: what its links are to be durable in must be so itself. */
static int begin_chain(struct wpt_writer *w)
{
	w->append_at = 0;
	return w->o.flags & WPT_WRITER_NO_SYNC ? 0 : wpt_store_sync_name(w->path);
}

static int open_folder(struct wpt_writer *w)
{
	int err;

	if (mkdir(w->path, 0700) != 0 && errno != EEXIST)
		return -errno;
	w->dir = open(w->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (w->dir < 0)
		return -errno;
	w->lock = wpt_store_lock(w->dir);
	if (w->lock < 0)
		return w->lock;
	err = adopt(w, w->path);
	if (err == -ENOENT || (err == -WPT_E_MISMATCH && w->o.flags & WPT_WRITER_NEW))
		return begin_chain(w);
	return err;
}

/* Whether there is no whole link in the file, but the beginning of one. A chain may be called truncated for a file beside it, too. */
static bool is_torn_base(const char *path)
{
	struct wpt_locator l = { 0 };
	bool torn = wpt_locate(&l, path) == -WPT_E_TRUNCATED && !l.nr;

	wpt_locate_close(&l);
	return torn;
}

static int open_append(struct wpt_writer *w)
{
	struct stat st;
	int err;

	w->fd = open(w->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (w->fd < 0)
		return -errno;
	err = wpt_store_lock(w->fd);
	if (err < 0)
		return err;
	if (fstat(w->fd, &st) != 0)
		return -errno;
	if (st.st_size == 0)
		return begin_chain(w);
	err = adopt(w, w->path);
	/* A file that holds nothing but the torn beginning of a base begins anew. */
	return err == -WPT_E_TRUNCATED && is_torn_base(w->path) ? begin_chain(w) : err;
}

static int writer_options(struct wpt_writer_options *o, const struct wpt_writer_options *from)
{
	int err = wpt_options_copy(o, sizeof(*o), from, sizeof(*o));

	if (err)
		return err;
	if (!o->staging_bytes)
		o->staging_bytes = DEFAULT_STAGING;
	if (!o->level)
		o->level = 1;
	if (!o->nr_threads) {
		long cpus = sysconf(_SC_NPROCESSORS_ONLN);

		o->nr_threads = cpus < 1 ? 1 : (uint32_t)WPT_MIN(cpus, 8);
	}
	if (o->dest > WPT_DEST_FD || o->hot_set > WPT_HOT_SET_AUTO || !wpt_layer_level_valid(o->level) || o->nr_threads > 256 ||
	    o->staging_bytes < MIN_STAGING || (o->parent && o->dest != WPT_DEST_FILE) ||
	    (o->flags & ~(uint32_t)(WPT_WRITER_NEW | WPT_WRITER_NO_SYNC | WPT_WRITER_CMDLINE | WPT_WRITER_COLLAPSE)))
		return -EINVAL;
	return 0;
}

static int writer_start(struct wpt_writer *w, const char *path)
{
	int err = 0;

	if (path) {
		w->path = strdup(path);
		if (!w->path)
			return -ENOMEM;
	}
	origin_of(w->t, &w->origin);
	err = random_bytes(w->key, sizeof(w->key));
	if (!err)
		err = random_bytes(w->tip.chain_id, sizeof(w->tip.chain_id));
	if (err)
		return err;
	switch ((enum wpt_dest)w->o.dest) {
	case WPT_DEST_FOLDER:
		return open_folder(w);
	case WPT_DEST_FILE:
		return w->o.parent ? adopt(w, w->o.parent) : 0;
	case WPT_DEST_APPEND:
		return open_append(w);
	case WPT_DEST_FD:
		w->fd = w->o.fd;
		return 0;
	}
	return -EINVAL;
}

int wpt_writer_open(struct wpt_writer **out, struct wpt_tracker *t, const char *path, const struct wpt_writer_options *options)
{
	struct wpt_writer_options o;
	struct wpt_writer *w;
	int err = wpt_tracker_check(t);

	if (!err)
		err = writer_options(&o, options);
	if (!err && !path != (o.dest == WPT_DEST_FD))
		err = -EINVAL;
	if (err)
		return err;
	pthread_mutex_lock(&t->lock);
	err = t->writer_open ? -WPT_E_LOCKED : 0;
	t->writer_open = true;
	pthread_mutex_unlock(&t->lock);
	if (err)
		return err;
	w = calloc(1, sizeof(*w));
	if (!w) {
		t->writer_open = false;
		return -ENOMEM;
	}
	w->t = t;
	w->o = o;
	w->dir = w->fd = w->lock = -1;
	w->all = true;
	w->ranges_text.elem_size = w->maps_text.elem_size = w->notes_text.elem_size = 1;
	wpt_ledger_reset(t->ledger);
	err = writer_start(w, path);
	w->o.parent = NULL; /* the caller's string */
	if (!err && o.flags & WPT_WRITER_COLLAPSE)
		err = wpt_huge_open(t);
	if (err) {
		wpt_writer_close(w);
		return err;
	}
	*out = w;
	return 0;
}

void wpt_writer_close(struct wpt_writer *w)
{
	if (!w)
		return;
	if (wpt_tracker_check(w->t) == 0) {
		pthread_mutex_lock(&w->t->lock);
		w->t->writer_open = false;
		wpt_huge_close(w->t);
		pthread_mutex_unlock(&w->t->lock);
	}
	if (w->lock >= 0)
		close(w->lock);
	if (w->dir >= 0)
		close(w->dir);
	if (w->fd >= 0 && w->o.dest != WPT_DEST_FD)
		close(w->fd);
	wpt_vec_free(&w->ranges_text);
	wpt_vec_free(&w->maps_text);
	wpt_vec_free(&w->notes_text);
	wpt_layer_kit_close(w->kit);
	free(w->path);
	free(w);
}

int wpt_writer_prune(struct wpt_writer *w, const struct wpt_prune_options *o, struct wpt_prune_stats *stats)
{
	struct wpt_prune_params p = { .sync = true, .dir_fd = w->dir, .level = w->o.level };
	char chain[64], id[33];
	int err = wpt_tracker_check(w->t);

	if (err)
		return err;
	if (w->o.dest != WPT_DEST_FOLDER)
		return -EINVAL;
	if (!w->has_tip)
		return -ENOENT;
	hex(id, w->tip.link_id, 16);
	/* The folder that was opened, wherever it is by now. */
	snprintf(chain, sizeof(chain), "/proc/self/fd/%d@id:%s", w->dir, id);
	p.chain = chain;
	return wpt_prune(&p, o, stats);
}

/* ---- taking ---- */

static int open_sink(struct wpt_take *k)
{
	struct wpt_writer *w = k->w;
	bool sync = !(w->o.flags & WPT_WRITER_NO_SYNC);
	char id[33];

	switch ((enum wpt_dest)w->o.dest) {
	case WPT_DEST_FOLDER:
		hex(id, k->identity.link_id, 16);
		snprintf(k->name, sizeof(k->name), "%010llu-%s.wps", (unsigned long long)k->identity.sequence, id);
		return wpt_sink_folder(&k->sink, w->dir, k->name, sync);
	case WPT_DEST_FILE:
		return wpt_sink_file(&k->sink, w->path, sync);
	case WPT_DEST_APPEND:
		return wpt_sink_append(&k->sink, w->fd, w->append_at, sync);
	case WPT_DEST_FD:
		return wpt_sink_fd(&k->sink, w->fd, sync);
	}
	return -EINVAL;
}

static int open_layer(struct wpt_take *k)
{
	struct wpt_writer *w = k->w;
	struct wpt_layer_params p = {
		.origin = w->origin,
		.full = !w->has_tip,
		.mode = k->o.mode,
		.ledger = w->t->ledger,
	};
	int err;

	memcpy(p.key, w->key, sizeof(p.key));
	memcpy(k->identity.chain_id, w->tip.chain_id, 16);
	if (w->has_tip) {
		k->identity.sequence = w->tip.sequence + 1;
		memcpy(k->identity.parent_id, w->tip.link_id, 16);
		memcpy(k->identity.parent_digest, w->tip_digest, 16);
	}
	err = random_bytes(k->identity.link_id, 16);
	if (err)
		return err;
	p.identity = k->identity;
	if (!w->kit) {
		err = wpt_layer_kit_open(&w->kit, w->o.staging_bytes, w->o.nr_threads, w->o.level);
		if (err)
			return err;
	}
	p.kit = w->kit;
	err = open_sink(k);
	return err ? err : wpt_layer_writer_open(&k->layer, k->sink, &p);
}

static int pause_target(struct wpt_take *k, uint64_t *since)
{
	if (!k->o.quiesce)
		return wpt_target_stop(k->w->t->target, since);
	*since = wpt_now_ns();
	return k->o.quiesce(k->o.arg);
}

static void resume_target(struct wpt_take *k, uint64_t since)
{
	if (k->o.quiesce)
		k->o.resume(k->o.arg);
	else
		wpt_target_resume(k->w->t->target);
	k->stats.pause_ns = wpt_now_ns() - since;
}

/* Another process that was kept from writing by other means than stopping it. */
static bool still_runs(const struct wpt_take *k)
{
	return k->o.quiesce && !wpt_target_is_self(k->w->t->target);
}

static uint64_t realtime_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Until now. Where it ran while it was taken to stand still, a write between a look and the protection of the page was not seen. */
static int stood_still(struct wpt_tracker *t, int err)
{
	int alive = wpt_target_alive(t->target);

	t->lost |= alive == -WPT_E_STOP_TIMEOUT;
	return err ? err : alive;
}

/* ---- the modes ---- */

/*
 * The order within the pause is the design's: list, register, protect and collect, holes, bypasses, liveness; copy; liveness. `later`: what is
 * dirty is left to be saved when the target runs again, where that can be. What a round staged goes its way then: it may be copied again, but not
 * to its place while the target runs.
 */
static int take_paused(struct wpt_take *k, bool later)
{
	struct wpt_tracker *t = k->w->t;
	uint64_t since;
	int err;

	wpt_take_stage(k);
	if (later)
		wpt_copy_unstage(&k->copy);
	wpt_tracker_share(t);
	err = pause_target(k, &since);
	if (err)
		return err;
	k->time_ns = realtime_ns();
	k->looked_ns = wpt_now_ns();
	if (later)
		wpt_cow_settle(&k->cow);
	err = wpt_tracker_look(t, WPT_LOOK_STOPPED | (k->soon ? WPT_LOOK_SOON : 0) | (still_runs(k) ? WPT_LOOK_RUNS : 0));
	if (!err && k->w->all && !k->stats.nr_rounds)
		err = wpt_tracker_all_unknown(t);
	if (!err)
		err = wpt_take_copy_again(k);
	if (!err && later)
		err = wpt_cow_plan(&k->cow, &k->copy);
	k->copy.round = false;
	k->copy.refuse = k->o.flags & WPT_TAKE_REFUSE;
	if (!err)
		err = wpt_copy_run(&k->copy);
	/* Mode cow may come here twice: those of the instant whose memory the link has. */
	wpt_vec_clear(&k->registers);
	if (!err && k->o.flags & WPT_TAKE_REGISTERS && !wpt_target_is_self(t->target))
		err = wpt_target_registers(t->target, &k->registers);
	err = stood_still(t, err);
	if (!err && k->o.paused)
		err = stood_still(t, k->o.paused(k->o.arg));
	if (!err && later)
		wpt_cow_begin(&k->cow, &k->copy);
	resume_target(k, since);
	k->stats.pages_paused = k->copy.pages_dirty - WPT_MIN(k->copy.pages_dirty, k->cow.pages_later);
	wpt_copy_unstage(&k->copy);
	wpt_layer_hold(k->layer, false);
	return err;
}

static int take_fuzzy(struct wpt_take *k)
{
	int err;

	k->time_ns = realtime_ns();
	k->looked_ns = wpt_now_ns();
	err = wpt_tracker_look(k->w->t, 0);
	if (!err && k->w->all)
		err = wpt_tracker_all_unknown(k->w->t);
	if (!err)
		err = wpt_take_copy_again(k);
	k->copy.check_torn = true;
	k->copy.retries = k->o.retries ? k->o.retries : 3;
	if (!err)
		err = wpt_copy_run(&k->copy);
	if (!err)
		err = wpt_target_alive(k->w->t->target);
	return err;
}

static int take_cow(struct wpt_take *k)
{
	uint64_t pause;
	bool lost = false;
	int err;

	err = wpt_cow_open(&k->cow, k->w->t, k->layer, k->w->o.staging_bytes);
	if (!err)
		err = take_paused(k, true);
	if (!err)
		err = wpt_cow_run(&k->cow, &lost);
	k->stats.pages_cow_copied = k->cow.pages_copied;
	k->stats.staging_waits = k->cow.staging_waits;
	wpt_cow_close(&k->cow);
	k->stats.pages_cow_faults = k->cow.counts.faults;
	k->stats.cow_waits = k->cow.counts.waits;
	wpt_tracker_reap(k->w->t);
	if (err || !lost)
		return err;
	/* Whatever was taken is still: all of it is copied again, at one later instant, and the later copy counts. */
	k->stats.cow_fallback = 1;
	pause = k->stats.pause_ns;
	k->soon = false;
	k->copy.later = NULL;
	k->cow.pages_later = 0;
	err = wpt_layer_drain(k->layer);
	if (!err)
		err = take_paused(k, false);
	k->stats.pause_ns += pause;
	return err;
}

/* ---- finishing ---- */

/* What was skipped and compared, if it is not what the last durable link says; what a chain says that is continued is not known. */
static int add_notes(struct wpt_take *k)
{
	struct wpt_vec text = WPT_VEC(char);
	bool known = k->w->notes_known || !k->w->has_tip;
	int err = wpt_notes_text(k->w->t, &text);

	if (!err && !(known && wpt_text_same(&k->w->notes_text, text.data, text.count))) {
		err = wpt_layer_section(k->layer, WPT_SECTION_NOTES, text.data, text.count);
		if (!err)
			err = wpt_text_set(&k->new_notes, text.data, text.count);
		k->notes_changed = true;
	}
	wpt_vec_free(&text);
	return err;
}

static int add_ranges(struct wpt_take *k)
{
	struct wpt_vec ranges = WPT_VEC(struct wpt_layer_range);
	int err = wpt_notes_ranges(k->w->t, &ranges, &k->new_ranges, &k->stats.nr_skipped);

	if (!err && !ranges.count && !k->w->has_tip)
		err = -ENODATA;
	/* No text is that of no ranges, but also that of ranges that are not known: of a chain that is continued, or for want of memory. */
	if (!err && !(k->w->has_tip && k->new_ranges.count && wpt_text_same(&k->w->ranges_text, k->new_ranges.data, k->new_ranges.count)))
		err = wpt_layer_ranges(k->layer, ranges.data, ranges.count);
	wpt_vec_free(&ranges);
	return err;
}

static int add_cmdline(struct wpt_take *k)
{
	struct wpt_vec text = WPT_VEC(char);
	int err = wpt_notes_cmdline(k->w->t, &text);

	if (!err && text.count)
		err = wpt_layer_section(k->layer, WPT_SECTION_CMDLINE, text.data, text.count);
	wpt_vec_free(&text);
	return err;
}

static int add_sections(struct wpt_take *k)
{
	struct wpt_writer *w = k->w;
	const struct wpt_maps *m = &w->t->maps;
	const char *raw = (const char *)m->text.data + m->raw;
	uint32_t i;
	int err;

	err = add_ranges(k);
	if (!err && !(w->has_tip && wpt_text_same(&w->maps_text, raw, m->raw_len)) && !wpt_target_is_self(w->t->target))
		err = wpt_layer_section(k->layer, WPT_SECTION_MAPPINGS, raw, m->raw_len);
	if (!err && k->registers.count)
		err = wpt_layer_section(k->layer, WPT_SECTION_REGISTERS, k->registers.data, k->registers.count);
	if (!err && w->o.flags & WPT_WRITER_CMDLINE && !w->has_tip)
		err = add_cmdline(k);
	if (!err)
		err = add_notes(k);
	for (i = 0; i < k->o.nr_sections && !err; i++)
		err = wpt_layer_section(k->layer, k->o.sections[i].type, k->o.sections[i].data, k->o.sections[i].len);
	return err;
}

/* The link is durable: what it says is known, and it is the parent of the next. */
static void succeeded(struct wpt_take *k)
{
	struct wpt_writer *w = k->w;
	const struct wpt_maps *m = &w->t->maps;

	wpt_tracker_forget_uncovered(w->t, w->all);
	w->all = false;
	wpt_take_copied(k);
	k->stats.pages_dirty = wpt_ledger_commit(w->t->ledger);
	wpt_vec_clear(&w->t->unknown);
	w->tip = k->identity;
	memcpy(w->tip_digest, k->result.digest, sizeof(w->tip_digest));
	w->has_tip = true;
	w->append_at += k->result.bytes;
	/* Without memory for a copy the next link repeats them, no more. */
	if (wpt_text_set(&w->ranges_text, k->new_ranges.data, k->new_ranges.count) != 0)
		wpt_vec_clear(&w->ranges_text);
	if (wpt_text_set(&w->maps_text, (const char *)m->text.data + m->raw, m->raw_len) != 0)
		wpt_vec_clear(&w->maps_text);
	w->notes_known = !k->notes_changed || wpt_text_set(&w->notes_text, k->new_notes.data, k->new_notes.count) == 0;
}

static void fill_stats(struct wpt_take *k)
{
	struct wpt_take_stats *s = &k->stats;

	s->sequence = k->identity.sequence;
	hex(s->id, k->identity.link_id, 16);
	snprintf(s->file, sizeof(s->file), "%s", k->name);
	s->pages_tracked = k->copy.pages_tracked;
	/* Pages that were unknown and found written later are counted twice; not those of a base, which are all. */
	s->pages_compared = WPT_MAX(k->pages_compared, k->copy.pages_compared);
	s->pages_dirty = WPT_MIN(s->pages_dirty + s->pages_compared, s->pages_tracked);
	s->swapped_in = k->copy.swapped_in;
	s->staging_waits += k->copy.staging_waits;
	s->pages_stored = k->result.pages_stored;
	s->pages_zero = k->result.pages_zero;
	s->pages_unchanged = k->result.pages_unchanged;
	s->pages_duplicate = k->result.pages_duplicate;
	/* Each pass says of a page that it can't be read; a link says so only if the chain does not yet. */
	s->pages_unreadable = WPT_MIN(k->result.pages_unreadable, k->copy.pages_unreadable);
	s->pages_torn = k->result.pages_torn;
	s->bytes_stored = k->result.bytes;
	s->level = k->result.level;
	s->total_ns = wpt_now_ns() - k->started;
}

static int take_options(struct wpt_take *k, const struct wpt_take_options *from)
{
	const struct wpt_take_options *o = &k->o;
	bool self = wpt_target_is_self(k->w->t->target);
	uint32_t i;
	int err = wpt_options_copy(&k->o, sizeof(k->o), from, sizeof(k->o));

	if (err)
		return err;
	if (o->mode > WPT_MODE_COW || o->flags & ~(uint32_t)(WPT_TAKE_REFUSE | WPT_TAKE_REGISTERS) || (o->nr_sections && !o->sections))
		return -EINVAL;
	if (o->mode == WPT_MODE_COW && k->w->t->backend != WPT_BACKEND_SYNC)
		return -EINVAL;
	if (!o->max_rounds)
		k->o.max_rounds = DEFAULT_ROUNDS;
	if (!o->target_pause_us)
		k->o.target_pause_us = DEFAULT_PAUSE_US;
	if (o->mode != WPT_MODE_FUZZY && (!o->quiesce != !o->resume || (self && !o->quiesce)))
		return -EINVAL;
	if (!self && o->quiesce && (o->mode == WPT_MODE_COW || o->flags & WPT_TAKE_REGISTERS))
		return -EINVAL;
	if (o->mode == WPT_MODE_FUZZY && (o->paused || o->flags))
		return -EINVAL;
	for (i = 0; i < o->nr_sections; i++)
		if (o->sections[i].reserved || o->sections[i].len > (size_t)1 << 30 || (o->sections[i].len && !o->sections[i].data))
			return -EINVAL;
	return 0;
}

static bool nothing_to_track(struct wpt_tracker *t)
{
	/* Also the calling thread's first read section, which may allocate: before the own process is quiesced. */
	const struct wpt_range_set *set = wpt_ranges_begin(t->ranges);
	bool nothing = !set->all && !set->nr;

	wpt_ranges_end(t->ranges);
	return nothing;
}

static int take_pages(struct wpt_take *k)
{
	int err;

	err = wpt_tracker_inspect(k->w->t);
	if (err)
		return err;
	err = wpt_take_ask_direct(k);
	if (err)
		return err;
	wpt_huge_learn_all(k->w->t);
	if (k->o.mode == WPT_MODE_FUZZY)
		return take_fuzzy(k);
	/* Of mode cow only a base has one: what is dirty is copied after the instant, not before and after. */
	if (k->o.mode == WPT_MODE_COW && k->o.max_rounds != WPT_NO_ROUNDS)
		k->o.max_rounds = k->w->all ? 1 : WPT_NO_ROUNDS;
	if (k->o.max_rounds != WPT_NO_ROUNDS)
		err = wpt_take_rounds(k);
	/* The look before the pause left a plan to free; none may be waited for while the target is stopped. */
	wpt_tracker_reap(k->w->t);
	if (err)
		return err;
	return k->o.mode == WPT_MODE_COW ? take_cow(k) : take_paused(k, false);
}

/* Everything is copied, and the target runs. */
static void keep_hot(struct wpt_take *k)
{
	struct wpt_writer *w = k->w;

	if (!w->o.hot_set || w->t->backend == WPT_BACKEND_REPORTED)
		return;
	k->stats.pages_hot = wpt_ledger_heat(w->t->ledger, w->turn++);
	wpt_tracker_loosen(w->t);
}

static int take_link(struct wpt_take *k)
{
	int err;

	err = open_layer(k);
	if (!err)
		err = wpt_copy_open(&k->copy, k->w->t);
	if (err)
		return err;
	k->copy.w = k->layer;
	err = take_pages(k);
	wpt_tracker_reap(k->w->t);
	if (!err)
		wpt_take_ask_again(k);
	/* The next link looks at all of it: what that finds to copy should not fill its staging memory. */
	if (!err)
		k->stats.pages_collapsed = wpt_tracker_collapse(k->w->t, k->w->o.staging_bytes / 2);
	if (!err)
		keep_hot(k);
	if (!err)
		err = add_sections(k);
	if (!err)
		err = wpt_layer_finish(k->layer, k->time_ns, k->stats.pause_ns, &k->result);
	if (!err) {
		err = k->sink->commit(k->sink);
		/* After a failed fsync nobody knows what of the file is on the disk: it is not continued. */
		if (err && k->w->o.dest == WPT_DEST_APPEND)
			k->w->broken = err;
	}
	return err;
}

int wpt_writer_take(struct wpt_writer *w, const struct wpt_take_options *options, struct wpt_take_stats *stats)
{
	struct wpt_take *k;
	int err = wpt_tracker_check(w->t);

	if (err)
		return err;
	if (w->broken)
		return w->broken;
	/* Not from the heap, which may be tracked: between a page's claim and its copy nothing of ours may fault. */
	k = wpt_vm_alloc(sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->w = w;
	k->started = wpt_now_ns();
	k->registers.elem_size = k->new_ranges.elem_size = k->new_notes.elem_size = 1;
	k->compared.elem_size = k->fresh.elem_size = sizeof(struct wpt_span);
	k->page_ns = DEFAULT_PAGE_NS;
	k->stats.size = sizeof(k->stats);
	err = take_options(k, options);
	if (!err && nothing_to_track(w->t))
		err = -ENODATA;
	if (!err) {
		pthread_mutex_lock(&w->t->lock);
		wpt_own_enter();
		err = take_link(k);
		/* Its threads write to the ledger; they end before anything is taken back. */
		wpt_layer_writer_close(k->layer);
		if (err) {
			wpt_ledger_rollback(w->t->ledger);
			wpt_take_give_back(k);
		} else {
			succeeded(k);
		}
		wpt_own_leave();
		pthread_mutex_unlock(&w->t->lock);
		if (err && w->o.dest == WPT_DEST_FD && k->sink && k->sink->begun)
			w->broken = err;
	}
	if (k->sink)
		k->sink->close(k->sink);
	if (!err && stats) {
		fill_stats(k);
		err = wpt_info_copy(stats, &k->stats, sizeof(k->stats), sizeof(k->stats));
	}
	if (w->t->pinned_loud && !err)
		wpt_logf(&w->t->log, WPT_LOG_WARNING, "the target uses VFIO or RDMA: what devices write to memory is not seen");
	wpt_copy_close(&k->copy);
	wpt_vec_free(&k->compared);
	wpt_vec_free(&k->fresh);
	wpt_vec_free(&k->registers);
	wpt_vec_free(&k->new_ranges);
	wpt_vec_free(&k->new_notes);
	wpt_vm_free(k, sizeof(*k));
	return err;
}
