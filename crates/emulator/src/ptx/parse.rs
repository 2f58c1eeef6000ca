//! Module scope: the header directives, variables, and entries up to their bodies.

use std::collections::HashMap;

use super::ParseError;
use super::ast::{Directives, Entry, GlobalSpace, GlobalVariable, Module, Param, SharedVariable};
use super::body::{body, index, pragma, static_shared};
use super::constant::integer_in;
use super::cursor::{Cursor, Result};
use super::declare::{self, Size, Variable, expect_either};
use super::lexer::{Kind, tokenize};
use super::scope::{Name, Scopes};

/// Longest text. Tokens and instructions take a few dozen times the memory of their text.
const MAX_TEXT: usize = 16 << 20;
/// Registers of all entries together.
const MAX_REGISTERS: u32 = 1 << 17;
/// Bytes of `.const` variables.
const MAX_CONST: u64 = 64 * 1024;
/// Bytes of parameters, before and since PTX 8.1.
const MAX_PARAMS_OLD: u32 = 4352;
const MAX_PARAMS: u32 = 32_764;
/// Versions since which a kernel may have the larger parameter block.
const LARGE_PARAMS_SINCE: (u8, u8) = (8, 1);

/// Reads the text of a module.
///
/// # Errors
/// The first place where the text is not what the parser accepts, with its line.
pub fn parse(text: &str) -> Result<Module> {
    if text.len() > MAX_TEXT {
        return Err(ParseError::new(1, format!("expected a text of at most {MAX_TEXT} bytes, found {}", text.len())));
    }
    let mut cursor = Cursor::new(tokenize(text)?);
    let mut module = header(&mut cursor)?;
    let mut scope = ModuleScope::default();
    while cursor.peek().kind != Kind::End {
        item(&mut cursor, &mut module, &mut scope)?;
    }
    Ok(module)
}

/// Names and variables of module scope, and what the entries have used of their common allowance.
#[derive(Default)]
pub(super) struct ModuleScope {
    names: HashMap<String, Name>,
    /// Shared variables of module scope; entries that mention one take a copy.
    pub shared: Vec<SharedVariable>,
    const_bytes: u64,
    registers: u32,
}

impl ModuleScope {
    pub fn find(&self, name: &str) -> Option<Name> {
        self.names.get(name).copied()
    }

    fn declare(&mut self, name: &str, meaning: Name, line: u32) -> Result<()> {
        if self.names.insert(name.to_owned(), meaning).is_some() {
            return Err(ParseError::new(line, format!("`{name}` is already declared in this module")));
        }
        Ok(())
    }

    /// Counts registers before they are created, so that a huge `%r<n>` fails without taking memory.
    pub fn reserve_registers(&mut self, count: u32, line: u32) -> Result<()> {
        self.registers = self.registers.saturating_add(count);
        if self.registers > MAX_REGISTERS {
            return Err(ParseError::new(line, format!("expected at most {MAX_REGISTERS} registers in a module")));
        }
        Ok(())
    }
}

fn header(cursor: &mut Cursor) -> Result<Module> {
    cursor.expect_directive("version")?;
    let version = cursor.expect_kind(Kind::Number, "a version such as `8.0`")?;
    let Some(version) = version_number(version.text) else {
        return Err(ParseError::new(
            version.line,
            format!("expected a version such as `8.0`, found {}", version.describe()),
        ));
    };
    cursor.expect_directive("target")?;
    let target = cursor.expect_kind(Kind::Word, "a target such as `sm_80`")?;
    if !is_target(target.text) {
        return Err(ParseError::new(
            target.line,
            format!("expected a target such as `sm_80`, found {}", target.describe()),
        ));
    }
    cursor.expect_directive("address_size")?;
    let size = cursor.expect_kind(Kind::Number, "`64`")?;
    if size.text != "64" {
        return Err(ParseError::new(size.line, format!("expected `64`, found {}", size.describe())));
    }
    let target = target.text.to_owned();
    Ok(Module { version, target, address_size: 64, globals: Vec::new(), entries: Vec::new() })
}

fn version_number(text: &str) -> Option<(u8, u8)> {
    let (major, minor) = text.split_once('.')?;
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten();
    Some((digits(major)?, digits(minor)?))
}

/// `sm_` and a number, with `a` or `f` for architecture- and family-specific features.
fn is_target(text: &str) -> bool {
    text.strip_prefix("sm_").is_some_and(|rest| {
        let number = rest.strip_suffix(['a', 'f']).unwrap_or(rest);
        matches!(number.len(), 2 | 3) && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn item(cursor: &mut Cursor, module: &mut Module, scope: &mut ModuleScope) -> Result<()> {
    let token = cursor.peek();
    if token.kind != Kind::DotWord {
        return Err(cursor.expected("`.entry`, a variable or the end of the text"));
    }
    match token.text {
        "pragma" => return pragma(cursor),
        "file" => return file(cursor),
        "extern" => {
            cursor.next();
            cursor.expect_directive("shared")?;
            return shared(cursor, scope, true);
        }
        "visible" | "weak" => {
            cursor.next();
        }
        _ => {}
    }
    let token = cursor.peek();
    match (token.kind, token.text) {
        (Kind::DotWord, "entry") => {
            let entry = entry(cursor, module.version, scope)?;
            module.entries.push(entry);
            Ok(())
        }
        (Kind::DotWord, "shared") => {
            cursor.next();
            shared(cursor, scope, false)
        }
        (Kind::DotWord, "global") => {
            cursor.next();
            globals(cursor, GlobalSpace::Global, module, scope)
        }
        (Kind::DotWord, "const") => {
            cursor.next();
            globals(cursor, GlobalSpace::Const, module, scope)
        }
        _ => Err(cursor.expected("`.entry`, `.global`, `.const` or `.shared`")),
    }
}

/// `.file number "name"`, with a time and a size where a compiler adds them.
fn file(cursor: &mut Cursor) -> Result<()> {
    cursor.expect_directive("file")?;
    cursor.expect_kind(Kind::Number, "a number")?;
    cursor.expect_kind(Kind::Text, "a string")?;
    while cursor.take(",") {
        cursor.expect_kind(Kind::Number, "a number")?;
    }
    Ok(())
}

fn shared(cursor: &mut Cursor, scope: &mut ModuleScope, dynamic: bool) -> Result<()> {
    let (align, ty) = declare::align_and_type(cursor)?;
    loop {
        let variable = declare::variable(cursor, align, ty)?;
        let declared = if dynamic { dynamic_shared(&variable)? } else { static_shared(&variable)? };
        scope.declare(variable.name, Name::ModuleShared(index(scope.shared.len())), variable.line)?;
        scope.shared.push(declared);
        if !cursor.take(",") {
            return expect_either(cursor, "`,` or `;`", ";");
        }
    }
}

fn dynamic_shared(variable: &Variable) -> Result<SharedVariable> {
    let (name, line) = (variable.name, variable.line);
    if variable.size != Size::Open {
        return Err(ParseError::new(
            line,
            format!("expected `{name}[]`: the launch states the size of dynamic shared memory"),
        ));
    }
    let (ty, align) = (variable.ty, variable.align);
    Ok(SharedVariable { name: name.to_owned(), ty, align, bytes: 0, offset: 0, dynamic: true, line })
}

fn globals(cursor: &mut Cursor, space: GlobalSpace, module: &mut Module, scope: &mut ModuleScope) -> Result<()> {
    let (align, ty) = declare::align_and_type(cursor)?;
    loop {
        let variable = declare::variable(cursor, align, ty)?;
        let initial = if cursor.take("=") { declare::initializer(cursor, &variable)? } else { Vec::new() };
        let Variable { name, line, .. } = variable;
        let bytes = if variable.size == Size::Open { initial.len() as u64 } else { variable.bytes() };
        if bytes == 0 {
            return Err(ParseError::new(line, format!("expected a size or constants for `{name}[]`")));
        }
        if space == GlobalSpace::Const {
            scope.const_bytes = scope.const_bytes.saturating_add(bytes);
            if scope.const_bytes > MAX_CONST {
                return Err(ParseError::new(
                    line,
                    format!("expected at most {MAX_CONST} bytes of constants in a module"),
                ));
            }
        }
        scope.declare(name, Name::Global(index(module.globals.len())), line)?;
        module.globals.push(GlobalVariable { name: name.to_owned(), space, ty, align, bytes, initial, line });
        if !cursor.take(",") {
            return expect_either(cursor, "`,` or `;`", ";");
        }
    }
}

fn entry(cursor: &mut Cursor, version: (u8, u8), scope: &mut ModuleScope) -> Result<Entry> {
    let line = cursor.line();
    cursor.expect_directive("entry")?;
    let name = cursor.expect_kind(Kind::Word, "the name of a kernel")?;
    scope.declare(name.text, Name::Entry, name.line)?;
    let mut scopes = Scopes::new();
    let (params, params_bytes) = params(cursor, &mut scopes)?;
    let limit = if version >= LARGE_PARAMS_SINCE { MAX_PARAMS } else { MAX_PARAMS_OLD };
    if params_bytes > limit {
        let message = format!("expected at most {limit} bytes of parameters, found {params_bytes}");
        return Err(ParseError::new(line, message));
    }
    let entry = Entry {
        name: name.text.to_owned(),
        line,
        params,
        params_bytes,
        directives: directives(cursor)?,
        registers: Vec::new(),
        shared: Vec::new(),
        static_shared_bytes: 0,
        dynamic_shared_offset: 0,
        shared_align: 1,
        body: Vec::new(),
    };
    body(cursor, scope, entry, scopes)
}

fn params(cursor: &mut Cursor, scopes: &mut Scopes) -> Result<(Vec<Param>, u32)> {
    let mut params: Vec<Param> = Vec::new();
    let mut end = 0;
    if !cursor.take("(") || cursor.take(")") {
        return Ok((params, end));
    }
    loop {
        cursor.expect_directive("param")?;
        let (align, ty) = declare::align_and_type(cursor)?;
        pointer_attributes(cursor)?;
        let variable = declare::variable(cursor, align, ty)?;
        let bytes = u32::try_from(variable.bytes()).ok().filter(|&bytes| bytes > 0 && bytes <= MAX_PARAMS);
        let Some(bytes) = bytes else {
            let message = format!("expected a parameter of 1 to {MAX_PARAMS} bytes, found {}", variable.bytes());
            return Err(ParseError::new(variable.line, message));
        };
        let offset = u32::next_multiple_of(end, align);
        end = offset + bytes;
        if end > MAX_PARAMS {
            return Err(ParseError::new(variable.line, format!("expected at most {MAX_PARAMS} bytes of parameters")));
        }
        scopes.declare(variable.name.to_owned(), Name::Param(index(params.len())), variable.line)?;
        let array = variable.size != Size::Scalar;
        params.push(Param { name: variable.name.to_owned(), ty, array, align, bytes, offset });
        if !cursor.take(",") {
            expect_either(cursor, "`,` or `)`", ")")?;
            return Ok((params, end));
        }
    }
}

/// `.ptr .space .align n`: what a pointer parameter points to.
fn pointer_attributes(cursor: &mut Cursor) -> Result<()> {
    if !cursor.take_directive("ptr") {
        return Ok(());
    }
    for space in ["global", "const", "shared", "local"] {
        if cursor.take_directive(space) {
            break;
        }
    }
    if cursor.peek().is_directive("align") {
        declare::alignment(cursor)?;
    }
    Ok(())
}

fn directives(cursor: &mut Cursor) -> Result<Directives> {
    const MAX_THREADS: u32 = 1024;
    const MAX_CLUSTER: u32 = 16;
    let mut found = Directives::default();
    loop {
        let token = cursor.peek();
        if token.kind != Kind::DotWord {
            return Ok(found);
        }
        if token.text == "pragma" {
            pragma(cursor)?;
            continue;
        }
        cursor.next();
        let repeated = match token.text {
            "maxntid" => found.maxntid.replace(shape(cursor, "a number of threads", MAX_THREADS)?).is_some(),
            "reqntid" => found.reqntid.replace(shape(cursor, "a number of threads", MAX_THREADS)?).is_some(),
            "reqnctapercluster" => {
                found.reqnctapercluster.replace(shape(cursor, "a number of CTAs", MAX_CLUSTER)?).is_some()
            }
            "minnctapersm" => {
                found.minnctapersm.replace(integer_in(cursor, "a number of CTAs", 1..=u32::MAX)?).is_some()
            }
            "maxnreg" => found.maxnreg.replace(integer_in(cursor, "a number of registers", 1..=255)?).is_some(),
            "maxclusterrank" => {
                found.maxclusterrank.replace(integer_in(cursor, "a number of CTAs", 1..=MAX_CLUSTER)?).is_some()
            }
            "explicitcluster" => std::mem::replace(&mut found.explicitcluster, true),
            "noreturn" => false,
            _ => {
                let message = format!("expected a performance directive or `{{`, found {}", token.describe());
                return Err(ParseError::new(token.line, message));
            }
        };
        if repeated {
            return Err(ParseError::new(token.line, format!("`.{}` is given twice", token.text)));
        }
    }
}

/// One to three extents; missing ones are 1.
fn shape(cursor: &mut Cursor, what: &str, largest: u32) -> Result<[u32; 3]> {
    let mut shape = [1; 3];
    for (axis, extent) in shape.iter_mut().enumerate() {
        if axis > 0 && !cursor.take(",") {
            break;
        }
        *extent = integer_in(cursor, what, 1..=largest)?;
    }
    Ok(shape)
}
