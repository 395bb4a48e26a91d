// ops/noise.h: random tensors drawn from a counter generator: the same whatever the ranks, and after a resume.
#pragma once

#include "kernels/noise.h"
#include "ops/dropout.h"

namespace switchyard::ops {

using kernels::Noise;

// [T, columns] fp32 on the key's device, T the tokens of the key's windows. A draw depends on (seed, step, site, global
// window, position in the sequence, column) alone. `site` tells the draws apart from each other and from the model's
// dropouts, which number theirs from 0: take sites from 2^32 on.
Tensor noise(Noise kind, std::int64_t tokens, std::int64_t columns, std::uint64_t site, const DropoutKey& key);

// [columns] fp32 in (0, 1) on the key's device, of (seed, step, site, column) alone: what all tokens and ranks share.
Tensor step_uniform(std::int64_t columns, std::uint64_t site, const DropoutKey& key);

}  // namespace switchyard::ops
