/* SPDX-License-Identifier: MIT */
/*
 * wpsnap: what its files share. Uses the library's public header only.
 *
 * Functions named cmd_* and session_* return an exit code (enum exit_code) and have printed what went wrong; others return 0 or the
 * library's negative error and print nothing, unless their entry says otherwise.
 */
#ifndef WPSNAP_H
#define WPSNAP_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "wptrack.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

enum exit_code {
	EXIT_OK = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_DAMAGED = 3,
	EXIT_SKIPPED = 4,
	EXIT_GONE = 5,
	EXIT_STORE = 6
};

enum command_id {
	CMD_PROBE = 1u << 0,
	CMD_SAVE = 1u << 1,
	CMD_WATCH = 1u << 2,
	CMD_RUN = 1u << 3,
	CMD_INFO = 1u << 4,
	CMD_VERIFY = 1u << 5,
	CMD_DIFF = 1u << 6,
	CMD_MERGE = 1u << 7,
	CMD_RESTORE = 1u << 8,
	CMD_QEMU_SAVE = 1u << 9,
	CMD_QEMU_WATCH = 1u << 10,
	CMD_QEMU_RESTORE = 1u << 11,
	CMD_PRUNE = 1u << 12
};

struct opts;

struct command {
	const char *name;
	uint32_t id;
	int min_args, max_args;    /* besides options; max < 0: any number */
	bool rest;                 /* options end at the first argument */
	bool needs_output;         /* -o must be given */
	const char *synopsis;
	const char *purpose;
	int (*run)(const struct opts *o);
};

/* What the command line said. Pointers are into argv. */
struct opts {
	const struct command *cmd;
	char **args;
	int nr_args;
	const char *output;
	const char *parent;
	const char **ranges;
	size_t nr_ranges;
	uint32_t mode;             /* enum wpt_mode */
	uint32_t backend;          /* enum wpt_backend */
	int level;                 /* 0: not given */
	uint32_t nr_threads;       /* 0: not given */
	uint64_t staging;          /* bytes, 0: not given */
	uint32_t hot_set;          /* enum wpt_hot_set */
	uint32_t max_rounds;       /* as in wpt_take_options */
	uint32_t target_pause_us;  /* 0: not given */
	uint32_t stop_timeout_ms;  /* 0: not given */
	uint64_t every_ns;
	uint64_t count;            /* 0: no end */
	uint32_t keep;             /* links, 0: all */
	pid_t pid;                 /* of QEMU, 0: not given */
	uint64_t device_limit;     /* bytes, 0: not given */
	bool new_chain, verify_content, sole_writer, refuse, collapse, registers, cmdline, json, quiet, paused, with_disks, lazy, dry_run;
	bool help, version;
};

/* ---- opts.c ---- */

/* Returns EXIT_OK, or EXIT_USAGE and has said why. Free with opts_free(). */
int opts_parse(struct opts *o, const struct command *cmd, int argc, char **argv);
void opts_free(struct opts *o);
void opts_help(FILE *f, const struct command *cmd);
/* An argument names a place that this version can reach: EXIT_OK or EXIT_USAGE. */
int opts_check_place(const struct command *cmd, const char *place, bool input);

/* ---- units.c ---- */

int parse_u64(const char *s, uint64_t *out);           /* decimal digits only */
int parse_int(const char *s, int min, int max, int *out);
int parse_size(const char *s, uint64_t *bytes);        /* -EINVAL, -ERANGE */
int parse_duration(const char *s, uint64_t *ns);
int parse_hex_range(const char *s, uint64_t *start, uint64_t *end); /* -EINVAL: not of that form; -ERANGE: empty or too large */
int parse_pid(const char *s, pid_t *pid);

#define UNITS_TEXT 32
const char *format_size(char text[UNITS_TEXT], uint64_t bytes);
const char *format_duration(char text[UNITS_TEXT], uint64_t ns);

/* ---- report.c ---- */

/* "wpsnap: WHAT: WHY; NEXT" on stderr, where NEXT (may be NULL) says what to do. Returns the exit code for `err`. */
int report(int err, const char *next, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* "wpsnap: TEXT" on stderr. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* As complain(), for wrong usage of `cmd` (may be NULL); points to --help; returns EXIT_USAGE. */
int usage_error(const struct command *cmd, const char *format, ...) __attribute__((format(printf, 2, 3)));
int exit_code_of(int err);
/* What to do next about an error when attaching, writing, reading. NULL: nothing to add. */
const char *next_attach(int err);
const char *next_write(int err);
const char *next_read(int err);
/* Prints a name from outside with control characters escaped. */
void print_name(FILE *f, const char *name);
/* Ends a command that printed to stdout: EXIT_FAILED and a message if that failed, else `code`. */
int finish_stdout(int code);
const char *kind_name(uint32_t kind);
const char *reason_name(uint32_t reason);   /* one word, for JSON */
const char *reason_text(uint32_t reason);   /* in words */
const char *mode_name(uint32_t mode);
const char *backend_name(uint32_t backend);
const char *rounds_end_name(uint32_t rounds_end);

/* ---- json.c: one object a line ---- */

void json_begin(FILE *f, const char *type);
void json_str(FILE *f, const char *key, const char *value); /* NULL: null */
void json_u64(FILE *f, const char *key, uint64_t value);
void json_i64(FILE *f, const char *key, int64_t value);
void json_addr(FILE *f, const char *key, uint64_t value);
void json_bool(FILE *f, const char *key, bool value);
void json_open(FILE *f, const char *key);                   /* an object inside */
void json_close(FILE *f);
void json_end(FILE *f);

/* ---- progress.c ---- */

/*
 * SIGINT and SIGTERM: the first asks for an end that leaves nothing behind, the second ends at once. interrupt_finish() ends the process
 * by the signal if an operation was cancelled for it (`err` is -ECANCELED).
 */
void interrupt_catch(void);
bool interrupt_asked(void);
void interrupt_finish(const char *what, int err);

/* A bar on stderr if that is a terminal. Interrupts cancel: the operation returns -ECANCELED. */
struct progress {
	const char *what;
	uint64_t begin_ns, last_ns;
	bool shown, enabled;
};
void progress_begin(struct progress *p, const char *what, bool quiet);
int progress_update(void *p, uint64_t done, uint64_t total); /* a wpt_progress */
/* Takes the bar away. If a signal cancelled, cleans up and ends the process by that signal. */
void progress_end(struct progress *p, int err);
uint64_t now_ns(void);

/* ---- spec.c: ranges of a live process ---- */

struct span {
	uint64_t start, end;
};
struct spans {
	struct span *v;
	size_t nr;
};
/*
 * Resolves all SPECs against /proc/PID/maps into ascending spans that do not overlap. -ESRCH, -EINVAL (not on page boundaries),
 * -WPT_E_NOT_TRACKED (no mapping of that name), other -errno; *bad is the SPEC that failed.
 */
int spec_resolve(pid_t pid, const char *const *specs, size_t nr, struct spans *out, const char **bad);

/* ---- proc.c: what a pid is, before it is attached to ---- */

/* EXIT_OK and a pidfd, or an exit code; has said why. */
int proc_open(const struct command *cmd, const char *arg, pid_t *pid, int *pidfd);
int proc_open_pid(const struct command *cmd, pid_t pid, int *pidfd);

/* ---- events.c: what a watch waits for ---- */

struct events {
	int signals, timer;
	int pass_on;              /* a pidfd that gets SIGINT and SIGTERM; -1: they end the watch */
	bool signal, period, end; /* what came: SIGUSR1, the timer, SIGINT or SIGTERM */
};

/* Blocks the signals; `mask` (may be NULL) gets the mask as it was. Returns an exit code, and has said why. */
int events_open(struct events *e, const struct command *cmd, sigset_t *mask);
void events_close(struct events *e);
/* Periods count from here. 0 leaves the timer off. */
void events_start_timer(struct events *e, uint64_t every_ns);
/* Waits for something of it; gone[i]: the process of pidfds[i] (-1: none) has ended. */
int events_wait(struct events *e, const int *pidfds, bool *gone, size_t nr);

/* ---- session.c: a tracker and a writer, for save, watch and run ---- */

/* A range that was reported: each is once, until it changes. */
struct note {
	uint64_t start, end;
	uint32_t reason, skipped;
};
struct notes {
	struct note *v;
	size_t nr;
};

struct vm;

struct session {
	const struct opts *o;
	pid_t pid;
	struct vm *vm;            /* the virtual machine that it is, or NULL */
	const char *output;       /* NULL: where the options say */
	const char *label;        /* begins its lines, NULL: nothing does */
	FILE *out;                /* for the lines of links, */
	bool lines;               /* if there are to be any */
	bool out_failed;          /* the reader of the lines has gone */
	struct wpt_tracker *tracker;
	struct wpt_writer *writer;
	struct notes notes;       /* as of the last link */
	uint64_t nr_links;        /* complete */
	bool skipped;             /* by the last link */
	bool ready;               /* the line was printed */
	int last;                 /* error of the last take, 0: complete */
	uint32_t prune_wait;      /* links until pruning is tried again, */
	uint32_t prune_failed;    /* and how many it were after the last failure */
};

/* `dest` is an enum wpt_dest; `new_chain` in addition to what the options say. */
int session_open(struct session *s, const struct opts *o, pid_t pid, uint32_t dest, bool new_chain);
/* Takes one link and prints its line or why it failed. Returns the library's error. */
int session_take(struct session *s, const char *trigger);
/* cmd_prune.c: after a link, what --keep says. Prints a line if links went, or why they could not. */
void session_prune(struct session *s);
/* Prints "ready". */
void session_ready(struct session *s);
void session_end(struct session *s, const char *reason);
void session_close(struct session *s);

/* ---- commands ---- */

int cmd_probe(const struct opts *o);
int cmd_save(const struct opts *o);
int cmd_watch(const struct opts *o);
int cmd_run(const struct opts *o);
int cmd_info(const struct opts *o);
int cmd_verify(const struct opts *o);
int cmd_diff(const struct opts *o);
int cmd_merge(const struct opts *o);
int cmd_prune(const struct opts *o);
int cmd_restore(const struct opts *o);
int cmd_qemu_save(const struct opts *o);
int cmd_qemu_watch(const struct opts *o);
int cmd_qemu_restore(const struct opts *o);

#endif
