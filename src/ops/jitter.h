// ops/jitter.h: a random factor on every channel of the router's input (moe_spec R7; Fedus et al. 2021).
#pragma once

#include <utility>

#include "ops/noise.h"

namespace switchyard::ops {

// {x times U(1 - amount, 1 + amount), drawn anew for each channel of each token and rounded to the type of x; x itself,
// for its other readers (ops/gradient.h)}. x [T, D], on CUDA with D a multiple of 8; site, key: as in ops/noise.h.
std::pair<Tensor, Tensor> jitter(const Tensor& x_TD, double amount, std::uint64_t site, const DropoutKey& key);
std::pair<Tensor, Tensor> jitter_reference(const Tensor& x_TD, double amount, std::uint64_t site,
                                           const DropoutKey& key);

}  // namespace switchyard::ops
