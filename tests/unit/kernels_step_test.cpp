// Dropout and AdamW on the CPU.
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/dropout.h"
#include "kernels_testing.h"

namespace switchyard::kernels {
namespace {

// ---- dropout ----

struct DropoutRun {
  std::int64_t tokens = 60, step = 7;
  int seq_len = 20, width = 64;
  float p = 0.3f;
  std::uint64_t seed = 11, site = 2;
  std::vector<std::int64_t> window = {5, 900, 17};

  template <class T>
  std::vector<T> mask(bool split = false) const {
    std::vector<T> x(tokens * width, T(1)), out = unwritten<T>(tokens * width);
    const Dropout<T> call{x.data(), out.data(), window.data(), &step, seed, site, tokens, seq_len, width, p};
    in_pieces(tokens, split, [&](Range r) { dropout_cpu(call, r); });
    return out;
  }
};

TEST(Dropout, RateScaleAndRepeatability) {
  for (const float p : {0.0f, 0.1f, 0.5f, 0.9f, 1.0f}) {
    DropoutRun run;
    run.p = p;
    const std::vector<float> mask = run.mask<float>();
    double kept = 0;
    for (const float m : mask) {
      ASSERT_TRUE(m == 0 || m == 1 / (1 - p)) << m;
      kept += m != 0;
    }
    const double n = static_cast<double>(mask.size());
    EXPECT_NEAR(kept / n, 1 - p, 4 * std::sqrt(p * (1 - p) / n)) << p;
    EXPECT_TRUE(same_bits(mask, run.mask<float>()) && same_bits(mask, run.mask<float>(true))) << p;
    EXPECT_CLOSE(mask, run.mask<double>(), 1e-6);
  }
}

TEST(Dropout, TheMaskBelongsToSeedStepSiteWindowAndPosition) {
  const DropoutRun base;
  const std::vector<float> mask = base.mask<float>();
  DropoutRun seed = base, step = base, site = base, window = base;
  ++seed.seed, ++step.step, ++site.site, window.window = {6, 901, 18};
  for (const DropoutRun& other : {seed, step, site, window}) EXPECT_FALSE(same_bits(mask, other.mask<float>()));

  DropoutRun last = base;  // the third sequence alone, as another rank would see it
  last.tokens = 20, last.window = {17};
  EXPECT_TRUE(same_bits(last.mask<float>(), std::vector<float>(mask.begin() + 40 * 64, mask.end())));

  std::vector<float> x = normal<float>(base.tokens * base.width, 1), in_place = x;
  dropout_cpu(Dropout<float>{in_place.data(), in_place.data(), base.window.data(), &base.step, base.seed, base.site,
                             base.tokens, base.seq_len, base.width, base.p},
              {0, base.tokens});
  for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(in_place[i], mask[i] == 0 ? 0 : x[i] * mask[i]);
}

TEST(Dropout, ADroppedNanIsGone) {
  DropoutRun run;
  std::vector<float> x(run.tokens * run.width, std::numeric_limits<float>::quiet_NaN()), out = x;
  run.p = 1.0f;
  dropout_cpu(Dropout<float>{x.data(), out.data(), run.window.data(), &run.step, run.seed, run.site, run.tokens,
                             run.seq_len, run.width, run.p},
              {0, run.tokens});
  EXPECT_EQ(out, std::vector<float>(x.size()));
}

// ---- adamw ----

struct AdamwRun {
  std::int64_t count;
  std::vector<float> weight = normal<float>(count, 1), grad = normal<float>(count, 2),
                     first = std::vector<float>(count), second = std::vector<float>(count);
  std::vector<bf16> copy = std::vector<bf16>(count, bf16{0x1234});
  float schedule = 0.5f, grad_factor = 0.25f;
  std::int64_t applied = 0;
  int apply = 1;

  void step(bool split = false) {
    applied += apply;
    const AdamwTensor tensor{weight.data(), grad.data(), first.data(), second.data(), copy.data(),
                             count,         0.02f,       0.8f,         0.1f};
    const AdamwStep p{&tensor, 1, count, &schedule, &grad_factor, &applied, &apply, 0.95f, 1e-8f};
    in_pieces(count, split, [&](Range r) { adamw_cpu(p, 0, r); });
  }
};

TEST(Adamw, ClosedForm) {
  for (const std::int64_t count : {1, 7, 8, 1000}) {
    AdamwRun run{count}, pieces{count};
    std::vector<double> w(run.weight.begin(), run.weight.end()), m(count), v(count);
    for (int n = 1; n <= 5; ++n) {
      run.grad = pieces.grad = normal<float>(count, 10 + n);
      run.step();
      pieces.step(true);
      for (std::int64_t i = 0; i < count; ++i) {
        const double g = 0.25 * run.grad[i], b1 = 0.8f, b2 = 0.95f;
        m[i] = b1 * m[i] + (1 - b1) * g;
        v[i] = b2 * v[i] + (1 - b2) * g * g;
        const double direction = m[i] / (1 - std::pow(b1, n)) / (std::sqrt(v[i] / (1 - std::pow(b2, n))) + 1e-8);
        w[i] -= 0.5 * 0.02 * (direction + 0.1 * w[i]);
      }
    }
    EXPECT_CLOSE(run.weight, w, 2e-6);
    EXPECT_CLOSE(run.first, m, 1e-6);
    EXPECT_CLOSE(run.second, v, 1e-6);
    EXPECT_TRUE(same_bits(run.weight, pieces.weight) && same_bits(run.second, pieces.second));
  }
}

TEST(Adamw, TheCopyIsTheWeightRoundedToEven) {
  struct Case {
    std::uint32_t weight;
    std::uint16_t expected;
  };
  const std::vector<Case> cases = {{0x3F800000, 0x3F80}, {0x3F808000, 0x3F80}, {0x3F818000, 0x3F82},
                                   {0x3F808001, 0x3F81}, {0xBF80FFFF, 0xBF81}, {0x7F7FFFFF, 0x7F80},
                                   {0x7F800000, 0x7F80}};
  AdamwRun run{static_cast<std::int64_t>(cases.size())};
  run.schedule = 0;  // weights stay
  for (std::size_t i = 0; i < cases.size(); ++i) std::memcpy(&run.weight[i], &cases[i].weight, 4);
  run.weight.push_back(std::numeric_limits<float>::quiet_NaN());
  run.grad.push_back(0), run.first.push_back(0), run.second.push_back(0), run.copy.push_back(bf16{0}), ++run.count;
  run.step();
  for (std::size_t i = 0; i < cases.size(); ++i) {
    if (i != 6) { EXPECT_EQ(run.copy[i].bits, cases[i].expected) << i; }  // 0 * infinity is NaN
  }
  EXPECT_GT(run.copy[6].bits & 0x7FFF, 0x7F80);
  EXPECT_GT(run.copy.back().bits & 0x7FFF, 0x7F80);
}

TEST(Adamw, NothingIsStoredWhileApplyIsZero) {
  AdamwRun run{100};
  run.step();
  AdamwRun before = run;
  std::fill(run.grad.begin(), run.grad.end(), std::numeric_limits<float>::quiet_NaN());
  run.apply = 0;
  run.step();
  EXPECT_TRUE(same_bits(run.weight, before.weight) && same_bits(run.first, before.first) &&
              same_bits(run.second, before.second) && same_bits(run.copy, before.copy));
  run.grad = before.grad = normal<float>(100, 5);
  run.apply = 1;
  run.step();
  before.step();
  EXPECT_TRUE(same_bits(run.weight, before.weight));  // the skipped step does not count in the correction
}

}  // namespace
}  // namespace switchyard::kernels
