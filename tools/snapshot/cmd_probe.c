/* SPDX-License-Identifier: MIT */
/* wpsnap probe: what can be tracked here. */
#include "wpsnap.h"

#include <string.h>

static const struct feature_text {
	uint32_t bit;
	const char *works;
	const char *missing;
} texts[] = {
	{ WPT_F_UFFD, "this user may create a userfaultfd",
	  "no tracking for this user: /proc/sys/vm/unprivileged_userfaultfd or a sandbox forbids it" },
	{ WPT_F_UFFD_KERNEL, "also for faults of system calls", "no backend sync; root has it, or vm.unprivileged_userfaultfd=1" },
	{ WPT_F_WP_ASYNC, "the kernel resolves write protection by itself", "no backend async: needs Linux 6.7 and an architecture that has it" },
	{ WPT_F_WP_UNPOPULATED, "pages that were never touched can be protected", "no backend async: needs Linux 6.4" },
	{ WPT_F_PAGEMAP_SCAN, "written pages are found by one call", "no backend async: needs Linux 6.7; sync reads /proc/PID/pagemap instead" },
	{ WPT_F_WP_SHMEM, "memfd, tmpfs and shared anonymous memory", "such memory is skipped" },
	{ WPT_F_WP_HUGETLB, "hugetlb memory", "such memory is skipped; or no huge page was free to try it" },
	{ WPT_F_WP_FILE, "mappings of ordinary files, private and shared", "such mappings are compared by content (sync) or skipped (async)" },
	{ WPT_F_WP_THP, "transparent huge pages", "not in use here, or not protected as a whole: more page tables" },
	{ WPT_F_GUARD, "guard pages are told apart", "guard pages count as unreadable" },
	{ WPT_F_WP_WRITTEN, "every change leaves a marker, untouched memory needs none",
	  "stock kernel: what it does not report is found by looking again; see tracking" },
	{ WPT_F_ZAP_REPORTED, "a range zapped as a whole is reported", "zapped ranges are found by looking twice" },
	{ WPT_F_PTRACE, "own children can be attached to", "only memory of the own process, or as root" },
	{ WPT_F_SUSPEND_SECCOMP, "targets with a seccomp filter can be attached to", "such targets are refused; root can attach to them" },
	{ WPT_F_MAP_FILES, "files of mappings can be inspected", "shared files that can't be found otherwise are compared by content" },
	{ WPT_F_ASYNC, "all that the backend async needs", "the backend sync is used, if there is that" },
	{ WPT_F_SYNC, "all that the backend sync needs: also on Linux 5.13 to 6.6", "only the backend async" },
};

static const char *feature_text(uint32_t bit, bool works)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(texts); i++)
		if (texts[i].bit == bit)
			return works ? texts[i].works : texts[i].missing;
	return "";
}

static const char *backend_of(const struct wpt_probe *p)
{
	return p->features & WPT_F_ASYNC ? "async" : p->features & WPT_F_SYNC ? "sync" : NULL;
}

static const char *tracking_text(const struct wpt_probe *p)
{
	if (!backend_of(p))
		return "none: processes can't be tracked here";
	if (!(p->features & WPT_F_ASYNC))
		return "sync (each first write to a page waits for wpsnap; mappings of ordinary files are compared\n"
		       "             by content)";
	if (p->features & WPT_F_WP_WRITTEN)
		return "async + WP_WRITTEN (exact; untouched memory costs no page tables)";
	return "async (with compensation for what a stock kernel does not report; a hole in a memfd\n"
	       "             that is refilled by a read needs --verify-content)";
}

static const char *tracking_name(const struct wpt_probe *p)
{
	if (!backend_of(p))
		return NULL;
	return p->features & WPT_F_WP_WRITTEN ? "exact" : "compensated";
}

static void print_json(const struct wpt_probe *p)
{
	const char *name;
	int bit;

	json_begin(stdout, "probe");
	json_str(stdout, "version", wpt_version());
	json_str(stdout, "kernel", p->kernel);
	json_u64(stdout, "page_size", p->page_size);
	json_u64(stdout, "hugepage_size", p->hugepage_size);
	json_str(stdout, "backend", backend_of(p));
	json_str(stdout, "tracking", tracking_name(p));
	json_open(stdout, "features");
	for (bit = 0; bit < 32; bit++) {
		name = wpt_feature_name(1u << bit);
		if (name)
			json_bool(stdout, name, p->features & (1u << bit));
	}
	json_close(stdout);
	json_end(stdout);
}

static void print_text(const struct wpt_probe *p)
{
	char page[UNITS_TEXT], huge[UNITS_TEXT];
	const char *name;
	int bit;
	bool works;

	printf("kernel       %s\n", p->kernel);
	printf("pages        %s, hugetlb %s\n", format_size(page, p->page_size),
	       p->hugepage_size ? format_size(huge, p->hugepage_size) : "none");
	printf("backend      %s\n", backend_of(p) ? backend_of(p) : "none");
	printf("tracking     %s\n\n", tracking_text(p));
	for (bit = 0; bit < 32; bit++) {
		name = wpt_feature_name(1u << bit);
		if (!name)
			continue;
		works = p->features & (1u << bit);
		printf("  %-3s  %-16s  %s\n", works ? "yes" : "no", name, feature_text(1u << bit, works));
	}
}

int cmd_probe(const struct opts *o)
{
	struct wpt_probe p;
	int err;

	memset(&p, 0, sizeof(p));
	p.size = sizeof(p);
	err = wpt_probe(&p);
	if (err)
		return report(err, NULL, "probe failed");
	if (o->json)
		print_json(&p);
	else
		print_text(&p);
	return finish_stdout(backend_of(&p) ? EXIT_OK : EXIT_FAILED);
}
