/* SPDX-License-Identifier: MIT */
/* Values, tables, data and the target process: see bench.h. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t bench_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int bench_check(int ret, const char *what)
{
	if (ret < 0) {
		fprintf(stderr, "%s: %s (%d)\n", what, wpt_strerror(ret), ret);
		exit(1);
	}
	return ret;
}

void bench_check_errno(bool failed, const char *what)
{
	if (failed) {
		fprintf(stderr, "%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

void bench_need(uint32_t features)
{
	struct wpt_probe probe = { .size = sizeof(probe) };
	uint32_t missing;

	bench_check(wpt_probe(&probe), "wpt_probe");
	missing = features & ~probe.features;
	if (!missing)
		return;
	printf("skipped: this kernel or this user lacks");
	for (uint32_t bit = 1; bit; bit <<= 1) {
		if (missing & bit)
			printf(" %s", wpt_feature_name(bit));
	}
	printf("\n");
	exit(77);
}

/* ---- values and tables ---- */

void bench_series_init(struct bench_series *s, const char *unit, const char *format, ...)
{
	va_list ap;

	memset(s, 0, sizeof(*s));
	s->unit = unit;
	va_start(ap, format);
	vsnprintf(s->what, sizeof(s->what), format, ap);
	va_end(ap);
}

void bench_series_add(struct bench_series *s, double value)
{
	if (s->n < BENCH_VALUES)
		s->v[s->n++] = value;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The value that a share `q` of the sorted values does not exceed. */
static double quantile(const double *sorted, unsigned int n, double q)
{
	unsigned int i = (unsigned int)(q * n);

	if (n && q == 0.5 && n % 2 == 0)
		return (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
	return n ? sorted[i < n ? i : n - 1] : 0;
}

double bench_series_median(const struct bench_series *s)
{
	double v[BENCH_VALUES];

	memcpy(v, s->v, s->n * sizeof(*v));
	qsort(v, s->n, sizeof(*v), compare);
	return quantile(v, s->n, 0.5);
}

double bench_series_ratio(const struct bench_series *s, const struct bench_series *peer)
{
	struct bench_series pairs = { .n = s->n < peer->n ? s->n : peer->n };

	for (unsigned int i = 0; i < pairs.n; i++)
		pairs.v[i] = peer->v[i] > 0 ? s->v[i] / peer->v[i] : 0;
	return bench_series_median(&pairs);
}

void bench_table(const char *format, ...)
{
	char title[256];
	va_list ap;

	va_start(ap, format);
	vsnprintf(title, sizeof(title), format, ap);
	va_end(ap);
	printf("\n%s\n", title);
	printf("  %-46s %-7s %9s %9s %9s %9s %7s  %-10s %s\n", "", "unit", "min", "median", "p99", "max", "ratio", "aim", "met");
	fflush(stdout);
}

void bench_note(const char *format, ...)
{
	va_list ap;

	printf("  - ");
	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
}

static void print_value(double v)
{
	double size = v < 0 ? -v : v;

	printf(" %9.*f", size >= 1000 ? 0 : size >= 100 ? 1 : 2, v);
}

void bench_row(const struct bench_series *s, const struct bench_series *peer, const struct bench_aim *aim)
{
	double v[BENCH_VALUES], judged = 0, ratio = 0;

	memcpy(v, s->v, s->n * sizeof(*v));
	qsort(v, s->n, sizeof(*v), compare);
	printf("  %-46s %-7s", s->what, s->unit);
	print_value(quantile(v, s->n, 0));
	print_value(quantile(v, s->n, 0.5));
	print_value(quantile(v, s->n, 0.99));
	print_value(quantile(v, s->n, 1));
	if (peer) {
		ratio = bench_series_ratio(s, peer);
		printf(" %7.*f", ratio >= 100 ? 0 : ratio >= 0.01 ? 2 : 4, ratio);
	} else {
		printf(" %7s", "");
	}
	if (aim && aim->on != BENCH_NO_AIM) {
		char text[32];

		if (aim->on == BENCH_RATIO)
			judged = ratio;
		else
			judged = quantile(v, s->n, aim->on == BENCH_MAX ? 1 : aim->on == BENCH_P99 ? 0.99 : 0.5);
		snprintf(text, sizeof(text), "%s %.4g", aim->at_least ? ">=" : "<=", aim->limit);
		printf("  %-10s %s", text, (aim->at_least ? judged >= aim->limit : judged <= aim->limit) ? "yes" : "NO");
	}
	printf("\n");
	fflush(stdout);
}

unsigned int bench_repeats(unsigned int by_default)
{
	const char *text = getenv("WPT_REPEATS");
	unsigned long n = text && *text ? strtoul(text, NULL, 10) : by_default;

	if (n < 1)
		n = 1;
	return n > BENCH_VALUES ? BENCH_VALUES : (unsigned int)n;
}

uint64_t bench_size(uint64_t by_default)
{
	const char *text = getenv("WPT_BENCH_SIZE");
	uint64_t bytes = by_default;
	char *end;

	if (text && *text) {
		bytes = strtoull(text, &end, 10);
		if (*end == 'K' || *end == 'k')
			bytes <<= 10;
		else if (*end == 'M' || *end == 'm')
			bytes <<= 20;
		else if (*end == 'G' || *end == 'g')
			bytes <<= 30;
	}
	bytes &= ~(2 * BENCH_MIB - 1);
	return bytes ? bytes : 2 * BENCH_MIB;
}

const char *bench_bytes(uint64_t bytes)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	static char buffers[4][32];
	static unsigned int turn;
	char *text = buffers[turn++ % 4];
	double value = (double)bytes;
	unsigned int u = 0;

	while (value >= 1024 && u < 4) {
		value /= 1024;
		u++;
	}
	snprintf(text, sizeof(buffers[0]), value == (double)(uint64_t)value ? "%.0f %s" : "%.1f %s", value, units[u]);
	return text;
}

uint64_t bench_status_kib(pid_t pid, const char *key)
{
	char path[64], line[256];
	uint64_t kib = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)(pid ? pid : getpid()));
	f = fopen(path, "re");
	bench_check_errno(!f, path);
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, key, strlen(key)))
			kib = strtoull(line + strlen(key), NULL, 10);
	}
	fclose(f);
	return kib;
}

/* ---- memory and its contents ---- */

uint64_t bench_random(uint64_t *state)
{
	uint64_t x = (*state += 0x9e3779b97f4a7c15ull);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

uint8_t *bench_map(uint64_t bytes)
{
	uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	bench_check_errno(p == MAP_FAILED, "mmap");
	madvise(p, bytes, MADV_NOHUGEPAGE);
	return p;
}

void bench_pin(uint8_t *memory, uint64_t bytes)
{
	(void)!mlock2(memory, bytes, MLOCK_ONFAULT);
}

static void fill_text(uint8_t *page, uint64_t *r)
{
	static const char words[64][12] = {
		"the ", "of ", "and ", "to ", "a ", "in ", "is ", "that ", "memory ", "page ", "was ", "for ", "it ", "with ", "as ", "on ",
		"which ", "kernel ", "be ", "at ", "by ", "written ", "not ", "are ", "this ", "from ", "or ", "an ", "process ", "have ",
		"one ", "snapshot ", "had ", "address ", "but ", "what ", "all ", "were ", "when ", "we ", "there ", "can ", "more ", "if ",
		"request ", "answer ", "server ", "time ", "latency ", "value ", "number ", "message ", "error ", "status ", "user ",
		"session ", "\n", "id=", "GET /", "POST /", "200 ", "404 ", "level=info ", "level=warn "
	};
	size_t at = 0;

	while (at < BENCH_PAGE) {
		uint64_t x = bench_random(r);

		for (unsigned int i = 0; i < 6 && at < BENCH_PAGE; i++, x >>= 10) {
			/* The product of two picks the frequent words more often, as language does. */
			const char *w = words[((x & 31) * (x >> 5 & 31)) / 16 % 64];
			size_t len = strlen(w), room = BENCH_PAGE - at;

			memcpy(page + at, w, len < room ? len : room);
			at += len;
		}
		if (at + 8 < BENCH_PAGE && (x & 1)) {
			for (unsigned int i = 0; i < 5; i++)
				page[at++] = (uint8_t)('0' + bench_random(r) % 10);
			page[at++] = ' ';
		}
	}
}

static void fill_records(uint8_t *page, uint64_t number, uint64_t *r)
{
	uint64_t *word = (uint64_t *)page;

	for (unsigned int i = 0; i < BENCH_PAGE / 8; i += 8) {
		uint64_t x = bench_random(r);

		word[i] = number * 64 + i;                                   /* an id that counts up */
		word[i + 1] = 0x00007f0000000000ull | (x & 0xffffff) << 4;   /* pointers into a heap */
		word[i + 2] = 0x00007f0000000000ull | (x >> 24 & 0xffff) << 6;
		word[i + 3] = x >> 60;                                       /* a small enumeration */
		word[i + 4] = x >> 48 & 0xfff;                               /* lengths */
		word[i + 5] = 0;
		word[i + 6] = 1700000000000ull + (x & 0xffffff);             /* a time */
		word[i + 7] = 0;
	}
}

static void fill_keys(uint8_t *page, uint64_t number, uint64_t *r)
{
	static const char hex[] = "0123456789abcdef";
	char line[128];
	size_t at = 0;

	while (at < BENCH_PAGE) {
		uint64_t x = bench_random(r);
		int len = snprintf(line, sizeof(line), "%c%ckey:%012" PRIu64 "%c", 3, 16, (number * 37 + x % 1000) % 1000000, 0);
		size_t room = BENCH_PAGE - at, n;

		for (unsigned int i = 0; i < 24; i++)
			line[len++] = hex[x >> (i * 2) & 15];
		memset(line + len, 0, 16 - (size_t)len % 16);
		n = ((size_t)len + 15) / 16 * 16;
		memcpy(page + at, line, n < room ? n : room);
		at += n;
	}
}

/* The file of WPT_BENCH_DATA, mapped once; NULL if there is none. */
static const uint8_t *user_data(uint64_t *bytes)
{
	static const uint8_t *data;
	static uint64_t len;
	const char *path = getenv("WPT_BENCH_DATA");
	struct stat st;
	int fd;

	if (!data && path && *path) {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		bench_check_errno(fd < 0 || fstat(fd, &st), path);
		len = (uint64_t)st.st_size / BENCH_PAGE * BENCH_PAGE;
		if (!len) {
			fprintf(stderr, "%s: smaller than a page\n", path);
			exit(1);
		}
		data = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0);
		bench_check_errno(data == MAP_FAILED, path);
		close(fd);
	}
	*bytes = len;
	return data;
}

void bench_fill_page(uint8_t *page, uint64_t number, uint64_t seed)
{
	uint64_t r = seed * 0x2545f4914f6cdd1dull + number, bytes;
	const uint8_t *data = user_data(&bytes);

	if (data) {
		/* Later seeds take the file from another place, so that contents change. */
		memcpy(page, data + (number + seed * 7919) % (bytes / BENCH_PAGE) * BENCH_PAGE, BENCH_PAGE);
		return;
	}
	switch (bench_random(&r) % 10) {
	case 0:
		memset(page, 0, BENCH_PAGE);
		break;
	case 1:
		for (unsigned int i = 0; i < BENCH_PAGE / 8; i++)
			((uint64_t *)page)[i] = bench_random(&r);
		break;
	case 2:
	case 3:
	case 4:
		fill_text(page, &r);
		break;
	case 5:
	case 6:
	case 7:
		fill_records(page, number, &r);
		break;
	default:
		fill_keys(page, number, &r);
	}
}

void bench_fill(uint8_t *memory, uint64_t bytes, uint64_t seed)
{
	for (uint64_t i = 0; i < bytes / BENCH_PAGE; i++)
		bench_fill_page(memory + i * BENCH_PAGE, i, seed);
}

uint32_t *bench_shuffled(uint64_t n, uint64_t seed)
{
	uint32_t *order = malloc((n ? n : 1) * sizeof(*order));

	bench_check_errno(!order, "malloc");
	for (uint64_t i = 0; i < n; i++) {
		uint64_t j = bench_random(&seed) % (i + 1);

		order[i] = order[j];
		order[j] = (uint32_t)i;
	}
	return order;
}

/* ---- a process to attach to ---- */

struct request {
	uint64_t command, a, b;
};

uint64_t bench_scattered(uint64_t n, uint64_t i, uint64_t count, uint64_t *state)
{
	uint64_t from = n * i / count, to = n * (i + 1) / count;

	return from + (to > from ? bench_random(state) % (to - from) : 0);
}

static void change_pages(struct bench_target *t, uint64_t count, uint64_t seed, bool whole)
{
	uint64_t state = seed;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t page = bench_scattered(t->bytes / BENCH_PAGE, i, count, &state);
		uint8_t *p = t->memory + page * BENCH_PAGE;

		if (whole)
			bench_fill_page(p, page, seed);
		else
			((volatile uint64_t *)p)[state % 512] = state;
	}
}

static __attribute__((noreturn)) void target_main(struct bench_target *t)
{
	struct request q;
	uint64_t answer;

	bench_pin(t->memory, t->bytes);
	while (read(t->fd, &q, sizeof(q)) == (ssize_t)sizeof(q)) {
		answer = 0;
		switch (q.command) {
		case BENCH_FILL:
			bench_fill(t->memory, t->bytes, q.a);
			break;
		case BENCH_DIRTY:
		case BENCH_TOUCH:
			change_pages(t, q.a, q.b, q.command == BENCH_DIRTY);
			break;
		default:
			if (t->serve)
				answer = t->serve(t, q.command, q.a, q.b);
		}
		if (write(t->fd, &answer, sizeof(answer)) != (ssize_t)sizeof(answer))
			break;
	}
	_exit(0);
}

void bench_target_start(struct bench_target *t, uint64_t bytes,
			uint64_t (*serve)(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b))
{
	int pair[2];

	memset(t, 0, sizeof(*t));
	t->bytes = bytes;
	t->serve = serve;
	bench_check_errno(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), "socketpair");
	t->shared = mmap(NULL, BENCH_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	bench_check_errno(t->shared == MAP_FAILED, "mmap");
	/* Mapped on this side of fork so that both know the address; nothing of it is touched here. */
	t->memory = bench_map(bytes);
	fflush(stdout);
	t->pid = fork();
	bench_check_errno(t->pid < 0, "fork");
	if (!t->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pair[0]);
		t->fd = pair[1];
		target_main(t);
	}
	close(pair[1]);
	t->fd = pair[0];
	munmap(t->memory, bytes);
}

uint64_t bench_target_do(struct bench_target *t, uint64_t command, uint64_t a, uint64_t b)
{
	struct request q = { command, a, b };
	uint64_t answer;

	if (write(t->fd, &q, sizeof(q)) != (ssize_t)sizeof(q) || read(t->fd, &answer, sizeof(answer)) != (ssize_t)sizeof(answer)) {
		fprintf(stderr, "the target process ended\n");
		exit(1);
	}
	return answer;
}

void bench_target_stop(struct bench_target *t)
{
	close(t->fd);
	kill(t->pid, SIGKILL);
	waitpid(t->pid, NULL, 0);
	munmap((void *)t->shared, BENCH_PAGE);
}

void bench_attach(struct wpt_tracker **out, pid_t pid)
{
	struct wpt_tracker_options o = { .size = sizeof(o), .stop_timeout_ms = 10000 };

	bench_check(wpt_tracker_attach(out, pid, &o), "wpt_tracker_attach");
}

void bench_folder_make(char path[64])
{
	const char *tmp = getenv("TMPDIR");

	snprintf(path, 64, "%.40s/wptbench.XXXXXX", access("/dev/shm", W_OK) ? (tmp && *tmp ? tmp : "/tmp") : "/dev/shm");
	bench_check_errno(!mkdtemp(path), path);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

void bench_folder_remove(const char *path)
{
	nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- the kernel, for the peers ---- */

uint64_t bench_uffd_offered(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* UFFD_USER_MODE_ONLY */);

	bench_check_errno(fd < 0, "userfaultfd");
	bench_check_errno(ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
	close(fd);
	return api.features;
}

int bench_uffd(void *memory, uint64_t bytes, bool async)
{
	return bench_uffd_with(memory, bytes,
			       UFFD_FEATURE_PAGEFAULT_FLAG_WP | (async ? BENCH_UFFD_WP_ASYNC | BENCH_UFFD_WP_UNPOPULATED : 0));
}

int bench_uffd_with(void *memory, uint64_t bytes, uint64_t features)
{
	struct uffdio_register reg = {
		.range = { (uintptr_t)memory, bytes },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* UFFD_USER_MODE_ONLY */);

	bench_check_errno(fd < 0, "userfaultfd");
	bench_check_errno(ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
	bench_check_errno(ioctl(fd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
	return fd;
}

void bench_uffd_protect(int uffd, void *memory, uint64_t bytes, bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)memory, bytes },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	bench_check_errno(ioctl(uffd, UFFDIO_WRITEPROTECT, &wp), "UFFDIO_WRITEPROTECT");
}
