// bench: how fast parts of the step are on this machine.
//   bench moe          the sparse layer alone, forward and backward, in TFLOP/s
//   bench moe-vs-mlp   the sparse layer beside a dense MLP of equal active width, on every backend
//   bench routing      the sparse layer without its experts' products, part by part and feature by feature
//   bench ops          every CUDA kernel against its floor
//   bench text         times nothing: writes the text of a run, for another program to be timed on
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "base/run_app.h"
#include "base/text.h"
#include "bench/kernel_timings.h"
#include "bench/moe_layer.h"
#include "bench/moe_vs_mlp.h"
#include "bench/routing.h"
#include "bench/run_text.h"
#include "bench/stopwatch.h"
#include "config/command_line.h"

namespace {

using namespace switchyard;
using Json = nlohmann::ordered_json;

struct MoeArguments {
  std::vector<std::string> shapes;
  std::optional<double> spread;
  std::string activation = "swiglu", device = "auto", json;
  int repeats = 20;
};
struct MoeVsMlpArguments {
  std::vector<std::int64_t> tokens;
  std::vector<int> experts, top_k;
  int width = 0, active = 0;
  std::vector<std::string> backends;
  std::string activation = "swiglu", device = "auto", json;
  int repeats = 20;
};
struct RoutingArguments {
  std::vector<std::string> shapes;
  std::string only, device = "auto", json;
  int repeats = 20;
};
struct OpsArguments {
  std::string only, json;
};
struct TextArguments {
  std::string out;
  std::int64_t micro_batches = 1;
};

// What every layer benchmark can be told.
template <class Arguments>
void declare_run(CLI::App& app, Arguments& arguments) {
  app.add_option("--device", arguments.device, "auto, cuda (bf16) or cpu (fp32)")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cuda", "cpu"}));
  app.add_option("--repeats", arguments.repeats, "runs of which the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  app.add_option("--json", arguments.json, "file for the same figures as JSON");
}

void declare_activation(CLI::App& app, std::string& activation) {
  app.add_option("--activation", activation, "swiglu or relu2")
      ->capture_default_str()
      ->check(CLI::IsMember({"swiglu", "relu2"}));
}

void declare_shapes(CLI::App& app, std::vector<std::string>& shapes) {
  app.add_option("--shape", shapes,
                 "T,D,N,E,K: tokens, width, expert width, experts, experts a token; again for more shapes");
}

void declare(CLI::App& app, MoeArguments& arguments) {
  declare_shapes(app, arguments.shapes);
  declare_activation(app, arguments.activation);
  app.add_option("--spread", arguments.spread,
                 "force experts' shares of rows to those of a softmax of normal logits of this deviation; 0: equal")
      ->check(CLI::Range(0.0, 10.0));
  declare_run(app, arguments);
}

void declare(CLI::App& app, MoeVsMlpArguments& arguments) {
  app.add_option("--tokens", arguments.tokens, "T; with more values than one, here and below, every combination");
  app.add_option("--experts", arguments.experts, "E");
  app.add_option("--top-k", arguments.top_k, "K, experts a token; combinations with K above E are left out");
  app.add_option("--width", arguments.width, "D")->check(CLI::Range(8, 1 << 20));
  app.add_option("--active", arguments.active, "hidden width of the dense MLP; an expert's is a K-th of it (4 D)")
      ->check(CLI::Range(8, 1 << 24));
  app.add_option("--backend", arguments.backends, "cuda, cpu or reference; default: all that this machine has");
  declare_activation(app, arguments.activation);
  declare_run(app, arguments);
}

void declare(CLI::App& app, RoutingArguments& arguments) {
  declare_shapes(app, arguments.shapes);
  app.add_option("--only", arguments.only, "features whose name contains this");
  declare_run(app, arguments);
}

void declare(CLI::App& app, OpsArguments& arguments) {
  app.add_option("--only", arguments.only, "kernels whose name contains this");
  app.add_option("--json", arguments.json, "file for the same figures as JSON");
}

void declare(CLI::App& app, TextArguments& arguments) {
  app.add_option("--out", arguments.out,
                 "file to write: safetensors, text int32 [micro-batches, sequences, tokens + 1]")
      ->required();
  app.add_option("--micro-batches", arguments.micro_batches, "how many, from the run's first")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 24));
  app.footer("--config and --any.key value, as train takes them, say which run");
  app.allow_extras();
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
  for (bench::LayerShape& shape : shapes) shape.spread = arguments.spread;

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

void print(const bench::MoeVsMlp& result, int digits) {
  const bench::MoeVsMlpShape& shape = result.shape;
  const bench::PassTimes& dense = result.runs[0].times;
  for (const bench::LayerRun& run : result.runs) {
    const bool sparse = run.backend != "mlp";
    std::printf("%7lld %4s %3s %6d  %-9s %9.3f %9.3f %9.*f %9.*f %7.2f", static_cast<long long>(shape.tokens),
                sparse ? std::to_string(shape.experts).c_str() : "", sparse ? std::to_string(shape.top_k).c_str() : "",
                sparse ? shape.hidden() : shape.active, run.backend.c_str(), run.times.forward_ms, run.times.both_ms(),
                digits, tflops(result.forward_flops, run.times.forward_ms), digits,
                tflops(3 * result.forward_flops, run.times.both_ms()), run.times.both_ms() / dense.both_ms());
    if (sparse) std::printf("  %8.1e %8.1e", run.output_error, run.gradient_error);
    std::printf("\n");
  }
  std::fflush(stdout);
}

Json to_json(const bench::MoeVsMlp& result) {
  const bench::MoeVsMlpShape& shape = result.shape;
  Json json = {{"tokens", shape.tokens},   {"n_embd", shape.width},    {"active", shape.active},
               {"hidden", shape.hidden()}, {"experts", shape.experts}, {"topk", shape.top_k},
               {"runs", Json::array()}};
  for (const bench::LayerRun& run : result.runs)
    json["runs"].push_back({{"backend", run.backend},
                            {"fwd_ms", run.times.forward_ms},
                            {"fwd_bwd_ms", run.times.both_ms()},
                            {"fwd_tflops", tflops(result.forward_flops, run.times.forward_ms)},
                            {"fwd_bwd_tflops", tflops(3 * result.forward_flops, run.times.both_ms())},
                            {"tokens_per_s", static_cast<double>(shape.tokens) / (run.times.both_ms() * 1e-3)},
                            {"output_error", run.output_error},
                            {"gradient_error", run.gradient_error}});
  return json;
}

std::vector<std::string> chosen_backends(const std::vector<std::string>& names, const ComputeDevice& device) {
  const std::vector<std::string> all = bench::layer_backends(device);
  for (const std::string& name : names)
    if (std::find(all.begin(), all.end(), name) == all.end())
      throw ConfigError("--backend " + name + " is not one of " + device.name + "; choose " + join(all, " or "));
  return names.empty() ? all : names;
}

// Sizes that a CPU runs in seconds, and those of a d12 micro-batch.
void fill_defaults(MoeVsMlpArguments& arguments, bool gpu) {
  if (arguments.tokens.empty()) arguments.tokens = {gpu ? 65536 : 1024};
  if (arguments.experts.empty()) arguments.experts = {8, 64};
  if (arguments.top_k.empty()) arguments.top_k = {2, 8};
  if (arguments.width == 0) arguments.width = gpu ? 768 : 256;
  if (arguments.active == 0) arguments.active = 4 * arguments.width;
}

int run_moe_vs_mlp(MoeVsMlpArguments arguments) {
  const ComputeDevice device = choose(arguments.device);
  const bool gpu = device.device.is_cuda();
  fill_defaults(arguments, gpu);
  const auto shapes =
      bench::sweep(arguments.tokens, arguments.experts, arguments.top_k, arguments.width, arguments.active);
  const std::vector<std::string> backends = chosen_backends(arguments.backends, device);
  const char* precision = gpu ? "bf16" : "fp32";
  std::printf("the MoE layer and a dense MLP of its active width %d, D = %d, %s, %s, on %s: median of %d runs\n",
              arguments.active, arguments.width, arguments.activation.c_str(), precision, device.name.c_str(),
              arguments.repeats);
  std::printf("%34s%19s %19s %7s  %17s\n", "", "milliseconds", "TFLOP/s", "x mlp", "error");
  std::printf("%7s %4s %3s %6s  %-9s %9s %9s %9s %9s %7s  %8s %8s\n", "T", "E", "K", "N", "backend", "forward",
              "fwd+bwd", "forward", "fwd+bwd", "fwd+bwd", "output", "gradient");
  Json json = {{"program", "switchyard"},
               {"device", device.name},
               {"precision", precision},
               {"activation", arguments.activation},
               {"shapes", Json::array()}};
  for (const bench::MoeVsMlpShape& shape : shapes) {
    const bench::MoeVsMlp result =
        bench::time_moe_vs_mlp(shape, arguments.activation, backends, device, arguments.repeats);
    print(result, gpu ? 1 : 4);
    json["shapes"].push_back(to_json(result));
  }
  std::printf("N: hidden width; error: against the reference backend, of the output and of all gradients\n");
  if (!arguments.json.empty()) write_file_atomic(arguments.json, json.dump(2) + "\n");
  return kExitOk;
}

Json to_json(const bench::RoutingTiming& timing, double copy_rate) {
  const bench::LayerShape& shape = timing.shape;
  Json json = {{"tokens", shape.tokens},   {"n_embd", shape.width},    {"hidden", shape.hidden},
               {"experts", shape.experts}, {"topk", shape.top_k},      {"graph", timing.recorded},
               {"parts", Json::array()},   {"features", Json::array()}};
  for (const bench::RoutingPart& part : timing.parts)
    json["parts"].push_back({{"name", part.name},
                             {"fwd_us", 1e3 * part.times.forward_ms},
                             {"fwd_floor_us", part.bytes.forward / copy_rate * 1e6},
                             {"bwd_us", 1e3 * part.times.backward_ms},
                             {"bwd_floor_us", part.bytes.backward / copy_rate * 1e6}});
  for (const bench::FeatureTiming& feature : timing.features) {
    Json one = {{"name", feature.name},
                {"options", feature.options},
                {"with_products", feature.with_products},
                {"against", feature.against}};
    if (feature.failure.empty())
      one.update({{"fwd_us", 1e3 * feature.times.forward_ms},
                  {"fwd_added_us", 1e3 * (feature.times.forward_ms - feature.without.forward_ms)},
                  {"bwd_us", 1e3 * feature.times.backward_ms},
                  {"bwd_added_us", 1e3 * (feature.times.backward_ms - feature.without.backward_ms)}});
    else
      one["failure"] = feature.failure;
    json["features"].push_back(one);
  }
  return json;
}

int run_routing(const RoutingArguments& arguments) {
  std::vector<bench::LayerShape> shapes;
  for (const std::string& text : arguments.shapes) shapes.push_back(bench::parse_layer_shape(text));
  const ComputeDevice device = choose(arguments.device);
  const bool gpu = device.device.is_cuda();
  if (shapes.empty()) shapes = bench::default_routing_shapes(gpu);
  const char* precision = gpu ? "bf16" : "fp32";
  const double rate = bench::copy_rate(device);
  std::printf("the MoE layer without its experts' products, %s, on %s: median of %d runs\n", precision,
              device.name.c_str(), arguments.repeats);
  std::printf("floor: the bytes that must cross memory, at the rate of a copy, %.1f GB/s\n", rate * 1e-9);
  Json result = {{"program", "switchyard"},
                 {"device", device.name},
                 {"precision", precision},
                 {"copy_gb_per_s", rate * 1e-9},
                 {"shapes", Json::array()}};
  int failed = 0;
  for (const bench::LayerShape& shape : shapes) {
    std::printf("\n");
    const bench::RoutingTiming timing =
        bench::time_routing_layer(shape, device, rate, arguments.repeats, arguments.only);
    for (const bench::FeatureTiming& feature : timing.features) failed += !feature.failure.empty();
    result["shapes"].push_back(to_json(timing, rate));
  }
  std::printf(
      "Experts' products are not run: their kernels' results are noise drawn beforehand. A feature marked \"with "
      "products\" costs products, and is timed with them, as is the layer that it is compared with: one without "
      "features, or with what stands behind \"against\". Padding, a capacity, a zero expert and token ids take rows or "
      "a product off the layer: they may cost less than nothing. Losses are those of one layer; a model makes them for "
      "all layers at once.\n");
  if (!arguments.json.empty()) write_file_atomic(arguments.json, result.dump(2) + "\n");
  if (failed > 0) throw RunError(format("%d features could not be timed", failed));
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

// options: those of a run.
int run_text(const TextArguments& arguments, const std::vector<std::string>& options) {
  std::vector<const char*> words{"bench text"};
  for (const std::string& option : options) words.push_back(option.c_str());
  const CommandLine line = parse_command_line(static_cast<int>(words.size()), words.data(), "bench text");
  const char* root = std::getenv("SWITCHYARD_ROOT");
  const Config config = load_config(line.config, line.overrides, root ? root : ".").config;
  bench::write_run_text(config, arguments.micro_batches, arguments.out);
  return kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times parts of the training step.");
  app.require_subcommand(1);
  MoeArguments moe;
  MoeVsMlpArguments moe_vs_mlp;
  RoutingArguments routing;
  OpsArguments ops;
  CLI::App* moe_command = app.add_subcommand("moe", "the sparse layer alone, forward and backward, in TFLOP/s");
  declare(*moe_command, moe);
  CLI::App* moe_vs_mlp_command =
      app.add_subcommand("moe-vs-mlp", "the sparse layer beside a dense MLP of equal active width, on every backend");
  declare(*moe_vs_mlp_command, moe_vs_mlp);
  CLI::App* routing_command = app.add_subcommand(
      "routing", "the sparse layer without its experts' products: each part against its floor, each feature's cost");
  declare(*routing_command, routing);
  declare(*app.add_subcommand("ops", "every CUDA kernel against its floor, at the sizes of a d12 8x2 micro-batch"),
          ops);
  TextArguments text;
  CLI::App* text_command =
      app.add_subcommand("text", "writes the text of a run's micro-batches, for another program to train on");
  declare(*text_command, text);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) { return app.exit(error) == 0 ? kExitOk : kExitConfigError; }
  return run_app([&] {
    if (moe_command->parsed()) return run_moe(moe);
    if (moe_vs_mlp_command->parsed()) return run_moe_vs_mlp(moe_vs_mlp);
    if (text_command->parsed()) return run_text(text, text_command->remaining());
    return routing_command->parsed() ? run_routing(routing) : run_ops(ops);
  });
}
