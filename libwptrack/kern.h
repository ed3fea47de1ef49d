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

/* For faults that somebody resolves; the second where the kernel has it. */
#define WPT_KERN_SYNC_FEATURES (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

/* For memory that is filled as it is touched. */
#define WPT_KERN_MISSING_FEATURES (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_EVENT_REMOVE)

/* -EBUSY: another userfaultfd has part of it. -EINVAL, -EPERM: this kind of mapping can't be write-protected. */
int wpt_kern_register(int uffd, uint64_t start, uint64_t end);
int wpt_kern_unregister(int uffd, uint64_t start, uint64_t end);

/* For faults on what is missing. -EINVAL: this kind of mapping can't be filled so. */
int wpt_kern_register_missing(int uffd, uint64_t start, uint64_t end);

/*
 * UFFDIO_COPY to where nothing is, and the same of zeros (which huge pages of hugetlbfs have not: -EINVAL). Bytes that are there now, which may be
 * fewer than asked for, or -errno: -EEXIST (something is there), -EAGAIN (an event waits to be read), -ENOENT (nothing registered is there),
 * -ESRCH (the memory is gone), -ENOMEM, -ENOSPC. Whoever waits there is woken.
 */
int64_t wpt_kern_fill(int uffd, uint64_t addr, const void *data, uint64_t len);
int64_t wpt_kern_fill_zero(int uffd, uint64_t addr, uint64_t len);

/* Somebody is about to put an event into the queue, or waits until it is read. */
bool wpt_kern_is_changing(int uffd);

/*
 * Whether the page at `addr` is of registered memory. In anonymous memory nothing happens to it; in shared memory, and in private mappings of it,
 * where the page is not mapped and there is one, that is mapped, and then counts as written.
 */
bool wpt_kern_is_registered(int uffd, uint64_t addr);

/* UFFDIO_WRITEPROTECT: also leaves markers where nothing is mapped. For the first arm, or while the target is stopped. */
int wpt_kern_protect(int uffd, uint64_t start, uint64_t end);

/*
 * The opposite: all of it is written. With WP_WRITTEN this leaves markers where nothing is mapped, which a later protect turns into clean
 * ones: a place in a page table that a punched hole can be noted in.
 */
int wpt_kern_unprotect(int uffd, uint64_t start, uint64_t end);

/* Has threads that wait for [start, end) try again. */
int wpt_kern_wake(int uffd, uint64_t start, uint64_t end);

/* One PAGEMAP_SCAN; arg->size is set here. Number of regions, or -errno. EINTR is retried. */
int wpt_kern_scan(int pagemap, struct wpt_pm_scan_arg *arg);

/* What kernels without PAGEMAP_SCAN tell: an entry a page, from the one at `addr`. Number of entries read, 0 behind the end of memory, or -errno. */
#define WPT_ENTRY_PRESENT (UINT64_C(1) << 63)
#define WPT_ENTRY_SWAPPED (UINT64_C(1) << 62)
#define WPT_ENTRY_FILE (UINT64_C(1) << 61)
#define WPT_ENTRY_UFFD_WP (UINT64_C(1) << 57)
#define WPT_ENTRY_EXCLUSIVE (UINT64_C(1) << 56) /* nobody else has it mapped */
ssize_t wpt_kern_entries(int pagemap, uint64_t addr, uint64_t *entries, size_t nr);

/*
 * The part of wpt_probe() that a tracker needs: what of userfaultfd and PAGEMAP_SCAN works; hugetlb only if its page size is given. *differs:
 * what a kernel that offers WP_WRITTEN does otherwise than described, so that it is not used; else NULL.
 */
int wpt_probe_kernel(uint32_t *features, uint64_t hugepage_size, const char **differs);

/* NULL if WP_WRITTEN does on scratch memory what it promises, else what it does not. The second: on huge pages, true where none is free. */
const char *wpt_probe_written(void);
const char *wpt_probe_written_hugetlb(uint64_t hugepage_size);

#endif
