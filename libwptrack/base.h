/* SPDX-License-Identifier: MIT */
/*
 * What every layer uses: integer helpers, memory that is not malloc's, the option struct check, logging.
 *
 * Between quiesce and resume of the own process a stopped thread may hold malloc's lock. Whatever runs there takes
 * memory from wpt_vm_alloc() or was allocated before.
 */
#ifndef WPT_BASE_H
#define WPT_BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

#include "wptrack.h"

#define WPT_MIN(a, b) ((a) < (b) ? (a) : (b))
#define WPT_MAX(a, b) ((a) > (b) ? (a) : (b))
#define WPT_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define WPT_ALIGN_DOWN(x, a) ((x) & ~((uint64_t)(a)-1))
#define WPT_ALIGN_UP(x, a) WPT_ALIGN_DOWN((x) + (a)-1, a)

/* Zeroed private memory, outside malloc. NULL: no memory. */
void *wpt_vm_alloc(size_t bytes);
void wpt_vm_free(void *p, size_t bytes);

/* A growable array outside malloc. Zero-initialize; elements are copied on growth. */
struct wpt_vec {
	void *data;
	size_t count;     /* elements in use */
	size_t bytes;     /* mapped */
	size_t elem_size;
};
#define WPT_VEC(type) { NULL, 0, 0, sizeof(type) }
#define wpt_vec_at(v, type, i) (&((type *)(v)->data)[i])
/* A new zeroed element at the end, or NULL. */
void *wpt_vec_push(struct wpt_vec *v);
void wpt_vec_clear(struct wpt_vec *v);
void wpt_vec_free(struct wpt_vec *v);

static inline bool wpt_add_overflows(uint64_t a, uint64_t b, uint64_t *sum)
{
	return __builtin_add_overflow(a, b, sum);
}

static inline bool wpt_mul_overflows(uint64_t a, uint64_t b, uint64_t *product)
{
	return __builtin_mul_overflow(a, b, product);
}

uint64_t wpt_now_ns(void); /* CLOCK_MONOTONIC */

/*
 * Copies the caller's option struct `from` (size first; NULL: all defaults) to `to` of `size` bytes. -EINVAL if the caller's is
 * larger and its tail is not zero, or smaller than `min`.
 */
int wpt_options_copy(void *to, size_t size, const void *from, size_t min);

/* The reverse, for out structs: copies min(to->size, size) bytes and keeps to->size. */
int wpt_info_copy(void *to, const void *from, size_t size, size_t min);

struct wpt_log {
	void (*fn)(void *arg, enum wpt_log_level level, const char *message);
	void *arg;
};

void wpt_logf(const struct wpt_log *log, enum wpt_log_level level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#endif
