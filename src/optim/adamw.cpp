#include "optim/adamw.h"

#include <algorithm>
#include <cstring>

#include "ops/launch.h"

namespace switchyard {

AdamW::AdamW(const std::vector<OwnedSlice>& slices, const std::vector<GroupRule>& rules, const AdamwConfig& config)
    : config_(config) {
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const OwnedSlice& slice = slices[i];
    const Parameter& p = *slice.parameter;
    on_gpu_ = p.master.is_cuda();
    OptimizerState first{"first", slice, at::zeros({slice.count}, p.master.options())};
    OptimizerState second{"second", slice, at::zeros({slice.count}, p.master.options())};
    kernels::bf16* copy = nullptr;
    if (p.compute.scalar_type() == at::kBFloat16)
      copy = static_cast<kernels::bf16*>(p.compute.data_ptr()) + slice.begin;
    tensors_.push_back({p.master.data_ptr<float>() + slice.begin, p.grad.data_ptr<float>() + slice.begin,
                        first.values.data_ptr<float>(), second.values.data_ptr<float>(), copy, slice.count,
                        static_cast<float>(rules[i].lr), static_cast<float>(rules[i].beta1),
                        static_cast<float>(rules[i].weight_decay)});
    largest_ = std::max(largest_, slice.count);
    states_.push_back(std::move(first));
    states_.push_back(std::move(second));
  }
  if (!on_gpu_ || tensors_.empty()) return;
  at::Tensor host = at::empty({static_cast<std::int64_t>(tensors_.size() * sizeof(kernels::AdamwTensor))}, at::kByte);
  std::memcpy(host.data_ptr(), tensors_.data(), tensors_.size() * sizeof(kernels::AdamwTensor));
  device_tensors_ = host.to(slices[0].parameter->master.device());
}

void AdamW::step(const StepScalars& scalars) {
  if (tensors_.empty()) return;
  kernels::AdamwStep work{tensors_.data(),
                          static_cast<int>(tensors_.size()),
                          largest_,
                          scalars.lr_factor.data_ptr<float>(),
                          scalars.grad_factor.data_ptr<float>(),
                          scalars.applied.data_ptr<std::int64_t>(),
                          scalars.apply.data_ptr<int>(),
                          static_cast<float>(config_.beta2),
                          static_cast<float>(config_.eps)};
  if (!on_gpu_) {
    for (std::size_t i = 0; i < tensors_.size(); ++i)
      ops::parallel_ranges(tensors_[i].count, 16384,
                           [&](kernels::Range range) { kernels::adamw_cpu(work, static_cast<int>(i), range); });
    return;
  }
#ifdef SWITCHYARD_WITH_CUDA
  work.tensors = static_cast<const kernels::AdamwTensor*>(device_tensors_.data_ptr());
  kernels::adamw(work, ops::current_stream(scalars.apply));
#endif
}

}  // namespace switchyard
