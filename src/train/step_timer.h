// How long the two parts of the last step took, without ever making the host wait.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Event.h>

#include <array>
#include <chrono>
#include <optional>

namespace switchyard {

class StepTimer {
 public:
  explicit StepTimer(at::Device device) : device_(device) {}

  // Marks on the device's current stream, on a CPU the clock. A step marks all three, in this order.
  enum Mark { kBegin, kUpdate, kEnd };
  void mark(Mark mark);

  struct Parts {
    double forward_backward_ms = 0;  // all micro-batches of this rank
    double optimizer_ms = 0;         // joining, clipping, update
  };
  // Of the last step, once the device has been waited for; zeros before the first.
  Parts last_step() const;

 private:
  const at::Device device_;
  std::array<std::optional<c10::Event>, 3> event_;
  std::array<std::chrono::steady_clock::time_point, 3> time_{};
};

}  // namespace switchyard
