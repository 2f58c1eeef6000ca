//! What small listings count as.

use super::{class, class::Class, figures, kept, listing, listing::Listing};
use crate::row::Row;

/// A listing of these instructions, 16 bytes each.
fn listing(lines: &[&str]) -> Listing {
    let text: Vec<String> = lines.iter().enumerate().map(|(i, line)| format!("/*{:04x}*/ {line} ;", 16 * i)).collect();
    Listing { instructions: listing::instructions(&text.join("\n"), 0).expect("a listing"), tables: Vec::new() }
}

fn measured(lines: &[&str]) -> Row {
    let mut row = Row::default();
    figures::measure(&listing(lines), &mut row).expect("known instructions");
    row
}

fn of_class(line: &str) -> Class {
    class::of(&listing(&[line]).instructions[0]).expect(line)
}

#[test]
fn lines_are_read_with_guard_and_operands_and_headers_are_not() {
    let text = "\t.headerflags\t@\"EF_CUDA_SM90\"\n.L_x_1:\n  /*0010*/  @!P0 LDG.E.128 R4, desc[UR4][R2.64+0x10] ;  /* 0x00 */\n";
    let [only] = &listing::instructions(text, 0).expect("one")[..] else { panic!("not one instruction") };
    assert_eq!((only.address, only.guard.as_str(), only.opcode.as_str()), (16, "@!P0", "LDG.E.128"));
    assert_eq!(only.operands, "R4, desc[UR4][R2.64+0x10]");
    assert!(only.has("128") && !only.has("12") && only.stem() == "LDG");
    for wrong in ["/*zz*/ EXIT ;", "/*0010*/ 0x1234 ;", "/*0010*/ @P0 ;"] {
        assert!(listing::instructions(wrong, 0).is_err(), "{wrong}");
    }
}

#[test]
fn addresses_count_from_the_kernel_and_not_from_the_file() {
    let text = "/*0100*/ @P0 BRA 0x120 ;\n/*0110*/ IADD3 R1, R1, 0x120, RZ ;\n/*0120*/ EXIT ;";
    let found = listing::instructions(text, 0x100).expect("a listing");
    assert_eq!(found.iter().map(|i| i.address).collect::<Vec<_>>(), [0, 16, 32]);
    assert_eq!(found[0].operands, "0x20");
    assert_eq!(found[1].operands, "R1, R1, 0x120, RZ", "a constant is no address");
}

#[test]
fn classes_are_told_apart_by_opcode_and_width() {
    let cases = [
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", Class::Tensor),
        ("MUFU.EX2 R1, R2", Class::Mufu),
        ("FFMA R1, R2, R3, R4", Class::Float),
        ("IMAD.WIDE.U32 R2, R3, 0x4, R4", Class::Integer),
        ("LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", Class::Load(16)),
        ("LDG.E.U16 R4, desc[UR4][R2.64]", Class::Load(2)),
        ("STG.E.64 desc[UR4][R2.64], R4", Class::Store(8)),
        ("STG.E desc[UR4][R2.64], R4", Class::Store(4)),
        ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", Class::Copy(16)),
        ("LDSM.16.MT88.4 R4, [R1]", Class::Shared(16)),
        ("LDS.64 R4, [R1]", Class::Shared(8)),
        ("LDL R1, [R2]", Class::Local),
        ("STL.64 [R2], R4", Class::Local),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", Class::Barrier),
        ("MEMBAR.SC.GPU", Class::Fence),
        ("SHFL.BFLY PT, R1, R2, 0x10, 0x1f", Class::Lanes),
        ("NOP", Class::Nothing),
    ];
    for (line, class) in cases {
        assert_eq!(of_class(line), class, "{line}");
    }
    let unknown = class::of(&listing(&["FROB R1"]).instructions[0]).expect_err("not an opcode");
    assert!(unknown.contains("FROB R1"), "{unknown}");
}

#[test]
fn the_hottest_loop_is_the_one_with_tensor_operations() {
    let row = measured(&[
        "MOV R1, R2",
        // A loop that copies: 0x10 to 0x40.
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "STG.E desc[UR4][R6.64], R4",
        "ISETP.NE.AND P0, PT, R1, RZ, PT",
        "@P0 BRA 0x10",
        // A loop that multiplies: 0x50 to 0x90.
        "HMMA.16816.F32 R4, R8, R12, R4",
        "MUFU.EX2 R1, R2",
        "BAR.SYNC.DEFER_BLOCKING 0x0",
        "NOP",
        "@P1 BRA 0x50",
        "EXIT",
    ]);
    let figures = ["code", "loops", "loop", "loop tensor", "loop mufu", "loop barriers", "load 16", "store 4", "local"];
    assert_eq!(figures.map(|name| row.get(name)), [176, 2, 4, 1, 1, 1, 1, 1, 0]);
    assert_eq!(row.get("tensor HMMA.16816.F32"), 1);
    assert_eq!(row.get("narrow"), 200, "4 bytes of 20");
    // 4 instructions and 8 clocks of the special unit in 6.5 clocks of the tensor core.
    assert_eq!((row.get("issue pressure"), row.get("mufu pressure")), (10_000 * 4 / 65, 10_000 * 8 / 65));
}

#[test]
fn inner_loops_weigh_more_and_loops_that_wait_do_not_count() {
    let row = measured(&[
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "LDG.E R8, desc[UR4][R2.64]",
        "@P0 BRA 0x10",
        "LDG.E.STRONG.GPU R8, desc[UR4][R2.64]",
        "NANOSLEEP 0x20",
        "FADD R1, R1, R1",
        "FADD R1, R1, R1",
        "@P1 BRA 0x30",
        "@P2 BRA 0x0",
        "EXIT",
    ]);
    assert_eq!(row.get("loops"), 3);
    // One turn of 16 bytes and four of 4; the loop that waits is four more.
    assert_eq!(row.get("narrow"), 1000 * 32 / 48);
    assert_eq!(row.get("loop"), 2, "the loop at 0x10");
}

#[test]
fn code_without_a_loop_is_measured_as_a_whole() {
    let row = measured(&["LDG.E R1, desc[UR4][R2.64]", "STL [R1], R2", "EXIT"]);
    assert_eq!((row.get("loop"), row.get("asked"), row.get("local")), (0, 32 * 4, 1));
}

#[test]
fn control_goes_through_branches_tables_and_meeting_points() {
    let mut code = listing(&["LDC R4, c[0x2][R3+0x4]", "BRX R4 -0x20", "EXIT", "@P0 EXIT", "BRA 0x20"]);
    code.tables = vec![0, 0x30, 0x40];
    let steps = code.steps().expect("all known");
    assert_eq!(steps[1].targets, [3, 4]);
    assert_eq!((steps[2].falls, steps[3].falls, steps[4].falls), (false, true, false));
    assert_eq!(steps[4].targets, [2]);
    assert!(listing(&["BRA 0x500", "EXIT"]).steps().is_err(), "a branch to where nothing is");
    assert!(listing(&["BRX R4 -0x20"]).steps().is_err(), "a branch without a table");
    let meeting = listing(&["BSSY B0, 0x40", "@P0 BRA 0x30", "BSYNC B0", "BRA 0x20", "EXIT"]);
    assert_eq!(meeting.steps().expect("all known")[2].targets, [4]);
}

#[test]
fn a_kept_listing_is_for_its_key_only() {
    let path = std::env::temp_dir().join(format!("lookback-sass-{}.sass", std::process::id()));
    std::fs::write(&path, "// 00ab 10 2f\n/*0000*/ EXIT;").expect("a scratch file");
    let found = kept(&path, "00ab").expect("kept");
    assert_eq!((found.instructions.len(), found.tables), (1, vec![0x10, 0x2f]));
    assert!(kept(&path, "00ac").is_none());
    std::fs::remove_file(&path).expect("there");
    assert!(kept(&path, "00ab").is_none());
}
