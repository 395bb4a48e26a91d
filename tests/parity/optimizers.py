"""Muon, AdamW and the schedules, one parameter at a time, in the dtype of the parameters.

Muon, for each logical matrix W [rows, columns] with gradient g:
    m = mu m + (1 - mu) g
    u = (1 - mu) g + mu m              (Nesterov; else u = m)
    O = polar(u)                       (below)
    O = normalised by neurons          (variance_reduction, NorMuon)
    W -= f lr max(1, rows/columns)^0.5 O + f lr wd W [O W >= 0]
f is the schedule's factor, wd falls linearly to 0 over the run, the mask is taken before the update.

polar(u): X = u / (1.02 |u| + 1e-6), then in each iteration, with G = X X^T and Y = G at first, Y <- scale Y^2 + add G +
identity I for each (scale, add, identity) of the iteration's row, and X <- Y X: Polar Express (Amsel et al. 2025, arXiv
2505.16932) with polynomials of degree 17, 17 and 9 made of squares. Iterations beyond the table repeat its last row.
"""

import math
import re

import torch

POLAR_EXPRESS = (
    ((5.3247416, -5.9298411, 1.0), (1.3983409, 0.15406939, -0.39834088), (25.61061, -0.72721187, 1.0099419)),
    ((0.34927279, -1.515626, 1.0), (1.3867093, 0.037678918, -0.38670928), (10.832895, -0.10595862, 0.57383618)),
    ((0.37809332, -1.3470653, 1.0), (2.4070898, -0.2202112, 1.122751)),
)


# ---------------------------------------------------------------- schedules: step counts attempted steps from 0
def learning_rate_factor(schedule, step, steps):
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    final = schedule.final_fraction
    if schedule.shape == "constant":
        return warmup
    if schedule.shape == "cosine":
        done = min(1.0, max(0.0, (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)))
        return min(warmup, final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
    warmdown = math.floor(schedule.warmdown_fraction * steps + 0.5)
    left = 1.0 if steps - step >= warmdown else (steps - step) / warmdown
    return min(warmup, left + (1 - left) * final)


def momentum_at(muon, step):
    done = min(1.0, step / muon.momentum_warmup_steps) if muon.momentum_warmup_steps else 1.0
    return muon.momentum_start + (muon.momentum_end - muon.momentum_start) * done


def clip_factor(grads, clip_norm):
    norm = math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
    return min(1.0, clip_norm / (norm + 1e-6)) if clip_norm > 0 else 1.0


# ---------------------------------------------------------------- Muon
def logical_matrices(config, name, tensor):
    """Views of the matrices that are orthogonalised apart: q, k, v; gate and value; each expert; alpha, beta, gamma."""
    m = config.model
    if name.endswith("attn.qkv.weight"):
        return tensor.split([m.n_head * m.head_dim, m.n_kv_head * m.head_dim, m.n_kv_head * m.head_dim])
    if name.endswith("inl.out.weight"):
        return tensor.chunk(3)
    matrices = list(tensor) if tensor.dim() == 3 else [tensor]
    if m.mlp in ("swiglu", "geglu") and name.endswith(("mlp.up.weight", "experts.up", "shared.up.weight", "dense.up.weight")):
        matrices = [half for matrix in matrices for half in matrix.chunk(2)]
    return matrices


def polar(u, iterations):
    x = u / (1.02 * u.norm() + 1e-6)
    for i in range(iterations):
        gram = x @ x.mT if x.shape[0] <= x.shape[1] else x.mT @ x
        y, one = gram, torch.eye(len(gram), dtype=x.dtype)
        for scale, add, identity in POLAR_EXPRESS[min(i, len(POLAR_EXPRESS) - 1)]:
            y = scale * y @ y + add * gram + identity * one
        x = y @ x if x.shape[0] <= x.shape[1] else x @ y
    return x


def reduce_variance(o, second, beta2):
    """NorMuon (Li et al. 2025): each row (column of a wide matrix) over its running RMS, the whole norm kept."""
    dim = 1 if o.shape[0] >= o.shape[1] else 0
    mean_square = o.square().mean(dim, keepdim=True)
    second.lerp_(mean_square, 1 - beta2)
    scaled = o * second.clamp(min=1e-10).rsqrt()
    return scaled * (o.norm() / scaled.norm().clamp(min=1e-10))


class Muon:
    """One logical matrix."""

    def __init__(self, muon, weight):
        self.muon, self.first = muon, torch.zeros_like(weight)
        rows, columns = weight.shape
        self.second = weight.new_zeros((rows, 1) if rows >= columns else (1, columns))

    def update(self, weight, grad, step, steps, factor):
        muon, (rows, columns) = self.muon, weight.shape
        mu = momentum_at(muon, step)
        self.first.lerp_(grad, 1 - mu)
        u = torch.lerp(grad, self.first, mu) if muon.nesterov else self.first
        o = polar(u, muon.iterations)
        if muon.variance_reduction:
            o = reduce_variance(o, self.second, muon.beta2)
        lr = factor * muon.lr
        decay = lr * muon.weight_decay * (1 - step / steps)
        shrink = torch.where(o * weight >= 0, decay * weight, 0)
        weight -= lr * max(1.0, rows / columns) ** 0.5 * o + shrink


# ---------------------------------------------------------------- AdamW
class AdamW:
    """One parameter. Bias corrections count applied steps; decay is decoupled."""

    def __init__(self, weight, lr, beta1, beta2, eps, decay):
        self.lr, self.beta1, self.beta2, self.eps, self.decay = lr, beta1, beta2, eps, decay
        self.first, self.second, self.applied = torch.zeros_like(weight), torch.zeros_like(weight), 0

    def update(self, weight, grad, factor):
        self.applied += 1
        self.first.lerp_(grad, 1 - self.beta1)
        self.second.lerp_(grad.square(), 1 - self.beta2)
        mean = self.first / (1 - self.beta1**self.applied)
        root = (self.second / (1 - self.beta2**self.applied)).sqrt()
        weight -= self.lr * factor * (mean / (root + self.eps) + self.decay * weight)


# What a token meets before its experts: vectors, and the [2, D] maps of constant experts. Beside experts and blocks.
ROUTER_VECTORS = re.compile(r"moe\.(importance\.\w+|(null|zero\.\d+)\.\w+|router\.semantic\.(bias|log_scale))$")
SCALARS = re.compile(r"resid\.keep$|norm\.weight$|moe\.mix$|inl\.(mean|in\.bias|out\.bias)$")


def adamw_group(config, name):
    """lr, beta1 and decay of a parameter that AdamW updates; None for one that Muon does."""
    optim, a = config.optim, config.optim.adamw
    width = (config.model.n_embd / 768) ** -0.5 if a.scale_lr_with_width else 1.0
    if name == "embed.weight":
        return a.embed_lr * width, a.beta1, a.weight_decay
    if name.startswith("value_embed."):
        return a.value_embed_lr * width, a.beta1, a.weight_decay
    if name == "head.weight":
        return a.head_lr * width, a.beta1, a.weight_decay
    if name == "resid.again":
        return a.x0_lr, a.x0_beta1, 0.0
    if SCALARS.search(name):
        return a.scalar_lr, a.beta1, 0.0
    if ROUTER_VECTORS.search(name):
        return a.gate_lr, a.beta1, 0.0
    if name.endswith("value_gate.weight"):
        return a.gate_lr, a.beta1, a.weight_decay
    if name.endswith(("router.weight", "router.semantic.weight")):
        return (a.gate_lr, a.beta1, a.weight_decay) if optim.router_optimizer == "adamw" else None
    return (optim.matrix_lr, a.beta1, a.weight_decay) if optim.matrix_optimizer == "adamw" else None


class Optimizer:
    """Updates a dictionary of parameters in place."""

    def __init__(self, config, parameters):
        self.config, self.step, self.state = config, 0, {}
        for name in parameters:
            self.forget(parameters, name)

    def forget(self, parameters, name):
        """The state of a parameter that was never updated."""
        config, weight, group = self.config, parameters[name], adamw_group(self.config, name)
        if group:
            lr, beta1, decay = group
            self.state[name] = AdamW(weight, lr, beta1, config.optim.adamw.beta2, config.optim.adamw.eps, decay)
        else:
            self.state[name] = [Muon(config.optim.muon, w) for w in logical_matrices(config, name, weight)]

    @torch.no_grad()
    def apply(self, parameters, grads):
        config, steps = self.config, self.config.train.steps
        factor = learning_rate_factor(config.optim.schedule, self.step, steps)
        clip = clip_factor(grads, config.optim.clip_norm)
        for name, weight in parameters.items():
            state, grad = self.state[name], grads[name] * clip
            if isinstance(state, AdamW):
                state.update(weight, grad, factor)
                continue
            views = zip(state, logical_matrices(config, name, weight), logical_matrices(config, name, grad))
            for muon, w, g in views:
                muon.update(w, g, self.step, steps, factor)
        self.step += 1
