#!/usr/bin/env bash
# One training run on several machines, over ssh and Open MPI.
#   runs/multinode.sh HOSTFILE ARGUMENTS-OF-TRAIN…
# HOSTFILE has a line a machine, `gpu1 slots=8`: its name and how many ranks it runs, one a GPU. The repository lies at
# the same path on each (shared, or cloned at the same commit) and is set up there; ssh reaches each without a password.
# Variables that begin with NCCL_, UCX_, SWITCHYARD_, CUDA_ or OMP_ go along. Where ssh is not allowed, a scheduler
# starts `./train …` on each rank instead: srun, or anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
die() { echo "multinode.sh: $*" >&2; exit 1; }
(($# >= 2)) && [[ $1 != -* ]] || { sed -n '2,7s/^# //p' "${BASH_SOURCE[0]}"; exit 2; }
hostfile=$1
shift
[[ -r $hostfile ]] || die "cannot read the host file $hostfile"
lines=$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$hostfile")
[[ -n $lines ]] || die "$hostfile names no machine; write a line like: gpu1 slots=8"
bare=$(grep -vE 'slots=[1-9][0-9]*' <<<"$lines" || true)
[[ -z $bare ]] || die "$hostfile: '${bare%%$'\n'*}' says not how many ranks; write: ${bare%% *} slots=8"
ranks=$(grep -oE 'slots=[0-9]+' <<<"$lines" | cut -d= -f2 | paste -sd+ | awk -F+ '{for (i = 1; i <= NF; i++) n += $i; print n}')
machines=$(wc -l <<<"$lines")
command -v mpirun >/dev/null || die "mpirun is not installed; run runs/setup.sh"

options=(--hostfile "$hostfile" --bind-to none)
((EUID != 0)) || options+=(--allow-run-as-root)

# Every machine must have the program, and the same one: a difference shows up as a hang or a wrong loss much later.
probe="echo \"\$(hostname) \$(git -C '$root' rev-parse --short HEAD 2>/dev/null || echo none) \$(test -x '$root/build/bin/train' && echo built || echo missing)\""
answers=$(timeout 60 mpirun "${options[@]}" --map-by ppr:1:node -np "$machines" bash -c "$probe") ||
  die "not every machine of $hostfile answered within 60 s; try: ssh MACHINE true"
missing=$(awk '$3 == "missing" {print $1}' <<<"$answers" | sort -u | paste -sd' ')
[[ -z $missing ]] || die "$root/build/bin/train is missing on: $missing; run runs/setup.sh there"
(($(awk '{print $2}' <<<"$answers" | sort -u | wc -l) == 1)) || die "the machines are at different commits:"$'\n'"$answers"

for name in $(compgen -e | grep -E '^(NCCL|UCX|SWITCHYARD|CUDA|OMP)_'); do options+=(-x "$name"); done
echo "$ranks ranks on $machines machines, commit $(awk 'NR == 1 {print $2}' <<<"$answers")"
exec mpirun "${options[@]}" -np "$ranks" "$root/train" "$@"
