/* SPDX-License-Identifier: MIT */
/*
 * Whether UFFD_FEATURE_WP_WRITTEN does what a tracker that relies on it needs, found by doing it on scratch memory. What counts is that no
 * change is called clean and that untouched memory costs nothing. A kernel that offers the bit and fails here is used as if it did not offer it.
 */
#include "kern.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TRIAL_PAGES 16u
#define LARGE_BYTES ((size_t)4 << 20) /* more than one page table */

struct trial {
	int uffd, pagemap;
	size_t page;
	uint8_t *p;
	size_t len;
	int fd;
};

static bool trial_start(struct trial *t)
{
	struct uffdio_api api = { .api = UFFD_API, .features = WPT_KERN_UFFD_FEATURES | UFFD_FEATURE_WP_WRITTEN };

	*t = (struct trial){ .page = (size_t)sysconf(_SC_PAGESIZE), .fd = -1 };
	t->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	t->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	return t->pagemap >= 0 && t->uffd >= 0 && ioctl(t->uffd, UFFDIO_API, &api) == 0;
}

static void trial_unmap(struct trial *t)
{
	if (t->p)
		munmap(t->p, t->len);
	if (t->fd >= 0)
		close(t->fd);
	t->p = NULL;
	t->fd = -1;
}

static void trial_end(struct trial *t)
{
	trial_unmap(t);
	if (t->uffd >= 0)
		close(t->uffd);
	if (t->pagemap >= 0)
		close(t->pagemap);
}

static bool trial_map(struct trial *t, size_t len, int flags)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, t->fd, 0);

	if (p == MAP_FAILED)
		return false;
	t->p = p;
	t->len = len;
	return true;
}

static bool trial_register(struct trial *t)
{
	return wpt_kern_register(t->uffd, (uintptr_t)t->p, (uintptr_t)t->p + t->len) == 0;
}

/* Bytes that match; -errno. */
static int64_t matching(struct trial *t, size_t from, size_t len, uint64_t mask, uint64_t anyof, bool protect)
{
	struct wpt_page_region regions[TRIAL_PAGES];
	struct wpt_pm_scan_arg arg = {
		.flags = PM_SCAN_CHECK_WPASYNC | (protect ? PM_SCAN_WP_MATCHING : 0),
		.start = (uintptr_t)t->p + from,
		.end = (uintptr_t)t->p + from + len,
		.vec = (uintptr_t)regions,
		.vec_len = WPT_ARRAY_SIZE(regions),
		.category_mask = mask,
		.category_anyof_mask = anyof,
		.return_mask = mask | anyof,
	};
	int n = wpt_kern_scan(t->pagemap, &arg), i;
	int64_t bytes = 0;

	for (i = 0; i < n; i++)
		bytes += (int64_t)(regions[i].end - regions[i].start);
	return n < 0 ? n : bytes;
}

/* Whether of the piece [from, from + len) just that much is reported as written. */
static bool written(struct trial *t, size_t from, size_t len, size_t expected)
{
	return matching(t, from, len, PAGE_IS_WRITTEN, 0, false) == (int64_t)expected;
}

/* Protects all of it, and nothing of it is written any more. */
static bool cleaned(struct trial *t)
{
	return matching(t, 0, t->len, PAGE_IS_WRITTEN, 0, true) >= 0 && written(t, 0, t->len, 0);
}

static bool protect_all(struct trial *t)
{
	return wpt_kern_protect(t->uffd, (uintptr_t)t->p, (uintptr_t)t->p + t->len) == 0;
}

static bool unprotect(struct trial *t, size_t from, size_t len)
{
	return wpt_kern_unprotect(t->uffd, (uintptr_t)t->p + from, (uintptr_t)t->p + from + len) == 0;
}

static void store(struct trial *t, size_t at)
{
	((volatile uint8_t *)t->p)[at] = 1;
}

static uint8_t load(struct trial *t, size_t at)
{
	return ((volatile uint8_t *)t->p)[at];
}

static bool dontneed(struct trial *t, size_t from, size_t len)
{
	return madvise(t->p + from, len, MADV_DONTNEED) == 0;
}

static bool punch(struct trial *t, size_t from, size_t len)
{
	return fallocate(t->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)len) == 0;
}

static bool file_with_data(struct trial *t, size_t len)
{
	uint8_t byte = 1;
	size_t at;

	t->fd = memfd_create("wptrack-probe", MFD_CLOEXEC);
	if (t->fd < 0 || ftruncate(t->fd, (off_t)(TRIAL_PAGES * t->page)) != 0)
		return false;
	for (at = 0; at < len; at += t->page)
		if (pwrite(t->fd, &byte, 1, (off_t)at) != 1)
			return false;
	return true;
}

static const char *try_anon(struct trial *t)
{
	size_t page = t->page;

	if (!trial_map(t, LARGE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE))
		return "no memory to try it";
	madvise(t->p, t->len, MADV_NOHUGEPAGE);
	if (!trial_register(t) || !protect_all(t))
		return "private memory can't be registered";
	if (!written(t, 0, t->len, 0) || matching(t, 0, t->len, 0, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, false) != 0)
		return "untouched memory is not clean, or protecting it allocates page tables";
	load(t, 0);
	store(t, page);
	store(t, 2 * page);
	if (!written(t, 0, t->len, 2 * page) || !cleaned(t))
		return "a read and two writes are not reported as two pages";
	store(t, 2 * page);
	if (!dontneed(t, page, 2 * page) || !written(t, 0, t->len, 2 * page) || !cleaned(t))
		return "private memory that was given back is not reported";
	store(t, 4 * page);
	if (!dontneed(t, 0, t->len) || !written(t, 4 * page, page, page))
		return "a write is forgotten when its page table goes";
	return unprotect(t, 0, 8 * page) && written(t, 0, 8 * page, 8 * page) && cleaned(t) ? NULL : "an end of protection is not a write";
}

/* In its own place a mapping can be cut and grown again: what the kernel knew of the tail is gone, and so is the tail's content. */
static const char *try_resize(struct trial *t)
{
	size_t half = TRIAL_PAGES / 2 * t->page;
	int64_t tail;

	memset(t->p, 1, t->len);
	if (!trial_register(t) || !protect_all(t))
		return "memory can't be registered";
	store(t, t->len - 1);
	if (mremap(t->p, t->len, half, 0) != t->p)
		return "memory can't be cut";
	t->len = half;
	/* Another thread may have mapped something there, and a kernel may refuse: then there is nothing to see. */
	if (mremap(t->p, half, 2 * half, 0) != t->p)
		return NULL;
	t->len = 2 * half;
	tail = matching(t, half, half, PAGE_IS_WRITTEN, 0, false);
	return tail == -EPERM || tail == (int64_t)half ? NULL : "memory that a mapping grew by in place is called clean";
}

static const char *try_resize_anon(struct trial *t)
{
	return trial_map(t, TRIAL_PAGES * t->page, MAP_PRIVATE | MAP_ANONYMOUS) ? try_resize(t) : "no memory to try it";
}

static const char *try_resize_shared(struct trial *t)
{
	return file_with_data(t, 0) && trial_map(t, TRIAL_PAGES * t->page, MAP_SHARED) ? try_resize(t) : "no memory to try it";
}

static const char *try_shared(struct trial *t)
{
	size_t page = t->page;

	if (!file_with_data(t, 4 * page) || !trial_map(t, TRIAL_PAGES * page, MAP_SHARED))
		return "no shared memory to try it";
	if (!trial_register(t) || !protect_all(t) || !written(t, 0, t->len, 0) ||
	    matching(t, 0, t->len, 0, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, false) != 0)
		return "shared memory is not clean when protected, or protecting it leaves markers";
	if (!unprotect(t, 0, 4 * page) || !written(t, 0, t->len, 4 * page) || !cleaned(t))
		return "an end of protection leaves no markers in shared memory";
	if (!punch(t, 0, page) || !written(t, 0, t->len, page) || load(t, 0) != 0 || !written(t, 0, t->len, page) || !cleaned(t))
		return "a hole punched in shared memory is not reported";
	store(t, page);
	store(t, 8 * page);
	if (!dontneed(t, 0, t->len) || !written(t, page, page, page) || !written(t, 8 * page, page, page) || !cleaned(t))
		return "a write to shared memory is forgotten when its page is unmapped";
	store(t, page);
	if (!cleaned(t) || !dontneed(t, 0, t->len) || !written(t, 0, t->len, 0) || load(t, page) != 1 || !written(t, 0, t->len, 0))
		return "shared memory that was only unmapped is called written";
	if (!punch(t, 0, t->len) || !written(t, page, page, page) || !written(t, 8 * page, page, page))
		return "a hole punched in shared memory is not reported";
	return NULL;
}

static const char *try_private_file(struct trial *t)
{
	size_t page = t->page;

	if (!file_with_data(t, 4 * page) || !trial_map(t, TRIAL_PAGES * page, MAP_PRIVATE))
		return "no private mapping to try it";
	if (!trial_register(t) || !protect_all(t))
		return "a private mapping of a file can't be registered";
	load(t, 0);
	store(t, page);
	store(t, 2 * page);
	if (!written(t, 0, t->len, 2 * page) || !cleaned(t))
		return "writes to a private mapping of a file are not reported";
	store(t, 2 * page);
	if (!dontneed(t, 0, t->len) || !written(t, page, 2 * page, 2 * page) || !cleaned(t))
		return "a private page that fell back to its file is not reported";
	return NULL;
}

const char *wpt_probe_written(void)
{
	static const char *(*const tries[])(struct trial *t) = { try_anon, try_shared, try_private_file, try_resize_anon, try_resize_shared };
	const char *differs = NULL;
	struct trial t;
	size_t i;

	if (!trial_start(&t))
		differs = "the feature can't be asked for";
	for (i = 0; i < WPT_ARRAY_SIZE(tries) && !differs; i++) {
		differs = tries[i](&t);
		trial_unmap(&t);
	}
	trial_end(&t);
	return differs;
}

/* Two huge pages: what is populated first can be touched without a SIGBUS, and nothing is touched after it was given back. */
static const char *try_huge(struct trial *t, size_t unit, bool shared)
{
	const int size = __builtin_ctzll(unit) << MAP_HUGE_SHIFT;

	if (shared) {
		t->fd = memfd_create("wptrack-probe", MFD_CLOEXEC | MFD_HUGETLB | (unsigned int)size);
		if (t->fd < 0 || ftruncate(t->fd, (off_t)(2 * unit)) != 0)
			return NULL;
	}
	if (!trial_map(t, 2 * unit, shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | size))
		return NULL;
	if (madvise(t->p, t->len, MADV_POPULATE_WRITE) != 0)
		return NULL;
	if (!trial_register(t) || !cleaned(t))
		return "huge pages can't be registered and protected";
	store(t, 0);
	if (!written(t, 0, t->len, unit))
		return "a write to a huge page is not reported";
	if (!dontneed(t, 0, unit) || !written(t, 0, t->len, unit))
		return "a write to a huge page is forgotten when it is unmapped";
	if (!dontneed(t, unit, unit) || !written(t, unit, unit, shared ? 0 : unit))
		return "what happened to a huge page that was given back is not reported";
	if (shared && (!punch(t, unit, unit) || !written(t, 0, t->len, 2 * unit)))
		return "a hole punched in huge pages is not reported";
	return cleaned(t) ? NULL : "huge pages that are not there can't be protected";
}

const char *wpt_probe_written_hugetlb(uint64_t hugepage_size)
{
	const char *differs = NULL;
	struct trial t;
	int shared;

	/* Zeroing pages of a gigabyte takes longer than the answer is worth. */
	if (!hugepage_size || hugepage_size > (uint64_t)32 << 20)
		return NULL;
	if (!trial_start(&t))
		differs = "the feature can't be asked for";
	for (shared = 0; shared < 2 && !differs; shared++) {
		differs = try_huge(&t, (size_t)hugepage_size, shared);
		trial_unmap(&t);
	}
	trial_end(&t);
	return differs;
}
