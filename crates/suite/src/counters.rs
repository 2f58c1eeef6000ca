//! What the emulator counted.
