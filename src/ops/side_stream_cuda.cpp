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

void SideStream::run(const std::function<void()>& work) {
  if (!stream_) return work();
  stream_->begin.record(c10::cuda::getCurrentCUDAStream(stream_->stream.device_index()));
  const c10::cuda::CUDAStreamGuard guard(stream_->stream);
  stream_->begin.block(stream_->stream);
  work();
  stream_->end.record(stream_->stream);
}

void SideStream::join() {
  if (stream_) stream_->end.block(c10::cuda::getCurrentCUDAStream(stream_->stream.device_index()));
}

}  // namespace switchyard::ops
