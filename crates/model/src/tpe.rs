//! Toeplitz positional encoding: each channel mixed along an axis with a sum of decaying exponentials, once, on the embeddings. On a
//! grid of several axes every axis has its own, and the results are added.
//!
//! ```text
//! y[t,d] = sum over s <= t, i of b[d,i] λ[d,i]^(t-s) x[s,d]        out += o_proj(rms_norm(y))
//! ```
//! It is linear attention with constant queries and keys: the key's entries are the exponentials, `k = 1`, `q = b`, `g = log λ`, and
//! channels that share both are the values of a head.

use crate::checkpoint::Checkpoint;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, driver};
use lookback_linear::{self as linear, Decay, Stride, Strides};
use lookback_nn::{Param, gemm, rms_norm};
use std::sync::Arc;

const OP: &str = "tpe";

/// Coefficients and decays of the exponentials, on the device.
pub struct Toeplitz<T> {
    heads: usize,
    dim: usize,
    terms: usize,
    /// `[heads, terms]`.
    b: CudaSlice<T>,
    ones: CudaSlice<T>,
    /// `[heads, terms]`.
    log_decay: CudaSlice<f32>,
}

impl<T: Element> Toeplitz<T> {
    /// `terms` exponentials for each of `heads` groups of `dim` channels: `b` and `log_decay` are `[heads, terms]`. With `dim` 1 every
    /// channel has its own.
    ///
    /// # Errors
    /// [`Error::Shape`] ← lengths that are not `heads terms`, or no term; [`Error::OutOfMemory`].
    pub fn new(stream: &Arc<CudaStream>, b: &[f32], log_decay: &[f32], heads: usize, dim: usize) -> Result<Self> {
        let terms = b.len() / heads.max(1);
        if terms == 0 || b.len() != heads * terms {
            let want = format!("a positive multiple of {heads} heads long");
            return Err(Error::Shape { op: OP, arg: "b", want, got: vec![b.len() as u64] });
        }
        if log_decay.len() != b.len() {
            let got = vec![log_decay.len() as u64];
            return Err(Error::Shape { op: OP, arg: "log_decay", want: format!("{} long", b.len()), got });
        }
        let copied = |e| driver(e, "copy weights");
        let b: Vec<T> = b.iter().map(|b| T::from_f64(f64::from(*b))).collect();
        Ok(Self {
            heads,
            dim,
            terms,
            b: stream.clone_htod(&b).map_err(copied)?,
            ones: stream.clone_htod(&vec![T::from_f64(1.0); terms]).map_err(copied)?,
            log_decay: stream.clone_htod(log_decay).map_err(copied)?,
        })
    }

    /// Channels of a token.
    pub fn channels(&self) -> usize {
        self.heads * self.dim
    }

    /// Mixes along one axis of the grid `extents` (row-major, the last axis the fastest): `x` and `y` are `[tokens, channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] ← no such axis, or a slice shorter than the grid; and those of the operation.
    pub fn mix(
        &self,
        stream: &Arc<CudaStream>,
        extents: &[usize],
        axis: usize,
        x: &CudaSlice<T>,
        y: &mut CudaSlice<T>,
    ) -> Result<()> {
        let channels = self.channels();
        let tokens: usize = extents.iter().product();
        for (arg, len) in [("x", x.len()), ("y", y.len())] {
            if len < tokens * channels {
                let want = format!("at least {} long", tokens * channels);
                return Err(Error::Shape { op: OP, arg, want, got: vec![len as u64] });
            }
        }
        let Some(len) = extents.get(axis).copied() else {
            let want = format!("below {} axes", extents.len());
            return Err(Error::Shape { op: OP, arg: "axis", want, got: vec![axis as u64] });
        };
        // Tokens that differ in a later axis are rows of a batch. Where there are earlier axes, too, each of theirs is a launch, unless
        // this is the last axis.
        let after: usize = extents[axis + 1..].iter().product();
        let before: usize = extents[..axis].iter().product();
        let (launches, rows, row) = if after == 1 { (1, before, len) } else { (before, after, 1) };
        let steps = Stride { batch: (row * channels) as i64, token: (after * channels) as i64, head: self.dim as i64 };
        let constant = |head: usize| Some(Stride { batch: 0, token: 0, head: head as i64 });
        let shape = linear::Shape {
            key_heads: 1,
            strides: Strides {
                q: constant(self.terms),
                k: constant(0),
                v: Some(steps),
                g: constant(self.terms),
                o: Some(steps),
            },
            ..linear::Shape::dense(rows, len, self.heads, self.terms, self.dim)
        };
        let options = linear::Options { decay: Decay::Vector, scale: 1.0, ..linear::Options::new::<T>(&shape) };
        let plan = linear::Plan::new(&shape, &options, &DeviceInfo::of(stream.context())?)?;
        let bytes = plan.workspace_bytes().max(1) as usize;
        let mut workspace = stream.alloc_zeros::<u8>(bytes).map_err(|e| driver(e, "allocate workspace"))?;
        for launch in 0..launches {
            let first = launch * len * after * channels;
            let (from, mut to) = (x.slice(first..), y.slice_mut(first..));
            let inputs = linear::Inputs { g: Some(&self.log_decay), ..linear::Inputs::of(&self.b, &self.ones, &from) };
            plan.run(stream, &inputs, linear::Outputs::of(&mut to), Some(&mut workspace))?;
        }
        Ok(())
    }
}

/// The encoding of one axis with its norm and projection.
pub struct Tpe<T> {
    toeplitz: Toeplitz<T>,
    /// `[width, width]`, the norm's weight in its columns.
    o_proj: CudaSlice<T>,
    eps: f32,
}

impl<T: Element> Tpe<T> {
    /// Loads `{name}.q`, `{name}.k` `[width]`, `{name}.log_decay` `[heads]`, `{name}.norm.weight` `[width]` and `{name}.o_proj.weight`
    /// `[width, width]`: one exponential a head, `λ = sigmoid(log_decay)`, with `b = q . k` over the head's channels.
    ///
    /// # Errors
    /// [`Error::Weights`] names the tensor; [`Error::Shape`] ← `heads` does not divide `width`.
    pub fn load(
        stream: &Arc<CudaStream>,
        file: &Checkpoint,
        name: &str,
        (width, heads): (usize, usize),
        eps: f32,
    ) -> Result<Self> {
        if heads == 0 || !width.is_multiple_of(heads) {
            let want = format!("a divisor of {width} channels");
            return Err(Error::Shape { op: OP, arg: "heads", want, got: vec![heads as u64] });
        }
        let dim = width / heads;
        let read = |tensor: &str, shape: &[usize]| file.tensor(&format!("{name}.{tensor}"), shape);
        let (q, k) = (read("q", &[width])?, read("k", &[width])?);
        let products: Vec<f64> = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(k)).collect();
        let b: Vec<f32> = products.chunks_exact(dim).map(|head| head.iter().sum::<f64>() as f32).collect();
        let log_sigmoid = |x: &f32| (f64::from(*x).min(0.0) - (-f64::from(*x).abs()).exp().ln_1p()) as f32;
        let log_decay: Vec<f32> = read("log_decay", &[heads])?.iter().map(log_sigmoid).collect();
        let norm = read("norm.weight", &[width])?;
        let weighed = |(at, w): (usize, f32)| T::from_f64(f64::from(w) * f64::from(norm[at % width]));
        let o_proj: Vec<T> = read("o_proj.weight", &[width, width])?.into_iter().enumerate().map(weighed).collect();
        Ok(Self {
            toeplitz: Toeplitz::new(stream, &b, &log_decay, heads, dim)?,
            o_proj: stream.clone_htod(&o_proj).map_err(|e| driver(e, "copy weights"))?,
            eps,
        })
    }

    /// `out += o_proj(rms_norm(y))`, means over each head, with `y` the mix of `x` along one axis of the grid. `x` is
    /// `[tokens, width]`, `out` the residual of the same shape.
    ///
    /// # Errors
    /// Those of [`Toeplitz::mix`].
    pub fn add(
        &self,
        stream: &Arc<CudaStream>,
        extents: &[usize],
        axis: usize,
        x: &CudaSlice<T>,
        out: &mut CudaSlice<f32>,
    ) -> Result<()> {
        let (width, tokens) = (self.toeplitz.channels(), extents.iter().product::<usize>());
        let device = DeviceInfo::of(stream.context())?;
        let memory = || stream.alloc_zeros::<T>(tokens * width).map_err(|e| driver(e, "allocate activations"));
        let (mut y, mut normed) = (memory()?, memory()?);
        let heads = rms_norm::Shape::dense(tokens * self.toeplitz.heads, self.toeplitz.dim);
        let norm = rms_norm::Plan::new(&heads, &rms_norm::Options { dtype: T::DTYPE, eps: self.eps }, &device)?;
        let residual = gemm::Options { out: DType::F32, ..gemm::Options::new(T::DTYPE) };
        let project = gemm::Plan::new(&gemm::Shape::linear(tokens, width, width), &residual, &device)?.accumulating();
        self.toeplitz.mix(stream, extents, axis, x, &mut y)?;
        norm.run(stream, &y, Param::None, &mut normed, None)?;
        project.run(stream, &normed, &self.o_proj, Param::None, out)
    }
}
