// Vectors of the processor, loops over rows, and the few functions a kernel needs of them. For the *_cpu.cpp files
// only.
//
// A row loop takes an expression once and runs it on whole vectors, then on the single values left over:
//   each<T>(n, [&](auto at) { at.write(out, at(x) * at(gain)); });
//   T dot = sum<T>(n, [&](auto at) { return at(a) * at(b); });
// The order of every sum is fixed by n alone, so results repeat bitwise and do not depend on how rows are split over
// threads. Vectors are GCC's (and Clang's) vector type, not intrinsics: on a processor without 32-byte registers the
// compiler splits them.
//
// Everything is always_inline: no symbol compiled with the kernels' processor flags may be picked up by other files.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __AVX__
#include <immintrin.h>
#endif

#define SWITCHYARD_INLINE inline __attribute__((always_inline))

namespace switchyard::kernels {

typedef float FloatVector __attribute__((vector_size(32)));
typedef double DoubleVector __attribute__((vector_size(32)));
typedef float HalfFloatVector __attribute__((vector_size(16)));
typedef std::int32_t IntVector __attribute__((vector_size(32)));

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = FloatVector;
};
template <>
struct VectorOf<double> {
  using type = DoubleVector;
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
inline constexpr int kLanes = static_cast<int>(sizeof(Vector<T>) / sizeof(T));

// The value in every lane; V is a vector, float or double.
template <class V>
SWITCHYARD_INLINE V fill(double value) {
  if constexpr (sizeof(V) <= 8) {
    return static_cast<V>(value);
  } else if constexpr (sizeof(V{}[0]) == 4) {
    const float f = static_cast<float>(value);
    return V{f, f, f, f, f, f, f, f};
  } else {
    return V{value, value, value, value};
  }
}

template <class V>
SWITCHYARD_INLINE V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// Where a row loop stands: `at(p)` reads p's values there (floats become T), `write` stores.
template <class T>
struct VectorAt {
  using Value = Vector<T>;
  std::int64_t i;
  template <class S>
  SWITCHYARD_INLINE Value operator()(const S* p) const {
    if constexpr (sizeof(S) == sizeof(T)) {
      return load<Value>(p + i);
    } else {
      return __builtin_convertvector(load<HalfFloatVector>(p + i), DoubleVector);
    }
  }
  SWITCHYARD_INLINE void write(T* p, Value v) const { std::memcpy(p + i, &v, sizeof v); }
  SWITCHYARD_INLINE void add(double* p, Value v) const {
    if constexpr (sizeof(T) == sizeof(double)) {
      write(p, (*this)(p) + v);
    } else {
      HalfFloatVector half[2];
      std::memcpy(half, &v, sizeof v);
      for (int h = 0; h < 2; ++h) {
        const DoubleVector sum = load<DoubleVector>(p + i + 4 * h) + __builtin_convertvector(half[h], DoubleVector);
        std::memcpy(p + i + 4 * h, &sum, sizeof sum);
      }
    }
  }
  static SWITCHYARD_INLINE Value all(double value) { return fill<Value>(value); }
};

template <class T>
struct SingleAt {
  using Value = T;
  std::int64_t i;
  template <class S>
  SWITCHYARD_INLINE T operator()(const S* p) const {
    return static_cast<T>(p[i]);
  }
  SWITCHYARD_INLINE void write(T* p, T v) const { p[i] = v; }
  SWITCHYARD_INLINE void add(double* p, T v) const { p[i] += static_cast<double>(v); }
  static SWITCHYARD_INLINE T all(double value) { return static_cast<T>(value); }
};

template <class T, class F>
SWITCHYARD_INLINE void each(std::int64_t n, F&& body) {
  std::int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) body(VectorAt<T>{i});
  for (; i < n; ++i) body(SingleAt<T>{i});
}

// The sum of term(at) over n values. Four chains of additions hide the latency of one.
template <class T, class F>
SWITCHYARD_INLINE T sum(std::int64_t n, F&& term) {
  constexpr int lanes = kLanes<T>;
  Vector<T> a{}, b{}, c{}, d{};
  std::int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    a += term(VectorAt<T>{i});
    b += term(VectorAt<T>{i + lanes});
    c += term(VectorAt<T>{i + 2 * lanes});
    d += term(VectorAt<T>{i + 3 * lanes});
  }
  for (; i + lanes <= n; i += lanes) a += term(VectorAt<T>{i});
  a = (a + b) + (c + d);
  T total = 0;
  for (int lane = 0; lane < lanes; ++lane) total += a[lane];
  for (; i < n; ++i) total += term(SingleAt<T>{i});
  return total;
}

// The largest of n > 0 values.
template <class T>
SWITCHYARD_INLINE T largest(const T* x, std::int64_t n) {
  constexpr int lanes = kLanes<T>;
  T best = x[0];
  std::int64_t i = 0;
  if (n >= 2 * lanes) {
    Vector<T> a = load<Vector<T>>(x), b = load<Vector<T>>(x + lanes);
    for (i = 2 * lanes; i + 2 * lanes <= n; i += 2 * lanes) {
      const Vector<T> u = load<Vector<T>>(x + i), v = load<Vector<T>>(x + i + lanes);
      a = u > a ? u : a;
      b = v > b ? v : b;
    }
    a = a > b ? a : b;
    for (int lane = 0; lane < lanes; ++lane) best = a[lane] > best ? a[lane] : best;
  }
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// ---- functions: float by polynomials of our own (fitted by Remez exchange), double lane by lane from std ----
// NaN gives NaN everywhere.

template <class V, class F>
SWITCHYARD_INLINE V by_lane(V x, F&& f) {
  if constexpr (sizeof(V) <= 8) {
    return f(x);
  } else {
    V y;
    for (int lane = 0; lane < static_cast<int>(sizeof(V) / sizeof(double)); ++lane) y[lane] = f(x[lane]);
    return y;
  }
}

// e^x. float: relative error below 1.5e-7; 0 below -86.9 (no subnormal results), infinity from 88.73 on.
SWITCHYARD_INLINE FloatVector fast_exp(FloatVector x) {
  x = x < -87.5f ? fill<FloatVector>(-87.5) : x;
  x = x > 89.0f ? fill<FloatVector>(89.0) : x;
  const FloatVector shift = fill<FloatVector>(12582912.0);  // 1.5 * 2^23: the addition rounds to an integer
  const FloatVector shifted = x * 1.44269504f + shift;
  const FloatVector n = shifted - shift;
  const FloatVector r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts, the first exact times n
  FloatVector q = r * 0.00138141718684f + 0.00836892176135f;
  q = q * r + 0.0416684080026f;
  q = q * r + 0.166665189391f;
  q = q * r + 0.499999933335f;
  const FloatVector mantissa = (q * (r * r) + r) + 1.0f;
  // 2^(n-1), so that n = 128 fits an exponent; n = -126 gives the exponent 0, which is the value 0.
  const IntVector exponent = ((IntVector)shifted - 0x4B400000 + 126) << 23;
  return (mantissa + mantissa) * (FloatVector)exponent;
}

// 1 / (1 + e^-x). float: relative error below 3e-7.
SWITCHYARD_INLINE FloatVector fast_sigmoid(FloatVector x) { return 1.0f / (1.0f + fast_exp(-x)); }

// float: relative error below 4e-7.
SWITCHYARD_INLINE FloatVector fast_tanh(FloatVector x) {
  const FloatVector size = x < 0.0f ? -x : x, square = x * x;
  FloatVector p = square * -0.00589515680963f + 0.0207959705442f;
  p = p * square - 0.0537838299394f;
  p = p * square + 0.133319241228f;
  p = p * square - 0.33333298002f;
  const FloatVector small = x * square * p + x;
#ifdef __AVX__
  // The usual case of a capped logit: no lane needs the exponential.
  if (_mm256_movemask_ps((__m256)(size < 0.6f)) == 0xFF) return small;
#endif
  const FloatVector large = 1.0f - 2.0f / (fast_exp(size + size) + 1.0f);
  return size < 0.6f ? small : x < 0.0f ? -large : large;
}

// The normal distribution's cdf and density, which are all that gelu and its derivative need.
template <class V>
struct Normal {
  V cdf, density;
};
// float: cdf within 3e-7 absolutely; relative to it, within 1e-6 for x > -5.
SWITCHYARD_INLINE Normal<FloatVector> fast_normal(FloatVector x) {
  const FloatVector size = (x < 0.0f ? -x : x) * 0.707106781187f;
  const FloatVector bell = fast_exp(x * x * -0.5f);
  // erfc(u) e^(u^2) / t as a polynomial in t = 1 / (1 + 0.4 u)
  const FloatVector t = 1.0f / (size * 0.4f + 1.0f);
  FloatVector p = t * 0.0460865803082f - 0.16361920775f;
  p = p * t + 0.131617660444f;
  p = p * t + 0.0342028787366f;
  p = p * t + 0.116279813805f;
  p = p * t + 0.178154109585f;
  p = p * t + 0.205688057711f;
  p = p * t + 0.225926773808f;
  p = p * t + 0.225663421698f;
  const FloatVector tail = 0.5f * (p * t * bell);
  return {x < 0.0f ? tail : 1.0f - tail, bell * 0.398942280401f};
}

// One float: the vector's arithmetic, so that a value gives the same result wherever in a row it stands.
SWITCHYARD_INLINE float fast_exp(float x) { return fast_exp(fill<FloatVector>(x))[0]; }
SWITCHYARD_INLINE float fast_sigmoid(float x) { return fast_sigmoid(fill<FloatVector>(x))[0]; }
SWITCHYARD_INLINE float fast_tanh(float x) { return fast_tanh(fill<FloatVector>(x))[0]; }
SWITCHYARD_INLINE Normal<float> fast_normal(float x) {
  const Normal<FloatVector> n = fast_normal(fill<FloatVector>(x));
  return {n.cdf[0], n.density[0]};
}

#define SWITCHYARD_DOUBLE_FORMS(V)                                                                 \
  SWITCHYARD_INLINE V fast_exp(V x) {                                                              \
    return by_lane(x, [](double v) { return std::exp(v); });                                       \
  }                                                                                                \
  SWITCHYARD_INLINE V fast_sigmoid(V x) { return 1.0 / (1.0 + fast_exp(-x)); }                     \
  SWITCHYARD_INLINE V fast_tanh(V x) {                                                             \
    return by_lane(x, [](double v) { return std::tanh(v); });                                      \
  }                                                                                                \
  SWITCHYARD_INLINE Normal<V> fast_normal(V x) {                                                   \
    return {by_lane(x, [](double v) { return 0.5 * std::erfc(v * -0.70710678118654752440); }),     \
            by_lane(x, [](double v) { return std::exp(-0.5 * v * v) * 0.39894228040143267794; })}; \
  }
SWITCHYARD_DOUBLE_FORMS(double)
SWITCHYARD_DOUBLE_FORMS(DoubleVector)
#undef SWITCHYARD_DOUBLE_FORMS

}  // namespace switchyard::kernels
