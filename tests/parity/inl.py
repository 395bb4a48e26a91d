"""Second-order dynamics after each block: a velocity beside the residual stream (specification 2.9)."""

import torch
import torch.nn.functional as F


def shapes(config):
    i, d = config.model.inl, config.model.n_embd
    out = {"inl.mean": (d,)}
    if i.mode == "adaptive":
        hidden = i.controller_hidden
        out |= {"inl.in.weight": (hidden, 2 * d), "inl.in.bias": (hidden,),
                "inl.out.weight": (3 * d, hidden), "inl.out.bias": (3 * d,)}
    return out


def coefficients(inl, p, h, v):
    """alpha, beta, gamma: from the controller, for each token and channel, or constants."""
    if inl.mode == "lite":
        return inl.init_alpha, inl.init_beta, inl.init_gate
    hidden = F.silu(torch.cat([h, v], -1) @ p["inl.in.weight"].mT + p["inl.in.bias"])
    alpha, beta, gamma = (hidden @ p["inl.out.weight"].mT + p["inl.out.bias"]).chunk(3, -1)
    return alpha.sigmoid(), F.softplus(beta).clamp(max=inl.beta_max), gamma.sigmoid()


class Held(torch.autograd.Function):
    """Clamped to [low, high]; what lies beyond a bound takes only a gradient whose descent leads back."""

    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient):
        x, = ctx.saved_tensors
        away = ((x > ctx.high) & (gradient < 0)) | ((x < ctx.low) & (gradient > 0))
        return gradient.masked_fill(away, 0), None, None


def step(inl, p, h, v):
    """(h, v) -> (h', v')."""
    alpha, beta, gamma = coefficients(inl, p, h, v)
    mean = p["inl.mean"]
    if inl.mu_min < inl.mu_max:      # both 0: free
        mean = Held.apply(mean, inl.mu_min, inl.mu_max)
    v = (alpha * v - beta * (h - mean)).clamp(-inl.velocity_max, inl.velocity_max)
    return h + inl.dt * gamma * v, v
