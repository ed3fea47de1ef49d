/* SPDX-License-Identifier: MIT */
/* What a chain tells of itself, and its bytes. */
#include "chain_impl.h"
#include "pipe.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define WALK_HASHES 256u
#define LARGE_READ ((size_t)4 << 20)

struct wpt_reader *wpt_chain_reader(struct wpt_chain *c, uint32_t index)
{
	return c->links[index].reader;
}

uint32_t wpt_chain_nr_links(const struct wpt_chain *c)
{
	return c->nr_links;
}

uint32_t wpt_chain_nr_threads(const struct wpt_chain *c)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (c->nr_threads)
		return c->nr_threads;
	return cpus < 1 ? 1 : (uint32_t)WPT_MIN(cpus, 8L);
}

int wpt_chain_set_threads(struct wpt_chain *c, uint32_t nr_threads)
{
	if (nr_threads > 256)
		return -EINVAL;
	c->nr_threads = WPT_MIN(nr_threads, WPT_PIPE_THREADS_MAX);
	return 0;
}

uint64_t wpt_chain_end_offset(const struct wpt_chain *c)
{
	return c->end_offset;
}

static const struct wpt_reader_info *link_info(const struct wpt_chain *c, uint32_t index)
{
	return wpt_reader_info(c->links[index].reader);
}

static const struct wpt_range_list *ranges(const struct wpt_chain *c)
{
	return c->ranges;
}

/* The nearest origin: a link without one has its parent's. */
static const struct wpt_origin *origin_of(const struct wpt_chain *c)
{
	static const struct wpt_origin none;
	uint32_t i;

	for (i = c->nr_links; i--;)
		if (link_info(c, i)->head.flags & WPT_FMT_ORIGIN)
			return &link_info(c, i)->head.origin;
	return &none;
}

void wpt_chain_tip(const struct wpt_chain *c, struct wpt_identity *identity, uint8_t digest[16], struct wpt_origin *origin, uint8_t key[32])
{
	const struct wpt_reader_info *tip = link_info(c, c->nr_links - 1);

	*identity = tip->head.identity;
	memcpy(digest, tip->trailer.digest, 16);
	*origin = *origin_of(c);
	memcpy(key, tip->head.key, 32);
}

static void hex(char out[33], const uint8_t id[16])
{
	int i;

	for (i = 0; i < 16; i++)
		snprintf(out + 2 * i, 3, "%02x", id[i]);
}

int wpt_chain_info(struct wpt_chain *c, struct wpt_chain_info *info)
{
	struct wpt_chain_info found = { .size = sizeof(found), .page_size = WPT_PAGE, .nr_links = c->nr_links };
	const struct wpt_origin *origin = origin_of(c);
	uint32_t i;

	hex(found.chain_id, link_info(c, 0)->head.identity.chain_id);
	found.nr_ranges = ranges(c)->nr;
	for (i = 0; i < ranges(c)->nr; i++)
		found.bytes_tracked += ranges(c)->ranges[i].end - ranges(c)->ranges[i].start;
	for (i = 0; i < c->nr_links; i++)
		found.bytes_stored += link_info(c, i)->length;
	found.pid = origin->pid;
	found.start_time = origin->start_time;
	snprintf(found.boot_id, sizeof(found.boot_id), "%s", origin->boot_id);
	snprintf(found.comm, sizeof(found.comm), "%s", origin->comm);
	return wpt_info_copy(info, &found, sizeof(found), sizeof(found));
}

int wpt_chain_link(struct wpt_chain *c, uint32_t index, struct wpt_link_info *info)
{
	struct wpt_link_info found = { .size = sizeof(found) };
	const struct wpt_reader_info *r;

	if (index >= c->nr_links)
		return -ERANGE;
	r = link_info(c, index);
	found.sequence = r->head.identity.sequence;
	hex(found.id, r->head.identity.link_id);
	snprintf(found.file, sizeof(found.file), "%s", c->links[index].name);
	found.full = !!(r->head.flags & WPT_FMT_FULL);
	found.mode = r->head.mode;
	found.offset = r->start;
	found.length = r->length;
	found.time_ns = r->time_ns;
	found.pause_ns = r->pause_ns;
	found.pages_data = r->counts.data + r->counts.torn;
	found.pages_zero = r->counts.zero;
	found.pages_duplicate = r->counts.duplicate;
	found.pages_unreadable = r->counts.unreadable + r->counts.guard;
	found.pages_torn = r->counts.torn;
	return wpt_info_copy(info, &found, sizeof(found), sizeof(found));
}

static int fill_range(struct wpt_range_info *info, const struct wpt_listed_range *r, uint64_t start, uint64_t end)
{
	struct wpt_range_info found = { .size = sizeof(found) };

	found.start = start;
	found.end = end;
	found.kind = r->kind;
	found.reason = r->reason;
	found.name = r->name;
	return wpt_info_copy(info, &found, sizeof(found), sizeof(found));
}

int wpt_chain_range(struct wpt_chain *c, uint32_t index, struct wpt_range_info *info)
{
	const struct wpt_range_list *l = ranges(c);

	if (index >= l->nr)
		return -ERANGE;
	return fill_range(info, &l->ranges[index], l->ranges[index].start, l->ranges[index].end);
}

/* "START-END" in hex, nothing else. */
static bool parse_interval(const char *spec, uint64_t *start, uint64_t *end)
{
	char *rest;

	if (!isxdigit((unsigned char)*spec))
		return false;
	errno = 0;
	*start = strtoull(spec, &rest, 16);
	if (errno || *rest != '-' || !isxdigit((unsigned char)rest[1]))
		return false;
	*end = strtoull(rest + 1, &rest, 16);
	return !errno && !*rest;
}

/* Its whole name, or the last component of it; with or without what the kernel adds when the file is gone. */
static bool name_fits(const char *name, const char *spec, bool whole)
{
	static const char deleted[] = " (deleted)";
	size_t len = strlen(name), tail = sizeof(deleted) - 1;
	const char *base = strrchr(name, '/');

	if (!whole && base) {
		len -= (size_t)(base + 1 - name);
		name = base + 1;
	}
	if (!strcmp(name, spec))
		return true;
	return len > tail && !strcmp(name + len - tail, deleted) && strlen(spec) == len - tail && !memcmp(name, spec, len - tail);
}

static int find_name(const struct wpt_range_list *l, const char *spec, bool whole, struct wpt_range_info *info)
{
	const struct wpt_listed_range *r, *first = NULL;
	uint64_t end = 0;
	uint32_t i;

	for (i = 0; i < l->nr; i++) {
		r = &l->ranges[i];
		if (!name_fits(r->name, spec, whole))
			continue;
		/* Pieces of one name that touch are one; two files of one base name are two. */
		if (first && (r->start != end || strcmp(r->name, first->name)))
			return -WPT_E_AMBIGUOUS;
		if (!first)
			first = r;
		end = r->end;
	}
	return first ? fill_range(info, first, first->start, end) : -WPT_E_NOT_TRACKED;
}

int wpt_chain_find(struct wpt_chain *c, const char *spec, struct wpt_range_info *info)
{
	const struct wpt_range_list *l = ranges(c);
	uint64_t start, end;
	uint32_t i;
	int rc;

	if (!*spec)
		return -EINVAL;
	if (parse_interval(spec, &start, &end)) {
		if (start >= end)
			return -EINVAL;
		for (i = 0; i < l->nr; i++)
			if (l->ranges[i].start < end && start < l->ranges[i].end)
				return fill_range(info, &l->ranges[i], start, end);
		return -WPT_E_NOT_TRACKED;
	}
	rc = find_name(l, spec, true, info);
	return rc == -WPT_E_NOT_TRACKED ? find_name(l, spec, false, info) : rc;
}

int wpt_chain_section(struct wpt_chain *c, uint32_t type, void **data, size_t *len)
{
	struct wpt_fmt_section s;
	uint32_t i;
	int rc;

	if (type == WPT_FMT_SECTION_RANGES)
		return -ENOENT;
	for (i = c->nr_links; i--;) {
		rc = wpt_reader_find_section(c->links[i].reader, type, &s);
		if (rc == -ENOENT && !wpt_section_is_of_instant(type))
			continue;
		return rc ? rc : wpt_section_load(c->links[i].reader, &s, WPT_FMT_SECTION_MAX, data, len);
	}
	return -ENOENT;
}

/* [addr, end), which ends on or before the last page that has an end; *unreadable is set, never cleared. */
static int read_small(struct wpt_chain *c, uint64_t addr, uint64_t end, uint8_t *out, bool *unreadable)
{
	struct wpt_walker *w = NULL;
	struct wpt_view_run run;
	uint64_t from, to;
	int rc;

	rc = wpt_walker_take(&w, c, addr, WPT_ALIGN_UP(end, WPT_PAGE));
	while (!rc && (rc = wpt_walker_next(w, &run)) > 0) {
		from = WPT_MAX(run.start, addr);
		to = WPT_MIN(run.end, end);
		rc = 0;
		if (run.view == WPT_VIEW_DATA)
			rc = wpt_chain_run_read(c, &run, from, out + (size_t)(from - addr), (size_t)(to - from));
		else
			memset(out + (size_t)(from - addr), 0, (size_t)(to - from));
		*unreadable |= run.view == WPT_VIEW_UNREADABLE;
	}
	wpt_walker_give(w);
	return rc;
}

struct large_read {
	uint64_t addr, end;
	uint8_t *out;
	bool *unreadable;
};

static int large_data(void *arg, uint64_t addr, const uint8_t *data, uint64_t len)
{
	const struct large_read *l = arg;
	uint64_t from = WPT_MAX(addr, l->addr), to = WPT_MIN(addr + len, l->end);

	memcpy(l->out + (size_t)(from - l->addr), data + (size_t)(from - addr), (size_t)(to - from));
	return 0;
}

static int large_rest(void *arg, const struct wpt_view_run *run)
{
	const struct large_read *l = arg;
	uint64_t from = WPT_MAX(run->start, l->addr), to = WPT_MIN(run->end, l->end);

	memset(l->out + (size_t)(from - l->addr), 0, (size_t)(to - from));
	*l->unreadable |= run->view == WPT_VIEW_UNREADABLE;
	return 0;
}

/* By the caller's thread alone: there may be many. */
static int read_large(struct wpt_chain *c, uint64_t addr, uint64_t end, uint8_t *out, bool *unreadable)
{
	struct large_read l = { addr, end, out, unreadable };
	const struct wpt_scatter to = { .data = large_data, .rest = large_rest, .arg = &l };

	return wpt_chain_scatter(c, WPT_ALIGN_DOWN(addr, WPT_PAGE), WPT_ALIGN_UP(end, WPT_PAGE), 1, &to);
}

int wpt_chain_read(struct wpt_chain *c, uint64_t addr, void *buf, size_t len)
{
	/* The last page of the address space has no end address of its own, and nothing is tracked there. */
	const uint64_t limit = WPT_ALIGN_DOWN(UINT64_MAX, WPT_PAGE);
	bool unreadable = false;
	uint8_t *out = buf;
	uint64_t end, from;
	int rc;

	if (!len)
		return 0;
	if (wpt_add_overflows(addr, len, &end) && end)
		return -EINVAL;
	if (!end || end > limit) {
		from = WPT_MAX(addr, limit);
		memset(out + (size_t)(from - addr), 0, len - (size_t)(from - addr));
		end = limit;
		if (from == addr)
			return 0;
	}
	rc = (len < LARGE_READ ? read_small : read_large)(c, addr, end, out, &unreadable);
	return rc ? rc : unreadable ? -WPT_E_UNREADABLE : 0;
}

static int walk_data(struct wpt_chain *c, const struct wpt_view_run *run,
		     int (*each)(void *arg, uint64_t addr, uint64_t nr_pages, enum wpt_known known, const struct wpt_hash *hashes),
		     void *arg)
{
	struct wpt_hash hashes[WALK_HASHES];
	uint64_t at, nr;
	int rc = 0;

	for (at = run->start; at < run->end && !rc; at += nr * WPT_PAGE) {
		nr = WPT_MIN((run->end - at) / WPT_PAGE, (uint64_t)WALK_HASHES);
		rc = wpt_chain_run_hashes(c, run, at, nr, hashes);
		if (!rc)
			rc = each(arg, at, nr, WPT_KNOWN_DATA, hashes);
	}
	return rc;
}

int wpt_chain_walk(struct wpt_chain *c, uint64_t start, uint64_t end,
		   int (*each)(void *arg, uint64_t addr, uint64_t nr_pages, enum wpt_known known, const struct wpt_hash *hashes),
		   void *arg)
{
	static const enum wpt_known known[] = {
		[WPT_VIEW_ZERO] = WPT_KNOWN_ZERO,
		[WPT_VIEW_UNREADABLE] = WPT_KNOWN_UNREADABLE,
		[WPT_VIEW_GUARD] = WPT_KNOWN_GUARD,
	};
	struct wpt_walker *w = NULL;
	struct wpt_view_run run;
	int rc;

	rc = wpt_walker_open(&w, c, start, end);
	while (!rc && (rc = wpt_walker_next(w, &run)) > 0) {
		if (run.view == WPT_VIEW_DATA)
			rc = walk_data(c, &run, each, arg);
		else if (run.view != WPT_VIEW_UNTRACKED)
			rc = each(arg, run.start, (run.end - run.start) / WPT_PAGE, known[run.view], NULL);
		else
			rc = 0;
	}
	wpt_walker_close(w);
	return rc;
}

struct verification {
	wpt_progress *progress;
	void *arg;
	uint64_t done, total;
};

static int verified(void *arg, uint64_t bytes)
{
	struct verification *v = arg;

	v->done += bytes;
	return v->progress && v->progress(v->arg, v->done, v->total) ? -ECANCELED : 0;
}

int wpt_chain_verify(struct wpt_chain *c, wpt_progress *progress, void *arg)
{
	struct verification v = { progress, arg, 0, 0 };
	struct wpt_walker *w = NULL;
	struct wpt_view_run run;
	uint32_t i;
	int rc = 0;

	for (i = 0; i < c->nr_links; i++)
		v.total += link_info(c, i)->length;
	for (i = 0; i < c->nr_links && !rc; i++)
		rc = wpt_reader_verify(c->links[i].reader, verified, &v);
	/* That the links fit together: every page of the last one is found. */
	if (!rc)
		rc = wpt_walker_open(&w, c, 0, UINT64_MAX);
	while (!rc && (rc = wpt_walker_next(w, &run)) > 0)
		rc = 0;
	wpt_walker_close(w);
	if (!rc)
		rc = c->file_error;
	return rc ? rc : c->torn_bytes ? -WPT_E_TRUNCATED : 0;
}
