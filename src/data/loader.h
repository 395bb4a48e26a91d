// Which text a micro-batch holds. The run's windows are numbered 0, 1, 2, …; micro-batch m (counted over the whole run
// and all ranks) takes windows [m*B, (m+1)*B); window w reads place permutation_e(w mod W) of the corpus, with a new
// permutation for each epoch e = w / W. So the text depends on (seed, m) alone: not on ranks, not on the past.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "data/shards.h"

namespace switchyard {

struct LoaderOptions {
  int micro_batch = 1;  // B, sequences
  int seq_len = 1024;   // S; a window is S+1 tokens, the next begins S further
  std::uint64_t seed = 1;
};

// All that a checkpoint needs to go on with the same text.
struct LoaderState {
  std::int64_t next_micro_batch = 0;  // over the run and all ranks
  std::int64_t micro_batch = 0, seq_len = 0, tokens = 0;
  std::uint64_t seed = 0;
};

struct Batch {
  std::int64_t micro_batch = -1;      // its number m
  std::vector<std::int32_t> inputs;   // [B, S]
  std::vector<std::int32_t> targets;  // [B, S]; -1: not to be counted (evaluation only; training counts every one)
  std::vector<std::int64_t> windows;  // [B] number in the run, the same whatever the ranks; -1: an empty row
  std::int64_t source_bytes = 0;      // of the counted targets (evaluation only)
  std::int64_t tokens = 0;            // inputs that are text; those behind them fill the batch (evaluation only)
};

class Loader {
 public:
  // RunError when the shards hold less than one window.
  Loader(std::shared_ptr<const ShardSet> shards, const LoaderOptions& options);

  std::int64_t windows_per_epoch() const { return windows_per_epoch_; }
  std::int64_t epoch_of(std::int64_t micro_batch) const;
  // Micro-batch m into the caller's buffers: inputs and targets [B, S], windows [B]. Thread-safe.
  // Token is std::int32_t or std::int64_t. Targets are the next tokens, BOS among them.
  template <class Token>
  void read(std::int64_t micro_batch, Token* inputs, Token* targets, std::int64_t* windows) const;
  Batch read(std::int64_t micro_batch) const;

  LoaderState state(std::int64_t next_micro_batch) const;
  // ConfigError naming the first difference when `state` was saved with other text, seed or sizes.
  void check_resumable(const LoaderState& state) const;
  const LoaderOptions& options() const { return options_; }

 private:
  std::shared_ptr<const ShardSet> shards_;
  LoaderOptions options_;
  std::int64_t windows_per_epoch_;
};

// Which micro-batches of the run a rank reads: of the `per_step` of a step, rank r takes the r-th run of
// per_step/world.
struct MicroBatchSchedule {
  std::int64_t per_step = 1;  // over all ranks; divisible by world_size
  int rank = 0, world_size = 1;
  std::int64_t per_rank() const { return per_step / world_size; }
  // The number in the run of this rank's index-th micro-batch of `step`.
  std::int64_t number(std::int64_t step, std::int64_t index) const {
    return step * per_step + rank * per_rank() + index;
  }
};

// The held-out text in order: windows of S+1 tokens side by side, each target read once. Targets that are BOS, and the
// padding of the last window, are -1; source_bytes counts the text of the others. Batches are numbered 0 … count()-1.
class HeldOut {
 public:
  // bytes_of: source bytes of each token, as Tokenizer::bytes_of(). max_tokens: 0 for all.
  HeldOut(std::shared_ptr<const ShardSet> shards, int micro_batch, int seq_len, std::vector<std::uint16_t> bytes_of,
          int bos, std::int64_t max_tokens = 0);
  std::int64_t count() const { return (windows_ + micro_batch_ - 1) / micro_batch_; }
  Batch read(std::int64_t batch) const;  // always B rows; rows past the end are all -1

 private:
  std::shared_ptr<const ShardSet> shards_;
  std::int64_t micro_batch_, seq_len_, tokens_, windows_;
  std::vector<std::uint16_t> bytes_of_;
  int bos_;
};

}  // namespace switchyard
