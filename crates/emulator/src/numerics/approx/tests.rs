use super::*;
use crate::numerics::float16::flush_half;
use crate::numerics::testing::{Random, pairs, special_f32};

const FUNCTIONS: [Function; 8] = [
    Function::Ex2,
    Function::Lg2,
    Function::Rcp,
    Function::Rsqrt,
    Function::Sqrt,
    Function::Sin,
    Function::Cos,
    Function::Tanh,
];

fn one(function: Function, ftz: bool, x: f32) -> f32 {
    f32::from_bits(function_lanes(function, ftz, &[x.to_bits(); 32])[17])
}

/// The value of one step of the special-function unit, from the standard library.
fn step(function: Function, x: f32) -> f32 {
    let wide = f64::from(x);
    let turn = if wide == 0.0 { wide } else { (wide - wide.round()) * std::f64::consts::TAU };
    (match function {
        Function::Ex2 => wide.exp2(),
        Function::Lg2 => wide.log2(),
        Function::Rcp => 1.0 / wide,
        Function::Rsqrt => 1.0 / wide.sqrt(),
        Function::Sqrt => wide.sqrt(),
        Function::Sin => turn.sin(),
        Function::Cos => turn.cos(),
        Function::Tanh => wide.tanh(),
    }) as f32
}

/// The whole instruction in that model: the sequence of instructions that it assembles to, one after the other.
fn model(function: Function, ftz: bool, x: f32) -> f32 {
    let tiny = x.abs() < f32::MIN_POSITIVE;
    match function {
        Function::Sin | Function::Cos => {
            let product = f64::from(x) * f64::from(f32::from_bits(0x3e22_f983));
            let nearest = product as f32;
            let over = f64::from(nearest).abs() > product.abs();
            step(
                function,
                if over && x > 0.0 {
                    nearest.next_down()
                } else if over {
                    nearest.next_up()
                } else {
                    nearest
                },
            )
        }
        _ if ftz || function == Function::Tanh => step(function, x),
        Function::Ex2 if x < -126.0 => step(function, 0.5 * x) * step(function, 0.5 * x),
        Function::Lg2 if tiny => step(function, x * 16_777_216.0) - 24.0,
        Function::Rcp if tiny => step(function, x * 16_777_216.0) * 16_777_216.0,
        Function::Rcp if x.abs() > f32::from_bits(0x7e80_0000) => step(function, x * 0.25) * 0.25,
        Function::Rsqrt if tiny => step(function, x * 16_777_216.0) * 4096.0,
        Function::Sqrt if tiny => step(function, x * 16_777_216.0) * 0.000_244_140_63,
        _ => step(function, x),
    }
}

#[test]
fn results_are_the_correctly_rounded_steps() {
    let mut random = Random::new(30);
    let mut list = special_f32();
    list.extend((0..60_000).map(|_| random.u32()));
    list.extend((0..60_000).map(|_| random.near_one()));
    // Small integers and their neighbours; subnormals; where ex2 underflows.
    for i in -160..160 {
        let x = i as f32;
        list.extend([x, x.next_up(), x.next_down(), x + 0.5, -125.0 + x / 16.0].map(f32::to_bits));
    }
    list.extend((0..2_000).map(|_| random.u32() & 0x807f_ffff));
    list.resize(list.len().next_multiple_of(32), 0);
    for function in FUNCTIONS {
        for ftz in [false, true] {
            let mut off_by_one = 0;
            for chunk in list.chunks_exact(32) {
                let a: Lanes = std::array::from_fn(|i| chunk[i]);
                let d = function_lanes(function, ftz, &a);
                assert_eq!(d, function_body(function, ftz, &a), "{function:?}: every CPU gives the same bits");
                for i in 0..32 {
                    let ftz = ftz && function != Function::Tanh;
                    let value = |x: u32| f32::from_bits(if ftz { flush_f32(x) } else { x });
                    let expected = model(function, ftz, value(a[i]));
                    let expected = value(canonical_f32(expected)).to_bits();
                    let distance = d[i].abs_diff(expected);
                    if matches!(function, Function::Sin | Function::Cos) {
                        // Where a turn crosses zero, the library's pi has an error of its own.
                        let near = (f32::from_bits(d[i]) - f32::from_bits(expected)).abs() < 1e-15;
                        if near {
                            continue;
                        }
                    }
                    assert!(distance <= 1, "{function:?} {ftz} {:e}: {:x} {expected:x}", value(a[i]), d[i]);
                    off_by_one += u32::from(distance != 0);
                }
            }
            assert!(off_by_one <= 40, "{function:?}: {off_by_one} of {}", list.len());
        }
    }
}

#[test]
fn special_values() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let tiny = f32::from_bits(1);
    let rows = [
        (Function::Ex2, [1.0, 1.0, inf, 0.0, 1.0]),
        (Function::Lg2, [-inf, -inf, inf, nan, -149.0]),
        (Function::Rcp, [inf, -inf, 0.0, -0.0, inf]),
        (Function::Rsqrt, [inf, -inf, 0.0, nan, 2f32.powi(74) * std::f32::consts::SQRT_2]),
        (Function::Sqrt, [0.0, -0.0, inf, nan, 2f32.powi(-75) * std::f32::consts::SQRT_2]),
        (Function::Sin, [0.0, -0.0, nan, nan, 0.0]),
        (Function::Cos, [1.0, 1.0, nan, nan, 1.0]),
        (Function::Tanh, [0.0, -0.0, 1.0, -1.0, tiny]),
    ];
    for (function, expected) in rows {
        let got = [0.0, -0.0, inf, -inf, tiny].map(|x| one(function, false, x).to_bits());
        assert_eq!(got, expected.map(canonical_f32), "{function:?}");
        assert_eq!(one(function, false, nan).to_bits(), 0x7fff_ffff);
        assert_eq!(one(function, true, nan).to_bits(), 0x7fff_ffff);
    }
    // With flushing, a subnormal is zero on the way in and on the way out.
    assert_eq!(one(Function::Ex2, true, -126.5), 0.0);
    assert_eq!(one(Function::Ex2, false, -140.0), 2f32.powi(-140));
    assert_eq!(one(Function::Lg2, true, tiny), -inf);
    assert_eq!(one(Function::Rsqrt, true, -tiny), -inf);
    assert_eq!(one(Function::Rcp, true, 2f32.powi(127)), 0.0);
    assert_eq!(one(Function::Rcp, false, 2f32.powi(127)), 2f32.powi(-127));
    assert_eq!(one(Function::Tanh, true, tiny), tiny);
}

#[test]
fn powers_of_two_are_exact() {
    for n in -149..128 {
        let power = if n < -126 { f32::from_bits(1 << (n + 149)) } else { 2f32.powi(n) };
        // The squared half power is exact only for even exponents; an odd one squares the root of two.
        if n >= -126 || n % 2 == 0 {
            assert_eq!(one(Function::Ex2, false, n as f32), power, "{n}");
        }
        assert_eq!(one(Function::Lg2, false, power), n as f32, "{n}");
        if n > -127 {
            assert_eq!(one(Function::Rcp, false, power), 1.0 / power, "{n}");
        }
    }
}

#[test]
fn ex2_never_falls() {
    let mut random = Random::new(31);
    for _ in 0..3_000 {
        let start = random.u32() & 0x8000_0000 | (0x3c00_0000 + random.below(0x0700_0000));
        let lanes: Lanes = std::array::from_fn(|i| (start & !31) + i as u32);
        let d = function_lanes(Function::Ex2, false, &lanes).map(f32::from_bits);
        let rises = d.windows(2).all(|w| if start >> 31 == 0 { w[0] <= w[1] } else { w[0] >= w[1] });
        assert!(rises, "{start:x}");
    }
}

#[test]
fn half_functions_round_once_on_every_input() {
    for (function, wide) in [(HalfFunction::Ex2, f64::exp2 as fn(f64) -> f64), (HalfFunction::Tanh, f64::tanh)] {
        for format in [Half::F16, Half::Bf16] {
            for ftz in [false, true] {
                for base in (0..0x1_0000u32).step_by(32) {
                    let a: Lanes = std::array::from_fn(|i| base + i as u32);
                    let packed = a.map(|h| h << 16 | h);
                    let low = half_lanes(function, format, false, ftz, &a);
                    assert_eq!(half_lanes(function, format, true, ftz, &packed), low.map(|h| h << 16 | h));
                    assert_eq!(half_body(function, format, false, ftz, &a), low);
                    for i in 0..32 {
                        let flush = |h: u16| if ftz { flush_half(format, h) } else { h };
                        let x = f64::from(f32::from_bits(format.widen(flush(a[i] as u16))));
                        let expected = flush(format.narrow_f64(wide(x)));
                        assert_eq!(low[i], u32::from(expected), "{function:?} {format:?} {:x}", a[i]);
                    }
                }
            }
        }
    }
}

#[test]
fn divisions_scale_as_they_should() {
    let mut random = Random::new(32);
    let mut cases = pairs(&special_f32());
    cases.extend((0..50_000).map(|_| (random.u32(), random.u32())));
    cases.extend((0..50_000).map(|_| (random.near_one(), random.near_one())));
    cases.resize(cases.len().next_multiple_of(32), (0, 0));
    for chunk in cases.chunks_exact(32) {
        let (a, b): (Lanes, Lanes) = (std::array::from_fn(|i| chunk[i].0), std::array::from_fn(|i| chunk[i].1));
        for division in [Division::Approx, Division::Full] {
            for ftz in [false, true] {
                let d = division_lanes(division, ftz, &a, &b);
                assert_eq!(d, division_body(division, ftz, &a, &b));
                for i in 0..32 {
                    let flush = |x: f32| if ftz && x.is_subnormal() { 0f32.copysign(x) } else { x };
                    let (x, y) = (flush(f32::from_bits(a[i])), flush(f32::from_bits(b[i])));
                    let q = f32::from_bits(d[i]);
                    assert!(!q.is_nan() || d[i] == 0x7fff_ffff);
                    let exact = f64::from(x) / f64::from(y);
                    let huge = y.abs() > f32::from_bits(0x7e80_0000) && y.is_finite();
                    if division == Division::Approx && huge {
                        // The reciprocal is flushed to zero.
                        assert!(
                            if x.is_infinite() || x.is_nan() { q.is_nan() } else { q == 0.0 },
                            "{x:e} / {y:e} = {q:e}"
                        );
                    } else if exact.is_nan() {
                        // Infinity over infinity; zero over zero.
                        assert!(q.is_nan(), "{x:e} / {y:e} = {q:e}");
                    } else if x.is_finite()
                        && y.is_finite()
                        && exact.abs() > 1e-37
                        && exact.abs() < 1e30
                        && y != 0.0
                        && x.is_normal()
                        && !(y.is_subnormal() && x.abs() > 1e30)
                        && !(huge && x.abs() < 1e-36)
                    {
                        assert!(((f64::from(q) - exact) / exact).abs() < 2f64.powi(-22), "{x:e} / {y:e} = {q:e}");
                    }
                }
            }
        }
    }
}
