#!/usr/bin/env bash
# train.profile_step: the table has rows, the trace is JSON, and the run is that of the same run without it.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
model=(--config tiny_moe --train.steps 4 --train.log_every 1)
must_train plain "${model[@]}"
must_train recorded "${model[@]}" --train.profile_step 2

grep -q '^step 2: wall time [0-9.]* ms, operators [0-9.]* ms in [0-9]* calls$' recorded/profile.txt ||
  fail "profile.txt does not begin with its sums" recorded.log
python3 - recorded/profile.txt recorded/profile.json <<'EOF' || fail "the profile is not what it should be" recorded/profile.txt
import json, re, sys
head, titles, *rows = open(sys.argv[1]).read().splitlines()
rows = [row.split(None, 4) for row in rows]
assert len(rows) >= 10, rows
times = [float(row[0]) for row in rows if "others" not in row[4]]
assert times == sorted(times, reverse=True), times
total = float(re.search(r"operators ([0-9.]+) ms", head)[1])
wall = float(re.search(r"wall time ([0-9.]+) ms", head)[1])
assert abs(sum(float(row[0]) for row in rows) - total) < 0.1 and total <= 1.01 * wall, (total, wall)
assert any(row[4] == "aten::mm" for row in rows), rows
assert json.load(open(sys.argv[2]))["traceEvents"]
EOF
same_run plain recorded
[[ ! -e plain/profile.txt ]] || fail "a profile that nobody asked for"
passed "a recorded step: table, trace, and the same run"

must_train late "${model[@]}" --train.profile_step 9
grep -q 'train.profile_step = 9 is after the last step' late.log || fail "nothing says that no step is recorded" late.log
passed "a step that never comes is named"
