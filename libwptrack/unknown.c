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
