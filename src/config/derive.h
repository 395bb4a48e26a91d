// Values that follow from others: 0 stands for "derived" in n_head, n_kv_head, ffn_hidden, d_expert, d_shared, depth.
#pragma once

#include "config/resolved.h"

namespace switchyard {

// Fills what is 0 in a Config built by hand, as a test does. Nothing yields, nothing is checked.
void derive(Config& config);

// The same on a loaded config: marks what it fills as derived, lets an untouched default yield to a value the user set,
// and expands moe.segments where it can, which is then 1 (each with a line in resolved.notes). Idempotent. world_size
// 0: unknown yet, nothing that depends on it moves.
void derive(ResolvedConfig& resolved, int world_size = 0);

// Turns device "auto" into "cuda" or "cpu" and derives again: on a CPU an untouched precision.mode becomes fp32.
void settle_device(ResolvedConfig& resolved, bool cuda_present);

}  // namespace switchyard
