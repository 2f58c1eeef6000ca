//! Integer operations by their definition, in 128 bits.

/// An integer type of PTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integer {
    /// 8, 16, 32 or 64.
    pub bits: u32,
    /// `.s` rather than `.u`.
    pub signed: bool,
}

impl Integer {
    /// The type of that name: `s32`, `u16`, `b64`.
    pub fn named(name: &str) -> Option<Self> {
        let (kind, bits) = name.split_at_checked(1)?;
        let bits = bits.parse().ok().filter(|bits| matches!(bits, 8 | 16 | 32 | 64))?;
        matches!(kind, "s" | "u" | "b").then_some(Self { bits, signed: kind == "s" })
    }

    /// The value of the low bits of a register.
    pub fn value(self, raw: u64) -> i128 {
        let unused = 64 - self.bits;
        if self.signed { i128::from((raw << unused) as i64 >> unused) } else { i128::from(raw << unused >> unused) }
    }

    /// The low bits of a value.
    pub fn wrap(self, value: i128) -> u64 {
        value as u64 & self.mask()
    }

    /// Ones in the bits that the type has.
    pub fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// The smallest and the largest value.
    pub fn range(self) -> (i128, i128) {
        let size = 1i128 << self.bits;
        if self.signed { (-size / 2, size / 2 - 1) } else { (0, size - 1) }
    }

    /// The value of the type that is closest.
    pub fn clamp(self, value: i128) -> u64 {
        let (least, most) = self.range();
        self.wrap(value.clamp(least, most))
    }
}

/// `prmt` in one of its modes; the default one is `""`.
pub fn permute(mode: &str, a: u64, b: u64, selector: u64) -> u64 {
    let bytes: Vec<u8> = (0..4).map(|i| (a >> (8 * i)) as u8).chain((0..4).map(|i| (b >> (8 * i)) as u8)).collect();
    let place = (selector & 3) as usize;
    let picked: [usize; 4] = match mode {
        "f4e" => std::array::from_fn(|i| place + i),
        "b4e" => std::array::from_fn(|i| (place + 8 - i) % 8),
        "rc8" => [place; 4],
        "ecl" => std::array::from_fn(|i| place.max(i)),
        "ecr" => std::array::from_fn(|i| place.min(i)),
        "rc16" => std::array::from_fn(|i| 2 * (place & 1) + i % 2),
        _ => {
            let byte = |i: u32| {
                let nibble = selector >> (4 * i) & 15;
                let byte = bytes[(nibble & 7) as usize];
                // The fourth bit asks for the sign, over the whole byte.
                let byte = if nibble & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
                u64::from(byte) << (8 * i)
            };
            return (0..4).map(byte).sum();
        }
    };
    picked.iter().enumerate().map(|(i, from)| u64::from(bytes[*from]) << (8 * i)).sum()
}

/// `bfe`: position and length are eight bits each; bits beyond the value are its sign for signed types, and zeros.
pub fn extract(ty: Integer, a: u64, position: u64, length: u64) -> u64 {
    let (position, length) = ((position & 255) as u32, (length & 255) as u32);
    let top = ty.bits - 1;
    let bit = |place: u32| a >> place & 1;
    let fill = if !ty.signed || length == 0 { 0 } else { bit((position + length - 1).min(top)) };
    let inside = |i: u32| i < length && position + i <= top;
    (0..ty.bits).map(|i| if inside(i) { bit(position + i) } else { fill } << i).sum()
}

/// `bfi`: the low bits of `a` over a field of `b`.
pub fn insert(bits: u32, a: u64, b: u64, position: u64, length: u64) -> u64 {
    let (position, length) = ((position & 255) as u32, (length & 255) as u32);
    let mut value = b;
    for i in 0..length {
        if position + i < bits {
            value = value & !(1 << (position + i)) | (a >> i & 1) << (position + i);
        }
    }
    value
}

/// `shl` and `shr`: the amount is 32 bits, and everything from the width up is the width.
pub fn shift(ty: Integer, left: bool, a: u64, amount: u64) -> u64 {
    let amount = (amount & 0xffff_ffff).min(u64::from(ty.bits)) as u32;
    let value = ty.value(a);
    ty.wrap(if left { value << amount } else { value >> amount })
}

/// `shf`: the upper or the lower word of a shifted pair.
pub fn funnel(left: bool, clamp: bool, low: u64, high: u64, amount: u64) -> u64 {
    let amount = if clamp { (amount & 0xffff_ffff).min(32) } else { amount & 31 };
    let pair = u128::from(high << 32 | low);
    (if left { pair << amount >> 32 } else { pair >> amount }) as u64 & 0xffff_ffff
}

/// `bfind`: the place of the highest bit that differs from the sign, or its distance from the top.
pub fn find(ty: Integer, a: u64, shift_amount: bool) -> u64 {
    let value = ty.value(a);
    let value = if value < 0 { !value } else { value };
    match (0..ty.bits).rev().find(|place| value >> place & 1 == 1) {
        None => 0xffff_ffff,
        Some(place) => u64::from(if shift_amount { ty.bits - 1 - place } else { place }),
    }
}

/// `fns`: the place of the n-th set bit from a base, upwards or downwards.
pub fn nth_set(mask: u64, base: u64, offset: u64) -> u64 {
    let offset = offset as i32;
    let base = base as u32;
    let set = |place: &u32| mask >> place & 1 == 1;
    let found = match offset {
        0 => Some(base).filter(|place| *place < 32 && set(place)),
        1.. => (base..32).filter(set).nth(offset as usize - 1),
        _ if base > 31 => None,
        _ => (0..=base).rev().filter(set).nth(offset.unsigned_abs() as usize - 1),
    };
    found.map_or(0xffff_ffff, u64::from)
}

/// `dp4a` and `dp2a`: products of parts, added up in 32 bits.
pub fn dot(a: (u64, Integer, u32), b: (u64, Integer, u32), count: u32, c: u64) -> u64 {
    let part = |(word, ty, first): (u64, Integer, u32), i: u32| ty.value(word >> (first + i * ty.bits));
    let sum: i128 = (0..count).map(|i| part(a, i) * part(b, i)).sum();
    (sum + i128::from(c)) as u64 & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_hold_their_range() {
        let s8 = Integer { bits: 8, signed: true };
        assert_eq!((s8.value(0x80), s8.range(), s8.clamp(300)), (-128, (-128, 127), 0x7f));
        assert_eq!(Integer::named("u64").map(Integer::range), Some((0, u64::MAX.into())));
        assert_eq!(Integer::named("f32"), None);
    }

    #[test]
    fn bits_move_as_the_manual_says() {
        assert_eq!(permute("", 0x3322_1100, 0x7766_5544, 0x7531), 0x7755_3311);
        assert_eq!(permute("", 0x80, 0, 0x8888), 0xffff_ffff);
        assert_eq!(permute("f4e", 0x3322_1100, 0x7766_5544, 1), 0x4433_2211);
        let s32 = Integer { bits: 32, signed: true };
        assert_eq!(extract(s32, 0x8000_0000, 31, 4), 0xffff_ffff);
        assert_eq!(insert(32, 0xf, 0, 30, 8), 0xc000_0000);
        assert_eq!(funnel(false, false, 1, 1, 33), 0x8000_0000);
        assert_eq!(find(s32, 0xffff_fffe, false), 0);
        assert_eq!(nth_set(0b1010, 0, 2), 3);
    }
}
