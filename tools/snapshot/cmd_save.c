/* SPDX-License-Identifier: MIT */
/* wpsnap save: one snapshot. */
#include "wpsnap.h"

#include <string.h>
#include <unistd.h>

int cmd_save(const struct opts *o)
{
	bool to_stdout = strcmp(o->output, "-") == 0;
	struct session s;
	int code, pidfd, err = 0;
	pid_t pid;

	code = proc_open(o->cmd, o->args[0], &pid, &pidfd);
	if (code)
		return code;
	memset(&s, 0, sizeof(s));
	s.out = to_stdout ? stderr : stdout;
	s.lines = !o->quiet;
	interrupt_catch();
	code = session_open(&s, o, pid, to_stdout ? WPT_DEST_FD : WPT_DEST_FILE, false);
	if (!code) {
		err = session_take(&s, "save");
		code = err ? exit_code_of(err) : s.skipped ? EXIT_SKIPPED : EXIT_OK;
		session_close(&s);
	}
	close(pidfd);
	interrupt_finish("save", err);
	return to_stdout ? code : finish_stdout(code);
}
