import argparse
import os

import torch
import torch.nn.functional as F
import yaml
from models import MaskGit as VQGANTransformer
from torch.utils.data import DataLoader
from utils import LoadTrainData


class TrainTransformer:
    def __init__(self, args, MaskGit_CONFIGS):
        self.model = VQGANTransformer(MaskGit_CONFIGS["model_param"]).to(device=args.device)
        self.args = args
        self.optim, self.scheduler = self.configure_optimizers()
        os.makedirs(args.checkpoint_path, exist_ok=True)

    def loss_of(self, x, generator=None):
        logits, z, hidden = self.model(x.to(self.args.device), generator)
        return F.cross_entropy(logits[hidden], z[hidden])

    def train_one_epoch(self, loader):
        self.model.train()
        losses = []
        for i, x in enumerate(loader):
            loss = self.loss_of(x)
            losses.append(loss.item())
            (loss / self.args.accum_grad).backward()
            if i % self.args.accum_grad == 0:
                self.optim.step()
                self.optim.zero_grad()
        self.scheduler.step()
        return sum(losses) / len(losses)

    @torch.no_grad()
    def eval_one_epoch(self, loader):
        self.model.eval()
        generator = torch.Generator().manual_seed(0)
        losses = [self.loss_of(x, generator).item() for x in loader]
        return sum(losses) / len(losses)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.model.transformer.parameters(), lr=self.args.learning_rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.args.epochs)
        return optimizer, scheduler


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="MaskGIT")
    parser.add_argument("--train_d_path", type=str, default="./lab5_dataset/train/")
    parser.add_argument("--val_d_path", type=str, default="./lab5_dataset/val/")
    parser.add_argument("--checkpoint-path", type=str, default="./checkpoints")
    parser.add_argument("--device", type=str, default="cuda:0")
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--partial", type=float, default=1.0)
    parser.add_argument("--accum-grad", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--MaskGitConfig", type=str, default="config/MaskGit.yml")
    args = parser.parse_args()

    train_transformer = TrainTransformer(args, yaml.safe_load(open(args.MaskGitConfig)))
    loaders = [
        DataLoader(
            LoadTrainData(root=root, partial=args.partial),
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            shuffle=shuffle,
        )
        for root, shuffle in ((args.train_d_path, True), (args.val_d_path, False))
    ]
    best = float("inf")
    for epoch in range(1, args.epochs + 1):
        train_loss = train_transformer.train_one_epoch(loaders[0])
        val_loss = train_transformer.eval_one_epoch(loaders[1])
        print(f"epoch {epoch}: train {train_loss:.4f}, val {val_loss:.4f}")
        if val_loss < best:
            best = val_loss
            torch.save(train_transformer.model.transformer.state_dict(), f"{args.checkpoint_path}/best.pt")
