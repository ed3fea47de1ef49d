/* SPDX-License-Identifier: MIT */
/*
 * Throughput of a full snapshot of an attached process against `zstd -T2` over a file in tmpfs that holds the same bytes, at levels
 * 1 and 3. The library's time runs from attach to close, zstd's from fork to exit; both write to tmpfs and neither syncs.
 */
#include "bench.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
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

/* One level: both in turn, and the sizes of what they wrote in percent of the memory. */
static void measure(const struct bench_target *t, const char *folder, const char *raw, int level, unsigned int repeats)
{
	static const struct bench_aim aim = { BENCH_RATIO, true, 0.9 };
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
	bench_target_start(&t, bench_size(BENCH_GIB), NULL);
	bench_target_do(&t, BENCH_FILL, 1, 0);
	bench_folder_make(folder);
	snprintf(raw, sizeof(raw), "%s/memory", folder);
	dump(&t, raw);
	bench_table("full snapshot, %s in tmpfs, two threads, %u repeats", bench_bytes(t.bytes), repeats);
	measure(&t, folder, raw, 1, repeats);
	measure(&t, folder, raw, 3, repeats);
	bench_target_stop(&t);
	bench_folder_remove(folder);
	return 0;
}
