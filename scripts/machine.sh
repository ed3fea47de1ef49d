# SPDX-License-Identifier: MIT
# Sourced by run-tests: huge pages and a swap device on zram for the tests, as root and with WPT_SETUP not 0, and back again.

machine_before=
machine_zram=
machine_zram_added=0

machine_setup() {
	if [ "$(id -u)" != 0 ] || [ "${WPT_SETUP:-1}" = 0 ]; then
		echo "machine: no set-up (not root, or WPT_SETUP=0): tests that need huge pages or swap may be skipped"
		return 0
	fi
	local free
	# Reserved pages are not free to others, and pages beyond nr_hugepages count against what is asked for.
	free=$(awk '$1 == "HugePages_Free:" { f = $2 } $1 == "HugePages_Rsvd:" { r = $2 } END { print f - r }' /proc/meminfo)
	# Huge pages of either kind want memory in one piece.
	{ echo 1 >/proc/sys/vm/compact_memory; } 2>/dev/null
	if [ "${free:-0}" -lt 64 ] && [ -w /proc/sys/vm/nr_hugepages ]; then
		machine_before=$(cat /proc/sys/vm/nr_hugepages)
		echo $(($(awk '$1 == "HugePages_Total:" { print $2 }' /proc/meminfo) + 64)) >/proc/sys/vm/nr_hugepages
		echo "machine: $(cat /proc/sys/vm/nr_hugepages) huge pages"
	fi
	grep -q zram /proc/swaps || machine_zram_on || echo "machine: no zram swap"
}

machine_zram_on() {
	local d
	[ -e /sys/class/zram-control ] || modprobe zram 2>/dev/null || return 1
	for d in /sys/block/zram*; do
		if [ -e "$d/disksize" ] && [ "$(cat "$d/disksize")" = 0 ]; then
			machine_zram=${d##*/}
			break
		fi
	done
	if [ -z "$machine_zram" ]; then
		d=$(cat /sys/class/zram-control/hot_add 2>/dev/null) || return 1
		machine_zram=zram$d
		machine_zram_added=1
	fi
	if ! { echo 1G >"/sys/block/$machine_zram/disksize" && mkswap "/dev/$machine_zram" && swapon "/dev/$machine_zram"; } >/dev/null 2>&1
	then
		machine_zram_off
		return 1
	fi
	echo "machine: 1 GiB of swap on $machine_zram"
}

machine_zram_off() {
	[ -n "$machine_zram" ] || return 0
	swapoff "/dev/$machine_zram" 2>/dev/null
	echo 1 >"/sys/block/$machine_zram/reset" 2>/dev/null
	[ $machine_zram_added = 0 ] || echo "${machine_zram#zram}" >/sys/class/zram-control/hot_remove
	machine_zram=
	machine_zram_added=0
}

machine_restore() {
	machine_zram_off
	if [ -n "$machine_before" ]; then
		echo "$machine_before" >/proc/sys/vm/nr_hugepages
		machine_before=
	fi
}
