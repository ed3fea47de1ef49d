/* SPDX-License-Identifier: MIT */
#include "target_impl.h"

#include <sys/mman.h>
#include <sys/uio.h>

#include "sys.h"

int wpt_target_collapse(struct wpt_target *t, uint64_t start, uint64_t end)
{
	struct iovec memory = { (void *)(uintptr_t)start, end - start };
	long got;

	if (t->self)
		return (int)wpt_sys(SYS_madvise, memory.iov_base, memory.iov_len, MADV_COLLAPSE);
	got = wpt_sys(SYS_process_madvise, t->pidfd, &memory, 1, MADV_COLLAPSE, 0);
	return got < 0 ? (int)got : got == (long)memory.iov_len ? 0 : -EAGAIN;
}
