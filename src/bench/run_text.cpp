#include "bench/run_text.h"

#include <ATen/ATen.h>

#include <memory>

#include "data/loader.h"
#include "data/prepare.h"
#include "train/safetensors.h"

namespace switchyard::bench {

void write_run_text(const Config& config, std::int64_t micro_batches, const std::string& path) {
  const PreparedData data = prepare_data(config.data, config.model.vocab_size, config.model.seq_len);
  const Loader loader(std::make_shared<const ShardSet>(data.train_shards, data.tokenizer_hash, config.model.vocab_size),
                      {config.train.micro_batch, config.model.seq_len, static_cast<std::uint64_t>(config.data.seed)});
  const std::int64_t sequences = config.train.micro_batch, length = config.model.seq_len;
  const at::Tensor text = at::empty({micro_batches, sequences, length + 1}, at::kInt);
  for (std::int64_t m = 0; m < micro_batches; ++m) {
    Batch batch = loader.read(m);
    const at::Tensor inputs = at::from_blob(batch.inputs.data(), {sequences, length}, at::kInt),
                     targets = at::from_blob(batch.targets.data(), {sequences, length}, at::kInt);
    text[m].narrow(1, 0, length).copy_(inputs);
    text[m].narrow(1, length, 1).copy_(targets.narrow(1, length - 1, 1));
  }
  write_safetensors(path, {{"text", text}});
}

}  // namespace switchyard::bench
