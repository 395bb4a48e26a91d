// What the GPU kernel checks share: device buffers that start as NaN, launches through a CUDA graph, comparison against
// host results in double, and the table of what was compared. No torch, no test framework.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda_check.h"
#include "kernels/types.h"

namespace switchyard::gpu_check {

using kernels::bf16;
using kernels::fp16;
using kernels::Stream;
using Values = std::vector<double>;

inline double to_double(float v) { return v; }
inline double to_double(int v) { return v; }
inline double to_double(bf16 v) {
  const std::uint32_t bits = static_cast<std::uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
inline double to_double(fp16 v) { return __half2float(__half(__half_raw{v.bits})); }
inline void from_double(double d, fp16& v) { v.bits = __half_raw(__float2half_rn(static_cast<float>(d))).x; }
inline void from_double(double d, float& v) { v = static_cast<float>(d); }
inline void from_double(double d, int& v) { v = static_cast<int>(d); }
inline void from_double(double d, bf16& v) {  // to nearest, ties to even; finite values
  const float f = static_cast<float>(d);
  std::uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  v.bits = static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Device memory, every byte 0xff until written: NaN as float or bf16, -1 as int. Eight guard bytes behind the end tell
// a write past it.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t count) : count_(count) {
    SWITCHYARD_CUDA(cudaMalloc(&data_, count * sizeof(T) + kGuard));
    SWITCHYARD_CUDA(cudaMemset(data_, 0xff, count * sizeof(T) + kGuard));
  }
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) { upload(host); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }

  void upload(const std::vector<T>& host) {
    SWITCHYARD_CUDA(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> download() const {
    std::vector<T> host(count_);
    SWITCHYARD_CUDA(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
  bool guard_intact() const {
    unsigned char guard[kGuard];
    SWITCHYARD_CUDA(cudaMemcpy(guard, reinterpret_cast<const unsigned char*>(data_) + count_ * sizeof(T), kGuard,
                               cudaMemcpyDeviceToHost));
    for (const unsigned char byte : guard)
      if (byte != 0xff) return false;
    return true;
  }
  T* get() const { return data_; }
  std::size_t size() const { return count_; }

 private:
  static constexpr std::size_t kGuard = 64;
  T* data_ = nullptr;
  std::size_t count_;
};

// Values as a T holds them, on both sides.
template <class T>
struct Input {
  Values host;
  Buffer<T> device;

  explicit Input(const Values& values) : host(values.size()), device(values.size()) {
    std::vector<T> rounded(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      from_double(values[i], rounded[i]);
      host[i] = to_double(rounded[i]);
    }
    device.upload(rounded);
  }
  T* get() const { return device.get(); }
  double operator[](std::size_t i) const { return host[i]; }
};

template <class T>
Values values_of(const Buffer<T>& buffer) {
  const std::vector<T> host = buffer.download();
  Values values(host.size());
  for (std::size_t i = 0; i < host.size(); ++i) values[i] = to_double(host[i]);
  return values;
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  Values normal(std::size_t count, double scale = 1.0) {
    std::normal_distribution<double> draw(0.0, scale);
    Values values(count);
    for (double& v : values) v = draw(engine_);
    return values;
  }
  double one() { return std::normal_distribution<double>()(engine_); }
  int below(int limit) { return static_cast<int>(engine_() % static_cast<unsigned>(limit)); }

 private:
  std::mt19937 engine_;
};

// |got - want| <= relative |want| + absolute
struct Bound {
  double relative, absolute;
};
// One rounding of the result (at most 1/256 in bf16) and what the sums before it may be off.
template <class T>
Bound bound_of(double scale = 1.0) {
  return sizeof(T) == 2 ? Bound{1.0 / 250, 1e-4 * scale} : Bound{2e-5, 1e-5 * scale};
}
inline constexpr Bound kExact{0, 0};

template <class T>
std::string type_name() {
  return sizeof(T) == 2 ? "bf16" : "float";
}

class Report {
 public:
  // Counts one comparison under `kernel`; prints where it failed.
  void compare(const std::string& kernel, const std::string& what, const Values& got, const Values& want, Bound bound);
  void expect(const std::string& kernel, const std::string& what, bool holds);
  int finish() const;  // prints the table; the exit status

 private:
  struct Line {
    int passed = 0, failed = 0;
    double worst = 0;  // largest error as a fraction of its bound
  };
  std::map<std::string, Line> lines_;
};

// Captures the launches into a graph and runs that once, so that every check shows its kernel to be capturable too.
void run_captured(const std::function<void(Stream)>& launches);

void check_norm_and_rope(Report&);
void check_add_norm_router(Report&);
void check_rows(Report&);
void check_router_logits(Report&);
void check_routing(Report&);
void check_selection(Report&);
void check_choice(Report&);
void check_zero_experts(Report&);
void check_reroute(Report&);
void check_dispatch(Report&);
void check_grouped_gemm(Report&);
void check_portable_gemm(Report&);
void check_loss_and_optimizers(Report&);
void check_products(Report&);
void check_attention(Report&);

}  // namespace switchyard::gpu_check
