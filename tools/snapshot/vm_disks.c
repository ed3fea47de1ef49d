/* SPDX-License-Identifier: MIT */
/*
 * A virtual machine's disks: with --with-disks each link has an internal snapshot of every disk that the guest may write to, made while the
 * guest stands still, so that memory and disks are of one instant. Only qcow2 images hold such snapshots.
 */
#include "vm.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TRANSACTION_TIMEOUT_MS 30000u

void vm_free_disks(struct vm_disks *d)
{
	size_t i;

	for (i = 0; i < d->nr; i++) {
		free(d->v[i].device);
		free(d->v[i].file);
		free(d->v[i].format);
	}
	free(d->v);
	memset(d, 0, sizeof(*d));
}

/* QEMU names its files as it was told to, from the folder that it was started in; "json:..." or "nbd://..." is no file's name. */
static char *absolute(pid_t pid, const char *file)
{
	char path[64], dir[4096], *out;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/cwd", (int)pid);
	n = *file == '/' || file[strcspn(file, "/:")] == ':' ? 0 : readlink(path, dir, sizeof(dir) - 1);
	if (n <= 0)
		return strdup(file);
	dir[n] = 0;
	return asprintf(&out, "%s/%s", dir, file) < 0 ? NULL : out;
}

static const char *text_of(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

static int add_disk(struct vm *vm, const json_t *disk, const json_t *inserted, struct vm_disks *out)
{
	struct vm_disk d, *v;

	d.device = strdup(*text_of(disk, "device") ? text_of(disk, "device") : text_of(inserted, "node-name"));
	d.file = absolute(vm->pid, text_of(inserted, "file"));
	d.format = strdup(text_of(inserted, "drv"));
	v = d.device && d.file && d.format ? reallocarray(out->v, out->nr + 1, sizeof(*v)) : NULL;
	if (!v) {
		free(d.device);
		free(d.file);
		free(d.format);
		return vm_fail(vm, -ENOMEM, "out of memory");
	}
	out->v = v;
	v[out->nr++] = d;
	return 0;
}

int vm_list_disks(struct vm *vm, struct vm_disks *out)
{
	json_t *list, *disk, *inserted;
	size_t i;
	int err;

	memset(out, 0, sizeof(*out));
	err = vm_call(vm, "query-block", NULL, &list, QMP_TIMEOUT_MS);
	if (err)
		return err;
	json_array_foreach(list, i, disk) {
		inserted = json_object_get(disk, "inserted");
		if (inserted && !json_is_true(json_object_get(inserted, "ro")) && !err)
			err = add_disk(vm, disk, inserted, out);
	}
	json_decref(list);
	if (err)
		vm_free_disks(out);
	return err;
}

int vm_check_disks(struct vm *vm, const struct vm_disks *d)
{
	size_t i;

	for (i = 0; i < d->nr; i++) {
		if (!vm->o->with_disks)
			complain("%s: %s: snapshots do not hold the disk '%s' (see --with-disks): a guest that is restored while its disk is not as "
				 "it was at that instant destroys what is on it",
				 vm->o->cmd->name, vm->path, d->v[i].device);
		else if (strcmp(d->v[i].format, "qcow2") != 0)
			return vm_fail(vm, -EOPNOTSUPP, "the disk '%s' is %s, and only qcow2 holds snapshots; convert it, or make it read-only",
				       d->v[i].device, d->v[i].format);
	}
	return 0;
}

/* A name that is nobody else's: the time, to the nanosecond. */
static void name_snapshot(struct vm *vm)
{
	struct timespec ts;
	struct tm tm;
	char text[32];

	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	strftime(text, sizeof(text), "%Y%m%dT%H%M%S", &tm);
	snprintf(vm->snapshot, sizeof(vm->snapshot), "wpsnap-%s.%09ld", text, ts.tv_nsec);
}

/* All or none of them, while the guest stands still; and before the device state, at the end of which QEMU lets go of its images. */
int vm_take_disks(struct vm *vm)
{
	json_t *actions = json_array();
	size_t i;
	int err;

	if (!actions)
		return vm_fail(vm, -ENOMEM, "out of memory");
	name_snapshot(vm);
	for (i = 0; i < vm->disks.nr; i++)
		json_array_append_new(actions, json_pack("{s:s, s:{s:s, s:s}}", "type", "blockdev-snapshot-internal-sync", "data", "device",
							 vm->disks.v[i].device, "name", vm->snapshot));
	vm->disks_taken = vm->disks.nr > 0;
	if (!vm->disks_taken) {
		json_decref(actions);
		return 0;
	}
	err = vm_call(vm, "transaction", json_pack("{s:o}", "actions", actions), NULL, TRANSACTION_TIMEOUT_MS);
	if (err == -EREMOTEIO)
		vm->disks_taken = false;
	return err;
}

/* Of a guest that stands still since a migration QEMU has let go of its images, and it aborts if it is told to change one. */
static bool images_open(struct vm *vm)
{
	const char *status;
	json_t *ret;
	bool open;

	if (qmp_call(&vm->q, "query-status", NULL, &ret, -1, QMP_TIMEOUT_MS))
		return false;
	status = text_of(ret, "status");
	open = strcmp(status, "postmigrate") != 0 && strcmp(status, "finish-migrate") != 0;
	json_decref(ret);
	return open;
}

static int drop_disk(struct vm *vm, const struct vm_disk *d)
{
	json_t *args = json_pack("{s:s, s:s}", "device", d->device, "name", vm->snapshot);

	return qmp_call(&vm->q, "blockdev-snapshot-delete-internal-sync", args, NULL, -1, TRANSACTION_TIMEOUT_MS);
}

/* The link that they belong to is not there. */
void vm_drop_disks(struct vm *vm)
{
	bool open;
	size_t i;

	if (!vm->disks_taken)
		return;
	open = images_open(vm);
	for (i = 0; i < vm->disks.nr; i++) {
		if (!open || drop_disk(vm, &vm->disks.v[i]))
			complain("%s: %s: the snapshot '%s' of the disk '%s' could not be deleted and belongs to nothing", vm->o->cmd->name, vm->path,
				 vm->snapshot, vm->disks.v[i].device);
	}
	vm->disks_taken = false;
}

void vm_tag_disks(const struct vm *vm, FILE *f)
{
	size_t i;

	for (i = 0; i < vm->disks.nr; i++) {
		fprintf(f, "qemu.disk=%s %s %s", vm->snapshot, vm->disks.v[i].device, vm->disks.v[i].file);
		putc(0, f);
	}
}
