"""Which assignments an expert with limited room takes, and where the others go. Plain loops over assignments (t, k)."""

import math
from fractions import Fraction

import torch

import routing


def at_step(moe, top_k, tokens, step):
    """Rows an expert takes at a step, or None for any number. tokens: of one micro-batch on one rank."""
    if moe.expert_capacity:
        return moe.expert_capacity
    if not moe.capacity_factor:
        return None
    wanted = math.ceil(Fraction(str(moe.capacity_factor)) * tokens * top_k / moe.n_experts)
    low, high = moe.min_expert_capacity, moe.max_expert_capacity or wanted
    done = min(Fraction(1), Fraction(step, moe.capacity_ramp_steps)) if moe.capacity_ramp_steps else 1
    return math.floor(max(low, min(wanted, low + done * (high - low))))


def priorities(policy, weight, importance):
    """[T, K] of which larger values are served first; equal ones in the order (k, t), first choices first."""
    if policy == "weight":
        return weight.detach().tolist()
    if policy == "importance":
        return importance.detach()[:, None].expand_as(weight).tolist()
    return torch.zeros_like(weight).tolist()


def accept(proposals, room, priority):
    """Of the (t, k) that propose to one expert, those that get one of its places."""
    served = sorted(proposals, key=lambda tk: (-priority[tk[0]][tk[1]], tk[1], tk[0]))
    if len(served) > room > 0:
        (t, k), (u, j) = served[room - 1], served[room]
        if priority[t][k] != priority[u][j]:
            routing.watch(priority[t][k] - priority[u][j])
    return served[:room]


def proposals_of(chosen, slots):
    to = {}
    for t, k in slots:
        to.setdefault(chosen[t][k], []).append((t, k))
    return to


def place(chosen, priority, capacity, experts):
    """[T, K] which assignments are kept. Zero experts, numbered from `experts` on, take everything."""
    rows = chosen.tolist()
    keep = torch.zeros(chosen.shape, dtype=torch.bool)
    slots = [(t, k) for t in range(len(rows)) for k in range(len(rows[t]))]
    for expert, proposals in proposals_of(rows, slots).items():
        for t, k in accept(proposals, capacity if expert < experts else len(slots), priority):
            keep[t, k] = True
    return keep


def reroute(chosen, keep, q, priority, capacity, rounds):
    """In each round every unplaced assignment proposes to its best expert by q that has free room, is not among the
    token's kept ones, and was not proposed to by an earlier slot of the token in this round; experts accept by priority.
    Returns the final experts and which assignments are kept; a slot without a place keeps its original expert."""
    rows, keep, wishes = chosen.tolist(), keep.clone(), q.tolist()
    e = q.shape[1]
    for _ in range(rounds):
        used = torch.bincount(torch.tensor(rows)[keep], minlength=e)
        free = [max(0, capacity - n) for n in used.tolist()]
        asked = {}
        for t in range(len(rows)):
            taken = {rows[t][k] for k in range(len(rows[t])) if keep[t, k]}
            for k in (k for k in range(len(rows[t])) if not keep[t, k]):
                options = [x for x in range(e) if free[x] and x not in taken and wishes[t][x] > -math.inf]
                if options:
                    asked[t, k] = max(options, key=lambda x: wishes[t][x])
                    taken.add(asked[t, k])
        by_expert = {}
        for slot, expert in asked.items():
            by_expert.setdefault(expert, []).append(slot)
        for expert, proposals in by_expert.items():
            for t, k in accept(proposals, free[expert], priority):
                rows[t][k], keep[t, k] = expert, True
    return torch.tensor(rows), keep


def survivors_weight(weight, keep):
    """Kept weights rescaled to the sum that all had; others 0."""
    kept = weight * keep
    left = torch.where(keep.any(-1, keepdim=True), kept.sum(-1, keepdim=True), 1)
    return kept * weight.sum(-1, keepdim=True) / left
