"""Judges translations: how far are they from real images, and what do they lack?

Read `judge` first, which compares candidates by all measures. The measures are in `distances` (patches), `sensor`
(faults of a depth sensor), `sequences` (several images of one scene), `repeats` (repeated shots, and repeated draws of
a generator), `components` (principal components) and `features` (KID and FID). `bootstrap` makes the intervals.
`noise_model` is a parametric baseline. `inputs` reads the images, `views` shows those of other channels as RGB-D, and
`tables` writes the results.
"""
