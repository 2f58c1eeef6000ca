"""One token of linear attention, states in place."""

import torch

from . import peer, reference
from ..compare import whole


@reference("linear_attention_step")
def linear_attention_step(case, t):
    q, k = (t[name][:, 0].double() for name in "qk")
    v, g = t["v"][:, 0].double(), t["g"][:, 0].double()
    state = g.exp()[..., None, None] * t["state"].double() + k[..., :, None] * v[..., None, :]
    o = q.shape[-1] ** -0.5 * torch.einsum("bhk,bhkv->bhv", q, state)
    return {"o": whole(o), "state": whole(state)}


@peer("linear_attention_step", "fla fused_recurrent_simple_gla")
def fla_step(case, t):
    from fla.ops.simple_gla import fused_recurrent_simple_gla

    state = t["state"].clone()

    def call():
        o, after = fused_recurrent_simple_gla(
            t["q"], t["k"], t["v"], g=t["g"], initial_state=state, output_final_state=True
        )
        return {"o": o[:, 0], "state": after}

    return call


@peer("linear_attention_step", "mamba_ssm selective_state_update")
def mamba_step(case, t):
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    q, k, v, g = (t[name][:, 0] for name in "qkvg")
    heads, key_dim, value_dim = q.shape[1], q.shape[2], v.shape[2]
    # States of values by keys, in place; one decay a head, so that strides of nothing say that all are the same.
    state = t["state"].transpose(2, 3).contiguous()
    dt = (-g).unsqueeze(-1).expand(-1, -1, value_dim)
    a = (-torch.ones(heads, device=q.device)).view(heads, 1, 1).expand(-1, value_dim, key_dim)
    x = (v.float() / dt).to(v.dtype)
    c = (q.float() * key_dim**-0.5).to(q.dtype)
    # What it has besides is not wanted, but without these it does not run.
    zeros = torch.zeros(heads, 1, device=q.device).expand(-1, value_dim)

    def call():
        o = selective_state_update(state, x, dt, a, k, c, D=zeros, dt_bias=zeros)
        return {"o": o, "state": state.transpose(2, 3)}

    return call
