/* SPDX-License-Identifier: MIT */
/*
 * What each page is at the last link. At an address, links are asked from the newest to the oldest; the first that mentions the page, that
 * does not cover it, or that is full, decides. Every answer holds for a stretch, and the run is what all of them agree on; per
 * link it is remembered up to where it has nothing, so that a long chain of small links costs little more than one link.
 */
#include "chain_impl.h"

#include <stdlib.h>

/* Of longer chains no walker is kept: they take memory by the link. */
#define IDLE_LINKS 4096u

struct position {
	struct wpt_cursor cursor;
	uint64_t silent_until;  /* page number: before it the link mentions nothing */
	uint32_t span;          /* the first one that ends behind where the walk is, or one before that */
};

struct wpt_walker {
	struct wpt_chain *chain;
	uint64_t at, end;
	uint64_t known_from;    /* positions hold for this address and behind it */
	struct wpt_view_run ahead;
	bool has_ahead;
	struct position positions[];
};

int wpt_walker_open(struct wpt_walker **out, struct wpt_chain *c, uint64_t start, uint64_t end)
{
	struct wpt_walker *w = calloc(1, sizeof(*w) + c->nr_links * sizeof(*w->positions));

	if (!w)
		return -ENOMEM;
	w->chain = c;
	w->at = WPT_ALIGN_DOWN(start, WPT_PAGE);
	w->end = WPT_ALIGN_DOWN(end, WPT_PAGE);
	*out = w;
	return 0;
}

int wpt_walker_take(struct wpt_walker **out, struct wpt_chain *c, uint64_t start, uint64_t end)
{
	struct wpt_walker *w = NULL;
	unsigned int i, best = WPT_IDLE_WALKERS;

	start = WPT_ALIGN_DOWN(start, WPT_PAGE);
	pthread_mutex_lock(&c->idle_lock);
	for (i = 0; i < WPT_IDLE_WALKERS; i++)
		if (c->idle[i] && c->idle[i]->known_from <= start &&
		    (best == WPT_IDLE_WALKERS || c->idle[i]->known_from > c->idle[best]->known_from))
			best = i;
	if (best < WPT_IDLE_WALKERS) {
		w = c->idle[best];
		c->idle[best] = NULL;
	}
	pthread_mutex_unlock(&c->idle_lock);
	if (!w)
		return wpt_walker_open(out, c, start, end);
	w->at = start;
	w->end = WPT_ALIGN_DOWN(end, WPT_PAGE);
	w->has_ahead = false;
	*out = w;
	return 0;
}

void wpt_walker_give(struct wpt_walker *w)
{
	struct wpt_walker *old;
	struct wpt_chain *c;
	unsigned int i, slot = 0;

	if (!w)
		return;
	c = w->chain;
	if (c->nr_links <= IDLE_LINKS) {
		pthread_mutex_lock(&c->idle_lock);
		for (i = 0; i < WPT_IDLE_WALKERS && c->idle[slot]; i++)
			if (!c->idle[i] || c->idle[i]->known_from > c->idle[slot]->known_from)
				slot = i;
		/* In the place of the one that is the furthest, which is of the least use. */
		old = c->idle[slot];
		c->idle[slot] = w;
		w = old;
		pthread_mutex_unlock(&c->idle_lock);
	}
	wpt_walker_close(w);
}

void wpt_walker_close(struct wpt_walker *w)
{
	uint32_t i;

	if (!w)
		return;
	for (i = 0; i < w->chain->nr_links; i++)
		wpt_cursor_free(&w->positions[i].cursor);
	free(w);
}

/* The first span from `from` on that ends behind `at`. Usually it is `from` or the one after it. */
static uint32_t span_find(const struct wpt_spans *s, uint32_t from, uint64_t at)
{
	uint32_t low = from, high = s->nr, middle;

	for (middle = from; middle < s->nr && middle < from + 2; middle++)
		if (s->spans[middle].end > at)
			return middle;
	while (low < high) {
		middle = low + (high - low) / 2;
		if (s->spans[middle].end > at)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* Whether link i covers w->at; *until: as far as that holds. */
static bool is_covered(struct wpt_walker *w, uint32_t i, uint64_t *until)
{
	const struct wpt_spans *s = w->chain->links[i].spans;
	uint32_t *span = &w->positions[i].span;

	*span = span_find(s, *span, w->at);
	if (*span == s->nr)
		return false;
	if (s->spans[*span].start > w->at) {
		*until = WPT_MIN(*until, s->spans[*span].start);
		return false;
	}
	*until = WPT_MIN(*until, s->spans[*span].end);
	return true;
}

static enum wpt_view view_of(uint32_t kind)
{
	switch ((enum wpt_fmt_kind)kind) {
	case WPT_FMT_DATA:
	case WPT_FMT_TORN:
	case WPT_FMT_DUPLICATE:
		return WPT_VIEW_DATA;
	case WPT_FMT_ZERO:
		return WPT_VIEW_ZERO;
	case WPT_FMT_UNREADABLE:
		return WPT_VIEW_UNREADABLE;
	case WPT_FMT_GUARD:
		return WPT_VIEW_GUARD;
	}
	return WPT_VIEW_UNREADABLE;
}

/* What link i has at w->at: 1 and the record in *run; 0 if it mentions nothing until *until. */
static int link_record(struct wpt_walker *w, uint32_t i, uint64_t *until, const struct wpt_reader_run **run)
{
	struct position *p = &w->positions[i];
	uint64_t page = w->at >> WPT_PAGE_SHIFT;
	int rc;

	*run = NULL;
	if (p->silent_until <= page) {
		rc = wpt_cursor_seek(w->chain->links[i].reader, &p->cursor, page, run);
		if (rc < 0)
			return rc;
		if (*run && (*run)->page <= page)
			return 1;
		p->silent_until = *run ? (*run)->page : UINT64_MAX;
	}
	if (p->silent_until < *until >> WPT_PAGE_SHIFT)
		*until = p->silent_until << WPT_PAGE_SHIFT;
	return 0;
}

/* The run at w->at. */
static int step(struct wpt_walker *w, struct wpt_view_run *out)
{
	const struct wpt_reader_run *record;
	uint64_t until = w->end, first;
	uint32_t i = w->chain->nr_links;
	int rc;

	*out = (struct wpt_view_run){ .start = w->at, .view = WPT_VIEW_ZERO };
	w->known_from = w->at;
	if (!is_covered(w, i - 1, &until)) {
		out->view = WPT_VIEW_UNTRACKED;
		goto done;
	}
	while (i--) {
		if (i + 1 < w->chain->nr_links && !is_covered(w, i, &until))
			break;
		rc = link_record(w, i, &until, &record);
		if (rc < 0)
			return rc;
		if (rc) {
			first = w->at >> WPT_PAGE_SHIFT;
			if (record->page + record->nr_pages < until >> WPT_PAGE_SHIFT)
				until = (record->page + record->nr_pages) << WPT_PAGE_SHIFT;
			out->view = view_of(record->kind);
			out->link = i;
			out->r = *record;
			wpt_reader_run_cut(&out->r, first, until >> WPT_PAGE_SHIFT);
			break;
		}
		if (wpt_reader_info(w->chain->links[i].reader)->head.flags & WPT_FMT_FULL)
			break;
	}
done:
	out->end = w->at = until;
	return 1;
}

int wpt_walker_next(struct wpt_walker *w, struct wpt_view_run *run)
{
	int rc;

	if (w->has_ahead) {
		*run = w->ahead;
		w->has_ahead = false;
	} else {
		if (w->at >= w->end)
			return 0;
		rc = step(w, run);
		if (rc < 0)
			return rc;
	}
	while (run->view != WPT_VIEW_DATA && w->at < w->end) {
		rc = step(w, &w->ahead);
		if (rc < 0)
			return rc;
		if (w->ahead.view != run->view) {
			w->has_ahead = true;
			break;
		}
		run->end = w->ahead.end;
	}
	return 1;
}

int wpt_chain_run_read(struct wpt_chain *c, const struct wpt_view_run *run, uint64_t addr, void *buf, size_t len)
{
	struct wpt_reader *r = c->links[run->link].reader;
	uint8_t *to = buf;
	uint64_t index, nr;
	size_t offset, n;
	int rc = 0;

	for (; len && !rc; len -= n, addr += n, to += n) {
		index = (addr - run->start) >> WPT_PAGE_SHIFT;
		offset = addr & (WPT_PAGE - 1);
		if (offset || len < WPT_PAGE) {
			n = WPT_MIN(len, WPT_PAGE - offset);
			rc = wpt_reader_page_part(r, &run->r, index, offset, to, n);
		} else {
			nr = WPT_MIN(len / WPT_PAGE, (size_t)WPT_FMT_FRAME_PAGES);
			n = (size_t)nr * WPT_PAGE;
			rc = wpt_reader_pages(r, &run->r, index, nr, to);
		}
	}
	return rc;
}

int wpt_chain_run_hashes(struct wpt_chain *c, const struct wpt_view_run *run, uint64_t first, uint64_t nr_pages, struct wpt_hash *hashes)
{
	return wpt_reader_hashes(c->links[run->link].reader, &run->r, (first - run->start) >> WPT_PAGE_SHIFT, nr_pages, hashes->b);
}
