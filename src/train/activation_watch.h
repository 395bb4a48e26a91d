// Looks into the layers of a pass: norms, the first layer whose values are not finite, and copies (moe_spec T9).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "comm/control.h"
#include "ops/step_context.h"
#include "train/safetensors.h"

namespace switchyard {

// Root mean squares in a layer; negative: the layer has none.
struct LayerNorms {
  int layer = 0;
  double residual = -1, attention = -1, ffn = -1, router_logits = -1;
};

class ActivationWatch {
 public:
  ActivationWatch(int layers, at::Device device);

  // Goes into StepContext::watch. The watch outlives the passes; figures gather on the device, a captured pass's too.
  Watch watcher();
  // From here on a pass's tensors are kept for take_tensors(), the last pass's of each name. Eager passes only.
  void keep_tensors(bool keep) { keeps_ = keep; }
  NamedTensors take_tensors();

  // Of the last pass on this rank.
  std::vector<LayerNorms> norms() const;
  // The first layer in the order of the pass, over ranks and since the last call, with a value that is not finite, as
  // "layer 3, router logits"; empty: none. Collective.
  std::string first_nonfinite(Control& control);

 private:
  void look(Watched what, int layer, const at::Tensor& values);

  at::Tensor mean_square_LW_;  // fp32
  at::Tensor nonfinite_LW_;    // int64: passes in which a value was not finite
  bool keeps_ = false;
  std::map<std::string, at::Tensor> kept_;
};

std::string norms_table(const std::vector<LayerNorms>& layers);

}  // namespace switchyard
