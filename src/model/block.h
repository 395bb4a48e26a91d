// One transformer block: attention and an MLP, dense or sparse, each behind its norm.
#pragma once

#include <optional>

#include "model/attention.h"
#include "model/mlp.h"
#include "ops/add_norm.h"

#ifdef SWITCHYARD_WITH_MOE
#include "model/moe/moe.h"
#endif

namespace switchyard {

#ifndef SWITCHYARD_WITH_MOE
struct Routing {};  // no block of this build has any
struct RoutingState {};
#endif

// The residual stream between blocks: x, and what the next norm still has to add to it, so that each add is one pass
// with the norm that follows. The first x travels along: each block hands it on to the next (ops/gradient.h).
struct Stream {
  at::Tensor x_TD, delta_TD;  // delta undefined: nothing to add
  at::Tensor x0_TD;
};

class Block : public Layer {
 public:
  // keep and again: the residual scalars [L] of all blocks, or null; state: of the model's routers
  Block(ParameterStore& store, const std::string& name, const Config& config, int layer, const Parameter* keep,
        const Parameter* again, const RoutingState* state, const PrecisionPolicy& policy);

  // cache null: training and evaluation over whole sequences. Returns what a sparse block's router decided.
  std::optional<Routing> forward(Stream& stream, const at::Tensor& value, const ops::RotaryTables& tables,
                                 const StepContext& step, KvCache::LayerCache* cache) const;
  bool sparse() const;

 private:
  void show(const Watch& watch, const at::Tensor& x_TD, const at::Tensor& attended_TD,
            const std::optional<Routing>& routing, const at::Tensor& out_TD) const;
  std::optional<Routing> feed_forward(const ops::Normed& in, at::Tensor& out_TD, const StepContext& step) const;

  const int layer_;
  const double dropout_;
  ops::Residual before_attention_, before_mlp_;
  std::shared_ptr<Attention> attention_;
  std::shared_ptr<Mlp> mlp_;
#ifdef SWITCHYARD_WITH_MOE
  std::shared_ptr<Moe> moe_;
#endif
};

}  // namespace switchyard
