//! Small weights files, and the reference model of a weights file.

use lookback_device::{Element, Error, WeightsFault};
use lookback_model::checkpoint::Checkpoint;
use lookback_model::config::Config;
use lookback_model::flags::{self, Segment};
use lookback_model::phonebook::{KINDS, Prompt, TABLE_ROWS};
use lookback_model::weights::{CLASSES, Weights};
use lookback_reference::gated_ssm::{Block, Model};
use lookback_suite::random::{Random, round};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::{BTreeMap, HashMap};

/// One tensor of a file to be.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A file to be, open to every kind of damage.
#[derive(Clone)]
pub struct Draft {
    pub metadata: HashMap<String, String>,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Draft {
    /// A valid file of a model with random weights.
    pub fn random(width: usize, state: usize, half_reversed: &[bool]) -> Self {
        let reversed: Vec<String> =
            (0..half_reversed.len()).filter(|&block| half_reversed[block]).map(|block| block.to_string()).collect();
        let metadata = [
            ("arch", "gated_ssm".to_string()),
            ("width", width.to_string()),
            ("state", state.to_string()),
            ("blocks", half_reversed.len().to_string()),
            ("conv_width", "4".to_string()),
            ("reversed_blocks", reversed.join(",")),
            ("input_scale", "sqrt(1-f^2+eps)".to_string()),
            ("seam", "soft".to_string()),
            ("eps", "1e-6".to_string()),
        ];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        let mut draft = Self { metadata, tensors: BTreeMap::new() };
        let mut rng = Pcg64::seed_from_u64(5);
        let mut add = |name: String, shape: &[usize]| {
            let count = shape.iter().product();
            let scale = (*shape.last().unwrap_or(&1) as f32).powf(-0.5) * 3.0;
            let bytes = (0..count).flat_map(|_| (scale * (rng.random::<f32>() - 0.5)).to_le_bytes()).collect();
            draft.tensors.insert(name, Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes });
        };
        add("embed.weight".into(), &[KINDS, width]);
        add("embed.names.weight".into(), &[TABLE_ROWS - KINDS, width]);
        add("norm.weight".into(), &[width]);
        add("head.weight".into(), &[CLASSES, width]);
        for block in 0..half_reversed.len() {
            add(format!("blocks.{block}.norm.weight"), &[width]);
            add(format!("blocks.{block}.conv.weight"), &[width, 4]);
            add(format!("blocks.{block}.in_proj.weight"), &[4 * state, width]);
            add(format!("blocks.{block}.in_proj.bias"), &[4 * state]);
            add(format!("blocks.{block}.out_proj.weight"), &[width, state]);
        }
        draft
    }

    /// A file of tensors with values of one's own choice, rounded to `T`.
    pub fn of<T: Element>(
        seed: u64,
        shapes: &[(String, Vec<usize>)],
        value: impl Fn(&str, &mut Random) -> f64,
    ) -> Self {
        let mut random = Random::new(seed);
        let mut draft = Self { metadata: HashMap::new(), tensors: BTreeMap::new() };
        for (name, shape) in shapes {
            let values = (0..shape.iter().product()).map(|_| round::<T>(value(name, &mut random)) as f32);
            let bytes = values.flat_map(f32::to_le_bytes).collect();
            draft.tensors.insert(name.clone(), Tensor { dtype: Dtype::F32, shape: shape.clone(), bytes });
        }
        draft
    }

    /// The file, to be read by names.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::from_bytes("draft", self.bytes()).unwrap()
    }

    /// The values of a tensor.
    pub fn values(&self, name: &str) -> Vec<f64> {
        let chunks = self.tensors[name].bytes.as_chunks().0;
        chunks.iter().map(|chunk| f64::from(f32::from_le_bytes(*chunk))).collect()
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut views = Vec::new();
        for (name, Tensor { dtype, shape, bytes }) in &self.tensors {
            views.push((name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        }
        safetensors::serialize(views, Some(self.metadata.clone())).unwrap()
    }

    /// The file, checked.
    pub fn weights(&self) -> Weights {
        Weights::from_bytes("draft", self.bytes()).unwrap()
    }
}

/// The reference model with these weights.
pub fn reference(weights: &Weights) -> Model {
    let Config { width, state, ref half_reversed, eps, .. } = *weights.config();
    let take = |name: &str| -> Vec<f64> { weights.tensor(name).unwrap().into_iter().map(f64::from).collect() };
    let block = |(block, &half_reversed): (usize, &bool)| {
        let take = |name: &str| take(&format!("blocks.{block}.{name}"));
        Block {
            half_reversed,
            norm: take("norm.weight"),
            conv: take("conv.weight"),
            in_weight: take("in_proj.weight"),
            in_bias: take("in_proj.bias"),
            out_weight: take("out_proj.weight"),
        }
    };
    Model {
        width,
        state,
        eps: f64::from(eps),
        table: [take("embed.weight"), take("embed.names.weight")].concat(),
        blocks: half_reversed.iter().enumerate().map(block).collect(),
        norm: take("norm.weight"),
        head: take("head.weight"),
    }
}

/// The tokens of a prompt as the reference wants them.
pub fn rows_of(prompt: &Prompt) -> Vec<Vec<usize>> {
    prompt.tokens.iter().map(|token| token.iter().filter_map(|&id| usize::try_from(id).ok()).collect()).collect()
}

/// The reference's logits after every token of samples that lie one after another.
pub fn packed_logits(weights: &Weights, samples: &[Prompt]) -> Vec<f64> {
    let tokens: Vec<Vec<usize>> = samples.iter().flat_map(rows_of).collect();
    let segments: Vec<Segment> = samples.iter().map(Prompt::segment).collect();
    reference(weights).logits(&tokens, &flags::build(&segments, weights.config().hard_seam))
}

/// Every tensor of a draft is needed, in its shape: `load` must say so, naming it.
pub fn assert_every_tensor_is_wanted(good: &Draft, load: impl Fn(&Checkpoint) -> Result<(), Error>) {
    load(&good.checkpoint()).unwrap();
    let fault = |draft: &Draft| match load(&draft.checkpoint()) {
        Err(Error::Weights { tensor, why, .. }) => (tensor.unwrap_or_default(), why),
        other => panic!("{other:?}"),
    };
    for name in good.tensors.keys() {
        let mut without = good.clone();
        without.tensors.remove(name);
        assert_eq!(fault(&without), (name.clone(), WeightsFault::Missing));
        let mut flat = good.clone();
        let tensor = flat.tensors.get_mut(name).unwrap();
        tensor.shape = vec![1, tensor.shape.iter().product()];
        let (blamed, why) = fault(&flat);
        assert!(blamed == *name && matches!(why, WeightsFault::Shape { .. }), "{name}: {blamed} {why:?}");
        let mut integer = good.clone();
        integer.tensors.get_mut(name).unwrap().dtype = Dtype::I32;
        let (blamed, why) = fault(&integer);
        assert!(blamed == *name && matches!(why, WeightsFault::Dtype { .. }), "{name}: {blamed} {why:?}");
        let mut infinite = good.clone();
        infinite.tensors.get_mut(name).unwrap().bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
        let (blamed, why) = fault(&infinite);
        assert!(blamed == *name && matches!(why, WeightsFault::NonFinite { at: 1 }), "{name}: {blamed} {why:?}");
    }
}
