// ops/layer.h: the base of the model's modules: a torch module whose parameters live in a ParameterStore.
#pragma once

#include <torch/nn/module.h>

#include <string>
#include <utility>
#include <vector>

#include "ops/parameter.h"

namespace switchyard {

class Layer : public torch::nn::Module {
 public:
  explicit Layer(std::string full_name) : torch::nn::Module(full_name), full_name_(std::move(full_name)) {}
  // After ParameterStore::allocate: registers each master as a torch parameter (named_parameters, counting, printing).
  void bind() {
    for (auto& [name, parameter] : declared_) register_parameter(name, parameter->master, /*requires_grad=*/false);
  }
  const std::string& full_name() const { return full_name_; }

 protected:
  // Declares "<full_name>.<name>" in the store.
  Parameter& declare(ParameterStore& store, const std::string& name, ParameterKind kind,
                     std::vector<std::int64_t> shape, Init init, std::vector<std::int64_t> row_split = {}) {
    const std::string whole = full_name_.empty() ? name : full_name_ + "." + name;
    Parameter& parameter = store.add(whole, kind, std::move(shape), init, std::move(row_split));
    declared_.emplace_back(name, &parameter);
    return parameter;
  }

 private:
  std::string full_name_;
  std::vector<std::pair<std::string, Parameter*>> declared_;
};

}  // namespace switchyard
