#include <algorithm>

#include "kernels/noise.h"

namespace switchyard::kernels {

void noise_cpu(const NoiseDraw& p, Range tokens) {
  const std::uint64_t key = dropout_key(p.seed, *p.step, p.site);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const std::uint64_t place = noise_place(p, t);
    float* out = p.out + t * p.columns;
    for (int c = 0; c < p.columns; c += 4) {
      const Draw4 draw = draw_noise(p.kind, philox(key, place, static_cast<std::uint64_t>(c / 4)));
      std::copy_n(draw.value, std::min(4, p.columns - c), out + c);
    }
  }
}

}  // namespace switchyard::kernels
