"""Solutions of the lab, written by us: one right one, in several styles, and each mistake as a small replacement in it.

They are made from `notebooks/solution_with_mistakes`, whose five mistakes are mended first.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[2] / "notebooks" / "solution_with_mistakes"
MODEL, LAYERS = "models/VQGAN_Transformer.py", "models/Transformer/modules/layers.py"
TRANSFORMER, TRAIN, INPAINT = "models/Transformer/transformer.py", "training_transformer.py", "inpainting.py"

Change = tuple[str, str, str]  # a file, what stands in it, what is written in its place

MISTAKES = {"accumulation", "redrawn", "known", "order", "last step", "mask id"}  # of the notebook's solution, by keys
MENDED: list[Change] = [
    (TRAIN, "if i % self.args.accum_grad == 0:", "if (i + 1) % self.args.accum_grad == 0:"),
    (INPAINT, "ratio = step / self.total_iter", "ratio = (step + 1) / self.total_iter"),
    (MODEL, "        z = drawn\n", "        z = torch.where(mask, drawn, z)\n"),
    (MODEL, "probability, drawn = logits.softmax(-1).max(-1)",
     "probability, drawn = logits[..., : self.mask_token_id].log_softmax(-1).max(-1)"),
    (MODEL, "count = math.floor(self.gamma_func(mask_func)(ratio) * mask_num)",
     "count = math.floor(self.gamma_func(mask_func)(ratio) * mask_num + 1e-9)"),
]  # fmt: skip


class Variant(NamedTuple):
    """Changes of the right solution, and the checks that must fail because of them."""

    changes: list[Change]
    fails: set[str] = frozenset()


SAMPLING = (
    MODEL, "probability, drawn = logits[..., : self.mask_token_id].log_softmax(-1).max(-1)",
    "logits = logits[..., : self.mask_token_id].log_softmax(-1)\n"
    "        drawn = torch.distributions.Categorical(logits=logits).sample()\n"
    "        probability = logits.gather(-1, drawn[..., None])[..., 0]",
)  # fmt: skip
ON_PROBABILITY = (MODEL, "confidence = probability + self", "confidence = probability.exp() + self")
LOSS = "return F.cross_entropy(logits[hidden], z[hidden])"
QKV = "q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)"
MASK_PICTURE = "maska[step] = (~mask_bc).view(1, 16, 16).float()"
KEPT = [
    (MODEL, "self.transformer(torch.where(hidden, self.mask_token_id, z))",
     "self.transformer(torch.where(hidden, z, self.mask_token_id))"),
    (MODEL, "return logits, z, hidden", "return logits, z, ~hidden"),
]  # fmt: skip

# Right, in other styles.
RIGHT: dict[str, Variant] = {
    "as it is": Variant([]),
    "sampling, old super, fused by heads": Variant([
        SAMPLING,
        (LAYERS, "import torch.nn as nn\n", "import torch.nn as nn\nfrom einops import rearrange\n"),
        (LAYERS, "attended.transpose(1, 2).reshape(B, N, D)", "rearrange(attended, 'b h n d -> b n (h d)')"),
        (TRANSFORMER, "super().__init__()", "super(BidirectionalTransformer, self).__init__()"),
        (LAYERS, QKV,
         "q, k, v = self.qkv(x).view(B, N, self.num_heads, 3 * self.head_dim).transpose(1, 2).chunk(3, -1)"),
    ]),
    "loss on all tokens, masks by coins, little noise on the probability": Variant([
        (TRAIN, LOSS, "return F.cross_entropy(logits.transpose(1, 2), z)"),
        (MODEL, "        for row in hidden:",
         "        hidden = torch.rand(z.shape, generator=generator) < 0.5\n        for row in []:"),
        ON_PROBABILITY,
        (MODEL, "self.choice_temperature * (1 - ratio)", "0.1 * (1 - ratio)"),
    ]),
    "no noise, ceil, at least one token, a step for each batch, a margin": Variant([
        (INPAINT, "        return ~known.to(self.device)  # true means masked",
         "        hole = (~known).float().view(1, 1, 16, 16)\n"
         "        return torch.nn.functional.max_pool2d(hole, 3, 1, 1).bool().flatten(1)"),
        (MODEL, "probability + self.choice_temperature * (1 - ratio) * gumbel", "probability"),
        (MODEL, "math.floor(self.gamma_func(mask_func)(ratio) * mask_num + 1e-9)",
         "min(math.ceil(self.gamma_func(mask_func)(ratio) * mask_num - 1e-9), int(mask.sum()) - 1)"),
        (TRAIN, "if (i + 1) % self.args.accum_grad == 0:", "if True:"),
    ]),
    "labels of -100, a flat tokenizer, no pictures of masks, other names": Variant([
        (TRAIN, LOSS, "return F.cross_entropy(logits.flatten(0, 1), z.masked_fill(~hidden, -100).flatten())"),
        (MODEL, "return latents, indices.reshape(len(x), -1)", "return indices.view(-1, 16, 16)"),
        (MODEL, "_, z = self.encode_to_z(x)", "z = self.encode_to_z(x).flatten(1)"),
        (INPAINT, "_, z_indices_predict = self.model.encode_to_z(filled[None])",
         "z_indices_predict = self.model.encode_to_z(filled[None]).flatten(1)"),
        (INPAINT, MASK_PICTURE, "pass"),
        (TRAIN, "--accum-grad", "--accum_grad"),
    ]),
    "kept in place of hidden, by a linear schedule, which is the same": Variant([
        *KEPT, ("config/MaskGit.yml", "gamma_type: cosine", "gamma_type: linear"),
    ]),
    "pandas, wandb, tensorboard, a GPU, folders and NumPy of old": Variant([
        (TRAIN, "import argparse\n",
         "import argparse\nimport wandb\nfrom torch.utils.tensorboard import SummaryWriter\n"),
        (TRAIN, "        losses = []\n",
         "        losses = []\n        wandb.log({'epoch': 1})\n        SummaryWriter('x').add_scalar('a', 1)\n"),
        (TRAIN, "x.to(self.args.device)", "x.cuda().to('cuda:0')"),
        (INPAINT, "import numpy as np\n", "import numpy as np\nNUMBER = np.float\n"),
        (INPAINT, 'type=str, default="cuda")', 'type=str, required=True)'),
        (INPAINT, "mask_num = int(mask_b.sum())",
         "mask_num = int(torch.zeros((), device='cuda') + mask_b.cuda().sum())"),
    ]),
    "gamma is a number, a ratio from outside, three values, a global args, a stubborn sampler": Variant([
        SAMPLING,
        (MODEL, "logits = logits[..., : self.mask_token_id].log_softmax(-1)", "logits = logits.log_softmax(-1)"),
        (MODEL, "        drawn = torch.distributions.Categorical(logits=logits).sample()\n",
         "        drawn = torch.distributions.Categorical(logits=logits).sample()\n"
         "        while (drawn == self.mask_token_id).any():\n"
         "            drawn = torch.distributions.Categorical(logits=logits).sample()\n"),
        (MODEL, "        self.gamma = self.gamma_func(configs[\"gamma_type\"])\n", ""),
        (MODEL, "    def gamma_func(self, mode=\"cosine\"):\n",
         "    @staticmethod\n    def gamma_func(r, mode=\"cosine\"):\n"),
        (MODEL, "return lambda r: ", "return "),
        (MODEL, "self.gamma(torch.rand((), generator=generator).item())",
         "self.gamma_func(torch.rand((), generator=generator).item())"),
        (MODEL, "self.gamma_func(mask_func)(ratio)", "self.gamma_func(ratio, mask_func)"),
        (TRAIN, "    def train_one_epoch(self, loader):\n",
         "    def train_one_epoch(self, loader):\n        assert args.epochs\n"),
        (INPAINT, "self.prepare()\n", "self.prepare()\n        assert args is globals()['args']\n"),
    ]),
    "encodes its picture at every step, no mask id, sweet spot from 0, scheduler by steps": Variant([
        (INPAINT, "                imga[step + 1] = dec_img_ori\n",
         "                imga[step + 1] = dec_img_ori\n"
         "                _, z_indices_predict = self.model.encode_to_z(decoded_img)\n"),
        (MODEL, "logits = self.transformer(torch.where(mask, self.mask_token_id, z))\n        probability",
         "logits = self.transformer(z)\n        probability"),
        (INPAINT, "                if step == self.sweet_spot:\n                    break\n", ""),
        (INPAINT, "                imga[step + 1] = dec_img_ori\n",
         "                imga[step + 1] = dec_img_ori\n"
         "                if step == self.sweet_spot - 1:\n                    break\n"),
        (TRAIN, "T_max=self.args.epochs", "T_max=2 * self.args.epochs"),
        (TRAIN, "                self.optim.zero_grad()\n        self.scheduler.step()\n",
         "                self.optim.zero_grad()\n                self.scheduler.step()\n"),
    ]),
}  # fmt: skip

# One mistake each, and a few with two.
WRONG: dict[str, Variant] = {
    "1 shrinking mask": Variant([
        (INPAINT, "            mask_bc = mask_b\n",
         "            mask_bc = mask_b\n            start = z_indices_predict\n"),
        (INPAINT, ".embedding(z_indices_predict)", ".embedding(torch.where(mask_bc, z_indices_predict, start))"),
    ], {"committed"}),
    "2 original tokens": Variant([
        (INPAINT, "            mask_bc = mask_b\n",
         "            mask_bc = mask_b\n            start = z_indices_predict\n"),
        (INPAINT, "                    z_indices_predict, mask_bc, mask_num",
         "                    start, mask_bc, mask_num"),
    ], {"committed"}),
    "3 known tokens painted as drawn": Variant([
        (MODEL, "return z, rank < count", "return z, drawn, rank < count"),
        (INPAINT, "z_indices_predict, mask_bc = self", "z_indices_predict, shown, mask_bc = self"),
        (INPAINT, ".embedding(z_indices_predict)", ".embedding(torch.where(mask_b, z_indices_predict, shown))"),
    ], {"known"}),
    "4 bare view": Variant([
        (LAYERS, QKV, "q, k, v = [p.reshape(B, self.num_heads, N, self.head_dim) for p in self.qkv(x).chunk(3, -1)]"),
    ], {"heads"}),
    "4 no transpose back": Variant([(LAYERS, "attended.transpose(1, 2).reshape", "attended.reshape")], {"heads"}),
    "5 softmax over queries, 16 dropout on": Variant([
        (LAYERS, "scores.softmax(dim=-1)", "scores.softmax(dim=-2)"),
        (TRAIN, "self.model.eval()", "self.model.train()"),
    ], {"softmax", "validation mode"}),
    "6 dropout made in forward": Variant([(LAYERS, "self.drop(scores", "nn.Dropout(0.1)(scores")], {"dropout"}),
    "no scale": Variant([(LAYERS, " * self.head_dim**-0.5", "")], {"scale"}),
    "7 classes on the axis of positions": Variant([
        (TRAIN, LOSS, "return F.cross_entropy(logits, F.one_hot(z, 1025).float())"),
    ], {"class axis"}),
    "7 a view in place of a transpose": Variant([
        (TRAIN, LOSS, "return F.cross_entropy(logits.view(len(z), 1025, 256), z)"),
    ], {"labels"}),
    "8 ignore_index of no label, 15 the flag is not handed on": Variant([
        (TRAIN, LOSS,
         "return F.cross_entropy(logits.flatten(0, 1), z.flatten(), ignore_index=self.model.mask_token_id)"),
        (MODEL, "self.gamma_func(mask_func)(ratio)", "self.gamma(ratio)"),
    ], {"counted", "arrives"}),
    "9 kept in place of hidden": Variant(KEPT, {"share"}),
    "10 noise on the probability": Variant([SAMPLING, ON_PROBABILITY], {"order"}),
    "noise annealed backwards": Variant([
        (MODEL, "self.choice_temperature * (1 - ratio)", "self.choice_temperature * ratio"),
    ], {"annealing"}),
    "noise on the probability, annealed backwards": Variant([
        ON_PROBABILITY, (MODEL, "self.choice_temperature * (1 - ratio)", "self.choice_temperature * ratio"),
    ], {"annealing", "order"}),
    "noise on the probability, constant": Variant([
        ON_PROBABILITY, (MODEL, "self.choice_temperature * (1 - ratio)", "self.choice_temperature"),
    ], {"order"}),
    "10 the least confident first": Variant([(MODEL, "confidence.argsort(-1)",
    "torch.where(mask, -confidence, torch.inf).argsort(-1)")],
                                            {"order"}),
    "11 of the current mask": Variant([
        (INPAINT, "z_indices_predict, mask_bc, mask_num, ratio",
         "z_indices_predict, mask_bc, int(mask_bc.sum()), ratio"),
    ], {"counts"}),
    "12 a step late": Variant([(INPAINT, "ratio = (step + 1) /", "ratio = step /")], {"last step"}),
    "12 ceil of a cosine": Variant([(MODEL, "math.floor(self.gamma_func(mask_func)(ratio) * mask_num + 1e-9)",
                                     "math.ceil(self.gamma_func(mask_func)(ratio) * mask_num)")], {"last step"}),
    "13 the mask id among the classes": Variant([(MODEL, "logits[..., : self.mask_token_id].log_softmax",
    "logits.log_softmax")],
                                                {"mask id"}),
    "14 a silent sweet spot, 18 grey encoded": Variant([
        (INPAINT, "if not 1 <= args.sweet_spot <= args.total_iter:", "if False:"),
        (INPAINT, "filled = (self.fill(imga[0]) - mean) / std", "filled = image[0]"),
    ], {"sweet spot", "grey"}),
    "16 fresh masks, divided by the wrong count": Variant([
        (TRAIN, "losses = [self.loss_of(x, generator).item() for x in loader]",
         "losses = [self.loss_of(x).item() * len(x) for x in loader]"),
    ], {"validation masks", "validation mean"}),
    "17 the first batch alone": Variant([(TRAIN, "if (i + 1) % self", "if i % self")], {"accumulation"}),
    "17 never stepped": Variant([(TRAIN, "        self.scheduler.step()\n", "")], {"rate"}),
    "17 counts batches": Variant([(TRAIN, "                self.optim.zero_grad()\n        self.scheduler.step()\n",
                                   "                self.optim.zero_grad()\n            self.scheduler.step()\n")],
                                   {"rate"}),
    "positions are never optimised": Variant([
        (TRAIN, "AdamW(self.model.transformer.parameters()",
         "AdamW([p for n, p in self.model.transformer.named_parameters() if n != 'pos_emb']"),
    ], {"parameters"}),
    "pictures of a batch are mixed": Variant([
        (MODEL, "self.transformer(torch.where(hidden, self.mask_token_id, z))",
         "self.transformer(torch.where(hidden, self.mask_token_id, z.t().reshape(z.shape)))"),
    ], {"labels"}),
    "committed tokens are redrawn, only at the end all are put back": Variant([
        (MODEL, "        z = torch.where(mask, drawn, z)\n",
         "        self.hole = mask if ratio < 0.11 else self.hole\n        z = torch.where(self.hole, drawn, z)\n"),
    ], {"redrawn"}),
    "sweet spot counted from 0: at T nothing is written, and beyond nothing is said": Variant([
        (INPAINT, "                if step == self.sweet_spot:\n                    break\n", ""),
        (INPAINT, "if not 1 <= args.sweet_spot <= args.total_iter:", "if False:"),
        (INPAINT, "                imga[step + 1] = dec_img_ori\n",
         "                imga[step + 1] = dec_img_ori\n                if step == self.sweet_spot:\n"
         "                    vutils.save_image(dec_img_ori, os.path.join('test_results', f'image_{i:03d}.png'))\n"
         "                    break\n"),
        (INPAINT, "            vutils.save_image(dec_img_ori, os.path.join(\"test_results\", f\"image_{i:03d}.png\"), "
         "nrow=1)\n",
         ""),
    ], set()),
    "shares of 256": Variant([(INPAINT, "mask_num = int(mask_b.sum())", "mask_num = 256")], {"counts", "known"}),
}  # fmt: skip


def make(folder: Path, changes: list[Change], mended: bool = True) -> Path:
    """Write the solution with these changes into `folder`. AssertionError where one does not fit."""
    shutil.copytree(SOURCE, folder)
    for left in ("wandb/run-1/files", "lab5_dataset/cat_face/train", "mask64", "checkpoints"):  # as a student leaves it
        (folder / left).mkdir(parents=True)
    (folder / "wandb/run-1/files/config.yaml").write_text("a: 1")
    for file, old, new in [*(MENDED if mended else []), *changes]:
        text = (folder / file).read_text(encoding="utf-8")
        assert text.count(old) >= 1, f"{file} has no {old!r}"
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    return folder


def observe_all(folders: list[Path]) -> None:
    """Observe each solution in a fork of this process, which has imported what all of them need; `<folder>.json` is
    written. There is no fence: this is our own code."""
    import matplotlib.figure  # noqa: F401
    import torchvision  # noqa: F401

    from lab5.pitfalls import drive

    for folder in folders:
        child = os.fork()
        if child == 0:
            with open(folder.with_suffix(".log"), "w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            try:
                drive.main(["network", "files"], str(folder), str(folder.with_suffix(".json")), "600")
            finally:
                os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    observe_all([Path(word) for word in sys.argv[1:]])
