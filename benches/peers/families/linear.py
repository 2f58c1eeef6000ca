"""Linear attention along time, with and without decay; Mamba-2's form of it; gradients."""

import torch

from . import gradients_of, peer, reference
from ..compare import Wanted


def decay_of(case):
    """`none`, `head`, `scalar` or `vector`."""
    first = case.special.replace(",", " ").split(" ")[0]
    return first if first in ("head", "scalar", "vector") else "none"


def is_causal(case):
    """Whether it is along time, with queries and keys as they are."""
    return not any(word in case.special for word in ("bidirectional", "prefix", "taylor"))


def is_grouped(case):
    """Whether heads share queries and keys."""
    return "one group" in case.special


def recurrence(q, k, v, g, scale):
    """`S = e^g S + k v^T`, `o = scale S^T q` in f64, token by token: `q k [n,T,K]`, `v [n,T,V]`, `g [n,T,K or 1]` or none."""
    q, k, v = q.double(), k.double(), v.double()
    decay = None if g is None else g.double().exp()
    state = torch.zeros(q.shape[0], q.shape[2], v.shape[2], dtype=torch.float64, device=q.device)
    rows = []
    for t in range(q.shape[1]):
        if decay is not None:
            state = state * decay[:, t, :, None]
        state = state + k[:, t, :, None] * v[:, t, None, :]
        rows.append(torch.einsum("nk,nkv->nv", q[:, t], state))
    return scale * torch.stack(rows, 1)


def some_heads(t):
    """First and last head of the first and last row, as `(row, head)`."""
    rows, heads = t["v"].shape[0], t["v"].shape[2]
    return sorted({(0, 0), (rows - 1, heads - 1)})


def of_heads(t, some, name):
    """A tensor's part for those heads; heads may share it."""
    x = t[name]
    shared = x.shape[2] == 1
    return torch.stack([x[row, :, 0 if shared else head] for row, head in some])


def decays(case, t, some):
    """Log-decays of those heads, `[n,T,K or 1]`."""
    kind = decay_of(case)
    if kind == "none":
        return None
    if kind == "head":
        one = torch.stack([t["g"][head] for _, head in some])
        return one[:, None, None].expand(-1, t["v"].shape[1], 1)
    g = of_heads(t, some, "g") if kind == "vector" else torch.stack([t["g"][row, :, head] for row, head in some])
    return g if kind == "vector" else g[..., None]


def features(x):
    """The second-order Taylor map, up to the order of its entries: `f(x) . f(y) = 1 + s + s^2 / 2`, `s = x . y / sqrt K`."""
    x = x.double() * x.shape[-1] ** -0.25
    second = (x[..., :, None] * x[..., None, :]).flatten(-2) * 0.5**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, second], -1)


def index_of(some):
    """Where those heads are in an output."""
    rows, heads = zip(*some)
    return (list(rows), slice(None), list(heads))


@reference("linear_attention")
def linear_attention(case, t):
    if "bidirectional" in case.special or "prefix" in case.special:
        return {}
    some = some_heads(t)
    q, k, v = (of_heads(t, some, name) for name in "qkv")
    if "taylor" in case.special:
        q, k = features(q), features(k)
        ones = torch.ones_like(v[..., :1])
        sums = recurrence(q, k, torch.cat([v, ones], -1), None, 1.0)
        return {"o": Wanted(index_of(some), sums[..., :-1] / (sums[..., -1:] + 1e-6))}
    o = recurrence(q, k, v, decays(case, t, some), q.shape[-1] ** -0.5)
    return {"o": Wanted(index_of(some), o)}


@reference("linear_attention_backward")
def linear_attention_backward(case, t):
    if not is_causal(case):
        return {}
    some = some_heads(t)[:1]
    q, k, v, d_o = (of_heads(t, some, name).double() for name in ("q", "k", "v", "do"))
    g = decays(case, t, some)
    given = [x.clone().requires_grad_() for x in (q, k, v)]
    if g is not None:
        g = g.double().clone().requires_grad_()
    recurrence(*given, g, q.shape[-1] ** -0.5).backward(d_o)
    found = {name: Wanted(index_of(some), x.grad) for name, x in zip(("dq", "dk", "dv"), given)}
    if g is not None and decay_of(case) != "head":
        grad = g.grad if decay_of(case) == "vector" else g.grad[..., 0]
        found["dg"] = Wanted(index_of(some), grad)
    return found


def repeated(t):
    """Queries and keys for each head, where heads share them."""
    heads = t["v"].shape[2]
    return [t[name].expand(-1, -1, heads, -1).contiguous() if t[name].shape[2] == 1 else t[name] for name in "qk"]


def plain_fla(name):
    def make(case, t):
        if not is_causal(case) or decay_of(case) != "none":
            return None
        import fla.ops.linear_attn

        call = getattr(fla.ops.linear_attn, name)
        return lambda: {"o": call(t["q"], t["k"], t["v"], normalize=False)[0]}

    return make


def gates_of(case, t):
    """Decays as fla names them; nothing where it has none of that kind."""
    kind = decay_of(case)
    names = {"none": {}, "head": {"g_gamma": t.get("g")}, "scalar": {"g": t.get("g")}}
    return names.get(kind) if is_causal(case) else None


def simple_fla(name):
    def make(case, t):
        gates = gates_of(case, t)
        if gates is None:
            return None
        import fla.ops.simple_gla

        call = getattr(fla.ops.simple_gla, name)
        q, k = repeated(t)
        return lambda: {"o": call(q, k, t["v"], **gates)[0]}

    return make


def vector_fla(name, gate):
    def make(case, t):
        if not is_causal(case) or decay_of(case) != "vector":
            return None
        import fla.ops.gla

        call = getattr(fla.ops.gla, name)
        return lambda: {"o": call(t["q"], t["k"], t["v"], **{gate: t["g"]})[0]}

    return make


peer("linear_attention", "fla chunk_linear_attn")(plain_fla("chunk_linear_attn"))
peer("linear_attention", "fla fused_chunk_linear_attn")(plain_fla("fused_chunk_linear_attn"))
peer("linear_attention", "fla chunk_simple_gla")(simple_fla("chunk_simple_gla"))
peer("linear_attention", "fla fused_chunk_simple_gla")(simple_fla("fused_chunk_simple_gla"))
peer("linear_attention", "fla chunk_gla")(vector_fla("chunk_gla", "g"))
peer("linear_attention", "fla fused_recurrent_gla")(vector_fla("fused_recurrent_gla", "gk"))


def based_fla(name):
    def make(case, t):
        if "taylor" not in case.special:
            return None
        import fla.ops.based

        call = getattr(fla.ops.based, name)
        return lambda: {"o": call(t["q"], t["k"], t["v"])}

    return make


peer("linear_attention", "fla fused_chunk_based")(based_fla("fused_chunk_based"))
peer("linear_attention", "fla parallel_based")(based_fla("parallel_based"))


def state_space(chunk):
    """Mamba-2's chunks of the same recurrence: `dt = -g`, `A = -1`, and values that `dt` is taken out of."""

    def make(case, t):
        if not is_grouped(case) or decay_of(case) != "scalar":
            return None
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        dt = -t["g"]
        x = (t["v"].float() / dt[..., None]).to(t["v"].dtype)
        c = (t["q"].float() * t["q"].shape[-1] ** -0.5).to(t["q"].dtype)
        a = -torch.ones(dt.shape[-1], device=dt.device)
        return lambda: {"o": mamba_chunk_scan_combined(x, dt, a, t["k"], c, chunk)}

    return make


peer("linear_attention", "mamba_ssm mamba_chunk_scan_combined, chunk 256")(state_space(256))
peer("linear_attention", "mamba_ssm mamba_chunk_scan_combined, chunk 128")(state_space(128))


def gradients(library, name, gate, kinds):
    """fla's backward alone: its forward is run before and its graph kept."""

    def make(case, t):
        kind = decay_of(case)
        if not is_causal(case) or kind not in kinds:
            return None
        import importlib

        call = getattr(importlib.import_module(library), name)
        given = {"dq": t["q"], "dk": t["k"], "dv": t["v"]}
        if kind == "none":
            return gradients_of(lambda q, k, v: call(q, k, v)[0], given, t["do"])
        return gradients_of(lambda q, k, v, g: call(q, k, v, **{gate: g})[0], {**given, "dg": t["g"]}, t["do"])

    return make


peer("linear_attention_backward", "fla chunk_simple_gla")(
    gradients("fla.ops.simple_gla", "chunk_simple_gla", "g", ("none", "scalar"))
)
peer("linear_attention_backward", "fla chunk_gla")(gradients("fla.ops.gla", "chunk_gla", "g", ("vector",)))
