/* SPDX-License-Identifier: MIT */
/*
 * relay LISTEN SOCKET WORD[>WORD]... before|after|COMMAND: a monitor's connection to which something happens. It listens at LISTEN and passes
 * all that it gets on to SOCKET and back, descriptors as well, until the client has said the WORDs, in this order, for the first time. Then
 *   before   both connections end, before QEMU got the message
 *   after    they end after QEMU has answered to it and before the client has the answer
 *   COMMAND  it is run, by the shell, before QEMU gets the message
 * It says "dropped" or "ran", and from then on only passes on. One client at a time; it ends by a signal.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_FDS 8u

static enum { BEFORE, AFTER, RUN, PASS } mode;
static const char *command;
static char *words;        /* those that are not said yet; NULL: all are */

static void fail(const char *what)
{
	fprintf(stderr, "relay: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int unix_socket(const char *path, bool listening)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(addr.sun_path))
		fail(path);
	strcpy(addr.sun_path, path);
	if (listening ? bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 4) : connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		fail(path);
	return fd;
}

struct message {
	char text[1 << 16];
	ssize_t len;
	union {
		char buf[CMSG_SPACE(MAX_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	size_t control_len;
};

/* False at the end of the connection. */
static bool get(int fd, struct message *m)
{
	struct iovec iov = { .iov_base = m->text, .iov_len = sizeof(m->text) - 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = m->control.buf, .msg_controllen = sizeof(m->control.buf) };

	m->len = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	if (m->len <= 0)
		return false;
	m->text[m->len] = 0;
	m->control_len = msg.msg_controllen;
	return true;
}

/* QEMU has its own now. */
static void close_passed(const struct cmsghdr *c)
{
	int fd;

	if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
		return;
	for (size_t at = CMSG_LEN(0); at + sizeof(fd) <= c->cmsg_len; at += sizeof(fd)) {
		memcpy(&fd, (const char *)c + at, sizeof(fd));
		close(fd);
	}
}

static bool put(int fd, struct message *m)
{
	struct msghdr msg = { .msg_control = m->control_len ? m->control.buf : NULL, .msg_controllen = m->control_len };
	bool good = true;

	for (ssize_t done = 0, n; done < m->len && good; done += n) {
		struct iovec iov = { .iov_base = m->text + done, .iov_len = (size_t)(m->len - done) };

		msg.msg_iov = &iov;
		msg.msg_iovlen = 1;
		n = sendmsg(fd, &msg, MSG_NOSIGNAL);
		good = n >= 0;
		msg.msg_control = NULL;
		msg.msg_controllen = 0;
	}
	if (m->control_len)
		close_passed(&m->control.align);
	return good;
}

static void done(const char *what)
{
	mode = PASS;
	printf("%s\n", what);
	fflush(stdout);
}

/* Has the client said all words now? Several may be in one message. */
static bool all_said(const char *text)
{
	const char *at;
	char *next;

	while (words) {
		next = strchr(words, '>');
		if (next)
			*next = 0;
		at = strstr(text, words);
		if (next && !at)
			*next = '>';
		if (!at)
			return false;
		text = at + strlen(words);
		words = next ? next + 1 : NULL;
	}
	return true;
}

/* Until one of them ends it, or it is time to drop them */
static void relay(int client, int qemu)
{
	static struct message m;
	struct pollfd p[2] = { { .fd = client, .events = POLLIN }, { .fd = qemu, .events = POLLIN } };
	bool said = false;

	while (poll(p, 2, -1) >= 0) {
		if (p[0].revents) {
			if (!get(client, &m))
				return;
			said = mode != PASS && all_said(m.text);
			if (mode == BEFORE && said) {
				done("dropped");
				return;
			}
			if (mode == RUN && said) {
				if (system(command))
					fail(command);
				done("ran");
			}
			if (!put(qemu, &m))
				return;
		}
		if (p[1].revents) {
			if (!get(qemu, &m))
				return;
			if (mode == AFTER && said) {
				done("dropped");
				return;
			}
			if (!put(client, &m))
				return;
		}
	}
}

int main(int argc, char **argv)
{
	int listener;

	if (argc != 5) {
		fprintf(stderr, "usage: relay LISTEN SOCKET WORD[>WORD]... before|after|COMMAND\n");
		return 2;
	}
	words = argv[3];
	command = argv[4];
	mode = !strcmp(command, "before") ? BEFORE : !strcmp(command, "after") ? AFTER : RUN;
	listener = unix_socket(argv[1], true);
	for (;;) {
		int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC), qemu;

		if (client < 0)
			fail("accept");
		qemu = unix_socket(argv[2], false);
		relay(client, qemu);
		close(client);
		close(qemu);
	}
}
