//! Keys stay, queries visit every rank, and what a block gives goes straight home while the next one is computed.
//!
//! At step `s` rank `r` has the queries of rank `r + s`. Queries go to the rank before, because then under a causal mask those that see
//! only a part of what is ahead of them have passed everything else: only that part of them travels on.

use super::{Item, Job, Pass, Step, Transfer};

pub(super) fn token_ring(job: &Job, pass: Pass, rank: usize) -> Vec<Step> {
    let ranks = job.ranks();
    let heads = job.all_heads();
    let result = if pass == Pass::Forward { Item::Partial } else { Item::QueryGradients };
    let holder = |owner: usize, s: usize| (owner + ranks - s) % ranks;
    // Queries of `owner` that are seen to at step `s` or later.
    let queries = |owner: usize, s: usize| {
        let tokens = job.needs.queries_for(owner, (s..ranks).map(|later| holder(owner, later)));
        job.parcel(Item::Queries, owner, tokens, heads.clone())
    };
    // What step `s` gives for the queries of `owner`.
    let results = |owner: usize, s: usize| {
        let (rows, _) = job.needs.between(owner, holder(owner, s))?;
        Some(job.parcel(result, owner, rows, heads.clone()))
    };
    let mut steps = vec![Step::default(); ranks + usize::from(ranks > 1)];
    for s in 0..ranks {
        let owner = (rank + s) % ranks;
        steps[s].compute.extend(job.block(owner, rank, &heads));
        if s + 1 < ranks {
            let (here, next) = (queries(owner, s + 1), queries((owner + 1) % ranks, s + 1));
            if !here.is_empty() {
                steps[s].send.push(Transfer { peer: holder(owner, s + 1), parcel: here, steps: 1 });
            }
            if !next.is_empty() {
                steps[s].receive.push(Transfer { peer: (rank + 1) % ranks, parcel: next, steps: 1 });
            }
        }
        if s > 0 {
            let own = results(rank, s).map(|parcel| Transfer { peer: holder(rank, s), parcel, steps: 1 });
            steps[s + 1].send.extend(results(owner, s).map(|parcel| Transfer { peer: owner, parcel, steps: 1 }));
            steps[s + 1].receive.extend(own);
        }
    }
    steps
}
