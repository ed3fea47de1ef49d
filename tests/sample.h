/* SPDX-License-Identifier: MIT */
/*
 * A small target that is only a table: pages whose contents and states are known, links made of them by the layer writer, and a check that
 * a chain says of every page what the table says. All that goes into a link comes from a seed, so the same seed makes the same bytes.
 */
#ifndef WPT_TESTS_SAMPLE_H
#define WPT_TESTS_SAMPLE_H

#include <stdio.h>
#include <stdlib.h>

#include "layer.h"
#include "store.h"

enum sample_state {
	SAMPLE_ZERO = 0,
	SAMPLE_DATA = 1,
	SAMPLE_UNREADABLE = 2,
	SAMPLE_GUARD = 3,
	SAMPLE_TORN = 4
};

struct sample_page {
	enum sample_state state;
	uint8_t data[WPT_PAGE];
};

#define SAMPLE_PAGES 40u
#define SAMPLE_RANGES 4u

/* The third touches the second and has the same name; pages between ranges are never said anything of. */
static const struct wpt_layer_range sample_ranges[SAMPLE_RANGES] = {
	{ 0x10000, 0x10000 + 16 * 4096, WPT_KIND_ANON, WPT_REASON_NONE, "[heap]" },
	{ 0x7f1234560000, 0x7f1234560000 + 8 * 4096, WPT_KIND_SHMEM, WPT_REASON_NONE, "/dev/shm/guest.ram" },
	{ 0x7f1234568000, 0x7f1234568000 + 8 * 4096, WPT_KIND_SHMEM, WPT_REASON_OTHER_WRITER, "/dev/shm/guest.ram" },
	{ 0x00fffffffff00000, 0x00fffffffff00000 + 8 * 4096, WPT_KIND_ANON, WPT_REASON_NONE, "" },
};

#define SAMPLE_MAPPINGS "10000-20000 rw-p 00000000 00:00 0 [heap]\n7f1234560000-7f1234570000 rw-s 00000000 00:01 7 /dev/shm/guest.ram\n"
#define SAMPLE_TAGS "name=sample\0purpose=test\0"
#define SAMPLE_DEVICE_BYTES 300u

struct sample {
	struct sample_page now[SAMPLE_PAGES]; /* the target */
	struct sample_page tip[SAMPLE_PAGES]; /* what the last link that was committed shows */
	bool dirty[SAMPLE_PAGES];
	struct wpt_ledger *ledger;
	struct wpt_layer_params params;       /* of the next link */
	struct wpt_layer_result result;       /* of the last */
	uint64_t random;
	uint32_t noise;                       /* one page in so many has contents that can't be compressed, 0: none */
	uint8_t device[SAMPLE_DEVICE_BYTES];  /* section of the last link */
};

static inline uint64_t sample_random(struct sample *s)
{
	s->random ^= s->random << 13;
	s->random ^= s->random >> 7;
	s->random ^= s->random << 17;
	return s->random * 0x2545F4914F6CDD1Dull;
}

static inline uint64_t sample_addr(uint32_t page)
{
	for (uint32_t i = 0; i < SAMPLE_RANGES; i++) {
		uint32_t nr = (uint32_t)((sample_ranges[i].end - sample_ranges[i].start) / WPT_PAGE);

		if (page < nr)
			return sample_ranges[i].start + (uint64_t)page * WPT_PAGE;
		page -= nr;
	}
	return 0;
}

static inline int sample_open(struct sample *s, uint64_t seed, uint32_t noise)
{
	memset(s, 0, sizeof(*s));
	s->random = seed * 0x9E3779B97F4A7C15ull + 1;
	s->noise = noise;
	for (int i = 0; i < 16; i++) {
		s->params.identity.chain_id[i] = (uint8_t)sample_random(s);
		s->params.identity.link_id[i] = (uint8_t)sample_random(s);
	}
	for (int i = 0; i < 32; i++)
		s->params.key[i] = (uint8_t)sample_random(s);
	strcpy(s->params.origin.boot_id, "b0b1b2b3-c0c1-d0d1-e0e1-f0f1f2f3f4f5");
	strcpy(s->params.origin.comm, "sample");
	s->params.origin.pid = 4242;
	s->params.origin.start_time = 123456;
	s->params.full = true;
	s->params.level = 1;
	s->params.nr_threads = 1;
	s->params.staging_bytes = 4 << 20;
	return wpt_ledger_open(&s->ledger);
}

static inline void sample_close(struct sample *s)
{
	wpt_ledger_close(s->ledger);
	s->ledger = NULL;
}

static inline void sample_fill(struct sample *s, uint8_t *data)
{
	uint64_t value = sample_random(s);

	memset(data, 0, WPT_PAGE);
	if (s->noise && sample_random(s) % s->noise == 0) {
		for (uint32_t i = 0; i < WPT_PAGE; i++)
			data[i] = (uint8_t)sample_random(s);
		return;
	}
	memset(data, (int)(value % 255 + 1), WPT_PAGE / 2);
	for (int i = 0; i < 8; i++)
		data[WPT_PAGE - 64 + i] = (uint8_t)(value >> 8 * i);
}

/* About `nr` pages get another content or state; some become like another page. */
static inline void sample_write(struct sample *s, uint32_t nr)
{
	static const enum sample_state states[] = { SAMPLE_DATA, SAMPLE_DATA, SAMPLE_DATA, SAMPLE_DATA, SAMPLE_ZERO,
						    SAMPLE_ZERO, SAMPLE_TORN, SAMPLE_UNREADABLE, SAMPLE_GUARD };

	while (nr--) {
		uint32_t i = (uint32_t)(sample_random(s) % SAMPLE_PAGES), like = (uint32_t)(sample_random(s) % SAMPLE_PAGES);
		struct sample_page *p = &s->now[i];

		for (int tries = 0; s->now[like].state != SAMPLE_DATA && tries < 8; tries++)
			like = (uint32_t)(sample_random(s) % SAMPLE_PAGES);
		s->dirty[i] = true;
		p->state = states[sample_random(s) % WPT_ARRAY_SIZE(states)];
		memset(p->data, 0, WPT_PAGE);
		if (p->state == SAMPLE_DATA && like != i && s->now[like].state == SAMPLE_DATA && sample_random(s) % 3 == 0)
			memcpy(p->data, s->now[like].data, WPT_PAGE);
		else if (p->state == SAMPLE_DATA || p->state == SAMPLE_TORN)
			sample_fill(s, p->data);
	}
}

static inline int sample_batch(struct sample *s, struct wpt_layer_writer *w)
{
	static const uint32_t kinds[] = { WPT_ITEM_ZERO, WPT_ITEM_DATA, WPT_ITEM_UNREADABLE, WPT_ITEM_GUARD, WPT_ITEM_TORN };
	struct wpt_batch *b;
	int rc = wpt_layer_batch_get(w, &b, true);

	for (uint32_t i = 0; !rc && i < SAMPLE_PAGES; i++) {
		const struct sample_page *p = &s->now[i];

		if (!s->dirty[i] && !s->params.full)
			continue;
		b->items[b->nr_items++] = (struct wpt_item){ sample_addr(i), 1, kinds[p->state] };
		if (p->state == SAMPLE_DATA || p->state == SAMPLE_TORN)
			memcpy(b->data + (size_t)b->nr_pages++ * WPT_PAGE, p->data, WPT_PAGE);
	}
	return rc ? rc : wpt_layer_batch_submit(w, b);
}

static inline int sample_sections(struct sample *s, struct wpt_layer_writer *w)
{
	int rc = 0;

	if (s->params.full) {
		rc = wpt_layer_ranges(w, sample_ranges, SAMPLE_RANGES);
		if (!rc)
			rc = wpt_layer_section(w, WPT_SECTION_MAPPINGS, SAMPLE_MAPPINGS, strlen(SAMPLE_MAPPINGS));
		if (!rc)
			rc = wpt_layer_section(w, WPT_SECTION_TAGS, SAMPLE_TAGS, sizeof(SAMPLE_TAGS) - 1);
	}
	memset(s->device, (int)s->params.identity.sequence + 1, sizeof(s->device));
	return rc ? rc : wpt_layer_section(w, WPT_SECTION_DEVICE, s->device, sizeof(s->device));
}

/* The next link, and commits the sink. After an error the table is as after a link that was lost: all that was dirty still is. */
static inline int sample_link(struct sample *s, struct wpt_sink *sink)
{
	struct wpt_layer_writer *w = NULL;
	struct wpt_identity *id = &s->params.identity;
	int rc;

	s->params.ledger = s->ledger;
	rc = wpt_layer_writer_open(&w, sink, &s->params);
	if (!rc)
		rc = sample_batch(s, w);
	if (!rc)
		rc = sample_sections(s, w);
	if (!rc)
		rc = wpt_layer_finish(w, 1700000000000000000ull + id->sequence, 1000 + id->sequence, &s->result);
	wpt_layer_writer_close(w);
	if (!rc)
		rc = sink->commit(sink);
	/* What a link that failed was called is not used again. */
	if (!rc)
		memcpy(id->parent_id, id->link_id, 16);
	for (int i = 0; i < 16; i++)
		id->link_id[i] = (uint8_t)sample_random(s);
	if (rc) {
		wpt_ledger_rollback(s->ledger);
		return rc;
	}
	wpt_ledger_commit(s->ledger);
	memcpy(id->parent_digest, s->result.digest, 16);
	memcpy(s->tip, s->now, sizeof(s->tip));
	memset(s->dirty, 0, sizeof(s->dirty));
	id->sequence++;
	s->params.full = false;
	return 0;
}

/* The next link at the end of *bytes, which is realloc()ed. */
static inline int sample_append(struct sample *s, uint8_t **bytes, size_t *len)
{
	struct wpt_sink *sink;
	const void *data;
	uint8_t *grown;
	size_t n;
	int rc = wpt_sink_memory(&sink, &data, &n);

	if (rc)
		return rc;
	rc = sample_link(s, sink);
	if (!rc) {
		grown = realloc(*bytes, *len + n);
		rc = grown ? 0 : -ENOMEM;
	}
	if (!rc) {
		memcpy(grown + *len, data, n);
		*bytes = grown;
		*len += n;
	}
	sink->close(sink);
	return rc;
}

/*
 * 0: the chain says of every page what `want` says. An error of the chain; 1: it says something else and no error, which is the one thing
 * that must not be; `what` is told.
 */
static inline int sample_check(struct wpt_chain *c, const struct sample_page *want, char what[128])
{
	uint8_t got[WPT_PAGE];

	for (uint32_t i = 0; i < SAMPLE_PAGES; i++) {
		bool unreadable = want[i].state == SAMPLE_UNREADABLE;
		int rc;

		memset(got, 0xa5, sizeof(got));
		rc = wpt_chain_read(c, sample_addr(i), got, sizeof(got));
		if (rc == -WPT_E_UNREADABLE && unreadable)
			continue;
		if (rc < 0 && rc != -WPT_E_UNREADABLE)
			return rc;
		if (rc || unreadable || memcmp(got, want[i].data, sizeof(got))) {
			snprintf(what, 128, "page %u, state %u: read gave %d and %s", i, want[i].state, rc,
				 memcmp(got, want[i].data, sizeof(got)) ? "other bytes" : "its bytes");
			return 1;
		}
	}
	return 0;
}

#endif
