//! The look-back with nothing to compute: integer maps, which do not commute, against a loop.

use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use lookback_device::launch;
use lookback_kernels::{args::LookbackProtocol, find};
use lookback_suite::{
    buffer::{download, upload},
    counters::Switch,
    device,
    random::Random,
};

const HEADER: u64 = 256;

pub struct Protocol {
    vec: usize,
    streams: usize,
    chunks: usize,
    window: u32,
    p: Vec<u32>,
    l: Vec<u32>,
    cuts: Vec<u32>,
    delays: Vec<u32>,
}

impl Protocol {
    pub fn new(vec: usize, streams: usize, chunks: usize, window: u32, cut_every: usize) -> Self {
        let mut random = Random::new((vec * streams * chunks) as u64);
        let (tiles, words) = (streams * chunks, 32 * vec);
        let mut word = || random.below(u32::MAX as usize) as u32;
        let (p, l) = ((0..tiles * words).map(|_| word() | 1).collect(), (0..tiles * words).map(|_| word()).collect());
        let cuts = (0..tiles).map(|_| u32::from(cut_every > 0 && random.below(cut_every) == 0)).collect();
        // One tile in four is slow, before its map or before its PREFIX, so that later tiles overtake it.
        let delays = (0..tiles).map(|_| [0, 0, 0, 0, 0, 0, 500, 500 << 16][random.below(8)]).collect();
        Self { vec, streams, chunks, window, p, l, cuts, delays }
    }

    fn want(&self) -> Vec<u32> {
        let words = 32 * self.vec;
        let mut want = vec![0; self.p.len()];
        for stream in 0..self.streams {
            let mut carry = vec![0_u32; words];
            for chunk in 0..self.chunks {
                let tile = stream * self.chunks + chunk;
                want[tile * words..(tile + 1) * words].copy_from_slice(&carry);
                for (w, carry) in carry.iter_mut().enumerate() {
                    let (p, l) = (self.p[tile * words + w], self.l[tile * words + w]);
                    // Nothing comes before the first tile, so that its map, too, stands alone.
                    *carry =
                        if self.cuts[tile] != 0 || chunk == 0 { l } else { p.wrapping_mul(*carry).wrapping_add(l) };
                }
            }
        }
        want
    }

    pub fn run(&self, workspace: &mut CudaSlice<u8>, capacity: u64) -> Vec<u32> {
        let stream = device::stream();
        let (p, l, cuts, delays) = (upload(&self.p), upload(&self.l), upload(&self.cuts), upload(&self.delays));
        let mut carry = upload(&vec![0xdead_beef_u32; self.p.len()]);
        let kernel = find("lookback_protocol", &[("vec", &self.vec.to_string())]).expect("every variant is built");
        {
            let ((p, _p), (l, _l)) = (p.device_ptr(&stream), l.device_ptr(&stream));
            let ((cuts, _cuts), (delays, _delays)) = (cuts.device_ptr(&stream), delays.device_ptr(&stream));
            let (carry, _carry) = carry.device_ptr_mut(&stream);
            let (header, _header) = workspace.device_ptr_mut(&stream);
            let args = LookbackProtocol {
                p_p: p,
                p_l: l,
                p_cuts: cuts,
                p_delays: delays,
                p_carry: carry,
                p_header: header,
                p_tile_flags: header + HEADER,
                p_slots: header + HEADER + 4 * capacity.next_multiple_of(32),
                streams: self.streams as u32,
                chunks: self.chunks as u32,
                window: self.window,
                ..Zeroable::zeroed()
            };
            let grid = [(self.streams * self.chunks) as u32, 1, 1];
            // SAFETY: all buffers have the extents that the kernel's contract names, and are held until the launch is queued.
            unsafe { launch(&stream, kernel, grid, &args) }.unwrap_or_else(|e| panic!("{e}"));
        }
        download(&carry)
    }
}

pub fn workspace(slots: u64) -> CudaSlice<u8> {
    upload(&vec![0_u8; (HEADER + 4 * slots.next_multiple_of(32) + 512 * slots) as usize])
}

fn schedules() -> Vec<(&'static str, &'static str)> {
    if device::info().emulated {
        vec![("inorder", "auto"), ("inorder", "1"), ("reversed", "2"), ("random:3", "7"), ("random:4", "auto")]
    } else {
        vec![("inorder", "auto")]
    }
}

#[test]
fn lookback_every_tile_learns_its_carry_under_every_schedule() {
    let capacity = 1024;
    let mut workspace = workspace(capacity);
    for (vec, streams, chunks, window, cut_every) in
        [(1, 1, 100, 32, 0), (1, 3, 40, 1, 0), (2, 2, 40, 5, 0), (4, 1, 70, 32, 20), (2, 5, 1, 32, 0), (1, 1, 1, 32, 0)]
    {
        let protocol = Protocol::new(vec, streams, chunks, window, cut_every);
        let want = protocol.want();
        for (order, residency) in schedules() {
            let _order = Switch::set("order", order, "inorder");
            let _residency = Switch::set("residency", residency, "auto");
            let _quantum = Switch::set("quantum", "50", "20000");
            let what = format!("{streams} x {chunks} tiles of {vec}, window {window}, {order}, {residency} resident");
            assert_eq!(protocol.run(&mut workspace, capacity), want, "{what}");
        }
    }
}

#[test]
fn lookback_launch_leaves_ticket_and_count_at_zero_and_raises_the_epoch() {
    let mut workspace = workspace(64);
    let protocol = Protocol::new(1, 2, 9, 32, 0);
    for launches in 1..4_u32 {
        protocol.run(&mut workspace, 64);
        let bytes = download(&workspace);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        assert_eq!((word(0), word(64), word(128)), (0, 0, launches));
    }
}

#[test]
fn lookback_epoch_wraps_without_a_flag_of_zero() {
    let mut host = vec![0_u8; (HEADER + 4 * 64 + 512 * 64) as usize];
    host[128..132].copy_from_slice(&0x3fff_ffff_u32.to_le_bytes());
    let mut workspace = upload(&host);
    let protocol = Protocol::new(1, 2, 20, 32, 0);
    for _ in 0..3 {
        assert_eq!(protocol.run(&mut workspace, 64), protocol.want());
    }
}
