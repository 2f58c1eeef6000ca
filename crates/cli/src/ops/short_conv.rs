//! `short_conv`.

use super::{
    Case, Inputs, Operation, Values, for_dtype, gate,
    inputs::{optional, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element, cudarc::driver::DevicePtr};
use lookback_nn::short_conv::{self, Options, Plan, Shape};
use lookback_reference as reference;

/// Causal convolution of each channel by itself.
pub static SHORT_CONV: Operation = Operation {
    name: "short_conv",
    about: "out[t,c] = act(sum over j of weight[c,j] x[t-W+1+j,c] + bias[c]), never across a segment start",
    inputs: &[
        required("x", "T", "[B,T,C]", "tokens"),
        required("weight", "T", "[C,W]", "taps of each channel, the last for the current token; 2 to 4"),
        optional("bias", "T", "[C]", "added before the activation"),
        optional("flags", "u8", "[B,T]", "bit 0: a segment starts here"),
        optional("state", "T", "[B,X,C]", "the W-1 tokens before the first"),
    ],
    attributes: &[gate::ACTIVATION],
    outputs: &[
        required("out", "T", "[B,T,C]", ""),
        required("state_out", "T", "[B,X,C]", "the last W-1 tokens, 0 before a segment start"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let [batch, tokens, channels, taps] = ['B', 'T', 'C', 'W'].map(|letter| inputs.extent(letter));
    if let Some(state) = inputs.optional("state")
        && state.shape[1] + 1 != taps
    {
        return Err(
            inputs.wrong("state", format!("must have {} tokens, got {}", taps.saturating_sub(1), state.shape[1]))
        );
    }
    let upload = |name| inputs.optional(name).map(|t| session.upload(&t.as_elements::<T>())).transpose();
    let (x, weight) = (upload("x")?, upload("weight")?);
    let (Some(x), Some(weight)) = (x, weight) else { return Err(inputs.wrong("x", "is missing".into())) };
    let (bias, state) = (upload("bias")?, upload("state")?);
    let flags = inputs.optional("flags").map(|t| session.upload(t.as_flags())).transpose()?;
    let options = Options { dtype: T::DTYPE, activation: gate::activation(inputs)? };
    let plan = Plan::new(&Shape::dense(batch, tokens, channels, taps), &options, &session.info)?;
    let kept = taps - 1;
    let mut out = session.zeros::<T>(batch * tokens * channels)?;
    let mut state_out = session.zeros::<T>(batch * kept * channels)?;
    let optional = short_conv::Inputs {
        bias: bias.as_ref().map(|b| b as &dyn DevicePtr<T>),
        flags: flags.as_ref().map(|f| f as &dyn DevicePtr<u8>),
        state: state.as_ref().map(|s| s as &dyn DevicePtr<T>),
    };
    plan.run(&session.stream, &x, &weight, optional, &mut out, Some(&mut state_out))?;
    Ok(Tensors::from([
        ("out".into(), Tensor::elements(&[batch, tokens, channels], &session.download::<T>(&out)?)),
        ("state_out".into(), Tensor::elements(&[batch, kept, channels], &session.download::<T>(&state_out)?)),
    ]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (x, weight) = (inputs.tensor("x")?.to_f64(), inputs.tensor("weight")?.to_f64());
    let (bias, state) = (inputs.values("bias"), inputs.values("state"));
    let flags = inputs.optional("flags").map(|f| f.as_flags().to_vec());
    let conv = reference::short_conv::Conv {
        batch: inputs.extent('B'),
        tokens: inputs.extent('T'),
        channels: inputs.extent('C'),
        taps: inputs.extent('W'),
        bias: bias.as_deref(),
        flags: flags.as_deref(),
        state: state.as_deref(),
        activation: gate::reference_activation(inputs)?,
    };
    let conv = reference::short_conv::forward(&conv, &x, &weight);
    Ok(Values::from([("out".into(), conv.out), ("state_out".into(), conv.state)]))
}

fn cases(dtype: DType) -> Vec<Case> {
    [(2, 9, 64, 4, true), (1, 2, 33, 3, true), (2, 40, 16, 2, false)]
        .map(|(b, t, c, w, extras)| {
            let floats = |phase, shape: &[usize]| Tensor::floats(dtype, shape, &wave(phase, shape.iter().product()));
            let mut tensors =
                Tensors::from([("x".into(), floats(1.0, &[b, t, c])), ("weight".into(), floats(2.0, &[c, w]))]);
            if extras {
                let flags: Vec<u8> = (0..b * t).map(|i| u8::from(i % 5 == 3)).collect();
                tensors.insert("bias".into(), floats(3.0, &[c]));
                tensors.insert("state".into(), floats(4.0, &[b, w - 1, c]));
                tensors.insert("flags".into(), Tensor::flags(&[b, t], &flags));
            }
            let activation = if extras { "silu" } else { "none" };
            Case {
                name: format!("{b}x{t}x{c} width {w}"),
                tensors,
                attributes: vec![format!("activation={activation}")],
            }
        })
        .into()
}
