#include "kernels/qkv_rope.h"
#include "kernels/vector_math.h"

namespace switchyard::kernels {
namespace {

template <class T>
SWITCHYARD_INLINE void rotate(T* head, const float* cos, const float* sin, int half, T factor) {
  each<T>(half, [&](auto at) {
    const auto a = at(head) * at.all(factor), b = at(head + half) * at.all(factor);
    const auto c = at(cos), s = at(sin);
    at.write(head, a * c + b * s);
    at.write(head + half, b * c - a * s);
  });
}

// The rotation is orthogonal: its gradient is the rotation back. With y = R in / rms,
// d_in = R' (d_y - y <d_y, y> / C) / rms.
template <class T>
SWITCHYARD_INLINE void rotate_back(const T* out, T* d, const float* cos, const float* sin, int half, bool norm,
                                   T inverse) {
  T along = 0;
  if (norm) along = sum<T>(2 * half, [&](auto at) { return at(d) * at(out); }) / static_cast<T>(2 * half);
  each<T>(half, [&](auto at) {
    auto a = at(d), b = at(d + half);
    if (norm) {
      a = (a - at(out) * at.all(along)) * at.all(inverse);
      b = (b - at(out + half) * at.all(along)) * at.all(inverse);
    }
    const auto c = at(cos), s = at(sin);
    at.write(d, a * c - b * s);
    at.write(d + half, a * s + b * c);
  });
}

std::int64_t table_row(const QkvHeads& size, std::int64_t token) { return token % size.seq_len * (size.head_dim / 2); }

}  // namespace

template <class T>
void qkv_rope_cpu(const QkvRope<T>& p, Range tokens) {
  const QkvHeads& size = p.size;
  const int channels = size.head_dim;
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const std::int64_t table = table_row(size, t);
    for (int h = 0; h < size.rotated(); ++h) {
      T* head = p.qkv + t * size.width() + h * channels;
      T inverse = 1;
      if (p.inverse_rms) {
        const T squares = sum<T>(channels, [&](auto at) { return at(head) * at(head); });
        inverse = T(1) / std::sqrt(squares / static_cast<T>(channels) + static_cast<T>(p.eps));
        p.inverse_rms[t * size.rotated() + h] = static_cast<float>(inverse);
      }
      rotate(head, p.cos + table, p.sin + table, channels / 2, inverse);
    }
  }
}

template <class T>
void qkv_rope_backward_cpu(const QkvRopeBackward<T>& p, Range tokens) {
  const QkvHeads& size = p.size;
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const std::int64_t table = table_row(size, t);
    for (int h = 0; h < size.rotated(); ++h) {
      const std::int64_t at = t * size.width() + h * size.head_dim;
      const bool norm = p.inverse_rms != nullptr;
      rotate_back(p.qkv + at, p.d_qkv + at, p.cos + table, p.sin + table, size.head_dim / 2, norm,
                  norm ? static_cast<T>(p.inverse_rms[t * size.rotated() + h]) : T(1));
    }
  }
}

template <class T>
void value_embeddings_cpu(const ValueEmbeddings<T>& p, Range tokens) {
  const QkvHeads& size = p.size;
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t)
    for (int j = 0; j < size.kv_heads; ++j) {
      const std::int64_t head = t * size.kv_heads + j;
      const T* value = p.value + head * size.head_dim;
      T* v = p.qkv + t * size.width() + (size.rotated() + j) * size.head_dim;
      const T factor = T(2) * fast_sigmoid(p.gate[head]);
      each<T>(size.head_dim, [&](auto at) { at.write(v, at(v) + at.all(factor) * at(value)); });
    }
}

template <class T>
void value_embeddings_backward_cpu(const ValueEmbeddingsBackward<T>& p, Range tokens) {
  const QkvHeads& size = p.size;
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t)
    for (int j = 0; j < size.kv_heads; ++j) {
      const std::int64_t head = t * size.kv_heads + j;
      const T *value = p.value + head * size.head_dim,
              *d_v = p.d_qkv + t * size.width() + (size.rotated() + j) * size.head_dim;
      T* d_value = p.d_value + head * size.head_dim;
      const T open = fast_sigmoid(p.gate[head]);
      const T dot = sum<T>(size.head_dim, [&](auto at) { return at(d_v) * at(value); });
      p.d_gate[head] = T(2) * open * (T(1) - open) * dot;
      each<T>(size.head_dim, [&](auto at) { at.write(d_value, at(d_v) * at.all(T(2) * open)); });
    }
}

template void qkv_rope_cpu(const QkvRope<float>&, Range);
template void qkv_rope_cpu(const QkvRope<double>&, Range);
template void qkv_rope_backward_cpu(const QkvRopeBackward<float>&, Range);
template void qkv_rope_backward_cpu(const QkvRopeBackward<double>&, Range);
template void value_embeddings_cpu(const ValueEmbeddings<float>&, Range);
template void value_embeddings_cpu(const ValueEmbeddings<double>&, Range);
template void value_embeddings_backward_cpu(const ValueEmbeddingsBackward<float>&, Range);
template void value_embeddings_backward_cpu(const ValueEmbeddingsBackward<double>&, Range);

}  // namespace switchyard::kernels
