#!/usr/bin/env bash
# sample and evaluate on what a short run leaves.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
must_train run --config tiny_moe --train.steps 40 --train.eval_tokens 1000000
must_train dense --config tiny_dense --train.steps 40 --train.eval_tokens 1000000

must() { "$bin/$1" "${@:2}" >output 2>errors || fail "$* ended with code $?" <(cat output errors); }
bad() {
  local expected=$1
  shift
  "$bin/$1" "${@:2}" >output 2>&1
  local code=$?
  [[ $code -eq 2 ]] || fail "$* ended with code $code, not 2" output
  grep -qF -- "$expected" output || fail "$*: nothing says $expected" output
}

# The whole held-out text, by the weights alone: the figures training ended with.
for model in run dense; do
  must evaluate --checkpoint "$model"
  for figure in 'loss loss' 'bits_per_byte bits per byte'; do
    read -r field label <<<"$figure"
    trained=$(metrics value "$model/metrics.jsonl" eval 40 "$field")
    told=$(sed -n "s/^$label  *\([0-9.]*\).*/\1/p" output)
    [[ $(printf %.5f "$trained") == "$told" ]] || fail "evaluate says $label = $told, training ended with $trained" output
  done
done
must evaluate --checkpoint run/checkpoints/step-00000040
grep -q 'experts' output || fail "evaluate tells nothing of the experts" output
must evaluate --checkpoint run --text "$data/text/text_003.txt"
grep -q '^perplexity' output || fail "evaluate --text tells no perplexity" output
passed "evaluate gives the loss that training ended with"

greedy=(--checkpoint run --prompt 'def ba' --temperature 0 --tokens 40)
must sample "${greedy[@]}" && mv output first
must sample "${greedy[@]}" --sample_seed 5
cmp first output || fail "greedy samples differ"
[[ $(wc -c <first) -gt 20 && $(head -c 6 first) == 'def ba' ]] || fail "the sample does not continue its prompt" first
drawn=(--checkpoint run --prompt 'def ' --tokens 30 --count 3 --top_k 20 --top_p 0.9)
must sample "${drawn[@]}" && mv output first
[[ $(grep -c '^----$' first) -eq 3 ]] || fail "--count 3 gives no three samples" first
must sample "${drawn[@]}"
cmp first output || fail "the same seed draws another text"
must sample "${drawn[@]}" --sample_seed 1
cmp -s first output && fail "another seed draws the same text" first
must sample --checkpoint dense --tokens 58 --temperature 1
must sample --checkpoint run --prompt ''
passed "sample: greedy and drawn, one and three, sparse and dense"

# A run is complete by itself: its text and the tokenizer it was given may be gone.
cp -r "$data/text" own_text && cp "$here/golden/tokenizer.model" own.model
must_train moved --config tiny_moe --train.steps 2 --data.corpus own_text --data.tokenizer own.model
rm -r own_text own.model
must sample --checkpoint moved
must evaluate --checkpoint moved --text "$data/text/text_003.txt"
bad 'own_text' evaluate --checkpoint moved
passed "sample and evaluate need the run's folder alone"

must_train all_text --config tiny_moe --train.steps 4 --train.eval_every 2 --data.holdout_fraction 0
grep -q 'no text is held out: there is no evaluation' all_text.log || fail "nothing says that no text is held out" all_text.log
grep -q 'trained 4 steps' all_text.log || fail "the end tells no steps" all_text.log
must sample --checkpoint all_text
bad 'data.holdout_fraction' evaluate --checkpoint all_text
passed "a run without held-out text trains and evaluates nothing"

bad '--checkpoint is missing' sample
bad 'no checkpoint at nowhere' sample --checkpoint nowhere
bad 'no checkpoint at nowhere' evaluate --checkpoint nowhere
bad '--top_p = 2' sample --checkpoint run --top_p 2
bad "--model.n_layer: a trained model's config cannot be changed" evaluate --checkpoint run --model.n_layer 3
bad 'unknown option --resume' evaluate --checkpoint run --resume
bad '--text lacks its value, PATHS' evaluate --checkpoint run --text
bad 'device = "gpu"' sample --checkpoint run --device gpu
bad 'unknown option --temprature' sample --checkpoint run --temprature 1
passed "sample and evaluate: wrong options are named"

bad '--vocab_size = 100 leaves no room beside the 256 byte pieces; choose 320 or more' tokenize --input "$data/text" --out cut --vocab_size 100
bad '--input: no/such/text' tokenize --input no/such/text --out cut
bad '--tokenizer' tokenize --input "$data/text" --out cut --tokenizer no.model
passed "tokenize: wrong options are named as its own"
