"""SPlit, UNlearn, merGE: make a language model forget, attribute by attribute, and show what went and what stayed."""
