// Every linear layer of a model by its full name, from the config alone. The names are those of the modules.
#pragma once

#include <vector>

#include "config/config.h"
#include "precision/fp8_report.h"

namespace switchyard {

// Layer by layer: attn.qkv (three logical matrices), attn.value_gate, attn.out, then mlp.up, mlp.down or those of the
// sparse layer: moe.router.semantic (its projection), moe.router, moe.experts.up, moe.experts.down (each expert's
// apart, a gated up counts two; moe.null_expert = ffn is the last), moe.shared.up, moe.shared.down, moe.dense.up,
// moe.dense.down (of flexible_ffn); inl.in and inl.out of a module a layer. At the end those of a shared module, and
// the head.
std::vector<LinearLayer> linear_layers(const Config& config);

}  // namespace switchyard
