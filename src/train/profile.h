// train.profile_step: one optimizer step under LibTorch's profiler, as a table of kernels and a trace.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace switchyard {

// Records step number `step` (1-based; 0: none) of the rank that owns it and writes, in `folder`,
//   profile.txt   kernels by total time: GPU kernels, copies and fills, those of CUDA graphs included. On a CPU the
//                 operators torch knows of, each without what it calls
//   profile.json  the trace of the same, for chrome://tracing or ui.perfetto.dev
// A profiler that cannot start or sees nothing costs one line in the log, never the run.
class StepProfile {
 public:
  // device: the GPU's index, -1 for a CPU.
  StepProfile(std::int64_t step, int device, std::string folder);

  // Around every step. The profiler is made ready one step early, which keeps its start out of the figures.
  void before(std::int64_t step);
  // Returns how long it took to write the profile: that is not training time.
  std::chrono::steady_clock::duration after(std::int64_t step);

 private:
  template <class Call>
  void guarded(const char* doing, Call call);
  void write();

  const std::int64_t step_;
  const int device_;
  const std::string folder_;
  bool prepared_ = false, failed_ = false;
  std::chrono::steady_clock::time_point start_;
};

// "void at::native::(anonymous namespace)::f<int, g<long> >(int*)" as a table shows it: no return type, no parameters,
// no namespaces that say nothing, template arguments cut.
std::string short_kernel_name(const std::string& name);

}  // namespace switchyard
