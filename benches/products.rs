//! The ceiling of what is bound by products: tensor cores that multiply registers and do nothing else.

use crate::Case;
use lookback_device::{
    DeviceInfo,
    cudarc::{
        driver::{LaunchConfig, PushKernelArg},
        nvrtc::Ptx,
    },
};
use lookback_suite::device;
use std::fmt::Write;

/// Products of a warp that do not wait for each other.
const CHAINS: usize = 8;
const BLOCK: u32 = 256;

/// `mma.sync` of bf16 with sums in f32, the instruction of all kernels here; two blocks of eight warps for each multiprocessor.
pub fn case(info: &DeviceInfo, rounds: u32) -> Case {
    let stream = device::stream();
    let module = stream.context().load_module(Ptx::from_src(text())).expect("a good text");
    let function = module.load_function("products").expect("an entry");
    let blocks = 2 * info.sm_count;
    let mut out = stream.alloc_zeros::<f32>((blocks * BLOCK) as usize).expect("allocate");
    let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 };
    let warps = u64::from(blocks * BLOCK / 32);
    let launch = move |_| {
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut out).arg(&rounds);
        // SAFETY: `out` has an element for each thread, and the kernel writes that and nothing else.
        unsafe { launch.launch(config) }.expect("launch");
    };
    Case {
        name: "products bf16".into(),
        bytes: u64::from(blocks * BLOCK) * 4,
        flops: warps * u64::from(rounds) * (CHAINS * 2 * 16 * 8 * 16) as u64,
        sets: 1,
        launch: Box::new(launch),
    }
}

/// Factors are of any sign and fraction between a half and one: zeros would cost less power than data does.
fn text() -> String {
    let list = |name: &str, n: usize| (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ");
    let mut text = format!(
        ".version 7.0
.target sm_80
.address_size 64
.visible .entry products(.param .u64 p_out, .param .u32 rounds)
{{
    .reg .b64 %out, %at;
    .reg .b32 %i, %thread, %hash, %block, %threads;
    .reg .b32 %a<4>, %b<{}>;
    .reg .f32 %c<{}>;
    .reg .pred %again;
    ld.param.u64 %out, [p_out];
    cvta.to.global.u64 %out, %out;
    mov.u32 %thread, %tid.x;
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mad.lo.u32 %thread, %block, %threads, %thread;
    mul.wide.u32 %at, %thread, 4;
    add.u64 %out, %out, %at;
    mad.lo.u32 %hash, %thread, 1664525, 1013904223;
",
        2 * CHAINS,
        4 * CHAINS
    );
    for factor in (0..4).map(|i| format!("a{i}")).chain((0..2 * CHAINS).map(|i| format!("b{i}"))) {
        writeln!(text, "    mad.lo.u32 %hash, %hash, 1664525, 1013904223;").expect("a string");
        writeln!(text, "    and.b32 %{factor}, %hash, 0x807f807f;").expect("a string");
        writeln!(text, "    or.b32 %{factor}, %{factor}, 0x3f003f00;").expect("a string");
    }
    for i in 0..4 * CHAINS {
        writeln!(text, "    mov.f32 %c{i}, 0f00000000;").expect("a string");
    }
    writeln!(text, "    ld.param.u32 %i, [rounds];\nAGAIN:").expect("a string");
    for i in 0..CHAINS {
        let sums = (0..4).map(|j| format!("%c{}", 4 * i + j)).collect::<Vec<_>>().join(", ");
        let (a, b) = (list("a", 4), format!("%b{}, %b{}", 2 * i, 2 * i + 1));
        let mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
        writeln!(text, "    {mma} {{{sums}}}, {{{a}}}, {{{b}}}, {{{sums}}};").expect("a string");
    }
    text.push_str("    sub.u32 %i, %i, 1;\n    setp.ne.u32 %again, %i, 0;\n    @%again bra AGAIN;\n");
    for i in 1..4 * CHAINS {
        writeln!(text, "    add.f32 %c0, %c0, %c{i};").expect("a string");
    }
    text.push_str("    st.global.f32 [%out], %c0;\n    ret;\n}\n");
    text
}
