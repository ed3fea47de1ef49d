#!/bin/bash
# SPDX-License-Identifier: MIT
# planted.sh [BUILD]: plants bugs, one at a time, in a copy of a source file of the library, and sees to it that the kernel tests fail on
# each. The library itself has no hooks for this: a plant is an edit, and an edit that does not fit any more fails here.
# Prints TAP. Needs a built tree (make tests). Those that only a kernel with WP_WRITTEN shows are only built elsewhere; WPT_RUN is what such a
# kernel's tests are started with, e.g. WPT_RUN="scripts/vm-run -s /dir/of/build -s $PWD bzImage", and then nothing else is planted.
set -u
cd "$(dirname "$0")/../.." || exit 1
B=${1:-${WPT_BUILD:-build}}
CC=${CC:-cc}
work=$(mktemp -d -p "$B")
trap 'rm -rf "$work"; machine_restore' EXIT
cflags=(-std=gnu11 -O2 -g -w -pthread -fvisibility=hidden -Iinclude -Ilibwptrack)
read -ra pkg < <(pkg-config --cflags --libs libzstd libxxhash liburcu-bp cmocka)
. tests/tap.sh
. scripts/machine.sh

run=()
limit=300
if [ -n "${WPT_RUN:-}" ]; then
	read -ra run <<<"$WPT_RUN"
	limit=1500
	export WPT_STEPS=${WPT_STEPS:-400}
fi
[ -n "${WPT_RUN:-}" ] || machine_setup >"$work/out"
# Its own is the only way of tracking that a stock kernel has.
written=no
"${run[@]}" "$B/wpsnap" probe --json 2>/dev/null | grep -q '"wp_written":true' && written=yes

# plant NAME FILE EDIT TEST ONLY SIGN: EDIT is a perl substitution on the whole file; TEST must then fail and print SIGN.
plant() {
	[ -n "${WPT_RUN:-}" ] || WPT_TORTURE_COMPENSATION=on plant_in yes "$@"
}

# The same of a bug in what is done with WP_WRITTEN.
plant_written() {
	WPT_TORTURE_COMPENSATION='' plant_in "$written" "$@"
}

plant_in() {
	local try=$1 name=$2 file=$3 edit=$4 test=$5 only=$6 sign=$7 seed
	export WPT_TORTURE_COMPENSATION
	rm -f "$work"/out "$work"/*.c "$work"/*.o "$work/test"
	perl -0pe "$edit" "libwptrack/$file" >"$work/$file"
	if cmp -s "libwptrack/$file" "$work/$file"; then
		result 1 "$name" "the edit does not fit libwptrack/$file"
		return
	fi
	if ! $CC "${cflags[@]}" -c "$work/$file" -o "$work/planted.o" "${pkg[@]}" 2>"$work/out" ||
		! $CC "${cflags[@]}" "tests/kernel/$test.c" "$work/planted.o" "$B/libwptrack.a" "${pkg[@]}" -o "$work/test" 2>"$work/out"; then
		result 1 "$name" "does not build" "$work/out"
		return
	fi
	if [ "$try" = no ]; then
		result 0 "$name (built; only a kernel with WP_WRITTEN shows it)"
		return
	fi
	# A window of microseconds is not hit by every run.
	for seed in {7..20}; do
		WPT_SEED=$seed WPT_ONLY=$only timeout "$limit" "${run[@]}" "$work/test" >"$work/out" 2>&1 || break
		seed=
	done
	if [ -z "$seed" ]; then
		result 1 "$name" "was not noticed by $test ($only)" "$work/out"
	elif ! grep -qE "$sign" "$work/out"; then
		result 1 "$name" "failed otherwise than by '$sign'" "$work/out"
	else
		result 0 "$name"
	fi
}

wrong='WRONG (BYTE|PAGE|RANGE)'

plant 'one dirty run in a hundred is dropped' collect.c \
	's/(while \(!err && \(got = wpt_scan_next\(l->scan, &run\)\) > 0\) \{\n)(\t\terr = wpt_ledger_dirty)/$1\t\tstatic int nr;\n\t\tif (++nr % 100 == 0)\n\t\t\tcontinue;\n$2/' \
	torture_test anon "$wrong"
plant 'a zapped page is taken for clean' copy.c \
	's/(static int add_zero\(struct wpt_copy \*c, uint64_t start, uint64_t end\)\n\{\n.*?\n\n)/$1\treturn 0;\n/s' \
	torture_test anon "$wrong"
plant 'a scan with protection whose output is discarded' collect.c \
	's/(\twpt_scan_start\(l->scan, start, end, match, true\);\n)/\twpt_scan_start(l->scan, start, end, &wpt_match_dirty, true);\n\twhile (wpt_scan_next(l->scan, &run) > 0)\n\t\t;\n$1/' \
	torture_test anon "$wrong"
plant 'copied before it is protected' rounds.c \
	's/(k->copy.round = true;\n\terr = wpt_copy_run\(&k->copy\);\n)/$1\tif (!err)\n\t\terr = wpt_tracker_look(w->t, 0);\n/' \
	torture_test anon "$wrong"
plant 'fuzzy: pages are copied before they are protected and never looked at again' snapshot.c \
	's/k->copy\.check_torn = true;/k->copy.check_torn = false;/' \
	torture_test fuzzy "$wrong|pages are mixed"
plant 'memory mapped anew is taken for the old' unknown.c \
	's/(int wpt_tracker_unknown\(struct wpt_tracker \*t, uint64_t start, uint64_t end\)\n\{\n.*?\n\n)/$1\treturn 0;\n/s' \
	torture_test anon "$wrong"
plant 'inotify is not asked' bypass.c \
	's/wpt_vec_at\(&t->files, struct wpt_file, i\)->changed = true;/;/' \
	torture_test tmpfs "$wrong"
plant 'a private page that fell back to the file is taken for clean' collect.c \
	's/err = wpt_tracker_uncowed\(l->t, l->scan, start, end, true\);/err = 0;/' \
	torture_test file-private "$wrong"
plant 'what a scan that failed protected is not noted' copy_torn.c \
	's/if \(!err && \(got < 0 \|\| c->area->sparse\) && private\)/if (0)/' \
	private_test 'private_pages*fuzzy*' 'private_pages_of_a_file_in_fuzzy_links'
plant 'what a scan that failed protected is not doubted' look.c \
	's/(static int doubt_cowed\(.*?\|\| a->exact)\)/$1 || a->sparse)/s' \
	private_test 'private_pages*fail' 'private_pages_of_a_file_and_scans_that_fail'
plant 'a file is read that was copied up since it was mapped' bypass.c \
	's/file->stacked = [^;]*;/file->stacked = false;/' \
	bypass_test '' 'copied_up'
plant 'a page that a write fault without its write made private is not noted' collect.c \
	's/err = forget \? note_present\(/err = 0 \&\& forget ? note_present(/' \
	private_test 'write_faults*' 'write_faults_that_are_not_repeated'
plant 'a zap that took a write is taken for clean' collect.c \
	's/(static int collect\(.*?match = &wpt_match_)written/$1dirty/s' \
	torture_test memfd "$wrong"
plant 'marks of protection that a merge left are taken for protection' look.c \
	's/err = drop_marks\(l, start, end\);/;/' \
	snapshot_test 'memory_that*' 'moves_next_to_other_memory'
plant 'sync: a registration that a merge took is not missed' collect.c \
	's/err = wpt_scan_check\(l->scan, start\);/err = 0;/' \
	snapshot_test 'memory_that*' 'moves_next_to_other_memory'
plant 'other processes that write are not looked for' bypass.c \
	's/file->writer_seen \|= use->other_writer;/;/' \
	bypass_test '' 'FAILED'
plant 'a failed link loses the dirty set' snapshot.c \
	's/\t\t\twpt_ledger_rollback\(w->t->ledger\);/\t\t\twpt_ledger_commit(w->t->ledger);/' \
	snapshot_test '' 'FAILED'
plant "a memfd's time of change is not asked" bypass.c \
	's/file->times_changed = .*?;/file->times_changed = false;/s' \
	bypass_test '' 'private_mapping_of_a_file_that_changes'
plant 'a process that mapped the file and went is not noticed' writers.c \
	's/IN_MODIFY \| IN_CLOSE_WRITE/IN_MODIFY/' \
	bypass_test '' 'come_and_gone'
plant 'pinned buffers are not looked for' bypass.c \
	's/busy = wpt_target_pinned\(t->target, &pieces, &t->pinned_loud\);/busy = 0;/' \
	bypass_test '' 'io_uring_fixed_buffers'
plant 'a page that was punched while it was read is taken for clean' bypass.c \
	's/err = compare_unmapped\(/err = 0 && compare_unmapped(/' \
	bypass_test '' 'large_page_that_is_punched'
plant 'bypass: what inotify says of holes on a tmpfs is not believed' bypass.c \
	's/file->silent = file->tmpfs && is_silent\(&st\);/file->silent = file->tmpfs || is_silent(&st);/' \
	bypass_test 'unmapped_pages_of*' 'FAILED'
plant 'rounds of a target with direct I/O' rounds.c \
	's/\tif \(t->direct\) \{/\tif (0) {/' \
	direct_test 'rounds_while*' 'WRONG PAGE'
plant 'rounds are relied on though direct I/O began meanwhile' rounds.c \
	's/int err = doubt_rounds\(k\);/int err = 0;/' \
	direct_test 'opened*' 'opened_while_there_are_rounds'
plant 'only the descriptors of one thread are looked at' writers.c \
	's/d->first && wpt_sys\(SYS_kcmp, [^;]*?== 0\)/d->first)/' \
	direct_test 'opened*' 'opened_by_a_thread'
plant 'fuzzy: direct I/O that is under way is over' rounds.c \
	's/k->in_flight = .*?;/k->in_flight = false;/' \
	direct_test 'fuzzy*' 'WRONG PAGE'
plant 'asynchronous direct I/O is over in a pause' rounds.c \
	's/"\/\[aio\]"/"[none]"/' \
	direct_test 'pauses*' 'WRONG PAGE'
plant 'sync: a private page that was given back while it was copied is taken for clean' copy.c \
	's/err = note_read\(c, at, stop\);/err = 0;/' \
	bypass_test '' 'private_pages_that_are_given_back'
plant 'sync: a run that was reported is not protected' scan.c \
	's/(static int protect_runs\(.*?for \(i = 0; i < s->nr && !err;\) \{\n)/$1\t\tstatic unsigned int nr;\n\t\tif (++nr % 50 == 0) {\n\t\t\ti++;\n\t\t\tcontinue;\n\t\t}\n/s' \
	sync_test '' 'FAILED'
export WPT_TORTURE_BACKEND=sync # rounds_test is of the other one by itself
plant 'sync: a page that was not reported is protected too' scan.c \
	's/s->regions\[i\]\.start - end <= s->bridge/s->regions[i].start - end <= (64 << 12)/' \
	rounds_test '' "$wrong"
unset WPT_TORTURE_BACKEND
plant 'cow: a write goes through before its page is saved' fault.c \
	's/(\ts->addr = page;\n\ts->next = NULL;\n)/$1\tresolve(f, page);\n/; s/&& is_intact\(f, page\)//' \
	cow_test 'writers*' 'VIOLATED'
plant 'cow: a page is left to be saved that is not protected' cow.c \
	's/(\treturn wpt_ledger_pend\()/\twpt_kern_unprotect(k->t->how.uffd, *from, *from + WPT_PAGE);\n$1/; s/(static bool is_intact\(.*?\n\{\n.*?\n\n)/$1\treturn true;\n/s' \
	cow_test 'writers*' 'VIOLATED'
plant 'cow: what is given back while it is copied is not noticed' cow.c \
	's/(static bool is_intact\(.*?\n\{\n.*?\n\n)/$1\treturn true;\n/s' \
	cow_test 'memory_that_is_given*' 'VIOLATED'
plant 'hot: pages are protected again after they were reported' hot.c \
	's/wpt_kern_unprotect\(/wpt_kern_protect(/' \
	hot_test 'asynchronous' 'is wrong'
plant 'rounds: a page that is staged is not copied again' copy.c \
	's/memcpy\(slot_at\(c, c->again_slots\[i\]\), data, WPT_PAGE\);/;/' \
	rounds_test '' "$wrong"
plant 'rounds: a staged page that is gone keeps what was staged' copy.c \
	's/memset\(slot_at\(c, slot\), 0, WPT_PAGE\);/;/' \
	rounds_test '' "$wrong"
plant 'rounds: what is gone is not told' collect.c \
	's/wpt_ledger_gone\(l->t->ledger, run.start, run.end\);/;/' \
	rounds_test '' "$wrong"
plant 'rounds: staged copies are written to after they were given away' copy.c \
	's/\tc->staging = false;\n\tc->spilled/\tc->spilled/' \
	rounds_test '*little*' "$wrong|damaged|FAILED"
plant 'lazy: what is in several mappings is taken for unmapped' lazy_serve.c \
	's/return len > page \? 0 : \(int64_t\)len;/return (int64_t)len;/' \
	lazy_test 'mappings_that_change' 'FAILED'
plant 'lazy: what was given back comes all the same' lazy_serve.c \
	's/if \(msg->event == UFFD_EVENT_REMOVE\)\n\t\tgiven_back\([^;]*;//' \
	lazy_test 'used_while_it_comes' 'FAILED'
plant 'lazy: a huge page is complete before its last piece' lazy_serve.c \
	's/unit <= last; unit\+\+/unit < last; unit++/' \
	lazy_test 'huge_pages_are_put_together' 'FAILED'
plant 'lazy: what is missing at the end is zero' lazy.c \
	's/good = forbid_missing\(l\);//' \
	lazy_test 'closed_too_early*' 'FAILED'
plant 'rounds: that a copy that was given away is zero again is left to a ledger that does not know it yet' copy.c \
	's/\tc->staging = false;\n\tc->spilled/\twpt_copy_unstage(c);\n\tc->spilled/' \
	rounds_test 'zero_again_*' 'FAILED'
plant 'rounds: that a page can not be read any more is lost with the batch that says it' copy.c \
	's/(err = again_flush\(c\);\n\tif \(err) \|\| c->batch/$1/' \
	rounds_test 'unreadable_*' 'FAILED'
plant 'a look that had no memory to note what it protected is forgotten' look.c \
	's/t->lost \|= err != 0;/;/' \
	snapshot_test 'memory_that_runs_out' 'FAILED'
plant 'what a continued chain had of memory that is not tracked is taken for known' snapshot.c \
	's/(wpt_tracker_forget_uncovered\(w->t, )w->all/$1false/' \
	snapshot_test '*chain_lost' 'FAILED'
plant 'mappings that the kernel lists over others are taken as they are' maps.c \
	's/map->start >= end\)/map->start >= end || true)/' \
	target_test '*maps_while*' 'FAILED'
plant 'several threads: nobody looks at the last part' collect.c \
	's/wpt_crew_run\(s->crew, nr, collect_part, s\);/wpt_crew_run(s->crew, nr - 1, collect_part, s);/' \
	torture_test anon-attached "$wrong"
plant 'a huge page that was given back is taken for clean' huge.c \
	's/(\t\terr = wpt_target_collapse\(t->target, start, end\);\n)/$1\tif (!err)\n\t\terr = wpt_kern_protect(wpt_target_uffd(t->target), start, end);\n/' \
	huge_test 'writers_*' 'WRONG PAGES'
plant 'a huge page that a child shares is collapsed' huge.c \
	's/const uint64_t whole = WPT_ENTRY_PRESENT \| WPT_ENTRY_EXCLUSIVE;/const uint64_t whole = WPT_ENTRY_PRESENT;/' \
	huge_test 'shared_with_a_child' 'FAILED'
plant 'more huge pages are given back than the staging memory holds' huge.c \
	's/b\.blocks = WPT_MIN\(bytes, MAX_BYTES\) \/ h->block;/b.blocks = MAX_BYTES \/ h->block;/' \
	huge_test 'no_more_than_fits' 'FAILED'
if [ "$(awk '$1 == "HugePages_Free:" { f = $2 } $1 == "HugePages_Rsvd:" { r = $2 } END { print f - r }' /proc/meminfo)" -ge 18 ]; then
	plant 'a huge page that was zapped and read again is taken for clean' collect.c \
		's/err \|\| match != &hugetlb \? err : collect_refilled\(l, a, start, end\)/err/' \
		torture_test hugetlb "$wrong"
fi
plant_written 'WP_WRITTEN: data that is not mapped gets no markers' look.c \
	's/err = lay_markers\(l, a, start, end\);/err = 0;/' \
	written_test '' 'a_hole_that_a_read_fills_is_seen'
plant_written 'WP_WRITTEN: only pages that are there are collected' collect.c \
	's/(static int collect_written.*?)&wpt_match_written/static const struct wpt_scan_match there = { .mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT };\n$1&there/s' \
	torture_test thp "$wrong"
plant_written 'WP_WRITTEN: what must be compared is not' copy.c \
	's/err = copy_span\(c, unknown, unknown_end\);/err = unknown_end - unknown == a->end - a->start ? copy_span(c, unknown, unknown_end) : 0;/' \
	torture_test anon "$wrong"
plant_written 'WP_WRITTEN: private pages that are in swap are read from the file' copy.c \
	's/a->kind == WPT_KIND_HUGETLB_PRIVATE \? &present : &wpt_match_populated/&present/' \
	torture_test private "$wrong"
plant_written 'WP_WRITTEN is counted on and not asked for' target.c \
	's/uffd == WPT_UFFD_WRITTEN \? UFFD_FEATURE_WP_WRITTEN : 0/0/' \
	torture_test memfd "$wrong"
tap_end
