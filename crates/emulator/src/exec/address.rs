//! Where the state spaces lie in the address space that programs see.

/// Address of the first byte of a CTA's shared memory. Hardware keeps the first 1024 bytes for itself, so a kernel that
/// takes offset for address fails here too.
pub(crate) const SHARED_BASE: u32 = 1024;

/// Added to a shared address to make it generic. Far above every allocation number.
pub(crate) const SHARED_WINDOW: u64 = 0xFFFF_0000_0000_0000;

/// Added to an offset into the parameter block to make it generic.
pub(crate) const PARAM_WINDOW: u64 = 0xFFFE_0000_0000_0000;

/// Size of a window.
const WINDOW: u64 = 1 << 32;

/// What a generic address points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generic {
    Global,
    /// The shared address.
    Shared(u32),
    /// The offset into the parameter block.
    Param(u32),
}

/// Which space a generic address lies in.
pub(crate) fn classify(address: u64) -> Generic {
    if let Some(offset) = address.checked_sub(SHARED_WINDOW)
        && offset < WINDOW
    {
        Generic::Shared(offset as u32)
    } else if let Some(offset) = address.checked_sub(PARAM_WINDOW)
        && offset < WINDOW
    {
        Generic::Param(offset as u32)
    } else {
        Generic::Global
    }
}
