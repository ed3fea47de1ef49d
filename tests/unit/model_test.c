/* SPDX-License-Identifier: MIT */
/*
 * Chains of a shape that the writer does not make but that the specification allows: trees of several levels over leaves that overlap in
 * any way, frames that later leaves point into, ranges that come and go, full links in the midst. What each page is is found by the rules of
 * wptrack-snapshot(5), section READING, in a table; every way to read a chain must say the same.
 */
#include "chain.h"
#include "forge.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGES 300u
#define FIRST 0x7f0000000ull
#define LINKS 6u
#define LEVELS 5u
#define FRAMES 64u

struct said {
	uint32_t kind;             /* 0: the link does not mention the page */
	uint64_t value;            /* of data: what the page is full of */
};

struct link {
	bool full;
	bool covered[PAGES];
	struct said said[PAGES];
};

struct frame {
	struct wpt_fmt_frame_info info;
	uint64_t values[64];
};

struct world {
	struct forge f;
	struct wpt_fmt_node_builder nodes[LEVELS];
	struct link links[LINKS];
	uint32_t nr_links;
	size_t ends[LINKS];
	struct frame frames[FRAMES]; /* of the link in hand */
	uint32_t nr_frames;
	uint64_t values;             /* used so far */
};

static uint64_t random_state;

static uint64_t rnd(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state >> 11) % below;
}

static void fill(uint8_t *page, uint64_t value)
{
	for (uint32_t i = 0; i < WPT_PAGE; i += 8)
		memcpy(page + i, &value, 8);
}

/* ---- making ---- */

static void node_close(struct world *w, uint32_t i, uint32_t to)
{
	struct wpt_fmt_child child = w->nodes[i].sum;

	child.offset = w->f.len - w->f.start;
	child.length = (uint32_t)wpt_fmt_node_end(&w->nodes[i], i + 1);
	forge_put(&w->f, w->nodes[i].buf, child.length);
	wpt_fmt_node_begin(&w->nodes[i]);
	assert_int_equal(wpt_fmt_node_add(&w->nodes[to], &child), 0);
}

/* Nodes are closed at any time; one may become the child of a node two levels higher. */
static void nodes_close(struct world *w)
{
	for (uint32_t i = 0; i + 1 < LEVELS; i++) {
		uint32_t to = i + 1;

		if (!w->nodes[i].nr || rnd(3))
			return;
		if (to + 1 < LEVELS && !w->nodes[to].nr && !rnd(3))
			to++;
		node_close(w, i, to);
	}
}

static void leaf_close(struct world *w)
{
	struct forge *f = &w->f;
	struct wpt_fmt_child child = { f->len - f->start, 0, 0, f->leaf.first_page, f->leaf.end_page, f->leaf.nr_pages };

	if (f->leaf.nr_runs) {
		child.length = (uint32_t)wpt_fmt_leaf_end(&f->leaf);
		forge_put(f, f->leaf.buf, child.length);
		assert_int_equal(wpt_fmt_node_add(&w->nodes[0], &child), 0);
		nodes_close(w);
	}
	wpt_fmt_leaf_begin(&f->leaf);
}

static void nodes_finish(struct world *w)
{
	struct forge *f = &w->f;
	uint32_t top = 0, i;

	for (i = 0; i < LEVELS; i++)
		if (w->nodes[i].nr)
			top = i;
	for (i = 0; i < top; i++)
		if (w->nodes[i].nr)
			node_close(w, i, i + 1);
	memcpy(f->node.buf, w->nodes[top].buf, w->nodes[top].used);
	f->node.used = w->nodes[top].used;
	f->node.nr = w->nodes[top].nr;
	f->level = top + 1;
	for (i = 0; i < LEVELS; i++)
		wpt_fmt_node_begin(&w->nodes[i]);
}

/* A new frame, of values that may have come before, or one of the link's that the leaf in hand does not list yet. */
static uint32_t some_frame(struct world *w, struct frame **out)
{
	static uint8_t bytes[64 * WPT_PAGE];
	struct wpt_fmt_frame_info *info;
	uint32_t ordinal, nr;
	struct frame *x;

	if (w->nr_frames == FRAMES || (w->nr_frames && !rnd(2))) {
		*out = &w->frames[rnd(w->nr_frames)];
		return (uint32_t)wpt_fmt_leaf_add_frame(&w->f.leaf, &(*out)->info);
	}
	x = &w->frames[w->nr_frames++];
	info = &x->info;
	nr = 1 + (uint32_t)rnd(64);
	for (uint32_t i = 0; i < nr; i++) {
		x->values[i] = rnd(4) ? ++w->values : 1 + rnd(w->values + 1);
		fill(bytes + (size_t)i * WPT_PAGE, x->values[i]);
	}
	info->offset = w->f.len - w->f.start;
	ordinal = forge_frame(&w->f, bytes, (size_t)nr * WPT_PAGE, nr);
	info->length = (uint32_t)(w->f.len - w->f.start - info->offset);
	info->nr_pages = nr;
	info->checksum = wpt_fmt_checksum(w->f.bytes + w->f.start + info->offset, info->length);
	*out = x;
	return ordinal;
}

static uint64_t *counter(struct wpt_fmt_counts *c, uint32_t kind)
{
	uint64_t *all[] = { NULL, &c->data, &c->torn, &c->duplicate, &c->zero, &c->unreadable, &c->guard };

	return all[kind];
}

static uint32_t add_run(struct world *w, uint32_t page, uint32_t most)
{
	struct link *l = &w->links[w->nr_links];
	uint32_t kind = rnd(2) ? 1 + (uint32_t)rnd(3) : 1 + (uint32_t)rnd(6), nr = 1 + (uint32_t)rnd(most), frame = 0, slot = 0;
	static uint8_t bytes[64 * WPT_PAGE];
	struct frame *x = NULL;

	if (wpt_fmt_has_data(kind)) {
		frame = some_frame(w, &x);
		slot = (uint32_t)rnd(x->info.nr_pages);
		nr = WPT_MIN(nr, x->info.nr_pages - slot);
		for (uint32_t i = 0; i < nr; i++)
			fill(bytes + (size_t)i * WPT_PAGE, x->values[slot + i]);
	}
	forge_run(&w->f, kind, FIRST + page, nr, frame, slot, x ? bytes : NULL);
	*counter(&w->f.root.counts, kind) += nr;
	for (uint32_t i = 0; i < nr; i++)
		l->said[page + i] = (struct said){ kind, x ? x->values[slot + i] : 0 };
	return page + nr;
}

static void add_leaf(struct world *w)
{
	uint32_t page = (uint32_t)rnd(PAGES), end = page + 1 + (uint32_t)rnd(PAGES - page), runs = 1 + (uint32_t)rnd(rnd(4) ? 6 : 90);

	while (page < end && runs--) {
		uint32_t most = rnd(4) ? 9 : 60;

		page = add_run(w, page, WPT_MIN(end - page, most)) + (uint32_t)rnd(rnd(3) ? 2 : 30);
	}
	leaf_close(w);
}

static void add_ranges(struct world *w)
{
	static uint8_t bytes[PAGES * WPT_FMT_RANGE_MAX / 32];
	struct link *l = &w->links[w->nr_links];
	uint32_t page = (uint32_t)rnd(3) ? 0 : (uint32_t)rnd(PAGES / 2), end, most;
	size_t len = 0;

	memset(l->covered, 0, sizeof(l->covered));
	for (; page < PAGES; page = end + (uint32_t)rnd(2) * (uint32_t)rnd(20)) {
		most = rnd(2) ? 30 : PAGES;
		end = page + 1 + (uint32_t)rnd(WPT_MIN(PAGES - page, most));
		len += forge_range(bytes + len, (FIRST + page) << 12, (FIRST + end) << 12, "m");
		for (; page < end; page++)
			l->covered[page] = true;
	}
	forge_section(&w->f, WPT_FMT_SECTION_RANGES, bytes, len);
}

static void add_link(struct world *w)
{
	struct link *l = &w->links[w->nr_links];
	uint32_t leaves = (uint32_t)rnd(rnd(2) ? 4 : 30);

	l->full = !w->nr_links || !rnd(8);
	if (w->nr_links)
		forge_next(&w->f);
	w->f.head.flags = l->full ? WPT_FMT_FULL | WPT_FMT_ORIGIN : 0;
	forge_link(&w->f);
	w->nr_frames = 0;
	if (w->nr_links)
		memcpy(l->covered, w->links[w->nr_links - 1].covered, sizeof(l->covered));
	while (leaves--)
		add_leaf(w);
	nodes_finish(w);
	if (l->full || !rnd(2))
		add_ranges(w);
	forge_end(&w->f);
	w->ends[w->nr_links++] = w->f.len;
}

static struct world *world_new(uint64_t seed, uint32_t nr_links)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	random_state = seed * 0x9e3779b97f4a7c15u + 1;
	forge_open(&w->f);
	for (uint32_t i = 0; i < LEVELS; i++) {
		w->nodes[i].buf = malloc(WPT_FMT_BLOCK_MAX);
		assert_non_null(w->nodes[i].buf);
		wpt_fmt_node_begin(&w->nodes[i]);
	}
	while (w->nr_links < nr_links)
		add_link(w);
	forge_seal(&w->f);
	return w;
}

static void world_free(struct world *w)
{
	for (uint32_t i = 0; i < LEVELS; i++)
		free(w->nodes[i].buf);
	forge_close(&w->f);
	free(w);
}

/* ---- what is so ---- */

/* By the specification: 0 and what is said, -1 if the page is not part of the snapshot. */
static int look_up(const struct world *w, uint32_t link, uint32_t page, struct said *out)
{
	*out = (struct said){ WPT_FMT_ZERO, 0 };
	if (!w->links[link].covered[page])
		return -1;
	for (;;) {
		const struct link *l = &w->links[link];

		if (l->said[page].kind) {
			*out = l->said[page];
			return 0;
		}
		if (l->full || !w->links[--link].covered[page])
			return 0;
	}
}

static enum wpt_view view_of(const struct world *w, uint32_t link, uint32_t page, struct said *s)
{
	if (look_up(w, link, page, s))
		return WPT_VIEW_UNTRACKED;
	switch (s->kind) {
	case WPT_FMT_ZERO:
		return WPT_VIEW_ZERO;
	case WPT_FMT_UNREADABLE:
		return WPT_VIEW_UNREADABLE;
	case WPT_FMT_GUARD:
		return WPT_VIEW_GUARD;
	default:
		return WPT_VIEW_DATA;
	}
}

/* All of the window, and a page more on each side. */
static void image(const struct world *w, uint32_t link, uint8_t *out, bool *unreadable)
{
	struct said s;

	memset(out, 0, (size_t)(PAGES + 2) * WPT_PAGE);
	for (uint32_t i = 0; i < PAGES; i++) {
		enum wpt_view view = view_of(w, link, i, &s);

		unreadable[i + 1] = view == WPT_VIEW_UNREADABLE;
		if (view == WPT_VIEW_DATA)
			fill(out + (size_t)(i + 1) * WPT_PAGE, s.value);
	}
}

/* ---- what is read ---- */

#define START ((FIRST - 1) << 12)
#define BYTES ((size_t)(PAGES + 2) * WPT_PAGE)

static void check_reads(struct wpt_chain *c, const uint8_t *want, const bool *unreadable, uint8_t *got)
{
	for (int i = 0; i < 60; i++) {
		size_t at = rnd(BYTES), len = 1 + rnd(rnd(3) ? 3 * WPT_PAGE : BYTES);
		bool any = false;

		len = WPT_MIN(len, BYTES - at);
		for (size_t p = at / WPT_PAGE; p <= (at + len - 1) / WPT_PAGE; p++)
			any |= unreadable[p];
		memset(got, 0xa5, len);
		assert_int_equal(wpt_chain_read(c, START + at, got, len), any ? -WPT_E_UNREADABLE : 0);
		assert_memory_equal(got, want + at, len);
	}
}

static void check_walk(const struct world *w, uint32_t link, struct wpt_chain *c)
{
	struct wpt_walker *walker;
	struct wpt_view_run run;
	uint64_t at = 0;
	struct said s;
	int rc;

	assert_int_equal(wpt_walker_open(&walker, c, 0, UINT64_MAX), 0);
	while ((rc = wpt_walker_next(walker, &run)) > 0) {
		assert_true(run.start == at && run.end > at);
		at = run.end;
		for (uint32_t i = 0; i < PAGES; i++) {
			uint64_t addr = (FIRST + i) << 12;

			if (addr >= run.start && addr < run.end)
				assert_int_equal(run.view, view_of(w, link, i, &s));
		}
		if (run.start >= (FIRST + PAGES) << 12 || run.end <= FIRST << 12)
			assert_int_equal(run.view, WPT_VIEW_UNTRACKED);
	}
	assert_int_equal(rc, 0);
	assert_true(at == WPT_ALIGN_DOWN(UINT64_MAX, WPT_PAGE));
	wpt_walker_close(walker);
}

static int put(void *arg, uint64_t addr, const uint8_t *data, uint64_t len)
{
	memcpy((uint8_t *)arg + (addr - START), data, len);
	return 0;
}

static int rest(void *arg, const struct wpt_view_run *run)
{
	memset((uint8_t *)arg + (run->start - START), 0, run->end - run->start);
	return 0;
}

static void check_restores(struct wpt_chain *c, const uint8_t *want, const bool *unreadable, uint8_t *got)
{
	const struct wpt_scatter to = { .data = put, .rest = rest, .arg = got, .window = 1 + (uint32_t)rnd(20) };
	uint64_t nr, nr_want = 0;
	size_t at, len;

	memset(got, 0xa5, BYTES);
	assert_int_equal(wpt_chain_scatter(c, START, START + BYTES, 1, &to), 0);
	assert_memory_equal(got, want, BYTES);
	at = rnd(BYTES);
	len = rnd(BYTES - at + 1);
	assert_int_equal(wpt_chain_set_threads(c, 1 + (uint32_t)rnd(3)), 0);
	for (size_t p = at / WPT_PAGE; len && p <= (at + len - 1) / WPT_PAGE; p++)
		nr_want += unreadable[p];
	memset(got, 0xa5, BYTES);
	assert_int_equal(wpt_chain_restore_memory(c, START + at, START + at + len, got + 3, &nr), 0);
	assert_true(nr == nr_want);
	assert_memory_equal(got + 3, want + at, len);
	assert_true(len + 3 == BYTES || got[len + 3] == 0xa5);
}

static void check_chain(const struct world *w, uint32_t link, struct wpt_chain *c)
{
	static uint8_t want[BYTES], got[BYTES + 16];
	static bool unreadable[PAGES + 2];

	image(w, link, want, unreadable);
	check_reads(c, want, unreadable, got);
	check_walk(w, link, c);
	check_restores(c, want, unreadable, got);
	assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
}

static void check_merge(const struct world *w, uint32_t link, struct wpt_chain *c)
{
	struct wpt_merge_options o = { .size = sizeof(o), .nr_threads = 1 + (uint32_t)rnd(2) };
	char dir[] = "/tmp/wpt-model-XXXXXX", path[64];
	struct wpt_chain *merged;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/m.wps", dir);
	assert_int_equal(wpt_chain_merge(c, path, &o), 0);
	assert_int_equal(wpt_chain_open(&merged, path), 0);
	check_chain(w, link, merged);
	assert_int_equal(wpt_chain_diff(c, merged, NULL, NULL), 0);
	wpt_chain_close(merged);
	unlink(path);
	rmdir(dir);
}

static void every_way_to_read_agrees_with_the_specification(void **state)
{
	const char *seed = getenv("WPT_SEED"), *rounds = getenv("WPT_ROUNDS");
	uint64_t first = seed ? strtoull(seed, NULL, 0) : 1, nr = rounds ? strtoull(rounds, NULL, 0) : getenv("WPT_QUICK") ? 3 : 25;

	(void)state;
	for (uint64_t i = first; i < first + nr; i++) {
		struct world *w = world_new(i, 1 + (uint32_t)(i % LINKS));

		for (uint32_t link = 0; link < w->nr_links; link++) {
			struct wpt_chain *c;

			assert_int_equal(wpt_chain_open_memory(&c, w->f.bytes, w->ends[link]), 0);
			check_chain(w, link, c);
			if (link + 1 == w->nr_links)
				check_merge(w, link, c);
			wpt_chain_close(c);
		}
		world_free(w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_way_to_read_agrees_with_the_specification),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
