#include "model/moe/null_experts.h"

#include "base/text.h"

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

ops::ZeroExperts NullExperts::of(const ops::Placement& placement) const {
  const bool to_null = placement.dropped_TK.defined() && (null_ == "copy" || null_ == "constant");
  ops::ZeroExperts zero;
  if (end_ == first_copy_ && !to_null) return zero;
  zero.expert_TK = placement.expert_TK;
  zero.first_copy = first_copy_, zero.first_constant = first_constant_, zero.end = end_;
  if (to_null) {
    zero.dropped_TK = placement.dropped_TK;
    zero.of_dropped = null_ == "copy" ? kernels::kCopy : kernels::kConstant + static_cast<int>(constants_.size()) - 1;
  }
  std::vector<at::Tensor> maps, vectors;
  for (const auto& constant : constants_) {
    maps.push_back(attach(constant->map()));
    vectors.push_back(attach(constant->vector()));
  }
  if (!maps.empty()) zero.map_J2D = at::stack(maps), zero.vector_JD = at::stack(vectors);
  return zero;
}

}  // namespace switchyard
