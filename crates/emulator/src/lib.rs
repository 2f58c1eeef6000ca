//! The CUDA driver API on the CPU: a PTX interpreter with a sanitizer and counters
