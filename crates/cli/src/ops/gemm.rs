//! `gemm`.

use super::{
    Case, Inputs, Operation, Values, for_dtype, gate,
    inputs::{AttributeSpec, optional, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element};
use lookback_nn::{
    Param,
    gemm::{Options, Plan, Shape},
};
use lookback_reference as reference;

/// `c = act(a op(b) + bias)`.
pub static GEMM: Operation = Operation {
    name: "gemm",
    about: "c = act(a b^T + bias), b as the weight of a linear layer; with transposed=false c = act(a b + bias)",
    inputs: &[
        required("a", "T", "[M,K]", "left factor"),
        required("b", "T", "[X,Y]", "right factor, [N,K], or [K,N] with transposed=false"),
        optional("bias", "T", "[N]", "added to each row"),
    ],
    attributes: &[
        AttributeSpec { name: "transposed", values: "true|false", default: "true", about: "b is [N,K]" },
        gate::ACTIVATION,
    ],
    outputs: &[required("c", "T", "[M,N]", "")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// Extents M, N, K, and whether `b` is `[N,K]`.
fn sizes(inputs: &Inputs) -> Result<(usize, usize, usize, bool)> {
    let transposed: bool = inputs.parse("transposed")?;
    let [m, k, x, y] = ['M', 'K', 'X', 'Y'].map(|letter| inputs.extent(letter));
    let (n, inner) = if transposed { (x, y) } else { (y, x) };
    if inner != k {
        let want = if transposed { "[N,K]" } else { "[K,N]" };
        return Err(inputs.wrong("b", format!("must have shape {want} with K = {k}, got [{x}, {y}]")));
    }
    if inputs.optional("bias").is_some_and(|b| b.len() != n) {
        return Err(inputs.wrong("bias", format!("must have shape [N] with N = {n}, got [{}]", inputs.extent('N'))));
    }
    Ok((m, n, k, transposed))
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (m, n, k, transposed) = sizes(inputs)?;
    let a = session.upload(&inputs.tensor("a")?.as_elements::<T>())?;
    let b = session.upload(&inputs.tensor("b")?.as_elements::<T>())?;
    let bias = inputs.optional("bias").map(|b| session.upload(&b.as_elements::<T>())).transpose()?;
    let shape = if transposed { Shape::linear(m, n, k) } else { Shape::plain(m, n, k) };
    let options = Options { dtype: T::DTYPE, out: T::DTYPE, activation: gate::activation(inputs)?, policy: None };
    let plan = Plan::new(&shape, &options, &session.info)?;
    let mut c = session.zeros::<T>(m * n)?;
    let bias = bias.as_ref().map_or(Param::None, |b| Param::Same(b));
    plan.run(&session.stream, &a, &b, bias, &mut c)?;
    Ok(Tensors::from([("c".into(), Tensor::elements(&[m, n], &session.download::<T>(&c)?))]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (m, n, k, transposed) = sizes(inputs)?;
    let (a, b) = (inputs.tensor("a")?.to_f64(), inputs.tensor("b")?.to_f64());
    let shape = reference::gemm::Shape { m, n, k, transposed };
    let activation = gate::reference_activation(inputs)?;
    let c = reference::gemm::forward(&shape, &a, &b, inputs.values("bias").as_deref(), activation);
    Ok(Values::from([("c".into(), c)]))
}

fn cases(dtype: DType) -> Vec<Case> {
    let case = |m: usize, n: usize, k: usize, transposed: bool, activation: &str| {
        let b = if transposed { [n, k] } else { [k, n] };
        Case {
            name: format!("{m}x{n}x{k}{}", if transposed { "" } else { " plain" }),
            tensors: Tensors::from([
                ("a".into(), Tensor::floats(dtype, &[m, k], &wave(1.0, m * k))),
                ("b".into(), Tensor::floats(dtype, &b, &wave(2.0, n * k))),
                ("bias".into(), Tensor::floats(dtype, &[n], &wave(3.0, n))),
            ]),
            attributes: vec![format!("transposed={transposed}"), format!("activation={activation}")],
        }
    };
    vec![
        case(70, 65, 64, true, "none"),
        case(33, 17, 19, true, "gelu"),
        case(64, 72, 40, false, "none"),
        case(5, 9, 7, false, "silu"),
        case(130, 136, 96, true, "none"),
    ]
}
