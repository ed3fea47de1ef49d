#!/bin/bash
# SPDX-License-Identifier: MIT
# without.sh BUILD: on a kernel without asynchronous write protection and without PAGEMAP_SCAN the backend sync is found and says so, what asks for
# the other one is told what is missing, and snapshots are what memory was.
set -u
B=$1
. tests/tap.sh
cd "$(mktemp -d)" || exit 1
check() {
	"${@:2}"
	result $? "$1"
}

"$B/wpsnap" probe >probe 2>&1
status=$?
cat probe
check 'probe says by its status that there is tracking' [ $status -eq 0 ]
check 'probe says which' grep -qE '^backend +sync$' probe
check 'probe says that WP_ASYNC is missing' grep -qE '^ *no +wp_async ' probe
check 'probe says that PAGEMAP_SCAN is missing' grep -qE '^ *no +pagemap_scan ' probe
check 'probe says that userfaultfd is there' grep -qE '^ *yes +uffd ' probe

sleep 1000 &
target=$!
"$B/wpsnap" save -o out.wps --backend async $target >save.out 2>save.err
status=$?
cat save.out save.err
check 'save --backend async refuses' [ $status -ne 0 ]
check 'in words that name the way out' grep -q 'wpsnap probe' save.err
check 'each line is ours' sh -c '! grep -vE "^wpsnap: ." save.err'
check 'and leaves nothing behind' [ ! -e out.wps ]
check 'the target runs on' grep -q 'sleep' /proc/$target/comm
"$B/wpsnap" save -o out.wps $target >save.out 2>save.err
status=$?
cat save.out save.err
check 'save saves' [ $status -eq 0 ]
check 'what it saved is whole' "$B/wpsnap" verify -q out.wps
check 'the target runs on' grep -q 'sleep' /proc/$target/comm
kill $target

# All kinds of memory, against a shadow copy and with writers that never stop, are the job tests-debian's.
tap_end
