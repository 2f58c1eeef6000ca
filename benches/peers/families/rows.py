"""What is around the mixers: norms, gates, matrix products, the largest of a row. PyTorch, compiled where that fuses."""

import torch
from torch.nn import functional
from torch.nn.functional import embedding, gelu, silu

from . import peer, reference
from ..compare import Wanted

# Rows that are known.
KNOWN = 512


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
