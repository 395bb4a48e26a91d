// Who goes where. TopkRouter: scores of a linear map's logits, one an expert, and the K best (moe_spec R1 topk, R2, R4,
// R6). Shazeer et al. 2017; scores and normalisation as in DeepSeek-V3 (Hugging Face's implementation).
#pragma once

#include "config/config.h"
#include "model/moe/routing.h"
#include "model/moe/routing_state.h"
#include "ops/layer.h"
#include "ops/step_context.h"

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
  // T a multiple of step.seq_len.
  virtual Routing route(const RouterInput& in, const StepContext& step) const = 0;
};

// Where a router stands: it draws its noise by the block's number and reads its row of the state.
struct RouterPlace {
  int layer = 0;  // of the model
  int row = 0;    // among the sparse layers
  const RoutingState* state = nullptr;
};

// The router of router.type.
std::shared_ptr<Router> make_router(ParameterStore& store, const std::string& name, const Config& config,
                                    const RouterPlace& place);

class TopkRouter : public Router {
 public:
  TopkRouter(ParameterStore& store, const std::string& name, const Config& config, const RouterPlace& place);

  const Parameter* norm_weight() const override { return &weight_ED_; }
  Routing route(const RouterInput& in, const StepContext& step) const override;

 private:
  const RouterConfig config_;
  const RouterPlace place_;
  const int experts_;
  Parameter& weight_ED_;
};

}  // namespace switchyard
