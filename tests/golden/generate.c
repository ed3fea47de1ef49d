/* SPDX-License-Identifier: MIT */
/*
 * Made the files of this folder, and the corpus of tests/fuzz; kept for what is to be added. What is here already is never made anew:
 * that later versions read the bytes that an earlier one wrote is what these files are for.
 *
 *	make build/libwptrack.a
 *	cc -Iinclude -Ilibwptrack -Itests tests/golden/generate.c build/libwptrack.a -lzstd -lxxhash -lurcu-bp -pthread -o /tmp/generate
 *	/tmp/generate golden FOLDER >FOLDER/expected.txt
 *	/tmp/generate corpus FOLDER
 *
 * What the files hold comes from tables (tests/sample.h) and not from reading them: expected.txt has the SHA-256, by sha256sum(1), of
 * what a restore of each range must give. Its lines:
 *
 *	range FILE START END UNREADABLE SHA256     unreadable pages are zeros in the image, as guard pages are
 *	section FILE TYPE SHA256
 *	links FILE NUMBER
 *	refuse FILE ERROR
 */
#include "chain.h"
#include "forge.h"
#include "sample.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *folder;

static void die(const char *what, int rc)
{
	fprintf(stderr, "generate: %s: %s\n", what, wpt_strerror(rc));
	exit(1);
}

static void put_file(const char *name, const void *bytes, size_t len)
{
	char path[4096];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	f = fopen(path, "wx");
	if (!f || fwrite(bytes, 1, len, f) != len || fclose(f))
		die(path, -errno);
}

static void print_sha256(const void *bytes, size_t len)
{
	char command[4096 + 32], hash[65] = "";
	FILE *f;

	put_file("image.tmp", bytes, len);
	snprintf(command, sizeof(command), "sha256sum < '%s/image.tmp'", folder);
	f = popen(command, "r");
	if (!f || fscanf(f, "%64s", hash) != 1)
		die("sha256sum", -EIO);
	pclose(f);
	snprintf(command, sizeof(command), "%s/image.tmp", folder);
	unlink(command);
	printf("%s\n", hash);
}

static void expect_range(const char *file, uint64_t start, uint64_t end, const struct sample_page *p)
{
	size_t nr = (size_t)((end - start) / WPT_PAGE);
	uint8_t *image = malloc(nr * WPT_PAGE);
	uint32_t unreadable = 0;

	if (!image)
		die("memory", -ENOMEM);
	for (size_t i = 0; i < nr; i++) {
		memcpy(image + i * WPT_PAGE, p[i].data, WPT_PAGE);
		unreadable += p[i].state == SAMPLE_UNREADABLE;
	}
	printf("range %s %llx %llx %u ", file, (unsigned long long)start, (unsigned long long)end, unreadable);
	print_sha256(image, nr * WPT_PAGE);
	free(image);
}

/* Each range as the links list it. */
static void expect(const char *file, uint32_t nr_links, const struct sample *s)
{
	const struct sample_page *p = s->tip;

	printf("links %s %u\n", file, nr_links);
	for (uint32_t i = 0; i < SAMPLE_RANGES; i++) {
		expect_range(file, sample_ranges[i].start, sample_ranges[i].end, p);
		p += (sample_ranges[i].end - sample_ranges[i].start) / WPT_PAGE;
	}
	printf("section %s %d ", file, WPT_SECTION_TAGS);
	print_sha256(SAMPLE_TAGS, sizeof(SAMPLE_TAGS) - 1);
	printf("section %s %d ", file, WPT_SECTION_MAPPINGS);
	print_sha256(SAMPLE_MAPPINGS, strlen(SAMPLE_MAPPINGS));
	printf("section %s %d ", file, WPT_SECTION_DEVICE);
	print_sha256(s->device, sizeof(s->device));
}

static void merge(const uint8_t *bytes, size_t len, const char *name)
{
	struct wpt_chain *c;
	char path[4096];
	int rc = wpt_chain_open_memory(&c, bytes, len);

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	if (!rc)
		rc = wpt_chain_merge(c, path, NULL);
	if (rc)
		die(path, rc);
	wpt_chain_close(c);
}

static void read_back(const char *name, uint8_t **bytes, size_t *len)
{
	char path[4096];
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		die(path, -errno);
	*len = (size_t)st.st_size;
	*bytes = malloc(*len);
	if (!*bytes || read(fd, *bytes, *len) != (ssize_t)*len)
		die(path, -EIO);
	close(fd);
}

/* A base, a chain in one file, the same merged, and an increment that was made after the chain, behind the merged link. */
static void golden_chain(void)
{
	uint8_t *bytes = NULL, *merged;
	size_t len = 0, merged_len, before;
	struct sample s;
	int rc = sample_open(&s, 20261121, 5);

	for (uint32_t i = 0; i < 4 && !rc; i++) {
		sample_write(&s, i ? 12 : 80);
		rc = sample_append(&s, &bytes, &len);
		if (i == 0) {
			put_file("v1-base.wps", bytes, len);
			expect("v1-base.wps", 1, &s);
		}
	}
	if (rc)
		die("the sample chain", rc);
	put_file("v1-chain.wps", bytes, len);
	expect("v1-chain.wps", 4, &s);
	merge(bytes, len, "v1-merged.wps");
	expect("v1-merged.wps", 1, &s);
	before = len;
	sample_write(&s, 12);
	rc = sample_append(&s, &bytes, &len);
	if (rc)
		die("the increment after the merge", rc);
	read_back("v1-merged.wps", &merged, &merged_len);
	merged = realloc(merged, merged_len + len - before);
	if (!merged)
		die("memory", -ENOMEM);
	memcpy(merged + merged_len, bytes + before, len - before);
	put_file("v1-merged-continued.wps", merged, merged_len + len - before);
	expect("v1-merged-continued.wps", 2, &s);
	free(merged);
	free(bytes);
	sample_close(&s);
}

/* A block with a tag that no version knows yet. */
static void unknown_block(struct forge *f)
{
	uint8_t block[64];

	memset(block, 0x55, sizeof(block));
	reseal_put(block, WPT_FMT_MAGIC, 4);
	reseal_put(block + 4, sizeof(block) - 8, 4);
	reseal_put(block + 8, 0x5a545057, 4);
	forge_put(f, block, sizeof(block));
}

/*
 * What version 1 allows and no writer of version 1 writes, and readers must read all the same: features and blocks that they may ignore, a
 * frame that is used backwards, a page that is said twice, a tree that is deeper than it need be.
 */
static void forge_allowed(struct forge *f, struct sample_page *p)
{
	uint8_t range[WPT_FMT_RANGE_MAX], two[2 * WPT_PAGE], old[WPT_PAGE];
	uint32_t frame;

	for (uint32_t i = 0; i < 7; i++) {
		memset(p[i].data, 0x30 + (int)i, WPT_PAGE);
		p[i].state = SAMPLE_DATA;
	}
	forge_open(f);
	f->head.compat = 0x80000001;
	forge_link(f);
	unknown_block(f);
	memcpy(two, p[1].data, WPT_PAGE);
	memcpy(two + WPT_PAGE, p[0].data, WPT_PAGE);
	memcpy(p[2].data, p[1].data, WPT_PAGE);
	frame = forge_frame(f, two, sizeof(two), 2);
	forge_run(f, WPT_FMT_DATA, 0x10, 1, frame, 1, p[0].data);
	forge_run(f, WPT_FMT_DATA, 0x11, 1, frame, 0, p[1].data);
	forge_run(f, WPT_FMT_DUPLICATE, 0x12, 1, frame, 0, p[1].data);
	forge_leaf(f);
	unknown_block(f);
	memset(old, 0x6f, sizeof(old));
	forge_page(f, 0x13, old);
	forge_page(f, 0x14, old);
	forge_page(f, 0x16, p[6].data);
	forge_leaf(f);
	forge_page(f, 0x13, p[3].data);
	forge_run(f, WPT_FMT_ZERO, 0x14, 2, 0, 0, NULL);
	forge_leaf(f);
	memset(&p[4], 0, 2 * sizeof(*p));
	forge_node(f);
	forge_node(f);
	f->root.counts = (struct wpt_fmt_counts){ .data = 6, .duplicate = 1, .zero = 2 };
	forge_section(f, WPT_FMT_SECTION_RANGES, range, forge_range(range, 0x10000, 0x18000, "allowed"));
	forge_section(f, 0x7fffffff, "a section of a later version", 28);
}

static void golden_allowed(void)
{
	struct sample_page *p = calloc(8, sizeof(*p));
	struct forge f;

	if (!p)
		die("memory", -ENOMEM);
	forge_allowed(&f, p);
	forge_end(&f);
	forge_seal(&f);
	put_file("v1-allowed.wps", f.bytes, f.len);
	printf("links v1-allowed.wps 1\n");
	expect_range("v1-allowed.wps", 0x10000, 0x18000, p);
	printf("section v1-allowed.wps %u ", 0x7fffffff);
	print_sha256("a section of a later version", 28);
	forge_close(&f);
	free(p);
}

static void golden_refused(void)
{
	static const struct {
		const char *name;
		uint32_t offset;
		uint8_t value;
	} files[] = { { "v2.wps", 12, 2 }, { "v1-sealed.wps", 20, 1 } };
	struct forge f;
	uint8_t *head;
	size_t len;

	for (size_t i = 0; i < WPT_ARRAY_SIZE(files); i++) {
		struct sample_page *p = calloc(8, sizeof(*p));

		if (!p)
			die("memory", -ENOMEM);
		forge_allowed(&f, p);
		forge_end(&f);
		head = forge_find(&f, WPT_FMT_HEAD, 0, &len);
		head[files[i].offset] = files[i].value;
		forge_seal(&f);
		put_file(files[i].name, f.bytes, f.len);
		printf("refuse %s %d\n", files[i].name, WPT_E_FEATURE);
		forge_close(&f);
		free(p);
	}
}

static void corpus(void)
{
	struct sample_page *p = calloc(8, sizeof(*p));
	uint8_t *bytes = NULL;
	size_t len = 0;
	struct sample s;
	struct forge f;
	char name[32];
	int rc = sample_open(&s, 5, 0);

	if (!p)
		die("memory", -ENOMEM);
	for (uint32_t i = 0; i < 3 && !rc; i++) {
		sample_write(&s, i ? 10 : 60);
		rc = sample_append(&s, &bytes, &len);
		snprintf(name, sizeof(name), "links-%u", i + 1);
		put_file(name, bytes, len);
	}
	if (rc)
		die("the sample chain", rc);
	forge_allowed(&f, p);
	forge_end(&f);
	forge_seal(&f);
	put_file("allowed", f.bytes, f.len);
	forge_close(&f);
	free(bytes);
	free(p);
	sample_close(&s);
}

int main(int argc, char **argv)
{
	if (argc != 3 || (strcmp(argv[1], "golden") && strcmp(argv[1], "corpus"))) {
		fprintf(stderr, "usage: generate golden|corpus FOLDER\n");
		return 2;
	}
	folder = argv[2];
	if (!strcmp(argv[1], "corpus")) {
		corpus();
		return 0;
	}
	golden_chain();
	golden_allowed();
	golden_refused();
	return 0;
}
