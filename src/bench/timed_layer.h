// bench/timed_layer.h: one layer as the model has it, with parameters of its own, to be timed forward and backward.
#pragma once

#include "bench/stopwatch.h"
#include "model/mlp.h"
#include "train/device.h"

#ifdef SWITCHYARD_WITH_MOE
#include "model/moe/moe.h"
#endif

namespace switchyard::bench {

using at::Tensor;

// What is the same for every layer: input and gradient of the output, N(0, 1) from seed 0, and a step of training over
// windows of seq_len tokens.
struct Material {
  Tensor x_TD, dy_TD;
  StepContext step;

  Material(std::int64_t tokens, int width, int seq_len, const ComputeDevice& device);
};

// Parameters of equal names have equal values.
class TimedLayer {
 public:
  virtual ~TimedLayer() = default;
  virtual Tensor forward(const Tensor& x_TD, const StepContext& step) const = 0;

  virtual void prepare(const ComputeDevice& device);
  // The gradient of x; those of parameters are added to their slices.
  Tensor differentiate(const Tensor& out_TD, const Material& with) const;
  // The last three: as in stopwatch.h.
  PassTimes time(const Material& with, const ComputeDevice& device, bool record, int repeats, int warm_ups,
                 int runs_a_graph = 1) const;
  // {output, gradients of x and of the parameters end to end}
  std::pair<Tensor, Tensor> values(const Material& with);

 protected:
  ParameterStore store_;
};

class DenseLayer : public TimedLayer {
 public:
  explicit DenseLayer(const Config& config) : mlp_(store_, "mlp", config, {}) {}
  Tensor forward(const Tensor& x_TD, const StepContext& step) const override { return mlp_.forward(x_TD, step); }

 private:
  const Mlp mlp_;
};

// N(0, 1 / width): outputs of an input of variance 1 have variance 1.
Init unit_normal(int width);

// Router, dispatch, experts and what stands beside them. Balance losses only where moe.aux_injection = autograd, since
// a model makes those of all layers at once. ConfigError in a build without sparse layers.
class SparseLayer : public TimedLayer {
 public:
  // products: of the experts in place of the device's own; null: those.
  SparseLayer(const Config& config, Init up, Init down, const ops::GroupedProducts* products = nullptr);
  Tensor forward(const Tensor& x_TD, const StepContext& step) const override;
  void prepare(const ComputeDevice& device) override;  // and biases of the choice, where the config asks for them
  // Noise on the device for every matrix that the config's initial values leave constant.
  void fill_matrices();

#ifdef SWITCHYARD_WITH_MOE
 private:
  const Config config_;
  RoutingState state_;
  Fp8Report report_;  // a layer whose products are others is one that converts
  std::unique_ptr<const Moe> moe_;
#endif
};

}  // namespace switchyard::bench
