/* SPDX-License-Identifier: MIT */
/* A progress bar, and the way to cancel what it shows. */
#include "wpsnap.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define INTERVAL_NS 100000000u
#define BAR_WIDTH 24

static volatile sig_atomic_t cancelled_by;

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void on_signal(int sig)
{
	cancelled_by = sig;
}

/* The second signal ends at once: a write that blocks for ever must not hold the terminal. */
static void catch_signal(int sig)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND };
	struct sigaction old;

	if (sigaction(sig, NULL, &old) == 0 && old.sa_handler == SIG_DFL)
		sigaction(sig, &sa, NULL);
}

void interrupt_catch(void)
{
	catch_signal(SIGINT);
	catch_signal(SIGTERM);
}

bool interrupt_asked(void)
{
	return cancelled_by != 0;
}

void interrupt_finish(const char *what, int err)
{
	int sig = cancelled_by;

	if (err != -ECANCELED || !sig)
		return;
	complain("%s: interrupted; nothing incomplete was left", what);
	signal(sig, SIG_DFL);
	raise(sig);
}

void progress_begin(struct progress *p, const char *what, bool quiet)
{
	memset(p, 0, sizeof(*p));
	p->what = what;
	p->enabled = !quiet && isatty(STDERR_FILENO);
	p->begin_ns = p->last_ns = now_ns();
	interrupt_catch();
}

static void draw(struct progress *p, uint64_t done, uint64_t total, uint64_t elapsed)
{
	double share = total ? (double)done / (double)total : 1;
	double rate = (double)done * 1e9 / (double)(elapsed ? elapsed : 1);
	char size[UNITS_TEXT], left[UNITS_TEXT];
	int filled;

	if (share > 1)
		share = 1;
	filled = (int)(share * BAR_WIDTH);
	format_size(size, (uint64_t)rate);
	format_duration(left, rate > 0 ? (uint64_t)((double)(total - done) / rate * 1e9) : 0);
	fprintf(stderr, "\r\033[K%s [%.*s%*s] %3d%%  %s/s  %s left", p->what, filled, "########################",
		BAR_WIDTH - filled, "", (int)(share * 100), size, left);
	p->shown = true;
}

int progress_update(void *arg, uint64_t done, uint64_t total)
{
	struct progress *p = arg;
	uint64_t now;

	if (cancelled_by)
		return 1;
	if (!p->enabled || done > total)
		return 0;
	now = now_ns();
	if (now - p->last_ns < INTERVAL_NS)
		return 0;
	p->last_ns = now;
	draw(p, done, total, now - p->begin_ns);
	return 0;
}

void progress_end(struct progress *p, int err)
{
	if (p->shown)
		fputs("\r\033[K", stderr);
	interrupt_finish(p->what, err);
}
