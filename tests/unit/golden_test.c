/* SPDX-License-Identifier: MIT */
/* Files that earlier versions wrote, tests/golden, read as tests/golden/expected.txt says; its SHA-256 are compared by sha256sum(1). */
#include "wptrack.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/"

static char scratch[] = "/tmp/wpt-golden-XXXXXX";
static FILE *sums;
static uint32_t nr_images, nr_links, nr_sections, nr_refused;

static struct wpt_chain *open_chain(const char *file)
{
	struct wpt_chain *c = NULL;
	char path[256];
	int rc;

	snprintf(path, sizeof(path), GOLDEN "%s", file);
	rc = wpt_chain_open(&c, path);
	if (rc)
		fail_msg("%s: %s", file, wpt_strerror(rc));
	return c;
}

/* sha256sum -c will look at it. */
static void note_sum(const char *name, const char *sha256)
{
	assert_int_equal(strlen(sha256), 64);
	fprintf(sums, "%s  %s\n", sha256, name);
}

static void expect_range(const char *file, const char *rest)
{
	unsigned long long start, end;
	unsigned int unreadable;
	uint64_t got = 0;
	char sha256[65], name[256], path[400];
	struct wpt_chain *c = open_chain(file);
	uint8_t *buf;
	FILE *f;

	assert_int_equal(sscanf(rest, "%llx %llx %u %64s", &start, &end, &unreadable, sha256), 4);
	snprintf(name, sizeof(name), "%s-%llx.raw", file, start);
	snprintf(path, sizeof(path), "%s/%s", scratch, name);
	assert_int_equal(wpt_chain_restore_file(c, start, end, path, &got, NULL, NULL), 0);
	assert_int_equal(got, unreadable);
	note_sum(name, sha256);

	/* The same, not through a file. */
	buf = malloc((size_t)(end - start));
	assert_non_null(buf);
	memset(buf, 0x77, (size_t)(end - start));
	assert_int_equal(wpt_chain_restore_memory(c, start, end, buf, &got), 0);
	assert_int_equal(got, unreadable);
	snprintf(name, sizeof(name), "%s-%llx.memory", file, start);
	snprintf(path, sizeof(path), "%s/%s", scratch, name);
	f = fopen(path, "wx");
	assert_non_null(f);
	assert_int_equal(fwrite(buf, 1, (size_t)(end - start), f), end - start);
	assert_int_equal(fclose(f), 0);
	note_sum(name, sha256);
	free(buf);
	wpt_chain_close(c);
	nr_images++;
}

static void expect_section(const char *file, const char *rest)
{
	unsigned int type;
	char sha256[65], name[256], path[400];
	struct wpt_chain *c = open_chain(file);
	void *data;
	size_t len;
	FILE *f;

	assert_int_equal(sscanf(rest, "%u %64s", &type, sha256), 2);
	assert_int_equal(wpt_chain_section(c, type, &data, &len), 0);
	snprintf(name, sizeof(name), "%s-section-%u", file, type);
	snprintf(path, sizeof(path), "%s/%s", scratch, name);
	f = fopen(path, "wx");
	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
	note_sum(name, sha256);
	free(data);
	wpt_chain_close(c);
	nr_sections++;
}

static void expect_links(const char *file, const char *rest)
{
	struct wpt_chain_info info = { .size = sizeof(info) };
	struct wpt_chain *c = open_chain(file);

	assert_int_equal(wpt_chain_verify(c, NULL, NULL), 0);
	assert_int_equal(wpt_chain_info(c, &info), 0);
	assert_int_equal(info.nr_links, atoi(rest));
	wpt_chain_close(c);
	nr_links++;
}

static void expect_refused(const char *file, const char *rest)
{
	struct wpt_chain *c;
	char path[256];

	snprintf(path, sizeof(path), GOLDEN "%s", file);
	assert_int_equal(wpt_chain_open(&c, path), -atoi(rest));
	nr_refused++;
}

static void what_version_1_wrote_reads_as_it_did(void **state)
{
	char line[512], what[32], file[128], path[256], command[256];
	int used;
	FILE *f = fopen(GOLDEN "expected.txt", "r");

	(void)state;
	if (!f)
		fail_msg("run this where " GOLDEN " is");
	assert_non_null(mkdtemp(scratch));
	snprintf(path, sizeof(path), "%s/SHA256SUMS", scratch);
	sums = fopen(path, "w");
	assert_non_null(sums);
	while (fgets(line, sizeof(line), f)) {
		assert_int_equal(sscanf(line, "%31s %127s %n", what, file, &used), 2);
		if (!strcmp(what, "range"))
			expect_range(file, line + used);
		else if (!strcmp(what, "section"))
			expect_section(file, line + used);
		else if (!strcmp(what, "links"))
			expect_links(file, line + used);
		else if (!strcmp(what, "refuse"))
			expect_refused(file, line + used);
		else
			fail_msg("%s", line);
	}
	fclose(f);
	assert_int_equal(fclose(sums), 0);
	assert_true(nr_images >= 17 && nr_links >= 5 && nr_sections >= 13 && nr_refused >= 2);
	snprintf(command, sizeof(command), "cd %s && sha256sum -c --quiet SHA256SUMS", scratch);
	assert_int_equal(system(command), 0);
	snprintf(command, sizeof(command), "rm -rf %s", scratch);
	assert_int_equal(system(command), 0);
}

/* A file that expected.txt does not name is one that is not tested. */
static void every_file_is_expected(void **state)
{
	struct dirent *e;
	DIR *d = opendir(GOLDEN);
	char text[65536];
	FILE *f = fopen(GOLDEN "expected.txt", "r");
	size_t len, n;

	(void)state;
	assert_non_null(d);
	assert_non_null(f);
	len = fread(text, 1, sizeof(text) - 1, f);
	text[len] = '\0';
	fclose(f);
	while ((e = readdir(d))) {
		n = strlen(e->d_name);
		if (n > 4 && !strcmp(e->d_name + n - 4, ".wps") && !strstr(text, e->d_name))
			fail_msg("%s", e->d_name);
	}
	closedir(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_version_1_wrote_reads_as_it_did),
		cmocka_unit_test(every_file_is_expected),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
