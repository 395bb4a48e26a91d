#include "kernels/qkv_rope.h"
#include "kernels/vector_math.h"

namespace switchyard::kernels {
namespace {

// 1 / rms of a head's channels; 1 where norms are off.
template <class T>
SWITCHYARD_INLINE T inverse_rms(const T* in, int channels, bool norm, T eps) {
  if (!norm) return T(1);
  const T squares = sum<T>(channels, [&](auto at) { return at(in) * at(in); });
  return T(1) / std::sqrt(squares / static_cast<T>(channels) + eps);
}

template <class T>
SWITCHYARD_INLINE void norm_and_rotate(const T* in, T* out, const float* cos, const float* sin, int channels, bool norm,
                                       T eps) {
  const int half = channels / 2;
  const T inverse = inverse_rms(in, channels, norm, eps);
  each<T>(half, [&](auto at) {
    const auto a = at(in) * at.all(inverse), b = at(in + half) * at.all(inverse);
    const auto c = at(cos), s = at(sin);
    at.write(out, a * c + b * s);
    at.write(out + half, b * c - a * s);
  });
}

// The rotation is orthogonal: its gradient is the rotation back. With y = in / rms, d_in = (d_y - y <d_y, y> / C) /
// rms.
template <class T>
SWITCHYARD_INLINE void norm_and_rotate_backward(const T* in, const T* d_out, T* d_in, const float* cos,
                                                const float* sin, int channels, bool norm, T eps) {
  const int half = channels / 2;
  const T inverse = inverse_rms(in, channels, norm, eps);
  const auto first = [&](auto at) { return at(d_out) * at(cos) - at(d_out + half) * at(sin); };
  const auto second = [&](auto at) { return at(d_out) * at(sin) + at(d_out + half) * at(cos); };
  T share = 0;
  if (norm) {
    share = inverse * inverse * inverse / static_cast<T>(channels) *
            sum<T>(half, [&](auto at) { return first(at) * at(in) + second(at) * at(in + half); });
  }
  each<T>(half, [&](auto at) {
    const auto a = first(at) * at.all(inverse) - at(in) * at.all(share);
    const auto b = second(at) * at.all(inverse) - at(in + half) * at.all(share);
    at.write(d_in, a);
    at.write(d_in + half, b);
  });
}

// Where the parts of one token's row of qkv begin, and its place in the rotation tables.
struct Row {
  std::int64_t q, k, v, table;
};
template <class P>
SWITCHYARD_INLINE Row row_of_token(const P& p, std::int64_t t) {
  const std::int64_t start = t * (p.heads + 2 * p.kv_heads) * p.head_dim;
  const std::int64_t k = start + static_cast<std::int64_t>(p.heads) * p.head_dim;
  return {start, k, k + static_cast<std::int64_t>(p.kv_heads) * p.head_dim, t % p.seq_len * (p.head_dim / 2)};
}

}  // namespace

template <class T>
void qkv_rope_cpu(const QkvRope<T>& p, Range tokens) {
  const int channels = p.head_dim;
  const T eps = static_cast<T>(p.eps);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const Row row = row_of_token(p, t);
    const float *cos = p.cos + row.table, *sin = p.sin + row.table;
    for (int h = 0; h < p.heads; ++h) {
      norm_and_rotate(p.qkv + row.q + h * channels, p.q + (t * p.heads + h) * channels, cos, sin, channels, p.norm,
                      eps);
    }
    for (int j = 0; j < p.kv_heads; ++j) {
      const std::int64_t to = (t * p.kv_heads + j) * channels;
      norm_and_rotate(p.qkv + row.k + j * channels, p.k + to, cos, sin, channels, p.norm, eps);
      const T* v = p.qkv + row.v + j * channels;
      if (p.value) {
        const T factor = T(2) * fast_sigmoid(p.gate[t * p.kv_heads + j]);
        each<T>(channels, [&](auto at) { at.write(p.v + to, at(v) + at.all(factor) * at(p.value + to)); });
      } else {
        std::memcpy(p.v + to, v, sizeof(T) * static_cast<std::size_t>(channels));
      }
    }
  }
}

template <class T>
void qkv_rope_backward_cpu(const QkvRopeBackward<T>& p, Range tokens) {
  const int channels = p.head_dim;
  const T eps = static_cast<T>(p.eps);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const Row row = row_of_token(p, t);
    const float *cos = p.cos + row.table, *sin = p.sin + row.table;
    for (int h = 0; h < p.heads; ++h) {
      const std::int64_t at = row.q + h * channels;
      norm_and_rotate_backward(p.qkv + at, p.d_q + (t * p.heads + h) * channels, p.d_qkv + at, cos, sin, channels,
                               p.norm, eps);
    }
    for (int j = 0; j < p.kv_heads; ++j) {
      const std::int64_t from = (t * p.kv_heads + j) * channels, at = row.k + j * channels;
      norm_and_rotate_backward(p.qkv + at, p.d_k + from, p.d_qkv + at, cos, sin, channels, p.norm, eps);
      std::memcpy(p.d_qkv + row.v + j * channels, p.d_v + from, sizeof(T) * static_cast<std::size_t>(channels));
      if (!p.value) continue;
      const T open = fast_sigmoid(p.gate[t * p.kv_heads + j]);
      if (p.d_gate) {
        const T dot = sum<T>(channels, [&](auto at_) { return at_(p.d_v + from) * at_(p.value + from); });
        p.d_gate[t * p.kv_heads + j] = T(2) * open * (T(1) - open) * dot;
      }
      if (p.d_value) {
        each<T>(channels, [&](auto at_) { at_.write(p.d_value + from, at_(p.d_v + from) * at_.all(T(2) * open)); });
      }
    }
  }
}

template void qkv_rope_cpu(const QkvRope<float>&, Range);
template void qkv_rope_cpu(const QkvRope<double>&, Range);
template void qkv_rope_backward_cpu(const QkvRopeBackward<float>&, Range);
template void qkv_rope_backward_cpu(const QkvRopeBackward<double>&, Range);

}  // namespace switchyard::kernels
