/* SPDX-License-Identifier: MIT */
/* The mappings of a target, and the files that they are of. */
#include "target_impl.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include "proc.h"
#include "sys.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 0x0004U
#endif

char *wpt_vec_reserve(struct wpt_vec *v, size_t bytes)
{
	size_t want = v->bytes ? v->bytes : 65536;
	void *data;

	while (want - v->count < bytes)
		want *= 2;
	if (want != v->bytes) {
		data = v->data ? mremap(v->data, v->bytes, want, MREMAP_MAYMOVE) : wpt_vm_alloc(want);
		if (!data || data == MAP_FAILED)
			return NULL;
		v->data = data;
		v->bytes = want;
	}
	return (char *)v->data + v->count;
}

static int append_file(struct wpt_vec *v, int fd)
{
	off_t pos = 0;
	ssize_t n;
	char *p;

	for (;;) {
		p = wpt_vec_reserve(v, 32768);
		if (!p)
			return -ENOMEM;
		n = pread(fd, p, 32767, pos);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return 0;
		pos += n;
		v->count += (size_t)n;
	}
}

static struct wpt_dev *find_dev(struct wpt_target *t, uint32_t major, uint32_t minor)
{
	size_t i;

	for (i = 0; i < t->nr_devs; i++)
		if (t->devs[i].major == major && t->devs[i].minor == minor)
			return &t->devs[i];
	return NULL;
}

static void learn_dev(struct wpt_target *t, uint32_t major, uint32_t minor, uint32_t page_size)
{
	struct wpt_dev *d = find_dev(t, major, minor);

	if (!d) {
		if (t->nr_devs == WPT_MAX_DEVS)
			return;
		d = &t->devs[t->nr_devs++];
		d->major = major;
		d->minor = minor;
		d->page_size = 0;
	}
	if (page_size)
		d->page_size = page_size;
}

/* The kernel keeps one unnamed hugetlbfs per page size for memfds, MAP_HUGETLB and SHM_HUGETLB. */
static void learn_internal(struct wpt_target *t)
{
	struct stat st;
	unsigned shift;
	int fd;

	for (shift = 14; shift < 36; shift++) {
		fd = (int)wpt_sys(SYS_memfd_create, "", MFD_CLOEXEC | MFD_HUGETLB | shift << 26);
		if (fd < 0)
			continue;
		if (!fstat(fd, &st) && shift < 32)
			learn_dev(t, major(st.st_dev), minor(st.st_dev), UINT32_C(1) << shift);
		close(fd);
	}
}

/* "ID PARENT MAJOR:MINOR ROOT PATH OPTIONS ... - TYPE SOURCE OPTIONS": the path is octal-escaped, so ask by the options. */
static void learn_mount(struct wpt_target *t, const char *line)
{
	const char *p = line, *type, *size, *end = strchr(line, '\n');
	uint64_t major, minor, bytes;

	type = strstr(line, " - hugetlbfs ");
	if (!type || (end && type > end))
		return;
	wpt_parse_dec(&p);
	p++;
	wpt_parse_dec(&p);
	p++;
	major = wpt_parse_dec(&p);
	p++;
	minor = wpt_parse_dec(&p);
	size = strstr(type, "pagesize=");
	if (!size || (end && size > end))
		return;
	size += strlen("pagesize=");
	bytes = wpt_parse_dec(&size);
	if (*size == 'K')
		bytes <<= 10;
	else if (*size == 'M')
		bytes <<= 20;
	else if (*size == 'G')
		bytes <<= 30;
	learn_dev(t, (uint32_t)major, (uint32_t)minor, (uint32_t)bytes);
}

static void learn_mounts(struct wpt_target *t)
{
	struct wpt_vec text = WPT_VEC(char);
	const char *p;
	int fd;

	fd = openat(t->proc, "mountinfo", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (!append_file(&text, fd) && wpt_vec_reserve(&text, 1)) {
		((char *)text.data)[text.count] = 0;
		for (p = text.data; p && *p; p = strchr(p, '\n'), p = p ? p + 1 : NULL)
			learn_mount(t, p);
	}
	wpt_vec_free(&text);
	close(fd);
}

static void resolve_page_size(struct wpt_target *t, struct wpt_map *m)
{
	struct wpt_dev *d;

	m->page_size = (uint32_t)sysconf(_SC_PAGESIZE);
	if (!m->inode)
		return;
	d = find_dev(t, m->dev_major, m->dev_minor);
	if (!d) {
		if (t->nr_devs > WPT_MAX_DEVS / 2)
			t->nr_devs = 0;
		learn_dev(t, m->dev_major, m->dev_minor, 0);
		learn_internal(t);
		learn_mounts(t);
		d = find_dev(t, m->dev_major, m->dev_minor);
	}
	if (d->page_size) {
		m->hugetlb = true;
		m->page_size = d->page_size;
	}
}

/* "START-END rwxp OFFSET MAJOR:MINOR INODE    NAME". Returns the name. */
static const char *parse_line(struct wpt_map *m, const char *p)
{
	m->start = m->vm_start = wpt_parse_hex(&p);
	p++;
	m->end = wpt_parse_hex(&p);
	p++;
	m->read = p[0] == 'r';
	m->write = p[1] == 'w';
	m->exec = p[2] == 'x';
	m->shared = p[3] == 's';
	p += 5;
	m->offset = wpt_parse_hex(&p);
	p++;
	m->dev_major = (uint32_t)wpt_parse_hex(&p);
	p++;
	m->dev_minor = (uint32_t)wpt_parse_hex(&p);
	p++;
	m->inode = wpt_parse_dec(&p);
	while (*p == ' ')
		p++;
	return p;
}

/* Only what lies behind all others is kept of it. */
static bool map_clip(struct wpt_map *map, uint64_t end)
{
	if (map->start >= end)
		return true;
	map->offset += map->inode ? end - map->start : 0;
	map->start = end;
	return map->start < map->end;
}

static int parse(struct wpt_target *t, struct wpt_maps *m)
{
	size_t pos = m->raw, end = m->raw + m->raw_len, len;
	const char *text, *name, *eol;
	uint64_t mapped_end = 0;
	struct wpt_map *map;
	char *dst;

	while (pos < end) {
		map = wpt_vec_push(&m->maps);
		text = m->text.data;
		if (!map)
			return -ENOMEM;
		eol = memchr(text + pos, '\n', end - pos);
		if (!eol)
			return -EIO;
		name = parse_line(map, text + pos);
		if (map->start >= map->end || name > eol)
			return -EIO;
		len = (size_t)(eol - name);
		pos = (size_t)(eol - text) + 1;
		if (!map_clip(map, mapped_end)) {
			m->maps.count--;
			continue;
		}
		mapped_end = map->end;
		if (!len) {
			map->name = m->raw + m->raw_len; /* the NUL behind the raw text */
		} else {
			size_t from = (size_t)(name - text);

			dst = wpt_vec_reserve(&m->text, len + 1);
			if (!dst)
				return -ENOMEM;
			memcpy(dst, (char *)m->text.data + from, len);
			dst[len] = 0;
			map->name = m->text.count;
			m->text.count += len + 1;
		}
		resolve_page_size(t, map);
	}
	return 0;
}

/* A thread that shows the attached program's random bytes, after its list was opened, has the attached memory. */
static int take_maps(void *arg, uint64_t tid)
{
	uint8_t token[WPT_TOKEN_BYTES];
	struct wpt_target *t = arg;
	struct iovec local = { token, sizeof(token) }, remote = { (void *)(uintptr_t)t->token_addr, sizeof(token) };
	char path[64];
	int fd = (int)wpt_sys(SYS_openat, t->self ? AT_FDCWD : t->task, wpt_proc_path(path, t->self ? "/proc/self/task/" : "", tid, "/maps"),
			      O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 0;
	if (!t->self && (wpt_sys(SYS_process_vm_readv, (pid_t)tid, &local, 1, &remote, 1, 0) != sizeof(token) ||
			 memcmp(token, t->token, sizeof(token)))) {
		wpt_fd_close(&fd);
		return 0;
	}
	wpt_fd_close(&t->maps);
	t->maps = fd;
	return 1;
}

/* The list, unlike the memory, is at its end when the thread ends that it was opened of, although others may go on. */
static int read_maps(struct wpt_target *t, struct wpt_vec *text)
{
	int rc = append_file(text, t->maps);

	if (rc != -ESRCH)
		return rc;
	if (t->self)
		rc = take_maps(t, (uint64_t)gettid());
	else
		rc = t->token_valid ? wpt_proc_numbers(t->task, take_maps, t) : 0;
	wpt_vec_clear(text);
	return rc == 1 ? append_file(text, t->maps) : -ESRCH;
}

int wpt_target_maps(struct wpt_target *t, struct wpt_maps *m)
{
	char *nul;
	int rc;

	rc = wpt_target_check(t);
	if (rc)
		return rc;
	m->maps.elem_size = sizeof(struct wpt_map);
	m->text.elem_size = 1;
	wpt_vec_clear(&m->maps);
	wpt_vec_clear(&m->text);
	m->raw = 0;
	rc = read_maps(t, &m->text);
	if (rc)
		return rc == -ESRCH ? -WPT_E_GONE : rc;
	m->raw_len = m->text.count;
	if (!m->raw_len)
		return -WPT_E_GONE;
	nul = wpt_vec_reserve(&m->text, 1);
	if (!nul)
		return -ENOMEM;
	*nul = 0;
	m->text.count++;
	return parse(t, m);
}

void wpt_maps_free(struct wpt_maps *m)
{
	wpt_vec_free(&m->maps);
	wpt_vec_free(&m->text);
}

static bool is_file_of(const struct stat *st, const struct wpt_map *map)
{
	return S_ISREG(st->st_mode) && st->st_ino == map->inode && major(st->st_dev) == map->dev_major &&
	       minor(st->st_dev) == map->dev_minor;
}

/* Opens a regular file only: to open a device or a pipe may have effects. */
static int open_regular(int dir, const char *path, const struct wpt_map *map, bool by_inode)
{
	struct stat st;
	int fd;

	if (fstatat(dir, path, &st, 0) || !S_ISREG(st.st_mode) || (by_inode && !is_file_of(&st, map)))
		return -ENOENT;
	fd = openat(dir, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -errno;
	if (!fstat(fd, &st) && st.st_ino == map->inode && (!by_inode || is_file_of(&st, map)))
		return fd;
	close(fd);
	return -ENOENT;
}

struct find_fd {
	int dir;
	const struct wpt_map *map;
	int fd;
};

static int try_fd(void *arg, uint64_t number)
{
	struct find_fd *f = arg;
	char path[64];

	f->fd = open_regular(f->dir, wpt_proc_path(path, "", number, ""), f->map, true);
	return f->fd >= 0;
}

int wpt_target_open_file(struct wpt_target *t, const struct wpt_map *map, const struct wpt_maps *m)
{
	static const char hex[] = "0123456789abcdef";
	struct find_fd f = { -1, map, -ENOENT };
	char path[4096];
	const char *name;
	size_t len = 0;
	int rc, shift;

	rc = wpt_target_check(t);
	if (rc)
		return rc;
	if (!map->inode)
		return -ENOENT;
	memcpy(path, "map_files/", 10);
	len = 10;
	for (shift = 60; shift >= 0; shift -= 4)
		if (map->vm_start >> shift || !shift)
			path[len++] = hex[map->vm_start >> shift & 15];
	path[len++] = '-';
	for (shift = 60; shift >= 0; shift -= 4)
		if (map->end >> shift || !shift)
			path[len++] = hex[map->end >> shift & 15];
	path[len] = 0;
	rc = open_regular(t->proc, path, map, false);
	if (rc >= 0)
		return rc;
	f.dir = openat(t->proc, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f.dir >= 0) {
		wpt_proc_numbers(f.dir, try_fd, &f);
		close(f.dir);
		if (f.fd >= 0)
			return f.fd;
	}
	name = wpt_map_name(m, map);
	if (*name != '/' || strlen(name) > sizeof(path) - 8)
		return -ENOENT;
	memcpy(path, "root", 4);
	memcpy(path + 4, name, strlen(name) + 1);
	rc = open_regular(t->proc, path, map, true);
	return rc >= 0 ? rc : -ENOENT;
}
