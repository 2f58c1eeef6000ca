//! Launches that are listed and not run.

use crate::support::{code, context, counters, kernel, recording, reset_counters, reset_recording, set_option};
use crate::support::{last_fault, unset_options};
use cudarc::driver::sys::CUresult;
use cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};

const SHAPE: LaunchConfig = LaunchConfig { grid_dim: (4, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_recording_thread_lists_its_work_in_order_and_runs_no_kernel() {
    let context = context();
    let stream = context.per_thread_stream();
    let scale = kernel(&context, "scale");
    let before = stream.clone_htod(&[1.0_f32; 1000]).unwrap();
    assert!(set_option("record", "on"));
    reset_recording();
    reset_counters();
    let input = stream.clone_htod(&[1.0_f32, 2.0]).unwrap();
    let mut output = stream.alloc_zeros::<f32>(1000).unwrap();
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&mut output).arg(&before).arg(&2.5_f32).arg(&1000_u32);
    // SAFETY: the arguments are those of the kernel and both slices have 1000 elements.
    unsafe { launch.launch(SHAPE) }.unwrap();
    stream.memcpy_dtod(&input, &mut output).unwrap();
    let [to, from, input] = [&output, &before, &input].map(|slice| slice.device_ptr(&stream).0);
    let parameters = [&to.to_le_bytes()[..], &from.to_le_bytes(), &2.5_f32.to_le_bytes(), &1000_u32.to_le_bytes()];
    let expected = [
        format!(r#"[{{"kind":"allocation","pointer":{input},"bytes":8}}"#),
        format!(r#"{{"kind":"upload","to":{input},"bytes":8,"contents":"0000803f00000040"}}"#),
        format!(r#"{{"kind":"allocation","pointer":{to},"bytes":4000}}"#),
        format!(r#"{{"kind":"fill","to":{to},"value":0,"width":1,"columns":4000,"rows":1,"pitch":0}}"#),
        format!(
            r#"{{"kind":"launch","entry":"scale","grid":[4,1,1],"block":[256,1,1],"dynamic_shared":0,"cooperative":false,"parameters":"{}"}}"#,
            hex(&parameters.concat())
        ),
        format!(r#"{{"kind":"copy","to":{to},"from":{input},"bytes":8}}]"#),
    ];
    assert_eq!(recording(), expected.join(",\n"));
    // The short copy was done, the kernel was not.
    let held = stream.clone_dtoh(&output).unwrap();
    assert_eq!(held[..3], [1.0, 2.0, 0.0]);
    assert!(!counters().contains("scale"), "{}", counters());
    reset_recording();
    assert_eq!(recording(), "[]");

    // Off again, the same launch runs and nothing is listed.
    unset_options();
    let mut output = stream.alloc_zeros::<f32>(1000).unwrap();
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&mut output).arg(&before).arg(&2.5_f32).arg(&1000_u32);
    // SAFETY: as above.
    unsafe { launch.launch(SHAPE) }.unwrap();
    assert_eq!(stream.clone_dtoh(&output).unwrap(), [2.5; 1000]);
    assert_eq!(recording(), "[]");
}

#[test]
fn a_recording_thread_takes_no_memory_and_still_has_its_launches_checked() {
    let context = context();
    let stream = context.per_thread_stream();
    let empty = kernel(&context, "empty");
    assert!(set_option("record", "on"));
    reset_recording();
    // More than the device has by default; what is long is neither copied nor kept.
    let long = stream.alloc_zeros::<u8>(6 << 30).unwrap();
    let copied = stream.clone_htod(&vec![7_u8; 2 << 20]).unwrap();
    assert!(recording().contains(r#""bytes":2097152,"contents":null"#), "{}", recording());
    assert!(recording().contains(r#""columns":6442450944,"#), "{}", recording());
    assert_eq!(stream.clone_dtoh(&copied.slice(..4)).unwrap(), [0; 4]);
    assert_eq!(stream.clone_dtoh(&long.slice((6 << 30) - 2..)).unwrap(), [0; 2]);
    reset_recording();
    let wrong = LaunchConfig { block_dim: (2048, 1, 1), ..SHAPE };
    // SAFETY: the kernel takes no arguments and touches no memory.
    let refused = code(unsafe { stream.launch_builder(&empty).launch(wrong) });
    assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(recording(), "[]");
    assert!(last_fault().contains("2048"), "{}", last_fault());
    unset_options();
}
