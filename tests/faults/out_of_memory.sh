#!/usr/bin/env bash
# A model that does not fit: the estimate, and the keys that lower it, instead of a bare bad_alloc.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
large=(--config tiny_dense --model.n_embd 8192 --model.n_layer 24 --model.head_dim 128)
must_train fits --config tiny_dense --train.steps 1      # so that the text is there
peak_kib() { (ulimit -v "$1" && train probe --config tiny_dense --train.steps 1); }
limit=$((8 * 1024 * 1024))
peak_kib $limit || skip "the program itself does not start in 8 GiB of address space"

(ulimit -v $limit && train large "${large[@]}")
code=$?
[[ $code -eq 1 ]] || fail "out of memory ends with code $code, not 1" large.log
for part in 'out of host memory' 'training needs about' 'GiB' 'train.micro_batch = 4' 'model.seq_len = 64' 'model.n_layer = 24'; do
  grep -qF "$part" large.log || fail "nothing says: $part" large.log
done
[[ ! -e large ]] || fail "it created the run's folder"
passed "$(grep -o 'out of host memory.*' large.log)"
