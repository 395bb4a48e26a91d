#include "model/moe/null_experts.h"

#include "base/text.h"
#include "ops/overflow.h"

namespace switchyard {

ConstantExpert::ConstantExpert(ParameterStore& store, const std::string& name, std::int64_t width)
    : Layer(name),
      map_2D_(declare(store, "weight", ParameterKind::kRouterVector, {2, width}, {Init::Kind::kConstant, 0})),
      vector_D_(declare(store, "value", ParameterKind::kRouterVector, {width}, {Init::Kind::kConstant, 0})) {}

NullExperts::NullExperts(ParameterStore& store, const std::string& name, const Config& config)
    : Layer(name),
      null_(config.moe.overflow == "null_expert" ? config.moe.null_expert : ""),
      first_copy_(config.moe.n_experts + config.moe.zero_experts.zero),
      first_constant_(first_copy_ + config.moe.zero_experts.copy),
      end_(router_columns(config.moe)) {
  const auto add = [&](const std::string& local) {
    constants_.push_back(
        register_module(format("constant%d", static_cast<int>(constants_.size())),
                        std::make_shared<ConstantExpert>(store, name + "." + local, config.model.n_embd)));
  };
  for (int j = 0; j < end_ - first_constant_; ++j) add(format("zero.%d", j));
  if (null_ == "constant") add("null");
}

at::Tensor NullExperts::forward(const at::Tensor& x_TD, const at::Tensor& weight_TK,
                                const ops::Placement& placement) const {
  const at::Tensor& expert_TK = placement.expert_TK;
  const bool to_null = placement.dropped_TK.defined();
  at::Tensor out_TD;
  const auto add = [&](const at::Tensor& part_TD) { out_TD = out_TD.defined() ? out_TD + part_TD : part_TD; };

  at::Tensor copied_TK;
  if (first_constant_ > first_copy_) copied_TK = expert_TK.ge(first_copy_).logical_and(expert_TK.lt(first_constant_));
  if (to_null && null_ == "copy")
    copied_TK = copied_TK.defined() ? copied_TK.logical_or(placement.dropped_TK) : placement.dropped_TK;
  if (copied_TK.defined()) add(ops::copy_expert(x_TD, ops::weight_where(weight_TK, copied_TK)));

  std::vector<at::Tensor> weights, maps, vectors;
  const auto constant = [&](const at::Tensor& chosen_TK, const ConstantExpert& expert) {
    weights.push_back(ops::weight_where(weight_TK, chosen_TK));
    maps.push_back(attach(expert.map()));
    vectors.push_back(attach(expert.vector()));
  };
  for (int e = first_constant_; e < end_; ++e) constant(expert_TK.eq(e), *constants_[e - first_constant_]);
  if (to_null && null_ == "constant") constant(placement.dropped_TK, *constants_.back());
  if (!weights.empty()) add(ops::constant_experts(x_TD, at::stack(weights, 1), at::stack(maps), at::stack(vectors)));
  return out_TD;
}

}  // namespace switchyard
