"""Where batches come from; `data/loader.py` chooses one of them."""
