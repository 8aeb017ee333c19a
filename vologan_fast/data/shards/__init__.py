"""Data sets in shards. A shard is a tar file with many images.

`index` reads the list of the shards and the places of the images in them. `s3` finds shards in a bucket. `cache` keeps
shards from a bucket on this machine for some time. `data/pack.py` makes shards.
"""
