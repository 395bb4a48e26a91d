#include "data/loader.h"

#include <algorithm>

#include "base/error.h"
#include "base/philox.h"
#include "base/text.h"
#include "data/permutation.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kShufflePurpose = 0x73687566;

template <class Token>
void copy_window(const ShardSet& shards, std::int64_t first, std::int64_t seq_len, Token* inputs, Token* targets) {
  static thread_local std::vector<std::int32_t> window;
  window.resize(static_cast<std::size_t>(seq_len) + 1);
  shards.read(first, seq_len + 1, window.data());
  std::copy(window.begin(), window.end() - 1, inputs);
  std::copy(window.begin() + 1, window.end(), targets);
}

void require_same(const char* what, std::int64_t saved, std::int64_t now) {
  if (saved == now) return;
  throw ConfigError(
      format("cannot resume with the same text: %s was %s and is now %s; use the configuration and corpus of "
             "the checkpoint, or begin a new run with train.init_from",
             what, with_commas(saved).c_str(), with_commas(now).c_str()));
}

}  // namespace

Loader::Loader(std::shared_ptr<const ShardSet> shards, const LoaderOptions& options)
    : shards_(std::move(shards)), options_(options), windows_per_epoch_((shards_->size() - 1) / options.seq_len) {
  if (windows_per_epoch_ < 1) {
    throw RunError(
        format("the training text has %s tokens, less than one window of model.seq_len + 1 = %d; use a larger "
               "data.corpus or a smaller model.seq_len",
               with_commas(shards_->size()).c_str(), options.seq_len + 1));
  }
}

std::int64_t Loader::epoch_of(std::int64_t micro_batch) const {
  return micro_batch * options_.micro_batch / windows_per_epoch_;
}

template <class Token>
void Loader::read(std::int64_t micro_batch, Token* inputs, Token* targets, std::int64_t* windows) const {
  const std::int64_t seq_len = options_.seq_len;
  const std::uint64_t key = mix_key(options_.seed, kShufflePurpose);
  for (std::int64_t row = 0; row < options_.micro_batch; ++row) {
    const std::int64_t window = micro_batch * options_.micro_batch + row;
    const auto epoch = static_cast<std::uint64_t>(window / windows_per_epoch_);
    const Permutation place(static_cast<std::uint64_t>(windows_per_epoch_), mix_key(key, epoch));
    const auto chosen = static_cast<std::int64_t>(place(static_cast<std::uint64_t>(window % windows_per_epoch_)));
    copy_window(*shards_, chosen * seq_len, seq_len, inputs + row * seq_len, targets + row * seq_len);
    windows[row] = window;
  }
}

template void Loader::read(std::int64_t, std::int32_t*, std::int32_t*, std::int64_t*) const;
template void Loader::read(std::int64_t, std::int64_t*, std::int64_t*, std::int64_t*) const;

namespace {

Batch empty_batch(std::int64_t number, std::int64_t rows, std::int64_t seq_len) {
  Batch batch;
  batch.micro_batch = number;
  batch.inputs.resize(static_cast<std::size_t>(rows * seq_len));
  batch.targets.resize(batch.inputs.size(), -1);
  batch.windows.resize(static_cast<std::size_t>(rows), -1);
  return batch;
}

}  // namespace

Batch Loader::read(std::int64_t micro_batch) const {
  Batch batch = empty_batch(micro_batch, options_.micro_batch, options_.seq_len);
  read(micro_batch, batch.inputs.data(), batch.targets.data(), batch.windows.data());
  batch.tokens = static_cast<std::int64_t>(batch.inputs.size());
  return batch;
}

LoaderState Loader::state(std::int64_t next_micro_batch) const {
  return {next_micro_batch, options_.micro_batch, options_.seq_len, shards_->size(), options_.seed};
}

void Loader::check_resumable(const LoaderState& state) const {
  require_same("the training text's number of tokens", state.tokens, shards_->size());
  require_same("model.seq_len", state.seq_len, options_.seq_len);
  require_same("train.micro_batch", state.micro_batch, options_.micro_batch);
  require_same("the data seed", static_cast<std::int64_t>(state.seed), static_cast<std::int64_t>(options_.seed));
}

HeldOut::HeldOut(std::shared_ptr<const ShardSet> shards, int micro_batch, int seq_len,
                 std::vector<std::uint16_t> bytes_of, int bos, std::int64_t max_tokens)
    : shards_(std::move(shards)),
      micro_batch_(micro_batch),
      seq_len_(seq_len),
      bytes_of_(std::move(bytes_of)),
      bos_(bos) {
  tokens_ = max_tokens > 0 ? std::min(shards_->size(), max_tokens + 1) : shards_->size();
  windows_ = (tokens_ - 1 + seq_len_ - 1) / seq_len_;
}

Batch HeldOut::read(std::int64_t number) const {
  Batch batch = empty_batch(number, micro_batch_, seq_len_);
  std::fill(batch.inputs.begin(), batch.inputs.end(), bos_);
  std::vector<std::int32_t> tokens;
  for (std::int64_t row = 0; row < micro_batch_; ++row) {
    const std::int64_t window = number * micro_batch_ + row;
    if (window >= windows_) break;
    const std::int64_t predicted = std::min(seq_len_, tokens_ - 1 - window * seq_len_);
    batch.tokens += predicted;
    tokens.resize(static_cast<std::size_t>(predicted) + 1);
    shards_->read(window * seq_len_, predicted + 1, tokens.data());
    std::copy(tokens.begin(), tokens.end() - 1, batch.inputs.begin() + row * seq_len_);
    for (std::int64_t i = 0; i < predicted; ++i) {
      const std::int32_t target = tokens[static_cast<std::size_t>(i) + 1];
      if (target == bos_) continue;
      batch.targets[static_cast<std::size_t>(row * seq_len_ + i)] = target;
      batch.source_bytes += bytes_of_[static_cast<std::size_t>(target)];
    }
    batch.windows[static_cast<std::size_t>(row)] = window;
  }
  return batch;
}

}  // namespace switchyard
