#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap qemu --with-disks: the guest has disks that it does not use, so that what is on them is what the test wrote by QEMU's monitor.

load common

setup_file() { guest_build; }
setup()
{
	qemu_setup
	need_tracking
	command -v qemu-img >/dev/null && command -v qemu-io >/dev/null || skip "needs qemu-img and qemu-io"
	EXTRA=(-device "virtio-blk-pci,drive=disk")
}
teardown() { qemu_teardown; }

# The machine's disk `disk` is the file disk.qcow2.
qcow2_disk()
{
	qemu-img create -q -f qcow2 disk.qcow2 1M
	EXTRA+=(-drive "file=disk.qcow2,format=qcow2,if=none,id=disk")
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
	vm_grown orig 5
	note_settings orig
	fill orig 1
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
	need_root
	mkdir small
	mount -t tmpfs -o size=2M tmpfs small || skip "cannot mount a tmpfs"
	MOUNTED=$T/small
	qcow2_disk
	vm_grown orig 5
	note_settings orig
	fill orig 1
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
	need_root
	mkdir small
	mount -t tmpfs -o size=2M tmpfs small || skip "cannot mount a tmpfs"
	MOUNTED=$T/small
	qcow2_disk
	vm_grown orig 5
	note_settings orig
	fill orig 1
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
	qemu-img create -q -f qcow2 other.qcow2 1M
	truncate -s 1M cd.raw
	EXTRA+=(-drive "file=other.qcow2,format=qcow2,if=none,id=other" -device "virtio-blk-pci,drive=other"
		-drive "file=cd.raw,format=raw,if=none,id=cd,readonly=on" -device "virtio-blk-pci,drive=cd")
	vm_grown orig 5
	note_settings orig
	fill orig 1
	fill orig 2 other
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
	vm_grown orig 5
	note_settings orig
	fill orig 1
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
