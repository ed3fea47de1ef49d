/* SPDX-License-Identifier: MIT */
/* A crew calls its function once for each piece, on its own threads and the caller's, and returns when all calls did. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "crew.h"

#define PIECES 200u

struct pieces {
	_Atomic unsigned int calls[PIECES], running, nr;
	unsigned int together;     /* that many must be at work at once before any goes on */
	_Atomic unsigned int met;
};

static void piece(void *arg, uint32_t i)
{
	struct pieces *p = arg;

	atomic_fetch_add(&p->running, 1);
	if (i < p->together) {
		atomic_fetch_add(&p->met, 1);
		while (atomic_load(&p->met) < p->together)
			sched_yield();
	}
	atomic_fetch_add(&p->calls[i], 1);
	atomic_fetch_add(&p->nr, 1);
	atomic_fetch_sub(&p->running, 1);
}

static void run(struct wpt_crew *c, uint32_t nr, unsigned int together)
{
	struct pieces p = { .together = together };
	uint32_t i;

	wpt_crew_run(c, nr, piece, &p);
	assert_int_equal(atomic_load(&p.running), 0);
	assert_int_equal(atomic_load(&p.nr), nr);
	for (i = 0; i < PIECES; i++)
		assert_int_equal(atomic_load(&p.calls[i]), i < nr);
}

static void each_piece_once(void **state)
{
	static const uint32_t threads[] = { 0, 1, 3, 7 };
	struct wpt_crew *c;
	uint32_t i, n;

	(void)state;
	for (i = 0; i < sizeof(threads) / sizeof(threads[0]); i++) {
		assert_int_equal(wpt_crew_open(&c, threads[i]), 0);
		for (n = 0; n < 300; n++)
			run(c, n % PIECES, 0);
		wpt_crew_close(c);
	}
}

/* As many at once as there are threads, the caller's included: else this would not end. */
static void all_threads_work(void **state)
{
	struct wpt_crew *c;
	unsigned int n;

	(void)state;
	assert_int_equal(wpt_crew_open(&c, 3), 0);
	for (n = 0; n < 50; n++)
		run(c, 20, 4);
	wpt_crew_close(c);
}

static void no_more_than_the_most(void **state)
{
	struct wpt_crew *c;

	(void)state;
	assert_int_equal(wpt_crew_open(&c, 1000), 0);
	run(c, PIECES, WPT_CREW_MAX + 1);
	wpt_crew_close(c);
	wpt_crew_close(NULL);
}

static void closed_in_a_child(void **state)
{
	struct wpt_crew *c;
	int status;
	pid_t pid;

	(void)state;
	assert_int_equal(wpt_crew_open(&c, 2), 0);
	pid = fork();
	if (pid == 0) {
		wpt_crew_close(c);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	run(c, 10, 3);
	wpt_crew_close(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_piece_once),
		cmocka_unit_test(all_threads_work),
		cmocka_unit_test(no_more_than_the_most),
		cmocka_unit_test(closed_in_a_child),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
