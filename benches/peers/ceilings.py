"""What this card does at best, now: everything is read against it."""

import shutil
import subprocess

import torch

from . import timing

GIB = 1 << 30
FIELDS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"


def measure(stream):
    """Bytes a second of a copy (read and written) and of a read, flops a second of a bf16 product."""
    source = torch.empty(2 * GIB, dtype=torch.uint8, device="cuda").fill_(7)
    target = torch.empty_like(source)
    copied = timing.alone([lambda: target.copy_(source)], stream)["us"]
    words = source.view(torch.float32)
    read = timing.alone([lambda: words.sum()], stream)["us"]
    del source, target, words
    size = 8192
    # Zeros would run faster than data does.
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = timing.alone([lambda: a @ b], stream)["us"]
    return {
        "copy_bytes_per_second": 4 * GIB / copied * 1e6,
        "read_bytes_per_second": 2 * GIB / read * 1e6,
        "bf16_flops_per_second": 2 * size**3 / product * 1e6,
    }


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
