/* SPDX-License-Identifier: MIT */
/* Ranges of a live process by address or by the name of a mapping. */
#include "wpsnap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int spans_push(struct spans *s, uint64_t start, uint64_t end)
{
	struct span *v;

	v = reallocarray(s->v, s->nr + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	s->v = v;
	s->v[s->nr].start = start;
	s->v[s->nr++].end = end;
	return 0;
}

/* maps writes a newline in a name as \012 and leaves everything else alone. */
static void unescape(char *s)
{
	char *to = s;

	while (*s) {
		if (strncmp(s, "\\012", 4) == 0) {
			*to++ = '\n';
			s += 4;
		} else {
			*to++ = *s++;
		}
	}
	*to = '\0';
}

static bool is_name_or_base(const char *name, const char *spec)
{
	const char *slash = strrchr(name, '/');

	return strcmp(name, spec) == 0 || (slash && strcmp(slash + 1, spec) == 0);
}

/* A memfd shows as "/memfd:NAME (deleted)", an unlinked file as "PATH (deleted)". */
static bool name_matches(char *name, const char *spec)
{
	static const char deleted[] = " (deleted)";
	size_t len = strlen(name), tail = sizeof(deleted) - 1;

	if (is_name_or_base(name, spec))
		return true;
	if (len > tail && strcmp(name + len - tail, deleted) == 0)
		name[len - tail] = '\0';
	if (is_name_or_base(name, spec))
		return true;
	return strncmp(name, "/memfd:", 7) == 0 && strcmp(name + 7, spec) == 0;
}

/* Adjacent pieces of the name become one span. */
static int add_named(FILE *maps, const char *spec, struct spans *out)
{
	size_t size = 0, first = out->nr;
	uint64_t start, end;
	char *line = NULL;
	int at, err = 0;

	rewind(maps);
	while (!err && getline(&line, &size, maps) > 0) {
		line[strcspn(line, "\n")] = '\0';
		at = 0;
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*4s %*x %*x:%*x %*u %n", &start, &end, &at) < 2 || !at || !line[at])
			continue;
		unescape(line + at);
		if (!name_matches(line + at, spec))
			continue;
		if (out->nr > first && out->v[out->nr - 1].end == start)
			out->v[out->nr - 1].end = end;
		else
			err = spans_push(out, start, end);
	}
	if (!err && ferror(maps))
		err = -EIO;
	free(line);
	if (err)
		return err;
	return out->nr > first ? 0 : -WPT_E_NOT_TRACKED;
}

static int by_start(const void *a, const void *b)
{
	const struct span *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* The same memory may have been asked for twice. */
static void merge_overlaps(struct spans *s)
{
	size_t i, to = 0;

	qsort(s->v, s->nr, sizeof(*s->v), by_start);
	for (i = 1; i < s->nr; i++) {
		if (s->v[i].start >= s->v[to].end)
			s->v[++to] = s->v[i];
		else if (s->v[i].end > s->v[to].end)
			s->v[to].end = s->v[i].end;
	}
	if (s->nr)
		s->nr = to + 1;
}

static int add_spec(FILE *maps, const char *spec, struct spans *out)
{
	uint64_t start, end, page = (uint64_t)sysconf(_SC_PAGESIZE);
	int err;

	err = parse_hex_range(spec, &start, &end);
	if (err == -EINVAL)
		return add_named(maps, spec, out);
	if (err || start % page || end % page)
		return -EINVAL;
	return spans_push(out, start, end);
}

int spec_resolve(pid_t pid, const char *const *specs, size_t nr, struct spans *out, const char **bad)
{
	char path[64];
	FILE *maps;
	int err = 0;
	size_t i;

	memset(out, 0, sizeof(*out));
	*bad = specs[0];
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	maps = fopen(path, "re");
	if (!maps)
		return errno == ENOENT ? -ESRCH : -errno;
	for (i = 0; i < nr && !err; i++) {
		*bad = specs[i];
		err = add_spec(maps, specs[i], out);
	}
	fclose(maps);
	if (err) {
		free(out->v);
		memset(out, 0, sizeof(*out));
		return err;
	}
	merge_overlaps(out);
	return 0;
}
