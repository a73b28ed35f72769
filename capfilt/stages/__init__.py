"""What happens to a shard: one file per arrow of the loop."""
