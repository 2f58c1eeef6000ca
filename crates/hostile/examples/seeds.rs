//! Writes the seeds of every fuzz target to `corpus/` of a folder, and the dictionary that all share.

use lookback_hostile::{READERS, seeds};
use std::{fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("fuzz"), PathBuf::from);
    for (name, _) in READERS {
        let corpus = folder.join("corpus").join(name);
        fs::create_dir_all(&corpus)?;
        for (number, seed) in seeds::of(name).iter().enumerate() {
            fs::write(corpus.join(format!("seed-{number}")), seed)?;
        }
    }
    let escaped = |word: &str| word.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let words: String = seeds::WORDS.iter().map(|word| format!("\"{}\"\n", escaped(word))).collect();
    fs::write(folder.join("words.dict"), words)
}
