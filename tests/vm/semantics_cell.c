/* SPDX-License-Identifier: MIT */
/*
 * One cell: memory with known content, registered and protected, the subject brought into its state, the event, and the verdict.
 *
 * The verdict: the kernel is asked in three ways (PAGEMAP_SCAN for written pages only, which takes the kernel's fast path;
 * PAGEMAP_SCAN for everything; bit 57 of pagemap), then by the scan that protects again, which must say the same and leave all clean.
 * Only then is the content read, since reading maps pages. At last a write must be seen again.
 */
#define _GNU_SOURCE
#include "semantics.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

const struct kind kinds[] = {
	{"anon", 0},
	{"anon-thp/page", K_THP},
	{"anon-thp/huge", K_THP | K_PMD},
	{"anon-2M-of-4k", K_THP | K_PMD | K_SMALL},
	{"memfd", K_FILE | K_SHARED},
	{"memfd-private", K_FILE},
	{"shmem-thp/page", K_FILE | K_SHARED | K_THP},
	{"shmem-thp/huge", K_FILE | K_SHARED | K_THP | K_PMD},
	{"shmem-2M-of-4k", K_FILE | K_SHARED | K_THP | K_PMD | K_SMALL},
	{"disk", K_FILE | K_SHARED | K_DISK},
	{"disk-private", K_FILE | K_DISK},
	{"hugetlb", K_FILE | K_SHARED | K_HUGETLB},
	{"hugetlb-private", K_HUGETLB},
	{"hugetlb-file-private", K_FILE | K_HUGETLB},
};
const size_t nr_kinds = sizeof(kinds) / sizeof(*kinds);

const char *const state_name[NR_STATES] = {
	"untouched", "hole", "read", "clean", "written", "clean+out", "written+out", "clean+zapped", "written+zapped",
};

/* ---- ends */

static _Noreturn void finish(struct cell *c, const char *text)
{
	if (write(c->result, text, strlen(text)) < 0)
		_exit(2);
	_exit(0);
}

void cell_na(struct cell *c, const char *fmt, ...)
{
	char s[200] = "n/a (";
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(s + 5, sizeof(s) - 6, fmt, ap);
	va_end(ap);
	strcat(s, ")");
	finish(c, s);
}

void cell_error(struct cell *c, const char *fmt, ...)
{
	char s[200] = "ERROR ";
	int e = errno;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(s + 6, sizeof(s) - 60, fmt, ap);
	va_end(ap);
	snprintf(s + strlen(s), 50, ": %s", strerror(e));
	finish(c, s);
}

/* The kernel would not do it: that is an answer. */
void cell_refused(struct cell *c)
{
	char s[60];

	snprintf(s, sizeof(s), "refused %s", strerrorname_np(errno));
	finish(c, s);
}

void cell_fault(struct cell *c, const char *what)
{
	size_t n = strlen(c->faults);

	if (!strstr(c->faults, what))
		snprintf(c->faults + n, sizeof(c->faults) - n, " %s", what);
}

/* ---- content */

void fill(unsigned char *dst, size_t page, unsigned gen)
{
	uint64_t *w = (uint64_t *)dst, v = (page + 1) * 0x9e3779b97f4a7c15ULL + gen * 0xc2b2ae3d27d4eb4fULL;

	if (!gen)
		memset(dst, 0, PG);
	for (size_t i = 0; gen && i < PG / sizeof(*w); i += 32) {
		v += 0x100000001b3ULL;
		for (size_t k = i; k < i + 32; k++)
			w[k] = v;
	}
}

static size_t twin(struct cell *c, size_t p)
{
	return (c->event->flags & E_TWIN) && p == c->s1 ? c->s0 : p;
}

void wrote(struct cell *c, size_t p0, size_t p1, unsigned gen)
{
	for (size_t p = p0; p < p1; p += c->step) {
		fill(c->now + p * PG, twin(c, p), gen);
		if (c->kind->flags & K_SHARED)
			memcpy(c->file + p * PG, c->now + p * PG, PG);
		else
			c->cow[p] = true;
	}
}

void put(struct cell *c, size_t p0, size_t p1, unsigned gen)
{
	wrote(c, p0, p1, gen);
	for (size_t p = p0; p < p1; p += c->step)
		memcpy(c->map + p * PG, c->now + p * PG, PG);
}

void file_put(struct cell *c, size_t p0, size_t p1, unsigned gen)
{
	for (size_t p = p0; p < p1; p += c->step) {
		fill(c->file + p * PG, p, gen);
		if (!c->cow[p])
			memcpy(c->now + p * PG, c->file + p * PG, PG);
	}
}

void zapped(struct cell *c, size_t p0, size_t p1)
{
	for (size_t p = p0; p < p1; p += c->step) {
		c->cow[p] = false;
		if (c->kind->flags & K_FILE)
			memcpy(c->now + p * PG, c->file + p * PG, PG);
		else
			memset(c->now + p * PG, 0, PG);
	}
}

void snap(struct cell *c, size_t p0, size_t p1)
{
	for (size_t p = p0; p < p1; p += c->step)
		memcpy(c->before + p * PG, c->now + p * PG, PG);
}

void touch(struct cell *c, size_t p0, size_t p1)
{
	for (size_t p = p0; p < p1; p += c->step)
		(void)*(volatile char *)(c->map + p * PG);
}

/* ---- the kernel */

void advise(struct cell *c, void *at, size_t len, int advice)
{
	if (madvise(at, len, advice) != 0)
		cell_error(c, "madvise %d", advice);
}

static void pagemap_entries(struct cell *c, const char *at, size_t n, uint64_t *e)
{
	if (pread(c->pagemap, e, n * sizeof(*e), (off_t)((uintptr_t)at / PG * sizeof(*e))) != (ssize_t)(n * sizeof(*e)))
		cell_error(c, "pagemap");
}

uint64_t pagemap_entry(struct cell *c, const char *at)
{
	uint64_t e;

	pagemap_entries(c, at, 1, &e);
	return e;
}

/* Until no page of it is present. */
bool pageout(struct cell *c, char *at, size_t len)
{
	static uint64_t e[MAX_PAGES];

	for (int i = 0; i < 30; i++) {
		size_t in = 0;

		if (madvise(at, len, MADV_PAGEOUT) != 0)
			cell_error(c, "MADV_PAGEOUT");
		pagemap_entries(c, at, len / PG, e);
		for (size_t p = 0; p < len / PG; p++)
			in += e[p] >> 63;
		if (!in)
			return true;
	}
	return false;
}

/* Categories of each page of [at, at + len) into out, 0 for pages that the scan did not list. */
int scan(struct cell *c, char *at, size_t len, uint64_t flags, uint64_t mask, uint64_t ret, uint8_t *out)
{
	struct wpt_page_region r[512];
	uint64_t end = (uintptr_t)at + len;
	struct wpt_pm_scan_arg a = {
		.size = sizeof(a),
		.flags = flags,
		.start = (uintptr_t)at,
		.end = end,
		.vec = (uintptr_t)r,
		.vec_len = 512,
		.category_mask = mask,
		.return_mask = ret,
	};

	memset(out, 0, len / PG);
	while (a.start < end) {
		int n = ioctl(c->pagemap, WPT_PAGEMAP_SCAN, &a);

		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++)
			for (uint64_t p = r[i].start; p < r[i].end; p += PG)
				out[(p - (uintptr_t)at) / PG] = (uint8_t)r[i].categories;
		if (a.walk_end <= a.start)
			return -ELOOP;
		a.start = a.walk_end;
	}
	return 0;
}

static int write_protect(struct cell *c, char *at, size_t len, uint64_t mode)
{
	struct uffdio_writeprotect w = {.range = {(uintptr_t)at, len}, .mode = mode};

	return ioctl(c->uffd, UFFDIO_WRITEPROTECT, &w);
}

void protect(struct cell *c, char *at, size_t len)
{
	static uint8_t out[MAX_PAGES];
	int r;

	if ((c->way == BY_PROTECT || (c->event->flags & E_SYNC)) && write_protect(c, at, len, UFFDIO_WRITEPROTECT_MODE_WP) != 0)
		cell_error(c, "UFFDIO_WRITEPROTECT");
	else if (c->way == BY_SCAN && (r = scan(c, at, len, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, 0, PAGE_IS_WRITTEN, out)) != 0) {
		errno = -r;
		cell_error(c, "PAGEMAP_SCAN");
	}
}

void resolve(struct cell *c, char *at, size_t len)
{
	if (write_protect(c, at, len, 0) != 0)
		cell_error(c, "UFFDIO_WRITEPROTECT to resolve");
}

static void register_for(struct cell *c, char *at, size_t len, uint64_t mode)
{
	struct uffdio_register r = {.range = {(uintptr_t)at, len}, .mode = mode};

	if (ioctl(c->uffd, UFFDIO_REGISTER, &r) != 0)
		cell_error(c, "UFFDIO_REGISTER");
}

void uffd_register(struct cell *c, char *at, size_t len)
{
	register_for(c, at, len, UFFDIO_REGISTER_MODE_WP);
}

/* USER_MODE_ONLY: a missing page that the verdict reads by a system call is an error, not a wait for ever. */
static void uffd_open(struct cell *c)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC};

	c->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (c->uffd < 0)
		cell_error(c, "userfaultfd");
	if (c->event->flags & E_SYNC)
		api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED;
	if (opt.written)
		api.features |= UFFD_FEATURE_WP_WRITTEN;
	if (c->event->flags & E_MOVE)
		api.features |= UFFD_FEATURE_MOVE;
	if (c->event->flags & E_REMAP)
		api.features |= UFFD_FEATURE_EVENT_REMAP;
	if (ioctl(c->uffd, UFFDIO_API, &api) != 0)
		cell_na(c, "UFFDIO_API: %s", strerror(errno));
	c->features = api.features;
}

/* ---- memory */

/*
 * Always the same places, next to a page that is mapped: whether there is a table of PMDs makes a difference to how stock scans hugetlb,
 * and chance must not decide it. Behind each is room to grow.
 */
char *map_aligned(struct cell *c, size_t len, int flags, int fd)
{
	static uintptr_t next = 0x600000000000;
	char *at = (char *)(next + HPG);

	if (next == 0x600000000000 && mmap((void *)next, PG, PROT_READ | PROT_WRITE,
					   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0) != (void *)next)
		cell_error(c, "mmap");
	next += 2 * HPG + (2 * len + HPG - 1) / HPG * HPG;
	at = mmap(at, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, fd, 0);
	if (at == MAP_FAILED && errno == ENOMEM && (c->kind->flags & K_HUGETLB))
		cell_na(c, "too few huge pages");
	if (at == MAP_FAILED)
		cell_error(c, "mmap");
	return at;
}

static unsigned char *buffer(struct cell *c)
{
	unsigned char *b = mmap(NULL, MAX_PAGES * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (b == MAP_FAILED)
		cell_error(c, "mmap");
	if (c->size >= HPG)
		madvise(b, MAX_PAGES * PG, MADV_HUGEPAGE);
	return b;
}

static int open_in(struct cell *c, int dir, const char *what)
{
	if (dir < 0)
		cell_na(c, "%s", what);
	return openat(dir, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
}

static bool huge_kind(const struct kind *k)
{
	return (k->flags & (K_THP | K_SMALL)) == K_THP;
}

/* What the file holds before anybody maps it: data all over, or a hole where the subject will be. */
static void file_make(struct cell *c)
{
	unsigned f = c->kind->flags;
	size_t n = c->size / PG, h0 = c->s0, h1 = c->s1;
	char *m;

	if (f & K_HUGETLB)
		c->fd = memfd_create("semantics", MFD_CLOEXEC | MFD_HUGETLB);
	else if (f & K_DISK)
		c->fd = open_in(c, opt.disk, "no disk file system, see --disk");
	else if (f & K_THP)
		c->fd = open_in(c, opt.huge, "no tmpfs with huge pages");
	else
		c->fd = memfd_create("semantics", MFD_CLOEXEC);
	if (c->fd < 0 || ftruncate(c->fd, (off_t)(c->size + 4 * c->unit)) != 0)
		cell_error(c, "file");
	if (huge_kind(c->kind)) {
		h0 = 0;
		h1 = PER_HUGE;
	}
	m = map_aligned(c, c->size, MAP_SHARED, c->fd);
	if (huge_kind(c->kind))
		advise(c, m, c->size, MADV_HUGEPAGE);
	for (size_t p = 0; p < n; p += c->step)
		if (c->state != ST_HOLE || p < h0 || p >= h1) {
			fill(c->file + p * PG, p, 1);
			memcpy(m + p * PG, c->file + p * PG, PG);
			memcpy(c->now + p * PG, c->file + p * PG, PG);
		}
	munmap(m, c->size);
	if (f & K_DISK)
		fsync(c->fd);
}

static void geometry(struct cell *c)
{
	unsigned f = c->kind->flags;

	c->unit = f & K_HUGETLB ? HPG : PG;
	c->size = f & K_HUGETLB ? 3 * HPG : f & K_THP ? HPG + 16 * PG : 16 * PG;
	c->step = f & K_HUGETLB ? 64 : 1;
	c->s0 = f & K_HUGETLB ? PER_HUGE : f & K_PMD ? 0 : f & K_THP ? 100 : 8;
	c->s1 = c->s0 + (f & (K_HUGETLB | K_PMD) ? PER_HUGE : 1);
}

/* The state before protection of a page; those beside the subject are of all sorts, where a huge page does not forbid it. */
static enum state state_before(struct cell *c, size_t p)
{
	static const enum state beside[16] = {ST_NONE,	ST_READ,  ST_CLEAN, ST_CLEAN, ST_NONE,	ST_READ,  ST_CLEAN, ST_CLEAN,
					      ST_CLEAN, ST_CLEAN, ST_READ,  ST_NONE,  ST_CLEAN, ST_CLEAN, ST_READ,  ST_CLEAN};
	enum state mine = c->state <= ST_READ ? c->state : ST_CLEAN;

	if ((p >= c->s0 && p < c->s1) || (c->event->flags & E_ALONE))
		return mine;
	if (c->kind->flags & K_THP)
		return p < PER_HUGE ? mine : ST_CLEAN;
	if ((c->kind->flags & K_HUGETLB) || (c->event->flags & (E_MISSING | E_MINOR)))
		return ST_CLEAN;
	return beside[p];
}

static void check_huge(struct cell *c)
{
	static uint8_t out[MAX_PAGES];
	size_t from = state_before(c, 0) == ST_NONE || state_before(c, 0) == ST_HOLE ? PER_HUGE : 0;

	if (scan(c, c->map, c->size, 0, 0, PAGE_IS_HUGE, out) != 0)
		cell_error(c, "PAGEMAP_SCAN");
	for (size_t p = from; p < PER_HUGE; p++)
		if (!(out[p] & PAGE_IS_HUGE))
			cell_na(c, "no huge page at page %zu", p);
}

static void memory_make(struct cell *c)
{
	unsigned f = c->kind->flags;

	if (f & K_FILE)
		file_make(c);
	c->map = map_aligned(c, c->size,
			     (f & K_SHARED ? MAP_SHARED : MAP_PRIVATE) | (f & K_FILE ? 0 : MAP_ANONYMOUS) |
				     ((f & (K_HUGETLB | K_FILE)) == K_HUGETLB ? MAP_HUGETLB : 0),
			     c->fd);
	if (f & K_THP)
		advise(c, c->map, c->size, f & K_SMALL ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	for (size_t p = 0; p < c->size / PG; p += c->step) {
		enum state s = state_before(c, p);

		if (s == ST_READ)
			touch(c, p, p + 1);
		else if (s == ST_CLEAN)
			put(c, p, p + 1, 2);
	}
	if (huge_kind(c->kind))
		check_huge(c);
	snap(c, 0, c->size / PG);
}

/* ---- state after protection */

static void bring_into_state(struct cell *c)
{
	enum state s = c->state;

	if (s == ST_WRITTEN || s == ST_OUT_WRITTEN || s == ST_ZAP_WRITTEN)
		put(c, c->s0, c->s1, c->event->flags & E_TWIN ? 2 : 3);
	if ((s == ST_OUT_CLEAN || s == ST_OUT_WRITTEN) && !pageout(c, sub(c), sub_len(c)))
		cell_na(c, "not paged out; is there swap?");
	if (s == ST_ZAP_CLEAN || s == ST_ZAP_WRITTEN) {
		advise(c, sub(c), sub_len(c), MADV_DONTNEED);
		zapped(c, c->s0, c->s1);
	}
}

/* ---- verdict */

struct look {
	uint8_t written[MAX_PAGES];
	bool refused; /* a part is not tracked, and the scan says so */
};

/* One look in all ways that change nothing. */
static void look(struct cell *c, struct look *l)
{
	static uint8_t all[MAX_PAGES];
	static uint64_t entry[MAX_PAGES];
	uint64_t flags = c->event->flags & E_SYNC ? 0 : PM_SCAN_CHECK_WPASYNC;
	size_t n = c->size / PG;
	int r = scan(c, c->map, c->size, flags, PAGE_IS_WRITTEN, PAGE_IS_WRITTEN, l->written);
	int g = scan(c, c->map, c->size, flags, 0, 0xff, all);

	l->refused = r == -EPERM;
	if (r != g)
		cell_fault(c, "!scans");
	if (l->refused)
		return;
	if (r != 0) {
		errno = -r;
		cell_error(c, "PAGEMAP_SCAN");
	}
	pagemap_entries(c, c->map, n, entry);
	for (size_t p = 0; p < n; p++) {
		uint64_t e = entry[p];
		bool w = l->written[p] & PAGE_IS_WRITTEN, clean = e >> 57 & 1;

		if (w != !!(all[p] & PAGE_IS_WRITTEN))
			cell_fault(c, "!fast");
		if ((opt.written || e >> 62) && w == clean)
			cell_fault(c, "!bit57");
	}
}

static bool any(const struct look *l, size_t p0, size_t p1)
{
	for (size_t p = p0; p < p1; p++)
		if (l->written[p])
			return true;
	return false;
}

/* The mapping's content into seen; a page that can't be read is all 0xee. */
static bool read_pages(struct cell *c, size_t p, size_t n)
{
	struct iovec local = {c->seen + p * PG, n * PG}, remote = {c->map + p * PG, n * PG};

	return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)(n * PG);
}

static void content_read(struct cell *c, bool *unreadable)
{
	size_t n = c->size / PG;

	memset(unreadable, 0, n);
	if (c->step == 1 && read_pages(c, 0, n))
		return;
	for (size_t p = 0; p < n; p += c->step)
		if (!read_pages(c, p, 1))
			unreadable[p] = true;
}

static void content_check(struct cell *c, bool *unreadable)
{
	content_read(c, unreadable);
	for (size_t p = 0; p < c->size / PG; p += c->step) {
		bool may = c->unreadable && p >= c->s0 && p < c->s1;

		if (unreadable[p] ? !may : memcmp(c->seen + p * PG, c->now + p * PG, PG) != 0)
			cell_fault(c, unreadable[p] ? "!unreadable" : "!content");
	}
}

/* Of hugetlb a small page speaks for all of its huge page. */
static void changes(struct cell *c, const bool *unreadable, bool *changed)
{
	size_t n = c->unit / PG;

	for (size_t p = 0; p < c->size / PG; p += n) {
		bool any = false;

		for (size_t q = p; q < p + n && !any; q += c->step)
			any = unreadable[q] || memcmp(c->seen + q * PG, c->before + q * PG, PG) != 0;
		memset(changed + p, any, n);
	}
}

/* W, c, LOST or a mixture, and beyond the subject how far it went. */
static void describe(struct cell *c, const struct look *l, const bool *unreadable, char *out, size_t room)
{
	static bool changed[MAX_PAGES];
	size_t n = c->size / PG, w = 0, lost = 0, w_out = 0, lost_out = 0, clean = 0, w_near = 0;

	changes(c, unreadable, changed);
	for (size_t p = 0; p < n; p++) {
		bool in = p >= c->s0 && p < c->s1, written = l->written[p], bad = !written && changed[p];

		w += in && written;
		clean += in && !written && !bad;
		lost += in && bad;
		w_out += !in && written;
		w_near += !in && written && p / PER_HUGE == c->s0 / PER_HUGE;
		lost_out += !in && bad;
	}
	snprintf(out, room, "%s%s%s", lost ? "LOST" : "", w ? (lost ? "+W" : "W") : "", clean ? (lost || w ? "+c" : "c") : "");
	if (w_out && w_out == w_near && w_out == PER_HUGE - (c->s1 - c->s0))
		strncat(out, "(2M)", room - strlen(out) - 1);
	else if (w_out)
		snprintf(out + strlen(out), room - strlen(out), "(+%zu)", w_out);
	if (lost_out)
		strncat(out, " LOST beside", room - strlen(out) - 1);
}

/* Protecting once more says the same, leaves everything clean, and a write is seen after it. */
static void verify_again(struct cell *c, const struct look *l, bool *unreadable)
{
	static struct look again;
	static uint8_t out[MAX_PAGES];
	size_t n = c->size / PG;

	if (scan(c, c->map, c->size, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, PAGE_IS_WRITTEN, PAGE_IS_WRITTEN, out) != 0)
		cell_error(c, "PAGEMAP_SCAN to protect");
	if (memcmp(out, l->written, n) != 0)
		cell_fault(c, "!wp-scan");
	look(c, &again);
	if (any(&again, 0, n))
		cell_fault(c, "!rearm");
	content_check(c, unreadable);
	look(c, &again);
	if (any(&again, 0, n))
		cell_fault(c, "!read");
}

static void verify_write(struct cell *c)
{
	static struct look last;

	put(c, c->s0, c->s0 + 1, 9);
	look(c, &last);
	if (!last.written[c->s0])
		cell_fault(c, "!blind");
	if (!read_pages(c, c->s0, 1) || memcmp(c->seen + c->s0 * PG, c->now + c->s0 * PG, PG) != 0)
		cell_fault(c, "!content");
}

static _Noreturn void verdict(struct cell *c)
{
	static struct look l;
	static bool unreadable[MAX_PAGES];
	char text[300] = "EPERM";

	look(c, &l);
	if (l.refused) {
		content_check(c, unreadable);
	} else if (c->event->flags & E_SYNC) {
		content_check(c, unreadable);
		describe(c, &l, unreadable, text, 100);
		snprintf(text + strlen(text), 40, ", %zu fault%s", c->messages, c->messages == 1 ? "" : "s");
	} else {
		verify_again(c, &l, unreadable);
		describe(c, &l, unreadable, text, 100);
		if (!unreadable[c->s0])
			verify_write(c);
	}
	strcat(text, c->faults);
	finish(c, text);
}

/* ---- the cell */

bool cell_exists(const struct kind *k, const struct event *e, enum state s)
{
	if (!(e->states & (1U << s)) || (e->fits && !e->fits(k)))
		return false;
	if (s == ST_HOLE && !(k->flags & K_FILE))
		return false;
	if ((s == ST_OUT_CLEAN || s == ST_OUT_WRITTEN) && (k->flags & K_HUGETLB))
		return false;
	return true;
}

void cell_run(struct cell *c)
{
	static struct look l;
	cpu_set_t one;

	/* Pages wait in per-CPU lists before they can be reclaimed; on one CPU madvise empties the right one. */
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof(one), &one);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	c->fd = -1;
	c->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (c->pagemap < 0)
		cell_error(c, "/proc/self/pagemap");
	geometry(c);
	c->before = buffer(c);
	c->now = buffer(c);
	c->file = buffer(c);
	c->seen = buffer(c);
	uffd_open(c);
	memory_make(c);
	uffd_register(c, c->map, c->size);
	protect(c, c->map, c->size);
	look(c, &l);
	if (any(&l, 0, c->size / PG))
		cell_fault(c, "!arm");
	bring_into_state(c);
	/* Only now, since nobody would answer the faults on the way into the state. */
	if (c->event->flags & (E_MISSING | E_MINOR))
		register_for(c, c->map, c->size,
			     UFFDIO_REGISTER_MODE_WP | (c->event->flags & E_MISSING ? UFFDIO_REGISTER_MODE_MISSING : 0) |
				     (c->event->flags & E_MINOR ? UFFDIO_REGISTER_MODE_MINOR : 0));
	c->event->run(c);
	verdict(c);
}
