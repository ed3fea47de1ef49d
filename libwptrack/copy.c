/* SPDX-License-Identifier: MIT */
#include "copy.h"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys.h"

#define MOMENTS 20u

int wpt_copy_open(struct wpt_copy *c, struct wpt_tracker *t)
{
	int err;

	memset(c, 0, sizeof(*c));
	c->t = t;
	err = wpt_scan_open(&c->outer, &t->how);
	if (!err)
		err = wpt_scan_open(&c->inner, &t->how);
	if (!err)
		err = wpt_scan_open(&c->check, &t->how);
	if (!err) {
		c->again = wpt_vm_alloc((size_t)WPT_COPY_AGAIN * WPT_PAGE);
		err = c->again ? 0 : -ENOMEM;
	}
	if (err)
		wpt_copy_close(c);
	return err;
}

void wpt_copy_close(struct wpt_copy *c)
{
	wpt_scan_close(&c->outer);
	wpt_scan_close(&c->inner);
	wpt_scan_close(&c->check);
	wpt_vm_free(c->again, (size_t)WPT_COPY_AGAIN * WPT_PAGE);
	c->again = NULL;
}

/* ---- batches ---- */

/* Pages of the staging memory are counted from its beginning. */
static uint32_t slot_of(const struct wpt_copy *c, const uint8_t *data)
{
	return (uint32_t)((size_t)(data - wpt_layer_staging(c->w)) / WPT_PAGE);
}

static uint8_t *slot_at(const struct wpt_copy *c, uint32_t slot)
{
	return wpt_layer_staging(c->w) + (size_t)slot * WPT_PAGE;
}

void wpt_copy_unstage(struct wpt_copy *c)
{
	if (c->staging)
		wpt_ledger_unstage_all(c->t->ledger);
	c->staging = false;
}

static int batch_submit(struct wpt_copy *c)
{
	struct wpt_batch *b = c->batch;
	int err;

	if (!b)
		return 0;
	if (c->check_torn && b->nr_pages)
		wpt_copy_check_torn(c);
	c->batch = NULL;
	err = wpt_layer_batch_submit(c->w, b);
	return err ? err : c->err;
}

static int again_flush(struct wpt_copy *c);

static int batch_need(struct wpt_copy *c)
{
	int err;

	if (c->batch)
		return 0;
	err = wpt_layer_batch_get(c->w, &c->batch, false);
	if (err || c->batch)
		return err;
	if (c->refuse)
		return -WPT_E_STAGING;
	/* From here on the writer's threads have what was staged. What can't be read any more is said, for which a batch may be taken already. */
	err = again_flush(c);
	if (err || c->batch)
		return err;
	/* The ledger goes on to say that the link has them: what is zero again must be said, and the threads may not have come to the copies yet. */
	c->staging = false;
	c->spilled = true;
	c->staging_waits++;
	return wpt_layer_batch_get(c->w, &c->batch, true);
}

/* Appends an item, whose data, if it has any, is in the batch's next slots. */
static void item_add(struct wpt_copy *c, uint64_t addr, uint64_t nr_pages, uint32_t kind)
{
	struct wpt_batch *b = c->batch;
	struct wpt_item *last = b->nr_items ? &b->items[b->nr_items - 1] : NULL;

	if (kind == WPT_ITEM_DATA) {
		if (c->staging && !c->err)
			c->err = wpt_ledger_stage(c->t->ledger, addr, nr_pages, slot_of(c, wpt_batch_slot(b, b->nr_pages)));
		b->nr_pages += (uint32_t)nr_pages;
	}
	if (last && last->kind == kind && last->addr + last->nr_pages * WPT_PAGE == addr)
		last->nr_pages += nr_pages;
	else
		b->items[b->nr_items++] = (struct wpt_item){ addr, nr_pages, kind };
}

static int pieces_flush(struct wpt_copy *c);

/* A batch with room for one more item and, if `data`, for one more page. */
static int room(struct wpt_copy *c, bool data)
{
	int err;

	if (c->batch && (c->batch->nr_items + c->nr_pieces >= WPT_BATCH_ITEMS ||
			 (data && c->batch->nr_pages + c->piece_pages >= WPT_BATCH_PAGES))) {
		err = pieces_flush(c);
		if (!err)
			err = batch_submit(c);
		if (err)
			return err;
	}
	return batch_need(c);
}

static bool is_guard(struct wpt_copy *c, uint64_t addr)
{
	const struct wpt_scan_match match = { .mask = PAGE_IS_GUARD };
	struct wpt_page_region run;

	if (!c->t->guard_known)
		return false;
	wpt_scan_start_any(&c->check, addr, addr + WPT_PAGE, &match);
	return wpt_scan_next(&c->check, &run) == 1;
}

/* A page that can't be read is said to be so, and is looked at again by the next link, whatever the kernel says of it then. */
static int add_unreadable(struct wpt_copy *c, uint64_t addr)
{
	int err;

	/* In a round it may be going away: the next pass says what it is then. */
	err = c->round ? 0 : room(c, false);
	if (err || c->round)
		return err ? err : wpt_ledger_dirty(c->t->ledger, addr, addr + WPT_PAGE);
	/* Said behind what is staged; a later copy must come behind this. */
	wpt_ledger_unstage(c->t->ledger, addr);
	item_add(c, addr, 1, is_guard(c, addr) ? WPT_ITEM_GUARD : WPT_ITEM_UNREADABLE);
	c->pages_unreadable++;
	return wpt_ledger_dirty(c->t->ledger, addr, addr + WPT_PAGE);
}

static int add_single(struct wpt_copy *c, uint64_t addr)
{
	ssize_t got;
	int err = room(c, true);

	if (err)
		return err;
	got = wpt_target_read(c->t->target, addr, wpt_batch_slot(c->batch, c->batch->nr_pages), WPT_PAGE);
	if (got == WPT_PAGE) {
		item_add(c, addr, 1, WPT_ITEM_DATA);
		return 0;
	}
	return got < 0 && got != -EFAULT && got != -EIO ? (int)got : add_unreadable(c, addr);
}

/* Reads the pending pieces in one call; if that comes short, page by page, so that what is unreadable is located. */
static int pieces_flush(struct wpt_copy *c)
{
	size_t nr = c->nr_pieces, i;
	uint64_t at, bytes = (uint64_t)c->piece_pages * WPT_PAGE;
	ssize_t got;
	int err = 0;

	if (!nr)
		return 0;
	c->nr_pieces = 0;
	c->piece_pages = 0;
	got = wpt_target_readv(c->t->target, c->pieces, nr, wpt_batch_slot(c->batch, c->batch->nr_pages));
	if (got == (ssize_t)bytes) {
		for (i = 0; i < nr; i++)
			item_add(c, c->pieces[i].addr, c->pieces[i].len / WPT_PAGE, WPT_ITEM_DATA);
		return 0;
	}
	if (got < 0 && got != -EFAULT && got != -EIO)
		return (int)got;
	for (i = 0; i < nr && !err; i++)
		for (at = c->pieces[i].addr; at < c->pieces[i].addr + c->pieces[i].len && !err; at += WPT_PAGE)
			err = add_single(c, at);
	return err;
}

/* Reads pages that are staged once more, to where their first copy is. What can't be read any more is said last: that may give them away. */
static int again_flush(struct wpt_copy *c)
{
	size_t nr = c->nr_again, bad = 0, i;
	ssize_t got;
	int err = 0;

	if (!nr)
		return 0;
	c->nr_again = 0;
	got = wpt_target_readv(c->t->target, c->again_pieces, nr, c->again);
	if (got < 0 && got != -EFAULT && got != -EIO)
		return (int)got;
	for (i = 0; i < nr; i++) {
		uint8_t *data = c->again + i * WPT_PAGE;

		if (got >= (ssize_t)((i + 1) * WPT_PAGE) ||
		    wpt_target_read(c->t->target, c->again_pieces[i].addr, data, WPT_PAGE) == WPT_PAGE)
			memcpy(slot_at(c, c->again_slots[i]), data, WPT_PAGE);
		else
			c->again_pieces[bad++] = c->again_pieces[i];
	}
	for (i = 0; i < bad && !err; i++)
		err = add_unreadable(c, c->again_pieces[i].addr);
	return err;
}

static int add_again(struct wpt_copy *c, uint64_t addr, uint32_t slot)
{
	c->again_pieces[c->nr_again] = (struct wpt_piece){ addr, WPT_PAGE };
	c->again_slots[c->nr_again++] = slot;
	return c->nr_again == WPT_COPY_AGAIN ? again_flush(c) : 0;
}

static int add_new(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	struct wpt_piece *last;
	uint64_t n;
	int err;

	for (; start < end; start += n * WPT_PAGE) {
		err = room(c, true);
		if (err)
			return err;
		n = WPT_MIN((end - start) / WPT_PAGE, WPT_BATCH_PAGES - c->batch->nr_pages - c->piece_pages);
		last = c->nr_pieces ? &c->pieces[c->nr_pieces - 1] : NULL;
		if (last && last->addr + last->len == start)
			last->len += n * WPT_PAGE;
		else
			c->pieces[c->nr_pieces++] = (struct wpt_piece){ start, n * WPT_PAGE };
		c->piece_pages += (uint32_t)n;
	}
	return 0;
}

/* The first staged page of [from, end), and its slot; end if there is none. */
static uint64_t next_staged(const struct wpt_copy *c, uint64_t from, uint64_t end, uint32_t *slot)
{
	return c->staging ? wpt_ledger_next_staged(c->t->ledger, from, end, slot) : end;
}

static int add_mapped(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	uint64_t at = start, staged;
	uint32_t slot = 0;
	int err = 0;

	while (at < end && !err) {
		staged = next_staged(c, at, end, &slot);
		err = add_new(c, at, staged);
		/* Making room may have given the staged pages away. */
		at = staged;
		if (!err && at < end && next_staged(c, at, at + WPT_PAGE, &slot) == at) {
			err = add_again(c, at, slot);
			at += WPT_PAGE;
		}
	}
	return err;
}

/* Pages of [start, end) that read as zeros; those that the chain shows as zeros already need no mention. */
static int add_zero(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	enum wpt_known known;
	uint64_t at = start, stop;
	uint32_t slot;
	int err;

	while ((at = wpt_ledger_next_nonzero(c->t->ledger, at, end, &known)) < end) {
		if (next_staged(c, at, at + WPT_PAGE, &slot) == at) {
			memset(slot_at(c, slot), 0, WPT_PAGE);
			at += WPT_PAGE;
			continue;
		}
		for (stop = at + WPT_PAGE; stop < end && wpt_ledger_known(c->t->ledger, stop) != WPT_KNOWN_ZERO &&
					   next_staged(c, stop, stop + WPT_PAGE, &slot) != stop;)
			stop += WPT_PAGE;
		err = pieces_flush(c);
		if (!err)
			err = room(c, false);
		if (err)
			return err;
		item_add(c, at, (stop - at) / WPT_PAGE, WPT_ITEM_ZERO);
		at = stop;
	}
	return 0;
}

/* Pages of a shared mapping, from the file: the mapping may not have them, and asking it would allocate them. */
static int add_from_file(struct wpt_copy *c, int fd, uint64_t start, uint64_t end)
{
	uint64_t offset, n, staged;
	uint32_t slot = 0;
	ssize_t got;
	int err;

	while (start < end) {
		err = pieces_flush(c);
		if (!err)
			err = room(c, true);
		if (err)
			return err;
		n = WPT_MIN((end - start) / WPT_PAGE, WPT_BATCH_PAGES - c->batch->nr_pages);
		offset = c->area->offset + (start - c->area->start);
		staged = next_staged(c, start, start + n * WPT_PAGE, &slot);
		if (staged == start && pread(fd, slot_at(c, slot), WPT_PAGE, (off_t)offset) == WPT_PAGE) {
			start += WPT_PAGE;
			continue;
		}
		/* What can't be had whole for where it is staged is said anew; until then the link is known to have it. */
		n = staged == start ? 1 : (staged - start) / WPT_PAGE;
		got = pread(fd, wpt_batch_slot(c->batch, c->batch->nr_pages), n * WPT_PAGE, (off_t)offset);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			err = add_unreadable(c, start);
			start += WPT_PAGE;
		} else if (got >= (ssize_t)WPT_PAGE) {
			n = (uint64_t)got / WPT_PAGE;
			item_add(c, start, n, WPT_ITEM_DATA);
			start += n * WPT_PAGE;
		} else if (got > 0) {
			/* The last page of the file: behind its end a mapping can hold bytes that the file has not. */
			err = add_single(c, start);
			start += WPT_PAGE;
		} else {
			return add_zero(c, start, end);
		}
		if (err)
			return err;
	}
	return 0;
}

/* ---- candidates ---- */

static int emit_now(struct wpt_copy *c, uint64_t start, uint64_t end, int (*emit)(struct wpt_copy *c, uint64_t start, uint64_t end))
{
	uint64_t from, to;
	int err = 0;

	if (!c->later)
		return emit(c, start, end);
	for (; start < end && !err; start = to) {
		err = c->later(c, start, end, &from, &to);
		if (!err && start < from)
			err = emit(c, start, from);
	}
	return err;
}

/* Calls `emit` for the candidates of [start, end), as runs. */
static int for_candidates(struct wpt_copy *c, uint64_t start, uint64_t end,
			  int (*emit)(struct wpt_copy *c, uint64_t start, uint64_t end))
{
	uint64_t at = start, unknown, unknown_end, taken, taken_end;
	int err = 0;

	while (at < end && !err) {
		unknown = wpt_tracker_next_unknown(c->t, at, end, &unknown_end);
		taken = wpt_ledger_next_taken(c->t->ledger, at, unknown, &taken_end);
		if (taken < unknown) {
			c->pages_dirty += (taken_end - taken) / WPT_PAGE;
			err = emit_now(c, taken, taken_end, emit);
			at = taken_end;
		} else if (unknown < end) {
			c->pages_dirty += (unknown_end - unknown) / WPT_PAGE;
			c->pages_compared += (unknown_end - unknown) / WPT_PAGE;
			err = emit_now(c, unknown, unknown_end, emit);
			at = unknown_end;
		} else {
			break;
		}
	}
	return err;
}

/* ---- kinds ---- */

/* Pages in swap: each batch of them goes back there before the next is read, so that the target does not grow by being read. */
static int copy_swapped(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	uint64_t at, stop, before;
	int err = 0;

	for (at = start; at < end && !err; at = stop) {
		stop = WPT_MIN(at + (uint64_t)WPT_BATCH_PAGES * WPT_PAGE, end);
		before = c->pages_dirty;
		err = for_candidates(c, at, stop, add_mapped);
		if (err || c->pages_dirty == before || c->later)
			continue;
		c->swapped_in += c->pages_dirty - before;
		err = pieces_flush(c);
		if (!err)
			wpt_target_pageout(c->t->target, at, stop);
	}
	return err;
}

/* What of a mapping is read through it. A huge page is never in swap: what looks so is a marker, and reading it would allocate one. */
static const struct wpt_scan_match *match_own(const struct wpt_area *a)
{
	static const struct wpt_scan_match present = { .mask = PAGE_IS_PRESENT };

	return a->kind == WPT_KIND_HUGETLB_PRIVATE ? &present : &wpt_match_populated;
}

/* Whether something is there that looks like a marker, and that the link has to say something of. */
static bool may_migrate(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match marked = { .inverted = PAGE_IS_PRESENT, .mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED };
	struct wpt_page_region run;
	enum wpt_known known;
	uint64_t run_end;

	wpt_scan_start_any(&c->inner, start, end, &marked);
	while (wpt_scan_next(&c->inner, &run) > 0)
		if (wpt_ledger_next_nonzero(c->t->ledger, run.start, run.end, &known) < run.end ||
		    wpt_ledger_next_taken(c->t->ledger, run.start, run.end, &run_end) < run.end ||
		    wpt_tracker_next_unknown(c->t, run.start, run.end, &run_end) < run.end)
			return true;
	return false;
}

/*
 * Private memory that is not present. A huge page looks like a marker while it is migrated, and the mapping can't be asked, which would allocate
 * one where there is none. So what looks so gets a moment; what still does then is taken for zero, and looked at by the next link once more.
 */
static int add_gap(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	const struct timespec moment = { .tv_nsec = 100000 };
	struct wpt_page_region run;
	enum wpt_known known;
	uint64_t at = start;
	bool waited = false;
	int got, err = 0;

	if (c->area->kind != WPT_KIND_HUGETLB_PRIVATE || start >= end)
		return add_zero(c, start, end);
	for (; c->moments && may_migrate(c, start, end); c->moments--, waited = true)
		wpt_sys(SYS_nanosleep, &moment, NULL);
	if (!waited)
		return add_zero(c, start, end);
	wpt_scan_start_any(&c->inner, start, end, match_own(c->area));
	while (!err && (got = wpt_scan_next(&c->inner, &run)) >= 0) {
		uint64_t stop = got ? run.start : end, page = at;

		for (; !err && (page = wpt_ledger_next_nonzero(c->t->ledger, page, stop, &known)) < stop; page += WPT_PAGE)
			err = wpt_ledger_dirty(c->t->ledger, page, page + WPT_PAGE);
		if (!err)
			err = add_zero(c, at, stop);
		if (!got)
			return err;
		if (!err)
			err = for_candidates(c, run.start, run.end, add_mapped);
		at = run.end;
	}
	return err ? err : got;
}

/* Memory that no file is behind: what is not populated is zero. */
static int copy_anon(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	struct wpt_page_region run;
	uint64_t at = start;
	int got, err = 0;

	wpt_scan_start_any(&c->outer, start, end, match_own(c->area));
	while (!err && (got = wpt_scan_next(&c->outer, &run)) > 0) {
		c->populated += run.end - run.start;
		err = add_gap(c, at, run.start);
		if (!err && run.categories & PAGE_IS_SWAPPED)
			err = copy_swapped(c, run.start, run.end);
		else if (!err)
			err = for_candidates(c, run.start, run.end, add_mapped);
		at = run.end;
	}
	/* A kernel that can't tell (a reported area is tracked without its help): everything may be there. */
	if (!err && got == -ENOTTY)
		return for_candidates(c, at, end, add_mapped);
	if (!err)
		err = got < 0 ? got : add_gap(c, at, end);
	return err;
}

/* Whether a file stands behind what the mapping shows, and can be read in its place. */
static bool has_file(const struct wpt_copy *c)
{
	const struct wpt_area *a = c->area;

	return a->file >= 0 && !(a->private_file && wpt_vec_at(&c->t->files, struct wpt_file, a->file)->stacked);
}

static int area_fd(const struct wpt_copy *c)
{
	return c->area->file < 0 ? -1 : wpt_vec_at(&c->t->files, struct wpt_file, c->area->file)->fd;
}

static int emit_shared(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	return add_from_file(c, area_fd(c), start, end);
}

/*
 * As emit_private below, where no list is kept of what is COWed: whatever is populated is read through the mapping. A marker looks as if it
 * were in swap; reading it so is right too, and maps a page of the file.
 */
static int emit_private_exact(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	struct wpt_page_region run;
	uint64_t at = start;
	int got = 0, err = 0;

	wpt_scan_start_any(&c->inner, start, end, match_own(c->area));
	while (!err && (got = wpt_scan_next(&c->inner, &run)) > 0) {
		err = add_from_file(c, area_fd(c), at, run.start);
		if (run.categories & PAGE_IS_SWAPPED)
			c->swapped_in += (run.end - run.start) / WPT_PAGE;
		if (!err)
			err = add_mapped(c, run.start, run.end);
		at = run.end;
	}
	if (!err)
		err = got < 0 ? got : add_from_file(c, area_fd(c), at, end);
	return err;
}

/*
 * What is read while the target runs may have become its own since the look, and be given back before the next, which would see nothing of that where
 * there are no markers: it is taken for COWed.
 */
static int note_read(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	return (c->round || c->check_torn) && c->area->sparse ? wpt_ledger_cow(c->t->ledger, start, end) : 0;
}

/*
 * Candidates of a private mapping where the file has data: what is present or COWed is read through the mapping, the rest from the file.
 */
static int emit_private(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	static const struct wpt_scan_match present = { .mask = PAGE_IS_PRESENT };
	struct wpt_page_region run = { end, end, 0 };
	uint64_t at = start, cowed, cowed_end, stop;
	int got = 1, err = 0;

	wpt_scan_start_any(&c->inner, start, end, &present);
	for (run.end = start; at < end && !err; at = stop) {
		while (got > 0 && run.end <= at) {
			got = wpt_scan_next(&c->inner, &run);
			if (got <= 0)
				run = (struct wpt_page_region){ end, end, 0 };
		}
		if (got < 0)
			return got;
		if (run.start <= at) {
			stop = WPT_MIN(run.end, end);
			err = note_read(c, at, stop);
			if (!err)
				err = add_mapped(c, at, stop);
			continue;
		}
		stop = WPT_MIN(run.start, end);
		cowed = wpt_ledger_next_cowed(c->t->ledger, at, stop, &cowed_end);
		if (cowed == at) {
			stop = cowed_end;
			c->swapped_in += (stop - at) / WPT_PAGE;
			err = add_mapped(c, at, stop);
		} else {
			stop = cowed;
			err = add_from_file(c, area_fd(c), at, stop);
		}
	}
	return err;
}

static bool holes_are_certain(const struct wpt_copy *c)
{
	return wpt_vec_at(&c->t->files, struct wpt_file, c->area->file)->tmpfs;
}

/*
 * Zeros; but on a disk there may seem to be a hole for the moment in which blocks are allocated. What was written there, and what the chain
 * shows as something else, is read from the file.
 */
static int add_hole(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	uint64_t at = start, nonzero, taken, taken_end, stop;
	enum wpt_known known;
	int err = 0;

	if (holes_are_certain(c))
		return add_zero(c, start, end);
	while (!err) {
		nonzero = wpt_ledger_next_nonzero(c->t->ledger, at, end, &known);
		taken = wpt_ledger_next_taken(c->t->ledger, at, end, &taken_end);
		at = WPT_MIN(nonzero, taken);
		if (at >= end)
			break;
		stop = taken_end;
		if (nonzero < taken)
			for (stop = at + WPT_PAGE; stop < taken && wpt_ledger_known(c->t->ledger, stop) != WPT_KNOWN_ZERO;)
				stop += WPT_PAGE;
		/* A fuzzy link may protect it again: what that takes from the kernel must be taken, or it is lost with the link. */
		if (c->check_torn && nonzero < taken) {
			err = wpt_ledger_dirty(c->t->ledger, at, stop);
			wpt_ledger_take(c->t->ledger, at, stop);
		}
		if (!err)
			err = add_from_file(c, area_fd(c), at, stop);
		at = stop;
	}
	return err;
}

/*
 * Where data begins; the end of the file's offsets if there is none; -errno. Of tmpfs it also waits for a write(2) that is under way, whose time of
 * change was seen before what it writes.
 */
static off_t seek_data(const struct wpt_copy *c, off_t offset)
{
	off_t data = lseek(area_fd(c), offset, SEEK_DATA), again;

	if (data < 0 && errno != ENXIO)
		return -errno;
	if (data < 0)
		data = INT64_MAX;
	if (holes_are_certain(c) || data == offset)
		return data;
	again = lseek(area_fd(c), offset, SEEK_DATA);
	return again < 0 ? data : WPT_MIN(data, again);
}

static int copy_hole_exact(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	struct wpt_page_region run;
	uint64_t at = start;
	int got = 0, err = 0;

	wpt_scan_start_any(&c->inner, start, end, match_own(c->area));
	while (!err && (got = wpt_scan_next(&c->inner, &run)) > 0) {
		err = add_hole(c, at, run.start);
		if (!err)
			err = for_candidates(c, run.start, run.end, add_mapped);
		at = run.end;
	}
	if (!err)
		err = got < 0 ? got : add_hole(c, at, end);
	return err;
}

/* A hole of the file: zero, but for pages of a private mapping that are COWed. */
static int copy_hole(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	uint64_t at = start, cowed, cowed_end;
	int err = 0;

	if (!c->area->private_file)
		return add_hole(c, start, end);
	if (c->area->exact || c->area->untracked)
		return copy_hole_exact(c, start, end);
	while (at < end && !err) {
		cowed = wpt_ledger_next_cowed(c->t->ledger, at, end, &cowed_end);
		err = add_hole(c, at, cowed);
		if (!err && cowed < end)
			err = for_candidates(c, cowed, cowed_end, add_mapped);
		at = cowed < end ? cowed_end : end;
	}
	return err;
}

/* How written pages are read where their file has data. */
static int (*emit_of(const struct wpt_area *a))(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	if (!a->private_file)
		return emit_shared;
	return a->exact || a->untracked ? emit_private_exact : emit_private;
}

static int copy_file(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	const struct wpt_area *a = c->area;
	uint64_t at = start, data_addr, hole_addr, end_offset = a->offset + (end - a->start);
	int fd = area_fd(c), err = 0;
	off_t data, hole;

	while (at < end && !err) {
		data = seek_data(c, (off_t)(a->offset + (at - a->start)));
		if (data < 0)
			return for_candidates(c, at, end, emit_of(a));
		if ((uint64_t)data >= end_offset)
			return copy_hole(c, at, end);
		hole = lseek(fd, data, SEEK_HOLE);
		data_addr = WPT_MAX(at, WPT_ALIGN_DOWN(a->start + ((uint64_t)data - a->offset), WPT_PAGE));
		hole_addr = hole < 0 || (uint64_t)hole >= end_offset ?
				    end :
				    WPT_ALIGN_UP(a->start + ((uint64_t)hole - a->offset), WPT_PAGE);
		err = copy_hole(c, at, data_addr);
		if (!err)
			err = for_candidates(c, data_addr, hole_addr, emit_of(a));
		at = hole_addr;
	}
	return err;
}

static bool is_anon(const struct wpt_area *a)
{
	return !a->backed || (a->kind == WPT_KIND_HUGETLB_PRIVATE && !a->private_file);
}

static int copy_span(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	const struct wpt_area *a = c->area;

	if (is_anon(a))
		return copy_anon(c, start, end);
	/* Reported private pages are not known to be COWed or not, and files that can't be had leave no other way. */
	if (!has_file(c) || (a->kind == WPT_KIND_REPORTED && a->private_file))
		return for_candidates(c, start, end, add_mapped);
	return copy_file(c, start, end);
}

/* Written pages of an exact area: few and scattered, so holes of the file are not looked for but read as the zeros they are. */
static int copy_written(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	uint64_t dirty = c->pages_dirty + (end - start) / WPT_PAGE;
	int err;

	if (is_anon(c->area))
		err = copy_anon(c, start, end);
	else
		err = !has_file(c) ? add_mapped(c, start, end) : emit_of(c->area)(c, start, end);
	c->pages_dirty = dirty; /* those that are gone included */
	return err;
}

/* Written pages of an area of which the look told what is there and what is gone. */
static int copy_told(struct wpt_copy *c, uint64_t start, uint64_t end)
{
	uint64_t at = start, gone, gone_end, dirty = c->pages_dirty + (end - start) / WPT_PAGE;
	int err = 0;

	while (at < end && !err) {
		gone = wpt_ledger_next_gone(c->t->ledger, at, end, &gone_end);
		if (gone > at)
			err = c->area->swapped ? copy_anon(c, at, gone) : add_mapped(c, at, gone);
		if (!err && gone < end)
			err = add_zero(c, gone, gone_end);
		at = gone < end ? gone_end : end;
	}
	c->pages_dirty = dirty;
	return err;
}

/* Nothing is looked at but what is written or must be compared. */
static int copy_listed(struct wpt_copy *c)
{
	const struct wpt_area *a = c->area;
	uint64_t at = a->start, unknown, unknown_end, taken, taken_end;
	int err = 0;

	while (at < a->end && !err) {
		unknown = wpt_tracker_next_unknown(c->t, at, a->end, &unknown_end);
		taken = wpt_ledger_next_taken(c->t->ledger, at, unknown, &taken_end);
		if (taken < unknown) {
			err = a->exact ? copy_written(c, taken, taken_end) : copy_told(c, taken, taken_end);
			at = taken_end;
		} else if (unknown < a->end) {
			err = copy_span(c, unknown, unknown_end);
			at = unknown_end;
		} else {
			break;
		}
	}
	return err;
}

static int copy_area(struct wpt_copy *c)
{
	struct wpt_area *a = c->area;
	int err;

	c->populated = 0;
	if (a->exact || a->told)
		return copy_listed(c);
	err = copy_span(c, a->start, a->end);
	/* Where nearly everything is populated, looks may leave markers in the rest. */
	if (!err && a->kind == WPT_KIND_ANON)
		a->dense = c->populated >= (a->end - a->start) / 8 * 7;
	return err;
}

static int flush_all(struct wpt_copy *c)
{
	int err = again_flush(c);

	if (!err)
		err = pieces_flush(c);
	return err ? err : c->err;
}

int wpt_copy_run(struct wpt_copy *c)
{
	size_t i;
	int err = 0;

	c->pages_tracked = c->pages_dirty = c->pages_compared = c->pages_unreadable = 0;
	c->batch = NULL;
	c->nr_pieces = c->nr_again = 0;
	c->piece_pages = 0;
	c->spilled = false;
	c->moments = MOMENTS;
	c->err = 0;
	for (i = 0; i < c->t->plan->areas.count && !err; i++) {
		c->area = wpt_area_at(c->t->plan, i);
		if (c->area->skipped)
			continue;
		c->pages_tracked += (c->area->end - c->area->start) / WPT_PAGE;
		/* It is compared while the target stands still, and would be again. */
		if (c->round && c->area->reason != WPT_REASON_NONE)
			continue;
		err = copy_area(c);
		/* The check for torn pages goes by the area. */
		if (!err && c->check_torn) {
			err = pieces_flush(c);
			if (!err)
				err = batch_submit(c);
		}
		if (!err && c->round)
			wpt_ledger_copied(c->t->ledger, c->area->start, c->area->end);
	}
	if (!err)
		err = flush_all(c);
	if (!err)
		err = batch_submit(c);
	return err == -ESRCH ? -WPT_E_GONE : err;
}
