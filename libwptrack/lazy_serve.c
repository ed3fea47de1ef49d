/* SPDX-License-Identifier: MIT */
/* The threads of a lazy restore: one reads events, some serve faults, some fill in the rest. */
#include "lazy.h"

#include <poll.h>
#include <sched.h>

#include "kern.h"
#include "page.h"
#include "sys.h"

#define MESSAGES 16
#define FILL_BYTES ((uint64_t)1 << 20)
#define RETRY_NS 100000000L
#define ALIVE_MS 200
#define SAY_NS UINT64_C(10000000000)
#define SLOW_NS UINT64_C(5000000000)

/* ---- what went wrong ---- */

static void fail(struct wpt_lazy *l, int err)
{
	uint64_t one = 1;

	pthread_mutex_lock(&l->lock);
	if (!l->err && !l->done) {
		l->err = err;
		l->over = true;
		wpt_sys(SYS_write, l->ready, &one, sizeof(one));
	}
	pthread_cond_broadcast(&l->work);
	pthread_cond_broadcast(&l->finished);
	pthread_mutex_unlock(&l->lock);
}

/* Of the chain: whether it may work another time. A file that is gone (WPT_E_CHAIN) may come back; what is wrong with its bytes stays so. */
static bool is_passing(int err)
{
	if (err <= -WPT_E_UNSUPPORTED)
		return err == -WPT_E_STORE || err == -WPT_E_CHAIN;
	return err != -EINVAL && err != -EBADF && err != -EFAULT && err != -ENOSYS;
}

/* Waits a moment, and says so if it goes on for long. false: it is over. */
static bool retry(struct wpt_lazy *l, const char *what, int err)
{
	struct pollfd end = { l->end, POLLIN, 0 };
	const struct timespec pause = { 0, RETRY_NS };
	uint64_t now = wpt_now_ns(), since;
	bool say, over;

	pthread_mutex_lock(&l->lock);
	if (!l->failing_since)
		l->failing_since = now;
	since = l->failing_since;
	say = since == now || now - l->failing_said >= SAY_NS;
	if (say)
		l->failing_said = now;
	l->stats.nr_retries++;
	over = l->over;
	pthread_mutex_unlock(&l->lock);
	if (say && !over)
		wpt_logf(&l->log, WPT_LOG_WARNING, "%s: %s; what needs the memory waits%s", what, wpt_strerror(err),
			 since == now ? ", it is tried again and again" : ", still");
	if (!over)
		wpt_sys(SYS_ppoll, &end, 1, &pause, NULL, 0);
	return !over;
}

/* Of a thread that failed: what another one does meanwhile says nothing of that. */
static void worked(struct wpt_lazy *l)
{
	uint64_t since;

	pthread_mutex_lock(&l->lock);
	since = l->failing_since;
	l->failing_since = 0;
	l->recovered = wpt_now_ns();
	pthread_mutex_unlock(&l->lock);
	if (since)
		wpt_logf(&l->log, WPT_LOG_WARNING, "it works again after %.1f s", (double)(wpt_now_ns() - since) / 1e9);
}

static bool is_over(struct wpt_lazy *l)
{
	bool over;

	pthread_mutex_lock(&l->lock);
	over = l->over;
	pthread_mutex_unlock(&l->lock);
	return over;
}

/* ---- putting pages ---- */

static void copy_begin(struct wpt_lazy *l)
{
	pthread_mutex_lock(&l->lock);
	while (l->reading)
		pthread_cond_wait(&l->copies_allowed, &l->lock);
	l->nr_copying++;
	pthread_mutex_unlock(&l->lock);
}

static void copy_end(struct wpt_lazy *l)
{
	pthread_mutex_lock(&l->lock);
	if (--l->nr_copying == 0 && l->reading)
		pthread_cond_signal(&l->no_copies);
	pthread_mutex_unlock(&l->lock);
}

/* Bytes from `at` (in the piece) on of one kind: given back or not. */
static uint64_t gone_run(const struct wpt_lazy_piece *p, uint64_t at, uint64_t end, bool *gone)
{
	uint64_t page = at / WPT_PAGE, i;

	*gone = p->gone[page / 64] >> (page & 63) & 1;
	for (i = page + 1; i * WPT_PAGE < end && (p->gone[i / 64] >> (i & 63) & 1) == *gone; i++)
		;
	return WPT_MIN(i * WPT_PAGE, end) - at;
}

/*
 * What the kernel said: bytes that are done with, 0 to try again, or an error. Nothing is registered at an address where it finds no mapping of ours:
 * the target has unmapped it, or put something else there. Of several pages that may be true of some, or they are in several mappings; then
 * one is tried.
 */
static int64_t judge(struct wpt_lazy *l, int64_t got, uint64_t len, uint64_t page, bool *failed)
{
	if (got > 0) {
		if (*failed)
			worked(l);
		*failed = false;
		return got;
	}
	if (got == -ENOENT)
		return len > page ? 0 : (int64_t)len;
	if (got == -ESRCH)
		return -WPT_E_GONE;
	if (got == -EAGAIN || got == 0) {
		sched_yield();
		/* An event that waits to be read may wait for ever now. */
		return is_over(l) ? -ECANCELED : 0;
	}
	if (got == -ENOMEM || got == -ENOSPC) {
		*failed = true;
		return retry(l, "no memory to restore to", (int)got) ? 0 : -ECANCELED;
	}
	return got;
}

/* A huge page is put whole: what was given back of it is zero, if not all was. While nobody reads events. */
static bool clear_gone(const struct wpt_lazy_piece *p, uint64_t at, uint8_t *data)
{
	uint64_t i, nr = 0;
	bool gone;

	for (i = 0; i < p->page_size; i += WPT_PAGE) {
		gone_run(p, at + i, at + i + WPT_PAGE, &gone);
		if (gone)
			memset(data + i, 0, WPT_PAGE);
		nr += gone;
	}
	return nr == p->page_size / WPT_PAGE;
}

static int put(struct wpt_lazy *l, const struct wpt_lazy_piece *p, uint64_t at, uint8_t *data, uint64_t len)
{
	uint64_t n, most = p->page_size == WPT_PAGE ? len : p->page_size;
	bool gone, failed = false;
	int64_t got, done;

	while (len) {
		copy_begin(l);
		n = WPT_MIN(len, most);
		if (p->page_size == WPT_PAGE)
			n = gone_run(p, at, at + n, &gone);
		else
			gone = clear_gone(p, at, data);
		got = gone ? (int64_t)n : wpt_kern_fill(l->uffd, p->addr + at, data, n);
		copy_end(l);
		done = judge(l, got, n, p->page_size, &failed);
		if (done < 0)
			return (int)done;
		/* One by one, up to the next page that can be put. */
		most = got == -ENOENT ? p->page_size : p->page_size == WPT_PAGE ? len : p->page_size;
		at += (uint64_t)done;
		data += done;
		len -= (uint64_t)done;
	}
	return 0;
}

static bool is_zero(const uint8_t *data, uint64_t len)
{
	uint64_t i;

	for (i = 0; i < len; i += WPT_PAGE)
		if (!wpt_page_is_zero(data + i))
			return false;
	return true;
}

static int put_nonzero(struct wpt_lazy *l, const struct wpt_lazy_piece *p, uint64_t at, uint8_t *data, uint64_t len)
{
	uint64_t from, to;
	int err;

	/* [from, to) is to be put. */
	for (from = to = 0; to < len; to += p->page_size) {
		if (!is_zero(data + to, p->page_size))
			continue;
		err = put(l, p, at + from, data + from, to - from);
		if (err)
			return err;
		from = to + p->page_size;
	}
	return put(l, p, at + from, data + from, to - from);
}

static int put_zero(struct wpt_lazy *l, const struct wpt_lazy_piece *p, uint64_t addr)
{
	bool failed = false;
	int64_t got = 0;

	while (!got) {
		got = p->page_size == WPT_PAGE ? wpt_kern_fill_zero(l->uffd, addr, WPT_PAGE) : wpt_kern_fill(l->uffd, addr, l->zeros, p->page_size);
		/* Another thread's fault was answered meanwhile, or it was only waiting for its turn. */
		if (got == -EEXIST) {
			wpt_kern_wake(l->uffd, addr, addr + p->page_size);
			return 0;
		}
		got = judge(l, got, p->page_size, p->page_size, &failed);
	}
	return got < 0 ? (int)got : 0;
}

/* ---- units ---- */

static int read_chain(struct wpt_lazy *l, uint64_t addr, uint8_t *buf, uint64_t len)
{
	bool failed = false;
	int err;

	for (;;) {
		err = wpt_chain_read(l->chain, addr, buf, (size_t)len);
		if (!err || err == -WPT_E_UNREADABLE)
			break;
		if (!is_passing(err))
			return err;
		failed = true;
		if (!retry(l, "the snapshot can't be read", err))
			return -ECANCELED;
	}
	if (failed)
		worked(l);
	return 0;
}

/* A huge page's worth of small ones is complete: nothing of it is missing, so that it need not be registered any more. */
static void collapse(struct wpt_lazy *l, uint64_t start)
{
	if (wpt_lazy_unregister(l, start, start + WPT_LAZY_EXTENT) || wpt_target_collapse(l->target, start, start + WPT_LAZY_EXTENT))
		return;
	pthread_mutex_lock(&l->lock);
	l->stats.pages_collapsed += WPT_LAZY_EXTENT / WPT_PAGE;
	pthread_mutex_unlock(&l->lock);
}

/* A piece need not begin where a huge page may: units may be in two extents. */
static bool is_complete(const struct wpt_lazy_piece *p, uint64_t start)
{
	uint64_t unit, last;

	if (start < p->addr || start + WPT_LAZY_EXTENT > p->addr + p->len)
		return false;
	last = (start + WPT_LAZY_EXTENT - 1 - p->addr) / p->unit;
	for (unit = (start - p->addr) / p->unit; unit <= last; unit++)
		if (p->state[unit] != WPT_UNIT_DONE)
			return false;
	return true;
}

/* Units are in no more than two extents: those that they completed. */
static int complete_extents(const struct wpt_lazy_piece *p, uint64_t from, uint64_t end, uint64_t extents[2])
{
	uint64_t at;
	int nr = 0;

	for (at = WPT_ALIGN_DOWN(p->addr + from, WPT_LAZY_EXTENT); at < p->addr + end && nr < 2; at += WPT_LAZY_EXTENT)
		if (is_complete(p, at))
			extents[nr++] = at;
	return nr;
}

static uint64_t unit_end(const struct wpt_lazy_piece *p, uint64_t unit)
{
	return WPT_MIN((unit + 1) * p->unit, p->len);
}

/* They are there: whoever wanted one of them is woken, and if it was the last, all is over. */
static void complete(struct wpt_lazy *l, struct wpt_lazy_piece *p, uint64_t first, uint64_t nr, bool faulted)
{
	uint64_t from = first * p->unit, end = unit_end(p, first + nr - 1), extents[2], i;
	bool wanted = false, last;
	int nr_extents = 0;

	pthread_mutex_lock(&l->lock);
	for (i = first; i < first + nr; i++) {
		wanted |= p->state[i] == WPT_UNIT_WANTED;
		p->state[i] = WPT_UNIT_DONE;
	}
	l->left -= end - from;
	if (faulted)
		l->stats.bytes_faulted += end - from;
	last = !l->left;
	if (l->o.flags & WPT_LAZY_COLLAPSE && p->page_size == WPT_PAGE)
		nr_extents = complete_extents(p, from, end, extents);
	pthread_mutex_unlock(&l->lock);
	if (wanted)
		wpt_kern_wake(l->uffd, p->addr + from, p->addr + end);
	while (nr_extents)
		collapse(l, extents[--nr_extents]);
	if (last)
		wpt_lazy_finish(l);
}

/* A thread of ours and its buffer. */
struct hand {
	struct wpt_lazy *l;
	uint8_t *buf;
	uint32_t slot;
};

static int hand_open(struct hand *h, struct wpt_lazy *l)
{
	h->l = l;
	h->buf = wpt_vm_alloc(l->buf_bytes);
	pthread_mutex_lock(&l->lock);
	h->slot = l->nr_busy++;
	pthread_mutex_unlock(&l->lock);
	return h->buf ? 0 : -ENOMEM;
}

static void hand_close(struct hand *h, int err)
{
	if (err && err != -ECANCELED)
		fail(h->l, err);
	wpt_vm_free(h->buf, h->l->buf_bytes);
}

static void set_busy(struct hand *h, uint64_t since)
{
	bool said;

	pthread_mutex_lock(&h->l->lock);
	h->l->busy[h->slot] = since;
	said = !since && h->l->slow_said && !h->l->over;
	h->l->slow_said &= !said;
	if (said)
		h->l->recovered = wpt_now_ns();
	pthread_mutex_unlock(&h->l->lock);
	if (said)
		wpt_logf(&h->l->log, WPT_LOG_WARNING, "the snapshot's store answers again");
}

/* Units that this thread claimed. */
static int bring(struct hand *h, struct wpt_lazy_piece *p, uint64_t first, uint64_t nr, bool faulted)
{
	uint64_t at = first * p->unit, len = unit_end(p, first + nr - 1) - at;
	struct wpt_lazy *l = h->l;
	uint8_t *buf = h->buf;
	int err;

	set_busy(h, wpt_now_ns());
	err = read_chain(l, p->start + at, buf, len);
	set_busy(h, 0);
	if (!err)
		err = put_nonzero(l, p, at, buf, len);
	if (!err)
		complete(l, p, first, nr, faulted);
	return err;
}

static struct wpt_lazy_piece *piece_of(struct wpt_lazy *l, uint64_t addr)
{
	struct wpt_lazy_piece *p;
	size_t i;

	for (i = 0; i < l->pieces.count; i++) {
		p = wpt_vec_at(&l->pieces, struct wpt_lazy_piece, i);
		if (addr >= p->addr && addr - p->addr < p->len)
			return p;
	}
	return NULL;
}

static int serve(struct hand *h, uint64_t addr)
{
	struct wpt_lazy *l = h->l;
	struct wpt_lazy_piece *p = piece_of(l, addr);
	enum wpt_unit_state state;
	uint64_t unit, page;
	int err;

	if (!p)
		return 0;
	unit = (addr - p->addr) / p->unit;
	page = WPT_ALIGN_DOWN(addr, p->page_size);
	pthread_mutex_lock(&l->lock);
	state = p->state[unit];
	if (state != WPT_UNIT_DONE)
		p->state[unit] = state == WPT_UNIT_MISSING ? WPT_UNIT_CLAIMED : WPT_UNIT_WANTED;
	pthread_mutex_unlock(&l->lock);
	if (state == WPT_UNIT_CLAIMED || state == WPT_UNIT_WANTED)
		return 0;
	if (state == WPT_UNIT_DONE)
		return put_zero(l, p, page);
	err = bring(h, p, unit, 1, true);
	/* Not put if it is zero or was given back; and then nobody was woken. */
	return err ? err : put_zero(l, p, page);
}

/* ---- threads ---- */

/* Over, or the next fault. With the lock. */
static bool next_fault(struct wpt_lazy *l, uint64_t *addr)
{
	while (!l->over && l->queue_next == l->queue.count)
		pthread_cond_wait(&l->work, &l->lock);
	if (l->over)
		return false;
	*addr = *wpt_vec_at(&l->queue, uint64_t, l->queue_next++);
	if (l->queue_next == l->queue.count) {
		wpt_vec_clear(&l->queue);
		l->queue_next = 0;
	}
	return true;
}

void *wpt_lazy_run_server(void *arg)
{
	struct wpt_lazy *l = arg;
	struct hand h;
	uint64_t addr;
	int err = hand_open(&h, l);

	pthread_mutex_lock(&l->lock);
	while (!err && next_fault(l, &addr)) {
		pthread_mutex_unlock(&l->lock);
		err = serve(&h, addr);
		pthread_mutex_lock(&l->lock);
	}
	pthread_mutex_unlock(&l->lock);
	hand_close(&h, err);
	return NULL;
}

/* The next units that are missing, claimed. With the lock. */
static bool claim(struct wpt_lazy *l, struct wpt_lazy_piece **out, uint64_t *first, uint64_t *nr)
{
	struct wpt_lazy_piece *p;
	uint64_t at, max;
	size_t i;

	for (i = 0; i < l->pieces.count && !l->over; i++) {
		p = wpt_vec_at(&l->pieces, struct wpt_lazy_piece, i);
		max = WPT_MAX(FILL_BYTES / p->unit, UINT64_C(1));
		for (at = p->fill_next; at < p->nr_units && p->state[at] != WPT_UNIT_MISSING; at++)
			;
		*first = at;
		for (; at < p->nr_units && at - *first < max && p->state[at] == WPT_UNIT_MISSING; at++)
			p->state[at] = WPT_UNIT_CLAIMED;
		p->fill_next = at;
		*nr = at - *first;
		*out = p;
		if (*nr)
			return true;
	}
	return false;
}

void *wpt_lazy_run_filler(void *arg)
{
	struct wpt_lazy *l = arg;
	struct wpt_lazy_piece *p;
	struct hand h;
	uint64_t first, nr;
	int err = hand_open(&h, l);

	pthread_mutex_lock(&l->lock);
	while (!err && claim(l, &p, &first, &nr)) {
		pthread_mutex_unlock(&l->lock);
		err = bring(&h, p, first, nr, false);
		pthread_mutex_lock(&l->lock);
	}
	pthread_mutex_unlock(&l->lock);
	hand_close(&h, err);
	return NULL;
}

static void given_back(struct wpt_lazy *l, uint64_t start, uint64_t end)
{
	struct wpt_lazy_piece *p;
	uint64_t at;
	size_t i;

	for (i = 0; i < l->pieces.count; i++) {
		p = wpt_vec_at(&l->pieces, struct wpt_lazy_piece, i);
		for (at = WPT_MAX(start, p->addr); at < WPT_MIN(end, p->addr + p->len); at += WPT_PAGE)
			p->gone[(at - p->addr) / WPT_PAGE / 64] |= UINT64_C(1) << ((at - p->addr) / WPT_PAGE & 63);
	}
}

/* With the lock. */
static int take_message(struct wpt_lazy *l, const struct uffd_msg *msg)
{
	uint64_t *slot;

	if (msg->event == UFFD_EVENT_REMOVE)
		given_back(l, msg->arg.remove.start, msg->arg.remove.end);
	if (msg->event != UFFD_EVENT_PAGEFAULT)
		return 0;
	slot = wpt_vec_push(&l->queue);
	if (!slot)
		return -ENOMEM;
	*slot = msg->arg.pagefault.address;
	l->stats.nr_faults++;
	pthread_cond_signal(&l->work);
	return 0;
}

/* All that is there now, while nobody copies: whoever gave memory back goes on as soon as that was read. */
static int take_messages(struct wpt_lazy *l)
{
	struct uffd_msg msgs[MESSAGES];
	ssize_t got = 0;
	size_t i;
	int err = 0;

	pthread_mutex_lock(&l->lock);
	l->reading = true;
	while (l->nr_copying)
		pthread_cond_wait(&l->no_copies, &l->lock);
	got = wpt_sys(SYS_read, l->uffd, msgs, sizeof(msgs));
	for (i = 0; got > 0 && i < (size_t)got / sizeof(msgs[0]) && !err; i++)
		err = take_message(l, &msgs[i]);
	l->reading = false;
	pthread_cond_broadcast(&l->copies_allowed);
	pthread_mutex_unlock(&l->lock);
	return err || got >= 0 || got == -EAGAIN || got == -EINTR ? err : (int)got;
}

/* A read that does not come back, as from a server that is away, is no error; it is said all the same. */
static void say_slow(struct wpt_lazy *l)
{
	uint64_t oldest = UINT64_MAX, now = wpt_now_ns();
	bool say;
	uint32_t i;

	pthread_mutex_lock(&l->lock);
	for (i = 0; i < l->nr_busy; i++)
		if (l->busy[i])
			oldest = WPT_MIN(oldest, l->busy[i]);
	say = oldest < now && now - oldest > SLOW_NS && !l->failing_since && !l->slow_said;
	l->slow_said |= say;
	pthread_mutex_unlock(&l->lock);
	if (say)
		wpt_logf(&l->log, WPT_LOG_WARNING, "the snapshot's store has not answered for %.0f s; what needs the memory waits",
			 (double)(now - oldest) / 1e9);
}

void *wpt_lazy_run_reader(void *arg)
{
	struct wpt_lazy *l = arg;
	const struct timespec timeout = { 0, ALIVE_MS * 1000000L };
	struct pollfd fds[2] = { { l->end, POLLIN, 0 }, { l->uffd, POLLIN, 0 } };
	struct timespec left;
	int err = 0;
	long n;

	while (!err) {
		left = timeout;
		n = wpt_sys(SYS_ppoll, fds, 2, &left, NULL, 0);
		if (n > 0 && fds[0].revents)
			break;
		if (n > 0 && fds[1].revents & (POLLERR | POLLNVAL))
			err = -EIO;
		else if (n > 0)
			err = take_messages(l);
		else if (n == 0)
			err = wpt_target_alive(l->target);
		if (n == 0)
			say_slow(l);
	}
	/* Whoever gave memory back just before that was not registered any more waits until it is read. */
	while (!err && wpt_kern_is_changing(l->uffd)) {
		err = take_messages(l);
		sched_yield();
	}
	if (err)
		fail(l, err);
	return NULL;
}
