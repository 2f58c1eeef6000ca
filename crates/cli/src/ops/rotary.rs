//! `rotary` and `rotary_backward`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    gated_scan::CU_SEQLENS,
    inputs::{AttributeSpec, TensorSpec, optional, required},
    short_convolution::packed,
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element, cudarc::driver::DevicePtr};
use lookback_nn::rotary::{self, Grid, Options, Plan, Shape, Style};
use lookback_reference::rotary::{self as oracle, Rotary};

/// Positions by turning pairs of elements.
pub static ROTARY: Operation = Operation {
    name: "rotary",
    about: "pairs of elements of every head turned by position base^(-2i/theta_dim); or x to [x cos, x sin]",
    inputs: &[required("x", "T", "[B,T,H,D]", "heads of each token"), POSITIONS, CU_SEQLENS, FREQUENCIES],
    attributes: ATTRIBUTES,
    outputs: &[required("out", "T", "[B,T,H,E]", "E is D, or 2 D with style=cosine")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs, false)),
    oracle: |inputs| Ok(Values::from([("out".into(), reference(inputs, false)?)])),
    cases: |dtype| cases(dtype, false),
};

/// Its gradient.
pub static ROTARY_BACKWARD: Operation = Operation {
    name: "rotary_backward",
    about: "the gradient by x: pairs of elements turned back; or [x cos, x sin] to x",
    inputs: &[required("dout", "T", "[B,T,H,E]", "adjoint of out"), POSITIONS, CU_SEQLENS, FREQUENCIES],
    attributes: ATTRIBUTES,
    outputs: &[required("dx", "T", "[B,T,H,D]", "")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs, true)),
    oracle: |inputs| Ok(Values::from([("dx".into(), reference(inputs, true)?)])),
    cases: |dtype| cases(dtype, true),
};

const POSITIONS: TensorSpec =
    optional("positions", "i32", "[B,T]", "without: the token's number in its sequence, from offset on");

const FREQUENCIES: TensorSpec = optional(
    "frequencies",
    "f32",
    "[A]",
    "the angles of position 1, as many as an axis has; without: powers of the base",
);

const ATTRIBUTES: &[AttributeSpec] = &[
    AttributeSpec {
        name: "style",
        values: "half|interleaved|cosine",
        default: "half",
        about: "pairs (i, i+r/2), pairs (2i, 2i+1), or a row twice as wide",
    },
    AttributeSpec { name: "base", values: "a number from 1", default: "10000", about: "of the frequencies" },
    AttributeSpec { name: "rotary_dim", values: "up to D", default: "0", about: "first elements that turn; 0: all" },
    AttributeSpec {
        name: "theta_dim",
        values: "a number",
        default: "0",
        about: "angle i is position base^(-2i/theta_dim); 0: rotary_dim",
    },
    AttributeSpec {
        name: "extents",
        values: "AxB.., up to 4",
        default: "",
        about: "a grid, the slowest axis first, whose axes share the angles; without: a line",
    },
    AttributeSpec {
        name: "prefix",
        values: "a number",
        default: "0",
        about: "tokens before the grid, which do not turn",
    },
    AttributeSpec { name: "offset", values: "a number", default: "0", about: "position of a sequence's first token" },
];

/// Sizes and switches.
struct Setting {
    shape: Shape,
    options: Options,
    extents: Vec<usize>,
}

impl Setting {
    fn of(inputs: &Inputs, backwards: bool) -> Result<Self> {
        let [batch, tokens, heads] = ['B', 'T', 'H'].map(|letter| inputs.extent(letter));
        let choices = [("half", Style::Half), ("interleaved", Style::Interleaved), ("cosine", Style::Cosine)];
        let style = inputs.choose("style", &choices)?;
        let head_dim = match (backwards, style) {
            (false, _) => inputs.extent('D'),
            (true, Style::Cosine) if inputs.extent('E').is_multiple_of(2) => inputs.extent('E') / 2,
            (true, Style::Cosine) => return Err(inputs.wrong("dout", "must have an even width".into())),
            (true, _) => inputs.extent('E'),
        };
        let or = |value: usize, otherwise: usize| if value == 0 { otherwise } else { value };
        let rotary_dim = or(inputs.parse("rotary_dim")?, head_dim);
        let text = inputs.attribute("extents");
        let wrong = || inputs.wrong("extents", format!("must be numbers with an x between, got `{text}`"));
        let extents: Vec<usize> = text
            .split('x')
            .filter(|_| !text.is_empty())
            .map(|extent| extent.parse().map_err(|_| wrong()))
            .collect::<Result<_>>()?;
        let prefix = inputs.parse("prefix")?;
        let grid = match extents.len() {
            0 if prefix == 0 => None,
            0 => Some(Grid::new(&[1], prefix)),
            _ => Some(Grid::new(&extents, prefix)),
        };
        let options = Options {
            base: inputs.parse("base")?,
            rotary_dim,
            theta_dim: or(inputs.parse("theta_dim")?, rotary_dim),
            grid,
            offset: inputs.parse("offset")?,
            ..Options::new(inputs.dtype, style, head_dim)
        };
        let angles = if style == Style::Cosine { rotary_dim } else { rotary_dim / 2 };
        let need = angles.div_ceil(extents.len().max(1));
        if inputs.optional("frequencies").is_some_and(|given| given.shape[0] < need) {
            return Err(inputs.wrong("frequencies", format!("must be at least {need} long")));
        }
        let shape = Shape { packed: packed(inputs, batch, tokens)?, ..Shape::dense(batch, tokens, heads, head_dim) };
        Ok(Self { shape, options, extents: if grid.is_some() && extents.is_empty() { vec![1] } else { extents } })
    }
}

fn run<T: Element>(session: &Session, inputs: &Inputs, backwards: bool) -> Result<Tensors> {
    let Setting { shape, options, .. } = Setting::of(inputs, backwards)?;
    let make = if backwards { Plan::backward } else { Plan::new };
    let plan = make(&shape, &options, &session.info)?;
    let (from, to) = if backwards { ("dout", "dx") } else { ("x", "out") };
    let x = session.upload(&inputs.tensor(from)?.as_elements::<T>())?;
    let indices = |name| inputs.optional(name).map(|t| session.upload(&t.as_indices())).transpose();
    let (positions, starts) = (indices("positions")?, indices("cu_seqlens")?);
    let turns = |given: &Tensor| given.to_f64().into_iter().map(rotary::turns).collect::<Vec<u64>>();
    let table = inputs.optional("frequencies").map(|given| session.upload(&turns(given))).transpose()?;
    let given = rotary::Inputs {
        positions: positions.as_ref().map(|p| p as &dyn DevicePtr<i32>),
        cu_seqlens: starts.as_ref().map(|s| s as &dyn DevicePtr<i32>),
        frequencies: table.as_ref().map(|f| f as &dyn DevicePtr<u64>),
    };
    let width = if options.style == Style::Cosine && !backwards { 2 * shape.head_dim } else { shape.head_dim };
    let extents = [shape.batch, shape.tokens, shape.heads, width];
    let mut out = session.zeros::<T>(extents.iter().product())?;
    plan.run(&session.stream, &x, given, &mut out)?;
    Ok(Tensors::from([(to.into(), Tensor::elements(&extents, &session.download::<T>(&out)?))]))
}

fn reference(inputs: &Inputs, backwards: bool) -> Result<Vec<f64>> {
    let Setting { shape, options, extents } = Setting::of(inputs, backwards)?;
    let positions = inputs.optional("positions").map(Tensor::as_indices);
    let starts = inputs.optional("cu_seqlens").map(Tensor::as_indices);
    let frequencies = inputs.optional("frequencies").map(Tensor::to_f64);
    let rotary = Rotary {
        batch: shape.batch,
        tokens: shape.tokens,
        heads: shape.heads,
        head_dim: shape.head_dim,
        style: match options.style {
            Style::Half => oracle::Style::Half,
            Style::Interleaved => oracle::Style::Interleaved,
            Style::Cosine => oracle::Style::Cosine,
        },
        base: options.base,
        rotary_dim: options.rotary_dim,
        theta_dim: options.theta_dim,
        extents: &extents,
        prefix: options.grid.map_or(0, |g| g.prefix),
        positions: positions.as_deref(),
        starts: starts.as_deref(),
        offset: options.offset,
        frequencies: frequencies.as_deref(),
    };
    Ok(if backwards {
        oracle::backward(&rotary, &inputs.tensor("dout")?.to_f64())
    } else {
        oracle::forward(&rotary, &inputs.tensor("x")?.to_f64())
    })
}

/// Every style, on a line and on a grid, with given positions and with packed sequences.
fn cases(dtype: DType, backwards: bool) -> Vec<Case> {
    let case = |name: &str, style: &str, size: [usize; 4], more: &[&str], extra: Option<(&str, Tensor)>| {
        let wide = if backwards && style == "cosine" { 2 } else { 1 };
        let shape = [size[0], size[1], size[2], wide * size[3]];
        let x = Tensor::floats(dtype, &shape, &wave(1.0, shape.iter().product()));
        let mut tensors = Tensors::from([(if backwards { "dout" } else { "x" }.into(), x)]);
        tensors.extend(extra.map(|(name, tensor)| (name.into(), tensor)));
        let attributes = [format!("style={style}")].into_iter().chain(more.iter().map(|m| m.to_string()));
        Case { name: format!("{style}, {name}"), tensors, attributes: attributes.collect() }
    };
    ["half", "interleaved", "cosine"]
        .iter()
        .flat_map(|style| {
            let far = Tensor::indices(&[1, 4], &[0, 1 << 20, 999_983, 31]);
            let starts = Tensor::indices(&[4], &[0, 3, 3, 9]);
            let angles = Tensor::floats(DType::F32, &[32], &wave(2.0, 32));
            [
                case("2x7x3x64", style, [2, 7, 3, 64], &["offset=5"], None),
                case("far positions", style, [1, 4, 2, 32], &[], Some(("positions", far))),
                case("packed", style, [1, 9, 2, 10], &["base=500"], Some(("cu_seqlens", starts))),
                case("given angles", style, [1, 5, 2, 32], &["offset=100"], Some(("frequencies", angles))),
                case("a grid of 3x4", style, [1, 13, 2, 48], &["extents=3x4", "prefix=1"], None),
            ]
        })
        .collect()
}
