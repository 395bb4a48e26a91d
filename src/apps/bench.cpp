// bench: how fast parts of the step are on this machine.
//   bench moe   the sparse layer alone, forward and backward, in TFLOP/s
//   bench ops   every CUDA kernel against its floor
#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/run_app.h"
#include "bench/kernel_timings.h"
#include "bench/moe_layer.h"
#include "bench/stopwatch.h"

namespace {

using namespace switchyard;
using Json = nlohmann::ordered_json;

struct MoeArguments {
  std::vector<std::string> shapes;
  std::string activation = "swiglu", device = "auto", json;
  int repeats = 20;
};
struct OpsArguments {
  std::string only, json;
};

void declare(CLI::App& app, MoeArguments& arguments) {
  app.add_option("--shape", arguments.shapes,
                 "T,D,N,E,K: tokens, width, expert width, experts, experts a token; again for more shapes");
  app.add_option("--activation", arguments.activation, "swiglu or relu2")
      ->capture_default_str()
      ->check(CLI::IsMember({"swiglu", "relu2"}));
  app.add_option("--device", arguments.device, "auto, cuda (bf16) or cpu (fp32)")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cuda", "cpu"}));
  app.add_option("--repeats", arguments.repeats, "runs of which the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  app.add_option("--json", arguments.json, "file for the same figures as JSON");
}

void declare(CLI::App& app, OpsArguments& arguments) {
  app.add_option("--only", arguments.only, "kernels whose name contains this");
  app.add_option("--json", arguments.json, "file for the same figures as JSON");
}

ComputeDevice choose(const std::string& name) {
  Config config;
  config.device = name == "auto" ? (cuda_available() ? "cuda" : "cpu") : name;
  config.precision.mode = config.device == "cpu" ? "fp32" : "bf16";
  return choose_device(config, 0);
}

double tflops(double flops, double ms) { return flops / (ms * 1e-3) * 1e-12; }

Json to_json(double flops, const bench::PassTimes& times) {
  return {{"fwd_ms", times.forward_ms},
          {"bwd_ms", times.backward_ms},
          {"fwd_tflops", tflops(flops, times.forward_ms)},
          {"bwd_tflops", tflops(2 * flops, times.backward_ms)}};
}

Json to_json(const bench::LayerTiming& timing) {
  const bench::LayerShape& shape = timing.shape;
  return {{"tokens", shape.tokens},
          {"n_embd", shape.width},
          {"hidden", shape.hidden},
          {"experts", shape.experts},
          {"topk", shape.top_k},
          {"largest_over_mean_load", timing.largest_over_mean_load},
          {"graph", timing.recorded},
          {"experts_only", to_json(timing.forward_flops, timing.experts_only)},
          {"with_router", to_json(timing.forward_flops, timing.with_router)}};
}

void print(const bench::LayerTiming& timing, int digits) {
  const bench::LayerShape& shape = timing.shape;
  const auto passes = [&](const bench::PassTimes& times) {
    std::printf("   %9.*f %9.*f", digits, tflops(timing.forward_flops, times.forward_ms), digits,
                tflops(2 * timing.forward_flops, times.backward_ms));
  };
  std::printf("%7lld %5d %5d %4d %3d %6.2f", static_cast<long long>(shape.tokens), shape.width, shape.hidden,
              shape.experts, shape.top_k, timing.largest_over_mean_load);
  passes(timing.experts_only);
  passes(timing.with_router);
  std::printf("\n");
  std::fflush(stdout);
}

int run_moe(const MoeArguments& arguments) {
  std::vector<bench::LayerShape> shapes;
  for (const std::string& text : arguments.shapes) shapes.push_back(bench::parse_layer_shape(text));
  const ComputeDevice device = choose(arguments.device);
  const bool gpu = device.device.is_cuda();
  if (shapes.empty()) shapes = bench::default_layer_shapes(gpu);

  const char* precision = gpu ? "bf16" : "fp32";
  std::printf("the MoE layer alone, %s, %s, on %s: TFLOP/s, median of %d runs\n", arguments.activation.c_str(),
              precision, device.name.c_str(), arguments.repeats);
  std::printf("%32s   %19s   %19s\n", "", "experts only", "with router");
  std::printf("%7s %5s %5s %4s %3s %6s   %9s %9s   %9s %9s\n", "T", "D", "N", "E", "K", "load", "forward", "backward",
              "forward", "backward");
  Json result = {{"program", "switchyard"},
                 {"device", device.name},
                 {"precision", precision},
                 {"activation", arguments.activation},
                 {"shapes", Json::array()}};
  for (const bench::LayerShape& shape : shapes) {
    const auto activation = ops::parse_activation(arguments.activation);
    const bench::LayerTiming timing = bench::time_moe_layer(shape, activation, device, arguments.repeats);
    print(timing, gpu ? 1 : 4);
    result["shapes"].push_back(to_json(timing));
  }
  std::printf("load: rows of the fullest expert over the mean; backward counts twice the FLOPs of forward\n");
  if (!arguments.json.empty()) write_file_atomic(arguments.json, result.dump(2) + "\n");
  return kExitOk;
}

int run_ops(const OpsArguments& arguments) {
  const double product_rate = bench::product_rate();
  Json result = {{"product_tflops", product_rate * 1e-12}, {"kernels", Json::array()}};
  for (const bench::KernelTiming& timing : bench::time_kernels(product_rate, arguments.only))
    result["kernels"].push_back(
        {{"name", timing.name},
         {"us", timing.seconds * 1e6},
         {"floor_us", timing.floor_seconds * 1e6},
         {timing.product ? "tflops" : "gb_per_s", timing.work / timing.seconds * (timing.product ? 1e-12 : 1e-9)}});
  if (!arguments.json.empty()) write_file_atomic(arguments.json, result.dump(2) + "\n");
  return kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times parts of the training step.");
  app.require_subcommand(1);
  MoeArguments moe;
  OpsArguments ops;
  CLI::App* moe_command = app.add_subcommand("moe", "the sparse layer alone, forward and backward, in TFLOP/s");
  declare(*moe_command, moe);
  declare(*app.add_subcommand("ops", "every CUDA kernel against its floor, at the sizes of a d12 8x2 micro-batch"),
          ops);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) { return app.exit(error) == 0 ? kExitOk : kExitConfigError; }
  return run_app([&] { return moe_command->parsed() ? run_moe(moe) : run_ops(ops); });
}
