/* SPDX-License-Identifier: MIT */
/*
 * One lock over everything; it is held for a few pointers at a time, a few times per job, and a job is about a millisecond of work.
 *
 * Submitted jobs form one list in order, `first` to `last`; `todo` is the first of them that nobody works on yet. Result memory
 * is handed out together with a job in that order, so the first job of the list always has its own and the list moves on.
 * Only the thread that set `emitting` touches the first job.
 */
#include "pipe.h"
#include "own.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

struct wpt_pipe {
	struct wpt_pipe_params params;
	size_t bytes;                  /* of this struct */
	pid_t pid;                     /* that the threads live in */
	pthread_mutex_t lock;
	pthread_cond_t work;           /* for the threads: todo, free_out, barrier or stop changed */
	pthread_cond_t progress;       /* for the caller: a job became free, or the list empty */
	struct wpt_pipe_job *free;
	struct wpt_pipe_job *first, *last, *todo;
	uint64_t submitted;
	bool emitting, stop;
	bool held;                     /* no job is begun, unless the caller waits for one to become free */
	int error;
	uint8_t *outs;
	uint32_t nr_outs, nr_free_outs;
	uint32_t nr_threads;
	pthread_t threads[WPT_PIPE_THREADS_MAX];
	void *free_outs[];
};

static void out_release(struct wpt_pipe *p, struct wpt_pipe_job *job)
{
	p->free_outs[p->nr_free_outs++] = job->out;
	job->out = NULL;
}

/* Under the lock; drops it meanwhile. The first job was worked on. */
static void emit_first(struct wpt_pipe *p)
{
	struct wpt_pipe_job *job = p->first;
	int error = p->error;

	p->emitting = true;
	pthread_mutex_unlock(&p->lock);
	if (error == 0)
		error = p->params.emit(p->params.arg, job);
	pthread_mutex_lock(&p->lock);
	p->emitting = false;
	if (p->error == 0)
		p->error = error;
	p->first = job->next;
	if (!p->first)
		p->last = NULL;
	out_release(p, job);
	job->next = p->free;
	p->free = job;
	pthread_cond_signal(&p->progress);
	if (p->todo)
		pthread_cond_broadcast(&p->work);
}

/* Under the lock; drops it meanwhile. There is a job to do and memory for its result. */
static void work_next(struct wpt_pipe *p, uint32_t thread)
{
	struct wpt_pipe_job *job = p->todo;
	int error = p->error;

	p->todo = job->next;
	job->out = p->free_outs[--p->nr_free_outs];
	pthread_mutex_unlock(&p->lock);
	if (error == 0)
		error = p->params.work(p->params.arg, thread, job);
	pthread_mutex_lock(&p->lock);
	if (p->error == 0)
		p->error = error;
	job->worked = true;
}

struct start {
	struct wpt_pipe *pipe;
	uint32_t thread;
	bool taken;
};

static void *run(void *arg)
{
	struct start *start = arg;
	struct wpt_pipe *p = start->pipe;
	uint32_t thread = start->thread;

	wpt_own_enter();
	pthread_mutex_lock(&p->lock);
	start->taken = true;
	pthread_cond_broadcast(&p->progress);
	for (;;) {
		if (p->first && p->first->worked && !p->emitting)
			emit_first(p);
		else if (p->todo && !p->held && p->nr_free_outs && (!p->todo->barrier || p->todo == p->first))
			work_next(p, thread);
		else if (p->stop && !p->todo)
			break;
		else
			pthread_cond_wait(&p->work, &p->lock);
	}
	pthread_mutex_unlock(&p->lock);
	wpt_own_leave();
	return NULL;
}

static int threads_start(struct wpt_pipe *p)
{
	sigset_t all, before;
	int ret = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (p->nr_threads < p->params.nr_threads && ret == 0) {
		struct start start = { p, p->nr_threads, false };

		ret = -pthread_create(&p->threads[p->nr_threads], NULL, run, &start);
		if (ret)
			break;
		p->nr_threads++;
		pthread_mutex_lock(&p->lock);
		while (!start.taken)
			pthread_cond_wait(&p->progress, &p->lock);
		pthread_mutex_unlock(&p->lock);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return ret;
}

int wpt_pipe_open(struct wpt_pipe **out, const struct wpt_pipe_params *params)
{
	uint32_t nr_outs = params->nr_threads * 2;
	struct wpt_pipe *p;
	size_t bytes = sizeof(*p) + nr_outs * sizeof(void *);
	int ret;

	if (params->nr_threads < 1 || params->nr_threads > WPT_PIPE_THREADS_MAX)
		return -EINVAL;
	p = wpt_vm_alloc(bytes);
	if (!p)
		return -ENOMEM;
	p->bytes = bytes;
	p->params = *params;
	p->pid = getpid();
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	pthread_cond_init(&p->progress, NULL);
	ret = -ENOMEM;
	p->nr_outs = nr_outs;
	p->outs = wpt_vm_alloc(params->out_bytes * nr_outs);
	if (!p->outs)
		goto fail;
	for (uint32_t i = 0; i < nr_outs; i++)
		p->free_outs[p->nr_free_outs++] = p->outs + i * params->out_bytes;
	ret = threads_start(p);
	if (ret < 0)
		goto fail;
	*out = p;
	return 0;
fail:
	wpt_pipe_close(p);
	return ret;
}

void wpt_pipe_add(struct wpt_pipe *p, struct wpt_pipe_job *job)
{
	pthread_mutex_lock(&p->lock);
	job->next = p->free;
	p->free = job;
	pthread_mutex_unlock(&p->lock);
}

/* Under the lock. */
static void let_go(struct wpt_pipe *p)
{
	if (p->held && p->todo)
		pthread_cond_broadcast(&p->work);
	p->held = false;
}

void wpt_pipe_hold(struct wpt_pipe *p, bool hold)
{
	pthread_mutex_lock(&p->lock);
	if (hold)
		p->held = true;
	else
		let_go(p);
	pthread_mutex_unlock(&p->lock);
}

int wpt_pipe_get(struct wpt_pipe *p, struct wpt_pipe_job **out, bool wait)
{
	struct wpt_pipe_job *job = NULL;
	int ret;

	pthread_mutex_lock(&p->lock);
	if (wait && !p->free)
		let_go(p);
	while (wait && !p->free && p->error == 0)
		pthread_cond_wait(&p->progress, &p->lock);
	ret = p->error;
	if (ret == 0 && p->free) {
		job = p->free;
		p->free = job->next;
	}
	pthread_mutex_unlock(&p->lock);
	*out = job;
	return ret;
}

int wpt_pipe_submit(struct wpt_pipe *p, struct wpt_pipe_job *job, bool barrier)
{
	int ret;

	job->next = NULL;
	job->worked = false;
	job->barrier = barrier;
	pthread_mutex_lock(&p->lock);
	job->order = p->submitted++;
	if (p->last)
		p->last->next = job;
	else
		p->first = job;
	p->last = job;
	if (!p->todo)
		p->todo = job;
	ret = p->error;
	if (!p->held)
		pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->lock);
	return ret;
}

int wpt_pipe_drain(struct wpt_pipe *p)
{
	int ret;

	pthread_mutex_lock(&p->lock);
	let_go(p);
	while (p->first)
		pthread_cond_wait(&p->progress, &p->lock);
	ret = p->error;
	pthread_mutex_unlock(&p->lock);
	return ret;
}

void wpt_pipe_reset(struct wpt_pipe *p, void *arg)
{
	if (p->pid != getpid())
		return;
	wpt_pipe_fail(p, -ECANCELED);
	wpt_pipe_drain(p);
	pthread_mutex_lock(&p->lock);
	p->free = NULL;
	p->submitted = 0;
	p->error = 0;
	p->params.arg = arg;
	pthread_mutex_unlock(&p->lock);
}

int wpt_pipe_fail(struct wpt_pipe *p, int err)
{
	pthread_mutex_lock(&p->lock);
	if (p->error == 0)
		p->error = err;
	err = p->error;
	pthread_mutex_unlock(&p->lock);
	return err;
}

void wpt_pipe_close(struct wpt_pipe *p)
{
	if (!p)
		return;
	if (p->nr_threads && p->pid == getpid()) {
		pthread_mutex_lock(&p->lock);
		if (p->error == 0)
			p->error = -ECANCELED;
		p->stop = true;
		p->held = false;
		pthread_cond_broadcast(&p->work);
		pthread_mutex_unlock(&p->lock);
		for (uint32_t i = 0; i < p->nr_threads; i++)
			pthread_join(p->threads[i], NULL);
	}
	wpt_vm_free(p->outs, p->params.out_bytes * p->nr_outs);
	wpt_vm_free(p, p->bytes);
}
