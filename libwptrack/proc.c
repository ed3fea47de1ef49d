/* SPDX-License-Identifier: MIT */
#include "proc.h"

#include "sys.h"

struct dirent64 {
	uint64_t ino;
	int64_t off;
	unsigned short reclen;
	unsigned char type;
	char name[];
};

const char *wpt_proc_path(char buf[64], const char *prefix, uint64_t number, const char *suffix)
{
	char digits[20];
	size_t len = 0, i = 0;

	while (*prefix && len < 20)
		buf[len++] = *prefix++;
	do
		digits[i++] = (char)('0' + number % 10);
	while (number /= 10);
	while (i)
		buf[len++] = digits[--i];
	while (*suffix && len < 63)
		buf[len++] = *suffix++;
	buf[len] = 0;
	return buf;
}

int wpt_proc_open(pid_t pid)
{
	char path[64];
	int fd;

	if (pid <= 0)
		return -ESRCH;
	fd = (int)wpt_sys(SYS_openat, AT_FDCWD, wpt_proc_path(path, "/proc/", (uint64_t)pid, ""),
			  O_PATH | O_DIRECTORY | O_CLOEXEC);
	return fd == -ENOENT ? -ESRCH : fd;
}

ssize_t wpt_proc_read(int dir, const char *path, char *buf, size_t size)
{
	size_t len = 0;
	long n = 0;
	int fd;

	fd = (int)wpt_sys(SYS_openat, dir, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fd;
	while (len < size - 1) {
		n = wpt_sys(SYS_read, fd, buf + len, size - 1 - len);
		if (n == -EINTR)
			continue;
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	wpt_sys(SYS_close, fd);
	buf[len] = 0;
	return n < 0 ? n : (ssize_t)len;
}

uint64_t wpt_parse_dec(const char **p)
{
	uint64_t v = 0;

	while (**p >= '0' && **p <= '9')
		v = v * 10 + (uint64_t)(*(*p)++ - '0');
	return v;
}

uint64_t wpt_parse_hex(const char **p)
{
	uint64_t v = 0;

	for (;; (*p)++) {
		if (**p >= '0' && **p <= '9')
			v = v << 4 | (uint64_t)(**p - '0');
		else if (**p >= 'a' && **p <= 'f')
			v = v << 4 | (uint64_t)(**p - 'a' + 10);
		else
			return v;
	}
}

/* The name is between the first "(" and the last ")" and may itself contain both. */
int wpt_proc_stat(int dir, const char *path, struct wpt_proc_stat *st)
{
	char buf[1024];
	const char *open, *p;
	size_t len;
	ssize_t n;
	int field;

	n = wpt_proc_read(dir, path, buf, sizeof(buf));
	if (n < 0)
		return n == -ENOENT ? -ESRCH : (int)n;
	open = strchr(buf, '(');
	p = strrchr(buf, ')');
	if (!open || !p || p < open || p[1] != ' ')
		return -EIO;
	len = WPT_MIN((size_t)(p - open - 1), sizeof(st->comm) - 1);
	memset(st, 0, sizeof(*st));
	memcpy(st->comm, open + 1, len);
	p += 2;
	st->state = *p;
	for (field = 3; *p && field < 22; p++) {
		if (*p != ' ')
			continue;
		field++;
		if (field == 9 || field == 22) {
			const char *q = p + 1;
			uint64_t v = wpt_parse_dec(&q);

			if (field == 9)
				st->flags = (uint32_t)v;
			else
				st->start_time = v;
		}
	}
	return field == 22 ? 0 : -EIO;
}

bool wpt_proc_is_exiting(int task, uint64_t tid)
{
	struct wpt_proc_stat st;
	char path[64];

	return wpt_proc_stat(task, wpt_proc_path(path, "", tid, "/stat"), &st) || st.state == 'Z' || st.state == 'X' ||
	       (st.flags & PF_EXITING);
}

static const char *find_line(const char *text, const char *name)
{
	size_t len = strlen(name);

	while (text && strncmp(text, name, len)) {
		text = strchr(text, '\n');
		if (text)
			text++;
	}
	if (!text)
		return NULL;
	text += len;
	while (*text == ' ' || *text == '\t')
		text++;
	return text;
}

int wpt_proc_status(int dir, const char *path, struct wpt_proc_status *st)
{
	const char *state, *tracer, *seccomp;
	char buf[8192];
	ssize_t n;

	n = wpt_proc_read(dir, path, buf, sizeof(buf));
	if (n < 0)
		return n == -ENOENT ? -ESRCH : (int)n;
	state = find_line(buf, "State:");
	tracer = find_line(buf, "TracerPid:");
	seccomp = find_line(buf, "Seccomp:");
	if (!state || !tracer)
		return -EIO;
	st->state = *state;
	st->tracer = (pid_t)wpt_parse_dec(&tracer);
	st->seccomp = seccomp ? (int)wpt_parse_dec(&seccomp) : 0;
	return 0;
}

int wpt_proc_numbers(int dir, int (*each)(void *arg, uint64_t number), void *arg)
{
	char buf[4096] __attribute__((aligned(8)));
	const char *name;
	uint64_t number;
	long n, off;
	int rc;

	n = wpt_sys(SYS_lseek, dir, 0, SEEK_SET);
	if (n < 0)
		return (int)n;
	for (;;) {
		n = wpt_sys(SYS_getdents64, dir, buf, sizeof(buf));
		if (n <= 0)
			return (int)n;
		for (off = 0; off < n; off += ((struct dirent64 *)(buf + off))->reclen) {
			name = ((struct dirent64 *)(buf + off))->name;
			if (*name < '0' || *name > '9')
				continue;
			number = wpt_parse_dec(&name);
			rc = each(arg, number);
			if (rc)
				return rc;
		}
	}
}
