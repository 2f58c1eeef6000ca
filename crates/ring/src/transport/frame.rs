//! What stands before every message on the wire.

use super::Label;
use crate::schedule::{Item, Parcel};
use lookback_device::PeerFault;

/// First bytes of a frame: the protocol and its version.
const MAGIC: [u8; 4] = *b"LBK2";

/// Bytes of a header.
pub(super) const HEADER: usize = 48;

/// What a frame is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A parcel of a schedule.
    Data(Label),
    /// Part of an all-gather: its number.
    Gather(u32),
    /// Rank `culprit` has failed at `step`.
    Abort { culprit: u32, step: u32, fault: PeerFault },
    /// Is anybody there?
    Ping,
    /// Yes: waiting for rank `waits_for` for `age` milliseconds, or at work.
    Pong { waits_for: Option<u32>, age: u32 },
}

impl Kind {
    /// Whether it must not wait behind data, and has none of its own.
    pub(super) fn is_word(&self) -> bool {
        matches!(self, Self::Abort { .. } | Self::Ping | Self::Pong { .. })
    }
}

/// A header and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
}

impl Frame {
    pub(super) fn empty(kind: Kind) -> Self {
        Self { kind, bytes: Vec::new() }
    }

    pub(super) fn header(&self) -> [u8; HEADER] {
        let mut words = [0_u32; 8];
        let (code, detail) = match &self.kind {
            Kind::Data(Label { operation, step, parcel }) => {
                let Parcel { item, owner, tokens, heads } = parcel;
                let ends = [*owner, tokens.start, tokens.end, heads.start, heads.end].map(|n| n as u32);
                words[..2].copy_from_slice(&[*operation, *step]);
                words[2..7].copy_from_slice(&ends);
                (0, *item as u8)
            }
            Kind::Gather(number) => {
                words[0] = *number;
                (1, 0)
            }
            Kind::Abort { culprit, step, fault } => {
                words[..2].copy_from_slice(&[*culprit, *step]);
                (2, *fault as u8)
            }
            Kind::Ping => (3, 0),
            Kind::Pong { waits_for, age } => {
                words[..2].copy_from_slice(&[waits_for.unwrap_or_default(), *age]);
                (4, u8::from(waits_for.is_some()))
            }
        };
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = code;
        out[5] = detail;
        for (at, word) in words.iter().enumerate() {
            out[8 + 4 * at..][..4].copy_from_slice(&word.to_le_bytes());
        }
        out[40..].copy_from_slice(&(self.bytes.len() as u64).to_le_bytes());
        out
    }

    /// What a header says, and how many bytes follow; nothing if it is none.
    pub(super) fn parse(header: &[u8; HEADER]) -> Option<(Kind, u64)> {
        if header[..4] != MAGIC || header[6..8] != [0, 0] {
            return None;
        }
        let word = |at: usize| {
            let bytes = header[8 + 4 * at..][..4].try_into().ok();
            bytes.map(u32::from_le_bytes)
        };
        let size = |at: usize| Some(word(at)? as usize);
        let kind = match header[4] {
            0 => {
                let item = match header[5] {
                    0 => Item::Keys,
                    1 => Item::Queries,
                    2 => Item::Partial,
                    3 => Item::QueryGradients,
                    4 => Item::KeyGradients,
                    5 => Item::State,
                    6 => Item::StateGradient,
                    _ => return None,
                };
                let (tokens, heads) = (size(3)?..size(4)?, size(5)?..size(6)?);
                let parcel = Parcel { item, owner: size(2)?, tokens, heads };
                Kind::Data(Label { operation: word(0)?, step: word(1)?, parcel })
            }
            1 => Kind::Gather(word(0)?),
            2 => {
                let fault = match header[5] {
                    0 => PeerFault::Silent,
                    1 => PeerFault::Closed,
                    2 => PeerFault::Mismatch,
                    _ => return None,
                };
                Kind::Abort { culprit: word(0)?, step: word(1)?, fault }
            }
            3 => Kind::Ping,
            4 => Kind::Pong { waits_for: (header[5] == 1).then_some(word(0)?), age: word(1)? },
            _ => return None,
        };
        Some((kind, u64::from_le_bytes(header[40..].try_into().ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_wire_and_garbage_does_not() {
        let attention = [Item::Keys, Item::Queries, Item::Partial, Item::QueryGradients, Item::KeyGradients];
        let items = attention.into_iter().chain([Item::State, Item::StateGradient]);
        let faults = [PeerFault::Silent, PeerFault::Closed, PeerFault::Mismatch];
        let data = items.map(|item| {
            let parcel = Parcel { item, owner: 3, tokens: 5..70_000, heads: 2..9 };
            Kind::Data(Label { operation: 7, step: 11, parcel })
        });
        let aborts = faults.map(|fault| Kind::Abort { culprit: 6, step: 4, fault });
        let pongs = [None, Some(0), Some(7)].map(|waits_for| Kind::Pong { waits_for, age: 12_345 });
        let rest = [Kind::Gather(9), Kind::Ping].into_iter().chain(pongs);
        for kind in data.chain(aborts).chain(rest) {
            let frame = Frame { kind: kind.clone(), bytes: vec![1; 300] };
            let header = frame.header();
            assert_eq!(Frame::parse(&header), Some((kind, 300)));
            for at in [0, 1, 2, 3, 4, 6, 7] {
                let mut bad = header;
                bad[at] = bad[at].wrapping_add(200);
                assert_eq!(Frame::parse(&bad), None, "byte {at}");
            }
        }
    }
}
