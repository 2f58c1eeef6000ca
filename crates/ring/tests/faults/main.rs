//! Every fault at every step of every rank: all survivors name the rank that failed, in time, and nothing of them is left.
//!
//! Schedules are walked with messages of a few bytes and nothing computed, so that all of them fit into seconds. A program of its own,
//! which counts its threads: names of parts as arguments run those alone.

#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
mod threads;
#[cfg(target_os = "linux")]
mod walk;

/// What can be asked for by name; says how many faults it tried.
#[cfg(target_os = "linux")]
struct Part {
    name: &'static str,
    run: fn() -> usize,
}

#[cfg(target_os = "linux")]
fn main() {
    if processes::is_child() {
        return processes::child();
    }
    let parts = [
        Part { name: "messages_between_threads", run: threads::local_messages },
        Part { name: "messages_over_tcp", run: threads::tcp_messages },
        Part { name: "killed_processes", run: processes::killed },
        Part { name: "stopped_processes", run: processes::stopped },
    ];
    let names: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for Part { name, run } in parts {
        if names.is_empty() || names.iter().any(|filter| name.contains(filter.as_str())) {
            let began = std::time::Instant::now();
            let count = run();
            println!("{name}: {count} faults in {:.1} s", began.elapsed().as_secs_f64());
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: threads are counted by /proc, and signals are sent, on Linux alone");
}
