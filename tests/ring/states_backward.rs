//! Gradients of linear attention on a dealt sequence beside those of the whole one in f64.

use super::{
    case::PATIENCE,
    states::WAYS,
    states_linear::{World, case},
};
use crate::linear::{
    backward_case::{Adjoints, Gradients, UploadedAdjoints, compare, oracle},
    case::{Case, Data, Uploaded},
};
use half::bf16;
use lookback_device::{DType, Element, cudarc::driver::DevicePtrMut};
use lookback_linear::{BackwardOutputs, Decay, Mode, Path, Read, ReverseGradients};
use lookback_ring::{
    Error,
    state::{
        Passing,
        linear::{ArrivedInputs, BackwardInputs, BackwardPlan},
    },
    transport::{Staged, Transport, local},
};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
};
use std::thread;

/// Serially, and gathered.
const WHOLE: [Passing; 2] = [WAYS[0], WAYS[1]];

impl World<'_> {
    fn adjoints(&self, rank: usize, all: &Adjoints) -> Adjoints {
        let places = &self.places;
        let rows = |all: &[f64]| if all.is_empty() { Vec::new() } else { places.part(rank, all) };
        Adjoints {
            d_o: rows(&all.d_o),
            d_state: places.states(rank, &all.d_state, |head| !self.is_reverse(head)),
            d_reverse_state: places.states(rank, &all.d_reverse_state, |_| false),
            d_normalizer: places.states(rank, &all.d_normalizer, |head| !self.is_reverse(head)),
            o: rows(&all.o),
            denominator: rows(&all.denominator),
        }
    }

    fn check_backward<T: Element>(&self) {
        let case = self.case;
        let data = Data::new::<T>(case);
        let adjoints = Adjoints::new::<T>(case, &data);
        let want = oracle(case, &data, &adjoints);
        let (_, arrived) = self.forward::<T>(&data);
        let ends = local(self.places.deal.ranks, PATIENCE);
        let parts: Vec<Gradients> = thread::scope(|scope| {
            let (data, adjoints) = (&data, &adjoints);
            let ranks = ends
                .into_iter()
                .zip(&arrived)
                .map(|(mut end, arrived)| scope.spawn(move || self.backward::<T>(data, adjoints, arrived, &mut end)));
            ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let nan = |like: &[f64]| vec![f64::NAN; like.len()];
        let by_token = matches!(case.decay, Decay::Scalar | Decay::Vector);
        let decays = |like: &[f64]| if by_token { nan(like) } else { vec![0.0; like.len()] };
        let mut got = Gradients {
            dq: nan(&want.dq),
            dk: nan(&want.dk),
            dv: nan(&want.dv),
            dg: decays(&want.dg),
            du: vec![0.0; want.du.len()],
            d_state: nan(&want.d_state),
            d_normalizer: nan(&want.d_normalizer),
            reverse_dq: nan(&want.reverse_dq),
            reverse_dk: nan(&want.reverse_dk),
            reverse_dg: decays(&want.reverse_dg),
            reverse_d_state: nan(&want.reverse_d_state),
        };
        for (rank, part) in parts.iter().enumerate() {
            let places = &self.places;
            let put = |part: &[f64], all: &mut [f64]| {
                if !all.is_empty() {
                    places.put(rank, part, all);
                }
            };
            let add = |part: &[f64], all: &mut [f64]| all.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            put(&part.dq, &mut got.dq);
            put(&part.dk, &mut got.dk);
            put(&part.dv, &mut got.dv);
            put(&part.reverse_dq, &mut got.reverse_dq);
            put(&part.reverse_dk, &mut got.reverse_dk);
            for (part, all) in [(&part.dg, &mut got.dg), (&part.reverse_dg, &mut got.reverse_dg)] {
                if by_token { put(part, all) } else { add(part, all) }
            }
            add(&part.du, &mut got.du);
            let own = |head| !self.is_reverse(head);
            places.put_states(rank, &part.d_state, &mut got.d_state, own);
            if !got.d_normalizer.is_empty() {
                places.put_states(rank, &part.d_normalizer, &mut got.d_normalizer, own);
            }
            if !got.reverse_d_state.is_empty() {
                places.put_states(rank, &part.reverse_d_state, &mut got.reverse_d_state, |_| false);
            }
        }
        compare(case, &got, &want);
    }

    fn backward<T: Element>(
        &self,
        data: &Data,
        adjoints: &Adjoints,
        arrived: &[Vec<f64>; 3],
        end: &mut Staged,
    ) -> Gradients {
        let (rank, stream) = (end.rank(), device::stream());
        let ((case, data), adjoints) = (self.part(rank, data), self.adjoints(rank, adjoints));
        let plan = BackwardPlan::new(&self.shape(), &self.options(), &self.places.deal, rank, &device::info());
        let plan = plan.unwrap_or_else(|e| panic!("{case:?}: {e}"));
        let mut workspace = plan.workspace(&stream).unwrap();
        let (on, adjoints) = (Uploaded::<T>::new(&case, &data), UploadedAdjoints::<T>::new(&case, &adjoints));
        let [began, reverse_began, sums_began] = arrived.each_ref().map(|all| upload_as::<f32>(all));
        let tokens = case.batch * case.seq_len;
        let (both, own) = (case.mode == Mode::Bidirectional, data.reverse.is_some());
        let (normalized, has_bonus) = (case.normalize.is_some(), data.u.is_some());
        let has_decay = case.decay != Decay::None;
        let elements = |wanted: bool, len: usize| Guarded::<T>::poisoned(if wanted { len } else { 0 }, 0);
        let floats = |wanted: bool, len: usize| Guarded::<f32>::poisoned(if wanted { len } else { 0 }, 0);
        let (q_len, k_len) = (tokens * case.query_heads * case.key_dim, tokens * case.key_heads * case.key_dim);
        let (mut dq, mut dk) = (elements(true, q_len), elements(true, k_len));
        let mut dv = elements(true, tokens * case.heads * case.value_dim);
        let (mut dg, mut du) = (floats(has_decay, data.own.g.len()), floats(has_bonus, case.heads * case.key_dim));
        let (mut d_state, mut d_sums) = (floats(true, arrived[0].len()), floats(normalized, arrived[2].len()));
        let (mut reverse_dq, mut reverse_dk) = (elements(own, q_len), elements(own, k_len));
        let mut reverse_dg = floats(own && has_decay, data.own.g.len());
        let mut reverse_d_state = floats(both, arrived[1].len());
        // Twice, because a workspace serves many runs.
        for _ in 0..2 {
            let (mut dq, mut dk, mut dv) = (dq.view_mut(), dk.view_mut(), dv.view_mut());
            let (mut dg, mut du) = (dg.view_mut(), du.view_mut());
            let (mut d_state, mut d_sums) = (d_state.view_mut(), d_sums.view_mut());
            let (mut reverse_dq, mut reverse_dk) = (reverse_dq.view_mut(), reverse_dk.view_mut());
            let (mut reverse_dg, mut reverse_d_state) = (reverse_dg.view_mut(), reverse_d_state.view_mut());
            let outputs = BackwardOutputs {
                dg: has_decay.then_some(&mut dg as &mut dyn DevicePtrMut<f32>),
                d_bonus: has_bonus.then_some(&mut du as &mut dyn DevicePtrMut<f32>),
                d_state: Some(&mut d_state),
                d_normalizer: normalized.then_some(&mut d_sums as &mut dyn DevicePtrMut<f32>),
                reverse: ReverseGradients {
                    dq: own.then_some(&mut reverse_dq as &mut dyn DevicePtrMut<T>),
                    dk: own.then_some(&mut reverse_dk as &mut dyn DevicePtrMut<T>),
                    dg: (own && has_decay).then_some(&mut reverse_dg as &mut dyn DevicePtrMut<f32>),
                    d_state: both.then_some(&mut reverse_d_state as &mut dyn DevicePtrMut<f32>),
                },
                ..BackwardOutputs::of(&mut dq, &mut dk, &mut dv)
            };
            let arrived = ArrivedInputs {
                state: Some(&began),
                reverse_state: both.then_some(&reverse_began as _),
                normalizer: normalized.then_some(&sums_began as _),
            };
            let inputs = BackwardInputs { own: adjoints.inputs(&on), arrived };
            let done = plan.run(&stream, &inputs, outputs, &mut workspace, end);
            done.unwrap_or_else(|e| panic!("{:?}, rank {rank} of {case:?}: {e}", self.places.deal));
        }
        device::finish();
        Gradients {
            dq: dq.read(),
            dk: dk.read(),
            dv: dv.read(),
            dg: dg.read(),
            du: du.read(),
            d_state: d_state.read(),
            d_normalizer: d_sums.read(),
            reverse_dq: reverse_dq.read(),
            reverse_dk: reverse_dk.read(),
            reverse_dg: reverse_dg.read(),
            reverse_d_state: reverse_d_state.read(),
        }
    }
}

#[test]
fn adjoints_pass_back() {
    for ranks in [1, 2, 4] {
        for decay in [Decay::None, Decay::Head, Decay::Scalar, Decay::Vector] {
            for passing in WHOLE {
                let case = Case { decay, batch: 2, states: true, ..case(29) };
                World::new(&case, ranks, passing).check_backward::<f32>();
            }
        }
    }
}

#[test]
fn every_mode_passes_adjoints_its_way() {
    for passing in WHOLE {
        for mode in [Mode::Reverse, Mode::Split(2), Mode::Bidirectional] {
            let case = Case { mode, heads: 4, query_heads: 2, key_heads: 4, states: true, ..case(23) };
            World::new(&case, 3, passing).check_backward::<f32>();
            let bonus = Case { read: Read::ExclusiveBonus, decay: Decay::Vector, flags_every: 6, ..case.clone() };
            World::new(&bonus, 3, passing).check_backward::<f32>();
            let own = Case { own_reverse: mode == Mode::Bidirectional, decay: Decay::Vector, ..case };
            World::new(&own, 2, passing).check_backward::<f32>();
        }
    }
}

#[test]
fn normalisers_documents_and_few_tokens() {
    for passing in WHOLE {
        for mode in [Mode::Causal, Mode::Reverse] {
            let case = Case { normalize: Some(1e-6), mode, states: true, ..case(25) };
            World::new(&case, 3, passing).check_backward::<f32>();
        }
        for mode in [Mode::Causal, Mode::Bidirectional] {
            for starts in [vec![0, 10, 20, 30, 40], vec![0, 9, 11, 31, 33, 40], vec![0, 1, 39, 40]] {
                let case = Case { starts: Some(starts), mode, states: true, flags_every: 9, ..case(40) };
                World::new(&case, 4, passing).check_backward::<f32>();
            }
            World::new(&Case { mode, states: true, ..case(3) }, 5, passing).check_backward::<f32>();
        }
    }
}

#[test]
fn sixteen_bits_on_tensor_cores() {
    for passing in WHOLE {
        let case = Case { path: Path::Chain, ..Case::new(DType::Bf16, 1, 150, 32, 32) };
        World::new(&Case { decay: Decay::Scalar, ..case }, 2, passing).check_backward::<bf16>();
    }
}

#[test]
fn gradients_do_not_come_in_blocks() {
    let case = case(8);
    let world = World::new(&case, 2, Passing::Pipelined { blocks: 2 });
    let plan = BackwardPlan::new(&world.shape(), &world.options(), &world.places.deal, 0, &device::info());
    assert!(matches!(plan, Err(Error::NoKernel { .. })));
}
