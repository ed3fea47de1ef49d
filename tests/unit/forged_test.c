/* SPDX-License-Identifier: MIT */
/*
 * Metadata that lies while every checksum is in order: somebody wrote it on purpose. An error that says so, in little memory and
 * time, and never a crash.
 */
#include "chain.h"
#include "forge.h"
#include "fuzz/exercise.h"
#include "sample.h"

#include <fcntl.h>
#include <setjmp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static uint8_t pages[3][WPT_PAGE] __attribute__((aligned(8)));

static int setup(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 3; i++)
		memset(pages[i], (int)i + 1, WPT_PAGE);
#if !defined(__SANITIZE_ADDRESS__)
	{
		struct rlimit limit;
		unsigned long used = 0;
		FILE *f = fopen("/proc/self/statm", "r");

		if (!f || fscanf(f, "%lu", &used) != 1)
			return -1;
		fclose(f);
		limit.rlim_cur = limit.rlim_max = (rlim_t)used * (rlim_t)sysconf(_SC_PAGESIZE) + (256 << 20);
		if (setrlimit(RLIMIT_AS, &limit))
			return -1;
	}
#endif
	/* What takes for ever is a failure too. */
	alarm(getenv("WPT_QUICK") ? 1200 : 300);
	return 0;
}

/* ---- one link in a known layout, of which single fields are changed ---- */

#define RANGE_START 0x10000ull
#define RANGE_END 0x20000ull

/*
 * Leaf 0, 0x10 to 0x14: two pages of data at 36, a duplicate at 73, a zero page at 94, an unreadable one at 97, one frame at 100. Leaf 1:
 * one page of data at 0x15. A node above them, then the root, with sections RANGES and TAGS.
 */
static void layout(struct forge *f)
{
	uint8_t range[WPT_FMT_RANGE_MAX];
	uint32_t frame;

	forge_open(f);
	forge_link(f);
	frame = forge_frame(f, pages, 2 * WPT_PAGE, 2);
	forge_run(f, WPT_FMT_DATA, 0x10, 2, frame, 0, pages);
	forge_run(f, WPT_FMT_DUPLICATE, 0x12, 1, frame, 0, pages);
	forge_run(f, WPT_FMT_ZERO, 0x13, 1, 0, 0, NULL);
	forge_run(f, WPT_FMT_UNREADABLE, 0x14, 1, 0, 0, NULL);
	forge_leaf(f);
	forge_page(f, 0x15, pages[2]);
	forge_leaf(f);
	forge_node(f);
	f->root.counts = (struct wpt_fmt_counts){ .data = 3, .duplicate = 1, .zero = 1, .unreadable = 1 };
	forge_section(f, WPT_FMT_SECTION_RANGES, range, forge_range(range, RANGE_START, RANGE_END, "mem"));
	forge_section(f, WPT_SECTION_TAGS, "a=b", 4);
}

static void assert_layout_reads(struct forge *f)
{
	static const uint8_t zero[WPT_PAGE];
	const uint8_t *want[] = { pages[0], pages[1], pages[0], zero, NULL, pages[2], zero };
	uint8_t got[WPT_PAGE];
	struct wpt_chain *c;

	assert_int_equal(wpt_chain_open_memory(&c, f->bytes, f->len), 0);
	for (uint32_t i = 0; i < WPT_ARRAY_SIZE(want); i++) {
		assert_int_equal(wpt_chain_read(c, RANGE_START + i * WPT_PAGE, got, sizeof(got)), want[i] ? 0 : -WPT_E_UNREADABLE);
		if (want[i])
			assert_memory_equal(got, want[i], WPT_PAGE);
	}
	assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
	wpt_chain_close(c);
}

static void what_is_forged_here_is_right_but_for_the_lie(void **state)
{
	struct forge f;

	(void)state;
	layout(&f);
	forge_end(&f);
	forge_seal(&f);
	assert_layout_reads(&f);
	forge_close(&f);
}

/* A full link lists its ranges. */
static void add_ranges(struct forge *f)
{
	uint8_t range[WPT_FMT_RANGE_MAX];

	forge_section(f, WPT_FMT_SECTION_RANGES, range, forge_range(range, RANGE_START, 0x10000000, "mem"));
}

/* Everything is tried; the errors are listed ones; the first is `want`, 0 for any but none, 1 for none at all. */
static void assert_refused(struct forge *f, int want, const char *what)
{
	uint8_t *copy = malloc(f->len);
	struct exercise x;
	int first;

	assert_non_null(copy);
	memcpy(copy, f->bytes, f->len);
	exercise(&x, copy, f->len);
	first = x.open ? x.open : x.read ? x.read : x.verify;
	if (x.odd)
		fail_msg("%s: %s gives %d", what, x.odd_where, x.odd);
	if (want == 1 ? first : want ? first != want : !first)
		fail_msg("%s: open %d, read %d, verify %d", what, x.open, x.read, x.verify);
	/* What can't be read is not called good. */
	if (x.read && !x.verify && !x.open)
		fail_msg("%s: read gives %d, and verify is content", what, x.read);
	free(copy);
}

#define D (-WPT_E_DAMAGED)
#define F (-WPT_E_FEATURE)
#define ANY 0
#define NONE 1

static const struct lie {
	const char *what;
	uint32_t tag, nr, offset;
	int width;
	uint64_t value;
	int error;
} lies[] = {
	{ "head: version", WPT_FMT_HEAD, 0, 12, 2, 2, F },
	{ "head: page shift", WPT_FMT_HEAD, 0, 14, 1, 13, F },
	{ "head: an unknown flag", WPT_FMT_HEAD, 0, 16, 4, WPT_FMT_FULL | WPT_FMT_ORIGIN | 0x80, F },
	{ "head: sealed", WPT_FMT_HEAD, 0, 20, 4, WPT_FMT_INCOMPAT_SEALED, F },
	{ "head: an unknown incompatible feature", WPT_FMT_HEAD, 0, 20, 4, 0x80000000, F },
	{ "head: an unknown compatible feature", WPT_FMT_HEAD, 0, 24, 4, 0x80000000, NONE },
	{ "head: not full, no parent", WPT_FMT_HEAD, 0, 16, 4, WPT_FMT_ORIGIN, D },
	{ "head: boot id beyond the block", WPT_FMT_HEAD, 0, 148, 1, 36, D },
	{ "head: boot id too long", WPT_FMT_HEAD, 0, 148, 1, 200, D },
	{ "head: a parent that is not there, but full", WPT_FMT_HEAD, 0, 68, 4, 1, NONE },
	{ "head: another chain than the trailer", WPT_FMT_HEAD, 0, 28, 1, 0, D },
	{ "head: another link than the trailer", WPT_FMT_HEAD, 0, 44, 1, 0, D },
	{ "head: another sequence number than the trailer", WPT_FMT_HEAD, 0, 60, 8, UINT64_MAX, D },
	{ "head: another key than the hashes'", WPT_FMT_HEAD, 0, 100, 1, 0, D },
	{ "leaf: no runs", WPT_FMT_LEAF, 0, 12, 4, 0, D },
	{ "leaf: fewer runs", WPT_FMT_LEAF, 0, 12, 4, 3, D },
	{ "leaf: more runs", WPT_FMT_LEAF, 0, 12, 4, 5, D },
	{ "leaf: 4 billion runs", WPT_FMT_LEAF, 0, 12, 4, UINT32_MAX, D },
	{ "leaf: no frames", WPT_FMT_LEAF, 0, 16, 4, 0, D },
	{ "leaf: more frames", WPT_FMT_LEAF, 0, 16, 4, 2, D },
	{ "leaf: 4 billion frames", WPT_FMT_LEAF, 0, 16, 4, UINT32_MAX, D },
	{ "leaf: begins later", WPT_FMT_LEAF, 0, 20, 8, 0x11, D },
	{ "leaf: begins earlier", WPT_FMT_LEAF, 0, 20, 8, 0xf, D },
	{ "leaf: begins at its end", WPT_FMT_LEAF, 0, 20, 8, 0x15, D },
	{ "leaf: ends earlier", WPT_FMT_LEAF, 0, 28, 8, 0x14, D },
	{ "leaf: ends later", WPT_FMT_LEAF, 0, 28, 8, 0x16, D },
	{ "leaf: ends beyond all pages", WPT_FMT_LEAF, 0, 28, 8, UINT64_MAX, D },
	{ "run: kind 0", WPT_FMT_LEAF, 0, 36, 1, 0, D },
	{ "run: kind 7", WPT_FMT_LEAF, 0, 36, 1, 7, D },
	{ "run: kind 255", WPT_FMT_LEAF, 0, 36, 1, 255, D },
	{ "run: zero instead of data", WPT_FMT_LEAF, 0, 36, 1, WPT_FMT_ZERO, D },
	{ "run: a gap", WPT_FMT_LEAF, 0, 37, 1, 1, D },
	{ "run: no pages", WPT_FMT_LEAF, 0, 38, 1, 0, D },
	{ "run: more pages than the leaf", WPT_FMT_LEAF, 0, 38, 1, 127, D },
	{ "run: a frame that is not there", WPT_FMT_LEAF, 0, 39, 1, 1, D },
	{ "run: beyond its frame", WPT_FMT_LEAF, 0, 40, 1, 1, D },
	{ "run: far beyond its frame", WPT_FMT_LEAF, 0, 40, 1, 127, D },
	{ "run: another hash", WPT_FMT_LEAF, 0, 41, 1, 0, D },
	{ "duplicate: of another page", WPT_FMT_LEAF, 0, 77, 1, 1, D },
	{ "duplicate: beyond its frame", WPT_FMT_LEAF, 0, 77, 1, 2, D },
	{ "duplicate: called data", WPT_FMT_LEAF, 0, 73, 1, WPT_FMT_DATA, D },
	{ "frame: the head", WPT_FMT_LEAF, 0, 100, 8, 0, D },
	{ "frame: far away", WPT_FMT_LEAF, 0, 100, 8, 1ull << 62, D },
	{ "frame: around the end of numbers", WPT_FMT_LEAF, 0, 100, 8, UINT64_MAX, D },
	{ "frame: nothing", WPT_FMT_LEAF, 0, 108, 4, 0, D },
	{ "frame: 4 GiB", WPT_FMT_LEAF, 0, 108, 4, UINT32_MAX, D },
	{ "frame: longer", WPT_FMT_LEAF, 0, 108, 4, 60, D },
	{ "frame: shorter", WPT_FMT_LEAF, 0, 108, 4, 10, D },
	{ "frame: no pages", WPT_FMT_LEAF, 0, 112, 4, 0, D },
	{ "frame: fewer pages", WPT_FMT_LEAF, 0, 112, 4, 1, D },
	{ "frame: more pages", WPT_FMT_LEAF, 0, 112, 4, 3, D },
	{ "frame: 256 pages", WPT_FMT_LEAF, 0, 112, 4, 256, D },
	{ "frame: 257 pages", WPT_FMT_LEAF, 0, 112, 4, 257, D },
	{ "frame: 4 billion pages", WPT_FMT_LEAF, 0, 112, 4, UINT32_MAX, D },
	{ "node: level 0", WPT_FMT_NODE, 0, 12, 4, 0, D },
	{ "node: the root's level", WPT_FMT_NODE, 0, 12, 4, 2, D },
	{ "node: level 9", WPT_FMT_NODE, 0, 12, 4, 9, D },
	{ "node: level 4 billion", WPT_FMT_NODE, 0, 12, 4, UINT32_MAX, D },
	{ "node: no children", WPT_FMT_NODE, 0, 16, 4, 0, D },
	{ "node: fewer children", WPT_FMT_NODE, 0, 16, 4, 1, D },
	{ "node: more children", WPT_FMT_NODE, 0, 16, 4, 3, D },
	{ "node: 4 billion children", WPT_FMT_NODE, 0, 16, 4, UINT32_MAX, D },
	{ "root: level 0", WPT_FMT_ROOT, 0, 12, 4, 0, D },
	{ "root: leaves for nodes", WPT_FMT_ROOT, 0, 12, 4, 1, D },
	{ "root: level 9", WPT_FMT_ROOT, 0, 12, 4, 9, D },
	{ "root: a flag", WPT_FMT_ROOT, 0, 16, 4, 1, F },
	{ "root: fewer data pages", WPT_FMT_ROOT, 0, 29, 1, 2, D },
	{ "root: torn pages", WPT_FMT_ROOT, 0, 30, 1, 1, D },
	{ "root: fewer zero pages", WPT_FMT_ROOT, 0, 32, 1, 0, D },
	{ "root: no unreadable pages", WPT_FMT_ROOT, 0, 33, 1, 0, D },
	{ "root: a guard page", WPT_FMT_ROOT, 0, 34, 1, 1, D },
	{ "root: fewer sections", WPT_FMT_ROOT, 0, 36, 1, 1, D },
	{ "root: more sections", WPT_FMT_ROOT, 0, 36, 1, 3, D },
	{ "root: 127 sections", WPT_FMT_ROOT, 0, 36, 1, 127, D },
	{ "root: no children", WPT_FMT_ROOT, 0, 37, 1, 0, D },
	{ "root: more children", WPT_FMT_ROOT, 0, 37, 1, 2, D },
	{ "part: another type", WPT_FMT_PART, 0, 12, 4, 7, D },
	{ "part: another index", WPT_FMT_PART, 0, 16, 4, 1, D },
	{ "part: not the last", WPT_FMT_PART, 0, 20, 4, 0, D },
	{ "part: an unknown flag", WPT_FMT_PART, 0, 20, 4, 6, ANY },
	{ "part: called compressed", WPT_FMT_PART, 0, 20, 4, 3, D },
	{ "part: longer", WPT_FMT_PART, 0, 24, 4, 100, D },
	{ "part: 4 GiB", WPT_FMT_PART, 0, 24, 4, UINT32_MAX, D },
	{ "ranges: starts unaligned", WPT_FMT_PART, 0, 28, 8, 0x10001, D },
	{ "ranges: ends before it starts", WPT_FMT_PART, 0, 36, 8, 0xf000, D },
	{ "ranges: empty", WPT_FMT_PART, 0, 36, 8, 0x10000, D },
	{ "ranges: ends unaligned", WPT_FMT_PART, 0, 36, 8, UINT64_MAX, D },
	{ "ranges: ends at the end of numbers", WPT_FMT_PART, 0, 36, 8, 0xfffffffffffff000, NONE },
	{ "ranges: a kind from the future", WPT_FMT_PART, 0, 44, 4, 99, NONE },
	{ "ranges: a name beyond the section", WPT_FMT_PART, 0, 52, 4, 4, D },
	{ "ranges: a name of 4 GiB", WPT_FMT_PART, 0, 52, 4, UINT32_MAX, D },
	{ "ranges: a name that is too short", WPT_FMT_PART, 0, 52, 4, 2, D },
	{ "ranges: a NUL in a name", WPT_FMT_PART, 0, 57, 1, 0, D },
	{ "trailer: version", WPT_FMT_TRAILER, 0, 12, 2, 2, F },
	{ "trailer: a link that begins earlier", WPT_FMT_TRAILER, 0, 56, 8, 100000, D },
	{ "trailer: a link that begins later", WPT_FMT_TRAILER, 0, 56, 8, 400, D },
	{ "trailer: an offset around the end of numbers", WPT_FMT_TRAILER, 0, 56, 8, UINT64_MAX - 127, D },
	{ "trailer: a root at the head", WPT_FMT_TRAILER, 0, 64, 8, 0, D },
	{ "trailer: a root far away", WPT_FMT_TRAILER, 0, 64, 8, 1ull << 60, D },
	{ "trailer: a root around the end of numbers", WPT_FMT_TRAILER, 0, 64, 8, UINT64_MAX - 30, D },
	{ "trailer: a root of 4 GiB", WPT_FMT_TRAILER, 0, 72, 4, UINT32_MAX, D },
	{ "trailer: no root", WPT_FMT_TRAILER, 0, 72, 4, 0, D },
};

static void a_field_that_lies_is_refused(void **state)
{
	struct forge f;
	uint8_t *block;
	size_t len;

	(void)state;
	for (size_t i = 0; i < WPT_ARRAY_SIZE(lies); i++) {
		const struct lie *lie = &lies[i];

		layout(&f);
		forge_end(&f);
		block = forge_find(&f, lie->tag, lie->nr, &len);
		assert_true(lie->offset + (size_t)lie->width <= len - 8);
		assert_int_not_equal(reseal_get(block + lie->offset, lie->width), lie->value);
		reseal_put(block + lie->offset, lie->value, lie->width);
		forge_seal(&f);
		/* A link that its trailer does not find is one without a trailer, to a reader that goes by the end. */
		if (lie->tag == WPT_FMT_TRAILER && lie->error == D)
			assert_refused(&f, ANY, lie->what);
		else
			assert_refused(&f, lie->error, lie->what);
		forge_close(&f);
	}
}

/* Every byte of metadata, with other values, sealed again: no crash and no odd error. What it says may well be something else then. */
static void any_byte_of_metadata_may_lie(void **state)
{
	static const uint8_t change[] = { 0x01, 0x80, 0xff, 0x7f };
	struct exercise x;
	struct sample s;
	uint8_t *bytes = NULL;
	size_t len = 0;

	(void)state;
	assert_int_equal(sample_open(&s, 5, 0), 0);
	for (uint32_t i = 0; i < 3; i++) {
		sample_write(&s, i ? 10 : 60);
		assert_int_equal(sample_append(&s, &bytes, &len), 0);
	}
	sample_close(&s);
	for (size_t at = 0; at < len; at++) {
		for (size_t v = 0; v < WPT_ARRAY_SIZE(change); v++) {
			uint8_t *copy = malloc(len);

			assert_non_null(copy);
			memcpy(copy, bytes, len);
			copy[at] ^= change[v];
			reseal(copy, len, v & 1);
			exercise(&x, copy, len);
			if (x.odd)
				fail_msg("byte %zu changed by %#x: %s gives %d", at, change[v], x.odd_where, x.odd);
			free(copy);
		}
		if (getenv("WPT_QUICK"))
			at += 10;
	}
	free(bytes);
}

/* ---- what takes more than a field ---- */

/* Where the index and the leaf agree, only the runs themselves tell. */
static void runs_beyond_their_leaf_are_refused(void **state)
{
	struct forge f;

	(void)state;
	forge_open(&f);
	forge_link(&f);
	forge_page(&f, 0x10, pages[0]);
	forge_run(&f, WPT_FMT_ZERO, 0x12, 4, 0, 0, NULL);
	f.leaf.end_page--;
	f.root.counts.zero = 4;
	add_ranges(&f);
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, D, "a run that ends behind its leaf");
	forge_close(&f);
}

static void numbers_longer_than_necessary_are_refused(void **state)
{
	struct forge f;
	uint8_t *leaf;
	size_t len;

	(void)state;
	for (int i = 0; i < 2; i++) {
		forge_open(&f);
		forge_link(&f);
		forge_run(&f, WPT_FMT_ZERO, 0x10, i ? 128 : 129, 0, 0, NULL);
		f.leaf.nr_pages = 1;
		f.root.counts.zero = 200;
		add_ranges(&f);
		forge_end(&f);
		leaf = forge_find(&f, WPT_FMT_LEAF, 0, &len);
		assert_int_equal(leaf[38] & 0x80, 0x80);
		/* One in two bytes; the other time the leaf has a byte that is no run's. */
		reseal_put(leaf + 38, i ? 0x0081 : 0x0001, 2);
		forge_seal(&f);
		assert_refused(&f, D, "a long number");
		forge_close(&f);
	}
}

static void digests_that_lie_are_noticed(void **state)
{
	static const uint32_t offsets[] = { 84, 99, 100, 115 };
	struct forge f;
	uint8_t *block;
	size_t len;

	(void)state;
	for (size_t i = 0; i < WPT_ARRAY_SIZE(offsets); i++) {
		layout(&f);
		forge_end(&f);
		forge_seal(&f);
		block = forge_find(&f, WPT_FMT_TRAILER, 0, &len);
		block[offsets[i]] ^= 1;
		reseal_put(block + 120, wpt_fmt_checksum(block, 120), 8);
		assert_refused(&f, D, "a digest of the trailer");
		forge_close(&f);
	}
	layout(&f);
	forge_end(&f);
	forge_seal(&f);
	block = forge_find(&f, WPT_FMT_PART, 1, &len);
	assert_memory_equal(block + 28, "a=b", 4);
	block[30] = 'c';
	reseal(f.bytes, f.len, false);
	assert_refused(&f, D, "a section with another's digest");
	forge_close(&f);
}

/* The numbers of pages are wrong in each entry and right in the sum. */
static void an_index_that_lies_of_its_leaves_is_noticed(void **state)
{
	struct forge f;

	(void)state;
	forge_open(&f);
	forge_link(&f);
	for (uint32_t i = 0; i < 2; i++) {
		forge_page(&f, 0x10 + 3 * i, pages[0]);
		forge_page(&f, 0x11 + 3 * i, pages[1]);
		f.leaf.nr_pages = i ? 1 : 3;
		forge_leaf(&f);
	}
	add_ranges(&f);
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, D, "numbers of pages");
	forge_close(&f);

	forge_open(&f);
	forge_link(&f);
	forge_page(&f, 0x10, pages[0]);
	forge_leaf(&f);
	wpt_fmt_node_begin(&f.node);
	forge_page(&f, 0x11, pages[1]);
	add_ranges(&f);
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, D, "a leaf that is not listed");
	forge_close(&f);
}

static void frames_that_hold_more_than_they_say_are_refused(void **state)
{
	uint8_t *zeros = calloc(1, 64 << 20);
	struct forge f;
	uint32_t frame;

	(void)state;
	assert_non_null(zeros);
	/* 64 MiB in a few kilobytes, said to be one page; and a page said to be two. */
	forge_open(&f);
	forge_link(&f);
	frame = forge_frame(&f, zeros, 64 << 20, 1);
	forge_run(&f, WPT_FMT_DATA, 0x10, 1, frame, 0, zeros);
	f.root.counts.data = 1;
	add_ranges(&f);
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, D, "64 MiB in a page");
	forge_close(&f);

	forge_open(&f);
	forge_link(&f);
	frame = forge_frame(&f, pages, WPT_PAGE, 2);
	forge_run(&f, WPT_FMT_DATA, 0x10, 2, frame, 0, pages);
	f.root.counts.data = 2;
	add_ranges(&f);
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, D, "a page in two");
	forge_close(&f);
	free(zeros);
}

/* Adds a section of one part that is `bytes` of zstd's output of `raw` zeros, said to be `said` long. */
static void add_bomb(struct forge *f, uint32_t type, size_t raw, uint32_t said, uint64_t length)
{
	uint8_t *zeros = calloc(1, raw);
	size_t room = ZSTD_compressBound(raw), n;
	uint8_t *out = malloc(room);
	struct wpt_fmt_section *s;
	struct wpt_fmt_part part = { .type = type, .flags = WPT_FMT_PART_ZSTD | WPT_FMT_PART_LAST, .raw_len = said };

	assert_true(zeros && out);
	n = ZSTD_compress(out, room, zeros, raw, 1);
	assert_false(ZSTD_isError(n));
	s = &f->sections[f->root.nr_sections++];
	memset(s, 0, sizeof(*s));
	s->type = type;
	s->offset = f->len - f->start;
	s->length = length;
	part.data = out;
	part.len = (uint32_t)n;
	forge_put(f, f->block, wpt_fmt_part_encode(&part, f->block));
	s->stored = f->len - f->start - s->offset;
	free(zeros);
	free(out);
}

static void sections_of_absurd_lengths_are_refused(void **state)
{
	static const struct {
		size_t raw;
		uint32_t said;
		uint64_t length;
		int error;
	} cases[] = {
		{ 1000, 1000, 1000, NONE },
		{ 64 << 20, 1000, 1000, D },
		{ 64 << 20, 1000000, 64 << 20, D },
		{ 1000, 1000, 999, D },
		{ 1000, 1000, 1001, D },
		{ 1000, 1000, 1 << 30, D },
		{ 1000, 1000, (1ull << 30) + 1, D },
		{ 1000, 1000, 1ull << 62, D },
		{ 1000, 1000, UINT64_MAX, D },
		{ 1000, 1000, 0, D },
		{ 1000, 0, 0, D },
	};
	struct forge f;
	char what[64];

	(void)state;
	for (size_t i = 0; i < WPT_ARRAY_SIZE(cases); i++) {
		layout(&f);
		add_bomb(&f, WPT_SECTION_DEVICE, cases[i].raw, cases[i].said, cases[i].length);
		forge_end(&f);
		forge_seal(&f);
		snprintf(what, sizeof(what), "section %zu", i);
		assert_refused(&f, cases[i].error, what);
		forge_close(&f);
	}
}

static void section_directories_that_lie_are_refused(void **state)
{
	struct wpt_fmt_section *s;
	struct forge f;

	(void)state;
	layout(&f);
	s = forge_section(&f, WPT_SECTION_DEVICE, "device", 6);
	s->stored += 1000;
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, D, "more stored than there is");
	forge_close(&f);

	layout(&f);
	s = forge_section(&f, WPT_SECTION_DEVICE, "device", 6);
	s->stored = UINT64_MAX - s->offset;
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, D, "stored around the end of numbers");
	forge_close(&f);

	layout(&f);
	s = forge_section(&f, WPT_SECTION_DEVICE, "device", 6);
	s->offset = 1ull << 60;
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, D, "far away");
	forge_close(&f);

	layout(&f);
	while (f.root.nr_sections < WPT_FMT_SECTIONS_MAX)
		forge_section(&f, WPT_SECTION_USER + f.root.nr_sections, "x", 1);
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, NONE, "as many sections as there may be");
	forge_close(&f);

	layout(&f);
	while (f.root.nr_sections < FORGE_SECTIONS)
		forge_section(&f, WPT_SECTION_USER + f.root.nr_sections, "x", 1);
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, D, "more sections than there may be");
	forge_close(&f);
}

static void forge_ranges(struct forge *f, const uint64_t (*r)[2], size_t nr)
{
	uint8_t *buf = malloc(nr * 32), *p = buf;

	assert_non_null(buf);
	forge_open(f);
	forge_link(f);
	for (size_t i = 0; i < nr; i++)
		p += forge_range(p, r[i][0], r[i][1], "r");
	forge_section(f, WPT_FMT_SECTION_RANGES, buf, (size_t)(p - buf));
	forge_end(f);
	forge_seal(f);
	free(buf);
}

static void ranges_that_overlap_or_descend_are_refused(void **state)
{
	static const uint64_t overlap[][2] = { { 0x1000, 0x3000 }, { 0x2000, 0x4000 } };
	static const uint64_t same[][2] = { { 0x1000, 0x3000 }, { 0x1000, 0x3000 } };
	static const uint64_t descend[][2] = { { 0x4000, 0x5000 }, { 0x2000, 0x3000 } };
	static const uint64_t touch[][2] = { { 0x1000, 0x3000 }, { 0x3000, 0x4000 } };
	static const uint64_t all[][2] = { { 0, 0xfffffffffffff000 } };
	struct forge f;

	(void)state;
	forge_ranges(&f, overlap, 2);
	assert_refused(&f, D, "overlap");
	forge_close(&f);
	forge_ranges(&f, same, 2);
	assert_refused(&f, D, "same");
	forge_close(&f);
	forge_ranges(&f, descend, 2);
	assert_refused(&f, D, "descend");
	forge_close(&f);
	forge_ranges(&f, touch, 2);
	assert_refused(&f, NONE, "touch");
	forge_close(&f);
	forge_ranges(&f, all, 1);
	assert_refused(&f, NONE, "all there is");
	forge_close(&f);
}

static void many_ranges_take_little_memory(void **state)
{
	uint32_t nr = 200000;
	uint64_t (*r)[2] = malloc(nr * sizeof(*r));
	struct forge f;

	(void)state;
	assert_non_null(r);
	for (uint32_t i = 0; i < nr; i++) {
		r[i][0] = (uint64_t)i << 14;
		r[i][1] = r[i][0] + 0x1000;
	}
	forge_ranges(&f, (const uint64_t(*)[2])r, nr);
	assert_refused(&f, NONE, "many ranges");
	forge_close(&f);
	free(r);
}

static void counts_of_pages_cost_nothing(void **state)
{
	static const uint64_t all[][2] = { { 0, 0xfffffffffffff000 } };
	uint8_t range[WPT_FMT_RANGE_MAX];
	struct forge f;

	(void)state;
	for (uint32_t kind = WPT_FMT_ZERO; kind <= WPT_FMT_GUARD; kind++) {
		forge_open(&f);
		forge_link(&f);
		forge_run(&f, kind, 0, WPT_FMT_PAGES_END - 1, 0, 0, NULL);
		f.root.counts.zero = kind == WPT_FMT_ZERO ? WPT_FMT_PAGES_END - 1 : 0;
		f.root.counts.unreadable = kind == WPT_FMT_UNREADABLE ? WPT_FMT_PAGES_END - 1 : 0;
		f.root.counts.guard = kind == WPT_FMT_GUARD ? WPT_FMT_PAGES_END - 1 : 0;
		forge_section(&f, WPT_FMT_SECTION_RANGES, range, forge_range(range, all[0][0], all[0][1], "all"));
		forge_end(&f);
		forge_seal(&f);
		assert_refused(&f, NONE, "all pages in one run");
		forge_close(&f);
	}
}

static void of_two_records_of_a_page_the_later_wins(void **state)
{
	uint8_t got[WPT_PAGE];
	struct wpt_chain *c;
	struct forge f;

	(void)state;
	forge_open(&f);
	forge_link(&f);
	for (uint32_t i = 0; i < 3; i++) {
		forge_page(&f, 0x10 + i, pages[i]);
		forge_page(&f, 0x20, pages[i]);
		forge_leaf(&f);
	}
	add_ranges(&f);
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, NONE, "overlapping leaves");
	assert_int_equal(wpt_chain_open_memory(&c, f.bytes, f.len), 0);
	assert_int_equal(wpt_chain_read(c, 0x20000, got, WPT_PAGE), 0);
	assert_memory_equal(got, pages[2], WPT_PAGE);
	assert_int_equal(wpt_chain_read(c, 0x11000, got, WPT_PAGE), 0);
	assert_memory_equal(got, pages[1], WPT_PAGE);
	wpt_chain_close(c);
	forge_close(&f);
}

/* Half of the address space is unreadable, the other guard pages: two records, however many pages they are of. */
static void a_record_of_most_pages_there_are_is_one_record(void **state)
{
	const uint64_t half = WPT_FMT_PAGES_END / 2, end = UINT64_MAX - WPT_PAGE + 1;
	struct wpt_merge_options o = { .size = sizeof(o), .nr_threads = 1 };
	char dir[] = "/tmp/wpt-forged-XXXXXX", path[64];
	uint8_t range[WPT_FMT_RANGE_MAX], got[WPT_PAGE];
	struct wpt_chain *c, *merged;
	struct forge f;

	(void)state;
	forge_open(&f);
	forge_link(&f);
	forge_run(&f, WPT_FMT_UNREADABLE, 1, half - 1, 0, 0, NULL);
	forge_run(&f, WPT_FMT_GUARD, half, half - 1, 0, 0, NULL);
	f.root.counts = (struct wpt_fmt_counts){ .unreadable = half - 1, .guard = half - 1 };
	forge_section(&f, WPT_FMT_SECTION_RANGES, range, forge_range(range, WPT_PAGE, end, "all"));
	forge_end(&f);
	forge_seal(&f);
	assert_int_equal(wpt_chain_open_memory(&c, f.bytes, f.len), 0);
	assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/merged.wps", dir);
	assert_int_equal(wpt_chain_merge(c, path, &o), 0);
	assert_int_equal(wpt_chain_open(&merged, path), 0);
	assert_int_equal(wpt_chain_diff(c, merged, NULL, NULL), 0);
	assert_int_equal(wpt_chain_verify(merged, NULL, NULL), 0);
	assert_int_equal(wpt_chain_read(merged, half * WPT_PAGE - WPT_PAGE, got, WPT_PAGE), -WPT_E_UNREADABLE);
	assert_int_equal(wpt_chain_read(merged, half * WPT_PAGE, got, WPT_PAGE), 0);
	wpt_chain_close(merged);
	wpt_chain_close(c);
	unlink(path);
	rmdir(dir);
	forge_close(&f);
}

static void one_frame_listed_twice_is_read_twice(void **state)
{
	uint8_t got[2 * WPT_PAGE];
	struct wpt_fmt_frame_info info;
	struct wpt_chain *c;
	struct forge f;

	(void)state;
	forge_open(&f);
	forge_link(&f);
	info.offset = f.len - f.start;
	forge_frame(&f, pages, 2 * WPT_PAGE, 2);
	info.length = (uint32_t)(f.len - f.start - info.offset);
	info.nr_pages = 2;
	info.checksum = 0;
	assert_int_equal(wpt_fmt_leaf_add_frame(&f.leaf, &info), 1);
	forge_run(&f, WPT_FMT_DATA, 0x10, 1, 1, 1, pages[1]);
	forge_run(&f, WPT_FMT_DATA, 0x11, 1, 0, 0, pages[0]);
	f.root.counts.data = 2;
	add_ranges(&f);
	forge_end(&f);
	forge_seal(&f);
	assert_int_equal(wpt_chain_open_memory(&c, f.bytes, f.len), 0);
	assert_int_equal(wpt_chain_read(c, 0x10000, got, 2 * WPT_PAGE), 0);
	assert_memory_equal(got, pages[1], WPT_PAGE);
	assert_memory_equal(got + WPT_PAGE, pages[0], WPT_PAGE);
	wpt_chain_close(c);
	forge_close(&f);
}

/* A tree as deep as it may be, and one level more. */
static void a_tree_has_a_deepest_level(void **state)
{
	struct forge f;
	uint8_t *block;
	size_t len;

	(void)state;
	forge_open(&f);
	forge_link(&f);
	forge_page(&f, 0x10, pages[0]);
	forge_leaf(&f);
	while (f.level < WPT_FMT_LEVEL_MAX)
		forge_node(&f);
	add_ranges(&f);
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, NONE, "as deep as may be");
	block = forge_find(&f, WPT_FMT_NODE, 3, &len);
	reseal_put(block + 12, 3, 4);
	forge_seal(&f);
	assert_refused(&f, D, "a node of its child's level");
	reseal_put(block + 12, 8, 4);
	forge_seal(&f);
	assert_refused(&f, D, "a node of its parent's level");
	forge_close(&f);
}

/* Each leaf begins before the one before it and ends behind it, so that each is a pass of its own. */
static void a_maze_of_leaves_takes_bounded_time(void **state)
{
	uint32_t nr = getenv("WPT_QUICK") ? 200 : 1500;
	struct forge f;

	(void)state;
	forge_open(&f);
	forge_link(&f);
	for (uint32_t i = 0; i < nr; i++) {
		forge_run(&f, WPT_FMT_ZERO, 0x10 + nr - i, 1, 0, 0, NULL);
		forge_run(&f, WPT_FMT_GUARD, 0x11 + nr + i, 1, 0, 0, NULL);
		forge_leaf(&f);
	}
	f.root.counts.zero = f.root.counts.guard = nr;
	add_ranges(&f);
	forge_end(&f);
	forge_seal(&f);
	assert_refused(&f, NONE, "a maze");
	forge_close(&f);
}

/* ---- chains ---- */

static void two_links(struct forge *f)
{
	uint8_t range[WPT_FMT_RANGE_MAX];

	forge_open(f);
	forge_link(f);
	forge_page(f, 0x10, pages[0]);
	forge_section(f, WPT_FMT_SECTION_RANGES, range, forge_range(range, RANGE_START, RANGE_END, "mem"));
	forge_end(f);
	forge_next(f);
	forge_link(f);
	forge_page(f, 0x11, pages[1]);
	forge_end(f);
	forge_seal(f);
}

static void links_that_do_not_fit_are_refused(void **state)
{
	static const struct {
		const char *what;
		uint32_t offset;
		int width;
		uint64_t value;
	} cases[] = {
		{ "another parent", 68, 8, 77 },
		{ "itself as its parent", 68, 1, 0x11 },
		{ "another digest of the parent", 84, 8, 77 },
		{ "another chain", 28, 8, 77 },
	};
	struct forge f;
	uint8_t *block;
	size_t len;

	(void)state;
	two_links(&f);
	assert_refused(&f, NONE, "two links");
	forge_close(&f);
	for (size_t i = 0; i < WPT_ARRAY_SIZE(cases); i++) {
		two_links(&f);
		block = forge_find(&f, WPT_FMT_HEAD, 1, &len);
		reseal_put(block + cases[i].offset, cases[i].value, cases[i].width);
		if (cases[i].offset == 28)
			memcpy(forge_find(&f, WPT_FMT_TRAILER, 1, &len) + 16, block + 28, 16);
		/* Without identity digests: they would put the parent's right again. */
		reseal(f.bytes, f.len, false);
		assert_refused(&f, -WPT_E_CHAIN, cases[i].what);
		forge_close(&f);
	}
	two_links(&f);
	forge_find(&f, WPT_FMT_TRAILER, 0, &len)[90] ^= 1;
	reseal(f.bytes, f.len, false);
	assert_refused(&f, -WPT_E_CHAIN, "a parent of another digest");
	forge_close(&f);
}

static void the_same_link_twice_is_no_harm(void **state)
{
	uint8_t *second, got[2 * WPT_PAGE];
	struct wpt_chain *c;
	struct forge f;
	size_t len;

	(void)state;
	two_links(&f);
	second = forge_find(&f, WPT_FMT_HEAD, 1, &len);
	{
		size_t at = (size_t)(second - f.bytes), n = f.len - at;
		uint8_t *copy = malloc(n);

		assert_non_null(copy);
		memcpy(copy, second, n);
		forge_put(&f, copy, n);
		free(copy);
	}
	assert_refused(&f, NONE, "a link twice");
	assert_int_equal(wpt_chain_open_memory(&c, f.bytes, f.len), 0);
	assert_int_equal(wpt_chain_read(c, RANGE_START, got, sizeof(got)), 0);
	assert_memory_equal(got, pages, sizeof(got));
	wpt_chain_close(c);
	forge_close(&f);
}

static void put_file(int dir, const char *name, const uint8_t *bytes, size_t len)
{
	int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), len);
	close(fd);
}

/* The file of link number i, whose id is i and fifteen times 0x10. */
static void circle_name(char *name, uint32_t i)
{
	name += sprintf(name, "%010u-%02x", 5 + i, i);
	for (int j = 0; j < 15; j++)
		name += sprintf(name, "10");
	strcpy(name, ".wps");
}

/* To open a chain no digest is recomputed, so each link can say to be its parent's parent. */
static void parents_in_a_circle_are_refused(void **state)
{
	char folder[] = "/tmp/wpt-forged-XXXXXX", path[128];
	struct wpt_chain *c;
	int dir;

	(void)state;
	assert_non_null(mkdtemp(folder));
	dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(dir >= 0);
	for (uint32_t size = 1; size <= 3; size++) {
		for (uint32_t i = 0; i < size; i++) {
			struct forge f;
			uint8_t *head, *trailer;
			size_t len;
			char name[64];

			forge_open(&f);
			f.head.flags = 0;
			f.head.identity.sequence = 5 + i;
			f.head.identity.link_id[0] = (uint8_t)i;
			memcpy(f.head.identity.parent_id, f.head.identity.link_id, 16);
			f.head.identity.parent_id[0] = (uint8_t)((i + size - 1) % size);
			forge_link(&f);
			forge_page(&f, 0x10, pages[0]);
			forge_end(&f);
			head = forge_find(&f, WPT_FMT_HEAD, 0, &len);
			trailer = forge_find(&f, WPT_FMT_TRAILER, 0, &len);
			memset(head + 84, 0xdd, 16);
			memset(trailer + 84, 0xdd, 16);
			reseal(f.bytes, f.len, false);
			circle_name(name, i);
			put_file(dir, name, f.bytes, f.len);
			assert_refused(&f, -WPT_E_CHAIN, "a link whose parent is elsewhere");
			forge_close(&f);
		}
		for (uint32_t i = 0; i < size; i++) {
			circle_name(path + sprintf(path, "%s/", folder), i);
			assert_int_equal(wpt_chain_open(&c, path), -WPT_E_CHAIN);
		}
		assert_int_equal(wpt_chain_open(&c, folder), -WPT_E_CHAIN);
	}
	for (uint32_t i = 0; i < 3; i++) {
		circle_name(path, i);
		unlinkat(dir, path, 0);
	}
	close(dir);
	rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_forged_here_is_right_but_for_the_lie),
		cmocka_unit_test(a_field_that_lies_is_refused),
		cmocka_unit_test(runs_beyond_their_leaf_are_refused),
		cmocka_unit_test(numbers_longer_than_necessary_are_refused),
		cmocka_unit_test(digests_that_lie_are_noticed),
		cmocka_unit_test(an_index_that_lies_of_its_leaves_is_noticed),
		cmocka_unit_test(frames_that_hold_more_than_they_say_are_refused),
		cmocka_unit_test(sections_of_absurd_lengths_are_refused),
		cmocka_unit_test(section_directories_that_lie_are_refused),
		cmocka_unit_test(ranges_that_overlap_or_descend_are_refused),
		cmocka_unit_test(many_ranges_take_little_memory),
		cmocka_unit_test(counts_of_pages_cost_nothing),
		cmocka_unit_test(of_two_records_of_a_page_the_later_wins),
		cmocka_unit_test(a_record_of_most_pages_there_are_is_one_record),
		cmocka_unit_test(one_frame_listed_twice_is_read_twice),
		cmocka_unit_test(a_tree_has_a_deepest_level),
		cmocka_unit_test(a_maze_of_leaves_takes_bounded_time),
		cmocka_unit_test(links_that_do_not_fit_are_refused),
		cmocka_unit_test(the_same_link_twice_is_no_harm),
		cmocka_unit_test(parents_in_a_circle_are_refused),
		cmocka_unit_test(any_byte_of_metadata_may_lie),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
