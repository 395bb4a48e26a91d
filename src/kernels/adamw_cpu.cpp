#include <cmath>
#include <cstring>

#include "kernels/adamw.h"

namespace switchyard::kernels {
namespace {

// Round to nearest, ties to even; NaN stays a quiet NaN.
inline std::uint16_t to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<std::uint16_t>(value == value ? rounded : (bits >> 16) | 0x40u);
}

// What one step multiplies with, the corrections already folded in.
struct Factors {
  float grad, beta1, beta2, inverse1, inverse2, eps, lr, decay;
};

void update(float* __restrict weight, const float* __restrict grad, float* __restrict first, float* __restrict second,
            std::int64_t count, const Factors& f) {
  const float rest1 = 1.0f - f.beta1, rest2 = 1.0f - f.beta2;
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = grad[i] * f.grad;
    const float m = f.beta1 * first[i] + rest1 * g;
    const float v = f.beta2 * second[i] + rest2 * g * g;
    const float step = m * f.inverse1 / (std::sqrt(v * f.inverse2) + f.eps);
    first[i] = m;
    second[i] = v;
    weight[i] -= f.lr * (step + f.decay * weight[i]);
  }
}

}  // namespace

void adamw_cpu(const AdamwStep& p, int tensor, Range elements) {
  if (*p.apply == 0) return;
  const AdamwTensor& w = p.tensors[tensor];
  const double applied = static_cast<double>(*p.applied);
  Factors f{};
  f.grad = *p.grad_factor;
  f.beta1 = w.beta1;
  f.beta2 = p.beta2;
  f.inverse1 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(w.beta1), applied)));
  f.inverse2 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(p.beta2), applied)));
  f.eps = p.eps;
  f.lr = w.lr * *p.schedule;
  f.decay = w.weight_decay;
  const std::int64_t first = elements.begin, count = elements.end - elements.begin;
  update(w.weight + first, w.grad + first, w.first + first, w.second + first, count, f);
  if (w.copy == nullptr) return;
  for (std::int64_t i = elements.begin; i < elements.end; ++i) w.copy[i].bits = to_bf16(w.weight[i]);
}

}  // namespace switchyard::kernels
