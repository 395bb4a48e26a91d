"""What keeps the load even: auxiliary losses, their ramp, and the selection bias.

P_e is the mean probability over tokens, f_e = count_e / T before any capacity, a constant for gradients.
Zero experts are columns like the others; their terms f P count tau times (MoE++, Jin et al. 2024).
"""

import torch


def term_factors(moe, like):
    """[E]: 1 for experts, tau for zero experts."""
    factors = torch.ones_like(like)
    factors[moe.n_experts:] = moe.zero_expert_tau
    return factors


def switch(moe, chosen, probability):
    """E sum f P (Fedus et al. 2021); K for uniform routing."""
    tokens, e = probability.shape
    p = probability.mean(0)
    f = torch.bincount(chosen.flatten(), minlength=e).to(p) / tokens
    return e * (term_factors(moe, p) * f * p).sum()


def balance_loss(config, chosen, weight, probability):
    """Over the tokens given: [T, K], [T, K], [T, E]."""
    router, p = config.router, probability.mean(0)
    e = p.numel()
    if router.balance_loss == "switch":
        value = switch(config.moe, chosen, probability)
        return value / router.top_k if router.balance_topk_normalize else value
    if router.balance_loss == "cv_squared":
        return e * (p - 1 / e).square().sum()
    if router.balance_loss == "cv_squared_topk":
        importance = torch.zeros_like(p).index_add(0, chosen.flatten(), weight.flatten())
        return importance.var(correction=0) / importance.mean().square()
    return p.new_zeros(())


def scoped_balance_loss(config, chosen, weight, probability, sequences):
    """A micro-batch as one, or each sequence and their mean. The sums of chosen weights know no sequences. One rank's
    global frequencies are its own."""
    if config.router.balance_scope != "sequence" or config.router.balance_loss == "cv_squared_topk":
        return balance_loss(config, chosen, weight, probability)
    parts = zip(chosen.chunk(sequences), weight.chunk(sequences), probability.chunk(sequences))
    return torch.stack([balance_loss(config, *part) for part in parts]).mean()


def sequence_loss(config, chosen, probability, sequences):
    """DeepSeek-V3's complement: per sequence sum (E count / (K T)) P, and the mean over sequences."""
    parts = zip(chosen.chunk(sequences), probability.chunk(sequences))
    return torch.stack([switch(config.moe, *part) for part in parts]).mean() / config.router.top_k


def coefficient(router, step):
    """balance_coef at a step: it moves from aux_ramp_start to aux_ramp_end times its value."""
    done = min(1.0, step / router.aux_ramp_steps) if router.aux_ramp_steps else 1.0
    return router.balance_coef * (router.aux_ramp_start + (router.aux_ramp_end - router.aux_ramp_start) * done)


def auxiliary(config, choice, sequences, step):
    """A layer's weighted auxiliary loss. z-loss: mean of logsumexp^2 of the logits before they are clipped."""
    router = config.router
    if choice.logits is None:
        return torch.zeros(())
    args = choice.chosen, choice.probability
    total = coefficient(router, step) * scoped_balance_loss(config, choice.chosen, choice.weight, choice.probability, sequences)
    total = total + router.z_loss_coef * choice.logits.logsumexp(-1).square().mean()
    return total + router.seq_balance_coef * sequence_loss(config, *args, sequences)


def resets(router, step):
    """Whether routers start anew at the start of a step: weights, their optimizer's state, and biases."""
    due = router.reset_interval and step > 0 and step % router.reset_interval == 0
    return bool(due) and (not router.reset_until or step <= router.reset_until)


class State:
    """What a pass depends on besides weights: the step, each layer's selection bias and counts since the last step, and
    the random draws of the micro-batch at hand (philox.Draws)."""

    def __init__(self, step=0):
        self.step, self.bias, self.counts, self.draws = step, {}, {}, None

    def count(self, layer, chosen, e):
        self.counts[layer] = self.counts.get(layer, 0) + torch.bincount(chosen.flatten(), minlength=e)

    def after_step(self, config):
        """b += rate sign(mean count - count), once an applied step (Wang et al. 2024)."""
        for layer, counts in self.counts.items():
            if config.router.bias_balancing:
                above = torch.sign(counts.sum() - counts * counts.numel()).double()
                self.bias[layer] = self.bias.get(layer, 0) + config.router.bias_update_rate * above
        self.counts, self.step = {}, self.step + 1
