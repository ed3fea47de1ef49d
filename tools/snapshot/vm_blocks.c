/* SPDX-License-Identifier: MIT */
/*
 * The RAM blocks of a virtual machine: their names and sizes from `info ramblock`, as a migration sees them; their addresses in QEMU's process by
 * `info mtree -f` and `gpa2hva`, because QMP has no better way; whether they are shared from /proc/PID/maps.
 */
#include "vm.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_BLOCKS 4096u

static int fail(char why[512], int err, const char *text)
{
	snprintf(why, 512, "%s", text);
	return err;
}

void vm_free_blocks(struct vm_blocks *b)
{
	size_t i;

	for (i = 0; i < b->nr; i++)
		free(b->v[i].id);
	free(b->v);
	memset(b, 0, sizeof(*b));
}

/* ---- names and sizes ---- */

/*
 * "NAME  4 KiB  0xOFFSET 0xUSED 0xTOTAL", of which newer versions have more columns. A block without a name is not part of a migration: nothing that
 * the guest has.
 */
static int parse_block(const char *line, struct vm_block *b)
{
	uint64_t offset, used;
	char name[256], unit[8];
	unsigned page;

	if (sscanf(line, " %255s %u %7s %" SCNx64 " %" SCNx64, name, &page, unit, &offset, &used) != 5 || !strchr(unit, 'B'))
		return 0;
	memset(b, 0, sizeof(*b));
	b->id = strdup(name);
	b->size = used;
	return b->id ? 1 : -ENOMEM;
}

static int parse_blocks(char *text, struct vm_blocks *out)
{
	char *line, *save = NULL;
	struct vm_block b, *v;
	int ret;

	for (line = strtok_r(text, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
		ret = parse_block(line, &b);
		if (ret <= 0) {
			if (ret)
				return ret;
			continue;
		}
		v = out->nr < MAX_BLOCKS ? reallocarray(out->v, out->nr + 1, sizeof(*v)) : NULL;
		if (!v) {
			free(b.id);
			return -ENOMEM;
		}
		out->v = v;
		v[out->nr++] = b;
	}
	return 0;
}

/* ---- addresses ---- */

/* The block's id is the region's name, or a path that ends in it. */
static struct vm_block *block_of(struct vm_blocks *blocks, const char *region)
{
	size_t i, len = strlen(region), have;

	for (i = 0; i < blocks->nr; i++)
		if (strcmp(blocks->v[i].id, region) == 0)
			return &blocks->v[i];
	for (i = 0; i < blocks->nr; i++) {
		have = strlen(blocks->v[i].id);
		if (have >= len && strcmp(blocks->v[i].id + have - len, region) == 0 && (have == len || blocks->v[i].id[have - len - 1] == '/'))
			return &blocks->v[i];
	}
	return NULL;
}

/* "  START-END (prio 0, ram): NAME [@OFFSET] [KVM]" */
static bool parse_region(const char *line, uint64_t *gpa, char name[256], uint64_t *offset)
{
	char type[16];
	uint64_t end;
	const char *p;

	if (sscanf(line, " %" SCNx64 "-%" SCNx64 " (prio %*d, %15[^)]): %255s", gpa, &end, type, name) != 4)
		return false;
	if (strcmp(type, "ram") != 0 && strcmp(type, "nv-ram") != 0)
		return false;
	p = strstr(line, " @");
	*offset = p ? strtoull(p + 2, NULL, 16) : 0;
	return true;
}

static int host_address(struct qmp *q, uint64_t gpa, uint64_t *out)
{
	const char *p;
	char line[64], *text;
	int err;

	snprintf(line, sizeof(line), "gpa2hva 0x%" PRIx64, gpa);
	err = qmp_human(q, line, &text);
	if (err)
		return err;
	p = strstr(text, " is 0x");
	*out = p ? strtoull(p + 4, NULL, 16) : 0;
	free(text);
	return 0;
}

/* The same flat view may be listed for several address spaces; gpa2hva goes by the one of the system. */
static int find_addresses(struct qmp *q, char *text, struct vm_blocks *blocks)
{
	char *line, *save = NULL, name[256];
	bool system = false, head = false;
	uint64_t gpa, offset, at;
	struct vm_block *b;
	int err;

	for (line = strtok_r(text, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
		if (strncmp(line, "FlatView", 8) == 0)
			system = false;
		head = strncmp(line, " AS \"", 5) == 0;
		if (head && strstr(line, " AS \"memory\""))
			system = true;
		if (head || !system || !parse_region(line, &gpa, name, &offset))
			continue;
		b = block_of(blocks, name);
		if (!b || b->start)
			continue;
		err = host_address(q, gpa, &at);
		if (err)
			return err;
		if (at > offset)
			b->start = at - offset;
	}
	return 0;
}

/* ---- shared or not ---- */

/* Marks blocks that lie in shared mappings as a whole. */
static int find_shared(pid_t pid, struct vm_blocks *blocks)
{
	uint64_t *covered = calloc(blocks->nr + 1, sizeof(*covered));
	char path[64], line[8192], flags[8];
	uint64_t start, end;
	struct vm_block *b;
	FILE *f;
	size_t i;

	if (!covered)
		return -ENOMEM;
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	if (!f) {
		free(covered);
		return errno == ENOENT ? -ESRCH : -errno;
	}
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &start, &end, flags) != 3 || flags[3] != 's')
			continue;
		for (i = 0; i < blocks->nr; i++) {
			b = &blocks->v[i];
			if (b->start && start < b->start + b->size && end > b->start)
				covered[i] += (end < b->start + b->size ? end : b->start + b->size) - (start > b->start ? start : b->start);
		}
	}
	fclose(f);
	for (i = 0; i < blocks->nr; i++)
		blocks->v[i].shared = blocks->v[i].size && covered[i] == blocks->v[i].size;
	free(covered);
	return 0;
}

/* A memory backend that is shared must have been found: without its memory the snapshot would be worthless. */
static int check_backends(struct qmp *q, const struct vm_blocks *blocks, char why[512])
{
	struct vm_block *b;
	json_t *list, *dev;
	const char *id;
	size_t i;
	int err;

	err = qmp_call(q, "query-memdev", NULL, &list, -1, QMP_TIMEOUT_MS);
	if (err)
		return fail(why, err, "query-memdev failed");
	json_array_foreach(list, i, dev) {
		id = json_string_value(json_object_get(dev, "id"));
		b = id ? block_of((struct vm_blocks *)blocks, id) : NULL;
		if (b && json_is_true(json_object_get(dev, "share")) && !b->shared) {
			snprintf(why, 512, "memory backend '%s' was not found in the memory of QEMU's process", id);
			err = -ENOENT;
		}
	}
	json_decref(list);
	return err;
}

int vm_list_blocks(struct qmp *q, pid_t pid, struct vm_blocks *out, char why[512])
{
	char *text = NULL;
	int err;

	memset(out, 0, sizeof(*out));
	err = qmp_human(q, "info ramblock", &text);
	if (!err)
		err = parse_blocks(text, out);
	free(text);
	text = NULL;
	if (!err && !out->nr)
		return fail(why, -EPROTO, "QEMU lists no RAM blocks");
	if (!err)
		err = qmp_human(q, "info mtree -f", &text);
	if (!err)
		err = find_addresses(q, text, out);
	free(text);
	if (err)
		fail(why, err, q->said[0] ? q->said : "QEMU's RAM blocks can't be listed");
	if (!err) {
		err = find_shared(pid, out);
		if (err)
			fail(why, err, "QEMU's mappings can't be read");
	}
	if (!err)
		err = check_backends(q, out, why);
	if (err)
		vm_free_blocks(out);
	return err;
}
