/* SPDX-License-Identifier: MIT */
#include "fault.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include "kern.h"
#include "own.h"
#include "sys.h"

#define STACK_BYTES ((size_t)256 << 10)
#define RING 16384u /* threads that wait; beyond that all are woken and ask again */

struct thread {
	struct wpt_faults *f;
	pthread_t id;
	/* Odd while a message is in hand; counts up, so that one who waits sees that it was put down. */
	_Atomic uint64_t turn;
	uint64_t in_hand;            /* the page that it saves, or 0 */
	void *stack;
};

struct wpt_faults {
	struct wpt_target *target;
	int uffd, end;               /* eventfd: readable when the threads are to end */
	pid_t pid;                   /* that the threads live in */
	uint32_t nr_threads;
	struct thread threads[WPT_FAULT_THREADS_MAX];

	/*
	 * Over all that follows, and over the pending set while it is in use. Held for a few words at a time, and over no system call that waits for
	 * anybody; nothing that is touched under it is anybody's but ours.
	 */
	pthread_mutex_t lock;
	pthread_cond_t saved_more;
	_Atomic bool cow;
	bool lost, overflow;
	pid_t taker;                 /* of the own process, else 0 */
	struct wpt_ledger *ledger;
	const struct wpt_fault_area *areas;
	size_t nr_areas;
	uint64_t copying, copying_end;
	struct wpt_saved *free, *saved, **saved_end;
	uint32_t nr_saved, nr_in_hand;
	uint64_t *ring;              /* addresses of faults that were deferred */
	uint32_t nr_deferred;
	struct wpt_cow_counts counts;
	struct wpt_saved *slots;
	uint8_t *pages;
	uint32_t nr_slots;
};

/* Huge pages only as a whole: their size is not known here, and a smaller piece is refused. */
static void resolve(struct wpt_faults *f, uint64_t addr)
{
	static const uint64_t sizes[] = { WPT_PAGE, UINT64_C(1) << 16, UINT64_C(1) << 21, UINT64_C(1) << 25, UINT64_C(1) << 29, UINT64_C(1) << 30,
					  UINT64_C(1) << 34 };
	uint64_t start;
	size_t i;
	int err = -EINVAL;

	for (i = 0; i < WPT_ARRAY_SIZE(sizes) && err == -EINVAL; i++) {
		start = WPT_ALIGN_DOWN(addr, sizes[i]);
		err = wpt_kern_unprotect(f->uffd, start, start + sizes[i]);
	}
	/* Not registered any more: the access is tried again, and meets whatever is there now. */
	if (err && err != -ESRCH) {
		start = WPT_ALIGN_DOWN(addr, WPT_PAGE);
		wpt_kern_wake(f->uffd, start, start + WPT_PAGE);
	}
}

/* ---- mode cow, on fault threads ---- */

static const struct wpt_fault_area *area_of(const struct wpt_faults *f, uint64_t addr)
{
	size_t low = 0, high = f->nr_areas, mid;

	while (low < high) {
		mid = low + (high - low) / 2;
		if (f->areas[mid].end <= addr)
			low = mid + 1;
		else
			high = mid;
	}
	return low < f->nr_areas && f->areas[low].start <= addr ? &f->areas[low] : NULL;
}

/* Whether a page that was read just now still was what it had been at the instant: protected, and not given back since. */
static bool is_intact(struct wpt_faults *f, uint64_t addr)
{
	uint64_t entry;

	return wpt_kern_entries(wpt_target_pagemap(f->target), addr, &entry, 1) == 1 && entry & WPT_ENTRY_UFFD_WP &&
	       entry & (WPT_ENTRY_PRESENT | WPT_ENTRY_SWAPPED);
}

static bool is_in_hand(const struct wpt_faults *f, uint64_t start, uint64_t end)
{
	uint32_t i;

	for (i = 0; i < f->nr_threads; i++)
		if (f->threads[i].in_hand >= start && f->threads[i].in_hand < end)
			return true;
	return false;
}

/* Under the lock, for any of the library's own threads: one more, which is freed when the taker took what is in it. */
static struct wpt_saved *slot_extra(void)
{
	struct wpt_saved *s = wpt_vm_alloc(2 * WPT_PAGE);

	if (s)
		*s = (struct wpt_saved){ .data = (uint8_t *)s + WPT_PAGE, .extra = true };
	return s;
}

static struct wpt_saved *slot_get(struct wpt_faults *f, bool own)
{
	struct wpt_saved *s = f->free;

	if (s)
		f->free = s->next;
	else if (own)
		s = slot_extra();
	return s;
}

static void defer(struct wpt_faults *f, uint64_t addr)
{
	if (f->nr_deferred < RING)
		f->ring[f->nr_deferred++] = addr;
	else
		f->overflow = true;
	pthread_cond_signal(&f->saved_more);
}

/* The page is this thread's to save; drops the lock meanwhile. */
static void save(struct thread *th, struct wpt_saved *s, uint64_t page)
{
	struct wpt_faults *f = th->f;
	bool good;

	wpt_ledger_unpend(f->ledger, page, page + WPT_PAGE);
	th->in_hand = page;
	f->nr_in_hand++;
	pthread_mutex_unlock(&f->lock);
	s->addr = page;
	s->next = NULL;
	good = wpt_target_read(f->target, page, s->data, WPT_PAGE) == WPT_PAGE && is_intact(f, page);
	resolve(f, page);
	pthread_mutex_lock(&f->lock);
	th->in_hand = 0;
	f->nr_in_hand--;
	f->lost |= !good;
	f->counts.faults++;
	*f->saved_end = s;
	f->saved_end = &s->next;
	f->nr_saved++;
	pthread_cond_signal(&f->saved_more);
}

/* Whether the write may go on now; else somebody will see to it. Under the lock, which is dropped while a page is saved. */
static bool fault_while_cow(struct thread *th, uint64_t addr, pid_t tid)
{
	struct wpt_faults *f = th->f;
	const struct wpt_fault_area *a = area_of(f, addr);
	uint64_t start = WPT_ALIGN_DOWN(addr, WPT_PAGE), run_end;
	bool own = f->taker && wpt_own_is(tid);
	struct wpt_saved *s;

	/* Whoever has it in hand lets it through for all who wait there. */
	if (is_in_hand(f, start, start + WPT_PAGE))
		return false;
	if (f->copying < start + WPT_PAGE && start < f->copying_end) {
		if (tid != f->taker || !f->taker) {
			defer(f, addr);
			return false;
		}
		/* The taker writes to what it copies, and nobody else could end that. */
		f->lost = true;
		return true;
	}
	if (!a || wpt_ledger_next_pending(f->ledger, start, start + WPT_PAGE, &run_end) >= start + WPT_PAGE)
		return true;
	s = slot_get(f, own);
	if (s) {
		save(th, s, start);
		return false;
	}
	if (own) {
		f->lost = true;
		return true;
	}
	f->counts.waits++;
	defer(f, addr);
	return false;
}

static void handle(struct thread *th, const struct uffd_msg *msg)
{
	struct wpt_faults *f = th->f;
	bool go_on = true;

	if (msg->event != UFFD_EVENT_PAGEFAULT)
		return;
	if (atomic_load(&f->cow)) {
		pthread_mutex_lock(&f->lock);
		if (f->cow)
			go_on = fault_while_cow(th, msg->arg.pagefault.address, (pid_t)msg->arg.pagefault.feat.ptid);
		pthread_mutex_unlock(&f->lock);
	}
	if (go_on)
		resolve(f, msg->arg.pagefault.address);
}

/* All that is there now. The turn is odd from before a message is taken out of the kernel's queue. */
static bool serve(struct thread *th)
{
	struct uffd_msg msg;
	ssize_t got;

	do {
		atomic_fetch_add(&th->turn, 1);
		got = wpt_sys(SYS_read, th->f->uffd, &msg, sizeof(msg));
		if (got == sizeof(msg))
			handle(th, &msg);
		atomic_fetch_add(&th->turn, 1);
	} while (got == sizeof(msg) || got == -EINTR);
	return got == -EAGAIN;
}

static void *run(void *arg)
{
	struct thread *th = arg;
	struct pollfd fds[2] = { { th->f->end, POLLIN, 0 }, { th->f->uffd, POLLIN, 0 } };
	long n;

	/* Somebody stands still until it is done. Who may not have that does without. */
	wpt_sys(SYS_setpriority, PRIO_PROCESS, 0, -20);
	for (;;) {
		n = wpt_sys(SYS_ppoll, fds, 2, NULL, NULL, 0);
		if (n < 0 && n != -EINTR)
			break;
		if (n > 0 && fds[0].revents)
			break;
		/* What can't be read will not get better: only the end is waited for. */
		if (n > 0 && fds[1].revents && (!serve(th) || fds[1].revents & (POLLERR | POLLNVAL)))
			fds[1].fd = -1;
	}
	return NULL;
}

static int thread_start(struct wpt_faults *f)
{
	struct thread *th = &f->threads[f->nr_threads];
	pthread_attr_t attr;
	int rc;

	th->f = f;
	th->stack = wpt_vm_alloc(STACK_BYTES);
	if (!th->stack)
		return -ENOMEM;
	if (pthread_attr_init(&attr) != 0)
		return -ENOMEM;
	rc = pthread_attr_setstack(&attr, th->stack, STACK_BYTES);
	if (!rc)
		rc = pthread_create(&th->id, &attr, run, th);
	pthread_attr_destroy(&attr);
	if (!rc)
		f->nr_threads++;
	else
		wpt_vm_free(th->stack, STACK_BYTES);
	return -rc;
}

int wpt_faults_open(struct wpt_faults **out, struct wpt_target *target, uint32_t nr_threads)
{
	struct wpt_faults *f;
	sigset_t all, before;
	int err = 0;

	if (nr_threads < 1 || nr_threads > WPT_FAULT_THREADS_MAX)
		return -EINVAL;
	f = wpt_vm_alloc(sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->target = target;
	f->uffd = wpt_target_uffd(target);
	f->pid = getpid();
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->saved_more, NULL);
	f->saved_end = &f->saved;
	f->end = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (f->end < 0)
		err = -errno;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (!err && f->nr_threads < nr_threads)
		err = thread_start(f);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err) {
		wpt_faults_close(f);
		return err;
	}
	*out = f;
	return 0;
}

static void slots_free(struct wpt_faults *f)
{
	wpt_vm_free(f->slots, f->nr_slots * sizeof(*f->slots));
	wpt_vm_free(f->pages, (size_t)f->nr_slots * WPT_PAGE);
	f->slots = NULL;
	f->pages = NULL;
	f->nr_slots = 0;
}

void wpt_faults_close(struct wpt_faults *f)
{
	uint64_t one = 1;
	uint32_t i;

	if (!f)
		return;
	if (f->pid == getpid()) {
		wpt_sys(SYS_write, f->end, &one, sizeof(one));
		for (i = 0; i < f->nr_threads; i++)
			pthread_join(f->threads[i].id, NULL);
	}
	for (i = 0; i < f->nr_threads; i++)
		wpt_vm_free(f->threads[i].stack, STACK_BYTES);
	wpt_fd_close(&f->end);
	slots_free(f);
	wpt_vm_free(f->ring, RING * sizeof(*f->ring));
	wpt_vm_free(f, sizeof(*f));
}

void wpt_faults_settle(struct wpt_faults *f)
{
	struct timespec pause = { 0, 20000 };
	struct pollfd fd = { f->uffd, POLLIN, 0 };
	uint64_t turn;
	uint32_t i;

	while (wpt_sys(SYS_ppoll, &fd, 1, &pause, NULL, 0) > 0 && !(fd.revents & (POLLERR | POLLNVAL)))
		wpt_sys(SYS_nanosleep, &pause, NULL);
	for (i = 0; i < f->nr_threads; i++) {
		turn = atomic_load(&f->threads[i].turn);
		while (turn & 1 && atomic_load(&f->threads[i].turn) == turn)
			wpt_sys(SYS_sched_yield);
	}
}

uint64_t wpt_faults_memory(const struct wpt_faults *f)
{
	return f ? sizeof(*f) + f->nr_threads * STACK_BYTES + f->nr_slots * (sizeof(*f->slots) + WPT_PAGE) : 0;
}

/* ---- mode cow, by the taker ---- */

int wpt_faults_reserve(struct wpt_faults *f, uint32_t nr_slots)
{
	uint32_t i;

	if (!f->ring)
		f->ring = wpt_vm_alloc(RING * sizeof(*f->ring));
	if (f->nr_slots != nr_slots) {
		slots_free(f);
		f->nr_slots = nr_slots;
		f->slots = wpt_vm_alloc(nr_slots * sizeof(*f->slots));
		f->pages = wpt_vm_alloc((size_t)nr_slots * WPT_PAGE);
		/* So that no fault thread waits for a page of it. */
		if (f->pages)
			memset(f->pages, 1, (size_t)nr_slots * WPT_PAGE);
	}
	if (!f->ring || !f->slots || !f->pages) {
		slots_free(f);
		return -ENOMEM;
	}
	f->free = NULL;
	for (i = nr_slots; i-- > 0;) {
		f->slots[i] = (struct wpt_saved){ .next = f->free, .data = f->pages + (size_t)i * WPT_PAGE };
		f->free = &f->slots[i];
	}
	return 0;
}

void wpt_faults_begin(struct wpt_faults *f, struct wpt_ledger *ledger, const struct wpt_fault_area *areas, size_t nr)
{
	pthread_mutex_lock(&f->lock);
	f->ledger = ledger;
	f->areas = areas;
	f->nr_areas = nr;
	f->taker = wpt_target_is_self(f->target) ? gettid() : 0;
	f->lost = f->overflow = false;
	f->counts = (struct wpt_cow_counts){ 0, 0 };
	f->copying = f->copying_end = 0;
	atomic_store(&f->cow, true);
	pthread_mutex_unlock(&f->lock);
}

/* Under the lock: the page is still somebody's to save. */
static bool is_busy(const struct wpt_faults *f, uint64_t addr)
{
	uint64_t start = WPT_ALIGN_DOWN(addr, WPT_PAGE), end = start + WPT_PAGE, run_end;

	return (f->copying < end && start < f->copying_end) || is_in_hand(f, start, end) ||
	       wpt_ledger_next_pending(f->ledger, start, end, &run_end) < end;
}

/* Under the lock: faults that were deferred and whose pages are saved go on. */
static void let_go(struct wpt_faults *f)
{
	uint32_t i, n = 0;
	size_t k;

	for (i = 0; i < f->nr_deferred; i++)
		if (is_busy(f, f->ring[i]))
			f->ring[n++] = f->ring[i];
		else
			resolve(f, f->ring[i]);
	f->nr_deferred = n;
	if (f->overflow && n < RING / 2) {
		f->overflow = false;
		for (k = 0; k < f->nr_areas; k++)
			wpt_kern_wake(f->uffd, f->areas[k].start, f->areas[k].end);
	}
}

void wpt_faults_end(struct wpt_faults *f, struct wpt_cow_counts *counts)
{
	struct wpt_saved *list;

	wpt_faults_finish(f);
	pthread_mutex_lock(&f->lock);
	wpt_ledger_unpend(f->ledger, 0, UINT64_MAX);
	f->copying = f->copying_end = 0;
	let_go(f);
	f->overflow = false;
	atomic_store(&f->cow, false);
	*counts = f->counts;
	pthread_mutex_unlock(&f->lock);
	/* A fault that came in between is in hand; none begins to be. */
	wpt_faults_finish(f);
	pthread_mutex_lock(&f->lock);
	let_go(f);
	pthread_mutex_unlock(&f->lock);
	list = wpt_faults_saved(f, UINT32_MAX);
	wpt_faults_give_back(f, list);
	f->areas = NULL;
	f->nr_areas = 0;
}

void wpt_faults_lose(struct wpt_faults *f)
{
	pthread_mutex_lock(&f->lock);
	f->lost = true;
	pthread_mutex_unlock(&f->lock);
}

bool wpt_faults_lost(struct wpt_faults *f)
{
	bool lost;

	pthread_mutex_lock(&f->lock);
	lost = f->lost;
	pthread_mutex_unlock(&f->lock);
	return lost;
}

bool wpt_faults_claim(struct wpt_faults *f, uint64_t from, uint64_t end, uint64_t max, uint64_t *start, uint64_t *stop)
{
	pthread_mutex_lock(&f->lock);
	*start = wpt_ledger_next_pending(f->ledger, from, end, stop);
	if (*start < end) {
		*stop = WPT_MIN(*stop, *start + max);
		wpt_ledger_unpend(f->ledger, *start, *stop);
		f->copying = *start;
		f->copying_end = *stop;
	}
	pthread_mutex_unlock(&f->lock);
	return *start < end;
}

void wpt_faults_release(struct wpt_faults *f)
{
	pthread_mutex_lock(&f->lock);
	f->copying = f->copying_end = 0;
	if (f->nr_deferred || f->overflow)
		let_go(f);
	pthread_mutex_unlock(&f->lock);
}

struct wpt_saved *wpt_faults_saved(struct wpt_faults *f, uint32_t max)
{
	struct wpt_saved *list, **end = &list;

	pthread_mutex_lock(&f->lock);
	list = f->saved;
	while (max-- && *end) {
		end = &(*end)->next;
		f->nr_saved--;
	}
	f->saved = *end;
	if (!f->saved)
		f->saved_end = &f->saved;
	*end = NULL;
	pthread_mutex_unlock(&f->lock);
	return list;
}

void wpt_faults_give_back(struct wpt_faults *f, struct wpt_saved *list)
{
	struct wpt_saved *next;

	for (; list; list = next) {
		next = list->next;
		if (list->extra) {
			wpt_vm_free(list, 2 * WPT_PAGE);
			continue;
		}
		pthread_mutex_lock(&f->lock);
		list->next = f->free;
		f->free = list;
		pthread_mutex_unlock(&f->lock);
	}
}

uint32_t wpt_faults_waiting(struct wpt_faults *f, uint64_t *deferred)
{
	uint32_t nr;

	pthread_mutex_lock(&f->lock);
	nr = f->nr_saved;
	*deferred = f->nr_deferred ? f->ring[0] : 0;
	pthread_mutex_unlock(&f->lock);
	return nr;
}

void wpt_faults_finish(struct wpt_faults *f)
{
	pthread_mutex_lock(&f->lock);
	while (f->nr_in_hand)
		pthread_cond_wait(&f->saved_more, &f->lock);
	pthread_mutex_unlock(&f->lock);
}
