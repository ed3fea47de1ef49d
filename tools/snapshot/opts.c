/* SPDX-License-Identifier: MIT */
/*
 * The command line. One table says which option belongs to which commands, what it takes and what --help says of it.
 * Long options as --name VALUE or --name=VALUE, -o VALUE or -oVALUE; "--" ends them; no abbreviations, so that a new
 * option never changes what an old script means.
 */
#include "wpsnap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CMD_QEMU (CMD_QEMU_SAVE | CMD_QEMU_WATCH)
#define CMD_PROCESS (CMD_SAVE | CMD_WATCH | CMD_RUN)
#define CMD_TAKE (CMD_PROCESS | CMD_QEMU)
#define CMD_PERIODS (CMD_WATCH | CMD_RUN | CMD_QEMU_WATCH)
#define CMD_ALL UINT32_MAX
#define MIN_STAGING (4ull << 20)
#define MAX_DEVICE_STATE (1ull << 30)

struct option_def {
	const char *name;
	char letter;
	const char *arg;           /* what it takes, NULL: nothing */
	uint32_t commands;
	const char *help;
	/* Exactly one of these two. set() returns EXIT_OK or EXIT_USAGE. */
	int (*set)(struct opts *o, const char *value);
	size_t flag;               /* offset of a bool */
};

static int set_output(struct opts *o, const char *value)
{
	if (!*value)
		return usage_error(o->cmd, "--output is empty");
	o->output = value;
	return opts_check_place(o->cmd, value, false);
}

static int set_parent(struct opts *o, const char *value)
{
	o->parent = value;
	return opts_check_place(o->cmd, value, true);
}

static int set_range(struct opts *o, const char *value)
{
	uint64_t start, end, page = (uint64_t)sysconf(_SC_PAGESIZE);
	const char **v;
	int err;

	if (!*value)
		return usage_error(o->cmd, "--range is empty; give START-END in hexadecimal or the name of a mapping");
	err = parse_hex_range(value, &start, &end);
	if (err == -ERANGE)
		return usage_error(o->cmd, "the range '%s' is empty, backwards or larger than the address space", value);
	if (!err && o->cmd->id != CMD_RESTORE && (start % page || end % page))
		return usage_error(o->cmd, "the range '%s' does not begin and end on page boundaries; %llx-%llx does", value,
				   (unsigned long long)(start / page * page),
				   (unsigned long long)((end + page - 1) / page * page));
	if (err && o->cmd->id == CMD_RUN)
		return usage_error(o->cmd, "--range takes START-END only: the command has no mappings of its own yet");
	if (o->cmd->id == CMD_RESTORE && o->nr_ranges)
		return usage_error(o->cmd, "--range was given twice; without it every range is restored, to a folder");
	v = reallocarray(o->ranges, o->nr_ranges + 1, sizeof(*v));
	if (!v)
		return usage_error(o->cmd, "out of memory");
	o->ranges = v;
	o->ranges[o->nr_ranges++] = value;
	return EXIT_OK;
}

static int set_mode(struct opts *o, const char *value)
{
	if (strcmp(value, "pause") == 0)
		o->mode = WPT_MODE_PAUSE;
	else if (strcmp(value, "fuzzy") == 0)
		o->mode = WPT_MODE_FUZZY;
	else if (strcmp(value, "cow") == 0)
		o->mode = WPT_MODE_COW;
	else
		return usage_error(o->cmd, "--mode takes pause, cow or fuzzy, not '%s'", value);
	return EXIT_OK;
}

static int set_backend(struct opts *o, const char *value)
{
	if (strcmp(value, "auto") == 0)
		o->backend = WPT_BACKEND_AUTO;
	else if (strcmp(value, "async") == 0)
		o->backend = WPT_BACKEND_ASYNC;
	else if (strcmp(value, "sync") == 0)
		o->backend = WPT_BACKEND_SYNC;
	else
		return usage_error(o->cmd, "--backend takes auto, async or sync, not '%s'", value);
	return EXIT_OK;
}

static int set_level(struct opts *o, const char *value)
{
	if (strcmp(value, "auto") == 0)
		o->level = WPT_LEVEL_ADAPTIVE;
	else if (parse_int(value, -100, 19, &o->level) || o->level == 0)
		return usage_error(o->cmd, "--level takes auto or a whole number from -100 to 19 without 0, not '%s'", value);
	return EXIT_OK;
}

static int set_threads(struct opts *o, const char *value)
{
	int n;

	if (parse_int(value, 1, 64, &n))
		return usage_error(o->cmd, "--threads takes a whole number from 1 to 64, not '%s'", value);
	o->nr_threads = (uint32_t)n;
	return EXIT_OK;
}

static int set_staging(struct opts *o, const char *value)
{
	if (parse_size(value, &o->staging))
		return usage_error(o->cmd, "--staging takes a size such as 256M or 1.5G, not '%s'", value);
	if (o->staging < MIN_STAGING)
		return usage_error(o->cmd, "--staging %s is too little; it takes at least 4M", value);
	return EXIT_OK;
}

static int set_hot_set(struct opts *o, const char *value)
{
	if (strcmp(value, "off") != 0 && strcmp(value, "auto") != 0)
		return usage_error(o->cmd, "--hot-set takes off or auto, not '%s'", value);
	o->hot_set = value[0] == 'a' ? WPT_HOT_SET_AUTO : WPT_HOT_SET_OFF;
	return EXIT_OK;
}

static int set_rounds(struct opts *o, const char *value)
{
	int n;

	if (parse_int(value, 0, 1000, &n))
		return usage_error(o->cmd, "--rounds takes a whole number from 0 to 1000, not '%s'", value);
	o->max_rounds = n ? (uint32_t)n : WPT_NO_ROUNDS;
	return EXIT_OK;
}

/* A time of `unit` ns to `most` of them. */
static int parse_limit(struct opts *o, const char *name, const char *value, uint64_t unit, uint64_t most, uint32_t *out)
{
	uint64_t ns;

	if (parse_duration(value, &ns) || ns < unit || ns > unit * most)
		return usage_error(o->cmd, "%s takes a time such as 1ms or 0.5s, at most an hour, not '%s'", name, value);
	*out = (uint32_t)(ns / unit);
	return EXIT_OK;
}

static int set_target_pause(struct opts *o, const char *value)
{
	return parse_limit(o, "--target-pause", value, 1000, 3600000000u, &o->target_pause_us);
}

static int set_stop_timeout(struct opts *o, const char *value)
{
	return parse_limit(o, "--stop-timeout", value, 1000000, 3600000, &o->stop_timeout_ms);
}

static int set_every(struct opts *o, const char *value)
{
	if (parse_duration(value, &o->every_ns))
		return usage_error(o->cmd, "--every takes a time such as 5s, 250ms or 0, not '%s'", value);
	return EXIT_OK;
}

static int set_count(struct opts *o, const char *value)
{
	if (parse_u64(value, &o->count) || o->count == 0)
		return usage_error(o->cmd, "--count takes a whole number from 1 up, not '%s'", value);
	return EXIT_OK;
}

static int set_keep(struct opts *o, const char *value)
{
	uint64_t n;

	if (parse_u64(value, &n) || n == 0 || n > INT32_MAX)
		return usage_error(o->cmd, "--keep takes a whole number from 1 up, not '%s'", value);
	o->keep = (uint32_t)n;
	return EXIT_OK;
}

static int set_pid(struct opts *o, const char *value)
{
	if (parse_pid(value, &o->pid))
		return usage_error(o->cmd, "--pid '%s' is not the pid of a process", value);
	return EXIT_OK;
}

static int set_device_limit(struct opts *o, const char *value)
{
	if (parse_size(value, &o->device_limit) || o->device_limit == 0 || o->device_limit > MAX_DEVICE_STATE)
		return usage_error(o->cmd, "--device-limit takes a size such as 64M, at most 1G, not '%s'", value);
	return EXIT_OK;
}

#define FLAG(member) NULL, offsetof(struct opts, member)

static const struct option_def options[] = {
	{ "output", 'o', "OUT", CMD_TAKE | CMD_MERGE | CMD_RESTORE, "where to write; - is standard output where a file will do",
	  set_output, 0 },
	{ "parent", 0, "CHAIN", CMD_SAVE | CMD_QEMU_SAVE, "store only what differs from this chain", set_parent, 0 },
	{ "every", 0, "TIME", CMD_PERIODS, "period of links, 5s by default; 0: on SIGUSR1 only", set_every, 0 },
	{ "count", 0, "N", CMD_PERIODS, "end after N links, the base and failed attempts included", set_count, 0 },
	{ "keep", 0, "N", CMD_PERIODS | CMD_PRUNE, "keep the last N links: the oldest of them becomes full, those before it go", set_keep, 0 },
	{ "dry-run", 0, NULL, CMD_PRUNE, "only print what would be done", FLAG(dry_run) },
	{ "new", 0, NULL, CMD_PERIODS, "start a new chain beside another target's", FLAG(new_chain) },
	{ "range", 0, "SPEC", CMD_PROCESS | CMD_RESTORE, "only START-END in hexadecimal, or the mapping of this name", set_range, 0 },
	{ "mode", 0, "MODE", CMD_PROCESS, "pause (default) or cow: one instant of all memory; fuzzy: no pause", set_mode, 0 },
	{ "backend", 0, "BACKEND", CMD_TAKE, "async: the kernel notes writes; sync: wpsnap resolves them; auto: what there is", set_backend, 0 },
	{ "level", 0, "N", CMD_TAKE | CMD_MERGE | CMD_PRUNE, "zstd level, -100 (fastest) to 19, or auto; 1 by default", set_level, 0 },
	{ "threads", 0, "N", CMD_TAKE | CMD_MERGE | CMD_RESTORE | CMD_QEMU_RESTORE | CMD_PRUNE,
	  "threads that (un)compress; by default one for each CPU", set_threads, 0 },
	{ "verify-content", 0, NULL, CMD_TAKE, "compare mappings of files by content at every link", FLAG(verify_content) },
	{ "assume-sole-writer", 0, NULL, CMD_TAKE, "trust that nobody else writes to the target's shared files",
	  FLAG(sole_writer) },
	{ "staging", 0, "SIZE", CMD_TAKE, "memory for copied pages, 256M by default", set_staging, 0 },
	{ "refuse", 0, NULL, CMD_TAKE, "fail rather than pause for longer when staging is full", FLAG(refuse) },
	{ "hot-set", 0, "POLICY", CMD_PERIODS, "auto: pages that are always written are left unprotected; off by default", set_hot_set, 0 },
	{ "rounds", 0, "N", CMD_TAKE, "copies while the target runs, before it is stopped: at most N, 16 by default", set_rounds, 0 },
	{ "target-pause", 0, "TIME", CMD_TAKE, "end rounds when copying the rest takes half of this; 1ms by default", set_target_pause, 0 },
	{ "stop-timeout", 0, "TIME", CMD_TAKE, "how long stopping the threads may take, 100ms by default", set_stop_timeout, 0 },
	{ "collapse", 0, NULL, CMD_PROCESS | CMD_QEMU_RESTORE, "give the target back the huge pages that wpsnap splits", FLAG(collapse) },
	{ "registers", 0, NULL, CMD_PROCESS, "store the registers of the threads too", FLAG(registers) },
	{ "cmdline", 0, NULL, CMD_TAKE, "store the command line too", FLAG(cmdline) },
	{ "pid", 0, "PID", CMD_QEMU, "QEMU's process, where the other end of the socket is not QEMU", set_pid, 0 },
	{ "device-limit", 0, "SIZE", CMD_QEMU, "most that the device state may be, 64M by default", set_device_limit, 0 },
	{ "with-disks", 0, NULL, CMD_QEMU | CMD_QEMU_RESTORE, "snapshots of the qcow2 disks too, at the same instant", FLAG(with_disks) },
	{ "paused", 0, NULL, CMD_QEMU_RESTORE, "do not let the guest run", FLAG(paused) },
	{ "lazy", 0, NULL, CMD_QEMU_RESTORE, "let the guest run at once, and bring its memory as it is needed", FLAG(lazy) },
	{ "json", 0, NULL, CMD_PROBE | CMD_TAKE | CMD_INFO | CMD_VERIFY | CMD_DIFF | CMD_PRUNE, "one JSON object a line", FLAG(json) },
	{ "quiet", 'q', NULL, CMD_TAKE | CMD_VERIFY | CMD_DIFF | CMD_MERGE | CMD_RESTORE | CMD_QEMU_RESTORE | CMD_PRUNE,
	  "no progress, summary and notes", FLAG(quiet) },
	{ "help", 'h', NULL, CMD_ALL, "print this", FLAG(help) },
	{ "version", 'V', NULL, CMD_ALL, "print the version", FLAG(version) },
};

static const struct option_def *find_option(const struct command *cmd, const char *name, size_t len, char letter)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(options); i++) {
		if (!(options[i].commands & cmd->id))
			continue;
		if (letter ? options[i].letter == letter : strlen(options[i].name) == len && strncmp(options[i].name, name, len) == 0)
			return &options[i];
	}
	return NULL;
}

static int apply(struct opts *o, const struct option_def *d, const char *value)
{
	if (d->set)
		return d->set(o, value);
	*(bool *)((char *)o + d->flag) = true;
	return EXIT_OK;
}

/* argv[*i] is an option; advances *i over a value of its own. */
static int parse_long(struct opts *o, int argc, char **argv, int *i)
{
	const char *name = argv[*i] + 2, *value = strchr(name, '=');
	const struct option_def *d;

	d = find_option(o->cmd, name, value ? (size_t)(value - name) : strlen(name), 0);
	if (!d)
		return usage_error(o->cmd, "there is no option '%s'", argv[*i]);
	if (!d->arg)
		return value ? usage_error(o->cmd, "--%s takes no value", d->name) : apply(o, d, NULL);
	if (value)
		return apply(o, d, value + 1);
	if (*i + 1 >= argc)
		return usage_error(o->cmd, "--%s needs a value", d->name);
	return apply(o, d, argv[++*i]);
}

static int parse_short(struct opts *o, int argc, char **argv, int *i)
{
	const struct option_def *d;
	const char *p;
	int code;

	for (p = argv[*i] + 1; *p; p++) {
		d = find_option(o->cmd, NULL, 0, *p);
		if (!d)
			return usage_error(o->cmd, "there is no option '-%c'", *p);
		if (d->arg && p[1])
			return apply(o, d, p + 1);
		if (d->arg) {
			if (*i + 1 >= argc)
				return usage_error(o->cmd, "-%c needs a value", *p);
			return apply(o, d, argv[++*i]);
		}
		code = apply(o, d, NULL);
		if (code)
			return code;
	}
	return EXIT_OK;
}

static int parse_all(struct opts *o, int argc, char **argv)
{
	int i, code = EXIT_OK;

	for (i = 0; i < argc && !code; i++) {
		if (strcmp(argv[i], "--") == 0) {
			i++;
			break;
		}
		if (argv[i][0] != '-' || !argv[i][1]) {
			if (o->cmd->rest)
				break;
			o->args[o->nr_args++] = argv[i];
			continue;
		}
		code = argv[i][1] == '-' ? parse_long(o, argc, argv, &i) : parse_short(o, argc, argv, &i);
	}
	while (i < argc && !code)
		o->args[o->nr_args++] = argv[i++];
	return code;
}

static bool has_scheme(const char *s)
{
	size_t len = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-");

	return len > 0 && strncmp(s + len, "://", 3) == 0;
}

int opts_check_place(const struct command *cmd, const char *place, bool input)
{
	struct stat st;

	if (!has_scheme(place) || (input && lstat(place, &st) == 0))
		return EXIT_OK;
	return usage_error(cmd, "'%s': URLs are not supported yet by this version; use a file or a folder", place);
}

static int check(const struct opts *o)
{
	const struct command *cmd = o->cmd;
	bool chains = cmd->id & (CMD_INFO | CMD_VERIFY | CMD_DIFF | CMD_MERGE | CMD_RESTORE | CMD_PRUNE);
	int i, code = EXIT_OK;

	if (o->nr_args < cmd->min_args)
		return usage_error(cmd, cmd->id == CMD_RUN ? "a command to run is missing" : "an argument is missing");
	if (cmd->max_args >= 0 && o->nr_args > cmd->max_args)
		return usage_error(cmd, "'%s' is one argument too many", o->args[cmd->max_args]);
	if (cmd->needs_output && !o->output)
		return usage_error(cmd, "-o is missing: it says where to write");
	if (cmd->id == CMD_PRUNE && !o->keep)
		return usage_error(cmd, "--keep N is missing: it says how many links stay");
	if (cmd->id == CMD_PRUNE && strcmp(o->args[0], "-") == 0)
		return usage_error(cmd, "a stream can't be pruned; prune takes a folder of links");
	if (o->registers && o->mode == WPT_MODE_FUZZY)
		return usage_error(cmd, "--registers needs --mode pause: threads that run have no registers to read");
	if (cmd->id == CMD_QEMU_RESTORE && o->collapse && !o->lazy)
		return usage_error(cmd, "--collapse needs --lazy: other restores split no huge pages");
	if (o->mode == WPT_MODE_COW && o->backend == WPT_BACKEND_ASYNC)
		return usage_error(cmd, "--mode cow needs --backend sync: each page is copied before its first write goes through");
	if (o->verify_content && o->sole_writer)
		return usage_error(cmd, "--verify-content and --assume-sole-writer exclude each other");
	if (o->output && strcmp(o->output, "-") == 0) {
		if (cmd->id & CMD_PERIODS)
			return usage_error(cmd, "-o needs a folder; save can write to standard output");
		if (o->parent)
			return usage_error(cmd, "--parent needs a file to write to: readers look for the parent in its folder");
		if (isatty(STDOUT_FILENO))
			return usage_error(cmd, "a snapshot is not written to a terminal; redirect standard output or name a file");
	}
	for (i = 0; chains && i < o->nr_args && !code; i++)
		code = opts_check_place(cmd, o->args[i], true);
	if (cmd->id == CMD_QEMU_RESTORE)
		code = opts_check_place(cmd, o->args[0], true);
	return code;
}

int opts_parse(struct opts *o, const struct command *cmd, int argc, char **argv)
{
	int code;

	memset(o, 0, sizeof(*o));
	o->cmd = cmd;
	o->every_ns = 5000000000;
	/* one more, NULL, for execvp() */
	o->args = calloc((size_t)argc + 1, sizeof(*o->args));
	if (!o->args)
		return report(-ENOMEM, NULL, "%s", cmd->name);
	code = parse_all(o, argc, argv);
	if (code || o->help || o->version)
		return code;
	return check(o);
}

void opts_free(struct opts *o)
{
	free(o->args);
	free(o->ranges);
}

void opts_help(FILE *f, const struct command *cmd)
{
	char left[64];
	size_t i;
	int n;

	fprintf(f, "usage: wpsnap %s %s\n\n%s\n\n", cmd->name, cmd->synopsis, cmd->purpose);
	for (i = 0; i < ARRAY_SIZE(options); i++) {
		if (!(options[i].commands & cmd->id))
			continue;
		n = options[i].letter ? snprintf(left, sizeof(left), "-%c, ", options[i].letter) : snprintf(left, sizeof(left), "    ");
		snprintf(left + n, sizeof(left) - (size_t)n, "--%s%s%s", options[i].name, options[i].arg ? " " : "",
			 options[i].arg ? options[i].arg : "");
		fprintf(f, "  %-24s  %s\n", left, options[i].help);
	}
	fputs("\nwpsnap(1) says more, also what the exit codes mean.\n", f);
}
