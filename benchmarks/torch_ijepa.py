"""I-JEPA's training step in PyTorch, as its public code computes it: the twin of ours.

Written from the paper (arXiv 2301.08243) and from what the public code computes: eager
attention, one call of the predictor for all target blocks, AdamW, the EMA parameter by parameter.
Its names are those of the public checkpoints.
"""

from collections.abc import Sequence

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention, [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, heads: int, fused: bool):
        """``fused``: torch's own kernel in place of the published two products."""
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5).softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, t, d))


class Mlp(nn.Module):
    """Two layers with exact GELU."""

    def __init__(self, width: int, hidden: int):
        """Sizes."""
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, fused: bool):
        """Sizes; ``fused`` as for :class:`Attention`."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attn, self.mlp = Attention(width, heads, fused), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] -> patches [B, T, D]."""

    def __init__(self, patch: int, width: int):
        """Sizes."""
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, T, D]."""
        return self.proj(images).flatten(2).transpose(1, 2)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, D], index [B, K] -> [B, K, D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class Encoder(nn.Module):
    """The vision transformer, of all patches or of those that are visible."""

    def __init__(self, config, table: Tensor, fused: bool):
        """``config``: an ``EncoderConfig``; table [T, D]: positions."""
        super().__init__()
        c, self.table = config, table
        self.patch_embed = PatchEmbed(c.patch_size, c.width)
        blocks = (Block(c.width, c.heads, c.mlp_width, fused) for _ in range(c.depth))
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(c.width, EPS)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Images [B, 3, H, W], visible [B, K] -> [B, T or K, D]."""
        x = self.patch_embed(images) + self.table
        x = x if visible is None else pick(x, visible)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Predictor(nn.Module):
    """Predicts each target block from the visible patches, all blocks in one batch."""

    def __init__(self, config, out_width: int, table: Tensor, fused: bool):
        """``config``: a ``PredictorConfig``; table [T, P]: positions."""
        super().__init__()
        c, self.table = config, table
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.width))
        self.predictor_embed = nn.Linear(out_width, c.width)
        blocks = (Block(c.width, c.heads, 4 * c.width, fused) for _ in range(c.depth))
        self.predictor_blocks = nn.ModuleList(blocks)
        self.predictor_norm = nn.LayerNorm(c.width, EPS)
        self.predictor_proj = nn.Linear(c.width, out_width)

    def forward(self, context: Tensor, visible: Tensor, blocks: Tensor) -> Tensor:
        """Context [B, K, D], visible [B, K], blocks [B, M, C] -> [M * B, C, D]."""
        m, c = blocks.shape[1:]
        x = (self.predictor_embed(context) + self.table[visible]).repeat(m, 1, 1)
        masked = self.mask_token + self.table[blocks.transpose(0, 1).flatten(0, 1)]
        x = torch.cat([x, masked], dim=1)
        for block in self.predictor_blocks:
            x = block(x)
        return self.predictor_proj(self.predictor_norm(x)[:, -c:])


class Twin:
    """A step of I-JEPA: loss, gradient, AdamW, EMA of the target."""

    def __init__(self, config, tables: Sequence[np.ndarray], fused: bool, autocast: bool):
        """Builds both towers, with torch's own initial weights; the target is a copy.

        Args:
          config: resolved, of our ``ijepa``.
          tables: positions of encoder [T, D] and predictor [T, P].
          fused: torch's attention kernel in place of the published products.
          autocast: products in bfloat16, as ``meta.use_bfloat16`` of the public code.
        """
        one, two = (torch.from_numpy(np.ascontiguousarray(t)) for t in tables)
        width = config.encoder.width
        self.encoder, self.target = (Encoder(config.encoder, one, fused) for _ in range(2))
        self.predictor = Predictor(config.predictor, width, two, fused)
        self.autocast, o = autocast, config.optim
        self.target.load_state_dict(self.encoder.state_dict())
        self.target.requires_grad_(False)
        # No decay on biases and what has one dimension; the mask token has three.
        named = [*self.encoder.named_parameters(), *self.predictor.named_parameters()]
        plain = [p for name, p in named if p.ndim == 1 or name.endswith("bias")]
        decayed = [p for name, p in named if not (p.ndim == 1 or name.endswith("bias"))]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, betas=(o.b1, o.b2), eps=o.eps)

    def step(
        self, images: Tensor, visible: Tensor, blocks: Tensor, lr: float, decay: float, ema: float
    ) -> float:
        """One step; returns the loss.

        Args:
          images: float32 [B, 3, H, W], normalised.
          visible: int64 [B, K]; blocks: int64 [B, M, C].
          lr: learning rate; decay: weight decay; ema: momentum of the target.
        """
        self.adamw.param_groups[0].update(lr=lr, weight_decay=decay)
        self.adamw.param_groups[1].update(lr=lr)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                h = self.target(images)
                h = F.layer_norm(h, (h.shape[-1],))
                wanted = torch.cat([pick(h, block) for block in blocks.unbind(1)])
            found = self.predictor(self.encoder(images, visible), visible, blocks)
            loss = F.smooth_l1_loss(found, wanted)
        loss.backward()
        self.adamw.step()
        self.adamw.zero_grad()
        with torch.no_grad():
            for p, t in zip(self.encoder.parameters(), self.target.parameters(), strict=True):
                t.mul_(ema).add_((1.0 - ema) * p)
        return float(loss.detach())
