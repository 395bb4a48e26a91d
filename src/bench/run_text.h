// bench/run_text.h: the text that a run trains on, for another program to train on the same.
#pragma once

#include <cstdint>
#include <string>

#include "config/config.h"

namespace switchyard::bench {

// Writes the run's first `micro_batches` as safetensors: text int32 [M, B, S+1], B sequences of train.micro_batch, of
// each the inputs and one token more, so that targets are its last S. Prepares the text where it is not yet.
void write_run_text(const Config& config, std::int64_t micro_batches, const std::string& path);

}  // namespace switchyard::bench
