// What routing keeps beside weights, to and from checkpoints (moe_spec 4.3).
#pragma once

#include "comm/control.h"
#include "model/gpt.h"
#include "train/safetensors.h"

namespace switchyard {

// The ranks' values as one, on the CPU. Collective.
NamedTensors gather_kept(const Gpt& model, Control& control);

// Back into the model: what was summed over ranks goes to the first one. A tensor that `kept` lacks (an older
// checkpoint, or one of a run without that feature) starts anew, with a warning that names it. RunError for another
// shape. `from` is the checkpoint's path.
void restore_kept(Gpt& model, const NamedTensors& kept, bool first_rank, const std::string& from);
// The same for a run that starts from another's weights: what the model computes with alone, no counts.
void restore_biases(Gpt& model, const NamedTensors& kept, const std::string& from);

}  // namespace switchyard
