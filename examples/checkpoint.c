/* SPDX-License-Identifier: MIT */
/*
 * checkpoint DIR: a program that keeps its data in one arena, changes it from a thread, and takes checkpoints of itself while it
 * does so: no fork(), no second copy of the memory. Then the data is lost, and comes back as it was at each of the checkpoints.
 */
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "wptrack.h"

#define NR_ACCOUNTS (1u << 20)
#define NR_BUSY (NR_ACCOUNTS / 8)
#define NR_CHECKPOINTS 4

/* Money is moved between an eighth of the accounts: at any instant outside the lock the sum is NR_ACCOUNTS * 100. */
static int64_t *accounts;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_int stop;
static atomic_uint transfers;

static void *work(void *arg)
{
	uint32_t random = 12345;

	(void)arg;
	while (!stop) {
		pthread_mutex_lock(&lock);
		for (int i = 0; i < 100; i++) {
			random = random * 1664525u + 1013904223u;
			accounts[random % NR_BUSY] -= 7;
			random = random * 1664525u + 1013904223u;
			accounts[random % NR_BUSY] += 7;
		}
		transfers += 100;
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

/* The library calls these around the moment that the checkpoint shows. */
static int quiesce(void *arg)
{
	(void)arg;
	return -pthread_mutex_lock(&lock);
}

static void resume(void *arg)
{
	(void)arg;
	pthread_mutex_unlock(&lock);
}

static int64_t sum(void)
{
	int64_t total = 0;

	for (size_t i = 0; i < NR_ACCOUNTS; i++)
		total += accounts[i];
	return total;
}

static int take_checkpoints(const char *dir, const struct wpt_range *range)
{
	struct wpt_take_options take = { .size = sizeof(take), .quiesce = quiesce, .resume = resume };
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	struct wpt_tracker *t = NULL;
	struct wpt_writer *w = NULL;
	int err;

	err = wpt_tracker_open(&t, NULL);
	if (err >= 0)
		err = wpt_range_add(t, range);
	if (err >= 0)
		err = wpt_writer_open(&w, t, dir, NULL);
	for (unsigned int i = 0; err >= 0 && i < NR_CHECKPOINTS; i++) {
		unsigned int from = transfers;

		while (transfers < from + 1000)
			sched_yield();
		err = wpt_writer_take(w, &take, &stats);
		if (err >= 0)
			printf("checkpoint %" PRIu64 ": %" PRIu64 " pages dirty, %" PRIu64 " bytes stored, stood still for %" PRIu64 " us\n",
			       stats.sequence, stats.pages_dirty, stats.bytes_stored, stats.pause_ns / 1000);
	}
	wpt_writer_close(w);
	wpt_tracker_close(t);
	return err;
}

static int restore(const char *dir, const struct wpt_range *range, unsigned int sequence)
{
	struct wpt_chain *c = NULL;
	char name[4096];
	int err;

	snprintf(name, sizeof(name), "%s@%u", dir, sequence);
	err = wpt_chain_open(&c, name);
	if (err < 0)
		return err;
	err = wpt_chain_restore_memory(c, range->start, range->end, accounts, NULL);
	wpt_chain_close(c);
	if (err >= 0)
		printf("restored checkpoint %u: the sum is %" PRId64 "\n", sequence, sum());
	return err;
}

int main(int argc, char **argv)
{
	size_t size = NR_ACCOUNTS * sizeof(*accounts);
	struct wpt_range range = { sizeof(range), 0, 0, "accounts" };
	pthread_t thread;
	int err;

	if (argc != 2) {
		fprintf(stderr, "usage: checkpoint DIR\n");
		return 2;
	}
	accounts = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (accounts == MAP_FAILED)
		return 1;
	for (size_t i = 0; i < NR_ACCOUNTS; i++)
		accounts[i] = 100;
	range.start = (uint64_t)(uintptr_t)accounts;
	range.end = range.start + size;

	if (pthread_create(&thread, NULL, work, NULL))
		return 1;
	err = take_checkpoints(argv[1], &range);
	stop = 1;
	pthread_join(thread, NULL);

	memset(accounts, 0xff, size);
	for (unsigned int i = 0; err >= 0 && i < NR_CHECKPOINTS; i++)
		err = restore(argv[1], &range, i);
	munmap(accounts, size);
	if (err < 0) {
		fprintf(stderr, "checkpoint: %s\n", wpt_strerror(err));
		return 1;
	}
	return 0;
}
