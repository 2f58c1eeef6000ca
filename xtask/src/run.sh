#!/bin/sh
# Runs what this folder holds on the device of this host, or on the emulator where there is none.
# usage: run.sh [OUT [PART...]]   results go to OUT (default: ./results)
# parts: check conformance tests sanitizer bench peers (default: all, in this order)
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/results}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- check conformance tests sanitizer bench peers
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
cd "$here" || exit 1
failed=0

say() { echo "$*" | tee -a "$out/steps.txt"; }

# Every step has its own limit, so that one that hangs does not take the others' results with it.
step() { # name, seconds, command...
    name=$1; limit=$2; shift 2
    began=$(date +%s)
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then state="ok     "; else state="FAILED "; failed=1; fi
    say "$state $name, $(($(date +%s) - began)) s"
}

find_sanitizer() {
    command -v compute-sanitizer || { [ -x /usr/local/cuda/bin/compute-sanitizer ] && echo /usr/local/cuda/bin/compute-sanitizer; }
}

check() {
    step info 60 ./lookback info
    step check 300 ./lookback check --json
    step ask 120 ./lookback ask assets/phonebook.txt
}

# What the instructions give here, and whether the emulator gives the same.
conformance() {
    raw=$(mktemp -d)
    step conformance-record 600 ./lookback-conformance record --out "$out/conformance.json" --raw "$raw"
    step conformance-replay 600 ./lookback-conformance replay "$out/conformance.json" --raw "$raw"
    rm -rf "$raw"
}

tests() {
    for test in tests/*; do step "$(basename "$test")" 600 "$test" --test-threads=1; done
}

# Memory, races and barriers of small shapes, as NVIDIA's tool sees them; it knows nothing of the emulator.
sanitizer() {
    tool=$(find_sanitizer) || { say "skipped sanitizer: there is no compute-sanitizer"; return; }
    for kind in memcheck initcheck racecheck synccheck; do
        for operation in gated_scan linear_attention attention lean_decode merge_states rms_norm gemm time_reduce; do
            step "$kind-$operation" 120 "$tool" --tool "$kind" --error-exitcode 9 ./lookback check --filter "$operation"
        done
    done
}

bench() {
    step bench 600 ./lookback bench --json "$out/bench.json" --plot "$out"
    step bench-ring 120 ./lookback bench ring
}

# Beside other libraries' kernels; those that are not installed are lines of the table.
peers() {
    python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || { say "skipped peers: no torch with a GPU"; return; }
    for family in scan linear decode attention nn; do
        step "peers-$family" 600 env PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" python3 -m peers \
            --lookback ./lookback --launches "$out/launches" --out "$out/peers-$family" --filter "$family" --seconds 540
    done
}

for part in "$@"; do
    case $part in
        check | conformance | tests | sanitizer | bench | peers) "$part" ;;
        *) echo "there is no part $part" >&2; exit 2 ;;
    esac
done
exit $failed
