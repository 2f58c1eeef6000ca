//! Asynchronous copies to shared memory, and the barriers that count their arrival.

use crate::{
    form::{Form, Level},
    inputs::{Data, Kind, Register},
    oracle::{Expected, Oracle},
};

const DECLARE: &str = ".reg .b32 %own, %ones, %counter; .reg .b64 %state; .reg .pred %done, %ignore;";

/// The source holds the operands, the destination ones.
const FILL: &str = "st.global.v4.b32 [%memory], {%a0, %a1, %a2, %a3};\nmad.lo.u32 %own, %thread, 16, %tile;\n\
                    mov.b32 %ones, 0xffffffff;\nst.shared.v4.b32 [%own], {%ones, %ones, %ones, %ones};";
const READ: &str = "ld.shared.v4.b32 {%d0, %d1, %d2, %d3}, [%own];";
const WORDS: [Kind; 4] = [Kind::I32; 4];

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    for (level, sizes) in [("ca", &[4u32, 8, 16][..]), ("cg", &[16])] {
        for size in sizes {
            sized(forms, &format!("cp.async.{level}.shared.global"), *size);
        }
    }
    for hint in ["L2::64B", "L2::128B", "L2::256B"] {
        let key = format!("cp.async.cg.shared.global.{hint}");
        let body = format!("{FILL}\n{key} [%own], [%memory], 16;\ncp.async.wait_all;\n{READ}");
        forms.push(copied(Form::with_body(key, &WORDS, &[Register::B32; 4], body), |_| 16, 16));
    }
    groups(forms);
    arrivals(forms);
}

/// Completed with so many bytes from the operands, zeros up to the size of the copy, and ones beyond it.
fn copied(form: Form, bytes: impl Fn(&[u64]) -> u64 + Send + Sync + 'static, size: u64) -> Form {
    form.declare(DECLARE).shared(2048).data(Data::Random(512)).oracle(Oracle::many(move |x, out| {
        let taken = bytes(x);
        for (word, out) in out.iter_mut().enumerate() {
            let byte = |i: u64| {
                let at = 4 * word as u64 + i;
                let value = if at < taken {
                    x[word] >> (8 * i) & 255
                } else if at < size {
                    0
                } else {
                    255
                };
                value << (8 * i)
            };
            *out = Expected::Bits((0..4).map(byte).sum());
        }
    }))
}

fn case(size: u32) -> &'static str {
    match size {
        4 => "4 bytes",
        8 => "8 bytes",
        _ => "",
    }
}

fn sized(forms: &mut Vec<Form>, key: &str, size: u32) {
    let wait = "cp.async.wait_all;";
    let also = ["cp.async.wait_all"];
    let body = format!("{FILL}\n{key} [%own], [%memory], {size};\n{wait}\n{READ}");
    let form = Form::with_body(key, &WORDS, &[Register::B32; 4], body).case(case(size)).also(&also);
    forms.push(copied(form, move |_| size.into(), size.into()));
    // A smaller source: the rest is zero.
    let mut inputs = WORDS.to_vec();
    inputs.push(Kind::Below(size + 1));
    let body = format!("{FILL}\n{key} [%own], [%memory], {size}, %a4;\n{wait}\n{READ}");
    let form = Form::with_body(format!("{key} source"), &inputs, &[Register::B32; 4], body).case(case(size));
    forms.push(copied(form, |x| x[4], size.into()));
    // A predicate that tells to ignore the source.
    let body =
        format!("{FILL}\nsetp.eq.u32 %ignore, %a4, 0;\n{key} [%own], [%memory], {size}, %ignore;\n{wait}\n{READ}");
    let form = Form::with_body(format!("{key} ignore"), &inputs, &[Register::B32; 4], body).case(case(size));
    forms.push(copied(form, move |x| if x[4] == 0 { 0 } else { size.into() }, size.into()));
}

/// Groups complete in order: after waiting for all but the newest, the older ones have landed.
fn groups(forms: &mut Vec<Form>) {
    let copy = |word: u32| format!("cp.async.ca.shared.global [%own+{}], [%memory+{}], 4;", 4 * word, 4 * word);
    let body = format!(
        "{FILL}\n{}\ncp.async.commit_group;\n{}\ncp.async.commit_group;\n{}\ncp.async.commit_group;\n\
         cp.async.wait_group 2;\nld.shared.b32 %d0, [%own];\ncp.async.wait_group 1;\nld.shared.b32 %d1, [%own+4];\n\
         cp.async.wait_group 0;\nld.shared.b32 %d2, [%own+8];\nld.shared.b32 %d3, [%own+12];",
        copy(0),
        copy(1),
        copy(2)
    );
    let form = Form::with_body("cp.async.wait_group", &WORDS, &[Register::B32; 4], body);
    let form = form.also(&["cp.async.commit_group", "cp.async.ca.shared.global"]);
    forms.push(copied(form, |_| 12, 12));
}

/// Barriers that count: every thread has one of its own, so that what it sees is its own doing.
fn arrivals(forms: &mut Vec<Form>) {
    let own = "mad.lo.u32 %own, %thread, 16, %tile;";
    let shared = |form: Form| form.declare(DECLARE).shared(2048).data(Data::Random(128));
    let flag = |to: &str| format!("selp.b32 {to}, 1, 0, %done;");
    let body = format!(
        "{own}\nmbarrier.init.shared.b64 [%own], 2;\nmbarrier.arrive.shared.b64 %state, [%own];\n\
         mbarrier.test_wait.shared.b64 %done, [%own], %state;\n{}\nmbarrier.pending_count.b64 %d1, %state;\n\
         mbarrier.arrive.shared.b64 %state, [%own];\nmbarrier.test_wait.parity.shared.b64 %done, [%own], 0;\n{}\n\
         mbarrier.test_wait.parity.shared.b64 %done, [%own], 1;\n{}\nmbarrier.inval.shared.b64 [%own];",
        flag("%d0"),
        flag("%d2"),
        flag("%d3")
    );
    let form = Form::with_body("mbarrier.arrive.shared.b64", &[Kind::I32], &[Register::B32; 4], body);
    let form = form.also(&[
        "mbarrier.init.shared.b64",
        "mbarrier.test_wait.shared.b64",
        "mbarrier.test_wait.parity.shared.b64",
        "mbarrier.pending_count.b64",
        "mbarrier.inval.shared.b64",
    ]);
    // One arrival of two: not done, two were pending before it. Two: phase 0 is done, phase 1 is under way.
    forms.push(shared(form).oracle(Oracle::many(|_, out| {
        for (out, value) in out.iter_mut().zip([0, 2, 1, 0]) {
            *out = Expected::Bits(value);
        }
    })));
    // One for each warp, in the first lane's place: all copies of its lanes arrive there.
    for (word, waiting) in [("", "mbarrier.arrive.shared.b64 %state, [%counter];"), (".noinc", "")] {
        let key = format!("cp.async.mbarrier.arrive{word}.shared.b64");
        let body = format!(
            "{own}\nand.b32 %counter, %thread, 0xffffffe0;\nmad.lo.u32 %counter, %counter, 16, %tile;\n\
             setp.eq.u32 %done, %lane, 0;\n@%done mbarrier.init.shared.b64 [%counter], 32;\nbar.warp.sync 0xffffffff;\n\
             st.global.b32 [%memory], %a0;\ncp.async.ca.shared.global [%own+8], [%memory], 4;\n{key} [%counter];\n{waiting}\n\
             WAIT:\nmbarrier.try_wait.parity.shared.b64 %done, [%counter], 0;\n@!%done bra WAIT;\nld.shared.b32 %d0, [%own+8];"
        );
        let form = Form::with_body(key, &[Kind::I32], &[Register::B32], body).level(Level::Sm90);
        let form = form.also(&["mbarrier.try_wait.parity.shared.b64"]);
        forms.push(shared(form).oracle(Oracle::bits(|x| x[0])));
        // And one for each thread, of one copy alone.
        let waiting = waiting.replace("%counter", "%own");
        let key = format!("cp.async.mbarrier.arrive{word}.shared.b64");
        let body = format!(
            "{own}\nmbarrier.init.shared.b64 [%own], 1;\nst.global.b32 [%memory], %a0;\n\
             cp.async.ca.shared.global [%own+8], [%memory], 4;\n{key} [%own];\n{waiting}\n\
             WAIT:\nmbarrier.try_wait.parity.shared.b64 %done, [%own], 0;\n@!%done bra WAIT;\nld.shared.b32 %d0, [%own+8];"
        );
        let form = Form::with_body(key, &[Kind::I32], &[Register::B32], body).level(Level::Sm90).case("alone");
        forms.push(shared(form).oracle(Oracle::bits(|x| x[0])));
    }
}
