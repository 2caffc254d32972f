import math

import torch
import torch.nn as nn
import yaml

from .Transformer import BidirectionalTransformer
from .VQGAN import VQGAN


class MaskGit(nn.Module):
    def __init__(self, configs):
        super().__init__()
        self.vqgan = self.load_vqgan(configs["VQ_Configs"])
        self.num_image_tokens = configs["num_image_tokens"]
        self.mask_token_id = configs["num_codebook_vectors"]
        self.choice_temperature = configs["choice_temperature"]
        self.gamma = self.gamma_func(configs["gamma_type"])
        self.transformer = BidirectionalTransformer(configs["Transformer_param"])

    def load_transformer_checkpoint(self, load_ckpt_path):
        self.transformer.load_state_dict(torch.load(load_ckpt_path))

    @staticmethod
    def load_vqgan(configs):
        cfg = yaml.safe_load(open(configs["VQ_config_path"]))
        model = VQGAN(cfg["model_param"])
        model.load_state_dict(torch.load(configs["VQ_CKPT_path"]), strict=True)
        return model.eval()

    @torch.no_grad()
    def encode_to_z(self, x):
        latents, indices, _ = self.vqgan.encode(x)
        return latents, indices.reshape(len(x), -1)

    def gamma_func(self, mode="cosine"):
        if mode == "linear":
            return lambda r: 1 - r
        if mode == "cosine":
            return lambda r: math.cos(r * math.pi / 2)
        if mode == "square":
            return lambda r: 1 - r**2
        raise NotImplementedError(mode)

    def forward(self, x, generator=None):
        _, z = self.encode_to_z(x)
        hidden = torch.zeros_like(z, dtype=torch.bool)
        for row in hidden:
            count = math.ceil(self.gamma(torch.rand((), generator=generator).item()) * self.num_image_tokens)
            row[torch.randperm(self.num_image_tokens, generator=generator)[:count]] = True
        logits = self.transformer(torch.where(hidden, self.mask_token_id, z))
        return logits, z, hidden

    @torch.no_grad()
    def inpainting(self, z, mask, mask_num, ratio, mask_func):
        logits = self.transformer(torch.where(mask, self.mask_token_id, z))
        probability, drawn = logits.softmax(-1).max(-1)
        z = drawn
        gumbel = -torch.log(-torch.log(torch.rand_like(probability).clamp(1e-9, 1 - 1e-7)))
        confidence = probability + self.choice_temperature * (1 - ratio) * gumbel
        confidence = torch.where(mask, confidence, torch.inf)
        count = math.floor(self.gamma_func(mask_func)(ratio) * mask_num)
        rank = confidence.argsort(-1).argsort(-1)
        return z, rank < count
