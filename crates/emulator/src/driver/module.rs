//! Modules: one PTX text, its variables and its kernels.

use super::api::api;
use super::args::{In, Out, Text};
use super::capture;
use super::context::{self, Context};
use super::errors::{CUresult, Outcome};
use super::function::{self, Function};
use super::handles::{Handle, Kind, Table};
use super::jit;
use super::memory::{self, Origin};
use super::report;
use crate::ptx::ast::GlobalVariable;
use std::sync::Arc;
use std::time::Instant;

static MODULES: Table<Module> = Table::new(Kind::Module);

/// First words of images that are not text: ELF, fat binary, wrapper of a fat binary.
const BINARIES: [[u8; 4]; 3] = [*b"\x7fELF", 0xba55_ed50_u32.to_le_bytes(), 0x4662_43b1_u32.to_le_bytes()];

#[derive(Debug)]
struct Variable {
    name: String,
    pointer: u64,
    bytes: u64,
}

/// A loaded module.
#[derive(Debug)]
struct Module {
    context: Handle,
    variables: Vec<Variable>,
    functions: Vec<(String, Handle)>,
}

impl Module {
    fn discard(&self) {
        for (_, function) in &self.functions {
            function::forget(*function);
        }
        free(&self.variables);
    }
}

fn free(variables: &[Variable]) {
    for variable in variables {
        memory::free_module_variable(variable.pointer);
    }
}

/// A context is gone.
pub(super) fn forget_context(context: Handle) {
    for module in MODULES.remove_where(|module| module.context == context) {
        module.discard();
    }
}

fn find(module: Handle) -> Outcome<Arc<Module>> {
    MODULES.get(module).ok_or(CUresult::INVALID_HANDLE)
}

/// A variable on the device, with its initial value; what has none is zero.
fn place(context: &Context, global: &GlobalVariable) -> Outcome<Variable> {
    let pointer = memory::allocate(context, global.bytes, Origin::Module)?;
    let variable = Variable { name: global.name.clone(), pointer, bytes: global.bytes };
    let memory = memory::device();
    let written =
        memory.fill(pointer, [0], global.bytes).and_then(|()| memory.copy_from_host(pointer, &global.initial));
    if written.is_err() {
        // Only an initial value longer than its variable could do this, and the parser refuses such.
        free(&[variable]);
        return Err(CUresult::INVALID_PTX);
    }
    Ok(variable)
}

fn place_all(context: &Context, globals: &[GlobalVariable]) -> Outcome<Vec<Variable>> {
    let mut variables = Vec::new();
    for global in globals {
        match place(context, global) {
            Ok(variable) => variables.push(variable),
            Err(code) => {
                free(&variables);
                return Err(code);
            }
        }
    }
    Ok(variables)
}

/// Compile `text` and make it live; the log of a text that cannot be used is the second part of the error.
fn load(context: &Context, text: &[u8]) -> Result<Handle, (CUresult, String)> {
    let refused = |refusal: jit::Refusal| (refusal.code, refusal.log);
    let failed = |code| (code, String::new());
    if BINARIES.iter().any(|magic| text.starts_with(magic)) {
        let why = "the emulator runs PTX text; this image is a binary".to_owned();
        return Err((CUresult::NO_BINARY_FOR_GPU, why));
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return Err((CUresult::INVALID_IMAGE, "the image is neither PTX text nor a known binary".into()));
    };
    let parsed = jit::parse(text).map_err(refused)?;
    let variables = place_all(context, &parsed.globals).map_err(failed)?;
    let pointers: Vec<u64> = variables.iter().map(|variable| variable.pointer).collect();
    let programs = match jit::decode(&parsed, &pointers) {
        Ok(programs) => programs,
        Err(refusal) => {
            free(&variables);
            return Err(refused(refusal));
        }
    };
    let handle = MODULES.reserve();
    let functions = parsed.entries.iter().zip(programs).map(|(entry, program)| {
        let function = Function::new(handle, context.handle, &parsed, entry, program);
        (entry.name.clone(), function::insert(function))
    });
    let functions = functions.collect();
    MODULES.insert(handle, Module { context: context.handle, variables, functions });
    Ok(handle)
}

fn load_and_report(module: Out<Handle>, text: &[u8], options: Option<&jit::Options>) -> Outcome {
    module.wanted()?;
    let context = context::current()?;
    capture::forbid_unsafe_call()?;
    let start = Instant::now();
    let loaded = load(&context, text);
    let log = loaded.as_ref().err().map_or("", |(_, log)| log.as_str());
    if let Some(options) = options {
        options.report(log, start.elapsed().as_secs_f64())?;
    }
    match loaded {
        Ok(handle) => module.set(handle),
        Err((code, log)) => {
            if !log.is_empty() {
                report::note(log);
            }
            Err(code)
        }
    }
}

/// The bytes of an image: text up to its NUL, or the head of a binary.
fn image(image: In<u8>) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        // One byte at a time: nothing says how long the image is, except a NUL at the end of a text.
        match image.get_at(bytes.len())? {
            0 => return Ok(bytes),
            byte => bytes.push(byte),
        }
        if BINARIES.iter().any(|magic| bytes == magic) {
            return Ok(bytes);
        }
    }
}

api! {
    fn cuModuleLoad(module: Out<Handle>, path: Text) {
        module.wanted()?;
        let path = path.string()?;
        let bytes = std::fs::read(path).map_err(|_| CUresult::FILE_NOT_FOUND)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        // A binary has NULs of its own; its first word is enough to refuse it.
        let text = if BINARIES.iter().any(|magic| bytes.starts_with(magic)) { &bytes[..] } else { &bytes[..end] };
        load_and_report(module, text, None)
    }

    fn cuModuleLoadData(module: Out<Handle>, source: In<u8>) {
        load_and_report(module.wanted()?, &image(source)?, None)
    }

    fn cuModuleLoadDataEx(
        module: Out<Handle>,
        source: In<u8>,
        count: u32,
        options: In<u32>,
        values: Out<usize>,
    ) {
        let options = jit::Options::read(count, options, values)?;
        load_and_report(module.wanted()?, &image(source)?, Some(&options))
    }

    fn cuModuleLoadFatBinary(module: Out<Handle>, source: In<u8>) {
        load_and_report(module.wanted()?, &image(source)?, None)
    }

    fn cuModuleUnload(module: Handle) {
        let module = MODULES.remove(module).ok_or(CUresult::INVALID_HANDLE)?;
        module.discard();
        context::owner(module.context)?.check()
    }

    fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: Text) {
        function.wanted()?;
        let name = name.bytes()?;
        let module = find(module)?;
        context::owner(module.context)?.check()?;
        let found = module.functions.iter().find(|(known, _)| known.as_bytes() == name);
        function.set(found.ok_or(CUresult::NOT_FOUND)?.1)
    }

    fn cuModuleGetGlobal_v2(pointer: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) {
        let name = name.bytes()?;
        let module = find(module)?;
        context::owner(module.context)?.check()?;
        let found = module.variables.iter().find(|variable| variable.name.as_bytes() == name);
        let found = found.ok_or(CUresult::NOT_FOUND)?;
        pointer.set_if_wanted(found.pointer);
        bytes.set_if_wanted(usize::try_from(found.bytes).unwrap_or(usize::MAX));
        Ok(())
    }

    fn cuModuleGetFunctionCount(count: Out<u32>, module: Handle) {
        count.wanted()?;
        count.set(u32::try_from(find(module)?.functions.len()).unwrap_or(u32::MAX))
    }

    fn cuModuleEnumerateFunctions(functions: Out<Handle>, count: u32, module: Handle) {
        functions.wanted()?;
        let module = find(module)?;
        let wanted = module.functions.iter().take(count as usize).enumerate();
        wanted.into_iter().try_for_each(|(index, (_, function))| functions.set_at(index, *function))
    }

    fn cuModuleGetLoadingMode(mode: Out<u32>) {
        // CU_MODULE_EAGER_LOADING
        mode.set(1)
    }
}
