//! `gated_scan` and `gated_scan_backward`.

mod on_ranks;

use super::{
    Case, Inputs, Operation, Values,
    dealt::{self, Dealt},
    for_dtype,
    inputs::{AttributeSpec, TensorSpec, optional, required},
    ranks::{TIMEOUT, TRANSPORT},
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
use lookback_reference::gated_scan::{self as reference, Scan};
use lookback_scan::{BackwardInputs, Gates, Options, Shape, Source, check, gated_scan, gated_scan_backward};

const A: TensorSpec =
    optional("a", "T|f32", "[B,T,D]|[D]", "decay of each token, or one a channel; without it 1: a cumulative sum");
const B: TensorSpec = required("b", "T", "[B,T,D]", "input of each token");
/// Cuts of the carry.
pub const FLAGS: TensorSpec =
    optional("flags", "u8", "[B,T]", "bit 0 cuts the carry into a forward channel here, bit 1 into a reverse one");
/// States before the first step.
pub const H0: TensorSpec = optional("h0", "f32", "[N,D]", "initial states; N is B, or the number of packed sequences");
/// Packed sequences.
pub const CU_SEQLENS: TensorSpec =
    optional("cu_seqlens", "i32", "[N+1]", "starts of packed sequences and their end; B must be 1");
/// States that a forward pass left.
pub const SAVED_H: TensorSpec =
    optional("h", "T", "[B,T,D]", "states as the forward pass left them; without, the forward pass runs first");
/// Adjoint of `h`.
pub const DH: TensorSpec = required("dh", "T", "[B,T,D]", "adjoint of h");
/// Adjoint of `h_final`.
pub const DH_FINAL: TensorSpec = optional("dh_final", "f32", "[N,D]", "adjoint of h_final");
/// States.
pub const H: TensorSpec = required("h", "T", "[B,T,D]", "state after each token");
/// Final states.
pub const H_FINAL: TensorSpec = required("h_final", "f32", "[N,D]", "state after the last step of each sequence");
/// Adjoint of `h0`.
pub const DH0: TensorSpec = required("dh0", "f32", "[N,D]", "adjoint of h0");
/// Channels that run forward.
pub const SPLIT: AttributeSpec = AttributeSpec {
    name: "split",
    values: "0 to D",
    default: "D",
    about: "channels below run forward, the others in reverse",
};
/// Chained waiting.
pub const DETERMINISTIC: AttributeSpec = AttributeSpec {
    name: "deterministic",
    values: "true|false",
    default: "false",
    about: "each tile waits for its neighbour alone; the bits are the same either way",
};
const LOG: AttributeSpec =
    AttributeSpec { name: "log", values: "true|false", default: "false", about: "a is given as its natural logarithm" };

/// `h[t] = a[t] h[t-1] + b[t]`.
pub static FORWARD: Operation = Operation {
    name: "gated_scan",
    about: "h[t] = a[t] h[t-1] + b[t] along time, channel by channel",
    inputs: &[A, B, FLAGS, H0, CU_SEQLENS],
    attributes: &[SPLIT, LOG, DETERMINISTIC, dealt::RANKS, dealt::SCHEDULE, dealt::BLOCKS, TIMEOUT, TRANSPORT],
    outputs: &[H, H_FINAL],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases: |dtype| cases(dtype, false),
};

/// Its gradients.
pub static BACKWARD: Operation = Operation {
    name: "gated_scan_backward",
    about: "gradients of gated_scan",
    inputs: &[A, B, FLAGS, H0, CU_SEQLENS, SAVED_H, DH, DH_FINAL],
    attributes: &[SPLIT, LOG, DETERMINISTIC],
    outputs: &[
        optional("da", "T|f32", "[B,T,D]|[D]", "adjoint of a, or of its logarithm with log=true"),
        required("db", "T", "[B,T,D]", "adjoint of b"),
        DH0,
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run_backward(session, inputs)),
    oracle: oracle_backward,
    cases: |dtype| cases(dtype, true),
};

/// Tensors that every scan may have, on the device.
pub struct Uploaded<T> {
    a: Option<CudaSlice<T>>,
    b: CudaSlice<T>,
    x: Option<CudaSlice<T>>,
    channel: Option<CudaSlice<f32>>,
    flags: Option<CudaSlice<u8>>,
    cu_seqlens: Option<CudaSlice<i32>>,
    initial: Option<CudaSlice<f32>>,
}

impl<T: Element> Uploaded<T> {
    /// `names`: those of the tensors in place of `a`, `b` and `x`, and of the array over channels; empty for none.
    pub fn new(session: &Session, inputs: &Inputs, names: [&str; 4]) -> Result<Self> {
        let floats = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_elements::<T>())).transpose();
        let singles = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_elements::<f32>())).transpose();
        let [a, b, x, channel] = names;
        Ok(Self {
            a: floats(a)?,
            b: session.upload(&inputs.tensor(b)?.as_elements::<T>())?,
            x: floats(x)?,
            channel: singles(channel)?,
            flags: inputs.optional("flags").map(|t| session.upload(t.as_flags())).transpose()?,
            cu_seqlens: inputs.optional("cu_seqlens").map(|t| session.upload(&t.as_indices())).transpose()?,
            initial: singles("h0")?,
        })
    }

    /// The same as an operation takes them.
    pub fn inputs(&self) -> lookback_scan::Inputs<'_, T> {
        fn some<E>(slice: &Option<CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
            slice.as_ref().map(|s| s as &dyn DevicePtr<E>)
        }
        lookback_scan::Inputs {
            gates: Gates { a: some(&self.a), b: Some(&self.b), x: some(&self.x), channel: some(&self.channel) },
            flags: some(&self.flags),
            cu_seqlens: some(&self.cu_seqlens),
            initial: some(&self.initial),
        }
    }
}

/// Shape of the user's tensors; `states` names those that have a row a sequence.
pub fn shape(inputs: &Inputs, states: &[&str]) -> Result<Shape> {
    let [batch, tokens, channels] = extents(inputs);
    let shape = match inputs.optional("cu_seqlens") {
        Some(starts) => {
            if batch != 1 {
                return Err(inputs.wrong("cu_seqlens", format!("wants one row of packed sequences, got B = {batch}")));
            }
            let starts = starts.as_indices();
            if starts.len() < 2 {
                return Err(inputs.wrong("cu_seqlens", format!("wants at least 2 entries, got {}", starts.len())));
            }
            check::cu_seqlens(&starts, tokens)?;
            Shape::packed(starts.len() - 1, tokens, channels)
        }
        None => Shape::dense(batch, tokens, channels),
    };
    for name in states {
        if let Some(states) = inputs.optional(name)
            && states.shape[0] != shape.sequences()
        {
            let why = format!("must have shape [N,D] with N = {}, got {:?}", shape.sequences(), states.shape);
            return Err(inputs.wrong(name, why));
        }
    }
    Ok(shape)
}

/// Shape and options of the user's tensors.
pub fn shape_and_options<T: Element>(inputs: &Inputs, source: Source) -> Result<(Shape, Options)> {
    let shape = shape(inputs, &["h0", "dh_final"])?;
    let split = if inputs.is_set("split") { inputs.parse("split")? } else { shape.channels };
    let options = Options { split, deterministic: inputs.parse("deterministic")?, ..Options::new::<T>(source, &shape) };
    Ok((shape, options))
}

/// `[B,T,D]` of a scan.
pub fn extents(inputs: &Inputs) -> [usize; 3] {
    ['B', 'T', 'D'].map(|letter| inputs.extent(letter))
}

/// Runs the forward pass and names its outputs.
pub fn forward<T: Element>(session: &Session, inputs: &Inputs, source: Source, names: [&str; 4]) -> Result<Tensors> {
    let (shape, options) = shape_and_options::<T>(inputs, source)?;
    let tensors = Uploaded::<T>::new(session, inputs, names)?;
    let out = gated_scan(&session.stream, &shape, &options, &tensors.inputs())?;
    let states = [shape.sequences(), shape.channels];
    Ok(Tensors::from([
        ("h".into(), Tensor::elements(&extents(inputs), &session.download::<T>(&out.h)?)),
        ("h_final".into(), Tensor::elements(&states, &session.download::<f32>(&out.last)?)),
    ]))
}

/// Runs both passes and names the gradients `d<name>`.
pub fn backward<T: Element>(session: &Session, inputs: &Inputs, source: Source, names: [&str; 4]) -> Result<Tensors> {
    let (shape, options) = shape_and_options::<T>(inputs, source)?;
    let tensors = Uploaded::<T>::new(session, inputs, names)?;
    let h = match inputs.optional("h") {
        Some(h) => session.upload(&h.as_elements::<T>())?,
        None => gated_scan(&session.stream, &shape, &options, &tensors.inputs())?.h,
    };
    let dh = session.upload(&inputs.tensor("dh")?.as_elements::<T>())?;
    let d_last = inputs.optional("dh_final").map(|t| session.upload(&t.as_elements::<f32>())).transpose()?;
    let backward = BackwardInputs {
        forward: tensors.inputs(),
        h: &h,
        dh: &dh,
        d_last: d_last.as_ref().map(|d| d as &dyn DevicePtr<f32>),
    };
    let gradients = gated_scan_backward(&session.stream, &shape, &options, &backward)?;
    let dims = extents(inputs);
    let states = [shape.sequences(), shape.channels];
    let [a, b, x, channel] = names;
    let mut out = Tensors::from([
        (format!("d{b}"), Tensor::elements(&dims, &session.download::<T>(&gradients.b)?)),
        ("dh0".into(), Tensor::elements(&states, &session.download::<f32>(&gradients.d_initial)?)),
    ]);
    for (name, gradient) in [(a, &gradients.a), (x, &gradients.x)] {
        if let Some(gradient) = gradient {
            out.insert(format!("d{name}"), Tensor::elements(&dims, &session.download::<T>(gradient)?));
        }
    }
    if let Some(gradient) = &gradients.channel {
        let values = session.download::<f32>(gradient)?;
        out.insert(format!("d{channel}"), Tensor::elements(&[shape.channels], &values));
    }
    Ok(out)
}

/// The source that the user's `a` makes, and the names of its tensors.
fn source(inputs: &Inputs) -> Result<(Source, [&'static str; 4])> {
    let log = inputs.parse("log")?;
    Ok(match inputs.optional("a").map(|a| a.shape.len()) {
        None if log => return Err(inputs.wrong("log", "wants a tensor `a`".into())),
        None => (Source::Cumsum, ["", "b", "", ""]),
        Some(1) => (Source::Channel { log }, ["", "b", "", "a"]),
        Some(_) => (if log { Source::Log } else { Source::Tensor }, ["a", "b", "", ""]),
    })
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (source, names) = source(inputs)?;
    match Dealt::of(inputs)? {
        Some(dealt) => on_ranks::run::<T>(session, inputs, &dealt, source, names),
        None => forward::<T>(session, inputs, source, names),
    }
}

fn run_backward<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (source, names) = source(inputs)?;
    backward::<T>(session, inputs, source, names)
}

/// The options of the user's tensors, for the reference.
pub struct Reference {
    extents: [usize; 3],
    split: usize,
    flags: Option<Vec<u8>>,
    cu_seqlens: Option<Vec<i32>>,
    initial: Option<Vec<f64>>,
}

impl Reference {
    /// From the inputs.
    pub fn new(inputs: &Inputs) -> Result<Self> {
        let (_, options) = shape_and_options::<f32>(inputs, Source::Cumsum)?;
        Ok(Self {
            extents: extents(inputs),
            split: options.split,
            flags: inputs.optional("flags").map(|f| f.as_flags().to_vec()),
            cu_seqlens: inputs.optional("cu_seqlens").map(Tensor::as_indices),
            initial: inputs.values("h0"),
        })
    }

    /// As the reference takes them.
    pub fn scan(&self) -> Scan<'_> {
        let [batch, seq_len, channels] = self.extents;
        Scan {
            batch,
            seq_len,
            channels,
            split: self.split,
            flags: self.flags.as_deref(),
            cu_seqlens: self.cu_seqlens.as_deref(),
            initial: self.initial.as_deref(),
        }
    }
}

/// Decays of every token, linear.
fn decays(inputs: &Inputs) -> Result<Vec<f64>> {
    let [batch, tokens, channels] = extents(inputs);
    let linear = |values: Vec<f64>, log: bool| if log { values.iter().map(|v| v.exp()).collect() } else { values };
    let log = inputs.parse("log")?;
    Ok(match inputs.optional("a") {
        None => vec![1.0; batch * tokens * channels],
        Some(a) if a.shape.len() == 1 => reference::per_channel(batch * tokens, &linear(a.to_f64(), log)),
        Some(a) => linear(a.to_f64(), log),
    })
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let options = Reference::new(inputs)?;
    let out = reference::forward(&options.scan(), &decays(inputs)?, &inputs.tensor("b")?.to_f64());
    Ok(Values::from([("h".into(), out.h), ("h_final".into(), out.last)]))
}

/// States for the backward pass: the user's, or those of the forward pass in the element type. Their rounding belongs to the
/// input, not to the operation.
pub fn saved(inputs: &Inputs, a: &[f64], b: &[f64]) -> Result<Vec<f64>> {
    if let Some(h) = inputs.values("h") {
        return Ok(h);
    }
    let h = reference::forward(&Reference::new(inputs)?.scan(), a, b).h;
    Ok(Tensor::floats(inputs.dtype, &[h.len()], &h).to_f64())
}

fn oracle_backward(inputs: &Inputs) -> Result<Values> {
    let options = Reference::new(inputs)?;
    let (a, b) = (decays(inputs)?, inputs.tensor("b")?.to_f64());
    let h = saved(inputs, &a, &b)?;
    let (dh, d_last) = (inputs.tensor("dh")?.to_f64(), inputs.values("dh_final"));
    let gradients = reference::backward(&options.scan(), &a, &h, &dh, d_last.as_deref());
    let mut out = Values::from([("db".into(), gradients.db), ("dh0".into(), gradients.d_initial)]);
    if let Some(given) = inputs.optional("a") {
        let log: bool = inputs.parse("log")?;
        let da = gradients.da.iter().zip(&a).map(|(da, a)| if log { da * a } else { *da }).collect::<Vec<_>>();
        let per_channel = given.shape.len() == 1;
        out.insert("da".into(), if per_channel { reference::sum_tokens(inputs.extent('D'), &da) } else { da });
    }
    Ok(out)
}

fn cases(dtype: DType, backward: bool) -> Vec<Case> {
    let [b, t, d] = [2, 300, 70];
    let decay: Vec<f64> = wave(1.0, b * t * d).iter().map(|v| 0.9 + 0.1 * v).collect();
    let log: Vec<f64> = decay.iter().map(|v| v.ln()).collect();
    let shape = [b, t, d];
    let case = |name: &str, a: Option<Tensor>, split: usize, set: &[&str], extras: bool| {
        let mut tensors = Tensors::from([("b".into(), Tensor::floats(dtype, &shape, &wave(2.0, b * t * d)))]);
        tensors.extend(a.map(|a| ("a".into(), a)));
        if extras {
            tensors.extend(dense_extras(dtype, &shape, backward));
        }
        if backward {
            tensors.insert("dh".into(), Tensor::floats(dtype, &shape, &wave(5.0, b * t * d)));
        }
        let attributes = set.iter().map(|s| s.to_string()).chain([format!("split={split}")]).collect();
        Case { name: name.into(), tensors, attributes }
    };
    let mut all = vec![
        case("forward", Some(Tensor::floats(dtype, &shape, &decay)), d, &[], false),
        case("both ways, flags, states", Some(Tensor::floats(dtype, &shape, &decay)), 32, &[], true),
        case(
            "log, reverse, chained",
            Some(Tensor::floats(dtype, &shape, &log)),
            0,
            &["log=true", "deterministic=true"],
            true,
        ),
        case("per channel", Some(Tensor::floats(DType::F32, &[d], &decay[..d])), 35, &[], true),
        case("cumulative sum", None, d, &[], false),
    ];
    all.push(packed(dtype, backward));
    if !backward {
        let dealt = |name: &str, way: &str| {
            case(name, Some(Tensor::floats(dtype, &shape, &decay)), 32, &["ranks=3", way], true)
        };
        all.push(dealt("dealt, states in turn", "schedule=serial"));
        all.push(dealt("dealt, states to all", "schedule=allgather"));
        let mut documents = packed(dtype, false);
        documents.name = "dealt documents, states in blocks".into();
        documents.attributes.extend(["ranks=4", "schedule=pipelined", "blocks=3"].map(String::from));
        all.push(documents);
    }
    all
}

/// Flags, and states of every row.
pub fn dense_extras(dtype: DType, &[b, t, d]: &[usize; 3], backward: bool) -> Tensors {
    let flags: Vec<u8> =
        (0..b * t).map(|i| [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 3][i * 7 % 11] * u8::from(i % 3 == 0)).collect();
    let mut tensors = Tensors::from([
        ("flags".into(), Tensor::flags(&[b, t], &flags)),
        ("h0".into(), Tensor::floats(DType::F32, &[b, d], &wave(3.0, b * d))),
    ]);
    if backward {
        tensors.insert("dh_final".into(), Tensor::floats(DType::F32, &[b, d], &wave(4.0, b * d)));
        // The backward pass takes any states: these are the same numbers for both sides, to the last bit.
        tensors.insert("h".into(), Tensor::floats(dtype, &[b, t, d], &wave(8.0, b * t * d)));
    }
    tensors
}

/// Five packed sequences, two of them empty.
fn packed(dtype: DType, backward: bool) -> Case {
    let (t, d, starts) = (200, 64, [0, 0, 7, 150, 150, 200]);
    let shape = [1, t, d];
    let decay: Vec<f64> = wave(1.0, t * d).iter().map(|v| 0.9 + 0.1 * v).collect();
    let mut tensors = Tensors::from([
        ("a".into(), Tensor::floats(dtype, &shape, &decay)),
        ("b".into(), Tensor::floats(dtype, &shape, &wave(2.0, t * d))),
        ("cu_seqlens".into(), Tensor::indices(&[starts.len()], &starts)),
        ("h0".into(), Tensor::floats(DType::F32, &[5, d], &wave(3.0, 5 * d))),
    ]);
    if backward {
        tensors.insert("dh".into(), Tensor::floats(dtype, &shape, &wave(5.0, t * d)));
    }
    Case { name: "packed".into(), tensors, attributes: vec!["split=24".into()] }
}
