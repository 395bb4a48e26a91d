#include "comm/control.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "comm/control_channel.h"

namespace switchyard {
namespace {

using Lines = std::vector<std::pair<std::string, std::string>>;

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\r");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

// "key = value" lines; a line without '=' is keyed by its number.
Lines parse_lines(const std::string& text) {
  Lines lines;
  std::istringstream in(text);
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const auto equals = line.find('=');
    if (equals == std::string::npos) {
      lines.emplace_back("line " + std::to_string(number), trimmed(line));
    } else {
      lines.emplace_back(trimmed(line.substr(0, equals)), trimmed(line.substr(equals + 1)));
    }
  }
  return lines;
}

std::string name_ranks(const std::vector<int>& ranks) {
  std::vector<std::string> names;
  for (int rank : ranks) {
    if (names.size() == 8) {
      names.push_back(format("... (%zu ranks)", ranks.size()));
      break;
    }
    names.push_back(std::to_string(rank));
  }
  return (ranks.size() == 1 ? "rank " : "ranks ") + join(names, ", ");
}

template <class T>
std::string to_bytes(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

}  // namespace

Control::Control(int rank, int size, double timeout_s, const ShareAddress& share_address) : rank_(rank), size_(size) {
  if (size > 1) channel_ = std::make_unique<ControlChannel>(rank, size, timeout_s, share_address);
}

Control::~Control() = default;

std::vector<std::string> Control::all_gather(const std::string& what, const std::string& mine) {
  if (!channel_) return {mine};
  return channel_->all_gather(what, mine);
}

std::string Control::broadcast(const std::string& what, const std::string& bytes, int root) {
  return all_gather(what, rank_ == root ? bytes : "")[root];
}

void Control::barrier() { all_gather("barrier", ""); }

template <class T, class Combine>
std::vector<T> Control::reduce(const char* what, const std::vector<T>& values, Combine combine) {
  std::vector<T> result(values.size()), part(values.size());
  const std::vector<std::string> parts = all_gather(format("%s of %zu", what, values.size()), to_bytes(values));
  std::memcpy(result.data(), parts[0].data(), parts[0].size());
  for (int rank = 1; rank < size_; ++rank) {
    std::memcpy(part.data(), parts[rank].data(), parts[rank].size());
    for (std::size_t i = 0; i < values.size(); ++i) result[i] = combine(result[i], part[i]);
  }
  return result;
}

std::vector<double> Control::sum(const std::vector<double>& values) {
  return reduce("sum", values, [](double a, double b) { return a + b; });
}

std::vector<std::int64_t> Control::sum(const std::vector<std::int64_t>& values) {
  return reduce("integer sum", values, [](std::int64_t a, std::int64_t b) { return a + b; });
}

double Control::sum(double value) { return sum(std::vector<double>{value})[0]; }
std::int64_t Control::sum(std::int64_t value) { return sum(std::vector<std::int64_t>{value})[0]; }

double Control::max(double value) {
  const auto larger = [](double a, double b) { return std::isnan(a) || a > b ? a : b; };
  return reduce("max", std::vector<double>{value}, larger)[0];
}

std::int64_t Control::max(std::int64_t value) { return max(std::vector<std::int64_t>{value})[0]; }

std::vector<std::int64_t> Control::max(const std::vector<std::int64_t>& values) {
  return reduce("integer max", values, [](std::int64_t a, std::int64_t b) { return std::max(a, b); });
}

bool Control::any(bool mine) { return max(static_cast<std::int64_t>(mine)) != 0; }

void Control::agree_equal(const std::string& name, const std::string& text) {
  if (size_ == 1) return;
  const std::string hash = format("%016llx", static_cast<unsigned long long>(fnv1a(text)));
  const std::vector<std::string> hashes = all_gather("hash of " + name, hash);
  if (std::all_of(hashes.begin(), hashes.end(), [&](const std::string& h) { return h == hashes[0]; })) return;
  failed_together_ = true;
  throw ConfigError(describe_difference(name, all_gather(name, text)));
}

void Control::try_together(const std::string& what, const std::function<void()>& body) {
  std::string refusal;
  try {
    body();
  } catch (const ConfigError& error) { refusal = error.what(); }
  std::map<std::string, std::vector<int>> ranks_of;
  const std::vector<std::string> refusals = all_gather("refusal of " + what, refusal);
  for (int rank = 0; rank < size_; ++rank) ranks_of[refusals[rank]].push_back(rank);
  if (ranks_of.size() == 1 && refusals[0].empty()) return;
  failed_together_ = true;
  if (ranks_of.size() == 1) throw ConfigError(refusals[0]);
  std::vector<std::string> lines;
  for (const auto& [message, ranks] : ranks_of)
    if (!message.empty()) lines.push_back(name_ranks(ranks) + ": " + message);
  throw ConfigError(join(lines, "\n"));
}

void Control::report_failure(const std::string& reason) {
  if (channel_ && !failed_together_) channel_->report_failure(reason);
}

std::string describe_difference(const std::string& name, const std::vector<std::string>& text_of_rank) {
  std::vector<std::map<std::string, std::string>> values_of_rank;
  std::vector<std::string> keys;  // in the order in which the ranks name them
  std::map<std::string, bool> seen;
  for (const std::string& text : text_of_rank) {
    const Lines lines = parse_lines(text);
    values_of_rank.emplace_back(lines.begin(), lines.end());
    for (const auto& line : lines) {
      if (!std::exchange(seen[line.first], true)) keys.push_back(line.first);
    }
  }
  std::string first;
  int others = 0;
  for (const std::string& key : keys) {
    std::map<std::string, std::vector<int>> ranks_of_value;
    for (std::size_t rank = 0; rank < text_of_rank.size(); ++rank) {
      const auto found = values_of_rank[rank].find(key);
      ranks_of_value[found == values_of_rank[rank].end() ? "(missing)" : found->second].push_back(
          static_cast<int>(rank));
    }
    if (ranks_of_value.size() == 1) continue;
    if (!first.empty()) {
      ++others;
      continue;
    }
    std::vector<std::string> holders;
    for (const auto& [value, ranks] : ranks_of_value) holders.push_back(value + " on " + name_ranks(ranks));
    first = key + " is " + join(holders, " but ");
  }
  if (first.empty()) {
    const bool equal =
        std::all_of(text_of_rank.begin(), text_of_rank.end(), [&](const auto& t) { return t == text_of_rank[0]; });
    return equal ? "" : "the ranks have different " + name + ": the same lines in another order or number";
  }
  const std::string more = others == 0 ? "" : format(" (and %d more that differ)", others);
  return "the ranks have different " + name + ": " + first + more + "; give every rank the same " + name;
}

}  // namespace switchyard
