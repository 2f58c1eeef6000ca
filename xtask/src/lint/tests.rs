//! Every rule sees a violation that was put in, and lets the right way pass.

use super::*;
use lookback_kernels::Arg;

const ARGS: [Arg; 3] = [argument("p_in", "in", 0), argument("p_out", "out", 8), argument("p_flag", "scratch", 16)];

const fn argument(name: &'static str, direction: &'static str, offset: usize) -> Arg {
    Arg { name, ty: "u64", direction, detail: "", offset }
}

fn kernel() -> Kernel {
    Kernel { name: "k", entry: "k", args: &ARGS, ..KERNELS[0] }
}

/// What all rules say of a body.
fn all(body: &str) -> Findings {
    let text = format!(
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .align 8 .b8 args[24])\n{{\n\
         .shared .align 16 .b8 tile[512];\n.reg .pred %p, %q;\n.reg .u32 %a, %b, %thread, %at;\n.reg .u64 %in, %out, %flag;\n\
         ld.param.u64 %in, [args+0];\nld.param.u64 %out, [args+8];\nld.param.u64 %flag, [args+16];\n\
         mov.u32 %thread, %tid.x;\nmov.u32 %at, tile;\n{body}\n}}\n"
    );
    of_text(&text, &kernel()).unwrap_or_else(|e| panic!("{e} in\n{text}"))
}

/// What one rule says of a body.
fn found(rule: &str, body: &str) -> Vec<Finding> {
    assert!(RULES.iter().any(|(name, ..)| *name == rule), "{rule}");
    all(body).into_iter().filter(|(name, _)| *name == rule).flat_map(|(_, found)| found).collect()
}

fn assert_told_apart(rule: &str, wrong: &[&str], right: &[&str]) {
    for body in wrong {
        assert_eq!(found(rule, body).len(), 1, "{rule} misses the mistake in\n{body}");
    }
    for body in right {
        assert_eq!(found(rule, body), [], "{rule} in\n{body}");
    }
}

#[test]
fn a_loop_that_waits_reads_with_acquire() {
    let turn = |load: &str| format!("L:\n{load} %a, [%flag];\nsetp.eq.u32 %p, %a, 0;\n@%p bra L;\nret;");
    let counted =
        "mov.u32 %b, 0;\nL:\nld.global.u32 %a, [%in];\nadd.u32 %b, %b, %a;\nsetp.lt.u32 %p, %b, 9;\n@%p bra L;\nret;";
    let sleeping = "mov.u32 %b, 0;\nL:\nld.global.u32 %a, [%in];\nnanosleep.u32 32;\nadd.u32 %b, %b, %a;\nsetp.lt.u32 %p, %b, 9;\n@%p bra L;\nret;";
    let wrong = [turn("ld.global.u32"), turn("ld.relaxed.gpu.global.u32"), sleeping.to_string()];
    assert_told_apart("wait", &wrong.each_ref().map(String::as_str), &[&turn("ld.acquire.gpu.global.u32"), counted]);
}

#[test]
fn atomics_are_ordered_or_come_first() {
    let bare = "atom.relaxed.gpu.global.inc.u32 %a, [%flag], %thread;";
    let (store, fence) = ("st.global.u32 [%out], %thread;", "fence.acq_rel.gpu;");
    assert_told_apart(
        "atomic",
        &[&format!("{store}\n{bare}\nret;"), "red.relaxed.gpu.global.add.u32 [%flag], 1;\nret;"],
        &[
            &format!("{bare}\n{store}\nret;"),
            &format!("{store}\n{fence}\n{bare}\n{fence}\nret;"),
            &format!("{store}\natom.acq_rel.gpu.global.inc.u32 %a, [%flag], %thread;\nret;"),
            "red.release.gpu.global.add.u32 [%flag], 1;\nret;",
        ],
    );
}

#[test]
fn a_barrier_lies_between_stores_and_release_and_between_acquire_and_loads() {
    let release = "st.release.gpu.global.u32 [%flag], 1;\nret;";
    let store = "st.global.u32 [%out], %thread;";
    let one_way = format!("setp.eq.u32 %p, %thread, 0;\n{store}\n@%p bra L;\nbar.sync 0;\nL:\n{release}");
    assert_told_apart(
        "release",
        &[&format!("{store}\n{release}"), &one_way],
        &[&format!("{store}\nbar.sync 0;\n{release}"), &format!("{store}\nbar.warp.sync 0xffffffff;\n{release}")],
    );
    let (acquire, load) = ("ld.acquire.gpu.global.u32 %a, [%flag];", "ld.global.u32 %b, [%in];\nret;");
    assert_told_apart("acquire", &[&format!("{acquire}\n{load}")], &[&format!("{acquire}\nbar.sync 0;\n{load}")]);
}

#[test]
fn copies_are_committed_waited_for_and_met() {
    let copy = "cp.async.cg.shared.global [%at], [%in], 16;";
    let (commit, wait) = ("cp.async.commit_group;", "cp.async.wait_group 0;");
    let read = "ld.shared.u32 %a, [%at];\nret;";
    let unwaited = format!("{copy}\n{commit}\nret;");
    let looped = format!("L:\n{copy}\n{commit}\nsetp.eq.u32 %p, %thread, 0;\n@%p bra L;\n{wait}\nret;");
    assert_told_apart(
        "commit",
        &[&format!("{copy}\n{wait}\nret;"), &unwaited],
        &[&format!("{copy}\n{commit}\n{wait}\nret;"), &format!("{copy}\ncp.async.wait_all;\nret;"), &looped],
    );
    let waited = format!("{copy}\n{commit}\n{wait}");
    assert_told_apart("copy-barrier", &[&format!("{waited}\n{read}")], &[&format!("{waited}\nbar.sync 0;\n{read}")]);
}

#[test]
fn the_async_proxy_sees_stores_after_a_fence() {
    let store = "st.shared.u32 [%at], %thread;";
    let bulk = "cp.async.bulk.global.shared::cta.bulk_group [%out], [%at], 512;\nret;";
    let fenced = format!("{store}\nfence.proxy.async.shared::cta;\n{bulk}");
    assert_told_apart("proxy", &[&format!("{store}\n{bulk}")], &[&fenced, bulk]);
}

#[test]
fn spaces_are_named_and_constants_are_no_divisors() {
    assert_told_apart(
        "space",
        &["ld.u32 %a, [%in];\nret;", "cvta.global.u64 %in, %in;\nret;"],
        &["ld.global.u32 %a, [%in];\ncvta.to.global.u64 %in, %in;\nret;"],
    );
    assert_told_apart(
        "division",
        &["div.u32 %a, %thread, 3;\nret;", "rem.s32 %a, %thread, 3;\nret;"],
        &["div.u32 %a, %thread, %b;\nret;", "div.rn.f32 %a, %thread, 0f40400000;\nret;"],
    );
}

#[test]
fn registers_and_labels_that_nothing_uses_are_named() {
    let messages = |body: &str| found("unused", body).into_iter().map(|f| f.message).collect::<Vec<_>>();
    let used = "add.u32 %a, %b, %thread;\nst.shared.u32 [%at], %a;\nsetp.eq.u32 %p, %a, 0;\nsetp.eq.and.u32 %q, %a, 0, %p;\nst.global.u32 [%in], %a;\nst.global.u32 [%out], %a;\nst.global.u32 [%flag], %a;\n";
    assert_eq!(messages(&format!("{used}@%q bra L;\nL:\nret;")), [] as [String; 0]);
    assert_eq!(messages(&format!("{used}L:\nret;")), ["`%q` is never read", "nothing jumps to `L`"]);
}

#[test]
fn unused_is_what_no_variant_of_a_kernel_uses() {
    let (one, other) = (kernel(), Kernel { name: "other", ..kernel() });
    let of = |names: &[&str]| {
        let found = names.iter().map(|n| Finding { line: 0, message: n.to_string() }).collect();
        vec![(UNUSED, found), ("space", vec![Finding { line: 1, message: "generic".into() }])]
    };
    let mut all = vec![(&one, of(&["a", "b"])), (&one, of(&["b", "c"])), (&other, of(&["a"]))];
    keep_what_no_variant_uses(&mut all);
    assert_eq!(all.iter().map(|(_, found)| found.clone()).collect::<Vec<_>>(), [of(&["b"]), of(&["b"]), of(&["a"])]);
}

#[test]
fn pointers_are_used_as_the_contract_says() {
    assert_told_apart(
        "pointer",
        &[
            "st.global.u32 [%in], %thread;\nret;",
            "ld.global.nc.u32 %a, [%out];\nret;",
            "add.u64 %in, %in, 16;\nmov.u64 %flag, %in;\nmov.u64 %out, 0;\nst.global.u32 [%in+4], %thread;\nret;",
        ],
        &["ld.global.nc.u32 %a, [%in];\nst.global.u32 [%out], %a;\nst.global.u32 [%flag], %a;\nret;"],
    );
}

#[test]
fn barriers_stand_where_all_threads_come() {
    let parted = "setp.lt.u32 %p, %thread, 7;\n@%p bra L;\n";
    let looped =
        |end: &str| format!("L:\nadd.u32 %thread, %thread, 32;\nsetp.lt.u32 %p, %thread, 700;\n@%p bra L;\n{end}");
    // The loop at the end has no way out but the end itself.
    let last = "M:\nadd.u32 %b, %thread, %b;\nsetp.lt.u32 %q, %b, 9;\n@%q bra DONE;\nbra M;\nDONE:\nret;";
    assert_told_apart(
        "uniform",
        &[
            &format!("{parted}bar.sync 0;\nL:\nst.shared.u32 [%at], %thread;\nret;"),
            "setp.lt.u32 %p, %thread, 7;\n@%p bar.sync 0;\nret;",
            &format!(
                "ld.shared.u32 %a, [%at];\nadd.u32 %at, %at, %thread;\nld.shared.u32 %b, [%at];\nsetp.eq.u32 %q, %b, 0;\n@%q bra L;\nbar.sync 0;\nL:\nst.shared.u32 [%at], %b;\n{last}"
            ),
            "L:\nbar.sync 0;\nadd.u32 %thread, %thread, 32;\nsetp.lt.u32 %p, %thread, 700;\n@%p bra L;\nret;",
        ],
        &[
            &format!("{parted}add.u32 %a, %a, 1;\nL:\nbar.sync 0;\nret;"),
            &looped("bar.sync 0;\nret;"),
            &looped(&format!("bar.sync 0;\n{last}")),
            "ld.shared.u32 %a, [%at];\nsetp.eq.u32 %p, %a, 0;\n@%p bra L;\nbar.sync 0;\nL:\nret;",
            &format!("{parted}bar.sync 1, 64;\nL:\nret;"),
            "setp.lt.u32 %p, %thread, 7;\n@%p bra DONE;\nbar.sync 0;\nDONE:\nret;",
        ],
    );
}

#[test]
fn findings_need_an_entry_that_reaches_them_and_entries_need_findings() {
    let kernel = kernel();
    let problems = |count: u32, list: &str| {
        let findings = (0..count).map(|line| Finding { line, message: "generic".into() }).collect::<Vec<_>>();
        let found = if count > 0 { vec![(&kernel, vec![("space", findings)])] } else { vec![] };
        super::problems(&found, &accepted::parse(list, &subjects()).expect("a list"))
    };
    assert!(problems(2, "lint-space 2 k why").is_empty() && problems(0, "").is_empty());
    assert!(problems(2, "")[0].starts_with("space  k:0: generic, and 1 more"));
    assert_eq!(problems(2, "lint-space 1 k why").len(), 2, "beyond the entry, which is then stale");
    assert!(problems(0, "lint-space 1 k why")[0].starts_with("stale"));
}
