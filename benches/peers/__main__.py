"""Our kernels beside other libraries' in one process on one GPU.

    lookback bench launches DIR          # on any x86-64 Linux host: what our side launches
    python3 -m peers DIR --out OUT       # on the GPU's host

With `--replay LIBRARY`, instead: launches small cases once through that driver library, and says whether they write what the file
says, byte by byte; needs neither a GPU nor PyTorch.
"""

import argparse
import importlib.util
import sys
import time

from . import launches
from .driver import MULTIPROCESSORS, Driver


def arguments():
    parser = argparse.ArgumentParser(prog="peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("launches", help="folder that `lookback bench launches` wrote")
    parser.add_argument("--out", default="peers-results", help="folder for peers.json and peers.md")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--peer", default="", help="only peers whose name contains this")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begins no case after so long")
    parser.add_argument("--driver", default="libcuda.so.1", help="the driver library")
    parser.add_argument("--replay", metavar="LIBRARY", help="check what the cases write, through this driver library")
    return parser.parse_args()


def replay(options, cases):
    """Whether every case writes what its file says; with PyTorch, also how far that is from the reference."""
    driver = Driver(options.replay)
    print(f"device: {driver.name()}")
    references, known = {}, None
    if importlib.util.find_spec("torch") is None:
        print("without PyTorch: outputs are compared with the files, not with references")
    else:
        from . import families, known_outputs as known

        references = families.load()[1]
    failed = 0
    for case in cases:
        before, after = launches.replay(driver, case)
        wrong = launches.differences(case, before, after)
        reference = references.get(case.operation)
        if reference:
            wrong += known.against(case, reference, before, after)
        failed += bool(wrong)
        print(f"{'FAILED' if wrong else 'ok':7} {case.name}{': ' if wrong else ''}{'; '.join(wrong)}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


def measure(options, cases):
    """Times every case."""
    import torch

    from . import ceilings, families, report, side_by_side

    torch.cuda.init()
    driver = Driver(options.driver)
    peers, references = families.load()
    warnings = []
    for sm_count in sorted({case.sm_count for case in cases} - {driver.attribute(MULTIPROCESSORS)}):
        warnings.append(
            f"recorded for {sm_count} SMs, this device has {driver.attribute(MULTIPROCESSORS)}: our plans are not the ones for it;"
            " record with LOOKBACK_EMULATOR_SM_COUNT set"
        )
    stream = torch.cuda.Stream()
    began = time.monotonic()
    with torch.cuda.stream(stream):
        result = {
            "device": {
                "name": driver.name(),
                "driver": driver.version(),
                "sm_count": driver.attribute(MULTIPROCESSORS),
                "torch": torch.__version__,
                "clocks_before": ceilings.clocks(),
            },
            "ceilings": ceilings.measure(stream),
            "warnings": warnings,
            "cases": [],
        }
        for case in cases:
            if time.monotonic() - began > options.seconds:
                warnings.append(f"no time left for {case.name} and what follows")
                break
            wanted = [(name, make) for name, make in peers.get(case.operation, []) if options.peer in name]
            try:
                one = side_by_side.run(
                    driver, case, wanted, references.get(case.operation), result["ceilings"], stream
                )
            except Exception as why:  # Our own case: told, and the others go on.
                one = {"name": case.name, "ours": {}, "peers": [], "floor_us": 0, "why": side_by_side.first_line(why)}
            result["cases"].append(one)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            print(f"{time.monotonic() - began:7.1f} s  {case.name}", flush=True)
            report.write(options.out, result)
        result["device"]["clocks_after"] = ceilings.clocks()
    report.write(options.out, result)
    print(report.markdown(result))
    failed = [case["name"] for case in result["cases"] if case.get("why") or case["ours"].get("wrong")]
    return 1 if failed else 0


def main():
    options = arguments()
    cases = launches.read(options.launches, options.filter)
    if not cases:
        print(f"{options.launches}: no launch files of that name", file=sys.stderr)
        return 2
    return replay(options, cases) if options.replay else measure(options, cases)


if __name__ == "__main__":
    sys.exit(main())
