/* SPDX-License-Identifier: MIT */
/*
 * What `qemu restore --with-disks` does to images: all of them are put back to the snapshots of the link, or none is changed. In three steps: each is
 * looked at, and nothing is changed if one is not fit; each gets a snapshot of what is on it; each is put back. What fails then is undone by the
 * snapshots of the second step. It is done by qemu-img, since no QEMU has the images open.
 */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_OUTPUT (64u << 20)

struct image {
	char *name;                /* of the link's snapshot */
	const char *file;
	bool kept;                 /* the snapshot of what was on it is there, */
	bool changed;              /* and that may not be on it any more */
};

struct vm_images {
	const struct opts *o;
	const char *cwd;           /* relative names are relative to it */
	char before[64];           /* the name of the snapshots of what was on them */
	struct image *v;
	size_t nr;
};

static int __attribute__((format(printf, 2, 3))) refuse(const struct vm_images *im, const char *format, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	complain("%s: %s", im->o->cmd->name, text);
	return EXIT_FAILED;
}

/* ---- qemu-img ---- */

/* All that was written to it, ends with a 0. */
static char *text_of(int fd)
{
	off_t len = lseek(fd, 0, SEEK_END);
	char *text = len >= 0 && len <= (off_t)MAX_OUTPUT ? calloc(1, (size_t)len + 1) : NULL;

	if (text && pread(fd, text, (size_t)len, 0) != len) {
		free(text);
		return NULL;
	}
	return text;
}

/* What qemu-img complained of: its first line without its name. */
static void first_line(int fd, char why[512])
{
	char *text = text_of(fd), *p = text;

	if (p && strncmp(p, "qemu-img: ", 10) == 0)
		p += 10;
	snprintf(why, 512, "%.*s", p ? (int)strcspn(p, "\n") : 0, p ? p : "");
	free(text);
}

static void __attribute__((noreturn)) exec_qemu_img(const struct vm_images *im, const char *const *argv, int out, int err)
{
	dup2(out, STDOUT_FILENO);
	dup2(err, STDERR_FILENO);
	if (im->cwd && *im->cwd && chdir(im->cwd))
		dprintf(STDERR_FILENO, "QEMU's folder %s can't be entered: %s\n", im->cwd, strerror(errno));
	else if (execvp(argv[0], (char **)argv))
		dprintf(STDERR_FILENO, "cannot execute qemu-img: %s\n", strerror(errno));
	_exit(127);
}

/* 0, or why it failed in `why`; *text (may be NULL) gets what it said. A signal to our process group is kept from it, as from us. */
static int run(const struct vm_images *im, const char *const *argv, char **text, char why[512])
{
	int out = memfd_create("qemu-img", MFD_CLOEXEC), err = memfd_create("qemu-img", MFD_CLOEXEC), status = -1;
	pid_t pid = out >= 0 && err >= 0 ? fork() : -1;

	if (pid == 0)
		exec_qemu_img(im, argv, out, err);
	why[0] = 0;
	if (pid < 0)
		snprintf(why, 512, "qemu-img can't be started: %s", strerror(errno));
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (pid > 0 && status)
		first_line(err, why);
	if (pid > 0 && status && !*why)
		snprintf(why, 512, "qemu-img ended with status %d", status);
	if (text)
		*text = pid > 0 ? text_of(out) : NULL;
	if (out >= 0)
		close(out);
	if (err >= 0)
		close(err);
	return pid > 0 && status == 0 ? 0 : -EIO;
}

static int run_snapshot(const struct vm_images *im, const char *option, const char *name, const struct image *i, char why[512])
{
	const char *argv[] = { "qemu-img", "snapshot", option, name, "--", i->file, NULL };

	return run(im, argv, NULL, why);
}

/* ---- is it fit? ---- */

static bool has_snapshot(const json_t *info, const char *name)
{
	const char *text;
	json_t *one;
	size_t i;

	json_array_foreach(json_object_get(info, "snapshots"), i, one) {
		text = json_string_value(json_object_get(one, "name"));
		if (text && strcmp(text, name) == 0)
			return true;
	}
	return false;
}

static int check_info(const struct vm_images *im, const struct image *i, const char *text)
{
	json_t *info = text ? json_loads(text, 0, NULL) : NULL;
	const char *format = json_string_value(json_object_get(info, "format"));
	int code = EXIT_OK;

	if (!format)
		code = refuse(im, "qemu-img does not say what the disk %s is", i->file);
	else if (strcmp(format, "qcow2") != 0)
		code = refuse(im, "the disk %s is %s now, and was qcow2", i->file, format);
	else if (!has_snapshot(info, i->name))
		code = refuse(im, "the disk %s has no snapshot '%s': it was deleted, or this is another image", i->file, i->name);
	json_decref(info);
	return code;
}

/* Of what is not a plain file, as an image on a server, it is seen when its snapshot is made, which changes nothing of what is on it. */
static int check_writable(const struct vm_images *im, const struct image *i)
{
	int fd = *i->file == '/' ? open(i->file, O_WRONLY | O_CLOEXEC | O_NONBLOCK) : -1;

	if (*i->file == '/' && fd < 0)
		return refuse(im, "the disk %s can't be written to: %s", i->file, strerror(errno));
	if (fd >= 0)
		close(fd);
	return EXIT_OK;
}

/* An image that cannot be opened but when its lock is ignored is open elsewhere. */
static int check_image(const struct vm_images *im, const struct image *i)
{
	const char *argv[] = { "qemu-img", "info", "--output=json", "--", i->file, NULL };
	const char *sharing[] = { "qemu-img", "info", "-U", "--output=json", "--", i->file, NULL };
	char why[512], ignored[512], *text;
	int code;

	code = check_writable(im, i);
	if (code)
		return code;
	if (run(im, argv, &text, why)) {
		free(text);
		if (run(im, sharing, NULL, ignored) == 0)
			return refuse(im, "the disk %s is in use, as by a QEMU that runs: %s", i->file, why);
		return refuse(im, "the disk %s can't be read: %s", i->file, why);
	}
	code = check_info(im, i, text);
	free(text);
	return code;
}

/* "SNAPSHOT DEVICE FILE" */
static int add_image(struct vm_images *im, const char *disk)
{
	const char *device = strchr(disk, ' ') + 1;
	struct image *i = &im->v[im->nr];

	memset(i, 0, sizeof(*i));
	i->name = strndup(disk, (size_t)(device - 1 - disk));
	i->file = strchr(device, ' ') + 1;
	if (!i->name)
		return refuse(im, "out of memory");
	im->nr++;
	return EXIT_OK;
}

int vm_images_open(struct vm_images **out, const struct opts *o, const char *const *disks, size_t nr, const char *cwd)
{
	struct vm_images *im = calloc(1, sizeof(*im));
	int code = EXIT_OK;
	size_t i;

	if (im)
		im->v = calloc(nr + 1, sizeof(*im->v));
	if (!im || !im->v) {
		free(im);
		return report(-ENOMEM, NULL, "%s", o->cmd->name);
	}
	im->o = o;
	im->cwd = cwd;
	for (i = 0; i < nr && !code; i++)
		code = add_image(im, disks[i]);
	for (i = 0; i < im->nr && !code; i++)
		code = check_image(im, &im->v[i]);
	if (code)
		vm_images_close(im);
	else
		*out = im;
	return code;
}

void vm_images_close(struct vm_images *im)
{
	size_t i;

	if (!im)
		return;
	for (i = 0; i < im->nr; i++)
		free(im->v[i].name);
	free(im->v);
	free(im);
}

/* ---- there, and back ---- */

/* Snapshots of what was on them are not wanted any more where that is on them again. */
static void undo_image(struct vm_images *im, struct image *i)
{
	char why[512];

	i->kept = false;
	if (i->changed && run_snapshot(im, "-a", im->before, i, why)) {
		refuse(im, "the disk %s could not be put back to what was on it before, which is its snapshot '%s': %s", i->file, im->before, why);
		return;
	}
	if (i->changed)
		complain("%s: the disk %s is again as it was before", im->o->cmd->name, i->file);
	i->changed = false;
	if (run_snapshot(im, "-d", im->before, i, why))
		refuse(im, "the snapshot '%s' of the disk %s could not be deleted and belongs to nothing: %s", im->before, i->file, why);
}

void vm_images_undo(struct vm_images *im)
{
	size_t i;

	for (i = im ? im->nr : 0; i > 0; i--)
		if (im->v[i - 1].kept)
			undo_image(im, &im->v[i - 1]);
}

static int keep_images(struct vm_images *im)
{
	struct timespec now;
	char why[512];
	size_t i;

	clock_gettime(CLOCK_REALTIME, &now);
	snprintf(im->before, sizeof(im->before), "wpsnap-before-%lld.%09ld", (long long)now.tv_sec, now.tv_nsec);
	for (i = 0; i < im->nr; i++) {
		if (run_snapshot(im, "-c", im->before, &im->v[i], why))
			return refuse(im, "what is on the disk %s can't be kept as a snapshot: %s", im->v[i].file, why);
		im->v[i].kept = true;
	}
	return EXIT_OK;
}

/* One at which it fails may have been changed in part. */
int vm_images_revert(struct vm_images *im)
{
	int code = keep_images(im);
	char why[512];
	struct image *i;
	size_t n;

	for (n = 0; n < im->nr && !code; n++) {
		i = &im->v[n];
		i->changed = true;
		if (run_snapshot(im, "-a", i->name, i, why))
			code = refuse(im, "the disk %s can't be put back to its snapshot '%s': %s", i->file, i->name, why);
	}
	for (n = 0; n < im->nr && !code && !im->o->quiet; n++)
		complain("%s: the disk %s is as it was at '%s'; what was on it is its snapshot '%s'", im->o->cmd->name, im->v[n].file, im->v[n].name,
			 im->before);
	return code;
}
