//! Counters as JSON. Names are plain identifiers and values are numbers, so nothing needs escaping.

use super::{Class, Counters, GlobalTraffic, SharedTraffic};
use std::fmt::Write;

/// One object with everything.
pub(super) fn write(counters: &Counters) -> String {
    let mut object = Object::new();
    object.number("launches", counters.launches);
    object.number("ctas", counters.ctas);
    object.number("max_resident_ctas", counters.max_resident_ctas);
    object.number("warp_instructions", counters.warp_instructions());
    let mut classes = Object::new();
    for class in Class::ALL {
        classes.number(class.name(), counters.class(class));
    }
    object.raw("instructions", &classes.finish());
    object.number("lanes", counters.lanes);
    object.raw("global_loads", &global(&counters.global_loads));
    object.raw("global_stores", &global(&counters.global_stores));
    object.raw("global_atomics", &global(&counters.global_atomics));
    object.raw("shared_loads", &shared(&counters.shared_loads));
    object.raw("shared_stores", &shared(&counters.shared_stores));
    object.raw("shared_atomics", &shared(&counters.shared_atomics));
    object.raw("matrix_loads", &shared(&counters.matrix_loads));
    object.number("bank_conflicts", counters.bank_conflicts());
    object.number("async_copy_bytes", counters.async_copy_bytes);
    object.raw("tensor", &tensor(counters));
    object.number("tensor_flops", counters.tensor_flops());
    object.number("barriers", counters.barriers);
    object.number("divergent_branches", counters.divergent_branches);
    object.finish()
}

fn global(traffic: &GlobalTraffic) -> String {
    let mut object = Object::new();
    object.number("requests", traffic.requests);
    object.number("bytes", traffic.bytes);
    object.number("sectors", traffic.sectors);
    object.number("ideal_sectors", traffic.ideal_sectors);
    object.number("unique_bytes", traffic.unique_bytes);
    object.finish()
}

fn shared(traffic: &SharedTraffic) -> String {
    let mut object = Object::new();
    object.number("requests", traffic.requests);
    object.number("bytes", traffic.bytes);
    object.number("wavefronts", traffic.wavefronts);
    object.number("ideal_wavefronts", traffic.ideal_wavefronts);
    object.finish()
}

fn tensor(counters: &Counters) -> String {
    let entries: Vec<String> = counters
        .tensor
        .iter()
        .map(|entry| {
            let mut object = Object::new();
            object.raw("shape", &format!("\"m{}n{}k{}\"", entry.m, entry.n, entry.k));
            object.raw("input", &format!("\"{}\"", entry.input));
            object.number("count", entry.count);
            object.number("flops", entry.flops());
            object.finish()
        })
        .collect();
    format!("[{}]", entries.join(","))
}

/// A JSON object under construction.
struct Object(String);

impl Object {
    fn new() -> Self {
        Self(String::from("{"))
    }

    fn number(&mut self, name: &str, value: u64) {
        self.raw(name, &value.to_string());
    }

    fn raw(&mut self, name: &str, value: &str) {
        let comma = if self.0.len() > 1 { "," } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{comma}\"{name}\":{value}");
    }

    fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}
