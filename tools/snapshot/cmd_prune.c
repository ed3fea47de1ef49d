/* SPDX-License-Identifier: MIT */
/* wpsnap prune, and --keep of a watch: the oldest links go. */
#include "wpsnap.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>

/* Links after which a watch tries again what failed: 1, 3, 7, ... */
#define MOST_WAIT 63u

static const char *action_name(uint32_t action)
{
	switch ((enum wpt_prune_action)action) {
	case WPT_PRUNE_KEEP:
		return "keep";
	case WPT_PRUNE_MERGE:
		return "merge";
	case WPT_PRUNE_REMOVE:
		return "remove";
	case WPT_PRUNE_NEEDED:
		return "needed";
	case WPT_PRUNE_FOREIGN:
		return "foreign";
	}
	return "unknown";
}

static const char *next_prune(int err)
{
	switch (err) {
	case -WPT_E_LOCKED:
		return "a watch writes to it: end it, or start it with --keep N to have it prune by itself";
	case -ENOSPC:
	case -EDQUOT:
		return "nothing was removed; it needs room for one full link beside the chain";
	case -EACCES:
	case -EPERM:
	case -EROFS:
		return next_write(err);
	default:
		return next_read(err);
	}
}

static void print_json(FILE *f, const char *label, const struct wpt_prune_stats *st, bool dry_run)
{
	json_begin(f, "prune");
	if (label)
		json_str(f, "vm", label);
	json_bool(f, "dry_run", dry_run);
	json_u64(f, "sequence", st->sequence);
	json_u64(f, "kept", st->nr_kept);
	json_u64(f, "removed", st->nr_removed);
	json_u64(f, "needed", st->nr_needed);
	json_u64(f, "merged", st->nr_merged);
	json_u64(f, "bytes_removed", st->bytes_removed);
	json_u64(f, "bytes_written", st->bytes_written);
	json_u64(f, "total_ns", st->total_ns);
	json_end(f);
}

static void print_text(FILE *f, const struct wpt_prune_stats *st, bool dry_run)
{
	char removed[UNITS_TEXT], written[UNITS_TEXT], total[UNITS_TEXT];

	fprintf(f, "%" PRIu64 " links kept, from %" PRIu64 " on", st->nr_kept, st->sequence);
	if (!st->nr_removed)
		fputs(", nothing to remove\n", f);
	else if (dry_run)
		fprintf(f, ", %" PRIu64 " would be removed, %s\n", st->nr_removed, format_size(removed, st->bytes_removed));
	else
		fprintf(f, ", %" PRIu64 " removed, %s, written %s, total %s\n", st->nr_removed, format_size(removed, st->bytes_removed),
			format_size(written, st->bytes_written), format_duration(total, st->total_ns));
}

/* ---- prune ---- */

struct prune {
	const struct opts *o;
	struct progress p;
};

static int on_progress(void *arg, uint64_t done, uint64_t total)
{
	struct prune *k = arg;

	return progress_update(&k->p, done, total);
}

static int on_link(void *arg, const struct wpt_prune_link *link)
{
	const struct opts *o = ((struct prune *)arg)->o;
	char size[UNITS_TEXT];

	if (o->json) {
		json_begin(stdout, "pruned");
		json_u64(stdout, "sequence", link->sequence);
		json_str(stdout, "id", link->id);
		json_str(stdout, "file", link->file);
		json_u64(stdout, "length", link->length);
		json_str(stdout, "action", action_name(link->action));
		json_end(stdout);
	} else if (o->dry_run && !o->quiet) {
		printf("%-8s%5" PRIu64 "  %10s  ", action_name(link->action), link->sequence, format_size(size, link->length));
		print_name(stdout, link->file);
		putchar('\n');
	}
	if (o->quiet)
		return 0;
	if (link->action == WPT_PRUNE_NEEDED)
		complain("prune: link %" PRIu64 " stays: another link builds on it", link->sequence);
	else if (link->action == WPT_PRUNE_FOREIGN)
		complain("prune: link %" PRIu64 " stays: %s has not the name of a link in a folder; remove it yourself", link->sequence, link->file);
	return 0;
}

int cmd_prune(const struct opts *o)
{
	struct prune k = { .o = o };
	struct wpt_prune_options po = {
		.size = sizeof(po),
		.keep = o->keep,
		.flags = o->dry_run ? WPT_PRUNE_DRY_RUN : 0,
		.level = o->level,
		.nr_threads = o->nr_threads,
		.progress = on_progress,
		.each = on_link,
		.arg = &k,
	};
	struct wpt_prune_stats st = { .size = sizeof(st) };
	const char *chain = o->args[0];
	int err;

	progress_begin(&k.p, "prune", o->quiet);
	err = wpt_chain_prune(chain, &po, &st);
	progress_end(&k.p, err);
	if (err == -ENOTDIR) {
		complain("prune: %s is one file, and its links stay; write what is to be kept of it as one full link by wpsnap merge", chain);
		return EXIT_FAILED;
	}
	if (err && err != -ECANCELED) {
		fflush(stdout);
		return report(err, next_prune(err), "prune: cannot prune %s", chain);
	}
	if (err)
		return EXIT_FAILED;
	if (o->json)
		print_json(stdout, NULL, &st, o->dry_run);
	else if (!o->quiet)
		print_text(stdout, &st, o->dry_run);
	return finish_stdout(EXIT_OK);
}

/* ---- a watch ---- */

/* Signals that end the watch, or are to be passed on, do not wait for a merge. They are blocked, and read later. */
static int end_asked(void *arg, uint64_t done, uint64_t total)
{
	sigset_t pending;

	(void)arg;
	(void)done;
	(void)total;
	sigemptyset(&pending);
	sigpending(&pending);
	return sigismember(&pending, SIGINT) == 1 || sigismember(&pending, SIGTERM) == 1;
}

static void report_failure(struct session *s, int err)
{
	report(err, next_prune(err), "%s: older links than the last %u stay for now in %s", s->o->cmd->name, s->o->keep, s->output);
	if (!s->o->json)
		return;
	json_begin(s->out, "failed");
	if (s->label)
		json_str(s->out, "vm", s->label);
	json_str(s->out, "trigger", "prune");
	json_i64(s->out, "code", err);
	json_str(s->out, "error", wpt_strerror(err));
	json_end(s->out);
}

void session_prune(struct session *s)
{
	struct wpt_prune_options po = { .size = sizeof(po), .flags = WPT_PRUNE_LAZY, .progress = end_asked };
	struct wpt_prune_stats st = { .size = sizeof(st) };
	int err;

	/* Where there is no room for a link it makes some, also before it pays. */
	if (s->last == -ENOSPC || s->last == -EDQUOT)
		po.flags = 0;
	else if (s->last)
		return;
	if (!s->o->keep || (s->prune_wait && s->prune_wait--))
		return;
	po.keep = s->o->keep;
	po.nr_threads = s->o->nr_threads;
	err = wpt_writer_prune(s->writer, &po, &st);
	if (err == -ECANCELED)
		return;
	if (err) {
		report_failure(s, err);
		s->prune_wait = s->prune_failed = s->prune_failed < MOST_WAIT ? 2 * s->prune_failed + 1 : MOST_WAIT;
	} else {
		s->prune_failed = 0;
		if (!st.nr_removed)
			return;
		if (s->o->json) {
			print_json(s->out, s->label, &st, false);
		} else if (s->lines) {
			fprintf(s->out, "%s%sprune: ", s->label ? s->label : "", s->label ? ": " : "");
			print_text(s->out, &st, false);
		}
	}
	if (fflush(s->out) || ferror(s->out))
		s->out_failed = true;
}
