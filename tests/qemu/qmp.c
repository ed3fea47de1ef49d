/* SPDX-License-Identifier: MIT */
/*
 * qmp SOCKET COMMAND [ARGUMENTS] [, COMMAND [ARGUMENTS]]...: connects to QEMU's monitor, sends the commands one after the other and prints what each
 * returned, a line each. ARGUMENTS is a JSON object. `getfd-file NAME PATH` hands QEMU a descriptor of that file, which is made if it is not there.
 * Exit status: 0 all returned, 1 QEMU answered with an error (printed), 2 no connection, or no answer in WPT_PATIENCE seconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static FILE *monitor;

static void fail(const char *what)
{
	fprintf(stderr, "qmp: %s: %s\n", what, errno ? strerror(errno) : "the connection ended");
	exit(2);
}

static void too_late(int sig)
{
	static const char text[] = "qmp: no answer\n";

	(void)sig;
	if (write(2, text, sizeof(text) - 1) < 0)
		_exit(3);
	_exit(2);
}

/* QEMU may not be there yet. */
static void monitor_open(const char *path)
{
	const struct timespec moment = { .tv_nsec = 20000000 };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(addr.sun_path))
		fail(path);
	strcpy(addr.sun_path, path);
	while (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		if (errno != ENOENT && errno != ECONNREFUSED)
			fail(path);
		nanosleep(&moment, NULL);
	}
	monitor = fdopen(fd, "r");
	if (!monitor)
		fail(path);
}

/* The next line that is an answer, not an event. */
static const char *answer(void)
{
	static char *line;
	static size_t size;

	do {
		errno = 0;
		if (getline(&line, &size, monitor) < 0)
			fail("monitor");
	} while (strstr(line, "\"event\": \""));
	return line;
}

static void send_line(const char *text, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)text, .iov_len = strlen(text) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (fd >= 0) {
		msg.msg_control = control.buf;
		msg.msg_controllen = sizeof(control.buf);
		*CMSG_FIRSTHDR(&msg) = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &fd, sizeof(fd));
	}
	n = sendmsg(fileno(monitor), &msg, MSG_NOSIGNAL);
	if (n != (ssize_t)iov.iov_len)
		fail("send");
}

static void command(const char *name, const char *arguments, int fd)
{
	const char *reply;
	char *text;
	int len;

	if (arguments)
		len = asprintf(&text, "{\"execute\": \"%s\", \"arguments\": %s}\n", name, arguments);
	else
		len = asprintf(&text, "{\"execute\": \"%s\"}\n", name);
	if (len < 0)
		fail("memory");
	send_line(text, fd);
	free(text);
	reply = answer();
	if (strcmp(name, "qmp_capabilities"))
		fputs(reply, stdout);
	if (strncmp(reply, "{\"return\"", 9))
		exit(1);
}

static void getfd_file(const char *name, const char *path)
{
	char arguments[128];
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0)
		fail(path);
	snprintf(arguments, sizeof(arguments), "{\"fdname\": \"%s\"}", name);
	command("getfd", arguments, fd);
	close(fd);
}

int main(int argc, char **argv)
{
	const char *patience = getenv("WPT_PATIENCE");
	int i, words;

	if (argc < 3) {
		fprintf(stderr, "usage: qmp SOCKET COMMAND [ARGUMENTS] [, COMMAND [ARGUMENTS]]...\n");
		return 2;
	}
	signal(SIGALRM, too_late);
	alarm(patience ? (unsigned int)atoi(patience) : 60);
	monitor_open(argv[1]);
	answer();
	command("qmp_capabilities", NULL, -1);
	for (i = 2; i < argc; i += words + 1) {
		for (words = 0; i + words < argc && strcmp(argv[i + words], ","); words++)
			;
		if (words == 3 && !strcmp(argv[i], "getfd-file")) {
			getfd_file(argv[i + 1], argv[i + 2]);
		} else if (words == 1 || words == 2) {
			command(argv[i], words == 2 ? argv[i + 1] : NULL, -1);
		} else {
			fprintf(stderr, "qmp: not a command: %s\n", i < argc ? argv[i] : "");
			return 2;
		}
	}
	return 0;
}
