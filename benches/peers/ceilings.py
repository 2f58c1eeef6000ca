"""What this card does at best, now: everything is read against it."""

import shutil
import subprocess

import torch

from . import timing

GIB = 1 << 30
SIZE = 8192
FIELDS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"


def measure(stream):
    """Bytes a second of a copy (read and written) and of a read, flops a second of a bf16 product."""
    copied, read = memory_us(stream)
    return {
        "copy_bytes_per_second": 4 * GIB / copied * 1e6,
        "read_bytes_per_second": 2 * GIB / read * 1e6,
        "bf16_flops_per_second": 2 * SIZE**3 / product_us(stream) * 1e6,
    }


def memory_us(stream):
    """A copy of 2 GiB, and a sum over them."""
    source = torch.empty(2 * GIB, dtype=torch.uint8, device="cuda").fill_(7)
    target, words = torch.empty_like(source), source.view(torch.float32)
    copied = timing.alone([lambda: target.copy_(source)], stream)["us"]
    return copied, timing.alone([words.sum], stream)["us"]


def product_us(stream):
    """A bf16 product. Zeros would run faster than data does."""
    a, b = (torch.randn(SIZE, SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return timing.alone([lambda: a @ b], stream)["us"]


def floor_us(case, ceilings):
    """The least time that the case's bytes or products take."""
    seconds = max(case.bytes / ceilings["copy_bytes_per_second"], case.flops / ceilings["bf16_flops_per_second"])
    return seconds * 1e6


def clocks():
    """Clocks and power as nvidia-smi reads them; nothing where it is missing. Read, never set."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(FIELDS.split(","), values)) if done.returncode == 0 else None
