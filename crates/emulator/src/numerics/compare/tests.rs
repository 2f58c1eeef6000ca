use super::*;
use crate::numerics::testing::{pairs, special_f32};

const ALL: [Comparison; 14] = [
    Comparison::Eq,
    Comparison::Ne,
    Comparison::Lt,
    Comparison::Le,
    Comparison::Gt,
    Comparison::Ge,
    Comparison::Equ,
    Comparison::Neu,
    Comparison::Ltu,
    Comparison::Leu,
    Comparison::Gtu,
    Comparison::Geu,
    Comparison::Num,
    Comparison::Nan,
];

/// The outcome from the four possible relations: less, equal, greater, unordered.
fn table(comparison: Comparison) -> [bool; 4] {
    let row = match comparison {
        Comparison::Eq => "0100",
        Comparison::Ne => "1010",
        Comparison::Lt => "1000",
        Comparison::Le => "1100",
        Comparison::Gt => "0010",
        Comparison::Ge => "0110",
        Comparison::Equ => "0101",
        Comparison::Neu => "1011",
        Comparison::Ltu => "1001",
        Comparison::Leu => "1101",
        Comparison::Gtu => "0011",
        Comparison::Geu => "0111",
        Comparison::Num => "1110",
        Comparison::Nan => "0001",
    };
    let mut bits = row.chars().map(|c| c == '1');
    std::array::from_fn(|_| bits.next() == Some(true))
}

fn relation<T: PartialOrd>(a: T, b: T) -> usize {
    a.partial_cmp(&b).map_or(3, |order| (order as i8 + 1) as usize)
}

#[test]
fn floats_follow_the_table() {
    for comparison in ALL {
        let table = table(comparison);
        for (a, b) in pairs(&special_f32()) {
            let (x, y) = (f32::from_bits(a), f32::from_bits(b));
            let lane = |compared| lanes(comparison, compared, &[a; 32], &[b; 32]);
            let spread = |set: bool| if set { u32::MAX } else { 0 };
            assert_eq!(lane(Compared::F32), spread(table[relation(x, y)]), "{comparison:?} {a:x} {b:x}");
            assert_eq!(floats(comparison, f64::from(x), f64::from(y)), table[relation(x, y)]);
            let flush = |v: f32| if v.is_subnormal() { 0.0 } else { v };
            assert_eq!(
                lane(Compared::F32Ftz),
                spread(table[relation(flush(x), flush(y))]),
                "{comparison:?} {a:x} {b:x}"
            );
        }
    }
}

#[test]
fn halves_compare_their_values_in_the_low_half() {
    let numbers: Vec<u32> = [0u32, 0x8000, 1, 0x8001, 0x3c00, 0x3f80, 0xbf80, 0x7c00, 0x7c01, 0x7f80, 0xff81].into();
    for comparison in ALL {
        for (a, b) in pairs(&numbers) {
            // What lies in the high half must not matter.
            let (low_a, low_b) = (a as u16, b as u16);
            let (a, b) = ([a | 0xdead_0000; 32], [b | 0xbeef_0000; 32]);
            let f16 = (f16_to_f32(low_a), f16_to_f32(low_b));
            let bf16 = (bf16_to_f32(low_a), bf16_to_f32(low_b));
            for (compared, (x, y)) in [(Compared::F16, f16), (Compared::Bf16, bf16)] {
                let expected = table(comparison)[relation(f32::from_bits(x), f32::from_bits(y))];
                assert_eq!(lanes(comparison, compared, &a, &b), if expected { u32::MAX } else { 0 });
            }
        }
    }
}

#[test]
fn integers_compare_with_their_signs() {
    let numbers = [0u32, 1, 2, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX];
    for comparison in &ALL[..6] {
        let table = table(*comparison);
        for (a, b) in pairs(&numbers) {
            let lane = |compared| lanes(*comparison, compared, &[a; 32], &[b; 32]) == u32::MAX;
            assert_eq!(lane(Compared::U32), table[relation(a, b)]);
            assert_eq!(lane(Compared::S32), table[relation(a as i32, b as i32)]);
            assert_eq!(lane(Compared::U16), table[relation(a as u16, b as u16)]);
            assert_eq!(lane(Compared::S16), table[relation(a as i16, b as i16)]);
            assert_eq!(integers(*comparison, a as i32 as i64, b as i32 as i64), table[relation(a as i32, b as i32)]);
        }
    }
    assert!(!integers(Comparison::Num, 1, 1));
}

#[test]
fn each_lane_has_its_bit() {
    let mut a = [0; 32];
    for lane in 0..32 {
        a[lane] = 1;
        assert_eq!(lanes(Comparison::Ne, Compared::U32, &a, &[0; 32]), 1 << lane);
        a[lane] = 0;
    }
}
