/* SPDX-License-Identifier: MIT */
/*
 * What tracking costs a target that uses transparent huge pages, after ten links with a few scattered writes before each: random reads and writes
 * of memory that is not tracked, tracked, and tracked with WPT_WRITER_COLLAPSE, side by side in three processes; and what that takes: links, and a
 * collapse by hand.
 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define BLOCK (2ull << 20)
#define LINKS 10u
#define ACCESSES (4ull << 20)
#define BENCH_MADV_COLLAPSE 25

#define OWN_MAP (BENCH_OWN + 0)    /* huge pages: their address */
#define OWN_TOUCH (BENCH_OWN + 1)  /* a: pages, b: seed */
#define OWN_READ (BENCH_OWN + 2)   /* b: seed; ns */
#define OWN_WRITE (BENCH_OWN + 3)

enum { UNTRACKED, TRACKED, FLAGGED, NR };

struct side {
	struct bench_target t;
	struct wpt_tracker *tracker;
	struct wpt_writer *w;
	char folder[64];
};

static uint8_t *memory;            /* the target's */

static uint8_t *map_huge(uint64_t bytes)
{
	uint8_t *p = mmap(NULL, bytes + BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	bench_check_errno(p == MAP_FAILED, "mmap");
	p = (uint8_t *)(((uintptr_t)p + BLOCK - 1) & ~(uintptr_t)(BLOCK - 1));
	bench_check_errno(madvise(p, bytes, MADV_HUGEPAGE) != 0, "MADV_HUGEPAGE");
	return p;
}

static uint64_t serve(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b)
{
	uint64_t state = b, words = t->bytes / 8, t0 = bench_now_ns(), sum = 0;
	volatile uint64_t *p = (volatile uint64_t *)memory;

	switch (command) {
	case OWN_MAP:
		memory = map_huge(t->bytes);
		bench_fill(memory, t->bytes, 1);
		return (uintptr_t)memory;
	case OWN_TOUCH:
		for (uint64_t i = 0; i < a; i++)
			*(volatile uint64_t *)(memory + bench_scattered(t->bytes / BENCH_PAGE, i, a, &state) * BENCH_PAGE) = b + i;
		return 0;
	case OWN_READ:
		for (uint64_t i = 0; i < ACCESSES; i++)
			sum += p[bench_random(&state) % words];
		t->shared[0] = sum;
		return bench_now_ns() - t0;
	default:
		for (uint64_t i = 0; i < ACCESSES; i++)
			p[bench_random(&state) % words] = i;
		return bench_now_ns() - t0;
	}
}

static void side_open(struct side *s, unsigned int which, uint64_t bytes)
{
	struct wpt_writer_options options = { .size = sizeof(options), .flags = WPT_WRITER_NO_SYNC, .nr_threads = 2, .level = -5 };
	struct wpt_range range = { .size = sizeof(range) };
	char chain[96];

	bench_target_start(&s->t, bytes, serve);
	range.start = bench_target_do(&s->t, OWN_MAP, 0, 0);
	range.end = range.start + bytes;
	if (which == UNTRACKED)
		return;
	options.staging_bytes = 2 * bytes;
	if (which == FLAGGED)
		options.flags |= WPT_WRITER_COLLAPSE;
	bench_folder_make(s->folder);
	snprintf(chain, sizeof(chain), "%s/chain", s->folder);
	bench_attach(&s->tracker, s->t.pid);
	bench_check(wpt_range_add(s->tracker, &range), "wpt_range_add");
	bench_check(wpt_writer_open(&s->w, s->tracker, chain, &options), "wpt_writer_open");
	bench_check(wpt_writer_take(s->w, NULL, NULL), "wpt_writer_take");
}

static void side_close(struct side *s)
{
	wpt_writer_close(s->w);
	wpt_tracker_close(s->tracker);
	bench_target_stop(&s->t);
	if (s->folder[0])
		bench_folder_remove(s->folder);
}

/* Of each huge page one page is protected, written and unprotected again, and it is collapsed. */
static void by_hand(struct bench_series *s, unsigned int repeats)
{
	const uint64_t bytes = 64 * BLOCK;
	uint8_t *p = map_huge(bytes);
	int uffd = bench_uffd(p, bytes, true);
	uint64_t t0;

	for (unsigned int i = 0; i < repeats; i++) {
		for (uint64_t at = 0; at < bytes; at += BENCH_PAGE)
			p[at] = 1;
		bench_uffd_protect(uffd, p, bytes, true);
		for (uint64_t at = 0; at < bytes; at += BLOCK)
			p[at] = 2;
		bench_uffd_protect(uffd, p, bytes, false);
		t0 = bench_now_ns();
		bench_check_errno(madvise(p, bytes, BENCH_MADV_COLLAPSE) != 0, "MADV_COLLAPSE");
		bench_series_add(s, (double)(bench_now_ns() - t0) / 1e3 / (double)(bytes / BLOCK));
	}
}

int main(void)
{
	static const char *const names[NR] = { "not tracked", "tracked", "with the flag" };
	static const char *const of[3] = { "reads", "writes, first pass", "  second pass" };
	static struct bench_series access[3][NR], took[NR], bytes[NR], dirty[NR], collapsed, hand;
	unsigned int repeats = bench_repeats(5);
	uint64_t size = bench_size(512 * BENCH_MIB), seed = 0;
	struct side s[NR] = { 0 };

	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	for (unsigned int i = 0; i < NR; i++) {
		side_open(&s[i], i, size);
		for (unsigned int a = 0; a < 3; a++)
			bench_series_init(&access[a][i], "ns", "%s, %s", of[a], names[i]);
		bench_series_init(&took[i], "ms", "a link, %s", names[i]);
		bench_series_init(&bytes[i], "KiB", "  size");
		bench_series_init(&dirty[i], "MiB", "  dirty");
	}
	bench_series_init(&collapsed, "MiB", "  given back");
	bench_series_init(&hand, "us", "MADV_COLLAPSE of 2 MiB by hand");
	for (unsigned int r = 0; r < repeats; r++) {
		for (unsigned int l = 0; l < LINKS; l++) {
			seed++;
			for (unsigned int i = 0; i < NR; i++) {
				struct wpt_take_stats stats = { .size = sizeof(stats) };

				bench_target_do(&s[i].t, OWN_TOUCH, size / BENCH_PAGE / 100, seed);
				if (i == UNTRACKED)
					continue;
				bench_check(wpt_writer_take(s[i].w, NULL, &stats), "wpt_writer_take");
				/* The first is of what was measured the last time. */
				if (!l)
					continue;
				bench_series_add(&took[i], (double)stats.total_ns / 1e6);
				bench_series_add(&bytes[i], (double)stats.bytes_stored / 1024);
				bench_series_add(&dirty[i], (double)(stats.pages_dirty * BENCH_PAGE) / (double)BENCH_MIB);
				if (i == FLAGGED)
					bench_series_add(&collapsed, (double)(stats.pages_collapsed * BENCH_PAGE) / (double)BENCH_MIB);
			}
		}
		for (unsigned int a = 0; a < 3; a++)
			for (unsigned int i = 0; i < NR; i++)
				bench_series_add(&access[a][i],
						 (double)bench_target_do(&s[i].t, a ? OWN_WRITE : OWN_READ, 0, seed) / ACCESSES);
	}
	by_hand(&hand, repeats);
	bench_table("random accesses to transparent huge pages, %s, %u links with 1%% of the pages written before each, %u repeats",
		    bench_bytes(size), LINKS, repeats);
	for (unsigned int a = 0; a < 3; a++)
		for (unsigned int i = 0; i < NR; i++)
			bench_row(&access[a][i], i ? &access[a][UNTRACKED] : NULL, NULL);
	for (unsigned int i = TRACKED; i < NR; i++) {
		bench_row(&took[i], i == FLAGGED ? &took[TRACKED] : NULL, NULL);
		bench_row(&bytes[i], i == FLAGGED ? &bytes[TRACKED] : NULL, NULL);
		bench_row(&dirty[i], NULL, NULL);
	}
	bench_row(&collapsed, NULL, NULL);
	bench_row(&hand, NULL, NULL);
	for (unsigned int i = 0; i < NR; i++)
		side_close(&s[i]);
	return 0;
}
