//! Conversions between widths, comparisons and selections.

use super::{check, s, signed, word};
use crate::harness::{B16, B32, B64};

#[test]
fn conversions_between_integers() {
    check(
        B64,
        &[B32],
        &[
            ("cvt.u64.u32 %d, %a;", |v| v[0]),
            ("cvt.s64.s32 %d, %a;", |v| i64::from(s(v[0])) as u64),
            ("cvt.u64.s32 %d, %a;", |v| i64::from(s(v[0])) as u64),
            ("cvt.s64.u32 %d, %a;", |v| v[0]),
        ],
    );
    check(
        B32,
        &[B64],
        &[
            ("cvt.u32.u64 %d, %a;", |v| word(v[0] as u32)),
            ("cvt.sat.u32.u64 %d, %a;", |v| v[0].min(0xFFFF_FFFF)),
            ("cvt.sat.s32.s64 %d, %a;", |v| signed((v[0] as i64).clamp(i32::MIN.into(), i32::MAX.into()) as i32)),
            (".reg .b32 %x; mov.b64 {%d, %x}, %a;", |v| word(v[0] as u32)),
            (".reg .b32 %x; mov.b64 {%x, %d}, %a;", |v| v[0] >> 32),
        ],
    );
    check(
        B32,
        &[B32],
        &[
            ("cvt.u32.u8 %d, %a;", |v| v[0] & 255),
            ("cvt.s32.s8 %d, %a;", |v| signed(i32::from(v[0] as i8))),
            ("cvt.u32.u16 %d, %a;", |v| v[0] & 0xFFFF),
            ("cvt.s32.s16 %d, %a;", |v| signed(i32::from(v[0] as i16))),
            ("cvt.sat.u32.s32 %d, %a;", |v| signed(s(v[0]).max(0))),
            ("cvt.sat.s32.u32 %d, %a;", |v| v[0].min(0x7FFF_FFFF)),
            ("cvt.sat.u8.s32 %d, %a;", |v| signed(s(v[0]).clamp(0, 255))),
            ("cvt.sat.s8.s32 %d, %a;", |v| signed(s(v[0]).clamp(-128, 127))),
        ],
    );
    check(
        B16,
        &[B32],
        &[
            ("cvt.u16.u32 %d, %a;", |v| v[0] & 0xFFFF),
            ("cvt.sat.s16.s32 %d, %a;", |v| signed(s(v[0]).clamp(-32768, 32767)) & 0xFFFF),
        ],
    );
}

#[test]
fn comparisons_and_selection() {
    macro_rules! compare {
        ($($name:literal $ty:literal $cast:ty, $operator:tt);* $(;)?) => {
            check(B32, &[B32, B32], &[$((
                concat!("setp.", $name, ".", $ty, " %p, %a, %b; selp.b32 %d, 7, 3, %p;"),
                |v| if (v[0] as $cast) $operator (v[1] as $cast) { 7 } else { 3 },
            )),*]);
        };
    }
    compare!(
        "eq" "u32" u32, ==; "ne" "u32" u32, !=; "lt" "u32" u32, <; "le" "u32" u32, <=; "gt" "u32" u32, >; "ge" "u32" u32, >=;
        "lo" "u32" u32, <; "ls" "u32" u32, <=; "hi" "u32" u32, >; "hs" "u32" u32, >=;
        "eq" "s32" i32, ==; "ne" "s32" i32, !=; "lt" "s32" i32, <; "le" "s32" i32, <=; "gt" "s32" i32, >; "ge" "s32" i32, >=;
        "eq" "b32" u32, ==; "ne" "b32" u32, !=;
    );
    check(
        B32,
        &[B64, B64],
        &[
            ("setp.lt.u64 %p, %a, %b; selp.b32 %d, 1, 0, %p;", |v| u64::from(v[0] < v[1])),
            ("setp.lt.s64 %p, %a, %b; selp.b32 %d, 1, 0, %p;", |v| u64::from((v[0] as i64) < v[1] as i64)),
            ("setp.eq.b64 %p, %a, %b; selp.b32 %d, 1, 0, %p;", |v| u64::from(v[0] == v[1])),
        ],
    );
    check(
        B32,
        &[B32, B32],
        &[
            ("setp.lt.u32 %p|%q, %a, %b; selp.b32 %d, 1, 0, %q;", |v| u64::from(v[0] >= v[1])),
            ("setp.eq.u32 %q, %a, 0; setp.lt.and.u32 %p, %a, %b, %q; selp.b32 %d, 1, 0, %p;", |v| {
                u64::from(v[0] < v[1] && v[0] == 0)
            }),
            ("setp.eq.u32 %q, %a, 0; setp.lt.or.u32 %p, %a, %b, !%q; selp.b32 %d, 1, 0, %p;", |v| {
                u64::from(v[0] < v[1] || v[0] != 0)
            }),
            ("setp.eq.u32 %q, %a, 0; setp.lt.xor.u32 %p|%q, %a, %b, %q; selp.b32 %d, 1, 0, %q;", |v| {
                u64::from((v[0] >= v[1]) != (v[0] == 0))
            }),
            ("set.lt.u32.u32 %d, %a, %b;", |v| if v[0] < v[1] { 0xFFFF_FFFF } else { 0 }),
            ("set.lt.f32.s32 %d, %a, %b;", |v| if s(v[0]) < s(v[1]) { 0x3F80_0000 } else { 0 }),
            ("slct.b32.s32 %d, %a, 77, %b;", |v| if s(v[1]) >= 0 { v[0] } else { 77 }),
            ("setp.lt.u32 %p, %a, %b; setp.gt.u32 %q, %a, 31; and.pred %p, %p, %q; selp.b32 %d, 1, 0, %p;", |v| {
                u64::from(v[0] < v[1] && v[0] > 31)
            }),
            (
                "setp.lt.u32 %p, %a, %b; setp.gt.u32 %q, %a, 31; xor.pred %p, %p, %q; not.pred %p, %p; selp.b32 %d, 1, 0, %p;",
                |v| u64::from((v[0] < v[1]) == (v[0] > 31)),
            ),
            ("setp.lt.u32 %p, %a, %b; mov.b32 %d, 5; @%p mov.b32 %d, 6; @!%p add.u32 %d, %d, 2;", |v| {
                if v[0] < v[1] { 6 } else { 7 }
            }),
        ],
    );
}
