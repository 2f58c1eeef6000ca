//! Moves between matrix fragments and shared memory: the data is its own address.

use crate::{
    form::{Form, Level},
    inputs::{Data, Kind, Register, mix},
    oracle::{Expected, Oracle},
};
use std::sync::Arc;

/// `ldmatrix`, `stmatrix`, `movmatrix`: elements that say where they came from, in rows at random places.
pub fn add(forms: &mut Vec<Form>) {
    // 16 bytes for each lane, and 512 for each warp.
    let place = "mad.lo.u32 %own, %thread, 16, %tile;\nshr.u32 %base, %thread, 5;\nmad.lo.u32 %base, %base, 512, %tile;\n\
                 mad.lo.u32 %row, %a0, 16, %base;";
    let declare = ".reg .b32 %own, %base, %row, %low, %w0, %w1, %w2, %w3;";
    // Row number in the high byte, column in the low one.
    let fill = "shl.b32 %low, %lane, 24;\nshr.u32 %w0, %low, 16;\nor.b32 %low, %low, %w0;\nor.b32 %w0, %low, 0x00010000;\n\
                or.b32 %w1, %low, 0x00030002;\nor.b32 %w2, %low, 0x00050004;\nor.b32 %w3, %low, 0x00070006;\n\
                st.shared.v4.b32 [%own], {%w0, %w1, %w2, %w3};\nbar.warp.sync 0xffffffff;";
    for count in [1usize, 2, 4] {
        for (word, transposed) in [("", false), (".trans", true)] {
            let list = |letter: char| (0..count).map(|i| format!("%{letter}{i}")).collect::<Vec<_>>().join(", ");
            let key = format!("ldmatrix.sync.aligned.m8n8.x{count}{word}.shared.b16");
            let body = format!("{place}\n{fill}\n{key} {{{}}}, [%row];", list('d'));
            let form = Form::with_body(key, &[Kind::Below(32)], &vec![Register::B32; count], body).declare(declare);
            forms.push(form.shared(2048).data(Data::Random(32 * 64)).oracle(Oracle::warp(move |x, out| {
                for (i, out) in out.iter_mut().enumerate() {
                    for (lane, out) in out.iter_mut().enumerate() {
                        let element = |half: usize| {
                            let (row, column) = place_of(transposed, lane, half);
                            x[0][8 * i + row] << 8 | column as u64
                        };
                        *out = Expected::Bits(element(1) << 16 | element(0));
                    }
                }
            })));
            stores(forms, count, word, transposed);
        }
    }
    let form = Form::plain("movmatrix.sync.aligned.m8n8.trans.b16", &[Kind::I32], Register::B32);
    forms.push(form.data(Data::Random(32 * 64)).oracle(Oracle::warp(|x, out| {
        for (lane, out) in out[0].iter_mut().enumerate() {
            // Element (row, column) of the result is element (column, row) of the source.
            let element = |half: usize| {
                let (row, column) = (2 * (lane % 4) + half, lane / 4);
                x[0][4 * row + column / 2] >> (16 * (column % 2)) & 0xffff
            };
            *out = Expected::Bits(element(1) << 16 | element(0));
        }
    })));
}

/// Row and column of one half of a lane's register.
fn place_of(transposed: bool, lane: usize, half: usize) -> (usize, usize) {
    let (row, column) = (lane / 4, 2 * (lane % 4) + half);
    if transposed { (column, row) } else { (row, column) }
}

/// `stmatrix` is the mirror image. Rows must not collide, so they are a rotation of the warp's 32 rows.
fn stores(forms: &mut Vec<Form>, count: usize, word: &str, transposed: bool) {
    let list = (1..=count).map(|i| format!("%a{i}")).collect::<Vec<_>>().join(", ");
    let key = format!("stmatrix.sync.aligned.m8n8.x{count}{word}.shared.b16");
    let body = format!(
        "mad.lo.u32 %own, %thread, 16, %tile;\nshr.u32 %base, %thread, 5;\nmad.lo.u32 %base, %base, 512, %tile;\n\
         add.u32 %row, %a0, %lane;\nand.b32 %row, %row, 31;\nmad.lo.u32 %row, %row, 16, %base;\nmov.b32 %w0, 0;\n\
         st.shared.v4.b32 [%own], {{%w0, %w0, %w0, %w0}};\nbar.warp.sync 0xffffffff;\n{key} [%row], {{{list}}};\n\
         bar.warp.sync 0xffffffff;\nld.shared.v4.b32 {{%d0, %d1, %d2, %d3}}, [%own];"
    );
    let mut inputs = vec![Kind::Below(32)];
    inputs.extend(vec![Kind::I32; count]);
    let form = Form::with_body(key, &inputs, &[Register::B32; 4], body).level(Level::Sm90).shared(2048);
    let rotation = |index: u64, operand: usize| {
        if operand == 0 { mix(index / 32) } else { mix(index * 8 + operand as u64) }
    };
    let form = form.declare(".reg .b32 %own, %base, %row, %w0;");
    let data = Data::Custom(
        32 * 64,
        Arc::new(move |index, operand| match operand {
            0 => rotation(index, 0) % 32,
            _ => rotation(index, operand),
        }),
    );
    forms.push(form.data(data).oracle(Oracle::warp(move |x, out| {
        let mut image = [[0u64; 8]; 32];
        for i in 0..count {
            for lane in 0..32 {
                for half in 0..2 {
                    let (row, column) = place_of(transposed, lane, half);
                    let at = (x[0][0] as usize + 8 * i + row) % 32;
                    image[at][column] = x[1 + i][lane] >> (16 * half) & 0xffff;
                }
            }
        }
        for (word, out) in out.iter_mut().enumerate() {
            for (lane, out) in out.iter_mut().enumerate() {
                *out = Expected::Bits(image[lane][2 * word + 1] << 16 | image[lane][2 * word]);
            }
        }
    })));
}
