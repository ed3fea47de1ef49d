#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap qemu --with-disks: the guest has disks that it does not use, so that what is on them is what the test wrote by QEMU's monitor.

load common

setup_file() { guest_build; }
setup()
{
	qemu_setup
	need_tracking
	QEMU_IMG=$(command -v qemu-img) && command -v qemu-io >/dev/null || skip "needs qemu-img and qemu-io"
	EXTRA=(-device "virtio-blk-pci,drive=disk")
}
teardown() { qemu_teardown; }

# The machine's disk `disk` is the file disk.qcow2.
qcow2_disk()
{
	qemu-img create -q -f qcow2 disk.qcow2 1M
	EXTRA+=(-drive "file=disk.qcow2,format=qcow2,if=none,id=disk")
}

# And `other`, which is other.qcow2.
other_disk()
{
	qemu-img create -q -f qcow2 other.qcow2 1M
	EXTRA+=(-drive "file=other.qcow2,format=qcow2,if=none,id=other" -device "virtio-blk-pci,drive=other")
}

# The guest `orig` with what disks there are, each full of its number: disk 1, other 2
guest_with_disks()
{
	vm_grown orig 5
	note_settings orig
	fill orig 1
	[ ! -e other.qcow2 ] || fill orig 2 other
}

# `small` is a file system of 2 MiB.
small_folder()
{
	need_root
	mkdir small
	mount -t tmpfs -o size=2M tmpfs small || skip "cannot mount a tmpfs"
	MOUNTED=$T/small
}

# fill VM PATTERN [DISK]: into the first pages of the disk of a VM that is there
fill()
{
	local said

	said=$(vm_qmp "$1" human-monitor-command "{\"command-line\": \"qemu-io ${3:-disk} \\\"write -P $2 0 64k\\\"\"}" , \
		human-monitor-command "{\"command-line\": \"qemu-io ${3:-disk} flush\"}")
	# What the commands themselves say goes to QEMU's standard output; what is wrong with them is said here.
	[[ $said == *'"return": ""'*'"return": ""'* ]] || { echo "not written: $said"; return 1; }
}

# holds PATTERN [FILE]: the same of an image that no QEMU has open
holds()
{
	qemu-io -r -f qcow2 -c "read -P $1 0 64k" "${2:-disk.qcow2}" >qemu-io.out 2>&1 && ! grep -i 'fail\|error' qemu-io.out && return
	echo "${2:-disk.qcow2} does not hold $1:"
	cat qemu-io.out
	return 1
}

# The names of an image's snapshots, one a line; QEMU may have it open.
snapshots()
{
	qemu-img snapshot -U -l "${1:-disk.qcow2}" | awk 'NR > 2 { print $2 }'
}

nr_snapshots()
{
	snapshots "${2:-disk.qcow2}" >names
	[ "$(wc -l <names)" = "$1" ] || { echo "not $1 snapshots in ${2:-disk.qcow2}:"; cat names; return 1; }
	lacks -v '^wpsnap-' names
}

@test "a disk is put back to the instant of the link, and what was on it is kept" {
	local before

	qcow2_disk
	guest_with_disks
	qemu_watch --with-disks --every 1h
	links 0
	nr_snapshots 1
	fill orig 2
	vm_runs_on orig
	watch_link
	AFTER[1]=$(size_of orig)
	nr_snapshots 2
	fill orig 3
	unharmed orig
	watch_end
	exits 0
	only_notes watch.err
	vm_kill orig
	vm_restore first dir@0 --with-disks
	vm_says first 20
	vm_kill first
	console_goes_on orig "$BEFORE" "${AFTER[0]}" first
	holds 1
	nr_snapshots 3
	before=$(grep '^wpsnap-before-' names)
	says "$before" first/restore.err
	vm_restore second dir --with-disks
	vm_says second 20
	vm_kill second
	console_goes_on orig "${AFTER[0]}" "${AFTER[1]}" second
	holds 2
	qemu-img snapshot -a "$before" disk.qcow2
	holds 3
	qemu-img check -q disk.qcow2
}

@test "a link that fails leaves no snapshot of a disk behind" {
	small_folder
	qcow2_disk
	guest_with_disks
	try "$WPSNAP" qemu save orig/qmp.sock -o small/s.wps --with-disks
	exits 1
	says 'No space left'
	nr_snapshots 0
	unharmed orig
	# The snapshot was made, for this error is of the end: without it the test would show nothing.
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps --with-disks
	exits 0
	nr_snapshots 1
	unharmed orig
}

@test "a paused guest's disks: once, since QEMU has closed them after that" {
	small_folder
	qcow2_disk
	guest_with_disks
	vm_qmp orig stop
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps --with-disks
	exits 0
	nr_snapshots 1
	# QEMU would abort.
	try "$WPSNAP" qemu save orig/qmp.sock -o t.wps --with-disks
	[ "$status" -ne 0 ]
	says "after 'cont' it can be saved again"
	messages_are_ours
	[ ! -e t.wps ]
	nr_snapshots 1
	vm_qmp orig query-status | grep -q '"running": false'
	vm_qmp orig cont
	unharmed orig
	# Nor does it delete one for us when the link fails.
	vm_qmp orig stop
	try "$WPSNAP" qemu save orig/qmp.sock -o small/s.wps --with-disks
	exits 1
	says 'No space left'
	messages_are_ours
	nr_snapshots 2
	says "$(tail -n 1 names)"
	vm_qmp orig query-status | grep -q '"running": false'
	vm_qmp orig cont
	unharmed orig
	fill orig 2
	vm_kill orig
	vm_restore copy s.wps --with-disks
	vm_qmp copy query-status | grep -q '"running": false'
	vm_qmp copy cont
	vm_says copy 20
	vm_kill copy
	holds 1
}

@test "two disks are of one instant; one that is raw is refused; a read-only one is left out" {
	qcow2_disk
	other_disk
	truncate -s 1M cd.raw
	EXTRA+=(-drive "file=cd.raw,format=raw,if=none,id=cd,readonly=on" -device "virtio-blk-pci,drive=cd")
	guest_with_disks
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps --with-disks
	exits 0
	only_notes err
	fill orig 3
	fill orig 4 other
	nr_snapshots 1
	mv names names.disk
	nr_snapshots 1 other.qcow2
	cmp names names.disk
	unharmed orig
	vm_kill orig
	vm_restore copy s.wps --with-disks
	vm_says copy 20
	vm_kill copy
	holds 1
	holds 2 other.qcow2
	# One that can't hold a snapshot: none is made of the others, either.
	truncate -s 1M raw
	EXTRA+=(-drive "file=raw,format=raw,if=none,id=raw" -device "virtio-blk-pci,drive=raw")
	rm -rf orig
	vm_grown orig 5
	note_settings orig
	snapshots >names.disk
	try "$WPSNAP" qemu save orig/qmp.sock -o t.wps --with-disks
	[ "$status" -ne 0 ]
	says "'raw'"
	messages_are_ours
	[ ! -e t.wps ]
	snapshots | cmp - names.disk
	unharmed orig
	# Without it, each that the guest may write to is warned of.
	try "$WPSNAP" qemu save orig/qmp.sock -o t.wps
	exits 0
	messages_are_ours
	[ "$(grep -c 'snapshots do not hold the disk' err)" = 3 ]
	says "'raw'"
	lacks "'cd'" err
	snapshots | cmp - names.disk
	unharmed orig
}

@test "a machine that does not fit, or a chain without disks: no disk is touched" {
	qcow2_disk
	guest_with_disks
	"$WPSNAP" qemu save -q orig/qmp.sock -o without.wps
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --with-disks
	fill orig 2
	unharmed orig
	vm_kill orig
	sha256sum disk.qcow2 >sum
	vm_args size
	ARGS=("${ARGS[@]//size=96M/size=112M}")
	ARGS=("${ARGS[@]/#96M/112M}")
	try "$WPSNAP" qemu restore s.wps --with-disks -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says 'wpsnap: '
	sha256sum -c --quiet sum
	vm_args machine
	ARGS=("${ARGS[@]//q35/pc}")
	try "$WPSNAP" qemu restore s.wps --with-disks -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says "the machine's type"
	sha256sum -c --quiet sum
	vm_args none
	try "$WPSNAP" qemu restore without.wps --with-disks -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says 'without --with-disks'
	sha256sum -c --quiet sum
	# Without the option they are not touched either, but for what the guest does, and that is said.
	vm_restore copy s.wps
	says 'qemu-img snapshot -a wpsnap-' copy/restore.err
	vm_says copy 20
	vm_kill copy
	holds 2
}

# ---- all disks, or none ----

# A link s.wps of a guest with two disks, on which is something else now: 3 and 4. `disk.raw` and `other.raw` hold that, by qemu-img convert.
two_disks_saved()
{
	qcow2_disk
	other_disk
	guest_with_disks
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --with-disks --cmdline
	LINK=$(snapshots)
	BOTH=("${EXTRA[@]}")
	fill orig 3
	fill orig 4 other
	unharmed orig
	vm_kill orig
	qemu-img convert -O raw disk.qcow2 disk.raw
	qemu-img convert -O raw other.qcow2 other.raw
}

# fails_to_restore TEXT: a restore of s.wps fails and says so, and no QEMU is left.
fails_to_restore()
{
	rm -rf copy
	vm_args copy
	try "$WPSNAP" qemu restore "s.wps" --with-disks -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says "$1"
	messages_are_ours
	! vm_pid copy || { echo "a QEMU was left behind"; return 1; }
}

# restore_refuses TEXT: and both disks are as they were, with no more snapshots than before.
restore_refuses()
{
	fails_to_restore "$1"
	disks_as_before
}

disks_as_before()
{
	local disk

	for disk in disk other; do
		rm -f now.raw
		qemu-img convert -O raw $disk.qcow2 now.raw
		cmp now.raw $disk.raw || return 1
		qemu-img check -q $disk.qcow2
	done
	[ "$(snapshots)" = "$LINK" ]
	lacks wpsnap-before <(snapshots other.qcow2)
}

# The Nth call of qemu-img with this word fails: qemu_img_fails WORD N [done]; with `done` after it has done what it was to.
qemu_img_fails()
{
	mkdir -p bin
	rm -f bin/calls
	cat >bin/qemu-img <<-END
		#!/bin/bash
		if [[ " \$* " = *" $1 "* ]]; then
			echo "\$*" >>$T/bin/calls
			if [ "\$(wc -l <$T/bin/calls)" -ge $2 ]; then
				[ -z "${3:-}" ] || $QEMU_IMG "\$@"
				echo 'qemu-img: no luck' >&2
				exit 1
			fi
		fi
		exec $QEMU_IMG "\$@"
	END
	chmod +x bin/qemu-img
}

@test "restore: a disk that is not fit, and none is touched" {
	two_disks_saved
	sha256sum disk.qcow2 >sum
	qemu-img snapshot -d "$LINK" other.qcow2
	restore_refuses "$T/other.qcow2 has no snapshot '$LINK'"
	sha256sum -c --quiet sum
	# Of that name, and of another
	qemu-img snapshot -c "${LINK}0" other.qcow2
	restore_refuses "has no snapshot '$LINK'"
	qemu-img snapshot -c "$LINK" other.qcow2
	qemu-io -f qcow2 -c 'write -P 4 0 64k' other.qcow2 >/dev/null
	# Not there
	mv other.qcow2 elsewhere.qcow2
	fails_to_restore "$T/other.qcow2 can't be written to: No such file"
	sha256sum -c --quiet sum
	# Another format
	qemu-img convert -O raw elsewhere.qcow2 other.qcow2
	try "$WPSNAP" qemu restore s.wps --with-disks -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says 'is raw now'
	mv elsewhere.qcow2 other.qcow2
	sha256sum -c --quiet sum
	# Without qemu-img
	mkdir nothing
	vm_args copy
	try env PATH="$T/nothing" "$WPSNAP" qemu restore s.wps --with-disks -- "$(command -v qemu-system-x86_64)" "${ARGS[@]}"
	exits 1
	says 'cannot execute qemu-img'
	messages_are_ours
	sha256sum -c --quiet sum
	# And all is well with what was restored by hand.
	vm_restore copy s.wps --with-disks
	vm_says copy 20
	vm_kill copy
	holds 1
}

@test "restore: a disk that can't be written to, and none is touched" {
	need_root
	two_disks_saved
	mkdir disks
	mount --bind disks disks || skip "cannot mount a tmpfs"
	MOUNTED=$T/disks
	mv other.qcow2 disks/
	ln -s disks/other.qcow2 other.qcow2
	mount -o remount,bind,ro disks
	sha256sum disk.qcow2 >sum
	restore_refuses "$T/other.qcow2 can't be written to: Read-only file system"
	sha256sum -c --quiet sum
	mount -o remount,bind,rw disks
	vm_restore copy s.wps --with-disks
	vm_says copy 20
	vm_kill copy
	holds 1
	holds 2 other.qcow2
}

@test "restore: disks that another QEMU has open are not touched, nor is that disturbed" {
	two_disks_saved
	sha256sum disk.qcow2 >sum
	# Only the second is open
	EXTRA=(-drive "file=other.qcow2,format=qcow2,if=none,id=other" -device "virtio-blk-pci,drive=other")
	rm -rf orig
	vm_grown orig 5
	note_settings orig
	fill orig 4 other
	EXTRA=("${BOTH[@]}")
	fails_to_restore "$T/other.qcow2 is in use"
	sha256sum -c --quiet sum
	unharmed orig
	vm_kill orig
	disks_as_before
	# Open without being written to: what was made of the first is taken back.
	EXTRA=(-drive "file=other.qcow2,format=qcow2,if=none,id=other,readonly=on" -device "virtio-blk-pci,drive=other")
	rm -rf orig
	vm_grown orig 5
	note_settings orig
	EXTRA=("${BOTH[@]}")
	fails_to_restore "$T/other.qcow2"
	unharmed orig
	vm_kill orig
	disks_as_before
}

@test "restore: qemu-img fails midway, and the disks are as they were" {
	local before

	two_disks_saved
	PATH=$T/bin:$PATH
	# The second snapshot of what is on them
	qemu_img_fails -c 2
	restore_refuses "what is on the disk $T/other.qcow2 can't be kept as a snapshot: no luck"
	[ "$(wc -l <bin/calls)" = 2 ]
	# The second that is put back; and the same when it was, though it says that it was not
	for before in '' done; do
		qemu_img_fails "-a $LINK" 2 $before
		restore_refuses "the disk $T/other.qcow2 can't be put back to its snapshot '$LINK': no luck"
		says "the disk $T/disk.qcow2 is again as it was before"
		[ "$(wc -l <bin/calls)" = 2 ]
	done
	# It can't be undone, either: what was on the disk is not lost, and it is said where it is.
	qemu_img_fails -a 2
	fails_to_restore "put back to its snapshot '$LINK': no luck"
	before=$(grep -oE 'wpsnap-before-[0-9.]+[0-9]' err | sort -u)
	says "the disk $T/disk.qcow2 could not be put back to what was on it before, which is its snapshot '$before'"
	rm bin/qemu-img
	hash -r
	qemu-img snapshot -a "$before" disk.qcow2
	holds 3
}

@test "restore: what fails when the disks are back puts them where they were" {
	local pid

	two_disks_saved
	# Another process has the file of the memory, which is seen when QEMU is started for good.
	qemu-system-x86_64 -machine none -nodefaults -display none -S -qmp unix:user.sock,server=on,wait=off \
		-object "memory-backend-file,id=x,size=${SIZE}M,mem-path=$RAMS/copy.ram,share=on" 3>&- >user.log 2>&1 </dev/null &
	pid=$!
	PIDS+=($pid)
	disown $pid
	"$HELPERS/qmp" user.sock query-status
	restore_refuses "process $pid has the file of the memory 'ram' mapped"
	says "the disk $T/disk.qcow2 is again as it was before"
	says "the disk $T/other.qcow2 is again as it was before"
	kill -KILL $pid
	gone $pid
	vm_restore copy s.wps --with-disks
	vm_says copy 20
	vm_kill copy
	holds 1
	holds 2 other.qcow2
}

@test "restore: disks named from QEMU's folder, by its own command from another folder" {
	# The second has a name in JSON, in which the file is named as it was given.
	qcow2_disk
	qemu-img create -q -f qcow2 other.qcow2 1M
	EXTRA+=(-drive "driver=qcow2,file.driver=raw,file.offset=0,file.file.driver=file,file.file.filename=other.qcow2,if=none,id=other"
		-device "virtio-blk-pci,drive=other")
	# The third is on a server.
	truncate -s 4M served
	qemu-nbd -f raw -k "$T/nbd.sock" -x served --persistent -e 4 served >nbd.log 2>&1 </dev/null 3>&- &
	PIDS+=($!)
	disown $!
	until_true test -S nbd.sock
	qemu-img create -q -f qcow2 "nbd+unix:///served?socket=$T/nbd.sock" 1M
	EXTRA+=(-drive driver=qcow2,file.driver=nbd,file.server.type=unix,file.server.path=nbd.sock,file.export=served,if=none,id=third
		-device "virtio-blk-pci,drive=third")
	guest_with_disks
	fill orig 5 third
	"$WPSNAP" qemu save -q orig/qmp.sock -o s.wps --with-disks --cmdline
	fill orig 3
	fill orig 4 other
	fill orig 6 third
	unharmed orig
	vm_kill orig
	mkdir away
	cd away
	vm_restore_with orig ../s.wps --with-disks
	cd ..
	vm_runs_on orig
	vm_kill orig
	holds 1
	holds 2 other.qcow2
	holds 5 "nbd+unix:///served?socket=$T/nbd.sock"
}
