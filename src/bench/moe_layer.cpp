#include "bench/moe_layer.h"

#include <sstream>

#include "base/error.h"
#include "kernels/router.h"

namespace switchyard::bench {

LayerShape parse_layer_shape(const std::string& text) {
  const auto reject = [&](const std::string& reason) -> ConfigError {
    return ConfigError("--shape " + text + ": " + reason +
                       "; it is T,D,N,E,K: tokens, width, expert width, experts, "
                       "experts a token, as in 40960,768,256,128,8");
  };
  std::vector<std::int64_t> numbers;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    std::size_t read = 0;
    std::int64_t number = 0;
    try {
      number = std::stoll(part, &read);
    } catch (const std::logic_error&) { throw reject("'" + part + "' is no number"); }
    if (read != part.size()) throw reject("'" + part + "' is no number");
    if (number < 1 || number > (1 << 24)) throw reject(part + " is not from 1 to 16777216");
    numbers.push_back(number);
  }
  if (numbers.size() != 5) throw reject(std::to_string(numbers.size()) + " numbers instead of 5");
  const auto small = [&](int i) { return static_cast<int>(numbers[static_cast<std::size_t>(i)]); };
  const LayerShape shape{numbers[0], small(1), small(2), small(3), small(4)};
  if (shape.width % 8 != 0 || shape.hidden % 8 != 0) throw reject("D and N must be multiples of 8");
  if (shape.experts > kernels::kMaxExperts) throw reject("E is at most " + std::to_string(kernels::kMaxExperts));
  if (shape.top_k > std::min(shape.experts, kernels::kMaxTopK))
    throw reject("K is at most E, and at most " + std::to_string(kernels::kMaxTopK));
  return shape;
}

std::vector<LayerShape> default_layer_shapes(bool gpu) {
  if (!gpu) return {{1024, 256, 512, 8, 2}, {1024, 256, 128, 32, 8}};
  return {{40960, 768, 256, 128, 8},
          {40960, 768, 512, 64, 4},
          {40960, 768, 1024, 32, 2},
          {32768, 4096, 1024, 64, 4},
          {65536, 768, 1536, 8, 2}};
}

LayerTiming time_moe_layer(const LayerShape& shape, ops::ActivationKind activation, const ComputeDevice& device,
                           int repeats) {
  using From = LayerParts::From;
  const auto& products = ops::GroupedProducts::choose(device.device, device.activation_dtype);
  const LayerParts layer(shape, activation, device, products);
  const bool record = device.device.is_cuda();
  const auto time = [&](From from) {
    return time_passes(
        {[&] { return layer.forward(from); }, [&](const Tensor& out_TD) { layer.backward(from, out_TD); }},
        device.index(), record, repeats);
  };
  LayerTiming timing{};
  timing.shape = shape;
  timing.forward_flops = 2.0 * (ops::is_gated(activation) ? 3 : 2) * static_cast<double>(shape.tokens) * shape.top_k *
                         shape.width * shape.hidden;
  timing.largest_over_mean_load = layer.largest_over_mean_load();
  timing.recorded = record;
  timing.experts_only = time(From::kRows);
  timing.with_router = time(From::kRouter);
  return timing;
}

}  // namespace switchyard::bench
