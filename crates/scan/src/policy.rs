//! Tuning as data: how a tile is cut.

use crate::Source;
use lookback_device::DType;

/// Direction of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// From gates to states.
    Forward,
    /// From the adjoint of the states to those of the gates.
    Backward,
}

/// Shape of a tile and reach of the look-back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Tokens of a warp; a tile has eight warps.
    pub rows: usize,
    /// Channels of a lane; a tile has 32 lanes.
    pub vec: usize,
    /// Chunks that the look-back sees at once.
    pub window: u32,
}

impl Policy {
    /// Tokens of a tile.
    pub fn tile_tokens(&self) -> usize {
        8 * self.rows
    }

    /// Channels of a tile.
    pub fn tile_channels(&self) -> usize {
        32 * self.vec
    }
}

/// Channels of a lane whose access is 8 bytes wide.
pub fn wide(dtype: DType) -> usize {
    8 / dtype.size()
}

/// The tile of a kernel. Tokens are as many as fit into the registers of two blocks a multiprocessor, for the loads in flight.
///
/// `vec` is [`wide`] or 1.
pub fn policy(pass: Pass, source: Source, vec: usize, deterministic: bool) -> Policy {
    let rows = match (pass, source.is_producer()) {
        (Pass::Forward, false) => 16,
        (Pass::Forward, true) | (Pass::Backward, false) => 8,
        (Pass::Backward, true) => {
            if vec > 1 {
                4
            } else {
                8
            }
        }
    };
    Policy { rows, vec, window: if deterministic { 1 } else { 32 } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: [Source; 5] = [
        Source::Tensor,
        Source::Log,
        Source::Channel { log: false },
        Source::GatedSsm { normalize: false },
        Source::RgLru { unit_at_reset: true },
    ];

    #[test]
    fn policy_cuts_tiles_as_the_contracts_say() {
        for (pass, name) in [(Pass::Forward, "gated_scan_fwd"), (Pass::Backward, "gated_scan_bwd")] {
            for source in SOURCES {
                for dtype in DType::ALL {
                    for vec in [1, wide(dtype)] {
                        let variant =
                            [("source", source.variant()), ("dtype", dtype.name()), ("vec", &vec.to_string())];
                        let kernel = lookback_kernels::find(name, &variant).expect("every variant is built");
                        let chunks = kernel.args.iter().find(|a| a.name == "chunks").expect("an argument");
                        let want = format!("ceil(seq_len / {})", policy(pass, source, vec, false).tile_tokens());
                        assert!(chunks.detail.contains(&want), "{}: {} is not {want}", kernel.entry, chunks.detail);
                    }
                }
            }
        }
    }
}
