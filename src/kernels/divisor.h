// kernels/divisor.h: division by a number that is known before a kernel starts, in a product and a comparison. The
// compiler's own takes 40 instructions that wait for one another, between two tiles of a product for all of its warps.
#pragma once

#include <cstdint>

#include "base/philox.h"  // SWITCHYARD_HOST_DEVICE

namespace switchyard::kernels {

struct Divisor {
  unsigned by = 1, inverse = ~0u;

  Divisor() = default;
  explicit Divisor(int divisor) : by(static_cast<unsigned>(divisor)), inverse(~0u / by) {}  // 1 or more

  // n / by for n in [0, 2^31): the estimate is that or one less.
  SWITCHYARD_HOST_DEVICE int quotient(int n) const {
    const auto number = static_cast<unsigned>(n);
    const auto estimate = static_cast<unsigned>((static_cast<std::uint64_t>(number) * inverse) >> 32);
    return static_cast<int>(estimate + (number - estimate * by >= by ? 1 : 0));
  }
  SWITCHYARD_HOST_DEVICE int remainder(int n) const { return n - quotient(n) * static_cast<int>(by); }
};

}  // namespace switchyard::kernels
