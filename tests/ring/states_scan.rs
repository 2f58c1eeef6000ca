//! Gated scans of a dealt sequence beside the whole one in f64.

use super::{
    case::PATIENCE,
    states::{Places, WAYS},
};
use crate::scan::case::{Case, Data, Gradients, SOURCES, Uploaded, with_inputs};
use half::bf16;
use lookback_device::{
    DType, Element,
    cudarc::driver::{DevicePtr, DevicePtrMut},
};
use lookback_ring::{
    Error,
    state::{
        Deal, Passing,
        scan::{BackwardInputs, BackwardPlan, Outputs, Plan},
    },
    transport::{Staged, Transport, local},
};
use lookback_scan::{BackwardInputs as OwnInputs, BackwardOutputs, GateGradients, Source};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
    measure::{Gate, assert_close, gate},
    random::round,
};
use std::thread;

fn case(source: Source, tokens: usize) -> Case {
    Case::new(source, DType::F32, 1, tokens, 6)
}

struct World<'a> {
    case: &'a Case,
    places: Places,
}

/// One rank's results.
struct Part {
    h: Vec<f64>,
    last: Vec<f64>,
    gradients: Gradients,
}

impl<'a> World<'a> {
    fn new(case: &'a Case, ranks: usize, passing: Passing) -> Self {
        Self { case, places: Places::new(case.batch, case.seq_len, case.channels, &case.starts, ranks, passing) }
    }

    fn is_reverse(&self, channel: usize) -> bool {
        channel >= self.case.split
    }

    fn part(&self, rank: usize, data: &Data) -> (Case, Data) {
        let places = &self.places;
        let part = Data {
            a: places.part(rank, &data.a),
            b: places.part(rank, &data.b),
            x: places.part(rank, &data.x),
            channel: data.channel.clone(),
            flags: places.flags(rank, &data.flags),
            initial: places.states(rank, &data.initial, |c| self.is_reverse(c)),
            dh: places.part(rank, &data.dh),
            d_last: places.states(rank, &data.d_last, |c| !self.is_reverse(c)),
        };
        (Case { seq_len: places.tokens(rank).len(), starts: None, ..self.case.clone() }, part)
    }

    fn check<T: Element>(&self) {
        let case = self.case;
        let data = Data::new::<T>(case);
        let want = data.forward(case);
        let h: Vec<f64> = want.h.iter().map(|v| round::<T>(*v)).collect();
        let wanted = data.backward(case, &h);
        let ends = local(self.places.deal.ranks, PATIENCE);
        let parts: Vec<Part> = thread::scope(|scope| {
            let (data, h) = (&data, &h);
            let ranks = ends.into_iter().map(|mut end| scope.spawn(move || self.rank::<T>(data, h, &mut end)));
            ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let nan = |like: &[f64]| vec![f64::NAN; like.len()];
        let (mut got_h, mut last) = (nan(&want.h), nan(&want.last));
        let mut got = Gradients {
            a: nan(&wanted.a),
            b: nan(&wanted.b),
            x: nan(&wanted.x),
            channel: vec![0.0; wanted.channel.len()],
            d_initial: nan(&wanted.d_initial),
        };
        for (rank, part) in parts.iter().enumerate() {
            let (places, gradients) = (&self.places, &part.gradients);
            places.put(rank, &part.h, &mut got_h);
            places.put_states(rank, &part.last, &mut last, |c| self.is_reverse(c));
            places.put(rank, &gradients.b, &mut got.b);
            if !got.a.is_empty() {
                places.put(rank, &gradients.a, &mut got.a);
            }
            if !got.x.is_empty() {
                places.put(rank, &gradients.x, &mut got.x);
            }
            got.channel.iter_mut().zip(&gradients.channel).for_each(|(sum, part)| *sum += part);
            places.put_states(rank, &gradients.d_initial, &mut got.d_initial, |c| !self.is_reverse(c));
        }
        let close = |what: &str, got: &[f64], want: &[f64], gate| {
            let name = format!("{what} of {} with {:?}", case.name(), self.places.deal);
            assert_close(&name, got, want, case.channels, gate);
        };
        let of_type = gate(T::DTYPE);
        close("h", &got_h, &want.h, of_type);
        close("last", &last, &want.last, Gate::F32);
        for (what, got, want) in [("da", &got.a, &wanted.a), ("db", &got.b, &wanted.b), ("dx", &got.x, &wanted.x)] {
            close(what, got, want, of_type);
        }
        close("d_channel", &got.channel, &wanted.channel, Gate::F32);
        close("d_initial", &got.d_initial, &wanted.d_initial, Gate::F32);
    }

    fn rank<T: Element>(&self, data: &Data, h: &[f64], end: &mut Staged) -> Part {
        let (rank, stream) = (end.rank(), device::stream());
        let (whole, deal) = (self.case, &self.places.deal);
        let (case, data) = self.part(rank, data);
        let shape = Case { starts: None, ..whole.clone() }.shape();
        let plan = Plan::new(&shape, &case.options(), deal, rank, &device::info());
        let plan = plan.unwrap_or_else(|e| panic!("{}: {e}", case.name()));
        let on = Uploaded::<T>::new(&case, &data);
        let states = plan.sequences() * case.channels;
        let mut workspace = plan.workspace(&stream).unwrap();
        let mut out = Guarded::<T>::poisoned(data.b.len(), 0);
        let [mut last, mut arrived] = [(); 2].map(|()| Guarded::<f32>::poisoned(states, 0));
        // Twice, because a workspace serves many runs.
        for _ in 0..2 {
            with_inputs(case.source, &on, |inputs| {
                let (mut h, mut last, mut arrived) = (out.view_mut(), last.view_mut(), arrived.view_mut());
                let outputs = Outputs { h: &mut h, last: Some(&mut last), arrived: Some(&mut arrived) };
                let done = plan.run(&stream, &inputs, outputs, &mut workspace, end);
                done.unwrap_or_else(|e| panic!("rank {rank} of {}: {e}", case.name()));
            });
        }
        device::finish();
        let gradients = self.backward::<T>((&case, &data), &on, (h, arrived.read()), end);
        Part { h: out.read(), last: last.read(), gradients }
    }

    fn backward<T: Element>(
        &self,
        (case, data): (&Case, &Data),
        on: &Uploaded<T>,
        (h, arrived): (&[f64], Vec<f64>),
        end: &mut Staged,
    ) -> Gradients {
        let (rank, stream, whole) = (end.rank(), device::stream(), self.case);
        let shape = Case { starts: None, ..whole.clone() }.shape();
        let plan = BackwardPlan::new(&shape, &case.options(), &self.places.deal, rank, &device::info());
        let plan = plan.unwrap_or_else(|e| panic!("{}: {e}", case.name()));
        let mut workspace = plan.workspace(&stream).unwrap();
        let (h, dh) = (upload_as::<T>(&self.places.part(rank, h)), upload_as::<T>(&data.dh));
        let states = arrived.len();
        let (arrived, d_last) = (upload_as::<f32>(&arrived), data.d_last.as_ref().map(|v| upload_as::<f32>(v)));
        let is_producer = matches!(case.source, Source::GatedSsm { .. } | Source::RgLru { .. });
        let has_a = is_producer || matches!(case.source, Source::Tensor | Source::Log);
        let has_channel = matches!(case.source, Source::Channel { .. } | Source::RgLru { .. });
        let tensor = |there: bool| there.then(|| Guarded::<T>::poisoned(data.b.len(), 0));
        let (mut da, mut db, mut dx) = (tensor(has_a), tensor(true), tensor(is_producer));
        let mut channel = has_channel.then(|| Guarded::<f32>::poisoned(case.channels, 0));
        let mut d_initial = Guarded::<f32>::poisoned(states, 0);
        for _ in 0..2 {
            with_inputs(case.source, on, |forward| {
                let [mut a, mut b, mut x] = [&mut da, &mut db, &mut dx].map(|g| g.as_mut().map(Guarded::view_mut));
                let (mut channel, mut d_initial) = (channel.as_mut().map(Guarded::view_mut), d_initial.view_mut());
                let d_last = d_last.as_ref().map(|s| s as &dyn DevicePtr<f32>);
                let own = OwnInputs { forward, h: &h, dh: &dh, d_last };
                let gates = GateGradients {
                    a: a.as_mut().map(|s| s as &mut dyn DevicePtrMut<T>),
                    b: b.as_mut().map(|s| s as &mut dyn DevicePtrMut<T>),
                    x: x.as_mut().map(|s| s as &mut dyn DevicePtrMut<T>),
                    channel: channel.as_mut().map(|s| s as &mut dyn DevicePtrMut<f32>),
                };
                let outputs = BackwardOutputs { gates, d_initial: Some(&mut d_initial) };
                let inputs = BackwardInputs { own, arrived: Some(&arrived) };
                let done = plan.run(&stream, &inputs, outputs, &mut workspace, end);
                done.unwrap_or_else(|e| panic!("rank {rank} of {}: {e}", case.name()));
            });
        }
        device::finish();
        let read = |g: &Option<Guarded<T>>| g.as_ref().map_or(Vec::new(), Guarded::read);
        Gradients {
            a: read(&da),
            b: read(&db),
            x: read(&dx),
            channel: channel.as_ref().map_or(Vec::new(), Guarded::read),
            d_initial: d_initial.read(),
        }
    }
}

#[test]
fn every_source_and_way() {
    for source in SOURCES {
        for passing in WAYS {
            for (ranks, states) in [(2, false), (3, true)] {
                let case = Case { states, batch: 2, split: 4, ..case(source, 31) };
                World::new(&case, ranks, passing).check::<f32>();
            }
        }
    }
}

#[test]
fn documents_and_cuts_anywhere() {
    for starts in [vec![0, 40], vec![0, 10, 20, 30, 40], vec![0, 9, 11, 31, 33, 40], vec![0, 1, 39, 40]] {
        for passing in WAYS {
            for source in [Source::Tensor, Source::Channel { log: true }, Source::GatedSsm { normalize: true }] {
                let case = Case { starts: Some(starts.clone()), split: 3, flags_every: 7, ..case(source, 40) };
                World::new(&case, 4, passing).check::<f32>();
            }
        }
    }
}

#[test]
fn fewer_tokens_than_ranks() {
    for passing in WAYS {
        World::new(&Case { split: 3, ..case(Source::Log, 3) }, 5, passing).check::<f32>();
        let starts = Some(vec![0, 1, 3]);
        World::new(&Case { split: 3, starts, ..case(Source::Log, 3) }, 5, passing).check::<f32>();
    }
}

#[test]
fn sixteen_bits_and_several_tiles() {
    for passing in WAYS {
        let case = Case { dtype: DType::Bf16, channels: 40, split: 24, ..case(Source::Tensor, 600) };
        World::new(&case, 2, passing).check::<bf16>();
    }
}

#[test]
fn plans_refuse_what_does_not_go_across_ranks() {
    let plan =
        |case: &Case, deal: &Deal| Plan::new(&case.shape(), &case.options(), deal, 0, &device::info()).map(|_| ());
    let deal = |documents, passing| Deal { ranks: 2, documents, passing };
    let packed = Case { starts: Some(vec![0, 8]), ..case(Source::Tensor, 8) };
    let refused = plan(&packed, &deal(None, Passing::Serial));
    assert!(matches!(refused, Err(Error::NoKernel { .. })), "{refused:?}");
    let reset = case(Source::RgLru { unit_at_reset: true }, 8);
    let refused = plan(&reset, &deal(Some(vec![0, 4, 8]), Passing::Serial));
    assert!(matches!(refused, Err(Error::NoKernel { .. })), "{refused:?}");
    let narrow = Case { split: 5, ..case(Source::Tensor, 8) };
    let refused = plan(&narrow, &deal(None, Passing::Pipelined { blocks: 2 }));
    assert!(matches!(refused, Err(Error::Range { arg: "blocks", hi: 1, got: 2, .. })), "{refused:?}");
}
