#include "train/metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/files.h"
#include "train/cpu_peak.h"
#include "train/routing_table.h"
#include "train/sinks.h"

namespace switchyard {
namespace {

StepMetrics at_step(std::int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.steps = 1733;
  metrics.loss = 4.71234;
  metrics.moe_layers = 12;
  metrics.balance_loss = 24;
  metrics.balance_per_layer = 1;
  metrics.lr = 0.02;
  metrics.grad_norm = 0.5;
  metrics.tokens_per_s = 535123;
  metrics.mfu = 0.451;
  metrics.memory_bytes = 24LL << 30;
  metrics.eta_s = 723;
  return metrics;
}

TEST(ConsoleLine, SaysEverythingOnce) {
  const std::string line = console_line(at_step(120));
  for (const char* part : {"step  120/1733", "loss 4.7123", "balance 24.000 (1.000 a layer)", "load 1.00", "dead 0",
                           "lr 2.00e-02", "norm 0.500", "535k tok/s", "mfu 45.1%", "24.00 GiB", "eta 12m 03s"}) {
    EXPECT_NE(line.find(part), std::string::npos) << part << " in " << line;
  }
  EXPECT_EQ(line.find("skipped"), std::string::npos);
  StepMetrics dense = at_step(1);
  dense.moe_layers = 0;
  dense.skipped_nonfinite = 2;
  EXPECT_EQ(console_line(dense).find("balance"), std::string::npos);
  EXPECT_NE(console_line(dense).find("skipped 2"), std::string::npos);
}

TEST(ProgressLine, SaysWhatIsKnown) {
  EXPECT_EQ(progress_line(at_step(120)), "  7%  step 120/1733  loss 4.7123  12m 03s left");
  StepMetrics metrics;
  metrics.step = 3;
  metrics.steps = 12;
  EXPECT_EQ(progress_line(metrics), " 25%  step 3/12");
}

TEST(StepClock, PlainMeanFirstThenForgets) {
  StepClock clock;
  EXPECT_EQ(clock.eta_s(10), 0);
  clock.add(3);
  clock.add(1);
  EXPECT_DOUBLE_EQ(clock.seconds_per_step(), 2);
  for (int i = 0; i < 20; ++i) clock.add(10, 10);
  EXPECT_NEAR(clock.seconds_per_step(), 1, 1e-3);
  EXPECT_NEAR(clock.eta_s(60), 60, 0.1);
}

TEST(SmoothedLoss, FirstValueCountsInFullAndNanNever) {
  SmoothedLoss loss;
  EXPECT_DOUBLE_EQ(loss.add(8), 8);
  EXPECT_DOUBLE_EQ(loss.add(8), 8);
  EXPECT_LT(loss.add(4), 8);
  const double before = loss.value();
  EXPECT_EQ(loss.add(NAN), before);
}

TEST(Routing, FiguresFromCounts) {
  struct Case {
    const char* name;
    std::vector<std::int64_t> count;
    double imbalance;
    int dead;
    double entropy;
  };
  for (const Case& c : {Case{"even", {5, 5, 5, 5}, 1, 0, 1}, Case{"one expert has all", {0, 8, 0, 0}, 4, 3, 0},
                        Case{"half are dead", {4, 4, 0, 0}, 2, 2, 0.5}, Case{"single expert", {9}, 1, 0, 1},
                        Case{"no rows", {0, 0}, 0, 2, 0}}) {
    EXPECT_DOUBLE_EQ(imbalance(c.count), c.imbalance) << c.name;
    EXPECT_EQ(dead_experts(c.count), c.dead) << c.name;
    EXPECT_NEAR(load_entropy(c.count), c.entropy, 1e-12) << c.name;
  }
}

TEST(Routing, TableDrawsEveryExpert) {
  const std::string table = routing_table({{0, {10, 10, 10, 10}, 0.99}, {11, {0, 40, 20, 20}, -1}});
  EXPECT_NE(table.find("▄▄▄▄"), std::string::npos) << table;
  EXPECT_NE(table.find("x█▄▄"), std::string::npos) << table;
  EXPECT_NE(table.find("2.000     1"), std::string::npos) << table;
  EXPECT_NE(routing_table({{0, std::vector<std::int64_t>(256, 3), -1}}).find("▄"), std::string::npos);
  EXPECT_NE(routing_table({{0, {0, 0}, -1}, {1, {}, -1}}).find("xx"), std::string::npos);
}

class JsonLines : public ::testing::Test {
 protected:
  JsonLines() : path_(::testing::TempDir() + "switchyard_metrics.jsonl") { std::filesystem::remove(path_); }
  ~JsonLines() override { std::filesystem::remove(path_); }
  int lines() const {
    const std::string text = read_file(path_);
    return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
  }
  std::string path_;
};

TEST_F(JsonLines, ResumeDropsWhatWillBeReportedAgain) {
  {
    const auto sink = json_lines_sink(path_, 0);
    for (const std::int64_t step : {0, 10, 20, 30}) sink->step(at_step(step));
    EvalMetrics eval;
    eval.step = 20;
    sink->eval(eval);
    sink->routing(10, {{0, {1, 2}, 0.5}});
    EXPECT_EQ(lines(), 6);  // on disk before the sink is closed
  }
  std::ofstream(path_, std::ios::app) << "{\"kind\":\"train\",\"step\":5";  // torn by a kill
  {
    const auto sink = json_lines_sink(path_, 20);
    EXPECT_EQ(lines(), 3);  // steps 0 and 10, and the routing of 10
    sink->step(at_step(20));
    EXPECT_EQ(lines(), 4);
  }
  json_lines_sink(path_, 0);
  EXPECT_EQ(lines(), 0);
}

TEST_F(JsonLines, NotANumberIsNullAndDenseRunsHaveNoRouting) {
  StepMetrics metrics = at_step(1);
  metrics.loss = NAN;
  metrics.moe_layers = 0;
  json_lines_sink(path_, 0)->step(metrics);
  const std::string text = read_file(path_);
  EXPECT_NE(text.find("\"loss\":null"), std::string::npos) << text;
  EXPECT_EQ(text.find("balance"), std::string::npos);
  EXPECT_THROW(json_lines_sink("/nonexistent/folder/metrics.jsonl", 0), RunError);
}

TEST(CpuPeak, IsPlausible) {
  const double tflops = measure_cpu_gemm_tflops();
  EXPECT_GT(tflops, 1e-4);
  EXPECT_LT(tflops, 100);
}

}  // namespace
}  // namespace switchyard
