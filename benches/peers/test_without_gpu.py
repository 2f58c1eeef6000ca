"""What can be said of the launch files, the driver and the report without a GPU and without PyTorch: `python3 -m unittest`."""

import json
import pathlib
import tempfile
import unittest

from . import launches, report

LAUNCH = {
    "kind": "launch",
    "entry": "scale",
    "ptx": "ptx/scale.ptx",
    "grid": [4, 1, 1],
    "block": [256, 1, 1],
    "dynamic_shared": 0,
    "cooperative": False,
    "parameters": "00" * 8 + "07000000" + "0000803f" + "00" * 8,
    "pointers": [
        {"argument": "p_x", "at": 0, "buffer": 1, "offset": 16},
        {"argument": "p_h", "at": 16, "buffer": 0, "offset": 0},
    ],
}
CASE = {
    "format": 1,
    "name": "linear_attention scalar, one group bf16 2x512x64",
    "operation": "linear_attention",
    "family": "linear",
    "dtype": "bf16",
    "shape": [["batch", 2], ["tokens", 512], ["channels", 64]],
    "bytes": 1000,
    "flops": 0,
    "device": {"name": "lookback emulator", "sm_count": 132, "compute_capability": [9, 0]},
    "buffers": [
        {"name": "h", "role": "output", "bytes": 8, "dtype": "f32", "shape": [2]},
        {"name": "x", "role": "input", "bytes": 64, "dtype": "f32", "shape": [16]},
        {"name": "workspace", "role": "scratch", "bytes": 8, "dtype": "u8", "shape": [8]},
    ],
    "setup": [
        {"kind": "fill", "to": [0, 0], "value": 0, "width": 1, "columns": 8, "rows": 1, "pitch": 0},
        {"kind": "upload", "to": [1, 0], "data": "data/x.bin"},
        {"kind": "copy", "to": [1, 32], "from": [1, 0], "bytes": 32},
    ],
    "launches": [LAUNCH],
    "expected": {"h": "data/h.bin"},
}


class Recorder:
    """A driver that notes what it is asked for."""

    def __init__(self):
        self.calls = []

    def function(self, path, entry, dynamic_shared):
        self.calls.append(("function", path.name, entry, dynamic_shared))
        return type("Function", (), {"log": "ptxas info: 32 registers\n"})()

    def launch(self, function, *arguments):
        self.calls.append(("launch", *arguments))

    def fill(self, *arguments):
        self.calls.append(("fill", *arguments))

    def copy(self, *arguments):
        self.calls.append(("copy", *arguments))

    def upload(self, *arguments):
        self.calls.append(("upload", *arguments))


def folder():
    """A folder with one case."""
    path = tempfile.TemporaryDirectory()
    root = pathlib.Path(path.name)
    (root / "data").mkdir()
    (root / "data/x.bin").write_bytes(bytes(range(32)))
    (root / "data/h.bin").write_bytes(b"abcdefgh")
    (root / "case.json").write_text(json.dumps(CASE))
    return path


class Launches(unittest.TestCase):
    def test_a_name_says_what_is_special(self):
        with folder() as root:
            (case,) = launches.read(root)
            self.assertEqual(case.special, "scalar, one group")
            self.assertEqual(case.shape, {"batch": 2, "tokens": 512, "channels": 64})
            self.assertEqual((case.set_bytes(), case.outputs()), (72, [0]))
            self.assertEqual(len(launches.read(root, "linear")), 1)
            self.assertEqual(launches.read(root, "another"), [])

    def test_addresses_go_where_they_belong_and_nowhere_else(self):
        parameters = launches.relocate(LAUNCH, [0x1000, 0x7F00_0000_0000, 0])
        self.assertEqual(parameters[0:8], (0x7F00_0000_0010).to_bytes(8, "little"))
        self.assertEqual(parameters[8:16], bytes.fromhex("070000000000803f"))
        self.assertEqual(parameters[16:24], (0x1000).to_bytes(8, "little"))
        taken = {**LAUNCH, "parameters": "01" + LAUNCH["parameters"][2:]}
        with self.assertRaisesRegex(ValueError, "no room for p_x"):
            launches.relocate(taken, [0x1000, 0x2000, 0])

    def test_what_was_listed_is_done_in_order(self):
        with folder() as root:
            (case,) = launches.read(root)
            driver = Recorder()
            binding = launches.Binding(driver, case, [0x1000, 0x2000, 0x3000])
            driver.calls.clear()
            binding.set_up(5)
            binding.launch(5)
            wanted = [
                ("fill", 0x1000, 0, 1, 8, 1, 0, 5),
                ("upload", 0x2000, bytes(range(32))),
                ("copy", 0x2020, 0x2000, 32, 5),
                ("launch", [4, 1, 1], [256, 1, 1], 0, False, launches.relocate(LAUNCH, [0x1000, 0x2000, 0]), 5),
            ]
            self.assertEqual(driver.calls, wanted)
            self.assertEqual(binding.logs, {"scale": "ptxas info: 32 registers"})

    def test_what_differs_is_found_and_what_shows_nothing_too(self):
        with folder() as root:
            (case,) = launches.read(root)
            before = {"h": bytes(8)}
            self.assertEqual(launches.differences(case, before, {"h": b"abcdefgh"}), [])
            self.assertEqual(
                launches.differences(case, before, {"h": b"abcdXfgh"}), ["h differs from byte 4 of 8 on"]
            )
            same = {"h": b"abcdefgh"}
            self.assertEqual(launches.differences(case, same, same), ["h was so before the launch"])

    def test_files_of_another_format_are_refused(self):
        with folder() as root:
            (pathlib.Path(root) / "case.json").write_text(json.dumps({**CASE, "format": 2}))
            with self.assertRaisesRegex(ValueError, "format 2"):
                launches.read(root)


class Report(unittest.TestCase):
    def test_wrong_results_have_no_ratio_and_missing_libraries_a_line(self):
        time = {"us": 10.0, "spread_us": 0.1, "eager": None}
        warm = {"ours": time, "peer": {**time, "us": 25.0, "eager": "RuntimeError: it waits"}, "ratio": 2.5}
        ceilings = {f"{name}_per_second": 1e12 for name in ("copy_bytes", "read_bytes", "bf16_flops")}
        result = {
            "device": {"name": "a GPU", "driver": 13000, "sm_count": 132, "torch": "2.11", "clocks_before": None},
            "ceilings": ceilings,
            "warnings": ["recorded for another"],
            "cases": [
                {
                    "name": "gated_scan f32 1x1x1",
                    "floor_us": 5.0,
                    "ours": {"us": 10.0},
                    "peers": [
                        {"name": "right", "error": 1e-3, "wrong": False, "warm": warm},
                        {"name": "off", "error": 1.0, "wrong": True, "warm": warm},
                        {"name": "absent", "why": "not installed: No module named 'fla'"},
                    ],
                },
                {
                    "name": "ours is off",
                    "floor_us": 5.0,
                    "ours": {"us": 10.0, "wrong": True},
                    "peers": [{"name": "right", "error": 1e-3, "wrong": False, "warm": warm, "cold": warm}],
                },
                {"name": "alone", "floor_us": 5.0, "ours": {"us": 2000.0}, "peers": []},
            ],
        }
        text = report.markdown(result)
        self.assertIn("| right | 25.0 | 2.50 | - | 1.0e-03 | peer without a graph: RuntimeError: it waits |", text)
        self.assertIn("| off | 25.0 | - | - | 1.0e+00 | WRONG; peer without a graph: RuntimeError: it waits |", text)
        self.assertIn("| ours is off (WRONG) | 10.0 | 50 | right | 25.0 | - | - | 1.0e-03 |", text)
        self.assertIn("| absent | - | - | - | - | not installed: No module named 'fla' |", text)
        self.assertIn("| alone | 2000 | 0 | - | - | - | - | - |  |", text)
        self.assertIn("* recorded for another", text)


if __name__ == "__main__":
    unittest.main()
