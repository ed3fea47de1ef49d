/* SPDX-License-Identifier: MIT */
/*
 * A chain of links: finding them, and what is known of the last one. Links are found by their trailers; a link's parent by its id, and only
 * if its identity digest is the one that the child was made from.
 */
#include "chain_impl.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CACHE_BYTES ((size_t)48 << 20)
#define RANGES_MAX ((size_t)64 << 20)
#define NAME_TAIL 37 /* "-" and 32 digits and ".wps" */

/* A link that was found, whether or not it becomes part of the chain. */
struct place {
	struct wpt_link_place link;
	const char *name;
};

struct search {
	struct wpt_pool *pool;
	struct place *places;
	uint32_t nr, room;
	uint32_t nr_own;           /* links to choose from; those behind them may only be parents */
	const char *suffix;
	int error;                 /* of a file in the folder that is no good */
	uint64_t error_sequence;   /* the highest that such a file's name has */
	uint64_t end_offset, size; /* of a file of links */
};

/* ---- names ---- */

/* "%010u-ID.wps" */
static bool is_link_name(const char *name)
{
	size_t len = strlen(name), i;
	const char *tail;

	if (len < NAME_TAIL + 10)
		return false;
	tail = name + len - NAME_TAIL;
	for (i = 0; name + i < tail; i++)
		if (!isdigit((unsigned char)name[i]))
			return false;
	if (tail[0] != '-' || strcmp(tail + 33, ".wps") != 0)
		return false;
	for (i = 1; i <= 32; i++)
		if (!isxdigit((unsigned char)tail[i]) || isupper((unsigned char)tail[i]))
			return false;
	return true;
}

static void hex(char out[33], const uint8_t id[16])
{
	int i;

	for (i = 0; i < 16; i++)
		snprintf(out + 2 * i, 3, "%02x", id[i]);
}

/* Splits "PATH@SUFFIX" unless PATH with the suffix exists. `path` is the caller's to free. */
static int split_suffix(const char *spec, char **path, const char **suffix)
{
	struct stat st;
	const char *at = strrchr(spec, '@');

	*suffix = NULL;
	*path = strdup(spec);
	if (!*path)
		return -ENOMEM;
	if (!at || at == spec || lstat(spec, &st) == 0)
		return 0;
	(*path)[at - spec] = '\0';
	*suffix = at + 1;
	return 0;
}

/* ---- finding links ---- */

static int place_add(struct search *s, const struct wpt_link_place *link, const char *name)
{
	struct place *more;

	if (s->nr == s->room) {
		s->room = s->room ? s->room * 2 : 64;
		more = realloc(s->places, s->room * sizeof(*more));
		if (!more)
			return -ENOMEM;
		s->places = more;
	}
	s->places[s->nr++] = (struct place){ *link, name };
	return 0;
}

/* The complete links of a source whose end is not a trailer, front to back; what is behind them is a torn tail. */
static int walk_forward(struct search *s, struct wpt_source *source)
{
	struct wpt_link_place link = { .source = source };
	struct wpt_frames frames;
	struct wpt_frame f = { 0 };
	uint64_t start = 0;
	bool first = true;
	int rc;

	rc = wpt_link_head(source, 0, &link.head);
	if (rc)
		return rc;
	rc = wpt_frames_open(&frames, source, 0, source->size);
	if (rc)
		return rc;
	while ((rc = wpt_frames_next(&frames, &f)) > 0) {
		if (f.bad || (first && (f.kind != WPT_FMT_FRAME_BLOCK || f.tag != WPT_FMT_HEAD))) {
			rc = -WPT_E_DAMAGED;
			break;
		}
		first = false;
		if (f.kind != WPT_FMT_FRAME_BLOCK || f.tag != WPT_FMT_TRAILER)
			continue;
		rc = wpt_link_probe(source, f.offset + f.len, &link);
		if (!rc && link.start != start)
			rc = -WPT_E_DAMAGED;
		if (!rc)
			rc = place_add(s, &link, wpt_pool_name(source));
		if (rc)
			break;
		start = s->end_offset = link.end;
		first = true;
	}
	wpt_frames_close(&frames);
	if (s->nr || rc == -ENOMEM)
		return rc == -ENOMEM ? rc : 0;
	return rc < 0 ? rc : -WPT_E_TRUNCATED;
}

/* All links of a source, the last first if its end is a trailer. */
static int find_in_source(struct search *s, struct wpt_source *source)
{
	struct wpt_link_place link;
	uint64_t end = source->size;
	int rc;

	s->size = end;
	s->end_offset = end;
	rc = wpt_link_probe(source, end, &link);
	if (rc == -WPT_E_NOT_SNAPSHOT)
		return walk_forward(s, source);
	while (!rc) {
		rc = place_add(s, &link, wpt_pool_name(source));
		if (rc || link.start == 0)
			return rc;
		rc = wpt_link_probe(source, link.start, &link);
	}
	return rc == -WPT_E_NOT_SNAPSHOT ? -WPT_E_DAMAGED : rc;
}

/* A file of a folder. That it is damaged matters only if it is needed, so it is noted. */
static int find_in_entry(struct search *s, const char *name)
{
	struct wpt_link_place link;
	struct wpt_source *source;
	uint64_t sequence;
	int rc = wpt_pool_file(s->pool, name, &source);

	if (!rc)
		rc = wpt_link_probe(source, source->size, &link);
	/* A file that bears a link's name was complete once. */
	if (rc == -WPT_E_NOT_SNAPSHOT)
		rc = wpt_link_head(source, 0, &link.head) == 0 ? -WPT_E_TRUNCATED : -WPT_E_DAMAGED;
	if (!rc && link.start != 0)
		rc = -WPT_E_DAMAGED;
	if (!rc)
		return place_add(s, &link, wpt_pool_name(source));
	if (rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE)
		return rc;
	sequence = strtoull(name, NULL, 10);
	if (!s->error || sequence > s->error_sequence)
		s->error_sequence = sequence;
	if (!s->error)
		s->error = rc;
	return 0;
}

/* Every link of the pool's folder but the file `except`. */
static int find_in_folder(struct search *s, const char *except)
{
	struct dirent *entry;
	DIR *dir;
	int fd = openat(wpt_pool_dir(s->pool), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;

	dir = fd >= 0 ? fdopendir(fd) : NULL;
	if (!dir) {
		rc = -errno;
		if (fd >= 0)
			close(fd);
		return rc;
	}
	while (!rc && (entry = readdir(dir)))
		if (is_link_name(entry->d_name) && (!except || strcmp(entry->d_name, except) != 0))
			rc = find_in_entry(s, entry->d_name);
	closedir(dir);
	return rc;
}

/* ---- choosing ---- */

static int reader_time(struct wpt_cache *cache, const struct place *p, uint64_t *time_ns)
{
	struct wpt_reader *r = NULL;
	int rc = wpt_reader_open(&r, &p->link, cache, UINT64_MAX);

	if (rc)
		return rc;
	*time_ns = wpt_reader_info(r)->time_ns;
	wpt_reader_close(r);
	return 0;
}

static bool same_chain(const struct place *a, const struct place *b)
{
	return memcmp(a->link.head.identity.chain_id, b->link.head.identity.chain_id, 16) == 0;
}

static uint64_t sequence_of(const struct place *p)
{
	return p->link.head.identity.sequence;
}

/* The last link of the newest chain. */
static int choose_last(struct search *s, struct wpt_cache *cache, const struct place **out)
{
	const struct place *best = NULL, *p;
	uint64_t best_time = 0, time;
	uint32_t i;
	int rc;

	for (i = 0; i < s->nr_own; i++) {
		p = &s->places[i];
		if (!best || (same_chain(p, best) && sequence_of(p) > sequence_of(best))) {
			best = p;
			best_time = 0;
			continue;
		}
		if (same_chain(p, best))
			continue;
		rc = best_time ? 0 : reader_time(cache, best, &best_time);
		if (!rc)
			rc = reader_time(cache, p, &time);
		if (rc)
			return rc;
		if (time > best_time) {
			best = p;
			best_time = time;
		}
	}
	if (!best)
		return -ENOENT;
	/* The choice between chains may have been made before the chain's last link was seen. */
	for (i = 0; i < s->nr_own; i++)
		if (same_chain(&s->places[i], best) && sequence_of(&s->places[i]) > sequence_of(best))
			best = &s->places[i];
	*out = best;
	return 0;
}

static bool same_link(const struct place *a, const struct place *b)
{
	return memcmp(a->link.head.identity.link_id, b->link.head.identity.link_id, 16) == 0;
}

/* The one link of a chain with a sequence number. */
static int choose_sequence(struct search *s, const struct place *of, uint64_t sequence, const struct place **out)
{
	const struct place *found = NULL, *p;
	uint32_t i;

	for (i = 0; i < s->nr_own; i++) {
		p = &s->places[i];
		if (!same_chain(p, of) || sequence_of(p) != sequence)
			continue;
		if (found && !same_link(found, p))
			return -WPT_E_AMBIGUOUS;
		/* A merged link stands in for the one that it was made from; either will do, the full one is shorter. */
		if (!found || p->link.head.flags & WPT_FMT_FULL)
			found = p;
	}
	if (!found)
		return -ENOENT;
	*out = found;
	return 0;
}

static int choose_id(struct search *s, const char *prefix, const struct place **out)
{
	const struct place *found = NULL;
	size_t len = strlen(prefix);
	char id[33];
	uint32_t i;

	if (!len || len > 32)
		return -EINVAL;
	for (i = 0; i < s->nr_own; i++) {
		hex(id, s->places[i].link.head.identity.link_id);
		if (strncasecmp(id, prefix, len) != 0)
			continue;
		if (found && !same_link(found, &s->places[i]))
			return -WPT_E_AMBIGUOUS;
		if (!found || s->places[i].link.head.flags & WPT_FMT_FULL)
			found = &s->places[i];
	}
	if (!found)
		return -ENOENT;
	*out = found;
	return 0;
}

/* The link that the suffix names. "@-N" counts in sequence numbers from the last. */
static int choose(struct search *s, struct wpt_cache *cache, const struct place **out)
{
	const struct place *last;
	unsigned long long n;
	char *end;
	int rc;

	if (s->suffix && strncmp(s->suffix, "id:", 3) == 0)
		return choose_id(s, s->suffix + 3, out);
	rc = choose_last(s, cache, &last);
	if (rc)
		return rc == -ENOENT && s->error ? s->error : rc;
	/* Rather an error than an older link for the newest. */
	if (s->error && s->error_sequence >= sequence_of(last) && (!s->suffix || *s->suffix == '-'))
		return s->error;
	if (!s->suffix)
		return choose_sequence(s, last, sequence_of(last), out);
	if (!isdigit((unsigned char)s->suffix[*s->suffix == '-']))
		return -EINVAL;
	errno = 0;
	n = strtoull(s->suffix + (*s->suffix == '-'), &end, 10);
	if (*end || errno)
		return -EINVAL;
	if (*s->suffix == '-') {
		if (n == 0 || n - 1 > sequence_of(last))
			return -ENOENT;
		n = sequence_of(last) - (n - 1);
	}
	return choose_sequence(s, last, n, out);
}

static const struct place *parent_of(const struct search *s, const struct place *child)
{
	const struct wpt_identity *id = &child->link.head.identity;
	const struct place *found = NULL, *p;
	uint32_t i;

	for (i = 0; i < s->nr; i++) {
		p = &s->places[i];
		if (memcmp(p->link.head.identity.link_id, id->parent_id, 16) == 0 && same_chain(p, child) &&
		    memcmp(p->link.trailer.digest, id->parent_digest, 16) == 0 && sequence_of(p) + 1 == sequence_of(child) &&
		    (!found || p->link.head.flags & WPT_FMT_FULL))
			found = p;
	}
	return found;
}

/* ---- ranges ---- */

struct text {
	uint8_t *data;
	size_t len, room;
};

static int take_text(void *arg, const uint8_t *data, size_t len)
{
	struct text *t = arg;

	if (len > t->room - t->len)
		return -WPT_E_DAMAGED;
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
	t.room = (size_t)s->length;
	t.data = malloc(t.room + 1);
	if (!t.data)
		return -ENOMEM;
	rc = wpt_reader_section(r, s, take_text, &t);
	if (!rc && t.len != t.room)
		rc = -WPT_E_DAMAGED;
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

static int ranges_load(struct wpt_reader *r, const struct wpt_fmt_section *s, struct wpt_range_list **out)
{
	struct wpt_fmt_ranges cursor;
	struct wpt_fmt_range range;
	struct wpt_range_list *l = NULL;
	uint32_t nr = 0;
	void *text;
	size_t len;
	int rc = wpt_section_load(r, s, RANGES_MAX, &text, &len);

	if (rc)
		return rc;
	wpt_fmt_ranges_begin(&cursor, text, len);
	while ((rc = wpt_fmt_ranges_next(&cursor, &range)) > 0)
		nr++;
	if (!rc) {
		l = calloc(1, sizeof(*l) + nr * sizeof(*l->ranges));
		rc = l ? 0 : -ENOMEM;
	}
	wpt_fmt_ranges_begin(&cursor, text, len);
	while (!rc && l->nr < nr && (rc = wpt_fmt_ranges_next(&cursor, &range)) > 0) {
		struct wpt_listed_range *to = &l->ranges[l->nr];

		to->name = strndup(range.name, range.name_len);
		rc = to->name ? 0 : -ENOMEM;
		to->start = range.start;
		to->end = range.end;
		to->kind = range.kind;
		to->reason = range.reason;
		l->nr++;
	}
	free(text);
	if (rc < 0) {
		ranges_free(l);
		return rc;
	}
	*out = l;
	return 0;
}

/* ---- open ---- */

static int link_open(struct wpt_chain *c, uint32_t index, const struct place *p)
{
	struct wpt_chain_link *l = &c->links[index];
	struct wpt_fmt_section s;
	int rc;

	l->name = p->name;
	rc = wpt_reader_open(&l->reader, &p->link, c->cache, index);
	if (rc)
		return rc;
	rc = wpt_reader_find_section(l->reader, WPT_FMT_SECTION_RANGES, &s);
	if (rc == -ENOENT) {
		/* The parent's; a link that needs no parent must have its own. */
		if (p->link.head.flags & WPT_FMT_FULL || !index)
			return -WPT_E_DAMAGED;
		l->ranges = c->links[index - 1].ranges;
		return 0;
	}
	if (rc)
		return rc;
	l->owns_ranges = true;
	return ranges_load(l->reader, &s, &l->ranges);
}

static int links_open(struct wpt_chain *c, const struct search *s, const struct place *tip)
{
	const struct place *p, **order;
	uint32_t nr = 0, i;
	int rc = 0;

	/* Sequence numbers fall by one from child to parent, so this ends. */
	for (p = tip; p && !(p->link.head.flags & WPT_FMT_FULL); p = parent_of(s, p))
		nr++;
	if (!p)
		return s->error ? s->error : -WPT_E_CHAIN;
	nr++;
	order = calloc(nr, sizeof(*order));
	c->links = calloc(nr, sizeof(*c->links));
	if (!order || !c->links) {
		free(order);
		return -ENOMEM;
	}
	c->nr_links = nr;
	for (p = tip, i = nr; i--; p = i ? parent_of(s, p) : NULL)
		order[i] = p;
	for (i = 0; i < nr && !rc; i++) {
		if (memcmp(order[i]->link.head.key, tip->link.head.key, sizeof(tip->link.head.key)) != 0)
			rc = -WPT_E_CHAIN;
		if (!rc)
			rc = link_open(c, i, order[i]);
	}
	free(order);
	return rc;
}

static int chain_start(struct wpt_chain **out, struct search *s)
{
	struct wpt_chain *c = calloc(1, sizeof(*c));
	const struct place *tip = NULL;
	int rc;

	if (!c)
		return -ENOMEM;
	c->end_offset = s->end_offset;
	c->torn_bytes = s->size - s->end_offset;
	rc = wpt_cache_open(&c->cache, CACHE_BYTES);
	if (!rc)
		rc = choose(s, c->cache, &tip);
	if (!rc)
		rc = links_open(c, s, tip);
	if (rc) {
		wpt_chain_close(c);
		return rc;
	}
	c->pool = s->pool;
	s->pool = NULL;
	*out = c;
	return 0;
}

static int open_file(struct search *s, const char *path)
{
	const char *slash = strrchr(path, '/');
	struct wpt_source *source;
	uint32_t i;
	char *dir;
	int fd, rc;

	dir = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
	if (!dir)
		return -ENOMEM;
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	free(dir);
	if (fd < 0)
		return -errno;
	rc = wpt_pool_open(&s->pool, fd);
	if (!rc)
		rc = wpt_pool_file(s->pool, slash ? slash + 1 : path, &source);
	if (!rc)
		rc = find_in_source(s, source);
	if (rc)
		return rc;
	s->nr_own = s->nr;
	/* Links whose parents are not in the file find them beside it. */
	for (i = 0; i < s->nr_own; i++)
		if (!(s->places[i].link.head.flags & WPT_FMT_FULL) && !parent_of(s, &s->places[i]))
			return find_in_folder(s, wpt_pool_name(source));
	return 0;
}

int wpt_chain_open(struct wpt_chain **out, const char *chain)
{
	struct search s = { 0 };
	struct stat st;
	char *path = NULL;
	int fd, rc;

	rc = split_suffix(chain, &path, &s.suffix);
	if (rc)
		return rc;
	if (stat(path, &st) != 0) {
		rc = -errno;
	} else if (S_ISDIR(st.st_mode)) {
		fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		rc = fd < 0 ? -errno : wpt_pool_open(&s.pool, fd);
		if (!rc)
			rc = find_in_folder(&s, NULL);
		s.nr_own = s.nr;
	} else if (!S_ISREG(st.st_mode)) {
		rc = -WPT_E_NOT_SNAPSHOT;
	} else {
		rc = open_file(&s, path);
	}
	if (!rc)
		rc = chain_start(out, &s);
	wpt_pool_close(s.pool);
	free(s.places);
	free(path);
	return rc;
}

int wpt_chain_open_memory(struct wpt_chain **out, const void *data, size_t len)
{
	struct wpt_source *source;
	struct search s = { 0 };
	int rc = wpt_pool_open(&s.pool, -1);

	if (!rc)
		rc = wpt_pool_memory(s.pool, data, len, &source);
	if (!rc)
		rc = find_in_source(&s, source);
	s.nr_own = s.nr;
	if (!rc)
		rc = chain_start(out, &s);
	wpt_pool_close(s.pool);
	free(s.places);
	return rc;
}

void wpt_chain_close(struct wpt_chain *c)
{
	uint32_t i;

	if (!c)
		return;
	for (i = 0; i < c->nr_links; i++) {
		wpt_reader_close(c->links[i].reader);
		if (c->links[i].owns_ranges)
			ranges_free(c->links[i].ranges);
	}
	free(c->links);
	wpt_cache_close(c->cache);
	wpt_pool_close(c->pool);
	free(c);
}
