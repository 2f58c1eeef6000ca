"""What was launched without PyTorch's help, against PyTorch's references."""

import torch

from . import compare, tensors


def as_tensors(case, contents):
    """Bytes of buffers as tensors by name."""
    found = {}
    for buffer in case.buffers:
        held = torch.frombuffer(bytearray(contents[buffer["name"]]), dtype=torch.uint8)
        found[buffer["name"]] = tensors.view(held, buffer["dtype"], buffer["shape"])
    return found


def against(case, reference, before, after):
    """What is too far from the reference; and, as it should not be, a case of which the reference knows nothing."""
    wanted = reference(case, as_tensors(case, before))
    outputs = as_tensors(case, after)
    found = []
    for name, part in wanted.items():
        off = compare.error(outputs[name], part)
        if not compare.is_right(off, outputs, {name: part}):
            found.append(f"{name} is {off:.2e} from the reference")
    return found
