/* SPDX-License-Identifier: MIT */
/*
 * dump_compare PID FOLDER: compares the raw images that `wpsnap restore` wrote to FOLDER with the memory of a stopped process, page by
 * page. It shares no code with the library: it reads /proc/PID/maps, pagemap and mem itself, so that both can't have the same fault.
 *
 * A page that is neither present nor swapped is not read through the mapping, which would populate it: of anonymous memory it is zero, of a
 * file it is what the file holds.
 *
 * The last line is "R ranges, N pages (P populated), D differences, U missing". Exits with 0 if the last two are 0.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096u
#define MAX_MAPS 65536

struct map {
	uint64_t start, end, offset, inode;
	bool write;
	char name[256];
};

struct image {
	uint64_t start, end;
	char path[4096];
};

static struct map *maps;
static size_t nr_maps;
static int mem, pagemap, folder_of_files;
static uint64_t nr_ranges, nr_pages, nr_populated, nr_different, nr_missing;

static void die(const char *what)
{
	fprintf(stderr, "dump_compare: %s: %s\n", what, strerror(errno));
	exit(2);
}

static int open_proc(int pid, const char *name, int flags)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, flags | O_CLOEXEC);
	if (fd < 0 && !(flags & O_DIRECTORY))
		die(path);
	return fd;
}

static void read_maps(int pid)
{
	char path[64], line[8192], perms[5];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	f = fopen(path, "re");
	if (!f)
		die(path);
	maps = calloc(MAX_MAPS, sizeof(*maps));
	while (maps && nr_maps < MAX_MAPS && fgets(line, sizeof(line), f)) {
		struct map *m = &maps[nr_maps];

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %*s %" SCNu64 " %255[^\n]", &m->start, &m->end, perms,
			   &m->offset, &m->inode, m->name) < 5)
			continue;
		m->write = perms[1] == 'w';
		nr_maps++;
	}
	fclose(f);
}

static const struct map *map_of(uint64_t addr)
{
	for (size_t i = 0; i < nr_maps; i++)
		if (addr >= maps[i].start && addr < maps[i].end)
			return &maps[i];
	return NULL;
}

/* The file's content at this page of the mapping; 0 if the page is behind its end. */
static bool read_file(const struct map *m, uint64_t addr, unsigned char *page)
{
	char name[64];
	ssize_t n;
	int fd;

	snprintf(name, sizeof(name), "%" PRIx64 "-%" PRIx64, m->start, m->end);
	fd = openat(folder_of_files, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	memset(page, 0, PAGE);
	n = pread(fd, page, PAGE, (off_t)(m->offset + (addr - m->start)));
	close(fd);
	return n > 0;
}

/* What the process would see at `addr`. False: nothing, it can't be read. */
static bool read_memory(uint64_t addr, unsigned char *page)
{
	const struct map *m = map_of(addr);
	uint64_t entry;

	memset(page, 0, PAGE);
	if (!m)
		return false;
	if (pread(pagemap, &entry, sizeof(entry), (off_t)(addr / PAGE * sizeof(entry))) != sizeof(entry))
		die("pagemap");
	/* bit 63 present, bit 62 swapped; the mark that write protection leaves in an empty place shows as swapped too, and reads as zero */
	if (entry >> 62) {
		nr_populated++;
		return pread(mem, page, PAGE, (off_t)addr) == PAGE;
	}
	if (m->inode && read_file(m, addr, page))
		return true;
	return !m->inode || pread(mem, page, PAGE, (off_t)addr) == PAGE;
}

static void compare_image(const struct image *image)
{
	unsigned char now[PAGE], restored[PAGE];
	int fd = open(image->path, O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		die(image->path);
	if ((uint64_t)st.st_size != image->end - image->start) {
		printf("%s: %jd bytes, not %" PRIu64 "\n", image->path, (intmax_t)st.st_size, image->end - image->start);
		nr_different++;
	}
	for (uint64_t addr = image->start; addr < image->end; addr += PAGE) {
		bool readable = read_memory(addr, now);

		nr_pages++;
		if (pread(fd, restored, PAGE, (off_t)(addr - image->start)) != PAGE || memcmp(now, restored, PAGE)) {
			if (nr_different++ < 10)
				printf("%" PRIx64 ": differs%s\n", addr, readable ? "" : " (and can't be read)");
		}
	}
	close(fd);
	nr_ranges++;
}

/* Marks what the images do not cover; writable memory that no image has is missing from the snapshot. */
static void count_missing(const struct image *images, size_t n)
{
	for (size_t i = 0; i < nr_maps; i++) {
		uint64_t addr = maps[i].start;

		if (!maps[i].write)
			continue;
		for (size_t k = 0; k < n && addr < maps[i].end; k++)
			if (images[k].start <= addr && images[k].end > addr)
				addr = images[k].end;
		if (addr < maps[i].end) {
			printf("%" PRIx64 "-%" PRIx64 " %s: writable, and not in the snapshot\n", addr, maps[i].end, maps[i].name);
			nr_missing++;
		}
	}
}

static int by_start(const void *a, const void *b)
{
	const struct image *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* The files of the folder that are named START-END[-NAME].raw. */
static struct image *list_images(const char *folder, size_t *n)
{
	struct image *images = NULL;
	struct dirent *e;
	DIR *dir = opendir(folder);

	*n = 0;
	if (!dir)
		die(folder);
	while ((e = readdir(dir))) {
		struct image image;

		if (!isxdigit((unsigned char)e->d_name[0]) || sscanf(e->d_name, "%" SCNx64 "-%" SCNx64, &image.start, &image.end) != 2)
			continue;
		snprintf(image.path, sizeof(image.path), "%s/%s", folder, e->d_name);
		images = realloc(images, (*n + 1) * sizeof(*images));
		if (!images)
			die("memory");
		images[(*n)++] = image;
	}
	closedir(dir);
	if (*n)
		qsort(images, *n, sizeof(*images), by_start);
	return images;
}

int main(int argc, char **argv)
{
	struct image *images;
	size_t n;
	int pid;

	if (argc != 3 || (pid = atoi(argv[1])) <= 0) {
		fprintf(stderr, "usage: dump_compare PID FOLDER\n");
		return 2;
	}
	mem = open_proc(pid, "mem", O_RDONLY);
	pagemap = open_proc(pid, "pagemap", O_RDONLY);
	folder_of_files = open_proc(pid, "map_files", O_RDONLY | O_DIRECTORY);
	read_maps(pid);
	images = list_images(argv[2], &n);
	for (size_t i = 0; i < n; i++)
		compare_image(&images[i]);
	count_missing(images, n);
	printf("%" PRIu64 " ranges, %" PRIu64 " pages (%" PRIu64 " populated), %" PRIu64 " differences, %" PRIu64 " missing\n", nr_ranges, nr_pages,
	       nr_populated, nr_different, nr_missing);
	free(images);
	free(maps);
	return nr_ranges && !nr_different && !nr_missing ? 0 : 1;
}
