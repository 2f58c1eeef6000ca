//! `short_convolution`.

use super::{
    Case, Inputs, Operation, Values, for_dtype, gate,
    gated_scan::CU_SEQLENS,
    inputs::{AttributeSpec, TensorSpec, optional, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{
    DType, Element,
    cudarc::driver::{CudaSlice, DevicePtr},
};
use lookback_nn::short_convolution::{self, Options, Plan, Shape, Window};
use lookback_reference::short_convolution::{Conv, forward};

/// Convolution of each channel by itself.
pub static SHORT_CONVOLUTION: Operation = Operation {
    name: "short_convolution",
    about: "out[t,c] = act(sum over j of weight[c,j] x[t-P+j,c] + bias[c]), P = W-1 or W/2, within each sequence and segment",
    inputs: &[required("x", "T", "[B,T,C]", "tokens"), WEIGHT, BIAS, FLAGS, CU_SEQLENS, STATE],
    attributes: ATTRIBUTES,
    outputs: &[
        required("out", "T", "[B,T,C]", ""),
        optional("state_out", "T", "[N,X,C]", "causal: the last W-1 tokens, 0 before a segment start"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// Taps.
pub const WEIGHT: TensorSpec =
    required("weight", "T", "[C,W]", "taps of each channel, the earliest first; 2, 3, 4, 5 or 7");
/// Bias.
pub const BIAS: TensorSpec = optional("bias", "T", "[C]", "added before the activation");
/// Segments.
pub const FLAGS: TensorSpec = optional("flags", "u8", "[B,T]", "bit 0: a segment starts here");
/// Inputs before the first token.
pub const STATE: TensorSpec =
    optional("state", "T", "[N,X,C]", "causal: the W-1 tokens before the first of each sequence");

/// Activation and window.
pub const ATTRIBUTES: &[AttributeSpec] = &[gate::ACTIVATION, WINDOW];

const WINDOW: AttributeSpec = AttributeSpec {
    name: "window",
    values: "causal|centred",
    default: "causal",
    about: "whether the last tap meets the current token, or the middle one",
};

/// What the user's tensors say, checked.
pub struct Setting {
    /// Sizes.
    pub shape: Shape,
    /// Types and activation.
    pub options: Options,
}

impl Setting {
    /// Sizes from the tensors, switches from the attributes.
    pub fn of<T: Element>(inputs: &Inputs) -> Result<Self> {
        let [batch, tokens, channels, taps] = ['B', 'T', 'C', 'W'].map(|letter| inputs.extent(letter));
        let packed = packed(inputs, batch, tokens)?;
        let window = inputs.choose("window", &[("causal", Window::Causal), ("centred", Window::Centred)])?;
        let shape = Shape { packed, window, ..Shape::dense(batch, tokens, channels, taps) };
        for name in ["state", "dstate_out"] {
            let Some(state) = inputs.optional(name) else { continue };
            let want = [shape.sequences(), taps.saturating_sub(1), channels];
            if state.shape != want {
                return Err(inputs.wrong(name, format!("must have shape {want:?}, got {:?}", state.shape)));
            }
        }
        Ok(Self { shape, options: Options { dtype: T::DTYPE, activation: gate::activation(inputs)? } })
    }
}

/// Packed sequences of `cu_seqlens`, checked.
pub fn packed(inputs: &Inputs, batch: usize, tokens: usize) -> Result<Option<usize>> {
    let Some(starts) = inputs.optional("cu_seqlens") else { return Ok(None) };
    if batch != 1 {
        return Err(inputs.wrong("cu_seqlens", format!("wants one row of packed sequences, got B = {batch}")));
    }
    let starts = starts.as_indices();
    if starts.len() < 2 {
        return Err(inputs.wrong("cu_seqlens", format!("wants at least 2 entries, got {}", starts.len())));
    }
    lookback_scan::check::cu_seqlens(&starts, tokens)?;
    Ok(Some(starts.len() - 1))
}

/// The optional tensors on the device.
pub struct Uploaded<T> {
    bias: Option<CudaSlice<T>>,
    flags: Option<CudaSlice<u8>>,
    starts: Option<CudaSlice<i32>>,
    state: Option<CudaSlice<T>>,
}

impl<T: Element> Uploaded<T> {
    /// Uploads what is there.
    pub fn of(session: &Session, inputs: &Inputs) -> Result<Self> {
        let elements = |name| inputs.optional(name).map(|t: &Tensor| session.upload(&t.as_elements::<T>())).transpose();
        Ok(Self {
            bias: elements("bias")?,
            flags: inputs.optional("flags").map(|t| session.upload(t.as_flags())).transpose()?,
            starts: inputs.optional("cu_seqlens").map(|t| session.upload(&t.as_indices())).transpose()?,
            state: elements("state")?,
        })
    }

    /// As the operation takes them.
    pub fn inputs(&self) -> short_convolution::Inputs<'_, T> {
        short_convolution::Inputs {
            bias: self.bias.as_ref().map(|b| b as &dyn DevicePtr<T>),
            flags: self.flags.as_ref().map(|f| f as &dyn DevicePtr<u8>),
            cu_seqlens: self.starts.as_ref().map(|s| s as &dyn DevicePtr<i32>),
            state: self.state.as_ref().map(|s| s as &dyn DevicePtr<T>),
        }
    }
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let Setting { shape, options } = Setting::of::<T>(inputs)?;
    let plan = Plan::new(&shape, &options, &session.info)?;
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let weight = session.upload(&inputs.tensor("weight")?.as_elements::<T>())?;
    let optional = Uploaded::<T>::of(session, inputs)?;
    let Shape { batch, tokens, channels, taps, window, .. } = shape;
    let states = [shape.sequences(), taps - 1, channels];
    let mut out = session.zeros::<T>(batch * tokens * channels)?;
    let mut state_out = session.zeros::<T>(states.iter().product())?;
    let wanted = if window == Window::Causal { Some(&mut state_out as _) } else { None };
    plan.run(&session.stream, &x, &weight, optional.inputs(), &mut out, wanted)?;
    let mut outputs =
        Tensors::from([("out".into(), Tensor::elements(&[batch, tokens, channels], &session.download::<T>(&out)?))]);
    if window == Window::Causal {
        outputs.insert("state_out".into(), Tensor::elements(&states, &session.download::<T>(&state_out)?));
    }
    Ok(outputs)
}

/// What the oracle reads, owned.
pub struct Reference {
    bias: Option<Vec<f64>>,
    flags: Option<Vec<u8>>,
    starts: Option<Vec<i32>>,
    state: Option<Vec<f64>>,
}

impl Reference {
    /// Copies the optional tensors.
    pub fn of(inputs: &Inputs) -> Self {
        Self {
            bias: inputs.values("bias"),
            flags: inputs.optional("flags").map(|f| f.as_flags().to_vec()),
            starts: inputs.optional("cu_seqlens").map(Tensor::as_indices),
            state: inputs.values("state"),
        }
    }

    /// The oracle's convolution.
    pub fn conv(&self, inputs: &Inputs) -> Result<Conv<'_>> {
        Ok(Conv {
            batch: inputs.extent('B'),
            tokens: inputs.extent('T'),
            channels: inputs.extent('C'),
            taps: inputs.extent('W'),
            centred: inputs.attribute("window") == "centred",
            bias: self.bias.as_deref(),
            flags: self.flags.as_deref(),
            starts: self.starts.as_deref(),
            state: self.state.as_deref(),
            activation: gate::reference_activation(inputs)?,
        })
    }
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (x, weight) = (inputs.tensor("x")?.to_f64(), inputs.tensor("weight")?.to_f64());
    let reference = Reference::of(inputs);
    let conv = reference.conv(inputs)?;
    let found = forward(&conv, &x, &weight);
    Ok(Values::from([("out".into(), found.out), ("state_out".into(), found.state)]))
}

/// Inputs of a few sizes, with everything optional in most.
pub fn cases(dtype: DType) -> Vec<Case> {
    let sizes = [(2, 9, 64, 4, "causal"), (1, 2, 33, 3, "causal"), (2, 40, 16, 2, "causal"), (2, 21, 32, 7, "centred")];
    let dense = sizes.map(|(b, t, c, w, window)| case(dtype, [b, t, c, w], window, None));
    let starts: &[i32] = &[0, 3, 3, 19, 30];
    let packed = ["causal", "centred"].map(|window| case(dtype, [1, 30, 24, 5], window, Some(starts)));
    dense.into_iter().chain(packed).collect()
}

fn case(dtype: DType, [b, t, c, w]: [usize; 4], window: &str, starts: Option<&[i32]>) -> Case {
    let floats = |phase, shape: &[usize]| Tensor::floats(dtype, shape, &wave(phase, shape.iter().product()));
    let mut tensors = Tensors::from([("x".into(), floats(1.0, &[b, t, c])), ("weight".into(), floats(2.0, &[c, w]))]);
    let extras = t < 40;
    let sequences = starts.map_or(b, |s| s.len() - 1);
    if extras {
        let flags: Vec<u8> = (0..b * t).map(|i| u8::from(i % 5 == 3)).collect();
        tensors.insert("bias".into(), floats(3.0, &[c]));
        tensors.insert("flags".into(), Tensor::flags(&[b, t], &flags));
        if window == "causal" {
            tensors.insert("state".into(), floats(4.0, &[sequences, w - 1, c]));
        }
    }
    if let Some(starts) = starts {
        tensors.insert("cu_seqlens".into(), Tensor::indices(&[starts.len()], starts));
    }
    let packed = if starts.is_some() { " packed" } else { "" };
    Case {
        name: format!("{window}{packed} {b}x{t}x{c} width {w}"),
        tensors,
        attributes: vec![format!("activation={}", if extras { "silu" } else { "none" }), format!("window={window}")],
    }
}
