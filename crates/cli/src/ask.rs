//! `lookback ask`: a model reads a phone book and answers from memory.

use crate::{CliError, Result, output::line, session::Session};
use comfy_table::{Table, presets};
use indicatif::ProgressBar;
use lookback_device::DevicePick;
use lookback_model::{
    gated_ssm::GatedSsm,
    phonebook::{Book, DIGITS, Entry, digits_text},
    weights::Weights,
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Weights that come with lookback, trained by `crates/model/examples/train_phonebook` (docs/training.md).
const BOTH_WAYS: &[u8] = include_bytes!("../../../assets/phonebook.safetensors");
const FORWARD_ONLY: &[u8] = include_bytes!("../../../assets/phonebook-causal.safetensors");

/// What one model answered.
struct Reading {
    title: &'static str,
    answers: Vec<String>,
    tokens: usize,
    time: Duration,
}

/// Asks for the names, or for everybody.
pub fn ask(pick: DevicePick, path: &Path, names: &[String], causal: bool, model: Option<&Path>) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(|e| CliError::input(path.display(), e))?;
    let book = Book::parse(&text).map_err(|e| CliError::input(path.display(), e))?;
    let asked: Vec<&Entry> = if names.is_empty() {
        book.entries().iter().collect()
    } else {
        let find = |name: &String| {
            book.find(name).ok_or_else(|| CliError::input(path.display(), format!("no entry is named `{name}`")))
        };
        names.iter().map(find).collect::<Result<_>>()?
    };
    let weights = match (model, causal) {
        (Some(file), _) => vec![("the given model", Weights::open(file)?)],
        (None, true) => vec![("forward only", Weights::from_bytes("phonebook-causal.safetensors", FORWARD_ONLY)?)],
        (None, false) => {
            let mut both = vec![("read both ways", Weights::from_bytes("phonebook.safetensors", BOTH_WAYS)?)];
            if names.is_empty() {
                both.push(("forward only", Weights::from_bytes("phonebook-causal.safetensors", FORWARD_ONLY)?));
            }
            both
        }
    };
    let session = Session::open(pick)?;
    let readings =
        weights.iter().map(|(title, w)| read(&session, title, w, &book, &asked)).collect::<Result<Vec<_>>>()?;
    print(&asked, &readings, &session)
}

fn read(session: &Session, title: &'static str, weights: &Weights, book: &Book, asked: &[&Entry]) -> Result<Reading> {
    let progress = ProgressBar::new_spinner().with_message(format!("{title}: {} questions", asked.len()));
    progress.enable_steady_tick(Duration::from_millis(100));
    let prompt = |entry: &&Entry| book.prompt(&entry.name).map_err(|e| CliError::Input(e.to_string()));
    let prompts = asked.iter().map(prompt).collect::<Result<Vec<_>>>()?;
    let model = GatedSsm::load(&session.stream, weights)?;
    let start = Instant::now();
    let answers = model.answer(&prompts)?;
    let time = start.elapsed();
    progress.finish_and_clear();
    let tokens = prompts.iter().map(|p| p.tokens.len() + DIGITS - 1).sum();
    Ok(Reading { title, answers: answers.iter().map(|a| digits_text(a)).collect(), tokens, time })
}

fn print(asked: &[&Entry], readings: &[Reading], session: &Session) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let titles = readings.iter().map(|r| r.title);
    table.set_header(["name", "in the book"].into_iter().chain(titles));
    for (i, entry) in asked.iter().enumerate() {
        let number = entry.number_text();
        let mark = |r: &Reading| format!("{} {}", r.answers[i], if r.answers[i] == number { "✓" } else { "✗" });
        let answers: Vec<String> = readings.iter().map(mark).collect();
        table.add_row([entry.name.clone(), number].into_iter().chain(answers));
    }
    line(table)?;
    for reading in readings {
        let right = asked.iter().zip(&reading.answers).filter(|(e, a)| e.number_text() == **a).count();
        let seconds = reading.time.as_secs_f64();
        let rate = reading.tokens as f64 / seconds.max(f64::MIN_POSITIVE);
        line(format_args!(
            "{}: {right} of {} right ({:.0} %), {} tokens in {seconds:.2} s ({rate:.0} tokens/s)",
            reading.title,
            asked.len(),
            100.0 * right as f64 / asked.len().max(1) as f64,
            reading.tokens,
        ))?;
    }
    line(session.device_line())
}
