"""How far results are off."""

import dataclasses

import torch

# A peer or a kernel whose whole error is above is wrong, whatever it takes. Far above rounding, far below a mistake.
GATES = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 2e-2}


@dataclasses.dataclass
class Wanted:
    """A part of an output, in f64: all of it would take longer to know than to compute."""

    index: tuple
    value: torch.Tensor


def whole(value):
    """All of an output."""
    return Wanted((Ellipsis,), value)


def error(got, wanted):
    """|got - wanted| / |wanted| over the part that is known; infinite where it is not finite or has another shape."""
    part = got[wanted.index].double()
    value = wanted.value.double().to(part.device)
    if part.shape != value.shape:
        return float("inf")
    norm = value.norm().clamp_min(1e-30)
    off = ((part - value).norm() / norm).item()
    return off if off == off else float("inf")


def errors(outputs, reference):
    """The greatest error over the outputs that are known; nothing where none is."""
    found = [error(outputs[name], wanted) for name, wanted in reference.items() if name in outputs]
    return max(found) if found else None


def is_right(off, outputs, reference):
    """Whether an error is one of rounding; what has no reference cannot be wrong."""
    if off is None:
        return True
    gates = [GATES.get(outputs[name].dtype, 0.0) for name in reference if name in outputs]
    return off <= max(gates)
