//! Embedding: sums of rows of a table.

/// `out[t] = sum over j of table[ids[t,j]]`, with `n_ids` ids a token. An id that is no row of the table adds nothing.
pub fn forward(table: &[f64], width: usize, ids: &[i32], n_ids: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for ids in ids.chunks_exact(n_ids.max(1)) {
        let rows =
            || ids.iter().filter_map(|id| usize::try_from(*id).ok()).filter(|id| (id + 1) * width <= table.len());
        out.extend((0..width).map(|d| rows().map(|id| table[id * width + d]).sum::<f64>()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let table = [1.0, 2.0, 10.0, 20.0];
        assert_eq!(forward(&table, 2, &[0, 1, -1, 1, 2, -7], 2), [11.0, 22.0, 10.0, 20.0, 0.0, 0.0]);
    }
}
