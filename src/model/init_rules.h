// Initial values by role and family (moe_spec M9, E14).
#pragma once

#include "config/config.h"
#include "ops/parameter.h"

namespace switchyard {

// nanochat: token embedding N(0,1), head N(0, 0.001^2), input matrices U(+-sqrt(3/D)), output matrices 0, value
// embeddings U(+-sqrt(3/D)), gates 0.  llama: N(0, init_std^2), output matrices times 1/sqrt(2L).
enum class Role { kTokenEmbedding, kValueEmbedding, kValueGate, kHead, kInput, kOutput };
Init initial(Role role, const ModelConfig& model);

// The same for experts: moe.init uniform (inputs U(+-sqrt(3/D)), outputs 0), or normal with moe.init_std.
Init initial_expert(Role role, const Config& config);

}  // namespace switchyard
