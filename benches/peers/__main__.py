"""Our kernels beside other libraries' in one process on one GPU.

    python3 -m peers --lookback PROGRAM --out OUT         # on the GPU's host

lists first what our side launches on a device with as many multiprocessors, as `lookback bench launches DIR` does, which any x86-64
Linux host can do: then `--launches DIR` alone says where it is. With `--replay LIBRARY`, instead, small cases are launched once through
that driver library, and have to write what their files say, byte by byte; that needs neither a GPU nor PyTorch.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time

from . import launches
from .driver import MULTIPROCESSORS, Driver, DriverError


def arguments():
    parser = argparse.ArgumentParser(prog="peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", default="launches", help="folder that `lookback bench launches` writes or wrote")
    parser.add_argument("--lookback", metavar="PROGRAM", help="the program that writes it now, for this device")
    parser.add_argument("--out", default="peers-results", help="folder for peers.json and peers.md")
    parser.add_argument("--filter", default="", help="only cases whose name contains this, or of this family")
    parser.add_argument("--peer", default="", help="only peers whose name contains this")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begins no case after so long")
    parser.add_argument("--driver", default="libcuda.so.1", help="the driver library")
    parser.add_argument("--replay", metavar="LIBRARY", help="check what the cases write, through this driver library")
    return parser.parse_args()


def record(options, sm_count):
    """Has our program list its launches for a device like this."""
    environment = {**os.environ, "LOOKBACK_EMULATOR_SM_COUNT": str(sm_count)}
    command = [options.lookback, "bench", "launches", options.launches, options.filter]
    subprocess.run(command, env=environment, check=True, timeout=300)


def cases_of(options):
    """The cases that are wanted; without any, the program ends."""
    cases = launches.read(options.launches, options.filter)
    if not cases:
        sys.exit(f"{options.launches}: no launch files of that name")
    return cases


def replay(options):
    """Whether every case writes what its file says; with PyTorch, also how far that is from the reference."""
    cases, driver = cases_of(options), Driver(options.replay)
    print(f"device: {driver.name()}")
    references, known = {}, None
    if importlib.util.find_spec("torch") is None:
        print("without PyTorch: outputs are compared with the files, not with references")
    else:
        from . import families, known_outputs as known

        references = families.load()[1]
    failed = 0
    for case in cases:
        try:
            before, after = launches.replay(driver, case)
        except DriverError as why:
            print(f"FAILED  {case.name}: {why}; nothing runs after that in this process")
            return 1
        wrong = launches.differences(case, before, after)
        reference = references.get(case.operation)
        if reference:
            wrong += known.against(case, reference, before, after)
        failed += bool(wrong)
        print(f"{'FAILED' if wrong else 'ok':7} {case.name}{': ' if wrong else ''}{'; '.join(wrong)}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


def measure(options):
    """Times every case."""
    import torch

    from . import ceilings, families, report, side_by_side

    torch.cuda.init()
    driver = Driver(options.driver)
    peers, references = families.load()
    here = driver.attribute(MULTIPROCESSORS)
    if options.lookback:
        record(options, here)
    cases = cases_of(options)
    others = sorted({case.sm_count for case in cases} - {here})
    warnings = [f"recorded for {sm_count} SMs, this device has {here}: our plans are not the ones for it" for sm_count in others]
    stream = torch.cuda.Stream()
    began = time.monotonic()
    with torch.cuda.stream(stream):
        result = {
            "device": {
                "name": driver.name(),
                "driver": driver.version(),
                "sm_count": here,
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
    return replay(options) if options.replay else measure(options)


if __name__ == "__main__":
    sys.exit(main())
