/* SPDX-License-Identifier: MIT */
/* Rounds: copying while the target runs, so that the pause finds little to copy. */
#include "take.h"

#define SOON_NS 100000000u
#define USELESS_NS 50000000u

/* The writer's threads leave the processors to copying, and what is copied is staged, as far as memory reaches. */
void wpt_take_stage(struct wpt_take *k)
{
	wpt_layer_hold(k->layer, true);
	k->copy.staging = true;
}

/* What a round compared is not looked at again, unless the link fails; memory that no round looks at stays unknown. */
static int spans_compared(struct wpt_take *k)
{
	struct wpt_tracker *t = k->w->t;
	struct wpt_vec before = t->unknown;
	const struct wpt_area *a;
	struct wpt_span *span, *to;
	uint64_t at, end;
	size_t i, k2;
	int err = 0;

	for (i = 0; i < before.count && !err; i++) {
		span = wpt_vec_at(&before, struct wpt_span, i);
		to = wpt_vec_push(&k->compared);
		if (!to)
			return -ENOMEM;
		*to = *span;
	}
	t->unknown = (struct wpt_vec)WPT_VEC(struct wpt_span);
	for (i = k2 = 0; i < t->plan->areas.count && !err; i++) {
		a = wpt_area_at(t->plan, i);
		if (a->skipped || a->reason == WPT_REASON_NONE)
			continue;
		while (k2 < before.count && wpt_vec_at(&before, struct wpt_span, k2)->end <= a->start)
			k2++;
		for (size_t n = k2; n < before.count && !err; n++) {
			span = wpt_vec_at(&before, struct wpt_span, n);
			at = WPT_MAX(span->start, a->start);
			end = WPT_MIN(span->end, a->end);
			if (at >= end)
				break;
			err = wpt_tracker_unknown(t, at, end);
		}
	}
	wpt_vec_free(&before);
	return err;
}

/* The link is lost. */
void wpt_take_give_back(struct wpt_take *k)
{
	const struct wpt_span *span;
	size_t i;

	for (i = 0; i < k->compared.count; i++) {
		span = wpt_vec_at(&k->compared, struct wpt_span, i);
		if (wpt_tracker_unknown(k->w->t, span->start, span->end) != 0)
			k->w->all = true;
	}
}

/* Copies what a look found. */
static int round_copy(struct wpt_take *k)
{
	struct wpt_writer *w = k->w;
	uint64_t began = wpt_now_ns();
	int err;

	k->copy.round = true;
	err = wpt_copy_run(&k->copy);
	if (!err && k->copy.pages_dirty >= 256)
		k->page_ns = (wpt_now_ns() - began) / k->copy.pages_dirty;
	/* What was not staged, the ledger knows before it is asked again; and all memory is free. */
	if (!err && !k->copy.staging)
		err = wpt_layer_drain(k->layer);
	if (!err && !k->copy.staging)
		wpt_ledger_unstage_all(w->t->ledger);
	if (!err)
		err = wpt_target_alive(w->t->target);
	if (!err)
		err = spans_compared(k);
	if (!err && !k->stats.nr_rounds++)
		k->pages_compared = k->copy.pages_compared;
	return err;
}

/* Why to make no further round after one that took `ns`. */
static uint32_t rounds_end(struct wpt_take *k, uint64_t ns)
{
	uint64_t pages = k->copy.pages_dirty, target_ns = (uint64_t)k->o.target_pause_us * 1000;
	bool useless = pages > k->least / 4 * 3;

	k->least = WPT_MIN(k->least, pages);
	k->nr_useless = useless ? k->nr_useless + 1 : 0;
	k->useless_ns = useless ? k->useless_ns + ns : 0;
	if (pages * k->page_ns <= target_ns / 2)
		return WPT_ROUNDS_SMALL;
	if (k->stats.nr_rounds >= k->o.max_rounds)
		return WPT_ROUNDS_LIMIT;
	/* One may be slow by chance; and short ones cost little, however many. */
	return k->nr_useless >= 2 && k->useless_ns >= USELESS_NS ? WPT_ROUNDS_STALLED : WPT_ROUNDS_NONE;
}

/*
 * Each round copies what was written while the one before did, so that the pause finds little. A base's first round is of everything and goes
 * straight to the writer; later ones are staged, so that a page takes memory and is written to the link once however often it is copied.
 */
int wpt_take_rounds(struct wpt_take *k)
{
	struct wpt_tracker *t = k->w->t;
	uint64_t began;
	int err = 0;

	if (!k->w->all)
		wpt_take_stage(k);
	k->least = UINT64_MAX;
	while (k->stats.rounds_end == WPT_ROUNDS_NONE && !err) {
		began = wpt_now_ns();
		err = wpt_tracker_look(t, 0);
		if (!err && k->w->all && !k->stats.nr_rounds)
			err = wpt_tracker_all_unknown(t);
		/* While copying without staging takes its time, as much is written again: only the pause helps, and a round stores all once more. */
		if (!err && k->copy.spilled && wpt_ledger_count_taken(t->ledger) > k->least / 4 * 3) {
			k->stats.rounds_end = WPT_ROUNDS_STAGING;
			break;
		}
		/* Else the rounds that follow would cost each hot page a fault. */
		if (!err && k->w->o.hot_set && !k->stats.nr_rounds)
			wpt_tracker_loosen(t);
		if (!err)
			err = round_copy(k);
		k->soon = wpt_now_ns() - began < SOON_NS;
		if (!err)
			k->stats.rounds_end = rounds_end(k, wpt_now_ns() - began);
		if (!k->copy.staging)
			wpt_take_stage(k);
	}
	return err;
}
