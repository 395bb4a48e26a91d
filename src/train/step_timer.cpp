#include "train/step_timer.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace switchyard {

void StepTimer::mark(Mark mark) {
  time_[mark] = std::chrono::steady_clock::now();
  if (!device_.is_cuda()) return;
  std::optional<c10::Event>& event = event_[mark];
  if (!event) event.emplace(device_.type(), c10::EventFlag::BACKEND_DEFAULT);  // torch's own default keeps no time
  event->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
}

StepTimer::Parts StepTimer::last_step() const {
  const auto between = [&](Mark from, Mark to) {
    if (!device_.is_cuda()) return std::chrono::duration<double, std::milli>(time_[to] - time_[from]).count();
    return event_[to] ? event_[from]->elapsedTime(*event_[to]) : 0.0;
  };
  return {between(kBegin, kUpdate), between(kUpdate, kEnd)};
}

}  // namespace switchyard
