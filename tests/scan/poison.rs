//! NaN and infinity go where the recurrence carries them, and nowhere else.

use super::case::{Case, Data, backward, forward};
use lookback_device::DType;
use lookback_scan::Source;
use lookback_suite::measure::{Gate, assert_close};

fn check(what: &str, case: &Case, data: &Data) {
    let (got, want) = (forward::<f32>(case, data), data.forward(case));
    assert_close(&format!("h, {what}"), &got.h, &want.h, case.channels, Gate::F32);
    assert_close(&format!("last, {what}"), &got.last, &want.last, case.channels, Gate::F32);
    let want_h = want.h.iter().map(|v| f64::from(*v as f32)).collect::<Vec<_>>();
    let (got, want) = (backward::<f32>(case, data, &want_h), data.backward(case, &want_h));
    assert_close(&format!("da, {what}"), &got.a, &want.a, case.channels, Gate::F32);
    assert_close(&format!("db, {what}"), &got.b, &want.b, case.channels, Gate::F32);
    assert_close(&format!("d_initial, {what}"), &got.d_initial, &want.d_initial, case.channels, Gate::F32);
}

#[test]
fn gated_scan_nan_reaches_later_steps_of_its_channel_up_to_a_cut() {
    let case = Case { split: 4, ..Case::new(Source::Tensor, DType::F32, 1, 400, 6) };
    for at in [0, 100, 127, 128, 399] {
        for (what, value) in [("NaN", f64::NAN), ("infinity", f64::INFINITY)] {
            let mut data = Data { flags: Some(vec![0; 400]), ..Data::new::<f32>(&case) };
            data.b[at * 6 + 1] = value;
            data.b[at * 6 + 5] = value;
            check(&format!("{what} at {at}"), &case, &data);
            data.flags.as_mut().expect("set")[(at + 150).min(399)] = 1;
            data.flags.as_mut().expect("set")[at.saturating_sub(150)] = 2;
            check(&format!("{what} at {at} and cuts"), &case, &data);
        }
    }
}

#[test]
fn gated_scan_infinity_stays_infinity_under_computed_decays() {
    for source in [Source::Log, Source::Channel { log: true }, Source::GatedSsm { normalize: false }] {
        let case = Case { split: 4, ..Case::new(source, DType::F32, 1, 300, 6) };
        let mut data = Data::new::<f32>(&case);
        let tensor = if matches!(source, Source::GatedSsm { .. }) { &mut data.x } else { &mut data.b };
        tensor[130 * 6..131 * 6].fill(f64::INFINITY);
        let (got, want) = (forward::<f32>(&case, &data), data.forward(&case));
        assert_close(&format!("h of {source:?}"), &got.h, &want.h, 6, Gate::F32);
        data.dh[170 * 6..171 * 6].fill(f64::NEG_INFINITY);
        let finite: Vec<f64> = want.h.iter().map(|h| if h.is_finite() { f64::from(*h as f32) } else { 1.0 }).collect();
        let (got, want) = (backward::<f32>(&case, &data, &finite), data.backward(&case, &finite));
        assert_close(&format!("d_initial of {source:?}"), &got.d_initial, &want.d_initial, 6, Gate::F32);
        if !matches!(source, Source::GatedSsm { .. }) {
            assert_close(&format!("db of {source:?}"), &got.b, &want.b, 6, Gate::F32);
        }
    }
}

#[test]
fn gated_scan_nan_survives_decays_that_underflow() {
    let case = Case { split: 4, ..Case::new(Source::Tensor, DType::F32, 1, 700, 4) };
    let mut data = Data::new::<f32>(&case);
    data.a.fill(f64::from(0.1_f32));
    data.b[0] = f64::NAN;
    check("decays of 0.1", &case, &data);
}

#[test]
fn gated_scan_nan_of_a_decay_at_a_cut_is_not_read() {
    for source in [Source::Tensor, Source::Log] {
        let case = Case { split: 4, ..Case::new(source, DType::F32, 1, 300, 6) };
        let mut data = Data { flags: Some(vec![0; 300]), ..Data::new::<f32>(&case) };
        for at in [3, 128, 200] {
            data.flags.as_mut().expect("set")[at] = 3;
            data.a[at * 6..(at + 1) * 6].fill(f64::NAN);
        }
        let got = forward::<f32>(&case, &data);
        assert!(got.h.iter().all(|v| v.is_finite()), "{source:?}");
        assert_close("h", &got.h, &data.forward(&case).h, 6, Gate::F32);
        let got = backward::<f32>(&case, &data, &got.h);
        assert!(got.a.iter().chain(&got.b).chain(&got.d_initial).all(|v| v.is_finite()), "{source:?}");
        assert!([3, 128, 200].iter().all(|at| got.a[at * 6..(at + 1) * 6].iter().all(|da| *da == 0.0)), "{source:?}");
    }
}

#[test]
fn gated_scan_nan_stays_in_its_sequence() {
    let case =
        Case { split: 4, starts: Some(vec![0, 70, 140, 300]), ..Case::new(Source::Tensor, DType::F32, 1, 300, 6) };
    let mut data = Data::new::<f32>(&case);
    data.b[100 * 6..101 * 6].fill(f64::NAN);
    data.dh[90 * 6..91 * 6].fill(f64::NAN);
    check("NaN in the second of three", &case, &data);
}

#[test]
fn gated_scan_gates_far_out_stay_finite() {
    for source in [Source::GatedSsm { normalize: true }, Source::RgLru { unit_at_reset: true }] {
        let case = Case::new(source, DType::F32, 1, 150, 8);
        let mut data = Data::new::<f32>(&case);
        for (n, value) in [1e4, -1e4, 88.0, -88.0, 200.0, -200.0, 0.0, 30.0].into_iter().enumerate() {
            data.a[40 * 8 + n] = value;
            data.b[50 * 8 + n] = value;
        }
        let got = forward::<f32>(&case, &data);
        assert_close(&format!("{source:?}"), &got.h, &data.forward(&case).h, 8, Gate::F32);
        let got = backward::<f32>(&case, &data, &got.h);
        assert!(got.a.iter().chain(&got.b).chain(&got.x).all(|v| v.is_finite()), "{source:?}");
    }
}
