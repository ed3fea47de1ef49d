/* SPDX-License-Identifier: MIT */
/*
 * What works here, found by doing it on scratch memory: a page is written, protected, looked at, written again. Nothing is derived from a
 * version. The process that asks is not changed: descriptors are closed, mappings removed, and the child that is attached to is ended.
 */
#include "kern.h"
#include "scan.h"
#include "sys.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define HUGE_BYTES ((size_t)2 << 20)

static const struct {
	uint32_t bit;
	const char *name;
} feature_names[] = {
	{ WPT_F_UFFD, "uffd" },
	{ WPT_F_UFFD_KERNEL, "uffd_kernel" },
	{ WPT_F_WP_ASYNC, "wp_async" },
	{ WPT_F_WP_UNPOPULATED, "wp_unpopulated" },
	{ WPT_F_PAGEMAP_SCAN, "pagemap_scan" },
	{ WPT_F_WP_SHMEM, "wp_shmem" },
	{ WPT_F_WP_HUGETLB, "wp_hugetlb" },
	{ WPT_F_WP_FILE, "wp_file" },
	{ WPT_F_WP_THP, "wp_thp" },
	{ WPT_F_GUARD, "guard" },
	{ WPT_F_WP_WRITTEN, "wp_written" },
	{ WPT_F_ZAP_REPORTED, "zap_reported" },
	{ WPT_F_PTRACE, "ptrace" },
	{ WPT_F_SUSPEND_SECCOMP, "suspend_seccomp" },
	{ WPT_F_MAP_FILES, "map_files" },
	{ WPT_F_ASYNC, "async" },
	{ WPT_F_SYNC, "sync" },
};

const char *wpt_feature_name(uint32_t bit)
{
	size_t i;

	for (i = 0; i < WPT_ARRAY_SIZE(feature_names); i++)
		if (feature_names[i].bit == bit)
			return feature_names[i].name;
	return NULL;
}

struct prober {
	int uffd, pagemap;
	size_t page;
	uint64_t uffd_features;
	bool sync;           /* `uffd` is synchronous, and PAGEMAP_SCAN is not to be counted on */
};

/* The same as below, as backend sync does it on old kernels. */
static int written_entries(struct prober *pr, const void *p, size_t len, bool protect, uint64_t *bytes)
{
	uint64_t entry, at, start = (uintptr_t)p;
	ssize_t got;
	int err = 0;

	*bytes = 0;
	for (at = start; at < start + len && !err; at += pr->page) {
		got = wpt_kern_entries(pr->pagemap, at, &entry, 1);
		if (got != 1)
			return got < 0 ? (int)got : -EIO;
		if (!(entry & WPT_ENTRY_UFFD_WP))
			*bytes += pr->page;
	}
	return *bytes && protect ? wpt_kern_protect(pr->uffd, start, start + len) : 0;
}

/* Whether all (or no) pages of [p, p + len) are reported as written; -errno if the scan fails. */
static int written_bytes(struct prober *pr, const void *p, size_t len, bool protect, uint64_t *bytes)
{
	struct wpt_page_region regions[64];
	struct wpt_pm_scan_arg arg = {
		.flags = PM_SCAN_CHECK_WPASYNC | (protect ? PM_SCAN_WP_MATCHING : 0),
		.start = (uintptr_t)p,
		.end = (uintptr_t)p + len,
		.vec = (uintptr_t)regions,
		.vec_len = WPT_ARRAY_SIZE(regions),
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int n, i;

	if (pr->sync)
		return written_entries(pr, p, len, protect, bytes);
	n = wpt_kern_scan(pr->pagemap, &arg);
	*bytes = 0;
	for (i = 0; i < n; i++)
		*bytes += regions[i].end - regions[i].start;
	return n < 0 ? n : 0;
}

/* The whole life of a mapping of two units: written, protected, clean, one written again, found and protected in one call, clean. */
static bool cycle_works(struct prober *pr, void *map, size_t unit)
{
	volatile uint8_t *p = map;
	uint64_t start = (uintptr_t)map, bytes, grain;

	p[0] = 1;
	p[unit] = 1;
	if (wpt_kern_register(pr->uffd, start, start + 2 * unit) != 0 || wpt_kern_protect(pr->uffd, start, start + 2 * unit) != 0)
		return false;
	if (written_bytes(pr, map, 2 * unit, false, &bytes) != 0 || bytes != 0)
		return false;
	/* What a fault thread would do, since there is none. */
	if (pr->sync && wpt_kern_unprotect(pr->uffd, start + unit, start + 2 * unit) != 0)
		return false;
	p[unit] = 2;
	if (written_bytes(pr, map, 2 * unit, true, &bytes) != 0)
		return false;
	grain = bytes;
	if (written_bytes(pr, map, 2 * unit, false, &bytes) != 0 || bytes != 0)
		return false;
	return grain >= pr->page && grain <= unit && p[0] == 1 && p[unit] == 2;
}

static bool try_map(struct prober *pr, size_t unit, int flags, int fd)
{
	void *map = mmap(NULL, 2 * unit, PROT_READ | PROT_WRITE, flags, fd, 0);
	bool works;

	if (map == MAP_FAILED)
		return false;
	works = cycle_works(pr, map, unit);
	munmap(map, 2 * unit);
	return works;
}

static bool try_memfd(struct prober *pr, size_t unit, unsigned int flags)
{
	int fd = memfd_create("wptrack-probe", MFD_CLOEXEC | flags);
	bool works;

	if (fd < 0)
		return false;
	works = ftruncate(fd, (off_t)(2 * unit)) == 0 && try_map(pr, unit, MAP_SHARED, fd);
	close(fd);
	return works;
}

static bool try_file(struct prober *pr)
{
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	bool works;

	if (fd < 0)
		return false;
	works = try_map(pr, pr->page, MAP_PRIVATE, fd);
	close(fd);
	return works;
}

static bool try_thp(struct prober *pr)
{
	uint8_t *map = mmap(NULL, 4 * HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *aligned;
	bool works;

	if (map == MAP_FAILED)
		return false;
	aligned = (uint8_t *)WPT_ALIGN_UP((uintptr_t)map, HUGE_BYTES);
	works = madvise(aligned, 2 * HUGE_BYTES, MADV_HUGEPAGE) == 0 && cycle_works(pr, aligned, HUGE_BYTES);
	munmap(map, 4 * HUGE_BYTES);
	return works;
}

/* A range whose page table went away with its pages: reported as written, and protected again when asked for. */
static bool try_zap(struct prober *pr)
{
	size_t len = 2 * HUGE_BYTES;
	uint8_t *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t start = (uintptr_t)map, bytes = 0;
	bool works = false;

	if (map == MAP_FAILED)
		return false;
	map[0] = 1;
	if (wpt_kern_register(pr->uffd, start, start + len) == 0 && wpt_kern_protect(pr->uffd, start, start + pr->page) == 0 &&
	    madvise(map, len, MADV_DONTNEED) == 0 && written_bytes(pr, map, len, false, &bytes) == 0)
		works = bytes == len;
	munmap(map, len);
	return works;
}

static bool try_guard(struct prober *pr)
{
	uint8_t *map = mmap(NULL, pr->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct wpt_page_region region;
	struct wpt_pm_scan_arg arg = {
		.start = (uintptr_t)map,
		.end = (uintptr_t)map + pr->page,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_GUARD,
		.return_mask = PAGE_IS_GUARD,
	};
	bool works;

	if (map == MAP_FAILED)
		return false;
	works = madvise(map, pr->page, MADV_GUARD_INSTALL) == 0 && wpt_kern_scan(pr->pagemap, &arg) == 1;
	munmap(map, pr->page);
	return works;
}

/* Whether a process can attach to its own child, asked by a child of ours. */
struct attempt {
	char stack[2][32768];
	pid_t asker;
	uint32_t features;
};

static int wait_for_end(void *arg)
{
	struct attempt *a = arg;

	wpt_sys(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	while (wpt_sys(SYS_getppid) == a->asker)
		wpt_sys(SYS_ppoll, NULL, 0, NULL, NULL, 0);
	return 0;
}

static int ask(void *arg)
{
	struct attempt *a = arg;
	pid_t pid;

	a->asker = (pid_t)wpt_sys(SYS_getpid);
	pid = clone(wait_for_end, a->stack[1] + sizeof(a->stack[1]), CLONE_VM, a);
	if (pid < 0)
		return 1;
	if (wpt_sys(SYS_ptrace, PTRACE_SEIZE, pid, 0, WPT_PTRACE_O_SUSPEND_SECCOMP) == 0)
		a->features = WPT_F_PTRACE | WPT_F_SUSPEND_SECCOMP;
	else if (wpt_sys(SYS_ptrace, PTRACE_SEIZE, pid, 0, 0) == 0)
		a->features = WPT_F_PTRACE;
	wpt_sys(SYS_kill, pid, SIGKILL);
	while (wpt_sys(SYS_wait4, pid, NULL, __WALL, NULL) == -EINTR)
		;
	return 0;
}

/*
 * A child of ours that were attached to would be found by any thread that waits for any child, whatever signal it ends with: a tracer's wait
 * finds all that it traces. So a child attaches to a child of its own. Both share our memory, since a copy of a large process's page tables
 * costs what this library exists to avoid, both raise no signal at their ends, and with all signals blocked they run no handler of the
 * application.
 */
static uint32_t try_ptrace(void)
{
	struct attempt *a = wpt_vm_alloc(sizeof(*a));
	uint64_t all = UINT64_MAX, old;
	uint32_t features;
	pid_t pid;

	if (!a)
		return 0;
	wpt_sys(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, sizeof(all));
	pid = clone(ask, a->stack[0] + sizeof(a->stack[0]), CLONE_VM, a);
	wpt_sys(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, sizeof(old));
	while (pid > 0 && wpt_sys(SYS_wait4, pid, NULL, __WCLONE, NULL) == -EINTR)
		;
	features = a->features;
	wpt_vm_free(a, sizeof(*a));
	return features;
}

static bool try_map_files(void)
{
	char line[512], path[600];
	unsigned long start, end;
	FILE *maps = fopen("/proc/self/maps", "re");
	int fd = -1;

	while (maps && fd < 0 && fgets(line, sizeof(line), maps)) {
		if (!strchr(line, '/') || sscanf(line, "%lx-%lx", &start, &end) != 2)
			continue;
		snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", start, end);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		break;
	}
	if (maps)
		fclose(maps);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static uint64_t hugepage_bytes(void)
{
	FILE *f = fopen("/proc/meminfo", "re");
	unsigned long kib, found = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Hugepagesize: %lu kB", &kib) == 1)
			found = kib;
	if (f)
		fclose(f);
	return (uint64_t)found * 1024;
}

/* Whoever may open the device needs no other right for one that handles the faults of system calls. */
static int open_uffd(int flags)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags), device;

	if (fd >= 0 || errno != EPERM || flags)
		return fd;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return -1;
	fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	close(device);
	return fd;
}

static uint32_t probe_uffd(struct prober *pr)
{
	struct uffdio_api api = { .api = UFFD_API };
	uint32_t features;
	int fd;

	fd = open_uffd(0);
	features = fd >= 0 ? WPT_F_UFFD | WPT_F_UFFD_KERNEL : 0;
	if (fd < 0)
		fd = open_uffd(UFFD_USER_MODE_ONLY);
	if (fd < 0)
		return 0;
	features |= WPT_F_UFFD;
	/* The first handshake tells what there is; a descriptor takes only one, so the next asks for it. */
	if (ioctl(fd, UFFDIO_API, &api) == 0)
		pr->uffd_features = api.features;
	close(fd);
	if (pr->uffd_features & UFFD_FEATURE_WP_ASYNC)
		features |= WPT_F_WP_ASYNC;
	if (pr->uffd_features & UFFD_FEATURE_WP_UNPOPULATED)
		features |= WPT_F_WP_UNPOPULATED;
	pr->uffd = open_uffd(features & WPT_F_UFFD_KERNEL ? 0 : UFFD_USER_MODE_ONLY);
	api = (struct uffdio_api){ .api = UFFD_API, .features = pr->uffd_features & WPT_KERN_UFFD_FEATURES };
	if (pr->uffd >= 0 && ioctl(pr->uffd, UFFDIO_API, &api) != 0) {
		close(pr->uffd);
		pr->uffd = -1;
	}
	return features;
}

static uint32_t probe_kinds(struct prober *pr, uint64_t huge)
{
	uint32_t features = 0;

	if (try_memfd(pr, pr->page, 0))
		features |= WPT_F_WP_SHMEM;
	if (huge && try_memfd(pr, huge, MFD_HUGETLB))
		features |= WPT_F_WP_HUGETLB;
	if (try_thp(pr))
		features |= WPT_F_WP_THP;
	return features;
}

static uint32_t probe_tracking(struct prober *pr, uint64_t huge)
{
	uint32_t features = 0;
	uint64_t bytes;
	void *page;

	page = mmap(NULL, pr->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return 0;
	/* An unregistered mapping answers EPERM if the call is there, ENOTTY if not. */
	if (written_bytes(pr, page, pr->page, false, &bytes) == -EPERM)
		features |= WPT_F_PAGEMAP_SCAN;
	munmap(page, pr->page);
	if (!(features & WPT_F_PAGEMAP_SCAN) || pr->uffd < 0)
		return features;
	if (try_map(pr, pr->page, MAP_PRIVATE | MAP_ANONYMOUS, -1))
		features |= WPT_F_ASYNC;
	features |= probe_kinds(pr, huge);
	if (try_file(pr))
		features |= WPT_F_WP_FILE;
	if (try_zap(pr))
		features |= WPT_F_ZAP_REPORTED;
	if (try_guard(pr))
		features |= WPT_F_GUARD;
	return features;
}

/* Backend sync; where it is the only one, the kinds of memory are what it can protect. */
static uint32_t probe_sync(const struct prober *from, uint32_t features, uint64_t huge)
{
	struct prober pr = { .uffd = -1, .pagemap = from->pagemap, .page = from->page, .sync = true };
	struct uffdio_api api = { .api = UFFD_API, .features = from->uffd_features & WPT_KERN_SYNC_FEATURES };
	uint32_t found = 0;

	if (!(features & WPT_F_UFFD) || !(from->uffd_features & UFFD_FEATURE_PAGEFAULT_FLAG_WP))
		return 0;
	pr.uffd = open_uffd(features & WPT_F_UFFD_KERNEL ? 0 : UFFD_USER_MODE_ONLY);
	if (pr.uffd < 0)
		return 0;
	if (ioctl(pr.uffd, UFFDIO_API, &api) == 0 && try_map(&pr, pr.page, MAP_PRIVATE | MAP_ANONYMOUS, -1)) {
		found = features & WPT_F_UFFD_KERNEL ? WPT_F_SYNC : 0;
		if (!(features & WPT_F_ASYNC))
			found |= probe_kinds(&pr, huge);
	}
	close(pr.uffd);
	return found;
}

int wpt_probe_kernel(uint32_t *features, uint64_t hugepage_size, const char **differs)
{
	struct prober pr = { .uffd = -1, .page = (size_t)sysconf(_SC_PAGESIZE) };

	pr.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pr.pagemap < 0)
		return -errno;
	*features = probe_uffd(&pr);
	*features |= probe_tracking(&pr, hugepage_size);
	*features |= probe_sync(&pr, *features, hugepage_size);
	*differs = NULL;
	if (*features & WPT_F_ASYNC && pr.uffd_features & UFFD_FEATURE_WP_WRITTEN) {
		*differs = wpt_probe_written();
		if (!*differs && *features & WPT_F_WP_HUGETLB)
			*differs = wpt_probe_written_hugetlb(hugepage_size);
		if (!*differs)
			*features |= WPT_F_WP_WRITTEN;
	}
	if (pr.uffd >= 0)
		close(pr.uffd);
	close(pr.pagemap);
	return 0;
}

int wpt_probe(struct wpt_probe *p)
{
	struct wpt_probe found = { .size = sizeof(found) };
	const char *differs;
	struct utsname name;
	int err;

	found.page_size = (uint32_t)sysconf(_SC_PAGESIZE);
	found.hugepage_size = hugepage_bytes();
	if (uname(&name) == 0)
		snprintf(found.kernel, sizeof(found.kernel), "%.20s %.40s", name.sysname, name.release);
	err = wpt_probe_kernel(&found.features, found.hugepage_size, &differs);
	if (err)
		return err;
	found.features |= try_ptrace();
	if (try_map_files())
		found.features |= WPT_F_MAP_FILES;
	return wpt_info_copy(p, &found, sizeof(found), sizeof(found));
}
