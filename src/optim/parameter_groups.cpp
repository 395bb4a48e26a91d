#include "optim/parameter_groups.h"

#include <cmath>
#include <map>
#include <tuple>

#include "base/text.h"

namespace switchyard {
namespace {

GroupRule adamw(double lr, const AdamwConfig& config) { return {false, lr, config.beta1, config.weight_decay}; }

GroupRule matrix_rule(const OptimConfig& optim, bool use_muon, double adamw_lr) {
  if (!use_muon) return adamw(adamw_lr, optim.adamw);
  return {true, optim.muon.lr, 0, optim.muon.weight_decay};
}

}  // namespace

GroupRule group_rule(const Parameter& parameter, const Config& config) {
  const OptimConfig& optim = config.optim;
  const AdamwConfig& a = optim.adamw;
  const double width = a.scale_lr_with_width ? std::pow(config.model.n_embd / 768.0, -0.5) : 1.0;
  switch (parameter.kind) {
    case ParameterKind::kTokenEmbedding:
      return adamw(a.embed_lr * width, a);
    case ParameterKind::kValueEmbedding:
      return adamw(a.value_embed_lr * width, a);
    case ParameterKind::kHead:
      return adamw(a.head_lr * width, a);
    case ParameterKind::kValueGate:
      return adamw(a.gate_lr, a);
    case ParameterKind::kKeepScalar:
    case ParameterKind::kNorm:
    case ParameterKind::kMixScalar:
    case ParameterKind::kInlVector:
      return {false, a.scalar_lr, a.beta1, 0};
    case ParameterKind::kAgainScalar:
      return {false, a.x0_lr, a.x0_beta1, 0};
    case ParameterKind::kRouterVector:
      return {false, a.gate_lr, a.beta1, 0};
    case ParameterKind::kRouter:
      return matrix_rule(optim, optim.router_optimizer == "muon", a.gate_lr);
    case ParameterKind::kAttention:
    case ParameterKind::kMlp:
    case ParameterKind::kExpert:
    case ParameterKind::kSharedExpert:
    case ParameterKind::kInlController:
      break;
  }
  return matrix_rule(optim, optim.matrix_optimizer == "muon", optim.matrix_lr);
}

std::string group_table(const ParameterStore& store, const Config& config) {
  struct Group {
    GroupRule rule;
    std::int64_t tensors = 0, matrices = 0, elements = 0;
  };
  std::map<std::string, Group> groups;
  for (const auto& parameter : store.all()) {
    Group& group = groups[to_string(parameter->kind)];
    group.rule = group_rule(*parameter, config);
    group.tensors += 1;
    group.matrices += parameter->logical_matrices();
    group.elements += parameter->count();
  }
  std::string table =
      format("%-18s %-6s %10s %7s %8s %16s\n", "parameter group", "by", "rate", "decay", "matrices", "elements");
  for (const auto& [name, group] : groups)
    table +=
        format("%-18s %-6s %10.4g %7.3g %8lld %16s\n", name.c_str(), group.rule.muon ? "muon" : "adamw", group.rule.lr,
               group.rule.weight_decay, static_cast<long long>(group.rule.muon ? group.matrices : group.tensors),
               with_commas(group.elements).c_str());
  return table;
}

}  // namespace switchyard
