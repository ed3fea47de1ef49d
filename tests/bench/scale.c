/* SPDX-License-Identifier: MIT */
/*
 * What tracking costs by the size of the memory, the share of it that is dirty, and the number of mappings it consists of: arming, a clean
 * scan, one that finds and protects, and a link with its pause. At the end the slopes in words, by least squares over the table.
 *
 * Memory of 16 GiB and 1 TiB is there in part only, as such memory is; --whole fills 16 GiB if the machine has it.
 */
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define OWN_POPULATE (BENCH_OWN + 0)   /* a: MiB of every 16 MiB; or, from 1000 up, pages in all */
#define OWN_SPLIT (BENCH_OWN + 1)      /* a: mappings to make of it */
#define OWN_TOUCH (BENCH_OWN + 2)      /* a: pages of those that are there, b: seed */
#define STRIDE (16 * BENCH_MIB)

/* ---- in the target ---- */

static uint64_t populated;

static uint64_t place(const struct bench_target *t, uint64_t i)
{
	uint64_t in_stride = populated * BENCH_MIB / BENCH_PAGE, state = 7;

	if (populated < 1000)
		return i / in_stride * (STRIDE / BENCH_PAGE) + i % in_stride;
	state += i;
	return bench_scattered(t->bytes / BENCH_PAGE, i, populated, &state);
}

static uint64_t nr_present(const struct bench_target *t)
{
	return populated < 1000 ? t->bytes / STRIDE * (populated * BENCH_MIB / BENCH_PAGE) : populated;
}

static uint64_t serve(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b)
{
	uint64_t n, each;

	if (command == OWN_SPLIT) {
		/* Neighbours that differ in a flag are not merged. */
		each = t->bytes / BENCH_PAGE / a * BENCH_PAGE;
		for (uint64_t i = 0; i < a; i += 2)
			bench_check_errno(madvise(t->memory + i * each, each, MADV_DONTDUMP), "madvise");
		return 0;
	}
	if (command == OWN_POPULATE) {
		populated = a;
		n = nr_present(t);
		for (uint64_t i = 0; i < n; i++)
			*(volatile uint64_t *)(t->memory + place(t, i) * BENCH_PAGE) = i + 1;
		return n;
	}
	n = nr_present(t);
	for (uint64_t i = 0; i < a; i++)
		((volatile uint64_t *)(t->memory + place(t, bench_scattered(n, i, a, &b)) * BENCH_PAGE))[b % 512] = b;
	return 0;
}

/* ---- one memory, several shares ---- */

struct point {
	double gib, dirty, mappings, tib;   /* GiB there, pages, mappings, TiB of addresses */
	double arm, clean, scan, pause, link;
};

static struct point points[64];
static unsigned int nr_points;
static unsigned int repeats;

static int count_run(void *arg, const struct wpt_run *run)
{
	if (run->state == WPT_PAGES_DIRTY)
		*(uint64_t *)arg += (run->end - run->start) / BENCH_PAGE;
	return 0;
}

static double scan_ms(struct wpt_tracker *t, uint32_t flags, uint64_t *dirty)
{
	uint64_t t0 = bench_now_ns();

	*dirty = 0;
	bench_check(wpt_tracker_scan(t, 0, UINT64_MAX, flags, count_run, dirty), "wpt_tracker_scan");
	return (double)(bench_now_ns() - t0) / 1e6;
}

static struct wpt_tracker *track(const struct bench_target *t)
{
	struct wpt_range range = { .size = sizeof(range), .start = (uintptr_t)t->memory, .end = (uintptr_t)t->memory + t->bytes };
	struct wpt_tracker *tracker;

	bench_attach(&tracker, t->pid);
	bench_check(wpt_range_add(tracker, &range), "wpt_range_add");
	return tracker;
}

static void measure_scans(struct bench_target *t, const uint64_t *dirty, struct point *p, unsigned int n)
{
	struct wpt_tracker *tracker = track(t);
	struct bench_series arm, clean, scan;
	uint64_t found, t0 = bench_now_ns();

	bench_series_init(&arm, "ms", "  arm");
	bench_series_init(&clean, "ms", "  scan, nothing dirty");
	bench_check(wpt_tracker_arm(tracker), "wpt_tracker_arm");
	bench_series_add(&arm, (double)(bench_now_ns() - t0) / 1e6);
	for (unsigned int i = 0; i < repeats; i++)
		bench_series_add(&clean, scan_ms(tracker, 0, &found));
	bench_row(&arm, NULL, NULL);
	bench_row(&clean, NULL, NULL);
	for (unsigned int s = 0; s < n; s++) {
		bench_series_init(&scan, "ms", "  scan and protect, %llu pages dirty", (unsigned long long)dirty[s]);
		for (unsigned int i = 0; i < repeats; i++) {
			bench_target_do(t, OWN_TOUCH, dirty[s], i + 1);
			bench_series_add(&scan, scan_ms(tracker, WPT_SCAN_REARM, &found));
			if (found < dirty[s] * 95 / 100 || found > dirty[s] * 105 / 100 + 64) {
				fprintf(stderr, "%llu pages were written, the scan found %llu\n", (unsigned long long)dirty[s],
					(unsigned long long)found);
				exit(1);
			}
		}
		bench_row(&scan, NULL, NULL);
		p[s].arm = arm.v[0];
		p[s].clean = bench_series_median(&clean);
		p[s].scan = bench_series_median(&scan);
	}
	wpt_tracker_close(tracker);
}

static void measure_links(struct bench_target *t, const uint64_t *dirty, struct point *p, unsigned int n)
{
	struct wpt_writer_options o = {
		.size = sizeof(o), .dest = WPT_DEST_FD, .flags = WPT_WRITER_NO_SYNC, .level = -5, .nr_threads = 2,
		.fd = open("/dev/null", O_WRONLY | O_CLOEXEC),
	};
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	struct wpt_tracker *tracker = track(t);
	struct bench_series pause, link;
	struct wpt_writer *w;

	bench_check_errno(o.fd < 0, "/dev/null");
	bench_check(wpt_writer_open(&w, tracker, NULL, &o), "wpt_writer_open");
	bench_check(wpt_writer_take(w, NULL, &stats), "wpt_writer_take");
	bench_series_init(&link, "ms", "  base");
	bench_series_add(&link, (double)stats.total_ns / 1e6);
	bench_row(&link, NULL, NULL);
	for (unsigned int s = 0; s < n; s++) {
		bench_series_init(&pause, "ms", "  link, %llu pages dirty: pause", (unsigned long long)dirty[s]);
		bench_series_init(&link, "ms", "    time");
		for (unsigned int i = 0; i < repeats; i++) {
			bench_target_do(t, OWN_TOUCH, dirty[s], i + 1);
			bench_check(wpt_writer_take(w, NULL, &stats), "wpt_writer_take");
			bench_series_add(&pause, (double)stats.pause_ns / 1e6);
			bench_series_add(&link, (double)stats.total_ns / 1e6);
		}
		bench_row(&pause, NULL, NULL);
		bench_row(&link, NULL, NULL);
		p[s].pause = bench_series_median(&pause);
		p[s].link = bench_series_median(&link);
	}
	wpt_writer_close(w);
	wpt_tracker_close(tracker);
	close(o.fd);
}

static void measure(uint64_t bytes, uint64_t populate, uint64_t mappings)
{
	static const double shares[] = { 0.0001, 0.01, 0.1 };
	struct bench_target t;
	uint64_t dirty[3], n;
	unsigned int nr = 3;

	bench_target_start(&t, bytes, serve);
	n = bench_target_do(&t, OWN_POPULATE, populate, 0);
	if (mappings > 1)
		bench_target_do(&t, OWN_SPLIT, mappings, 0);
	for (unsigned int s = 0; s < nr; s++) {
		dirty[s] = (uint64_t)((double)n * shares[s]);
		dirty[s] = dirty[s] ? dirty[s] : 1;
		points[nr_points + s] = (struct point){ .gib = (double)(n * BENCH_PAGE) / (double)BENCH_GIB, .dirty = (double)dirty[s],
							.mappings = (double)mappings, .tib = (double)bytes / (1024.0 * BENCH_GIB) };
	}
	bench_table("%s in %llu mapping%s, %s of it there", bench_bytes(bytes), (unsigned long long)mappings, mappings > 1 ? "s" : "",
		    bench_bytes(n * BENCH_PAGE));
	measure_scans(&t, dirty, points + nr_points, nr);
	measure_links(&t, dirty, points + nr_points, nr);
	nr_points += nr;
	bench_target_stop(&t);
}

/* ---- the slopes ---- */

#define NR_TERMS 5u

static const char *const terms[NR_TERMS] = {
	"in any case", "for each GiB that is there", "for each 1000 dirty pages", "for each 1000 mappings", "for each TiB of addresses"
};

static double term(const struct point *p, unsigned int i)
{
	const double values[NR_TERMS] = { 1, p->gib, p->dirty / 1e3, p->mappings / 1e3, p->tib };

	return values[i];
}

/*
 * What each term adds to y, by least squares of the relative errors, so that small figures count as large ones do: normal equations
 * by Gauss. False if the points do not tell the terms apart. `dirty`: whether y depends on what is dirty.
 */
static bool solve(double (*y)(const struct point *), bool dirty, double x[NR_TERMS])
{
	double m[NR_TERMS][NR_TERMS + 1] = { { 0 } };

	for (unsigned int i = 0; i < nr_points; i++) {
		double value = y(&points[i]);

		for (unsigned int r = 0; r < NR_TERMS; r++) {
			for (unsigned int c = 0; c < NR_TERMS; c++)
				m[r][c] += term(&points[i], r) * term(&points[i], c) / (value * value);
			m[r][NR_TERMS] += term(&points[i], r) / value;
		}
	}
	for (unsigned int i = 0; !dirty && i <= NR_TERMS; i++)
		m[2][i] = m[i % NR_TERMS][2] = i == 2;
	for (unsigned int k = 0; k < NR_TERMS; k++) {
		for (unsigned int r = 0; r < NR_TERMS; r++) {
			double f = r == k ? 0 : m[r][k] / m[k][k];

			if (m[k][k] < 1e-12)
				return false;
			for (unsigned int c = k; c <= NR_TERMS && r != k; c++)
				m[r][c] -= f * m[k][c];
		}
	}
	for (unsigned int k = 0; k < NR_TERMS; k++)
		x[k] = m[k][NR_TERMS] / m[k][k];
	return true;
}

static double y_arm(const struct point *p) { return p->arm; }
static double y_clean(const struct point *p) { return p->clean; }
static double y_scan(const struct point *p) { return p->scan; }
static double y_pause(const struct point *p) { return p->pause; }
static double y_link(const struct point *p) { return p->link; }

static void print_slope(const char *what, double (*y)(const struct point *), bool dirty)
{
	double x[NR_TERMS];
	char text[256];
	size_t len = 0;

	if (!solve(y, dirty, x))
		return;
	for (unsigned int i = 0; i < NR_TERMS; i++) {
		if (i != 2 || dirty)
			len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%.2f ms %s", len ? ", " : "", x[i], terms[i]);
	}
	bench_note("%s takes %s", what, text);
}

static uint64_t available_kib(void)
{
	unsigned long long kib = 0;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	bench_check_errno(!f, "/proc/meminfo");
	while (fgets(line, sizeof(line), f))
		sscanf(line, "MemAvailable: %llu", &kib);
	fclose(f);
	return kib;
}

int main(int argc, char **argv)
{
	bool whole = argc == 2 && !strcmp(argv[1], "--whole");
	uint64_t unit = bench_size(BENCH_GIB);

	if (argc > 1 && !whole) {
		fprintf(stderr, "usage: scale [--whole]\n");
		return 2;
	}
	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	unit = unit < STRIDE ? STRIDE : unit / STRIDE * STRIDE;
	if (whole && available_kib() < 18 * (unit >> 10)) {
		bench_note("--whole: not enough memory");
		whole = false;
	}
	repeats = bench_repeats(9);
	repeats = repeats > 9 ? 9 : repeats;
	measure(unit, 16, 1);
	measure(unit, 16, 10000);
	measure(4 * unit, 16, 1);
	measure(16 * unit, whole ? 16 : 2, 1);
	measure(1024 * unit, 1000, 1);
	printf("\nslopes, by least squares over all of the above\n");
	print_slope("arming", y_arm, false);
	print_slope("a scan of what is clean", y_clean, false);
	print_slope("a scan that protects", y_scan, true);
	print_slope("the pause of a link", y_pause, true);
	print_slope("a link", y_link, true);
	return 0;
}
