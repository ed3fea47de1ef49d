/* SPDX-License-Identifier: MIT */
/*
 * Images out of a chain, compared byte by byte with the table that the chain was made of.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sample.h"

#define LINKS 12u

struct fixture {
	struct sample s;
	uint8_t *bytes;
	size_t len;
	struct wpt_chain *c;
	char dir[64];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	const char *seed = getenv("WPT_SEED");
	uint32_t i;

	assert_non_null(f);
	printf("# WPT_SEED=%s\n", seed ? seed : "7");
	assert_int_equal(sample_open(&f->s, seed ? strtoull(seed, NULL, 0) : 7, 3), 0);
	for (i = 0; i < LINKS; i++) {
		sample_write(&f->s, i ? 9 : 60);
		assert_int_equal(sample_append(&f->s, &f->bytes, &f->len), 0);
	}
	assert_int_equal(wpt_chain_open_memory(&f->c, f->bytes, f->len), 0);
	strcpy(f->dir, "/tmp/wptrack-restore-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char command[128];

	wpt_chain_close(f->c);
	sample_close(&f->s);
	free(f->bytes);
	snprintf(command, sizeof(command), "rm -rf %s", f->dir);
	assert_int_equal(system(command), 0);
	free(f);
	return 0;
}

static uint64_t page_addr(uint32_t page)
{
	return sample_addr(page);
}

/* What [start, end) holds by the table, and how many of its pages are unreadable. */
static uint8_t *expected(const struct fixture *f, uint64_t start, uint64_t end, uint64_t *nr_unreadable)
{
	uint8_t *want = calloc(1, (size_t)(end - start) + 1);
	uint64_t from, to, addr;
	uint32_t i;

	assert_non_null(want);
	*nr_unreadable = 0;
	for (i = 0; i < SAMPLE_PAGES; i++) {
		addr = page_addr(i);
		from = WPT_MAX(addr, start);
		to = WPT_MIN(addr + WPT_PAGE, end);
		if (from >= to)
			continue;
		memcpy(want + (size_t)(from - start), f->s.tip[i].data + (size_t)(from - addr), (size_t)(to - from));
		*nr_unreadable += f->s.tip[i].state == SAMPLE_UNREADABLE;
	}
	return want;
}

static uint8_t *slurp(const char *path, size_t *len)
{
	FILE *file = fopen(path, "r");
	struct stat st;
	uint8_t *data;

	assert_non_null(file);
	assert_int_equal(fstat(fileno(file), &st), 0);
	*len = (size_t)st.st_size;
	data = malloc(*len + 1);
	assert_non_null(data);
	assert_int_equal(fread(data, 1, *len, file), *len);
	fclose(file);
	return data;
}

static unsigned int nr_entries(const char *path)
{
	DIR *dir = opendir(path);
	unsigned int nr = 0;
	struct dirent *e;

	assert_non_null(dir);
	while ((e = readdir(dir)))
		nr += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(dir);
	return nr;
}

struct watch {
	uint64_t last, total;
	unsigned int calls, cancel_at;
};

static int watch(void *arg, uint64_t done, uint64_t total)
{
	struct watch *w = arg;

	assert_true(done >= w->last && done <= total);
	w->last = done;
	w->total = total;
	return ++w->calls == w->cancel_at;
}

static void check_file(struct fixture *f, uint64_t start, uint64_t end)
{
	uint64_t unreadable = 99, want_unreadable;
	uint8_t *want = expected(f, start, end, &want_unreadable), *got;
	struct watch w = { 0 };
	struct stat st;
	char path[128];
	size_t len;

	snprintf(path, sizeof(path), "%s/image", f->dir);
	assert_int_equal(wpt_chain_restore_file(f->c, start, end, path, &unreadable, watch, &w), 0);
	got = slurp(path, &len);
	assert_int_equal(len, end - start);
	assert_memory_equal(got, want, len);
	assert_int_equal(unreadable, want_unreadable);
	assert_true(w.last == (start < end ? end - start : 0) && w.last == w.total);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(nr_entries(f->dir), 0);
	free(want);
	free(got);
}

static void a_file_has_exactly_the_bytes_asked_for(void **state)
{
	struct fixture *f = *state;
	uint64_t start, end;
	int i;

	for (i = 0; i < 4; i++)
		check_file(f, sample_ranges[i].start, sample_ranges[i].end);
	check_file(f, sample_ranges[1].start, sample_ranges[2].end);
	check_file(f, 0x10000, 0x10000);
	for (i = 0; i < 60; i++) {
		start = sample_ranges[i % 4].start - 0x3000 + sample_random(&f->s) % 0xa000;
		end = start + 1 + sample_random(&f->s) % (i % 3 ? 0x8000 : 9);
		check_file(f, start, end);
	}
	assert_int_equal(wpt_chain_restore_file(f->c, 2, 1, "/tmp/none", NULL, NULL, NULL), -EINVAL);
}

static void what_is_zero_takes_no_room(void **state)
{
	struct fixture *f = *state;
	struct stat st;
	char path[128];

	snprintf(path, sizeof(path), "%s/image", f->dir);
	assert_int_equal(wpt_chain_restore_file(f->c, 0, 8ull << 30, path, NULL, NULL, NULL), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_true((uint64_t)st.st_size == 8ull << 30);
	assert_true((uint64_t)st.st_blocks * 512 <= 64 * WPT_PAGE);
}

static void what_exists_is_not_replaced(void **state)
{
	struct fixture *f = *state;
	char path[128], folder[128];
	size_t len;
	uint8_t *got;
	int fd;

	snprintf(path, sizeof(path), "%s/image", f->dir);
	fd = open(path, O_WRONLY | O_CREAT, 0600);
	assert_int_equal(write(fd, "mine", 4), 4);
	close(fd);
	assert_int_equal(wpt_chain_restore_file(f->c, 0x10000, 0x20000, path, NULL, NULL, NULL), -EEXIST);
	assert_int_equal(wpt_chain_restore_folder(f->c, path, NULL, NULL, NULL), -EEXIST);
	got = slurp(path, &len);
	assert_int_equal(len, 4);
	free(got);
	snprintf(folder, sizeof(folder), "%s/folder/", f->dir);
	assert_int_equal(mkdir(folder, 0700), 0);
	assert_int_equal(wpt_chain_restore_folder(f->c, folder, NULL, NULL, NULL), -EEXIST);
	assert_int_equal(symlink("/tmp/wptrack-not-there", strcat(strcpy(folder, f->dir), "/link")), 0);
	assert_int_equal(wpt_chain_restore_file(f->c, 0x10000, 0x20000, folder, NULL, NULL, NULL), -EEXIST);
	assert_int_equal(nr_entries(f->dir), 3);
	assert_int_equal(wpt_chain_restore_file(f->c, 0, 1, "/nonexistent/image", NULL, NULL, NULL), -ENOENT);
}

/* Somebody else takes the name while the restore is on its way. */
static int take_name(void *arg, uint64_t done, uint64_t total)
{
	int fd = open(arg, O_WRONLY | O_CREAT, 0600);

	(void)done;
	(void)total;
	if (fd < 0 || write(fd, "mine", 4) != 4)
		return 1;
	close(fd);
	return 0;
}

static void what_came_into_being_meanwhile_is_not_replaced(void **state)
{
	struct fixture *f = *state;
	char path[128];
	uint8_t *got;
	size_t len;
	int folder;

	snprintf(path, sizeof(path), "%s/image", f->dir);
	for (folder = 0; folder < 2; folder++) {
		assert_int_equal(folder ? wpt_chain_restore_folder(f->c, path, NULL, take_name, path) :
					  wpt_chain_restore_file(f->c, 0x10000, 0x20000, path, NULL, take_name, path),
				 -EEXIST);
		assert_int_equal(nr_entries(f->dir), 1);
		got = slurp(path, &len);
		assert_true(len == 4 && !memcmp(got, "mine", 4));
		free(got);
		unlink(path);
	}
}

struct drain {
	int fd;
	uint8_t *data;
	size_t len, room;
};

static void *drain(void *arg)
{
	struct drain *d = arg;
	ssize_t n;

	while ((n = read(d->fd, d->data + d->len, d->room - d->len)) > 0)
		d->len += (size_t)n;
	return NULL;
}

static void standard_output_gets_the_zeros_too(void **state)
{
	struct fixture *f = *state;
	uint64_t start = 0x10000 - 5000, end = 0x20000 + (3 << 20) + 7, unreadable, want_unreadable;
	uint8_t *want = expected(f, start, end, &want_unreadable);
	struct drain d = { .room = (size_t)(end - start) + 100 };
	int fds[2], saved, rc;
	pthread_t thread;

	d.data = malloc(d.room);
	assert_int_equal(pipe(fds), 0);
	d.fd = fds[0];
	assert_int_equal(pthread_create(&thread, NULL, drain, &d), 0);
	fflush(stdout);
	saved = dup(1);
	dup2(fds[1], 1);
	close(fds[1]);
	rc = wpt_chain_restore_file(f->c, start, end, "-", &unreadable, NULL, NULL);
	dup2(saved, 1);
	close(saved);
	pthread_join(thread, NULL);
	close(fds[0]);
	assert_int_equal(rc, 0);
	assert_int_equal(d.len, end - start);
	assert_memory_equal(d.data, want, d.len);
	assert_int_equal(unreadable, want_unreadable);
	free(d.data);
	free(want);
}

/* By several threads, into a memfd that may neither grow nor shrink. */
static void check_large_fd(struct wpt_chain *c, uint64_t start, const uint8_t *want, size_t len)
{
	const size_t at = 3 * WPT_PAGE + 5;
	int fd = memfd_create("large", MFD_ALLOW_SEALING);
	uint8_t *got = malloc(len), edge[2 * WPT_PAGE];
	struct watch w = { 0 };

	assert_true(fd >= 0);
	assert_non_null(got);
	assert_int_equal(ftruncate(fd, (off_t)(at + len)), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK), 0);
	memset(edge, 0x5a, sizeof(edge));
	assert_int_equal(pwrite(fd, edge, sizeof(edge), (off_t)(at - sizeof(edge))), sizeof(edge));
	assert_int_equal(wpt_chain_set_threads(c, 4), 0);
	assert_int_equal(wpt_chain_restore_fd(c, start, start + len, fd, at, NULL, watch, &w), 0);
	assert_int_equal(wpt_chain_set_threads(c, 0), 0);
	assert_int_equal(w.last, len);
	assert_int_equal(pread(fd, got, len, (off_t)at), len);
	assert_memory_equal(got, want, len);
	assert_int_equal(pread(fd, got, sizeof(edge), (off_t)(at - sizeof(edge))), sizeof(edge));
	assert_memory_equal(got, edge, sizeof(edge));
	free(got);
	close(fd);
}

/* Every page of a large range has its own number in it; the second link changes every seventh, and a run that no frame holds whole. */
static void a_large_range_is_gathered_piece_by_piece(void **state)
{
	const uint64_t nr = getenv("WPT_QUICK") ? 5000 : 40000, start = 0x7f0000000000;
	struct wpt_layer_params p = { .full = true, .level = -5, .nr_threads = 2, .staging_bytes = 16 << 20 };
	struct wpt_layer_range range = { start, start + nr * WPT_PAGE, WPT_KIND_ANON, 0, "large" };
	uint8_t *bytes = NULL, *memory = calloc(nr, WPT_PAGE), page[WPT_PAGE];
	struct wpt_chain *c = NULL;
	size_t len = 0, n;
	uint64_t i, number;
	int link;

	(void)state;
	memset(p.identity.link_id, 1, 16);
	for (link = 0; link < 2; link++) {
		struct wpt_layer_writer *w = NULL;
		struct wpt_layer_result result;
		struct wpt_batch *b = NULL;
		struct wpt_item *last;
		struct wpt_sink *sink;
		const void *data;

		assert_int_equal(wpt_sink_memory(&sink, &data, &n), 0);
		assert_int_equal(wpt_layer_writer_open(&w, sink, &p), 0);
		for (i = 0; i < nr; i += link && i % 2048 > 700 ? 7 : 1) {
			if (!b)
				assert_int_equal(wpt_layer_batch_get(w, &b, true), 0);
			memset(b->data + (size_t)b->nr_pages * WPT_PAGE, (int)(i + 1), 64);
			memset(b->data + (size_t)b->nr_pages * WPT_PAGE + 64, 0, WPT_PAGE - 64);
			number = i * 2 + (uint64_t)link;
			memcpy(b->data + (size_t)b->nr_pages * WPT_PAGE + 8, &number, 8);
			memcpy(memory + (size_t)i * WPT_PAGE, b->data + (size_t)b->nr_pages++ * WPT_PAGE, WPT_PAGE);
			last = b->nr_items ? &b->items[b->nr_items - 1] : NULL;
			if (last && last->addr + last->nr_pages * WPT_PAGE == start + i * WPT_PAGE)
				last->nr_pages++;
			else
				b->items[b->nr_items++] = (struct wpt_item){ start + i * WPT_PAGE, 1, WPT_ITEM_DATA };
			if (b->nr_pages < WPT_BATCH_PAGES && i + 7 < nr)
				continue;
			assert_int_equal(wpt_layer_batch_submit(w, b), 0);
			b = NULL;
		}
		if (b)
			assert_int_equal(wpt_layer_batch_submit(w, b), 0);
		if (!link)
			assert_int_equal(wpt_layer_ranges(w, &range, 1), 0);
		assert_int_equal(wpt_layer_finish(w, 1, 1, &result), 0);
		wpt_layer_writer_close(w);
		assert_int_equal(sink->commit(sink), 0);
		bytes = realloc(bytes, len + n);
		memcpy(bytes + len, data, n);
		len += n;
		sink->close(sink);
		memcpy(p.identity.parent_id, p.identity.link_id, 16);
		memcpy(p.identity.parent_digest, result.digest, 16);
		memset(p.identity.link_id, 2, 16);
		p.identity.sequence++;
		p.full = false;
	}
	assert_int_equal(wpt_chain_open_memory(&c, bytes, len), 0);
	n = (size_t)nr * WPT_PAGE;
	{
		uint8_t *got = malloc(n);

		memset(got, 0xcc, n);
		assert_int_equal(wpt_chain_restore_memory(c, start, start + n, got, NULL), 0);
		assert_memory_equal(got, memory, n);
		memset(got, 0xcc, n);
		assert_int_equal(wpt_chain_read(c, start + 5, got, n - 9), 0);
		assert_memory_equal(got, memory + 5, n - 9);
		assert_true(got[n - 9] == 0xcc);
		free(got);
	}
	check_large_fd(c, start, memory, n);
	for (i = 0; i < nr; i += 997) {
		assert_int_equal(wpt_chain_read(c, start + i * WPT_PAGE, page, WPT_PAGE), 0);
		assert_memory_equal(page, memory + (size_t)i * WPT_PAGE, WPT_PAGE);
	}
	wpt_chain_close(c);
	free(bytes);
	free(memory);
}

/* Memory that holds the right bytes is made read-only: to write to it would kill the test. */
static void memory_that_is_right_is_not_written_to(void **state)
{
	struct fixture *f = *state;
	uint64_t start = sample_ranges[1].start, end = sample_ranges[2].end, unreadable, want_unreadable;
	uint8_t *want = expected(f, start, end, &want_unreadable), *memory;
	size_t len = (size_t)(end - start), at;

	memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(memory != MAP_FAILED);
	memset(memory, 0xa5, len);
	assert_int_equal(wpt_chain_restore_memory(f->c, start, end, memory, &unreadable), 0);
	assert_memory_equal(memory, want, len);
	assert_int_equal(unreadable, want_unreadable);
	for (at = 0; at < len; at += WPT_PAGE) {
		memory[at + 77] ^= 1;
		assert_int_equal(mprotect(memory, len, PROT_READ), 0);
		assert_int_equal(mprotect(memory + at, WPT_PAGE, PROT_READ | PROT_WRITE), 0);
		assert_int_equal(wpt_chain_restore_memory(f->c, start, end, memory, NULL), 0);
		assert_memory_equal(memory, want, len);
		assert_int_equal(mprotect(memory, len, PROT_READ | PROT_WRITE), 0);
	}
	/* At any alignment of either side. */
	memset(memory, 0x5a, len);
	assert_int_equal(wpt_chain_restore_memory(f->c, start + 1234, end - 777, memory + 11, NULL), 0);
	assert_memory_equal(memory + 11, want + 1234, len - 1234 - 777);
	assert_true(memory[10] == 0x5a && memory[11 + len - 1234 - 777] == 0x5a);
	munmap(memory, len);
	free(want);
}

/* ---- into what exists ---- */

#define MARK 0x5a
#define ROOM ((size_t)64 * WPT_PAGE)

enum place_kind { PLACE_FILE, PLACE_MEMFD, PLACE_MEMORY, PLACE_KINDS };

/* ROOM bytes that are MARK but for [at, at + len), which was never written to; `shadow` is what they are to become. */
struct place {
	int fd;
	uint64_t base;     /* of the bytes in the file */
	uint8_t *memory;   /* PLACE_MEMORY: they are there */
	uint8_t *shadow;
	size_t at, len;
};

/* In a process of qemu-user, which need not have the addresses of the emulator, PLACE_MEMORY, the last, is left out. */
static int nr_places(void)
{
	static const char mark[] = "who reads this reads the memory of this process";
	int fd = open("/proc/self/mem", O_RDONLY);
	char got[sizeof(mark)] = "";
	bool own;

	assert_true(fd >= 0);
	own = pread(fd, got, sizeof(got), (off_t)(uintptr_t)mark) == (ssize_t)sizeof(got) && !memcmp(got, mark, sizeof(mark));
	close(fd);
	if (!own)
		printf("# /proc/self/mem is the memory of an emulator, not restored into\n");
	return own ? PLACE_KINDS : PLACE_MEMORY;
}

static void place_write(const struct place *p, size_t from, size_t to)
{
	if (p->memory)
		memset(p->memory + from, MARK, to - from);
	else
		assert_int_equal(pwrite(p->fd, p->shadow + from, to - from, (off_t)from), to - from);
}

static void place_open(struct fixture *f, struct place *p, enum place_kind kind, size_t at, const uint8_t *want, size_t len)
{
	char path[128];

	*p = (struct place){ .fd = -1, .at = at, .len = len };
	assert_true(at + len <= ROOM);
	snprintf(path, sizeof(path), "%s/place", f->dir);
	if (kind == PLACE_FILE)
		p->fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	else if (kind == PLACE_MEMFD)
		p->fd = memfd_create("place", MFD_ALLOW_SEALING);
	else
		p->fd = open("/proc/self/mem", O_RDWR);
	assert_true(p->fd >= 0);
	if (kind == PLACE_FILE)
		assert_int_equal(unlink(path), 0);
	if (kind == PLACE_MEMORY) {
		/* Shared, since in private memory /proc/PID/mem may write to what is read-only. */
		p->memory = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		assert_true(p->memory != MAP_FAILED);
		p->base = (uintptr_t)p->memory;
	} else {
		assert_int_equal(ftruncate(p->fd, (off_t)ROOM), 0);
	}
	p->shadow = malloc(ROOM);
	assert_non_null(p->shadow);
	memset(p->shadow, MARK, ROOM);
	memcpy(p->shadow + at, want, len);
	place_write(p, 0, at);
	place_write(p, at + len, ROOM);
}

/* All ROOM bytes as they are now; free() them. */
static uint8_t *place_bytes(const struct place *p)
{
	uint8_t *got = malloc(ROOM);
	struct stat st;

	assert_non_null(got);
	if (p->memory) {
		memcpy(got, p->memory, ROOM);
		return got;
	}
	assert_int_equal(fstat(p->fd, &st), 0);
	assert_int_equal(st.st_size, ROOM);
	assert_int_equal(pread(p->fd, got, ROOM, 0), ROOM);
	return got;
}

/* After an error: each byte is the right one or still zero, and outside nothing changed. */
static void place_check_partial(const struct place *p)
{
	uint8_t *got = place_bytes(p);
	size_t i;

	for (i = 0; i < ROOM; i++) {
		bool zero = i >= p->at && i < p->at + p->len && !got[i];

		if (got[i] != p->shadow[i] && !zero)
			fail_msg("byte %zu is %#x instead of %#x", i, got[i], p->shadow[i]);
	}
	free(got);
}

static void place_close(struct place *p)
{
	if (p->memory)
		munmap(p->memory, ROOM);
	close(p->fd);
	free(p->shadow);
}

static void check_place(struct fixture *f, enum place_kind kind, uint64_t start, uint64_t end, size_t at)
{
	uint64_t unreadable = 99, want_unreadable;
	uint8_t *want = expected(f, start, end, &want_unreadable), *got;
	struct watch w = { 0 };
	struct place p;

	place_open(f, &p, kind, at, want, (size_t)(end - start));
	assert_int_equal(lseek(p.fd, 123, SEEK_SET), 123);
	assert_int_equal(wpt_chain_restore_fd(f->c, start, end, p.fd, p.base + at, &unreadable, watch, &w), 0);
	assert_int_equal(lseek(p.fd, 0, SEEK_CUR), 123);
	got = place_bytes(&p);
	assert_memory_equal(got, p.shadow, ROOM);
	assert_int_equal(unreadable, want_unreadable);
	assert_true(w.last == end - start && w.last == w.total);
	free(got);
	free(want);
	place_close(&p);
}

static void what_exists_gets_the_bytes_at_an_offset(void **state)
{
	struct fixture *f = *state;
	uint64_t start, end;
	int nr = nr_places(), kind, i;

	for (kind = 0; kind < nr; kind++) {
		for (i = 0; i < 4; i++) {
			check_place(f, kind, sample_ranges[i].start, sample_ranges[i].end, 0);
			check_place(f, kind, sample_ranges[i].start, sample_ranges[i].end, 3 * WPT_PAGE);
			check_place(f, kind, sample_ranges[i].start, sample_ranges[i].end, 5 * WPT_PAGE + 1234);
		}
		check_place(f, kind, sample_ranges[1].start, sample_ranges[2].end, 48 * WPT_PAGE);
		check_place(f, kind, 0x10000, 0x10000, 7);
		for (i = 0; i < 60; i++) {
			start = sample_ranges[i % 4].start - 0x3000 + sample_random(&f->s) % 0xa000;
			end = start + 1 + sample_random(&f->s) % (i % 3 ? 0x8000 : 9);
			check_place(f, kind, start, end, (size_t)(sample_random(&f->s) % 0x20000));
		}
	}
}

#define TORN_START 0x400000ull
#define TORN_PAGES 40u

/* A full link of one run of pages that were torn when they were copied, so that nobody knew which of them are zero. */
static struct wpt_chain *chain_of_torn(const uint8_t *pages, uint8_t **copy)
{
	struct wpt_layer_params p = { .full = true, .level = 1, .nr_threads = 1, .staging_bytes = 4 << 20 };
	struct wpt_layer_range range = { TORN_START, TORN_START + TORN_PAGES * WPT_PAGE, WPT_KIND_ANON, 0, "torn" };
	struct wpt_layer_result result;
	struct wpt_layer_writer *w;
	struct wpt_chain *c = NULL;
	struct wpt_sink *sink;
	struct wpt_batch *b;
	const void *data;
	size_t len;

	assert_int_equal(wpt_sink_memory(&sink, &data, &len), 0);
	assert_int_equal(wpt_layer_writer_open(&w, sink, &p), 0);
	assert_int_equal(wpt_layer_batch_get(w, &b, true), 0);
	memcpy(b->data, pages, TORN_PAGES * WPT_PAGE);
	b->nr_pages = TORN_PAGES;
	b->items[b->nr_items++] = (struct wpt_item){ TORN_START, TORN_PAGES, WPT_ITEM_TORN };
	assert_int_equal(wpt_layer_batch_submit(w, b), 0);
	assert_int_equal(wpt_layer_ranges(w, &range, 1), 0);
	assert_int_equal(wpt_layer_finish(w, 1, 1, &result), 0);
	assert_int_equal(result.pages_torn, TORN_PAGES);
	wpt_layer_writer_close(w);
	assert_int_equal(sink->commit(sink), 0);
	*copy = malloc(len);
	memcpy(*copy, data, len);
	sink->close(sink);
	assert_int_equal(wpt_chain_open_memory(&c, *copy, len), 0);
	return c;
}

static bool torn_zero(size_t page)
{
	return page % 3 == 0 || page % 8 == 7;
}

/* Where pages are zero the memory is read-only: to write there fails. */
static void check_writes(struct fixture *f, struct wpt_chain *c, const uint8_t *want)
{
	const size_t len = TORN_PAGES * WPT_PAGE;
	struct place p;
	size_t i;

	place_open(f, &p, PLACE_MEMORY, WPT_PAGE, want, len);
	for (i = 0; i < TORN_PAGES; i++)
		if (torn_zero(i))
			assert_int_equal(mprotect(p.memory + (i + 1) * WPT_PAGE, WPT_PAGE, PROT_READ), 0);
	assert_int_equal(wpt_chain_restore_fd(c, TORN_START, TORN_START + len, p.fd, p.base + WPT_PAGE, NULL, NULL, NULL), 0);
	assert_memory_equal(p.memory, p.shadow, ROOM);
	/* Of many writes only the first fails. */
	assert_int_equal(mprotect(p.memory + 2 * WPT_PAGE, WPT_PAGE, PROT_READ), 0);
	assert_int_equal(wpt_chain_restore_fd(c, TORN_START, TORN_START + len, p.fd, p.base + WPT_PAGE, NULL, NULL, NULL), -EIO);
	place_close(&p);
}

static void only_what_is_not_zero_is_written(void **state)
{
	const size_t len = TORN_PAGES * WPT_PAGE;
	struct fixture *f = *state;
	uint8_t *want = calloc(1, len), *copy, *got;
	struct wpt_chain *c;
	struct place p;
	size_t i, at;
	int nr = nr_places(), kind;

	for (i = 0; i < TORN_PAGES; i++)
		if (!torn_zero(i))
			sample_fill(&f->s, want + i * WPT_PAGE);
	c = chain_of_torn(want, &copy);
	for (kind = 0; kind < nr; kind++) {
		for (at = 0; at < 20000; at += 2 * WPT_PAGE + 777) {
			place_open(f, &p, kind, at, want, len);
			assert_int_equal(wpt_chain_restore_fd(c, TORN_START, TORN_START + len, p.fd, p.base + at, NULL, NULL, NULL), 0);
			got = place_bytes(&p);
			assert_memory_equal(got, p.shadow, ROOM);
			free(got);
			place_close(&p);
		}
	}
	if (nr > PLACE_MEMORY)
		check_writes(f, c, want);
	wpt_chain_close(c);
	free(copy);
	free(want);
}

static void what_is_zero_stays_a_hole(void **state)
{
	const uint64_t offset = 5ull << 30;
	struct fixture *f = *state;
	struct stat st;
	char path[128];
	int fd, i;

	snprintf(path, sizeof(path), "%s/image", f->dir);
	for (i = 0; i < 2; i++) {
		fd = i ? memfd_create("image", 0) : open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
		assert_true(fd >= 0);
		/* 0x10000 is where the first range begins. The file grows as far as there is data, not to the end of 8 GiB. */
		assert_int_equal(wpt_chain_restore_fd(f->c, 0, 8ull << 30, fd, offset, NULL, NULL, NULL), 0);
		assert_int_equal(fstat(fd, &st), 0);
		assert_true((uint64_t)st.st_size > offset + 0x10000 && (uint64_t)st.st_size <= offset + 0x20000);
		assert_true(i || (uint64_t)st.st_blocks * 512 <= 64 * WPT_PAGE);
		/* Nothing but zeros: not a byte longer. */
		assert_int_equal(wpt_chain_restore_fd(f->c, 1ull << 30, 2ull << 30, fd, 9ull << 30, NULL, NULL, NULL), 0);
		assert_true((uint64_t)lseek(fd, 0, SEEK_END) == (uint64_t)st.st_size);
		assert_true((uint64_t)lseek(fd, 0, SEEK_DATA) >= offset);
		/* Nor is it cut. */
		assert_int_equal(ftruncate(fd, (off_t)(offset * 2)), 0);
		assert_int_equal(wpt_chain_restore_fd(f->c, 0x10000, 0x20000, fd, 0, NULL, NULL, NULL), 0);
		assert_true((uint64_t)lseek(fd, 0, SEEK_END) == offset * 2);
		close(fd);
	}
}

static void what_can_not_be_restored_into_is_refused(void **state)
{
	const uint64_t start = 0x10000, end = 0x20000, none = 1ull << 30;
	struct fixture *f = *state;
	char path[128];
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "%s/image", f->dir);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	assert_int_equal(wpt_chain_restore_fd(f->c, end, start, fd, 0, NULL, NULL, NULL), -EINVAL);
	assert_int_equal(wpt_chain_restore_fd(f->c, start, end, fd, INT64_MAX - 0xffff, NULL, NULL, NULL), -EFBIG);
	assert_int_equal(wpt_chain_restore_fd(f->c, start, end, fd, UINT64_MAX - 0xfff, NULL, NULL, NULL), -EFBIG);
	assert_int_equal(wpt_chain_restore_fd(f->c, start, start, fd, 1ull << 63, NULL, NULL, NULL), -EFBIG);
	assert_int_equal(wpt_chain_restore_fd(f->c, 0, UINT64_MAX, fd, 0, NULL, NULL, NULL), -EFBIG);
	/* The last offset that there is; nothing is there to be written. */
	assert_int_equal(wpt_chain_restore_fd(f->c, none, none + 0xffff, fd, INT64_MAX - 0xffff, NULL, NULL, NULL), 0);
	assert_int_equal(fcntl(fd, F_SETFL, O_APPEND), 0);
	assert_int_equal(wpt_chain_restore_fd(f->c, start, end, fd, 0, NULL, NULL, NULL), -EINVAL);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 0);
	close(fd);
	assert_int_equal(wpt_chain_restore_fd(f->c, start, end, fd, 0, NULL, NULL, NULL), -EBADF);
	/* Whatever there is to be written. */
	fd = open(path, O_RDONLY);
	assert_int_equal(wpt_chain_restore_fd(f->c, start, end, fd, 0, NULL, NULL, NULL), -EBADF);
	assert_int_equal(wpt_chain_restore_fd(f->c, none, none + 1, fd, 0, NULL, NULL, NULL), -EBADF);
	close(fd);
}

static void a_restore_that_was_cancelled_can_be_made_again(void **state)
{
	const uint64_t start = 0x10000, end = 0x20000;
	const size_t at = 9 * WPT_PAGE + 100;
	struct fixture *f = *state;
	uint64_t unreadable;
	uint8_t *want = expected(f, start, end, &unreadable), *got;
	struct watch w;
	struct place p;
	int nr = nr_places(), kind;

	for (kind = 0; kind < nr; kind++) {
		place_open(f, &p, kind, at, want, (size_t)(end - start));
		w = (struct watch){ .cancel_at = 2 };
		assert_int_equal(wpt_chain_restore_fd(f->c, start, end, p.fd, p.base + at, NULL, watch, &w), -ECANCELED);
		place_check_partial(&p);
		assert_int_equal(w.calls, 2);
		assert_int_equal(wpt_chain_restore_fd(f->c, start, end, p.fd, p.base + at, NULL, NULL, NULL), 0);
		got = place_bytes(&p);
		assert_memory_equal(got, p.shadow, ROOM);
		free(got);
		place_close(&p);
	}
	free(want);
}

static void what_can_not_be_written_is_reported(void **state)
{
	const uint64_t start = 0x10000, end = 0x20000;
	const size_t at = 9 * WPT_PAGE + 100;
	struct fixture *f = *state;
	struct rlimit limit, old;
	uint64_t unreadable;
	uint8_t *want = expected(f, start, end, &unreadable);
	size_t last = (size_t)(end - start);
	struct place p;
	int rc;

	while (last && !want[last - 1])
		last--;
	assert_true(last > 0);
	/* The last byte that is not zero is behind what a file may have. */
	place_open(f, &p, PLACE_FILE, at, want, (size_t)(end - start));
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	limit = old;
	limit.rlim_cur = (rlim_t)(at + last - 1);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	rc = wpt_chain_restore_fd(f->c, start, end, p.fd, at, NULL, NULL, NULL);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	signal(SIGXFSZ, SIG_DFL);
	assert_int_equal(rc, -EFBIG);
	place_check_partial(&p);
	place_close(&p);
	/* A memfd and memory that may not be written to any more. */
	place_open(f, &p, PLACE_MEMFD, at, want, (size_t)(end - start));
	assert_int_equal(fcntl(p.fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	assert_int_equal(wpt_chain_restore_fd(f->c, start, end, p.fd, at, NULL, NULL, NULL), -EPERM);
	place_check_partial(&p);
	place_close(&p);
	if (nr_places() > PLACE_MEMORY) {
		place_open(f, &p, PLACE_MEMORY, at, want, (size_t)(end - start));
		assert_int_equal(mprotect(p.memory, ROOM, PROT_READ), 0);
		assert_int_equal(wpt_chain_restore_fd(f->c, start, end, p.fd, p.base + at, NULL, NULL, NULL), -EIO);
		place_check_partial(&p);
		place_close(&p);
	}
	free(want);
}

static void check_image(struct fixture *f, const char *folder, uint64_t start, uint64_t end, const char *name)
{
	uint64_t unreadable;
	uint8_t *want = expected(f, start, end, &unreadable), *got;
	char path[PATH_MAX];
	size_t len;

	snprintf(path, sizeof(path), "%s/%08" PRIx64 "-%08" PRIx64 "%s.raw", folder, start, end, name);
	got = slurp(path, &len);
	assert_int_equal(len, end - start);
	assert_memory_equal(got, want, len);
	free(got);
	free(want);
}

static void a_folder_has_an_image_of_every_range(void **state)
{
	static const char index[] =
		"# start-end\tfile\tkind\tname\n"
		"00010000-00020000\t00010000-00020000-heap.raw\tanon\t[heap]\n"
		"7f1234560000-7f1234570000\t7f1234560000-7f1234570000-guest.ram.raw\tshmem\t/dev/shm/guest.ram\n"
		"fffffffff00000-fffffffff08000\tfffffffff00000-fffffffff08000.raw\tanon\t\n";
	struct fixture *f = *state;
	uint64_t unreadable, want_unreadable = 0;
	struct watch w = { 0 };
	char path[128], text[160];
	uint8_t *got;
	uint32_t i;
	size_t len;

	snprintf(path, sizeof(path), "%s/out", f->dir);
	assert_int_equal(wpt_chain_restore_folder(f->c, path, &unreadable, watch, &w), 0);
	assert_int_equal(nr_entries(path), 4);
	assert_int_equal(nr_entries(f->dir), 1);
	assert_int_equal(w.last, SAMPLE_PAGES * WPT_PAGE);
	check_image(f, path, 0x10000, 0x20000, "-heap");
	check_image(f, path, sample_ranges[1].start, sample_ranges[2].end, "-guest.ram");
	check_image(f, path, sample_ranges[3].start, sample_ranges[3].end, "");
	for (i = 0; i < SAMPLE_PAGES; i++)
		want_unreadable += f->s.tip[i].state == SAMPLE_UNREADABLE;
	assert_int_equal(unreadable, want_unreadable);
	snprintf(text, sizeof(text), "%s/ranges.txt", path);
	got = slurp(text, &len);
	got[len] = 0;
	assert_string_equal((char *)got, index);
	free(got);
}

/* A full link of no pages, with ranges of these names. */
static struct wpt_chain *chain_of_names(const char *const *names, uint32_t nr, uint8_t **copy)
{
	struct wpt_layer_params p = { .full = true, .level = 1, .nr_threads = 1, .staging_bytes = 4 << 20 };
	struct wpt_layer_range ranges[16];
	struct wpt_layer_result result;
	struct wpt_layer_writer *w;
	struct wpt_chain *c = NULL;
	struct wpt_sink *sink;
	const void *data;
	uint32_t i;
	size_t len;

	for (i = 0; i < nr; i++)
		ranges[i] = (struct wpt_layer_range){ 0x100000ull * (i + 1), 0x100000ull * (i + 1) + WPT_PAGE, WPT_KIND_ANON, 0, names[i] };
	assert_int_equal(wpt_sink_memory(&sink, &data, &len), 0);
	assert_int_equal(wpt_layer_writer_open(&w, sink, &p), 0);
	assert_int_equal(wpt_layer_ranges(w, ranges, nr), 0);
	assert_int_equal(wpt_layer_finish(w, 1, 1, &result), 0);
	wpt_layer_writer_close(w);
	assert_int_equal(sink->commit(sink), 0);
	*copy = malloc(len);
	memcpy(*copy, data, len);
	sink->close(sink);
	assert_int_equal(wpt_chain_open_memory(&c, *copy, len), 0);
	return c;
}

static void names_can_not_lead_out_of_the_folder(void **state)
{
	char longest[4000];
	const char *const names[] = { "../../etc/passwd", "/..", "a\nb\tc", "..", longest, "/memfd:x y (deleted)", "/dir/", "\xff\xfe/\x01" };
	static const char *const want[] = {
		"00100000-00101000-passwd.raw",
		"00200000-00201000-...raw",
		"00300000-00301000-a_b_c.raw",
		"00400000-00401000-...raw",
		"00500000-00501000-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.raw",
		"00600000-00601000-memfd_x_y.raw",
		"00700000-00701000.raw",
		"00800000-00801000.raw",
	};
	struct fixture *f = *state;
	struct wpt_chain *c;
	char path[PATH_MAX];
	uint8_t *copy, *text;
	size_t len;
	uint32_t i;

	memset(longest, 'a', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = 0;
	c = chain_of_names(names, WPT_ARRAY_SIZE(names), &copy);
	snprintf(path, sizeof(path), "%s/out", f->dir);
	assert_int_equal(wpt_chain_restore_folder(c, path, NULL, NULL, NULL), 0);
	assert_int_equal(nr_entries(f->dir), 1);
	assert_int_equal(nr_entries(path), WPT_ARRAY_SIZE(names) + 1);
	for (i = 0; i < WPT_ARRAY_SIZE(want); i++) {
		snprintf(path, sizeof(path), "%s/out/%s", f->dir, want[i]);
		if (access(path, F_OK))
			fail_msg("no %s", path);
	}
	/* One line a range, whatever is in the name. */
	snprintf(path, sizeof(path), "%s/out/ranges.txt", f->dir);
	text = slurp(path, &len);
	text[len] = 0;
	for (i = 0; len--;)
		i += text[len] == '\n';
	assert_int_equal(i, WPT_ARRAY_SIZE(names) + 1);
	assert_non_null(strstr((char *)text, "\ta\\012b\\011c\n"));
	free(text);
	wpt_chain_close(c);
	free(copy);
}

static void what_fails_leaves_nothing(void **state)
{
	struct fixture *f = *state;
	struct watch w = { 0 };
	struct wpt_chain *c;
	unsigned int nr = 0;
	char path[128];
	uint8_t *copy;
	size_t at;
	int rc;

	snprintf(path, sizeof(path), "%s/out", f->dir);
	for (w.cancel_at = 1; w.cancel_at < 4; w.cancel_at++) {
		w.calls = 0;
		w.last = 0;
		assert_int_equal(wpt_chain_restore_file(f->c, 0x10000, 0x20000, path, NULL, watch, &w), -ECANCELED);
		assert_int_equal(nr_entries(f->dir), 0);
		w.calls = 0;
		w.last = 0;
		assert_int_equal(wpt_chain_restore_folder(f->c, path, NULL, watch, &w), -ECANCELED);
		assert_int_equal(nr_entries(f->dir), 0);
	}
	/* A bit anywhere: an error and nothing there, or what is right. */
	copy = malloc(f->len);
	for (at = 0; at < f->len; at += 97) {
		memcpy(copy, f->bytes, f->len);
		copy[at] ^= 0x10;
		if (wpt_chain_open_memory(&c, copy, f->len))
			continue;
		rc = wpt_chain_restore_folder(c, path, NULL, NULL, NULL);
		wpt_chain_close(c);
		if (rc) {
			nr++;
			assert_int_equal(rc, -WPT_E_DAMAGED);
			assert_int_equal(nr_entries(f->dir), 0);
			continue;
		}
		check_image(f, path, 0x10000, 0x20000, "-heap");
		check_image(f, path, sample_ranges[1].start, sample_ranges[2].end, "-guest.ram");
		check_image(f, path, sample_ranges[3].start, sample_ranges[3].end, "");
		snprintf(path, sizeof(path), "rm -rf %s/out", f->dir);
		assert_int_equal(system(path), 0);
		snprintf(path, sizeof(path), "%s/out", f->dir);
	}
	assert_true(nr > 0);
	free(copy);
}

static void a_full_disk_is_reported(void **state)
{
	struct fixture *f = *state;
	int saved, full, rc;

	full = open("/dev/full", O_WRONLY);
	if (full < 0) {
		print_message("no /dev/full\n");
		skip();
	}
	fflush(stdout);
	saved = dup(1);
	dup2(full, 1);
	close(full);
	rc = wpt_chain_restore_file(f->c, 0x10000, 0x20000, "-", NULL, NULL, NULL);
	dup2(saved, 1);
	close(saved);
	assert_int_equal(rc, -ENOSPC);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_file_has_exactly_the_bytes_asked_for, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_zero_takes_no_room, setup, teardown),
		cmocka_unit_test_setup_teardown(what_exists_is_not_replaced, setup, teardown),
		cmocka_unit_test_setup_teardown(what_came_into_being_meanwhile_is_not_replaced, setup, teardown),
		cmocka_unit_test_setup_teardown(standard_output_gets_the_zeros_too, setup, teardown),
		cmocka_unit_test(a_large_range_is_gathered_piece_by_piece),
		cmocka_unit_test_setup_teardown(memory_that_is_right_is_not_written_to, setup, teardown),
		cmocka_unit_test_setup_teardown(what_exists_gets_the_bytes_at_an_offset, setup, teardown),
		cmocka_unit_test_setup_teardown(only_what_is_not_zero_is_written, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_zero_stays_a_hole, setup, teardown),
		cmocka_unit_test_setup_teardown(what_can_not_be_restored_into_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(a_restore_that_was_cancelled_can_be_made_again, setup, teardown),
		cmocka_unit_test_setup_teardown(what_can_not_be_written_is_reported, setup, teardown),
		cmocka_unit_test_setup_teardown(a_folder_has_an_image_of_every_range, setup, teardown),
		cmocka_unit_test_setup_teardown(names_can_not_lead_out_of_the_folder, setup, teardown),
		cmocka_unit_test_setup_teardown(what_fails_leaves_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(a_full_disk_is_reported, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
