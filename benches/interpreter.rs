//! Speed of the interpreter in warp instructions per second, one thread, unchecked and with the sanitizer.
//!
//! `cargo bench -p lookback-suite --bench interpreter [-- NAME]` runs the loops whose name contains NAME. The best of
//! several runs counts, because whatever else the machine does only ever slows one down. Goals are printed beside the
//! results; nothing fails, since the machine that measures is not always ours alone.

use lookback_emulator::decode::{Program, decode};
use lookback_emulator::launch::{Checks, LaunchConfig, MmaArithmetic, Options, launch};
use lookback_emulator::memory::DeviceMemory;
use lookback_emulator::ptx;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Slowest checked run that is still good, as a multiple of the unchecked one.
const CHECKED_GOAL: f64 = 2.5;

/// A loop to measure.
struct Loop {
    name: &'static str,
    /// Warp instructions per second, in millions, that an unchecked run should reach.
    goal: Option<f64>,
    /// Registers and what runs once before the loop.
    before: String,
    /// The body; `%i` counts it down.
    body: String,
    warps: u32,
}

fn main() {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    println!("{:<26} {:>12} {:>12} {:>12} {:>9} {:>8}", "", "unchecked", "", "checked", "checked/", "goal");
    println!(
        "{:<26} {:>12} {:>12} {:>12} {:>9} {:>8}",
        "loop", "M instr/s", "ns/instr", "M instr/s", "unchecked", "M/s"
    );
    for case in loops().iter().filter(|case| case.name.contains(&wanted)) {
        match measure(case) {
            Ok([fast, checked]) => report(case, fast, checked),
            Err(error) => println!("{:<26} {error}", case.name),
        }
    }
}

fn report(case: &Loop, fast: f64, checked: f64) {
    let ratio = fast / checked;
    let goal = case.goal.map_or(String::new(), |goal| format!("{goal:.0}{}", if fast < goal { " missed" } else { "" }));
    let slow = if ratio > CHECKED_GOAL { "!" } else { " " };
    println!("{:<26} {fast:>12.1} {:>12.2} {checked:>12.1} {ratio:>8.2}{slow} {goal:>8}", case.name, 1e3 / fast);
}

/// Millions of warp instructions per second, unchecked and checked.
fn measure(case: &Loop) -> Result<[f64; 2], String> {
    let module = ptx::parse(&text(case)).map_err(|error| error.to_string())?;
    let program = decode(&module, &module.entries[0], &[]).map_err(|error| error.to_string())?;
    let memory = DeviceMemory::new(64 << 20);
    let bytes = 4 << 20;
    let buffer = memory.alloc(bytes).map_err(|error| format!("{error:?}"))?;
    memory.fill(buffer, [0x3f, 0x3c], bytes / 2).map_err(|error| format!("{error:?}"))?;
    let mut results = [0.0; 2];
    for (result, checks) in results.iter_mut().zip([Checks::Off, Checks::On]) {
        let mut options = Options::default();
        options.checks = checks;
        options.mma = if case.name.contains("hopper") { MmaArithmetic::Hopper } else { MmaArithmetic::Fma };
        *result = best(case, &program, &memory, buffer, &options)?;
    }
    Ok(results)
}

/// The best of several runs, each long enough for the clock.
fn best(case: &Loop, program: &Program, memory: &DeviceMemory, buffer: u64, options: &Options) -> Result<f64, String> {
    let config =
        LaunchConfig { grid: [1, 1, 1], block: [32 * case.warps, 1, 1], dynamic_shared: 0, cooperative: false };
    let mut iterations = 64u32;
    let mut best = 0f64;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(600) {
        let mut params = buffer.to_le_bytes().to_vec();
        params.extend(iterations.to_le_bytes());
        let start = now();
        let counters = launch(program, memory, &config, &params, options).map_err(|fault| fault.to_string())?;
        let elapsed = now() - start;
        if elapsed < Duration::from_millis(20) {
            iterations *= 2;
            continue;
        }
        best = best.max(counters.warp_instructions() as f64 / elapsed.as_secs_f64() / 1e6);
    }
    Ok(best)
}

/// Time that this thread has run, where the system tells; else the time of day, which counts waiting for a core too.
fn now() -> Duration {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    match statistics.split(' ').next().map(str::parse) {
        Some(Ok(nanoseconds)) => Duration::from_nanos(nanoseconds),
        _ => BEGIN.get_or_init(Instant::now).elapsed(),
    }
}

/// A kernel around the loop. `%base` points to global memory of the warp's own, `%shared` to 4 KiB of shared memory of
/// its own, which are written before the loop.
fn text(case: &Loop) -> String {
    let Loop { before, body, .. } = case;
    format!(
        ".version 8.0
.target sm_90
.address_size 64
.visible .entry measured(.param .u64 p_buffer, .param .u32 p_iterations)
{{
    .shared .align 1024 .b8 tile[32768];
    .reg .b64 %base, %lane_bytes;
    .reg .b32 %thread, %lane, %warp, %i, %shared, %zero, %own;
    .reg .pred %again;
    ld.param.u64 %base, [p_buffer];
    ld.param.u32 %i, [p_iterations];
    cvta.to.global.u64 %base, %base;
    mov.u32 %thread, %tid.x;
    and.b32 %lane, %thread, 31;
    shr.u32 %warp, %thread, 5;
    mul.wide.u32 %lane_bytes, %thread, 16;
    add.u64 %base, %base, %lane_bytes;
    mov.u32 %shared, tile;
    mad.lo.u32 %shared, %warp, 4096, %shared;
    mov.u32 %zero, 0x3c003c00;
    mad.lo.u32 %own, %lane, 16, %shared;
    st.shared.v4.b32 [%own], {{%zero, %zero, %zero, %zero}};
    st.shared.v4.b32 [%own+512], {{%zero, %zero, %zero, %zero}};
    st.shared.v4.b32 [%own+1024], {{%zero, %zero, %zero, %zero}};
    st.shared.v4.b32 [%own+1536], {{%zero, %zero, %zero, %zero}};
    st.shared.v4.b32 [%own+2048], {{%zero, %zero, %zero, %zero}};
    st.shared.v4.b32 [%own+2560], {{%zero, %zero, %zero, %zero}};
    st.shared.v4.b32 [%own+3072], {{%zero, %zero, %zero, %zero}};
    st.shared.v4.b32 [%own+3584], {{%zero, %zero, %zero, %zero}};
    bar.sync 0;
{before}
LOOP:
{body}
    sub.u32 %i, %i, 1;
    setp.ne.u32 %again, %i, 0;
    @%again bra LOOP;
    ret;
}}
"
    )
}

fn lines(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(|index| format!("    {}\n", line(index))).collect()
}

/// Declares `count` registers of a type as `%name0` and so on, each set to `value`.
fn registers(kind: &str, name: &str, count: usize, value: &str) -> String {
    format!("    .reg .{kind} %{name}<{count}>;\n") + &lines(count, |i| format!("mov.{kind} %{name}{i}, {value};"))
}

fn loops() -> Vec<Loop> {
    let new = |name, goal, before: String, body: String| Loop { name, goal, before, body, warps: 4 };
    let words = registers("b32", "r", 8, "%thread");
    let floats = registers("f32", "f", 8, "0f3F000000");
    let fragments = registers("b32", "a", 8, "0x3c003c00") + &registers("f32", "c", 16, "0f00000000");
    let mma = |kind: &str, i: usize| {
        let [c0, c1, c2, c3] = [0, 1, 2, 3].map(|j| format!("%c{}", 4 * (i % 4) + j));
        format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{{c0}, {c1}, {c2}, {c3}}}, {{%a0, %a1, %a2, %a3}}, \
             {{%a{}, %a{}}}, {{{c0}, {c1}, {c2}, {c3}}};",
            4 + 2 * (i % 2),
            5 + 2 * (i % 2)
        )
    };
    let ldmatrix = |first: usize, offset: usize| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| format!("%a{}", first + i));
        format!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{a}, {b}, {c}, {d}}}, [%own+{offset}];")
    };
    let integer = lines(16, |i| {
        let (d, a, b) = (i % 8, (i + 1) % 8, (i + 3) % 8);
        match i % 4 {
            0 => format!("add.u32 %r{d}, %r{a}, %r{b};"),
            1 => format!("xor.b32 %r{d}, %r{a}, %r{b};"),
            2 => format!("shl.b32 %r{d}, %r{a}, 3;"),
            _ => format!("mad.lo.u32 %r{d}, %r{a}, %r{b}, %r{d};"),
        }
    });
    let fma = lines(16, |i| format!("fma.rn.f32 %f{}, %f{}, %f{}, %f{};", i % 8, (i + 1) % 8, (i + 3) % 8, i % 8));
    let float = lines(16, |i| {
        let (d, a, b) = (i % 8, (i + 1) % 8, (i + 3) % 8);
        match i % 4 {
            0 => format!("fma.rn.f32 %f{d}, %f{a}, %f{b}, %f{d};"),
            1 => format!("mul.f32 %f{d}, %f{a}, %f{b};"),
            2 => format!("add.f32 %f{d}, %f{a}, %f{b};"),
            _ => format!("max.f32 %f{d}, %f{a}, %f{b};"),
        }
    });
    let wide = registers("b64", "x", 4, "%base");
    let address = lines(12, |i| match i % 3 {
        0 => format!("add.u64 %x{}, %x{}, 64;", i % 4, (i + 1) % 4),
        1 => format!("mad.wide.u32 %x{}, %thread, 16, %x{};", i % 4, (i + 2) % 4),
        _ => format!("shl.b64 %x{}, %x{}, 1;", i % 4, (i + 3) % 4),
    });
    let choice = lines(6, |i| {
        format!("setp.lt.f32 %p, %f{}, %f{};\n    selp.f32 %f{}, %f{0}, %f{1}, %p;", i, (i + 1) % 8, (i + 2) % 8)
    });
    let convert = lines(4, |i| {
        format!(
            "cvt.rn.bf16x2.f32 %r{i}, %f{i}, %f{};\n    shl.b32 %r{}, %r{i}, 16;\n    cvt.rn.f32.s32 %f{i}, %r{i};\n    \
             cvt.rni.s32.f32 %r{i}, %f{i};",
            i + 1,
            i + 4
        )
    });
    let quads = registers("f32", "f", 16, "0f3F000000");
    let quad = |i: usize| format!("{{%f{}, %f{}, %f{}, %f{}}}", 4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3);
    let global = lines(4, |i| format!("ld.global.v4.f32 {}, [%base+{}];", quad(i), 2048 * i))
        + &lines(8, |i| format!("fma.rn.f32 %f{i}, %f{i}, %f{}, %f{i};", i + 8))
        + &lines(2, |i| format!("st.global.v4.f32 [%base+{}], {};", 8192 + 2048 * i, quad(i)));
    let strided = "    .reg .b64 %far;\n    mad.wide.u32 %far, %thread, 240, %base;\n".to_owned() + &floats;
    let gather = lines(4, |i| format!("ld.global.f32 %f{i}, [%far+{}];", 4 * i))
        + &lines(4, |i| format!("add.f32 %f{}, %f{}, %f{i};", i + 4, i + 4));
    let shared = lines(2, |i| format!("ld.shared.v4.f32 {}, [%own+{}];", quad(i), 512 * i))
        + &lines(2, |i| format!("st.shared.v4.f32 [%own+{}], {};", 1024 + 512 * i, quad(i)));
    let shuffle =
        lines(5, |i| format!("shfl.sync.bfly.b32 %r0, %r1, {}, 31, 0xffffffff;\n    add.u32 %r1, %r1, %r0;", 1 << i));
    let function = |text: &'static str| {
        lines(4, move |i| text.replace("%d", &format!("%f{i}")).replace("%a", &format!("%f{}", i + 1)))
    };
    let two_mma = format!("    {}\n", ldmatrix(0, 0)) + &lines(2, |i| mma("bf16", i));
    let tile = lines(1, |_| "cp.async.cg.shared.global [%own+2048], [%base], 16;".to_owned())
        + "    cp.async.commit_group;\n"
        + &format!("    {}\n    {}\n", ldmatrix(0, 0), ldmatrix(4, 512))
        + &lines(8, |i| mma("bf16", i))
        + "    add.u32 %r0, %r0, 32;\n    xor.b32 %r1, %r0, 16;\n    add.u64 %x0, %x0, 64;\n"
        + "    cp.async.wait_group 0;\n    bar.sync 0;\n";
    let divergent = "    and.b32 %r0, %lane, 1;\n    setp.eq.u32 %p, %r0, 0;\n    @%p bra EVEN;\n".to_owned()
        + &lines(4, |i| format!("add.u32 %r{}, %r{}, 3;", i + 1, i + 1))
        + "    bra MEET;\nEVEN:\n"
        + &lines(4, |i| format!("xor.b32 %r{}, %r{}, 5;", i + 1, i + 1))
        + "MEET:\n";
    let guarded = "    .reg .pred %p;\n    setp.lt.u32 %p, %lane, 20;\n".to_owned() + &floats;
    let predicate = "    .reg .pred %p;\n";
    vec![
        new("integer", Some(60.0), words.clone(), integer),
        new("float", Some(60.0), floats.clone(), float),
        new("fma", Some(60.0), floats.clone(), fma.clone()),
        new("fma, 20 lanes of 32", None, guarded, fma.replace("fma.", "@%p fma.")),
        new("64-bit addresses", None, wide.clone(), address),
        new("setp and selp", None, predicate.to_owned() + &floats, choice),
        new("conversions", None, words.clone() + &floats, convert),
        new("ex2", None, floats.clone(), function("ex2.approx.ftz.f32 %d, %a;")),
        new("ex2 without ftz", None, floats.clone(), function("ex2.approx.f32 %d, %a;")),
        new("rcp", None, floats.clone(), function("rcp.approx.ftz.f32 %d, %a;")),
        new("lg2", None, floats, function("lg2.approx.f32 %d, %a;")),
        new("global v4", None, quads.clone(), global),
        new("global strided", None, strided, gather),
        new("shared v4", None, quads, shared),
        new("shfl", None, words.clone(), shuffle),
        new("divergent", None, predicate.to_owned() + &words, divergent),
        new("mma bf16", None, fragments.clone(), lines(4, |i| mma("bf16", i))),
        new("mma f16", None, fragments.clone(), lines(4, |i| mma("f16", i))),
        new("mma bf16 hopper", None, fragments.clone(), lines(4, |i| mma("bf16", i))),
        new("ldmatrix and mma", Some(10.0), fragments.clone(), two_mma),
        new("gemm tile", Some(10.0), fragments.clone() + &words + &wide, tile.clone()),
        new("gemm tile hopper", None, fragments + &words + &wide, tile),
    ]
}
