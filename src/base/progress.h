// How far a long job is: one line rewritten in place on a terminal, a plain line now and then elsewhere. On stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace switchyard {

class Progress {
 public:
  enum class Unit { kCount, kBytes };
  // total 0: unknown. enabled = false (ranks other than 0): silent.
  Progress(std::string title, std::int64_t total, Unit unit = Unit::kCount, bool enabled = true);
  ~Progress();  // as finish()
  Progress(const Progress&) = delete;
  void update(std::int64_t done);  // cheap: draws at most ten times a second. One thread at a time
  void finish();                   // the last line: what was done and how long it took

 private:
  void draw(bool last);

  using Clock = std::chrono::steady_clock;
  std::string title_;
  std::int64_t total_, done_ = 0;
  Unit unit_;
  bool enabled_, terminal_, finished_ = false;
  Clock::time_point start_, drawn_;
};

}  // namespace switchyard
