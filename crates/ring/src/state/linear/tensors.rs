//! What a dealt pass has besides the tensors of [`lookback_linear`].

use crate::Result;
use cudarc::driver::{DevicePtrMut, sys::CUdeviceptr};
use lookback_device::strided::{self, Strided};
use lookback_linear::{self as linear, Decay, Mode, Options, RawInputs, RawOutputs, Read, Shape};

/// States that the rank's tokens began with: the caller's where a document begins on the rank, those of earlier ranks where it goes on. A
/// backward pass takes them for its initial states.
#[derive(Default)]
pub struct Arrived<'a> {
    /// `[N,H,K,V]` f32.
    pub state: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N,H,K,V]` f32 of the reverse direction of [`Mode::Bidirectional`].
    pub reverse_state: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N,H,K]` f32 sums of keys, with a normaliser.
    pub normalizer: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// Results of the rank's tokens.
pub struct Outputs<'a, T> {
    /// Those of the operation. Final states of a document that goes on on another rank are those after this rank's tokens.
    pub own: linear::Outputs<'a, T>,
    /// What the tokens began with.
    pub arrived: Arrived<'a>,
}

impl<'a, T> Outputs<'a, T> {
    /// The output alone.
    pub fn of(o: &'a mut dyn DevicePtrMut<T>) -> Self {
        Self { own: linear::Outputs::of(o), arrived: Arrived::default() }
    }
}

/// [`Arrived`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawArrived {
    /// States.
    pub state: CUdeviceptr,
    /// States of the reverse direction.
    pub reverse_state: CUdeviceptr,
    /// Sums of keys.
    pub normalizer: CUdeviceptr,
}

/// The rank's tensors, without gaps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensors {
    pub q: Strided,
    pub k: Strided,
    pub v: Strided,
    pub g: Strided,
    pub bonus: Strided,
    pub flags: Strided,
    pub o: Strided,
    pub state: Strided,
    pub sums: Strided,
    pub denominator: Strided,
}

impl Tensors {
    /// `states` are the elements of all states, and of all sums of keys.
    pub fn new(shape: &Shape, options: &Options, tokens: usize, states: [usize; 2]) -> Self {
        let Shape { batch, heads, query_heads, key_heads, key_dim, value_dim, .. } = *shape;
        let size = options.dtype.size();
        let rows = |heads, width, size| Strided::dense([batch, tokens, heads], width, size);
        let [state, sums] = states;
        let floats = |count| Strided::dense([1, 1, 1], count, 4);
        Self {
            q: rows(query_heads, key_dim, size),
            k: rows(key_heads, key_dim, size),
            v: rows(heads, value_dim, size),
            g: match options.decay {
                Decay::None => Strided::NONE,
                Decay::Head => floats(heads),
                Decay::Scalar => rows(heads, 1, 4),
                Decay::Vector => rows(heads, key_dim, 4),
            },
            bonus: floats(heads * key_dim),
            flags: Strided::dense([1, 1, batch], tokens, 1),
            o: rows(heads, value_dim, size),
            state: floats(state),
            sums: floats(sums),
            denominator: rows(heads, 1, 4),
        }
    }

    /// Presence, alignment and overlap, before anything is sent. What a lane's walk checks again of its part passes then. `names` are
    /// those of the output and of its states and sums, or of what stands for them in a backward pass.
    pub fn check(
        &self,
        op: &'static str,
        [o, state, reverse_state, normalizer]: [&'static str; 4],
        options: &Options,
        inputs: &RawInputs,
        outputs: &RawOutputs,
        arrived: &RawArrived,
    ) -> Result<()> {
        let (two, normalized) = (options.mode == Mode::Bidirectional, options.normalize.is_some());
        let decays = options.decay != Decay::None;
        let has_bonus = options.read == Read::ExclusiveBonus;
        if self.g.elements() > 0 || !decays {
            strided::given(op, "g", decays, inputs.g != 0)?;
        }
        for (arg, address, meant) in [
            ("bonus", inputs.bonus, has_bonus),
            ("normalizer", inputs.normalizer, normalized),
            ("reverse.q", inputs.reverse_q, two),
            ("reverse.k", inputs.reverse_k, two),
            ("reverse.g", inputs.reverse_g, two && decays),
            ("reverse.state", inputs.reverse_state, two),
            (reverse_state, outputs.reverse_state, two),
            (normalizer, outputs.normalizer, normalized),
            ("denominator", outputs.denominator, normalized),
            ("arrived reverse state", arrived.reverse_state, two),
            ("arrived normalizer", arrived.normalizer, normalized),
            ("cu_seqlens", inputs.cu_seqlens, false),
            ("prefix_len", inputs.prefix_len, false),
        ] {
            strided::given(op, arg, address != 0 && meant, address != 0)?;
        }
        let read = [
            ("q", inputs.q, &self.q),
            ("k", inputs.k, &self.k),
            ("v", inputs.v, &self.v),
            ("g", inputs.g, &self.g),
            ("bonus", inputs.bonus, &self.bonus),
            ("flags", inputs.flags, &self.flags),
            ("state", inputs.state, &self.state),
            ("normalizer", inputs.normalizer, &self.sums),
            ("reverse.q", inputs.reverse_q, &self.q),
            ("reverse.k", inputs.reverse_k, &self.k),
            ("reverse.g", inputs.reverse_g, &self.g),
            ("reverse.state", inputs.reverse_state, &self.state),
        ];
        let written = [
            (o, outputs.o, &self.o),
            (state, outputs.state, &self.state),
            (reverse_state, outputs.reverse_state, &self.state),
            (normalizer, outputs.normalizer, &self.sums),
            ("denominator", outputs.denominator, &self.denominator),
            ("arrived state", arrived.state, &self.state),
            ("arrived reverse state", arrived.reverse_state, &self.state),
            ("arrived normalizer", arrived.normalizer, &self.sums),
        ];
        read[..3].iter().chain(&written[..1]).try_for_each(|placed| strided::address(op, *placed, false))?;
        read[3..].iter().chain(&written[1..]).try_for_each(|placed| strided::address(op, *placed, true))?;
        strided::all_disjoint(op, &written, &read)
    }
}
