#include "model/block.h"

#include "base/error.h"
#include "model/init_rules.h"
#include "model/layer_rules.h"
#include "ops/recompute.h"

namespace switchyard {
namespace {

#ifdef SWITCHYARD_WITH_MOE
MoeShape moe_shape(const Config& config) {
  const ExpertShape routed{config.model.n_embd, expert_width(config), ops::parse_activation(config.model.mlp),
                           initial_expert(Role::kInput, config), initial_expert(Role::kOutput, config)};
  ExpertShape shared = routed;
  shared.hidden = shared_width(config);
  const ExpertShape dense{config.model.n_embd, config.moe.flexible_ffn ? ffn_width(config.model) : 0, routed.activation,
                          initial(Role::kInput, config.model), initial(Role::kOutput, config.model)};
  return {routed, shared, dense};
}

int sparse_layers_before(const Config& config, int layer) {
  int count = 0;
  for (int i = 0; i < layer; ++i) count += is_moe_layer(config, i);
  return count;
}
#endif

}  // namespace

Block::Block(ParameterStore& store, const std::string& name, const Config& config, int layer, const SharedParts& parts,
             const PrecisionPolicy& policy)
    : Layer(name),
      layer_(layer),
      dropout_(config.model.dropout),
      parallel_(config.model.block == "parallel"),
      recompute_(config.train.recompute == "block"),
      inl_(parts.inl) {
  const auto gain = [&](const char* local) -> const Parameter* {
    if (!config.model.norm_weight) return nullptr;
    return &declare(store, local, ParameterKind::kNorm, {config.model.n_embd}, {Init::Kind::kConstant, 1.0});
  };
  before_attention_ = {parts.keep, parts.again, layer, gain("attn_norm.weight"), config.model.norm_eps};
  attention_ = register_module("attn", std::make_shared<Attention>(store, name + ".attn", config, layer, policy));
  before_mlp_ = {nullptr, nullptr, 0, gain("mlp_norm.weight"), config.model.norm_eps};
  if (config.model.inl.enabled && !config.model.inl.shared) {
    own_inl_ = register_module("inl", std::make_shared<InlDynamics>(store, name + ".inl", config.model));
    inl_ = own_inl_.get();
  }
#ifdef SWITCHYARD_WITH_MOE
  if (is_moe_layer(config, layer)) {
    moe_ = register_module(
        "moe", std::make_shared<Moe>(store, name + ".moe", moe_shape(config), config,
                                     RouterPlace{layer, sparse_layers_before(config, layer), parts.state}, policy));
    (one_norm() ? before_attention_ : before_mlp_).router = moe_->norm_weight();
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
  if (recompute_ && step.training) return run_recomputed(stream, value, tables, step);
  return run(stream, value, tables, step, cache);
}

std::optional<Routing> Block::run_recomputed(Stream& stream, const at::Tensor& value, const ops::RotaryTables& tables,
                                             const StepContext& step) const {
  std::optional<Routing> routing;  // of the first run, which alone writes it
  const std::vector<at::Tensor> outputs =
      ops::recompute({stream.x_TD, ops::summed(stream.delta), stream.x0_TD, stream.v_TD, value},
                     [this, tables, step, &routing](const std::vector<at::Tensor>& in) {
                       Stream at{in[0], in[1], in[2], in[3]};
                       std::optional<Routing> decided = run(at, in[4], tables, step, nullptr);
                       std::vector<at::Tensor> out{at.x_TD, ops::summed(at.delta), at.x0_TD, at.v_TD};
                       if (decided)
                         for (const at::Tensor* tensor : tensors_of(*decided)) out.push_back(*tensor);
                       if (!ops::is_recomputing()) routing = std::move(decided);
                       return out;
                     });
  stream = {outputs[0], outputs[1], outputs[2], outputs[3]};
  std::size_t next = 4;
  if (routing)
    for (at::Tensor* tensor : tensors_of(*routing)) *tensor = outputs[next++];
  return routing;
}

ops::Normed Block::second_norm(const ops::Normed& in, const at::Tensor& attended_TD) const {
  if (!parallel_) return ops::add_norm(in.x_TD, attended_TD, at::Tensor(), before_mlp_);
  return one_norm() ? in : ops::add_norm(in.x_TD, at::Tensor(), at::Tensor(), before_mlp_);
}

std::optional<Routing> Block::run(Stream& stream, const at::Tensor& value, const ops::RotaryTables& tables,
                                  const StepContext& step, KvCache::LayerCache* cache) const {
  const double dropout = step.training ? dropout_ : 0;
  // Rows are let go with the norm that sums them.
  const ops::Normed in = ops::add_norm(stream.x_TD, std::exchange(stream.delta, {}), stream.x0_TD, before_attention_);
  const at::Tensor attention = cache ? attention_->forward_cached(in.n_TD, value, tables, step, *cache)
                                     : attention_->forward(in.n_TD, value, tables, step);
  const at::Tensor attended = ops::dropout(attention, dropout, 2 * layer_, step.dropout);
  const ops::Normed middle = second_norm(in, attended);
  ops::Addend out;
  std::optional<Routing> routing = feed_forward(middle, out, step);
  if (step.watch || dropout > 0 || parallel_ || inl_) out = ops::summed(out);  // they read its values
  if (step.watch && !ops::is_recomputing()) show(step.watch, in.x_TD, attended, routing, out.delta_TD);
  if (dropout > 0) out = ops::dropout(out.delta_TD, dropout, 2 * layer_ + 1, step.dropout);
  if (parallel_) out = attended + out.delta_TD;
  stream = {middle.x_TD, out, in.x0_TD, stream.v_TD};
  if (inl_) {
    const ops::InlState moved = inl_->forward({stream.x_TD + stream.delta.delta_TD, stream.v_TD});
    stream = {moved.h_TD, {}, stream.x0_TD, moved.v_TD};
  }
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

std::optional<Routing> Block::feed_forward(const ops::Normed& in, ops::Addend& out, const StepContext& step) const {
#ifdef SWITCHYARD_WITH_MOE
  if (moe_) {
    MoeOutput output = moe_->forward({in.n_TD, in.logits_TE}, step);
    out = output.out;
    return output.routing;
  }
#endif
  out = mlp_->forward(in.n_TD, step);
  return std::nullopt;
}

}  // namespace switchyard
