/* SPDX-License-Identifier: MIT */
/*
 * The bytes of a chain by many threads, in any order and in order of address, against a shadow of the memory; reads of single pages, which
 * unpack a part of a frame; and what damage, errors and cancelling do to them.
 */
#include "link.h"
#include "chain.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NR_LINKS 24
#define BYTES ((uint64_t)IMAGE_PAGES * WPT_PAGE)

struct fixture {
	struct image *m;
	uint8_t *file;         /* all links, one after the other */
	size_t len;
	size_t first_len;      /* of the base */
	struct wpt_chain *c;
};

static void file_add(struct fixture *f, const struct sink *s)
{
	f->file = realloc(f->file, f->len + s->len);
	assert_non_null(f->file);
	memcpy(f->file + f->len, s->data, s->len);
	f->len += s->len;
}

/* A base in large frames, and links that change single pages all over it; pages that repeat make duplicates. */
static int fixture_open(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct wpt_layer_params p = params(true, 2, NULL);
	struct wpt_layer_result r;

	f->m = random_image();
	for (int i = 0; i < NR_LINKS; i++) {
		struct wpt_layer_writer *w;
		struct sink s;

		sink_open(&s);
		w = writer_open(&s, &p);
		if (i == 0) {
			pages_write(w, f->m, 0, IMAGE_PAGES);
			assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		}
		for (uint64_t page = rng() % 32; i && page < IMAGE_PAGES; page += 1 + rng() % 32) {
			uint64_t sort = rng() % 32;

			memset(f->m->data + page * WPT_PAGE, 0, WPT_PAGE);
			f->m->state[page] = sort == 0 ? UNREADABLE : sort == 1 ? GUARD : sort == 2 ? ZERO : DATA;
			if (f->m->state[page] == DATA)
				page_fill(f->m->data + page * WPT_PAGE);
			pages_write(w, f->m, page, page + 1);
		}
		r = finish(w, &s);
		file_add(f, &s);
		if (i == 0)
			f->first_len = s.len;
		sink_close(&s);
		p.full = false;
		p.identity.sequence++;
		memcpy(p.identity.parent_id, p.identity.link_id, 16);
		memcpy(p.identity.parent_digest, r.digest, 16);
		memset(p.identity.link_id, 0x12 + i, 16);
	}
	assert_int_equal(wpt_chain_open_memory(&f->c, f->file, f->len), 0);
	*state = f;
	return 0;
}

static int fixture_close(void **state)
{
	struct fixture *f = *state;

	wpt_chain_close(f->c);
	image_free(f->m);
	free(f->file);
	free(f);
	return 0;
}

/* ---- scattering ---- */

struct taken {
	pthread_mutex_t lock;
	pthread_t caller;
	uint64_t start, end;
	uint8_t *data;
	uint8_t times[IMAGE_PAGES];    /* each page exactly once */
	uint8_t view[IMAGE_PAGES];
	uint64_t rest_at, reported;
	bool elsewhere;                /* data came on a thread that is not the caller's */
	int fail_after, error;         /* calls of data */
	int cancel_after;              /* of progress */
	bool over;
};

static int take_data(void *arg, uint64_t addr, const uint8_t *data, uint64_t len)
{
	struct taken *t = arg;
	int rc = 0;

	pthread_mutex_lock(&t->lock);
	assert_false(t->over);
	assert_true(addr >= t->start && addr + len <= t->end && len > 0);
	memcpy(t->data + (addr - BASE_ADDR), data, len);
	for (uint64_t i = (addr - BASE_ADDR) / WPT_PAGE; i < (addr + len - BASE_ADDR) / WPT_PAGE; i++) {
		t->times[i]++;
		t->view[i] = WPT_VIEW_DATA;
	}
	t->elsewhere |= !pthread_equal(pthread_self(), t->caller);
	if (t->fail_after && --t->fail_after == 0)
		rc = t->error;
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static int take_rest(void *arg, const struct wpt_view_run *run)
{
	struct taken *t = arg;

	assert_true(pthread_equal(pthread_self(), t->caller));
	assert_true(run->start >= t->rest_at && run->start >= t->start && run->end <= t->end);
	t->rest_at = run->end;
	pthread_mutex_lock(&t->lock);
	for (uint64_t i = (run->start - BASE_ADDR) / WPT_PAGE; i < (run->end - BASE_ADDR) / WPT_PAGE; i++) {
		t->times[i]++;
		t->view[i] = (uint8_t)run->view;
	}
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static int take_progress(void *arg, uint64_t bytes)
{
	struct taken *t = arg;

	assert_true(pthread_equal(pthread_self(), t->caller));
	t->reported += bytes;
	return t->cancel_after && --t->cancel_after == 0 ? -ECANCELED : 0;
}

static struct taken *taken_new(uint64_t first, uint64_t end)
{
	struct taken *t = calloc(1, sizeof(*t));

	assert_non_null(t);
	pthread_mutex_init(&t->lock, NULL);
	t->caller = pthread_self();
	t->start = BASE_ADDR + first * WPT_PAGE;
	t->end = BASE_ADDR + end * WPT_PAGE;
	t->data = calloc(IMAGE_PAGES, WPT_PAGE);
	assert_non_null(t->data);
	return t;
}

static void taken_free(struct taken *t)
{
	free(t->data);
	free(t);
}

static int scatter(struct fixture *f, struct taken *t, uint32_t nr_threads, uint32_t window)
{
	const struct wpt_scatter to = { take_data, take_rest, take_progress, t, window };
	int rc = wpt_chain_scatter(f->c, t->start, t->end, nr_threads, &to);

	pthread_mutex_lock(&t->lock);
	t->over = true;
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static uint8_t view_of(uint8_t state)
{
	static const uint8_t views[] = { [ZERO] = WPT_VIEW_ZERO, [DATA] = WPT_VIEW_DATA, [UNREADABLE] = WPT_VIEW_UNREADABLE,
					 [GUARD] = WPT_VIEW_GUARD };

	return views[state];
}

static void check(const struct fixture *f, const struct taken *t, uint64_t first, uint64_t end)
{
	uint64_t data = 0;

	for (uint64_t i = 0; i < IMAGE_PAGES; i++) {
		bool in = i >= first && i < end;

		assert_int_equal(t->times[i], in);
		if (!in)
			continue;
		/* A page of data that is all zero may be said either way. */
		if (t->view[i] != view_of(f->m->state[i]))
			assert_true(t->view[i] == WPT_VIEW_ZERO && f->m->state[i] == DATA && all_zero(f->m->data + i * WPT_PAGE));
		assert_memory_equal(t->data + i * WPT_PAGE, f->m->data + i * WPT_PAGE, WPT_PAGE);
		data += t->view[i] == WPT_VIEW_DATA ? WPT_PAGE : 0;
	}
	assert_true(t->reported == data);
}

static void every_page_comes_once_by_any_number_of_threads(void **state)
{
	static const uint32_t windows[] = { 0, 1, 7, 1000 };
	struct fixture *f = *state;

	for (int i = 0; i < scaled(40); i++) {
		uint32_t threads = 1 + (uint32_t)i % 4;
		uint64_t first = i < 8 ? 0 : rng() % IMAGE_PAGES, end = i < 8 ? IMAGE_PAGES : first + rng() % (IMAGE_PAGES - first + 1);
		struct taken *t = taken_new(first, end);

		assert_int_equal(scatter(f, t, threads, windows[rng() % 4]), 0);
		check(f, t, first, end);
		if (threads == 1)
			assert_false(t->elsewhere);
		taken_free(t);
	}
}

static void threads_are_used_for_what_is_large(void **state)
{
	struct taken *t = taken_new(0, IMAGE_PAGES);

	assert_int_equal(scatter(*state, t, 2, 0), 0);
	assert_true(t->elsewhere);
	taken_free(t);
	t = taken_new(0, 1000);
	assert_int_equal(scatter(*state, t, 2, 0), 0);
	assert_false(t->elsewhere);
	taken_free(t);
}

static void error_of_a_callback_ends_it(void **state)
{
	struct fixture *f = *state;

	for (int i = 0; i < scaled(30); i++) {
		struct taken *t = taken_new(0, IMAGE_PAGES);

		t->fail_after = 1 + (int)(rng() % 1000);
		t->error = -ENOSPC;
		assert_int_equal(scatter(f, t, 1 + (uint32_t)i % 3, 0), -ENOSPC);
		taken_free(t);
		t = taken_new(0, IMAGE_PAGES);
		t->cancel_after = 1;
		assert_int_equal(scatter(f, t, 1 + (uint32_t)i % 3, i % 2 ? 500 : 0), -ECANCELED);
		taken_free(t);
	}
}

static void gathered_in_order(void **state)
{
	struct fixture *f = *state;

	for (uint32_t threads = 1; threads <= 3; threads++) {
		struct wpt_gather *g = NULL;
		struct wpt_view_run run;
		const uint8_t *data;
		uint64_t at = BASE_ADDR;
		int rc;

		assert_int_equal(wpt_gather_open(&g, f->c, BASE_ADDR, BASE_ADDR + BYTES, threads), 0);
		while ((rc = wpt_gather_next(g, &run, &data)) > 0) {
			assert_true(run.start == at);
			at = run.end;
			assert_int_equal(!!data, run.view == WPT_VIEW_DATA);
			if (data)
				assert_memory_equal(data, f->m->data + (run.start - BASE_ADDR), run.end - run.start);
			else
				for (uint64_t i = run.start - BASE_ADDR; i < run.end - BASE_ADDR; i += WPT_PAGE)
					assert_true(all_zero(f->m->data + i));
		}
		assert_int_equal(rc, 0);
		assert_true(at == BASE_ADDR + BYTES);
		wpt_gather_close(g);
	}
}

/* ---- the public functions on top ---- */

struct report {
	uint64_t last, total;
	int calls, cancel_at;
};

static int report(void *arg, uint64_t done, uint64_t total)
{
	struct report *r = arg;

	assert_true(done >= r->last && done <= total);
	r->last = done;
	r->total = total;
	return ++r->calls == r->cancel_at;
}

static void restored_to_a_file_and_to_memory(void **state)
{
	struct fixture *f = *state;
	uint8_t *got = malloc(BYTES);
	char path[] = "/tmp/wpt-scatter-XXXXXX/image";

	assert_int_equal(wpt_chain_set_threads(f->c, 257), -EINVAL);
	path[strlen(path) - 6] = '\0';
	assert_non_null(mkdtemp(path));
	path[strlen(path)] = '/';
	for (int i = 0; i < scaled(16); i++) {
		uint64_t start = i % 4 ? rng() % (BYTES / 2) : 0, end = i % 4 ? BYTES / 2 + rng() % (BYTES / 2) : BYTES;
		struct report r = { .cancel_at = 0 };
		uint64_t unreadable = 0;
		int fd;

		assert_int_equal(wpt_chain_set_threads(f->c, (uint32_t)i % 4), 0);
		assert_int_equal(wpt_chain_restore_file(f->c, BASE_ADDR + start, BASE_ADDR + end, path, &unreadable, report, &r), 0);
		assert_true(r.last == end - start && r.total == end - start);
		assert_true(i % 4 || unreadable > 0);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		assert_true(fd >= 0 && lseek(fd, 0, SEEK_END) == (off_t)(end - start));
		assert_int_equal(pread(fd, got, end - start, 0), end - start);
		assert_memory_equal(got, f->m->data + start, end - start);
		close(fd);
		unlink(path);
		/* What is there already must go where the chain has zeros. */
		memset(got, 0xee, BYTES);
		assert_int_equal(wpt_chain_restore_memory(f->c, BASE_ADDR + start, BASE_ADDR + end, got + start, NULL), 0);
		assert_memory_equal(got + start, f->m->data + start, end - start);
		for (uint64_t at = 0; at < start; at++)
			assert_int_equal(got[at], 0xee);
		for (uint64_t at = end; at < BYTES; at++)
			assert_int_equal(got[at], 0xee);
		r = (struct report){ .cancel_at = 2 };
		assert_int_equal(wpt_chain_restore_file(f->c, BASE_ADDR, BASE_ADDR + BYTES, path, NULL, report, &r), -ECANCELED);
		assert_int_equal(access(path, F_OK), -1);
	}
	*strrchr(path, '/') = '\0';
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(wpt_chain_set_threads(f->c, 0), 0);
	free(got);
}

/* Single pages in every order: parts of frames, then whole ones, then what is in the cache. */
static void pages_are_read_one_by_one(void **state)
{
	struct fixture *f = *state;
	uint8_t page[WPT_PAGE];

	for (int order = 0; order < 3; order++) {
		struct wpt_chain *c;

		assert_int_equal(wpt_chain_open_memory(&c, f->file, f->len), 0);
		for (uint64_t n = 0; n < (uint64_t)scaled(IMAGE_PAGES); n++) {
			uint64_t i = order == 0 ? n : order == 1 ? IMAGE_PAGES - 1 - n : rng() % IMAGE_PAGES;
			size_t offset = rng() % WPT_PAGE, len = 1 + rng() % (WPT_PAGE - offset);
			int rc = wpt_chain_read(c, BASE_ADDR + i * WPT_PAGE + offset, page, len);

			assert_int_equal(rc, f->m->state[i] == UNREADABLE ? -WPT_E_UNREADABLE : 0);
			assert_memory_equal(page, f->m->data + i * WPT_PAGE + offset, len);
		}
		wpt_chain_close(c);
	}
}

/* ---- damage ---- */

/* Every answer of a chain with one wrong byte is an error or right. */
static void damage_is_found_or_does_not_matter(void **state)
{
	struct fixture *f = *state;
	uint8_t *copy = malloc(f->len), page[WPT_PAGE];
	int found = 0;

	for (int i = 0; i < scaled(60); i++) {
		/* Mostly page data of the base. */
		size_t at = rng() % (i % 3 ? f->first_len : f->len);
		struct fixture damaged = { .m = f->m };
		struct taken *t;
		int rc;

		memcpy(copy, f->file, f->len);
		copy[at] ^= (uint8_t)(1 + rng() % 255);
		if (wpt_chain_open_memory(&damaged.c, copy, f->len)) {
			found++;
			continue;
		}
		/* Damage of the last link may make it look torn: then it is another chain. */
		if (wpt_chain_nr_links(damaged.c) == NR_LINKS) {
			t = taken_new(0, IMAGE_PAGES);
			rc = scatter(&damaged, t, 1 + (uint32_t)i % 3, 0);
			if (rc == 0)
				check(f, t, 0, IMAGE_PAGES);
			else
				assert_int_equal(rc, -WPT_E_DAMAGED);
			found += rc != 0;
			taken_free(t);
			/* Of frames that are unpacked in part only the pages' hashes tell. */
			for (int n = 0; n < 100; n++) {
				uint64_t k = rng() % (IMAGE_PAGES - 20);

				t = taken_new(k, k + 20);
				rc = scatter(&damaged, t, 1, 0);
				if (rc == 0)
					check(f, t, k, k + 20);
				else
					assert_int_equal(rc, -WPT_E_DAMAGED);
				taken_free(t);
			}
			for (int n = 0; n < 200; n++) {
				uint64_t k = rng() % IMAGE_PAGES;

				rc = wpt_chain_read(damaged.c, BASE_ADDR + k * WPT_PAGE, page, WPT_PAGE);
				if (rc == 0 || rc == -WPT_E_UNREADABLE)
					assert_memory_equal(page, f->m->data + k * WPT_PAGE, WPT_PAGE);
				else
					assert_int_equal(rc, -WPT_E_DAMAGED);
			}
			assert_true(wpt_chain_verify(damaged.c, NULL, NULL) != 0);
		}
		wpt_chain_close(damaged.c);
	}
	assert_true(found > scaled(60) / 4);
	free(copy);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_page_comes_once_by_any_number_of_threads),
		cmocka_unit_test(threads_are_used_for_what_is_large),
		cmocka_unit_test(error_of_a_callback_ends_it),
		cmocka_unit_test(gathered_in_order),
		cmocka_unit_test(restored_to_a_file_and_to_memory),
		cmocka_unit_test(pages_are_read_one_by_one),
		cmocka_unit_test(damage_is_found_or_does_not_matter),
	};

	return cmocka_run_group_tests_name("scatter", tests, fixture_open, fixture_close);
}
