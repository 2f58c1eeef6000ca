//! A dealt sequence, its tensors on each rank, and the whole to compare with.

use lookback_device::{Element, cudarc::driver::CudaSlice};
use lookback_reference::attention::{Attention, Forward, Inputs, Mask, forward};
use lookback_ring::{
    Layout, Partition, Result, Visible,
    attention::{self, Options, Outputs, Plan, Shape},
    schedule::Kind,
    transport::{Staged, Transport, local},
};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
    measure::{assert_close, gate},
    random::Random,
};
use std::{thread, time::Duration};

/// For every message: far longer than a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub struct Case {
    pub batch: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub dim: (usize, usize),
    pub layout: Layout,
    pub visible: Visible,
    pub kind: Kind,
    pub softcap: Option<f32>,
}

impl Case {
    pub fn new(kind: Kind, partition: Partition, ranks: usize, visible: Visible) -> Self {
        let tokens = visible.documents.last().copied().unwrap();
        let layout = Layout { partition, tokens, ranks };
        Self { batch: 1, heads: 4, key_heads: 2, dim: (32, 32), layout, visible, kind, softcap: None }
    }

    pub fn shape(&self) -> Shape {
        let Self { batch, heads, key_heads, dim: (head_dim, value_dim), .. } = *self;
        Shape { batch, heads, key_heads, head_dim, value_dim }
    }

    /// Rows of all positions.
    pub fn intervals(&self) -> Vec<i32> {
        let row = |position| {
            let [a, b] = self.visible.from(position);
            [a.start, a.end, b.start, b.end].map(|at| at as i32)
        };
        (0..self.batch).flat_map(|_| (0..self.layout.tokens).flat_map(row)).collect()
    }

    /// `[B,N,heads,width]` of the whole.
    pub fn tensor<T: Element>(&self, seed: u64, heads: usize, width: usize) -> Vec<f64> {
        Random::new(seed).normals::<T>(self.batch * self.layout.tokens * heads * width)
    }

    /// The rows of a rank.
    pub fn part(&self, rank: usize, all: &[f64], row: usize) -> Vec<f64> {
        let Layout { tokens, .. } = self.layout;
        let at = |b: usize, i: usize| (b * tokens + self.layout.position(rank, i)) * row;
        let rows = (0..self.batch).flat_map(|b| (0..self.layout.len(rank)).map(move |i| (b, i)));
        rows.flat_map(|(b, i)| all[at(b, i)..][..row].iter().copied()).collect()
    }

    /// The rows of a rank back into the whole.
    pub fn put(&self, rank: usize, part: &[f64], all: &mut [f64], row: usize) {
        let len = self.layout.len(rank);
        for b in 0..self.batch {
            for i in 0..len {
                let at = (b * self.layout.tokens + self.layout.position(rank, i)) * row;
                all[at..][..row].copy_from_slice(&part[(b * len + i) * row..][..row]);
            }
        }
    }

    /// The whole, with `intervals` for its mask.
    pub fn attention<'a>(&self, intervals: &'a [i32]) -> Attention<'a> {
        let Self { batch, heads, key_heads, dim: (head_dim, value_dim), .. } = *self;
        let tokens = self.layout.tokens;
        Attention {
            key_heads,
            value_dim,
            softcap: self.softcap.map(f64::from),
            mask: Mask { intervals: Some(intervals), ..Mask::FULL },
            ..Attention::dense(batch, tokens, tokens, heads, head_dim)
        }
    }

    pub fn oracle(&self, q: &[f64], k: &[f64], v: &[f64]) -> Forward {
        forward(&self.attention(&self.intervals()), &Inputs { q, k, v })
    }

    /// Every rank's `o` and `lse`, put together.
    pub fn run<T: Element>(&self, [q, k, v]: [&[f64]; 3]) -> Result<(Vec<f64>, Vec<f64>)> {
        let Self { heads, key_heads, dim: (head_dim, value_dim), .. } = *self;
        let ends = local(self.layout.ranks, PATIENCE);
        let mut whole = (vec![f64::NAN; q.len() / head_dim * value_dim], vec![f64::NAN; q.len() / head_dim]);
        let parts = thread::scope(|scope| {
            let ranks = ends.into_iter().map(|mut end| {
                scope.spawn(move || {
                    let rank = end.rank();
                    let q = upload_as::<T>(&self.part(rank, q, heads * head_dim));
                    let k = upload_as::<T>(&self.part(rank, k, key_heads * head_dim));
                    let v = upload_as::<T>(&self.part(rank, v, key_heads * value_dim));
                    self.rank::<T>([&q, &k, &v], &mut end)
                })
            });
            ranks.collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect::<Result<Vec<_>>>()
        })?;
        for (rank, (o, lse)) in parts.iter().enumerate() {
            self.put(rank, o, &mut whole.0, heads * value_dim);
            self.put(rank, lse, &mut whole.1, heads);
        }
        Ok(whole)
    }

    fn rank<T: Element>(&self, [q, k, v]: [&CudaSlice<T>; 3], end: &mut Staged) -> Result<(Vec<f64>, Vec<f64>)> {
        let (rank, stream) = (end.rank(), device::stream());
        let shape = self.shape();
        let options = Options { kind: self.kind, softcap: self.softcap, ..Options::new(&shape, T::DTYPE) };
        let plan = Plan::new(&shape, &options, &self.layout, &self.visible, rank, &device::info())?;
        let mut workspace = plan.workspace(&stream)?;
        let rows = self.batch * plan.tokens() * self.heads;
        let mut o = Guarded::<T>::poisoned(rows * shape.value_dim, 0);
        let mut lse = Guarded::<f32>::poisoned(rows, 0);
        let mut run = || {
            let (mut o_view, mut lse_view) = (o.view_mut(), lse.view_mut());
            let outputs = Outputs { o: &mut o_view, lse: &mut lse_view };
            plan.run(&stream, &attention::Inputs { q, k, v }, outputs, &mut workspace, end)?;
            device::finish();
            Ok((o.read(), lse.read()))
        };
        // Twice, because a workspace serves many runs, and gives the same every time.
        let (first, second) = (run()?, run()?);
        assert_eq!(first, second, "{self:?}");
        Ok(second)
    }

    pub fn check<T: Element>(&self) {
        let Self { heads, key_heads, dim: (head_dim, value_dim), .. } = *self;
        let q = self.tensor::<T>(1, heads, head_dim);
        let k = self.tensor::<T>(2, key_heads, head_dim);
        let v = self.tensor::<T>(3, key_heads, value_dim);
        let want = self.oracle(&q, &k, &v);
        let (o, lse) = self.run::<T>([&q, &k, &v]).unwrap_or_else(|e| panic!("{self:?}: {e}"));
        assert_close(&format!("{self:?}"), &o, &want.o, value_dim, gate(T::DTYPE));
        for (at, (got, want)) in lse.iter().zip(&want.lse).enumerate() {
            assert!(got == want || (got - want).abs() < 1e-4, "{self:?}: lse {at} is {got}, not {want}");
        }
    }
}
