// Bytes that one rank needs for training, estimated from the config. No torch.
#pragma once

#include <cstdint>
#include <string>

#include "config/config.h"

namespace switchyard {

struct MemoryEstimate {
  std::int64_t weights = 0;         // fp32 masters
  std::int64_t compute_copies = 0;  // bf16 copies of matrices and tables; fp8 ones besides
  std::int64_t gradients = 0;       // fp32, one buffer
  std::int64_t optimizer = 0;       // Muon 4 B, AdamW 8 B a parameter, over the ranks if sharded
  std::int64_t activations = 0;     // what backward needs of one micro-batch
  std::int64_t workspace = 0;       // temporaries at the peak: a chunk of logits, or one layer's row gradients
  std::int64_t total() const { return weights + compute_copies + gradients + optimizer + activations + workspace; }
};

MemoryEstimate estimate_memory(const Config& config, int world_size);

// What backward keeps for one token of one layer, in elements of the compute type; the formula stands at the
// definition.
std::int64_t activation_elements_per_token(const Config& config, int layer);

std::string memory_table(const MemoryEstimate& estimate);
// "needs about 24.1 GiB; lower train.micro_batch = 64 (activations 17.2 GiB) …": for out-of-memory messages.
std::string memory_advice(const Config& config, const MemoryEstimate& estimate);

}  // namespace switchyard
