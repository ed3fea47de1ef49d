/* SPDX-License-Identifier: MIT */
/*
 * Everything that a reader does with a file of concatenated links, for libFuzzer. Built by `make fuzz`: clang with
 * -fsanitize=fuzzer,address,undefined, this file and all of libwptrack compiled in. tests/fuzz/corpus/chain_fuzz has what it starts from.
 *
 * Checksums would end each input at its first changed byte. So inputs are changed inside of blocks and sealed again (reseal.h): they are
 * files that somebody could have written, and what is found with them is reachable in the library as it is shipped.
 */
#include "exercise.h"
#include "reseal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct exercise x;

	exercise(&x, data, size);
	if (x.odd) {
		fprintf(stderr, "%s gives %d\n", x.odd_where, x.odd);
		abort();
	}
	return 0;
}

static uint32_t next(uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return *seed >> 8;
}

/* A block at random, or the whole input where it has none. */
static uint8_t *pick_block(uint8_t *data, size_t size, uint32_t *seed, size_t *len)
{
	uint8_t *picked = data;
	size_t at = 0, frame;
	uint32_t met = 0;
	bool block;

	*len = size;
	while ((frame = reseal_frame(data + at, size - at, &block))) {
		if (block && next(seed) % ++met == 0) {
			picked = data + at;
			*len = frame;
		}
		at += frame;
	}
	return picked;
}

/* Values at which arithmetic goes wrong. */
static void put_odd(uint8_t *p, size_t room, uint32_t *seed)
{
	static const uint64_t odd[] = { 0, 1, 2, 0x7f, 0x80, 0xff, 255, 256, 257, 0x7fffffff, 0x80000000, UINT32_MAX, 1ull << 20,
					(1ull << 20) + 8, 1ull << 30, 1ull << 52, (1ull << 52) - 1, INT64_MAX, 1ull << 63, UINT64_MAX - 7,
					UINT64_MAX };
	static const int widths[] = { 1, 2, 4, 8 };
	int width = widths[next(seed) % 4];

	if ((size_t)width <= room)
		reseal_put(p, odd[next(seed) % WPT_ARRAY_SIZE(odd)], width);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	uint32_t s = seed, how = next(&s) % 8;
	uint8_t *block;
	size_t len, at;

	if (how == 0 || size < 32) {
		size = LLVMFuzzerMutate(data, size, max_size);
	} else {
		block = pick_block(data, size, &s, &len);
		/* Behind the frame's header, mostly. */
		at = len > 20 ? 12 + next(&s) % (len - 20) : next(&s) % len;
		if (how < 4)
			block[at] ^= (uint8_t)(1u << next(&s) % 8);
		else if (how < 6)
			put_odd(block + at, len - at, &s);
		else
			LLVMFuzzerMutate(block + at, WPT_MIN(len - at, (size_t)1 + next(&s) % 16), WPT_MIN(len - at, (size_t)16));
	}
	/* One in eight stays as it is: what checksums catch has to be caught too. */
	if (next(&s) % 8)
		reseal(data, size, next(&s) % 2);
	return size;
}
