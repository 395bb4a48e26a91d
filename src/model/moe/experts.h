// The experts' weights and the operation that runs them (moe_spec E2, E3, E5, E13, E14, T4).
#pragma once

#include "config/config.h"
#include "model/moe/routing.h"
#include "ops/moe_ffn.h"
#include "ops/step_context.h"
#include "precision/linear.h"

namespace switchyard {

struct ExpertShape {
  std::int64_t width;   // D
  std::int64_t hidden;  // N
  ops::ActivationKind activation;
  Init up, down;
};

// E experts as two stacks: up [E, N, D] (gated: 2N rows, gate first), down [E, D, N]. A null expert with weights is the
// last of them (moe_spec E8).
class Experts : public Layer {
 public:
  // layer: the block's number, which tells the layers' dropouts apart
  Experts(ParameterStore& store, const std::string& name, const ExpertShape& shape, const Config& config, int layer,
          const PrecisionPolicy& policy);

  // The sum over the chosen experts of weight * expert(x), and what zero experts add to it, [T, D]; or its rows.
  ops::Addend forward(const Dispatched& rows, const StepContext& step) const;

 private:
  ops::HiddenDropout hidden_dropout(const StepContext& step) const;

  const ops::ExpertWeights weights_;
  const int experts_, layer_;
  const bool reference_, recompute_;
  const double hidden_dropout_;
  const ops::GroupedProducts* fp8_;
};

// Experts that every token visits: one MLP of the summed width (DeepSeekMoE, Dai et al. 2024).
class SharedExperts : public Layer {
 public:
  // kind: kSharedExpert, or kMlp for a dense MLP that is no expert
  SharedExperts(ParameterStore& store, const std::string& name, ParameterKind kind, const ExpertShape& shape,
                const PrecisionPolicy& policy);
  at::Tensor forward(const at::Tensor& x_TD, const StepContext& step) const;

 private:
  std::shared_ptr<Linear> up_, down_;
  const ops::ActivationKind activation_;
};

}  // namespace switchyard
