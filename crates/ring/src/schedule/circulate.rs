//! Keys and values that visit every rank, and in a backward pass the sums of their gradients that follow one step behind.
//!
//! Everything comes from one function: the rank where the keys of `owner` are at step `k`. A ring adds `k`; two levels turn inside the
//! node and move on to the next one after a turn.

use super::{Item, Job, Pass, Step, Transfer, needs::hull};
use std::ops::Range;

/// Where keys are, step by step.
struct Route {
    ranks: usize,
    /// Ranks of a node; all of them in a plain ring.
    node: usize,
    /// Against the order of the ranks.
    backward: bool,
}

impl Route {
    /// The rank that has the keys of `owner` at step `k < ranks`.
    fn at(&self, owner: usize, k: usize) -> usize {
        let (ranks, node) = (self.ranks, self.node);
        if self.backward {
            return (owner + ranks - k) % ranks;
        }
        let place = (owner % node + k % node) % node;
        (owner / node + k / node) % (ranks / node) * node + place
    }

    /// Whose keys are on `rank` at step `k`.
    fn owner(&self, rank: usize, k: usize) -> usize {
        let (ranks, node) = (self.ranks, self.node);
        if self.backward {
            return (rank + k) % ranks;
        }
        let (nodes, place) = (ranks / node, (rank % node + node - k % node) % node);
        (rank / node + nodes - k / node) % nodes * node + place
    }

    /// Where the keys that are at `owner`'s place of step `k` come from: the step that they were sent in, and the steps they take. A
    /// turn's first keys come from the first place of the turn before, and have the whole turn for it.
    fn departure(&self, k: usize) -> (usize, usize) {
        if k.is_multiple_of(self.node) { (k - self.node, self.node) } else { (k - 1, 1) }
    }
}

/// Keys go to the next rank.
pub(super) fn ring(job: &Job, pass: Pass, rank: usize) -> Vec<Step> {
    let route = Route { ranks: job.ranks(), node: job.ranks(), backward: false };
    let mut steps = steps(job, pass);
    circulate(job, pass, rank, &route, &job.all_heads(), &mut steps);
    steps
}

/// Two rings of half the heads, in opposite directions.
pub(super) fn bidirectional(job: &Job, pass: Pass, rank: usize) -> Vec<Step> {
    let middle = job.key_heads / 2 * job.group();
    let mut steps = steps(job, pass);
    for (backward, heads) in [(false, 0..middle), (true, middle..job.heads)] {
        let route = Route { ranks: job.ranks(), node: job.ranks(), backward };
        circulate(job, pass, rank, &route, &heads, &mut steps);
    }
    steps
}

/// Rings inside nodes, and a ring of nodes.
pub(super) fn two_level(job: &Job, pass: Pass, rank: usize, node: usize) -> Vec<Step> {
    let route = Route { ranks: job.ranks(), node, backward: false };
    let mut steps = steps(job, pass);
    circulate(job, pass, rank, &route, &job.all_heads(), &mut steps);
    steps
}

/// One for each place that keys visit; gradients come home after the last.
fn steps(job: &Job, pass: Pass) -> Vec<Step> {
    vec![Step::default(); job.ranks() + usize::from(pass == Pass::Backward)]
}

fn circulate(job: &Job, pass: Pass, rank: usize, route: &Route, heads: &Range<usize>, steps: &mut [Step]) {
    let ranks = job.ranks();
    // Of the keys that arrive for step `k`, those that are seen there or later.
    let keys = |owner: usize, k: usize| {
        let tokens = job.needs.keys_for(owner, (k..ranks).map(|later| route.at(owner, later)));
        job.parcel(Item::Keys, owner, tokens, heads.clone())
    };
    // Gradients that leave the place of step `k`: of all keys that were seen at a place before, but for the owner's own.
    let gradients = |owner: usize, k: usize| {
        let seen = (1..=k).filter_map(|before| job.needs.between(route.at(owner, before), owner));
        job.parcel(Item::KeyGradients, owner, hull(seen.map(|(_, columns)| columns)), heads.clone())
    };
    let transfer = |peer, parcel, steps| Transfer { peer, parcel, steps };
    for k in 0..ranks {
        let owner = route.owner(rank, k);
        steps[k].compute.extend(job.block(rank, owner, heads));
        if k > 0 {
            let (departure, takes) = route.departure(k);
            let arriving = keys(owner, k);
            if !arriving.is_empty() {
                steps[departure].receive.push(transfer(route.at(owner, departure), arriving, takes));
            }
        }
        // What is here now leaves for every place that is reached from here.
        for next in [k + 1, k + route.node].into_iter().take(if route.node == 1 { 1 } else { 2 }) {
            if next < ranks && route.departure(next).0 == k {
                let leaving = keys(owner, next);
                if !leaving.is_empty() {
                    steps[k].send.push(transfer(route.at(owner, next), leaving, route.departure(next).1));
                }
            }
        }
    }
    if pass == Pass::Forward {
        return;
    }
    // Sums leave a step after the block that they hold was computed, so that they travel beside the next one.
    for k in 1..ranks {
        let owner = route.owner(rank, k);
        let home = |k: usize| if k == ranks { owner } else { route.at(owner, k) };
        let sums = gradients(owner, k);
        if !sums.is_empty() {
            steps[k + 1].send.push(transfer(home(k + 1), sums, 1));
        }
        let sums = gradients(owner, k - 1);
        if k > 1 && !sums.is_empty() {
            steps[k].receive.push(transfer(route.at(owner, k - 1), sums, 1));
        }
    }
    let sums = gradients(rank, ranks - 1);
    if !sums.is_empty() {
        steps[ranks].receive.push(transfer(route.at(rank, ranks - 1), sums, 1));
    }
}
