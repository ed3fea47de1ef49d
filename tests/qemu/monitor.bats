#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap qemu: others who have to do with the same machine, a QEMU that hangs, and what a long watch uses.

load common

setup_file() { guest_build; }
setup()
{
	qemu_setup
	need_tracking
}
teardown() { qemu_teardown; }

@test "a monitor that has a client already: the error says so, and the watch goes on" {
	vm_grown orig 3
	note_settings orig
	qemu_watch --every 1h
	links 0
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps
	exits 1
	says 'a monitor serves one client'
	messages_are_ours
	[ ! -e s.wps ]
	watch_link
	unharmed orig
	watch_end
	exits 0
	# And when the watch has ended, the monitor is free.
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps
	exits 0
	unharmed orig
	until_true guards 0
}

# The words that a link says to QEMU; the pause is from `stop` to the last query-status.
IN_PAUSE='"migrate">"query-status"'

# somebody_else WORDS ERROR COMMANDS [OPTION]...: a save in which another client of QEMU says these commands at that moment
somebody_else()
{
	local words=$1 error=$2

	shift 2
	relay_start "$words" "'$HELPERS/qmp' orig/test.sock $1 >/dev/null"
	shift
	try "$WPSNAP" qemu save orig/relay.sock -o s.wps --pid "$(vm_pid orig)" "$@"
	cat relay.err
	grep -qx ran relay.out
	exits 1
	says "$error"
	messages_are_ours
	[ ! -e s.wps ]
	unharmed orig
	kill -KILL "$RELAY"
}

@test "somebody else lets the guest go on during the pause: there is no link" {
	vm_grown orig 3
	note_settings orig
	somebody_else "$IN_PAUSE" 'somebody else' cont
	# It stands still again when it is asked
	somebody_else "$IN_PAUSE" 'somebody else' 'cont , stop'
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps
	exits 0
	unharmed orig
}

@test "the guest stands still before its disks are saved; somebody else lets it go on before its devices: there is no link" {
	command -v qemu-img >/dev/null && command -v qemu-io >/dev/null || skip "needs qemu-img and qemu-io"
	qemu-img create -q -f qcow2 disk.qcow2 1M
	EXTRA=(-drive "file=disk.qcow2,format=qcow2,if=none,id=disk" -device "virtio-blk-pci,drive=disk")
	vm_grown orig 3
	note_settings orig
	# The relay ends, and with it the save, if the guest runs at the transaction.
	relay_start '"transaction"' "'$HELPERS/qmp' orig/test.sock query-status | grep -q '\"running\": false'"
	try "$WPSNAP" qemu save orig/relay.sock -o still.wps --pid "$(vm_pid orig)" --with-disks
	exits 0
	grep -qx ran relay.out
	unharmed orig
	kill -KILL "$RELAY"
	[ "$(qemu-img snapshot -U -l disk.qcow2 | grep -c wpsnap)" = 1 ]
	somebody_else '"transaction">"migrate"' 'somebody else' cont --with-disks
	[ "$(qemu-img snapshot -U -l disk.qcow2 | grep -c wpsnap)" = 1 ]
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps --with-disks
	exits 0
	[ "$(qemu-img snapshot -U -l disk.qcow2 | grep -c wpsnap)" = 2 ]
	unharmed orig
}

# Until then wpsnap waits for its deadlines, of ten seconds and of three.
@test "a QEMU that hangs in the pause: the link fails, the guest runs on as soon as QEMU does, and the next link is right" {
	vm_grown orig 3
	note_settings orig
	relay_start '"migrate">"migrate"' "kill -STOP $(vm_pid orig)"
	AFTER=()
	watch_start qemu watch orig/relay.sock -o dir --every 1h --pid "$(vm_pid orig)"
	watch_line
	links 0
	kill -USR1 "$WATCH"
	until_true grep -q 'link (SIGUSR1)' watch.err
	says 'still stands still' watch.err
	kill -CONT "$(vm_pid orig)"
	# Not only when it is time for the next link
	unharmed orig
	watch_link
	AFTER[1]=$(size_of orig)
	unharmed orig
	watch_end
	exits 0
	until_true guards 0
	vm_kill orig
	vm_restore copy dir
	vm_says copy 20
	vm_kill copy
	console_goes_on orig "${AFTER[0]}" "${AFTER[1]}" copy
}

@test "what the guest writes until it stands still is in the link" {
	vm_grown orig 10
	note_settings orig
	# Before the second link's stop, seven ticks or more
	relay_start '"stop">"stop"' 'n=$(stat -c %s orig/console); while [ "$(stat -c %s orig/console)" -lt $((n + 100)) ]; do sleep 0.02; done'
	AFTER=()
	watch_start qemu watch orig/relay.sock -o dir --every 1h --pid "$(vm_pid orig)" --assume-sole-writer
	watch_line
	links 0
	kill -USR1 "$WATCH"
	links 1
	grep -qx ran relay.out
	unharmed orig
	watch_end
	exits 0
	vm_kill orig
	vm_restore copy dir
	vm_says copy 40
	vm_kill copy
	console_goes_on orig $((AFTER[0] + 100)) "${AFTER[1]}" copy 30
}

# What a process has: descriptors, and resident memory in KiB
nr_files()
{
	find "/proc/$1/fd" -mindepth 1 | wc -l
}

resident()
{
	awk '$1 == "VmRSS:" { print $2 }' "/proc/$1/status"
}

@test "a watch of 60 links uses what it used after 20, and one guard" {
	local i files size vm_files

	vm_grown orig 3
	note_settings orig
	qemu_watch --every 1h
	links 0
	for i in {1..20}; do
		watch_link
	done
	files=$(nr_files "$WATCH")
	vm_files=$(nr_files "$(vm_pid orig)")
	size=$(resident "$WATCH")
	guards 1
	for i in {21..60}; do
		watch_link
	done
	echo "descriptors $files and $(nr_files "$WATCH"), QEMU's $vm_files and $(nr_files "$(vm_pid orig)"), KiB $size and $(resident "$WATCH")"
	[ "$(nr_files "$WATCH")" = "$files" ]
	[ "$(resident "$WATCH")" -lt $((size + 4096)) ]
	# The test's own client may be among QEMU's.
	[ "$(nr_files "$(vm_pid orig)")" -le $((vm_files + 1)) ]
	guards 1
	unharmed orig
	watch_end
	exits 0
	until_true guards 0
	"$WPSNAP" verify dir
}
