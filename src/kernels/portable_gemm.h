// kernels/portable_gemm.h: the products of kernels/grouped_gemm.h for every GPU from capability 8.0 on: bf16 on the
// tensor cores with fp32 sums, fp32 outside them in fp32 throughout. Same descriptions and promises; the tables'
// scheduler is neither used nor needed. Of the activations relu^2 alone, no `gathered`, no weight gradient that
// gathers.
#pragma once

#include "kernels/grouped_gemm.h"

namespace switchyard::kernels {

inline constexpr int kPortableAlignment = 128;  // groups.alignment is this or a multiple

int portable_dot_parts(int columns);  // P of GroupedDgradOf::dot

// T: bf16, float. 16-byte aligned matrices.
template <class T>
void portable_forward(const GroupedForwardOf<T>&, Stream);
template <class T>
void portable_dgrad(const GroupedDgradOf<T>&, Stream);
template <class T>
void portable_wgrad(const GroupedWgradOf<T>&, Stream);

}  // namespace switchyard::kernels
