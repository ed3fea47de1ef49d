/* SPDX-License-Identifier: MIT */
/* What a page is: zero or not, and its hash under the chain's key. Threads: any. */
#ifndef WPT_PAGE_H
#define WPT_PAGE_H

#include "base.h"

/* The secret that a chain's 32 byte key expands to. */
struct wpt_page_key {
	uint8_t secret[192] __attribute__((aligned(64)));
};

void wpt_page_key_init(struct wpt_page_key *k, const uint8_t key[32]);

/* XXH3-128 with the secret, canonical form, of the 4096 bytes at `page`. */
void wpt_page_hash(const struct wpt_page_key *k, const void *page, uint8_t hash[16]);

/* `page` is aligned to 8 bytes. */
bool wpt_page_is_zero(const void *page);

#endif
