/* SPDX-License-Identifier: MIT */
/*
 * What the programs of `make bench-peers` share: processes that are started and ended by their pid, also when the benchmark fails or is
 * interrupted, and `wpsnap` (WPSNAP, else the one beside the benchmark in the build folder), run as anyone would run it.
 */
#ifndef WPT_PEER_H
#define WPT_PEER_H

#include "bench.h"

/* A folder of the benchmark's own in tmpfs; it and every process of peer_start() go when the program ends. */
const char *peer_folder(void);
/* A path in that folder; stays for good. */
const char *peer_path(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Whether PATH has this program. */
bool peer_found(const char *program);
/* Ends as skipped (77) unless PATH has it; `package` is Debian's. */
void peer_need(const char *program, const char *package);

/* Output goes to the file `out` of the folder, errors to `out`.err. The arguments end with NULL. */
pid_t peer_start(const char *out, const char *const argv[]);
/* Waits for its end. Returns the exit status, or 128 + the signal; the peak RSS in KiB to *peak_kib, which may be NULL. */
int peer_wait(pid_t pid, uint64_t *peak_kib);
/* SIGTERM, SIGKILL if that has no effect within five seconds. */
void peer_stop(pid_t pid);
bool peer_alive(pid_t pid);
/* Starts and waits; a failure ends the program with what it said. Returns the time it took. */
uint64_t peer_run(const char *out, const char *const argv[], uint64_t *peak_kib);
/* Ends the program with a message and the end of out.err. */
void peer_fail(const char *out, const char *what) __attribute__((noreturn));

uint64_t peer_file_size(const char *path);
/* Reads a file of text into a static buffer of 256 KiB, ended by a NUL; "" if there is none. */
const char *peer_text(const char *path);
/* The number after "key": in one line of JSON, or after key: in Redis' INFO; 0 if there is none. */
double peer_number(const char *text, const char *key);

const char *peer_wpsnap(void);

struct peer_link {
	double pause_ms, total_ms, stored_mib, peak_mib;
	double wall_ms;   /* of the process, with attaching and its end */
};

/* `wpsnap save PID`, of one range if `range` is not NULL, to a file in the folder, which is removed; `option` is one more, or NULL. */
struct peer_link peer_save(pid_t pid, const char *range, const char *option);
/* What a line of `wpsnap --json` says of a link. */
struct peer_link peer_link_of(const char *line);

#endif
