/* SPDX-License-Identifier: MIT */
/* wpsnap merge and restore: what writes from chains. */
#include "wpsnap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int open_chain(const struct opts *o, struct wpt_chain **c)
{
	int err;

	*c = NULL;
	err = wpt_chain_open(c, o->args[0]);
	return err ? report(err, next_read(err), "%s: cannot open %s", o->cmd->name, o->args[0]) : EXIT_OK;
}

/* An error while a chain is written to the output may be of either. */
static int report_output(const struct opts *o, int err)
{
	const char *next = next_read(err);

	if (err == -ECANCELED)
		return EXIT_FAILED;
	if (exit_code_of(err) == EXIT_DAMAGED)
		return report(err, next, "%s: cannot read %s", o->cmd->name, o->args[0]);
	return report(err, next_write(err), "%s: cannot write %s", o->cmd->name, o->output);
}

int cmd_merge(const struct opts *o)
{
	struct wpt_merge_options mo = { .size = sizeof(mo) };
	struct wpt_chain *c;
	struct progress p;
	int code, err;

	code = open_chain(o, &c);
	if (code)
		return code;
	progress_begin(&p, "merge", o->quiet);
	mo.level = o->level;
	mo.nr_threads = o->nr_threads;
	mo.progress = progress_update;
	mo.arg = &p;
	err = wpt_chain_merge(c, o->output, &mo);
	wpt_chain_close(c);
	progress_end(&p, err);
	return err ? report_output(o, err) : EXIT_OK;
}

/* ---- restore ---- */

/* By the name in the chain, or by that of a memfd or a file that was deleted, as the kernel shows them. */
static int find_named(struct wpt_chain *c, const char *spec, struct wpt_range_info *ri)
{
	static const char *const forms[] = { "%s", "%s (deleted)", "memfd:%s (deleted)" };
	int err = -WPT_E_NOT_TRACKED;
	char *name;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(forms) && err == -WPT_E_NOT_TRACKED; i++) {
		if (asprintf(&name, forms[i], spec) < 0)
			return -ENOMEM;
		err = wpt_chain_find(c, name, ri);
		free(name);
	}
	return err;
}

static int find_range(const struct opts *o, struct wpt_chain *c, const char *spec, uint64_t *start, uint64_t *end)
{
	struct wpt_range_info ri = { .size = sizeof(ri) };
	int err;

	if (parse_hex_range(spec, start, end) == 0)
		return EXIT_OK;
	err = find_named(c, spec, &ri);
	if (err) {
		complain("restore: %s: the range '%s': %s; wpsnap info lists the ranges", o->args[0], spec, wpt_strerror(err));
		return exit_code_of(err);
	}
	*start = ri.start;
	*end = ri.end;
	return EXIT_OK;
}

static bool names_folder(const char *path)
{
	size_t len = strlen(path);

	return len > 0 && path[len - 1] == '/';
}

/* What to restore: EXIT_OK and one range, or *folder. */
static int choose(const struct opts *o, struct wpt_chain *c, uint64_t *start, uint64_t *end, bool *folder)
{
	struct wpt_chain_info ci = { .size = sizeof(ci) };
	struct wpt_range_info ri = { .size = sizeof(ri) };
	int err;

	*folder = false;
	if (o->nr_ranges) {
		if (names_folder(o->output))
			return usage_error(o->cmd, "--range gives one file, but '%s' names a folder", o->output);
		return find_range(o, c, o->ranges[0], start, end);
	}
	err = wpt_chain_info(c, &ci);
	if (!err && ci.nr_ranges == 1 && !names_folder(o->output)) {
		err = wpt_chain_range(c, 0, &ri);
		*start = ri.start;
		*end = ri.end;
	} else if (!err && strcmp(o->output, "-") == 0) {
		return usage_error(o->cmd, "the chain has %u ranges; only one goes to standard output: choose it by --range", ci.nr_ranges);
	} else {
		*folder = true;
	}
	return err ? report(err, next_read(err), "restore: cannot read %s", o->args[0]) : EXIT_OK;
}

/* The library wants a folder's name without a slash at its end. */
static char *without_slashes(const char *path)
{
	char *copy = strdup(path);
	size_t len;

	if (!copy)
		return NULL;
	for (len = strlen(copy); len > 1 && copy[len - 1] == '/'; len--)
		copy[len - 1] = '\0';
	return copy;
}

static int restore_to(const struct opts *o, struct wpt_chain *c, bool folder, uint64_t start, uint64_t end, uint64_t *unreadable)
{
	struct progress p;
	char *path = NULL;
	int err;

	progress_begin(&p, "restore", o->quiet);
	if (folder) {
		path = without_slashes(o->output);
		err = path ? wpt_chain_restore_folder(c, path, unreadable, progress_update, &p) : -ENOMEM;
	} else {
		err = wpt_chain_restore_file(c, start, end, o->output, unreadable, progress_update, &p);
	}
	wpt_chain_close(c);
	progress_end(&p, err);
	free(path);
	return err;
}

int cmd_restore(const struct opts *o)
{
	uint64_t start = 0, end = 0, unreadable = 0;
	struct wpt_chain *c;
	bool folder;
	int code, err;

	code = open_chain(o, &c);
	if (code)
		return code;
	wpt_chain_set_threads(c, o->nr_threads);
	code = choose(o, c, &start, &end, &folder);
	if (code) {
		wpt_chain_close(c);
		return code;
	}
	err = restore_to(o, c, folder, start, end, &unreadable);
	if (err)
		return report_output(o, err);
	if (!unreadable)
		return EXIT_OK;
	complain("restore: %" PRIu64 " pages were not readable when the snapshot was taken; they are zeros in %s", unreadable, o->output);
	return EXIT_SKIPPED;
}
