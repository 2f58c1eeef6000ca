//! Attention of dealt sequences against the whole.

use super::case::Case;
use half::{bf16, f16};
use lookback_ring::{Partition, Visible, schedule::Kind};

const PARTITIONS: [Partition; 3] = [Partition::Contiguous, Partition::Zigzag, Partition::Striped];

fn kinds(ranks: usize) -> Vec<Kind> {
    let mut kinds = vec![Kind::Ring, Kind::Bidirectional, Kind::TokenRing, Kind::AllGather { groups: 2 }];
    if ranks == 4 {
        kinds.extend([Kind::TwoLevel { node: 2 }, Kind::Ulysses]);
    }
    if ranks == 2 {
        kinds.push(Kind::Ulysses);
    }
    kinds
}

#[test]
fn every_schedule_gives_the_whole_s_result() {
    for ranks in [1, 2, 3, 4] {
        for kind in kinds(ranks) {
            for partition in PARTITIONS {
                Case::new(kind, partition, ranks, Visible::causal(75)).check::<bf16>();
            }
            Case::new(kind, Partition::Zigzag, ranks, Visible::full(52)).check::<f16>();
        }
    }
}

/// Documents of several lengths, one of them empty.
fn documents(tokens: usize) -> Vec<usize> {
    vec![0, tokens / 4, tokens / 4, tokens / 2 + 3, tokens]
}

#[test]
fn masks_and_ragged_documents() {
    let tokens = 61;
    let causal = Visible::causal(tokens);
    for visible in [
        Visible { left: 9, right: 0, sink_tokens: 3, ..Visible::full(tokens) },
        Visible { left: -1, ..Visible::full(tokens) },
        Visible { documents: documents(tokens), ..causal.clone() },
        Visible { documents: documents(tokens), ..Visible::full(tokens) },
        Visible { documents: documents(tokens), prefix_len: vec![4, 0, 30, 1], ..causal },
    ] {
        for kind in [Kind::Ring, Kind::Bidirectional, Kind::TokenRing, Kind::AllGather { groups: 1 }, Kind::Ulysses] {
            for partition in [Partition::Contiguous, Partition::Zigzag] {
                Case::new(kind, partition, 2, visible.clone()).check::<bf16>();
            }
        }
        Case::new(Kind::TokenRing, Partition::Striped, 4, visible.clone()).check::<f16>();
        Case::new(Kind::TwoLevel { node: 2 }, Partition::Striped, 4, visible).check::<f16>();
    }
}

#[test]
fn groups_batches_and_dimensions() {
    let visible = Visible::causal(40);
    for (heads, key_heads) in [(2, 2), (4, 1), (6, 2), (8, 8)] {
        for kind in [Kind::Ring, Kind::Bidirectional, Kind::TokenRing, Kind::AllGather { groups: 1 }] {
            if kind == Kind::Bidirectional && key_heads == 1 {
                continue;
            }
            let case = Case::new(kind, Partition::Zigzag, 3, visible.clone());
            Case { heads, key_heads, batch: 2, ..case }.check::<bf16>();
        }
    }
    for kind in [Kind::Ring, Kind::TokenRing, Kind::Ulysses] {
        let case = Case::new(kind, Partition::Contiguous, 2, visible.clone());
        Case { dim: (64, 32), batch: 2, softcap: Some(3.0), ..case.clone() }.check::<f16>();
        Case { dim: (128, 128), ..case }.check::<bf16>();
    }
}

#[test]
fn eight_ranks_and_sequences_shorter_than_the_ranks() {
    for kind in [Kind::Ring, Kind::Bidirectional, Kind::TokenRing, Kind::TwoLevel { node: 4 }] {
        Case::new(kind, Partition::Zigzag, 8, Visible::causal(70)).check::<bf16>();
    }
    let heads = |case| Case { heads: 8, key_heads: 2, ..case };
    heads(Case::new(Kind::Ulysses, Partition::Contiguous, 8, Visible::causal(70))).check::<bf16>();
    for tokens in [0, 1, 3] {
        for kind in [Kind::Ring, Kind::Bidirectional, Kind::TokenRing, Kind::AllGather { groups: 2 }, Kind::Ulysses] {
            Case::new(kind, Partition::Zigzag, 4, Visible::causal(tokens)).check::<bf16>();
        }
    }
}
