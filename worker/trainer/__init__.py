"""The trainer: a child process that turns an assignment file into an expert. It has no network.

assignment  the file it reads
events      the lines it writes to stdout
loss        cross-entropy without the full logits
optim       learning rate, nested widths, Adam whose state can be written and read back
checkpoint  training checkpoints on disk
loop        the steps
main        the process: signals, the parent's death, failures to events

`python -m worker.trainer ASSIGNMENT.json`. Its stdin must be a pipe that the parent holds open:
when it closes, the parent is gone and the trainer ends at once. SIGTERM or SIGINT: it finishes the
step, writes a checkpoint and exits with 0. Logs go to stderr.
"""
