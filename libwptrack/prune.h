/* SPDX-License-Identifier: MIT */
/* A chain in a folder is cut: see wpt_chain_prune() in wptrack.h. */
#ifndef WPT_PRUNE_H
#define WPT_PRUNE_H

#include "base.h"

struct wpt_prune_params {
	const char *chain;
	int dir_fd;      /* >= 0: the folder, whose lock the caller has; -1: it is locked here */
	bool sync;
	int level;       /* where the options say none */
};

int wpt_prune(const struct wpt_prune_params *p, const struct wpt_prune_options *o, struct wpt_prune_stats *stats);

#endif
