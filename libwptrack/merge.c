/* SPDX-License-Identifier: MIT */
/* A chain written anew as one full link, and two chains compared. */
#include "chain_impl.h"
#include "layer.h"
#include "pipe.h"
#include "store.h"

#include <stdlib.h>

/* ---- merge ---- */

struct merge {
	struct wpt_chain *c;
	struct wpt_layer_writer *w;
	struct wpt_batch *batch;
	const struct wpt_merge_options *o;
	uint32_t nr_threads;
	uint32_t types[WPT_FMT_SECTIONS_MAX]; /* of sections that were written */
	uint32_t nr_types;
	uint64_t done, total;
};

static int batch_submit(struct merge *m)
{
	struct wpt_batch *b = m->batch;

	if (!b)
		return 0;
	m->batch = NULL;
	return wpt_layer_batch_submit(m->w, b);
}

/* A batch with room for an item and, if `data`, a page. */
static int batch_room(struct merge *m, bool data)
{
	int rc;

	if (m->batch && (m->batch->nr_items == WPT_BATCH_ITEMS || (data && m->batch->nr_pages == WPT_BATCH_PAGES))) {
		rc = batch_submit(m);
		if (rc)
			return rc;
	}
	return m->batch ? 0 : wpt_layer_batch_get(m->w, &m->batch, true);
}

static int add_data(struct merge *m, const struct wpt_view_run *run, const uint8_t *data)
{
	uint32_t kind = run->r.kind == WPT_FMT_TORN ? WPT_ITEM_TORN : WPT_ITEM_DATA;
	uint64_t at, nr;
	int rc;

	for (at = run->start; at < run->end; at += nr * WPT_PAGE) {
		rc = batch_room(m, true);
		if (rc)
			return rc;
		nr = WPT_MIN((run->end - at) / WPT_PAGE, (uint64_t)(WPT_BATCH_PAGES - m->batch->nr_pages));
		memcpy(m->batch->data + (size_t)m->batch->nr_pages * WPT_PAGE, data + (size_t)(at - run->start), (size_t)nr * WPT_PAGE);
		m->batch->items[m->batch->nr_items++] = (struct wpt_item){ at, nr, kind };
		m->batch->nr_pages += (uint32_t)nr;
	}
	return 0;
}

/* Pages that are zero need no mention in a full link. */
static int add_run(struct merge *m, const struct wpt_view_run *run, const uint8_t *data)
{
	int rc = 0;

	if (run->view == WPT_VIEW_UNTRACKED)
		return 0;
	if (run->view == WPT_VIEW_DATA) {
		rc = add_data(m, run, data);
	} else if (run->view != WPT_VIEW_ZERO) {
		rc = batch_room(m, false);
		if (!rc)
			m->batch->items[m->batch->nr_items++] = (struct wpt_item){
				run->start,
				(run->end - run->start) / WPT_PAGE,
				run->view == WPT_VIEW_GUARD ? WPT_ITEM_GUARD : WPT_ITEM_UNREADABLE,
			};
	}
	m->done += run->end - run->start;
	if (!rc && m->o->progress && m->o->progress(m->o->arg, m->done, m->total))
		rc = -ECANCELED;
	return rc;
}

static int add_pages(struct merge *m)
{
	struct wpt_gather *g = NULL;
	struct wpt_view_run run;
	const uint8_t *data;
	int rc;

	rc = wpt_gather_open(&g, m->c, 0, UINT64_MAX, m->nr_threads);
	while (!rc && (rc = wpt_gather_next(g, &run, &data)) > 0)
		rc = add_run(m, &run, data);
	wpt_gather_close(g);
	return rc ? rc : batch_submit(m);
}

static int add_ranges(struct merge *m)
{
	const struct wpt_range_list *l = m->c->ranges;
	struct wpt_layer_range *ranges = calloc((size_t)l->nr + 1, sizeof(*ranges));
	uint32_t i;
	int rc;

	if (!ranges)
		return -ENOMEM;
	for (i = 0; i < l->nr; i++)
		ranges[i] = (struct wpt_layer_range){ l->ranges[i].start, l->ranges[i].end, l->ranges[i].kind, l->ranges[i].reason,
						      l->ranges[i].name };
	rc = wpt_layer_ranges(m->w, ranges, l->nr);
	free(ranges);
	return rc;
}

static bool has_section(const struct merge *m, uint32_t type)
{
	uint32_t i;

	for (i = 0; i < m->nr_types; i++)
		if (m->types[i] == type)
			return true;
	return false;
}

static int add_link_sections(struct merge *m, uint32_t index)
{
	struct wpt_reader *r = m->c->links[index].reader;
	struct wpt_fmt_section s;
	void *data;
	size_t len;
	uint32_t i;
	int rc;

	for (i = 0; !(rc = wpt_reader_section_at(r, i, &s)); i++) {
		if (s.type == WPT_FMT_SECTION_RANGES || has_section(m, s.type) || (index + 1 < m->c->nr_links && wpt_section_is_of_instant(s.type)))
			continue;
		rc = wpt_section_load(r, &s, WPT_FMT_SECTION_MAX, &data, &len);
		if (rc)
			return rc;
		rc = wpt_layer_section(m->w, s.type, data, len);
		free(data);
		if (rc)
			return rc;
		m->types[m->nr_types++] = s.type;
	}
	return rc == -ENOENT ? 0 : rc;
}

/* Of each type that of the last link that has one, as the chain itself says. */
static int add_sections(struct merge *m)
{
	uint32_t i;
	int rc = 0;

	for (i = m->c->nr_links; i-- && !rc;)
		rc = add_link_sections(m, i);
	return rc;
}

static int merge_open(struct merge *m, struct wpt_sink *sink)
{
	const struct wpt_reader_info *tip = wpt_reader_info(m->c->links[m->c->nr_links - 1].reader);
	struct wpt_layer_params p = {
		.full = true,
		.carry_digest = true,
		.mode = tip->head.mode,
		.level = m->o->level ? m->o->level : 1,
		.nr_threads = m->nr_threads,
		.staging_bytes = (uint64_t)64 << 20,
	};

	wpt_chain_tip(m->c, &p.identity, p.digest, &p.origin, p.key);
	return wpt_layer_writer_open(&m->w, sink, &p);
}

static uint64_t bytes_tracked(const struct wpt_chain *c)
{
	const struct wpt_range_list *l = c->ranges;
	uint64_t bytes = 0;
	uint32_t i;

	for (i = 0; i < l->nr; i++)
		bytes += l->ranges[i].end - l->ranges[i].start;
	return bytes;
}

int wpt_merge_options_copy(struct wpt_merge_options *to, const struct wpt_merge_options *from)
{
	int rc = wpt_options_copy(to, sizeof(*to), from, sizeof(*to));

	return rc ? rc : wpt_layer_level_valid(to->level) && to->nr_threads <= 256 ? 0 : -EINVAL;
}

int wpt_chain_merge_to(struct wpt_chain *c, struct wpt_sink *sink, const struct wpt_merge_options *o, uint64_t *bytes)
{
	const struct wpt_reader_info *tip = wpt_reader_info(c->links[c->nr_links - 1].reader);
	struct wpt_layer_result result = { 0 };
	struct merge m = { .c = c, .o = o, .total = bytes_tracked(c) };
	int rc;

	m.nr_threads = o->nr_threads ? WPT_MIN(o->nr_threads, WPT_PIPE_THREADS_MAX) : wpt_chain_nr_threads(c);
	rc = merge_open(&m, sink);
	if (!rc)
		rc = add_pages(&m);
	if (!rc)
		rc = add_ranges(&m);
	if (!rc)
		rc = add_sections(&m);
	if (!rc)
		rc = wpt_layer_finish(m.w, tip->time_ns, tip->pause_ns, &result);
	wpt_layer_writer_close(m.w);
	*bytes = result.bytes;
	return rc;
}

int wpt_chain_merge(struct wpt_chain *c, const char *path, const struct wpt_merge_options *options)
{
	struct wpt_merge_options o;
	struct wpt_sink *sink = NULL;
	uint64_t bytes;
	int rc = wpt_merge_options_copy(&o, options);

	if (!rc)
		rc = wpt_sink_file(&sink, path, true);
	if (!rc)
		rc = wpt_chain_merge_to(c, sink, &o, &bytes);
	if (!rc)
		rc = sink->commit(sink);
	if (sink)
		sink->close(sink);
	return rc;
}

/* ---- diff ---- */

#define DIFF_PAGES 64u

struct diff {
	struct wpt_chain *chain[2];
	struct wpt_walker *walker[2];
	struct wpt_view_run run[2];
	bool same_key;
	int (*each)(void *arg, uint64_t start, uint64_t end, uint32_t tracked_in);
	void *arg;
	uint64_t start, end;   /* a run of differences that is not reported yet */
	uint32_t tracked_in;
	bool any;
	uint8_t buf[2][DIFF_PAGES * WPT_PAGE];
	struct wpt_hash hashes[2][DIFF_PAGES];
};

static int diff_flush(struct diff *d)
{
	int rc = 0;

	if (d->start < d->end && d->each)
		rc = d->each(d->arg, d->start, d->end, d->tracked_in);
	d->start = d->end;
	return rc;
}

static int diff_report(struct diff *d, uint64_t start, uint64_t end, uint32_t tracked_in)
{
	int rc = 0;

	d->any = true;
	if (d->start < d->end && d->end == start && d->tracked_in == tracked_in) {
		d->end = end;
		return 0;
	}
	rc = diff_flush(d);
	d->start = start;
	d->end = end;
	d->tracked_in = tracked_in;
	return rc;
}

static int page_bytes(struct diff *d, int i, uint64_t at, uint64_t nr)
{
	if (d->run[i].view == WPT_VIEW_DATA)
		return wpt_chain_run_read(d->chain[i], &d->run[i], at, d->buf[i], (size_t)nr * WPT_PAGE);
	memset(d->buf[i], 0, (size_t)nr * WPT_PAGE);
	return 0;
}

/* At most DIFF_PAGES pages of which at least one side is data. */
static int diff_pages(struct diff *d, uint64_t at, uint64_t nr)
{
	bool by_hash = d->same_key && d->run[0].view == WPT_VIEW_DATA && d->run[1].view == WPT_VIEW_DATA;
	uint64_t k;
	int rc = 0, i;

	for (i = 0; i < 2 && !rc; i++)
		rc = by_hash ? wpt_chain_run_hashes(d->chain[i], &d->run[i], at, nr, d->hashes[i]) : page_bytes(d, i, at, nr);
	for (k = 0; k < nr && !rc; k++)
		if (by_hash ? memcmp(&d->hashes[0][k], &d->hashes[1][k], sizeof(struct wpt_hash)) != 0 :
			      memcmp(d->buf[0] + k * WPT_PAGE, d->buf[1] + k * WPT_PAGE, WPT_PAGE) != 0)
			rc = diff_report(d, at + k * WPT_PAGE, at + (k + 1) * WPT_PAGE, 3);
	return rc;
}

static bool has_content(enum wpt_view view)
{
	return view == WPT_VIEW_DATA || view == WPT_VIEW_ZERO;
}

/* [start, end) lies in one run of each side. */
static int diff_runs(struct diff *d, uint64_t start, uint64_t end)
{
	enum wpt_view a = d->run[0].view, b = d->run[1].view;
	uint64_t at, nr;
	int rc = 0;

	if (a == WPT_VIEW_UNTRACKED || b == WPT_VIEW_UNTRACKED)
		return a == b ? 0 : diff_report(d, start, end, a == WPT_VIEW_UNTRACKED ? 2 : 1);
	if (!has_content(a) || !has_content(b))
		return a == b ? 0 : diff_report(d, start, end, 3);
	if (a == WPT_VIEW_ZERO && b == WPT_VIEW_ZERO)
		return 0;
	for (at = start; at < end && !rc; at += nr * WPT_PAGE) {
		nr = WPT_MIN((end - at) / WPT_PAGE, (uint64_t)DIFF_PAGES);
		rc = diff_pages(d, at, nr);
	}
	return rc;
}

static int diff_all(struct diff *d)
{
	uint64_t at = 0, stop;
	int rc, i;

	for (;;) {
		for (i = 0; i < 2; i++) {
			if (d->run[i].end > at)
				continue;
			rc = wpt_walker_next(d->walker[i], &d->run[i]);
			if (rc <= 0)
				return rc ? rc : diff_flush(d);
		}
		stop = WPT_MIN(d->run[0].end, d->run[1].end);
		rc = diff_runs(d, at, stop);
		if (rc)
			return rc;
		at = stop;
	}
}

int wpt_chain_diff(struct wpt_chain *a, struct wpt_chain *b,
		   int (*each)(void *arg, uint64_t start, uint64_t end, uint32_t tracked_in), void *arg)
{
	struct diff *d = calloc(1, sizeof(*d));
	uint8_t digest[16], keys[2][32];
	struct wpt_identity identity;
	struct wpt_origin origin;
	int rc = 0, i;

	if (!d)
		return -ENOMEM;
	d->chain[0] = a;
	d->chain[1] = b;
	d->each = each;
	d->arg = arg;
	for (i = 0; i < 2 && !rc; i++) {
		wpt_chain_tip(d->chain[i], &identity, digest, &origin, keys[i]);
		rc = wpt_walker_open(&d->walker[i], d->chain[i], 0, UINT64_MAX);
	}
	d->same_key = memcmp(keys[0], keys[1], sizeof(keys[0])) == 0;
	if (!rc)
		rc = diff_all(d);
	if (!rc)
		rc = d->any;
	for (i = 0; i < 2; i++)
		wpt_walker_close(d->walker[i]);
	free(d);
	return rc;
}
