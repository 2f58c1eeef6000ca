//! The order in which CTAs become resident.

use crate::exec::random::Random;
use crate::launch::CtaOrder;

/// Grids of more CTAs than this are permuted by arithmetic, not by a table.
const TABLE: u64 = 1 << 20;

/// Gives every linear CTA index of a grid once.
pub(super) struct Order {
    how: How,
    total: u64,
    given: u64,
}

enum How {
    Up,
    Down,
    Table(Vec<u32>),
    /// Position `p` is CTA `p * step + start` modulo the total, to which `step` is coprime.
    Stride {
        step: u64,
        start: u64,
    },
}

impl Order {
    /// An order of `total` CTAs, of which there are at most 2^32.
    pub fn new(order: CtaOrder, total: u64) -> Self {
        let how = match order {
            CtaOrder::InOrder => How::Up,
            CtaOrder::Reversed => How::Down,
            CtaOrder::Random(seed) => shuffled(&mut Random::new(seed), total),
        };
        Self { how, total, given: 0 }
    }

    /// CTAs that have not become resident.
    pub fn left(&self) -> u64 {
        self.total - self.given
    }
}

impl Iterator for Order {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.given == self.total {
            return None;
        }
        let position = self.given;
        self.given += 1;
        Some(match &self.how {
            How::Up => position,
            How::Down => self.total - 1 - position,
            How::Table(table) => table[position as usize].into(),
            // Both factors are at most 2^32, so the sum stays below 2^64 plus a little: wide arithmetic it is.
            How::Stride { step, start } => {
                ((u128::from(position) * u128::from(*step) + u128::from(*start)) % u128::from(self.total)) as u64
            }
        })
    }
}

fn shuffled(random: &mut Random, total: u64) -> How {
    if total <= TABLE {
        let mut table: Vec<u32> = (0..total as u32).collect();
        for last in (1..table.len()).rev() {
            table.swap(last, random.below(last as u32 + 1) as usize);
        }
        return How::Table(table);
    }
    let mut step = random.next() % total;
    while common_divisor(step, total) != 1 {
        step += 1;
    }
    How::Stride { step, start: random.next() % total }
}

fn common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::{CtaOrder, Order, TABLE};

    #[test]
    fn every_cta_comes_once() {
        for total in [1, 2, 7, 1000, TABLE + 1] {
            for order in [CtaOrder::InOrder, CtaOrder::Reversed, CtaOrder::Random(1), CtaOrder::Random(2)] {
                let mut seen = vec![false; total as usize];
                for index in Order::new(order, total) {
                    assert!(!std::mem::replace(&mut seen[index as usize], true), "{order:?} of {total}: {index} twice");
                }
                assert!(seen.iter().all(|seen| *seen), "{order:?} of {total}");
            }
        }
    }

    #[test]
    fn seeds_give_different_orders() {
        let order = |seed| Order::new(CtaOrder::Random(seed), 64).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
        assert_eq!(order(3), order(3));
    }
}
