/* SPDX-License-Identifier: MIT */
/*
 * The events. Each does one thing to the subject and keeps the account of what the mapping shows afterwards. Those that the kernel may
 * or may not do (reclaim, merge, migration) are repeated until it did, or the cell is n/a and says why.
 */
#define _GNU_SOURCE
#include "semantics.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- which kinds an event is for */

static bool normal(const struct kind *k)
{
	return !(k->flags & K_SMALL);
}
/* What is done to one page only. */
static bool by_page(const struct kind *k)
{
	return normal(k) && !(k->flags & K_PMD);
}
static bool by_page_not_hugetlb(const struct kind *k)
{
	return by_page(k) && !(k->flags & K_HUGETLB);
}
/* The kernel does not write for others where a shared mapping may not be written. */
static bool by_page_private(const struct kind *k)
{
	return by_page_not_hugetlb(k) && !(k->flags & K_SHARED);
}
static bool anon(const struct kind *k)
{
	return normal(k) && !(k->flags & (K_FILE | K_HUGETLB));
}
static bool anon_4k(const struct kind *k)
{
	return anon(k) && !(k->flags & K_THP);
}
static bool not_hugetlb(const struct kind *k)
{
	return normal(k) && !(k->flags & K_HUGETLB);
}
static bool file(const struct kind *k)
{
	return normal(k) && (k->flags & K_FILE);
}
static bool file_shared(const struct kind *k)
{
	return file(k) && (k->flags & K_SHARED);
}
static bool file_pwrite(const struct kind *k)
{
	return file(k) && !(k->flags & K_HUGETLB);
}
static bool file_by_page(const struct kind *k)
{
	return file_pwrite(k) && !(k->flags & K_PMD);
}
static bool small(const struct kind *k)
{
	return k->flags & K_SMALL;
}
/* One page of a huge page can't be the only missing one of it. */
static bool fillable_anon(const struct kind *k)
{
	return normal(k) && (k->flags & (K_THP | K_PMD)) != K_THP && !(k->flags & K_DISK) &&
	       (k->flags & (K_FILE | K_SHARED)) != (K_FILE | K_SHARED);
}
static bool fillable_file(const struct kind *k)
{
	return file_shared(k) && (k->flags & (K_THP | K_PMD)) != K_THP && !(k->flags & K_DISK);
}
static bool fillable(const struct kind *k)
{
	return fillable_anon(k) || fillable_file(k);
}
static bool zeroable_anon(const struct kind *k)
{
	return fillable_anon(k) && !(k->flags & K_HUGETLB);
}

/* ---- plain accesses */

static void ev_nothing(struct cell *c)
{
	(void)c;
}

static void ev_read(struct cell *c)
{
	touch(c, c->s0, c->s1);
}

static void ev_write(struct cell *c)
{
	put(c, c->s0, c->s1, 4);
}

static void ev_write_byte(struct cell *c)
{
	touch(c, c->s0, c->s0 + 1);
	put(c, c->s0, c->s0 + 1, 4);
}

static void ev_sys_read(struct cell *c)
{
	static unsigned char b[PG];
	int p[2];

	fill(b, c->s0, 4);
	if (pipe(p) != 0 || write(p[1], b, PG) != (ssize_t)PG || read(p[0], sub(c), PG) != (ssize_t)PG)
		cell_error(c, "read(2)");
	wrote(c, c->s0, c->s0 + 1, 4);
}

static void ev_direct_read(struct cell *c)
{
	static unsigned char b[PG] __attribute__((aligned(4096)));
	char path[64];
	int fd = opt.disk < 0 ? -1 : openat(opt.disk, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600), direct;

	if (fd < 0)
		cell_na(c, "no disk file system, see --disk");
	fill(b, c->s0, 4);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (direct < 0 || write(fd, b, PG) != (ssize_t)PG || fsync(fd) != 0)
		cell_na(c, "O_DIRECT: %s", strerror(errno));
	if (read(direct, sub(c), PG) != (ssize_t)PG)
		cell_error(c, "O_DIRECT");
	wrote(c, c->s0, c->s0 + 1, 4);
}

static void ev_vm_writev(struct cell *c)
{
	static unsigned char b[PG];
	struct iovec local = {b, PG}, remote = {sub(c), PG};

	fill(b, c->s0, 4);
	if (process_vm_writev(getpid(), &local, 1, &remote, 1, 0) != (ssize_t)PG)
		cell_error(c, "process_vm_writev");
	wrote(c, c->s0, c->s0 + 1, 4);
}

/* What a debugger does: write to memory that its owner may only read. */
static void ev_forced_write(struct cell *c)
{
	static unsigned char b[PG];
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

	fill(b, c->s0, 4);
	if (mprotect(sub(c), sub_len(c), PROT_READ) != 0)
		cell_error(c, "mprotect");
	if (pwrite(fd, b, PG, (off_t)(uintptr_t)sub(c)) != (ssize_t)PG)
		cell_na(c, "/proc/self/mem: %s", strerror(errno));
	wrote(c, c->s0, c->s0 + 1, 4);
	if (mprotect(sub(c), sub_len(c), PROT_READ | PROT_WRITE) != 0)
		cell_error(c, "mprotect");
}

static void ev_populate_read(struct cell *c)
{
	advise(c, sub(c), sub_len(c), MADV_POPULATE_READ);
}

static void ev_populate_write(struct cell *c)
{
	advise(c, sub(c), sub_len(c), MADV_POPULATE_WRITE);
}

static void ev_mlock(struct cell *c)
{
	if (mlock(sub(c), sub_len(c)) != 0 || munlock(sub(c), sub_len(c)) != 0)
		cell_error(c, "mlock");
}

static void ev_msync(struct cell *c)
{
	if (msync(c->map, c->size, MS_SYNC) != 0)
		cell_error(c, "msync");
}

/* ---- protection of the VMA */

static void ev_mprotect_read(struct cell *c)
{
	if (mprotect(sub(c), sub_len(c), PROT_READ) != 0)
		cell_error(c, "mprotect");
	touch(c, c->s0, c->s1);
	if (mprotect(sub(c), sub_len(c), PROT_READ | PROT_WRITE) != 0)
		cell_error(c, "mprotect");
}

static void ev_mprotect_none(struct cell *c)
{
	if (mprotect(sub(c), sub_len(c), PROT_NONE) != 0 || mprotect(sub(c), sub_len(c), PROT_READ | PROT_WRITE) != 0)
		cell_error(c, "mprotect");
}

static void ev_mprotect_write(struct cell *c)
{
	ev_mprotect_read(c);
	put(c, c->s0, c->s1, 4);
}

/* ---- fork */

static void join(struct cell *c, pid_t pid)
{
	int st;

	if (waitpid(pid, &st, 0) != pid || !WIFEXITED(st) || WEXITSTATUS(st))
		cell_fault(c, "!child");
}

/* The child has the content and no tracking. It must not say anything of its own: only its exit is looked at. */
static void ev_fork(struct cell *c)
{
	static uint8_t out[MAX_PAGES];
	pid_t pid = fork();

	if (pid < 0)
		cell_error(c, "fork");
	if (!pid) {
		int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), r;

		c->pagemap = fd;
		r = scan(c, c->map, c->size, PM_SCAN_CHECK_WPASYNC, PAGE_IS_WRITTEN, PAGE_IS_WRITTEN, out);
		_exit(r != -EPERM || memcmp(c->map, c->now, c->size) != 0);
	}
	join(c, pid);
}

static void ev_fork_child_writes(struct cell *c)
{
	pid_t pid = fork();

	if (pid < 0)
		cell_error(c, "fork");
	if (!pid) {
		put(c, c->s0, c->s1, 5);
		_exit(memcmp(sub(c), c->now + c->s0 * PG, sub_len(c)) != 0);
	}
	join(c, pid);
	if (c->kind->flags & K_SHARED)
		wrote(c, c->s0, c->s1, 5);
}

static void with_child(struct cell *c, void (*what)(struct cell *c))
{
	int p[2];
	char b;
	pid_t pid;

	if (pipe(p) != 0 || (pid = fork()) < 0)
		cell_error(c, "fork");
	if (!pid) {
		bool same;

		close(p[1]);
		if (read(p[0], &b, 1) != 0)
			_exit(1);
		same = memcmp(sub(c), c->now + c->s0 * PG, sub_len(c)) == 0;
		_exit(same || (c->kind->flags & K_SHARED) ? 0 : 1);
	}
	close(p[0]);
	what(c);
	close(p[1]);
	join(c, pid);
}

static void ev_fork_parent_writes(struct cell *c)
{
	with_child(c, ev_write);
}

/* ---- zaps */

static void ev_dontneed(struct cell *c)
{
	advise(c, sub(c), sub_len(c), MADV_DONTNEED);
	zapped(c, c->s0, c->s1);
}

static void ev_dontneed_read(struct cell *c)
{
	ev_dontneed(c);
	touch(c, c->s0, c->s1);
}

static void ev_dontneed_write(struct cell *c)
{
	ev_dontneed(c);
	put(c, c->s0, c->s1, 4);
}

static void ev_fork_dontneed(struct cell *c)
{
	with_child(c, ev_dontneed);
}

static void ev_remove(struct cell *c)
{
	advise(c, sub(c), sub_len(c), MADV_REMOVE);
	file_put(c, c->s0, c->s1, 0);
}

static void ev_remove_read(struct cell *c)
{
	ev_remove(c);
	touch(c, c->s0, c->s1);
}

static void ev_punch(struct cell *c)
{
	if (fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(c->s0 * PG), (off_t)sub_len(c)) != 0)
		cell_error(c, "fallocate");
	/* hugetlbfs takes the private copies along. */
	if (c->kind->flags & K_HUGETLB)
		memset(c->cow + c->s0, 0, c->s1 - c->s0);
	file_put(c, c->s0, c->s1, 0);
}

static void ev_punch_read(struct cell *c)
{
	ev_punch(c);
	touch(c, c->s0, c->s1);
}

static void ev_punch_write(struct cell *c)
{
	ev_punch(c);
	put(c, c->s0, c->s1, 4);
}

/* Down to the subject's begin and up again; what lies behind it goes as well, private copies included. */
static void ev_truncate(struct cell *c)
{
	size_t n = c->size / PG;

	if (ftruncate(c->fd, (off_t)(c->s0 * PG)) != 0 || ftruncate(c->fd, (off_t)c->size) != 0)
		cell_error(c, "ftruncate");
	memset(c->cow + c->s0, 0, n - c->s0);
	file_put(c, c->s0, n, 0);
	c->s1 = n;
}

static void ev_truncate_read(struct cell *c)
{
	ev_truncate(c);
	touch(c, c->s0, c->s1);
}

/* ---- reclaim */

static void ev_pageout(struct cell *c)
{
	if (!pageout(c, sub(c), sub_len(c)))
		cell_na(c, "not paged out; is there swap?");
}

static void ev_pageout_read(struct cell *c)
{
	ev_pageout(c);
	touch(c, c->s0, c->s1);
}

static void ev_read_pageout(struct cell *c)
{
	touch(c, c->s0, c->s1);
	ev_pageout(c);
}

static void ev_cold(struct cell *c)
{
	advise(c, sub(c), sub_len(c), MADV_COLD);
}

/* What was in swap is gone at once, and what was in memory goes when the kernel wants it. */
static void free_account(struct cell *c)
{
	if (c->state == ST_OUT_CLEAN || c->state == ST_OUT_WRITTEN)
		zapped(c, c->s0, c->s1);
}

static void ev_free(struct cell *c)
{
	advise(c, sub(c), sub_len(c), MADV_FREE);
	free_account(c);
}

static void ev_free_write(struct cell *c)
{
	ev_free(c);
	put(c, c->s0, c->s1, 4);
}

static void ev_free_reclaimed(struct cell *c)
{
	advise(c, sub(c), sub_len(c), MADV_FREE);
	if (c->state == ST_CLEAN || c->state == ST_WRITTEN)
		ev_pageout(c);
	zapped(c, c->s0, c->s1);
}

static void ev_free_reclaimed_read(struct cell *c)
{
	ev_free_reclaimed(c);
	touch(c, c->s0, c->s1);
}

/* ---- tracking itself */

static void ev_resolve(struct cell *c)
{
	resolve(c, sub(c), sub_len(c));
}

static void ev_resolve_read(struct cell *c)
{
	ev_resolve(c);
	touch(c, c->s0, c->s1);
}

static void ev_protect(struct cell *c)
{
	protect(c, sub(c), sub_len(c));
	snap(c, c->s0, c->s1);
}

static void ev_protect_write(struct cell *c)
{
	ev_protect(c);
	put(c, c->s0, c->s1, 4);
}

static void ev_reregister(struct cell *c)
{
	struct uffdio_range r = {(uintptr_t)c->map, c->size};

	if (ioctl(c->uffd, UFFDIO_UNREGISTER, &r) != 0)
		cell_error(c, "UFFDIO_UNREGISTER");
	uffd_register(c, c->map, c->size);
	protect(c, c->map, c->size);
	snap(c, 0, c->size / PG);
}

static void ev_reregister_write(struct cell *c)
{
	ev_reregister(c);
	put(c, c->s0, c->s1, 4);
}

/* What was written while nobody looked counts from the protection on; what the next write does is seen. */
static void ev_unregistered_write(struct cell *c)
{
	struct uffdio_range r = {(uintptr_t)c->map, c->size};

	if (ioctl(c->uffd, UFFDIO_UNREGISTER, &r) != 0)
		cell_error(c, "UFFDIO_UNREGISTER");
	put(c, c->s0, c->s1, 4);
	ev_dontneed(c);
	uffd_register(c, c->map, c->size);
	protect(c, c->map, c->size);
	snap(c, 0, c->size / PG);
}

/* ---- the address space */

static char *elsewhere(struct cell *c)
{
	char *to = map_aligned(c, c->size, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

	munmap(to, c->size);
	return to;
}

static void ev_mremap(struct cell *c)
{
	char *to = elsewhere(c), *at = mremap(c->map, c->size, c->size, MREMAP_MAYMOVE | MREMAP_FIXED, to);

	if (at != to)
		cell_refused(c);
	c->map = to;
}

static void *remap_events(void *arg)
{
	struct cell *c = arg;
	struct uffd_msg m;
	struct pollfd p = {.fd = c->uffd, .events = POLLIN};

	while (poll(&p, 1, -1) == 1)
		if (read(c->uffd, &m, sizeof(m)) < 0 && errno != EAGAIN)
			break;
	return NULL;
}

static void ev_mremap_tracked(struct cell *c)
{
	pthread_t t;

	if (pthread_create(&t, NULL, remap_events, c) != 0)
		cell_error(c, "thread");
	ev_mremap(c);
}

/* The subject alone moves, into the middle of nowhere and back to where it was. */
static void ev_mremap_back(struct cell *c)
{
	char *to = elsewhere(c) + c->s0 * PG, *at = sub(c);
	pthread_t t;

	if (pthread_create(&t, NULL, remap_events, c) != 0)
		cell_error(c, "thread");
	if (mremap(at, sub_len(c), sub_len(c), MREMAP_MAYMOVE | MREMAP_FIXED, to) != to ||
	    mremap(to, sub_len(c), sub_len(c), MREMAP_MAYMOVE | MREMAP_FIXED, at) != at)
		cell_refused(c);
}

static void ev_dontunmap(struct cell *c)
{
	char *to = elsewhere(c) + c->s0 * PG;

	if (mremap(sub(c), sub_len(c), sub_len(c), MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) != to)
		cell_refused(c);
	zapped(c, c->s0, c->s1);
}

static void ev_dontunmap_read(struct cell *c)
{
	ev_dontunmap(c);
	touch(c, c->s0, c->s1);
}

/* The last pages are cut off and come back as new memory. */
static void ev_shrink_grow(struct cell *c)
{
	size_t end = c->size / PG;

	c->s0 = end - c->unit / PG;
	c->s1 = end;
	if (mremap(c->map, c->size, c->s0 * PG, 0) != c->map || mremap(c->map, c->s0 * PG, c->size, 0) != c->map)
		cell_refused(c);
	zapped(c, c->s0, c->s1);
}

static void ev_grow(struct cell *c)
{
	size_t more = c->unit;

	if (mremap(c->map, c->size, c->size + more, 0) != c->map)
		cell_refused(c);
	c->s0 = c->size / PG;
	c->size += more;
	c->s1 = c->size / PG;
}

static void ev_map_anew(struct cell *c)
{
	unsigned f = c->kind->flags;
	int flags = (f & K_SHARED ? MAP_SHARED : MAP_PRIVATE) | (f & K_FILE ? 0 : MAP_ANONYMOUS) |
		    ((f & (K_HUGETLB | K_FILE)) == K_HUGETLB ? MAP_HUGETLB : 0);

	if (munmap(sub(c), sub_len(c)) != 0 ||
	    mmap(sub(c), sub_len(c), PROT_READ | PROT_WRITE, flags | MAP_FIXED, c->fd, (off_t)(c->s0 * PG)) != sub(c))
		cell_error(c, "munmap, mmap");
	zapped(c, c->s0, c->s1);
}

/* ---- not asynchronous: who writes waits, and the thread lets it through */

static bool sync_kind(const struct kind *k)
{
	return normal(k) && !(k->flags & (K_DISK | K_PMD));
}

static void *sync_resolve(void *arg)
{
	struct cell *c = arg;
	struct uffd_msg m;
	struct pollfd p = {.fd = c->uffd, .events = POLLIN};

	while (poll(&p, 1, -1) == 1) {
		if (read(c->uffd, &m, sizeof(m)) != sizeof(m) || m.event != UFFD_EVENT_PAGEFAULT)
			continue;
		if (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
			c->messages++;
		resolve(c, (char *)(uintptr_t)(m.arg.pagefault.address & ~(uint64_t)(c->unit - 1)), c->unit);
	}
	return NULL;
}

static void sync_start(struct cell *c)
{
	pthread_t t;

	if (pthread_create(&t, NULL, sync_resolve, c) != 0)
		cell_error(c, "thread");
}

static void ev_sync_write(struct cell *c)
{
	sync_start(c);
	put(c, c->s0, c->s1, 4);
}

static void ev_sync_read_write(struct cell *c)
{
	touch(c, c->s0, c->s1);
	ev_sync_write(c);
}

static void ev_sync_dontneed_write(struct cell *c)
{
	ev_dontneed(c);
	ev_sync_write(c);
}

/* ---- past the mapping */

static void ev_pwrite(struct cell *c)
{
	file_put(c, c->s0, c->s1, 6);
	if (pwrite(c->fd, c->file + c->s0 * PG, sub_len(c), (off_t)(c->s0 * PG)) != (ssize_t)sub_len(c))
		cell_error(c, "pwrite");
}

static void ev_second_mapping(struct cell *c)
{
	char *m = mmap(NULL, c->size, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);

	if (m == MAP_FAILED)
		cell_error(c, "mmap");
	file_put(c, c->s0, c->s1, 6);
	for (size_t p = c->s0; p < c->s1; p += c->step)
		memcpy(m + p * PG, c->file + p * PG, PG);
	munmap(m, c->size);
}

/* ---- UFFDIO_COPY and its kin */

static void copy(struct cell *c, uint64_t mode)
{
	static unsigned char b[HPG] __attribute__((aligned(4096)));
	struct uffdio_copy u = {.dst = (uintptr_t)sub(c), .src = (uintptr_t)b, .len = sub_len(c), .mode = mode};

	for (size_t p = c->s0; p < c->s1; p += c->step)
		fill(b + (p - c->s0) * PG, p, 7);
	if (ioctl(c->uffd, UFFDIO_COPY, &u) != 0)
		cell_refused(c);
	wrote(c, c->s0, c->s1, 7);
}

static void ev_copy(struct cell *c)
{
	copy(c, 0);
}

/* The caller says that it is clean. */
static void ev_copy_wp(struct cell *c)
{
	copy(c, UFFDIO_COPY_MODE_WP);
	snap(c, c->s0, c->s1);
}

static void ev_punch_copy(struct cell *c)
{
	ev_punch(c);
	copy(c, 0);
}

static void ev_zeropage(struct cell *c)
{
	struct uffdio_zeropage u = {.range = {(uintptr_t)sub(c), sub_len(c)}};

	if (ioctl(c->uffd, UFFDIO_ZEROPAGE, &u) != 0)
		cell_refused(c);
	wrote(c, c->s0, c->s1, 0);
}

static void ev_zeropage_write(struct cell *c)
{
	ev_zeropage(c);
	put(c, c->s0, c->s1, 4);
}

static void cont(struct cell *c, uint64_t mode)
{
	struct uffdio_continue u = {.range = {(uintptr_t)sub(c), sub_len(c)}, .mode = mode};

	if (ioctl(c->uffd, UFFDIO_CONTINUE, &u) != 0)
		cell_refused(c);
}

static void ev_continue(struct cell *c)
{
	cont(c, 0);
}

static void ev_continue_wp(struct cell *c)
{
	cont(c, UFFDIO_CONTINUE_MODE_WP);
	snap(c, c->s0, c->s1);
}

static void ev_poison(struct cell *c)
{
	struct sem_uffdio_poison u = {.start = (uintptr_t)sub(c), .len = sub_len(c)};

	if (ioctl(c->uffd, SEM_UFFDIO_POISON, &u) != 0)
		cell_refused(c);
	c->unreadable = true;
}

/* ---- UFFDIO_MOVE */

static void move(struct cell *c, char *dst, char *src, size_t len)
{
	struct sem_uffdio_move u = {.dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = len};

	for (int i = 0; i < 100; i++) {
		u.move = 0;
		if (ioctl(c->uffd, SEM_UFFDIO_MOVE, &u) == 0)
			return;
		if (errno != EAGAIN)
			break;
		if (u.move > 0) {
			u.dst += (uint64_t)u.move;
			u.src += (uint64_t)u.move;
			u.len -= (uint64_t)u.move;
		}
	}
	cell_refused(c);
}

/* Memory like the cell's, tracked by the same descriptor. */
static char *other_area(struct cell *c)
{
	char *m = map_aligned(c, c->size, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (c->kind->flags & K_THP)
		advise(c, m, c->size, MADV_HUGEPAGE);
	return m;
}

static void ev_move_out(struct cell *c)
{
	char *m = other_area(c);

	uffd_register(c, m, c->size);
	move(c, m + c->s0 * PG, sub(c), sub_len(c));
	if (memcmp(m + c->s0 * PG, c->now + c->s0 * PG, sub_len(c)) != 0)
		cell_fault(c, "!moved");
	zapped(c, c->s0, c->s1);
}

enum source { FROM_PLAIN, FROM_CLEAN, FROM_WRITTEN, FROM_ZERO, FROM_OUT_CLEAN, FROM_OUT_WRITTEN };

static void move_in(struct cell *c, enum source from)
{
	char *m = other_area(c), *src = m + c->s0 * PG;
	size_t len = sub_len(c);

	if (from == FROM_ZERO)
		for (size_t o = 0; o < len; o += PG)
			(void)*(volatile char *)(src + o);
	for (size_t p = c->s0; p < c->s1; p++)
		fill(c->seen + p * PG, p, 8);
	if (from != FROM_ZERO)
		memcpy(src, c->seen + c->s0 * PG, len);
	if (from != FROM_PLAIN) {
		uffd_register(c, m, c->size);
		protect(c, m, c->size);
	}
	if (from == FROM_WRITTEN || from == FROM_OUT_WRITTEN)
		memcpy(src, c->seen + c->s0 * PG, len);
	if ((from == FROM_OUT_CLEAN || from == FROM_OUT_WRITTEN) && !pageout(c, src, len))
		cell_na(c, "not paged out; is there swap?");
	move(c, sub(c), src, len);
	wrote(c, c->s0, c->s1, from == FROM_ZERO ? 0 : 8);
}

static void ev_move_plain(struct cell *c)
{
	move_in(c, FROM_PLAIN);
}
static void ev_move_clean(struct cell *c)
{
	move_in(c, FROM_CLEAN);
}
static void ev_move_written(struct cell *c)
{
	move_in(c, FROM_WRITTEN);
}
static void ev_move_zero(struct cell *c)
{
	move_in(c, FROM_ZERO);
}
static void ev_move_out_clean(struct cell *c)
{
	move_in(c, FROM_OUT_CLEAN);
}
static void ev_move_out_written(struct cell *c)
{
	move_in(c, FROM_OUT_WRITTEN);
}

/* ---- huge pages made and split */

static bool is_huge(struct cell *c)
{
	uint8_t out[PER_HUGE];

	return scan(c, sub(c), HPG, 0, 0, PAGE_IS_HUGE, out) == 0 && (out[0] & PAGE_IS_HUGE);
}

/* Says which it was: a refusal is an answer. */
static void collapse(struct cell *c)
{
	advise(c, c->map, c->size, MADV_HUGEPAGE);
	for (int i = 0; i < 100; i++) {
		if (madvise(sub(c), HPG, MADV_COLLAPSE) == 0) {
			cell_fault(c, is_huge(c) ? "huge" : "collapsed");
			return;
		}
		if (errno != EAGAIN)
			break;
	}
	cell_fault(c, strerrorname_np(errno));
}

static void ev_collapse_one(struct cell *c)
{
	put(c, 7, 8, 4);
	collapse(c);
}

static void ev_collapse_all_but_one(struct cell *c)
{
	put(c, 0, 7, 4);
	put(c, 8, PER_HUGE, 4);
	collapse(c);
}

static void ev_collapse_hole(struct cell *c)
{
	put(c, 0, PER_HUGE, 4);
	advise(c, c->map + 7 * PG, PG, MADV_DONTNEED);
	zapped(c, 7, 8);
	collapse(c);
}

/* ---- the machine: only with --system */

static long read_number(const char *path)
{
	char b[32] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, b, sizeof(b) - 1);

	if (fd >= 0)
		close(fd);
	return n <= 0 ? -1 : atol(b);
}

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

static void write_number(const char *path, long n)
{
	char b[32];

	snprintf(b, sizeof(b), "%ld", n);
	write_text(path, b);
}

static uint64_t pfn(struct cell *c, const char *at)
{
	uint64_t e = pagemap_entry(c, at);

	return e >> 63 ? e & ((1ULL << 55) - 1) : 0;
}

#define KSM "/sys/kernel/mm/ksm/"

static void ksm_merge(struct cell *c)
{
	char *twin = c->map + c->s1 * PG;
	long run = read_number(KSM "run"), sleep_ms = read_number(KSM "sleep_millisecs");
	bool merged = false;

	if (run < 0 || !pfn(c, twin))
		cell_na(c, "no KSM");
	advise(c, sub(c), 2 * PG, MADV_MERGEABLE);
	write_text(KSM "sleep_millisecs", "0");
	write_text(KSM "run", "1");
	/* Not by full_scans: hundreds of them may pass between two looks. */
	for (int i = 0; i < 100000 && !merged; i++) {
		merged = pfn(c, sub(c)) && pfn(c, sub(c)) == pfn(c, twin);
		sched_yield();
	}
	write_text(KSM "run", "0");
	write_number(KSM "sleep_millisecs", sleep_ms);
	write_number(KSM "run", run);
	if (!merged)
		cell_na(c, "KSM did not merge");
	c->s1++;
}

static void ev_ksm(struct cell *c)
{
	ksm_merge(c);
}

static void ev_ksm_write(struct cell *c)
{
	ksm_merge(c);
	c->s1--;
	put(c, c->s0, c->s1, 4);
}

static void ev_ksm_unmerge(struct cell *c)
{
	ksm_merge(c);
	advise(c, sub(c), sub_len(c), MADV_UNMERGEABLE);
	if (pfn(c, sub(c)) == pfn(c, sub(c) + PG))
		cell_fault(c, "!still-merged");
}

#define KHUGE "/sys/kernel/mm/transparent_hugepage/khugepaged/"

/* Whether it makes a huge page is the answer; that it passed by is what is waited for. */
static void ev_khugepaged(struct cell *c)
{
	long scan_ms = read_number(KHUGE "scan_sleep_millisecs"), pages = read_number(KHUGE "pages_to_scan"), full;

	if (scan_ms < 0)
		cell_na(c, "no khugepaged");
	advise(c, c->map, c->size, MADV_HUGEPAGE);
	write_text(KHUGE "pages_to_scan", "4096");
	write_text(KHUGE "scan_sleep_millisecs", "0");
	full = read_number(KHUGE "full_scans");
	while (!is_huge(c) && read_number(KHUGE "full_scans") < full + 10)
		sched_yield();
	write_number(KHUGE "scan_sleep_millisecs", scan_ms);
	write_number(KHUGE "pages_to_scan", pages);
	cell_fault(c, is_huge(c) ? "huge" : "left");
}

static void ev_khugepaged_one(struct cell *c)
{
	put(c, 7, 8, 4);
	ev_khugepaged(c);
}

static void ev_khugepaged_all_but_one(struct cell *c)
{
	put(c, 0, 7, 4);
	put(c, 8, PER_HUGE, 4);
	ev_khugepaged(c);
}

/* Moves the page to another place in memory, as compaction does, but when it is told. */
static void ev_migrate(struct cell *c)
{
	uint64_t was;

	touch(c, c->s0, c->s1);
	was = pfn(c, sub(c));
	if (!was)
		cell_na(c, "no page frame");
	for (int i = 0; i < 50 && pfn(c, sub(c)) == was; i++)
		if (madvise(sub(c), PG, MADV_SOFT_OFFLINE) != 0 && errno != EBUSY && errno != EIO)
			cell_na(c, "MADV_SOFT_OFFLINE: %s", strerror(errno));
	if (pfn(c, sub(c)) == was)
		cell_na(c, "not migrated");
}

static void on_sigbus(int sig)
{
	(void)sig;
}

static void ev_hwpoison(struct cell *c)
{
	signal(SIGBUS, on_sigbus);
	if (madvise(sub(c), PG, MADV_HWPOISON) != 0)
		cell_na(c, "MADV_HWPOISON: %s", strerror(errno));
	c->unreadable = true;
}

/* Every page comes back from swap. */
static void ev_swapoff(struct cell *c)
{
	char line[512], path[256] = "";
	FILE *f = fopen("/proc/swaps", "re");

	while (f && fgets(line, sizeof(line), f))
		if (line[0] == '/')
			sscanf(line, "%255s", path);
	if (f)
		fclose(f);
	if (!path[0])
		cell_na(c, "no swap");
	if (syscall(SYS_swapoff, path) != 0)
		cell_error(c, "swapoff");
	if (syscall(SYS_swapon, path, 0) != 0)
		cell_error(c, "swapon");
}

/* ---- the table */

#define IN_MEMORY (S(CLEAN) | S(WRITTEN))
#define OUT (S(OUT_CLEAN) | S(OUT_WRITTEN))
#define ZAPPED (S(ZAP_CLEAN) | S(ZAP_WRITTEN))
/* States that come about without a write to what is protected. */
#define S_SYNC (S(NONE) | S(HOLE) | S(READ) | S(CLEAN) | S(OUT_CLEAN) | S(ZAP_CLEAN))
#define SOME (S(NONE) | S(READ) | S(CLEAN) | S(OUT_CLEAN) | S(ZAP_CLEAN))

const struct event events[] = {
	{"nothing", S_ALL, 0, normal, ev_nothing},
	{"read", S_ALL, 0, normal, ev_read},
	{"write", S_ALL, 0, normal, ev_write},
	{"read, write a page", S(NONE) | S(HOLE) | ZAPPED, 0, normal, ev_write_byte},
	{"read(2) into", SOME, 0, by_page, ev_sys_read},
	{"O_DIRECT read into", SOME, 0, by_page, ev_direct_read},
	{"process_vm_writev", SOME, 0, by_page, ev_vm_writev},
	{"forced write", SOME, 0, by_page_private, ev_forced_write},
	{"POPULATE_READ", S_ALL, 0, normal, ev_populate_read},
	{"POPULATE_WRITE", S_ALL, 0, normal, ev_populate_write},
	{"mlock", SOME | S(HOLE), 0, normal, ev_mlock},
	{"msync", IN_MEMORY | ZAPPED, 0, file_shared, ev_msync},
	{"mprotect R, read, RW", S_ALL, 0, normal, ev_mprotect_read},
	{"mprotect NONE, RW", S_ALL, 0, normal, ev_mprotect_none},
	{"mprotect R, RW, write", SOME, 0, normal, ev_mprotect_write},
	{"fork", S_ALL, 0, normal, ev_fork},
	{"fork, child writes", S_ALL, 0, normal, ev_fork_child_writes},
	{"fork, parent writes", S_ALL, 0, normal, ev_fork_parent_writes},
	{"fork, DONTNEED", S_ALL, 0, normal, ev_fork_dontneed},
	{"DONTNEED", S_ALL, 0, normal, ev_dontneed},
	{"DONTNEED, read", S_ALL, 0, normal, ev_dontneed_read},
	{"DONTNEED, write", S_ALL, 0, normal, ev_dontneed_write},
	{"MADV_REMOVE", S_ALL, 0, file_shared, ev_remove},
	{"MADV_REMOVE, read", S_ALL, 0, file_shared, ev_remove_read},
	{"punch", S_ALL, 0, file, ev_punch},
	{"punch, read", S_ALL, 0, file, ev_punch_read},
	{"punch, write", S_ALL, 0, file, ev_punch_write},
	{"punch, alone", S(NONE), E_ALONE, file, ev_punch},
	{"punch, alone, read", S(NONE), E_ALONE, file, ev_punch_read},
	{"truncate, extend, alone", S(NONE), E_ALONE, file, ev_truncate},
	{"truncate, extend, alone, read", S(NONE), E_ALONE, file, ev_truncate_read},
	{"truncate, extend", S_ALL, 0, file, ev_truncate},
	{"truncate, extend, read", S_ALL, 0, file, ev_truncate_read},
	{"PAGEOUT", S(NONE) | S(HOLE) | ZAPPED, 0, not_hugetlb, ev_pageout},
	{"PAGEOUT", S(READ), 0, file_pwrite, ev_pageout},
	{"PAGEOUT, read", IN_MEMORY | ZAPPED, 0, not_hugetlb, ev_pageout_read},
	{"PAGEOUT, read", S(READ), 0, file_pwrite, ev_pageout_read},
	{"read, PAGEOUT", OUT, 0, not_hugetlb, ev_read_pageout},
	{"read, PAGEOUT", S(NONE) | ZAPPED, 0, file_pwrite, ev_read_pageout},
	{"COLD", S(READ) | IN_MEMORY, 0, not_hugetlb, ev_cold},
	{"FREE", S_ALL, 0, anon, ev_free},
	{"FREE, write", S_ALL, 0, anon, ev_free_write},
	{"FREE, reclaimed", S_ALL, 0, anon, ev_free_reclaimed},
	{"FREE, reclaimed, read", S_ALL, 0, anon, ev_free_reclaimed_read},
	{"resolve", S_ALL, 0, normal, ev_resolve},
	{"resolve, read", S_ALL, 0, normal, ev_resolve_read},
	{"protect again", S_ALL, 0, normal, ev_protect},
	{"protect again, write", S_ALL, 0, normal, ev_protect_write},
	{"unregister, register, protect", S_ALL, 0, normal, ev_reregister},
	{"unregister, register, protect, write", S_ALL, 0, normal, ev_reregister_write},
	{"unregister, write, DONTNEED, register, protect", SOME, 0, normal, ev_unregistered_write},
	{"mremap", S_ALL, 0, normal, ev_mremap},
	{"mremap with EVENT_REMAP", S_ALL, E_REMAP, normal, ev_mremap_tracked},
	{"mremap there and back with EVENT_REMAP", S_ALL, E_REMAP, normal, ev_mremap_back},
	{"MREMAP_DONTUNMAP, old place", S_ALL, 0, normal, ev_dontunmap},
	{"MREMAP_DONTUNMAP, old place, read", S_ALL, 0, normal, ev_dontunmap_read},
	{"mremap shrink, grow", S(CLEAN), 0, anon, ev_shrink_grow},
	{"mremap grow", S(CLEAN), 0, anon, ev_grow},
	{"munmap, mmap", S(NONE) | IN_MEMORY, 0, normal, ev_map_anew},
	{"pwrite", S_ALL, 0, file_pwrite, ev_pwrite},
	{"second mapping writes", S_ALL, 0, file, ev_second_mapping},
	{"UFFDIO_COPY", S(NONE) | ZAPPED, E_MISSING, fillable_anon, ev_copy},
	{"UFFDIO_COPY with WP", S(NONE) | ZAPPED, E_MISSING, fillable_anon, ev_copy_wp},
	{"UFFDIO_COPY into hole", S(HOLE), E_MISSING, fillable_file, ev_copy},
	{"UFFDIO_COPY with WP into hole", S(HOLE), E_MISSING, fillable_file, ev_copy_wp},
	{"punch, UFFDIO_COPY", S(NONE) | IN_MEMORY | OUT | ZAPPED, E_MISSING, fillable_file, ev_punch_copy},
	{"UFFDIO_ZEROPAGE", S(NONE) | ZAPPED, E_MISSING, zeroable_anon, ev_zeropage},
	{"UFFDIO_ZEROPAGE, write", S(NONE) | ZAPPED, E_MISSING, zeroable_anon, ev_zeropage_write},
	{"UFFDIO_CONTINUE", S(NONE) | ZAPPED, E_MINOR, fillable_file, ev_continue},
	{"UFFDIO_CONTINUE with WP", S(NONE) | ZAPPED, E_MINOR, fillable_file, ev_continue_wp},
	{"UFFDIO_POISON", S(NONE) | S(HOLE) | ZAPPED, E_MISSING, fillable, ev_poison},
	{"UFFDIO_MOVE away", S(READ) | IN_MEMORY | OUT, E_MOVE, anon, ev_move_out},
	{"UFFDIO_MOVE here of plain", S(NONE) | ZAPPED, E_MOVE, anon, ev_move_plain},
	{"UFFDIO_MOVE here of clean", S(NONE) | ZAPPED, E_MOVE, anon, ev_move_clean},
	{"UFFDIO_MOVE here of written", S(NONE) | ZAPPED, E_MOVE, anon, ev_move_written},
	{"UFFDIO_MOVE here of zero page", S(NONE) | ZAPPED, E_MOVE, anon, ev_move_zero},
	{"UFFDIO_MOVE here of clean+out", S(NONE) | ZAPPED, E_MOVE, anon, ev_move_out_clean},
	{"UFFDIO_MOVE here of written+out", S(NONE) | ZAPPED, E_MOVE, anon, ev_move_out_written},
	{"sync: nothing", S_SYNC, E_SYNC, sync_kind, ev_nothing},
	{"sync: read", S_SYNC, E_SYNC, sync_kind, ev_read},
	{"sync: write", S_SYNC, E_SYNC, sync_kind, ev_sync_write},
	{"sync: read, write", S_SYNC, E_SYNC, sync_kind, ev_sync_read_write},
	{"sync: DONTNEED, write", S_SYNC, E_SYNC, sync_kind, ev_sync_dontneed_write},
	{"COLLAPSE", S_ALL, 0, small, collapse},
	{"write one, COLLAPSE", S(NONE) | S(READ) | S(CLEAN), 0, small, ev_collapse_one},
	{"write all but one, COLLAPSE", S(NONE) | S(HOLE) | S(READ) | S(CLEAN), 0, small, ev_collapse_all_but_one},
	{"write all, DONTNEED one, COLLAPSE", S(NONE) | S(CLEAN), 0, small, ev_collapse_hole},
	{"khugepaged", S_ALL, E_SYSTEM, small, ev_khugepaged},
	{"write one, khugepaged", S(NONE) | S(READ) | S(CLEAN), E_SYSTEM, small, ev_khugepaged_one},
	{"write all but one, khugepaged", S(NONE) | S(READ) | S(CLEAN), E_SYSTEM, small, ev_khugepaged_all_but_one},
	{"KSM", IN_MEMORY, E_SYSTEM | E_TWIN, anon_4k, ev_ksm},
	{"KSM, write", IN_MEMORY, E_SYSTEM | E_TWIN, anon_4k, ev_ksm_write},
	{"KSM, unmerge", IN_MEMORY, E_SYSTEM | E_TWIN, anon_4k, ev_ksm_unmerge},
	{"migrated", IN_MEMORY, E_SYSTEM, by_page_not_hugetlb, ev_migrate},
	{"migrated", S(READ), E_SYSTEM, file_by_page, ev_migrate},
	{"HWPOISON", IN_MEMORY, E_SYSTEM, by_page_not_hugetlb, ev_hwpoison},
	{"swapoff", OUT, E_SYSTEM, anon, ev_swapoff},
};
const size_t nr_events = sizeof(events) / sizeof(*events);
