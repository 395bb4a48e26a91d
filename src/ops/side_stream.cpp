#ifndef SWITCHYARD_WITH_CUDA
#include "ops/side_stream.h"

namespace switchyard::ops {

struct SideStream::Stream {};
SideStream::SideStream(at::Device) {}
SideStream::~SideStream() = default;
SideStream::SideStream(SideStream&&) noexcept = default;
void SideStream::run(const std::function<void()>& little, const std::function<void()>& work) { little(), work(); }

}  // namespace switchyard::ops
#endif
