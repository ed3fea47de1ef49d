/* SPDX-License-Identifier: MIT */
#include "crew.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "own.h"

struct wpt_crew {
	pid_t pid;                 /* that the threads live in */
	pthread_mutex_t lock;      /* all of the following */
	pthread_cond_t begin;      /* there are pieces, or it is over */
	pthread_cond_t done;       /* all pieces are; a thread has started */
	uint32_t next, nr;         /* pieces: the first that nobody works on, and how many there are */
	uint32_t nr_busy;          /* that somebody works on */
	void (*fn)(void *arg, uint32_t i);
	void *arg;
	bool over;
	uint32_t nr_threads, nr_started;
	pthread_t threads[WPT_CREW_MAX];
};

/* Under the lock, which is dropped meanwhile. */
static void work(struct wpt_crew *c)
{
	uint32_t i = c->next++;

	c->nr_busy++;
	pthread_mutex_unlock(&c->lock);
	c->fn(c->arg, i);
	pthread_mutex_lock(&c->lock);
	if (--c->nr_busy == 0 && c->next == c->nr)
		pthread_cond_signal(&c->done);
}

static void *run(void *arg)
{
	struct wpt_crew *c = arg;

	wpt_own_enter();
	pthread_mutex_lock(&c->lock);
	c->nr_started++;
	pthread_cond_signal(&c->done);
	while (!c->over)
		if (c->next < c->nr)
			work(c);
		else
			pthread_cond_wait(&c->begin, &c->lock);
	pthread_mutex_unlock(&c->lock);
	wpt_own_leave();
	return NULL;
}

int wpt_crew_open(struct wpt_crew **out, uint32_t nr)
{
	struct wpt_crew *c = wpt_vm_alloc(sizeof(*c));
	sigset_t all, before;
	int err = 0;

	if (!c)
		return -ENOMEM;
	c->pid = getpid();
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->begin, NULL);
	pthread_cond_init(&c->done, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (c->nr_threads < WPT_MIN(nr, WPT_CREW_MAX) && !err) {
		err = -pthread_create(&c->threads[c->nr_threads], NULL, run, c);
		c->nr_threads += !err;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_mutex_lock(&c->lock);
	while (c->nr_started < c->nr_threads)
		pthread_cond_wait(&c->done, &c->lock);
	pthread_mutex_unlock(&c->lock);
	if (err) {
		wpt_crew_close(c);
		return err;
	}
	*out = c;
	return 0;
}

void wpt_crew_close(struct wpt_crew *c)
{
	uint32_t i;

	if (!c)
		return;
	if (c->pid == getpid()) {
		pthread_mutex_lock(&c->lock);
		c->over = true;
		pthread_cond_broadcast(&c->begin);
		pthread_mutex_unlock(&c->lock);
		for (i = 0; i < c->nr_threads; i++)
			pthread_join(c->threads[i], NULL);
		pthread_cond_destroy(&c->begin);
		pthread_cond_destroy(&c->done);
		pthread_mutex_destroy(&c->lock);
	}
	wpt_vm_free(c, sizeof(*c));
}

void wpt_crew_run(struct wpt_crew *c, uint32_t nr, void (*fn)(void *arg, uint32_t i), void *arg)
{
	pthread_mutex_lock(&c->lock);
	c->fn = fn;
	c->arg = arg;
	c->next = 0;
	c->nr = nr;
	pthread_cond_broadcast(&c->begin);
	while (c->next < c->nr)
		work(c);
	while (c->nr_busy)
		pthread_cond_wait(&c->done, &c->lock);
	c->nr = c->next = 0;
	pthread_mutex_unlock(&c->lock);
}
