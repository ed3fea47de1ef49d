/* SPDX-License-Identifier: MIT */
/* Is each line of standard input one JSON object (RFC 8259, UTF-8) that has "schema":1 and a "type"? Says which is not. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

static const unsigned char *at;

static int value(int depth);

static int literal(const char *s)
{
	size_t n = strlen(s);

	if (strncmp((const char *)at, s, n))
		return 0;
	at += n;
	return 1;
}

static int escape(void)
{
	int i;

	at++;
	if (*at && strchr("\"\\/bfnrt", *at)) {
		at++;
		return 1;
	}
	if (*at++ != 'u')
		return 0;
	for (i = 0; i < 4; i++)
		if (!isxdigit(*at++))
			return 0;
	return 1;
}

static int string(void)
{
	int n;

	if (*at++ != '"')
		return 0;
	while (*at != '"') {
		if (*at < 0x20)
			return 0;
		if (*at == '\\') {
			if (!escape())
				return 0;
			continue;
		}
		n = *at < 0x80 ? 0 : *at >= 0xf0 ? 3 : *at >= 0xe0 ? 2 : *at >= 0xc2 ? 1 : -1;
		if (n < 0)
			return 0;
		for (at++; n > 0; n--)
			if ((*at++ & 0xc0) != 0x80)
				return 0;
	}
	at++;
	return 1;
}

static int number(void)
{
	if (*at == '-')
		at++;
	if (!isdigit(*at) || (*at == '0' && isdigit(at[1])))
		return 0;
	while (isdigit(*at))
		at++;
	return 1;
}

static int object(int depth)
{
	at++;
	if (*at == '}') {
		at++;
		return 1;
	}
	for (;;) {
		if (!string() || *at++ != ':' || !value(depth + 1))
			return 0;
		if (*at == '}') {
			at++;
			return 1;
		}
		if (*at++ != ',')
			return 0;
	}
}

static int value(int depth)
{
	if (depth > 8)
		return 0;
	if (*at == '{')
		return object(depth);
	if (*at == '"')
		return string();
	if (*at == '-' || isdigit(*at))
		return number();
	return literal("true") || literal("false") || literal("null");
}

int main(void)
{
	static char line[1 << 20];
	int lines = 0;

	while (fgets(line, sizeof(line), stdin)) {
		lines++;
		line[strcspn(line, "\n")] = '\0';
		at = (const unsigned char *)line;
		if (*at != '{' || !value(0) || *at || strncmp(line, "{\"schema\":1,\"type\":\"", 20)) {
			printf("line %d is no JSON object of ours: %s\n", lines, line);
			return 1;
		}
	}
	if (!lines)
		puts("no line");
	return !lines;
}
