//! Host-side checks of what the tensors hold.

use crate::{Error, Result, Shape};
pub use lookback_device::cu_seqlens;

/// Checks a list of tiles on the host: as many starts as the shape has slots and one more, from 0 to the number of entries without a
/// step back, and in each slot ascending numbers of tiles that a sequence of all keys has.
///
/// Kernels read nothing outside of the tensors whatever the device arrays hold; a list that fails here may hide other keys than it says.
///
/// # Errors
/// [`Error::Shape`] ← the wrong number of starts; [`Error::Range`] with the index ← an entry out of order or out of range.
pub fn tile_list(shape: &Shape, starts: &[i32], keys: &[i32]) -> Result<()> {
    const OP: &str = "tile_list";
    let slots = shape.slots(Shape::SLOT_QUERIES);
    if starts.len() != slots + 1 {
        let want = format!("{} entries long", slots + 1);
        return Err(Error::Shape { op: OP, arg: "starts", want, got: vec![starts.len() as u64] });
    }
    let range = |arg, at: usize, got: i32, lo: i64, hi: i64| {
        let got = i64::from(got);
        let good = (lo..=hi).contains(&got);
        if good { Ok(()) } else { Err(Error::Range { op: OP, arg, at: Some(at as u64), lo, hi, got }) }
    };
    let total = keys.len() as i64;
    let tiles = shape.key_len.div_ceil(Shape::TILE_KEYS) as i64;
    let mut from = 0;
    for (at, start) in starts.iter().enumerate() {
        let lo = if at == slots { total } else { from };
        range("starts", at, *start, lo, if at == 0 { 0 } else { total })?;
        let mut least = 0;
        for at in from..i64::from(*start) {
            range("keys", at as usize, keys[at as usize], least, tiles - 1)?;
            least = i64::from(keys[at as usize]) + 1;
        }
        from = i64::from(*start);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tile_list_names_the_entry_out_of_order() {
        // Three slots of 128 queries, four tiles of 64 keys.
        let shape = Shape::dense(1, 300, 250, 1, 64);
        let check = |starts: &[i32], keys: &[i32]| tile_list(&shape, starts, keys);
        let refused = |starts: &[i32], keys: &[i32], name: &str, index: u64| match check(starts, keys) {
            Err(Error::Range { arg, at, .. }) => assert_eq!((arg, at), (name, Some(index))),
            other => panic!("{starts:?} {keys:?}: {other:?}"),
        };
        assert!(check(&[0, 2, 2, 5], &[0, 3, 1, 2, 3]).is_ok());
        assert!(matches!(check(&[0, 2, 5], &[0; 5]), Err(Error::Shape { arg: "starts", .. })));
        refused(&[1, 2, 2, 5], &[0, 3, 1, 2, 3], "starts", 0);
        refused(&[0, 2, 1, 5], &[0, 3, 1, 2, 3], "starts", 2);
        refused(&[0, 2, 9, 5], &[0, 3, 1, 2, 3], "starts", 2);
        refused(&[0, 2, 2, 4], &[0, 3, 1, 2, 3], "starts", 3);
        refused(&[0, 2, 2, 5], &[0, 4, 1, 2, 3], "keys", 1);
        refused(&[0, 2, 2, 5], &[3, 3, 1, 2, 3], "keys", 1);
        refused(&[0, 2, 2, 5], &[0, 3, -1, 2, 3], "keys", 2);
    }
}
