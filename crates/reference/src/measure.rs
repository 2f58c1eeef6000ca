//! Three errors against an f64 oracle, and the gates they must stay below.
//!
//! One error over the whole tensor hides a wrong row, and the largest error alone punishes a long tensor: so all three. The
//! gates are those of the contracts; nothing in the environment changes them.

/// Upper bounds of the three errors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    /// Euclidean norm of the error over that of the reference.
    pub rel: f64,
    /// The same for the worst row; a small row is measured against a tenth of the root mean square row.
    pub row: f64,
    /// Largest error over largest reference.
    pub inf: f64,
}

impl Gate {
    /// Equal to the last bit.
    pub const EXACT: Gate = Gate { rel: 0.0, row: 0.0, inf: 0.0 };

    /// f32 in and out, f32 accumulation.
    pub const F32: Gate = Gate { rel: 5e-6, row: 1e-5, inf: 1e-5 };
    /// f16 in and out, f32 accumulation.
    pub const F16: Gate = Gate { rel: 6e-4, row: 1e-3, inf: 1e-3 };
    /// bf16 in and out, f32 accumulation.
    pub const BF16: Gate = Gate { rel: 4e-3, row: 8e-3, inf: 8e-3 };
}

/// The three errors of one output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Errors {
    /// See [`Gate::rel`].
    pub rel: f64,
    /// See [`Gate::row`].
    pub row: f64,
    /// See [`Gate::inf`].
    pub inf: f64,
    /// Flat index of the largest error.
    pub worst: usize,
}

impl Errors {
    /// Whether all three errors are within the gate.
    pub fn within(&self, gate: Gate) -> bool {
        self.rel <= gate.rel && self.row <= gate.row && self.inf <= gate.inf
    }
}

/// Measures `out` against `reference`, both of rows of `row` elements.
///
/// # Errors
/// The index where one is finite and the other not, where they are different kinds of non-finite, or where one ends.
pub fn errors(out: &[f64], reference: &[f64], row: usize) -> Result<Errors, usize> {
    if out.len() != reference.len() {
        return Err(out.len().min(reference.len()));
    }
    let class = |v: f64| (v.is_nan(), v == f64::INFINITY, v == f64::NEG_INFINITY);
    if let Some(at) = (0..out.len()).find(|&i| class(out[i]) != class(reference[i])) {
        return Err(at);
    }
    let finite: Vec<f64> = reference.iter().map(|v| if v.is_finite() { *v } else { 0.0 }).collect();
    let error: Vec<f64> = out.iter().zip(reference).map(|(o, r)| if r.is_finite() { o - r } else { 0.0 }).collect();
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let row = row.clamp(1, out.len().max(1));
    let rows = out.len().div_ceil(row).max(1);
    let floor = 0.1 * norm(&finite) / (rows as f64).sqrt();
    let over = |e: f64, r: f64| if e == 0.0 { 0.0 } else { e / r.max(f64::MIN_POSITIVE) };
    let worst_row = error.chunks(row).zip(finite.chunks(row)).map(|(e, r)| over(norm(e), norm(r).max(floor)));
    let worst = (0..error.len()).max_by(|&i, &j| error[i].abs().total_cmp(&error[j].abs())).unwrap_or(0);
    let largest = finite.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    Ok(Errors {
        rel: over(norm(&error), norm(&finite)),
        row: worst_row.fold(0.0, f64::max),
        inf: over(error.get(worst).map_or(0.0, |e| e.abs()), largest),
        worst,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_wrong_row_show_in_the_row_error_alone() {
        let reference: Vec<f64> = (0..6400).map(|i| f64::from(i).sin()).collect();
        let mut out = reference.clone();
        out[64..128].iter_mut().for_each(|v| *v *= 1.001);
        let e = errors(&out, &reference, 64).expect("all finite");
        assert!(e.rel < 1.1e-4 && e.row > 0.9e-3, "{e:?}");
    }

    #[test]
    fn errors_want_the_same_class_of_non_finite() {
        let nan = f64::NAN;
        assert_eq!(errors(&[1.0, nan], &[1.0, 2.0], 2), Err(1));
        assert_eq!(errors(&[1.0, f64::INFINITY], &[1.0, nan], 2), Err(1));
        assert!(errors(&[1.0, nan], &[1.0, nan], 2).is_ok());
        assert!(errors(&[], &[], 4).is_ok());
    }
}
