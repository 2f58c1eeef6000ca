//! Bytes that are right, for every reader: small, and made from what the repository has.

use lookback_cli::trial::samples;
use lookback_kernels::KERNELS;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::HashMap;

/// Words that mean something to a reader.
pub const WORDS: [&str; 36] = [
    ".reg",
    ".b32",
    ".u64",
    ".f32",
    ".shared",
    ".param",
    ".visible",
    ".entry",
    "{",
    "}",
    ";",
    "@%p bra",
    "%r<",
    "ld.global",
    "[",
    "]",
    "+",
    "-9223372036854775808",
    "0xffffffffffffffff",
    "//! arg",
    "//! variant",
    "${",
    "<%",
    "scale=",
    "mask=window",
    "=nan",
    "=inf",
    "\"shape\":[",
    "\"dtype\":\"F16\"",
    "\"data_offsets\":[",
    "\"BF16\"",
    "\"I32\"",
    "\"__metadata__\"",
    "null",
    "1e999",
    "\n",
];

/// Seeds of a reader, by its name.
pub fn of(reader: &str) -> Vec<Vec<u8>> {
    match reader {
        "contract" => vec![CONTRACT.into()],
        "cost" => {
            [[4, 64, 0, 8, 4, 1, 0, 1, 2, 0, 5, 3, 2, 0, 0, 4], [3, 200, 1, 6, 2, 0, 255, 1, 0, 1, 9, 5, 1, 1, 2, 0]]
                .map(|seed| seed.to_vec())
                .to_vec()
        }
        "frame" => frames(),
        "ptx" => texts(),
        "run" => commands(),
        "settings" => SETTINGS.iter().map(|text| text.as_bytes().to_vec()).collect(),
        "weights" => vec![phonebook(), checkpoint()],
        _ => Vec::new(),
    }
}

/// The shortest kernel of each family, and one with everything that the parser knows.
fn texts() -> Vec<Vec<u8>> {
    let mut shortest: HashMap<&str, String> = HashMap::new();
    for kernel in KERNELS {
        let text = kernel.ptx().into_owned();
        let best = shortest.entry(kernel.family).or_insert_with(|| text.clone());
        if text.len() < best.len() {
            *best = text;
        }
    }
    let mut texts: Vec<Vec<u8>> = shortest.into_values().map(String::into_bytes).collect();
    texts.push(MODULE.into());
    texts.sort();
    texts
}

/// The smallest file of each operation.
fn commands() -> Vec<Vec<u8>> {
    let mut smallest: HashMap<&str, Vec<u8>> = HashMap::new();
    for sample in samples().unwrap_or_default() {
        let mut bytes = format!("{}\n{}\n", sample.operation, sample.attributes.join("\n")).into_bytes();
        if !sample.attributes.is_empty() {
            bytes.push(b'\n');
        }
        bytes.extend(sample.file);
        let best = smallest.entry(sample.operation).or_insert_with(|| bytes.clone());
        if bytes.len() < best.len() {
            *best = bytes;
        }
    }
    // What takes seconds to interpret says nothing more about its arguments.
    let mut commands: Vec<Vec<u8>> = smallest.into_values().filter(|bytes| bytes.len() < 40_000).collect();
    commands.sort();
    commands
}

fn frames() -> Vec<Vec<u8>> {
    (0..5_u8)
        .map(|kind| {
            let mut header = vec![0; 48];
            header[..6].copy_from_slice(&[b'L', b'B', b'K', b'1', kind, 2]);
            header
        })
        .collect()
}

/// A file with these tensors of zeros.
fn file(tensors: &[(&str, &[usize])], facts: &[(&str, &str)]) -> Vec<u8> {
    let bytes = vec![0_u8; 4 * tensors.iter().map(|(_, shape)| shape.iter().product()).max().unwrap_or(0_usize)];
    let view =
        |shape: &[usize]| TensorView::new(Dtype::F32, shape.to_vec(), &bytes[..4 * shape.iter().product::<usize>()]);
    let views = tensors.iter().filter_map(|(name, shape)| Some((name.to_string(), view(shape).ok()?)));
    let facts: HashMap<String, String> =
        facts.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    safetensors::serialize(views.collect::<Vec<_>>(), Some(facts)).unwrap_or_default()
}

fn checkpoint() -> Vec<u8> {
    file(
        &[
            ("backbone.embedding.weight", &[16, 8]),
            ("backbone.layers.0.norm.weight", &[8]),
            ("backbone.layers.0.mixer.A_log", &[2]),
            ("backbone.layers.0.mixer.conv1d.weight", &[20, 1, 4]),
            ("backbone.layers.0.mixer.in_proj.weight", &[38, 8]),
            ("backbone.norm_f.weight", &[8]),
        ],
        &[("format", "pt")],
    )
}

/// The phone book's model comes with the repository, but not so small.
fn phonebook() -> Vec<u8> {
    let facts = [
        ("arch", "gated_ssm"),
        ("width", "4"),
        ("state", "6"),
        ("blocks", "1"),
        ("eps", "1e-5"),
        ("half_reversed", "1"),
    ];
    file(&[("norm.weight", &[4]), ("head.weight", &[10, 4]), ("blocks.0.norm.weight", &[4])], &facts)
}

const SETTINGS: [&str; 2] = [
    r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":64,"hidden_size":32,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":48,"rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu",
"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":64},
"max_position_embeddings":512,"sliding_window":16,"tie_word_embeddings":true}"#,
    r#"{"model_type":"bert","vocab_size":64,"hidden_size":32,"num_hidden_layers":2,"num_attention_heads":4,"intermediate_size":48,
"layer_norm_eps":1e-12,"hidden_act":"gelu","max_position_embeddings":64,"type_vocab_size":2,"position_embedding_type":"absolute"}"#,
];

const CONTRACT: &str = r#"//! kernel    scale                                    abi 1
//! entry     scale_${dtype}_v${vec}_sm80
//! does      y = x s
//! oracle    none
//! variant   dtype     f32 f16
//! variant   vec       1 2
//! skip      dtype == "f16" and vec == 1
//! target    sm_80     version 7.0
//! arg       n         u32
//! arg       p_x       u64  in   T[n]
//! arg       s         f32
//! launch    block (128,1,1)  grid (n/128,1,1)  min_ctas 2  dynamic_smem 0  cluster 1  coop no
//! alias     none
//! writes    y
//! nan       passes
//! order     none
//! error     rel 5e-6
//! budget    regs 16  spills 0  smem 0
//! cost      2 n
//! sync      none
//!           on two lines
//! source    none
.version ${ptx_version}
.target ${target}
.address_size 64

.visible .entry ${entry}(.param .align 8 .b8 args[${args_bytes}])
.maxntid ${block_x}, 1, 1
.minnctapersm ${min_ctas}
{
    .reg .u64 %p_x;
    .reg .u32 %n;
    .reg .f32 %s;
    ld.param.u64 %p_x, [args+${arg.p_x}];
    ld.param.u32 %n, [args+${arg.n}];
    ld.param.f32 %s, [args+${arg.s}];
    ret;
}
"#;

const MODULE: &str = r#".version 7.8
.target sm_90a
.address_size 64
.global .align 16 .f32 table[4] = {1.0, 0f3F800000, 2.5, -1};
.extern .shared .align 16 .b8 dynamic[];
.visible .entry everything(.param .align 8 .b8 args[24], .param .u32 n)
.maxntid 64, 1, 1
{
    .reg .pred %p<3>;
    .reg .b32 %r<8>;
    .reg .f32 %f<4>;
    .reg .u64 %a;
    .shared .align 8 .b64 gate[2];
    ld.param.u64 %a, [args+8];
    cvta.to.global.u64 %a, %a;
    mov.u32 %r0, %tid.x;
    setp.lt.and.u32 %p0, %r0, 32, %p1;
LOOP:
    {
        .reg .b32 %t<2>;
        add.s32 %t0, %r0, -4;
        @!%p0 bra DONE;
        mad.lo.u32 %r1, %t0, 3, %r0;
    }
    ld.global.nc.v2.f32 {%f0, %f1}, [%a+16];
    fma.rn.ftz.f32 %f2, %f0, 0f40000000, %f1;
    st.shared.f32 [dynamic+4], %f2;
    mbarrier.init.shared.b64 [gate], 64;
    shfl.sync.bfly.b32 %r2|%p2, %r1, 16, 31, 0xffffffff;
    bar.sync 0;
    @%p2 bra LOOP;
DONE:
    red.global.add.f32 [%a], %f2;
    ret;
}
"#;
