"""Where shards are worked on: actors on a Ray cluster. The only package that imports ray."""
