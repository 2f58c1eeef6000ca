//! From a schedule to launches: where everything lies, what is copied, and which kernel computes each block.

use super::{
    Options, Shape,
    op::{Mail, Op, copy},
    view::{Arena, Base, Segment, View},
};
use crate::{
    Cover, DeviceInfo, Error, Layout, Result, Visible,
    schedule::{Block, Item, Job, Parcel, Pass, Schedule, Transfer},
};
use lookback_device::DType;
use std::ops::Range;

/// Numbers of the caller's tensors; the last five are those of a backward pass.
pub(super) const Q: Base = Base::Tensor(0);
pub(super) const K: Base = Base::Tensor(1);
pub(super) const V: Base = Base::Tensor(2);
pub(super) const O: Base = Base::Tensor(3);
pub(super) const LSE: Base = Base::Tensor(4);
pub(super) const D_O: Base = Base::Tensor(5);
pub(super) const D_LSE: Base = Base::Tensor(6);
pub(super) const DQ: Base = Base::Tensor(7);
pub(super) const DK: Base = Base::Tensor(8);
pub(super) const DV: Base = Base::Tensor(9);

/// One of the tensors that an item consists of.
#[derive(Debug, Clone, Copy)]
struct Part {
    width: usize,
    dtype: DType,
    /// Rows of key heads, not of query heads.
    of_keys: bool,
    /// `[batch, heads, tokens, width]`.
    head_major: bool,
}

/// Rows of a parcel that lie in one place.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// Which of the owner's tokens.
    pub tokens: Range<usize>,
    /// A tensor for each of the item's parts, see [`Compiler::parts`].
    pub views: Vec<View>,
}

/// A parcel that is on this rank.
#[derive(Debug, Clone)]
struct Held {
    parcel: Parcel,
    pieces: Vec<Piece>,
}

/// Rows of queries or keys that one launch sees.
#[derive(Debug, Clone)]
pub(super) enum Axis {
    /// Tokens of a rank.
    Of(usize, Range<usize>),
    /// All tokens in the order of positions.
    All,
}

impl Axis {
    pub fn len(&self, layout: &Layout) -> usize {
        match self {
            Axis::Of(_, tokens) => tokens.len(),
            Axis::All => layout.tokens,
        }
    }

    fn position(&self, layout: &Layout, row: usize) -> usize {
        match self {
            Axis::Of(owner, tokens) => layout.position(*owner, tokens.start + row),
            Axis::All => row,
        }
    }

    /// Rows that stand before a position.
    fn before(&self, layout: &Layout, position: usize) -> usize {
        match self {
            Axis::Of(owner, tokens) => layout.before(*owner, position).clamp(tokens.start, tokens.end) - tokens.start,
            Axis::All => position,
        }
    }
}

pub(super) struct Compiler<'a> {
    pub shape: Shape,
    pub options: Options,
    pub job: &'a Job,
    pub visible: &'a Visible,
    pub rank: usize,
    pub device: &'a DeviceInfo,
    pub arena: Arena,
    pub ops: Vec<Op>,
    /// Intervals of rows, four numbers each.
    pub tables: Vec<i32>,
    pub step: usize,
    pass: Pass,
    held: Vec<Held>,
    /// Items whose rows lie in the order of positions, with their heads.
    gathered: Vec<(Item, Range<usize>, Vec<View>)>,
}

impl<'a> Compiler<'a> {
    pub fn new(
        shape: Shape,
        options: Options,
        pass: Pass,
        job: &'a Job,
        visible: &'a Visible,
        rank: usize,
        device: &'a DeviceInfo,
    ) -> Self {
        let (arena, ops, tables) = (Arena::default(), Vec::new(), Vec::new());
        let (held, gathered) = (Vec::new(), Vec::new());
        Self { shape, options, job, visible, rank, device, arena, ops, tables, step: 0, pass, held, gathered }
    }

    /// What an item consists of.
    fn parts(&self, item: Item) -> Vec<Part> {
        let Shape { head_dim, value_dim, .. } = self.shape;
        let rows = |width, dtype, of_keys| Part { width, dtype, of_keys, head_major: false };
        let (dtype, sums) = (self.options.dtype, DType::F32);
        match (item, self.pass) {
            (Item::Keys, _) => vec![rows(head_dim, dtype, true), rows(value_dim, dtype, true)],
            (Item::Queries, Pass::Forward) => vec![rows(head_dim, dtype, false)],
            // do, and what the backward pass of a row needs of its result.
            (Item::Queries, Pass::Backward) => vec![
                rows(head_dim, dtype, false),
                rows(value_dim, dtype, false),
                Part { head_major: true, ..rows(2, sums, false) },
            ],
            (Item::Partial, _) => vec![rows(value_dim, dtype, false), rows(1, sums, false)],
            (Item::QueryGradients, _) => vec![rows(head_dim, sums, false)],
            (Item::KeyGradients, _) => vec![rows(head_dim, sums, true), rows(value_dim, sums, true)],
            // Attention has no states.
            (Item::State | Item::StateGradient, _) => Vec::new(),
        }
    }

    /// Heads of a part's tensors.
    fn heads(&self, heads: &Range<usize>, of_keys: bool) -> Range<usize> {
        if of_keys { self.job.key_heads(heads) } else { heads.clone() }
    }

    /// New memory for an item of so many tokens, from this step on.
    pub fn allocate(&mut self, item: Item, tokens: usize, heads: &Range<usize>) -> Vec<View> {
        let view = |c: &Self, part: Part| {
            let heads = c.heads(heads, part.of_keys).len();
            let dense = View::dense(Q, [c.shape.batch, tokens, heads, part.width], part.dtype);
            if part.head_major { dense.head_major() } else { dense }
        };
        let views: Vec<View> = self.parts(item).into_iter().map(|part| view(self, part)).collect();
        let sizes: Vec<usize> = views.iter().map(View::bytes).collect();
        let (base, starts) = self.arena.allocate(&sizes, self.step);
        views.into_iter().zip(starts).map(|(view, at)| View { base, at, ..view }).collect()
    }

    pub fn hold(&mut self, parcel: Parcel, pieces: Vec<Piece>) {
        self.held.push(Held { parcel, pieces });
    }

    /// The caller's keys, and queries with what else belongs to them.
    pub fn hold_own(&mut self, of_queries: &[View]) {
        let Shape { batch, head_dim, value_dim, heads, key_heads } = self.shape;
        let tokens = self.job.layout.len(self.rank);
        let dense = |base, heads, width| View::dense(base, [batch, tokens, heads, width], self.options.dtype);
        let own = |item| Parcel { item, owner: self.rank, tokens: 0..tokens, heads: 0..heads };
        let piece = |views| vec![Piece { tokens: 0..tokens, views }];
        let queries = [&[dense(Q, heads, head_dim)], of_queries].concat();
        let keys = vec![dense(K, key_heads, head_dim), dense(V, key_heads, value_dim)];
        let both = [(own(Item::Queries), piece(queries)), (own(Item::Keys), piece(keys))];
        for (parcel, pieces) in both {
            self.hold(parcel, pieces);
        }
    }

    /// The parcel that is held of an item, whatever its tokens.
    pub fn held(&self, item: Item, owner: usize, heads: &Range<usize>) -> Option<Parcel> {
        let is_it = |h: &&Held| {
            let Parcel { item: i, owner: o, heads: all, .. } = &h.parcel;
            (*i, *o) == (item, owner) && all.start <= heads.start && all.end >= heads.end
        };
        let held = self.held.iter().rev().find(is_it);
        held.map(|h| Parcel { heads: heads.clone(), ..h.parcel.clone() })
    }

    /// Where the rows of a parcel lie on this rank.
    pub fn find(&mut self, wanted: &Parcel) -> Result<Vec<Piece>> {
        let covers = |h: &&Held| {
            let Parcel { item, owner, tokens, heads } = &h.parcel;
            (*item, *owner) == (wanted.item, wanted.owner)
                && tokens.start <= wanted.tokens.start
                && tokens.end >= wanted.tokens.end
                && heads.start <= wanted.heads.start
                && heads.end >= wanted.heads.end
        };
        let held = self.held.iter().rev().find(covers).cloned();
        let held = held.ok_or_else(|| Error::NoKernel {
            op: super::forward::OP,
            request: format!("{wanted:?}, which is not there"),
        })?;
        let parts = self.parts(wanted.item);
        let mut found = Vec::new();
        for piece in held.pieces {
            let (start, end) = (piece.tokens.start.max(wanted.tokens.start), piece.tokens.end.min(wanted.tokens.end));
            if start >= end {
                continue;
            }
            let views = piece.views.iter().zip(&parts).map(|(view, part)| {
                let of = |heads| self.heads(heads, part.of_keys);
                let (all, some) = (of(&held.parcel.heads), of(&wanted.heads));
                let heads = some.start - all.start..some.end - all.start;
                view.heads(&heads).tokens(&(start - piece.tokens.start..end - piece.tokens.start))
            });
            found.push(Piece { tokens: start..end, views: views.collect() });
        }
        for view in found.iter().flat_map(|piece| &piece.views) {
            self.arena.touch(view.base, self.step);
        }
        Ok(found)
    }

    /// Bytes of a message: part after part, row after row of the batch, token after token (or head after head, where heads come first).
    fn segments(&mut self, pieces: &[Piece], due: usize) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        let parts = pieces.first().map_or(0, |piece| piece.views.len());
        for part in 0..parts {
            let mut packed = Vec::new();
            for piece in pieces {
                let view = piece.views[part];
                let to = if view.is_packed() || view.is_head_major() {
                    view
                } else {
                    let (base, _) = self.arena.allocate(&[view.bytes()], self.step);
                    let to = View::dense(base, [view.batch, view.tokens, view.heads, view.width], view.dtype);
                    self.ops.push(copy(view, to, false, self.device)?);
                    to
                };
                self.arena.touch(to.base, due);
                packed.push(to);
            }
            let head_major = packed.iter().any(|view| !view.is_packed());
            let heads = packed.first().map_or(0, |view| view.heads);
            for batch in 0..self.shape.batch {
                let rows = packed.iter().map(|view| view.row(batch));
                if head_major {
                    let of_head =
                        |head: usize| rows.clone().flat_map(move |row| row.heads(&(head..head + 1)).segments());
                    segments.extend((0..heads).flat_map(of_head));
                } else {
                    segments.extend(rows.flat_map(|row| row.segments()));
                }
            }
        }
        Ok(segments)
    }

    fn mail(&mut self, transfer: &Transfer, pieces: &[Piece]) -> Result<Mail> {
        let due = self.step + transfer.steps - 1;
        let segments = self.segments(pieces, due)?;
        Ok(Mail { peer: transfer.peer, parcel: transfer.parcel.clone(), steps: transfer.steps as u32, segments })
    }

    /// Room for a parcel that comes.
    fn room(&mut self, parcel: &Parcel) -> Vec<Piece> {
        let is_it =
            |(item, heads, _): &&(Item, Range<usize>, Vec<View>)| *item == parcel.item && *heads == parcel.heads;
        match self.gathered.iter().find(is_it).map(|(_, _, views)| views.clone()) {
            Some(views) => self.by_position(&views, parcel),
            None => {
                let views = self.allocate(parcel.item, parcel.tokens.len(), &parcel.heads);
                vec![Piece { tokens: parcel.tokens.clone(), views }]
            }
        }
    }

    /// The runs of a parcel's tokens in tensors in the order of positions.
    pub fn by_position(&self, views: &[View], parcel: &Parcel) -> Vec<Piece> {
        let mut first = 0;
        let mut pieces = Vec::new();
        for run in self.job.layout.runs(parcel.owner) {
            let own = first..first + run.len();
            first = own.end;
            let (start, end) = (own.start.max(parcel.tokens.start), own.end.min(parcel.tokens.end));
            if start < end {
                let position = run.start + start - own.start;
                let at = position..position + (end - start);
                pieces.push(Piece { tokens: start..end, views: views.iter().map(|view| view.tokens(&at)).collect() });
            }
        }
        pieces
    }

    /// Makes tensors in the order of positions for what blocks of this schedule see of several ranks. Rows that nobody sends are never
    /// seen, but must not hold what is no number.
    fn gather(&mut self, schedule: &Schedule) {
        for block in schedule.steps.iter().flat_map(|step| &step.compute) {
            for parcels in [&block.queries, &block.keys] {
                if parcels.len() > 1 {
                    let (item, heads) = (parcels[0].item, parcels[0].heads.clone());
                    let views = self.allocate(item, self.job.layout.tokens, &heads);
                    let whole: usize = parcels.iter().map(|parcel| parcel.tokens.len()).sum();
                    if whole < self.job.layout.tokens {
                        self.ops.extend(views.iter().map(|view| Op::Fill { view: *view, word: 0 }));
                    }
                    self.gathered.push((item, heads, views));
                }
            }
        }
    }

    /// One launch's rows: of one rank, or of all in the order of positions, with this rank's own copied there.
    pub fn axis(&mut self, parcels: &[Parcel]) -> Result<(Axis, Vec<View>)> {
        if let [parcel] = parcels {
            let mut pieces = self.find(parcel)?;
            let views = pieces.pop().map(|piece| piece.views).unwrap_or_default();
            return Ok((Axis::Of(parcel.owner, parcel.tokens.clone()), views));
        }
        let first = &parcels[0];
        let gathered = self.gathered.iter().find(|(item, heads, _)| *item == first.item && *heads == first.heads);
        let views = gathered.map(|(_, _, views)| views.clone()).unwrap_or_default();
        let rank = self.rank;
        for parcel in parcels.iter().filter(|parcel| parcel.owner == rank) {
            let to = self.by_position(&views, parcel);
            for piece in to {
                let wanted = Parcel { tokens: piece.tokens.clone(), ..parcel.clone() };
                for from in self.find(&wanted)? {
                    for (from, to) in from.views.iter().zip(&piece.views) {
                        self.ops.push(copy(*from, *to, false, self.device)?);
                    }
                }
            }
        }
        for view in &views {
            self.arena.touch(view.base, self.step);
        }
        Ok((Axis::All, views))
    }

    /// How rows of queries see rows of keys.
    pub fn cover(&self, queries: &Axis, keys: &Axis) -> Cover {
        let layout = &self.job.layout;
        let row = |row: usize| {
            let [a, b] = self.visible.from(queries.position(layout, row));
            [a.start, a.end, b.start, b.end].map(|position| keys.before(layout, position) as i32)
        };
        Cover::of((0..queries.len(layout)).map(row).collect(), keys.len(layout) as i32)
    }

    /// One step: packs what leaves, begins the transfers, computes with `block`, ends them, and folds in with `fold` what came.
    pub fn step(
        &mut self,
        schedule: &Schedule,
        arrivals: &mut Vec<(usize, Parcel, Vec<Piece>)>,
        block: &mut impl FnMut(&mut Self, &Block) -> Result<()>,
        fold: &mut impl FnMut(&mut Self, &Parcel, &[Piece]) -> Result<()>,
    ) -> Result<()> {
        if self.step == 0 {
            self.gather(schedule);
        }
        let step = &schedule.steps[self.step];
        let (mut send, mut receive) = (Vec::new(), Vec::new());
        for transfer in &step.send {
            let pieces = self.find(&transfer.parcel)?;
            send.push(self.mail(transfer, &pieces)?);
        }
        for transfer in &step.receive {
            let pieces = self.room(&transfer.parcel);
            receive.push(self.mail(transfer, &pieces)?);
            arrivals.push((self.step + transfer.steps - 1, transfer.parcel.clone(), pieces));
        }
        let number = self.step as u32;
        self.ops.push(Op::Begin { step: number, send, receive });
        for each in &step.compute {
            block(self, each)?;
        }
        self.ops.push(Op::End { step: number });
        for (_, parcel, pieces) in arrivals.extract_if(.., |(due, ..)| *due <= number as usize).collect::<Vec<_>>() {
            for view in pieces.iter().flat_map(|piece| &piece.views) {
                self.arena.touch(view.base, self.step);
            }
            fold(self, &parcel, &pieces)?;
        }
        self.step += 1;
        Ok(())
    }

    /// Puts intervals of rows where kernels find them: bytes from the start of the tables.
    pub fn table(&mut self, rows: &[[i32; 4]]) -> u64 {
        let at = self.tables.len() as u64 * 4;
        self.tables.extend(rows.iter().flatten());
        at
    }
}
