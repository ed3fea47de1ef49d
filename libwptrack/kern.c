/* SPDX-License-Identifier: MIT */
#include "kern.h"

#include <sys/ioctl.h>
#include <unistd.h>

int wpt_kern_register(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_register reg = {
		.range = { .start = start, .len = end - start },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &reg) == 0 ? 0 : -errno;
}

int wpt_kern_unregister(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_range range = { .start = start, .len = end - start };

	return ioctl(uffd, UFFDIO_UNREGISTER, &range) == 0 ? 0 : -errno;
}

bool wpt_kern_is_registered(int uffd, uint64_t addr)
{
	struct uffdio_continue page = { .range = { .start = addr, .len = (uint64_t)sysconf(_SC_PAGESIZE) } };

	/* Whatever else is wrong with it, the kernel looks for that first. */
	return ioctl(uffd, UFFDIO_CONTINUE, &page) == 0 || errno != ENOENT;
}

static int writeprotect(int uffd, uint64_t start, uint64_t end, uint64_t mode)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = start, .len = end - start },
		.mode = mode,
	};

	while (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) != 0)
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
	return 0;
}

int wpt_kern_protect(int uffd, uint64_t start, uint64_t end)
{
	return writeprotect(uffd, start, end, UFFDIO_WRITEPROTECT_MODE_WP);
}

int wpt_kern_unprotect(int uffd, uint64_t start, uint64_t end)
{
	return writeprotect(uffd, start, end, 0);
}

int wpt_kern_wake(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_range range = { .start = start, .len = end - start };

	return ioctl(uffd, UFFDIO_WAKE, &range) == 0 ? 0 : -errno;
}

ssize_t wpt_kern_entries(int pagemap, uint64_t addr, uint64_t *entries, size_t nr)
{
	ssize_t got;

	do
		got = pread(pagemap, entries, nr * sizeof(*entries), (off_t)(addr / (uint64_t)sysconf(_SC_PAGESIZE) * sizeof(*entries)));
	while (got < 0 && errno == EINTR);
	return got < 0 ? -errno : got / (ssize_t)sizeof(*entries);
}

int wpt_kern_scan(int pagemap, struct wpt_pm_scan_arg *arg)
{
	int n;

	arg->size = sizeof(*arg);
	do
		n = ioctl(pagemap, WPT_PAGEMAP_SCAN, arg);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}
