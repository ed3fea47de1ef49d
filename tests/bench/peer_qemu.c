/* SPDX-License-Identifier: MIT */
/*
 * A guest under QEMU (TCG) that keeps writing a little: QEMU's own background-snapshot, which is a migration to a file from memory that
 * userfaultfd protects synchronously, and savevm, which stops the guest, beside `wpsnap qemu save` and the links of `wpsnap qemu watch`. The guest is
 * tests/bench/guest/guest.c. All have memory and devices; stopped is the time between the events STOP and RESUME.
 *
 * Then what the same guest gets done meanwhile if it is busy, and how long it takes to restore it, also lazily.
 *
 * Of memory that is not shared `wpsnap qemu` takes no snapshots: there it is `wpsnap save` of the memory alone, with QEMU's threads stopped.
 */
#include "peer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGES_A_TICK 25u   /* 10 MB/s at 100 ticks a second */

static uint64_t ram, filled;
static FILE *monitor;
static double stopped_at, resumed_at;   /* seconds */

/* ---- QMP: one JSON object a line, and no more of it is understood than is needed ---- */

static double event_time(const char *line)
{
	return peer_number(line, "seconds") + peer_number(line, "microseconds") / 1e6;
}

static const char *qmp_line(void)
{
	static char line[1 << 16];

	if (!fgets(line, sizeof(line), monitor))
		peer_fail("qemu", "the monitor's connection ended");
	if (strstr(line, "\"event\": \"STOP\""))
		stopped_at = event_time(line);
	else if (strstr(line, "\"event\": \"RESUME\""))
		resumed_at = event_time(line);
	return line;
}

static const char *qmp(const char *command)
{
	const char *line;

	if (fprintf(monitor, "%s\n", command) < 0 || fflush(monitor))
		peer_fail("qemu", "the monitor's connection ended");
	do
		line = qmp_line();
	while (strncmp(line, "{\"return\"", 9) && strncmp(line, "{\"error\"", 8));
	if (line[2] == 'e') {
		fprintf(stderr, "%s\n%s", command, line);
		exit(1);
	}
	return line;
}

static void qmp_connect(const char *path, pid_t qemu)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	uint64_t deadline = bench_now_ns() + 30000000000u;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	bench_check_errno(fd < 0, "socket");
	bench_check_errno(strlen(path) >= sizeof(addr.sun_path), path);
	strcpy(addr.sun_path, path);
	while (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		if (!peer_alive(qemu) || bench_now_ns() > deadline)
			peer_fail("qemu", "does not answer");
		usleep(20000);
	}
	monitor = fdopen(fd, "r+");
	bench_check_errno(!monitor, "fdopen");
	qmp_line();
	qmp("{\"execute\": \"qmp_capabilities\"}");
}

/* ---- the guest ---- */

static const char *guest_path(void)
{
	static char path[512];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 16);

	bench_check_errno(n < 0, "/proc/self/exe");
	path[n] = 0;
	strcpy(strrchr(path, '/') + 1, "guest.elf");
	return path;
}

/* For savevm to write to. */
static const char *make_disk(const char *name)
{
	const char *file = peer_path("%s.qcow2", name);
	const char *argv[] = { "qemu-img", "create", "-q", "-f", "qcow2", file, "16G", NULL };
	uint64_t kib;

	unlink(file);
	peer_run("qemu-img", argv, &kib);
	return file;
}

struct command {
	const char *argv[32];
	const char *console;
	char size[32], memory[256], append[64], debugcon[192], qmp[224], second[224], disk[256];
};

/* The files of the machine begin with `name`. */
static void guest_command(struct command *c, const char *name, bool shared, uint64_t busy)
{
	const char *argv[] = {
		"qemu-system-x86_64", "-accel", "tcg,tb-size=64", "-object", c->memory, "-machine", "q35,memory-backend=ram", "-m", c->size,
		"-display", "none", "-nodefaults", "-vga", "none", "-no-reboot", "-kernel", guest_path(), "-append", c->append, "-debugcon",
		c->debugcon, "-qmp", c->qmp, "-qmp", c->second, "-drive", c->disk, NULL,
	};

	memcpy(c->argv, argv, sizeof(argv));
	snprintf(c->size, sizeof(c->size), "%lluM", (unsigned long long)(ram >> 20));
	if (shared)
		snprintf(c->memory, sizeof(c->memory), "memory-backend-file,id=ram,size=%s,mem-path=%s,share=on", c->size, peer_path("%s.ram", name));
	else
		snprintf(c->memory, sizeof(c->memory), "memory-backend-ram,id=ram,size=%s", c->size);
	snprintf(c->append, sizeof(c->append), "%llu %u %llu", (unsigned long long)(filled >> 20), PAGES_A_TICK, (unsigned long long)(busy >> 20));
	c->console = peer_path("%s.console", name);
	snprintf(c->debugcon, sizeof(c->debugcon), "file:%s", c->console);
	snprintf(c->qmp, sizeof(c->qmp), "unix:%s,server=on,wait=off", peer_path("%s.qmp", name));
	snprintf(c->second, sizeof(c->second), "unix:%s,server=on,wait=off", peer_path("%s.wpsnap", name));
	snprintf(c->disk, sizeof(c->disk), "if=none,id=vm,format=qcow2,file=%s", make_disk(name));
	unlink(c->console);
}

static pid_t guest_start(bool shared, uint64_t busy)
{
	uint64_t deadline = bench_now_ns() + 120000000000u;
	struct command c;
	pid_t pid;

	guest_command(&c, "guest", shared, busy);
	pid = peer_start("qemu", c.argv);
	qmp_connect(peer_path("guest.qmp"), pid);
	while (!strstr(peer_text(c.console), "filled")) {
		if (!peer_alive(pid) || bench_now_ns() > deadline)
			peer_fail("qemu", "the guest did not fill its memory");
		usleep(20000);
	}
	return pid;
}

static void guest_stop(pid_t pid)
{
	fclose(monitor);
	peer_stop(pid);
	unlink(peer_path("guest.ram"));
}

/* "START-END" of the mapping that is as large as the guest's memory. */
static void find_ram(pid_t pid, char spec[64])
{
	unsigned long long start, end;
	char path[64], line[512];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	bench_check_errno(!f, path);
	spec[0] = 0;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%llx-%llx", &start, &end) == 2 && end - start == ram)
			snprintf(spec, 64, "%llx-%llx", start, end);
	}
	fclose(f);
	if (!spec[0])
		peer_fail("qemu", "no mapping of the guest's memory");
}

/* ---- the two ways to save ---- */

struct figures {
	struct bench_series stopped, time, stored;
};

static void figures_init(struct figures *f, const char *who)
{
	bench_series_init(&f->stopped, "ms", "%s: guest stopped", who);
	bench_series_init(&f->time, "ms", "%s: time", who);
	bench_series_init(&f->stored, "MiB", "%s: stored", who);
}

/* It can't be together with what leaves shared memory out. */
static void background_snapshot(bool on)
{
	char command[256];

	snprintf(command, sizeof(command),
		 "{\"execute\": \"migrate-set-capabilities\", \"arguments\": {\"capabilities\": "
		 "[{\"capability\": \"background-snapshot\", \"state\": %s}]}}",
		 on ? "true" : "false");
	qmp(command);
}

static void by_qemu(struct figures *f)
{
	const char *file = peer_path("guest.migration"), *answer;
	char command[512];
	uint64_t t0;

	background_snapshot(true);
	stopped_at = resumed_at = 0;
	snprintf(command, sizeof(command), "{\"execute\": \"migrate\", \"arguments\": {\"uri\": \"exec:cat >%s\"}}", file);
	t0 = bench_now_ns();
	qmp(command);
	while (answer = qmp("{\"execute\": \"query-migrate\"}"), !strstr(answer, "\"status\": \"completed\"")) {
		if (strstr(answer, "\"status\": \"failed\"") || strstr(answer, "\"status\": \"cancelled\"")) {
			fprintf(stderr, "%s", answer);
			exit(1);
		}
		usleep(10000);
	}
	t0 = bench_now_ns() - t0;
	if (!strstr(qmp("{\"execute\": \"query-status\"}"), "\"running\": true") || resumed_at <= stopped_at || !stopped_at)
		peer_fail("qemu", "the guest does not run on after background-snapshot");
	bench_series_add(&f->stopped, (resumed_at - stopped_at) * 1e3);
	bench_series_add(&f->time, (double)t0 / 1e6);
	bench_series_add(&f->stored, (double)peer_file_size(file) / (double)BENCH_MIB);
	unlink(file);
	background_snapshot(false);
}

static void by_savevm(struct figures *f)
{
	const char *file = peer_path("guest.qcow2");
	uint64_t t0, before = peer_file_size(file);

	stopped_at = resumed_at = 0;
	t0 = bench_now_ns();
	qmp("{\"execute\": \"human-monitor-command\", \"arguments\": {\"command-line\": \"savevm bench\"}}");
	t0 = bench_now_ns() - t0;
	qmp("{\"execute\": \"query-status\"}");
	if (resumed_at <= stopped_at || !stopped_at)
		peer_fail("qemu", "savevm did not stop the guest and let it go on");
	bench_series_add(&f->stopped, (resumed_at - stopped_at) * 1e3);
	bench_series_add(&f->time, (double)t0 / 1e6);
	/* The image does not shrink when the snapshot is deleted: the first says how much it is. */
	if (!f->stored.n)
		bench_series_add(&f->stored, (double)(peer_file_size(file) - before) / (double)BENCH_MIB);
	qmp("{\"execute\": \"human-monitor-command\", \"arguments\": {\"command-line\": \"delvm bench\"}}");
}

struct link_figures {
	struct figures f;
	struct bench_series rest; /* of `stopped`, without the state of the devices */
};

static void link_add(struct link_figures *l, const char *line, double time_ms)
{
	double stopped = peer_number(line, "guest_stopped_ns") / 1e6;

	bench_series_add(&l->f.stopped, stopped);
	bench_series_add(&l->rest, stopped - peer_number(line, "device_ns") / 1e6);
	bench_series_add(&l->f.time, time_ms);
	bench_series_add(&l->f.stored, peer_number(line, "bytes_stored") / (double)BENCH_MIB);
}

static const char *next_link(const char *text)
{
	return strstr(text, "\"type\":\"link\"");
}

static void by_wpsnap_qemu(struct link_figures *l)
{
	const char *file = peer_path("guest.wps"), *line;
	const char *argv[] = { peer_wpsnap(), "qemu", "save", peer_path("guest.wpsnap"), "-o", file, "--json", "--assume-sole-writer", NULL };
	uint64_t wall, kib;

	unlink(file);
	wall = peer_run("wpsnap-qemu", argv, &kib);
	line = next_link(peer_text(peer_path("wpsnap-qemu")));
	if (!line)
		peer_fail("wpsnap-qemu", "no line about the link");
	link_add(l, line, (double)wall / 1e6);
	unlink(file);
}

/* The links after the base. */
static void by_watch(struct link_figures *l, unsigned int nr)
{
	static unsigned int nr_chains;
	char count[16];
	const char *argv[] = { peer_wpsnap(), "qemu", "watch", peer_path("guest.wpsnap"), "-o", peer_path("chain%u", nr_chains++), "--json",
			       "--assume-sole-writer", "--every", "200ms", "--count", count, NULL };
	const char *line;
	uint64_t kib;

	snprintf(count, sizeof(count), "%u", nr + 1);
	peer_run("wpsnap-qemu", argv, &kib);
	line = next_link(peer_text(peer_path("wpsnap-qemu")));
	while (line && (line = next_link(line + 1)))
		link_add(l, line, peer_number(line, "total_ns") / 1e6);
}

static void by_wpsnap(struct figures *f, pid_t qemu, const char *range)
{
	/* Nobody else has the file; to find that out takes a look at every process, which not every user may have. */
	struct peer_link link = peer_save(qemu, range, "--assume-sole-writer");

	bench_series_add(&f->stopped, link.pause_ms);
	bench_series_add(&f->time, link.wall_ms);
	bench_series_add(&f->stored, link.stored_mib);
}

static pid_t guest_with_monitor(bool shared, uint64_t busy)
{
	pid_t qemu = guest_start(shared, busy);

	/* By default 128 MiB a second. */
	qmp("{\"execute\": \"migrate-set-parameters\", \"arguments\": {\"max-bandwidth\": 100000000000}}");
	return qemu;
}

static void link_figures_init(struct link_figures *l, const char *who)
{
	figures_init(&l->f, who);
	bench_series_init(&l->rest, "ms", "%s: stopped but for the devices", who);
}

static void measure_shared(unsigned int repeats)
{
	const struct bench_aim less = { BENCH_RATIO, false, 1 }, short_stop = { BENCH_MEDIAN, false, 3 }, fewer = { BENCH_RATIO, false, 0.1 };
	struct figures background, savevm;
	struct link_figures full, links;
	pid_t qemu = guest_with_monitor(true, 0);

	figures_init(&background, "background-snapshot");
	figures_init(&savevm, "savevm");
	link_figures_init(&full, "wpsnap qemu save");
	link_figures_init(&links, "wpsnap qemu watch");
	for (unsigned int i = 0; i < repeats; i++) {
		by_qemu(&background);
		by_savevm(&savevm);
		by_wpsnap_qemu(&full);
	}
	by_watch(&links, 4 * repeats);
	guest_stop(qemu);
	bench_table("QEMU guest of %s, %s of it filled, shared memory (a file in tmpfs), %u repeats", bench_bytes(ram), bench_bytes(filled), repeats);
	bench_row(&background.stopped, NULL, NULL);
	bench_row(&savevm.stopped, &background.stopped, NULL);
	bench_row(&full.f.stopped, &background.stopped, NULL);
	bench_row(&links.f.stopped, &background.stopped, NULL);
	bench_row(&links.rest, NULL, &short_stop);
	bench_row(&background.time, NULL, NULL);
	bench_row(&savevm.time, &background.time, NULL);
	bench_row(&full.f.time, &background.time, &less);
	bench_row(&links.f.time, &background.time, NULL);
	bench_row(&background.stored, NULL, NULL);
	bench_row(&savevm.stored, &background.stored, NULL);
	bench_row(&full.f.stored, &background.stored, &less);
	bench_row(&links.f.stored, &full.f.stored, &fewer);
	bench_note("the ratio of the links' size is to that of the full snapshot; "
		   "with --assume-sole-writer, as not every user may look at all processes");
}

static void measure_private(unsigned int repeats)
{
	const struct bench_aim less = { BENCH_RATIO, false, 1 };
	struct figures ours, theirs;
	char range[64];
	pid_t qemu = guest_with_monitor(false, 0);

	find_ram(qemu, range);
	figures_init(&theirs, "background-snapshot");
	figures_init(&ours, "wpsnap save");
	for (unsigned int i = 0; i < repeats; i++) {
		by_qemu(&theirs);
		by_wpsnap(&ours, qemu, range);
	}
	guest_stop(qemu);
	bench_table("QEMU guest of %s, %s of it filled, private memory, %u repeats", bench_bytes(ram), bench_bytes(filled), repeats);
	bench_row(&theirs.stopped, NULL, NULL);
	bench_row(&ours.stopped, &theirs.stopped, &less);
	bench_row(&theirs.time, NULL, NULL);
	bench_row(&ours.time, &theirs.time, NULL);
	bench_row(&theirs.stored, NULL, NULL);
	bench_row(&ours.stored, &theirs.stored, NULL);
	bench_note("wpsnap save --assume-sole-writer: the memory alone, without the state of the devices; theirs is with it");
}

/* ---- what a guest that is busy loses ---- */

/* Since when, and how far it was. */
struct progress {
	uint64_t ns, said;
};

static struct progress progress_now(void)
{
	return (struct progress){ bench_now_ns(), peer_file_size(peer_path("guest.console")) };
}

/* Thousands of pages a second since then. */
static void progress_add(struct bench_series *s, struct progress since)
{
	struct progress now = progress_now();

	bench_series_add(s, (double)(now.said - since.said) * 1.024 / ((double)(now.ns - since.ns) / 1e9));
}

static void measure_busy(unsigned int repeats)
{
	enum { UNDISTURBED, BACKGROUND, SAVEVM, SAVE, WATCH, NR };
	static const char *const names[] = { "undisturbed", "background-snapshot", "savevm", "wpsnap qemu save", "wpsnap qemu watch" };
	struct bench_series rate[NR];
	struct figures unused;
	struct link_figures unused_links;
	struct progress since;
	pid_t qemu = guest_with_monitor(true, filled / 8);

	for (unsigned int i = 0; i < NR; i++)
		bench_series_init(&rate[i], "k/s", "%s: pages written", names[i]);
	figures_init(&unused, "");
	link_figures_init(&unused_links, "");
	for (unsigned int i = 0; i < repeats; i++) {
		since = progress_now();
		usleep(1000000);
		progress_add(&rate[UNDISTURBED], since);
		since = progress_now();
		by_qemu(&unused);
		progress_add(&rate[BACKGROUND], since);
		since = progress_now();
		by_savevm(&unused);
		progress_add(&rate[SAVEVM], since);
		since = progress_now();
		by_wpsnap_qemu(&unused_links);
		progress_add(&rate[SAVE], since);
		since = progress_now();
		by_watch(&unused_links, 5);
		progress_add(&rate[WATCH], since);
	}
	guest_stop(qemu);
	bench_table("What such a guest gets done while it is saved, writing to %s without a pause, %u repeats", bench_bytes(filled / 8), repeats);
	for (unsigned int i = 0; i < NR; i++)
		bench_row(&rate[i], i ? &rate[UNDISTURBED] : NULL, NULL);
	bench_note("each from the beginning of the command to its end; watch: a base and 5 links in all, 200 ms apart");
}

/* ---- restores ---- */

static bool appears(const char *path, const char *text, pid_t pid)
{
	uint64_t deadline = bench_now_ns() + 120000000000u;

	while (!strstr(peer_text(path), text)) {
		if (!peer_alive(pid) || bench_now_ns() > deadline)
			return false;
		usleep(1000);
	}
	return true;
}

/* Until the guest says something, and until all is there. */
static void by_restore(bool lazy, const char *chain, struct bench_series *first, struct bench_series *all)
{
	const char *argv[48] = { peer_wpsnap(), "qemu", "restore", chain };
	unsigned int n = 4, i;
	struct command c;
	uint64_t t0;
	pid_t pid;

	if (lazy)
		argv[n++] = "--lazy";
	argv[n++] = "--";
	guest_command(&c, "copy", true, 0);
	for (i = 0; c.argv[i]; i++)
		argv[n++] = c.argv[i];
	t0 = bench_now_ns();
	pid = peer_start("restore", argv);
	if (!appears(c.console, ".", pid))
		peer_fail("restore", "the guest does not run");
	bench_series_add(first, (double)(bench_now_ns() - t0) / 1e6);
	if (lazy && !appears(peer_path("restore.err"), "all memory of", pid))
		peer_fail("restore", "its memory does not come");
	bench_series_add(all, (double)(bench_now_ns() - t0) / 1e6);
	peer_stop(pid);
	unlink(peer_path("copy.ram"));
}

static void measure_restore(unsigned int repeats)
{
	const struct bench_aim fifth = { BENCH_RATIO, false, 0.2 };
	struct bench_series first[2], all[2];
	const char *file = peer_path("guest.wps");
	const char *argv[] = { peer_wpsnap(), "qemu", "save", peer_path("guest.wpsnap"), "-o", file, "-q", "--assume-sole-writer", NULL };
	pid_t qemu = guest_with_monitor(true, 0);
	uint64_t kib;

	peer_run("wpsnap-qemu", argv, &kib);
	guest_stop(qemu);
	bench_series_init(&first[0], "ms", "wpsnap qemu restore: the guest runs");
	bench_series_init(&first[1], "ms", "with --lazy: the guest runs");
	bench_series_init(&all[0], "ms", "wpsnap qemu restore: all is there");
	bench_series_init(&all[1], "ms", "with --lazy: all is there");
	for (unsigned int i = 0; i < repeats; i++) {
		by_restore(false, file, &first[0], &all[0]);
		by_restore(true, file, &first[1], &all[1]);
	}
	unlink(file);
	bench_table("Restores of that guest, of %s, %s of it filled, %u repeats", bench_bytes(ram), bench_bytes(filled), repeats);
	bench_row(&first[0], NULL, NULL);
	bench_row(&first[1], &first[0], &fifth);
	bench_row(&all[1], &all[0], NULL);
	bench_note("from the start of the command to the guest's first word, which it says at most 10 ms after it runs; QEMU's own start is in it");
}

int main(void)
{
	unsigned int repeats = (bench_repeats(30) + 5) / 6;

	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	peer_need("qemu-system-x86_64", "qemu-system-x86");
	peer_need("qemu-img", "qemu-utils");
	if (access(guest_path(), R_OK)) {
		printf("skipped: there is no %s (it is built where gcc knows -m32)\n", guest_path());
		return 77;
	}
	ram = bench_size(BENCH_GIB);
	if (ram < 64 * BENCH_MIB)
		ram = 64 * BENCH_MIB;
	filled = ram / 2;
	measure_shared(repeats);
	measure_private(repeats);
	measure_busy(repeats);
	measure_restore(repeats);
	return 0;
}
