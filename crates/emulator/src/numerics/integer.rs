//! Integer operations with a rule worth writing down: bit fields, permutes, shifts, wide products and division.

/// `shl.b32`: amounts above 31 give zero.
#[inline(always)]
pub fn shl32(a: u32, amount: u32) -> u32 {
    if amount > 31 { 0 } else { a << (amount & 31) }
}

/// `shr.u32`: amounts above 31 give zero.
#[inline(always)]
pub fn shr_u32(a: u32, amount: u32) -> u32 {
    if amount > 31 { 0 } else { a >> (amount & 31) }
}

/// `shr.s32`: amounts above 31 give the sign everywhere.
#[inline(always)]
pub fn shr_s32(a: u32, amount: u32) -> u32 {
    ((a as i32) >> amount.min(31)) as u32
}

/// `shl.b64`: the amount is a 32-bit register; amounts above 63 give zero.
#[inline(always)]
pub fn shl64(a: u64, amount: u32) -> u64 {
    if amount > 63 { 0 } else { a << (amount & 63) }
}

/// `shr.u64`: amounts above 63 give zero.
#[inline(always)]
pub fn shr_u64(a: u64, amount: u32) -> u64 {
    if amount > 63 { 0 } else { a >> (amount & 63) }
}

/// `shr.s64`: amounts above 63 give the sign everywhere.
#[inline(always)]
pub fn shr_s64(a: u64, amount: u32) -> u64 {
    ((a as i64) >> amount.min(63)) as u64
}

/// `shl.b16` on the low half of a register; amounts above 15 give zero.
#[inline(always)]
pub fn shl16(a: u16, amount: u32) -> u16 {
    if amount > 15 { 0 } else { a << (amount & 15) }
}

/// `shr.u16`: amounts above 15 give zero.
#[inline(always)]
pub fn shr_u16(a: u16, amount: u32) -> u16 {
    if amount > 15 { 0 } else { a >> (amount & 15) }
}

/// `shr.s16`: amounts above 15 give the sign everywhere.
#[inline(always)]
pub fn shr_s16(a: u16, amount: u32) -> u16 {
    ((a as i16) >> amount.min(15)) as u16
}

/// How a funnel shift treats an amount above 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Funnel {
    /// `.clamp`: at most 32.
    Clamp,
    /// `.wrap`: modulo 32.
    Wrap,
}

#[inline(always)]
fn funnel_amount(amount: u32, mode: Funnel) -> u32 {
    match mode {
        Funnel::Clamp => amount.min(32),
        Funnel::Wrap => amount & 31,
    }
}

/// `shf.l`: the high word of `hi:lo << amount`.
#[inline(always)]
pub fn shf_l(lo: u32, hi: u32, amount: u32, mode: Funnel) -> u32 {
    let wide = (u64::from(hi) << 32) | u64::from(lo);
    ((wide << funnel_amount(amount, mode)) >> 32) as u32
}

/// `shf.r`: the low word of `hi:lo >> amount`.
#[inline(always)]
pub fn shf_r(lo: u32, hi: u32, amount: u32, mode: Funnel) -> u32 {
    let wide = (u64::from(hi) << 32) | u64::from(lo);
    (wide >> funnel_amount(amount, mode)) as u32
}

/// `lop3.b32`: bit `i` of the table is the result for inputs `(a, b, c)` whose bits spell `i`, `a` first.
#[inline(always)]
pub fn lop3(a: u32, b: u32, c: u32, table: u8) -> u32 {
    // Each table bit, spread over the word, selects one of the eight minterms; two-way muxes by c, b and a pick it.
    let spread = |i: u32| 0u32.wrapping_sub(u32::from(table) >> i & 1);
    let mux = |select: u32, zero: u32, one: u32| zero ^ (select & (zero ^ one));
    let low = mux(b, mux(c, spread(0), spread(1)), mux(c, spread(2), spread(3)));
    let high = mux(b, mux(c, spread(4), spread(5)), mux(c, spread(6), spread(7)));
    mux(a, low, high)
}

/// `bfe.u32`: `length` bits from `position`; both take their low 8 bits; bits beyond the word read as zero.
#[inline(always)]
pub fn bfe_u32(a: u32, position: u32, length: u32) -> u32 {
    let (position, length) = (position & 255, length & 255);
    shr_u32(a, position) & low_bits32(length)
}

/// `bfe.s32`: as `bfe.u32`, then extended with the field's top bit, or with bit 31 where the field ends beyond it.
#[inline(always)]
pub fn bfe_s32(a: u32, position: u32, length: u32) -> u32 {
    let (position, length) = (position & 255, length & 255);
    if length == 0 {
        return 0;
    }
    let kept = length.min(32u32.saturating_sub(position));
    if kept == 0 {
        return shr_s32(a, 31);
    }
    (((a >> position) << (32 - kept)) as i32 >> (32 - kept)) as u32
}

/// `bfe.u64`, as [`bfe_u32`].
#[inline(always)]
pub fn bfe_u64(a: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 255, length & 255);
    shr_u64(a, position) & low_bits64(length)
}

/// `bfe.s64`, as [`bfe_s32`].
#[inline(always)]
pub fn bfe_s64(a: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 255, length & 255);
    if length == 0 {
        return 0;
    }
    let kept = length.min(64u32.saturating_sub(position));
    if kept == 0 {
        return shr_s64(a, 63);
    }
    (((a >> position) << (64 - kept)) as i64 >> (64 - kept)) as u64
}

/// `bfi.b32`: inserts the low `length` bits of `a` into `b` at `position`; both take their low 8 bits.
#[inline(always)]
pub fn bfi32(a: u32, b: u32, position: u32, length: u32) -> u32 {
    let (position, length) = (position & 255, length & 255);
    let field = shl32(low_bits32(length), position);
    (b & !field) | (shl32(a, position) & field)
}

/// `bfi.b64`, as [`bfi32`].
#[inline(always)]
pub fn bfi64(a: u64, b: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 255, length & 255);
    let field = shl64(low_bits64(length), position);
    (b & !field) | (shl64(a, position) & field)
}

#[inline(always)]
fn low_bits32(count: u32) -> u32 {
    if count > 31 { u32::MAX } else { (1 << (count & 31)) - 1 }
}

#[inline(always)]
fn low_bits64(count: u32) -> u64 {
    if count > 63 { u64::MAX } else { (1 << (count & 63)) - 1 }
}

/// `bmsk.clamp.b32`: `length` ones from `position`; both clamp at 32.
#[inline(always)]
pub fn bmsk_clamp(position: u32, length: u32) -> u32 {
    shl32(low_bits32(length.min(32)), position.min(32))
}

/// `bmsk.wrap.b32`: `length` ones from `position`; both are taken modulo 32.
#[inline(always)]
pub fn bmsk_wrap(position: u32, length: u32) -> u32 {
    low_bits32(length & 31) << (position & 31)
}

/// `szext.u32`: zero-extends from `count` bits; with `wrap` the count is modulo 32, else 32 and more keep the word.
#[inline(always)]
pub fn szext_u32(a: u32, count: u32, wrap: bool) -> u32 {
    a & low_bits32(if wrap { count & 31 } else { count })
}

/// `szext.s32`: sign-extends from `count` bits, as [`szext_u32`]; a count of zero gives zero.
#[inline(always)]
pub fn szext_s32(a: u32, count: u32, wrap: bool) -> u32 {
    let count = if wrap { count & 31 } else { count.min(32) };
    if count == 0 { 0 } else { ((a << (32 - count)) as i32 >> (32 - count)) as u32 }
}

/// The modes of `prmt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permute {
    /// Four selectors of four bits: a byte of `b:a` each, or with bit 3 its sign in all eight bits.
    Index,
    /// `.f4e`: four bytes forward from the selected one.
    Forward4,
    /// `.b4e`: four bytes backward from the selected one.
    Backward4,
    /// `.rc8`: one byte of `a` replicated.
    Replicate8,
    /// `.ecl`: clamp to the left of the selected byte of `a`.
    EdgeClampLeft,
    /// `.ecr`: clamp to the right of the selected byte of `a`.
    EdgeClampRight,
    /// `.rc16`: one half of `a` replicated.
    Replicate16,
}

/// `prmt.b32`: picks four bytes of `b:a` (byte 0 is the low byte of `a`).
#[inline(always)]
pub fn prmt(a: u32, b: u32, selector: u32, mode: Permute) -> u32 {
    let wide = (u64::from(b) << 32) | u64::from(a);
    if mode == Permute::Index {
        let mut d = 0;
        for i in 0..4 {
            let pick = selector >> (4 * i);
            let byte = (wide >> (8 * (pick & 7))) as u8;
            let value = if pick & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
            d |= u32::from(value) << (8 * i);
        }
        return d;
    }
    let s = selector & 3;
    let mut d = 0;
    for i in 0..4u32 {
        let index = match mode {
            Permute::Forward4 => s + i,
            Permute::Backward4 => (s + 8 - i) & 7,
            Permute::EdgeClampLeft => i.max(s),
            Permute::EdgeClampRight => i.min(s),
            Permute::Replicate16 => 2 * (s & 1) + (i & 1),
            Permute::Replicate8 | Permute::Index => s,
        };
        d |= u32::from((wide >> (8 * index)) as u8) << (8 * i);
    }
    d
}

/// `bfind.u32`: the position of the highest one, or all ones for zero; with `amount`, the left shift that brings it up.
#[inline(always)]
pub fn bfind_u32(a: u32, amount: bool) -> u32 {
    if a == 0 {
        return u32::MAX;
    }
    let position = 31 - a.leading_zeros();
    if amount { 31 - position } else { position }
}

/// `bfind.s32`: as [`bfind_u32`] for the highest bit that differs from the sign.
#[inline(always)]
pub fn bfind_s32(a: u32, amount: bool) -> u32 {
    bfind_u32(a ^ ((a as i32) >> 31) as u32, amount)
}

/// `bfind.u64`, as [`bfind_u32`].
#[inline(always)]
pub fn bfind_u64(a: u64, amount: bool) -> u32 {
    if a == 0 {
        return u32::MAX;
    }
    let position = 63 - a.leading_zeros();
    if amount { 63 - position } else { position }
}

/// `bfind.s64`, as [`bfind_s32`].
#[inline(always)]
pub fn bfind_s64(a: u64, amount: bool) -> u32 {
    bfind_u64(a ^ ((a as i64) >> 63) as u64, amount)
}

/// `fns.b32`: the position of the `offset`-th set bit of `mask`, counted upward from `base` (downward for a negative
/// offset; zero asks for `base` itself), or all ones where there is none.
#[inline(always)]
pub fn fns(mask: u32, base: u32, offset: u32) -> u32 {
    let offset = offset as i32;
    let base = base as i32;
    if offset == 0 {
        return if (0..32).contains(&base) && mask >> base & 1 == 1 { base as u32 } else { u32::MAX };
    }
    let (step, mut left) = if offset > 0 { (1, offset) } else { (-1, offset.saturating_neg()) };
    let mut position = base;
    while (0..32).contains(&position) {
        left -= i32::from(mask >> position & 1 == 1);
        if left == 0 {
            return position as u32;
        }
        position += step;
    }
    u32::MAX
}

/// `brev.b32`.
#[inline(always)]
pub fn brev32(a: u32) -> u32 {
    a.reverse_bits()
}

/// `brev.b64`.
#[inline(always)]
pub fn brev64(a: u64) -> u64 {
    a.reverse_bits()
}

/// `sad.u32`: `c + |a - b|`.
#[inline(always)]
pub fn sad_u32(a: u32, b: u32, c: u32) -> u32 {
    c.wrapping_add(a.abs_diff(b))
}

/// `sad.s32`: `c + |a - b|` with signed operands.
#[inline(always)]
pub fn sad_s32(a: u32, b: u32, c: u32) -> u32 {
    c.wrapping_add((a as i32).abs_diff(b as i32))
}

/// `mul.hi.u32`.
#[inline(always)]
pub fn mul_hi_u32(a: u32, b: u32) -> u32 {
    (mul_wide_u32(a, b) >> 32) as u32
}

/// `mul.hi.s32`.
#[inline(always)]
pub fn mul_hi_s32(a: u32, b: u32) -> u32 {
    (mul_wide_s32(a, b) >> 32) as u32
}

/// `mul.hi.u64`.
#[inline(always)]
pub fn mul_hi_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// `mul.hi.s64`.
#[inline(always)]
pub fn mul_hi_s64(a: u64, b: u64) -> u64 {
    ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
}

/// `mul.wide.u32`.
#[inline(always)]
pub fn mul_wide_u32(a: u32, b: u32) -> u64 {
    u64::from(a) * u64::from(b)
}

/// `mul.wide.s32`.
#[inline(always)]
pub fn mul_wide_s32(a: u32, b: u32) -> u64 {
    (i64::from(a as i32) * i64::from(b as i32)) as u64
}

/// `mad.wide.u32`: the product in 64 bits plus `c`, which wraps.
#[inline(always)]
pub fn mad_wide_u32(a: u32, b: u32, c: u64) -> u64 {
    mul_wide_u32(a, b).wrapping_add(c)
}

/// `mad.wide.s32`: as [`mad_wide_u32`], signed.
#[inline(always)]
pub fn mad_wide_s32(a: u32, b: u32, c: u64) -> u64 {
    mul_wide_s32(a, b).wrapping_add(c)
}

/// `mul24.lo.u32`: the low word of the product of the low 24 bits.
#[inline(always)]
pub fn mul24_lo_u32(a: u32, b: u32) -> u32 {
    (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)
}

/// `mul24.lo.s32`: as [`mul24_lo_u32`] on sign-extended 24-bit values.
#[inline(always)]
pub fn mul24_lo_s32(a: u32, b: u32) -> u32 {
    let extend = |x: u32| ((x << 8) as i32) >> 8;
    extend(a).wrapping_mul(extend(b)) as u32
}

/// `add.sat.s32`.
#[inline(always)]
pub fn add_sat_s32(a: u32, b: u32) -> u32 {
    (a as i32).saturating_add(b as i32) as u32
}

/// `sub.sat.s32`.
#[inline(always)]
pub fn sub_sat_s32(a: u32, b: u32) -> u32 {
    (a as i32).saturating_sub(b as i32) as u32
}

/// `mad.hi.sat.s32`: the high word of the product plus `c`, clamped.
#[inline(always)]
pub fn mad_hi_sat_s32(a: u32, b: u32, c: u32) -> u32 {
    add_sat_s32(mul_hi_s32(a, b), c)
}

/// `div.u32`: a zero divisor gives all ones.
#[inline(always)]
pub fn div_u32(a: u32, b: u32) -> u32 {
    a.checked_div(b).unwrap_or(u32::MAX)
}

/// `rem.u32`: a zero divisor gives the dividend.
#[inline(always)]
pub fn rem_u32(a: u32, b: u32) -> u32 {
    a.checked_rem(b).unwrap_or(a)
}

/// `div.s32`: a zero divisor gives all ones; the one overflow (`MIN / -1`) wraps to `MIN`.
#[inline(always)]
pub fn div_s32(a: u32, b: u32) -> u32 {
    if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 }
}

/// `rem.s32`: a zero divisor gives the dividend; the sign follows the dividend.
#[inline(always)]
pub fn rem_s32(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 }
}

/// `div.u64`, as [`div_u32`].
#[inline(always)]
pub fn div_u64(a: u64, b: u64) -> u64 {
    a.checked_div(b).unwrap_or(u64::MAX)
}

/// `rem.u64`, as [`rem_u32`].
#[inline(always)]
pub fn rem_u64(a: u64, b: u64) -> u64 {
    a.checked_rem(b).unwrap_or(a)
}

/// `div.s64`, as [`div_s32`].
#[inline(always)]
pub fn div_s64(a: u64, b: u64) -> u64 {
    if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 }
}

/// `rem.s64`, as [`rem_s32`].
#[inline(always)]
pub fn rem_s64(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }
}

#[inline(always)]
fn byte(x: u32, i: u32, signed: bool) -> i32 {
    let raw = (x >> (8 * i)) as u8;
    if signed { i32::from(raw as i8) } else { i32::from(raw) }
}

/// `dp4a`: `c` plus the dot product of four bytes; each side has its own signedness. The sum wraps.
#[inline(always)]
pub fn dp4a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let mut sum = c;
    for i in 0..4 {
        sum = sum.wrapping_add((byte(a, i, a_signed) * byte(b, i, b_signed)) as u32);
    }
    sum
}

/// `dp2a`: `c` plus the products of both halves of `a` with bytes 0 and 1 of `b`, or 2 and 3 for `.hi`. The sum wraps.
#[inline(always)]
pub fn dp2a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool, high: bool) -> u32 {
    let mut sum = c;
    for i in 0..2 {
        let raw = (a >> (16 * i)) as u16;
        let half = if a_signed { i32::from(raw as i16) } else { i32::from(raw) };
        let term = half.wrapping_mul(byte(b, i + if high { 2 } else { 0 }, b_signed));
        sum = sum.wrapping_add(term as u32);
    }
    sum
}

#[cfg(test)]
mod tests;
