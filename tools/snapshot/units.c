/* SPDX-License-Identifier: MIT */
/* Numbers, sizes, durations and ranges as people write them. No floating point in parsing. */
#include "wpsnap.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <strings.h>

static const char *parse_digits(const char *s, uint64_t *out, int *err)
{
	uint64_t v = 0;

	*err = isdigit((unsigned char)*s) ? 0 : -EINVAL;
	for (; isdigit((unsigned char)*s); s++)
		if (__builtin_mul_overflow(v, (uint64_t)10, &v) || __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
			*err = -ERANGE;
	*out = v;
	return s;
}

int parse_u64(const char *s, uint64_t *out)
{
	uint64_t v;
	int err;

	s = parse_digits(s, &v, &err);
	if (err)
		return err;
	if (*s)
		return -EINVAL;
	*out = v;
	return 0;
}

int parse_int(const char *s, int min, int max, int *out)
{
	bool negative = *s == '-';
	uint64_t v;
	int err;

	err = parse_u64(negative ? s + 1 : s, &v);
	if (err)
		return err;
	if (v > INT_MAX)
		return -ERANGE;
	*out = negative ? -(int)v : (int)v;
	return *out < min || *out > max ? -ERANGE : 0;
}

struct unit {
	const char *name;
	uint64_t factor;
};

/*
 * "1", "1.5UNIT": value * factor, rounded down. There are no fractions of the base unit, and nine digits after the point are
 * enough for a nanosecond.
 */
static int parse_scaled(const char *s, const struct unit *units, size_t nr, uint64_t *out)
{
	uint64_t whole, fraction = 0, scale = 1, v;
	unsigned __int128 part = 0;
	size_t i;
	int err;

	s = parse_digits(s, &whole, &err);
	if (err)
		return err;
	if (*s == '.') {
		if (!isdigit((unsigned char)s[1]))
			return -EINVAL;
		for (s++; isdigit((unsigned char)*s); s++) {
			if (scale == 1000000000)
				return -EINVAL;
			fraction = fraction * 10 + (uint64_t)(*s - '0');
			scale *= 10;
		}
	}
	for (i = 0; i < nr; i++)
		if (strcasecmp(s, units[i].name) == 0)
			break;
	if (i == nr)
		return -EINVAL;
	part = (unsigned __int128)fraction * units[i].factor;
	if (scale > 1 && units[i].factor == 1)
		return -EINVAL;
	if (__builtin_mul_overflow(whole, units[i].factor, &v) || __builtin_add_overflow(v, (uint64_t)(part / scale), &v))
		return -ERANGE;
	*out = v;
	return 0;
}

int parse_size(const char *s, uint64_t *bytes)
{
	static const struct unit units[] = {
		{ "", 1 },	       { "B", 1 },
		{ "K", 1ull << 10 },   { "KiB", 1ull << 10 },
		{ "M", 1ull << 20 },   { "MiB", 1ull << 20 },
		{ "G", 1ull << 30 },   { "GiB", 1ull << 30 },
		{ "T", 1ull << 40 },   { "TiB", 1ull << 40 },
	};

	return parse_scaled(s, units, ARRAY_SIZE(units), bytes);
}

int parse_duration(const char *s, uint64_t *ns)
{
	static const struct unit units[] = {
		{ "ns", 1 },
		{ "us", 1000 },
		{ "ms", 1000000 },
		{ "", 1000000000 },
		{ "s", 1000000000 },
		{ "m", 60000000000 },
		{ "min", 60000000000 },
		{ "h", 3600000000000 },
	};
	uint64_t v;
	int err;

	err = parse_scaled(s, units, ARRAY_SIZE(units), &v);
	if (err)
		return err;
	/* what a timespec and the timer hold */
	if (v > INT64_MAX)
		return -ERANGE;
	*ns = v;
	return 0;
}

static const char *parse_hex(const char *s, uint64_t *out, bool *overflow)
{
	uint64_t v = 0;
	unsigned int digit;

	if (s[0] == '0' && (s[1] == 'x' || s[1] == 'X') && isxdigit((unsigned char)s[2]))
		s += 2;
	if (!isxdigit((unsigned char)*s))
		return NULL;
	for (; isxdigit((unsigned char)*s); s++) {
		if (v >> 60)
			*overflow = true;
		digit = isdigit((unsigned char)*s) ? (unsigned int)(*s - '0') : (unsigned int)(tolower((unsigned char)*s) - 'a' + 10);
		v = v << 4 | digit;
	}
	*out = v;
	return s;
}

int parse_hex_range(const char *s, uint64_t *start, uint64_t *end)
{
	bool overflow = false;
	uint64_t a, b;

	s = parse_hex(s, &a, &overflow);
	if (!s || *s != '-')
		return -EINVAL;
	s = parse_hex(s + 1, &b, &overflow);
	if (!s || *s)
		return -EINVAL;
	if (overflow || a >= b)
		return -ERANGE;
	*start = a;
	*end = b;
	return 0;
}

int parse_pid(const char *s, pid_t *pid)
{
	int v, err;

	err = parse_int(s, 1, INT_MAX, &v);
	if (err)
		return err;
	*pid = v;
	return 0;
}

const char *format_size(char text[UNITS_TEXT], uint64_t bytes)
{
	static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double v = (double)bytes;
	int i = -1;

	if (bytes < 1024) {
		snprintf(text, UNITS_TEXT, "%llu B", (unsigned long long)bytes);
		return text;
	}
	while (v >= 1024 && i < (int)ARRAY_SIZE(units) - 1) {
		v /= 1024;
		i++;
	}
	snprintf(text, UNITS_TEXT, "%.1f %s", v, units[i]);
	return text;
}

const char *format_duration(char text[UNITS_TEXT], uint64_t ns)
{
	if (ns < 1000000)
		snprintf(text, UNITS_TEXT, "%.0f us", (double)ns / 1e3);
	else if (ns < 1000000000)
		snprintf(text, UNITS_TEXT, "%.1f ms", (double)ns / 1e6);
	else
		snprintf(text, UNITS_TEXT, "%.1f s", (double)ns / 1e9);
	return text;
}
