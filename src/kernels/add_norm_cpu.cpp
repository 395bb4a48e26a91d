#include <vector>

#include "base/error.h"
#include "kernels/add_norm.h"
#include "kernels/dispatch.h"
#include "kernels/vector_math.h"

namespace switchyard::kernels {
namespace {

// What is added to token t's row: its row of delta, the sum of its rows, which `sum` then holds, or null.
template <class T>
const T* delta_of(const AddNorm<T>& p, std::int64_t t, std::vector<T>& sum) {
  if (!p.rows.rows) return p.delta ? p.delta + t * p.width : nullptr;
  combine_cpu(Combine<T>{p.rows.rows, p.rows.row_of + t * p.rows.top_k, sum.data(), 1, p.rows.top_k, p.width}, {0, 1});
  return sum.data();
}

// Of one token: residual = keep * (x + delta) + again * x0, stored if wanted; returns the sum of its squares.
template <class T>
SWITCHYARD_INLINE T add_row(const AddNorm<T>& p, std::int64_t row, const T* delta, T keep, T again) {
  const std::int64_t first = row * p.width;
  const T* x = p.x + first;
  const T* x0 = p.x0 ? p.x0 + first : nullptr;
  T* residual = p.residual ? p.residual + first : nullptr;
  return sum<T>(p.width, [&](auto at) {
    auto r = at(x);
    if (delta) r += at(delta);
    r *= at.all(keep);
    if (x0) r += at.all(again) * at(x0);
    if (residual) at.write(residual, r);
    return r * r;
  });
}

}  // namespace

template <class T>
void add_norm_cpu(const AddNorm<T>& p, Range tokens) {
  SWITCHYARD_ASSERT(p.residual || !(p.delta || p.rows.rows || p.x0 || p.keep),
                    "only a plain norm may leave its residual unstored");
  const T keep = p.keep ? static_cast<T>(*p.keep) : T(1);
  const T again = p.x0 ? static_cast<T>(*p.again) : T(0);
  std::vector<T> sum(p.rows.rows ? static_cast<std::size_t>(p.width) : 0);  // of one token, so that it stays in cache
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const T squares = add_row(p, t, delta_of(p, t, sum), keep, again);
    const T inverse = T(1) / std::sqrt(squares / static_cast<T>(p.width) + static_cast<T>(p.eps));
    p.inverse_rms[t] = static_cast<float>(inverse);
    const std::int64_t first = t * p.width;
    const T* residual = (p.residual ? p.residual : p.x) + first;
    each<T>(p.width, [&](auto at) {
      auto r = at(residual) * at.all(inverse);
      if (p.gain) r *= at(p.gain);
      at.write(p.normed + first, r);
    });
  }
}

template <class T>
void add_norm_backward_cpu(const AddNormBackward<T>& p, Range tokens, double* sums) {
  const T keep = p.keep ? static_cast<T>(*p.keep) : T(1);
  const T again = p.x0 && p.again ? static_cast<T>(*p.again) : T(0), share_of_x0 = p.d_x ? again : keep + again;
  const bool scalars = p.d_keep || p.d_again;
  double along_residual = 0, along_x0 = 0;  // sums of total * residual and total * x0
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const std::int64_t first = t * p.width;
    const T* residual = p.residual + first;
    const T* d_normed = p.d_normed ? p.d_normed + first : nullptr;
    const T* d_residual = p.d_residual ? p.d_residual + first : nullptr;
    const T inverse = static_cast<T>(p.inverse_rms[t]);
    // d residual = inverse * (gain * d_normed) - residual * inverse^3 / D * <gain * d_normed, residual>
    T share = 0;
    if (d_normed) {
      share = inverse * inverse * inverse / static_cast<T>(p.width) * sum<T>(p.width, [&](auto at) {
                auto d = at(d_normed) * at(residual);
                if (p.gain) d *= at(p.gain);
                return d;
              });
    }
    const auto total = [&](auto at) {
      auto d = at.all(0);
      if (d_normed) {
        d = at(d_normed) * at.all(inverse);
        if (p.gain) d *= at(p.gain);
        d -= at(residual) * at.all(share);
      }
      if (d_residual) d += at(d_residual);
      return d;
    };
    // The sums come before the stores, which may overwrite what they read.
    if (p.d_keep)
      along_residual += static_cast<double>(sum<T>(p.width, [&](auto at) { return total(at) * at(residual); }));
    if (scalars && p.x0)
      along_x0 += static_cast<double>(sum<T>(p.width, [&](auto at) { return total(at) * at(p.x0 + first); }));
    if (p.d_gain && d_normed) {
      each<T>(p.width, [&](auto at) { at.add(sums + 2, at(d_normed) * at(residual) * at.all(inverse)); });
    }
    each<T>(p.width, [&](auto at) {
      const auto d = total(at);
      if (p.d_x) at.write(p.d_x + first, d * at.all(keep));
      if (!p.d_x0) return;
      auto d_x0 = d * at.all(share_of_x0);
      if (p.add_d_x0) d_x0 += at(p.d_x0 + first);
      at.write(p.d_x0 + first, d_x0);
    });
  }
  if (p.d_keep) {
    const double part_of_x0 = p.x0 ? static_cast<double>(*p.again) * along_x0 : 0.0;
    sums[0] += (along_residual - part_of_x0) / divisor_of_keep(p.keep ? static_cast<double>(*p.keep) : 1.0);
  }
  sums[1] += along_x0;
}

template void add_norm_cpu(const AddNorm<float>&, Range);
template void add_norm_cpu(const AddNorm<double>&, Range);
template void add_norm_backward_cpu(const AddNormBackward<float>&, Range, double*);
template void add_norm_backward_cpu(const AddNormBackward<double>&, Range, double*);

}  // namespace switchyard::kernels
