// bench/device_clock.h: what timings of single kernels share: filled device buffers and a clock that knows the floors.
// CUDA builds only; no torch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "bench/kernel_timings.h"
#include "kernels/cuda_check.h"
#include "kernels/types.h"

namespace switchyard::bench {

using kernels::bf16;
using kernels::fp16;
using kernels::Stream;

// Device memory, zero until written.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t count) : count_(count) {
    SWITCHYARD_CUDA(cudaMalloc(&data_, count * sizeof(T)));
    SWITCHYARD_CUDA(cudaMemset(data_, 0, count * sizeof(T)));
  }
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) {
    SWITCHYARD_CUDA(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  T* get() const { return data_; }
  std::size_t size() const { return count_; }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

inline void from_float(float value, float& out) { out = value; }
inline void from_float(float value, bf16& out) {  // cut off, not rounded: it is noise
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  out.bits = static_cast<std::uint16_t>(bits >> 16);
}
inline void from_float(float value, fp16& out) {  // cut off; what half precision has no exponent for is 0
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
  out.bits =
      exponent <= 0 ? 0 : static_cast<std::uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 1023));
}

// A buffer of noise from -2 to 2: the power that a product draws, and with it the clock rate, depends on its operands.
template <class T>
struct Filled {
  Buffer<T> device;
  explicit Filled(std::size_t count) : device(count) {
    // The noise repeats; its length is prime, so rows and tiles differ.
    constexpr std::size_t kPeriod = 1048573;
    std::vector<T> noise(count < kPeriod ? count : kPeriod);
    std::uint32_t state = 12345;
    for (T& v : noise) {
      state = state * 1664525u + 1013904223u;
      from_float(static_cast<float>(state >> 8) * (4.0f / 16777216) - 2.0f, v);
    }
    const auto copy = [](T* to, const T* from, std::size_t length, cudaMemcpyKind kind) {
      SWITCHYARD_CUDA(cudaMemcpy(to, from, length * sizeof(T), kind));
    };
    copy(get(), noise.data(), noise.size(), cudaMemcpyHostToDevice);
    for (std::size_t done = noise.size(); done < count;) {  // whole periods are copied on, doubling
      const std::size_t length = done < count - done ? done : count - done;
      copy(get() + done, get(), length, cudaMemcpyDeviceToDevice);
      done += length;
    }
  }
  T* get() const { return device.get(); }
};

// Times launches, prints a line each, and keeps them.
class Clock {
 public:
  // Measures the rate of a device copy first. product_rate, only: as in kernel_timings.h.
  Clock(double product_rate, std::string only);
  ~Clock();
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

  // bytes: what has to cross memory once
  void time(const std::string& name, double bytes, const std::function<void(Stream)>& launch) {
    measure({name, 0, bytes / copy_rate_, bytes, false}, launch);
  }
  void time_product(const std::string& name, double flops, const std::function<void(Stream)>& launch) {
    measure({name, 0, flops / product_rate_, flops, true}, launch);
  }
  // For work that is timed elsewhere: whether it is asked for, and its line.
  bool asks_for(const std::string& name) const { return name.find(only_) != std::string::npos; }
  void keep_product(const std::string& name, double flops, double seconds) {
    keep({name, seconds, flops / product_rate_, flops, true});
  }
  const std::vector<KernelTiming>& timings() const { return timings_; }

 private:
  void measure(KernelTiming timing, const std::function<void(Stream)>& launch);
  void keep(KernelTiming timing);
  double seconds_of(const std::function<void(Stream)>& launch);
  double seconds_between(const std::function<void()>& work);
  double measure_copy_rate();

  cudaStream_t stream_;
  cudaEvent_t begin_, end_;
  double copy_rate_ = 1;  // bytes a second, read and written
  const double product_rate_;
  const std::string only_;
  std::vector<KernelTiming> timings_;
};

}  // namespace switchyard::bench
