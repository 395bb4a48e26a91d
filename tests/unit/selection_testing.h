// What the tests of choices share: devices, draws, rules.
#pragma once

#include <limits>
#include <vector>

#include "ops/selection.h"

namespace switchyard::ops {

inline constexpr float kNever = -std::numeric_limits<float>::infinity();

inline std::vector<at::Device> devices() {
  std::vector<at::Device> list{at::kCPU};
  if (at::hasCUDA()) list.push_back(at::Device(at::kCUDA, 0));
  return list;
}

inline Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed, at::ScalarType type = at::kFloat) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble).to(type);
}

inline double largest_difference(const Tensor& a, const Tensor& b) {
  return (a.detach() - b.detach()).abs().max().item<double>();
}

inline RoutingRule rule_of(int top_k, int seq_len, Score score = Score::kSoftmax) {
  RoutingRule rule;
  rule.top_k = top_k;
  rule.seq_len = seq_len;
  rule.score = score;
  return rule;
}

inline DropoutKey key_of(std::vector<std::int64_t> windows, int seq_len, std::int64_t step = 3,
                         at::Device device = at::kCPU) {
  return {7, at::full({1}, step, at::kLong).to(device), at::tensor(windows, at::kLong).to(device), seq_len};
}

}  // namespace switchyard::ops
