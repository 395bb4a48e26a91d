#include "train/precision_policy.h"

#include "model/linear_layers.h"
#include "precision/fp8_products.h"

namespace switchyard {

PrecisionChoice::PrecisionChoice(const Config& config, const ComputeDevice& device) {
  if (config.precision.mode != "fp8" || !device.has_fp8) return;
  report_ = decide_fp8(linear_layers(config), config.precision);
  linear_ = std::make_unique<Fp8Linear>(config.precision);
  grouped_ = std::make_unique<Fp8Grouped>();
}

PrecisionChoice::~PrecisionChoice() = default;

PrecisionPolicy PrecisionChoice::policy() const {
  if (!linear_) return {};
  return {&report_, linear_.get(), grouped_.get()};
}

}  // namespace switchyard
