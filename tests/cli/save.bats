#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap probe and save: what is stored, and which ranges.

load common

setup()
{
	common_setup
	need_tracking
}
teardown() { common_teardown; }

# same_range CHAIN RANGE: the chain's bytes are the target's
same_range()
{
	rm -f restored dumped
	"$WPSNAP" restore -q "$1" -o restored --range "$2"
	dump "$2" dumped
	cmp restored dumped
}

@test "probe says which backend is used and explains every feature" {
	try "$WPSNAP" probe
	exits 0
	# Debian 12's own kernel has no other
	if ! grep -qE '^  yes  async ' out; then
		grep -qE '^backend +sync$' out
		grep -qE '^tracking +sync ' out
		lacks '^  (yes|no ) +[a-z_]+ *$' out
		return
	fi
	grep -qE '^backend +async$' out
	if grep -qE '^  yes  wp_written ' out; then
		grep -qE '^tracking +async \+ WP_WRITTEN \(exact; untouched memory costs no page tables\)$' out
	else
		grep -qE '^tracking +async \(with compensation for ' out
	fi
	grep -qE '^  yes  async ' out
	lacks '^  (yes|no ) +[a-z_]+ *$' out
}

@test "probe --json is one object with every feature" {
	try "$WPSNAP" probe --json
	exits 0
	json_is_valid
	[ "$(wc -l <out)" -eq 1 ]
	if ! grep -q '"async":true' out; then
		says '"backend":"sync","tracking":"compensated"' out
		return
	fi
	says '"backend":"async"' out
	says '"wp_async":true' out
	if says '"wp_written":true' out; then
		says '"tracking":"exact"' out
	else
		says '"tracking":"compensated"' out
	fi
}

@test "a snapshot of everything restores byte for byte" {
	target_start
	tell fill 1
	try "$WPSNAP" save "$TARGET" -o s.wps
	exits 0
	grep -qE '^link 0 save: [0-9]+ pages dirty, [0-9]+ stored, .*, pause .*, total ' out
	[ "$(stat -c %a s.wps)" = 600 ]
	"$WPSNAP" verify s.wps
	"$WPSNAP" restore s.wps -o all
	same_as_folder all
}

@test "zstd tests the file and its output is the pages in order" {
	command -v zstd >/dev/null || skip "needs zstd"
	target_start 64 16
	tell fill 2
	"$WPSNAP" save "$TARGET" -o s.wps --range "$(range $ANON 0 64)"
	zstd -qt s.wps
	dump "$(range $ANON 0 64)" dumped
	zstd -qdc <s.wps | cmp - dumped
}

@test "one range: exactly its bytes, zeros where nothing was" {
	target_start 256 64
	tell write 3 5 7
	"$WPSNAP" save "$TARGET" -o s.wps --range "$(range $ANON 0 256)"
	"$WPSNAP" restore s.wps -o raw
	dump "$(range $ANON 0 256)" dumped
	cmp raw dumped
	[ "$(stat -c %s raw)" -eq $((256 * 4096)) ]
	[ "$(stat -c %b raw)" -le $((5 * 8 + 16)) ]
}

@test "ranges by name: base name, full name, [heap], and pieces that are apart" {
	target_start 64 16 hole
	tell fill 3
	"$WPSNAP" save "$TARGET" -o a.wps --range guest.ram
	"$WPSNAP" info --json a.wps >info
	[ "$(grep -c '"type":"range"' info)" -eq 2 ]
	same_range a.wps "$(range $SHARED 0 16)"
	same_range a.wps "$(range $SHARED 64 16)"
	for name in memfd:guest.ram '/memfd:guest.ram (deleted)' '[stack]' target_mem; do
		rm -f b.wps
		try "$WPSNAP" save "$TARGET" -o b.wps --range "$name"
		exits 0
	done
	"$WPSNAP" save "$TARGET" -o c.wps --range '[stack]' --range "$(range $ANON 0 8)" --range "$(range $ANON 4 8)"
	same_range c.wps "$(range $ANON 0 12)"
	"$WPSNAP" info --json c.wps >info
	says "\"start\":\"0x$ANON\",\"end\":\"0x$(range $ANON 0 12 | cut -d- -f2)\"" info
}

@test "a name that the process has no mapping of" {
	target_start
	try "$WPSNAP" save "$TARGET" -o s.wps --range nothing.ram
	exits 1
	says "no mapping 'nothing.ram'"
	messages_are_ours
	[ ! -e s.wps ]
}

@test "standard output: through a pipe, with the summary on stderr" {
	target_start 64 16
	tell fill 4
	"$WPSNAP" save "$TARGET" -o - --range "$(range $ANON 0 64)" 2>err | cat >s.wps
	says 'link 0 save:'
	"$WPSNAP" verify s.wps
	same_range s.wps "$(range $ANON 0 64)"
}

@test "--parent stores what differs, and the two restore the whole" {
	target_start
	tell fill 5
	"$WPSNAP" save "$TARGET" -o a.wps --range "$(range $ANON 0 256)"
	tell write 10 3 6
	tell zap 100 5
	"$WPSNAP" save "$TARGET" -o b.wps --parent a.wps --range "$(range $ANON 0 256)" --json >out
	says '"sequence":1' out
	says '"pages_stored":3,' out
	[ "$(stat -c %s b.wps)" -lt $((8 * 4096)) ]
	same_range b.wps "$(range $ANON 0 256)"
	mv a.wps c.wps
	rm c.wps
	try "$WPSNAP" verify b.wps
	exits 3
	says 'put the missing parents into the same folder'
}

@test "--parent that is none" {
	target_start 16 16
	try "$WPSNAP" save "$TARGET" -o b.wps --parent missing.wps
	exits 1
	says missing.wps
	echo junk >junk
	try "$WPSNAP" save "$TARGET" -o b.wps --parent junk
	exits 3
	[ ! -e b.wps ]
}

@test "an existing file is refused and not touched" {
	target_start 16 16
	echo mine >s.wps
	try "$WPSNAP" save "$TARGET" -o s.wps
	exits 1
	says 'remove it or choose another name'
	[ "$(cat s.wps)" = mine ]
	ln -s nowhere link.wps
	try "$WPSNAP" save "$TARGET" -o link.wps
	exits 1
	[ ! -e nowhere ]
}

@test "--mode fuzzy of a target at rest holds the same" {
	target_start
	tell fill 6
	try "$WPSNAP" save "$TARGET" -o s.wps --mode fuzzy --json
	exits 0
	says '"pages_torn":0,' out
	says '"pause_ns":0,' out
	"$WPSNAP" info --json s.wps >info
	says '"mode":"fuzzy"' info
	"$WPSNAP" restore s.wps -o all
	same_as_folder all
}

@test "--mode cow and --backend sync hold the same, and say so" {
	"$WPSNAP" probe --json | grep -q '"sync":true' || skip "needs root, or a userfaultfd for the target's user that handles faults of system calls"
	target_start
	tell fill 6
	try "$WPSNAP" save "$TARGET" -o s.wps --mode cow --json
	exits 0
	says '"pages_torn":0,' out
	says '"cow_fallback":0' out
	"$WPSNAP" info --json s.wps >info
	says '"mode":"cow"' info
	"$WPSNAP" restore s.wps -o all
	same_as_folder all
	try "$WPSNAP" save "$TARGET" -o t.wps --backend sync --json
	exits 0
	"$WPSNAP" restore t.wps -o again
	same_as_folder again
}

@test "--collapse changes nothing of what is stored" {
	target_start
	tell fill 6
	try "$WPSNAP" save "$TARGET" -o s.wps --collapse --json
	exits 0
	says '"pages_collapsed":' out
	"$WPSNAP" restore s.wps -o all
	same_as_folder all
}

@test "levels and threads change the size or nothing, never the content" {
	target_start
	tell same 0 128
	tell write 128 64 9
	for args in '--level -50' '--level 1' '--level 19' '--level auto' '--threads 1' '--threads 3 --staging 4M'; do
		rm -f s.wps
		try "$WPSNAP" save "$TARGET" -o s.wps $args
		exits 0
		same_range s.wps "$(range $ANON 0 256)"
	done
}

@test "more memory than the staging memory holds" {
	target_start 4096 16
	tell fill 10
	try "$WPSNAP" save "$TARGET" -o s.wps --staging 4M
	exits 0
	same_range s.wps "$(range $ANON 0 4096)"
}

@test "registers and the command line are stored only if asked for" {
	target_start 31 13
	"$WPSNAP" save "$TARGET" -o a.wps
	"$WPSNAP" save "$TARGET" -o b.wps --registers --cmdline
	"$WPSNAP" info a.wps >a.info
	"$WPSNAP" info b.wps >b.info
	lacks 'registers|command line' a.info
	says 'registers' b.info
	says 'command line' b.info
}

@test "--verify-content names what is compared and what it costs" {
	target_start 16 16
	tell fill 11
	try "$WPSNAP" save "$TARGET" -o s.wps --verify-content
	exits 0
	says "compared by content: $(range $SHARED 0 16) "
	says 'asked for by --verify-content; each link reads and hashes 64.0 KiB while the target stands still'
	messages_are_ours
	same_range s.wps "$(range $SHARED 0 16)"
	try "$WPSNAP" save "$TARGET" -o t.wps --verify-content -q
	exits 0
	[ ! -s err ]
	[ ! -s out ]
}

@test "another process that may write makes a range compared, unless told otherwise" {
	need_root
	target_start 16 16
	tell fill 12
	exec 6<>"/proc/$TARGET/map_files/$(range $SHARED 0 16)"
	try "$WPSNAP" save "$TARGET" -o s.wps --json
	exits 0
	says "compared by content: $(range $SHARED 0 16) "
	says 'another process may write to it'
	says '--assume-sole-writer'
	json_is_valid
	says '"reason":"other-writer","skipped":false' out
	try "$WPSNAP" save "$TARGET" -o t.wps --assume-sole-writer
	exits 0
	exec 6>&-
	lacks 'another process' err
	same_range s.wps "$(range $SHARED 0 16)"
}

@test "--json is valid and carries the link" {
	target_start 16 16
	try "$WPSNAP" save "$TARGET" -o s.wps --json -q
	exits 0
	json_is_valid
	says '"type":"link","trigger":"save","sequence":0' out
	[ "$(grep -c '"type":"link"' out)" -eq 1 ]
}

@test "a stopped target is saved and stays stopped" {
	target_start 16 16
	tell fill 13
	freeze
	try "$WPSNAP" save "$TARGET" -o s.wps
	exits 0
	until_state "$TARGET" T
	thaw
	tell fill 13
	same_range s.wps "$(range $ANON 0 16)"
}

@test "the target runs on as before" {
	target_start
	tell fill 14
	for i in 1 2 3 4 5; do
		"$WPSNAP" save "$TARGET" -o "s$i.wps" >/dev/null
		tell write "$i" 1 "$i"
	done
	target_end exit 7
	[ ! -s target.err ]
}

@test "what can't be tracked is listed with the reason, and the exit code is 4" {
	target_start 16 16
	tell fill 1
	tell extra 8 1
	tell hold 8
	try "$WPSNAP" save "$TARGET" -o s.wps
	exits 4
	says "skipped: $(range $EXTRA 0 8) (no name), 32.0 KiB: another userfaultfd has it; it is not in the snapshot"
	messages_are_ours
	"$WPSNAP" verify s.wps
	same_range s.wps "$(range $ANON 0 16)"
	"$WPSNAP" info s.wps >info
	grep -qE "^  $(range $EXTRA 0 8) .*skipped: another userfaultfd has it" info
	try "$WPSNAP" save "$TARGET" -o q.wps -q
	exits 4
	says 'skipped: '
	[ ! -s out ]
	try "$WPSNAP" save "$TARGET" -o j.wps --json
	exits 4
	json_is_valid
	says '"reason":"busy","skipped":true' out
	try "$WPSNAP" save "$TARGET" -o r.wps --range "$(range $ANON 0 16)"
	exits 0
	only_notes err
}

@test "pages that can't be read: counted, zeros in the restored file, exit code 4 there" {
	# UFFDIO_POISON came with 6.6
	"$WPSNAP" probe --json | grep -q '"async":true' || skip "WP_ASYNC is missing, and then poisoned pages are too"
	target_start 16 16
	tell extra 4 1
	tell poison 1 3
	try "$WPSNAP" save "$TARGET" -o s.wps --range "$(range $EXTRA 0 4)"
	exits 0
	says ', 3 unreadable,' out
	"$WPSNAP" verify s.wps
	try "$WPSNAP" restore s.wps -o raw
	exits 4
	says '3 pages were not readable when the snapshot was taken; they are zeros in raw'
	dump "$(range $EXTRA 0 4)" dumped
	cmp raw dumped
	try "$WPSNAP" restore s.wps -o head --range "$(range $EXTRA 0 1)"
	exits 0
}
