"""The Llama-architecture model in PyTorch.

RoPE turns interleaved pairs (2i, 2i+1), which is how GGUF's `llama`
architecture lays out the query and key weights: nothing has to be permuted
at export.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocabulary: int = 2560
    width: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    feed_forward: int = 640
    context: int = 512
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self):
        return self.width // self.heads


class RmsNorm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.epsilon)


def rotation(config):
    """Unit complex numbers of shape (context, 1, head_width / 2)."""
    exponent = torch.arange(0, config.head_width, 2).float() / config.head_width
    frequency = config.rope_theta ** -exponent
    angle = torch.outer(torch.arange(config.context).float(), frequency)
    return torch.polar(torch.ones_like(angle), angle).unsqueeze(1)


def rotate(x, turns):
    """x: (batch, time, heads, head_width); one complex product is far cheaper than strided halves."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        kv_width = config.kv_heads * config.head_width
        self.config = config
        self.attn_norm = RmsNorm(config.width, config.norm_epsilon)
        self.attn_q = nn.Linear(config.width, config.width, bias=False)
        self.attn_k = nn.Linear(config.width, kv_width, bias=False)
        self.attn_v = nn.Linear(config.width, kv_width, bias=False)
        self.attn_output = nn.Linear(config.width, config.width, bias=False)
        self.ffn_norm = RmsNorm(config.width, config.norm_epsilon)
        self.ffn_gate = nn.Linear(config.width, config.feed_forward, bias=False)
        self.ffn_up = nn.Linear(config.width, config.feed_forward, bias=False)
        self.ffn_down = nn.Linear(config.feed_forward, config.width, bias=False)

    def forward(self, x, turns, future, dtype):
        batch, time, _ = x.shape
        c = self.config
        # One conversion here instead of one in each product that autocast sees.
        y = self.attn_norm(x).to(dtype)
        q = self.attn_q(y).view(batch, time, c.heads, c.head_width)
        k = self.attn_k(y).view(batch, time, c.kv_heads, c.head_width)
        v = self.attn_v(y).view(batch, time, c.kv_heads, c.head_width)
        q, k = rotate(q, turns), rotate(k, turns)
        # Written out: on CPUs this is several times faster than the fused kernel's
        # backward pass. The heads that share a key head are rows of one product.
        group = c.heads // c.kv_heads
        q = q.view(batch, time, c.kv_heads, group, c.head_width).permute(0, 2, 3, 1, 4)
        q = q.reshape(batch, c.kv_heads, group * time, c.head_width)
        scores = (q @ k.permute(0, 2, 3, 1)) * c.head_width**-0.5
        scores = scores.float().view(batch, c.kv_heads, group, time, time) + future
        weights = scores.softmax(-1).to(v.dtype).view(batch, c.kv_heads, group * time, time)
        y = (weights @ v.transpose(1, 2)).view(batch, c.kv_heads, group, time, c.head_width)
        x = x + self.attn_output(y.permute(0, 3, 1, 2, 4).reshape(batch, time, -1))
        y = self.ffn_norm(x).to(dtype)
        return x + self.ffn_down(F.silu(self.ffn_gate(y)) * self.ffn_up(y))


class Model(nn.Module):
    """Token embedding and output are tied, as a GGUF without output.weight means."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocabulary, config.width)
        self.blk = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.output_norm = RmsNorm(config.width, config.norm_epsilon)
        self.register_buffer("turns", rotation(config), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 0.03
                if name.endswith(("attn_output.weight", "ffn_down.weight")):
                    scale /= (2 * config.layers) ** 0.5
                nn.init.normal_(parameter, std=scale)

    def hidden(self, tokens):
        x = self.token_embd(tokens)
        time = tokens.shape[1]
        turns = self.turns[:time]
        future = torch.full((time, time), float("-inf")).triu(1)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        for block in self.blk:
            x = block(x, turns, future, dtype)
        return self.output_norm(x)

    def logits(self, hidden):
        return hidden @ self.token_embd.weight.T

    def forward(self, tokens):
        return self.logits(self.hidden(tokens))

    def parameter_count(self):
        return sum(parameter.numel() for parameter in self.parameters())
