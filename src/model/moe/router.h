// TopkRouter: a linear map to one logit an expert, scores, and the K best (moe_spec R1 topk, R2, R4, R6).
// Shazeer et al. 2017; scores and normalisation as in DeepSeek-V3 (Hugging Face's implementation).
#pragma once

#include "config/config.h"
#include "model/moe/routing.h"
#include "ops/layer.h"
#include "ops/step_context.h"

namespace switchyard {

class TopkRouter : public Layer {
 public:
  TopkRouter(ParameterStore& store, const std::string& name, std::int64_t width, int experts,
             const RouterConfig& config);

  struct Routed {
    Routing routing;
    at::Tensor x_TD;  // x itself: what the experts must read, so that their gradient passes through the router's op
  };
  // x [T, D] normalised input of the layer, T a multiple of step.seq_len. Logits and scores in fp32.
  Routed route(const at::Tensor& x_TD, const StepContext& step) const;

 private:
  Parameter& weight_ED_;
  const RouterConfig config_;
  const int experts_;
};

}  // namespace switchyard
