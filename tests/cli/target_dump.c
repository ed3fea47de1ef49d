/* SPDX-License-Identifier: MIT */
/*
 * The oracle: what memory of a stopped process holds, by /proc/PID/mem, page by page and with no code of the library.
 *
 * Usage: target_dump PID START-END FILE    writes the range (hexadecimal); a page that can't be read becomes zeros
 *        target_dump PID writable          lists START-END of all writable mappings
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096u

static int is_stopped(const char *pid)
{
	char path[64], line[1024];
	const char *p;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%s/stat", pid);
	f = fopen(path, "r");
	if (!f || !fgets(line, sizeof(line), f))
		return 0;
	fclose(f);
	p = strrchr(line, ')');
	return p && (p[2] == 'T' || p[2] == 't');
}

static int list(const char *pid)
{
	char path[64], perms[5];
	uint64_t start, end;
	char line[8192];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%s/maps", pid);
	f = fopen(path, "r");
	if (!f)
		return 1;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, perms) == 3 && perms[1] == 'w')
			printf("%" PRIx64 "-%" PRIx64 "\n", start, end);
	fclose(f);
	return 0;
}

int main(int argc, char **argv)
{
	unsigned char page[PAGE];
	char path[64];
	uint64_t start, end, at;
	FILE *out;
	int mem;

	if (argc == 3 && strcmp(argv[2], "writable") == 0)
		return list(argv[1]);
	if (argc != 4 || sscanf(argv[2], "%" SCNx64 "-%" SCNx64, &start, &end) != 2)
		return 2;
	if (!is_stopped(argv[1])) {
		fprintf(stderr, "target_dump: process %s is not stopped\n", argv[1]);
		return 1;
	}
	snprintf(path, sizeof(path), "/proc/%s/mem", argv[1]);
	mem = open(path, O_RDONLY);
	out = fopen(argv[3], "w");
	if (mem < 0 || !out) {
		perror("target_dump");
		return 1;
	}
	for (at = start; at < end; at += PAGE) {
		if (pread(mem, page, PAGE, (off_t)at) != PAGE)
			memset(page, 0, PAGE);
		if (fwrite(page, 1, PAGE, out) != PAGE)
			return 1;
	}
	return fclose(out) != 0;
}
