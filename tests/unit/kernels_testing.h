// What the tests of the CPU kernels share: buffers, comparisons, finite differences.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/types.h"

namespace switchyard::kernels {

// Outputs start as NaN: what a kernel does not write shows.
template <class T>
std::vector<T> unwritten(std::int64_t n) {
  return std::vector<T>(static_cast<std::size_t>(n), std::numeric_limits<T>::quiet_NaN());
}

// Normal values that a float holds exactly, so that both types compute with the same input.
template <class T>
std::vector<T> normal(std::int64_t n, unsigned seed, double scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> draw(0, scale);
  std::vector<T> values(static_cast<std::size_t>(n));
  for (T& v : values) v = static_cast<T>(static_cast<float>(draw(generator)));
  return values;
}

// The largest |a - b| / (1 + |b|); NaN where either holds a NaN that the other does not.
template <class A, class B>
double distance(const std::vector<A>& a, const std::vector<B>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (std::isnan(x) && std::isnan(y)) continue;
    if (std::isnan(x) || std::isnan(y)) return std::numeric_limits<double>::quiet_NaN();
    largest = std::max(largest, std::abs(x - y) / (1 + std::abs(y)));
  }
  return largest;
}

#define EXPECT_CLOSE(a, b, tolerance) EXPECT_LE(distance(a, b), tolerance) << #a " against " #b

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class A, class B>
double dot(const std::vector<A>& a, const std::vector<B>& b) {
  double total = 0;
  for (std::size_t i = 0; i < a.size(); ++i) total += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return total;
}

// The work in one piece, or in three of odd sizes.
template <class F>
void in_pieces(std::int64_t n, bool split, F&& work) {
  if (!split) return work(Range{0, n});
  const std::int64_t a = n / 3, b = n - (n + 4) / 5;
  work(Range{0, a});
  work(Range{a, std::max(a, b)});
  work(Range{std::max(a, b), n});
}

// The gradient of loss() by each x (all, or about `probes` of them) against finite differences with a five-point
// stencil; its error is of order step^4, so that floats can be perturbed too.
template <class X, class G, class F>
void expect_gradient(std::vector<X>& x, const std::vector<G>& gradient, F&& loss, const std::string& what,
                     double step = 1.0 / 256, std::size_t probes = 40) {
  ASSERT_EQ(x.size(), gradient.size()) << what;
  const std::size_t stride = std::max<std::size_t>(1, x.size() / probes);
  for (std::size_t i = 0; i < x.size(); i += stride) {
    const X kept = x[i];
    const auto at = [&](double offset) {
      x[i] = static_cast<X>(kept + offset);
      return std::pair<double, double>(static_cast<double>(x[i]) - static_cast<double>(kept), loss());
    };
    const auto far_below = at(-2 * step), below = at(-step), above = at(step), far_above = at(2 * step);
    x[i] = kept;
    const double near = (above.second - below.second) / (above.first - below.first);
    const double far = (far_above.second - far_below.second) / (far_above.first - far_below.first);
    const double expected = (4 * near - far) / 3;
    EXPECT_NEAR(static_cast<double>(gradient[i]), expected, 1e-6 * (1 + std::abs(expected))) << what << " at " << i;
  }
}

}  // namespace switchyard::kernels
