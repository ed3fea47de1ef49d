/* SPDX-License-Identifier: MIT */
/* What lives from link to link: a link made with used threads and compressors is the same, and the level follows the sink. */
#include "link.h"
#include "layer_level.h"

static struct wpt_layer_kit *kit_open(uint64_t staging_bytes, uint32_t nr_threads, int level)
{
	struct wpt_layer_kit *k = NULL;

	assert_int_equal(wpt_layer_kit_open(&k, staging_bytes, nr_threads, level), 0);
	return k;
}

static void link_make(struct sink *s, struct wpt_layer_kit *kit, const struct image *m, uint32_t nr_threads)
{
	struct wpt_layer_params p = params(true, nr_threads, NULL);
	struct wpt_layer_writer *w;

	p.kit = kit;
	sink_open(s);
	w = writer_open(s, &p);
	pages_write(w, m, 0, IMAGE_PAGES);
	assert_int_equal(wpt_layer_section(w, WPT_SECTION_TAGS, m->data, 100000), 0);
	assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
	finish(w, s);
}

/* Writers that end in every way but the good one. */
static void link_spoil(struct wpt_layer_kit *kit, const struct image *m, int how)
{
	struct wpt_layer_params p = params(true, 0, NULL);
	struct wpt_layer_writer *w;
	struct wpt_batch *b;
	struct sink s;
	int ret = 0;

	p.kit = kit;
	sink_open(&s);
	s.fail_at = how % 4 == 1 ? 2 : -1;
	w = writer_open(&s, &p);
	wpt_layer_hold(w, how % 4 == 2);
	for (uint64_t i = 0; i < 6 && ret == 0; i++) {
		ret = wpt_layer_batch_get(w, &b, true);
		if (ret < 0)
			break;
		memcpy(b->data, m->data + i * 64 * WPT_PAGE, 64 * WPT_PAGE);
		b->nr_pages = 64;
		/* Says more pages than it has: refused. */
		item_add(b, BASE_ADDR + i * 64 * WPT_PAGE, how % 4 == 3 && i == 4 ? 65 : 64, WPT_ITEM_DATA);
		ret = wpt_layer_batch_submit(w, b);
	}
	if (how % 4 == 3)
		assert_int_equal(ret, -EINVAL);
	/* And one in hand. */
	if (ret == 0)
		wpt_layer_batch_get(w, &b, false);
	wpt_layer_writer_close(w);
	sink_close(&s);
}

/* With one thread a link's bytes are decided by its pages alone. */
static void used_kit_makes_the_same_link(void **state)
{
	struct wpt_layer_kit *kit = kit_open(8 << 20, 1, 1), *two = kit_open(8 << 20, 2, 1);
	struct image *m, *read = image_new();
	struct sink fresh, used;
	struct opened o;

	(void)state;
	for (int i = 0; i < scaled(12); i++) {
		uint64_t before = rng_state;

		m = random_image();
		link_make(&fresh, NULL, m, 1);
		rng_state = before;
		image_free(m);
		m = random_image();
		link_spoil(kit, m, i);
		link_make(&used, kit, m, 1);
		assert_int_equal(fresh.len, used.len);
		assert_memory_equal(fresh.data, used.data, used.len);
		sink_close(&fresh);
		sink_close(&used);
		link_spoil(two, m, i);
		link_make(&used, two, m, 2);
		link_read(&used, read, &o);
		same_memory(m, read);
		sink_close(&used);
		image_free(m);
	}
	image_free(read);
	wpt_layer_kit_close(kit);
	wpt_layer_kit_close(two);
	wpt_layer_kit_close(NULL);
}

static void all_batches_are_there_again(void **state)
{
	enum { BATCHES = 8 };
	struct wpt_layer_kit *kit = kit_open(BATCHES << 20, 2, 1);
	struct wpt_layer_params p = params(true, 0, NULL);
	struct wpt_layer_writer *w;
	struct wpt_batch *b;
	struct sink s;

	(void)state;
	p.kit = kit;
	for (int i = 0; i < 3; i++) {
		sink_open(&s);
		w = writer_open(&s, &p);
		for (int n = 0; n < BATCHES; n++) {
			assert_int_equal(wpt_layer_batch_get(w, &b, false), 0);
			assert_non_null(b);
			memset(b->data, n, (size_t)WPT_BATCH_PAGES * WPT_PAGE);
		}
		assert_int_equal(wpt_layer_batch_get(w, &b, false), 0);
		assert_null(b);
		wpt_layer_writer_close(w);
		sink_close(&s);
	}
	wpt_layer_kit_close(kit);
}

/* ---- the level ---- */

static void note_many(struct wpt_level *l, uint64_t sink_ns, uint64_t work_ns, unsigned int n)
{
	while (n--)
		wpt_level_note(l, l->level, 2, sink_ns, work_ns);
}

static void level_moves_by_what_takes_longer(void **state)
{
	struct wpt_level l;

	(void)state;
	wpt_level_init(&l);
	assert_int_equal(wpt_level_get(&l), 1);
	/* Two threads: twice a frame's time is four times the sink's. Four frames decide. */
	note_many(&l, 101, 100, 3);
	assert_int_equal(wpt_level_get(&l), 1);
	note_many(&l, 101, 100, 1);
	assert_int_equal(wpt_level_get(&l), 2);
	/* Those of another level have no say. */
	for (int i = 0; i < 100; i++)
		wpt_level_note(&l, 5, 2, 1000, 1);
	assert_int_equal(wpt_level_get(&l), 2);
	/* Neither waits for long. */
	note_many(&l, 100, 100, 100);
	note_many(&l, 50, 100, 100);
	note_many(&l, 0, 0, 100);
	assert_int_equal(wpt_level_get(&l), 2);
	/* It is the sum that counts, and what was counted once is not counted again. */
	note_many(&l, 500, 100, 1);
	note_many(&l, 0, 100, 3);
	assert_int_equal(wpt_level_get(&l), 3);
	note_many(&l, 49, 100, 4);
	assert_int_equal(wpt_level_get(&l), 2);
	note_many(&l, 1000, 1, 1000);
	assert_int_equal(wpt_level_get(&l), WPT_LEVEL_MOST);
	note_many(&l, 0, 1, 4);
	assert_int_equal(wpt_level_get(&l), WPT_LEVEL_MOST - 1);
	note_many(&l, 0, 1, 1000);
	assert_int_equal(wpt_level_get(&l), WPT_LEVEL_LEAST);
}

/* Where a sink that takes so long for a frame brings it, from below and from above; a frame of each level takes cost[level]. */
static int level_for(uint64_t sink, uint32_t nr_threads, int from)
{
	static const uint64_t cost[] = { 0, 10, 12, 20, 24, 40, 56, 80, 110, 160 };
	struct wpt_level l;

	wpt_level_init(&l);
	l.level = from;
	for (int i = 0; i < 1000; i++)
		wpt_level_note(&l, l.level, nr_threads, sink, cost[l.level]);
	return wpt_level_get(&l);
}

static void level_comes_to_the_speed_of_the_sink(void **state)
{
	(void)state;
	for (uint64_t sink = 0; sink < 200; sink++) {
		for (int from = WPT_LEVEL_LEAST; from <= WPT_LEVEL_MOST; from++) {
			int level = level_for(sink, 2, from);

			assert_in_range(level, sink > 80 ? 8 : sink > 40 ? 6 : sink > 20 ? 4 : 1, sink < 5 ? 1 : sink < 20 ? 4 : 9);
			/* It has come to rest, unless it is at an end. */
			assert_int_equal(level_for(sink, 2, level), level);
		}
	}
	assert_int_equal(level_for(6, 1, 1), 1);
	assert_true(level_for(6, 8, 1) > 3);
}

/* A time that passes only while the sink writes a large frame. */
static uint64_t fake_now, fake_step;

static uint64_t fake_clock(void)
{
	return __atomic_load_n(&fake_now, __ATOMIC_RELAXED);
}

static int slow_write(struct wpt_sink *base, const void *data, size_t len)
{
	__atomic_fetch_add(&fake_now, fake_step, __ATOMIC_RELAXED);
	return sink_write(base, data, len);
}

static void level_goes_up_with_a_slow_sink(void **state)
{
	enum { BATCHES = 10, PAGES = 32, LINKS = 8 };
	struct wpt_layer_kit *kit = kit_open(BATCHES << 20, 1, WPT_LEVEL_ADAPTIVE);
	struct wpt_layer_params p = params(true, 0, NULL);
	struct image *m = image_new(), *read = image_new();
	struct wpt_layer_writer *w;
	struct wpt_layer_result r;
	int level = 1, before;
	struct opened o;
	struct sink s;

	(void)state;
	wpt_layer_kit_clock(kit, fake_clock);
	/* Not to be compressed, so that each frame is a write of its own. */
	for (size_t i = 0; i < (size_t)BATCHES * PAGES * WPT_PAGE; i++)
		m->data[i] = (uint8_t)(rng() >> 40);
	memset(m->state, DATA, BATCHES * PAGES);
	p.kit = kit;
	for (int link = 0; link < LINKS; link++) {
		fake_step = link < LINKS - 1 ? 1000000 : 0;
		sink_open(&s);
		s.base.write = slow_write;
		w = writer_open(&s, &p);
		for (uint64_t i = 0; i < BATCHES; i++) {
			struct wpt_batch *b = batch_get(w);

			memcpy(b->data, m->data + i * PAGES * WPT_PAGE, PAGES * WPT_PAGE);
			b->nr_pages = PAGES;
			item_add(b, BASE_ADDR + i * PAGES * WPT_PAGE, PAGES, WPT_ITEM_DATA);
			submit(w, b);
			/* One frame after the other, so that no time passes while one is compressed. */
			assert_int_equal(wpt_layer_drain(w), 0);
		}
		assert_int_equal(wpt_layer_ranges(w, all_memory, 2), 0);
		r = finish(w, &s);
		/* The frames of a level are counted over links: 10 frames are two steps and a half. */
		before = level;
		level = WPT_MIN(1 + (link + 1) * BATCHES / (int)WPT_LEVEL_FRAMES, WPT_LEVEL_MOST);
		if (!fake_step)
			level = before;
		assert_int_equal(r.level, level);
		link_read(&s, read, &o);
		same_memory(m, read);
		sink_close(&s);
	}
	assert_int_equal(level, WPT_LEVEL_MOST);
	wpt_layer_kit_close(kit);
	image_free(m);
	image_free(read);
}

/* On a 32-bit machine what is asked for must not wrap around to little. */
static void more_than_there_are_addresses(void **state)
{
	struct wpt_layer_kit *k = NULL;

	(void)state;
	/* Others have room for a try, and an emulated one breaks on it. */
	if (sizeof(size_t) > 4)
		return;
	assert_int_equal(wpt_layer_kit_open(&k, UINT64_MAX, 1, 1), -ENOMEM);
	assert_int_equal(wpt_layer_kit_open(&k, (UINT64_C(1) << 52) + (64 << 20), 1, 1), -ENOMEM);
	assert_null(k);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(more_than_there_are_addresses),
		cmocka_unit_test(used_kit_makes_the_same_link),
		cmocka_unit_test(all_batches_are_there_again),
		cmocka_unit_test(level_moves_by_what_takes_longer),
		cmocka_unit_test(level_comes_to_the_speed_of_the_sink),
		cmocka_unit_test(level_goes_up_with_a_slow_sink),
	};

	return cmocka_run_group_tests_name("layer kit", tests, NULL, NULL);
}
