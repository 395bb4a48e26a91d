// Every CUDA kernel against straightforward host loops in double. Their speed: `bench ops`.
// Exit status: 0 all passed, 1 some failed, 77 no GPU (the test is skipped).
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "harness.h"
#include "kernels/device.h"

namespace switchyard::gpu_check {

void Report::compare(const std::string& kernel, const std::string& what, const Values& got, const Values& want,
                     Bound bound) {
  Line& line = lines_[kernel];
  std::size_t bad = 0, first = 0;
  for (std::size_t i = 0; i < want.size() && got.size() == want.size(); ++i) {
    const double error = std::fabs(got[i] - want[i]), allowed = bound.relative * std::fabs(want[i]) + bound.absolute;
    const bool good = error <= allowed;  // false for NaN
    if (!good && bad++ == 0) first = i;
    if (allowed > 0 && error / allowed > line.worst) line.worst = error / allowed;
  }
  if (got.size() == want.size() && bad == 0) {
    ++line.passed;
    return;
  }
  ++line.failed;
  if (got.size() != want.size())
    std::printf("FAILED %s, %s: %zu values instead of %zu\n", kernel.c_str(), what.c_str(), got.size(), want.size());
  else
    std::printf("FAILED %s, %s: %zu of %zu differ, first at %zu: %.9g instead of %.9g\n", kernel.c_str(), what.c_str(),
                bad, want.size(), first, got[first], want[first]);
}

void Report::expect(const std::string& kernel, const std::string& what, bool holds) {
  Line& line = lines_[kernel];
  ++(holds ? line.passed : line.failed);
  if (!holds) std::printf("FAILED %s, %s\n", kernel.c_str(), what.c_str());
}

int Report::finish() const {
  int passed = 0, failed = 0;
  std::printf("\n%-36s %7s %7s   %s\n", "kernel", "passed", "failed", "largest error / bound");
  for (const auto& [kernel, line] : lines_) {
    std::printf("%-36s %7d %7d   %.2f\n", kernel.c_str(), line.passed, line.failed, line.worst);
    passed += line.passed, failed += line.failed;
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

void run_captured(const std::function<void(Stream)>& launches) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  SWITCHYARD_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  SWITCHYARD_CUDA(cudaDeviceSynchronize());  // uploads went through another stream
  SWITCHYARD_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  launches(stream);
  SWITCHYARD_CUDA(cudaStreamEndCapture(stream, &graph));
  SWITCHYARD_CUDA(cudaGraphInstantiate(&ready, graph, 0));
  SWITCHYARD_CUDA(cudaGraphLaunch(ready, stream));
  SWITCHYARD_CUDA(cudaStreamSynchronize(stream));
  SWITCHYARD_CUDA(cudaGraphExecDestroy(ready));
  SWITCHYARD_CUDA(cudaGraphDestroy(graph));
  SWITCHYARD_CUDA(cudaStreamDestroy(stream));
}

}  // namespace switchyard::gpu_check

namespace {

using namespace switchyard;

struct Part {
  const char* name;
  void (*check)(gpu_check::Report&);
  bool (*supported)(int capability_major, int capability_minor) = nullptr;  // null: everywhere
};
const Part kParts[] = {
    {"norm_and_rope", gpu_check::check_norm_and_rope},
    {"add_norm_router", gpu_check::check_add_norm_router},
    {"rows", gpu_check::check_rows},
    {"router_logits", gpu_check::check_router_logits},
    {"routing", gpu_check::check_routing},
    {"selection", gpu_check::check_selection},
    {"choice", gpu_check::check_choice},
    {"zero_experts", gpu_check::check_zero_experts},
    {"reroute", gpu_check::check_reroute},
    {"dispatch", gpu_check::check_dispatch},
    {"grouped_gemm", gpu_check::check_grouped_gemm, kernels::runs_hopper_kernels},
    {"portable_gemm", gpu_check::check_portable_gemm},
    {"loss_and_optimizers", gpu_check::check_loss_and_optimizers},
    {"products", gpu_check::check_products, kernels::runs_hopper_kernels},
    {"attention", gpu_check::check_attention, kernels::runs_hopper_kernels},
};

bool asked_for(const std::string& name, int count, char** names) {
  return count == 1 || std::find(names + 1, names + count, name) != names + count;
}

}  // namespace

// kernel_check [PART…]: those of kParts, or all.
int main(int argc, char** argv) {
  setenv("CUDA_MODULE_LOADING", "EAGER", 1);  // the first launch of every kernel here is a captured one
  if (kernels::device_count() == 0) {
    std::printf("skipped: no GPU\n");
    return 77;
  }
  const kernels::DeviceInfo device = kernels::device_info(0);
  std::printf("%s, %d multiprocessors, compute capability %d.%d\n", device.name.c_str(), device.multiprocessors,
              device.capability_major, device.capability_minor);
  gpu_check::Report report;
  for (const Part& part : kParts) {
    if (!asked_for(part.name, argc, argv)) continue;
    if (!part.supported || part.supported(device.capability_major, device.capability_minor))
      part.check(report);
    else
      std::printf("skipped: %s, which needs capability 9.0 and a build for 90a\n", part.name);
  }
  return report.finish();
}
