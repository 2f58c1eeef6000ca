//! Loads and stores: every width, vector, space, ordering and hint, on 16 bytes of which an operand picks a part.

use crate::{
    form::Form,
    inputs::{Data, Kind, Register},
    oracle::{Expected, Oracle, Warp, WarpExpected, integer::Integer},
};

const TYPES: [&str; 14] =
    ["b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"];

/// Bytes and places at random: there is nothing special about them.
const RANDOM: Data = Data::Random(512);

/// A place to load from or store to: the words of the instruction, and how the address of a thread's 16 bytes gets into `%at`.
struct Space {
    words: &'static str,
    setup: &'static str,
    plain: &'static str,
}

/// Every thread's own 16 bytes.
const SPACES: [Space; 4] = [
    Space { words: ".global", setup: "mov.b64 %at, %memory;", plain: ".global" },
    Space { words: ".shared", setup: SHARED, plain: ".shared" },
    Space { words: "", setup: "cvta.global.u64 %at, %memory;", plain: "" },
    Space { words: "", setup: GENERIC_SHARED, plain: "" },
];
const SHARED: &str = "mad.lo.u32 %narrow, %thread, 16, %tile;\ncvt.u64.u32 %at, %narrow;";
const GENERIC_SHARED: &str =
    "mad.lo.u32 %narrow, %thread, 16, %tile;\ncvt.u64.u32 %at, %narrow;\ncvta.shared.u64 %at, %at;";
const DECLARE: &str = ".reg .b32 %narrow; .reg .b64 %at, %part; .reg .b32 %z;";

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    for (index, space) in SPACES.iter().enumerate() {
        for ty in TYPES {
            for vector in vectors(ty) {
                let case = if index == 3 { "shared" } else { "" };
                forms.push(load("", "", space, ty, vector).case(case));
                forms.push(store("", "", space, ty, vector).case(case));
            }
        }
    }
    for ty in TYPES {
        for vector in vectors(ty) {
            forms.push(read_only("", ty, vector));
        }
    }
    orders(forms);
    hints(forms);
    parameters(forms);
}

fn size(ty: &str) -> u32 {
    ty[1..].parse().unwrap_or(32) / 8
}

fn vectors(ty: &str) -> impl Iterator<Item = u32> {
    let size = size(ty);
    [1, 2, 4].into_iter().filter(move |count| count * size <= 16)
}

fn suffix(ty: &str, vector: u32) -> String {
    if vector == 1 { format!(".{ty}") } else { format!(".v{vector}.{ty}") }
}

/// The register that a value is loaded into or stored from: its own size, but at least 16 bits.
fn register(ty: &str) -> Register {
    match size(ty) {
        8 => Register::B64,
        4 => Register::B32,
        _ => Register::B16,
    }
}

fn list(letter: &str, first: usize, count: u32) -> String {
    let names: Vec<String> = (0..count as usize).map(|i| format!("%{letter}{}", first + i)).collect();
    if count == 1 { names[0].clone() } else { format!("{{{}}}", names.join(", ")) }
}

/// The 16 bytes of four words.
fn bytes(words: &[u64]) -> [u8; 16] {
    std::array::from_fn(|i| (words[i / 4] >> (8 * (i % 4))) as u8)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// What a register gets: narrow values are extended to 16 bits, with the sign of signed types.
fn extended(ty: &str, value: u64) -> u64 {
    match (Integer::named(ty), ty) {
        (Some(integer), "s8") => integer.value(value) as u64 & 0xffff,
        _ => value,
    }
}

fn part(a: usize, bytes: u32) -> String {
    format!("cvt.u64.u32 %part, %a{a};\nmad.lo.u64 %at, %part, {bytes}, %at;")
}

fn load(order: &str, hint: &str, space: &Space, ty: &'static str, vector: u32) -> Form {
    let total = size(ty) * vector;
    let key = format!("ld{order}{}{hint}{}", space.words, suffix(ty, vector));
    let body = format!(
        "{}\nst{}.v4.b32 [%at], {{%a0, %a1, %a2, %a3}};\n{}\n{key} {}, [%at];",
        space.setup,
        space.plain,
        part(4, total),
        list("d", 0, vector),
    );
    let inputs = [Kind::I32, Kind::I32, Kind::I32, Kind::I32, Kind::Below(16 / total)];
    let form = Form::with_body(key, &inputs, &vec![register(ty); vector as usize], body);
    let form = form.declare(DECLARE).shared(128 * 16).data(RANDOM);
    form.oracle(Oracle::many(move |x, out| {
        let (all, first) = (bytes(&x[..4]), (x[4] as u32 * total) as usize);
        for (i, out) in out.iter_mut().enumerate() {
            let at = first + i * size(ty) as usize;
            *out = Expected::Bits(extended(ty, little_endian(&all[at..at + size(ty) as usize])));
        }
    }))
}

fn store(order: &str, hint: &str, space: &Space, ty: &'static str, vector: u32) -> Form {
    let total = size(ty) * vector;
    let key = format!("st{order}{}{hint}{}", space.words, suffix(ty, vector));
    let body = format!(
        "{}\nmov.b64 %part, %at;\nmov.b32 %z, 0;\nst{plain}.v4.b32 [%at], {{%z, %z, %z, %z}};\n\
         cvt.u64.u32 %part, %a{vector};\nmad.lo.u64 %part, %part, {total}, %at;\n{key} [%part], {};\n\
         ld{plain}.v4.b32 {{%d0, %d1, %d2, %d3}}, [%at];",
        space.setup,
        list("a", 0, vector),
        plain = space.plain,
    );
    let kind = match register(ty) {
        Register::B64 => Kind::I64,
        Register::B16 => Kind::I16,
        _ => Kind::I32,
    };
    let mut inputs = vec![kind; vector as usize];
    inputs.push(Kind::Below(16 / total));
    let form = Form::with_body(key, &inputs, &[Register::B32; 4], body).declare(DECLARE).shared(128 * 16);
    let form = form.data(RANDOM);
    form.oracle(Oracle::many(move |x, out| {
        let mut all = [0; 16];
        for (i, value) in x[..vector as usize].iter().enumerate() {
            let at = (x[vector as usize] as u32 * total) as usize + i * size(ty) as usize;
            all[at..at + size(ty) as usize].copy_from_slice(&value.to_le_bytes()[..size(ty) as usize]);
        }
        for (word, out) in all.chunks(4).zip(out) {
            *out = Expected::Bits(little_endian(word));
        }
    }))
}

/// `ld.global.nc`: of the operands themselves, which nobody writes. Two threads share 16 bytes.
fn read_only(hint: &str, ty: &'static str, vector: u32) -> Form {
    let total = size(ty) * vector;
    let key = format!("ld.global{hint}.nc{}", suffix(ty, vector));
    let body = format!(
        "and.b64 %at, %x_thread, 0xfffffffffffffffe;\nmad.lo.u64 %at, %at, 8, %x_in;\n{}\n{key} {}, [%at];",
        part(1, total),
        list("d", 0, vector),
    );
    let outputs = vec![register(ty); vector as usize];
    let form = Form::with_body(key, &[Kind::I64, Kind::Below(16 / total)], &outputs, body).declare(DECLARE);
    form.data(RANDOM).oracle(Oracle::warp(move |x: &Warp, out: &mut WarpExpected| {
        for lane in 0..32 {
            let pair = [x[0][lane & !1], x[0][lane | 1]];
            let all: Vec<u8> = pair.iter().flat_map(|word| word.to_le_bytes()).collect();
            for (i, out) in out.iter_mut().enumerate() {
                let at = (x[1][lane] as u32 * total) as usize + i * size(ty) as usize;
                out[lane] = Expected::Bits(extended(ty, little_endian(&all[at..at + size(ty) as usize])));
            }
        }
    }))
}

fn orders(forms: &mut Vec<Form>) {
    for space in &SPACES[..3] {
        for (load_order, store_order) in [
            (".weak", ".weak"),
            (".volatile", ".volatile"),
            (".relaxed.cta", ".relaxed.cta"),
            (".relaxed.gpu", ".relaxed.gpu"),
            (".relaxed.sys", ".relaxed.sys"),
            (".acquire.cta", ".release.cta"),
            (".acquire.gpu", ".release.gpu"),
            (".acquire.sys", ".release.sys"),
        ] {
            for ty in ["b32", "u32", "s32", "f32", "u64", "b64"] {
                forms.push(load(load_order, "", space, ty, 1));
                forms.push(store(store_order, "", space, ty, 1));
            }
        }
    }
    let global = &SPACES[0];
    for (ty, vector) in [("f32", 2), ("f32", 4), ("u32", 2), ("u32", 4), ("b32", 2), ("b32", 4), ("u64", 2)] {
        for order in [".volatile", ".relaxed.gpu"] {
            forms.push(load(order, "", global, ty, vector));
            forms.push(store(order, "", global, ty, vector));
        }
    }
}

fn hints(forms: &mut Vec<Form>) {
    let global = &SPACES[0];
    for (ty, vector) in [("b16", 1), ("b32", 1), ("u32", 1), ("f32", 1), ("f32", 2), ("f32", 4), ("b32", 4), ("u64", 1)]
    {
        for hint in [".ca", ".cg", ".cs", ".lu", ".cv", ".L1::no_allocate", ".L1::evict_last", ".L2::128B"] {
            forms.push(load("", hint, global, ty, vector));
        }
        for hint in [".wb", ".cg", ".cs", ".wt", ".L1::evict_first"] {
            forms.push(store("", hint, global, ty, vector));
        }
    }
    for hint in [".ca", ".cg", ".cs"] {
        forms.push(read_only(hint, "b32", 1));
        forms.push(read_only(hint, "b32", 4));
    }
}

/// The number of threads is the last parameter; it also came to `%x_count`.
fn parameters(forms: &mut Vec<Form>) {
    for ty in TYPES {
        let key = format!("ld.param.{ty}");
        let body = match register(ty) {
            Register::B64 => format!("{key} %d0, [args+24];\nsub.u64 %d0, %d0, %x_count;"),
            Register::B32 => {
                format!("{key} %d0, [args+24];\ncvt.u32.u64 %narrow, %x_count;\nsub.u32 %d0, %d0, %narrow;")
            }
            _ => {
                let integer = ty.replace('b', "u");
                format!("{key} %d0, [args+24];\ncvt.{integer}.u64 %half, %x_count;\nsub.u16 %d0, %d0, %half;")
            }
        };
        let declare = format!("{DECLARE} .reg .b16 %half;");
        let form = Form::with_body(key, &[Kind::I32], &[register(ty)], body).declare(declare);
        forms.push(form.oracle(Oracle::bits(|_| 0)));
    }
    for (ty, vector) in [("u32", 2), ("f32", 2), ("u32", 4), ("b64", 2)] {
        let key = format!("ld.param.v{vector}.{ty}");
        // The pointer to the results and the one to the memory are the two middle ones.
        let body = match (ty, vector) {
            ("b64", _) => format!("{key} {{%part, %d0}}, [args+16];\nsub.u64 %d0, %d0, %x_count;"),
            (_, 2) => {
                format!("{key} {{%narrow, %z}}, [args+24];\nmov.b64 %d0, {{%narrow, %z}};\nsub.u64 %d0, %d0, %x_count;")
            }
            _ => format!(
                "{key} {{%w0, %w1, %narrow, %z}}, [args+16];\nmov.b64 %d0, {{%narrow, %z}};\nsub.u64 %d0, %d0, %x_count;"
            ),
        };
        let declare = format!("{DECLARE} .reg .b32 %w0, %w1;");
        let form = Form::with_body(key, &[Kind::I32], &[Register::B64], body).declare(declare);
        forms.push(form.oracle(Oracle::bits(|_| 0)));
    }
}
