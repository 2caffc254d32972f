import argparse
import os

import cv2
import numpy as np
import torch
import yaml
from models import MaskGit as VQGANTransformer
from torch.utils.data import DataLoader
from torchvision import utils as vutils
from utils import LoadMaskData, LoadTestData


class MaskGIT:
    def __init__(self, args, MaskGit_CONFIGS):
        self.model = VQGANTransformer(MaskGit_CONFIGS["model_param"]).to(device=args.device)
        self.model.load_transformer_checkpoint(args.load_transformer_ckpt_path)
        self.model.eval()
        if not 1 <= args.sweet_spot <= args.total_iter:
            raise ValueError(f"--sweet-spot must be 1 to {args.total_iter}, not {args.sweet_spot}")
        self.total_iter = args.total_iter
        self.mask_func = args.mask_func
        self.sweet_spot = args.sweet_spot
        self.device = args.device
        self.prepare()

    @staticmethod
    def prepare():
        for folder in ("test_results", "mask_scheduling", "imga"):
            os.makedirs(folder, exist_ok=True)

    def fill(self, picture):
        """The grey hole of a picture in 0..1 is filled from its edge, so that the encoder meets no grey."""
        pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        missing = (pixels == 128).all(-1).astype(np.uint8)
        filled = cv2.inpaint(pixels, missing, 3, cv2.INPAINT_TELEA)
        return torch.from_numpy(filled).permute(2, 0, 1).float() / 255

    def inpainting(self, image, mask_b, i):
        maska = torch.zeros(self.total_iter, 3, 16, 16)
        imga = torch.zeros(self.total_iter + 1, 3, 64, 64)
        mean = torch.tensor([0.4868, 0.4341, 0.3844], device=self.device).view(3, 1, 1)
        std = torch.tensor([0.2620, 0.2527, 0.2543], device=self.device).view(3, 1, 1)
        imga[0] = image[0] * std + mean

        with torch.no_grad():
            filled = (self.fill(imga[0]) - mean) / std
            _, z_indices_predict = self.model.encode_to_z(filled[None])
            mask_num = int(mask_b.sum())
            mask_bc = mask_b
            for step in range(self.total_iter):
                if step == self.sweet_spot:
                    break
                ratio = step / self.total_iter
                z_indices_predict, mask_bc = self.model.inpainting(
                    z_indices_predict, mask_bc, mask_num, ratio, self.mask_func
                )
                maska[step] = (~mask_bc).view(1, 16, 16).float()
                z_q = self.model.vqgan.codebook.embedding(z_indices_predict).view(1, 16, 16, 256)
                decoded_img = self.model.vqgan.decode(z_q.permute(0, 3, 1, 2))
                dec_img_ori = decoded_img[0] * std + mean
                imga[step + 1] = dec_img_ori
            vutils.save_image(dec_img_ori, os.path.join("test_results", f"image_{i:03d}.png"), nrow=1)
            vutils.save_image(maska, os.path.join("mask_scheduling", f"test_{i}.png"), nrow=10)
            vutils.save_image(imga, os.path.join("imga", f"test_{i}.png"), nrow=7)


class MaskedImage:
    def __init__(self, args):
        self.mi_ori = DataLoader(LoadTestData(root=args.test_maskedimage_path, partial=args.partial), batch_size=1)
        self.mask_ori = DataLoader(LoadMaskData(root=args.test_mask_path, partial=args.partial), batch_size=1)
        self.device = args.device

    def get_mask_latent(self, mask):
        known = torch.nn.functional.avg_pool2d(mask, kernel_size=4, stride=4)[:, 0].flatten(1) == 1
        return ~known.to(self.device)  # true means masked


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="MaskGIT for Inpainting")
    parser.add_argument("--device", type=str, default="cuda")
    parser.add_argument("--partial", type=float, default=1.0)
    parser.add_argument("--MaskGitConfig", type=str, default="config/MaskGit.yml")
    parser.add_argument("--load-transformer-ckpt-path", type=str, default="./checkpoints/last.pt")
    parser.add_argument("--test-maskedimage-path", type=str, default="./lab5_dataset/masked_image")
    parser.add_argument("--test-mask-path", type=str, default="./lab5_dataset/mask64")
    parser.add_argument("--sweet-spot", type=int, default=8)
    parser.add_argument("--total-iter", type=int, default=8)
    parser.add_argument("--mask-func", type=str, default="cosine", choices=["cosine", "linear", "square"])
    args = parser.parse_args()

    t = MaskedImage(args)
    maskgit = MaskGIT(args, yaml.safe_load(open(args.MaskGitConfig)))
    for i, (image, mask) in enumerate(zip(t.mi_ori, t.mask_ori, strict=True)):
        maskgit.inpainting(image.to(args.device), t.get_mask_latent(mask), i)
