# SPDX-License-Identifier: MIT
# What the tests with a virtual machine share. A VM is a folder in the test's own: NAME/console (what the guest says), NAME/qmp.sock (the monitor for
# wpsnap), NAME/test.sock (that for the test), NAME/pid, NAME/qemu.log. All names are relative, since the path of a socket must be short.

load ../cli/common
HELPERS=${WPT_HELPERS:-$(dirname "$WPSNAP")/tests/qemu}

# The guest's structure: 8 MiB, all of which is written in about 60 ticks, and from then on written anew.
GUEST_WORDS='pages=2048 per_tick=32 tick_ms=50'

# guest_build [MODULE]...: once per file. The kernel is unpacked, which takes an emulated machine longer than all the rest of its start. The guest
# loads these modules, in this order; then there is no guest to go on from (guest_grow).
guest_build()
{
	local kernel=${WPT_GUEST_KERNEL:-} offset module i

	guest_missing
	[ -z "$GUEST_MISSING" ] || return 0
	export GUEST=$BATS_FILE_TMPDIR/guest
	mkdir -p "$GUEST/root"
	cp "$HELPERS/guest" "$GUEST/root/init"
	for ((i = 0; i < $#; i++)); do
		module=$(find "$(dirname "$kernel")/lib/modules" -name "${*:i + 1:1}.ko" 2>/dev/null | head -1)
		[ -n "$module" ] || { GUEST_MISSING="needs the module ${*:i + 1:1} of the guest's kernel"; return 0; }
		cp "$module" "$GUEST/root/$i.ko"
	done
	(cd "$GUEST/root" && printf '%s\n' * | cpio -o -H newc --quiet) >"$GUEST/initramfs"
	offset=$(LC_ALL=C grep -aobUP -m1 '\xfd7zXZ\x00' "$kernel" | head -1 | cut -d: -f1)
	if [ -n "$offset" ] && command -v xz >/dev/null; then
		tail -c "+$((offset + 1))" "$kernel" | xz -dc >"$GUEST/kernel" 2>/dev/null || :
	fi
	if [ "$(head -c 4 "$GUEST/kernel" 2>/dev/null)" != $'\177ELF' ]; then
		cp "$kernel" "$GUEST/kernel"
	fi
	[ $# -gt 0 ] || guest_grow
}

# One guest that has counted to 3, for all tests of the file to go on from: to start one takes seconds.
guest_grow()
{
	BATS_TEST_TMPDIR=$GUEST qemu_setup
	if vm_boot seed 3 && vm_save_by_hand seed && vm_kill seed; then
		export GUEST_SEED=$GUEST/seed
	else
		echo "there is no guest to start from; it said:"
		cat seed/qemu.log seed/console || :
	fi
	qemu_end
	cd "$BATS_TEST_DIRNAME"
	[ -n "${GUEST_SEED:-}" ]
}

# What a virtual machine needs and this one lacks
guest_missing()
{
	export GUEST_MISSING=

	if ! command -v qemu-system-x86_64 >/dev/null; then
		GUEST_MISSING='needs qemu-system-x86_64'
	elif ! command -v cpio >/dev/null; then
		GUEST_MISSING='needs cpio'
	elif [ ! -r "${WPT_GUEST_KERNEL:-}" ]; then
		GUEST_MISSING='needs a kernel for the guest (WPT_GUEST_KERNEL, a bzImage)'
	fi
}

qemu_setup()
{
	[ -z "$GUEST_MISSING" ] || skip "$GUEST_MISSING"
	[ -x "$HELPERS/guest" ] || { echo "there is no $HELPERS/guest: make check-qemu builds it"; return 1; }
	common_setup
	export WPT_PATIENCE=$PATIENCE
	RAM=file
	SIZE=96
	EXTRA=()
	RAMS=$(mktemp -d /dev/shm/wptrack-qemu.XXXXXX)
}

need_huge()
{
	[ "$(awk '$1 == "HugePages_Free:" { f = $2 } $1 == "HugePages_Rsvd:" { r = $2 } END { print f - r }' /proc/meminfo)" -ge $((SIZE / 2)) ] ||
		skip "needs $((SIZE / 2)) huge pages of 2 MiB"
}

qemu_teardown()
{
	local vm

	qemu_end
	[ -z "${BATS_TEST_COMPLETED:-}" ] || return 0
	for vm in */console; do
		[ -e "$vm" ] || continue
		echo "--- the end of $vm:"
		tail -n 5 "$vm"
		cat "${vm%/console}/qemu.log" "${vm%/console}"/restore.* 2>/dev/null || :
	done
}

# Ends all that was started in this folder.
qemu_end()
{
	local vm

	[ -n "${RAMS:-}" ] || return 0
	for vm in */pid; do
		vm_kill "${vm%/pid}" || :
	done
	common_teardown
	rm -rf "$RAMS"
}

# ---- virtual machines ----

# vm_args NAME: into ARGS, QEMU's arguments for a VM of the kind $RAM:
#   file, memfd, ram  all memory is one shared backend of that kind
#   two               two nodes, of a memfd and a file
#   huge              of huge pages
#   private           not shared
# $EXTRA are more of them.
vm_args()
{
	local name=$1 file=$RAMS/$1

	mkdir -p "$name"
	ARGS=(-name "$name" -accel tcg,tb-size=64 -m "${SIZE}M" -nodefaults -display none -vga none -no-reboot -pidfile "$name/pid")
	case $RAM in
	file) ARGS+=(-object "memory-backend-file,id=ram,size=${SIZE}M,mem-path=$file.ram,share=on") ;;
	memfd) ARGS+=(-object "memory-backend-memfd,id=ram,size=${SIZE}M,share=on") ;;
	ram) ARGS+=(-object "memory-backend-ram,id=ram,size=${SIZE}M,share=on") ;;
	huge) ARGS+=(-object "memory-backend-memfd,id=ram,size=${SIZE}M,hugetlb=on,hugetlbsize=2M,share=on") ;;
	two)
		ARGS+=(-object "memory-backend-memfd,id=ram0,size=$((SIZE / 2))M,share=on" -numa node,memdev=ram0
			-object "memory-backend-file,id=ram1,size=$((SIZE / 2))M,mem-path=$file.ram1,share=on" -numa node,memdev=ram1)
		;;
	private) ARGS+=(-object "memory-backend-ram,id=ram,size=${SIZE}M") ;;
	esac
	if [ "$RAM" = two ]; then
		ARGS+=(-machine q35)
	else
		ARGS+=(-machine q35,memory-backend=ram)
	fi
	ARGS+=(-kernel "$GUEST/kernel" -initrd "$GUEST/initramfs" -chardev "file,id=console,path=$name/console,append=on" -serial chardev:console
		-append "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check $GUEST_WORDS"
		-qmp "unix:$name/test.sock,server=on,wait=off")
	# As libvirt starts it; only root may track a process with a seccomp filter.
	if [ "$(id -u)" = 0 ]; then
		ARGS+=(-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny)
	fi
	ARGS+=("${EXTRA[@]}")
}

# vm_start NAME [ARG]...: starts a VM and waits for its monitor.
vm_start()
{
	local name=$1

	vm_args "$name"
	shift
	qemu-system-x86_64 "${ARGS[@]}" -qmp "unix:$name/qmp.sock,server=on,wait=off" "$@" >"$name/qemu.log" 2>&1 </dev/null 3>&- 7<&- 8>&- 9<&- &
	PIDS+=($!)
	# So that bash does not report its end
	disown $!
	vm_qmp "$name" query-status >/dev/null
}

# vm_boot NAME N: starts one and waits until it has counted to N.
vm_boot()
{
	vm_start "$1"
	vm_counts "$1" "$2"
}

# vm_grown NAME N: the same for a VM of $RAM=file, much sooner. It is the guest of guest_grow, console and all.
vm_grown()
{
	mkdir "$1"
	cp "$GUEST_SEED/console" "$1/console"
	vm_restore_by_hand "$1" "$GUEST_SEED"
	vm_qmp "$1" cont >/dev/null
	vm_counts "$1" "$2"
}

# Its pid, if it is alive and ours
vm_pid()
{
	local pid

	pid=$(cat "$1/pid" 2>/dev/null) && [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$(pwd -P)" ] && echo "$pid"
}

# vm_kill NAME: with SIGKILL; back when it is gone.
vm_kill()
{
	local pid

	pid=$(vm_pid "$1") || return 0
	kill -KILL "$pid"
	gone "$pid"
}

# Until the process is gone, or a zombie of which no thread is left that has its files open
gone()
{
	local i

	for ((i = 0; i < PATIENCE * 100; i++)); do
		grep -qsE '\) [^ZX] ' "/proc/$1/stat" || [ "$(find "/proc/$1/task" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l)" -gt 1 ] || return 0
		sleep 0.01
	done
	echo "process $1 does not end"
	return 1
}

# vm_qmp NAME COMMAND...: as the test's own client
vm_qmp()
{
	"$HELPERS/qmp" "$1/test.sock" "${@:2}"
}

vm_running()
{
	vm_qmp "$1" query-status | grep -q '"running": true'
}

# The state and the migration's capabilities and parameters: what a snapshot must leave as it was
vm_settings()
{
	vm_qmp "$1" query-migrate-capabilities , query-migrate-parameters
}

# until_true COMMAND...: by the clock, since a command that asks a QEMU that has ended waits for itself.
until_true()
{
	local end=$((SECONDS + PATIENCE))

	while ((SECONDS <= end)); do
		! "$@" || return 0
		sleep 0.05
	done
	echo "still not so: $*"
	return 1
}

settings_are()
{
	vm_settings "$1" >settings.now
	cmp -s "$2" settings.now
}

# ---- what the guest says ----

size_of()
{
	stat -c %s "$1/console"
}

# The last number that a console says
vm_count()
{
	local n

	n=$(tail -c 300 "$1/console" 2>/dev/null | grep -aoE '^count [0-9]+ ok$' | tail -1)
	n=${n#count }
	echo "${n% ok}" | sed 's/^$/0/'
}

# vm_counts NAME N: waits until it has counted to N.
vm_counts()
{
	local end=$((SECONDS + PATIENCE)) n=0

	while ((SECONDS <= end)); do
		n=$(vm_count "$1")
		! grep -aq WRONG "$1/console" || { echo "the guest $1 says:"; grep -a WRONG "$1/console"; return 1; }
		[ "$n" -lt "$2" ] || return 0
		[ ! -s "$1/pid" ] || vm_pid "$1" >/dev/null || { echo "$1 has ended at $n"; return 1; }
		sleep 0.05
	done
	echo "$1 has counted to $n, not to $2"
	return 1
}

vm_runs_on()
{
	vm_counts "$1" $(($(vm_count "$1") + ${2:-5}))
}

# vm_says NAME N: waits until its console has N lines, which is what a restored guest has said since.
vm_says()
{
	until_true said_lines "$1" "$2" || return 1
	lacks WRONG "$1/console"
}

said_lines()
{
	grep -aq WRONG "$1/console" || [ "$(wc -l <"$1/console")" -ge "$2" ]
}

# What a guest says from `count 1` to `count N`
text_to()
{
	seq -f 'count %.0f ok' 1 "$1"
}

# Where the guest's own text begins in a console; the kernel's and the firmware's may come before.
text_start()
{
	LC_ALL=C grep -aob -m1 '^count 1 ok$' "$1" | head -1 | cut -d: -f1
}

# A console, from its first count on, says what it must and nothing else.
console_is_sound()
{
	local start

	start=$(text_start "$1/console")
	[ -n "$start" ] || { echo "$1 does not count"; return 1; }
	tail -c "+$((start + 1))" "$1/console" >"$1/said"
	text_to $(($(vm_count "$1") + 10)) | cmp -n "$(stat -c %s "$1/said")" - "$1/said"
}

# console_goes_on NAME BEFORE AFTER RESTORED [LINES]: the console of the VM RESTORED is what NAME had to say from byte X of its console on, with
# BEFORE <= X <= AFTER, and has at least LINES (10) full lines; sets X.
console_goes_on()
{
	local restored=$4/console lines=${5:-10} start size first second

	console_is_sound "$1" || return 1
	start=$(text_start "$1/console")
	lacks WRONG "$restored" || return 1
	size=$(stat -c %s "$restored")
	[ "$(wc -l <"$restored")" -ge "$lines" ] || { echo "$restored has $(wc -l <"$restored") lines, not $lines"; return 1; }
	# The first line may be the rest of one, so that the second says where it began.
	first=$(head -1 "$restored" | wc -c)
	second=$(sed -n 's/^count \([0-9]*\) ok$/\1/; 2p' "$restored")
	[[ $second =~ ^[0-9]+$ ]] || { echo "$restored does not count: $(sed -n 2p "$restored")"; return 1; }
	X=$((start + $(text_to $((second - 1)) | wc -c) - first))
	text_to $((second + size)) | tail -c "+$((X - start + 1))" | cmp -n "$size" - "$restored" || return 1
	if ((X < $2 || X > $3)); then
		echo "$restored goes on from byte $X of $1, which is not in $2 to $3"
		return 1
	fi
}

# ---- the watch ----

# Before anything else: what a snapshot must leave as it was
note_settings()
{
	vm_settings "$1" >settings
}

# After whatever happened: the guest runs and counts on, and QEMU is set as before.
unharmed()
{
	until_true vm_running "$1"
	until_true settings_are "$1" settings
	vm_runs_on "$1"
	console_is_sound "$1"
}

# The chain in this folder verifies, if there is one yet.
chain_is_good()
{
	! ls "$1"/*.wps >/dev/null 2>&1 || "$WPSNAP" verify "$1"
}

# links N: waits for the links up to N. AFTER[n] is the size of the console when link n was there: it is of an instant between AFTER[n - 1] and that.
links()
{
	while [ "${#AFTER[@]}" -le "$1" ]; do
		watch_line || return 1
		[[ $LINE =~ ^'link '([0-9]+)' ' ]] || { echo "not a link: $LINE"; return 1; }
		AFTER[BASH_REMATCH[1]]=$(size_of orig)
	done
}

more_links_than()
{
	[ "$(find "$1" -name '*.wps' | wc -l)" -gt "$2" ]
}

# qemu_watch [OPTION]...: into `dir`, until it is ready
qemu_watch()
{
	AFTER=()
	BEFORE=$(size_of orig)
	watch_start qemu watch orig/qmp.sock -o dir --assume-sole-writer "$@"
	watch_line
	[ "$LINE" = ready ] || { echo "not ready: $LINE"; cat watch.err; return 1; }
}

# guards N: are there so many of this test? Each has the folder that it was started in.
guards()
{
	local comm nr=0

	for comm in /proc/[0-9]*/comm; do
		if grep -qsx wpsnap-guard "$comm" && [ "$(readlink "${comm%comm}cwd")" = "$(pwd -P)" ]; then
			nr=$((nr + 1))
		fi
	done
	[ "$nr" = "$1" ]
}

# relay_start WORDS WHAT: orig/relay.sock is orig/qmp.sock, but for what happens at these words.
relay_start()
{
	rm -f orig/relay.sock
	"$HELPERS/relay" orig/relay.sock orig/qmp.sock "$@" >relay.out 2>relay.err </dev/null 3>&- 7<&- &
	RELAY=$!
	PIDS+=("$RELAY")
	until_true test -S orig/relay.sock
}

# ---- snapshots and what they restore to ----

# vm_restore NAME CHAIN [OPTION]...: starts `wpsnap qemu restore` with a VM of the kind $RAM, and waits until it says so.
vm_restore()
{
	vm_args "$1"
	vm_restore_with "$@" -- qemu-system-x86_64 "${ARGS[@]}"
}

# vm_restore_with NAME CHAIN [OPTION]... [-- COMMAND...]: the same with another command, or the stored one.
vm_restore_with()
{
	local name=$1

	mkdir -p "$name"
	shift
	"$WPSNAP" qemu restore "$@" >"$name/restore.out" 2>"$name/restore.err" </dev/null 3>&- 7<&- 8>&- 9<&- &
	RESTORE=$!
	PIDS+=("$RESTORE")
	until_true restore_said
	[ "$RESTORED" = 1 ]
}

# vm_restore_without NAME CHAIN [READS]: a lazy one of a machine whose memory does not come while the file `away` is there (see preload/away.c), but
# for so many reads, by default those that the machine's devices need when their state is loaded. Not back before it says that it is done, or can't
# read.
vm_restore_without()
{
	local name=$1

	mkdir -p "$1"
	vm_args "$1"
	touch away
	[ -e "$HELPERS/preload/away.so" ] || return 1
	WPT_AWAY=$PWD/away WPT_AWAY_AFTER=${3:-4} LD_PRELOAD=$HELPERS/preload/away.so "$WPSNAP" qemu restore "$2" --lazy -- \
		qemu-system-x86_64 "${ARGS[@]}" >"$1/restore.out" 2>"$1/restore.err" </dev/null 3>&- 7<&- 8>&- 9<&- &
	RESTORE=$!
	PIDS+=("$RESTORE")
	[ "${3:-}" = 0 ] || until_true restore_said || return 1
	until_true grep -q "the snapshot can't be read: .*tried again" "$1/restore.err"
}

# Has it said that it is done, or ended? RESTORED says which.
restore_said()
{
	RESTORED=0
	if grep -q '^restored\|^wpsnap: restored' "$name/restore.err"; then
		RESTORED=1
	elif grep -qE '\) [^ZX] ' "/proc/$RESTORE/stat" 2>/dev/null; then
		return 1
	else
		echo "the restore ended:"
		cat "$name/restore.err"
	fi
}

# By hand, without wpsnap: vm_save_by_hand NAME: the device state in NAME/state and the memory in NAME/ram; the VM is stopped and stays so.
vm_save_by_hand()
{
	vm_qmp "$1" stop >/dev/null
	vm_ignore_shared "$1" true
	vm_qmp "$1" getfd-file state "$1/state" , migrate '{"uri": "fd:state"}' >/dev/null
	vm_migrated "$1"
	cp --sparse=always "$RAMS/$1.ram" "$1/ram"
}

# Until the migration is complete; one that failed is not waited for, nor is a QEMU that has ended.
vm_migrated()
{
	until_true migration_ended "$1" || return 1
	vm_qmp "$1" query-migrate | grep -q '"status": "completed"'
}

migration_ended()
{
	! vm_pid "$1" >/dev/null || vm_qmp "$1" query-migrate | grep -qE '"status": "(completed|failed)"'
}

# vm_restore_by_hand NAME FROM: a VM with FROM's memory and device state, not yet running, and with the capabilities of a new one
vm_restore_by_hand()
{
	cp --sparse=always "$2/ram" "$RAMS/$1.ram"
	vm_start "$1" -incoming defer -S
	vm_ignore_shared "$1" true
	vm_qmp "$1" getfd-file state "$2/state" , migrate-incoming '{"uri": "fd:state"}' >/dev/null
	vm_migrated "$1"
	vm_ignore_shared "$1" false
}

vm_ignore_shared()
{
	vm_qmp "$1" migrate-set-capabilities "{\"capabilities\": [{\"capability\": \"x-ignore-shared\", \"state\": $2}]}" >/dev/null
}
