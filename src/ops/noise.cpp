#include "ops/noise.h"

#include "ops/launch.h"

namespace switchyard::ops {
namespace {

Tensor drawn(Noise kind, std::int64_t tokens, std::int64_t columns, std::uint64_t site, const DropoutKey& key,
             const std::int64_t* window) {
  Tensor out = at::empty({tokens, columns}, key.step.options().dtype(at::kFloat));
  const kernels::NoiseDraw draw{
      out.data_ptr<float>(),     window, key.step.data_ptr<std::int64_t>(), key.seed, site, tokens, key.seq_len,
      static_cast<int>(columns), kind};
  if (out.is_cuda()) {
#ifdef SWITCHYARD_WITH_CUDA
    kernels::noise(draw, current_stream(out));
#endif
  } else {
    parallel_ranges(tokens, 32, [&](kernels::Range range) { kernels::noise_cpu(draw, range); });
  }
  return out;
}

}  // namespace

Tensor noise(Noise kind, std::int64_t tokens, std::int64_t columns, std::uint64_t site, const DropoutKey& key) {
  SWITCHYARD_ASSERT(tokens == key.window_B.numel() * key.seq_len, "noise is drawn for the tokens of the key's windows");
  return drawn(kind, tokens, columns, site, key, key.window_B.data_ptr<std::int64_t>());
}

Tensor step_uniform(std::int64_t columns, std::uint64_t site, const DropoutKey& key) {
  return drawn(Noise::kUniform, 1, columns, site, key, nullptr).squeeze(0);
}

}  // namespace switchyard::ops
