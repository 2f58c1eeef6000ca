//! What is known of other CTAs: a persistent map from CTA to the clocks of its warps.
//!
//! A thousand CTAs that wait for each other in a row would need a million clocks if each kept its own copy. Here a
//! copy is a reference count, and joining two maps that share history only visits where they differ, so the whole row
//! costs a few hundred bytes per release. A kernel that never synchronises across CTAs never has a map.

use super::clock::{self, Entry};
use std::array;
use std::rc::Rc;

const FAN: usize = 32;
const FAN_BITS: u32 = FAN.trailing_zeros();

type Slots<T> = [Option<Rc<T>>; FAN];

/// The clocks of one CTA's agents at a moment.
pub(super) type Clocks = Rc<Vec<Entry>>;

#[derive(Debug, Clone)]
enum Node {
    Inner(Slots<Node>),
    Leaves(Slots<Vec<Entry>>),
}

/// Clocks by CTA.
#[derive(Debug, Clone)]
pub(super) struct World {
    root: Option<Rc<Node>>,
    levels: u32,
}

impl World {
    /// Nothing is known of any of `ctas` CTAs.
    pub(super) fn new(ctas: u32) -> Self {
        let bits = u32::BITS - ctas.saturating_sub(1).leading_zeros();
        Self { root: None, levels: bits.div_ceil(FAN_BITS).max(1) }
    }

    /// What is known of one CTA.
    pub(super) fn get(&self, cta: u32) -> Option<&Clocks> {
        let mut node = self.root.as_ref()?;
        let mut level = self.levels - 1;
        loop {
            match &**node {
                Node::Inner(children) => node = children[slot(cta, level)].as_ref()?,
                Node::Leaves(leaves) => return leaves[slot(cta, level)].as_ref(),
            }
            level = level.saturating_sub(1);
        }
    }

    /// Whether what `cta` published as `other` has been learned, by this very publication. Whoever holds the clocks that
    /// a CTA published has also learned all else that came with them.
    pub(super) fn has(&self, cta: u32, other: &Self) -> bool {
        matches!((self.get(cta), other.get(cta)), (Some(mine), Some(theirs)) if Rc::ptr_eq(mine, theirs))
    }

    /// Set what is known of one CTA.
    pub(super) fn set(&mut self, cta: u32, clocks: Clocks) {
        let mut level = self.levels - 1;
        let mut node = Rc::make_mut(self.root.get_or_insert_with(|| Rc::new(Node::empty(level))));
        loop {
            match node {
                Node::Inner(children) => {
                    let child = &mut children[slot(cta, level)];
                    level -= 1;
                    node = Rc::make_mut(child.get_or_insert_with(|| Rc::new(Node::empty(level))));
                }
                Node::Leaves(leaves) => {
                    leaves[slot(cta, level)] = Some(clocks);
                    return;
                }
            }
        }
    }

    /// Learn what `other` knows.
    pub(super) fn join(&mut self, other: &Self) {
        match (&self.root, &other.root) {
            (_, None) => {}
            (None, Some(_)) => self.root.clone_from(&other.root),
            (Some(mine), Some(theirs)) => self.root = Some(join_nodes(mine, theirs)),
        }
    }
}

impl Node {
    fn empty(level: u32) -> Self {
        if level == 0 { Self::Leaves(Slots::default()) } else { Self::Inner(Slots::default()) }
    }
}

fn slot(cta: u32, level: u32) -> usize {
    (cta >> (level * FAN_BITS)) as usize % FAN
}

fn join_nodes(mine: &Rc<Node>, theirs: &Rc<Node>) -> Rc<Node> {
    if covers(mine, theirs) {
        return Rc::clone(mine);
    }
    match (&**mine, &**theirs) {
        (Node::Inner(a), Node::Inner(b)) => choose(theirs, a, b, join_nodes, Node::Inner),
        (Node::Leaves(a), Node::Leaves(b)) => choose(theirs, a, b, join_clocks, Node::Leaves),
        // Maps of one launch all have the same depth.
        _ => Rc::clone(mine),
    }
}

/// Nothing in `theirs` is missing in `mine`. Usually so, and found without building anything.
fn covers(mine: &Rc<Node>, theirs: &Rc<Node>) -> bool {
    if Rc::ptr_eq(mine, theirs) {
        return true;
    }
    match (&**mine, &**theirs) {
        (Node::Inner(a), Node::Inner(b)) => covers_all(a, b, covers),
        (Node::Leaves(a), Node::Leaves(b)) => {
            covers_all(a, b, |mine, theirs| Rc::ptr_eq(mine, theirs) || clock::dominates(mine, theirs))
        }
        _ => false,
    }
}

fn covers_all<T>(a: &Slots<T>, b: &Slots<T>, covers: impl Fn(&Rc<T>, &Rc<T>) -> bool) -> bool {
    // The latest CTAs differ first, so look from the end.
    a.iter().zip(b).rev().all(|pair| match pair {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(mine), Some(theirs)) => covers(mine, theirs),
    })
}

/// Join slot by slot; keep their node when it says all, so that histories stay shared.
fn choose<T>(
    theirs: &Rc<Node>,
    a: &Slots<T>,
    b: &Slots<T>,
    join: fn(&Rc<T>, &Rc<T>) -> Rc<T>,
    wrap: fn(Slots<T>) -> Node,
) -> Rc<Node> {
    let joined: Slots<T> = array::from_fn(|index| match (&a[index], &b[index]) {
        (Some(x), Some(y)) => Some(join(x, y)),
        (one, None) | (None, one) => one.clone(),
    });
    if same(&joined, b) { Rc::clone(theirs) } else { Rc::new(wrap(joined)) }
}

fn same<T>(a: &Slots<T>, b: &Slots<T>) -> bool {
    a.iter().zip(b).all(|pair| match pair {
        (Some(x), Some(y)) => Rc::ptr_eq(x, y),
        (None, None) => true,
        _ => false,
    })
}

fn join_clocks(mine: &Clocks, theirs: &Clocks) -> Clocks {
    if Rc::ptr_eq(mine, theirs) || clock::dominates(mine, theirs) {
        Rc::clone(mine)
    } else if clock::dominates(theirs, mine) {
        Rc::clone(theirs)
    } else {
        let mut joined = mine.as_ref().clone();
        clock::join(&mut joined, theirs);
        Rc::new(joined)
    }
}
