#include "train/routing_table.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace switchyard {
namespace {

constexpr std::size_t kMostBars = 64;
const char* const kBars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};

double total(const std::vector<std::int64_t>& count_E) {
  double sum = 0;
  for (const std::int64_t count : count_E) sum += static_cast<double>(count);
  return sum;
}

std::string bar(double count, double mean) {
  if (count <= 0) return "x";
  return kBars[std::clamp(static_cast<int>(std::lround(4 * count / mean)), 1, 8) - 1];
}

// Past kMostBars neighbouring experts share a bar: their mean.
std::string bars(const std::vector<std::int64_t>& count_E) {
  const double mean = total(count_E) / static_cast<double>(count_E.size());
  const std::size_t columns = std::min(count_E.size(), kMostBars);
  std::string text;
  for (std::size_t column = 0; column < columns; ++column) {
    const std::size_t begin = column * count_E.size() / columns, end = (column + 1) * count_E.size() / columns;
    double sum = 0;
    for (std::size_t expert = begin; expert < end; ++expert) sum += static_cast<double>(count_E[expert]);
    text += bar(sum / static_cast<double>(end - begin), mean);
  }
  return text;
}

std::string line(const LayerRouting& layer, int bar_columns) {
  const auto& count_E = layer.count_E;
  const auto [least, most] = std::minmax_element(count_E.begin(), count_E.end());
  const double rows = std::max(1.0, total(count_E));
  // Padding by hand: a bar takes three bytes and one column.
  const int padding = bar_columns - static_cast<int>(std::min(count_E.size(), kMostBars));
  std::string text =
      format("  %5d  %s%*s  %6.2f%% %6.2f%%  %8.3f  %4d  %7.4f", layer.layer, bars(count_E).c_str(), padding, "",
             100 * static_cast<double>(*least) / rows, 100 * static_cast<double>(*most) / rows, imbalance(count_E),
             dead_experts(count_E), load_entropy(count_E));
  if (layer.entropy >= 0) text += format("  %7.4f", layer.entropy);
  return text + "\n";
}

}  // namespace

double imbalance(const std::vector<std::int64_t>& count_E) {
  const double rows = total(count_E);
  if (rows <= 0) return 0;
  const double most = static_cast<double>(*std::max_element(count_E.begin(), count_E.end()));
  return most * static_cast<double>(count_E.size()) / rows;
}

int dead_experts(const std::vector<std::int64_t>& count_E) {
  return static_cast<int>(std::count(count_E.begin(), count_E.end(), 0));
}

double load_entropy(const std::vector<std::int64_t>& count_E) {
  const double rows = total(count_E);
  if (rows <= 0) return 0;
  if (count_E.size() < 2) return 1;
  double entropy = 0;
  for (const std::int64_t count : count_E) {
    const double share = static_cast<double>(count) / rows;
    if (share > 0) entropy -= share * std::log(share);
  }
  return entropy / std::log(static_cast<double>(count_E.size()));
}

std::string routing_table(const std::vector<LayerRouting>& layers) {
  int bar_columns = 7;
  bool with_entropy = false;
  for (const LayerRouting& layer : layers) {
    bar_columns = std::max(bar_columns, static_cast<int>(std::min(layer.count_E.size(), kMostBars)));
    with_entropy = with_entropy || layer.entropy >= 0;
  }
  std::string text = format("  layer  %-*s  %7s %7s  %8s  dead  entropy%s\n", bar_columns, "experts", "least", "most",
                            "max/mean", with_entropy ? "  router" : "");
  for (const LayerRouting& layer : layers) {
    if (!layer.count_E.empty()) text += line(layer, bar_columns);
  }
  return text;
}

}  // namespace switchyard
