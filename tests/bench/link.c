/* SPDX-License-Identifier: MIT */
/*
 * The time of a link (mode pause) by the share of the memory that was written since the last one, and how long the target stood still.
 * The floor is the same pages, known beforehand, read by hand and compressed at the same level by two threads: without finding them,
 * hashing, comparing, indexing or order.
 */
#include "bench.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>
#include <zstd.h>

#define BATCH 256u

static struct bench_target target;
static char folder[64];
static uint64_t *pages;
static uint64_t nr_pages;
static atomic_uint_fast64_t next_page, next_byte;
static int out;

/* Takes batches of pages until there are none: read, compress, write. */
static void *copy_pages(void *arg)
{
	size_t room = ZSTD_compressBound(BATCH * BENCH_PAGE);
	uint8_t *plain = malloc(BATCH * BENCH_PAGE), *packed = malloc(room);
	ZSTD_CCtx *ctx = ZSTD_createCCtx();
	struct iovec remote[BATCH], local = { plain, 0 };
	uint64_t from;

	(void)arg;
	bench_check_errno(!plain || !packed || !ctx, "malloc");
	while ((from = atomic_fetch_add(&next_page, BATCH)) < nr_pages) {
		uint64_t n = nr_pages - from < BATCH ? nr_pages - from : BATCH;
		size_t len;

		for (uint64_t i = 0; i < n; i++)
			remote[i] = (struct iovec){ target.memory + pages[from + i] * BENCH_PAGE, BENCH_PAGE };
		local.iov_len = n * BENCH_PAGE;
		bench_check_errno(process_vm_readv(target.pid, &local, 1, remote, n, 0) != (ssize_t)local.iov_len, "process_vm_readv");
		len = ZSTD_compressCCtx(ctx, packed, room, plain, local.iov_len, 1);
		bench_check_errno(ZSTD_isError(len), "zstd");
		bench_check_errno(pwrite(out, packed, len, (off_t)atomic_fetch_add(&next_byte, len)) != (ssize_t)len, "pwrite");
	}
	ZSTD_freeCCtx(ctx);
	free(plain);
	free(packed);
	return NULL;
}

static double by_hand(uint64_t seed)
{
	uint64_t state = seed, t0;
	pthread_t threads[2];
	char path[96];

	for (uint64_t i = 0; i < nr_pages; i++)
		pages[i] = bench_scattered(target.bytes / BENCH_PAGE, i, nr_pages, &state);
	snprintf(path, sizeof(path), "%s/by-hand", folder);
	unlink(path);
	out = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	bench_check_errno(out < 0, path);
	next_page = next_byte = 0;
	t0 = bench_now_ns();
	for (unsigned int i = 0; i < 2; i++)
		bench_check_errno(pthread_create(&threads[i], NULL, copy_pages, NULL) != 0, "pthread_create");
	for (unsigned int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	close(out);
	t0 = bench_now_ns() - t0;
	unlink(path);
	return (double)t0 / 1e6;
}

static double take(struct wpt_writer *w, struct wpt_take_stats *stats)
{
	uint64_t t0 = bench_now_ns();
	char path[320];

	stats->size = sizeof(*stats);
	bench_check(wpt_writer_take(w, NULL, stats), "wpt_writer_take");
	t0 = bench_now_ns() - t0;
	/* The writer goes by what it knows, not by the files; those of 100% links would fill memory. */
	snprintf(path, sizeof(path), "%s/chain/%s", folder, stats->file);
	unlink(path);
	return (double)t0 / 1e6;
}

static void measure(struct wpt_writer *w, double share, unsigned int repeats)
{
	struct bench_series hand, link, pause, stored;
	struct wpt_take_stats stats;
	static uint64_t seed = 2;

	nr_pages = (uint64_t)((double)(target.bytes / BENCH_PAGE) * share);
	nr_pages = nr_pages ? nr_pages : 1;
	bench_series_init(&hand, "ms", "%g%% dirty (%s): by hand", share * 100, bench_bytes(nr_pages * BENCH_PAGE));
	bench_series_init(&link, "ms", "  link");
	bench_series_init(&pause, "ms", "  of which the target was stopped");
	bench_series_init(&stored, "MiB", "  stored");
	for (unsigned int i = 0; i < repeats; i++) {
		bench_target_do(&target, BENCH_DIRTY, nr_pages, ++seed);
		bench_series_add(&hand, by_hand(seed));
		bench_series_add(&link, take(w, &stats));
		bench_series_add(&pause, (double)stats.pause_ns / 1e6);
		bench_series_add(&stored, (double)stats.bytes_stored / (double)BENCH_MIB);
		if (stats.pages_dirty < nr_pages || stats.pages_dirty > nr_pages + nr_pages / 100 + 16) {
			fprintf(stderr, "%llu pages were written, the link found %llu\n", (unsigned long long)nr_pages,
				(unsigned long long)stats.pages_dirty);
			exit(1);
		}
	}
	bench_row(&hand, NULL, NULL);
	bench_row(&link, &hand, NULL);
	bench_row(&pause, &hand, NULL);
	bench_row(&stored, NULL, NULL);
}

int main(void)
{
	static const double shares[] = { 0.001, 0.01, 0.1, 1 };
	struct wpt_writer_options options = { .size = sizeof(options), .flags = WPT_WRITER_NO_SYNC, .nr_threads = 2, .level = 1 };
	unsigned int repeats = bench_repeats(9);
	struct wpt_range range = { .size = sizeof(range) };
	struct wpt_take_stats stats;
	struct wpt_tracker *t;
	struct wpt_writer *w;
	char chain[96];

	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	bench_target_start(&target, bench_size(BENCH_GIB), NULL);
	bench_target_do(&target, BENCH_FILL, 1, 0);
	pages = malloc(target.bytes / BENCH_PAGE * sizeof(*pages));
	bench_check_errno(!pages, "malloc");
	bench_folder_make(folder);
	snprintf(chain, sizeof(chain), "%s/chain", folder);
	range.start = (uintptr_t)target.memory;
	range.end = range.start + target.bytes;
	bench_attach(&t, target.pid);
	bench_check(wpt_range_add(t, &range), "wpt_range_add");
	bench_check(wpt_writer_open(&w, t, chain, &options), "wpt_writer_open");
	take(w, &stats);
	bench_table("time of a link by what was written, %s, level 1, two threads, tmpfs, up to %u repeats",
		    bench_bytes(target.bytes), repeats);
	for (unsigned int s = 0; s < sizeof(shares) / sizeof(*shares); s++)
		measure(w, shares[s], shares[s] == 1 ? (repeats + 2) / 3 : repeats);
	wpt_writer_close(w);
	wpt_tracker_close(t);
	bench_target_stop(&target);
	bench_folder_remove(folder);
	return 0;
}
