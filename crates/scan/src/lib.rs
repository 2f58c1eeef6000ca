//! Gated scans: h[t] = a[t] h[t-1] + b[t], forward and backward
