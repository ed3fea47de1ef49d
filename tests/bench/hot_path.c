/* SPDX-License-Identifier: MIT */
/*
 * What a page fault costs: the first write to a page that is there and protected, and the first touch of memory that was never touched, by a
 * write and by a read; of memory that nobody tracks, tracked without WP_WRITTEN, and with it. Run on two kernels it tells what the patch
 * costs those who don't use it. A line that begins with "figure" is for a program to read: nanoseconds a page, the median and the least.
 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE (2 * BENCH_MIB)
#define NR_HUGE 32u

enum kind { ANON, MEMFD, HUGETLB, NR_KINDS };
enum track { UNTRACKED, ASYNC, WRITTEN, NR_TRACKS };
enum touch { FIRST_WRITE, FILL_WRITE, FILL_READ, NR_TOUCHES };

static const char *const kinds[] = { "anon", "memfd", "hugetlb" };
static const char *const tracks[] = { "untracked", "async", "written" };
static const char *const touches[] = { "first-write", "fault-in-write", "fault-in-read" };

static struct bench_series series[NR_KINDS][NR_TOUCHES][NR_TRACKS];
static uint32_t *order, *huge_order;
static uint64_t nr_pages;

static uint8_t *map(enum kind kind, uint64_t bytes, int *fd)
{
	uint8_t *p;

	*fd = kind == ANON ? -1 : memfd_create("bench-hot", MFD_CLOEXEC | (kind == HUGETLB ? MFD_HUGETLB : 0));
	bench_check_errno(*fd >= 0 && ftruncate(*fd, (off_t)bytes), "ftruncate");
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, kind == ANON ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, *fd, 0);
	if (p == MAP_FAILED)
		return NULL;
	if (kind != HUGETLB)
		madvise(p, bytes, MADV_NOHUGEPAGE);
	return p;
}

static double touch_all(uint8_t *p, uint64_t n, uint64_t page, bool write)
{
	const uint32_t *at = page == HUGE_PAGE ? huge_order : order;
	uint64_t t0 = bench_now_ns();

	for (uint64_t i = 0; i < n; i++)
		if (write)
			((volatile uint8_t *)p)[at[i] * page] = 2;
		else
			(void)((volatile uint8_t *)p)[at[i] * page];
	return (double)(bench_now_ns() - t0) / (double)n;
}

static bool measure(enum kind kind, enum touch touch, enum track track)
{
	uint64_t page = kind == HUGETLB ? HUGE_PAGE : BENCH_PAGE, n = kind == HUGETLB ? NR_HUGE : nr_pages, bytes = n * page;
	int fd, uffd = -1;
	uint8_t *p = map(kind, bytes, &fd);

	if (!p) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	if (touch == FIRST_WRITE)
		for (uint64_t i = 0; i < n; i++)
			p[i * page] = 1;
	if (track != UNTRACKED) {
		uffd = bench_uffd_with(p, bytes, BENCH_UFFD_ALL_ASYNC | (track == WRITTEN ? BENCH_UFFD_WP_WRITTEN : 0));
		bench_uffd_protect(uffd, p, bytes, true);
	}
	bench_series_add(&series[kind][touch][track], touch_all(p, n, page, touch != FILL_READ));
	if (uffd >= 0)
		close(uffd);
	munmap(p, bytes);
	if (fd >= 0)
		close(fd);
	return true;
}

static double least(const struct bench_series *s)
{
	double min = s->v[0];

	for (unsigned int i = 1; i < s->n; i++)
		min = s->v[i] < min ? s->v[i] : min;
	return min;
}

static void print(enum kind kind)
{
	bench_table("%s: nanoseconds a page; ratio: to the same without WP_WRITTEN", kinds[kind]);
	for (unsigned int touch = 0; touch < NR_TOUCHES; touch++)
		for (unsigned int track = 0; track < NR_TRACKS; track++) {
			struct bench_series *s = &series[kind][touch][track];

			if (!s->n)
				continue;
			bench_row(s, track == WRITTEN ? &series[kind][touch][ASYNC] : NULL, NULL);
		}
	for (unsigned int touch = 0; touch < NR_TOUCHES; touch++)
		for (unsigned int track = 0; track < NR_TRACKS; track++)
			if (series[kind][touch][track].n)
				printf("figure hot %s %s %s %.1f %.1f\n", kinds[kind], touches[touch], tracks[track],
				       bench_series_median(&series[kind][touch][track]), least(&series[kind][touch][track]));
}

int main(void)
{
	bool written = bench_uffd_offered() & BENCH_UFFD_WP_WRITTEN;
	unsigned int repeats = bench_repeats(25);
	bool have[NR_KINDS] = { true, true, true };

	bench_need(WPT_F_ASYNC);
	nr_pages = bench_size(8 * BENCH_MIB) / BENCH_PAGE;
	order = bench_shuffled(nr_pages, 3);
	huge_order = bench_shuffled(NR_HUGE, 4);
	for (unsigned int kind = 0; kind < NR_KINDS; kind++)
		for (unsigned int touch = 0; touch < NR_TOUCHES; touch++)
			for (unsigned int track = 0; track < NR_TRACKS; track++)
				bench_series_init(&series[kind][touch][track], "ns/page", "%s, %s", touches[touch], tracks[track]);
	/* All in turn, so that what else the machine does hits all alike. */
	for (unsigned int i = 0; i < repeats; i++)
		for (unsigned int kind = 0; kind < NR_KINDS; kind++)
			for (unsigned int touch = 0; touch < NR_TOUCHES && have[kind]; touch++)
				for (unsigned int track = 0; track < NR_TRACKS && have[kind]; track++)
					if (track != WRITTEN || written)
						have[kind] = measure(kind, touch, track);
	for (unsigned int kind = 0; kind < NR_KINDS; kind++)
		if (have[kind])
			print(kind);
		else
			bench_note("%s: %u free huge pages are needed", kinds[kind], NR_HUGE);
	free(order);
	free(huge_order);
	return 0;
}
