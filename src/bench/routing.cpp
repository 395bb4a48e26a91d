#include "bench/routing.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <numeric>

#include "base/text.h"
#include "bench/routing_features.h"
#include "bench/stand_in_products.h"
#include "bench/timed_layer.h"
#include "config/validate.h"

namespace switchyard::bench {
namespace {

constexpr int kWarmUps = 3, kRunsAGraph = 5;

PassBytes operator+(const PassBytes& a, const PassBytes& b) { return {a.forward + b.forward, a.backward + b.backward}; }
PassTimes operator-(const PassTimes& a, const PassTimes& b) {
  return {a.forward_ms - b.forward_ms, a.backward_ms - b.backward_ms};
}

// Of each part, what its kernels read and write, each byte once.
struct LayerBytes {
  double tokens, rows, hidden, logits, values, router;  // [T, D], [R, D], [R, N], [T, E] fp32, [T, K] fp32, [E, D] fp32
  const ops::FusedActivation* fused;                    // gather and relu^2 inside the products are none of ours
  bool whole;                                           // all between x and the rows of the output is

  LayerBytes(const LayerShape& c, double element, const ops::GroupedProducts& products)
      : tokens(element * static_cast<double>(c.tokens) * c.width),
        rows(tokens * c.top_k),
        hidden(element * static_cast<double>(c.tokens) * c.top_k * c.hidden),
        logits(4.0 * static_cast<double>(c.tokens) * c.experts),
        values(4.0 * static_cast<double>(c.tokens) * c.top_k),
        router(4.0 * c.experts * c.width),
        fused(products.fused(ops::ActivationKind::kRelu2)),
        whole(products.whole() != nullptr) {}

  // forward: weights to rows; the sum of each token's rows. backward: weights to rows; dy and x gathered for the weight
  // gradients, where products do not gather; the sum of the rows of dx; the weights' gradients back from
  // rows.
  PassBytes gather_sum() const {
    const double gathered = tokens + rows + values;
    PassBytes bytes{3 * values + gathered, 3 * values + gathered + 3 * values};
    if (whole || (fused && fused->gathers())) return bytes;
    bytes = bytes + PassBytes{0, 2 * gathered};
    if (!fused) bytes = bytes + PassBytes{gathered + 2 * hidden, 4 * hidden + values};
    return bytes;
  }
  PassBytes plan() const { return {3 * values, 0}; }  // choices; rows of assignments, tokens of rows
  PassBytes scores() const { return {logits + 2 * values, 2 * logits + 2 * values}; }
  // backward: x, and the gradient of x that is read and written; the matrix and its gradient.
  PassBytes product() const { return {tokens + logits + router, logits + 3 * tokens + 3 * router}; }
};

void print_part(const RoutingPart& part, double copy_rate) {
  std::printf("%-30s", part.name.c_str());
  for (const auto& [ms, bytes] :
       {std::pair{part.times.forward_ms, part.bytes.forward}, {part.times.backward_ms, part.bytes.backward}}) {
    const double floor_us = bytes / copy_rate * 1e6;
    std::printf("   %10.1f %10.1f", 1e3 * ms, floor_us);
    if (floor_us > 0)
      std::printf(" %6.2f", 1e3 * ms / floor_us);
    else
      std::printf(" %6s", "");
  }
  std::printf("\n");
  std::fflush(stdout);
}

// Parts from the last to the first, each as what the pass takes longer when it begins there.
std::vector<RoutingPart> time_parts(const LayerShape& shape, const ComputeDevice& device, double copy_rate, bool record,
                                    int repeats) {
  using From = LayerParts::From;
  const auto& own = ops::GroupedProducts::choose(device.device, device.activation_dtype);
  const StandInProducts products(own);
  const LayerParts layer(shape, ops::ActivationKind::kRelu2, device, products);
  const LayerBytes bytes(shape, static_cast<double>(at::elementSize(device.activation_dtype)), own);
  const auto time = [&](From from) {
    return time_passes(
        {[&] { return layer.forward(from); }, [&](const Tensor& out_TD) { layer.backward(from, out_TD); }},
        device.index(), record, repeats, kWarmUps, kRunsAGraph);
  };
  std::printf("%-30s   %28s   %28s\n", "", "forward", "backward");
  std::printf("%-30s   %10s %10s %6s   %10s %10s %6s\n", "part", "us", "floor us", "ratio", "us", "floor us", "ratio");
  std::vector<RoutingPart> parts;
  PassTimes before{0, 0};
  PassBytes all;
  const auto add = [&](const char* name, From from, const PassBytes& of_part) {
    const PassTimes now = time(from);
    parts.push_back({name, of_part, now - before});
    print_part(parts.back(), copy_rate);
    before = now, all = all + of_part;
  };
  add("gather-sum", From::kRows, bytes.gather_sum());
  add("plan", From::kPlan, bytes.plan());
  add("scores, top-k, counts", From::kScores, bytes.scores());
  add("router product", From::kRouter, bytes.product());
  parts.push_back({"all", all, before});
  print_part(parts.back(), copy_rate);
  return parts;
}

Config config_of(const LayerShape& shape, int seq_len, const ComputeDevice& device, const Overrides& feature) {
  const bool gpu = device.device.is_cuda();
  const auto number = [](auto value) { return std::to_string(value); };
  Overrides all{{"device", gpu ? "cuda" : "cpu"},
                {"precision.mode", gpu ? "bf16" : "fp32"},
                {"model.n_layer", "1"},
                {"model.n_embd", number(shape.width)},
                {"model.head_dim", "8"},
                {"model.seq_len", number(seq_len)},
                {"model.mlp", "relu2"},
                {"model.ffn_hidden", number(shape.hidden)},
                {"train.micro_batch", number(shape.tokens / seq_len)},
                {"train.batch_tokens", number(shape.tokens)},
                {"moe.use_moe", "true"},
                {"moe.n_experts", number(shape.experts)},
                {"moe.d_expert", number(shape.hidden)},
                {"router.top_k", number(shape.top_k)},
                {"router.init", "normal"},
                {"router.init_std", format("%g", unit_normal(shape.width).scale)}};
  for (const auto& option : feature) {
    // An option that the feature says takes the place of the layer's own.
    const auto same = [&](const auto& own) { return own.first == option.first; };
    all.erase(std::remove_if(all.begin(), all.end(), same), all.end());
    all.push_back(option);
  }
  ResolvedConfig resolved = parse_config("{}", "bench routing", all);
  validate(resolved, 1);
  return resolved.config;
}

std::string options_text(const RoutingFeature& feature) {
  std::vector<std::string> words;
  for (const auto& [key, value] : feature.options) words.push_back("--" + key + " " + value);
  return join(words, " ");
}

// Times layers that differ in one feature.
class FeatureTimer {
 public:
  FeatureTimer(const LayerShape& shape, const ComputeDevice& device, bool record, int repeats)
      : shape_(shape),
        device_(device),
        products_(ops::GroupedProducts::choose(device.device, device.activation_dtype)),
        record_(record),
        repeats_(repeats),
        seq_len_(static_cast<int>(std::gcd(shape.tokens, std::int64_t{1024}))),
        material_(shape.tokens, shape.width, seq_len_, device) {}

  PassTimes time(const RoutingFeature& feature) {
    SparseLayer layer(config_of(shape_, seq_len_, device_, feature.options), constant_, constant_,
                      feature.with_products ? nullptr : &products_);
    layer.prepare(device_);
    if (feature.with_products) layer.fill_matrices();
    material_.step.real_T = feature.padding ? material_.step.token_T.remainder(4).ne(3) : Tensor();
    const PassTimes times = layer.time(material_, device_, record_, repeats_, kWarmUps, kRunsAGraph);
    material_.step.real_T = Tensor();
    return times;
  }
  // The layer that the feature is compared with.
  const PassTimes& without(const RoutingFeature& feature) {
    const auto key = std::pair(feature.base_name, feature.with_products);
    const auto known = without_.find(key);
    if (known != without_.end()) return known->second;
    return without_[key] = time({"", feature.base, feature.with_products});
  }

 private:
  const LayerShape shape_;
  const ComputeDevice device_;
  const StandInProducts products_;
  const bool record_;
  const int repeats_, seq_len_;
  const Init constant_{};
  Material material_;
  std::map<std::pair<std::string, bool>, PassTimes> without_;  // by name of the base, and whether with products
};

void print_feature(const FeatureTiming& feature) {
  std::printf("%-30s", feature.name.c_str());
  if (!feature.failure.empty()) {
    std::printf("   failed: %s\n", feature.failure.c_str());
  } else {
    for (const auto& [with, without] : {std::pair{feature.times.forward_ms, feature.without.forward_ms},
                                        {feature.times.backward_ms, feature.without.backward_ms}})
      std::printf("   %10.1f %+10.1f %+6.1f", 1e3 * with, 1e3 * (with - without), 100 * (with - without) / without);
    std::printf("%s%s\n", feature.against.empty() ? "" : ("   against " + feature.against).c_str(),
                feature.with_products ? "   with products" : "");
  }
  std::fflush(stdout);
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

std::vector<FeatureTiming> time_features(FeatureTimer& timer, const LayerShape& shape, const std::string& only) {
  std::printf("%-30s   %10s %10s %6s   %10s %10s %6s\n", "feature", "us", "added us", "%", "us", "added us", "%");
  const PassTimes none = timer.without({"", {}});
  print_feature({"none", "", false, none, none, "", ""});
  std::vector<FeatureTiming> result;
  for (const RoutingFeature& feature : routing_features(shape)) {
    if (feature.name.find(only) == std::string::npos) continue;
    FeatureTiming timing{feature.name, options_text(feature), feature.with_products, {}, {}, feature.base_name, ""};
    try {
      timing.without = timer.without(feature);
      timing.times = timer.time(feature);
    } catch (const std::exception& error) { timing.failure = first_line(error.what()); }
    print_feature(timing);
    result.push_back(timing);
  }
  return result;
}

}  // namespace

double copy_rate(const ComputeDevice& device) {
  const std::int64_t bytes = std::int64_t{1} << (device.device.is_cuda() ? 29 : 28);
  const auto options = at::TensorOptions().device(device.device).dtype(at::kByte);
  const Tensor from = at::zeros({bytes}, options);
  Tensor to = at::zeros({bytes}, options);
  const PassTimes times =
      time_passes({[&] { return to.copy_(from); }, [](const Tensor&) {}}, device.index(), false, 10);
  return 2.0 * static_cast<double>(bytes) / (times.forward_ms * 1e-3);
}

std::vector<LayerShape> default_routing_shapes(bool gpu) {
  if (!gpu) return {{1024, 256, 512, 8, 2}, {1024, 256, 128, 64, 8}};
  return {{65536, 768, 1536, 8, 2}, {32768, 2048, 1024, 64, 8}};
}

RoutingTiming time_routing_layer(const LayerShape& shape, const ComputeDevice& device, double copy_rate, int repeats,
                                 const std::string& only) {
  RoutingTiming timing{shape, device.device.is_cuda(), {}, {}};
  std::printf("T %lld  D %d  N %d  E %d  K %d\n", static_cast<long long>(shape.tokens), shape.width, shape.hidden,
              shape.experts, shape.top_k);
  timing.parts = time_parts(shape, device, copy_rate, timing.recorded, repeats);
  FeatureTimer timer(shape, device, timing.recorded, repeats);
  timing.features = time_features(timer, shape, only);
  return timing;
}

}  // namespace switchyard::bench
