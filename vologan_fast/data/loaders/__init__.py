"""The sources of batches. `data/loader.py` chooses one of them."""
