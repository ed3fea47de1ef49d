/* SPDX-License-Identifier: MIT */
#include "notes.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define CMDLINE_MAX 65536u

int wpt_text_append(struct wpt_vec *v, const void *data, size_t len)
{
	const char *c = data;
	char *to;
	size_t i;

	for (i = 0; i < len; i++) {
		to = wpt_vec_push(v);
		if (!to)
			return -ENOMEM;
		*to = c[i];
	}
	return 0;
}

/* Whether the text is what the last durable link had. */
bool wpt_text_same(const struct wpt_vec *v, const void *data, size_t len)
{
	return v->count == len && (!len || memcmp(v->data, data, len) == 0);
}

int wpt_text_set(struct wpt_vec *v, const void *data, size_t len)
{
	wpt_vec_clear(v);
	return wpt_text_append(v, data, len);
}

static const char *reason_text(uint32_t reason)
{
	switch ((enum wpt_range_reason)reason) {
	case WPT_REASON_NONE:
		return "tracked";
	case WPT_REASON_BUSY:
		return "skipped: another userfaultfd has it";
	case WPT_REASON_DEVICE:
		return "skipped: device memory";
	case WPT_REASON_SPECIAL:
		return "skipped: special mapping";
	case WPT_REASON_UNSUPPORTED:
		return "skipped: the kernel can't write-protect it";
	case WPT_REASON_OTHER_WRITER:
		return "compared by content: another process may write to it";
	case WPT_REASON_UNINSPECTABLE:
		return "compared by content: who else writes to it can't be found out";
	case WPT_REASON_PINNED:
		return "compared by content: pinned for a device";
	case WPT_REASON_VERIFY:
		return "compared by content: as asked for";
	case WPT_REASON_UNTRACKED:
		return "compared by content: this backend can't write-protect it";
	}
	return "unknown";
}

int wpt_notes_text(struct wpt_tracker *t, struct wpt_vec *text)
{
	const struct wpt_area *a;
	const struct wpt_file *file;
	char line[512];
	size_t i;
	int n, err = 0;

	for (i = 0; i < t->plan->areas.count && !err; i++) {
		a = wpt_area_at(t->plan, i);
		if (a->reason == WPT_REASON_NONE)
			continue;
		n = snprintf(line, sizeof(line), "%llx-%llx %.200s: %s\n", (unsigned long long)a->start, (unsigned long long)a->end,
			     wpt_area_name(t->plan, a), reason_text(a->reason));
		err = wpt_text_append(text, line, (size_t)n);
	}
	for (i = 0; i < t->files.count && !err; i++) {
		file = wpt_vec_at(&t->files, struct wpt_file, i);
		if (file->fd < 0 || !file->use.own_writable_fd)
			continue;
		n = snprintf(line, sizeof(line), "inode %llu: the target has it open for writing\n", (unsigned long long)file->inode);
		err = wpt_text_append(text, line, (size_t)n);
	}
	if (!err && t->pinned_loud) {
		n = snprintf(line, sizeof(line), "VFIO or RDMA is in use: what devices write is not seen\n");
		err = wpt_text_append(text, line, (size_t)n);
	}
	return err;
}

static bool ranges_touch(const struct wpt_plan *plan, const struct wpt_layer_range *r, const struct wpt_area *a)
{
	return r->end == a->start && r->kind == a->kind && r->reason == a->reason && strcmp(r->name, wpt_area_name(plan, a)) == 0;
}

int wpt_notes_ranges(struct wpt_tracker *t, struct wpt_vec *ranges, struct wpt_vec *text, uint64_t *nr_skipped)
{
	const struct wpt_plan *plan = t->plan;
	struct wpt_layer_range *r = NULL;
	const struct wpt_area *a;
	char line[320];
	size_t i;
	int n, err = 0;

	for (i = 0; i < plan->areas.count && !err; i++) {
		a = wpt_area_at(plan, i);
		if (a->skipped) {
			++*nr_skipped;
			continue;
		}
		if (r && ranges_touch(plan, r, a)) {
			r->end = a->end;
			continue;
		}
		r = wpt_vec_push(ranges);
		if (r)
			*r = (struct wpt_layer_range){ a->start, a->end, a->kind, a->reason, wpt_area_name(plan, a) };
		else
			err = -ENOMEM;
	}
	for (i = 0; i < ranges->count && !err; i++) {
		r = wpt_vec_at(ranges, struct wpt_layer_range, i);
		n = snprintf(line, sizeof(line), "%llx %llx %u %u %.200s\n", (unsigned long long)r->start, (unsigned long long)r->end,
			     r->kind, r->reason, r->name);
		err = wpt_text_append(text, line, (size_t)n);
	}
	return err;
}

int wpt_notes_cmdline(struct wpt_tracker *t, struct wpt_vec *text)
{
	char path[64], piece[4096];
	ssize_t got = 0;
	int fd, err = 0;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)wpt_target_pid(t->target));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	while (!err && text->count < CMDLINE_MAX && (got = read(fd, piece, sizeof(piece))) > 0)
		err = wpt_text_append(text, piece, (size_t)got);
	close(fd);
	return err;
}
