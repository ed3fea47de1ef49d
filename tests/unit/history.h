/* SPDX-License-Identifier: MIT */
/* Folders of links, each made with a copy of what it shows. */
#ifndef WPT_TESTS_HISTORY_H
#define WPT_TESTS_HISTORY_H

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "chain.h"
#include "sample.h"

#define MAX_LINKS 600u

/* One target and the links that were made of it, each with what it shows. */
struct history {
	struct sample s;
	struct made {
		uint8_t *bytes;
		size_t len;
		struct wpt_identity identity;
		struct wpt_layer_result result;
		struct sample_page *shows;
	} links[MAX_LINKS];
	uint32_t nr;
};

static char dir[64];

static inline void history_open(struct history *h, uint64_t seed)
{
	memset(h, 0, sizeof(*h));
	assert_int_equal(sample_open(&h->s, seed, 5), 0);
}

static inline void history_close(struct history *h)
{
	uint32_t i;

	for (i = 0; i < h->nr; i++) {
		free(h->links[i].bytes);
		free(h->links[i].shows);
	}
	sample_close(&h->s);
	free(h);
}

/* The next link; `full`: one that needs no parent, as a chain may have in its midst. */
static inline void history_add(struct history *h, bool full)
{
	struct made *m = &h->links[h->nr++];

	sample_write(&h->s, h->nr == 1 ? 60 : 3);
	h->s.params.full |= full;
	m->identity = h->s.params.identity;
	assert_int_equal(sample_append(&h->s, &m->bytes, &m->len), 0);
	m->result = h->s.result;
	m->shows = malloc(sizeof(h->s.tip));
	assert_non_null(m->shows);
	memcpy(m->shows, h->s.tip, sizeof(h->s.tip));
}

static inline struct history *history(uint64_t seed, uint32_t nr)
{
	struct history *h = malloc(sizeof(*h));

	assert_non_null(h);
	history_open(h, seed);
	while (nr--)
		history_add(h, false);
	return h;
}

static inline const char *in_dir(const char *name)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static inline void hex_of(const struct made *m, char id[33])
{
	int i;

	for (i = 0; i < 16; i++)
		snprintf(id + 2 * i, 3, "%02x", m->identity.link_id[i]);
}

static inline const char *name_of(const struct made *m)
{
	static char name[80];
	char id[33];

	hex_of(m, id);
	snprintf(name, sizeof(name), "%010u-%s.wps", (unsigned int)m->identity.sequence, id);
	return name;
}

static inline void put(const char *name, const void *bytes, size_t len)
{
	FILE *f = fopen(in_dir(name), "a");

	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}

static inline void put_link(const char *name, const struct made *m)
{
	put(name ? name : name_of(m), m->bytes, m->len);
}

static inline void put_all(const struct history *h)
{
	uint32_t i;

	for (i = 0; i < h->nr; i++)
		put_link(NULL, &h->links[i]);
}

static inline int setup(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/wptrack-locate-XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static inline int teardown(void **state)
{
	char command[128];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command);
}

static inline void assert_opens(const char *path, const struct made *m)
{
	struct wpt_chain *c = NULL;
	char what[128] = "";
	struct wpt_identity identity;
	struct wpt_origin origin;
	uint8_t digest[16], key[32];
	int rc = wpt_chain_open(&c, path);

	if (rc)
		fail_msg("%s: %d", path, rc);
	wpt_chain_tip(c, &identity, digest, &origin, key);
	assert_memory_equal(identity.link_id, m->identity.link_id, 16);
	assert_int_equal(sample_check(c, m->shows, what), 0);
	assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
	wpt_chain_close(c);
}

static inline void assert_error(const char *path, int want)
{
	struct wpt_chain *c = NULL;
	int rc = wpt_chain_open(&c, path);

	if (rc != want)
		fail_msg("%s: %d, not %d", path, rc, want);
	assert_null(c);
}

static inline const char *suffixed(const char *format, ...)
{
	static char path[PATH_MAX];
	va_list ap;
	int n = snprintf(path, sizeof(path), "%s", dir);

	va_start(ap, format);
	vsnprintf(path + n, sizeof(path) - (size_t)n, format, ap);
	va_end(ap);
	return path;
}

#endif
