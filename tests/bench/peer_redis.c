/* SPDX-License-Identifier: MIT */
/*
 * A redis-server under SETs of random keys: undisturbed, while BGSAVE runs, and while `wpsnap watch` takes a base and then an increment a
 * second. What each adds to the latencies that the clients see, what it takes from the rate, and what it costs itself.
 *
 * The clients are here: a few connections to a private socket, each with a number of requests under way (a closed loop, as
 * redis-benchmark -P has it); every reply's latency goes into one histogram of microseconds. A loop that waits for replies sends less
 * while the server stands still; with --rate it is an open one: requests are due at fixed times, and latency counts from then.
 *
 * What follows `--` is given to `wpsnap watch`; without it that is --staging 1G, since under this load nearly all of the memory is written
 * anew between two links, and BGSAVE takes as much. Everything is in tmpfs.
 */
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_CONNECTIONS 64u
#define MAX_DEPTH 64u
#define HISTOGRAM (1u << 20)   /* microseconds */
#define KEY_LEN 15u
#define NR_VALUES 4096u

static struct config {
	uint64_t bytes, rate;
	unsigned int value_len, connections, depth, seconds, links, rounds;
} config = { .value_len = 1000, .connections = 8, .depth = 8, .seconds = 6, .links = 6 };

static char socket_path[108];
static pid_t redis;
static uint64_t nr_keys;
static uint8_t *values;        /* NR_VALUES different ones */

/* ---- the clients ---- */

struct connection {
	int fd;
	uint64_t sent[MAX_DEPTH];  /* when, or when it was due; a ring */
	unsigned int first, pending;
	unsigned int matched;      /* bytes of a reply that came already */
	char *out;
	size_t out_len, out_done;
};

static struct connection connections[MAX_CONNECTIONS];
static pthread_mutex_t window = PTHREAD_MUTEX_INITIALIZER;
static struct counts {
	uint64_t since, replies, longest_us;
	uint32_t us[HISTOGRAM];
} *counts;                     /* of the window that is open; under its lock */
static atomic_bool quit;

static int redis_connect(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(addr.sun_path, socket_path, sizeof(addr.sun_path));
	bench_check_errno(fd < 0, "socket");
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		close(fd);
		return -1;
	}
	return fd;
}

static size_t put_set(char *to, uint64_t key, uint64_t *state)
{
	int n = sprintf(to, "*3\r\n$3\r\nSET\r\n$%u\r\nkey:%011llu\r\n$%u\r\n", KEY_LEN, (unsigned long long)key, config.value_len);
	uint64_t r = bench_random(state);

	memcpy(to + n, values + r % NR_VALUES * config.value_len, config.value_len);
	/* No two values are the same. */
	memcpy(to + n, &r, config.value_len < 8 ? config.value_len : 8);
	memcpy(to + n + config.value_len, "\r\n", 2);
	return (size_t)n + config.value_len + 2;
}

static void record(uint64_t since, uint64_t now)
{
	uint64_t us = (now - since) / 1000;

	counts->us[us < HISTOGRAM ? us : HISTOGRAM - 1]++;
	counts->replies++;
	if (us > counts->longest_us)
		counts->longest_us = us;
}

static void flush(struct connection *c)
{
	while (c->out_done < c->out_len) {
		ssize_t n = send(c->fd, c->out + c->out_done, c->out_len - c->out_done, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0) {
			bench_check_errno(errno != EAGAIN && errno != EINTR, "send to redis-server");
			return;
		}
		c->out_done += (size_t)n;
	}
	c->out_len = c->out_done = 0;
}

static void receive(struct connection *c)
{
	static const char ok[] = "+OK\r\n";
	char buffer[MAX_DEPTH * 5];
	ssize_t n = recv(c->fd, buffer, sizeof(buffer), MSG_DONTWAIT);
	uint64_t now = bench_now_ns();

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	bench_check_errno(n <= 0, "recv from redis-server");
	for (ssize_t i = 0; i < n; i++) {
		if (buffer[i] != ok[c->matched]) {
			fprintf(stderr, "redis-server: %.*s\n", (int)(n - i), buffer + i);
			exit(1);
		}
		c->matched = (c->matched + 1) % 5;
		if (c->matched)
			continue;
		record(c->sent[c->first], now);
		c->first = (c->first + 1) % MAX_DEPTH;
		c->pending--;
	}
}

/* Adds requests, up to the depth; those that were due at *due if that is not NULL. */
static void request(struct connection *c, uint64_t *due, uint64_t interval, uint64_t *state)
{
	uint64_t now = bench_now_ns();

	if (c->out_len)
		return;
	while (c->pending < config.depth && (!due || *due <= now)) {
		c->sent[(c->first + c->pending++) % MAX_DEPTH] = due ? *due : now;
		c->out_len += put_set(c->out + c->out_len, bench_random(state) % nr_keys, state);
		if (due)
			*due += interval;
	}
	flush(c);
}

static void *clients(void *arg)
{
	uint64_t state = 11, due = bench_now_ns(), interval = config.rate ? 1000000000u / config.rate : 0;
	struct pollfd fds[MAX_CONNECTIONS];

	(void)arg;
	while (!quit) {
		uint64_t now = bench_now_ns();
		int timeout = !config.rate ? 100 : due <= now ? 0 : 1;

		for (unsigned int i = 0; i < config.connections; i++) {
			struct connection *c = &connections[i];

			request(c, config.rate ? &due : NULL, interval, &state);
			fds[i] = (struct pollfd){ c->fd, (short)(POLLIN | (c->out_len ? POLLOUT : 0)), 0 };
		}
		if (poll(fds, config.connections, timeout) <= 0)
			continue;
		pthread_mutex_lock(&window);
		for (unsigned int i = 0; i < config.connections; i++) {
			if (fds[i].revents & POLLOUT)
				flush(&connections[i]);
			if (fds[i].revents & (POLLIN | POLLERR | POLLHUP))
				receive(&connections[i]);
		}
		pthread_mutex_unlock(&window);
	}
	return NULL;
}

/* ---- windows: what the clients saw from one moment to another ---- */

struct seen {
	double rate, p50, p99, p999, max;   /* a second, ms */
};

static double percentile(const struct counts *c, double q)
{
	uint64_t until = (uint64_t)(q * (double)c->replies), n = 0;

	for (uint64_t us = 0; us < HISTOGRAM - 1; us++) {
		n += c->us[us];
		if (n > until)
			return (double)us / 1e3;
	}
	return (double)c->longest_us / 1e3;
}

/* Ends the window and begins the next; the clients are not kept waiting. */
static struct seen next_window(void)
{
	static struct counts buffers[2];
	struct counts *next = counts == &buffers[0] ? &buffers[1] : &buffers[0], *last;
	struct seen s = { 0 };
	double ns;

	memset(next, 0, sizeof(*next));
	pthread_mutex_lock(&window);
	last = counts;
	counts = next;
	next->since = bench_now_ns();
	pthread_mutex_unlock(&window);
	if (!last)
		return s;
	ns = (double)(next->since - last->since);
	s.rate = (double)last->replies / ns * 1e9;
	s.p50 = percentile(last, 0.5);
	s.p99 = percentile(last, 0.99);
	s.p999 = percentile(last, 0.999);
	s.max = (double)last->longest_us / 1e3;
	return s;
}

/* ---- the server ---- */

/* One command at a time on a connection of its own; the answer ends with a NUL. */
static const char *command(const char *text)
{
	static char answer[1 << 16];
	static int fd = -1;
	size_t len = 0, want = SIZE_MAX;
	char *end;

	if (fd < 0)
		fd = redis_connect();
	bench_check_errno(fd < 0 || send(fd, text, strlen(text), MSG_NOSIGNAL) != (ssize_t)strlen(text), "redis-server");
	while (len < want) {
		ssize_t n = recv(fd, answer + len, sizeof(answer) - 1 - len, 0);

		bench_check_errno(n <= 0, "redis-server");
		len += (size_t)n;
		answer[len] = 0;
		end = strstr(answer, "\r\n");
		if (end && want == SIZE_MAX)
			want = answer[0] == '$' ? (size_t)(end + 4 - answer) + strtoul(answer + 1, NULL, 10) : len;
	}
	return answer;
}

static void server_start(void)
{
	const char *argv[] = {
		"redis-server", "--port", "0", "--unixsocket", socket_path, "--dir", peer_folder(), "--save", "", "--appendonly", "no",
		"--daemonize", "no", NULL,
	};
	uint64_t deadline = bench_now_ns() + 30000000000u;
	int fd;

	snprintf(socket_path, sizeof(socket_path), "%s", peer_path("redis.sock"));
	redis = peer_start("redis-server", argv);
	while ((fd = redis_connect()) < 0) {
		if (!peer_alive(redis) || bench_now_ns() > deadline)
			peer_fail("redis-server", "does not answer");
		usleep(20000);
	}
	close(fd);
}

static void connect_all(void)
{
	for (unsigned int i = 0; i < config.connections; i++) {
		struct connection *c = &connections[i];

		c->fd = redis_connect();
		c->out = malloc(MAX_DEPTH * (size_t)(config.value_len + 128));
		bench_check_errno(c->fd < 0 || !c->out, "connections");
	}
}

static void server_fill(void)
{
	struct connection *c = &connections[0];
	struct pollfd fd = { c->fd, POLLIN, 0 };
	uint64_t state = 3;

	for (uint64_t key = 0; key < nr_keys || c->pending;) {
		while (!c->out_len && c->pending < MAX_DEPTH && key < nr_keys) {
			size_t len = 0;

			for (; c->pending < MAX_DEPTH && key < nr_keys; key++) {
				c->sent[(c->first + c->pending++) % MAX_DEPTH] = 0;
				len += put_set(c->out + len, key, &state);
			}
			c->out_len = len;
		}
		flush(c);
		fd.events = (short)(POLLIN | (c->out_len ? POLLOUT : 0));
		poll(&fd, 1, 1000);
		receive(c);
	}
}

/* ---- the two ways to save ---- */

struct figures {
	struct bench_series rate, p50, p99, p999, max, more_p999, more_max, time, pause, extra, stored;
};

static struct figures quiet, bgsave, base, increments;
static char ends[512];         /* why the rounds before the pauses ended, of the last watch */

static void figures_init(struct figures *f, const char *who)
{
	bench_series_init(&f->rate, "SET/s", "%s: rate", who);
	bench_series_init(&f->p50, "ms", "%s: p50", who);
	bench_series_init(&f->p99, "ms", "%s: p99", who);
	bench_series_init(&f->p999, "ms", "%s: p99.9", who);
	bench_series_init(&f->max, "ms", "%s: longest", who);
	bench_series_init(&f->more_p999, "ms", "%s: adds to p99.9", who);
	bench_series_init(&f->more_max, "ms", "%s: adds to the longest", who);
	bench_series_init(&f->time, "ms", "%s: time", who);
	bench_series_init(&f->pause, "ms", "%s: server stopped", who);
	bench_series_init(&f->extra, "MiB", "%s: extra memory", who);
	bench_series_init(&f->stored, "MiB", "%s: stored", who);
}

/* `before`: the undisturbed seconds of this round. Less than nothing is noise; of BGSAVE it is hardly anything, so that ours counts. */
static void figures_add(struct figures *f, const struct seen *s, const struct seen *before)
{
	const double least = f == &bgsave ? 1e-3 : 0;

	bench_series_add(&f->rate, s->rate);
	bench_series_add(&f->p50, s->p50);
	bench_series_add(&f->p99, s->p99);
	bench_series_add(&f->p999, s->p999);
	bench_series_add(&f->max, s->max);
	bench_series_add(&f->more_p999, s->p999 > before->p999 ? s->p999 - before->p999 : least);
	bench_series_add(&f->more_max, s->max > before->max ? s->max - before->max : least);
}

static void by_bgsave(const struct seen *before)
{
	const char *dump = peer_path("dump.rdb"), *info;
	uint64_t t0 = bench_now_ns(), bytes;
	struct seen s;

	next_window();
	if (strncmp(command("BGSAVE\r\n"), "+Background saving started", 26)) {
		fprintf(stderr, "redis-server does not save\n");
		exit(1);
	}
	while (info = command("INFO persistence\r\n"), peer_number(info, "rdb_bgsave_in_progress") > 0)
		usleep(20000);
	t0 = bench_now_ns() - t0;
	s = next_window();
	if (!strstr(info, "rdb_last_bgsave_status:ok"))
		peer_fail("redis-server", "BGSAVE failed");
	bytes = peer_file_size(dump);
	unlink(dump);
	figures_add(&bgsave, &s, before);
	bench_series_add(&bgsave.time, (double)t0 / 1e6);
	bench_series_add(&bgsave.extra, peer_number(info, "rdb_last_cow_size") / (double)BENCH_MIB);
	bench_series_add(&bgsave.stored, (double)bytes / (double)BENCH_MIB);
	bench_series_add(&bgsave.pause, peer_number(command("INFO stats\r\n"), "latest_fork_usec") / 1e3);
}

/* Of the links that the watch told of. The base's time is from the start of wpsnap to its "ready". */
static void read_links(const char *out)
{
	const char *line = peer_text(peer_path("%s", out)), *end;
	struct peer_link link;
	size_t len = 0;

	while ((line = strstr(line, "\"type\":\"link\""))) {
		struct figures *f = strstr(line, "\"trigger\":\"base\"") == line + 14 ? &base : &increments;

		link = peer_link_of(line);
		if (f == &increments)
			bench_series_add(&f->time, link.total_ms);
		end = strstr(line, "\"rounds_end\":\"");
		if (end)
			len += (size_t)snprintf(ends + len, sizeof(ends) - len, " %.*s", (int)strcspn(end + 14, "\""), end + 14);
		len = len < sizeof(ends) ? len : sizeof(ends) - 1;
		bench_series_add(&f->pause, link.pause_ms);
		bench_series_add(&f->stored, link.stored_mib);
		line += 14;
	}
}

static void by_watch(const struct seen *before, char **more)
{
	const char *chain = peer_path("chain"), *argv[32] = { peer_wpsnap(), "watch" };
	const char *out = "wpsnap-watch", *path = peer_path("%s", out);
	unsigned int n = 2;
	char pid[16], links[16], text[32];
	uint64_t peak = 0, kib, t0;
	bool ready = false;
	struct seen s;
	pid_t watch;

	snprintf(pid, sizeof(pid), "%d", (int)redis);
	snprintf(links, sizeof(links), "%u", config.links);
	for (const char *const *a = (const char *[]){ pid, "-o", chain, "--every", "1s", "--count", links, "--json", NULL }; *a; a++)
		argv[n++] = *a;
	while (*more && n < 31)
		argv[n++] = *more++;
	next_window();
	t0 = bench_now_ns();
	watch = peer_start(out, argv);
	while (peer_alive(watch)) {
		kib = bench_status_kib(watch, "VmHWM:");
		peak = kib > peak ? kib : peak;
		if (!ready && strstr(peer_text(path), "\"type\":\"ready\"")) {
			ready = true;
			s = next_window();
			figures_add(&base, &s, before);
			bench_series_add(&base.time, (double)(bench_now_ns() - t0) / 1e6);
			bench_series_add(&base.extra, (double)peak / 1024);
		}
		usleep(10000);
	}
	s = next_window();
	n = (unsigned int)peer_wait(watch, NULL);
	if ((n && n != 4) || !ready) {
		snprintf(text, sizeof(text), "exit status %u", n);
		peer_fail(out, text);
	}
	figures_add(&increments, &s, before);
	bench_series_add(&increments.extra, (double)peak / 1024);
	read_links(out);
	bench_folder_remove(chain);
}

static void print_all(void)
{
	const struct bench_aim fifth = { BENCH_RATIO, false, 0.2 }, rate = { BENCH_RATIO, true, 0.95 }, as_fast = { BENCH_RATIO, false, 1 };
	struct figures *ways[] = { &quiet, &bgsave, &base, &increments };

	for (unsigned int i = 0; i < 4; i++)
		bench_row(&ways[i]->rate, i ? &quiet.rate : NULL, i > 1 ? &rate : NULL);
	for (unsigned int i = 0; i < 4; i++) {
		bench_row(&ways[i]->p50, i ? &quiet.p50 : NULL, NULL);
		bench_row(&ways[i]->p99, i ? &quiet.p99 : NULL, NULL);
		bench_row(&ways[i]->p999, i ? &quiet.p999 : NULL, NULL);
		bench_row(&ways[i]->max, i ? &quiet.max : NULL, NULL);
	}
	bench_note("from here on: ratio to BGSAVE");
	for (unsigned int i = 1; i < 4; i++)
		bench_row(&ways[i]->more_p999, i > 1 ? &bgsave.more_p999 : NULL, i > 1 ? &fifth : NULL);
	for (unsigned int i = 1; i < 4; i++)
		bench_row(&ways[i]->more_max, i > 1 ? &bgsave.more_max : NULL, i > 1 ? &fifth : NULL);
	for (unsigned int i = 1; i < 4; i++)
		bench_row(&ways[i]->pause, i == 2 ? &bgsave.pause : NULL, NULL);
	for (unsigned int i = 1; i < 4; i++)
		bench_row(&ways[i]->time, i == 2 ? &bgsave.time : NULL, i == 2 ? &as_fast : NULL);
	for (unsigned int i = 1; i < 4; i++)
		bench_row(&ways[i]->extra, i > 1 ? &bgsave.extra : NULL, NULL);
	for (unsigned int i = 1; i < 4; i++)
		bench_row(&ways[i]->stored, i == 2 ? &bgsave.stored : NULL, NULL);
	bench_note("BGSAVE: server stopped: latest_fork_usec; extra memory: rdb_last_cow_size");
	bench_note("ours: extra memory: peak RSS of wpsnap; time of the base: from the start of wpsnap to \"ready\"");
	bench_note("why rounds ended before each pause of the last watch:%s", ends);
	bench_note("time, server stopped and stored of \"every 1s\" are of each increment");
}

static const char usage[] =
	"usage: peer_redis [OPTION]... [-- OPTION-OF-WPSNAP-WATCH...]   (--staging 1G)\n"
	"  --size MIB          of values (700)                     --value BYTES   of a value (1000)\n"
	"  --connections N     of clients (8)                      --depth N       requests under way on each (8)\n"
	"  --rate N            requests a second, 0: as many as the server answers (0)\n"
	"  --seconds N         without a snapshot (6)              --links N       of a watch, with the base (6)\n"
	"  --rounds N          of [undisturbed, BGSAVE, wpsnap watch] (WPT_REPEATS/10, 3)\n";

static unsigned int number(const char *text, unsigned int least, unsigned int most)
{
	unsigned long n = strtoul(text, NULL, 10);

	return n < least ? least : n > most ? most : (unsigned int)n;
}

static void set_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "size", 1, NULL, 's' }, { "value", 1, NULL, 'v' }, { "connections", 1, NULL, 'c' }, { "depth", 1, NULL, 'd' },
		{ "rate", 1, NULL, 'r' }, { "seconds", 1, NULL, 't' }, { "links", 1, NULL, 'l' }, { "rounds", 1, NULL, 'n' },
		{ "help", 0, NULL, 'h' }, { 0 }
	};
	int c;

	config.bytes = bench_size(700 * BENCH_MIB);
	config.rounds = (bench_repeats(30) + 9) / 10;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's': config.bytes = number(optarg, 1, 1 << 20) * BENCH_MIB; break;
		case 'v': config.value_len = number(optarg, 8, 65536); break;
		case 'c': config.connections = number(optarg, 1, MAX_CONNECTIONS); break;
		case 'd': config.depth = number(optarg, 1, MAX_DEPTH); break;
		case 'r': config.rate = number(optarg, 0, 10000000); break;
		case 't': config.seconds = number(optarg, 1, 1000); break;
		case 'l': config.links = number(optarg, 2, 32); break;
		case 'n': config.rounds = number(optarg, 1, 8); break;
		case 'h': fputs(usage, stdout); exit(0);
		default: fputs(usage, stderr); exit(2);
		}
	}
}

int main(int argc, char **argv)
{
	static char *staging[] = { "--staging", "1G", NULL };
	char **more;
	pthread_t thread;
	struct seen before;

	set_options(argc, argv);
	bench_need(WPT_F_ASYNC | WPT_F_PTRACE);
	peer_need("redis-server", "redis-server");
	values = malloc(NR_VALUES * (size_t)config.value_len + BENCH_PAGE);
	bench_check_errno(!values, "malloc");
	for (size_t i = 0; i < NR_VALUES * (size_t)config.value_len; i += BENCH_PAGE)
		bench_fill_page(values + i, i / BENCH_PAGE, 5);
	nr_keys = config.bytes / config.value_len;
	more = optind < argc ? argv + optind : staging;
	server_start();
	next_window();
	connect_all();
	server_fill();
	bench_check_errno(pthread_create(&thread, NULL, clients, NULL) != 0, "pthread_create");
	sleep(1);
	figures_init(&quiet, "undisturbed");
	figures_init(&bgsave, "BGSAVE");
	figures_init(&base, "wpsnap base");
	figures_init(&increments, "wpsnap every 1s");
	for (unsigned int i = 0; i < config.rounds; i++) {
		next_window();
		sleep(config.seconds);
		before = next_window();
		figures_add(&quiet, &before, &before);
		by_bgsave(&before);
		sleep(1);
		by_watch(&before, more);
		sleep(1);
	}
	bench_table("redis-server, %llu keys, RSS %s, %u connections of %u requests%s, %u rounds", (unsigned long long)nr_keys,
		    bench_bytes(bench_status_kib(redis, "VmRSS:") << 10), config.connections, config.depth,
		    config.rate ? " at a fixed rate" : "", config.rounds);
	print_all();
	quit = true;
	pthread_join(thread, NULL);
	peer_stop(redis);
	return 0;
}
