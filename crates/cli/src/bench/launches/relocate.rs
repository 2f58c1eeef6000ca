//! From addresses of one process to numbers of buffers, which any process can put its own addresses in for.

use super::folder::Folder;
use crate::{CliError, Result};
use lookback_bench::{Role, Tensor};
use lookback_kernels::{Arg, KERNELS, Kernel};
use serde_json::{Value, json};

/// The memory of a case.
pub struct Buffers(Vec<Buffer>);

struct Buffer {
    base: u64,
    bytes: u64,
    /// Nothing is known of memory that an operation keeps to itself: a workspace.
    tensor: Option<Tensor>,
}

impl Buffers {
    /// What was allocated while a case was set up, with what is known of it.
    pub fn new(tensors: &[Tensor], setup: &[Value]) -> Self {
        let allocations = setup.iter().filter(|event| event["kind"] == "allocation");
        let buffer = |event: &Value| {
            let (base, bytes) = (event["pointer"].as_u64()?, event["bytes"].as_u64()?);
            let tensor = tensors.iter().find(|tensor| tensor.address == base).cloned();
            Some(Buffer { base, bytes, tensor })
        };
        Self(allocations.filter_map(buffer).collect())
    }

    /// Which buffer an address is in, and where; its end is in it too, as that of an empty tensor may be.
    fn place(&self, address: u64) -> Option<(usize, u64)> {
        let found = self.0.iter().position(|buffer| (buffer.base..=buffer.base + buffer.bytes).contains(&address))?;
        Some((found, address - self.0[found].base))
    }

    fn placed(&self, address: &Value) -> Result<Value> {
        let place = address.as_u64().and_then(|address| self.place(address));
        place.map(|(buffer, offset)| json!([buffer, offset])).ok_or_else(|| {
            CliError::Failed(format!("the address {address} is in no memory that the case allocated when it was made"))
        })
    }

    /// One thing that the emulator listed, without addresses. Contents and texts go to files.
    pub fn relocate(&self, mut event: Value, folder: &mut Folder) -> Result<Value> {
        if event["kind"] == "launch" {
            return self.launch(&event, folder);
        }
        for key in ["to", "from"] {
            if event[key].is_u64() {
                event[key] = self.placed(&event[key])?;
            }
        }
        if event["kind"] == "upload" {
            let contents = event["contents"].as_str().and_then(from_hex);
            let contents = contents.ok_or_else(|| {
                CliError::Failed("a case copies more from the host at once than the emulator keeps".into())
            })?;
            return Ok(json!({ "kind": "upload", "to": event["to"], "data": folder.write_data(&contents)? }));
        }
        Ok(event)
    }

    fn launch(&self, event: &Value, folder: &mut Folder) -> Result<Value> {
        let entry = event["entry"].as_str().unwrap_or_default();
        let Some(kernel) = KERNELS.iter().find(|kernel| kernel.entry == entry) else {
            return Err(CliError::Failed(format!("{entry} is no kernel of this program")));
        };
        let mut parameters = event["parameters"].as_str().and_then(from_hex).unwrap_or_default();
        let pointers = self.pointers(kernel, &mut parameters)?;
        Ok(json!({
            "kind": "launch",
            "entry": entry,
            "ptx": folder.write_kernel(kernel)?,
            "grid": event["grid"],
            "block": event["block"],
            "dynamic_shared": event["dynamic_shared"],
            "cooperative": event["cooperative"],
            "parameters": to_hex(&parameters),
            "pointers": pointers,
        }))
    }

    /// Where in the parameters which address belongs; there, they become zero. A parameter holds one structure of arguments or
    /// several, one after the other.
    fn pointers(&self, kernel: &Kernel, parameters: &mut [u8]) -> Result<Vec<Value>> {
        let failed = |why: String| CliError::Failed(format!("{}: {why}", kernel.entry));
        let (got, each) = (parameters.len(), structure_bytes(kernel));
        if got != kernel.args_bytes || !got.is_multiple_of(each) {
            return Err(failed(format!("{got} bytes of parameters, wanted are {}", kernel.args_bytes)));
        }
        let is_pointer = |arg: &&Arg| !arg.direction.is_empty();
        let mut pointers = Vec::new();
        for first in (0..got).step_by(each) {
            for arg in kernel.args.iter().filter(is_pointer) {
                let at = first + arg.offset;
                let field = parameters.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<8>());
                let field =
                    field.ok_or_else(|| failed(format!("argument {} is outside of its structure", arg.name)))?;
                let address = u64::from_le_bytes(std::mem::take(field));
                if address == 0 {
                    continue;
                }
                let (buffer, offset) = self.place(address).ok_or_else(|| {
                    failed(format!("argument {} is in no memory that the case allocated when it was made", arg.name))
                })?;
                pointers.push(json!({ "argument": arg.name, "at": at, "buffer": buffer, "offset": offset }));
            }
        }
        let (words, _) = parameters.as_chunks::<8>();
        match words.iter().position(|word| self.place(u64::from_le_bytes(*word)).is_some()) {
            None => Ok(pointers),
            Some(word) => Err(failed(format!("there is an address at byte {}, its contract says a number", 8 * word))),
        }
    }

    /// Sizes, and names where there are any.
    pub fn into_json(self) -> Value {
        let describe = |Buffer { bytes, tensor, .. }: Buffer| match tensor {
            Some(Tensor { name, role, dtype, shape, .. }) => {
                json!({ "name": name, "role": word(role), "bytes": bytes, "dtype": dtype, "shape": shape })
            }
            None => {
                json!({ "name": "workspace", "role": word(Role::Scratch), "bytes": bytes, "dtype": "u8", "shape": [bytes] })
            }
        };
        self.0.into_iter().map(describe).collect()
    }
}

/// Bytes of one structure of arguments, which are in the order of C.
fn structure_bytes(kernel: &Kernel) -> usize {
    let size = |arg: &Arg| if matches!(arg.ty, "u64" | "i64") { 8 } else { 4 };
    let end = kernel.args.iter().map(|arg| arg.offset + size(arg)).max().unwrap_or(0);
    end.next_multiple_of(kernel.args.iter().map(size).max().unwrap_or(1)).max(1)
}

fn word(role: Role) -> &'static str {
    match role {
        Role::Input => "input",
        Role::Output => "output",
        Role::Both => "both",
        Role::Scratch => "scratch",
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| 16 * high + low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers() -> Buffers {
        let tensor =
            Tensor { name: "b", role: Role::Input, address: 1 << 48, bytes: 64, dtype: "f32", shape: vec![16] };
        let setup = [
            json!({ "kind": "allocation", "pointer": 1_u64 << 48, "bytes": 64 }),
            json!({ "kind": "fill", "to": 1_u64 << 48 }),
            json!({ "kind": "allocation", "pointer": (1_u64 << 48) + (1 << 36), "bytes": 32 }),
        ];
        Buffers::new(&[tensor], &setup)
    }

    fn kernel() -> &'static Kernel {
        let kernel = lookback_kernels::find("linear_attention_chain", &[]).expect("it has pointers and strides");
        assert_eq!(kernel.args_bytes, 2 * structure_bytes(kernel), "two structures in one parameter");
        kernel
    }

    #[test]
    fn pointers_become_places_and_nothing_else_changes() {
        let each = structure_bytes(kernel());
        let mut parameters: Vec<u8> = (0..2 * each).map(|i| i as u8 | 1).collect();
        let args: Vec<_> = kernel().args.iter().filter(|arg| !arg.direction.is_empty()).collect();
        for first in [0, each] {
            for (i, arg) in args.iter().enumerate() {
                let address = match i {
                    0 => (1 << 48) + 8,
                    1 => (1 << 48) + (1 << 36),
                    2 if first > 0 => (1 << 48) + 64,
                    _ => 0_u64,
                };
                parameters[first + arg.offset..][..8].copy_from_slice(&address.to_le_bytes());
            }
        }
        let before = parameters.clone();
        let found = buffers().pointers(kernel(), &mut parameters).expect("addresses of the buffers");
        let place = |first: usize, i: usize, buffer: usize, offset: u64| json!({ "argument": args[i].name, "at": first + args[i].offset, "buffer": buffer, "offset": offset });
        let [first, second] = [0, each].map(|first| [place(first, 0, 0, 8), place(first, 1, 1, 0)]);
        assert_eq!(found, [&first[..], &second[..], &[place(each, 2, 0, 64)]].concat());
        let starts: Vec<usize> = found.iter().filter_map(|place| place["at"].as_u64()).map(|at| at as usize).collect();
        for (at, (was, is)) in before.iter().zip(&parameters).enumerate() {
            let inside = starts.iter().any(|start| (*start..start + 8).contains(&at));
            assert_eq!(*is, if inside { 0 } else { *was }, "byte {at}");
        }
    }

    #[test]
    fn an_address_of_nobody_and_one_that_hides_are_refused() {
        let mut parameters = vec![0; kernel().args_bytes];
        let of = |hidden: bool| {
            let mut args = kernel().args.iter().filter(|arg| arg.ty == if hidden { "i64" } else { "u64" });
            args.next().expect("a field of 8 bytes")
        };
        let outside = ((1_u64 << 48) + 65).to_le_bytes();
        parameters[of(false).offset..][..8].copy_from_slice(&outside);
        let refused = buffers().pointers(kernel(), &mut parameters).expect_err("one past the end");
        assert!(refused.to_string().contains(of(false).name), "{refused}");
        let mut parameters = vec![0; kernel().args_bytes];
        parameters[of(true).offset..][..8].copy_from_slice(&(1_u64 << 48).to_le_bytes());
        let refused = buffers().pointers(kernel(), &mut parameters).expect_err("a stride");
        assert!(refused.to_string().contains(&format!("at byte {},", of(true).offset)), "{refused}");
        assert!(buffers().pointers(kernel(), &mut [0; 4]).is_err(), "parameters of another kernel");
    }

    #[test]
    fn hexadecimal_is_read_or_refused() {
        assert_eq!(from_hex("00ff7a"), Some(vec![0, 255, 122]));
        assert_eq!(to_hex(&[0, 255, 122]), "00ff7a");
        assert_eq!((from_hex("0"), from_hex("0g"), from_hex("")), (None, None, Some(Vec::new())));
    }
}
