/* SPDX-License-Identifier: MIT */
/* The spans that the next durable link must compare: ascending, apart. */
#include "tracker.h"

/* The first span that ends at or behind `at`: its index. */
static size_t span_from(const struct wpt_vec *spans, uint64_t at)
{
	size_t low = 0, high = spans->count, mid;

	while (low < high) {
		mid = low + (high - low) / 2;
		if (wpt_vec_at(spans, struct wpt_span, mid)->end < at)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* At the end of the list, or to the last one of it. */
static int span_append(struct wpt_vec *spans, const struct wpt_span *s)
{
	struct wpt_span *last = spans->count ? wpt_vec_at(spans, struct wpt_span, spans->count - 1) : NULL;

	if (last && s->start <= last->end) {
		last->end = WPT_MAX(last->end, s->end);
		return 0;
	}
	last = wpt_vec_push(spans);
	if (!last)
		return -ENOMEM;
	*last = *s;
	return 0;
}

int wpt_spans_merge(struct wpt_vec *to, const struct wpt_vec *with)
{
	struct wpt_vec all = WPT_VEC(struct wpt_span);
	const struct wpt_span *a, *b;
	size_t i = 0, k = 0;
	int err = 0;

	if (!with->count)
		return 0;
	while ((i < to->count || k < with->count) && !err) {
		a = i < to->count ? wpt_vec_at(to, struct wpt_span, i) : NULL;
		b = k < with->count ? wpt_vec_at(with, struct wpt_span, k) : NULL;
		if (a && (!b || a->start <= b->start)) {
			err = span_append(&all, a);
			i++;
		} else {
			err = span_append(&all, b);
			k++;
		}
	}
	wpt_vec_free(err ? &all : to);
	if (!err)
		*to = all;
	return err;
}

int wpt_tracker_unknown(struct wpt_tracker *t, uint64_t start, uint64_t end)
{
	size_t i = span_from(&t->unknown, start), next = i;
	struct wpt_span *span;

	for (; next < t->unknown.count && wpt_vec_at(&t->unknown, struct wpt_span, next)->start <= end; next++) {
		span = wpt_vec_at(&t->unknown, struct wpt_span, next);
		start = WPT_MIN(start, span->start);
		end = WPT_MAX(end, span->end);
	}
	if (next == i) {
		if (!wpt_vec_push(&t->unknown))
			return -ENOMEM;
		span = wpt_vec_at(&t->unknown, struct wpt_span, i);
		memmove(span + 1, span, (t->unknown.count - 1 - i) * sizeof(*span));
	} else {
		span = wpt_vec_at(&t->unknown, struct wpt_span, i);
		memmove(span + 1, span + (next - i), (t->unknown.count - next) * sizeof(*span));
		t->unknown.count -= next - i - 1;
	}
	*span = (struct wpt_span){ start, end };
	return 0;
}

uint64_t wpt_tracker_next_unknown(const struct wpt_tracker *t, uint64_t from, uint64_t end, uint64_t *run_end)
{
	size_t i = span_from(&t->unknown, from + 1);
	const struct wpt_span *span = i < t->unknown.count ? wpt_vec_at(&t->unknown, struct wpt_span, i) : NULL;

	*run_end = end;
	if (from >= end || !span || span->start >= end)
		return end;
	*run_end = WPT_MIN(span->end, end);
	return WPT_MAX(span->start, from);
}

int wpt_tracker_all_unknown(struct wpt_tracker *t)
{
	const struct wpt_area *a;
	size_t i;
	int err = 0;

	for (i = 0; i < t->plan->areas.count && !err; i++) {
		a = wpt_area_at(t->plan, i);
		if (!a->skipped)
			err = wpt_tracker_unknown(t, a->start, a->end);
	}
	return err;
}
