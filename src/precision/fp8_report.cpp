#include "precision/fp8_report.h"

#include <cctype>

#include "base/text.h"

namespace switchyard {
namespace {

std::string reason_to_skip(const LinearLayer& layer, const PrecisionConfig& precision) {
  if (layer.is_router_or_gate) return "routers, value gates and INL controllers keep full precision";
  for (const std::string& pattern : precision.fp8_exclude) {
    if (matches_glob(pattern, layer.name)) return "name matches precision.fp8_exclude \"" + pattern + "\"";
  }
  const std::int64_t align = precision.fp8_min_align;
  for (const std::int64_t dim : {layer.rows, layer.cols}) {
    if (dim % align != 0) {
      return format("%lld x %lld: %lld is not a multiple of precision.fp8_min_align = %lld",
                    static_cast<long long>(layer.rows), static_cast<long long>(layer.cols), static_cast<long long>(dim),
                    static_cast<long long>(align));
    }
  }
  return "";
}

// "blocks.3.attn.out" -> "blocks.*.attn.out": layers of the same role read as one line.
std::string role(const std::string& name) {
  std::string text;
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (!std::isdigit(static_cast<unsigned char>(name[i]))) {
      text += name[i];
    } else if (text.empty() || text.back() != '*') {
      text += '*';
    }
  }
  return text;
}

struct Line {
  std::string name, verdict;
  int layers = 0, matrices = 0;
};

std::vector<Line> lines_of(const Fp8Report& report, bool every_layer) {
  std::vector<Line> lines;
  for (const Fp8Decision& decision : report.decisions) {
    const std::string name = every_layer ? decision.layer.name : role(decision.layer.name);
    const std::string verdict = decision.converts ? "fp8" : "not: " + decision.reason;
    Line* line = nullptr;
    for (Line& candidate : lines) {
      if (candidate.name == name && candidate.verdict == verdict) line = &candidate;
    }
    if (!line) line = &lines.emplace_back(Line{name, verdict, 0, 0});
    ++line->layers;
    line->matrices += decision.layer.matrices;
  }
  return lines;
}

}  // namespace

bool Fp8Report::converts(const std::string& layer_name) const {
  for (const Fp8Decision& decision : decisions) {
    if (decision.layer.name == layer_name) return decision.converts;
  }
  return false;
}

Fp8Report decide_fp8(const std::vector<LinearLayer>& layers, const PrecisionConfig& precision) {
  Fp8Report report;
  for (const LinearLayer& layer : layers) {
    const std::string reason = reason_to_skip(layer, precision);
    report.decisions.push_back({layer, reason.empty(), reason});
    (reason.empty() ? report.converted : report.skipped) += layer.matrices;
  }
  for (const std::string& pattern : precision.fp8_exclude) {
    bool matched = false;
    for (const LinearLayer& layer : layers) matched = matched || matches_glob(pattern, layer.name);
    if (!matched) {
      report.warnings.push_back("precision.fp8_exclude \"" + pattern +
                                "\" matches no linear layer; names look like blocks.0.attn.qkv, and the pattern must "
                                "cover the whole name");
    }
  }
  return report;
}

std::string fp8_table(const Fp8Report& report, bool every_layer) {
  std::string text = format("fp8: %d converted, %d skipped\n", report.converted, report.skipped);
  for (const Line& line : lines_of(report, every_layer)) {
    text += format("  %-32s %4d matrices  %s\n", line.name.c_str(), line.matrices, line.verdict.c_str());
  }
  return text;
}

}  // namespace switchyard
