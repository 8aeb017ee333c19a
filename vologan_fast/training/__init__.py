"""Training: from a configuration to a run folder. `train.py` is its command."""
