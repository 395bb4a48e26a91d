#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "train/sinks.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const StepMetrics& m) {
  Json json = {
      {"kind", "train"}, {"step", m.step}, {"tokens", m.tokens}, {"loss", m.loss}, {"smoothed_loss", m.smoothed_loss}};
  if (m.moe_layers > 0) {
    json["balance_loss"] = m.balance_loss;
    json["balance_per_layer"] = m.balance_per_layer;
    json["z_loss"] = m.z_loss;
    json["imbalance"] = m.imbalance;
    json["dead_experts"] = m.dead_experts;
    json["entropy"] = m.entropy;
  }
  json.update({{"lr_factor", m.lr_factor},
               {"lr", m.lr},
               {"grad_norm", m.grad_norm},
               {"tokens_per_s", m.tokens_per_s},
               {"seconds_per_step", m.seconds_per_step},
               {"forward_backward_ms", m.forward_backward_ms},
               {"optimizer_ms", m.optimizer_ms},
               {"mfu", m.mfu},
               {"memory_bytes", m.memory_bytes},
               {"elapsed_s", m.elapsed_s},
               {"eta_s", m.eta_s},
               {"skipped_nonfinite", m.skipped_nonfinite}});
  if (m.resets >= 0) json["resets"] = m.resets;
  if (m.seq_balance_loss >= 0) json["seq_balance_loss"] = m.seq_balance_loss;
  return json;
}

Json to_json(const EvalMetrics& m) {
  return {{"kind", "eval"},     {"step", m.step}, {"loss", m.loss},      {"bits_per_byte", m.bits_per_byte},
          {"tokens", m.tokens}, {"best", m.best}, {"seconds", m.seconds}};
}

Json to_json(const LayerRouting& layer) {
  const auto& count_E = layer.count_E;
  Json json = {{"layer", layer.layer}, {"counts", count_E}};
  if (layer.entropy >= 0) json["entropy"] = layer.entropy;
  if (!count_E.empty()) {
    json["max_vio"] = max_violation(count_E);
    json["max_over_min"] = max_over_min(count_E);
    json["l1"] = load_distance(count_E);
    json["dead"] = dead_experts(layer);
  }
  if (layer.zero_experts > 0) json["zero_experts"] = layer.zero_experts;
  if (!layer.idle_steps_E.empty()) json["idle_steps"] = layer.idle_steps_E;
  if (!layer.importance_E.empty()) json["importance"] = layer.importance_E;
  const auto known = [&](const char* name, auto value) {
    if (value >= 0) json[name] = value;
  };
  known("dropped", layer.dropped);
  known("to_null", layer.to_null);
  known("rerouted", layer.rerouted);
  known("max_bias", layer.max_bias);
  known("mix", layer.mix);
  known("warm_up", layer.warm_up);
  known("capacity", layer.capacity);
  known("velocity", layer.velocity);
  return json;
}

Json to_json(std::int64_t step, const std::vector<LayerRouting>& layers) {
  Json json = {{"kind", "routing"}, {"step", step}, {"layers", Json::array()}};
  for (const LayerRouting& layer : layers) json["layers"].push_back(to_json(layer));
  return json;
}

// The lines of complete JSON objects whose step lies before `step`.
std::string lines_before(const std::string& text, std::int64_t step) {
  std::string kept;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // torn: every whole line ends in a newline
    const std::string line = text.substr(begin, end - begin);
    const Json json = Json::parse(line, nullptr, false);
    const auto found = json.is_object() ? json.find("step") : json.end();
    if (found != json.end() && found->is_number_integer() && found->get<std::int64_t>() < step) kept += line + "\n";
    begin = end + 1;
  }
  return kept;
}

class JsonLinesSink : public MetricsSink {
 public:
  JsonLinesSink(std::string path, std::int64_t resumed_step) : path_(std::move(path)) {
    const bool resumes = resumed_step > 0 && std::filesystem::exists(path_);
    write_file_atomic(path_, resumes ? lines_before(read_file(path_), resumed_step) : "");
    file_ = std::fopen(path_.c_str(), "ae");
    if (!file_) fail("open");
  }
  ~JsonLinesSink() override { std::fclose(file_); }
  JsonLinesSink(const JsonLinesSink&) = delete;

  void step(const StepMetrics& metrics) override { write(to_json(metrics)); }
  void eval(const EvalMetrics& metrics) override { write(to_json(metrics)); }
  void routing(std::int64_t step, const std::vector<LayerRouting>& layers) override {
    if (!layers.empty()) write(to_json(step, layers));
  }

 private:
  void write(const Json& json) {
    const std::string line = json.dump() + "\n";
    if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0) fail("write");
  }
  [[noreturn]] void fail(const char* doing) const {
    throw RunError(std::string("cannot ") + doing + " " + path_ + ": " + std::strerror(errno));
  }

  std::string path_;
  std::FILE* file_ = nullptr;
};

}  // namespace

std::unique_ptr<MetricsSink> json_lines_sink(const std::string& path, std::int64_t resumed_step) {
  return std::make_unique<JsonLinesSink>(path, resumed_step);
}

}  // namespace switchyard
