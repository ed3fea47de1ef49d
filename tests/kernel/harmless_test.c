/* SPDX-License-Identifier: MIT */
/*
 * The target is never harmed: it does not grow by being read, it survives the death of whoever watches it, its exec and exit and the
 * reuse of its pid are noticed, and its seccomp filters hold before, during and after.
 */
#include "harmless_target.h"

/* ---- being read ---- */

/* Memory of which little is there: what is in it, and the sizes the kernel counts for it. */
struct thin {
	uint8_t *at;
	size_t bytes;
	int fd;              /* of the file, -1: none */
};

enum { THIN_ANON, THIN_MEMFD, THIN_FILE_PRIVATE, THIN_FILE_SHARED, THIN_SWAPPED, NR_THIN };
#define THIN_BYTES (64 * MIB)
#define THIN_STEP MIB

struct size {
	uint64_t rss_kib, swap_kib, blocks;
};

/* Exact figures of one mapping; the sums in /proc/PID/status lag behind. */
static struct size thin_size(pid_t pid, const struct thin *thin)
{
	uint64_t start, end, kib;
	struct size s = { 0 };
	struct stat st;
	char line[512];
	bool in = false;
	FILE *f;

	snprintf(line, sizeof(line), "/proc/%d/smaps", pid);
	f = fopen(line, "re");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2)
			in = start >= (uintptr_t)thin->at && end <= (uintptr_t)thin->at + thin->bytes;
		else if (in && sscanf(line, "Rss: %" SCNu64, &kib) == 1)
			s.rss_kib += kib;
		else if (in && sscanf(line, "Swap: %" SCNu64, &kib) == 1)
			s.swap_kib += kib;
	}
	fclose(f);
	if (thin->fd >= 0) {
		assert_int_equal(fstat(thin->fd, &st), 0);
		s.blocks = (uint64_t)st.st_blocks;
	}
	return s;
}

static int thin_file(int kind)
{
	char path[64];
	const char *tmp = getenv("TMPDIR");
	int fd;

	if (kind == THIN_MEMFD)
		return memfd_create("harmless", MFD_CLOEXEC);
	snprintf(path, sizeof(path), "%.30s/wptrack-thin-XXXXXX", tmp && *tmp ? tmp : "/var/tmp");
	fd = mkostemp(path, O_CLOEXEC);
	unlink(path);
	return fd;
}

static void thin_map(struct thin *thin, int kind)
{
	bool file = kind != THIN_ANON && kind != THIN_SWAPPED;
	int sharing = kind == THIN_MEMFD || kind == THIN_FILE_SHARED ? MAP_SHARED : MAP_PRIVATE;

	thin->bytes = THIN_BYTES;
	thin->fd = file ? thin_file(kind) : -1;
	if (file) {
		assert_true(thin->fd >= 0);
		assert_int_equal(ftruncate(thin->fd, THIN_BYTES), 0);
		/* A page in the middle of each step, the rest are holes. */
		for (size_t at = THIN_STEP / 2; at < THIN_BYTES; at += THIN_STEP)
			assert_int_equal(pwrite(thin->fd, "content of the file", 19, (off_t)at), 19);
		fsync(thin->fd);
	}
	thin->at = mmap(NULL, THIN_BYTES, PROT_READ | PROT_WRITE, sharing | (file ? 0 : MAP_ANONYMOUS), thin->fd, 0);
	assert_true(thin->at != MAP_FAILED);
	madvise(thin->at, THIN_BYTES, MADV_NOHUGEPAGE);
}

/* What the process that has the memory does: touches a page of each step, and one more whenever it is asked. */
static __attribute__((noreturn)) void thin_main(struct thin *thin, int kind, int in, int out)
{
	uint8_t round;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (size_t at = 0; at < thin->bytes; at += kind == THIN_SWAPPED ? PAGE : THIN_STEP)
		memset(thin->at + at, (int)(at / PAGE % 251) + 1, PAGE);
	if (kind == THIN_SWAPPED)
		madvise(thin->at, thin->bytes, MADV_PAGEOUT);
	if (kind == THIN_FILE_SHARED) /* blocks are allotted now, not when the kernel gets to it */
		fsync(thin->fd);
	do {
		if (write(out, "", 1) != 1 || read(in, &round, 1) != 1)
			_exit(0);
		memset(thin->at + round * THIN_STEP, round, PAGE);
	} while (1);
}

static void thin_compare(const char *folder, const struct thin *thin, pid_t pid)
{
	uint8_t *said = malloc(MIB), *is = malloc(MIB);
	struct wpt_chain *c;

	assert_non_null(said);
	assert_non_null(is);
	assert_int_equal(wpt_chain_open(&c, folder), 0);
	for (size_t at = 0; at < thin->bytes; at += MIB) {
		struct iovec local = { is, MIB }, remote = { thin->at + at, MIB };

		assert_int_equal(process_vm_readv(pid, &local, 1, &remote, 1, 0), MIB);
		assert_int_equal(wpt_chain_read(c, (uintptr_t)thin->at + at, said, MIB), 0);
		assert_memory_equal(said, is, MIB);
	}
	wpt_chain_close(c);
	free(said);
	free(is);
}

/* Keeps only what is needed to look at the file's size. */
static void make_readonly(int *fd)
{
	char path[64];
	int other;

	if (*fd < 0)
		return;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", *fd);
	other = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(other >= 0);
	close(*fd);
	*fd = other;
}

/*
 * The base and links of memory of one kind: whatever it takes to read it, the target must not be larger afterwards than by the pages that
 * it touched itself, and the file not at all.
 */
static void read_thin(int kind, bool other_writer, uint64_t allowance_kib)
{
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = WPT_WRITER_NO_SYNC };
	struct wpt_tracker_options to_attach = { .size = sizeof(to_attach), .stop_timeout_ms = 10000 };
	struct wpt_range range = { .size = sizeof(range) };
	struct size before, after;
	struct wpt_tracker *t;
	struct wpt_writer *w;
	int to[2], from[2];
	char folder[64], byte;
	struct thin thin;
	uint8_t round;
	pid_t pid;

	NEED_SUPPORT();
	thin_map(&thin, kind);
	assert_int_equal(pipe(to), 0);
	assert_int_equal(pipe(from), 0);
	fflush(stdout);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid)
		thin_main(&thin, kind, to[0], from[1]);
	munmap(thin.at, thin.bytes);
	if (!other_writer)
		make_readonly(&thin.fd);
	assert_int_equal(read(from[0], &byte, 1), 1);
	before = thin_size(pid, &thin);
	if (kind == THIN_SWAPPED && before.swap_kib < thin.bytes / 1024 / 2) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		print_message("# skip: needs swap, of %lu MiB\n", thin.bytes / MIB);
		skip();
	}
	folder_make(folder);
	assert_int_equal(wpt_tracker_attach(&t, pid, &to_attach), 0);
	range.start = (uintptr_t)thin.at;
	range.end = range.start + thin.bytes;
	assert_true(wpt_range_add(t, &range) > 0);
	assert_int_equal(wpt_writer_open(&w, t, folder, &wo), 0);
	for (round = 0; round < 8; round++) {
		assert_int_equal(wpt_writer_take(w, NULL, NULL), 0);
		assert_int_equal(write(to[1], &round, 1), 1);
		assert_int_equal(read(from[0], &byte, 1), 1);
	}
	assert_int_equal(wpt_writer_take(w, NULL, NULL), 0);
	after = thin_size(pid, &thin);
	wpt_writer_close(w);
	wpt_tracker_close(t);
	print_message("# rss %" PRIu64 " -> %" PRIu64 " KiB, swap %" PRIu64 " -> %" PRIu64 " KiB, blocks %" PRIu64 " -> %" PRIu64 "\n",
		      before.rss_kib, after.rss_kib, before.swap_kib, after.swap_kib, before.blocks, after.blocks);
	if (after.rss_kib > before.rss_kib + allowance_kib)
		fail_msg("the target grew from %" PRIu64 " to %" PRIu64 " KiB", before.rss_kib, after.rss_kib);
	if (after.blocks > before.blocks)
		fail_msg("the file grew from %" PRIu64 " to %" PRIu64 " blocks", before.blocks, after.blocks);
	thin_compare(folder, &thin, pid);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	remove_folder(folder);
	if (thin.fd >= 0)
		close(thin.fd);
	close(to[0]);
	close(to[1]);
	close(from[0]);
	close(from[1]);
}

static void sparse_anonymous_memory_does_not_grow(void **state)
{
	(void)state;
	read_thin(THIN_ANON, false, 0);
}

static void a_sparse_memfd_does_not_grow(void **state)
{
	(void)state;
	read_thin(THIN_MEMFD, false, 0);
}

static void a_sparse_memfd_that_is_compared_does_not_grow(void **state)
{
	(void)state;
	read_thin(THIN_MEMFD, true, 0);
}

static void a_private_file_mapping_does_not_grow(void **state)
{
	(void)state;
	read_thin(THIN_FILE_PRIVATE, false, 0);
}

static void a_shared_file_mapping_does_not_grow(void **state)
{
	(void)state;
	read_thin(THIN_FILE_SHARED, false, 0);
}

static void swapped_memory_stays_out(void **state)
{
	(void)state;
	/*
	 * What was read goes back. The eight pages that the target wrote to meanwhile are its own, and those that swap reads ahead; and each
	 * processor that the reader was taken from keeps a few that were not on any list yet.
	 */
	read_thin(THIN_SWAPPED, false, 8192);
}

/* ---- who watches is killed ---- */

/* The process that stops the target for a watcher shares its descriptors, and dies a moment after it: so long the chain is locked. */
static int open_unlocked(struct wpt_writer **w, struct wpt_tracker *t, const char *folder, const struct wpt_writer_options *o)
{
	uint64_t until = now_ms() + 120000;
	int r;

	while ((r = wpt_writer_open(w, t, folder, o)) == -WPT_E_LOCKED && now_ms() < until)
		sleep_us(500);
	return r;
}

/* Takes links until it is killed. Whatever is wrong ends it with a code, which is what the test looks at. */
static __attribute__((noreturn)) void watcher_main(pid_t pid, const char *folder, bool sync)
{
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = sync ? 0 : WPT_WRITER_NO_SYNC, .nr_threads = 1 };
	uint64_t until = now_ms() + 120000;
	struct wpt_tracker *t;
	struct wpt_writer *w;
	int r;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	r = attach_pages(&t, pid);
	if (!r)
		r = open_unlocked(&w, t, folder, &wo);
	/* The helper of the one before may come to what it was to do only now. */
	while (!r || (r == -WPT_E_TRACED && now_ms() < until))
		r = wpt_writer_take(w, NULL, NULL);
	fprintf(stderr, "the watcher ended: %s\n", wpt_strerror(r));
	_exit(1);
}

static bool none_but_links(const char *folder)
{
	struct dirent *e;
	DIR *d = opendir(folder);
	bool good = true;

	while (d && (e = readdir(d)))
		good = good && (e->d_name[0] == '.' || strstr(e->d_name, ".wps"));
	if (d)
		closedir(d);
	return good;
}

/* The last word: the target rests, one more link is taken, and it is compared with its memory, read here. */
static void compare_at_rest(struct target *t, const char *folder, uint64_t *copy)
{
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = WPT_WRITER_NO_SYNC };
	struct iovec local = { NULL, BYTES }, remote = { (void *)ADDR, BYTES };
	uint64_t until = now_ms() + 120000;
	struct wpt_tracker *tracker;
	struct wpt_writer *w;
	int r;

	target_rest(t);
	assert_int_equal(attach_pages(&tracker, t->pid), 0);
	assert_int_equal(open_unlocked(&w, tracker, folder, &wo), 0);
	/* As in watcher_main(). */
	while ((r = wpt_writer_take(w, NULL, NULL)) == -WPT_E_TRACED && now_ms() < until)
		sleep_us(500);
	assert_int_equal(r, 0);
	wpt_writer_close(w);
	wpt_tracker_close(tracker);
	assert_true(chain_check(folder, copy) > 0);
	local.iov_base = malloc(BYTES);
	assert_non_null(local.iov_base);
	assert_int_equal(process_vm_readv(t->pid, &local, 1, &remote, 1, 0), BYTES);
	assert_memory_equal(local.iov_base, copy, BYTES);
	free(local.iov_base);
	atomic_store(&t->shared->run, 1);
}

static void killing_the_watcher_harms_neither_target_nor_chain(void **state)
{
	uint64_t *copy = malloc(BYTES);
	uint32_t links = 0, with_links = 0;
	struct target t;
	char folder[64];

	(void)state;
	NEED_SUPPORT();
	assert_non_null(copy);
	target_start(&t, NO_FILTER);
	for (unsigned int round = 0; round < 200; round++) {
		/* Half of them die while they attach, which is when they have the target in their hands. */
		uint64_t us = round % 2 ? random64() % 3000 : random64() % 40000;
		int status;
		pid_t pid;

		if (round % 20 == 0)
			folder_make(folder);
		fflush(stdout);
		pid = fork();
		assert_true(pid >= 0);
		if (!pid)
			watcher_main(t.pid, folder, round % 4 < 2);
		sleep_us(us);
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (!WIFSIGNALED(status))
			fail_msg("round %u: the watcher ended by itself", round);
		target_assert_well(&t);
		links = chain_check(folder, copy);
		with_links += links > 0;
		assert_true(none_but_links(folder));
		if (round % 20 == 19) {
			compare_at_rest(&t, folder, copy);
			remove_folder(folder);
		}
	}
	print_message("# after %u of 200 kills there were links\n", with_links);
	target_assert_well(&t);
	target_end(&t);
	free(copy);
}

/* ---- the target goes ---- */

struct watch {
	struct wpt_tracker *t;
	struct wpt_writer *w;
	char folder[64];
};

static void watch_start(struct watch *watch, pid_t pid)
{
	struct wpt_writer_options wo = { .size = sizeof(wo), .flags = WPT_WRITER_NO_SYNC, .nr_threads = 1 };

	folder_make(watch->folder);
	assert_int_equal(attach_pages(&watch->t, pid), 0);
	assert_int_equal(wpt_writer_open(&watch->w, watch->t, watch->folder, &wo), 0);
	assert_int_equal(wpt_writer_take(watch->w, NULL, NULL), 0);
}

static int note_run(void *arg, const struct wpt_run *run)
{
	(void)arg;
	(void)run;
	return 0;
}

/* Links until the target is gone: that is what all calls say then, and the chain holds nothing but the target's memory. */
static void watch_to_the_end(struct watch *watch)
{
	uint64_t *copy = malloc(BYTES), until = now_ms() + 120000, taken = 1;
	char byte;
	int r;

	assert_non_null(copy);
	/* A target that executes another program as it is stopped may take its time. */
	while ((r = wpt_writer_take(watch->w, NULL, NULL)) == 0 || r == -WPT_E_STOP_TIMEOUT) {
		assert_true(now_ms() < until);
		taken += r == 0;
	}
	if (r != -WPT_E_GONE)
		fail_msg("the link after the target's end: %s", wpt_strerror(r));
	assert_int_equal(wpt_writer_take(watch->w, NULL, NULL), -WPT_E_GONE);
	assert_int_equal(wpt_tracker_scan(watch->t, 0, UINT64_MAX, 0, note_run, NULL), -WPT_E_GONE);
	assert_int_equal(wpt_tracker_read(watch->t, ADDR, &byte, 1), -WPT_E_GONE);
	wpt_writer_close(watch->w);
	wpt_tracker_close(watch->t);
	assert_int_equal(chain_check(watch->folder, copy), taken);
	remove_folder(watch->folder);
	free(copy);
}

/* It wrote `n` more times: it lives and finds its memory as it left it. */
static void impostor_assert_well(const struct target *t, unsigned int n)
{
	char byte;

	while (n--) {
		assert_int_equal(read(t->alive[0], &byte, 1), 1);
		assert_int_equal(byte, 'i');
	}
	assert_int_equal(waitpid(t->pid, NULL, WNOHANG), 0);
}

static void an_exec_of_the_target_ends_the_watch(void **state)
{
	struct watch watch;
	struct target t;

	(void)state;
	NEED_SUPPORT();
	for (unsigned int round = 0; round < 20; round++) {
		target_start(&t, NO_FILTER);
		watch_start(&watch, t.pid);
		sleep_us(random64() % 2000);
		target_command(&t, EXEC);
		watch_to_the_end(&watch);
		impostor_assert_well(&t, 5);
		target_end(&t);
	}
}

static void an_exit_of_the_target_ends_the_watch(void **state)
{
	struct watch watch;
	struct target t;
	int status;

	(void)state;
	NEED_SUPPORT();
	for (unsigned int round = 0; round < 20; round++) {
		target_start(&t, NO_FILTER);
		watch_start(&watch, t.pid);
		sleep_us(random64() % 2000);
		target_command(&t, EXIT_7);
		watch_to_the_end(&watch);
		assert_int_equal(waitpid(t.pid, &status, 0), t.pid);
		/* By itself, not by something that we left in it. */
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
		t.pid = 0;
		target_end(&t);
	}
}

/* A process with the pid that another one had; -1: not allowed to choose. */
static pid_t fork_as(pid_t pid)
{
	struct clone_args args = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&pid, .set_tid_size = 1 };

	fflush(stdout);
	return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

static void a_reused_pid_is_not_taken_for_the_target(void **state)
{
	struct wpt_tracker *tracker;
	struct wpt_writer *w;
	struct watch watch;
	struct target t;
	pid_t pid;

	(void)state;
	NEED_SUPPORT();
	for (unsigned int round = 0; round < 5; round++) {
		target_start(&t, NO_FILTER);
		watch_start(&watch, t.pid);
		assert_int_equal(wpt_writer_take(watch.w, NULL, NULL), 0);
		kill(t.pid, SIGKILL);
		assert_int_equal(waitpid(t.pid, NULL, 0), t.pid);
		/* A pid and a start time tell processes apart only if the clock of start times went on. */
		sleep_us(30000);
		pid = fork_as(t.pid);
		if (!pid) {
			/* Without the lock of the chain, which is on a descriptor that it was born with. */
			dup2(t.alive[1], 3);
			syscall(SYS_close_range, 4, ~0u, 0);
			_exit(impostor_main(3));
		}
		if (pid < 0) {
			print_message("# skip: choosing the pid of a new process needs CAP_CHECKPOINT_RESTORE\n");
			skip();
		}
		assert_int_equal(pid, t.pid);
		impostor_assert_well(&t, 1);
		/* The new process may be tracked, but not as the continuation of the old one's chain. */
		assert_int_equal(wpt_writer_take(watch.w, NULL, NULL), -WPT_E_GONE);
		wpt_writer_close(watch.w);
		assert_int_equal(attach_pages(&tracker, pid), 0);
		assert_int_equal(wpt_writer_open(&w, tracker, watch.folder, NULL), -WPT_E_MISMATCH);
		wpt_tracker_close(tracker);
		watch.w = NULL;
		assert_int_equal(wpt_tracker_scan(watch.t, 0, UINT64_MAX, 0, note_run, NULL), -WPT_E_GONE);
		wpt_tracker_close(watch.t);
		{
			uint64_t *copy = malloc(BYTES);

			assert_non_null(copy);
			assert_int_equal(chain_check(watch.folder, copy), 2);
			free(copy);
		}
		remove_folder(watch.folder);
		impostor_assert_well(&t, 3);
		target_end(&t);
	}
}

/* ---- seccomp ---- */

/* A chain is taken, or refused before anything was touched; the filter holds afterwards. */
static void watch_filtered(enum filter filter)
{
	struct wpt_probe probe = { .size = sizeof(probe) };
	uint64_t *copy = malloc(BYTES);
	struct wpt_tracker *tracker;
	struct target t;
	char folder[64];
	int r, status;

	NEED_SUPPORT();
	assert_non_null(copy);
	assert_int_equal(wpt_probe(&probe), 0);
	target_start(&t, filter);
	target_assert_well(&t);
	for (unsigned int round = 0; round < 10; round++) {
		r = attach_pages(&tracker, t.pid);
		if (r == -WPT_E_SECCOMP) {
			assert_false(probe.features & WPT_F_SUSPEND_SECCOMP);
			break;
		}
		assert_int_equal(r, 0);
		wpt_tracker_close(tracker);
		target_assert_well(&t);
	}
	if (r == 0) {
		folder_make(folder);
		compare_at_rest(&t, folder, copy);
		remove_folder(folder);
	}
	target_assert_well(&t);
	target_command(&t, FORBIDDEN_CALL);
	if (filter == FILTER_KILL) {
		assert_int_equal(waitpid(t.pid, &status, 0), t.pid);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
		t.pid = 0;
	} else {
		assert_true(wait_for(&t.shared->answer, filter == FILTER_ERRNO ? 2 : 3));
		target_assert_well(&t);
	}
	target_end(&t);
	free(copy);
}

static void a_filter_that_traps_holds(void **state)
{
	(void)state;
	watch_filtered(FILTER_TRAP);
}

static void a_filter_that_kills_holds(void **state)
{
	(void)state;
	watch_filtered(FILTER_KILL);
}

static void a_filter_that_answers_holds(void **state)
{
	(void)state;
	watch_filtered(FILTER_ERRNO);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sparse_anonymous_memory_does_not_grow),
		cmocka_unit_test(a_sparse_memfd_does_not_grow),
		cmocka_unit_test(a_sparse_memfd_that_is_compared_does_not_grow),
		cmocka_unit_test(a_private_file_mapping_does_not_grow),
		cmocka_unit_test(a_shared_file_mapping_does_not_grow),
		cmocka_unit_test(swapped_memory_stays_out),
		cmocka_unit_test(a_filter_that_traps_holds),
		cmocka_unit_test(a_filter_that_kills_holds),
		cmocka_unit_test(a_filter_that_answers_holds),
		cmocka_unit_test(an_exec_of_the_target_ends_the_watch),
		cmocka_unit_test(an_exit_of_the_target_ends_the_watch),
		cmocka_unit_test(a_reused_pid_is_not_taken_for_the_target),
		cmocka_unit_test(killing_the_watcher_harms_neither_target_nor_chain),
	};
	const char *text = getenv("WPT_SEED");

	if (argc == 3 && !strcmp(argv[1], "--impostor"))
		return impostor_main(atoi(argv[2]));
	seed = text && *text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
	printf("# WPT_SEED=%" PRIu64 "\n", seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
