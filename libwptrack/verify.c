/* SPDX-License-Identifier: MIT */
/*
 * One link, checked as a whole: its frames in the order of the file, what they add up to, and that the index, which readers go by, lists
 * exactly what the file holds.
 */
#include "reader_impl.h"

#include <stdlib.h>

struct check {
	struct wpt_reader *r;
	struct wpt_fmt_hash file, leaves;   /* leaves: of those met in the file */
	struct wpt_fmt_hash listed;         /* of those that the index lists */
	struct wpt_fmt_records records;
	struct wpt_fmt_counts counts;
	uint64_t nr_nodes, nr_leaves;       /* met in the file, and not yet found in the index */
	uint64_t nr_pages;
	uint8_t *pages;                     /* WPT_FMT_FRAME_PAGES pages */
};

static void leaf_hash(struct wpt_fmt_hash *h, uint64_t offset, uint64_t length, uint64_t checksum, uint64_t first, uint64_t end, uint64_t nr)
{
	wpt_fmt_hash_u64(h, offset);
	wpt_fmt_hash_u64(h, length);
	wpt_fmt_hash_u64(h, checksum);
	wpt_fmt_hash_u64(h, first);
	wpt_fmt_hash_u64(h, end);
	wpt_fmt_hash_u64(h, nr);
}

static void count(struct wpt_fmt_counts *c, const struct wpt_fmt_run *run)
{
	switch ((enum wpt_fmt_kind)run->kind) {
	case WPT_FMT_DATA:
		c->data += run->nr_pages;
		break;
	case WPT_FMT_TORN:
		c->torn += run->nr_pages;
		break;
	case WPT_FMT_DUPLICATE:
		c->duplicate += run->nr_pages;
		break;
	case WPT_FMT_ZERO:
		c->zero += run->nr_pages;
		break;
	case WPT_FMT_UNREADABLE:
		c->unreadable += run->nr_pages;
		break;
	case WPT_FMT_GUARD:
		c->guard += run->nr_pages;
		break;
	}
}

static int check_run(struct check *c, const struct wpt_frame *f, const struct wpt_fmt_leaf *leaf, const struct wpt_fmt_run *run)
{
	struct wpt_reader_run rr = { .page = run->page, .nr_pages = run->nr_pages, .kind = run->kind };
	struct wpt_cached *whole = NULL;
	int rc;

	wpt_fmt_records_run(&c->records, run);
	count(&c->counts, run);
	if (!wpt_fmt_has_data(run->kind))
		return 0;
	rr.slot = run->slot;
	rr.leaf_offset = f->offset - c->r->info.start;
	rr.leaf_length = (uint32_t)f->len;
	rr.leaf_checksum = f->checksum;
	rr.hashes = (uint32_t)(run->hashes - f->bytes);
	rc = wpt_fmt_leaf_frame(leaf, run->frame, &rr.frame);
	/* The frame as a whole, with its checksum, however few of its pages the run has. */
	if (!rc)
		rc = wpt_reader_frame(c->r, &rr.frame, rr.frame.nr_pages, &whole);
	if (rc)
		return rc;
	rc = wpt_reader_pages(c->r, &rr, 0, rr.nr_pages, c->pages);
	wpt_cache_put(c->r->cache, whole);
	return rc;
}

static int check_leaf(struct check *c, const struct wpt_frame *f)
{
	struct wpt_fmt_leaf leaf;
	struct wpt_fmt_run run;
	uint64_t nr = 0;
	int rc;

	if (wpt_fmt_leaf_decode(f->bytes, f->len, &leaf))
		return -WPT_E_DAMAGED;
	while ((rc = wpt_fmt_leaf_next(&leaf, &run)) > 0) {
		rc = check_run(c, f, &leaf, &run);
		if (rc)
			return rc;
		nr += run.nr_pages;
	}
	c->nr_leaves++;
	c->nr_pages += nr;
	leaf_hash(&c->leaves, f->offset - c->r->info.start, f->len, f->checksum, leaf.first_page, leaf.end_page, nr);
	return rc;
}

static int check_frame(struct check *c, const struct wpt_frame *f)
{
	if (f->bad)
		return -WPT_E_DAMAGED;
	wpt_fmt_hash_u64(&c->file, f->checksum);
	if (f->kind != WPT_FMT_FRAME_BLOCK)
		return 0;
	switch (f->tag) {
	case WPT_FMT_HEAD:
		return f->offset == c->r->info.start ? 0 : -WPT_E_DAMAGED;
	case WPT_FMT_LEAF:
		return check_leaf(c, f);
	case WPT_FMT_NODE:
		c->nr_nodes++;
		return 0;
	case WPT_FMT_ROOT:
		return f->offset - c->r->info.start == c->r->root.offset ? 0 : -WPT_E_DAMAGED;
	case WPT_FMT_TRAILER:
		return -WPT_E_DAMAGED;
	default:
		return 0;
	}
}

static int check_frames(struct check *c, int (*done)(void *arg, uint64_t bytes), void *arg)
{
	struct wpt_reader_info *info = &c->r->info;
	struct wpt_frames frames;
	struct wpt_frame f;
	int rc;

	rc = wpt_frames_open(&frames, c->r->source, info->start, info->start + info->trailer.offset);
	if (rc)
		return rc;
	while ((rc = wpt_frames_next(&frames, &f)) > 0) {
		rc = check_frame(c, &f);
		if (!rc && done)
			rc = done(arg, f.len);
		if (rc)
			break;
	}
	wpt_frames_close(&frames);
	/* The link's trailer says that there is more, so a frame that runs into it is damage. */
	return rc == -WPT_E_TRUNCATED ? -WPT_E_DAMAGED : rc;
}

static int check_tree(struct check *c, const struct wpt_fmt_child *at, uint32_t below, uint64_t *nr_pages)
{
	const struct wpt_fmt_child *child;
	const struct wpt_node *n;
	struct wpt_cached *e;
	uint64_t nr;
	uint32_t i;
	int rc;

	rc = wpt_reader_node(c->r, at, below, &e);
	if (rc)
		return rc;
	n = e->data;
	for (i = 0; !rc && i < n->nr; i++) {
		child = &n->children[i];
		if (at != &c->r->root && (child->first_page < at->first_page || child->end_page > at->end_page)) {
			rc = -WPT_E_DAMAGED;
		} else if (n->level == 1) {
			rc = c->nr_leaves-- ? 0 : -WPT_E_DAMAGED;
			leaf_hash(&c->listed, child->offset, child->length, child->checksum, child->first_page, child->end_page,
				  child->nr_pages);
			*nr_pages += child->nr_pages;
		} else {
			nr = 0;
			rc = c->nr_nodes-- ? check_tree(c, child, n->level, &nr) : -WPT_E_DAMAGED;
			if (!rc && nr != child->nr_pages)
				rc = -WPT_E_DAMAGED;
			*nr_pages += nr;
		}
	}
	wpt_cache_put(c->r->cache, e);
	return rc;
}

static int ignore(void *arg, const uint8_t *data, size_t len)
{
	(void)arg;
	(void)data;
	(void)len;
	return 0;
}

static int check_sections(struct check *c)
{
	struct wpt_fmt_section s;
	uint32_t i;
	int rc = 0;

	for (i = 0; !rc && i < c->r->nr_sections; i++) {
		rc = wpt_reader_section_at(c->r, i, &s);
		if (!rc)
			rc = wpt_reader_section(c->r, &s, ignore, NULL);
	}
	return rc;
}

static bool digests_differ(struct wpt_fmt_hash *a, struct wpt_fmt_hash *b)
{
	uint8_t da[16], db[16];

	wpt_fmt_hash_final(a, da);
	wpt_fmt_hash_final(b, db);
	return memcmp(da, db, 16) != 0;
}

/* What the parts add up to. Counts of zero pages also have what the link leaves out. */
static int check_sums(struct check *c)
{
	const struct wpt_reader_info *info = &c->r->info;
	const struct wpt_fmt_counts *have = &c->counts, *said = &info->counts;
	struct wpt_fmt_section ranges;
	uint8_t file[16], records[16], identity[16];
	int rc;

	wpt_fmt_hash_final(&c->file, file);
	if (memcmp(file, info->trailer.file_digest, 16) || digests_differ(&c->leaves, &c->listed))
		return -WPT_E_DAMAGED;
	if (have->data != said->data || have->torn != said->torn || have->duplicate != said->duplicate || have->zero > said->zero ||
	    have->unreadable != said->unreadable || have->guard != said->guard)
		return -WPT_E_DAMAGED;
	if (info->head.flags & WPT_FMT_MERGED)
		return 0;
	rc = wpt_reader_find_section(c->r, WPT_FMT_SECTION_RANGES, &ranges);
	if (rc && rc != -ENOENT)
		return rc;
	wpt_fmt_records_final(&c->records, records);
	wpt_fmt_identity(&info->head, records, rc ? NULL : ranges.digest, identity);
	return memcmp(identity, info->trailer.digest, 16) ? -WPT_E_DAMAGED : 0;
}

int wpt_reader_verify(struct wpt_reader *r, int (*done)(void *arg, uint64_t bytes), void *arg)
{
	struct check *c = NULL;
	uint64_t nr_pages = 0;
	int rc;

	if (posix_memalign((void **)&c, 64, sizeof(*c)))
		return -ENOMEM;
	memset(c, 0, sizeof(*c));
	c->r = r;
	wpt_fmt_hash_init(&c->file);
	wpt_fmt_hash_init(&c->leaves);
	wpt_fmt_hash_init(&c->listed);
	wpt_fmt_records_init(&c->records);
	c->pages = malloc((size_t)WPT_FMT_FRAME_PAGES * WPT_FMT_PAGE);
	rc = c->pages ? check_frames(c, done, arg) : -ENOMEM;
	if (!rc)
		rc = check_tree(c, &r->root, WPT_FMT_LEVEL_MAX + 1, &nr_pages);
	if (!rc && (c->nr_leaves || c->nr_nodes || nr_pages != c->nr_pages))
		rc = -WPT_E_DAMAGED;
	if (!rc)
		rc = check_sections(c);
	if (!rc)
		rc = check_sums(c);
	if (!rc && done)
		rc = done(arg, WPT_FMT_TRAILER_SIZE);
	free(c->pages);
	free(c);
	return rc;
}
