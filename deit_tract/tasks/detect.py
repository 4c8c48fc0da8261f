"""Object detection: a lane of photos to the losses of Faster R-CNN."""

from torch import Tensor, nn
from torch.utils.data import Dataset

from deit_tract.common.seeds import derive, seed_generators
from deit_tract.data.feed import Source
from deit_tract.data.loader import Batch
from deit_tract.data.transforms.detection import ToSample
from deit_tract.models.build import build_model
from deit_tract.recipe.settings.recipe import Recipe


class Detect:
    """The task of learning to find objects."""

    def __init__(self, recipe: Recipe, images: Dataset):
        transform = ToSample(recipe.augment.flip, difficult=False)
        self.source = Source(images, transform, stacked=False)
        self.model = build_model(recipe)

    def loss(self, model: nn.Module, batches: list[Batch], seeds: list[int]) -> dict[str, Tensor]:
        """{"loss": the sum of Faster R-CNN's four losses, and the four by name} of one lane.

        batches: one of {"image": [(3, h, w)], "boxes": [(n, 4)], "labels": [(n,)]}, photos of any
        sizes.
        """
        assert len(batches) == 1, "the lanes of a detector do not share a forward pass"
        batch = batches[0]
        images = batch["image"]
        # torchvision's samplers of anchors and proposals draw by themselves
        seed_generators(derive(seeds[0], "sample"), images[0].device)
        objects = zip(batch["boxes"], batch["labels"], strict=True)
        losses = model(images, [{"boxes": boxes, "labels": labels} for boxes, labels in objects])
        return {"loss": sum(losses.values())} | losses
