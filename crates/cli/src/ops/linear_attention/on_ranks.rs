//! `linear_attention` of a sequence that is dealt to ranks.

use super::{
    super::{
        Inputs,
        dealt::Dealt,
        ranks::{self, Rank, bytes},
    },
    setting::{Setting, Uploaded},
};
use crate::{
    Result,
    session::Session,
    tensor::{Kind, Tensors},
};
use lookback_device::{DType, Element, cudarc::driver::DevicePtrMut};
use lookback_linear::{Mode, Outputs as Own, Shape};
use lookback_ring::state::linear::{Arrived, Outputs, Plan};

/// Results as of the whole.
pub fn run<T: Element>(session: &Session, inputs: &Inputs, setting: &Setting, dealt: &Dealt) -> Result<Tensors> {
    let Setting { shape, options } = setting;
    let whole = Shape { packed: None, ..*shape };
    let (rows, states) = (setting.output(), setting.states());
    let [_, heads, keys, values] = states;
    let is_normalized = options.normalize.is_some();
    let sums = |sequences: usize| if is_normalized { sequences * heads * keys } else { 0 };
    let divisors = |tokens: usize| if is_normalized { tokens * heads } else { 0 };
    let (all_tokens, all_sequences) = (rows[0] * rows[1], states[0].max(1));
    let most = [
        rows.iter().product::<usize>() * T::DTYPE.size(),
        all_sequences * heads * keys * values * 4,
        sums(all_sequences) * 4,
        divisors(all_tokens) * 4,
    ];
    let parts = ranks::each(session, &dealt.group, &most, |Rank { session, rank, transport }| {
        let plan = Plan::new(&whole, options, &dealt.deal, rank, &session.info)?;
        let mut workspace = plan.workspace(&session.stream)?;
        let tensors = Uploaded::<T>::new(session, &dealt.part(rank, inputs))?;
        let (tokens, sequences) = (shape.batch * plan.tokens(), plan.sequences());
        let mut o = session.zeros::<T>(tokens * heads * values)?;
        let mut state = session.zeros::<f32>(sequences * heads * keys * values)?;
        let mut normalizer = session.zeros::<f32>(sums(sequences))?;
        let mut denominator = session.zeros::<f32>(divisors(tokens))?;
        let own = Own {
            o: &mut o,
            state: Some(&mut state),
            reverse_state: None,
            normalizer: is_normalized.then_some(&mut normalizer as &mut dyn DevicePtrMut<f32>),
            denominator: is_normalized.then_some(&mut denominator as &mut dyn DevicePtrMut<f32>),
        };
        let outputs = Outputs { own, arrived: Arrived::default() };
        plan.run(&session.stream, &tensors.inputs(), outputs, &mut workspace, transport)?;
        Ok(vec![
            bytes(&session.download::<T>(&o)?),
            bytes(&session.download::<f32>(&state)?),
            bytes(&session.download::<f32>(&normalizer)?),
            bytes(&session.download::<f32>(&denominator)?),
        ])
    })?;
    let is_reverse = |head: usize| match options.mode {
        Mode::Reverse => true,
        Mode::Split(split) => head >= split,
        _ => false,
    };
    let final_states = |at: usize, shape: &[usize], initial: &str| {
        dealt.join_states(&parts, at, shape, inputs.optional(initial), is_reverse)
    };
    let mut named = Tensors::from([
        ("o".into(), dealt.join_tokens(&parts, 0, Kind::Float(T::DTYPE), &rows)),
        ("s_final".into(), final_states(1, &states, "s0")),
    ]);
    if is_normalized {
        named.insert("z_final".into(), final_states(2, &states[..3], "z0"));
        named.insert("den".into(), dealt.join_tokens(&parts, 3, Kind::Float(DType::F32), &rows[..3]));
    }
    Ok(named)
}
