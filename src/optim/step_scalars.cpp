#include "optim/step_scalars.h"

#include "kernels/step_guard.h"
#include "ops/launch.h"

namespace switchyard {

StepScalars::StepScalars(at::Device device) {
  const auto options = at::TensorOptions().device(device);
  for (at::Tensor* value : {&lr_factor, &momentum, &decay_factor}) *value = at::zeros({1}, options.dtype(at::kFloat));
  grad_factor = at::ones({1}, options.dtype(at::kFloat));
  grad_norm = at::zeros({1}, options.dtype(at::kFloat));
  apply = at::ones({1}, options.dtype(at::kInt));
  applied = at::zeros({1}, options.dtype(at::kLong));
  step = at::zeros({1}, options.dtype(at::kLong));
  skipped = at::zeros({1}, options.dtype(at::kLong));
  skipped_in_a_row = at::zeros({1}, options.dtype(at::kLong));
}

void StepScalars::set_schedule(std::int64_t step_number, double lr, double mu, double decay) {
  lr_factor.fill_(lr);
  momentum.fill_(mu);
  decay_factor.fill_(decay);
  step.fill_(step_number);
}

void guard_step(StepScalars& scalars, const at::Tensor& sum_of_squares, const at::Tensor& loss, double clip_norm) {
#ifdef SWITCHYARD_WITH_CUDA
  if (scalars.apply.is_cuda()) {
    kernels::step_guard({sum_of_squares.data_ptr<float>(), loss.data_ptr<float>(), scalars.grad_norm.data_ptr<float>(),
                         scalars.grad_factor.data_ptr<float>(), scalars.apply.data_ptr<int>(),
                         scalars.applied.data_ptr<std::int64_t>(), scalars.skipped.data_ptr<std::int64_t>(),
                         scalars.skipped_in_a_row.data_ptr<std::int64_t>(), static_cast<float>(clip_norm)},
                        ops::current_stream(scalars.apply));
    return;
  }
#endif
  const at::Tensor norm = sum_of_squares.reshape({1}).to(at::kFloat).sqrt();
  const at::Tensor finite = norm.isfinite().logical_and(loss.reshape({1}).isfinite());
  scalars.grad_norm.copy_(norm);
  scalars.apply.copy_(finite);
  scalars.applied.add_(finite);
  scalars.skipped.add_(finite.logical_not());
  scalars.skipped_in_a_row.copy_(
      at::where(finite, at::zeros_like(scalars.skipped_in_a_row), scalars.skipped_in_a_row + 1));
  if (clip_norm > 0) scalars.grad_factor.copy_((clip_norm / (norm + 1e-6)).clamp_max(1.0));
}

}  // namespace switchyard
