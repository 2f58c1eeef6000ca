//! What the emulator counted, and the switches that change how it runs.

use crate::device;
use lookback_device::emulator;
use serde_json::Value;

/// Counters of some launches.
pub struct Counters(Value);

impl Counters {
    /// Counts the launches that `run` makes on this thread; `None` on a GPU, which counts nothing.
    ///
    /// # Panics
    /// When the emulator's counters are not JSON.
    pub fn of(run: impl FnOnce()) -> Option<Self> {
        let _full = Switch::set("counting", "full", "basic");
        emulator::reset_counters();
        run();
        device::finish();
        let text = emulator::counters()?;
        Some(Self(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))))
    }

    /// A number of the total, by path, e.g. `global_loads/sectors`.
    ///
    /// # Panics
    /// When there is no such counter.
    pub fn number(&self, path: &str) -> u64 {
        let found = self.0.pointer(&format!("/total/{path}")).and_then(Value::as_u64);
        found.unwrap_or_else(|| panic!("no counter {path} in {}", self.0))
    }

    /// Bytes of global memory that were read or written at least once.
    pub fn unique_bytes(&self) -> u64 {
        self.number("global_loads/unique_bytes") + self.number("global_stores/unique_bytes")
    }

    /// Every byte crosses the bus once, within 5 % of `bytes`, and no two accesses to shared memory meet in a bank.
    ///
    /// # Panics
    /// When one of them does not hold.
    pub fn assert_streams(&self, what: &str, bytes: u64) {
        let moved = self.unique_bytes();
        assert!(moved * 20 <= bytes * 21 && moved * 21 >= bytes * 20, "{what}: {moved} bytes, the plan says {bytes}");
        assert_eq!(self.number("bank_conflicts"), 0, "{what}: bank conflicts");
    }

    /// Every access touches as few sectors as its bytes fill.
    ///
    /// # Panics
    /// When one touches more.
    pub fn assert_coalesced(&self, what: &str) {
        for kind in ["global_loads", "global_stores"] {
            let of = |name: &str| self.number(&format!("{kind}/{name}"));
            assert_eq!(of("sectors"), of("ideal_sectors"), "{what}: {kind}");
        }
    }
}

/// A switch of the emulator for this thread's launches, until it is dropped. Does nothing on a GPU.
pub struct Switch(&'static str, &'static str);

impl Switch {
    /// Sets `key` to `value`, and to `default` again at the end.
    ///
    /// # Panics
    /// When the emulator does not know the switch.
    pub fn set(key: &'static str, value: &str, default: &'static str) -> Self {
        let emulated = device::info().emulated;
        assert!(emulator::set_option(key, value) || !emulated, "the emulator does not know {key} = {value}");
        Self(key, default)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        emulator::set_option(self.0, self.1);
    }
}
