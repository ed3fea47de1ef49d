#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap qemu: command lines that were stored, memory of other kinds, files that were there before, memory that is plugged, and what scripts read.

load common

setup_file() { guest_build; }
setup()
{
	qemu_setup
	need_tracking
}
teardown() { qemu_teardown; }

@test "the stored command line, and that of a machine that was restored by it" {
	local before after

	vm_grown vm 5
	before=$(size_of vm)
	try "$WPSNAP" qemu save vm/qmp.sock -o s.wps --cmdline
	exits 0
	after=$(size_of vm)
	vm_runs_on vm
	vm_kill vm
	mv vm orig
	vm_restore_with vm s.wps
	vm_says vm 20
	console_goes_on orig "$before" "$after" vm
	# The restored one is watched as the first was; what it says comes after X.
	before=$((X + $(size_of vm)))
	try "$WPSNAP" qemu save vm/qmp.sock -o t.wps --cmdline
	exits 0
	after=$((X + $(size_of vm)))
	vm_runs_on vm
	vm_kill vm
	# As if the first had gone on
	head -c "$X" orig/console >joined
	cat vm/console >>joined
	mv joined orig/console
	rm -rf vm
	vm_restore_with vm t.wps
	vm_says vm 20
	vm_kill vm
	console_goes_on orig "$before" "$after" vm
}

@test "no command line, and -daemonize" {
	local arg

	vm_grown orig 3
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps
	vm_kill orig
	try "$WPSNAP" qemu restore s.wps
	exits 2
	says '--cmdline'
	vm_args none
	for arg in -daemonize --daemonize; do
		try "$WPSNAP" qemu restore s.wps -- qemu-system-x86_64 "${ARGS[@]}" $arg
		exits 1
		says daemonize
		messages_are_ours
		[ ! -e none/pid ]
	done
}

@test "--json: each line is valid, and has how long the guest stood still, for its devices as well" {
	local n

	vm_grown orig 3
	vm_grown two 3
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps --json
	exits 0
	HELPERS=$(dirname "$HELPERS")/cli json_is_valid
	grep '"type":"link"' out | grep '"guest_stopped_ns":[1-9]' | grep '"device_ns":[1-9]' | grep -q '"device_bytes":[1-9]'
	lacks '"vm":' out
	try "$WPSNAP" qemu watch orig/qmp.sock two/qmp.sock -o dir --every 50ms --count 3 --json
	exits 0
	HELPERS=$(dirname "$HELPERS")/cli json_is_valid
	for n in orig two; do
		[ "$(grep "\"vm\":\"$n\"" out | grep '"type":"link"' | grep '"guest_stopped_ns":[1-9]' | grep -c '"device_bytes":[1-9]')" = 3 ]
		[ "$(grep "\"vm\":\"$n\"" out | grep -c '"type":"ready"')" = 1 ]
		[ "$(grep "\"vm\":\"$n\"" out | grep -c '"type":"end"')" = 1 ]
	done
	# How long the guest stood still is longer than how long its devices took, and shorter than the link.
	sed -n 's/.*"total_ns":\([0-9]*\).*"guest_stopped_ns":\([0-9]*\),"device_ns":\([0-9]*\).*/\1 \2 \3/p' out >ns
	[ "$(wc -l <ns)" = 6 ]
	awk '!($1 > $2 && $2 > $3) { print "total " $1 ", stopped " $2 ", devices " $3; bad = 1 } END { exit bad }' ns
	# A link that fails
	relay_start '"migrate"' before
	try "$WPSNAP" qemu watch orig/relay.sock -o failed --count 1 --every 50ms --json --pid "$(vm_pid orig)"
	[ "$status" -ne 0 ]
	HELPERS=$(dirname "$HELPERS")/cli json_is_valid
	grep '"type":"failed"' out | grep -q '"error":"QEMU'
	vm_runs_on orig
}

@test "huge pages: saved, watched and restored" {
	local n

	RAM=huge
	need_huge
	vm_boot orig 5
	note_settings orig
	qemu_watch --every 300ms --assume-sole-writer
	links 3
	watch_end
	exits 0
	lacks skipped watch.err
	unharmed orig
	vm_kill orig
	for n in 0 2 3; do
		vm_restore "copy$n" "dir@$n"
		vm_says "copy$n" 20
		vm_kill "copy$n"
		if [ "$n" = 0 ]; then
			console_goes_on orig "$BEFORE" "${AFTER[0]}" "copy$n"
		else
			console_goes_on orig "${AFTER[n - 1]}" "${AFTER[n]}" "copy$n"
		fi
	done
}

@test "a memory's file that was there before, with something else in it, is as in the snapshot" {
	local before

	vm_grown orig 5
	before=$(size_of orig)
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps
	vm_runs_on orig
	vm_kill orig
	yes 'somebody else was here' | head -c "${SIZE}M" >"$RAMS/copy.ram"
	vm_restore copy s.wps --paused
	"$WPSNAP" restore -q s.wps -o raw
	cmp raw "$RAMS/copy.ram"
	vm_qmp copy cont
	vm_says copy 40
	vm_kill copy
	console_goes_on orig "$before" "$(size_of orig)" copy
}

# Writes as QEMU does, through its page tables: poke NAME FILE PAGE TEXT
poke()
{
	local start

	start=$(awk -v file="$2" '$6 == file { sub("-.*", "", $1); print $1; exit }' "/proc/$(vm_pid "$1")/maps")
	printf '%s' "$4" | dd of="/proc/$(vm_pid "$1")/mem" bs=4096 seek=$((0x$start + $3 * 4096)) oflag=seek_bytes conv=notrunc status=none
}

# The dimm that the guest was given, as a command line says it
dimm()
{
	EXTRA=("${SLOTS[@]}" -object "memory-backend-file,id=dimm,size=32M,mem-path=$RAMS/$1.dimm,share=on" -device pc-dimm,id=dimm0,memdev=dimm)
}

@test "memory that is plugged while a watch runs is in the next links" {
	local n

	need_root
	# Where there may be memory above 4 GiB, the kernel takes 64 MiB for itself.
	SIZE=192
	SLOTS=(-m "${SIZE}M,slots=2,maxmem=1G")
	EXTRA=("${SLOTS[@]}")
	vm_boot orig 5
	note_settings orig
	qemu_watch --every 1h --assume-sole-writer
	links 0
	vm_qmp orig object-add "{\"qom-type\": \"memory-backend-file\", \"id\": \"dimm\", \"size\": $((32 << 20)), \"mem-path\": \"$RAMS/orig.dimm\",
		\"share\": true}" , device_add '{"driver": "pc-dimm", "id": "dimm0", "memdev": "dimm"}'
	poke orig "$RAMS/orig.dimm" 5 first
	poke orig "$RAMS/orig.dimm" 8191 last
	cp "$RAMS/orig.dimm" dimm1
	watch_link
	AFTER[1]=$(size_of orig)
	poke orig "$RAMS/orig.dimm" 5 other
	poke orig "$RAMS/orig.dimm" 77 new
	cp "$RAMS/orig.dimm" dimm2
	vm_runs_on orig
	watch_link
	AFTER[2]=$(size_of orig)
	unharmed orig
	watch_end
	exits 0
	vm_kill orig
	for n in 1 2; do
		dimm "copy$n"
		vm_restore "copy$n" "dir@$n" --paused
		cmp "$RAMS/copy$n.dimm" "dimm$n"
		vm_qmp "copy$n" cont
		vm_says "copy$n" 20
		vm_kill "copy$n"
		console_goes_on orig "${AFTER[n - 1]}" "${AFTER[n]}" "copy$n"
	done
	# Without it: the link before goes on, the others do not fit; nor does the one before with it.
	EXTRA=("${SLOTS[@]}")
	vm_restore copy0 dir@0
	vm_says copy0 20
	vm_kill copy0
	console_goes_on orig "$BEFORE" "${AFTER[0]}" copy0
	vm_args less
	try "$WPSNAP" qemu restore dir@1 -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says "no memory 'dimm'"
	dimm more
	vm_args more
	try "$WPSNAP" qemu restore dir@0 -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says 'more shared memory'
}
