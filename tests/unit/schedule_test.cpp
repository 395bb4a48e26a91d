#include "optim/schedule.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace switchyard {
namespace {

constexpr ModelSize kD12{110176512, 774305280};

TEST(Steps, FirstSetWins) {
  struct Case {
    const char* name;
    int steps;
    double flops, ratio;
    std::int64_t expected;
  };
  for (const Case& c : {Case{"steps", 7, 1e18, 8.25, 7}, Case{"flops", 0, 774305280.0 * 524288 * 12.5, 8.25, 12},
                        Case{"ratio of the d12 run", 0, 0, 8.25, 1733}, Case{"default ratio", 0, 0, 10.5, 2206},
                        Case{"less than a step", 0, 1, 0, 1}}) {
    TrainConfig train;
    train.steps = c.steps;
    train.target_flops = c.flops;
    train.target_param_data_ratio = c.ratio;
    EXPECT_EQ(resolve_steps(train, kD12), c.expected) << c.name;
  }
}

TEST(Steps, NoneSetNamesTheKeys) {
  TrainConfig train;
  train.target_param_data_ratio = 0;
  try {
    resolve_steps(train, kD12);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("train.target_param_data_ratio"), std::string::npos);
  }
}

struct RateCase {
  const char* shape;
  int warmup;
  double warmdown, final_fraction;
  std::int64_t step, steps;
  double expected;
};

TEST(LearningRate, Corners) {
  const RateCase cases[] = {
      {"linear", 0, 0.5, 0, 0, 100, 1},     {"linear", 0, 0.5, 0, 50, 100, 1},
      {"linear", 0, 0.5, 0, 75, 100, 0.5},  {"linear", 0, 0.5, 0, 99, 100, 0.02},
      {"linear", 0, 0.5, 0, 100, 100, 0},   {"linear", 0, 0.5, 0.1, 75, 100, 0.55},
      {"linear", 10, 0.5, 0, 0, 100, 0.1},  {"linear", 10, 0.5, 0, 9, 100, 1},
      {"linear", 10, 0.5, 0, 10, 100, 1},   {"linear", 0, 0, 0, 99, 100, 1},
      {"linear", 0, 1, 0, 0, 100, 1},       {"linear", 0, 1, 0, 25, 100, 0.75},
      {"linear", 90, 1, 0, 89, 100, 0.11},  {"linear", 0, 0.5, 0.2, 500, 100, 0.2},
      {"linear", 0, 0.5, 0, 0, 1, 1},       {"constant", 4, 0.5, 0, 1, 100, 0.5},
      {"constant", 4, 0.5, 0, 99, 100, 1},  {"cosine", 0, 0.5, 0, 0, 100, 1},
      {"cosine", 0, 0.5, 0, 50, 100, 0.5},  {"cosine", 0, 0.5, 0.1, 100, 100, 0.1},
      {"cosine", 20, 0.5, 0, 60, 100, 0.5}, {"cosine", 20, 0.5, 0, 4, 100, 0.25},
  };
  for (const RateCase& c : cases) {
    ScheduleConfig schedule;
    schedule.shape = c.shape;
    schedule.warmup_steps = c.warmup;
    schedule.warmdown_fraction = c.warmdown;
    schedule.final_fraction = c.final_fraction;
    EXPECT_NEAR(learning_rate_factor(schedule, c.step, c.steps), c.expected, 1e-12)
        << c.shape << " warmup " << c.warmup << " warmdown " << c.warmdown << " step " << c.step;
  }
}

TEST(Momentum, RisesOverItsSteps) {
  MuonConfig muon;
  EXPECT_DOUBLE_EQ(muon_momentum(muon, 0), 0.85);
  EXPECT_DOUBLE_EQ(muon_momentum(muon, 150), 0.9);
  EXPECT_DOUBLE_EQ(muon_momentum(muon, 300), 0.95);
  EXPECT_DOUBLE_EQ(muon_momentum(muon, 5000), 0.95);
  muon.momentum_warmup_steps = 0;
  EXPECT_DOUBLE_EQ(muon_momentum(muon, 0), 0.95);
}

TEST(WeightDecay, FallsToZero) {
  EXPECT_DOUBLE_EQ(weight_decay_factor(0, 200), 1);
  EXPECT_DOUBLE_EQ(weight_decay_factor(50, 200), 0.75);
  EXPECT_DOUBLE_EQ(weight_decay_factor(200, 200), 0);
  EXPECT_DOUBLE_EQ(weight_decay_factor(300, 200), 0);
}

}  // namespace
}  // namespace switchyard
