/* SPDX-License-Identifier: MIT */
#include "reader_impl.h"

#include <stdlib.h>

/* ---- finding a link ---- */

int wpt_link_head(struct wpt_source *s, uint64_t start, struct wpt_fmt_head *head)
{
	uint8_t buf[WPT_FMT_HEAD_MAX];
	size_t len, frame_len;
	uint32_t tag;
	int rc;

	if (start >= s->size)
		return -WPT_E_TRUNCATED;
	len = (size_t)WPT_MIN(s->size - start, (uint64_t)sizeof(buf));
	rc = s->read(s, start, buf, len);
	if (rc)
		return rc;
	rc = wpt_fmt_frame(buf, len, &frame_len, &tag);
	if (rc < 0)
		return rc;
	if (rc != WPT_FMT_FRAME_BLOCK || tag != WPT_FMT_HEAD)
		return -WPT_E_NOT_SNAPSHOT;
	/* No head is that long: not that it ends behind the end is what is wrong with it. */
	if (frame_len > sizeof(buf))
		return -WPT_E_DAMAGED;
	if (frame_len > len)
		return -WPT_E_TRUNCATED;
	return wpt_fmt_head_decode(buf, frame_len, head);
}

int wpt_link_probe(struct wpt_source *s, uint64_t end, struct wpt_link_place *place)
{
	uint8_t buf[WPT_FMT_TRAILER_SIZE];
	uint64_t length;
	int rc;

	if (end < sizeof(buf) || end > s->size)
		return -WPT_E_NOT_SNAPSHOT;
	rc = s->read(s, end - sizeof(buf), buf, sizeof(buf));
	if (rc)
		return rc;
	rc = wpt_fmt_trailer_decode(buf, sizeof(buf), &place->trailer);
	if (rc == -WPT_E_FEATURE)
		return rc;
	if (rc)
		return -WPT_E_NOT_SNAPSHOT;
	length = place->trailer.offset + sizeof(buf);
	if (length > end)
		return -WPT_E_DAMAGED;
	place->source = s;
	place->start = end - length;
	place->end = end;
	rc = wpt_link_head(s, place->start, &place->head);
	/* With a trailer behind it nothing is cut off. */
	if (rc == -WPT_E_NOT_SNAPSHOT || rc == -WPT_E_TRUNCATED)
		return -WPT_E_DAMAGED;
	if (rc)
		return rc;
	if (memcmp(place->head.identity.chain_id, place->trailer.chain_id, 16) ||
	    memcmp(place->head.identity.link_id, place->trailer.link_id, 16) ||
	    place->head.identity.sequence != place->trailer.sequence)
		return -WPT_E_DAMAGED;
	return 0;
}

/* ---- blocks ---- */

int wpt_reader_bytes(struct wpt_reader *r, uint64_t offset, void *buf, size_t len)
{
	uint64_t end;

	if (wpt_add_overflows(offset, len, &end) || end > r->info.trailer.offset)
		return -WPT_E_DAMAGED;
	return r->source->read(r->source, r->info.start + offset, buf, len);
}

/* A decoder's error about a block whose place and checksum are known from elsewhere. */
static int decode_error(int rc)
{
	return rc == -WPT_E_FEATURE ? rc : -WPT_E_DAMAGED;
}

static uint64_t stored_checksum(const uint8_t *bytes, size_t len)
{
	uint64_t v = 0;
	int i;

	for (i = 1; i <= 8; i++)
		v = v << 8 | bytes[len - (size_t)i];
	return v;
}

struct block_load {
	struct wpt_reader *r;
	uint64_t offset, checksum;
	uint32_t length;
};

static int block_read(const struct block_load *b, uint8_t *bytes)
{
	int rc = wpt_reader_bytes(b->r, b->offset, bytes, b->length);

	if (rc)
		return rc;
	return stored_checksum(bytes, b->length) == b->checksum ? 0 : -WPT_E_DAMAGED;
}

/* Notes where every stride begins, and checks all runs on the way. */
static int leaf_mark(struct wpt_leaf *l)
{
	struct wpt_fmt_leaf cursor = l->leaf;
	struct wpt_fmt_run run;
	struct wpt_leaf_mark m;
	uint32_t n = 0;
	int rc;

	for (;;) {
		m = (struct wpt_leaf_mark){ cursor.page, (uint32_t)(cursor.next - l->bytes), cursor.runs_left };
		rc = wpt_fmt_leaf_next(&cursor, &run);
		if (rc <= 0)
			return rc;
		if (n++ % WPT_LEAF_STRIDE == 0)
			l->marks[l->nr_marks++] = m;
	}
}

static int leaf_load(void *arg, struct wpt_cached *e)
{
	struct block_load *b = arg;
	size_t max_marks, bytes;
	struct wpt_leaf *l;
	int rc;

	if (b->length < WPT_FMT_BLOCK_OVERHEAD || b->length > WPT_FMT_BLOCK_MAX)
		return -WPT_E_DAMAGED;
	/* A run has at least three bytes. */
	max_marks = b->length / (3 * WPT_LEAF_STRIDE) + 1;
	bytes = sizeof(*l) + max_marks * sizeof(l->marks[0]) + b->length;
	l = calloc(1, bytes);
	if (!l)
		return -ENOMEM;
	l->head = (struct wpt_entry_head){ b->checksum, b->length, 0 };
	l->bytes = (uint8_t *)&l->marks[max_marks];
	rc = block_read(b, l->bytes);
	if (rc)
		goto fail;
	rc = wpt_fmt_leaf_decode(l->bytes, b->length, &l->leaf);
	if (!rc)
		rc = leaf_mark(l);
	if (rc) {
		rc = decode_error(rc);
		goto fail;
	}
	e->data = l;
	e->bytes = bytes;
	return 0;
fail:
	free(l);
	return rc;
}

int wpt_reader_entry(struct wpt_reader *r, enum wpt_entry kind, uint64_t offset, const struct wpt_entry_head *want,
		     wpt_cache_load *load, void *arg, struct wpt_cached **out)
{
	const struct wpt_entry_head *head;
	int rc;

	rc = wpt_cache_get(r->cache, r->owner * WPT_ENTRY_KINDS + kind, offset, load, arg, out);
	if (rc)
		return rc;
	head = (*out)->data;
	if (head->checksum == want->checksum && head->length == want->length && head->nr_pages == want->nr_pages)
		return 0;
	wpt_cache_put(r->cache, *out);
	return -WPT_E_DAMAGED;
}

int wpt_reader_leaf(struct wpt_reader *r, uint64_t offset, uint32_t length, uint64_t checksum, struct wpt_cached **out)
{
	struct block_load b = { r, offset, checksum, length };
	struct wpt_entry_head want = { checksum, length, 0 };

	return wpt_reader_entry(r, WPT_ENTRY_LEAF, offset, &want, leaf_load, &b, out);
}

static bool child_sane(const struct block_load *b, const struct wpt_fmt_child *child)
{
	/* Children are written before their parents, so that no walk can go round. */
	return child->offset + child->length <= b->offset && child->first_page < child->end_page &&
	       child->end_page <= WPT_FMT_PAGES_END;
}

static int node_fill(struct wpt_node *n, const struct block_load *b, struct wpt_fmt_children c)
{
	struct wpt_fmt_child *child;
	uint64_t end = 0;
	int rc;

	n->level = c.level;
	while (n->nr < c.nr) {
		child = &n->children[n->nr];
		rc = wpt_fmt_children_next(&c, child);
		if (rc <= 0 || !child_sane(b, child))
			return -WPT_E_DAMAGED;
		if (n->nr == 0 || child->first_page < end)
			n->passes[n->nr_passes++] = n->nr;
		end = child->end_page;
		n->nr++;
	}
	n->passes[n->nr_passes] = n->nr;
	return 0;
}

/* The least bytes of an encoded child: five varints and a checksum. */
#define CHILD_MIN 13u

static int node_make(struct wpt_cached *e, const struct block_load *b, const struct wpt_fmt_children *c)
{
	struct wpt_node *n;
	size_t bytes;
	int rc;

	if (c->nr > b->length / CHILD_MIN)
		return -WPT_E_DAMAGED;
	bytes = sizeof(*n) + c->nr * sizeof(n->children[0]) + ((size_t)c->nr + 1) * sizeof(n->passes[0]);
	n = calloc(1, bytes);
	if (!n)
		return -ENOMEM;
	n->head = (struct wpt_entry_head){ b->checksum, b->length, 0 };
	n->children = (struct wpt_fmt_child *)(n + 1);
	n->passes = (uint32_t *)(n->children + c->nr);
	rc = node_fill(n, b, *c);
	if (rc) {
		free(n);
		return rc;
	}
	e->data = n;
	e->bytes = bytes;
	return 0;
}

static int node_load_as(struct block_load *b, struct wpt_cached *e, bool root)
{
	struct wpt_fmt_children children;
	struct wpt_fmt_root rt;
	uint8_t *bytes;
	int rc;

	if (b->length < WPT_FMT_BLOCK_OVERHEAD || b->length > WPT_FMT_BLOCK_MAX)
		return -WPT_E_DAMAGED;
	bytes = malloc(b->length);
	if (!bytes)
		return -ENOMEM;
	rc = block_read(b, bytes);
	if (!rc && root) {
		rc = wpt_fmt_root_decode(bytes, b->length, &rt);
		rc = rc ? decode_error(rc) : node_make(e, b, &rt.children);
	} else if (!rc) {
		rc = wpt_fmt_node_decode(bytes, b->length, &children);
		rc = rc ? decode_error(rc) : node_make(e, b, &children);
	}
	free(bytes);
	return rc;
}

static int node_load(void *arg, struct wpt_cached *e)
{
	return node_load_as(arg, e, false);
}

static int root_load(void *arg, struct wpt_cached *e)
{
	return node_load_as(arg, e, true);
}

int wpt_reader_node(struct wpt_reader *r, const struct wpt_fmt_child *child, uint32_t below, struct wpt_cached **out)
{
	struct block_load b = { r, child->offset, child->checksum, child->length };
	struct wpt_entry_head want = { child->checksum, child->length, 0 };
	bool root = child == &r->root;
	int rc;

	rc = wpt_reader_entry(r, root ? WPT_ENTRY_ROOT : WPT_ENTRY_NODE, child->offset, &want, root ? root_load : node_load, &b, out);
	if (rc || root)
		return rc;
	if (((struct wpt_node *)(*out)->data)->level < below)
		return 0;
	wpt_cache_put(r->cache, *out);
	return -WPT_E_DAMAGED;
}

/* ---- runs ---- */

void wpt_reader_run_cut(struct wpt_reader_run *run, uint64_t page, uint64_t end)
{
	uint64_t skip = page - run->page;

	if (wpt_fmt_has_data(run->kind)) {
		run->slot += (uint32_t)skip;
		run->hashes += (uint32_t)skip * 16;
	}
	run->page = page;
	run->nr_pages = end - page;
}

/* ---- open ---- */

static int root_info(struct wpt_reader *r, const struct wpt_fmt_root *root)
{
	struct wpt_fmt_children c = root->children;
	struct wpt_fmt_child child;
	int rc;

	r->info.time_ns = root->time_ns;
	r->info.pause_ns = root->pause_ns;
	r->info.counts = root->counts;
	r->nr_sections = root->nr_sections;
	r->first_page = WPT_FMT_PAGES_END;
	while ((rc = wpt_fmt_children_next(&c, &child)) > 0) {
		r->first_page = WPT_MIN(r->first_page, child.first_page);
		r->end_page = WPT_MAX(r->end_page, child.end_page);
	}
	return rc;
}

static int root_read(struct wpt_reader *r, int (*use)(struct wpt_reader *r, const struct wpt_fmt_root *root))
{
	struct block_load b = { r, r->root.offset, r->root.checksum, r->root.length };
	struct wpt_fmt_root root;
	uint8_t *bytes = malloc(b.length);
	int rc;

	if (!bytes)
		return -ENOMEM;
	rc = block_read(&b, bytes);
	if (!rc) {
		rc = wpt_fmt_root_decode(bytes, b.length, &root);
		if (!rc)
			rc = use(r, &root);
		if (rc)
			rc = decode_error(rc);
	}
	free(bytes);
	return rc;
}

int wpt_reader_open(struct wpt_reader **out, const struct wpt_link_place *place, struct wpt_cache *cache, uint64_t owner)
{
	struct wpt_reader *r;
	int rc;

	if (posix_memalign((void **)&r, 64, sizeof(*r)))
		return -ENOMEM;
	memset(r, 0, sizeof(*r));
	r->source = place->source;
	r->cache = cache;
	r->owner = owner;
	r->info.start = place->start;
	r->info.length = place->end - place->start;
	r->info.head = place->head;
	r->info.trailer = place->trailer;
	r->root.offset = place->trailer.root_offset;
	r->root.length = place->trailer.root_length;
	r->root.checksum = place->trailer.root_checksum;
	rc = root_read(r, root_info);
	if (rc) {
		free(r);
		return rc;
	}
	wpt_page_key_init(&r->key, place->head.key);
	*out = r;
	return 0;
}

void wpt_reader_close(struct wpt_reader *r)
{
	free(r);
}

const struct wpt_reader_info *wpt_reader_info(const struct wpt_reader *r)
{
	return &r->info;
}

struct wpt_source *wpt_reader_source(const struct wpt_reader *r)
{
	return r->source;
}
