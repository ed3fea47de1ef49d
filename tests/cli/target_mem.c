/* SPDX-License-Identifier: MIT */
/*
 * A target with memory at known places that does what standard input says, a command a line, and answers "ok" when it is done. Between
 * commands it changes nothing.
 *
 * Usage: target_mem [ANON_PAGES [SHARED_PAGES [hole]]]
 *
 * Memory: anonymous at ANON, a shared memfd "guest.ram" at SHARED; with "hole" a second mapping of the memfd apart from it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

#define ANON 0x100000000000ull
#define SHARED 0x110000000000ull
#define EXTRA 0x120000000000ull
#define PAGE 4096u

static uint64_t state;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void fill(uint64_t base, size_t first, size_t count, uint64_t seed)
{
	uint64_t *p = (uint64_t *)(uintptr_t)(base + first * PAGE);
	size_t i;

	state = seed * 0x9e3779b97f4a7c15ull + 1;
	for (i = 0; i < count * PAGE / sizeof(*p); i++)
		p[i] = next();
}

static void *map_at(uint64_t addr, size_t pages, int flags, int fd)
{
	void *p;

	p = mmap((void *)(uintptr_t)addr, pages * PAGE, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, fd, 0);
	if (p != (void *)(uintptr_t)addr) {
		perror("mmap");
		exit(1);
	}
	return p;
}

static void execute(const char *path)
{
	execl(path, path, (char *)NULL);
	perror(path);
	exit(1);
}

/* The extra mapping gets a userfaultfd of the target's own, so that nobody else can register it. */
static void hold(size_t pages)
{
	struct uffdio_register reg = { .range = { EXTRA, pages * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_api api = { .api = UFFD_API };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg)) {
		perror("userfaultfd");
		exit(1);
	}
}

/* Linux 6.6; vendored, for older headers */
struct poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define POISON_FEATURE (1u << 14)
#define POISON _IOWR(UFFDIO, 0x08, struct poison)

/* Pages of the extra mapping become unreadable for good, as after a memory error. */
static void poison(size_t first, size_t count)
{
	struct uffdio_register reg = { .range = { EXTRA + first * PAGE, count * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct poison p = { .range = reg.range };
	struct uffdio_api api = { .api = UFFD_API, .features = POISON_FEATURE };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

	madvise((void *)(uintptr_t)reg.range.start, reg.range.len, MADV_DONTNEED);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg) || ioctl(fd, POISON, &p)) {
		perror("poison");
		exit(1);
	}
	close(fd);
}

/* A child that has exited and is not waited for; its pid goes to the file zombie.pid. */
static void zombie(void)
{
	pid_t pid = fork();
	siginfo_t info;
	FILE *f;

	if (pid == 0)
		_exit(0);
	f = fopen("zombie.pid", "w");
	if (pid < 0 || waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) || !f) {
		perror("zombie");
		exit(1);
	}
	fprintf(f, "%d\n", (int)pid);
	fclose(f);
}

static void command(const char *line, size_t anon, size_t shared)
{
	unsigned long first, count, seed;
	char path[4096];
	int code;

	if (sscanf(line, "fill %lu", &seed) == 1) {
		fill(ANON, 0, anon, seed);
		fill(SHARED, 0, shared, seed + 1);
	} else if (sscanf(line, "write %lu %lu %lu", &first, &count, &seed) == 3) {
		fill(ANON, first, count, seed);
	} else if (sscanf(line, "shared %lu %lu %lu", &first, &count, &seed) == 3) {
		fill(SHARED, first, count, seed);
	} else if (sscanf(line, "same %lu %lu", &first, &count) == 2) {
		memset((void *)(uintptr_t)(ANON + first * PAGE), 0x5a, count * PAGE);
	} else if (sscanf(line, "zap %lu %lu", &first, &count) == 2) {
		if (madvise((void *)(uintptr_t)(ANON + first * PAGE), count * PAGE, MADV_DONTNEED))
			perror("madvise");
	} else if (sscanf(line, "extra %lu %lu", &count, &seed) == 2) {
		map_at(EXTRA, count, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		fill(EXTRA, 0, count, seed);
	} else if (sscanf(line, "unmap %lu", &count) == 1) {
		munmap((void *)(uintptr_t)EXTRA, count * PAGE);
	} else if (sscanf(line, "hold %lu", &count) == 1) {
		hold(count);
	} else if (sscanf(line, "poison %lu %lu", &first, &count) == 2) {
		poison(first, count);
	} else if (strcmp(line, "zombie") == 0) {
		zombie();
	} else if (sscanf(line, "exec %4095s", path) == 1) {
		execute(path);
	} else if (sscanf(line, "exit %d", &code) == 1) {
		exit(code);
	} else if (sscanf(line, "kill %d", &code) == 1) {
		raise(code);
	} else {
		fprintf(stderr, "target_mem: what is '%s'?\n", line);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	size_t anon = argc > 1 ? strtoul(argv[1], NULL, 10) : 256;
	size_t shared = argc > 2 ? strtoul(argv[2], NULL, 10) : 64;
	/* nothing but the commands may change the heap or the stack */
	static char line[8192], out[64];
	int fd;

	setvbuf(stdout, out, _IOLBF, sizeof(out));
	map_at(ANON, anon, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	fd = memfd_create("guest.ram", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)(2 * shared * PAGE))) {
		perror("memfd");
		return 1;
	}
	map_at(SHARED, shared, MAP_SHARED, fd);
	if (argc > 3)
		map_at(SHARED + 4 * shared * PAGE, shared, MAP_SHARED, fd);
	close(fd);
	puts("ok");
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		command(line, anon, shared);
		puts("ok");
	}
	return 0;
}
