#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap qemu: devices that are in part somewhere else. A vhost-user back-end (qemu-storage-daemon) writes to the guest's memory from a process of its
# own, and the guest holds what it read from it and looks at it all the time.

load common

setup_file() { guest_build virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; }
setup()
{
	qemu_setup
	need_tracking
}
teardown() { qemu_teardown; }

BLOCKS=2048

# Serves the disk to one QEMU after the other. None may have something under way when its guest is stopped: QEMU 7.2's daemon does not bear that, and
# so the guest reads only when it is told to.
backend_start()
{
	command -v qemu-storage-daemon >/dev/null || skip 'needs qemu-storage-daemon'
	[ -e disk.raw ] || "$HELPERS/guest" --disk $BLOCKS >disk.raw
	qemu-storage-daemon --blockdev driver=file,node-name=disk,filename=disk.raw,read-only=on \
		--export type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path=disk.sock,num-queues=2 >backend.log 2>&1 </dev/null 3>&- 7<&- &
	BACKEND=$!
	PIDS+=("$BACKEND")
	disown $BACKEND
	until_true test -S disk.sock
}

# vhost_user NAME: a VM of that name has the disk, and a line on which it is told to read.
vhost_user()
{
	GUEST_WORDS="pages=2048 per_tick=32 tick_ms=50 blocks=$BLOCKS"
	mkdir -p "$1"
	mkfifo "$1/ask.in" "$1/ask.out"
	EXTRA=(-chardev "pipe,id=ask,path=$1/ask" -serial chardev:ask
		-chardev socket,id=disk,path=disk.sock -device vhost-user-blk-pci,id=vublk,chardev=disk)
}

# reads NAME N: the guest reads from its disk until it has read N blocks; it goes by 64.
reads()
{
	local nr=0

	while [ "$nr" -lt "$2" ]; do
		printf r >"$1/ask.in"
		read -r -t "$PATIENCE" nr <"$1/ask.out" || { echo "the guest $1 does not read"; cat backend.log; return 1; }
	done
	[ "$nr" = "$2" ] || { echo "the guest $1 has read $nr blocks, not $2"; return 1; }
	vm_runs_on "$1" 2
}

@test "vhost-user: what the back-end writes to the guest's memory is in each link" {
	local n

	backend_start
	vhost_user orig
	vm_boot orig 3
	reads orig 128
	note_settings orig
	BEFORE=$(size_of orig)
	AFTER=()
	watch_start qemu watch orig/qmp.sock -o dir --every 1h
	watch_line
	[ "$LINE" = ready ]
	links 0
	for n in 1 2 3; do
		# 1: pages that were never written to; 2, 3: others that hold what was read before
		reads orig $((128 + 128 * n))
		watch_link
		AFTER[n]=$(size_of orig)
	done
	# Of a guest that stands still, against its memory itself
	vm_qmp orig stop
	cp "$RAMS/orig.ram" ram
	watch_link
	"$WPSNAP" restore -q dir -o raw
	cmp ram raw
	cmp ram "$RAMS/orig.ram"
	vm_qmp orig cont
	unharmed orig
	reads orig 576
	reads orig 640
	watch_end
	exits 0
	unharmed orig
	vm_kill orig
	for n in 0 1 2 3 4; do
		vhost_user "copy$n"
		vm_restore "copy$n" "dir@$n" --paused
		[ "$n" != 4 ] || cmp ram "$RAMS/copy$n.ram"
		vm_qmp "copy$n" cont
		vm_says "copy$n" 20
		if [ "$n" -lt 4 ]; then
			reads "copy$n" $((128 + 128 * n + 64))
		fi
		vm_kill "copy$n"
		case $n in
		0) console_goes_on orig "$BEFORE" "${AFTER[0]}" copy0 ;;
		4) console_goes_on orig "${AFTER[3]}" "$(size_of orig)" copy4 ;;
		*) console_goes_on orig "${AFTER[n - 1]}" "${AFTER[n]}" "copy$n" ;;
		esac
	done
	# And it was said.
	grep -q 'compared by content: .* ram: ' watch.err
	says "do not hold the disk of vhost-user-blk-pci 'vublk'" watch.err
}

@test "vhost-user: what does not go with it is refused, and so is a restore without the back-end" {
	backend_start
	vhost_user orig
	vm_boot orig 3
	note_settings orig
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps --assume-sole-writer
	exits 1
	says "vhost-user-blk-pci 'vublk'"
	says '--assume-sole-writer is wrong'
	messages_are_ours
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps --with-disks
	exits 1
	says "the disk of vhost-user-blk-pci 'vublk' is its back-end's"
	messages_are_ours
	[ ! -e s.wps ]
	unharmed orig
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps
	exits 0
	vm_kill orig
	kill -KILL "$BACKEND"
	gone "$BACKEND"
	vhost_user copy
	vm_args copy
	try "$WPSNAP" qemu restore s.wps -- qemu-system-x86_64 "${ARGS[@]}"
	exits 1
	says 'disk.sock'
	! vm_pid copy
	[ ! -s copy/console ]
}

@test "vhost-user: a network's back-end is found as well" {
	backend_start
	# That it is none for networks matters only when there is a device.
	EXTRA=(-chardev socket,id=net,path=disk.sock -netdev vhost-user,id=net,chardev=net)
	vm_boot orig 3
	note_settings orig
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps --assume-sole-writer
	exits 1
	says '-netdev vhost-user'
	says '--assume-sole-writer is wrong'
	messages_are_ours
	[ ! -e s.wps ]
	unharmed orig
}

@test "ivshmem: refused, plugged during a watch as well, because QEMU could not load the state" {
	local pid

	EXTRA=(-object "memory-backend-file,id=shm,size=1M,mem-path=$RAMS/orig.shm,share=on" -device ivshmem-plain,id=shared,memdev=shm,master=on)

	vm_boot orig 3
	note_settings orig
	try "$WPSNAP" qemu save orig/qmp.sock -o s.wps
	exits 1
	says "ivshmem-plain 'shared'"
	messages_are_ours
	[ ! -e s.wps ]
	unharmed orig
	# Plugged while a watch runs: no link until it is unplugged.
	EXTRA=(-object "memory-backend-file,id=shm,size=1M,mem-path=$RAMS/plug.shm,share=on" -device pcie-root-port,id=rp1)
	vm_boot plug 3
	watch_start qemu watch plug/qmp.sock -o dir --every 1h
	watch_line
	watch_line
	vm_qmp plug device_add '{"driver": "ivshmem-plain", "id": "shared", "memdev": "shm", "master": "on", "bus": "rp1"}'
	kill -USR1 "$WATCH"
	until_true grep -q "ivshmem-plain 'shared'" watch.err
	vm_runs_on plug
	watch_end
	vm_kill plug
	"$WPSNAP" verify dir
	[ "$(find dir -name '*.wps' | wc -l)" = 1 ]
	# It is so: saved by hand, it can't be loaded. If this fails, QEMU has learnt it.
	vm_save_by_hand orig
	EXTRA=(-object "memory-backend-file,id=shm,size=1M,mem-path=$RAMS/copy.shm,share=on" -device ivshmem-plain,id=shared,memdev=shm,master=on)
	cp orig/ram "$RAMS/copy.ram"
	vm_start copy -incoming defer -S
	pid=$(vm_pid copy)
	vm_ignore_shared copy true
	vm_qmp copy getfd-file state orig/state , migrate-incoming '{"uri": "fd:state"}' || :
	gone "$pid"
	says 'Mismatched GPAs' copy/qemu.log
}
