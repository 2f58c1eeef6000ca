//! What the parser takes, what it refuses and on which line, and that no text makes it panic.

use super::ast::*;
use super::parse;

const HEADER: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// The first entry of a module whose body holds these lines; the first of them is line 6 of the text.
fn with_body(body: &str) -> String {
    format!("{HEADER}.visible .entry k(.param .u64 p, .param .b32 n)\n{{\n{body}\n}}\n")
}

fn entry(text: &str) -> Entry {
    let mut module = parse(text).unwrap();
    module.entries.remove(0)
}

fn operands(statement: &str) -> Vec<Operand> {
    let declared = ".reg .b32 %a, %b; .reg .b64 %d; .reg .pred %p, %q; .shared .b32 tile[8];";
    let mut parsed = entry(&with_body(&format!("{declared}\n{statement}")));
    parsed.body.remove(0).operands
}

#[test]
fn reads_a_whole_kernel() {
    let text = r#"// a comment
.version 7.1
.target sm_90a
.address_size 64
.file 1 "k.cu"
.global .align 8 .u32 ticket = 3, table[4] = {1, -1, 0xFF};
.const .f32 scale = 0.5;
.extern .shared .align 128 .b8 smem[];
.shared .b16 halves[3];
/* a comment
   of two lines */
.visible .entry first(
    .param .u32 count,
    .param .u64 .ptr .global .align 16 data,
    .param .align 16 .b8 block[20]
)
.maxntid 128, 2
.minnctapersm 2
.pragma "nounroll";
{
    .reg .b32 %r<3>, %x;
    .reg .pred %p;
    .shared .align 16 .f32 tile[2][4];
    .loc 1 2 3
    mov.u32 %x, %tid.y;
    mov.u32 %r0, smem;
    mov.u32 %r1, halves;
    { .reg .b64 %x; LOOP: cvta.to.global.u64 %x, %x; @!%p bra LOOP; bra.uni DONE; }
DONE:
}
.entry second { ret; }
"#;
    let module = parse(text).unwrap();
    assert_eq!((module.version, module.target.as_str(), module.address_size), ((7, 1), "sm_90a", 64));
    let globals: Vec<_> = module.globals.iter().map(|g| (g.name.as_str(), g.space, g.align, g.bytes)).collect();
    let (global, constant) = (GlobalSpace::Global, GlobalSpace::Const);
    assert_eq!(globals, [("ticket", global, 8, 4), ("table", global, 8, 16), ("scale", constant, 4, 4)]);
    assert_eq!(module.globals[1].initial, [1, 0, 0, 0, 255, 255, 255, 255, 255, 0, 0, 0]);
    assert_eq!(module.globals[2].initial, 0.5f32.to_le_bytes());

    let first = module.entry("first").unwrap();
    assert_eq!(first.line, 12);
    let params: Vec<_> = first.params.iter().map(|p| (p.name.as_str(), p.offset, p.bytes, p.align, p.array)).collect();
    assert_eq!(params, [("count", 0, 4, 4, false), ("data", 8, 8, 8, false), ("block", 16, 20, 16, true)]);
    assert_eq!(first.params_bytes, 36);
    assert_eq!(first.directives.maxntid, Some([128, 2, 1]));
    assert_eq!(first.directives.minnctapersm, Some(2));
    let names: Vec<_> = first.registers.iter().map(|r| (r.name.as_str(), r.ty)).collect();
    let (b32, b64) = (Type::B32, Type::B64);
    assert_eq!(names, [("%r0", b32), ("%r1", b32), ("%r2", b32), ("%x", b32), ("%p", Type::Pred), ("%x", b64)]);
    let shared: Vec<_> = first.shared.iter().map(|s| (s.name.as_str(), s.offset, s.bytes, s.dynamic)).collect();
    assert_eq!(shared, [("tile", 0, 32, false), ("smem", 128, 0, true), ("halves", 32, 6, false)]);
    assert_eq!((first.static_shared_bytes, first.dynamic_shared_offset, first.shared_align), (38, 128, 128));

    let mov = &first.body[0];
    assert_eq!((mov.opcode.as_str(), mov.line, mov.guard), ("mov", 25, None));
    assert_eq!(mov.operands, [Operand::Register(3), Operand::Special(SpecialRegister::Tid(Dimension::Y))]);
    assert_eq!(first.body[3].modifiers, ["to", "global", "u64"]);
    assert_eq!(first.body[3].operands, [Operand::Register(5), Operand::Register(5)]);
    assert_eq!(first.body[4].guard, Some(Guard { register: 4, negated: true }));
    assert_eq!(first.body[4].operands, [Operand::Label(3)]);
    assert_eq!(
        (first.body[5].modifiers.as_slice(), &first.body[5].operands[0]),
        (&["uni".to_owned()][..], &Operand::Label(6))
    );
    assert_eq!(first.body.len(), 6);

    let second = module.entry("second").unwrap();
    assert_eq!((second.params.len(), second.body.len(), second.shared.len()), (0, 1, 0));
}

#[test]
fn reads_operands() {
    let register = Operand::Register;
    let (a, b, d, p, q) = (0, 1, 2, 3, 4);
    let tile = AddressBase::Symbol { kind: SymbolKind::Shared, index: 0 };
    let address = |base, offset| Operand::Address { base, offset };
    let pair = |x, y| Operand::Pair(Box::new(x), Box::new(y));
    for (statement, expected) in [
        ("x %a, -5;", vec![register(a), Operand::Immediate(-5)]),
        ("x %a, 0f3F800000;", vec![register(a), Operand::Float32(0x3F80_0000)]),
        ("x 1.5;", vec![Operand::Float64(1.5f64.to_bits())]),
        ("x [%d+-16];", vec![address(AddressBase::Register(d), -16)]),
        ("x [ %b + 4*2 ];", vec![address(AddressBase::Register(b), 8)]),
        ("x [tile+8];", vec![address(tile, 8)]),
        ("x [16];", vec![address(AddressBase::Absolute, 16)]),
        ("x tile + 4;", vec![Operand::Symbol { kind: SymbolKind::Shared, index: 0, offset: 4 }]),
        ("x [p];", vec![address(AddressBase::Symbol { kind: SymbolKind::Param, index: 0 }, 0)]),
        (
            "x {%a, _, 3, %laneid};",
            vec![Operand::Vector(vec![
                register(a),
                Operand::Sink,
                Operand::Immediate(3),
                Operand::Special(SpecialRegister::LaneId),
            ])],
        ),
        ("x %a|%p, !%q;", vec![pair(register(a), register(p)), Operand::NegatedPredicate(q)]),
        ("x _|%p;", vec![pair(Operand::Sink, register(p))]),
        ("x;", vec![]),
    ] {
        assert_eq!(operands(statement), expected, "{statement}");
    }
}

#[test]
fn inner_scopes_shadow_names_and_labels() {
    let parsed =
        entry(&with_body("A: ret;\n{ A: bra A; { bra A; bra B; } }\n{ .reg .b32 p; mov.b32 p, 0; }\nB: bra A;"));
    let targets: Vec<_> = parsed.body.iter().filter(|i| i.opcode == "bra").map(|i| i.operands[0].clone()).collect();
    assert_eq!(targets, [Operand::Label(1), Operand::Label(1), Operand::Label(5), Operand::Label(0)]);
    assert_eq!(parsed.body[4].operands[0], Operand::Register(0));
}

#[test]
fn says_where_a_body_is_wrong() {
    for (body, line, word) in [
        ("mov.b32 %x, 0;", 6, "`%x` is not declared"),
        (".reg .b32 %x;\n.reg .b64 %x;", 7, "already declared"),
        (".reg .b32 %x5, %x<9>;", 6, "`%x5` is already declared"),
        (".reg .b32 %x<4000000000>;", 6, "from 1 to"),
        (".reg .b32 %x<60000>;\n.reg .b32 %y<60000>;\n.reg .b32 %z<60000>;", 8, "at most 131072 registers"),
        (".reg .b32 %x<0>;", 6, "from 1 to"),
        (".reg .b128 %x;", 6, "expected a type"),
        (".reg .bf16 %x;", 6, "expected a type"),
        (".reg .v4 .f32 %x;", 6, "expected a type, found `.v4`"),
        (".reg .b32 %tid;", 6, "special register"),
        (".reg .b32 %x", 7, "expected `,` or `;`, found `}`"),
        (".reg .b32 %x;\n\nadd.u32 %x, %x, 1\nadd.u32 %x, %x, 1;", 9, "expected `,` or `;`, found `add`"),
        ("ret;;", 6, "expected an instruction, a label, a declaration or `}`, found `;`"),
        ("bra NOWHERE;", 6, "no label `NOWHERE`"),
        ("{ IN: ret; }\nret;\nbra IN;", 8, "no label `IN`"),
        ("L: ret;\nL: ret;", 7, "already declared"),
        (".reg .b32 L;\nL: ret;", 7, "already declared"),
        ("bra 3;", 6, "expected a label, found `3`"),
        ("@%p ret;", 6, "expected a predicate register, found `%p`"),
        (".reg .b32 %x;\n@%x ret;", 7, "expected a predicate register"),
        (".reg .b32 %x;\nmov.b32 %x, !%x;", 7, "expected a predicate register"),
        (".reg .f32 %x;\nld.shared.f32 %x, [%x];", 7, "address register"),
        (".reg .b64 %x;\nld.global.b64 %x, [%x-8];", 7, "expected `]` or `+` and a constant, found `-`"),
        (".reg .b64 %x;\nld.global.b64 %x, [%x+%x];", 7, "expected a constant, found `%x`"),
        (".reg .b64 %x;\nmov.b64 %x, [%x;", 7, "expected `]`"),
        (".reg .b32 %x;\nmov.b64 {%x, {%x}}, 0;", 7, "expected an operand, found `{`"),
        (".reg .b32 %x;\nmov.b64 {}, %x;", 7, "expected an operand, found `}`"),
        (".reg .b32 %x;\nmov.b32 %x, %tid;", 7, "expected `.x`, `.y` or `.z`"),
        (".reg .b32 %x;\nmov.b32 %x, %tid.w;", 7, "expected `.x`, `.y` or `.z`"),
        (".reg .b32 %x;\nmov.b32 %x, 08;", 7, "expected a number, found `08`"),
        (".reg .b32 %x;\nmov.b32 %x, 0x1FFFFFFFFFFFFFFFF;", 7, "expected a number"),
        (".reg .b32 %x;\nmov.b32 %x, 0f3F8000;", 7, "expected a number"),
        (".reg .b32 %x;\nshfl.sync.up.b32 %x|3, %x, 1, 0, -1;", 7, "both sides of `|`"),
        ("Mov.b32 %x, 0;", 6, "expected an instruction, found `Mov`"),
        ("call f;", 6, "`call` is not supported"),
        (".local .b32 x[4];", 6, "found `.local`"),
        (".shared .b32 x[];", 6, "expected a size for `x`"),
        (".shared .align 3 .b32 x;", 6, "power of two"),
        (".shared .b8 x[30000];\n.shared .b8 y[30000];", 7, "static shared bytes"),
        (".shared .b8 x[99999999999999999999];", 6, "expected a number"),
        (".shared .b32 x[1 << 60][1 << 60];", 6, "array size"),
        (".shared .pred x;", 6, "other than `.pred`"),
        (".extern .shared .b8 x[];", 6, "found `.extern`"),
        (".loc 1 2", 7, "expected a number, found `}`"),
        ("ret;\n/* open", 7, "never closed"),
        ("ret;\n\u{1}", 7, "control character 0x01"),
    ] {
        let error = parse(&with_body(body)).unwrap_err();
        assert!(error.line == line && error.message.contains(word), "{body}\n{error}");
    }
    let nested = "{\n".repeat(100_000);
    assert_eq!(parse(&with_body(&nested)).unwrap_err().line, 6 + 63);
}

#[test]
fn says_where_a_module_is_wrong() {
    let header = |text: &str| format!("{HEADER}{text}");
    for (text, line, word) in [
        (String::new(), 1, "expected `.version`, found the end of the text"),
        ("\n.target sm_80".to_owned(), 2, "expected `.version`"),
        (".version 8\n".to_owned(), 1, "version such as"),
        (".version 8.0\n.address_size 64".to_owned(), 2, "expected `.target`"),
        (".version 8.0\n.target compute_80".to_owned(), 2, "target such as"),
        (".version 8.0\n.target sm_80, debug".to_owned(), 2, "expected `.address_size`"),
        (".version 8.0\n.target sm_80\n.address_size 32".to_owned(), 3, "expected `64`"),
        (header("ret;"), 4, "expected `.entry`"),
        (header(".func f() { ret; }"), 4, "found `.func`"),
        (header(".visible .func f() { ret; }"), 4, "found `.func`"),
        (header(".extern .global .b32 x;"), 4, "expected `.shared`"),
        (header(".extern .shared .b8 x[4];"), 4, "expected `x[]`"),
        (header(".entry k { ret; }\n.entry k { ret; }"), 5, "`k` is already declared"),
        (header(".entry k("), 4, "expected `.param`"),
        (header(".entry k(\n.param .u64 a,\n.param .u32 a) { ret; }"), 6, "`a` is already declared"),
        (header(".entry k(.param .u64 a) {\n.reg .b64 a; }"), 5, "`a` is already declared"),
        (header(".entry k(.param .u64 a .param .u64 b) { ret; }"), 4, "expected `,` or `)`"),
        (header(".entry k(.param .b8 a[5000]) { ret; }"), 4, "at most 4352 bytes"),
        (header(".entry k(.param .b8 a[]) { ret; }"), 4, "1 to 32764 bytes"),
        (header(".entry k ret;"), 4, "expected `{`"),
        (header(".entry k { ret;"), 4, "expected `}` at the end"),
        (header(".entry k { ret; } }"), 4, "expected `.entry`"),
        (header(".entry k\n.maxntid 2048 { ret; }"), 5, "from 1 to 1024"),
        (header(".entry k\n.maxntid 32\n.maxntid 32 { ret; }"), 6, "given twice"),
        (header(".entry k\n.maxfoo 32 { ret; }"), 5, "expected a performance directive"),
        (header(".global .b32 x[];"), 4, "expected a size or constants"),
        (header(".global .u32 x[2] = {1, 2, 3};"), 4, "at most 8 bytes"),
        (header(".global .u8 x = 300;"), 4, "does not fit `.u8`"),
        (header(".global .f32 x = 1;"), 4, "constant of type `.f32`"),
        (header(".global .u32 x = y;"), 4, "expected a constant, found `y`"),
        (header(".global .u32 x = {1};"), 4, "for a scalar"),
        (header(".global .b8 x[2000000000000];"), 4, "array size"),
        (header(".const .b8 x[65537];"), 4, "at most 65536 bytes"),
        (header(".pragma nounroll;"), 4, "expected a string"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.line == line && error.message.contains(word), "{text}\n{error}");
    }
}

/// A small generator; the texts that it makes are the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

const SAMPLE: &str = r#".version 8.0
.target sm_80
.address_size 64
.global .u32 table[2] = {1, 2};
.extern .shared .align 16 .b8 smem[];
.visible .entry k(.param .u64 p, .param .align 8 .b8 args[24]) .maxntid 64, 1, 1
{
    .reg .pred %p<2>; .reg .b32 %r<8>; .reg .b64 %rd<2>; .shared .b32 tile[32];
    ld.param.u64 %rd0, [args+8]; mov.u32 %r0, %tid.x;
LOOP:
    { .reg .f32 %t; mov.f32 %t, 0f3F800000; @!%p1 st.global.v2.f32 [%rd0+-8], {%t, 1.5}; }
    setp.lt.and.u32 %p0|%p1, %r0, (3 + 4) << 2, !%p0; /* end */ @%p0 bra LOOP; // again
    cp.async.cg.shared.global.L2::128B [tile + 16], [%rd0], 16;
    ret;
}
"#;

#[test]
fn every_prefix_of_a_kernel_is_an_error() {
    assert!(parse(SAMPLE).is_ok());
    let header_and_variables = SAMPLE.find(".visible").unwrap();
    let end = SAMPLE.rfind('}').unwrap();
    for length in header_and_variables + 8..=end {
        assert!(parse(&SAMPLE[..length]).is_err(), "{length}");
    }
}

#[test]
fn no_text_makes_it_panic() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let pieces: Vec<&str> = SAMPLE.split_inclusive([' ', '\n', ',', ';', '[', '{']).collect();
    for _ in 0..4000 {
        let bytes: Vec<u8> = (0..random.below(120)).map(|_| random.below(256) as u8).collect();
        assert!(parse(&String::from_utf8_lossy(&bytes)).is_err());

        let mut damaged = SAMPLE.as_bytes().to_vec();
        for _ in 0..1 + random.below(3) {
            let at = random.below(damaged.len());
            damaged[at] = random.below(128) as u8;
        }
        let _ = parse(&String::from_utf8_lossy(&damaged));

        let shuffled: String = (0..random.below(80)).map(|_| pieces[random.below(pieces.len())]).collect();
        let _ = parse(&format!("{HEADER}.entry k {{ {shuffled}"));
    }
}

#[test]
fn long_texts_take_time_in_proportion() {
    let many = |line: &str, count| with_body(&line.repeat(count));
    assert_eq!(entry(&many("ret;\n", 50_000)).body.len(), 50_000);
    assert_eq!(parse(&many("bra X;\n", 50_000)).unwrap_err().line, 6);
    assert!(parse(&many("x:", 50_000)).is_err());
    assert!(parse(&many("mov.b32 {", 50_000)).is_err());
    assert!(parse(&" ".repeat((16 << 20) + 1)).is_err());
}
