#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/zero_experts.h"

namespace switchyard::kernels {
namespace {

template <class T>
T dot(const T* a, const T* b, int n) {
  T sum = 0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Per token: the weight of its copies, and of each constant; false where it has no such assignment.
template <class Work, class T>
bool weights_of(const Work& p, std::int64_t t, T& copies, std::vector<T>& of_constant) {
  copies = 0;
  std::fill(of_constant.begin(), of_constant.end(), T(0));
  bool any = false;
  for (int k = 0; k < p.top_k; ++k) {
    const std::int64_t i = t * p.top_k + k;
    const int kind = zero_expert(p.choice, i);
    if (kind == kNoZeroExpert) continue;
    any = true;
    (kind == kCopy ? copies : of_constant[kind - kConstant]) += p.weight[i];
  }
  return any;
}

template <class Work>
bool chooses(const Work& p, std::int64_t t, int kind) {
  for (int k = 0; k < p.top_k; ++k)
    if (zero_expert(p.choice, t * p.top_k + k) == kind) return true;
  return false;
}

// a1 of softmax(W x); a2 is the rest.
template <class Work, class T>
T share_of_x(const Work& p, int j, const T* x) {
  const auto* map = p.map + static_cast<std::int64_t>(j) * 2 * p.width;
  return 1 / (1 + std::exp(dot(map + p.width, x, p.width) - dot(map, x, p.width)));
}

}  // namespace

template <class T>
void zero_experts_cpu(const ZeroExperts<T>& p, Range tokens) {
  std::vector<T> of_constant(p.constants);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    T of_x;
    if (!weights_of(p, t, of_x, of_constant)) continue;
    const T* x = p.x + t * p.width;
    T* out = p.out + t * p.width;
    for (int j = 0; j < p.constants; ++j) {
      if (!chooses(p, t, kConstant + j)) continue;
      const T share = share_of_x(p, j, x), of_vector = of_constant[j] * (1 - share);
      of_x += of_constant[j] * share;
      for (int d = 0; d < p.width; ++d) out[d] += of_vector * p.vector[static_cast<std::int64_t>(j) * p.width + d];
    }
    for (int d = 0; d < p.width; ++d) out[d] += of_x * x[d];
  }
}

// With g1 = <dy, x>, g2 = <dy, v>: d weight = a1 g1 + a2 g2, d z_1 = weight a1 a2 (g1 - g2) = -d z_2.
template <class T>
void zero_experts_backward_cpu(const ZeroExpertsBackward<T>& p, Range tokens) {
  std::vector<T> of_constant(p.constants), d_constant(p.constants);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    for (int j = 0; j < p.constants; ++j)
      std::fill_n(p.coefficient + (static_cast<std::int64_t>(j) * p.tokens + t) * 2, 2, T(0));
    T of_dy;
    if (!weights_of(p, t, of_dy, of_constant)) continue;
    const T *x = p.x + t * p.width, *dy = p.d_out + t * p.width;
    T* d_x = p.d_x + t * p.width;
    const T along_x = dot(dy, x, p.width);
    for (int j = 0; j < p.constants; ++j) {
      if (!chooses(p, t, kConstant + j)) continue;
      const T share = share_of_x(p, j, x), weight = of_constant[j],
              along_v = dot(dy, p.vector + static_cast<std::int64_t>(j) * p.width, p.width);
      const T d_logit = weight * share * (1 - share) * (along_x - along_v);
      d_constant[j] = share * along_x + (1 - share) * along_v;
      of_dy += weight * share;
      T* coefficient = p.coefficient + (static_cast<std::int64_t>(j) * p.tokens + t) * 2;
      coefficient[0] = d_logit, coefficient[1] = weight * (1 - share);
      const T* map = p.map + static_cast<std::int64_t>(j) * 2 * p.width;
      for (int d = 0; d < p.width; ++d) d_x[d] += d_logit * (map[d] - map[p.width + d]);
    }
    for (int d = 0; d < p.width; ++d) d_x[d] += of_dy * dy[d];
    for (int k = 0; k < p.top_k; ++k) {
      const int kind = zero_expert(p.choice, t * p.top_k + k);
      if (kind != kNoZeroExpert) p.d_weight[t * p.top_k + k] = kind == kCopy ? along_x : d_constant[kind - kConstant];
    }
  }
}

template <class T>
void zero_expert_sums_cpu(const ZeroExpertSums<T>& p, Range constants) {
  for (std::int64_t j = constants.begin; j < constants.end; ++j) {
    T* sums = p.sums + j * 2 * p.width;
    std::fill_n(sums, 2 * p.width, T(0));
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      const T of_x = p.coefficient[(j * p.tokens + t) * 2], of_dy = p.coefficient[(j * p.tokens + t) * 2 + 1];
      if (of_x == 0 && of_dy == 0) continue;
      for (int d = 0; d < p.width; ++d) {
        sums[d] += of_x * p.x[t * p.width + d];
        sums[p.width + d] += of_dy * p.d_out[t * p.width + d];
      }
    }
  }
}

template void zero_experts_cpu(const ZeroExperts<float>&, Range);
template void zero_experts_cpu(const ZeroExperts<double>&, Range);
template void zero_experts_backward_cpu(const ZeroExpertsBackward<float>&, Range);
template void zero_experts_backward_cpu(const ZeroExpertsBackward<double>&, Range);
template void zero_expert_sums_cpu(const ZeroExpertSums<float>&, Range);
template void zero_expert_sums_cpu(const ZeroExpertSums<double>&, Range);

}  // namespace switchyard::kernels
