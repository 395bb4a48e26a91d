#include <ATen/ATen.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "bench/attention_timings.h"
#include "bench/stopwatch.h"
#include "ops/attention.h"

namespace switchyard::bench {
namespace {

using at::Tensor;

Tensor noise(at::IntArrayRef size) {
  return at::randn(size, at::TensorOptions().device(at::kCUDA).dtype(at::kBFloat16));
}

// Scores that are seen, of all heads.
double scores(int sequences, const AttentionSizes& s) {
  double seen = 0;
  for (int token = 0; token < s.seq_len; ++token) seen += std::min(token + 1, s.window);
  return seen * sequences * s.heads;
}

// attend: from `leaves` to a tensor of d_out's shape.
template <class Attend>
void time_passes_of(Clock& clock, const std::string& name, double flops, const std::vector<Tensor>& leaves,
                    const Tensor& d_out, Attend attend) {
  const Passes passes{attend, [&](const Tensor& out) { torch::autograd::grad({out}, leaves, {d_out}); }};
  const PassTimes times = time_passes(passes, 0, /*record=*/true, 10);
  clock.keep_product(name, flops, times.forward_ms * 1e-3);
  clock.keep_product(name + " backward", 2.5 * flops, times.backward_ms * 1e-3);
}

}  // namespace

void time_attention(Clock& clock, int sequences, const AttentionSizes& s) {
  const std::string window = s.window < s.seq_len ? " window " + std::to_string(s.window) : "";
  const std::string ours = "attention" + window, torchs = "attention of torch" + window;
  if (!clock.asks_for(ours + " backward") && !clock.asks_for(torchs + " backward")) return;
  const double flops = 4.0 * scores(sequences, s) * s.head_dim;
  const c10::cuda::CUDAStreamGuard recordable(c10::cuda::getStreamFromPool());
  const std::int64_t tokens = std::int64_t{sequences} * s.seq_len;
  {
    const Tensor d_out = noise({tokens, s.heads * s.head_dim});
    const Tensor qkv = noise({tokens, (s.heads + 2 * s.kv_heads) * s.head_dim}).requires_grad_(true);
    const ops::AttentionShape shape{s.seq_len, s.heads, s.kv_heads, s.head_dim, s.window};
    time_passes_of(clock, ours, flops, {qkv}, d_out, [&] { return ops::attention(qkv, shape); });
    if (ops::attention_turns_back(qkv, shape)) {  // as in a step: norm's and rotation's backward inside
      const ops::QkvRotation rotation{ops::rotary_tables(s.seq_len, s.head_dim, 10000, qkv.device()),
                                      at::ones({tokens, s.heads + s.kv_heads}, qkv.options().dtype(at::kFloat))};
      time_passes_of(clock, "rotated " + ours, flops, {qkv}, d_out,
                     [&] { return ops::attention(qkv, shape, &rotation); });
    }
  }
  {
    const auto leaf = [&](int heads) {  // [B, H, S, C], which torch wants in memory as the projection writes it
      return noise({sequences, s.seq_len, heads, s.head_dim}).transpose(1, 2).requires_grad_(true);
    };
    const Tensor q = leaf(s.heads), k = leaf(s.kv_heads), v = leaf(s.kv_heads), d_out = leaf(s.heads).detach();
    const Tensor row = at::arange(s.seq_len, q.options().dtype(at::kLong)).unsqueeze(1), column = row.t();
    const Tensor seen = column.le(row).logical_and(column.gt(row - s.window));
    time_passes_of(clock, torchs, flops, {q, k, v}, d_out, [&] {
      if (s.window < s.seq_len)
        return at::scaled_dot_product_attention(q, k, v, seen, 0.0, false, std::nullopt, s.heads != s.kv_heads);
      return std::get<0>(at::_scaled_dot_product_cudnn_attention(q, k, v, std::nullopt, true, 0.0, true));
    });
  }
  c10::cuda::CUDACachingAllocator::emptyCache();  // the other kernels' buffers are not torch's
}

}  // namespace switchyard::bench
