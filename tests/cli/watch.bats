#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# wpsnap watch: base, increments, signals, ends, and what happens on a folder that has a chain.

load common

setup()
{
	common_setup
	need_tracking
}
teardown() { common_teardown; }

# keep N: the oracle's copy of all the memory of target_mem at link N
keep()
{
	dump "$(range $ANON 0 256)" "anon.$1"
	dump "$(range $SHARED 0 64)" "shared.$1"
}

# kept CHAIN N: the chain holds what was kept
kept()
{
	rm -f raw
	"$WPSNAP" restore -q "$1" -o raw --range "$(range $ANON 0 256)"
	cmp raw "anon.$2"
	rm -f raw
	"$WPSNAP" restore -q "$1" -o raw --range "$(range $SHARED 0 64)"
	cmp raw "shared.$2"
}

# A chain of five links in `dir`, each kept
make_chain()
{
	local i

	target_start
	tell fill 1
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	keep 0
	for i in 1 2 3 4; do
		tell write $((i * 10)) $((i * 3)) $((i + 100))
		tell shared $((i * 2)) $i $((i + 200))
		tell zap $((200 + i * 5)) 3
		watch_link
		keep $i
	done
}

@test "ready is the first line, then one line a link; every link restores to what the oracle read" {
	make_chain
	watch_end
	[ "$status" -eq 0 ]
	[ ! -s out ]
	only_notes err
	[ "$(stat -c %a dir)" = 700 ]
	ls dir | grep -cxE '00000000[0-9]{2}-[0-9a-f]+\.wps' >count
	[ "$(cat count)" -eq 5 ]
	"$WPSNAP" verify dir
	for i in 0 1 2 3 4; do
		"$WPSNAP" verify "dir@$i"
		kept "dir@$i" $i
	done
	if command -v zstd >/dev/null; then
		zstd -qt dir/*.wps
	fi
}

@test "the lines say trigger, pages, bytes, pause and total" {
	target_start
	watch_start watch "$TARGET" -o dir --every 0
	watch_line
	[ "$LINE" = ready ]
	watch_line
	form=': [0-9]+ pages dirty, [0-9]+ stored(, [0-9]+ [a-z]+)*, [0-9.]+ [KMG]?i?B, pause [0-9.]+ [mu]?s, total [0-9.]+ [mu]?s, [0-9a-f-]+\.wps$'
	[[ $LINE =~ ^'link 0 base'$form ]]
	tell write 0 7 5
	watch_link
	[[ $LINE =~ ^'link 1 SIGUSR1'$form ]]
	[ -f "dir/${LINE##*, }" ]
	watch_end
	[ "$status" -eq 0 ]
}

@test "chain@N, @-1, @-2, @id:PREFIX, the file of a link; a literal path wins" {
	make_chain
	watch_end
	kept dir@-1 4
	kept dir@-2 3
	kept dir@-5 0
	"$WPSNAP" info --json dir | grep '"type":"link"' >links
	id=$(grep '"sequence":2,' links | grep -oE '"id":"[0-9a-f]+"' | cut -d'"' -f4)
	kept "dir@id:$id" 2
	kept "dir@id:${id:0:12}" 2
	kept "$(echo dir/0000000003-*.wps)" 3
	cp -r dir dir@1
	kept dir@1 4
	for bad in dir@5 dir@-6 dir@id:zz dir@id: dir@x dir@; do
		try "$WPSNAP" info "$bad"
		[ "$status" -ne 0 ]
		messages_are_ours
	done
}

@test "cat of the links is a chain in one file that verifies and restores equal" {
	make_chain
	watch_end
	cat dir/*.wps >all.wps
	"$WPSNAP" verify all.wps
	for i in 0 1 2 3 4; do
		kept "all.wps@$i" $i
	done
	kept all.wps 4
	try "$WPSNAP" diff all.wps dir
	exits 0
	if command -v zstd >/dev/null; then
		zstd -qt all.wps
	fi
	# a torn tail is ignored
	head -c 100 "$(echo dir/0000000000-*)" >>all.wps
	kept all.wps 4
}

@test "merge: one full link that equals the chain, and later links continue it" {
	make_chain
	"$WPSNAP" merge dir@2 -o merged.wps
	"$WPSNAP" verify merged.wps
	kept merged.wps 2
	"$WPSNAP" info --json merged.wps | grep -q '"sequence":2,.*"full":true'
	mkdir two
	cp merged.wps "two/$(basename dir/0000000002-*)"
	cp dir/0000000003-* dir/0000000004-* two
	kept two 4
	try "$WPSNAP" diff two dir
	exits 0
	"$WPSNAP" merge dir -o - >stdout.wps
	kept stdout.wps 4
	watch_end
}

@test "by time: links without a signal" {
	target_start
	watch_start watch "$TARGET" -o dir --every 20ms
	watch_ready
	for i in 1 2 3; do
		watch_line
		[[ $LINE == "link $i timer: "* ]]
	done
	watch_end
	[ "$status" -eq 0 ]
	"$WPSNAP" verify dir
}

@test "SIGUSR1 works with a period, too" {
	target_start
	watch_start watch "$TARGET" -o dir --every 9h
	watch_ready
	watch_link
	watch_link
	watch_end
	[ "$status" -eq 0 ]
}

@test "--count N: N links in all, the base included" {
	target_start
	watch_start watch "$TARGET" -o dir --every 10ms --count 3
	watch_wait
	[ "$status" -eq 0 ]
	[ "$(ls dir/*.wps | wc -l)" -eq 3 ]
	[ "$(wc -l <out)" -eq 4 ]
	watch_start watch "$TARGET" -o other --every 0 --count 1
	watch_ready
	watch_wait
	[ "$status" -eq 0 ]
	[ "$(ls other/*.wps | wc -l)" -eq 1 ]
}

@test "SIGINT ends it with code 0" {
	target_start
	# a background process of a script starts with SIGINT ignored, which blocking and reading it as a descriptor overrides
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	kill -INT "$WATCH"
	watch_wait
	[ "$status" -eq 0 ]
}

@test "signals that came together: the link that was asked for, then the end" {
	target_start
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	# before: with the backend sync the write would wait for the watch
	tell write 1 1 1
	kill -STOP "$WATCH"
	until_state "$WATCH" T
	kill -USR1 "$WATCH"
	kill -TERM "$WATCH"
	kill -CONT "$WATCH"
	watch_wait
	[ "$status" -eq 0 ]
	[[ $(cat out) == "link 1 SIGUSR1: "* ]]
	[ "$(wc -l <out)" -eq 1 ]
}

@test "the target's exit ends it with code 5" {
	target_start
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	watch_link
	target_end exit 3
	watch_wait
	[ "$status" -eq 5 ]
	says "process $TARGET exited or executed another program; 2 links of it are complete in dir"
	messages_are_ours
	"$WPSNAP" verify dir
}

@test "the target's exec ends it with code 5 at the next link, which is not of the new program" {
	target_start
	tell fill 1
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	keep 0
	tell exec "$HELPERS/target_mem"
	kill -USR1 "$WATCH"
	watch_wait
	[ "$status" -eq 5 ]
	[ "$(ls dir/*.wps | wc -l)" -eq 1 ]
	kept dir 0
	tell fill 2
}

@test "a target that is killed" {
	target_start
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	target_end kill 9
	watch_wait
	[ "$status" -eq 5 ]
}

@test "a chain of the same process is continued" {
	make_chain
	watch_end
	tell write 50 20 999
	tell shared 60 2 998
	tell zap 0 4
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	[[ $LINE == "link 5 continued: "* ]]
	keep 5
	tell write 7 1 7
	watch_link
	[[ $LINE == "link 6 SIGUSR1: "* ]]
	keep 6
	watch_end
	[ "$status" -eq 0 ]
	"$WPSNAP" verify dir
	for i in 0 3 4 5 6; do
		kept "dir@$i" $i
	done
}

@test "after kill -9 of the watch the chain is continued, and the target is unharmed" {
	make_chain
	kill -KILL "$WATCH"
	wait "$WATCH" || :
	tell write 50 20 999
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	keep 5
	watch_end
	[ "$status" -eq 0 ]
	"$WPSNAP" verify dir
	kept dir 5
}

@test "another process's chain is refused without --new" {
	make_chain
	watch_end
	ls dir >before
	target_end exit 0
	target_start
	tell fill 77
	try "$WPSNAP" watch "$TARGET" -o dir --every 0
	exits 1
	says '--new starts a new chain'
	messages_are_ours
	ls dir | diff before -
	watch_start watch "$TARGET" -o dir --every 0 --new
	watch_ready
	[[ $LINE == "link 0 base: "* ]]
	file=${LINE##*, }
	keep new
	watch_end
	[ "$status" -eq 0 ]
	kept "dir/$file" new
	ls dir | diff - <(echo "$file" | cat before - | sort)
}

@test "two writers of one folder: the second is refused" {
	target_start
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	try "$WPSNAP" watch "$TARGET" -o dir --every 0
	exits 1
	messages_are_ours
	watch_link
	watch_end
	[ "$status" -eq 0 ]
	"$WPSNAP" verify dir
}

@test "two writers of one folder, two targets: locked" {
	target_start
	first=$TARGET
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	# the first target goes on, its fifos must stay open
	exec 5>&8 6<&9
	target_start
	try "$WPSNAP" watch "$TARGET" -o dir --every 0
	exits 1
	says 'another writer has the chain open'
	messages_are_ours
	[ "$first" != "$TARGET" ]
	kill -0 "$WATCH"
	exec 5>&- 6<&-
}

@test "a full disk: the link fails, nothing is lost, the next one is complete" {
	need_root
	mkdir small
	mount -t tmpfs -o size=4m none small 2>/dev/null || skip "needs to mount a tmpfs"
	MOUNTED=$T/small
	target_start
	tell fill 1
	watch_start watch "$TARGET" -o small/dir --every 0
	watch_ready
	keep 0
	dd if=/dev/zero of=small/full bs=4k status=none 2>/dev/null || :
	tell write 100 30 2
	kill -USR1 "$WATCH"
	for ((i = 0; i < PATIENCE * 100; i++)); do
		! grep -qF 'No space left' watch.err || break
		sleep 0.01
	done
	grep -qF 'watch: link (SIGUSR1)' watch.err
	grep -qF 'No space left on device; free space' watch.err
	rm small/full
	tell write 110 30 3
	watch_link
	[[ $LINE == "link 1 SIGUSR1: "* ]]
	keep 1
	watch_end
	[ "$status" -eq 0 ]
	"$WPSNAP" verify small/dir
	kept small/dir@0 0
	kept small/dir@1 1
	[ "$(ls -A small/dir | grep -c tmp)" -eq 0 ]
}

@test "if the last link failed the watch exits with 1" {
	need_root
	mkdir small
	mount -t tmpfs -o size=4m none small 2>/dev/null || skip "needs to mount a tmpfs"
	MOUNTED=$T/small
	target_start
	tell fill 1
	watch_start watch "$TARGET" -o small/dir --every 0 --count 2
	watch_ready
	dd if=/dev/zero of=small/full bs=4k status=none 2>/dev/null || :
	tell write 100 30 2
	kill -USR1 "$WATCH"
	watch_wait
	[ "$status" -eq 1 ]
	says 'No space left'
	"$WPSNAP" verify small/dir
}

@test "mappings that come and go are followed" {
	target_start
	tell fill 1
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	tell extra 40 5
	watch_link
	dump "$(range $EXTRA 0 40)" extra.1
	tell unmap 40
	watch_link
	tell extra 20 6
	watch_link
	dump "$(range $EXTRA 0 20)" extra.3
	watch_end
	[ "$status" -eq 0 ]
	"$WPSNAP" restore -q dir@1 -o raw.1 --range "$(range $EXTRA 0 40)"
	cmp raw.1 extra.1
	head -c $((40 * 4096)) /dev/zero >zeros
	for at in 0 2; do
		"$WPSNAP" restore -q dir@$at -o raw.$at --range "$(range $EXTRA 0 40)"
		cmp raw.$at zeros
	done
	"$WPSNAP" restore -q dir -o raw.3 --range "$(range $EXTRA 0 40)"
	head -c $((20 * 4096)) zeros | cat extra.3 - | cmp - raw.3
}

@test "everything writable is in the last link" {
	make_chain
	tell extra 10 3
	watch_link
	"$WPSNAP" restore dir -o all
	same_as_folder all
	watch_end
}

@test "only the ranges that were asked for" {
	target_start
	tell fill 1
	watch_start watch "$TARGET" -o dir --every 0 --range "$(range $ANON 10 10)" --range guest.ram
	watch_ready
	tell fill 2
	watch_link
	[[ $LINE == *": 74 pages dirty, 74 stored"* ]]
	watch_end
	dump "$(range $ANON 10 10)" dumped
	"$WPSNAP" restore dir -o raw --range "$(range $ANON 10 10)"
	cmp raw dumped
	"$WPSNAP" restore dir -o raw2 --range guest.ram
	dump "$(range $SHARED 0 64)" dumped2
	cmp raw2 dumped2
}

@test "pages that were rewritten with what they held are not stored" {
	target_start
	tell write 0 8 42
	watch_start watch "$TARGET" -o dir --every 0 --range "$(range $ANON 0 256)"
	watch_ready
	tell write 0 8 42
	watch_link
	[[ $LINE == *": 8 pages dirty, 0 stored"* ]]
	watch_end
}

# The next object of this type into LINE; ranges that are compared may come before it. All are kept in lines.json.
watch_json()
{
	while watch_line; do
		echo "$LINE" >>lines.json
		case $LINE in
		'{"schema":1,"type":"range",'*) ;;
		'{"schema":1,"type":"'"$1"'",'*) return ;;
		*) echo "no $1: $LINE"; return 1 ;;
		esac
	done
	return 1
}

@test "--json: every line is an object; ready, links, the end" {
	target_start
	watch_start watch "$TARGET" -o dir --every 0 --json
	watch_json ready
	[[ $LINE == '{"schema":1,"type":"ready","pid":'$TARGET',"backend":"'?(a)sync'"}' ]]
	watch_json link
	[[ $LINE == *',"trigger":"base","sequence":0,'* ]]
	kill -USR1 "$WATCH"
	watch_json link
	[[ $LINE == *',"trigger":"SIGUSR1","sequence":1,'* ]]
	watch_end
	[ "$status" -eq 0 ]
	[ "$(cat out)" = '{"schema":1,"type":"end","reason":"signal","links":2}' ]
	cat out >>lines.json
	json_is_valid lines.json
}

@test "--json: the end of the target" {
	target_start
	watch_start watch "$TARGET" -o dir --every 0 --json
	watch_json ready
	watch_json link
	target_end exit 0
	watch_wait
	[ "$status" -eq 5 ]
	[ "$(cat out)" = '{"schema":1,"type":"end","reason":"gone","links":1}' ]
}

@test "--json: a link that fails" {
	need_root
	mkdir small
	mount -t tmpfs -o size=4m none small 2>/dev/null || skip "needs to mount a tmpfs"
	MOUNTED=$T/small
	target_start
	watch_start watch "$TARGET" -o small/dir --every 0 --json
	watch_json ready
	watch_json link
	dd if=/dev/zero of=small/full bs=4k status=none 2>/dev/null || :
	tell fill 1
	kill -USR1 "$WATCH"
	watch_json failed
	[[ $LINE == *',"trigger":"SIGUSR1","code":-28,"error":"No space left on device"}' ]]
	watch_end
	[ "$status" -eq 1 ]
	json_is_valid lines.json
}

@test "a reader of the lines that goes away ends it with code 1" {
	target_start
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	exec 7<&-
	kill -USR1 "$WATCH"
	ended
	[ "$status" -eq 1 ]
	says 'its reader has gone' watch.err
	"$WPSNAP" verify dir
	[ "$(ls dir/*.wps | wc -l)" -eq 2 ]
}

@test "--mode fuzzy of a target at rest between links" {
	target_start
	tell fill 1
	watch_start watch "$TARGET" -o dir --every 0 --mode fuzzy
	watch_ready
	tell write 5 50 2
	tell zap 90 10
	watch_link
	keep 1
	watch_end
	[ "$status" -eq 0 ]
	kept dir 1
}

@test "ranges that are skipped: told once, and the exit code is 4" {
	target_start
	tell extra 8 1
	tell hold 8
	watch_start watch "$TARGET" -o dir --every 0
	watch_ready
	watch_link
	watch_link
	watch_end
	[ "$status" -eq 4 ]
	[ "$(grep -c 'skipped: ' err)" -eq 1 ]
	"$WPSNAP" verify dir
}

@test "--refuse: a link that does not fit the staging memory fails, the target is not stopped for longer" {
	target_start 4096 16
	watch_start watch "$TARGET" -o dir --every 0 --staging 4M --refuse --rounds 0 --range "$(range $ANON 0 4096)"
	watch_ready
	tell fill 1
	kill -USR1 "$WATCH"
	watch_end
	[ "$status" -eq 1 ]
	says 'do not fit the staging memory'
	# without --refuse the chain goes on, and holds it all
	"$WPSNAP" watch "$TARGET" -o dir --every 0 --staging 4M --range "$(range $ANON 0 4096)" --count 1 >out 2>&1
	dump "$(range $ANON 0 4096)" dumped
	"$WPSNAP" restore dir -o raw --range "$(range $ANON 0 4096)"
	cmp raw dumped
}

@test "--hot-set auto: pages that are written all the time are left unprotected, and are in every link" {
	target_start 64
	watch_start watch "$TARGET" -o dir --every 0 --hot-set auto --json --range "$(range $ANON 0 64)"
	watch_json ready
	watch_json link
	for n in {1..12}; do
		tell fill "$n"
		kill -USR1 "$WATCH"
		watch_json link
	done
	# a word of 64 pages is protected as a whole when its turn comes
	grep -qE '"pages_hot":(6[0-9]|[1-5][0-9])' lines.json
	dump "$(range $ANON 0 64)" dumped
	watch_end
	[ "$status" -eq 0 ]
	"$WPSNAP" restore dir -o raw --range "$(range $ANON 0 64)"
	cmp raw dumped
	run "$WPSNAP" watch "$TARGET" -o dir --hot-set some
	[ "$status" -eq 2 ]
	[[ $output == *"--hot-set takes off or auto, not 'some'"* ]]
}
