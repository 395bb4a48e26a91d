// ops/step_context.h: what a forward pass knows about the step it belongs to.
#pragma once

#include <functional>

#include "ops/dropout.h"

namespace switchyard {

// What a layer shows of a pass, in the order in which it makes them: the residual stream it gets, what attention adds,
// the router's logits, what the MLP or the experts add.
enum class Watched { kResidual, kAttention, kRouterLogits, kFfn };
using Watch = std::function<void(Watched what, int layer, const at::Tensor& values)>;

struct StepContext {
  bool training = false;       // dropout, auxiliary losses, fp8 products; false: evaluation and generation
  int seq_len = 0;             // tokens of each sequence in this pass
  int first_position = 0;      // of each sequence's first token (cached decoding)
  double loss_scale = 1;       // 1 / micro-batches of the step
  at::Tensor step;             // int64 [1] on the device: attempted steps; schedules read it
  std::int64_t host_step = 0;  // the same, for the few decisions that the host takes
  at::Tensor token_T;          // int64: the tokens of this pass
  at::Tensor real_T;           // bool: false for padding, which is routed nowhere; undefined: all are real
  ops::DropoutKey dropout;
  Watch watch;  // sees every layer's values (train.debug); empty: nobody does
  int data_ranks = 1;
  std::function<at::Tensor(const at::Tensor&)> sum_over_ranks;  // of small integer tensors; empty with one rank
};

}  // namespace switchyard
