#include "kernels/cross_entropy.h"
#include "kernels/vector_math.h"

namespace switchyard::kernels {
namespace {

// Up to this cap e^z of 2^31 values cannot overflow a float, so that no maximum needs to be subtracted.
constexpr float kSafeCap = 60;

// ln sum e^z of one row and z[target]. Where the gradient comes next, the capped z replace the logits, which saves it a
// second tanh.
template <class T>
struct RowSum {
  T log_sum, target;
};
template <class T>
SWITCHYARD_INLINE RowSum<T> row_sum(T* logits, std::int64_t target, int vocab, T cap, bool keep_capped) {
  if (cap > T(0)) {
    const T inverse_cap = T(1) / cap;
    const T shift = cap <= T(kSafeCap) ? T(0) : cap * fast_tanh(largest(logits, vocab) * inverse_cap);
    const T z_target = cap * fast_tanh(logits[target] * inverse_cap);
    const T total = sum<T>(vocab, [&](auto at) {
      const auto z = at.all(cap) * fast_tanh(at(logits) * at.all(inverse_cap));
      if (keep_capped) at.write(logits, z);
      return fast_exp(z - at.all(shift));
    });
    return {shift + std::log(total), z_target};
  }
  const T shift = largest(logits, vocab);
  const T total = sum<T>(vocab, [&](auto at) { return fast_exp(at(logits) - at.all(shift)); });
  return {shift + std::log(total), logits[target]};
}

// d nll / d logit = (e^(z - log_sum) - [v = target]) * (1 - (z / cap)^2)
template <class T>
SWITCHYARD_INLINE void row_gradient(T* z, std::int64_t target, int vocab, T cap, T scale, T log_sum) {
  const T z_target = z[target];
  if (cap > T(0)) {
    const T inverse_cap = T(1) / cap;
    each<T>(vocab, [&](auto at) {
      const auto value = at(z), tanh = value * at.all(inverse_cap);
      at.write(z, fast_exp(value - at.all(log_sum)) * at.all(scale) * (at.all(1) - tanh * tanh));
    });
    const T tanh = z_target * inverse_cap;
    z[target] = (fast_exp(z_target - log_sum) - T(1)) * scale * (T(1) - tanh * tanh);
  } else {
    each<T>(vocab, [&](auto at) { at.write(z, fast_exp(at(z) - at.all(log_sum)) * at.all(scale)); });
    z[target] = (fast_exp(z_target - log_sum) - T(1)) * scale;
  }
}

}  // namespace

template <class T>
void cross_entropy_cpu(const CrossEntropy<T>& p, Range tokens) {
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    T* logits = p.logits + t * p.vocab;
    const std::int64_t target = p.target[t];
    if (target < 0) {
      p.nll[t] = 0;
      if (p.gradient) std::memset(logits, 0, sizeof(T) * static_cast<std::size_t>(p.vocab));
      continue;
    }
    const T cap = static_cast<T>(p.cap);
    const RowSum<T> row = row_sum(logits, target, p.vocab, cap, p.gradient);
    p.nll[t] = static_cast<float>(row.log_sum - row.target);
    if (p.gradient) row_gradient(logits, target, p.vocab, cap, static_cast<T>(p.grad_scale), row.log_sum);
  }
}

template void cross_entropy_cpu(const CrossEntropy<float>&, Range);
template void cross_entropy_cpu(const CrossEntropy<double>&, Range);

}  // namespace switchyard::kernels
