/* SPDX-License-Identifier: MIT */
/*
 * Throughput of a full snapshot of an attached process against `zstd -T2` over a file in tmpfs that holds the same bytes, at levels
 * 1 and 3, and of its restore against `zstd -d` of the snapshot. The library's time runs from attach or open to close, zstd's from fork to
 * exit; both write to tmpfs. Only the restore syncs its file, as it always does.
 *
 * Then links in which nothing is stored, pages that are all zero and pages that were written but are what they were, against one thread
 * that reads the same memory once, by process_vm_readv() into a buffer of 1 MiB.
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* Runs zstd; nanoseconds. */
static uint64_t run_zstd(const char *const argv[])
{
	uint64_t t0 = bench_now_ns();
	pid_t pid;
	int status, err;

	err = posix_spawnp(&pid, argv[0], NULL, NULL, (char *const *)argv, environ);
	if (err || waitpid(pid, &status, 0) != pid || status) {
		fprintf(stderr, "zstd failed\n");
		exit(1);
	}
	return bench_now_ns() - t0;
}

static uint64_t file_bytes(const char *path)
{
	struct stat st;

	bench_check_errno(stat(path, &st) != 0, path);
	return (uint64_t)st.st_size;
}

/* The target's memory as a file, copied by hand. */
static void dump(const struct bench_target *t, const char *path)
{
	static uint8_t buffer[1 << 20];
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	bench_check_errno(fd < 0, path);
	for (uint64_t at = 0; at < t->bytes; at += sizeof(buffer)) {
		uint64_t len = t->bytes - at < sizeof(buffer) ? t->bytes - at : sizeof(buffer);
		struct iovec local = { buffer, len }, remote = { t->memory + at, len };

		bench_check_errno(process_vm_readv(t->pid, &local, 1, &remote, 1, 0) != (ssize_t)len, "process_vm_readv");
		bench_check_errno(write(fd, buffer, len) != (ssize_t)len, path);
	}
	close(fd);
}

static uint64_t run_library(const struct bench_target *t, const char *path, int level, struct wpt_take_stats *stats)
{
	struct wpt_writer_options options = {
		.size = sizeof(options), .dest = WPT_DEST_FILE, .flags = WPT_WRITER_NO_SYNC, .level = level, .nr_threads = 2,
	};
	struct wpt_range range = {
		.size = sizeof(range), .start = (uintptr_t)t->memory, .end = (uintptr_t)t->memory + t->bytes,
	};
	struct wpt_tracker *tracker;
	struct wpt_writer *writer;
	uint64_t t0;

	unlink(path);
	stats->size = sizeof(*stats);
	t0 = bench_now_ns();
	bench_attach(&tracker, t->pid);
	bench_check(wpt_range_add(tracker, &range), "wpt_range_add");
	bench_check(wpt_writer_open(&writer, tracker, path, &options), "wpt_writer_open");
	bench_check(wpt_writer_take(writer, NULL, stats), "wpt_writer_take");
	wpt_writer_close(writer);
	wpt_tracker_close(tracker);
	return bench_now_ns() - t0;
}

static uint64_t run_restore(const struct bench_target *t, const char *link, const char *out)
{
	uint64_t start = (uintptr_t)t->memory, t0 = bench_now_ns();
	struct wpt_chain *c;

	bench_check(wpt_chain_open(&c, link), link);
	bench_check(wpt_chain_restore_file(c, start, start + t->bytes, out, NULL, NULL, NULL), "wpt_chain_restore_file");
	wpt_chain_close(c);
	return bench_now_ns() - t0;
}

static void measure_restore(const struct bench_target *t, const char *folder, const char *link, int level, unsigned int repeats)
{
	struct bench_aim aim = { BENCH_RATIO, true, level == 1 ? 1.3 : 1.5 };
	double mib = (double)t->bytes / (double)BENCH_MIB;
	struct bench_series peer, lib;
	char out[96];
	const char *const unpack[] = { "zstd", "-q", "-d", "-f", link, "-o", out, NULL };

	snprintf(out, sizeof(out), "%s/restored", folder);
	bench_series_init(&peer, "MiB/s", "zstd -d of the snapshot");
	bench_series_init(&lib, "MiB/s", "restore, level %d, open to close", level);
	for (unsigned int i = 0; i < repeats; i++) {
		unlink(out);
		bench_series_add(&peer, mib * 1e9 / (double)run_zstd(unpack));
		unlink(out);
		bench_series_add(&lib, mib * 1e9 / (double)run_restore(t, link, out));
	}
	unlink(out);
	bench_row(&peer, NULL, NULL);
	bench_row(&lib, &peer, &aim);
}

/* One level: both in turn, and the sizes of what they wrote in percent of the memory. */
static void measure(const struct bench_target *t, const char *folder, const char *raw, int level, unsigned int repeats)
{
	static const struct bench_aim aim = { BENCH_RATIO, true, 0.95 };
	double mib = (double)t->bytes / (double)BENCH_MIB, percent = 100 / (double)t->bytes;
	struct bench_series peer, lib, take, peer_size, lib_size;
	char packed[96], link[96], option[8];
	const char *const pack[] = { "zstd", "-q", "-f", option, "-T2", raw, "-o", packed, NULL };
	const char *const test[] = { "zstd", "-q", "-t", link, NULL };
	struct wpt_take_stats stats;

	snprintf(packed, sizeof(packed), "%s/memory.zst", folder);
	snprintf(link, sizeof(link), "%s/full.wps", folder);
	snprintf(option, sizeof(option), "-%d", level);
	bench_series_init(&peer, "MiB/s", "zstd -T2 -%d", level);
	bench_series_init(&lib, "MiB/s", "snapshot, level %d, attach to close", level);
	bench_series_init(&take, "MiB/s", "  wpt_writer_take alone");
	bench_series_init(&peer_size, "% size", "  what zstd wrote");
	bench_series_init(&lib_size, "% size", "  what the snapshot takes");
	for (unsigned int i = 0; i < repeats; i++) {
		unlink(packed);
		bench_series_add(&peer, mib * 1e9 / (double)run_zstd(pack));
		bench_series_add(&peer_size, percent * (double)file_bytes(packed));
		unlink(packed);
		bench_series_add(&lib, mib * 1e9 / (double)run_library(t, link, level, &stats));
		bench_series_add(&take, mib * 1e9 / (double)stats.total_ns);
		bench_series_add(&lib_size, percent * (double)file_bytes(link));
	}
	run_zstd(test);
	bench_row(&peer, NULL, NULL);
	bench_row(&lib, &peer, &aim);
	bench_row(&take, &peer, NULL);
	bench_row(&peer_size, NULL, NULL);
	bench_row(&lib_size, &peer_size, NULL);
	measure_restore(t, folder, link, level, repeats);
}

/* ---- nothing to store ---- */

#define OWN_ZERO BENCH_OWN
#define OWN_REWRITE (BENCH_OWN + 1)

/* Writes to every page: zeros all over, or what is there already. */
static uint64_t serve(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b)
{
	(void)a;
	(void)b;
	if (command == OWN_ZERO)
		memset(t->memory, 0, t->bytes);
	for (uint64_t at = 0; at < t->bytes; at += BENCH_PAGE)
		*(volatile uint64_t *)(t->memory + at) = *(volatile uint64_t *)(t->memory + at);
	return 0;
}

static uint64_t read_pass(const struct bench_target *t)
{
	static uint8_t buffer[1 << 20];
	uint64_t t0 = bench_now_ns();

	for (uint64_t at = 0; at < t->bytes; at += sizeof(buffer)) {
		struct iovec local = { buffer, sizeof(buffer) }, remote = { t->memory + at, sizeof(buffer) };

		bench_check_errno(process_vm_readv(t->pid, &local, 1, &remote, 1, 0) != sizeof(buffer), "process_vm_readv");
	}
	return bench_now_ns() - t0;
}

static void measure_nothing(struct bench_target *t, const char *what, uint64_t fill, uint64_t rewrite, unsigned int repeats)
{
	static const struct bench_aim aim = { BENCH_RATIO, true, 0.7 };
	struct wpt_writer_options options = { .size = sizeof(options), .dest = WPT_DEST_FD, .flags = WPT_WRITER_NO_SYNC, .nr_threads = 2 };
	struct wpt_take_options take = { .size = sizeof(take), .mode = WPT_MODE_FUZZY };
	struct wpt_range range = {
		.size = sizeof(range), .start = (uintptr_t)t->memory, .end = (uintptr_t)t->memory + t->bytes,
	};
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	double mib = (double)t->bytes / (double)BENCH_MIB;
	struct bench_series peer, paused, fuzzy;
	struct wpt_tracker *tracker;
	struct wpt_writer *writer;

	bench_target_do(t, fill, 1, 0);
	options.fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	bench_attach(&tracker, t->pid);
	bench_check(wpt_range_add(tracker, &range), "wpt_range_add");
	bench_check(wpt_writer_open(&writer, tracker, NULL, &options), "wpt_writer_open");
	bench_check(wpt_writer_take(writer, NULL, NULL), "wpt_writer_take");
	bench_series_init(&peer, "MiB/s", "one pass of reading, %s", what);
	bench_series_init(&paused, "MiB/s", "link, mode pause");
	bench_series_init(&fuzzy, "MiB/s", "link, mode fuzzy");
	for (unsigned int i = 0; i < repeats; i++) {
		bench_series_add(&peer, mib * 1e9 / (double)read_pass(t));
		for (unsigned int mode = 0; mode < 2; mode++) {
			bench_target_do(t, rewrite, 0, 0);
			bench_check(wpt_writer_take(writer, mode ? &take : NULL, &stats), "wpt_writer_take");
			bench_check(stats.pages_unchanged * BENCH_PAGE == t->bytes ? 0 : -EIO, "pages that are unchanged");
			bench_series_add(mode ? &fuzzy : &paused, mib * 1e9 / (double)stats.total_ns);
		}
	}
	wpt_writer_close(writer);
	wpt_tracker_close(tracker);
	close(options.fd);
	bench_row(&peer, NULL, NULL);
	bench_row(&paused, &peer, &aim);
	bench_row(&fuzzy, &peer, &aim);
}

int main(void)
{
	unsigned int repeats = bench_repeats(5);
	char folder[64], raw[96];
	struct bench_target t;

	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	if (system("zstd --version >/dev/null 2>&1")) {
		printf("skipped: there is no zstd command\n");
		return 77;
	}
	bench_target_start(&t, bench_size(BENCH_GIB), serve);
	bench_target_do(&t, BENCH_FILL, 1, 0);
	bench_folder_make(folder);
	snprintf(raw, sizeof(raw), "%s/memory", folder);
	dump(&t, raw);
	bench_table("full snapshot, %s in tmpfs, two threads, %u repeats", bench_bytes(t.bytes), repeats);
	measure(&t, folder, raw, 1, repeats);
	measure(&t, folder, raw, 3, repeats);
	unlink(raw);
	bench_table("links that store nothing, %s, two threads, %u repeats", bench_bytes(t.bytes), repeats);
	measure_nothing(&t, "unchanged", BENCH_FILL, OWN_REWRITE, repeats);
	measure_nothing(&t, "all zero", OWN_ZERO, OWN_REWRITE, repeats);
	bench_target_stop(&t);
	bench_folder_remove(folder);
	return 0;
}
