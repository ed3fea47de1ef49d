#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap info, verify, diff, merge and restore over one chain of three links.

load common

setup()
{
	common_setup
	need_tracking
	target_start 128 32
	tell fill 1
	watch_start watch "$TARGET" -o dir --every 0 --range "$(range $ANON 0 128)" --range guest.ram
	watch_ready
	dump "$(range $ANON 0 128)" anon.0
	tell write 8 4 2
	tell zap 64 2
	watch_link
	dump "$(range $ANON 0 128)" anon.1
	tell shared 3 1 9
	watch_link
	dump "$(range $ANON 0 128)" anon.2
	dump "$(range $SHARED 0 32)" shared.2
	watch_end
}
teardown() { common_teardown; }

@test "info prints target, ranges and a table of links" {
	try "$WPSNAP" info dir
	exits 0
	[ ! -s err ]
	grep -qE "^chain +[0-9a-f]{32}, 3 links, pages of 4096 bytes$" out
	grep -qE "^target +target_mem, pid $TARGET, boot $(cat /proc/sys/kernel/random/boot_id)$" out
	says '640.0 KiB in 2 ranges' out
	grep -qE "^  $(range $ANON 0 128) +512.0 KiB  anon$" out
	grep -qE "^  $(range $SHARED 0 32) +128.0 KiB  shmem .*guest.ram" out
	[ "$(grep -cE '^ +[0-2]  [0-9a-f]{8}  (full|incr)   pause ' out)" -eq 3 ]
	[ "$(grep -c '  full  ' out)" -eq 1 ]
}

@test "info --json" {
	try "$WPSNAP" info --json dir
	exits 0
	json_is_valid
	says '"type":"chain"' out
	says '"links":3,"ranges":2,"bytes_tracked":655360,' out
	says "\"pid\":$TARGET,\"comm\":\"target_mem\"" out
	says "\"start\":\"0x$ANON\",\"end\":\"0x$(range $ANON 0 128 | cut -d- -f2)\",\"size\":524288,\"kind\":\"anon\"" out
	[ "$(grep -c '"type":"link"' out)" -eq 3 ]
	says '"sequence":1,' out
	says '"pages_data":4,"pages_zero":2,' out
	try "$WPSNAP" info --json dir@1
	exits 0
	says '"links":2,' out
}

@test "verify: folder, link, link in the middle; several at once" {
	try "$WPSNAP" verify dir dir@0 dir@1 "$(echo dir/0000000002-*)"
	exits 0
	[ "$(grep -cE ': ok, [123] links, ' out)" -eq 4 ]
	try "$WPSNAP" verify --json dir dir@0
	exits 0
	json_is_valid
	says '{"schema":1,"type":"verify","chain":"dir","ok":true,"links":3,' out
	try "$WPSNAP" verify dir missing
	exits 1
	says 'dir: ok' out
}

@test "verify finds a missing link and a damaged parent" {
	cp -r dir gap
	rm gap/0000000001-*
	try "$WPSNAP" verify gap
	exits 3
	says 'a link of the chain is missing'
	cp -r dir bad
	file=$(echo bad/0000000000-*)
	printf 'XXXX' | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") / 2)) conv=notrunc status=none
	try "$WPSNAP" verify bad
	exits 3
}

@test "diff: 0 same, 1 different with the pages, 2 trouble" {
	try "$WPSNAP" diff dir dir@-1
	exits 0
	[ ! -s out ]
	try "$WPSNAP" diff dir@0 dir@1
	exits 1
	printf '%s  4 pages\n%s  2 pages\n' "$(range $ANON 8 4)" "$(range $ANON 64 2)" | diff - out
	try "$WPSNAP" diff -q dir@0 dir@1
	exits 1
	[ ! -s out ]
	[ ! -s err ]
	try "$WPSNAP" diff --json dir@1 dir@2
	exits 1
	json_is_valid
	says "{\"schema\":1,\"type\":\"diff\",\"start\":\"0x$(range $SHARED 3 1 | cut -d- -f1)\"" out
	says '"pages":1,"in":"both"}' out
	try "$WPSNAP" diff dir nothing
	exits 2
	try "$WPSNAP" diff nothing dir
	exits 2
	status=0
	"$WPSNAP" diff dir@0 dir@1 >/dev/full 2>err || status=$?
	[ "$status" -eq 2 ]
}

@test "diff says what is tracked in one only" {
	"$WPSNAP" save "$TARGET" -o part.wps --range "$(range $ANON 0 128)" -q
	try "$WPSNAP" diff dir part.wps
	exits 1
	says "$(range $SHARED 0 32)  32 pages  only in A" out
	try "$WPSNAP" diff part.wps dir
	exits 1
	says "$(range $SHARED 0 32)  32 pages  only in B" out
	lacks "^$ANON" out
}

@test "merge equals the chain, is full, and refuses to overwrite" {
	try "$WPSNAP" merge dir -o m.wps --level 3 --threads 2
	exits 0
	[ ! -s out ]
	"$WPSNAP" verify m.wps
	"$WPSNAP" diff dir m.wps
	"$WPSNAP" info --json m.wps >info
	says '"links":1,' info
	says '"full":true' info
	[ "$(stat -c %a m.wps)" = 600 ]
	try "$WPSNAP" merge dir -o m.wps
	exits 1
	says 'remove it or choose another name'
}

@test "restore: a range by name, by address, to standard output, each link" {
	"$WPSNAP" restore dir -o raw --range guest.ram
	cmp raw shared.2
	for i in 0 1 2; do
		"$WPSNAP" restore dir@$i -o - --range "$(range $ANON 0 128)" | cmp - anon.$i
	done
	[ "$(stat -c %a raw)" = 600 ]
	try "$WPSNAP" restore dir -o raw --range guest.ram
	exits 1
	says 'remove it or choose another name'
	cmp raw shared.2
}

@test "restore --range writes exactly END - START bytes, zeros where nothing was" {
	first=$(printf %x $((0x$ANON - 3 * 4096)))
	"$WPSNAP" restore dir -o raw --range "$first-$(range $ANON 0 131 | cut -d- -f2)"
	[ "$(stat -c %s raw)" -eq $((134 * 4096)) ]
	{ head -c $((3 * 4096)) /dev/zero; cat anon.2; head -c $((3 * 4096)) /dev/zero; } | cmp - raw
	"$WPSNAP" restore dir -o nothing --range 1000-3000
	head -c 8192 /dev/zero | cmp - nothing
	tail -c +101 anon.2 | head -c 5000 >part
	"$WPSNAP" restore dir -o odd --range "$(printf '%x-%x' $((0x$ANON + 100)) $((0x$ANON + 5100)))"
	cmp odd part
}

@test "restore without --range: a folder for several ranges, a file for one" {
	try "$WPSNAP" restore dir -o folder
	exits 0
	[ "$(stat -c %a folder)" = 700 ]
	cmp folder/"$(range $ANON 0 128)"*.raw anon.2
	cmp folder/"$(range $SHARED 0 32)"*.raw shared.2
	[ -s folder/ranges.txt ]
	try "$WPSNAP" restore dir -o folder
	exits 1
	try "$WPSNAP" restore dir -o -
	exits 2
	says '2 ranges'
	"$WPSNAP" save "$TARGET" -o one.wps --range "$(range $ANON 0 128)" -q
	"$WPSNAP" restore one.wps -o one.raw
	cmp one.raw anon.2
	"$WPSNAP" restore one.wps -o one/
	cmp one/*.raw anon.2
	"$WPSNAP" restore one.wps -o - | cmp - anon.2
}

@test "restore of a range that is not there" {
	try "$WPSNAP" restore dir -o raw --range nothing.ram
	exits 1
	says "the range 'nothing.ram'"
	says 'wpsnap info lists the ranges'
	messages_are_ours
	[ ! -e raw ]
	try "$WPSNAP" restore dir -o raw/ --range guest.ram
	exits 2
}

@test "a name that fits several ranges is ambiguous in restore" {
	exec 8>&- 9<&-
	target_start 16 16 hole
	"$WPSNAP" save "$TARGET" -o s.wps -q
	try "$WPSNAP" restore s.wps -o raw --range guest.ram
	exits 1
	says 'fits several'
}
