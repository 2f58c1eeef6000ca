"""Softmax attention in blocks, and its gradients: PyTorch's three backends and flex attention."""

import torch

from . import peer, reference
from ..compare import Wanted


def mask_of(case):
    """`full`, `causal` or `window`, the first word of what is special."""
    return case.special.split(",")[0]


def hidden(case, logits):
    """Which key each query does not see; nothing where it sees all."""
    i, j = (torch.arange(extent, device=logits.device) for extent in logits.shape)
    i, j, mask = i[:, None], j[None, :], mask_of(case)
    if mask == "full":
        return None
    causal = j <= i
    # A thousand keys back, and the first four.
    return ~(causal & ((i - j <= 1023) | (j < 4)) if mask == "window" else causal)


def head(case, q, k, v):
    """Result and `lse` of one head, in f64."""
    logits = q.double() @ k.double().T * q.shape[-1] ** -0.5
    unseen = hidden(case, logits)
    if unseen is not None:
        logits = logits.masked_fill(unseen, float("-inf"))
    return torch.softmax(logits, -1) @ v.double(), torch.logsumexp(logits, -1)


def heads_of(q, k):
    """First and last query head, each with its key head."""
    group = q.shape[2] // k.shape[2]
    return [(h, h // group) for h in sorted({0, q.shape[2] - 1})]


@reference("attention")
def attention(case, t):
    q, k, v = t["q"], t["k"], t["v"]
    found = [head(case, q[0, :, h], k[0, :, g], v[0, :, g]) for h, g in heads_of(q, k)]
    index = (0, slice(None), [h for h, _ in heads_of(q, k)])
    o, lse = torch.stack([o for o, _ in found], 1), torch.stack([lse for _, lse in found], 1)
    if "merged" in case.special:
        o, lse = merged(t["o"][index].double(), t["lse"][index].double(), o, lse)
    return {"o": Wanted(index, o), "lse": Wanted(index, lse)}


def merged(o, lse, more, more_lse):
    """Two results over disjoint keys as one."""
    both = torch.logaddexp(lse, more_lse)
    return o * (lse - both).exp()[..., None] + more * (more_lse - both).exp()[..., None], both


@reference("attention_backward")
def attention_backward(case, t):
    q, k, v, d_o = t["q"], t["k"], t["v"], t["do"]
    group = q.shape[2] // k.shape[2]
    # All query heads of the first key head: they add up to its gradients.
    rows = [q[0, :, h].double().requires_grad_() for h in range(group)]
    keys, values = (x[0, :, 0].double().requires_grad_() for x in (k, v))
    for h, row in enumerate(rows):
        o, _ = head(case, row, keys, values)
        o.backward(d_o[0, :, h].double())
    first = (0, slice(None), 0)
    dq = torch.stack([row.grad for row in rows], 1)
    return {
        "dq": Wanted((0, slice(None), slice(0, group)), dq),
        "dk": Wanted(first, keys.grad),
        "dv": Wanted(first, values.grad),
    }


def transposed(t, *names):
    """Heads before tokens, as views."""
    return [t[name].transpose(1, 2) for name in names]


def repeated(q, k, v):
    """Keys and values once for each query head."""
    group = q.shape[1] // k.shape[1]
    return [x.repeat_interleave(group, 1) if group > 1 else x for x in (k, v)]


def scaled_dot_product(backend, repeats):
    """A function of `q k v` and whether it is causal, by one backend of PyTorch."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    chosen = getattr(SDPBackend, backend)

    def call(q, k, v, causal):
        with sdpa_kernel(chosen):
            gqa = not repeats and q.shape[1] != k.shape[1]
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

    return call


def forward(backend, repeats=False):
    def make(case, t):
        if mask_of(case) == "window" or "merged" in case.special:
            return None
        call = scaled_dot_product(backend, repeats)
        q, k, v = transposed(t, "q", "k", "v")
        if repeats:
            k, v = repeated(q, k, v)
        causal = mask_of(case) == "causal"
        return lambda: {"o": call(q, k, v, causal).transpose(1, 2)}

    return make


def backward(backend, repeats=False):
    def make(case, t):
        call = scaled_dot_product(backend, repeats)
        q, k, v, d_o = transposed(t, "q", "k", "v", "do")
        if repeats:
            if q.shape[1] != k.shape[1]:
                # Gradients of repeated keys would still have to be added up.
                return None
            k, v = repeated(q, k, v)
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        o = call(q, k, v, mask_of(case) == "causal")

        def gradients():
            dq, dk, dv = torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True)
            return {name: x.transpose(1, 2) for name, x in (("dq", dq), ("dk", dk), ("dv", dv))}

        return gradients

    return make


for backend, label, repeats in [
    ("CUDNN_ATTENTION", "torch SDPA cuDNN", False),
    ("FLASH_ATTENTION", "torch SDPA flash", False),
    ("EFFICIENT_ATTENTION", "torch SDPA efficient, keys repeated", True),
]:
    peer("attention", label)(forward(backend, repeats))
    peer("attention_backward", label)(backward(backend, repeats))


COMPILED = {}


def compiled_flex():
    """Flex attention, compiled once for all cases."""
    if not COMPILED:
        from torch.nn.attention.flex_attention import flex_attention

        COMPILED["flex"] = torch.compile(flex_attention, dynamic=False)
    return COMPILED["flex"]


def causal_rule(b, h, i, j):
    return j <= i


def window_rule(b, h, i, j):
    return (j <= i) & ((i - j <= 1023) | (j < 4))


@peer("attention", "torch flex attention, compiled")
def flex(case, t):
    if "merged" in case.special:
        return None
    from torch.nn.attention.flex_attention import create_block_mask

    q, k, v = transposed(t, "q", "k", "v")
    rule = {"full": None, "causal": causal_rule, "window": window_rule}[mask_of(case)]
    blocks = rule and create_block_mask(rule, None, None, q.shape[2], k.shape[2], device=str(q.device))
    call = compiled_flex()
    return lambda: {"o": call(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)}


@peer("attention", "torch flash with lse, keys repeated, merged by PyTorch")
def flash_and_merge(case, t):
    if "merged" not in case.special:
        return None
    q, k, v = transposed(t, "q", "k", "v")
    k, v = repeated(q, k, v)
    o, lse = t["o"].clone(), t["lse"].clone()
    attend = torch.ops.aten._scaled_dot_product_flash_attention

    def call():
        more, more_lse = attend(q, k, v, 0.0, mask_of(case) == "causal")[:2]
        both, both_lse = merged(o, lse, more.transpose(1, 2).float(), more_lse.transpose(1, 2))
        return {"o": both, "lse": both_lse}

    return call
