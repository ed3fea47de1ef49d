/* SPDX-License-Identifier: MIT */
/*
 * Who may change the target's memory without a fault in it: other processes that have its files mapped or open, system calls on those
 * files, and devices or io_uring, which write to pinned pages.
 *
 * Every doubt counts against: a process that can't be looked at, a list that could not be read whole.
 */
#include "target_impl.h"

#include <limits.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "proc.h"
#include "sys.h"

#define BUF_BYTES 65536
#define URING_TRIES 200
#define HUGE_BYTES (UINT64_C(2) << 20) /* a huge page is counted whole */

struct look {
	struct wpt_target *t;
	struct wpt_file_use *files;
	bool *private_file; /* per file: it has no name, so that only a descriptor leads to it */
	size_t nr;
	char *buf;
	pid_t pid, kcmp_tid;
	bool own;           /* the target itself is looked at */
	int proc, task, map_files;
	int all;            /* /proc */
	uint64_t uids[4];   /* of the target */
};

static struct wpt_file_use *find_file(struct look *l, uint64_t dev, uint64_t inode)
{
	size_t i;

	for (i = 0; i < l->nr; i++)
		if (l->files[i].inode == inode && l->files[i].dev == dev)
			return &l->files[i];
	return NULL;
}

static bool is_denied(int rc)
{
	return rc == -EACCES || rc == -EPERM;
}

/* Neither is there nothing to be seen, nor was it seen: no descriptor is free, or no memory. */
static bool is_failure(int rc)
{
	return rc < 0 && !is_denied(rc) && rc != -ENOENT && rc != -ESRCH;
}

/* ---- descriptors ---- */

struct fds {
	struct look *l;
	int dir;
};

/* The link's own mode says how the descriptor was opened. No file system is asked: a dead server must not hang us. */
static int look_fd(void *arg, uint64_t number)
{
	struct fds *f = arg;
	struct wpt_file_use *file;
	struct statx link, stx;
	char path[64];
	long rc;

	wpt_proc_path(path, "", number, "");
	if (wpt_sys(SYS_statx, f->dir, path, AT_SYMLINK_NOFOLLOW, STATX_MODE, &link))
		return 0;
	if (!(link.stx_mode & S_IWUSR) && !f->l->own)
		return 0;
	rc = wpt_sys(SYS_statx, f->dir, path, AT_STATX_DONT_SYNC, STATX_INO | STATX_NLINK, &stx);
	if (rc)
		return is_denied((int)rc) ? (int)rc : 0;
	file = find_file(f->l, makedev(stx.stx_dev_major, stx.stx_dev_minor), stx.stx_ino);
	if (!file)
		return 0;
	if (f->l->own)
		f->l->private_file[file - f->l->files] = stx.stx_nlink == 0;
	if (!(link.stx_mode & S_IWUSR))
		return 0;
	if (f->l->own)
		file->own_writable_fd = true;
	else
		file->other_writer = true;
	return 0;
}

static int look_fds(struct look *l, int task, const char *path)
{
	struct fds f = { l, -1 };
	int rc;

	f.dir = (int)wpt_sys(SYS_openat, task, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f.dir < 0)
		return f.dir;
	rc = wpt_proc_numbers(f.dir, look_fd, &f);
	wpt_sys(SYS_close, f.dir);
	return rc;
}

/* ---- mappings ---- */

/* A mapping that is read-only now can be made writable if its file was opened for writing, which the link in map_files tells. */
static bool may_become_writable(struct look *l, const char *line, size_t range_len)
{
	char path[64 + 10] = "map_files/";
	struct statx link;

	if (range_len >= 64)
		return true;
	memcpy(path + 10, line, range_len);
	path[10 + range_len] = 0;
	return wpt_sys(SYS_statx, l->proc, path, AT_SYMLINK_NOFOLLOW, STATX_MODE, &link) || (link.stx_mode & S_IWUSR);
}

static void look_mapping(struct look *l, const char *line)
{
	const char *p = line, *perms;
	struct wpt_file_use *file;
	uint64_t dev_major, dev, inode;
	size_t range_len, i;

	wpt_parse_hex(&p);
	p++;
	wpt_parse_hex(&p);
	range_len = (size_t)(p - line);
	perms = ++p;
	if (perms[3] != 's')
		return;
	p += 5;
	wpt_parse_hex(&p);
	p++;
	dev_major = wpt_parse_hex(&p);
	p++;
	dev = wpt_parse_hex(&p);
	dev = makedev(dev_major, dev);
	p++;
	inode = wpt_parse_dec(&p);
	for (i = 0; i < l->nr; i++) {
		file = &l->files[i];
		if (file->inode == inode && (file->map_dev ? file->map_dev : file->dev) == dev && !file->other_writer)
			file->other_writer = perms[1] == 'w' || may_become_writable(l, line, range_len);
	}
}

/* Lines are read in pieces; the buffer holds many times the longest. Returns 0 if there is none: a thread that has ended has no memory. */
static int look_maps(struct look *l, int task, const char *path)
{
	size_t have = 0;
	char *line, *end;
	bool any = false;
	long n;
	int fd;

	fd = (int)wpt_sys(SYS_openat, task, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fd;
	while ((n = wpt_sys(SYS_read, fd, l->buf + have, BUF_BYTES - 1 - have)) > 0) {
		any = true;
		have += (size_t)n;
		l->buf[have] = 0;
		for (line = l->buf; (end = strchr(line, '\n')); line = end + 1)
			look_mapping(l, line);
		have -= (size_t)(line - l->buf);
		memmove(l->buf, line, have);
	}
	wpt_sys(SYS_close, fd);
	return n < 0 ? (int)n : any;
}

/* ---- processes ---- */

/* "Uid: real effective saved file-system" */
static int read_uids(int proc, char *buf, uint64_t uids[4])
{
	const char *p;
	ssize_t n;
	int i;

	n = wpt_proc_read(proc, "status", buf, BUF_BYTES);
	if (n < 0)
		return (int)n;
	p = strstr(buf, "\nUid:");
	if (!p)
		return -EIO;
	p += 5;
	for (i = 0; i < 4; i++) {
		while (*p == '\t' || *p == ' ')
			p++;
		uids[i] = wpt_parse_dec(&p);
	}
	return 0;
}

/* A file without a name is reached through a descriptor only, which processes of the same user and of root can get or inherit. */
static void cannot_look(struct look *l)
{
	bool related = true;
	uint64_t uids[4];
	size_t i, j;

	if (!read_uids(l->proc, l->buf, uids)) {
		related = false;
		for (i = 0; i < 4; i++)
			for (j = 0; j < 4; j++)
				related |= uids[i] == 0 || uids[i] == l->uids[j];
	}
	for (i = 0; i < l->nr; i++)
		if (related || !l->private_file[i])
			l->files[i].uninspectable = true;
}

struct threads {
	struct look *l;
	pid_t first; /* a thread that was looked at */
	int denied;
};

/* Threads share mappings, and mostly also descriptors. */
static int look_thread(void *arg, uint64_t number)
{
	struct threads *th = arg;
	struct look *l = th->l;
	char path[64];
	int rc;

	if (th->first && wpt_sys(SYS_kcmp, th->first, (long)number, WPT_KCMP_FILES, 0, 0) == 0)
		return 0;
	rc = look_fds(l, l->task, wpt_proc_path(path, "", number, "/fd"));
	if (rc >= 0 && !th->first && !l->own) {
		rc = look_maps(l, l->task, wpt_proc_path(path, "", number, "/maps"));
		if (rc == 0)
			return 0;
	}
	if (is_denied(rc)) {
		if (wpt_proc_is_exiting(l->task, number))
			return 0;
		th->denied = rc;
		return 1;
	}
	if (is_failure(rc)) {
		th->denied = rc;
		return 1;
	}
	if (rc < 0)
		return 0;
	/* Of a leader that ended before the others neither mappings nor descriptors are to be seen. */
	if (!wpt_proc_is_exiting(l->task, number))
		th->first = (pid_t)number;
	return 0;
}

static int look_process(void *arg, uint64_t number)
{
	struct look *l = arg;
	struct threads th = { l, 0, 0 };
	struct wpt_proc_stat st;
	int rc;

	l->pid = (pid_t)number;
	l->own = l->pid == l->t->pid;
	/* Threads that have ended are alike in having no memory. */
	if (!l->own && wpt_sys(SYS_kcmp, l->t->vm_tid, (long)number, WPT_KCMP_VM, 0, 0) == 0 &&
	    !wpt_proc_is_exiting(l->all, (uint64_t)l->t->vm_tid))
		return 0;
	l->proc = l->own ? l->t->proc : wpt_proc_open(l->pid);
	if (l->proc < 0) {
		if (is_failure(l->proc))
			cannot_look(l);
		return 0;
	}
	rc = wpt_proc_stat(l->proc, "stat", &st);
	if (is_failure(rc))
		cannot_look(l);
	if (!rc && !(st.flags & PF_KTHREAD)) {
		rc = l->task = (int)wpt_sys(SYS_openat, l->proc, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (l->task >= 0)
			rc = wpt_proc_numbers(l->task, look_thread, &th);
		if (th.denied || is_denied(rc) || is_failure(rc))
			cannot_look(l);
		wpt_fd_close(&l->task);
	}
	if (!l->own)
		wpt_fd_close(&l->proc);
	return 0;
}

/* Mounted with hidepid, /proc shows other users' processes to nobody but root. */
static bool hides_processes(int proc)
{
	struct statx stx;

	return wpt_sys(SYS_statx, proc, "1", 0, STATX_INO, &stx) != 0;
}

int wpt_target_writers(struct wpt_target *t, struct wpt_file_use *files, size_t nr)
{
	struct look l = { .t = t, .files = files, .nr = nr };
	size_t i, bytes = BUF_BYTES + nr;
	int proc, rc;

	rc = wpt_target_check(t);
	if (rc || !nr)
		return rc;
	l.buf = wpt_vm_alloc(bytes);
	if (!l.buf)
		return -ENOMEM;
	l.private_file = (bool *)l.buf + BUF_BYTES;
	for (i = 0; i < nr; i++)
		files[i].other_writer = files[i].own_writable_fd = files[i].uninspectable = false;
	rc = proc = (int)wpt_sys(SYS_openat, AT_FDCWD, "/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	l.all = proc;
	if (rc >= 0)
		rc = read_uids(t->proc, l.buf, l.uids);
	if (rc == -ENOENT || rc == -ESRCH)
		rc = -WPT_E_GONE;
	if (rc >= 0) {
		/* The target first: it knows which files have no name. */
		look_process(&l, (uint64_t)t->pid);
		rc = wpt_proc_numbers(proc, look_process, &l);
		for (i = 0; i < nr && hides_processes(proc); i++)
			files[i].uninspectable = true;
	}
	if (proc >= 0)
		wpt_sys(SYS_close, proc);
	wpt_vm_free(l.buf, bytes);
	return rc < 0 ? rc : 0;
}

/* ---- pinned memory ---- */

struct pinned {
	struct wpt_vec *pieces;
	int task, fd_dir, info_dir;
	char *buf;
	uint64_t bytes; /* that the kernel may count as pinned for what was found */
	bool loud, busy;
};

static const char *next_line(const char *p)
{
	p = strchr(p, '\n');
	return p ? p + 1 : NULL;
}

/*
 * "UserBufs: N", and N lines "INDEX: 0xADDRESS/LENGTH" or "INDEX: <none>". The kernel leaves lines out when the ring is busy. Returns 0, or
 * -EAGAIN, with nothing appended then.
 */
static int parse_uring(struct pinned *pin)
{
	size_t count = pin->pieces->count;
	uint64_t nr, i, addr, end, bytes = 0, page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct wpt_piece *piece;
	const char *p;

	p = strstr(pin->buf, "UserBufs:");
	if (!p)
		return -EAGAIN;
	p += strlen("UserBufs:");
	while (*p == '\t' || *p == ' ')
		p++;
	nr = wpt_parse_dec(&p);
	for (i = 0; i < nr; i++) {
		const char *q = p = next_line(p);

		while (q && *q == ' ')
			q++;
		if (!q || *q < '0' || *q > '9')
			break;
		wpt_parse_dec(&q);
		if (strncmp(q, ": 0x", 4)) {
			if (strncmp(q, ": <none>", 8))
				break;
			continue;
		}
		q += 4;
		piece = wpt_vec_push(pin->pieces);
		if (!piece)
			return -ENOMEM;
		addr = wpt_parse_hex(&q);
		if (*q++ != '/')
			break;
		end = addr + wpt_parse_dec(&q);
		piece->addr = WPT_ALIGN_DOWN(addr, page);
		piece->len = WPT_ALIGN_UP(end, page) - piece->addr;
		bytes += WPT_ALIGN_UP(end, HUGE_BYTES) - WPT_ALIGN_DOWN(addr, HUGE_BYTES);
	}
	if (i == nr) {
		pin->bytes += bytes;
		return 0;
	}
	pin->pieces->count = count;
	return -EAGAIN;
}

static int look_uring(struct pinned *pin, uint64_t fd)
{
	struct timespec ts = { 0, 50000 };
	char path[64];
	ssize_t n;
	int i, rc = 0;

	for (i = 0; i < URING_TRIES; i++) {
		n = wpt_proc_read(pin->info_dir, wpt_proc_path(path, "", fd, ""), pin->buf, BUF_BYTES * 16);
		if (n < 0)
			return 0; /* closed meanwhile */
		rc = parse_uring(pin);
		if (rc != -EAGAIN)
			return rc;
		wpt_sys(SYS_nanosleep, &ts, NULL);
	}
	pin->loud = pin->busy = true;
	return 0;
}

static bool starts_with(const char *s, const char *prefix)
{
	return !strncmp(s, prefix, strlen(prefix));
}

static int look_pinned(void *arg, uint64_t fd)
{
	struct pinned *pin = arg;
	char path[64], link[256];
	long n;

	n = wpt_sys(SYS_readlinkat, pin->fd_dir, wpt_proc_path(path, "", fd, ""), link, sizeof(link) - 1);
	if (n < 0)
		return 0;
	link[n] = 0;
	if (starts_with(link, "anon_inode:[io_uring]"))
		return look_uring(pin, fd);
	if (starts_with(link, "/dev/vfio/") || starts_with(link, "anon_inode:[vfio") || starts_with(link, "/dev/infiniband/") ||
	    starts_with(link, "/dev/iommu") || starts_with(link, "/dev/vhost-vdpa"))
		pin->loud = true;
	return 0;
}

/* What the kernel counts as pinned beyond the buffers found belongs to somebody that was not found: RDMA, a ring without descriptor. */
static void compare_count(struct pinned *pin, uint64_t tid)
{
	char path[64];
	const char *p;

	if (wpt_proc_read(pin->task, wpt_proc_path(path, "", tid, "/status"), pin->buf, BUF_BYTES) < 0)
		return;
	p = strstr(pin->buf, "\nVmPin:");
	if (!p)
		return;
	p += strlen("\nVmPin:");
	while (*p == '\t' || *p == ' ')
		p++;
	if (wpt_parse_dec(&p) * 1024 > pin->bytes)
		pin->loud = true;
}

/* Descriptors of one thread that has any: a leader that exited before the others shows none. */
static int look_pinned_thread(void *arg, uint64_t tid)
{
	struct pinned *pin = arg;
	char path[64];
	int rc;

	pin->fd_dir = (int)wpt_sys(SYS_openat, pin->task, wpt_proc_path(path, "", tid, "/fd"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	pin->info_dir = (int)wpt_sys(SYS_openat, pin->task, wpt_proc_path(path, "", tid, "/fdinfo"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (pin->fd_dir < 0 || pin->info_dir < 0)
		rc = WPT_MIN(pin->fd_dir, pin->info_dir);
	else
		rc = wpt_proc_numbers(pin->fd_dir, look_pinned, pin);
	if (!rc)
		compare_count(pin, tid);
	wpt_fd_close(&pin->fd_dir);
	wpt_fd_close(&pin->info_dir);
	if (is_failure(rc))
		return rc;
	return wpt_proc_is_exiting(pin->task, tid) ? 0 : rc < 0 ? rc : 1;
}

int wpt_target_pinned(struct wpt_target *t, struct wpt_vec *pieces, bool *loud)
{
	struct pinned pin = { .pieces = pieces };
	int rc;

	rc = wpt_target_check(t);
	if (rc)
		return rc;
	pin.buf = wpt_vm_alloc(BUF_BYTES * 16);
	rc = pin.task = (int)wpt_sys(SYS_openat, t->proc, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (!pin.buf)
		rc = -ENOMEM;
	else if (rc >= 0)
		rc = wpt_proc_numbers(pin.task, look_pinned_thread, &pin);
	wpt_fd_close(&pin.task);
	wpt_vm_free(pin.buf, BUF_BYTES * 16);
	*loud = pin.loud;
	if (rc == 0 || rc == -ENOENT || rc == -ESRCH)
		return -WPT_E_GONE;
	return rc < 0 ? rc : pin.busy;
}

/* ---- direct I/O ---- */

struct direct {
	int task, fd_dir, info_dir;
	pid_t first; /* a thread that was looked at */
	char *buf;
	bool found, ring;
};

static uint64_t parse_octal(const char *p)
{
	uint64_t v = 0;

	while (*p == '\t' || *p == ' ')
		p++;
	while (*p >= '0' && *p <= '7')
		v = v << 3 | (uint64_t)(*p++ - '0');
	return v;
}

/* Of files that are registered with a ring nothing more is told than how many there is room for. */
static int look_direct(void *arg, uint64_t fd)
{
	struct direct *d = arg;
	char path[64], link[64];
	const char *p;
	bool ring;
	long n;

	n = wpt_sys(SYS_readlinkat, d->fd_dir, wpt_proc_path(path, "", fd, ""), link, sizeof(link) - 1);
	if (n == -ENOENT)
		return 0; /* closed meanwhile */
	link[WPT_MAX(n, 0)] = 0;
	ring = starts_with(link, "anon_inode:[io_uring]");
	d->ring |= ring;
	/* Many, and not asked one by one: on a pipe the flag means something else, the others can't have it. */
	if (d->found || (!ring && (starts_with(link, "socket:") || starts_with(link, "pipe:") || starts_with(link, "anon_inode:"))))
		return d->found && d->ring;
	n = wpt_proc_read(d->info_dir, path, d->buf, BUF_BYTES * 16);
	if (n < 0)
		return n == -ENOENT ? 0 : (int)n;
	p = strstr(d->buf, ring ? "UserFiles:" : "flags:");
	d->found = !p || (ring ? parse_octal(p + strlen("UserFiles:")) != 0 : (parse_octal(p + strlen("flags:")) & O_DIRECT) != 0);
	return d->found && d->ring;
}

static int look_direct_thread(void *arg, uint64_t tid)
{
	struct direct *d = arg;
	char path[64];
	int rc;

	if (d->first && wpt_sys(SYS_kcmp, d->first, (long)tid, WPT_KCMP_FILES, 0, 0) == 0)
		return 0;
	d->fd_dir = (int)wpt_sys(SYS_openat, d->task, wpt_proc_path(path, "", tid, "/fd"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	d->info_dir = (int)wpt_sys(SYS_openat, d->task, wpt_proc_path(path, "", tid, "/fdinfo"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->fd_dir < 0 || d->info_dir < 0)
		rc = WPT_MIN(d->fd_dir, d->info_dir);
	else
		rc = wpt_proc_numbers(d->fd_dir, look_direct, d);
	wpt_fd_close(&d->fd_dir);
	wpt_fd_close(&d->info_dir);
	if (is_failure(rc) || rc > 0)
		return rc;
	if (wpt_proc_is_exiting(d->task, tid))
		return 0;
	if (is_denied(rc))
		d->found = d->ring = true;
	else if (!rc)
		d->first = (pid_t)tid;
	return 0;
}

int wpt_target_direct(struct wpt_target *t, bool *direct, bool *ring)
{
	struct direct d = { .fd_dir = -1, .info_dir = -1, .found = *direct, .ring = *ring };
	int rc = wpt_target_check(t);

	if (rc || (*direct && *ring))
		return rc;
	d.buf = wpt_vm_alloc(BUF_BYTES * 16);
	if (!d.buf)
		return -ENOMEM;
	rc = d.task = (int)wpt_sys(SYS_openat, t->proc, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (rc >= 0)
		rc = wpt_proc_numbers(d.task, look_direct_thread, &d);
	wpt_fd_close(&d.task);
	wpt_vm_free(d.buf, BUF_BYTES * 16);
	*direct = d.found;
	*ring = d.ring;
	if (rc == -ENOENT || rc == -ESRCH)
		return -WPT_E_GONE;
	return WPT_MIN(rc, 0);
}

/* ---- system calls on files ---- */

/*
 * A process that mapped the file and is gone by the next look was seen by nobody, and writes through mappings are told by none: but it had the file
 * open for writing, and closed it.
 */
int wpt_target_watch(struct wpt_target *t, int fd)
{
	char path[64];
	int rc;

	rc = wpt_target_check(t);
	if (rc)
		return rc;
	if (t->inotify < 0)
		t->inotify = (int)wpt_sys(SYS_inotify_init1, IN_CLOEXEC | IN_NONBLOCK);
	if (t->inotify < 0)
		return t->inotify;
	return (int)wpt_sys(SYS_inotify_add_watch, t->inotify, wpt_proc_path(path, "/proc/self/fd/", (uint64_t)fd, ""),
			    IN_MODIFY | IN_CLOSE_WRITE);
}

void wpt_target_unwatch(struct wpt_target *t, int watch)
{
	if (wpt_target_check(t) == 0 && t->inotify >= 0)
		wpt_sys(SYS_inotify_rm_watch, t->inotify, watch);
}

/* A watch that the kernel removed (the file is gone) counts as a change: nothing is known of the file from then on. */
int wpt_target_poll(struct wpt_target *t, void (*changed)(void *arg, int watch), void *arg)
{
	char buf[4096] __attribute__((aligned(8)));
	const struct inotify_event *e;
	long n, off;
	int rc;

	rc = wpt_target_check(t);
	if (rc || t->inotify < 0)
		return rc;
	for (;;) {
		n = wpt_sys(SYS_read, t->inotify, buf, sizeof(buf));
		if (n == -EINTR)
			continue;
		if (n <= 0)
			return n == -EAGAIN ? 0 : (int)n;
		for (off = 0; off < n; off += (long)(sizeof(*e) + e->len)) {
			e = (const struct inotify_event *)(buf + off);
			changed(arg, e->mask & IN_Q_OVERFLOW ? -1 : e->wd);
		}
	}
}
