/* SPDX-License-Identifier: MIT */
/* What the writer of a link is made of: the tree of leaves, the memory of duplicates, the pipe. */
#include "layer_dedup.h"
#include "layer_index.h"
#include "link.h"
#include "pipe.h"

#include <sched.h>
#include <semaphore.h>

/* ---- the tree of leaves ---- */

static void tree_of_many_leaves_is_found_again(void **state)
{
	/* Each page lies before the one before it, so each makes a leaf of its own. */
	enum { LEAVES = 200000 };
	static const uint8_t digest[16];
	struct wpt_layer_index x;
	struct wpt_fmt_root root = { .time_ns = 1 };
	struct wpt_fmt_trailer trailer = { .sequence = 1 };
	struct wpt_fmt_head head = { .flags = WPT_FMT_FULL, .page_shift = 12 };
	struct wpt_fmt_children c;
	struct wpt_fmt_records records;
	struct opened o = { 0 };
	struct sink s;
	uint8_t bytes[WPT_FMT_HEAD_MAX];

	(void)state;
	sink_open(&s);
	assert_int_equal(wpt_layer_index_init(&x, &s.base), 0);
	assert_int_equal(wpt_layer_index_block(&x, bytes, wpt_fmt_head_encode(&head, bytes)), 0);
	for (uint64_t i = 0; i < LEAVES; i++) {
		struct wpt_fmt_run run = { .page = (LEAVES - i) * 4 + 1000, .nr_pages = 1 + i % 9, .kind = WPT_FMT_ZERO };

		assert_int_equal(wpt_layer_index_run(&x, &run, 0), 0);
		root.counts.zero += run.nr_pages;
	}
	memcpy(trailer.digest, digest, 16);
	assert_int_equal(wpt_layer_index_finish(&x, &root, NULL, &trailer), 0);
	assert_int_equal(x.offset, s.len);
	wpt_layer_index_free(&x);
	assert_int_equal(wpt_fmt_trailer_decode(s.data + s.len - WPT_FMT_TRAILER_SIZE, WPT_FMT_TRAILER_SIZE, &o.trailer), 0);
	assert_int_equal(wpt_fmt_root_decode(s.data + o.trailer.root_offset, o.trailer.root_length, &o.root), 0);
	walk(&s, &o);
	wpt_fmt_records_init(&records);
	c = o.root.children;
	assert_true(c.level > 1);
	children_read(&s, &c, NULL, NULL, &o, &records);
	assert_int_equal(o.nr_leaves, LEAVES);
	assert_true(o.nr_nodes >= 3);
	assert_true(o.counts.zero == root.counts.zero);
	sink_close(&s);
}

static void leaves_fill_up_and_their_frames_are_found(void **state)
{
	/* More pages than a leaf holds, each a duplicate in a frame of its own: runs and frame tables overflow. */
	enum { FRAMES = 3000, RUNS = 120000 };
	static uint8_t hashes[256 * 16];
	struct wpt_layer_index x;
	struct wpt_fmt_root root = { .time_ns = 1 };
	struct wpt_fmt_trailer trailer = { .sequence = 1 };
	struct wpt_fmt_children c;
	struct wpt_fmt_child child;
	struct wpt_fmt_leaf leaf;
	struct wpt_fmt_run run;
	struct wpt_fmt_frame_info info;
	struct sink s;
	uint64_t n = 0;
	int ret;

	(void)state;
	sink_open(&s);
	assert_int_equal(wpt_layer_index_init(&x, &s.base), 0);
	for (uint64_t i = 0; i < FRAMES; i++)
		assert_int_equal(wpt_layer_index_data(&x, i, (const uint8_t *)"0123456789", 10, 256, i), 0);
	for (uint64_t i = 0; i < RUNS; i++) {
		run = (struct wpt_fmt_run){ i * 300, 1 + i % 3, WPT_FMT_DUPLICATE, 99, (uint32_t)(i % 250), hashes };
		memcpy(hashes, &i, sizeof(i));
		assert_int_equal(wpt_layer_index_run(&x, &run, i * 7919 % FRAMES), 0);
	}
	assert_int_equal(wpt_layer_index_finish(&x, &root, NULL, &trailer), 0);
	wpt_layer_index_free(&x);
	assert_int_equal(wpt_fmt_root_decode(s.data + trailer.root_offset, trailer.root_length, &root), 0);
	c = root.children;
	while ((ret = wpt_fmt_children_next(&c, &child)) > 0) {
		assert_int_equal(wpt_fmt_leaf_decode(s.data + child.offset, child.length, &leaf), 0);
		while ((ret = wpt_fmt_leaf_next(&leaf, &run)) > 0) {
			assert_int_equal(run.page, n * 300);
			assert_int_equal(run.nr_pages, 1 + n % 3);
			assert_int_equal(run.slot, n % 250);
			assert_memory_equal(run.hashes, &n, sizeof(n));
			assert_int_equal(wpt_fmt_leaf_frame(&leaf, run.frame, &info), 0);
			assert_int_equal(info.checksum, n * 7919 % FRAMES);
			assert_int_equal(info.offset, n * 7919 % FRAMES * 10);
			n++;
		}
		assert_int_equal(ret, 0);
	}
	assert_int_equal(ret, 0);
	assert_int_equal(n, RUNS);
	assert_true(root.children.nr > 2);
	sink_close(&s);
}

/* ---- duplicates ---- */

static void duplicates_point_backwards_only(void **state)
{
	struct wpt_layer_dedup *d;
	struct wpt_layer_place place;
	uint8_t page[WPT_PAGE] = { 1 }, hash[16] = { 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 };

	(void)state;
	assert_int_equal(wpt_layer_dedup_open(&d), 0);
#define FIND(f, s, oldest) (place = (struct wpt_layer_place){ f, s }, wpt_layer_dedup_find(d, page, hash, oldest, &place))
	assert_false(FIND(10, 1, 0));
	assert_false(FIND(10, 2, 0));
	assert_true(FIND(12, 3, 0));
	assert_true(place.frame == 10 && place.slot == 2);
	assert_false(FIND(9, 4, 0)); /* 10 comes later in the file; 9 is kept instead */
	assert_true(FIND(10, 5, 0));
	assert_true(place.frame == 9 && place.slot == 4);
	assert_false(FIND(50, 6, 20)); /* 9 is forgotten */
	assert_true(FIND(50, 7, 20));
	assert_true(place.frame == 50 && place.slot == 6);
	page[5] = 1; /* other bytes, the same hash */
	assert_false(FIND(51, 0, 0));
#undef FIND
	wpt_layer_dedup_close(d);
}

/* ---- the pipe ---- */

struct number {
	struct wpt_pipe_job job;
	uint64_t n, square;
};

struct pipe_test {
	size_t emitted;
	uint64_t fail_work, fail_emit; /* job that fails, UINT64_MAX: none */
	int barrier_seen;
};

static int number_work(void *arg, uint32_t thread, struct wpt_pipe_job *job)
{
	struct pipe_test *t = arg;
	struct number *x = (struct number *)job;
	uint64_t *out = job->out;

	(void)thread;
	if (job->barrier && __atomic_load_n(&t->emitted, __ATOMIC_SEQ_CST) != x->n)
		__atomic_store_n(&t->barrier_seen, 1, __ATOMIC_SEQ_CST);
	x->square = x->n;
	for (uint64_t i = 0; i < x->n * 2654435761u % 997; i++)
		x->square = x->square * 6364136223846793005u + 1;
	*out = x->square;
	return x->n == t->fail_work ? -EIO : 0;
}

static int number_emit(void *arg, struct wpt_pipe_job *job)
{
	struct pipe_test *t = arg;
	struct number *x = (struct number *)job;

	if (__atomic_load_n(&t->emitted, __ATOMIC_SEQ_CST) != x->n || job->order != x->n ||
	    *(uint64_t *)job->out != x->square)
		return -EDOM;
	if (x->n == t->fail_emit)
		return -ENOSPC;
	__atomic_store_n(&t->emitted, x->n + 1, __ATOMIC_SEQ_CST);
	return 0;
}

static int pipe_run(struct pipe_test *t, uint32_t threads, uint32_t nr_jobs, uint64_t count)
{
	struct wpt_pipe_params p = { threads, 64, number_work, number_emit, t };
	struct number *jobs = calloc(nr_jobs, sizeof(*jobs));
	struct wpt_pipe *pipe;
	struct wpt_pipe_job *job;
	int ret = 0;

	assert_int_equal(wpt_pipe_open(&pipe, &p), 0);
	for (uint32_t i = 0; i < nr_jobs; i++)
		wpt_pipe_add(pipe, &jobs[i].job);
	for (uint64_t n = 0; n < count && ret == 0; n++) {
		ret = wpt_pipe_get(pipe, &job, true);
		if (ret < 0)
			break;
		((struct number *)job)->n = n;
		if (n % 29 == 0)
			wpt_pipe_hold(pipe, n % 2);
		ret = wpt_pipe_submit(pipe, job, n % 37 == 36);
		if (ret == 0 && n % 101 == 100)
			ret = wpt_pipe_drain(pipe);
		if (ret == 0 && n % 101 == 100)
			assert_int_equal(t->emitted, n + 1);
	}
	if (wpt_pipe_drain(pipe) != ret && ret)
		ret = -EDOM;
	ret = wpt_pipe_drain(pipe);
	wpt_pipe_close(pipe);
	free(jobs);
	return ret;
}

static void results_come_in_order_whatever_the_threads_do(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < (uint32_t)scaled(300); i++) {
		struct pipe_test t = { .fail_work = UINT64_MAX, .fail_emit = UINT64_MAX };

		assert_int_equal(pipe_run(&t, 1 + i % 9, 1 + i % 13, 500), 0);
		assert_int_equal(t.emitted, 500);
		assert_int_equal(t.barrier_seen, 0);
	}
}

static void held_jobs_wait_until_they_are_let_go(void **state)
{
	struct pipe_test t = { .fail_work = UINT64_MAX, .fail_emit = UINT64_MAX };
	struct wpt_pipe_params p = { 3, 64, number_work, number_emit, &t };
	struct number numbers[4] = { 0 };
	struct wpt_pipe_job *job;
	struct wpt_pipe *pipe;

	(void)state;
	assert_int_equal(wpt_pipe_open(&pipe, &p), 0);
	for (unsigned int i = 0; i < 4; i++)
		wpt_pipe_add(pipe, &numbers[i].job);
	for (uint64_t n = 0; n < 400; n += 4) {
		wpt_pipe_hold(pipe, true);
		for (uint64_t i = n; i < n + 4; i++) {
			assert_int_equal(wpt_pipe_get(pipe, &job, false), 0);
			assert_non_null(job);
			((struct number *)job)->n = i;
			assert_int_equal(wpt_pipe_submit(pipe, job, false), 0);
			sched_yield();
		}
		assert_int_equal(wpt_pipe_get(pipe, &job, false), 0);
		assert_null(job);
		assert_int_equal(__atomic_load_n(&t.emitted, __ATOMIC_SEQ_CST), n);
		if (n % 3 == 0) {
			wpt_pipe_hold(pipe, false);
		} else if (n % 3 == 1) {
			/* Whoever waits for a free one gets it. */
			assert_int_equal(wpt_pipe_get(pipe, &job, true), 0);
			wpt_pipe_add(pipe, job);
		}
		assert_int_equal(wpt_pipe_drain(pipe), 0);
		assert_int_equal(t.emitted, n + 4);
	}
	wpt_pipe_close(pipe);
}

static void first_error_of_the_pipe_ends_it(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < (uint32_t)scaled(200); i++) {
		struct pipe_test t = { .fail_work = UINT64_MAX, .fail_emit = UINT64_MAX };

		if (i % 2)
			t.fail_work = i;
		else
			t.fail_emit = i;
		assert_int_equal(pipe_run(&t, 1 + i % 5, 2 + i % 11, 300), i % 2 ? -EIO : -ENOSPC);
		assert_true(t.emitted <= i);
	}
}

/* An emission that is under way while another thread meets an error does not undo it. */
struct gates {
	sem_t entered, leave;
};

static int no_work(void *arg, uint32_t thread, struct wpt_pipe_job *job)
{
	(void)arg;
	(void)thread;
	(void)job;
	return 0;
}

static int gated_emit(void *arg, struct wpt_pipe_job *job)
{
	struct gates *g = arg;

	(void)job;
	sem_post(&g->entered);
	sem_wait(&g->leave);
	return 0;
}

static void error_during_an_emission_is_kept(void **state)
{
	struct gates g;
	struct wpt_pipe_params p = { 2, 64, no_work, gated_emit, &g };
	struct wpt_pipe_job jobs[2], *job;
	struct wpt_pipe *pipe;

	(void)state;
	sem_init(&g.entered, 0, 0);
	sem_init(&g.leave, 0, 0);
	assert_int_equal(wpt_pipe_open(&pipe, &p), 0);
	for (int i = 0; i < 2; i++)
		wpt_pipe_add(pipe, &jobs[i]);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(wpt_pipe_get(pipe, &job, false), 0);
		assert_int_equal(wpt_pipe_submit(pipe, job, false), 0);
	}
	assert_int_equal(wpt_pipe_get(pipe, &job, false), 0);
	assert_null(job);
	sem_wait(&g.entered);
	assert_int_equal(wpt_pipe_fail(pipe, -EIO), -EIO);
	assert_int_equal(wpt_pipe_fail(pipe, -EPIPE), -EIO);
	sem_post(&g.leave);
	assert_int_equal(wpt_pipe_drain(pipe), -EIO);
	assert_int_equal(sem_trywait(&g.entered), -1);
	wpt_pipe_close(pipe);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tree_of_many_leaves_is_found_again),
		cmocka_unit_test(leaves_fill_up_and_their_frames_are_found),
		cmocka_unit_test(duplicates_point_backwards_only),
		cmocka_unit_test(results_come_in_order_whatever_the_threads_do),
		cmocka_unit_test(held_jobs_wait_until_they_are_let_go),
		cmocka_unit_test(first_error_of_the_pipe_ends_it),
		cmocka_unit_test(error_during_an_emission_is_kept),
	};

	return cmocka_run_group_tests_name("layer parts", tests, NULL, NULL);
}
