/* SPDX-License-Identifier: MIT */
/*
 * Huge pages that tracking splits are given back (WPT_WRITER_COLLAPSE): private anonymous memory that was mapped by huge pages, block by block.
 *
 * A write of one page to a huge page that is protected splits it, and the kernel collapses nothing that is protected. So after a link a block that
 * is not a huge page any more is unprotected as a whole and collapsed. That can't lose a write: from then on all its pages count as written,
 * until the next look takes them, and protects them again in the instant in which it does; whether the collapse succeeds, fails or finds other memory
 * there makes no difference to that. What it costs is that the next link looks at all of the block.
 *
 * All of it with the tracker's lock, while the target runs. No malloc; without memory less is given back.
 */
#ifndef WPT_HUGE_H
#define WPT_HUGE_H

#include "tracker.h"

/*
 * From now on it is learned where huge pages are. What is missing for it (a right, a feature of the kernel) is said by the log, and nothing will
 * be given back. -ENOMEM.
 */
int wpt_huge_open(struct wpt_tracker *t);
void wpt_huge_close(struct wpt_tracker *t);
uint64_t wpt_huge_memory(const struct wpt_tracker *t);

/* Before [start, end), or anything that is tracked, is protected: which of it are huge pages. */
void wpt_huge_learn(struct wpt_tracker *t, uint64_t start, uint64_t end);
void wpt_huge_learn_all(struct wpt_tracker *t);

/* After a link's pages were all copied: gives back at most `bytes` of huge pages. The number of pages (WPT_PAGE) in them. */
uint64_t wpt_tracker_collapse(struct wpt_tracker *t, uint64_t bytes);

#endif
