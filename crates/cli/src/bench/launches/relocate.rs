//! From addresses of one process to numbers of buffers, which any process can put its own addresses in for.

use super::folder::Folder;
use crate::{CliError, Result};
use lookback_bench::{Role, Tensor};
use lookback_kernels::{KERNELS, Kernel};
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

    /// Where in a parameter structure which address belongs; there, the structure becomes zero.
    fn pointers(&self, kernel: &Kernel, parameters: &mut [u8]) -> Result<Vec<Value>> {
        let failed = |arg: &str, why: &str| CliError::Failed(format!("{}: argument {arg} {why}", kernel.entry));
        let mut pointers = Vec::new();
        for arg in kernel.args.iter().filter(|arg| matches!(arg.ty, "u64" | "i64")) {
            let field = parameters.get_mut(arg.offset..).and_then(|rest| rest.first_chunk_mut::<8>());
            let field = field.ok_or_else(|| failed(arg.name, "is outside of what was launched"))?;
            let value = u64::from_le_bytes(*field);
            match (arg.direction, self.place(value)) {
                ("", None) => {}
                ("", Some(_)) => return Err(failed(arg.name, "is an address, its contract says a number")),
                (_, _) if value == 0 => {}
                (_, None) => return Err(failed(arg.name, "is in no memory that the case allocated when it was made")),
                (_, Some((buffer, offset))) => {
                    *field = [0; 8];
                    pointers.push(json!({
                        "argument": arg.name, "at": arg.offset, "buffer": buffer, "offset": offset,
                    }));
                }
            }
        }
        Ok(pointers)
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
        lookback_kernels::find("gated_scan_fwd", &[]).expect("a kernel with pointers and strides")
    }

    #[test]
    fn pointers_become_places_and_nothing_else_changes() {
        let mut parameters: Vec<u8> = (0..kernel().args_bytes).map(|i| i as u8 | 1).collect();
        let is_pointer = |arg: &&lookback_kernels::Arg| !arg.direction.is_empty();
        let args: Vec<_> = kernel().args.iter().filter(is_pointer).collect();
        for (i, arg) in args.iter().enumerate() {
            let address = match i {
                0 => (1 << 48) + 8,
                1 => (1 << 48) + (1 << 36),
                2 => (1 << 48) + 64,
                _ => 0_u64,
            };
            parameters[arg.offset..arg.offset + 8].copy_from_slice(&address.to_le_bytes());
        }
        let before = parameters.clone();
        let found = buffers().pointers(kernel(), &mut parameters).expect("addresses of the buffers");
        let place = |i: usize, buffer: usize, offset: u64| json!({ "argument": args[i].name, "at": args[i].offset, "buffer": buffer, "offset": offset });
        assert_eq!(found, [place(0, 0, 8), place(1, 1, 0), place(2, 0, 64)]);
        for (at, (was, is)) in before.iter().zip(&parameters).enumerate() {
            let inside = args[..3].iter().any(|arg| (arg.offset..arg.offset + 8).contains(&at));
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
        assert!(refused.to_string().contains("its contract says a number"), "{refused}");
        assert!(buffers().pointers(kernel(), &mut [0; 4]).is_err(), "parameters of another kernel");
    }

    #[test]
    fn hexadecimal_is_read_or_refused() {
        assert_eq!(from_hex("00ff7a"), Some(vec![0, 255, 122]));
        assert_eq!(to_hex(&[0, 255, 122]), "00ff7a");
        assert_eq!((from_hex("0"), from_hex("0g"), from_hex("")), (None, None, Some(Vec::new())));
    }
}
