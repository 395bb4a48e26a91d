// precision/linear.h: a linear layer that trains in the precision its filter chose and evaluates in bf16.
#pragma once

#include "ops/grouped_products.h"
#include "ops/layer.h"
#include "ops/linear.h"
#include "ops/step_context.h"
#include "precision/fp8_report.h"

namespace switchyard {

// Which products a layer uses in training. Without fp8 both are null and every layer multiplies in the compute type.
struct PrecisionPolicy {
  const Fp8Report* report = nullptr;  // null: no layer converts
  const ops::LinearProducts* fp8_linear = nullptr;
  const ops::GroupedProducts* fp8_grouped = nullptr;
  bool converts(const std::string& layer) const { return report && report->converts(layer); }
};

// y = x W^T without bias. W [rows, cols]; row_split as in Parameter.
class Linear : public Layer {
 public:
  Linear(ParameterStore& store, const std::string& name, ParameterKind kind, std::int64_t rows, std::int64_t cols,
         Init init, const PrecisionPolicy& policy, std::vector<std::int64_t> row_split = {})
      : Layer(name),
        weight_(declare(store, "weight", kind, {rows, cols}, init, std::move(row_split))),
        fp8_(policy.converts(name) ? policy.fp8_linear : nullptr) {}

  // x [T, cols] -> [T, rows]. Evaluation multiplies in the compute type also when training is in fp8 (moe_spec P4).
  at::Tensor forward(const at::Tensor& x_TD, const StepContext& step) const {
    return ops::linear(x_TD, weight_, products(step));
  }
  const ops::LinearProducts& products(const StepContext& step) const {
    return step.training && fp8_ ? *fp8_ : ops::LinearProducts::plain();
  }
  const Parameter& weight() const { return weight_; }
  bool plain(const StepContext& step) const { return &products(step) == &ops::LinearProducts::plain(); }

 private:
  Parameter& weight_;
  const ops::LinearProducts* fp8_;
};

}  // namespace switchyard
