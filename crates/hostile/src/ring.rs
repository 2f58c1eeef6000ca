//! What other ranks say, and what a job of ranks may cost.

use lookback_ring::{
    Layout, Partition, Visible,
    cost::{Machine, Sizes, Topology, candidates},
    schedule::{Job, Kind, Needs, Pass, schedule},
    transport::header_length,
};

/// Reads a header of the wire.
pub fn frame(bytes: &[u8]) -> bool {
    let mut header = [0; 48];
    let len = bytes.len().min(48);
    header[..len].copy_from_slice(&bytes[..len]);
    header_length(&header).is_some()
}

/// Makes the schedules of a job, and what it would cost.
///
/// # Panics
/// When a schedule computes or sends something of a rank that the job does not have.
pub fn cost(bytes: &[u8]) -> bool {
    let byte = |at: usize| usize::from(bytes.get(at).copied().unwrap_or(0));
    let (ranks, tokens) = (byte(0) % 9, byte(1) | (byte(2) % 4) << 8);
    let (heads, key_heads) = (byte(3) % 33, byte(4) % 33);
    let partition = [Partition::Contiguous, Partition::Zigzag, Partition::Striped][byte(5) % 3];
    let documents: Vec<usize> = bytes.iter().skip(16).take(8).map(|byte| usize::from(*byte) * 3).collect();
    let visible = Visible {
        left: byte(6) as i64 - 1,
        right: byte(7) as i64 - 1,
        sink_tokens: byte(8),
        prefix_len: if byte(9) % 2 == 0 { Vec::new() } else { vec![byte(10)] },
        documents: if documents.is_empty() { vec![0, tokens] } else { documents },
    };
    if visible.check(tokens).is_err() || ranks == 0 {
        return false;
    }
    let layout = Layout { partition, tokens, ranks };
    let job = Job { layout, heads, key_heads, needs: Needs::new(&layout, &visible) };
    let kind = match byte(11) % 6 {
        0 => Kind::Ring,
        1 => Kind::Bidirectional,
        2 => Kind::TwoLevel { node: byte(12) },
        3 => Kind::TokenRing,
        4 => Kind::AllGather { groups: byte(12) },
        _ => Kind::Ulysses,
    };
    let pass = if byte(13) % 2 == 0 { Pass::Forward } else { Pass::Backward };
    let mut all = true;
    for rank in 0..ranks {
        match schedule(kind, pass, &job, rank) {
            Ok(plan) => {
                let parcels = plan.steps.iter().flat_map(|step| step.send.iter().chain(&step.receive));
                for transfer in parcels {
                    assert!(transfer.peer < ranks && transfer.parcel.owner < ranks, "{transfer:?}");
                }
            }
            Err(_) => all = false,
        }
    }
    let machine = Machine {
        topology: [Topology::Ring, Topology::Mesh, Topology::Switch][byte(14) % 3],
        node: byte(15),
        flops: 1e14,
        link: 1e11,
        node_link: 1e10,
        latency: 1e-5,
    };
    let sizes = Sizes { head_dim: 64, value_dim: 64, element: 2 };
    all && candidates(pass, tokens, ranks, (heads, key_heads), &visible, &sizes, &machine).is_ok()
}
