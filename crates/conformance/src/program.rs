//! The tiny kernel of a form: load the operands of a thread, execute, store the bits of its results.

use crate::{
    form::{Form, Level},
    inputs::Register,
};
use std::fmt::Write;

/// Threads of a block: four warps, so that barriers have something to do.
pub const BLOCK: u32 = 128;

/// Bytes of zeroed global memory that each thread has for itself, at `%memory`.
pub const MEMORY: u32 = 64;

/// Bytes of the parameter structure: inputs, outputs, memory, and the number of threads.
pub const ARGS_BYTES: usize = 32;

/// The entry's name in every program, with a number that makes it unique.
pub fn entry(number: usize) -> String {
    format!("conformance_{number}")
}

/// PTX of the program. Registers of its own begin with `%x_`, so bodies can name theirs as they like.
pub fn render(form: &Form, entry: &str) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, form, entry);
    text
}

fn write(text: &mut String, form: &Form, entry: &str) -> std::fmt::Result {
    let (version, target) = match form.level {
        Level::Sm80 => ("7.8", "sm_80"),
        Level::Sm90 => ("8.0", "sm_90"),
    };
    writeln!(text, ".version {version}\n.target {target}\n.address_size 64")?;
    writeln!(text, ".visible .entry {entry}(.param .align 8 .b8 args[{ARGS_BYTES}])\n.maxntid {BLOCK}, 1, 1\n{{")?;
    writeln!(text, "    .reg .b32 %thread, %lane, %x_block, %x_word;")?;
    writeln!(text, "    .reg .b64 %memory, %x_in, %x_out, %x_thread, %x_count, %x_at;")?;
    for (i, kind) in form.inputs.iter().enumerate() {
        writeln!(text, "    .reg .{} %a{i};", kind.register().name())?;
    }
    for (i, register) in form.outputs.iter().enumerate() {
        writeln!(text, "    .reg .{} %d{i};", register.name())?;
    }
    if form.shared > 0 {
        writeln!(text, "    .reg .b32 %tile;\n    .shared .align 128 .b8 shared_tile[{}];", form.shared)?;
    }
    if !form.declare.is_empty() {
        writeln!(text, "    {}", form.declare)?;
    }
    text.push_str(
        "    ld.param.u64 %x_in, [args];\n    ld.param.u64 %x_out, [args+8];\n    ld.param.u64 %memory, [args+16];\n    \
         ld.param.u64 %x_count, [args+24];\n    cvta.to.global.u64 %x_in, %x_in;\n    cvta.to.global.u64 %x_out, %x_out;\n    \
         cvta.to.global.u64 %memory, %memory;\n    mov.u32 %thread, %tid.x;\n    mov.u32 %lane, %laneid;\n    \
         mov.u32 %x_block, %ctaid.x;\n    cvt.u64.u32 %x_thread, %thread;\n",
    );
    writeln!(text, "    mad.wide.u32 %x_thread, %x_block, {BLOCK}, %x_thread;")?;
    writeln!(text, "    mad.lo.u64 %memory, %x_thread, {MEMORY}, %memory;")?;
    if form.shared > 0 {
        writeln!(text, "    mov.u32 %tile, shared_tile;")?;
    }
    // The arrays lie one after another, each with eight bytes for every thread.
    for (i, kind) in form.inputs.iter().enumerate() {
        address(text, "%x_in", kind.register(), i)?;
        match kind.register() {
            Register::B64 => writeln!(text, "    ld.global.b64 %a{i}, [%x_at];")?,
            Register::B32 => writeln!(text, "    ld.global.b32 %a{i}, [%x_at];")?,
            Register::B16 => writeln!(text, "    ld.global.b16 %a{i}, [%x_at];")?,
            Register::Pred => {
                writeln!(text, "    ld.global.b32 %x_word, [%x_at];\n    setp.ne.u32 %a{i}, %x_word, 0;")?;
            }
        }
    }
    for line in form.body.lines() {
        writeln!(text, "    {}", line.trim())?;
    }
    for (i, register) in form.outputs.iter().enumerate() {
        address(text, "%x_out", *register, i)?;
        match register {
            Register::B64 => writeln!(text, "    st.global.b64 [%x_at], %d{i};")?,
            Register::B32 => writeln!(text, "    st.global.b32 [%x_at], %d{i};")?,
            Register::B16 => writeln!(text, "    cvt.u32.u16 %x_word, %d{i};\n    st.global.b32 [%x_at], %x_word;")?,
            Register::Pred => {
                writeln!(text, "    selp.u32 %x_word, 1, 0, %d{i};\n    st.global.b32 [%x_at], %x_word;")?
            }
        }
    }
    writeln!(text, "    ret;\n}}")
}

fn address(text: &mut String, base: &str, register: Register, index: usize) -> std::fmt::Result {
    writeln!(text, "    mad.lo.u64 %x_at, %x_count, {}, {base};", 8 * index)?;
    writeln!(text, "    mad.lo.u64 %x_at, %x_thread, {}, %x_at;", register.bytes())
}
