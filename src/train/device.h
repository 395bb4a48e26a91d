// The device a rank computes on, and what it can do.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "config/config.h"

namespace switchyard {

struct ComputeDevice {
  at::Device device = at::kCPU;
  at::ScalarType activation_dtype = at::kFloat;  // bf16 on a GPU unless precision.mode is fp32; fp32 on a CPU
  std::string name;                              // "NVIDIA H200", "CPU, 2 threads"
  double peak_tflops = 0;  // dense bf16 of a GPU by its data sheet, measured fp32 products of a CPU; 0: unknown
  bool has_fp8 = false;
  int index() const { return device.is_cuda() ? device.index() : -1; }
};

bool cuda_available();
// config.device auto takes a GPU where this build and this machine have one. ConfigError: cuda without a GPU, fp8 on a
// device without it. local_rank: which of the host's GPUs.
ComputeDevice choose_device(const Config& config, int local_rank);
// What the kernels for GPUs ask of a model. ConfigError: the key, its value, and the nearest that they take.
void check_gpu_limits(const Config& config);
// Ranks of one host divide its cores: sets torch's threads to this rank's share of those it may run on.
void share_cores(int local_size);

}  // namespace switchyard
