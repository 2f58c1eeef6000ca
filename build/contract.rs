//! The contract block: the `//!` lines at the top of every kernel.
//!
//! A line is `//! key       value`; a line whose key column is blank continues the one above. Keys come in a fixed
//! order and none is missing, so that a reader finds the same fact in the same place in every kernel.

use super::Error;

/// Keys that every contract has, in this order. `variant`, `skip` and `arg` may repeat.
pub const KEYS: [&str; 18] = [
    "kernel", "entry", "does", "oracle", "variant", "skip", "target", "arg", "launch", "alias", "writes", "nan",
    "order", "error", "budget", "cost", "sync", "source",
];
/// Keys that a kernel may leave out: one without variants has neither.
const OPTIONAL: [&str; 2] = ["variant", "skip"];
const REPEATABLE: [&str; 3] = ["variant", "skip", "arg"];

/// One key with its value, and the template line it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// A word of [`KEYS`].
    pub key: String,
    /// The value; continuation lines are joined by a newline.
    pub value: String,
    /// Line in the template, from 1.
    pub line: usize,
}

/// One argument of the kernel's parameter structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// Field name, e.g. `p_a`.
    pub name: String,
    /// `u64`, `u32`, `i32`, `i64` or `f32`.
    pub ty: String,
    /// `in`, `out`, `inout`, `scratch`, or empty for a scalar.
    pub direction: String,
    /// Shape, layout, limits: the rest of the line.
    pub detail: String,
    /// Byte offset in the parameter structure.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// A checked contract.
#[derive(Debug, Clone)]
pub struct Contract {
    /// File, for errors.
    pub file: String,
    /// Kernel name without its variant.
    pub kernel: String,
    /// Entry symbol.
    pub entry: String,
    /// `sm_80`, `sm_90a`, ...
    pub target: String,
    /// PTX ISA version.
    pub version: (u8, u8),
    /// Arguments with their offsets.
    pub args: Vec<Arg>,
    /// Bytes of a parameter structure, a multiple of 8.
    pub args_bytes: usize,
    /// How many of them the parameter is, one after the other.
    pub structures: usize,
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks that must fit on one multiprocessor.
    pub min_ctas: u32,
    /// Dynamic shared memory in bytes.
    pub dynamic_smem: u32,
    /// Whether the launch is cooperative.
    pub cooperative: bool,
    /// Registers a thread may use.
    pub budget_regs: u32,
    /// Shared memory a block may use, static and dynamic.
    pub budget_smem: u32,
    /// Every field as written.
    pub fields: Vec<Field>,
}

impl Contract {
    /// The template line of a key, 1 if the key is absent.
    pub fn line_of(&self, key: &str) -> usize {
        self.fields.iter().find(|f| f.key == key).map_or(1, |f| f.line)
    }
}

/// Splits the block into fields and checks keys and their order. Works on the template and on the rendered text alike.
pub fn fields(file: &str, text: &str) -> Result<Vec<Field>, Error> {
    let fail = |line, message: String| Err(Error { file: file.into(), line, message });
    let mut fields: Vec<Field> = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let Some(body) = raw.strip_prefix("//!") else { break };
        let body = body.strip_prefix(' ').unwrap_or(body);
        if body.starts_with(' ') || body.is_empty() {
            let Some(last) = fields.last_mut() else {
                return fail(line, "the contract begins with a continuation line; its first key is `kernel`".into());
            };
            last.value.push('\n');
            last.value.push_str(body.trim());
            continue;
        }
        let (key, value) = body.split_once(char::is_whitespace).unwrap_or((body, ""));
        let Some(rank) = KEYS.iter().position(|k| *k == key) else {
            return fail(line, format!("unknown contract key `{key}`; the keys are {}", KEYS.join(", ")));
        };
        if let Some(last) = fields.last() {
            let last_rank = KEYS.iter().position(|k| *k == last.key).unwrap_or(0);
            if rank < last_rank {
                return fail(line, format!("`{key}` stands after `{}`; the order is {}", last.key, KEYS.join(", ")));
            }
            if rank == last_rank && !REPEATABLE.contains(&key) {
                return fail(line, format!("`{key}` stands twice"));
            }
        }
        fields.push(Field { key: key.into(), value: value.trim().into(), line });
    }
    if fields.is_empty() {
        return fail(1, "no contract block: a kernel begins on its first line with `//! kernel`".into());
    }
    for key in KEYS {
        match fields.iter().find(|f| f.key == key) {
            None if !OPTIONAL.contains(&key) => {
                return fail(fields.last().map_or(1, |f| f.line), format!("the contract has no `{key}` line"));
            }
            Some(field) if field.value.is_empty() => return fail(field.line, format!("`{key}` is empty")),
            _ => {}
        }
    }
    Ok(fields)
}

/// Reads the meaning of a rendered block.
pub fn parse(file: &str, fields: Vec<Field>) -> Result<Contract, Error> {
    let of = |key: &str| {
        fields.iter().find(|f| f.key == key).ok_or_else(|| Error {
            file: file.into(),
            line: 1,
            message: format!("the contract has no `{key}` line"),
        })
    };
    let kernel = first_word(of("kernel")?);
    let entry = first_word(of("entry")?);
    let (target, version) = target(file, of("target")?)?;
    let (args, args_bytes) = args(file, &fields)?;
    let launch = of("launch")?;
    let block = block(file, launch)?;
    let cooperative = match word_after(launch, "coop").as_deref() {
        Some("yes") => true,
        Some("no") => false,
        other => return Err(bad(file, launch, "coop yes|no", other)),
    };
    let structures = match word_after(launch, "structures") {
        Some(word) if word == "0" => return Err(bad(file, launch, "structures <number from 1>", Some("0"))),
        Some(_) => number(file, launch, "structures")? as usize,
        None => 1,
    };
    let budget = of("budget")?;
    if word_after(budget, "spills").as_deref() != Some("0") {
        return Err(bad(file, budget, "spills 0", word_after(budget, "spills").as_deref()));
    }
    Ok(Contract {
        min_ctas: number(file, launch, "min_ctas")?,
        dynamic_smem: number(file, launch, "dynamic_smem")?,
        budget_regs: number(file, budget, "regs")?,
        budget_smem: number(file, budget, "smem")?,
        file: file.into(),
        kernel,
        entry,
        target,
        version,
        args,
        args_bytes,
        structures,
        block,
        cooperative,
        fields,
    })
}

fn first_word(field: &Field) -> String {
    field.value.split_whitespace().next().unwrap_or_default().into()
}

fn word_after(field: &Field, name: &str) -> Option<String> {
    let mut words = field.value.split_whitespace();
    words.by_ref().find(|w| *w == name)?;
    words.next().map(Into::into)
}

fn number(file: &str, field: &Field, name: &str) -> Result<u32, Error> {
    let word = word_after(field, name);
    word.as_deref()
        .and_then(|w| w.parse().ok())
        .ok_or_else(|| bad(file, field, &format!("{name} <number>"), word.as_deref()))
}

fn bad(file: &str, field: &Field, want: &str, got: Option<&str>) -> Error {
    let got = got.map_or("nothing".to_string(), |g| format!("`{g}`"));
    Error { file: file.into(), line: field.line, message: format!("`{}` wants `{want}`, got {got}", field.key) }
}

fn target(file: &str, field: &Field) -> Result<(String, (u8, u8)), Error> {
    let target = first_word(field);
    let digits = target.strip_prefix("sm_").map(|t| t.trim_end_matches('a'));
    if digits.is_none_or(|d| d.parse::<u32>().is_err()) {
        return Err(bad(file, field, "sm_<number>[a]", Some(&target)));
    }
    let word = word_after(field, "version");
    let version = word.as_deref().and_then(|w| w.split_once('.'));
    match version.map(|(major, minor)| (major.parse(), minor.parse())) {
        Some((Ok(major), Ok(minor))) => Ok((target, (major, minor))),
        _ => Err(bad(file, field, "version <major>.<minor>", word.as_deref())),
    }
}

fn block(file: &str, field: &Field) -> Result<[u32; 3], Error> {
    let word = word_after(field, "block").unwrap_or_default();
    let sizes: Vec<u32> = word
        .strip_prefix('(')
        .and_then(|w| w.strip_suffix(')'))
        .map(|w| w.split(',').filter_map(|n| n.parse().ok()).collect())
        .unwrap_or_default();
    match sizes[..] {
        [x, y, z] if x > 0 && y > 0 && z > 0 => Ok([x, y, z]),
        _ => Err(bad(file, field, "block (<x>,<y>,<z>) with no spaces", Some(&word))),
    }
}

/// Lays the arguments out as `#[repr(C)]` does.
fn args(file: &str, fields: &[Field]) -> Result<(Vec<Arg>, usize), Error> {
    let mut args: Vec<Arg> = Vec::new();
    let mut end = 0_usize;
    for field in fields.iter().filter(|f| f.key == "arg") {
        let mut words = field.value.split_whitespace().peekable();
        let name = words.next().unwrap_or_default().to_string();
        if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            return Err(bad(file, field, "a lower-case argument name", Some(&name)));
        }
        if args.iter().any(|a| a.name == name) {
            return Err(Error { file: file.into(), line: field.line, message: format!("argument `{name}` twice") });
        }
        let ty = words.next().unwrap_or_default().to_string();
        let size = match ty.as_str() {
            "u64" | "i64" => 8,
            "u32" | "i32" | "f32" => 4,
            _ => return Err(bad(file, field, "a type of u64 i64 u32 i32 f32", Some(&ty))),
        };
        let is_direction = |w: &&str| ["in", "out", "inout", "scratch"].contains(w);
        let direction = words.next_if(is_direction).unwrap_or_default().to_string();
        if name.starts_with("p_") && direction.is_empty() {
            return Err(bad(file, field, "in, out, inout or scratch after the type of a pointer", words.next()));
        }
        let offset = end.next_multiple_of(size);
        end = offset + size;
        args.push(Arg { name, ty, direction, detail: words.collect::<Vec<_>>().join(" "), offset, size });
    }
    Ok((args, end.next_multiple_of(8)))
}
