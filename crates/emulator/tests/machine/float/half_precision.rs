//! Arithmetic of f16 and bf16.

use super::arithmetic::rounded;
use super::{check, extreme};
use crate::harness::{B16, B32, cross};
use crate::reals::{BF16, F16, Format, Mode};

pub const NAN_HALF: u64 = 0x7FFF;

/// A 16-bit format and its conversions.
#[derive(Clone, Copy)]
pub struct Half {
    pub name: &'static str,
    pub format: Format,
    pub decode: fn(u16) -> f64,
    pub encode: fn(f64) -> u16,
}

pub const HALVES: [Half; 2] = [
    Half {
        name: "f16",
        format: F16,
        decode: |bits| half::f16::from_bits(bits).to_f64(),
        encode: |value| half::f16::from_f64(value).to_bits(),
    },
    Half {
        name: "bf16",
        format: BF16,
        decode: |bits| half::bf16::from_bits(bits).to_f64(),
        encode: |value| half::bf16::from_f64(value).to_bits(),
    },
];

impl Half {
    pub fn values(self) -> Vec<u64> {
        let mut bits = vec![0, 1, 0x3FF, 0x7F, 0x80, 0x400, 0x3C00, 0x3C01, 0x3BFF, 0x3F80, 0x3F81, 0x4248, 0x5640];
        bits.extend([(self.encode)(f64::INFINITY), (self.encode)(f64::INFINITY) - 1]);
        bits.extend(bits.clone().iter().map(|value| value | 0x8000));
        bits.push((self.encode)(f64::INFINITY) + 1);
        bits.push(0x7FFF);
        bits.into_iter().map(u64::from).collect()
    }

    pub fn value(self, bits: u64) -> f64 {
        (self.decode)(bits as u16)
    }

    pub fn bits(self, value: f64) -> u64 {
        if value.is_nan() { NAN_HALF } else { u64::from((self.encode)(value)) }
    }
}

#[test]
fn arithmetic_of_f16_and_bf16() {
    for half in HALVES {
        let pairs = cross(&[&half.values(), &half.values()]);
        let few: Vec<u64> = half.values().into_iter().step_by(3).collect();
        let triples = cross(&[&few, &few, &few]);
        let calculate = |operation: &str, v: &[u64]| {
            let values: Vec<f64> = v.iter().map(|bits| half.value(*bits)).collect();
            half.bits(rounded(operation, &values, half.format, Mode::Rn))
        };
        for operation in ["add", "sub", "mul"] {
            let code = format!("{operation}.rn.{} %d, %a, %b;", half.name);
            check(&code, B16, &[B16, B16], &pairs, |v| calculate(operation, v));
            // Two at once: the second pair has its operands the other way round.
            let packed = format!(
                ".reg .b32 %x, %y; .reg .b16 %unused; mov.b32 %x, {{%a, %b}}; mov.b32 %y, {{%b, %a}};
                 {operation}.rn.{}x2 %x, %x, %y; mov.b32 {{%unused, %d}}, %x;",
                half.name
            );
            check(&packed, B16, &[B16, B16], &pairs, |v| calculate(operation, &[v[1], v[0]]));
        }
        let code = format!("fma.rn.{} %d, %a, %b, %c;", half.name);
        check(&code, B16, &[B16; 3], &triples, |v| calculate("fma", v));
        for (name, larger) in [("min", false), ("max", true)] {
            check(&format!("{name}.{} %d, %a, %b;", half.name), B16, &[B16, B16], &pairs, |v| {
                half.bits(extreme(half.value(v[0]), half.value(v[1]), larger, false))
            });
        }
        let numbers: Vec<Vec<u64>> =
            cross(&[&half.values()]).into_iter().filter(|v| !half.value(v[0]).is_nan()).collect();
        check(&format!("neg.{} %d, %a;", half.name), B16, &[B16], &numbers, |v| v[0] ^ 0x8000);
        check(&format!("abs.{} %d, %a;", half.name), B16, &[B16], &numbers, |v| v[0] & 0x7FFF);
        check(&format!("setp.lt.{} %p, %a, %b; selp.b32 %d, 1, 0, %p;", half.name), B32, &[B16, B16], &pairs, |v| {
            u64::from(half.value(v[0]) < half.value(v[1]))
        });
    }
}
