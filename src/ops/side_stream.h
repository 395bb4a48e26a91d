// Work beside the current stream's: on a GPU a second stream, which a recorded graph then holds as a branch, and whose
// kernels come first, for it is meant for little work that takes long. On a CPU the work is done at once.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <memory>

namespace switchyard::ops {

class SideStream {
 public:
  explicit SideStream(at::Device device);
  ~SideStream();
  SideStream(SideStream&&) noexcept;

  // Both issue work that comes after all that was issued before; what `little` issues may run beside that of `work`.
  // What is issued later comes after both.
  void run(const std::function<void()>& little, const std::function<void()>& work);

 private:
  struct Stream;
  std::unique_ptr<Stream> stream_;  // null on a CPU
};

}  // namespace switchyard::ops
