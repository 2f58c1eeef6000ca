//! Plain accesses to places where nobody else has been, but for those known to come before: nearly all there are.
//!
//! Each short cut leaves what the long way would leave, or does nothing and says so.

use super::{Access, GlobalShadow, PAGE_LINES, Region, Run, Word};
use crate::check::mark::{LINE_BYTES, Mark};
use crate::memory::{MAX_ALLOCATION, OFFSET_BITS};

impl Access<'_> {
    /// Whether it is plain: only then are there short cuts.
    #[inline]
    pub(in crate::check) fn is_plain(&self) -> bool {
        self.mark.is_weak() && !self.lane_order
    }

    /// Check and record a plain access where nobody else has been but those known to come before. False, and nothing
    /// done, where the whole story has to be looked at.
    #[inline(always)]
    pub(super) fn shortcut(&mut self, word: &mut Word, now: Mark, writes: bool) -> bool {
        let first = word.first;
        if is_known(word, now, writes) {
            return true;
        }
        let own = |read: Mark| read.is_none() || (read.agent == now.agent && !read.is_non_coherent());
        if !own(first) || !word.covered.is_none() || !self.is_after_for_all(word.write) {
            return false;
        }
        if writes {
            if !own(word.latest) {
                return false;
            }
            let before = word.write;
            let same = before.agent == now.agent && before.clock == now.clock && before.is_weak();
            *word = Word { write: if same { now.and_bytes(before.bytes()) } else { now }, ..Word::default() };
        } else {
            word.first = if first.clock == now.clock { now.and_bytes(first.bytes()) } else { now };
        }
        true
    }

    /// [`Access::shortcut`] where [`is_known`] usually makes it needless.
    #[inline(never)]
    fn word(&mut self, word: &mut Word, now: Mark, writes: bool) -> bool {
        self.shortcut(word, now, writes)
    }

    /// Comes after all that the agent of `before` did up to then, whichever lane asks. What was found is remembered.
    #[inline]
    fn is_after_for_all(&mut self, before: Mark) -> bool {
        if before.is_none() || before.agent == self.mark.agent || (before.agent, before.clock) == self.verified {
            return true;
        }
        let after = self.warp.is_uniform() && self.is_after(Mark::all_lanes(before), u32::MAX);
        if after {
            self.verified = (before.agent, before.clock);
        }
        after
    }
}

/// Whether the very same read has been recorded. Had there been a write since, the read would be gone; and what was known
/// then is known now.
#[inline(always)]
fn is_known(word: &Word, now: Mark, writes: bool) -> bool {
    !writes && word.first == now
}

impl GlobalShadow {
    /// Check and record lanes of a plain access, first to last, that touch words of lines already split. Gives the lanes
    /// that are left over, of which the first has to be looked at in full.
    pub(in crate::check) fn access_lanes(
        &mut self,
        access: &mut Access<'_>,
        writes: bool,
        mut mask: u32,
        addresses: &[u64; 32],
    ) -> u32 {
        let Some(first) = addresses.get(mask.trailing_zeros() as usize) else { return mask };
        let Some(region) = self.region(*first) else { return mask };
        let bytes = 1 << access.spread;
        let (words, of_word) = if bytes < 4 { (1, (1 << bytes) - 1) } else { (bytes as usize / 4, 0xF) };
        let end = region.allocation.bytes();
        let init = region.allocation.init();
        let complete = init.is_complete();
        while mask != 0 {
            let lane = mask.trailing_zeros();
            let offset = addresses[lane as usize].wrapping_sub(region.number << OFFSET_BITS);
            if offset >= MAX_ALLOCATION || offset + bytes > end {
                break;
            }
            let line = (offset / LINE_BYTES) as usize;
            let Some(Some(page)) = region.pages.get(line / PAGE_LINES) else { break };
            let Some(place) = page[line % PAGE_LINES].split.checked_sub(1) else { break };
            if !complete && !writes && init.first_missing(offset, bytes).is_some() {
                break;
            }
            let now = access.mark.one_lane(lane, of_word << (offset & 3));
            let first = (offset % LINE_BYTES / 4) as usize;
            let Some(words) = region.words[place as usize].get_mut(first..first + words) else { break };
            let all = words.iter_mut().all(|word| is_known(word, now, writes) || access.word(word, now, writes));
            if !all {
                break;
            }
            if !complete && writes {
                init.mark(offset, bytes);
            }
            mask &= mask - 1;
        }
        mask
    }
}

impl Region {
    /// Check and record the lines that a run begins with, as far as they are whole. Gives the bytes that are done.
    #[inline]
    pub(super) fn access_lines(&mut self, access: &mut Access<'_>, writes: bool, run: Run) -> u64 {
        if !run.start.is_multiple_of(LINE_BYTES) || !access.is_plain() {
            return 0;
        }
        let first = (run.start / LINE_BYTES) as usize;
        let count = (run.bytes / LINE_BYTES) as usize;
        let mut done = 0;
        while done < count {
            let at = first + done;
            let Some(Some(page)) = self.pages.get_mut(at / PAGE_LINES) else { break };
            let lines = page[at % PAGE_LINES..].iter_mut().take(count - done);
            let before = done;
            let here = lines.len();
            for line in lines {
                let now = access.mark.whole_line(run.lane + ((done as u32 * LINE_BYTES as u32) >> access.spread));
                if line.split != 0 || !access.shortcut(&mut line.whole, now, writes) {
                    break;
                }
                done += 1;
            }
            if done - before < here {
                break;
            }
        }
        done as u64 * LINE_BYTES
    }
}
