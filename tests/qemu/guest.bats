#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# The virtual machine that the tests of wpsnap qemu stand on: what it says is right, and it notices what is wrong. Without wpsnap.

load common

setup_file() { guest_build; }
setup() { qemu_setup; }
teardown() { qemu_teardown; }

# The byte at this place of a file becomes another.
flip()
{
	local byte

	byte=$(tail -c "+$(($2 + 1))" "$1" | head -c 1 | od -An -tu1)
	# shellcheck disable=SC2059
	printf "\\$(printf %o $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# Places of the structure's pages in a file of memory
pages_of()
{
	LC_ALL=C grep -aob wpguest1 "$1" | cut -d: -f1 | awk '$1 % 4096 == 0'
}

@test "the guest proves itself: saved and restored by hand it goes on exactly" {
	local before

	vm_boot orig 20
	vm_qmp orig stop
	before=$(size_of orig)
	vm_save_by_hand orig
	[ "$(size_of orig)" = "$before" ]
	vm_restore_by_hand copy orig
	[ "$(size_of copy)" = 0 ]
	vm_qmp copy cont
	vm_says copy 100
	vm_kill copy
	console_goes_on orig "$before" "$before" copy 50
}

@test "the guest proves itself: it says WRONG of one byte, in any page" {
	local page said

	vm_grown orig 20
	vm_save_by_hand orig
	pages_of orig/ram >pages
	[ "$(wc -l <pages)" -ge $((20 * 32)) ]
	cp orig/ram ram.good
	for page in $(shuf -n 1 --random-source=pages pages) $(tail -1 pages); do
		cp ram.good orig/ram
		flip orig/ram $((page + 1234))
		rm -rf copy
		vm_restore_by_hand copy orig
		vm_qmp copy cont
		until_true grep -aq '^WRONG page' copy/console
		said=$(stat -c %s copy/console)
		vm_kill copy
		[ "$(stat -c %s copy/console)" = "$said" ]
	done
}

@test "the guest proves itself: it says WRONG of a page as it was before" {
	local page

	GUEST_WORDS='pages=256 per_tick=32 tick_ms=50'
	vm_boot orig 20
	vm_save_by_hand orig
	cp orig/ram ram.old
	vm_qmp orig cont
	vm_runs_on orig 10
	vm_save_by_hand orig
	# A page that was written in between, as it was before
	for page in $(pages_of orig/ram); do
		cmp -s -n 4096 -i "$page" ram.old orig/ram || break
	done
	dd if=ram.old of=orig/ram bs=4096 skip=$((page / 4096)) seek=$((page / 4096)) count=1 conv=notrunc status=none
	vm_restore_by_hand copy orig
	vm_qmp copy cont
	until_true grep -aq '^WRONG page' copy/console
}

@test "the comparison of consoles notices a wrong place, a gap and a wrong text" {
	mkdir orig copy
	{ printf 'kernel: hello\nwhat\n'; text_to 60; } >orig/console
	text_to 100 | tail -c +200 >copy/console
	console_goes_on orig 218 218 copy
	[ "$X" = 218 ]
	run console_goes_on orig 0 217 copy
	[ "$status" = 1 ]
	run console_goes_on orig 219 1000 copy
	[ "$status" = 1 ]
	run console_goes_on orig 218 218 copy 100
	[ "$status" = 1 ]
	{ text_to 100 | tail -c +200; echo 'WRONG page 1 at count 101'; } >copy/console
	run console_goes_on orig 218 218 copy
	[ "$status" = 1 ]
	{ text_to 100; text_to 105 | tail -n 4; } | tail -c +200 >copy/console
	run console_goes_on orig 218 218 copy
	[ "$status" = 1 ]
	text_to 100 | tail -c +200 | sed '1s/^./X/' >copy/console
	run console_goes_on orig 218 218 copy
	[ "$status" = 1 ]
	text_to 100 | tail -c +200 >copy/console
	sed -i 's/^count 59 ok$/count 57 ok/' orig/console
	run console_goes_on orig 218 218 copy
	[ "$status" = 1 ]
}
