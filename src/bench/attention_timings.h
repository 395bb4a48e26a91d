// bench/attention_timings.h: attention in bf16, ours and torch's, against products of the same FLOPs. CUDA builds only.
#pragma once

#include "bench/device_clock.h"

namespace switchyard::bench {

struct AttentionSizes {  // ops::AttentionShape, whose header brings torch's
  int seq_len, heads, kv_heads, head_dim, window;
};

// Forward and backward of ops/attention.h on the packed tensor, then torch's call of cuDNN on q, k, v apart (with a
// mask where there is a window). FLOPs: of the scores that are seen alone, five products in backward.
void time_attention(Clock& clock, int sequences, const AttentionSizes& shape);

}  // namespace switchyard::bench
