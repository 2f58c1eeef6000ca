use super::*;
use crate::numerics::testing::Random;

/// A bit of a word, or zero beyond it.
fn bit(a: u64, i: u32) -> u64 {
    if i < 64 { a >> i & 1 } else { 0 }
}

/// Bit field extraction, bit by bit, as the ISA's pseudocode has it.
fn bfe_model(a: u64, position: u32, length: u32, width: u32, signed: bool) -> u64 {
    let (position, length) = (position & 255, length & 255);
    let top = width - 1;
    let sign = if signed && length > 0 { bit(a, (position + length - 1).min(top)) } else { 0 };
    (0..width).map(|i| if i < length && position + i <= top { bit(a, position + i) << i } else { sign << i }).sum()
}

fn bfi_model(a: u64, b: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 255, length & 255);
    let mut d = b;
    for i in 0..length {
        if position + i < width {
            d = d & !(1 << (position + i)) | bit(a, i) << (position + i);
        }
    }
    d
}

#[test]
fn bit_fields_follow_the_pseudocode() {
    let mut random = Random::new(20);
    let amounts = [0, 1, 2, 7, 8, 15, 16, 30, 31, 32, 33, 62, 63, 64, 65, 127, 254, 255, 256, 257, 0x1_0008, u32::MAX];
    for _ in 0..60 {
        let (a, b) = (random.u64(), random.u64());
        let (a32, b32) = (a as u32, b as u32);
        for p in amounts {
            for l in amounts {
                assert_eq!(u64::from(bfe_u32(a32, p, l)), bfe_model(a32.into(), p, l, 32, false), "{a32:x} {p} {l}");
                assert_eq!(u64::from(bfe_s32(a32, p, l)), bfe_model(a32.into(), p, l, 32, true), "{a32:x} {p} {l}");
                assert_eq!(bfe_u64(a, p, l), bfe_model(a, p, l, 64, false));
                assert_eq!(bfe_s64(a, p, l), bfe_model(a, p, l, 64, true));
                assert_eq!(u64::from(bfi32(a32, b32, p, l)), bfi_model(a32.into(), b32.into(), p, l, 32));
                assert_eq!(bfi64(a, b, p, l), bfi_model(a, b, p, l, 64));
            }
        }
    }
}

#[test]
fn shifts_clamp() {
    for amount in [0, 1, 15, 16, 31, 32, 33, 63, 64, 65, 255, 256, u32::MAX] {
        let a = 0x8765_4321_8765_4321u64;
        let (a32, a16) = (a as u32, a as u16);
        let by = |width: u32| amount.min(width);
        assert_eq!(u64::from(shl32(a32, amount)), (u64::from(a32) << by(32)) & 0xffff_ffff);
        assert_eq!(u64::from(shr_u32(a32, amount)), u64::from(a32) >> by(32));
        assert_eq!(shr_s32(a32, amount), (i64::from(a32 as i32) >> by(32)) as u32);
        assert_eq!(u128::from(shl64(a, amount)), (u128::from(a) << by(64)) & u128::from(u64::MAX));
        assert_eq!(u128::from(shr_u64(a, amount)), u128::from(a) >> by(64));
        assert_eq!(shr_s64(a, amount), (i128::from(a as i64) >> by(64)) as u64);
        assert_eq!(shl16(a16, amount), (u32::from(a16) << by(16)) as u16);
        assert_eq!(shr_u16(a16, amount), (u32::from(a16) >> by(16)) as u16);
        assert_eq!(shr_s16(a16 | 0x8000, amount), (i32::from((a16 | 0x8000) as i16) >> by(16)) as u16);
        let wide = u128::from(a);
        let (lo, hi) = (a as u32, (a >> 32) as u32);
        for (mode, by) in [(Funnel::Clamp, amount.min(32)), (Funnel::Wrap, amount & 31)] {
            assert_eq!(shf_l(lo, hi, amount, mode), ((wide << by) >> 32) as u32);
            assert_eq!(shf_r(lo, hi, amount, mode), (wide >> by) as u32);
        }
    }
}

#[test]
fn lop3_reads_its_table() {
    let (a, b, c) = (0xf0f0_f0f0, 0xcccc_cccc, 0xaaaa_aaaa);
    for table in 0..=255u8 {
        assert_eq!(lop3(a, b, c, table), u32::from(table) * 0x0101_0101);
    }
    assert_eq!(lop3(0x1234, 0xff00, 0x0ff0, 0xc0), 0x1234 & 0xff00);
    assert_eq!(lop3(0x1234, 0xff00, 0x0ff0, 0x96), 0x1234 ^ 0xff00 ^ 0x0ff0);
}

#[test]
fn prmt_in_every_mode() {
    let (a, b) = (0x83_22_91_10, 0x77_e6_55_c4);
    let bytes = [0x10u32, 0x91, 0x22, 0x83, 0xc4, 0x55, 0xe6, 0x77];
    let word = |pick: [usize; 4]| (0..4).map(|i| bytes[pick[i]] << (8 * i)).sum::<u32>();
    let mut random = Random::new(21);
    for _ in 0..10_000 {
        let selector = random.u32();
        let mut expected = 0;
        for i in 0..4 {
            let nibble = selector >> (4 * i) & 15;
            let byte = bytes[(nibble & 7) as usize];
            let byte = if nibble & 8 == 0 {
                byte
            } else if byte & 0x80 == 0 {
                0
            } else {
                0xff
            };
            expected |= byte << (8 * i);
        }
        assert_eq!(prmt(a, b, selector, Permute::Index), expected, "{selector:x}");
    }
    // The table of the ISA, rows by the two low bits of the selector, most significant byte first there.
    let rows = [
        (Permute::Forward4, [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]),
        (Permute::Backward4, [[0, 7, 6, 5], [1, 0, 7, 6], [2, 1, 0, 7], [3, 2, 1, 0]]),
        (Permute::Replicate8, [[0; 4], [1; 4], [2; 4], [3; 4]]),
        (Permute::EdgeClampLeft, [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]]),
        (Permute::EdgeClampRight, [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]),
        (Permute::Replicate16, [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]),
    ];
    for (mode, picks) in rows {
        for (selector, pick) in picks.into_iter().enumerate() {
            assert_eq!(prmt(a, b, selector as u32 | 0xfff0, mode), word(pick), "{mode:?} {selector}");
        }
    }
}

#[test]
fn masks_and_extensions() {
    assert_eq!(
        (bmsk_clamp(4, 8), bmsk_clamp(28, 8), bmsk_clamp(32, 8), bmsk_clamp(0, 99)),
        (0xff0, 0xf000_0000, 0, u32::MAX)
    );
    assert_eq!((bmsk_wrap(4, 8), bmsk_wrap(36, 40), bmsk_wrap(0, 32)), (0xff0, 0xff0, 0));
    assert_eq!((szext_u32(0xdead_beef, 8, false), szext_u32(0xdead_beef, 40, true)), (0xef, 0xef));
    assert_eq!((szext_u32(0xdead_beef, 32, false), szext_u32(0xdead_beef, 32, true)), (0xdead_beef, 0));
    assert_eq!((szext_s32(0xef, 8, false), szext_s32(0x6f, 8, false)), (0xffff_ffef, 0x6f));
    assert_eq!((szext_s32(0xef, 0, false), szext_s32(0xef, 99, false), szext_s32(0xef, 32, true)), (0, 0xef, 0));
}

#[test]
fn finding_bits() {
    for i in 0..64u32 {
        let a = 1u64 << i | 1;
        assert_eq!((bfind_u64(a, false), bfind_u64(a, true)), (i, 63 - i));
        if i < 63 {
            assert_eq!(bfind_s64(!a, false), bfind_s64(a, false));
        }
        if i < 32 {
            assert_eq!((bfind_u32(a as u32, false), bfind_u32(a as u32, true)), (i, 31 - i));
        }
        if i < 31 {
            assert_eq!(bfind_s32(!(a as u32), false), if i == 0 { 0 } else { i });
        }
    }
    assert_eq!(
        [bfind_u32(0, false), bfind_u32(0, true), bfind_s32(u32::MAX, false), bfind_s32(0, true)],
        [u32::MAX; 4]
    );
    assert_eq!([bfind_u64(0, false), bfind_s64(u64::MAX, true)], [u32::MAX; 2]);
    let mask = 0b1010_0100;
    assert_eq!([fns(mask, 0, 1), fns(mask, 2, 1), fns(mask, 3, 1), fns(mask, 0, 3)], [2, 2, 5, 7]);
    assert_eq!([fns(mask, 7, 1u32.wrapping_neg()), fns(mask, 6, 2u32.wrapping_neg()), fns(mask, 5, 0)], [7, 2, 5]);
    assert_eq!([fns(mask, 0, 4), fns(mask, 6, 0), fns(mask, 1, u32::MAX), fns(mask, 0, 1 << 31)], [u32::MAX; 4]);
    assert_eq!((brev32(1), brev64(2)), (1 << 31, 1 << 62));
}

#[test]
fn products_sums_and_dot_products() {
    let mut random = Random::new(22);
    for _ in 0..20_000 {
        let (a, b, c) = (random.u32(), random.u32(), random.u32());
        let (x, y) = (random.u64(), random.u64());
        let (sa, sb) = (i128::from(a as i32), i128::from(b as i32));
        assert_eq!(u128::from(mul_wide_u32(a, b)), u128::from(a) * u128::from(b));
        assert_eq!(i128::from(mul_wide_s32(a, b) as i64), sa * sb);
        assert_eq!(mul_hi_u32(a, b), ((u128::from(a) * u128::from(b)) >> 32) as u32);
        assert_eq!(mul_hi_s32(a, b), ((sa * sb) >> 32) as u32);
        // The high halves of 64-bit products, by four 32-bit ones.
        let (xl, xh, yl, yh) = (x & 0xffff_ffff, x >> 32, y & 0xffff_ffff, y >> 32);
        let middle = ((xl * yl) >> 32) + ((xh * yl) & 0xffff_ffff) + ((xl * yh) & 0xffff_ffff);
        let high = xh * yh + ((xh * yl) >> 32) + ((xl * yh) >> 32) + (middle >> 32);
        assert_eq!(mul_hi_u64(x, y), high);
        let fix = |s: u64, other: u64| if (s as i64) < 0 { other } else { 0 };
        assert_eq!(mul_hi_s64(x, y), high.wrapping_sub(fix(x, y)).wrapping_sub(fix(y, x)));
        assert_eq!(mad_wide_u32(a, b, x), mul_wide_u32(a, b).wrapping_add(x));
        assert_eq!(mad_wide_s32(a, b, x), mul_wide_s32(a, b).wrapping_add(x));
        assert_eq!(mul24_lo_u32(a, b), (u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) as u32);
        let s24 = |v: u32| i64::from((v << 8) as i32 >> 8);
        assert_eq!(mul24_lo_s32(a, b), (s24(a) * s24(b)) as u32);
        let clamp = |v: i128| v.clamp(i32::MIN.into(), i32::MAX.into()) as u32;
        assert_eq!(add_sat_s32(a, b), clamp(sa + sb));
        assert_eq!(sub_sat_s32(a, b), clamp(sa - sb));
        assert_eq!(mad_hi_sat_s32(a, b, c), clamp(((sa * sb) >> 32) + i128::from(c as i32)));
        assert_eq!(sad_u32(a, b, c), (i128::from(a) - i128::from(b)).unsigned_abs().wrapping_add(c.into()) as u32);
        assert_eq!(sad_s32(a, b, c), (sa - sb).unsigned_abs().wrapping_add(c.into()) as u32);
        for signs in 0..4 {
            let (a_signed, b_signed) = (signs & 1 != 0, signs & 2 != 0);
            let part = |v: u32, i: usize, signed: bool| {
                let raw = v.to_le_bytes()[i];
                if signed { i64::from(raw as i8) } else { i64::from(raw) }
            };
            let dot: i64 = (0..4).map(|i| part(a, i, a_signed) * part(b, i, b_signed)).sum();
            assert_eq!(dp4a(a, b, c, a_signed, b_signed), (dot + i64::from(c)) as u32);
            for high in [false, true] {
                let half = |i: u32| {
                    let raw = (a >> (16 * i)) as u16;
                    if a_signed { i64::from(raw as i16) } else { i64::from(raw) }
                };
                let dot: i64 = (0..2).map(|i| half(i) * part(b, i as usize + if high { 2 } else { 0 }, b_signed)).sum();
                assert_eq!(dp2a(a, b, c, a_signed, b_signed, high), (dot + i64::from(c)) as u32);
            }
        }
    }
}

#[test]
fn division_never_faults() {
    for a in [0, 1, 7, u32::MAX, 1 << 31, 0x7fff_ffff] {
        assert_eq!([div_u32(a, 0), div_s32(a, 0)], [u32::MAX; 2]);
        assert_eq!([rem_u32(a, 0), rem_s32(a, 0)], [a; 2]);
        let wide = u64::from(a) << 32 | 5;
        assert_eq!([div_u64(wide, 0), div_s64(wide, 0)], [u64::MAX; 2]);
        assert_eq!([rem_u64(wide, 0), rem_s64(wide, 0)], [wide; 2]);
    }
    assert_eq!((div_s32(1 << 31, u32::MAX), rem_s32(1 << 31, u32::MAX)), (1 << 31, 0));
    assert_eq!((div_s64(1 << 63, u64::MAX), rem_s64(1 << 63, u64::MAX)), (1 << 63, 0));
    assert_eq!((div_s32(7u32.wrapping_neg(), 2), rem_s32(7u32.wrapping_neg(), 2)), (3u32.wrapping_neg(), u32::MAX));
    assert_eq!((div_u32(7, 2), rem_u32(7, 2), div_u64(1 << 40, 3), rem_u64(1 << 40, 3)), (3, 1, (1 << 40) / 3, 1));
    assert_eq!((div_s64(7u64.wrapping_neg(), 2), rem_s64(7u64.wrapping_neg(), 2)), (3u64.wrapping_neg(), u64::MAX));
}
