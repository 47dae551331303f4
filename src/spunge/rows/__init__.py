"""Rows: where forget, retain and evaluation sets come from, and single items with what was measured on them."""
