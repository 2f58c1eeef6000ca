//! Embeds sentences with a BERT encoder, such as all-MiniLM-L6-v2, from a local directory that has `model.safetensors`, `config.json`
//! and `tokenizer.json`, and prints how alike they are.
//!
//! ```text
//! cargo run --release -p lookback-embed -- path/to/all-MiniLM-L6-v2 "A cat sits on the mat." "A kitten rests on a rug."
//! ```

mod directory;

use clap::{Parser, ValueEnum};
use directory::{Directory, Encoded};
use half::{bf16, f16};
use lookback_device::{DeviceInfo, DevicePick, Element, open};
use lookback_model::bert::{Bert, Pooling, Sequence};
use safetensors::{Dtype, tensor::TensorView};
use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// What is embedded when no sentence is given.
const SENTENCES: [&str; 5] = [
    "The cat sits outside.",
    "A kitten is playing in the garden.",
    "The new movie is awesome.",
    "I could watch that film every week.",
    "Registers spill when a kernel holds too many values at once.",
];

#[derive(Parser)]
#[command(name = "embed", about = "Embeds sentences and prints the cosine of every pair")]
struct Arguments {
    /// Directory with model.safetensors, config.json and tokenizer.json
    model: PathBuf,
    /// Sentences; some of its own without any
    sentences: Vec<String>,
    /// Type of weights and activations
    #[arg(long, value_enum, default_value_t = Type::F16)]
    dtype: Type,
    /// What a sentence's tokens become: as the directory says, or else their mean
    #[arg(long, value_enum)]
    pooling: Option<PoolingArgument>,
    /// Where to run: auto, cuda, cuda:N or emulated
    #[arg(long, default_value = "auto")]
    device: DevicePick,
    /// Writes the embeddings to a safetensors file, `embeddings` f32 [sentences, width]
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    F16,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum PoolingArgument {
    Mean,
    First,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let directory = Directory::open(&arguments.model)?;
    let sentences: Vec<&str> = match arguments.sentences.as_slice() {
        [] => SENTENCES.to_vec(),
        given => given.iter().map(String::as_str).collect(),
    };
    let tokens = directory.encode(&sentences)?;
    let pooling = arguments.pooling.map_or(directory.pooling, |pooling| match pooling {
        PoolingArgument::Mean => Pooling::Mean,
        PoolingArgument::First => Pooling::First,
    });
    let rows = match arguments.dtype {
        Type::F16 => embed::<f16>(arguments.device, &directory, &tokens, pooling),
        Type::Bf16 => embed::<bf16>(arguments.device, &directory, &tokens, pooling),
    }?;
    print(&sentences, &tokens, &rows)?;
    match &arguments.out {
        Some(path) => write(path, sentences.len(), &rows),
        None => Ok(()),
    }
}

/// One row of length 1 for each sentence.
fn embed<T: Element>(
    device: DevicePick,
    directory: &Directory,
    tokens: &[Encoded],
    pooling: Pooling,
) -> Result<Vec<f32>, Box<dyn Error>> {
    let context = open(device)?;
    let info = DeviceInfo::of(&context)?;
    let kind = if info.emulated { " (no GPU: PTX interpreted on the CPU)" } else { "" };
    say(format_args!("device: {}{kind}", info.name))?;
    let model = Bert::<T>::load(&context.default_stream(), &directory.weights, &directory.config)?;
    let sequences: Vec<Sequence<'_>> =
        tokens.iter().map(|Encoded { ids, types }| Sequence { ids, types: Some(types) }).collect();
    let start = Instant::now();
    let rows = model.embed(&sequences, pooling, true)?;
    let count: usize = tokens.iter().map(|tokens| tokens.ids.len()).sum();
    say(format_args!("{count} tokens in {:.2} s, {}, {pooling:?}", start.elapsed().as_secs_f64(), T::DTYPE))?;
    Ok(rows)
}

/// A line of output, which nobody has to read.
fn say(line: std::fmt::Arguments<'_>) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn print(sentences: &[&str], tokens: &[Encoded], rows: &[f32]) -> io::Result<()> {
    let width = rows.len() / sentences.len().max(1);
    let row = |n: usize| &rows[n * width..][..width];
    for (n, (sentence, tokens)) in sentences.iter().zip(tokens).enumerate() {
        say(format_args!("{n:3}  {sentence}  ({} tokens)", tokens.ids.len()))?;
    }
    say(format_args!("cosines:"))?;
    for a in 0..sentences.len() {
        let cosine = |b| row(a).iter().zip(row(b)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let line: Vec<String> = (0..=a).map(|b| format!("{:7.4}", cosine(b))).collect();
        say(format_args!("{a:3}  {}", line.join(" ")))?;
    }
    Ok(())
}

fn write(path: &std::path::Path, sentences: usize, rows: &[f32]) -> Result<(), Box<dyn Error>> {
    let shape = vec![sentences, rows.len() / sentences.max(1)];
    let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(rows))?;
    safetensors::serialize_to_file([("embeddings", view)], None, path)?;
    Ok(())
}
