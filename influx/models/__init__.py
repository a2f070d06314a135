"""Models: a frozen description each, which builds a `torch.nn.Module` for the data's shape."""

from influx.models.base import Model, build

__all__ = ["Model", "build"]
