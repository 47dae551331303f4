"""The embedded world: a fictional land, its data, and a tiny language model that knows it; `lab:` in a recipe.

`python -m spunge.lab DIR` builds all of it from nothing. Nothing in it is about a real group or a real hazard.
"""

from spunge.lab.world import DOMAINS, HAZARDS, PEOPLES, Item, Prompt, World, files

__all__ = ["DOMAINS", "HAZARDS", "PEOPLES", "Item", "Prompt", "World", "files"]
