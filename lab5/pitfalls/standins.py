"""What stands in the place of networks, pictures and missing packages while somebody's solution is observed.

A picture here is 16x16 flat blocks whose colours are its tokens, so that the stand-in for the VQGAN encodes and decodes
without weights, and encodes again what it has painted. The stand-in for the transformer, the oracle, answers with codes
that say at which call they were given: a painted token tells when it was drawn.
"""

import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GRID, N, K, BLOCK = 16, 256, 1024, 4
STEPS = 10  # T of every decoding
GREY = 548  # the code of (128, 128, 128), which is what the lab's test images show in their holes
MEAN, STD = torch.tensor([0.4868, 0.4341, 0.3844]), torch.tensor([0.2620, 0.2527, 0.2543])
LEVELS = torch.tensor([16, 8, 8])  # of red, green and blue: 1024 colours
HOLES = (85, 85, 60, 110, 31, 139)  # tokens of the test images' holes
# Codes in use: none near grey, and not the last, which a mask id becomes where it is clamped.
CODES = torch.tensor([c for c in range(K - 1) if not (c >> 6 in (7, 8) and c >> 3 & 7 in (3, 4) and c & 7 in (3, 4))])
AT = torch.full((K + 1,), -1).scatter(0, CODES, torch.arange(len(CODES)))  # a code's place among them


# --- pictures whose blocks are tokens ---------------------------------------------------------------------------


def paint(tokens: Int64[Tensor, "B 256"]) -> UInt8[Tensor, "B 3 64 64"]:
    """Tokens as bytes."""
    levels = torch.stack([tokens >> 6, tokens >> 3 & 7, tokens & 7], dim=1)  # (B,3,N)
    colours = (levels * 2 + 1) * (128 // LEVELS)[:, None]
    colours = torch.where((tokens == GREY)[:, None], 128, colours).view(-1, 3, GRID, GRID)
    return colours.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3).to(torch.uint8)


def read(pixels: Float[Tensor, "B 3 64 64"]) -> Int64[Tensor, "B 256"]:
    """Pictures in 0..1 as tokens: the nearest colour of each block."""
    blocks = pixels.float().unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK).flatten(4).median(-1).values * 255
    blocks = blocks.flatten(2)  # (B,3,N)
    levels = (blocks / (256 // LEVELS)[:, None]).floor().clamp(min=0).minimum((LEVELS - 1)[:, None]).long()
    tokens = (levels[:, 0] << 6) + (levels[:, 1] << 3) + levels[:, 2]
    return torch.where(((blocks - 128).abs() < 5).all(1), GREY, tokens)


class Enough(BaseException):
    """As many pictures as are needed were filled: the script is not waited for."""


class World:
    """The images of a run, what the oracle answers, and a record of what it was asked."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(10**6 + seed)  # the solution's own draws begin at 0
        self.start = torch.randint(len(CODES), (N,), generator=self.generator)  # where a position's codes begin
        self.unknown = self._holes()
        self.images = {name: self._tokens(n) for name, n in (("train", 32), ("val", 8), ("test", len(HOLES)))}
        self.names = {
            tuple(sorted(row)): (name, i) for name, t in self.images.items() for i, row in enumerate(t.tolist())
        }
        self.answer: Callable[[Tensor], Tensor] | None = None  # tokens (B,N) -> logits (B,N,classes)
        self.classes = K + 1
        self.events: list[dict[str, Any]] = []
        self.encoded: Tensor | None = None  # what the stand-in for the VQGAN has last encoded
        self.temperature: float | None = None  # of the choice, in the place of the solution's own
        self.enough = len(HOLES)  # pictures of a run
        self.picture, self.calls = -1, 0  # which test image is being filled, and calls of the oracle for it so far

    def _tokens(self, images: int) -> Tensor:
        """Codes that the oracle gives in none of its first hundred calls."""
        away = torch.randint(300, len(CODES) - 1, (images, N), generator=self.generator)
        return CODES[(self.start + away) % len(CODES)]

    def _holes(self) -> Tensor:
        """Connected ones, as blobs around a place, (images, N)."""
        place = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij"), -1).view(N, 2)
        holes = []
        for size in HOLES:
            centre = torch.randint(5, 11, (2,), generator=self.generator)
            distance = (place - centre).float().norm(dim=1) + torch.rand(N, generator=self.generator)
            holes.append(distance.argsort().argsort() < size)
        return torch.stack(holes)

    def when(self, codes: Int64[Tensor, "256"]) -> Int64[Tensor, "256"]:
        """At which call each position's code was given, by the oracle that is sure; -1 for other codes."""
        place = (AT[codes] - self.start) % len(CODES)
        return torch.where((AT[codes] >= 0) & (place < 200), place // 2, -1)

    def write(self, folder: Path) -> None:
        """The data set as the lab has it: train, val, masked_image and mask64."""
        for name in ("train", "val"):
            for i, picture in enumerate(paint(self.images[name])):
                _save(picture, folder / name / f"image_{i:05d}.png")
        for i, picture in enumerate(paint(self.images["test"])):
            missing = self.unknown[i].view(GRID, GRID).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1).clone()
            edge = int(self.unknown[i].nonzero()[-1])  # of one token of the hole a single pixel is missing
            y, x = divmod(edge, GRID)
            missing[y * BLOCK : (y + 1) * BLOCK, x * BLOCK : (x + 1) * BLOCK] = False
            missing[y * BLOCK, x * BLOCK] = True
            _save(picture.masked_fill(missing, 128), folder / "masked_image" / f"image_{i:03d}.png")
            mask = (~missing).to(torch.uint8) * 255
            _save(mask[None].expand(3, -1, -1), folder / "mask64" / f"mask_{i:03d}.png", "L")

    # --- answers of the oracle

    def sure(self, tokens: Tensor) -> Tensor:
        """Of two codes that tell the call, one has 0.6 to 0.99, the other the rest; no two positions are alike."""
        logits = torch.full((*tokens.shape, self.classes), -60.0)
        place = self.start + 2 * min(self.calls, 99)
        p = torch.linspace(0.6, 0.99, N)[torch.randperm(N, generator=self.generator)].expand(tokens.shape)
        for codes, chance in ((CODES[place % len(CODES)], p), (CODES[(place + 1) % len(CODES)], 1 - p)):
            logits.scatter_(-1, codes.expand(tokens.shape)[..., None], chance.log()[..., None])
        return logits

    def certain(self) -> Tensor:
        """Which positions the oracle `in_two_minds` is certain of, (N,)."""
        return torch.rand(N, generator=torch.Generator().manual_seed(7)) < 0.5

    def in_two_minds(self, tokens: Tensor) -> Tensor:
        """Nearly certain of half of the positions; of the others without opinion, but for what tells them apart."""
        logits = torch.randn(*tokens.shape, self.classes, generator=self.generator) * 0.2
        logits[..., K:] = -60.0
        certain = self.certain()
        p = torch.linspace(0.95, 0.99, N)[torch.randperm(N, generator=self.generator)].expand(tokens.shape)
        sharp = torch.full_like(logits, -60.0).scatter(-1, CODES[self.start].expand(tokens.shape)[..., None], 0.0)
        other = CODES[(self.start + 1) % len(CODES)].expand(tokens.shape)[..., None]
        sharp.scatter_(-1, other, ((1 - p) / p).log()[..., None])
        return torch.where(certain[:, None], sharp, logits)

    def tempted(self) -> Tensor:
        """Two positions of each hole, (images, N)."""
        rank = self.unknown.cumsum(1)
        return self.unknown & ((rank == 5) | (rank == 15))

    def tempted_by_the_mask_id(self, tokens: Tensor) -> Tensor:
        """Sure of its codes, but at two positions of the hole the mask id has 0.6, if it is a class at all."""
        logits = self.sure(tokens)
        if self.classes > K:
            logits[..., K] = torch.where(self.tempted()[self.picture], math.log(1.5), -60.0)
        return logits

    def without_opinion(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, self.classes)


def _save(picture: Tensor, path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).convert(mode).save(path)


# --- networks -----------------------------------------------------------------------------------------------------


class Embedding(nn.Embedding):
    """1024 code vectors; it records what it is asked to look up, and takes the mask id, which is beyond them."""

    def __init__(self, world: World):
        super().__init__(K, N)
        self.weight.data = torch.randn(K, N, generator=torch.Generator().manual_seed(3))
        self.world = world

    def forward(self, tokens: Tensor) -> Tensor:
        self.world.events.append({"kind": "painted", "tokens": tokens.detach().reshape(-1).clone()})
        return super().forward(tokens.clamp(0, K - 1))


def vqgan_of(world: World) -> type[nn.Module]:
    """The class that stands for the VQGAN."""

    class Codebook(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = Embedding(world)

    class VQGAN(nn.Module):
        def __init__(self, *_: Any, **__: Any):
            super().__init__()
            self.codebook = Codebook()

        def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Latents (B,256,16,16), indices (B*256), a loss of 0."""
            tokens = read(images.detach().cpu() * STD[:, None, None] + MEAN[:, None, None])
            world.encoded = tokens
            known = [world.names.get(tuple(sorted(row))) for row in tokens.tolist()]
            event = {"kind": "encode", "images": known, "tokens": tokens}
            if (image := _test_image(world, tokens)) not in (None, world.picture):  # else it encodes what it painted
                if sum(event["kind"] == "new picture" for event in world.events) == world.enough:
                    raise Enough
                world.events.append({"kind": "new picture", "image": image})
                world.picture, world.calls = image, 0
            world.events.append(event)
            vectors = self.codebook.embedding.weight.detach()[tokens]
            return vectors.view(-1, GRID, GRID, N).permute(0, 3, 1, 2), tokens.reshape(-1), torch.zeros(())

        def decode(self, latents: Tensor) -> Tensor:
            """Pictures in the lab's normalised units."""
            vectors = latents.detach().permute(0, 2, 3, 1).reshape(-1, N)
            weight = self.codebook.embedding.weight.detach()
            tokens = (2 * vectors @ weight.T - weight.square().sum(1)).argmax(-1).view(-1, N)
            return (paint(tokens) / 255 - MEAN[:, None, None]) / STD[:, None, None]

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            latents, tokens, loss = self.encode(images)
            return self.decode(latents), tokens, loss

    return VQGAN


def _test_image(world: World, tokens: Tensor) -> int | None:
    """Which test image this is, untouched but for its hole."""
    if len(tokens) != 1:
        return None
    same = (tokens == world.images["test"]) | world.unknown
    whole = same.all(1).nonzero().flatten().tolist()
    return whole[0] if len(whole) == 1 else None


class Bare(nn.Module):
    """The transformer of a solution that has none of its own."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()
        self.vocab_size, self.num_image_tokens = K + 1, N
        self.tok_emb, self.pos_emb = nn.Embedding(K + 1, 8), nn.Parameter(torch.zeros(N, 8))


ONE_LAYER = {"n_layers": 1, "num_layers": 1, "depth": 1}
LOOKED_AT = 12  # gradients of a training's first calls
SMALL = {"dim": 64, "hidden_dim": 64}


def become_oracle(own: type[nn.Module], world: World) -> None:
    """Make of the solution's own transformer one with a single layer, whose answers are the oracle's.

    The class stays the one that it is: `super(BidirectionalTransformer, self)` looks for it by its name.
    """
    make = own.__init__

    def __init__(self: nn.Module, *arguments: Any, **named: Any) -> None:
        for sizes in (SMALL | ONE_LAYER, ONE_LAYER):
            fewer = [a | {k: sizes[k] for k in sizes if k in a} if isinstance(a, dict) else a for a in arguments]
            try:
                return make(self, *fewer, **named)
            except (AssertionError, RuntimeError, ValueError):  # its sizes are written into it
                if sizes is ONE_LAYER:
                    raise

    def forward(self: nn.Module, tokens: Tensor, *_: Any, **__: Any) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.shape[1] != N or tokens.is_floating_point():
            found = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TypeError(f"the transformer must be given tokens (B, {N}), not {found}")
        event = {"kind": "model", "tokens": tokens.detach().clone().long(), "truth": world.encoded, "self": self,
                 "training": self.training}  # fmt: skip
        world.events.append(event)
        logits = world.answer(tokens)
        world.calls += 1
        if torch.is_grad_enabled():
            logits = logits + 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
            if logits.requires_grad and world.calls <= LOOKED_AT:
                logits.register_hook(lambda gradient: event.update(gradient=gradient.detach().clone()))
        return logits

    own.__init__, own.forward = __init__, forward


# --- packages that are missing --------------------------------------------------------------------------------------


class Inert:
    """Takes part in anything and does nothing."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __getattr__(self, name: str) -> "Inert":
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Inert()

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        only_a_function = len(arguments) == 1 and callable(arguments[0]) and not isinstance(arguments[0], Inert)
        return arguments[0] if only_a_function else Inert()  # as a decorator

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __enter__(self) -> "Inert":
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return False

    def __getitem__(self, _: Any) -> "Inert":
        return Inert()

    def __setitem__(self, *_: Any) -> None:
        return None

    def __float__(self) -> float:
        return 0.0

    def __int__(self) -> int:
        return 0

    def __format__(self, _: str) -> str:
        return ""


class InertModule(ModuleType):
    """A package of which every name is inert."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Inert if name[:1].isupper() else Inert()


def rearrange(tensor: Any, pattern: str, **sizes: int) -> Tensor:
    """einops' own, for patterns of names and groups, such as "b n (h d) -> b h n d"."""
    tensor = torch.stack(list(tensor)) if isinstance(tensor, list | tuple) else tensor
    left, right = (
        [part.strip("()").split() for part in re.findall(r"\([^)]*\)|\S+", side)] for side in pattern.split("->")
    )
    for names, size in zip(left, tensor.shape, strict=True):
        known = math.prod(sizes.get(name, 1) for name in names)
        sizes |= {name: size // known for name in names if name not in sizes}
    order = [name for names in left for name in names]
    whole = tensor.reshape([sizes[name] for name in order])
    moved = whole.permute([order.index(name) for names in right for name in names])
    return moved.reshape([math.prod(sizes[name] for name in names) for names in right])


class Rearrange(nn.Module):
    """The same as a layer."""

    def __init__(self, pattern: str, **sizes: int):
        super().__init__()
        self.pattern, self.sizes = pattern, sizes

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, self.pattern, **self.sizes)


BETWEEN = ("importlib", "jaxtyping", "beartype")  # on the stack, between who imports and who looks for it


class MissingPackages(MetaPathFinder, Loader):
    """The last place where Python looks for a module: what is not installed is inert, and its name is kept."""

    def __init__(self, own: set[str]):
        self.own = own  # of the solution itself: what is missing there is its mistake
        self.names: list[str] = []
        if importlib.util.find_spec("tensorboard") is None:  # torch brings the door to it
            sys.modules["torch.utils.tensorboard"] = InertModule("torch.utils.tensorboard")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top = name.partition(".")[0]
        if top in self.own or top in sys.stdlib_module_names or (name != top and top not in self.names):
            return None
        if top not in self.names:
            caller = sys._getframe(1)
            while caller is not None and any(name in caller.f_code.co_filename for name in BETWEEN):
                caller = caller.f_back
            if caller is None or "site-packages" in caller.f_code.co_filename:
                return None  # a package that tries what else is there
            self.names.append(top)
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = InertModule(spec.name)
        if spec.name.partition(".")[0] == "einops":
            module.rearrange, module.Rearrange = rearrange, Rearrange
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


# --- a GPU that is not there ----------------------------------------------------------------------------------------


class NoGPU(TorchFunctionMode):
    """What is asked for on a GPU is made on the CPU."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.cuda:
            return args[0]
        if "device" in kwargs:
            kwargs = kwargs | {"device": _on_cpu(kwargs["device"])}
        if function is torch.Tensor.to:
            args = tuple(map(_on_cpu, args))
        return function(*args, **kwargs)


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, str | torch.device) and str(value).startswith("cuda") else value


class Anything(dict):
    """In the place of a checkpoint that is not there: it has every entry, and nothing in it."""

    def __missing__(self, key: Any) -> Any:
        return Anything() if not isinstance(key, str) or "epoch" not in key else 0
