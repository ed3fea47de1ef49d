/* SPDX-License-Identifier: MIT */
/* Texts that go into links: what was skipped and why, and the comparison with what the last link said. */
#ifndef WPT_NOTES_H
#define WPT_NOTES_H

#include "tracker.h"

int wpt_text_append(struct wpt_vec *v, const void *data, size_t len);
int wpt_text_set(struct wpt_vec *v, const void *data, size_t len);
bool wpt_text_same(const struct wpt_vec *v, const void *data, size_t len);

/* Section NOTES of man wptrack-snapshot.5, appended to `text` (elements: bytes). */
int wpt_notes_text(struct wpt_tracker *t, struct wpt_vec *text);

#endif
