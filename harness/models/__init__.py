"""Backbones: names, checkpoints, and timm models ready for a method."""
