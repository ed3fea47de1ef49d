/* SPDX-License-Identifier: MIT */
/* A tracker and a writer over one process: opened as the options say, links taken and reported. */
#include "vm.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A target that does not stop in time, because the machine is busy or a thread is in vfork, is asked again before that is an error. */
#define STOP_ATTEMPTS 10

static void on_log(void *arg, enum wpt_log_level level, const char *message)
{
	const struct session *s = arg;

	if (level == WPT_LOG_ERROR || (level == WPT_LOG_WARNING && !s->o->quiet))
		complain("%s", message);
}

static void flush_out(struct session *s)
{
	if (fflush(s->out) || ferror(s->out))
		s->out_failed = true;
}

/* ---- ranges that are skipped or compared ---- */

struct notes_walk {
	struct session *s;
	struct notes now;
	/* Private mappings of files, which every program has by the dozen, are told of in one line. */
	uint32_t nr_private, private_reason;
	uint64_t private_bytes;
};

static int compare_notes(const void *a, const void *b)
{
	const struct note *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

static bool is_reported(const struct notes *notes, const struct note *n)
{
	const struct note *old = notes->nr ? bsearch(n, notes->v, notes->nr, sizeof(*n), compare_notes) : NULL;

	return old && old->end == n->end && old->reason == n->reason && old->skipped == n->skipped;
}

static void print_compared(const struct session *s, const char *what, uint32_t reason, uint64_t bytes)
{
	char size[UNITS_TEXT];

	if (s->o->quiet)
		return;
	format_size(size, bytes);
	complain("compared by content: %s: %s; each link reads and hashes %s%s%s", what, reason_text(reason), size,
		 s->o->mode == WPT_MODE_PAUSE ? " while the target stands still" : "",
		 reason == WPT_REASON_OTHER_WRITER || reason == WPT_REASON_UNINSPECTABLE ?
			 "; --assume-sole-writer trusts that nobody else writes" :
			 "");
}

static void print_json(const struct session *s, const struct wpt_range_info *r)
{
	json_begin(s->out, "range");
	json_addr(s->out, "start", r->start);
	json_addr(s->out, "end", r->end);
	json_u64(s->out, "size", r->end - r->start);
	json_str(s->out, "kind", kind_name(r->kind));
	json_str(s->out, "reason", reason_name(r->reason));
	json_bool(s->out, "skipped", r->skipped);
	json_str(s->out, "name", r->name);
	json_end(s->out);
}

static void print_note(struct notes_walk *walk, const struct wpt_range_info *r)
{
	const char *name = *r->name ? r->name : "(no name)";
	char size[UNITS_TEXT], what[400];

	if (walk->s->o->json)
		print_json(walk->s, r);
	if (r->skipped) {
		format_size(size, r->end - r->start);
		complain("skipped: %" PRIx64 "-%" PRIx64 " %s, %s: %s; it is not in the snapshot", r->start, r->end, name, size,
			 reason_text(r->reason));
	} else if (r->kind == WPT_KIND_FILE_PRIVATE && r->reason == WPT_REASON_UNINSPECTABLE) {
		walk->nr_private++;
		walk->private_reason = r->reason;
		walk->private_bytes += r->end - r->start;
	} else {
		snprintf(what, sizeof(what), "%" PRIx64 "-%" PRIx64 " %.300s", r->start, r->end, name);
		print_compared(walk->s, what, r->reason, r->end - r->start);
	}
}

static int on_range(void *arg, const struct wpt_range_info *r)
{
	struct note n = { .start = r->start, .end = r->end, .reason = r->reason, .skipped = r->skipped };
	struct notes_walk *walk = arg;
	struct note *v;

	if (!r->skipped && r->reason == WPT_REASON_NONE)
		return 0;
	if (r->skipped)
		walk->s->skipped = true;
	if (!is_reported(&walk->s->notes, &n))
		print_note(walk, r);
	v = reallocarray(walk->now.v, walk->now.nr + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	walk->now.v = v;
	v[walk->now.nr++] = n;
	return 0;
}

/* What changed since the last link in the list of ranges that are skipped or compared. */
static void report_ranges(struct session *s)
{
	struct notes_walk walk = { .s = s };
	char what[64];

	s->skipped = false;
	wpt_range_list(s->tracker, on_range, &walk);
	if (walk.nr_private) {
		snprintf(what, sizeof(what), "%u private mappings of files", walk.nr_private);
		print_compared(s, what, walk.private_reason, walk.private_bytes);
	}
	free(s->notes.v);
	s->notes = walk.now;
}

/* ---- opening ---- */

static int add_ranges(struct session *s)
{
	const struct opts *o = s->o;
	struct wpt_range r = { .size = sizeof(r) };
	struct spans spans;
	const char *bad;
	int err = 0;
	size_t i;

	if (s->vm) {
		err = vm_ranges(s->vm, s->tracker);
		if (err)
			complain("%s: %s: %s", o->cmd->name, s->vm->path, s->vm->why);
		return err ? exit_code_of(err) : EXIT_OK;
	}
	if (!o->nr_ranges) {
		err = wpt_range_add_all(s->tracker);
		if (err)
			return report(err, next_attach(err), "%s: cannot list the memory of process %d", o->cmd->name, (int)s->pid);
		return EXIT_OK;
	}
	err = spec_resolve(s->pid, o->ranges, o->nr_ranges, &spans, &bad);
	if (err == -WPT_E_NOT_TRACKED) {
		complain("%s: process %d has no mapping '%s'; /proc/%d/maps lists them", o->cmd->name, (int)s->pid, bad, (int)s->pid);
		return EXIT_FAILED;
	}
	if (err)
		return report(err, next_attach(err), "%s: cannot find the range '%s' of process %d", o->cmd->name, bad, (int)s->pid);
	for (i = 0; i < spans.nr && err >= 0; i++) {
		r.start = spans.v[i].start;
		r.end = spans.v[i].end;
		err = wpt_range_add(s->tracker, &r);
	}
	free(spans.v);
	if (err < 0)
		return report(err, next_attach(err), "%s: cannot track %" PRIx64 "-%" PRIx64 " of process %d", o->cmd->name, r.start, r.end,
			      (int)s->pid);
	return EXIT_OK;
}

static int open_writer(struct session *s, uint32_t dest, bool new_chain)
{
	const struct opts *o = s->o;
	struct wpt_writer_options wo = { .size = sizeof(wo) };
	int err;

	wo.dest = dest;
	wo.fd = 1;
	wo.level = o->level;
	wo.nr_threads = o->nr_threads;
	wo.staging_bytes = o->staging;
	wo.hot_set = o->hot_set;
	wo.parent = o->parent;
	if (o->new_chain || new_chain)
		wo.flags |= WPT_WRITER_NEW;
	if (o->cmdline)
		wo.flags |= WPT_WRITER_CMDLINE;
	if (o->collapse)
		wo.flags |= WPT_WRITER_COLLAPSE;
	err = wpt_writer_open(&s->writer, s->tracker, dest == WPT_DEST_FD ? NULL : s->output, &wo);
	if (!err)
		return EXIT_OK;
	if (o->parent && err != -EEXIST)
		return report(err, next_read(err), "%s: cannot write %s with the parent %s", o->cmd->name, s->output, o->parent);
	return report(err, next_write(err), "%s: cannot write to %s", o->cmd->name, s->output);
}

int session_open(struct session *s, const struct opts *o, pid_t pid, uint32_t dest, bool new_chain)
{
	struct wpt_tracker_options to = { .size = sizeof(to), .stop_timeout_ms = o->stop_timeout_ms };
	int err, code, attempts = 0;

	s->o = o;
	s->pid = pid;
	if (!s->output)
		s->output = o->output;
	if (o->verify_content)
		to.flags |= WPT_TRACK_VERIFY_CONTENT;
	if (o->sole_writer)
		to.flags |= WPT_TRACK_ASSUME_SOLE_WRITER;
	to.backend = o->mode == WPT_MODE_COW ? WPT_BACKEND_SYNC : o->backend;
	to.nr_scan_threads = o->nr_threads;
	to.log = on_log;
	to.log_arg = s;
	do
		err = wpt_tracker_attach(&s->tracker, pid, &to);
	while (err == -WPT_E_STOP_TIMEOUT && ++attempts < STOP_ATTEMPTS);
	if (err)
		return report(err, next_attach(err), "%s: cannot attach to process %d", o->cmd->name, (int)pid);
	code = add_ranges(s);
	if (!code)
		code = open_writer(s, dest, new_chain);
	if (code)
		session_close(s);
	return code;
}

void session_close(struct session *s)
{
	wpt_writer_close(s->writer);
	wpt_tracker_close(s->tracker);
	free(s->notes.v);
	s->writer = NULL;
	s->tracker = NULL;
	memset(&s->notes, 0, sizeof(s->notes));
}

/* ---- links ---- */

/* With the name of the machine, where there are several. */
static void begin_json(const struct session *s, const char *type)
{
	json_begin(s->out, type);
	if (s->label)
		json_str(s->out, "vm", s->label);
}

static void print_link_json(const struct session *s, const struct wpt_take_stats *st, const char *trigger)
{
	FILE *f = s->out;

	begin_json(s, "link");
	json_str(f, "trigger", trigger);
	json_u64(f, "sequence", st->sequence);
	json_str(f, "id", st->id);
	json_str(f, "file", st->file);
	json_u64(f, "pages_tracked", st->pages_tracked);
	json_u64(f, "pages_dirty", st->pages_dirty);
	json_u64(f, "pages_compared", st->pages_compared);
	json_u64(f, "pages_stored", st->pages_stored);
	json_u64(f, "pages_zero", st->pages_zero);
	json_u64(f, "pages_unchanged", st->pages_unchanged);
	json_u64(f, "pages_duplicate", st->pages_duplicate);
	json_u64(f, "pages_unreadable", st->pages_unreadable);
	json_u64(f, "pages_torn", st->pages_torn);
	json_u64(f, "bytes_stored", st->bytes_stored);
	json_u64(f, "pages_paused", st->pages_paused);
	json_u64(f, "rounds", st->nr_rounds);
	json_str(f, "rounds_end", rounds_end_name(st->rounds_end));
	json_u64(f, "pause_ns", st->pause_ns);
	json_u64(f, "total_ns", st->total_ns);
	json_i64(f, "level", st->level);
	json_u64(f, "skipped", st->nr_skipped);
	if (s->o->hot_set)
		json_u64(f, "pages_hot", st->pages_hot);
	if (s->o->mode == WPT_MODE_COW) {
		json_u64(f, "cow_faults", st->pages_cow_faults);
		json_u64(f, "cow_copied", st->pages_cow_copied);
		json_u64(f, "cow_waits", st->cow_waits);
		json_u64(f, "cow_fallback", st->cow_fallback);
	}
	if (s->o->collapse)
		json_u64(f, "pages_collapsed", st->pages_collapsed);
	if (s->vm) {
		json_u64(f, "guest_stopped_ns", s->vm->stopped_ns);
		json_u64(f, "device_ns", s->vm->device_ns);
		json_u64(f, "device_bytes", s->vm->state_len);
	}
	json_end(f);
}

static void print_count(FILE *f, uint64_t n, const char *what)
{
	if (n)
		fprintf(f, ", %" PRIu64 " %s", n, what);
}

static void print_link_text(const struct session *s, const struct wpt_take_stats *st, const char *trigger)
{
	char size[UNITS_TEXT], pause[UNITS_TEXT], total[UNITS_TEXT];
	FILE *f = s->out;

	if (s->label)
		fprintf(f, "%s: ", s->label);
	fprintf(f, "link %" PRIu64 " %s: %" PRIu64 " pages dirty, %" PRIu64 " stored", st->sequence, trigger, st->pages_dirty,
		st->pages_stored);
	print_count(f, st->pages_compared, "compared");
	print_count(f, st->pages_unreadable, "unreadable");
	print_count(f, st->pages_torn, "torn");
	print_count(f, st->pages_collapsed, "collapsed");
	fprintf(f, ", %s, pause %s, total %s", format_size(size, st->bytes_stored), format_duration(pause, st->pause_ns),
		format_duration(total, st->total_ns));
	if (s->vm)
		fprintf(f, ", guest stopped %s, device state %s", format_duration(pause, s->vm->stopped_ns), format_size(size, s->vm->state_len));
	if (*st->file) {
		fputs(", ", f);
		print_name(f, st->file);
	}
	putc('\n', f);
}

static void report_failure(struct session *s, int err, const char *trigger)
{
	const struct opts *o = s->o;
	bool vm_says = s->vm && s->vm->why[0];
	char what[64];

	if (err == -ECANCELED)
		return;
	if (s->nr_links)
		snprintf(what, sizeof(what), "link (%s)", trigger);
	else
		snprintf(what, sizeof(what), "no snapshot");
	if (vm_says)
		complain("%s: %s of %s in %s: %s", o->cmd->name, what, s->vm->path, s->output, s->vm->why);
	else
		report(err, next_write(err), "%s: %s of process %d in %s", o->cmd->name, what, (int)s->pid, s->output);
	if (!o->json)
		return;
	begin_json(s, "failed");
	json_str(s->out, "trigger", trigger);
	json_i64(s->out, "code", err);
	json_str(s->out, "error", vm_says ? s->vm->why : wpt_strerror(err));
	json_end(s->out);
	flush_out(s);
}

static int on_paused(void *arg)
{
	(void)arg;
	return interrupt_asked() ? -ECANCELED : 0;
}

static int take(struct session *s, struct wpt_take_stats *st)
{
	struct wpt_take_options to = { .size = sizeof(to) };
	int err;

	memset(st, 0, sizeof(*st));
	st->size = sizeof(*st);
	if (s->vm) {
		err = vm_prepare(s->vm, s->tracker);
		if (err)
			return err;
	}
	to.mode = s->o->mode;
	to.max_rounds = s->o->max_rounds;
	to.target_pause_us = s->o->target_pause_us;
	if (s->o->mode == WPT_MODE_PAUSE)
		to.paused = on_paused;
	if (s->o->refuse)
		to.flags |= WPT_TAKE_REFUSE;
	if (s->o->registers)
		to.flags |= WPT_TAKE_REGISTERS;
	if (s->vm)
		vm_take_options(s->vm, &to);
	err = wpt_writer_take(s->writer, &to, st);
	if (s->vm)
		vm_taken(s->vm, !err);
	return err;
}

int session_take(struct session *s, const char *trigger)
{
	struct wpt_take_stats st;
	int err, attempts = 0;

	do
		err = take(s, &st);
	while (err == -WPT_E_STOP_TIMEOUT && ++attempts < STOP_ATTEMPTS);
	s->last = err;
	if (err) {
		report_failure(s, err, trigger);
		return err;
	}
	if (!s->nr_links++)
		session_ready(s);
	report_ranges(s);
	if (s->o->json)
		print_link_json(s, &st, st.sequence && strcmp(trigger, "base") == 0 ? "continued" : trigger);
	else if (s->lines)
		print_link_text(s, &st, st.sequence && strcmp(trigger, "base") == 0 ? "continued" : trigger);
	flush_out(s);
	return 0;
}

void session_ready(struct session *s)
{
	struct wpt_tracker_info info = { .size = sizeof(info) };

	if (s->o->cmd->id & (CMD_SAVE | CMD_QEMU_SAVE) || s->ready)
		return;
	s->ready = true;
	if (s->o->json) {
		begin_json(s, "ready");
		json_i64(s->out, "pid", s->pid);
		json_str(s->out, "backend",
			 wpt_tracker_info(s->tracker, &info) ? "unknown" : backend_name(info.backend));
		json_end(s->out);
	} else if (s->lines) {
		if (s->label)
			fprintf(s->out, "%s: ", s->label);
		fputs("ready\n", s->out);
	}
	flush_out(s);
}

void session_end(struct session *s, const char *reason)
{
	if (!s->o->json)
		return;
	begin_json(s, "end");
	json_str(s->out, "reason", reason);
	json_u64(s->out, "links", s->nr_links);
	json_end(s->out);
	flush_out(s);
}
