#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap qemu restore --lazy: the guest runs before its memory is there.

load common

setup_file() { guest_build; }
setup()
{
	qemu_setup
	need_tracking
	"$WPSNAP" probe | grep -q '^  yes  uffd_kernel ' || skip "needs a userfaultfd that handles faults of system calls"
}
teardown() { qemu_teardown; }

# all_there NAME: all memory has come.
all_there()
{
	until_true grep -q '^wpsnap: all memory of' "$1/restore.err"
}

still_restores()
{
	grep -qs 'still restores' save.err
}

@test "lazy: a guest goes on from any link, is saved, and goes on again" {
	local n before after

	vm_grown orig 5
	qemu_watch --every 100ms
	links 4
	vm_kill orig
	watch_wait
	exits 5
	for n in 0 2 4; do
		vm_restore "at$n" "dir@$n" --lazy
		says 'of its memory are to come' "at$n/restore.err"
		all_there "at$n"
		vm_says "at$n" 20
		console_goes_on orig "$([ "$n" = 0 ] && echo "$BEFORE" || echo "${AFTER[n - 1]}")" "${AFTER[n]}" "at$n"
	done
	# The last one is a machine like any other.
	before=$((X + $(size_of at4)))
	try "$WPSNAP" qemu save at4/test.sock -o again.wps --assume-sole-writer
	exits 0
	after=$((X + $(size_of at4)))
	vm_kill at4
	head -c "$X" orig/console >joined
	cat at4/console >>joined
	mv joined orig/console
	vm_restore again again.wps --lazy
	vm_says again 20
	console_goes_on orig "$before" "$after" again
}

# kind RAM: a guest with memory of that kind is saved, and goes on.
kind()
{
	local before after

	RAM=$1
	vm_boot orig 3
	before=$(size_of orig)
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps --assume-sole-writer
	exits 0
	after=$(size_of orig)
	vm_kill orig
	vm_restore vm s.wps --lazy
	all_there vm
	vm_says vm 20
	console_goes_on orig "$before" "$after" vm
}

@test "lazy: memory of a memfd" { kind memfd; }
@test "lazy: memory of two backends" { kind two; }
@test "lazy: huge pages" { need_huge; kind huge; }

@test "lazy: huge pages are put together" {
	vm_grown orig 5
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --assume-sole-writer
	vm_kill orig
	vm_restore vm s.wps --lazy --collapse
	all_there vm
	vm_says vm 20
	try "$WPSNAP" qemu restore s.wps --collapse -- qemu-system-x86_64
	exits 2
	says '--lazy'
}

@test "lazy: the guest that is paused, and all of its memory byte for byte" {
	vm_grown orig 5
	vm_qmp orig stop >/dev/null
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --assume-sole-writer
	cp --sparse=always "$RAMS/orig.ram" ram
	vm_kill orig
	vm_restore vm s.wps --lazy --paused
	says 'the guest is paused' vm/restore.err
	all_there vm
	cmp ram "$RAMS/vm.ram"
	vm_qmp vm cont >/dev/null
	vm_says vm 20
}

@test "lazy: the snapshot can't be read for a while: the guest waits, and a snapshot of it, and both go on" {
	local saver

	vm_grown orig 5
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --assume-sole-writer
	vm_kill orig
	vm_restore_without vm s.wps
	"$WPSNAP" qemu save vm/test.sock -o t.wps --assume-sole-writer >save.out 2>save.err </dev/null 3>&- 7<&- &
	saver=$!
	PIDS+=("$saver")
	until_true grep -qs "still restores" save.err
	sleep 1
	[ ! -e t.wps ]
	[ ! -s vm/console ]
	lacks '^wpsnap: all memory of' vm/restore.err
	rm away
	all_there vm
	grep -q 'it works again after' vm/restore.err
	wait "$saver"
	"$WPSNAP" verify t.wps
	vm_says vm 20
	vm_kill vm
	vm_restore third t.wps --lazy
	vm_says third 20
}

# For longer than QEMU is waited for otherwise: it does not answer while its devices wait for memory.
@test "lazy: the snapshot can't be read for eleven seconds while the devices' state is loaded" {
	vm_grown orig 5
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --assume-sole-writer
	vm_kill orig
	vm_restore_without vm s.wps 0
	sleep 11
	lacks '^wpsnap: restored' vm/restore.err
	rm away
	all_there vm
	vm_says vm 20
}

@test "lazy: wpsnap is killed before all is there" {
	local pid

	vm_grown orig 5
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --assume-sole-writer
	vm_kill orig
	vm_restore_without vm s.wps
	pid=$(vm_pid vm)
	kill -KILL "$RESTORE"
	# A guest without its memory must not run on.
	gone "$pid"
	lacks WRONG vm/console
}

@test "lazy: QEMU is killed before all is there" {
	vm_grown orig 5
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --assume-sole-writer
	vm_kill orig
	vm_restore_without vm s.wps
	vm_kill vm
	gone "$RESTORE"
}

@test "lazy: a snapshot that is damaged ends QEMU, and the guest sees none of it" {
	local size status=0

	vm_grown orig 5
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --assume-sole-writer
	vm_kill orig
	size=$(stat -c %s s.wps)
	printf '\x5a\xa5\x5a' | dd of=s.wps bs=1 seek=$((size / 2)) conv=notrunc status=none
	vm_args vm
	try "$WPSNAP" qemu restore s.wps --lazy -- qemu-system-x86_64 "${ARGS[@]}"
	exits 3
	says damaged
	[ -z "$(vm_pid vm)" ]
	lacks WRONG vm/console
}

@test "lazy: memory that can't come so is refused" {
	vm_grown orig 3
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --assume-sole-writer
	vm_kill orig
	vm_args vm
	ARGS=("${ARGS[@]/$RAMS\/vm.ram/$PWD/vm.ram}")
	try "$WPSNAP" qemu restore s.wps --lazy -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says 'without --lazy it works'
	[ -z "$(vm_pid vm)" ]
}
