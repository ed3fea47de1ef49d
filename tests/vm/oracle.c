/* SPDX-License-Identifier: MIT */
/*
 * Looks for writes that the kernel's own tracking loses, by random operations on memory of every kind against a shadow copy.
 *
 * A round: random operations, perhaps a scan that changes nothing, a scan that protects again (its output is what a snapshot would copy), and a
 * comparison of all pages with the shadow. Only reported pages are taken over into the shadow, so it is what a chain of snapshots holds.
 * A page is lost when its content differs from the shadow, no scan reported it, and a further scan does not either: memory given up by
 * MADV_FREE may lose its content after the scan, and is reported by the next.
 */
#include "oracle.h"
#include "oracle_ops.h"
#include "oracle_threads.h"

static double deadline;

/* ---- an area */

static bool free_huge(size_t need)
{
	char line[128];
	long nr = 0, rsvd = 0;
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f)) {
		sscanf(line, "HugePages_Free: %ld", &nr);
		sscanf(line, "HugePages_Rsvd: %ld", &rsvd);
	}
	if (f)
		fclose(f);
	return nr - rsvd >= (long)need;
}

static int open_file(enum kind k, size_t bytes)
{
	char path[300];
	int fd;

	if (k == K_FILE || k == K_FILE_PRIVATE) {
		snprintf(path, sizeof(path), "%s/oracle.%d", cfg.dir, (int)getpid());
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (fd >= 0)
			unlink(path);
	} else {
		fd = (int)syscall(SYS_memfd_create, "oracle", (kinds[k].unit == HUGE ? 4u /* MFD_HUGETLB */ : 0u) | 1u);
	}
	if (fd >= 0 && ftruncate(fd, (off_t)bytes)) {
		int err = -errno;

		close(fd);
		return err;
	}
	return fd < 0 ? -errno : fd;
}

static void place(struct area *a, struct rng *g)
{
	size_t skew = a->unit == PAGE && chance(g, 25) ? below(g, 512) * PAGE : 0;

	a->reserve_bytes = a->bytes + 3 * HUGE;
	for (int i = 0; i < 2; i++) {
		char *p = mmap(NULL, a->reserve_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (p == MAP_FAILED)
			fatal("no address space");
		a->reserve[i] = p;
		*(i ? &a->scratch : &a->base) = (char *)(((uintptr_t)p + HUGE - 1) / HUGE * HUGE) + skew;
	}
	/* An offset of the file that lets huge pages be mapped, or one that does not. */
	a->file_off = a->fd >= 0 && a->unit == PAGE ? skew + (chance(g, 20) ? PAGE : 0) : 0;
}

/* Content before tracking starts, by the mapping or the file. */
static void fill_first(struct area *a, struct rng *g)
{
	unsigned percent = (unsigned)below(g, 5) * 25;
	bool by_file = a->fd >= 0 && a->unit == PAGE && chance(g, 50);

	for (size_t u = 0; u < a->nr; u++) {
		if (!chance(g, percent))
			continue;
		fill_tmp(a, PAGE, g);
		if (!by_file)
			try_copy(unit_at(a, u), a->tmp, PAGE);
		else if (pwrite(a->fd, a->tmp, PAGE, (off_t)(a->file_off + u * a->unit)) < 0)
			fatal("%s: filling the file: %s", a->desc->name, strerror(errno));
	}
}

static void area_close(struct area *a)
{
	reap_all();
	if (a->uffd >= 0)
		close(a->uffd);
	for (int i = 0; i < 2; i++)
		if (a->reserve[i])
			munmap(a->reserve[i], a->reserve_bytes);
	if (a->fd >= 0)
		close(a->fd);
	munmap(a->shadow, a->bytes);
	munmap(a->tmp, 64 * PAGE + 2 * HUGE);
	munmap(a->u, a->nr * sizeof(*a->u));
	munmap(a->pm, a->nr * 8);
	munmap(a->seen, a->nr);
}

/* 0, or -errno: memory of this kind is not to be had. */
static int area_open(struct area *a, enum kind k, struct rng *g)
{
	int err;

	*a = (struct area){ .desc = &kinds[k], .kind = k, .fd = -1, .uffd = -1, .unit = kinds[k].unit };
	a->bytes = cfg.size && a->unit == PAGE ? cfg.size : a->desc->bytes;
	if (a->unit == HUGE && !free_huge(a->bytes / HUGE * 5 / 2))
		a->bytes /= 2;
	if (a->unit == HUGE && !free_huge(a->bytes / HUGE * 5 / 2))
		a->bytes /= 4;
	if (a->unit == HUGE && !free_huge(a->bytes / HUGE * 5 / 2))
		return -ENOMEM;
	a->nr = a->bytes / a->unit;
	if (a->desc->file) {
		a->fd = open_file(k, a->bytes + HUGE);
		if (a->fd < 0)
			return a->fd;
	}
	a->shadow = own_memory(a->bytes);
	a->tmp = own_memory(64 * PAGE + 2 * HUGE);
	a->u = own_memory(a->nr * sizeof(*a->u));
	a->pm = own_memory(a->nr * 8);
	a->seen = own_memory(a->nr);
	place(a, g);
	if (a->fd >= 0 && ftruncate(a->fd, (off_t)(a->file_off + a->bytes)))
		fatal("%s: ftruncate: %s", a->desc->name, strerror(errno));
	err = map_units(a, &(struct range){ 0, a->nr, a->base, a->bytes });
	if (err) {
		area_close(a);
		return err;
	}
	fill_first(a, g);
	a->uffd = open_uffd();
	err = uffd_register(a, a->base, a->bytes);
	if (err)
		fatal("%s: UFFDIO_REGISTER: %s", a->desc->name, strerror(-err));
	return 0;
}

/* ---- losses */

static void print_history(const struct area *a, size_t u)
{
	const struct unit *x = &a->u[u];
	unsigned n = x->nr < HIST ? x->nr : HIST;

	for (unsigned i = x->nr - n; i < x->nr; i++) {
		const struct hist *h = &x->hist[i % HIST];

		printf("#     %u.%u %s", h->round, h->seq, hist_name(h->op));
		if (h->result)
			printf(" (%s)", strerror(-h->result));
		printf("\n");
	}
}

static void complain(struct area *a, size_t u, const char *what, uint64_t pm_before, const char *by)
{
	static unsigned said;
	uint64_t e = 0;

	if (cfg.quiet || ++said > 40)
		return;
	if (pread(pagemap_fd, &e, 8, (off_t)((uintptr_t)unit_at(a, u) / PAGE * 8)) != 8)
		e = 0;
	printf("# %s %s: unit %zu of %zu at %p, round %u, %s, pagemap %016" PRIx64 " before, %016" PRIx64 " now%s\n", what, a->desc->name, u, a->nr,
	       (void *)unit_at(a, u), a->round, by, pm_before, e, pm_is_marker(pm_before) ? " (was a marker)" : "");
	if (cfg.verbose || said <= 8)
		print_history(a, u);
	fflush(stdout);
}

/* ---- a round */

static void take_base(struct area *a, struct rng *g)
{
	enum how how = (enum how)below(g, NR_HOW);

	read_pagemap(a);
	for (size_t u = 0; u < a->nr; u++) {
		if (fetch(a, u, how, a->shadow + u * a->unit))
			fatal("%s: unit %zu can't be read", a->desc->name, u);
		note(a, u, H_BASE, 0);
	}
}

static void protect_first(struct area *a, struct rng *g)
{
	int err;

	if (chance(g, 50)) {
		struct look l = { .flags = PM_SCAN_WP_MATCHING, .mask = PAGE_IS_WRITTEN, .ret = PAGE_IS_WRITTEN };

		err = scan_units(a, 0, a->nr, &l, a->seen);
	} else {
		err = uffd_protect(a, a->base, a->bytes, true);
	}
	if (err)
		fatal("%s: protecting: %s", a->desc->name, strerror(-err));
}

static struct range pick(const struct area *a, struct rng *g)
{
	struct range r;
	unsigned c = (unsigned)below(g, 100);

	r.u = below(g, a->nr);
	if (c < 40) {
		r.n = 1;
	} else if (c < 65) {
		r.n = below(g, 16) + 2;
	} else if (c < 85) {
		size_t skew = ((uintptr_t)a->base / PAGE) % 512; /* one page table, where they are that large */

		r.n = a->unit == PAGE ? 512 : 1;
		r.u = a->unit == PAGE ? (r.u + skew) / 512 * 512 : r.u;
		r.u = r.u > skew || a->unit == HUGE ? r.u - (a->unit == PAGE ? skew : 0) : 0;
		if (r.u >= a->nr)
			r.u = 0;
		if (chance(g, 10))
			r.n = a->nr;
	} else {
		r.n = below(g, chance(g, 50) ? a->nr / 4 + 1 : a->nr) + 1;
	}
	if (r.n > a->nr - r.u)
		r.n = a->nr - r.u;
	r.p = unit_at(a, r.u);
	r.bytes = r.n * a->unit;
	return r;
}

static void perform(struct area *a, const unsigned *weight, unsigned total, struct rng *g)
{
	unsigned w = (unsigned)below(g, total), i = 0;
	struct range r = pick(a, g);
	struct rng own = { rnd(g) };
	int err;

	while (w >= weight[i])
		w -= weight[i++];
	if (cfg.skip & (1ull << i))
		return;
	a->seq++;
	err = ops[i].run(a, &r, &own);
	tot->ops++;
	tot->failed += err != 0;
	(err ? tot->refused_by : tot->done_by)[i]++;
	if (ops[i].run == op_truncate || ops[i].run == op_resize)
		r.n = a->nr - r.u;
	for (size_t u = r.u; u < r.u + r.n; u++)
		note(a, u, i, err);
}

#define ALL_CATEGORIES \
	(PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN | PAGE_IS_FILE | PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO | PAGE_IS_HUGE)

/* Scans that change nothing; each has to report whatever changed. */
static int observe(struct area *a, struct rng *g, uint8_t *out)
{
	struct look l = { .mask = PAGE_IS_WRITTEN, .ret = PAGE_IS_WRITTEN };

	switch (below(g, 4)) {
	case 0:
		break;
	case 1:
		l.ret = ALL_CATEGORIES;
		break;
	case 2:
		read_pagemap(a);
		for (size_t u = 0; u < a->nr; u++)
			out[u] = !(a->pm[u] & PM_WP);
		return 0;
	default:
		l.mask = 0;
		l.anyof = PAGE_IS_WRITTEN;
		l.vec_len = 1 + (unsigned)below(g, 20);
		l.max_pages = below(g, 600);
	}
	return scan_units(a, 0, a->nr, &l, out);
}

static const char *arm(struct area *a, struct rng *g, uint8_t *out)
{
	struct look l = { .flags = PM_SCAN_WP_MATCHING, .mask = PAGE_IS_WRITTEN, .ret = PAGE_IS_WRITTEN };
	const char *by = "scan";
	size_t cut = 0;
	int err;

	switch (below(g, 6)) {
	case 0:
		break;
	case 1:
		by = "scan, all categories";
		l.ret = ALL_CATEGORIES;
		break;
	case 2:
		by = "scan, short vectors";
		l.vec_len = 1 + (unsigned)below(g, 20);
		l.max_pages = chance(g, 50) ? 1 + below(g, 600) : 0;
		break;
	case 3:
		by = "scan in two parts";
		cut = below(g, a->nr);
		break;
	case 4:
		by = has_written ? "scan, present or swapped" : "scan";
		l.anyof = has_written ? PAGE_IS_PRESENT | PAGE_IS_SWAPPED : 0;
		break;
	default:
		if (a->freed)
			break; /* content given up may go between the two */
		by = "scan, then UFFDIO_WRITEPROTECT";
		l.flags = 0;
	}
	err = cut ? scan_units(a, cut, a->nr - cut, &l, out) : 0;
	if (!err)
		err = scan_units(a, 0, cut ? cut : a->nr, &l, out);
	if (!err && !l.flags)
		err = uffd_protect(a, a->base, a->bytes, true);
	if (err)
		fatal("%s: %s: %s", a->desc->name, by, strerror(-err));
	return by;
}

/* Is it reported now? */
static bool reported_late(struct area *a, size_t u)
{
	struct look l = { .mask = PAGE_IS_WRITTEN, .ret = PAGE_IS_WRITTEN };
	uint8_t *out = own_memory(a->nr);
	bool yes;

	yes = scan_units(a, u, 1, &l, out) == 0 && out[u];
	munmap(out, a->nr);
	return yes;
}

static unsigned last_op(const struct unit *x)
{
	for (unsigned i = x->nr; i > 0 && x->nr - i < HIST; i--)
		if (x->hist[(i - 1) % HIST].op < H_REPORTED && !x->hist[(i - 1) % HIST].result)
			return x->hist[(i - 1) % HIST].op;
	return 255;
}

static void settle(struct area *a, struct rng *g, const uint8_t *observed, const char *by)
{
	enum how how = (enum how)below(g, NR_HOW);
	bool mixed = chance(g, 30), lazy = how == BY_LAZY;
	char *content = a->tmp + HUGE;

	read_pagemap(a);
	for (size_t u = 0; u < a->nr; u++) {
		struct unit *x = &a->u[u];
		bool dirty = a->seen[u] || x->pend, differs;
		uint64_t pm = a->pm[u];

		if (dirty)
			note(a, u, H_REPORTED, 0);
		tot->reported += dirty;
		if (x->must && !dirty && !x->unknown && cfg.strict_must) {
			complain(a, u, "FORGOTTEN", pm, by);
			tot->forgotten++;
		}
		if (lazy && !dirty && !x->unknown && chance(g, 50))
			continue;
		if (fetch(a, u, mixed ? (enum how)below(g, NR_HOW) : how, content))
			fatal("%s: unit %zu can't be read, pagemap %016" PRIx64, a->desc->name, u, pm);
		differs = memcmp(content, a->shadow + u * a->unit, a->unit);
		if (differs && !x->unknown && !dirty) {
			if (reported_late(a, u)) {
				tot->late++;
				continue;
			}
			complain(a, u, "LOST", pm, by);
			tot->lost++;
		} else if (differs && !x->unknown && observed && !observed[u] && !x->pend) {
			complain(a, u, "LOST to a scan that changes nothing", pm, by);
			tot->lost++;
		}
		if (dirty && !differs && !x->must) {
			tot->over++;
			tot->over_by[last_op(x)]++;
		}
		if (differs)
			memcpy(a->shadow + u * a->unit, content, a->unit);
		x->unknown = x->must = x->pend = 0;
	}
	for (size_t u = 0; u < a->nr; u++)
		if (a->seen[u] || a->u[u].pend)
			a->u[u].must = a->u[u].pend = 0;
}

static void round_of(struct area *a, const unsigned *weight, unsigned total, struct rng *g)
{
	uint64_t n = chance(g, 30) ? below(g, 6) + 1 : below(g, cfg.ops) + 1;
	uint8_t *observed = NULL;
	const char *by;

	a->round++;
	a->seq = 0;
	tot->rounds++;
	for (uint64_t i = 0; i < n; i++)
		perform(a, weight, total, g);
	if (chance(g, 40)) {
		observed = own_memory(a->nr);
		if (observe(a, g, observed))
			fatal("%s: a scan that changes nothing failed: %s", a->desc->name, strerror(errno));
	}
	memset(a->seen, 0, a->nr);
	by = arm(a, g, a->seen);
	unprotect_all(a);
	settle(a, g, observed, by);
	if (observed)
		munmap(observed, a->nr);
	if (chance(g, 20)) {
		munlock(a->base, a->bytes);
		if (a->desc->thp)
			madvise(a->base, a->bytes, MADV_HUGEPAGE);
		madvise(a->base, a->bytes, MADV_UNMERGEABLE);
	}
}

/* Each area prefers other operations. */
static unsigned choose_weights(enum kind k, struct rng *g, unsigned *weight)
{
	static const unsigned factor[] = { 0, 0, 1, 1, 1, 5 };
	unsigned total = 0;

	for (unsigned i = 0; i < NR_OPS; i++) {
		unsigned f = ops[i].run == op_write ? 1 : factor[below(g, 6)];

		if (!(ops[i].kinds & KB(k)) || (ops[i].machine && !cfg.machine) || (ops[i].bypass && !cfg.bypass))
			f = 0;
		weight[i] = ops[i].weight * f;
		total += weight[i];
	}
	return total;
}

/* One area's life. -errno: there is no memory of this kind. */
static int life(enum kind k, uint64_t number, uint64_t rounds)
{
	struct rng g = derive(cfg.seed, k, number, 1);
	unsigned weight[NR_OPS], total;
	struct area a;
	int err = area_open(&a, k, &g);

	if (err)
		return err;
	total = choose_weights(k, &g, weight);
	protect_first(&a, &g);
	take_base(&a, &g);
	for (uint64_t i = 0; i < rounds && now() < deadline; i++) {
		struct rng own = derive(cfg.seed, k, number, 1000 + i);

		round_of(&a, weight, total, &own);
	}
	area_close(&a);
	return 0;
}

/* ---- the machine */

static void make_swap(void)
{
	static char header[4096];
	uint64_t bytes = 256ull << 20;
	uint32_t info[3] = { 1, (uint32_t)(bytes / PAGE - 1), 0 };
	char line[256];
	FILE *f = fopen("/proc/swaps", "re");
	int fd;

	for (int i = 0; f && fgets(line, sizeof(line), f); i++)
		if (i == 1)
			sscanf(line, "%63s", swap_path);
	if (f)
		fclose(f);
	if (*swap_path || write_file("/sys/block/zram0/disksize", "268435456"))
		return;
	memcpy(header + 1024, info, sizeof(info));
	memcpy(header + 4086, "SWAPSPACE2", 10);
	fd = open("/dev/zram0", O_RDWR | O_CLOEXEC);
	if (fd < 0 || write(fd, header, sizeof(header)) < 0 || fsync(fd) || swapon("/dev/zram0", 0))
		printf("# no swap: %s\n", strerror(errno));
	else
		strcpy(swap_path, "/dev/zram0");
	if (fd >= 0)
		close(fd);
}

static void make_cgroup(void)
{
	static const char *const roots[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
	char path[160], pid[16];

	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL);
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	for (unsigned i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "%s/cgroup.subtree_control", roots[i]);
		if (write_file(path, "+memory"))
			continue;
		snprintf(path, sizeof(path), "%s/oracle", roots[i]);
		mkdir(path, 0700);
		snprintf(path, sizeof(path), "%s/oracle/cgroup.procs", roots[i]);
		if (write_file(path, pid))
			continue;
		snprintf(reclaim_path, sizeof(reclaim_path), "%s/oracle/memory.reclaim", roots[i]);
		return;
	}
	printf("# no memory.reclaim\n");
}

/* Everything in the background that moves memory: for a machine of our own. */
static void stir_machine(void)
{
	static const char *const settings[][2] = {
		{ "/sys/kernel/mm/transparent_hugepage/enabled", "madvise" },
		{ "/sys/kernel/mm/transparent_hugepage/defrag", "always" },
		{ "/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise" },
		{ "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "20" },
		{ "/sys/kernel/mm/transparent_hugepage/khugepaged/alloc_sleep_millisecs", "20" },
		{ "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan", "4096" },
		{ "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_swap", "256" },
		{ "/sys/kernel/mm/ksm/sleep_millisecs", "20" },
		{ "/sys/kernel/mm/ksm/pages_to_scan", "1000" },
		{ "/sys/kernel/mm/ksm/run", "1" },
	};

	make_swap();
	make_cgroup();
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	for (unsigned i = 0; i < sizeof(settings) / sizeof(*settings); i++)
		if (write_file(settings[i][0], settings[i][1]))
			printf("# %s can't be set\n", settings[i][0]);
	if (!free_huge(40))
		write_file("/proc/sys/vm/nr_hugepages", "48");
	write_file("/sys/kernel/mm/ksm/use_zero_pages", cfg.seed & 1 ? "1" : "0");
}

/* ---- the whole */

static int run_kind(enum kind k, bool say)
{
	uint64_t left = cfg.rounds, number = 0;
	struct totals before = *tot;
	int err = 0;

	memset(tot->done_by, 0, sizeof(tot->done_by));
	memset(tot->refused_by, 0, sizeof(tot->refused_by));
	while (left && now() < deadline) {
		struct rng g = derive(cfg.seed, k, number, 2);
		uint64_t n = below(&g, 30) + 5;

		n = n < left ? n : left;
		err = cfg.threads ? threads_life(k, number, n, deadline, area_open, area_close) : life(k, number, n);
		if (err)
			break;
		left -= n;
		number++;
	}
	if (!say)
		return err;
	if (err) {
		printf("%s: not to be had here: %s\n", kinds[k].name, strerror(-err));
		return err;
	}
	printf("%s: rounds %" PRIu64 " ops %" PRIu64 " refused %" PRIu64 " reported %" PRIu64 " over %" PRIu64 " late %" PRIu64 " lost %" PRIu64
	       " forgotten %" PRIu64 "\n",
	       kinds[k].name, tot->rounds - before.rounds, tot->ops - before.ops, tot->failed - before.failed, tot->reported - before.reported,
	       tot->over - before.over, tot->late - before.late, tot->lost - before.lost, tot->forgotten - before.forgotten);
	if (cfg.verbose) {
		printf("#   done and refused:");
		for (unsigned i = 0; i < NR_OPS; i++)
			if (tot->done_by[i] || tot->refused_by[i])
				printf(" %s %" PRIu64 "/%" PRIu64, ops[i].name, tot->done_by[i], tot->refused_by[i]);
		printf("\n#   reported without a change, by the last operation:");
		for (unsigned i = 0; i < 256; i++)
			if (tot->over_by[i] > before.over_by[i])
				printf(" %s %" PRIu64, i == 255 ? "none" : hist_name(i), tot->over_by[i] - before.over_by[i]);
		printf("\n");
	}
	fflush(stdout);
	return 0;
}

static uint64_t run_silently(enum kind k)
{
	uint64_t before = tot->lost + tot->forgotten;
	pid_t pid = fork();

	if (!pid) {
		cfg.quiet = true;
		deadline = now() + 3600;
		pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		mem_fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
		run_kind(k, false);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	return tot->lost + tot->forgotten - before;
}

/* Leaves out one operation after the other, as long as the loss stays. */
static void reduce(enum kind k)
{
	for (unsigned i = 0; i < NR_OPS; i++) {
		if (!(ops[i].kinds & KB(k)) || (cfg.skip & (1ull << i)))
			continue;
		cfg.skip |= 1ull << i;
		if (!run_silently(k) && !run_silently(k))
			cfg.skip &= ~(1ull << i);
	}
	printf("# %s: enough for a loss with seed %" PRIu64 ": --only ", kinds[k].name, cfg.seed);
	for (unsigned i = 0, n = 0; i < NR_OPS; i++)
		if ((ops[i].kinds & KB(k)) && !(cfg.skip & (1ull << i)))
			printf("%s%s", n++ ? "," : "", ops[i].name);
	printf("\n");
	fflush(stdout);
}

static uint64_t op_set(const char *names)
{
	uint64_t set = 0;
	char text[1024], *save, *p;

	snprintf(text, sizeof(text), "%s", names);
	for (p = strtok_r(text, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
		unsigned i = 0;

		while (i < NR_OPS && strcmp(ops[i].name, p))
			i++;
		if (i == NR_OPS)
			fatal("no operation is called %s", p);
		set |= 1ull << i;
	}
	return set;
}

static uint64_t kind_set(const char *names)
{
	uint64_t set = 0;
	char text[1024], *save, *p;

	snprintf(text, sizeof(text), "%s", names);
	for (p = strtok_r(text, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
		unsigned i = 0;

		while (i < NR_KINDS && strcmp(kinds[i].name, p))
			i++;
		if (i == NR_KINDS)
			fatal("no kind of memory is called %s", p);
		set |= KB(i);
	}
	return set;
}

static void usage(void)
{
	fprintf(stderr, "oracle [--seed N] [--rounds N] [--ops N] [--seconds N] [--kind K,...] [--only OP,...] [--without OP,...] [--size MIB]\n"
			"       [--threads N] [--no-written] [--machine] [--bypass] [--content-only] [--expect-loss] [--reduce] [--dir DIR] [-v]\n"
			"--machine: swap, huge pages, KSM and compaction of the whole machine are set and used; for a machine of its own\n"
			"--content-only: a write that is forgotten without a difference of content is no failure\n"
			"--reduce: after a loss, look for the operations that it takes\n"
			"kinds:");
	for (unsigned i = 0; i < NR_KINDS; i++)
		fprintf(stderr, " %s", kinds[i].name);
	fprintf(stderr, "\noperations:");
	for (unsigned i = 0; i < NR_OPS; i++)
		fprintf(stderr, " %s", ops[i].name);
	fprintf(stderr, "\n");
	exit(2);
}

static bool want_reduce;

static void parse(int argc, char **argv)
{
	cfg = (struct config){ .rounds = 200, .ops = 60, .seconds = 3600, .kinds = ~0ull, .written = true, .strict_must = true, .dir = "/dev/shm" };
	cfg.seed = (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() % 1000;
	for (int i = 1; i < argc; i++) {
		const char *o = argv[i], *v = i + 1 < argc ? argv[i + 1] : NULL;
		uint64_t n = v ? strtoull(v, NULL, 0) : 0;

		if (!strcmp(o, "-v"))
			cfg.verbose = true;
		else if (!strcmp(o, "--no-written"))
			cfg.written = false;
		else if (!strcmp(o, "--machine"))
			cfg.machine = true;
		else if (!strcmp(o, "--bypass"))
			cfg.bypass = true;
		else if (!strcmp(o, "--content-only"))
			cfg.strict_must = false;
		else if (!strcmp(o, "--expect-loss"))
			cfg.expect_loss = true;
		else if (!strcmp(o, "--reduce"))
			want_reduce = true;
		else if (!v)
			usage();
		else if (i++, !strcmp(o, "--seed"))
			cfg.seed = n;
		else if (!strcmp(o, "--rounds"))
			cfg.rounds = n;
		else if (!strcmp(o, "--ops"))
			cfg.ops = n;
		else if (!strcmp(o, "--seconds"))
			cfg.seconds = n;
		else if (!strcmp(o, "--size"))
			cfg.size = n << 20;
		else if (!strcmp(o, "--threads"))
			cfg.threads = (unsigned)n;
		else if (!strcmp(o, "--dir"))
			cfg.dir = v;
		else if (!strcmp(o, "--kind"))
			cfg.kinds = kind_set(v);
		else if (!strcmp(o, "--only"))
			cfg.skip |= ~op_set(v);
		else if (!strcmp(o, "--without"))
			cfg.skip |= op_set(v);
		else
			usage();
	}
	if (!cfg.ops || !cfg.rounds || cfg.threads > MAX_THREADS)
		usage();
}

int main(int argc, char **argv)
{
	struct utsname un;
	unsigned ran = 0;
	double end;

	parse(argc, argv);
	uname(&un);
	catch_faults();
	tot = mmap(NULL, sizeof(*tot), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tot == MAP_FAILED)
		fatal("no memory");
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	mem_fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	if (pagemap_fd < 0 || mem_fd < 0)
		fatal("/proc: %s", strerror(errno));
	close(open_uffd());
	printf("# %s, WP_WRITTEN %s, seed %" PRIu64 "\n", un.release,
	       has_written ? "in use" : features & UFFD_FEATURE_WP_WRITTEN ? "not asked for" : "no", cfg.seed);
	if (cfg.machine)
		stir_machine();
	fflush(stdout);
	end = now() + (double)cfg.seconds;
	for (unsigned k = 0; k < NR_KINDS; k++) {
		uint64_t before = tot->lost + tot->forgotten;

		if (!(cfg.kinds & KB(k)))
			continue;
		/* What is left of the time is shared by the kinds that are left. */
		deadline = now() + (end - now()) / __builtin_popcountll((cfg.kinds & (KB(NR_KINDS) - 1)) >> k);
		ran += !run_kind((enum kind)k, true);
		if (want_reduce && !cfg.threads && tot->lost + tot->forgotten > before) {
			uint64_t skip = cfg.skip;

			reduce((enum kind)k);
			cfg.skip = skip;
			end = now() + (double)cfg.seconds / NR_KINDS * (NR_KINDS - k);
		}
	}
	if (!ran)
		fatal("nothing was tried");
	if (cfg.expect_loss)
		return tot->lost ? 0 : 1;
	return tot->lost || tot->forgotten ? 1 : 0;
}
