/* SPDX-License-Identifier: MIT */
#include "kern.h"

#include <sys/ioctl.h>
#include <unistd.h>

static int register_for(int uffd, uint64_t start, uint64_t end, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { .start = start, .len = end - start },
		.mode = mode,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &reg) == 0 ? 0 : -errno;
}

int wpt_kern_register(int uffd, uint64_t start, uint64_t end)
{
	return register_for(uffd, start, end, UFFDIO_REGISTER_MODE_WP);
}

int wpt_kern_register_missing(int uffd, uint64_t start, uint64_t end)
{
	return register_for(uffd, start, end, UFFDIO_REGISTER_MODE_MISSING);
}

int64_t wpt_kern_fill(int uffd, uint64_t addr, const void *data, uint64_t len)
{
	struct uffdio_copy copy = { .dst = addr, .src = (uint64_t)(uintptr_t)data, .len = len };

	if (ioctl(uffd, UFFDIO_COPY, &copy) == 0)
		return (int64_t)len;
	return copy.copy > 0 ? copy.copy : -errno;
}

bool wpt_kern_is_changing(int uffd)
{
	struct uffdio_copy nothing = { .len = 0 };

	/* That is what the kernel looks for first. */
	return ioctl(uffd, UFFDIO_COPY, &nothing) != 0 && errno == EAGAIN;
}

int64_t wpt_kern_fill_zero(int uffd, uint64_t addr, uint64_t len)
{
	struct uffdio_zeropage zero = { .range = { .start = addr, .len = len } };

	if (ioctl(uffd, UFFDIO_ZEROPAGE, &zero) == 0)
		return (int64_t)len;
	return zero.zeropage > 0 ? zero.zeropage : -errno;
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
