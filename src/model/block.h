// One transformer block: attention and an MLP, dense or sparse, each behind its norm; then INL dynamics where asked
// for. model.block = parallel: both read the same x (moe_spec M7).
#pragma once

#include <optional>

#include "model/attention.h"
#include "model/inl_dynamics.h"
#include "model/mlp.h"
#include "ops/add_norm.h"

#ifdef SWITCHYARD_WITH_MOE
#include "model/moe/moe.h"
#endif

namespace switchyard {

#ifndef SWITCHYARD_WITH_MOE
struct Routing {};  // no block of this build has any
struct RoutingState {};
inline std::vector<at::Tensor*> tensors_of(Routing&) { return {}; }
#endif

// The residual stream between blocks: x, and what the next norm still has to add to it, so that each add is one pass
// with the norm that follows. Where delta is experts' rows it has no values of its own (ops/addend.h), and backward's
// rows go to the norm before by its node of the graph (ops/row_gradient.h). The first x travels along: each block hands
// it on to the next (ops/gradient.h).
struct Stream {
  at::Tensor x_TD;
  ops::Addend delta;
  at::Tensor x0_TD;
  at::Tensor v_TD;  // INL's velocity, fp32; undefined: 0
};

// What the blocks of a model have in common. All but the state may be null.
struct SharedParts {
  const Parameter *keep = nullptr, *again = nullptr;  // the residual scalars [L]
  const RoutingState* state = nullptr;                // of the routers
  const InlDynamics* inl = nullptr;                   // one module after every block; null: each has its own, or none
};

class Block : public Layer {
 public:
  Block(ParameterStore& store, const std::string& name, const Config& config, int layer, const SharedParts& parts,
        const PrecisionPolicy& policy);

  // cache null: training and evaluation over whole sequences. Returns what a sparse block's router decided. With
  // train.recompute = block a training pass keeps the stream and the value embeddings alone.
  std::optional<Routing> forward(Stream& stream, const at::Tensor& value, const ops::RotaryTables& tables,
                                 const StepContext& step, KvCache::LayerCache* cache) const;
  bool sparse() const;

 private:
  std::optional<Routing> run(Stream& stream, const at::Tensor& value, const ops::RotaryTables& tables,
                             const StepContext& step, KvCache::LayerCache* cache) const;
  std::optional<Routing> run_recomputed(Stream& stream, const at::Tensor& value, const ops::RotaryTables& tables,
                                        const StepContext& step) const;
  // A parallel block whose two norms, without weights, are the same.
  bool one_norm() const { return parallel_ && !before_mlp_.gain; }
  // The norm before the MLP. attended: what attention adds, not yet in x of `in` when the block is parallel.
  ops::Normed second_norm(const ops::Normed& in, const at::Tensor& attended_TD) const;
  void show(const Watch& watch, const at::Tensor& x_TD, const at::Tensor& attended_TD,
            const std::optional<Routing>& routing, const at::Tensor& out_TD) const;
  std::optional<Routing> feed_forward(const ops::Normed& in, ops::Addend& out, const StepContext& step) const;

  const int layer_;
  const double dropout_;
  const bool parallel_, recompute_;
  ops::Residual before_attention_, before_mlp_;
  std::shared_ptr<Attention> attention_;
  const InlDynamics* inl_;
  std::shared_ptr<InlDynamics> own_inl_;
  std::shared_ptr<Mlp> mlp_;
#ifdef SWITCHYARD_WITH_MOE
  std::shared_ptr<Moe> moe_;
#endif
};

}  // namespace switchyard
