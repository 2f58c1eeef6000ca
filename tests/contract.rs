//! A kernel whose text and contract disagree does not build, and the error names the file and the line.

use crate::build::{self, Error, Source, render_all};
use std::fs;

const GOOD: &str = r#"//! kernel    scale                                    abi 1
//! entry     scale_${dtype}_v${vec}_sm80
//! does      y = x s
//! oracle    none
//! variant   dtype     f32 f16
//! variant   vec       1 2
//! skip      dtype == "f16" and vec == 1
//! target    sm_80     version 7.0
//! arg       n         u32
//! arg       p_x       u64  in   T[n]
//! arg       s         f32
//! launch    block (128,1,1)  grid (n/128,1,1)  min_ctas 2  dynamic_smem 0  cluster 1  coop no
//! alias     none
//! writes    y
//! nan       passes
//! order     none
//! error     rel 5e-6
//! budget    regs 16  spills 0  smem 0
//! cost      2 n
//! sync      none
//!           on two lines
//! source    none
.version ${ptx_version}
.target ${target}
.address_size 64

.visible .entry ${entry}(.param .align 8 .b8 args[${args_bytes}])
.maxntid ${block_x}, 1, 1
.minnctapersm ${min_ctas}
{
    .reg .u64 %p_x;
    .reg .u32 %n;
    .reg .f32 %s;
    ld.param.u64 %p_x, [args+${arg.p_x}];
    ld.param.u32 %n, [args+${arg.n}];
    ld.param.f32 %s, [args+${arg.s}];
    //% for i in range(vec)
    add.u32 %n, %n, ${i};
    //% endfor
    ret;
}
"#;

fn render(text: &str) -> Result<Vec<String>, Vec<Error>> {
    let source = Source { file: "kernels/x/scale.ptx".into(), family: "x".into(), text: text.into() };
    Ok(render_all(&[], &[source])?.into_iter().map(|r| r.ptx).collect())
}

/// The one error of the kernel with `from` replaced by `to`.
fn error_of(from: &str, to: &str) -> Error {
    assert!(GOOD.contains(from), "`{from}` is not in the kernel");
    let errors = render(&GOOD.replacen(from, to, 1)).expect_err(&format!("`{from}` -> `{to}` must not build"));
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.into_iter().next().expect("one error")
}

#[test]
fn every_variant_that_is_not_skipped_is_rendered() {
    let texts = render(GOOD).expect("the kernel is right");
    assert_eq!(texts.len(), 3);
    for (text, entry) in texts.iter().zip(["scale_f32_v1_sm80", "scale_f32_v2_sm80", "scale_f16_v2_sm80"]) {
        assert!(text.contains(&format!(".entry {entry}(.param .align 8 .b8 args[24])")), "{text}");
        // The u64 stands after a u32: its offset is 8, as in a #[repr(C)] structure.
        assert!(text.contains("%p_x, [args+8]") && text.contains("%s, [args+16]"), "{text}");
    }
    assert_eq!(texts[1].matches("add.u32").count(), 2);
}

#[test]
fn a_broken_contract_names_file_and_line() {
    let cases = [
        ("//! oracle    none\n", "", 22 - 1, "no `oracle` line"),
        ("//! kernel    scale", "//! colonel   scale", 1, "unknown contract key `colonel`"),
        ("//! nan       passes\n", "//! nan       passes\n//! alias     x\n", 16, "`alias` stands after `nan`"),
        ("//! nan       passes\n", "//! nan       passes\n//! nan       x\n", 16, "`nan` stands twice"),
        ("//! writes    y", "//! writes", 14, "`writes` is empty"),
        ("//! variant   vec       1 2", "//! variant   vec", 6, "no values"),
        ("spills 0", "spills 8", 18, "spills 0"),
        ("regs 16", "registers 16", 18, "regs"),
        ("//! arg       s         f32", "//! arg       s         f64", 11, "f64"),
        ("//! arg       s         f32", "//! arg       n         f32", 11, "argument `n` twice"),
        ("p_x       u64  in  ", "p_x       u64", 10, "in, out, inout or scratch"),
        ("block (128,1,1)", "block 128", 12, "block"),
        ("coop no", "coop maybe", 12, "coop yes|no"),
        ("sm_80     version 7.0", "sm_x      version 7.0", 8, "sm_<number>"),
        ("sm_80     version 7.0", "sm_80     version seven", 8, "version"),
    ];
    for (from, to, line, message) in cases {
        let error = error_of(from, to);
        assert_eq!((error.file.as_str(), error.line), ("kernels/x/scale.ptx", line), "{from:?} -> {to:?}: {error}");
        assert!(error.message.contains(message), "{error} does not say `{message}`");
    }
}

#[test]
fn a_text_that_is_not_its_contract_names_the_line() {
    let cases = [
        ("    ld.param.f32 %s, [args+${arg.s}];\n", "", 11, "argument `s` is not read"),
        ("[args+${arg.s}]", "[args+${arg.z}]", 36, "undefined"),
        (".entry ${entry}(", ".entry scaled(", 2, "args[24]"),
        ("args[${args_bytes}]", "args[16]", 2, "args[24]"),
        (".maxntid ${block_x}, 1, 1", ".maxntid 64, 1, 1", 12, ".maxntid 128, 1, 1"),
        (".minnctapersm ${min_ctas}", ".minnctapersm 1", 12, ".minnctapersm 2"),
        (".target ${target}", ".target sm_90", 8, ".target sm_80"),
        ("//% for i in range(vec)", "//% for i in range(width)", 37, "undefined"),
        ("//% endfor", "//% endfo", 39, "endfo"),
        ("\"f16\" and vec", "\"f16\" und vec", 7, "skip"),
        ("scale_${dtype}_v${vec}_sm80", "scale_${dtype}_sm80", 2, "rendered twice"),
    ];
    for (from, to, line, message) in cases {
        let error = error_of(from, to);
        assert_eq!(error.line, line, "{from:?} -> {to:?}: {error}");
        assert!(error.to_string().contains(message), "{error} does not say `{message}`");
    }
}

#[test]
fn an_error_in_a_macro_names_the_macro_file() {
    let macros =
        [("tile/m.ptx".to_string(), "//% macro m(x)\n    mov.u32 ${ x }, ${ y };\n//% endmacro\n".to_string())];
    let text = GOOD.replace("    //% for i", "    //% from \"tile/m.ptx\" import m\n    ${ m(\"%n\") }\n    //% for i");
    let source = Source { file: "kernels/x/scale.ptx".into(), family: "x".into(), text };
    let errors = render_all(&macros, &[source]).expect_err("`y` is not defined");
    assert!(errors[0].to_string().starts_with("kernels/tile/m.ptx:2: "), "{}", errors[0]);
}

#[test]
fn a_kernel_without_a_contract_does_not_build() {
    let errors = render(".version 7.0\n").expect_err("no contract");
    assert_eq!((errors[0].line, errors[0].message.contains("no contract block")), (1, true));
}

#[test]
fn the_registry_holds_texts_and_padded_structures() {
    let dir = std::env::temp_dir().join(format!("lookback-contract-{}", std::process::id()));
    let (kernels, out) = (dir.join("kernels"), dir.join("out"));
    for folder in [&kernels.join("x"), &kernels.join("tile"), &out] {
        fs::create_dir_all(folder).expect("temporary folder");
    }
    fs::write(kernels.join("x/scale.ptx"), GOOD).expect("temporary file");
    fs::write(kernels.join("tile/m.ptx"), "//% macro m()\n//% endmacro\n").expect("temporary file");
    build::registry(&kernels, &out).expect("the kernel is right");
    let registry = fs::read_to_string(out.join("registry.rs")).expect("registry");
    for line in [
        "pub struct Scale {",
        "pub n: u32,",
        "pub _pad4: [u8; 4],",
        "pub p_x: u64,",
        "pub s: f32,",
        "pub _pad20: [u8; 4],",
    ] {
        assert!(registry.contains(line), "no `{line}` in\n{registry}");
    }
    assert_eq!(registry.matches("Kernel { name: \"scale\", family: \"x\"").count(), 3);
    assert!(fs::read_to_string(out.join("scale_f16_v2_sm80.ptx")).is_ok_and(|t| t.contains(".version 7.0")));
    fs::write(kernels.join("x/scale.ptx"), GOOD.replace("coop no", "")).expect("temporary file");
    let errors = build::registry(&kernels, &out).expect_err("no coop");
    assert!(
        errors[0].to_string().ends_with("x/scale.ptx:12: `launch` wants `coop yes|no`, got nothing"),
        "{}",
        errors[0]
    );
    fs::remove_dir_all(&dir).expect("temporary folder");
}
