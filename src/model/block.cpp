#include "model/block.h"

#include "base/error.h"
#include "model/init_rules.h"
#include "model/layer_rules.h"

namespace switchyard {
namespace {

#ifdef SWITCHYARD_WITH_MOE
MoeShape moe_shape(const Config& config) {
  const ExpertShape routed{config.model.n_embd, expert_width(config), ops::parse_activation(config.model.mlp),
                           initial_expert(Role::kInput, config), initial_expert(Role::kOutput, config)};
  ExpertShape shared = routed;
  shared.hidden = shared_width(config);
  return {routed, shared};
}

int sparse_layers_before(const Config& config, int layer) {
  int count = 0;
  for (int i = 0; i < layer; ++i) count += is_moe_layer(config, i);
  return count;
}
#endif

}  // namespace

Block::Block(ParameterStore& store, const std::string& name, const Config& config, int layer, const Parameter* keep,
             const Parameter* again, [[maybe_unused]] const RoutingState* state, const PrecisionPolicy& policy)
    : Layer(name), layer_(layer), dropout_(config.model.dropout) {
  const auto gain = [&](const char* local) -> const Parameter* {
    if (!config.model.norm_weight) return nullptr;
    return &declare(store, local, ParameterKind::kNorm, {config.model.n_embd}, {Init::Kind::kConstant, 1.0});
  };
  before_attention_ = {keep, again, layer, gain("attn_norm.weight"), config.model.norm_eps};
  attention_ = register_module("attn", std::make_shared<Attention>(store, name + ".attn", config, layer, policy));
  before_mlp_ = {nullptr, nullptr, 0, gain("mlp_norm.weight"), config.model.norm_eps};
#ifdef SWITCHYARD_WITH_MOE
  if (is_moe_layer(config, layer)) {
    moe_ = register_module(
        "moe", std::make_shared<Moe>(store, name + ".moe", moe_shape(config), config,
                                     RouterPlace{layer, sparse_layers_before(config, layer), state}, policy));
    before_mlp_.router = moe_->norm_weight();
    return;
  }
#else
  if (is_moe_layer(config, layer))
    throw ConfigError("moe.use_moe = true needs a build with sparse layers; configure with -DWITH_MOE=ON");
#endif
  mlp_ = register_module("mlp", std::make_shared<Mlp>(store, name + ".mlp", config, policy));
}

bool Block::sparse() const { return mlp_ == nullptr; }

std::optional<Routing> Block::forward(Stream& stream, const at::Tensor& value, const ops::RotaryTables& tables,
                                      const StepContext& step, KvCache::LayerCache* cache) const {
  const double dropout = step.training ? dropout_ : 0;
  const ops::Normed in = ops::add_norm(stream.x_TD, stream.delta_TD, stream.x0_TD, before_attention_);
  const at::Tensor attended = cache ? attention_->forward_cached(in.n_TD, value, tables, step, *cache)
                                    : attention_->forward(in.n_TD, value, tables, step);
  const ops::Normed middle =
      ops::add_norm(in.x_TD, ops::dropout(attended, dropout, 2 * layer_, step.dropout), at::Tensor(), before_mlp_);
  at::Tensor out;
  std::optional<Routing> routing = feed_forward(middle, out, step);
  if (step.watch) show(step.watch, in.x_TD, attended, routing, out);
  stream = {middle.x_TD, ops::dropout(out, dropout, 2 * layer_ + 1, step.dropout), in.x0_TD};
  return routing;
}

void Block::show(const Watch& watch, const at::Tensor& x_TD, const at::Tensor& attended_TD,
                 [[maybe_unused]] const std::optional<Routing>& routing, const at::Tensor& out_TD) const {
  watch(Watched::kResidual, layer_, x_TD);
  watch(Watched::kAttention, layer_, attended_TD);
#ifdef SWITCHYARD_WITH_MOE
  if (routing) watch(Watched::kRouterLogits, layer_, routing->logits_TE);
#endif
  watch(Watched::kFfn, layer_, out_TD);
}

std::optional<Routing> Block::feed_forward(const ops::Normed& in, at::Tensor& out_TD, const StepContext& step) const {
#ifdef SWITCHYARD_WITH_MOE
  if (moe_) {
    MoeOutput output = moe_->forward({in.n_TD, in.logits_TE}, step);
    out_TD = output.out_TD;
    return output.routing;
  }
#endif
  out_TD = mlp_->forward(in.n_TD, step);
  return std::nullopt;
}

}  // namespace switchyard
