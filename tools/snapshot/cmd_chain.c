/* SPDX-License-Identifier: MIT */
/* wpsnap info, verify and diff: what reads chains. */
#include "wpsnap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int open_chain(const struct opts *o, const char *name, struct wpt_chain **c)
{
	int err;

	*c = NULL;
	err = wpt_chain_open(c, name);
	if (err)
		report(err, next_read(err), "%s: cannot open %s", o->cmd->name, name);
	return err;
}

/* ---- info ---- */

static void ratio(char text[UNITS_TEXT], uint64_t of, uint64_t stored)
{
	if (stored)
		snprintf(text, UNITS_TEXT, "%.1f", (double)of / (double)stored);
	else
		snprintf(text, UNITS_TEXT, "-");
}

static void print_chain(const struct opts *o, const struct wpt_chain_info *ci)
{
	char tracked[UNITS_TEXT], stored[UNITS_TEXT], r[UNITS_TEXT];

	if (o->json) {
		json_begin(stdout, "chain");
		json_str(stdout, "chain_id", ci->chain_id);
		json_u64(stdout, "page_size", ci->page_size);
		json_u64(stdout, "links", ci->nr_links);
		json_u64(stdout, "ranges", ci->nr_ranges);
		json_u64(stdout, "bytes_tracked", ci->bytes_tracked);
		json_u64(stdout, "bytes_stored", ci->bytes_stored);
		json_i64(stdout, "pid", ci->pid);
		json_str(stdout, "comm", ci->comm);
		json_u64(stdout, "start_time", ci->start_time);
		json_str(stdout, "boot_id", ci->boot_id);
		json_end(stdout);
		return;
	}
	ratio(r, ci->bytes_tracked, ci->bytes_stored);
	printf("chain    %s, %u links, pages of %u bytes\ntarget   ", ci->chain_id, ci->nr_links, ci->page_size);
	print_name(stdout, ci->comm);
	printf(", pid %" PRId64 ", boot %s\n", ci->pid, ci->boot_id);
	printf("tracked  %s in %u ranges\n", format_size(tracked, ci->bytes_tracked), ci->nr_ranges);
	printf("stored   %s, ratio %s\n", format_size(stored, ci->bytes_stored), r);
}

static const struct section {
	uint32_t type;
	const char *key, *words;
} sections[] = {
	{ WPT_SECTION_MAPPINGS, "mappings", "mappings" },    { WPT_SECTION_REGISTERS, "registers", "registers" },
	{ WPT_SECTION_DEVICE, "device", "device state" },    { WPT_SECTION_CMDLINE, "cmdline", "command line" },
	{ WPT_SECTION_TAGS, "tags", "tags" },		     { WPT_SECTION_NOTES, "notes", "notes" },
};

static int has_section(struct wpt_chain *c, uint32_t type, bool *has)
{
	void *data = NULL;
	size_t len;
	int err;

	err = wpt_chain_section(c, type, &data, &len);
	free(data);
	*has = err == 0;
	return err == -ENOENT ? 0 : err;
}

/* What the chain holds besides pages. */
static int print_sections(const struct opts *o, struct wpt_chain *c)
{
	const char *separator = "holds    ";
	int err = 0;
	size_t i;
	bool has;

	if (o->json)
		json_begin(stdout, "sections");
	for (i = 0; i < ARRAY_SIZE(sections) && !err; i++) {
		err = has_section(c, sections[i].type, &has);
		if (o->json) {
			json_bool(stdout, sections[i].key, has);
		} else if (has) {
			printf("%s%s", separator, sections[i].words);
			separator = ", ";
		}
	}
	if (o->json)
		json_end(stdout);
	else if (*separator == ',')
		putchar('\n');
	return err;
}

/* What the last link says of skipped and compared ranges: lines of text. */
static int print_notes(const struct opts *o, struct wpt_chain *c)
{
	char *data = NULL, *line, *rest, *text;
	size_t len;
	int err;

	err = wpt_chain_section(c, WPT_SECTION_NOTES, (void **)&data, &len);
	if (err)
		return err == -ENOENT ? 0 : err;
	text = strndup(data, len);
	free(data);
	if (!text)
		return -ENOMEM;
	if (!o->json && *text)
		printf("\nnotes\n");
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (o->json) {
			json_begin(stdout, "note");
			json_str(stdout, "text", line);
			json_end(stdout);
			continue;
		}
		fputs("  ", stdout);
		print_name(stdout, line);
		putchar('\n');
	}
	free(text);
	return 0;
}

static void print_range(const struct opts *o, const struct wpt_range_info *ri)
{
	char size[UNITS_TEXT];

	if (o->json) {
		json_begin(stdout, "range");
		json_addr(stdout, "start", ri->start);
		json_addr(stdout, "end", ri->end);
		json_u64(stdout, "size", ri->end - ri->start);
		json_str(stdout, "kind", kind_name(ri->kind));
		json_str(stdout, "reason", reason_name(ri->reason));
		json_bool(stdout, "skipped", ri->skipped);
		json_str(stdout, "name", ri->name);
		json_end(stdout);
		return;
	}
	printf("  %012" PRIx64 "-%012" PRIx64 "  %10s  %s", ri->start, ri->end, format_size(size, ri->end - ri->start), kind_name(ri->kind));
	if (*ri->name) {
		printf("%*s", (int)(17 - strlen(kind_name(ri->kind))), "");
		print_name(stdout, ri->name);
	}
	if (ri->reason != WPT_REASON_NONE)
		printf("  (%s: %s)", ri->skipped ? "skipped" : "compared by content", reason_text(ri->reason));
	putchar('\n');
}

static void print_link(const struct opts *o, const struct wpt_chain_info *ci, const struct wpt_link_info *li)
{
	char size[UNITS_TEXT], pause[UNITS_TEXT], r[UNITS_TEXT], when[64] = "-";
	time_t seconds = (time_t)(li->time_ns / 1000000000);
	struct tm tm;

	if (o->json) {
		json_begin(stdout, "link");
		json_u64(stdout, "sequence", li->sequence);
		json_str(stdout, "id", li->id);
		json_str(stdout, "file", li->file);
		json_bool(stdout, "full", li->full);
		json_str(stdout, "mode", mode_name(li->mode));
		json_u64(stdout, "offset", li->offset);
		json_u64(stdout, "length", li->length);
		json_u64(stdout, "time_ns", li->time_ns);
		json_u64(stdout, "pause_ns", li->pause_ns);
		json_u64(stdout, "pages_data", li->pages_data);
		json_u64(stdout, "pages_zero", li->pages_zero);
		json_u64(stdout, "pages_duplicate", li->pages_duplicate);
		json_u64(stdout, "pages_unreadable", li->pages_unreadable);
		json_u64(stdout, "pages_torn", li->pages_torn);
		json_end(stdout);
		return;
	}
	if (gmtime_r(&seconds, &tm))
		strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
	ratio(r, li->pages_data * ci->page_size, li->length);
	printf("  %5" PRIu64 "  %.8s  %-5s  %-5s  %-20s  %10" PRIu64 "  %10" PRIu64 "  %10" PRIu64 "  %10s  %6s  %8s  ", li->sequence, li->id,
	       li->full ? "full" : "incr", mode_name(li->mode), when, li->pages_data, li->pages_zero, li->pages_duplicate,
	       format_size(size, li->length), r, format_duration(pause, li->pause_ns));
	print_name(stdout, li->file);
	if (li->pages_unreadable)
		printf("  (%" PRIu64 " pages unreadable)", li->pages_unreadable);
	if (li->pages_torn)
		printf("  (%" PRIu64 " pages torn)", li->pages_torn);
	putchar('\n');
}

static int print_all(const struct opts *o, struct wpt_chain *c)
{
	struct wpt_chain_info ci = { .size = sizeof(ci) };
	struct wpt_range_info ri;
	struct wpt_link_info li;
	uint32_t i;
	int err;

	err = wpt_chain_info(c, &ci);
	if (err)
		return err;
	print_chain(o, &ci);
	err = print_sections(o, c);
	if (!o->json && !err)
		printf("\nranges\n");
	for (i = 0; i < ci.nr_ranges && !err; i++) {
		memset(&ri, 0, sizeof(ri));
		ri.size = sizeof(ri);
		err = wpt_chain_range(c, i, &ri);
		if (!err)
			print_range(o, &ri);
	}
	if (!o->json && !err)
		printf("\nlinks\n  %5s  %-8s  %-5s  %-5s  %-20s  %10s  %10s  %10s  %10s  %6s  %8s  file\n", "seq", "id", "type", "mode",
		       "time", "data", "zero", "duplicate", "size", "ratio", "pause");
	for (i = 0; i < ci.nr_links && !err; i++) {
		memset(&li, 0, sizeof(li));
		li.size = sizeof(li);
		err = wpt_chain_link(c, i, &li);
		if (!err)
			print_link(o, &ci, &li);
	}
	return err ? err : print_notes(o, c);
}

int cmd_info(const struct opts *o)
{
	struct wpt_chain *c;
	int err;

	err = open_chain(o, o->args[0], &c);
	if (err)
		return exit_code_of(err);
	err = print_all(o, c);
	wpt_chain_close(c);
	if (err) {
		fflush(stdout);
		return report(err, next_read(err), "info: cannot read %s", o->args[0]);
	}
	return finish_stdout(EXIT_OK);
}

/* ---- verify ---- */

static void print_verified(const struct opts *o, const char *name, const struct wpt_chain_info *ci, int err)
{
	char size[UNITS_TEXT];

	if (o->json) {
		json_begin(stdout, "verify");
		json_str(stdout, "chain", name);
		json_bool(stdout, "ok", !err);
		if (!err) {
			json_u64(stdout, "links", ci->nr_links);
			json_u64(stdout, "bytes_stored", ci->bytes_stored);
		} else {
			json_i64(stdout, "code", err);
			json_str(stdout, "error", wpt_strerror(err));
		}
		json_end(stdout);
	} else if (!o->quiet && !err) {
		print_name(stdout, name);
		printf(": ok, %u links, %s\n", ci->nr_links, format_size(size, ci->bytes_stored));
	}
}

static int verify_one(const struct opts *o, const char *name)
{
	struct wpt_chain_info ci = { .size = sizeof(ci) };
	struct progress p;
	struct wpt_chain *c;
	int err;

	err = open_chain(o, name, &c);
	if (!err) {
		progress_begin(&p, "verify", o->quiet);
		err = wpt_chain_verify(c, progress_update, &p);
		if (!err)
			err = wpt_chain_info(c, &ci);
		wpt_chain_close(c);
		progress_end(&p, err);
		if (err)
			report(err, next_read(err), "verify: %s", name);
	}
	print_verified(o, name, &ci, err);
	return exit_code_of(err);
}

int cmd_verify(const struct opts *o)
{
	int i, code, worst = EXIT_OK;

	for (i = 0; i < o->nr_args; i++) {
		code = verify_one(o, o->args[i]);
		if (code == EXIT_DAMAGED || !worst)
			worst = code;
	}
	return finish_stdout(worst);
}

/* ---- diff ---- */

enum { IN_A = 1, IN_B = 2 };

struct diff {
	const struct opts *o;
	uint32_t page_size;
};

static int on_difference(void *arg, uint64_t start, uint64_t end, uint32_t tracked_in)
{
	static const char *const words[] = { "neither", "only in A", "only in B", "both" };
	static const char *const keys[] = { "none", "a", "b", "both" };
	const struct diff *d = arg;
	uint64_t pages = (end - start) / d->page_size;

	if (d->o->json) {
		json_begin(stdout, "diff");
		json_addr(stdout, "start", start);
		json_addr(stdout, "end", end);
		json_u64(stdout, "pages", pages);
		json_str(stdout, "in", keys[tracked_in & (IN_A | IN_B)]);
		json_end(stdout);
		return 0;
	}
	if (d->o->quiet)
		return 1;
	printf("%" PRIx64 "-%" PRIx64 "  %" PRIu64 " pages", start, end, pages);
	if ((tracked_in & (IN_A | IN_B)) != (IN_A | IN_B))
		printf("  %s", words[tracked_in & (IN_A | IN_B)]);
	putchar('\n');
	return 0;
}

static int diff_chains(struct diff *d, struct wpt_chain *a, struct wpt_chain *b)
{
	struct wpt_chain_info ci = { .size = sizeof(ci) };
	int err;

	err = wpt_chain_info(a, &ci);
	if (err)
		return err;
	d->page_size = ci.page_size;
	return wpt_chain_diff(a, b, on_difference, d);
}

int cmd_diff(const struct opts *o)
{
	struct diff d = { .o = o };
	struct wpt_chain *a = NULL, *b = NULL;
	int result;

	if (open_chain(o, o->args[0], &a) || open_chain(o, o->args[1], &b)) {
		wpt_chain_close(a);
		return EXIT_USAGE;
	}
	result = diff_chains(&d, a, b);
	wpt_chain_close(a);
	wpt_chain_close(b);
	if (result < 0) {
		fflush(stdout);
		report(result, next_read(result), "diff: cannot compare %s and %s", o->args[0], o->args[1]);
		return EXIT_USAGE;
	}
	return finish_stdout(EXIT_OK) ? EXIT_USAGE : result != 0;
}
