"""A small convolutional net for small images."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_bce.spec import Recorded


class SmallConvNet(Recorded, nn.Module):
    """Two convolutions, a global average and a linear layer, for images of 4 by 4 pixels and more.

    Args:
        in_channels: Channels of the images.
        out_features: Number of labels.
        width: Channels of the first convolution; the second has twice as many.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> import torch
        >>> SmallConvNet()(torch.zeros(7, 1, 8, 8)).shape
        torch.Size([7, 1])
    """

    def __init__(self, in_channels: int = 1, out_features: int = 1, width: int = 32) -> None:
        super().__init__()
        if min(in_channels, out_features, width) < 1:
            raise ValueError(
                f"Every number must be at least 1; got in_channels={in_channels}, out_features={out_features}, "
                f"width={width}."
            )
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, out_features),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, out_features) of images (N, in_channels, height, width)."""
        logits: Tensor = self.layers(inputs)
        return logits
