//! Names in nested braces, and branch targets that may come later than the branch.

use std::collections::HashMap;

use super::ParseError;
use super::cursor::Result;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// Index into the registers of the entry.
    Register(u32),
    /// Index into the shared variables of the entry.
    Shared(u32),
    /// Index into the shared variables of the module, which an entry takes over when it first mentions them.
    ModuleShared(u32),
    /// Index into the global variables of the module.
    Global(u32),
    /// Index into the parameters of the entry.
    Param(u32),
    /// A kernel.
    Entry,
}

/// Braces may nest this deep.
const MAX_DEPTH: usize = 64;

/// A branch whose label has not been seen in the scopes closed so far.
struct Pending<'a> {
    label: &'a str,
    instruction: u32,
    line: u32,
}

#[derive(Default)]
struct Level<'a> {
    names: HashMap<String, Name>,
    labels: HashMap<&'a str, u32>,
    pending: Vec<Pending<'a>>,
}

/// The scopes of one entry, innermost last. The first holds the parameters, the second is the body.
pub(super) struct Scopes<'a> {
    levels: Vec<Level<'a>>,
}

/// A branch and the instruction it goes to.
pub(super) struct Resolved {
    pub instruction: u32,
    pub target: u32,
}

impl<'a> Scopes<'a> {
    /// One open scope.
    pub fn new() -> Self {
        Self { levels: vec![Level::default()] }
    }

    pub fn open(&mut self, line: u32) -> Result<()> {
        if self.levels.len() > MAX_DEPTH {
            return Err(ParseError::new(line, format!("expected at most {MAX_DEPTH} nested braces")));
        }
        self.levels.push(Level::default());
        Ok(())
    }

    /// True while only the scope of the parameters is open.
    pub fn outside_body(&self) -> bool {
        self.levels.len() <= 1
    }

    /// Closes the innermost scope and returns the branches that its labels resolve; the others wait in the scope
    /// around it. At the end of the body no branch may be left.
    pub fn close(&mut self) -> Result<Vec<Resolved>> {
        let Some(closed) = self.levels.pop() else { return Ok(Vec::new()) };
        let mut resolved = Vec::new();
        let mut waiting = Vec::new();
        for branch in closed.pending {
            match closed.labels.get(branch.label) {
                Some(&target) => resolved.push(Resolved { instruction: branch.instruction, target }),
                None => waiting.push(branch),
            }
        }
        if !self.outside_body()
            && let Some(parent) = self.levels.last_mut()
        {
            parent.pending.append(&mut waiting);
        }
        match waiting.iter().min_by_key(|branch| branch.instruction) {
            Some(branch) => Err(ParseError::new(branch.line, format!("there is no label `{}` in scope", branch.label))),
            None => Ok(resolved),
        }
    }

    /// The meaning of a name in the innermost scope that declares it.
    pub fn find(&self, name: &str) -> Option<Name> {
        self.levels.iter().rev().find_map(|level| level.names.get(name)).copied()
    }

    pub fn declare(&mut self, name: String, meaning: Name, line: u32) -> Result<()> {
        let in_body = self.levels.len() == 2;
        let shadows_parameter = in_body && self.levels[0].names.contains_key(&name);
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        if shadows_parameter || level.names.contains_key(&name) || level.labels.contains_key(name.as_str()) {
            return Err(ParseError::new(line, format!("`{name}` is already declared in this scope")));
        }
        level.names.insert(name, meaning);
        Ok(())
    }

    pub fn declare_label(&mut self, label: &'a str, target: u32, line: u32) -> Result<()> {
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        if level.names.contains_key(label) || level.labels.insert(label, target).is_some() {
            return Err(ParseError::new(line, format!("`{label}` is already declared in this scope")));
        }
        Ok(())
    }

    /// Notes that an instruction branches to a label.
    pub fn refer(&mut self, label: &'a str, instruction: u32, line: u32) {
        if let Some(level) = self.levels.last_mut() {
            level.pending.push(Pending { label, instruction, line });
        }
    }
}
