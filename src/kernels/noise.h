// kernels/noise.h: random numbers that depend only on what they are for, never on ranks, threads or order.
#pragma once

#include <cmath>

#include "kernels/dropout.h"

namespace switchyard::kernels {

enum class Noise {
  kUniform,   // in (0, 1)
  kGumbel,    // -ln(-ln u): the argmax of l + noise is a draw from softmax(l) (Kool et al. 2019)
  kGaussian,  // N(0, 1), by Box and Muller
};

// out[t, c] = value c % 4 of the block philox(dropout_key(seed, step, site), place, c / 4) with place =
// window[t / S] * S + t % S. A site must be no dropout's: both count their places alike.
struct NoiseDraw {
  float* out;                  // [T, columns]
  const std::int64_t* window;  // [T / S] global window number of each sequence; null: place is 0 (for T = 1)
  const std::int64_t* step;    // one (device) value
  std::uint64_t seed, site;
  std::int64_t tokens;
  int seq_len, columns;
  Noise kind;
};

void noise(const NoiseDraw&, Stream);
void noise_cpu(const NoiseDraw&, Range tokens);

// The counter of a token's draws.
SWITCHYARD_HOST_DEVICE std::uint64_t noise_place(const NoiseDraw& a, std::int64_t token) {
  if (!a.window) return 0;
  const unsigned t = static_cast<unsigned>(token);
  return static_cast<std::uint64_t>(a.window[t / a.seq_len] * a.seq_len + t % a.seq_len);
}

struct Draw4 {
  float value[4];
};

// Of 23 bits, in whose middle a float still stands exactly: never 0 and never 1, where a logarithm of a logarithm ends.
SWITCHYARD_HOST_DEVICE float open_uniform(std::uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

SWITCHYARD_HOST_DEVICE Draw4 draw_noise(Noise kind, Words4 words) {
  Draw4 u{{open_uniform(words.x), open_uniform(words.y), open_uniform(words.z), open_uniform(words.w)}};
  if (kind == Noise::kUniform) return u;
  if (kind == Noise::kGumbel) {
    for (float& v : u.value) v = -logf(-logf(v));
    return u;
  }
  for (int pair = 0; pair < 4; pair += 2) {
    const float radius = sqrtf(-2.0f * logf(u.value[pair])), angle = 6.28318531f * u.value[pair + 1];
    u.value[pair] = radius * cosf(angle), u.value[pair + 1] = radius * sinf(angle);
  }
  return u;
}

}  // namespace switchyard::kernels
