/* SPDX-License-Identifier: MIT */
/*
 * Devices of a virtual machine that are in part somewhere else: a vhost-user back-end, which is another process that writes to the guest's memory and
 * may have a disk of which QEMU knows nothing; memory that is shared with other machines (ivshmem).
 */
#include "vm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct found {
	char writer[128];          /* of whom there is one that writes to the guest's memory from elsewhere */
	char disk[128];
	char unloadable[128];      /* of which QEMU can save the state, but not load it */
};

static void keep(char out[128], const char *type, const char *name)
{
	if (!*out)
		snprintf(out, 128, "%s%s%s%s", type, *name ? " '" : "", name, *name ? "'" : "");
}

/*
 * What follows "child<" in a type's name. Of shared memory that is left out of the state QEMU notes where the guest has it, and loads the state only
 * where a new machine has it at the same place already: that of ivshmem is put there by the guest, later.
 */
static void look_at(const char *child, const char *name, struct found *f)
{
	char type[64];

	if (sscanf(child, "child<%63[^>]", type) != 1)
		return;
	if (strstr(type, "vhost-user"))
		keep(f->writer, type, name);
	if (strncmp(type, "vhost-user-blk", 14) == 0 || strncmp(type, "vhost-user-scsi", 15) == 0)
		keep(f->disk, type, name);
	if (strncmp(type, "ivshmem-", 8) == 0)
		keep(f->unloadable, type, name);
}

static int find_devices(struct qmp *q, struct found *f)
{
	static const char *const folders[] = { "/machine/peripheral", "/machine/peripheral-anon", "/objects" };
	json_t *list, *one;
	const char *type, *name;
	size_t i, j;
	int err;

	for (i = 0; i < ARRAY_SIZE(folders); i++) {
		err = qmp_call(q, "qom-list", json_pack("{s:s}", "path", folders[i]), &list, -1, QMP_TIMEOUT_MS);
		if (err == -EREMOTEIO)
			continue;
		if (err)
			return err;
		json_array_foreach(list, j, one) {
			type = json_string_value(json_object_get(one, "type"));
			name = json_string_value(json_object_get(one, "name"));
			if (type)
				look_at(type, i == 1 || !name ? "" : name, f);
		}
		json_decref(list);
	}
	return 0;
}

/* The device of a network back-end is an ordinary virtio-net. */
static int find_networks(struct qmp *q, struct found *f)
{
	char *text;
	int err;

	err = qmp_human(q, "info network", &text);
	if (err == -EREMOTEIO)
		return 0;
	if (err)
		return err;
	if (strstr(text, "type=vhost-user"))
		keep(f->writer, "-netdev vhost-user", "");
	free(text);
	return 0;
}

static int find(struct qmp *q, struct found *f)
{
	int err;

	memset(f, 0, sizeof(*f));
	err = find_devices(q, f);
	return err ? err : find_networks(q, f);
}

int vm_find_backend(struct qmp *q, char name[128])
{
	struct found f;
	int err = find(q, &f);

	memcpy(name, f.writer, sizeof(f.writer));
	return err;
}

int vm_check_devices(struct vm *vm, bool warn)
{
	struct found f;
	int err = find(&vm->q, &f);

	if (err)
		return vm_fail(vm, err, "QEMU does not say what devices the machine has: %s", wpt_strerror(err));
	if (*f.unloadable)
		return vm_fail(vm, -EOPNOTSUPP, "QEMU can't load the state of a machine with %s when shared memory is left out of it; unplug it",
			       f.unloadable);
	if (*f.writer && vm->o->sole_writer)
		return vm_fail(vm, -EOPNOTSUPP, "with %s another process writes to the guest's memory, so that --assume-sole-writer is wrong",
			       f.writer);
	if (*f.disk && vm->o->with_disks)
		return vm_fail(vm, -EOPNOTSUPP, "the disk of %s is its back-end's, and no snapshot of it can be made by QEMU", f.disk);
	if (*f.disk && warn)
		complain("%s: %s: snapshots do not hold the disk of %s: a guest that is restored while its disk is not as it was at that instant "
			 "destroys what is on it",
			 vm->o->cmd->name, vm->path, f.disk);
	return 0;
}
