/* SPDX-License-Identifier: MIT */
/*
 * The oracle's operations. Each returns 0, or -errno where the kernel refused (which is counted, and no failure), and marks units whose
 * expectation it changes. An operation that changes content otherwise than through the mapping, where tracking does not promise to see it,
 * is in the group "bypass" and marks what it changed as unknown.
 */
#ifndef ORACLE_OPS_H
#define ORACLE_OPS_H

#include "oracle.h"

#define KB(k) (1ull << (k))
#define K_HUGETLB (KB(K_HUGETLB_PRIVATE) | KB(K_HUGETLB_SHARED) | KB(K_HUGETLB_FILE_PRIVATE))
#define K_SMALL (~K_HUGETLB)
#define K_NOFILE (KB(K_ANON) | KB(K_THP))
#define K_PRIVATE (~K_SHARED)
#define K_FD (~(K_NOFILE | KB(K_HUGETLB_PRIVATE)))
#define K_SHARED (KB(K_MEMFD) | KB(K_SHMEM_HUGE) | KB(K_FILE) | KB(K_HUGETLB_SHARED))
#define K_ANY (~0ull)

struct range {
	size_t u, n; /* units */
	char *p;
	size_t bytes;
};

#define MAX_KIDS 3
static pid_t kids[MAX_KIDS];

static void reap(unsigned i)
{
	if (kids[i] > 0) {
		kill(kids[i], SIGKILL);
		waitpid(kids[i], NULL, 0);
	}
	kids[i] = 0;
}

static void reap_all(void)
{
	for (unsigned i = 0; i < MAX_KIDS; i++)
		reap(i);
}

static bool writable(const struct area *a, size_t u)
{
	return !a->u[u].prot;
}

static void set_must(struct area *a, size_t u)
{
	a->u[u].must = 1;
}

static void forget(struct area *a, const struct range *r)
{
	for (size_t u = r->u; u < r->u + r->n; u++)
		a->u[u].unknown = 1, a->u[u].must = 0;
}

/*
 * A page table over each part of the range: there a punched hole and a truncation must be noticed. One present page makes it; whether it is the
 * page itself or a neighbour is left to chance.
 */
static int ensure_tables(struct area *a, const struct range *r, struct rng *g)
{
	size_t span = a->unit == PAGE ? HUGE : HUGE * 512;

	for (uintptr_t t = (uintptr_t)r->p / span * span; t < (uintptr_t)r->p + r->bytes; t += span) {
		uintptr_t from = t, to = t + span;
		bool own = chance(g, 30), done = false;
		uintptr_t lo = own ? (uintptr_t)r->p : (uintptr_t)a->base, hi = own ? lo + r->bytes : lo + a->bytes;

		from = from < lo ? lo : from;
		to = to > hi ? hi : to;
		for (int i = 0; i < 20 && !done; i++) {
			size_t u = (from - (uintptr_t)a->base) / a->unit + below(g, (to - from) / a->unit);

			done = a->u[u].prot != 2 && !touch(unit_at(a, u));
		}
		if (!done)
			return -ENOENT;
	}
	return 0;
}

/* ---- content */

static int op_write(struct area *a, const struct range *r, struct rng *g)
{
	unsigned how = (unsigned)below(g, 4);
	int err = 0;

	for (size_t u = r->u; u < r->u + r->n; u++) {
		char *p = unit_at(a, u);
		size_t off = below(g, a->unit / 8) * 8;
		int e;

		if (!writable(a, u))
			continue;
		if (how == 0)
			e = try_set(p + off, (int)below(g, 256), a->unit - off < 64 ? a->unit - off : 64);
		else if (how == 1)
			e = try_set(p + off, (int)below(g, 256), 1);
		else if (how == 2)
			e = try_add(p + off, rnd(g));
		else
			e = try_set(p, (int)below(g, 256), a->unit);
		if (e)
			err = e;
		else
			set_must(a, u);
	}
	return err;
}

/* Equal contents, zeros among them: for KSM, the shared zero page, and changes back to what was. */
static int op_zero(struct area *a, const struct range *r, struct rng *g)
{
	int c = chance(g, 60) ? 0 : (int)below(g, 2) + 1, err = 0;

	for (size_t u = r->u; u < r->u + r->n; u++) {
		if (!writable(a, u))
			continue;
		if (try_set(unit_at(a, u), c, a->unit))
			err = -EFAULT;
		else
			set_must(a, u);
	}
	return err;
}

static int op_read(struct area *a, const struct range *r, struct rng *g)
{
	int err = 0;

	(void)g;
	for (size_t u = r->u; u < r->u + r->n; u++)
		if (a->u[u].prot != 2 && touch(unit_at(a, u)))
			err = -EFAULT;
	return err;
}

static int op_vmread(struct area *a, const struct range *r, struct rng *g)
{
	(void)g;
	return a->u[r->u].prot == 2 ? -EACCES : vm_read(a, r->u, a->tmp);
}

static void fill_tmp(struct area *a, size_t n, struct rng *g)
{
	for (size_t i = 0; i < n; i += PAGE)
		memset(a->tmp + i, (int)below(g, 256), PAGE);
}

static int op_vmwrite(struct area *a, const struct range *r, struct rng *g)
{
	size_t n = below(g, a->unit) + 1;
	struct iovec l = { a->tmp, n }, t = { r->p, n };

	if (!writable(a, r->u))
		return -EACCES;
	fill_tmp(a, a->unit, g);
	if (process_vm_writev(getpid(), &l, 1, &t, 1, 0) < 0)
		return -errno;
	set_must(a, r->u);
	return 0;
}

static int op_sysread(struct area *a, const struct range *r, struct rng *g)
{
	int p[2];
	ssize_t n;

	if (!writable(a, r->u))
		return -EACCES;
	if (pipe(p))
		return -errno;
	fill_tmp(a, PAGE, g);
	n = write(p[1], a->tmp, below(g, PAGE) + 1);
	n = read(p[0], r->p, (size_t)n) < 0 ? -errno : 0;
	close(p[0]);
	close(p[1]);
	if (!n)
		set_must(a, r->u);
	return (int)n;
}

/* As a debugger writes: also through a mapping that is read-only at the moment. */
static int op_memwrite(struct area *a, const struct range *r, struct rng *g)
{
	fill_tmp(a, PAGE, g);
	if (pwrite(mem_fd, a->tmp, below(g, PAGE) + 1, (off_t)(uintptr_t)r->p) < 0)
		return -errno;
	set_must(a, r->u);
	return 0;
}

/* A device writes: the page is pinned while it does. */
static int op_direct(struct area *a, const struct range *r, struct rng *g)
{
	char path[300];
	int fd, err = 0;

	if (!writable(a, r->u))
		return -EACCES;
	snprintf(path, sizeof(path), "%s/oracle-direct.%d", cfg.dir, (int)getpid());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	unlink(path);
	fill_tmp(a, PAGE, g);
	if (write(fd, a->tmp, PAGE) < 0 || pread(fd, r->p, PAGE, 0) < 0)
		err = -errno;
	close(fd);
	if (!err)
		set_must(a, r->u);
	return err;
}

/* ---- advice */

static int op_dontneed(struct area *a, const struct range *r, struct rng *g)
{
	(void)a;
	return sys(madvise(r->p, r->bytes, chance(g, 80) ? MADV_DONTNEED : MADV_DONTNEED_LOCKED));
}

static int op_free(struct area *a, const struct range *r, struct rng *g)
{
	(void)g;
	a->freed = true;
	return sys(madvise(r->p, r->bytes, MADV_FREE));
}

static int op_pageout(struct area *a, const struct range *r, struct rng *g)
{
	(void)a;
	(void)g;
	return sys(madvise(r->p, r->bytes, MADV_PAGEOUT));
}

static int op_advise(struct area *a, const struct range *r, struct rng *g)
{
	static const int advice[] = { MADV_COLD, MADV_WILLNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_RANDOM,
				      MADV_NORMAL, MADV_DONTDUMP, MADV_DODUMP };

	(void)a;
	return sys(madvise(r->p, r->bytes, advice[below(g, sizeof(advice) / sizeof(*advice))]));
}

/* The kernel refuses where a page is protected: mostly the whole huge page is made written first. */
static int op_collapse(struct area *a, const struct range *r, struct rng *g)
{
	struct range h = *r;

	if (chance(g, 70)) {
		uintptr_t p = ((uintptr_t)r->p + HUGE - 1) / HUGE * HUGE;

		if (p + HUGE > (uintptr_t)a->base + a->bytes)
			p -= HUGE;
		if (p < (uintptr_t)a->base)
			return -EINVAL;
		h = (struct range){ (p - (uintptr_t)a->base) / PAGE, HUGE / PAGE, (char *)p, HUGE };
		if (!uffd_protect(a, h.p, h.bytes, false))
			for (size_t u = h.u; u < h.u + h.n; u++)
				set_must(a, u);
		if (chance(g, 80))
			madvise(h.p, h.bytes, chance(g, 20) ? MADV_POPULATE_READ : MADV_POPULATE_WRITE);
	}
	return sys(madvise(h.p, h.bytes, MADV_COLLAPSE));
}

static int op_populate_read(struct area *a, const struct range *r, struct rng *g)
{
	(void)a;
	(void)g;
	return sys(madvise(r->p, r->bytes, MADV_POPULATE_READ));
}

static int op_populate_write(struct area *a, const struct range *r, struct rng *g)
{
	int err = sys(madvise(r->p, r->bytes, MADV_POPULATE_WRITE));

	(void)g;
	for (size_t u = r->u; !err && u < r->u + r->n; u++)
		set_must(a, u);
	return err;
}

static int op_ksm(struct area *a, const struct range *r, struct rng *g)
{
	int err = sys(madvise(r->p, r->bytes, MADV_MERGEABLE));

	if (!err)
		err = op_zero(a, r, g);
	if (cfg.machine && chance(g, 50))
		usleep(5000 + (unsigned)below(g, 20000));
	return err;
}

static int op_lock(struct area *a, const struct range *r, struct rng *g)
{
	(void)a;
	switch (below(g, 4)) {
	case 0:
		return sys(mlock(r->p, r->bytes));
	case 1:
		return sys(mlock2(r->p, r->bytes, MLOCK_ONFAULT));
	default:
		return sys(munlock(r->p, r->bytes));
	}
}

/* ---- the file under the mapping */

static int op_remove(struct area *a, const struct range *r, struct rng *g)
{
	int err = ensure_tables(a, r, g);

	return err ? err : sys(madvise(r->p, r->bytes, MADV_REMOVE));
}

static int op_punch(struct area *a, const struct range *r, struct rng *g)
{
	int err = ensure_tables(a, r, g);

	if (err)
		return err;
	return sys(fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(a->file_off + r->u * a->unit), (off_t)r->bytes));
}

/* Punched, and refilled at once by a read: nothing but a marker tells. */
static int op_punch_read(struct area *a, const struct range *r, struct rng *g)
{
	int err = op_punch(a, r, g);

	return err ? err : op_read(a, r, g);
}

static int op_truncate(struct area *a, const struct range *r, struct rng *g)
{
	struct range tail = { r->u, a->nr - r->u, r->p, a->bytes - r->u * a->unit };
	int err = ensure_tables(a, &tail, g);

	if (err)
		return err;
	if (ftruncate(a->fd, (off_t)(a->file_off + r->u * a->unit)))
		return -errno;
	if (chance(g, 20))
		touch(r->p); /* beyond the end: SIGBUS */
	if (ftruncate(a->fd, (off_t)(a->file_off + a->bytes)))
		fatal("%s: can't grow the file again: %s", a->desc->name, strerror(errno));
	return 0;
}

static int op_sync(struct area *a, const struct range *r, struct rng *g)
{
	return chance(g, 50) ? sys(msync(r->p, r->bytes, MS_SYNC)) : sys(fdatasync(a->fd));
}

/* ---- protection, mappings, processes */

static int op_mprotect(struct area *a, const struct range *r, struct rng *g)
{
	static const int flip[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE | PROT_EXEC };

	for (size_t u = r->u; u < r->u + r->n; u++)
		if (a->u[u].prot)
			return -EBUSY;
	for (int i = (int)below(g, 3); i >= 0; i--)
		if (mprotect(r->p, r->bytes, flip[below(g, 3)]))
			return -errno;
	if (mprotect(r->p, r->bytes, PROT_READ | PROT_WRITE))
		fatal("mprotect back: %s", strerror(errno));
	return 0;
}

static int op_protect_stay(struct area *a, const struct range *r, struct rng *g)
{
	uint8_t prot = chance(g, 60) ? 1 : 2;

	if (mprotect(r->p, r->bytes, prot == 1 ? PROT_READ : PROT_NONE))
		return -errno;
	for (size_t u = r->u; u < r->u + r->n; u++)
		a->u[u].prot = prot;
	return 0;
}

static void unprotect_all(struct area *a)
{
	bool any = false;

	for (size_t u = 0; u < a->nr; u++) {
		any |= a->u[u].prot;
		a->u[u].prot = 0;
	}
	if (any && mprotect(a->base, a->bytes, PROT_READ | PROT_WRITE))
		fatal("mprotect back: %s", strerror(errno));
}

static int op_fork(struct area *a, const struct range *r, struct rng *g)
{
	unsigned what = (unsigned)below(g, 4), slot = (unsigned)below(g, MAX_KIDS);
	pid_t pid;

	if (what >= 2)
		reap(slot);
	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if ((what & 1) && !a->desc->shared)
			for (size_t u = r->u; u < r->u + r->n && u < r->u + 64; u++)
				try_set(unit_at(a, u), 0x5a, 100);
		if ((what & 1) && chance(g, 30))
			madvise(r->p, r->bytes, MADV_DONTNEED);
		if (what >= 2)
			for (;;)
				pause();
		_exit(0);
	}
	if (what >= 2)
		kids[slot] = pid;
	else
		waitpid(pid, NULL, 0);
	return 0;
}

static int op_reap(struct area *a, const struct range *r, struct rng *g)
{
	(void)a;
	(void)r;
	reap((unsigned)below(g, MAX_KIDS));
	return 0;
}

static void reserve_again(void *p, size_t n)
{
	if (mmap(p, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != p)
		fatal("address space: %s", strerror(errno));
}

/* Moved away with the mapping left behind; some pages are copied back. */
static int op_dontunmap(struct area *a, const struct range *r, struct rng *g)
{
	char *to = a->scratch + r->u * a->unit, *at;

	at = mremap(r->p, r->bytes, r->bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED, to);
	if (at == MAP_FAILED)
		return -errno;
	for (size_t u = r->u; u < r->u + r->n; u++)
		if (writable(a, u) && chance(g, 40) && !try_copy(unit_at(a, u), at + (u - r->u) * a->unit, a->unit))
			set_must(a, u);
	reserve_again(at, r->bytes);
	return 0;
}

static void track_again(struct area *a, const struct range *r, struct rng *g)
{
	int err = uffd_register(a, r->p, r->bytes);

	if (err)
		fatal("%s: can't register again: %s", a->desc->name, strerror(-err));
	if (chance(g, 50))
		uffd_protect(a, r->p, r->bytes, true);
	forget(a, r);
}

static int op_away(struct area *a, const struct range *r, struct rng *g)
{
	char *to = a->scratch + r->u * a->unit, *at;

	at = mremap(r->p, r->bytes, r->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (at == MAP_FAILED)
		return -errno;
	for (size_t u = r->u; u < r->u + r->n; u++)
		if (writable(a, u) && chance(g, 20))
			try_set(at + (u - r->u) * a->unit, (int)below(g, 256), 32);
	if (mremap(at, r->bytes, r->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, r->p) != r->p)
		fatal("%s: mremap back: %s", a->desc->name, strerror(errno));
	reserve_again(at, r->bytes);
	track_again(a, r, g);
	return 0;
}

static int map_units(struct area *a, const struct range *r)
{
	int flags = (a->desc->shared ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED;
	off_t off = (off_t)(a->file_off + r->u * a->unit);

	if (a->fd < 0)
		flags |= MAP_ANONYMOUS | (a->unit == HUGE ? MAP_HUGETLB : 0);
	if (mmap(r->p, r->bytes, PROT_READ | PROT_WRITE, flags, a->fd, a->fd < 0 ? 0 : off) != r->p)
		return -errno;
	if (a->desc->thp)
		madvise(r->p, r->bytes, MADV_HUGEPAGE);
	return 0;
}

static int op_remap(struct area *a, const struct range *r, struct rng *g)
{
	int err = map_units(a, r);

	if (err)
		fatal("%s: mapping anew: %s", a->desc->name, strerror(-err));
	for (size_t u = r->u; u < r->u + r->n; u++)
		a->u[u].prot = 0;
	track_again(a, r, g);
	return 0;
}

/* The end of the mapping is cut off and grown again in place: it belongs to the registered mapping as before. */
static int op_resize(struct area *a, const struct range *r, struct rng *g)
{
	size_t from = r->u ? r->u - 1 : 0, keep = a->unit, all = a->bytes - from * a->unit;
	char *p = unit_at(a, from);

	if (from + 1 >= a->nr)
		return -EINVAL;
	for (size_t u = from; u < a->nr; u++)
		if (a->u[u].prot)
			return -EBUSY;
	if (chance(g, 50)) {
		if (mremap(p, all, keep, 0) != p)
			return -errno;
	} else if (munmap(p + keep, all - keep)) {
		return -errno;
	}
	if (mremap(p, keep, all, 0) != p) {
		struct range rest = { from + 1, a->nr - from - 1, p + keep, all - keep };
		int err = -errno;

		op_remap(a, &rest, g);
		return err;
	}
	memset(a->seen, 0, a->nr);
	if (scan_units(a, from + 1, a->nr - from - 1, &(struct look){ .mask = PAGE_IS_WRITTEN, .ret = PAGE_IS_WRITTEN }, a->seen) == -EPERM) {
		struct range rest = { from + 1, a->nr - from - 1, p + keep, all - keep };

		track_again(a, &rest, g); /* the kernel does not track what was added */
	}
	return 0;
}

/* ---- userfaultfd */

static int op_resolve(struct area *a, const struct range *r, struct rng *g)
{
	int err = uffd_protect(a, r->p, r->bytes, false);

	(void)g;
	for (size_t u = r->u; !err && u < r->u + r->n; u++)
		set_must(a, u);
	return err;
}

static int op_reregister(struct area *a, const struct range *r, struct rng *g)
{
	int err = uffd_unregister(a, r->p, r->bytes);

	if (err)
		return err;
	if (chance(g, 50))
		op_write(a, r, g);
	if (chance(g, 20))
		op_dontneed(a, r, g);
	track_again(a, r, g);
	return 0;
}

static int make_hole(struct area *a, const struct range *r, struct rng *g)
{
	return a->desc->shared ? op_punch(a, r, g) : sys(madvise(r->p, r->bytes, MADV_DONTNEED));
}

/* The first few units of a range. */
static struct range few(const struct area *a, const struct range *r, struct rng *g)
{
	size_t max = a->unit == PAGE ? (chance(g, 10) ? 64 : 8) : 2, n = below(g, max) + 1;
	struct range f = *r;

	f.n = n < r->n ? n : r->n;
	f.bytes = f.n * a->unit;
	return f;
}

static int copy_in(struct area *a, const struct range *all, struct rng *g, bool wp)
{
	struct range r = few(a, all, g);
	struct uffdio_copy c = { .dst = (uintptr_t)r.p, .src = (uintptr_t)a->tmp, .len = r.bytes, .mode = wp ? UFFDIO_COPY_MODE_WP : 0 };

	if (chance(g, 70))
		make_hole(a, &r, g);
	fill_tmp(a, r.bytes, g);
	if (ioctl(a->uffd, UFFDIO_COPY, &c) && c.copy <= 0)
		return -errno;
	for (size_t u = r.u; u < r.u + (size_t)c.copy / a->unit; u++) {
		a->u[u].must = !wp;
		if (wp) /* whoever asks for a protected copy knows its content */
			memcpy(a->shadow + u * a->unit, a->tmp + (u - r.u) * a->unit, a->unit);
	}
	return 0;
}

static int op_copy(struct area *a, const struct range *r, struct rng *g)
{
	return copy_in(a, r, g, false);
}

static int op_copy_wp(struct area *a, const struct range *r, struct rng *g)
{
	return copy_in(a, r, g, true);
}

static int op_zeropage(struct area *a, const struct range *all, struct rng *g)
{
	struct range r = few(a, all, g);
	struct uffdio_zeropage z = { .range = { (uintptr_t)r.p, r.bytes } };

	if (chance(g, 70))
		make_hole(a, &r, g);
	if (ioctl(a->uffd, UFFDIO_ZEROPAGE, &z) && z.zeropage <= 0)
		return -errno;
	for (size_t u = r.u; u < r.u + (size_t)z.zeropage / a->unit; u++)
		set_must(a, u);
	return 0;
}

static int op_continue(struct area *a, const struct range *all, struct rng *g)
{
	bool wp = chance(g, 50);
	struct range r = few(a, all, g);
	struct uffdio_continue c = { .range = { (uintptr_t)r.p, r.bytes }, .mode = wp ? UFFDIO_CONTINUE_MODE_WP : 0 };

	if (chance(g, 70))
		madvise(r.p, r.bytes, MADV_DONTNEED);
	if (ioctl(a->uffd, UFFDIO_CONTINUE, &c) && c.mapped <= 0)
		return -errno;
	for (size_t u = r.u; u < r.u + (size_t)c.mapped / a->unit; u++) {
		a->u[u].must = !wp;
		a->u[u].unknown |= wp;
	}
	return 0;
}

/* From one part of the area to another, or from memory that is not tracked. */
static int op_move(struct area *a, const struct range *all, struct rng *g)
{
	size_t n = chance(g, 30) && a->nr >= 1024 ? 512 : below(g, 16) + 1, to;
	bool inside = chance(g, 75), holes = chance(g, 70);
	struct move_arg m = { .mode = holes ? MOVE_ALLOW_SRC_HOLES : 0 };
	char *src = all->p;
	int err;

	if (n == 512) {
		size_t skew = ((uintptr_t)a->base / PAGE) % 512, first = skew ? 512 - skew : 0, tables = (a->nr - first) / 512;
		size_t x = below(g, tables), y = below(g, tables);

		if (!tables || x == y)
			return -EINVAL;
		src = unit_at(a, first + x * 512);
		to = first + y * 512;
	} else {
		if (all->u + n > a->nr)
			n = a->nr - all->u;
		to = below(g, a->nr - n + 1);
		if (inside && to < all->u + n && all->u < to + n)
			return -EINVAL;
	}
	m.len = n * PAGE;
	if (!inside) {
		src = a->scratch;
		reserve_again(src, m.len + HUGE);
		if (mprotect(src, m.len, PROT_READ | PROT_WRITE))
			return -errno;
		memset(src, (int)below(g, 255) + 1, m.len);
	}
	m.src = (uintptr_t)src;
	m.dst = (uintptr_t)unit_at(a, to);
	if (chance(g, 80) && madvise(unit_at(a, to), m.len, MADV_DONTNEED))
		return -errno;
	if (chance(g, 30))
		madvise(src, m.len, MADV_PAGEOUT);
	err = sys(ioctl(a->uffd, ORACLE_UFFDIO_MOVE, &m));
	if (!inside)
		reserve_again(src, m.len + HUGE);
	return m.move > 0 ? 0 : err;
}

/* A scan that protects a part of the area before the round ends: what it reported counts, and later changes have to be reported anew. */
static int op_scan(struct area *a, const struct range *r, struct rng *g)
{
	struct look l = { .flags = PM_SCAN_WP_MATCHING, .mask = PAGE_IS_WRITTEN, .ret = PAGE_IS_WRITTEN, .vec_len = (unsigned)below(g, 8) };
	int err;

	memset(a->seen, 0, a->nr);
	err = scan_units(a, r->u, r->n, &l, a->seen);
	if (err)
		fatal("%s: scan of units %zu to %zu: %s", a->desc->name, r->u, r->u + r->n, strerror(-err));
	for (size_t u = r->u; u < r->u + r->n; u++) {
		if (a->seen[u])
			a->u[u].pend = 1;
		else if (a->u[u].must && !a->u[u].unknown)
			continue; /* stays, and is complained of at the end of the round */
		a->u[u].must = 0;
	}
	return 0;
}

/* ---- the machine */

static int op_compact(struct area *a, const struct range *r, struct rng *g)
{
	(void)a;
	(void)r;
	if (!cfg.machine)
		return -EPERM;
	return chance(g, 70) ? write_file("/proc/sys/vm/compact_memory", "1") : write_file("/proc/sys/vm/drop_caches", "3");
}

static char reclaim_path[128];

static int op_reclaim(struct area *a, const struct range *r, struct rng *g)
{
	char text[32];

	(void)a;
	(void)r;
	if (!cfg.machine || !*reclaim_path)
		return -EPERM;
	snprintf(text, sizeof(text), "%u", (unsigned)(below(g, 8 << 20) + PAGE));
	return write_file(reclaim_path, text);
}

static int op_split(struct area *a, const struct range *r, struct rng *g)
{
	char text[96];

	(void)a;
	(void)g;
	if (!cfg.machine)
		return -EPERM;
	snprintf(text, sizeof(text), "%d,0x%" PRIxPTR ",0x%" PRIxPTR, (int)getpid(), (uintptr_t)r->p, (uintptr_t)r->p + r->bytes);
	return write_file("/sys/kernel/debug/split_huge_pages", text);
}

static char swap_path[64];

static int op_swapoff(struct area *a, const struct range *r, struct rng *g)
{
	(void)a;
	(void)r;
	if (!cfg.machine || !*swap_path || !chance(g, 4)) /* takes seconds */
		return -EPERM;
	if (swapoff(swap_path))
		return -errno;
	if (swapon(swap_path, 0))
		fatal("swapon %s: %s", swap_path, strerror(errno));
	return 0;
}

/* The page goes to another frame; the old one is given up, so not too often. */
static int op_offline(struct area *a, const struct range *r, struct rng *g)
{
	static unsigned used;

	(void)g;
	if (!cfg.machine || a->u[r->u].prot || used >= 2000)
		return -EPERM;
	used++;
	return sys(madvise(r->p, a->unit, 101 /* MADV_SOFT_OFFLINE */));
}

/* ---- past the mapping: nobody promises to see these */

static int op_pwrite(struct area *a, const struct range *all, struct rng *g)
{
	struct range r = few(a, all, g);

	fill_tmp(a, PAGE, g);
	for (size_t u = r.u; u < r.u + r.n; u++)
		if (pwrite(a->fd, a->tmp, below(g, PAGE) + 1, (off_t)(a->file_off + u * a->unit)) < 0)
			return -errno;
		else
			a->u[u].unknown = 1;
	return 0;
}

static int op_alias(struct area *a, const struct range *all, struct rng *g)
{
	struct range r = few(a, all, g);
	char *p = mmap(NULL, r.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, a->fd, (off_t)(a->file_off + r.u * a->unit));

	if (p == MAP_FAILED)
		return -errno;
	for (size_t u = r.u; u < r.u + r.n; u++)
		if (!try_set(p + (u - r.u) * a->unit, (int)below(g, 256), 100))
			a->u[u].unknown = 1;
	munmap(p, r.bytes);
	return 0;
}

static int op_punch_bare(struct area *a, const struct range *r, struct rng *g)
{
	(void)g;
	if (fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(a->file_off + r->u * a->unit), (off_t)r->bytes))
		return -errno;
	for (size_t u = r->u; u < r->u + r->n; u++)
		a->u[u].unknown = 1;
	return 0;
}

/* ---- the table */

struct op {
	const char *name;
	unsigned weight;
	uint64_t kinds;
	int (*run)(struct area *a, const struct range *r, struct rng *g);
	bool machine, bypass;
};

static const struct op ops[] = {
	{ "write", 30, K_ANY, op_write, false, false },
	{ "zero", 8, K_ANY, op_zero, false, false },
	{ "read", 10, K_ANY, op_read, false, false },
	{ "vmread", 2, K_ANY, op_vmread, false, false },
	{ "vmwrite", 4, K_ANY, op_vmwrite, false, false },
	{ "sysread", 4, K_ANY, op_sysread, false, false },
	{ "memwrite", 3, K_ANY, op_memwrite, false, false },
	{ "direct", 2, K_ANY, op_direct, false, false },
	{ "dontneed", 12, K_ANY, op_dontneed, false, false },
	{ "free", 6, K_NOFILE, op_free, false, false },
	{ "pageout", 10, K_SMALL, op_pageout, false, false },
	{ "advise", 5, K_ANY, op_advise, false, false },
	{ "collapse", 6, K_SMALL, op_collapse, false, false },
	{ "populate-read", 4, K_ANY, op_populate_read, false, false },
	{ "populate-write", 2, K_ANY, op_populate_write, false, false },
	{ "ksm", 3, K_SMALL & K_PRIVATE, op_ksm, false, false },
	/* Not for files: where locked, a write by the kernel to a hole of the file with a marker never ends (6.12 and 6.18 as they are). */
	{ "lock", 2, ~(KB(K_FILE) | KB(K_FILE_PRIVATE)), op_lock, false, false },
	{ "remove", 5, K_SHARED, op_remove, false, false },
	{ "punch", 6, K_FD, op_punch, false, false },
	{ "punch-read", 5, K_FD, op_punch_read, false, false },
	{ "truncate", 3, K_FD, op_truncate, false, false },
	{ "sync", 2, KB(K_FILE) | KB(K_FILE_PRIVATE), op_sync, false, false },
	{ "mprotect", 6, K_ANY, op_mprotect, false, false },
	{ "protect-stay", 3, K_ANY, op_protect_stay, false, false },
	{ "fork", 3, K_ANY, op_fork, false, false },
	{ "reap", 2, K_ANY, op_reap, false, false },
	{ "dontunmap", 4, K_ANY, op_dontunmap, false, false },
	{ "away", 3, K_ANY, op_away, false, false },
	{ "remap", 2, K_ANY, op_remap, false, false },
	{ "resize", 2, K_SMALL, op_resize, false, false },
	{ "resolve", 3, K_ANY, op_resolve, false, false },
	{ "reregister", 3, K_ANY, op_reregister, false, false },
	{ "copy", 5, K_ANY, op_copy, false, false },
	{ "copy-wp", 4, K_ANY, op_copy_wp, false, false },
	{ "zeropage", 4, K_SMALL, op_zeropage, false, false },
	{ "continue", 3, K_SHARED, op_continue, false, false },
	{ "move", 6, K_NOFILE, op_move, false, false },
	{ "scan", 6, K_ANY, op_scan, false, false },
	{ "compact", 1, K_ANY, op_compact, true, false },
	{ "reclaim", 4, K_SMALL, op_reclaim, true, false },
	{ "split", 3, K_SMALL, op_split, true, false },
	{ "swapoff", 1, K_SMALL, op_swapoff, true, false },
	{ "offline", 1, K_SMALL, op_offline, true, false },
	{ "pwrite", 4, K_FD, op_pwrite, false, true },
	{ "alias", 4, K_FD, op_alias, false, true },
	{ "punch-bare", 4, K_FD, op_punch_bare, false, true },
};

#define NR_OPS (sizeof(ops) / sizeof(*ops))
#define H_REPORTED 250
#define H_BASE 251
#define H_READ 252

static const char *hist_name(unsigned op)
{
	switch (op) {
	case H_REPORTED:
		return "REPORTED";
	case H_BASE:
		return "BASE";
	case H_READ:
		return "looked at";
	default:
		return op < NR_OPS ? ops[op].name : "?";
	}
}

static void note(struct area *a, size_t u, unsigned op, int result)
{
	struct unit *x = &a->u[u];

	x->hist[x->nr % HIST] = (struct hist){ a->round, (uint16_t)a->seq, (uint8_t)op, (int16_t)result };
	x->nr = x->nr == 2 * HIST - 1 ? HIST : x->nr + 1;
}

#endif
