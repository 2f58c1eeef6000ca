//! What blocks need between mixers: GEMM, norms, short convolution, embedding, gates, loss
