//! What the decoder does not know it refuses, with the line: nothing is skipped and nothing is guessed.

use crate::harness::{Machine, kernel};

#[test]
fn unknown_instructions_modifiers_and_operands() {
    let declared = ".reg .b32 %a, %b; .reg .f32 %f; .reg .b64 %w; .reg .pred %p; .reg .b16 %h;";
    for code in [
        "frobnicate.u32 %a, %b;",
        "add.u32.fast %a, %b, 1;",
        "add.u33 %a, %b, 1;",
        "add.rn.u32 %a, %b, 1;",
        "add.u32 %a, %b;",
        "add.u32 %a, %b, 1, 2;",
        "add.u32 1, %a, %b;",
        "add.u32 %a, %b, %w;",
        "add.u64 %w, %w, %a;",
        "add.u32 %a, %b, %p;",
        "add.f32 %f, %f, 1;",
        "add.u32 %a, %b, 0f3F800000;",
        "add.u32 %a, %b, 4294967296;",
        "add.ftz.rn.f32 %f, %f, %f;",
        "fma.f32 %f, %f, %f, %f;",
        "mul.u32 %a, %a, %b;",
        "mul.wide.u32 %a, %a, %b;",
        "setp.lt.u32 %a, %a, %b;",
        "setp.ltu.u32 %p, %a, %b;",
        "selp.b32 %a, %a, %b, %b;",
        "ld.global.v3.b32 {%a, %b, %a}, [%w];",
        "ld.global.v4.b64 {%w, %w, %w, %w}, [%w];",
        "ld.global.v2.b32 %a, [%w];",
        "ld.global.b32 %a, %w;",
        "ld.local.b32 %a, [%w];",
        "ld.global.f16 %h, [%w];",
        "st.global.b32 %a, [%w];",
        "st.acquire.gpu.global.b32 [%w], %a;",
        "ld.acquire.global.b32 %a, [%w];",
        "st.param.b32 [%w], %a;",
        "atom.global.add.b32 %a, [%w], 1;",
        "atom.global.sub.u32 %a, [%w], 1;",
        "shfl.up.b32 %a, %a, 1, 0;",
        "shfl.sync.left.b32 %a, %a, 1, 0, -1;",
        "bar.wait 0;",
        "cp.async.cg.shared.global [%a], [%w], 8;",
        "cp.async.ca.shared.global [%a], [%w], 12;",
        "cvt.u32.f32 %a, %f;",
        "cvt.rn.s32.f32 %a, %f;",
        "cvt.f32.u32 %f, %a;",
        "cvt.rn.f32.f16 %f, %h;",
        "mma.sync.aligned.m16n8k16.col.row.f32.f16.f16.f32 {%f,%f,%f,%f}, {%a,%a,%a,%a}, {%a,%a}, {%f,%f,%f,%f};",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f,%f,%f,%f}, {%a,%a}, {%a,%a}, {%f,%f,%f,%f};",
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%a,%a,%a}, [%a];",
        "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%a,%a}, [%a];",
        "mov.b32 %a, {%a, %b};",
        "mov.b32 %a, %w;",
        "cvta.global %w, %w;",
        "fence.acq_rel.galaxy;",
        "ret 1;",
        "wgmma.fence.sync.aligned;",
        "trap 1;",
    ] {
        match Machine::try_new(&kernel("", &format!("{declared}\n\n{code}"))) {
            Ok(_) => panic!("accepted: {code}"),
            Err(message) => assert!(message.contains("line 8"), "{code}: {message}"),
        }
    }
}
