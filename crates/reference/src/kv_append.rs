//! New keys and values into a cache, the oracle: where each token belongs, keys turned by their positions, and codes of 8 bits.
//!
//! Caches are flat arrays of token slots `[slots, Hk, D]`, as those of [`lean_decode`](crate::lean_decode). A token whose slot, length or table leads outside
//! is left out, and a bit says why.

use crate::{
    e4m3,
    lean_decode::Cache,
    rotary::{self, Rotary, Style},
};

/// A request has no room for its length, or fewer tokens than are new.
pub const KV_LEN: u32 = 1;
/// A request's places or page table are not in order or not in the table.
pub const STARTS: u32 = 2;
/// A request's new tokens are not there.
pub const TOKENS: u32 = 4;
/// A page table names a page that does not exist.
pub const PAGE: u32 = 16;
/// A slot that the cache does not have.
pub const SLOT: u32 = 256;

/// How it is said where a new token belongs.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Slots; -1 is not stored.
    Slots(&'a [i64]),
    /// The new tokens of a request are the last of its `kv_len`.
    Requests {
        /// `[B]` tokens of each with the new ones.
        kv_len: &'a [i32],
        /// `[B+1]` starts of the new tokens of each; without, all have as many.
        cu_seqlens: Option<&'a [i32]>,
        /// Where the cache keeps the tokens of each.
        cache: Cache<'a>,
    },
}

/// Which elements of a key turn, and how far.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Which elements turn together; not [`Style::Cosine`].
    pub style: Style,
    /// Angle `i` is `position base^(-2 i / theta_dim)`.
    pub base: f64,
    /// The first so many elements turn.
    pub rotary_dim: usize,
    /// See `base`.
    pub theta_dim: usize,
}

/// What makes codes of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scales<'a> {
    /// No codes: values are stored.
    None,
    /// A scale for each head, `[Hk]`.
    Given(&'a [f64]),
    /// Of each row, its greatest magnitude over 448.
    Computed,
}

/// Sizes and switches.
#[derive(Debug, Clone, Copy)]
pub struct Append<'a> {
    /// Heads `Hk`.
    pub heads: usize,
    /// `D`.
    pub head_dim: usize,
    /// `Dv`.
    pub value_dim: usize,
    /// Slots of the cache.
    pub slots: usize,
    /// Where tokens belong.
    pub place: Place<'a>,
    /// Turning of keys.
    pub turn: Option<Turn>,
    /// Positions of the new tokens; without, their places in their requests.
    pub positions: Option<&'a [i32]>,
}

/// Where a new token belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Located {
    /// None for those that are not stored.
    pub slot: Option<usize>,
    /// For the angles; 0 where nothing says it.
    pub position: i64,
    /// Why it is not stored, if that is a mistake.
    pub status: u32,
}

impl Append<'_> {
    /// Where each of `tokens` new tokens belongs.
    pub fn locate(&self, tokens: usize) -> Vec<Located> {
        (0..tokens)
            .map(|t| {
                let mut located = match self.place {
                    Place::Slots(slots) => self.by_slot(slots[t]),
                    Place::Requests { kv_len, cu_seqlens, cache } => {
                        self.by_request(t, tokens, kv_len, cu_seqlens, cache)
                    }
                };
                if let Some(positions) = self.positions {
                    located.position = i64::from(positions[t]);
                }
                located
            })
            .collect()
    }

    fn by_slot(&self, slot: i64) -> Located {
        let found = usize::try_from(slot).ok().filter(|s| *s < self.slots);
        let status = if found.is_none() && slot != -1 { SLOT } else { 0 };
        Located { slot: found, position: 0, status }
    }

    fn by_request(
        &self,
        t: usize,
        tokens: usize,
        kv_len: &[i32],
        cu_seqlens: Option<&[i32]>,
        cache: Cache<'_>,
    ) -> Located {
        let requests = kv_len.len();
        let wrong = |status| Located { status, ..Located::default() };
        let (b, from, to) = match cu_seqlens {
            None => {
                let each = tokens / requests;
                (t / each, t / each * each, (t / each + 1) * each)
            }
            Some(starts) => {
                // The last request that starts no later than the token.
                let b = starts.iter().rposition(|s| i64::from(*s) <= t as i64).unwrap_or(0);
                if b >= requests {
                    return Located::default();
                }
                match (usize::try_from(starts[b]), usize::try_from(starts[b + 1])) {
                    (Ok(from), Ok(to)) if from <= t && to <= tokens => (b, from, to),
                    _ => return wrong(TOKENS),
                }
            }
        };
        let position = i64::from(kv_len[b]) - (to - from) as i64 + (t - from) as i64;
        let (table, len) = match cache {
            Cache::Dense { .. } => (None, 0),
            Cache::Ragged { starts } => (Some(starts), self.slots),
            Cache::Paged { indptr, indices, .. } => (Some(indptr), indices.len()),
        };
        let in_order = |s: &[i32]| 0 <= s[b] && s[b] <= s[b + 1] && s[b + 1] as i64 <= len as i64;
        if table.is_some_and(|s| !in_order(s)) {
            return wrong(STARTS);
        }
        match usize::try_from(position) {
            Ok(j) if j < cache.capacity(b, self.slots) => {
                let slot = cache.slot(b, j, self.slots);
                Located { slot, position, status: if slot.is_none() { PAGE } else { 0 } }
            }
            _ => wrong(KV_LEN),
        }
    }

    /// Keys `[tokens, Hk, D]` turned by their positions.
    pub fn turned(&self, k: &[f64], located: &[Located]) -> Vec<f64> {
        let Some(Turn { style, base, rotary_dim, theta_dim }) = self.turn else { return k.to_vec() };
        let positions: Vec<i32> = located.iter().map(|l| l.position as i32).collect();
        let rotary = Rotary {
            batch: 1,
            tokens: located.len(),
            heads: self.heads,
            head_dim: self.head_dim,
            style,
            base,
            rotary_dim,
            theta_dim,
            extents: &[],
            prefix: 0,
            positions: Some(&positions),
            starts: None,
            offset: 0,
            frequencies: None,
        };
        rotary::forward(&rotary, k)
    }
}

/// Codes of a row, and its scale: the product with the reciprocal of the scale is rounded to f32, as a kernel's is, and then to 8 bits.
pub fn codes(row: &[f64], given: Option<f64>) -> (Vec<u8>, f64) {
    let scale = given.unwrap_or_else(|| {
        // NaN does not count, and there is no infinite scale, nor one whose reciprocal is.
        let finite: Vec<f64> =
            row.iter().map(|x| if x.is_nan() { 0.0 } else { x.abs().min(f64::from(f32::MAX)) }).collect();
        f64::from((e4m3::scale(&finite) as f32).max(f32::MIN_POSITIVE))
    });
    let inverse = 1.0 / scale as f32;
    (row.iter().map(|x| e4m3::encode(f64::from(*x as f32 * inverse))).collect(), scale)
}

/// A cache: values, or codes and scales; `NaN` and 0 where nothing was stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// `[slots, Hk, width]` values; of codes, what they stand for.
    pub values: Vec<f64>,
    /// `[slots, Hk, width]`.
    pub codes: Vec<u8>,
    /// `[slots, Hk]`.
    pub scales: Vec<f64>,
}

/// Rows `[tokens, Hk, width]` in a cache of `slots` slots. Of two tokens with one slot the later one is found there.
pub fn append(rows: &[f64], heads: usize, slots: usize, located: &[Located], scales: Scales<'_>) -> Stored {
    let width = rows.len().checked_div(located.len() * heads).unwrap_or(0);
    let mut stored = Stored {
        values: vec![f64::NAN; slots * heads * width],
        codes: vec![0; slots * heads * width],
        scales: vec![f64::NAN; slots * heads],
    };
    for (t, slot) in located.iter().enumerate().filter_map(|(t, l)| l.slot.map(|slot| (t, slot))) {
        for h in 0..heads {
            let row = &rows[(t * heads + h) * width..][..width];
            let to = slot * heads + h;
            let given = match scales {
                Scales::None => {
                    stored.values[to * width..][..width].copy_from_slice(row);
                    continue;
                }
                Scales::Given(given) => Some(given[h]),
                Scales::Computed => None,
            };
            let (codes, scale) = codes(row, given);
            for (i, code) in codes.iter().enumerate() {
                stored.values[to * width + i] = e4m3::decode(*code) * scale;
            }
            stored.codes[to * width..][..width].copy_from_slice(&codes);
            stored.scales[to] = scale;
        }
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    const APPEND: Append<'_> = Append {
        heads: 1,
        head_dim: 2,
        value_dim: 2,
        slots: 12,
        place: Place::Slots(&[]),
        turn: None,
        positions: None,
    };

    fn slots(append: &Append<'_>, tokens: usize) -> Vec<Option<usize>> {
        append.locate(tokens).iter().map(|l| l.slot).collect()
    }

    #[test]
    fn tokens_find_their_slots() {
        let given = Append { place: Place::Slots(&[3, -1, 11, 12, -2]), ..APPEND };
        assert_eq!(slots(&given, 5), [Some(3), None, Some(11), None, None]);
        assert_eq!(given.locate(5).iter().map(|l| l.status).collect::<Vec<_>>(), [0, 0, 0, SLOT, SLOT]);
        // Two requests of 3 and 5 tokens, of which 1 and 2 are new; the last token is nobody's.
        let place = |cache| Place::Requests { kv_len: &[3, 5], cu_seqlens: Some(&[0, 1, 3]), cache };
        let dense = Append { place: place(Cache::Dense { capacity: 6 }), ..APPEND };
        assert_eq!(slots(&dense, 4), [Some(2), Some(9), Some(10), None]);
        let ragged = Append { place: place(Cache::Ragged { starts: &[0, 4, 10] }), ..APPEND };
        assert_eq!(slots(&ragged, 4), [Some(2), Some(7), Some(8), None]);
        let cache = Cache::Paged { page_size: 2, indptr: &[0, 2, 5], indices: &[5, 0, 1, 9, 4] };
        let paged = Append { place: place(cache), ..APPEND };
        assert_eq!(slots(&paged, 4), [Some(0), None, Some(8), None]);
        let located = paged.locate(4);
        assert_eq!(located.iter().map(|l| l.status).collect::<Vec<_>>(), [0, PAGE, 0, 0]);
        assert_eq!(located.iter().map(|l| l.position).collect::<Vec<_>>(), [2, 3, 4, 0]);
    }

    #[test]
    fn what_leads_outside_is_left_out() {
        let statuses = |kv_len, cu_seqlens, cache| {
            let append = Append { place: Place::Requests { kv_len, cu_seqlens, cache }, ..APPEND };
            append.locate(4).iter().map(|l| (l.slot.is_some(), l.status)).collect::<Vec<_>>()
        };
        let (yes, dense) = ((true, 0), Cache::Dense { capacity: 6 });
        let no = |status| (false, status);
        assert_eq!(statuses(&[1, 7], None, dense), [no(KV_LEN), yes, yes, no(KV_LEN)]);
        assert_eq!(statuses(&[-9, 2], None, dense), [no(KV_LEN), no(KV_LEN), yes, yes]);
        assert_eq!(statuses(&[4, 4], Some(&[0, 2, 5]), dense), [yes, yes, no(TOKENS), no(TOKENS)]);
        let ragged = Cache::Ragged { starts: &[5, 2, 99] };
        assert_eq!(statuses(&[2, 2], None, ragged), [no(STARTS); 4]);
    }

    #[test]
    fn scales_are_those_of_rows() {
        let (found, scale) = codes(&[0.0, -896.0, 3.0, f64::NAN], None);
        assert_eq!((found, scale), (vec![0, 0xfe, e4m3::encode(1.5), 0x7f], 2.0));
        assert_eq!(codes(&[0.0, -0.0], None), (vec![0, 0x80], 1.0));
        assert_eq!(codes(&[f64::INFINITY, 1.0], None).0, [0x7e, 0]);
        assert_eq!(codes(&[1e-45, -1e-45], None).0, [0, 0x80]);
        let located = [Located { slot: Some(1), ..Located::default() }];
        let stored = append(&[2.0, 4.0], 1, 2, &located, Scales::Given(&[2.0]));
        assert_eq!((&stored.codes[2..], &stored.values[2..]), (&[0x38, 0x40][..], &[2.0, 4.0][..]));
        assert!(stored.values[..2].iter().all(|v| v.is_nan()));
    }
}
