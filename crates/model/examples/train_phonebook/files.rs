//! The weights file, and checkpoints to go on from.

use crate::layout::{Layout, Shape, TAPS};
use crate::network::EPS;
use crate::optimizer::AdamW;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

/// Names and texts kept beside the tensors.
pub type Facts = HashMap<String, String>;

/// The facts that say how to run a model of this shape.
pub fn configuration(shape: &Shape) -> Facts {
    let reversed: Vec<String> =
        (0..shape.reversed.len()).filter(|&b| shape.reversed[b]).map(|b| b.to_string()).collect();
    [
        ("arch", "gated_ssm".into()),
        ("width", shape.width.to_string()),
        ("state", shape.state.to_string()),
        ("blocks", shape.reversed.len().to_string()),
        ("conv_width", TAPS.to_string()),
        ("reversed_blocks", reversed.join(",")),
        ("input_scale", "sqrt(1-f^2+eps)".into()),
        ("seam", "soft".into()),
        ("eps", format!("{EPS:e}")),
    ]
    .into_iter()
    .map(|(name, text): (&str, String)| (name.to_string(), text))
    .collect()
}

/// Writes weights and facts. The file appears whole or not at all.
pub fn save(path: &Path, layout: &Layout, weights: &[f32], facts: Facts) -> Result<(), Box<dyn Error>> {
    write(path, named_tensors(layout, weights)?, facts)
}

/// Everything that a run needs to go on.
pub struct Checkpoint {
    /// The weights.
    pub weights: Vec<f32>,
    /// The optimiser, which knows the step.
    pub optimizer: AdamW,
    /// Entries of a book that the curriculum had reached.
    pub entries: usize,
    /// The step at which it reached them.
    pub entries_since: u64,
    /// Seconds trained so far.
    pub seconds: f64,
}

impl Checkpoint {
    /// The checkpoint's place beside the weights file.
    pub fn path(out: &Path) -> PathBuf {
        out.with_extension("checkpoint")
    }

    /// Writes it.
    pub fn save(&self, out: &Path, layout: &Layout, mut facts: Facts) -> Result<(), Box<dyn Error>> {
        facts.insert("step".into(), self.optimizer.step.to_string());
        facts.insert("entries".into(), self.entries.to_string());
        facts.insert("entries_since".into(), self.entries_since.to_string());
        facts.insert("seconds".into(), self.seconds.to_string());
        let moments = [("adam.mean", &self.optimizer.mean), ("adam.square", &self.optimizer.square)];
        let mut tensors = named_tensors(layout, &self.weights)?;
        for (name, values) in moments {
            let view = TensorView::new(Dtype::F32, vec![values.len()], bytemuck::cast_slice(values))?;
            tensors.push((name.to_string(), view));
        }
        write(&Self::path(out), tensors, facts)
    }

    /// Reads it.
    pub fn load(out: &Path, layout: &Layout) -> Result<Self, Box<dyn Error>> {
        let bytes = std::fs::read(Self::path(out))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let facts = header.metadata().clone().ok_or("the checkpoint has no facts")?;
        let fact = |name: &str| facts.get(name).ok_or(format!("the checkpoint does not say its {name}"));
        let file = SafeTensors::deserialize(&bytes)?;
        let read = |name: &str, count: usize| -> Result<Vec<f32>, Box<dyn Error>> {
            let values: Vec<f32> = file.tensor(name)?.data().chunks_exact(4).map(le_f32).collect();
            if values.len() == count { Ok(values) } else { Err(format!("{name} has another size").into()) }
        };
        let mut weights = Vec::with_capacity(layout.len());
        for tensor in &layout.tensors {
            weights.extend(read(&tensor.name, tensor.range.len())?);
        }
        let (mean, square) = (read("adam.mean", layout.len())?, read("adam.square", layout.len())?);
        let optimizer = AdamW { step: fact("step")?.parse()?, mean, square };
        Ok(Self {
            weights,
            optimizer,
            entries: fact("entries")?.parse()?,
            entries_since: fact("entries_since")?.parse()?,
            seconds: fact("seconds")?.parse()?,
        })
    }
}

fn le_f32(bytes: &[u8]) -> f32 {
    f32::from_le_bytes(std::array::from_fn(|at| bytes[at]))
}

type Named<'a> = Vec<(String, TensorView<'a>)>;

fn named_tensors<'a>(layout: &Layout, weights: &'a [f32]) -> Result<Named<'a>, Box<dyn Error>> {
    let view = |tensor: &crate::layout::Tensor| {
        let data = bytemuck::cast_slice(&weights[tensor.range.clone()]);
        Ok((tensor.name.clone(), TensorView::new(Dtype::F32, tensor.shape.clone(), data)?))
    };
    layout.tensors.iter().map(view).collect()
}

fn write(path: &Path, tensors: Named, facts: Facts) -> Result<(), Box<dyn Error>> {
    let unfinished = path.with_extension("part");
    std::fs::write(&unfinished, safetensors::serialize(tensors, Some(facts))?)?;
    std::fs::rename(&unfinished, path)?;
    Ok(())
}
