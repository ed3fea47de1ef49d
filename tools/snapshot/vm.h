/* SPDX-License-Identifier: MIT */
/*
 * wpsnap qemu: a virtual machine through its monitor (QMP), and what its commands share. Functions return 0 or a negative error and print
 * nothing, unless their entry says otherwise; vm_* that fail leave the words in vm->why.
 */
#ifndef WPSNAP_VM_H
#define WPSNAP_VM_H

#include "wpsnap.h"

#include <jansson.h>

/* ---- qmp.c: one connection to a monitor ---- */

struct qmp {
	int fd;                    /* -1: none */
	pid_t peer;                /* who listens at the path, also if there was no greeting; 0: not known */
	char *buf;                 /* received, not read yet */
	size_t used, room;
	uint64_t next_id;
	bool partial;              /* the first line may be the rest of one that another process read the beginning of */
	uint64_t nr_stopped, nr_resumed, nr_reset; /* events so far */
	uint64_t stopped_us, resumed_us; /* when the last events STOP and RESUME happened, by QEMU's clock */
	char said[256];            /* QEMU's words about the command that failed */
	/* Asked when the time for an answer is over: whether there is a reason to wait for a second more. NULL: never. */
	bool (*wait_on)(void *arg);
	void *wait_arg;
};

#define QMP_TIMEOUT_MS 10000u

/*
 * Connects to the socket at `path` and negotiates. -ETIME: connected, but there is no greeting: another client has this monitor. Others: -errno of
 * connect(2), -EPROTO (not a monitor), -ETIMEDOUT, -ECONNRESET.
 */
int qmp_open(struct qmp *q, const char *path);
/* The same over a connection that is there, greeting included, of which the greeting may take so long; takes the descriptor over. */
int qmp_open_fd(struct qmp *q, int fd, unsigned timeout_ms);
void qmp_close(struct qmp *q);

/*
 * Executes a command and waits for its answer. `args` (may be NULL) is taken over; `out` (may be NULL) gets what it returned, to be json_decref()ed;
 * `pass` is a descriptor to send along, or -1. -EREMOTEIO: QEMU refused, q->said has why; -ETIMEDOUT: it may be executed yet; -ECONNRESET: the
 * connection ended; -EPROTO; -ENOMEM. After any but the first two the connection is closed.
 */
int qmp_call(struct qmp *q, const char *command, json_t *args, json_t **out, int pass, unsigned timeout_ms);
/* As a person types it; *text is to be freed. */
int qmp_human(struct qmp *q, const char *line, char **text);

/* ---- vm.c: a machine that runs ---- */

struct vm_block {
	char *id;
	uint64_t size;             /* bytes that are in use */
	uint64_t start;            /* address in QEMU's process, 0: not known */
	bool shared;
	int range;                 /* the tracker's, 0: none */
};

struct vm_blocks {
	struct vm_block *v;
	size_t nr;
};

struct vm_disk {
	char *device;              /* or its node's name */
	char *file, *format;
};

struct vm_disks {
	struct vm_disk *v;
	size_t nr;
};

struct guard;
struct vm_images;

struct vm {
	const struct opts *o;
	const char *path;          /* of the monitor's socket */
	struct qmp q;
	pid_t pid;
	struct guard *guard;
	char *version, *machine, *name, *uuid, *cwd;
	bool handed;               /* the guard has the monitor */
	bool fd_given;             /* QEMU holds the end of the pipe */
	struct vm_blocks blocks;
	struct vm_disks disks;     /* with --with-disks: those of this link, */
	char snapshot[64];         /* what their snapshots are named, */
	bool disks_taken;          /* and that there are some */
	bool running;              /* before the link in hand */
	int state_fd;              /* the device state comes out here */
	char *state;               /* the device state of the last link */
	size_t state_len, state_room;
	uint64_t nr_resumed, nr_reset; /* before the pause */
	uint64_t stop_begun_ns;
	uint64_t stopped_ns;       /* the guest stood still for so long, the last time; */
	uint64_t device_ns;        /* of it, to save the device state */
	char *tags;
	size_t tags_len;
	struct wpt_section sections[2];
	char why[512];
};

/* Prints what went wrong and returns an exit code. */
int vm_open(struct vm *vm, const struct opts *o, const char *path);
void vm_close(struct vm *vm);
/* Registers the machine's shared memory with the tracker, and what was plugged since; forgets what was unplugged. */
int vm_ranges(struct vm *vm, struct wpt_tracker *t);
/* Before a link, while the guest runs: its ranges, and all that need not be done while it stands still. */
int vm_prepare(struct vm *vm, struct wpt_tracker *t);
/* Quiesces the guest instead of QEMU's threads, and adds its state to the link. */
void vm_take_options(struct vm *vm, struct wpt_take_options *to);
/* After a link or a failure at any point: everything as it was. */
int vm_finish(struct vm *vm);
/* The link of the last vm_take_options() is there, or is not. */
void vm_taken(struct vm *vm, bool complete);

/* Executes a command; vm->why says what went wrong. */
int vm_call(struct vm *vm, const char *command, json_t *args, json_t **out, unsigned timeout_ms);
/* Keeps the words and returns `err`. */
int vm_fail(struct vm *vm, int err, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The machine's blocks as they are now; addresses only of shared ones. */
int vm_list_blocks(struct qmp *q, pid_t pid, struct vm_blocks *out, char why[512]);
void vm_free_blocks(struct vm_blocks *b);

/* ---- vm_disks.c ---- */

/* Those that the guest may write to. */
int vm_list_disks(struct vm *vm, struct vm_disks *out);
void vm_free_disks(struct vm_disks *d);
/* Warns of disks that are left out; an error if they should not be and can't be taken. */
int vm_check_disks(struct vm *vm, const struct vm_disks *d);
int vm_take_disks(struct vm *vm);
void vm_drop_disks(struct vm *vm);
void vm_tag_disks(const struct vm *vm, FILE *f);

/* ---- vm_devices.c ---- */

/* An error if the options do not go with a device that is in part in another process; with `warn`, warns of disks that it has there. */
int vm_check_devices(struct vm *vm, bool warn);
/* A device, if there is one, whose back-end writes to the guest's memory from another process; else "". As qmp_call(). */
int vm_find_backend(struct qmp *q, char name[128]);

/* ---- vm_restore_disks.c: these print what goes wrong and return an exit code ---- */

/* The images of `disks`, each "SNAPSHOT DEVICE FILE" as a link's tags have it, if all of them are fit to be put back; nothing is changed yet. */
int vm_images_open(struct vm_images **out, const struct opts *o, const char *const *disks, size_t nr, const char *cwd);
/* After a failure, and after that of anything later, vm_images_undo() is to be called. */
int vm_images_revert(struct vm_images *im);
/* All as they were before vm_images_revert(), however far that came; no QEMU may have them open. Accepts NULL. */
void vm_images_undo(struct vm_images *im);
void vm_images_close(struct vm_images *im);

/* ---- vm_clear.c ---- */

/* Empties the block's file, if no other process than QEMU has it mapped. Prints what went wrong, and returns an exit code. */
int vm_clear_block(const struct opts *o, pid_t pid, const struct vm_block *b);

/* ---- vm_lazy.c: memory that comes while the guest runs ---- */

struct vm_lazy;

/* Of QEMU's process, which ends if wpsnap does before all is there. These print what went wrong, and return an exit code. */
int vm_lazy_open(struct vm_lazy **out, const struct opts *o, struct wpt_chain *c, pid_t pid, int pidfd);
/* All blocks, and then their memory is emptied before it is started. */
int vm_lazy_add(struct vm_lazy *v, const struct vm_block *from, const struct vm_block *to);
int vm_lazy_start(struct vm_lazy *v);
int vm_lazy_fill(struct vm_lazy *v);
/* Readable when it is over; then the result says how. */
int vm_lazy_fd(const struct vm_lazy *v);
int vm_lazy_result(struct vm_lazy *v);
uint64_t vm_lazy_left(const struct vm_lazy *v);
/* The chain can't be read for now: QEMU may wait for memory, and not answer. */
bool vm_lazy_fails(const struct vm_lazy *v);
/* QEMU's process must have ended if not all is there. Accepts NULL. */
void vm_lazy_close(struct vm_lazy *v);
/* Waits for a wpsnap that restores the machine, whose memory nobody else can track till then. 1: there was one; -ECANCELED: a signal came. */
int vm_lazy_await(const struct opts *o, pid_t pid);

/* ---- vm_guard.c: a process that outlives wpsnap and lets the guest go on ---- */

/* What is to be undone. Shared with the guard: set before the change, cleared after it was taken back. */
struct guard_state {
	_Atomic int stopped;       /* the guest was stopped and is to run */
	_Atomic int migrating;     /* a migration was begun */
	_Atomic int tuned;         /* the migration's limits were changed, and were: */
	int64_t bandwidth;
	int ignore_shared;
	_Atomic int last;          /* the guard ends when all is taken back */
	pid_t qemu;                /* nobody is waited for when that is gone, 0: not known; */
	int sure;                  /* and nobody else is spoken to */
};

/* Starts it over a connection that is open; before any thread is. */
int guard_start(struct guard **out, const char *path, int qmp_fd);
struct guard_state *guard_state(struct guard *g);
bool guard_is_idle(const struct guard_state *s);
/* It takes back what is to be, for as long as it takes, and nobody else uses the monitor before guard_is_idle(). */
void guard_wake(struct guard *g);
/* Ends it; if something is still to be taken back, it stays and goes on trying. Accepts NULL. */
void guard_end(struct guard *g);
/*
 * Takes back what *s says was changed, over `q` or, if that is closed, a new connection: our migration is cancelled, the guest runs, the
 * limits are as they were. Tries for `ms` milliseconds, or until QEMU is gone.
 */
int guard_undo(struct qmp *q, const char *path, struct guard_state *s, uint64_t ms);

#endif
