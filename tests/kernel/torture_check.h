/* SPDX-License-Identifier: MIT */
/*
 * Comparing a restored link with the shadow, and saying what is known of a page that differs.
 */
#ifndef TORTURE_CHECK_H
#define TORTURE_CHECK_H

#include "torture_ops.h"
#include "torture_shadow.h"
#include "way.h"
#include "wptrack.h"

struct check {
	struct ctl *ctl;
	struct shadow *shadow;
	const char *run;           /* which test */
	bool all;                  /* wpt_range_add_all(): what was never writable may be missing */
	uint64_t rng;
	uint8_t *out[MAX_AREAS];   /* the image of the last link that was restored */
	uint8_t *last[MAX_AREAS];  /* the shadow of the link before, for telling a stale page */
	uint8_t *covered[MAX_AREAS];
	uint64_t *hashes[MAX_AREAS]; /* of the shadow, per link and page, for looking at old links again */
	unsigned nr_links, max_links;
	uint64_t pages_checked, half_filled;
};

static uint64_t page_hash(const void *page)
{
	const uint64_t *p = page;
	uint64_t h = 0x243f6a8885a308d3ull;

	for (unsigned i = 0; i < 512; i++)
		h = (h ^ p[i]) * 0x9fb21c651e98df25ull + (h >> 29);
	return h;
}

static bool is_zero_page(const uint8_t *page)
{
	static const uint8_t zero[TP];

	return memcmp(page, zero, TP) == 0;
}

static uint64_t area_pages(const struct area *a)
{
	return (a->end - a->start) / TP;
}

static int check_open(struct check *c, struct ctl *ctl, struct shadow *s, const char *run, unsigned max_links)
{
	memset(c, 0, sizeof(*c));
	c->ctl = ctl;
	c->shadow = s;
	c->run = run;
	c->rng = ctl->seed ^ 0xc0ffee;
	c->max_links = max_links;
	for (unsigned i = 0; i < ctl->nr_areas; i++) {
		uint64_t pages = area_pages(&ctl->areas[i]);

		c->out[i] = shadow_alloc(pages * TP);
		c->last[i] = shadow_alloc(pages * TP);
		c->covered[i] = shadow_alloc(pages);
		c->hashes[i] = shadow_alloc(pages * 8 * max_links);
		if (!c->out[i] || !c->last[i] || !c->covered[i] || !c->hashes[i])
			return -ENOMEM;
	}
	return 0;
}

static void check_close(struct check *c)
{
	for (unsigned i = 0; i < c->ctl->nr_areas; i++) {
		uint64_t pages = area_pages(&c->ctl->areas[i]);

		munmap(c->out[i], pages * TP);
		munmap(c->last[i], pages * TP);
		munmap(c->covered[i], pages);
		munmap(c->hashes[i], pages * 8 * c->max_links);
	}
}

/* ---- what is known of a page ----------------------------------------------------------------------------------- */

static int by_seq(const void *a, const void *b)
{
	const struct log_entry *x = a, *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static void print_log(const struct area *a, uint64_t page)
{
	static struct log_entry found[LOG_RING];
	uint64_t unit = page * TP / a->unit;
	unsigned n = 0, from;

	for (unsigned i = 0; i < LOG_RING; i++) {
		const struct log_entry *e = &a->log[i];
		bool whole = e->op == OP_HEAL || e->op == OP_TRUNCATE || e->op == OP_FORK_EXIT || e->op == OP_FORK_EXEC || e->op == OP_BRK ||
			     e->op == OP_FUZZY_LINK || e->op == OP_FAILED_LINK;
		uint64_t first = e->op == OP_COLLAPSE ? e->page & ~511ull : e->page, nr = e->op == OP_COLLAPSE ? 512 : e->nr;

		if (e->seq && (whole || (unit >= first && unit < first + nr)))
			found[n++] = *e;
	}
	qsort(found, n, sizeof(*found), by_seq);
	from = n > 30 ? n - 30 : 0;
	for (unsigned i = from; i < n; i++)
		printf("#   op %" PRIu64 " after link %u: %s pages %u+%u by thread %u: %s\n", found[i].seq, found[i].epoch,
		       op_table[found[i].op].name, found[i].page, found[i].nr, found[i].worker,
		       found[i].result == 0 ? "done" : found[i].result > 0 ? "not finished" : strerror(-found[i].result));
}

static const char *looks_like(const struct check *c, unsigned i, uint64_t page, const uint8_t *got)
{
	if (c->nr_links > 0 && memcmp(got, c->last[i] + page * TP, TP) == 0)
		return "what the link before showed (stale)";
	if (is_zero_page(got))
		return "zeros";
	return "neither zeros nor the link before";
}

static void report(const struct check *c, unsigned i, uint64_t page, const uint8_t *got, uint64_t link)
{
	const struct area *a = &c->ctl->areas[i];
	const struct shadow_area *sa = &c->shadow->areas[i];
	const uint8_t *want = sa->data + page * TP;
	unsigned at = 0, nonzero = 0;

	while (at < TP - 1 && got[at] == want[at])
		at++;
	for (unsigned k = 0; k < TP; k++)
		nonzero += want[k] != 0;
	printf("# torture: WRONG BYTE in %s: kind %s link %" PRIu64 " page 0x%" PRIx64 " (page %" PRIu64
	       " of the area) byte %u: restored %02x, was %02x; %u bytes were not zero\n",
	       c->run, area_desc(a)->name, link, a->start + page * TP, page, at, got[at], want[at], nonzero);
	printf("#   when stopped it was: %s, pagemap %016" PRIx64 "; the restored page holds %s; WPT_SEED=%" PRIu64 "\n",
	       shadow_names[sa->class[page]], sa->pagemap[page], looks_like(c, i, page, got), c->ctl->seed);
	print_log(a, page);
	fflush(stdout);
}

/* ---- ranges ---------------------------------------------------------------------------------------------------- */

static bool page_is_writable(const struct shadow *s, uint64_t addr)
{
	for (unsigned k = 0; k < s->maps.nr; k++)
		if (addr >= s->maps.v[k].start && addr < s->maps.v[k].end)
			return s->maps.v[k].write;
	return false;
}

static int check_ranges(struct check *c, struct wpt_chain *chain, uint64_t link)
{
	struct wpt_range_info info = { .size = sizeof(info) };

	for (unsigned i = 0; i < c->ctl->nr_areas; i++)
		memset(c->covered[i], 0, area_pages(&c->ctl->areas[i]));
	for (uint32_t k = 0; wpt_chain_range(chain, k, &info) == 0; k++)
		for (unsigned i = 0; i < c->ctl->nr_areas; i++) {
			const struct area *a = &c->ctl->areas[i];
			uint64_t s = info.start > a->start ? info.start : a->start, e = info.end < a->end ? info.end : a->end;

			if (s < e && !info.skipped)
				memset(c->covered[i] + (s - a->start) / TP, 1, (e - s) / TP);
		}
	for (unsigned i = 0; i < c->ctl->nr_areas; i++) {
		const struct area *a = &c->ctl->areas[i];

		for (uint64_t p = 0; p < area_pages(a); p++) {
			bool mapped = c->shadow->areas[i].class[p] != SHADOW_UNMAPPED;

			if (c->covered[i][p] == mapped || (c->all && mapped && !page_is_writable(c->shadow, a->start + p * TP)))
				continue;
			printf("# torture: WRONG RANGE in %s: kind %s link %" PRIu64 " page 0x%" PRIx64
			       " is %s and %s in the link; WPT_SEED=%" PRIu64 "\n",
			       c->run, area_desc(a)->name, link, a->start + p * TP, mapped ? "mapped" : "not mapped",
			       mapped ? "missing" : "listed", c->ctl->seed);
			print_log(a, p);
			return -1;
		}
	}
	return 0;
}

/* ---- content --------------------------------------------------------------------------------------------------- */

static int read_in_pieces(struct check *c, struct wpt_chain *chain, const struct area *a, uint8_t *out, bool may_fail)
{
	uint64_t at = 0, bytes = a->end - a->start;

	while (at < bytes) {
		uint64_t n = 1 + rng_below(&c->rng, 700000);
		int r;

		if (n > bytes - at)
			n = bytes - at;
		r = wpt_chain_read(chain, a->start + at, out + at, n);
		if (r && !(may_fail && r == -WPT_E_UNREADABLE))
			return r;
		at += n;
	}
	return 0;
}

static int restore_area(struct check *c, struct wpt_chain *chain, unsigned i)
{
	const struct area *a = &c->ctl->areas[i];
	uint64_t bytes = a->end - a->start, may = 0, unreadable = 0;
	unsigned how = (unsigned)rng_below(&c->rng, 3);
	int r;

	for (uint64_t p = 0; p < area_pages(a); p++)
		may += c->shadow->areas[i].class[p] >= SHADOW_BEHIND_END;
	if (how != 0)
		memset(c->out[i], 0xa5, bytes);
	if (how == 2)
		return read_in_pieces(c, chain, a, c->out[i], may > 0);
	r = wpt_chain_restore_memory(chain, a->start, a->end, c->out[i], &unreadable);
	if (!r && unreadable > may) {
		printf("# torture: %s: kind %s: %" PRIu64 " pages unreadable in the link, %" PRIu64 " were\n", c->run, area_desc(a)->name,
		       unreadable, may);
		return -EIO;
	}
	return r;
}

/*
 * What a stock kernel can't tell (man libwptrack): a punched page of a file that a write has filled with zeros and not yet written to, or never
 * will since it fails there, is present and clean. The link may show what was there before, until the write is done.
 */
static bool is_half_filled(const struct check *c, unsigned i, uint64_t page, const uint8_t *got)
{
	const struct area *a = &c->ctl->areas[i];
	const struct shadow_area *sa = &c->shadow->areas[i];

	return area_desc(a)->silent && !a->bypass && !c->ctl->exact && atomic_load(&a->punched[page * TP / a->unit]) &&
	       sa->class[page] == SHADOW_FILE && sa->pagemap[page] >> 63 && is_zero_page(sa->data + page * TP) &&
	       c->nr_links > 0 && memcmp(got, c->last[i] + page * TP, TP) == 0;
}

static int compare_area(struct check *c, unsigned i, uint64_t link)
{
	const struct area *a = &c->ctl->areas[i];
	const struct shadow_area *sa = &c->shadow->areas[i];
	uint64_t wrong = 0;

	for (uint64_t p = 0; p < area_pages(a); p++) {
		const uint8_t *got = c->out[i] + p * TP;

		if (c->all && !c->covered[i][p])
			continue;
		c->pages_checked++;
		if (memcmp(got, sa->data + p * TP, TP) == 0)
			continue;
		/* Guard pages over a file: the file's content is there and can't be read through the mapping. Both will do. */
		if (sa->class[p] == SHADOW_GUARD && is_zero_page(got))
			continue;
		if (is_half_filled(c, i, p, got)) {
			memcpy(sa->data + p * TP, got, TP);
			c->half_filled++;
			continue;
		}
		if (wrong++ < 3)
			report(c, i, p, got, link);
	}
	if (wrong)
		printf("# torture: %s: kind %s link %" PRIu64 ": %" PRIu64 " of %" PRIu64 " pages wrong\n", c->run, area_desc(a)->name, link,
		       wrong, area_pages(a));
	return wrong ? -1 : 0;
}

/* `chain` ends at the link that was just taken. 0 if it shows what the shadow shows. */
static int check_link(struct check *c, struct wpt_chain *chain, uint64_t link)
{
	int bad = check_ranges(c, chain, link), r;

	for (unsigned i = 0; i < c->ctl->nr_areas; i++) {
		uint64_t pages = area_pages(&c->ctl->areas[i]);

		r = restore_area(c, chain, i);
		if (r) {
			printf("# torture: %s: restoring %s of link %" PRIu64 ": %s; WPT_SEED=%" PRIu64 "\n", c->run,
			       area_desc(&c->ctl->areas[i])->name, link, wpt_strerror(r), c->ctl->seed);
			return -1;
		}
		bad |= compare_area(c, i, link);
		memcpy(c->last[i], c->shadow->areas[i].data, pages * TP);
		if (c->nr_links < c->max_links)
			for (uint64_t p = 0; p < pages; p++)
				c->hashes[i][c->nr_links * pages + p] = page_hash(c->last[i] + p * TP);
	}
	c->nr_links++;
	return bad;
}

/* A link that was right when it was taken, again after others were put on it. `nr` counts links in order of taking. */
static int check_old_link(struct check *c, struct wpt_chain *chain, unsigned nr)
{
	for (unsigned i = 0; i < c->ctl->nr_areas; i++) {
		const struct area *a = &c->ctl->areas[i];
		uint64_t pages = area_pages(a);
		int r = wpt_chain_restore_memory(chain, a->start, a->end, c->out[i], NULL);

		if (r) {
			printf("# torture: %s: restoring link %u again: %s\n", c->run, nr, wpt_strerror(r));
			return -1;
		}
		for (uint64_t p = 0; p < pages && !c->all; p++)
			if (page_hash(c->out[i] + p * TP) != c->hashes[i][nr * pages + p] && !is_zero_page(c->out[i] + p * TP)) {
				printf("# torture: WRONG BYTE in %s: kind %s link %u read again, page %" PRIu64 "\n", c->run,
				       area_desc(a)->name, nr, p);
				return -1;
			}
	}
	return 0;
}

#endif
