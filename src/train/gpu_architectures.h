// Which GPUs a build has kernels for, from the list it was compiled with. No torch, no CUDA.
#pragma once

#include <string>

namespace switchyard {

// architectures: as CMAKE_CUDA_ARCHITECTURES, with commas: "90a-real,80-virtual". A real one (cubin) runs on its own
// major capability from its minor on, a virtual one (PTX) also on all later GPUs, one without a suffix is both; 90a is
// for 9.0 alone. What is not a number (native, all, all-major) tells nothing, and counts as fitting.
bool has_kernels_for(const std::string& architectures, int major, int minor);

}  // namespace switchyard
