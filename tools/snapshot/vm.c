/* SPDX-License-Identifier: MIT */
/*
 * A virtual machine that runs, and what a link of it needs: its shared memory is tracked in QEMU's process, and the guest stands still by QMP `stop`
 * while its device state is saved, by a migration to a pipe that leaves shared memory out, and what it wrote last is copied.
 *
 * The device state comes first in the pause: whatever devices still write to the guest's memory when they are saved is in the copy.
 */
#include "vm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define DEFAULT_DEVICE_LIMIT (64ull << 20)
#define DEVICE_TIMEOUT_MS 30000u
#define UNDO_TIMEOUT_MS 10000u
#define NO_LIMIT ((int64_t)1 << 40)   /* bytes a second */
#define STATE_PIPE_BYTES (1 << 20)

int vm_fail(struct vm *vm, int err, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(vm->why, sizeof(vm->why), format, ap);
	va_end(ap);
	return err;
}

int vm_call(struct vm *vm, const char *command, json_t *args, json_t **out, unsigned timeout_ms)
{
	int err = qmp_call(&vm->q, command, args, out, -1, timeout_ms);

	if (err == -EREMOTEIO)
		return vm_fail(vm, err, "QEMU refuses '%s': %s", command, vm->q.said);
	if (err)
		return vm_fail(vm, err, "QEMU's monitor does not answer '%s': %s", command, wpt_strerror(err));
	return 0;
}

static int call(struct vm *vm, const char *command, json_t *args, json_t **out)
{
	return vm_call(vm, command, args, out, QMP_TIMEOUT_MS);
}

/* A string that a command returns; `path` NULL: the whole answer. An absent one is "". */
static int call_string(struct vm *vm, const char *command, json_t *args, const char *key, char **out)
{
	const char *text;
	json_t *ret;
	int err;

	err = call(vm, command, args, &ret);
	if (err)
		return err;
	text = json_string_value(key ? json_object_get(ret, key) : ret);
	*out = strdup(text ? text : "");
	json_decref(ret);
	return *out ? 0 : vm_fail(vm, -ENOMEM, "out of memory");
}

static uint64_t device_limit(const struct vm *vm)
{
	return vm->o->device_limit ? vm->o->device_limit : DEFAULT_DEVICE_LIMIT;
}

/* ---- what it is ---- */

static int read_version(struct vm *vm)
{
	json_int_t major = 0, minor = 0, micro = 0;
	json_t *ret;
	int err;

	err = call(vm, "query-version", NULL, &ret);
	if (err)
		return err;
	json_unpack(ret, "{s:{s:I, s:I, s:I}}", "qemu", "major", &major, "minor", &minor, "micro", &micro);
	json_decref(ret);
	if (asprintf(&vm->version, "%d.%d.%d", (int)major, (int)minor, (int)micro) < 0)
		vm->version = NULL;
	return vm->version ? 0 : vm_fail(vm, -ENOMEM, "out of memory");
}

/* Devices that write to the guest's memory by themselves, and have a state of which QEMU knows nothing. */
static int refuse_vfio(struct vm *vm)
{
	static const char *const devices[] = { "/dev/vfio/", "[vfio-device]", "/dev/vhost-vdpa", "/dev/iommu", "/dev/infiniband/" };
	char path[64], link[330], target[64];
	struct dirent *d;
	size_t i;
	bool found = false;
	ssize_t n;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)vm->pid);
	dir = opendir(path);
	if (!dir)
		return vm_fail(vm, -errno, "the descriptors of process %d can't be listed: %s", (int)vm->pid, strerror(errno));
	while (!found && (d = readdir(dir))) {
		snprintf(link, sizeof(link), "%s/%s", path, d->d_name);
		n = readlink(link, target, sizeof(target) - 1);
		target[n > 0 ? n : 0] = 0;
		for (i = 0; i < ARRAY_SIZE(devices) && !found; i++)
			found = strstr(target, devices[i]) != NULL;
	}
	closedir(dir);
	if (found)
		return vm_fail(vm, -EOPNOTSUPP, "the machine has a device of the host (VFIO, vDPA, RDMA): what that writes is not seen; unplug it");
	return 0;
}

static int query_status(struct vm *vm, char **status)
{
	return call_string(vm, "query-status", NULL, "status", status);
}

/*
 * Other states are of a guest that has ended or failed, which a migration would hide, or of one that is being migrated. Of a guest that has stood
 * still since its state was saved QEMU does not save it again.
 */
static int query_running(struct vm *vm, bool *running)
{
	char *status;
	int err;

	err = query_status(vm, &status);
	if (err)
		return err;
	*running = strcmp(status, "running") == 0;
	if (strcmp(status, "postmigrate") == 0)
		err = vm_fail(vm, -EBUSY, "the guest has stood still since its state was saved or migrated; after 'cont' it can be saved again");
	else if (!*running && strcmp(status, "paused") != 0 && strcmp(status, "prelaunch") != 0)
		err = vm_fail(vm, -EBUSY, "the machine is in state '%s'; it can be saved when it runs or is paused", status);
	free(status);
	return err;
}

/* Waits until the machine is in a state; -EAGAIN if it comes to another that is not `before`. */
static int wait_status(struct vm *vm, const char *wanted, const char *before)
{
	uint64_t begin = now_ns();
	char *status;
	int err;

	for (;;) {
		err = query_status(vm, &status);
		if (err)
			return err;
		if (strcmp(status, wanted) == 0)
			break;
		if (!before || strcmp(status, before) != 0)
			err = vm_fail(vm, -EAGAIN, "the machine came to state '%s' meanwhile: somebody else lets it go on or resets it", status);
		else if (now_ns() - begin > (uint64_t)DEVICE_TIMEOUT_MS * 1000000)
			err = vm_fail(vm, -ETIMEDOUT, "QEMU stays in state '%s'", status);
		free(status);
		if (err)
			return err;
		usleep(200);
	}
	free(status);
	return 0;
}

/* ---- its memory ---- */

static int check_sharing(struct vm *vm, const struct vm_blocks *b)
{
	char size[UNITS_TEXT], limit[UNITS_TEXT];
	uint64_t apart = 0, most = 0;
	const char *largest = "";
	bool shared = false;
	size_t i;

	for (i = 0; i < b->nr; i++) {
		if (b->v[i].shared) {
			shared = true;
			continue;
		}
		apart += b->v[i].size;
		if (b->v[i].size > most) {
			most = b->v[i].size;
			largest = b->v[i].id;
		}
	}
	if (shared && apart <= device_limit(vm))
		return 0;
	return vm_fail(vm, -EOPNOTSUPP,
		    "the machine's memory '%s' (%s) is not shared, and what is not shared is stored with the device state, at most %s "
		    "(--device-limit); start QEMU with -object memory-backend-memfd,id=ram,size=SIZE,share=on -machine memory-backend=ram",
		    largest, format_size(size, most), format_size(limit, device_limit(vm)));
}

static bool same_block(const struct vm_block *a, const struct vm_block *b)
{
	return a->shared && b->shared && a->start == b->start && a->size == b->size && strcmp(a->id, b->id) == 0;
}

static int add_range(struct vm *vm, struct wpt_tracker *t, struct vm_block *b)
{
	struct wpt_range r = { .size = sizeof(r), .start = b->start, .end = b->start + b->size, .name = b->id };
	int id = wpt_range_add(t, &r);

	if (id < 0)
		return vm_fail(vm, id, "memory '%s' can't be tracked: %s", b->id, wpt_strerror(id));
	b->range = id;
	return 0;
}

int vm_ranges(struct vm *vm, struct wpt_tracker *t)
{
	struct vm_blocks now;
	size_t i, j;
	int err;

	err = vm_list_blocks(&vm->q, vm->pid, &now, vm->why);
	if (!err)
		err = check_sharing(vm, &now);
	if (err)
		return err;
	for (i = 0; i < vm->blocks.nr; i++) {
		for (j = 0; j < now.nr && !same_block(&vm->blocks.v[i], &now.v[j]); j++)
			;
		if (j < now.nr)
			now.v[j].range = vm->blocks.v[i].range;
		else if (vm->blocks.v[i].range)
			wpt_range_remove(t, vm->blocks.v[i].range);
	}
	vm_free_blocks(&vm->blocks);
	vm->blocks = now;
	for (i = 0; i < now.nr && !err; i++)
		if (now.v[i].shared && !now.v[i].range)
			err = add_range(vm, t, &now.v[i]);
	return err;
}

/* Just before the pause: still those blocks that are tracked. */
static int blocks_unchanged(struct vm *vm)
{
	struct vm_blocks now;
	bool same;
	size_t i;
	int err;

	err = vm_list_blocks(&vm->q, vm->pid, &now, vm->why);
	if (err)
		return err;
	same = now.nr == vm->blocks.nr;
	for (i = 0; i < now.nr && same; i++)
		same = now.v[i].shared ? same_block(&now.v[i], &vm->blocks.v[i]) :
					 !vm->blocks.v[i].shared && strcmp(now.v[i].id, vm->blocks.v[i].id) == 0;
	vm_free_blocks(&now);
	return same ? 0 : vm_fail(vm, -EAGAIN, "memory was plugged or unplugged meanwhile; the next link has it");
}

/* ---- what a link says of it ---- */

static void print_tag(FILE *f, const char *key, const char *value)
{
	fprintf(f, "%s=%s", key, value);
	putc(0, f);
}

static int make_tags(struct vm *vm)
{
	FILE *f;
	size_t i;

	free(vm->tags);
	vm->tags = NULL;
	f = open_memstream(&vm->tags, &vm->tags_len);
	if (!f)
		return vm_fail(vm, -ENOMEM, "out of memory");
	print_tag(f, "qemu.version", vm->version);
	print_tag(f, "qemu.machine", vm->machine);
	print_tag(f, "qemu.name", vm->name);
	print_tag(f, "qemu.uuid", vm->uuid);
	print_tag(f, "qemu.cwd", vm->cwd);
	print_tag(f, "qemu.running", vm->running ? "1" : "0");
	for (i = 0; i < vm->blocks.nr; i++) {
		const struct vm_block *b = &vm->blocks.v[i];

		if (!b->shared)
			continue;
		fprintf(f, "qemu.block=%s %" PRIx64 "-%" PRIx64 " %" PRIu64, b->id, b->start, b->start + b->size, b->size);
		putc(0, f);
	}
	if (vm->o->with_disks)
		vm_tag_disks(vm, f);
	return fclose(f) ? vm_fail(vm, -ENOMEM, "out of memory") : 0;
}

/* ---- device state ---- */

static int no_migration(struct vm *vm)
{
	char *status;
	bool busy;
	int err;

	err = call_string(vm, "query-migrate", NULL, "status", &status);
	if (err)
		return err;
	busy = *status && strcmp(status, "none") != 0 && strcmp(status, "completed") != 0 && strcmp(status, "failed") != 0 &&
	       strcmp(status, "cancelled") != 0;
	free(status);
	return busy ? vm_fail(vm, -EBUSY, "the machine is being migrated; try again after that") : 0;
}

/* A migration so set would wait for somebody, or for other channels, while the guest stands still. */
static int check_capabilities(struct vm *vm, const json_t *caps, int *ignore_shared)
{
	static const char *const others[] = { "pause-before-switchover", "multifd", "background-snapshot", "return-path", "postcopy-ram",
					      "x-colo", "mapped-ram", "rdma-pin-all" };
	const json_t *cap;
	size_t i, j;

	*ignore_shared = 0;
	json_array_foreach((json_t *)caps, i, cap) {
		const char *name = json_string_value(json_object_get(cap, "capability"));

		if (!name || !json_is_true(json_object_get(cap, "state")))
			continue;
		if (strcmp(name, "x-ignore-shared") == 0)
			*ignore_shared = 1;
		for (j = 0; j < ARRAY_SIZE(others); j++)
			if (strcmp(name, others[j]) == 0)
				return vm_fail(vm, -EBUSY, "the migration capability '%s' is on, and must be off to save the device state", name);
	}
	return 0;
}

static int change_limits(struct vm *vm)
{
	struct guard_state *s = guard_state(vm->guard);
	const char *tls, *mode;
	json_t *ret;
	int err;

	err = call(vm, "query-migrate-parameters", NULL, &ret);
	if (err)
		return err;
	s->bandwidth = json_integer_value(json_object_get(ret, "max-bandwidth"));
	tls = json_string_value(json_object_get(ret, "tls-creds"));
	mode = json_string_value(json_object_get(ret, "mode"));
	if ((tls && *tls) || (mode && strcmp(mode, "normal") != 0))
		err = vm_fail(vm, -EBUSY, "migrations are set to use TLS or a mode of their own, with which the device state can't be saved");
	json_decref(ret);
	if (err)
		return err;
	err = call(vm, "query-migrate-capabilities", NULL, &ret);
	if (err)
		return err;
	err = check_capabilities(vm, ret, &s->ignore_shared);
	json_decref(ret);
	if (!err)
		err = no_migration(vm);
	if (err)
		return err;
	s->tuned = 1;
	err = call(vm, "migrate-set-capabilities", json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "x-ignore-shared", "state", 1), NULL);
	if (!err)
		err = call(vm, "migrate-set-parameters", json_pack("{s:I}", "max-bandwidth", (json_int_t)NO_LIMIT), NULL);
	return err;
}

/* QEMU gets the end of a pipe that it will write its state to. */
static int open_state(struct vm *vm)
{
	int fds[2], err;

	if (pipe2(fds, O_CLOEXEC))
		return vm_fail(vm, -errno, "no pipe for the device state: %s", strerror(errno));
	fcntl(fds[0], F_SETPIPE_SZ, STATE_PIPE_BYTES);
	fcntl(fds[0], F_SETFL, O_NONBLOCK);
	err = qmp_call(&vm->q, "getfd", json_pack("{s:s}", "fdname", "wpsnap"), NULL, fds[1], QMP_TIMEOUT_MS);
	close(fds[1]);
	if (err) {
		close(fds[0]);
		return vm_fail(vm, err, "QEMU does not take a descriptor: %s", err == -EREMOTEIO ? vm->q.said : wpt_strerror(err));
	}
	vm->fd_given = true;
	vm->state_fd = fds[0];
	vm->state_len = 0;
	return 0;
}

static void close_state(struct vm *vm)
{
	if (vm->state_fd >= 0)
		close(vm->state_fd);
	vm->state_fd = -1;
}

static int grow_state(struct vm *vm)
{
	size_t room = vm->state_room ? vm->state_room * 2 : (size_t)STATE_PIPE_BYTES;
	char *state;

	if (vm->state_len > device_limit(vm))
		return vm_fail(vm, -EFBIG,
			    "the device state is larger than --device-limit: memory that is not shared is in it, from QEMU 8.1 on also what has no "
			    "file (use memory-backend-file)");
	if (vm->state_len < vm->state_room)
		return 0;
	state = realloc(vm->state, room);
	if (!state)
		return vm_fail(vm, -ENOMEM, "out of memory for the device state");
	vm->state = state;
	vm->state_room = room;
	return 0;
}

/* Until QEMU closes its end. */
static int read_state(struct vm *vm)
{
	struct pollfd fd = { .fd = vm->state_fd, .events = POLLIN };
	ssize_t n;
	int err;

	for (;;) {
		err = grow_state(vm);
		if (err)
			return err;
		n = read(vm->state_fd, vm->state + vm->state_len, vm->state_room - vm->state_len);
		if (n == 0)
			return 0;
		if (n > 0) {
			vm->state_len += (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return vm_fail(vm, -errno, "the device state can't be read: %s", strerror(errno));
		if (poll(&fd, 1, (int)DEVICE_TIMEOUT_MS) == 0)
			return vm_fail(vm, -ETIMEDOUT, "QEMU does not write its device state");
	}
}

/* The pipe was closed: the migration is over, or about to be. */
static int check_migration(struct vm *vm)
{
	uint64_t begin = now_ns();
	const char *words;
	char *status;
	json_t *ret;
	int err;

	for (;;) {
		err = call(vm, "query-migrate", NULL, &ret);
		if (err)
			return err;
		status = strdup(json_string_value(json_object_get(ret, "status")) ?: "none");
		words = json_string_value(json_object_get(ret, "error-desc"));
		if (!status)
			err = vm_fail(vm, -ENOMEM, "out of memory");
		else if (strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0 || strcmp(status, "none") == 0)
			err = vm_fail(vm, -EREMOTEIO, "QEMU could not save its device state: %s", words ? words : status);
		else if (strcmp(status, "completed") != 0 && now_ns() - begin > (uint64_t)DEVICE_TIMEOUT_MS * 1000000)
			err = vm_fail(vm, -ETIMEDOUT, "QEMU does not end saving its device state");
		if (err || strcmp(status, "completed") == 0) {
			free(status);
			json_decref(ret);
			return err;
		}
		free(status);
		json_decref(ret);
		usleep(500);
	}
}

static int save_state(struct vm *vm)
{
	uint64_t begin = now_ns();
	int err;

	guard_state(vm->guard)->migrating = 1;
	err = call(vm, "migrate", json_pack("{s:s}", "uri", "fd:wpsnap"), NULL);
	vm->fd_given = err == -EREMOTEIO;
	if (!err)
		err = read_state(vm);
	if (!err)
		err = check_migration(vm);
	if (!err) {
		guard_state(vm->guard)->migrating = 0;
		err = wait_status(vm, "postmigrate", "finish-migrate");
	}
	vm->device_ns = now_ns() - begin;
	close_state(vm);
	return err;
}

/* ---- the pause ---- */

static int list_disks(struct vm *vm)
{
	int err;

	vm_free_disks(&vm->disks);
	err = vm_list_disks(vm, &vm->disks);
	return err ? err : vm_check_disks(vm, &vm->disks);
}

/* Everything that need not be done while the guest stands still; and at once before that, so that nobody else's migration is affected. */
static int before_stop(struct vm *vm)
{
	int err;

	err = query_running(vm, &vm->running);
	vm->nr_resumed = vm->q.nr_resumed;
	vm->nr_reset = vm->q.nr_reset;
	if (!err)
		err = refuse_vfio(vm);
	if (!err)
		err = blocks_unchanged(vm);
	if (!err && vm->o->with_disks)
		err = list_disks(vm);
	if (!err)
		err = change_limits(vm);
	return err ? err : open_state(vm);
}

/* A guest that stopped by itself, or that somebody else stopped, at this moment is not ours to let go on. */
static int stop_guest(struct vm *vm)
{
	uint64_t nr_stopped = vm->q.nr_stopped;
	int err;

	guard_state(vm->guard)->stopped = 1;
	err = call(vm, "stop", NULL, NULL);
	if (!err)
		err = wait_status(vm, "paused", NULL);
	if (!err && vm->q.nr_stopped == nr_stopped)
		err = vm_fail(vm, -EAGAIN, "somebody else stopped the guest at this moment");
	if (err == -EAGAIN)
		guard_state(vm->guard)->stopped = 0;
	return err;
}

/* Ctrl-Z must not leave the guest standing still. */
static void block_suspend(int how)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTSTP);
	sigaddset(&set, SIGTTIN);
	sigaddset(&set, SIGTTOU);
	pthread_sigmask(how, &set, NULL);
}

static int quiesce(void *arg)
{
	struct vm *vm = arg;
	int err;

	block_suspend(SIG_BLOCK);
	err = before_stop(vm);
	vm->stop_begun_ns = now_ns();
	if (!err && vm->running)
		err = stop_guest(vm);
	if (!err && vm->o->with_disks)
		err = vm_take_disks(vm);
	if (!err)
		err = save_state(vm);
	if (!err)
		err = make_tags(vm);
	if (err) {
		vm_finish(vm);
		block_suspend(SIG_UNBLOCK);
		return err;
	}
	vm->sections[0].data = vm->state;
	vm->sections[0].len = vm->state_len;
	vm->sections[1].data = vm->tags;
	vm->sections[1].len = vm->tags_len;
	return 0;
}

/* Whoever else has a monitor may have let the guest go on: then this is not one instant. */
static int paused(void *arg)
{
	struct vm *vm = arg;
	int err;

	if (interrupt_asked())
		return -ECANCELED;
	err = wait_status(vm, "postmigrate", NULL);
	if (!err && (vm->q.nr_resumed != vm->nr_resumed || vm->q.nr_reset != vm->nr_reset))
		err = vm_fail(vm, -EAGAIN, "somebody else let the guest go on or reset it during the pause");
	return err;
}

static void resume(void *arg)
{
	struct vm *vm = arg;

	if (vm->running && !call(vm, "cont", NULL, NULL)) {
		guard_state(vm->guard)->stopped = 0;
		vm->stopped_ns = vm->q.resumed_us > vm->q.stopped_us ? (vm->q.resumed_us - vm->q.stopped_us) * 1000 : now_ns() - vm->stop_begun_ns;
	}
	vm_finish(vm);
	block_suspend(SIG_UNBLOCK);
}

int vm_finish(struct vm *vm)
{
	struct guard_state *s = guard_state(vm->guard);
	int err;

	if (vm->handed) {
		vm->handed = !guard_is_idle(s);
		return vm->handed ? -EBUSY : 0;
	}
	close_state(vm);
	if (vm->fd_given && vm->q.fd >= 0)
		qmp_call(&vm->q, "closefd", json_pack("{s:s}", "fdname", "wpsnap"), NULL, -1, QMP_TIMEOUT_MS);
	vm->fd_given = false;
	err = guard_undo(&vm->q, vm->path, s, UNDO_TIMEOUT_MS);
	if (!err)
		return 0;
	if (s->stopped)
		complain("%s: the guest of %s still stands still: %s; it is tried on, and 'cont' in QEMU's monitor lets it go on", vm->o->cmd->name,
			 vm->path, err == -EREMOTEIO ? vm->q.said : wpt_strerror(err));
	qmp_close(&vm->q);
	guard_wake(vm->guard);
	vm->handed = true;
	return err;
}

void vm_taken(struct vm *vm, bool complete)
{
	if (complete)
		vm->disks_taken = false;
	else
		vm_drop_disks(vm);
}

void vm_take_options(struct vm *vm, struct wpt_take_options *to)
{
	vm->why[0] = 0;
	memset(vm->sections, 0, sizeof(vm->sections));
	vm->sections[0].type = WPT_SECTION_DEVICE;
	vm->sections[1].type = WPT_SECTION_TAGS;
	to->sections = vm->sections;
	to->nr_sections = ARRAY_SIZE(vm->sections);
	to->quiesce = quiesce;
	to->paused = paused;
	to->resume = resume;
	to->arg = vm;
}

int vm_prepare(struct vm *vm, struct wpt_tracker *t)
{
	int err;

	vm->why[0] = 0;
	if (vm_finish(vm))
		return vm_fail(vm, -EAGAIN, "QEMU has not been brought back to where it was before the last link; that is tried on");
	if (vm->q.fd < 0) {
		err = qmp_open(&vm->q, vm->path);
		if (err)
			return vm_fail(vm, err, "QEMU's monitor can't be reached again: %s", wpt_strerror(err));
	}
	err = vm_check_devices(vm, false);
	return err ? err : vm_ranges(vm, t);
}

/* ---- opening ---- */

static int explain_connect(struct vm *vm, int err)
{
	const struct opts *o = vm->o;

	if (err == -ETIME)
		return report(-EBUSY, "a monitor serves one client: give QEMU one more, -qmp unix:PATH,server=on,wait=off", "%s: %s", o->cmd->name,
			      vm->path);
	if (err == -ENOENT || err == -ECONNREFUSED || err == -ENOTSOCK)
		return report(err, "it must be the socket of -qmp unix:PATH,server=on,wait=off of a QEMU that runs", "%s: no monitor at %s",
			      o->cmd->name, vm->path);
	if (err == -EPROTO)
		return report(err, "it must be the socket of -qmp, not of -monitor or a serial line", "%s: %s is not a QMP monitor", o->cmd->name,
			      vm->path);
	return report(err, NULL, "%s: cannot connect to %s", o->cmd->name, vm->path);
}

static int find_process(struct vm *vm)
{
	char path[64], dir[4096];
	ssize_t n;

	vm->pid = vm->o->pid ? vm->o->pid : vm->q.peer;
	if (vm->pid <= 0)
		return vm_fail(vm, -ESRCH, "QEMU's process is not known; give --pid");
	guard_state(vm->guard)->qemu = vm->pid;
	guard_state(vm->guard)->sure = !vm->o->pid;
	snprintf(path, sizeof(path), "/proc/%d/cwd", (int)vm->pid);
	n = readlink(path, dir, sizeof(dir) - 1);
	vm->cwd = strndup(dir, n > 0 ? (size_t)n : 0);
	return vm->cwd ? 0 : vm_fail(vm, -ENOMEM, "out of memory");
}

static int learn(struct vm *vm)
{
	int err;

	err = find_process(vm);
	if (!err && vm_lazy_await(vm->o, vm->pid) < 0)
		err = vm_fail(vm, -ECANCELED, "ended by a signal");
	if (!err)
		err = read_version(vm);
	if (!err)
		err = call_string(vm, "qom-get", json_pack("{s:s, s:s}", "path", "/machine", "property", "type"), NULL, &vm->machine);
	if (!err)
		err = call_string(vm, "query-name", NULL, "name", &vm->name);
	if (!err)
		err = call_string(vm, "query-uuid", NULL, "UUID", &vm->uuid);
	if (!err)
		err = query_running(vm, &vm->running);
	if (!err)
		err = refuse_vfio(vm);
	if (!err)
		err = vm_check_devices(vm, true);
	if (!err)
		err = vm_list_disks(vm, &vm->disks);
	return err ? err : vm_check_disks(vm, &vm->disks);
}

int vm_open(struct vm *vm, const struct opts *o, const char *path)
{
	int err;

	memset(vm, 0, sizeof(*vm));
	vm->o = o;
	vm->path = path;
	vm->state_fd = -1;
	err = qmp_open(&vm->q, path);
	/* It does not answer while it waits for memory. */
	if ((err == -ETIME || err == -ETIMEDOUT) && vm_lazy_await(o, o->pid ? o->pid : vm->q.peer) > 0)
		err = qmp_open(&vm->q, path);
	if (err)
		return explain_connect(vm, err);
	err = guard_start(&vm->guard, path, vm->q.fd);
	if (err)
		vm_fail(vm, err, "no guard can be started: %s", wpt_strerror(err));
	else
		err = learn(vm);
	if (err) {
		complain("%s: %s: %s", o->cmd->name, path, vm->why);
		vm_close(vm);
		return exit_code_of(err);
	}
	return EXIT_OK;
}

void vm_close(struct vm *vm)
{
	if (vm->guard)
		vm_finish(vm);
	guard_end(vm->guard);
	qmp_close(&vm->q);
	vm_free_blocks(&vm->blocks);
	vm_free_disks(&vm->disks);
	free(vm->version);
	free(vm->machine);
	free(vm->name);
	free(vm->uuid);
	free(vm->cwd);
	free(vm->state);
	free(vm->tags);
	memset(vm, 0, sizeof(*vm));
	vm->q.fd = vm->state_fd = -1;
}
