/* SPDX-License-Identifier: MIT */
/*
 * One run: areas, threads that work on them, a chain of links taken meanwhile, each compared with the shadow.
 */
#ifndef TORTURE_RUN_H
#define TORTURE_RUN_H

#include "common.h"
#include "torture_check.h"


struct run {
	const char *name;
	bool attached;
	bool all;               /* attached: wpt_range_add_all() */
	uint32_t track_flags;   /* of the tracker */
	uint32_t kinds[MAX_AREAS];
	unsigned nr_kinds;
	unsigned steps_factor;  /* how many kinds' worth of steps, 0: 1 */
	const char *backend;    /* as WPT_TORTURE_BACKEND; NULL: what that says */
	uint32_t mode;          /* of the links that are compared */
};

/* What every run of this program is given. */
static struct {
	uint64_t seed, steps;
	unsigned links;
	const char *self;
	char dir[200];
} setup;

/* Memory of the target outside the areas: only hashes are kept. */
struct others {
	uint64_t *addr, *hash;
	unsigned nr, max;
	uint8_t page[TP];
};

struct session {
	const struct run *run;
	struct ctl *ctl;
	int ctl_fd;
	pid_t child;
	struct worker workers[MAX_WORKERS];
	struct wpt_tracker *tracker;
	struct wpt_writer *writer;
	struct shadow shadow;
	struct check check;
	struct others others;
	char chain[300];
	uint64_t sequences[64];
	unsigned links;
	uint64_t rng;
	uint64_t dirty, compared, stored, tracked, pause_ns, rounds;
	uint64_t cow_faults, cow_copied, cow_waits, cow_fallback;
	uint64_t collapsed;
};

static void say_library(void *arg, enum wpt_log_level level, const char *message)
{
	(void)arg;
	if (level <= WPT_LOG_ERROR)
		printf("# library: %s\n", message);
}

static uint64_t meminfo(const char *key)
{
	char line[200];
	uint64_t x = 0;
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, key, strlen(key)) == 0)
			x = strtoull(line + strlen(key), NULL, 10);
	if (f)
		fclose(f);
	return x;
}

static bool have_hugepages(unsigned nr)
{
	return meminfo("HugePages_Free:") - meminfo("HugePages_Rsvd:") >= nr && meminfo("Hugepagesize:") == 2048;
}

/* ---- target ---------------------------------------------------------------------------------------------------- */

static struct ctl *ctl_map(int fd)
{
	void *p = mmap(NULL, sizeof(struct ctl), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* The program of an attached target: it never hears of the library. */
static int target_main(int ctl_fd)
{
	struct ctl *ctl = ctl_map(ctl_fd);
	static struct worker workers[MAX_WORKERS];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!ctl)
		return 3;
	catch_faults();
	for (unsigned i = 0; i < ctl->nr_areas; i++) {
		int r = area_setup(ctl, i);

		if (r) {
			fprintf(stderr, "# torture target: area %s: %s\n", area_desc(&ctl->areas[i])->name, strerror(-r));
			return 4;
		}
	}
	if (workers_start(ctl, workers))
		return 5;
	atomic_store(&ctl->ready, 1);
	while (!atomic_load(&ctl->stop))
		usleep(1000);
	workers_join(ctl, workers);
	return 0;
}

static int child_status(struct session *s)
{
	int status;

	if (waitpid(s->child, &status, WNOHANG) == 0)
		return 0;
	printf("# torture: %s: the target died: %s %d; WPT_SEED=%" PRIu64 "\n", s->run->name,
	       WIFSIGNALED(status) ? "signal" : "exit code", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), setup.seed);
	s->child = 0;
	return -1;
}

static int target_start(struct session *s)
{
	char number[16];

	if (!s->run->attached) {
		for (unsigned i = 0; i < s->ctl->nr_areas; i++) {
			int r = area_setup(s->ctl, i);

			if (r) {
				printf("# torture: area %s: %s\n", area_desc(&s->ctl->areas[i])->name, strerror(-r));
				return r;
			}
		}
		return workers_start(s->ctl, s->workers);
	}
	snprintf(number, sizeof(number), "%d", s->ctl_fd);
	s->child = fork();
	if (s->child == 0) {
		execl(setup.self, setup.self, "--target", number, (char *)NULL);
		_exit(127);
	}
	while (!atomic_load(&s->ctl->ready)) {
		if (child_status(s))
			return -ESRCH;
		usleep(500);
	}
	return 0;
}

static int target_end(struct session *s)
{
	int status = 0;

	if (!s->run->attached) {
		workers_join(s->ctl, s->workers);
		for (unsigned i = 0; i < s->ctl->nr_areas; i++)
			area_teardown(&s->ctl->areas[i]);
		return 0;
	}
	atomic_store(&s->ctl->stop, 1);
	if (s->child <= 0)
		return -1;
	waitpid(s->child, &status, 0);
	if (status)
		printf("# torture: %s: the target ended with status 0x%x\n", s->run->name, status);
	return status ? -1 : 0;
}

/* ---- a link ---------------------------------------------------------------------------------------------------- */

static int quiesce(void *arg)
{
	struct session *s = arg;

	atomic_store(&s->ctl->park, 1);
	while (atomic_load(&s->ctl->parked) < s->ctl->nr_workers)
		usleep(10);
	return 0;
}

static void resume(void *arg)
{
	struct session *s = arg;

	atomic_store(&s->ctl->park, 0);
	while (atomic_load(&s->ctl->parked) > 0)
		usleep(10);
}

static void others_take(struct session *s)
{
	struct others *o = &s->others;
	static const uint8_t zero[TP];

	o->nr = 0;
	for (unsigned k = 0; k < s->shadow.maps.nr; k++) {
		const struct vma *v = &s->shadow.maps.v[k];

		if (!v->write || v->shared || (v->start >= SLOT_BASE && v->start < SLOT_BASE + MAX_AREAS * SLOT_STRIDE))
			continue;
		for (uint64_t a = v->start; a < v->end && o->nr < o->max; a += TP) {
			uint64_t e = 0;
			bool here = pread(s->shadow.pagemap, &e, 8, (off_t)(a / TP * 8)) == 8 && (e & (PM_PRESENT | PM_SWAPPED)) &&
				    !is_marker(e);

			if (!here && !v->ino && (a / TP) % 64)
				continue; /* of what was never touched a sample will do */
			if (!here && !v->ino)
				memcpy(o->page, zero, TP);
			else if (pread(s->shadow.mem, o->page, TP, (off_t)a) != (ssize_t)TP)
				continue;
			o->addr[o->nr] = a;
			o->hash[o->nr++] = page_hash(o->page);
		}
	}
}

static int paused(void *arg)
{
	struct session *s = arg;

	s->shadow.error = shadow_take(&s->shadow, s->ctl);
	if (s->run->all && !s->shadow.error)
		others_take(s);
	atomic_fetch_add(&s->ctl->epoch, 1);
	return s->shadow.error;
}

static int others_check(struct session *s, struct wpt_chain *chain, uint64_t link)
{
	struct others *o = &s->others;
	unsigned wrong = 0;

	for (unsigned i = 0; i < o->nr; i++) {
		int r = wpt_chain_read(chain, o->addr[i], o->page, TP);

		if (!r && page_hash(o->page) == o->hash[i])
			continue;
		if (wrong++ < 3)
			printf("# torture: WRONG BYTE in %s: link %" PRIu64 " page 0x%" PRIx64 " outside the areas: %s; WPT_SEED=%" PRIu64 "\n",
			       s->run->name, link, o->addr[i], r ? wpt_strerror(r) : "differs", setup.seed);
	}
	return wrong ? -1 : 0;
}

static int open_link(struct session *s, uint64_t sequence, struct wpt_chain **chain)
{
	char path[400];
	int r;

	snprintf(path, sizeof(path), "%s@%" PRIu64, s->chain, sequence);
	r = wpt_chain_open(chain, path);
	if (r)
		printf("# torture: %s: opening %s: %s; WPT_SEED=%" PRIu64 "\n", s->run->name, path, wpt_strerror(r), setup.seed);
	return r;
}

static int refuse(void *arg)
{
	(void)arg;
	return -ECANCELED;
}

/* Rounds as many as they happen to be, none, or for ever: a target that never rests never reaches a microsecond. */
static void rounds_of_some_kind(struct session *s, struct wpt_take_options *o)
{
	static const uint32_t max[] = { 0, WPT_NO_ROUNDS, 1, 2, 20 };

	o->max_rounds = max[rng_below(&s->rng, sizeof(max) / sizeof(max[0]))];
	o->target_pause_us = rng_below(&s->rng, 3) ? 1 : 0;
}

static int take_try(struct session *s, struct wpt_take_options *o, struct wpt_take_stats *stats)
{
	int r, tries = 0;

	if (!s->run->attached && o->mode != WPT_MODE_FUZZY) {
		o->quiesce = quiesce;
		o->resume = resume;
	}
	do
		r = wpt_writer_take(s->writer, o, stats);
	while (r == -WPT_E_STOP_TIMEOUT && ++tries < 100);
	return r;
}

static void log_link(struct session *s, uint32_t op, bool begin)
{
	struct worker self = { .ctl = s->ctl, .id = s->ctl->nr_workers };

	for (unsigned i = 0; i < s->ctl->nr_areas; i++)
		log_op(&self, &s->ctl->areas[i], op, 0, 0)->result = begin;
}

/*
 * Links that are not compared, before one that is: what a fuzzy one or one that fails takes from the kernel must not be missing in
 * the next.
 */
static int take_others(struct session *s)
{
	struct wpt_take_options fuzzy = { .size = sizeof(fuzzy), .mode = WPT_MODE_FUZZY };
	struct wpt_take_options failed = { .size = sizeof(failed), .mode = s->run->mode, .paused = refuse, .arg = s };
	int r = 0;

	if (rng_below(&s->rng, 4) == 0) {
		log_link(s, OP_FUZZY_LINK, true);
		r = take_try(s, &fuzzy, NULL);
		log_link(s, OP_FUZZY_LINK, false);
	}
	if (!r && rng_below(&s->rng, 6) == 0) {
		rounds_of_some_kind(s, &failed);
		r = take_try(s, &failed, NULL);
		log_link(s, OP_FAILED_LINK, false);
		r = r == -ECANCELED ? 0 : r ? r : -EIO;
	}
	if (r)
		printf("# torture: %s: a fuzzy or failing link before link %u: %s; WPT_SEED=%" PRIu64 "\n", s->run->name, s->links,
		       wpt_strerror(r), setup.seed);
	return r;
}

static int take_link(struct session *s)
{
	struct wpt_take_options o = { .size = sizeof(o), .mode = s->run->mode, .paused = paused, .arg = s };
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	struct wpt_chain *chain;
	int r = take_others(s);

	if (r)
		return r;
	rounds_of_some_kind(s, &o);
	r = take_try(s, &o, &stats);
	if (r || s->shadow.error) {
		printf("# torture: %s: link %u: %s; WPT_SEED=%" PRIu64 "\n", s->run->name, s->links,
		       wpt_strerror(s->shadow.error ? s->shadow.error : r), setup.seed);
		return -1;
	}
	s->sequences[s->links++] = stats.sequence;
	if (s->links > 1) {
		s->dirty += stats.pages_dirty;
		s->compared += stats.pages_compared;
		s->stored += stats.pages_stored;
		s->tracked += stats.pages_tracked;
		s->pause_ns += stats.pause_ns;
		s->cow_faults += stats.pages_cow_faults;
		s->cow_copied += stats.pages_cow_copied;
		s->cow_waits += stats.cow_waits;
		s->cow_fallback += stats.cow_fallback;
		s->rounds += stats.nr_rounds;
		s->collapsed += stats.pages_collapsed;
	}
	if (open_link(s, stats.sequence, &chain))
		return -1;
	r = check_link(&s->check, chain, stats.sequence);
	if (!r && s->run->all)
		r = others_check(s, chain, stats.sequence);
	wpt_chain_close(chain);
	return r;
}

/* ---- the whole ------------------------------------------------------------------------------------------------- */

static int session_writer(struct session *s, const char *chain)
{
	struct wpt_writer_options o = { .size = sizeof(o), .flags = WPT_WRITER_NO_SYNC, .level = -5, .nr_threads = 2,
					.staging_bytes = rng_below(&s->rng, 2) ? 64 << 20 : 4 << 20,
					.hot_set = rng_below(&s->rng, 2) ? WPT_HOT_SET_AUTO : WPT_HOT_SET_OFF };
	int r;

	/* Half of all seeds have their huge pages given back. */
	if (s->ctl->seed >> 3 & 1)
		o.flags |= WPT_WRITER_COLLAPSE;
	snprintf(s->chain, sizeof(s->chain), "%s", chain);
	r = wpt_writer_open(&s->writer, s->tracker, s->chain, &o);
	if (r)
		printf("# torture: %s: writer: %s\n", s->run->name, wpt_strerror(r));
	return r;
}

static int session_tracker(struct session *s)
{
	struct wpt_tracker_options to = { .size = sizeof(to), .flags = s->run->track_flags, .log = say_library, .stop_timeout_ms = 1000 };
	char chain[300];
	int r, tries = 0;

	do
		r = way_tracker(&s->tracker, s->run->attached ? s->child : 0, &to);
	while (r == -WPT_E_STOP_TIMEOUT && ++tries < 100);
	/* Half of all seeds have another process looked at by several threads, although there is little of it. */
	if (!r && s->ctl->seed >> 4 & 1) {
		s->tracker->share_bytes = HUGE;
		s->tracker->nr_scan_threads = 3;
	}
	for (unsigned i = 0; i < s->ctl->nr_areas && !r && !s->run->all; i++) {
		struct area *a = &s->ctl->areas[i];
		struct wpt_range range = { .size = sizeof(range), .start = a->start, .end = a->end, .name = area_desc(a)->name };

		r = wpt_range_add(s->tracker, &range);
		r = r > 0 ? 0 : r;
	}
	if (!r && s->run->all)
		r = wpt_range_add_all(s->tracker);
	r = r > 0 ? 0 : r;
	if (r)
		printf("# torture: %s: tracker: %s\n", s->run->name, wpt_strerror(r));
	snprintf(chain, sizeof(chain), "%s/chain-%s", setup.dir, s->run->name);
	return r ? r : session_writer(s, chain);
}

static int session_open(struct session *s, const struct run *run)
{
	const unsigned max_others = 60000;
	int r;

	memset(s, 0, sizeof(*s));
	s->run = run;
	s->ctl_fd = memfd_create("torture-ctl", 0);
	if (s->ctl_fd < 0 || ftruncate(s->ctl_fd, sizeof(struct ctl)) || !(s->ctl = ctl_map(s->ctl_fd)))
		return -errno;
	s->ctl->seed = setup.seed;
	for (const char *p = run->name; *p; p++)
		s->ctl->seed = s->ctl->seed * 131 + (unsigned char)*p;
	s->rng = s->ctl->seed;
	snprintf(s->ctl->dir, sizeof(s->ctl->dir), "%s", setup.dir);
	s->ctl->nr_areas = run->nr_kinds;
	s->ctl->exact = way_is_exact();
	s->ctl->nr_workers = 3;
	s->ctl->nr_writers = 1;
	for (unsigned i = 0; i < run->nr_kinds; i++) {
		s->ctl->areas[i].kind = run->kinds[i];
		s->ctl->areas[i].bypass = !!(run->track_flags & WPT_TRACK_VERIFY_CONTENT);
	}
	s->others.max = max_others;
	s->others.addr = shadow_alloc(max_others * 8);
	s->others.hash = shadow_alloc(max_others * 8);
	r = target_start(s);
	if (!r)
		r = shadow_open(&s->shadow, s->ctl, run->attached ? s->child : getpid());
	if (!r)
		r = check_open(&s->check, s->ctl, &s->shadow, run->name, setup.links + 1);
	s->check.all = run->all;
	if (!r)
		r = session_tracker(s);
	return r;
}

static int session_close(struct session *s)
{
	int r;

	wpt_writer_close(s->writer);
	wpt_tracker_close(s->tracker);
	r = target_end(s);
	if (s->check.ctl)
		check_close(&s->check);
	if (s->shadow.pid)
		shadow_close(&s->shadow, s->ctl);
	munmap(s->others.addr, s->others.max * 8);
	munmap(s->others.hash, s->others.max * 8);
	munmap(s->ctl, sizeof(struct ctl));
	close(s->ctl_fd);
	remove_folder(s->chain);
	return r;
}

/* Lets the target do its share of steps up to link number `link`, and some of it while the link is taken. */
static int let_work(struct session *s, uint64_t steps)
{
	uint64_t target = atomic_load(&s->ctl->step_limit) + steps;
	uint64_t until = target - rng_below(&s->rng, steps / 2 + 1);

	atomic_store(&s->ctl->step_limit, target);
	for (uint64_t waited = 0; atomic_load(&s->ctl->steps) < until; waited++) {
		if (s->run->attached && (waited & 63) == 0 && child_status(s))
			return -1;
		if (waited > 600000) {
			printf("# torture: %s: the target does nothing\n", s->run->name);
			return -1;
		}
		usleep(100);
	}
	return 0;
}

static int session_verify(struct session *s)
{
	struct wpt_chain *chain;
	int r = open_link(s, s->sequences[s->links - 1], &chain);

	if (r)
		return r;
	r = wpt_chain_verify(chain, NULL, NULL);
	if (r)
		printf("# torture: %s: verify: %s\n", s->run->name, wpt_strerror(r));
	wpt_chain_close(chain);
	for (unsigned i = 0; i < 3 && !r; i++) {
		unsigned nr = (unsigned)rng_below(&s->rng, s->links);

		r = open_link(s, s->sequences[nr], &chain);
		if (r)
			break;
		r = check_old_link(&s->check, chain, nr);
		wpt_chain_close(chain);
	}
	return r;
}

/* More bases, each of a chain of its own: they are copied while the target runs. */
static int more_bases(struct session *s)
{
	char chain[300];
	int r = 0;

	for (unsigned i = 0; i < 6 && !r; i++) {
		wpt_writer_close(s->writer);
		s->writer = NULL;
		remove_folder(s->chain);
		snprintf(chain, sizeof(chain), "%s/chain-%s-%u", setup.dir, s->run->name, i);
		r = session_writer(s, chain);
		atomic_fetch_add(&s->ctl->step_limit, 100);
		s->links = 0;
		if (!r)
			r = take_link(s);
	}
	return r;
}

static void say_figures(struct session *s)
{
	printf("# %s: %u links, %" PRIu64 " steps, %" PRIu64 " pages compared with the shadow; dirty %.1f%%, by content %.1f%%, pause %" PRIu64
	       " us on average, %" PRIu64 " rounds\n",
	       s->run->name, s->links, (uint64_t)atomic_load(&s->ctl->steps), s->check.pages_checked,
	       s->tracked ? 100.0 * (double)s->dirty / (double)s->tracked : 0,
	       s->tracked ? 100.0 * (double)s->compared / (double)s->tracked : 0, s->links > 1 ? s->pause_ns / 1000 / (s->links - 1) : 0, s->rounds);
	if (s->run->mode == WPT_MODE_COW)
		printf("# %s: saved by faults %" PRIu64 ", in the background %" PRIu64 "; waited for memory %" PRIu64
		       ", completed by a pause %" PRIu64 "\n", s->run->name, s->cow_faults, s->cow_copied, s->cow_waits, s->cow_fallback);
	if (s->check.half_filled)
		printf("# %s: %" PRIu64 " punched pages that a write had filled and not written\n", s->run->name, s->check.half_filled);
	if (s->collapsed)
		printf("# %s: %" PRIu64 " huge pages given back\n", s->run->name, s->collapsed / 512);
	if (!getenv("WPT_VERBOSE"))
		return;
	printf("#  ");
	for (unsigned op = 0; op < NR_OPS; op++)
		if (s->ctl->done[op])
			printf(" %s %" PRIu64, op_table[op].name, (uint64_t)s->ctl->done[op]);
	printf("\n");
}

static int torture(const struct run *run)
{
	struct session *s = shadow_alloc(sizeof(*s));
	uint64_t steps = setup.steps * (run->steps_factor ? run->steps_factor : 1);
	int r;

	if (!s)
		return -ENOMEM;
	catch_faults();
	r = session_open(s, run);
	for (unsigned i = 0; i < setup.links && !r; i++) {
		r = let_work(s, steps / setup.links + 1);
		if (!r)
			r = take_link(s);
	}
	if (!r)
		r = session_verify(s);
	if (!r)
		say_figures(s);
	if (!r)
		r = more_bases(s);
	fflush(stdout);
	if (session_close(s) && !r)
		r = -1;
	munmap(s, sizeof(*s));
	return r;
}

#endif
