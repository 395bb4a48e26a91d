// ops/head_loss.h: the output projection and its cross entropy, in chunks of tokens so that logits never exist whole.
#pragma once

#include "ops/linear.h"

namespace switchyard::ops {

struct HeadLossOptions {
  double softcap = 15;            // z = cap * tanh(logit / cap); 0: none
  double grad_scale = 1;          // gradients are those of grad_scale * sum of nll
  std::int64_t chunk_tokens = 0;  // 0: chosen so that a chunk of logits stays below 1 GiB
};

// x [T, D], w [V, D] (the head, or the tied embedding), target [T] int64 (-1: ignored).
// Returns (loss, nll): loss = grad_scale * sum nll, differentiable; nll [T] fp32, not differentiable.
// Under GradMode both gradients are taken here, chunk by chunk, while the logits are at hand: the gradient of w is
// added to its slice at once, so `loss` must enter the final sum with factor 1 and be differentiated exactly once.
std::pair<Tensor, Tensor> head_loss(const Tensor& x_TD, const Parameter& w_VD, const Tensor& target_T,
                                    const HeadLossOptions& options,
                                    const LinearProducts& products = LinearProducts::plain());
std::pair<Tensor, Tensor> head_loss_reference(const Tensor& x_TD, const Parameter& w_VD, const Tensor& target_T,
                                              const HeadLossOptions& options);

// Soft-capped logits, for generation and parity: [T, V].
Tensor capped_logits(const Tensor& x_TD, const Parameter& w_VD, double softcap);

}  // namespace switchyard::ops
