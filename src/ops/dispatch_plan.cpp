#include "ops/dispatch_plan.h"

#include "kernels/dispatch.h"
#include "ops/launch.h"

namespace switchyard::ops {

std::int64_t row_capacity(std::int64_t tokens, int top_k, int experts, int alignment) {
  const std::int64_t bound = tokens * top_k + static_cast<std::int64_t>(experts) * (alignment - 1);
  return (bound + alignment - 1) / alignment * alignment;
}

DispatchPlan all_rows(const Tensor& x_TD, int alignment) {
  DispatchPlan plan;
  plan.tokens = plan.row_capacity = x_TD.size(0);
  plan.top_k = plan.experts = 1;
  plan.alignment = alignment;
  plan.scheduler = at::zeros({2}, x_TD.options().dtype(at::kInt));
  return plan;
}

DispatchPlan dispatch(const Tensor& expert_TK, int experts, int alignment) {
  DispatchPlan plan;
  plan.tokens = expert_TK.size(0);
  plan.top_k = static_cast<int>(expert_TK.size(1));
  plan.experts = experts;
  plan.alignment = alignment;
  plan.row_capacity = row_capacity(plan.tokens, plan.top_k, experts, alignment);
  const auto ints = expert_TK.options().dtype(at::kInt);
  plan.count_E = at::empty({experts}, ints);
  plan.offset_E1 = at::empty({experts + 1}, ints);
  plan.end_E = at::empty({experts}, ints);
  plan.token_of_row_R = at::empty({plan.row_capacity}, ints);
  plan.row_of_TK = at::empty({plan.tokens, plan.top_k}, ints);
  plan.tile_expert = at::empty({plan.row_capacity / alignment}, ints);
  plan.longest_first_E = at::empty({experts}, ints);
  plan.scheduler = at::empty({2}, ints);
  kernels::Dispatch work{expert_TK.data_ptr<int>(),
                         plan.count_E.data_ptr<int>(),
                         plan.offset_E1.data_ptr<int>(),
                         plan.end_E.data_ptr<int>(),
                         plan.token_of_row_R.data_ptr<int>(),
                         plan.row_of_TK.data_ptr<int>(),
                         nullptr,
                         plan.tokens,
                         plan.top_k,
                         experts,
                         alignment,
                         plan.row_capacity,
                         plan.tile_expert.data_ptr<int>(),
                         plan.longest_first_E.data_ptr<int>(),
                         plan.scheduler.data_ptr<int>()};
  if (!expert_TK.is_cuda()) {
    kernels::dispatch_cpu(work);
  } else {
#ifdef SWITCHYARD_WITH_CUDA
    const Tensor scratch = at::empty({kernels::dispatch_scratch(plan.tokens, plan.top_k, experts)}, ints);
    work.scratch = scratch.data_ptr<int>();
    kernels::dispatch(work, current_stream(expert_TK));
#endif
  }
  return plan;
}

}  // namespace switchyard::ops
