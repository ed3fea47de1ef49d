/* SPDX-License-Identifier: MIT */
/*
 * One connection to QEMU's monitor (QMP): JSON objects, one a line each way. Every wait has a deadline: a QEMU that hangs must not hang us while the
 * guest stands still.
 */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define GREETING_TIMEOUT_MS 3000u /* of a QEMU that runs */
#define LONGEST_LINE (64u << 20)

/* ---- lines ---- */

static uint64_t deadline_in(unsigned ms)
{
	return now_ns() + (uint64_t)ms * 1000000;
}

/* Waits until the socket is ready for `events`; -ETIMEDOUT. */
static int wait_for(struct qmp *q, short events, uint64_t deadline)
{
	struct pollfd fd = { .fd = q->fd, .events = events };
	uint64_t now;
	int n;

	do {
		now = now_ns();
		if (now >= deadline)
			return -ETIMEDOUT;
		n = poll(&fd, 1, (int)((deadline - now) / 1000000) + 1);
	} while (n == 0 || (n < 0 && errno == EINTR));
	return n < 0 ? -errno : 0;
}

static int receive(struct qmp *q, uint64_t deadline)
{
	ssize_t n;
	char *buf;
	int err;

	if (q->room - q->used < 4096) {
		if (q->room >= LONGEST_LINE)
			return -EPROTO;
		buf = realloc(q->buf, q->room * 2 + 65536);
		if (!buf)
			return -ENOMEM;
		q->buf = buf;
		q->room = q->room * 2 + 65536;
	}
	for (;;) {
		err = wait_for(q, POLLIN, deadline);
		if (err)
			return err;
		n = recv(q->fd, q->buf + q->used, q->room - q->used, MSG_DONTWAIT);
		if (n > 0) {
			q->used += (size_t)n;
			return 0;
		}
		if (n == 0)
			return -ECONNRESET;
		if (errno != EINTR && errno != EAGAIN)
			return errno == EPIPE ? -ECONNRESET : -errno;
	}
}

/* The next object; a line that is none is an error, but for the rest of one. */
static int next_object(struct qmp *q, uint64_t deadline, json_t **out)
{
	json_error_t why;
	size_t seen = 0, len;
	char *end;
	int err;

	for (;;) {
		end = q->used > seen ? memchr(q->buf + seen, '\n', q->used - seen) : NULL;
		if (!end) {
			seen = q->used;
			err = receive(q, deadline);
			if (err)
				return err;
			continue;
		}
		len = (size_t)(end - q->buf) + 1;
		*out = json_loadb(q->buf, len, 0, &why);
		memmove(q->buf, q->buf + len, q->used - len);
		q->used -= len;
		seen = 0;
		if (*out && json_is_object(*out))
			return 0;
		json_decref(*out);
		if (!q->partial)
			return -EPROTO;
		q->partial = false;
	}
}

static int send_line(struct qmp *q, const char *line, size_t len, int pass, uint64_t deadline)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov;
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c;
	ssize_t n;
	int err;

	if (pass >= 0) {
		m.msg_control = control;
		m.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &pass, sizeof(pass));
	}
	while (len) {
		iov.iov_base = (char *)line;
		iov.iov_len = len;
		n = sendmsg(q->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			line += n;
			len -= (size_t)n;
			m.msg_control = NULL;
			m.msg_controllen = 0;
			continue;
		}
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			return errno == EPIPE ? -ECONNRESET : -errno;
		err = wait_for(q, POLLOUT, deadline);
		if (err)
			return err == -ETIMEDOUT ? -EPIPE : err;
	}
	return 0;
}

/* ---- commands ---- */

static uint64_t event_us(const json_t *event)
{
	json_int_t s = 0, us = 0;

	if (json_unpack((json_t *)event, "{s:{s:I, s:I}}", "timestamp", "seconds", &s, "microseconds", &us))
		return 0;
	return (uint64_t)s * 1000000 + (uint64_t)us;
}

static void note_event(struct qmp *q, const json_t *event, const char *name)
{
	if (strcmp(name, "STOP") == 0) {
		q->stopped_us = event_us(event);
		q->nr_stopped++;
	} else if (strcmp(name, "RESET") == 0) {
		q->nr_reset++;
	} else if (strcmp(name, "RESUME") == 0) {
		q->resumed_us = event_us(event);
		q->nr_resumed++;
	}
}

/* The answer to the command of this id. Answers to others are of a command whose sender is gone. */
static int answer(struct qmp *q, const char *id, uint64_t deadline, json_t **out)
{
	const char *name, *got, *words;
	json_t *object, *ret;
	int err;

	for (;;) {
		err = next_object(q, deadline, &object);
		if (err == -ETIMEDOUT && q->wait_on && q->wait_on(q->wait_arg)) {
			deadline = deadline_in(1000);
			continue;
		}
		if (err)
			return err;
		name = json_string_value(json_object_get(object, "event"));
		if (name)
			note_event(q, object, name);
		got = json_string_value(json_object_get(object, "id"));
		if (!name && got && strcmp(got, id) == 0)
			break;
		json_decref(object);
	}
	ret = json_object_get(object, "return");
	if (!ret) {
		words = json_string_value(json_object_get(json_object_get(object, "error"), "desc"));
		snprintf(q->said, sizeof(q->said), "%s", words ? words : "without a reason");
		err = -EREMOTEIO;
	} else if (out) {
		*out = json_incref(ret);
	}
	json_decref(object);
	return err;
}

int qmp_call(struct qmp *q, const char *command, json_t *args, json_t **out, int pass, unsigned timeout_ms)
{
	uint64_t deadline = deadline_in(timeout_ms);
	char id[48], *line = NULL, *text;
	json_t *object;
	int err = -ENOMEM;

	q->said[0] = 0;
	if (q->fd < 0) {
		json_decref(args);
		return -ECONNRESET;
	}
	/* The pid, because a guard may go on with this connection. */
	snprintf(id, sizeof(id), "wpsnap-%d-%llu", (int)getpid(), (unsigned long long)q->next_id++);
	object = json_pack("{s:s, s:s, s:o*}", "execute", command, "id", id, "arguments", args);
	text = object ? json_dumps(object, JSON_COMPACT) : NULL;
	if (text && asprintf(&line, "%s\n", text) > 0)
		err = send_line(q, line, strlen(line), pass, deadline);
	if (!err)
		err = answer(q, id, deadline, out);
	free(line);
	free(text);
	json_decref(object);
	/* What was sent in time is executed some time, so a late answer leaves the connection good: answers are told apart by their ids. */
	if (err && err != -EREMOTEIO && err != -ETIMEDOUT)
		qmp_close(q);
	return err;
}

int qmp_human(struct qmp *q, const char *line, char **text)
{
	json_t *ret;
	int err;

	*text = NULL;
	err = qmp_call(q, "human-monitor-command", json_pack("{s:s}", "command-line", line), &ret, -1, QMP_TIMEOUT_MS);
	if (err)
		return err;
	if (json_is_string(ret))
		*text = strdup(json_string_value(ret));
	else
		err = -EPROTO;
	json_decref(ret);
	return *text || err ? err : -ENOMEM;
}

/* ---- connections ---- */

int qmp_open_fd(struct qmp *q, int fd, unsigned timeout_ms)
{
	json_t *object;
	int err;

	memset(q, 0, sizeof(*q));
	q->fd = fd;
	err = next_object(q, deadline_in(timeout_ms), &object);
	if (err == -ETIMEDOUT)
		err = -ETIME;
	if (!err) {
		if (!json_object_get(object, "QMP"))
			err = -EPROTO;
		json_decref(object);
	}
	if (!err)
		err = qmp_call(q, "qmp_capabilities", NULL, NULL, -1, QMP_TIMEOUT_MS);
	if (err)
		qmp_close(q);
	return err;
}

int qmp_open(struct qmp *q, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct ucred peer = { 0 };
	socklen_t len = sizeof(peer);
	int fd, err;

	memset(q, 0, sizeof(*q));
	q->fd = -1;
	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	/* A monitor that serves somebody else does not accept, and soon a connect would wait for that. */
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		err = errno == EAGAIN ? -ETIME : -errno;
		close(fd);
		return err;
	}
	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len);
	err = qmp_open_fd(q, fd, GREETING_TIMEOUT_MS);
	q->peer = peer.pid;
	return err;
}

void qmp_close(struct qmp *q)
{
	/* Also for the guard, which has it too: QEMU takes no other client before it is closed. */
	if (q->fd >= 0) {
		shutdown(q->fd, SHUT_RDWR);
		close(q->fd);
	}
	q->fd = -1;
	free(q->buf);
	q->buf = NULL;
	q->used = q->room = 0;
}
