"""What a report shows about a run, as numbers: plain arrays that others draw.

Read `observation.py` first: it looks at networks and held-out images, and collects all other quantities. `histograms`,
`depth`, `clouds`, `principal`, `judgements` and `weights` each define one kind. `warnings` has the sentences about
numbers that look wrong. Nothing here draws, writes a file or uses a random number.
"""
