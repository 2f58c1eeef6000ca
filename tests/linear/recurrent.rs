//! The walk token by token with everything that only backward passes ask of it, against the walk in f64.

use super::chain_case::{Case, Decay, check};
use bytemuck::Zeroable;
use half::{bf16, f16};
use lookback_device::{Element, launch};
use lookback_kernels::{
    args::{LinearAttentionChain, LinearAttentionRecurrent},
    find,
};
use lookback_suite::device;

/// The launch that the chunked kernels' arguments stand for.
pub fn launch_walk<T: Element>(case: &Case, chain: &LinearAttentionChain, sequences: u32) {
    macro_rules! shared {
        ($($name:ident)*) => {
            LinearAttentionRecurrent {
                $($name: chain.$name,)*
                decay: match case.decay {
                    Decay::None => 0,
                    Decay::Head | Decay::Token => 1,
                    Decay::Key => 2,
                    Decay::Value => 3,
                },
                ..Zeroable::zeroed()
            }
        };
    }
    let args = shared!(p_q p_k p_v p_g p_u p_flags p_cu_seqlens p_prefix_len p_h0 p_z0 p_o p_h_final p_z_final p_den
        q_stride_batch q_stride_token q_stride_head k_stride_batch k_stride_token k_stride_head
        v_stride_batch v_stride_token v_stride_head g_stride_batch g_stride_token g_stride_head
        o_stride_batch o_stride_token o_stride_head flags_stride_batch
        h0_stride_seq h0_stride_head h0_stride_key h0_stride_value hf_stride_seq hf_stride_head hf_stride_key hf_stride_value
        q_group k_group v_group seq_len heads key_dim value_dim split flag_mask flag_mask_reverse
        reverse order late_cut shift out_f32 accumulate normalize scale eps);
    let tile = case.kt.to_string();
    let variant = [("key_tile", tile.as_str()), ("dtype", T::DTYPE.name())];
    let kernel = find("linear_attention_recurrent", &variant).expect("every variant is built");
    let tiles = case.value_dim.div_ceil(4096 / case.kt) as u32;
    // SAFETY: the caller's buffers have the extents that the kernel's contract names, and are held until the launch is queued.
    let launched = unsafe { launch(&device::stream(), kernel, [tiles * sequences, args.heads, 1], &args) };
    launched.unwrap_or_else(|e| panic!("{e}"));
}

fn case(decay: Decay, seq_len: usize) -> Case {
    Case { decay, token_by_token: true, ..Case::new(seq_len, 2, 20, 12) }
}

const DECAYS: [Decay; 5] = [Decay::None, Decay::Head, Decay::Token, Decay::Key, Decay::Value];

#[test]
fn recurrent_follows_every_order_and_decay_with_both_kinds_of_cut() {
    for decay in DECAYS {
        for order in 0..3 {
            for late_cut in [false, true] {
                for (reverse, split) in [(false, 2), (true, 1)] {
                    let flags = [vec![0, 4, 5, 15, 20], vec![1, 7, 8, 20]];
                    let case = Case { order, late_cut, reverse, split, flags, ..case(decay, 21) };
                    check::<f32>("orders", &case);
                }
            }
        }
    }
}

#[test]
fn recurrent_adds_to_f32_outputs_and_transposes_states() {
    for decay in [Decay::Key, Decay::Value] {
        for (out_f32, accumulate) in [(true, false), (true, true), (false, true)] {
            let case = Case { out_f32, accumulate, transposed: true, padding: 3, ..case(decay, 19) };
            check::<bf16>("outputs", &case);
            check::<f16>("outputs", &Case { reverse: true, order: 1, ..case.clone() });
            check::<f32>("outputs", &Case { order: 2, ..case });
        }
    }
}

#[test]
fn recurrent_shifts_both_kinds_of_cut() {
    for late_cut in [false, true] {
        for normalize in [false, true] {
            let flags = [vec![3, 4, 8, 17], vec![]];
            let case = Case { shift: true, late_cut, normalize, positive: normalize, flags, ..case(Decay::Token, 18) };
            check::<f32>("shifted", &case);
        }
    }
}

#[test]
fn recurrent_shares_values_among_heads_and_masks_prefixes() {
    for reverse in [false, true] {
        let case = Case { groups: [1, 2, 2], reverse, ..case(Decay::Key, 17) };
        check::<f32>("groups", &case);
        check::<f32>("prefix", &Case { batch: 3, prefix: vec![0, 5, 17], ..case.clone() });
        check::<f32>("packed", &Case { lengths: vec![0, 9, 1, 0, 7], prefix: vec![0, 3, 1, 0, 7], ..case });
    }
}

#[test]
fn recurrent_follows_values_in_every_tile() {
    for (key_dim, value_dim) in [(5, 130), (64, 65), (100, 33), (129, 20)] {
        let case = Case { token_by_token: true, decay: Decay::Value, ..Case::new(10, 1, key_dim, value_dim) };
        check::<f32>("tiles", &case);
    }
}
