/* SPDX-License-Identifier: MIT */
/* Rounds: copying while the target runs, so that the pause finds little to copy. */
#include "take.h"

#define SOON_NS 100000000u
#define USELESS_NS 50000000u
#define IN_FLIGHT_NS UINT64_C(10000000000)

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

	if (t->direct) {
		k->stats.rounds_end = WPT_ROUNDS_DIRECT;
		return 0;
	}
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

/*
 * Direct I/O (O_DIRECT): a page shows as written when the kernel pins it, and the device writes to it later, which shows nowhere. A look in between
 * protects it again, and what was copied then may be old for ever. So there are no rounds while the target runs. A call that does direct I/O ends
 * before its thread stops, so that in the pause only asynchronous I/O can be under way; in mode fuzzy any. What a link protected then is compared by
 * all links until one that begins when the I/O must have ended. Who was seen to do direct I/O is taken to do so from then on: what is opened for a
 * moment may not be seen again.
 */
int wpt_take_ask_direct(struct wpt_take *k)
{
	struct wpt_tracker *t = k->w->t;

	return t->backend == WPT_BACKEND_REPORTED ? 0 : wpt_target_direct(t->target, &t->direct, &t->ring);
}

static bool is_asynchronous(const struct wpt_tracker *t)
{
	size_t i;

	if (t->ring)
		return true;
	for (i = 0; i < t->maps.maps.count; i++)
		if (strncmp(wpt_map_name(&t->maps, wpt_map_at(&t->maps, i)), "/[aio]", 6) == 0)
			return true;
	return false;
}

/* In the pause after rounds, who has begun direct I/O since they did may have some of what they copied changed. */
static int doubt_rounds(struct wpt_take *k)
{
	int err;

	if (k->o.mode == WPT_MODE_FUZZY || !k->stats.nr_rounds || k->w->t->direct)
		return 0;
	err = wpt_take_ask_direct(k);
	if (err || !k->w->t->direct)
		return err;
	k->stats.rounds_end = WPT_ROUNDS_DIRECT;
	return wpt_tracker_all_unknown(k->w->t);
}

int wpt_take_copy_again(struct wpt_take *k)
{
	struct wpt_tracker *t = k->w->t;
	int err = doubt_rounds(k);

	if (!err)
		err = wpt_spans_merge(&k->fresh, &t->unknown);
	if (!err)
		err = wpt_spans_merge(&t->unknown, &t->in_flight[0]);
	if (!err)
		err = wpt_spans_merge(&t->unknown, &t->in_flight[1]);
	return err;
}

/*
 * What can't be found out counts as yes: the link is as good as it can be, and the target may be gone. Who held it otherwise than by stopping it
 * ended its I/O.
 */
void wpt_take_ask_again(struct wpt_take *k)
{
	struct wpt_tracker *t = k->w->t;
	bool held = k->o.quiesce && !wpt_target_is_self(t->target);
	int err = wpt_take_ask_direct(k);

	k->in_flight = k->o.mode == WPT_MODE_FUZZY ? t->direct || err : !held && ((t->direct && is_asynchronous(t)) || err);
}

/* What was dirty in the link, as spans. */
static int taken_spans(struct wpt_take *k, struct wpt_vec *spans)
{
	struct wpt_ledger *l = k->w->t->ledger;
	uint64_t at = 0, end;
	struct wpt_span *span;

	while ((at = wpt_ledger_next_taken(l, at, UINT64_MAX, &end)) < UINT64_MAX) {
		span = wpt_vec_push(spans);
		if (!span)
			return -ENOMEM;
		*span = (struct wpt_span){ at, end };
		at = end;
	}
	return 0;
}

void wpt_take_copied(struct wpt_take *k)
{
	struct wpt_tracker *t = k->w->t;
	struct wpt_vec taken = WPT_VEC(struct wpt_span), done;
	unsigned int i;
	int err;

	for (i = 0; i < 2 && k->looked_ns >= t->in_flight_ns[0] + IN_FLIGHT_NS; i++) {
		done = t->in_flight[0];
		wpt_vec_clear(&done);
		t->in_flight[0] = t->in_flight[1];
		t->in_flight_ns[0] = t->in_flight_ns[1];
		t->in_flight[1] = done;
	}
	if (!k->in_flight)
		return;
	err = taken_spans(k, &taken);
	if (!err)
		err = wpt_spans_merge(&t->in_flight[1], &taken);
	if (!err)
		err = wpt_spans_merge(&t->in_flight[1], &k->fresh);
	wpt_vec_free(&taken);
	t->in_flight_ns[1] = wpt_now_ns();
	/* Without memory to say which, or where rounds copied some: all. */
	k->w->all |= err || k->stats.nr_rounds;
}
