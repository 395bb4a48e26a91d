// The optimizer's options: Muon for block matrices, AdamW for the rest, and the schedule of both.
#pragma once

#include "config/config.h"
#include "config/constraint.h"

namespace switchyard {

template <class V>
void describe(V& v, MuonConfig& c) {
  v.field("lr", c.lr, at_least(0), "Peak learning rate; a step is scaled by sqrt(max(1, rows / columns)).",
          "O1; Jordan et al. 2024 (Muon)");
  v.field("momentum_start", c.momentum_start, from_up_to(0, 1), "Momentum at step 0.", "O1");
  v.field("momentum_end", c.momentum_end, from_up_to(0, 1), "Momentum from momentum_warmup_steps on.", "O1");
  v.field("momentum_warmup_steps", c.momentum_warmup_steps, at_least(0),
          "Steps over which momentum goes linearly from start to end. 0: the end value at once.", "O1");
  v.field("nesterov", c.nesterov, any(), "Look ahead: orthogonalise gradient and momentum mixed, not momentum alone.",
          "O1");
  v.field("iterations", c.iterations, between(1, 20),
          "Iterations of the matrix polynomials that orthogonalise a step: of degree 17, 17 and 9, made for three; "
          "further ones repeat the last. Each costs two products with the matrix and one or more of its short side.",
          "O1; Amsel et al. 2025 (Polar Express)");
  v.field("weight_decay", c.weight_decay, at_least(0),
          "Shrinks weights where step and weight point the same way (cautious); falls linearly to 0 over the run.",
          "O1; Liang et al. 2024 (cautious optimizers)");
  v.field("variance_reduction", c.variance_reduction, any(),
          "NorMuon: divide each row (or column) of a step by its running root mean square.",
          "O1; Li et al. 2025 (NorMuon)");
  v.field("beta2", c.beta2, from_up_to(0, 1),
          "Decay of variance_reduction's running mean square; nothing else reads it.", "O1");
}

template <class V>
void describe(V& v, AdamwConfig& c) {
  v.field("embed_lr", c.embed_lr, at_least(0), "Peak learning rate of the token embedding.",
          "O2; Loshchilov, Hutter 2017 (AdamW)");
  v.field("value_embed_lr", c.value_embed_lr, at_least(0), "Peak learning rate of the value embeddings.", "O2");
  v.field("head_lr", c.head_lr, at_least(0), "Peak learning rate of the head; without effect when tied.", "O2");
  v.field("gate_lr", c.gate_lr, at_least(0),
          "Peak learning rate of value gates, of what routers have besides their matrix (token importance, a cosine "
          "router's bias and scale, constant experts), and of routers under optim.router_optimizer = adamw.",
          "O2");
  v.field("scalar_lr", c.scalar_lr, at_least(0),
          "Peak learning rate of residual scalars, norm weights, the share of moe.flexible_ffn, and the vectors of "
          "model.inl.",
          "O2");
  v.field("x0_lr", c.x0_lr, at_least(0), "Peak learning rate of the scalars on x0.", "O2");
  v.field("beta1", c.beta1, from_up_to(0, 1), "Decay of the running mean of gradients.", "O2");
  v.field("x0_beta1", c.x0_beta1, from_up_to(0, 1), "beta1 of the scalars on x0.", "O2");
  v.field("beta2", c.beta2, from_up_to(0, 1), "Decay of the running mean of squared gradients.", "O2");
  v.field("eps", c.eps, positive(), "Added to the root of the running mean square.", "O2");
  v.field("weight_decay", c.weight_decay, at_least(0),
          "Decoupled decay of matrices and tables in AdamW groups; scalars and norm weights have none.", "O2");
  v.field("scale_lr_with_width", c.scale_lr_with_width, any(),
          "Multiply the rates of tables and head by (n_embd / 768)^-0.5: wider models take smaller steps.", "O2");
}

template <class V>
void describe(V& v, ScheduleConfig& c) {
  v.field(
      "shape", c.shape, one_of({"linear", "cosine", "constant"}),
      "Learning rates over the run, as a share of their peaks. linear: up over warmup_steps, constant, linearly down "
      "over the last warmdown_fraction. cosine: up, then half a cosine down to the end. constant: up, then flat.",
      "O4; Loshchilov, Hutter 2016 (cosine)");
  v.field("warmup_steps", c.warmup_steps, at_least(0), "Steps of linear rise at the start, fewer than the run has.",
          "O4");
  v.field("warmdown_fraction", c.warmdown_fraction, between(0, 1),
          "Share of all steps in which shape = linear falls; nothing else reads it.", "O4");
  v.field("final_fraction", c.final_fraction, between(0, 1),
          "What is left of the peak at the last step of linear and cosine.", "O4");
}

template <class V>
void describe(V& v, OptimConfig& c) {
  v.field(
      "matrix_optimizer", c.matrix_optimizer, one_of({"muon", "adamw"}),
      "For the matrices of blocks, each expert's matrix on its own. Embeddings, head and scalars are always AdamW's.",
      "O1");
  v.field("matrix_lr", c.matrix_lr, at_least(0),
          "Peak learning rate of block matrices under matrix_optimizer = adamw; nothing else reads it.", "O1");
  v.field("router_optimizer", c.router_optimizer, one_of({"muon", "adamw"}),
          "For router weights. An untouched muon yields to adamw when matrix_optimizer is adamw.", "O1");
  v.group("muon", c.muon, "the Muon step: momentum, orthogonalised a matrix at a time");
  v.group("adamw", c.adamw, "AdamW, with a learning rate for each kind of parameter");
  v.group("schedule", c.schedule, "learning rates over the run");
  v.field("clip_norm", c.clip_norm, at_least(0),
          "Scale all gradients down to this global norm when they exceed it. 0: no clipping.");
}

}  // namespace switchyard
