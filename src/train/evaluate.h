// Held-out loss: cross entropy without auxiliary losses, in bf16 or fp32 even when training is in fp8 (moe_spec T6,
// P4).
#pragma once

#include <functional>
#include <optional>

#include "comm/control.h"
#include "data/loader.h"
#include "model/gpt.h"
#include "train/routing_table.h"

namespace switchyard {

struct Evaluation {
  double loss = 0;           // nats a target
  double bits_per_byte = 0;  // sum of nll / (ln 2 * source bytes of the predicted text)
  std::int64_t targets = 0, source_bytes = 0;
  at::Tensor count_LE;  // int64: how often each expert was chosen; undefined for a dense model
};

// Over all batches of `text`, divided among the ranks of `control`. Leaves the model as it was. `stop` is asked before
// every batch: where it says true on any rank, all of them end at once, with nothing.
std::optional<Evaluation> evaluate(Gpt& model, const HeldOut& text, at::Device device, Control& control,
                                   const std::function<bool()>& stop);

// Counts on the CPU, a row a sparse layer, as the rows of a routing table.
std::vector<LayerRouting> layers_of(const Config& config, const at::Tensor& count_LE);

}  // namespace switchyard
