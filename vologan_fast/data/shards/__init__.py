"""Data sets in shards: many images in one tar file.

`index` says what is in which shard, `cache` keeps shards from far away on this machine for a while, `s3` finds them in
a bucket. `data/pack.py` makes them.
"""
