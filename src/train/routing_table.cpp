#include "train/routing_table.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

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

double share(std::int64_t part, const LayerRouting& layer) {
  return part < 0 ? -1 : 100 * static_cast<double>(part) / std::max(1.0, total(layer.count_E));
}

std::int64_t zero_expert_rows(const LayerRouting& layer) {
  if (layer.zero_experts == 0) return -1;
  return std::accumulate(layer.count_E.end() - layer.zero_experts, layer.count_E.end(), std::int64_t{0});
}

// What not every config has: a column is shown where a layer has a value, which is not negative.
struct Column {
  const char* title;
  const char* number;
  std::function<double(const LayerRouting&)> value;
};
const std::vector<Column>& columns() {
  static const std::vector<Column> all = {
      {"router", "%7.4f", [](const LayerRouting& l) { return l.entropy; }},
      {"zero", "%6.2f%%", [](const LayerRouting& l) { return share(zero_expert_rows(l), l); }},
      {"drop", "%6.2f%%", [](const LayerRouting& l) { return share(l.dropped, l); }},
      {"null", "%6.2f%%", [](const LayerRouting& l) { return share(l.to_null, l); }},
      {"reroute", "%6.2f%%", [](const LayerRouting& l) { return share(l.rerouted, l); }},
      {"cap", "%7.0f", [](const LayerRouting& l) { return l.capacity; }},
      {"bias", "%7.4f", [](const LayerRouting& l) { return l.max_bias; }},
      {"mix", "%7.4f", [](const LayerRouting& l) { return l.mix; }},
      {"fade", "%7.4f", [](const LayerRouting& l) { return l.warm_up; }},
      {"speed", "%7.4f", [](const LayerRouting& l) { return l.velocity; }}};
  return all;
}

std::vector<Column> shown_columns(const std::vector<LayerRouting>& layers) {
  std::vector<Column> shown;
  for (const Column& column : columns())
    if (std::any_of(layers.begin(), layers.end(), [&](const LayerRouting& l) { return column.value(l) >= 0; }))
      shown.push_back(column);
  return shown;
}

std::string line(const LayerRouting& layer, int bar_columns, const std::vector<Column>& shown) {
  const auto& count_E = layer.count_E;
  const auto [least, most] = std::minmax_element(count_E.begin(), count_E.end());
  const double rows = std::max(1.0, total(count_E));
  // Padding by hand: a bar takes three bytes and one column.
  const int padding = bar_columns - static_cast<int>(std::min(count_E.size(), kMostBars));
  std::string text =
      format("  %5d  %s%*s  %6.2f%% %6.2f%%  %8.3f  %4d  %7.4f", layer.layer, bars(count_E).c_str(), padding, "",
             100 * static_cast<double>(*least) / rows, 100 * static_cast<double>(*most) / rows, imbalance(count_E),
             dead_experts(layer), load_entropy(count_E));
  for (const Column& column : shown) {
    const double value = column.value(layer);
    text += "  " + (value >= 0 ? format(column.number, value) : std::string("      -"));
  }
  return text + "\n";
}

}  // namespace

double imbalance(const std::vector<std::int64_t>& count_E) {
  const double rows = total(count_E);
  if (rows <= 0) return 0;
  const double most = static_cast<double>(*std::max_element(count_E.begin(), count_E.end()));
  return most * static_cast<double>(count_E.size()) / rows;
}

double max_violation(const std::vector<std::int64_t>& count_E) {
  return total(count_E) <= 0 ? 0 : imbalance(count_E) - 1;
}

double max_over_min(const std::vector<std::int64_t>& count_E) {
  const auto [least, most] = std::minmax_element(count_E.begin(), count_E.end());
  return static_cast<double>(*most) / static_cast<double>(std::max<std::int64_t>(1, *least));
}

double load_distance(const std::vector<std::int64_t>& count_E) {
  const double rows = total(count_E), even = 1.0 / static_cast<double>(count_E.size());
  double distance = 0;
  for (const std::int64_t count : count_E)
    distance += std::abs((rows > 0 ? static_cast<double>(count) / rows : 0) - even);
  return distance;
}

double busiest_share(const std::vector<std::int64_t>& count_E, int most) {
  std::vector<std::int64_t> sorted = count_E;
  std::sort(sorted.rbegin(), sorted.rend());
  sorted.resize(std::min(sorted.size(), static_cast<std::size_t>(most)));
  const double rows = total(count_E);
  return rows <= 0 ? 0 : total(sorted) / rows;
}

int dead_experts(const LayerRouting& layer) {
  if (layer.idle_steps_E.empty()) return dead_experts(layer.count_E);
  return static_cast<int>(std::count_if(layer.idle_steps_E.begin(), layer.idle_steps_E.end(),
                                        [&](std::int64_t idle) { return idle >= layer.dead_window; }));
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
  for (const LayerRouting& layer : layers)
    bar_columns = std::max(bar_columns, static_cast<int>(std::min(layer.count_E.size(), kMostBars)));
  const std::vector<Column> shown = shown_columns(layers);
  std::string text =
      format("  layer  %-*s  %7s %7s  %8s  dead  entropy", bar_columns, "experts", "least", "most", "max/mean");
  for (const Column& column : shown) text += format("  %7s", column.title);
  text += "\n";
  for (const LayerRouting& layer : layers)
    if (!layer.count_E.empty()) text += line(layer, bar_columns, shown);
  return text;
}

}  // namespace switchyard
