/* SPDX-License-Identifier: MIT */
/* The memory of a machine that is to be restored, emptied: what is not in the snapshot is zero. */
#include "vm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

struct mapping {
	uint64_t start, end, offset, inode;
	dev_t dev;
};

static bool find_mapping(pid_t pid, uint64_t addr, struct mapping *m)
{
	char path[64], line[8192];
	unsigned major, minor;
	bool found = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	while (f && !found && fgets(line, sizeof(line), f)) {
		found = sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64 " %x:%x %" SCNu64, &m->start, &m->end, &m->offset, &major, &minor,
			       &m->inode) == 6 && m->start <= addr && addr < m->end;
		m->dev = makedev(major, minor);
	}
	if (f)
		fclose(f);
	return found;
}

/* The descriptor by which QEMU has the mapping's file. */
static int open_backing(pid_t pid, const struct mapping *m)
{
	char dir[64], path[330];
	struct dirent *d;
	struct stat st;
	int fd = -1;
	DIR *list;

	snprintf(dir, sizeof(dir), "/proc/%d/fd", (int)pid);
	list = opendir(dir);
	while (list && fd < 0 && (d = readdir(list))) {
		snprintf(path, sizeof(path), "%s/%s", dir, d->d_name);
		if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_ino == m->inode && st.st_dev == m->dev)
			fd = open(path, O_RDWR | O_CLOEXEC);
	}
	if (list)
		closedir(list);
	if (fd < 0) {
		snprintf(path, sizeof(path), "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, (int)pid, m->start, m->end);
		fd = open(path, O_RDWR | O_CLOEXEC);
	}
	return fd;
}

/* Another process that has it mapped: the machine that the snapshot is of, which runs. 0: nobody. */
static pid_t find_user(pid_t own, const struct mapping *m)
{
	char path[300], line[8192];
	unsigned major, minor;
	struct dirent *d;
	uint64_t inode;
	pid_t user = 0;
	FILE *f;
	DIR *dir;

	dir = opendir("/proc");
	while (dir && !user && (d = readdir(dir))) {
		if (d->d_name[0] < '0' || d->d_name[0] > '9' || atoi(d->d_name) == own)
			continue;
		snprintf(path, sizeof(path), "/proc/%s/maps", d->d_name);
		f = fopen(path, "re");
		while (f && !user && fgets(line, sizeof(line), f))
			if (sscanf(line, "%*x-%*x %*s %*x %x:%x %" SCNu64, &major, &minor, &inode) == 3 && inode == m->inode &&
			    makedev(major, minor) == m->dev)
				user = (pid_t)atoi(d->d_name);
		if (f)
			fclose(f);
	}
	if (dir)
		closedir(dir);
	return user;
}

/* A file that was there before has somebody else's memory in it, and QEMU has put its firmware into the guest's already. */
int vm_clear_block(const struct opts *o, pid_t pid, const struct vm_block *b)
{
	uint64_t at, len;
	struct mapping m;
	pid_t user;
	int fd, err = 0;

	for (at = b->start; at < b->start + b->size && !err; at += len) {
		if (!find_mapping(pid, at, &m)) {
			complain("%s: the memory '%s' is not mapped by QEMU", o->cmd->name, b->id);
			return EXIT_FAILED;
		}
		len = (m.end < b->start + b->size ? m.end : b->start + b->size) - at;
		user = m.inode ? find_user(pid, &m) : 0;
		if (user) {
			complain("%s: process %d has the file of the memory '%s' mapped; end it, or give QEMU another file", o->cmd->name,
				 (int)user, b->id);
			return EXIT_FAILED;
		}
		fd = open_backing(pid, &m);
		if (fd < 0)
			return report(-errno, "run wpsnap as root", "%s: the file of the memory '%s' can't be opened", o->cmd->name, b->id);
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(m.offset + (at - m.start)), (off_t)len))
			err = -errno;
		close(fd);
	}
	if (err)
		return report(err, "use a file on a tmpfs, or -object memory-backend-memfd", "%s: the memory '%s' can't be cleared", o->cmd->name,
			      b->id);
	return EXIT_OK;
}
