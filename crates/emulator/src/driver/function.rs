//! Kernels of loaded modules and their attributes.

use super::api::api;
use super::args::Out;
use super::attributes::DEFAULT_BLOCK_SHARED;
use super::context;
use super::errors::{CUresult, Outcome};
use super::handles::{Handle, Kind, Table};
use crate::decode::Program;
use crate::launch::{MAX_BLOCK_SHARED, MAX_BLOCK_THREADS};
use crate::ptx::ast;
use std::ffi::{CString, c_char};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

static FUNCTIONS: Table<Function> = Table::new(Kind::Function);

/// `CUfunction_attribute`
const MAX_THREADS: u32 = 0;
const STATIC_SHARED: u32 = 1;
const CONSTANT: u32 = 2;
const LOCAL: u32 = 3;
const REGISTERS: u32 = 4;
const PTX_VERSION: u32 = 5;
const BINARY_VERSION: u32 = 6;
const CACHE_MODE: u32 = 7;
const MAX_DYNAMIC_SHARED: u32 = 8;
const CARVEOUT: u32 = 9;
const CLUSTER_MUST_BE_SET: u32 = 10;
const CLUSTER_WIDTH: u32 = 11;
const CLUSTER_DEPTH: u32 = 13;
const NON_PORTABLE_CLUSTER: u32 = 14;
const CLUSTER_POLICY: u32 = 15;

/// What hardware gives a thread at most.
const MAX_REGISTERS: u32 = 255;

/// A kernel parameter's place in the parameter block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameter {
    /// First byte.
    pub(super) offset: usize,
    /// Bytes.
    pub(super) bytes: usize,
}

/// A kernel.
#[derive(Debug)]
pub(super) struct Function {
    module: Handle,
    context: Handle,
    name: CString,
    /// Its code.
    pub(super) program: Program,
    /// Its parameters in order.
    pub(super) parameters: Vec<Parameter>,
    /// Shape of the cluster that it must run in, if it says one.
    pub(super) cluster: Option<[u32; 3]>,
    constant_bytes: u64,
    max_registers: u32,
    max_dynamic: AtomicU32,
    carveout: AtomicI32,
    cache_config: AtomicU32,
}

impl Function {
    /// The kernel that `program` was decoded from.
    pub(super) fn new(
        module: Handle,
        context: Handle,
        text: &ast::Module,
        entry: &ast::Entry,
        program: Program,
    ) -> Self {
        let constants = text.globals.iter().filter(|global| global.space == ast::GlobalSpace::Const);
        let place = |param: &ast::Param| Parameter { offset: param.offset as usize, bytes: param.bytes as usize };
        let directives = &entry.directives;
        let cluster = directives.reqnctapercluster.filter(|shape| *shape != [1; 3]);
        let default_dynamic = DEFAULT_BLOCK_SHARED.saturating_sub(program.static_shared_bytes());
        Self {
            module,
            context,
            // A name of the PTX grammar has no NUL.
            name: CString::new(entry.name.as_str()).unwrap_or_default(),
            parameters: entry.params.iter().map(place).collect(),
            cluster: cluster.or(directives.explicitcluster.then_some([0; 3])),
            constant_bytes: constants.map(|global| global.bytes).sum(),
            max_registers: directives.maxnreg.unwrap_or(MAX_REGISTERS).min(MAX_REGISTERS),
            max_dynamic: AtomicU32::new(default_dynamic),
            carveout: AtomicI32::new(-1),
            cache_config: AtomicU32::new(0),
            program,
        }
    }

    /// Name as in the text.
    pub(super) fn name(&self) -> &str {
        self.program.name()
    }

    /// Most dynamic shared memory that a launch may ask for now.
    pub(super) fn max_dynamic(&self) -> u32 {
        self.max_dynamic.load(Ordering::Relaxed)
    }

    /// Most threads of a block that the text allows.
    pub(super) fn max_threads(&self) -> u32 {
        let bound = self.program.required_block().or(self.program.max_threads());
        let product = |[x, y, z]: [u32; 3]| x.saturating_mul(y).saturating_mul(z);
        bound.map_or(MAX_BLOCK_THREADS, product).min(MAX_BLOCK_THREADS)
    }

    /// An estimate of the registers that a compiler would give a thread.
    fn registers(&self) -> u32 {
        self.program.registers().min(self.max_registers)
    }

    fn attribute(&self, attribute: u32) -> Outcome<i32> {
        let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        Ok(match attribute {
            MAX_THREADS => number(self.max_threads()),
            STATIC_SHARED => number(self.program.static_shared_bytes()),
            CONSTANT => i32::try_from(self.constant_bytes).unwrap_or(i32::MAX),
            LOCAL | CACHE_MODE => 0,
            REGISTERS => number(self.registers()),
            PTX_VERSION => number(self.program.target().capability),
            BINARY_VERSION => 90,
            MAX_DYNAMIC_SHARED => number(self.max_dynamic()),
            CARVEOUT => self.carveout.load(Ordering::Relaxed),
            CLUSTER_MUST_BE_SET => i32::from(self.cluster == Some([0; 3])),
            CLUSTER_WIDTH..=CLUSTER_DEPTH => {
                number(self.cluster.unwrap_or([0; 3])[(attribute - CLUSTER_WIDTH) as usize])
            }
            NON_PORTABLE_CLUSTER | CLUSTER_POLICY => 0,
            _ => return Err(CUresult::INVALID_VALUE),
        })
    }

    fn set_attribute(&self, attribute: u32, value: i32) -> Outcome {
        match attribute {
            MAX_DYNAMIC_SHARED => {
                let room = MAX_BLOCK_SHARED.saturating_sub(self.program.static_shared_bytes());
                let value = u32::try_from(value).ok().filter(|bytes| *bytes <= room);
                self.max_dynamic.store(value.ok_or(CUresult::INVALID_VALUE)?, Ordering::Relaxed);
                Ok(())
            }
            CARVEOUT if (-1..=100).contains(&value) => {
                self.carveout.store(value, Ordering::Relaxed);
                Ok(())
            }
            // Clusters larger than one CTA are not emulated, so these can only be left as they are.
            CLUSTER_WIDTH..=CLUSTER_POLICY if value == 0 => Ok(()),
            CLUSTER_WIDTH..=CLUSTER_POLICY => Err(CUresult::NOT_SUPPORTED),
            _ => Err(CUresult::INVALID_VALUE),
        }
    }
}

/// Make a kernel live.
pub(super) fn insert(function: Function) -> Handle {
    let handle = FUNCTIONS.reserve();
    FUNCTIONS.insert(handle, function);
    handle
}

/// Its module is gone.
pub(super) fn forget(function: Handle) {
    FUNCTIONS.remove(function);
}

/// The kernel of that handle, if its context works.
pub(super) fn find(function: Handle) -> Outcome<Arc<Function>> {
    let function = FUNCTIONS.get(function).ok_or(CUresult::INVALID_HANDLE)?;
    context::owner(function.context)?.check()?;
    Ok(function)
}

api! {
    fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, function: Handle) {
        value.wanted()?;
        value.set(find(function)?.attribute(attribute)?)
    }

    fn cuFuncSetAttribute(function: Handle, attribute: u32, value: i32) {
        find(function)?.set_attribute(attribute, value)
    }

    fn cuFuncSetCacheConfig(function: Handle, config: u32) {
        if config > 3 {
            return Err(CUresult::INVALID_VALUE);
        }
        find(function)?.cache_config.store(config, Ordering::Relaxed);
        Ok(())
    }

    fn cuFuncSetSharedMemConfig(function: Handle, config: u32) {
        find(function)?;
        // Bank width is fixed since long ago; the call remains for old programs.
        if config > 2 { Err(CUresult::INVALID_VALUE) } else { Ok(()) }
    }

    fn cuFuncGetModule(module: Out<Handle>, function: Handle) {
        module.wanted()?;
        module.set(find(function)?.module)
    }

    fn cuFuncGetName(name: Out<*const c_char>, function: Handle) {
        name.wanted()?;
        // The text lives as long as the module, as the driver documents.
        name.set(find(function)?.name.as_ptr())
    }

    fn cuFuncGetParamCount(function: Handle, count: Out<usize>) {
        count.wanted()?;
        count.set(find(function)?.parameters.len())
    }

    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: Out<usize>, bytes: Out<usize>) {
        offset.wanted()?;
        let function = find(function)?;
        let parameter = function.parameters.get(index).ok_or(CUresult::INVALID_VALUE)?;
        offset.set(parameter.offset)?;
        bytes.set_if_wanted(parameter.bytes);
        Ok(())
    }

    fn cuFuncIsLoaded(state: Out<u32>, function: Handle) {
        state.wanted()?;
        find(function)?;
        // CU_FUNCTION_LOADING_STATE_LOADED
        state.set(1)
    }

    fn cuFuncLoad(function: Handle) {
        find(function).map(drop)
    }
}
