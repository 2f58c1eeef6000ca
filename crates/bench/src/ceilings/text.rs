//! Kernels that do one thing only.

/// Products of a warp that do not wait for each other.
const CHAINS: usize = 8;
/// Multiplications and additions of a warp in a round of products.
pub const ROUND_FLOPS: u64 = (CHAINS * 2 * 16 * 8 * 16) as u64;
/// Bytes that a thread of the reading kernel asks for at once.
pub const PIECE: usize = 64;

const HEADER: &str = ".version 7.0\n.target sm_80\n.address_size 64\n";

/// Warps stride over pieces of 64 bytes a lane: four loads of 16 bytes are on their way at once, each load's lanes next to each
/// other. The number of pieces is a multiple of 32.
pub fn read() -> String {
    let mut text = format!(
        "{HEADER}.visible .entry read(.param .u64 p_from, .param .u64 p_sums, .param .u32 pieces)
{{
    .reg .b64 %from, %sums, %at, %lane_bytes;
    .reg .b32 %thread, %lane, %first, %block, %threads, %blocks, %pieces, %index;
    .reg .b32 %sum, %word<16>;
    .reg .pred %done;
    ld.param.u64 %from, [p_from];
    ld.param.u64 %sums, [p_sums];
    ld.param.u32 %pieces, [pieces];
    cvta.to.global.u64 %from, %from;
    cvta.to.global.u64 %sums, %sums;
    mov.u32 %thread, %tid.x;
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %blocks, %nctaid.x;
    mad.lo.u32 %thread, %block, %threads, %thread;
    mul.lo.u32 %threads, %blocks, %threads;
    and.b32 %lane, %thread, 31;
    mul.wide.u32 %lane_bytes, %lane, 16;
    mov.u32 %sum, 0;
    mov.u32 %index, %thread;
READ_PIECE:
    setp.ge.u32 %done, %index, %pieces;
    @%done bra WRITE_SUM;
    sub.u32 %first, %index, %lane;
    mul.wide.u32 %at, %first, {PIECE};
    add.u64 %at, %from, %at;
    add.u64 %at, %at, %lane_bytes;
"
    );
    for load in 0..PIECE / 16 {
        let words = list("word", 4 * load..4 * load + 4);
        text.push_str(&format!("    ld.global.v4.u32 {{{words}}}, [%at+{}];\n", 512 * load));
    }
    for word in 0..PIECE / 4 {
        text.push_str(&format!("    xor.b32 %sum, %sum, %word{word};\n"));
    }
    text.push_str(
        "    add.u32 %index, %index, %threads;
    bra READ_PIECE;
WRITE_SUM:
    mul.wide.u32 %at, %thread, 4;
    add.u64 %at, %sums, %at;
    st.global.u32 [%at], %sum;
    ret;
}
",
    );
    text
}

/// Factors are of any sign and fraction between a half and one: zeros would cost less power than data does.
pub fn products() -> String {
    let mut text = format!(
        "{HEADER}.visible .entry products(.param .u64 p_out, .param .u32 rounds)
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
        text.push_str("    mad.lo.u32 %hash, %hash, 1664525, 1013904223;\n");
        text.push_str(&format!("    and.b32 %{factor}, %hash, 0x807f807f;\n"));
        text.push_str(&format!("    or.b32 %{factor}, %{factor}, 0x3f003f00;\n"));
    }
    for i in 0..4 * CHAINS {
        text.push_str(&format!("    mov.f32 %c{i}, 0f00000000;\n"));
    }
    text.push_str("    ld.param.u32 %i, [rounds];\nMULTIPLY:\n");
    for i in 0..CHAINS {
        let (sums, a, b) = (list("c", 4 * i..4 * i + 4), list("a", 0..4), list("b", 2 * i..2 * i + 2));
        let mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
        text.push_str(&format!("    {mma} {{{sums}}}, {{{a}}}, {{{b}}}, {{{sums}}};\n"));
    }
    text.push_str("    sub.u32 %i, %i, 1;\n    setp.ne.u32 %again, %i, 0;\n    @%again bra MULTIPLY;\n");
    for i in 1..4 * CHAINS {
        text.push_str(&format!("    add.f32 %c0, %c0, %c{i};\n"));
    }
    text.push_str("    st.global.f32 [%out], %c0;\n    ret;\n}\n");
    text
}

/// One thread waits for a tenth of a millisecond, or for so many rounds where the clock of nanoseconds stands still, and writes
/// how many cycles and nanoseconds that took. The loop ends by what it reads, so no compiler leaves it out.
pub fn clock() -> String {
    format!(
        "{HEADER}.visible .entry clock(.param .u64 p_passed, .param .u32 rounds)
{{
    .reg .b64 %passed, %first_cycle, %first_nanosecond, %cycles, %nanoseconds;
    .reg .b32 %i;
    .reg .pred %again;
    ld.param.u64 %passed, [p_passed];
    cvta.to.global.u64 %passed, %passed;
    ld.param.u32 %i, [rounds];
    mov.u64 %first_cycle, %clock64;
    mov.u64 %first_nanosecond, %globaltimer;
WAIT:
    mov.u64 %cycles, %clock64;
    mov.u64 %nanoseconds, %globaltimer;
    sub.u64 %cycles, %cycles, %first_cycle;
    sub.u64 %nanoseconds, %nanoseconds, %first_nanosecond;
    sub.u32 %i, %i, 1;
    setp.lt.u64 %again, %nanoseconds, 100000;
    setp.ne.and.u32 %again, %i, 0, %again;
    @%again bra WAIT;
    st.global.u64 [%passed], %cycles;
    st.global.u64 [%passed+8], %nanoseconds;
    ret;
}}
"
    )
}

/// Registers of one name.
fn list(name: &str, numbers: std::ops::Range<usize>) -> String {
    numbers.map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ")
}
