//! The public all-MiniLM-L6-v2, where there is a copy of it: no weights come with the repository.

use super::bert::{BF16, F16, NEW, reference_of};
use half::{bf16, f16};
use lookback_device::Element;
use lookback_model::bert::{Bert, Config, Pooling, Sequence};
use lookback_model::checkpoint::Checkpoint;
use lookback_reference::pool::{self, Pool};
use lookback_suite::{
    device::stream,
    measure::{Gate, assert_close},
};
use std::path::{Path, PathBuf};

/// Names the directory with `model.safetensors` and `config.json`.
const VARIABLE: &str = "LOOKBACK_MINILM";

/// Three sentences as the model's own tokenizer cuts them.
const SENTENCES: [&[i32]; 3] = [
    // The cat sits outside.
    &[101, 1996, 4937, 7719, 2648, 1012, 102],
    // A kitten is playing in the garden.
    &[101, 1037, 18401, 2003, 2652, 1999, 1996, 3871, 1012, 102],
    // Registers spill when a kernel holds too many values at once.
    &[101, 18687, 14437, 2043, 1037, 16293, 4324, 2205, 2116, 5300, 2012, 2320, 1012, 102],
];

fn directory() -> Option<PathBuf> {
    let directory = std::env::var_os(VARIABLE).map(PathBuf::from);
    if directory.is_none() {
        eprintln!("skipped: {VARIABLE} names no directory with all-MiniLM-L6-v2");
    }
    directory
}

fn rows_and_cosines_equal_the_reference<T: Element>(directory: &Path, gate: Gate, cosines: f64) {
    let config = Config::open(directory.join("config.json")).unwrap();
    let file = Checkpoint::open(directory.join("model.safetensors")).unwrap();
    let reference = reference_of(&config, NEW, |name| {
        let shape = file.extents::<2>(name).map(Vec::from).or_else(|_| file.extents::<1>(name).map(Vec::from));
        file.tensor(name, &shape.unwrap()).unwrap().into_iter().map(f64::from).collect()
    });
    // Weights unrounded: what rounding them costs is part of the error.
    let tokens = |ids: &&[i32]| ids.iter().map(|id| (*id as usize, 0)).collect::<Vec<_>>();
    let rows: Vec<f64> = SENTENCES.iter().flat_map(|ids| reference.forward(&tokens(ids))).collect();
    let model = Bert::<T>::load(&stream(), &file, &config).unwrap();
    let sequences = SENTENCES.map(Sequence::from);
    let got: Vec<f64> = model.encode(&sequences).unwrap().into_iter().map(f64::from).collect();
    let errors = assert_close("rows", &got, &rows, config.width, gate);
    let pool = Pool { width: config.width, starts: &[0, 7, 17, 31], mask: None, limit: usize::MAX, normalize: true };
    let wanted = pool::forward(&pool, &rows);
    let embedded = model.embed(&sequences, Pooling::Mean, true).unwrap();
    for (n, (got, wanted)) in embedded.chunks_exact(384).zip(wanted.chunks_exact(384)).enumerate() {
        let cosine: f64 = got.iter().zip(wanted).map(|(a, b)| f64::from(*a) * b).sum();
        eprintln!("{} sentence {n}: 1 - cosine {:.1e}, rows {errors:?}", T::DTYPE, 1.0 - cosine);
        assert!(1.0 - cosine < cosines, "{} sentence {n}: {cosine}", T::DTYPE);
    }
}

#[test]
fn minilm_equals_the_reference_f16() {
    if let Some(directory) = directory() {
        rows_and_cosines_equal_the_reference::<f16>(&directory, F16, 1e-6);
    }
}

#[test]
fn minilm_equals_the_reference_bf16() {
    if let Some(directory) = directory() {
        rows_and_cosines_equal_the_reference::<bf16>(&directory, BF16, 1e-4);
    }
}
