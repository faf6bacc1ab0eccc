"""How fast training is beside Hugging Face's Trainer: `python -m benchmarks.training --help`.

work         what all sides train: model, text, recipe
sides        who is compared; ours, and a loop by hand
hugging_face transformers.Trainer
side         the process of one side, which counts its CPU seconds
rounds       the interleaved rounds, and whether all did the same work
report       the figures as text and as JSON
main         the command line
"""
