//! Running the program, and safetensors files for it.

use safetensors::{Dtype, SafeTensors, View};
use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A tensor of a test: element type, shape, bytes.
#[derive(Clone)]
pub struct T(pub Dtype, pub Vec<usize>, pub Vec<u8>);

impl T {
    /// f32 values.
    pub fn f32(shape: &[usize], values: &[f64]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        Self(Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect())
    }

    /// bf16 values.
    pub fn bf16(shape: &[usize], values: &[f64]) -> Self {
        Self(Dtype::BF16, shape.to_vec(), values.iter().flat_map(|v| half::bf16::from_f64(*v).to_le_bytes()).collect())
    }

    /// i32 values.
    pub fn i32(shape: &[usize], values: &[i32]) -> Self {
        Self(Dtype::I32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// u8 values.
    pub fn u8(shape: &[usize], values: &[u8]) -> Self {
        Self(Dtype::U8, shape.to_vec(), values.to_vec())
    }
}

impl View for &T {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.2)
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

/// A folder that is removed when the test ends.
pub struct Folder(PathBuf);

impl Folder {
    /// A new folder; `name` must be unique among the tests.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lookback-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temporary folder");
        Self(path)
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes tensors to a file of the folder.
    pub fn write(&self, name: &str, tensors: &[(&str, T)]) -> PathBuf {
        let map: HashMap<&str, &T> = tensors.iter().map(|(n, t)| (*n, t)).collect();
        let bytes = safetensors::serialize(map, None).expect("serialise");
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("write");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Float tensors of a file as f64, with their shapes.
pub fn read(path: &Path) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(path).expect("output file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    file.iter()
        .map(|(name, view)| {
            let values = match view.dtype() {
                Dtype::F32 => {
                    view.data().chunks(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
                }
                Dtype::BF16 => {
                    view.data().chunks(2).map(|b| f64::from(half::bf16::from_le_bytes([b[0], b[1]]))).collect()
                }
                other => panic!("unexpected output type {other:?}"),
            };
            (name.to_string(), (view.shape().to_vec(), values))
        })
        .collect()
}

/// The program: where cargo built it, or beside the tests' folder in a bundle.
pub fn command() -> Command {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_lookback"));
    let bundled = || Some(std::env::current_exe().ok()?.parent()?.parent()?.join("lookback"));
    let program = if built.exists() { built } else { bundled().expect("the program") };
    Command::new(program)
}

/// What the program did with these arguments.
pub fn lookback(args: &[&str]) -> Output {
    command().args(args).output().expect("the program runs")
}

/// Assets of the workspace, or of a bundle.
pub fn asset(name: &str) -> PathBuf {
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(name);
    if built.exists() { built } else { PathBuf::from("assets").join(name) }
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
