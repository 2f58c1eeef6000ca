//! What the ranks of a dealt attention make, put together.

use super::{
    super::ranks::{self, Group, Part, Rank},
    job::Job,
};
use crate::{
    Result,
    session::Session,
    tensor::{Kind, Tensor, Tensors},
};
use lookback_device::DType;

/// A tensor that the ranks make together: a row for every token.
pub struct Output {
    name: &'static str,
    dtype: DType,
    /// Extents after those of rows and tokens.
    row: Vec<usize>,
}

impl Output {
    /// `[B,T]` and the extents of a token's row.
    pub fn new(name: &'static str, dtype: DType, row: &[usize]) -> Self {
        Self { name, dtype, row: row.to_vec() }
    }

    fn row_bytes(&self) -> usize {
        self.row.iter().product::<usize>() * self.dtype.size()
    }
}

/// Lets every rank `act`, and puts what they made together.
pub fn gather(
    session: &Session,
    group: &Group,
    job: &Job,
    outputs: &[Output],
    act: impl Fn(Rank<'_>) -> Result<Part> + Sync,
) -> Result<Tensors> {
    let rows = job.shape.batch * job.layout.tokens;
    let most: Vec<usize> = outputs.iter().map(|output| rows * output.row_bytes()).collect();
    let parts = ranks::each(session, group, &most, act)?;
    let mut found = Tensors::new();
    for (at, output) in outputs.iter().enumerate() {
        let shape: Vec<usize> = [job.shape.batch, job.layout.tokens].iter().chain(&output.row).copied().collect();
        let mut all = vec![0_u8; most[at]];
        for (rank, part) in parts.iter().enumerate() {
            job.put(rank, &part[at], &mut all, output.row_bytes());
        }
        found.insert(output.name.into(), Tensor::new(Kind::Float(output.dtype), &shape, all));
    }
    Ok(found)
}
