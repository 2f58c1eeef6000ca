//! Trains the phone-book model: a small Gated SSM that reads a book both ways, or only forward, and answers from it.
//!
//! One thread, no GPU, hand-written gradients. Build with `RUSTFLAGS="-C target-cpu=native"`:
//! the elementwise loops rely on the compiler's vectors.

mod block;
mod files;
#[cfg(test)]
mod gradient;
mod layout;
mod network;
mod optimizer;
#[cfg(test)]
mod oracle;
mod real;
mod task;

use clap::Parser;
use files::{Checkpoint, Facts};
use indicatif::{ProgressBar, ProgressStyle};
use layout::Shape;
use network::{Network, Score};
use optimizer::{AdamW, learning_rate};
use rand::RngExt;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;
use task::{Batch, Purpose, stream};

/// Entries of the largest book.
const MOST_ENTRIES: usize = 16;
/// Steps after which the curriculum looks at what the model can do.
const WINDOW: u64 = 50;
const LOG_EVERY: u64 = 100;
/// Rows whose memory stays in the cache together.
const ROWS_AT_ONCE: usize = 4;
const EVALUATION_ROWS: usize = 2_000;
const EVALUATION_BATCH: usize = 100;

#[derive(Parser)]
#[command(about = "Train the phone-book model")]
struct Options {
    /// Run half the state of every other block backwards in the prefix
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    bidirectional: bool,
    #[arg(long, default_value_t = 10_000)]
    steps: u64,
    /// Books of one step
    #[arg(long, default_value_t = 64)]
    batch: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Highest learning rate
    #[arg(long, default_value_t = 3e-3)]
    rate: f64,
    /// Share of a window's books that must be answered exactly before the books double in size
    #[arg(long, default_value_t = 0.7)]
    threshold: f64,
    /// Steps after which the books double in size in any case
    #[arg(long, default_value_t = 3_000)]
    patience: u64,
    /// Share of steps whose books have any size up to the present one, so that small books stay learned
    #[arg(long, default_value_t = 0.2)]
    mixed: f64,
    /// Where the weights go; a checkpoint is kept beside them
    #[arg(long, default_value = "phonebook.safetensors")]
    out: PathBuf,
    #[arg(long, default_value_t = 500)]
    checkpoint_every: u64,
    /// Go on from the checkpoint
    #[arg(long)]
    resume: bool,
    /// Stop here, with a checkpoint, if the steps are not done
    #[arg(long)]
    time_limit_minutes: Option<f64>,
    #[arg(long, default_value_t = 64)]
    width: usize,
    #[arg(long, default_value_t = 192)]
    state: usize,
    #[arg(long, default_value_t = 4)]
    blocks: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if options.state < 4 || options.state % 2 != 0 || options.batch == 0 || options.width == 0 {
        return Err("wanted an even state of 4 or more, and a batch and a width of 1 or more".into());
    }
    let reversed = (0..options.blocks).map(|block| options.bidirectional && block % 2 == 0).collect();
    let shape = Shape { width: options.width, state: options.state, reversed };
    let mut run = Run::start(&options, &shape)?;
    println!("{} weights, {} of {} steps done", run.weights.len(), run.optimizer.step, options.steps);
    let finished = run.train(&options, &shape)?;
    run.checkpoint(&options, &shape)?;
    if !finished {
        println!("stopped at the time limit; --resume goes on");
    }
    run.finish(&options, &shape)
}

struct Run {
    network: Network<f32>,
    weights: Vec<f32>,
    optimizer: AdamW,
    /// Entries of a full-sized book, and the step at which books got this size.
    entries: usize,
    entries_since: u64,
    seconds_before: f64,
    started: Instant,
}

impl Run {
    fn start(options: &Options, shape: &Shape) -> Result<Self, Box<dyn Error>> {
        let network = Network::new(shape.clone(), ROWS_AT_ONCE);
        let started = Instant::now();
        if options.resume {
            let loaded = Checkpoint::load(&options.out, network.layout())?;
            let Checkpoint { weights, optimizer, entries, entries_since, seconds: seconds_before } = loaded;
            return Ok(Self { network, weights, optimizer, entries, entries_since, seconds_before, started });
        }
        let mut rng = stream(options.seed, Purpose::Weights, 0);
        let weights = network.layout().first_weights(shape, &mut rng);
        let optimizer = AdamW::new(weights.len());
        Ok(Self { network, weights, optimizer, entries: 2, entries_since: 0, seconds_before: 0.0, started })
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// Takes the steps that are left. False if the time ran out.
    fn train(&mut self, options: &Options, shape: &Shape) -> Result<bool, Box<dyn Error>> {
        let style = ProgressStyle::with_template("{bar:32} {pos}/{len} steps, {eta} left  {msg}")?;
        let bar = ProgressBar::new(options.steps).with_style(style).with_position(self.optimizer.step);
        let mut grad = vec![0.0; self.weights.len()];
        let (mut window, mut logged) = (Score::default(), Score::default());
        while self.optimizer.step < options.steps {
            let step = self.optimizer.step;
            let mut rng = stream(options.seed, Purpose::Training, step);
            let mixed = rng.random_bool(options.mixed);
            let entries = if mixed { rng.random_range(1..=self.entries) } else { self.entries };
            let batch = Batch::random(&mut rng, options.batch, entries);
            grad.fill(0.0);
            let score = self.network.score_and_gradient(&self.weights, &batch, &mut grad);
            if !score.loss.is_finite() {
                return Err(format!("the loss is not finite at step {step}").into());
            }
            self.optimizer.update(&mut self.weights, &grad, learning_rate(options.rate, step, options.steps));
            if entries == self.entries {
                window.add(&score);
                logged.add(&score);
            }
            bar.inc(1);
            let done = step + 1;
            if done.is_multiple_of(LOG_EVERY) {
                let (loss, digit, exact) = (logged.mean_loss(), logged.digit_share(), logged.exact_share());
                let (entries, seconds) = (self.entries, self.seconds());
                let line = format!("{entries} entries  loss {loss:.4}  digit {digit:.4}  exact {exact:.4}");
                bar.set_message(line.clone());
                println!("step {done:>6}  {line}  {seconds:.0} s");
                logged = Score::default();
            }
            if done.is_multiple_of(WINDOW) {
                let learned = window.exact_share() > options.threshold;
                let waited = done - self.entries_since >= options.patience;
                if (learned || waited) && self.entries < MOST_ENTRIES {
                    self.entries *= 2;
                    self.entries_since = done;
                    logged = Score::default();
                    println!("step {done:>6}  books of {} entries from here", self.entries);
                }
                window = Score::default();
            }
            if done.is_multiple_of(options.checkpoint_every) {
                self.checkpoint(options, shape)?;
            }
            let limit = options.time_limit_minutes.map_or(f64::INFINITY, |minutes| minutes * 60.0);
            if self.started.elapsed().as_secs_f64() > limit {
                return Ok(false);
            }
        }
        bar.finish();
        Ok(true)
    }

    fn checkpoint(&self, options: &Options, shape: &Shape) -> Result<(), Box<dyn Error>> {
        let (weights, seconds) = (self.weights.clone(), self.seconds());
        let AdamW { step, ref mean, ref square } = self.optimizer;
        let optimizer = AdamW { step, mean: mean.clone(), square: square.clone() };
        let (entries, entries_since) = (self.entries, self.entries_since);
        let checkpoint = Checkpoint { weights, optimizer, entries, entries_since, seconds };
        checkpoint.save(&options.out, self.network.layout(), files::configuration(shape))
    }

    /// Measures the model on unseen books, and writes the weights with what was measured.
    fn finish(&mut self, options: &Options, shape: &Shape) -> Result<(), Box<dyn Error>> {
        let mut facts = files::configuration(shape);
        let seconds = self.seconds();
        let mut fact = |name: String, text: String| facts.insert(name, text);
        fact("trained_steps".into(), self.optimizer.step.to_string());
        fact("trained_seed".into(), options.seed.to_string());
        fact("trained_batch".into(), options.batch.to_string());
        fact("trained_entries".into(), self.entries.to_string());
        fact("trained_peak_rate".into(), options.rate.to_string());
        fact("trained_seconds".into(), format!("{seconds:.0}"));
        for entries in [1, 2, 4, 8, 12, 16, 20, 24] {
            let score = self.evaluate(options.seed, entries);
            let (exact, digit, rows) = (score.exact_share(), score.digit_share(), score.rows);
            println!("{rows} unseen books of {entries}: exact {exact:.4}  digit {digit:.4}");
            fact(format!("unseen_{entries}_exact"), format!("{exact:.4}"));
            fact(format!("unseen_{entries}_digit"), format!("{digit:.4}"));
        }
        fact("unseen_books".into(), EVALUATION_ROWS.to_string());
        self.save(options, facts)
    }

    fn evaluate(&mut self, seed: u64, entries: usize) -> Score {
        let mut rng = stream(seed, Purpose::Unseen, entries as u64);
        let mut score = Score::default();
        for _ in 0..EVALUATION_ROWS / EVALUATION_BATCH {
            let batch = Batch::random(&mut rng, EVALUATION_BATCH, entries);
            score.add(&self.network.score(&self.weights, &batch));
        }
        score
    }

    fn save(&self, options: &Options, facts: Facts) -> Result<(), Box<dyn Error>> {
        files::save(&options.out, self.network.layout(), &self.weights, facts)?;
        println!("wrote {}", options.out.display());
        Ok(())
    }
}
