//! `lookback launch`: one command as several ranks of this machine.

use crate::{CliError, Result, output};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::{
    ffi::OsString,
    net::TcpListener,
    process::{Child, Command, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Between two looks at the ranks.
const PAUSE: Duration = Duration::from_millis(10);

/// What to start, and how often.
#[derive(Args)]
pub struct Arguments {
    /// Ranks.
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u16).range(1..))]
    ranks: u16,
    /// Seconds between asking ranks to end and ending them.
    #[arg(long, default_value_t = 5)]
    grace: u64,
    /// The command of every rank. Its environment says which one it is, in the words of torchrun: RANK, WORLD_SIZE, LOCAL_RANK,
    /// MASTER_ADDR, MASTER_PORT.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Starts all ranks and waits for them. When one fails, or a signal comes, all others are ended.
pub fn launch(arguments: &Arguments) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).map_err(|e| CliError::Failed(format!("signals: {e}")))?;
    }
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = port.map_err(|e| CliError::Failed(format!("no free port: {e}")))?.port();
    let mut ranks = Ranks { children: Vec::new(), grace: Duration::from_secs(arguments.grace) };
    let (program, rest) = arguments.command.split_first().ok_or_else(|| CliError::input("COMMAND", "is missing"))?;
    for rank in 0..arguments.ranks {
        let child = Command::new(program)
            .args(rest)
            .env("RANK", rank.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("WORLD_SIZE", arguments.ranks.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .spawn();
        let child = child.map_err(|e| CliError::input(program.to_string_lossy(), e))?;
        ranks.children.push((rank, child));
    }
    ranks.watch(&stop)
}

/// Ranks that may still run.
struct Ranks {
    children: Vec<(u16, Child)>,
    grace: Duration,
}

impl Ranks {
    fn watch(&mut self, stop: &AtomicBool) -> Result<()> {
        while !self.children.is_empty() {
            if stop.load(Ordering::Relaxed) {
                self.end();
                return Err(CliError::Failed("ended by a signal".into()));
            }
            if let Some((rank, status)) = self.reap()?.into_iter().find(|(_, status)| !status.success()) {
                let others = self.children.len();
                self.end();
                return Err(CliError::Failed(format!("rank {rank} failed ({status}); {others} others were ended")));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Those that have ended, and how.
    fn reap(&mut self) -> Result<Vec<(u16, ExitStatus)>> {
        let mut ended = Vec::new();
        let mut running = Vec::new();
        for (rank, mut child) in self.children.drain(..) {
            match child.try_wait() {
                Ok(Some(status)) => ended.push((rank, status)),
                Ok(None) => running.push((rank, child)),
                Err(e) => output::note(format_args!("rank {rank}: {e}")),
            }
        }
        self.children = running;
        Ok(ended)
    }

    /// Asks all to end, and after a while makes them.
    fn end(&mut self) {
        for (_, child) in &mut self.children {
            ask(child);
        }
        let limit = Instant::now() + self.grace;
        while !self.children.is_empty() && Instant::now() < limit {
            let _ = self.reap();
            thread::sleep(PAUSE);
        }
        for (_, mut child) in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Ranks {
    /// No rank outlives the launcher, whatever went wrong.
    fn drop(&mut self) {
        self.end();
    }
}

/// Asks a process to end.
#[cfg(unix)]
fn ask(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Ends a process: there is no asking.
#[cfg(not(unix))]
fn ask(child: &mut Child) {
    let _ = child.kill();
}
