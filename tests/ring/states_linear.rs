//! Linear attention on a dealt sequence beside the whole one in f64.

use crate::linear::case::{Case, Computed, Data, Direction, Uploaded};
use half::{bf16, f16};
use lookback_device::{DType, Element, cudarc::driver::DevicePtrMut};
use lookback_linear::{Decay, Mode, Options, Outputs as Own, Path, Read, Shape};
use lookback_ring::{
    Error,
    state::{
        Deal, Passing,
        linear::{Arrived, Outputs, Plan},
    },
    transport::{Staged, Transport, local},
};
use lookback_suite::{buffer::Guarded, device};
use std::thread;

use super::{
    case::PATIENCE,
    states::{Places, WAYS},
};

/// Two heads, f32 token by token, no states from outside.
pub fn case(tokens: usize) -> Case {
    Case { states: false, decay: Decay::Scalar, ..Case::new(DType::F32, 1, tokens, 8, 8) }
}

/// A whole case, dealt.
pub struct World<'a> {
    pub case: &'a Case,
    pub places: Places,
}

impl<'a> World<'a> {
    pub fn new(case: &'a Case, ranks: usize, passing: Passing) -> Self {
        let places = Places::new(case.batch, case.seq_len, case.heads, &case.starts, ranks, passing);
        Self { case, places }
    }

    pub fn shape(&self) -> Shape {
        Shape { packed: None, ..self.case.shape() }
    }

    pub fn options(&self) -> Options {
        self.case.options()
    }

    /// Whether a head's states go from the last rank to the first.
    pub fn is_reverse(&self, head: usize) -> bool {
        match self.case.mode {
            Mode::Reverse => true,
            Mode::Split(split) => head >= split,
            _ => false,
        }
    }

    /// The rank's own case and inputs, without starts.
    pub fn part(&self, rank: usize, data: &Data) -> (Case, Data) {
        let (case, places) = (self.case, &self.places);
        let g = |g: &[f64]| match case.decay {
            Decay::None | Decay::Head => g.to_vec(),
            _ => places.part(rank, g),
        };
        let direction = |from: &Direction, state: Option<Vec<f64>>| Direction {
            q: places.part(rank, &from.q),
            k: places.part(rank, &from.k),
            g: g(&from.g),
            state,
        };
        let own = places.states(rank, &data.own.state, |head| self.is_reverse(head));
        let reverse = data.reverse.as_ref().map(|r| direction(r, places.states(rank, &r.state, |_| true)));
        let part = Data {
            own: direction(&data.own, own),
            reverse,
            v: places.part(rank, &data.v),
            u: data.u.clone(),
            flags: places.flags(rank, &data.flags),
            normalizer: places.states(rank, &data.normalizer, |head| self.is_reverse(head)),
        };
        (Case { seq_len: places.tokens(rank).len(), starts: None, ..case.clone() }, part)
    }

    /// Every rank's results, put together, and what the tokens of each began with.
    pub fn forward<T: Element>(&self, data: &Data) -> (Computed, Vec<[Vec<f64>; 3]>) {
        let ends = local(self.places.deal.ranks, PATIENCE);
        let parts: Vec<(Computed, [Vec<f64>; 3])> = thread::scope(|scope| {
            let ranks = ends.into_iter().map(|mut end| scope.spawn(move || self.rank::<T>(data, &mut end)));
            ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let case = self.case;
        let states = case.shape().sequences() * case.heads * case.keys();
        let nan = |wanted: bool, len: usize| vec![f64::NAN; if wanted { len } else { 0 }];
        let (normalized, both) = (case.normalize.is_some(), case.mode == Mode::Bidirectional);
        let tokens = case.batch * case.seq_len;
        let mut whole = Computed {
            o: nan(true, tokens * case.heads * case.value_dim),
            state: nan(true, states * case.value_dim),
            reverse_state: nan(both, states * case.value_dim),
            normalizer: nan(normalized, states),
            denominator: nan(normalized, tokens * case.heads),
        };
        let mut arrived = Vec::new();
        for (rank, (part, began)) in parts.into_iter().enumerate() {
            self.places.put(rank, &part.o, &mut whole.o);
            self.places.put_states(rank, &part.state, &mut whole.state, |head| self.is_reverse(head));
            if both {
                self.places.put_states(rank, &part.reverse_state, &mut whole.reverse_state, |_| true);
            }
            if normalized {
                self.places.put(rank, &part.denominator, &mut whole.denominator);
                self.places.put_states(rank, &part.normalizer, &mut whole.normalizer, |head| self.is_reverse(head));
            }
            arrived.push(began);
        }
        // Documents without tokens are on no rank.
        let empty = self.places.deal.documents.iter().flat_map(|all| all.windows(2).map(|ends| ends[0] == ends[1]));
        assert!(empty.clone().all(|is| !is), "an oracle for them is missing");
        (whole, arrived)
    }

    fn rank<T: Element>(&self, data: &Data, end: &mut Staged) -> (Computed, [Vec<f64>; 3]) {
        let (rank, stream) = (end.rank(), device::stream());
        let (case, data) = self.part(rank, data);
        let made = Plan::new(&self.shape(), &self.options(), &self.places.deal, rank, &device::info());
        let plan = made.unwrap_or_else(|e| panic!("{case:?}: {e}"));
        assert_eq!((plan.tokens(), plan.sequences()), (case.seq_len, self.places.rows(rank).len().max(1)));
        let mut workspace = plan.workspace(&stream).unwrap();
        let on = Uploaded::<T>::new(&case, &data);
        let states = plan.sequences() * case.heads * case.keys();
        let (normalized, both) = (case.normalize.is_some(), case.mode == Mode::Bidirectional);
        let floats = |wanted: bool, len: usize| Guarded::<f32>::poisoned(if wanted { len } else { 0 }, 0);
        let tokens = case.batch * case.seq_len;
        let mut o = Guarded::<T>::poisoned(tokens * case.heads * case.value_dim, 0);
        let [mut state, mut began] = [(); 2].map(|()| floats(true, states * case.value_dim));
        let [mut reverse, mut reverse_began] = [(); 2].map(|()| floats(both, states * case.value_dim));
        let [mut sums, mut sums_began] = [(); 2].map(|()| floats(normalized, states));
        let mut denominator = floats(normalized, tokens * case.heads);
        // Twice, because a workspace serves many runs.
        for _ in 0..2 {
            let (mut o, mut state, mut began) = (o.view_mut(), state.view_mut(), began.view_mut());
            let (mut reverse, mut reverse_began) = (reverse.view_mut(), reverse_began.view_mut());
            let (mut sums, mut sums_began) = (sums.view_mut(), sums_began.view_mut());
            let mut denominator = denominator.view_mut();
            let own = Own {
                o: &mut o,
                state: Some(&mut state),
                reverse_state: both.then_some(&mut reverse as &mut dyn DevicePtrMut<f32>),
                normalizer: normalized.then_some(&mut sums as &mut dyn DevicePtrMut<f32>),
                denominator: normalized.then_some(&mut denominator as &mut dyn DevicePtrMut<f32>),
            };
            let arrived = Arrived {
                state: Some(&mut began),
                reverse_state: both.then_some(&mut reverse_began as &mut dyn DevicePtrMut<f32>),
                normalizer: normalized.then_some(&mut sums_began as &mut dyn DevicePtrMut<f32>),
            };
            let done = plan.run(&stream, &on.inputs(), Outputs { own, arrived }, &mut workspace, end);
            done.unwrap_or_else(|e| panic!("{:?}, rank {rank} of {case:?}: {e}", self.places.deal));
        }
        device::finish();
        let [state, reverse_state, normalizer, denominator] = [state, reverse, sums, denominator].map(|of| of.read());
        let computed = Computed { o: o.read(), state, reverse_state, normalizer, denominator };
        (computed, [began, reverse_began, sums_began].map(|of| of.read()))
    }

    pub fn check(&self) {
        let (got, want) = match self.case.dtype {
            DType::F32 => self.computed::<f32>(),
            DType::F16 => self.computed::<f16>(),
            DType::Bf16 => self.computed::<bf16>(),
        };
        self.case.compare(&got, &want);
    }

    fn computed<T: Element>(&self) -> (Computed, Computed) {
        let data = Data::new::<T>(self.case);
        (self.forward::<T>(&data).0, data.oracle(self.case))
    }
}

#[test]
fn ranks_compute_what_one_computes() {
    for ranks in [1, 2, 4] {
        for decay in [Decay::None, Decay::Head, Decay::Scalar, Decay::Vector] {
            for passing in WAYS {
                World::new(&Case { decay, batch: 2, states: true, ..case(37) }, ranks, passing).check();
            }
        }
    }
}

#[test]
fn every_mode_passes_states_its_way() {
    for passing in WAYS {
        for ranks in [2, 3] {
            for mode in [Mode::Reverse, Mode::Split(2), Mode::Bidirectional] {
                let case = Case { mode, heads: 4, query_heads: 4, key_heads: 4, states: true, ..case(29) };
                World::new(&case, ranks, passing).check();
                let bonus = Case { read: Read::ExclusiveBonus, decay: Decay::Vector, flags_every: 6, ..case.clone() };
                World::new(&bonus, ranks, passing).check();
                let own = Case { own_reverse: mode == Mode::Bidirectional, decay: Decay::Vector, ..case };
                World::new(&own, ranks, passing).check();
            }
        }
    }
}

#[test]
fn normalisers_pass_with_their_states() {
    for passing in [Passing::Serial, Passing::AllGather] {
        for decay in [Decay::None, Decay::Scalar, Decay::Vector] {
            for mode in [Mode::Causal, Mode::Reverse] {
                let case = Case { normalize: Some(1e-6), decay, mode, states: true, ..case(31) };
                World::new(&case, 3, passing).check();
            }
        }
    }
}

#[test]
fn documents_and_cuts_anywhere() {
    for starts in [vec![0, 40], vec![0, 3, 40], vec![0, 10, 20, 30, 40], vec![0, 9, 11, 31, 33, 40], vec![0, 1, 39, 40]]
    {
        for passing in WAYS {
            for mode in [Mode::Causal, Mode::Bidirectional] {
                let starts = Some(starts.clone());
                let case = Case { starts, mode, states: true, ..case(40) };
                World::new(&case, 4, passing).check();
                World::new(&Case { flags_every: 5, decay: Decay::Vector, ..case }, 4, passing).check();
            }
        }
    }
}

#[test]
fn fewer_tokens_than_ranks() {
    for passing in WAYS {
        for mode in [Mode::Causal, Mode::Bidirectional] {
            World::new(&Case { mode, states: true, ..case(3) }, 5, passing).check();
            World::new(&Case { mode, states: true, starts: Some(vec![0, 1, 3]), ..case(3) }, 5, passing).check();
        }
    }
}

#[test]
fn sixteen_bits_on_tensor_cores() {
    for passing in WAYS {
        for (dtype, decay) in [(DType::Bf16, Decay::Scalar), (DType::F16, Decay::Vector)] {
            let case = Case { dtype, decay, path: Path::Chain, ..Case::new(dtype, 1, 150, 32, 32) };
            World::new(&case, 2, passing).check();
        }
    }
}

#[test]
fn plans_refuse_what_does_not_go_across_ranks() {
    let plan =
        |case: &Case, deal: &Deal| Plan::new(&case.shape(), &case.options(), deal, 0, &device::info()).map(|_| ());
    let deal = |passing| Deal { ranks: 2, documents: None, passing };
    let no_kernel = |case: Case| {
        let refused = plan(&case, &deal(Passing::Pipelined { blocks: 2 }));
        assert!(matches!(refused, Err(Error::NoKernel { .. })), "{refused:?}");
    };
    no_kernel(Case { read: Read::Shifted, ..case(8) });
    no_kernel(Case { mode: Mode::PrefixState, ..case(8) });
    no_kernel(Case { normalize: Some(1e-6), ..case(8) });
    no_kernel(Case { starts: Some(vec![0, 8]), ..case(8) });
    let refused = plan(&case(8), &deal(Passing::Pipelined { blocks: 3 }));
    assert!(matches!(refused, Err(Error::Range { arg: "blocks", hi: 2, got: 3, .. })), "{refused:?}");
    let shared = Case { heads: 6, query_heads: 2, key_heads: 2, ..case(8) };
    let refused = plan(&shared, &deal(Passing::Pipelined { blocks: 3 }));
    assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    assert!(plan(&shared, &deal(Passing::Pipelined { blocks: 2 })).is_ok());
    let documents = Deal { documents: Some(vec![0, 9]), ..deal(Passing::Serial) };
    assert!(matches!(plan(&case(8), &documents), Err(Error::Shape { arg: "documents", .. })));
    assert!(matches!(
        plan(&case(8), &Deal { ranks: 0, ..deal(Passing::Serial) }),
        Err(Error::Range { arg: "ranks", .. })
    ));
}

#[test]
fn all_gather_sends_states_and_decays_and_serial_one_state() {
    let case = Case { decay: Decay::Vector, ..case(40) };
    let sent = |passing: Passing| -> Vec<u64> {
        let deal = Deal { ranks: 4, documents: None, passing };
        let plan = |rank| Plan::new(&case.shape(), &case.options(), &deal, rank, &device::info()).unwrap();
        (0..4).map(|rank| plan(rank).bytes_sent()).collect()
    };
    let (state, decay) = (4 * 2 * 8 * 8, 4 * 2 * 8);
    assert_eq!(sent(Passing::Serial), [state, state, state, 0]);
    assert_eq!(sent(Passing::Pipelined { blocks: 2 }), [state, state, state, 0]);
    assert_eq!(sent(Passing::AllGather), [3 * state, 2 * (state + decay), state + decay, 0]);
}
