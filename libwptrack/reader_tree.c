/* SPDX-License-Identifier: MIT */
/*
 * From a page to the record that decides it, within one link.
 *
 * A link written in one pass has leaves in order of address, and its cursor takes several runs out of a leaf at a time. Where passes
 * overlap, the runs that begin first and win are found one by one.
 */
#include "reader_impl.h"

#include <stdlib.h>

void wpt_cursor_free(struct wpt_cursor *c)
{
	free(c->runs);
	memset(c, 0, sizeof(*c));
}

struct search {
	struct wpt_reader *r;
	struct wpt_cursor *c;
	uint64_t page;
	uint64_t budget;  /* blocks that may still be looked at: a hostile tree may be a maze */
};

static uint64_t eff(const struct wpt_fmt_child *child, uint64_t page)
{
	return WPT_MAX(child->first_page, page);
}

/* The first child of a pass that ends behind `page`, nr_children of the pass if none. */
static uint32_t pass_find(const struct wpt_node *n, uint32_t pass, uint64_t page)
{
	uint32_t low = n->passes[pass], high = n->passes[pass + 1], middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (n->children[middle].end_page > page)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* ---- leaves ---- */

static int leaf_get(struct search *s, const struct wpt_fmt_child *child, struct wpt_cached **out)
{
	const struct wpt_leaf *l;
	int rc;

	if (s->budget-- == 0)
		return -WPT_E_DAMAGED;
	rc = wpt_reader_leaf(s->r, child->offset, child->length, child->checksum, out);
	if (rc)
		return rc;
	l = (*out)->data;
	if (l->leaf.first_page == child->first_page && l->leaf.end_page == child->end_page)
		return 0;
	wpt_cache_put(s->r->cache, *out);
	return -WPT_E_DAMAGED;
}

/* A cursor at a run that is not behind the first one that ends behind `page`. */
static struct wpt_fmt_leaf leaf_from(const struct wpt_leaf *l, uint64_t page)
{
	struct wpt_fmt_leaf cursor = l->leaf;
	uint32_t low = 0, high = l->nr_marks, middle;

	/* The last mark whose run before ends at or before `page`; the first mark always does for what matters. */
	while (high - low > 1) {
		middle = low + (high - low) / 2;
		if (l->marks[middle].page <= page)
			low = middle;
		else
			high = middle;
	}
	cursor.page = l->marks[low].page;
	cursor.next = l->bytes + l->marks[low].next;
	cursor.runs_left = l->marks[low].runs_left;
	return cursor;
}

static int run_make(const struct wpt_leaf *l, const struct wpt_fmt_child *child, const struct wpt_fmt_run *from,
		    struct wpt_reader_run *run)
{
	memset(run, 0, sizeof(*run));
	run->page = from->page;
	run->nr_pages = from->nr_pages;
	run->kind = from->kind;
	if (!wpt_fmt_has_data(from->kind))
		return 0;
	run->slot = from->slot;
	run->hashes = (uint32_t)(from->hashes - l->bytes);
	run->leaf_offset = child->offset;
	run->leaf_length = child->length;
	run->leaf_checksum = child->checksum;
	return wpt_fmt_leaf_frame(&l->leaf, from->frame, &run->frame);
}

/*
 * Up to `max` runs that end behind the page and begin before `limit`, cut at it. *until: they are all that the leaf has before it.
 */
static int leaf_runs(struct search *s, const struct wpt_fmt_child *child, uint64_t limit, uint32_t max, struct wpt_reader_run *runs,
		     uint32_t *nr, uint64_t *until)
{
	struct wpt_fmt_leaf cursor;
	struct wpt_cached *e;
	struct wpt_fmt_run run;
	int rc;

	*nr = 0;
	*until = limit;
	rc = leaf_get(s, child, &e);
	if (rc)
		return rc;
	cursor = leaf_from(e->data, s->page);
	while (*nr < max && (rc = wpt_fmt_leaf_next(&cursor, &run)) > 0) {
		if (run.page >= limit)
			break;
		if (run.page + run.nr_pages <= s->page)
			continue;
		rc = run_make(e->data, child, &run, &runs[*nr]);
		if (rc)
			break;
		if (run.page + run.nr_pages > limit)
			wpt_reader_run_cut(&runs[*nr], run.page, limit);
		*until = runs[*nr].page + runs[*nr].nr_pages;
		(*nr)++;
	}
	if (rc >= 0 && *nr < max)
		*until = limit;
	wpt_cache_put(s->r->cache, e);
	return WPT_MIN(rc, 0);
}

/* ---- where passes overlap: one run at a time ---- */

static int node_get(struct search *s, const struct wpt_fmt_child *child, uint32_t below, struct wpt_cached **out)
{
	if (s->budget-- == 0)
		return -WPT_E_DAMAGED;
	return wpt_reader_node(s->r, child, below, out);
}

static int first_run(struct search *s, const struct wpt_fmt_child *child, uint32_t below, uint64_t limit, struct wpt_reader_run *best,
		     bool *found);

/* The first run of one pass; where it begins before `limit`, and cut at it. */
static int first_of_pass(struct search *s, const struct wpt_node *n, uint32_t pass, uint64_t limit, struct wpt_reader_run *best, bool *found)
{
	uint32_t i, nr;
	uint64_t until;
	int rc = 0;

	*found = false;
	for (i = pass_find(n, pass, s->page); i < n->passes[pass + 1] && n->children[i].first_page < limit && !rc && !*found; i++) {
		if (n->level > 1) {
			rc = first_run(s, &n->children[i], n->level, limit, best, found);
			continue;
		}
		rc = leaf_runs(s, &n->children[i], limit, 1, best, &nr, &until);
		*found = nr > 0;
	}
	return rc;
}

/* The first run below a node, as the latest records have it: later passes first, each earlier one up to where a later one begins. */
static int first_run(struct search *s, const struct wpt_fmt_child *child, uint32_t below, uint64_t limit, struct wpt_reader_run *best,
		     bool *found)
{
	struct wpt_reader_run run;
	const struct wpt_node *n;
	struct wpt_cached *e;
	uint32_t pass;
	bool some;
	int rc;

	*found = false;
	rc = node_get(s, child, below, &e);
	if (rc)
		return rc;
	n = e->data;
	for (pass = n->nr_passes; pass-- > 0;) {
		rc = first_of_pass(s, n, pass, limit, &run, &some);
		if (rc)
			break;
		if (!some)
			continue;
		*found = true;
		*best = run;
		limit = run.page;
		if (limit <= s->page)
			break;
	}
	wpt_cache_put(s->r->cache, e);
	return rc;
}

/* ---- the usual case ---- */

static int fetch_one(struct search *s, const struct wpt_fmt_child *child, uint32_t below, uint64_t limit)
{
	struct wpt_cursor *c = s->c;
	bool found;
	int rc;

	rc = first_run(s, child, below, limit, &c->runs[0], &found);
	c->nr = found ? 1 : 0;
	c->until = found ? c->runs[0].page + c->runs[0].nr_pages : limit;
	return rc;
}

/* Fills the cursor with what the link has from the page on, before `limit`. */
static int fetch(struct search *s, const struct wpt_fmt_child *child, uint32_t below, uint64_t limit)
{
	const struct wpt_fmt_child *low = NULL, *at;
	uint64_t second = UINT64_MAX;
	const struct wpt_node *n;
	struct wpt_cached *e;
	uint32_t pass, i;
	int rc;

	rc = node_get(s, child, below, &e);
	if (rc)
		return rc;
	n = e->data;
	for (pass = 0; pass < n->nr_passes; pass++) {
		i = pass_find(n, pass, s->page);
		if (i == n->passes[pass + 1])
			continue;
		at = &n->children[i];
		if (!low || eff(at, s->page) < eff(low, s->page)) {
			second = low ? eff(low, s->page) : second;
			low = at;
		} else {
			second = WPT_MIN(second, eff(at, s->page));
		}
	}
	if (!low || eff(low, s->page) >= limit) {
		s->c->nr = 0;
		s->c->until = limit;
	} else if (second == eff(low, s->page)) {
		rc = fetch_one(s, child, below, limit);
	} else {
		limit = WPT_MIN(WPT_MIN(limit, second), low->end_page);
		if (n->level == 1)
			rc = leaf_runs(s, low, limit, WPT_CURSOR_RUNS, s->c->runs, &s->c->nr, &s->c->until);
		else
			rc = fetch(s, low, n->level, limit);
	}
	wpt_cache_put(s->r->cache, e);
	return rc;
}

int wpt_cursor_seek(struct wpt_reader *r, struct wpt_cursor *c, uint64_t page, const struct wpt_reader_run **run)
{
	struct search s = { r, c, page, 0 };
	int rc;

	*run = NULL;
	for (;;) {
		/* Between two fetches of one walk nothing is skipped; any other place begins anew. */
		if (page >= c->from && page < c->until) {
			if (c->next && c->runs[c->next - 1].page + c->runs[c->next - 1].nr_pages > page)
				c->next = 0;
			while (c->next < c->nr && c->runs[c->next].page + c->runs[c->next].nr_pages <= page)
				c->next++;
			if (c->next < c->nr) {
				*run = &c->runs[c->next];
				return 0;
			}
			page = c->until;
		}
		if (page >= r->end_page)
			return 0;
		if (!c->runs) {
			c->runs = malloc(WPT_CURSOR_RUNS * sizeof(*c->runs));
			if (!c->runs)
				return -ENOMEM;
		}
		s.page = page;
		s.budget = r->info.length / WPT_FMT_BLOCK_OVERHEAD + 1;
		c->next = 0;
		rc = fetch(&s, &r->root, WPT_FMT_LEVEL_MAX + 1, WPT_FMT_PAGES_END);
		if (rc) {
			c->nr = 0;
			c->from = c->until = 0;
			return rc;
		}
		c->from = page;
	}
}
