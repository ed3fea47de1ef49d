/* SPDX-License-Identifier: MIT */
/*
 * What a chain of 100 links costs to read, against the same chain merged into one file and against `zstd -d` of that file. Memory of the
 * own process whose owner reports its writes: a base, then links of 1% of the pages each. All files are in tmpfs; what was read is compared.
 */
#include "bench.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define NR_LINKS 100u
#define NR_READS 2000u

struct place {
	const char *what;
	char path[96];
};

static uint8_t *memory;
static uint64_t bytes;

static int quiesce(void *arg)
{
	(void)arg;
	return 0;
}

static void resume(void *arg)
{
	(void)arg;
}

/* Changes 1% of the pages and says so. */
static void change(struct wpt_tracker *t, uint64_t seed)
{
	uint64_t pages = bytes / BENCH_PAGE, count = pages / 100 + 1, state = seed;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t page = bench_scattered(pages, i, count, &state), at = (uintptr_t)memory + page * BENCH_PAGE;

		bench_fill_page(memory + page * BENCH_PAGE, page, seed);
		bench_check(wpt_range_mark(t, at, at + BENCH_PAGE), "wpt_range_mark");
	}
}

static void build(const char *path, uint32_t dest)
{
	struct wpt_tracker_options to = { .size = sizeof(to), .backend = WPT_BACKEND_REPORTED };
	struct wpt_writer_options wo = { .size = sizeof(wo), .dest = dest, .flags = WPT_WRITER_NO_SYNC };
	struct wpt_take_options take = { .size = sizeof(take), .quiesce = quiesce, .resume = resume };
	struct wpt_range range = { .size = sizeof(range), .start = (uintptr_t)memory, .end = (uintptr_t)memory + bytes };
	struct wpt_tracker *t;
	struct wpt_writer *w;

	bench_fill(memory, bytes, 1);
	bench_check(wpt_tracker_open(&t, &to), "wpt_tracker_open");
	bench_check(wpt_range_add(t, &range), "wpt_range_add");
	bench_check(wpt_writer_open(&w, t, path, &wo), "wpt_writer_open");
	for (uint64_t i = 0; i < NR_LINKS; i++) {
		if (i)
			change(t, i + 1);
		bench_check(wpt_writer_take(w, &take, NULL), "wpt_writer_take");
	}
	wpt_writer_close(w);
	wpt_tracker_close(t);
}

static void merge(const char *from, const char *to)
{
	struct wpt_chain *c;

	bench_check(wpt_chain_open(&c, from), from);
	bench_check(wpt_chain_merge(c, to, NULL), "wpt_chain_merge");
	wpt_chain_close(c);
}

static double cpu_ms(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e3 + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e3;
}

struct times {
	struct bench_series open, restore, cpu, load, reads, reads_close;
};

static void times_init(struct times *t, const char *what)
{
	bench_series_init(&t->open, "ms", "%s: open and close", what);
	bench_series_init(&t->restore, "ms", "%s: open, restore to a file, close", what);
	bench_series_init(&t->cpu, "ms CPU", "%s:   its processor time", what);
	bench_series_init(&t->load, "ms", "%s: open, restore to memory, close", what);
	bench_series_init(&t->reads, "us", "%s: read of 4 KiB, anywhere", what);
	bench_series_init(&t->reads_close, "us", "%s: read of 4 KiB, within 4 MiB", what);
}

static double read_pages(struct wpt_chain *c, uint64_t window, uint64_t seed)
{
	static uint8_t page[BENCH_PAGE];
	uint64_t state = seed, from = bench_random(&state) % (bytes - window + BENCH_PAGE) / BENCH_PAGE, t0 = bench_now_ns();

	for (unsigned int i = 0; i < NR_READS; i++) {
		uint64_t at = (from + bench_random(&state) % (window / BENCH_PAGE)) * BENCH_PAGE;

		bench_check(wpt_chain_read(c, (uintptr_t)memory + at, page, sizeof(page)), "wpt_chain_read");
		if (memcmp(page, memory + at, sizeof(page)) != 0)
			bench_check(-EIO, "what was read");
	}
	return (double)(bench_now_ns() - t0) / 1e3 / NR_READS;
}

static void measure(const char *chain, const char *out, struct times *t, uint64_t seed)
{
	uint64_t start = (uintptr_t)memory, t0;
	uint8_t *copy = bench_map(bytes);
	struct wpt_chain *c;
	double cpu;

	t0 = bench_now_ns();
	bench_check(wpt_chain_open(&c, chain), chain);
	wpt_chain_close(c);
	bench_series_add(&t->open, (double)(bench_now_ns() - t0) / 1e6);
	unlink(out);
	cpu = cpu_ms();
	t0 = bench_now_ns();
	bench_check(wpt_chain_open(&c, chain), chain);
	bench_check(wpt_chain_restore_file(c, start, start + bytes, out, NULL, NULL, NULL), "wpt_chain_restore_file");
	wpt_chain_close(c);
	bench_series_add(&t->restore, (double)(bench_now_ns() - t0) / 1e6);
	bench_series_add(&t->cpu, cpu_ms() - cpu);
	t0 = bench_now_ns();
	bench_check(wpt_chain_open(&c, chain), chain);
	bench_check(wpt_chain_restore_memory(c, start, start + bytes, copy, NULL), "wpt_chain_restore_memory");
	wpt_chain_close(c);
	bench_series_add(&t->load, (double)(bench_now_ns() - t0) / 1e6);
	if (memcmp(copy, memory, bytes) != 0)
		bench_check(-EIO, "what was restored");
	munmap(copy, bytes);
	bench_check(wpt_chain_open(&c, chain), chain);
	bench_series_add(&t->reads, read_pages(c, bytes, seed));
	wpt_chain_close(c);
	bench_check(wpt_chain_open(&c, chain), chain);
	bench_series_add(&t->reads_close, read_pages(c, 4 * BENCH_MIB, seed));
	wpt_chain_close(c);
}

static void rows(const struct times *t, const struct times *peer, bool aim)
{
	static const struct bench_aim within = { BENCH_RATIO, false, 1.2 };

	bench_row(&t->open, peer ? &peer->open : NULL, NULL);
	bench_row(&t->restore, peer ? &peer->restore : NULL, aim ? &within : NULL);
	bench_row(&t->cpu, peer ? &peer->cpu : NULL, NULL);
	bench_row(&t->load, peer ? &peer->load : NULL, aim ? &within : NULL);
	bench_row(&t->reads, peer ? &peer->reads : NULL, NULL);
	bench_row(&t->reads_close, peer ? &peer->reads_close : NULL, NULL);
}

static uint64_t folder_bytes(const char *path)
{
	struct dirent *e;
	struct stat st;
	uint64_t sum = 0;
	DIR *dir = opendir(path);

	bench_check_errno(!dir, path);
	while ((e = readdir(dir)))
		if (fstatat(dirfd(dir), e->d_name, &st, 0) == 0 && S_ISREG(st.st_mode))
			sum += (uint64_t)st.st_size;
	closedir(dir);
	return sum;
}

int main(void)
{
	unsigned int repeats = bench_repeats(5);
	char folder[64], file[96], links[96], merged[96], out[96];
	struct times one, concatenated, several;

	bytes = bench_size(256 * BENCH_MIB);
	memory = bench_map(bytes);
	bench_folder_make(folder);
	snprintf(file, sizeof(file), "%s/chain.wps", folder);
	snprintf(links, sizeof(links), "%s/links", folder);
	snprintf(merged, sizeof(merged), "%s/merged.wps", folder);
	snprintf(out, sizeof(out), "%s/image", folder);
	build(file, WPT_DEST_APPEND);
	build(links, WPT_DEST_FOLDER);
	merge(file, merged);
	times_init(&one, "merged");
	times_init(&concatenated, "one file");
	times_init(&several, "folder");
	bench_table("a chain of %u links of %s, 1%% of the pages in each, %u repeats", NR_LINKS, bench_bytes(bytes), repeats);
	for (unsigned int i = 0; i < repeats; i++) {
		measure(merged, out, &one, i + 1);
		measure(file, out, &concatenated, i + 1);
		measure(links, out, &several, i + 1);
	}
	rows(&one, NULL, false);
	rows(&concatenated, &one, true);
	rows(&several, &one, true);
	bench_note("%s in the folder", bench_bytes(folder_bytes(links)));
	bench_folder_remove(folder);
	return 0;
}
