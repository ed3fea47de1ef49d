/* SPDX-License-Identifier: MIT */
/* A chain of links: opened, and what each link covers. Which links those are is locate.c's. */
#include "chain_impl.h"
#include "locate.h"

#include <stdlib.h>

#define CACHE_BYTES ((size_t)48 << 20)
#define OPEN_TRIES 8
#define RANGES_MAX ((size_t)64 << 20) /* bytes of one link's list; and of all spans, beyond the chain's own size */

/* ---- ranges ---- */

/* Bytes that are there, however many are said to be. */
struct text {
	uint8_t *data;
	size_t len, room;
};

static int take_text(void *arg, const uint8_t *data, size_t len)
{
	struct text *t = arg;
	uint8_t *more;
	size_t room;

	if (t->room - t->len <= len) {
		room = (t->len + len) + (t->len + len) / 2 + 1;
		more = realloc(t->data, room);
		if (!more)
			return -ENOMEM;
		t->data = more;
		t->room = room;
	}
	memcpy(t->data + t->len, data, len);
	t->len += len;
	return 0;
}

int wpt_section_load(struct wpt_reader *r, const struct wpt_fmt_section *s, size_t max, void **data, size_t *len)
{
	struct text t = { 0 };
	int rc;

	if (s->length > max)
		return -WPT_E_DAMAGED;
	rc = take_text(&t, (const uint8_t *)"", 0);
	if (!rc)
		rc = wpt_reader_section(r, s, take_text, &t);
	if (rc) {
		free(t.data);
		return rc;
	}
	*data = t.data;
	*len = t.len;
	return 0;
}

static void ranges_free(struct wpt_range_list *l)
{
	uint32_t i;

	for (i = 0; l && i < l->nr; i++)
		free(l->ranges[i].name);
	free(l);
}

/* Every range of a section that was loaded; what does not parse is an error before `take` sees any. */
static int ranges_each(const void *text, size_t len, int (*take)(void *arg, const struct wpt_fmt_range *r), void *arg)
{
	struct wpt_fmt_ranges cursor;
	struct wpt_fmt_range range;
	int rc;

	wpt_fmt_ranges_begin(&cursor, text, len);
	while ((rc = wpt_fmt_ranges_next(&cursor, &range)) > 0) {
		rc = take(arg, &range);
		if (rc)
			return rc;
	}
	return rc;
}

static int count_range(void *arg, const struct wpt_fmt_range *r)
{
	(void)r;
	++*(uint32_t *)arg;
	return 0;
}

static int add_span(void *arg, const struct wpt_fmt_range *r)
{
	struct wpt_spans *s = arg;

	if (s->nr && s->spans[s->nr - 1].end == r->start)
		s->spans[s->nr - 1].end = r->end;
	else
		s->spans[s->nr++] = (struct wpt_span){ r->start, r->end };
	return 0;
}

static int add_listed(void *arg, const struct wpt_fmt_range *r)
{
	struct wpt_range_list *l = arg;
	char *name = strndup(r->name, r->name_len);

	if (!name)
		return -ENOMEM;
	l->ranges[l->nr++] = (struct wpt_listed_range){ r->start, r->end, r->kind, r->reason, name };
	return 0;
}

static int spans_make(const void *text, size_t len, uint32_t nr, struct wpt_spans **out)
{
	struct wpt_spans *s = malloc(sizeof(*s) + nr * sizeof(s->spans[0])), *smaller;
	int rc;

	if (!s)
		return -ENOMEM;
	s->nr = 0;
	rc = ranges_each(text, len, add_span, s);
	if (rc) {
		free(s);
		return rc;
	}
	smaller = realloc(s, sizeof(*s) + s->nr * sizeof(s->spans[0]));
	*out = smaller ? smaller : s;
	return 0;
}

static int list_make(const void *text, size_t len, uint32_t nr, struct wpt_range_list **out)
{
	struct wpt_range_list *l = calloc(1, sizeof(*l) + nr * sizeof(l->ranges[0]));
	int rc = l ? ranges_each(text, len, add_listed, l) : -ENOMEM;

	if (rc) {
		ranges_free(l);
		return rc;
	}
	*out = l;
	return 0;
}

static bool same_spans(const struct wpt_spans *a, const struct wpt_spans *b)
{
	return a->nr == b->nr && !memcmp(a->spans, b->spans, a->nr * sizeof(a->spans[0]));
}

/* ---- open ---- */

struct opening {
	struct wpt_chain *chain;
	uint32_t listed;        /* the last link that has a list of its own */
	uint64_t span_bytes, max_span_bytes;
};

static int link_ranges(struct opening *o, uint32_t index, const struct wpt_fmt_section *section)
{
	struct wpt_chain *c = o->chain;
	struct wpt_chain_link *l = &c->links[index];
	uint32_t nr = 0;
	void *text;
	size_t len;
	int rc = wpt_section_load(l->reader, section, RANGES_MAX, &text, &len);

	if (rc)
		return rc;
	rc = ranges_each(text, len, count_range, &nr);
	if (!rc)
		rc = spans_make(text, len, nr, &l->spans);
	if (!rc) {
		l->owns_spans = true;
		if (index && same_spans(l->spans, l[-1].spans)) {
			free(l->spans);
			l->spans = l[-1].spans;
			l->owns_spans = false;
		} else {
			o->span_bytes += l->spans->nr * sizeof(struct wpt_span);
			rc = o->span_bytes > o->max_span_bytes ? -ENOMEM : 0;
		}
	}
	if (!rc && index == o->listed)
		rc = list_make(text, len, nr, &c->ranges);
	free(text);
	return rc;
}

static int links_open(struct opening *o, const struct wpt_place *const *places)
{
	struct wpt_chain *c = o->chain;
	const struct wpt_place *tip = places[c->nr_links - 1];
	struct wpt_fmt_section s;
	uint32_t i;
	int rc = 0;

	for (i = 0; i < c->nr_links && !rc; i++) {
		if (memcmp(places[i]->link.head.key, tip->link.head.key, sizeof(tip->link.head.key)) != 0)
			return -WPT_E_CHAIN;
		c->links[i].name = places[i]->name;
		rc = wpt_reader_open(&c->links[i].reader, &places[i]->link, c->cache, i);
		if (rc)
			return rc;
		o->max_span_bytes += places[i]->link.end - places[i]->link.start;
		rc = wpt_reader_find_section(c->links[i].reader, WPT_FMT_SECTION_RANGES, &s);
		if (!rc)
			o->listed = i;
		/* Without one it is the parent's; a link that needs no parent must have its own. */
		if (rc == -ENOENT)
			rc = i ? 0 : -WPT_E_DAMAGED;
	}
	for (i = 0; i < c->nr_links && !rc; i++) {
		rc = wpt_reader_find_section(c->links[i].reader, WPT_FMT_SECTION_RANGES, &s);
		if (!rc) {
			rc = link_ranges(o, i, &s);
		} else if (rc == -ENOENT) {
			c->links[i].spans = c->links[i - 1].spans;
			rc = 0;
		}
	}
	return rc;
}

static int chain_start(struct wpt_chain **out, struct wpt_locator *l)
{
	struct wpt_chain *c = calloc(1, sizeof(*c));
	struct opening o = { .chain = c, .max_span_bytes = RANGES_MAX };
	const struct wpt_place **places = NULL;
	uint32_t nr = 0;
	int rc;

	if (!c)
		return -ENOMEM;
	pthread_mutex_init(&c->idle_lock, NULL);
	c->end_offset = l->end_offset;
	c->torn_bytes = l->size - l->end_offset;
	c->file_error = l->file_error;
	rc = wpt_cache_open(&c->cache, CACHE_BYTES);
	if (!rc)
		rc = wpt_locate_chain(l, c->cache, &places, &nr);
	if (!rc) {
		c->links = calloc(nr, sizeof(*c->links));
		c->nr_links = c->links ? nr : 0;
		rc = c->links ? links_open(&o, places) : -ENOMEM;
	}
	free(places);
	if (rc) {
		wpt_chain_close(c);
		return rc;
	}
	c->pool = l->pool;
	l->pool = NULL;
	*out = c;
	return 0;
}

/* A link that is missing may be one that is pruned at this moment: then what needed it is full by now. It is missing if it is missing twice. */
int wpt_chain_open(struct wpt_chain **out, const char *chain)
{
	uint64_t before = 0, stamp = 0;
	int tries, rc = 0;

	for (tries = 0; tries < OPEN_TRIES; tries++) {
		struct wpt_locator l = { 0 };

		rc = wpt_locate(&l, chain);
		if (!rc)
			rc = chain_start(out, &l);
		before = stamp;
		stamp = l.stamp;
		wpt_locate_close(&l);
		if (rc != -WPT_E_CHAIN || (tries && stamp == before))
			break;
	}
	return rc;
}

int wpt_chain_open_at(struct wpt_chain **out, int dir_fd, const char *name)
{
	struct wpt_locator l = { 0 };
	int rc = wpt_locate_at(&l, dir_fd, name);

	if (!rc)
		rc = chain_start(out, &l);
	wpt_locate_close(&l);
	return rc;
}

int wpt_chain_open_memory(struct wpt_chain **out, const void *data, size_t len)
{
	struct wpt_locator l = { 0 };
	int rc = wpt_locate_memory(&l, data, len);

	if (!rc)
		rc = chain_start(out, &l);
	wpt_locate_close(&l);
	return rc;
}

void wpt_chain_close(struct wpt_chain *c)
{
	uint32_t i;

	if (!c)
		return;
	for (i = 0; i < WPT_IDLE_WALKERS; i++)
		wpt_walker_close(c->idle[i]);
	pthread_mutex_destroy(&c->idle_lock);
	for (i = 0; i < c->nr_links; i++) {
		wpt_reader_close(c->links[i].reader);
		if (c->links[i].owns_spans)
			free(c->links[i].spans);
	}
	free(c->links);
	ranges_free(c->ranges);
	wpt_cache_close(c->cache);
	wpt_pool_close(c->pool);
	free(c);
}
