//! Barriers, fences, branches: what they order shows in what threads read of each other.

use crate::{
    form::{Form, Level},
    inputs::{Data, Kind, Register, mix},
    oracle::{Expected, Oracle},
};
use std::sync::Arc;

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    barriers(forms);
    counted(forms);
    fences(forms);
    branches(forms);
    hints(forms);
}

const DECLARE: &str = ".reg .b32 %own, %other, %far; .reg .b64 %neighbour; .reg .pred %p, %q;";

/// The word of the lane on the other side of the warp.
fn mirrored() -> Oracle {
    Oracle::warp(|x, out| {
        for lane in 0..32 {
            out[0][lane] = Expected::Bits(x[0][31 - lane]);
        }
    })
}

/// Each thread writes a word and reads the one of the thread that mirrors it in its warp, with a barrier between.
fn exchange(barrier: &str) -> String {
    format!(
        "mad.lo.u32 %own, %thread, 4, %tile;\nxor.b32 %far, %thread, 31;\nmad.lo.u32 %other, %far, 4, %tile;\n\
         st.shared.b32 [%own], %a0;\n{barrier}\nld.shared.b32 %d0, [%other];"
    )
}

fn form(key: &str, body: String) -> Form {
    let form = Form::with_body(key, &[Kind::I32], &[Register::B32], body).declare(DECLARE).shared(512);
    form.data(Data::Random(1024))
}

fn barriers(forms: &mut Vec<Form>) {
    for (key, text, case) in [
        ("bar.sync", "bar.sync 0;", ""),
        ("bar.sync", "bar.sync 3, 128;", "with a count"),
        ("bar.warp.sync", "bar.warp.sync 0xffffffff;", ""),
        ("barrier.sync", "barrier.sync 1;", ""),
        ("barrier.sync.aligned", "barrier.sync.aligned 2, 128;", ""),
        ("barrier.cta.sync.aligned", "barrier.cta.sync.aligned 0;", ""),
    ] {
        forms.push(form(key, exchange(text)).case(case).oracle(mirrored()));
    }
    // Warps 0 and 1 arrive and go on; warps 2 and 3 wait for them and read what they wrote.
    let body = "mad.lo.u32 %own, %thread, 4, %tile;\nst.shared.b32 [%own], %a0;\nsetp.lt.u32 %p, %thread, 64;\n\
                mov.b32 %d0, %a0;\n@%p bra ARRIVE;\nbar.sync 5, 128;\nld.shared.b32 %d0, [%own+-256];\nbra.uni DONE;\n\
                ARRIVE:\nbar.arrive 5, 128;\nDONE:";
    // Blocks of four warps in which every warp has the same operands: then both halves have to agree.
    let data = Data::Custom(1024, Arc::new(|index, _| mix(index / 128 * 32 + index % 32)));
    forms.push(form("bar.arrive", body.into()).also(&["bra", "bra.uni"]).data(data).oracle(Oracle::bits(|x| x[0])));
}

/// Reductions over a block whose warps have the same predicates.
fn counted(forms: &mut Vec<Form>) {
    for (word, ty) in [("popc", "u32"), ("and", "pred"), ("or", "pred")] {
        let key = format!("bar.red.{word}.{ty}");
        let result = if ty == "pred" { "%q" } else { "%d0" };
        let store = if ty == "pred" { "\nselp.b32 %d0, 1, 0, %q;" } else { "" };
        let body = format!("setp.ne.u32 %p, %a0, 0;\n{key} {result}, 0, %p;{store}");
        let data = Data::Custom(
            128 * 24,
            Arc::new(|index, _| {
                let (block, lane) = (index / 128, index % 32);
                u64::from(match block % 4 {
                    0 => false,
                    1 => true,
                    2 => lane == block,
                    _ => mix(block * 32 + lane) & 1 == 1,
                })
            }),
        );
        forms.push(form(&key, body).data(data).oracle(Oracle::warp(move |x, out| {
            let count: u64 = x[0].iter().sum();
            let value = match word {
                "popc" => 4 * count,
                "and" => u64::from(count == 32),
                _ => u64::from(count != 0),
            };
            out[0] = [Expected::Bits(value); 32];
        })));
    }
}

/// Each thread writes to global memory and reads what the one that mirrors it wrote.
fn fences(forms: &mut Vec<Form>) {
    let global = |fence: &str| {
        format!(
            "xor.b32 %far, %lane, 31;\nsub.s32 %far, %far, %lane;\ncvt.s64.s32 %neighbour, %far;\n\
             mad.lo.s64 %neighbour, %neighbour, {}, %memory;\nst.global.b32 [%memory], %a0;\n{fence};\nbar.sync 0;\n\
             ld.global.b32 %d0, [%neighbour];",
            crate::program::MEMORY
        )
    };
    for fence in [
        "membar.cta",
        "membar.gl",
        "membar.sys",
        "fence.sc.cta",
        "fence.sc.gpu",
        "fence.sc.sys",
        "fence.acq_rel.cta",
        "fence.acq_rel.gpu",
        "fence.acq_rel.sys",
    ] {
        forms.push(form(fence, global(fence)).oracle(mirrored()));
    }
    forms.push(form("fence.proxy.async", global("fence.proxy.async")).level(Level::Sm90).oracle(mirrored()));
}

fn branches(forms: &mut Vec<Form>) {
    // Steps until a number comes to 1 by halving and tripling: every lane leaves the loop at its own time.
    let body = "mov.b32 %d0, 0;\nor.b32 %far, %a0, 1;\nAGAIN:\nsetp.le.u32 %p, %far, 1;\n@%p bra OUT;\nand.b32 %other, %far, 1;\n\
                setp.eq.u32 %q, %other, 0;\n@%q bra HALVE;\nmad.lo.u32 %far, %far, 3, 1;\nbra.uni NEXT;\nHALVE:\n\
                shr.u32 %far, %far, 1;\nNEXT:\nadd.u32 %d0, %d0, 1;\nbra AGAIN;\nOUT:";
    let data = Data::Custom(1024, Arc::new(|index, _| mix(index) % 2000));
    forms.push(form("bra", body.into()).also(&["bra.uni"]).data(data).oracle(Oracle::bits(|x| {
        let (mut n, mut steps) = (x[0] | 1, 0);
        while n > 1 {
            n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        steps
    })));
    // Who leaves stores nothing, and results are zero before.
    for key in ["ret", "exit"] {
        let body = format!("mov.b32 %d0, %a0;\nsetp.lt.u32 %p, %a0, 0x80000000;\n@%p {key};");
        let data = Data::Custom(1024, Arc::new(|index, _| mix(index)));
        forms.push(form(key, body).data(data).oracle(Oracle::bits(|x| if x[0] < 0x8000_0000 { 0 } else { x[0] })));
    }
}

/// Instructions that change nothing but time: a result behind them is as it was.
fn hints(forms: &mut Vec<Form>) {
    for (key, text) in [
        ("nanosleep.u32", "nanosleep.u32 40;"),
        ("prefetch.global.L1", "prefetch.global.L1 [%memory];"),
        ("prefetch.global.L2", "prefetch.global.L2 [%memory];"),
    ] {
        forms.push(form(key, format!("{text}\nmov.b32 %d0, %a0;")).oracle(Oracle::bits(|x| x[0])));
    }
    for key in ["griddepcontrol.wait", "griddepcontrol.launch_dependents"] {
        let form = form(key, format!("{key};\nmov.b32 %d0, %a0;")).level(Level::Sm90);
        forms.push(form.oracle(Oracle::bits(|x| x[0])));
    }
}
