#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace switchyard::log {
namespace {

spdlog::level::level_enum level_from_environment() {
  const char* text = std::getenv("SWITCHYARD_LOG");
  return text ? spdlog::level::from_str(text) : spdlog::level::info;
}

std::atomic<bool> is_alone{true}, status_shown{false};

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

void write(spdlog::level::level_enum level, const std::string& message) {
  if (logger().should_log(level)) erase_status();
  logger().log(level, message);
}

}  // namespace

void debug(const std::string& message) { write(spdlog::level::debug, message); }
void info(const std::string& message) { write(spdlog::level::info, message); }
void warn(const std::string& message) { write(spdlog::level::warn, "warning: " + message); }
void error(const std::string& message) { write(spdlog::level::err, "error: " + message); }

bool alone() { return is_alone; }

void status(const std::string& text) {
  if (!alone() || ::isatty(STDOUT_FILENO) == 0) return;
  std::printf("\r\033[K%s", text.c_str());
  std::fflush(stdout);
  status_shown = true;
}

void erase_status() {
  if (!status_shown.exchange(false)) return;
  std::fputs("\r\033[K", stdout);
  std::fflush(stdout);
}

void set_rank(int rank, int world_size) {
  if (world_size <= 1) return;
  is_alone = false;
  static_cast<spdlog::sinks::stdout_color_sink_mt&>(*logger().sinks()[0]).set_color_mode(spdlog::color_mode::never);
  if (rank == 0) return;
  logger().set_level(spdlog::level::warn);
  for (const auto& sink : logger().sinks()) sink->set_pattern("%^[rank " + std::to_string(rank) + "] %v%$");
}

}  // namespace switchyard::log
