"""The trainer: a child process that turns an assignment file into an expert. It has no network.

events      the lines it writes to stdout
loss        cross-entropy without the full logits
curve       the points of the learning curve
lora        adapters beside frozen weights
optim       learning rate, nested widths, Adam whose state can be written and read back
checkpoint  training checkpoints on disk
cadence     how often one is written
memory      the owner's cap, the peak, smaller micro-batches
trainable   what the loop can train
watch       time, speed and the smoothed loss
loop        the steps
mixture     the training of part of a mixture, with the Adam of mixture_optim
pilot       trial steps, before an offer is taken
failures    which failure an exception is
main        the process: signals, the parent's death, failures to events

`python -m worker.trainer ASSIGNMENT.json`, or `-`: then the paths of assignments come in lines on
stdin, and it ends after a failure or a stop. Its stdin must be a pipe that the parent holds open:
when it closes, the parent is gone and the trainer ends at once. SIGTERM or SIGINT: it finishes the
step, writes a checkpoint and exits with 0. Logs go to stderr. With --mixture before the file it
trains part of a mixture of experts.
"""
