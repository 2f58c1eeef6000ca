"""Gated scans and running sums along time."""

import torch

from . import peer, reference
from ..compare import Wanted

# Of the channels, so many are known: token by token in f64.
KNOWN = 16


def gates_of(case, t, some=slice(None)):
    """`a` of those channels in f64; nothing for a sum."""
    kind = case.special
    if kind == "cumsum":
        return None
    if kind == "log":
        return t["log_a"][..., some].double().exp()
    if kind == "channel":
        return t["decay"][some].double().expand_as(t["b"][..., some])
    return t["a"][..., some].double()


def recurrence(a, b):
    """`h[t] = a[t] h[t-1] + b[t]`, token by token."""
    state, rows = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        state = a[:, t] * state + b[:, t]
        rows.append(state)
    return torch.stack(rows, 1)


@reference("gated_scan")
def gated_scan(case, t):
    some = slice(0, min(KNOWN, t["b"].shape[-1]))
    b = t["b"][..., some].double()
    a = gates_of(case, t, some)
    h = b.cumsum(1) if a is None else recurrence(a, b)
    return {"h": Wanted((slice(None), slice(None), some), h)}


def gates_like_tokens(case, t):
    """Gates of the type of tokens; nothing for a sum, and for gates in f32 beside tokens of 16 bits, which they cannot hold."""
    if case.special == "cumsum" or (case.special == "channel" and case.dtype != "f32"):
        return None
    return gates_of(case, t).to(t["b"].dtype)


def channels_first(case, t):
    """Gates and tokens `[B,D,T]`, contiguous."""
    a = gates_like_tokens(case, t)
    return None if a is None else [x.transpose(1, 2).contiguous() for x in (a, t["b"])]


def accelerated(module):
    def make(case, t):
        given = channels_first(case, t)
        if given is None:
            return None
        import importlib

        scan = importlib.import_module(f"accelerated_scan.{module}").scan
        return lambda: {"h": scan(*given).transpose(1, 2)}

    return make


peer("gated_scan", "accelerated_scan scalar, channels first")(accelerated("scalar"))
peer("gated_scan", "accelerated_scan warp, channels first")(accelerated("warp"))


COMPILED = {}


def combine(before, after):
    """Two steps as one."""
    return before[0] * after[0], after[0] * before[1] + after[1]


@peer("gated_scan", "torch associative_scan, compiled")
def associative(case, t):
    a = gates_like_tokens(case, t)
    if a is None:
        return None
    from torch._higher_order_ops.associative_scan import associative_scan

    if "scan" not in COMPILED:
        COMPILED["scan"] = torch.compile(lambda a, b: associative_scan(combine, (a, b), 1)[1], dynamic=False)
    call, a = COMPILED["scan"], a.contiguous()
    return lambda: {"h": call(a, t["b"])}


@peer("gated_scan", "fla chunk_hgrn")
def hgrn(case, t):
    a = gates_of(case, t)
    if a is None:
        return None
    from fla.ops.hgrn import chunk_hgrn

    log_a = a.log().float().contiguous()
    return lambda: {"h": chunk_hgrn(t["b"], log_a)[0]}


@peer("gated_scan", "torch.cumsum")
def cumsum(case, t):
    if case.special != "cumsum":
        return None
    b = t["b"]
    # f16 sums would be of f32 only if asked for, and then written as f32.
    return lambda: {"h": torch.cumsum(b, 1)}


@peer("gated_scan", "cupy cumsum (CUB)")
def cub(case, t):
    b = t["b"]
    if case.special != "cumsum" or b.numel() != b.shape[1] or b.dtype == torch.bfloat16:
        return None
    import cupy

    # PyTorch's tensors as CuPy's, without a copy.
    source, h = cupy.from_dlpack(b.flatten()), torch.empty_like(b)
    target = cupy.from_dlpack(h.view(-1))

    def call():
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            cupy.cumsum(source, out=target)
        return {"h": h}

    return call


@reference("log_cumsum_exp")
def log_cumsum_exp(case, t):
    some = slice(0, KNOWN)
    z = torch.logcumsumexp(t["x"][..., some].double(), 1)
    return {"z": Wanted((slice(None), slice(None), some), z)}


@peer("log_cumsum_exp", "torch.logcumsumexp")
def torch_log_cumsum_exp(case, t):
    return lambda: {"z": torch.logcumsumexp(t["x"].float(), 1)}
