// The few numbers that change from step to step, on the device: a captured optimizer step reads them at replay.
#pragma once

#include <ATen/ATen.h>

namespace switchyard {

struct StepScalars {
  explicit StepScalars(at::Device device);
  // Writes what follows from the schedules; asynchronous on a GPU.
  void set_schedule(std::int64_t step, double lr_factor, double momentum, double decay_factor);

  at::Tensor lr_factor, momentum, decay_factor;  // fp32 [1]
  at::Tensor grad_factor;                        // fp32 [1]: clipping's factor on every gradient
  at::Tensor apply;                              // int32 [1]: 0 while this step's update must not be stored
  at::Tensor applied;                            // int64 [1]: applied steps so far
  at::Tensor step;                               // int64 [1]: attempted steps so far
  at::Tensor grad_norm;                          // fp32 [1]
  at::Tensor skipped, skipped_in_a_row;          // int64 [1]: updates not applied
};

// Decides whether this step's update is stored, and by what factor gradients are clipped (optim.clip_norm, 0: not).
// sum_of_squares: of all gradients over all ranks; loss: any scalar that is not finite when the loss was not.
//   grad_norm = sqrt(sum_of_squares);  apply = both finite;  grad_factor = min(1, clip / (grad_norm + 1e-6))
// Both fp32 [1]. Nothing is read by the host.
void guard_step(StepScalars& scalars, const at::Tensor& sum_of_squares, const at::Tensor& loss, double clip_norm);

}  // namespace switchyard
