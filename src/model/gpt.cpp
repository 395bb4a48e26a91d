#include "model/gpt.h"

#include "base/error.h"
#include "base/text.h"
#include "model/init_rules.h"
#include "model/layer_rules.h"
#include "ops/embedding.h"

namespace switchyard {

void RoutingTotals::zero() {
  for (const at::Tensor& total : {count_LE, prob_LE, balance_L, z_loss_L, seq_balance_L, importance_LE, velocity_L})
    if (total.defined()) total.zero_();
}

Gpt::Gpt(const Config& config, const PrecisionPolicy& policy) : Layer(""), config_(config) {
  const ModelConfig& model = config_.model;
  const std::int64_t width = model.n_embd, vocab = model.vocab_size, layers = model.n_layer;
  embed_ = &declare(store_, "embed.weight", ParameterKind::kTokenEmbedding, {vocab, width},
                    initial(Role::kTokenEmbedding, model));
  for (int layer = 0; layer < layers; ++layer)
    value_embeds_.push_back(has_value_embedding(model, layer)
                                ? &declare(store_, format("value_embed.%d.weight", layer),
                                           ParameterKind::kValueEmbedding, {vocab, kv_width(model)},
                                           initial(Role::kValueEmbedding, model))
                                : nullptr);
  SharedParts parts;
  parts.state = &state_;
  if (model.resid_scalars) {
    parts.keep = &declare(store_, "resid.keep", ParameterKind::kKeepScalar, {layers}, {Init::Kind::kConstant, 1.0});
    parts.again = &declare(store_, "resid.again", ParameterKind::kAgainScalar, {layers}, {Init::Kind::kConstant, 0.1});
  }
  if (model.inl.enabled && model.inl.shared)
    parts.inl = (inl_ = register_module("inl", std::make_shared<InlDynamics>(store_, "inl", model))).get();
  for (int layer = 0; layer < layers; ++layer) {
    blocks_.push_back(
        register_module(format("block%d", layer),
                        std::make_shared<Block>(store_, format("blocks.%d", layer), config_, layer, parts, policy)));
    sparse_layers_ += blocks_.back()->sparse();
  }
  final_norm_.eps = model.norm_eps;
  if (model.norm_weight)
    final_norm_.gain =
        &declare(store_, "final_norm.weight", ParameterKind::kNorm, {width}, {Init::Kind::kConstant, 1.0});
  if (!model.tie_head)
    head_ = register_module("head", std::make_shared<Linear>(store_, "head", ParameterKind::kHead, vocab, width,
                                                             initial(Role::kHead, model), policy));
}

void Gpt::prepare(at::Device device, at::ScalarType activation_dtype) {
  device_ = device;
  dtype_ = activation_dtype;
  tables_ = {};
  const auto options = at::TensorOptions().device(device);
  step_ = at::full({1}, host_step_, options.dtype(at::kLong));
  if (sparse_layers_ == 0) return;
  totals_.count_LE = at::zeros({sparse_layers_, router_columns(config_.moe)}, options.dtype(at::kLong));
  totals_.prob_LE = at::zeros({sparse_layers_, router_columns(config_.moe)}, options.dtype(at::kFloat));
  totals_.balance_L = at::zeros({sparse_layers_}, options.dtype(at::kFloat));
  totals_.z_loss_L = at::zeros({sparse_layers_}, options.dtype(at::kFloat));
  if (config_.router.seq_balance_coef > 0) totals_.seq_balance_L = at::zeros_like(totals_.z_loss_L);
  if (config_.log.routing == "layer") totals_.importance_LE = at::zeros_like(totals_.prob_LE);
  if (config_.log.routing == "layer" && config_.model.inl.enabled)
    totals_.velocity_L = at::zeros({config_.model.n_layer}, options.dtype(at::kFloat));
#ifdef SWITCHYARD_WITH_MOE
  state_.allocate(config_, sparse_layers_, device);
#endif
}

void Gpt::set_step(std::int64_t step) {
  host_step_ = step;
  step_.fill_(step);
}

const ops::RotaryTables& Gpt::tables(const StepContext& step) {
  const std::int64_t end = step.first_position + step.seq_len;
  if (!tables_.cos_SC.defined() || tables_.cos_SC.size(0) < end)
    tables_ = ops::rotary_tables(std::max<std::int64_t>(end, config_.model.seq_len), config_.model.head_dim,
                                 config_.model.rope_theta, device_, at::kFloat);
  return tables_;
}

at::Tensor Gpt::run_blocks(const at::Tensor& tokens_T, const StepContext& given, KvCache* cache,
                           std::vector<Routing>& layers) {
  StepContext step = given;
  step.step = step_;
  step.host_step = host_step_;
  step.token_T = tokens_T;
  ops::RotaryTables tables = this->tables(step);
  if (step.first_position > 0)
    tables = {tables.cos_SC.narrow(0, step.first_position, step.seq_len),
              tables.sin_SC.narrow(0, step.first_position, step.seq_len)};
  const at::Tensor order = step.training ? ops::token_order(tokens_T) : at::Tensor();
  at::Tensor x0 = ops::embedding(tokens_T, *embed_, order);
  if (config_.model.embed_norm) x0 = ops::rms_norm(x0, nullptr, config_.model.norm_eps);
  Stream stream{x0, {}, x0, at::Tensor()};
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const at::Tensor value = value_embeds_[i] ? ops::embedding(tokens_T, *value_embeds_[i], order) : at::Tensor();
    std::optional<Routing> routing =
        blocks_[i]->forward(stream, value, tables, step, cache ? &cache->layers[i] : nullptr);
    if (routing) layers.push_back(std::move(*routing));
    if (step.training && totals_.velocity_L.defined())
      totals_.velocity_L[static_cast<std::int64_t>(i)].add_(stream.v_TD.detach().square().mean());
  }
  return ops::add_norm(stream.x_TD, std::exchange(stream.delta, {}), at::Tensor(), final_norm_).n_TD;
}

ModelOutput Gpt::forward(const at::Tensor& tokens_T, const at::Tensor& targets_T, const StepContext& step) {
  std::vector<Routing> layers;
  const at::Tensor n = run_blocks(tokens_T, step, nullptr, layers);
  ops::HeadLossOptions options;
  options.softcap = config_.model.logit_softcap;
  options.grad_scale = step.loss_scale / static_cast<double>(tokens_T.numel());
  const auto& products = head_ ? head_->products(step) : ops::LinearProducts::plain();
  const auto [loss, nll] = ops::head_loss(n, head(), targets_T, options, products);

  ModelOutput output;
  output.total = loss;
  output.nll_T = nll;
  output.auxiliary = at::zeros({}, nll.options());
  add_routing(std::move(layers), step, output);
  return output;
}

at::Tensor Gpt::logits(const at::Tensor& tokens_T, const StepContext& step) {
  at::NoGradGuard no_grad;
  std::vector<Routing> layers;
  return ops::capped_logits(run_blocks(tokens_T, step, nullptr, layers), head(), config_.model.logit_softcap);
}

at::Tensor Gpt::logits_cached(const at::Tensor& tokens_T, StepContext step, KvCache& cache) {
  at::NoGradGuard no_grad;
  step.first_position = static_cast<int>(cache.length);
  std::vector<Routing> layers;
  const at::Tensor n = run_blocks(tokens_T, step, &cache, layers);
  cache.length += step.seq_len;
  const at::Tensor last = n.view({-1, step.seq_len, n.size(1)}).select(1, step.seq_len - 1).contiguous();
  return ops::capped_logits(last, head(), config_.model.logit_softcap);
}

KvCache Gpt::make_cache(std::int64_t sequences, std::int64_t capacity) const {
  KvCache cache;
  const auto options = at::TensorOptions().device(device_).dtype(dtype_);
  for (int layer = 0; layer < config_.model.n_layer; ++layer) {
    const std::vector<std::int64_t> shape{sequences, kv_head_count(config_.model), capacity, config_.model.head_dim};
    cache.layers.push_back({at::empty(shape, options), at::empty(shape, options)});
  }
  return cache;
}

}  // namespace switchyard
