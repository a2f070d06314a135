"""Fashion-MNIST, read by torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from influx.datasets._files import IDX_FILES, read_idx_set
from influx.datasets.base import Dataset, Source

FOLDER, HERE, DEBIAN = "FashionMNIST", "data", "/usr/share/datasets/fashion-mnist"
CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True, kw_only=True)
class FashionMnist(Dataset):
    """60,000 training and 10,000 test images (grey, 1 x 28 x 28, in [0, 1]) of 10 kinds of clothing, 6,000 and 1,000 of each.

    root: folder that holds `FashionMNIST/raw/train-images-idx3-ubyte` and its three companions, plain or `.gz`, or the `.gz`
        files themselves; "auto": `data`, or where Debian's package `dataset-fashion-mnist` has them, if that is installed.
    download: fetch what is missing (29 MiB) into `root`.

    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
    arXiv:1708.07747 (2017). Licence: MIT.
    """

    standardize: bool = False
    root: str = "auto"
    download: bool = False

    def read(self) -> Source:
        root = self.root
        if root == "auto":
            own = Path(HERE, FOLDER).is_dir() or Path(HERE, f"{IDX_FILES[0]}.gz").is_file()
            root = DEBIAN if not own and Path(DEBIAN).is_dir() else HERE
        return read_idx_set(self.name, FOLDER, root, self.download, CLASS_NAMES)
