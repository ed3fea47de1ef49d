/* SPDX-License-Identifier: MIT */
/*
 * The bytes of pages: frames unpacked, whole or from their beginning up to the last page that is asked for, and each page that is handed out
 * checked against its hash.
 *
 * Of a frame that is unpacked whole the compressed bytes are checked first, as the leaf's table has them. Of one that is not, what is behind the
 * pages is not even read, and their hashes are all that is checked.
 */
#define ZSTD_STATIC_LINKING_ONLY /* ZSTD_d_stableOutBuffer: pages are unpacked to where they stay; ZSTD_d_forceIgnoreChecksum */
#include "reader_impl.h"

#include <stdlib.h>
#include <zstd.h>

#define INPUT_STEP ((size_t)64 << 10)

/* ---- unpacking ---- */

static int unpack_whole(struct wpt_reader *r, const struct wpt_fmt_frame_info *f, ZSTD_DCtx *d, uint8_t *packed, uint8_t *pages)
{
	size_t want = (size_t)f->nr_pages * WPT_FMT_PAGE;
	int rc = wpt_reader_bytes(r, f->offset, packed, f->length);

	if (rc)
		return rc;
	if (wpt_fmt_checksum(packed, f->length) != f->checksum || ZSTD_getFrameContentSize(packed, f->length) != want)
		return -WPT_E_DAMAGED;
	return ZSTD_decompressDCtx(d, pages, want, packed, f->length) == want ? 0 : -WPT_E_DAMAGED;
}

/* The bytes that come next in `packed`: a step at a time, until the frame ends. */
static int feed(struct wpt_reader *r, const struct wpt_fmt_frame_info *f, uint8_t *packed, ZSTD_inBuffer *in)
{
	size_t n = WPT_MIN(INPUT_STEP, f->length - in->size);
	int rc;

	if (!n)
		return -WPT_E_DAMAGED;
	rc = wpt_reader_bytes(r, f->offset + in->size, packed + in->size, n);
	if (rc)
		return rc;
	if (!in->size && ZSTD_getFrameContentSize(packed, n) != (uint64_t)f->nr_pages * WPT_FMT_PAGE)
		return -WPT_E_DAMAGED;
	in->size += n;
	return 0;
}

/* At least nr_pages pages. `pages` has room for all of the frame's. */
static int unpack_part(struct wpt_reader *r, const struct wpt_fmt_frame_info *f, uint32_t nr_pages, ZSTD_DCtx *d, uint8_t *packed,
		       uint8_t *pages)
{
	ZSTD_outBuffer out = { pages, (size_t)f->nr_pages * WPT_FMT_PAGE, 0 };
	size_t want = (size_t)nr_pages * WPT_FMT_PAGE, ret;
	ZSTD_inBuffer in = { packed, 0, 0 };
	int rc;

	ret = ZSTD_DCtx_reset(d, ZSTD_reset_session_only);
	if (!ZSTD_isError(ret))
		ret = ZSTD_DCtx_setParameter(d, ZSTD_d_stableOutBuffer, 1);
	if (ZSTD_isError(ret))
		return -ENOMEM;
	while (out.pos < want) {
		if (in.pos == in.size) {
			rc = feed(r, f, packed, &in);
			if (rc)
				return rc;
		}
		ret = ZSTD_decompressStream(d, &out, &in);
		if (ZSTD_isError(ret) || (ret == 0 && out.pos < want))
			return -WPT_E_DAMAGED;
	}
	return 0;
}

/* Unpacking the beginning pays if enough is left out. */
static bool is_part(const struct wpt_fmt_frame_info *f, uint32_t nr_pages)
{
	return nr_pages <= f->nr_pages / 4 * 3;
}

static bool frame_sane(const struct wpt_fmt_frame_info *f, uint32_t nr_pages)
{
	return f->nr_pages && f->nr_pages <= WPT_FMT_FRAME_PAGES && f->length <= WPT_FMT_FRAME_MAX && nr_pages && nr_pages <= f->nr_pages;
}

int wpt_unpacker_open(struct wpt_unpacker *u)
{
	u->dctx = ZSTD_createDCtx();
	/* All that is unpacked is hashed page by page, and a whole frame's bytes are checked before. */
	if (u->dctx && ZSTD_isError(ZSTD_DCtx_setParameter(u->dctx, ZSTD_d_forceIgnoreChecksum, ZSTD_d_ignoreChecksum))) {
		ZSTD_freeDCtx(u->dctx);
		u->dctx = NULL;
	}
	u->packed = malloc(WPT_FMT_FRAME_MAX);
	u->pages = malloc((size_t)WPT_FMT_FRAME_PAGES * WPT_FMT_PAGE);
	if (u->dctx && u->packed && u->pages)
		return 0;
	wpt_unpacker_close(u);
	return -ENOMEM;
}

void wpt_unpacker_close(struct wpt_unpacker *u)
{
	ZSTD_freeDCtx(u->dctx);
	free(u->packed);
	free(u->pages);
	memset(u, 0, sizeof(*u));
}

int wpt_reader_unpack(struct wpt_reader *r, const struct wpt_fmt_frame_info *f, uint32_t nr_pages, struct wpt_unpacker *u)
{
	if (!frame_sane(f, nr_pages))
		return -WPT_E_DAMAGED;
	return is_part(f, nr_pages) ? unpack_part(r, f, nr_pages, u->dctx, u->packed, u->pages) :
				      unpack_whole(r, f, u->dctx, u->packed, u->pages);
}

/* ---- frames in the cache ---- */

struct frame_load {
	struct wpt_reader *r;
	const struct wpt_fmt_frame_info *frame;
	uint32_t nr_pages;
};

static int frame_load_to(const struct frame_load *l, uint8_t *packed, uint8_t *pages, bool part)
{
	ZSTD_DCtx *d = wpt_cache_dctx_get(l->r->cache);
	int rc;

	if (!d)
		return -ENOMEM;
	rc = part ? unpack_part(l->r, l->frame, l->nr_pages, d, packed, pages) : unpack_whole(l->r, l->frame, d, packed, pages);
	wpt_cache_dctx_put(l->r->cache, d);
	return rc;
}

static int frame_load_as(const struct frame_load *l, struct wpt_cached *e, bool part)
{
	const struct wpt_fmt_frame_info *f = l->frame;
	struct wpt_frame_data *d, *smaller;
	uint8_t *packed;
	size_t size;
	int rc;

	if (!frame_sane(f, l->nr_pages))
		return -WPT_E_DAMAGED;
	packed = malloc(f->length ? f->length : 1);
	d = malloc(sizeof(*d) + (size_t)f->nr_pages * WPT_FMT_PAGE);
	rc = packed && d ? frame_load_to(l, packed, d->pages, part) : -ENOMEM;
	free(packed);
	if (rc) {
		free(d);
		return rc;
	}
	size = sizeof(*d) + (size_t)l->nr_pages * WPT_FMT_PAGE;
	smaller = part ? realloc(d, size) : NULL;
	d = smaller ? smaller : d;
	d->head = (struct wpt_entry_head){ f->checksum, f->length, f->nr_pages };
	d->nr_pages = l->nr_pages;
	e->data = d;
	e->bytes = size;
	return 0;
}

static int frame_load(void *arg, struct wpt_cached *e)
{
	return frame_load_as(arg, e, false);
}

static int frame_load_part(void *arg, struct wpt_cached *e)
{
	return frame_load_as(arg, e, true);
}

int wpt_reader_frame(struct wpt_reader *r, const struct wpt_fmt_frame_info *frame, uint32_t nr_pages, struct wpt_cached **out)
{
	struct wpt_entry_head want = { frame->checksum, frame->length, frame->nr_pages };
	struct frame_load l = { r, frame, frame->nr_pages };
	int rc;

	if (is_part(frame, nr_pages)) {
		rc = wpt_reader_entry(r, WPT_ENTRY_FRAME, frame->offset, &want, NULL, NULL, out);
		if (rc != -ENOENT)
			return rc;
		l.nr_pages = WPT_MIN(WPT_ALIGN_UP(nr_pages, WPT_PART_STEP), frame->nr_pages);
		rc = wpt_reader_entry(r, WPT_ENTRY_PART, frame->offset, &want, frame_load_part, &l, out);
		if (rc || ((struct wpt_frame_data *)(*out)->data)->nr_pages >= nr_pages)
			return rc;
		/* What is asked of it moves on: from now on it is there as a whole. */
		wpt_cache_put(r->cache, *out);
		l.nr_pages = frame->nr_pages;
	}
	return wpt_reader_entry(r, WPT_ENTRY_FRAME, frame->offset, &want, frame_load, &l, out);
}

/* ---- pages ---- */

/* The pages' hashes and bytes of a run with data, held. */
struct held {
	struct wpt_cached *leaf, *frame;
	const uint8_t *hashes, *pages;
};

static int hold_hashes(struct wpt_reader *r, const struct wpt_reader_run *run, struct held *h)
{
	int rc = wpt_reader_leaf(r, run->leaf_offset, run->leaf_length, run->leaf_checksum, &h->leaf);

	if (!rc)
		h->hashes = ((struct wpt_leaf *)h->leaf->data)->bytes + run->hashes;
	return rc;
}

/* The first `nr` pages of the run at least. */
static int hold(struct wpt_reader *r, const struct wpt_reader_run *run, uint64_t nr, struct held *h)
{
	int rc;

	memset(h, 0, sizeof(*h));
	rc = hold_hashes(r, run, h);
	if (!rc)
		rc = wpt_reader_frame(r, &run->frame, run->slot + (uint32_t)nr, &h->frame);
	if (!rc)
		h->pages = ((struct wpt_frame_data *)h->frame->data)->pages + (size_t)run->slot * WPT_FMT_PAGE;
	return rc;
}

static void let_go(struct wpt_reader *r, struct held *h)
{
	wpt_cache_put(r->cache, h->leaf);
	wpt_cache_put(r->cache, h->frame);
}

/* What is checked is what is handed out: `page` may be shared with other readers but nobody writes to it. */
static int page_check(const struct wpt_reader *r, const uint8_t *page, const uint8_t *want)
{
	uint8_t hash[16];

	wpt_page_hash(&r->key, page, hash);
	return memcmp(hash, want, 16) ? -WPT_E_DAMAGED : 0;
}

int wpt_reader_pages(struct wpt_reader *r, const struct wpt_reader_run *run, uint64_t first, uint64_t nr, uint8_t *buf)
{
	struct held h;
	size_t i;
	int rc = hold(r, run, first + nr, &h);

	for (i = 0; !rc && i < nr; i++) {
		rc = page_check(r, h.pages + (size_t)(first + i) * WPT_FMT_PAGE, h.hashes + (size_t)(first + i) * 16);
		if (!rc)
			memcpy(buf + i * WPT_FMT_PAGE, h.pages + (size_t)(first + i) * WPT_FMT_PAGE, WPT_FMT_PAGE);
	}
	let_go(r, &h);
	return rc;
}

int wpt_reader_page_part(struct wpt_reader *r, const struct wpt_reader_run *run, uint64_t index, size_t offset, uint8_t *buf, size_t len)
{
	struct held h;
	int rc = hold(r, run, index + 1, &h);

	if (!rc)
		rc = page_check(r, h.pages + (size_t)index * WPT_FMT_PAGE, h.hashes + (size_t)index * 16);
	if (!rc)
		memcpy(buf, h.pages + (size_t)index * WPT_FMT_PAGE + offset, len);
	let_go(r, &h);
	return rc;
}

int wpt_reader_hashes(struct wpt_reader *r, const struct wpt_reader_run *run, uint64_t first, uint64_t nr, uint8_t *hashes)
{
	struct held h = { NULL, NULL, NULL, NULL };
	int rc = hold_hashes(r, run, &h);

	if (!rc)
		memcpy(hashes, h.hashes + (size_t)first * 16, (size_t)nr * 16);
	let_go(r, &h);
	return rc;
}

int wpt_reader_check(struct wpt_reader *r, const struct wpt_reader_run *run, const uint8_t *pages)
{
	struct held h = { NULL, NULL, NULL, NULL };
	size_t i;
	int rc = hold_hashes(r, run, &h);

	for (i = 0; !rc && i < run->nr_pages; i++)
		rc = page_check(r, pages + i * WPT_FMT_PAGE, h.hashes + i * 16);
	let_go(r, &h);
	return rc;
}
