"""What scoring ensembles costs beside its forward passes: `python -m benchmarks.scoring --help`.

ground       checkpoints, shards and stores that are scored, made up
passes       one forward pass of one checkpoint over one shard, and nothing else
ours         the whole scoring: each checkpoint once, all ensembles from the cache
recomputed   every mode of every ensemble from its models, over the full vocabulary
rounds       the interleaved rounds, the eighth checkpoint, the models in memory
report       the figures as text and as JSON
main         the command line
"""
