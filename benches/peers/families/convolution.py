"""Depthwise convolutions over few tokens, followed by SiLU."""

import torch
from torch.nn.functional import conv1d, silu

from . import gradients_of, peer, reference
from ..compare import Wanted

# Of the channels, so many are known.
KNOWN = 64


def convolved(x, weight, centred):
    """`x [B,T,D]`, `weight [D,W]`."""
    taps = weight.shape[1]
    before = taps // 2 if centred else taps - 1
    padded = torch.nn.functional.pad(x.transpose(1, 2), (before, taps - 1 - before))
    return conv1d(padded, weight[:, None], groups=weight.shape[0]).transpose(1, 2)


def known(t):
    """Some channels of the input and of the weights, in f64."""
    return t["x"][..., :KNOWN].double(), t["weight"][:KNOWN].double()


@reference("short_convolution")
def short_convolution(case, t):
    x, weight = known(t)
    return {"out": Wanted((Ellipsis, slice(0, KNOWN)), silu(convolved(x, weight, case.special == "centred")))}


@reference("short_convolution_backward")
def short_convolution_backward(case, t):
    x, weight = (value.requires_grad_() for value in known(t))
    silu(convolved(x, weight, case.special == "centred")).backward(t["dout"][..., :KNOWN].double())
    return {
        "dx": Wanted((Ellipsis, slice(0, KNOWN)), x.grad),
        "dweight": Wanted((slice(0, KNOWN),), weight.grad),
    }


@peer("short_convolution", "fla causal_conv1d (Triton)")
def fla_convolution(case, t):
    if case.special == "centred":
        return None
    from fla.modules.conv import causal_conv1d

    return lambda: {"out": causal_conv1d(t["x"], t["weight"], activation="silu")[0]}


@peer("short_convolution_backward", "fla causal_conv1d (Triton)")
def fla_convolution_backward(case, t):
    from fla.modules.conv import causal_conv1d

    given = {"dx": t["x"], "dweight": t["weight"]}
    return gradients_of(lambda x, weight: causal_conv1d(x, weight, activation="silu")[0], given, t["dout"])


@peer("short_convolution", "causal_conv1d, channels last")
def dao_convolution(case, t):
    if case.special == "centred":
        return None
    from causal_conv1d import causal_conv1d_fn

    x = t["x"].transpose(1, 2)
    return lambda: {"out": causal_conv1d_fn(x, t["weight"], activation="silu").transpose(1, 2)}


@peer("short_convolution", "torch conv1d of groups, channels first")
def torch_convolution(case, t):
    x, weight = t["x"].transpose(1, 2).contiguous(), t["weight"][:, None]
    taps, tokens = weight.shape[2], x.shape[2]
    before = taps // 2 if case.special == "centred" else taps - 1

    def call():
        # Padding on both sides, and the ends cut off: a copy less than padding one.
        out = conv1d(x, weight, padding=before, groups=weight.shape[0])
        return {"out": silu(out[..., :tokens]).transpose(1, 2)}

    return call
