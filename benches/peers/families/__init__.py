"""References and peers by operation.

A peer is a function of a case and of one set of its tensors, by name, that gives a function without arguments; calling that does the
work and gives outputs by name, in the layout of ours. What both layouts need is done before: transposes, repeated keys. Libraries are
imported inside, so that one that is missing is a line of the table and no more. A peer returns `None` for a case that it cannot do.
"""

import importlib

MODULES = ["softmax", "decode", "linear", "reduce", "scan", "step", "convolution", "rows"]

PEERS = {}
REFERENCES = {}


def peer(operation, name):
    """Registers a peer of an operation."""

    def register(function):
        PEERS.setdefault(operation, []).append((name, function))
        return function

    return register


def reference(operation):
    """Registers the function of a case and its tensors that gives parts of outputs in f64; no entry for what it does not know."""

    def register(function):
        REFERENCES[operation] = function
        return function

    return register


def gradients_of(forward, given, adjoint):
    """A backward alone: the forward is run here, and its graph kept. `given` are leaves by the names of their gradients."""
    import torch

    leaves = {name: x.detach().requires_grad_() for name, x in given.items()}
    output = forward(*leaves.values())
    return lambda: dict(zip(leaves, torch.autograd.grad(output, list(leaves.values()), adjoint, retain_graph=True)))


def load():
    """Fills the tables."""
    for module in MODULES:
        importlib.import_module(f"{__name__}.{module}")
    return PEERS, REFERENCES
