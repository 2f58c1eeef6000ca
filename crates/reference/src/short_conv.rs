//! Short causal convolution over time, channel by channel.

use crate::activation::Activation;

/// What a convolution runs over.
#[derive(Debug, Clone, Copy)]
pub struct Conv<'a> {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
    /// Channels.
    pub channels: usize,
    /// Width of the window.
    pub taps: usize,
    /// `[C]`.
    pub bias: Option<&'a [f64]>,
    /// `[B,T]`: bit 0 marks the first token of a segment.
    pub flags: Option<&'a [u8]>,
    /// `[B,taps-1,C]`: inputs before the first token, oldest first.
    pub state: Option<&'a [f64]>,
    /// Applied to the sum.
    pub activation: Activation,
}

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[B,T,C]`.
    pub out: Vec<f64>,
    /// `[B,taps-1,C]`: the last inputs, oldest first, zero where a segment start hides them.
    pub state: Vec<f64>,
}

/// `out[b,t,c] = act(bias[c] + sum over j of weight[c,j] x[b, t - (taps-1) + j, c])`: `x` is `[B,T,C]`, `weight` `[C,taps]`.
pub fn forward(conv: &Conv<'_>, x: &[f64], weight: &[f64]) -> Forward {
    let Conv { batch, tokens, channels, taps, .. } = *conv;
    let mut forward = Forward { out: vec![0.0; x.len()], state: vec![0.0; batch * (taps - 1) * channels] };
    for b in 0..batch {
        for c in 0..channels {
            let old = |j: usize| conv.state.map_or(0.0, |s| s[(b * (taps - 1) + j) * channels + c]);
            let mut window: Vec<f64> = (0..taps - 1).map(old).collect();
            for t in 0..tokens {
                if conv.flags.is_some_and(|f| f[b * tokens + t] & 1 == 1) {
                    window.fill(0.0);
                }
                window.push(x[(b * tokens + t) * channels + c]);
                let sum: f64 = window.iter().enumerate().map(|(j, x)| weight[c * taps + j] * x).sum();
                forward.out[(b * tokens + t) * channels + c] =
                    conv.activation.of(sum + conv.bias.map_or(0.0, |bias| bias[c]));
                window.remove(0);
            }
            for (j, x) in window.into_iter().enumerate() {
                forward.state[(b * (taps - 1) + j) * channels + c] = x;
            }
        }
    }
    forward
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONV: Conv<'_> = Conv {
        batch: 1,
        tokens: 4,
        channels: 1,
        taps: 3,
        bias: None,
        flags: None,
        state: None,
        activation: Activation::None,
    };

    #[test]
    fn by_hand() {
        let weight = [100.0, 10.0, 1.0];
        let plain = forward(&CONV, &[1.0, 2.0, 3.0, 4.0], &weight);
        assert_eq!(plain.out, [1.0, 12.0, 123.0, 234.0]);
        assert_eq!(plain.state, [3.0, 4.0]);
        let state = Conv { state: Some(&[8.0, 9.0]), ..CONV };
        assert_eq!(forward(&state, &[1.0, 2.0, 3.0, 4.0], &weight).out, [891.0, 912.0, 123.0, 234.0]);
        let flags = Conv { flags: Some(&[0, 0, 0, 1]), state: Some(&[8.0, 9.0]), ..CONV };
        let cut = forward(&flags, &[1.0, 2.0, 3.0, 4.0], &weight);
        assert_eq!(cut.out, [891.0, 912.0, 123.0, 4.0]);
        assert_eq!(cut.state, [0.0, 4.0]);
    }

    #[test]
    fn pieces_give_the_whole() {
        let (x, weight) = ([1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 2.0]);
        let whole = forward(&CONV, &x, &weight);
        let first = forward(&Conv { tokens: 1, ..CONV }, &x[..1], &weight);
        let rest = forward(&Conv { tokens: 3, state: Some(&first.state), ..CONV }, &x[1..], &weight);
        assert_eq!([first.out, rest.out].concat(), whole.out);
        assert_eq!(rest.state, whole.state);
    }
}
