/* SPDX-License-Identifier: MIT */
/*
 * The kernel's side of tracking: userfaultfd write protection and PAGEMAP_SCAN as calls that return -errno, and the probe. Descriptors come
 * from target.h. No malloc, no state.
 */
#ifndef WPT_KERN_H
#define WPT_KERN_H

#include "base.h"
#include "uapi.h"

#define WPT_KERN_UFFD_FEATURES (UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
				UFFD_FEATURE_PAGEFAULT_FLAG_WP)

/* -EBUSY: another userfaultfd has part of it. -EINVAL, -EPERM: this kind of mapping can't be write-protected. */
int wpt_kern_register(int uffd, uint64_t start, uint64_t end);
int wpt_kern_unregister(int uffd, uint64_t start, uint64_t end);

/* UFFDIO_WRITEPROTECT: also leaves markers where nothing is mapped. For the first arm, or while the target is stopped. */
int wpt_kern_protect(int uffd, uint64_t start, uint64_t end);

/* One PAGEMAP_SCAN; arg->size is set here. Number of regions, or -errno. EINTR is retried. */
int wpt_kern_scan(int pagemap, struct wpt_pm_scan_arg *arg);

/* The part of wpt_probe() that a tracker needs: what of userfaultfd and PAGEMAP_SCAN works; hugetlb only if its page size is given. */
int wpt_probe_kernel(uint32_t *features, uint64_t hugepage_size);

#endif
