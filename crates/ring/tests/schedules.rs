//! Schedules played by all ranks at once, with sets in place of numbers: what is sent must be held, what is received must be what was
//! sent, and at the end every pair of a query and a key that see each other was counted once, at home.

use lookback_ring::{
    Layout, Partition, Visible,
    schedule::{Block, Item, Job, Kind, Needs, Parcel, Pass, Schedule, Transfer, schedule},
};
use std::collections::{BTreeMap, BTreeSet};

/// A query or key of a rank, one head.
type Row = (usize, usize);
/// What was computed for a row: positions of its partners.
type Sum = BTreeMap<Row, Vec<usize>>;

struct World {
    job: Job,
    visible: Visible,
    schedules: Vec<Schedule>,
    /// Keys and queries of an owner on a rank.
    held: BTreeMap<(usize, Item, usize), BTreeSet<Row>>,
    /// Results and gradients on a rank, for their owner.
    sums: BTreeMap<(usize, Item, usize), Sum>,
}

fn rows(parcel: &Parcel) -> impl Iterator<Item = Row> {
    let heads = parcel.heads.clone();
    parcel.tokens.clone().flat_map(move |token| heads.clone().map(move |head| (token, head)))
}

/// What travels: rows, or sums.
enum Cargo {
    Rows(BTreeSet<Row>),
    Sums(Sum),
}

impl World {
    fn new(kind: Kind, pass: Pass, layout: Layout, visible: Visible, heads: usize, key_heads: usize) -> Self {
        let job = Job { layout, heads, key_heads, needs: Needs::new(&layout, &visible) };
        let schedules = (0..layout.ranks).map(|rank| schedule(kind, pass, &job, rank).unwrap()).collect();
        let mut held = BTreeMap::new();
        for rank in 0..layout.ranks {
            for item in [Item::Keys, Item::Queries] {
                let all = Parcel { item, owner: rank, tokens: 0..layout.len(rank), heads: 0..heads };
                held.insert((rank, item, rank), rows(&all).collect());
            }
        }
        Self { job, visible, schedules, held, sums: BTreeMap::new() }
    }

    /// What a rank puts on the wire. Sums leave it for good.
    fn load(&mut self, rank: usize, parcel: &Parcel) -> Cargo {
        let at = (rank, parcel.item, parcel.owner);
        match parcel.item {
            Item::Keys | Item::Queries => {
                let held = self.held.get(&at).unwrap_or_else(|| panic!("rank {rank} has no {parcel:?}"));
                let wanted: BTreeSet<Row> = rows(parcel).collect();
                assert!(held.is_superset(&wanted), "rank {rank} sends {parcel:?}, which it has not");
                Cargo::Rows(wanted)
            }
            _ => {
                let sums = self.sums.get_mut(&at).unwrap_or_else(|| panic!("rank {rank} has no {parcel:?}"));
                Cargo::Sums(rows(parcel).filter_map(|row| Some((row, sums.remove(&row)?))).collect())
            }
        }
    }

    fn unload(&mut self, rank: usize, parcel: &Parcel, cargo: Cargo) {
        let at = (rank, parcel.item, parcel.owner);
        match cargo {
            Cargo::Rows(rows) => self.held.entry(at).or_default().extend(rows),
            Cargo::Sums(sums) => {
                for (row, partners) in sums {
                    self.sums.entry(at).or_default().entry(row).or_default().extend(partners);
                }
            }
        }
    }

    /// Counts a block, and returns its pairs of one head.
    fn compute(&mut self, rank: usize, pass: Pass, block: &Block) -> usize {
        let layout = self.job.layout;
        let mut pairs = 0;
        for parcel in block.queries.iter().chain(&block.keys) {
            let held = &self.held[&(rank, parcel.item, parcel.owner)];
            assert!(rows(parcel).all(|row| held.contains(&row)), "rank {rank} computes {parcel:?}, which it has not");
        }
        let all = block.queries.iter().flat_map(|q| block.keys.iter().map(move |k| (q, k)));
        for (queries, keys) in all {
            assert_eq!(queries.heads, keys.heads);
            for i in queries.tokens.clone() {
                let seen = self.visible.from(layout.position(queries.owner, i));
                for j in keys.tokens.clone() {
                    let (query, key) = (layout.position(queries.owner, i), layout.position(keys.owner, j));
                    if !seen.iter().any(|s| s.contains(&key)) {
                        continue;
                    }
                    pairs += 1;
                    for head in queries.heads.clone() {
                        let mut add = |item, owner, row, partner| {
                            let sum = self.sums.entry((rank, item, owner)).or_default();
                            sum.entry((row, head)).or_default().push(partner);
                        };
                        match pass {
                            Pass::Forward => add(Item::Partial, queries.owner, i, key),
                            Pass::Backward => {
                                add(Item::QueryGradients, queries.owner, i, key);
                                add(Item::KeyGradients, keys.owner, j, query);
                            }
                        }
                    }
                }
            }
        }
        pairs
    }

    /// Plays all steps; returns the sum over steps of the busiest rank's pairs, of one head.
    fn play(&mut self, pass: Pass) -> usize {
        let steps = self.schedules[0].steps.len();
        assert!(self.schedules.iter().all(|s| s.steps.len() == steps), "ranks agree on the number of steps");
        let mut flying: Vec<(usize, usize, usize, Parcel, Cargo)> = Vec::new();
        let mut critical = 0;
        for step in 0..steps {
            let now: Vec<_> = self.schedules.iter().map(|s| s.steps[step].clone()).collect();
            let mut expected: Vec<(usize, usize, Transfer)> = Vec::new();
            for (rank, step) in now.iter().enumerate() {
                expected.extend(step.receive.iter().map(|t| (t.peer, rank, t.clone())));
            }
            for (rank, of_rank) in now.iter().enumerate() {
                for sent in &of_rank.send {
                    assert!(sent.peer != rank && !sent.parcel.is_empty() && sent.steps > 0, "{sent:?}");
                    let is_it = |(from, to, t): &(usize, usize, Transfer)| {
                        *from == rank && *to == sent.peer && t.parcel == sent.parcel && t.steps == sent.steps
                    };
                    let at = expected.iter().position(is_it);
                    let at = at.unwrap_or_else(|| {
                        panic!("step {step}: {sent:?} of rank {rank} is not expected: {expected:?}")
                    });
                    expected.swap_remove(at);
                    let cargo = self.load(rank, &sent.parcel);
                    flying.push((step + sent.steps, sent.peer, rank, sent.parcel.clone(), cargo));
                }
            }
            assert!(expected.is_empty(), "step {step}: nobody sends {expected:?}");
            let pairs = now
                .iter()
                .enumerate()
                .map(|(rank, step)| step.compute.iter().map(|block| self.compute(rank, pass, block)).sum::<usize>());
            critical += pairs.max().unwrap_or(0);
            for (_, to, _, parcel, cargo) in flying.extract_if(.., |(due, ..)| *due == step + 1).collect::<Vec<_>>() {
                self.unload(to, &parcel, cargo);
            }
        }
        assert!(flying.is_empty());
        critical
    }

    /// Every pair once, at its owner, and nothing left elsewhere.
    fn check(&self, pass: Pass) {
        let layout = self.job.layout;
        for ((rank, item, owner), sums) in &self.sums {
            assert!(rank == owner || sums.is_empty(), "rank {rank} keeps {item:?} of {owner}: {sums:?}");
        }
        let sees = |query: usize, key: usize| self.visible.from(query).iter().any(|s| s.contains(&key));
        let items: &[Item] =
            if pass == Pass::Forward { &[Item::Partial] } else { &[Item::QueryGradients, Item::KeyGradients] };
        for rank in 0..layout.ranks {
            for item in items {
                for token in 0..layout.len(rank) {
                    let own = layout.position(rank, token);
                    let want: Vec<usize> = (0..layout.tokens)
                        .filter(|other| if *item == Item::KeyGradients { sees(*other, own) } else { sees(own, *other) })
                        .collect();
                    for head in 0..self.job.heads {
                        let got = self.sums.get(&(rank, *item, rank)).and_then(|sums| sums.get(&(token, head)));
                        let mut got = got.cloned().unwrap_or_default();
                        got.sort_unstable();
                        assert_eq!(got, want, "{item:?} of rank {rank}, token {token}, head {head}");
                    }
                }
            }
        }
    }
}

fn kinds(ranks: usize, key_heads: usize, heads: usize) -> Vec<Kind> {
    let mut kinds = vec![Kind::Ring, Kind::TokenRing, Kind::AllGather { groups: 1 }];
    kinds.extend((1..=ranks).filter(|node| ranks.is_multiple_of(*node)).map(|node| Kind::TwoLevel { node }));
    if key_heads > 1 {
        kinds.extend([Kind::Bidirectional, Kind::AllGather { groups: key_heads }]);
    }
    if heads.is_multiple_of(ranks) {
        kinds.push(Kind::Ulysses);
    }
    kinds
}

const PARTITIONS: [Partition; 3] = [Partition::Contiguous, Partition::Zigzag, Partition::Striped];

fn masks(tokens: usize) -> Vec<Visible> {
    let documents = vec![0, tokens / 3, tokens / 3, tokens];
    vec![
        Visible::full(tokens),
        Visible::causal(tokens),
        Visible { left: 4, right: 1, sink_tokens: 2, ..Visible::full(tokens) },
        Visible { documents, prefix_len: vec![3, 0, 2], ..Visible::causal(tokens) },
    ]
}

#[test]
fn every_pair_is_computed_once_and_comes_home() {
    for (ranks, heads, key_heads) in [(1, 2, 2), (2, 2, 1), (3, 3, 3), (4, 4, 2), (6, 6, 2), (8, 8, 8)] {
        for tokens in [0, 1, ranks * 2, 29] {
            for partition in PARTITIONS {
                for visible in masks(tokens) {
                    for kind in kinds(ranks, key_heads, heads) {
                        for pass in [Pass::Forward, Pass::Backward] {
                            let layout = Layout { partition, tokens, ranks };
                            let mut world = World::new(kind, pass, layout, visible.clone(), heads, key_heads);
                            world.play(pass);
                            world.check(pass);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn many_ranks() {
    for ranks in [13, 16, 32, 64] {
        let layout = Layout { partition: Partition::Zigzag, tokens: 2 * ranks, ranks };
        for kind in kinds(ranks, 2, 2) {
            for pass in [Pass::Forward, Pass::Backward] {
                let mut world = World::new(kind, pass, layout, Visible::causal(2 * ranks), 2, 2);
                world.play(pass);
                world.check(pass);
            }
        }
    }
}

#[test]
fn causal_work_is_balanced_as_computed_by_hand() {
    // 96 tokens, 4 ranks: the whole is 4656 pairs, so 1164 a rank.
    for (partition, want) in [(Partition::Contiguous, 2028), (Partition::Striped, 1200), (Partition::Zigzag, 1164)] {
        let layout = Layout { partition, tokens: 96, ranks: 4 };
        let world = |kind| World::new(kind, Pass::Forward, layout, Visible::causal(96), 1, 1);
        assert_eq!(world(Kind::Ring).play(Pass::Forward), want, "{partition:?}");
        assert_eq!(world(Kind::TwoLevel { node: 2 }).play(Pass::Forward), want, "{partition:?}");
    }
    let layout = Layout { partition: Partition::Zigzag, tokens: 96, ranks: 4 };
    assert_eq!(World::new(Kind::TokenRing, Pass::Forward, layout, Visible::causal(96), 1, 1).play(Pass::Forward), 1164);
}

/// Rows of one item that the busiest rank sends to one peer in all, times their heads.
fn busiest_link(world: &World, item: Item) -> usize {
    let mut links = BTreeMap::new();
    for schedule in &world.schedules {
        for transfer in schedule.steps.iter().flat_map(|step| &step.send).filter(|t| t.parcel.item == item) {
            let heads = match item {
                Item::Keys | Item::KeyGradients => world.job.key_heads(&transfer.parcel.heads).len(),
                _ => transfer.parcel.heads.len(),
            };
            *links.entry((schedule.rank, transfer.peer)).or_insert(0) += transfer.parcel.tokens.len() * heads;
        }
    }
    links.into_values().max().unwrap_or(0)
}

#[test]
fn links_carry_what_the_formulas_say() {
    let (ranks, each, heads, key_heads) = (4, 16, 8, 4);
    let layout = Layout { partition: Partition::Zigzag, tokens: ranks * each, ranks };
    let link = |kind, pass, visible: Visible, item| {
        busiest_link(&World::new(kind, pass, layout, visible, heads, key_heads), item)
    };
    let full = || Visible::full(ranks * each);
    let causal = || Visible::causal(ranks * each);
    let hops = (ranks - 1) * each;
    for mask in [full(), causal()] {
        assert_eq!(link(Kind::Ring, Pass::Forward, mask.clone(), Item::Keys), hops * key_heads);
        assert_eq!(link(Kind::Bidirectional, Pass::Forward, mask.clone(), Item::Keys), hops * key_heads / 2);
        assert_eq!(link(Kind::TokenRing, Pass::Forward, mask.clone(), Item::Queries), hops * heads);
        assert_eq!(link(Kind::AllGather { groups: 2 }, Pass::Forward, full(), Item::Keys), each * key_heads);
        assert_eq!(link(Kind::Ulysses, Pass::Forward, mask.clone(), Item::Keys), each * key_heads / ranks);
        // The owner's own share of dk and dv stays at home, so sums make a hop less than keys and their home are apart.
        assert_eq!(link(Kind::Ring, Pass::Backward, mask, Item::KeyGradients), hops * key_heads);
    }
    let sent = |world: &World, item| -> usize {
        let transfers = world.schedules.iter().flat_map(|s| &s.steps).flat_map(|step| &step.send);
        transfers.filter(|t| t.parcel.item == item).map(|t| t.parcel.tokens.len() * t.parcel.heads.len()).sum()
    };
    let world = World::new(Kind::TokenRing, Pass::Forward, layout, causal(), heads, key_heads);
    assert_eq!(sent(&world, Item::Queries), ranks * hops * heads * 3 / 4, "three quarters of the queries travel");
    assert_eq!(sent(&world, Item::Partial), ranks * hops * heads * 3 / 4);
}

#[test]
fn bad_jobs_are_refused() {
    let layout = Layout { partition: Partition::Contiguous, tokens: 12, ranks: 3 };
    let needs = Needs::new(&layout, &Visible::full(12));
    let job = |heads, key_heads| Job { layout, heads, key_heads, needs: needs.clone() };
    for (kind, job, rank) in [
        (Kind::Ring, job(4, 4), 3),
        (Kind::Ring, job(4, 3), 0),
        (Kind::Ring, job(4, 0), 0),
        (Kind::Bidirectional, job(4, 1), 0),
        (Kind::TwoLevel { node: 2 }, job(4, 4), 0),
        (Kind::TwoLevel { node: 0 }, job(4, 4), 0),
        (Kind::AllGather { groups: 5 }, job(4, 4), 0),
        (Kind::AllGather { groups: 0 }, job(4, 4), 0),
        (Kind::Ulysses, job(4, 4), 0),
    ] {
        assert!(schedule(kind, Pass::Forward, &job, rank).is_err(), "{kind:?}");
    }
}
