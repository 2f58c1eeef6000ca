//! Handles: words that name objects. A handle is looked up, never followed, so a wrong one is an error and not a crash.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// A handle as C code sees it: an opaque pointer.
pub(super) type Handle = usize;

/// What a handle names; part of its value, so that a stream is never taken for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// `CUcontext`
    Context = 1,
    /// `CUstream`
    Stream,
    /// `CUevent`
    Event,
    /// `CUmodule`
    Module,
    /// `CUfunction`
    Function,
    /// `CUgraph`
    Graph,
    /// `CUgraphExec`
    GraphExec,
    /// `CUgraphNode`
    GraphNode,
    /// `CUmemoryPool`
    Pool,
}

/// The live objects of one kind. Numbers are never used twice, so a stale handle stays invalid.
#[derive(Debug)]
pub(super) struct Table<T> {
    kind: Kind,
    next: AtomicUsize,
    live: RwLock<BTreeMap<Handle, Arc<T>>>,
}

impl<T> Table<T> {
    /// An empty table.
    pub(super) const fn new(kind: Kind) -> Self {
        Self { kind, next: AtomicUsize::new(1), live: RwLock::new(BTreeMap::new()) }
    }

    /// A handle that nothing has had.
    pub(super) fn reserve(&self) -> Handle {
        // Looks like an address of the lower half, so that a program which tags or prints pointers is not surprised.
        ((0x4c00 + self.kind as usize) << 32) | (self.next.fetch_add(1, Ordering::Relaxed) << 4)
    }

    /// Make `object` live under a handle from [`Self::reserve`].
    pub(super) fn insert(&self, handle: Handle, object: T) -> Arc<T> {
        let object = Arc::new(object);
        self.live.write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::clone(&object));
        object
    }

    /// The object of that handle.
    pub(super) fn get(&self, handle: Handle) -> Option<Arc<T>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).get(&handle).cloned()
    }

    /// End the life of that handle.
    pub(super) fn remove(&self, handle: Handle) -> Option<Arc<T>> {
        self.live.write().unwrap_or_else(PoisonError::into_inner).remove(&handle)
    }

    /// End the life of every object for which `doomed` says so, and hand them out.
    pub(super) fn remove_where(&self, doomed: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let (gone, kept) = std::mem::take(&mut *live).into_iter().partition(|(_, object)| doomed(object));
        *live = kept;
        let gone: BTreeMap<Handle, Arc<T>> = gone;
        gone.into_values().collect()
    }

    /// Every live object.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Lock, whatever a panicking thread left behind: the state under these locks is valid between any two statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_handle_stays_invalid() {
        let table = Table::new(Kind::Event);
        let first = table.reserve();
        table.insert(first, 1);
        assert_eq!(table.get(first).as_deref(), Some(&1));
        assert!(table.remove(first).is_some());
        let second = table.reserve();
        table.insert(second, 2);
        assert_ne!(first, second);
        assert!(table.get(first).is_none());
        assert!(table.remove(first).is_none());
        assert_eq!(table.remove_where(|value| *value == 2).len(), 1);
        assert!(table.all().is_empty());
    }
}
