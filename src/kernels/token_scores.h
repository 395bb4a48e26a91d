// kernels/token_scores.h: one token's scores on the CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/router.h"
#include "kernels/vector_math.h"

namespace switchyard::kernels {

// Guards both divisions against a sum of 0: w / (sum + tiny), and s / sum s for sigmoid scores that all underflow.
inline constexpr double kTiny = 1e-20;

// One token's scores. Rows are padded to whole vectors with logits of -infinity, so that equal logits take the same
// instructions and get bit-equal scores wherever they stand: ties depend on that.
template <class T>
class TokenScores {
 public:
  TokenScores(int experts, Score score)
      : experts_(experts),
        padded_((experts + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        kind_(score),
        logit_(padded_, -std::numeric_limits<T>::infinity()),
        softmax_(padded_),
        sigmoid_(padded_) {}

  void read(const T* logits) {
    std::copy_n(logits, experts_, logit_.data());
    const T best = largest(logits, experts_);
    const T total = sum<T>(padded_, [&](auto at) {
      const auto e = fast_exp(at(logit_.data()) - at.all(best));
      at.write(softmax_.data(), e);
      return e;
    });
    const T inverse = T(1) / total;
    each<T>(padded_, [&](auto at) { at.write(softmax_.data(), at(softmax_.data()) * at.all(inverse)); });
    log_sum_ = best + std::log(total);
    if (kind_ != Score::kSigmoid) return;
    sigmoid_sum_ = static_cast<T>(kTiny) + sum<T>(padded_, [&](auto at) {
                     const auto s = fast_sigmoid(at(logit_.data()));
                     at.write(sigmoid_.data(), s);
                     return s;
                   });
  }

  const T* softmax() const { return softmax_.data(); }
  const T* score() const {
    return kind_ == Score::kSoftmax ? softmax_.data() : kind_ == Score::kSigmoid ? sigmoid_.data() : logit_.data();
  }
  T probability(int e) const { return kind_ == Score::kSigmoid ? sigmoid_[e] / sigmoid_sum_ : softmax_[e]; }
  T sigmoid_sum() const { return sigmoid_sum_; }
  T log_sum() const { return log_sum_; }

 private:
  int experts_, padded_;
  Score kind_;
  std::vector<T> logit_, softmax_, sigmoid_;
  T log_sum_ = 0, sigmoid_sum_ = 0;
};

}  // namespace switchyard::kernels
