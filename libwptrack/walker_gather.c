/* SPDX-License-Identifier: MIT */
/*
 * The bytes of a long stretch, read in the order of the frames that hold them: where a chain has hundreds of links, neighbouring
 * pages are in different frames, and each frame would be unpacked again for every page of it.
 *
 * The walk finds runs in order of address, as many as a window holds; those with data are sorted by frame, and threads take frame after frame:
 * unpack it, check the pages that are needed, hand them out. To scatter them a window is a number of runs, which is gigabytes of most
 * chains, and a frame is seldom unpacked twice; to gather them in order, a window is a buffer.
 */
#include "chain_impl.h"
#include "pipe.h"

#include <stdlib.h>

#define GATHER_BYTES ((size_t)64 << 20)
#define GATHER_RUNS 16384u
#define SCATTER_RUNS 262144u
#define JOBS_PER_THREAD 4u
#define JOB_PAGES 256u                /* of frames that a thread takes at a time */
#define PARALLEL_PAGES 2048u          /* in a window, from which on threads are worth their start */

struct piece {
	struct wpt_view_run run;
	size_t offset;                /* gather: in the buffer, if it has data */
};

struct sweep;

struct job {
	struct wpt_pipe_job pipe;
	uint32_t first, nr;           /* of by_frame */
};

struct sweep {
	struct wpt_chain *chain;
	struct wpt_walker *walker;
	struct piece *pieces;
	uint32_t nr, room;
	uint32_t *by_frame;           /* pieces with data, in the order of reading */
	uint32_t *link_ends;          /* to sort by link; one more than there are links */
	uint32_t nr_data;
	uint64_t data_pages;
	/* Where the pages go: from any thread, in any order. */
	int (*take)(void *arg, const struct piece *piece, const uint8_t *pages);
	void *arg;
	uint32_t nr_threads;
	struct wpt_unpacker *unpackers; /* one a thread; the first is the caller's as long as there is no pipe */
	struct wpt_pipe *pipe;
	struct job *jobs;
	size_t done;                  /* pages that were taken, atomic: not of 64 bits, which not every machine has */
};

/* ---- opening ---- */

static void sweep_close(struct sweep *s)
{
	uint32_t i;

	wpt_pipe_close(s->pipe);
	for (i = 0; s->unpackers && i < s->nr_threads; i++)
		wpt_unpacker_close(&s->unpackers[i]);
	wpt_walker_close(s->walker);
	free(s->unpackers);
	free(s->jobs);
	free(s->pieces);
	free(s->by_frame);
	free(s->link_ends);
}

static int sweep_open(struct sweep *s, struct wpt_chain *c, uint64_t start, uint64_t end, uint32_t nr_threads, uint32_t room)
{
	s->chain = c;
	s->room = room;
	s->nr_threads = nr_threads;
	s->pieces = malloc(room * sizeof(*s->pieces));
	s->by_frame = malloc(room * sizeof(*s->by_frame));
	s->link_ends = malloc(((size_t)c->nr_links + 1) * sizeof(*s->link_ends));
	s->unpackers = calloc(nr_threads, sizeof(*s->unpackers));
	if (!s->pieces || !s->by_frame || !s->link_ends || !s->unpackers)
		return -ENOMEM;
	return wpt_walker_open(&s->walker, c, start, end);
}

/* ---- the order of reading ---- */

static int compare_frames(const void *a, const void *b, void *arg)
{
	const struct piece *pieces = arg, *x = &pieces[*(const uint32_t *)a], *y = &pieces[*(const uint32_t *)b];

	if (x->run.r.frame.offset != y->run.r.frame.offset)
		return x->run.r.frame.offset < y->run.r.frame.offset ? -1 : 1;
	return (x->run.start > y->run.start) - (x->run.start < y->run.start);
}

/* By link, and within a link, where most often they are in order already, by frame. */
static void sort_pieces(struct sweep *s)
{
	uint32_t *at = s->link_ends, i, from, link;

	memset(at, 0, ((size_t)s->chain->nr_links + 1) * sizeof(*at));
	for (i = 0; i < s->nr; i++)
		if (s->pieces[i].run.view == WPT_VIEW_DATA)
			at[s->pieces[i].run.link + 1]++;
	for (link = 0; link < s->chain->nr_links; link++)
		at[link + 1] += at[link];
	for (i = 0; i < s->nr; i++)
		if (s->pieces[i].run.view == WPT_VIEW_DATA)
			s->by_frame[at[s->pieces[i].run.link]++] = i;
	/* Now at[link] is where the link ends. */
	for (from = 0, link = 0; link < s->chain->nr_links; from = at[link++]) {
		for (i = from + 1; i < at[link]; i++)
			if (compare_frames(&s->by_frame[i - 1], &s->by_frame[i], s->pieces) > 0)
				break;
		if (i < at[link])
			qsort_r(s->by_frame + from, at[link] - from, sizeof(*s->by_frame), compare_frames, s->pieces);
	}
}

static const struct wpt_view_run *data_run(const struct sweep *s, uint32_t i)
{
	return &s->pieces[s->by_frame[i]].run;
}

static bool same_frame(const struct wpt_view_run *a, const struct wpt_view_run *b)
{
	const struct wpt_fmt_frame_info *x = &a->r.frame, *y = &b->r.frame;

	return a->link == b->link && x->offset == y->offset && x->length == y->length && x->nr_pages == y->nr_pages &&
	       x->checksum == y->checksum;
}

/* Pieces from i on, before `end`, of one frame, and how many of its pages they need. */
static uint32_t frame_pieces(const struct sweep *s, uint32_t i, uint32_t end, uint32_t *pages)
{
	uint32_t n = 0;

	*pages = 0;
	for (; i + n < end && same_frame(data_run(s, i), data_run(s, i + n)); n++)
		*pages = WPT_MAX(*pages, data_run(s, i + n)->r.slot + (uint32_t)data_run(s, i + n)->r.nr_pages);
	return n;
}

/* ---- unpacking ---- */

static int unpack_frame(struct sweep *s, struct wpt_unpacker *u, uint32_t i, uint32_t nr, uint32_t pages)
{
	const struct wpt_view_run *run = data_run(s, i);
	struct wpt_reader *r = s->chain->links[run->link].reader;
	const uint8_t *from;
	int rc = wpt_reader_unpack(r, &run->r.frame, pages, u);

	for (; nr && !rc; nr--, i++) {
		run = data_run(s, i);
		from = u->pages + (size_t)run->r.slot * WPT_PAGE;
		rc = wpt_reader_check(r, &run->r, from);
		if (!rc)
			rc = s->take(s->arg, &s->pieces[s->by_frame[i]], from);
		if (!rc)
			__atomic_fetch_add(&s->done, (size_t)((run->end - run->start) / WPT_PAGE), __ATOMIC_RELAXED);
	}
	return rc;
}

static int unpack_pieces(struct sweep *s, struct wpt_unpacker *u, uint32_t i, uint32_t end)
{
	uint32_t pages, n;
	int rc = 0;

	if (!u->pages)
		rc = wpt_unpacker_open(u);
	for (; i < end && !rc; i += n) {
		n = frame_pieces(s, i, end, &pages);
		rc = unpack_frame(s, u, i, n, pages);
	}
	return rc;
}

static int work(void *arg, uint32_t thread, struct wpt_pipe_job *pipe_job)
{
	struct job *job = (struct job *)pipe_job;
	struct sweep *s = arg;

	return unpack_pieces(s, &s->unpackers[thread], job->first, job->first + job->nr);
}

static int emit(void *arg, struct wpt_pipe_job *job)
{
	(void)arg;
	(void)job;
	return 0;
}

static int pipe_open(struct sweep *s)
{
	struct wpt_pipe_params p = { .nr_threads = s->nr_threads, .out_bytes = WPT_PAGE, .work = work, .emit = emit, .arg = s };
	uint32_t i;
	int rc;

	s->jobs = calloc((size_t)s->nr_threads * JOBS_PER_THREAD, sizeof(*s->jobs));
	if (!s->jobs)
		return -ENOMEM;
	rc = wpt_pipe_open(&s->pipe, &p);
	for (i = 0; i < s->nr_threads * JOBS_PER_THREAD && !rc; i++)
		wpt_pipe_add(s->pipe, &s->jobs[i].pipe);
	return rc;
}

/* Hands the window's frames to the threads; `between` is called here meanwhile. */
static int unpack_parallel(struct sweep *s, int (*between)(void *arg))
{
	struct wpt_pipe_job *free;
	struct job *job;
	uint32_t i, n, pages, sum;
	int rc = s->pipe ? 0 : pipe_open(s), drained;

	for (i = 0; i < s->nr_data && !rc;) {
		rc = wpt_pipe_get(s->pipe, &free, true);
		if (rc)
			break;
		job = (struct job *)free;
		job->first = i;
		for (sum = 0; i < s->nr_data && sum < JOB_PAGES; i += n, sum += pages)
			n = frame_pieces(s, i, s->nr_data, &pages);
		job->nr = i - job->first;
		rc = wpt_pipe_submit(s->pipe, free, false);
		if (!rc)
			rc = between(s->arg);
	}
	if (!s->pipe)
		return rc;
	if (rc)
		wpt_pipe_fail(s->pipe, rc);
	drained = wpt_pipe_drain(s->pipe);
	return rc ? rc : drained;
}

static int unpack_serial(struct sweep *s, int (*between)(void *arg))
{
	uint32_t i, n, pages;
	int rc = 0;

	for (i = 0; i < s->nr_data && !rc; i += n) {
		n = frame_pieces(s, i, s->nr_data, &pages);
		rc = unpack_pieces(s, &s->unpackers[0], i, i + n);
		if (!rc)
			rc = between(s->arg);
	}
	return rc;
}

/* Takes all pages of the window. */
static int sweep_window(struct sweep *s, int (*between)(void *arg))
{
	sort_pieces(s);
	if (s->nr_threads > 1 && (s->pipe || s->data_pages >= PARALLEL_PAGES))
		return unpack_parallel(s, between);
	return unpack_serial(s, between);
}

static void window_begin(struct sweep *s)
{
	s->nr = s->nr_data = 0;
	s->data_pages = 0;
}

static void window_add(struct sweep *s, const struct wpt_view_run *run, size_t offset)
{
	s->pieces[s->nr].run = *run;
	s->pieces[s->nr++].offset = offset;
	if (run->view != WPT_VIEW_DATA)
		return;
	s->nr_data++;
	s->data_pages += run->r.nr_pages;
}

/* ---- in any order ---- */

struct scattering {
	struct sweep sweep;
	const struct wpt_scatter *to;
	size_t reported;
};

static int scatter_take(void *arg, const struct piece *piece, const uint8_t *pages)
{
	const struct scattering *x = arg;

	return x->to->data(x->to->arg, piece->run.start, pages, piece->run.end - piece->run.start);
}

static int scatter_report(void *arg)
{
	struct scattering *x = arg;
	size_t done = __atomic_load_n(&x->sweep.done, __ATOMIC_RELAXED), more = done - x->reported;

	x->reported = done;
	return more && x->to->progress ? x->to->progress(x->to->arg, (uint64_t)more * WPT_PAGE) : 0;
}

static int scatter_all(struct scattering *x)
{
	struct sweep *s = &x->sweep;
	struct wpt_view_run run;
	int rc, got;

	do {
		window_begin(s);
		while ((got = wpt_walker_next(s->walker, &run)) > 0) {
			if (run.view == WPT_VIEW_DATA) {
				window_add(s, &run, 0);
				if (s->nr == s->room)
					break;
				continue;
			}
			rc = x->to->rest(x->to->arg, &run);
			if (rc)
				return rc;
		}
		rc = got < 0 ? got : sweep_window(s, scatter_report);
		if (!rc)
			rc = scatter_report(x);
	} while (!rc && got > 0);
	return rc;
}

int wpt_chain_scatter(struct wpt_chain *c, uint64_t start, uint64_t end, uint32_t nr_threads, const struct wpt_scatter *to)
{
	struct scattering x = { .to = to };
	int rc;

	x.sweep.take = scatter_take;
	x.sweep.arg = &x;
	rc = sweep_open(&x.sweep, c, start, end, nr_threads, to->window ? to->window : SCATTER_RUNS);
	if (!rc)
		rc = scatter_all(&x);
	sweep_close(&x.sweep);
	return rc;
}

/* ---- in order of address ---- */

struct wpt_gather {
	struct sweep sweep;
	uint32_t next;             /* piece to be given out */
	uint8_t *buf;
	size_t buf_size, used;
	struct wpt_view_run ahead; /* did not fit the buffer */
	bool has_ahead;
};

static int gather_take(void *arg, const struct piece *piece, const uint8_t *pages)
{
	struct wpt_gather *g = arg;

	memcpy(g->buf + piece->offset, pages, (size_t)(piece->run.end - piece->run.start));
	return 0;
}

static int gather_between(void *arg)
{
	(void)arg;
	return 0;
}

int wpt_gather_open(struct wpt_gather **out, struct wpt_chain *c, uint64_t start, uint64_t end, uint32_t nr_threads)
{
	const uint64_t least = (uint64_t)WPT_FMT_FRAME_PAGES * WPT_PAGE;
	struct wpt_gather *g = calloc(1, sizeof(*g));
	uint64_t len;
	int rc;

	if (!g)
		return -ENOMEM;
	start = WPT_ALIGN_DOWN(start, WPT_PAGE);
	len = end > start ? end - start : 0;
	/* Of a small stretch no more than that; a run with data has at most the pages of a frame. */
	g->buf_size = (size_t)WPT_MIN(WPT_MAX(len, least), (uint64_t)GATHER_BYTES);
	g->sweep.take = gather_take;
	g->sweep.arg = g;
	rc = sweep_open(&g->sweep, c, start, end, nr_threads, GATHER_RUNS);
	g->buf = malloc(g->buf_size);
	if (!g->buf)
		rc = -ENOMEM;
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
	sweep_close(&g->sweep);
	free(g->buf);
	free(g);
}

/* Runs as far as the buffer goes; none if there are no more. */
static int collect(struct wpt_gather *g)
{
	struct wpt_view_run run;
	uint64_t len;
	int rc;

	window_begin(&g->sweep);
	g->next = 0;
	g->used = 0;
	while (g->sweep.nr < g->sweep.room) {
		if (g->has_ahead) {
			run = g->ahead;
			g->has_ahead = false;
		} else {
			rc = wpt_walker_next(g->sweep.walker, &run);
			if (rc <= 0)
				return rc;
		}
		len = run.view == WPT_VIEW_DATA ? run.end - run.start : 0;
		if (len > g->buf_size - g->used) {
			g->ahead = run;
			g->has_ahead = true;
			return len > g->buf_size ? -WPT_E_DAMAGED : 0;
		}
		window_add(&g->sweep, &run, g->used);
		g->used += (size_t)len;
	}
	return 0;
}

int wpt_gather_next(struct wpt_gather *g, struct wpt_view_run *run, const uint8_t **data)
{
	const struct piece *x;
	int rc;

	if (g->next == g->sweep.nr) {
		rc = collect(g);
		if (!rc)
			rc = sweep_window(&g->sweep, gather_between);
		if (rc) {
			/* What was not filled is not given out by a further call. */
			g->next = g->sweep.nr;
			return rc;
		}
		if (!g->sweep.nr)
			return 0;
	}
	x = &g->sweep.pieces[g->next++];
	*run = x->run;
	*data = run->view == WPT_VIEW_DATA ? g->buf + x->offset : NULL;
	return 1;
}
