#include "base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <memory>

namespace switchyard::log {
namespace {

spdlog::level::level_enum level_from_environment() {
  const char* text = std::getenv("SWITCHYARD_LOG");
  return text ? spdlog::level::from_str(text) : spdlog::level::info;
}

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto sink = std::make_shared<spdlog::sinks::stdout_color_sink_mt>();
    sink->set_pattern("%^%v%$");
    auto created = std::make_shared<spdlog::logger>("switchyard", sink);
    created->set_level(level_from_environment());
    created->flush_on(spdlog::level::debug);
    return created;
  }();
  return *instance;
}

}  // namespace

void debug(const std::string& message) { logger().debug(message); }
void info(const std::string& message) { logger().info(message); }
void warn(const std::string& message) { logger().warn("warning: " + message); }
void error(const std::string& message) { logger().error("error: " + message); }

void set_rank(int rank, int world_size) {
  if (world_size <= 1 || rank == 0) return;
  logger().set_level(spdlog::level::warn);
  for (const auto& sink : logger().sinks()) sink->set_pattern("%^[rank " + std::to_string(rank) + "] %v%$");
}

void also_to_file(const std::string& path) {
  auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
  sink->set_pattern("%Y-%m-%d %H:%M:%S %v");
  logger().sinks().push_back(sink);
}

}  // namespace switchyard::log
