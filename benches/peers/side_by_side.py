"""One case: right first, then timed, ours and each peer in turns."""

import time

import torch

from . import ceilings, compare, tensors, timing
from .timing import first_line


def prepared(make, case, sets):
    """A peer's calls, one for each set; nothing where it does not do this case."""
    calls = []
    for one in sets:
        call = make(case, one.tensors)
        if call is None:
            return None
        calls.append(call)
    return calls


def ours(sets):
    """Our calls, one for each set, on whatever stream is current."""

    def call(one):
        return lambda: one.binding.launch(torch.cuda.current_stream().cuda_stream)

    return [call(one) for one in sets]


def check_ours(one, reference, stream):
    """Launches on the first set, whose outputs are NaN before; gives the error."""
    one.poison()
    one.binding.launch(stream.cuda_stream)
    torch.cuda.synchronize()
    outputs = one.outputs()
    off = compare.errors(outputs, reference)
    return {"error": off, "wrong": not compare.is_right(off, outputs, reference)}


def with_peer(name, make, case, sets, reference, stream):
    """One peer beside ours; nothing where it does not do this case. What goes wrong in it is told in its row."""
    row = {"name": name}
    try:
        began = time.monotonic()
        first = make(case, sets[0].tensors)
        if first is None:
            return None
        outputs = first()
        torch.cuda.synchronize()
        row["prepare_seconds"] = round(time.monotonic() - began, 2)
        row["error"] = compare.errors(outputs, reference)
        row["wrong"] = not compare.is_right(row["error"], outputs, reference)
        del outputs, first
        calls = prepared(make, case, sets)
        row["warm"] = timing.in_turns(ours(sets), calls, stream)
        if case.set_bytes() < timing.COLD_BELOW:
            row["cold"] = timing.cold_in_turns(ours(sets), calls, stream)
    except ImportError as why:
        row["why"] = f"not installed: {first_line(why)}"
    except Exception as why:  # Whatever a library raises is its row's business, not the other rows'.
        row["why"] = first_line(why)
        torch.cuda.synchronize()
    return row


def run(driver, case, peers, reference, ceiling, stream):
    """Everything that is known of one case."""
    result = {
        "name": case.name,
        "bytes": case.bytes,
        "flops": case.flops,
        "floor_us": ceilings.floor_us(case, ceiling),
        "kernels": {},
        "ours": {},
        "peers": [],
    }
    # What was compiled for another case's shapes would count against a limit, or give way to code for any shape.
    torch.compiler.reset()
    sets = tensors.make_sets(driver, case, tensors.sets_of(case), stream.cuda_stream)
    result["sets"] = len(sets)
    result["kernels"] = sets[0].binding.logs
    known = reference(case, sets[0].tensors) if reference else {}
    result["ours"] = check_ours(sets[0], known, stream)
    result["ours"].update(timing.alone(ours(sets), stream))
    for name, make in peers:
        # Peers leave the tensors as they are, ours may change a state.
        sets[0].set_up(stream.cuda_stream)
        row = with_peer(name, make, case, sets, known, stream)
        if row is not None:
            result["peers"].append(row)
    return result
