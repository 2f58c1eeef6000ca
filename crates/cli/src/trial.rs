//! `lookback run` on bytes instead of files, in a process that goes on: for tests and for fuzzing.

use crate::{
    CliError, Result,
    ops::{self, Inputs},
    session::Session,
    tensor,
};
use lookback_device::{
    DType, DevicePick,
    cudarc::driver::{CudaContext, CudaStream},
};
use std::sync::Arc;

/// A device that operations are run on.
pub struct Trial {
    session: Session,
}

/// What a user may write: the name of an operation, its attributes and its file.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The operation.
    pub operation: &'static str,
    /// What is special about it.
    pub case: String,
    /// `key=value`
    pub attributes: Vec<String>,
    /// A safetensors file.
    pub file: Vec<u8>,
}

/// What `lookback check` runs in 16 bits, or in 32 what is there in those alone.
///
/// # Errors
/// [`CliError::Failed`], if a case is no safetensors file.
pub fn samples() -> Result<Vec<Sample>> {
    let mut all = Vec::new();
    for operation in ops::ALL {
        let small = (operation.cases)(DType::F16);
        let cases = if small.is_empty() { (operation.cases)(DType::F32) } else { small };
        for case in cases {
            let file = tensor::serialize(&case.tensors).map_err(|e| CliError::Failed(format!("{}: {e}", case.name)))?;
            all.push(Sample { operation: operation.name, case: case.name, attributes: case.attributes, file });
        }
    }
    Ok(all)
}

impl Trial {
    /// Opens the device.
    ///
    /// # Errors
    /// Those of [`lookback_device::open`].
    pub fn open(pick: DevicePick) -> Result<Self> {
        Ok(Self { session: Session::open(pick)? })
    }

    /// The context that operations run in.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.session.context
    }

    /// The stream that they run on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.session.stream
    }

    /// The file that `lookback run` would write.
    ///
    /// # Errors
    /// Those of `lookback run`.
    pub fn run(&self, operation: &str, file: &[u8], attributes: &[String]) -> Result<Vec<u8>> {
        let operation = ops::find(operation)?;
        let inputs = Inputs::new(operation, tensor::parse("the file", file)?, attributes)?;
        let outputs = (operation.run)(&self.session, &inputs)?;
        tensor::serialize(&outputs).map_err(|e| CliError::Failed(e.to_string()))
    }
}
