# SPDX-License-Identifier: MIT
# bash completion for wpsnap(1)

_wpsnap()
{
	local cur prev cmd i take
	cur=${COMP_WORDS[COMP_CWORD]}
	prev=${COMP_WORDS[COMP_CWORD - 1]}
	cmd=${COMP_WORDS[1]}
	COMPREPLY=()
	compopt -o filenames 2>/dev/null

	if [[ $COMP_CWORD -eq 1 ]]; then
		compopt +o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -W 'probe save watch run info verify diff merge prune restore qemu --help --version' -- "$cur")
		return
	fi
	if [[ $cmd == qemu ]]; then
		if [[ $COMP_CWORD -eq 2 ]]; then
			compopt +o filenames 2>/dev/null
			mapfile -t COMPREPLY < <(compgen -W 'save watch restore' -- "$cur")
			return
		fi
		cmd="qemu ${COMP_WORDS[2]}"
	fi
	if [[ $cmd == run ]]; then
		for ((i = 2; i < COMP_CWORD; i++)); do
			if [[ ${COMP_WORDS[i]} == -- ]]; then
				if ((i + 1 == COMP_CWORD)); then
					mapfile -t COMPREPLY < <(compgen -c -- "$cur")
				else
					mapfile -t COMPREPLY < <(compgen -f -- "$cur")
				fi
				return
			fi
		done
	fi
	case $prev in
	--mode)
		mapfile -t COMPREPLY < <(compgen -W 'pause cow fuzzy' -- "$cur")
		return
		;;
	--backend)
		mapfile -t COMPREPLY < <(compgen -W 'auto async sync' -- "$cur")
		return
		;;
	-o | --output | --parent)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return
		;;
	--level)
		mapfile -t COMPREPLY < <(compgen -W 'auto' -- "$cur")
		return
		;;
	--hot-set)
		mapfile -t COMPREPLY < <(compgen -W 'off auto' -- "$cur")
		return
		;;
	--every | --count | --keep | --threads | --range | --staging | --rounds | --target-pause | --stop-timeout | --pid | --device-limit)
		return
		;;
	esac
	if [[ $cur == -* ]]; then
		compopt +o filenames 2>/dev/null
		take='--output --range --mode --backend --level --threads --verify-content --assume-sole-writer --staging --refuse --rounds --target-pause
			--stop-timeout
			--collapse --registers --cmdline --json --quiet'
		case $cmd in
		probe | info) take='--json' ;;
		save) take+=' --parent' ;;
		watch | run) take+=' --every --count --keep --new --hot-set' ;;
		verify | diff) take='--json --quiet' ;;
		merge) take='--output --level --threads --quiet' ;;
		prune) take='--keep --dry-run --level --threads --json --quiet' ;;
		restore) take='--output --range --threads --quiet' ;;
		'qemu save' | 'qemu watch')
			take='--output --pid --device-limit --backend --level --threads --verify-content --assume-sole-writer --staging --refuse --rounds
				--target-pause --stop-timeout --with-disks --cmdline --json --quiet'
			[[ $cmd == 'qemu save' ]] && take+=' --parent' || take+=' --every --count --keep --new --hot-set'
			;;
		'qemu restore') take='--lazy --collapse --paused --with-disks --threads --quiet' ;;
		*) return ;;
		esac
		mapfile -t COMPREPLY < <(compgen -W "$take --help --version" -- "$cur")
		return
	fi
	case $cmd in
	save | watch)
		compopt +o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(cd /proc && compgen -G '[0-9]*' | grep -- "^$cur")
		;;
	info | verify | diff | merge | prune | restore | 'qemu '*)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		;;
	esac
}
complete -F _wpsnap wpsnap
