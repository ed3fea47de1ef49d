/* SPDX-License-Identifier: MIT */
/* Messages: what failed, why, what to do next; and the words for the library's numbers. */
#include "wpsnap.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>

int exit_code_of(int err)
{
	switch (err) {
	case 0:
		return EXIT_OK;
	case -WPT_E_DAMAGED:
	case -WPT_E_TRUNCATED:
	case -WPT_E_NOT_SNAPSHOT:
	case -WPT_E_CHAIN:
		return EXIT_DAMAGED;
	case -WPT_E_GONE:
	case -ESRCH:
		return EXIT_GONE;
	case -WPT_E_STORE:
		return EXIT_STORE;
	default:
		return EXIT_FAILED;
	}
}

/* Arguments and mapping names are part of messages; a control character in one must not reach the terminal. */
static void print_line(char *text)
{
	unsigned char *p;

	for (p = (unsigned char *)text; *p; p++)
		if (iscntrl(*p))
			*p = '?';
	fprintf(stderr, "wpsnap: %s\n", text);
}

void complain(const char *format, ...)
{
	char text[8192];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	print_line(text);
}

int report(int err, const char *next, const char *format, ...)
{
	char text[8192];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	complain("%s: %s%s%s", text, wpt_strerror(err), next ? "; " : "", next ? next : "");
	return exit_code_of(err);
}

int usage_error(const struct command *cmd, const char *format, ...)
{
	char text[8192];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	if (cmd)
		complain("%s: %s; see wpsnap %s --help", cmd->name, text, cmd->name);
	else
		complain("%s; see wpsnap --help", text);
	return EXIT_USAGE;
}

const char *next_attach(int err)
{
	switch (err) {
	case -EPERM:
	case -EACCES:
		return "run wpsnap as root or as the target's user; /proc/sys/kernel/yama/ptrace_scope may forbid it too";
	case -EBUSY:
		return "another userfaultfd holds the memory: another wpsnap, or the target's own use of it";
	case -ESRCH:
		return "it has exited";
	case -WPT_E_UNSUPPORTED:
		return "taking snapshots needs Linux 6.7 or newer, or with backend sync 5.13, on x86-64; reading them does not";
	default:
		return NULL;
	}
}

const char *next_write(int err)
{
	switch (err) {
	case -EEXIST:
		return "remove it or choose another name; nothing is ever overwritten";
	case -ENOSPC:
	case -EDQUOT:
		return "free space there or choose another place; nothing incomplete was left";
	case -EACCES:
	case -EPERM:
	case -EROFS:
		return "choose a place that this user can write to";
	case -ENOENT:
		return "create the folder that it is to lie in first";
	case -EPIPE:
		return "its reader ended before everything was written";
	case -ENOTDIR:
	case -ELOOP:
		return "the place must be a folder of its own, not a file or a symbolic link";
	case -WPT_E_MISMATCH:
		return "--new starts a new chain in the same folder";
	case -WPT_E_LOCKED:
		return "wait for it to end or use another folder";
	case -ENODATA:
		return "none of its memory can be tracked";
	default:
		return NULL;
	}
}

const char *next_read(int err)
{
	switch (err) {
	case -ENOENT:
		return "check the name; a chain is a .wps file or a folder of them, with @N for an earlier link";
	case -EACCES:
	case -EPERM:
		return "snapshots belong to the user who took them; read them as that user";
	case -WPT_E_CHAIN:
		return "put the missing parents into the same folder";
	case -WPT_E_PRUNED:
		return "wpsnap info lists the links that are there";
	case -WPT_E_NOT_SNAPSHOT:
		return "check the name";
	default:
		return NULL;
	}
}

void print_name(FILE *f, const char *name)
{
	const unsigned char *p;

	for (p = (const unsigned char *)name; *p; p++) {
		if (iscntrl(*p))
			fprintf(f, "\\%03o", *p);
		else
			putc(*p, f);
	}
}

int finish_stdout(int code)
{
	int err = 0;

	if (fflush(stdout))
		err = -errno;
	else if (ferror(stdout))
		err = -EIO;
	if (!err)
		return code;
	report(err, NULL, "cannot write to standard output");
	return EXIT_FAILED;
}

const char *kind_name(uint32_t kind)
{
	switch ((enum wpt_kind)kind) {
	case WPT_KIND_ANON:
		return "anon";
	case WPT_KIND_SHMEM:
		return "shmem";
	case WPT_KIND_FILE_SHARED:
		return "file-shared";
	case WPT_KIND_FILE_PRIVATE:
		return "file-private";
	case WPT_KIND_HUGETLB_PRIVATE:
		return "hugetlb-private";
	case WPT_KIND_HUGETLB_SHARED:
		return "hugetlb-shared";
	case WPT_KIND_REPORTED:
		return "reported";
	}
	return "unknown";
}

const char *reason_name(uint32_t reason)
{
	switch ((enum wpt_range_reason)reason) {
	case WPT_REASON_NONE:
		return "none";
	case WPT_REASON_BUSY:
		return "busy";
	case WPT_REASON_DEVICE:
		return "device";
	case WPT_REASON_SPECIAL:
		return "special";
	case WPT_REASON_UNSUPPORTED:
		return "unsupported";
	case WPT_REASON_OTHER_WRITER:
		return "other-writer";
	case WPT_REASON_UNINSPECTABLE:
		return "uninspectable";
	case WPT_REASON_PINNED:
		return "pinned";
	case WPT_REASON_VERIFY:
		return "verify";
	case WPT_REASON_UNTRACKED:
		return "untracked";
	}
	return "unknown";
}

const char *reason_text(uint32_t reason)
{
	switch ((enum wpt_range_reason)reason) {
	case WPT_REASON_NONE:
		return "tracked";
	case WPT_REASON_BUSY:
		return "another userfaultfd has it";
	case WPT_REASON_DEVICE:
		return "memory of a device";
	case WPT_REASON_SPECIAL:
		return "special memory of the kernel";
	case WPT_REASON_UNSUPPORTED:
		return "this kernel can't write-protect this kind of memory";
	case WPT_REASON_OTHER_WRITER:
		return "another process may write to it";
	case WPT_REASON_UNINSPECTABLE:
		return "who else may write to it can't be found out";
	case WPT_REASON_PINNED:
		return "the kernel or a device may write to it without a fault";
	case WPT_REASON_VERIFY:
		return "asked for by --verify-content";
	case WPT_REASON_UNTRACKED:
		return "the backend sync can't write-protect this kind of memory";
	}
	return "for a reason that this version does not know";
}

const char *backend_name(uint32_t backend)
{
	switch ((enum wpt_backend)backend) {
	case WPT_BACKEND_AUTO:
		return "auto";
	case WPT_BACKEND_ASYNC:
		return "async";
	case WPT_BACKEND_REPORTED:
		return "reported";
	case WPT_BACKEND_SYNC:
		return "sync";
	}
	return "unknown";
}

const char *mode_name(uint32_t mode)
{
	switch ((enum wpt_mode)mode) {
	case WPT_MODE_PAUSE:
		return "pause";
	case WPT_MODE_FUZZY:
		return "fuzzy";
	case WPT_MODE_COW:
		return "cow";
	}
	return "unknown";
}

const char *rounds_end_name(uint32_t rounds_end)
{
	switch ((enum wpt_rounds_end)rounds_end) {
	case WPT_ROUNDS_NONE:
		return "none";
	case WPT_ROUNDS_SMALL:
		return "small";
	case WPT_ROUNDS_STALLED:
		return "stalled";
	case WPT_ROUNDS_LIMIT:
		return "limit";
	case WPT_ROUNDS_STAGING:
		return "staging";
	case WPT_ROUNDS_DIRECT:
		return "direct-io";
	}
	return "unknown";
}
