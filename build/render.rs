//! Rendering: minijinja with delimiters that leave PTX readable. A directive is a PTX comment.

use super::{
    Error, Rendered, Source,
    contract::{self, Contract},
};
use minijinja::{Environment, UndefinedBehavior, Value, syntax::SyntaxConfig};
use std::collections::BTreeMap;

/// Renders and checks every variant of one kernel file.
pub fn variants(macros: &[(String, String)], source: &Source) -> Result<Vec<Rendered>, Error> {
    let fields = contract::fields(&source.file, &source.text)?;
    let mut keys: Vec<(String, Vec<String>, usize)> = Vec::new();
    for field in fields.iter().filter(|f| f.key == "variant") {
        let mut words = field.value.split_whitespace().map(String::from);
        let key = words.next().unwrap_or_default();
        let values: Vec<String> = words.collect();
        if values.is_empty() {
            return Err(fail(source, field.line, format!("variant `{key}` has no values")));
        }
        keys.push((key, values, field.line));
    }
    let env = environment(macros, source)?;
    let mut all = Vec::new();
    for variant in product(&keys) {
        let context: BTreeMap<String, Value> = variant.iter().map(|(k, v)| (k.clone(), typed(v))).collect();
        if skipped(&env, source, &fields, &context)? {
            continue;
        }
        let block: String =
            source.text.lines().take_while(|l| l.starts_with("//!")).map(|l| format!("{l}\n")).collect();
        let block = env.render_str(&block, &context).map_err(|e| template_error(source, &e))?;
        let contract = contract::parse(&source.file, contract::fields(&source.file, &block)?)?;
        let ptx = env
            .get_template(&source.file)
            .and_then(|t| t.render(full_context(context, &contract)))
            .map_err(|e| template_error(source, &e))?;
        let ptx = tidy(&ptx);
        check(source, &contract, &ptx)?;
        all.push(Rendered { family: source.family.clone(), contract, variant, ptx });
    }
    if all.is_empty() {
        return Err(fail(source, 1, "every variant is skipped".into()));
    }
    Ok(all)
}

fn environment(macros: &[(String, String)], source: &Source) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder()
        .block_delimiters("<%", "%>")
        .variable_delimiters("${", "}")
        .comment_delimiters("<#", "#>")
        .line_statement_prefix("//%")
        .build()
        .map_err(|e| template_error(source, &e))?;
    env.set_syntax(syntax);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    for (name, text) in macros {
        let add = env.add_template_owned(name.clone(), text.clone());
        add.map_err(|e| Error { file: format!("kernels/{name}"), line: e.line().unwrap_or(0), message: whole(&e) })?;
    }
    env.add_template_owned(source.file.clone(), source.text.clone()).map_err(|e| template_error(source, &e))?;
    Ok(env)
}

/// Every combination of values, the last key fastest.
fn product(keys: &[(String, Vec<String>, usize)]) -> Vec<Vec<(String, String)>> {
    keys.iter().fold(vec![Vec::new()], |combinations, (key, values, _)| {
        combinations
            .iter()
            .flat_map(|c| {
                values.iter().map(|v| {
                    let mut next = c.clone();
                    next.push((key.clone(), v.clone()));
                    next
                })
            })
            .collect()
    })
}

fn typed(value: &str) -> Value {
    value.parse::<i64>().map_or_else(|_| Value::from(value), Value::from)
}

fn skipped(
    env: &Environment<'_>,
    source: &Source,
    fields: &[contract::Field],
    context: &BTreeMap<String, Value>,
) -> Result<bool, Error> {
    for field in fields.iter().filter(|f| f.key == "skip") {
        let expression = env.compile_expression(&field.value);
        let value = expression.and_then(|e| e.eval(context));
        if value.map_err(|e| fail(source, field.line, format!("skip: {}", whole(&e))))?.is_true() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn full_context(mut context: BTreeMap<String, Value>, contract: &Contract) -> BTreeMap<String, Value> {
    let offsets: BTreeMap<String, Value> = contract.args.iter().map(|a| (a.name.clone(), a.offset.into())).collect();
    let (major, minor) = contract.version;
    for (key, value) in [
        ("entry", Value::from(contract.entry.clone())),
        ("target", Value::from(contract.target.clone())),
        ("ptx_version", Value::from(format!("{major}.{minor}"))),
        ("args_bytes", Value::from(contract.args_bytes * contract.structures)),
        ("structure_bytes", Value::from(contract.args_bytes)),
        ("arg", Value::from(offsets)),
        ("block_x", Value::from(contract.block[0])),
        ("min_ctas", Value::from(contract.min_ctas)),
        ("dynamic_smem", Value::from(contract.dynamic_smem)),
    ] {
        context.insert(key.into(), value);
    }
    context
}

/// Every program that links the registry carries every text, so instructions go without the template's layout: no
/// indentation, single blanks, no empty lines. The contract stays as it is written.
fn tidy(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("//!") {
            tidy.push_str(line);
        } else {
            tidy.push_str(&line.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
        }
        tidy.push('\n');
    }
    tidy
}

/// The rendered text must be what its contract says.
fn check(source: &Source, contract: &Contract, ptx: &str) -> Result<(), Error> {
    let want = |line_key: &str, needle: String, what: &str| {
        if ptx.contains(&needle) {
            return Ok(());
        }
        let line = contract.line_of(line_key);
        Err(fail(source, line, format!("{}: the text has no `{needle}`: {what}", contract.entry)))
    };
    let parameters =
        format!(".entry {}(.param .align 8 .b8 args[{}])", contract.entry, contract.args_bytes * contract.structures);
    want("entry", parameters, "the entry takes one parameter structure, as the `arg` lines lay it out")?;
    let [x, y, z] = contract.block;
    want("launch", format!(".maxntid {x}, {y}, {z}"), "the block of `launch`")?;
    want("launch", format!(".minnctapersm {}", contract.min_ctas), "the min_ctas of `launch`")?;
    want("target", format!(".target {}", contract.target), "the target")?;
    for arg in contract.fields.iter().filter(|f| f.key == "arg") {
        let name = arg.value.split_whitespace().next().unwrap_or_default();
        if !mentions(&source.text, &format!("arg.{name}")) {
            return Err(fail(source, arg.line, format!("argument `{name}` is not read by the entry (`arg.{name}`)")));
        }
    }
    Ok(())
}

/// Whether `name` occurs as a whole word.
fn mentions(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let next = text[at + name.len()..].chars().next();
        !next.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

fn fail(source: &Source, line: usize, message: String) -> Error {
    Error { file: source.file.clone(), line, message }
}

fn template_error(source: &Source, error: &minijinja::Error) -> Error {
    let file = match error.name() {
        Some(name) if name.starts_with("tile/") => format!("kernels/{name}"),
        _ => source.file.clone(),
    };
    Error { file, line: error.line().unwrap_or(0), message: whole(error) }
}

/// The error with its causes, on one line.
fn whole(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!("; {inner}"));
        cause = inner.source();
    }
    text.replace('\n', " ")
}
