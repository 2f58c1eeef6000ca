//! What a schedule costs by a model of the machine, and which one is best.
//!
//! The model reads the schedule itself, so it needs no formula for each kind: a step takes as long as its busiest rank computes or its
//! busiest link carries, whichever is longer; what the link takes beyond the computing is *exposed*. Calibrate [`Machine`] with measured
//! rates; its defaults are data sheets'.

use crate::{
    Layout, Partition, Result, Visible,
    schedule::{Item, Job, Kind, Needs, Parcel, Pass, Schedule, schedule},
};
use std::{cmp::Ordering, collections::BTreeMap, fmt};

/// Which ranks have a link of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topology {
    /// Neighbours, one each way; what goes farther passes those between, the shorter way.
    Ring,
    /// Every two ranks, one each way.
    Mesh,
    /// One port each way for each rank, to a switch without limits.
    Switch,
}

/// Rates of a machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Links of ranks in one node.
    pub topology: Topology,
    /// Ranks of a node; those of different nodes have one port each way.
    pub node: usize,
    /// Floating-point operations a second that attention reaches.
    pub flops: f64,
    /// Bytes a second of a link or port, each way.
    pub link: f64,
    /// Bytes a second of a rank's port to other nodes, each way.
    pub node_link: f64,
    /// Seconds before the first byte of a step's transfers.
    pub latency: f64,
}

impl Machine {
    /// Eight Hopper GPUs on NVSwitch a node, a 400 Gbit/s adapter for each.
    pub const HOPPER: Self =
        Self { topology: Topology::Switch, node: 8, flops: 6e14, link: 4e11, node_link: 5e10, latency: 1e-5 };
}

/// Sizes of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Entries of a query or key.
    pub head_dim: usize,
    /// Entries of a value.
    pub value_dim: usize,
    /// Bytes of an entry of `q`, `k`, `v` and `o`; gradients and log-sum-exps are f32.
    pub element: usize,
}

impl Sizes {
    /// Bytes of a message with this parcel.
    pub fn bytes(&self, job: &Job, pass: Pass, parcel: &Parcel) -> u64 {
        let Self { head_dim, value_dim, element } = *self;
        let key_heads = job.key_heads(&parcel.heads).len();
        let (heads, row) = match (parcel.item, pass) {
            (Item::Keys, _) => (key_heads, (head_dim + value_dim) * element),
            (Item::KeyGradients, _) => (key_heads, (head_dim + value_dim) * 4),
            (Item::Queries, Pass::Forward) => (parcel.heads.len(), head_dim * element),
            // do, and f32 lse and delta.
            (Item::Queries, Pass::Backward) => (parcel.heads.len(), (head_dim + value_dim) * element + 8),
            (Item::Partial, _) => (parcel.heads.len(), value_dim * element + 4),
            (Item::QueryGradients, _) => (parcel.heads.len(), head_dim * 4),
            (Item::State | Item::StateGradient, _) => (parcel.heads.len(), head_dim * value_dim * 4),
        };
        parcel.tokens.len() as u64 * heads as u64 * row as u64
    }

    /// Operations for each pair of a query and a key, and each query head: two products forward, five backward.
    fn flops(&self, pass: Pass) -> f64 {
        let (keys, values) = (self.head_dim as f64, self.value_dim as f64);
        match pass {
            Pass::Forward => 2.0 * (keys + values),
            Pass::Backward => 2.0 * (3.0 * keys + 2.0 * values),
        }
    }
}

/// What the model says of one schedule, of all ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// Which.
    pub kind: Kind,
    /// How tokens are dealt.
    pub partition: Partition,
    /// Steps.
    pub steps: usize,
    /// Most bytes that one rank sends to one other.
    pub link_bytes: u64,
    /// Bytes that all ranks send.
    pub total_bytes: u64,
    /// Seconds of the busiest ranks' computing, step by step.
    pub compute: f64,
    /// Seconds of transfers that no computing hides.
    pub exposed: f64,
}

impl Estimate {
    /// Seconds.
    pub fn total(&self) -> f64 {
        self.compute + self.exposed
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, partition, steps, link_bytes, .. } = self;
        let (total, exposed) = (self.total() * 1e6, self.exposed * 1e6);
        write!(f, "{kind:?} {partition:?}: {total:.1} us, of these {exposed:.1} us exposed transfer, ")?;
        write!(f, "{steps} steps, {:.2} MB on the busiest link", *link_bytes as f64 / 1e6)
    }
}

/// Costs of a schedule.
///
/// # Errors
/// Those of [`schedule`].
pub fn estimate(kind: Kind, pass: Pass, job: &Job, visible: &Visible, sizes: &Sizes, on: &Machine) -> Result<Estimate> {
    estimate_pairs(kind, pass, job, &pairs(&job.layout, visible), sizes, on)
}

/// Pairs of a query and a key that see each other, by `[queries' owner, keys' owner]`.
fn pairs(layout: &Layout, visible: &Visible) -> Vec<u64> {
    let ranks = layout.ranks;
    let owners = (0..ranks).flat_map(|queries| (0..ranks).map(move |keys| (queries, keys)));
    owners.map(|(q, k)| visible.cover(layout, q, k).pairs(layout.len(q), layout.len(k))).collect()
}

fn estimate_pairs(kind: Kind, pass: Pass, job: &Job, pairs: &[u64], sizes: &Sizes, on: &Machine) -> Result<Estimate> {
    let ranks = job.layout.ranks;
    let all = (0..ranks).map(|rank| schedule(kind, pass, job, rank)).collect::<Result<Vec<Schedule>>>()?;
    let steps = all.iter().map(|s| s.steps.len()).max().unwrap_or(0);
    let mut compute = vec![0.0_f64; steps];
    let mut links = vec![BTreeMap::<Link, f64>::new(); steps];
    let mut between = BTreeMap::<(usize, usize), u64>::new();
    for Schedule { rank, steps } in &all {
        for (at, step) in steps.iter().enumerate() {
            let seen = |queries: &Parcel, keys: &Parcel| {
                pairs[queries.owner * ranks + keys.owner] as f64 * queries.heads.len() as f64
            };
            let work: f64 = step
                .compute
                .iter()
                .flat_map(|b| b.queries.iter().map(move |q| (b, q)))
                .map(|(block, q)| block.keys.iter().map(|k| seen(q, k)).sum::<f64>())
                .sum();
            compute[at] = compute[at].max(work * sizes.flops(pass) / on.flops);
            for sent in &step.send {
                let bytes = sizes.bytes(job, pass, &sent.parcel);
                *between.entry((*rank, sent.peer)).or_default() += bytes;
                for step in &mut links[at..at + sent.steps] {
                    for (link, rate) in on.route(*rank, sent.peer, ranks) {
                        *step.entry(link).or_default() += bytes as f64 / sent.steps as f64 / rate;
                    }
                }
            }
        }
    }
    let slowest =
        |links: &BTreeMap<Link, f64>| links.values().copied().reduce(f64::max).map_or(0.0, |t| t + on.latency);
    Ok(Estimate {
        kind,
        partition: job.layout.partition,
        steps,
        link_bytes: between.values().copied().max().unwrap_or(0),
        total_bytes: between.values().sum(),
        compute: compute.iter().sum(),
        exposed: compute.iter().zip(&links).map(|(work, links)| (slowest(links) - work).max(0.0)).sum(),
    })
}

/// What two transfers may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    /// From a rank to another.
    Pair(usize, usize),
    /// A rank's way out.
    Out(usize),
    /// And in.
    In(usize),
    /// Likewise, between nodes.
    NodeOut(usize),
    /// Likewise.
    NodeIn(usize),
}

impl Machine {
    /// Links on the way, and their rates.
    fn route(&self, from: usize, to: usize, ranks: usize) -> Vec<(Link, f64)> {
        if from / self.node.max(1) != to / self.node.max(1) {
            return vec![(Link::NodeOut(from), self.node_link), (Link::NodeIn(to), self.node_link)];
        }
        match self.topology {
            Topology::Mesh => vec![(Link::Pair(from, to), self.link)],
            Topology::Switch => vec![(Link::Out(from), self.link), (Link::In(to), self.link)],
            Topology::Ring => {
                let ahead = (to + ranks - from) % ranks;
                let (hops, step) = if 2 * ahead <= ranks { (ahead, 1) } else { (ranks - ahead, ranks - 1) };
                let hop = |i: usize| Link::Pair((from + i * step) % ranks, (from + (i + 1) * step) % ranks);
                (0..hops).map(|i| (hop(i), self.link)).collect()
            }
        }
    }
}

/// Candidates, the best first: every kind that the ranks and heads allow, with every way to deal tokens. A tie goes to the one that
/// stands first in [`Kind`].
///
/// # Errors
/// None for a job that [`schedule`] takes.
pub fn candidates(
    pass: Pass,
    tokens: usize,
    ranks: usize,
    heads: (usize, usize),
    visible: &Visible,
    sizes: &Sizes,
    on: &Machine,
) -> Result<Vec<Estimate>> {
    let (heads, key_heads) = heads;
    let mut kinds = vec![Kind::Ring];
    if key_heads > 1 {
        kinds.push(Kind::Bidirectional);
    }
    if on.node > 1 && on.node < ranks && ranks.is_multiple_of(on.node) {
        kinds.push(Kind::TwoLevel { node: on.node });
    }
    kinds.extend([Kind::TokenRing, Kind::AllGather { groups: key_heads.clamp(1, 4) }]);
    // A rank's share of the query heads must share its key heads evenly.
    let (share, group) = (heads / ranks.max(1), (heads / key_heads.max(1)).max(1));
    let is_even = share.is_multiple_of(group) || group.is_multiple_of(share);
    if ranks > 0 && heads.is_multiple_of(ranks) && is_even {
        kinds.push(Kind::Ulysses);
    }
    let mut found = Vec::new();
    for partition in [Partition::Zigzag, Partition::Contiguous, Partition::Striped] {
        let layout = Layout { partition, tokens, ranks };
        let job = Job { layout, heads, key_heads, needs: Needs::new(&layout, visible) };
        let pairs = pairs(&layout, visible);
        for kind in &kinds {
            found.push(estimate_pairs(*kind, pass, &job, &pairs, sizes, on)?);
        }
    }
    found.sort_by(|a, b| a.total().partial_cmp(&b.total()).unwrap_or(Ordering::Equal));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { head_dim: 128, value_dim: 128, element: 2 };
    /// Computing costs nothing: all transfer is exposed.
    const WIRE: Machine =
        Machine { topology: Topology::Mesh, node: 64, flops: 1e30, link: 1e9, node_link: 1e8, latency: 0.0 };

    fn exposed(kind: Kind, key_heads: usize, on: &Machine) -> f64 {
        let layout = Layout { partition: Partition::Zigzag, tokens: 4096, ranks: 8 };
        let visible = Visible::full(4096);
        let job = Job { layout, heads: 16, key_heads, needs: Needs::new(&layout, &visible) };
        estimate(kind, Pass::Forward, &job, &visible, &SIZES, on).unwrap().exposed
    }

    #[test]
    fn queries_against_keys_on_the_wire_are_half_the_group() {
        for key_heads in [16, 8, 4] {
            let ratio = exposed(Kind::TokenRing, key_heads, &WIRE) / exposed(Kind::Ring, key_heads, &WIRE);
            // Nine steps carry something against seven, and log-sum-exps travel with results.
            let want = 16.0 / key_heads as f64 / 2.0 * 9.0 / 7.0;
            assert!((want..want * 1.02).contains(&ratio), "{ratio} for {key_heads} key heads");
            let both = exposed(Kind::Bidirectional, key_heads, &WIRE) / exposed(Kind::Ring, key_heads, &WIRE);
            assert!((both - 0.5).abs() < 1e-9);
        }
    }

    #[test]
    fn a_port_is_shared_by_both_directions_and_a_ring_by_what_passes() {
        let switch = Machine { topology: Topology::Switch, ..WIRE };
        let (one, both) = (exposed(Kind::Ring, 8, &switch), exposed(Kind::Bidirectional, 8, &switch));
        assert!((one - both).abs() < 1e-12 * one, "{one} {both}");
        let ring = Machine { topology: Topology::Ring, ..WIRE };
        assert_eq!(exposed(Kind::Ring, 8, &ring), exposed(Kind::Ring, 8, &WIRE));
        assert!(
            exposed(Kind::TokenRing, 8, &ring) > 1.5 * exposed(Kind::TokenRing, 8, &WIRE),
            "results pass ranks between"
        );
    }

    #[test]
    fn nodes_are_crossed_less_by_two_levels() {
        let nodes = Machine { node: 4, topology: Topology::Switch, ..WIRE };
        assert!(exposed(Kind::TwoLevel { node: 4 }, 8, &nodes) < 0.5 * exposed(Kind::Ring, 8, &nodes));
    }

    #[test]
    fn the_best_comes_first_and_is_balanced_under_a_causal_mask() {
        let visible = Visible::causal(1 << 12);
        let found = candidates(Pass::Forward, 1 << 12, 8, (32, 8), &visible, &SIZES, &Machine::HOPPER).unwrap();
        assert!(found.is_sorted_by(|a, b| a.total() <= b.total()));
        let compute =
            |partition| found.iter().find(|e| e.kind == Kind::Ring && e.partition == partition).unwrap().compute;
        assert!(compute(Partition::Zigzag) < 0.6 * compute(Partition::Contiguous));
        assert!(found[0].to_string().contains("us exposed"));
    }

    #[test]
    fn heads_that_would_not_share_keys_evenly_are_not_dealt() {
        let visible = Visible::causal(64);
        let is_dealt = |ranks, heads| {
            let found = candidates(Pass::Forward, 64, ranks, heads, &visible, &SIZES, &Machine::HOPPER).unwrap();
            found.iter().any(|e| e.kind == Kind::Ulysses)
        };
        for (ranks, heads) in [(2, (6, 6)), (2, (8, 2)), (4, (8, 2)), (3, (6, 3))] {
            assert!(is_dealt(ranks, heads), "{heads:?} on {ranks}");
        }
        // Three heads of which two share one key head, and six ranks for four heads.
        for (ranks, heads) in [(2, (6, 3)), (6, (4, 4))] {
            assert!(!is_dealt(ranks, heads), "{heads:?} on {ranks}");
        }
    }
}
