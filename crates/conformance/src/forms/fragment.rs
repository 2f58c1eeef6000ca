//! Where the elements of a matrix lie in the registers of a warp, from the tables of the PTX manual: with `g = lane / 4` and
//! `t = lane % 4`, a lane has rows `g` and `g + 8` of A, column `g` of B, and rows `g` and `g + 8` of C and D.

/// A shape of `mma.sync` and the widths of its elements.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// 16 or 8.
    pub m: usize,
    /// Depth.
    pub k: usize,
    /// Bits of an element of A and B.
    pub bits: usize,
    /// Bits of an element of C and D.
    pub result_bits: usize,
}

/// Columns of B, C and D.
pub const N: usize = 8;

impl Shape {
    /// Elements of A or B in one register.
    pub fn each(&self) -> usize {
        32 / self.bits
    }

    /// Registers of A, B and C.
    pub fn registers(&self) -> [usize; 3] {
        let [a, b, c] = [self.m * self.k * self.bits, self.k * N * self.bits, self.m * N * self.result_bits];
        [a, b, c].map(|bits| bits / (32 * 32))
    }

    /// Row and column in A of one element of a register.
    pub fn a_place(&self, lane: usize, register: usize, element: usize) -> (usize, usize) {
        // Registers go down the rows first, then along the depth; with eight rows, only along the depth.
        let halves = self.m / 8;
        (lane / 4 + 8 * (register % halves), self.along(lane, register / halves, element))
    }

    /// Row and column in B.
    pub fn b_place(&self, lane: usize, register: usize, element: usize) -> (usize, usize) {
        (self.along(lane, register, element), lane / 4)
    }

    fn along(&self, lane: usize, part: usize, element: usize) -> usize {
        4 * self.each() * part + self.each() * (lane % 4) + element
    }

    /// Row and column in C and D.
    pub fn c_place(&self, lane: usize, register: usize, element: usize) -> (usize, usize) {
        let index = register * (32 / self.result_bits) + element;
        (lane / 4 + 8 * (index / 2), 2 * (lane % 4) + index % 2)
    }
}

/// The elements of a fragment as a matrix of raw bits, `rows` by `columns`.
pub fn gather(
    registers: &[[u64; 32]],
    bits: usize,
    (rows, columns): (usize, usize),
    place: impl Fn(usize, usize, usize) -> (usize, usize),
) -> Vec<Vec<u64>> {
    let mut matrix = vec![vec![0; columns]; rows];
    for (register, lanes) in registers.iter().enumerate() {
        for (lane, word) in lanes.iter().enumerate() {
            for element in 0..32 / bits {
                let (row, column) = place(lane, register, element);
                matrix[row][column] = word >> (bits * element) & (u64::MAX >> (64 - bits));
            }
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_element_has_one_place() {
        for (m, k, bits, result_bits) in
            [(16, 16, 16, 32), (16, 8, 16, 16), (16, 4, 32, 32), (16, 32, 8, 32), (16, 256, 1, 32), (8, 128, 1, 32)]
        {
            let shape = Shape { m, k, bits, result_bits };
            let [a, b, c] = shape.registers();
            let count = |registers: usize, each: usize, place: &dyn Fn(usize, usize, usize) -> (usize, usize)| {
                let all =
                    (0..32).flat_map(|lane| (0..registers).flat_map(move |r| (0..each).map(move |e| (lane, r, e))));
                all.map(|(lane, register, element)| place(lane, register, element)).collect::<HashSet<_>>().len()
            };
            assert_eq!(count(a, shape.each(), &|l, r, e| shape.a_place(l, r, e)), m * k);
            assert_eq!(count(b, shape.each(), &|l, r, e| shape.b_place(l, r, e)), k * N);
            assert_eq!(count(c, 32 / result_bits, &|l, r, e| shape.c_place(l, r, e)), m * N);
        }
    }
}
