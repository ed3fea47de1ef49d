/* SPDX-License-Identifier: MIT */
/* Texts that go into links: what was skipped and why, and the comparison with what the last link said. */
#ifndef WPT_NOTES_H
#define WPT_NOTES_H

#include "layer.h"
#include "tracker.h"

int wpt_text_append(struct wpt_vec *v, const void *data, size_t len);
int wpt_text_set(struct wpt_vec *v, const void *data, size_t len);
bool wpt_text_same(const struct wpt_vec *v, const void *data, size_t len);

/* Section NOTES of man wptrack-snapshot.5, appended to `text` (elements: bytes). */
int wpt_notes_text(struct wpt_tracker *t, struct wpt_vec *text);

/* The ranges as a link lists them, struct wpt_layer_range whose names live as long as the plan; and as text, to tell whether they changed. */
int wpt_notes_ranges(struct wpt_tracker *t, struct wpt_vec *ranges, struct wpt_vec *text, uint64_t *nr_skipped);

/* Section CMDLINE; nothing if it can't be had. */
int wpt_notes_cmdline(struct wpt_tracker *t, struct wpt_vec *text);

#endif
