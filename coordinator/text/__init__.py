"""From text sources to the run's tokenizer and shards."""
