//! What forward and backward share: which tokens a walk visits, and the state before each of them.

use super::{Attention, Decay, Direction, Inputs, Mode, Read};

/// One of at most two walks over every sequence.
pub(super) struct Walk<'a> {
    pub tensors: Direction<'a>,
    pub read: Read,
    pub bonus: Option<&'a [f64]>,
    /// Whether it takes the initial states and leaves the final ones.
    pub states: bool,
    /// Whether its `q`, `k` and decays are the reverse walk's own.
    pub own: bool,
}

/// One head of one sequence in one walk.
pub(super) struct Lane {
    pub head: usize,
    /// Row of the state tensors, if the sequence has one.
    pub state: Option<usize>,
    /// Visited tokens, in order, as rows of `[B,T]`.
    pub tokens: Vec<Visit>,
}

pub(super) struct Visit {
    pub row: usize,
    pub cut: bool,
    /// The key is in the initial state already.
    pub in_prefix: bool,
}

/// State and normaliser.
#[derive(Clone)]
pub(super) struct State {
    pub s: Vec<f64>,
    pub z: Vec<f64>,
}

/// A visited token and the state that it found, after a cut.
pub(super) struct Step<'a> {
    pub row: usize,
    pub cut: bool,
    pub in_prefix: bool,
    pub before: State,
    pub q: &'a [f64],
    pub k: &'a [f64],
    pub v: &'a [f64],
    /// `[K]` decay factors; zero at a cut.
    pub factor: Vec<f64>,
}

impl<'a> Attention<'a> {
    pub(super) fn walks(&self, inputs: &Inputs<'a>) -> Vec<Walk<'a>> {
        let tensors = Direction { q: inputs.q, k: inputs.k, decay: inputs.decay };
        let first = Walk { tensors, read: self.read, bonus: inputs.u, states: true, own: false };
        if self.mode != Mode::Bidirectional {
            return vec![first];
        }
        assert!(self.normalize.is_none(), "the two walks of a bidirectional mixer have no common normaliser");
        let read = if self.read == Read::Shifted { Read::Shifted } else { Read::ExclusiveBonus };
        let tensors = inputs.reverse.unwrap_or(tensors);
        let second = Walk { tensors, read, bonus: None, states: false, own: inputs.reverse.is_some() };
        vec![first, second]
    }

    pub(super) fn lanes(&self, walk: &Walk) -> Vec<Lane> {
        let mut sequences: Vec<(Option<usize>, std::ops::Range<usize>)> = match self.cu_seqlens {
            None => (0..self.batch).map(|b| (Some(b), b * self.seq_len..(b + 1) * self.seq_len)).collect(),
            Some(cu) => cu.windows(2).enumerate().map(|(n, w)| (Some(n), w[0] as usize..w[1] as usize)).collect(),
        };
        if let Some(cu) = self.cu_seqlens {
            sequences.push((None, cu.last().map_or(0, |end| *end as usize)..self.seq_len));
        }
        let mut lanes = Vec::new();
        for (state, rows) in sequences {
            for head in 0..self.heads {
                lanes.push(self.lane(walk, state, rows.clone(), head));
            }
        }
        lanes
    }

    fn lane(&self, walk: &Walk, state: Option<usize>, rows: std::ops::Range<usize>, head: usize) -> Lane {
        let reverse = match self.mode {
            Mode::Causal => false,
            Mode::Reverse => true,
            Mode::Split(split) => head >= split,
            Mode::Bidirectional => !walk.states,
        };
        let prefix = match (self.prefix_len, state) {
            (Some(len), Some(n)) => len[n] as usize,
            _ => 0,
        };
        let start = rows.start;
        let visit = |row: usize| Visit {
            row,
            cut: self.flags.is_some_and(|flags| flags[row] >> u8::from(reverse) & 1 == 1),
            in_prefix: row - start < prefix,
        };
        let tokens = if reverse { rows.rev().map(visit).collect() } else { rows.map(visit).collect() };
        Lane { head, state: state.filter(|_| walk.states), tokens }
    }

    /// Index of the first element of a row of `width` elements.
    pub(super) fn at(&self, row: usize, head: usize, heads: usize, width: usize) -> usize {
        (row * heads + head / (self.heads / heads)) * width
    }

    fn factor(&self, decay: Decay, visit: &Visit, head: usize) -> Vec<f64> {
        let k = self.key_dim;
        match decay {
            _ if visit.cut => vec![0.0; k],
            Decay::None => vec![1.0; k],
            Decay::Head(g) => vec![g[head].exp(); k],
            Decay::Scalar(g) => vec![g[visit.row * self.heads + head].exp(); k],
            Decay::Vector(g) => {
                let at = self.at(visit.row, head, self.heads, k);
                g[at..at + k].iter().map(|g| g.exp()).collect()
            }
        }
    }

    /// Every step of a lane, and the state that it ends with.
    pub(super) fn steps<'t>(&self, inputs: &Inputs<'t>, walk: &Walk<'t>, lane: &Lane) -> (Vec<Step<'t>>, State) {
        let (kd, vd) = (self.key_dim, self.value_dim);
        let slot = |tensor: Option<&[f64]>, width: usize| match (tensor, lane.state) {
            (Some(tensor), Some(n)) => tensor[(n * self.heads + lane.head) * width..][..width].to_vec(),
            _ => vec![0.0; width],
        };
        let mut state = State { s: slot(inputs.s0, kd * vd), z: slot(inputs.z0, kd) };
        let key = |row| &walk.tensors.k[self.at(row, lane.head, self.k_heads, kd)..][..kd];
        let value = |row| &inputs.v[self.at(row, lane.head, self.heads, vd)..][..vd];
        for visit in lane.tokens.iter().filter(|visit| visit.in_prefix) {
            let still = matches!(walk.tensors.decay, Decay::None);
            assert!(
                still && self.read == Read::Inclusive && self.mode == Mode::Causal,
                "a prefix neither decays nor turns"
            );
            state.add(key(visit.row), value(visit.row));
        }
        let mut steps = Vec::new();
        for visit in &lane.tokens {
            if visit.cut {
                state = State { s: vec![0.0; kd * vd], z: vec![0.0; kd] };
            }
            let step = Step {
                row: visit.row,
                cut: visit.cut,
                in_prefix: visit.in_prefix,
                before: state,
                q: &walk.tensors.q[self.at(visit.row, lane.head, self.q_heads, kd)..][..kd],
                k: key(visit.row),
                v: value(visit.row),
                factor: self.factor(walk.tensors.decay, visit, lane.head),
            };
            state = step.after();
            steps.push(step);
        }
        (steps, state)
    }
}

impl State {
    /// Takes in a token.
    fn add(&mut self, k: &[f64], v: &[f64]) {
        let values = v.len();
        for (i, k) in k.iter().enumerate() {
            self.z[i] += k;
            for (j, v) in v.iter().enumerate() {
                self.s[i * values + j] += k * v;
            }
        }
    }
}

impl Step<'_> {
    /// The state that the token leaves.
    pub(super) fn after(&self) -> State {
        let mut state = self.before.clone();
        let width = self.v.len();
        for (i, factor) in self.factor.iter().enumerate() {
            state.z[i] *= factor;
            state.s[i * width..(i + 1) * width].iter_mut().for_each(|s| *s *= factor);
        }
        if !self.in_prefix {
            state.add(self.k, self.v);
        }
        state
    }

    /// The state that the token reads.
    pub(super) fn read(&self, read: Read) -> State {
        if read == Read::ExclusiveBonus { self.before.clone() } else { self.after() }
    }
}
