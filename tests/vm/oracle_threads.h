/* SPDX-License-Identifier: MIT */
/*
 * The oracle with threads: writers write while the main thread scans, protects and copies what was reported, and others give memory back, page it
 * out, collapse it, fork. When all have stopped, a last scan must report every page whose content is not what was copied. A page has one writer,
 * and its own last step after which it is not written any more, so that a loss early on is not covered up by a later write.
 */
#ifndef ORACLE_THREADS_H
#define ORACLE_THREADS_H

#include "oracle_ops.h"

#define MAX_THREADS 16
#define DISTURBERS 2

struct stage {
	struct area *a;
	uint64_t phase;
	unsigned writers, steps;
	_Atomic unsigned step, stop;
	_Atomic uint64_t writes, acts;
	uint8_t *last_step; /* per unit: not written from then on */
	uint64_t allowed;   /* operations of disturbers, by bit */
};

struct worker {
	struct stage *s;
	unsigned number;
	struct rng g;
	pthread_t thread;
};

/* Operations that need no bookkeeping of their own; those of the second group use what there is only one of, and belong to one thread. */
static const char shared_ops[] = "dontneed,free,pageout,advise,collapse,populate-read,populate-write,remove,punch,sync,mprotect,resolve,zeropage,"
				 "copy,lock,compact,reclaim,split,read";
static const char single_ops[] = "fork,reap,dontunmap,move,ksm,offline";

static uint64_t op_set(const char *names);

static void *writer(void *arg)
{
	struct worker *w = arg;
	struct stage *s = w->s;
	struct area *a = s->a;
	uint64_t seq = 0;

	while (!s->stop) {
		size_t u = below(&w->g, (a->nr + s->writers - 1) / s->writers) * s->writers + w->number;
		unsigned step = s->step;
		uint64_t stamp[2] = { s->phase << 40 | (uint64_t)step << 32 | ++seq, rnd(&w->g) };
		char *p;

		if (u >= a->nr || s->last_step[u] <= step) {
			if (step + 1 >= s->steps)
				usleep(200);
			continue;
		}
		p = unit_at(a, u);
		switch (below(&w->g, 8)) {
		case 0:
			try_set(p + a->unit / 2, (int)below(&w->g, 256), PAGE / 2);
			break;
		case 1: {
			struct iovec l = { stamp, 16 }, r = { p, 16 };

			process_vm_writev(getpid(), &l, 1, &r, 1, 0);
			break;
		}
		case 2:
			try_add(p + below(&w->g, a->unit / 8) * 8, 1);
			break;
		case 3:
			touch(unit_at(a, below(&w->g, a->nr)));
			break;
		default:
			try_copy(p + below(&w->g, a->unit / 16) * 16, stamp, 16);
			try_copy(p, stamp, 8);
		}
		s->writes++;
	}
	return NULL;
}

static void *disturber(void *arg)
{
	struct worker *w = arg;
	struct stage *s = w->s;
	uint64_t allowed = s->allowed & (w->number ? op_set(shared_ops) : op_set(shared_ops) | op_set(single_ops));
	unsigned total = 0, until = (unsigned)below(&w->g, s->steps + 1);
	unsigned weight[64] = { 0 };

	for (unsigned i = 0; i < NR_OPS; i++) {
		weight[i] = allowed & (1ull << i) && chance(&w->g, 60) ? ops[i].weight : 0;
		total += weight[i];
	}
	while (total && !s->stop && s->step < until) {
		unsigned x = (unsigned)below(&w->g, total), i = 0;
		size_t n = chance(&w->g, 20) && s->a->unit == PAGE ? 512 : below(&w->g, 16) + 1, u = below(&w->g, s->a->nr);
		struct range r = { u, n, unit_at(s->a, u), 0 };
		struct rng own = { rnd(&w->g) };

		if (r.n > s->a->nr - u)
			r.n = s->a->nr - u;
		r.bytes = r.n * s->a->unit;
		while (x >= weight[i])
			x -= weight[i++];
		ops[i].run(s->a, &r, &own);
		s->acts++;
		if (chance(&w->g, 30))
			usleep((unsigned)below(&w->g, 500));
	}
	return NULL;
}

static const char *arm(struct area *a, struct rng *g, uint8_t *out);
static void take_base(struct area *a, struct rng *g);
static void protect_first(struct area *a, struct rng *g);
static bool reported_late(struct area *a, size_t u);
static void complain(struct area *a, size_t u, const char *what, uint64_t pm_before, const char *by);

/* A scan that protects, and copies of what it reported. */
static const char *chain_link(struct area *a, struct rng *g)
{
	enum how how = (enum how)below(g, NR_HOW);
	const char *by;

	memset(a->seen, 0, a->nr);
	by = arm(a, g, a->seen);
	read_pagemap(a);
	for (size_t u = 0; u < a->nr; u++) {
		if (!a->seen[u])
			continue;
		tot->reported++;
		for (int i = 0; fetch(a, u, how, a->shadow + u * a->unit); i++) {
			if (i > 20000)
				fatal("%s: unit %zu can't be read", a->desc->name, u);
			usleep(1000); /* another thread flips its protection */
		}
	}
	return by;
}

static void compare_all(struct area *a, struct rng *g, struct stage *s, const char *by)
{
	char *content = a->tmp + HUGE;
	enum how how = (enum how)below(g, NR_HOW);

	read_pagemap(a);
	for (size_t u = 0; u < a->nr; u++) {
		uint64_t is, was;

		if (fetch(a, u, how, content))
			fatal("%s: unit %zu can't be read", a->desc->name, u);
		if (!memcmp(content, a->shadow + u * a->unit, a->unit))
			continue;
		if (reported_late(a, u)) {
			tot->late++;
			continue;
		}
		memcpy(&is, content, 8);
		memcpy(&was, a->shadow + u * a->unit, 8);
		complain(a, u, "LOST", a->pm[u], by);
		if (!cfg.quiet)
			printf("#   phase %" PRIu64 ", %u steps, not written from step %u; stamp %" PRIx64 ", the copy's %" PRIx64 "\n", s->phase,
			       s->steps, s->last_step[u], is, was);
		tot->lost++;
		memcpy(a->shadow + u * a->unit, content, a->unit);
	}
}

static void phase_of(struct area *a, struct rng *g, uint64_t phase, uint64_t allowed)
{
	struct stage s = { .a = a, .phase = phase, .writers = cfg.threads, .steps = (unsigned)below(g, 8) + 2, .allowed = allowed };
	struct worker w[MAX_THREADS + DISTURBERS];
	const char *by;

	a->round++;
	tot->rounds++;
	s.last_step = own_memory(a->nr);
	for (size_t u = 0; u < a->nr; u++)
		s.last_step[u] = (uint8_t)(below(g, s.steps) + 1);
	for (unsigned i = 0; i < s.writers + DISTURBERS; i++) {
		w[i] = (struct worker){ .s = &s, .number = i < s.writers ? i : i - s.writers, .g = { rnd(g) } };
		if (pthread_create(&w[i].thread, NULL, i < s.writers ? writer : disturber, &w[i]))
			fatal("no threads");
	}
	for (unsigned step = 0; step < s.steps; step++) {
		usleep((unsigned)below(g, 6000));
		s.step = step + 1;
		chain_link(a, g);
	}
	s.stop = 1;
	for (unsigned i = 0; i < s.writers + DISTURBERS; i++)
		pthread_join(w[i].thread, NULL);
	tot->ops += s.writes + s.acts;
	if (mprotect(a->base, a->bytes, PROT_READ | PROT_WRITE))
		fatal("mprotect: %s", strerror(errno));
	by = chain_link(a, g);
	compare_all(a, g, &s, by);
	munlock(a->base, a->bytes);
	munmap(s.last_step, a->nr);
}

static int threads_life(enum kind k, uint64_t number, uint64_t rounds, double until, int (*open_area)(struct area *, enum kind, struct rng *),
			void (*close_area)(struct area *))
{
	struct rng g = derive(cfg.seed, k, number, 3);
	uint64_t allowed = 0;
	struct area a;
	int err = open_area(&a, k, &g);

	if (err)
		return err;
	a.freed = true; /* no protecting apart from the scan */
	for (unsigned i = 0; i < NR_OPS; i++)
		if ((ops[i].kinds & KB(k)) && !ops[i].bypass && !(ops[i].machine && !cfg.machine) && !(cfg.skip & (1ull << i)))
			allowed |= 1ull << i;
	protect_first(&a, &g);
	take_base(&a, &g);
	for (uint64_t i = 0; i < rounds && now() < until; i++)
		phase_of(&a, &g, number * 1000 + i, allowed);
	close_area(&a);
	return 0;
}

#endif
