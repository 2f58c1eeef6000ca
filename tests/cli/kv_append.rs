//! What `run kv_append` says to bad input.

use crate::files::{Folder, T, lookback, stderr};

/// Two new tokens of two requests, into pages of two places.
fn pages() -> Vec<(&'static str, T)> {
    let (row, cache) = ([2, 1, 8], [4, 2, 1, 8]);
    vec![
        ("k_new", T::bf16(&row, &[0.5; 16])),
        ("v_new", T::bf16(&row, &[0.5; 16])),
        ("kv_len", T::i32(&[2], &[3, 4])),
        ("k_pages", T::bf16(&cache, &[0.0; 64])),
        ("v_pages", T::bf16(&cache, &[0.0; 64])),
        ("kv_indptr", T::i32(&[3], &[0, 2, 4])),
        ("kv_indices", T::i32(&[4], &[3, 2, 1, 0])),
    ]
}

fn call(name: &str, tensors: &[(&str, T)]) -> (Option<i32>, String, bool) {
    let folder = Folder::new(name);
    let (input, output) = (folder.write("in.safetensors", tensors), folder.path("out.safetensors"));
    let [input, to] = [&input, &output].map(|path| path.to_str().expect("utf-8"));
    let done = lookback(&["run", "kv_append", "--in", input, "--out", to]);
    (done.status.code(), stderr(&done), output.exists())
}

#[test]
fn kv_append_names_what_is_missing_or_outside() {
    let (status, said, written) = call("append-whole", &pages());
    assert!(status == Some(0) && written, "{said}");
    for i in 0..pages().len() {
        let mut tensors = pages();
        let (name, _) = tensors.remove(i);
        let (status, said, written) = call("append-missing", &tensors);
        assert!(status == Some(2) && !written, "without {name}: {said}");
        // Without one name of a paged cache the other kind is asked for.
        let asked = name.trim_end_matches("_pages");
        assert!(said.contains(&format!("`{asked}")), "without {name}: {said}");
    }
    // Ragged caches have starts, unless slots say where; names are those of the file.
    let named = ["k_new", "v_new", "kv_len"];
    let mut ragged: Vec<_> = pages().into_iter().filter(|(name, _)| named.contains(name)).collect();
    ragged.extend(["k", "v"].map(|name| (name, T::bf16(&[7, 1, 8], &[0.0; 56]))));
    let (status, said, _) = call("append-ragged", &ragged);
    assert!(status == Some(2) && said.contains("`cu_seqlens_k` is missing"), "{said}");
    ragged.push(("cu_seqlens_k", T::i32(&[3], &[0, 3, 7])));
    let (status, said, _) = call("append-ragged", &ragged);
    assert_eq!(status, Some(0), "{said}");
    ragged[2] = ("slot_map", T::i32(&[2], &[0, 6]));
    let (status, said, _) = call("append-ragged", &ragged);
    assert!(status == Some(2) && said.contains("`cu_seqlens_k`") && said.contains("`slot_map`"), "{said}");
    for (name, tensor) in [
        ("kv_len", T::i32(&[2], &[3, 5])),
        ("kv_indices", T::i32(&[4], &[3, 4, 1, 0])),
        ("kv_indptr", T::i32(&[3], &[0, 2, 5])),
    ] {
        let tensors: Vec<_> = pages().into_iter().filter(|(other, _)| *other != name).chain([(name, tensor)]).collect();
        let (status, said, written) = call("append-outside", &tensors);
        assert!(status == Some(2) && !written, "{name}: {said}");
        assert!(said.contains("outside") && said.lines().count() <= 2, "{name}: {said}");
    }
}
