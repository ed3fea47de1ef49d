/* SPDX-License-Identifier: MIT */
/*
 * What the benchmarks share: series of measured values, the table, realistic data, a target process, and the kernel interface for
 * the peers that are measured by hand. Of the library they use the public header only.
 *
 * WPT_REPEATS and WPT_BENCH_SIZE change the number of repeats and the memory in use; peers are measured in alternation with the
 * library, in the same process and on the same memory where that is possible, and ratios are medians of the pairs' ratios.
 */
#ifndef WPT_BENCH_H
#define WPT_BENCH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "wptrack.h"

#define BENCH_PAGE 4096ull
#define BENCH_MIB (1ull << 20)
#define BENCH_GIB (1ull << 30)
#define BENCH_VALUES 256u

/* ---- values and tables ---- */

struct bench_series {
	char what[64];
	const char *unit;
	double v[BENCH_VALUES];
	unsigned int n;
};

enum bench_on { BENCH_NO_AIM, BENCH_RATIO, BENCH_MEDIAN, BENCH_P99, BENCH_MAX };

struct bench_aim {
	enum bench_on on;
	bool at_least;     /* else: at most */
	double limit;
};

void bench_series_init(struct bench_series *s, const char *unit, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void bench_series_add(struct bench_series *s, double value);
double bench_series_median(const struct bench_series *s);
/* Median of s[i] / peer[i]: what was measured in one go is compared with each other. */
double bench_series_ratio(const struct bench_series *s, const struct bench_series *peer);

void bench_table(const char *format, ...) __attribute__((format(printf, 1, 2)));
void bench_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* `peer` and `aim` may be NULL. */
void bench_row(const struct bench_series *s, const struct bench_series *peer, const struct bench_aim *aim);

/* WPT_REPEATS or the default, at most BENCH_VALUES. */
unsigned int bench_repeats(unsigned int by_default);
/* WPT_BENCH_SIZE or the default, a multiple of 2 MiB. */
uint64_t bench_size(uint64_t by_default);
/* "1.0 GiB"; of four buffers in turn. */
const char *bench_bytes(uint64_t bytes);

uint64_t bench_now_ns(void);
/* Ends the program with a message if `ret` is negative (-errno or -WPT_E_*). */
int bench_check(int ret, const char *what);
/* Ends the program with errno's message if `failed`. */
void bench_check_errno(bool failed, const char *what);
/* Ends the program as skipped (exit 77) with what is missing. */
void bench_need(uint32_t features);
/* A figure in KiB out of /proc/self/status or /proc/PID/status: "VmPTE:", "VmHWM:", "VmRSS:". */
uint64_t bench_status_kib(pid_t pid, const char *key);

/* ---- memory and its contents ---- */

uint64_t bench_random(uint64_t *state);
/* Private anonymous memory in 4 KiB pages, not touched. */
uint8_t *bench_map(uint64_t bytes);
/* Keeps the memory out of swap, if this user may: what a busy machine swaps out is no part of any figure. */
void bench_pin(uint8_t *memory, uint64_t bytes);
/*
 * One page of memory as programs have it, by number and seed: 10% zeros, 10% random bytes, the others text, records of integers and
 * pointers, and keys with values. WPT_BENCH_DATA names a file whose bytes are used instead.
 */
void bench_fill_page(uint8_t *page, uint64_t number, uint64_t seed);
void bench_fill(uint8_t *memory, uint64_t bytes, uint64_t seed);
/* The i-th of `count` different pages out of n: one at random of each of `count` equal parts. The state starts as the seed. */
uint64_t bench_scattered(uint64_t n, uint64_t i, uint64_t count, uint64_t *state);
/* Page numbers 0 ... n - 1 in random order. */
uint32_t *bench_shuffled(uint64_t n, uint64_t seed);

/* ---- a process to attach to ---- */

struct bench_target {
	pid_t pid;
	int fd;            /* commands and their answers */
	uint8_t *memory;   /* its address in the target */
	uint64_t bytes;
	volatile uint64_t *shared;  /* a page that both sides see */
	uint64_t (*serve)(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b);
};

#define BENCH_FILL 1u      /* a: seed; fills all of it */
#define BENCH_DIRTY 2u     /* a: pages, b: seed; new contents for that many pages, bench_scattered() */
#define BENCH_TOUCH 3u     /* a: pages, b: seed; changes eight bytes of each instead */
#define BENCH_OWN 16u      /* from here on: serve() */

/* Forks a process that maps `bytes` of memory and obeys commands; it dies with this one. */
void bench_target_start(struct bench_target *t, uint64_t bytes,
			uint64_t (*serve)(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b));
uint64_t bench_target_do(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b);
void bench_target_stop(struct bench_target *t);

/* wpt_tracker_attach() that waits longer for the target's threads, so that a busy machine slows a benchmark and does not end it. */
void bench_attach(struct wpt_tracker **out, pid_t pid);

/* A folder of its own in tmpfs (/dev/shm, else TMPDIR), removed by bench_folder_remove(). */
void bench_folder_make(char path[64]);
void bench_folder_remove(const char *path);

/* ---- the kernel, for the peers ---- */

/* Not in the headers of Debian 12. */
struct bench_region {
	uint64_t start, end, categories;
};

struct bench_scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define BENCH_PAGEMAP_SCAN 0xc0606610ul
#define BENCH_PM_WP_MATCHING (1u << 0)
#define BENCH_PM_CHECK_WPASYNC (1u << 1)
#define BENCH_IS_WRITTEN (1u << 1)
#define BENCH_IS_PRESENT (1u << 3)
#define BENCH_IS_SWAPPED (1u << 4)
#define BENCH_UFFD_WP_UNPOPULATED (1u << 13)
#define BENCH_UFFD_WP_HUGETLBFS_SHMEM (1u << 12)
#define BENCH_UFFD_WP_ASYNC (1u << 15)
#define BENCH_UFFD_WP_WRITTEN (1u << 30) /* of the patch in kernel/ */
#define BENCH_UFFD_ALL_ASYNC (1u /* PAGEFAULT_FLAG_WP */ | BENCH_UFFD_WP_HUGETLBFS_SHMEM | BENCH_UFFD_WP_UNPOPULATED | BENCH_UFFD_WP_ASYNC)

/* A userfaultfd with write protection over [memory, memory + bytes); `async` as the library does it, else by a reader. */
int bench_uffd(void *memory, uint64_t bytes, bool async);
/* The same with the features that are named; and which of them this kernel offers. */
int bench_uffd_with(void *memory, uint64_t bytes, uint64_t features);
uint64_t bench_uffd_offered(void);
/* UFFDIO_WRITEPROTECT of all of it in one call. */
void bench_uffd_protect(int uffd, void *memory, uint64_t bytes, bool protect);

#endif
