/* SPDX-License-Identifier: MIT */
/* JSON objects, one a line. Text from outside is made valid UTF-8: a byte that is not becomes U+FFFD. */
#include "wpsnap.h"

#include <inttypes.h>
#include <string.h>

/* Length of the valid UTF-8 sequence at s, 0 if it is none. */
static size_t utf8_length(const unsigned char *s)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t len, i;
	uint32_t c;

	if (s[0] < 0x80)
		return 1;
	len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return 0;
	c = s[0] & (0xffu >> (len + 1));
	for (i = 1; i < len; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3fu);
	}
	if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	return len;
}

static void put_string(FILE *f, const char *value)
{
	const unsigned char *s = (const unsigned char *)value;
	size_t len;

	putc('"', f);
	while (*s) {
		len = utf8_length(s);
		if (len == 0) {
			fputs("\\ufffd", f);
			len = 1;
		} else if (*s == '"' || *s == '\\') {
			fprintf(f, "\\%c", *s);
		} else if (*s < 0x20 || *s == 0x7f) {
			fprintf(f, "\\u%04x", *s);
		} else {
			fwrite(s, 1, len, f);
		}
		s += len;
	}
	putc('"', f);
}

/* The next key is the first of its object. One thread prints. */
static bool first_key;

static void put_key(FILE *f, const char *key)
{
	if (!first_key)
		putc(',', f);
	first_key = false;
	put_string(f, key);
	putc(':', f);
}

void json_begin(FILE *f, const char *type)
{
	fputs("{\"schema\":1", f);
	json_str(f, "type", type);
}

void json_str(FILE *f, const char *key, const char *value)
{
	put_key(f, key);
	if (value)
		put_string(f, value);
	else
		fputs("null", f);
}

void json_u64(FILE *f, const char *key, uint64_t value)
{
	put_key(f, key);
	fprintf(f, "%" PRIu64, value);
}

void json_i64(FILE *f, const char *key, int64_t value)
{
	put_key(f, key);
	fprintf(f, "%" PRId64, value);
}

void json_addr(FILE *f, const char *key, uint64_t value)
{
	put_key(f, key);
	fprintf(f, "\"0x%" PRIx64 "\"", value);
}

void json_bool(FILE *f, const char *key, bool value)
{
	put_key(f, key);
	fputs(value ? "true" : "false", f);
}

void json_open(FILE *f, const char *key)
{
	put_key(f, key);
	putc('{', f);
	first_key = true;
}

void json_close(FILE *f)
{
	putc('}', f);
	first_key = false;
}

void json_end(FILE *f)
{
	fputs("}\n", f);
}
