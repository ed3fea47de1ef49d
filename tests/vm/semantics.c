/* SPDX-License-Identifier: MIT */
/*
 * Runs the cells, each in a child of its own, and prints `kind | event / state | result`, or compares with a file that has the stock and
 * the patched kernel side by side. Results: W written, c clean and unchanged, LOST changed and reported clean, with how far it went beyond
 * the subject; EPERM: the scan says that a part is not tracked; !what: what does not agree (see semantics_cell.c).
 */
#define _GNU_SOURCE
#include "semantics.h"
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <getopt.h>
#include <linux/mount.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct options opt;

struct line {
	char *cell;
	const char *column[2]; /* stock, patched */
	char *got;
	size_t order; /* of the run, from 1 */
};
static struct line *line;
static size_t nr_lines, nr_run;
static int differ, not_run, left_out;

/* ---- one cell */

#define HANG_SECONDS 300

struct run {
	pid_t pid;
	int fd;
	char out[400];
};

static void start(struct run *r, const struct kind *k, const struct event *e, enum state s, enum way way)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC) != 0 || (r->pid = fork()) < 0) {
		perror("semantics");
		exit(2);
	}
	if (!r->pid) {
		static struct cell c;

		close(p[0]);
		c.kind = k;
		c.event = e;
		c.state = s;
		c.way = way;
		c.result = p[1];
		cell_run(&c);
	}
	close(p[1]);
	r->fd = p[0];
}

static void finish(struct run *r)
{
	size_t n = 0;
	ssize_t got;
	bool hung = true;
	int st;

	/* In ticks, since the clock of an emulated machine may leap. */
	for (int tick = 0; tick < HANG_SECONDS && n < sizeof(r->out) - 1;) {
		struct pollfd p = {.fd = r->fd, .events = POLLIN};

		if (poll(&p, 1, 1000) != 1) {
			tick++;
			continue;
		}
		got = read(r->fd, r->out + n, sizeof(r->out) - 1 - n);
		if (got <= 0) {
			hung = false;
			break;
		}
		n += (size_t)got;
	}
	r->out[n] = '\0';
	close(r->fd);
	if (hung)
		kill(r->pid, SIGKILL);
	waitpid(r->pid, &st, 0);
	if (hung)
		snprintf(r->out, sizeof(r->out), "HUNG");
	else if (WIFSIGNALED(st))
		snprintf(r->out, sizeof(r->out), "KILLED by signal %d", WTERMSIG(st));
	else if (!n)
		snprintf(r->out, sizeof(r->out), "NOTHING");
}

/* Both ways at once, but for what is about the whole machine. */
static void run_cell(const struct kind *k, const struct event *e, enum state s, char *out, size_t room)
{
	struct run r[NR_WAYS];
	int ways = e->flags & E_SYNC ? 1 : NR_WAYS;

	for (int w = 0; w < ways; w++) {
		start(&r[w], k, e, s, (enum way)w);
		if (e->flags & E_SYSTEM)
			finish(&r[w]);
	}
	for (int w = 0; w < ways && !(e->flags & E_SYSTEM); w++)
		finish(&r[w]);
	if (ways == 1 || !strcmp(r[BY_PROTECT].out, r[BY_SCAN].out))
		snprintf(out, room, "%s", r[BY_PROTECT].out);
	else
		snprintf(out, room, "protect: %s; scan: %s", r[BY_PROTECT].out, r[BY_SCAN].out);
}

/* ---- what the machine has */

static bool has_written(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	bool has = fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 && (api.features & UFFD_FEATURE_WP_WRITTEN);

	if (fd >= 0)
		close(fd);
	return has;
}

/* A mount that nobody else sees, in no place. */
static int mount_huge(void)
{
	int fs = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC), m = -1;

	if (fs >= 0 && syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "huge", "advise", 0) == 0 &&
	    syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
		m = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
	if (fs >= 0)
		close(fs);
	return m;
}

static long huge_free(void)
{
	char b[128];
	long n = -1;
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(b, sizeof(b), f))
		sscanf(b, "HugePages_Free: %ld", &n);
	if (f)
		fclose(f);
	return n;
}

/* Page tables that protecting 1 GiB of untouched memory makes, in the process itself. */
static long page_tables(void)
{
	char b[128];
	long n = -1;
	FILE *f = fopen("/proc/self/status", "re");

	while (f && fgets(b, sizeof(b), f))
		sscanf(b, "VmPTE: %ld", &n);
	if (f)
		fclose(f);
	return n;
}

static void tables_cell(bool shared, enum way way, char *out, size_t room)
{
	size_t len = 1UL << 30;
	int fd = shared ? memfd_create("semantics", MFD_CLOEXEC) : -1;
	struct event e = {.name = ""};
	struct cell c = {.way = way, .event = &e, .result = STDERR_FILENO};
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | (opt.written ? UFFD_FEATURE_WP_WRITTEN : 0)};
	char *m;
	long before;

	if (shared && ftruncate(fd, (off_t)len) != 0)
		perror("ftruncate");
	c.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	c.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (ioctl(c.uffd, UFFDIO_API, &api) != 0)
		perror("UFFDIO_API");
	m = mmap(NULL, len, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS) | MAP_NORESERVE, fd, 0);
	uffd_register(&c, m, len);
	before = page_tables();
	/* A scan's result lists 16 MiB at once. */
	for (size_t o = 0; o < len; o += MAX_PAGES * PG)
		protect(&c, m + o, MAX_PAGES * PG);
	snprintf(out, room, page_tables() - before >= 1024 ? "page tables" : page_tables() - before <= 32 ? "none" : "some");
	munmap(m, len);
	close(c.uffd);
	close(c.pagemap);
	if (fd >= 0)
		close(fd);
}

/* ---- lines */

static struct line *line_of(const char *cell)
{
	for (size_t i = 0; i < nr_lines; i++)
		if (!strcmp(line[i].cell, cell))
			return &line[i];
	return NULL;
}

static struct line *line_add(const char *cell)
{
	line = reallocarray(line, nr_lines + 1, sizeof(*line));
	if (!line)
		exit(2);
	line[nr_lines] = (struct line){.cell = strdup(cell)};
	return &line[nr_lines++];
}

static char *trim(char *s)
{
	while (*s == ' ')
		s++;
	for (char *e = s + strlen(s); e > s && e[-1] == ' ';)
		*--e = '\0';
	return s;
}

/* `kind | event / state state ... | stock | patched`, blanks around the bars as one likes; # begins a comment. */
static void expected_line(char *b)
{
	char cell[600], *f[4], *states, *state;
	int n = 0;

	for (; n < 4 && (f[n] = strsep(&b, "|\n")); n++)
		f[n] = trim(f[n]);
	if (n < 4 || f[0][0] == '#')
		return;
	states = strstr(f[1], " / ");
	if (states) {
		*states = '\0';
		states += 3;
	}
	while ((state = strsep(&states, " ")) || n) {
		struct line *l;

		snprintf(cell, sizeof(cell), "%s | %s%s%s", f[0], f[1], state ? " / " : "", state ? state : "");
		l = line_add(cell);
		l->column[0] = strdup(f[2]);
		l->column[1] = strdup(f[3]);
		n = 0;
	}
}

static void expected_read(const char *path)
{
	char b[1024];
	FILE *in = fopen(path, "re");

	if (!in) {
		perror(path);
		exit(2);
	}
	while (fgets(b, sizeof(b), in))
		expected_line(b);
	fclose(in);
}

static const char heading[] =
	"# What a kernel reports of a protected page after an event, stock 6.12 and with the patches of kernel/: semantics.c runs it, and "
	"prints\n"
	"# this file anew with --update. kind | event / states before it | stock | patched\n"
	"#\n"
	"# W written; c clean, and the content is as it was; LOST the content changed and the page is said to be clean; W(2M) so are the "
	"other pages of\n"
	"# the 2 MiB; W(+N) so are N other pages; W+c some of the pages; EPERM the scan says that a part is not tracked (what mremap "
	"moved, what\n"
	"# was mapped anew); refused E the kernel does not do it there. protect: ...; scan: ... differ by what armed the range.\n"
	"# !scans !fast !bit57 the ways to ask disagree; !wp-scan the protecting scan found other pages; !rearm pages are written after "
	"it;\n"
	"# !read reading made a page written; !blind the next write was not seen; !content wrong content. huge, left, E: what collapse "
	"did.\n"
	"#\n"
	"# States: untouched, hole (of the file), read (mapped by reading), clean (written before protection), written (after it), +out "
	"(then\n"
	"# paged out), +zapped (then MADV_DONTNEED).\n";

static const char *column_name[2] = {"stock", "patched"};
static int update = -1;
static bool comparing;

static void report(const char *cell, const char *got)
{
	struct line *l = line_of(cell);
	const char *want;

	if (!l)
		l = line_add(cell);
	want = l->column[opt.written];
	free(l->got);
	l->got = strdup(got);
	l->order = ++nr_run;
	if (update >= 0)
		return;
	if (!comparing || opt.verbose)
		printf("%s | %s\n", cell, got);
	if (comparing && (!want || strcmp(want, got) != 0)) {
		differ++;
		not_run += !strncmp(got, "n/a (", 5);
		printf("not as expected: %s | expected %s | got %s\n", cell, want ? want : "nothing, the file has no such line", got);
	}
	fflush(stdout);
}

/* Lines of the file that no cell has. */
static void report_missing(void)
{
	for (size_t i = 0; i < nr_lines; i++)
		if (!line[i].got) {
			differ++;
			printf("no such cell: %s\n", line[i].cell);
		}
}

static int by_order(const void *a, const void *b)
{
	const struct line *x = a, *y = b;

	return (x->order > y->order) - (x->order < y->order);
}

/* Length of `kind | event`, without the state. */
static size_t event_len(const char *cell)
{
	const char *state = strstr(cell, " / ");

	return state ? (size_t)(state - cell) : strlen(cell);
}

static bool same_row(const struct line *a, const struct line *b)
{
	size_t n = event_len(a->cell);

	return n == event_len(b->cell) && !strncmp(a->cell, b->cell, n) && !strcmp(a->column[0], b->column[0]) &&
	       !strcmp(a->column[1], b->column[1]);
}

/* The states of an event that have the same answers are in one row. */
static void print_row(size_t first, bool *printed)
{
	char row[700];

	snprintf(row, sizeof(row), "%s", line[first].cell);
	for (size_t i = first + 1; i < nr_lines; i++) {
		if (printed[i] || !same_row(&line[first], &line[i]))
			continue;
		strncat(row, line[i].cell + event_len(line[i].cell) + 2, sizeof(row) - strlen(row) - 1);
		printed[i] = true;
	}
	printf("%s | %s | %s\n", row, line[first].column[0], line[first].column[1]);
}

/* In the order of a complete run, and then without what no cell has; else as the file has it. */
static void print_updated(bool complete)
{
	bool *printed = calloc(nr_lines + 1, sizeof(*printed));

	if (!printed)
		exit(2);
	if (complete)
		qsort(line, nr_lines, sizeof(*line), by_order);
	for (size_t i = 0; i < nr_lines; i++) {
		if (line[i].got)
			line[i].column[update] = line[i].got;
		for (int k = 0; k < 2; k++)
			if (!line[i].column[k])
				line[i].column[k] = "?";
		printed[i] = complete && !line[i].order;
	}
	fputs(heading, stdout);
	for (size_t i = 0; i < nr_lines; i++)
		if (!printed[i])
			print_row(i, printed);
	free(printed);
}

/* ---- all of it */

static const char *only = "*", *only_kind;
static const char *disk;
static bool list;

static bool wanted(const char *kind, const char *cell)
{
	return (!only_kind || !strcmp(only_kind, kind)) && fnmatch(only, cell, 0) == 0;
}

static void leave_out(const char *cell)
{
	struct line *l = line_of(cell);

	left_out++;
	if (l && update < 0)
		l->got = strdup("");
}

static void all_cells(void)
{
	char cell[300], got[900];

	for (size_t k = 0; k < nr_kinds; k++)
		for (size_t e = 0; e < nr_events; e++)
			for (enum state s = 0; s < NR_STATES; s++) {
				if (!cell_exists(&kinds[k], &events[e], s))
					continue;
				snprintf(cell, sizeof(cell), "%s | %s / %s", kinds[k].name, events[e].name, state_name[s]);
				if (!wanted(kinds[k].name, cell))
					continue;
				if (list) {
					puts(cell);
					continue;
				}
				if ((events[e].flags & E_SYSTEM) && !opt.system) {
					leave_out(cell);
					continue;
				}
				run_cell(&kinds[k], &events[e], s, got, sizeof(got));
				report(cell, got);
			}
}

static void table_cells(void)
{
	static const char *const kind[] = {"anon", "memfd"};
	static const char *const way[] = {"UFFDIO_WRITEPROTECT", "PAGEMAP_SCAN"};
	char cell[300], got[100];

	for (int k = 0; k < 2; k++)
		for (int w = 0; w < NR_WAYS; w++) {
			snprintf(cell, sizeof(cell), "%s | page tables for 1 GiB untouched by %s", kind[k], way[w]);
			if (!wanted(kind[k], cell))
				continue;
			if (list) {
				puts(cell);
				continue;
			}
			tables_cell(k == 1, (enum way)w, got, sizeof(got));
			report(cell, got);
		}
}

static void usage(FILE *to)
{
	fputs("usage: semantics [--list] [--only PATTERN] [--kind K] [--no-written] [--system] [--disk DIR] [-v]\n"
	      "                 [--expected FILE [--update stock|patched]]\n"
	      "  --only PATTERN   shell pattern for `kind | event / state`\n"
	      "  --no-written     does not ask a patched kernel for UFFD_FEATURE_WP_WRITTEN\n"
	      "  --system         with events that touch the whole machine (KSM, khugepaged, swapoff, pages taken offline): for a VM\n"
	      "  --disk DIR       a directory on a disk file system\n"
	      "  --expected FILE  prints the cells that differ from FILE, status 1 if any does\n"
	      "  --update COLUMN  prints FILE with that column replaced by what is found\n",
	      to);
}

static void options(int argc, char **argv, const char **expected)
{
	static const struct option longs[] = {
		{"list", no_argument, NULL, 'l'},
		{"only", required_argument, NULL, 'o'},
		{"kind", required_argument, NULL, 'k'},
		{"no-written", no_argument, NULL, 'n'},
		{"system", no_argument, NULL, 's'},
		{"disk", required_argument, NULL, 'd'},
		{"verbose", no_argument, NULL, 'v'},
		{"expected", required_argument, NULL, 'e'},
		{"update", required_argument, NULL, 'u'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	int o;

	opt.written = opt.has_written = has_written();
	while ((o = getopt_long(argc, argv, "v", longs, NULL)) != -1) {
		switch (o) {
		case 'l':
			list = true;
			break;
		case 'o':
			only = optarg;
			break;
		case 'k':
			only_kind = optarg;
			break;
		case 'n':
			opt.written = false;
			break;
		case 's':
			opt.system = true;
			break;
		case 'd':
			disk = optarg;
			break;
		case 'v':
			opt.verbose = true;
			break;
		case 'e':
			*expected = optarg;
			break;
		case 'u':
			update = !strcmp(optarg, "patched") ? 1 : !strcmp(optarg, "stock") ? 0 : 2;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			usage(stderr);
			exit(2);
		}
	}
	if (update == 2 || (update >= 0 && !*expected) || optind != argc) {
		usage(stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	const char *expected = NULL;
	long free_before, free_after;

	options(argc, argv, &expected);
	opt.huge = mount_huge();
	opt.disk = disk ? open(disk, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	if (expected)
		expected_read(expected);
	comparing = expected && update < 0;
	free_before = huge_free();
	all_cells();
	table_cells();
	free_after = huge_free();
	if (list)
		return 0;
	if (update >= 0)
		print_updated(!strcmp(only, "*") && !only_kind && !left_out);
	if (free_before != free_after) {
		fprintf(stderr, "semantics: HugePages_Free was %ld and is %ld\n", free_before, free_after);
		differ++;
	}
	if (comparing && !strcmp(only, "*") && !only_kind)
		report_missing();
	if (left_out)
		fprintf(stderr, "semantics: %d cells left out for want of --system\n", left_out);
	if (comparing)
		printf("semantics: %s column, %d cells not as expected, %d of them not run, of %zu cells\n", column_name[opt.written],
		       differ, not_run, nr_run);
	return differ ? 1 : 0;
}
