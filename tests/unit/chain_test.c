/* SPDX-License-Identifier: MIT */
/*
 * Chains against a model: an array of pages and a set of ranges, changed at random between links. Every link of a long chain must show what
 * the model was then, in a folder, as a concatenation, in memory, and merged.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chain.h"
#include "layer.h"
#include "store.h"

#define BASE 0x7f0000000000ull
#define NR_PAGES 1600u
#define NR_LINKS 60u
#define MAX_RANGES 8u

struct page {
	uint8_t view;         /* enum wpt_view */
	uint8_t seed[3];      /* of the contents: pages of one seed are equal */
};

struct link {
	struct page pages[NR_PAGES];
	char file[80];
	uint64_t length;
};

struct model {
	struct page pages[NR_PAGES];
	struct wpt_ledger *ledger;
	struct wpt_layer_params params;
	struct link *links;
	uint32_t nr_links;
	uint64_t random;
	char dir[64];
	int fd;
	bool silent;          /* links mention no page */
};

static uint64_t next_random(struct model *m)
{
	m->random ^= m->random << 13;
	m->random ^= m->random >> 7;
	m->random ^= m->random << 17;
	return m->random * 0x2545F4914F6CDD1Dull;
}

static void fill(uint8_t *to, const struct page *p)
{
	uint64_t x = ((uint64_t)p->seed[0] << 16 | (uint64_t)p->seed[1] << 8 | p->seed[2]) * 0x9E3779B97F4A7C15ull + 1;
	size_t i;

	memset(to, 0, WPT_PAGE);
	if (p->view != WPT_VIEW_DATA)
		return;
	for (i = 0; i < WPT_PAGE; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(to + i, &x, p->seed[0] & 1 ? 8 : 1);
	}
	to[0] |= 1;
}

static uint64_t addr_of(uint32_t page)
{
	return BASE + (uint64_t)page * WPT_PAGE;
}

static void model_open(struct model *m, uint64_t seed)
{
	memset(m, 0, sizeof(*m));
	m->random = seed;
	strcpy(m->dir, "/tmp/wptrack-chain-XXXXXX");
	assert_non_null(mkdtemp(m->dir));
	m->fd = open(m->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(m->fd >= 0);
	m->links = calloc(NR_LINKS + 1, sizeof(*m->links));
	assert_non_null(m->links);
	assert_int_equal(wpt_ledger_open(&m->ledger), 0);
	m->params.ledger = m->ledger;
	m->params.level = 1;
	m->params.nr_threads = 2;
	m->params.staging_bytes = 8 << 20;
	memset(m->params.identity.chain_id, 0xc1, 16);
	memset(m->params.key, 0x5e, sizeof(m->params.key));
	strcpy(m->params.origin.boot_id, "00000000-1111-2222-3333-444444444444");
	strcpy(m->params.origin.comm, "model");
	m->params.origin.pid = 4711;
}

static void model_close(struct model *m)
{
	struct dirent *e;
	DIR *dir = fdopendir(m->fd);

	rewinddir(dir);
	while ((e = readdir(dir)))
		if (e->d_name[0] != '.')
			unlinkat(m->fd, e->d_name, 0);
	closedir(dir);
	rmdir(m->dir);
	wpt_ledger_close(m->ledger);
	free(m->links);
}

/* Changes runs of pages, and now and then what is covered. What is uncovered is forgotten, as a tracker does. */
static void mutate(struct model *m)
{
	uint32_t nr = 1 + (uint32_t)(next_random(m) % 12), from, to, i;
	struct page p;

	while (nr--) {
		from = (uint32_t)(next_random(m) % NR_PAGES);
		to = from + 1 + (uint32_t)(next_random(m) % (next_random(m) % 5 ? 6 : 400));
		to = to > NR_PAGES ? NR_PAGES : to;
		switch (next_random(m) % 10) {
		case 0:
			p.view = WPT_VIEW_UNTRACKED;
			break;
		case 1:
		case 2:
			p.view = WPT_VIEW_ZERO;
			break;
		case 3:
			p.view = next_random(m) % 2 ? WPT_VIEW_UNREADABLE : WPT_VIEW_GUARD;
			break;
		default:
			p.view = WPT_VIEW_DATA;
		}
		for (i = from; i < to; i++) {
			p.seed[0] = (uint8_t)next_random(m);
			p.seed[1] = (uint8_t)(next_random(m) % 4);
			p.seed[2] = next_random(m) % 3 ? (uint8_t)next_random(m) : 0;
			m->pages[i] = p;
		}
		if (p.view == WPT_VIEW_UNTRACKED)
			wpt_ledger_forget(m->ledger, addr_of(from), addr_of(to));
	}
}

static const uint32_t item_kinds[] = {
	[WPT_VIEW_ZERO] = WPT_ITEM_ZERO,
	[WPT_VIEW_DATA] = WPT_ITEM_DATA,
	[WPT_VIEW_UNREADABLE] = WPT_ITEM_UNREADABLE,
	[WPT_VIEW_GUARD] = WPT_ITEM_GUARD,
};

static bool item_grows(struct model *m, const struct wpt_batch *b, uint32_t page, uint32_t kind)
{
	const struct wpt_item *last;

	if (!b->nr_items)
		return false;
	last = &b->items[b->nr_items - 1];
	return last->kind == kind && last->addr + last->nr_pages * WPT_PAGE == addr_of(page) && next_random(m) % 40;
}

/* One pass over the covered pages, or a part of them; the ledger leaves out what the chain says already. */
static void submit_pages(struct model *m, struct wpt_layer_writer *w, const struct page *pages, bool part)
{
	struct wpt_batch *b = NULL;
	uint32_t i, kind;

	for (i = 0; i < NR_PAGES; i++) {
		if (part && next_random(m) % 7 == 0)
			i += (uint32_t)(next_random(m) % 200);
		if (i >= NR_PAGES || m->pages[i].view == WPT_VIEW_UNTRACKED)
			continue;
		if (b && (b->nr_items == WPT_BATCH_ITEMS || b->nr_pages == WPT_BATCH_PAGES)) {
			assert_int_equal(wpt_layer_batch_submit(w, b), 0);
			b = NULL;
		}
		if (!b)
			assert_int_equal(wpt_layer_batch_get(w, &b, true), 0);
		kind = item_kinds[pages[i].view];
		if (item_grows(m, b, i, kind))
			b->items[b->nr_items - 1].nr_pages++;
		else
			b->items[b->nr_items++] = (struct wpt_item){ addr_of(i), 1, kind };
		if (pages[i].view == WPT_VIEW_DATA)
			fill(b->data + (size_t)b->nr_pages++ * WPT_PAGE, &pages[i]);
	}
	if (b)
		assert_int_equal(wpt_layer_batch_submit(w, b), 0);
}

/* In some links pages are copied more than once, as when they change meanwhile: what the last pass says holds. */
static void submit_passes(struct model *m, struct wpt_layer_writer *w)
{
	struct page *early = calloc(NR_PAGES, sizeof(*early));
	uint32_t passes = m->nr_links % 3 ? 0 : 1 + (uint32_t)(next_random(m) % 3), i;

	while (passes--) {
		for (i = 0; i < NR_PAGES; i++) {
			early[i].view = (uint8_t)(next_random(m) % 8 ? WPT_VIEW_DATA : WPT_VIEW_ZERO + next_random(m) % 4);
			early[i].seed[0] = (uint8_t)next_random(m);
			early[i].seed[1] = 0xee;
		}
		submit_pages(m, w, early, true);
	}
	submit_pages(m, w, m->pages, false);
	free(early);
}

static void submit_ranges(struct model *m, struct wpt_layer_writer *w)
{
	struct wpt_layer_range *ranges = calloc(NR_PAGES, sizeof(*ranges));
	uint64_t nr = 0;
	uint32_t i;

	for (i = 0; i < NR_PAGES; i++) {
		if (m->pages[i].view == WPT_VIEW_UNTRACKED)
			continue;
		if (nr && ranges[nr - 1].end == addr_of(i)) {
			ranges[nr - 1].end = addr_of(i + 1);
		} else {
			ranges[nr] = (struct wpt_layer_range){ addr_of(i), addr_of(i + 1), WPT_KIND_ANON, 0, nr % 2 ? "odd" : "/a/even" };
			nr++;
		}
	}
	assert_int_equal(wpt_layer_ranges(w, ranges, nr), 0);
	free(ranges);
}

static void take_link(struct model *m)
{
	struct wpt_identity *id = &m->params.identity;
	struct link *l = &m->links[m->nr_links];
	struct wpt_layer_writer *w = NULL;
	struct wpt_layer_result result;
	struct wpt_sink *sink = NULL;
	char tag[32], hex[33];
	int i;

	id->sequence = m->nr_links;
	for (i = 0; i < 16; i++) {
		id->link_id[i] = (uint8_t)next_random(m);
		snprintf(hex + 2 * i, 3, "%02x", id->link_id[i]);
	}
	m->params.full = m->nr_links == 0;
	snprintf(l->file, sizeof(l->file), "%010u-%s.wps", m->nr_links, hex);
	assert_int_equal(wpt_sink_folder(&sink, m->fd, l->file, false), 0);
	assert_int_equal(wpt_layer_writer_open(&w, sink, &m->params), 0);
	if (!m->silent)
		submit_passes(m, w);
	submit_ranges(m, w);
	snprintf(tag, sizeof(tag), "link=%u", m->nr_links);
	if (m->nr_links % 5 == 0)
		assert_int_equal(wpt_layer_section(w, WPT_SECTION_TAGS, tag, strlen(tag) + 1), 0);
	if (m->nr_links % 3 == 1) {
		assert_int_equal(wpt_layer_section(w, WPT_SECTION_REGISTERS, tag, strlen(tag) + 1), 0);
		assert_int_equal(wpt_layer_section(w, WPT_SECTION_USER + m->nr_links % 2, tag, strlen(tag) + 1), 0);
	}
	assert_int_equal(wpt_layer_finish(w, 1000 + m->nr_links, 7, &result), 0);
	assert_int_equal(sink->commit(sink), 0);
	wpt_layer_writer_close(w);
	sink->close(sink);
	wpt_ledger_commit(m->ledger);
	memcpy(l->pages, m->pages, sizeof(l->pages));
	l->length = result.bytes;
	memcpy(id->parent_id, id->link_id, 16);
	memcpy(id->parent_digest, result.digest, 16);
	m->nr_links++;
}

/* ---- checks ---- */

static struct wpt_chain *open_at(const struct model *m, const char *format, ...) __attribute__((format(printf, 2, 3)));
static struct wpt_chain *open_at(const struct model *m, const char *format, ...)
{
	struct wpt_chain *c = NULL;
	char spec[200];
	va_list ap;
	int n = snprintf(spec, sizeof(spec), "%s", m->dir), rc;

	va_start(ap, format);
	vsnprintf(spec + n, sizeof(spec) - (size_t)n, format, ap);
	va_end(ap);
	rc = wpt_chain_open(&c, spec);
	if (rc)
		fail_msg("%s: %s", spec, wpt_strerror(rc));
	return c;
}

static void check_page(struct wpt_chain *c, const struct page *p, uint32_t i)
{
	uint8_t want[WPT_PAGE], got[WPT_PAGE];
	int rc;

	fill(want, p);
	memset(got, 0xee, sizeof(got));
	rc = wpt_chain_read(c, addr_of(i), got, sizeof(got));
	if (rc != (p->view == WPT_VIEW_UNREADABLE ? -WPT_E_UNREADABLE : 0) || memcmp(got, want, sizeof(got)) != 0)
		fail_msg("page %u, state %u: %s", i, p->view, wpt_strerror(rc));
}

/* The whole image in one read, the ranges, and some pages on their own. */
static void check_chain(struct model *m, struct wpt_chain *c, const struct link *l)
{
	struct wpt_range_info info = { .size = sizeof(info) };
	uint8_t *want = malloc((size_t)NR_PAGES * WPT_PAGE), *got = malloc((size_t)NR_PAGES * WPT_PAGE);
	bool *covered = calloc(NR_PAGES, sizeof(*covered)), unreadable = false;
	uint32_t i, k;
	int rc;

	for (i = 0; i < NR_PAGES; i++) {
		fill(want + (size_t)i * WPT_PAGE, &l->pages[i]);
		unreadable |= l->pages[i].view == WPT_VIEW_UNREADABLE;
	}
	rc = wpt_chain_read(c, BASE, got, (size_t)NR_PAGES * WPT_PAGE);
	assert_int_equal(rc, unreadable ? -WPT_E_UNREADABLE : 0);
	assert_memory_equal(want, got, (size_t)NR_PAGES * WPT_PAGE);
	for (k = 0; wpt_chain_range(c, k, &info) == 0; k++)
		for (i = (uint32_t)((info.start - BASE) / WPT_PAGE); i < (info.end - BASE) / WPT_PAGE; i++)
			covered[i] = true;
	for (i = 0; i < NR_PAGES; i++)
		assert_int_equal(covered[i], l->pages[i].view != WPT_VIEW_UNTRACKED);
	for (k = 0; k < 20; k++) {
		i = (uint32_t)(next_random(m) % NR_PAGES);
		check_page(c, &l->pages[i], i);
	}
	free(want);
	free(got);
	free(covered);
}

static uint64_t seed_of(void)
{
	const char *seed = getenv("WPT_SEED");
	uint64_t n = seed ? strtoull(seed, NULL, 0) : 0x1234567;

	print_message("# WPT_SEED=%#llx\n", (unsigned long long)n);
	return n;
}

static void build(struct model *m, uint64_t seed, uint32_t nr)
{
	model_open(m, seed);
	while (m->nr_links < nr) {
		mutate(m);
		take_link(m);
	}
}

/* All links of the model one after the other. */
static uint8_t *concatenation(const struct model *m, uint32_t from, uint32_t to, size_t *len)
{
	uint8_t *data;
	size_t size = 0;
	uint32_t i;
	int fd;

	for (i = from; i < to; i++)
		size += m->links[i].length;
	data = malloc(size + 1);
	*len = 0;
	for (i = from; i < to; i++) {
		fd = openat(m->fd, m->links[i].file, O_RDONLY | O_CLOEXEC);
		assert_int_equal(read(fd, data + *len, m->links[i].length), m->links[i].length);
		close(fd);
		*len += m->links[i].length;
	}
	return data;
}

static void write_file(const struct model *m, const char *name, const void *data, size_t len)
{
	int fd = openat(m->fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_int_equal(write(fd, data, len), len);
	close(fd);
}

static void every_link_of_a_long_chain_shows_its_own_moment(void **state)
{
	struct model m;
	struct wpt_chain *c;
	uint32_t i;

	(void)state;
	build(&m, seed_of(), NR_LINKS);
	for (i = 0; i < m.nr_links; i++) {
		c = open_at(&m, "@%u", i);
		check_chain(&m, c, &m.links[i]);
		wpt_chain_close(c);
		c = open_at(&m, "@-%u", m.nr_links - i);
		check_chain(&m, c, &m.links[i]);
		wpt_chain_close(c);
		c = open_at(&m, "/%s", m.links[i].file);
		check_chain(&m, c, &m.links[i]);
		if (i % 10 == 0)
			assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
		wpt_chain_close(c);
	}
	model_close(&m);
}

/* What was there before a page left the ranges does not come back with it, even if the link that covers it again says nothing. */
/* One after the other, from the back, and anywhere: what a read leaves behind for the next must not mislead it. */
static void reads_of_any_size_and_order_agree(void **state)
{
	const size_t size = (size_t)NR_PAGES * WPT_PAGE;
	uint8_t *want = malloc(size), *got = malloc(size);
	struct wpt_chain *c;
	struct model m;
	size_t at = 0, n;
	uint32_t i;
	int rc;

	(void)state;
	build(&m, seed_of() + 9, 24);
	c = open_at(&m, "@-1");
	for (i = 0; i < NR_PAGES; i++)
		fill(want + (size_t)i * WPT_PAGE, &m.links[23].pages[i]);
	for (i = 0; i < 6000; i++) {
		n = 1 + (size_t)(next_random(&m) % (i % 16 ? 3 * WPT_PAGE : 200 * WPT_PAGE));
		if (i % 1000 > 800)
			at = (size_t)(next_random(&m) % size);
		else if (i / 1000 % 2)
			at = at < n ? size - n : at - n;
		n = n > size - at ? size - at : n;
		rc = wpt_chain_read(c, BASE + at, got, n);
		assert_true(rc == 0 || rc == -WPT_E_UNREADABLE);
		assert_memory_equal(got, want + at, n);
		if (!(i / 1000 % 2))
			at = at + n == size ? 0 : at + n;
	}
	wpt_chain_close(c);
	model_close(&m);
	free(want);
	free(got);
}

static void a_page_that_was_uncovered_comes_back_as_zero(void **state)
{
	struct model m;
	struct wpt_chain *c;
	uint32_t i;

	(void)state;
	model_open(&m, seed_of() + 8);
	for (i = 0; i < NR_PAGES; i++)
		m.pages[i] = (struct page){ WPT_VIEW_DATA, { 1, 2, (uint8_t)i } };
	take_link(&m);
	m.silent = true;
	for (i = 100; i < 200; i++)
		m.pages[i].view = WPT_VIEW_UNTRACKED;
	take_link(&m);
	for (i = 150; i < 200; i++)
		m.pages[i].view = WPT_VIEW_ZERO;
	take_link(&m);
	for (i = 0; i < 3; i++) {
		c = open_at(&m, "@%u", i);
		check_chain(&m, c, &m.links[i]);
		wpt_chain_close(c);
	}
	model_close(&m);
}

static void links_concatenate(void **state)
{
	struct model m;
	struct wpt_chain *c = NULL;
	uint8_t *data;
	size_t len;

	(void)state;
	build(&m, seed_of() + 1, 12);
	data = concatenation(&m, 0, m.nr_links, &len);
	assert_int_equal(wpt_chain_open_memory(&c, data, len), 0);
	check_chain(&m, c, &m.links[11]);
	assert_int_equal(wpt_chain_end_offset(c), len);
	assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
	wpt_chain_close(c);
	write_file(&m, "all.wps", data, len);
	c = open_at(&m, "/all.wps@4");
	check_chain(&m, c, &m.links[4]);
	wpt_chain_close(c);
	free(data);
	/* A file that holds the chain's end finds its beginning beside it. */
	data = concatenation(&m, 7, m.nr_links, &len);
	write_file(&m, "end.wps", data, len);
	c = open_at(&m, "/end.wps");
	check_chain(&m, c, &m.links[11]);
	wpt_chain_close(c);
	free(data);
	model_close(&m);
}

/* Whatever of the last link is missing, the links before it are there, and where the next is to be appended is known. */
static void a_torn_tail_costs_the_last_link_only(void **state)
{
	size_t len, cut, good;
	struct model m;
	struct wpt_chain *c;
	uint8_t *data;

	(void)state;
	model_open(&m, seed_of() + 2);
	mutate(&m);
	take_link(&m);
	m.pages[3] = (struct page){ WPT_VIEW_DATA, { 1, 2, 3 } };
	take_link(&m);
	m.pages[5] = (struct page){ WPT_VIEW_DATA, { 2, 2, 3 } };
	take_link(&m);
	data = concatenation(&m, 0, 3, &len);
	good = len - m.links[2].length;
	for (cut = good; cut < len; cut++) {
		c = NULL;
		assert_int_equal(wpt_chain_open_memory(&c, data, cut), 0);
		assert_int_equal(wpt_chain_end_offset(c), good);
		if (cut % 16 == 0 || cut == good)
			check_chain(&m, c, &m.links[1]);
		assert_int_equal(wpt_chain_verify(c, NULL, NULL), cut == good ? 0 : -WPT_E_TRUNCATED);
		wpt_chain_close(c);
	}
	for (cut = 0; cut < m.links[0].length; cut += cut < 600 ? 1 : 97) {
		int rc = wpt_chain_open_memory(&c, data, cut);

		assert_true(rc == -WPT_E_TRUNCATED || (cut < 12 && rc == -WPT_E_NOT_SNAPSHOT));
	}
	free(data);
	model_close(&m);
}

/* Each section that one of them has is in both, and the same; `want` is of the last link up to the eighth that has it, NULL: there is none. */
static void assert_section(struct wpt_chain *c, struct wpt_chain *merged, uint32_t type, const char *want)
{
	struct wpt_chain *both[] = { c, merged };
	void *data;
	size_t len;

	for (int i = 0; i < 2; i++) {
		assert_int_equal(wpt_chain_section(both[i], type, &data, &len), want ? 0 : -ENOENT);
		if (!want)
			continue;
		assert_int_equal(len, strlen(want) + 1);
		assert_string_equal(data, want);
		free(data);
	}
}

static void a_merged_link_stands_in_for_those_it_was_made_of(void **state)
{
	struct wpt_merge_options o = { .size = sizeof(o), .nr_threads = 2 };
	struct model m;
	struct wpt_chain *c, *merged;
	char path[200], other[200];
	uint32_t i;

	(void)state;
	build(&m, seed_of() + 3, 14);
	c = open_at(&m, "@8");
	snprintf(path, sizeof(path), "%s/merged.wps", m.dir);
	assert_int_equal(wpt_chain_merge(c, path, &o), 0);
	assert_int_equal(wpt_chain_merge(c, path, &o), -EEXIST);
	merged = open_at(&m, "/merged.wps");
	check_chain(&m, merged, &m.links[8]);
	assert_int_equal(wpt_chain_verify(merged, NULL, NULL), 0);
	assert_int_equal(wpt_chain_nr_links(merged), 1);
	assert_int_equal(wpt_chain_diff(c, merged, NULL, NULL), 0);
	assert_section(c, merged, WPT_SECTION_TAGS, "link=5");
	assert_section(c, merged, WPT_SECTION_REGISTERS, NULL);
	assert_section(c, merged, WPT_SECTION_USER + 1, "link=7");
	assert_section(c, merged, WPT_SECTION_USER, "link=4");
	wpt_chain_close(c);
	c = open_at(&m, "@7");
	assert_section(c, c, WPT_SECTION_REGISTERS, "link=7");
	wpt_chain_close(c);
	wpt_chain_close(merged);
	/* The links before it go, it takes the place of the one whose identity it has; those after it are as they were. */
	for (i = 0; i < 8; i++)
		unlinkat(m.fd, m.links[i].file, 0);
	snprintf(other, sizeof(other), "%s/%s", m.dir, m.links[8].file);
	assert_int_equal(rename(path, other), 0);
	for (i = 8; i < m.nr_links; i++) {
		c = open_at(&m, "@%u", i);
		check_chain(&m, c, &m.links[i]);
		assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
		wpt_chain_close(c);
	}
	snprintf(path, sizeof(path), "%s@3", m.dir);
	assert_int_equal(wpt_chain_open(&c, path), -WPT_E_PRUNED);
	model_close(&m);
}

static void what_does_not_fit_is_refused(void **state)
{
	struct model m, other;
	struct wpt_chain *c = NULL;
	char path[200];
	uint8_t *data;
	size_t len;

	(void)state;
	build(&m, seed_of() + 4, 6);
	snprintf(path, sizeof(path), "%s@id:zz", m.dir);
	assert_int_equal(wpt_chain_open(&c, path), -ENOENT);
	snprintf(path, sizeof(path), "%s@x", m.dir);
	assert_int_equal(wpt_chain_open(&c, path), -EINVAL);
	snprintf(path, sizeof(path), "%s@-7", m.dir);
	assert_int_equal(wpt_chain_open(&c, path), -ENOENT);
	snprintf(path, sizeof(path), "%s@id:%.8s", m.dir, m.links[2].file + 11);
	assert_int_equal(wpt_chain_open(&c, path), 0);
	check_chain(&m, c, &m.links[2]);
	wpt_chain_close(c);
	/* A link in the middle is gone: what needs it says so, what does not goes on. */
	unlinkat(m.fd, m.links[3].file, 0);
	assert_int_equal(wpt_chain_open(&c, m.dir), -WPT_E_CHAIN);
	c = open_at(&m, "@2");
	check_chain(&m, c, &m.links[2]);
	wpt_chain_close(c);
	/* A link of the same id in its place, made from something else. */
	model_open(&other, 99);
	mutate(&other);
	take_link(&other);
	memcpy(other.params.identity.parent_digest, "another digest!!", 16);
	mutate(&other);
	take_link(&other);
	assert_int_equal(wpt_chain_open(&c, other.dir), -WPT_E_CHAIN);
	model_close(&other);
	/* A damaged newest link is an error, not a reason to show an older one. */
	data = concatenation(&m, 5, 6, &len);
	data[len - 1] ^= 1;
	write_file(&m, m.links[5].file, data, len);
	assert_int_equal(wpt_chain_open(&c, m.dir), -WPT_E_TRUNCATED);
	free(data);
	/* Not a snapshot at all. */
	write_file(&m, "text.wps", "hello, world, this is text\n", 27);
	snprintf(path, sizeof(path), "%s/text.wps", m.dir);
	assert_int_equal(wpt_chain_open(&c, path), -WPT_E_NOT_SNAPSHOT);
	c = NULL;
	assert_int_equal(wpt_chain_open(&c, "/nonexistent/chain"), -ENOENT);
	assert_null(c);
	model_close(&m);
}

static int count_diff(void *arg, uint64_t start, uint64_t end, uint32_t tracked_in)
{
	uint8_t *seen = arg;
	uint64_t at;

	for (at = start; at < end; at += WPT_PAGE)
		seen[(at - BASE) / WPT_PAGE] = (uint8_t)tracked_in;
	return 0;
}

static void diff_tells_exactly_what_differs(void **state)
{
	uint8_t a_bytes[WPT_PAGE], b_bytes[WPT_PAGE];
	uint8_t *seen = malloc(NR_PAGES);
	struct wpt_chain *a, *b;
	struct model m;
	uint32_t i, k;

	(void)state;
	build(&m, seed_of() + 5, 10);
	for (k = 0; k + 1 < m.nr_links; k++) {
		a = open_at(&m, "@%u", k);
		b = open_at(&m, "@%u", m.nr_links - 1);
		memset(seen, 0, NR_PAGES);
		assert_int_equal(wpt_chain_diff(a, b, count_diff, seen), 1);
		for (i = 0; i < NR_PAGES; i++) {
			const struct page *p = &m.links[k].pages[i], *q = &m.links[m.nr_links - 1].pages[i];
			bool content = (p->view == WPT_VIEW_DATA || p->view == WPT_VIEW_ZERO) &&
				       (q->view == WPT_VIEW_DATA || q->view == WPT_VIEW_ZERO);
			uint8_t want = 0;

			fill(a_bytes, p);
			fill(b_bytes, q);
			if ((p->view == WPT_VIEW_UNTRACKED) != (q->view == WPT_VIEW_UNTRACKED))
				want = p->view == WPT_VIEW_UNTRACKED ? 2 : 1;
			else if (content ? memcmp(a_bytes, b_bytes, WPT_PAGE) != 0 : p->view != q->view)
				want = 3;
			assert_int_equal(seen[i], want);
		}
		assert_int_equal(wpt_chain_diff(b, b, NULL, NULL), 0);
		wpt_chain_close(a);
		wpt_chain_close(b);
	}
	free(seen);
	model_close(&m);
}

struct reader {
	struct wpt_chain *c;
	const struct link *l;
	uint64_t random;
	int wrong;
};

static void *read_pages(void *arg)
{
	uint8_t want[WPT_PAGE], got[WPT_PAGE];
	struct reader *r = arg;
	uint32_t i, k;
	int rc;

	for (k = 0; k < 300; k++) {
		r->random = r->random * 6364136223846793005ull + 1442695040888963407ull;
		i = (uint32_t)(r->random >> 33) % NR_PAGES;
		fill(want, &r->l->pages[i]);
		rc = wpt_chain_read(r->c, addr_of(i), got, sizeof(got));
		r->wrong |= rc != (r->l->pages[i].view == WPT_VIEW_UNREADABLE ? -WPT_E_UNREADABLE : 0);
		r->wrong |= memcmp(want, got, sizeof(got)) != 0;
	}
	return NULL;
}

static void many_threads_read_one_chain(void **state)
{
	struct reader readers[4];
	pthread_t threads[4];
	struct wpt_chain *c;
	struct model m;
	int i;

	(void)state;
	build(&m, seed_of() + 6, 8);
	c = open_at(&m, "%s", "");
	for (i = 0; i < 4; i++) {
		readers[i] = (struct reader){ c, &m.links[7], (uint64_t)i, 0 };
		assert_int_equal(pthread_create(&threads[i], NULL, read_pages, &readers[i]), 0);
	}
	for (i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(readers[i].wrong, 0);
	}
	wpt_chain_close(c);
	model_close(&m);
}

static void a_literal_path_wins_over_a_suffix(void **state)
{
	struct wpt_chain *c = NULL;
	char path[200];
	struct model m;
	uint8_t *data;
	size_t len;

	(void)state;
	build(&m, seed_of() + 7, 3);
	data = concatenation(&m, 0, 2, &len);
	write_file(&m, "x@1", data, len);
	free(data);
	data = concatenation(&m, 0, 3, &len);
	write_file(&m, "x", data, len);
	free(data);
	snprintf(path, sizeof(path), "%s/x@1", m.dir);
	assert_int_equal(wpt_chain_open(&c, path), 0);
	assert_int_equal(wpt_chain_nr_links(c), 2);
	wpt_chain_close(c);
	snprintf(path, sizeof(path), "%s/x@0", m.dir);
	assert_int_equal(wpt_chain_open(&c, path), 0);
	check_chain(&m, c, &m.links[0]);
	wpt_chain_close(c);
	snprintf(path, sizeof(path), "%s/x@1@0", m.dir);
	assert_int_equal(wpt_chain_open(&c, path), 0);
	assert_int_equal(wpt_chain_nr_links(c), 1);
	wpt_chain_close(c);
	model_close(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_link_of_a_long_chain_shows_its_own_moment),
		cmocka_unit_test(reads_of_any_size_and_order_agree),
		cmocka_unit_test(a_page_that_was_uncovered_comes_back_as_zero),
		cmocka_unit_test(links_concatenate),
		cmocka_unit_test(a_torn_tail_costs_the_last_link_only),
		cmocka_unit_test(a_merged_link_stands_in_for_those_it_was_made_of),
		cmocka_unit_test(what_does_not_fit_is_refused),
		cmocka_unit_test(diff_tells_exactly_what_differs),
		cmocka_unit_test(many_threads_read_one_chain),
		cmocka_unit_test(a_literal_path_wins_over_a_suffix),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
