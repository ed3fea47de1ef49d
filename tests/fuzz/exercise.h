/* SPDX-License-Identifier: MIT */
/*
 * Does with links in memory all that a reader can do, and tells whether each error was one that bad bytes may give. Nothing here knows what
 * the right bytes would be.
 */
#ifndef WPT_TESTS_EXERCISE_H
#define WPT_TESTS_EXERCISE_H

#include <stdio.h>
#include <stdlib.h>

#include "chain.h"
#include "format.h"

#define EXERCISE_BUFFER (64u << 10)

/* What bytes that are not a good snapshot may be answered with. */
static inline bool exercise_listed(int rc)
{
	return rc == -WPT_E_DAMAGED || rc == -WPT_E_TRUNCATED || rc == -WPT_E_NOT_SNAPSHOT || rc == -WPT_E_FEATURE || rc == -WPT_E_CHAIN;
}

struct exercise {
	int open, verify, read;   /* the first error of each kind of use, or 0 */
	int odd;                  /* an error that should not have been */
	const char *odd_where;
	uint32_t nr_links;
};

static inline void exercise_note(struct exercise *x, int *first, int rc, const char *where)
{
	if (rc >= 0)
		return;
	if (!*first)
		*first = rc;
	if (!exercise_listed(rc) && !x->odd) {
		x->odd = rc;
		x->odd_where = where;
	}
}

static inline void exercise_read(struct exercise *x, struct wpt_chain *c, uint64_t addr, size_t len)
{
	uint8_t *buf = malloc(len);
	int rc = buf ? wpt_chain_read(c, addr, buf, len) : 0;

	if (rc != -WPT_E_UNREADABLE)
		exercise_note(x, &x->read, rc, "read");
	free(buf);
}

static inline int exercise_walked(void *arg, uint64_t addr, uint64_t nr_pages, enum wpt_known known, const struct wpt_hash *hashes)
{
	uint32_t *left = arg;
	volatile uint8_t last = known == WPT_KNOWN_DATA ? hashes[nr_pages - 1].b[15] : 0;

	(void)addr;
	(void)last;
	return --*left == 0;
}

static inline void exercise_range(struct exercise *x, struct wpt_chain *c, const struct wpt_range_info *info)
{
	struct wpt_range_info found = { .size = sizeof(found) };
	uint64_t len = WPT_MIN(info->end - info->start, (uint64_t)EXERCISE_BUFFER);
	char spec[64];
	uint32_t left = 1000;
	int rc;

	snprintf(spec, sizeof(spec), "%llx-%llx", (unsigned long long)info->start, (unsigned long long)info->end);
	exercise_note(x, &x->read, wpt_chain_find(c, spec, &found), "find by address");
	rc = info->name[0] ? wpt_chain_find(c, info->name, &found) : 0;
	if (rc != -WPT_E_AMBIGUOUS && rc != -WPT_E_NOT_TRACKED && rc != -EINVAL)
		exercise_note(x, &x->read, rc, "find by name");
	exercise_read(x, c, info->start, (size_t)len);
	/* The end, from within a page. */
	exercise_read(x, c, info->end - 3000, 3000);
	exercise_note(x, &x->read, wpt_chain_walk(c, info->start, info->end, exercise_walked, &left), "walk");
}

static inline void exercise_sections(struct exercise *x, struct wpt_chain *c)
{
	static const uint32_t types[] = { 1, 2, 3, 4, 5, 6, WPT_FMT_SECTION_RANGES, WPT_SECTION_USER, 0, UINT32_MAX };
	void *data;
	size_t len;

	for (size_t i = 0; i < WPT_ARRAY_SIZE(types); i++) {
		int rc = wpt_chain_section(c, types[i], &data, &len);

		if (!rc) {
			if (len) {
				volatile uint8_t last = ((uint8_t *)data)[len - 1];

				(void)last;
			}
			free(data);
		}
		if (rc != -ENOENT)
			exercise_note(x, &x->read, rc, "section");
	}
}

static inline void exercise_links(struct exercise *x, struct wpt_chain *c)
{
	struct wpt_link_info link = { .size = sizeof(link) };
	uint32_t i;
	int rc = 0;

	for (i = 0; i < x->nr_links && !rc; i++)
		rc = wpt_chain_link(c, i, &link);
	exercise_note(x, &x->read, rc, "link");
	if (wpt_chain_link(c, x->nr_links, &link) != -ERANGE)
		exercise_note(x, &x->read, -ERANGE, "a link behind the last");
}

static inline void exercise(struct exercise *x, const uint8_t *bytes, size_t len)
{
	struct wpt_range_info range = { .size = sizeof(range) };
	struct wpt_chain_info info = { .size = sizeof(info) };
	struct wpt_chain *c;

	memset(x, 0, sizeof(*x));
	exercise_note(x, &x->open, wpt_chain_open_memory(&c, bytes, len), "open");
	if (x->open)
		return;
	exercise_note(x, &x->read, wpt_chain_info(c, &info), "info");
	x->nr_links = info.nr_links;
	exercise_links(x, c);
	for (uint32_t i = 0; i < info.nr_ranges && i < 16; i++) {
		exercise_note(x, &x->read, wpt_chain_range(c, i, &range), "range");
		if (range.start < range.end)
			exercise_range(x, c, &range);
	}
	exercise_read(x, c, 0x10000, EXERCISE_BUFFER);
	exercise_read(x, c, UINT64_MAX - 8192, 4096);
	exercise_sections(x, c);
	exercise_note(x, &x->verify, wpt_chain_verify(c, NULL, NULL), "verify");
	wpt_chain_close(c);
}

#endif
