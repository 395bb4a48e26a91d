// TopkRouter: scores of a linear map's logits, one an expert, and the K best (moe_spec R1 topk, R2, R4, R6).
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

  // The map, [E, D] in fp32: its product with the layer's input comes with the norm before it (ops/add_norm.h).
  const Parameter& weight() const { return weight_ED_; }
  // logits [T, E] fp32, T a multiple of step.seq_len.
  Routing route(const at::Tensor& logits_TE, const StepContext& step) const;

 private:
  Parameter& weight_ED_;
  const RouterConfig config_;
  const int experts_;
};

}  // namespace switchyard
