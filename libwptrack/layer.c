/* SPDX-License-Identifier: MIT */
/*
 * Workers decide for each page of data whether it is said, and compress those that are stored; what items say without data is decided
 * at emission, because one such item may cover terabytes and its records are then written as they are found. Emission,
 * sections and finish have the index to themselves: emission runs one at a time, the others after a drain.
 *
 * A page may come twice in a link (it was written again after its first copy). The later batch is then a barrier: the ledger
 * hears of the two copies in the order in which a reader finds them. Of a batch that has both, all is said and the ledger hears of it
 * at emission, for which the batch after it waits.
 */
#define ZSTD_STATIC_LINKING_ONLY /* ZSTD_createCCtx_advanced: compressors never call malloc */
#include "layer.h"
#include "layer_dedup.h"
#include "layer_index.h"
#include "layer_level.h"
#include "page.h"
#include "pipe.h"

#include <stdlib.h>
#include <unistd.h>
#include <zstd.h>

_Static_assert(ZSTD_COMPRESSBOUND((size_t)WPT_FMT_FRAME_PAGES * WPT_FMT_PAGE) <= WPT_FMT_FRAME_MAX, "any batch fits a frame");

#define BATCH_BYTES ((size_t)WPT_BATCH_PAGES * WPT_PAGE)
#define KIND_UNCHANGED 0u
#define KIND_LEFT_OUT 255u /* zero in a full link */

/* What became of a page of data. */
struct outcome {
	uint8_t kind;          /* enum wpt_fmt_kind or one of the above */
	uint32_t slot;
	uint64_t frame;
};

struct job {
	struct wpt_pipe_job pipe;
	struct wpt_batch batch;
	size_t frame_len;
	uint32_t nr_stored;
	uint64_t checksum;
	int level;             /* adaptive: what the frame was compressed at, and how long that took */
	uint64_t work_ns;
	bool again;            /* the link may have said something of these pages already */
	bool mixed;            /* so may this very batch */
	struct outcome outcomes[WPT_BATCH_PAGES];
	struct wpt_hash hashes[WPT_BATCH_PAGES];
};

struct section_writer {
	size_t used;           /* of the kit's raw bytes */
	uint32_t index;
	struct wpt_fmt_section *entry;
	struct wpt_fmt_hash hash;
};

struct wpt_layer_kit {
	uint32_t nr_threads;
	struct wpt_pipe *pipe;
	ZSTD_CCtx **cctx;      /* one a thread, and one for sections */
	int *levels;           /* that each is set to */
	bool adaptive;
	struct wpt_level level;
	uint64_t (*clock)(void);
	uint8_t *raw;          /* WPT_FMT_PART_MAX bytes, for sections */
	struct job *jobs;
	uint8_t *data;
	size_t nr_jobs;
};

struct wpt_layer_writer {
	struct wpt_layer_params params;
	struct wpt_layer_kit *kit;
	bool owns_kit;
	struct wpt_fmt_head head;
	struct wpt_page_key key;
	struct wpt_layer_index index;
	struct wpt_layer_dedup *dedup;
	uint64_t next_addr;    /* end of what was submitted last */
	bool again;            /* addresses went back: pages may come twice */
	bool mixed;            /* they did within the batch that was submitted last */
	struct wpt_fmt_counts counts;
	struct wpt_fmt_section sections[WPT_FMT_SECTIONS_MAX];
	uint32_t nr_sections;
	const uint8_t *ranges_digest;
	struct section_writer section;
};

/* ---- compressors ---- */

static void *zstd_alloc(void *opaque, size_t size)
{
	size_t *p = wpt_vm_alloc(size + 64);

	(void)opaque;
	if (!p)
		return NULL;
	*p = size + 64;
	return (uint8_t *)p + 64;
}

static void zstd_free(void *opaque, void *address)
{
	size_t *p;

	(void)opaque;
	if (!address)
		return;
	p = (size_t *)((uint8_t *)address - 64);
	wpt_vm_free(p, *p);
}

static int level_set(struct wpt_layer_kit *k, uint32_t i, int level)
{
	if (k->levels[i] == level)
		return 0;
	if (ZSTD_isError(ZSTD_CCtx_setParameter(k->cctx[i], ZSTD_c_compressionLevel, level)))
		return -EINVAL;
	k->levels[i] = level;
	return 0;
}

/* With compressor number i of the kit, at its level of the moment. */
static size_t compress(struct wpt_layer_kit *k, uint32_t i, void *out, size_t room, const void *data, size_t len)
{
	if (k->adaptive && level_set(k, i, wpt_level_get(&k->level)))
		return (size_t)-1; /* an error to ZSTD_isError() */
	return ZSTD_compress2(k->cctx[i], out, room, data, len);
}

/* Compressing a full batch once takes all the memory that it will ever need. */
static int compressor_open(struct wpt_layer_kit *k, uint32_t i, int level, const void *zeros, void *scratch)
{
	const ZSTD_customMem memory = { zstd_alloc, zstd_free, NULL };
	size_t ret;
	int rc;

	k->cctx[i] = ZSTD_createCCtx_advanced(memory);
	if (!k->cctx[i])
		return -ENOMEM;
	rc = level_set(k, i, level);
	if (rc < 0)
		return rc;
	ret = ZSTD_CCtx_setParameter(k->cctx[i], ZSTD_c_checksumFlag, 1);
	if (!ZSTD_isError(ret))
		ret = ZSTD_compress2(k->cctx[i], scratch, WPT_FMT_FRAME_MAX, zeros, BATCH_BYTES);
	return ZSTD_isError(ret) ? -ENOMEM : 0;
}

/* ---- pages of data, on worker threads ---- */

static int ledger_says(const struct wpt_layer_writer *w, uint64_t addr, enum wpt_known known, const struct wpt_hash *hash)
{
	return w->params.ledger ? wpt_ledger_classify(w->params.ledger, addr, known, hash) : 0;
}

static int zero_classify(const struct wpt_layer_writer *w, const struct job *job, uint64_t addr, struct outcome *o)
{
	int known = job->mixed ? 0 : ledger_says(w, addr, WPT_KNOWN_ZERO, NULL);

	o->kind = known > 0 ? KIND_UNCHANGED : WPT_FMT_ZERO;
	if (w->head.flags & WPT_FMT_FULL && (known > 0 || (!w->params.ledger && !job->again)))
		o->kind = KIND_LEFT_OUT;
	return known < 0 ? known : 0;
}

static int data_classify(const struct wpt_layer_writer *w, struct job *job, uint32_t i, uint64_t addr, bool torn)
{
	const uint8_t *page = job->batch.data + (size_t)i * WPT_PAGE;
	struct outcome *o = &job->outcomes[i];
	struct wpt_layer_place place = { job->pipe.order, job->nr_stored };
	uint64_t oldest;
	int known = 0;

	if (!torn && wpt_page_is_zero(page))
		return zero_classify(w, job, addr, o);
	wpt_page_hash(&w->key, page, job->hashes[i].b);
	/* What was torn is not known to be in the target at all: the next link has to say what is. */
	if (!job->mixed)
		known = ledger_says(w, addr, torn ? WPT_KNOWN_FORCE : WPT_KNOWN_DATA, &job->hashes[i]);
	if (known < 0)
		return known;
	o->kind = torn ? WPT_FMT_TORN : WPT_FMT_DATA;
	if (known && !torn && !(w->head.flags & WPT_FMT_FULL)) {
		o->kind = KIND_UNCHANGED;
		return 0;
	}
	oldest = place.frame < WPT_INDEX_RING ? 0 : place.frame - WPT_INDEX_RING + 1;
	if (!torn && wpt_layer_dedup_find(w->dedup, page, job->hashes[i].b, oldest, &place))
		o->kind = WPT_FMT_DUPLICATE;
	else
		job->nr_stored++;
	o->frame = place.frame;
	o->slot = place.slot;
	return 0;
}

/* Moves a page that is stored up to its slot. */
static void page_pack(struct job *job, uint32_t i)
{
	const struct outcome *o = &job->outcomes[i];
	uint8_t *data = job->batch.data;

	if ((o->kind == WPT_FMT_DATA || o->kind == WPT_FMT_TORN) && o->slot != i)
		memcpy(data + (size_t)o->slot * WPT_PAGE, data + (size_t)i * WPT_PAGE, WPT_PAGE);
}

static bool item_has_data(const struct wpt_item *item)
{
	return item->kind == WPT_ITEM_DATA || item->kind == WPT_ITEM_TORN;
}

static int work(void *arg, uint32_t thread, struct wpt_pipe_job *pipe_job)
{
	struct wpt_layer_writer *w = arg;
	struct job *job = (struct job *)pipe_job;
	const struct wpt_batch *b = &job->batch;
	uint64_t began = 0;
	uint32_t i = 0;
	size_t len;

	job->nr_stored = 0;
	job->frame_len = 0;
	for (uint32_t n = 0; n < b->nr_items; n++) {
		const struct wpt_item *item = &b->items[n];

		if (!item_has_data(item))
			continue;
		for (uint64_t page = 0; page < item->nr_pages; page++, i++) {
			int ret = data_classify(w, job, i, item->addr + page * WPT_PAGE, item->kind == WPT_ITEM_TORN);

			if (ret < 0)
				return ret;
			page_pack(job, i);
		}
	}
	if (job->nr_stored == 0)
		return 0;
	if (w->kit->adaptive)
		began = w->kit->clock();
	len = compress(w->kit, thread, pipe_job->out, WPT_FMT_FRAME_MAX, b->data, (size_t)job->nr_stored * WPT_PAGE);
	if (ZSTD_isError(len))
		return -ENOMEM;
	if (w->kit->adaptive) {
		job->level = w->kit->levels[thread];
		job->work_ns = w->kit->clock() - began;
	}
	job->frame_len = len;
	job->checksum = wpt_fmt_checksum(pipe_job->out, len);
	return 0;
}

/* ---- emission, in order ---- */

static void count(struct wpt_fmt_counts *c, uint32_t kind, uint64_t nr)
{
	switch (kind) {
	case WPT_FMT_DATA:
		c->data += nr;
		break;
	case WPT_FMT_TORN:
		c->torn += nr;
		break;
	case WPT_FMT_DUPLICATE:
		c->duplicate += nr;
		break;
	case WPT_FMT_ZERO:
	case KIND_LEFT_OUT:
		c->zero += nr;
		break;
	case WPT_FMT_UNREADABLE:
		c->unreadable += nr;
		break;
	case WPT_FMT_GUARD:
		c->guard += nr;
		break;
	default:
		c->unchanged += nr;
	}
}

static int record(struct wpt_layer_writer *w, uint32_t kind, uint64_t addr, uint64_t nr_pages)
{
	struct wpt_fmt_run run = { .page = addr >> WPT_PAGE_SHIFT, .nr_pages = nr_pages, .kind = kind };

	if (nr_pages == 0)
		return 0;
	count(&w->counts, kind, nr_pages);
	return wpt_layer_index_run(&w->index, &run, 0);
}

/* Pages from i on, before `end`, that make one run. */
static uint32_t run_length(const struct outcome *o, uint32_t i, uint32_t end)
{
	uint32_t n = 1;

	while (i + n < end && o[i + n].kind == o[i].kind) {
		if (o[i].kind != KIND_UNCHANGED && wpt_fmt_has_data(o[i].kind) &&
		    (o[i + n].frame != o[i].frame || o[i + n].slot != o[i].slot + n))
			break;
		n++;
	}
	return n;
}

/* What work() left out for a batch that says two things of a page. */
static int mixed_classify(struct wpt_layer_writer *w, const struct job *job, uint32_t i, const struct wpt_item *item)
{
	for (uint64_t page = 0; page < item->nr_pages; page++, i++) {
		uint32_t kind = job->outcomes[i].kind;
		enum wpt_known known = kind == WPT_FMT_TORN ? WPT_KNOWN_FORCE : WPT_KNOWN_DATA;
		int ret;

		if (!wpt_fmt_has_data(kind))
			known = WPT_KNOWN_ZERO;
		ret = ledger_says(w, item->addr + page * WPT_PAGE, known, &job->hashes[i]);
		if (ret < 0)
			return ret;
	}
	return 0;
}

static int emit_data(struct wpt_layer_writer *w, const struct job *job, uint32_t i, const struct wpt_item *item)
{
	uint32_t end = i + (uint32_t)item->nr_pages;
	uint64_t page = item->addr >> WPT_PAGE_SHIFT;
	int ret;

	ret = job->mixed ? mixed_classify(w, job, i, item) : 0;
	while (i < end && ret == 0) {
		const struct outcome *o = &job->outcomes[i];
		uint32_t n = run_length(job->outcomes, i, end);
		struct wpt_fmt_run run = { page, n, o->kind, 0, o->slot, job->hashes[i].b };

		count(&w->counts, o->kind, n);
		if (o->kind != KIND_UNCHANGED && o->kind != KIND_LEFT_OUT)
			ret = wpt_layer_index_run(&w->index, &run, o->frame);
		page += n;
		i += n;
	}
	return ret;
}

/* Only pages that the chain knows as something else are said; what has always been zero is not looked at one by one. */
static int emit_zero(struct wpt_layer_writer *w, const struct job *job, const struct wpt_item *item)
{
	struct wpt_ledger *l = w->params.ledger;
	uint64_t at = item->addr, end = at + item->nr_pages * WPT_PAGE, start = at;
	enum wpt_known known;
	int ret = 0;

	if (!l && w->head.flags & WPT_FMT_FULL && !job->again) {
		count(&w->counts, KIND_LEFT_OUT, item->nr_pages);
		return 0;
	}
	if (!l)
		return record(w, WPT_FMT_ZERO, at, item->nr_pages);
	while (ret == 0 && at < end) {
		uint64_t next = wpt_ledger_next_nonzero(l, at, end, &known);

		if (next != at) {
			uint32_t kind = w->head.flags & WPT_FMT_FULL ? KIND_LEFT_OUT : KIND_UNCHANGED;

			ret = record(w, WPT_FMT_ZERO, start, (at - start) / WPT_PAGE);
			count(&w->counts, kind, (next - at) / WPT_PAGE);
			start = at = next;
			continue;
		}
		ret = wpt_ledger_classify(l, at, WPT_KNOWN_ZERO, NULL);
		/* A page that was staged counts as data also when its copy was zero and is known to be: no end of the run. */
		if (ret > 0)
			ret = 0;
		at += WPT_PAGE;
	}
	return ret < 0 ? ret : record(w, WPT_FMT_ZERO, start, (at - start) / WPT_PAGE);
}

static int emit_state(struct wpt_layer_writer *w, const struct wpt_item *item, uint32_t kind, enum wpt_known known)
{
	uint64_t at = item->addr, start = at;
	int ret;

	/* A merged chain may have terabytes of it. */
	if (!w->params.ledger)
		return record(w, kind, at, item->nr_pages);
	for (uint64_t i = 0; i < item->nr_pages; i++, at += WPT_PAGE) {
		int said = ledger_says(w, at, known, NULL);

		if (said < 0)
			return said;
		if (!said || w->head.flags & WPT_FMT_FULL)
			continue;
		ret = record(w, kind, start, (at - start) / WPT_PAGE);
		if (ret < 0)
			return ret;
		count(&w->counts, KIND_UNCHANGED, 1);
		start = at + WPT_PAGE;
	}
	return record(w, kind, start, (at - start) / WPT_PAGE);
}

static int emit_item(struct wpt_layer_writer *w, const struct job *job, uint32_t i, const struct wpt_item *item)
{
	switch (item->kind) {
	case WPT_ITEM_DATA:
	case WPT_ITEM_TORN:
		return emit_data(w, job, i, item);
	case WPT_ITEM_ZERO:
		return emit_zero(w, job, item);
	case WPT_ITEM_GUARD:
		return emit_state(w, item, WPT_FMT_GUARD, WPT_KNOWN_GUARD);
	default:
		return emit_state(w, item, WPT_FMT_UNREADABLE, WPT_KNOWN_UNREADABLE);
	}
}

static int emit_frame(struct wpt_layer_writer *w, const struct job *job)
{
	struct wpt_layer_kit *k = w->kit;
	uint64_t began = k->adaptive ? k->clock() : 0;
	int ret = wpt_layer_index_data(&w->index, job->pipe.order, job->pipe.out, job->frame_len, job->nr_stored, job->checksum);

	/* One thread of the pipe is for the sink. */
	if (k->adaptive)
		wpt_level_note(&k->level, job->level, k->nr_threads - 1, k->clock() - began, job->work_ns);
	return ret;
}

static int emit(void *arg, struct wpt_pipe_job *pipe_job)
{
	struct wpt_layer_writer *w = arg;
	struct job *job = (struct job *)pipe_job;
	uint32_t i = 0;
	int ret = 0;

	if (job->frame_len)
		ret = emit_frame(w, job);
	for (uint32_t n = 0; n < job->batch.nr_items && ret == 0; n++) {
		const struct wpt_item *item = &job->batch.items[n];

		ret = emit_item(w, job, i, item);
		if (item_has_data(item))
			i += (uint32_t)item->nr_pages;
	}
	return ret;
}

/* ---- the kit ---- */

static uint32_t threads_of(uint32_t nr_threads)
{
	return WPT_MAX(1u, WPT_MIN(nr_threads, WPT_PIPE_THREADS_MAX));
}

static int compressors_open(struct wpt_layer_kit *k, int level)
{
	uint8_t *zeros = wpt_vm_alloc(BATCH_BYTES), *scratch = wpt_vm_alloc(WPT_FMT_FRAME_MAX);
	int ret = -ENOMEM;

	k->cctx = calloc(k->nr_threads + 1, sizeof(*k->cctx));
	k->levels = calloc(k->nr_threads + 1, sizeof(*k->levels));
	if (zeros && scratch && k->cctx && k->levels)
		ret = 0;
	for (uint32_t i = 0; i <= k->nr_threads && ret == 0; i++)
		ret = compressor_open(k, i, level, zeros, scratch);
	wpt_vm_free(zeros, BATCH_BYTES);
	wpt_vm_free(scratch, WPT_FMT_FRAME_MAX);
	return ret;
}

int wpt_layer_kit_open(struct wpt_layer_kit **out, uint64_t staging_bytes, uint32_t nr_threads, int level)
{
	struct wpt_pipe_params pipe = { 0, WPT_FMT_FRAME_MAX, work, emit, NULL };
	struct wpt_layer_kit *k = wpt_vm_alloc(sizeof(*k));
	uint64_t nr_jobs;
	int ret;

	if (!k)
		return -ENOMEM;
	/* Where the sink is slow a thread is always in it; the others go on to compress. */
	pipe.nr_threads = threads_of(level == WPT_LEVEL_ADAPTIVE ? threads_of(nr_threads) + 1 : nr_threads);
	k->nr_threads = pipe.nr_threads;
	k->adaptive = level == WPT_LEVEL_ADAPTIVE;
	wpt_level_init(&k->level);
	k->clock = wpt_now_ns;
	nr_jobs = WPT_MAX(staging_bytes / BATCH_BYTES, (uint64_t)k->nr_threads + 2);
	/* More than there are addresses, on a 32-bit machine. */
	if (nr_jobs <= SIZE_MAX / WPT_MAX(BATCH_BYTES, sizeof(*k->jobs))) {
		k->nr_jobs = (size_t)nr_jobs;
		k->jobs = wpt_vm_alloc(k->nr_jobs * sizeof(*k->jobs));
		k->data = wpt_vm_alloc(k->nr_jobs * BATCH_BYTES);
	}
	k->raw = wpt_vm_alloc(WPT_FMT_PART_MAX);
	ret = k->jobs && k->data && k->raw ? compressors_open(k, k->adaptive ? WPT_LEVEL_MOST : level ? level : 1) : -ENOMEM;
	if (ret == 0)
		ret = wpt_pipe_open(&k->pipe, &pipe);
	if (ret < 0) {
		wpt_layer_kit_close(k);
		return ret;
	}
	*out = k;
	return 0;
}

void wpt_layer_kit_clock(struct wpt_layer_kit *k, uint64_t (*clock)(void))
{
	k->clock = clock;
}

void wpt_layer_kit_close(struct wpt_layer_kit *k)
{
	if (!k)
		return;
	wpt_pipe_close(k->pipe);
	for (uint32_t i = 0; k->cctx && i <= k->nr_threads; i++)
		ZSTD_freeCCtx(k->cctx[i]);
	free(k->cctx);
	free(k->levels);
	wpt_vm_free(k->raw, WPT_FMT_PART_MAX);
	wpt_vm_free(k->data, k->nr_jobs * BATCH_BYTES);
	wpt_vm_free(k->jobs, k->nr_jobs * sizeof(*k->jobs));
	wpt_vm_free(k, sizeof(*k));
}

/* For the next writer, whatever became of the one before. */
static void kit_reset(struct wpt_layer_kit *k, struct wpt_layer_writer *w)
{
	wpt_pipe_reset(k->pipe, w);
	for (size_t i = k->nr_jobs; i-- > 0;) {
		k->jobs[i].batch.data = k->data + i * BATCH_BYTES;
		k->jobs[i].batch.priv = &k->jobs[i];
		wpt_pipe_add(k->pipe, &k->jobs[i].pipe);
	}
}

/* ---- open and close ---- */

static int head_write(struct wpt_layer_writer *w)
{
	static const uint8_t none[16];
	const struct wpt_layer_params *p = &w->params;
	struct wpt_fmt_head *h = &w->head;
	uint8_t bytes[WPT_FMT_HEAD_MAX];

	h->page_shift = WPT_FMT_PAGE_SHIFT;
	h->mode = p->mode;
	h->identity = p->identity;
	memcpy(h->key, p->key, sizeof(h->key));
	h->origin = p->origin;
	if (p->full || memcmp(p->identity.parent_id, none, 16) == 0)
		h->flags |= WPT_FMT_FULL | WPT_FMT_ORIGIN;
	if (p->carry_digest)
		h->flags |= WPT_FMT_MERGED;
	return wpt_layer_index_block(&w->index, bytes, wpt_fmt_head_encode(h, bytes));
}

uint8_t *wpt_layer_staging(const struct wpt_layer_writer *w)
{
	return w->kit->data;
}

int wpt_layer_writer_open(struct wpt_layer_writer **out, struct wpt_sink *sink, const struct wpt_layer_params *params)
{
	struct wpt_layer_writer *w;
	int ret;

	w = wpt_vm_alloc(sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->params = *params;
	wpt_page_key_init(&w->key, params->key);
	ret = wpt_layer_index_init(&w->index, sink);
	if (ret == 0)
		ret = wpt_layer_dedup_open(&w->dedup);
	w->kit = params->kit;
	w->owns_kit = !w->kit;
	if (ret == 0 && w->owns_kit)
		ret = wpt_layer_kit_open(&w->kit, params->staging_bytes, params->nr_threads, params->level);
	if (ret < 0)
		goto fail;
	kit_reset(w->kit, w);
	ret = head_write(w);
	if (ret < 0)
		goto fail;
	*out = w;
	return 0;
fail:
	wpt_layer_writer_close(w);
	return ret;
}

void wpt_layer_writer_close(struct wpt_layer_writer *w)
{
	if (!w)
		return;
	/* Its threads use what is freed here. */
	if (w->owns_kit)
		wpt_layer_kit_close(w->kit);
	else
		wpt_pipe_reset(w->kit->pipe, NULL);
	wpt_layer_dedup_close(w->dedup);
	wpt_layer_index_free(&w->index);
	wpt_vm_free(w, sizeof(*w));
}

/* ---- batches ---- */

int wpt_layer_batch_get(struct wpt_layer_writer *w, struct wpt_batch **out, bool wait)
{
	struct wpt_pipe_job *job;
	int ret;

	ret = wpt_pipe_get(w->kit->pipe, &job, wait);
	*out = NULL;
	if (ret < 0 || !job)
		return ret;
	*out = &((struct job *)job)->batch;
	(*out)->nr_pages = 0;
	(*out)->nr_items = 0;
	return 0;
}

/* *mixed: an address lies before one that the batch has already. */
static bool batch_valid(struct wpt_layer_writer *w, const struct wpt_batch *b, bool *mixed)
{
	uint64_t nr_pages = 0;

	if (b->nr_items > WPT_BATCH_ITEMS || b->nr_pages > WPT_BATCH_PAGES)
		return false;
	for (uint32_t n = 0; n < b->nr_items; n++) {
		const struct wpt_item *item = &b->items[n];
		uint64_t len, end;

		if (item->kind < WPT_ITEM_DATA || item->kind > WPT_ITEM_TORN || item->nr_pages == 0 || item->addr % WPT_PAGE)
			return false;
		if (wpt_mul_overflows(item->nr_pages, WPT_PAGE, &len) || wpt_add_overflows(item->addr, len, &end))
			return false;
		if (item_has_data(item) && (item->nr_pages > WPT_BATCH_PAGES || (nr_pages += item->nr_pages) > b->nr_pages))
			return false;
		if (item->addr < w->next_addr)
			*mixed = true;
		w->next_addr = end;
	}
	return nr_pages == b->nr_pages;
}

int wpt_layer_batch_submit(struct wpt_layer_writer *w, struct wpt_batch *b)
{
	struct job *job = b->priv;
	bool back = b->nr_items && b->items[0].addr < w->next_addr, wait = back || w->mixed;

	if (back)
		w->next_addr = 0;
	job->mixed = false;
	if (!batch_valid(w, b, &job->mixed)) {
		b->nr_items = 0;
		wpt_pipe_fail(w->kit->pipe, -EINVAL);
	}
	w->again |= back || job->mixed;
	job->again = w->again;
	w->mixed = job->mixed;
	return wpt_pipe_submit(w->kit->pipe, &job->pipe, wait || job->mixed);
}

void wpt_layer_hold(struct wpt_layer_writer *w, bool hold)
{
	wpt_pipe_hold(w->kit->pipe, hold);
}

int wpt_layer_drain(struct wpt_layer_writer *w)
{
	return wpt_pipe_drain(w->kit->pipe);
}

/* ---- sections ---- */

static int part_write(struct wpt_layer_writer *w, bool last)
{
	struct section_writer *s = &w->section;
	uint8_t *block = w->index.block;
	struct wpt_fmt_part part = { s->entry->type, s->index++, last ? WPT_FMT_PART_LAST : 0, (uint32_t)s->used, w->kit->raw, 0 };
	size_t len = s->used;

	part.len = part.raw_len;
	if (s->used > 1)
		len = compress(w->kit, w->kit->nr_threads, block + WPT_FMT_PART_DATA, s->used - 1, w->kit->raw, s->used);
	if (!ZSTD_isError(len) && len < s->used) {
		part.flags |= WPT_FMT_PART_ZSTD;
		part.data = block + WPT_FMT_PART_DATA;
		part.len = (uint32_t)len;
	}
	s->used = 0;
	return wpt_layer_index_block(&w->index, block, wpt_fmt_part_encode(&part, block));
}

static int section_begin(struct wpt_layer_writer *w, uint32_t type)
{
	struct section_writer *s = &w->section;
	int ret;

	for (uint32_t i = 0; i < w->nr_sections; i++)
		if (w->sections[i].type == type)
			return -EINVAL;
	if (w->nr_sections == WPT_FMT_SECTIONS_MAX)
		return -EINVAL;
	ret = wpt_pipe_drain(w->kit->pipe);
	if (ret < 0)
		return ret;
	s->entry = &w->sections[w->nr_sections];
	memset(s->entry, 0, sizeof(*s->entry));
	s->entry->type = type;
	s->entry->offset = w->index.offset;
	s->used = 0;
	s->index = 0;
	wpt_fmt_hash_init(&s->hash);
	return 0;
}

/* A part is written when there is more to come, so that the last one is known as such. */
static int section_add(struct wpt_layer_writer *w, const void *data, size_t len)
{
	struct section_writer *s = &w->section;
	const uint8_t *p = data;

	wpt_fmt_hash_update(&s->hash, data, len);
	s->entry->length += len;
	while (len) {
		size_t n = WPT_MIN(len, (size_t)WPT_FMT_PART_MAX - s->used);
		int ret;

		if (n == 0) {
			ret = part_write(w, false);
			if (ret < 0)
				return wpt_pipe_fail(w->kit->pipe, ret);
			continue;
		}
		memcpy(w->kit->raw + s->used, p, n);
		s->used += n;
		p += n;
		len -= n;
	}
	return 0;
}

static int section_end(struct wpt_layer_writer *w)
{
	struct section_writer *s = &w->section;
	int ret;

	ret = part_write(w, true);
	if (ret < 0)
		return wpt_pipe_fail(w->kit->pipe, ret);
	wpt_fmt_hash_final(&s->hash, s->entry->digest);
	s->entry->stored = w->index.offset - s->entry->offset;
	w->nr_sections++;
	return 0;
}

int wpt_layer_section(struct wpt_layer_writer *w, uint32_t type, const void *data, size_t len)
{
	int ret;

	if (type == WPT_FMT_SECTION_RANGES || len > WPT_FMT_SECTION_MAX)
		return -EINVAL;
	ret = section_begin(w, type);
	if (ret == 0)
		ret = section_add(w, data, len);
	return ret < 0 ? ret : section_end(w);
}

static bool ranges_valid(const struct wpt_layer_range *ranges, uint64_t nr)
{
	uint64_t end = 0, bytes = 0;

	for (uint64_t i = 0; i < nr; i++) {
		const struct wpt_layer_range *r = &ranges[i];

		if ((r->start | r->end) % WPT_PAGE || r->start >= r->end || r->start < end)
			return false;
		end = r->end;
		bytes += WPT_FMT_RANGE_MAX - WPT_FMT_NAME_MAX + (r->name ? strnlen(r->name, WPT_FMT_NAME_MAX) : 0);
		if (bytes > WPT_FMT_SECTION_MAX)
			return false;
	}
	return true;
}

int wpt_layer_ranges(struct wpt_layer_writer *w, const struct wpt_layer_range *ranges, uint64_t nr)
{
	uint8_t bytes[WPT_FMT_RANGE_MAX];
	int ret;

	if (!ranges_valid(ranges, nr))
		return -EINVAL;
	ret = section_begin(w, WPT_FMT_SECTION_RANGES);
	for (uint64_t i = 0; i < nr && ret == 0; i++) {
		const struct wpt_layer_range *from = &ranges[i];
		struct wpt_fmt_range r = { from->start, from->end, from->kind, from->reason, from->name, 0 };

		r.name_len = r.name ? (uint32_t)strnlen(r.name, WPT_FMT_NAME_MAX) : 0;
		ret = section_add(w, bytes, wpt_fmt_range_encode(&r, bytes));
	}
	if (ret == 0)
		ret = section_end(w);
	if (ret == 0)
		w->ranges_digest = w->section.entry->digest;
	return ret;
}

/* ---- finish ---- */

int wpt_layer_finish(struct wpt_layer_writer *w, uint64_t time_ns, uint64_t pause_ns, struct wpt_layer_result *result)
{
	const struct wpt_fmt_counts *c = &w->counts;
	struct wpt_fmt_root root = { .time_ns = time_ns, .pause_ns = pause_ns, .nr_sections = w->nr_sections };
	struct wpt_fmt_trailer trailer = { .sequence = w->params.identity.sequence };
	uint8_t records[16];
	int ret;

	ret = wpt_pipe_drain(w->kit->pipe);
	if (ret < 0)
		return ret;
	if (w->head.flags & WPT_FMT_FULL && !w->ranges_digest)
		return wpt_pipe_fail(w->kit->pipe, -EINVAL);
	root.counts = *c;
	memcpy(trailer.chain_id, w->params.identity.chain_id, 16);
	memcpy(trailer.link_id, w->params.identity.link_id, 16);
	wpt_fmt_records_final(&w->index.records, records);
	if (w->params.carry_digest)
		memcpy(trailer.digest, w->params.digest, 16);
	else
		wpt_fmt_identity(&w->head, records, w->ranges_digest, trailer.digest);
	ret = wpt_layer_index_finish(&w->index, &root, w->sections, &trailer);
	if (ret < 0)
		return wpt_pipe_fail(w->kit->pipe, ret);
	memset(result, 0, sizeof(*result));
	result->bytes = w->index.offset;
	result->level = w->kit->adaptive ? wpt_level_get(&w->kit->level) : w->kit->levels[0];
	memcpy(result->digest, trailer.digest, 16);
	result->pages_stored = c->data;
	result->pages_zero = c->zero;
	result->pages_unchanged = c->unchanged;
	result->pages_duplicate = c->duplicate;
	result->pages_unreadable = c->unreadable + c->guard;
	result->pages_torn = c->torn;
	return 0;
}
