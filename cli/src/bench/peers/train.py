"""The denoisers of `weightsmith bench training`, written as one writes them in PyTorch, and their training step.

`python train.py NAME FOLDER` reads FOLDER/model.safetensors and FOLDER/data.safetensors, prints a line
{"ready": true, "loss": …} with the loss of those weights on those data, and then for each line N on its input trains
N steps and prints {"seconds": …, "loss": …}, the loss being that of the last of them.
"""

import json
import math
import os
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

TIME = 128
RATE, DECAY, CLIP, EMA = 1e-4, 0.05, 1.0, 0.995


def embed(t):
    half = TIME // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / half)
    angle = t[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Context(nn.Module):
    """Timestep and condition as one vector."""

    def __init__(self, condition, width):
        super().__init__()
        self.time = nn.Linear(TIME, width)
        self.condition0 = nn.Linear(condition, width)
        self.condition1 = nn.Linear(width, width)

    def forward(self, t, condition):
        return F.silu(self.time(embed(t)) + self.condition1(F.silu(self.condition0(condition))))


class MlpBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.context = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x, context):
        return x + self.second(F.silu(self.first(self.norm(x)) + self.context(context)))


class Mlp(nn.Module):
    def __init__(self, latent, condition, width=1024, blocks=5):
        super().__init__()
        dim = math.prod(latent)
        self.context = Context(condition, width)
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(MlpBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, dim)

    def forward(self, z, t, condition):
        context = self.context(t, condition)
        x = self.enter(z.flatten(1))
        for block in self.blocks:
            x = block(x, context)
        return self.leave(self.norm(x)).view_as(z)


class TransformerBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.context = nn.Linear(width, width)
        self.norm_q, self.norm_kv, self.norm_ff = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.ff1 = nn.Linear(width, 2 * width)
        self.ff2 = nn.Linear(2 * width, width)

    def split(self, x):
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x, context):
        c = self.context(context)
        x = x + c
        q, kv = self.norm_q(x), self.norm_kv(torch.cat([x, c], dim=1))
        mixed = F.scaled_dot_product_attention(
            self.split(self.query(q)), self.split(self.key(kv)), self.split(self.value(kv))
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.ff2(F.silu(self.ff1(self.norm_ff(x))))


class Transformer(nn.Module):
    def __init__(self, latent, condition, width=256, blocks=12, heads=4, pieces=64):
        super().__init__()
        self.pieces = pieces
        piece = math.prod(latent) // pieces
        self.context = Context(condition, width)
        self.enter = nn.Linear(piece, width)
        self.position = nn.Parameter(torch.zeros(pieces, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, piece)

    def forward(self, z, t, condition):
        context = self.context(t, condition)[:, None]
        x = self.enter(z.reshape(len(z), self.pieces, -1)) + self.position
        for block in self.blocks:
            x = block(x, context)
        return self.leave(self.norm(x)).reshape(z.shape)


class Residual(nn.Module):
    def __init__(self, i, o, context, groups):
        super().__init__()
        self.norm0, self.norm1 = nn.GroupNorm(groups, i), nn.GroupNorm(groups, o)
        self.conv0, self.conv1 = nn.Conv2d(i, o, 3, padding=1), nn.Conv2d(o, o, 3, padding=1)
        self.context = nn.Linear(context, o)
        self.skip = nn.Identity() if i == o else nn.Conv2d(i, o, 1)

    def forward(self, x, context):
        y = self.conv0(F.silu(self.norm0(x))) + self.context(context)[:, :, None, None]
        return self.skip(x) + self.conv1(F.silu(self.norm1(y)))


class Unet(nn.Module):
    def __init__(self, latent, condition, channels=80, multipliers=(1, 2, 4), groups=8):
        super().__init__()
        c, self.h, self.w = latent
        widths = [channels * m for m in multipliers]
        self.context = Context(condition, 4 * channels)
        self.image = nn.Linear(condition, self.h * self.w)
        self.enter = nn.Conv2d(c + 1, channels, 3, padding=1)
        before = [channels, *widths[:-1]]
        residual = lambda i, o: Residual(i, o, 4 * channels, groups)
        self.down = nn.ModuleList(residual(i, o) for i, o in zip(before, widths))
        self.halve = nn.ModuleList(nn.Conv2d(i, i, 3, stride=2, padding=1) for i in widths[:-1])
        self.middle = residual(widths[-1], widths[-1])
        after = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(residual(i + o, o) for i, o in zip(after, widths))
        self.norm = nn.GroupNorm(groups, channels)
        self.leave = nn.Conv2d(channels, c, 3, padding=1)

    def forward(self, z, t, condition):
        context = self.context(t, condition)
        image = self.image(condition).view(-1, 1, self.h, self.w)
        x = self.enter(torch.cat([z, image], dim=1))
        skips = []
        for i, block in enumerate(self.down):
            x = block(self.halve[i - 1](x) if i else x, context)
            skips.append(x)
        x = self.middle(x, context)
        for i in reversed(range(len(skips))):
            x = self.up[i](torch.cat([x, skips[i]], dim=1), context)
            if i:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.leave(F.silu(self.norm(x)))


NETWORKS = {"unet": Unet, "mlp": Mlp, "transformer": Transformer}


def ours(name):
    """The name that Weightsmith gives to a parameter of these modules."""
    parts = name.split(".")
    head, rest = parts[0], parts[1:]
    if head == "context":
        return ".".join([{"time": "time.0", "condition0": "condition.0", "condition1": "condition.1"}[rest[0]], *rest[1:]])
    if head == "blocks":
        part = {"first": "0", "second": "1"}.get(rest[1], rest[1])
        return ".".join(["block", rest[0], part, *rest[2:]])
    if head in ("down", "up"):
        return ".".join([head, rest[0], "block", *rest[1:]])
    if head == "halve":
        return ".".join(["down", str(int(rest[0]) + 1), *rest[1:]])
    return ".".join([{"enter": "in", "leave": "out", "norm": "out.norm", "image": "condition.image"}.get(head, head), *rest])


def load(name, folder):
    weights = load_file(os.path.join(folder, "model.safetensors"))
    data = load_file(os.path.join(folder, "data.safetensors"))
    model = NETWORKS[name](data["latent"].shape[1:], data["condition"].shape[1])
    state = {key: weights.pop(ours(key)).reshape(value.shape) for key, value in model.state_dict().items()}
    assert not weights, f"parameters that this network does not have: {sorted(weights)}"
    model.load_state_dict(state)
    return model, data


def decays(name, parameter):
    """Whether weight decay applies: not to biases, nor to the vectors of layer normalisations. A group normalisation's
    have three dimensions on the other side."""
    group_norm = parameter.dim() == 1 and state_rank.get(name, 1) > 1
    return parameter.dim() > 1 or group_norm


state_rank = {}


def main():
    name, folder = sys.argv[1:]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, data = load(name, folder)
    file = load_file(os.path.join(folder, "model.safetensors"))
    state_rank.update({key: file[ours(key)].dim() for key, _ in model.named_parameters()})
    inputs = (data["latent"], data["timestep"], data["condition"])
    decayed = [p for n, p in model.named_parameters() if decays(n, p)]
    others = [p for n, p in model.named_parameters() if not decays(n, p)]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    done = 0

    def step():
        nonlocal done
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(model(*inputs), data["target"])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        done += 1
        decay = min(EMA, (1 + done) / (10 + done))
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - decay)
        return loss.item()

    with torch.no_grad():
        loss = F.mse_loss(model(*inputs), data["target"]).item()
    print(json.dumps({"ready": True, "loss": loss}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            loss = step()
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), flush=True)


main()
