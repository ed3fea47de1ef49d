/* SPDX-License-Identifier: MIT */
/*
 * wpsnap qemu save and watch: virtual machines, each by the socket of its monitor. A watch of several takes their links one after the other: the
 * memory and the processors that it uses are those of one link, however many machines there are.
 */
#include "vm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct machine {
	struct vm vm;
	struct session s;
	int pidfd;
	bool open;                 /* its session is */
	int code;                  /* how it ended, if it did */
	char *output, *label;      /* where there are several machines */
};

static int machine_open(struct machine *m, const struct opts *o, uint32_t dest)
{
	int code;

	code = proc_open_pid(o->cmd, m->vm.pid, &m->pidfd);
	if (code)
		return code;
	m->s.vm = &m->vm;
	code = session_open(&m->s, o, m->vm.pid, dest, false);
	m->open = code == EXIT_OK;
	return code;
}

static void machine_close(struct machine *m)
{
	if (m->open)
		session_close(&m->s);
	m->open = false;
	vm_close(&m->vm);
	if (m->pidfd >= 0)
		close(m->pidfd);
	m->pidfd = -1;
}

int cmd_qemu_save(const struct opts *o)
{
	bool to_stdout = strcmp(o->output, "-") == 0;
	struct machine m = { .pidfd = -1 };
	int code, err = 0;

	m.s.out = to_stdout ? stderr : stdout;
	m.s.lines = !o->quiet;
	interrupt_catch();
	code = vm_open(&m.vm, o, o->args[0]);
	if (code)
		return code;
	code = machine_open(&m, o, to_stdout ? WPT_DEST_FD : WPT_DEST_FILE);
	if (!code) {
		err = session_take(&m.s, "save");
		code = err ? exit_code_of(err) : m.s.skipped ? EXIT_SKIPPED : EXIT_OK;
	}
	machine_close(&m);
	interrupt_finish("save", err);
	return to_stdout ? code : finish_stdout(code);
}

/* ---- watch ---- */

struct watch {
	const struct opts *o;
	struct machine *v;
	size_t nr;
	struct events e;
	int *pidfds;
	bool *gone;
	uint64_t attempts;        /* links of each machine, complete or not */
};

/* A machine's name, as a folder's: what could be confused with a path is not in it. */
static char *name_of(const struct vm *vm)
{
	char *name = strdup(*vm->name ? vm->name : vm->uuid), *p;

	for (p = name; p && *p; p++)
		if (*p == '/' || (unsigned char)*p < 0x20 || (p == name && *p == '.'))
			*p = '_';
	return name;
}

/* Each machine has its chain in a folder of its own, of its name. */
static int name_machines(struct watch *w)
{
	struct machine *m;
	size_t i, j;

	if (w->nr == 1)
		return EXIT_OK;
	if (mkdir(w->o->output, 0700) && errno != EEXIST)
		return report(-errno, next_write(-errno), "%s: cannot make the folder %s", w->o->cmd->name, w->o->output);
	for (i = 0; i < w->nr; i++) {
		m = &w->v[i];
		m->label = name_of(&m->vm);
		if (!m->label || asprintf(&m->output, "%s/%s", w->o->output, m->label) < 0)
			return report(-ENOMEM, NULL, "%s", w->o->cmd->name);
		m->s.label = m->label;
		m->s.output = m->output;
		for (j = 0; j < i; j++) {
			if (strcmp(w->v[j].label, m->label) == 0)
				return usage_error(w->o->cmd, "%s and %s are both of a machine named '%s'; name them with QEMU's -name",
						   w->v[j].vm.path, m->vm.path, m->label);
		}
	}
	return EXIT_OK;
}

static void end_machine(struct watch *w, size_t i, int code, const char *reason)
{
	struct machine *m = &w->v[i];

	if (code == EXIT_GONE)
		complain("%s: the machine of %s has ended; %llu links of it are complete in %s", w->o->cmd->name, m->vm.path,
			 (unsigned long long)m->s.nr_links, m->s.output);
	session_end(&m->s, reason);
	machine_close(m);
	w->pidfds[i] = -1;
	m->code = code;
}

static void take_link(struct watch *w, size_t i, const char *trigger)
{
	struct machine *m = &w->v[i];
	int err;

	if (!m->open)
		return;
	err = session_take(&m->s, trigger);
	if (err == -WPT_E_GONE || w->gone[i])
		end_machine(w, i, EXIT_GONE, "gone");
	else if (err && !m->s.nr_links)
		end_machine(w, i, exit_code_of(err), "failed");
}

static void take_links(struct watch *w, const char *trigger)
{
	size_t i;

	w->attempts++;
	for (i = 0; i < w->nr; i++)
		take_link(w, i, trigger);
	for (i = 0; i < w->nr; i++)
		if (w->v[i].open)
			session_prune(&w->v[i].s);
}

/* Machines that are still watched; out_failed where nobody reads what is said of them. */
static size_t count_open(const struct watch *w, bool *out_failed)
{
	size_t i, n = 0;

	*out_failed = false;
	for (i = 0; i < w->nr; i++) {
		n += w->v[i].open;
		*out_failed |= w->v[i].s.out_failed;
	}
	return n;
}

static void end_all(struct watch *w, const char *reason)
{
	size_t i;

	for (i = 0; i < w->nr; i++) {
		if (w->v[i].open)
			end_machine(w, i, w->v[i].s.last ? EXIT_FAILED : w->v[i].s.skipped ? EXIT_SKIPPED : EXIT_OK, reason);
	}
}

static int watch_loop(struct watch *w)
{
	bool out_failed;
	size_t i;
	int err;

	take_links(w, "base");
	events_start_timer(&w->e, w->o->every_ns);
	while (count_open(w, &out_failed)) {
		if (out_failed) {
			complain("%s: cannot write to standard output: its reader has gone; the links so far are complete", w->o->cmd->name);
			return EXIT_FAILED;
		}
		if (w->o->count && w->attempts >= w->o->count) {
			end_all(w, "count");
			break;
		}
		err = events_wait(&w->e, w->pidfds, w->gone, w->nr);
		if (err)
			return report(err, NULL, "%s: cannot wait for the machines", w->o->cmd->name);
		for (i = 0; i < w->nr; i++)
			if (w->gone[i])
				end_machine(w, i, EXIT_GONE, "gone");
		if (w->e.signal || w->e.period)
			take_links(w, w->e.signal ? "SIGUSR1" : "timer");
		if (w->e.end)
			end_all(w, "signal");
	}
	return EXIT_OK;
}

/* The worst of what became of them. */
static int watch_code(const struct watch *w)
{
	static const int order[] = { EXIT_FAILED, EXIT_DAMAGED, EXIT_STORE, EXIT_GONE, EXIT_SKIPPED };
	size_t i, j;

	for (j = 0; j < ARRAY_SIZE(order); j++)
		for (i = 0; i < w->nr; i++)
			if (w->v[i].code == order[j])
				return order[j];
	return EXIT_OK;
}

/* All monitors first: the guards must not inherit what belongs to a session. */
static int watch_open(struct watch *w, const struct opts *o)
{
	size_t i;
	int code;

	w->o = o;
	w->nr = (size_t)o->nr_args;
	w->v = calloc(w->nr, sizeof(*w->v));
	w->pidfds = calloc(w->nr, sizeof(*w->pidfds));
	w->gone = calloc(w->nr, sizeof(*w->gone));
	if (!w->v || !w->pidfds || !w->gone)
		return report(-ENOMEM, NULL, "%s", o->cmd->name);
	for (i = 0; i < w->nr; i++) {
		w->v[i].pidfd = w->v[i].vm.q.fd = w->v[i].vm.state_fd = -1;
		w->v[i].s.out = stdout;
		w->v[i].s.lines = true;
	}
	code = events_open(&w->e, o->cmd, NULL);
	for (i = 0; i < w->nr && !code; i++)
		code = vm_open(&w->v[i].vm, o, o->args[i]);
	if (!code)
		code = name_machines(w);
	for (i = 0; i < w->nr && !code; i++) {
		code = machine_open(&w->v[i], o, WPT_DEST_FOLDER);
		w->pidfds[i] = w->v[i].pidfd;
	}
	return code;
}

static void watch_close(struct watch *w)
{
	size_t i;

	for (i = 0; w->v && i < w->nr; i++) {
		machine_close(&w->v[i]);
		free(w->v[i].output);
		free(w->v[i].label);
	}
	events_close(&w->e);
	free(w->v);
	free(w->pidfds);
	free(w->gone);
}

int cmd_qemu_watch(const struct opts *o)
{
	struct watch w = { .e = { .signals = -1, .timer = -1, .pass_on = -1 } };
	int code;

	if (o->nr_args > 1 && o->pid)
		return usage_error(o->cmd, "--pid is of one machine; watch the others apart");
	if (o->keep && o->with_disks && !o->quiet)
		complain("%s: the snapshots of disks stay when their links go: delete them with qemu-img snapshot -d", o->cmd->name);
	code = watch_open(&w, o);
	if (!code)
		code = watch_loop(&w);
	if (!code)
		code = watch_code(&w);
	watch_close(&w);
	return code;
}
