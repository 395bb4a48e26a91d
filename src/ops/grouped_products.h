// ops/grouped_products.h: products of rows in expert order with their expert's matrix.
#pragma once

#include "ops/activation.h"
#include "ops/dispatch_plan.h"
#include "ops/parameter.h"

namespace switchyard::ops {

// What an expert's MLP holds between its products.
struct Hidden {
  Tensor pre;        // [R, N], gated [R, 2N]: what the activation reads; undefined where its result tells enough
  Tensor active_RN;  // what the down projection reads, times the row's weight
  Tensor rows_RD;    // what the up projection read, in expert order; undefined where it was not gathered
};

// An activation that is part of the products, as are the gather and the router's weight. With one expert the plan may
// be that of `all_rows`; row weights are fp32, or undefined: 1.
class FusedActivation {
 public:
  virtual ~FusedActivation() = default;
  // No backward takes a pass to bring rows into expert order: they are left by what gathered them (Hidden::rows_RD,
  // Backward::dy_RD), or gathered again by gathered_wgrad.
  virtual bool gathers() const = 0;
  struct Backward {
    Tensor d_pre;   // weight * act'(pre) * (dy W), of pre's size
    Tensor dot_PR;  // fp32; the sum over P is <dy W, act(pre)>, the gradient of the row's weight; undefined without
    Tensor dy_RD;   // dy in expert order; undefined where it was not gathered
  };
  // weight * act(x W^T) of the tokens that the plan names. What only backward reads is left undefined where `keep` is
  // false.
  virtual Hidden up(const Tensor& x_TD, const Tensor& weight_R, const Parameter& w, const DispatchPlan& plan,
                    bool keep) const = 0;
  virtual Backward down_backward(const Tensor& dy_TD, const Parameter& w_EDN, const Hidden& hidden,
                                 const Tensor& weight_R, const DispatchPlan& plan) const = 0;
};

// The experts' MLP as a whole, where a block of rows stays in the caches from x to the output. Rows come out weighted.
class FusedExperts {
 public:
  virtual ~FusedExperts() = default;
  struct Forward {
    Tensor pre_RN, out_RD;  // what act reads (gated: 2N columns); weight * down act(up x)
  };
  struct Backward {
    Tensor dx_RD, d_weight_R;
  };
  virtual Forward forward(const Tensor& x_TD, const Tensor& weight_R, const Parameter& up, const Parameter& down,
                          ActivationKind kind, const DispatchPlan& plan) const = 0;
  // Adds the gradients of both weights.
  virtual Backward backward(const Tensor& x_TD, const Tensor& dy_TD, const Tensor& pre_RN, const Tensor& weight_R,
                            const Parameter& up, const Parameter& down, ActivationKind kind,
                            const DispatchPlan& plan) const = 0;
};

// Rows [offset_e, offset_e+1) of a row tensor belong to expert e; weights are stacks [E, N, D]. Rows past the last
// offset are neither read nor defined; rows of padding must be zero on entry and are zero in the result.
class GroupedProducts {
 public:
  virtual ~GroupedProducts() = default;
  virtual Tensor forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const = 0;  // [R, N]
  virtual Tensor dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const = 0;       // [R, D]
  // w.grad[e] += d_e^T rows_e; an expert without rows leaves its slice bitwise as it was.
  virtual void wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
                     const DispatchPlan& plan) const = 0;
  // The same where one side is in the tokens' order, of which the plan gathers the rows: d [T, N] or rows [T, D].
  enum class Side { kD, kRows };
  virtual void gathered_wgrad(const Tensor& d, const Tensor& rows, Side by_tokens, const Parameter& w_END,
                              const DispatchPlan& plan) const;
  // forward of the rows that the plan gathers from x [T, D].
  virtual Tensor gathered_forward(const Tensor& x_TD, const Parameter& w_END, const DispatchPlan& plan) const;
  virtual const FusedActivation* fused(ActivationKind) const { return nullptr; }  // null: not part of the products
  virtual const FusedExperts* whole() const { return nullptr; }                   // null: not one operation
  virtual int alignment(std::int64_t /*assignments*/, int /*experts*/) const { return 1; }

  // Whether a product with one matrix is as fast as the library's.
  virtual bool match_library() const { return false; }

  // The products for a device and type, all by our own kernels: on GPUs (no host read, capturable) in bf16 and fp32.
  static const GroupedProducts& choose(at::Device device, at::ScalarType dtype);
};

// Tokens into the plan's rows; zeros in padding. [R, D]
Tensor permute_rows(const Tensor& x_TD, const DispatchPlan& plan);

}  // namespace switchyard::ops
