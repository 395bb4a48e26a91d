// Who goes where. TopkRouter: scores of a linear or cosine map's logits, one an expert, and the K best (moe_spec R1
// topk, R2, R4 to R7, R14). Shazeer et al. 2017; scores and normalisation as in DeepSeek-V3 (Hugging Face's
// implementation).
#pragma once

#include "config/config.h"
#include "model/moe/cosine_map.h"
#include "model/moe/routing.h"
#include "model/moe/selection.h"

namespace switchyard {

struct RouterInput {
  at::Tensor x_TD;       // the layer's normalised input
  at::Tensor logits_TE;  // its product with norm_weight(), fp32; undefined where that is null
};

class Router : public Layer {
 public:
  using Layer::Layer;
  // The map [E, D] in fp32 whose product with the layer's input comes with the norm before it (ops/add_norm.h); null:
  // the router reads x itself.
  virtual const Parameter* norm_weight() const { return nullptr; }
  // T a multiple of step.seq_len. in.x_TD becomes what the input's other readers take (ops/gradient.h).
  virtual Routing route(RouterInput& in, const StepContext& step) const = 0;
};

// The router of router.type.
std::shared_ptr<Router> make_router(ParameterStore& store, const std::string& name, const Config& config,
                                    const RouterPlace& place);

class TopkRouter : public Router {
 public:
  TopkRouter(ParameterStore& store, const std::string& name, const Config& config, const RouterPlace& place);

  const Parameter* norm_weight() const override { return reads_input_ ? nullptr : &weight_; }
  Routing route(RouterInput& in, const StepContext& step) const override;

 private:
  ops::RoutingRule rule(const StepContext& step) const;
  at::Tensor logits(RouterInput& in, const StepContext& step) const;

  const RouterConfig config_;
  const RouterPlace place_;
  const int experts_;  // columns: zero experts among them
  const bool reads_input_;
  Parameter& weight_;                  // [E, D], of a cosine router [E, semantic_dim]
  std::shared_ptr<CosineMap> cosine_;  // null: the map is weight_ alone
  const ExpertSelection selection_;
};

}  // namespace switchyard
