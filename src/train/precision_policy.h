// From config and device to the products each linear layer trains with.
#pragma once

#include "precision/linear.h"
#include "train/device.h"

namespace switchyard {

// Owns the fp8 products and the report; outlives the model built with policy().
class PrecisionChoice {
 public:
  PrecisionChoice(const Config& config, const ComputeDevice& device);
  ~PrecisionChoice();
  PrecisionPolicy policy() const;
  const Fp8Report& report() const { return report_; }

 private:
  Fp8Report report_;
  std::unique_ptr<ops::LinearProducts> linear_;
  std::unique_ptr<ops::GroupedProducts> grouped_;
};

}  // namespace switchyard
