"""Data sets in shards. A shard is a tar file with many images.

`index` reads the list of the shards and the places of the images in them. `remote` finds shards in a bucket. It reads
them through a `store`, which is `s3` or `filesystem`. `cache` keeps shards from a bucket on this machine for some time.
`data/pack.py` makes shards.
"""
