"""What was measured, as JSON and as a table."""

import json
import pathlib


def us(value):
    """Microseconds with three digits or so."""
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def remarks(peer):
    """What must be known of a row: an error that is too large, calls without a graph."""
    said = []
    if peer.get("why"):
        said.append(peer["why"])
    if peer.get("wrong"):
        said.append("WRONG")
    for which in ("ours", "peer"):
        why = peer.get("warm", {}).get(which, {}).get("eager")
        if why:
            said.append(f"{which} without a graph: {why}")
    return "; ".join(said).replace("|", "/")


def row(case, peer):
    """Cells of a case beside one peer."""
    warm, cold = peer.get("warm"), peer.get("cold")
    off = peer.get("error")
    ours = case["ours"]
    both_right = not (peer.get("wrong") or ours.get("wrong"))
    share = f"{100 * case['floor_us'] / ours['us']:.0f}" if ours.get("us") else "-"
    return [
        case["name"] + (" (WRONG)" if ours.get("wrong") else ""),
        us(ours["us"]) if ours.get("us") else "-",
        share,
        peer["name"],
        us(warm["peer"]["us"]) if warm else "-",
        f"{warm['ratio']:.2f}" if warm and both_right else "-",
        f"{cold['ratio']:.2f}" if cold and both_right else "-",
        f"{off:.1e}" if off is not None else "-",
        remarks(peer),
    ]


HEAD = ["case", "ours us", "% of floor", "peer", "peer us", "ratio", "ratio, cold", "peer's error", ""]


def markdown(result):
    """The table, under a few lines about the run."""
    ceilings, device = result["ceilings"], result["device"]
    lines = [
        f"# {device['name']}",
        "",
        f"driver {device['driver']}, {device['sm_count']} SMs, PyTorch {device['torch']}, clocks before: {device['clocks_before']},"
        f" after: {device.get('clocks_after')}",
        "",
        f"Ceilings of this run: copy {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s,"
        f" read {ceilings['read_bytes_per_second'] / 1e12:.2f} TB/s,"
        f" bf16 product {ceilings['bf16_flops_per_second'] / 1e12:.0f} TFLOP/s. The floor of a case is its bytes at the first or its"
        " flops at the last, whichever takes longer. A ratio is the peer's time over ours: above 1 we are faster.",
        "",
        *(f"* {warning}" for warning in result["warnings"]),
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    nobody = {"name": "-"}
    for case in result["cases"]:
        for peer in case["peers"] or [nobody]:
            lines.append("| " + " | ".join(row(case, peer)) + " |")
        if case.get("why"):
            lines.append(f"| {case['name']} | - | - | {case['why'].replace('|', '/')} | | | | | |")
    return "\n".join(lines) + "\n"


def write(folder, result):
    """Both files; after every case, so that a run that is cut short leaves what it has."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "peers.md").write_text(markdown(result))
