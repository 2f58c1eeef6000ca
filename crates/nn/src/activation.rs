//! Pointwise functions that kernels apply to their result.

/// A pointwise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// `x`.
    #[default]
    None,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, which differs from [`GeluErf`](Self::GeluErf) by up to 5e-4.
    Gelu,
    /// `x sigmoid(x)`.
    Silu,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
    /// `x/2 (1 + erf(x / sqrt(2)))`: gelu as BERT and its kin have it.
    GeluErf,
}

impl Activation {
    /// Every function.
    pub const ALL: [Activation; 6] = [
        Activation::None,
        Activation::Gelu,
        Activation::Silu,
        Activation::Sigmoid,
        Activation::Relu,
        Activation::GeluErf,
    ];

    /// The number that kernels know it by; `kernels/tile/activation.ptx` has the other end.
    pub(crate) fn code(self) -> u32 {
        match self {
            Activation::None => 0,
            Activation::Gelu => 1,
            Activation::Silu => 2,
            Activation::Sigmoid => 3,
            Activation::Relu => 4,
            Activation::GeluErf => 5,
        }
    }
}
