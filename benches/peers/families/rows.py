"""What is around the mixers: norms, gates, matrix products, the largest of a row. PyTorch, compiled where that fuses."""

import torch
from torch.nn import functional
from torch.nn.functional import embedding, gelu, silu

from . import peer, reference
from ..compare import Wanted, whole

# Rows that are known.
KNOWN = 512
EPS = 1e-5


def first_rows(value):
    return Wanted((slice(0, KNOWN),), value)


def normalized(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@reference("rms_norm")
def rms(case, t):
    return {"out": first_rows(normalized(t["x"][:KNOWN].double(), t["weight"].double(), 1e-6))}


@reference("gated_rms_norm")
def gated_rms(case, t):
    y, z = (t[name][:KNOWN].double() for name in "yz")
    return {"out": first_rows(normalized(y * silu(z), t["weight"].double(), 1e-5))}


@reference("gate")
def gate(case, t):
    # The tanh form and that of the error function differ by less than rounding.
    return {"out": first_rows(gelu(t["x"][:KNOWN].double()) * t["gate"][:KNOWN].double())}


@reference("gemm")
def gemm(case, t):
    return {"c": first_rows(t["a"][:KNOWN].double() @ t["b"].double().T)}


@reference("embedding")
def embedded(case, t):
    return {"out": first_rows(t["table"][t["ids"][:KNOWN].long()])}


def residual(x, before, weight):
    """The sum, and its norm."""
    total = before + x
    return total, normalized(total, weight, EPS)


@reference("residual_norm")
def residual_norm(case, t):
    x, before = (t[name][:KNOWN].double() for name in ("x", "residual"))
    total, out = residual(x, before, t["weight"].double())
    return {"residual": first_rows(total), "out": first_rows(out)}


def entropy(logits, labels):
    """Losses, and their mean's gradient."""
    lse = torch.logsumexp(logits, -1, keepdim=True)
    labels = labels[:, None]
    classes = torch.arange(logits.shape[-1], device=logits.device)
    loss = (lse - logits.gather(-1, labels)).squeeze(-1)
    return loss, (torch.exp(logits - lse) - (classes == labels).to(logits.dtype))


@reference("cross_entropy")
def cross_entropy(case, t):
    loss, gradient = entropy(t["logits"][:KNOWN].double(), t["labels"][:KNOWN].long())
    return {"loss": first_rows(loss), "dlogits": first_rows(gradient / t["logits"].shape[0])}


def angles(x, dtype):
    """Cosines and sines of positions along the second dimension, for halves of the last."""
    half = x.shape[-1] // 2
    # In f64: of large positions, f32 keeps few digits of an angle.
    steps = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    turns = torch.arange(x.shape[1], device=x.device, dtype=torch.float64)[:, None, None] * steps
    return turns.cos().to(dtype), turns.sin().to(dtype)


def turned(x, cos, sin):
    """Entry `i` with entry `i + half`."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


@reference("rotary")
def rotary(case, t):
    x = t["x"].double()
    return {"out": whole(turned(x, *angles(x, x.dtype)))}


@reference("rotary_backward")
def rotary_backward(case, t):
    x = t["dout"].double()
    cos, sin = angles(x, x.dtype)
    return {"dx": whole(turned(x, cos, -sin))}


COMPILED = {}


def compiled(name, function):
    """The function, compiled once."""
    if name not in COMPILED:
        COMPILED[name] = torch.compile(function, dynamic=False)
    return COMPILED[name]


@peer("rms_norm", "torch rms_norm")
def torch_rms(case, t):
    return lambda: {"out": functional.rms_norm(t["x"], t["weight"].shape, t["weight"], 1e-6)}


@peer("rms_norm", "torch rms_norm, compiled")
def compiled_rms(case, t):
    call = compiled("rms", lambda x, weight: functional.rms_norm(x, weight.shape, weight, 1e-6))
    return lambda: {"out": call(t["x"], t["weight"])}


@peer("rms_norm", "fla rms_norm")
def fla_rms(case, t):
    from fla.modules.layernorm import rms_norm as fla_rms_norm

    return lambda: {"out": fla_rms_norm(t["x"], t["weight"], None, eps=1e-6)}


@peer("gated_rms_norm", "torch, compiled")
def compiled_gated_rms(case, t):
    def gated(y, z, weight):
        wide = y.float() * silu(z.float())
        return functional.rms_norm(wide, weight.shape, weight.float(), 1e-5).to(y.dtype)

    call = compiled("gated rms", gated)
    return lambda: {"out": call(t["y"], t["z"], t["weight"])}


@peer("residual_norm", "torch, compiled")
def compiled_residual(case, t):
    before = t["residual"].clone()

    def in_place(x, before, weight):
        total, out = residual(x.float(), before, weight)
        before.copy_(total)
        return out.to(x.dtype)

    call = compiled("residual", in_place)
    return lambda: {"out": call(t["x"], before, t["weight"]), "residual": before}


@peer("cross_entropy", "torch, compiled")
def compiled_entropy(case, t):
    rows = t["logits"].shape[0]
    labels = t["labels"].long()

    def both(logits, labels):
        loss, gradient = entropy(logits.float(), labels)
        return loss, (gradient / logits.shape[0]).to(logits.dtype)

    call = compiled(f"entropy {rows}", both)
    return lambda: dict(zip(("loss", "dlogits"), call(t["logits"], labels)))


@peer("rotary", "torch, compiled, cosines from a table")
def compiled_rotary(case, t):
    cos, sin = angles(t["x"], torch.float32)
    call = compiled("rotary", lambda x, cos, sin: turned(x.float(), cos, sin).to(x.dtype))
    return lambda: {"out": call(t["x"], cos, sin)}


@peer("gate", "torch, compiled")
def compiled_gate(case, t):
    call = compiled("gate", lambda x, y: (gelu(x.float()) * y.float()).to(x.dtype))
    return lambda: {"out": call(t["x"], t["gate"])}


@peer("gemm", "torch matmul (cuBLAS)")
def cublas(case, t):
    a, b = t["a"], t["b"].T
    return lambda: {"c": a @ b}


@peer("embedding", "torch embedding")
def torch_embedding(case, t):
    ids = t["ids"].long()
    return lambda: {"out": embedding(ids, t["table"])}


@peer("argmax", "torch argmax")
def torch_argmax(case, t):
    return lambda: {"index": t["x"].argmax(-1).int()}
