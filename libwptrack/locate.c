/* SPDX-License-Identifier: MIT */
/*
 * Links are found by their trailers, from the end of a file to its start. Where that fails, the file's frames are walked from its start:
 * no link is found by searching for its trailer, since page data may hold anything. A torn tail, which a writer that was killed leaves, is
 * ignored; a link that is all there and wrong is an error, because the link before it is not what was asked for. So what is behind the last
 * good link is searched for a trailer only to tell the two apart.
 */
#include "locate.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_TAIL 37 /* "-" and 32 digits and ".wps" */
#define SEARCH_BYTES 65536u
#define LIST_TRIES 8
#define FRAME_HEAD 12u /* magic, length and tag, which all trailers have in common */

static const uint8_t *id_of(const struct wpt_place *p)
{
	return p->link.head.identity.link_id;
}

static uint64_t sequence_of(const struct wpt_place *p)
{
	return p->link.head.identity.sequence;
}

static bool is_full(const struct wpt_place *p)
{
	return p->link.head.flags & WPT_FMT_FULL;
}

static bool same_chain(const struct wpt_place *a, const struct wpt_place *b)
{
	return memcmp(a->link.head.identity.chain_id, b->link.head.identity.chain_id, 16) == 0;
}

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

static bool is_other_name(const char *name)
{
	size_t len = strlen(name);

	return name[0] != '.' && len > 4 && !strcmp(name + len - 4, ".wps") && !is_link_name(name);
}

/* Splits "PATH@SUFFIX" unless PATH with the suffix exists. */
static int split_suffix(struct wpt_locator *l, const char *chain)
{
	const char *at = strrchr(chain, '@');
	struct stat st;

	l->path = strdup(chain);
	if (!l->path)
		return -ENOMEM;
	if (!at || at == chain || lstat(chain, &st) == 0)
		return 0;
	l->path[at - chain] = '\0';
	l->suffix = at + 1;
	return 0;
}

/* ---- finding links ---- */

static int place_add(struct wpt_locator *l, const struct wpt_link_place *link, const char *name)
{
	struct wpt_place *more;
	uint32_t room;
	size_t bytes;

	if (l->nr == l->room) {
		room = l->room ? l->room * 2 : 64;
		if (room < l->room || __builtin_mul_overflow(room, sizeof(*more), &bytes))
			return -ENOMEM;
		more = realloc(l->places, bytes);
		if (!more)
			return -ENOMEM;
		l->places = more;
		l->room = room;
	}
	l->places[l->nr++] = (struct wpt_place){ *link, name };
	return 0;
}

static void note_error(struct wpt_locator *l, int rc)
{
	if (!l->error)
		l->error = rc;
}

struct forward {
	struct wpt_locator *l;
	struct wpt_source *source;
	uint64_t start;             /* of the link that the walk is in */
	bool in_link;
	bool end_is_trailer;
	struct wpt_fmt_head head;   /* of that link, if it is good */
	bool has_head;
	uint8_t chain_id[16];       /* of the file's first link */
	uint64_t good_end;          /* of the last frame that was good */
};

/* The link whose trailer frame `f` is. */
static int forward_trailer(struct forward *w, const struct wpt_frame *f)
{
	struct wpt_link_place link;
	int rc = f->bad ? -WPT_E_DAMAGED : wpt_link_probe(w->source, f->offset + f->len, &link);

	w->in_link = false;
	if (rc == -WPT_E_NOT_SNAPSHOT)
		rc = -WPT_E_DAMAGED;
	if (rc && rc != -WPT_E_DAMAGED && rc != -WPT_E_FEATURE)
		return rc;
	w->l->tail_damaged = rc != 0;
	if (rc) {
		note_error(w->l, rc);
		return 0;
	}
	if (link.start != w->start)
		note_error(w->l, -WPT_E_DAMAGED);
	w->l->end_offset = link.end;
	return place_add(w->l, &link, wpt_pool_name(w->source));
}

static int forward_frame(struct forward *w, const struct wpt_frame *f)
{
	/* A link is begun behind a whole one: the trailer that was there is not to be known as one. */
	if (w->in_link && !f->bad && f->kind == WPT_FMT_FRAME_BLOCK && f->tag == WPT_FMT_HEAD) {
		w->in_link = false;
		w->l->tail_damaged = true;
		note_error(w->l, -WPT_E_DAMAGED);
	}
	if (!w->in_link) {
		w->in_link = true;
		w->start = f->offset;
		w->has_head = !wpt_link_head(w->source, f->offset, &w->head);
	}
	if (!f->bad)
		w->good_end = f->offset + f->len;
	if (f->kind == WPT_FMT_FRAME_BLOCK && f->tag == WPT_FMT_TRAILER && f->len == WPT_FMT_TRAILER_SIZE)
		return forward_trailer(w, f);
	return 0;
}

/*
 * Whether behind the last good frame there is the link's whole trailer with a few bits wrong, and not a torn frame. The ids in it are
 * random: nothing else has them there.
 */
static bool is_spoiled_trailer(const struct forward *w)
{
	uint8_t buf[WPT_FMT_TRAILER_SIZE];
	unsigned int i, differ = 0;

	if (!w->in_link || !w->has_head || w->source->size - w->good_end < sizeof(buf))
		return false;
	if (w->source->read(w->source, w->good_end, buf, sizeof(buf)))
		return false;
	for (i = 0; i < 16; i++) {
		differ += buf[16 + i] != w->head.identity.chain_id[i];
		differ += buf[32 + i] != w->head.identity.link_id[i];
	}
	return differ <= 2;
}

/*
 * Whether `bytes`, which lie at `at`, are the trailer of a link behind the last good one. Page data may hold links that are older, and trailers of
 * this chain at other places than their own.
 */
static bool is_later_trailer(const struct forward *w, const uint8_t *bytes, uint64_t at)
{
	const struct wpt_place *last = w->l->nr ? &w->l->places[w->l->nr - 1] : NULL;
	struct wpt_link_place link;
	struct wpt_fmt_trailer t;

	if (wpt_fmt_trailer_decode(bytes, WPT_FMT_TRAILER_SIZE, &t) || t.offset > at - w->l->end_offset)
		return false;
	if (memcmp(t.chain_id, last ? last->link.head.identity.chain_id : w->chain_id, 16) || (last && t.sequence <= sequence_of(last)))
		return false;
	return at - t.offset == w->l->end_offset || !wpt_link_probe(w->source, at + WPT_FMT_TRAILER_SIZE, &link);
}

/* Whether a whole link was written behind the last good one: then that one is not the last, nor is what is behind it to be cut off. */
static int find_later_trailer(const struct forward *w, bool *found)
{
	uint64_t at = w->l->end_offset, end = w->source->size;
	uint8_t *buf = malloc(SEARCH_BYTES), *p, any[WPT_FMT_TRAILER_SIZE];
	const struct wpt_fmt_trailer none = { 0 };
	size_t len, i;
	int rc = 0;

	if (!buf)
		return -ENOMEM;
	wpt_fmt_trailer_encode(&none, any);
	for (; !rc && !*found && end - at >= WPT_FMT_TRAILER_SIZE; at += len - WPT_FMT_TRAILER_SIZE + 1) {
		len = (size_t)WPT_MIN(end - at, (uint64_t)SEARCH_BYTES);
		rc = w->source->read(w->source, at, buf, len);
		for (i = 0; !rc && !*found && (p = memmem(buf + i, len - i, any, FRAME_HEAD)); i++) {
			i = (size_t)(p - buf);
			if (len - i < WPT_FMT_TRAILER_SIZE)
				break;
			*found = is_later_trailer(w, p, at + i);
		}
	}
	free(buf);
	return rc;
}

/* How the walk ended: -WPT_E_DAMAGED and the like from wpt_frames_next(), 0 at the end of the file. */
static int forward_end(struct forward *w, int ended, int kind)
{
	bool damaged = is_spoiled_trailer(w);
	int rc = 0;

	/* With a good trailer at the very end, torn page data may have forged it, but a torn block can't have. */
	if (w->end_is_trailer && !(ended == -WPT_E_TRUNCATED && kind == WPT_FMT_FRAME_DATA))
		damaged = ended != 0;
	if (!damaged)
		rc = find_later_trailer(w, &damaged);
	if (!damaged)
		return rc;
	w->l->tail_damaged = true;
	note_error(w->l, -WPT_E_DAMAGED);
	return 0;
}

static int walk_forward(struct wpt_locator *l, struct wpt_source *source, bool end_is_trailer)
{
	struct forward w = { .l = l, .source = source, .end_is_trailer = end_is_trailer };
	struct wpt_frame f = { 0 };
	struct wpt_frames frames;
	int rc, end_rc, kind;

	l->nr = 0;
	l->end_offset = 0;
	rc = wpt_link_head(source, 0, &w.head);
	if (rc)
		return rc;
	memcpy(w.chain_id, w.head.identity.chain_id, sizeof(w.chain_id));
	rc = wpt_frames_open(&frames, source, 0, source->size);
	if (rc)
		return rc;
	while ((rc = wpt_frames_next(&frames, &f)) > 0) {
		rc = forward_frame(&w, &f);
		if (rc)
			break;
	}
	kind = f.kind;
	wpt_frames_close(&frames);
	if (rc && rc != -WPT_E_DAMAGED && rc != -WPT_E_TRUNCATED)
		return rc;
	end_rc = forward_end(&w, rc, kind);
	if (end_rc || l->nr)
		return end_rc;
	return l->error ? l->error : rc ? rc : -WPT_E_TRUNCATED;
}

static void reverse(struct wpt_locator *l)
{
	struct wpt_place t;
	uint32_t i, j;

	for (i = 0, j = l->nr; i + 1 < j; i++) {
		t = l->places[i];
		l->places[i] = l->places[--j];
		l->places[j] = t;
	}
}

/* All links of a source, in its order. */
static int find_in_source(struct wpt_locator *l, struct wpt_source *source)
{
	struct wpt_link_place link;
	uint64_t end = source->size;
	bool any = false;
	int rc;

	l->size = l->end_offset = end;
	while (!(rc = wpt_link_probe(source, end, &link))) {
		any = true;
		rc = place_add(l, &link, wpt_pool_name(source));
		if (rc)
			return rc;
		end = link.start;
		if (!end) {
			reverse(l);
			return 0;
		}
	}
	if (rc == -WPT_E_NOT_SNAPSHOT || rc == -WPT_E_DAMAGED)
		return walk_forward(l, source, any || rc == -WPT_E_DAMAGED);
	return rc;
}

/* A file of a folder. That it is damaged matters only if it is needed, so it is noted. */
static int find_in_entry(struct wpt_locator *l, const char *name)
{
	struct wpt_link_place link;
	struct wpt_source *source;
	uint64_t sequence;
	int rc = wpt_pool_file(l->pool, name, &source);

	if (!rc)
		rc = wpt_link_probe(source, source->size, &link);
	/* A file that bears a link's name was complete once. */
	if (rc == -WPT_E_NOT_SNAPSHOT)
		rc = wpt_link_head(source, 0, &link.head) == 0 ? -WPT_E_TRUNCATED : -WPT_E_DAMAGED;
	if (!rc && link.start != 0)
		rc = -WPT_E_DAMAGED;
	if (!rc)
		return place_add(l, &link, wpt_pool_name(source));
	/* Pruned since the folder was listed. */
	if (rc == -ENOENT)
		return 0;
	if (rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE)
		return rc;
	sequence = strtoull(name, NULL, 10);
	if (!l->error || sequence > l->error_sequence)
		l->error_sequence = sequence;
	note_error(l, rc);
	return 0;
}

/* A file by another name, of any number of links, which may be what was looked for. What is no snapshot is not. */
static int find_in_other(struct wpt_locator *l, const char *name)
{
	struct wpt_locator one = { .pool = l->pool };
	struct wpt_source *source;
	uint32_t i;
	int rc = wpt_pool_file(l->pool, name, &source);

	if (!rc)
		rc = find_in_source(&one, source);
	for (i = 0; !rc && i < one.nr; i++)
		rc = place_add(l, &one.places[i].link, one.places[i].name);
	free(one.places);
	if (!l->other_error && (one.error || (rc && rc != -WPT_E_NOT_SNAPSHOT && rc != -ENOENT)))
		l->other_error = one.error ? one.error : rc;
	return rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE ? rc : 0;
}

/* The sum of it over a folder's files is the same as long as none comes, goes, or takes the name of another. */
static uint64_t entry_stamp(const struct dirent *entry)
{
	uint64_t hash = (uint64_t)entry->d_ino * 0x9E3779B97F4A7C15u + 1;
	const char *p;

	for (p = entry->d_name; *p; p++)
		hash = (hash ^ (unsigned char)*p) * 0x100000001B3u;
	return hash ^ hash >> 29;
}

static int find_in_folder(struct wpt_locator *l, bool (*wanted)(const char *name), int (*find)(struct wpt_locator *l, const char *name),
			  const char *except)
{
	struct dirent *entry;
	DIR *dir;
	int fd = openat(wpt_pool_dir(l->pool), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;

	dir = fd >= 0 ? fdopendir(fd) : NULL;
	if (!dir) {
		rc = -errno;
		if (fd >= 0)
			close(fd);
		return rc;
	}
	while (!rc) {
		errno = 0;
		entry = readdir(dir);
		if (!entry) {
			/* A link that could not be listed would be taken for one that is not there. */
			rc = -errno;
			break;
		}
		if (!wanted(entry->d_name))
			continue;
		l->stamp += entry_stamp(entry);
		if (find && (!except || strcmp(entry->d_name, except) != 0))
			rc = find(l, entry->d_name);
	}
	closedir(dir);
	return rc;
}

/* ---- parents ---- */

static int compare_ids(const void *a, const void *b, void *places)
{
	const struct wpt_place *p = places;
	int rc = memcmp(id_of(&p[*(const uint32_t *)a]), id_of(&p[*(const uint32_t *)b]), 16);

	return rc ? rc : (*(const uint32_t *)a > *(const uint32_t *)b) - (*(const uint32_t *)a < *(const uint32_t *)b);
}

static int sort_ids(struct wpt_locator *l)
{
	uint32_t *by_id, i;

	if (l->nr_sorted == l->nr)
		return 0;
	by_id = realloc(l->by_id, l->nr * sizeof(*by_id));
	if (!by_id)
		return -ENOMEM;
	l->by_id = by_id;
	for (i = 0; i < l->nr; i++)
		by_id[i] = i;
	qsort_r(by_id, l->nr, sizeof(*by_id), compare_ids, l->places);
	l->nr_sorted = l->nr;
	return 0;
}

uint32_t wpt_locate_id(const struct wpt_locator *l, const uint8_t id[16])
{
	uint32_t low = 0, high = l->nr_sorted, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (memcmp(id_of(&l->places[l->by_id[middle]]), id, 16) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The link that `child` was made from, or one that stands in for it; the ids are sorted. Of several the full one: its chain is shorter. */
static const struct wpt_place *parent_of(const struct wpt_locator *l, const struct wpt_place *child)
{
	const struct wpt_identity *id = &child->link.head.identity;
	const struct wpt_place *found = NULL, *p;
	uint32_t low = wpt_locate_id(l, id->parent_id);

	for (; low < l->nr_sorted && !memcmp(id_of(&l->places[l->by_id[low]]), id->parent_id, 16); low++) {
		p = &l->places[l->by_id[low]];
		if (same_chain(p, child) && !memcmp(p->link.trailer.digest, id->parent_digest, 16) &&
		    sequence_of(p) + 1 == sequence_of(child) && (!found || (is_full(p) && !is_full(found))))
			found = p;
	}
	return found;
}

const struct wpt_place *wpt_locate_parent(const struct wpt_locator *l, const struct wpt_place *child)
{
	return sequence_of(child) ? parent_of(l, child) : NULL;
}

/* Whether every link to choose from has what it needs. */
static int all_have_parents(struct wpt_locator *l, bool *all)
{
	uint32_t i;
	int rc = sort_ids(l);

	*all = true;
	for (i = 0; !rc && *all && i < l->nr; i++)
		*all = is_full(&l->places[i]) || parent_of(l, &l->places[i]);
	return rc;
}

/* ---- what CHAIN names ---- */

int wpt_locate_others(struct wpt_locator *l)
{
	if (l->others)
		return 0;
	l->others = true;
	return find_in_folder(l, is_other_name, find_in_other, NULL);
}

static int list_folder(struct wpt_locator *l)
{
	int fd = open(l->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc;
	bool all;

	if (fd < 0)
		return -errno;
	rc = wpt_pool_open(&l->pool, fd);
	if (!rc)
		rc = find_in_folder(l, is_link_name, find_in_entry, NULL);
	l->folder = true;
	l->nr_own = l->nr;
	if (!rc)
		rc = all_have_parents(l, &all);
	return rc || all ? rc : wpt_locate_others(l);
}

/* What was found is forgotten, but not what to look for. */
static void unlist(struct wpt_locator *l)
{
	wpt_pool_close(l->pool);
	l->pool = NULL;
	l->nr = l->nr_own = l->nr_sorted = 0;
	l->others = false;
	l->error = l->other_error = 0;
	l->error_sequence = l->stamp = 0;
}

/*
 * While a folder is listed, a link may become full in the place of its file and those before it go away: then the one was seen as it was and the
 * others are missing, or, where the file system lists the new file as one that came later, the one is missing. So a list is good if the next is
 * the same. After some tries it will do, since links may come faster than they are listed.
 */
static int locate_folder(struct wpt_locator *l)
{
	uint64_t stamp;
	int tries, rc;

	for (tries = 0; tries < LIST_TRIES; tries++) {
		unlist(l);
		rc = list_folder(l);
		if (rc)
			return rc;
		stamp = l->stamp;
		l->stamp = 0;
		rc = find_in_folder(l, is_link_name, NULL, NULL);
		if (!rc && l->others)
			rc = find_in_folder(l, is_other_name, NULL, NULL);
		if (rc || l->stamp == stamp)
			return rc;
	}
	return 0;
}

static int locate_file(struct wpt_locator *l)
{
	const char *slash = strrchr(l->path, '/'), *name = slash ? slash + 1 : l->path;
	struct wpt_source *source;
	bool all;
	char *dir;
	int fd, rc;

	dir = slash ? strndup(l->path, slash == l->path ? 1 : (size_t)(slash - l->path)) : strdup(".");
	if (!dir)
		return -ENOMEM;
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	free(dir);
	if (fd < 0)
		return -errno;
	rc = wpt_pool_open(&l->pool, fd);
	if (!rc)
		rc = wpt_pool_file(l->pool, name, &source);
	if (!rc)
		rc = find_in_source(l, source);
	l->nr_own = l->nr;
	l->file_error = l->error;
	if (!rc)
		rc = all_have_parents(l, &all);
	if (rc || all)
		return rc;
	/* Links whose parents are not in the file find them beside it. */
	rc = find_in_folder(l, is_link_name, find_in_entry, name);
	if (!rc)
		rc = all_have_parents(l, &all);
	return rc || all ? rc : find_in_folder(l, is_other_name, find_in_other, name);
}

int wpt_locate(struct wpt_locator *l, const char *chain)
{
	struct stat st;
	int rc = split_suffix(l, chain);

	if (rc)
		return rc;
	if (stat(l->path, &st) != 0)
		return -errno;
	if (S_ISDIR(st.st_mode))
		return locate_folder(l);
	return S_ISREG(st.st_mode) ? locate_file(l) : -WPT_E_NOT_SNAPSHOT;
}

int wpt_locate_folder(const char *chain)
{
	struct wpt_locator l = { 0 };
	int rc = split_suffix(&l, chain);
	int fd = rc ? -1 : open(l.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (!rc)
		rc = fd < 0 ? -errno : fd;
	wpt_locate_close(&l);
	return rc;
}

int wpt_locate_at(struct wpt_locator *l, int dir_fd, const char *name)
{
	struct wpt_source *source;
	int fd = fcntl(dir_fd, F_DUPFD_CLOEXEC, 3), rc;

	if (fd < 0)
		return -errno;
	rc = wpt_pool_open(&l->pool, fd);
	if (!rc)
		rc = wpt_pool_file(l->pool, name, &source);
	if (!rc)
		rc = find_in_source(l, source);
	l->nr_own = l->nr;
	l->file_error = l->error;
	return rc;
}

int wpt_locate_memory(struct wpt_locator *l, const void *data, size_t len)
{
	struct wpt_source *source;
	int rc = wpt_pool_open(&l->pool, -1);

	if (!rc)
		rc = wpt_pool_memory(l->pool, data, len, &source);
	if (!rc)
		rc = find_in_source(l, source);
	l->nr_own = l->nr;
	l->file_error = l->error;
	return rc;
}

void wpt_locate_close(struct wpt_locator *l)
{
	wpt_pool_close(l->pool);
	free(l->places);
	free(l->by_id);
	free(l->path);
	memset(l, 0, sizeof(*l));
}

/* ---- choosing ---- */

/* Whether all links down to a full one are there. */
static bool is_complete(const struct wpt_locator *l, const struct wpt_place *p)
{
	/* Sequence numbers fall by one from child to parent, so this ends. */
	while (p && !is_full(p))
		p = parent_of(l, p);
	return p;
}

static int place_time(struct wpt_cache *cache, const struct wpt_place *p, uint64_t *time_ns)
{
	struct wpt_reader *r;
	int rc = wpt_reader_open(&r, &p->link, cache, UINT64_MAX);

	if (rc)
		return rc;
	*time_ns = wpt_reader_info(r)->time_ns;
	wpt_reader_close(r);
	return 0;
}

/* A link of the folder's newest chain, which is the one of the link with the latest time. */
static int newest_chain(struct wpt_locator *l, struct wpt_cache *cache, const struct wpt_place **out)
{
	const struct wpt_place *best = NULL;
	uint64_t best_time = 0, time;
	bool several = false;
	uint32_t i;
	int rc;

	for (i = 1; i < l->nr_own; i++)
		several |= !same_chain(&l->places[0], &l->places[i]);
	for (i = 0; i < l->nr_own; i++) {
		rc = several ? place_time(cache, &l->places[i], &time) : 0;
		if (rc == -ENOMEM)
			return rc;
		if (rc) {
			note_error(l, rc);
			l->error_sequence = WPT_MAX(l->error_sequence, sequence_of(&l->places[i]));
			continue;
		}
		if (!best || (several && time > best_time)) {
			best = &l->places[i];
			best_time = several ? time : 0;
		}
	}
	*out = best;
	return best ? 0 : l->error ? l->error : -ENOENT;
}

/* Another candidate for the same place in a chain: which of the two, or neither. The same link twice: the full one will do. */
static int prefer(const struct wpt_place **found, const struct wpt_place *p)
{
	if (!*found || (!memcmp(id_of(*found), id_of(p), 16) && is_full(p)))
		*found = p;
	return memcmp(id_of(*found), id_of(p), 16) ? -WPT_E_AMBIGUOUS : 0;
}

/* The link with the highest sequence number; of several the one whose chain is complete. An older one is not what was asked for. */
static int highest(const struct wpt_locator *l, const struct wpt_place *of, const struct wpt_place **out)
{
	const struct wpt_place *found = NULL, *p;
	bool found_complete = false, complete;
	uint32_t i;
	int rc = 0;

	for (i = 0; i < l->nr_own; i++)
		if (same_chain(&l->places[i], of) && sequence_of(&l->places[i]) > sequence_of(of))
			of = &l->places[i];
	for (i = 0; i < l->nr_own; i++) {
		p = &l->places[i];
		if (!same_chain(p, of) || sequence_of(p) != sequence_of(of))
			continue;
		complete = is_complete(l, p);
		if (!found || (complete && !found_complete)) {
			found = p;
			found_complete = complete;
			rc = 0;
		} else if (complete == found_complete && prefer(&found, p)) {
			rc = -WPT_E_AMBIGUOUS;
		}
	}
	*out = found;
	return rc;
}

/* Of a folder the highest of the newest chain, of a file the one at its end. */
static int choose_last(struct wpt_locator *l, struct wpt_cache *cache, const struct wpt_place **out)
{
	const struct wpt_place *of;
	int rc;

	if (!l->folder) {
		if (!l->nr_own)
			return l->error ? l->error : -WPT_E_TRUNCATED;
		*out = &l->places[l->nr_own - 1];
		return l->tail_damaged ? l->error : 0;
	}
	rc = newest_chain(l, cache, &of);
	if (rc)
		return rc;
	rc = highest(l, of, out);
	/* The damaged file may be the newest. */
	return !rc && l->error && l->error_sequence >= sequence_of(*out) ? l->error : rc;
}

/* The one link with a sequence number in the chain that `of` is of: among those to choose from, else among the parents of `of`. */
static int choose_sequence(const struct wpt_locator *l, const struct wpt_place *of, uint64_t sequence, const struct wpt_place **out)
{
	const struct wpt_place *found = NULL, *p;
	uint32_t i;
	int rc = 0;

	for (i = 0; i < l->nr_own && !rc; i++) {
		p = &l->places[i];
		if (same_chain(p, of) && sequence_of(p) == sequence)
			rc = prefer(&found, p);
	}
	for (p = of; !found && p && sequence_of(p) >= sequence; p = is_full(p) ? NULL : parent_of(l, p))
		if (sequence_of(p) == sequence)
			found = p;
	*out = found;
	return rc ? rc : found ? 0 : -ENOENT;
}

static bool has_prefix(const uint8_t id[16], const char *prefix)
{
	static const char digits[] = "0123456789abcdef";
	unsigned int i;

	for (i = 0; prefix[i]; i++)
		if (tolower((unsigned char)prefix[i]) != digits[id[i / 2] >> (i % 2 ? 0 : 4) & 15])
			return false;
	return true;
}

static int choose_id(const struct wpt_locator *l, const char *prefix, const struct wpt_place **out)
{
	const struct wpt_place *found = NULL;
	size_t len = strlen(prefix);
	uint32_t i, nr;
	int rc = 0;

	if (!len || len > 32)
		return -EINVAL;
	/* Those beside the file only if the file has none. */
	for (nr = l->nr_own; !found; nr = l->nr) {
		for (i = 0; i < nr && !rc; i++)
			if (has_prefix(id_of(&l->places[i]), prefix))
				rc = prefer(&found, &l->places[i]);
		if (nr == l->nr)
			break;
	}
	*out = found;
	return rc ? rc : found ? 0 : -ENOENT;
}

static int parse_number(const char *s, uint64_t *n)
{
	char *end;

	if (!isdigit((unsigned char)*s))
		return -EINVAL;
	errno = 0;
	*n = strtoull(s, &end, 10);
	return *end || errno ? -EINVAL : 0;
}

/* Whether the chain of `of` begins later than with this number, with a link that is full. */
static bool is_pruned(const struct wpt_locator *l, const struct wpt_place *of, uint64_t sequence)
{
	bool later = false;
	uint32_t i;

	for (i = 0; i < l->nr; i++) {
		if (!is_full(&l->places[i]) || !same_chain(&l->places[i], of))
			continue;
		if (sequence_of(&l->places[i]) <= sequence)
			return false;
		later = true;
	}
	return later;
}

/* The link that the suffix names. "@-N" counts in sequence numbers from the last. */
static int choose(struct wpt_locator *l, struct wpt_cache *cache, const struct wpt_place **out)
{
	const char *s = l->suffix;
	const struct wpt_place *last;
	uint64_t n = 0;
	int rc;

	if (!s)
		return choose_last(l, cache, out);
	if (!strncmp(s, "id:", 3))
		return choose_id(l, s + 3, out);
	rc = parse_number(s + (*s == '-'), &n);
	if (rc || (*s == '-' && !n))
		return -EINVAL;
	if (*s != '-' && l->folder) {
		rc = newest_chain(l, cache, &last);
	} else {
		/* A number is absolute: what may be behind the last good link does not matter to it. */
		rc = choose_last(l, cache, &last);
		if (*s != '-' && l->nr_own && l->tail_damaged)
			rc = 0;
	}
	if (rc)
		return rc;
	if (*s == '-') {
		if (n - 1 > sequence_of(last))
			return -ENOENT;
		if (n == 1) {
			*out = last;
			return 0;
		}
		n = sequence_of(last) - (n - 1);
	}
	rc = choose_sequence(l, last, n, out);
	/* It may be the file that could not be read. */
	if (rc == -ENOENT && l->error)
		return l->error;
	return rc == -ENOENT && is_pruned(l, last, n) ? -WPT_E_PRUNED : rc;
}

int wpt_locate_chain(struct wpt_locator *l, struct wpt_cache *cache, const struct wpt_place ***out, uint32_t *nr)
{
	const struct wpt_place *tip, *p, **order;
	uint32_t n = 0, i;
	int rc = sort_ids(l);

	if (!rc)
		rc = choose(l, cache, &tip);
	if (rc)
		return rc;
	for (p = tip; p && !is_full(p); p = parent_of(l, p))
		n++;
	if (!p)
		return l->error ? l->error : is_pruned(l, tip, sequence_of(tip)) ? -WPT_E_PRUNED : -WPT_E_CHAIN;
	n++;
	order = calloc(n, sizeof(*order));
	if (!order)
		return -ENOMEM;
	for (p = tip, i = n; i--; p = i ? parent_of(l, p) : NULL)
		order[i] = p;
	*out = order;
	*nr = n;
	return 0;
}
