/* SPDX-License-Identifier: MIT */
/* Processes beside the benchmark: see peer.h. */
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_STARTED 32

static char folder[64];
static pid_t started[MAX_STARTED], owner;
static atomic_bool ending;

/* Once: a thread whose server just went away must not end the program in the middle of it. */
static void end_all(void)
{
	if (owner != getpid())
		return;
	while (atomic_exchange(&ending, true))
		pause();
	for (unsigned int i = 0; i < MAX_STARTED; i++) {
		if (started[i]) {
			kill(started[i], SIGKILL);
			waitpid(started[i], NULL, 0);
		}
	}
	bench_folder_remove(folder);
}

static void on_signal(int signal)
{
	/* This may be the thread that is ending it all. */
	if (atomic_load(&ending))
		return;
	end_all();
	_exit(128 + signal);
}

const char *peer_folder(void)
{
	if (!owner) {
		owner = getpid();
		bench_folder_make(folder);
		atexit(end_all);
		signal(SIGINT, on_signal);
		signal(SIGTERM, on_signal);
		signal(SIGHUP, on_signal);
		signal(SIGPIPE, SIG_IGN);
	}
	return folder;
}

const char *peer_path(const char *format, ...)
{
	char name[128], *path;
	va_list ap;

	va_start(ap, format);
	vsnprintf(name, sizeof(name), format, ap);
	va_end(ap);
	bench_check_errno(asprintf(&path, "%s/%s", peer_folder(), name) < 0, "asprintf");
	return path;
}

bool peer_found(const char *program)
{
	const char *path = getenv("PATH"), *end;
	char file[512];

	for (; path && *path; path = *end ? end + 1 : end) {
		end = strchrnul(path, ':');
		snprintf(file, sizeof(file), "%.*s/%s", (int)(end - path), path, program);
		if (!access(file, X_OK))
			return true;
	}
	return false;
}

void peer_need(const char *program, const char *package)
{
	if (peer_found(program))
		return;
	printf("skipped: there is no %s (Debian: %s)\n", program, package);
	exit(77);
}

pid_t peer_start(const char *out, const char *const argv[])
{
	const char *path = peer_path("%s", out), *errors = peer_path("%s.err", out);
	unsigned int slot = 0;
	pid_t pid;

	while (slot < MAX_STARTED && started[slot])
		slot++;
	bench_check_errno(slot == MAX_STARTED, "too many processes");
	/* What another one said must not be taken for this one's words. */
	unlink(path);
	unlink(errors);
	fflush(stdout);
	pid = fork();
	bench_check_errno(pid < 0, "fork");
	if (!pid) {
		int null = open("/dev/null", O_RDONLY), o = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
		int e = open(errors, O_WRONLY | O_CREAT | O_TRUNC, 0600);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGPIPE, SIG_DFL);
		if (null >= 0 && o >= 0 && e >= 0 && dup2(null, 0) >= 0 && dup2(o, 1) >= 0 && dup2(e, 2) >= 0) {
			close_range(3, ~0u, 0);
			execvp(argv[0], (char *const *)(uintptr_t)argv);
		}
		dprintf(2, "%s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	started[slot] = pid;
	return pid;
}

static void forget(pid_t pid)
{
	for (unsigned int i = 0; i < MAX_STARTED; i++) {
		if (started[i] == pid)
			started[i] = 0;
	}
}

int peer_wait(pid_t pid, uint64_t *peak_kib)
{
	struct rusage usage;
	int status;

	while (wait4(pid, &status, 0, &usage) != pid)
		bench_check_errno(errno != EINTR, "wait4");
	forget(pid);
	if (peak_kib)
		*peak_kib = (uint64_t)usage.ru_maxrss;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool peer_alive(pid_t pid)
{
	siginfo_t info = { 0 };

	return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && !info.si_pid;
}

void peer_stop(pid_t pid)
{
	uint64_t deadline = bench_now_ns() + 5000000000u;

	if (!pid)
		return;
	kill(pid, SIGTERM);
	while (peer_alive(pid) && bench_now_ns() < deadline)
		usleep(5000);
	kill(pid, SIGKILL);
	peer_wait(pid, NULL);
}

void peer_fail(const char *out, const char *what)
{
	const char *text = peer_text(peer_path("%s.err", out));
	size_t len = strlen(text);

	fprintf(stderr, "%s: %s\n%s\n", out, what, text + (len > 2000 ? len - 2000 : 0));
	exit(1);
}

uint64_t peer_run(const char *out, const char *const argv[], uint64_t *peak_kib)
{
	uint64_t t0 = bench_now_ns();
	int status = peer_wait(peer_start(out, argv), peak_kib);
	char text[64];

	t0 = bench_now_ns() - t0;
	/* 4: a link is complete, and mappings that can't be tracked were skipped. */
	if (status && !(status == 4 && argv[0] == peer_wpsnap())) {
		snprintf(text, sizeof(text), "exit status %d", status);
		peer_fail(out, text);
	}
	return t0;
}

/* ---- what they say ---- */

uint64_t peer_file_size(const char *path)
{
	struct stat st;

	bench_check_errno(stat(path, &st), path);
	return (uint64_t)st.st_size;
}

const char *peer_text(const char *path)
{
	static char text[1 << 18];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t got = 0;

	while (fd >= 0 && len < sizeof(text) - 1 && (got = read(fd, text + len, sizeof(text) - 1 - len)) > 0)
		len += (size_t)got;
	text[len] = 0;
	if (fd >= 0)
		close(fd);
	return text;
}

double peer_number(const char *text, const char *key)
{
	size_t len = strlen(key);

	for (const char *p = text; (p = strstr(p, key)); p += len) {
		const char *value = p + len;

		if (*value == '"')
			value++;
		if (*value == ':' && (p == text || p[-1] == '"' || p[-1] == '\n'))
			return strtod(value + 1, NULL);
	}
	return 0;
}

const char *peer_wpsnap(void)
{
	static char path[512];
	const char *own = getenv("WPSNAP");
	ssize_t n;

	if (path[0])
		return path;
	if (own && *own) {
		snprintf(path, sizeof(path), "%s", own);
		return path;
	}
	/* BUILD/tests/bench/program */
	n = readlink("/proc/self/exe", path, sizeof(path) - 16);
	bench_check_errno(n < 0, "/proc/self/exe");
	path[n] = 0;
	for (unsigned int i = 0; i < 3 && strrchr(path, '/'); i++)
		*strrchr(path, '/') = 0;
	strcat(path, "/wpsnap");
	return path;
}

struct peer_link peer_link_of(const char *line)
{
	return (struct peer_link){
		.pause_ms = peer_number(line, "pause_ns") / 1e6,
		.total_ms = peer_number(line, "total_ns") / 1e6,
		.stored_mib = peer_number(line, "bytes_stored") / (double)BENCH_MIB,
	};
}

struct peer_link peer_save(pid_t pid, const char *range, const char *option)
{
	const char *file = peer_path("save.wps"), *line;
	char text[16];
	const char *argv[10] = { peer_wpsnap(), "save", text, "-o", file, "--json" };
	struct peer_link link;
	unsigned int n = 6;
	uint64_t wall, kib;

	if (option)
		argv[n++] = option;
	if (range) {
		argv[n++] = "--range";
		argv[n++] = range;
	}
	snprintf(text, sizeof(text), "%d", (int)pid);
	unlink(file);
	wall = peer_run("wpsnap-save", argv, &kib);
	line = strstr(peer_text(peer_path("wpsnap-save")), "\"type\":\"link\"");
	if (!line)
		peer_fail("wpsnap-save", "no line about the link");
	link = peer_link_of(line);
	link.wall_ms = (double)wall / 1e6;
	link.peak_mib = (double)kib / 1024;
	unlink(file);
	return link;
}
