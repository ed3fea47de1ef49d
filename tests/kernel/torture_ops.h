/* SPDX-License-Identifier: MIT */
/*
 * The random operations and the threads of a target that do them.
 *
 * An operation may fail (the memory may be gone, the kernel may not have it): then nothing happened, which is just another state.
 * On areas whose file changes a stock kernel can't report (area_desc.silent) whatever could fill a punched page by reading it runs
 * under the area's lock and leaves such pages alone, unless the area is compared by content (area.bypass) or the kernel is counted on
 * (ctl.exact).
 */
#ifndef TORTURE_OPS_H
#define TORTURE_OPS_H

#include "torture.h"

enum op {
	OP_WRITE_BYTES,
	OP_WRITE_WORD,
	OP_WRITE_PAGE,
	OP_WRITE_EQUAL,
	OP_WRITE_ZERO,
	OP_COPY,
	OP_READ,
	OP_DONTNEED,
	OP_REMOVE,
	OP_PUNCH,
	OP_FREE,
	OP_PAGEOUT,
	OP_COLD,
	OP_COLLAPSE,
	OP_POPULATE_READ,
	OP_POPULATE_WRITE,
	OP_MOVE,
	OP_RESIZE,
	OP_UNMAP,
	OP_REMAP,
	OP_ALIEN,
	OP_PROT_NONE,
	OP_PROT_READ,
	OP_PROT_RW,
	OP_GUARD,
	OP_UNGUARD,
	OP_SYSREAD,
	OP_PWRITE,
	OP_TRUNCATE,
	OP_FORK_EXIT,
	OP_FORK_EXEC,
	OP_BRK,
	OP_HEAL,
	OP_MOVED_TO,
	OP_WINDOW,
	OP_FUZZY_LINK,
	OP_FAILED_LINK,
	NR_OPS
};

static const struct {
	const char *name;
	unsigned weight;
} op_table[NR_OPS] = {
	[OP_WRITE_BYTES] = { "write-bytes", 30 }, [OP_WRITE_WORD] = { "write-word", 20 },
	[OP_WRITE_PAGE] = { "write-page", 15 }, [OP_WRITE_EQUAL] = { "write-equal", 8 },
	[OP_WRITE_ZERO] = { "write-zero", 8 }, [OP_COPY] = { "copy", 5 },
	[OP_READ] = { "read", 15 }, [OP_DONTNEED] = { "dontneed", 12 },
	[OP_REMOVE] = { "remove", 6 }, [OP_PUNCH] = { "punch", 6 },
	[OP_FREE] = { "free", 6 }, [OP_PAGEOUT] = { "pageout", 6 },
	[OP_COLD] = { "cold", 1 }, [OP_COLLAPSE] = { "collapse", 3 },
	[OP_POPULATE_READ] = { "populate-read", 4 }, [OP_POPULATE_WRITE] = { "populate-write", 3 },
	[OP_MOVE] = { "mremap-move", 3 }, [OP_RESIZE] = { "mremap-resize", 2 },
	[OP_UNMAP] = { "munmap", 3 }, [OP_REMAP] = { "munmap+mmap", 4 },
	[OP_ALIEN] = { "mmap-other-kind", 1 }, [OP_PROT_NONE] = { "mprotect-none", 3 },
	[OP_PROT_READ] = { "mprotect-read", 2 }, [OP_PROT_RW] = { "mprotect-rw", 4 },
	[OP_GUARD] = { "guard", 3 }, [OP_UNGUARD] = { "unguard", 3 },
	[OP_SYSREAD] = { "read(2)-into", 5 }, [OP_PWRITE] = { "pwrite(2)", 6 },
	[OP_TRUNCATE] = { "truncate", 1 }, [OP_FORK_EXIT] = { "fork-exit", 1 },
	[OP_FORK_EXEC] = { "fork-exec", 1 }, [OP_BRK] = { "brk", 2 },
	[OP_HEAL] = { "heal", 3 }, [OP_MOVED_TO] = { "mremap-move-to", 0 }, [OP_WINDOW] = { "writer-window", 0 },
	[OP_FUZZY_LINK] = { "fuzzy-link", 0 }, [OP_FAILED_LINK] = { "failed-link", 0 },
};

struct worker {
	struct ctl *ctl;
	unsigned id;
	bool writer;
	uint64_t rng;
	pthread_t thread;
	struct vma_list maps;
	uint8_t *scratch; /* 64 pages */
};

static __thread sigjmp_buf fault_jump;
static __thread volatile sig_atomic_t fault_armed;

static void on_fault(int sig)
{
	if (fault_armed) {
		fault_armed = 0;
		siglongjmp(fault_jump, 1);
	}
	signal(sig, SIG_DFL); /* not ours: happens again and kills */
}

static void catch_faults(void)
{
	struct sigaction sa = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };

	sigemptyset(&sa.sa_mask);
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
}

/* memcpy() between memory of which either may fault: 0 or -EFAULT, a part may have been copied. */
static int try_copy(void *to, const void *from, size_t len)
{
	if (sigsetjmp(fault_jump, 0))
		return -EFAULT;
	fault_armed = 1;
	atomic_signal_fence(memory_order_seq_cst);
	memcpy(to, from, len);
	atomic_signal_fence(memory_order_seq_cst);
	fault_armed = 0;
	return 0;
}

static int try_fill(void *to, uint64_t word, size_t words)
{
	volatile uint64_t *p = to;

	if (sigsetjmp(fault_jump, 0))
		return -EFAULT;
	fault_armed = 1;
	atomic_signal_fence(memory_order_seq_cst);
	for (size_t i = 0; i < words; i++)
		p[i] = word;
	atomic_signal_fence(memory_order_seq_cst);
	fault_armed = 0;
	return 0;
}

static struct log_entry *log_op(struct worker *w, struct area *a, uint32_t op, uint64_t page, uint64_t nr)
{
	struct log_entry *e = &a->log[atomic_fetch_add(&a->log_next, 1) % LOG_RING];

	e->seq = 0; /* an entry being written is not printed */
	e->op = op;
	e->page = (uint32_t)page;
	e->nr = (uint32_t)nr;
	e->epoch = atomic_load(&w->ctl->epoch);
	e->worker = w->id;
	e->result = 1;
	e->seq = atomic_fetch_add(&w->ctl->seq, 1) + 1;
	return e;
}

/* ---- pages that reading must not fill ------------------------------------------------------------------------- */

static bool pwrite_is_silent(const struct area *a)
{
	return area_desc(a)->silent && !a->bypass;
}

/* Of punched holes that a read fills again. */
static bool is_silent(const struct worker *w, const struct area *a)
{
	return pwrite_is_silent(a) && !w->ctl->exact;
}

static void mark_punched(struct worker *w, struct area *a, uint64_t p, uint64_t n)
{
	/* Two more than now: a thread may be stopped over a link between here and its system call. */
	for (uint64_t i = p; i < p + n && i < area_units(a); i++)
		atomic_store(&a->punched[i], atomic_load(&w->ctl->epoch) + 3);
}

/* The same for a part of the file, wherever in the slot it is mapped by now. With the area's lock held. */
static void mark_punched_file(struct worker *w, struct area *a, uint64_t off, uint64_t len)
{
	if (!is_silent(w, a))
		return;
	if (vma_list_read(&w->maps, "/proc/self/maps", a->start, a->end)) {
		mark_punched(w, a, 0, area_units(a));
		return;
	}
	for (const struct vma *v = w->maps.v; v < w->maps.v + w->maps.nr; v++) {
		uint64_t s = v->offset > off ? v->offset : off, e = v->offset + (v->end - v->start);

		e = e < off + len ? e : off + len;
		if (v->ino == a->ino && s < e && v->start + (s - v->offset) >= a->start)
			mark_punched(w, a, (v->start + (s - v->offset) - a->start) / a->unit, (e - s) / a->unit);
	}
}

/* With the area's lock held. */
static bool may_fill(struct worker *w, struct area *a, uint64_t p, uint64_t n)
{
	if (!is_silent(w, a))
		return true;
	for (uint64_t i = p; i < p + n && i < area_units(a); i++)
		if (atomic_load(&a->punched[i]) > atomic_load(&w->ctl->epoch))
			return false;
	return true;
}

/* ---- where ---------------------------------------------------------------------------------------------------- */

static void pick(struct worker *w, struct area *a, uint64_t *page, uint64_t *nr)
{
	uint64_t units = area_units(a), r = rng(&w->rng), max = a->unit == HUGE ? 2 : 64, h;

	*nr = (r & 15) < 8 ? 1 : (r & 15) < 13 ? 1 + (r >> 4) % 4 : (r & 15) < 15 ? 1 + (r >> 4) % 16 : 1 + (r >> 4) % 64;
	if (*nr > max)
		*nr = max;
	if ((r >> 20) % 5 < 3) {
		h = w->ctl->seed * 31 + atomic_load(&w->ctl->epoch) / 2 * 977 + a->kind * 7 + (r >> 24) % 6;
		*page = rng(&h) % units + (r >> 32) % 8;
	} else {
		*page = (r >> 24) % units;
	}
	if (*page >= units)
		*page = units - 1;
	if (*page + *nr > units)
		*nr = units - *page;
}

static void *at(const struct area *a, uint64_t page)
{
	return (void *)(a->start + page * a->unit);
}

/* ---- plain accesses ------------------------------------------------------------------------------------------- */

static int do_write(struct worker *w, struct area *a, unsigned op, uint64_t p, uint64_t n)
{
	uint64_t r = rng(&w->rng), len, i;
	char *to = at(a, p);
	int err = 0;

	if (a->unit == HUGE) { /* some 4 KiB of the huge page */
		to += (r >> 40) % 512 * TP;
		n = 1;
	}
	for (i = 0; i < n && !err; i++, to += TP) {
		switch (op) {
		case OP_WRITE_BYTES:
			len = 1 + r % 200;
			for (uint64_t k = 0; k < len; k++)
				w->scratch[k] = (uint8_t)rng(&w->rng);
			err = try_copy(to + (r >> 8) % (TP - 200), w->scratch, len);
			break;
		case OP_WRITE_WORD:
			err = try_fill(to + (r >> 8) % 512 * 8, rng(&w->rng), 1);
			break;
		case OP_WRITE_PAGE:
			for (uint64_t k = 0; k < 512; k++)
				((uint64_t *)w->scratch)[k] = rng(&w->rng);
			err = try_copy(to, w->scratch, TP);
			break;
		case OP_WRITE_EQUAL:
			err = try_fill(to, 0x1111111111111111ull * (1 + r % 4), 512);
			break;
		default:
			err = try_fill(to, 0, 512);
		}
	}
	return err;
}

static int do_read(struct worker *w, struct area *a, uint64_t p, uint64_t n)
{
	int r = -EAGAIN;

	if (is_silent(w, a))
		pthread_mutex_lock(&a->lock);
	if (may_fill(w, a, p, n))
		for (uint64_t i = 0; i < n; i++)
			r = try_copy(w->scratch, (char *)at(a, p + i) + rng_below(&w->rng, a->unit / 8) * 8, 8);
	if (is_silent(w, a))
		pthread_mutex_unlock(&a->lock);
	return r;
}

static int do_copy(struct worker *w, struct area *a, uint64_t p)
{
	uint64_t from = rng_below(&w->rng, area_units(a));
	int r = -EAGAIN;

	if (is_silent(w, a))
		pthread_mutex_lock(&a->lock);
	if (may_fill(w, a, from, 1))
		r = try_copy(w->scratch, at(a, from), TP);
	if (is_silent(w, a))
		pthread_mutex_unlock(&a->lock);
	return r ? r : try_copy(at(a, p), w->scratch, TP);
}

static int do_sysread(struct worker *w, struct area *a, uint64_t p, uint64_t n)
{
	int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	uint64_t skip = rng_below(&w->rng, TP), len = n * TP - skip;
	ssize_t r;

	if (fd < 0)
		return -errno;
	r = read(fd, (char *)at(a, p) + skip, len);
	close(fd);
	return r < 0 ? -EFAULT : 0;
}

/* ---- advice --------------------------------------------------------------------------------------------------- */

static int do_madvise(struct worker *w, struct area *a, unsigned op, uint64_t p, uint64_t n)
{
	static const int advice[NR_OPS] = {
		[OP_DONTNEED] = MADV_DONTNEED, [OP_REMOVE] = MADV_REMOVE, [OP_FREE] = MADV_FREE,
		[OP_PAGEOUT] = MADV_PAGEOUT, [OP_COLD] = MADV_COLD, [OP_COLLAPSE] = MADV_COLLAPSE,
		[OP_POPULATE_READ] = MADV_POPULATE_READ, [OP_POPULATE_WRITE] = MADV_POPULATE_WRITE,
		[OP_GUARD] = MADV_GUARD_INSTALL, [OP_UNGUARD] = MADV_GUARD_REMOVE,
	};
	bool fills = op == OP_COLLAPSE || op == OP_POPULATE_READ;
	bool punches = op == OP_REMOVE || (op == OP_DONTNEED && a->unit == HUGE);
	int r = -EAGAIN;

	if (op == OP_COLLAPSE) {
		p &= ~511ull;
		n = 512;
		if (p + n > area_units(a))
			return -EAGAIN;
	}
	if (is_silent(w, a) && (fills || punches))
		pthread_mutex_lock(&a->lock);
	if (punches)
		mark_punched(w, a, p, n);
	if (!fills || may_fill(w, a, p, n))
		r = madvise(at(a, p), n * a->unit, advice[op]) ? -errno : 0;
	if (is_silent(w, a) && (fills || punches))
		pthread_mutex_unlock(&a->lock);
	return r;
}

/* ---- the file behind ------------------------------------------------------------------------------------------ */

static int do_punch(struct worker *w, struct area *a, uint64_t p, uint64_t n)
{
	int r;

	pthread_mutex_lock(&a->lock);
	mark_punched_file(w, a, p * a->unit, n * a->unit);
	r = fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(p * a->unit), (off_t)(n * a->unit));
	r = r ? -errno : 0;
	pthread_mutex_unlock(&a->lock);
	return r;
}

static int do_pwrite(struct worker *w, struct area *a, uint64_t p, uint64_t n)
{
	uint64_t skip = rng_below(&w->rng, TP), len = n * TP - skip;

	for (uint64_t k = 0; k < len / 8; k++)
		((uint64_t *)w->scratch)[k] = rng(&w->rng);
	return pwrite(a->fd, w->scratch, len / 8 * 8, (off_t)(p * TP + skip)) < 0 ? -errno : 0;
}

static int do_truncate(struct worker *w, struct area *a, uint64_t n)
{
	int r;

	pthread_mutex_lock(&a->lock);
	r = ftruncate(a->fd, (off_t)(file_bytes(a) - n * a->unit)) ? -errno : 0;
	if (rng_below(&w->rng, 3))
		r = ftruncate(a->fd, (off_t)file_bytes(a)) ? -errno : r;
	pthread_mutex_unlock(&a->lock);
	return r;
}

/* ---- mappings; all with the area's lock held ------------------------------------------------------------------- */

/*
 * Whether mapping [off, off + len) of the file at addr would show a part of it twice in the slot. What is written through a second mapping
 * that comes and goes between two links nobody sees, and a punched page can be filled through it; bypass_test has what can be seen.
 */
static bool would_alias(struct worker *w, struct area *a, uint64_t addr, uint64_t off, uint64_t len)
{
	struct vma *v;

	if (!area_desc(a)->file)
		return false;
	if (vma_list_read(&w->maps, "/proc/self/maps", a->start, a->end))
		return true;
	for (v = w->maps.v; v < w->maps.v + w->maps.nr; v++) {
		uint64_t s = v->start, e = v->end;

		if (v->ino != a->ino)
			continue;
		if (s >= addr && e <= addr + len)
			continue; /* will be replaced */
		if (v->offset < off + len && v->offset + (e - s) > off && !(s < addr + len && e > addr && v->offset - s == off - addr))
			return true;
	}
	return false;
}

static int map_piece(struct worker *w, struct area *a, uint64_t addr, uint64_t len)
{
	uint64_t off = addr - a->start;

	if (would_alias(w, a, addr, off, len))
		return -EAGAIN;
	return area_map(a, addr, len, off, MAP_FIXED);
}

static int do_move(struct worker *w, struct area *a, uint64_t p, uint64_t n)
{
	uint64_t to = rng_below(&w->rng, area_units(a) - n + 1), len = n * a->unit;
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;

	if (to < p + n && p < to + n)
		return -EAGAIN;
	if (!area_desc(a)->file && !area_desc(a)->shared && rng_below(&w->rng, 3) == 0)
		flags |= 4; /* MREMAP_DONTUNMAP */
	/* What was punched moves along, and reading it in its new place fills it. */
	mark_punched(w, a, to, n);
	mark_punched(w, a, p, n);
	log_op(w, a, OP_MOVED_TO, to, n);
	return mremap(at(a, p), len, len, flags, at(a, to)) == MAP_FAILED ? -errno : 0;
}

static int do_resize(struct worker *w, struct area *a, uint64_t p, uint64_t n)
{
	uint64_t less = n > 1 ? 1 + rng_below(&w->rng, n - 1) : 0;

	if (!less)
		return -EAGAIN;
	if (mremap(at(a, p), n * a->unit, less * a->unit, 0) == MAP_FAILED)
		return -errno;
	/* A file's next part may be mapped elsewhere by now. */
	if (area_desc(a)->file || area_desc(a)->shared || rng_below(&w->rng, 4) == 0)
		return 0;
	return mremap(at(a, p), less * a->unit, n * a->unit, 0) == MAP_FAILED ? -errno : 0;
}

static int do_alien(struct area *a, uint64_t p, uint64_t n)
{
	void *r = mmap(at(a, p), n * a->unit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	return r == MAP_FAILED ? -errno : 0;
}

static int do_remap(struct worker *w, struct area *a, uint64_t p, uint64_t n)
{
	uint64_t addr = (uint64_t)at(a, p), len = n * a->unit;

	if (would_alias(w, a, addr, addr - a->start, len))
		return -EAGAIN;
	if (rng(&w->rng) & 1)
		munmap((void *)addr, len);
	return area_map(a, addr, len, addr - a->start, MAP_FIXED);
}

static int do_heal(struct worker *w, struct area *a)
{
	uint64_t end = a->start;
	struct stat st;

	if (a->fd >= 0 && fstat(a->fd, &st) == 0 && (uint64_t)st.st_size != file_bytes(a) && ftruncate(a->fd, (off_t)file_bytes(a)))
		return -errno;
	if (rng_below(&w->rng, 4) == 0 && a->kind != AREA_BRK)
		return area_map(a, a->start, a->end - a->start, 0, MAP_FIXED);
	if (a->unit == TP)
		madvise((void *)a->start, a->end - a->start, MADV_GUARD_REMOVE);
	if (vma_list_read(&w->maps, "/proc/self/maps", a->start, a->end))
		return -EIO;
	for (unsigned i = 0; i <= w->maps.nr; i++) {
		uint64_t s = i < w->maps.nr ? w->maps.v[i].start : a->end, e = i < w->maps.nr ? w->maps.v[i].end : a->end;

		if (s > end && a->kind != AREA_BRK) {
			map_piece(w, a, end, s - end);
			/* map_piece() read the list again: from the start. */
			if (vma_list_read(&w->maps, "/proc/self/maps", a->start, a->end))
				return -EIO;
			for (i = 0; i < w->maps.nr && w->maps.v[i].start < s; i++)
				;
		} else if (s > end && end < (uint64_t)sbrk(0)) {
			do_alien(a, (end - a->start) / TP, (s - end) / TP);
		}
		if (s < a->end)
			mprotect((void *)(s < a->start ? a->start : s), (e > a->end ? a->end : e) - (s < a->start ? a->start : s),
				 PROT_READ | PROT_WRITE);
		end = e > end ? e : end;
	}
	return 0;
}

static int do_mapping(struct worker *w, struct area *a, unsigned op, uint64_t p, uint64_t n)
{
	int r;

	pthread_mutex_lock(&a->lock);
	switch (op) {
	case OP_MOVE:
		r = do_move(w, a, p, n);
		break;
	case OP_RESIZE:
		r = do_resize(w, a, p, n);
		break;
	case OP_UNMAP:
		r = munmap(at(a, p), n * a->unit) ? -errno : 0;
		break;
	case OP_REMAP:
		r = do_remap(w, a, p, n);
		break;
	case OP_ALIEN:
		r = do_alien(a, p, n);
		break;
	default:
		r = do_heal(w, a);
	}
	pthread_mutex_unlock(&a->lock);
	return r;
}

static int do_mprotect(struct area *a, unsigned op, uint64_t p, uint64_t n)
{
	int prot = op == OP_PROT_NONE ? PROT_NONE : op == OP_PROT_READ ? PROT_READ : PROT_READ | PROT_WRITE;

	return mprotect(at(a, p), n * a->unit, prot) ? -errno : 0;
}

/* ---- processes, heap ------------------------------------------------------------------------------------------ */

static int do_fork(bool exec)
{
	pid_t pid;

	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		char *const argv[] = { "/bin/true", NULL };

		if (exec)
			execv(argv[0], argv);
		_exit(0);
	}
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	return 0;
}

static int do_brk(struct worker *w, struct area *a)
{
	uint64_t n = (1 + rng_below(&w->rng, 32)) * TP;
	int r = -EAGAIN;

	pthread_mutex_lock(&a->lock);
	if ((uint64_t)sbrk(0) <= a->end) { /* nobody's heap is behind ours: up and down inside the slot */
		if ((uint64_t)sbrk(0) - n > a->start + (a->end - a->start) / 2)
			r = sbrk(-(intptr_t)n) == (void *)-1 ? -errno : 0;
		if (rng_below(&w->rng, 4))
			r = sbrk((intptr_t)(a->end - (uint64_t)sbrk(0))) == (void *)-1 ? -errno : r;
	}
	pthread_mutex_unlock(&a->lock);
	return r;
}

/* ---- one step ------------------------------------------------------------------------------------------------- */

/*
 * Changes of a file that inotify reports make the library compare all of it, which would hide what else goes wrong: only
 * between some links.
 */
static bool op_is_reported(const struct area *a, unsigned op)
{
	return op == OP_TRUNCATE || op == OP_PWRITE || ((op == OP_PUNCH || op == OP_REMOVE) && !area_desc(a)->silent);
}

/* So do new mappings, of what is mapped. Huge pages are few, and each such operation hits most of them. */
static bool op_maps(unsigned op)
{
	return op == OP_MOVE || op == OP_RESIZE || op == OP_UNMAP || op == OP_REMAP || op == OP_ALIEN || op == OP_HEAL;
}

static bool op_fits(const struct ctl *ctl, const struct area *a, unsigned op)
{
	const struct area_desc *d = area_desc(a);
	uint32_t epoch = atomic_load(&ctl->epoch);

	if (op_maps(op) && epoch % (a->unit == HUGE ? 4 : 2))
		return false;
	if (ctl->forbidden >> op & 1)
		return false;
	if (op_is_reported(a, op) && (epoch + a->kind) % 3)
		return false;
	switch (op) {
	case OP_FREE:
	case OP_PAGEOUT:
	case OP_COLD:
	case OP_COLLAPSE:
	case OP_ALIEN:
		return a->unit == TP;
	case OP_GUARD:
	case OP_UNGUARD:
		/*
		 * Linux 6.18 never returns from MADV_GUARD_INSTALL over a page that holds a userfaultfd marker: the zap that is to empty it
		 * leaves the marker. Where a file is behind, protected memory has markers.
		 */
		return a->unit == TP && !d->file && !d->shared;
	case OP_REMOVE:
		return d->shared;
	case OP_PUNCH:
	case OP_TRUNCATE:
		return d->file;
	case OP_PWRITE:
		return d->file && a->unit == TP && !pwrite_is_silent(a);
	case OP_BRK:
		return a->kind == AREA_BRK;
	case OP_MOVE:
	case OP_RESIZE:
	case OP_UNMAP:
	case OP_REMAP:
		return a->kind != AREA_BRK;
	default:
		return true;
	}
}

static unsigned pick_op(struct worker *w)
{
	static unsigned total;
	unsigned r, op, sum = 0;

	if (!total) {
		for (op = 0; op < NR_OPS; op++)
			sum += op_table[op].weight;
		total = sum;
	}
	r = (unsigned)rng_below(&w->rng, total);
	for (op = 0; r >= op_table[op].weight; op++)
		r -= op_table[op].weight;
	return op;
}

static int do_op(struct worker *w, struct area *a, unsigned op, uint64_t p, uint64_t n)
{
	switch (op) {
	case OP_WRITE_BYTES:
	case OP_WRITE_WORD:
	case OP_WRITE_PAGE:
	case OP_WRITE_EQUAL:
	case OP_WRITE_ZERO:
		return do_write(w, a, op, p, n);
	case OP_COPY:
		return do_copy(w, a, p);
	case OP_READ:
		return do_read(w, a, p, n);
	case OP_PUNCH:
		return do_punch(w, a, p, n);
	case OP_MOVE:
	case OP_RESIZE:
	case OP_UNMAP:
	case OP_REMAP:
	case OP_ALIEN:
	case OP_HEAL:
		return do_mapping(w, a, op, p, n);
	case OP_PROT_NONE:
	case OP_PROT_READ:
	case OP_PROT_RW:
		return do_mprotect(a, op, p, n);
	case OP_SYSREAD:
		return do_sysread(w, a, p, n);
	case OP_PWRITE:
		return do_pwrite(w, a, p, n);
	case OP_TRUNCATE:
		return do_truncate(w, a, n);
	case OP_FORK_EXIT:
	case OP_FORK_EXEC:
		return do_fork(op == OP_FORK_EXEC);
	case OP_BRK:
		return do_brk(w, a);
	default:
		return do_madvise(w, a, op, p, n);
	}
}

static void step(struct worker *w)
{
	struct area *a = &w->ctl->areas[rng_below(&w->rng, w->ctl->nr_areas)];
	unsigned op = pick_op(w);
	struct log_entry *e;
	uint64_t p, n;

	while (!op_fits(w->ctl, a, op))
		op = pick_op(w);
	pick(w, a, &p, &n);
	e = log_op(w, a, op, p, n);
	e->result = do_op(w, a, op, p, n);
	if (e->result == 0)
		atomic_fetch_add(&w->ctl->done[op], 1);
	atomic_fetch_add(&w->ctl->steps, 1);
}

/* A thread that only writes, always, in a window of its own that moves with each link. */
static void write_window(struct worker *w, uint32_t *epoch)
{
	struct area *a = &w->ctl->areas[(w->id + *epoch) % w->ctl->nr_areas];
	uint32_t now = atomic_load(&w->ctl->epoch);
	uint64_t h = w->ctl->seed + w->id * 101 + *epoch, page = rng(&h) % area_units(a), nr = 12, p;

	if (now != *epoch) {
		*epoch = now;
		return;
	}
	if (page + nr > area_units(a))
		nr = area_units(a) - page;
	if (w->rng % 512 == 0)
		log_op(w, a, OP_WINDOW, page, nr);
	for (unsigned i = 0; i < 64; i++) {
		p = page + rng_below(&w->rng, nr);
		try_fill((char *)at(a, p) + rng_below(&w->rng, a->unit / 8) * 8, rng(&w->rng), 1);
	}
}

static void park_here(struct ctl *ctl)
{
	atomic_fetch_add(&ctl->parked, 1);
	while (atomic_load(&ctl->park) && !atomic_load(&ctl->stop))
		usleep(20);
	atomic_fetch_sub(&ctl->parked, 1);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct ctl *ctl = w->ctl;
	uint32_t epoch = 0;

	while (!atomic_load(&ctl->stop)) {
		if (atomic_load(&ctl->park)) {
			park_here(ctl);
			continue;
		}
		if (w->writer)
			write_window(w, &epoch);
		else if (atomic_load(&ctl->steps) < atomic_load(&ctl->step_limit))
			step(w);
		else
			usleep(50);
	}
	return NULL;
}

static int workers_start(struct ctl *ctl, struct worker *ws)
{
	for (unsigned i = 0; i < ctl->nr_workers; i++) {
		struct worker *w = &ws[i];

		w->ctl = ctl;
		w->id = i;
		w->writer = i < ctl->nr_writers;
		w->rng = ctl->seed * 0x2545f4914f6cdd1dull + i + 1;
		w->scratch = mmap(NULL, 64 * TP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (w->scratch == MAP_FAILED || vma_list_init(&w->maps))
			return -ENOMEM;
		if (pthread_create(&w->thread, NULL, worker_main, w))
			return -EAGAIN;
	}
	return 0;
}

static void workers_join(struct ctl *ctl, struct worker *ws)
{
	atomic_store(&ctl->stop, 1);
	for (unsigned i = 0; i < ctl->nr_workers; i++) {
		pthread_join(ws[i].thread, NULL);
		munmap(ws[i].scratch, 64 * TP);
		munmap(ws[i].maps.v, ws[i].maps.max * sizeof(struct vma));
		munmap(ws[i].maps.text, ws[i].maps.text_size);
	}
}

#endif
