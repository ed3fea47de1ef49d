/* SPDX-License-Identifier: MIT */
/*
 * The only program of a guest that proves itself: it runs as /init, keeps a data structure that grows and is rewritten, looks whether all of it is
 * as it must be, and says "count N ok" on the console at each tick, or "WRONG ..." and no more. What it says is a pure function of N,
 * and what it holds is one, too: so the console of a restored guest says from which instant its memory is, and that it is all from that instant.
 *
 * On the kernel's command line (the kernel hands such words to /init in its environment):
 *   pages=N     bound of the structure, a power of two; beyond it, old pages are written anew, in a pseudo-random order
 *   per_tick=N  pages written at each tick
 *   tick_ms=N   milliseconds between ticks
 *   start=N     pages written before the first tick (0)
 *   blocks=N    blocks of 4 KiB on /dev/vda, as `guest --disk N` prints them (0). For each byte that comes to /dev/ttyS1 64 of them are read, by
 *               direct I/O, so that nobody but the device writes them to the guest's memory, and the number of all that were read is said there.
 *               What was read stays in memory and is looked at in each tick.
 * Modules /0.ko, /1.ko and so on are loaded first.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define WORDS 512u
#define ALL_EVERY 16u
#define SLOTS 256u
#define READS_AT_ONCE 64u

/* So that a test finds the pages in the guest's memory: each begins with it. */
static const uint64_t magic = 0x3174736575677077u; /* "wpguest1" */

struct page {
	uint64_t word[WORDS];
};

/* What is true of one tick lies in four places, in other pages each: the counter, the pages, how often each was written, and the sum of that. */
static struct page *pages;
static uint32_t *written;
static uint64_t *sum;
static uint64_t nr_pages, per_tick, start, count;

/* What was read from the disk: read number `nr` went to slot nr % SLOTS, which nobody but the device has written to. */
static struct page *slots;
static uint64_t nr_blocks, nr_reads;
static int disk, asked;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
	char line[128];
	va_list ap;
	int len, done = 0;
	ssize_t n;

	va_start(ap, format);
	len = vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
	for (; done < len; done += n > 0 ? (int)n : 0)
		n = write(1, line + done, (size_t)(len - done));
}

static void wrong(const char *what, uint64_t where)
{
	say("WRONG %s %llu at count %llu\n", what, (unsigned long long)where, (unsigned long long)count);
	for (;;)
		pause();
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* The page that write number `nr` goes to: first one after the other, then in each round all of them in another order. */
static uint64_t place(uint64_t nr)
{
	uint64_t round = nr / nr_pages, i = nr % nr_pages, bits = nr_pages - 1;

	if (!round)
		return i;
	i = (i * 0x9e3779b1u + mix(round)) & bits;
	i = (i ^ i >> 5) & bits;
	return (i * 0x85ebca6bu + round) & bits;
}

/* A page's words follow from its index, how often it was written, and of each other: one that is wrong makes all that follow wrong. */
static void page_write(uint64_t i)
{
	struct page *p = pages + i;
	uint64_t x = mix(i << 32 | ++written[i]);

	p->word[0] = magic;
	for (unsigned int w = 1; w < WORDS; w++)
		p->word[w] = x = x * 0x5851f42d4c957f2du + w;
	++*sum;
}

static void page_check(uint64_t i)
{
	const struct page *p = pages + i;
	uint64_t x = mix(i << 32 | written[i]);

	if (!written[i])
		x = 0;
	if (p->word[0] != (written[i] ? magic : 0))
		wrong("page", i);
	for (unsigned int w = 1; w < WORDS; w++) {
		if (written[i])
			x = x * 0x5851f42d4c957f2du + w;
		if (p->word[w] != x)
			wrong("page", i);
	}
}

static void write_pages(uint64_t nr)
{
	for (; nr; nr--) {
		uint64_t i = place(*sum);

		/* What is written over is looked at for the last time. */
		page_check(i);
		page_write(i);
	}
}

/* How often each page was written is known from the counter: as often as there were full rounds, and once more if its turn was in this one. */
static void check_all(uint64_t total)
{
	uint64_t writes = 0;

	if (*sum != total)
		wrong("sum", *sum);
	for (uint64_t i = 0; i < nr_pages; i++) {
		if (written[i] != total / nr_pages && written[i] != total / nr_pages + 1)
			wrong("number of writes of page", i);
		writes += written[i];
		page_check(i);
	}
	if (writes != total)
		wrong("number of writes", writes);
}

/* ---- the disk ---- */

static uint64_t block_of(uint64_t nr)
{
	return mix(nr + 1) % nr_blocks;
}

static void block_make(struct page *p, uint64_t block)
{
	uint64_t x = mix(~block);

	for (unsigned int w = 0; w < WORDS; w++)
		p->word[w] = x = x * 0x5851f42d4c957f2du + w + 1;
}

static void slot_check(uint64_t slot)
{
	static struct page want;

	memset(&want, 0, sizeof(want));
	if (slot < nr_reads)
		block_make(&want, block_of((nr_reads - 1 - slot) / SLOTS * SLOTS + slot));
	if (memcmp(&want, slots + slot, sizeof(want)))
		wrong("block read from the disk, slot", slot);
}

static void read_blocks(void)
{
	for (unsigned int i = 0; i < READS_AT_ONCE; i++, nr_reads++) {
		struct page *to = slots + nr_reads % SLOTS;

		if (pread(disk, to, sizeof(*to), (off_t)(block_of(nr_reads) * sizeof(*to))) != sizeof(*to))
			wrong("read of the disk", nr_reads);
	}
}

static void look_at_disk(void)
{
	char c, text[32];

	while (read(asked, &c, 1) == 1) {
		read_blocks();
		snprintf(text, sizeof(text), "%llu\n", (unsigned long long)nr_reads);
		if (write(asked, text, strlen(text)) < 0)
			wrong("answer", nr_reads);
	}
	for (unsigned int i = 0; i < SLOTS; i++)
		slot_check(i);
}

static void load_modules(void)
{
	char path[32];
	int fd;

	for (unsigned int i = 0;; i++) {
		snprintf(path, sizeof(path), "/%u.ko", i);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			return;
		if (syscall(SYS_finit_module, fd, "", 0))
			wrong("module", i);
		close(fd);
	}
}

/* What is written is what comes out, byte for byte. */
static void make_raw(int fd)
{
	struct termios t;

	if (!tcgetattr(fd, &t)) {
		cfmakeraw(&t);
		tcsetattr(fd, TCSANOW, &t);
	}
}

/* The device is found some time after its driver was loaded. */
static void open_disk(void)
{
	const struct timespec moment = { .tv_nsec = 10000000 };

	mkdir("/dev", 0755);
	if (mount("dev", "/dev", "devtmpfs", 0, NULL))
		wrong("devtmpfs", 0);
	while ((disk = open("/dev/vda", O_RDONLY | O_DIRECT)) < 0)
		nanosleep(&moment, NULL);
	asked = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_NONBLOCK);
	if (asked < 0)
		wrong("ttyS1", 0);
	make_raw(asked);
}

static int print_disk(uint64_t blocks)
{
	struct page p;

	for (uint64_t i = 0; i < blocks; i++) {
		block_make(&p, i);
		if (fwrite(&p, sizeof(p), 1, stdout) != 1)
			return 1;
	}
	return fflush(stdout) != 0;
}

static void tick(void)
{
	uint64_t total;

	count++;
	write_pages(per_tick);
	if (nr_blocks)
		look_at_disk();
	total = start + count * per_tick;
	if (*sum != total)
		wrong("sum", *sum);
	if (count % ALL_EVERY == 0)
		check_all(total);
	else
		for (uint64_t i = 0; i < 2 * per_tick; i++)
			page_check((count * 2 * per_tick + i) % nr_pages);
	say("count %llu ok\n", (unsigned long long)count);
}

static void *memory(size_t size)
{
	void *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (m == MAP_FAILED)
		wrong("size of memory", size);
	return m;
}

static uint64_t argument(const char *name)
{
	const char *value = getenv(name);

	return value ? strtoull(value, NULL, 0) : 0;
}

int main(int argc, char **argv)
{
	struct timespec period;

	if (argc == 3 && strcmp(argv[1], "--disk") == 0)
		return print_disk(strtoull(argv[2], NULL, 0));
	make_raw(1);
	nr_pages = argument("pages");
	per_tick = argument("per_tick");
	start = argument("start");
	period.tv_sec = (time_t)(argument("tick_ms") / 1000);
	period.tv_nsec = (long)(argument("tick_ms") % 1000 * 1000000);
	if (!nr_pages || nr_pages & (nr_pages - 1))
		wrong("argument", nr_pages);
	pages = memory(nr_pages * sizeof(*pages));
	written = memory(nr_pages * sizeof(*written));
	sum = memory(sizeof(*sum));
	load_modules();
	nr_blocks = argument("blocks");
	slots = memory(SLOTS * sizeof(*slots));
	if (nr_blocks)
		open_disk();
	write_pages(start);
	for (;;) {
		tick();
		nanosleep(&period, NULL);
	}
}
