#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "ops/side_stream.h"

namespace switchyard::ops {

struct SideStream::Stream {
  c10::cuda::CUDAStream stream;
  at::cuda::CUDAEvent begin, end;
};

SideStream::SideStream(at::Device device) {
  if (device.is_cuda())
    stream_ =
        std::make_unique<Stream>(Stream{c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device.index()), {}, {}});
}

SideStream::~SideStream() = default;
SideStream::SideStream(SideStream&&) noexcept = default;

void SideStream::run(const std::function<void()>& little, const std::function<void()>& work) {
  if (!stream_) return little(), work();
  const c10::cuda::CUDAStream side = stream_->stream, current = c10::cuda::getCurrentCUDAStream(side.device_index());
  stream_->begin.record(current);
  stream_->begin.block(side);
  const auto join = [&] {
    stream_->end.record(side);
    stream_->end.block(current);
  };
  try {
    {
      const c10::cuda::CUDAStreamGuard guard(side);
      little();
    }
    work();
  } catch (...) {
    join();  // memory that the side stream still uses may be given away now
    throw;
  }
  join();
}

}  // namespace switchyard::ops
