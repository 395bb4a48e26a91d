// bench/stand_in_products.h: the experts' products without the products, to time what stands around them.
#pragma once

#include <map>

#include "ops/grouped_products.h"

namespace switchyard::bench {

// Every result is noise drawn at its first use, of the size and type that the device's own products would give, and no
// matrix is read. What those do inside their kernels, the gather and the activation on Hopper, the whole MLP of a block
// of rows on a CPU, is not done here either; what they leave to kernels of its own is.
class StandInProducts : public ops::GroupedProducts {
 public:
  explicit StandInProducts(const ops::GroupedProducts& own);

  at::Tensor forward(const at::Tensor& rows_RD, const Parameter& w_END, const ops::DispatchPlan& plan) const override;
  at::Tensor dgrad(const at::Tensor& d_RN, const Parameter& w_END, const ops::DispatchPlan& plan) const override;
  void wgrad(const at::Tensor&, const at::Tensor&, const Parameter&, const ops::DispatchPlan&) const override {}
  void gathered_wgrad(const at::Tensor& d, const at::Tensor& rows, Side by_tokens, const Parameter& w_END,
                      const ops::DispatchPlan& plan) const override;
  at::Tensor gathered_forward(const at::Tensor& x_TD, const Parameter& w_END,
                              const ops::DispatchPlan& plan) const override;
  const ops::FusedActivation* fused(ops::ActivationKind kind) const override {
    return !own_.fused(kind) ? nullptr : kind == ops::ActivationKind::kSwiglu ? &swiglu_ : &relu2_;
  }
  const ops::FusedExperts* whole() const override { return own_.whole() ? &whole_ : nullptr; }
  int alignment(std::int64_t assignments, int experts) const override { return own_.alignment(assignments, experts); }

 private:
  class Activation : public ops::FusedActivation {
   public:
    Activation(const StandInProducts& products, ops::ActivationKind kind) : products_(products), kind_(kind) {}
    bool gathers() const override { return products_.own_.fused(kind_)->gathers(); }
    ops::Hidden up(const at::Tensor& x_TD, const at::Tensor& weight_R, const Parameter& w,
                   const ops::DispatchPlan& plan, bool keep) const override;
    Backward down_backward(const at::Tensor& dy_TD, const Parameter& w_EDN, const ops::Hidden& hidden,
                           const at::Tensor& weight_R, const ops::DispatchPlan& plan) const override;

   private:
    at::Tensor kept_rows(const at::Tensor& x_TD, const ops::DispatchPlan& plan) const;

    const StandInProducts& products_;
    const ops::ActivationKind kind_;
  };
  class Whole : public ops::FusedExperts {
   public:
    explicit Whole(const StandInProducts& products) : products_(products) {}
    Forward forward(const at::Tensor& x_TD, const at::Tensor& weight_R, const Parameter& up, const Parameter& down,
                    ops::ActivationKind kind, const ops::DispatchPlan& plan) const override;
    Backward backward(const at::Tensor& x_TD, const at::Tensor& dy_TD, const at::Tensor& pre_RN,
                      const at::Tensor& weight_R, const Parameter& up, const Parameter& down, ops::ActivationKind kind,
                      const ops::DispatchPlan& plan) const override;

   private:
    const StandInProducts& products_;
  };
  at::Tensor noise(std::int64_t rows, std::int64_t columns, const at::TensorOptions& options) const;

  const ops::GroupedProducts& own_;
  const Activation relu2_, swiglu_;
  const Whole whole_;
  // One buffer a size: results of equal size share it, and nobody looks at their values.
  mutable std::map<std::tuple<std::int64_t, std::int64_t, at::ScalarType>, at::Tensor> drawn_;
};

}  // namespace switchyard::bench
