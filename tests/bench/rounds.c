/* SPDX-License-Identifier: MIT */
/*
 * The pause of consistent links taken one after the other while the target never stops writing: whole pages at random places of its
 * working set, at a steady rate, by 1 to 64 threads; and the same with a sink that takes 20 MB/s. Beside it fork() of the same process,
 * between the links and under the same writers.
 *
 * The working set of the throttled runs is smaller than the memory, since a link must get through the sink before the next begins;
 * what is tracked, found and stopped is the same.
 */
#include "bench.h"

#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 256u
#define NR_CONTENTS 1024u
#define LEAST_LINKS 10u
#define OWN_FORK (BENCH_OWN + 0)
#define OWN_WRITERS (BENCH_OWN + 1)   /* a: threads, 0: none; b: bytes a second of all of them */

/* Words of the shared page. */
enum { WRITERS, RATE, WORKING_SET, WRITTEN };

static struct config {
	uint64_t bytes, working_set, slow_set, rate, staging, slow_sink;
	unsigned int links, seconds, every_ms, nr_threads[8], nr_cases;
	int level;
	uint32_t max_rounds, target_pause_us;
} config = {
	.slow_set = 64 * BENCH_MIB, .rate = 500000000, .staging = 1280 * BENCH_MIB, .slow_sink = 20000000, .nr_threads = { 1, 8, 64 },
	.nr_cases = 3, .level = 1, .seconds = 60,
};

/* ---- in the target: the writers ---- */

static struct bench_target *target;
static pthread_t writers[MAX_THREADS];
static uint8_t *contents;

static void sleep_until(uint64_t ns)
{
	struct timespec ts = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL))
		;
}

/* Bursts at fixed times, so that a pause is made up for; but not one of more than a tenth of a second. */
static void *keep_writing(void *arg)
{
	uint64_t n = target->shared[WRITERS], period = 1000000u * (n > 4 ? n / 4 : 1), state = (uintptr_t)arg + 1;
	uint64_t pages = target->shared[WORKING_SET] / BENCH_PAGE, next = bench_now_ns() + bench_random(&state) % period;
	double due = 0, burst = (double)target->shared[RATE] / BENCH_PAGE / (double)n * (double)period / 1e9;

	while ((uintptr_t)arg < target->shared[WRITERS]) {
		uint64_t now, done = 0;

		sleep_until(next);
		for (due += burst; due >= 1; due--, done++) {
			uint8_t *p = target->memory + bench_random(&state) % pages * BENCH_PAGE;

			memcpy(p, contents + (state >> 20) % NR_CONTENTS * BENCH_PAGE, BENCH_PAGE);
			*(volatile uint64_t *)p = state;
		}
		__atomic_add_fetch(&target->shared[WRITTEN], done, __ATOMIC_RELAXED);
		now = bench_now_ns();
		next = now > next + 100000000u ? now : next + period;
	}
	return NULL;
}

static void set_writers(struct bench_target *t, uint64_t nr, uint64_t rate)
{
	uint64_t before = t->shared[WRITERS];

	t->shared[WRITERS] = 0;
	for (uint64_t i = 0; i < before; i++)
		pthread_join(writers[i], NULL);
	target = t;
	if (!contents) {
		contents = bench_map(NR_CONTENTS * BENCH_PAGE);
		bench_fill(contents, NR_CONTENTS * BENCH_PAGE, 99);
	}
	t->shared[RATE] = rate;
	t->shared[WRITERS] = nr;
	for (uintptr_t i = 0; i < nr; i++)
		bench_check_errno(pthread_create(&writers[i], NULL, keep_writing, (void *)i) != 0, "pthread_create");
}

static uint64_t serve(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b)
{
	uint64_t t0;
	pid_t pid;

	if (command == OWN_WRITERS) {
		set_writers(t, a, b);
		return 0;
	}
	t0 = bench_now_ns();
	pid = fork();
	if (!pid)
		_exit(0);
	t0 = bench_now_ns() - t0;
	bench_check_errno(pid < 0 || waitpid(pid, NULL, 0) != pid, "fork");
	return t0;
}

/* ---- here: the sink ---- */

struct sink {
	int pipe[2];
	uint64_t rate;               /* bytes a second, 0: as they come */
	atomic_uint_fast64_t bytes;
	pthread_t thread;
};

static void *drain(void *arg)
{
	static uint8_t buffer[1 << 18];
	struct sink *s = arg;
	size_t room = s->rate ? 1 << 16 : sizeof(buffer);
	uint64_t next = 0, now;
	ssize_t got;

	while ((got = read(s->pipe[0], buffer, room)) > 0) {
		s->bytes += (uint64_t)got;
		if (!s->rate)
			continue;
		/* The time that a sink stood idle is not made up for. */
		now = bench_now_ns();
		next = (next > now ? next : now) + (uint64_t)got * 1000000000u / s->rate;
		sleep_until(next);
	}
	return NULL;
}

static void sink_start(struct sink *s, uint64_t rate)
{
	memset(s, 0, sizeof(*s));
	s->rate = rate;
	bench_check_errno(pipe2(s->pipe, O_CLOEXEC), "pipe");
	/* A slow sink that takes a MiB at once would be a fast one for small links. */
	fcntl(s->pipe[1], F_SETPIPE_SZ, rate ? 1 << 16 : 1 << 20);
	bench_check_errno(pthread_create(&s->thread, NULL, drain, s) != 0, "pthread_create");
}

static void sink_stop(struct sink *s)
{
	close(s->pipe[1]);
	pthread_join(s->thread, NULL);
	close(s->pipe[0]);
}

/* ---- the links ---- */

struct figures {
	struct bench_series forked, pause, rounds, paused, dirty, stored, total, rate;
	unsigned int ends[WPT_ROUNDS_DIRECT + 1];
};

static void figures_init(struct figures *f, unsigned int threads, uint64_t sink)
{
	const char *s = threads > 1 ? "s" : "", *slow = sink ? ", slow sink" : "";

	bench_series_init(&f->forked, "ms", "%u thread%s%s: fork()", threads, s, slow);
	bench_series_init(&f->pause, "ms", "%u thread%s%s: pause", threads, s, slow);
	bench_series_init(&f->rounds, "", "  rounds before it");
	bench_series_init(&f->paused, "pages", "  copied or compared in the pause");
	bench_series_init(&f->dirty, "MiB", "  dirty, in all rounds");
	memset(f->ends, 0, sizeof(f->ends));
	bench_series_init(&f->stored, "MiB", "  stored");
	bench_series_init(&f->total, "ms", "  time of the link");
	bench_series_init(&f->rate, "MB/s", "  written by the target meanwhile");
}

static void take(struct bench_target *t, struct wpt_writer *w, struct figures *f)
{
	const struct wpt_take_options o = {
		.size = sizeof(o), .max_rounds = config.max_rounds, .target_pause_us = config.target_pause_us,
	};
	struct wpt_take_stats stats = { .size = sizeof(stats) };
	uint64_t t0, written;

	bench_series_add(&f->forked, (double)bench_target_do(t, OWN_FORK, 0, 0) / 1e6);
	usleep(config.every_ms * 1000);
	written = t->shared[WRITTEN];
	t0 = bench_now_ns();
	bench_check(wpt_writer_take(w, &o, &stats), "wpt_writer_take");
	t0 = bench_now_ns() - t0;
	written = t->shared[WRITTEN] - written;
	bench_series_add(&f->pause, (double)stats.pause_ns / 1e6);
	bench_series_add(&f->rounds, stats.nr_rounds);
	bench_series_add(&f->paused, (double)stats.pages_paused);
	if (stats.rounds_end <= WPT_ROUNDS_DIRECT)
		f->ends[stats.rounds_end]++;
	bench_series_add(&f->dirty, (double)(stats.pages_dirty * BENCH_PAGE) / (double)BENCH_MIB);
	bench_series_add(&f->stored, (double)stats.bytes_stored / (double)BENCH_MIB);
	bench_series_add(&f->total, (double)t0 / 1e6);
	bench_series_add(&f->rate, (double)(written * BENCH_PAGE) / (double)t0 * 1e3);
}

static void row_as(const struct bench_series *s, const char *as, const struct bench_series *peer, const struct bench_aim *aim)
{
	struct bench_series row = *s;
	size_t len = strlen(row.what);

	snprintf(row.what + len, sizeof(row.what) - len, ", %s", as);
	bench_row(&row, peer, aim);
}

static void figures_print(struct figures *f)
{
	double gib = (double)config.bytes / (double)BENCH_GIB;
	const struct bench_aim p50 = { BENCH_MEDIAN, false, 1 + 1.3 * gib }, p99 = { BENCH_P99, false, 5 }, share = { BENCH_RATIO, false, 0.1 };

	bench_row(&f->forked, NULL, NULL);
	row_as(&f->pause, "p50", NULL, &p50);
	row_as(&f->pause, "p99", NULL, &p99);
	row_as(&f->pause, "to fork()", &f->forked, &share);
	bench_row(&f->rounds, NULL, NULL);
	bench_row(&f->paused, NULL, NULL);
	bench_row(&f->dirty, NULL, NULL);
	bench_row(&f->stored, NULL, NULL);
	bench_row(&f->total, NULL, NULL);
	bench_row(&f->rate, NULL, NULL);
	bench_note("why rounds ended: %u little was left, %u another would not have helped, %u limit, %u staging memory, %u there were none",
		   f->ends[WPT_ROUNDS_SMALL], f->ends[WPT_ROUNDS_STALLED], f->ends[WPT_ROUNDS_LIMIT], f->ends[WPT_ROUNDS_STAGING],
		   f->ends[WPT_ROUNDS_NONE]);
}

static void measure(struct bench_target *t, struct wpt_tracker *tracker, unsigned int threads, uint64_t sink_rate)
{
	struct wpt_writer_options o = {
		.size = sizeof(o), .dest = WPT_DEST_FD, .flags = WPT_WRITER_NO_SYNC, .level = config.level, .nr_threads = 2,
		.staging_bytes = config.staging,
	};
	uint64_t set = sink_rate ? config.slow_set : config.working_set;
	struct wpt_writer *w;
	struct figures f;
	struct sink sink;
	uint64_t until;

	/* The base would take long to get through a slow sink; it goes before the throttle. */
	sink_start(&sink, 0);
	o.fd = sink.pipe[1];
	t->shared[WORKING_SET] = set < config.bytes ? set : config.bytes;
	bench_target_do(t, OWN_WRITERS, threads, config.rate);
	bench_check(wpt_writer_open(&w, tracker, NULL, &o), "wpt_writer_open");
	bench_check(wpt_writer_take(w, NULL, NULL), "wpt_writer_take, the base");
	sink.rate = sink_rate;
	figures_init(&f, threads, sink_rate);
	until = bench_now_ns() + config.seconds * 1000000000ull;
	for (unsigned int i = 0; i < config.links && (i < LEAST_LINKS || bench_now_ns() < until); i++)
		take(t, w, &f);
	bench_target_do(t, OWN_WRITERS, 0, 0);
	wpt_writer_close(w);
	sink_stop(&sink);
	figures_print(&f);
}

/* ---- options ---- */

static const char usage[] =
	"usage: rounds [OPTION]...\n"
	"  --size BYTES         memory of the target (WPT_BENCH_SIZE, 1G)   --rate BYTES     a second, of all writers (500M, M = 10^6)\n"
	"  --working-set BYTES  that is written to (all of it)              --threads LIST   of the target (1,8,64)\n"
	"  --slow-set BYTES     the same with a throttled sink (64M)        --slow-sink BYTES  a second, 0: not measured (20M, M = 10^6)\n"
	"  --staging BYTES      staging memory (1280M)                      --links N        of each kind (WPT_REPEATS, 30)\n"
	"  --level N            of zstd (1)                                 --every MS       between links (0)\n"
	"  --seconds N          after which a kind ends with 10 links (60)\n"
	"  --max-rounds N       0: none (10)                                --target-pause US  (1000)\n";

/* `million`: what M stands for. */
static uint64_t size_of(const char *text, uint64_t million)
{
	uint64_t n;
	char *end;

	n = strtoull(text, &end, 10);
	if (*end == 'G' || *end == 'g')
		n *= million == BENCH_MIB ? BENCH_GIB : 1000 * million;
	else if (*end == 'M' || *end == 'm')
		n *= million;
	else if (*end) {
		fprintf(stderr, "%s: not a size\n%s", text, usage);
		exit(2);
	}
	return n;
}

static void set_threads(char *list)
{
	config.nr_cases = 0;
	for (char *word = strtok(list, ","); word && config.nr_cases < 8; word = strtok(NULL, ",")) {
		unsigned long n = strtoul(word, NULL, 10);

		config.nr_threads[config.nr_cases++] = n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : (unsigned int)n;
	}
}

static void set_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "size", 1, NULL, 's' }, { "working-set", 1, NULL, 'w' }, { "slow-set", 1, NULL, 'W' }, { "rate", 1, NULL, 'r' },
		{ "staging", 1, NULL, 'm' }, { "slow-sink", 1, NULL, 'S' }, { "threads", 1, NULL, 't' }, { "links", 1, NULL, 'n' },
		{ "every", 1, NULL, 'e' }, { "level", 1, NULL, 'l' }, { "help", 0, NULL, 'h' },
		{ "seconds", 1, NULL, 'T' }, { "max-rounds", 1, NULL, 'R' }, { "target-pause", 1, NULL, 'P' }, { 0 }
	};
	unsigned long links;
	int c;

	config.bytes = bench_size(BENCH_GIB);
	config.links = bench_repeats(30);
	config.working_set = UINT64_MAX;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's': config.bytes = size_of(optarg, BENCH_MIB) & ~(2 * BENCH_MIB - 1); break;
		case 'w': config.working_set = size_of(optarg, BENCH_MIB); break;
		case 'W': config.slow_set = size_of(optarg, BENCH_MIB); break;
		case 'r': config.rate = size_of(optarg, 1000000); break;
		case 'm': config.staging = size_of(optarg, BENCH_MIB); break;
		case 'S': config.slow_sink = size_of(optarg, 1000000); break;
		case 't': set_threads(optarg); break;
		case 'n':
			links = strtoul(optarg, NULL, 10);
			config.links = links < 1 ? 1 : links > BENCH_VALUES ? BENCH_VALUES : (unsigned int)links;
			break;
		case 'e': config.every_ms = (unsigned int)strtoul(optarg, NULL, 10); break;
		case 'l': config.level = atoi(optarg); break;
		case 'T': config.seconds = (unsigned int)strtoul(optarg, NULL, 10); break;
		case 'R': config.max_rounds = atoi(optarg) > 0 ? (uint32_t)atoi(optarg) : WPT_NO_ROUNDS; break;
		case 'P': config.target_pause_us = (uint32_t)strtoul(optarg, NULL, 10); break;
		case 'h': fputs(usage, stdout); exit(0);
		default: fputs(usage, stderr); exit(2);
		}
	}
	if (config.bytes < 2 * BENCH_MIB || config.working_set < BENCH_PAGE || config.slow_set < BENCH_PAGE || !config.nr_cases ||
	    optind != argc) {
		fputs(usage, stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct wpt_range range = { .size = sizeof(range) };
	struct wpt_tracker *tracker;
	struct bench_target t;

	set_options(argc, argv);
	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	bench_target_start(&t, config.bytes, serve);
	bench_target_do(&t, BENCH_FILL, 1, 0);
	range.start = (uintptr_t)t.memory;
	range.end = range.start + t.bytes;
	bench_attach(&tracker, t.pid);
	bench_check(wpt_range_add(tracker, &range), "wpt_range_add");
	bench_table("pause of %s of 4 KiB pages, %.0f MB/s of random pages, staging %s, up to %u links each", bench_bytes(t.bytes),
		    (double)config.rate / 1e6, bench_bytes(config.staging), config.links);
	for (unsigned int i = 0; i < config.nr_cases; i++)
		measure(&t, tracker, config.nr_threads[i], 0);
	for (unsigned int i = 0; i < config.nr_cases && config.slow_sink; i++)
		measure(&t, tracker, config.nr_threads[i], config.slow_sink);
	if (config.slow_sink)
		bench_note("slow sink: %.0f MB/s; there the working set is %s", (double)config.slow_sink / 1e6,
			   bench_bytes(config.slow_set < config.bytes ? config.slow_set : config.bytes));
	wpt_tracker_close(tracker);
	bench_target_stop(&t);
	return 0;
}
