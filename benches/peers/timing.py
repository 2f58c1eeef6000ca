"""Time by events around graphs of many calls that rotate over sets of tensors, two programs in turns."""

import math
import statistics

import torch

WARM_UPS, REPLAYS = 3, 15
# A graph takes at least so long, so that starting it is nothing beside it.
GRAPH_SECONDS = 2e-3
FEWEST_CALLS = 8
# More than the L2 cache of any GPU: a fill of it in between leaves nothing of the tensors there.
FLUSH_BYTES = 256 << 20
# Smaller sets are also timed with a cold cache.
COLD_BELOW = 60 << 20


class Program:
    """Calls over rotating sets: one graph, or one after the other where a call cannot be captured."""

    def __init__(self, calls, stream, count, between=None):
        self.calls, self.stream, self.count, self.between = calls, stream, count, between
        self.graph, self.why_eager = None, None
        # Whatever a library does at the first call of its kind must not happen while a graph is captured.
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                self._play()
            self.graph = graph
        except Exception as why:  # Whatever a library raises: it is then timed without a graph, and that is said.
            self.why_eager = first_line(why)
            torch.cuda.synchronize()

    def _play(self):
        for index in range(self.count):
            if self.between is not None:
                self.between()
            self.calls[index % len(self.calls)]()

    def microseconds(self):
        """Of one call, in one go."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(self.stream)
        if self.graph is not None:
            self.graph.replay()
        else:
            self._play()
        end.record(self.stream)
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / self.count


def first_line(why):
    """An error in one line."""
    text = str(why).strip().splitlines()
    return f"{type(why).__name__}: {text[0]}"[:200] if text else type(why).__name__


def calls_of(calls, stream):
    """How many calls make a graph long enough, every set at least twice."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    calls[0]()
    torch.cuda.synchronize()
    start.record(stream)
    for index in range(FEWEST_CALLS):
        calls[index % len(calls)]()
    end.record(stream)
    end.synchronize()
    each = start.elapsed_time(end) * 1e-3 / FEWEST_CALLS
    # Without a graph a short call takes what its host takes, so this is a bound from below.
    wanted = math.ceil(GRAPH_SECONDS / max(each, 1e-6))
    return min(max(FEWEST_CALLS, wanted, 2 * len(calls)), 2048)


def spread(times):
    """Median, and what lies between the tenth and the ninetieth of a hundred."""
    ordered = sorted(times)
    low, high = (ordered[round(part * (len(ordered) - 1))] for part in (0.1, 0.9))
    return {"us": statistics.median(times), "spread_us": high - low}


def alone(calls, stream):
    """Times of one program."""
    program = Program(calls, stream, calls_of(calls, stream))
    for _ in range(WARM_UPS):
        program.microseconds()
    result = spread([program.microseconds() for _ in range(REPLAYS)])
    return {**result, "eager": program.why_eager}


def in_turns(ours, peer, stream, between=None, nothing=None):
    """Times of two programs that take turns: A, B, A, B, and the median of the ratios of neighbours.

    `between` runs before every call; `nothing` is the time of that alone.
    """
    programs = [Program(calls, stream, calls_of(calls, stream), between) for calls in (ours, peer)]
    for _ in range(WARM_UPS):
        for program in programs:
            program.microseconds()
    pairs = [[program.microseconds() for program in programs] for _ in range(REPLAYS)]
    if nothing is not None:
        pairs = [[max(us - nothing, 1e-3) for us in pair] for pair in pairs]
    first, second = ([pair[which] for pair in pairs] for which in (0, 1))
    return {
        "ours": {**spread(first), "eager": programs[0].why_eager},
        "peer": {**spread(second), "eager": programs[1].why_eager},
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def cold_in_turns(ours, peer, stream):
    """The same with a cold cache: a fill before every call, whose own time is taken off."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    nothing = alone([flush.zero_], stream)["us"]
    return in_turns(ours, peer, stream, flush.zero_, nothing)
