"""From a run file, its shards and what was measured to specs at equal budget. Pure.

errors      what a plan can be refused for
difficulty  seed perplexity to classes
dealing     classes to rounds, and which domains follow one another in a lineage
allotment   steps: in proportion at a given budget, and where the measured slope is greatest
recipes     a domain, a width and steps to the spec of an expert; seeds; the dense baseline
budget      what schemes cost, and the proof that they cost the same
blends      which texts are mixed into one train shard
measured    what a plan reads of checkpoints that it named before
drafts      one scheme's experts, round after round, until something has to be measured
baseline    the dense baseline, and the trials that find its learning rate
plan        all of it together: the specs that can be named now, and what has to be measured first
"""
