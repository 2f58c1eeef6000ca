//! How launches run: the process default from `LOOKBACK_EMULATOR_*`, and what a host thread sets for itself.
//!
//! | variable suffix and key | values |
//! |---|---|
//! | `CHECKS` | `on`, `off` |
//! | `ORDER` | `inorder`, `reversed`, `random:<seed>` |
//! | `RESIDENCY` | CTAs resident at once, or `auto` |
//! | `CONVERGENCE` | `natural`, `random:<seed>` |
//! | `LANES` | `converged`, `synchronised`: what orders the lanes of a warp |
//! | `MMA` | `fma`, `hopper` |
//! | `ASYNC` | `late`, `eager` |
//! | `COUNTING` | `basic`, `full` (distinct bytes too) |
//! | `RECORD` | `off`, `on`: kernels are not run but listed, see `recording` |
//! | `MEMORY_MIB` | device memory; set by a thread, it bounds what that thread has allocated |
//! | `SM_COUNT`, `QUANTUM`, `INSTRUCTION_LIMIT` | whole numbers above 0 |
//!
//! And two that only a thread sets, for itself: `FAIL_ALLOCATION` and `FAIL_CALL`, see [`failure`].

use super::args::Text;
use super::failure;
use super::report;
use crate::counters::Counting;
use crate::launch::{AsyncCopies, Checks, Convergence, CtaOrder, LaneOrder, MmaArithmetic, Options};
use std::cell::RefCell;
use std::sync::OnceLock;

/// Device memory unless told otherwise. Far less than an H200 has, since the host pays for it.
const DEFAULT_MEMORY_MIB: u64 = 4096;

const KEYS: [&str; 13] = [
    "CHECKS",
    "ORDER",
    "RESIDENCY",
    "CONVERGENCE",
    "LANES",
    "MMA",
    "ASYNC",
    "COUNTING",
    "RECORD",
    "MEMORY_MIB",
    "SM_COUNT",
    "QUANTUM",
    "INSTRUCTION_LIMIT",
];

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// For the interpreter.
    pub(super) launch: Options,
    /// Size of the device's memory.
    pub(super) memory_bytes: u64,
    /// Whether work is listed instead of done.
    pub(super) record: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { launch: Options::default(), memory_bytes: DEFAULT_MEMORY_MIB << 20, record: false }
    }
}

impl Settings {
    /// Set `key`, upper case, to `value`.
    fn assign(&mut self, key: &str, value: &str) -> Result<(), String> {
        let wrong = |wanted: &str| format!("option {key}: `{value}` is not {wanted}");
        let number = || value.parse().ok().filter(|number: &u64| *number > 0);
        let small = || number().and_then(|number| u32::try_from(number).ok());
        let seed = || value.strip_prefix("random:").and_then(|seed| seed.parse().ok());
        match key {
            "CHECKS" => {
                self.launch.checks = match value {
                    "on" => Checks::On,
                    "off" => Checks::Off,
                    _ => return Err(wrong("on or off")),
                }
            }
            "ORDER" => {
                self.launch.order = match (value, seed()) {
                    ("inorder", _) => CtaOrder::InOrder,
                    ("reversed", _) => CtaOrder::Reversed,
                    (_, Some(seed)) => CtaOrder::Random(seed),
                    _ => return Err(wrong("inorder, reversed or random:<seed>")),
                }
            }
            "RESIDENCY" => {
                self.launch.residency = match (value, small()) {
                    ("auto", _) => None,
                    (_, Some(ctas)) => Some(ctas),
                    _ => return Err(wrong("auto or a number above 0")),
                }
            }
            "CONVERGENCE" => {
                self.launch.convergence = match (value, seed()) {
                    ("natural", _) => Convergence::Natural,
                    (_, Some(seed)) => Convergence::Random(seed),
                    _ => return Err(wrong("natural or random:<seed>")),
                }
            }
            "LANES" => {
                self.launch.lane_order = match value {
                    "converged" => LaneOrder::Converged,
                    "synchronised" => LaneOrder::Synchronised,
                    _ => return Err(wrong("converged or synchronised")),
                }
            }
            "MMA" => {
                self.launch.mma = match value {
                    "fma" => MmaArithmetic::Fma,
                    "hopper" => MmaArithmetic::Hopper,
                    _ => return Err(wrong("fma or hopper")),
                }
            }
            "ASYNC" => {
                self.launch.async_copies = match value {
                    "late" => AsyncCopies::Late,
                    "eager" => AsyncCopies::Eager,
                    _ => return Err(wrong("late or eager")),
                }
            }
            "COUNTING" => {
                self.launch.counting = match value {
                    "basic" => Counting::Basic,
                    "full" => Counting::Full,
                    _ => return Err(wrong("basic or full")),
                }
            }
            "RECORD" => {
                self.record = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(wrong("on or off")),
                }
            }
            "MEMORY_MIB" => {
                let mib = number().filter(|mib| *mib <= u64::MAX >> 20);
                self.memory_bytes = mib.ok_or_else(|| wrong("a number of MiB above 0"))? << 20;
            }
            "SM_COUNT" => self.launch.sm_count = small().ok_or_else(|| wrong("a number above 0"))?,
            "QUANTUM" => self.launch.quantum = small().ok_or_else(|| wrong("a number above 0"))?,
            "INSTRUCTION_LIMIT" => {
                self.launch.instruction_limit = number().ok_or_else(|| wrong("a number above 0"))?;
            }
            _ => return Err(format!("there is no option `{key}`; there are {}", KEYS.join(", "))),
        }
        Ok(())
    }
}

static PROCESS: OnceLock<Result<Settings, String>> = OnceLock::new();

thread_local! {
    /// What this thread has set, in order; applied to the process default.
    static THREAD: RefCell<ThreadSettings> = const { RefCell::new(ThreadSettings { set: Vec::new(), settings: None }) };
}

#[derive(Debug)]
struct ThreadSettings {
    set: Vec<(String, String)>,
    settings: Option<Settings>,
}

fn from_environment() -> Result<Settings, String> {
    let mut settings = Settings::default();
    for key in KEYS {
        let name = format!("LOOKBACK_EMULATOR_{key}");
        match std::env::var(&name) {
            Ok(value) => settings.assign(key, value.trim()).map_err(|why| format!("{name}: {why}"))?,
            Err(std::env::VarError::NotPresent) => {}
            Err(std::env::VarError::NotUnicode(_)) => return Err(format!("{name} is not text")),
        }
    }
    Ok(settings)
}

/// The process default; an error if the environment holds what cannot be understood.
pub(super) fn process() -> Result<&'static Settings, &'static String> {
    PROCESS.get_or_init(from_environment).as_ref()
}

/// What holds for launches of the calling thread.
pub(super) fn current() -> Settings {
    let own = THREAD.try_with(|thread| thread.borrow().settings.clone()).ok().flatten();
    own.unwrap_or_else(|| process().cloned().unwrap_or_default())
}

/// Memory of the device as the calling thread sees it.
pub(super) fn memory_bytes() -> u64 {
    thread_memory_bytes().unwrap_or_else(process_memory_bytes)
}

/// Memory of the device.
pub(super) fn process_memory_bytes() -> u64 {
    process().map_or(DEFAULT_MEMORY_MIB << 20, |settings| settings.memory_bytes)
}

/// The limit that the calling thread has set for itself.
pub(super) fn thread_memory_bytes() -> Option<u64> {
    THREAD
        .try_with(|thread| {
            let thread = thread.borrow();
            let set = thread.set.iter().any(|(key, _)| key == "MEMORY_MIB");
            thread.settings.as_ref().filter(|_| set).map(|settings| settings.memory_bytes)
        })
        .ok()
        .flatten()
}

/// Set, or with no value unset, an option of the calling thread. With no key, unset all.
fn set_for_thread(key: Option<&str>, value: Option<&str>) -> Result<(), String> {
    let key = key.map(str::to_ascii_uppercase);
    if let Some(armed) = failure::set(key.as_deref(), value) {
        return armed;
    }
    if let Some(key) = &key
        && !KEYS.contains(&key.as_str())
    {
        return Settings::default().assign(key, "");
    }
    let update = |thread: &RefCell<ThreadSettings>| {
        let mut thread = thread.borrow_mut();
        let mut set = thread.set.clone();
        set.retain(|(known, _)| key.as_ref().is_some_and(|key| key != known));
        set.extend(key.clone().zip(value.map(|value| value.trim().to_owned())));
        let mut settings = process().map_err(Clone::clone)?.clone();
        for (key, value) in &set {
            settings.assign(key, value)?;
        }
        *thread = ThreadSettings { settings: (!set.is_empty()).then_some(settings), set };
        Ok(())
    };
    THREAD.try_with(update).unwrap_or_else(|_| Err("the thread is ending".into()))
}

/// Sets option `key` (see the table above, in any case) of the calling host thread to `value`, overriding the
/// environment. A null value goes back to the process default, a null key does so for every option. Returns 0, or 1 if
/// the key or the value is unknown; `lookback_emulator_last_fault` then says why.
#[unsafe(no_mangle)]
pub(in crate::driver) unsafe extern "C" fn lookback_emulator_set_options(key: Text, value: Text) -> i32 {
    // Only a null pointer gives no bytes, and null is allowed for both.
    let text = |text: Text| text.bytes().ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    match set_for_thread(text(key).as_deref(), text(value).as_deref()) {
        Ok(()) => 0,
        Err(why) => {
            report::note(why);
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_understood_or_refused_with_a_reason() {
        let mut settings = Settings::default();
        for (key, value) in [
            ("CHECKS", "off"),
            ("ORDER", "random:7"),
            ("RESIDENCY", "3"),
            ("CONVERGENCE", "random:9"),
            ("LANES", "synchronised"),
            ("MMA", "hopper"),
            ("ASYNC", "eager"),
            ("COUNTING", "full"),
            ("RECORD", "on"),
            ("MEMORY_MIB", "64"),
            ("SM_COUNT", "4"),
            ("QUANTUM", "10"),
            ("INSTRUCTION_LIMIT", "1000"),
        ] {
            settings.assign(key, value).unwrap();
        }
        assert_eq!(settings.launch.order, CtaOrder::Random(7));
        assert_eq!(settings.launch.residency, Some(3));
        assert_eq!(settings.memory_bytes, 64 << 20);
        let before = settings.clone();
        for (key, value) in [("ORDER", "random:"), ("RESIDENCY", "0"), ("CHECKS", "yes"), ("SPEED", "fast")] {
            let why = settings.assign(key, value).unwrap_err();
            assert!(why.contains(key), "{why}");
        }
        assert_eq!(settings, before);
    }

    #[test]
    fn a_thread_sets_and_unsets_its_own() {
        set_for_thread(Some("order"), Some("reversed")).unwrap();
        set_for_thread(Some("memory_mib"), Some("32")).unwrap();
        assert_eq!(current().launch.order, CtaOrder::Reversed);
        assert_eq!(thread_memory_bytes(), Some(32 << 20));
        std::thread::spawn(|| assert_eq!(current().launch.order, CtaOrder::InOrder)).join().unwrap();
        set_for_thread(Some("order"), None).unwrap();
        assert_eq!(current().launch.order, CtaOrder::InOrder);
        assert!(set_for_thread(Some("order"), Some("sideways")).is_err());
        assert!(set_for_thread(Some("colour"), None).is_err());
        assert_eq!(thread_memory_bytes(), Some(32 << 20));
        set_for_thread(None, None).unwrap();
        assert_eq!(thread_memory_bytes(), None);
    }
}
