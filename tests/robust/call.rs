//! One operation called in thousands of ways, most of them wrong.
//!
//! The operation's tensors are put into one stretch of device memory. A call is made right and then spoiled once or more: a slice too
//! short, an address off its alignment or null, an output on top of another tensor, another element type. What comes back must be an
//! error that blames the caller and names the tensor, with nothing launched and no byte changed; or, where the call is one that may
//! be made, a run that writes its outputs alone.

use lookback_device::{
    Class, Error, Result,
    cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop, sys::CUdeviceptr},
    emulator,
};
use lookback_suite::{
    buffer::{download, upload},
    device,
    random::Random,
};
use std::{marker::PhantomData, sync::Arc};

/// Bytes before, between and after tensors, at least.
const GAP: u64 = 256;
/// Of so many calls, one is left right.
const RIGHT: usize = 100;
/// Calls of an operation.
pub const CALLS: usize = 10_000;

/// A tensor of an operation.
#[derive(Clone, Copy)]
pub struct Tensor {
    name: &'static str,
    elements: usize,
    size: usize,
    is_written: bool,
    is_optional: bool,
}

/// A tensor that is read: `elements` of `size` bytes.
pub fn read(name: &'static str, elements: usize, size: usize) -> Tensor {
    Tensor { name, elements, size, is_written: false, is_optional: false }
}

/// A tensor that is written.
pub fn written(name: &'static str, elements: usize, size: usize) -> Tensor {
    Tensor { is_written: true, ..read(name, elements, size) }
}

impl Tensor {
    /// It may be left out.
    pub fn optional(self) -> Self {
        Self { is_optional: true, ..self }
    }

    fn bytes(&self) -> u64 {
        (self.elements * self.size) as u64
    }
}

/// Where a call finds a tensor.
#[derive(Debug, Clone, Copy)]
struct Place {
    address: CUdeviceptr,
    len: usize,
    is_given: bool,
}

/// What one call gets.
pub struct At<'a> {
    tensors: &'a [Tensor],
    places: &'a [Place],
    stream: &'a Arc<CudaStream>,
    /// The element type is not the plan's.
    pub other_type: bool,
    /// What else of the operation's own is wrong: an index below the number that [`Calls::others`] says.
    pub other: Option<usize>,
}

impl At<'_> {
    /// A tensor that is always there.
    pub fn get<T>(&self, name: &str) -> Slice<T> {
        let i = self.tensors.iter().position(|t| t.name == name).unwrap_or_else(|| panic!("no tensor {name}"));
        let Place { address, len, .. } = self.places[i];
        Slice { address, len, stream: self.stream.clone(), element: PhantomData }
    }

    /// A tensor that may be left out.
    pub fn maybe<T>(&self, name: &str) -> Option<Slice<T>> {
        let i = self.tensors.iter().position(|t| t.name == name)?;
        self.places[i].is_given.then(|| self.get(name))
    }
}

/// Elements by address and length, as a caller's own slice type may have them.
pub struct Slice<T> {
    address: CUdeviceptr,
    len: usize,
    stream: Arc<CudaStream>,
    element: PhantomData<T>,
}

impl<T> DeviceSlice<T> for Slice<T> {
    fn len(&self) -> usize {
        self.len
    }
    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl<T> DevicePtr<T> for Slice<T> {
    fn device_ptr<'a>(&'a self, _stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Sync(None))
    }
}

impl<T> DevicePtrMut<T> for Slice<T> {
    fn device_ptr_mut<'a>(&'a mut self, _stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Sync(None))
    }
}

/// An optional input.
pub fn given<T>(slice: &Option<Slice<T>>) -> Option<&dyn DevicePtr<T>> {
    slice.as_ref().map(|s| s as &dyn DevicePtr<T>)
}

/// An optional output.
pub fn wanted<T>(slice: &mut Option<Slice<T>>) -> Option<&mut dyn DevicePtrMut<T>> {
    slice.as_mut().map(|s| s as &mut dyn DevicePtrMut<T>)
}

/// One way to spoil a call.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Fewer elements than the plan needs.
    Short(usize),
    /// An address between two elements.
    Between(usize),
    /// No memory at all.
    Null(usize),
    /// The first on top of the second, so many bytes after its start; one of them is written.
    Onto(usize, usize, u64),
    /// An element type that is not the plan's.
    Type,
    /// What the operation itself knows to spoil.
    Other(usize),
    /// An optional tensor is left out: may be right.
    Absent(usize),
    /// A length beyond all memory: may be right, since longer is allowed.
    Long(usize),
    /// Aligned to its elements and no more: may be right.
    Shifted(usize),
}

impl Fault {
    /// No operation may accept it.
    fn is_wrong(self) -> bool {
        !matches!(self, Self::Absent(_) | Self::Long(_) | Self::Shifted(_))
    }
}

/// Calls of one operation with one plan.
pub struct Calls<'a> {
    /// What it is, for messages.
    pub what: &'a str,
    /// Its tensors.
    pub tensors: Vec<Tensor>,
    /// Ways in which the operation spoils calls itself, see [`At::other`].
    pub others: usize,
    /// Whether there is an element type to get wrong.
    pub typed: bool,
    /// An output and what it may be itself, at the same address.
    pub in_place: &'a [(&'a str, &'a str)],
}

impl<'a> Calls<'a> {
    /// Of an operation that is generic over its element type and writes nothing in place.
    pub fn new(what: &'a str, tensors: Vec<Tensor>) -> Self {
        Self { what, tensors, others: 0, typed: true, in_place: &[] }
    }

    /// Makes `count` calls.
    ///
    /// # Panics
    /// When one does not answer as it must.
    pub fn make(&self, count: usize, mut call: impl FnMut(&At<'_>) -> Result<()>) {
        let mut random = Random::new(self.what.bytes().fold(1, |seed, b| seed.wrapping_mul(31).wrapping_add(b.into())));
        let mut memory = Memory::new(&self.tensors, &mut random);
        let stream = device::stream();
        memory.begin();
        let (mut ran, mut refused) = (0, 0);
        for n in 0..count {
            // The first is right: it shows that the others are wrong for the reason given.
            let faults = if n == 0 { Vec::new() } else { self.faults(&mut random) };
            let places = self.spoil(&memory, &faults, &mut random);
            let is_wrong = faults.iter().any(|fault| fault.is_wrong());
            let found = faults.iter().find_map(|fault| match fault {
                Fault::Other(way) => Some(*way),
                _ => None,
            });
            let at = At {
                tensors: &self.tensors,
                places: &places,
                stream: &stream,
                other_type: faults.iter().any(|fault| matches!(fault, Fault::Type)),
                other: found,
            };
            let about = || format!("{} call {n}: {faults:?} {places:?}", self.what);
            if !is_wrong {
                memory.assert_untouched(&about);
            }
            match call(&at) {
                Ok(()) => {
                    assert!(!is_wrong, "{}: accepted", about());
                    ran += 1;
                    memory.assert_only(&self.tensors, &places, &about);
                }
                Err(error) => {
                    refused += 1;
                    assert!(!faults.is_empty(), "{}: a right call is refused: {error}", about());
                    self.assert_blames(&error, &faults, &about);
                    if !is_wrong {
                        memory.assert_untouched(&about);
                    }
                }
            }
        }
        memory.assert_untouched(&|| format!("{} at the end", self.what));
        assert!(ran > 0 && refused > 0, "{}: {ran} ran, {refused} were refused", self.what);
    }

    /// What is wrong with a call.
    fn faults(&self, random: &mut Random) -> Vec<Fault> {
        let many = match random.below(RIGHT) {
            0 => return Vec::new(),
            1..30 => 2 + random.below(2),
            _ => 1,
        };
        let all = self.tensors.len();
        let mut faults = Vec::new();
        // A second fault of the same tensor could undo the first.
        let mut spoiled = vec![false; all];
        while faults.len() < many && !spoiled.iter().all(|spoiled| *spoiled) {
            let (i, j) = (random.below(all), random.below(all));
            let Tensor { elements, size, is_written, is_optional, name } = self.tensors[i];
            let other = &self.tensors[j];
            if spoiled[i] || spoiled[j] {
                continue;
            }
            let fault = match random.below(100) {
                0..30 if elements > 0 => Fault::Short(i),
                30..45 if elements > 0 && size > 1 => Fault::Between(i),
                // To kernels, an optional tensor at no address is one that is not there.
                45..55 if elements > 0 && !is_optional => Fault::Null(i),
                55..80 if elements > 0 && is_written && i != j && other.elements > 0 => {
                    // Steps that keep the first aligned as the second is, so that nothing but the overlap is wrong.
                    let step = 16_u64.min(other.bytes());
                    let steps = other.bytes().div_ceil(step) as usize;
                    let from = usize::from(self.in_place.contains(&(name, other.name)));
                    if from == steps {
                        continue;
                    }
                    spoiled[j] = true;
                    Fault::Onto(i, j, step * (from + random.below(steps - from)) as u64)
                }
                80..86 if self.typed => Fault::Type,
                86..97 if self.others > 0 => Fault::Other(random.below(self.others)),
                97 if is_optional && many == 1 => Fault::Absent(i),
                98 if many == 1 => Fault::Long(i),
                99 if size > 1 && many == 1 => Fault::Shifted(i),
                _ => continue,
            };
            spoiled[i] = true;
            faults.push(fault);
        }
        faults
    }

    fn spoil(&self, memory: &Memory, faults: &[Fault], random: &mut Random) -> Vec<Place> {
        let mut places = memory.places.clone();
        for fault in faults {
            match *fault {
                Fault::Short(i) => places[i].len = random.below(self.tensors[i].elements),
                Fault::Between(i) => places[i].address += 1 + random.below(self.tensors[i].size - 1) as u64,
                Fault::Null(i) => places[i].address = 0,
                Fault::Onto(i, j, after) => places[i].address = memory.places[j].address + after,
                Fault::Absent(i) => places[i].is_given = false,
                Fault::Long(i) => places[i].len = usize::MAX / self.tensors[i].size,
                Fault::Shifted(i) => places[i].address += self.tensors[i].size as u64,
                Fault::Type | Fault::Other(_) => {}
            }
        }
        places
    }

    /// The error is the caller's, and names what was spoiled; where only one thing was, exactly that.
    fn assert_blames(&self, error: &Error, faults: &[Fault], about: &dyn Fn() -> String) {
        assert!(error.class() == Class::Caller && error.outputs_untouched(), "{}: {error}", about());
        let named: Vec<&str> = match error {
            Error::Shape { arg, .. }
            | Error::Dtype { arg, .. }
            | Error::Layout { arg, .. }
            | Error::Align { arg, .. }
            | Error::Range { arg, .. } => vec![arg],
            Error::Alias { a, b, .. } => vec![a, b],
            Error::Workspace { .. } => vec!["workspace"],
            _ => Vec::new(),
        };
        let [fault] = faults else { return };
        let is = |i: usize| named.contains(&self.tensors[i].name);
        let fits = match *fault {
            Fault::Short(i) | Fault::Between(i) | Fault::Null(i) => is(i),
            // It may reach beyond the other tensor, into a third.
            Fault::Onto(i, ..) => is(i),
            Fault::Type => matches!(error, Error::Dtype { .. } | Error::NoKernel { .. }),
            // An absent tensor may leave another without a use, or be named by the one that wants it.
            Fault::Other(_) | Fault::Absent(_) => true,
            Fault::Long(i) | Fault::Shifted(i) => is(i),
        };
        assert!(fits, "{}: {error}", about());
    }
}

/// The stretch of device memory.
struct Memory {
    device: CudaSlice<u8>,
    host: Vec<u8>,
    base: CUdeviceptr,
    places: Vec<Place>,
}

impl Memory {
    fn new(tensors: &[Tensor], random: &mut Random) -> Self {
        let mut offset = GAP;
        let offsets: Vec<u64> = tensors
            .iter()
            .map(|tensor| {
                let at = offset;
                // Twice the room: a shifted tensor, or one on top of the last, still ends within.
                offset += tensor.bytes().next_multiple_of(GAP) + GAP;
                at
            })
            .collect();
        let longest = tensors.iter().map(Tensor::bytes).max().unwrap_or(0);
        // Whatever it holds as floats, indices or lengths, nothing is read or written outside.
        let mut host: Vec<u8> = (0..offset + longest + GAP).map(|_| random.below(256) as u8).collect();
        // But sequences that share rows would write them twice.
        for (at, tensor) in offsets.iter().zip(tensors).filter(|(_, tensor)| tensor.name.starts_with("cu_seqlens")) {
            host[*at as usize..][..tensor.bytes() as usize].fill(0);
        }
        let device = upload(&host);
        let base = device.device_ptr(&device::stream()).0;
        let place = |(at, tensor): (u64, &Tensor)| Place { address: base + at, len: tensor.elements, is_given: true };
        let places = offsets.into_iter().zip(tensors).map(place).collect();
        Self { device, host, base, places }
    }

    /// Counts launches anew.
    fn begin(&self) {
        emulator::reset_counters();
    }

    /// Nothing was launched since [`begin`](Self::begin), and every byte is as it was.
    fn assert_untouched(&self, about: &dyn Fn() -> String) {
        if let Some(counters) = emulator::counters() {
            assert!(counters.contains("\"launches\":0,"), "{}: a refused call launched: {counters}", about());
        }
        device::finish();
        assert!(download(&self.device) == self.host, "{}: a refused call wrote", about());
    }

    /// Only the places of written tensors changed; they are made as before.
    fn assert_only(&mut self, tensors: &[Tensor], places: &[Place], about: &dyn Fn() -> String) {
        device::finish();
        let mut now = download(&self.device);
        for (tensor, place) in tensors.iter().zip(places) {
            if tensor.is_written && place.is_given && tensor.elements > 0 {
                let from = (place.address - self.base) as usize;
                let range = from..from + tensor.bytes() as usize;
                now[range.clone()].copy_from_slice(&self.host[range]);
            }
        }
        let stray = now.iter().zip(&self.host).position(|(now, was)| now != was);
        assert!(stray.is_none(), "{}: byte {stray:?} is no output's, but was written", about());
        let copied = device::stream().memcpy_htod(&self.host, &mut self.device);
        assert!(copied.is_ok(), "{}: {copied:?}", about());
        self.begin();
    }
}
