//! Matrix loads and products: where every element goes, and that sums are right.

use crate::harness::{Arg, Machine, Random, kernel, options};
use lookback_emulator::launch::{FaultKind, MmaArithmetic, Options};

/// Loads matrices whose every 16-bit element is its own number; lane l gives the address of row l of 64 rows of 16 bytes.
fn ldmatrix(count: usize, transposed: bool) -> Vec<Vec<u32>> {
    let registers: Vec<String> = (0..count).map(|i| format!("%x{i}")).collect();
    let body = format!(
        ".shared .align 16 .b8 tile[512]; .reg .b32 %lane, %at, %base, %x<4>; .reg .b64 %in, %out, %offset;
         ld.param.u64 %in, [p_in]; ld.param.u64 %out, [p_out]; mov.u32 %lane, %tid.x; mov.u32 %base, tile;
         mul.wide.u32 %offset, %lane, 16; add.u64 %in, %in, %offset; mad.lo.u32 %at, %lane, 16, %base;
         ld.global.v4.b32 {{%x0, %x1, %x2, %x3}}, [%in]; st.shared.v4.b32 [%at], {{%x0, %x1, %x2, %x3}}; bar.warp.sync -1;
         mov.b32 %x0, 0; mov.b32 %x1, 0; mov.b32 %x2, 0; mov.b32 %x3, 0;
         ldmatrix.sync.aligned.m8n8.x{count}{}.shared.b16 {{{}}}, [%at];
         add.u64 %out, %out, %offset; st.global.v4.b32 [%out], {{%x0, %x1, %x2, %x3}};",
        if transposed { ".trans" } else { "" },
        registers.join(", ")
    );
    let machine = Machine::new(&kernel(".param .u64 p_in, .param .u64 p_out", &body));
    let out = machine.uninitialized(512);
    let numbers: Vec<u8> = (0..256u16).flat_map(u16::to_le_bytes).collect();
    machine.succeed(1, 32, &[Arg::U64(machine.bytes(&numbers)), Arg::U64(out)], &Options::default());
    machine.read(out, 128).chunks_exact(4).map(<[u32]>::to_vec).collect()
}

#[test]
fn ldmatrix_gives_each_lane_its_pair() {
    for count in [1, 2, 4] {
        for transposed in [false, true] {
            for (lane, registers) in ldmatrix(count, transposed).iter().enumerate() {
                for (matrix, register) in registers.iter().enumerate() {
                    let element = |row: usize, column: usize| (matrix * 64 + row * 8 + column) as u32;
                    let (outer, inner) = (lane / 4, lane % 4 * 2);
                    let pair = match (matrix < count, transposed) {
                        (false, _) => [0, 0],
                        (true, false) => [element(outer, inner), element(outer, inner + 1)],
                        (true, true) => [element(inner, outer), element(inner + 1, outer)],
                    };
                    assert_eq!(*register, pair[0] | pair[1] << 16, "x{count} {transposed} lane {lane} matrix {matrix}");
                }
            }
        }
    }
}

#[test]
fn stmatrix_and_movmatrix_mirror_ldmatrix() {
    let body = ".shared .align 16 .b8 tile[128]; .reg .b32 %lane, %at, %base, %x, %y, %row; .reg .b64 %out, %offset;
        ld.param.u64 %out, [p_out]; mov.u32 %lane, %tid.x; mov.u32 %base, tile; and.b32 %row, %lane, 7;
        mad.lo.u32 %at, %row, 16, %base; mul.wide.u32 %offset, %lane, 4; add.u64 %out, %out, %offset;
        shl.b32 %x, %lane, 1; mad.lo.u32 %x, %x, 0x10001, 0x10000;
        movmatrix.sync.aligned.m8n8.trans.b16 %y, %x; st.global.b32 [%out], %y;
        stmatrix.sync.aligned.m8n8.x1.shared.b16 [%at], {%x}; bar.warp.sync -1;
        mad.lo.u32 %at, %lane, 4, %base; ld.shared.b32 %y, [%at]; st.global.b32 [%out+128], %y;";
    let machine = Machine::new(&kernel(".param .u64 p_out", body));
    let out = machine.uninitialized(256);
    machine.succeed(1, 32, &[Arg::U64(out)], &Options::default());
    let found = machine.read(out, 64);
    for lane in 0..32u32 {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let transposed = (column * 8 + row) | ((column + 1) * 8 + row) << 16;
        assert_eq!(found[lane as usize], transposed);
        assert_eq!(found[32 + lane as usize], (2 * lane) | ((2 * lane + 1) << 16));
    }
}

/// A shape of mma.sync whose operands are packed into 32-bit registers.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    k: usize,
    /// Elements in a register.
    packed: usize,
    /// Registers of A and of B.
    registers: [usize; 2],
    one: u32,
    /// What 1 x 1 gives.
    product: u32,
}

const SHAPES: [Shape; 8] = [
    Shape {
        name: "m16n8k16.row.col.f32.f16.f16.f32",
        k: 16,
        packed: 2,
        registers: [4, 2],
        one: 0x3C00,
        product: 0x3F80_0000,
    },
    Shape {
        name: "m16n8k8.row.col.f32.f16.f16.f32",
        k: 8,
        packed: 2,
        registers: [2, 1],
        one: 0x3C00,
        product: 0x3F80_0000,
    },
    Shape {
        name: "m16n8k16.row.col.f32.bf16.bf16.f32",
        k: 16,
        packed: 2,
        registers: [4, 2],
        one: 0x3F80,
        product: 0x3F80_0000,
    },
    Shape {
        name: "m16n8k8.row.col.f32.bf16.bf16.f32",
        k: 8,
        packed: 2,
        registers: [2, 1],
        one: 0x3F80,
        product: 0x3F80_0000,
    },
    Shape {
        name: "m16n8k8.row.col.f32.tf32.tf32.f32",
        k: 8,
        packed: 1,
        registers: [4, 2],
        one: 0x3F80_0000,
        product: 0x3F80_0000,
    },
    Shape { name: "m16n8k32.row.col.s32.s8.s8.s32", k: 32, packed: 4, registers: [4, 2], one: 1, product: 1 },
    Shape { name: "m16n8k16.row.col.s32.u8.s8.s32", k: 16, packed: 4, registers: [2, 1], one: 1, product: 1 },
    Shape { name: "m16n8k32.row.col.s32.u8.u8.s32", k: 32, packed: 4, registers: [4, 2], one: 1, product: 1 },
];

/// Lane, register and place in the register of an element of A, as the manual's figures give them.
fn place_of_a(shape: &Shape, row: usize, k: usize) -> (usize, usize, usize) {
    let half = 4 * shape.packed;
    let lane = row % 8 * 4 + k % half / shape.packed;
    (lane, row / 8 + 2 * (k / half), k % shape.packed)
}

/// The same of B.
fn place_of_b(shape: &Shape, k: usize, column: usize) -> (usize, usize, usize) {
    let half = 4 * shape.packed;
    (column * 4 + k % half / shape.packed, k / half, k % shape.packed)
}

/// A machine whose one kernel multiplies fragments: for each launch block, A, B and C come from its own part of memory.
fn product(shape: &Shape) -> Machine {
    let list = |name: &str, count: usize| (0..count).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ");
    let [of_a, of_b] = shape.registers;
    let body = format!(
        ".reg .b32 %lane, %cta, %a<4>, %b<2>, %c<4>; .reg .b64 %at, %offset, %base;
         ld.param.u64 %base, [p_data]; mov.u32 %lane, %tid.x; mov.u32 %cta, %ctaid.x;
         mad.lo.u32 %lane, %cta, 32, %lane; mul.wide.u32 %offset, %lane, 48; add.u64 %at, %base, %offset;
         ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%at]; ld.global.v2.b32 {{%b0, %b1}}, [%at+16];
         ld.global.v4.b32 {{%c0, %c1, %c2, %c3}}, [%at+32];
         mma.sync.aligned.{} {{{c}}}, {{{}}}, {{{}}}, {{{c}}};
         st.global.v4.b32 [%at+32], {{%c0, %c1, %c2, %c3}};",
        shape.name,
        list("a", of_a),
        list("b", of_b),
        c = list("c", 4)
    );
    Machine::new(&kernel(".param .u64 p_data", &body))
}

/// The fragments of one product: 12 words for each lane, A in 0..4, B in 4..6, C in 8..12.
struct Fragments(Vec<u32>);

impl Fragments {
    fn new() -> Self {
        Self(vec![0; 32 * 12])
    }

    fn set_a(&mut self, shape: &Shape, row: usize, k: usize, bits: u32) {
        let (lane, register, place) = place_of_a(shape, row, k);
        self.0[lane * 12 + register] |= bits << (place * 32 / shape.packed);
    }

    fn set_b(&mut self, shape: &Shape, k: usize, column: usize, bits: u32) {
        let (lane, register, place) = place_of_b(shape, k, column);
        self.0[lane * 12 + 4 + register] |= bits << (place * 32 / shape.packed);
    }

    fn c(words: &mut [u32], row: usize, column: usize) -> &mut u32 {
        &mut words[(row % 8 * 4 + column / 2) * 12 + 8 + row / 8 * 2 + column % 2]
    }
}

#[test]
fn one_hot_products_show_the_layout() {
    for shape in &SHAPES {
        let machine = product(shape);
        let mut probes = Vec::new();
        for row in 0..16 {
            for k in 0..shape.k {
                for (other, column) in [(k, row % 8), ((k + 1) % shape.k, row % 8), (k, (k + 3) % 8)] {
                    probes.push((row, k, other, column));
                }
            }
        }
        let mut data = Vec::new();
        for (row, k, other, column) in &probes {
            let mut fragments = Fragments::new();
            fragments.set_a(shape, *row, *k, shape.one);
            fragments.set_b(shape, *other, *column, shape.one);
            data.extend(fragments.0);
        }
        let pointer = machine.words(&data);
        machine.succeed(probes.len() as u32, 32, &[Arg::U64(pointer)], &Options::default());
        let mut found = machine.read(pointer, data.len());
        for ((row, k, other, column), words) in probes.iter().zip(found.chunks_exact_mut(32 * 12)) {
            for r in 0..16 {
                for c in 0..8 {
                    let hit = (r, c) == (*row, *column) && k == other;
                    let expected = if hit { shape.product } else { 0 };
                    assert_eq!(
                        *Fragments::c(words, r, c),
                        expected,
                        "{} A({row},{k}) B({other},{column}) D({r},{c})",
                        shape.name
                    );
                }
            }
        }
    }
}

#[test]
fn products_of_random_matrices() {
    let mut random = Random::new(12);
    for shape in &SHAPES {
        for mma in [MmaArithmetic::Fma, MmaArithmetic::Hopper] {
            let machine = product(shape);
            // Small whole numbers: every sum is exact in every arithmetic.
            let mut draw = |signed: bool| (random.next() % 16) as i32 - if signed { 8 } else { 0 };
            let integers = shape.name.contains("s32");
            let a_signed = !shape.name.contains("u8");
            let b_signed = !shape.name.contains("u8.u8");
            let a: Vec<i32> = (0..16 * shape.k).map(|_| draw(a_signed)).collect();
            let b: Vec<i32> = (0..8 * shape.k).map(|_| draw(b_signed)).collect();
            let start: Vec<i32> = (0..128).map(|_| draw(true) * 100).collect();
            let bits = |value: i32| match shape.packed {
                4 => value as u8 as u32,
                1 => (value as f32).to_bits(),
                _ if shape.name.contains("bf16") => u32::from(half::bf16::from_f32(value as f32).to_bits()),
                _ => u32::from(half::f16::from_f32(value as f32).to_bits()),
            };
            let result = |value: i32| if integers { value as u32 } else { (value as f32).to_bits() };
            let mut fragments = Fragments::new();
            for row in 0..16 {
                for k in 0..shape.k {
                    fragments.set_a(shape, row, k, bits(a[row * shape.k + k]));
                }
                for column in 0..8 {
                    *Fragments::c(&mut fragments.0, row, column) = result(start[row * 8 + column]);
                }
            }
            for k in 0..shape.k {
                for column in 0..8 {
                    fragments.set_b(shape, k, column, bits(b[k * 8 + column]));
                }
            }
            let pointer = machine.words(&fragments.0);
            machine.succeed(1, 32, &[Arg::U64(pointer)], &options(|o| o.mma = mma));
            let mut found = machine.read(pointer, 384);
            for row in 0..16 {
                for column in 0..8 {
                    let sum: i32 = (0..shape.k).map(|k| a[row * shape.k + k] * b[k * 8 + column]).sum();
                    let expected = result(start[row * 8 + column] + sum);
                    let found = *Fragments::c(&mut found, row, column);
                    // Zero has a sign in floating point; which one is not promised.
                    let same = found == expected || !integers && f32::from_bits(found) == f32::from_bits(expected);
                    assert!(same, "{} {mma:?} D({row},{column}): {found:#x} instead of {expected:#x}", shape.name);
                }
            }
        }
    }
}

#[test]
fn half_precision_accumulators() {
    let body = ".reg .b32 %one, %two, %d<2>, %zero, %lane; .reg .b64 %out, %offset; ld.param.u64 %out, [p_out];
        mov.u32 %lane, %tid.x; mul.wide.u32 %offset, %lane, 8; add.u64 %out, %out, %offset;
        mov.b32 %one, 0x3C003C00; mov.b32 %two, 0x40004000; mov.b32 %d0, 0x3C003C00; mov.b32 %d1, 0;
        mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%d0, %d1}, {%one, %two, %one, %two}, {%one, %one}, {%d0, %d1};
        st.global.v2.b32 [%out], {%d0, %d1};";
    let machine = Machine::new(&kernel(".param .u64 p_out", body));
    let out = machine.uninitialized(256);
    machine.succeed(1, 32, &[Arg::U64(out)], &Options::default());
    // Rows 0..8 sum 16 ones and start from 1, rows 8..16 sum 16 twos: 17 and 32 in f16.
    assert_eq!(machine.read(out, 64), [0x4C40_4C40, 0x5000_5000].repeat(32));
}

#[test]
fn the_whole_warp_multiplies() {
    for instruction in [
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%c, %c, %c, %c}, {%a, %a}, {%a}, {%c, %c, %c, %c};",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%a}, [tile];",
    ] {
        let body = format!(
            ".shared .align 16 .b8 tile[16]; .reg .b32 %lane, %a; .reg .f32 %c; .reg .pred %p; mov.u32 %lane, %tid.x;
             mov.b32 %a, 0; mov.f32 %c, 0f00000000; setp.lt.u32 %p, %lane, 31;\n@%p {instruction}"
        );
        let machine = Machine::new(&kernel("", &body));
        let fault = machine.run(1, 32, &[], &Options::default()).unwrap_err();
        assert_eq!((fault.kind, fault.line), (FaultKind::Divergence, 8), "{fault}");
    }
}
