// Two launches, each with its gradients in registers from the first product to the last: one goes over the keys of 192
// queries and makes their gradient, the other over the queries of 128 keys. Scores and their gradients are computed in
// both: 7 products instead of the 5 of one launch, which would have to add the queries' gradient in memory, block by
// block in fp32 and in no fixed order, clear it before and round it after. Probabilities go from the sums of one
// product into the operand of the next within a thread.
//
// A block is warpgroups that multiply, 64 queries (keys) each, and a thread that loads. While one takes exponentials,
// another one's products run. Blocks draw items, a head's longest first, heads in order, so that those who read the
// same keys do so together. Their results leave from where their queries (keys) came.
#include <algorithm>
#include <cmath>

#include "kernels/attention_backward.h"
#include "kernels/attention_keys.cuh"
#include "kernels/attention_queries.cuh"
#include "kernels/cuda_check.h"
#include "kernels/device.h"
#include "kernels/device_limits.h"
#include "kernels/tensor_map.h"

namespace switchyard::kernels {
namespace attention {

template <class B, class Produce, class Consume>
__device__ __forceinline__ void run_block(const void* raw, Produce produce, Consume consume) {
  const B block(raw);
  if (threadIdx.x == 0) block.init();
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    hopper::give_up_registers<B::kProducerRegisters>();
    if (threadIdx.x == 0) produce(block);
  } else {
    hopper::take_registers<B::kConsumerRegisters>();
    consume(block);
  }
}

__global__ void __maxnreg__(QueryBlock::kRegisters)
    query_gradient_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Problem p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char raw[];
  run_block<QueryBlock>(
      raw, [&](const QueryBlock& block) { produce_for_queries(maps, p, block); },
      [&](const QueryBlock& block) { consume_queries(maps, p, block); });
#endif
}

__global__ void __maxnreg__(KeyBlock::kRegisters)
    key_value_gradient_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Problem p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char raw[];
  run_block<KeyBlock>(
      raw, [&](const KeyBlock& block) { produce_for_keys(maps, p, block); },
      [&](const KeyBlock& block) { consume_keys(maps, p, block); });
#endif
}

}  // namespace attention

namespace {

using namespace attention;

constexpr int kSchedulers = 4;  // floats in front of the rows of sums: two counters, and room to stay aligned

// heads: whose items they are.
template <class B, class Kernel>
void launch(Kernel kernel, const Maps& maps, Problem p, std::int64_t sequences, int heads, Stream stream) {
  p.tiles = Divisor(ceil_div(p.seq_len, B::kRows));
  const std::int64_t items = sequences * heads * p.tiles.by;
  SWITCHYARD_ASSERT(items < std::int64_t{1} << 31, "attention's backward was given too many sequences");
  p.items = static_cast<int>(items);
  SWITCHYARD_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, B::kBytes));
  kernel<<<std::min(p.items, multiprocessors()), B::kThreads, B::kBytes, stream>>>(maps, p);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace

bool attention_backward_takes(int seq_len, int heads, int kv_heads, int channels) {
  return attention_backward_takes_shape(seq_len, heads, kv_heads, channels) &&
         runs_hopper_kernels(device_attribute(cudaDevAttrComputeCapabilityMajor),
                             device_attribute(cudaDevAttrComputeCapabilityMinor));
}

std::int64_t attention_backward_scratch(std::int64_t sequences, int seq_len, int heads) {
  return kSchedulers + sequences * heads * ceil_div(seq_len, kTile) * 2 * kTile;
}

void attention_backward(const AttentionBackward& a, Stream stream) {
  if (a.sequences == 0) return;
  SWITCHYARD_ASSERT(attention_backward_takes(a.seq_len, a.heads, a.kv_heads, kChannels) && a.window >= 1,
                    "attention's backward was given a shape that it does not take");
  const std::int64_t width = std::int64_t{a.heads + 2 * a.kv_heads} * kChannels, out_width = a.heads * kChannels;
  const auto map = [&](const bf16* data, std::int64_t columns) {
    return tensor_map(data, columns, a.seq_len, a.sequences, kPart);
  };
  const Maps maps{map(a.qkv, width), map(a.out, out_width), map(a.d_out, out_width), map(a.d_qkv, width)};
  int* schedulers = reinterpret_cast<int*>(a.scratch);
  Problem p{};
  p.log_sums = a.log_sums, p.rows = a.scratch + kSchedulers, p.scheduler = schedulers;
  p.seq_len = a.seq_len, p.row_tiles = ceil_div(a.seq_len, kTile), p.window = std::min(a.window, a.seq_len);
  p.heads = a.heads, p.kv_heads = a.kv_heads, p.group = a.heads / a.kv_heads;
  p.cos = a.cos, p.sin = a.sin, p.inverse_rms = a.inverse_rms;
  p.scale = 1 / std::sqrt(static_cast<float>(kChannels));
  SWITCHYARD_CUDA(cudaMemsetAsync(schedulers, 0, 2 * sizeof(int), static_cast<cudaStream_t>(stream)));
  launch<QueryBlock>(query_gradient_kernel, maps, p, a.sequences, a.heads, stream);
  ++p.scheduler;
  launch<KeyBlock>(key_value_gradient_kernel, maps, p, a.sequences, a.kv_heads, stream);
}

}  // namespace switchyard::kernels
