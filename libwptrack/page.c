/* SPDX-License-Identifier: MIT */
/*
 * Unkeyed, XXH3 can be forged: whoever chooses what is in memory could make two pages with one hash and have the older one
 * restored in place of the newer. With a secret of 192 random bytes it takes knowing the chain's key.
 */
#include "page.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define PAGE_BYTES 4096u

void wpt_page_key_init(struct wpt_page_key *k, const uint8_t key[32])
{
	uint8_t input[33];

	memcpy(input, key, 32);
	for (unsigned int i = 0; i < sizeof(k->secret) / 16; i++) {
		XXH128_canonical_t canonical;

		input[32] = (uint8_t)i;
		XXH128_canonicalFromHash(&canonical, XXH3_128bits(input, sizeof(input)));
		memcpy(k->secret + i * 16, canonical.digest, 16);
	}
}

void wpt_page_hash(const struct wpt_page_key *k, const void *page, uint8_t hash[16])
{
	XXH128_canonical_t canonical;

	XXH128_canonicalFromHash(&canonical, XXH3_128bits_withSecret(page, PAGE_BYTES, k->secret, sizeof(k->secret)));
	memcpy(hash, canonical.digest, 16);
}

/* Most pages that are not zero show it in their first words; the rest is read at the speed of memory. */
bool wpt_page_is_zero(const void *page)
{
	const uint64_t *word = page;

	for (unsigned int i = 0; i < PAGE_BYTES / sizeof(*word); i += 8) {
		uint64_t any = word[i] | word[i + 1] | word[i + 2] | word[i + 3];

		any |= word[i + 4] | word[i + 5] | word[i + 6] | word[i + 7];
		if (any)
			return false;
	}
	return true;
}
