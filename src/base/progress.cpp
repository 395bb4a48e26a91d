#include "base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/log.h"
#include "base/text.h"

namespace switchyard {
namespace {

constexpr double kTerminalInterval_s = 0.1;
constexpr double kLineInterval_s = 10;
constexpr int kBarWidth = 24;

std::string amount(std::int64_t value, Progress::Unit unit) {
  return unit == Progress::Unit::kBytes ? human_bytes(static_cast<double>(value)) : with_commas(value);
}

std::string bar(double fraction) {
  const int full = std::clamp(static_cast<int>(fraction * kBarWidth), 0, kBarWidth);
  return "[" + std::string(static_cast<std::size_t>(full), '=') +
         std::string(static_cast<std::size_t>(kBarWidth - full), ' ') + "]";
}

}  // namespace

Progress::Progress(std::string title, std::int64_t total, Unit unit, bool enabled)
    : title_(std::move(title)),
      total_(total),
      unit_(unit),
      enabled_(enabled),
      terminal_(log::alone() && ::isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      drawn_(start_) {
  if (enabled_ && terminal_) draw(false);
}

Progress::~Progress() { finish(); }

void Progress::update(std::int64_t done) {
  done_ = done;
  if (!enabled_) return;
  const auto now = Clock::now();
  if (std::chrono::duration<double>(now - drawn_).count() < (terminal_ ? kTerminalInterval_s : kLineInterval_s)) return;
  drawn_ = now;
  draw(false);
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  if (enabled_) draw(true);
}

void Progress::draw(bool last) {
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const double fraction = total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : 0;
  std::string line = title_ + "  ";
  if (last) {
    line += (done_ > 0 ? amount(done_, unit_) + " in " : std::string("done in ")) + format("%.1f s", seconds);
  } else {
    if (total_ > 0) line += (terminal_ ? bar(fraction) + " " : std::string()) + format("%3.0f%%  ", 100 * fraction);
    line += amount(done_, unit_);
    if (total_ > 0 && fraction > 0.02) line += "  " + human_duration(seconds / fraction - seconds) + " left";
  }
  std::fprintf(stderr, terminal_ ? "\r\033[K%s%s" : "%s%s", line.c_str(), !terminal_ || last ? "\n" : "");
  std::fflush(stderr);
}

}  // namespace switchyard
