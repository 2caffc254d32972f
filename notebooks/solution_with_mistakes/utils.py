import os

from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader


class Images(Dataset):
    normalised = []

    def __init__(self, root, partial=1.0):
        self.transform = transforms.Compose([transforms.ToTensor(), *self.normalised])
        self.files = sorted(os.path.join(root, file) for file in os.listdir(root))
        self.partial = partial

    def __len__(self):
        return int(len(self.files) * self.partial)

    def __getitem__(self, index):
        return self.transform(default_loader(self.files[index]))


class LoadTrainData(Images):
    normalised = [transforms.Normalize(mean=[0.4816, 0.4324, 0.3845], std=[0.2602, 0.2518, 0.2537])]


class LoadTestData(Images):
    normalised = [transforms.Normalize(mean=[0.4868, 0.4341, 0.3844], std=[0.2620, 0.2527, 0.2543])]


class LoadMaskData(Images):
    pass
