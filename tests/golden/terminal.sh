#!/usr/bin/env bash
# A run on a terminal shows how far it is between two log lines, and leaves no trace of it among them. Ranks under mpirun,
# which gives each a terminal, write plain lines.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
command -v script >/dev/null || skip "script is not installed"
run=("$bin/train" "${text[@]}" --config tiny_moe --train.steps 200 --train.log_every 100)
escape=$'\033' erase=$'\r\033'"\\[K"

SHELL=/bin/bash script -qec "$(printf '%q ' "${run[@]}" --train.out "$work/shown")" typescript >/dev/null </dev/null ||
  fail "training on a terminal ended with code $?" typescript
grep -qE 'step [0-9]+/200  loss [0-9.]+  [0-9a-z ]+ left' typescript || fail "there is no progress line" typescript
# What stays on the screen: of each line, what follows its last erasure.
sed -E "s/\r$//; s/.*$erase//; s/$escape\[[0-9;]*m//g" typescript >screen
grep -q ' left$' screen && fail "a progress line stayed" screen
for step in 1 100 200; do grep -qE "^step +$step/200  loss" screen || fail "the line of step $step is not by itself" screen; done

"${run[@]}" --train.out "$work/piped" >piped.log 2>&1 || fail "training into a file ended with code $?" piped.log
grep -q "$escape" piped.log && fail "escapes in a file" piped.log
passed "a progress line on a terminal alone"

command -v mpirun >/dev/null || exit 0
mpirun --allow-run-as-root --oversubscribe --bind-to none -np 2 "${run[@]}" --train.out "$work/ranks" --train.micro_batch 4 >ranks.log 2>&1 ||
  fail "two ranks ended with code $?" ranks.log
grep -q "$escape" ranks.log && fail "two ranks write escapes" ranks.log
grep -q ' left' ranks.log && fail "two ranks draw a progress line" ranks.log
passed "plain lines of two ranks"
