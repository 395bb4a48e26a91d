#include "train/device.h"

#include <ATen/Parallel.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "kernels/router.h"
#include "model/layer_rules.h"
#include "train/cpu_peak.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#ifdef SWITCHYARD_WITH_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>

#include "kernels/device.h"
#include "train/gpu_architectures.h"
#include "train/replay.h"
#endif

namespace switchyard {
namespace {

// Freed blocks stay with the process, for the next micro-batch asks for the same ones: given back to the system, each
// would be mapped and cleared anew, a seventh of a small sparse layer's time where it was measured.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

ComputeDevice cpu_device(const Config& config) {
  if (config.precision.mode == "fp8")
    throw ConfigError(
        "precision.mode = fp8 needs a GPU of capability 8.9 or higher; on this CPU use fp32 (--precision.mode fp32)");
  if (config.precision.mode == "bf16") log::info("precision: bf16 is computed in fp32 on a CPU");
  keep_freed_memory();
  ComputeDevice cpu;
  cpu.name = format("CPU, %d threads", at::get_num_threads());
  cpu.peak_tflops = measure_cpu_gemm_tflops();
  return cpu;
}

#ifdef SWITCHYARD_WITH_CUDA
// What is not ours to order: cuBLAS, cuDNN and torch's attention, which ops/attention.h asks for where cuDNN has no
// kernel. Before the first of them is used.
void use_deterministic_algorithms() {
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);  // cuBLAS promises one order for a fixed workspace
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);  // our kernels overwrite what they are given
  at::globalContext().setDeterministicCuDNN(true);
  at::globalContext().setSDPUseCuDNN(false);  // torch's own call of it asks for no fixed order
  log::info("train.deterministic: torch and cuDNN keep to algorithms of a fixed order, which are slower");
}

// Else the first kernel ends the run with "no kernel image is available".
void check_capability(const cudaDeviceProp& gpu, int index) {
  if (has_kernels_for(SWITCHYARD_CUDA_ARCHITECTURES, gpu.major, gpu.minor)) return;
  throw ConfigError(
      format("GPU %d, %s, has capability %d.%d, and this build has kernels for %s only; %s, or --device cpu", index,
             gpu.name, gpu.major, gpu.minor, SWITCHYARD_CUDA_ARCHITECTURES,
             gpu.major >= 8 ? "configure it with -DCMAKE_CUDA_ARCHITECTURES=\"90a-real;80-virtual\""
                            : "use a GPU of capability 8.0 or higher (Ampere and later)"));
}

void log_kernels(const cudaDeviceProp& gpu) {
  if (kernels::runs_hopper_kernels(gpu.major, gpu.minor)) return;
  const char* reason = kernels::portable_kernels_forced() ? "SWITCHYARD_PORTABLE_KERNELS=1 asks for them"
                       : gpu.major == 9                   ? "this build lacks Hopper's own (no 90a in "
                                                            "CMAKE_CUDA_ARCHITECTURES)"
                                                          : "those for Hopper need capability 9.0";
  log::info(format("the products of experts and of Muon use kernels for any GPU: %s", reason));
}

ComputeDevice gpu_device(const Config& config, int local_rank) {
  const int count = c10::cuda::device_count();
  if (local_rank >= count)
    throw ConfigError(format("%d ranks on this host but %d GPUs; start at most one rank a GPU", local_rank + 1, count));
  if (config.train.deterministic) use_deterministic_algorithms();
  ComputeDevice gpu;
  gpu.device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(local_rank));
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(local_rank));
  use_side_stream(local_rank);  // from here on, so that every buffer belongs to the stream that is captured
  const cudaDeviceProp& properties = *at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(local_rank));
  check_capability(properties, local_rank);
  log_kernels(properties);
  gpu.name = properties.name;
  gpu.has_fp8 = properties.major > 8 || (properties.major == 8 && properties.minor >= 9);
  gpu.peak_tflops = kernels::peak_tflops(gpu.name, kernels::PeakType::kBf16);
  gpu.activation_dtype = config.precision.mode == "fp32" ? at::kFloat : at::kBFloat16;
  if (config.precision.mode == "fp8" && !gpu.has_fp8)
    throw ConfigError("precision.mode = fp8 needs a GPU of capability 8.9 or higher; " + gpu.name +
                      " has none, use bf16");
  return gpu;
}
#endif

}  // namespace

void check_gpu_limits(const Config& config) {
  const auto check = [](bool holds, const char* key, int value, const std::string& limit) {
    if (!holds)
      throw ConfigError(format("%s = %d: kernels for GPUs take %s; or --device cpu", key, value, limit.c_str()));
  };
  const auto multiple = [&](const char* key, int value, int of, int most) {
    const int below = std::min(value, most) / of * of;
    const std::string near = below == 0          ? std::to_string(of)
                             : below > most - of ? std::to_string(below)
                                                 : format("%d or %d", below, below + of);
    check(value % of == 0 && value <= most, key, value, format("multiples of %d, as %s is", of, near.c_str()));
  };
  constexpr int kAny = std::numeric_limits<int>::max();
  const ModelConfig& model = config.model;
  multiple("model.head_dim", model.head_dim, 16, 256);
  multiple("model.n_embd", model.n_embd, 8, 8192);
  multiple("model.vocab_size", model.vocab_size, 8, kAny);
  if (!config.moe.use_moe) return;
  check(config.router.top_k <= kernels::kMaxTopK, "router.top_k", config.router.top_k,
        format("up to %d", kernels::kMaxTopK));
  check(router_columns(config.moe) <= kernels::kMaxExperts, "moe.n_experts", config.moe.n_experts,
        format("up to %d, zero experts counted", kernels::kMaxExperts));
  if (config.moe.backend != "reference") multiple("moe.d_expert", expert_width(config), 8, kAny);
}

void share_cores(int local_size) {
  cpu_set_t allowed;
  if (local_size <= 1 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  const int mine = CPU_COUNT(&allowed);
  // A launcher that binds ranks to cores has divided them already.
  at::set_num_threads(mine < online ? mine : std::max(1, mine / local_size));
}

bool cuda_available() {
#ifdef SWITCHYARD_WITH_CUDA
  return c10::cuda::device_count() > 0;
#else
  return false;
#endif
}

ComputeDevice choose_device(const Config& config, int local_rank) {
  const bool gpu = config.device == "cuda" || (config.device == "auto" && cuda_available());
  if (!gpu) return cpu_device(config);
#ifdef SWITCHYARD_WITH_CUDA
  if (!cuda_available())
    throw ConfigError("device = cuda but no GPU is visible; check the driver, or use --device cpu");
  check_gpu_limits(config);
  return gpu_device(config, local_rank);
#else
  (void)local_rank;
  throw ConfigError("device = cuda but this build has no CUDA; run runs/setup.sh --cuda, or use --device cpu");
#endif
}

}  // namespace switchyard
