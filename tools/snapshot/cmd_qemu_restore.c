/* SPDX-License-Identifier: MIT */
/*
 * wpsnap qemu restore: starts QEMU so that it waits for a migration, writes the guest's memory into its process, sends it the device state, and lets
 * the guest run. QEMU is our child, and we stay until it ends.
 */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define MONITOR "wpsnap-monitor"
#define LOAD_TIMEOUT_MS 120000u
#define START_TIMEOUT_MS 300000u   /* memory that is preallocated comes before the monitor */

/* A machine as a link describes it. */
struct saved {
	char *tags;
	size_t tags_len;
	const char *version, *machine, *cwd;
	bool running;
	struct vm_blocks blocks;
	const char **disks;        /* "SNAPSHOT DEVICE FILE" */
	size_t nr_disks;
	char *state;
	size_t state_len;
};

struct restore {
	const struct opts *o;
	struct wpt_chain *c;
	struct saved saved;
	char **argv;               /* of QEMU, ends with NULL */
	size_t argc;
	char *cmdline, *monitor;
	struct qmp q;
	pid_t pid;
	int pidfd;
	struct vm_images *images;  /* with --with-disks */
	struct events e;
	sigset_t mask;             /* as it was */
	struct vm_lazy *lazy;      /* memory that has not come yet */
};

static int __attribute__((format(printf, 2, 3))) refuse(const struct restore *r, const char *format, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	complain("%s: %s", r->o->cmd->name, text);
	return EXIT_FAILED;
}

static int no_memory(const struct restore *r)
{
	return refuse(r, "out of memory");
}

/* ---- the link ---- */

/* "ID START-END SIZE" */
static int parse_block(struct saved *s, const char *text)
{
	struct vm_block b = { 0 }, *v;
	uint64_t end;
	char id[256];

	if (sscanf(text, "%255s %" SCNx64 "-%" SCNx64 " %" SCNu64, id, &b.start, &end, &b.size) != 4 || end < b.start || end - b.start != b.size)
		return -EINVAL;
	b.shared = true;
	b.id = strdup(id);
	v = b.id ? reallocarray(s->blocks.v, s->blocks.nr + 1, sizeof(*v)) : NULL;
	if (!v) {
		free(b.id);
		return -ENOMEM;
	}
	s->blocks.v = v;
	v[s->blocks.nr++] = b;
	return 0;
}

static const char *value_of(const char *tag, const char *key)
{
	size_t len = strlen(key);

	return strncmp(tag, key, len) == 0 && tag[len] == '=' ? tag + len + 1 : NULL;
}

static int add_disk(struct saved *s, const char *text)
{
	const char **v = reallocarray(s->disks, s->nr_disks + 1, sizeof(*v));
	const char *device = strchr(text, ' ');

	if (!v)
		return -ENOMEM;
	s->disks = v;
	if (!device || !strchr(device + 1, ' '))
		return -EINVAL;
	v[s->nr_disks++] = text;
	return 0;
}

static int parse_tags(struct saved *s)
{
	const char *p, *end = s->tags + s->tags_len, *value;
	int err = 0;

	if (!s->tags_len || end[-1])
		return -EINVAL;
	for (p = s->tags; p < end && !err; p += strlen(p) + 1) {
		if ((value = value_of(p, "qemu.version")))
			s->version = value;
		else if ((value = value_of(p, "qemu.machine")))
			s->machine = value;
		else if ((value = value_of(p, "qemu.cwd")))
			s->cwd = value;
		else if ((value = value_of(p, "qemu.running")))
			s->running = *value == '1';
		else if ((value = value_of(p, "qemu.block")))
			err = parse_block(s, value);
		else if ((value = value_of(p, "qemu.disk")))
			err = add_disk(s, value);
	}
	return err || (s->version && s->machine && s->blocks.nr) ? err : -EINVAL;
}

/* All of a block must be in the link: what is not would silently be zero. */
static bool is_covered(struct wpt_chain *c, const struct vm_block *b)
{
	struct wpt_range_info info = { .size = sizeof(info) };
	uint64_t covered = 0, start, end;
	uint32_t i;

	for (i = 0; wpt_chain_range(c, i, &info) == 0; i++) {
		start = info.start > b->start ? info.start : b->start;
		end = info.end < b->start + b->size ? info.end : b->start + b->size;
		if (start < end && !info.skipped)
			covered += end - start;
	}
	return covered == b->size;
}

static int read_link(struct restore *r)
{
	const char *chain = r->o->args[0];
	struct saved *s = &r->saved;
	void *data;
	size_t i;
	int err;

	err = wpt_chain_open(&r->c, chain);
	if (err)
		return report(err, next_read(err), "%s: cannot open %s", r->o->cmd->name, chain);
	wpt_chain_set_threads(r->c, r->o->nr_threads);
	err = wpt_chain_section(r->c, WPT_SECTION_DEVICE, &data, &s->state_len);
	if (err == -ENOENT)
		return refuse(r, "%s has no device state: it was not taken by wpsnap qemu; restore writes its memory to a file", chain);
	if (err)
		return report(err, next_read(err), "%s: cannot read %s", r->o->cmd->name, chain);
	s->state = data;
	err = wpt_chain_section(r->c, WPT_SECTION_TAGS, &data, &s->tags_len);
	if (!err) {
		s->tags = data;
		err = parse_tags(s);
	}
	if (err)
		return refuse(r, "%s does not say what machine it is of: %s", chain, wpt_strerror(err));
	for (i = 0; i < s->blocks.nr; i++)
		if (!is_covered(r->c, &s->blocks.v[i]))
			return refuse(r, "%s does not have all of the memory '%s'", chain, s->blocks.v[i].id);
	return EXIT_OK;
}

/* ---- the command line ---- */

static int add_arg(struct restore *r, const char *arg)
{
	char **v = reallocarray(r->argv, r->argc + 2, sizeof(*v));

	if (!v)
		return no_memory(r);
	r->argv = v;
	v[r->argc++] = (char *)arg;
	v[r->argc] = NULL;
	return EXIT_OK;
}

static bool is_option(const char *arg, const char *name)
{
	if (*arg != '-')
		return false;
	arg += arg[1] == '-' ? 2 : 1;
	return strcmp(arg, name) == 0;
}

/* An option and its value that a restore gives by itself; the stored command line may be that of a machine that was restored. */
static bool is_ours(const char *arg, const char *value)
{
	if (is_option(arg, "incoming"))
		return true;
	if (is_option(arg, "chardev"))
		return strncmp(value, "socket,id=" MONITOR ",", sizeof("socket,id=" MONITOR ",") - 1) == 0;
	return is_option(arg, "mon") && strcmp(value, "chardev=" MONITOR ",mode=control") == 0;
}

static int add_args(struct restore *r, char **args, size_t nr)
{
	size_t i;
	int code = EXIT_OK;

	for (i = 0; i < nr && !code; i++) {
		if (is_option(args[i], "daemonize"))
			return refuse(r, "QEMU can't have -daemonize: wpsnap waits for it; put wpsnap into the background instead");
		if (i + 1 < nr && is_ours(args[i], args[i + 1]))
			i++;
		else
			code = add_arg(r, args[i]);
	}
	return code;
}

static int stored_args(struct restore *r)
{
	char *p, **v = NULL;
	size_t len, nr = 0;
	void *data;
	int code;

	if (wpt_chain_section(r->c, WPT_SECTION_CMDLINE, &data, &len) || !len) {
		return usage_error(r->o->cmd, "%s has no command line stored (save and watch do so with --cmdline); give QEMU's after --",
				   r->o->args[0]);
	}
	r->cmdline = data;
	r->cmdline[len - 1] = 0;
	v = calloc(len, sizeof(*v));
	if (!v)
		return no_memory(r);
	for (p = r->cmdline; p < r->cmdline + len; p += strlen(p) + 1)
		v[nr++] = p;
	code = add_args(r, v, nr);
	free(v);
	return code;
}

static int make_args(struct restore *r, int monitor)
{
	int code;

	code = r->o->nr_args > 1 ? add_args(r, r->o->args + 1, (size_t)r->o->nr_args - 1) : stored_args(r);
	if (code)
		return code;
	if (asprintf(&r->monitor, "socket,id=" MONITOR ",fd=%d", monitor) < 0)
		return no_memory(r);
	if (add_arg(r, "-chardev") || add_arg(r, r->monitor) || add_arg(r, "-mon") || add_arg(r, "chardev=" MONITOR ",mode=control") ||
	    add_arg(r, "-incoming") || add_arg(r, "defer") || add_arg(r, "-S"))
		return EXIT_FAILED;
	return EXIT_OK;
}

/* ---- QEMU ---- */

static void __attribute__((noreturn)) exec_qemu(struct restore *r, int monitor)
{
	fcntl(monitor, F_SETFD, 0);
	signal(SIGPIPE, SIG_DFL);
	sigprocmask(SIG_SETMASK, &r->mask, NULL);
	if (r->cmdline && r->saved.cwd && *r->saved.cwd && chdir(r->saved.cwd)) {
		complain("%s: QEMU's folder %s can't be entered: %s", r->o->cmd->name, r->saved.cwd, strerror(errno));
		_exit(127);
	}
	execvp(r->argv[0], r->argv);
	complain("%s: cannot execute '%s': %s", r->o->cmd->name, r->argv[0], strerror(errno));
	_exit(127);
}

/* What it waits for in the kernel is let go between its end and its being gone. */
static void reap_qemu(struct restore *r, int *status)
{
	kill(r->pid, SIGKILL);
	vm_lazy_close(r->lazy);
	r->lazy = NULL;
	waitpid(r->pid, status, 0);
	r->pid = 0;
}

/* QEMU ended when it should not have: it has said why. */
static int lost_qemu(struct restore *r, const char *when)
{
	int status;

	qmp_close(&r->q);
	if (waitpid(r->pid, &status, WNOHANG) != r->pid)
		reap_qemu(r, &status);
	r->pid = 0;
	if (WIFEXITED(status))
		return refuse(r, "QEMU ended with exit code %d %s", WEXITSTATUS(status), when);
	return refuse(r, "QEMU was killed by signal %d %s", WTERMSIG(status), when);
}

static int start_qemu(struct restore *r)
{
	int fds[2], code, err;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds))
		return report(-errno, NULL, "%s: cannot make a monitor", r->o->cmd->name);
	code = make_args(r, fds[1]);
	if (!code && r->e.signals < 0)
		code = events_open(&r->e, r->o->cmd, &r->mask);
	if (code) {
		close(fds[0]);
		close(fds[1]);
		return code;
	}
	r->pid = fork();
	if (r->pid == 0)
		exec_qemu(r, fds[1]);
	close(fds[1]);
	if (r->pid < 0) {
		close(fds[0]);
		r->pid = 0;
		return report(-errno, NULL, "%s: cannot start QEMU", r->o->cmd->name);
	}
	r->pidfd = (int)syscall(SYS_pidfd_open, r->pid, 0);
	r->e.pass_on = r->pidfd;
	err = qmp_open_fd(&r->q, fds[0], START_TIMEOUT_MS);
	if (err == -ECONNRESET)
		return lost_qemu(r, "when it was started");
	if (err)
		return report(err, NULL, "%s: QEMU's monitor does not answer", r->o->cmd->name);
	return EXIT_OK;
}

static int call(struct restore *r, const char *command, json_t *args, json_t **out, int pass)
{
	int err = qmp_call(&r->q, command, args, out, pass, QMP_TIMEOUT_MS);

	if (err == -EREMOTEIO)
		return refuse(r, "QEMU refuses '%s': %s", command, r->q.said);
	if (err == -ECONNRESET)
		return lost_qemu(r, "before the guest was restored");
	return err ? report(err, NULL, "%s: QEMU's monitor does not answer '%s'", r->o->cmd->name, command) : EXIT_OK;
}

static void end_qemu(struct restore *r)
{
	qmp_close(&r->q);
	if (r->pid > 0)
		reap_qemu(r, NULL);
	if (r->pidfd >= 0)
		close(r->pidfd);
	r->pidfd = -1;
	free(r->monitor);
	r->monitor = NULL;
	r->argc = 0;
}

/* ---- is it the same machine? ---- */

static int check_version(struct restore *r)
{
	json_int_t major = 0, minor = 0;
	int old_major = 0, old_minor = 0, code;
	json_t *ret;

	code = call(r, "query-version", NULL, &ret, -1);
	if (code)
		return code;
	json_unpack(ret, "{s:{s:I, s:I}}", "qemu", "major", &major, "minor", &minor);
	json_decref(ret);
	if (sscanf(r->saved.version, "%d.%d", &old_major, &old_minor) != 2 || major < old_major || (major == old_major && minor < old_minor))
		return refuse(r, "this QEMU (%d.%d) is older than the one that the snapshot is of (%s)", (int)major, (int)minor, r->saved.version);
	return EXIT_OK;
}

static int check_machine(struct restore *r)
{
	const char *type;
	json_t *ret;
	int code;

	code = call(r, "qom-get", json_pack("{s:s, s:s}", "path", "/machine", "property", "type"), &ret, -1);
	if (code)
		return code;
	type = json_string_value(ret);
	if (!type || strcmp(type, r->saved.machine) != 0)
		code = refuse(r, "the machine's type is %s, in the snapshot %s; give QEMU -machine %.*s", type ? type : "unknown", r->saved.machine,
			      (int)(strlen(r->saved.machine) - (strstr(r->saved.machine, "-machine") ? 8 : 0)), r->saved.machine);
	json_decref(ret);
	return code;
}

static int check_blocks(struct restore *r, const struct vm_blocks *now)
{
	char want[UNITS_TEXT], have[UNITS_TEXT];
	const struct vm_block *a, *b;
	size_t i, j, nr = 0;

	for (i = 0; i < r->saved.blocks.nr; i++) {
		a = &r->saved.blocks.v[i];
		for (j = 0, b = NULL; j < now->nr && !b; j++)
			b = strcmp(now->v[j].id, a->id) == 0 ? &now->v[j] : NULL;
		if (!b)
			return refuse(r, "the machine has no memory '%s', of which the snapshot has %s; the backend needs that id", a->id,
				      format_size(want, a->size));
		if (b->size != a->size)
			return refuse(r, "the memory '%s' has %s, in the snapshot %s", a->id, format_size(have, b->size), format_size(want, a->size));
		if (!b->shared)
			return refuse(r, "the memory '%s' is not shared, as it was; give its backend share=on", a->id);
	}
	for (j = 0; j < now->nr; j++)
		nr += now->v[j].shared;
	return nr == r->saved.blocks.nr ? EXIT_OK : refuse(r, "the machine has more shared memory than the snapshot");
}

/* ---- its memory ---- */

static int fill_block(struct restore *r, int mem, const struct vm_block *from, const struct vm_block *to)
{
	struct progress p;
	uint64_t unreadable = 0;
	int err;

	progress_begin(&p, "restore", r->o->quiet);
	err = wpt_chain_restore_fd(r->c, from->start, from->start + from->size, mem, to->start, &unreadable, progress_update, &p);
	progress_end(&p, err);
	if (err)
		return report(err, next_read(err), "%s: the memory '%s' can't be restored", r->o->cmd->name, from->id);
	if (unreadable)
		return refuse(r, "%" PRIu64 " pages of the memory '%s' could not be read when the snapshot was taken", unreadable, from->id);
	return EXIT_OK;
}

/* The machine's own of that name. */
static const struct vm_block *block_now(const struct vm_blocks *now, const char *id)
{
	size_t j;

	for (j = 0; strcmp(now->v[j].id, id) != 0; j++)
		;
	return &now->v[j];
}

static int fill_now(struct restore *r, const struct vm_blocks *now)
{
	const struct vm_block *b, *to;
	char path[64];
	size_t i;
	int mem, code = EXIT_OK;

	snprintf(path, sizeof(path), "/proc/%d/mem", (int)r->pid);
	mem = open(path, O_RDWR | O_CLOEXEC);
	if (mem < 0)
		return report(-errno, NULL, "%s: QEMU's memory can't be written", r->o->cmd->name);
	for (i = 0; i < r->saved.blocks.nr && !code; i++) {
		b = &r->saved.blocks.v[i];
		to = block_now(now, b->id);
		code = vm_clear_block(r->o, r->pid, to);
		if (!code)
			code = fill_block(r, mem, b, to);
	}
	close(mem);
	return code;
}

/* A back-end is a process of its own that maps the memory: what is missing there would be zero to it, and then to all. */
static int check_no_backends(struct restore *r)
{
	char name[128];
	int err = vm_find_backend(&r->q, name);

	if (err)
		return report(err, NULL, "%s: QEMU's monitor does not answer", r->o->cmd->name);
	return *name ? refuse(r, "the back-end of %s maps memory that has not come yet; restore it without --lazy", name) : EXIT_OK;
}

/* QEMU does not answer while it waits for memory, which may take as long as it likes, but for who ends wpsnap. */
static bool waits_for_memory(void *arg)
{
	const struct restore *r = arg;
	sigset_t pending;

	sigpending(&pending);
	return vm_lazy_fails(r->lazy) && !sigismember(&pending, SIGINT) && !sigismember(&pending, SIGTERM);
}

/* From when a block is added, whoever touches what is missing waits: so nothing gets between the emptying and the filling. */
static int fill_lazily(struct restore *r, const struct vm_blocks *now)
{
	const struct vm_block *b;
	size_t i;
	int code;

	code = check_no_backends(r);
	if (!code)
		code = vm_lazy_open(&r->lazy, r->o, r->c, r->pid, r->pidfd);
	for (i = 0; i < r->saved.blocks.nr && !code; i++) {
		b = &r->saved.blocks.v[i];
		code = vm_lazy_add(r->lazy, b, block_now(now, b->id));
		if (!code)
			code = vm_clear_block(r->o, r->pid, block_now(now, b->id));
	}
	if (!code)
		code = vm_lazy_start(r->lazy);
	if (!code) {
		r->q.wait_on = waits_for_memory;
		r->q.wait_arg = r;
	}
	return code;
}

static int fill_memory(struct restore *r)
{
	struct vm_blocks now;
	char why[512];
	int code;

	if (vm_list_blocks(&r->q, r->pid, &now, why))
		return refuse(r, "%s", why);
	code = check_blocks(r, &now);
	if (!code)
		code = (r->o->lazy ? fill_lazily : fill_now)(r, &now);
	vm_free_blocks(&now);
	return code;
}

/* ---- its devices ---- */

static int ignore_shared(struct restore *r, int on)
{
	json_t *args = json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "x-ignore-shared", "state", on);

	return call(r, "migrate-set-capabilities", args, NULL, -1);
}

static int wait_loaded(struct restore *r)
{
	uint64_t begin = now_ns();
	const char *status;
	bool over = false;
	json_t *ret;
	int code;

	while (!over) {
		code = call(r, "query-migrate", NULL, &ret, -1);
		if (code)
			return code;
		status = json_string_value(json_object_get(ret, "status"));
		over = status && strcmp(status, "completed") == 0;
		if (status && strcmp(status, "failed") == 0)
			code = refuse(r, "QEMU could not load the device state; is it the same machine, with the same devices?");
		json_decref(ret);
		if (code)
			return code;
		if (r->lazy && waits_for_memory(r))
			begin = now_ns();
		if (now_ns() - begin > (uint64_t)LOAD_TIMEOUT_MS * 1000000)
			return refuse(r, "QEMU does not end loading the device state");
		if (!over)
			usleep(1000);
	}
	return ignore_shared(r, 0);
}

struct feeder {
	const char *data;
	size_t left;
	int fd;
};

/* Ends when QEMU has read all, or has gone. */
static void *feed(void *arg)
{
	struct feeder *f = arg;
	ssize_t n;

	while (f->left && ((n = send(f->fd, f->data, f->left, MSG_NOSIGNAL)) > 0 || (n < 0 && errno == EINTR))) {
		if (n > 0) {
			f->data += n;
			f->left -= (size_t)n;
		}
	}
	close(f->fd);
	return NULL;
}

static int load(struct restore *r, int fd)
{
	int code;

	code = ignore_shared(r, 1);
	if (!code)
		code = call(r, "getfd", json_pack("{s:s}", "fdname", "wpsnap"), NULL, fd);
	close(fd);
	if (!code)
		code = call(r, "migrate-incoming", json_pack("{s:s}", "uri", "fd:wpsnap"), NULL, -1);
	return code ? code : wait_loaded(r);
}

static int send_state(struct restore *r)
{
	struct feeder f = { .data = r->saved.state, .left = r->saved.state_len };
	pthread_t thread;
	int fds[2], err, code;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds))
		return report(-errno, NULL, "%s: no socket for the device state", r->o->cmd->name);
	f.fd = fds[0];
	err = pthread_create(&thread, NULL, feed, &f);
	if (err) {
		close(fds[0]);
		close(fds[1]);
		return report(-err, NULL, "%s: no thread for the device state", r->o->cmd->name);
	}
	code = load(r, fds[1]);
	/* If QEMU did not read all, nobody will. */
	if (code)
		end_qemu(r);
	pthread_join(thread, NULL);
	return code;
}

/* ---- its disks ---- */

static int check_disks(struct restore *r)
{
	const char *disk, *device;
	size_t i;

	if (r->o->with_disks && !r->saved.nr_disks)
		return refuse(r, "%s has no snapshots of disks; it was taken without --with-disks", r->o->args[0]);
	for (i = 0; i < r->saved.nr_disks && !r->o->with_disks; i++) {
		disk = r->saved.disks[i];
		device = strchr(disk, ' ') + 1;
		complain("%s: the guest destroys what is on its disk %s unless that is as it was: --with-disks, or qemu-img snapshot -a %.*s",
			 r->o->cmd->name, strchr(device, ' ') + 1, (int)(device - 1 - disk), disk);
	}
	if (!r->o->with_disks)
		return EXIT_OK;
	return vm_images_open(&r->images, r->o, r->saved.disks, r->saved.nr_disks, r->saved.cwd);
}

/* ---- all of it ---- */

static int start_machine(struct restore *r)
{
	int code;

	code = start_qemu(r);
	if (!code)
		code = check_version(r);
	return code ? code : check_machine(r);
}

/* Disks are changed before QEMU opens them, and only if the machine fits: so it is started for that first. */
static int try_machine(struct restore *r)
{
	struct vm_blocks now;
	char why[512];
	int code;

	code = start_machine(r);
	if (code)
		return code;
	if (vm_list_blocks(&r->q, r->pid, &now, why))
		return refuse(r, "%s", why);
	code = check_blocks(r, &now);
	vm_free_blocks(&now);
	if (!code)
		code = call(r, "quit", NULL, NULL, -1);
	end_qemu(r);
	return code;
}

static void say_restored(const struct restore *r, uint64_t begin, bool run)
{
	char took[UNITS_TEXT], left[UNITS_TEXT];

	format_duration(took, now_ns() - begin);
	if (r->lazy)
		complain("restored %s in %s; the guest %s, and %s of its memory are to come", r->o->args[0], took, run ? "runs" : "is paused",
			 format_size(left, vm_lazy_left(r->lazy)));
	else
		complain("restored %s in %s; the guest %s", r->o->args[0], took, run ? "runs" : "is paused");
}

static int restore(struct restore *r)
{
	uint64_t begin = now_ns();
	bool run;
	int code;

	code = read_link(r);
	if (!code)
		code = check_disks(r);
	if (!code && r->o->with_disks) {
		code = try_machine(r);
		if (!code)
			code = vm_images_revert(r->images);
	}
	if (!code)
		code = start_machine(r);
	if (!code)
		code = fill_memory(r);
	if (!code)
		code = send_state(r);
	run = r->saved.running && !r->o->paused;
	if (!code && run)
		code = call(r, "cont", NULL, NULL, -1);
	if (!code && !r->o->quiet)
		say_restored(r, begin, run);
	return !code && r->lazy ? vm_lazy_fill(r->lazy) : code;
}

/* All memory is there; or it never will be, and the guest can't go on. */
static int end_lazy(struct restore *r)
{
	int code = vm_lazy_result(r->lazy);

	if (code)
		end_qemu(r);
	vm_lazy_close(r->lazy);
	r->lazy = NULL;
	return code;
}

/* QEMU's own exit code; signals are passed on to it. */
static int wait_for_qemu(struct restore *r)
{
	int fds[2] = { r->pidfd, -1 }, status, code;
	bool ready[2] = { false, false };

	qmp_close(&r->q);
	do {
		fds[1] = r->lazy ? vm_lazy_fd(r->lazy) : -1;
		if (events_wait(&r->e, fds, ready, 2))
			break;
		if (ready[1] && !ready[0]) {
			code = end_lazy(r);
			if (code)
				return code;
		}
	} while (!ready[0]);
	while (waitpid(r->pid, &status, 0) < 0 && errno == EINTR)
		;
	r->pid = 0;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void restore_close(struct restore *r)
{
	end_qemu(r);
	vm_lazy_close(r->lazy);
	vm_images_close(r->images);
	events_close(&r->e);
	wpt_chain_close(r->c);
	vm_free_blocks(&r->saved.blocks);
	free(r->saved.tags);
	free(r->saved.state);
	free(r->saved.disks);
	free(r->cmdline);
	free(r->argv);
}

int cmd_qemu_restore(const struct opts *o)
{
	struct restore r = { .o = o, .q = { .fd = -1 }, .pidfd = -1, .e = { .signals = -1, .timer = -1, .pass_on = -1 } };
	int code;

	code = restore(&r);
	if (code) {
		end_qemu(&r);
		vm_images_undo(r.images);
	} else {
		code = wait_for_qemu(&r);
	}
	restore_close(&r);
	return code;
}
