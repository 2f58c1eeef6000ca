//! The schedule kernel with one mistake each: every one must be caught, by the sanitizer or by a word of the schedule.

use super::{
    case::{Case, Kind, Tables},
    schedule::{HEADER, STATUS, model, too_many},
};
use crate::linear::chain_mutants::Machine;
use bytemuck::{Zeroable, bytes_of};
use lookback_decode::{Cache, Tuning};
use lookback_emulator::launch::{LaunchConfig, Options, launch};
use lookback_kernels::{Kernel, args::LeanPlan, find};

/// A case, its tables, and the status that they must have.
struct Setup {
    case: Case,
    tables: Tables,
    status: u32,
    want: Vec<u32>,
}

impl Setup {
    fn new(case: Case, status: u32, spoil: impl Fn(&mut Tables)) -> Self {
        let mut tables = Tables::new(&case);
        spoil(&mut tables);
        let (_, mut want) = model(&case, &tables);
        if status & 128 != 0 {
            want.truncate(HEADER);
            want[..4].fill(0);
        }
        Self { case, tables, status, want }
    }

    /// What the kernel gets wrong, if it does.
    fn is_wrong(&self, machine: &Machine, quantum: u32) -> bool {
        let Self { case, tables, .. } = self;
        let plan = case.plan(tables);
        let policy = plan.policy();
        let place = |values: Option<&[i32]>| values.map_or(0, |v| machine.place_bytes(bytemuck::cast_slice(v)));
        // A status word of before, which must stay.
        let mut empty = vec![0_u32; plan.schedule_bytes() as usize / 4];
        empty[STATUS] = 1 << 20;
        let schedule = machine.place_bytes(bytemuck::cast_slice(&empty));
        let (entries, entry_keys) = match tables.cache {
            Cache::Dense { .. } => (0, 1),
            Cache::Ragged { tokens } => (tokens, 1),
            Cache::Paged { page_size, table, .. } => (table, page_size),
        };
        let group = case.heads / case.key_heads;
        let args = LeanPlan {
            p_kv_len: place(Some(&tables.kv_len)),
            p_cu_seqlens_q: place(tables.cu_seqlens_q.as_deref()),
            p_kv_indptr: place(tables.kv_indptr.as_deref()),
            p_list_len: place(tables.list.as_ref().map(|(_, len)| len.as_slice())),
            p_schedule: schedule,
            requests: case.keys.len() as u32,
            query_len: case.query_len as u32,
            tokens: case.packed.as_ref().map_or(0, |_| case.tokens()) as u32,
            m_tiles: (case.query_len * group).div_ceil(policy.rows) as u32,
            key_heads: case.key_heads as u32,
            group: group as u32,
            rows: policy.rows as u32,
            capacity: tables.cache.capacity().min(lookback_decode::MAX_KEYS) as u32,
            entries: entries as u32,
            entry_keys: entry_keys as u32,
            list_entries: case.list.unwrap_or(0) as u32,
            left: case.left.map_or(1 << 30, |left| left as i32),
            first: case.sink_tokens,
            slots: policy.slots,
            min_tiles: policy.min_tiles,
            ..Zeroable::zeroed()
        };
        let config = LaunchConfig {
            grid: [1, 1, 1],
            block: machine.kernel.block,
            dynamic_shared: machine.kernel.dynamic_smem,
            cooperative: false,
        };
        let mut options = Options::default();
        options.quantum = quantum;
        options.instruction_limit = 4_000_000;
        if launch(&machine.program, &machine.memory, &config, bytes_of(&args), &options).is_err() {
            return true;
        }
        let mut bytes = vec![0_u8; empty.len() * 4];
        machine.memory.copy_to_host(&mut bytes, schedule).expect("memory");
        let mut got: Vec<u32> = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        let status = std::mem::take(&mut got[STATUS]);
        let blocks = got[1] as usize;
        let end = self.want.len()
            - if self.want.len() > HEADER { 2 * (policy.slots as usize).saturating_sub(blocks) } else { 0 };
        status != self.status | 1 << 20 || got[..end] != self.want[..end]
    }
}

fn setups() -> Vec<Setup> {
    let base = Case { head_dim: 8, value_dim: 8, ..Case::new(&[300, 64, 500, 0]) };
    let windowed = Case {
        kind: Kind::Paged(16),
        packed: Some(vec![3, 0, 9, 1]),
        query_len: 9,
        heads: 6,
        left: Some(70),
        sink_tokens: 100,
        tuning: Tuning { slots: Some(7), min_tiles: Some(1), rows: Some(16) },
        ..base.clone()
    };
    let lists = Case { list: Some(130), query_len: 20, ..base.clone() };
    let many = Case { kind: Kind::Ragged, ..Case::new(&(0..700).map(|i| (i * 37) % 200).collect::<Vec<_>>()) };
    let one = Case { heads: 1, key_heads: 1, ..Case::new(&[1]) };
    // The last row of a tile of rows ends a tile of keys; sink tokens reach into the window.
    let borders =
        Case { heads: 4, key_heads: 1, query_len: 8, left: Some(70), sink_tokens: 100, ..Case::new(&[68, 150]) };
    let borders = Case { tuning: Tuning { rows: Some(16), ..Tuning::default() }, ..borders };
    let none = |_: &mut Tables| {};
    vec![
        Setup::new(windowed.clone(), 0, none),
        Setup::new(lists.clone(), 0, none),
        Setup::new(lists, 8, |t| t.list.as_mut().expect("lists").1[2] = -4),
        Setup::new(many.slots(2000).min_tiles(1), 0, none),
        Setup::new(one, 0, none),
        Setup::new(borders, 0, none),
        Setup::new(windowed.clone(), 1, |t| t.kv_len[0] = -7),
        Setup::new(windowed.clone(), 1, |t| t.kv_len[1] = 65),
        Setup::new(windowed.clone(), 3, |t| t.kv_indptr.as_mut().expect("starts")[2] = 4),
        Setup::new(windowed, 4, |t| t.cu_seqlens_q.as_mut().expect("starts")[3] = 40),
        Setup::new(too_many(), 128, none),
    ]
}

#[test]
fn lean_plan_every_seeded_mistake_is_caught() {
    let kernel: &'static Kernel = find("lean_plan", &[]).expect("there is one");
    let setups = setups();
    let caught = |from: &str, to: &str, nth: usize| {
        let wrong = |(i, setup): (usize, &Setup)| {
            let machine = Machine::new(kernel, from, to, nth);
            [20_000, 7].into_iter().any(|quantum| setup.is_wrong(&machine, quantum)).then_some(i)
        };
        setups.iter().enumerate().find_map(wrong)
    };
    assert_eq!(caught(".visible", ".visible", 0), None, "the kernel itself");
    let mutants: &[(&str, &str, usize)] = &[
        // Requests.
        ("setp.le.u32 %is_in_order, %lo, %hi;", "setp.le.u32 %is_in_order, %lo, %lo;", 0),
        ("setp.le.and.u32 %is_in, %hi, %tokens, %is_in_order;", "setp.le.u32 %is_in, %lo, %hi;", 0),
        ("selp.u32 %hi, %hi, 0, %is_in;", "", 0),
        ("min.u64 %held, %held, %t0;", "max.u64 %held, %held, %t0;", 0),
        ("max.s32 %t0, %keys, 0;", "mov.u32 %t0, %keys;", 0),
        ("min.u32 %keys, %t0, %most;", "mov.u32 %keys, %t0;", 0),
        ("min.u32 %keys, %t0, %list_entries;", "mov.u32 %keys, %list_entries;", 0),
        ("@%is_out or.b32 %status, %status, 1;", "", 0),
        ("@!%is_in or.b32 %status, %status, 2;", "", 0),
        ("red.global.or.b32 [%p_schedule+20], %status;", "st.global.u32 [%p_schedule+20], %status;", 0),
        // Rows.
        ("setp.lt.u32 %has_rows, %first_row, %row_count;", "setp.le.u32 %has_rows, %first_row, %row_count;", 0),
        ("max.u32 %tiles, %tiles, 1;", "", 0),
        ("sub.u32 %last_row, %last_row, 1;", "", 0),
        ("min.s32 %head_tiles, %head, %lo;", "mov.b32 %head_tiles, %head;", 0),
        // Sums.
        ("bar.sync 0;", "", 0),
        ("bar.sync 0;", "", 1),
        ("bar.sync 0;", "", 2),
        ("xor.b32 %buffer, %buffer, 128;", "", 0),
        ("sub.u32 %before, %before, %tiles;", "", 0),
        ("selp.u32 %t1, 0, %t1, %is_there;", "", 0),
        ("shfl.sync.idx.b32 %total, %total, 31, 31, 0xffffffff;", "", 0),
        ("add.u64 %sum, %sum, %t0;", "", 0),
        ("setp.gt.u64 %is_too_many, %sum, 0x7fffffff;", "setp.gt.u64 %is_too_many, %sum, 0xffffffff;", 0),
        // Blocks.
        ("max.u32 %blocks, %blocks, 1;", "", 0),
        ("min.u32 %blocks, %blocks, %slots;", "", 0),
        ("setp.le.u32 %is_before, %first, %tile;", "setp.lt.u32 %is_before, %first, %tile;", 0),
        ("add.u32 %block, %block, 1024;", "add.u32 %block, %block, 2048;", 0),
        ("sub.u32 %first, %tile, %first;", "mov.u32 %first, %tile;", 0),
    ];
    let missed: Vec<_> = mutants.iter().filter(|(from, to, nth)| caught(from, to, *nth).is_none()).collect();
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}
