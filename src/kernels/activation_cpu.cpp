#include "kernels/activation.h"
#include "kernels/vector_math.h"

namespace switchyard::kernels {
namespace {

// act and its derivative; for gated kinds those of the gate's function, which the value multiplies.
template <class V>
struct Curve {
  V y, slope;
};

template <ActivationKind kind, class V>
SWITCHYARD_INLINE Curve<V> curve(V x) {
  if constexpr (kind == ActivationKind::kRelu2) {
    const V positive = x < V{} ? V{} : x;  // in this order NaN stays NaN
    return {positive * positive, positive + positive};
  } else if constexpr (kind == ActivationKind::kSwiglu) {
    const V s = fast_sigmoid(x), y = x * s;
    return {y, s + y * (fill<V>(1) - s)};
  } else {
    const Normal<V> n = fast_normal(x);
    return {x * n.cdf, n.cdf + x * n.density};
  }
}

template <class P>
SWITCHYARD_INLINE Range real_rows(const P& p, Range rows) {
  const std::int64_t count = p.row_count ? *p.row_count : p.rows;
  return {rows.begin, rows.end < count ? rows.end : count};
}

template <ActivationKind kind, class T>
void forward(const Activation<T>& p, Range rows) {
  constexpr bool gated = is_gated(kind);
  const std::int64_t width = p.width, in_width = gated ? 2 * width : width;
  rows = real_rows(p, rows);
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    T* out = p.out + r * width;
    if (p.row_token && p.row_token[r] < 0) {
      std::memset(out, 0, sizeof(T) * static_cast<std::size_t>(width));
      continue;
    }
    const T* pre = p.pre + r * in_width;
    const T weight = p.weight ? static_cast<T>(p.weight[r]) : T(1);
    each<T>(width, [&](auto at) {
      auto y = curve<kind>(at(pre)).y;
      if constexpr (gated) y *= at(pre + width);
      at.write(out, y * at.all(weight));
    });
  }
}

// One row; returns <d_out, act(pre)>. The next row is fetched meanwhile: a row is about a page, at whose end the
// processor's own fetching ahead stops.
template <ActivationKind kind, class T>
SWITCHYARD_INLINE T backward_row(const T* pre, const T* d_out, T weight, std::int64_t width, T* d_pre, T* again) {
  constexpr int parts = is_gated(kind) ? 2 : 1;
  return sum<T>(width, [&](auto at) {
    for (int part = parts; part < 2 * parts; ++part) {
      __builtin_prefetch(pre + at.i + part * width);
      __builtin_prefetch(d_pre + at.i + part * width, 1);
    }
    const auto d = at(d_out), weighted = d * at.all(weight);
    const auto c = curve<kind>(at(pre));
    auto y = c.y;
    if constexpr (is_gated(kind)) {
      const auto value = at(pre + width);
      at.write(d_pre, weighted * c.slope * value);
      at.write(d_pre + width, weighted * y);
      y *= value;
    } else {
      at.write(d_pre, weighted * c.slope);
    }
    if (again) at.write(again, y * at.all(weight));  // after d_out was read: they may be the same row
    return d * y;
  });
}

template <ActivationKind kind, class T>
void backward(const ActivationBackward<T>& p, Range rows) {
  const std::int64_t width = p.width, in_width = is_gated(kind) ? 2 * width : width;
  rows = real_rows(p, rows);
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    T* d_pre = p.d_pre + r * in_width;
    T* again = p.again ? p.again + r * width : nullptr;
    if (p.row_token && p.row_token[r] < 0) {
      std::memset(d_pre, 0, sizeof(T) * static_cast<std::size_t>(in_width));
      if (again) std::memset(again, 0, sizeof(T) * static_cast<std::size_t>(width));
      if (p.d_weight) p.d_weight[r] = 0;
      continue;
    }
    const T weight = p.weight ? static_cast<T>(p.weight[r]) : T(1);
    const T d_weight = backward_row<kind>(p.pre + r * in_width, p.d_out + r * width, weight, width, d_pre, again);
    if (p.d_weight) p.d_weight[r] = static_cast<float>(d_weight);
  }
}

}  // namespace

template <class T>
void activation_cpu(const Activation<T>& p, Range rows) {
  switch (p.kind) {
    case ActivationKind::kRelu2:
      return forward<ActivationKind::kRelu2>(p, rows);
    case ActivationKind::kGelu:
      return forward<ActivationKind::kGelu>(p, rows);
    case ActivationKind::kSwiglu:
      return forward<ActivationKind::kSwiglu>(p, rows);
    case ActivationKind::kGeglu:
      return forward<ActivationKind::kGeglu>(p, rows);
  }
}

template <class T>
void activation_backward_cpu(const ActivationBackward<T>& p, Range rows) {
  switch (p.kind) {
    case ActivationKind::kRelu2:
      return backward<ActivationKind::kRelu2>(p, rows);
    case ActivationKind::kGelu:
      return backward<ActivationKind::kGelu>(p, rows);
    case ActivationKind::kSwiglu:
      return backward<ActivationKind::kSwiglu>(p, rows);
    case ActivationKind::kGeglu:
      return backward<ActivationKind::kGeglu>(p, rows);
  }
}

template void activation_cpu(const Activation<float>&, Range);
template void activation_cpu(const Activation<double>&, Range);
template void activation_backward_cpu(const ActivationBackward<float>&, Range);
template void activation_backward_cpu(const ActivationBackward<double>&, Range);

}  // namespace switchyard::kernels
