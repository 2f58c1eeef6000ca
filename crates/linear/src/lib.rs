//! Linear attention on matrix states: `S[t] = diag(exp g[t]) S[t-1] + k[t] v[t]^T`, read by `q[t]`.

pub use lookback_device::{DType, DeviceInfo, Element, Error, Result};
