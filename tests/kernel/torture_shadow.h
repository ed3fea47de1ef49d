/* SPDX-License-Identifier: MIT */
/*
 * The shadow: what every page of every area holds and what is mapped, taken by a reader that shares nothing with the library, while
 * the target stands still.
 *
 * It must not change what is tested: pages that are not there are not read through the mapping but known to be zero or read from
 * the file. Only system calls: in the own process other threads may hold malloc's lock.
 */
#ifndef TORTURE_SHADOW_H
#define TORTURE_SHADOW_H

#include "torture.h"

enum shadow_class {
	SHADOW_UNMAPPED,
	SHADOW_ZERO,       /* nothing there */
	SHADOW_MEMORY,     /* present or in swap */
	SHADOW_FILE,       /* the file's */
	SHADOW_BEHIND_END, /* of the file: unreadable */
	SHADOW_GUARD,
	SHADOW_UNREADABLE,
	NR_SHADOW_CLASSES
};

static const char *const shadow_names[NR_SHADOW_CLASSES] = { "unmapped", "nothing there", "memory", "file", "behind the file's end",
							     "guard page", "unreadable" };

struct shadow_area {
	uint8_t *data;     /* the slot */
	uint8_t *class;    /* per 4 KiB */
	uint64_t *pagemap; /* raw entries */
	int fd;            /* read-only, of the area's file */
	int anon_fd;       /* of shared anonymous memory, through map_files */
	uint64_t anon_ino;
};

struct shadow {
	pid_t pid;
	int pagemap, mem;
	char maps_path[64];
	struct vma_list maps;
	struct shadow_area areas[MAX_AREAS];
	unsigned nr_areas;
	int error;         /* of shadow_take() */
};

#define PM_PRESENT (1ull << 63)
#define PM_SWAPPED (1ull << 62)
#define PM_FILE (1ull << 61)
#define PM_GUARD (1ull << 58)

static void *shadow_alloc(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int shadow_open(struct shadow *s, struct ctl *ctl, pid_t pid)
{
	char path[64];

	memset(s, 0, sizeof(*s));
	s->pid = pid;
	snprintf(s->maps_path, sizeof(s->maps_path), "/proc/%d/maps", (int)pid);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	s->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
	s->mem = open(path, O_RDONLY | O_CLOEXEC);
	if (s->pagemap < 0 || s->mem < 0 || vma_list_init(&s->maps))
		return -errno;
	s->nr_areas = ctl->nr_areas;
	for (unsigned i = 0; i < s->nr_areas; i++) {
		struct shadow_area *sa = &s->areas[i];
		struct area *a = &ctl->areas[i];
		uint64_t bytes = a->end - a->start;

		sa->fd = sa->anon_fd = -1;
		sa->data = shadow_alloc(bytes);
		sa->class = shadow_alloc(bytes / TP);
		sa->pagemap = shadow_alloc(bytes / TP * 8);
		if (!sa->data || !sa->class || !sa->pagemap)
			return -ENOMEM;
		if (a->fd < 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, a->fd);
		sa->fd = open(path, O_RDONLY | O_CLOEXEC);
		if (sa->fd < 0)
			return -errno;
	}
	return 0;
}

static void shadow_close(struct shadow *s, struct ctl *ctl)
{
	close(s->pagemap);
	close(s->mem);
	munmap(s->maps.v, s->maps.max * sizeof(struct vma));
	munmap(s->maps.text, s->maps.text_size);
	for (unsigned i = 0; i < s->nr_areas; i++) {
		struct shadow_area *sa = &s->areas[i];
		uint64_t bytes = ctl->areas[i].end - ctl->areas[i].start;

		munmap(sa->data, bytes);
		munmap(sa->class, bytes / TP);
		munmap(sa->pagemap, bytes / TP * 8);
		if (sa->fd >= 0)
			close(sa->fd);
		if (sa->anon_fd >= 0)
			close(sa->anon_fd);
	}
}

/* A marker is shown as swapped: of a type behind the swap devices' and with flags for an offset. Without privilege it looks like swap. */
static bool is_marker(uint64_t e)
{
	return !(e & PM_PRESENT) && (e & PM_SWAPPED) && (e & 31) >= 16 && (e >> 5 & ((1ull << 50) - 1)) <= 7;
}

static void hex(char **p, uint64_t x)
{
	char t[16];
	int n = 0;

	do
		t[n++] = "0123456789abcdef"[x & 15];
	while (x >>= 4);
	while (n)
		*(*p)++ = t[--n];
}

/* Shared anonymous memory has a file, but no descriptor. */
static int shadow_anon_file(struct shadow *s, struct shadow_area *sa, const struct vma *v)
{
	char path[128], *p = path;

	if (sa->anon_fd >= 0 && sa->anon_ino == v->ino)
		return sa->anon_fd;
	if (sa->anon_fd >= 0)
		close(sa->anon_fd);
	memcpy(p, s->maps_path, strlen(s->maps_path) - 4);
	p += strlen(s->maps_path) - 4;
	memcpy(p, "map_files/", 10);
	p += 10;
	hex(&p, v->start);
	*p++ = '-';
	hex(&p, v->end);
	*p = 0;
	sa->anon_fd = open(path, O_RDONLY | O_CLOEXEC);
	sa->anon_ino = v->ino;
	return sa->anon_fd;
}

static enum shadow_class shadow_classify(const struct area *a, const struct vma *v, uint64_t e, int fd)
{
	bool here = (e & PM_PRESENT) || ((e & PM_SWAPPED) && !is_marker(e) && a->unit == TP);

	if (e & PM_GUARD)
		return SHADOW_GUARD;
	if (v->shared && v->ino)
		return fd >= 0 ? SHADOW_FILE : SHADOW_MEMORY;
	if (here)
		return SHADOW_MEMORY;
	return v->ino && fd >= 0 ? SHADOW_FILE : SHADOW_ZERO;
}

static void shadow_page(struct shadow *s, struct area *a, struct shadow_area *sa, const struct vma *v, uint64_t addr, int fd)
{
	uint64_t i = (addr - a->start) / TP;
	uint8_t *to = sa->data + i * TP;
	ssize_t n = (ssize_t)TP;

	sa->class[i] = shadow_classify(a, v, sa->pagemap[i], fd);
	switch (sa->class[i]) {
	case SHADOW_MEMORY:
		n = pread(s->mem, to, TP, (off_t)addr);
		if (n != (ssize_t)TP)
			sa->class[i] = SHADOW_UNREADABLE;
		break;
	case SHADOW_GUARD:
	case SHADOW_FILE:
		n = v->ino && fd >= 0 ? pread(fd, to, TP, (off_t)(v->offset + (addr - v->start))) : 0;
		/* The last page of a file that ends within it: behind the end a page that is mapped can hold what the file has not. */
		if (n > 0 && n < (ssize_t)TP && sa->class[i] == SHADOW_FILE) {
			memset(to + n, 0, TP - (size_t)n);
			if (sa->pagemap[i] & PM_PRESENT && pread(s->mem, to, TP, (off_t)addr) != (ssize_t)TP)
				sa->class[i] = SHADOW_UNREADABLE;
			else
				n = (ssize_t)TP;
		}
		if (n != (ssize_t)TP && sa->class[i] == SHADOW_FILE)
			sa->class[i] = n < 0 ? SHADOW_UNREADABLE : SHADOW_BEHIND_END;
		break;
	default:
		n = 0;
	}
	if (n != (ssize_t)TP)
		memset(to, 0, TP);
}

static int shadow_area_take(struct shadow *s, struct area *a, struct shadow_area *sa)
{
	uint64_t bytes = a->end - a->start, addr;
	unsigned k;

	memset(sa->class, SHADOW_UNMAPPED, bytes / TP);
	if (pread(s->pagemap, sa->pagemap, bytes / TP * 8, (off_t)(a->start / TP * 8)) != (ssize_t)(bytes / TP * 8))
		return -EIO;
	addr = a->start;
	for (k = 0; k < s->maps.nr; k++) {
		const struct vma *v = &s->maps.v[k];
		uint64_t end = v->end < a->end ? v->end : a->end;
		int fd = -1;

		if (v->end <= a->start || v->start >= a->end)
			continue;
		if (v->start > addr) {
			memset(sa->data + (addr - a->start), 0, v->start - addr);
			addr = v->start;
		}
		if (v->ino && sa->fd >= 0 && v->ino == a->ino)
			fd = sa->fd;
		else if (v->ino && v->shared)
			fd = shadow_anon_file(s, sa, v);
		for (; addr < end; addr += TP)
			shadow_page(s, a, sa, v, addr, fd);
	}
	memset(sa->data + (addr - a->start), 0, a->end - addr);
	return 0;
}

static int shadow_take(struct shadow *s, struct ctl *ctl)
{
	int r = 0;

	if (vma_list_read(&s->maps, s->maps_path, 0, UINT64_MAX))
		return -EIO;
	for (unsigned i = 0; i < s->nr_areas && !r; i++)
		r = shadow_area_take(s, &ctl->areas[i], &s->areas[i]);
	return r;
}

#endif
