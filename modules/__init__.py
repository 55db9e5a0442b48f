"""Independent units of the product; each shows the others its `public.py` only."""
