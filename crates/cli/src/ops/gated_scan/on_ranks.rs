//! `gated_scan` of a sequence that is dealt to ranks.

use super::{
    super::{
        Inputs,
        dealt::Dealt,
        ranks::{self, Rank, bytes},
    },
    Uploaded, extents, shape_and_options,
};
use crate::{
    Result,
    session::Session,
    tensor::{Kind, Tensors},
};
use lookback_device::Element;
use lookback_ring::state::scan::{Outputs, Plan};
use lookback_scan::{Shape, Source};

/// Results as of the whole.
pub fn run<T: Element>(
    session: &Session,
    inputs: &Inputs,
    dealt: &Dealt,
    source: Source,
    names: [&str; 4],
) -> Result<Tensors> {
    let (shape, options) = shape_and_options::<T>(inputs, source)?;
    let whole = Shape::dense(shape.batch, shape.seq_len, shape.channels);
    let (rows, states) = (extents(inputs), [shape.sequences(), shape.channels]);
    let most =
        [rows.iter().product::<usize>() * T::DTYPE.size(), states.iter().product::<usize>().max(shape.channels) * 4];
    let parts = ranks::each(session, &dealt.group, &most, |Rank { session, rank, transport }| {
        let plan = Plan::new(&whole, &options, &dealt.deal, rank, &session.info)?;
        let mut workspace = plan.workspace(&session.stream)?;
        let tensors = Uploaded::<T>::new(session, &dealt.part(rank, inputs), names)?;
        let mut h = session.zeros::<T>(shape.batch * plan.tokens() * shape.channels)?;
        let mut last = session.zeros::<f32>(plan.sequences() * shape.channels)?;
        let outputs = Outputs { h: &mut h, last: Some(&mut last), arrived: None };
        plan.run(&session.stream, &tensors.inputs(), outputs, &mut workspace, transport)?;
        Ok(vec![bytes(&session.download::<T>(&h)?), bytes(&session.download::<f32>(&last)?)])
    })?;
    let is_reverse = |channel: usize| channel >= options.split;
    Ok(Tensors::from([
        ("h".into(), dealt.join_tokens(&parts, 0, Kind::Float(T::DTYPE), &rows)),
        ("h_final".into(), dealt.join_states(&parts, 1, &states, inputs.optional("h0"), is_reverse)),
    ]))
}
