//! Control flow of a list of instructions: basic blocks, dominators, natural loops. For PTX and SASS alike.

/// Where control goes after an instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// To the next instruction.
    pub falls: bool,
    /// And to these.
    pub targets: Vec<usize>,
}

impl Step {
    /// To the next instruction only.
    pub fn next() -> Self {
        Self { falls: true, targets: Vec::new() }
    }
}

/// A natural loop: all blocks from which the header is reached again without leaving what the header dominates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    /// The block where every turn begins.
    pub header: usize,
    /// Its blocks in order, those of inner loops too.
    pub blocks: Vec<usize>,
    /// 1 for an outermost loop.
    pub depth: u32,
}

/// The control flow graph.
#[derive(Debug)]
pub struct Flow {
    /// First instruction of each block, and the number of instructions at the end.
    starts: Vec<usize>,
    /// Blocks that follow a block.
    pub next: Vec<Vec<usize>>,
    /// Blocks before a block.
    pub previous: Vec<Vec<usize>>,
    /// Blocks that can be reached, in an order in which a block comes before those that it dominates.
    pub order: Vec<usize>,
    /// The block that dominates a block most closely; the entry and what cannot be reached dominate themselves.
    dominator: Vec<usize>,
    /// All natural loops, outer ones first.
    pub loops: Vec<Loop>,
    /// Loops around a block.
    pub depth: Vec<u32>,
}

impl Flow {
    /// The graph of a list of instructions that begins at the first.
    pub fn new(steps: &[Step]) -> Self {
        let mut is_start = vec![false; steps.len() + 1];
        is_start[0] = true;
        is_start[steps.len()] = true;
        for (i, step) in steps.iter().enumerate() {
            if !step.falls || !step.targets.is_empty() {
                is_start[i + 1] = true;
            }
            for &target in step.targets.iter().filter(|t| **t < steps.len()) {
                is_start[target] = true;
            }
        }
        let starts: Vec<usize> = (0..=steps.len()).filter(|i| is_start[*i]).collect();
        let count = starts.len() - 1;
        let block_at = |i: usize| starts.partition_point(|s| *s <= i) - 1;
        let mut next = vec![Vec::new(); count];
        let mut previous = vec![Vec::new(); count];
        for block in 0..count {
            let last = starts[block + 1] - 1;
            let step = &steps[last];
            let falls = step.falls.then_some(last + 1);
            for i in falls.into_iter().chain(step.targets.iter().copied()).filter(|i| *i < steps.len()) {
                let to = block_at(i);
                if !next[block].contains(&to) {
                    next[block].push(to);
                    previous[to].push(block);
                }
            }
        }
        let order = reverse_postorder(&next);
        let dominator = dominators(&order, &previous);
        let mut flow = Self { starts, next, previous, order, dominator, loops: Vec::new(), depth: vec![0; count] };
        flow.find_loops();
        flow
    }

    /// The instructions of a block.
    pub fn block(&self, block: usize) -> std::ops::Range<usize> {
        self.starts[block]..self.starts[block + 1]
    }

    /// The block of an instruction.
    pub fn block_of(&self, instruction: usize) -> usize {
        self.starts.partition_point(|s| *s <= instruction) - 1
    }

    /// Whether every way to `block` leads through `by`.
    pub fn dominates(&self, by: usize, block: usize) -> bool {
        let mut at = block;
        while at != by && self.dominator[at] != at {
            at = self.dominator[at];
        }
        at == by
    }

    fn find_loops(&mut self) {
        let mut loops: Vec<Loop> = Vec::new();
        let mut is_reached = vec![false; self.next.len()];
        self.order.iter().for_each(|block| is_reached[*block] = true);
        for &tail in &self.order {
            for &header in self.next[tail].iter().filter(|h| self.dominates(**h, tail)) {
                let mut blocks = vec![header];
                let mut is_inside = vec![false; self.next.len()];
                is_inside[header] = true;
                let mut left = vec![tail];
                while let Some(block) = left.pop() {
                    if !std::mem::replace(&mut is_inside[block], true) {
                        blocks.push(block);
                        left.extend(self.previous[block].iter().filter(|p| is_reached[**p]));
                    }
                }
                match loops.iter_mut().find(|l| l.header == header) {
                    Some(known) => known.blocks.extend(blocks),
                    None => loops.push(Loop { header, blocks, depth: 0 }),
                }
            }
        }
        for l in &mut loops {
            l.blocks.sort_unstable();
            l.blocks.dedup();
            for &block in &l.blocks {
                self.depth[block] += 1;
            }
        }
        for l in &mut loops {
            l.depth = self.depth[l.header];
        }
        loops.sort_by_key(|l| (l.depth, l.header));
        self.loops = loops;
    }
}

/// The block through which every way from a block to an end leads, and which comes first; none where the ways end apart.
pub fn post_dominators(next: &[Vec<usize>]) -> Vec<Option<usize>> {
    // Turned round: one more block, 0, from which the ends are reached.
    let count = next.len();
    let mut turned = vec![Vec::new(); count + 1];
    let mut before = vec![Vec::new(); count + 1];
    for (block, ways) in next.iter().enumerate() {
        let ways: Vec<usize> = if ways.is_empty() { vec![0] } else { ways.iter().map(|b| b + 1).collect() };
        for way in ways {
            turned[way].push(block + 1);
            before[block + 1].push(way);
        }
    }
    let dominator = dominators(&reverse_postorder(&turned), &before);
    (1..=count).map(|block| dominator[block].checked_sub(1).filter(|d| d + 1 != block)).collect()
}

fn reverse_postorder(next: &[Vec<usize>]) -> Vec<usize> {
    let mut order = Vec::new();
    let mut is_seen = vec![false; next.len()];
    let mut stack: Vec<(usize, usize)> = Vec::new();
    if !next.is_empty() {
        is_seen[0] = true;
        stack.push((0, 0));
    }
    while let Some((block, at)) = stack.last_mut() {
        match next[*block].get(*at) {
            Some(&to) => {
                *at += 1;
                if !is_seen[to] {
                    is_seen[to] = true;
                    stack.push((to, 0));
                }
            }
            None => {
                order.push(*block);
                stack.pop();
            }
        }
    }
    order.reverse();
    order
}

/// Dominators by repeated intersection along the reverse postorder, until nothing changes.
fn dominators(order: &[usize], previous: &[Vec<usize>]) -> Vec<usize> {
    const UNKNOWN: usize = usize::MAX;
    let mut rank = vec![UNKNOWN; previous.len()];
    for (i, &block) in order.iter().enumerate() {
        rank[block] = i;
    }
    let mut dominator = vec![UNKNOWN; previous.len()];
    if let Some(&entry) = order.first() {
        dominator[entry] = entry;
    }
    let mut is_changed = true;
    while is_changed {
        is_changed = false;
        for &block in order.iter().skip(1) {
            let mut best = UNKNOWN;
            for &from in previous[block].iter().filter(|p| dominator[**p] != UNKNOWN) {
                let mut other = from;
                if best == UNKNOWN {
                    best = from;
                    continue;
                }
                while best != other {
                    if rank[best] > rank[other] {
                        best = dominator[best];
                    } else {
                        other = dominator[other];
                    }
                }
            }
            if dominator[block] != best {
                dominator[block] = best;
                is_changed = true;
            }
        }
    }
    dominator.iter().enumerate().map(|(i, d)| if *d == UNKNOWN { i } else { *d }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(target: usize) -> Step {
        Step { falls: true, targets: vec![target] }
    }

    fn jump(target: usize) -> Step {
        Step { falls: false, targets: vec![target] }
    }

    #[test]
    fn a_loop_in_a_loop_is_found_with_its_depth() {
        // 0 head; 1 outer; 2 inner, back to 2; 3 back to 1; 4 end
        let flow = Flow::new(&[Step::next(), Step::next(), branch(2), branch(1), Step::default()]);
        assert_eq!(flow.loops.iter().map(|l| l.depth).collect::<Vec<_>>(), [1, 2]);
        let instructions = |l: &Loop| l.blocks.iter().flat_map(|b| flow.block(*b)).collect::<Vec<_>>();
        assert_eq!(instructions(&flow.loops[0]), [1, 2, 3]);
        assert_eq!(instructions(&flow.loops[1]), [2]);
        assert_eq!(flow.depth[flow.block_of(2)], 2);
    }

    #[test]
    fn a_block_moved_behind_the_end_is_no_loop() {
        // 0 branches to 3, which jumps back to 1: backwards in the text, yet nothing runs twice.
        let flow = Flow::new(&[branch(3), Step::next(), Step::default(), jump(1)]);
        assert!(flow.loops.is_empty(), "{:?}", flow.loops);
    }

    #[test]
    fn what_cannot_be_reached_has_no_loop() {
        let flow = Flow::new(&[Step::default(), jump(1)]);
        assert!(flow.loops.is_empty());
        assert_eq!(flow.order, [0]);
    }

    #[test]
    fn two_ways_back_to_one_header_are_one_loop() {
        let flow = Flow::new(&[Step::next(), branch(1), branch(1), Step::default()]);
        assert_eq!(flow.loops.len(), 1);
        assert_eq!(flow.loops[0].blocks.iter().map(|b| flow.block(*b).len()).sum::<usize>(), 2);
    }

    #[test]
    fn ways_meet_at_the_post_dominator() {
        // 0 parts into 1 and 2, which meet at 3; 3 parts into 4 and 5, which end apart.
        let next = [vec![1, 2], vec![3], vec![3], vec![4, 5], vec![], vec![]];
        assert_eq!(post_dominators(&next), [Some(3), Some(3), Some(3), None, None, None]);
    }

    #[test]
    fn dominators_of_a_diamond() {
        let flow = Flow::new(&[branch(2), jump(3), Step::next(), Step::default()]);
        let [top, left, right, bottom] = [0, 1, 2, 3].map(|i| flow.block_of(i));
        assert!(flow.dominates(top, bottom) && !flow.dominates(left, bottom) && !flow.dominates(right, bottom));
    }
}
