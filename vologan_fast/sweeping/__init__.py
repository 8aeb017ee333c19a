"""Sweeps: many trainings with other settings each, chosen by Optuna. The command is `vologan_fast/sweep.py`.

Read `space` first: what the YAML file of a sweep means. `trial` runs one training as a process of its own, and `study`
keeps the record of all trials, which survives everything. `results` shows it.
"""
