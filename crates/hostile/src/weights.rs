//! Weights, checkpoints and settings of models.

use lookback_device::{Class, Result};
use lookback_model::{bert, checkpoint::Checkpoint, llama, mamba2, weights::Weights};

/// Whether it was taken; an error must blame the file.
fn taken<T>(read: Result<T>) -> bool {
    match read {
        Ok(_) => true,
        Err(error) => {
            assert!(error.class() == Class::Data, "{error}");
            false
        }
    }
}

/// Reads a file as the phone book's weights, and as a checkpoint with all its tensors.
///
/// # Panics
/// When an error does not blame the file.
pub fn weights(bytes: &[u8]) -> bool {
    taken(Weights::from_bytes("hostile", bytes.to_vec()));
    let Ok(file) = Checkpoint::from_bytes("hostile", bytes.to_vec()) else { return false };
    let mut elements = 0;
    for name in file.names() {
        for extents in [file.extents::<1>(name).map(|e| e.to_vec()), file.extents::<2>(name).map(|e| e.to_vec())] {
            if let Ok(extents) = extents
                && let Ok(values) = file.tensor(name, &extents)
            {
                elements += values.len();
            }
        }
        taken(file.tensor(name, &[3, 5]));
    }
    assert!(elements <= bytes.len(), "{elements} elements of {} bytes", bytes.len());
    taken(mamba2::Config::of(&file, 1));
    true
}

/// Reads a text as the settings of a model.
///
/// # Panics
/// When an error does not blame the file.
pub fn settings(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let bert = taken(bert::Config::from_json("hostile", &text));
    taken(llama::Config::from_json("hostile", &text)) || bert
}
