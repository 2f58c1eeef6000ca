"""Linear attention over all tokens at once: two products of PyTorch's, with and without a map of features around them."""

import torch
from torch.nn.functional import elu

from . import gradients_of, peer, reference
from ..compare import Wanted
from .linear import features, index_of, of_heads, some_heads

EPS = 1e-6


def itself(x):
    return x


def above_zero(x):
    return elu(x) + 1


def over_tokens(x):
    return torch.softmax(x, -2)


def maps(case):
    """The maps of queries and of keys."""
    if "softmax" in case.special:
        return itself, over_tokens
    words = {"elu": above_zero, "taylor": features}
    both = next((words[word] for word in words if word in case.special), itself)
    return both, both


def attend(q, k, v, of_q, of_k, normalized):
    """`[..,T,K]` and `[..,T,V]`: heads are among the first dimensions."""
    q, k = of_q(q), of_k(k)
    o = q @ (k.transpose(-1, -2) @ v)
    return o / (q @ k.sum(-2)[..., None] + EPS) if normalized else o


@reference("time_reduce")
def time_reduce(case, t):
    some = some_heads(t)
    q, k, v = (of_heads(t, some, name).double() for name in "qkv")
    return {"o": Wanted(index_of(some), attend(q, k, v, *maps(case), "normalized" in case.special))}


@reference("time_reduce_backward")
def time_reduce_backward(case, t):
    some = some_heads(t)[:1]
    q, k, v = (of_heads(t, some, name).double().requires_grad_() for name in "qkv")
    o = attend(q, k, v, *maps(case), "normalized" in case.special)
    o.backward(of_heads(t, some, "do").double())
    return {name: Wanted(index_of(some), x.grad) for name, x in (("dq", q), ("dk", k), ("dv", v))}


COMPILED = {}


def torch_products(compiles):
    def make(case, t):
        if "taylor" in case.special or (compiles and not case.special):
            # Its features have no kernel in PyTorch; without a map there is nothing to fuse.
            return None
        if compiles and "attend" not in COMPILED:
            COMPILED["attend"] = torch.compile(attend, dynamic=False)
        call = COMPILED["attend"] if compiles else attend
        q, k, v = (t[name].transpose(1, 2) for name in "qkv")
        of_q, of_k = maps(case)
        normalized = "normalized" in case.special
        return lambda: {"o": call(q, k, v, of_q, of_k, normalized).transpose(1, 2)}

    return make


@peer("time_reduce_backward", "torch products")
def torch_products_backward(case, t):
    if "taylor" in case.special:
        return None
    q, k, v, d_o = (t[name].transpose(1, 2) for name in ("q", "k", "v", "do"))
    of_q, of_k = maps(case)
    normalized = "normalized" in case.special
    given = {"dq": q, "dk": k, "dv": v}
    call = gradients_of(lambda q, k, v: attend(q, k, v, of_q, of_k, normalized), given, d_o)
    return lambda: {name: x.transpose(1, 2) for name, x in call().items()}


peer("time_reduce", "torch products")(torch_products(False))
peer("time_reduce", "torch products, compiled")(torch_products(True))
