/* SPDX-License-Identifier: MIT */
/* Random numbers that a seed makes again: splitmix64, by Sebastiano Vigna, in the public domain. */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>

static inline uint64_t rng(uint64_t *s)
{
	uint64_t z = (*s += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static inline uint64_t rng_below(uint64_t *s, uint64_t n)
{
	return rng(s) % n;
}

#endif
