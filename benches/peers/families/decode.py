"""One query a request over its cache."""

import torch

from . import peer, reference
from ..compare import Wanted
from .softmax import compiled_flex, scaled_dot_product

PAGE = 16


def kind_of(case):
    """`dense`, `ragged` or `paged`."""
    return case.special.split(",")[0]


def rows_of(case, t, b):
    """Where the keys of a request are."""
    length = int(t["kv_len"][b])
    if kind_of(case) != "paged":
        first = int(t["cu_seqlens_k"][b])
        return slice(first, first + length)
    first, last = (int(x) for x in t["kv_indptr"][b : b + 2])
    pages = t["kv_indices"][first:last].long()
    rows = pages[:, None] * PAGE + torch.arange(PAGE, device=pages.device)
    return rows.flatten()[:length]


def wide(case, t, name, rows):
    """Keys or values `[n, Hk, D]` in f64."""
    x = t[name][rows]
    if case.dtype != "e4m3":
        return x.double()
    return from_e4m3(x) * t[f"{name}_scale"].double()[:, None]


def from_e4m3(codes):
    """Four bits of exponent, three of mantissa, in f64. No codes of NaN."""
    codes = codes.long()
    sign = 1.0 - 2.0 * (codes >> 7)
    exponent, mantissa = (codes >> 3) & 15, (codes & 7).double() / 8
    small = mantissa * 2.0**-6
    normal = (1 + mantissa) * torch.pow(2.0, exponent.double() - 7)
    return sign * torch.where(exponent == 0, small, normal)


@reference("lean_decode")
def lean_decode(case, t):
    q = t["q"]
    batch, heads, dim = q.shape
    some = sorted({0, batch - 1})
    found = []
    for b in some:
        rows = rows_of(case, t, b)
        k, v = (wide(case, t, name, rows) for name in "kv")
        group = heads // k.shape[1]
        rows = q[b].double().view(k.shape[1], group, dim)
        logits = torch.einsum("hgd,nhd->hgn", rows, k) * dim**-0.5
        found.append(torch.einsum("hgn,nhd->hgd", torch.softmax(logits, -1), v).reshape(heads, -1))
    return {"o": Wanted((some,), torch.stack(found))}


def dense(case, t):
    """`q [B,H,1,D]` and `k v [B,Hk,T,D]`, as views; nothing where the cache is not dense or not of q's type."""
    if kind_of(case) != "dense" or case.dtype == "e4m3":
        return None
    q = t["q"].unsqueeze(2)
    keys = [t[name].view(q.shape[0], -1, *t[name].shape[1:]).transpose(1, 2) for name in "kv"]
    return q, *keys


def by_backend(backend):
    def make(case, t):
        tensors = dense(case, t)
        if tensors is None:
            return None
        call = scaled_dot_product(backend, False)
        return lambda: {"o": call(*tensors, False).squeeze(2)}

    return make


peer("lean_decode", "torch SDPA flash")(by_backend("FLASH_ATTENTION"))
peer("lean_decode", "torch SDPA cuDNN")(by_backend("CUDNN_ATTENTION"))


@peer("lean_decode", "torch flex decoding, compiled")
def flex(case, t):
    tensors = dense(case, t)
    if tensors is None:
        return None
    call = compiled_flex()
    q, k, _ = tensors
    return lambda: {"o": call(*tensors, enable_gqa=q.shape[1] != k.shape[1]).squeeze(2)}


@peer("lean_decode", "xformers triton_splitk")
def split_k(case, t):
    if kind_of(case) == "paged" or case.dtype == "e4m3":
        # Its pages are a multiple of 64 keys.
        return None
    from xformers.ops import fmha
    from xformers.ops.fmha import triton_splitk

    batch, heads, dim = t["q"].shape
    key_heads = t["k"].shape[1]
    group = heads // key_heads
    # Batch, tokens, groups, heads of a group, entries.
    one = kind_of(case) == "ragged"
    q = t["q"].view(1 if one else batch, -1, key_heads, group, dim)
    k, v = (t[name].view(q.shape[0], -1, key_heads, 1, dim).expand(-1, -1, -1, group, -1) for name in "kv")
    bias = None
    if one:
        from xformers.ops.fmha.attn_bias import BlockDiagonalGappyKeysMask

        starts, lengths = t["cu_seqlens_k"].tolist(), t["kv_len"].tolist()
        bias = BlockDiagonalGappyKeysMask.from_seqlens([1] * batch, starts, lengths, device=q.device)

    def call():
        o = fmha.memory_efficient_attention_forward(q, k, v, attn_bias=bias, op=triton_splitk.FwOp)
        return {"o": o.reshape(batch, heads, dim)}

    return call


@peer("lean_decode", "fla attn_decoding_one_step")
def fla_decoding(case, t):
    if kind_of(case) == "paged" or case.dtype == "e4m3":
        return None
    from fla.ops.attn.decoding import attn_decoding_one_step

    q, k, v = (t[name].unsqueeze(0) for name in "qkv")
    starts = t["cu_seqlens_k"].long()
    return lambda: {"o": attn_decoding_one_step(q, k, v, cu_seqlens=starts).squeeze(0)}


WORKSPACE = {}


def workspace(device):
    """What flashinfer works in; its calls come one after the other."""
    if device not in WORKSPACE:
        WORKSPACE[device] = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    return WORKSPACE[device]


@peer("lean_decode", "flashinfer paged decode")
def flashinfer_paged(case, t):
    if kind_of(case) != "paged" or case.dtype == "e4m3":
        return None
    import flashinfer

    q = t["q"]
    k, v = (t[name].view(-1, PAGE, *t[name].shape[1:]) for name in "kv")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace(q.device), "NHD", use_tensor_cores=True)
    last = ((t["kv_len"] - 1) % PAGE + 1).int()
    _, heads, dim = q.shape
    types = {"q_data_type": q.dtype, "kv_data_type": k.dtype}
    wrapper.plan(t["kv_indptr"], t["kv_indices"], last, heads, k.shape[2], dim, PAGE, **types)
    return lambda: {"o": wrapper.run(q, (k, v))}
