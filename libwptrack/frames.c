/* SPDX-License-Identifier: MIT */
/* The frames of a source one after the other, each byte read once. */
#include "reader.h"

#include <stdlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#define AHEAD ((size_t)2 * (WPT_FMT_FRAME_MAX + WPT_FMT_BLOCK_MAX))

int wpt_frames_open(struct wpt_frames *f, struct wpt_source *s, uint64_t start, uint64_t end)
{
	memset(f, 0, sizeof(*f));
	f->source = s;
	f->pos = f->buf_pos = start;
	f->end = WPT_MAX(start, end);
	f->buf_size = (size_t)WPT_MIN(f->end - start, (uint64_t)AHEAD);
	f->buf = malloc(f->buf_size ? f->buf_size : 1);
	return f->buf ? 0 : -ENOMEM;
}

void wpt_frames_close(struct wpt_frames *f)
{
	free(f->buf);
	f->buf = NULL;
}

/* Makes the `want` bytes at pos, or all that there are, be in the buffer. *len is how many are. */
static int look_ahead(struct wpt_frames *f, size_t want, const uint8_t **bytes, size_t *len)
{
	size_t used = (size_t)(f->pos - f->buf_pos), kept = f->buf_len - used, more;
	int rc;

	want = (size_t)WPT_MIN((uint64_t)want, f->end - f->pos);
	if (kept < want) {
		memmove(f->buf, f->buf + used, kept);
		f->buf_pos = f->pos;
		f->buf_len = kept;
		more = (size_t)WPT_MIN((uint64_t)(f->buf_size - kept), f->end - f->pos - kept);
		rc = f->source->read(f->source, f->pos + kept, f->buf + kept, more);
		if (rc)
			return rc;
		f->buf_len += more;
		used = 0;
	}
	*bytes = f->buf + used;
	*len = f->buf_len - used;
	return 0;
}

static int data_frame(struct wpt_frames *f, struct wpt_frame *frame)
{
	const uint8_t *bytes;
	size_t len, size;
	int rc;

	rc = look_ahead(f, WPT_FMT_FRAME_MAX, &bytes, &len);
	if (rc)
		return rc;
	len = WPT_MIN(len, (size_t)WPT_FMT_FRAME_MAX);
	size = ZSTD_findFrameCompressedSize(bytes, len);
	if (ZSTD_isError(size)) {
		if (ZSTD_getErrorCode(size) == ZSTD_error_srcSize_wrong && len < WPT_FMT_FRAME_MAX)
			return -WPT_E_TRUNCATED;
		return -WPT_E_DAMAGED;
	}
	frame->bytes = bytes;
	frame->len = size;
	frame->checksum = wpt_fmt_checksum(bytes, size);
	return 1;
}

static int block_frame(struct wpt_frames *f, struct wpt_frame *frame, size_t want)
{
	const uint8_t *bytes;
	size_t len;
	int rc;

	if (want > f->end - f->pos)
		return -WPT_E_TRUNCATED;
	rc = look_ahead(f, want, &bytes, &len);
	if (rc)
		return rc;
	frame->bytes = bytes;
	frame->len = want;
	frame->bad = wpt_fmt_block(bytes, want, &frame->tag, &frame->checksum) != 0;
	return 1;
}

int wpt_frames_next(struct wpt_frames *f, struct wpt_frame *frame)
{
	const uint8_t *bytes;
	size_t len, want;
	int rc;

	if (f->pos == f->end)
		return 0;
	memset(frame, 0, sizeof(*frame));
	frame->offset = f->pos;
	rc = look_ahead(f, 12, &bytes, &len);
	if (rc)
		return rc;
	rc = wpt_fmt_frame(bytes, WPT_MIN(len, (size_t)12), &want, &frame->tag);
	if (rc < 0)
		return rc == -WPT_E_TRUNCATED ? rc : -WPT_E_DAMAGED;
	frame->kind = rc;
	rc = rc == WPT_FMT_FRAME_DATA ? data_frame(f, frame) : block_frame(f, frame, want);
	if (rc > 0)
		f->pos += frame->len;
	return rc;
}
