"""Memory of a case as PyTorch tensors: sets that rotate, and workspaces that they share."""

import torch

from .launches import Binding

TYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
}
# Together the sets exceed every cache three times, as in the benchmarks in Rust.
ROTATION_BYTES = 200_000_000
# A graph launches every set once or more.
MOST_SETS = 128


def sets_of(case):
    """How many sets of tensors the case rotates over."""
    return min(max(-(-ROTATION_BYTES // max(case.set_bytes(), 1)), 2), MOST_SETS)


class Set:
    """One set of tensors, ready to launch."""

    def __init__(self, driver, case, shared, device):
        self.case = case
        self.buffers = []
        for index, buffer in enumerate(case.buffers):
            if case.rotates(index):
                self.buffers.append(torch.empty(max(buffer["bytes"], 1), dtype=torch.uint8, device=device))
            else:
                self.buffers.append(shared[index])
        self.binding = Binding(driver, case, [buffer.data_ptr() for buffer in self.buffers])
        self.tensors = {}
        for description, buffer in zip(case.buffers, self.buffers):
            self.tensors[description["name"]] = view(buffer, description["dtype"], description["shape"])

    def set_up(self, stream):
        """Puts everything back to how it was before the first launch."""
        self.binding.set_up(stream)
        self.binding.driver.synchronize()

    def outputs(self):
        """What a launch writes, by name."""
        names = [self.case.buffers[index]["name"] for index in self.case.outputs()]
        return {name: self.tensors[name] for name in names}

    def poison(self):
        """Makes NaN of what a launch writes and does not read."""
        for description, buffer in zip(self.case.buffers, self.buffers):
            if description["role"] == "output":
                buffer.fill_(0xFF)


def view(buffer, dtype, shape):
    """Bytes as a tensor of that type and shape."""
    size = torch.empty(0, dtype=TYPES[dtype]).element_size()
    elements = 1
    for extent in shape:
        elements *= extent
    return buffer[: elements * size].view(TYPES[dtype]).view(shape)


def make_sets(driver, case, count, stream, device="cuda"):
    """`count` sets, set up as the host did."""
    shared = {}
    for index, buffer in enumerate(case.buffers):
        if not case.rotates(index):
            shared[index] = torch.empty(max(buffer["bytes"], 1), dtype=torch.uint8, device=device)
    sets = [Set(driver, case, shared, device) for _ in range(count)]
    for one in sets:
        one.set_up(stream)
    return sets
