//! From a schedule to launches: where everything lies, what is copied, and which kernel computes each block.

use super::{
    Options, Shape,
    op::{Mail, Op, attend, copy, merge},
    view::{Arena, Base, View},
};
use crate::{
    Cover, DeviceInfo, Error, Layout, Result, Visible,
    schedule::{Block, Item, Job, Parcel, Schedule, Transfer},
};
use lookback_device::DType;
use std::ops::Range;

/// Numbers of the caller's tensors.
pub(super) const Q: Base = Base::Tensor(0);
pub(super) const K: Base = Base::Tensor(1);
pub(super) const V: Base = Base::Tensor(2);
pub(super) const O: Base = Base::Tensor(3);
pub(super) const LSE: Base = Base::Tensor(4);

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
    fn len(&self, layout: &Layout) -> usize {
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

/// A running result of this rank's own queries, for some heads.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub heads: Range<usize>,
    /// f32.
    pub o: View,
    pub lse: View,
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
    held: Vec<Held>,
    /// Items whose rows lie in the order of positions, with their heads.
    gathered: Vec<(Item, Range<usize>, Vec<View>)>,
}

impl<'a> Compiler<'a> {
    pub fn new(
        shape: Shape,
        options: Options,
        job: &'a Job,
        visible: &'a Visible,
        rank: usize,
        device: &'a DeviceInfo,
    ) -> Self {
        let (arena, ops, tables) = (Arena::default(), Vec::new(), Vec::new());
        let (held, gathered) = (Vec::new(), Vec::new());
        Self { shape, options, job, visible, rank, device, arena, ops, tables, step: 0, held, gathered }
    }

    /// What an item consists of: entries of a row, their type, and whether rows are of key heads.
    fn parts(&self, item: Item) -> Vec<(usize, DType, bool)> {
        let Shape { head_dim, value_dim, .. } = self.shape;
        let dtype = self.options.dtype;
        match item {
            Item::Keys => vec![(head_dim, dtype, true), (value_dim, dtype, true)],
            Item::Queries => vec![(head_dim, dtype, false)],
            Item::Partial => vec![(value_dim, dtype, false), (1, DType::F32, false)],
            Item::QueryGradients => vec![(head_dim, DType::F32, false)],
            Item::KeyGradients => vec![(head_dim, DType::F32, true), (value_dim, DType::F32, true)],
        }
    }

    /// Heads of a part's tensors.
    fn heads(&self, heads: &Range<usize>, of_keys: bool) -> Range<usize> {
        if of_keys { self.job.key_heads(heads) } else { heads.clone() }
    }

    /// New memory for an item of so many tokens, from this step on.
    pub fn allocate(&mut self, item: Item, tokens: usize, heads: &Range<usize>) -> Vec<View> {
        let shape = |c: &Self, (width, dtype, of_keys): (usize, DType, bool)| {
            View::dense(Q, [c.shape.batch, tokens, c.heads(heads, of_keys).len(), width], dtype)
        };
        let views: Vec<View> = self.parts(item).into_iter().map(|part| shape(self, part)).collect();
        let sizes: Vec<usize> = views.iter().map(View::bytes).collect();
        let (base, starts) = self.arena.allocate(&sizes, self.step);
        views.into_iter().zip(starts).map(|(view, at)| View { base, at, ..view }).collect()
    }

    pub fn hold(&mut self, parcel: Parcel, pieces: Vec<Piece>) {
        self.held.push(Held { parcel, pieces });
    }

    /// The caller's tensors.
    pub fn hold_own(&mut self) {
        let Shape { batch, head_dim, value_dim, .. } = self.shape;
        let tokens = self.job.layout.len(self.rank);
        let Job { heads, key_heads, .. } = *self.job;
        let dtype = self.options.dtype;
        let dense = |base, heads, width| View::dense(base, [batch, tokens, heads, width], dtype);
        let own = |item| Parcel { item, owner: self.rank, tokens: 0..tokens, heads: 0..heads };
        let piece = |views| vec![Piece { tokens: 0..tokens, views }];
        let queries = vec![dense(Q, heads, head_dim)];
        let keys = vec![dense(K, key_heads, head_dim), dense(V, key_heads, value_dim)];
        let both = [(own(Item::Queries), piece(queries)), (own(Item::Keys), piece(keys))];
        for (parcel, pieces) in both {
            self.hold(parcel, pieces);
        }
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
        let held =
            held.ok_or_else(|| Error::NoKernel { op: super::OP, request: format!("{wanted:?}, which is not there") })?;
        let parts = self.parts(wanted.item);
        let mut found = Vec::new();
        for piece in held.pieces {
            let (start, end) = (piece.tokens.start.max(wanted.tokens.start), piece.tokens.end.min(wanted.tokens.end));
            if start >= end {
                continue;
            }
            let views = piece.views.iter().zip(&parts).map(|(view, (_, _, of_keys))| {
                let (all, some) = (self.heads(&held.parcel.heads, *of_keys), self.heads(&wanted.heads, *of_keys));
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

    /// Bytes of a message: part after part, row after row of the batch, token after token.
    fn segments(&mut self, pieces: &[Piece], due: usize) -> Result<Vec<super::view::Segment>> {
        let mut segments = Vec::new();
        let parts = pieces.first().map_or(0, |piece| piece.views.len());
        for part in 0..parts {
            let mut packed = Vec::new();
            for piece in pieces {
                let view = piece.views[part];
                let to = if view.is_packed() {
                    view
                } else {
                    let (base, _) = self.arena.allocate(&[view.bytes()], self.step);
                    let to = View {
                        base,
                        ..View::dense(base, [view.batch, view.tokens, view.heads, view.width], view.dtype)
                    };
                    self.ops.push(copy(view, to, false, self.device)?);
                    to
                };
                self.arena.touch(to.base, due);
                packed.push(to);
            }
            for batch in 0..self.shape.batch {
                segments.extend(packed.iter().flat_map(|view| view.row(batch).segments()));
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
    fn by_position(&self, views: &[View], parcel: &Parcel) -> Vec<Piece> {
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
    fn axis(&mut self, parcels: &[Parcel]) -> Result<(Axis, Vec<View>)> {
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
    fn cover(&self, queries: &Axis, keys: &Axis) -> Cover {
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

    /// A block of the forward pass: own queries into the running result, others' into memory that is sent home.
    pub fn forward_block(&mut self, block: &Block, running: &[Running]) -> Result<()> {
        let (queries, q) = self.axis(&block.queries)?;
        let (keys, kv) = self.axis(&block.keys)?;
        let cover = self.cover(&queries, &keys);
        let heads = &block.queries[0].heads;
        let own = match &queries {
            Axis::Of(owner, tokens) if *owner == self.rank => {
                running.iter().find(|r| r.heads == *heads).map(|r| vec![r.o.tokens(tokens), r.lse.tokens(tokens)])
            }
            _ => None,
        };
        let merges = own.is_some();
        let out = match own {
            Some(views) => views,
            None => self.allocate(Item::Partial, queries.len(&self.job.layout), heads),
        };
        let kernel = attend(self, &cover, [q[0], kv[0], kv[1]], [out[0], out[1]], merges)?;
        self.ops.extend(kernel);
        if merges {
            return Ok(());
        }
        for parcel in &block.queries {
            let result = Parcel { item: Item::Partial, ..parcel.clone() };
            let pieces = match &queries {
                Axis::All => self.by_position(&out, &result),
                Axis::Of(..) => vec![Piece { tokens: parcel.tokens.clone(), views: out.clone() }],
            };
            if parcel.owner == self.rank {
                self.fold_partial(&result, &pieces, running)?;
            } else {
                self.hold(result, pieces);
            }
        }
        Ok(())
    }

    /// Merges a result for own queries into the running one.
    pub fn fold_partial(&mut self, parcel: &Parcel, pieces: &[Piece], running: &[Running]) -> Result<()> {
        let within = |r: &&Running| r.heads.start <= parcel.heads.start && r.heads.end >= parcel.heads.end;
        let Some(running) = running.iter().find(within) else {
            return Err(Error::NoKernel { op: super::OP, request: format!("{parcel:?}, whose heads have no result") });
        };
        let heads = parcel.heads.start - running.heads.start..parcel.heads.end - running.heads.start;
        for Piece { tokens, views } in pieces {
            let (o, lse) = (running.o.heads(&heads).tokens(tokens), running.lse.heads(&heads).tokens(tokens));
            self.ops.push(merge([views[0], views[1]], [o, lse], self.device)?);
        }
        Ok(())
    }

    /// Puts intervals of rows where kernels find them: bytes from the start of the tables.
    pub fn table(&mut self, rows: &[[i32; 4]]) -> u64 {
        let at = self.tables.len() as u64 * 4;
        self.tables.extend(rows.iter().flatten());
        at
    }
}
