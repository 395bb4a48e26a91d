"""The PyTorch peer's model: a GPT, dense or with mixture-of-experts layers, its parameters and optimizer, made as fast
as PyTorch alone allows. peer_torch.py trains and measures it.

Numerics: fp32 master weights, moments and gradient sums; bf16 compute copies written by the optimizer step. With
fp8, linears quantise tensor-wise with fresh scales (e4m3 values, e5m2 gradients), experts row-wise (e4m3; their
weight gradients stay bf16). Gates multiply the activation before the second expert matrix, which equals weighting
the expert's output and lets the gate's gradient come from the activation instead of a saved output.

Names end in shapes where it helps: T tokens of a micro-batch, D width, E experts, K experts a token, N expert
hidden, R = T*K rows, V vocabulary.
"""
import torch
import torch.nn.functional as F
from torch import library
from torch.autograd import Function

CAP = 15.0            # logits are CAP * tanh(l / CAP)
GATE_CHANNELS = 12    # input channels that drive the value-embedding gate, unless --weights has another number
E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2


# ---------------------------------------------------------------- elementwise, fp8 and grouped products
def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def quantize(x, dtype, amax=None, dim=None):
    """fp8 values and the fp32 factor that undoes the scaling: one for the tensor, or one per row with dim=-1."""
    limit = torch.finfo(dtype).max
    if amax is None:
        amax = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = limit / amax.float().clamp(min=1e-12)
    x8 = (x.float() * scale).clamp(-limit, limit).to(dtype)
    return x8, (1 / scale) if dim is None else (1 / scale).squeeze(dim)


def mm8(a, a_inv, b, b_inv, fast=True):
    return torch._scaled_mm(a, b, scale_a=a_inv, scale_b=b_inv, out_dtype=torch.bfloat16, use_fast_accum=fast)


def column_major(x):
    return x.t().contiguous().t()


class Fp8Linear(Function):
    """x @ w.T with all three products in fp8; only fp8 copies are kept for the backward pass."""

    @staticmethod
    def forward(ctx, x, w):
        (x8, xi), (w8, wi) = quantize(x, E4), quantize(w, E4)
        ctx.save_for_backward(x8, xi, w8, wi)
        return mm8(x8, xi, w8.t(), wi)

    @staticmethod
    def backward(ctx, dy):
        x8, xi, w8, wi = ctx.saved_tensors
        d8, di = quantize(dy, E5)
        return mm8(d8, di, column_major(w8), wi), mm8(d8.t().contiguous(), di, column_major(x8), xi, fast=False)


def linear(x, w, fp8):
    if not fp8 or w.size(0) % 16 or w.size(1) % 16:
        return F.linear(x, w)
    return Fp8Linear.apply(x.reshape(-1, x.size(-1)), w).view(*x.shape[:-1], w.size(0))


@library.custom_op("peer::weight_gradient", mutates_args=())     # opaque, so the compiler keeps dy row-major
def weight_gradient(dy: torch.Tensor, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return torch._grouped_mm(dy.t(), x, offs=ends)


@weight_gradient.register_fake
def _(dy, x, ends):
    return dy.new_empty(ends.size(0), dy.size(1), x.size(1))


def grouped8(x8, w8, xi, wi, ends):
    return torch._scaled_grouped_mm(x8, w8.transpose(-2, -1), xi, wi, offs=ends, out_dtype=torch.bfloat16,
                                    use_fast_accum=True)


class Fp8Grouped(Function):
    """Rows of x times their expert's w.T in row-wise fp8; the weight gradient stays bf16."""

    @staticmethod
    def forward(ctx, x, w, ends):
        ctx.save_for_backward(x, w, ends)
        (x8, xi), (w8, wi) = quantize(x, E4, dim=-1), quantize(w, E4, dim=-1)
        return grouped8(x8, w8, xi, wi, ends)

    @staticmethod
    def backward(ctx, dy):
        x, w, ends = ctx.saved_tensors
        (d8, di), (w8, wi) = quantize(dy, E4, dim=-1), quantize(w.transpose(-2, -1).contiguous(), E4, dim=-1)
        return grouped8(d8, w8, di, wi, ends), weight_gradient(dy, x, ends), None


def grouped(x, w, ends, fp8):
    return Fp8Grouped.apply(x, w, ends) if fp8 else torch._grouped_mm(x, w.transpose(-2, -1), offs=ends)


# ---------------------------------------------------------------- mixture of experts
class Gather(Function):
    """Row r of the result is row order[r] // k of x. The backward pass sums a token's k rows: no atomics."""

    @staticmethod
    def forward(ctx, x, order, row_of, k):
        ctx.save_for_backward(row_of)
        ctx.k = k
        return x[order // k]

    @staticmethod
    def backward(ctx, d):
        row_of, = ctx.saved_tensors
        return d[row_of.view(-1, ctx.k)].sum(1), None, None, None


class Combine(Function):
    """The transpose of Gather: token t of the result is the sum of its k rows of y."""

    @staticmethod
    def forward(ctx, y, order, row_of, k):
        ctx.save_for_backward(order)
        ctx.k = k
        return y[row_of.view(-1, k)].sum(1)

    @staticmethod
    def backward(ctx, d):
        order, = ctx.saved_tensors
        return d[order // ctx.k], None, None, None


def route(x_TD, w_router, k):
    """Softmax gate, renormalised over the top k. The compiled top-k is k rounds of argmax: torch.topk is far slower."""
    p_TE = F.linear(x_TD, w_router).float().softmax(-1)
    if torch.compiler.is_compiling():
        left, experts = p_TE.detach(), torch.arange(p_TE.size(1), device=p_TE.device)
        ids, gates = [], []
        for _ in range(k):
            ids.append(left.argmax(-1))
            hit = experts == ids[-1][:, None]
            gates.append((p_TE * hit).sum(-1))
            left = left.masked_fill(hit, -1.0)
        gate_TK, id_TK = torch.stack(gates, -1), torch.stack(ids, -1)
    else:
        gate_TK, id_TK = p_TE.topk(k, -1)
    return p_TE, gate_TK / gate_TK.sum(-1, keepdim=True), id_TK


def plan(id_TK, n_experts):
    """order[r]: which (token, choice) pair sits in row r; row_of: its inverse; ends[e]: one past expert e's last row."""
    small = torch.uint8 if n_experts <= 256 else torch.int32        # narrow keys: one radix pass
    key, order = id_TK.flatten().to(small).sort(stable=True)
    row_of = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    ends = torch.searchsorted(key.int(), torch.arange(n_experts, device=key.device, dtype=torch.int32), right=True)
    return order, row_of, ends.int()


def activate(h, swiglu):
    if not swiglu:
        return F.relu(h).square()
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


def experts_grouped(x_TD, w1, w2, gate_TK, order, row_of, ends, k, swiglu=False, fp8=False):
    x_RD = Gather.apply(x_TD, order, row_of, k)
    gate_R1 = Gather.apply(gate_TK.reshape(-1, 1), order, row_of, 1)
    a_RN = (activate(grouped(x_RD, w1, ends, fp8), swiglu) * gate_R1).to(x_TD.dtype)
    return Combine.apply(grouped(a_RN, w2, ends, fp8), order, row_of, k)


def experts_loop(x_TD, w1, w2, gate_TK, id_TK, swiglu=False):
    out = torch.zeros_like(x_TD)
    for e in range(w1.size(0)):
        token, choice = (id_TK == e).nonzero(as_tuple=True)
        y = activate(x_TD.index_select(0, token) @ w1[e].t(), swiglu) @ w2[e].t()
        gate = gate_TK.flatten().index_select(0, token * id_TK.size(1) + choice)
        out.index_add_(0, token, (y * gate[:, None]).to(out.dtype))
    return out


def moe(c, x_TD, w_router, w1, w2, swiglu=False):
    p_TE, gate_TK, id_TK = route(x_TD, w_router, c.topk)
    if c.moe_impl == "loop":
        count = torch.bincount(id_TK.flatten(), minlength=c.experts)
        y = experts_loop(x_TD, w1, w2, gate_TK, id_TK, swiglu)
    else:
        order, row_of, ends = plan(id_TK, c.experts)
        count = ends.diff(prepend=ends.new_zeros(1))
        y = experts_grouped(x_TD, w1, w2, gate_TK, order, row_of, ends, c.topk, swiglu, c.fp8_experts)
    return y, c.experts * (count / x_TD.size(0) * p_TE.mean(0)).sum(), count     # Switch balance loss: K when uniform


# ---------------------------------------------------------------- embeddings and the head
class Embed(Function):
    """A row lookup whose gradient goes to `tap`, a stand-in for the rows: the caller adds it straight to the fp32 sums."""

    @staticmethod
    def forward(ctx, w, tokens, tap):
        return w[tokens]

    @staticmethod
    def backward(ctx, d):
        return None, None, d


def scatter_rows(total, tokens, rows):
    total.index_add_(0, tokens, rows.float())


class HeadLoss(Function):
    """Mean cross entropy of capped logits, with both gradients taken at once so that no logits outlive the call.

    CAP*tanh(z/CAP) = CAP - 2*CAP*q with q = sigmoid(-2z/CAP), so logits - CAP <= 0 and no running maximum is needed.
    """

    @staticmethod
    def forward(ctx, x_TD, w_VD, target_T, chunks, fp8):
        t, loss, dxs, dw = x_TD.size(0), 0.0, [], 0.0
        words = torch.arange(w_VD.size(0), device=x_TD.device, dtype=torch.int32)
        if fp8:
            w8, wi = quantize(w_VD, E4)
        for x, target in zip(x_TD.chunk(chunks), target_T.int().chunk(chunks)):
            if fp8:
                x8, xi = quantize(x, E4)
                z = mm8(x8, xi, w8.t(), wi)
            else:
                z = x @ w_VD.t()
            q = torch.sigmoid(z.float() * (-2 / CAP))                   # capped logit = CAP - 2*CAP*q
            e = torch.exp(-2 * CAP * q)
            total = e.sum(-1, keepdim=True)
            q_hit = torch.sigmoid(z.gather(1, target[:, None].long()).float() * (-2 / CAP))
            loss = loss + (total.log() + 2 * CAP * q_hit).sum() / t
            dz = (e * (1 / total) - (words == target[:, None]).float()) * (q - q * q) * 4    # in [-1, 1]: a free fp8 scale
            if fp8:
                d8, di = quantize(dz, E5, amax=torch.ones((), device=x.device))
                dxs.append(mm8(d8, di / t, column_major(w8), wi))
                dw = dw + mm8(d8.t().contiguous(), di / t, column_major(x8), xi, fast=False)
            else:
                dz = (dz / t).to(x.dtype)
                dxs.append(dz @ w_VD)
                dw = dw + dz.t() @ x
        ctx.save_for_backward(torch.cat(dxs) if chunks > 1 else dxs[0], dw)
        return loss

    @staticmethod
    def backward(ctx, d):
        dx, dw = ctx.saved_tensors
        return (dx * d).to(dx.dtype), (dw * d).to(dw.dtype), None, None, None


# ---------------------------------------------------------------- parameters and optimizer
class Bank:
    """All weights of one shape as a stack: fp32 master, bf16 compute copy, fp32 gradient sum and moments."""

    def __init__(self, kind, count, shape, std, device, split=None, lr=0.02, dtype=torch.bfloat16):
        self.kind, self.split, self.lr = kind, split or [shape[-2] if len(shape) > 1 else 1], lr
        self.master = torch.randn(count, *shape, device=device) * std
        self.weight = self.master.to(dtype)
        self.grad, self.first = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.second = torch.zeros_like(self.master) if kind == "adamw" else None
        self.params = [w.detach().requires_grad_() for w in self.weight]


POLAR = ((8.156554524902461, -22.48329292557795, 15.878769915207462),      # Polar Express, five steps
         (4.042929935166739, -2.808917465908714, 0.5000178451051316),      # (Amsel et al. 2025, safety 1.02)
         (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
         (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
         (2.3465413258596377, -1.7097828382687081, 0.42323551169301323))


def orthogonalize(x):
    """The nearest (semi-)orthogonal matrix of each [.., a, b] in bf16. Folding a*x into the small matrix saves passes."""
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / (x.float().square().sum((-2, -1), keepdim=True).sqrt() * 1.02 + 1e-6).to(x.dtype)
    eye = torch.eye(x.size(-2), device=x.device)
    for a, b, c in POLAR:
        g = x @ x.mT
        x = (a * eye + b * g + c * (g @ g)).to(x.dtype) @ x
    return x.mT if tall else x


def muon_step(master, weight, grad, first, split, lr, momentum=0.95):
    first.lerp_(grad, 1 - momentum)
    u = grad.lerp(first, momentum).bfloat16()
    if len(set(split)) == 1:
        o = orthogonalize(u.reshape(-1, split[0], u.size(-1))).reshape(u.shape)
    else:
        o = torch.cat([orthogonalize(part) for part in u.split(split, -2)], -2)
    master.sub_(o.float() * (lr * max(1.0, split[0] / u.size(-1)) ** 0.5))
    weight.copy_(master)
    grad.zero_()


def adamw_step(master, weight, grad, first, second, step, lr, b1=0.8, b2=0.95):
    first.lerp_(grad, 1 - b1)
    second.lerp_(grad.square(), 1 - b2)
    master.sub_(lr * (first / (1 - b1 ** step)) / ((second / (1 - b2 ** step)).sqrt() + 1e-10))
    weight.copy_(master)
    grad.zero_()


# ---------------------------------------------------------------- the model
class GPT:
    def __init__(self, c, device, gate_channels=GATE_CHANNELS):
        d, n, kv = c.n_embd, c.n_layer, c.n_kv_head * c.head_dim
        dtype = torch.float32 if c.precision == "fp32" else torch.bfloat16
        self.c, self.moe_at = c, [c.model == "moe" and i % c.moe_freq == 0 for i in range(n)]
        self.ve_at = [i % 2 == (n - 1) % 2 for i in range(n)]
        n_moe, n_ve, s = sum(self.moe_at), sum(self.ve_at), d ** -0.5
        bank = lambda *a, **k: Bank(*a, **({"device": device, "dtype": dtype} | k))
        self.banks = {
            "embed": bank("adamw", 1, (c.vocab, d), 1.0, lr=0.2),
            "values": bank("adamw", n_ve, (c.vocab, kv), s, lr=0.2),
            "head": bank("adamw", 1, (c.vocab, d), s / 8, lr=0.004),
            "lambdas": bank("adamw", 1, (2, n), 0.0, lr=0.005, dtype=torch.float32),
            "ve_gate": bank("adamw", n_ve, (c.n_kv_head, gate_channels), 0.02, lr=0.004),
            "qkv": bank("muon", n, (d + 2 * kv, d), s, split=[d, kv, kv]),
            "out": bank("muon", n, (d, d), s / 4)}
        if n - n_moe:
            self.banks["up"] = bank("muon", n - n_moe, (4 * d, d), s)
            self.banks["down"] = bank("muon", n - n_moe, (d, 4 * d), s / 8)
        if n_moe:
            self.banks["router"] = bank("adamw", n_moe, (c.experts, d), s, lr=0.004)
            self.banks["expert_up"] = bank("muon", n_moe, (c.experts, c.hidden, d), s)
            self.banks["expert_down"] = bank("muon", n_moe, (c.experts, d, c.hidden), s / 8)
        lam = self.banks["lambdas"]
        for t in (lam.master, lam.weight):
            t[0, 0], t[0, 1] = 1.0, 0.1
        self.params = {k: b.params for k, b in self.banks.items() if k not in ("embed", "values")}
        tables = [self.banks["embed"], self.banks["values"]]
        dense = [b for b in self.banks.values() if b not in tables]
        self.dense, self.dense_sums = [p for b in dense for p in b.params], [g for b in dense for g in b.grad]
        self.tables, self.table_sums = [p for b in tables for p in b.params], [g for b in tables for g in b.grad]
        zero = torch.zeros((), device=device, dtype=dtype)
        self.taps = [zero.expand(c.micro_batch, c.seq_len, t.size(1)).requires_grad_() for t in self.tables]
        position = torch.arange(c.seq_len, device=device)[:, None]
        angle = position * 1e4 ** (-torch.arange(0, c.head_dim, 2, device=device) / c.head_dim)
        self.cos = angle.cos().repeat(1, 2)[:, None].to(dtype)
        self.sin = torch.cat([angle.sin(), -angle.sin()], 1)[:, None].to(dtype)

    def normed_and_rotated(self, x):
        """QK-norm, then RoPE as x * cos + (halves of x swapped) * (sin, -sin): no masks once compiled."""
        x = norm(x)
        return x * self.cos + x.unflatten(-1, (2, -1)).flip(-2).flatten(-2) * self.sin

    def attention(self, x, w_qkv, w_out, value=None, w_gate=None):
        c, (b, t, _) = self.c, x.shape
        qkv = linear(x, w_qkv, c.fp8).view(b, t, -1, c.head_dim)
        q, k, v = qkv.split([c.n_head, c.n_kv_head, c.n_kv_head], 2)
        q, k = self.normed_and_rotated(q), self.normed_and_rotated(k)
        if value is not None:
            gate = 2 * torch.sigmoid(F.linear(x[..., :w_gate.size(1)], w_gate))
            v = v + gate[..., None] * value.view_as(v)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True,
                                           enable_gqa=c.n_kv_head < c.n_head)
        return linear(y.transpose(1, 2).reshape(b, t, -1), w_out, c.fp8)

    def loss(self, params, tables, taps, tokens, targets, counts=None):
        """Mean cross entropy and the balance losses summed over layers. counts: a list that gets each sparse layer's."""
        c, p = self.c, {k: list(v) for k, v in params.items()}
        rows = [Embed.apply(table, tokens, tap) for table, tap in zip(tables, taps)]
        keep, again = p["lambdas"][0].unbind(0)
        keep, again = keep.unbind(0), again.unbind(0)
        x = x0 = norm(rows.pop(0))
        balance = x.new_zeros((), dtype=torch.float32)
        for i in range(c.n_layer):
            x = keep[i] * x + again[i] * x0
            ve = (rows.pop(0), p["ve_gate"].pop(0)) if self.ve_at[i] else ()
            x = x + self.attention(norm(x), p["qkv"].pop(0), p["out"].pop(0), *ve)
            h = norm(x)
            if self.moe_at[i]:
                y, aux, count = moe(c, h.flatten(0, 1), p["router"].pop(0), p["expert_up"].pop(0),
                                    p["expert_down"].pop(0))
                x, balance = x + y.view_as(x), balance + aux
                if counts is not None:
                    counts.append(count)
            else:
                x = x + linear(activate(linear(h, p["up"].pop(0), c.fp8), False), p["down"].pop(0), c.fp8)
        loss = HeadLoss.apply(norm(x).flatten(0, 1), p["head"][0], targets.flatten(), c.head_chunks, c.fp8)
        return loss, balance

    def count(self):
        """(total, active, matmul-active) parameters: active drops experts a token skips, matmul also the tables."""
        size = {k: b.master.numel() for k, b in self.banks.items()}
        skip = sum(v for k, v in size.items() if k.startswith("expert")) * (1 - self.c.topk / self.c.experts)
        total = sum(size.values())
        return total, int(total - skip), int(total - skip - size["embed"] - size["values"] - size["lambdas"])
