// The run's options: training, data, precision, parallelism, logs.
#pragma once

#include "config/config.h"
#include "config/constraint.h"

namespace switchyard {

template <class V>
void describe_length(V& v, TrainConfig& c) {
  v.field("steps", c.steps, at_least(0),
          "Optimizer steps. 0: from target_flops if that is set, else from target_param_data_ratio.", "O4");
  v.field("target_flops", c.target_flops, at_least(0), "Train for so many FLOPs in all. 0: unset.", "O4");
  v.field("target_param_data_ratio", c.target_param_data_ratio, positive(),
          "Train on so many tokens per scaling parameter (block matrices and head, without inactive experts).",
          "O3; Hoffmann et al. 2022 (Chinchilla)");
  v.field("micro_batch", c.micro_batch, between(1, 1048576),
          "Sequences a rank processes at once. Larger fills a GPU better and takes more activation memory; the result "
          "of a step does not depend on it, but for rounding and per-micro-batch balance.");
  v.field("batch_tokens", c.batch_tokens, between(1, 1e15),
          "Tokens an optimizer step sees, over all ranks; a multiple of ranks * micro_batch * seq_len. Gradients "
          "accumulate over as many micro-batches as it takes.");
}

template <class V>
void describe_loop(V& v, TrainConfig& c) {
  v.field("cuda_graph", c.cuda_graph, one_of({"auto", "true", "false"}),
          "Replay the step as CUDA graphs, which takes the launches off the CPU. auto: where every option allows it; a "
          "log line names the one that does not. true: an error then.",
          "T5");
  v.field(
      "deterministic", c.deterministic, any(),
      "Bitwise repeatable on a GPU too: torch and cuDNN keep to algorithms of a fixed order, or stop with an error "
      "where there is none. Our own kernels always do, among them attention's backward in bf16 with heads of 64 "
      "channels on Hopper. By cuDNN it is slower then, and borrows 2 seq_len bytes a token and head; above 4 GiB of "
      "that a window_pattern with S stops with an error, which a smaller train.micro_batch cures. A CPU run is "
      "repeatable without it.");
  v.field("log_every", c.log_every, at_least(1), "Steps between log lines; the device is asked for figures only then.",
          "T3");
  v.field("eval_every", c.eval_every, at_least(0),
          "Steps between evaluations on held-out text. 0: only before the first step and at the end.", "T6");
  v.field("eval_tokens", c.eval_tokens, at_least(1), "Held-out tokens an evaluation reads, at most all there are.",
          "T6");
  v.field("sample_every", c.sample_every, at_least(0), "Steps between samples of generated text. 0: only at the end.",
          "T7");
  v.field("sample_prompt", c.sample_prompt, any(), "What the samples continue.", "T7");
  v.field("sample_tokens", c.sample_tokens, at_least(0), "Tokens of a sample. 0: no samples.", "T7");
  v.field("checkpoint_every", c.checkpoint_every, at_least(0),
          "Steps between checkpoints. 0: only at the end, and on SIGTERM or SIGINT.", "T8");
  v.field("keep_checkpoints", c.keep_checkpoints, at_least(1),
          "Latest checkpoints kept, besides the one of the lowest held-out loss.", "T8");
  v.field("resume", c.resume, any(), "Continue the run in train.out from its latest valid checkpoint. Flag: --resume.",
          "T8");
  v.field("init_from", c.init_from, any(),
          "Start a new run from this checkpoint's weights, at step 0 and with fresh optimizer state. Flag: --init_from "
          "PATH.",
          "T8");
  v.field("out", c.out, any(), "The run's folder: log, samples, checkpoints. Empty: runs/out/<name>.");
  v.field("seed", c.seed, at_least(0), "Of initial values and dropout. Equal seeds give equal runs on a CPU.");
  v.field("nonfinite_limit", c.nonfinite_limit, at_least(1),
          "Steps with a non-finite loss or gradient are skipped and counted; so many in a row stop the run.");
  v.field("profile_step", c.profile_step, at_least(0),
          "Record this step, counted from 1, kernel by kernel: the run's folder gets profile.txt, a table by total "
          "time, and profile.json, a trace for ui.perfetto.dev. On a GPU the first 3 steps record graphs; 8 is a good "
          "choice. 0: none.");
  v.field("recompute", c.recompute, one_of({"none", "moe", "block"}),
          "What backward computes again instead of keeping. moe: the experts' hidden activations; block: whole blocks. "
          "Less memory for more time, the same bits.",
          "T4; Chen et al. 2016");
  v.field("debug", c.debug, one_of({"off", "stats", "tensors"}),
          "stats: each layer's norms at every log line, and the name of the first layer whose values are not finite. "
          "tensors: also writes them to the run's folder; without CUDA graphs.",
          "T9");
}

template <class V>
void describe(V& v, TrainConfig& c) {
  describe_length(v, c);
  describe_loop(v, c);
}

template <class V>
void describe(V& v, DataConfig& c) {
  v.field("corpus", c.corpus, not_empty(),
          "torch_python: the Python sources of the pinned LibTorch package, 41 MB, the same everywhere. Or files, "
          "folders and globs, separated by commas: .txt, .jsonl, and these with .gz or .zst; folders are read whole.");
  v.field("tokenizer", c.tokenizer, any(),
          "A sentencepiece model file of model.vocab_size pieces. Empty: trained on the corpus, once, and cached.");
  v.field("cache", c.cache, not_empty(), "Folder of tokenizers and token shards; safe to delete.");
  v.field("tokenizer_sample_lines", c.tokenizer_sample_lines, at_least(1),
          "Lines of the corpus a new tokenizer is trained on.");
  v.field("holdout_fraction", c.holdout_fraction, from_up_to(0, 1),
          "Share of documents, whole ones, kept out of training for evaluation. 0: none, and no evaluation.");
  v.field("seed", c.seed, at_least(0), "Of the order of windows, the held-out choice, and the tokenizer's sample.");
}

template <class V>
void describe(V& v, PrecisionConfig& c) {
  v.field(
      "mode", c.mode, one_of({"fp32", "bf16", "fp8"}),
      "Arithmetic of matrix products; master weights stay fp32. fp8 converts the linear layers its filter selects, a "
      "line each in the run's fp8_layers.txt, and computes the rest in bf16; it needs a GPU that has it. On a CPU "
      "an untouched bf16 yields to fp32.",
      "P1; Micikevicius et al. 2022 (FP8)");
  v.field("fp8_recipe", c.fp8_recipe, one_of({"tensorwise"}),
          "Granularity of fp8 scales, found anew at each use. tensorwise: one a matrix.", "P2");
  v.field("fp8_gradient", c.fp8_gradient, one_of({"e5m2", "e4m3"}),
          "Format of output gradients: range (e5m2) or precision (e4m3). Forward is e4m3.", "P2");
  v.field("fp8_exclude", c.fp8_exclude, any(),
          "Patterns (* and ?) of the full names of linear layers that stay bf16. Routers and value gates always do. An "
          "empty list lets experts be fp8.",
          "P2");
  v.field("fp8_min_align", c.fp8_min_align, between(16, 1024),
          "A layer converts only if both its dimensions are multiples of this.", "P2");
}

template <class V>
void describe(V& v, ParallelConfig& c) {
  v.field("shard_optimizer", c.shard_optimizer, any(),
          "Each rank keeps and steps only its share of optimizer state; a Muon matrix is owned whole.",
          "D3; Rajbhandari et al. 2020 (ZeRO)");
  v.field("overlap", c.overlap, any(), "Reduce gradients while backward goes on, not after it.");
  v.field("bucket_mib", c.bucket_mib, positive(), "Size of the buckets in which gradients are reduced, in MiB.");
  v.field("timeout_s", c.timeout_s, at_least(1),
          "Seconds after which a silent rank is declared dead and the run ends.");
}

template <class V>
void describe(V& v, LogConfig& c) {
  v.field("routing", c.routing, one_of({"summary", "layer"}),
          "Expert load in the log: summary: over all layers; layer: each sparse layer's own.", "T3");
  v.field(
      "dead_window", c.dead_window, at_least(1),
      "An expert without a token for so many steps is called dead, with routing = layer. Otherwise one without a token "
      "since the last log line is.",
      "T3");
}

}  // namespace switchyard
