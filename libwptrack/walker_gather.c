/* SPDX-License-Identifier: MIT */
/*
 * The bytes of a long stretch in order of address, read in the order of the frames that hold them. Where a chain has hundreds of links,
 * neighbouring pages are in different frames, and each frame would be decompressed again for every page of it.
 */
#include "chain_impl.h"

#include <stdlib.h>

#define GATHER_BYTES ((size_t)64 << 20)
#define GATHER_RUNS 16384u

struct gathered {
	struct wpt_view_run run;
	size_t offset;          /* in the buffer, if it has data */
};

struct wpt_gather {
	struct wpt_chain *chain;
	struct wpt_walker *walker;
	struct gathered *runs;
	uint32_t *by_frame;     /* those with data, in the order of reading */
	uint32_t nr, next;
	uint8_t *buf;
	size_t buf_size, used;
	struct wpt_view_run ahead; /* did not fit the buffer */
	bool has_ahead;
};

int wpt_gather_open(struct wpt_gather **out, struct wpt_chain *c, uint64_t start, uint64_t end)
{
	const uint64_t least = (uint64_t)WPT_FMT_FRAME_PAGES * WPT_PAGE;
	struct wpt_gather *g = calloc(1, sizeof(*g));
	uint64_t len;
	int rc;

	if (!g)
		return -ENOMEM;
	g->chain = c;
	start = WPT_ALIGN_DOWN(start, WPT_PAGE);
	len = end > start ? end - start : 0;
	/* Of a small stretch no more than that; a run with data has at most the pages of a frame. */
	g->buf_size = (size_t)WPT_MIN(WPT_MAX(len, least), (uint64_t)GATHER_BYTES);
	g->buf = malloc(g->buf_size);
	g->runs = malloc(GATHER_RUNS * sizeof(*g->runs));
	g->by_frame = malloc(GATHER_RUNS * sizeof(*g->by_frame));
	rc = g->buf && g->runs && g->by_frame ? wpt_walker_open(&g->walker, c, start, end) : -ENOMEM;
	if (rc) {
		wpt_gather_close(g);
		return rc;
	}
	*out = g;
	return 0;
}

void wpt_gather_close(struct wpt_gather *g)
{
	if (!g)
		return;
	wpt_walker_close(g->walker);
	free(g->buf);
	free(g->runs);
	free(g->by_frame);
	free(g);
}

static int compare_frames(const void *a, const void *b, void *arg)
{
	const struct gathered *runs = arg, *x = &runs[*(const uint32_t *)a], *y = &runs[*(const uint32_t *)b];

	if (x->run.link != y->run.link)
		return x->run.link < y->run.link ? -1 : 1;
	if (x->run.r.frame.offset != y->run.r.frame.offset)
		return x->run.r.frame.offset < y->run.r.frame.offset ? -1 : 1;
	return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Runs as far as the buffer goes; 0 if there are no more. */
static int collect(struct wpt_gather *g, uint32_t *nr_data)
{
	struct wpt_view_run *run;
	uint64_t len;
	int rc;

	*nr_data = 0;
	g->nr = g->next = 0;
	g->used = 0;
	while (g->nr < GATHER_RUNS) {
		run = &g->runs[g->nr].run;
		if (g->has_ahead) {
			*run = g->ahead;
			g->has_ahead = false;
		} else {
			rc = wpt_walker_next(g->walker, run);
			if (rc <= 0)
				return rc;
		}
		if (run->view == WPT_VIEW_DATA) {
			len = run->end - run->start;
			if (len > g->buf_size - g->used) {
				g->ahead = *run;
				g->has_ahead = true;
				return len > g->buf_size ? -WPT_E_DAMAGED : 0;
			}
			g->runs[g->nr].offset = g->used;
			g->used += (size_t)len;
			g->by_frame[(*nr_data)++] = g->nr;
		}
		g->nr++;
	}
	return 0;
}

static int refill(struct wpt_gather *g)
{
	const struct gathered *x;
	uint32_t nr_data, i;
	int rc = collect(g, &nr_data);

	if (rc)
		return rc;
	qsort_r(g->by_frame, nr_data, sizeof(*g->by_frame), compare_frames, g->runs);
	for (i = 0; i < nr_data && !rc; i++) {
		x = &g->runs[g->by_frame[i]];
		rc = wpt_chain_run_read(g->chain, &x->run, x->run.start, g->buf + x->offset, (size_t)(x->run.end - x->run.start));
	}
	return rc;
}

int wpt_gather_next(struct wpt_gather *g, struct wpt_view_run *run, const uint8_t **data)
{
	const struct gathered *x;
	int rc;

	if (g->next == g->nr) {
		rc = refill(g);
		if (rc)
			return rc;
		if (!g->nr)
			return 0;
	}
	x = &g->runs[g->next++];
	*run = x->run;
	*data = run->view == WPT_VIEW_DATA ? g->buf + x->offset : NULL;
	return 1;
}
