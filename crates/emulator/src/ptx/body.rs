//! The statements between an entry's braces.

use super::ParseError;
use super::ast::{Entry, Guard, Instruction, Operand, Register, SharedVariable, Type};
use super::cursor::{Cursor, Result};
use super::declare::{self, RegisterName, Size, Variable};
use super::lexer::Kind;
use super::operand;
use super::parse::ModuleScope;
use super::scope::{Name, Scopes};

/// Static shared memory that a kernel may declare; more has to be dynamic.
pub(super) const MAX_STATIC_SHARED: u32 = 48 * 1024;

/// An entry whose body is being read.
pub(super) struct Body<'m, 'a> {
    pub module: &'m mut ModuleScope,
    pub entry: Entry,
    pub scopes: Scopes<'a>,
    /// For each shared variable of the module, its index in the entry once the entry has mentioned it.
    pub adopted: Vec<Option<u32>>,
}

/// Reads a body from its opening to its closing brace.
pub(super) fn body<'a>(
    cursor: &mut Cursor<'a>,
    module: &mut ModuleScope,
    entry: Entry,
    scopes: Scopes<'a>,
) -> Result<Entry> {
    let adopted = vec![None; module.shared.len()];
    let mut body = Body { module, entry, scopes, adopted };
    let line = cursor.line();
    cursor.expect("{")?;
    body.scopes.open(line)?;
    while !body.scopes.outside_body() {
        body.statement(cursor)?;
    }
    body.lay_out_shared()?;
    Ok(body.entry)
}

impl<'a> Body<'_, 'a> {
    fn statement(&mut self, cursor: &mut Cursor<'a>) -> Result<()> {
        let token = cursor.peek();
        match (token.kind, token.text) {
            (Kind::Punctuation, "{") => {
                cursor.next();
                self.scopes.open(token.line)
            }
            (Kind::Punctuation, "}") => {
                cursor.next();
                self.close_scope()
            }
            (Kind::Punctuation, "@") => self.instruction(cursor),
            (Kind::Word, _) if cursor.peek_at(1).is(":") => {
                cursor.next();
                cursor.next();
                let target = index(self.entry.body.len());
                self.scopes.declare_label(token.text, target, token.line)
            }
            (Kind::Word, _) => self.instruction(cursor),
            (Kind::DotWord, "reg") => {
                cursor.next();
                self.registers(cursor)
            }
            (Kind::DotWord, "shared") => {
                cursor.next();
                self.shared(cursor)
            }
            (Kind::DotWord, "pragma") => pragma(cursor),
            (Kind::DotWord, "loc") => location(cursor),
            (Kind::End, _) => Err(cursor.expected("`}` at the end of the body")),
            _ => Err(cursor.expected("an instruction, a label, a declaration or `}`")),
        }
    }

    fn close_scope(&mut self) -> Result<()> {
        for branch in self.scopes.close()? {
            let instruction = self.entry.body.get_mut(branch.instruction as usize);
            if let Some(operand) = instruction.and_then(|instruction| instruction.operands.first_mut()) {
                *operand = Operand::Label(branch.target);
            }
        }
        Ok(())
    }

    fn registers(&mut self, cursor: &mut Cursor<'a>) -> Result<()> {
        let (ty, names) = declare::registers(cursor)?;
        for RegisterName { name, count, line } in names {
            self.module.reserve_registers(count.unwrap_or(1), line)?;
            match count {
                None => self.register(name.to_owned(), ty, line)?,
                Some(count) => {
                    for number in 0..count {
                        self.register(format!("{name}{number}"), ty, line)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn register(&mut self, name: String, ty: Type, line: u32) -> Result<()> {
        self.scopes.declare(name.clone(), Name::Register(index(self.entry.registers.len())), line)?;
        self.entry.registers.push(Register { name, ty });
        Ok(())
    }

    fn shared(&mut self, cursor: &mut Cursor<'a>) -> Result<()> {
        let (align, ty) = declare::align_and_type(cursor)?;
        loop {
            let variable = declare::variable(cursor, align, ty)?;
            let declared = static_shared(&variable)?;
            let name = Name::Shared(index(self.entry.shared.len()));
            self.scopes.declare(variable.name.to_owned(), name, variable.line)?;
            self.entry.shared.push(declared);
            if !cursor.take(",") {
                return declare::expect_either(cursor, "`,` or `;`", ";");
            }
        }
    }

    fn instruction(&mut self, cursor: &mut Cursor<'a>) -> Result<()> {
        let guard = if cursor.take("@") { Some(self.guard(cursor)?) } else { None };
        let opcode = cursor.expect_kind(Kind::Word, "an instruction")?;
        let line = opcode.line;
        let well_formed = opcode.text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !well_formed {
            return Err(ParseError::new(line, format!("expected an instruction, found {}", opcode.describe())));
        }
        if matches!(opcode.text, "call" | "brx") {
            return Err(ParseError::new(line, format!("`{}` is not supported: a kernel is one body", opcode.text)));
        }
        let mut modifiers = Vec::new();
        while cursor.peek().kind == Kind::DotWord {
            modifiers.push(cursor.next().text.to_owned());
        }
        let operands = if opcode.text == "bra" {
            let label = cursor.expect_kind(Kind::Word, "a label")?;
            self.scopes.refer(label.text, index(self.entry.body.len()), label.line);
            cursor.expect(";")?;
            // The scope that declares the label writes its target here.
            vec![Operand::Label(u32::MAX)]
        } else {
            self.operands(cursor)?
        };
        self.entry.body.push(Instruction { guard, opcode: opcode.text.to_owned(), modifiers, operands, line });
        Ok(())
    }

    fn operands(&mut self, cursor: &mut Cursor<'a>) -> Result<Vec<Operand>> {
        let mut operands = Vec::new();
        if cursor.take(";") {
            return Ok(operands);
        }
        loop {
            operands.push(operand::operand(self, cursor)?);
            if !cursor.take(",") {
                declare::expect_either(cursor, "`,` or `;`", ";")?;
                return Ok(operands);
            }
        }
    }

    fn guard(&self, cursor: &mut Cursor<'a>) -> Result<Guard> {
        let negated = cursor.take("!");
        let register = operand::predicate(self, cursor)?;
        Ok(Guard { register, negated })
    }

    /// Places the static variables in order of declaration, and all dynamic arrays at one address behind them.
    fn lay_out_shared(&mut self) -> Result<()> {
        let entry = &mut self.entry;
        let mut end = 0u32;
        let (mut largest_align, mut dynamic_align) = (1, 1);
        for variable in &mut entry.shared {
            largest_align = variable.align.max(largest_align);
            if variable.dynamic {
                dynamic_align = variable.align.max(dynamic_align);
                continue;
            }
            variable.offset = end.next_multiple_of(variable.align);
            end = variable.offset + variable.bytes;
            if end > MAX_STATIC_SHARED {
                let message =
                    format!("kernel `{}` declares more than {MAX_STATIC_SHARED} static shared bytes", entry.name);
                return Err(ParseError::new(variable.line, message));
            }
        }
        entry.static_shared_bytes = end;
        entry.dynamic_shared_offset = end.next_multiple_of(dynamic_align);
        entry.shared_align = largest_align;
        for variable in entry.shared.iter_mut().filter(|variable| variable.dynamic) {
            variable.offset = entry.dynamic_shared_offset;
        }
        Ok(())
    }
}

/// List positions are counted in 32 bits; the limit on the length of the text keeps them far below that.
pub(super) fn index(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

/// A shared variable of known size, not yet placed.
pub(super) fn static_shared(variable: &Variable) -> Result<SharedVariable> {
    let fits = u32::try_from(variable.bytes()).ok().filter(|&bytes| bytes <= MAX_STATIC_SHARED);
    let bytes = match (variable.size, fits) {
        (Size::Open, _) => {
            let message =
                format!("expected a size for `{}`; only `.extern .shared` of the module has none", variable.name);
            return Err(ParseError::new(variable.line, message));
        }
        (_, None) => {
            let message = format!("`{}` is larger than {MAX_STATIC_SHARED} static shared bytes", variable.name);
            return Err(ParseError::new(variable.line, message));
        }
        (_, Some(bytes)) => bytes,
    };
    let (align, line) = (variable.align, variable.line);
    Ok(SharedVariable {
        name: variable.name.to_owned(),
        ty: variable.ty,
        align,
        bytes,
        offset: 0,
        dynamic: false,
        line,
    })
}

/// `.pragma "text", ..;` changes no value.
pub(super) fn pragma(cursor: &mut Cursor) -> Result<()> {
    cursor.expect_directive("pragma")?;
    loop {
        cursor.expect_kind(Kind::Text, "a string")?;
        if !cursor.take(",") {
            return declare::expect_either(cursor, "`,` or `;`", ";");
        }
    }
}

/// `.loc file line column`, with what compilers append for inlined code.
fn location(cursor: &mut Cursor) -> Result<()> {
    cursor.expect_directive("loc")?;
    for _ in 0..3 {
        cursor.expect_kind(Kind::Number, "a number")?;
    }
    while cursor.take(",") {
        cursor.expect_kind(Kind::Word, "`function_name` or `inlined_at`")?;
        while matches!(cursor.peek().kind, Kind::Number) || cursor.peek().is("+") {
            cursor.next();
        }
        let names_function = cursor.peek().kind == Kind::Word && cursor.peek_at(1).is(",");
        if names_function {
            cursor.next();
        }
    }
    Ok(())
}
