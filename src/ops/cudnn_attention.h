// ops/cudnn_attention.h: plans of cuDNN for causal attention over packed q, k, v in bf16. Device pointers; no torch
// here, and only the .cpp sees the frontend's headers. Builds that found them define SWITCHYARD_CUDNN_ATTENTION.
#pragma once

#include <cstdint>

struct cudnnContext;  // what cudnnHandle_t points to

namespace switchyard::ops {

// The fixed order of dq's sums goes through a tensor as large as all scores: beyond this, torch's attention.
inline constexpr std::int64_t kMostOrderedAttentionBytes = std::int64_t{4} << 30;

// All that shapes a plan; seq_len to window as in ops/attention.h.
struct CudnnAttentionCase {
  int device;  // the current one when the plan is looked up, and when it runs
  std::int64_t sequences;
  int seq_len, heads, kv_heads, head_dim, window;
  bool training;       // there is a backward, and it is cuDNN's
  bool deterministic;  // backward sums dq in a fixed order, which takes sequences * heads * seq_len^2 * 2 bytes
};

class CudnnAttention {
 public:
  // The plans of a case: built at its first use and kept as long as the process, because recorded CUDA graphs hold
  // their kernels. nullptr where cuDNN has no kernel for it; the first time, the log says why. Any thread may call
  // this; a plan runs in one thread at a time.
  static const CudnnAttention* find(const CudnnAttentionCase& which, cudnnContext* handle);

  // Bytes that the caller lends to a call.
  virtual std::int64_t forward_workspace() const = 0;
  virtual std::int64_t backward_workspace() const = 0;

  // All pointers are aligned to 16 bytes; work goes to the handle's stream. RunError where cuDNN fails.
  struct Forward {
    const void* qkv;    // [T, (H + 2 KV) C]
    void* out;          // [T, H C]
    float* statistics;  // [B, H, S]: log of the softmax's denominator, for backward
    void* workspace;
  };
  virtual void forward(const Forward& work, cudnnContext* handle) const = 0;

  struct Backward {
    const void *qkv, *out, *d_out;
    const float* statistics;
    void* d_qkv;  // every element is written
    void* workspace;
  };
  virtual void backward(const Backward& work, cudnnContext* handle) const = 0;

 protected:
  ~CudnnAttention() = default;  // never destroyed
};

}  // namespace switchyard::ops
