/* SPDX-License-Identifier: MIT */
#include "target_impl.h"

#include <sys/mman.h>
#include <sys/uio.h>

#include "sys.h"

void wpt_target_pageout(struct wpt_target *t, uint64_t start, uint64_t end)
{
	struct iovec memory = { (void *)(uintptr_t)start, end - start };

	if (t->self)
		madvise(memory.iov_base, memory.iov_len, MADV_PAGEOUT);
	else
		wpt_sys(SYS_process_madvise, t->pidfd, &memory, 1, MADV_PAGEOUT, 0);
}
