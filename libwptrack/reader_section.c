/* SPDX-License-Identifier: MIT */
/* Sections of a link, read part by part. */
#include "reader_impl.h"

#include <stdlib.h>
#include <zstd.h>

/* The directory is read anew: a link has few sections and they are read once. */
static int directory_find(struct wpt_reader *r, bool by_type, uint32_t want, struct wpt_fmt_section *s)
{
	struct wpt_fmt_root root;
	uint32_t index = 0;
	uint8_t *bytes;
	int rc;

	if (!r->nr_sections)
		return -ENOENT;
	bytes = malloc(r->root.length);
	if (!bytes)
		return -ENOMEM;
	rc = wpt_reader_bytes(r, r->root.offset, bytes, r->root.length);
	if (!rc)
		rc = wpt_fmt_root_decode(bytes, r->root.length, &root) ? -WPT_E_DAMAGED : 0;
	while (!rc) {
		rc = wpt_fmt_root_section(&root, s);
		if (rc <= 0) {
			rc = rc ? rc : -ENOENT;
		} else if ((by_type ? s->type : index) == want) {
			rc = 0;
			break;
		} else {
			index++;
			rc = 0;
		}
	}
	free(bytes);
	return rc;
}

int wpt_reader_find_section(struct wpt_reader *r, uint32_t type, struct wpt_fmt_section *s)
{
	return directory_find(r, true, type, s);
}

int wpt_reader_section_at(struct wpt_reader *r, uint32_t index, struct wpt_fmt_section *s)
{
	return directory_find(r, false, index, s);
}

struct parts {
	struct wpt_reader *r;
	const struct wpt_fmt_section *s;
	uint64_t offset, end;   /* of the link */
	uint64_t taken;
	uint32_t index;
	bool last;
	uint8_t *block, *raw;   /* WPT_FMT_BLOCK_MAX, WPT_FMT_PART_MAX */
};

/* The next part's bytes. */
static int part_read(struct parts *p, const uint8_t **data, size_t *len)
{
	struct wpt_fmt_part part;
	size_t frame_len, got;
	ZSTD_DCtx *d;
	int rc;

	if (p->end - p->offset < WPT_FMT_BLOCK_OVERHEAD)
		return -WPT_E_DAMAGED;
	rc = wpt_reader_bytes(p->r, p->offset, p->block, 12);
	if (rc)
		return rc;
	if (wpt_fmt_frame(p->block, 12, &frame_len, NULL) != WPT_FMT_FRAME_BLOCK || frame_len > p->end - p->offset)
		return -WPT_E_DAMAGED;
	rc = wpt_reader_bytes(p->r, p->offset, p->block, frame_len);
	if (rc)
		return rc;
	if (wpt_fmt_part_decode(p->block, frame_len, &part) || part.type != p->s->type || part.index != p->index++ ||
	    part.raw_len > WPT_FMT_PART_MAX)
		return -WPT_E_DAMAGED;
	p->offset += frame_len;
	p->last = part.flags & WPT_FMT_PART_LAST;
	*data = part.data;
	*len = part.raw_len;
	if (!(part.flags & WPT_FMT_PART_ZSTD))
		return part.len == part.raw_len ? 0 : -WPT_E_DAMAGED;
	d = wpt_cache_dctx_get(p->r->cache);
	if (!d)
		return -ENOMEM;
	got = ZSTD_decompressDCtx(d, p->raw, WPT_FMT_PART_MAX, part.data, part.len);
	wpt_cache_dctx_put(p->r->cache, d);
	*data = p->raw;
	return got == part.raw_len ? 0 : -WPT_E_DAMAGED;
}

static int parts_take(struct parts *p, int (*take)(void *arg, const uint8_t *data, size_t len), void *arg)
{
	struct wpt_fmt_hash hash;
	const uint8_t *data;
	uint8_t digest[16];
	size_t len;
	int rc;

	wpt_fmt_hash_init(&hash);
	while (!p->last) {
		rc = part_read(p, &data, &len);
		if (rc)
			return rc;
		if (len > p->s->length - p->taken)
			return -WPT_E_DAMAGED;
		p->taken += len;
		wpt_fmt_hash_update(&hash, data, len);
		rc = take(arg, data, len);
		if (rc)
			return rc;
	}
	wpt_fmt_hash_final(&hash, digest);
	if (p->taken != p->s->length || p->offset != p->end || memcmp(digest, p->s->digest, 16))
		return -WPT_E_DAMAGED;
	return 0;
}

int wpt_reader_section(struct wpt_reader *r, const struct wpt_fmt_section *s, int (*take)(void *arg, const uint8_t *data, size_t len),
		       void *arg)
{
	struct parts p = { .r = r, .s = s, .offset = s->offset };
	int rc;

	if (wpt_add_overflows(s->offset, s->stored, &p.end))
		return -WPT_E_DAMAGED;
	p.block = malloc(WPT_FMT_BLOCK_MAX);
	p.raw = malloc(WPT_FMT_PART_MAX);
	rc = p.block && p.raw ? parts_take(&p, take, arg) : -ENOMEM;
	free(p.block);
	free(p.raw);
	return rc;
}
