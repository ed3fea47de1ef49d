/* SPDX-License-Identifier: MIT */
/* wpsnap: the table of commands and the way in. */
#include "wpsnap.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define VM_SYNOPSIS "\n           [--pid PID] [--device-limit SIZE] [--backend auto|async|sync] [--level N] [--threads N]\n" \
	"           [--verify-content] [--assume-sole-writer] [--staging SIZE] [--refuse] [--rounds N]\n" \
	"           [--target-pause TIME] [--stop-timeout TIME] [--with-disks] [--cmdline] [-q] [--json]"

#define TAKE_SYNOPSIS "\n           [--range SPEC]... [--mode pause|cow|fuzzy] [--backend auto|async|sync]\n" \
	"           [--level N] [--threads N] [--verify-content] [--assume-sole-writer] [--staging SIZE]\n" \
	"           [--refuse] [--rounds N] [--target-pause TIME] [--stop-timeout TIME]\n" \
	"           [--collapse] [--registers] [--cmdline] [-q] [--json]"

static const struct command commands[] = {
	{ "probe", CMD_PROBE, 0, 0, false, false, "[--json]",
	  "what this kernel and this user can track, and how", cmd_probe },
	{ "save", CMD_SAVE, 1, 1, false, true, "PID -o FILE [--parent CHAIN]" TAKE_SYNOPSIS,
	  "one snapshot of a running process", cmd_save },
	{ "watch", CMD_WATCH, 1, 1, false, true, "PID -o DIR [--every TIME] [--count N] [--keep N] [--new] [--hot-set off|auto]" TAKE_SYNOPSIS,
	  "a base and increments until interrupted", cmd_watch },
	{ "run", CMD_RUN, 1, -1, true, true, "-o DIR [watch's options] -- CMD [ARGS]...",
	  "execute a command and watch it", cmd_run },
	{ "info", CMD_INFO, 1, 1, false, false, "CHAIN [--json]",
	  "ranges, sizes, ratios and links of a chain", cmd_info },
	{ "verify", CMD_VERIFY, 1, -1, false, false, "[-q] [--json] CHAIN...",
	  "check every checksum of whole chains", cmd_verify },
	{ "diff", CMD_DIFF, 2, 2, false, false, "[-q] [--json] A B",
	  "which pages differ; exits with 0, 1 or 2 as cmp does", cmd_diff },
	{ "merge", CMD_MERGE, 1, 1, false, true, "CHAIN -o FILE [--level N] [--threads N] [-q]",
	  "a chain into one full snapshot", cmd_merge },
	{ "prune", CMD_PRUNE, 1, 1, false, false, "CHAIN --keep N [--dry-run] [--level N] [--threads N] [-q] [--json]",
	  "keep the last links of a chain in a folder", cmd_prune },
	{ "restore", CMD_RESTORE, 1, 1, false, true, "CHAIN -o OUT [--range SPEC] [--threads N] [-q]",
	  "a raw image of one range; a folder for several", cmd_restore },
	{ "qemu save", CMD_QEMU_SAVE, 1, 1, false, true, "SOCKET -o FILE [--parent CHAIN]" VM_SYNOPSIS,
	  "one snapshot of a running virtual machine, by its QMP socket", cmd_qemu_save },
	{ "qemu watch", CMD_QEMU_WATCH, 1, -1, false, true,
	  "SOCKET... -o DIR [--every TIME] [--count N] [--keep N] [--new] [--hot-set off|auto]" VM_SYNOPSIS,
	  "a base and increments of virtual machines", cmd_qemu_watch },
	{ "qemu restore", CMD_QEMU_RESTORE, 1, -1, false, false, "CHAIN [--lazy [--collapse]] [--paused] [--with-disks] [--threads N] [-q]\n"
	  "           [-- QEMU ARGS...]",
	  "start a virtual machine where a snapshot left it", cmd_qemu_restore },
};

/* `second` (may be NULL) is the next argument, for commands of two words. */
static const struct command *command_find(const char *name, const char *second)
{
	size_t i, len = strlen(name);

	for (i = 0; i < ARRAY_SIZE(commands); i++) {
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
		if (second && strncmp(commands[i].name, name, len) == 0 && commands[i].name[len] == ' ' &&
		    strcmp(commands[i].name + len + 1, second) == 0)
			return &commands[i];
	}
	return NULL;
}

static void print_usage(FILE *f)
{
	size_t i;

	fputs("usage: wpsnap COMMAND [ARGS]...\n\nSnapshots of the memory of a running process.\n\n", f);
	for (i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(f, "  %-12s  %s\n", commands[i].name, commands[i].purpose);
	fputs("\nwpsnap COMMAND --help says more; so does wpsnap(1).\n", f);
}

static int print_version(void)
{
	printf("wpsnap %d.%d.%d, libwptrack %s\n", WPT_VERSION_MAJOR, WPT_VERSION_MINOR, WPT_VERSION_PATCH, wpt_version());
	return finish_stdout(EXIT_OK);
}

/*
 * A closed standard descriptor would be taken by the first file that is opened, and messages would go into a snapshot. A
 * read-only /dev/null in its place makes every write to it fail with EBADF.
 */
static bool hold_standard_descriptors(void)
{
	int fd, got;

	for (fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) >= 0)
			continue;
		got = open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
		if (got != fd)
			return false;
	}
	return true;
}

static int run_command(const struct command *cmd, int argc, char **argv)
{
	struct opts o;
	int code;

	code = opts_parse(&o, cmd, argc, argv);
	if (code == EXIT_OK) {
		if (o.help) {
			opts_help(stdout, cmd);
			code = finish_stdout(EXIT_OK);
		} else if (o.version) {
			code = print_version();
		} else {
			code = cmd->run(&o);
		}
	}
	opts_free(&o);
	return code;
}

int main(int argc, char **argv)
{
	const struct command *cmd;
	int words;

	if (!hold_standard_descriptors())
		return EXIT_FAILED;
	/* A reader that goes away is an error to report and clean up after, not an end on the spot. */
	signal(SIGPIPE, SIG_IGN);
	if (argc < 2) {
		print_usage(stderr);
		return EXIT_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
		print_usage(stdout);
		return finish_stdout(EXIT_OK);
	}
	if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0)
		return print_version();
	cmd = command_find(argv[1], argv[2]);
	if (!cmd && strcmp(argv[1], "qemu") == 0)
		return usage_error(NULL, "qemu takes save, watch or restore");
	if (!cmd)
		return usage_error(NULL, "no command is named '%s'", argv[1]);
	words = strchr(cmd->name, ' ') ? 2 : 1;
	return run_command(cmd, argc - 1 - words, argv + 1 + words);
}
