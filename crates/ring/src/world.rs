//! Which rank this process is, by what its launcher put into the environment.

use crate::{Error, Place, Rendezvous, Result};
use std::{path::PathBuf, time::Duration};

/// How long ranks wait for each other unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// One process of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// This process.
    pub rank: usize,
    /// All of them.
    pub ranks: usize,
    /// This process among those of its machine: the device to take.
    pub local_rank: usize,
    /// Where they meet.
    pub rendezvous: Rendezvous,
}

/// Names that a launcher uses for rank, ranks, rank on this machine and the job.
struct Launcher {
    rank: &'static str,
    ranks: &'static str,
    local_rank: &'static str,
    job: &'static str,
}

/// torchrun (and `lookback launch`), SLURM's srun, OpenMPI's mpirun.
const LAUNCHERS: [Launcher; 3] = [
    Launcher { rank: "RANK", ranks: "WORLD_SIZE", local_rank: "LOCAL_RANK", job: "TORCHELASTIC_RUN_ID" },
    Launcher { rank: "SLURM_PROCID", ranks: "SLURM_NTASKS", local_rank: "SLURM_LOCALID", job: "SLURM_JOB_ID" },
    Launcher {
        rank: "OMPI_COMM_WORLD_RANK",
        ranks: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        job: "OMPI_MCA_ess_base_jobid",
    },
];

impl World {
    /// Of the environment; nothing if no launcher has set it.
    ///
    /// Ranks meet at `LOOKBACK_RENDEZVOUS`, a folder or `host:port`; else at `MASTER_ADDR:MASTER_PORT`; else, under SLURM, on the first
    /// machine of the job, at a port made of its number.
    ///
    /// # Errors
    /// [`Error::Shape`] ← a variable that is missing or no number, named; [`Error::Range`] ← a rank beyond the number of ranks.
    pub fn from_env() -> Result<Option<Self>> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let Some(launcher) = LAUNCHERS.iter().find(|l| get(l.rank).is_some() && get(l.ranks).is_some()) else {
            return Ok(None);
        };
        let number = |arg: &'static str| match get(arg).map(|text| text.trim().parse::<usize>()) {
            Some(Ok(number)) => Ok(number),
            _ => Err(Error::Shape { op: "world", arg, want: "a number".into(), got: Vec::new() }),
        };
        let (rank, ranks) = (number(launcher.rank)?, number(launcher.ranks)?);
        let local_rank = if get(launcher.local_rank).is_some() { number(launcher.local_rank)? } else { rank };
        if rank >= ranks {
            let (hi, got) = (ranks as i64 - 1, rank as i64);
            return Err(Error::Range { op: "world", arg: launcher.rank, at: None, lo: 0, hi, got });
        }
        let job = get(launcher.job).unwrap_or_default();
        let place = match (get("LOOKBACK_RENDEZVOUS"), get("MASTER_ADDR"), get("MASTER_PORT")) {
            (Some(text), ..) if is_address(&text) => Place::Address(text),
            (Some(text), ..) => Place::Folder(PathBuf::from(text)),
            (None, Some(host), Some(port)) => Place::Address(format!("{host}:{port}")),
            (None, host, _) => {
                let host = host.or_else(|| first_host(&get("SLURM_JOB_NODELIST")?));
                let (arg, want) = ("MASTER_ADDR", "set, with MASTER_PORT, or LOOKBACK_RENDEZVOUS");
                let missing = || Error::Shape { op: "world", arg, want: want.into(), got: Vec::new() };
                Place::Address(format!("{}:{}", host.ok_or_else(missing)?, port_of(&job)))
            }
        };
        let rendezvous = Rendezvous { rank, ranks, place, job: hash(&job), timeout: PATIENCE };
        Ok(Some(Self { rank, ranks, local_rank, rendezvous }))
    }
}

/// `host:port`, not a folder.
fn is_address(text: &str) -> bool {
    let port = text.rsplit_once(':').map(|(_, port)| port);
    !text.contains(['/', '\\']) && port.is_some_and(|port| port.parse::<u16>().is_ok())
}

/// The first machine of a SLURM list such as `node[07-09,12],login1`.
fn first_host(list: &str) -> Option<String> {
    let name = list.split(['[', ',']).next().filter(|name| !name.is_empty())?;
    let Some(rest) = list[name.len()..].strip_prefix('[') else { return Some(name.into()) };
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(format!("{name}{number}"))
}

/// A port above those of services and below those given out to clients.
fn port_of(job: &str) -> u16 {
    20_000 + (hash(job) % 10_000) as u16
}

/// FNV-1a: the same in every process, unlike the standard library's.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn world(variables: &[(&str, &str)]) -> Result<Option<World>> {
        let map: HashMap<_, _> = variables.iter().copied().collect();
        World::from_variables(|name| map.get(name).map(|value| (*value).to_string()))
    }

    #[test]
    fn launchers_are_understood() {
        assert_eq!(world(&[]).unwrap(), None);
        assert_eq!(world(&[("RANK", "1")]).unwrap(), None, "without a number of ranks");
        let torch =
            [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "29500")];
        let found = world(&torch).unwrap().unwrap();
        assert_eq!((found.rank, found.ranks, found.local_rank), (3, 4, 1));
        assert_eq!(found.rendezvous.place, Place::Address("a:29500".into()));
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "16"),
            ("SLURM_LOCALID", "5"),
            ("SLURM_JOB_ID", "777"),
            ("SLURM_JOB_NODELIST", "node[07-08]"),
        ];
        let found = world(&slurm).unwrap().unwrap();
        let Place::Address(address) = &found.rendezvous.place else { panic!("{found:?}") };
        let (host, port) = address.split_once(':').unwrap();
        assert!(host == "node07" && (20_000..30_000).contains(&port.parse::<u32>().unwrap()));
        let other = [slurm[0], slurm[1], slurm[2], ("SLURM_JOB_ID", "778"), slurm[4]];
        assert_ne!(world(&other).unwrap().unwrap().rendezvous.job, found.rendezvous.job);
        let mpi =
            [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2"), ("LOOKBACK_RENDEZVOUS", "/shared/job")];
        let found = world(&mpi).unwrap().unwrap();
        assert_eq!(found.rendezvous.place, Place::Folder("/shared/job".into()));
        assert_eq!(found.local_rank, 0);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let arg = |variables: &[(&str, &str)]| match world(variables) {
            Err(Error::Shape { arg, .. } | Error::Range { arg, .. }) => arg,
            other => panic!("{other:?}"),
        };
        assert_eq!(arg(&[("RANK", "x"), ("WORLD_SIZE", "2")]), "RANK");
        assert_eq!(arg(&[("RANK", "0"), ("WORLD_SIZE", "")]), "WORLD_SIZE");
        assert_eq!(arg(&[("RANK", "2"), ("WORLD_SIZE", "2")]), "RANK");
        assert_eq!(arg(&[("RANK", "0"), ("WORLD_SIZE", "0")]), "RANK");
        assert_eq!(arg(&[("RANK", "0"), ("WORLD_SIZE", "2")]), "MASTER_ADDR");
    }

    #[test]
    fn lists_of_machines_begin_with_the_first() {
        for (list, first) in [("a", "a"), ("a,b", "a"), ("n[3-5]", "n3"), ("n[03,05],m", "n03"), ("x1,n[3-5]", "x1")] {
            assert_eq!(first_host(list).as_deref(), Some(first));
        }
        assert_eq!(first_host(""), None);
        assert!(is_address("host:1") && is_address("[::1]:80") && !is_address("/a:1") && !is_address("folder"));
    }
}
