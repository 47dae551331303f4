"""Weights: checkpoints, adapters and task vectors as files, and the base model that they belong to."""
