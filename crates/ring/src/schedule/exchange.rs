//! Everybody sends to everybody.

use super::{Block, Item, Job, Parcel, Pass, Step, Transfer};
use std::ops::Range;

/// A transfer of one step.
fn transfer(peer: usize, parcel: Parcel) -> Transfer {
    Transfer { peer, parcel, steps: 1 }
}

/// Keys and values of one set of heads go to all ranks that see any of them while the set before is computed; in a backward pass
/// their gradients come back a step later.
pub(super) fn all_gather(job: &Job, pass: Pass, rank: usize, groups: usize) -> Vec<Step> {
    let ranks = job.ranks();
    let others = || (0..ranks).filter(|other| *other != rank);
    let backward = usize::from(pass == Pass::Backward);
    let mut steps = vec![Step::default(); groups + 1 + backward];
    for group in 0..groups {
        let bound = |at: usize| job.key_heads * at / groups * job.group();
        let heads = bound(group)..bound(group + 1);
        let seen = |queries: usize, keys: usize, item: Item| {
            let (_, columns) = job.needs.between(queries, keys)?;
            Some(job.parcel(item, keys, columns, heads.clone()))
        };
        for peer in others() {
            steps[group].send.extend(seen(peer, rank, Item::Keys).map(|parcel| transfer(peer, parcel)));
            steps[group].receive.extend(seen(rank, peer, Item::Keys).map(|parcel| transfer(peer, parcel)));
            if pass == Pass::Backward {
                let step = &mut steps[group + 2];
                step.send.extend(seen(rank, peer, Item::KeyGradients).map(|parcel| transfer(peer, parcel)));
                step.receive.extend(seen(peer, rank, Item::KeyGradients).map(|parcel| transfer(peer, parcel)));
            }
        }
        let keys: Vec<Parcel> = (0..ranks).filter_map(|keys| seen(rank, keys, Item::Keys)).collect();
        let rows = job.needs.queries_for(rank, 0..ranks);
        if !keys.is_empty() {
            let queries = vec![job.parcel(Item::Queries, rank, rows, heads.clone())];
            steps[group + 1].compute.push(Block { queries, keys });
        }
    }
    steps
}

/// Tokens of all ranks come together by heads, and what was computed goes back.
pub(super) fn ulysses(job: &Job, pass: Pass, rank: usize) -> Vec<Step> {
    let ranks = job.ranks();
    let share = |rank: usize| -> Range<usize> { rank * job.heads / ranks..(rank + 1) * job.heads / ranks };
    let others = || (0..ranks).filter(|other| *other != rank);
    let results: &[Item] = match pass {
        Pass::Forward => &[Item::Partial],
        Pass::Backward => &[Item::QueryGradients, Item::KeyGradients],
    };
    // Of `owner`'s tokens the share of heads of `at`.
    let parcel = |item: Item, owner: usize, at: usize| {
        let tokens = match item {
            Item::Keys | Item::KeyGradients => job.needs.keys_for(owner, 0..ranks),
            _ => job.needs.queries_for(owner, 0..ranks),
        };
        Some(job.parcel(item, owner, tokens, share(at))).filter(|parcel| !parcel.is_empty())
    };
    let mut steps = vec![Step::default(); 3];
    for peer in others() {
        for item in [Item::Queries, Item::Keys] {
            steps[0].send.extend(parcel(item, rank, peer).map(|parcel| transfer(peer, parcel)));
            steps[0].receive.extend(parcel(item, peer, rank).map(|parcel| transfer(peer, parcel)));
        }
        for item in results {
            steps[2].send.extend(parcel(*item, peer, rank).map(|parcel| transfer(peer, parcel)));
            steps[2].receive.extend(parcel(*item, rank, peer).map(|parcel| transfer(peer, parcel)));
        }
    }
    let all = |item: Item| (0..ranks).filter_map(|owner| parcel(item, owner, rank)).collect::<Vec<_>>();
    let (queries, keys) = (all(Item::Queries), all(Item::Keys));
    if !queries.is_empty() && !keys.is_empty() {
        steps[1].compute.push(Block { queries, keys });
    }
    steps
}
